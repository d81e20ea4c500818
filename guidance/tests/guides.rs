//! The wrappers of guidance, alone and around each other, on exact mixtures (FORMULAS 5.3, 5.5).

use std::cell::RefCell;
use std::sync::Arc;

use ndarray::{Array4, ArrayView4, Axis, Zip, array};
use proptest::prelude::*;
use tweedie_denoiser::{
    Component, Condition, ConditionalDenoiser, Conditioned, Denoiser, DenoiserError, Estimate, LevelClassifier,
    MixtureOracle,
};
use tweedie_guidance::{
    Autoguided, Cfg, ClassifierForm, ClassifierGuided, GuidanceError, Guide, Limited, Rescaled, Thresholded,
    guided_mean, implicit_gradient, rescale_factor,
};
use tweedie_schedule::{
    BetaSchedule, Bridge, NoiseLevel, OutputSign, Posterior, Prediction, Schedule, TimestepMapping, prediction,
};

fn mixture_of(scale: f64) -> MixtureOracle {
    let part = |weight, mean: Vec<f64>, std: f64, label| Component::new(weight, mean, std * scale, Some(label));
    let components = vec![
        part(1.0, vec![1.2, -0.3, 0.4], 0.4, 0),
        part(2.0, vec![-0.9, 0.5, -1.0], 0.5, 1),
        part(1.0, vec![0.1, 1.4, 0.2], 0.3, 1),
    ];
    MixtureOracle::new([1, 1, 3], components).unwrap()
}

fn mixture() -> MixtureOracle {
    mixture_of(1.0)
}

/// Labels 0, 1 and none.
fn cond() -> Condition {
    Condition::labels(vec![Some(0), Some(1), None])
}

fn largest_difference(a: &Array4<f64>, b: &Array4<f64>) -> f64 {
    assert_eq!(a.dim(), b.dim());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// A model that keeps the conditions it was called with.
struct Spy {
    model: MixtureOracle,
    calls: RefCell<Vec<Condition>>,
}

impl Spy {
    fn new() -> Self {
        Self { model: mixture(), calls: RefCell::default() }
    }

    fn rows(&self) -> Vec<usize> {
        self.calls.take().iter().map(Condition::len).collect()
    }
}

impl ConditionalDenoiser for Spy {
    fn denoise_with(
        &self,
        x: ArrayView4<'_, f64>,
        level: NoiseLevel,
        condition: &Condition,
    ) -> Result<Array4<f64>, DenoiserError> {
        self.calls.borrow_mut().push(condition.clone());
        self.model.denoise_with(x, level, condition)
    }
}

/// The classifier that a model with and without its condition is.
struct Implicit<M>(M);

impl<M: ConditionalDenoiser> LevelClassifier for Implicit<M> {
    fn label_gradient(
        &self,
        x: ArrayView4<'_, f64>,
        level: NoiseLevel,
        condition: &Condition,
    ) -> Result<Array4<f64>, DenoiserError> {
        let to_eps = prediction::convert(Prediction::X0, Prediction::Eps, level, None)?;
        let c = self.0.denoise_with(x, level, condition)?;
        let u = self.0.denoise_with(x, level, &Condition::none(condition.len()))?;
        let eps = |x0: &Array4<f64>| Zip::from(x).and(x0).map_collect(|&x, &x0| to_eps.apply(x, x0));
        Ok(Zip::from(&eps(&c)).and(&eps(&u)).map_collect(|&c, &u| implicit_gradient(c, u, level.sigma())))
    }
}

/// A batch of three states, a level, a scale.
fn any_case() -> impl Strategy<Value = (Array4<f64>, NoiseLevel, f64)> {
    (prop::array::uniform9(-2.0..2.0_f64), -4.0..4.0_f64, 1.1..6.0_f64).prop_map(|(x, log_snr, scale)| {
        let x = Array4::from_shape_vec((3, 1, 1, 3), x.to_vec()).unwrap();
        (x, NoiseLevel::from_log_snr(log_snr).unwrap(), scale)
    })
}

fn cfg<M: ConditionalDenoiser>(model: M, scale: f64) -> Cfg<M> {
    Cfg::new(model, cond(), Condition::none(3), scale).unwrap()
}

fn plain<M: ConditionalDenoiser>(model: M) -> Conditioned<M> {
    Conditioned::new(model, cond())
}

fn schedule() -> Arc<Schedule> {
    Arc::new(Schedule::new(&BetaSchedule::Linear { start: 1e-4, end: 0.02 }, 1000).unwrap())
}

fn deviation(values: &[f64]) -> f64 {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64).sqrt()
}

