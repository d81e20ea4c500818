//! `scheduler_config.json`: every key is honoured, known to mean nothing here, or refused by name.
//!
//! The rules are those of diffusers: a missing key takes the default of the class that is built, keys that begin with `_` are
//! metadata, and a scheduler may be built from the file of another one, whose own keys then do not count.

use std::path::Path;

use serde_json::Value;
use thiserror::Error;
use tweedie_checkpoint::Config;
use tweedie_samplers::{Clip, SamplerError, SchedulerSpec, SolverSpec, VarianceType};
use tweedie_schedule::{BetaSchedule, Prediction, Schedule, ScheduleError, Spacing};

/// A prediction that diffusers has no name for: the score or the mean. It goes before `prediction_type`.
pub const PREDICTION_KEY: &str = "_tweedie_prediction";

/// The classes whose files can be used as they are, with the sampler that they mean.
const CLASSES: [(&str, SolverSpec); 2] = [("DDPMScheduler", SolverSpec::ddpm()), ("DDIMScheduler", SolverSpec::ddim())];

/// Other classes that describe the same process, and lend their files to any sampler.
const COMPATIBLE: [&str; 13] = [
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
    "DPMSolverSDEScheduler",
    "EDMEulerScheduler",
];

/// Keys of compatible classes that neither DDPM nor DDIM has.
const FOREIGN_KEYS: [&str; 34] = [
    "algorithm_type",
    "disable_corrector",
    "euler_at_final",
    "final_sigmas_type",
    "flow_shift",
    "interpolation_type",
    "lambda_min_clipped",
    "lower_order_final",
    "noise_sampler_seed",
    "original_inference_steps",
    "predict_x0",
    "rho",
    "shift_terminal",
    "sigma_data",
    "sigma_max",
    "sigma_min",
    "sigma_schedule",
    "skip_prk_steps",
    "solver_order",
    "solver_p",
    "solver_type",
    "time_shift_type",
    "timestep_scaling",
    "timestep_type",
    "use_beta_sigmas",
    "use_dynamic_shifting",
    "use_exponential_sigmas",
    "use_flow_sigmas",
    "use_karras_sigmas",
    "use_lu_lambdas",
    // Of the other one of the two classes that are built here.
    "set_alpha_to_one",
    "variance_type",
    // Written by early versions, without meaning for the process.
    "tensor_format",
    "timestep_values",
];

/// A scheduler file that cannot be used.
#[derive(Debug, Error)]
pub enum SchedulerError {
    /// A value of the wrong kind or out of range.
    #[error("{file}: the key {key} should be {expected}, found {found}; correct the file")]
    Value {
        /// The file.
        file: String,
        /// The key.
        key: &'static str,
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
    },
    /// A value that the schedule or the samplers refuse.
    #[error("{file}: the key {key} cannot be used: {problem}")]
    Refused {
        /// The file.
        file: String,
        /// The key.
        key: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A key that no scheduler has.
    #[error("{file}: the key {key} is unknown, and ignoring it could change the images; remove it if it means nothing")]
    UnknownKey {
        /// The file.
        file: String,
        /// The key.
        key: String,
    },
    /// A scheduler whose sampler does not exist here.
    #[error("{file}: the sampler of {class} does not exist here; choose one with --sampler ({})", SolverSpec::NAMES)]
    NoSampler {
        /// The file.
        file: String,
        /// Its class.
        class: String,
    },
    /// A scheduler of another process.
    #[error(
        "{file}: the scheduler class {class} is not supported; supported are DDPMScheduler and DDIMScheduler, and with \
         --sampler the files of {}",
        COMPATIBLE.join(", ")
    )]
    Class {
        /// The file.
        file: String,
        /// Its class.
        class: String,
    },
}

