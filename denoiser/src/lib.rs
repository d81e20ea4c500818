//! The traits between networks, denoisers and samplers.
//!
//! A [`Network`] is a function of `(x_t, timestep number, condition)`; a [`Denoiser`] is a function of
//! `(x_t, noise level)` that returns an estimate of `x_0`. [`Preconditioned`] is the only bridge from
//! the first to the second: it knows what the network predicts and which number it wants to see for time.
#![forbid(unsafe_code)]

mod classifier;
mod condition;
mod denoise;
mod error;
mod network;
pub mod noise;
mod oracle;
mod params;
mod preconditioned;
mod threshold;
mod tweedie;

pub use classifier::{Classified, Classifier, LevelClassifier, LevelledClassifier};
pub use condition::{Condition, Text};
pub use denoise::{ConditionalDenoiser, Conditioned, Denoiser, Estimate};
pub use error::DenoiserError;
pub use network::{Network, NetworkGrad};
pub use noise::{Noise, Purpose, RecordedNoise, RecordingNoise, ReplayNoise, SeededNoise, ShiftedNoise, rng_for};
pub use oracle::{Component, Draws, Gaussian, Mean, MixtureOracle, Spread, log_sum_exp};
pub use params::{Param, ParamTable, Params, Role};
pub use preconditioned::Preconditioned;
pub use threshold::dynamic_threshold;
pub use tweedie::tweedie;
