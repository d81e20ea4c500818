//! The scheduler classes of diffusers: which keys each has, and their defaults (DIFFUSERS.md, section 3.1).

use tweedie_samplers::{
    ConsistencyForm, DpmForm, DpmOptions, GroupSize, PndmStart, SinglestepOptions, SolverSpec, UniPcOptions,
};

/// The default of a key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fallback {
    /// A number.
    Number(f64),
    /// A switch.
    Flag(bool),
    /// A name.
    Text(&'static str),
    /// Nothing: the key says something only where it is given.
    Null,
}

use Fallback::{Flag, Null, Number, Text};

type Keys = &'static [(&'static str, Fallback)];

/// What a file of a class describes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// A process on a table of betas.
    Table,
    /// Karras' continuous process.
    Edm,
    /// That of consistency models.
    Consistency,
}

/// A class of diffusers.
#[derive(Debug)]
pub struct Class {
    /// `_class_name`.
    pub name: &'static str,
    /// The process of its files.
    pub kind: Kind,
    /// The sampler that its files mean, before its own keys; `None` where it does not exist here.
    pub solver: Option<SolverSpec>,
    /// Keys that go before those of [`COMMON`].
    own: Keys,
}

/// Keys of every class with a table of betas.
const COMMON: Keys = &[
    ("num_train_timesteps", Number(1000.0)),
    ("beta_start", Number(1e-4)),
    ("beta_end", Number(0.02)),
    ("beta_schedule", Text("linear")),
    ("trained_betas", Null),
    ("prediction_type", Text("epsilon")),
    ("steps_offset", Number(0.0)),
];

/// Keys of early versions: the prediction under its old name, and two without meaning for the process.
const EARLY: [&str; 3] = ["predict_epsilon", "tensor_format", "timestep_values"];

