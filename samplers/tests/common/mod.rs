//! Grids that are uniform in the log-SNR, a mixture in the plane, and its probability flow by another method.
#![allow(dead_code)]

use std::ops::ControlFlow;

use ndarray::{Array4, ArrayView3, Axis};
use tweedie_denoiser::{Component, Condition, Denoiser, DenoiserError, MixtureOracle, Noise, Purpose, SeededNoise};
use tweedie_samplers::{Solver, sample};
use tweedie_schedule::{BetaSchedule, LevelGrid, NoiseLevel, Schedule, StepGrid};

/// A schedule whose steps 1..=T have EDM noises from `lowest` to `highest` in geometric progression: uniform in the log-SNR.
pub fn uniform_schedule(lowest: f64, highest: f64, steps: usize) -> Schedule {
    let noise = |t: usize| match t {
        0 => 0.0,
        t => lowest * (highest / lowest).powf((t - 1) as f64 / (steps - 1) as f64),
    };
    // abar = 1 / (1 + s^2), so 1 - abar_t / abar_(t-1) is:
    let beta = |t: usize| (noise(t) - noise(t - 1)) * (noise(t) + noise(t - 1)) / (1.0 + noise(t).powi(2));
    Schedule::new(&BetaSchedule::Custom((1..=steps).map(beta).collect()), steps).unwrap()
}

/// `moves` equal moves from the last step to the first one; T - 1 is a multiple of their number.
pub fn uniform_grid(schedule: &Schedule, moves: usize) -> StepGrid {
    let steps = schedule.steps();
    assert_eq!((steps - 1) % moves, 0, "{moves} moves over {steps} steps");
    let stride = (steps - 1) / moves;
    let visited = (0..moves).map(|k| steps - k * stride).collect();
    StepGrid::from_steps(steps, visited).unwrap().with_final_step(1).unwrap()
}

/// Three components in the plane with full covariances, as samples of shape [2, 1, 1].
pub fn plane() -> MixtureOracle {
    let part = |weight, mean: [f64; 2], [a, b, c]: [f64; 3]| {
        Component::new(weight, mean.to_vec(), vec![vec![a, b], vec![b, c]], None)
    };
    let parts = vec![
        part(0.4, [-1.2, 0.4], [0.20, 0.12, 0.15]),
        part(0.35, [0.9, 0.8], [0.25, -0.10, 0.12]),
        part(0.25, [0.3, -1.1], [0.10, 0.03, 0.20]),
    ];
    MixtureOracle::new([2, 1, 1], parts).unwrap()
}

/// `count` exact samples of the noisy mixture.
pub fn draws(oracle: &MixtureOracle, level: NoiseLevel, count: usize, seed: u64) -> Array4<f64> {
    oracle.sample(level, &Condition::none(count), seed).unwrap().x
}

/// A given first state, and the noise of another source after it.
pub struct From<S> {
    /// `[N, C, H, W]`.
    pub start: Array4<f64>,
    /// What draws the rest.
    pub steps: S,
}

impl<S: Noise> Noise for From<S> {
    fn fill(&self, purpose: Purpose, sample: usize, out: &mut [f64]) -> Result<(), DenoiserError> {
        if purpose != Purpose::Initial {
            return self.steps.fill(purpose, sample, out);
        }
        for (value, &given) in out.iter_mut().zip(self.start.index_axis(Axis(0), sample)) {
            *value = given;
        }
        Ok(())
    }
}

/// A source that may not be asked: the noise of deterministic samplers.
pub struct Silence;

impl Noise for Silence {
    fn fill(&self, purpose: Purpose, _: usize, _: &mut [f64]) -> Result<(), DenoiserError> {
        panic!("a deterministic sampler drew noise for {purpose:?}");
    }
}

/// The noise of a path that is shared by runs with steps of different lengths on a grid uniform in `lambda = ln(alpha / sigma)`.
///
/// Between two levels the exact solution of the reverse SDE picks up `sigma' sqrt(1 - e^(-2 h)) z`, and carries earlier noise on
/// by `sigma' / sigma e^-h`. So `fine` steps of length `h` make one of length `fine h` whose noise is the normalised sum of
/// `e^(-(fine - 1 - k) h) z_k`.
pub struct Coupled {
    /// The noise of the finest steps.
    pub finest: SeededNoise,
    /// How many of them make a step of the run.
    pub fine: usize,
    /// The length `h` of the finest steps.
    pub length: f64,
}