proptest! {
    /// A sample is in the batch a second time only if its other condition is another one; and both estimates are those of
    /// calls of their own, bit for bit.
    #[test]
    fn equal_conditions_are_asked_once((x, level, scale) in any_case()) {
        let spy = Spy::new();
        let both = cfg(&spy, scale).both(x.view(), level).unwrap();
        prop_assert_eq!(spy.rows(), vec![5]);
        prop_assert_eq!(&both.plain, &mixture().denoise_with(x.view(), level, &cond()).unwrap());
        prop_assert_eq!(&both.guided.x0, &cfg(&spy, scale).denoise(x.view(), level).unwrap());
        // Without a label both are the same, and so is the guided one.
        prop_assert_eq!(both.plain.index_axis(Axis(0), 2), both.guided.x0.index_axis(Axis(0), 2));
        spy.calls.take();
        // A negative condition equal to the condition leaves the conditional model, at its cost.
        let same = Cfg::new(&spy, cond(), cond(), scale).unwrap().denoise(x.view(), level).unwrap();
        prop_assert_eq!(spy.rows(), vec![3]);
        prop_assert_eq!(same, both.plain);
    }

    /// 5.5: inside the interval guidance is what it is without, outside the conditional model alone, bit for bit and at its cost.
    #[test]
    fn outside_the_interval_is_the_conditional_model((x, level, scale) in any_case(), factor in 1.01..3.0_f64) {
        let sigma = level.edm_sigma();
        let guided = cfg(mixture(), scale).estimate(x.view(), level).unwrap();
        let free = plain(mixture()).estimate(x.view(), level).unwrap();
        for (low, high, inside) in [
            (0.0, f64::INFINITY, true),
            (sigma / factor, sigma * factor, true),
            // The upper end belongs to it, the lower one does not.
            (0.0, sigma, true),
            (sigma, f64::INFINITY, false),
            (sigma * factor, f64::INFINITY, false),
            (0.0, sigma / factor, false),
        ] {
            let spy = Spy::new();
            let limited = Limited::new(cfg(&spy, scale), low, high).unwrap();
            prop_assert_eq!(limited.guides(level), inside);
            let expected = if inside { &guided } else { &free };
            prop_assert_eq!(&limited.estimate(x.view(), level).unwrap(), expected);
            prop_assert_eq!(spy.rows(), vec![if inside { 5 } else { 3 }]);
            let both = limited.both(x.view(), level).unwrap();
            prop_assert_eq!((&both.guided, &both.plain), (expected, &free.x0));
        }
    }

    /// 5.5: with phi = 1 what the network predicts has the standard deviation of the conditional output, whatever it predicts,
    /// sample by sample; with phi = 0 nothing happens; between, it is linear.
    #[test]
    fn rescaling_keeps_the_standard_deviation((x, _, scale) in any_case(), step in 1..=1000_usize, phi in 0.0..1.0_f64) {
        let schedule = schedule();
        let level = schedule.level(step);
        let bridge = |of| Bridge::new(of, schedule.clone(), TimestepMapping::ZeroBased);
        let preconditioned = Bridge::preconditioned(0.0, 0.5, OutputSign::Plain, 0.25);
        let both = cfg(mixture(), scale).both(x.view(), level).unwrap();
        for bridge in [bridge(Prediction::Eps), bridge(Prediction::X0), bridge(Prediction::V), preconditioned] {
            let to_x0 = bridge.at(level).unwrap().to_x0;
            let output = |x0: &Array4<f64>, i: usize| -> Vec<f64> {
                let rows = x.index_axis(Axis(0), i);
                let x0 = x0.index_axis(Axis(0), i);
                rows.iter().zip(&x0).map(|(x, x0)| (x0 - to_x0.of_x * x) / to_x0.of_prediction).collect()
            };
            let rescaled = |phi| Rescaled::new(cfg(mixture(), scale), bridge.clone(), phi).unwrap();
            let full = rescaled(1.0).denoise(x.view(), level).unwrap();
            let part = rescaled(phi).denoise(x.view(), level).unwrap();
            prop_assert_eq!(&rescaled(0.0).estimate(x.view(), level).unwrap(), &both.guided);
            prop_assert_eq!(&rescaled(1.0).plain(x.view(), level).unwrap().x0, &both.plain);
            for i in 0..3 {
                let (kept, found) = (deviation(&output(&both.plain, i)), deviation(&output(&full, i)));
                // The output comes from x_0 by a division by of_prediction, which magnifies rounding.
                let rounding = 1e-14 * (1.0 + to_x0.of_x.abs()) / to_x0.of_prediction.abs();
                prop_assert!((kept - found).abs() < 1e-10 * kept + rounding, "{} instead of {}", found, kept);
                let wide = deviation(&output(&both.guided.x0, i));
                let factor = rescale_factor(kept, wide, phi);
                let expected: Vec<f64> = output(&both.guided.x0, i).iter().map(|o| factor * o).collect();
                for (found, expected) in output(&part, i).iter().zip(expected) {
                    prop_assert!((found - expected).abs() < 1e-10 * expected.abs() + 100.0 * rounding);
                }
            }
        }
    }

    /// 5.5: rescaling eps is not rescaling v, so the prediction has to be that of the network.
    #[test]
    fn rescaling_is_that_of_the_output((x, _, scale) in any_case(), step in 200..=800_usize) {
        let schedule = schedule();
        let rescaled = |of| {
            let bridge = Bridge::new(of, schedule.clone(), TimestepMapping::ZeroBased);
            let guided = Rescaled::new(cfg(mixture(), 1.0 + scale), bridge, 1.0).unwrap();
            guided.denoise(x.view(), schedule.level(step)).unwrap()
        };
        let both = cfg(mixture(), 1.0 + scale).both(x.view(), schedule.level(step)).unwrap();
        prop_assume!(largest_difference(&both.plain, &both.guided.x0) > 0.1);
        prop_assert!(largest_difference(&rescaled(Prediction::Eps), &rescaled(Prediction::X0)) > 1e-6);
    }

    /// 5.5: what lies within [-1, 1] is left alone to the bit, and so is everything below a ratio's quantile of 1.
    #[test]
    fn thresholding_leaves_the_usual_range_alone((x, level, _) in any_case(), ratio in 0.0..=1.0_f64) {
        struct Given(Array4<f64>);
        impl Denoiser for Given {
            fn denoise(&self, _: ArrayView4<'_, f64>, _: NoiseLevel) -> Result<Array4<f64>, DenoiserError> {
                Ok(self.0.clone())
            }
        }
        let small = &x * 0.5;
        let found = Thresholded::new(Given(small.clone()), ratio, f64::INFINITY).unwrap().denoise(x.view(), level);
        prop_assert_eq!(found.unwrap(), small);
        // The highest value as the threshold is a division alone.
        let found = Thresholded::new(Given(&x * 3.0), 1.0, f64::INFINITY).unwrap().denoise(x.view(), level).unwrap();
        for (found, x) in found.outer_iter().zip(x.outer_iter()) {
            let s = x.iter().fold(1.0_f64, |s, x| s.max((3.0 * x).abs()));
            prop_assert!(found.iter().zip(x).all(|(found, x)| *found == 3.0 * x / s));
        }
        let broken = Thresholded::new(Given(&x * f64::NAN), ratio, f64::INFINITY).unwrap();
        prop_assert!(broken.denoise(x.view(), level).is_err());
    }

    /// 5.5: a model that is its own guide is left alone to the bit, with classifier-free guidance or without.
    #[test]
    fn autoguidance_by_itself_changes_nothing((x, level, scale) in any_case(), w in 0.0..5.0_f64) {
        let alone = Autoguided::new(plain(mixture()), plain(mixture()), w).unwrap();
        prop_assert_eq!(alone.denoise(x.view(), level).unwrap(), plain(mixture()).denoise(x.view(), level).unwrap());
        let with_cfg = Autoguided::new(cfg(mixture(), scale), plain(mixture()), w).unwrap();
        prop_assert_eq!(with_cfg.denoise(x.view(), level).unwrap(), cfg(mixture(), scale).denoise(x.view(), level).unwrap());
    }

    /// 5.5: D_1 + (w - 1)(D_1 - D_0); the scale 1 is the strong model, without a call of the weak one, 0 the weak one.
    #[test]
    fn autoguidance_moves_away_from_the_weak_model((x, level, scale) in any_case(), w in -1.0..5.0_f64) {
        let weak = mixture_of(2.0);
        let strong = plain(mixture()).denoise(x.view(), level).unwrap();
        let other = plain(&weak).denoise(x.view(), level).unwrap();
        let found = |w| Autoguided::new(plain(mixture()), plain(&weak), w).unwrap().denoise(x.view(), level).unwrap();
        prop_assert!(largest_difference(&found(w), &(&strong * w - &other * (w - 1.0))) < 1e-12);
        prop_assert!(largest_difference(&found(0.0), &other) < 1e-13);
        let spy = Spy::new();
        let off = Autoguided::new(plain(mixture()), plain(&spy), 1.0).unwrap();
        prop_assert_eq!(off.denoise(x.view(), level).unwrap(), strong.clone());
        prop_assert_eq!(off.both(x.view(), level).unwrap().plain, strong.clone());
        prop_assert!(spy.rows().is_empty());
        // Beside classifier-free guidance its term is added.
        let guided = cfg(mixture(), scale).denoise(x.view(), level).unwrap();
        let both = Autoguided::new(cfg(mixture(), scale), plain(&weak), w).unwrap().denoise(x.view(), level).unwrap();
        prop_assert!(largest_difference(&both, &(guided + (strong - other) * (w - 1.0))) < 1e-12);
    }

    /// 5.3, 5.6: the exact classifier and the implicit one, on top of the unconditional model, are classifier-free guidance; on
    /// top of the conditional model a scale adds to the label's own; and a scale of 0 is none, without a call.
    #[test]
    fn classifier_guidance_of_an_oracle_is_cfg((x, level, scale) in any_case()) {
        let free = || Conditioned::new(mixture(), Condition::none(3));
        let form = ClassifierForm::Score;
        let expected = cfg(mixture(), scale).denoise(x.view(), level).unwrap();
        // x_0 is sigma / alpha times eps, in which both are compared.
        let tolerance = 1e-11 * (1.0 + level.edm_sigma() / level.alpha().min(level.sigma()));
        let exact = ClassifierGuided::new(free(), mixture(), cond(), scale, form).unwrap();
        prop_assert!(largest_difference(&exact.denoise(x.view(), level).unwrap(), &expected) < tolerance);
        let implicit = ClassifierGuided::new(free(), Implicit(mixture()), cond(), scale, form).unwrap();
        prop_assert!(largest_difference(&implicit.denoise(x.view(), level).unwrap(), &expected) < tolerance);
        let on_top = ClassifierGuided::new(plain(mixture()), mixture(), cond(), scale - 1.0, form).unwrap();
        prop_assert!(largest_difference(&on_top.denoise(x.view(), level).unwrap(), &expected) < tolerance);
        let with_cfg = ClassifierGuided::new(cfg(mixture(), 2.0), mixture(), cond(), scale - 2.0, form).unwrap();
        prop_assert!(largest_difference(&with_cfg.denoise(x.view(), level).unwrap(), &expected) < tolerance);
        struct Never;
        impl LevelClassifier for Never {
            fn label_gradient(
                &self, _: ArrayView4<'_, f64>, _: NoiseLevel, _: &Condition,
            ) -> Result<Array4<f64>, DenoiserError> {
                panic!("a classifier of scale 0, or without labels, was asked");
            }
        }
        let off = ClassifierGuided::new(plain(mixture()), Never, cond(), 0.0, form).unwrap();
        prop_assert_eq!(off.estimate(x.view(), level).unwrap(), plain(mixture()).estimate(x.view(), level).unwrap());
        let off = ClassifierGuided::new(plain(mixture()), Never, Condition::none(3), 2.0, form).unwrap();
        prop_assert_eq!(off.estimate(x.view(), level).unwrap(), plain(mixture()).estimate(x.view(), level).unwrap());
    }

    /// A classifier that is limited to low levels is exact there and, above them, not even asked.
    #[test]
    fn a_classifier_is_not_asked_above_its_highest_level((x, level, scale) in any_case()) {
        let guided = |highest: f64| {
            let form = ClassifierForm::Score;
            ClassifierGuided::new(plain(mixture()), mixture(), cond(), scale, form).unwrap().up_to(highest).unwrap()
        };
        let sigma = level.edm_sigma();
        let of = |highest: f64| guided(highest).estimate(x.view(), level).unwrap();
        let free = ClassifierGuided::new(plain(mixture()), mixture(), cond(), scale, ClassifierForm::Score).unwrap();
        prop_assert_eq!(of(sigma), free.estimate(x.view(), level).unwrap());
        prop_assert_eq!(of(f64::INFINITY), of(sigma));
        prop_assert_eq!(of(0.999 * sigma), plain(mixture()).estimate(x.view(), level).unwrap());
        for wrong in [0.0, -1.0, f64::NAN] {
            let guided = ClassifierGuided::new(plain(mixture()), mixture(), cond(), scale, ClassifierForm::Score).unwrap();
            prop_assert!(guided.up_to(wrong).is_err());
        }
    }

    /// 5.3: the form of the mean says the tilt and leaves x_0; the mean that a sampler makes of it is Algorithm 1's.
    #[test]
    fn the_mean_form_leaves_x0_alone((x, level, scale) in any_case(), gap in 0.1..2.0_f64) {
        let free = || Conditioned::new(mixture(), Condition::none(3));
        let guided = ClassifierGuided::new(free(), mixture(), cond(), scale, ClassifierForm::Mean).unwrap();
        let estimate = guided.estimate(x.view(), level).unwrap();
        let x0 = free().denoise(x.view(), level).unwrap();
        prop_assert_eq!(&estimate.x0, &x0);
        let g = LevelClassifier::label_gradient(&mixture(), x.view(), level, &cond()).unwrap();
        let lower = NoiseLevel::from_log_snr(level.log_snr() + gap).unwrap();
        let posterior = Posterior::between(lower, level).unwrap();
        let tilt = estimate.tilt.unwrap();
        for (((x, x0), g), tilt) in x.iter().zip(&x0).zip(&g).zip(&tilt) {
            let expected = guided_mean(posterior.mean(*x, *x0), posterior.variance(), *g, scale);
            let found = posterior.mean(*x, *x0) + posterior.variance() * tilt;
            prop_assert!((found - expected).abs() < 1e-13 * (1.0 + expected.abs()));
        }
        // Two classifiers add up; a sample without a label is not tilted; outside an interval nothing is.
        let twice = ClassifierGuided::new(guided, mixture(), cond(), scale, ClassifierForm::Mean).unwrap();
        let sum = twice.estimate(x.view(), level).unwrap().tilt.unwrap();
        prop_assert!(largest_difference(&sum, &(&tilt * 2.0)) < 1e-12 * (1.0 + tilt.iter().fold(0.0, |m: f64, v| m.max(v.abs()))));
        prop_assert!(tilt.index_axis(Axis(0), 2).iter().all(|g| *g == 0.0));
        let outside = Limited::new(twice, level.edm_sigma(), f64::INFINITY).unwrap();
        prop_assert_eq!(outside.estimate(x.view(), level).unwrap().tilt, None);
    }

    /// Everything at once is what the table of the crate says, in its order.
    #[test]
    fn all_of_it_composes_in_order((x, _, scale) in any_case(), step in 100..900_usize, w in 1.5..3.0_f64, phi in 0.1..0.9_f64) {
        let schedule = schedule();
        let level = schedule.level(step);
        let bridge = Bridge::new(Prediction::V, schedule.clone(), TimestepMapping::ZeroBased);
        let (weak, gamma, ratio) = (mixture_of(1.5), 0.7, 0.6);
        let guide: Box<dyn Guide> = Box::new(cfg(mixture(), scale));
        let guide: Box<dyn Guide> = Box::new(Autoguided::new(guide, plain(&weak), w).unwrap());
        let guide: Box<dyn Guide> =
            Box::new(ClassifierGuided::new(guide, mixture(), cond(), gamma, ClassifierForm::Score).unwrap());
        let guide: Box<dyn Guide> = Box::new(Rescaled::new(guide, bridge.clone(), phi).unwrap());
        let guide: Box<dyn Guide> = Box::new(Limited::new(guide, 0.0, f64::INFINITY).unwrap());
        let found = Thresholded::new(guide, ratio, f64::INFINITY).unwrap().denoise(x.view(), level).unwrap();

        let (c, u) = (plain(mixture()), Conditioned::new(mixture(), Condition::none(3)));
        let of = |denoiser: &dyn Denoiser| denoiser.denoise(x.view(), level).unwrap();
        let g = LevelClassifier::label_gradient(&mixture(), x.view(), level, &cond()).unwrap();
        let mut e = of(&u) + (of(&c) - of(&u)) * scale + (of(&c) - of(&plain(&weak))) * (w - 1.0)
            + g * (gamma * level.sigma().powi(2) / level.alpha());
        let to_v = prediction::convert(Prediction::X0, Prediction::V, level, None).unwrap();
        let to_x0 = prediction::convert(Prediction::V, Prediction::X0, level, None).unwrap();
        let plain_x0 = of(&c);
        for i in 0..3 {
            let v = |x0: &Array4<f64>| -> Vec<f64> {
                x.index_axis(Axis(0), i).iter().zip(x0.index_axis(Axis(0), i)).map(|(x, x0)| to_v.apply(*x, *x0)).collect()
            };
            let factor = phi * deviation(&v(&plain_x0)) / deviation(&v(&e)) + 1.0 - phi;
            let rescaled: Vec<f64> = v(&e).iter().map(|v| factor * v).collect();
            for (j, v) in rescaled.into_iter().enumerate() {
                e[[i, 0, 0, j]] = to_x0.apply(x[[i, 0, 0, j]], v);
            }
        }
        tweedie_denoiser::dynamic_threshold(&mut e, ratio, f64::INFINITY);
        prop_assert!(largest_difference(&found, &e) < 1e-10, "{} instead of {}", found, e);
    }
}

