//! FORMULAS 4.3: the weights of the training loss, and the learned variance that it may train.

#[allow(dead_code)]
mod common;

use common::{any_level, any_schedule};
use proptest::prelude::*;
use tweedie_schedule::{
    BetaSchedule, NoiseLevel, Prediction, Schedule, ScheduleError, Variance, VarianceRange, Weighting,
};

const ALL: [Prediction; 5] = [Prediction::Eps, Prediction::X0, Prediction::V, Prediction::Score, Prediction::Mean];

fn assert_near(found: f64, expected: f64) {
    assert!((found - expected).abs() <= 1e-9 * expected.abs(), "{found} instead of {expected}");
}

proptest! {
    /// Each against its formula, for the prediction in whose terms the paper states it and for the others that it names.
    #[test]
    fn weightings_are_those_of_the_papers(level in any_level(), gamma in 0.2..8.0_f64, k in 0.2..3.0_f64, data in 0.2..2.0_f64) {
        prop_assume!(level.sigma() > 1e-3 && level.alpha() > 1e-3);
        let snr = level.abar() / level.sigma().powi(2);
        let weight = |w: Weighting, of| w.weight(of, level, None).unwrap();
        for of in [Prediction::Eps, Prediction::X0, Prediction::V] {
            assert_near(weight(Weighting::Uniform, of), 1.0);
        }
        assert_near(weight(Weighting::Uniform, Prediction::Score), 1.0 / (1.0 + snr));
        let min_snr = Weighting::MinSnr { gamma };
        assert_near(weight(min_snr, Prediction::X0), snr.min(gamma));
        assert_near(weight(min_snr, Prediction::Eps), snr.min(gamma) / snr);
        assert_near(weight(min_snr, Prediction::V), snr.min(gamma) / (snr + 1.0));
        assert_near(weight(Weighting::P2 { gamma, k }, Prediction::Eps), (k + snr).powf(-gamma));
        let sigma = level.edm_sigma();
        let edm = (sigma * sigma + data * data) / (sigma * data).powi(2);
        assert_near(weight(Weighting::Edm { sigma_data: data }, Prediction::X0), edm);
    }

    /// The same error of x_0, seen through every prediction, has the same loss.
    #[test]
    fn a_weighting_is_one_for_every_prediction(
        schedule in any_schedule(), at in 0.0..1.0_f64, x0 in -2.0..2.0_f64, eps in -2.0..2.0_f64, guess in -2.0..2.0_f64,
    ) {
        let t = 1 + (at * schedule.steps() as f64) as usize;
        let (level, posterior) = (schedule.level(t), schedule.posterior(t));
        prop_assume!(level.alpha() > 1e-3 && level.sigma() > 1e-3 && (x0 - guess).abs() > 1e-3);
        let eps_guess = (level.alpha() * (x0 - guess) + level.sigma() * eps) / level.sigma();
        for weighting in
            [Weighting::MinSnr { gamma: 5.0 }, Weighting::P2 { gamma: 1.0, k: 1.0 }, Weighting::Edm { sigma_data: 0.5 }]
        {
            let expected = weighting.weight(Prediction::X0, level, None).unwrap() * (x0 - guess).powi(2);
            for of in ALL {
                let target = of.target(level, Some(&posterior)).unwrap();
                let error = target.apply(x0, eps) - target.apply(guess, eps_guess);
                let found = weighting.weight(of, level, Some(&posterior)).unwrap() * error * error;
                prop_assert!((found - expected).abs() <= 1e-6 * expected, "{}: {found}, not {expected}", of.name());
            }
        }
    }

    /// v = 0 is b~, v = 1 is b, between them the logarithm is linear; at t = 1 b~_2 stands for b~_1 = 0.
    #[test]
    fn a_learned_variance_lies_between_its_ends(schedule in any_schedule(), output in -1.0..1.0_f64) {
        let v = VarianceRange::fraction(output);
        prop_assert!((0.0..=1.0).contains(&v) && (2.0 * v - 1.0 - output).abs() < 1e-12);
        for t in 1..=schedule.steps() {
            let small = match t {
                1 if schedule.steps() == 1 => schedule.beta(1),
                1 => schedule.posterior(2).variance(),
                _ => schedule.posterior(t).variance(),
            };
            let range = schedule.variance_range(t);
            assert_near(range.log_variance(0.0).exp(), small);
            assert_near(range.log_variance(1.0).exp(), schedule.beta(t));
            assert_near(range.log_variance(v).exp(), schedule.beta(t).powf(v) * small.powf(1.0 - v));
            prop_assert!(range.log_variance(2.0) >= range.log_large || small > schedule.beta(t));
            if t > 1 {
                prop_assert_eq!(schedule.posterior(t).variance_range(), range);
            }
        }
    }
}

