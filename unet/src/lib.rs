//! U-Nets for diffusion models, forward and backward, with the key names of published checkpoints.
//!
//! [`Book`] is the textbook conditional U-Net (`UNetCond`), [`Residual`] the residual U-Net with GroupNorm, SiLU and
//! self-attention (diffusers' `UNet2DModel`). [`Model`] is either of them, chosen by a `config.json`. Both implement
//! [`Network`](tweedie_denoiser::Network) and [`NetworkGrad`](tweedie_denoiser::NetworkGrad). [`EncoderClassifier`] is a
//! classifier of noisy images, made of the encoder half of [`Residual`].
//!
//! [`Cross`] is the text-conditioned U-Net of Stable Diffusion (`UNet2DConditionModel`) and [`AutoencoderKl`] the autoencoder
//! between its latents and images. They are only run, with weights that stay as a [`WeightSource`] stores them.
//!
//! Images are NCHW at the edge and channels-last inside. Results have the same bits for any number of threads, and an
//! image's prediction does not depend on the others of its batch.
#![forbid(unsafe_code)]

pub mod autoencoder;
mod book;
pub mod classifier;
pub mod cross;
mod error;
mod init;
mod json;
mod keys;
mod layers;
mod model;
mod request;
pub mod residual;
mod source;
mod summary;
mod tensor;
mod weights;

pub use autoencoder::AutoencoderKl;
pub use book::{Book, BookConfig};
pub use classifier::EncoderClassifier;
pub use cross::Cross;
pub use error::UnetError;
pub use init::Init;
pub use keys::canonical_key;
pub use model::{Model, from_config};
pub use residual::Residual;
pub use source::WeightSource;
pub use summary::{LayerSummary, Summary};
