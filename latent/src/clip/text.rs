use std::sync::Arc;

use ndarray::{Array2, Array3};
use tweedie_denoiser::Text;
use tweedie_kernels::weight::Stored;
use tweedie_unet::WeightSource;

use super::config::{Pooled, TEXT_PREFIX, TEXT_PROJECTION, TextConfig};
use super::transformer::{Linear, Norm, Sight, Transformer, add};
use crate::LatentError;

const OPERATION: &str = "encoding a text";

/// CLIP's text encoder.
///
/// ```text
/// x_i = E[token_i] + P[i];  the layers, in which position i sees positions 0 to i;  the last normalisation
/// ```
///
/// Its weights stay as its source holds them, and rows of the token embedding are widened where they are read.
#[derive(Clone)]
pub struct TextEncoder {
    config: TextConfig,
    tokens: Arc<dyn Stored>,
    positions: Vec<f32>,
    transformer: Transformer,
    last_norm: Norm,
    projection: Option<Linear>,
}

impl TextEncoder {
    /// The encoder with the weights of `source`, under the names of [`TextConfig::tensors`].
    ///
    /// # Errors
    /// If a weight is missing or has another shape.
    pub fn new(config: TextConfig, source: &dyn WeightSource) -> Result<Self, LatentError> {
        let (width, eps) = (config.transformer.width, config.transformer.eps);
        let key = |part: &str| format!("{TEXT_PREFIX}{part}");
        let projection = config
            .projection
            .map(|out| source.weight(TEXT_PROJECTION, &[out, width]).map(|weight| Linear::of(weight, width, out)));
        Ok(Self {
            config,
            tokens: source.weight(&key("embeddings.token_embedding.weight"), &[config.vocabulary, width])?,
            positions: source.vector(&key("embeddings.position_embedding.weight"), &[config.positions, width])?,
            transformer: Transformer::new(source, TEXT_PREFIX, &config.transformer, Sight::Causal)?,
            last_norm: Norm::new(source, &key("final_layer_norm"), width, eps)?,
            projection: projection.transpose()?,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &TextConfig {
        &self.config
    }

    /// The states of texts, which condition a diffusion model: `[texts, positions, width]`, after the last normalisation.
    ///
    /// `texts` are token numbers, one or more texts of one length. The last `skip` layers are left out ("clip skip"); zero is
    /// what Stable Diffusion was trained with.
    ///
    /// # Errors
    /// If there is no text, the lengths differ or exceed [`TextConfig::positions`], a number is outside of the vocabulary, or
    /// `skip` is more than the number of layers.
    ///
    /// Verified by `states_are_those_of_python`. Verified by `later_tokens_do_not_change_earlier_states`.
    pub fn states(&self, texts: &[Vec<u32>], skip: usize) -> Result<Array3<f32>, LatentError> {
        let [n, len] = self.check(texts)?;
        let layers = self.transformer.len();
        let Some(count) = layers.checked_sub(skip) else {
            return Err(LatentError::Parameter {
                operation: OPERATION,
                what: "the number of layers to skip".into(),
                expected: format!("0 to {layers}, the layers of this encoder"),
                found: skip.to_string(),
                remedy: "skip fewer, or none",
            });
        };
        let x = self.transformer.forward(self.embed(texts, len), n, len, count);
        let states = Array3::from_shape_vec((n, len, self.config.transformer.width), self.last_norm.forward(&x));
        Ok(states.expect("as many numbers as the embedding has"))
    }

    /// [`TextEncoder::states`] as conditions, one for each text, that samples may share.
    ///
    /// # Errors
    /// As [`TextEncoder::states`].
    pub fn texts(&self, texts: &[Vec<u32>], skip: usize) -> Result<Vec<Text>, LatentError> {
        Ok(self.states(texts, skip)?.outer_iter().map(|text| Arc::new(text.to_owned())).collect())
    }

    /// The state of each text at its end: `[texts, width]`.
    ///
    /// # Errors
    /// As [`TextEncoder::states`].
    ///
    /// Verified by `states_are_those_of_python`.
    pub fn pooled(&self, texts: &[Vec<u32>]) -> Result<Array2<f32>, LatentError> {
        let states = self.states(texts, 0)?;
        let mut pooled = Array2::zeros((texts.len(), self.config.transformer.width));
        for ((mut row, states), text) in pooled.outer_iter_mut().zip(states.outer_iter()).zip(texts) {
            row.assign(&states.row(self.end(text)));
        }
        Ok(pooled)
    }

    /// The place of each text in the space that it shares with images: `[texts, projection]`.
    ///
    /// # Errors
    /// As [`TextEncoder::states`]; also if the encoder has no projection.
    ///
    /// Verified by `states_are_those_of_python`.
    pub fn project(&self, texts: &[Vec<u32>]) -> Result<Array2<f32>, LatentError> {
        let Some(projection) = &self.projection else {
            return Err(LatentError::Parameter {
                operation: OPERATION,
                what: "the text encoder".into(),
                expected: "one with a projection".into(),
                found: "none".into(),
                remedy: "use a CLIPModel or a CLIPTextModelWithProjection",
            });
        };
        let pooled = self.pooled(texts)?;
        let width = self.config.projection.unwrap_or_default();
        let rows = projection.forward(pooled.as_slice().expect("a new array is contiguous"));
        Ok(Array2::from_shape_vec((texts.len(), width), rows).expect("a row for each text"))
    }

    /// The position that stands for a text.
    fn end(&self, text: &[u32]) -> usize {
        let end = match self.config.pooled {
            Pooled::Largest => text.iter().copied().max(),
            Pooled::First(id) => Some(id),
        };
        // As in Python, a text without an end is pooled at its beginning.
        text.iter().position(|id| Some(*id) == end).unwrap_or(0)
    }

    fn embed(&self, texts: &[Vec<u32>], len: usize) -> Vec<f32> {
        let width = self.config.transformer.width;
        let mut x = vec![0.0; texts.len() * len * width];
        let tokens = self.tokens.view();
        for (row, id) in x.chunks_exact_mut(width).zip(texts.iter().flatten()) {
            tokens.widen(*id as usize * width, row);
        }
        for text in x.chunks_exact_mut(len * width) {
            add(text, &self.positions);
        }
        x
    }

    /// The number of texts and their length.
    fn check(&self, texts: &[Vec<u32>]) -> Result<[usize; 2], LatentError> {
        let fail = |what: String, expected: String, found: String, remedy| {
            Err(LatentError::Parameter { operation: OPERATION, what, expected, found, remedy })
        };
        let Some(len) = texts.first().map(Vec::len) else {
            return fail("the texts".into(), "one or more".into(), "none".into(), "give an empty text for no prompt");
        };
        if let Some((i, text)) = texts.iter().enumerate().find(|(_, text)| text.len() != len) {
            let expected = format!("{len}, that of text 0");
            return fail(
                format!("the length of text {i}"),
                expected,
                text.len().to_string(),
                "fill up the shorter ones",
            );
        }
        let (most, vocabulary) = (self.config.positions, self.config.vocabulary);
        if len == 0 || len > most {
            let expected = format!("1 to {most} tokens");
            return fail("the length of a text".into(), expected, len.to_string(), "cut it off with the tokenizer");
        }
        match texts.iter().flatten().find(|id| **id as usize >= vocabulary) {
            None => Ok([texts.len(), len]),
            Some(id) => fail(
                "the number of a token".into(),
                format!("below {vocabulary}, the size of the encoder's vocabulary"),
                id.to_string(),
                "use the tokenizer that belongs to the encoder",
            ),
        }
    }
}

impl std::fmt::Debug for TextEncoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TextEncoder").field("config", &self.config).finish_non_exhaustive()
    }
}
