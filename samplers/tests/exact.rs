//! Samplers on data whose exact denoiser, reverse chain and ODE are known in closed form.

mod common;

use std::ops::ControlFlow;

use common::{largest_difference, run};
use ndarray::{Array, Array4, Array5, ArrayView4, Axis, Slice};
use proptest::prelude::*;
use tweedie_denoiser::{
    Component, Denoiser, DenoiserError, Estimate, MixtureOracle, Noise, Purpose, RecordingNoise, ReplayNoise,
    SeededNoise, ShiftedNoise,
};
use tweedie_samplers::{Clip, Ddim, Ddpm, SamplerError, Solver, ddim_encode, sample};
use tweedie_schedule::{
    BetaSchedule, LevelGrid, NoiseLevel, Posterior, Schedule, ScheduleError, Spacing, StepGrid, Variance,
};

const MEAN: f64 = 0.7;
const STD: f64 = 0.4;

fn gaussian(shape: [usize; 3]) -> MixtureOracle {
    MixtureOracle::gaussian(shape, MEAN, STD).unwrap()
}

fn mixture(shape: [usize; 3]) -> MixtureOracle {
    let part = |weight, mean: f64, std: f64| Component::new(weight, mean, std, None);
    MixtureOracle::new(shape, vec![part(1.0, -1.0, 0.3), part(2.0, 0.6, 0.5)]).unwrap()
}

fn linear(steps: usize) -> Schedule {
    // The total noise of the paper's 1000 steps, whatever the number of steps.
    let scale = 1000.0 / steps as f64;
    Schedule::new(&BetaSchedule::Linear { start: 1e-4 * scale, end: 0.02 * scale }, steps).unwrap()
}

/// The levels of a grid of steps.
fn levels(grid: &StepGrid, schedule: &Schedule) -> LevelGrid {
    LevelGrid::of_steps(grid, schedule).unwrap()
}

/// Mean and variance of the ancestral chain on Gaussian data: every move is linear in the state.
fn chain_moments(schedule: &Schedule, grid: &StepGrid, variance: Variance) -> (f64, f64) {
    let (mut mean, mut var) = (0.0, 1.0);
    for (t, s) in grid.moves() {
        let (at_t, at_s) = (schedule.level(t), schedule.level(s));
        let gain = at_t.alpha() * STD * STD / (at_t.abar() * STD * STD + at_t.sigma().powi(2));
        let posterior = Posterior::between(at_s, at_t).unwrap();
        let slope = posterior.coef_xt() + posterior.coef_x0() * gain;
        let offset = posterior.coef_x0() * MEAN * (1.0 - gain * at_t.alpha());
        let fresh = if t == 1 { 0.0 } else { posterior.reverse_variance(variance).unwrap() };
        (mean, var) = (slope * mean + offset, slope * slope * var + fresh);
    }
    (mean, var)
}

/// 2.5: 16,000 values have the mean and variance of the chain, within five standard errors; and with enough steps the
/// chain has those of the data.
#[test]
fn ddpm_draws_gaussian_data() {
    let shape = [1000, 1, 4, 4];
    let n = 16_000.0_f64;
    for (steps, count, variance) in [
        (120, 120, Variance::FixedSmall),
        (120, 120, Variance::FixedLarge),
        (1000, 12, Variance::FixedSmall),
        (1000, 12, Variance::FixedLarge),
    ] {
        let schedule = linear(steps);
        let grid = StepGrid::new(steps, count, Spacing::Trailing, 0).unwrap();
        let (mean, var) = chain_moments(&schedule, &grid, variance);
        let mut solver = Ddpm { variance, clip: Clip::None };
        let x = run(&gaussian([1, 4, 4]), &grid, &schedule, &mut solver, &SeededNoise::new(1), shape);
        let found_mean = x.sum() / n;
        let found_var = x.mapv(|v| (v - found_mean).powi(2)).sum() / n;
        let (mean_error, var_error) = (5.0 * (var / n).sqrt(), 5.0 * var * (2.0 / n).sqrt());
        assert!((found_mean - mean).abs() < mean_error, "{variance:?}: mean {found_mean}, the chain has {mean}");
        assert!((found_var - var).abs() < var_error, "{variance:?}: variance {found_var}, the chain has {var}");
    }
    // The bias of the discretised chain halves with the step: it is the chain that is exact in the limit.
    for variance in [Variance::FixedSmall, Variance::FixedLarge] {
        let bias = |steps: usize| {
            let grid = StepGrid::new(steps, steps, Spacing::Leading, 0).unwrap();
            let (mean, var) = chain_moments(&linear(steps), &grid, variance);
            assert!((mean - MEAN).abs() < 1e-2, "mean {mean}");
            (var / (STD * STD) - 1.0).abs()
        };
        let (coarse, fine) = (bias(1000), bias(4000));
        assert!(fine < 0.01, "{variance:?}: {fine}");
        assert!(fine < 0.3 * coarse, "{variance:?}: {coarse} then {fine}");
    }
}

