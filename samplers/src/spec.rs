//! Solvers by name, with their own options.

use tweedie_schedule::{Prediction, Spacing, Variance};

use crate::{
    Churn, Clip, Compat, Consistency, ConsistencyForm, Ddim, Ddpm, DpmForm, DpmMultistep, DpmOptions, DpmSinglestep,
    Euler, EulerAncestral, GroupSize, Heun, Kdpm2, Kdpm2Ancestral, Lms, Lowering, Pndm, PndmStart, SamplerError,
    SinglestepOptions, Solver, UniPc, UniPcOptions,
};

/// How a diffusers class lays out its grid of levels (DIFFUSERS.md, section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GridKind {
    /// Whole steps, and the levels of the table there.
    Steps,
    /// The variance-exploding form: fractional steps, sigmas by a rule of their own, the first state scaled by sigma.
    Sigmas,
    /// Whole steps of one move more, sigmas by a rule of their own over the whole table.
    Multistep,
}

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
    },
    /// Euler's method.
    Euler {
        /// Noise before each move.
        churn: Churn,
    },
    /// Its ancestral form.
    EulerAncestral,
    /// Heun's method.
    Heun {
        /// Noise before each move.
        churn: Churn,
    },
    /// The linear multistep method.
    Lms {
        /// The highest order, 1 to 4.
        order: usize,
    },
    /// The midpoint method.
    Kdpm2,
    /// Its ancestral form.
    Kdpm2Ancestral,
    /// The multistep DPM-Solvers.
    Dpm(DpmOptions),
    /// DEIS.
    Deis {
        /// The highest order: 1, 2 or 3 estimates (`solver_order`).
        form: DpmForm,
        /// Where the order is lowered (`lower_order_final`).
        lowering: Lowering,
    },
    /// The singlestep DPM-Solvers.
    DpmSinglestep(SinglestepOptions),
    /// UniPC.
    UniPc(UniPcOptions),
    /// PNDM and PLMS.
    Pndm {
        /// The first moves (`skip_prk_steps`).
        start: PndmStart,
        /// What is averaged over moves: diffusers averages what the network predicts (`prediction_type`).
        averaged: Prediction,
    },
    /// Consistency sampling.
    Consistency(ConsistencyForm),
}

impl SolverSpec {
    /// The names that [`solver_by_name`] knows.
    pub const NAMES: &'static str = "ddpm, ddim, euler, euler-ancestral, heun, lms, kdpm2, kdpm2-ancestral, dpm++2m, dpm++3m, \
         dpm++3m-exact, dpm++2m-sde, dpm++3m-sde, dpm2m, dpm3m, deis, dpm++2s, dpm++3s, unipc, pndm, plms, lcm, consistency";

    /// Other names, with those that they stand for: DPM-Solver-2 is the midpoint method ([`crate::Kdpm2`]).
    pub const ALIASES: [(&'static str, &'static str); 1] = [("dpm-solver2", "kdpm2")];

    /// Every solver with its defaults, in the order of [`SolverSpec::NAMES`].
    pub const ALL: [Self; 23] = [
        Self::ddpm(),
        Self::ddim(),
        Self::euler(),
        Self::EulerAncestral,
        Self::heun(),
        Self::lms(),
        Self::Kdpm2,
        Self::Kdpm2Ancestral,
        Self::Dpm(DpmOptions::plus_plus(DpmForm::Second)),
        Self::Dpm(DpmOptions::plus_plus(DpmForm::Third)),
        Self::Dpm(DpmOptions::plus_plus(DpmForm::ThirdExact)),
        Self::Dpm(DpmOptions::sde(DpmForm::Second)),
        Self::Dpm(DpmOptions::sde(DpmForm::Third)),
        Self::Dpm(DpmOptions::noise(DpmForm::Second)),
        Self::Dpm(DpmOptions::noise(DpmForm::Third)),
        Self::deis(),
        Self::DpmSinglestep(SinglestepOptions::plus_plus(GroupSize::Two)),
        Self::DpmSinglestep(SinglestepOptions::plus_plus(GroupSize::Three)),
        Self::UniPc(UniPcOptions::new(2)),
        Self::pndm(PndmStart::RungeKutta),
        Self::pndm(PndmStart::Multistep),
        Self::Consistency(ConsistencyForm::latent()),
        Self::Consistency(ConsistencyForm::plain()),
    ];

    /// Ancestral sampling with diffusers' defaults: the small variance.
    pub const fn ddpm() -> Self {
        Self::Ddpm { variance: VarianceType::FixedSmall }
    }

    /// DDIM with diffusers' defaults: deterministic.
    pub const fn ddim() -> Self {
        Self::Ddim { eta: 0.0, use_clipped_model_output: false }
    }

    /// Euler's method without noise.
    pub const fn euler() -> Self {
        Self::Euler { churn: Churn::NONE }
    }

    /// Heun's method without noise.
    pub const fn heun() -> Self {
        Self::Heun { churn: Churn::NONE }
    }

    /// The linear multistep method with diffusers' default: order 4.
    pub const fn lms() -> Self {
        Self::Lms { order: Lms::HIGHEST }
    }

    /// DEIS with diffusers' defaults: order 2.
    pub const fn deis() -> Self {
        Self::Deis { form: DpmForm::Second, lowering: Lowering::ShortRuns }
    }

