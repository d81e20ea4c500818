//! Single steps and whole runs of the ODE and SDE solvers against their equations, written out a second time.

mod common;

use std::cell::Cell;
use std::ops::ControlFlow;

use common::{From, Silence, largest_difference, plane, run, uniform_grid, uniform_schedule};
use ndarray::{Array4, ArrayView4, Axis, Slice, stack};
use tweedie_denoiser::{Denoiser, DenoiserError, MixtureOracle, Noise, Purpose, SeededNoise, ShiftedNoise};
use tweedie_samplers::{
    Churn, Clip, Compat, Ddim, Ddpm, DpmForm, DpmMultistep, DpmOptions, Euler, EulerAncestral, Heun, Solver,
    SolverSpec, sample,
};
use tweedie_schedule::{BetaSchedule, LevelGrid, NoiseLevel, Schedule, Spacing, StepGrid, Variance};

const SHAPE: [usize; 4] = [3, 2, 1, 1];

/// The samplers that draw noise by default.
const STOCHASTIC: [&str; 7] =
    ["ddpm", "euler-ancestral", "kdpm2-ancestral", "dpm++2m-sde", "dpm++3m-sde", "lcm", "consistency"];

/// The levels that a grid visits, from the first to the end.
fn levels(grid: &StepGrid, schedule: &Schedule) -> Vec<NoiseLevel> {
    grid.steps().iter().copied().chain([grid.final_step()]).map(|t| schedule.level(t)).collect()
}

/// Standard normal noise of a purpose for the batch.
fn normal(noise: &dyn Noise, purpose: Purpose) -> Array4<f64> {
    let samples: Vec<Array4<f64>> = (0..SHAPE[0])
        .map(|i| {
            let mut z = [0.0; 2];
            noise.fill(purpose, i, &mut z).unwrap();
            Array4::from_shape_vec((1, 2, 1, 1), z.to_vec()).unwrap()
        })
        .collect();
    stack(Axis(0), &samples.iter().map(|s| s.index_axis(Axis(0), 0)).collect::<Vec<_>>()).unwrap()
}

/// Grids of ordinary schedules that end at data, and one that ends at a noise.
fn cases() -> Vec<(Schedule, StepGrid)> {
    let linear = Schedule::new(&BetaSchedule::Linear { start: 1e-4, end: 0.02 }, 1000).unwrap();
    let cosine = Schedule::new(&BetaSchedule::cosine(), 1000).unwrap();
    let uniform = uniform_schedule(0.05, 80.0, 41);
    let ends_noisy = uniform_grid(&uniform, 20);
    vec![
        (linear, StepGrid::new(1000, 20, Spacing::Leading, 0).unwrap()),
        (cosine, StepGrid::new(1000, 12, Spacing::Trailing, 0).unwrap()),
        (uniform, ends_noisy),
    ]
}

/// `y -> y + (s' - s) (y - x_0) / s` in the variable `y = x / alpha`, and the state of a run after each move.
fn edm_states(
    oracle: &dyn Denoiser,
    levels: &[NoiseLevel],
    start: &Array4<f64>,
    mut step: impl FnMut(&dyn Fn(&Array4<f64>, f64) -> Array4<f64>, &Array4<f64>, f64, f64) -> Array4<f64>,
) -> Vec<Array4<f64>> {
    let slope = |y: &Array4<f64>, s: f64| {
        let level = NoiseLevel::from_edm_sigma(s).unwrap();
        (y - &oracle.denoise((y * level.alpha()).view(), level).unwrap()) / s
    };
    let mut y = start / levels[0].alpha();
    let moves = levels.windows(2);
    moves
        .map(|pair| {
            y = step(&slope, &y, pair[0].edm_sigma(), pair[1].edm_sigma());
            &y * pair[1].alpha()
        })
        .collect()
}

