//! The probability-flow ODE's density against exact ones (Song 2021, eq. 39).

mod common;

use common::{Parts, draw, gaussian, mixture};
use ndarray::{Array4, Axis, array};
use tweedie_data::Range;
use tweedie_denoiser::{Condition, ConditionalDenoiser, MixtureOracle};
use tweedie_eval::ode::{Ode, OdeLikelihood, Trace, dequantise, dequantised_bits_per_dim};
use tweedie_eval::{Estimate, byte_bins, vlb};
use tweedie_schedule::NoiseLevel;

/// The normal prior is off by O(1 / sigma_max) at each sample, which is nothing here.
const EXACT: Ode = Ode { sigma_min: 1e-2, sigma_max: 1e8, steps: 300, trace: Trace::Exact, reach: 1e-4 };

fn parts() -> Parts {
    vec![(1.0, [0.8, -0.4], 0.3), (2.0, [-0.9, 0.5], 0.5), (0.7, [0.1, 1.1], 0.25)]
}

fn run(ode: Ode, model: &dyn ConditionalDenoiser, x0: &Array4<f64>) -> Vec<OdeLikelihood> {
    ode.log_density(model, x0.view(), &Condition::none(x0.dim().0), 0, &mut |_| ()).unwrap()
}

/// The exact log-density of `x_0 + sigma eps` at `y`: `x = alpha y` has it up to the factor `alpha^d`.
fn exact(model: &MixtureOracle, y: &Array4<f64>, sigma: f64, condition: &Condition) -> Vec<f64> {
    let level = NoiseLevel::from_edm_sigma(sigma).unwrap();
    let dims = (y.len() / y.dim().0) as f64;
    let x = y.mapv(|v| level.alpha() * v);
    let logs = model.log_density(x.view(), level, condition).unwrap();
    logs.into_iter().map(|log| log + dims * level.alpha().ln()).collect()
}

fn largest(found: &[OdeLikelihood], expected: &[f64]) -> f64 {
    found.iter().zip(expected).map(|(f, e)| (f.log_density - e).abs()).fold(0.0, f64::max)
}

#[test]
fn ode_agrees_with_the_mixture() {
    let (model, (x0, chosen)) = (mixture(&parts()), draw(&parts(), 12, 5));
    let error = largest(&run(EXACT, &model, &x0), &exact(&model, &x0, EXACT.sigma_min, &Condition::none(12)));
    assert!(error < 1e-6, "off by {error:e}");
    // The data's own density, without the noise of sigma_min.
    let fine = Ode { sigma_min: 1e-4, steps: 300, ..EXACT };
    let clean = model.log_density(x0.view(), NoiseLevel::CLEAN, &Condition::none(12)).unwrap();
    let error = largest(&run(fine, &model, &x0), &clean);
    assert!(error < 1e-5, "off by {error:e}");
    // Under labels.
    let condition = Condition::labels(chosen.iter().map(|&k| Some(k)).collect());
    let found = EXACT.log_density(&model, x0.view(), &condition, 0, &mut |_| ()).unwrap();
    let error = largest(&found, &exact(&model, &x0, EXACT.sigma_min, &condition));
    assert!(error < 1e-6, "off by {error:e}");
}

/// Standard normal data does not flow at all: even one step is exact, and so is the prior at any `sigma_max`.
#[test]
fn standard_normal_data_stands_still() {
    let (model, x0) = (gaussian(0.0, 1.0, 3), array![[[[0.3, -1.1, 2.0]]]]);
    let ode = Ode { sigma_max: 0.7, steps: 1, ..EXACT };
    let found = run(ode, &model, &x0);
    assert!(largest(&found, &exact(&model, &x0, 1e-2, &Condition::none(1))) < 1e-9);
    assert_eq!(found[0].standard_error, None);
    // What is reported of the prior is L_T.
    let squares = 0.3 * 0.3 + 1.1 * 1.1 + 4.0;
    let prior = vlb::prior_kl(NoiseLevel::from_edm_sigma(0.7).unwrap(), squares, 3);
    assert!((found[0].prior_kl - prior).abs() < 1e-12);
}

/// The error of a prior that is not normal yet: on average at most `L_T`, and not nothing.
#[test]
fn the_prior_costs_at_most_its_term() {
    let (model, (x0, _)) = (mixture(&parts()), draw(&parts(), 200, 9));
    let found = run(Ode { sigma_max: 3.0, ..EXACT }, &model, &x0);
    let exact = exact(&model, &x0, EXACT.sigma_min, &Condition::none(200));
    let cost = Estimate::of(&found.iter().zip(&exact).map(|(f, e)| e - f.log_density).collect::<Vec<f64>>()).mean;
    let bound = Estimate::of(&found.iter().map(|f| f.prior_kl).collect::<Vec<f64>>()).mean;
    assert!(cost.abs() > 1e-4 && cost < bound, "{cost} against {bound}");
}

#[test]
fn ode_converges_at_fourth_order() {
    let (model, (x0, _)) = (mixture(&parts()), draw(&parts(), 6, 5));
    let at = |steps| run(Ode { steps, ..EXACT }, &model, &x0);
    let fine: Vec<f64> = at(2560).iter().map(|l| l.log_density).collect();
    let errors: Vec<f64> = [160, 320, 640].into_iter().map(|steps| largest(&at(steps), &fine)).collect();
    for pair in errors.windows(2) {
        let order = (pair[0] / pair[1]).log2();
        assert!((order - 4.0).abs() < 0.6, "order {order} from {errors:?}");
    }
}

