//! Guidance for diffusion models: every guided model is again a [`Denoiser`](tweedie_denoiser::Denoiser), and enters any
//! sampler unchanged.
#![forbid(unsafe_code)]

mod cfg;
mod classifier;
mod error;

pub use cfg::{Cfg, guided, scale_from_weight};
pub use classifier::{guided_eps, guided_mean, guided_score, implicit_gradient};
pub use error::GuidanceError;
