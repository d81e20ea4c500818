//! The configuration of the residual U-Net, in the format of diffusers' `UNet2DModel`.

use serde_json::{Map, Value, json};

use crate::UnetError;
use crate::json::{LARGEST, Reader};

/// The `_class_name` of this network.
pub(crate) const CLASS: &str = "UNet2DModel";

/// More parameters than any published network of this family has: a larger configuration is a mistake.
const MOST_PARAMETERS: f64 = 4e9;

/// What the blocks of a level are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block {
    /// Residual blocks: `DownBlock2D`, `UpBlock2D`.
    Plain,
    /// Residual blocks, each followed by self-attention: `AttnDownBlock2D`, `AttnUpBlock2D`.
    Attention,
}

/// How the time embedding enters a residual block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeScaleShift {
    /// Added before the second normalisation (Ho et al. 2020).
    Default,
    /// Scales and shifts the second normalisation: AdaGN (Dhariwal & Nichol 2021).
    ScaleShift,
}

/// The order of the two halves of the sinusoidal time embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SinusoidOrder {
    /// Sines first: `flip_sin_to_cos` false.
    SinCos,
    /// Cosines first: `flip_sin_to_cos` true.
    CosSin,
}

/// Where a downsampling convolution pads its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DownsamplePadding {
    /// Below and to the right: `downsample_padding` 0.
    Asymmetric,
    /// On all four sides: `downsample_padding` 1.
    Symmetric,
}

/// Whether the middle block contains self-attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MidAttention {
    /// Two residual blocks with attention between them.
    With,
    /// Two residual blocks.
    Without,
}

/// The range of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputRange {
    /// Taken as it is.
    AsIs,
    /// In [0, 1], mapped to [-1, 1] by the network: `center_input_sample` true.
    Centered,
}

/// The class embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Classes {
    /// Rows of the embedding: `num_class_embeds`.
    pub rows: usize,
    /// Whether the last row is the null condition, which is never trained: `_tweedie_null_class` is its index.
    pub null: Null,
}

/// Whether a class embedding has a row for the null condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Null {
    /// The last row, frozen at zero.
    LastRow,
    /// None: every sample needs a label.
    Absent,
}

/// A configuration of [`Residual`](crate::Residual).
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
    /// Width of the time embedding; `None` is four times the channels of the first level.
    pub time_embedding_dim: Option<usize>,
    /// Subtracted from the number of frequencies in the sinusoid's exponent.
    pub freq_shift: f64,
    /// Order of the sinusoid's halves.
    pub sinusoid: SinusoidOrder,
    /// The levels on the way down, the finest first.
    pub down_blocks: Vec<Block>,
    /// The levels on the way up, the coarsest first.
    pub up_blocks: Vec<Block>,
    /// Channels of each level, the finest first.
    pub channels: Vec<usize>,
    /// Residual blocks per level on the way down (one more on the way up).
    pub layers_per_block: usize,
    /// The outputs of the middle block's layers are divided by this.
    pub mid_block_scale_factor: f64,
    /// Padding of the downsampling convolutions.
    pub downsample_padding: DownsamplePadding,
    /// Channels per attention head; `None` is one head.
    pub attention_head_dim: Option<usize>,
    /// Groups of every GroupNorm.
    pub norm_num_groups: usize,
    /// Groups of the GroupNorm in the middle attention; `None` is `norm_num_groups`, but no GroupNorm at all there
    /// with [`TimeScaleShift::ScaleShift`], as in diffusers.
    pub attn_norm_num_groups: Option<usize>,
    /// Added to the variance in every GroupNorm.
    pub norm_eps: f64,
    /// How the time embedding enters.
    pub time_scale_shift: TimeScaleShift,
    /// Attention in the middle block.
    pub mid_attention: MidAttention,
    /// The class embedding, `None` for an unconditional network.
    pub classes: Option<Classes>,
}

impl Default for Config {
    /// The defaults of diffusers' constructor.
    fn default() -> Self {
        use Block::{Attention, Plain};
        Self {
            sample_size: None,
            in_channels: 3,
            out_channels: 3,
            input_range: InputRange::AsIs,
            time_embedding_dim: None,
            freq_shift: 0.0,
            sinusoid: SinusoidOrder::CosSin,
            down_blocks: vec![Plain, Attention, Attention, Attention],
            up_blocks: vec![Attention, Attention, Attention, Plain],
            channels: vec![224, 448, 672, 896],
            layers_per_block: 2,
            mid_block_scale_factor: 1.0,
            downsample_padding: DownsamplePadding::Symmetric,
            attention_head_dim: Some(8),
            norm_num_groups: 32,
            attn_norm_num_groups: None,
            norm_eps: 1e-5,
            time_scale_shift: TimeScaleShift::Default,
            mid_attention: MidAttention::With,
            classes: None,
        }
    }
}

