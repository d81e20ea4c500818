//! The configuration of the text-conditioned U-Net, in the format of diffusers' `UNet2DConditionModel`.

use serde_json::{Map, Value, json};

use crate::UnetError;
use crate::json::{LARGEST, Reader};
use crate::residual::{
    Activation, DownsamplePadding, InputRange, SinusoidOrder, TimeScaleShift, activation, flag, sample_size,
};

/// The `_class_name` of this network.
pub const CLASS: &str = "UNet2DConditionModel";

/// What the residual blocks of a level are followed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block {
    /// Nothing: `DownBlock2D`, `UpBlock2D`.
    Plain,
    /// A transformer that attends to the text: `CrossAttnDownBlock2D`, `CrossAttnUpBlock2D`.
    CrossAttention,
}

/// The middle: `mid_block_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MidBlock {
    /// A residual block, a transformer and a residual block: `UNetMidBlock2DCrossAttn`.
    CrossAttention,
    /// A single residual block: `UNetMidBlock2D`.
    Plain,
    /// None: null.
    Absent,
}

/// The first and last layers of the transformers: `use_linear_projection`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Projection {
    /// Convolutions of a single pixel.
    Convolution,
    /// Linear layers, which compute the same from weights of another shape.
    Linear,
}

/// A configuration of [`Cross`](crate::Cross).
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Height and width that the network was trained for; other sizes are allowed.
    pub sample_size: Option<[usize; 2]>,
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Range of the input.
    pub input_range: InputRange,
    /// Order of the halves of the sinusoidal time embedding.
    pub sinusoid: SinusoidOrder,
    /// Subtracted from the number of frequencies in the exponent of the sinusoidal time embedding.
    pub freq_shift: f64,
    /// Width of the time embedding; `None` is four times the channels of the first level.
    pub time_embedding_dim: Option<usize>,
    /// Numbers of the embedding of a guidance scale, for networks that have learned guidance (Luo et al. 2023, section 4.2):
    /// `time_cond_proj_dim`.
    pub guidance_dim: Option<usize>,
    /// The levels on the way down, the finest first.
    pub down_blocks: Vec<Block>,
    /// The middle.
    pub mid_block: MidBlock,
    /// The levels on the way up, the coarsest first.
    pub up_blocks: Vec<Block>,
    /// Channels of each level, the finest first.
    pub channels: Vec<usize>,
    /// Residual blocks of each level on the way down (one more on the way up).
    pub layers: Vec<usize>,
    /// Attention heads of each level. In the file this is `attention_head_dim`, whose name is an old mistake.
    pub heads: Vec<usize>,
    /// Blocks of the transformers of each level: `transformer_layers_per_block`.
    pub transformer_layers: Vec<usize>,
    /// Numbers of each token of the text: `cross_attention_dim`.
    pub text_width: usize,
    /// The first and last layers of the transformers.
    pub projection: Projection,
    /// Padding of the downsampling convolutions.
    pub downsample_padding: DownsamplePadding,
    /// The outputs of the middle's residual blocks are divided by this.
    pub mid_block_scale_factor: f64,
    /// Activation of the residual blocks, the time embedding and the last normalisation.
    pub activation: Activation,
    /// Groups of every GroupNorm.
    pub norm_num_groups: usize,
    /// Added to the variance in every GroupNorm but those of the transformers.
    pub norm_eps: f64,
    /// How the time embedding enters a residual block.
    pub time_scale_shift: TimeScaleShift,
    /// Side of the first convolution's filter: 1 or 3.
    pub conv_in_kernel: usize,
    /// Side of the last convolution's filter: 1 or 3.
    pub conv_out_kernel: usize,
}

