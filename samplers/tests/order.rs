//! The measured order of convergence of every sampler (FORMULAS 6.2): the error while the step is halved, on grids uniform in
//! the log-SNR, from an exact state at the highest noise, down to a noise that stays.
//!
//! Deterministic samplers are compared with the probability flow itself: in closed form on a Gaussian, by a Runge-Kutta method
//! on a mixture. The law of what a stochastic one draws is computed without drawing: on Gaussian data its result is linear in
//! the noise, so its mean and variance follow from one run for each of the noises it uses.

mod common;

use common::{
    From, Silence, coupled, draws, flow, largest_difference, median_distance, plane, rms_difference, run, uniform_grid,
    uniform_schedule,
};
use ndarray::{Array4, Axis};
use tweedie_denoiser::{DenoiserError, MixtureOracle, Noise, Purpose};
use tweedie_samplers::{
    Clip, Compat, Ddim, Ddpm, DpmForm, DpmMultistep, DpmOptions, DpmSlope, EulerAncestral, GroupSize, Lowering, Path,
    PndmStart, SinglestepOptions, Solver, SolverSpec, UniPcB, UniPcOptions,
};
use tweedie_schedule::{NoiseLevel, Schedule, Variance};

/// The noises `sigma / alpha` that the ODE is followed between.
const HIGHEST: f64 = 1000.0;
const LOWEST: f64 = 0.02;

/// The data of the stochastic samplers.
const MEAN: f64 = 0.7;
const STD: f64 = 0.4;

/// Deterministic solvers and their orders.
const ORDERS: [(SolverSpec, f64); 17] = [
    (SolverSpec::ddim(), 1.0),
    (SolverSpec::euler(), 1.0),
    (SolverSpec::heun(), 2.0),
    (SolverSpec::Dpm(DpmOptions::plus_plus(DpmForm::Second)), 2.0),
    // As published, with half of the quadratic term.
    (SolverSpec::Dpm(DpmOptions::plus_plus(DpmForm::Third)), 2.0),
    (SolverSpec::Dpm(DpmOptions::plus_plus(DpmForm::ThirdExact)), 3.0),
    (SolverSpec::Dpm(DpmOptions::noise(DpmForm::First)), 1.0),
    (SolverSpec::Dpm(DpmOptions::noise(DpmForm::Second)), 2.0),
    (SolverSpec::Dpm(DpmOptions { slope: DpmSlope::Heun, ..DpmOptions::noise(DpmForm::Second) }), 2.0),
    (SolverSpec::deis(), 2.0),
    (SolverSpec::Deis { form: DpmForm::Third, lowering: Lowering::ShortRuns }, 3.0),
    (SolverSpec::DpmSinglestep(SinglestepOptions::plus_plus(GroupSize::Two)), 2.0),
    // The weights of their means are for moves of equal length in s, and these are of equal length in its logarithm.
    (SolverSpec::pndm(PndmStart::Multistep), 2.0),
    (SolverSpec::pndm(PndmStart::RungeKutta), 2.0),
    (SolverSpec::UniPc(UniPcOptions::new(1)), 2.0),
    (SolverSpec::UniPc(UniPcOptions::new(2)), 3.0),
    (SolverSpec::UniPc(UniPcOptions { b: UniPcB::Length, ..UniPcOptions::new(2) }), 3.0),
];

/// The slope of ln(error) over ln(1 / moves) by least squares, for numbers of moves that double.
fn slope(errors: &[f64]) -> f64 {
    let centre = 0.5 * (errors.len() - 1) as f64;
    let moment = |f: &dyn Fn(usize) -> f64| (0..errors.len()).map(|i| (i as f64 - centre) * f(i)).sum::<f64>();
    -moment(&|i| errors[i].log2()) / moment(&|i| i as f64)
}

/// The errors for numbers of moves, against the exact states.
fn errors(
    solver: &mut dyn Solver,
    oracle: &MixtureOracle,
    schedule: &Schedule,
    (start, exact): (&Array4<f64>, &Array4<f64>),
    moves: &[usize],
) -> Vec<f64> {
    let noise = From { start: start.clone(), steps: Silence };
    let shape = [start.len_of(Axis(0)), 2, 1, 1];
    let error = |&moves: &usize| {
        let found = run(oracle, &uniform_grid(schedule, moves), schedule, solver, &noise, shape);
        rms_difference(&found, exact)
    };
    moves.iter().map(error).collect()
}

