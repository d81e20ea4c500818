//! FORMULAS 5.2, 5.4 and 5.6 on a mixture whose conditional densities are known.

use std::cell::RefCell;

use ndarray::{Array4, ArrayView4, Axis, Slice, Zip, array};
use proptest::prelude::*;
use tweedie_denoiser::{
    Component, Condition, ConditionalDenoiser, Conditioned, Denoiser, DenoiserError, MixtureOracle,
};
use tweedie_guidance::{Cfg, GuidanceError, guided, scale_from_weight};
use tweedie_schedule::ddim::ddim_coefs;
use tweedie_schedule::{BetaSchedule, NoiseLevel, Posterior, Prediction, Schedule, Spacing, StepGrid, prediction};

/// Label 0 is one Gaussian, label 1 two; the prior of the labels is 1/4 and 3/4.
fn mixture() -> MixtureOracle {
    let part = |weight, mean: Vec<f64>, std: f64, label| Component::new(weight, mean, std, Some(label));
    let components =
        vec![part(1.0, vec![1.2, -0.3], 0.4, 0), part(2.0, vec![-0.9, 0.5], 0.5, 1), part(1.0, vec![0.1, 1.4], 0.3, 1)];
    MixtureOracle::new([1, 1, 2], components).unwrap()
}

fn labels(labels: &[usize]) -> Condition {
    Condition::labels(labels.iter().map(|&y| Some(y)).collect())
}

