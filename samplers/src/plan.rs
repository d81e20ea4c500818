//! From the description of a scheduler to a schedule, a grid and a solver (DIFFUSERS.md, sections 3.1, 3.2 and 9).

use tweedie_schedule::{BetaSchedule, Prediction, Schedule, Spacing, StepGrid, Variance, prediction};

use crate::{
    Clip, Ddim, Ddpm, DpmForm, DpmMultistep, DpmOptions, Euler, EulerAncestral, Heun, SamplerError, Solver, UniPc,
    UniPcOptions,
};

/// A solver and its own options.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum SolverSpec {
    /// Ancestral sampling.
    Ddpm {
        /// `sigma_q^2` of the reverse step.
        variance: VarianceType,
    },
    /// DDIM.
    Ddim {
        /// 0 is deterministic, 1 is ancestral.
        eta: f64,
        /// Whether `eps` is derived from the clipped `x_0`.
        use_clipped_model_output: bool,
        /// Whether the last move ends at `abar = 1`; otherwise it ends at the level of step 1.
        set_alpha_to_one: bool,
    },
    /// Euler's method.
    Euler,
    /// Its ancestral form.
    EulerAncestral,
    /// Heun's method.
    Heun,
    /// The multistep DPM-Solvers.
    Dpm(DpmOptions),
    /// UniPC.
    UniPc(UniPcOptions),
}

impl SolverSpec {
    /// The names that [`solver_by_name`] knows.
    pub const NAMES: &'static str = "ddpm, ddim, euler, euler-ancestral, heun, dpm++2m, dpm++3m, dpm++3m-exact, dpm++2m-sde, dpm++3m-sde, \
         dpm2m, dpm3m, unipc";

    /// Every solver with its defaults, in the order of [`SolverSpec::NAMES`].
    pub const ALL: [Self; 13] = [
        Self::ddpm(),
        Self::ddim(),
        Self::Euler,
        Self::EulerAncestral,
        Self::Heun,
        Self::Dpm(DpmOptions::plus_plus(DpmForm::Second)),
        Self::Dpm(DpmOptions::plus_plus(DpmForm::Third)),
        Self::Dpm(DpmOptions::plus_plus(DpmForm::ThirdExact)),
        Self::Dpm(DpmOptions::sde(DpmForm::Second)),
        Self::Dpm(DpmOptions::sde(DpmForm::Third)),
        Self::Dpm(DpmOptions::noise(DpmForm::Second)),
        Self::Dpm(DpmOptions::noise(DpmForm::Third)),
        Self::UniPc(UniPcOptions::new(2)),
    ];

    /// Ancestral sampling with diffusers' defaults: the small variance.
    pub const fn ddpm() -> Self {
        Self::Ddpm { variance: VarianceType::FixedSmall }
    }

    /// DDIM with diffusers' defaults: deterministic, ending at `abar = 1`.
    pub const fn ddim() -> Self {
        Self::Ddim { eta: 0.0, use_clipped_model_output: false, set_alpha_to_one: true }
    }

