//! Noise schedules, step grids, predictions and posteriors of diffusion models: scalars in f64, no tensors.
//!
//! Steps are 1-based: `t = 1..=T` are noisy, `t = 0` is the data, and `abar_0 = 1` (Ho, Jain & Abbeel 2020, section 2).
//! [`NoiseLevel`] is the currency between crates; a [`Schedule`] maps steps to levels and back; a [`StepGrid`] is the
//! list of steps that a sampler visits, a [`LevelGrid`] the levels of its moves; [`Prediction`] names what a network predicts and converts it to anything else.
#![forbid(unsafe_code)]

mod betas;
mod bridge;
mod consistency;
pub mod ddim;
mod decoder;
mod error;
pub mod forward;
pub mod gaussian;
mod grid;
pub mod kl;
mod level;
mod levels;
pub mod posterior;
pub mod prediction;
mod sigmas;
mod table;
mod timestep;
mod weighting;

pub use betas::BetaSchedule;
pub use bridge::{Bridge, Crossing, NoiseNumber, OutputSign};
pub use consistency::Preconditioning;
pub use ddim::DdimCoefs;
pub use decoder::Bins;
pub use error::ScheduleError;
pub use forward::Transition;
pub use grid::{Placing, Spacing, StepGrid};
pub use level::NoiseLevel;
pub use levels::{GridEnd, GridMove, GridRule, LevelGrid, SigmaRange, StepRounding};
pub use posterior::{Posterior, Variance, VarianceRange};
pub use prediction::{Affine, Mixture, Prediction};
pub use sigmas::{SigmaRule, beta_sigmas, exponential_sigmas, karras_sigmas};
pub use table::Schedule;
pub use timestep::TimestepMapping;
pub use weighting::Weighting;