fn largest_difference(a: &Array4<f64>, b: &Array4<f64>) -> f64 {
    assert_eq!(a.dim(), b.dim());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// A model that keeps the conditions it was called with.
struct Spy {
    calls: RefCell<Vec<Condition>>,
}

impl ConditionalDenoiser for Spy {
    fn denoise_with(
        &self,
        x: ArrayView4<'_, f64>,
        level: NoiseLevel,
        condition: &Condition,
    ) -> Result<Array4<f64>, DenoiserError> {
        self.calls.borrow_mut().push(condition.clone());
        mixture().denoise_with(x, level, condition)
    }
}

proptest! {
    /// One call per estimate, conditional first; each sample gets u + g (c - u) of its own two conditions.
    #[test]
    fn one_batched_call(x in -2.0..2.0_f64, y in -2.0..2.0_f64, log_snr in -4.0..4.0_f64, scale in 1.1..8.0_f64) {
        let level = NoiseLevel::from_log_snr(log_snr).unwrap();
        let state = array![[[[x, y]]], [[[y, x]]], [[[-x, 0.1]]]];
        let (cond, uncond) = (labels(&[0, 1, 1]), Condition::labels(vec![None, Some(0), None]));
        let spy = Spy { calls: RefCell::default() };
        let found = Cfg::new(&spy, cond.clone(), uncond.clone(), scale).unwrap().denoise(state.view(), level).unwrap();
        prop_assert_eq!(spy.calls.into_inner(), vec![cond.concat(&uncond)]);
        for i in 0..3 {
            let row = state.slice_axis(Axis(0), Slice::from(i..i + 1));
            let c = mixture().denoise_with(row, level, &cond.slice(i..i + 1)).unwrap();
            let u = mixture().denoise_with(row, level, &uncond.slice(i..i + 1)).unwrap();
            let expected = &c * scale + &u * (1.0 - scale);
            let one = found.slice_axis(Axis(0), Slice::from(i..i + 1)).to_owned();
            prop_assert!(largest_difference(&one, &expected) < 1e-12);
        }
    }

    /// gamma = 1 is the conditional model and gamma = 0 the other one, to the bit and with one plain call.
    #[test]
    fn ends_are_exact(x in -2.0..2.0_f64, y in -2.0..2.0_f64, log_snr in -4.0..4.0_f64) {
        let level = NoiseLevel::from_log_snr(log_snr).unwrap();
        let state = array![[[[x, y]]]];
        let (cond, uncond) = (labels(&[1]), Condition::none(1));
        for (scale, chosen) in [(1.0, &cond), (0.0, &uncond)] {
            let spy = Spy { calls: RefCell::default() };
            let cfg = Cfg::new(&spy, cond.clone(), uncond.clone(), scale).unwrap();
            let found = cfg.denoise(state.view(), level).unwrap();
            prop_assert_eq!(found, mixture().denoise_with(state.view(), level, chosen).unwrap());
            prop_assert_eq!(spy.calls.into_inner(), vec![chosen.clone()]);
        }
        // The ends are also limits of the general formula.
        for (scale, chosen) in [(1.0 + 1e-9, &cond), (1e-9, &uncond)] {
            let near = Cfg::new(mixture(), cond.clone(), uncond.clone(), scale).unwrap();
            let expected = mixture().denoise_with(state.view(), level, chosen).unwrap();
            prop_assert!(largest_difference(&near.denoise(state.view(), level).unwrap(), &expected) < 1e-8);
        }
    }

    /// u + g (c - u) = (1 + w) c - w u with g = 1 + w.
    #[test]
    fn conventions_agree(c in -3.0..3.0_f64, u in -3.0..3.0_f64, w in -1.0..10.0_f64) {
        let other = (1.0 + w) * c - w * u;
        prop_assert!((guided(u, c, scale_from_weight(w)) - other).abs() < 1e-12);
    }

    /// Guiding x_0 and converting is converting and guiding, for eps, v, the score and the mean.
    #[test]
    fn guidance_commutes_with_conversions(
        x in -2.0..2.0_f64, c in -2.0..2.0_f64, u in -2.0..2.0_f64, scale in -1.0..8.0_f64, log_snr in -6.0..6.0_f64,
    ) {
        let level = NoiseLevel::from_log_snr(log_snr).unwrap();
        let posterior = Posterior::between(NoiseLevel::from_log_snr(log_snr + 0.5).unwrap(), level).unwrap();
        for to in [Prediction::Eps, Prediction::V, Prediction::Score, Prediction::Mean] {
            let map = prediction::convert(Prediction::X0, to, level, Some(&posterior)).unwrap();
            let first = map.apply(x, guided(u, c, scale));
            let then = guided(map.apply(x, u), map.apply(x, c), scale);
            let size = 1.0 + (map.of_x * x).abs() + map.of_prediction.abs() * 30.0;
            prop_assert!((first - then).abs() < 1e-13 * size, "{}: {first} and {then}", to.name());
        }
    }

    /// 5.2, 5.4, 5.6: the guided score is grad ln p(x) + g grad ln p(y | x), by differences of the mixture's densities.
    #[test]
    fn guided_score_is_bayes_rule(
        x in -1.5..1.5_f64, y in -1.5..1.5_f64, log_snr in -3.0..2.0_f64, scale in 0.0..4.0_f64, label in 0..2_usize,
    ) {
        let level = NoiseLevel::from_log_snr(log_snr).unwrap();
        let oracle = mixture();
        let log = |x, y, condition: &Condition| oracle.log_density(array![[[[x, y]]]].view(), level, condition).unwrap()[0];
        let (of_label, free) = (labels(&[label]), Condition::none(1));
        let prior: f64 = [0.25, 0.75][label];
        let objective = |x, y| {
            let all = log(x, y, &free);
            all + scale * (log(x, y, &of_label) + prior.ln() - all)
        };
        let h = 1e-4;
        let gradient = [
            (objective(x + h, y) - objective(x - h, y)) / (2.0 * h),
            (objective(x, y + h) - objective(x, y - h)) / (2.0 * h),
        ];
        let cfg = Cfg::new(&oracle, of_label.clone(), free.clone(), scale).unwrap();
        let state = array![[[[x, y]]]];
        let x0 = cfg.denoise(state.view(), level).unwrap();
        let to_score = prediction::convert(Prediction::X0, Prediction::Score, level, None).unwrap();
        for ((&x, &x0), expected) in state.iter().zip(&x0).zip(gradient) {
            let found = to_score.apply(x, x0);
            prop_assert!((found - expected).abs() < 1e-4 * expected.abs().max(1.0), "{found} instead of {expected}");
        }
    }
}

/// gamma = 1 samples p(x | y): the deterministic sampler carries noise to label 0's Gaussian along its own ODE, whose map is
/// known, and gamma = 3 does not.
#[test]
fn gamma_1_samples_the_conditional() {
    let schedule = Schedule::new(&BetaSchedule::Linear { start: 1e-4, end: 0.02 }, 1000).unwrap();
    let grid = StepGrid::new(1000, 500, Spacing::Trailing, 0).unwrap();
    let noise = array![[[[0.3, -1.2]]], [[[-0.8, 0.5]]], [[[1.5, 1.1]]]];
    let draw = |denoiser: &dyn Denoiser| {
        let mut x = noise.clone();
        for (from, to) in grid.moves() {
            let (from, to) = (schedule.level(from), schedule.level(to));
            let coefs = ddim_coefs(from, to, 0.0).unwrap();
            let to_eps = prediction::convert(Prediction::X0, Prediction::Eps, from, None).unwrap();
            let x0 = denoiser.denoise(x.view(), from).unwrap();
            x = Zip::from(&x).and(&x0).map_collect(|&x, &x0| coefs.of_x0 * x0 + coefs.of_eps * to_eps.apply(x, x0));
        }
        x
    };
    let cond = labels(&[0, 0, 0]);
    let cfg = |scale| Cfg::new(mixture(), cond.clone(), Condition::none(3), scale).unwrap();
    let found = draw(&cfg(1.0));
    let start = schedule.level(1000);
    let spread = (start.abar() * 0.16 + start.sigma().powi(2)).sqrt();
    let exact = Zip::indexed(&noise).map_collect(|(_, _, _, j), &z| {
        let mean = [1.2, -0.3][j];
        mean + 0.4 * (z - start.alpha() * mean) / spread
    });
    assert!(largest_difference(&found, &exact) < 5e-3, "{found} instead of {exact}");
    assert_eq!(found, draw(&Conditioned::new(mixture(), cond.clone())));
    assert!(largest_difference(&draw(&cfg(3.0)), &exact) > 0.05);
}

#[test]
fn guidance_is_checked() {
    let new = |cond, uncond, scale| Cfg::new(mixture(), cond, uncond, scale).map(|_| ());
    assert_eq!(new(labels(&[0]), Condition::none(2), 2.0), Err(GuidanceError::Batch { cond: 1, uncond: 2 }));
    for scale in [f64::NAN, f64::INFINITY] {
        assert!(matches!(new(labels(&[0]), Condition::none(1), scale), Err(GuidanceError::Scale { .. })));
    }
    let cfg = Cfg::new(mixture(), labels(&[0]), Condition::none(1), 2.0).unwrap();
    let level = NoiseLevel::from_log_snr(0.0).unwrap();
    let wrong = cfg.denoise(Array4::zeros((2, 1, 1, 2)).view(), level);
    assert!(matches!(wrong, Err(DenoiserError::Condition { .. })));
}
