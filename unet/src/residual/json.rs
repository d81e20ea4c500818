//! The configuration as the `config.json` of diffusers' `UNet2DModel`.

use serde_json::{Map, Value, json};

use super::config::{
    Activation, Block, CLASS, Classes, Config, DownsamplePadding, InputRange, MidAttention, MidBlock, Null, Sampling,
    SinusoidOrder, TimeEmbedding, TimeScaleShift,
};
use crate::UnetError;
use crate::json::{LARGEST, Reader};

/// A choice between the values `false` and `true`.
pub(crate) fn flag<T>(no: T, yes: T) -> [(Value, T); 2] {
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
        let encoder = Self::read_encoder(r)?;
        let config = Self {
            out_channels: r.integer("out_channels", encoder.out_channels, 1)?,
            time_embedding: time_embedding(r)?,
            up_blocks: blocks(r, "up_block_types", &encoder.up_blocks, Block::up_name)?,
            upsampling: sampling(r, "upsample_type")?,
            classes: classes(r)?,
            ..encoder
        };
        reader.finish()?;
        config.validate()?;
        Ok(config)
    }

    /// The keys of the way down and the middle; what belongs to the way up and the conditions has its default.
    pub(crate) fn read_encoder(r: &mut Reader<'_>) -> Result<Self, UnetError> {
        let default = Self::default();
        Ok(Self {
            sample_size: sample_size(r)?,
            in_channels: r.integer("in_channels", default.in_channels, 1)?,
            input_range: r.choice(
                "center_input_sample",
                default.input_range,
                &flag(InputRange::AsIs, InputRange::Centered),
            )?,
            // Python takes zero for null here.
            time_embedding_dim: r.optional("time_embedding_dim", None, 0)?.filter(|&width| width > 0),
            freq_shift: r.number("freq_shift", 0.0, |_| true, "a number")?,
            sinusoid: r.choice(
                "flip_sin_to_cos",
                default.sinusoid,
                &flag(SinusoidOrder::SinCos, SinusoidOrder::CosSin),
            )?,
            down_blocks: blocks(r, "down_block_types", &default.down_blocks, Block::down_name)?,
            channels: r.integers("block_out_channels", &default.channels)?,
            layers_per_block: r.integer("layers_per_block", default.layers_per_block, 1)?,
            downsampling: sampling(r, "downsample_type")?,
            mid_block: r.choice(
                "mid_block_type",
                default.mid_block,
                &[(json!("UNetMidBlock2D"), MidBlock::Present), (Value::Null, MidBlock::Absent)],
            )?,
            mid_block_scale_factor: r.number("mid_block_scale_factor", 1.0, |x| x > 0.0, "a number above 0")?,
            downsample_padding: r.choice(
                "downsample_padding",
                default.downsample_padding,
                &[(json!(0), DownsamplePadding::Asymmetric), (json!(1), DownsamplePadding::Symmetric)],
            )?,
            activation: activation(r)?,
            dropout: r.number("dropout", 0.0, |x| (0.0..1.0).contains(&x), "a number from 0 to less than 1")?,
            attention_head_dim: r.optional("attention_head_dim", default.attention_head_dim, 1)?,
            norm_num_groups: r.optional("norm_num_groups", default.norm_num_groups, 1)?,
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
            ..default
        })
    }

    /// The contents of a `config.json` that diffusers loads, and [`Config::from_json`] reads back.
    pub fn to_json(&self) -> Map<String, Value> {
        let mut map = self.encoder_json();
        let mut set = |key: &str, value: Value| map.insert(key.to_owned(), value);
        set("_class_name", json!(CLASS));
        set("_diffusers_version", json!("0.42.1"));
        set(
            "class_embed_type",
            match self.classes {
                Some(Classes::Timestep { .. }) => json!("timestep"),
                _ => Value::Null,
            },
        );
        set(
            "num_class_embeds",
            json!(match self.classes {
                Some(Classes::Table { rows, .. }) => Some(rows),
                Some(Classes::Timestep { labels }) => labels,
                None => None,
            }),
        );
        set(
            "num_train_timesteps",
            json!(match self.time_embedding {
                TimeEmbedding::Learned { steps } => Some(steps),
                _ => None,
            }),
        );
        set("out_channels", json!(self.out_channels));
        set(
            "time_embedding_type",
            json!(match self.time_embedding {
                TimeEmbedding::Positional => "positional",
                TimeEmbedding::Fourier => "fourier",
                TimeEmbedding::Learned { .. } => "learned",
            }),
        );
        set("up_block_types", self.up_blocks.iter().map(|block| block.up_name()).collect());
        set("upsample_type", json!(sampling_name(self.upsampling)));
        map.sort_keys();
        if let Some(row) = self.classes.and_then(Classes::null_row) {
            map.insert("_tweedie_null_class".into(), json!(row));
        }
        map
    }

    /// The keys of [`Config::read_encoder`].
    pub(crate) fn encoder_json(&self) -> Map<String, Value> {
        let sample_size = match self.sample_size {
            None => Value::Null,
            Some([h, w]) if h == w => json!(h),
            Some(size) => json!(size),
        };
        // Whole numbers are written as such, which is how diffusers writes its integer defaults.
        let number = |x: f64| if x.fract() == 0.0 && x.abs() < 1e9 { json!(x as i64) } else { json!(x) };
        let value = json!({
            "act_fn": match self.activation {
                Activation::Silu => "silu",
                Activation::Mish => "mish",
                Activation::Gelu => "gelu",
                Activation::Relu => "relu",
            },
            "add_attention": self.mid_attention == MidAttention::With,
            "attention_head_dim": self.attention_head_dim,
            "attn_norm_num_groups": self.attn_norm_num_groups,
            "block_out_channels": self.channels,
            "center_input_sample": self.input_range == InputRange::Centered,
            "down_block_types": self.down_blocks.iter().map(|block| block.down_name()).collect::<Vec<_>>(),
            "downsample_padding": match self.downsample_padding {
                DownsamplePadding::Asymmetric => 0,
                DownsamplePadding::Symmetric => 1,
            },
            "downsample_type": sampling_name(self.downsampling),
            "dropout": self.dropout,
            "flip_sin_to_cos": self.sinusoid == SinusoidOrder::CosSin,
            "freq_shift": number(self.freq_shift),
            "in_channels": self.in_channels,
            "layers_per_block": self.layers_per_block,
            "mid_block_scale_factor": number(self.mid_block_scale_factor),
            "mid_block_type": match self.mid_block {
                MidBlock::Present => Some("UNetMidBlock2D"),
                MidBlock::Absent => None,
            },
            "norm_eps": self.norm_eps,
            "norm_num_groups": self.norm_num_groups,
            "resnet_time_scale_shift": match self.time_scale_shift {
                TimeScaleShift::Default => "default",
                TimeScaleShift::ScaleShift => "scale_shift",
            },
            "sample_size": sample_size,
            "time_embedding_dim": self.time_embedding_dim,
        });
        let Value::Object(map) = value else { unreachable!("the macro was given an object") };
        map
    }
}

