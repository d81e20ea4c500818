//! The configurations of CLIP's two encoders, from the `config.json` of transformers.
//!
//! Files of transformers hold some fifty keys of text generation and training, which say nothing of these networks. Keys that
//! do and that are not supported are refused by name.

use serde_json::{Map, Value};
use tweedie_kernels::act::Act;

use crate::LatentError;
use crate::json::Reader;

/// What a transformer of either encoder is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct TransformerConfig {
    /// Channels of a token (`hidden_size`).
    pub width: usize,
    /// Channels inside the two-layer perceptrons (`intermediate_size`).
    pub inner: usize,
    /// Layers (`num_hidden_layers`).
    pub layers: usize,
    /// Attention heads (`num_attention_heads`), a divisor of the width.
    pub heads: usize,
    /// The activation of the perceptrons (`hidden_act`).
    pub act: Act,
    /// Added to the variances of the layer normalisations (`layer_norm_eps`).
    pub eps: f32,
}

/// Which position of a text stands for all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooled {
    /// That of the largest token number, the first of several. Files of before 2023 have `eos_token_id` 2, which is wrong;
    /// the end of a text is the last token of CLIP's vocabulary.
    Largest,
    /// The first with this token.
    First(u32),
}

/// The text encoder: `CLIPTextModel`, `CLIPTextModelWithProjection`, or the text half of `CLIPModel`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct TextConfig {
    /// The transformer.
    pub transformer: TransformerConfig,
    /// Tokens of the vocabulary (`vocab_size`).
    pub vocabulary: usize,
    /// The longest text (`max_position_embeddings`).
    pub positions: usize,
    /// Where the pooled output is read.
    pub pooled: Pooled,
    /// The width of the space that texts and images share; `None` where there is no projection.
    pub projection: Option<usize>,
}

/// The image encoder: `CLIPVisionModel`, `CLIPVisionModelWithProjection`, or the image half of `CLIPModel`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct ImageConfig {
    /// The transformer.
    pub transformer: TransformerConfig,
    /// Channels of an image (`num_channels`).
    pub channels: usize,
    /// Height and width of an image (`image_size`).
    pub size: usize,
    /// Height and width of a patch (`patch_size`), at most the image's.
    pub patch: usize,
    /// The width of the space that texts and images share; `None` where there is no projection.
    pub projection: Option<usize>,
}

const TEXT: &str = "CLIPTextModel";
const IMAGE: &str = "CLIPVisionModel";

/// The width of the shared space that transformers takes for granted.
const PROJECTION: usize = 512;

impl TextConfig {
    /// Reads the contents of a `config.json`: that of a text model, or of a `CLIPModel`, whose `text_config` is taken.
    ///
    /// A projection is there if `architectures` names `CLIPTextModelWithProjection`, and in a `CLIPModel`.
    ///
    /// # Errors
    /// For every key and value that is not supported, by name.
    pub fn from_json(map: &Map<String, Value>) -> Result<Self, LatentError> {
        let (half, outer) = half(map, TEXT, "text_config")?;
        let r = Reader::new(TEXT, half);
        let with_projection = outer.is_some() || is_architecture(map, "CLIPTextModelWithProjection");
        Ok(Self {
            transformer: transformer(&r, Defaults { width: 512, inner: 2048, heads: 8 })?,
            vocabulary: r.integer("vocab_size", 49408)?,
            positions: r.integer("max_position_embeddings", 77)?,
            pooled: match r.get("eos_token_id") {
                None => Pooled::First(49407),
                Some(value) => match value.as_u64().and_then(|id| u32::try_from(id).ok()) {
                    Some(2) => Pooled::Largest,
                    Some(id) => Pooled::First(id),
                    None => return Err(r.refuse("eos_token_id", "the number of a token")),
                },
            },
            projection: projection(&r, outer, with_projection)?,
        })
    }

