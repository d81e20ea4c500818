//! Fast samplers (FORMULAS 6).

use std::ops::ControlFlow;

use anyhow::Result;
use ndarray::Array4;
use tweedie_denoiser::{Condition, Conditioned, MixtureOracle, Noise, SeededNoise};
use tweedie_samplers::{Clip, Ddim, Ddpm, Solver, ddim_encode, sample};
use tweedie_schedule::ddim::ddim_coefs;
use tweedie_schedule::{BetaSchedule, LevelGrid, Preconditioning, Schedule, Spacing, StepGrid, Variance};

use super::draw::{Draw, Mixture, flat};
use super::{Identity, Worst, reference};

pub const IDENTITIES: &[Identity] = &[
    Identity {
        id: "6.1-step",
        equation: "s = eta sqrt((1-abar_p)/(1-abar_t)) sqrt(1 - abar_t/abar_p)",
        source: "Song 2021 DDIM, eq. 16",
        relative_to: "each coefficient of the step",
        tolerance: 1e-8,
        because: "as 1.1-between",
        cost: 1,
        check: step,
    },
    Identity {
        id: "6.1-ancestral",
        equation: "eta = 1, consecutive steps: 2.5 with variance b~_t",
        source: "Song 2021 DDIM, sec. 4.1",
        relative_to: "the factors of x_t and x_0 and the variance of 2.1",
        tolerance: 1e-8,
        because: "as 1.1-between",
        cost: 1,
        check: ancestral,
    },
    Identity {
        id: "6.1-marginal",
        equation: "every eta keeps q(x_p|x_0) = N(sqrt(abar_p) x_0, 1-abar_p)",
        source: "Song 2021 DDIM, Lemma 1",
        relative_to: "sqrt(abar_p) and 1 - abar_p",
        tolerance: 1e-12,
        because: "as 1.1-semigroup",
        cost: 1,
        check: marginal,
    },
    Identity {
        id: "6.1-trajectory",
        equation: "eta = 1 on every step draws what ancestral sampling draws",
        source: "Song 2021 DDIM, sec. 4.1",
        relative_to: "the largest number of the sample",
        tolerance: 1e-10,
        because: "as 2.5-ancestral, with 6.1-ancestral in every step",
        cost: 4,
        check: trajectory,
    },
    Identity {
        id: "6.1-point",
        equation: "data at one point: eps is constant, any K steps are exact",
        source: "Song 2021 DDIM, eq. 13",
        relative_to: "the sum of the sizes of both terms",
        tolerance: 1e-13,
        because: "rounding relative to both terms",
        cost: 4,
        check: point,
    },
    Identity {
        id: "6.1-first-order",
        equation: "Gaussian data: error of K steps / error of 2K steps -> 2",
        source: "Song 2021 DDIM, sec. 4.3",
        relative_to: "order 1: |log2(ratio) - 1|",
        tolerance: 0.15,
        because: "the next order is a share of the step, which is 1/100 of ln(sigma/alpha)'s range",
        cost: 20,
        check: first_order,
    },
    Identity {
        id: "6.1-inverts",
        equation: "encode then decode returns x_0, error falling with 1/K",
        source: "Song 2021 DDIM, sec. 5.4",
        relative_to: "order 1, as 6.1-first-order",
        tolerance: 0.25,
        because: "as 6.1-first-order, for two passes",
        cost: 20,
        check: inverts,
    },
    Identity {
        id: "6.3-boundary",
        equation: "f(x, sigma_min) = x for any network",
        source: "Song 2023, eq. 25",
        relative_to: "x",
        tolerance: 0.0,
        because: "c_skip = 1 and c_out = 0 exactly",
        cost: 1,
        check: boundary,
    },
    Identity {
        id: "6.3-unit-variance",
        equation: "c_in and c_out give inputs and targets of variance 1",
        source: "Karras 2022, table 1",
        relative_to: "1; the target's variance is over c_out^2",
        tolerance: 1e-13,
        because: "squares and roots; c_skip takes up to 1e4 from 1",
        cost: 1,
        check: unit_variance,
    },
];

