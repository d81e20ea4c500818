//! Guided models in every sampler: with `gamma = 1` each draws the labelled components (FORMULAS 5.3, 5.4), by a two-sample test
//! with at most one false alarm in a million for each sampler (the seeds are fixed); and the tilt of the mean in DDPM.

mod common;

use common::{From, run, uniform_grid, uniform_schedule};
use ndarray::{Array4, ArrayView4, Zip};
use tweedie_denoiser::{
    Component, Condition, Conditioned, Denoiser, DenoiserError, Estimate, MixtureOracle, SeededNoise,
};
use tweedie_eval::two_sample;
use tweedie_guidance::{Cfg, ClassifierForm, ClassifierGuided};
use tweedie_samplers::{Clip, Compat, Ddpm, SamplerError, Solver, SolverSpec, VarianceType};
use tweedie_schedule::{NoiseLevel, Posterior, Variance};

/// Points of each of the two samples.
const COUNT: usize = 1000;
/// The rate of false alarms of one comparison.
const ALARM: f64 = 1e-6;

/// Three components in the plane, two of which are of label 1.
fn labelled() -> MixtureOracle {
    let part = |weight, mean: [f64; 2], [a, b, c]: [f64; 3], label| {
        Component::new(weight, mean.to_vec(), vec![vec![a, b], vec![b, c]], Some(label))
    };
    let parts = vec![
        part(0.4, [-1.2, 0.4], [0.20, 0.12, 0.15], 1),
        part(0.35, [0.9, 0.8], [0.25, -0.10, 0.12], 0),
        part(0.25, [0.3, -1.1], [0.10, 0.03, 0.20], 1),
    ];
    MixtureOracle::new([2, 1, 1], parts).unwrap()
}

fn label() -> Condition {
    Condition::labels(vec![Some(1); COUNT])
}

/// Guidance of the unconditional oracle by its exact classifier.
fn by_classifier(oracle: &MixtureOracle, scale: f64, form: ClassifierForm) -> Box<dyn Denoiser + '_> {
    let free = Conditioned::new(oracle, Condition::none(COUNT));
    Box::new(ClassifierGuided::new(free, oracle, label(), scale, form).unwrap())
}

fn by_cfg(oracle: &MixtureOracle, scale: f64) -> Box<dyn Denoiser + '_> {
    Box::new(Cfg::new(oracle, label(), Condition::none(COUNT), scale).unwrap())
}

/// The p-value of what a solver draws with a guided model, from exact draws of the components of the label.
fn p_value(guided: &dyn Denoiser, solver: &mut dyn Solver, moves: usize) -> f64 {
    let (oracle, schedule) = (labelled(), uniform_schedule(0.05, 80.0, 97));
    let of_label = oracle.of_label(1).unwrap();
    let start = common::draws(&of_label, schedule.level(97), COUNT, 1);
    let noise = From { start, steps: SeededNoise::new(40) };
    let found = run(guided, &uniform_grid(&schedule, moves), &schedule, solver, &noise, [COUNT, 2, 1, 1]);
    let exact = common::draws(&of_label, schedule.level(1), COUNT, 2);
    two_sample(found.view(), exact.view(), 16, 5).unwrap().p_value
}

/// Whether a guided model draws the label in every sampler that keeps the marginals of the process; those of consistency models
/// do not.
fn in_every_sampler(guided: &dyn Denoiser) {
    for spec in SolverSpec::ALL.into_iter().filter(|spec| !matches!(spec, SolverSpec::Consistency(_))) {
        let mut solver = spec.build(Clip::None, Compat::Published).unwrap();
        let first_order = ["ddpm", "ddim", "euler", "euler-ancestral", "kdpm2-ancestral"];
        let p = p_value(guided, &mut *solver, if first_order.contains(&spec.name()) { 48 } else { 16 });
        assert!(p > ALARM, "{}: p = {p:e}", spec.name());
    }
}

#[test]
fn classifier_free_guidance_draws_the_label() {
    in_every_sampler(&*by_cfg(&labelled(), 1.0));
}

#[test]
fn the_classifier_draws_the_label() {
    in_every_sampler(&*by_classifier(&labelled(), 1.0, ClassifierForm::Score));
}

/// The form of the mean is exact only in the limit of short steps, and closest with the large variance: `b / sqrt(a)` in its
/// place would be exact (`guided_mean_is_the_guided_estimate`).
#[test]
fn the_mean_form_draws_the_label() {
    let oracle = labelled();
    let mut solver =
        SolverSpec::Ddpm { variance: VarianceType::FixedLarge }.build(Clip::None, Compat::Published).unwrap();
    let p = p_value(&*by_classifier(&oracle, 1.0, ClassifierForm::Mean), &mut *solver, 96);
    assert!(p > ALARM, "p = {p:e}");
}

/// The power of the test: no guidance, half of it, twice of it and guidance towards another label are rejected.
#[test]
fn wrong_guidance_is_rejected() {
    let oracle = labelled();
    let other = Condition::labels(vec![Some(0); COUNT]);
    for (name, guided) in [
        ("none", by_cfg(&oracle, 0.0)),
        ("half", by_classifier(&oracle, 0.5, ClassifierForm::Score)),
        ("twice, the mean", by_classifier(&oracle, 2.0, ClassifierForm::Mean)),
        ("thrice", by_cfg(&oracle, 3.0)),
        ("another label", Box::new(Conditioned::new(&oracle, other))),
    ] {
        let mut ddpm = Ddpm { variance: Variance::FixedLarge, clip: Clip::None };
        let p = p_value(&*guided, &mut ddpm, 48);
        assert!(p < ALARM, "{name}: p = {p:e}");
    }
}

