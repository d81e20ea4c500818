//! FORMULAS 3: the posterior mean, the score and E[eps | x_t] of a mixture agree, and the bridge returns them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ndarray::{Array4, ArrayView4, Axis, Slice, array};
use proptest::prelude::*;
use tweedie_denoiser::{
    Component, Condition, ConditionalDenoiser, Conditioned, Denoiser, DenoiserError, MixtureOracle, Network,
    Preconditioned,
};
use tweedie_schedule::{BetaSchedule, NoiseLevel, Prediction, Schedule, TimestepMapping, prediction};

fn component(weight: f64, mean: Vec<f64>, std: f64, label: Option<usize>) -> Component {
    Component::new(weight, mean, std, label)
}

/// Three components in two dimensions; labels 0 and 1, and one without.
fn mixture() -> MixtureOracle {
    let components = vec![
        component(1.0, vec![1.5, -0.5], 0.4, Some(0)),
        component(2.0, vec![-1.0, 0.7], 0.7, Some(1)),
        component(0.5, vec![0.2, 2.0], 0.3, None),
    ];
    MixtureOracle::new([1, 1, 2], components).unwrap()
}

fn at(x: f64, y: f64) -> Array4<f64> {
    array![[[[x, y]]]]
}

fn largest_difference(a: &Array4<f64>, b: &Array4<f64>) -> f64 {
    assert_eq!(a.dim(), b.dim());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

proptest! {
    /// E[x_0 | x_t] by quadrature over x_0 in one dimension: Bayes' rule and nothing else.
    #[test]
    fn posterior_mean_is_bayes_rule(x in -3.0..3.0_f64, log_snr in -4.0..4.0_f64) {
        let components = vec![component(0.3, vec![-1.0], 0.5, None), component(0.7, vec![1.2], 0.25, None)];
        let oracle = MixtureOracle::new([1, 1, 1], components).unwrap();
        let level = NoiseLevel::from_log_snr(log_snr).unwrap();
        let normal = |x: f64, m: f64, s: f64| (-0.5 * ((x - m) / s).powi(2)).exp() / s;
        let (mut mass, mut first) = (0.0, 0.0);
        for i in -6000..=6000 {
            let x0 = f64::from(i) * 1e-3;
            let density = (0.3 * normal(x0, -1.0, 0.5) + 0.7 * normal(x0, 1.2, 0.25))
                * normal(x, level.alpha() * x0, level.sigma());
            mass += density;
            first += density * x0;
        }
        let found = oracle.denoise(array![[[[x]]]].view(), level).unwrap()[[0, 0, 0, 0]];
        prop_assert!((found - first / mass).abs() < 1e-9, "{found} instead of {}", first / mass);
    }

    /// A network that returns the exact prediction becomes the exact denoiser, whatever it predicts.
    #[test]
    fn the_bridge_returns_x0(t in 1..=50_usize, x in -2.0..2.0_f64, y in -2.0..2.0_f64, zero_based in any::<bool>()) {
        let schedule = Arc::new(Schedule::new(&BetaSchedule::Linear { start: 1e-3, end: 0.1 }, 50).unwrap());
        let mapping = if zero_based { TimestepMapping::ZeroBased } else { TimestepMapping::OneBased };
        // Two samples under different conditions; the state is representable in f32, as the network sees it.
        let state = ndarray::concatenate![Axis(0), at(x, y), at(y, x)].mapv(|v| f64::from(v as f32));
        let condition = Condition::labels(vec![Some(1), None]);
        let level = schedule.level(t);
        let exact = mixture().denoise_with(state.view(), level, &condition).unwrap();
        for predicts in [Prediction::Eps, Prediction::X0, Prediction::V, Prediction::Score, Prediction::Mean] {
            let network = Exact { schedule: schedule.clone(), mapping, predicts, calls: AtomicUsize::new(0) };
            let model = Preconditioned::new(network, predicts, schedule.clone(), mapping);
            let found = model.denoise_with(state.view(), level, &condition).unwrap();
            prop_assert_eq!(model.network().calls.load(Ordering::Relaxed), 1);
            // The network's output is rounded to f32 and amplified by the conversion.
            let posterior = schedule.posterior(t);
            let to_x0 = prediction::convert(predicts, Prediction::X0, level, Some(&posterior)).unwrap();
            let largest = 10.0 / level.sigma();
            let tolerance = 1e-6 + 1.2e-7 * to_x0.of_prediction.abs() * largest;
            let error = largest_difference(&found, &exact);
            prop_assert!(error < tolerance, "{}: off by {error:e} (tolerance {tolerance:e})", predicts.name());

            let conditioned = Conditioned::new(&model, condition.clone());
            prop_assert_eq!(conditioned.denoise(state.view(), level).unwrap(), found);
        }
    }
}

/// A network that computes the exact prediction in f64 and rounds it.
struct Exact {
    schedule: Arc<Schedule>,
    mapping: TimestepMapping,
    predicts: Prediction,
    calls: AtomicUsize,
}

impl Network for Exact {
    fn predict(
        &self,
        x: ArrayView4<'_, f32>,
        timesteps: &[f64],
        condition: &Condition,
    ) -> Result<Array4<f32>, DenoiserError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        assert_eq!(timesteps.len(), x.len_of(Axis(0)));
        let t = timesteps[0] as usize + usize::from(self.mapping == TimestepMapping::ZeroBased);
        let (level, posterior) = (self.schedule.level(t), self.schedule.posterior(t));
        let x = x.mapv(f64::from);
        let x0 = mixture().denoise_with(x.view(), level, condition)?;
        let map = prediction::convert(Prediction::X0, self.predicts, level, Some(&posterior))?;
        Ok(ndarray::Zip::from(&x).and(&x0).map_collect(|&x, &x0| map.apply(x, x0) as f32))
    }

    fn classes(&self) -> usize {
        2
    }

    fn has_null_condition(&self) -> bool {
        true
    }
}