impl Config {
    /// Reads the contents of a `config.json`.
    ///
    /// Missing keys take diffusers' defaults, keys that begin with `_` are metadata. `dropout`, `upcast_attention` and
    /// `addition_embed_type_num_heads` change nothing in the forward pass of a network that is accepted.
    ///
    /// # Errors
    /// For every key, value or combination that this network does not support, by name.
    pub fn from_json(map: &Map<String, Value>) -> Result<Self, UnetError> {
        let mut reader = Reader::new(CLASS, map);
        let r = &mut reader;
        if r.get("_class_name").and_then(Value::as_str) != Some(CLASS) {
            return Err(r.refuse("_class_name", format!("{CLASS:?}")));
        }
        let channels = r.integers("block_out_channels", &[320, 640, 1280, 1280])?;
        let levels = channels.len();
        let (plain, attending) = (Block::Plain, Block::CrossAttention);
        let down = [attending, attending, attending, plain];
        let up = [plain, attending, attending, attending];
        let positive = |x: f64| x > 0.0;
        let config = Self {
            sample_size: sample_size(r)?,
            in_channels: r.integer("in_channels", 4, 1)?,
            out_channels: r.integer("out_channels", 4, 1)?,
            input_range: r.choice(
                "center_input_sample",
                InputRange::AsIs,
                &flag(InputRange::AsIs, InputRange::Centered),
            )?,
            sinusoid: r.choice(
                "flip_sin_to_cos",
                SinusoidOrder::CosSin,
                &flag(SinusoidOrder::SinCos, SinusoidOrder::CosSin),
            )?,
            freq_shift: r.number("freq_shift", 0.0, |_| true, "a number")?,
            // Python takes zero for null here.
            time_embedding_dim: r.optional("time_embedding_dim", None, 0)?.filter(|&width| width > 0),
            guidance_dim: r.optional("time_cond_proj_dim", None, 2)?,
            down_blocks: blocks(r, "down_block_types", &down, ["DownBlock2D", "CrossAttnDownBlock2D"])?,
            mid_block: r.choice(
                "mid_block_type",
                MidBlock::CrossAttention,
                &[
                    (json!("UNetMidBlock2DCrossAttn"), MidBlock::CrossAttention),
                    (json!("UNetMidBlock2D"), MidBlock::Plain),
                    (Value::Null, MidBlock::Absent),
                ],
            )?,
            up_blocks: blocks(r, "up_block_types", &up, ["UpBlock2D", "CrossAttnUpBlock2D"])?,
            layers: r.per_level("layers_per_block", 2, levels)?,
            heads: r.per_level("attention_head_dim", 8, levels)?,
            transformer_layers: r.per_level("transformer_layers_per_block", 1, levels)?,
            channels,
            text_width: r.integer("cross_attention_dim", 1280, 1)?,
            projection: r.choice(
                "use_linear_projection",
                Projection::Convolution,
                &flag(Projection::Convolution, Projection::Linear),
            )?,
            downsample_padding: r.choice(
                "downsample_padding",
                DownsamplePadding::Symmetric,
                &[(json!(0), DownsamplePadding::Asymmetric), (json!(1), DownsamplePadding::Symmetric)],
            )?,
            mid_block_scale_factor: r.number("mid_block_scale_factor", 1.0, positive, "a number above 0")?,
            activation: activation(r)?,
            norm_num_groups: r.integer("norm_num_groups", 32, 1)?,
            norm_eps: r.number("norm_eps", 1e-5, positive, "a number above 0")?,
            time_scale_shift: r.choice(
                "resnet_time_scale_shift",
                TimeScaleShift::Default,
                &[(json!("default"), TimeScaleShift::Default), (json!("scale_shift"), TimeScaleShift::ScaleShift)],
            )?,
            conv_in_kernel: r.choice("conv_in_kernel", 3, &[(json!(1), 1), (json!(3), 3)])?,
            conv_out_kernel: r.choice("conv_out_kernel", 3, &[(json!(1), 1), (json!(3), 3)])?,
        };
        unsupported(r)?;
        reader.finish()?;
        config.validate()?;
        Ok(config)
    }