    /// PNDM or PLMS, which average the noise.
    pub const fn pndm(start: PndmStart) -> Self {
        Self::Pndm { start, averaged: Prediction::Eps }
    }

    /// The name on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Ddpm { .. } => "ddpm",
            Self::Ddim { .. } => "ddim",
            Self::Euler { .. } => "euler",
            Self::EulerAncestral => "euler-ancestral",
            Self::Heun { .. } => "heun",
            Self::Lms { .. } => "lms",
            Self::Kdpm2 => "kdpm2",
            Self::Kdpm2Ancestral => "kdpm2-ancestral",
            Self::Dpm(options) => options.name(),
            Self::Deis { .. } => "deis",
            Self::DpmSinglestep(options) => options.name(),
            Self::UniPc(_) => "unipc",
            Self::Pndm { start: PndmStart::RungeKutta, .. } => "pndm",
            Self::Pndm { .. } => "plms",
            Self::Consistency(form) => form.name(),
        }
    }

    /// What the solver makes of a scheduler's clip, as the diffusers class of its name does: DDPM, DDIM, Heun, LCM and
    /// consistency sampling apply any, DPM-Solver, DEIS and UniPC only dynamic thresholding, the others none.
    pub fn clip(&self, wanted: Clip) -> Clip {
        match (self, wanted) {
            (
                Self::Euler { .. }
                | Self::EulerAncestral
                | Self::Lms { .. }
                | Self::Kdpm2
                | Self::Kdpm2Ancestral
                | Self::Pndm { .. },
                _,
            ) => Clip::None,
            (Self::Dpm(_) | Self::DpmSinglestep(_) | Self::Deis { .. } | Self::UniPc(_), Clip::Range(_)) => Clip::None,
            _ => wanted,
        }
    }

    /// The `timestep_spacing` that its diffusers class has where a file does not say.
    pub fn spacing(&self) -> Spacing {
        match self {
            Self::Ddpm { .. } | Self::Ddim { .. } | Self::Pndm { .. } | Self::Consistency(_) => Spacing::Leading,
            _ => Spacing::Linspace,
        }
    }

    /// How its diffusers class lays out its grid.
    pub(crate) fn grid_kind(&self) -> GridKind {
        match self {
            Self::Ddpm { .. } | Self::Ddim { .. } | Self::Pndm { .. } | Self::Consistency(_) => GridKind::Steps,
            Self::Euler { .. }
            | Self::EulerAncestral
            | Self::Heun { .. }
            | Self::Lms { .. }
            | Self::Kdpm2
            | Self::Kdpm2Ancestral => GridKind::Sigmas,
            Self::Dpm(_) | Self::DpmSinglestep(_) | Self::Deis { .. } | Self::UniPc(_) => GridKind::Multistep,
        }
    }

    /// The solver, which clips `x_0` as told, as far as it clips at all ([`SolverSpec::clip`]).
    ///
    /// # Errors
    /// If `eta`, the churn, an order or the clip is out of range.
    pub fn build(&self, clip: Clip, compat: Compat) -> Result<Box<dyn Solver>, SamplerError> {
        let clip = self.clip(clip.check()?);
        match *self {
            Self::Ddpm { variance } => Ok(Box::new(Ddpm { variance: variance.variance(), clip })),
            Self::Ddim { eta, .. } if !(eta >= 0.0 && eta.is_finite()) => Err(SamplerError::Parameter {
                operation: "ddim",
                what: "eta",
                expected: "finite and not negative",
                found: eta,
            }),
            Self::Ddim { eta, use_clipped_model_output } => Ok(Box::new(Ddim { eta, clip, use_clipped_model_output })),
            Self::Euler { churn } => Ok(Box::new(Euler { clip, churn: churn.check()? })),
            Self::EulerAncestral => Ok(Box::new(EulerAncestral { clip })),
            Self::Heun { churn } => Ok(Box::new(Heun { clip, churn: churn.check()?, compat })),
            Self::Lms { order } => Ok(Box::new(Lms::new(order)?)),
            Self::Kdpm2 => Ok(Box::new(Kdpm2 { compat })),
            Self::Kdpm2Ancestral => Ok(Box::new(Kdpm2Ancestral { compat })),
            Self::Dpm(options) => {
                let form = if compat == Compat::Diffusers { options.form.of_diffusers() } else { options.form };
                Ok(Box::new(DpmMultistep::new(DpmOptions { form, ..options }, clip)))
            }
            Self::Deis { form, lowering } => Ok(Box::new(DpmMultistep::deis(form, lowering, clip))),
            Self::DpmSinglestep(options) => Ok(Box::new(DpmSinglestep::new(options, clip, compat))),
            Self::UniPc(options) => Ok(Box::new(UniPc::new(options, clip)?)),
            Self::Pndm { start, averaged } => Ok(Box::new(Pndm::new(start, averaged))),
            Self::Consistency(form) => Ok(Box::new(Consistency { form, clip })),
        }
    }
}

/// The solver of a command-line name, with its defaults.
///
/// # Errors
/// If there is no such solver; the error lists those that exist.
pub fn solver_by_name(name: &str) -> Result<SolverSpec, SamplerError> {
    let canonical = SolverSpec::ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, of)| of);
    SolverSpec::ALL.into_iter().find(|s| s.name() == canonical).ok_or_else(|| SamplerError::UnknownName {
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
