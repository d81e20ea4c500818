use std::fmt;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use thiserror::Error;

/// What can go wrong when a model is read or written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The operating system refused.
    #[error("cannot {operation} {}: {source}; {remedy}", path.display())]
    Io {
        /// What was attempted: `open`, `read`, `write`, ...
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
        /// What to do about it.
        remedy: &'static str,
    },
    /// A file that is no intact safetensors file.
    #[error("cannot read {file} as safetensors: {problem}; {remedy}")]
    Damaged {
        /// The file.
        file: String,
        /// What is wrong with it.
        problem: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// A pickle (`.bin`, `.pt`, `.ckpt`), which runs code when it is loaded and is never read.
    #[error(
        "{file} is a Python pickle, which can run any code when it is loaded, and is not read: use {alternative}, \
         or convert it in Python with `model.save_pretrained(directory, safe_serialization=True)`"
    )]
    Pickle {
        /// The file.
        file: String,
        /// The file to use instead.
        alternative: String,
    },
    /// A tensor that the file does not hold.
    #[error("no tensor {name} in {file}; {remedy}")]
    NoTensor {
        /// The file.
        file: String,
        /// The key that was asked for.
        name: String,
        /// What there is instead.
        remedy: String,
    },
    /// A tensor whose elements are of another type than was asked for.
    #[error("tensor {name} in {file}: expected {expected}, found {found}; convert the file to one of these types")]
    WrongDtype {
        /// The file.
        file: String,
        /// The key.
        name: String,
        /// The types that can be read this way.
        expected: &'static str,
        /// The type in the file.
        found: Dtype,
    },
    /// A NaN or an infinity among the weights.
    #[error(
        "tensor {name} in {file}: element {index} is {value}; the weights are unusable (a diverged training run or an \
         overflow in half precision), take another checkpoint"
    )]
    NotFinite {
        /// The file.
        file: String,
        /// The key.
        name: String,
        /// Position of the first such element, row-major.
        index: usize,
        /// NaN, `inf` or `-inf`.
        value: f32,
    },
    /// Keys or shapes that differ from those of the architecture.
    #[error(
        "{file} does not hold the weights of this network: {mismatch}check that config and weights belong together"
    )]
    Keys {
        /// The file.
        file: String,
        /// Every difference.
        mismatch: Box<KeyMismatch>,
    },
    /// A config file that is no JSON.
    #[error("{} is not valid JSON: line {line}, column {column}: {problem}; correct it or fetch the file again", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What the parser said.
        problem: String,
    },
    /// A config whose content cannot be used.
    #[error("{file}: {key} should be {expected}, found {found}; {remedy}")]
    Config {
        /// The file.
        file: String,
        /// The key, or `the file`.
        key: String,
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
        /// What to do about it.
        remedy: String,
    },
    /// A file or directory that a model needs.
    #[error("no {what} in {}: looked for {}; {remedy}", directory.display(), looked_for.join(", "))]
    Missing {
        /// What is missing.
        what: &'static str,
        /// Where it should be.
        directory: PathBuf,
        /// Every name that would have been taken.
        looked_for: Vec<String>,
        /// What to do about it.
        remedy: String,
    },
    /// A path that is not a model directory at all.
    #[error("cannot open {} as a model: {problem}; {remedy}", path.display())]
    NotAModel {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
        /// What to do about it.
        remedy: &'static str,
    },
    /// A tensor that cannot be saved as it was handed over.
    #[error("cannot save tensor {name} in {}: {what} should be {expected}, found {found}", path.display())]
    Unsavable {
        /// The file to be written.
        path: PathBuf,
        /// The key.
        name: String,
        /// What is wrong.
        what: &'static str,
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
    },
    /// A training state that lacks something, or is none.
    #[error("{file}: {problem}; {remedy}")]
    State {
        /// The file.
        file: String,
        /// What is wrong.
        problem: String,
        /// What to do about it.
        remedy: &'static str,
    },
}

impl CheckpointError {
    /// Wraps what the operating system said, with the remedy that usually helps.
    pub(crate) fn io(operation: &'static str, path: &Path, source: std::io::Error) -> Self {
        use std::io::ErrorKind::{NotFound, PermissionDenied, StorageFull};
        let remedy = match source.kind() {
            NotFound => "check the path, and that its directory exists",
            PermissionDenied => "check who may read and write there",
            StorageFull => "free some space",
            _ => "check the path and the disk",
        };
        Self::Io { operation, path: path.to_owned(), source, remedy }
    }
}

/// How many entries of each list of a [`KeyMismatch`] are printed: all of any published network, but not of a made-up file.
const SHOWN: usize = 1000;

/// Every difference between the tensors that a network expects and those of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyMismatch {
    /// Expected keys that the file lacks, with their shapes.
    pub missing: Vec<(String, Vec<usize>)>,
    /// Keys of the file that the network does not know, with their shapes.
    pub unexpected: Vec<(String, Vec<usize>)>,
    /// Keys whose shapes differ: key, expected shape, shape in the file.
    pub misshaped: Vec<(String, Vec<usize>, Vec<usize>)>,
}

impl KeyMismatch {
    /// Whether there is no difference.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.misshaped.is_empty()
    }
}

impl fmt::Display for KeyMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let missing = self.missing.iter().map(|(name, shape)| format!("{name} {shape:?}"));
        let unexpected = self.unexpected.iter().map(|(name, shape)| format!("{name} {shape:?}"));
        let misshaped = self
            .misshaped
            .iter()
            .map(|(name, expected, found)| format!("{name} expected {expected:?} found {found:?}"));
        list(f, "missing", missing)?;
        list(f, "unexpected", unexpected)?;
        list(f, "of another shape", misshaped)
    }
}

fn list(f: &mut fmt::Formatter<'_>, title: &str, entries: impl ExactSizeIterator<Item = String>) -> fmt::Result {
    let count = entries.len();
    if count == 0 {
        return Ok(());
    }
    write!(f, "{count} {title} (")?;
    for (i, entry) in entries.take(SHOWN).enumerate() {
        write!(f, "{}{entry}", if i == 0 { "" } else { ", " })?;
    }
    if count > SHOWN {
        write!(f, ", and {} more", count - SHOWN)?;
    }
    f.write_str("); ")
}
