//! Every scheduler class against Python's diffusers, from its config to its last state (`tests/golden/samplers/*.json`, whose
//! format stands in `tools/reference/golden_samplers.py`).
//!
//! The numbers there were computed in f64, so they agree to rounding and not only to f32's. Where the published method is not
//! what diffusers does, the table of [`EXCEPTIONS`] says so, and the case is run again in the way of diffusers.

use std::ops::ControlFlow;
use std::sync::Mutex;

use ndarray::{Array4, Array5, ArrayView4, Axis, Zip};
use tweedie_denoiser::{Denoiser, DenoiserError, Estimate, ReplayNoise};
use tweedie_samplers::sample;
use tweedie_schedule::{Bridge, NoiseLevel, TimestepMapping, VarianceRange};

use super::*;

/// The largest difference of a state, relative to its largest value or 1.
const TOLERANCE: f64 = 1e-8;
/// The same of the numbers that the network is told, and of sigmas.
const NUMBERS: f64 = 1e-7;

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

/// The network of the golden files, read through the plan's own bridge; it notes the numbers that it is told.
struct Fake {
    bridge: Bridge,
    time_scale: f64,
    learned: bool,
    told: Mutex<Vec<f64>>,
}

impl Denoiser for Fake {
    fn denoise(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Array4<f64>, DenoiserError> {
        Ok(self.estimate(x, level)?.x0)
    }

    fn estimate(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Estimate, DenoiserError> {
        let at = self.bridge.at(level)?;
        self.told.lock().unwrap().push(at.number);
        let input = x.mapv(|x| at.of_input * x);
        let output = input.mapv(|u| 0.3 * u * (at.number / self.time_scale).cos() + 0.1);
        let x0 = Zip::from(x).and(&output).map_collect(|&x, &o| at.to_x0.apply(x, o));
        let fraction = self.learned.then(|| input.mapv(|u| VarianceRange::fraction(0.5 * (u + at.number).cos())));
        Ok(Estimate { fraction, ..Estimate::from(x0) })
    }
}

/// One case of a file.
struct Case<'a> {
    class: &'a str,
    document: &'a Value,
    row: &'a Value,
}

impl Case<'_> {
    fn name(&self) -> String {
        format!("{}: {}", self.class, self.row["name"].as_str().unwrap())
    }

    /// What upstream says instead of a result.
    fn failure(&self) -> Option<&str> {
        self.row["error"].as_str()
    }

    fn noise(&self) -> (ReplayNoise, [usize; 4]) {
        let shape: Vec<usize> = numbers(&self.row["shape"]).into_iter().map(|n| n as usize).collect();
        let &[n, c, h, w] = shape.as_slice() else { panic!("four dimensions") };
        let of = |values: &Value| {
            let mut values = numbers(values);
            values.truncate(n * c * h * w);
            Array4::from_shape_vec((n, c, h, w), values).unwrap().mapv(|v| v as f32)
        };
        let each = self.document["noise"].as_array().unwrap();
        let mut steps = Array5::zeros((each.len(), n, c, h, w));
        for (mut to, z) in steps.axis_iter_mut(Axis(0)).zip(each) {
            to.assign(&of(z));
        }
        (ReplayNoise::new(of(&self.document["initial"]), steps).unwrap(), [n, c, h, w])
    }

    fn spec(&self, compat: Compat) -> Result<SchedulerSpec, String> {
        let config = self.row["config"].as_object().unwrap();
        let mut spec =
            from_config(config, Path::new("scheduler_config.json"), None).map_err(|e| format!("config: {e}"))?;
        spec.compat = compat;
        for (key, value) in self.row["options"].as_object().unwrap() {
            match (key.as_str(), &mut spec.solver) {
                // Runs begin at the first place of their list anyway.
                ("begin_index", _) => {}
                ("eta", SolverSpec::Ddim { eta, .. }) => *eta = value.as_f64().unwrap(),
                ("use_clipped_model_output", SolverSpec::Ddim { use_clipped_model_output, .. }) => {
                    *use_clipped_model_output = value.as_bool().unwrap();
                }
                ("order", SolverSpec::Lms { order }) => *order = value.as_u64().unwrap() as usize,
                (key, SolverSpec::Euler { churn }) => {
                    let value = if value == "inf" { f64::INFINITY } else { value.as_f64().unwrap() };
                    match key {
                        "s_churn" => churn.amount = value,
                        "s_tmin" => churn.s_min = value,
                        "s_tmax" => churn.s_max = value,
                        "s_noise" => churn.noise = value,
                        _ => return Err(format!("no option {key} of euler")),
                    }
                }
                (key, solver) => return Err(format!("no option {key} of {}", solver.name())),
            }
        }
        Ok(spec)
    }