#[test]
fn parameters_are_checked() {
    let parameter = |e| matches!(e, GuidanceError::Parameter { .. });
    let scale = |e| matches!(e, GuidanceError::Scale { .. });
    let bridge = Bridge::preconditioned(0.0, 0.5, OutputSign::Plain, 0.25);
    for phi in [-0.1, 1.1, f64::NAN] {
        assert!(parameter(Rescaled::new(plain(mixture()), bridge.clone(), phi).unwrap_err()), "{phi}");
        assert!(parameter(Thresholded::new(plain(mixture()), phi, 2.0).unwrap_err()), "{phi}");
    }
    for max in [0.9, f64::NAN] {
        assert!(parameter(Thresholded::new(plain(mixture()), 0.5, max).unwrap_err()), "{max}");
    }
    for (low, high) in [(-1.0, 1.0), (1.0, 1.0), (2.0, 1.0), (f64::NAN, 1.0), (0.0, f64::NAN)] {
        let error = Limited::new(plain(mixture()), low, high).unwrap_err();
        assert!(matches!(error, GuidanceError::Interval { .. }), "{low}, {high}");
    }
    for wrong in [f64::NAN, f64::INFINITY] {
        assert!(scale(Autoguided::new(plain(mixture()), plain(mixture()), wrong).unwrap_err()));
        let form = ClassifierForm::Score;
        assert!(scale(ClassifierGuided::new(plain(mixture()), mixture(), cond(), wrong, form).unwrap_err()));
    }
    assert_eq!(rescale_factor(1.0, 0.0, 0.7), 1.0);
    for form in [ClassifierForm::Score, ClassifierForm::Mean] {
        assert_eq!(ClassifierForm::from_name(form.name()), Some(form));
    }
    assert_eq!(ClassifierForm::from_name("x0"), None);
}