    /// Number of levels.
    pub fn levels(&self) -> usize {
        self.channels.len()
    }

    /// Width of the time embedding.
    pub fn embedding(&self) -> usize {
        self.time_embedding_dim.unwrap_or(4 * self.channels[0])
    }

    /// Whether the values fit together.
    ///
    /// # Errors
    /// If a width cannot be divided into its groups or heads, if the lists differ in length, or if a value is out of range.
    pub fn validate(&self) -> Result<(), UnetError> {
        let levels = self.levels();
        let lists = [self.layers.len(), self.heads.len(), self.transformer_layers.len()];
        if !(1..=8).contains(&levels) || lists != [levels; 3] {
            return Err(inconsistent(format!(
                "`block_out_channels` should have 1 to 8 entries, and `layers_per_block`, `attention_head_dim` and \
                 `transformer_layers_per_block` as many; found {levels} and {lists:?}"
            )));
        }
        let ways = [self.down_blocks.len(), self.up_blocks.len()];
        if ways != [levels; 2] {
            return Err(inconsistent(format!(
                "`down_block_types` and `up_block_types` should have the length of `block_out_channels`, {levels}; found \
                 {} and {}",
                ways[0], ways[1]
            )));
        }
        let sizes = [self.in_channels, self.out_channels, self.text_width, self.norm_num_groups, self.embedding()];
        let sizes = sizes
            .iter()
            .chain([&self.channels, &self.layers, &self.heads, &self.transformer_layers].into_iter().flatten());
        if let Some(bad) = sizes.into_iter().find(|&&size| !(1..=4 * LARGEST).contains(&size)) {
            return Err(inconsistent(format!("every size should be at least 1 and reasonable, found {bad}")));
        }
        for (key, value) in [("mid_block_scale_factor", self.mid_block_scale_factor), ("norm_eps", self.norm_eps)] {
            if !(value > 0.0 && value.is_finite()) {
                return Err(inconsistent(format!("`{key}` should be a number above 0, found {value}")));
            }
        }
        for (key, side) in [("conv_in_kernel", self.conv_in_kernel), ("conv_out_kernel", self.conv_out_kernel)] {
            if ![1, 3].contains(&side) {
                return Err(inconsistent(format!("`{key}` should be 1 or 3, found {side}")));
            }
        }
        let half = (self.channels[0] / 2) as f64;
        if self.freq_shift.is_nan() || self.freq_shift >= half {
            return Err(inconsistent(format!(
                "`freq_shift` {} should be less than half of the first of `block_out_channels`, {half}",
                self.freq_shift
            )));
        }
        let groups = self.norm_num_groups;
        if let Some(c) = self.channels.iter().find(|c| !c.is_multiple_of(groups)) {
            return Err(inconsistent(format!(
                "`norm_num_groups` {groups} does not divide {c} channels; choose a divisor of every entry of \
                 `block_out_channels`"
            )));
        }
        for level in (0..levels).filter(|&level| self.attends(level)) {
            let (c, heads) = (self.channels[level], self.heads[level]);
            if !c.is_multiple_of(heads) {
                return Err(inconsistent(format!(
                    "`attention_head_dim` {heads}, which is the number of heads here, does not divide the {c} channels of \
                     level {level}"
                )));
            }
        }
        Ok(())
    }

    /// Whether there is a transformer at a level.
    fn attends(&self, level: usize) -> bool {
        let at = |blocks: &[Block], position: usize| blocks[position] == Block::CrossAttention;
        let coarsest = self.levels() - 1;
        at(&self.down_blocks, level)
            || at(&self.up_blocks, coarsest - level)
            || (level == coarsest && self.mid_block == MidBlock::CrossAttention)
    }

