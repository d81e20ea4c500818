//! The samplers of the variance-exploding form: their equations written out a second time, their orders, and what they draw.

mod common;

use std::ops::ControlFlow;

use common::{From, Silence, draws, flow, plane, rms_difference, run, uniform_grid, uniform_schedule};
use ndarray::Array4;
use tweedie_denoiser::{Denoiser, Noise, Purpose, SeededNoise};
use tweedie_eval::two_sample;
use tweedie_samplers::{
    Churn, Clip, Compat, EdmProcess, Euler, Heun, Kdpm2, Kdpm2Ancestral, Lms, Process, SchedulerSpec, Solver,
    SolverSpec, sample,
};
use tweedie_schedule::{BetaSchedule, GridEnd, LevelGrid, NoiseLevel, Schedule, SigmaRule, Spacing, StepGrid};

const SHAPE: [usize; 4] = [3, 2, 1, 1];

/// `(y - x_0) / s` at `y = x / alpha`.
fn slope(y: &Array4<f64>, s: f64) -> Array4<f64> {
    let level = NoiseLevel::from_edm_sigma(s).unwrap();
    (y - &plane().denoise((y * level.alpha()).view(), level).unwrap()) / s
}

/// Standard normal noise of a purpose for the batch.
fn normal(noise: &dyn Noise, purpose: Purpose) -> Array4<f64> {
    let mut z = Array4::zeros((3, 2, 1, 1));
    for (i, mut of_sample) in z.outer_iter_mut().enumerate() {
        let mut values = [0.0; 2];
        noise.fill(purpose, i, &mut values).unwrap();
        of_sample.iter_mut().zip(values).for_each(|(to, z)| *to = z);
    }
    z
}

/// Grids with an end at the data and at a noise.
fn grids() -> Vec<LevelGrid> {
    let linear = Schedule::new(&BetaSchedule::Linear { start: 1e-4, end: 0.02 }, 1000).unwrap();
    let uniform = uniform_schedule(0.05, 80.0, 41);
    let steps = StepGrid::new(1000, 20, Spacing::Leading, 0).unwrap();
    let levels = |steps, schedule| LevelGrid::of_steps(&steps, schedule).unwrap();
    vec![levels(steps, &linear), levels(uniform_grid(&uniform, 20), &uniform)]
}

