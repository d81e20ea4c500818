//! Whether two runs left the same: every tensor, every row of the log, every picture, but for the seconds.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::process::files;

/// What two equal runs do not have in common: the lock is empty, the plot names its directory.
const APART: [&str; 2] = [".train.lock", "loss.svg"];

/// Compares every file of two runs' directories; the number of files.
///
/// Of tensor files the tensors are compared and the entries beside them, apart from the seconds; of logs every column but
/// the seconds; everything else byte by byte.
///
/// # Errors
/// The first difference.
pub(super) fn same_runs(a: &Path, b: &Path) -> Result<usize> {
    let (found, other) = (files(a)?, files(b)?);
    ensure!(found == other, "the runs have other files: {found:?} and {other:?}");
    for name in &found {
        if APART.iter().any(|apart| name.ends_with(apart)) {
            continue;
        }
        let read = |run: &Path| {
            let bytes =
                fs::read(run.join(name)).with_context(|| format!("cannot read {}", run.join(name).display()))?;
            comparable(name, bytes)
        };
        if read(a)? != read(b)? {
            bail!("{} and {} differ", a.join(name).display(), b.join(name).display());
        }
    }
    Ok(found.len())
}

/// The content of a file without the seconds.
fn comparable(name: &Path, bytes: Vec<u8>) -> Result<BTreeMap<String, Vec<u8>>> {
    let what = || name.display().to_string();
    match name.extension().and_then(|extension| extension.to_str()) {
        Some("safetensors") => tensors(&bytes).with_context(what),
        Some("csv") => {
            let text = String::from_utf8(bytes).with_context(what)?;
            let rows = text.lines().map(|row| row.rsplit_once(',').map_or(row, |(row, _)| row));
            ensure!(text.lines().next().is_some_and(|row| row.ends_with(",seconds")), "{} has no seconds", what());
            Ok(BTreeMap::from([(String::new(), rows.collect::<Vec<_>>().join("\n").into_bytes())]))
        }
        _ => Ok(BTreeMap::from([(String::new(), bytes)])),
    }
}

/// The tensors of a safetensors file and the entries of its metadata, apart from the seconds.
pub(super) fn tensors(bytes: &[u8]) -> Result<BTreeMap<String, Vec<u8>>> {
    let (head, rest) = bytes.split_at_checked(8).context("the file is shorter than 8 bytes")?;
    let length = usize::try_from(u64::from_le_bytes(head.try_into()?)).ok();
    let (header, data) = length.and_then(|length| rest.split_at_checked(length)).context("the file is truncated")?;
    let header: BTreeMap<String, Value> = serde_json::from_slice(header)?;
    let mut found = BTreeMap::new();
    for (name, entry) in header {
        if name == "__metadata__" {
            for (key, value) in entry.as_object().into_iter().flatten().filter(|(key, _)| *key != "seconds") {
                found.insert(format!("__metadata__.{key}"), value.to_string().into_bytes());
            }
            continue;
        }
        let offset = |i: usize| entry["data_offsets"][i].as_u64().and_then(|offset| usize::try_from(offset).ok());
        let part = offset(0).zip(offset(1)).and_then(|(from, to)| data.get(from..to));
        let part = part.with_context(|| format!("the numbers of {name} lie outside the file"))?;
        let kind = format!("{} {} ", entry["dtype"], entry["shape"]);
        found.insert(name, [kind.as_bytes(), part].concat());
    }
    Ok(found)
}

/// The step of a training state; 0 if there is none yet.
pub(super) fn step(state: &Path) -> Result<u64> {
    let bytes = match fs::read(state) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", state.display())),
    };
    let found = tensors(&bytes).with_context(|| state.display().to_string())?;
    let step = found.get("__metadata__.step").context("the state has no step")?;
    let step: String = serde_json::from_slice(step)?;
    Ok(step.parse()?)
}