/// A choice between the values `false` and `true`.
fn flag<T>(no: T, yes: T) -> [(Value, T); 2] {
    [(json!(false), no), (json!(true), yes)]
}

impl Config {
    /// Reads the contents of a `config.json`.
    ///
    /// Missing keys take diffusers' defaults, keys that begin with `_` are metadata (of which `_use_default_values`
    /// and `_tweedie_null_class` are heeded).
    ///
    /// # Errors
    /// For every key, value or combination that this network does not support, by name.
    pub fn from_json(map: &Map<String, Value>) -> Result<Self, UnetError> {
        let mut reader = Reader::new(CLASS, map);
        let r = &mut reader;
        let default = Self::default();
        // Values that mean what is always done here; whatever else they could be changes the network.
        r.choice("time_embedding_type", (), &[(json!("positional"), ())])?;
        r.choice("mid_block_type", (), &[(json!("UNetMidBlock2D"), ())])?;
        r.choice("downsample_type", (), &[(json!("conv"), ())])?;
        r.choice("upsample_type", (), &[(json!("conv"), ())])?;
        r.choice("act_fn", (), &[(json!("silu"), ()), (json!("swish"), ())])?;
        r.choice("class_embed_type", (), &[(Value::Null, ())])?;
        r.number("dropout", 0.0, |x| x == 0.0, "0 (dropout is not supported)")?;
        // Only learned time embeddings, which are refused above, read this one.
        r.optional("num_train_timesteps", None, 0)?;

        let config = Self {
            sample_size: sample_size(r)?,
            in_channels: r.integer("in_channels", default.in_channels, 1)?,
            out_channels: r.integer("out_channels", default.out_channels, 1)?,
            input_range: r.choice(
                "center_input_sample",
                default.input_range,
                &flag(InputRange::AsIs, InputRange::Centered),
            )?,
            time_embedding_dim: r.optional("time_embedding_dim", None, 1)?,
            freq_shift: r.number("freq_shift", 0.0, |_| true, "a number")?,
            sinusoid: r.choice(
                "flip_sin_to_cos",
                default.sinusoid,
                &flag(SinusoidOrder::SinCos, SinusoidOrder::CosSin),
            )?,
            down_blocks: r.choices(
                "down_block_types",
                &default.down_blocks,
                &[("DownBlock2D", Block::Plain), ("AttnDownBlock2D", Block::Attention)],
            )?,
            up_blocks: r.choices(
                "up_block_types",
                &default.up_blocks,
                &[("UpBlock2D", Block::Plain), ("AttnUpBlock2D", Block::Attention)],
            )?,
            channels: r.integers("block_out_channels", &default.channels)?,
            layers_per_block: r.integer("layers_per_block", default.layers_per_block, 1)?,
            mid_block_scale_factor: r.number("mid_block_scale_factor", 1.0, |x| x > 0.0, "a number above 0")?,
            downsample_padding: r.choice(
                "downsample_padding",
                default.downsample_padding,
                &[(json!(0), DownsamplePadding::Asymmetric), (json!(1), DownsamplePadding::Symmetric)],
            )?,
            attention_head_dim: r.optional("attention_head_dim", default.attention_head_dim, 1)?,
            norm_num_groups: r.integer("norm_num_groups", default.norm_num_groups, 1)?,
            attn_norm_num_groups: r.optional("attn_norm_num_groups", None, 1)?,
            norm_eps: r.number("norm_eps", default.norm_eps, |x| x > 0.0, "a number above 0")?,
            time_scale_shift: r.choice(
                "resnet_time_scale_shift",
                default.time_scale_shift,
                &[(json!("default"), TimeScaleShift::Default), (json!("scale_shift"), TimeScaleShift::ScaleShift)],
            )?,
            mid_attention: r.choice(
                "add_attention",
                default.mid_attention,
                &flag(MidAttention::Without, MidAttention::With),
            )?,
            classes: classes(r)?,
        };
        reader.finish()?;
        config.validate()?;
        Ok(config)
    }