/// The scheduler that a file describes.
///
/// `wanted` replaces the sampler of the file; its own keys are then read as those of the wanted one.
///
/// # Errors
/// If a key is unknown or its value cannot be used, or the file's sampler does not exist and no other is wanted.
pub fn from_config(config: &Config, path: &Path, wanted: Option<SolverSpec>) -> Result<SchedulerSpec, SchedulerError> {
    let mut reader = Reader::new(config, path);
    let solver = solver(&reader, wanted)?;
    let defaults = SchedulerSpec::default();

    let train_steps = reader.integer("num_train_timesteps", defaults.train_steps)?;
    let start = reader.number("beta_start", 1e-4)?;
    let end = reader.number("beta_end", 0.02)?;
    let name = reader.text("beta_schedule", "linear")?;
    let betas = match reader.numbers("trained_betas")? {
        Some(betas) => BetaSchedule::Custom(betas),
        None => BetaSchedule::from_config_name(&name, start, end).map_err(|e| reader.refused("beta_schedule", &e))?,
    };
    let rescale_zero_snr = reader.boolean("rescale_betas_zero_snr", false)?;
    let prediction = prediction(&mut reader)?;
    let spacing = reader.text("timestep_spacing", solver.spacing().name())?;
    let spacing = Spacing::from_name(&spacing).map_err(|e| reader.refused("timestep_spacing", &e))?;
    let steps_offset = reader.integer("steps_offset", 0)?;
    let clip = clip(&mut reader)?;
    let solver = own_keys(&mut reader, solver)?;
    check_schedule(&reader, &betas, train_steps, rescale_zero_snr)?;
    reader.finish()?;
    Ok(SchedulerSpec { solver, train_steps, betas, rescale_zero_snr, prediction, spacing, steps_offset, clip })
}

/// Whether the keys make a schedule; the error names the one that does not fit.
fn check_schedule(
    reader: &Reader<'_>,
    betas: &BetaSchedule,
    train_steps: usize,
    rescale: bool,
) -> Result<(), SchedulerError> {
    let table = matches!(betas, BetaSchedule::Custom(_));
    let schedule = Schedule::new(betas, train_steps).map_err(|e| {
        let key = match &e {
            ScheduleError::Count { operation: "schedule", .. } => "num_train_timesteps",
            _ if table => "trained_betas",
            ScheduleError::Parameter { what: "beta start", .. } => "beta_start",
            _ => "beta_end",
        };
        reader.refused(key, &e)
    })?;
    if rescale {
        schedule.rescaled_zero_terminal_snr().map_err(|e| reader.refused("rescale_betas_zero_snr", &e))?;
    }
    Ok(())
}

/// The sampler: the wanted one, else that of the file.
fn solver(reader: &Reader<'_>, wanted: Option<SolverSpec>) -> Result<SolverSpec, SchedulerError> {
    let class = match reader.config.get("_class_name") {
        // Early files do not say; the others of their kind are DDPM's.
        None | Some(Value::Null) => "DDPMScheduler",
        Some(Value::String(class)) => class.as_str(),
        Some(_) => return Err(reader.wrong("_class_name", "a string")),
    };
    let own = CLASSES.into_iter().find(|(name, _)| *name == class).map(|(_, solver)| solver);
    match wanted.or(own) {
        Some(solver) if own.is_some() || COMPATIBLE.contains(&class) => Ok(solver),
        None if COMPATIBLE.contains(&class) => {
            Err(SchedulerError::NoSampler { file: reader.file(), class: class.to_owned() })
        }
        _ => Err(SchedulerError::Class { file: reader.file(), class: class.to_owned() }),
    }
}

fn prediction(reader: &mut Reader<'_>) -> Result<Prediction, SchedulerError> {
    // The name of early versions, which had two predictions.
    let default = if reader.boolean("predict_epsilon", true)? { "epsilon" } else { "sample" };
    let name = reader.text("prediction_type", default)?;
    let named = Prediction::from_config_name(&name).map_err(|e| reader.refused("prediction_type", &e))?;
    if !reader.config.contains_key(PREDICTION_KEY) {
        return Ok(named);
    }
    let name = reader.text(PREDICTION_KEY, named.name())?;
    Prediction::from_name(&name).map_err(|e| reader.refused(PREDICTION_KEY, &e))
}

fn clip(reader: &mut Reader<'_>) -> Result<Clip, SchedulerError> {
    let (name, clip) = {
        let sample = reader.boolean("clip_sample", true)?;
        let range = reader.number("clip_sample_range", 1.0)?;
        let dynamic = reader.boolean("thresholding", false)?;
        let ratio = reader.number("dynamic_thresholding_ratio", 0.995)?;
        let max = reader.number("sample_max_value", 1.0)?;
        if dynamic {
            ("thresholding", Clip::Dynamic { ratio, max })
        } else if sample {
            ("clip_sample_range", Clip::Range(range))
        } else {
            ("clip_sample", Clip::None)
        }
    };
    clip.check().map_err(|e: SamplerError| reader.refused(name, &e))
}