/// A network that returns zeros of a given number of channels.
struct Zeros(usize);

impl Network for Zeros {
    fn predict(&self, x: ArrayView4<'_, f32>, _: &[f64], _: &Condition) -> Result<Array4<f32>, DenoiserError> {
        let (n, _, h, w) = x.dim();
        Ok(Array4::zeros((n, self.0, h, w)))
    }

    fn classes(&self) -> usize {
        0
    }

    fn has_null_condition(&self) -> bool {
        true
    }
}

/// Answers with the number of the channel.
struct Channels(usize);

impl Network for Channels {
    fn predict(&self, x: ArrayView4<'_, f32>, _: &[f64], _: &Condition) -> Result<Array4<f32>, DenoiserError> {
        let (n, _, h, w) = x.dim();
        Ok(Array4::from_shape_fn((n, self.0, h, w), |(_, c, _, _)| c as f32))
    }

    fn classes(&self) -> usize {
        0
    }

    fn has_null_condition(&self) -> bool {
        true
    }
}

#[test]
fn the_second_half_of_the_channels_is_the_variance() {
    let schedule = Arc::new(Schedule::new(&BetaSchedule::cosine(), 20).unwrap());
    let x = Array4::from_elem((2, 3, 1, 2), 0.25);
    let estimate = |channels, level| {
        let mapping = TimestepMapping::ZeroBased;
        let model = Preconditioned::new(Channels(channels), Prediction::X0, schedule.clone(), mapping);
        let estimate = model.estimate(x.view(), level).unwrap();
        let labelled = Conditioned::new(&model, Condition::none(2)).estimate(x.view(), level).unwrap();
        assert_eq!(estimate, labelled);
        assert_eq!(estimate.x0, model.denoise(x.view(), level).unwrap());
        estimate
    };
    let level = schedule.level(7);
    let both = estimate(6, level);
    assert_eq!(both.x0, Array4::from_shape_fn((2, 3, 1, 2), |(_, c, _, _)| c as f64));
    // v = (output + 1) / 2 of the channels 3, 4 and 5.
    assert_eq!(both.fraction, Some(Array4::from_shape_fn((2, 3, 1, 2), |(_, c, _, _)| 0.5 * (c as f64 + 4.0))));
    let alone = estimate(3, level);
    assert_eq!((alone.x0, alone.fraction), (both.x0, None));
}