/// Every class that is known. A class without keys lends its file to the samplers of others.
pub const CLASSES: &[Class] = &[
    Class {
        name: "DDPMScheduler",
        kind: Kind::Table,
        solver: Some(SolverSpec::ddpm()),
        own: &[
            ("variance_type", Text("fixed_small")),
            ("clip_sample", Flag(true)),
            ("thresholding", Flag(false)),
            ("dynamic_thresholding_ratio", Number(0.995)),
            ("clip_sample_range", Number(1.0)),
            ("sample_max_value", Number(1.0)),
            ("timestep_spacing", Text("leading")),
            ("rescale_betas_zero_snr", Flag(false)),
        ],
    },
    Class {
        name: "DDIMScheduler",
        kind: Kind::Table,
        solver: Some(SolverSpec::ddim()),
        own: &[
            ("clip_sample", Flag(true)),
            ("set_alpha_to_one", Flag(true)),
            ("thresholding", Flag(false)),
            ("dynamic_thresholding_ratio", Number(0.995)),
            ("clip_sample_range", Number(1.0)),
            ("sample_max_value", Number(1.0)),
            ("timestep_spacing", Text("leading")),
            ("rescale_betas_zero_snr", Flag(false)),
        ],
    },
    Class {
        name: "PNDMScheduler",
        kind: Kind::Table,
        solver: Some(SolverSpec::pndm(PndmStart::RungeKutta)),
        own: &[
            ("skip_prk_steps", Flag(false)),
            ("set_alpha_to_one", Flag(false)),
            ("timestep_spacing", Text("leading")),
        ],
    },
    Class {
        name: "EulerDiscreteScheduler",
        kind: Kind::Table,
        solver: Some(SolverSpec::euler()),
        own: &[
            ("interpolation_type", Text("linear")),
            ("use_karras_sigmas", Flag(false)),
            ("use_exponential_sigmas", Flag(false)),
            ("use_beta_sigmas", Flag(false)),
            ("sigma_min", Null),
            ("sigma_max", Null),
            ("timestep_spacing", Text("linspace")),
            ("timestep_type", Text("discrete")),
            ("rescale_betas_zero_snr", Flag(false)),
            ("final_sigmas_type", Text("zero")),
        ],
    },
    Class {
        name: "EulerAncestralDiscreteScheduler",
        kind: Kind::Table,
        solver: Some(SolverSpec::EulerAncestral),
        own: &[("timestep_spacing", Text("linspace")), ("rescale_betas_zero_snr", Flag(false))],
    },
    Class {
        name: "HeunDiscreteScheduler",
        kind: Kind::Table,
        solver: Some(SolverSpec::heun()),
        own: &[
            ("beta_start", Number(0.00085)),
            ("beta_end", Number(0.012)),
            ("use_karras_sigmas", Flag(false)),
            ("use_exponential_sigmas", Flag(false)),
            ("use_beta_sigmas", Flag(false)),
            ("clip_sample", Flag(false)),
            ("clip_sample_range", Number(1.0)),
            ("timestep_spacing", Text("linspace")),
        ],
    },
    Class {
        name: "LMSDiscreteScheduler",
        kind: Kind::Table,
        solver: Some(SolverSpec::lms()),
        own: &[
            ("use_karras_sigmas", Flag(false)),
            ("use_exponential_sigmas", Flag(false)),
            ("use_beta_sigmas", Flag(false)),
            ("timestep_spacing", Text("linspace")),
        ],
    },
    Class { name: "KDPM2DiscreteScheduler", kind: Kind::Table, solver: Some(SolverSpec::Kdpm2), own: KDPM2 },
    Class {
        name: "KDPM2AncestralDiscreteScheduler",
        kind: Kind::Table,
        solver: Some(SolverSpec::Kdpm2Ancestral),
        own: KDPM2,
    },
    Class {
        name: "DPMSolverMultistepScheduler",
        kind: Kind::Table,
        solver: Some(SolverSpec::Dpm(DpmOptions::plus_plus(DpmForm::Second))),
        own: &[
            ("solver_order", Number(2.0)),
            ("thresholding", Flag(false)),
            ("dynamic_thresholding_ratio", Number(0.995)),
            ("sample_max_value", Number(1.0)),
            ("algorithm_type", Text("dpmsolver++")),
            ("solver_type", Text("midpoint")),
            ("lower_order_final", Flag(true)),
            ("euler_at_final", Flag(false)),
            ("use_karras_sigmas", Flag(false)),
            ("use_exponential_sigmas", Flag(false)),
            ("use_beta_sigmas", Flag(false)),
            ("use_lu_lambdas", Flag(false)),
            ("use_flow_sigmas", Flag(false)),
            ("flow_shift", Number(1.0)),
            ("final_sigmas_type", Text("zero")),
            ("lambda_min_clipped", Number(f64::NEG_INFINITY)),
            ("variance_type", Null),
            ("timestep_spacing", Text("linspace")),
            ("rescale_betas_zero_snr", Flag(false)),
            ("use_dynamic_shifting", Flag(false)),
            ("time_shift_type", Text("exponential")),
        ],
    },
    Class {
        name: "UniPCMultistepScheduler",
        kind: Kind::Table,
        solver: Some(SolverSpec::UniPc(UniPcOptions::new(2))),
        own: &[
            ("solver_order", Number(2.0)),
            ("thresholding", Flag(false)),
            ("dynamic_thresholding_ratio", Number(0.995)),
            ("sample_max_value", Number(1.0)),
            ("predict_x0", Flag(true)),
            ("solver_type", Text("bh2")),
            ("lower_order_final", Flag(true)),
            ("disable_corrector", Null),
            ("solver_p", Null),
            ("use_karras_sigmas", Flag(false)),
            ("use_exponential_sigmas", Flag(false)),
            ("use_beta_sigmas", Flag(false)),
            ("use_flow_sigmas", Flag(false)),
            ("flow_shift", Number(1.0)),
            ("timestep_spacing", Text("linspace")),
            ("final_sigmas_type", Text("zero")),
            ("rescale_betas_zero_snr", Flag(false)),
            ("use_dynamic_shifting", Flag(false)),
            ("time_shift_type", Text("exponential")),
            ("sigma_min", Null),
            ("sigma_max", Null),
            ("shift_terminal", Null),
        ],
    },
    Class {
        name: "EDMEulerScheduler",
        kind: Kind::Edm,
        solver: Some(SolverSpec::euler()),
        own: &[
            ("num_train_timesteps", Number(1000.0)),
            ("prediction_type", Text("epsilon")),
            ("sigma_min", Number(0.002)),
            ("sigma_max", Number(80.0)),
            ("sigma_data", Number(0.5)),
            ("sigma_schedule", Text("karras")),
            ("rho", Number(7.0)),
            ("final_sigmas_type", Text("zero")),
        ],
    },
    Class {
        name: "DPMSolverSinglestepScheduler",
        kind: Kind::Table,
        solver: Some(SolverSpec::DpmSinglestep(SinglestepOptions::plus_plus(GroupSize::Two))),
        own: &[
            ("solver_order", Number(2.0)),
            ("thresholding", Flag(false)),
            ("dynamic_thresholding_ratio", Number(0.995)),
            ("sample_max_value", Number(1.0)),
            ("algorithm_type", Text("dpmsolver++")),
            ("solver_type", Text("midpoint")),
            ("lower_order_final", Flag(false)),
            ("use_karras_sigmas", Flag(false)),
            ("use_exponential_sigmas", Flag(false)),
            ("use_beta_sigmas", Flag(false)),
            ("use_flow_sigmas", Flag(false)),
            ("flow_shift", Number(1.0)),
            ("final_sigmas_type", Text("zero")),
            ("lambda_min_clipped", Number(f64::NEG_INFINITY)),
            ("variance_type", Null),
            ("use_dynamic_shifting", Flag(false)),
            ("time_shift_type", Text("exponential")),
        ],
    },
    Class {
        name: "DEISMultistepScheduler",
        kind: Kind::Table,
        solver: Some(SolverSpec::deis()),
        own: &[
            ("solver_order", Number(2.0)),
            ("thresholding", Flag(false)),
            ("dynamic_thresholding_ratio", Number(0.995)),
            ("sample_max_value", Number(1.0)),
            ("algorithm_type", Text("deis")),
            ("solver_type", Text("logrho")),
            ("lower_order_final", Flag(true)),
            ("use_karras_sigmas", Flag(false)),
            ("use_exponential_sigmas", Flag(false)),
            ("use_beta_sigmas", Flag(false)),
            ("use_flow_sigmas", Flag(false)),
            ("flow_shift", Number(1.0)),
            ("timestep_spacing", Text("linspace")),
            ("use_dynamic_shifting", Flag(false)),
            ("time_shift_type", Text("exponential")),
        ],
    },
    Class {
        name: "LCMScheduler",
        kind: Kind::Table,
        solver: Some(SolverSpec::Consistency(ConsistencyForm::latent())),
        own: &[
            ("beta_start", Number(0.00085)),
            ("beta_end", Number(0.012)),
            ("beta_schedule", Text("scaled_linear")),
            ("original_inference_steps", Number(50.0)),
            ("clip_sample", Flag(false)),
            ("clip_sample_range", Number(1.0)),
            // Means nothing: the last move returns the estimate itself.
            ("set_alpha_to_one", Flag(true)),
            ("thresholding", Flag(false)),
            ("dynamic_thresholding_ratio", Number(0.995)),
            ("sample_max_value", Number(1.0)),
            ("timestep_spacing", Text("leading")),
            ("timestep_scaling", Number(10.0)),
            ("rescale_betas_zero_snr", Flag(false)),
        ],
    },
    Class {
        name: "CMStochasticIterativeScheduler",
        kind: Kind::Consistency,
        solver: Some(SolverSpec::Consistency(ConsistencyForm::plain())),
        own: &[
            ("num_train_timesteps", Number(40.0)),
            ("sigma_min", Number(0.002)),
            ("sigma_max", Number(80.0)),
            ("sigma_data", Number(0.5)),
            ("s_noise", Number(1.0)),
            ("rho", Number(7.0)),
            ("clip_denoised", Flag(true)),
        ],
    },
    Class {
        name: "EDMDPMSolverMultistepScheduler",
        kind: Kind::Edm,
        solver: Some(SolverSpec::Dpm(DpmOptions::plus_plus(DpmForm::Second))),
        own: &[
            ("num_train_timesteps", Number(1000.0)),
            ("prediction_type", Text("epsilon")),
            ("sigma_min", Number(0.002)),
            ("sigma_max", Number(80.0)),
            ("sigma_data", Number(0.5)),
            ("sigma_schedule", Text("karras")),
            ("rho", Number(7.0)),
            ("solver_order", Number(2.0)),
            ("thresholding", Flag(false)),
            ("dynamic_thresholding_ratio", Number(0.995)),
            ("sample_max_value", Number(1.0)),
            ("algorithm_type", Text("dpmsolver++")),
            ("solver_type", Text("midpoint")),
            ("lower_order_final", Flag(true)),
            ("euler_at_final", Flag(false)),
            ("final_sigmas_type", Text("zero")),
        ],
    },
    Class { name: "DPMSolverSDEScheduler", kind: Kind::Table, solver: None, own: &[("noise_sampler_seed", Null)] },
];