/// The end of a solver's run from the noise of a source.
fn draw_with(
    mixture: &MixtureOracle,
    shape: [usize; 3],
    schedule: &Schedule,
    grid: &StepGrid,
    solver: &mut dyn Solver,
    noise: &dyn Noise,
) -> Result<Array4<f64>> {
    let denoiser = Conditioned::new(mixture, Condition::none(1));
    let [c, h, w] = shape;
    let grid = LevelGrid::of_steps(grid, schedule)?;
    Ok(sample(&denoiser, &grid, solver, noise, [1, c, h, w], &mut |_| ControlFlow::Continue(()))?)
}

/// Ancestral sampling with every step of a schedule.
///
/// # Errors
/// If the library refuses it.
pub fn every_step(
    mixture: &Mixture,
    schedule: &Schedule,
    variance: Variance,
    noise: &dyn Noise,
) -> Result<Array4<f64>> {
    let grid = StepGrid::new(schedule.steps(), schedule.steps(), Spacing::Trailing, 0)?;
    let mut solver = Ddpm { variance, clip: Clip::None };
    draw_with(&mixture.oracle, mixture.shape, schedule, &grid, &mut solver, noise)
}

fn step(draw: &mut Draw) -> Result<f64> {
    let schedule = draw.schedule(2, 1000)?;
    let ((p, t), eta) = (draw.two_steps(&schedule, 1), draw.uniform(0.0, 1.0));
    let found = ddim_coefs(schedule.level(t), schedule.level(p), eta)?;
    let ((alpha, var_p), (_, var_t)) = (reference::steps(&schedule, 0, p), reference::steps(&schedule, 0, t));
    let s = eta * (var_p / var_t).sqrt() * reference::steps(&schedule, p, t).1.sqrt();
    let mut worst = Worst::default();
    worst.relative(found.of_x0, alpha);
    worst.relative(found.of_noise, s);
    // Where eta is near 1 and the step is long, 1 - abar_p - s^2 is a small difference.
    worst.see(found.of_eps * found.of_eps, var_p - s * s, var_p);
    Ok(worst.0)
}

fn ancestral(draw: &mut Draw) -> Result<f64> {
    let schedule = draw.schedule(2, 1000)?;
    let t = draw.whole(2, schedule.steps());
    let found = ddim_coefs(schedule.level(t), schedule.level(t - 1), 1.0)?;
    let ((of_s, before), (alpha, now)) = (reference::steps(&schedule, 0, t - 1), reference::steps(&schedule, 0, t));
    let beta = schedule.beta(t);
    let mut worst = Worst::default();
    // eps = (x_t - alpha x_0) / sigma.
    let of_xt = found.of_eps / now.sqrt();
    worst.relative(of_xt, (1.0 - beta).sqrt() * before / now);
    worst.see(found.of_x0 - of_xt * alpha, of_s * beta / now, found.of_x0);
    worst.relative(found.of_noise * found.of_noise, beta * before / now);
    Ok(worst.0)
}

fn marginal(draw: &mut Draw) -> Result<f64> {
    let schedule = draw.schedule(1, 1000)?;
    let ((p, t), eta) = (draw.two_steps(&schedule, 0), draw.uniform(0.0, 1.0));
    let found = ddim_coefs(schedule.level(t), schedule.level(p), eta)?;
    let (alpha, variance) = reference::steps(&schedule, 0, p);
    let mut worst = Worst::default();
    // x_t of 1.2 has eps itself, so the factor of x_0 is all of the mean.
    worst.relative(found.of_x0, alpha);
    worst.relative(found.of_eps.powi(2) + found.of_noise.powi(2), variance);
    Ok(worst.0)
}

