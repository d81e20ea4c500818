//! CLIP: an encoder of texts and one of images, trained so that a picture and its description lie close to each other (Radford
//! et al. 2021, arXiv:2103.00020).
//!
//! Stable Diffusion is conditioned on the states of the text encoder at all positions ([`TextEncoder::states`]). The cosine
//! between the projections of both encoders says how well a picture fits a text ([`similarity`]).

mod config;
mod image;
mod preprocess;
mod text;
mod transformer;

pub use config::{ImageConfig, Pooled, TextConfig, TransformerConfig};
pub use image::ImageEncoder;
pub use preprocess::{Preprocessor, Resampling, Target};
pub use text::TextEncoder;

use ndarray::{Array2, ArrayView1, ArrayView2};

use crate::LatentError;

/// The name of a weight of a text model with its prefix: transformers since version 5 writes a `CLIPTextModel` without
/// `text_model.`. `None` where the name is that already.
pub fn text_key(key: &str) -> Option<String> {
    let bare = ["embeddings.", "encoder.", "final_layer_norm."].iter().any(|start| key.starts_with(start));
    bare.then(|| format!("{}{key}", config::TEXT_PREFIX))
}

/// The name of a weight of an image model with its prefix, as [`text_key`].
pub fn image_key(key: &str) -> Option<String> {
    let bare =
        ["embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm."].iter().any(|start| key.starts_with(start));
    bare.then(|| format!("{}{key}", config::IMAGE_PREFIX))
}

/// Whether a weight may be in a file without being read: the numbers of the positions, which old files hold.
pub fn is_superfluous(key: &str) -> bool {
    key.ends_with("embeddings.position_ids")
}

/// The cosine of the angle between each image and each text, in [-1, 1]: `[images, texts]`, of projections `[images, D]` and
/// `[texts, D]`.
///
/// $$ \cos(u, v) = \frac{u \cdot v}{|u| |v|} $$
///
/// CLIP's logits are these times `exp(logit_scale)`, 100 in the published models. A projection of zeros has no angle: NaN.
///
/// # Errors
/// If the widths differ.
///
/// FORMULAS 7.4. Verified by `cosines_known_by_hand`. Verified by `images_are_encoded_as_in_python`.
pub fn similarity(images: ArrayView2<'_, f32>, texts: ArrayView2<'_, f32>) -> Result<Array2<f32>, LatentError> {
    if images.ncols() != texts.ncols() {
        return Err(LatentError::Parameter {
            operation: "comparing images and texts",
            what: "the width of the texts' projections".into(),
            expected: format!("{}, that of the images", images.ncols()),
            found: texts.ncols().to_string(),
            remedy: "project both with one model",
        });
    }
    let dot = |a: ArrayView1<'_, f32>, b: ArrayView1<'_, f32>| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    Ok(Array2::from_shape_fn((images.nrows(), texts.nrows()), |(i, j)| {
        let (image, text) = (images.row(i), texts.row(j));
        (dot(image, text) / (dot(image, image) * dot(text, text)).sqrt()) as f32
    }))
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn cosines_known_by_hand() {
        let images = array![[3.0, 4.0], [-2.0, 0.0]];
        let texts = array![[4.0, 3.0], [0.0, 5.0], [6.0, 8.0]];
        let expected = array![[0.96, 0.8, 1.0], [-0.8, 0.0, -0.6]];
        let found = similarity(images.view(), texts.view()).unwrap();
        assert!(found.iter().zip(&expected).all(|(a, b): (&f32, &f32)| (a - b).abs() < 1e-6), "{found}");
        assert!(
            similarity(images.view(), array![[1.0]].view()).unwrap_err().to_string().contains("2, that of the images")
        );
    }

    #[test]
    fn names_get_their_prefix_once() {
        let key = "encoder.layers.0.mlp.fc1.bias";
        assert_eq!(text_key(key).unwrap(), "text_model.encoder.layers.0.mlp.fc1.bias");
        assert_eq!(image_key(key).unwrap(), "vision_model.encoder.layers.0.mlp.fc1.bias");
        for key in ["text_model.final_layer_norm.bias", "text_projection.weight", "vision_model.pre_layrnorm.bias"] {
            assert_eq!((text_key(key), image_key(key)), (None, None), "{key}");
        }
        assert!(
            is_superfluous("text_model.embeddings.position_ids") && !is_superfluous("embeddings.position_embedding")
        );
    }
}