    /// The names and shapes of all weights, with the prefix `text_model.` (see [`text_key`](super::text_key)).
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let width = self.transformer.width;
        let mut tensors = vec![
            (format!("{TEXT_PREFIX}embeddings.token_embedding.weight"), vec![self.vocabulary, width]),
            (format!("{TEXT_PREFIX}embeddings.position_embedding.weight"), vec![self.positions, width]),
        ];
        self.transformer.tensors(TEXT_PREFIX, &mut tensors);
        norm(format!("{TEXT_PREFIX}final_layer_norm"), width, &mut tensors);
        tensors.extend(self.projection.map(|out| (TEXT_PROJECTION.to_owned(), vec![out, width])));
        tensors
    }

    /// Floating-point operations for the states of one text of `tokens` tokens: two for each multiplication of a linear layer or
    /// of attention (masked products counted as well); norms and activations are not counted.
    pub fn flops(&self, tokens: usize) -> u64 {
        let TransformerConfig { width, inner, layers, .. } = self.transformer;
        let (linear, attention) = (4 * width * width + 2 * width * inner, 2 * tokens * width);
        2 * (layers * tokens * (linear + attention)) as u64
    }
}

impl ImageConfig {
    /// Reads the contents of a `config.json`: that of an image model, or of a `CLIPModel`, whose `vision_config` is taken.
    ///
    /// A projection is there if `architectures` names `CLIPVisionModelWithProjection`, and in a `CLIPModel`.
    ///
    /// # Errors
    /// For every key and value that is not supported, by name.
    pub fn from_json(map: &Map<String, Value>) -> Result<Self, LatentError> {
        let (half, outer) = half(map, IMAGE, "vision_config")?;
        let r = Reader::new(IMAGE, half);
        let with_projection = outer.is_some() || is_architecture(map, "CLIPVisionModelWithProjection");
        let config = Self {
            transformer: transformer(&r, Defaults { width: 768, inner: 3072, heads: 12 })?,
            channels: r.integer("num_channels", 3)?,
            size: r.integer("image_size", 224)?,
            patch: r.integer("patch_size", 32)?,
            projection: projection(&r, outer, with_projection)?,
        };
        if config.patch > config.size {
            return Err(r.refuse("patch_size", format!("at most {}, the `image_size`", config.size)));
        }
        Ok(config)
    }

    /// Patches along a side; what is left at the right and at the bottom of an image is not seen.
    pub fn grid(&self) -> usize {
        self.size / self.patch
    }

    /// Tokens of an image: one of its own, and one for each patch.
    pub fn tokens(&self) -> usize {
        1 + self.grid() * self.grid()
    }

    /// The names and shapes of all weights, with the prefix `vision_model.` (see [`image_key`](super::image_key)).
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let width = self.transformer.width;
        let key = |part: &str| format!("{IMAGE_PREFIX}{part}");
        let mut tensors = vec![
            (key("embeddings.class_embedding"), vec![width]),
            (key("embeddings.patch_embedding.weight"), vec![width, self.channels, self.patch, self.patch]),
            (key("embeddings.position_embedding.weight"), vec![self.tokens(), width]),
        ];
        // The name was misspelt when the first weights were published.
        norm(key("pre_layrnorm"), width, &mut tensors);
        self.transformer.tensors(IMAGE_PREFIX, &mut tensors);
        norm(key("post_layernorm"), width, &mut tensors);
        tensors.extend(self.projection.map(|out| (IMAGE_PROJECTION.to_owned(), vec![out, width])));
        tensors
    }
}

/// What the keys of a text model begin with.
pub(super) const TEXT_PREFIX: &str = "text_model.";
/// What the keys of an image model begin with.
pub(super) const IMAGE_PREFIX: &str = "vision_model.";
/// The key of the projection of texts.
pub(super) const TEXT_PROJECTION: &str = "text_projection.weight";
/// The key of the projection of images.
pub(super) const IMAGE_PROJECTION: &str = "visual_projection.weight";