    /// The contents of a `config.json` that diffusers loads, and [`Config::from_json`] reads back.
    pub fn to_json(&self) -> Map<String, Value> {
        let block = |prefix: &str, direction: &str, block: &Block| match block {
            Block::Plain => format!("{direction}Block2D"),
            Block::Attention => format!("{prefix}{direction}Block2D"),
        };
        let sample_size = match self.sample_size {
            None => Value::Null,
            Some([h, w]) if h == w => json!(h),
            Some(size) => json!(size),
        };
        // Whole numbers are written as such, which is how diffusers writes its integer defaults.
        let number = |x: f64| if x.fract() == 0.0 && x.abs() < 1e9 { json!(x as i64) } else { json!(x) };
        let value = json!({
            "_class_name": CLASS,
            "_diffusers_version": "0.42.1",
            "act_fn": "silu",
            "add_attention": self.mid_attention == MidAttention::With,
            "attention_head_dim": self.attention_head_dim,
            "attn_norm_num_groups": self.attn_norm_num_groups,
            "block_out_channels": self.channels,
            "center_input_sample": self.input_range == InputRange::Centered,
            "class_embed_type": null,
            "down_block_types": self.down_blocks.iter().map(|b| block("Attn", "Down", b)).collect::<Vec<_>>(),
            "downsample_padding": match self.downsample_padding {
                DownsamplePadding::Asymmetric => 0,
                DownsamplePadding::Symmetric => 1,
            },
            "downsample_type": "conv",
            "dropout": 0.0,
            "flip_sin_to_cos": self.sinusoid == SinusoidOrder::CosSin,
            "freq_shift": number(self.freq_shift),
            "in_channels": self.in_channels,
            "layers_per_block": self.layers_per_block,
            "mid_block_scale_factor": number(self.mid_block_scale_factor),
            "mid_block_type": "UNetMidBlock2D",
            "norm_eps": self.norm_eps,
            "norm_num_groups": self.norm_num_groups,
            "num_class_embeds": self.classes.map(|c| c.rows),
            "num_train_timesteps": null,
            "out_channels": self.out_channels,
            "resnet_time_scale_shift": match self.time_scale_shift {
                TimeScaleShift::Default => "default",
                TimeScaleShift::ScaleShift => "scale_shift",
            },
            "sample_size": sample_size,
            "time_embedding_dim": self.time_embedding_dim,
            "time_embedding_type": "positional",
            "up_block_types": self.up_blocks.iter().map(|b| block("Attn", "Up", b)).collect::<Vec<_>>(),
            "upsample_type": "conv",
        });
        let Value::Object(mut map) = value else { unreachable!("the macro was given an object") };
        if let Some(Classes { rows, null: Null::LastRow }) = self.classes {
            map.insert("_tweedie_null_class".into(), json!(rows - 1));
        }
        map
    }

    /// Number of levels.
    pub fn levels(&self) -> usize {
        self.channels.len()
    }

    /// Width of the time embedding.
    pub fn embedding(&self) -> usize {
        self.time_embedding_dim.unwrap_or(4 * self.channels[0])
    }

    /// Attention heads for `c` channels.
    pub(crate) fn heads(&self, c: usize) -> usize {
        self.attention_head_dim.map_or(1, |width| c / width)
    }

    /// Channels of every skip connection in the order in which the way down makes them.
    pub(crate) fn skips(&self) -> Vec<usize> {
        let mut skips = vec![self.channels[0]];
        for (level, &c) in self.channels.iter().enumerate() {
            let downsampled = usize::from(level + 1 < self.levels());
            skips.extend(std::iter::repeat_n(c, self.layers_per_block + downsampled));
        }
        skips
    }

    /// Whether the values fit together.
    ///
    /// # Errors
    /// If a width cannot be divided into its groups or heads, if the lists differ in length, or if a value is out of
    /// range.
    pub fn validate(&self) -> Result<(), UnetError> {
        let levels = self.levels();
        if !(1..=8).contains(&levels) || self.down_blocks.len() != levels || self.up_blocks.len() != levels {
            return Err(inconsistent(format!(
                "`block_out_channels`, `down_block_types` and `up_block_types` should have the same length, 1 to 8; \
                 found {levels}, {} and {}",
                self.down_blocks.len(),
                self.up_blocks.len()
            )));
        }
        let sizes =
            [self.in_channels, self.out_channels, self.layers_per_block, self.norm_num_groups, self.embedding()];
        if let Some(bad) = sizes.iter().chain(&self.channels).find(|&&size| !(1..=4 * LARGEST).contains(&size)) {
            return Err(inconsistent(format!("every size should be at least 1 and reasonable, found {bad}")));
        }
        for (key, value) in [("mid_block_scale_factor", self.mid_block_scale_factor), ("norm_eps", self.norm_eps)] {
            if !(value > 0.0 && value.is_finite()) {
                return Err(inconsistent(format!("`{key}` should be a number above 0, found {value}")));
            }
        }
        let half = (self.channels[0] / 2) as f64;
        if self.freq_shift.is_nan() || self.freq_shift >= half {
            return Err(inconsistent(format!(
                "`freq_shift` {} should be less than half of the first of `block_out_channels`, {half}",
                self.freq_shift
            )));
        }
        if let Some(Classes { rows, null }) = self.classes
            && rows < 1 + usize::from(null == Null::LastRow)
        {
            return Err(inconsistent(format!("`num_class_embeds` {rows} leaves no row for a class")));
        }
        self.check_groups()?;
        self.check_heads()?;
        let parameters = self.estimated_parameters();
        if parameters > MOST_PARAMETERS {
            return Err(inconsistent(format!(
                "the widths ask for about {parameters:.0e} parameters, at most {MOST_PARAMETERS:.0e} are supported; \
                 reduce `block_out_channels` or `layers_per_block`"
            )));
        }
        Ok(())
    }