/// The states of a run of a solver.
fn states(
    denoiser: &dyn Denoiser,
    (schedule, grid): &(Schedule, StepGrid),
    solver: &mut dyn Solver,
    noise: &dyn Noise,
) -> Vec<Array4<f64>> {
    let mut states = Vec::new();
    let grid = LevelGrid::of_steps(grid, schedule).unwrap();
    sample(denoiser, &grid, solver, noise, SHAPE, &mut |info| {
        states.push(info.x.to_owned());
        ControlFlow::Continue(())
    })
    .unwrap();
    states
}

fn check(found: &[Array4<f64>], expected: &[Array4<f64>], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len());
    for (position, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = largest_difference(found, expected);
        assert!(error < tolerance, "{what}: off by {error:e} after move {position}");
    }
}

/// Euler's method in the EDM variable, DDIM with eta = 0 and DPM-Solver++ of order 1 are the same map.
#[test]
fn euler_is_the_edm_step_and_ddim() {
    let oracle = plane();
    for case in cases() {
        let start = normal(&SeededNoise::new(4), Purpose::Initial);
        let noise = From { start: start.clone(), steps: Silence };
        let found = states(&oracle, &case, &mut Euler::default(), &noise);
        let levels = levels(&case.1, &case.0);
        let expected = edm_states(&oracle, &levels, &start, |slope, y, s, next| y + slope(y, s) * (next - s));
        check(&found, &expected, 1e-9, "the step in the EDM variable");
        check(&found, &states(&oracle, &case, &mut Ddim::default(), &noise), 1e-13, "ddim");
        // One move to the data, or of a run of one, is of first order.
        let once =
            (case.0.clone(), StepGrid::from_steps(case.0.steps(), vec![30]).unwrap().with_final_step(9).unwrap());
        let first = states(&oracle, &once, &mut Euler::default(), &noise);
        check(&first, &states(&oracle, &once, &mut DpmMultistep::default(), &noise), 1e-13, "dpm++");
    }
}

/// The ancestral step in the EDM variable, ancestral sampling with the small variance and DDIM with eta = 1 are the same map.
#[test]
fn euler_ancestral_is_the_edm_step_and_ddpm() {
    let oracle = plane();
    for case in cases() {
        let noise = SeededNoise::new(6);
        let found = states(&oracle, &case, &mut EulerAncestral::default(), &noise);
        let mut draw = 0;
        let start = normal(&noise, Purpose::Initial);
        let expected = edm_states(&oracle, &levels(&case.1, &case.0), &start, |slope, y, from, to| {
            let up = (to * to * (from * from - to * to) / (from * from)).sqrt();
            let down = (to * to - up * up).sqrt();
            assert!((down - to * to / from).abs() < 1e-9);
            let z = normal(&noise, Purpose::Step(draw));
            draw += 1;
            y + slope(y, from) * (down - from) + z * up
        });
        check(&found, &expected, 1e-9, "the step in the EDM variable");
        check(&found, &states(&oracle, &case, &mut Ddpm::default(), &noise), 1e-12, "ddpm");
        let ddim = &mut Ddim { eta: 1.0, ..Ddim::default() };
        check(&found, &states(&oracle, &case, ddim, &noise), 1e-13, "ddim with eta = 1");
    }
}

/// Heun's method in the EDM variable, whose last step to s = 0 is Euler's.
#[test]
fn heun_is_the_trapezoidal_rule() {
    let oracle = plane();
    for case in cases() {
        let start = normal(&SeededNoise::new(8), Purpose::Initial);
        let noise = From { start: start.clone(), steps: Silence };
        let found = states(&oracle, &case, &mut Heun::default(), &noise);
        let expected = edm_states(&oracle, &levels(&case.1, &case.0), &start, |slope, y, s, next| {
            let first = slope(y, s);
            let euler = y + &first * (next - s);
            let factor = (s - next) / next.hypot(1.0);
            if next == 0.0 || factor > 20.0 { euler } else { y + (&first + slope(&euler, next)) * ((next - s) / 2.0) }
        });
        check(&found, &expected, 1e-9, "the step in the EDM variable");
    }
}