/// Given numbers as an estimate.
struct Given(Estimate);

impl Denoiser for Given {
    fn denoise(&self, _: ArrayView4<'_, f64>, _: NoiseLevel) -> Result<Array4<f64>, DenoiserError> {
        Ok(self.0.x0.clone())
    }

    fn estimate(&self, _: ArrayView4<'_, f64>, _: NoiseLevel) -> Result<Estimate, DenoiserError> {
        Ok(self.0.clone())
    }
}

fn given(x: impl Fn(usize) -> f64) -> Array4<f64> {
    let mut values = Array4::zeros((2, 1, 1, 3));
    values.iter_mut().enumerate().for_each(|(i, v)| *v = x(i));
    values
}

/// One move of DDPM without noise ends at the posterior's mean plus the variance times the tilt, after clipping, for each
/// variance, a learned one value by value, and in the last step too.
#[test]
fn a_tilt_moves_the_mean_by_the_variance() {
    let schedule = uniform_schedule(0.05, 80.0, 9);
    let start = given(|i| 0.3 * i as f64 - 0.7);
    let x0 = given(|i| 1.5 - 0.6 * i as f64);
    let tilt = given(|i| (i as f64).sin());
    let fraction = given(|i| 0.15 * i as f64);
    let estimate = Estimate { x0: x0.clone(), fraction: Some(fraction.clone()), tilt: Some(tilt.clone()) };
    for (from, to) in [(7, 4), (1, 0)] {
        let posterior = Posterior::between(schedule.level(to), schedule.level(from)).unwrap();
        let grid = tweedie_schedule::StepGrid::from_steps(9, vec![from]).unwrap();
        let grid = if to > 0 { grid.with_final_step(to).unwrap() } else { grid };
        for variance in [Variance::FixedSmall, Variance::FixedLarge, Variance::Unit, Variance::LearnedRange] {
            struct Still;
            impl tweedie_denoiser::Noise for Still {
                fn fill(
                    &self,
                    purpose: tweedie_denoiser::Purpose,
                    sample: usize,
                    out: &mut [f64],
                ) -> Result<(), DenoiserError> {
                    let initial = purpose == tweedie_denoiser::Purpose::Initial;
                    for (j, v) in out.iter_mut().enumerate() {
                        *v = if initial { 0.3 * (3 * sample + j) as f64 - 0.7 } else { 0.0 };
                    }
                    Ok(())
                }
            }
            let mut solver = Ddpm { variance, clip: Clip::Range(1.0) };
            let found = run(&Given(estimate.clone()), &grid, &schedule, &mut solver, &Still, [2, 1, 1, 3]);
            let expected = Zip::from(&start).and(&x0).and(&tilt).and(&fraction).map_collect(|&x, &x0, &g, &v| {
                let sigma_q = match variance {
                    Variance::LearnedRange => {
                        let small = posterior.variance().max(1e-20);
                        (v * posterior.beta().ln() + (1.0 - v) * small.ln()).exp()
                    }
                    fixed => posterior.reverse_variance(fixed).unwrap(),
                };
                posterior.mean(x, x0.clamp(-1.0, 1.0)) + sigma_q * g
            });
            let difference = common::largest_difference(&found, &expected);
            assert!(difference < 1e-13, "{variance:?}, {from} to {to}: {found} instead of {expected}");
        }
    }
}

/// Every other sampler says so, and what to do.
#[test]
fn a_tilt_needs_a_reverse_variance() {
    let schedule = uniform_schedule(0.05, 80.0, 97);
    let grid = tweedie_schedule::LevelGrid::of_steps(&uniform_grid(&schedule, 24), &schedule).unwrap();
    let estimate = Estimate { tilt: Some(given(|_| 0.1)), ..Estimate::from(given(|_| 0.5)) };
    for spec in SolverSpec::ALL.into_iter().filter(|spec| !matches!(spec, SolverSpec::Ddpm { .. })) {
        let mut solver = spec.build(Clip::None, Compat::Published).unwrap();
        let result = tweedie_samplers::sample(
            &Given(estimate.clone()),
            &grid,
            &mut *solver,
            &SeededNoise::new(1),
            [2, 1, 1, 3],
            &mut |_| std::ops::ControlFlow::Continue(()),
        );
        assert!(matches!(result, Err(SamplerError::NoReverseVariance)), "{}", spec.name());
    }
    let broken = Estimate { tilt: Some(given(|_| f64::NAN)), ..estimate };
    let mut ddpm = Ddpm::default();
    let result =
        tweedie_samplers::sample(&Given(broken), &grid, &mut ddpm, &SeededNoise::new(1), [2, 1, 1, 3], &mut |_| {
            std::ops::ControlFlow::Continue(())
        });
    assert!(matches!(result, Err(SamplerError::NotFinite { .. })));
}
