//! Latent diffusion (Rombach et al. 2022, arXiv:2112.10752): what stands between a prompt and the network, and between latents and
//! pictures.
//!
//! - [`tokenizer`]: from a prompt to token numbers, as transformers' `CLIPTokenizer`.
//! - [`clip`]: CLIP's text encoder, whose states condition the network, and its image encoder, which tells how well a picture fits
//!   a text.
//! - [`code`]: between pictures and scaled latents. [`tiles`]: pictures that are too large for the memory, part by part.
//! - [`start`]: drawing that starts from a picture. [`inpaint`]: drawing a part of one anew.
//!
//! Networks are only run here: their large weights stay as their source, a [`WeightSource`](tweedie_unet::WeightSource), holds
//! them. Nothing here touches files. Results have the same bits for any number of threads.
#![forbid(unsafe_code)]

pub mod clip;
pub mod code;
mod codec;
mod error;
pub mod inpaint;
mod json;
pub mod lora;
pub mod start;
pub mod tiles;
pub mod tokenizer;
pub mod weights;

pub use clip::{ImageEncoder, TextEncoder};
pub use code::{LatentScale, Posterior};
pub use codec::Codec;
pub use error::LatentError;
pub use inpaint::{Inpainting, Kept};
pub use lora::{Adapted, AdaptedWeights, Lora};
pub use start::FromPicture;
pub use tiles::Tiles;
pub use tokenizer::{Tokenizer, TokenizerFiles, Tokens};
pub use weights::FileWeights;