/// The keys that only the class of the sampler has.
fn own_keys(reader: &mut Reader<'_>, solver: SolverSpec) -> Result<SolverSpec, SchedulerError> {
    Ok(match solver {
        SolverSpec::Ddpm { .. } => {
            let name = reader.text("variance_type", VarianceType::default().config_name())?;
            let variance = VarianceType::from_config_name(&name).map_err(|e| reader.refused("variance_type", &e))?;
            SolverSpec::Ddpm { variance }
        }
        SolverSpec::Ddim { eta, use_clipped_model_output, .. } => SolverSpec::Ddim {
            eta,
            use_clipped_model_output,
            set_alpha_to_one: reader.boolean("set_alpha_to_one", true)?,
        },
        other => other,
    })
}

/// A config while it is being read: every key is asked for, and what nobody has asked for is an error.
struct Reader<'a> {
    config: &'a Config,
    path: &'a Path,
    /// Keys whose values diffusers tells to treat as absent.
    absent: Vec<&'a str>,
    known: Vec<&'static str>,
}

impl<'a> Reader<'a> {
    fn new(config: &'a Config, path: &'a Path) -> Self {
        let absent = config.get("_use_default_values").and_then(Value::as_array).into_iter().flatten();
        Self { config, path, absent: absent.filter_map(Value::as_str).collect(), known: Vec::new() }
    }

    fn file(&self) -> String {
        self.path.display().to_string()
    }

    /// The value of a key; null stands for the default, as a missing key does.
    fn get(&mut self, key: &'static str) -> Option<&'a Value> {
        self.known.push(key);
        if self.absent.contains(&key) {
            return None;
        }
        self.config.get(key).filter(|value| !value.is_null())
    }

    fn wrong(&self, key: &'static str, expected: &str) -> SchedulerError {
        let found = self.config.get(key).map_or_else(String::new, |v| v.to_string().chars().take(60).collect());
        SchedulerError::Value { file: self.file(), key, expected: expected.to_owned(), found }
    }

    fn refused(&self, key: &'static str, problem: &dyn std::fmt::Display) -> SchedulerError {
        SchedulerError::Refused { file: self.file(), key, problem: problem.to_string() }
    }

    fn integer(&mut self, key: &'static str, default: usize) -> Result<usize, SchedulerError> {
        let Some(value) = self.get(key) else { return Ok(default) };
        let whole =
            value.as_u64().or_else(|| value.as_f64().filter(|x| x.fract() == 0.0 && *x >= 0.0).map(|x| x as u64));
        whole.and_then(|n| usize::try_from(n).ok()).ok_or_else(|| self.wrong(key, "a whole number, 0 or more"))
    }

    fn number(&mut self, key: &'static str, default: f64) -> Result<f64, SchedulerError> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_f64().ok_or_else(|| self.wrong(key, "a number"))
    }

    /// Null is off.
    fn boolean(&mut self, key: &'static str, default: bool) -> Result<bool, SchedulerError> {
        if self.config.get(key).is_some_and(Value::is_null) {
            self.known.push(key);
            return Ok(false);
        }
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.wrong(key, "true or false"))
    }

    fn text(&mut self, key: &'static str, default: &str) -> Result<String, SchedulerError> {
        let Some(value) = self.get(key) else { return Ok(default.to_owned()) };
        value.as_str().map(str::to_owned).ok_or_else(|| self.wrong(key, "a string"))
    }

    fn numbers(&mut self, key: &'static str) -> Result<Option<Vec<f64>>, SchedulerError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let numbers = value.as_array().and_then(|list| list.iter().map(Value::as_f64).collect());
        numbers.map(Some).ok_or_else(|| self.wrong(key, "a list of numbers"))
    }

    fn finish(self) -> Result<(), SchedulerError> {
        let unknown = |key: &&String| {
            !key.starts_with('_') && !self.known.contains(&key.as_str()) && !FOREIGN_KEYS.contains(&key.as_str())
        };
        match self.config.keys().find(unknown) {
            None => Ok(()),
            Some(key) => Err(SchedulerError::UnknownKey { file: self.file(), key: key.clone() }),
        }
    }
}

#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;