    /// The largest differences of the told numbers and of the states, or what refused the run.
    fn run(&self, compat: Compat) -> Result<Difference, String> {
        let spec = self.spec(compat)?;
        let mut plan = spec.plan(self.row["steps"].as_u64().unwrap() as usize).map_err(|e| format!("plan: {e}"))?;
        let (noise, shape) = self.noise();
        let fake = Fake {
            bridge: plan.bridge(TimestepMapping::ZeroBased),
            time_scale: self.document["time_scale"].as_f64().unwrap(),
            learned: self.row["config"]["variance_type"] == "learned_range",
            told: Mutex::default(),
        };
        // A failure upstream leaves nothing to compare with.
        let expected: Option<Vec<Vec<f64>>> =
            (self.failure().is_none()).then(|| self.row["states"].as_array().unwrap().iter().map(numbers).collect());
        let exploding = self.document["form"] == "ve";
        let mut found = Difference::default();
        let grid = plan.grid.clone();
        let last = sample(&fake, &grid, plan.solver.as_mut(), &noise, shape, &mut |info| {
            let calls = fake.told.lock().unwrap().len();
            if let Some(states) = &expected {
                let alpha = if exploding { grid.moves()[info.position].to.alpha() } else { 1.0 };
                let Some(state) = states.get(calls) else { return ControlFlow::Break(()) };
                let scale = state.iter().fold(1.0_f64, |most, v| most.max(v.abs()));
                for (x, e) in info.x.iter().zip(state) {
                    found.states = found.states.max((x / alpha - e).abs() / scale);
                }
                found.calls = calls;
            }
            ControlFlow::Continue(())
        });
        let last = last.map_err(|e| format!("run: {e}"))?;
        if let Some(states) = &expected {
            // The result is upstream's own variable.
            let result = states.last().unwrap();
            let scale = result.iter().fold(1.0_f64, |most, v| most.max(v.abs()));
            let apart = last.iter().zip(result).map(|(x, e)| (x - e).abs() / scale);
            found.states = apart.fold(found.states, f64::max);
            let told = fake.told.into_inner().unwrap();
            let timesteps = numbers(&self.row["timesteps"]);
            if found.calls + 1 != states.len() || told.len() != timesteps.len() {
                return Err(format!("calls: {} instead of {}", told.len(), timesteps.len()));
            }
            found.numbers = largest(&told, &timesteps);
            if self.row["sigmas"].is_array() {
                let mut sigmas = numbers(&self.row["sigmas"]);
                if sigmas.len() != grid.len() + 1 {
                    // Methods of two calls have each but the first one twice.
                    sigmas.dedup();
                }
                // Of those of `log_linear` the last one is never reached.
                let reached = grid.len() + 1 + usize::from(spec.sigmas == SigmaRule::LogLinear);
                if sigmas.len() != reached {
                    return Err(format!("sigmas: {reached} instead of {}", sigmas.len()));
                }
                let visited: Vec<f64> = grid.moves().iter().map(|on| on.from.edm_sigma()).collect();
                found.sigmas = largest(&visited, &sigmas);
            }
        }
        Ok(found)
    }
}

/// The largest difference, relative where values are above 1.
fn largest(found: &[f64], expected: &[f64]) -> f64 {
    found.iter().zip(expected).fold(0.0, |most, (f, e)| f64::max(most, (f - e).abs() / e.abs().max(1.0)))
}

