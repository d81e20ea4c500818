//! Whether two samples come from one distribution: Smirnov's two-sample test along random directions.
//!
//! Both samples have `n` points. Along a direction `u` the statistic is `k = n max_z |F_a(z) - F_b(z)|`, where `F` are the
//! empirical distribution functions of the projections `u . x`. If both come from one continuous distribution then, whatever it
//! is (Gnedenko & Korolyuk 1951),
//!
//! ```text
//! P(k or more) = 2 sum_{j = 1}^{floor(n / k)} (-1)^(j - 1) C(2 n, n - j k) / C(2 n, n)
//! ```
//!
//! Two distributions that agree in all directions are the same (Cramér & Wold 1936). Of several directions the smallest of
//! these probabilities, times their number, is the result (Bonferroni): it falls below `alarm` with a probability of at most
//! `alarm` for any `n` and any dimension, so that a false alarm has a rate that can be stated.

use ndarray::{ArrayView4, Axis};
use ndarray_rand::rand::Rng;
use ndarray_rand::rand_distr::StandardNormal;
use tweedie_denoiser::rng_for;

use crate::EvalError;

const OPERATION: &str = "two-sample test";
/// Separates this generator from every other one that is keyed by the same seed.
const DOMAIN: &str = "eval/two-sample";

/// The result of a two-sample test.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TwoSample {
    /// An upper bound, in [0, 1], of the probability of a difference as large as this between samples of one distribution.
    pub p_value: f64,
    /// The largest difference of two empirical distribution functions, in [0, 1].
    pub statistic: f64,
    /// The number of directions.
    pub directions: usize,
}

/// Compares `n` samples `a` with `n` samples `b`, both `[N, C, H, W]`, along `directions` random unit vectors drawn with `seed`.
/// Where a sample is one number there is but one direction.
///
/// Reject where the `p_value` is at most the rate of false alarms that you allow.
///
/// # Errors
/// If the shapes differ, there is no sample or no direction, or a value is not finite.
///
/// Verified by `false_alarms_have_the_stated_rate`. Verified by `different_distributions_are_told_apart`.
pub fn two_sample(
    a: ArrayView4<'_, f64>,
    b: ArrayView4<'_, f64>,
    directions: usize,
    seed: u64,
) -> Result<TwoSample, EvalError> {
    let parameter = |what, expected: String, found: String, remedy| {
        Err(EvalError::Parameter { operation: OPERATION, what, expected, found, remedy })
    };
    if a.dim() != b.dim() {
        let (expected, found) = (format!("of shape {:?} as the first", a.shape()), format!("{:?}", b.shape()));
        return parameter("the second sample", expected, found, "draw as many points of each");
    }
    let (n, size) = (a.len_of(Axis(0)), a.len() / a.len_of(Axis(0)).max(1));
    if size == 0 {
        let found = format!("shape {:?}", a.shape());
        return parameter("a sample", "one point or more".to_owned(), found, "draw some");
    }
    if directions == 0 {
        return parameter("the number of directions", "1 or more".to_owned(), "0".to_owned(), "16 serve in the plane");
    }
    if let Some(value) = a.iter().chain(b).find(|v| !v.is_finite()) {
        return parameter("every value", "finite".to_owned(), value.to_string(), "look for what went wrong before");
    }
    let directions = if size == 1 { 1 } else { directions };
    let mut highest = 0;
    for index in 0..directions {
        let mut rng = rng_for(seed, DOMAIN, index as u64, 0);
        let direction: Vec<f64> = (0..size).map(|_| rng.sample(StandardNormal)).collect();
        let project = |x: ArrayView4<'_, f64>| -> Vec<f64> {
            x.outer_iter().map(|x| x.iter().zip(&direction).map(|(x, u)| x * u).sum()).collect()
        };
        highest = highest.max(smirnov_statistic(project(a), project(b)));
    }
    let p_value = (directions as f64 * smirnov_p_value(n, highest)).min(1.0);
    Ok(TwoSample { p_value, statistic: highest as f64 / n as f64, directions })
}

