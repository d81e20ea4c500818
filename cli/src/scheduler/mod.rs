//! `scheduler_config.json`: every key is honoured, known to mean nothing here, or refused by name.
//!
//! The rules are those of diffusers: a missing key takes the default of the class that is built, keys that begin with `_` are
//! metadata, and a scheduler may be built from the file of another one, whose own keys then do not count.

mod class;
mod multistep;
mod reader;

use std::path::Path;

use serde_json::Value;
use thiserror::Error;
use tweedie_checkpoint::Config;
use tweedie_samplers::{
    Clip, Compat, ConsistencyProcess, EdmProcess, Process, SamplerError, SchedulerSpec, SolverSpec, TimeKind,
    VarianceType,
};
use tweedie_schedule::{
    BetaSchedule, GridEnd, OutputSign, Prediction, Schedule, ScheduleError, SigmaRange, SigmaRule, Spacing,
};

use class::{Class, Kind};
use reader::Reader;

/// A prediction that diffusers has no name for: the score or the mean. It goes before `prediction_type`.
pub const PREDICTION_KEY: &str = "_tweedie_prediction";

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
        "{file}: the scheduler class {class} is not supported; supported are {}, and with --sampler the files of {}",
        Class::names(true),
        Class::names(false)
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
/// `wanted` replaces the sampler of the file, which is then built as diffusers' `from_config` does it: from those keys of the
/// file that the other class has, and that class's defaults for the rest.
///
/// # Errors
/// If a key is unknown or its value cannot be used, or the file's sampler does not exist and no other is wanted.
pub fn from_config(config: &Config, path: &Path, wanted: Option<SolverSpec>) -> Result<SchedulerSpec, SchedulerError> {
    let of_file = class_of_file(config, path)?;
    let file = || path.display().to_string();
    let solver = wanted
        .or(of_file.solver)
        .ok_or_else(|| SchedulerError::NoSampler { file: file(), class: of_file.name.to_owned() })?;
    // A process without a table stays what it is under any sampler.
    let class = match of_file.kind {
        Kind::Table => Class::of(&solver).filter(|class| class.kind == Kind::Table).unwrap_or(of_file),
        Kind::Edm | Kind::Consistency => of_file,
    };
    let reader = Reader::new(config, path, class);
    let solver = own_keys(&reader, solver, wanted.is_some())?;
    let spec = match class.kind {
        Kind::Table => table(&reader, solver)?,
        Kind::Edm => edm(&reader, solver)?,
        Kind::Consistency => consistency(&reader, solver)?,
    };
    reader.finish()?;
    Ok(spec)
}

fn class_of_file(config: &Config, path: &Path) -> Result<&'static Class, SchedulerError> {
    let file = path.display().to_string();
    let name = match config.get("_class_name") {
        // Early files do not say; the others of their kind are DDPM's.
        None | Some(Value::Null) => "DDPMScheduler",
        Some(Value::String(class)) => class.as_str(),
        Some(other) => {
            let found = other.to_string().chars().take(60).collect();
            return Err(SchedulerError::Value { file, key: "_class_name", expected: "a string".to_owned(), found });
        }
    };
    Class::named(name).ok_or(SchedulerError::Class { file, class: name.to_owned() })
}

/// A process on a table of betas.
fn table(reader: &Reader<'_>, solver: SolverSpec) -> Result<SchedulerSpec, SchedulerError> {
    let train_steps = reader.integer("num_train_timesteps")?;
    let (start, end) = (reader.number("beta_start", 1e-4)?, reader.number("beta_end", 0.02)?);
    let name = reader.text("beta_schedule", "linear")?;
    let betas = match reader.numbers("trained_betas")? {
        Some(betas) => BetaSchedule::Custom(betas),
        None => BetaSchedule::from_config_name(&name, start, end).map_err(|e| reader.refused("beta_schedule", &e))?,
    };
    let rescale_zero_snr = reader.flag("rescale_betas_zero_snr")?;
    check_schedule(reader, &betas, train_steps, rescale_zero_snr)?;
    let spacing = reader.text("timestep_spacing", solver.spacing().name())?;
    let spacing = Spacing::from_name(&spacing).map_err(|e| reader.refused("timestep_spacing", &e))?;
    let (sigmas, sigma_range) = sigmas(reader)?;
    Ok(SchedulerSpec {
        solver,
        process: Process::Table,
        train_steps,
        betas,
        rescale_zero_snr,
        prediction: prediction(reader)?,
        time: reader
            .choice("timestep_type", &[("discrete", TimeKind::Discrete), ("continuous", TimeKind::Continuous)])?,
        spacing,
        steps_offset: reader.integer("steps_offset")?,
        sigmas,
        sigma_range,
        sigma_min: sigma(reader, "sigma_min")?,
        sigma_max: sigma(reader, "sigma_max")?,
        end: grid_end(reader)?,
        lambda_min: reader.given_number("lambda_min_clipped")?,
        clip: clip(reader)?,
        compat: Compat::Published,
    })
}