/// Largest differences.
#[derive(Debug, Default)]
struct Difference {
    numbers: f64,
    sigmas: f64,
    states: f64,
    calls: usize,
}

impl Difference {
    fn is_small(&self) -> bool {
        self.numbers <= NUMBERS && self.sigmas <= NUMBERS && self.states <= TOLERANCE
    }
}

const FILES: [(&str, &str); 17] = [
    ("DDPM", include_str!("../../tests/golden/samplers/DDPM.json")),
    ("DDIM", include_str!("../../tests/golden/samplers/DDIM.json")),
    ("PNDM", include_str!("../../tests/golden/samplers/PNDM.json")),
    ("EulerDiscrete", include_str!("../../tests/golden/samplers/EulerDiscrete.json")),
    ("EulerAncestralDiscrete", include_str!("../../tests/golden/samplers/EulerAncestralDiscrete.json")),
    ("HeunDiscrete", include_str!("../../tests/golden/samplers/HeunDiscrete.json")),
    ("LMSDiscrete", include_str!("../../tests/golden/samplers/LMSDiscrete.json")),
    ("KDPM2Discrete", include_str!("../../tests/golden/samplers/KDPM2Discrete.json")),
    ("KDPM2AncestralDiscrete", include_str!("../../tests/golden/samplers/KDPM2AncestralDiscrete.json")),
    ("EDMEuler", include_str!("../../tests/golden/samplers/EDMEuler.json")),
    ("EDMDPMSolverMultistep", include_str!("../../tests/golden/samplers/EDMDPMSolverMultistep.json")),
    ("DPMSolverMultistep", include_str!("../../tests/golden/samplers/DPMSolverMultistep.json")),
    ("UniPCMultistep", include_str!("../../tests/golden/samplers/UniPCMultistep.json")),
    ("LCM", include_str!("../../tests/golden/samplers/LCM.json")),
    ("CMStochasticIterative", include_str!("../../tests/golden/samplers/CMStochasticIterative.json")),
    ("DEISMultistep", include_str!("../../tests/golden/samplers/DEISMultistep.json")),
    ("DPMSolverSinglestep", include_str!("../../tests/golden/samplers/DPMSolverSinglestep.json")),
];

/// What is expected of a case of which the golden file has a result, or a failure upstream.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Expected {
    /// The golden states, whether diffusers' deviations are followed or not.
    Same,
    /// The golden states only in the way of diffusers, because the published method is another one.
    Compat,
    /// The same, but numbers are told up to this difference, because those of upstream have lost digits.
    CompatTold(f64),
    /// A result of our own, where upstream fails.
    Result,
    /// An error with this in it.
    Error(&'static str),
}

