use std::collections::{BTreeMap, HashSet};
use std::io::{self, Write};
use std::path::Path;

use half::{bf16, f16};
use safetensors::Dtype;

use crate::atomic::{Staged, stage};
use crate::{CheckpointError, atomic_write_with};

/// The elements of a tensor to be saved, row-major.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum TensorData<'a> {
    /// Numbers, stored in the type that the caller of [`save_safetensors`] chooses.
    F32(&'a [f32]),
    /// Integers (counters, labels), always stored as I64.
    I64(&'a [i64]),
}

/// A tensor to be saved.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tensor<'a> {
    /// The key, unique in its file.
    pub name: &'a str,
    /// The shape; empty for a scalar.
    pub shape: &'a [usize],
    /// As many elements as the shape says.
    pub data: TensorData<'a>,
}

impl<'a> Tensor<'a> {
    /// A tensor of numbers.
    pub fn f32(name: &'a str, shape: &'a [usize], data: &'a [f32]) -> Self {
        Self { name, shape, data: TensorData::F32(data) }
    }

    /// A tensor of integers.
    pub fn i64(name: &'a str, shape: &'a [usize], data: &'a [i64]) -> Self {
        Self { name, shape, data: TensorData::I64(data) }
    }

    fn dtype(&self, numbers: Dtype) -> Dtype {
        match self.data {
            TensorData::F32(_) => numbers,
            TensorData::I64(_) => Dtype::I64,
        }
    }

    /// Bytes in a file whose numbers are of type `numbers`.
    pub(crate) fn bytes(&self, numbers: Dtype) -> u64 {
        (self.len() * self.dtype(numbers).bitsize() / 8) as u64
    }

    fn len(&self) -> usize {
        match self.data {
            TensorData::F32(data) => data.len(),
            TensorData::I64(data) => data.len(),
        }
    }
}

/// The metadata that diffusers and transformers want to see: `{"format": "pt"}`.
pub fn default_metadata() -> BTreeMap<String, String> {
    BTreeMap::from([("format".to_owned(), "pt".to_owned())])
}