pub(crate) fn sample_size(r: &mut Reader<'_>) -> Result<Option<[usize; 2]>, UnetError> {
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

/// Names that diffusers knows, and why a `UNet2DModel` of them cannot be run.
const REFUSED: [(&str, &str); 10] = [
    ("CrossAttnDownBlock2D", CROSS_ATTENTION),
    ("CrossAttnUpBlock2D", CROSS_ATTENTION),
    ("SimpleCrossAttnDownBlock2D", CROSS_ATTENTION),
    ("SimpleCrossAttnUpBlock2D", CROSS_ATTENTION),
    ("KCrossAttnDownBlock2D", CROSS_ATTENTION),
    ("KCrossAttnUpBlock2D", CROSS_ATTENTION),
    ("DownEncoderBlock2D", AUTOENCODER),
    ("AttnDownEncoderBlock2D", AUTOENCODER),
    ("UpDecoderBlock2D", AUTOENCODER),
    ("AttnUpDecoderBlock2D", AUTOENCODER),
];
const CROSS_ATTENTION: &str = "attends to a second input, such as a text, which UNet2DModel does not have";
const AUTOENCODER: &str =
    "is a block of autoencoders, which gives no skip connections; diffusers' UNet2DModel fails on it";

fn blocks(
    r: &mut Reader<'_>,
    key: &'static str,
    default: &[Block],
    name: fn(Block) -> &'static str,
) -> Result<Vec<Block>, UnetError> {
    let Some(value) = r.get(key) else { return Ok(default.to_vec()) };
    let names = Block::ALL.map(|block| format!("{:?}", name(block))).join(" or ");
    let Some(entries) = value.as_array() else { return Err(r.refuse(key, format!("a list of {names}"))) };
    let find = |entry: &Value| {
        let found = entry.as_str().unwrap_or_default();
        // As in diffusers, old names may have this before them.
        let found = found.strip_prefix("UNetRes").unwrap_or(found);
        Block::ALL.into_iter().find(|&block| name(block) == found).ok_or_else(|| {
            let reason = REFUSED.iter().find(|(name, _)| *name == found);
            let reason = reason.map(|(name, reason)| format!(" ({name} {reason})")).unwrap_or_default();
            r.refuse(key, format!("a list of {names}{reason}"))
        })
    };
    entries.iter().map(find).collect()
}

fn sampling(r: &mut Reader<'_>, key: &'static str) -> Result<Sampling, UnetError> {
    // diffusers takes null for a convolution.
    let choices = [(json!("conv"), Sampling::Conv), (json!("resnet"), Sampling::Resnet), (Value::Null, Sampling::Conv)];
    r.choice(key, Sampling::Conv, &choices)
}

fn sampling_name(sampling: Sampling) -> &'static str {
    match sampling {
        Sampling::Conv => "conv",
        Sampling::Resnet => "resnet",
    }
}

