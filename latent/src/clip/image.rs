use ndarray::{Array2, ArrayView4, Axis, Slice};
use tweedie_unet::WeightSource;

use super::config::{IMAGE_PREFIX, IMAGE_PROJECTION, ImageConfig};
use super::transformer::{Linear, Norm, Sight, Transformer, add};
use crate::LatentError;

const OPERATION: &str = "encoding an image";

/// CLIP's image encoder, a vision transformer (Dosovitskiy et al. 2020, arXiv:2010.11929).
///
/// ```text
/// x_0 = class, x_i = W patch_i;  x_i += P[i];  a normalisation;  the layers, in which all positions see each other;
/// y = V LN(x_0)
/// ```
#[derive(Clone)]
pub struct ImageEncoder {
    config: ImageConfig,
    class: Vec<f32>,
    patches: Linear,
    positions: Vec<f32>,
    first_norm: Norm,
    transformer: Transformer,
    last_norm: Norm,
    projection: Option<Linear>,
}

impl ImageEncoder {
    /// The encoder with the weights of `source`, under the names of [`ImageConfig::tensors`].
    ///
    /// # Errors
    /// If a weight is missing or has another shape.
    pub fn new(config: ImageConfig, source: &dyn WeightSource) -> Result<Self, LatentError> {
        let (width, eps) = (config.transformer.width, config.transformer.eps);
        let ImageConfig { channels, patch, .. } = config;
        let key = |part: &str| format!("{IMAGE_PREFIX}{part}");
        let projection = config
            .projection
            .map(|out| source.weight(IMAGE_PROJECTION, &[out, width]).map(|weight| Linear::of(weight, width, out)));
        let patches = source.weight(&key("embeddings.patch_embedding.weight"), &[width, channels, patch, patch])?;
        Ok(Self {
            config,
            class: source.vector(&key("embeddings.class_embedding"), &[width])?,
            patches: Linear::of(patches, channels * patch * patch, width),
            positions: source.vector(&key("embeddings.position_embedding.weight"), &[config.tokens(), width])?,
            first_norm: Norm::new(source, &key("pre_layrnorm"), width, eps)?,
            transformer: Transformer::new(source, IMAGE_PREFIX, &config.transformer, Sight::Full)?,
            last_norm: Norm::new(source, &key("post_layernorm"), width, eps)?,
            projection: projection.transpose()?,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &ImageConfig {
        &self.config
    }

    /// The state of each image: `[images, width]`, of images `[N, C, H, W]` as [`Preprocessor`](super::Preprocessor) makes them.
    ///
    /// # Errors
    /// If there is no image, or its channels or sides are not those of the encoder.
    ///
    /// Verified by `images_are_encoded_as_in_python`.
    pub fn pooled(&self, images: ArrayView4<'_, f32>) -> Result<Array2<f32>, LatentError> {
        let ImageConfig { channels, size, .. } = self.config;
        let (n, c, h, w) = images.dim();
        if n == 0 || [c, h, w] != [channels, size, size] {
            return Err(LatentError::Parameter {
                operation: OPERATION,
                what: "the images".into(),
                expected: format!("one or more of the shape [{channels}, {size}, {size}]"),
                found: format!("{n} of the shape [{c}, {h}, {w}]"),
                remedy: "resize and crop them with the preprocessor of the model",
            });
        }
        let (width, tokens) = (self.config.transformer.width, self.config.tokens());
        let patches = self.patches.forward(&self.cut(images));
        let mut x = Vec::with_capacity(n * tokens * width);
        for patches in patches.chunks_exact((tokens - 1) * width) {
            x.extend_from_slice(&self.class);
            x.extend_from_slice(patches);
        }
        for image in x.chunks_exact_mut(tokens * width) {
            add(image, &self.positions);
        }
        let x = self.transformer.forward(self.first_norm.forward(&x), n, tokens, self.transformer.len());
        let first: Vec<f32> = x.chunks_exact(tokens * width).flat_map(|image| &image[..width]).copied().collect();
        Ok(Array2::from_shape_vec((n, width), self.last_norm.forward(&first)).expect("a row for each image"))
    }

    /// The place of each image in the space that it shares with texts: `[images, projection]`.
    ///
    /// # Errors
    /// As [`ImageEncoder::pooled`]; also if the encoder has no projection.
    ///
    /// Verified by `images_are_encoded_as_in_python`.
    pub fn project(&self, images: ArrayView4<'_, f32>) -> Result<Array2<f32>, LatentError> {
        let Some(projection) = &self.projection else {
            return Err(LatentError::Parameter {
                operation: OPERATION,
                what: "the image encoder".into(),
                expected: "one with a projection".into(),
                found: "none".into(),
                remedy: "use a CLIPModel or a CLIPVisionModelWithProjection",
            });
        };
        let pooled = self.pooled(images)?;
        let width = self.config.projection.unwrap_or_default();
        let rows = projection.forward(pooled.as_slice().expect("a new array is contiguous"));
        Ok(Array2::from_shape_vec((pooled.nrows(), width), rows).expect("a row for each image"))
    }

    /// The patches of all images as rows, each in the order of the weights: channel, row, column.
    fn cut(&self, images: ArrayView4<'_, f32>) -> Vec<f32> {
        let (grid, patch) = (self.config.grid(), self.config.patch);
        let mut rows = Vec::with_capacity(images.len());
        for image in images.outer_iter() {
            for (i, j) in (0..grid).flat_map(|i| (0..grid).map(move |j| (i * patch, j * patch))) {
                for channel in image.outer_iter() {
                    let rows_of = channel.slice_axis(Axis(0), Slice::from(i..i + patch));
                    rows.extend(rows_of.slice_axis(Axis(1), Slice::from(j..j + patch)).iter());
                }
            }
        }
        rows
    }
}

impl std::fmt::Debug for ImageEncoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageEncoder").field("config", &self.config).finish_non_exhaustive()
    }
}