/// 6.2: on Gaussian data the probability-flow ODE keeps (x_t - alpha m) / sqrt(alpha^2 s^2 + sigma^2), which gives the exact
/// map from noise to data; DDIM with eta = 0 approaches it at first order.
#[test]
fn ddim_converges_to_the_ode_at_first_order() {
    let schedule = linear(12_800);
    let shape = [4, 1, 2, 2];
    let noise = SeededNoise::new(3);
    let start = schedule.level(12_800);
    let spread = (start.abar() * STD * STD + start.sigma().powi(2)).sqrt();
    let mut exact = Array4::zeros((4, 1, 2, 2));
    for (i, mut row) in exact.axis_iter_mut(Axis(0)).enumerate() {
        let mut z = [0.0; 4];
        noise.fill(Purpose::Initial, i, &mut z).unwrap();
        for (x, z) in row.iter_mut().zip(z) {
            *x = MEAN + STD * (z - start.alpha() * MEAN) / spread;
        }
    }
    let error = |count: usize| {
        let grid = StepGrid::new(12_800, count, Spacing::Trailing, 0).unwrap();
        let found = run(&gaussian([1, 2, 2]), &grid, &schedule, &mut Ddim::default(), &noise, shape);
        largest_difference(&found, &exact)
    };
    let errors: Vec<f64> = [50, 100, 200, 400, 800].into_iter().map(error).collect();
    for pair in errors.windows(2) {
        let order = (pair[0] / pair[1]).log2();
        assert!((0.85..1.15).contains(&order), "errors {errors:?}, order {order}");
    }
    assert!(errors[4] < 5e-3, "{errors:?}");
}

