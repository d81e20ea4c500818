use super::*;
use crate::par::CHUNK;
use crate::testing::{assert_same_bits_for_any_pool, numbers};

#[test]
fn a_share_of_the_elements_is_dropped_and_the_mean_stays() {
    let len = 100_000;
    for rate in [0.0, 0.1, 0.5, 0.9] {
        let mut x = vec![1.0; len];
        apply(&[7], len, rate, &mut x);
        let dropped = x.iter().filter(|x| **x == 0.0).count() as f64 / len as f64;
        // Six standard deviations of a binomial distribution.
        let bound = 6.0 * (f64::from(rate) * (1.0 - f64::from(rate)) / len as f64).sqrt();
        assert!((dropped - f64::from(rate)).abs() <= bound, "rate {rate}: {dropped}");
        assert!(x.iter().all(|x| *x == 0.0 || *x == 1.0 / (1.0 - rate)), "rate {rate}");
    }
}

#[test]
fn neighbours_keys_and_salts_are_independent() {
    let (len, rate) = (50_000, 0.5);
    let mask = |key: u64| {
        let mut x = vec![1.0; len];
        apply(&[key], len, rate, &mut x);
        x.into_iter().map(|x| x > 0.0).collect::<Vec<_>>()
    };
    let agree = |a: &[bool], b: &[bool]| a.iter().zip(b).filter(|(a, b)| a == b).count() as f64 / a.len() as f64;
    let one = mask(1);
    let others = [mask(2), mask(derive(1, 1)), mask(derive(1, 2)), mask(derive(2, 1)), one[1..].to_vec()];
    for (i, other) in others.iter().enumerate() {
        let share = agree(&one, other);
        // Six standard deviations.
        assert!((share - 0.5).abs() < 3.0 / (len as f64).sqrt(), "{i}: {share}");
    }
    assert_eq!(one, mask(1));
}

#[test]
fn a_sample_is_dropped_by_its_key_alone() {
    let len = 301;
    let x = numbers(3 * len, 1);
    let mut all = x.clone();
    apply(&[5, 6, 7], len, 0.3, &mut all);
    let mut alone = x[len..2 * len].to_vec();
    apply(&[6], len, 0.3, &mut alone);
    assert_eq!(all[len..2 * len], alone);
    apply(&[], len, 0.3, &mut []);
    apply(&[1, 2], 0, 0.3, &mut []);
}

#[test]
fn bits_do_not_depend_on_threads() {
    let len = CHUNK + 77;
    assert_same_bits_for_any_pool(|| {
        let mut x = numbers(3 * len, 1);
        apply(&[1, 2, 3], len, 0.4, &mut x);
        vec![x]
    });
}

#[test]
#[should_panic(expected = "dropout: the rate is 1")]
fn rates_are_checked() {
    apply(&[1], 1, 1.0, &mut [0.0]);
}
