//! The autoencoder of latent diffusion models; it is run here, not trained.
//!
//! ```text
//! encoder: per level residual blocks, then half the size; residual block, attention, residual block; conv(SiLU(GN(h)))
//! decoder: residual block, attention, residual block; per level residual blocks, then twice the size; conv(SiLU(GN(h)))
//! ```
//!
//! Rombach et al. 2022, section 3.1; keys and configuration are those of diffusers' `AutoencoderKL`. The large weights stay as
//! their [`WeightSource`] stores them.

mod blocks;
mod config;

pub use config::{CLASS, Config};

use ndarray::{Array4, ArrayView4};
use serde_json::{Map, Value};
use tweedie_denoiser::{Condition, DenoiserError, Param, ParamTable};

use crate::request::{self, Request};
use crate::summary::Summary;
use crate::tensor::{Pool, Tensor};
use crate::weights::{Builder, Pass, RunWeights};
use crate::{UnetError, WeightSource};
use blocks::{Decoder, Encoder};

/// An autoencoder with its weights.
pub struct AutoencoderKl {
    config: Config,
    encoder: Encoder,
    decoder: Decoder,
    weights: RunWeights,
}

impl std::fmt::Debug for AutoencoderKl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AutoencoderKl").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Config {
    /// The tensors of a checkpoint, without their values: what a checkpoint of `available` numbers is compared with before a
    /// network is made.
    ///
    /// # Errors
    /// As [`Config::validate`]; also if the network has so many more parameters than `available` that even their names would
    /// take more memory than the checkpoint.
    pub fn table(&self, available: usize) -> Result<ParamTable, UnetError> {
        self.validate()?;
        // The estimate takes every layer for one of the coarser level: a few times too many at most.
        UnetError::check_size(self.estimated_parameters(), 16.0, available)?;
        let mut b = Builder::run_only();
        Encoder::new(&mut b, self);
        Decoder::new(&mut b, self);
        Ok(b.params)
    }

    /// Layers, parameters and operations for one image of height `h` and width `w`, encoded and decoded, of a configuration that
    /// has been checked; the weights are not needed.
    pub fn summary(&self, h: usize, w: usize) -> Summary {
        let (mut s, mut b) = (Summary::default(), Builder::run_only());
        let latents = Encoder::new(&mut b, self).describe(&mut s, [h, w]);
        Decoder::new(&mut b, self).describe(&mut s, latents);
        s
    }

    /// The decoder's part of [`Config::summary`], for one image of `h` by `w` latents.
    pub fn decoder_summary(&self, h: usize, w: usize) -> Summary {
        let mut s = Summary::default();
        Decoder::new(&mut Builder::run_only(), self).describe(&mut s, [h, w]);
        s
    }
}

impl AutoencoderKl {
    /// The network with the weights of `source`.
    ///
    /// # Errors
    /// If the configuration is not consistent, see [`Config::validate`], or `source` lacks a weight.
    pub fn new(config: Config, source: &dyn WeightSource) -> Result<Self, UnetError> {
        config.validate()?;
        let mut b = Builder::run_only();
        let (encoder, decoder) = (Encoder::new(&mut b, &config), Decoder::new(&mut b, &config));
        Ok(Self { encoder, decoder, weights: b.read(source)?, config })
    }

    /// The network that a `config.json` describes, with the weights of `source`.
    ///
    /// # Errors
    /// As [`Config::from_json`] and [`AutoencoderKl::new`].
    pub fn from_config(map: &Map<String, Value>, source: &dyn WeightSource) -> Result<Self, UnetError> {
        Self::new(Config::from_json(map)?, source)
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The tensors that a checkpoint of this network holds, with their shapes.
    pub fn expected(&self) -> &[Param] {
        self.weights.expected()
    }

    /// The moments `[N, 2 L, H / f, W / f]` of the latents of `images` (`[N, C, H, W]`, in [-1, 1]): the L means, then the L
    /// logarithms of the variances, which diffusers clamps to [-30, 20]. H and W are multiples of f, the
    /// [`spatial_factor`](Config::spatial_factor).
    ///
    /// # Errors
    /// If the images do not have these channels or sizes.
    pub fn encode(&self, images: ArrayView4<'_, f32>) -> Result<Array4<f32>, DenoiserError> {
        let (c, factor) = (&self.config, self.config.spatial_factor());
        let shape = |h: usize, w: usize| [2 * c.latent_channels, h / factor, w / factor];
        self.run("encoding with AutoencoderKL", images, c.in_channels, factor, shape, |p, x| self.encoder.forward(p, x))
    }

    /// The images `[N, C, f h, f w]`, in [-1, 1] or a little beyond, of `latents` (`[N, L, h, w]`), which have been divided by the
    /// [`scaling_factor`](Config::scaling_factor) before.
    ///
    /// # Errors
    /// If the latents do not have these channels, or no pixels.
    pub fn decode(&self, latents: ArrayView4<'_, f32>) -> Result<Array4<f32>, DenoiserError> {
        let (c, factor) = (&self.config, self.config.spatial_factor());
        let shape = |h: usize, w: usize| [c.out_channels, h * factor, w * factor];
        self.run("decoding with AutoencoderKL", latents, c.latent_channels, 1, shape, |p, z| self.decoder.forward(p, z))
    }

    /// One of the halves, image by image.
    fn run(
        &self,
        operation: &'static str,
        x: ArrayView4<'_, f32>,
        channels: usize,
        multiple: usize,
        shape: impl Fn(usize, usize) -> [usize; 3],
        forward: impl Fn(&Pass<'_>, Tensor) -> Tensor + Sync,
    ) -> Result<Array4<f32>, DenoiserError> {
        let (n, _, h, w) = x.dim();
        let (none, times) = (Condition::none(n), vec![0.0; n]);
        let request = Request::new(operation, x, &times, &none);
        request.check(channels, multiple)?;
        // Images are large here, and coded once: what they took is not kept.
        let pool = Pool::default();
        let p = self.weights.pass(&pool);
        let [c, out_h, out_w] = shape(h, w);
        let pixels = (h * w).max(out_h * out_w);
        let width = self.config.channels[0] * pixels / (h * w);
        Ok(request.in_chunks_of([c, out_h, out_w], width, |part| forward(&p, request::from_array(&pool, part.x))))
    }
}
