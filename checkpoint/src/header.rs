//! The header of a safetensors file, parsed and checked before any of its numbers is used.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::ops::Range;

use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::CheckpointError;

/// The longest header that is read; the reference implementation has the same limit.
const MAX_HEADER: u64 = 100_000_000;

const FETCH_AGAIN: &str = "download or copy the file again";

/// Where a tensor lies in the bytes of its file, header included.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) range: Range<usize>,
}

/// A checked header: every range lies in the file, and none overlaps another.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) tensors: BTreeMap<String, Entry>,
}

/// Parses and checks the header of `bytes`, the whole file; `file` is its name in messages.
pub(crate) fn parse(bytes: &[u8], file: &str) -> Result<Header, CheckpointError> {
    let damaged = |problem: String, remedy| CheckpointError::Damaged { file: file.to_owned(), problem, remedy };
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(damaged(format!("it has {} bytes, fewer than the 8 of a header length", bytes.len()), FETCH_AGAIN));
    };
    let length = u64::from_le_bytes(*length);
    // The first bytes of a pickle could also be an honest header length, unless that is longer than the file.
    let is_pickle = bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"\x80\x02");
    if is_pickle && length > rest.len() as u64 {
        return Err(pickle(file));
    }
    if length > MAX_HEADER {
        let problem = format!("its header would be {length} bytes long, more than the limit of {MAX_HEADER}");
        return Err(damaged(problem, "check that it is a safetensors file, and fetch it again"));
    }
    // `length` is below 10^8 and fits a usize on every platform.
    let Some((json, data)) = rest.split_at_checked(length as usize) else {
        let problem = format!("it is truncated: a header of {length} bytes is announced, {} follow", rest.len());
        return Err(damaged(problem, FETCH_AGAIN));
    };
    let raw: RawHeader = serde_json::from_slice(json)
        .map_err(|e| damaged(format!("its header is no valid JSON description of tensors: {e}"), FETCH_AGAIN))?;

    let start = 8 + json.len();
    let mut tensors = raw.tensors;
    tensors.sort_by(|(a_name, a), (b_name, b)| (a.data_offsets, a_name).cmp(&(b.data_offsets, b_name)));
    let mut end = 0;
    let mut entries = BTreeMap::new();
    for (name, info) in tensors {
        let (from, to) = info.data_offsets;
        let wrong = |problem: String| damaged(format!("tensor {name}: {problem}"), FETCH_AGAIN);
        let elements = info.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let Some(bits) = elements.and_then(|n| n.checked_mul(info.dtype.bitsize())) else {
            return Err(wrong(format!("the shape {:?} is too large to be true", info.shape)));
        };
        if from > to || !bits.is_multiple_of(8) || to - from != bits / 8 {
            let problem = format!("{} {:?} does not fill the bytes {from}..{to}", info.dtype, info.shape);
            return Err(wrong(problem));
        }
        if to > data.len() {
            return Err(wrong(format!(
                "it ends at byte {to}, but only {} bytes of data follow (truncated?)",
                data.len()
            )));
        }
        if from < end {
            return Err(wrong(format!("its bytes {from}..{to} overlap those of another tensor")));
        }
        if from > end {
            return Err(wrong(format!("the bytes {end}..{from} before it belong to no tensor")));
        }
        end = to;
        entries.insert(name, Entry { dtype: info.dtype, shape: info.shape, range: start + from..start + to });
    }
    if end != data.len() {
        let problem = format!("{} bytes at its end belong to no tensor", data.len() - end);
        return Err(damaged(problem, FETCH_AGAIN));
    }
    Ok(Header { metadata: raw.metadata, tensors: entries })
}

/// The refusal of a pickle, which names the file to use instead.
pub(crate) fn pickle(file: &str) -> CheckpointError {
    let stem = file.rsplit_once('.').map_or(file, |(stem, _)| stem);
    // transformers calls its pickles pytorch_model.bin and the same weights model.safetensors.
    let stem = match stem.strip_suffix("pytorch_model") {
        Some(directory) if !directory.ends_with('_') => format!("{directory}model"),
        _ => stem.to_owned(),
    };
    CheckpointError::Pickle { file: file.to_owned(), alternative: format!("{stem}.safetensors") }
}

/// The header as it is written, with duplicate keys refused (a map would silently keep one of them).
struct RawHeader {
    metadata: BTreeMap<String, String>,
    tensors: Vec<(String, TensorInfo)>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;

        impl<'de> Visitor<'de> for Keys {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensor descriptions")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut metadata = None;
                let mut tensors = Vec::new();
                let mut seen = HashSet::new();
                while let Some(key) = map.next_key::<String>()? {
                    if !seen.insert(key.clone()) {
                        return Err(A::Error::custom(format!("the key {key} appears twice")));
                    }
                    if key == "__metadata__" {
                        metadata = map.next_value::<Option<BTreeMap<String, String>>>()?;
                    } else {
                        tensors.push((key, map.next_value()?));
                    }
                }
                Ok(RawHeader { metadata: metadata.unwrap_or_default(), tensors })
            }
        }

        deserializer.deserialize_map(Keys)
    }
}