/// A network whose slope is off by 0.01 at one level only: the step adds at most ten times that. From `s` = 2000 it is Euler's, of
/// one call, where `alpha' s - sigma'` is above 20, and of two calls where it is just below.
#[test]
fn heun_does_not_magnify_errors() {
    let magnified = |low: f64| {
        let schedule = uniform_schedule(low, 2000.0, 2);
        let case = (schedule.clone(), uniform_grid(&schedule, 1));
        let start = Array4::from_elem((3, 2, 1, 1), 0.5);
        let noise = From { start, steps: Silence };
        let denoiser = |error: f64| {
            let (start, end) = (schedule.level(2), schedule.level(1));
            Of(move |lambda: f64| {
                // x_0 of 0, but for an error of the slope at the end: eps is off by -x_0 / s.
                if lambda > start.log_snr() / 4.0 + end.log_snr() / 4.0 { error * end.edm_sigma() } else { 0.0 }
            })
        };
        let run = |error| states(&denoiser(error), &case, &mut Heun::default(), &noise).swap_remove(0);
        largest_difference(&run(0.0), &run(0.01))
    };
    // alpha' s - sigma' = (2000 - s') / sqrt(1 + s'^2).
    assert_eq!(magnified(90.0), 0.0);
    let two_calls = magnified(105.0);
    let factor = (2000.0 - 105.0) / 105.0_f64.hypot(1.0);
    assert!((two_calls - 0.5 * factor * 0.01).abs() < 1e-9, "{two_calls}");
}

/// `multistep_dpm_solver_*_update` of diffusers and its choice of the order, written out; `third` is the factor of D2's term.
fn dpm_reference(
    denoiser: &dyn Denoiser,
    levels: &[NoiseLevel],
    start: &Array4<f64>,
    highest: usize,
    third: f64,
    noise: Option<&dyn Noise>,
) -> Vec<Array4<f64>> {
    let total = levels.len() - 1;
    let lambda = |i: usize| levels[i].alpha().ln() - levels[i].sigma().ln();
    let (mut x, mut m) = (start.clone(), Vec::new());
    (0..total)
        .map(|i| {
            m.push(denoiser.denoise(x.view(), levels[i]).unwrap());
            let few = total < 15;
            let order = match i {
                _ if i == 0 => 1,
                _ if i + 1 == total && (few || levels[total].sigma() == 0.0) => 1,
                _ if i == 1 || (i + 2 == total && few) => 2,
                _ => highest,
            };
            let h = lambda(i + 1) - lambda(i);
            let (a, ratio) = (levels[i + 1].alpha(), levels[i + 1].sigma() / levels[i].sigma());
            let r0 = if i > 0 { (lambda(i) - lambda(i - 1)) / h } else { f64::NAN };
            let d0 = m[i].clone();
            let d1_0 = if i > 0 { (&m[i] - &m[i - 1]) / r0 } else { d0.clone() };
            let e = (-h).exp() - 1.0;
            x = if let Some(noise) = noise {
                let e2 = 1.0 - (-2.0 * h).exp();
                let mut next = &x * (ratio * (-h).exp()) + &d0 * (a * e2);
                if order == 2 {
                    next = next + &d1_0 * (0.5 * a * e2);
                }
                next + normal(noise, Purpose::Step(i)) * (levels[i + 1].sigma() * e2.sqrt())
            } else {
                let first = &x * ratio - &d0 * (a * e);
                match order {
                    1 => first,
                    2 => first - &d1_0 * (0.5 * a * e),
                    _ => {
                        let r1 = (lambda(i - 1) - lambda(i - 2)) / h;
                        let d1_1 = (&m[i - 1] - &m[i - 2]) / r1;
                        let d1 = &d1_0 + &((&d1_0 - &d1_1) * (r0 / (r0 + r1)));
                        let d2 = (&d1_0 - &d1_1) / (r0 + r1);
                        first + &d1 * (a * (e / h + 1.0)) - &d2 * (third * a * ((e + h) / (h * h) - 0.5))
                    }
                }
            };
            x.clone()
        })
        .collect()
}

