//! Classifiers: the bundled one, and those that `tweedie train-classifier` has written.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tweedie_checkpoint::{Config, ModelDir, check_keys, read_config};
use tweedie_data::Range;
use tweedie_unet::EncoderClassifier;
use tweedie_unet::classifier::{CLASS, Time};

use crate::model;

/// The name of the bundled classifier in messages and files.
pub const BUNDLED: &str = "MNIST classifier (bundled)";

/// The key of a classifier's config with the share of the test images that it names right; of one of noisy images at the
/// first step.
pub const ACCURACY_KEY: &str = "_tweedie_accuracy";

const BUNDLED_CONFIG: &str = include_str!("../assets/classifier/config.json");
const BUNDLED_WEIGHTS: &[u8] = include_bytes!("../assets/classifier/diffusion_pytorch_model.safetensors");

/// A classifier with its weights.
pub struct LoadedClassifier {
    /// The directory, or [`BUNDLED`].
    pub name: String,
    /// The network. It sees the steps of its process from 0 on.
    pub network: EncoderClassifier,
    /// The interval of the pixels that it was trained on.
    pub range: Range,
    /// Whether it was trained on noisy images and sees the time; one of clean images ignores it.
    pub noisy: bool,
    /// The config of the process that its images were noised by and where it was read, if there is one.
    pub scheduler: Option<(Config, PathBuf)>,
    /// The names of the classes; empty if they have none.
    pub class_names: Vec<String>,
    /// The share of the test images that it names right, see [`ACCURACY_KEY`].
    pub accuracy: Option<f64>,
    /// Bytes of the weights as they are stored.
    pub stored_bytes: u64,
    /// The types that the weights are stored in, such as `F16`.
    pub stored_types: String,
}

/// Whether a directory holds a classifier. One that cannot be read is none, and whoever opens it says why.
pub fn is_classifier(directory: &Path) -> bool {
    let config = read_config(directory.join("config.json"));
    config.is_ok_and(|config| config.get("_class_name").and_then(Value::as_str) == Some(CLASS))
}

/// Opens the classifier in a directory, or the bundled one of clean MNIST digits.
///
/// # Errors
/// If it is no classifier, or one that is damaged or not supported; the message names the file and the key.
pub fn open(path: Option<&Path>) -> Result<LoadedClassifier> {
    open_variant(path, None)
}

/// As [`open`], with the weights of one variant.
///
/// # Errors
/// As [`open`]; also if there is no such variant.
pub fn open_variant(path: Option<&Path>, variant: Option<&str>) -> Result<LoadedClassifier> {
    let (dir, name) = match path {
        None => (ModelDir::from_memory(BUNDLED, BUNDLED_CONFIG, None, BUNDLED_WEIGHTS)?, BUNDLED.to_owned()),
        Some(path) => (ModelDir::open_variant(path, variant)?, path.display().to_string()),
    };
    if dir.class_name != CLASS {
        bail!(
            "{name} is a {}, and no classifier; give a directory that tweedie train-classifier has written",
            dir.class_name
        );
    }
    let config = || dir.config_path.display().to_string();
    // The weights are compared with the table before memory is taken for a network that a config may make up.
    let available = dir.weights.tensors().map(|tensor| tensor.shape.iter().product::<usize>()).sum();
    let table = EncoderClassifier::table(&dir.config, available).with_context(config)?;
    check_keys(table.entries().iter().map(|p| (p.name.as_str(), p.shape.as_slice())), &dir.weights, |_| false)?;
    let mut network = EncoderClassifier::from_config(&dir.config).with_context(config)?;
    model::load_weights(&mut network, &dir.weights)?;
    let (stored_bytes, stored_types) = model::stored(&dir.weights);
    Ok(LoadedClassifier {
        range: Range::MinusOneOne,
        noisy: network.config().time == Time::Positional,
        class_names: model::class_names(&dir.config).with_context(config)?,
        accuracy: accuracy(&dir.config).with_context(config)?,
        name,
        network,
        stored_bytes,
        stored_types,
        scheduler: dir.scheduler.map(|config| (config, dir.scheduler_path)),
    })
}

/// The accuracy that a config records.
fn accuracy(config: &Config) -> Result<Option<f64>> {
    match config.get(ACCURACY_KEY) {
        None => Ok(None),
        Some(value) => match value.as_f64().filter(|share| (0.0..=1.0).contains(share)) {
            Some(share) => Ok(Some(share)),
            None => {
                bail!("the key {ACCURACY_KEY} should be a number from 0 to 1, found {value}; correct it or remove it")
            }
        },
    }
}

impl LoadedClassifier {
    /// The network's config, with what it says beside the network itself.
    pub fn config(&self) -> Config {
        let mut config = self.network.config().to_json();
        if let Some(share) = self.accuracy {
            config.insert(ACCURACY_KEY.into(), json!(share));
        }
        if !self.class_names.is_empty() {
            config.insert(model::CLASS_NAMES_KEY.into(), json!(self.class_names));
        }
        config
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Axis;
    use tweedie_data::{Dataset, Split};
    use tweedie_denoiser::Classifier;

    use super::*;

    #[test]
    fn the_bundled_classifier_knows_digits() {
        let loaded = open(None).unwrap();
        assert!(!loaded.noisy && loaded.range == Range::MinusOneOne && loaded.network.classes() == 10);
        let data = Dataset::open("mnist", Split::Test).unwrap();
        let batch = data.batch(&(0..200).collect::<Vec<_>>(), loaded.range).unwrap();
        let logits = loaded.network.classify(batch.images.view(), &[0.0; 200]).unwrap().logits;
        let best = |row: ndarray::ArrayView1<'_, f32>| (0..10).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
        let right = logits.axis_iter(Axis(0)).zip(&batch.labels).filter(|(row, label)| best(*row) == **label).count();
        assert!(right >= 196, "{right} of 200");
        assert!(loaded.accuracy.unwrap() > 0.98);
    }
}