/// Probes estimate the trace: the mean over many is the exact value, and the standard error says how far one may be off.
#[test]
fn hutchinson_is_unbiased() {
    let (model, x0) = (mixture(&parts()), array![[[[0.2, 0.1]]]]);
    let ode = Ode { sigma_min: 0.05, steps: 100, ..EXACT };
    let truth = run(ode, &model, &x0)[0].log_density;
    let probed = |probes, seed| run(Ode { trace: Trace::Hutchinson { probes, seed }, ..ode }, &model, &x0)[0];
    let found = probed(400, 1);
    let error = found.standard_error.unwrap();
    assert!(error > 1e-4 && error < 0.2, "{error}");
    assert!((found.log_density - truth).abs() < 5.0 * error, "{found:?} instead of {truth}");
    // The spread over seeds is what the standard error promises.
    let seeds: Vec<f64> = (0..60).map(|seed| probed(10, seed).log_density).collect();
    let mean = Estimate::of(&seeds);
    let promised = error * (400.0_f64 / (10.0 * 60.0)).sqrt();
    assert!((mean.mean - truth).abs() < 5.0 * mean.standard_error.unwrap());
    assert!((mean.standard_error.unwrap() / promised - 1.0).abs() < 0.4, "{mean:?}, promised {promised}");
    assert_eq!(probed(1, 3).standard_error, None);
    // In one dimension a sign squared is 1: the estimate is exact.
    let line = array![[[[0.7]]]];
    let one = gaussian(0.3, 0.4, 1);
    let probe = run(Ode { trace: Trace::Hutchinson { probes: 1, seed: 8 }, ..ode }, &one, &line)[0];
    assert!((probe.log_density - run(ode, &one, &line)[0].log_density).abs() < 1e-10);
}

/// A sample's result is its own: in a batch, after others, or alone.
#[test]
fn samples_are_independent() {
    let (model, (x0, _)) = (mixture(&parts()), draw(&parts(), 3, 5));
    let ode = Ode { steps: 20, trace: Trace::Hutchinson { probes: 2, seed: 4 }, ..EXACT };
    let mut calls = 0;
    let together = ode.log_density(&model, x0.view(), &Condition::none(3), 5, &mut |n| calls += n).unwrap();
    assert_eq!((calls, ode.calls(2)), (3 * 400, 400));
    assert_eq!(Ode { trace: Trace::Exact, ..ode }.calls(7), 4 * 20 * 15);
    for i in 0..3 {
        let one = x0.select(Axis(0), &[i]);
        let alone = ode.log_density(&model, one.view(), &Condition::none(1), 5 + i, &mut |_| ()).unwrap();
        assert_eq!(alone[0], together[i]);
    }
    assert_ne!(run(ode, &model, &x0)[0], together[0]);
}

#[test]
fn dequantised_pixels_fill_their_bins() {
    let bins = byte_bins(Range::MinusOneOne);
    let x0 = Array4::from_elem((50, 1, 10, 10), bins.level(7));
    let noisy = dequantise(x0.view(), &bins, 3, 0);
    let places: Vec<f64> = noisy.iter().map(|v| (v - bins.level(7)) / bins.width()).collect();
    assert!(places.iter().all(|p| (-0.5 - 1e-12..0.5 + 1e-12).contains(p)));
    // Mean 0 and variance 1/12, within 5 standard errors of 5000 numbers.
    let mean = places.iter().sum::<f64>() / 5000.0;
    let square = places.iter().map(|p| p * p).sum::<f64>() / 5000.0;
    assert!(mean.abs() < 5.0 * (1.0_f64 / 12.0 / 5000.0).sqrt(), "{mean}");
    assert!((square - 1.0 / 12.0).abs() < 5.0 * (1.0_f64 / 180.0 / 5000.0).sqrt(), "{square}");
    // Keyed by the number of the sample.
    let later = dequantise(x0.view(), &bins, 3, 10);
    assert_eq!(later.index_axis(Axis(0), 0), noisy.index_axis(Axis(0), 10));
    assert_ne!(later, noisy);
    assert_ne!(dequantise(x0.view(), &bins, 4, 0), noisy);
}

#[test]
fn dequantised_bits_of_a_uniform_density() {
    // A uniform density over 256 bins: 8 bits for each of 5 dimensions, whatever the width.
    for width in [2.0 / 255.0, 1.0 / 255.0] {
        let log_density = -5.0 * (256.0_f64 * width).ln();
        assert!((dequantised_bits_per_dim(log_density, 5, width) - 8.0).abs() < 1e-12);
    }
}

#[test]
fn mistakes_are_named() {
    let (model, x0) = (gaussian(0.0, 1.0, 2), Array4::zeros((1, 1, 1, 2)));
    let fail = |ode: Ode, part: &str| {
        let error = ode.log_density(&model, x0.view(), &Condition::none(1), 0, &mut |_| ()).unwrap_err().to_string();
        assert!(error.contains(part), "no {part} in: {error}");
    };
    fail(Ode { sigma_min: 0.0, ..EXACT }, "noise levels");
    fail(Ode { sigma_min: EXACT.sigma_max, ..EXACT }, "noise levels");
    fail(Ode { sigma_max: f64::INFINITY, ..EXACT }, "noise levels");
    fail(Ode { steps: 0, ..EXACT }, "number of steps");
    fail(Ode { reach: 0.0, ..EXACT }, "reach");
    fail(Ode { trace: Trace::Hutchinson { probes: 0, seed: 0 }, ..EXACT }, "probes");
    let point = gaussian(f64::from(f32::MAX), 1.0, 2);
    let far = Array4::from_elem((1, 1, 1, 2), 1e200);
    let error = EXACT.log_density(&point, far.view(), &Condition::none(1), 3, &mut |_| ()).unwrap_err().to_string();
    assert!(error.contains("sample 3"), "{error}");
}