const KDPM2: Keys = &[
    ("beta_start", Number(0.00085)),
    ("beta_end", Number(0.012)),
    ("use_karras_sigmas", Flag(false)),
    ("use_exponential_sigmas", Flag(false)),
    ("use_beta_sigmas", Flag(false)),
    ("timestep_spacing", Text("linspace")),
];

impl Class {
    /// The class of a name.
    pub fn named(name: &str) -> Option<&'static Self> {
        CLASSES.iter().find(|class| class.name == name)
    }

    /// The class that a sampler is built as from the file of a table process.
    pub fn of(solver: &SolverSpec) -> Option<&'static Self> {
        Self::named(match solver {
            SolverSpec::Ddpm { .. } => "DDPMScheduler",
            SolverSpec::Ddim { .. } => "DDIMScheduler",
            SolverSpec::Euler { .. } => "EulerDiscreteScheduler",
            SolverSpec::EulerAncestral => "EulerAncestralDiscreteScheduler",
            SolverSpec::Lms { .. } => "LMSDiscreteScheduler",
            SolverSpec::Kdpm2 => "KDPM2DiscreteScheduler",
            SolverSpec::Kdpm2Ancestral => "KDPM2AncestralDiscreteScheduler",
            SolverSpec::Heun { .. } => "HeunDiscreteScheduler",
            SolverSpec::Dpm(_) => "DPMSolverMultistepScheduler",
            SolverSpec::Deis { .. } => "DEISMultistepScheduler",
            SolverSpec::DpmSinglestep(_) => "DPMSolverSinglestepScheduler",
            SolverSpec::UniPc(_) => "UniPCMultistepScheduler",
            SolverSpec::Pndm { .. } => "PNDMScheduler",
            SolverSpec::Consistency(ConsistencyForm::Latent { .. }) => "LCMScheduler",
            SolverSpec::Consistency(_) => "CMStochasticIterativeScheduler",
            _ => return None,
        })
    }

    /// The default of a key, if the class has it.
    pub fn default(&self, key: &str) -> Option<Fallback> {
        let common = if self.kind == Kind::Table { COMMON } else { &[] };
        self.own.iter().chain(common).find(|(name, _)| *name == key).map(|(_, default)| *default)
    }

    /// The names of the classes whose files are understood, with a sampler or without.
    pub fn names(with_sampler: bool) -> String {
        let names = CLASSES.iter().filter(|class| class.solver.is_some() == with_sampler).map(|class| class.name);
        names.collect::<Vec<_>>().join(", ")
    }
}

/// Whether some class has a key, or an early version of one.
pub fn is_known(key: &str) -> bool {
    CLASSES.iter().any(|class| class.default(key).is_some()) || EARLY.contains(&key)
}