fn trajectory(draw: &mut Draw) -> Result<f64> {
    let (schedule, mixture) = (draw.schedule(2, 40)?, draw.mixture((1, 3))?);
    let noise = SeededNoise::new(draw.seed());
    let expected = every_step(&mixture, &schedule, Variance::FixedSmall, &noise)?;
    let grid = StepGrid::new(schedule.steps(), schedule.steps(), Spacing::Trailing, 0)?;
    let mut solver = Ddim { eta: 1.0, clip: Clip::None, use_clipped_model_output: false };
    let found = draw_with(&mixture.oracle, mixture.shape, &schedule, &grid, &mut solver, &noise)?;
    let size = expected.iter().fold(1.0_f64, |size, v| size.max(v.abs()));
    let mut worst = Worst::default();
    for (found, expected) in flat(&found).iter().zip(flat(&expected)) {
        worst.see(*found, expected, size);
    }
    Ok(worst.0)
}

fn point(draw: &mut Draw) -> Result<f64> {
    let (schedule, mean) = (draw.schedule(2, 200)?, draw.normal());
    let last = draw.whole(1, schedule.steps() - 1);
    let steps = schedule.steps();
    // Some of the steps between T and the last one.
    let chosen = (last + 1..steps).filter(|_| draw.chance(0.3)).collect::<Vec<_>>();
    let grid: Vec<usize> = std::iter::once(steps).chain(chosen.into_iter().rev()).collect();
    let grid = StepGrid::from_steps(steps, grid)?.with_final_step(last)?;
    let model = MixtureOracle::gaussian([1, 1, 1], mean, 0.0)?;
    let noise = SeededNoise::new(draw.seed());
    let mut z = [0.0];
    noise.fill(tweedie_denoiser::Purpose::Initial, 0, &mut z)?;
    let found = draw_with(&model, [1, 1, 1], &schedule, &grid, &mut Ddim::default(), &noise)?;
    let ((of_t, var_t), (of_p, var_p)) = (reference::steps(&schedule, 0, steps), reference::steps(&schedule, 0, last));
    let eps = (z[0] - of_t * mean) / var_t.sqrt();
    let mut worst = Worst::default();
    let (signal, rest) = (of_p * mean, var_p.sqrt() * eps);
    worst.see(flat(&found)[0], signal + rest, signal.abs() + rest.abs());
    Ok(worst.0)
}

/// A fine schedule, Gaussian data on it, and grids of K and 2K steps.
fn two_grids(draw: &mut Draw) -> Result<(Schedule, f64, f64, [StepGrid; 2])> {
    const STEPS: usize = 800;
    let schedule = Schedule::new(&BetaSchedule::Linear { start: 1e-4, end: 0.02 * draw.uniform(0.8, 1.2) }, STEPS)?;
    let (mean, std) = (draw.uniform(-1.0, 1.0), draw.pick(&[0.3, 0.5, 2.0]) * draw.uniform(0.9, 1.1));
    let grid = |count| StepGrid::new(STEPS, count, Spacing::Trailing, 0).and_then(|grid| grid.with_final_step(4));
    let grids = [grid(100)?, grid(200)?];
    Ok((schedule, mean, std, grids))
}

fn first_order(draw: &mut Draw) -> Result<f64> {
    let (schedule, mean, std, grids) = two_grids(draw)?;
    let model = MixtureOracle::gaussian([1, 1, 1], mean, std)?;
    let noise = SeededNoise::new(draw.seed());
    let mut z = [0.0];
    noise.fill(tweedie_denoiser::Purpose::Initial, 0, &mut z)?;
    // The flow keeps the quantile: (x - alpha m) / sqrt(alpha^2 v + sigma^2) is constant.
    let of = |t: usize| {
        let (alpha, variance) = reference::steps(&schedule, 0, t);
        (alpha * mean, (alpha * alpha * std * std + variance).sqrt())
    };
    let ((centre_t, spread_t), (centre_p, spread_p)) = (of(schedule.steps()), of(4));
    let expected = centre_p + spread_p / spread_t * (z[0] - centre_t);
    let mut errors = [0.0; 2];
    for (error, grid) in errors.iter_mut().zip(&grids) {
        let found = draw_with(&model, [1, 1, 1], &schedule, grid, &mut Ddim::default(), &noise)?;
        *error = (flat(&found)[0] - expected).abs();
    }
    let mut worst = Worst::default();
    worst.see((errors[0] / errors[1]).log2(), 1.0, 1.0);
    Ok(worst.0)
}