/// Cases by class and by what all stands in their names, with the reason; the first that fits counts. The rest is
/// [`Expected::Same`].
const EXCEPTIONS: &[(&str, &[&str], Expected)] = &[
    // The variance is the root of a logarithm upstream.
    ("DDPM", &["fixed_large_log"], Expected::Result),
    ("DDPM", &["variance_type learned,"], Expected::Error("variance_type \"learned\"")),
    ("DDPM", &["steps_offset 1"], Expected::Error("outside 1..=20")),
    // Upstream divides by a zero that rounding has made a small number.
    ("", &["rescale_betas_zero_snr True", "epsilon, timestep_spacing trailing"], Expected::Error("zero signal")),
    // Upstream moves by a stride that misses its list.
    ("DDIM", &[": 1 steps"], Expected::Same),
    ("DDIM", &["timestep_spacing linspace"], Expected::Compat),
    ("DDIM", &["3 steps", "trailing"], Expected::Compat),
    ("DDIM", &["7 steps", "trailing"], Expected::Compat),
    // One step has no next one to miss.
    ("PNDM", &[": 1 steps", "skip_prk_steps True"], Expected::Same),
    ("PNDM", &["skip_prk_steps False", ": 1 steps"], Expected::Result),
    ("PNDM", &["skip_prk_steps False", ": 2 steps"], Expected::Result),
    ("PNDM", &["skip_prk_steps False", ": 3 steps"], Expected::Result),
    ("PNDM", &["timestep_spacing linspace"], Expected::Compat),
    ("PNDM", &["3 steps", "trailing"], Expected::Compat),
    ("PNDM", &["7 steps", "trailing"], Expected::Compat),
    ("PNDM", &["prediction_type sample"], Expected::Result),
    // Upstream asks the network before it adds the noise.
    ("EulerDiscrete", &["s_churn"], Expected::Compat),
    ("EDMEuler", &["s_churn"], Expected::Compat),
    ("EDMEuler", &["prediction_type sample"], Expected::Error("prediction_type")),
    ("EulerDiscrete", &["use_karras_sigmas True, use_beta_sigmas True"], Expected::Error("only one rule")),
    // Upstream reads beyond its table.
    ("EulerDiscrete", &["20 steps", "steps_offset 1"], Expected::Error("outside 1..=20")),
    ("EulerAncestralDiscrete", &["prediction_type sample"], Expected::Result),
    // Heun's method is not applied where it magnifies errors.
    ("HeunDiscrete", &["2 steps", "linspace"], Expected::Compat),
    ("HeunDiscrete", &["2 steps", "use_"], Expected::Compat),
    ("HeunDiscrete", &["use_beta_sigmas", "squaredcos"], Expected::Compat),
    ("HeunDiscrete", &["8 steps, beta_schedule squaredcos"], Expected::Compat),
    ("HeunDiscrete", &["trailing, beta_schedule squaredcos"], Expected::Compat),
    // Nor is the midpoint method; upstream refuses predictions of x0, and begins at the second place of a repeated timestep.
    ("KDPM2Discrete", &["prediction_type sample"], Expected::Result),
    ("KDPM2Discrete", &["use_karras_sigmas True, beta_schedule squaredcos_cap_v2|"], Expected::Result),
    ("KDPM2Discrete", &["2 steps", "linspace"], Expected::Compat),
    ("KDPM2Discrete", &["2 steps", "use_"], Expected::Compat),
    ("KDPM2Discrete", &["use_beta_sigmas", "squaredcos"], Expected::Compat),
    ("KDPM2Discrete", &["8 steps, beta_schedule squaredcos"], Expected::Compat),
    ("KDPM2Discrete", &["trailing, beta_schedule squaredcos"], Expected::Compat),
    ("KDPM2AncestralDiscrete", &["prediction_type sample"], Expected::Result),
    ("KDPM2AncestralDiscrete", &["use_karras_sigmas True, beta_schedule squaredcos_cap_v2|"], Expected::Result),
    ("KDPM2AncestralDiscrete", &["2 steps", "linspace"], Expected::Compat),
    ("KDPM2AncestralDiscrete", &["2 steps", "use_"], Expected::Compat),
    // Where sigma falls a millionfold, upstream's sqrt(to^2 - up^2) has few digits left, and so has the number half way.
    ("KDPM2AncestralDiscrete", &["use_beta_sigmas", "squaredcos"], Expected::CompatTold(1e-5)),
    ("KDPM2AncestralDiscrete", &["8 steps, beta_schedule squaredcos"], Expected::Compat),
    ("KDPM2AncestralDiscrete", &["trailing, beta_schedule squaredcos"], Expected::Compat),
    // Upstream has no third order there.
    ("EDMDPMSolverMultistep", &["sde-dpmsolver++", "solver_order 3"], Expected::Result),
    ("DPMSolverMultistep", &["8 steps", "algorithm_type sde-dpmsolver,", "solver_order 3"], Expected::Result),
    ("DPMSolverMultistep", &["16 steps", "algorithm_type sde-dpmsolver,", "solver_order 3"], Expected::Result),
    // A slip of sign upstream ([`tweedie_samplers::DpmForm::ThirdDiffusers`]).
    ("DPMSolverMultistep", &["8 steps", "sde-dpmsolver++", "solver_order 3"], Expected::Compat),
    ("DPMSolverMultistep", &["16 steps", "sde-dpmsolver++", "solver_order 3"], Expected::Compat),
    ("DPMSolverMultistep", &["8 steps, algorithm_type dpmsolver|"], Expected::Result),
    ("DPMSolverMultistep", &["8 steps, algorithm_type deis|"], Expected::Result),
    // Infinities times zero upstream.
    ("UniPCMultistep", &["bh1", "solver_order 1, beta"], Expected::Result),
    ("UniPCMultistep", &["bh1", "solver_order 2, beta"], Expected::Result),
    ("UniPCMultistep", &["bh1", "solver_order 3, beta"], Expected::Result),
    ("UniPCMultistep", &["lower_order_final False, beta"], Expected::Result),
    ("UniPCMultistep", &["predict_x0 False, thresholding"], Expected::Result),
    // The first timestep stands twice in the list, and upstream begins at its second place; see `begin_index` beside it.
    ("UniPCMultistep", &["use_karras_sigmas True, beta_schedule squaredcos_cap_v2|"], Expected::Result),
    ("DEISMultistep", &["use_karras_sigmas True, beta_schedule squaredcos_cap_v2|"], Expected::Result),
    // The same slip of sign.
    ("DPMSolverSinglestep", &["sde-dpmsolver++", "solver_order 3, solver_type heun"], Expected::Compat),
    ("DPMSolverSinglestep", &["dpmsolver,", "thresholding"], Expected::Result),
    ("LCM", &["original_inference_steps 2000"], Expected::Error("from 1 to 1000")),
    ("LCM", &["60 steps"], Expected::Error("from 1 to 50")),
    ("LCM", &["rescale_betas_zero_snr True", "epsilon"], Expected::Error("zero signal")),
    ("CMStochasticIterative", &["41 steps"], Expected::Error("from 1 to 40")),
];

