use super::*;
use crate::testing::{self, ACTS, added, assert_close, assert_same_bits_for_any_pool, dot, gradient, numbers, wide};

fn dims(rows: usize, c: usize) -> BatchNormDims {
    BatchNormDims { rows, c, eps: 1e-5 }
}

/// Mean and biased variance of each channel.
fn moments(d: &BatchNormDims, x: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let column = |k: usize| x.iter().skip(k).step_by(d.c);
    let mean: Vec<f64> = (0..d.c).map(|k| column(k).sum::<f64>() / d.rows as f64).collect();
    let var = (0..d.c).map(|k| column(k).map(|x| (x - mean[k]).powi(2)).sum::<f64>() / d.rows as f64).collect();
    (mean, var)
}

/// Ioffe and Szegedy 2015, algorithm 1, element by element.
fn reference(d: &BatchNormDims, x: &[f64], gamma: &[f64], beta: &[f64], act: Act) -> Vec<f64> {
    let (mean, var) = moments(d, x);
    let z = |(i, x): (usize, &f64)| {
        let k = i % d.c;
        testing::act(act, (x - mean[k]) / (var[k] + f64::from(d.eps)).sqrt() * gamma[k] + beta[k])
    };
    x.iter().enumerate().map(z).collect()
}

#[test]
fn training_agrees_with_the_reference() {
    for d in [dims(0, 3), dims(5, 0), dims(1, 5), dims(2, 17), dims(7, 16), dims(1000, 64), dims(611, 67)] {
        for act in ACTS {
            let (x, gamma, beta) = (numbers(d.len(), 1), numbers(d.c, 2), numbers(d.c, 3));
            let (mut y, mut stats) = (vec![f32::NAN; d.len()], vec![f32::NAN; 2 * d.c]);
            let (mut mean, mut var) = (numbers(d.c, 4), numbers(d.c, 5));
            let before = (wide(&mean), wide(&var));
            let running = Running { mean: &mut mean, var: &mut var, momentum: 0.1 };
            forward_train(&d, &x, &gamma, &beta, act, &mut y, &mut stats, Some(running));
            let exact = reference(&d, &wide(&x), &wide(&gamma), &wide(&beta), act);
            // One row has no deviation: 1/sqrt(eps) magnifies the rounding of the mean.
            assert_close(&format!("{d:?} {act:?}"), &y, &exact, 2e-6);

            let (new_mean, new_var) = moments(&d, &wide(&x));
            let unbiased = d.rows as f64 / (d.rows.max(2) - 1) as f64;
            let update = |old: &[f64], new: Vec<f64>, factor: f64| -> Vec<f64> {
                let weight = if d.rows == 0 { 0.0 } else { 0.1 };
                let mixed = |(old, new): (&f64, f64)| {
                    if d.rows == 0 { *old } else { (1.0 - weight) * old + weight * factor * new }
                };
                old.iter().zip(new).map(mixed).collect()
            };
            assert_close(&format!("{d:?} running mean"), &mean, &update(&before.0, new_mean, 1.0), 1e-6);
            assert_close(&format!("{d:?} running variance"), &var, &update(&before.1, new_var, unbiased), 1e-6);
        }
    }
}

#[test]
fn evaluation_uses_the_running_estimates() {
    for act in ACTS {
        let d = dims(37, 19);
        let (x, gamma, beta, mean) = (numbers(d.len(), 1), numbers(d.c, 2), numbers(d.c, 3), numbers(d.c, 4));
        let var: Vec<f32> = numbers(d.c, 5).iter().map(|v| v + 2.5).collect();
        let mut y = vec![f32::NAN; d.len()];
        forward_eval(&d, &x, &gamma, &beta, act, &mean, &var, &mut y);
        let exact: Vec<f64> = (0..d.len())
            .map(|i| {
                let k = i % d.c;
                let [x, mean, var, gamma, beta] = [x[i], mean[k], var[k], gamma[k], beta[k]].map(f64::from);
                testing::act(act, (x - mean) / (var + 1e-5f32 as f64).sqrt() * gamma + beta)
            })
            .collect();
        assert_close(&format!("{act:?}"), &y, &exact, 1e-6);
    }
}

#[test]
fn gradients_agree_with_finite_differences() {
    for d in [dims(0, 3), dims(2, 3), dims(11, 5), dims(13, 17)] {
        for act in ACTS {
            let (x, dy, gamma, beta) = (numbers(d.len(), 1), numbers(d.len(), 2), numbers(d.c, 3), numbers(d.c, 4));
            let (mut y, mut stats) = (vec![0.0; d.len()], vec![0.0; 2 * d.c]);
            forward_train(&d, &x, &gamma, &beta, act, &mut y, &mut stats, None);
            let before = [numbers(d.len(), 5), numbers(d.c, 6), numbers(d.c, 7)];
            let [mut dx, mut dgamma, mut dbeta] = before.clone();
            backward(&d, &x, &gamma, &beta, act, &stats, &dy, &mut dx, &mut dgamma, &mut dbeta);
            let loss = |x: &[f64], gamma: &[f64], beta: &[f64]| dot(&reference(&d, x, gamma, beta, act), &dy);
            let (wx, wgamma, wbeta) = (wide(&x), wide(&gamma), wide(&beta));
            let exact = gradient(&x, |x| loss(x, &wgamma, &wbeta));
            assert_close(&format!("dx {d:?} {act:?}"), &dx, &added(&before[0], &exact), 3e-6);
            let exact = gradient(&gamma, |gamma| loss(&wx, gamma, &wbeta));
            assert_close(&format!("dgamma {d:?} {act:?}"), &dgamma, &added(&before[1], &exact), 3e-6);
            let exact = gradient(&beta, |beta| loss(&wx, &wgamma, beta));
            assert_close(&format!("dbeta {d:?} {act:?}"), &dbeta, &added(&before[2], &exact), 3e-6);
        }
    }
}