impl Noise for Coupled {
    fn fill(&self, purpose: Purpose, sample: usize, out: &mut [f64]) -> Result<(), DenoiserError> {
        let Purpose::Step(step) = purpose else { return self.finest.fill(purpose, sample, out) };
        let (mut z, mut total) = (vec![0.0; out.len()], 0.0);
        out.fill(0.0);
        for k in 0..self.fine {
            self.finest.fill(Purpose::Step(step * self.fine + k), sample, &mut z)?;
            let weight = (-((self.fine - 1 - k) as f64) * self.length).exp();
            total += weight * weight;
            out.iter_mut().zip(&z).for_each(|(out, z)| *out += weight * z);
        }
        out.iter_mut().for_each(|out| *out /= total.sqrt());
        Ok(())
    }
}

/// The noise of a run of `moves` whose path is that of a run of `finest` moves, from a given start.
pub fn coupled(schedule: &Schedule, start: Array4<f64>, moves: usize, finest: usize) -> From<Coupled> {
    let lambda = |t: usize| 0.5 * schedule.level(t).log_snr();
    let length = (lambda(1) - lambda(schedule.steps())) / finest as f64;
    From { start, steps: Coupled { finest: SeededNoise::new(31), fine: finest / moves, length } }
}

/// The result of a run.
pub fn run(
    denoiser: &dyn Denoiser,
    grid: &StepGrid,
    schedule: &Schedule,
    solver: &mut dyn Solver,
    noise: &dyn Noise,
    shape: [usize; 4],
) -> Array4<f64> {
    let grid = LevelGrid::of_steps(grid, schedule).unwrap();
    sample(denoiser, &grid, solver, noise, shape, &mut |_| ControlFlow::Continue(())).unwrap()
}

/// The probability flow from one level to another by the classical Runge-Kutta method in `u = ln s` for `y = x / alpha`,
/// `dy/du = y - E[x_0 | y]`: shares nothing with the samplers but the oracle.
pub fn flow(oracle: &MixtureOracle, x: &Array4<f64>, from: NoiseLevel, to: NoiseLevel, steps: usize) -> Array4<f64> {
    let slope = |y: &Array4<f64>, u: f64| {
        let level = NoiseLevel::from_edm_sigma(u.exp()).unwrap();
        y - &oracle.denoise((y * level.alpha()).view(), level).unwrap()
    };
    let (start, end) = (from.edm_sigma().ln(), to.edm_sigma().ln());
    let h = (end - start) / steps as f64;
    let mut y = x / from.alpha();
    for k in 0..steps {
        let u = start + h * k as f64;
        let a = slope(&y, u);
        let b = slope(&(&y + &(&a * (0.5 * h))), u + 0.5 * h);
        let c = slope(&(&y + &(&b * (0.5 * h))), u + 0.5 * h);
        let d = slope(&(&y + &(&c * h)), u + h);
        y = y + (a + b * 2.0 + c * 2.0 + d) * (h / 6.0);
    }
    y * to.alpha()
}

/// The largest distance between two entries.
pub fn largest_difference(a: &Array4<f64>, b: &Array4<f64>) -> f64 {
    assert_eq!(a.dim(), b.dim());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// The root of the mean square distance between two entries.
pub fn rms_difference(a: &Array4<f64>, b: &Array4<f64>) -> f64 {
    assert_eq!(a.dim(), b.dim());
    (a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>() / a.len() as f64).sqrt()
}

/// The median over the samples of the distance between two states: unlike the mean square, it does not depend on the few paths
/// that end at another component.
pub fn median_distance(a: &Array4<f64>, b: &Array4<f64>) -> f64 {
    assert_eq!(a.dim(), b.dim());
    let distance = |(a, b): (ArrayView3<'_, f64>, ArrayView3<'_, f64>)| {
        a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt()
    };
    let mut all: Vec<f64> = a.outer_iter().zip(b.outer_iter()).map(distance).collect();
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}