/// Each solver has its order on a mixture with full covariances: the slope over three halvings lies within 0.12 of it, and each
/// halving within 0.2.
#[test]
fn orders_on_a_mixture() {
    let (oracle, schedule) = (plane(), uniform_schedule(LOWEST, HIGHEST, 2049));
    let start = draws(&oracle, schedule.level(2049), 8, 7);
    let exact = flow(&oracle, &start, schedule.level(2049), schedule.level(1), 800);
    let coarse = flow(&oracle, &start, schedule.level(2049), schedule.level(1), 400);
    assert!(largest_difference(&exact, &coarse) < 2e-7, "{:e}", largest_difference(&exact, &coarse));
    for (spec, order) in ORDERS {
        let mut solver = spec.build(Clip::None, Compat::Published).unwrap();
        let errors = errors(&mut *solver, &oracle, &schedule, (&start, &exact), &[64, 128, 256, 512]);
        let found = slope(&errors);
        assert!((found - order).abs() < 0.12, "{}: order {found} from {errors:?}", spec.name());
        for pair in errors.windows(2) {
            let found = (pair[0] / pair[1]).log2();
            assert!((found - order).abs() < 0.2, "{}: order {found} in {errors:?}", spec.name());
        }
    }
}

/// The same on a Gaussian, whose flow keeps `(x_t - alpha m) / sqrt(alpha^2 lambda + sigma^2)` in each direction. The leading
/// error of the exact third-order form is 0 there: its order is 3 or more.
#[test]
fn orders_on_a_gaussian() {
    let (mean, stds) = ([0.7, -0.4], [0.3, 1.1]);
    let oracle = MixtureOracle::gaussian([2, 1, 1], mean.to_vec(), stds.to_vec()).unwrap();
    let schedule = uniform_schedule(LOWEST, HIGHEST, 2049);
    let (top, bottom) = (schedule.level(2049), schedule.level(1));
    let start = draws(&oracle, top, 8, 3);
    let mut exact = start.clone();
    for mut state in exact.outer_iter_mut() {
        for (i, x) in state.iter_mut().enumerate() {
            let spread = |level: NoiseLevel| (level.alpha() * stds[i]).hypot(level.sigma());
            *x = bottom.alpha() * mean[i] + (*x - top.alpha() * mean[i]) * spread(bottom) / spread(top);
        }
    }
    for (spec, order) in ORDERS {
        let mut solver = spec.build(Clip::None, Compat::Published).unwrap();
        let errors = errors(&mut *solver, &oracle, &schedule, (&start, &exact), &[64, 128, 256, 512]);
        let found = slope(&errors);
        assert!(found > order - 0.12, "{}: order {found} from {errors:?}", spec.name());
        assert!(found < order + 0.12 || order == 3.0, "{}: order {found} from {errors:?}", spec.name());
    }
}

/// Noise that is 1 in one draw for one sample and 0 elsewhere: sample 0 has none, sample `k` has its 1 in draw `k - 1`, where
/// draw 0 is the first state.
struct Impulses;

impl Noise for Impulses {
    fn fill(&self, purpose: Purpose, sample: usize, out: &mut [f64]) -> Result<(), DenoiserError> {
        let draw = match purpose {
            Purpose::Initial => 1,
            Purpose::Step(k) => k + 2,
        };
        out.fill(if sample == draw { 1.0 } else { 0.0 });
        Ok(())
    }
}

/// The mean and the variance of what a sampler draws, for data `N(MEAN, STD^2)`, from one run per draw of noise.
fn law(solver: &mut dyn Solver, schedule: &Schedule, moves: usize) -> (f64, f64) {
    let oracle = MixtureOracle::gaussian([1, 1, 1], MEAN, STD).unwrap();
    let found = run(&oracle, &uniform_grid(schedule, moves), schedule, solver, &Impulses, [moves + 2, 1, 1, 1]);
    let mean = found[[0, 0, 0, 0]];
    (mean, found.iter().skip(1).map(|x| (x - mean).powi(2)).sum())
}