/// Every state of a run against a rule for `y` that is given `y`, `s` and `s'`.
fn check(solver: &mut dyn Solver, noise: &dyn Noise, mut rule: impl FnMut(&Array4<f64>, f64, f64) -> Array4<f64>) {
    for grid in grids() {
        let mut y = normal(noise, Purpose::Initial) / grid.moves()[0].from.alpha();
        sample(&plane(), &grid, solver, noise, SHAPE, &mut |info| {
            let on = grid.moves()[info.position];
            y = rule(&y, on.from.edm_sigma(), on.to.edm_sigma());
            for (found, y) in info.x.iter().zip(&y) {
                let expected = y * on.to.alpha();
                assert!((found - expected).abs() < 1e-9, "{found} instead of {expected} in move {}", info.position);
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    }
}

fn silent() -> impl Noise {
    From { start: normal(&SeededNoise::new(8), Purpose::Initial), steps: Silence }
}

#[test]
fn kdpm2_is_the_midpoint_rule() {
    check(&mut Kdpm2::default(), &silent(), |y, s, next| {
        let first = slope(y, s);
        let middle = (s * next).sqrt();
        if next == 0.0 {
            return y - &(first * s);
        }
        y + slope(&(y + &(first * (middle - s))), middle) * (next - s)
    });
}

#[test]
fn kdpm2_ancestral_step_by_hand() {
    let noise = SeededNoise::new(9);
    let mut moves = 0;
    check(&mut Kdpm2Ancestral::default(), &noise, |y, s, next| {
        let first = slope(y, s);
        if next == 0.0 {
            moves = 0;
            return y - &(first * s);
        }
        let up = (next.powi(2) * (s.powi(2) - next.powi(2)) / s.powi(2)).sqrt();
        let down = (next.powi(2) - up.powi(2)).sqrt();
        let middle = (s * down).sqrt();
        let z = normal(&noise, Purpose::Step(moves));
        moves += 1;
        y + slope(&(y + &(first * (middle - s))), middle) * (down - s) + z * up
    });
}

/// The first move of LMS is Euler's, the second the Adams-Bashforth rule for two slopes on uneven steps.
#[test]
fn lms_begins_by_adams_and_bashforth() {
    let mut before: Option<(f64, Array4<f64>)> = None;
    check(&mut Lms::new(2).unwrap(), &silent(), |y, s, next| {
        let now = slope(y, s);
        let h = next - s;
        // A run of the second grid begins anew, at a higher noise than the last one ended.
        let step = match before.take().filter(|(at, _)| *at > s) {
            Some((at, old)) => &now * h + (&now - &old) * (0.5 * h * h / (s - at)),
            None => &now * h,
        };
        before = Some((s, now));
        y + step
    });
}

const CHURN: Churn = Churn { amount: 4.0, s_min: 0.1, s_max: 30.0, noise: 1.01 };

/// Karras 2022, Algorithm 2, line by line.
fn algorithm_2(noise: &SeededNoise, second_call: bool) -> impl FnMut(&Array4<f64>, f64, f64) -> Array4<f64> {
    let (noise, mut draws) = (*noise, 0);
    move |y, s, next| {
        let gamma =
            if (CHURN.s_min..=CHURN.s_max).contains(&s) { (CHURN.amount / 20.0).min(2f64.sqrt() - 1.0) } else { 0.0 };
        let raised = s * (1.0 + gamma);
        let mut y = y.clone();
        if gamma > 0.0 {
            y = y + normal(&noise, Purpose::Step(draws)) * (CHURN.noise * (raised * raised - s * s).sqrt());
            draws += 1;
        }
        let first = slope(&y, raised);
        let euler = &y + &(&first * (next - raised));
        // The first grid ends here.
        draws = if next == 0.0 { 0 } else { draws };
        if next == 0.0 || !second_call {
            return euler;
        }
        y + (&first + slope(&euler, next)) * ((next - raised) / 2.0)
    }
}

#[test]
fn churn_raises_the_level_by_fresh_noise() {
    let noise = SeededNoise::new(10);
    check(&mut Euler { churn: CHURN, clip: Clip::None }, &noise, algorithm_2(&noise, false));
    let mut heun = Heun { churn: CHURN, ..Heun::default() };
    check(&mut heun, &noise, algorithm_2(&noise, true));
    for wrong in [
        Churn { amount: -1.0, ..CHURN },
        Churn { amount: f64::INFINITY, ..CHURN },
        Churn { s_min: f64::NAN, ..CHURN },
        Churn { s_max: -1.0, ..CHURN },
        Churn { noise: f64::INFINITY, ..CHURN },
    ] {
        assert!(SolverSpec::Euler { churn: wrong }.build(Clip::None, Compat::Published).is_err(), "{wrong:?}");
    }
}

/// Karras 2022, Algorithm 1: Heun's method on the levels of eq. 5 from 80 down to 0.002 and 0, read from a network by table 1.
#[test]
fn edm_heun_is_algorithm_1() {
    let edm = EdmProcess::default();
    let spec = SchedulerSpec {
        solver: SolverSpec::heun(),
        process: Process::Edm(edm),
        sigmas: SigmaRule::karras(),
        clip: Clip::None,
        ..SchedulerSpec::default()
    };
    let mut plan = spec.plan(9).unwrap();
    assert!(plan.schedule().is_none() && spec.schedule().is_err());
    let levels: Vec<f64> = (0..9)
        .map(|i| {
            let root = |s: f64| s.powf(1.0 / 7.0);
            (root(80.0) + i as f64 / 8.0 * (root(0.002) - root(80.0))).powi(7)
        })
        .chain([0.0])
        .collect();
    let noise = silent();
    let mut y = normal(&noise, Purpose::Initial) * 80.0_f64.hypot(1.0);
    let oracle = plane();
    let bridge = plan.bridge(tweedie_schedule::TimestepMapping::ZeroBased);
    let grid = plan.grid.clone();
    sample(&oracle, &grid, plan.solver.as_mut(), &noise, SHAPE, &mut |info| {
        let (s, next) = (levels[info.position], levels[info.position + 1]);
        let at = bridge.at(grid.moves()[info.position].from).unwrap();
        assert!((at.number - 0.25 * s.ln()).abs() < 1e-9);
        let first = slope(&y, s);
        let euler = &y + &(&first * (next - s));
        // A first step of two calls would multiply errors by more than 20 from 57 on.
        let factor = (s - next) / next.hypot(1.0);
        y = if next == 0.0 || factor > 20.0 {
            euler
        } else {
            &y + &((&first + slope(&euler, next)) * ((next - s) / 2.0))
        };
        for (found, y) in info.x.iter().zip(&y) {
            assert!(
                (found - y / next.hypot(1.0)).abs() < 1e-9,
                "move {}: {found} instead of {}",
                info.position,
                y / next.hypot(1.0)
            );
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    let standing = SchedulerSpec { end: GridEnd::FirstStep, ..spec.clone() }.plan(9).unwrap();
    assert_eq!(standing.grid.moves()[8].from, standing.grid.moves()[8].to);
    assert!(SchedulerSpec { sigmas: SigmaRule::Steps, ..spec }.plan(9).is_err());
}

/// The first state is sigma z for linspace and trailing, z for leading; sigmas by a rule are for these samplers only.
#[test]
fn the_first_state_has_the_scale_of_its_spacing() {
    let spec = |solver, spacing| SchedulerSpec { solver, spacing, ..SchedulerSpec::default() };
    for solver in [SolverSpec::euler(), SolverSpec::heun(), SolverSpec::lms(), SolverSpec::Kdpm2] {
        for spacing in [Spacing::Linspace, Spacing::Trailing] {
            let plan = spec(solver, spacing).plan(5).unwrap();
            assert_eq!(plan.grid.start(), plan.grid.moves()[0].from.sigma());
        }
        assert_eq!(spec(solver, Spacing::Leading).plan(5).unwrap().grid.start(), 1.0);
        let ruled = SchedulerSpec { sigmas: SigmaRule::karras(), ..spec(solver, Spacing::Linspace) };
        assert_eq!(ruled.plan(5).unwrap().grid.len(), 5);
    }
    assert_eq!(spec(SolverSpec::ddim(), Spacing::Trailing).plan(5).unwrap().grid.start(), 1.0);
    let ruled = SchedulerSpec { sigmas: SigmaRule::Beta, ..spec(SolverSpec::ddim(), Spacing::Trailing) };
    assert!(ruled.plan(5).unwrap_err().to_string().contains("ddim cannot take its noise levels by the rule beta"));
}

/// The order while 256 moves are halved, within 0.12; with fewer of them the first moves, of lower orders, show.
#[test]
fn orders_of_the_sigma_family() {
    let (oracle, schedule) = (plane(), uniform_schedule(0.02, 1000.0, 2049));
    let (top, bottom) = (schedule.level(2049), schedule.level(1));
    let start = draws(&oracle, top, 8, 7);
    let exact = flow(&oracle, &start, top, bottom, 800);
    let lms = |order| SolverSpec::Lms { order };
    for (spec, order) in [(lms(1), 1.0), (lms(2), 2.0), (lms(3), 3.0), (lms(4), 4.0), (SolverSpec::Kdpm2, 2.0)] {
        let mut solver = spec.build(Clip::None, Compat::Published).unwrap();
        let noise = From { start: start.clone(), steps: Silence };
        let errors = [128, 256, 512].map(|moves| {
            rms_difference(
                &run(&oracle, &uniform_grid(&schedule, moves), &schedule, &mut *solver, &noise, [8, 2, 1, 1]),
                &exact,
            )
        });
        let found = (errors[1] / errors[2]).log2();
        println!("{} {order}: {found:.3} {errors:?}", spec.name());
        assert!((found - order).abs() < 0.12, "{} of order {order}: {found} from {errors:?}", spec.name());
    }
}

/// What the stochastic ones draw against exact draws, as in `stochastic_samplers_draw_the_mixture`; and noise of the wrong size.
#[test]
fn churned_samplers_draw_the_mixture() {
    const COUNT: usize = 4000;
    let (oracle, schedule) = (plane(), uniform_schedule(0.05, 80.0, 97));
    let exact = draws(&oracle, schedule.level(1), COUNT, 2);
    let start = draws(&oracle, schedule.level(97), COUNT, 1);
    let p_value = |solver: &mut dyn Solver| {
        let noise = From { start: start.clone(), steps: SeededNoise::new(41) };
        let found = run(&oracle, &uniform_grid(&schedule, 48), &schedule, solver, &noise, [COUNT, 2, 1, 1]);
        two_sample(found.view(), exact.view(), 16, 5).unwrap().p_value
    };
    let churn = Churn { amount: 20.0, ..Churn::NONE };
    let solvers: [(&str, Box<dyn Solver>); 3] = [
        ("heun", Box::new(Heun { churn, ..Heun::default() })),
        ("euler", Box::new(Euler { churn: Churn { amount: 4.0, ..churn }, clip: Clip::None })),
        ("kdpm2-ancestral", Box::new(Kdpm2Ancestral::default())),
    ];
    for (name, mut solver) in solvers {
        let p = p_value(&mut *solver);
        assert!(p > 1e-6, "{name}: p = {p:e}");
    }
    let p = p_value(&mut Heun { churn: Churn { noise: 1.5, ..churn }, ..Heun::default() });
    assert!(p < 1e-6, "half as much noise again: p = {p:e}");
}
