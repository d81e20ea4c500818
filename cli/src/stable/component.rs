//! Networks beside the denoiser of a pipeline, each from its own directory: the decoder and the text encoder.

use std::path::Path;

use anyhow::{Context, Result};
use tweedie_checkpoint::open_component;
use tweedie_latent::{FileWeights, TextEncoder};
use tweedie_unet::autoencoder::{self, AutoencoderKl};

use super::parts::{autoencoder_config, class_of, text_weights};

/// The class of text encoders, as `architectures` of a `config.json` has it.
const TEXT_ENCODER: &str = "CLIPTextModel";

/// A network that draws nothing by itself.
pub enum Component {
    /// An autoencoder.
    Autoencoder(Box<AutoencoderKl>),
    /// A text encoder.
    TextEncoder(Box<TextEncoder>),
}

/// The autoencoder or the text encoder in the directory `path`; `None` of anything else, which others open.
///
/// # Errors
/// If it is one, but cannot be used.
pub fn component(path: &Path, variant: Option<&str>) -> Result<Option<Component>> {
    match class_of(&path.join("config.json")).as_deref() {
        Some(autoencoder::CLASS) => {
            let component = open_component(path, &[autoencoder::CLASS], variant)?;
            let config = autoencoder_config(&component)?;
            let network = AutoencoderKl::new(config, &FileWeights::new(component.weights))?;
            Ok(Some(Component::Autoencoder(Box::new(network))))
        }
        Some(TEXT_ENCODER) => {
            let (config, weights) = text_weights(open_component(path, &[TEXT_ENCODER], variant)?)?;
            let encoder = TextEncoder::new(config, &weights).with_context(|| path.display().to_string())?;
            Ok(Some(Component::TextEncoder(Box::new(encoder))))
        }
        _ => Ok(None),
    }
}