/// `max_z |#{a_i <= z} - #{b_i <= z}|`.
///
/// Verified by `statistic_counts_points`.
pub fn smirnov_statistic(mut a: Vec<f64>, mut b: Vec<f64>) -> usize {
    a.sort_by(f64::total_cmp);
    b.sort_by(f64::total_cmp);
    let (mut i, mut j, mut highest) = (0, 0, 0);
    while i < a.len() && j < b.len() {
        let at = a[i].min(b[j]);
        i += a[i..].iter().take_while(|v| **v <= at).count();
        j += b[j..].iter().take_while(|v| **v <= at).count();
        highest = highest.max(i.abs_diff(j));
    }
    highest
}

/// The probability that the statistic of two samples of `n` points of one continuous distribution is `k` or more:
/// `2 sum_{j >= 1} (-1)^(j - 1) C(2 n, n - j k) / C(2 n, n)` (Gnedenko & Korolyuk 1951).
///
/// It is 1 for `k = 0`, and 0 for `k > n`.
///
/// Verified by `p_values_count_the_paths`. Verified by `p_values_approach_smirnovs_law`.
pub fn smirnov_p_value(n: usize, k: usize) -> f64 {
    if k == 0 {
        return 1.0;
    }
    // C(2 n, n - a) / C(2 n, n) = product over i = 1..a of (n - a + i) / (n + i).
    let ratio = |a: usize| (1..=a).map(|i| (n - a + i) as f64 / (n + i) as f64).product::<f64>();
    let mut sum = 0.0;
    for j in 1..=n / k {
        let term = ratio(j * k);
        sum += if j % 2 == 1 { term } else { -term };
        if term < 1e-18 * sum {
            break;
        }
    }
    (2.0 * sum).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use ndarray::Array4;

    use super::*;

    /// Correlated normal points in the plane.
    fn points(n: usize, correlation: f64, scale: f64, shift: f64, seed: u64) -> Array4<f64> {
        let mut x = Array4::zeros((n, 2, 1, 1));
        for (i, mut row) in x.outer_iter_mut().enumerate() {
            let mut rng = rng_for(seed, "test", i as u64, 0);
            let (u, v): (f64, f64) = (rng.sample(StandardNormal), rng.sample(StandardNormal));
            row[[0, 0, 0]] = scale * u + shift;
            row[[1, 0, 0]] = scale * (correlation * u + (1.0 - correlation * correlation).sqrt() * v);
        }
        x
    }

    #[test]
    fn statistic_counts_points() {
        let of = |a: &[f64], b: &[f64]| smirnov_statistic(a.to_vec(), b.to_vec());
        assert_eq!(of(&[3.0, 1.0, 2.0], &[6.0, 5.0, 4.0]), 3);
        assert_eq!(of(&[1.0, 3.0, 5.0], &[2.0, 4.0, 6.0]), 1);
        assert_eq!(of(&[2.0, 4.0, 6.0], &[1.0, 3.0, 5.0]), 1);
        assert_eq!(of(&[1.0, 2.0, 6.0, 7.0], &[3.0, 4.0, 5.0, 8.0]), 2);
        assert_eq!(of(&[1.0, 2.0, 2.0], &[2.0, 2.0, 1.0]), 0);
    }

    /// All orders of n and n points are equally likely: those of a highest difference of k or more, counted.
    #[test]
    fn p_values_count_the_paths() {
        for n in 1..=6_usize {
            let mut counts = vec![0_u32; n + 1];
            for order in (0_u32..1 << (2 * n)).filter(|order| order.count_ones() as usize == n) {
                let (mut at, mut highest) = (0_i32, 0);
                for bit in 0..2 * n {
                    at += if order >> bit & 1 == 1 { 1 } else { -1 };
                    highest = highest.max(at.unsigned_abs() as usize);
                }
                counts[highest] += 1;
            }
            let total: u32 = counts.iter().sum();
            for k in 0..=n {
                let expected = f64::from(counts[k..].iter().sum::<u32>()) / f64::from(total);
                let found = smirnov_p_value(n, k);
                assert!((found - expected).abs() < 1e-13, "n = {n}, k = {k}: {found} instead of {expected}");
            }
            assert_eq!(smirnov_p_value(n, n + 1), 0.0);
        }
    }

    /// `2 exp(-2 x^2)`, the first term of the limit, for large n with `k = x sqrt(2 n)`.
    #[test]
    fn p_values_approach_smirnovs_law() {
        let n = 200_000;
        for (x, tolerance) in [(1.5, 1e-3), (2.0, 1e-3), (3.0, 1e-3)] {
            let k = (x * (2.0 * n as f64).sqrt()).round();
            let exact = 2.0 * (-(k * k) / n as f64).exp();
            let found = smirnov_p_value(n, k as usize);
            assert!((found / exact - 1.0).abs() < tolerance, "{found} instead of {exact}");
        }
        // Nearly certain differences.
        assert!((smirnov_p_value(1000, 1) - 1.0).abs() < 1e-12 && smirnov_p_value(1000, 20) > 0.98);
    }

    /// Pairs of samples of one distribution. Along one direction the rate is that of the formula, within five standard
    /// deviations of a binomial count (less than one in a million); along eight it is at most the stated one.
    #[test]
    fn false_alarms_have_the_stated_rate() {
        let (pairs, n, alarm) = (1500, 60, 0.05);
        let count = |directions| {
            let rejected = |seed: &u64| {
                let (a, b) = (points(n, 0.6, 1.0, 0.0, 2 * seed), points(n, 0.6, 1.0, 0.0, 2 * seed + 1));
                two_sample(a.view(), b.view(), directions, *seed).unwrap().p_value <= alarm
            };
            (0..pairs).filter(rejected).count() as f64
        };
        let spread = |rate: f64| 5.0 * (pairs as f64 * rate * (1.0 - rate)).sqrt();
        // The statistic is a whole number, so not every rate can be had: the highest below the stated one is.
        let rate = (1..=n).map(|k| smirnov_p_value(n, k)).find(|p| *p <= alarm).unwrap();
        assert!(rate > 0.02, "{rate}");
        let one = count(1);
        assert!((one - pairs as f64 * rate).abs() < spread(rate), "{one} of {pairs} at a rate of {rate}");
        let eight = count(8);
        assert!(eight < pairs as f64 * alarm + spread(alarm), "{eight} of {pairs}");
        assert!(eight > 0.0, "a test that never rejects");
    }

    /// Shifts, scales and correlations, the last of which leave both coordinates as they are.
    #[test]
    fn different_distributions_are_told_apart() {
        let n = 3000;
        let reference = points(n, 0.5, 1.0, 0.0, 1);
        let p = |other: Array4<f64>| two_sample(reference.view(), other.view(), 16, 3).unwrap().p_value;
        assert!(p(points(n, 0.5, 1.0, 0.0, 2)) > 1e-3);
        for (name, other) in [
            ("shift", points(n, 0.5, 1.0, 0.25, 2)),
            ("scale", points(n, 0.5, 1.4, 0.0, 2)),
            ("correlation", points(n, -0.5, 1.0, 0.0, 2)),
        ] {
            assert!(p(other) < 1e-6, "{name}");
        }
    }

    #[test]
    fn results_are_reported_and_input_is_checked() {
        let (a, b) = (points(10, 0.0, 1.0, 0.0, 1), points(10, 0.0, 1.0, 100.0, 2));
        let far = two_sample(a.view(), b.view(), 3, 0).unwrap();
        assert_eq!((far.statistic, far.directions), (1.0, 3));
        assert!((far.p_value - 3.0 * smirnov_p_value(10, 10)).abs() < 1e-15);
        assert_eq!(two_sample(a.view(), a.view(), 3, 0).unwrap().p_value, 1.0);
        let line = |x: &Array4<f64>| x.clone().into_shape_with_order((20, 1, 1, 1)).unwrap();
        assert_eq!(two_sample(line(&a).view(), line(&b).view(), 9, 0).unwrap().directions, 1);
        assert!(two_sample(a.view(), line(&b).view(), 1, 0).is_err());
        assert!(two_sample(a.view(), b.view(), 0, 0).is_err());
        let none = Array4::zeros((0, 2, 1, 1));
        assert!(two_sample(none.view(), none.view(), 1, 0).is_err());
        let broken = &a * f64::NAN;
        let error = two_sample(a.view(), broken.view(), 1, 0).unwrap_err().to_string();
        assert!(error.contains("NaN"), "{error}");
    }
}