#[test]
fn the_bridge_checks_its_input() {
    let schedule = Arc::new(Schedule::new(&BetaSchedule::cosine(), 20).unwrap().rescaled_zero_terminal_snr().unwrap());
    let x = Array4::zeros((2, 3, 4, 4));
    let none = Condition::none(2);
    let denoise = |channels, predicts, level, condition: &Condition| {
        Preconditioned::new(Zeros(channels), predicts, schedule.clone(), TimestepMapping::ZeroBased).denoise_with(
            x.view(),
            level,
            condition,
        )
    };
    let level = schedule.level(10);
    assert_eq!(denoise(3, Prediction::X0, level, &none).unwrap(), x);
    assert_eq!(denoise(6, Prediction::X0, level, &none).unwrap(), x);
    assert!(matches!(denoise(4, Prediction::Eps, level, &none), Err(DenoiserError::Shape { .. })));
    assert!(matches!(denoise(3, Prediction::Eps, level, &Condition::none(1)), Err(DenoiserError::Condition { .. })));
    assert!(matches!(denoise(3, Prediction::Eps, NoiseLevel::CLEAN, &none), Err(DenoiserError::Schedule(_))));
    assert!(matches!(denoise(3, Prediction::Eps, schedule.level(20), &none), Err(DenoiserError::Schedule(_))));
    assert!(denoise(3, Prediction::V, schedule.level(20), &none).is_ok());
    let between = schedule.level_at(3.5).unwrap();
    assert!(matches!(denoise(3, Prediction::Mean, between, &none), Err(DenoiserError::Schedule(_))));
    assert!(denoise(3, Prediction::Eps, between, &none).is_ok());
}

/// A label leaves its own components: the oracle of these alone gives the same estimate.
#[test]
fn labels_restrict_the_mixture() {
    let level = NoiseLevel::from_log_snr(-0.5).unwrap();
    let state = ndarray::concatenate![Axis(0), at(0.3, -0.8), at(0.3, -0.8), at(-1.0, 0.4)];
    let labels = vec![Some(1), None, Some(0)];
    let found = mixture().denoise_with(state.view(), level, &Condition::labels(labels)).unwrap();
    let alone = |mean: Vec<f64>, std, row: usize| {
        let oracle = MixtureOracle::new([1, 1, 2], vec![component(3.0, mean, std, None)]).unwrap();
        oracle.denoise(state.slice_axis(Axis(0), Slice::from(row..row + 1)), level).unwrap()
    };
    let row = |i: usize| found.slice_axis(Axis(0), Slice::from(i..i + 1)).to_owned();
    assert!(largest_difference(&row(0), &alone(vec![-1.0, 0.7], 0.7, 0)) < 1e-15);
    assert!(largest_difference(&row(2), &alone(vec![1.5, -0.5], 0.4, 2)) < 1e-15);
    let all = mixture().denoise(state.view(), level).unwrap();
    assert!(largest_difference(&row(1), &all.slice_axis(Axis(0), Slice::from(1..2)).to_owned()) < 1e-15);
    assert_eq!(mixture().classes(), 2);

    let unknown = mixture().denoise_with(at(0.0, 0.0).view(), level, &Condition::labels(vec![Some(2)]));
    assert!(matches!(unknown, Err(DenoiserError::Condition { .. })));
    let wrong_batch = mixture().denoise_with(at(0.0, 0.0).view(), level, &Condition::none(2));
    assert!(matches!(wrong_batch, Err(DenoiserError::Condition { .. })));
    let wrong_shape = mixture().denoise(Array4::zeros((1, 1, 2, 1)).view(), level);
    assert!(matches!(wrong_shape, Err(DenoiserError::Shape { .. })));
}