fn inverts(draw: &mut Draw) -> Result<f64> {
    let (schedule, mean, std, grids) = two_grids(draw)?;
    let model = Conditioned::new(MixtureOracle::gaussian([1, 1, 1], mean, std)?, Condition::none(1));
    let level = schedule.level(4);
    let x = level.alpha() * (mean + std * draw.pick(&[-1.5, -1.0, 1.0, 1.5])) + level.sigma() * draw.uniform(-0.5, 0.5);
    let x = Array4::from_elem((1, 1, 1, 1), x);
    let mut errors = [0.0; 2];
    for (error, grid) in errors.iter_mut().zip(&grids) {
        let grid = &LevelGrid::of_steps(grid, &schedule)?;
        let encoded = ddim_encode(&model, grid, x.view())?;
        let given =
            tweedie_denoiser::ReplayNoise::new(encoded.mapv(|v| v as f32), ndarray::Array5::zeros((0, 1, 1, 1, 1)))?;
        let decoded =
            sample(&model, grid, &mut Ddim::default(), &given, [1, 1, 1, 1], &mut |_| ControlFlow::Continue(()))?;
        *error = (flat(&decoded)[0] - flat(&x)[0]).abs();
    }
    let mut worst = Worst::default();
    worst.see((errors[0] / errors[1]).log2(), 1.0, 1.0);
    Ok(worst.0)
}

fn boundary(draw: &mut Draw) -> Result<f64> {
    let (sigma_min, sigma_data) = (draw.log_uniform(1e-4, 0.1), draw.log_uniform(0.1, 2.0));
    let found = Preconditioning::consistency(sigma_min, sigma_min, sigma_data)?;
    let (x, output) = (draw.normal(), 1e3 * draw.normal());
    let mut worst = Worst::default();
    worst.relative(found.apply(x, output), x);
    // Beyond it, the network counts.
    let beyond = Preconditioning::consistency(2.0 * sigma_min, sigma_min, sigma_data)?;
    worst.holds(beyond.apply(x, output) != x);
    Ok(worst.0)
}

fn unit_variance(draw: &mut Draw) -> Result<f64> {
    let (sigma, sigma_data) = (draw.log_uniform(2e-3, 80.0), draw.log_uniform(0.1, 2.0));
    let found = Preconditioning::edm(sigma, sigma_data)?;
    let mut worst = Worst::default();
    // The input is c_in (x_0 + sigma eps).
    worst.see(found.c_in.powi(2) * (sigma_data.powi(2) + sigma.powi(2)), 1.0, 1.0);
    // The target is (x_0 - c_skip (x_0 + sigma eps)) / c_out.
    let of_x0 = (1.0 - found.c_skip) * sigma_data;
    let of_eps = found.c_skip * sigma;
    worst.see(of_x0.powi(2) + of_eps.powi(2), found.c_out.powi(2), found.c_out.powi(2));
    // A consistency model's coefficients by their formula (Song 2023, eq. 25).
    let low = sigma * draw.uniform(0.0, 0.9);
    let found = Preconditioning::consistency(sigma, low, sigma_data)?;
    let (above, squares) = (sigma - low, sigma_data * sigma_data);
    worst.relative(found.c_skip, squares / (above * above + squares));
    worst.relative(found.c_out, sigma_data * above / (sigma * sigma + squares).sqrt());
    Ok(worst.0)
}