/// A sample of a single value has no standard deviation, and is left alone to the bit.
#[test]
fn a_single_value_is_not_rescaled() {
    let parts = vec![Component::new(1.0, 0.7, 0.3, Some(0)), Component::new(2.0, -0.4, 0.5, Some(1))];
    let oracle = MixtureOracle::new([1, 1, 1], parts).unwrap();
    let bridge = Bridge::new(Prediction::V, schedule(), TimestepMapping::ZeroBased);
    let x = array![[[[0.3]]], [[[-1.1]]], [[[0.123_456_789]]]];
    let level = schedule().level(321);
    let rescaled = Rescaled::new(cfg(&oracle, 3.0), bridge, 1.0).unwrap().denoise(x.view(), level).unwrap();
    assert_eq!(rescaled, cfg(&oracle, 3.0).denoise(x.view(), level).unwrap());
}

/// A guide of another shape, a classifier at a level without signal and one of another batch are errors and no panics.
#[test]
fn models_that_do_not_fit_are_refused() {
    let level = NoiseLevel::from_log_snr(0.0).unwrap();
    let x = Array4::zeros((3, 1, 1, 3));
    struct Thin;
    impl Denoiser for Thin {
        fn denoise(&self, x: ArrayView4<'_, f64>, _: NoiseLevel) -> Result<Array4<f64>, DenoiserError> {
            Ok(Array4::zeros((x.dim().0, 1, 1, 1)))
        }
    }
    let error = Autoguided::new(plain(mixture()), Thin, 2.0).unwrap().denoise(x.view(), level).unwrap_err();
    assert!(error.to_string().contains("weaker model"), "{error}");
    let guided = ClassifierGuided::new(plain(mixture()), mixture(), cond(), 1.0, ClassifierForm::Score).unwrap();
    assert!(guided.denoise(x.view(), NoiseLevel::PURE_NOISE).is_err());
    let short = Condition::labels(vec![Some(0)]);
    let guided = ClassifierGuided::new(plain(mixture()), mixture(), short, 1.0, ClassifierForm::Score).unwrap();
    assert!(matches!(guided.denoise(x.view(), level), Err(DenoiserError::Condition { .. })));
    let one = Estimate::from(array![[[[1.0]]]]);
    assert_eq!((one.fraction, one.tilt), (None, None));
}