/// 6.1: with eta = 0, encoding then decoding returns the start, with an error that falls at first order; on a mixture with full
/// covariances, from step 1 and from the data itself.
#[test]
fn ddim_encodes_and_decodes() {
    let schedule = linear(3200);
    let covariance = vec![vec![0.3, 0.1, 0.0], vec![0.1, 0.2, -0.05], vec![0.0, -0.05, 0.25]];
    let components = vec![
        Component::new(1.0, vec![-1.0, 0.0, 0.5], covariance, None),
        Component::new(2.0, 0.6, vec![0.5, 0.6, 0.4], None),
    ];
    let oracle = MixtureOracle::new([1, 1, 3], components).unwrap();
    let start = Array4::from_shape_vec((2, 1, 1, 3), vec![0.4, 0.7, 0.5, -1.1, -0.3, 0.8]).unwrap();
    for final_step in [0, 1] {
        let error = |count: usize| {
            let grid = StepGrid::new(3200, count, Spacing::Trailing, 0).unwrap().with_final_step(final_step).unwrap();
            let encoded = ddim_encode(&oracle, &levels(&grid, &schedule), start.view()).unwrap();
            // The encoded state takes the place of the initial noise.
            let noise = ReplayNoise::new(encoded.mapv(|v| v as f32), Array5::zeros((0, 0, 0, 0, 0))).unwrap();
            let back = run(&oracle, &grid, &schedule, &mut Ddim::default(), &noise, [2, 1, 1, 3]);
            largest_difference(&back, &start)
        };
        let errors: Vec<f64> = [100, 200, 400, 800].into_iter().map(error).collect();
        for pair in errors.windows(2) {
            let order = (pair[0] / pair[1]).log2();
            assert!((0.8..1.3).contains(&order), "to step {final_step}: errors {errors:?}, order {order}");
        }
        assert!(errors[3] < 0.02, "{errors:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Encoding a Gaussian is known: the ODE keeps (x_t - alpha m) / sqrt(alpha^2 lambda + sigma^2) along each eigenvector, here
    /// those of a rotation by `angle`. The error halves with the step.
    #[test]
    fn ddim_encodes_gaussians(
        angle in 0.0..3.0_f64, stds in prop::array::uniform2(0.2..1.5_f64), mean in prop::array::uniform2(-1.0..1.0_f64),
        z in prop::array::uniform2(-2.0..2.0_f64),
    ) {
        let axes = [[angle.cos(), angle.sin()], [-angle.sin(), angle.cos()]];
        let at = |coordinates: [f64; 2], mean: [f64; 2]| -> Vec<f64> {
            (0..2).map(|i| mean[i] + axes[0][i] * coordinates[0] + axes[1][i] * coordinates[1]).collect()
        };
        let entry = |i: usize, j: usize| (0..2).map(|k| axes[k][i] * axes[k][j] * stds[k] * stds[k]).sum::<f64>();
        let covariance: Vec<Vec<f64>> = (0..2).map(|i| (0..2).map(|j| entry(i, j)).collect()).collect();
        let oracle = MixtureOracle::gaussian([2, 1, 1], mean.to_vec(), covariance).unwrap();
        let schedule = linear(3200);
        let start = Array4::from_shape_vec((1, 2, 1, 1), at([z[0] * stds[0], z[1] * stds[1]], mean)).unwrap();
        let top = schedule.level(3200);
        let spread = |k: usize| (top.abar() * stds[k] * stds[k] + top.sigma().powi(2)).sqrt();
        let scaled = [z[0] * spread(0), z[1] * spread(1)];
        let exact = Array4::from_shape_vec((1, 2, 1, 1), at(scaled, mean.map(|m| m * top.alpha()))).unwrap();
        let error = |count: usize| {
            let grid = StepGrid::new(3200, count, Spacing::Trailing, 0).unwrap();
            largest_difference(&ddim_encode(&oracle, &levels(&grid, &schedule), start.view()).unwrap(), &exact)
        };
        let (coarse, fine) = (error(200), error(400));
        prop_assert!(coarse < 0.2, "{coarse}");
        prop_assert!(coarse < 1e-4 || (1.5..2.7).contains(&(coarse / fine)), "{coarse} and {fine}");
    }
}

/// What encoding refuses, and a grid that ends where it starts, which moves nothing.
#[test]
fn encoding_is_checked() {
    let schedule = linear(40);
    let x = Array4::from_elem((1, 1, 2, 2), 0.5);
    let other = StepGrid::new(41, 4, Spacing::Trailing, 0).unwrap();
    let oracle = gaussian([1, 2, 2]);
    assert_eq!(LevelGrid::of_steps(&other, &schedule), Err(ScheduleError::GridMismatch { grid: 41, schedule: 40 }));
    let standing = StepGrid::from_steps(40, vec![7]).unwrap().with_final_step(7).unwrap();
    assert_eq!(ddim_encode(&oracle, &levels(&standing, &schedule), x.view()).unwrap(), x);
    let grid = StepGrid::new(40, 4, Spacing::Trailing, 0).unwrap();
    let wrong_shape = ddim_encode(&gaussian([1, 4, 1]), &levels(&grid, &schedule), x.view());
    assert!(matches!(wrong_shape, Err(SamplerError::Denoiser(_))));
    let infinite = Array4::from_elem((1, 1, 2, 2), 1e308);
    let error = ddim_encode(&Huge, &levels(&grid, &schedule), infinite.view()).unwrap_err();
    assert!(matches!(error, SamplerError::NotFinite { position: 1, total: 4, t: 10.0, .. }), "{error}");
}

/// One move from the data up to a level with much noise: alpha x + sigma eps with eps = -sigma score at alpha x, in closed
/// form for a Gaussian.
#[test]
fn encoding_starts_from_the_data() {
    let schedule = linear(40);
    let grid = StepGrid::from_steps(40, vec![20]).unwrap();
    let level = schedule.level(20);
    let x = Array4::from_shape_vec((1, 1, 1, 3), vec![0.1, 0.7, 1.5]).unwrap();
    let found = ddim_encode(&gaussian([1, 1, 3]), &levels(&grid, &schedule), x.view()).unwrap();
    let variance = level.abar() * STD * STD + level.sigma().powi(2);
    let expected = x.mapv(|x| {
        let score = level.alpha() * (MEAN - x) / variance;
        level.alpha() * x - level.sigma().powi(2) * score
    });
    assert!(largest_difference(&found, &expected) < 1e-14, "{found} instead of {expected}");
}

/// A denoiser whose estimate is far from the state.
struct Huge;

impl Denoiser for Huge {
    fn denoise(
        &self,
        x: ArrayView4<'_, f64>,
        _: tweedie_schedule::NoiseLevel,
    ) -> Result<Array4<f64>, tweedie_denoiser::DenoiserError> {
        Ok(Array::from_elem(x.dim(), -1.7e308))
    }
}

/// 6.1: DDIM with eta = 1 over all steps is ancestral sampling with b~, state by state, given the same noise.
#[test]
fn ddim_with_eta_1_is_ddpm() {
    let schedule = linear(100);
    let grid = StepGrid::new(100, 100, Spacing::Leading, 0).unwrap();
    let oracle = mixture([1, 3, 2]);
    let trajectory = |solver: &mut dyn Solver| {
        let mut states = Vec::new();
        sample(&oracle, &levels(&grid, &schedule), solver, &SeededNoise::new(5), [3, 1, 3, 2], &mut |info| {
            assert_eq!((info.position, info.total, info.step), (states.len(), 100, (100 - states.len()) as f64));
            states.push((info.x.to_owned(), info.x0.to_owned()));
            ControlFlow::Continue(())
        })
        .unwrap();
        states
    };
    let ancestral = trajectory(&mut Ddpm::default());
    let implicit = trajectory(&mut Ddim { eta: 1.0, ..Ddim::default() });
    assert_eq!(ancestral.len(), 100);
    for (position, (a, b)) in ancestral.iter().zip(&implicit).enumerate() {
        let error = largest_difference(&a.0, &b.0).max(largest_difference(&a.1, &b.1));
        assert!(error < 1e-10, "move {position}: {error:e}");
    }
}

/// Sample i of a seed has the same bits alone, in a batch, and in another batch.
#[test]
fn samples_do_not_depend_on_the_batch() {
    let schedule = linear(50);
    let grid = StepGrid::new(50, 10, Spacing::Linspace, 0).unwrap();
    let oracle = mixture([2, 2, 2]);
    let noise = SeededNoise::new(9);
    let dynamic = Clip::Dynamic { ratio: 0.9, max: 1.5 };
    let solvers: [Box<dyn Fn() -> Box<dyn Solver>>; 2] = [
        Box::new(move || Box::new(Ddpm { variance: Variance::FixedLarge, clip: dynamic })),
        Box::new(move || Box::new(Ddim { eta: 0.5, clip: dynamic, use_clipped_model_output: true })),
    ];
    for solver in solvers {
        let draw =
            |first, n| run(&oracle, &grid, &schedule, &mut *solver(), &ShiftedNoise::new(noise, first), [n, 2, 2, 2]);
        let all = draw(0, 5);
        for (first, n) in [(0, 1), (4, 1), (1, 3), (3, 2)] {
            assert_eq!(draw(first, n), all.slice_axis(Axis(0), Slice::from(first..first + n)), "{n} from {first}");
        }
        // What was used replays to the same bits.
        let recording = RecordingNoise::new(noise, [5, 2, 2, 2]);
        assert_eq!(run(&oracle, &grid, &schedule, &mut *solver(), &recording, [5, 2, 2, 2]), all);
        let recorded = recording.into_recorded();
        assert_eq!(recorded.steps.len_of(Axis(0)), 9);
        let replay = ReplayNoise::new(recorded.initial, recorded.steps).unwrap();
        assert_eq!(run(&oracle, &grid, &schedule, &mut *solver(), &replay, [5, 2, 2, 2]), all);
    }
}

/// The mean of a move to `abar = 1` is `x_0` itself. A move from step 1 adds nothing to it; a longer one adds `sigma_q z`,
/// where `sigma_q` is 0 for the small variance.
#[test]
fn the_last_move_is_the_estimate() {
    let schedule = linear(40);
    let (leading, trailing) = (Spacing::Leading, Spacing::Trailing);
    for (variance, spacing, spread) in [
        (Variance::FixedSmall, leading, 0.0),
        (Variance::FixedLarge, leading, 0.0),
        (Variance::Unit, leading, 0.0),
        (Variance::FixedSmall, trailing, 0.0),
        (Variance::FixedLarge, trailing, schedule.level(5).sigma()),
        (Variance::Unit, trailing, 1.0),
    ] {
        let grid = StepGrid::new(40, 8, spacing, 0).unwrap();
        let mut last: Option<(Array4<f64>, Array4<f64>)> = None;
        let mut solver = Ddpm { variance, clip: Clip::Range(1.0) };
        let noise = SeededNoise::new(2);
        sample(&mixture([1, 2, 2]), &levels(&grid, &schedule), &mut solver, &noise, [2, 1, 2, 2], &mut |info| {
            last = Some((info.x.to_owned(), info.x0.to_owned()));
            ControlFlow::Continue(())
        })
        .unwrap();
        let (x, x0) = last.unwrap();
        let mut expected = x0.clone();
        for (i, mut image) in expected.axis_iter_mut(Axis(0)).enumerate() {
            let mut z = [0.0; 4];
            noise.fill(Purpose::Step(7), i, &mut z).unwrap();
            for (x, z) in image.iter_mut().zip(z) {
                *x += spread * z;
            }
        }
        assert!(largest_difference(&x, &expected) < 1e-14, "{variance:?}, {spacing:?}");
        assert!(x0.iter().all(|v| v.abs() <= 1.0));
    }
}

/// A denoiser that always returns 3.
struct Three;

impl Denoiser for Three {
    fn denoise(
        &self,
        x: ArrayView4<'_, f64>,
        _: tweedie_schedule::NoiseLevel,
    ) -> Result<Array4<f64>, tweedie_denoiser::DenoiserError> {
        Ok(Array::from_elem(x.dim(), 3.0))
    }
}

/// Clipping x_0 leaves eps alone unless it is asked to be derived anew.
#[test]
fn clipping_and_eps() {
    let schedule = linear(100);
    let grid = StepGrid::from_steps(100, vec![60]).unwrap().with_final_step(30).unwrap();
    let (t, s) = (schedule.level(60), schedule.level(30));
    let noise = ReplayNoise::new(Array4::from_elem((1, 1, 1, 1), 0.5), Array5::zeros((0, 1, 1, 1, 1))).unwrap();
    for (use_clipped_model_output, for_eps) in [(false, 3.0), (true, 1.0)] {
        let mut solver = Ddim { eta: 0.0, clip: Clip::Range(1.0), use_clipped_model_output };
        let found = run(&Three, &grid, &schedule, &mut solver, &noise, [1, 1, 1, 1])[[0, 0, 0, 0]];
        let expected = s.alpha() + s.sigma() * (0.5 - t.alpha() * for_eps) / t.sigma();
        assert!((found - expected).abs() < 1e-14, "{found} instead of {expected}");
    }
}

/// An oracle that states a variance: its fraction is the first number for the first value of a sample, the second for others.
struct Stating(MixtureOracle, [f64; 2]);

impl Denoiser for Stating {
    fn denoise(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Array4<f64>, DenoiserError> {
        self.0.denoise(x, level)
    }

    fn estimate(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Estimate, DenoiserError> {
        let fraction = Array4::from_shape_fn(x.dim(), |(_, _, _, j)| self.1[j.min(1)]);
        Ok(Estimate { fraction: Some(fraction), ..self.0.denoise(x, level)?.into() })
    }
}

/// Every value goes the way of the fixed interpolation with its own fraction, on independent values and the same noise.
#[test]
fn a_learned_variance_is_interpolated_for_every_value() {
    let (schedule, noise) = (linear(100), SeededNoise::new(4));
    let grid = StepGrid::new(100, 20, Spacing::Leading, 0).unwrap();
    let shape = [3, 1, 1, 3];
    let mut learned = Ddpm { variance: Variance::LearnedRange, ..Ddpm::default() };
    let found = run(&Stating(gaussian([1, 1, 3]), [0.2, 0.9]), &grid, &schedule, &mut learned, &noise, shape);
    for (j, fraction) in [0.2, 0.9, 0.9].into_iter().enumerate() {
        let mut fixed = Ddpm { variance: Variance::Interpolated { fraction }, ..Ddpm::default() };
        let expected = run(&gaussian([1, 1, 3]), &grid, &schedule, &mut fixed, &noise, shape);
        for i in 0..3 {
            assert!((found[[i, 0, 0, j]] - expected[[i, 0, 0, j]]).abs() < 1e-12, "value {j} of sample {i}");
        }
    }
    let result = sample(&gaussian([1, 1, 3]), &levels(&grid, &schedule), &mut learned, &noise, shape, &mut |_| {
        ControlFlow::Continue(())
    });
    assert!(matches!(result, Err(SamplerError::NoLearnedVariance)));
}
