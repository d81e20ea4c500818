//! Plans against the step rules of diffusers' schedulers, written out a second time; and every refusal.

use std::f64::consts::FRAC_PI_2;
use std::ops::ControlFlow;
use std::sync::Arc;

use ndarray::{Array4, Array5, ArrayView4, Zip};
use tweedie_denoiser::{Denoiser, DenoiserError, Noise, Purpose, ReplayNoise, SeededNoise};
use tweedie_samplers::{
    Clip, Compat, SamplerError, SchedulerSpec, SolverSpec, StepInfo, VarianceType, sample, solver_by_name,
};
use tweedie_schedule::{
    BetaSchedule, GridEnd, LevelGrid, NoiseLevel, Prediction, Schedule, Spacing, StepGrid, TimestepMapping, prediction,
};

const SHAPE: [usize; 4] = [2, 1, 2, 3];
const LEN: usize = 12;

/// A model output that depends on the state and on the diffusers timestep (0-based).
fn output(x: f64, timestep: f64) -> f64 {
    (1.3 * x + 0.002 * timestep).sin() + 0.3 * x
}

/// The same model behind the denoiser's contract.
struct Model {
    schedule: Arc<Schedule>,
    prediction: Prediction,
}

impl Denoiser for Model {
    fn denoise(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Array4<f64>, DenoiserError> {
        let timestep = TimestepMapping::ZeroBased.timestep(&self.schedule, level)?;
        let map = prediction::convert(self.prediction, Prediction::X0, level, None)?;
        Ok(x.mapv(|x| map.apply(x, output(x, timestep))))
    }
}

/// `alphas_cumprod`, 0-based, as diffusers has it.
fn alphas_cumprod(spec: &SchedulerSpec) -> Vec<f64> {
    let n = spec.train_steps;
    let at = |i: usize| i as f64 / (n - 1) as f64;
    let betas: Vec<f64> = match spec.betas {
        BetaSchedule::Linear { start, end } => (0..n).map(|i| start + (end - start) * at(i)).collect(),
        BetaSchedule::ScaledLinear { start, end } => {
            (0..n).map(|i| (start.sqrt() + (end.sqrt() - start.sqrt()) * at(i)).powi(2)).collect()
        }
        _ => {
            let f = |u: f64| ((u + 0.008) / 1.008 * FRAC_PI_2).cos().powi(2);
            (0..n).map(|i| (1.0 - f((i + 1) as f64 / n as f64) / f(i as f64 / n as f64)).min(0.999)).collect()
        }
    };
    let mut product = 1.0;
    let mut abar: Vec<f64> = betas
        .iter()
        .map(|b| {
            product *= 1.0 - b;
            product
        })
        .collect();
    if spec.rescale_zero_snr {
        let (first, last) = (abar[0].sqrt(), abar[n - 1].sqrt());
        abar = abar.iter().map(|a| ((a.sqrt() - last) * first / (first - last)).powi(2)).collect();
    }
    abar
}

/// The step rules of DDPMScheduler and DDIMScheduler for one flat sample of `LEN` values, with list look-up.
fn reference(spec: &SchedulerSpec, timesteps: &[usize], initial: &[f64], noise: &[Vec<f64>]) -> Vec<f64> {
    let abar = alphas_cumprod(spec);
    let mut x = initial.to_vec();
    let mut draws = noise.iter();
    for (k, &t) in timesteps.iter().enumerate() {
        let next = timesteps.get(k + 1);
        let a_t = abar[t];
        let a_p = match next {
            Some(&p) => abar[p],
            None if spec.end == GridEnd::FirstStep => abar[0],
            None => 1.0,
        };
        let (sa, sb) = (a_t.sqrt(), (1.0 - a_t).sqrt());
        let out: Vec<f64> = x.iter().map(|&x| output(x, t as f64)).collect();
        let raw: Vec<f64> = x
            .iter()
            .zip(&out)
            .map(|(x, o)| match spec.prediction {
                Prediction::Eps => (x - sb * o) / sa,
                Prediction::X0 => *o,
                _ => sa * x - sb * o,
            })
            .collect();
        let mut eps: Vec<f64> = x
            .iter()
            .zip(&out)
            .map(|(x, o)| match spec.prediction {
                Prediction::Eps => *o,
                Prediction::X0 => (x - sa * o) / sb,
                _ => sa * o + sb * x,
            })
            .collect();
        let clip = |v: f64| match spec.clip {
            Clip::Range(r) => v.max(-r).min(r),
            _ => v,
        };
        let x0: Vec<f64> = raw.iter().map(|&v| clip(v)).collect();
        match spec.solver {
            SolverSpec::Ddpm { variance } => {
                let a = a_t / a_p;
                let b = 1.0 - a;
                let small = ((1.0 - a_p) / (1.0 - a_t) * b).max(1e-20);
                let std = match variance {
                    VarianceType::FixedSmall => small.sqrt(),
                    VarianceType::FixedSmallLog => (0.5 * small.ln()).exp(),
                    VarianceType::FixedLarge => b.sqrt(),
                    VarianceType::FixedLargeLog => (0.5 * b.ln()).exp(),
                    _ => 1.0,
                };
                // "noise only for t > 0"; the small variance of a move to abar = 1 is 0 but for diffusers' floor of 1e-20.
                let z = if t > 0 && std > 1e-9 { draws.next().unwrap().clone() } else { vec![0.0; x.len()] };
                for i in 0..x.len() {
                    x[i] =
                        a_p.sqrt() * b / (1.0 - a_t) * x0[i] + a.sqrt() * (1.0 - a_p) / (1.0 - a_t) * x[i] + std * z[i];
                }
            }
            SolverSpec::Ddim { eta, use_clipped_model_output, .. } => {
                let std = eta * ((1.0 - a_p) / (1.0 - a_t) * (1.0 - a_t / a_p)).sqrt();
                if use_clipped_model_output {
                    eps = x.iter().zip(&x0).map(|(x, x0)| (x - sa * x0) / sb).collect();
                }
                let z = if std > 0.0 { draws.next().unwrap().clone() } else { vec![0.0; x.len()] };
                for i in 0..x.len() {
                    x[i] = a_p.sqrt() * x0[i] + (1.0 - a_p - std * std).max(0.0).sqrt() * eps[i] + std * z[i];
                }
            }
            _ => unreachable!("the specifications below name no other solver"),
        }
    }
    x
}

fn specs() -> Vec<SchedulerSpec> {
    let mut specs = Vec::new();
    let solvers = [
        SolverSpec::ddpm(),
        SolverSpec::Ddpm { variance: VarianceType::FixedSmallLog },
        SolverSpec::Ddpm { variance: VarianceType::FixedLarge },
        SolverSpec::Ddpm { variance: VarianceType::FixedLargeLog },
        SolverSpec::Ddpm { variance: VarianceType::Unit },
        SolverSpec::ddim(),
        SolverSpec::Ddim { eta: 0.6, use_clipped_model_output: false },
        SolverSpec::Ddim { eta: 1.0, use_clipped_model_output: true },
    ];
    let betas = [
        BetaSchedule::Linear { start: 1e-4, end: 0.02 },
        BetaSchedule::ScaledLinear { start: 0.00085, end: 0.012 },
        BetaSchedule::cosine(),
    ];
    for solver in solvers {
        for spacing in [Spacing::Leading, Spacing::Linspace, Spacing::Trailing] {
            for prediction in [Prediction::Eps, Prediction::X0, Prediction::V] {
                for betas in &betas {
                    for (clip, steps_offset) in [(Clip::Range(1.0), 0), (Clip::Range(0.8), 1), (Clip::None, 1)] {
                        let partly = matches!(solver, SolverSpec::Ddim { eta: 0.6, .. });
                        let spec = SchedulerSpec {
                            solver,
                            end: if partly { GridEnd::FirstStep } else { GridEnd::Clean },
                            spacing,
                            prediction,
                            betas: betas.clone(),
                            clip,
                            steps_offset,
                            ..SchedulerSpec::default()
                        };
                        if prediction == Prediction::V {
                            specs.push(SchedulerSpec { rescale_zero_snr: true, ..spec.clone() });
                        }
                        specs.push(spec);
                    }
                }
            }
        }
    }
    specs
}

fn timesteps(spec: &SchedulerSpec) -> Vec<usize> {
    match spec.spacing {
        Spacing::Leading => (0..10).rev().map(|i| i * 100 + spec.steps_offset).collect(),
        Spacing::Linspace => (0..10).rev().map(|i| i * 111).collect(),
        _ => (1..=10).rev().map(|i| i * 100 - 1).collect(),
    }
}

/// 10 steps of 1000, for all solvers, spacings, predictions and clips.
#[test]
fn trajectories_agree_with_the_step_rules() {
    let noise = SeededNoise::new(4);
    let specs = specs();
    assert_eq!(specs.len(), 8 * 3 * 4 * 3 * 3);
    for spec in specs {
        let mut plan = spec.plan(10).unwrap();
        let times = timesteps(&spec);
        assert_eq!(
            plan.grid.moves().iter().map(|on| on.step).collect::<Vec<_>>(),
            times.iter().map(|&t| t as f64 + 1.0).collect::<Vec<_>>(),
            "{spec:?}"
        );
        let model = Model { schedule: Arc::new(plan.schedule().unwrap().clone()), prediction: spec.prediction };
        let found =
            sample(&model, &plan.grid, &mut *plan.solver, &noise, SHAPE, &mut |_| ControlFlow::Continue(())).unwrap();
        let flat = |purpose| {
            let mut z = vec![0.0; LEN];
            for (i, row) in z.chunks_mut(LEN / 2).enumerate() {
                noise.fill(purpose, i, row).unwrap();
            }
            z
        };
        let draws: Vec<Vec<f64>> = (0..10).map(|k| flat(Purpose::Step(k))).collect();
        let expected = reference(&spec, &times, &flat(Purpose::Initial), &draws);
        for (found, expected) in found.iter().zip(&expected) {
            // Without clipping, eps is divided by a small alpha and the state grows; the tolerance is relative.
            let error = (found - expected).abs() / expected.abs().max(1.0);
            assert!(error < 1e-8, "{found} instead of {expected} for {spec:?}");
        }
    }
}

/// Stochastic moves draw once each, in order; a move from step 1, one to `abar = 1` with the small variance, and
/// deterministic samplers draw nothing.
#[test]
fn noise_is_used_in_order() {
    let run = |solver: SolverSpec, spacing: Spacing, available: usize| {
        let spec = SchedulerSpec { solver, spacing, ..SchedulerSpec::default() };
        let mut plan = spec.plan(5).unwrap();
        let model = Model { schedule: Arc::new(plan.schedule().unwrap().clone()), prediction: spec.prediction };
        let noise = ReplayNoise::new(Array4::zeros((2, 1, 2, 3)), Array5::zeros((available, 2, 1, 2, 3))).unwrap();
        sample(&model, &plan.grid, &mut *plan.solver, &noise, SHAPE, &mut |_| ControlFlow::Continue(()))
    };
    let noisy = SolverSpec::Ddim { eta: 1.0, use_clipped_model_output: false };
    let large = SolverSpec::Ddpm { variance: VarianceType::FixedLarge };
    let (leading, trailing) = (Spacing::Leading, Spacing::Trailing);
    assert!(run(SolverSpec::ddim(), trailing, 0).is_ok());
    for (solver, spacing, draws) in [
        (SolverSpec::ddpm(), leading, 4),
        (SolverSpec::ddpm(), trailing, 4),
        (noisy, leading, 4),
        (noisy, trailing, 4),
        (large, leading, 4),
        (large, trailing, 5),
    ] {
        assert!(run(solver, spacing, draws).is_ok(), "{solver:?}, {spacing:?}");
        let error = run(solver, spacing, draws - 1).unwrap_err().to_string();
        assert!(error.contains(&format!("{draws} or more stochastic steps, found {}", draws - 1)), "{error}");
    }
}

#[test]
fn zero_snr_needs_a_prediction_with_signal() {
    let spec = |prediction, spacing| SchedulerSpec {
        rescale_zero_snr: true,
        prediction,
        spacing,
        solver: SolverSpec::ddim(),
        ..SchedulerSpec::default()
    };
    for spacing in [Spacing::Trailing, Spacing::Linspace] {
        for prediction in [Prediction::Eps, Prediction::Score] {
            let error = spec(prediction, spacing).plan(10).unwrap_err();
            assert!(matches!(error, SamplerError::ZeroSnr { t: 1000, .. }), "{error}");
        }
        assert!(spec(Prediction::V, spacing).plan(10).is_ok());
        assert!(spec(Prediction::X0, spacing).plan(10).is_ok());
    }
    // The leading spacing does not visit the last step.
    assert!(spec(Prediction::Eps, Spacing::Leading).plan(10).is_ok());
}

#[test]
fn plans_are_checked() {
    let default = SchedulerSpec::default();
    for steps in [0, 1001, usize::MAX] {
        assert!(matches!(default.plan(steps), Err(SamplerError::Schedule(_))), "{steps}");
    }
    let shifted = SchedulerSpec { steps_offset: 1, ..default.clone() };
    assert!(shifted.plan(999).is_ok() && matches!(shifted.plan(1000), Err(SamplerError::Schedule(_))));
    let clip = SchedulerSpec { clip: Clip::Range(-1.0), ..default.clone() };
    assert!(matches!(clip.plan(10), Err(SamplerError::Parameter { .. })));
    for eta in [-0.5, f64::NAN] {
        let solver = SolverSpec::Ddim { eta, use_clipped_model_output: false };
        let spec = SchedulerSpec { solver, ..default.clone() };
        assert!(matches!(spec.plan(10), Err(SamplerError::Parameter { .. })), "{eta}");
    }
    let unknown = solver_by_name("heun3").unwrap_err().to_string();
    for name in SolverSpec::NAMES.split(", ") {
        assert!(unknown.contains(name), "{unknown}");
        let spec = solver_by_name(name).unwrap();
        assert_eq!((spec.name(), spec.build(Clip::None, Compat::Published).unwrap().name()), (name, name));
    }
    assert_eq!(SolverSpec::ALL.map(|spec| spec.name()).join(", "), SolverSpec::NAMES);
    for name in VarianceType::NAMES.split(", ") {
        assert_eq!(VarianceType::from_config_name(name).unwrap().config_name(), name);
    }
    assert!(matches!(VarianceType::from_config_name("learned"), Err(SamplerError::LearnedVariance { .. })));
    assert!(matches!(VarianceType::from_config_name("small"), Err(SamplerError::UnknownName { .. })));
}

/// What the diffusers classes of the samplers make of `clip_sample` and `thresholding`, and of a file without
/// `timestep_spacing`.
#[test]
fn solvers_have_the_defaults_of_their_classes() {
    let (range, dynamic) = (Clip::Range(1.0), Clip::Dynamic { ratio: 0.9, max: 2.0 });
    for spec in SolverSpec::ALL {
        let (expected, spacing) = match spec.name() {
            "ddpm" | "ddim" => ([range, dynamic], Spacing::Leading),
            "lcm" | "consistency" => ([range, dynamic], Spacing::Leading),
            "pndm" | "plms" => ([Clip::None, Clip::None], Spacing::Leading),
            "heun" => ([range, dynamic], Spacing::Linspace),
            "euler" | "euler-ancestral" | "lms" | "kdpm2" | "kdpm2-ancestral" => {
                ([Clip::None, Clip::None], Spacing::Linspace)
            }
            _ => ([Clip::None, dynamic], Spacing::Linspace),
        };
        assert_eq!([range, dynamic].map(|clip| spec.clip(clip)), expected, "{}", spec.name());
        assert_eq!((spec.clip(Clip::None), spec.spacing()), (Clip::None, spacing), "{}", spec.name());
    }
    // And that is what a built solver does.
    let plan = |solver| {
        let spec = SchedulerSpec { solver, clip: Clip::Range(0.1), ..SchedulerSpec::default() };
        let mut plan = spec.plan(1).unwrap();
        let model = Model { schedule: Arc::new(plan.schedule().unwrap().clone()), prediction: Prediction::X0 };
        let (noise, go_on) = (SeededNoise::new(1), &mut |_: StepInfo<'_>| ControlFlow::Continue(()));
        sample(&model, &plan.grid, &mut *plan.solver, &noise, SHAPE, go_on).unwrap()
    };
    for spec in SolverSpec::ALL {
        // A latent consistency model returns a trace of the state.
        let clipped = plan(spec).iter().all(|x| x.abs() <= 0.1 + 1e-6);
        assert_eq!(clipped, spec.clip(Clip::Range(0.1)) != Clip::None, "{}", spec.name());
    }
}

/// A denoiser that fails in a chosen way at step 3 of 5.
struct Broken {
    schedule: Schedule,
    how: How,
}

#[derive(Clone, Copy)]
enum How {
    Nan,
    Shape,
}

impl Denoiser for Broken {
    fn denoise(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Array4<f64>, DenoiserError> {
        let at_3 = level == self.schedule.level(3);
        Ok(match self.how {
            How::Nan if at_3 => Zip::indexed(x).map_collect(|i, &x| if i == (1, 0, 0, 2) { f64::NAN } else { x }),
            How::Shape if at_3 => Array4::zeros((1, 1, 2, 3)),
            _ => x.to_owned(),
        })
    }
}

#[test]
fn the_loop_names_what_went_wrong() {
    let schedule = Schedule::new(&BetaSchedule::Linear { start: 0.01, end: 0.2 }, 5).unwrap();
    let grid = StepGrid::new(5, 5, Spacing::Leading, 0).unwrap();
    let run = |how, stop: usize, grid: &StepGrid| {
        let mut solver = SolverSpec::ddpm().build(Clip::None, Compat::Published).unwrap();
        let denoiser = Broken { schedule: schedule.clone(), how };
        let grid = LevelGrid::of_steps(grid, &schedule).unwrap();
        sample(&denoiser, &grid, &mut *solver, &SeededNoise::new(0), SHAPE, &mut |info| {
            if info.position + 1 == stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap_err()
    };
    let error = run(How::Nan, 0, &grid);
    assert!(matches!(error, SamplerError::NotFinite { position: 3, total: 5, t: 3.0, .. }), "{error}");
    assert!(error.to_string().contains("move 3 of 5 (step t = 3)"), "{error}");
    assert!(matches!(run(How::Shape, 0, &grid), SamplerError::Shape { .. }));
    assert!(matches!(run(How::Nan, 2, &grid), SamplerError::Stopped { position: 2, total: 5 }));
}

/// Notes where the loop says it is, and goes nowhere.
#[derive(Default)]
struct Places(Vec<(usize, usize, f64, bool)>);

impl tweedie_samplers::Solver for Places {
    fn name(&self) -> &'static str {
        "places"
    }

    fn step(
        &mut self,
        x: ndarray::ArrayView4<'_, f64>,
        on: &mut tweedie_samplers::Move<'_>,
    ) -> Result<tweedie_samplers::Advance, SamplerError> {
        self.0.push((on.position(), on.total(), on.step(), on.is_last()));
        Ok(tweedie_samplers::Advance { x: x.to_owned(), x0: x.to_owned() })
    }
}

#[test]
fn a_move_knows_its_place() {
    let plan = SchedulerSpec { train_steps: 9, ..SchedulerSpec::default() }.plan(3).unwrap();
    let text = format!("{plan:?}");
    assert!(text.contains("prediction: Eps") && text.contains("ddpm"), "{text}");
    let oracle = tweedie_denoiser::MixtureOracle::gaussian([1, 1, 1], 0.0, 1.0).unwrap();
    let (mut places, noise) = (Places::default(), tweedie_denoiser::SeededNoise::new(0));
    let observer = &mut |_: tweedie_samplers::StepInfo<'_>| std::ops::ControlFlow::Continue(());
    sample(&oracle, &plan.grid, &mut places, &noise, [1, 1, 1, 1], observer).unwrap();
    assert_eq!(places.0, [(0, 3, 7.0, false), (1, 3, 4.0, false), (2, 3, 1.0, true)]);
}