    fn check_groups(&self) -> Result<(), UnetError> {
        let groups = self.norm_num_groups;
        let mut skips = self.skips();
        let mut widths = self.channels.clone();
        let mut c = self.channels[self.levels() - 1];
        for &own in self.channels.iter().rev() {
            for _ in 0..=self.layers_per_block {
                widths.push(c + skips.pop().unwrap_or_default());
                c = own;
            }
        }
        if let Some(c) = widths.iter().find(|&&c| c % groups != 0) {
            return Err(inconsistent(format!(
                "`norm_num_groups` {groups} does not divide {c} channels, which one of the layers has; \
                 choose a divisor of every entry of `block_out_channels`"
            )));
        }
        let mid = self.channels[self.levels() - 1];
        match self.attn_norm_num_groups {
            Some(groups) if !mid.is_multiple_of(groups) => Err(inconsistent(format!(
                "`attn_norm_num_groups` {groups} does not divide the last of `block_out_channels`, {mid}"
            ))),
            _ => Ok(()),
        }
    }

    fn check_heads(&self) -> Result<(), UnetError> {
        let Some(width) = self.attention_head_dim else { return Ok(()) };
        if width == 0 {
            return Err(inconsistent("`attention_head_dim` should be at least 1, found 0".to_owned()));
        }
        let down = self.down_blocks.iter().zip(&self.channels);
        let up = self.up_blocks.iter().zip(self.channels.iter().rev());
        let levels = down.chain(up).filter(|(block, _)| **block == Block::Attention).map(|(_, &c)| c);
        let mid = (self.mid_attention == MidAttention::With).then(|| self.channels[self.levels() - 1]);
        match levels.chain(mid).find(|&c| c % width != 0) {
            None => Ok(()),
            Some(c) => Err(inconsistent(format!(
                "`attention_head_dim` {width} (channels per head) does not divide a level of {c} channels with attention"
            ))),
        }
    }

    /// The convolutions of the residual blocks, as if every input had the channels of a concatenation.
    pub(crate) fn estimated_parameters(&self) -> f64 {
        let layers = (2 * self.layers_per_block + 3) as f64;
        let embedding = self.embedding() as f64;
        let blocks = self.channels.iter().map(|&c| layers * (27.0 * (c as f64).powi(2) + 2.0 * c as f64 * embedding));
        let ends = (self.in_channels + self.out_channels) as f64 * 9.0 * self.channels[0] as f64;
        let classes = self.classes.map_or(0.0, |c| c.rows as f64 * embedding);
        blocks.sum::<f64>() + ends + classes + embedding * embedding
    }
}

fn inconsistent(message: String) -> UnetError {
    UnetError::Inconsistent { class: CLASS, message }
}

fn sample_size(r: &mut Reader<'_>) -> Result<Option<[usize; 2]>, UnetError> {
    let side = |v: &Value| v.as_u64().filter(|x| (1..=LARGEST as u64).contains(x)).map(|x| x as usize);
    let size = match r.get("sample_size") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(sides)) if sides.len() == 2 => side(&sides[0]).zip(side(&sides[1])).map(|(h, w)| [h, w]),
        Some(value) => side(value).map(|x| [x, x]),
    };
    match size {
        Some(size) => Ok(Some(size)),
        None => Err(r.refuse("sample_size", "null, a whole number from 1, or two of them (height, width)")),
    }
}

fn classes(r: &mut Reader<'_>) -> Result<Option<Classes>, UnetError> {
    let rows = r.optional("num_class_embeds", None, 1)?;
    let null = r.optional("_tweedie_null_class", None, 0)?;
    match (rows, null) {
        (None, None) => Ok(None),
        (Some(rows), None) => Ok(Some(Classes { rows, null: Null::Absent })),
        (Some(rows), Some(null)) if null + 1 == rows => Ok(Some(Classes { rows, null: Null::LastRow })),
        (rows, Some(_)) => Err(r.refuse(
            "_tweedie_null_class",
            match rows {
                Some(rows) => format!("{}, the last row of the class embedding (`num_class_embeds` - 1)", rows - 1),
                None => "absent, since `num_class_embeds` is null".into(),
            },
        )),
    }
}