#[test]
fn bits_do_not_depend_on_threads() {
    let d = dims(2000, 33);
    let (x, dy, gamma, beta) = (numbers(d.len(), 1), numbers(d.len(), 2), numbers(d.c, 3), numbers(d.c, 4));
    assert!(d.rows > 3 * chunk_rows(d.c));
    assert_same_bits_for_any_pool(|| {
        let (mut y, mut stats) = (vec![0.0; d.len()], vec![0.0; 2 * d.c]);
        forward_train(&d, &x, &gamma, &beta, Act::Relu, &mut y, &mut stats, None);
        let (mut dx, mut dgamma, mut dbeta) = (vec![0.0; d.len()], vec![0.0; d.c], vec![0.0; d.c]);
        backward(&d, &x, &gamma, &beta, Act::Relu, &stats, &dy, &mut dx, &mut dgamma, &mut dbeta);
        vec![y, stats, dx, dgamma, dbeta]
    });
}

#[test]
#[should_panic(expected = "batch norm: gamma has 2 elements, its dimensions ask for 3")]
fn lengths_are_checked() {
    forward_eval(&dims(1, 3), &[0.0; 3], &[0.0; 2], &[0.0; 3], Act::None, &[0.0; 3], &[1.0; 3], &mut [0.0; 3]);
}

/// What a reader makes of factors and offsets.
fn mapped(d: &BatchNormDims, x: &[f32], scale: &[f32], shift: &[f32], act: Act) -> Vec<f32> {
    let mut y = vec![f32::NAN; d.len()];
    let map = crate::map::Map { scale, shift, per_sample: false, act };
    crate::map::apply(1, d.rows, d.c, x, &map, &mut y);
    y
}

#[test]
fn coefficients_carry_the_normalisation_out() {
    for d in [dims(0, 3), dims(5, 0), dims(2, 17), dims(1000, 64)] {
        let (x, gamma, beta) = (numbers(d.len(), 1), numbers(d.c, 2), numbers(d.c, 3));
        let (mut scale, mut shift, mut stats) = (vec![f32::NAN; d.c], vec![f32::NAN; d.c], vec![f32::NAN; 2 * d.c]);
        statistics(&d, &x, &mut stats, None);
        coefficients(d.c, &stats, &gamma, &beta, &mut scale, &mut shift);
        let exact = reference(&d, &wide(&x), &wide(&gamma), &wide(&beta), Act::Relu);
        assert_close(&format!("{d:?}"), &mapped(&d, &x, &scale, &shift, Act::Relu), &exact, 2e-6);

        let (mean, var) = (numbers(d.c, 4), numbers(d.c, 5).iter().map(|v| v + 2.5).collect::<Vec<f32>>());
        let mut y = vec![f32::NAN; d.len()];
        forward_eval(&d, &x, &gamma, &beta, Act::Silu, &mean, &var, &mut y);
        coefficients_eval(d.c, d.eps, &mean, &var, &gamma, &beta, &mut scale, &mut shift);
        assert_close(&format!("{d:?}"), &mapped(&d, &x, &scale, &shift, Act::Silu), &wide(&y), 2e-6);
    }
}

#[test]
fn the_backward_pass_in_place_has_the_same_bits() {
    for d in [dims(0, 3), dims(11, 5), dims(1000, 64)] {
        for act in ACTS {
            let (x, dy, gamma, beta) = (numbers(d.len(), 1), numbers(d.len(), 2), numbers(d.c, 3), numbers(d.c, 4));
            let mut stats = vec![0.0; 2 * d.c];
            statistics(&d, &x, &mut stats, None);
            let [mut dx, mut dgamma, mut dbeta] = [vec![0.0; d.len()], numbers(d.c, 6), numbers(d.c, 7)];
            backward(&d, &x, &gamma, &beta, act, &stats, &dy, &mut dx, &mut dgamma, &mut dbeta);
            let [mut in_place, mut dgamma_2, mut dbeta_2] = [dy, numbers(d.c, 6), numbers(d.c, 7)];
            backward_in_place(&d, &x, &gamma, &beta, act, &stats, &mut in_place, &mut dgamma_2, &mut dbeta_2);
            assert_eq!([dx, dgamma, dbeta], [in_place, dgamma_2, dbeta_2], "{d:?} {act:?}");
        }
    }
}
