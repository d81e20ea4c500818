//! Training of diffusion models: the objective, AdamW with a moving average, the learning rate, the loop and its state.
//!
//! The crate knows no architecture: a [`Trainer`] drives any [`NetworkGrad`](tweedie_denoiser::NetworkGrad) over any
//! [`Dataset`](tweedie_data::Dataset). It prints nothing, and touches files only through
//! [`tweedie_checkpoint`]; logs, pictures and progress bars are the business of the [`Hooks`] of the caller.
//!
//! Everything random is keyed by the seed, the step and the image, so a run that was saved and resumed computes the same
//! bits as one that was never interrupted, for any number of threads.
#![forbid(unsafe_code)]

mod adamw;
mod config;
mod error;
pub mod log;
mod lr;
mod objective;
mod state;
mod trainer;

pub use adamw::{AdamW, Optimizer, clip_factor, global_norm};
pub use config::{AugmentConfig, NoiseConfig, RunLength, StepSampling, TrainConfig, WeightingConfig};
pub use error::TrainError;
pub use lr::{LrDecay, LrSchedule};
pub use objective::{BatchLoss, Chances, HYBRID_FACTOR, Importance, Loss, NoisyBatch, Objective, Terms};
pub use state::{ARCHITECTURE, check_architecture};
pub use trainer::{Hooks, RunEnd, StepReport, Trainer};