/// Runs of 1 to 24 moves against diffusers' rules: the first moves, the last two of short runs, and the one to the data.
#[test]
fn dpm_lowers_its_order_at_both_ends() {
    let oracle = plane();
    let linear = Schedule::new(&BetaSchedule::Linear { start: 1e-4, end: 0.02 }, 1000).unwrap();
    for moves in [1, 2, 3, 4, 5, 14, 15, 16, 24] {
        for final_step in [0, 3] {
            let grid = StepGrid::new(1000, moves, Spacing::Trailing, 0).unwrap().with_final_step(final_step).unwrap();
            let case = (linear.clone(), grid);
            let levels = levels(&case.1, &case.0);
            let noise = SeededNoise::new(moves as u64);
            let start = normal(&noise, Purpose::Initial);
            for (form, order, third) in
                [(DpmForm::Second, 2, 0.0), (DpmForm::Third, 3, 1.0), (DpmForm::ThirdExact, 3, 2.0)]
            {
                let found =
                    states(&oracle, &case, &mut DpmMultistep::new(DpmOptions::plus_plus(form), Clip::None), &noise);
                let expected = dpm_reference(&oracle, &levels, &start, order, third, None);
                check(&found, &expected, 1e-10, &format!("{form:?}, {moves} moves to step {final_step}"));
            }
            let found =
                states(&oracle, &case, &mut DpmMultistep::new(DpmOptions::sde(DpmForm::Second), Clip::None), &noise);
            let expected = dpm_reference(&oracle, &levels, &start, 2, 0.0, Some(&noise));
            check(&found, &expected, 1e-10, &format!("sde, {moves} moves to step {final_step}"));
        }
    }
}

/// A move without history is ancestral sampling with the small variance.
#[test]
fn first_sde_step_is_ancestral() {
    let schedule = Schedule::new(&BetaSchedule::cosine(), 1000).unwrap();
    for (from, to) in [(1000, 900), (500, 100), (40, 1), (1, 0)] {
        let grid = StepGrid::from_steps(1000, vec![from]).unwrap().with_final_step(to).unwrap();
        let case = (schedule.clone(), grid);
        let found = states(
            &plane(),
            &case,
            &mut DpmMultistep::new(DpmOptions::sde(DpmForm::Second), Clip::None),
            &SeededNoise::new(2),
        );
        let expected = states(&plane(), &case, &mut Ddpm::default(), &SeededNoise::new(2));
        check(&found, &expected, 1e-12, &format!("{from} to {to}"));
    }
}

/// A denoiser that says `value(lambda)` wherever it is asked.
struct Of<F>(F);

