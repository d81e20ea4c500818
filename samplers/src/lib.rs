//! Samplers for diffusion models: one loop ([`sample`]), one file per solver.
//!
//! A sampler sees a [`Denoiser`](tweedie_denoiser::Denoiser) and never a network. The state is f64 in the variance-preserving
//! form `x_t = alpha x_0 + sigma eps`; noise comes from a [`Noise`](tweedie_denoiser::Noise) source keyed by sample and draw.
//!
//! To add a solver: one file with a type that implements [`Solver`], and one entry in [`SolverSpec`].
#![forbid(unsafe_code)]

mod churn;
mod churned_euler;
mod clip;
mod consistency;
mod ddim;
mod ddpm;
mod dpm;
mod error;
mod euler;
mod exponential;
mod heun;
mod history;
mod kdpm2;
mod lms;
mod plan;
mod pndm;
mod run;
mod singlestep;
mod solver;
mod spec;
mod unipc;

pub use churn::Churn;
pub use clip::Clip;
pub use consistency::{Consistency, ConsistencyForm};
pub use ddim::{Ddim, ddim_encode};
pub use ddpm::Ddpm;
pub use dpm::{DpmForm, DpmMultistep, DpmOptions, DpmSlope};
pub use error::SamplerError;
pub use euler::{Euler, EulerAncestral};
pub use exponential::{Integrand, Path};
pub use heun::Heun;
pub use history::Lowering;
pub use kdpm2::{Kdpm2, Kdpm2Ancestral};
pub use lms::Lms;
pub use plan::{Compat, ConsistencyProcess, EdmProcess, Plan, Process, SchedulerSpec, TimeKind};
pub use pndm::{Pndm, PndmLevels, PndmStart};
pub use run::{StepInfo, sample};
pub use singlestep::{DpmSinglestep, GroupSize, LastMove, SinglestepOptions};
pub use solver::{Advance, Move, Solver};
pub use spec::{SolverSpec, VarianceType, solver_by_name};
pub use unipc::{MoveSet, UniPc, UniPcB, UniPcOptions};