    /// The name on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Ddpm { .. } => "ddpm",
            Self::Ddim { .. } => "ddim",
            Self::Euler => "euler",
            Self::EulerAncestral => "euler-ancestral",
            Self::Heun => "heun",
            Self::Dpm(options) => options.name(),
            Self::UniPc(_) => "unipc",
        }
    }

    /// What the solver makes of a scheduler's clip, as the diffusers class of its name does: DDPM, DDIM and Heun apply any,
    /// DPM-Solver and UniPC only dynamic thresholding, Euler and its ancestral form none.
    pub fn clip(&self, wanted: Clip) -> Clip {
        match (self, wanted) {
            (Self::Euler | Self::EulerAncestral, _) => Clip::None,
            (Self::Dpm(_) | Self::UniPc(_), Clip::Range(_)) => Clip::None,
            _ => wanted,
        }
    }

    /// The `timestep_spacing` that its diffusers class has where a file does not say.
    pub fn spacing(&self) -> Spacing {
        match self {
            Self::Ddpm { .. } | Self::Ddim { .. } => Spacing::Leading,
            _ => Spacing::Linspace,
        }
    }

    /// The solver, which clips `x_0` as told, as far as it clips at all ([`SolverSpec::clip`]).
    ///
    /// # Errors
    /// If `eta` is negative or not finite, or the clip is out of range.
    pub fn build(&self, clip: Clip) -> Result<Box<dyn Solver>, SamplerError> {
        let clip = self.clip(clip.check()?);
        match *self {
            Self::Ddpm { variance } => Ok(Box::new(Ddpm { variance: variance.variance(), clip })),
            Self::Ddim { eta, .. } if !(eta >= 0.0 && eta.is_finite()) => Err(SamplerError::Parameter {
                operation: "ddim",
                what: "eta",
                expected: "finite and not negative",
                found: eta,
            }),
            Self::Ddim { eta, use_clipped_model_output, .. } => {
                Ok(Box::new(Ddim { eta, clip, use_clipped_model_output }))
            }
            Self::Euler => Ok(Box::new(Euler { clip })),
            Self::EulerAncestral => Ok(Box::new(EulerAncestral { clip })),
            Self::Heun => Ok(Box::new(Heun { clip })),
            Self::Dpm(options) => Ok(Box::new(DpmMultistep::new(options, clip))),
            Self::UniPc(options) => Ok(Box::new(UniPc::new(options, clip)?)),
        }
    }
}

/// The solver of a command-line name, with its defaults.
///
/// # Errors
/// If there is no such solver; the error lists those that exist.
pub fn solver_by_name(name: &str) -> Result<SolverSpec, SamplerError> {
    SolverSpec::ALL.into_iter().find(|s| s.name() == name).ok_or_else(|| SamplerError::UnknownName {
        what: "sampler",
        found: name.to_owned(),
        known: SolverSpec::NAMES,
    })
}

/// The `variance_type` of a DDPM scheduler file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum VarianceType {
    /// `b~`, the standard deviation taken as its square root.
    #[default]
    FixedSmall,
    /// `b~`, the standard deviation taken as `exp(ln(b~) / 2)`: the same number.
    FixedSmallLog,
    /// `b`.
    FixedLarge,
    /// `b`, the standard deviation taken as `exp(ln(b) / 2)`: the same number (diffusers takes the root of the logarithm,
    /// which is NaN).
    FixedLargeLog,
    /// 1, which diffusers does not have.
    Unit,
    /// Between `b~` and `b`, as the model says for every value.
    LearnedRange,
}

impl VarianceType {
    /// The names that [`VarianceType::from_config_name`] knows.
    pub const NAMES: &'static str = "fixed_small, fixed_small_log, fixed_large, fixed_large_log, unit, learned_range";

    /// The name in a scheduler file.
    pub fn config_name(self) -> &'static str {
        match self {
            Self::FixedSmall => "fixed_small",
            Self::FixedSmallLog => "fixed_small_log",
            Self::FixedLarge => "fixed_large",
            Self::FixedLargeLog => "fixed_large_log",
            Self::Unit => "unit",
            Self::LearnedRange => "learned_range",
        }
    }

    /// The variance type of a `variance_type` entry.
    ///
    /// # Errors
    /// If there is no such type, or it is `learned`, the raw output as a variance, which no published model has; the error
    /// lists those that work.
    pub fn from_config_name(name: &str) -> Result<Self, SamplerError> {
        if name == "learned" {
            return Err(SamplerError::LearnedVariance { found: name.to_owned(), known: Self::NAMES });
        }
        [Self::FixedSmall, Self::FixedSmallLog, Self::FixedLarge, Self::FixedLargeLog, Self::Unit, Self::LearnedRange]
            .into_iter()
            .find(|v| v.config_name() == name)
            .ok_or_else(|| SamplerError::UnknownName {
                what: "variance_type",
                found: name.to_owned(),
                known: Self::NAMES,
            })
    }

    /// The variance.
    pub fn variance(self) -> Variance {
        match self {
            Self::FixedSmall | Self::FixedSmallLog => Variance::FixedSmall,
            Self::FixedLarge | Self::FixedLargeLog => Variance::FixedLarge,
            Self::Unit => Variance::Unit,
            Self::LearnedRange => Variance::LearnedRange,
        }
    }
}