pub(crate) fn activation(r: &mut Reader<'_>) -> Result<Activation, UnetError> {
    let Some(value) = r.get("act_fn") else { return Ok(Activation::Silu) };
    // diffusers does not tell capitals from small letters.
    match value.as_str().unwrap_or_default().to_lowercase().as_str() {
        "silu" | "swish" => Ok(Activation::Silu),
        "mish" => Ok(Activation::Mish),
        "gelu" => Ok(Activation::Gelu),
        "relu" => Ok(Activation::Relu),
        _ => Err(r.refuse("act_fn", r#""silu" or "swish" or "mish" or "gelu" or "relu""#)),
    }
}

fn time_embedding(r: &mut Reader<'_>) -> Result<TimeEmbedding, UnetError> {
    // diffusers reads the number of steps for a learned embedding alone.
    let steps = r.optional("num_train_timesteps", None, 0)?;
    let learned = TimeEmbedding::Learned { steps: steps.unwrap_or(0) };
    let choices = [
        (json!("positional"), TimeEmbedding::Positional),
        (json!("fourier"), TimeEmbedding::Fourier),
        (json!("learned"), learned),
    ];
    match r.choice("time_embedding_type", TimeEmbedding::Positional, &choices)? {
        TimeEmbedding::Learned { steps: 0 } => {
            let expected = "a whole number from 1, since `time_embedding_type` is \"learned\"";
            Err(r.refuse("num_train_timesteps", expected))
        }
        embedding => Ok(embedding),
    }
}

fn classes(r: &mut Reader<'_>) -> Result<Option<Classes>, UnetError> {
    let rows = r.optional("num_class_embeds", None, 1)?;
    let null = r.optional("_tweedie_null_class", None, 0)?;
    let by_time = match r.get("class_embed_type") {
        None | Some(Value::Null) => false,
        Some(Value::String(kind)) if kind == "timestep" => true,
        _ => {
            let expected = "null or \"timestep\" (with \"identity\" a label would be a vector of real numbers, and labels \
                            here are whole numbers)";
            return Err(r.refuse("class_embed_type", expected));
        }
    };
    match (rows, null) {
        (labels, None) if by_time => Ok(Some(Classes::Timestep { labels })),
        (None, None) => Ok(None),
        (Some(rows), None) => Ok(Some(Classes::Table { rows, null: Null::Absent })),
        (Some(rows), Some(null)) if !by_time && null + 1 == rows => {
            Ok(Some(Classes::Table { rows, null: Null::LastRow }))
        }
        (rows, Some(_)) => Err(r.refuse(
            "_tweedie_null_class",
            match rows {
                _ if by_time => "absent, since `class_embed_type` \"timestep\" has no row for it".into(),
                Some(rows) => format!("{}, the last row of the class embedding (`num_class_embeds` - 1)", rows - 1),
                None => "absent, since `num_class_embeds` is null".into(),
            },
        )),
    }
}