/// Writes tensors to a safetensors file, atomically, and always to the same bytes for the same input.
///
/// `dtype` is the type of the numbers: F32 (every bit is kept), F16 or BF16 (rounded to nearest, ties to even).
/// An empty `metadata` leaves `__metadata__` out. The tensors may come in any order; in the file they are sorted by
/// decreasing alignment, then by name.
///
/// # Errors
/// If two tensors share a name, a shape does not fit its elements, `dtype` is none of the three, a finite number does
/// not fit F16 or BF16, or the file cannot be written; then the old file is still there.
pub fn save_safetensors(
    path: impl AsRef<Path>,
    tensors: &[Tensor<'_>],
    dtype: Dtype,
    metadata: &BTreeMap<String, String>,
) -> Result<(), CheckpointError> {
    let path = path.as_ref();
    let (header, sorted) = prepare(path, tensors, dtype, metadata)?;
    atomic_write_with(path, |writer| write(writer, &header, &sorted, dtype))
}

/// [`save_safetensors`] up to the rename.
pub(crate) fn stage_safetensors(
    path: &Path,
    tensors: &[Tensor<'_>],
    dtype: Dtype,
    metadata: &BTreeMap<String, String>,
) -> Result<Staged, CheckpointError> {
    let (header, sorted) = prepare(path, tensors, dtype, metadata)?;
    stage(path, |writer| write(writer, &header, &sorted, dtype)).map_err(|e| CheckpointError::io("write", path, e))
}

/// [`save_safetensors`] to any writer.
///
/// # Errors
/// As [`save_safetensors`]; `name` stands for the file in messages.
pub fn write_safetensors(
    writer: &mut dyn Write,
    name: &str,
    tensors: &[Tensor<'_>],
    dtype: Dtype,
    metadata: &BTreeMap<String, String>,
) -> Result<(), CheckpointError> {
    let path = Path::new(name);
    let (header, sorted) = prepare(path, tensors, dtype, metadata)?;
    write(writer, &header, &sorted, dtype).map_err(|e| CheckpointError::io("write", path, e))
}

/// Checks the tensors, sorts them, and composes the header with its length.
fn prepare<'a>(
    path: &Path,
    tensors: &[Tensor<'a>],
    dtype: Dtype,
    metadata: &BTreeMap<String, String>,
) -> Result<(Vec<u8>, Vec<Tensor<'a>>), CheckpointError> {
    let mut names = HashSet::new();
    for tensor in tensors {
        check(path, tensor, dtype)?;
        if !names.insert(tensor.name) {
            return Err(unsavable(path, tensor, "its name", "unique in the file", "two tensors of that name".into()));
        }
    }
    let mut sorted = tensors.to_vec();
    sorted.sort_by(|a, b| b.dtype(dtype).cmp(&a.dtype(dtype)).then(a.name.cmp(b.name)));

    // Strings are quoted by the JSON library; everything else in the header is a number.
    let quote = |text: &str| serde_json::Value::from(text).to_string();
    let mut entries = Vec::with_capacity(sorted.len() + 1);
    if !metadata.is_empty() {
        let pairs: Vec<_> = metadata.iter().map(|(k, v)| format!("{}:{}", quote(k), quote(v))).collect();
        entries.push(format!("\"__metadata__\":{{{}}}", pairs.join(",")));
    }
    let mut start = 0;
    for tensor in &sorted {
        let kind = tensor.dtype(dtype);
        let end = start + tensor.len() * (kind.bitsize() / 8);
        let shape: Vec<_> = tensor.shape.iter().map(ToString::to_string).collect();
        entries.push(format!(
            "{}:{{\"dtype\":\"{kind}\",\"shape\":[{}],\"data_offsets\":[{start},{end}]}}",
            quote(tensor.name),
            shape.join(",")
        ));
        start = end;
    }
    let mut json = format!("{{{}}}", entries.join(",")).into_bytes();
    // The data starts at a multiple of eight bytes, so that a map of the file is aligned.
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.extend(json);
    Ok((header, sorted))
}

fn check(path: &Path, tensor: &Tensor<'_>, dtype: Dtype) -> Result<(), CheckpointError> {
    if tensor.name == "__metadata__" {
        return Err(unsavable(path, tensor, "its name", "another one", "the reserved key".into()));
    }
    let elements = tensor.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    if elements != Some(tensor.len()) {
        let found = format!("{} elements for the shape {:?}", tensor.len(), tensor.shape);
        return Err(unsavable(path, tensor, "the number of elements", "the product of the shape", found));
    }
    let TensorData::F32(data) = tensor.data else { return Ok(()) };
    let overflows: fn(f32) -> bool = match dtype {
        Dtype::F32 => return Ok(()),
        Dtype::F16 => |v| f16::from_f32(v).is_infinite(),
        Dtype::BF16 => |v| bf16::from_f32(v).is_infinite(),
        other => return Err(unsavable(path, tensor, "the type", "F32, F16 or BF16", other.to_string())),
    };
    match data.iter().position(|&v| v.is_finite() && overflows(v)) {
        None => Ok(()),
        Some(i) => {
            let found = format!("{} at element {i}, which would become infinite; save in F32", data[i]);
            Err(unsavable(path, tensor, "every number", "within the range of half precision", found))
        }
    }
}

fn unsavable(
    path: &Path,
    tensor: &Tensor<'_>,
    what: &'static str,
    expected: &'static str,
    found: String,
) -> CheckpointError {
    let expected = expected.to_owned();
    CheckpointError::Unsavable { path: path.to_owned(), name: tensor.name.to_owned(), what, expected, found }
}

fn write(writer: &mut dyn Write, header: &[u8], tensors: &[Tensor<'_>], dtype: Dtype) -> io::Result<()> {
    writer.write_all(header)?;
    for tensor in tensors {
        match (tensor.data, dtype) {
            (TensorData::I64(data), _) => encode(writer, data, i64::to_le_bytes)?,
            (TensorData::F32(data), Dtype::F16) => encode(writer, data, |v| f16::from_f32(v).to_le_bytes())?,
            (TensorData::F32(data), Dtype::BF16) => encode(writer, data, |v| bf16::from_f32(v).to_le_bytes())?,
            (TensorData::F32(data), _) => encode(writer, data, f32::to_le_bytes)?,
        }
    }
    Ok(())
}

/// Writes elements in little-endian order, through a buffer of a fixed size.
fn encode<const N: usize, T: Copy>(writer: &mut dyn Write, data: &[T], bytes: impl Fn(T) -> [u8; N]) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(N << 12);
    for chunk in data.chunks(1 << 12) {
        buffer.clear();
        buffer.extend(chunk.iter().flat_map(|&v| bytes(v)));
        writer.write_all(&buffer)?;
    }
    Ok(())
}