impl TransformerConfig {
    fn tensors(&self, prefix: &str, tensors: &mut Vec<(String, Vec<usize>)>) {
        let (width, inner) = (self.width, self.inner);
        let linear = |name: String, c_in: usize, c_out: usize, tensors: &mut Vec<_>| {
            tensors.push((format!("{name}.weight"), vec![c_out, c_in]));
            tensors.push((format!("{name}.bias"), vec![c_out]));
        };
        for i in 0..self.layers {
            let key = |part: &str| format!("{prefix}encoder.layers.{i}.{part}");
            norm(key("layer_norm1"), width, tensors);
            for projection in ["q_proj", "k_proj", "v_proj", "out_proj"] {
                linear(key(&format!("self_attn.{projection}")), width, width, tensors);
            }
            norm(key("layer_norm2"), width, tensors);
            linear(key("mlp.fc1"), width, inner, tensors);
            linear(key("mlp.fc2"), inner, width, tensors);
        }
    }
}

fn norm(name: String, width: usize, tensors: &mut Vec<(String, Vec<usize>)>) {
    tensors.push((format!("{name}.weight"), vec![width]));
    tensors.push((format!("{name}.bias"), vec![width]));
}

/// The configuration of a half, and that of the `CLIPModel` around it, if it is one.
type Half<'a> = (&'a Map<String, Value>, Option<&'a Map<String, Value>>);

fn half<'a>(map: &'a Map<String, Value>, class: &'static str, key: &str) -> Result<Half<'a>, LatentError> {
    // Where an old file has both, transformers takes the second, with its own defaults.
    let old = format!("{key}_dict");
    for key in [old.as_str(), key] {
        match map.get(key) {
            None | Some(Value::Null) => {}
            Some(Value::Object(half)) => return Ok((half, Some(map))),
            Some(_) => return Err(Reader::new(class, map).refuse(key, "an object")),
        }
    }
    Ok((map, None))
}

fn is_architecture(map: &Map<String, Value>, name: &str) -> bool {
    let names = map.get("architectures").and_then(Value::as_array);
    names.is_some_and(|names| names.iter().any(|found| found == name))
}

/// In a `CLIPModel` the width of the shared space stands outside of the two halves.
fn projection(
    r: &Reader<'_>,
    outer: Option<&Map<String, Value>>,
    with_projection: bool,
) -> Result<Option<usize>, LatentError> {
    match outer {
        Some(outer) => Reader::new("CLIPModel", outer).integer("projection_dim", PROJECTION).map(Some),
        None if with_projection => r.integer("projection_dim", PROJECTION).map(Some),
        None => Ok(None),
    }
}

struct Defaults {
    width: usize,
    inner: usize,
    heads: usize,
}

fn transformer(r: &Reader<'_>, defaults: Defaults) -> Result<TransformerConfig, LatentError> {
    let config = TransformerConfig {
        width: r.integer("hidden_size", defaults.width)?,
        inner: r.integer("intermediate_size", defaults.inner)?,
        layers: r.integer("num_hidden_layers", 12)?,
        heads: r.integer("num_attention_heads", defaults.heads)?,
        act: match r.get("hidden_act") {
            None => Act::QuickGelu,
            Some(value) => match value.as_str() {
                Some("quick_gelu") => Act::QuickGelu,
                Some("gelu") => Act::Gelu,
                Some("silu" | "swish") => Act::Silu,
                Some("relu") => Act::Relu,
                _ => return Err(r.refuse("hidden_act", r#""quick_gelu", "gelu", "silu" or "relu""#)),
            },
        },
        eps: r.number("layer_norm_eps", 1e-5, |x| x > 0.0, "a number above 0")? as f32,
    };
    if !config.width.is_multiple_of(config.heads) {
        return Err(r.refuse("num_attention_heads", format!("a divisor of {}, the `hidden_size`", config.width)));
    }
    for (key, instead) in [
        ("use_attention_mask", "false: every position of a text is seen, those that fill it up too"),
        ("add_cross_attention", "false: the encoder reads a text and nothing else"),
    ] {
        if r.flag(key, false)? {
            return Err(r.refuse(key, instead));
        }
    }
    match r.get("pruned_heads") {
        Some(Value::Object(heads)) if !heads.is_empty() => Err(r.refuse("pruned_heads", "empty")),
        _ => Ok(config),
    }
}
