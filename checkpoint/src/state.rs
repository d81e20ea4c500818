use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;

use crate::{CheckpointError, Tensor, TensorFile, save_safetensors};

/// The metadata key that tells a training state from a model, with the version of the format.
const MARK: &str = "tweedie_state";
const VERSION: &str = "1";

/// What a training run needs to go on where it stopped: named vectors, and text for everything else.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    file: String,
    vectors: BTreeMap<String, Vec<f32>>,
    meta: BTreeMap<String, String>,
}

impl State {
    /// The text that was saved beside the vectors.
    pub fn meta(&self) -> &BTreeMap<String, String> {
        &self.meta
    }

    /// Every vector that has not been taken, by name.
    pub fn vectors(&self) -> &BTreeMap<String, Vec<f32>> {
        &self.vectors
    }

    /// One text.
    ///
    /// # Errors
    /// If it is not there.
    pub fn text(&self, key: &str) -> Result<&str, CheckpointError> {
        self.meta.get(key).map(String::as_str).ok_or_else(|| self.wrong(format!("it lacks the entry {key}")))
    }

    /// One text that stands for a value, such as a step number.
    ///
    /// # Errors
    /// If it is not there, or does not parse.
    pub fn parse<T: std::str::FromStr>(&self, key: &str) -> Result<T, CheckpointError> {
        let text = self.text(key)?;
        text.parse().map_err(|_| self.wrong(format!("the entry {key} is {text:?}, which cannot be read")))
    }

    /// Takes one vector out.
    ///
    /// # Errors
    /// If it is not there, or its length is not `len`.
    pub fn take(&mut self, name: &str, len: usize) -> Result<Vec<f32>, CheckpointError> {
        match self.vectors.remove(name) {
            Some(vector) if vector.len() == len => Ok(vector),
            Some(vector) => {
                Err(self.wrong(format!("the vector {name} has {} elements where {len} are needed", vector.len())))
            }
            None => Err(self.wrong(format!("it lacks the vector {name}"))),
        }
    }

    fn wrong(&self, problem: String) -> CheckpointError {
        let remedy = "it belongs to another run or another version: resume with the options of the run that wrote it";
        CheckpointError::State { file: self.file.clone(), problem, remedy }
    }
}

/// Writes a training state, atomically and bit for bit: a process killed at any moment leaves the old or the new one.
///
/// # Errors
/// As [`save_safetensors`].
pub fn save_state(
    path: impl AsRef<Path>,
    vectors: &[(&str, &[f32])],
    mut meta: BTreeMap<String, String>,
) -> Result<(), CheckpointError> {
    let lengths: Vec<[usize; 1]> = vectors.iter().map(|(_, data)| [data.len()]).collect();
    let tensors: Vec<_> =
        vectors.iter().zip(&lengths).map(|((name, data), shape)| Tensor::f32(name, shape, data)).collect();
    meta.insert(MARK.to_owned(), VERSION.to_owned());
    save_safetensors(path, &tensors, Dtype::F32, &meta)
}

/// Reads what [`save_state`] wrote.
///
/// # Errors
/// If the file is missing or truncated, or is no training state of this version.
pub fn load_state(path: impl AsRef<Path>) -> Result<State, CheckpointError> {
    let file = TensorFile::open(path)?;
    let mut meta = file.metadata().clone();
    let version = meta.remove(MARK);
    if version.as_deref() != Some(VERSION) {
        let problem = match version {
            None => "it is no training state".to_owned(),
            Some(version) => format!("it is a training state of format {version}, and format {VERSION} is needed"),
        };
        let remedy = "name the state file of a training run of this version";
        return Err(CheckpointError::State { file: file.name().to_owned(), problem, remedy });
    }
    let mut vectors = BTreeMap::new();
    for tensor in file.tensors() {
        vectors.insert(tensor.name.to_owned(), file.read_f32(tensor.name)?);
    }
    Ok(State { file: file.name().to_owned(), vectors, meta })
}
