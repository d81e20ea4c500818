//! Pipelines of several networks, such as Stable Diffusion: `model_index.json` and a folder for each part.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::model_dir::{component, config_error, find_weights, missing, one_of, present_name, without_kernel};
use crate::{CheckpointError, Config, TensorFile, read_config};

const INDEX: &str = "model_index.json";
const CONFIG: &str = "config.json";

/// The largest text file that is read; vocabularies take a few megabytes.
const MAX_BYTES: u64 = 64 << 20;

/// The directory of a pipeline. Its parts are opened one by one, so that each can be dropped when it is done.
#[derive(Clone, Debug)]
pub struct Pipeline {
    root: PathBuf,
    index_path: PathBuf,
    index: Config,
}

/// A part of a pipeline: its config, parsed, and its weights, checked as a file but not yet against the architecture.
#[derive(Debug)]
#[non_exhaustive]
pub struct Component {
    /// The class, by its own config or else by that of the pipeline.
    pub class_name: String,
    /// The config.
    pub config: Config,
    /// Where that was read.
    pub config_path: PathBuf,
    /// The weights; old names of attention layers come under their present ones.
    pub weights: TensorFile,
}

impl Pipeline {
    /// Opens a directory with a `model_index.json`.
    ///
    /// # Errors
    /// If there is no such directory, or no readable index in it.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        let root = path.as_ref().to_owned();
        let index_path = root.join(INDEX);
        if !root.is_dir() {
            let (problem, remedy) = match root.exists() {
                true => ("it is a file", "name the directory that holds model_index.json"),
                false => ("there is no such directory", "check the path"),
            };
            return Err(CheckpointError::NotAModel { path: root, problem, remedy });
        }
        if !index_path.is_file() {
            let remedy = "name the directory of a pipeline, as `save_pretrained` writes it".to_owned();
            return Err(missing("pipeline", &root, [INDEX], remedy));
        }
        Ok(Self { index: read_config(&index_path)?, index_path, root })
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `model_index.json`.
    pub fn index(&self) -> &Config {
        &self.index
    }

    /// The `_class_name` of the pipeline; empty if it has none.
    pub fn class_name(&self) -> &str {
        self.index.get("_class_name").and_then(Value::as_str).unwrap_or_default()
    }

    /// The class of a part by the index; `None` if it is not listed, or as `[null, null]`.
    ///
    /// # Errors
    /// If the entry is neither.
    pub fn class_of(&self, part: &str) -> Result<Option<String>, CheckpointError> {
        component(&self.index, &self.index_path, part)
    }

    /// Opens a part of one of `classes`; of several variants of its weights `variant` or, where this part does not come in it, the
    /// plain ones.
    ///
    /// # Errors
    /// If the part is not listed, its folder, config or weights are missing or damaged, or it is of another class.
    pub fn part(
        &self,
        part: &'static str,
        classes: &[&str],
        variant: Option<&str>,
    ) -> Result<Component, CheckpointError> {
        let listed = self.class_of(part)?;
        let folder = self.root.join(part);
        if listed.is_none() && !folder.is_dir() {
            let remedy = format!("a pipeline for this needs a {}: fetch its folder as well", one_of(classes));
            return Err(config_error(&self.index_path, part, "[library, class]", &self.index, &remedy));
        }
        if !folder.is_dir() {
            let remedy = format!("{INDEX} lists it: fetch its folder as well");
            return Err(missing("part of the pipeline", &self.root, [part], remedy));
        }
        open_part(&folder, listed, classes, variant)
    }

    /// The config of the scheduler and where it was read.
    ///
    /// # Errors
    /// If it is missing or damaged.
    pub fn scheduler(&self) -> Result<(Config, PathBuf), CheckpointError> {
        let folder = self.root.join("scheduler");
        let path = folder.join("scheduler_config.json");
        if !path.is_file() {
            let remedy = "the noise levels of the model stand there: fetch it as well".to_owned();
            return Err(missing("scheduler config", &folder, ["scheduler_config.json"], remedy));
        }
        Ok((read_config(&path)?, path))
    }
}

/// The content of a text file; `None` if there is none.
///
/// # Errors
/// If it cannot be read, is larger than 64 MiB, or is no UTF-8.
pub fn read_text(path: impl AsRef<Path>) -> Result<Option<String>, CheckpointError> {
    let path = path.as_ref();
    if !path.exists() {
        return Ok(None);
    }
    let file = File::open(path).map_err(|e| CheckpointError::io("open", path, e))?;
    let mut text = String::new();
    // What is no UTF-8 is an error of its own kind.
    file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(|e| CheckpointError::io("read", path, e))?;
    if text.len() as u64 > MAX_BYTES {
        return Err(CheckpointError::Config {
            file: path.display().to_string(),
            key: "the file".into(),
            expected: format!("at most {MAX_BYTES} bytes of text"),
            found: "more".into(),
            remedy: "check that it is the right file".into(),
        });
    }
    Ok(Some(text))
}

/// Opens a directory with one network of `classes`, whoever wrote it: `config.json` of diffusers (`_class_name`) or of transformers
/// (`architectures`), and the weights.
///
/// # Errors
/// As [`Pipeline::part`].
pub fn open_component(
    path: impl AsRef<Path>,
    classes: &[&str],
    variant: Option<&str>,
) -> Result<Component, CheckpointError> {
    let path = path.as_ref();
    if !path.is_dir() {
        let (problem, remedy) = ("there is no such directory", "name the directory of a network");
        return Err(CheckpointError::NotAModel { path: path.to_owned(), problem, remedy });
    }
    open_part(path, None, classes, variant)
}

fn open_part(
    folder: &Path,
    listed: Option<String>,
    classes: &[&str],
    variant: Option<&str>,
) -> Result<Component, CheckpointError> {
    let config_path = folder.join(CONFIG);
    if !config_path.is_file() {
        let remedy = "fetch the config of the network; weights say nothing of it".to_owned();
        return Err(missing("config", folder, [CONFIG], remedy));
    }
    let config = read_config(&config_path)?;
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
    let architecture = config.get("architectures").and_then(|list| list.get(0));
    let class = text(config.get("_class_name")).or_else(|| text(architecture)).or(listed);
    let class_name = match class {
        Some(class) if classes.contains(&class.as_str()) => class,
        other => {
            return Err(CheckpointError::Config {
                file: config_path.display().to_string(),
                key: "the class".into(),
                expected: one_of(classes),
                found: other.unwrap_or_else(|| "nothing".to_owned()),
                remedy: "other networks cannot be used here; check that this is the right pipeline".into(),
            });
        }
    };
    // Parts without a variant of their own are plain.
    let path = match find_weights(folder, variant) {
        Err(CheckpointError::Missing { .. }) if variant.is_some() => find_weights(folder, None)?,
        found => found?,
    };
    let mut weights = TensorFile::open(path)?;
    weights.rename(present_name)?;
    weights.reshape(without_kernel);
    Ok(Component { class_name, config, config_path, weights })
}
