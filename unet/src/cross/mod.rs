//! The text-conditioned U-Net of latent diffusion models, such as Stable Diffusion; it is run here, not trained.
//!
//! ```text
//! e    = W2 SiLU(W1 projection(t) + b1) + b2
//! down: per level residual blocks (+ transformers that read the text), then half the size; every output is a skip
//! mid:  residual block, transformer, residual block
//! up:   per level one residual block more, on [h, skip] (+ transformers), then twice the size
//! out:  conv(SiLU(GN(h)))
//! ```
//!
//! Rombach et al. 2022, section 3.3; keys and configuration are those of diffusers' `UNet2DConditionModel`. The large weights
//! stay as their [`WeightSource`] stores them.

mod blocks;
mod config;
mod embed;

pub use config::{Block, CLASS, Config, MidBlock, Projection};

use ndarray::{Array4, ArrayView4};
use serde_json::{Map, Value};
use tweedie_denoiser::{Condition, DenoiserError, Network, Param, ParamTable};

use crate::layers::Texts;
use crate::request::Request;
use crate::residual::DownsamplePadding;
use crate::summary::Summary;
use crate::tensor::Pool;
use crate::weights::{Builder, RunWeights};
use crate::{UnetError, WeightSource};
use blocks::Layers;

/// A text-conditioned U-Net with its weights.
pub struct Cross {
    config: Config,
    layers: Layers,
    weights: RunWeights,
    pool: Pool,
    guidance: Option<f64>,
}

impl std::fmt::Debug for Cross {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cross").field("config", &self.config).finish_non_exhaustive()
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
        // The estimate takes every layer for a wide one with a transformer: a few times too many at most.
        UnetError::check_size(self.estimated_parameters(), 16.0, available)?;
        let mut b = Builder::run_only();
        Layers::new(&mut b, self);
        Ok(b.params)
    }

    /// Layers, parameters and operations for one image of height `h` and width `w` and a text of 77 tokens, of a configuration
    /// that has been checked; the weights are not needed.
    pub fn summary(&self, h: usize, w: usize) -> Summary {
        let mut s = Summary::default();
        Layers::new(&mut Builder::run_only(), self).describe(&mut s, [h, w]);
        s
    }

    /// What the height and width of an image have to be multiples of.
    pub fn size_multiple(&self) -> usize {
        match self.downsample_padding {
            // A side of 2 k + 1 becomes k, of which the way up makes 2 k at most.
            DownsamplePadding::Asymmetric => 1 << (self.levels() - 1),
            DownsamplePadding::Symmetric => 1,
        }
    }

    /// Channels, height and width of the images that the network was made for; `None` if its configuration does not tell the
    /// size.
    pub fn image_shape(&self) -> Option<[usize; 3]> {
        self.sample_size.map(|[h, w]| [self.in_channels, h, w])
    }
}

impl Cross {
    /// The network with the weights of `source`.
    ///
    /// # Errors
    /// If the configuration is not consistent, see [`Config::validate`], or `source` lacks a weight.
    pub fn new(config: Config, source: &dyn WeightSource) -> Result<Self, UnetError> {
        config.validate()?;
        let mut b = Builder::run_only();
        let layers = Layers::new(&mut b, &config);
        Ok(Self { layers, weights: b.read(source)?, pool: Pool::default(), guidance: None, config })
    }

    /// The network that a `config.json` describes, with the weights of `source`.
    ///
    /// # Errors
    /// As [`Config::from_json`] and [`Cross::new`].
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

    /// Whether the network has learned guidance, and takes its scale ([`Cross::set_guidance`]).
    pub fn takes_guidance(&self) -> bool {
        self.config.guidance_dim.is_some()
    }

    /// The guidance scale that a network which has learned guidance (a latent consistency model) is to imitate from now on; `None`
    /// leaves its embedding out. Of any other network this changes nothing.
    pub fn set_guidance(&mut self, scale: Option<f64>) {
        self.guidance = scale;
    }
}

impl Network for Cross {
    /// `condition` has a text for every sample; their lengths may differ.
    fn predict(
        &self,
        x: ArrayView4<'_, f32>,
        timesteps: &[f64],
        condition: &Condition,
    ) -> Result<Array4<f32>, DenoiserError> {
        let c = &self.config;
        let request = Request::new("predicting with UNet2DConditionModel", x, timesteps, condition);
        request.check(c.in_channels, c.size_multiple())?;
        request.check_texts(c.text_width)?;
        let p = self.weights.pass(&self.pool);
        // The transformers widen the channels eightfold for a moment, and large weights are better read for several images.
        Ok(request.in_chunks(c.out_channels, 2 * c.channels[0], |part| {
            let texts = Texts::new(&self.pool, part.texts, c.text_width);
            self.layers.forward(&p, c.input_range.input(&self.pool, part.x), part.times, self.guidance, &texts)
        }))
    }

    fn classes(&self) -> usize {
        0
    }

    /// None: what stands for no text is the encoded empty text.
    fn has_null_condition(&self) -> bool {
        false
    }
}
