//! The configuration of the autoencoder, in the format of diffusers' `AutoencoderKL`.

use serde_json::{Map, Value, json};

use crate::UnetError;
use crate::json::{LARGEST, Reader};
use crate::residual::{Activation, activation, flag, sample_size};

/// The `_class_name` of this network.
pub const CLASS: &str = "AutoencoderKL";

/// A configuration of [`AutoencoderKl`](crate::AutoencoderKl).
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Height and width of the images that the network was trained on; other sizes are allowed.
    pub sample_size: Option<[usize; 2]>,
    /// Channels of the images that are encoded.
    pub in_channels: usize,
    /// Channels of the images that are decoded.
    pub out_channels: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Channels of each level, the finest first.
    pub channels: Vec<usize>,
    /// Residual blocks per level of the encoder (one more in the decoder).
    pub layers_per_block: usize,
    /// Activation of the residual blocks; the last normalisations always take SiLU.
    pub activation: Activation,
    /// Groups of every GroupNorm.
    pub norm_num_groups: usize,
    /// By what latents are multiplied for the diffusion model, and divided before they are decoded. Neither
    /// [`encode`](crate::AutoencoderKl::encode) nor [`decode`](crate::AutoencoderKl::decode) does that.
    pub scaling_factor: f64,
    /// What is subtracted from latents before they are scaled.
    pub shift_factor: f64,
    /// Whether a convolution of single pixels follows the encoder: `use_quant_conv`.
    pub quant_conv: bool,
    /// Whether a convolution of single pixels precedes the decoder: `use_post_quant_conv`.
    pub post_quant_conv: bool,
    /// Whether the middles of encoder and decoder contain self-attention: `mid_block_add_attention`.
    pub mid_attention: bool,
}

impl Config {
    /// Reads the contents of a `config.json`.
    ///
    /// Missing keys take diffusers' defaults, keys that begin with `_` are metadata. `force_upcast` is about half precision, in
    /// which nothing is computed here.
    ///
    /// # Errors
    /// For every key, value or combination that this network does not support, by name.
    pub fn from_json(map: &Map<String, Value>) -> Result<Self, UnetError> {
        let mut reader = Reader::new(CLASS, map);
        let r = &mut reader;
        if r.get("_class_name").and_then(Value::as_str) != Some(CLASS) {
            return Err(r.refuse("_class_name", format!("{CLASS:?}")));
        }
        let channels = r.integers("block_out_channels", &[64])?;
        for (key, block) in [("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")] {
            let found = r.get(key);
            let found = found.map_or_else(|| vec![json!(block)], |value| value.as_array().cloned().unwrap_or_default());
            if found != vec![json!(block); channels.len()] {
                let expected =
                    format!("a list of {}, one for each of `block_out_channels`, of {block:?}", channels.len());
                return Err(r.refuse(key, expected));
            }
        }
        let both = flag(false, true);
        let config = Self {
            sample_size: sample_size(r)?,
            in_channels: r.integer("in_channels", 3, 1)?,
            out_channels: r.integer("out_channels", 3, 1)?,
            latent_channels: r.integer("latent_channels", 4, 1)?,
            channels,
            layers_per_block: r.integer("layers_per_block", 1, 1)?,
            activation: activation(r)?,
            norm_num_groups: r.integer("norm_num_groups", 32, 1)?,
            scaling_factor: r.number("scaling_factor", 0.18215, |x| x > 0.0, "a number above 0")?,
            shift_factor: match r.get("shift_factor") {
                Some(Value::Null) => 0.0,
                _ => r.number("shift_factor", 0.0, |_| true, "null or a number")?,
            },
            quant_conv: r.choice("use_quant_conv", true, &both)?,
            post_quant_conv: r.choice("use_post_quant_conv", true, &both)?,
            mid_attention: r.choice("mid_block_add_attention", true, &both)?,
        };
        r.only("latents_mean", Value::Null)?;
        r.only("latents_std", Value::Null)?;
        r.choice("force_upcast", true, &both)?;
        reader.finish()?;
        config.validate()?;
        Ok(config)
    }

    /// Number of levels.
    pub fn levels(&self) -> usize {
        self.channels.len()
    }

    /// How many pixels of an image, in each direction, become one of its latents.
    pub fn spatial_factor(&self) -> usize {
        1 << (self.levels() - 1)
    }

    /// Whether the values fit together.
    ///
    /// # Errors
    /// If a width cannot be divided into its groups, or a value is out of range.
    pub fn validate(&self) -> Result<(), UnetError> {
        let inconsistent = |message| Err(UnetError::Inconsistent { class: CLASS, message });
        if !(1..=8).contains(&self.levels()) {
            return inconsistent(format!("`block_out_channels` should have 1 to 8 entries, found {}", self.levels()));
        }
        let sizes =
            [self.in_channels, self.out_channels, self.latent_channels, self.layers_per_block, self.norm_num_groups];
        if let Some(bad) = sizes.iter().chain(&self.channels).find(|&&size| !(1..=LARGEST).contains(&size)) {
            return inconsistent(format!("every size should be at least 1 and reasonable, found {bad}"));
        }
        if !(self.scaling_factor > 0.0 && self.scaling_factor.is_finite() && self.shift_factor.is_finite()) {
            return inconsistent(format!(
                "`scaling_factor` should be a number above 0 and `shift_factor` a number, found {} and {}",
                self.scaling_factor, self.shift_factor
            ));
        }
        let groups = self.norm_num_groups;
        match self.channels.iter().find(|c| !c.is_multiple_of(groups)) {
            None => Ok(()),
            Some(c) => inconsistent(format!(
                "`norm_num_groups` {groups} does not divide {c} channels; choose a divisor of every entry of \
                 `block_out_channels`"
            )),
        }
    }

    /// The convolutions of the residual blocks, as if every input had the channels of the coarser level.
    pub(super) fn estimated_parameters(&self) -> f64 {
        let square = |level: usize| {
            let wider = self.channels[level].max(self.channels[(level + 1).min(self.levels() - 1)]) as f64;
            18.0 * wider * wider
        };
        let layers = (2 * self.layers_per_block + 3) as f64;
        let latent = self.latent_channels as f64;
        let ends = (self.in_channels + self.out_channels) as f64 * 9.0 * self.channels[0] as f64;
        (0..self.levels()).map(|level| layers * square(level)).sum::<f64>() + ends + 5.0 * latent * latent
    }
}