    /// The layers of every level with transformers, as if every input of a residual block were joined of two of its width.
    pub(super) fn estimated_parameters(&self) -> f64 {
        let (embedding, text) = (self.embedding() as f64, self.text_width as f64);
        let level = |level: usize| {
            let c = self.channels[level] as f64;
            let resnet = 27.0 * c * c + 2.0 * c * embedding;
            let transformer = self.transformer_layers[level] as f64 * (18.0 * c * c + 2.0 * c * text) + 2.0 * c * c;
            (2 * self.layers[level] + 3) as f64 * (resnet + transformer)
        };
        let ends = (self.in_channels + self.out_channels) as f64 * 9.0 * self.channels[0] as f64;
        (0..self.levels()).map(level).sum::<f64>() + ends + embedding * embedding
    }
}

fn inconsistent(message: String) -> UnetError {
    UnetError::Inconsistent { class: CLASS, message }
}

/// Names that diffusers knows, and why they are not supported.
const REFUSED: [(&str, &str); 5] = [
    (
        "SimpleCrossAttn",
        "attends to text and image at once, with keys and values added, as in DeepFloyd IF and Kandinsky",
    ),
    ("KCrossAttn", "is a block of the latent upscaler"),
    ("Resnet", "resamples in residual blocks, as in DeepFloyd IF"),
    ("Attn", "attends to the image alone"),
    ("K", "is a block of the latent upscaler"),
];

/// A list of blocks with the given names, of the plain one and of the one with cross-attention.
fn blocks(
    r: &mut Reader<'_>,
    key: &'static str,
    default: &[Block],
    [plain, cross]: [&str; 2],
) -> Result<Vec<Block>, UnetError> {
    let Some(value) = r.get(key) else { return Ok(default.to_vec()) };
    let expected = format!("a list of {plain:?} or {cross:?}");
    let Some(entries) = value.as_array() else { return Err(r.refuse(key, expected)) };
    let find = |entry: &Value| {
        let found = entry.as_str().unwrap_or_default();
        // As in diffusers, old names may have this before them.
        match found.strip_prefix("UNetRes").unwrap_or(found) {
            name if name == plain => Ok(Block::Plain),
            name if name == cross => Ok(Block::CrossAttention),
            name => {
                let reason = REFUSED.iter().find(|(start, _)| name.starts_with(start));
                let reason = reason.map(|(_, reason)| format!(" ({name} {reason})")).unwrap_or_default();
                Err(r.refuse(key, format!("{expected}{reason}")))
            }
        }
    };
    entries.iter().map(find).collect()
}

/// Refuses what this network does not compute, key by key, and passes over what is of no effect.
fn unsupported(r: &mut Reader<'_>) -> Result<(), UnetError> {
    let null = [
        "num_attention_heads",
        "reverse_transformer_layers_per_block",
        "encoder_hid_dim",
        "encoder_hid_dim_type",
        "class_embed_type",
        "num_class_embeds",
        "projection_class_embeddings_input_dim",
        "addition_embed_type",
        "addition_time_embed_dim",
        "time_embedding_act_fn",
        "timestep_post_act",
        "cross_attention_norm",
    ];
    for key in null {
        r.only(key, Value::Null)?;
    }
    for key in ["only_cross_attention", "dual_cross_attention", "class_embeddings_concat", "resnet_skip_time_act"] {
        r.only(key, json!(false))?;
    }
    r.only("time_embedding_type", json!("positional"))?;
    r.only("attention_type", json!("default"))?;
    r.choice("mid_block_only_cross_attention", (), &[(Value::Null, ()), (json!(false), ())])?;
    r.choice("resnet_out_scale_factor", (), &[(json!(1.0), ()), (json!(1), ())])?;
    // These are read for training, for half precision, and for a kind of embedding that is refused above.
    r.number("dropout", 0.0, |x| (0.0..1.0).contains(&x), "a number from 0 to less than 1")?;
    r.choice("upcast_attention", (), &[(json!(false), ()), (json!(true), ()), (Value::Null, ())])?;
    r.optional("addition_embed_type_num_heads", None, 1)?;
    Ok(())
}