/// A scheduler as its file describes it. The defaults are those of diffusers' `DDPMScheduler` and `DDIMScheduler`.
#[derive(Clone, Debug, PartialEq)]
pub struct SchedulerSpec {
    /// The solver (`_class_name` and its own keys).
    pub solver: SolverSpec,
    /// T (`num_train_timesteps`).
    pub train_steps: usize,
    /// `beta_schedule`, `beta_start`, `beta_end`; or `trained_betas` as [`BetaSchedule::Custom`].
    pub betas: BetaSchedule,
    /// `rescale_betas_zero_snr`.
    pub rescale_zero_snr: bool,
    /// `prediction_type`.
    pub prediction: Prediction,
    /// `timestep_spacing`.
    pub spacing: Spacing,
    /// `steps_offset`, which shifts the leading spacing alone.
    pub steps_offset: usize,
    /// `clip_sample` and `clip_sample_range`, or `thresholding` and its keys (which wins if both are set).
    pub clip: Clip,
}

impl Default for SchedulerSpec {
    fn default() -> Self {
        Self {
            solver: SolverSpec::ddpm(),
            train_steps: 1000,
            betas: BetaSchedule::Linear { start: 1e-4, end: 0.02 },
            rescale_zero_snr: false,
            prediction: Prediction::Eps,
            spacing: Spacing::Leading,
            steps_offset: 0,
            clip: Clip::Range(1.0),
        }
    }
}

/// Everything that [`crate::sample`] needs beside a denoiser and noise.
pub struct Plan {
    /// The noise levels of training.
    pub schedule: Schedule,
    /// What the network predicts.
    pub prediction: Prediction,
    /// The steps to visit.
    pub grid: StepGrid,
    /// The solver.
    pub solver: Box<dyn Solver>,
}

impl std::fmt::Debug for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plan")
            .field("train_steps", &self.schedule.steps())
            .field("prediction", &self.prediction)
            .field("grid", &self.grid)
            .field("solver", &self.solver.name())
            .finish_non_exhaustive()
    }
}

impl SchedulerSpec {
    /// The noise levels of training.
    ///
    /// # Errors
    /// If the betas are not a schedule of `train_steps` steps.
    pub fn schedule(&self) -> Result<Schedule, SamplerError> {
        let schedule = Schedule::new(&self.betas, self.train_steps)?;
        Ok(if self.rescale_zero_snr { schedule.rescaled_zero_terminal_snr()? } else { schedule })
    }

    /// The schedule, the grid of `steps` moves and the solver.
    ///
    /// Where this differs from stock diffusers, with K steps out of T:
    /// - DDIM moves to the next entry of the grid, and from the last one to its end. Diffusers moves down by a fixed
    ///   `floor(T / K)`, which misses the grid for linspace, and for trailing where K does not divide T; and for leading with
    ///   `steps_offset >= floor(T / K)` its last move stops short of the end.
    /// - Steps that leave 1..=T are an error (diffusers reads beyond its table), and the entry -1 that numpy's float stride
    ///   yields for some trailing grids is left out.
    /// - A first step without signal is an error for a model that predicts the noise, where diffusers divides by 0.
    /// - `fixed_large_log` is the standard deviation of `fixed_large`; in diffusers it is NaN.
    ///
    /// # Errors
    /// If the schedule, the grid, the solver or the clip is out of range, or the first step has no answer for the prediction.
    pub fn plan(&self, steps: usize) -> Result<Plan, SamplerError> {
        let schedule = self.schedule()?;
        let mut grid = StepGrid::new(self.train_steps, steps, self.spacing, self.steps_offset)?;
        if let SolverSpec::Ddim { set_alpha_to_one: false, .. } = self.solver {
            grid = grid.with_final_step(1)?;
        }
        let first = grid.steps()[0];
        let level = schedule.level(first);
        let says_x0 = self.prediction == Prediction::Mean
            || prediction::convert(self.prediction, Prediction::X0, level, None).is_ok();
        if !says_x0 {
            return Err(SamplerError::ZeroSnr { t: first, prediction: self.prediction.name() });
        }
        Ok(Plan { prediction: self.prediction, grid, solver: self.solver.build(self.clip)?, schedule })
    }
}