/// The bias of the variance falls with the step at the weak order of the sampler: within 0.12 over three halvings. The mean has
/// no bias but that of the first state, whose mean is 0 and not `alpha m`.
#[test]
fn weak_orders_on_a_gaussian() {
    let schedule = uniform_schedule(0.1, 1e4, 2049);
    let level = schedule.level(1);
    let (mean, var) = (level.alpha() * MEAN, (level.alpha() * STD).powi(2) + level.sigma().powi(2));
    let ancestral = |variance| Box::new(Ddpm { variance, clip: Clip::None });
    let dpm = |options| -> Box<dyn Solver> { Box::new(DpmMultistep::new(options, Clip::None)) };
    let noise = |form| DpmOptions { path: Path::Sde, ..DpmOptions::noise(form) };
    let solvers: [(Box<dyn Solver>, f64); 11] = [
        (ancestral(Variance::FixedSmall), 1.0),
        (ancestral(Variance::FixedLarge), 1.0),
        (ancestral(Variance::Interpolated { fraction: 0.3 }), 1.0),
        (Box::new(Ddim { eta: 1.0, ..Ddim::default() }), 1.0),
        (Box::new(Ddim { eta: 0.5, ..Ddim::default() }), 1.0),
        (Box::new(EulerAncestral::default()), 1.0),
        (Box::new(DpmMultistep::new(DpmOptions::sde(DpmForm::Second), Clip::None)), 2.0),
        (dpm(DpmOptions { slope: DpmSlope::Heun, ..DpmOptions::sde(DpmForm::Second) }), 2.0),
        (dpm(DpmOptions::sde(DpmForm::Third)), 2.0),
        (dpm(noise(DpmForm::Second)), 2.0),
        // Of a deterministic one it is the law of its map.
        (Box::new(DpmMultistep::default()), 2.0),
    ];
    for (mut solver, order) in solvers {
        // Half of the quadratic term is a small constant, which shows later.
        let coarsest = if solver.name() == "dpm++3m-sde" && order == 2.0 { 128 } else { 64 };
        let laws = [1, 2, 4, 8].map(|times| law(&mut *solver, &schedule, times * coarsest));
        for law in laws {
            assert!((law.0 - mean).abs() < 5e-5, "{}: mean {} instead of {mean}", solver.name(), law.0);
        }
        let bias = laws.map(|law| (law.1 - var).abs());
        let found = slope(&bias);
        assert!((found - order).abs() < 0.12, "{}: order {found} from {bias:?}", solver.name());
    }
}

/// Diffusers' slip of sign leaves a bias of first order, more than fifty times that of the published form.
#[test]
fn a_slip_of_sign_is_of_first_order() {
    let schedule = uniform_schedule(0.1, 1e4, 2049);
    let level = schedule.level(1);
    let var = (level.alpha() * STD).powi(2) + level.sigma().powi(2);
    let bias = |form| {
        let mut solver = DpmMultistep::new(DpmOptions::sde(form), Clip::None);
        [128, 256, 512].map(|moves| (law(&mut solver, &schedule, moves).1 - var).abs())
    };
    let (slipped, published) = (bias(DpmForm::ThirdDiffusers), bias(DpmForm::Third));
    assert!((slope(&slipped) - 1.0).abs() < 0.2, "{slipped:?}");
    assert!(slipped[2] > 50.0 * published[2], "{slipped:?}, {published:?}");
}

/// The distance to the path of a fine run under the same noise falls at the strong order 1, for the SDE form of DPM-Solver++ too:
/// its higher order is that of the law. The median over 64 paths, since the mean square is that of the few which end at another
/// component; within 0.2 over three halvings.
#[test]
fn strong_orders_on_a_mixture() {
    const FINEST: usize = 4096;
    let (oracle, schedule) = (plane(), uniform_schedule(LOWEST, HIGHEST, FINEST + 1));
    let start = draws(&oracle, schedule.level(FINEST + 1), 64, 7);
    let path = |solver: &mut dyn Solver, moves: usize| {
        let noise = coupled(&schedule, start.clone(), moves, FINEST);
        run(&oracle, &uniform_grid(&schedule, moves), &schedule, solver, &noise, [64, 2, 1, 1])
    };
    let exact = path(&mut DpmMultistep::new(DpmOptions::sde(DpmForm::Second), Clip::None), FINEST);
    let solvers: [Box<dyn Solver>; 3] = [
        Box::new(Ddpm::default()),
        Box::new(EulerAncestral::default()),
        Box::new(DpmMultistep::new(DpmOptions::sde(DpmForm::Second), Clip::None)),
    ];
    for mut solver in solvers {
        let errors = [32, 64, 128, 256].map(|moves| median_distance(&path(&mut *solver, moves), &exact));
        let found = slope(&errors);
        assert!((found - 1.0).abs() < 0.2, "{}: order {found} from {errors:?}", solver.name());
    }
}