/// A noise level that a file may give.
fn sigma(reader: &Reader<'_>, key: &'static str) -> Result<Option<f64>, SchedulerError> {
    let given = reader.given_number(key)?;
    match given {
        Some(sigma) if !(sigma > 0.0 && sigma.is_finite()) => Err(reader.wrong(key, "a finite number above 0")),
        _ => Ok(given),
    }
}

/// Karras' process, which has no betas.
fn edm(reader: &Reader<'_>, solver: SolverSpec) -> Result<SchedulerSpec, SchedulerError> {
    let defaults = EdmProcess::default();
    let rho = reader.number("rho", 7.0)?;
    let process = EdmProcess {
        sigma_min: reader.number("sigma_min", defaults.sigma_min)?,
        sigma_max: reader.number("sigma_max", defaults.sigma_max)?,
        sigma_data: reader.number("sigma_data", defaults.sigma_data)?,
        sign: reader
            .choice("prediction_type", &[("epsilon", OutputSign::Plain), ("v_prediction", OutputSign::Negated)])?,
    };
    let sigmas = reader
        .choice("sigma_schedule", &[("karras", SigmaRule::Karras { rho }), ("exponential", SigmaRule::Exponential)])?;
    let spec = SchedulerSpec {
        solver,
        process: Process::Edm(process),
        train_steps: reader.integer("num_train_timesteps")?,
        sigmas,
        end: grid_end(reader)?,
        clip: clip(reader)?,
        ..SchedulerSpec::default()
    };
    // Two levels use every number.
    spec.plan(2).map_err(|e| {
        let key = match &e {
            SamplerError::Schedule(ScheduleError::Parameter { what: "rho", .. }) => "rho",
            SamplerError::Schedule(ScheduleError::Parameter { what: "sigma_max", .. }) => "sigma_max",
            _ => "sigma_min",
        };
        reader.refused(key, &e)
    })?;
    check_sigma_data(reader, process.sigma_data)?;
    Ok(spec)
}

/// The process of consistency models, which has no betas.
fn consistency(reader: &Reader<'_>, solver: SolverSpec) -> Result<SchedulerSpec, SchedulerError> {
    let defaults = ConsistencyProcess::default();
    let process = ConsistencyProcess {
        sigma_min: reader.number("sigma_min", defaults.sigma_min)?,
        sigma_max: reader.number("sigma_max", defaults.sigma_max)?,
        sigma_data: reader.number("sigma_data", defaults.sigma_data)?,
    };
    let train_steps = reader.integer("num_train_timesteps")?;
    let spec = SchedulerSpec {
        solver,
        process: Process::Consistency(process),
        train_steps,
        sigmas: SigmaRule::Karras { rho: reader.number("rho", 7.0)? },
        clip: if reader.flag("clip_denoised")? { Clip::Range(1.0) } else { Clip::None },
        ..SchedulerSpec::default()
    };
    spec.plan(1).map_err(|e| {
        let key = match &e {
            SamplerError::Schedule(ScheduleError::Parameter { what: "rho", .. }) => "rho",
            SamplerError::Schedule(ScheduleError::Parameter { what: "sigma_max", .. }) => "sigma_max",
            SamplerError::Schedule(ScheduleError::Parameter { .. }) => "sigma_min",
            _ => "num_train_timesteps",
        };
        reader.refused(key, &e)
    })?;
    check_sigma_data(reader, process.sigma_data)?;
    Ok(spec)
}

fn check_sigma_data(reader: &Reader<'_>, sigma_data: f64) -> Result<(), SchedulerError> {
    if sigma_data > 0.0 && sigma_data.is_finite() {
        return Ok(());
    }
    Err(reader.wrong("sigma_data", "a number above 0"))
}