/// Every case of every class is as [`EXCEPTIONS`] says, and each exception is met.
#[test]
fn trajectories_of_every_class() {
    let (mut met, mut wrong) = (vec![false; EXCEPTIONS.len()], Vec::new());
    for (class, text) in FILES {
        let document: Value = serde_json::from_str(text).unwrap();
        let rows = document["cases"].as_array().unwrap();
        assert!(rows.len() > 10, "{class}");
        for row in rows {
            let case = Case { class, document: &document, row };
            // The bar marks the end.
            let name = format!("{}|", case.name());
            let fits = |(of, parts, _): &(&str, &[&str], Expected)| {
                (of.is_empty() || *of == class) && parts.iter().all(|part| name.contains(part))
            };
            let exception = EXCEPTIONS.iter().position(fits);
            let expected = exception.map_or(Expected::Same, |at| {
                met[at] = true;
                EXCEPTIONS[at].2
            });
            wrong.extend(check(&case, &name, expected));
        }
    }
    assert!(wrong.is_empty(), "{} cases:\n{}", wrong.len(), wrong.join("\n"));
    let missed: Vec<_> = EXCEPTIONS.iter().zip(met).filter(|(_, met)| !met).map(|(e, _)| e).collect();
    assert!(missed.is_empty(), "exceptions that no case meets: {missed:?}");
}

/// What is wrong with a case.
fn check(case: &Case<'_>, name: &str, expected: Expected) -> Option<String> {
    let (published, compat) = (case.run(Compat::Published), case.run(Compat::Diffusers));
    let agrees = |run: &Result<Difference, String>| run.as_ref().is_ok_and(Difference::is_small);
    let fails = case.failure().is_some();
    let right = match expected {
        Expected::Same => !fails && agrees(&published) && agrees(&compat),
        Expected::Compat => !fails && !agrees(&published) && agrees(&compat),
        Expected::CompatTold(most) => {
            let told =
                |d: &Difference| d.numbers > NUMBERS && Difference { numbers: d.numbers - most, ..*d }.is_small();
            !fails && !agrees(&published) && compat.as_ref().is_ok_and(told)
        }
        Expected::Result => fails && published.is_ok(),
        Expected::Error(part) => published.as_ref().is_err_and(|e| e.contains(part)),
    };
    let upstream = case.failure();
    (!right).then(|| {
        format!("{name} {expected:?} expected; upstream {upstream:?}, published {published:?}, compat {compat:?}")
    })
}
