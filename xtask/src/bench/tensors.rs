//! Reads f32 tensors of safetensors files, to compare outputs.
//!
//! A file is the length of its header (u64, little-endian), the header (JSON: name -> type, shape and bytes) and the
//! numbers. The chores depend on no crate of the workspace, so they have a reader of their own, which knows no more.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// The values of the tensor `name`.
pub(super) fn read(path: &Path, name: &str) -> Result<Vec<f32>> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(&bytes, name).with_context(|| format!("cannot read the tensor {name} of {}", path.display()))
}

pub(super) fn parse(bytes: &[u8], name: &str) -> Result<Vec<f32>> {
    let (head, rest) = bytes.split_at_checked(8).context("the file is shorter than 8 bytes")?;
    let length = u64::from_le_bytes(head.try_into()?);
    let split = usize::try_from(length).ok().and_then(|length| rest.split_at_checked(length));
    let (header, data) = split.context("the header is longer than the file")?;
    let header: Value = serde_json::from_slice(header)?;
    let entry = header.get(name).context("there is no such tensor")?;
    ensure!(entry["dtype"] == "F32", "expected numbers of the type F32, found {}", entry["dtype"]);
    let offset = |i: usize| entry["data_offsets"][i].as_u64().and_then(|offset| usize::try_from(offset).ok());
    let part = offset(0).zip(offset(1)).and_then(|(from, to)| data.get(from..to));
    let part = part.context("its numbers lie outside the file")?;
    Ok(part.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

/// The relative L2 distance `|found - expected| / |expected|`.
pub(super) fn relative_l2(found: &[f32], expected: &[f32]) -> Result<f64> {
    ensure!(found.len() == expected.len(), "expected {} numbers, found {}", expected.len(), found.len());
    let (mut distance, mut norm) = (0.0, 0.0);
    for (&a, &b) in found.iter().zip(expected) {
        let (a, b) = (f64::from(a), f64::from(b));
        distance += (a - b) * (a - b);
        norm += b * b;
    }
    Ok((distance / norm).sqrt())
}