/// Without signal eps keeps its weight, v and x0 lose theirs under min-SNR, and eps cannot say what EDM asks for.
#[test]
fn weights_where_there_is_no_signal() {
    let schedule = Schedule::new(&BetaSchedule::cosine(), 20).unwrap().rescaled_zero_terminal_snr().unwrap();
    let (level, min_snr) = (schedule.level(20), Weighting::MinSnr { gamma: 5.0 });
    assert_eq!(min_snr.weight(Prediction::Eps, level, None).unwrap(), 1.0);
    assert_eq!(min_snr.weight(Prediction::V, level, None).unwrap(), 0.0);
    assert_eq!(Weighting::P2 { gamma: 2.0, k: 2.0 }.weight(Prediction::Eps, level, None).unwrap(), 0.25);
    let edm = Weighting::Edm { sigma_data: 0.5 };
    assert!(matches!(edm.weight(Prediction::Eps, level, None), Err(ScheduleError::Singular { .. })));
    assert_eq!(edm.weight(Prediction::V, level, None).unwrap(), 4.0);
}

#[test]
fn parameters_of_weightings_are_checked() {
    let level = NoiseLevel::from_log_snr(0.0).unwrap();
    for wrong in [
        Weighting::MinSnr { gamma: 0.0 },
        Weighting::MinSnr { gamma: f64::NAN },
        Weighting::P2 { gamma: -0.5, k: 1.0 },
        Weighting::P2 { gamma: f64::INFINITY, k: 1.0 },
        Weighting::P2 { gamma: 1.0, k: 0.0 },
        Weighting::P2 { gamma: 1.0, k: f64::INFINITY },
        Weighting::Edm { sigma_data: 0.0 },
        Weighting::Edm { sigma_data: f64::INFINITY },
    ] {
        let error = wrong.weight(Prediction::Eps, level, None).unwrap_err();
        assert!(matches!(error, ScheduleError::Parameter { .. }), "{wrong:?}");
    }
    // The ends that are in range.
    assert_eq!(Weighting::P2 { gamma: 0.0, k: 1.0 }.weight(Prediction::Eps, level, None).unwrap(), 1.0);
    let schedule = Schedule::new(&BetaSchedule::cosine(), 5).unwrap();
    let error = schedule.posterior(3).reverse_variance(Variance::LearnedRange).unwrap_err();
    assert!(matches!(error, ScheduleError::LearnedVariance) && error.to_string().contains("network"));
}

/// The rules of the reverse step, and what stands for b~_1 = 0.
#[test]
fn the_first_reverse_step_has_a_variance() {
    let schedule = Schedule::new(&BetaSchedule::Linear { start: 0.01, end: 0.3 }, 6).unwrap();
    // b~_2 = b_2 (1 - abar_1) / (1 - abar_2).
    let small = schedule.beta(2) * schedule.beta(1) / (1.0 - schedule.abar(2));
    for (rule, bins, expected) in [
        (Variance::FixedSmall, true, small),
        (Variance::FixedSmall, false, small),
        (Variance::FixedLarge, true, small),
        (Variance::FixedLarge, false, schedule.beta(1)),
        (Variance::Unit, true, 1.0),
        (Variance::Interpolated { fraction: 0.25 }, true, schedule.beta(1).powf(0.25) * small.powf(0.75)),
    ] {
        assert_near(schedule.reverse_variance(1, rule, bins).unwrap(), expected);
        for t in 2..=6 {
            let found = schedule.reverse_variance(t, rule, bins).unwrap();
            assert_eq!(found, schedule.posterior(t).reverse_variance(rule).unwrap());
        }
    }
    let single = Schedule::new(&BetaSchedule::Linear { start: 0.2, end: 0.2 }, 1).unwrap();
    for rule in [Variance::FixedSmall, Variance::FixedLarge, Variance::Interpolated { fraction: 0.5 }] {
        assert_near(single.reverse_variance(1, rule, true).unwrap(), 0.2);
    }
    assert!(single.reverse_variance(1, Variance::Interpolated { fraction: 1.5 }, true).is_err());
}

/// A mean belongs to a whole step, any other prediction to none; DDIM has no step where there is no noise.
#[test]
fn predictions_ask_for_the_posterior_of_their_step() {
    let schedule = Schedule::new(&BetaSchedule::cosine(), 8).unwrap();
    for t in 1..=8 {
        let posterior = Prediction::Mean.posterior(&schedule, schedule.level(t)).unwrap();
        assert_eq!(posterior, Some(schedule.posterior(t)));
        assert_eq!(Prediction::Eps.posterior(&schedule, schedule.level(t)).unwrap(), None);
    }
    for level in [NoiseLevel::CLEAN, schedule.level_at(3.5).unwrap(), schedule.level_at(3.01).unwrap()] {
        assert!(Prediction::Mean.posterior(&schedule, level).is_err());
    }
    let (clean, noisy) = (NoiseLevel::CLEAN, schedule.level(4));
    assert!(tweedie_schedule::ddim::ddim_coefs(clean, clean, 0.0).is_err());
    assert!(tweedie_schedule::ddim::ddim_coefs(noisy, clean, 0.0).is_ok());
}