impl<F: Fn(f64) -> f64> Denoiser for Of<F> {
    fn denoise(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Array4<f64>, DenoiserError> {
        Ok(Array4::from_elem(x.dim(), (self.0)((level.alpha() / level.sigma()).ln())))
    }
}

/// The second move by hand: h = ln 2, r_0 = 2, m_0 = 3, m_1 = 1, so u = 1, and E = 3/4.
#[test]
fn dpm_sde_step_by_hand() {
    // s = sigma / alpha = 8, 2, 1; lambda = -ln s. Fifteen moves, so that the second is not the last.
    let noises: Vec<f64> = [8.0, 2.0, 1.0].into_iter().chain((1..=13).map(|k| 0.5_f64.powi(k))).collect();
    let betas = noises.iter().rev().scan(0.0, |below: &mut f64, &s| {
        let beta = (s * s - *below * *below) / (1.0 + s * s);
        *below = s;
        Some(beta)
    });
    let schedule = Schedule::new(&BetaSchedule::Custom(betas.collect()), 16).unwrap();
    let grid = StepGrid::from_steps(16, (2..=16).rev().collect()).unwrap().with_final_step(1).unwrap();
    let denoiser = Of(|lambda: f64| if lambda < -1.0 { 1.0 } else { 3.0 });
    let noise = SeededNoise::new(11);
    let case = (schedule, grid);
    let found = states(&denoiser, &case, &mut DpmMultistep::new(DpmOptions::sde(DpmForm::Second), Clip::None), &noise);
    let z = normal(&noise, Purpose::Step(1));
    // alpha = 1 / sqrt(1 + s^2), sigma = s / sqrt(1 + s^2): from (1, 2) / sqrt 5 to (1, 1) / sqrt 2.
    let ratio = (0.5_f64.sqrt()) / (2.0 / 5.0_f64.sqrt());
    let mean = &found[0] * (ratio * 0.5) + 0.5_f64.sqrt() * 0.75 * 3.5;
    let expected = mean + z * (0.5_f64.sqrt() * 0.75_f64.sqrt());
    let error = largest_difference(&found[1], &expected);
    assert!(error < 1e-12, "off by {error:e}");
}

/// Calls of the denoiser, counted.
struct Counting<'a> {
    inner: &'a MixtureOracle,
    calls: Cell<usize>,
}

impl Denoiser for Counting<'_> {
    fn denoise(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Array4<f64>, DenoiserError> {
        self.calls.set(self.calls.get() + 1);
        self.inner.denoise(x, level)
    }
}

/// One call a move; Heun's method two but for the last, 2 K - 1; PLMS two in the first, PNDM four in each of three. Noise is drawn by the stochastic samplers alone.
#[test]
fn calls_of_the_network() {
    let oracle = plane();
    let schedule = Schedule::new(&BetaSchedule::Linear { start: 1e-4, end: 0.02 }, 1000).unwrap();
    let grid = StepGrid::new(1000, 17, Spacing::Trailing, 0).unwrap();
    for spec in SolverSpec::ALL {
        let counting = Counting { inner: &oracle, calls: Cell::new(0) };
        let mut solver = spec.build(Clip::None, Compat::Published).unwrap();
        let stochastic = STOCHASTIC.contains(&spec.name());
        let seeded = SeededNoise::new(1);
        let silent = From { start: normal(&seeded, Purpose::Initial), steps: Silence };
        let noise: &dyn Noise = if stochastic { &seeded } else { &silent };
        run(&counting, &grid, &schedule, &mut *solver, noise, SHAPE);
        let expected = match spec.name() {
            "heun" | "kdpm2" | "kdpm2-ancestral" => 33,
            "pndm" => 26,
            "plms" => 18,
            _ => 17,
        };
        assert_eq!(counting.calls.get(), expected, "{}", spec.name());
    }
}

/// A run has the same bits after another one, and for a sample alone; what a solver remembers is of its own run.
#[test]
fn runs_do_not_depend_on_each_other() {
    let oracle = plane();
    let schedule = Schedule::new(&BetaSchedule::cosine(), 200).unwrap();
    let grid = StepGrid::new(200, 20, Spacing::Linspace, 0).unwrap();
    let noise = SeededNoise::new(9);
    for spec in SolverSpec::ALL {
        let mut solver = spec.build(Clip::Dynamic { ratio: 0.9, max: 1.5 }, Compat::Published).unwrap();
        let all = run(&oracle, &grid, &schedule, &mut *solver, &noise, [4, 2, 1, 1]);
        for first in [0, 3] {
            let one = run(&oracle, &grid, &schedule, &mut *solver, &ShiftedNoise::new(noise, first), [1, 2, 1, 1]);
            assert_eq!(one, all.slice_axis(Axis(0), Slice::from(first..first + 1)), "{}: {first}", spec.name());
        }
    }
}

