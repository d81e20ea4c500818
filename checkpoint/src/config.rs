//! Config files: JSON as Python writes it.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::Value;

use crate::{CheckpointError, atomic_write};

/// A config: the keys of a JSON object, in the order of the file.
pub type Config = serde_json::Map<String, Value>;

/// The largest JSON file that is read; the index of a sharded model with a million tensors fits.
const MAX_BYTES: u64 = 256 << 20;

/// Reads a JSON object from a file.
///
/// Python also writes `NaN`, `Infinity` and `-Infinity`, which JSON does not know; they become strings of that name.
///
/// # Errors
/// If the file cannot be read, is no JSON (with line and column), or holds something else than an object.
pub fn read_config(path: impl AsRef<Path>) -> Result<Config, CheckpointError> {
    let path = path.as_ref();
    let file = File::open(path).map_err(|e| CheckpointError::io("open", path, e))?;
    let mut text = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut text).map_err(|e| CheckpointError::io("read", path, e))?;
    if text.len() as u64 > MAX_BYTES {
        return Err(CheckpointError::Config {
            file: path.display().to_string(),
            key: "the file".into(),
            expected: format!("at most {MAX_BYTES} bytes of JSON"),
            found: "more".into(),
            remedy: "check that it is a config file".into(),
        });
    }
    parse_config(&text, path)
}

/// [`read_config`] of text in memory; `path` stands for it in messages.
pub(crate) fn parse_config(text: &[u8], path: &Path) -> Result<Config, CheckpointError> {
    let value = serde_json::from_slice(text).or_else(|e| {
        let quoted = quote_non_numbers(text).and_then(|text| serde_json::from_slice(&text).ok());
        // If that does not help either, the message speaks of the file as it is.
        quoted.ok_or_else(|| CheckpointError::Json {
            path: path.to_owned(),
            line: e.line(),
            column: e.column(),
            problem: without_position(&e),
        })
    })?;
    match value {
        Value::Object(map) => Ok(map),
        other => Err(CheckpointError::Config {
            file: path.display().to_string(),
            key: "the file".into(),
            expected: "a JSON object".into(),
            found: kind(&other).into(),
            remedy: "check that it is a config file".into(),
        }),
    }
}

/// Writes a JSON object, indented by two spaces as diffusers does, atomically.
///
/// # Errors
/// As [`atomic_write`].
pub fn write_config(path: impl AsRef<Path>, config: &Config) -> Result<(), CheckpointError> {
    atomic_write(path, &config_bytes(config))
}

/// The bytes that [`write_config`] writes.
pub(crate) fn config_bytes(config: &Config) -> Vec<u8> {
    let mut text = format!("{:#}", Value::Object(config.clone()));
    text.push('\n');
    text.into_bytes()
}

/// The kind of a JSON value, for messages.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// What the parser said, without the position, which the error states in fields of its own.
fn without_position(e: &serde_json::Error) -> String {
    let text = e.to_string();
    text.rsplit_once(" at line ").map_or(text.clone(), |(problem, _)| problem.to_owned())
}

/// Puts the non-numbers of Python's JSON into quotes; `None` if there is none.
fn quote_non_numbers(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() + 16);
    let (mut rest, mut inside, mut changed) = (text, false, false);
    while let Some((&byte, tail)) = rest.split_first() {
        let word = [b"-Infinity".as_slice(), b"Infinity", b"NaN"].into_iter().find(|w| !inside && rest.starts_with(w));
        if let Some(word) = word {
            out.push(b'"');
            out.extend_from_slice(word);
            out.push(b'"');
            rest = &rest[word.len()..];
            changed = true;
        } else if inside && byte == b'\\' && !tail.is_empty() {
            out.extend_from_slice(&rest[..2]);
            rest = &rest[2..];
        } else {
            inside ^= byte == b'"';
            out.push(byte);
            rest = tail;
        }
    }
    changed.then_some(out)
}