/// At the ends: without noise x is the data; without signal the answer is the prior mean; points are legal components.
#[test]
fn the_ends_have_answers() {
    let prior = [(1.5 - 2.0 + 0.1) / 3.5, (-0.5 + 1.4 + 1.0) / 3.5];
    let found = mixture().denoise(at(5.0, -7.0).view(), NoiseLevel::PURE_NOISE).unwrap();
    assert!(largest_difference(&found, &at(prior[0], prior[1])) < 1e-14);
    assert_eq!(mixture().denoise(at(5.0, -7.0).view(), NoiseLevel::CLEAN).unwrap(), at(5.0, -7.0));
    let points = vec![component(1.0, vec![1.0, 1.0], 0.0, None), component(1.0, vec![-1.0, -1.0], 0.0, None)];
    let oracle = MixtureOracle::new([1, 1, 2], points).unwrap();
    let nearly_clean = NoiseLevel::from_log_snr(60.0).unwrap();
    assert_eq!(oracle.denoise(at(0.9, 1.3).view(), nearly_clean).unwrap(), at(1.0, 1.0));
}

/// A point has no density where there is no noise, and neither has a mixture with one; others have.
#[test]
fn points_without_noise_have_no_density() {
    let components = vec![component(1.0, vec![1.0, 1.0], 0.0, Some(0)), component(1.0, vec![0.0, 0.0], 1.0, Some(1))];
    let oracle = MixtureOracle::new([1, 1, 2], components).unwrap();
    let x = at(1.0, 1.0);
    for label in [Some(0), None] {
        let condition = Condition::labels(vec![label]);
        let density = oracle.log_density(x.view(), NoiseLevel::CLEAN, &condition);
        assert!(matches!(density, Err(DenoiserError::Oracle { .. })), "{label:?}: {density:?}");
        let score = oracle.score(x.view(), NoiseLevel::CLEAN, &condition);
        assert!(matches!(score, Err(DenoiserError::Oracle { .. })), "{label:?}: {score:?}");
        assert_eq!(oracle.denoise_with(x.view(), NoiseLevel::CLEAN, &condition).unwrap(), x);
    }
    let normal = Condition::labels(vec![Some(1)]);
    let density = oracle.log_density(x.view(), NoiseLevel::CLEAN, &normal).unwrap();
    assert!((density[0] + 1.0 + std::f64::consts::TAU.ln()).abs() < 1e-14, "{density:?}");
    assert_eq!(oracle.score(x.view(), NoiseLevel::CLEAN, &normal).unwrap(), at(-1.0, -1.0));
}

#[test]
fn oracles_are_checked() {
    let one = |weight, mean: Vec<f64>, std| MixtureOracle::new([1, 1, 2], vec![component(weight, mean, std, None)]);
    for weight in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(matches!(one(weight, vec![0.0; 2], 1.0), Err(DenoiserError::Oracle { .. })), "{weight}");
    }
    for std in [-1.0, f64::NAN, f64::INFINITY] {
        assert!(matches!(one(1.0, vec![0.0; 2], std), Err(DenoiserError::Oracle { .. })), "{std}");
    }
    assert!(one(1.0, vec![0.0; 3], 1.0).is_err() && one(1.0, vec![0.0, f64::NAN], 1.0).is_err());
    assert!(MixtureOracle::new([1, 1, 2], vec![]).is_err());
    for shape in [[0, 1, 1], [usize::MAX, 2, 1], [1 << 20, 1 << 20, 1]] {
        assert!(MixtureOracle::new(shape, vec![component(1.0, vec![0.0], 1.0, None)]).is_err(), "{shape:?}");
    }
    let constant = Component::new(1.0, 0.25, 1.0, None);
    let spelled = component(1.0, vec![0.25; 2], 1.0, None);
    let level = NoiseLevel::from_log_snr(0.0).unwrap();
    let of = |c| MixtureOracle::new([1, 1, 2], vec![c]).unwrap().denoise(at(1.0, 2.0).view(), level).unwrap();
    assert_eq!(of(constant), of(spelled));
}