/// From a level without any signal every sampler takes a finite first step: that of its first-order form.
#[test]
fn samplers_start_without_signal() {
    let oracle = plane();
    let schedule = Schedule::new(&BetaSchedule::Linear { start: 1e-4, end: 0.02 }, 1000).unwrap();
    let schedule = schedule.rescaled_zero_terminal_snr().unwrap();
    let case = (schedule.clone(), StepGrid::new(1000, 25, Spacing::Trailing, 0).unwrap());
    let noise = SeededNoise::new(3);
    let first = |solver: &mut dyn Solver| states(&oracle, &case, solver, &noise).swap_remove(0);
    let (ode, sde) = (first(&mut Ddim::default()), first(&mut Ddpm::default()));
    for spec in SolverSpec::ALL {
        let found = states(&oracle, &case, &mut *spec.build(Clip::None, Compat::Published).unwrap(), &noise);
        let expected = if STOCHASTIC.contains(&spec.name()) { &sde } else { &ode };
        // Consistency sampling leaves out a trace of the noise, or leaves in one of the state.
        let tolerance = if matches!(spec, SolverSpec::Consistency(_)) { 1e-5 } else { 1e-12 };
        assert!(largest_difference(&found[0], expected) < tolerance, "{}", spec.name());
        // The result is a plausible point of the mixture.
        let density = oracle.log_density(found[24].view(), schedule.level(30), &tweedie_denoiser::Condition::none(3));
        assert!(density.unwrap().into_iter().all(|d| d > -12.0), "{}: {}", spec.name(), found[24]);
    }
}

/// Every solver clips the estimate that it is given, and Euler and Heun take the slope of the clipped one.
#[test]
fn clips_reach_the_solvers() {
    let denoiser = Of(|_| 3.0);
    let schedule = Schedule::new(&BetaSchedule::Linear { start: 1e-4, end: 0.02 }, 100).unwrap();
    let grid = StepGrid::from_steps(100, vec![60]).unwrap().with_final_step(30).unwrap();
    let clip = Clip::Range(1.0);
    let start = normal(&SeededNoise::new(5), Purpose::Initial);
    let noise = From { start: start.clone(), steps: SeededNoise::new(5) };
    let (t, s) = (schedule.level(60), schedule.level(30));
    let to_one = &start * (s.sigma() / t.sigma()) + (s.alpha() - t.alpha() * s.sigma() / t.sigma());
    let solvers: [Box<dyn Solver>; 5] = [
        Box::new(Euler { clip, churn: Churn::NONE }),
        Box::new(Heun { clip, churn: Churn::NONE, compat: Compat::Published }),
        Box::new(DpmMultistep::new(DpmOptions::plus_plus(DpmForm::Second), clip)),
        Box::new(DpmMultistep::new(DpmOptions::plus_plus(DpmForm::Third), clip)),
        Box::new(DpmMultistep::new(DpmOptions::plus_plus(DpmForm::ThirdExact), clip)),
    ];
    for mut solver in solvers {
        let found = run(&denoiser, &grid, &schedule, &mut *solver, &noise, SHAPE);
        assert!(largest_difference(&found, &to_one) < 1e-12, "{}", solver.name());
    }
    let ancestral = run(&denoiser, &grid, &schedule, &mut Ddpm { variance: Variance::FixedSmall, clip }, &noise, SHAPE);
    let solvers: [Box<dyn Solver>; 2] =
        [Box::new(EulerAncestral { clip }), Box::new(DpmMultistep::new(DpmOptions::sde(DpmForm::Second), clip))];
    for mut solver in solvers {
        let found = run(&denoiser, &grid, &schedule, &mut *solver, &noise, SHAPE);
        assert!(largest_difference(&found, &ancestral) < 1e-12, "{}", solver.name());
    }
}