/// The rule of the noise levels, and between which ends it works.
fn sigmas(reader: &Reader<'_>) -> Result<(SigmaRule, SigmaRange), SchedulerError> {
    let rules = [
        ("use_karras_sigmas", SigmaRule::karras()),
        ("use_lu_lambdas", SigmaRule::Lambda),
        ("use_exponential_sigmas", SigmaRule::Exponential),
        ("use_beta_sigmas", SigmaRule::Beta),
    ];
    let mut chosen = None;
    for (key, rule) in rules {
        match (reader.flag(key)?, chosen) {
            (true, Some((other, _))) => {
                return Err(reader.refused(key, &format_args!("{other} is on, too, and only one rule can hold")));
            }
            (true, None) => chosen = Some((key, rule)),
            (false, _) => {}
        }
    }
    let log_linear = reader.choice("interpolation_type", &[("linear", false), ("log_linear", true)])?;
    let otherwise = if log_linear { SigmaRule::LogLinear } else { SigmaRule::Steps };
    let range = if log_linear { SigmaRange::Table } else { SigmaRange::Visited };
    Ok((chosen.map_or(otherwise, |(_, rule)| rule), range))
}

/// Where the last move leads.
fn grid_end(reader: &Reader<'_>) -> Result<GridEnd, SchedulerError> {
    if reader.has("set_alpha_to_one") {
        return Ok(if reader.flag("set_alpha_to_one")? { GridEnd::Clean } else { GridEnd::FirstStep });
    }
    reader.choice("final_sigmas_type", &[("zero", GridEnd::Clean), ("sigma_min", GridEnd::FirstStep)])
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

fn prediction(reader: &Reader<'_>) -> Result<Prediction, SchedulerError> {
    // The name of early versions, which had two predictions.
    let early = reader.given_flag("predict_epsilon")?.map(|epsilon| if epsilon { "epsilon" } else { "sample" });
    let name = reader.given_text("prediction_type")?.unwrap_or_else(|| early.unwrap_or("epsilon").to_owned());
    let named = Prediction::from_config_name(&name).map_err(|e| reader.refused("prediction_type", &e))?;
    match reader.given_text(PREDICTION_KEY)? {
        Some(name) => Prediction::from_name(&name).map_err(|e| reader.refused(PREDICTION_KEY, &e)),
        None => Ok(named),
    }
}

fn clip(reader: &Reader<'_>) -> Result<Clip, SchedulerError> {
    let sample = reader.flag("clip_sample")?;
    let range = reader.number("clip_sample_range", 1.0)?;
    let ratio = reader.number("dynamic_thresholding_ratio", 0.995)?;
    let max = reader.number("sample_max_value", 1.0)?;
    let (name, clip) = if reader.flag("thresholding")? {
        ("thresholding", Clip::Dynamic { ratio, max })
    } else if sample {
        ("clip_sample_range", Clip::Range(range))
    } else {
        ("clip_sample", Clip::None)
    };
    clip.check().map_err(|e: SamplerError| reader.refused(name, &e))
}

/// The keys that only the class of the sampler has. A sampler that was asked for by name (`named`) is what the name says.
fn own_keys(reader: &Reader<'_>, solver: SolverSpec, named: bool) -> Result<SolverSpec, SchedulerError> {
    match solver {
        SolverSpec::Ddpm { .. } => {
            let name = reader.text("variance_type", VarianceType::default().config_name())?;
            let variance = VarianceType::from_config_name(&name).map_err(|e| reader.refused("variance_type", &e))?;
            Ok(SolverSpec::Ddpm { variance })
        }
        SolverSpec::Dpm(options) => multistep::dpm(reader, named.then_some(options)),
        SolverSpec::Deis { .. } => multistep::deis(reader),
        SolverSpec::DpmSinglestep(options) => multistep::singlestep(reader, named.then_some(options)),
        SolverSpec::UniPc(_) => multistep::unipc(reader),
        SolverSpec::Pndm { start, .. } => multistep::pndm(reader, named.then_some(start)),
        SolverSpec::Consistency(form) => multistep::consistency(reader, form),
        other => Ok(other),
    }
}

#[cfg(test)]
mod golden;
#[cfg(test)]
mod multistep_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod trajectories;
