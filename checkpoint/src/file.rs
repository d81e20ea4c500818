use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use half::{bf16, f16};
use safetensors::Dtype;

use crate::config::read_config;
use crate::header::{self, Entry};
use crate::mapped::Bytes;
use crate::{CheckpointError, Config};

/// What a file says about one of its tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorMeta<'a> {
    /// The key.
    pub name: &'a str,
    /// The type of its elements.
    pub dtype: Dtype,
    /// The shape; empty for a scalar.
    pub shape: &'a [usize],
}

/// An open safetensors file, or a sharded one through its index: the header is checked, the data is read on demand.
pub struct TensorFile {
    name: String,
    parts: Vec<Bytes>,
    tensors: BTreeMap<String, (usize, Entry)>,
    metadata: BTreeMap<String, String>,
}

impl TensorFile {
    /// Opens and maps a file `*.safetensors`, or all the shards that a `*.safetensors.index.json` lists.
    ///
    /// # Errors
    /// If the path is no file, a pickle, truncated, or its header does not describe its data; for an index also if a
    /// shard is missing or lacks a tensor.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        let path = path.as_ref();
        let name = path.display().to_string();
        let file_name = path.file_name().unwrap_or_default().to_string_lossy();
        if file_name.contains(".index.") && file_name.ends_with(".json") {
            return Self::open_index(path, name);
        }
        if matches!(path.extension().and_then(|e| e.to_str()), Some("bin" | "pt" | "pth" | "ckpt" | "pkl")) {
            return Err(header::pickle(&name));
        }
        let bytes = map(path)?;
        Self::from_parts(name, bytes)
    }

    /// A file that lies in memory, such as a bundled model; `name` stands for it in messages.
    ///
    /// # Errors
    /// As [`TensorFile::open`].
    pub fn from_bytes(bytes: impl Into<Cow<'static, [u8]>>, name: &str) -> Result<Self, CheckpointError> {
        Self::from_parts(name.to_owned(), Bytes::Memory(bytes.into()))
    }

    fn from_parts(name: String, bytes: Bytes) -> Result<Self, CheckpointError> {
        let header = header::parse(&bytes, &name)?;
        let tensors = header.tensors.into_iter().map(|(key, entry)| (key, (0, entry))).collect();
        Ok(Self { name, parts: vec![bytes], tensors, metadata: header.metadata })
    }

    /// Opens the shards of an index: `weight_map` names the file of each tensor, beside the index.
    fn open_index(path: &Path, name: String) -> Result<Self, CheckpointError> {
        let index = read_config(path)?;
        let bad = |key: &str, expected: &str, found: String| CheckpointError::Config {
            file: name.clone(),
            key: key.to_owned(),
            expected: expected.to_owned(),
            found,
            remedy: "fetch the index and its shards again".into(),
        };
        let Some(map_of_weights) = index.get("weight_map").and_then(|v| v.as_object()) else {
            return Err(bad("weight_map", "an object that maps tensor names to files", describe(&index, "weight_map")));
        };
        let mut shards: BTreeMap<&str, (usize, BTreeMap<String, Entry>)> = BTreeMap::new();
        let mut parts = Vec::new();
        let mut tensors = BTreeMap::new();
        let mut metadata = BTreeMap::new();
        for (key, shard) in map_of_weights {
            // A shard is a plain file name: an index must not reach outside its directory.
            let Some(shard) = shard.as_str().filter(|s| !s.is_empty() && !s.contains(['/', '\\', ':']) && *s != "..")
            else {
                return Err(bad(&format!("weight_map.{key}"), "a file name", shard.to_string()));
            };
            if !shards.contains_key(shard) {
                let path = path.with_file_name(shard);
                let bytes = map(&path)?;
                let header = header::parse(&bytes, &path.display().to_string())?;
                metadata.extend(header.metadata);
                shards.insert(shard, (parts.len(), header.tensors));
                parts.push(bytes);
            }
            let (part, entries) = &shards[shard];
            let Some(entry) = entries.get(key) else {
                return Err(bad(&format!("weight_map.{key}"), "a shard that holds this tensor", shard.to_owned()));
            };
            tensors.insert(key.clone(), (*part, entry.clone()));
        }
        Ok(Self { name, parts, tensors, metadata })
    }

    /// The path, or the name given to [`TensorFile::from_bytes`], as it stands in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Every tensor, sorted by name.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = TensorMeta<'_>> {
        self.tensors.iter().map(|(name, (_, entry))| TensorMeta { name, dtype: entry.dtype, shape: &entry.shape })
    }

    /// One tensor, if it is there.
    pub fn get(&self, name: &str) -> Option<TensorMeta<'_>> {
        let (name, (_, entry)) = self.tensors.get_key_value(name)?;
        Some(TensorMeta { name, dtype: entry.dtype, shape: &entry.shape })
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there is no tensor.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// The `__metadata__` of the header; empty if there is none.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Says that a tensor is not read again soon: where the file is mapped, the memory that holds it is given back to the system. Reading
    /// it later is as before.
    pub fn release(&self, name: &str) {
        if let Some((part, entry)) = self.tensors.get(name) {
            self.parts[*part].release(&entry.range);
        }
    }

    /// The elements of a tensor of type F32, F16 or BF16, row-major, whatever their values.
    ///
    /// # Errors
    /// If there is no such tensor, or it has another type.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, CheckpointError> {
        let (dtype, bytes) = self.data(name)?;
        match dtype {
            Dtype::F32 => Ok(elements(bytes, f32::from_le_bytes)),
            Dtype::F16 => Ok(elements(bytes, |b| f16::from_le_bytes(b).to_f32())),
            Dtype::BF16 => Ok(elements(bytes, |b| bf16::from_le_bytes(b).to_f32())),
            found => Err(self.wrong_dtype(name, "F32, F16 or BF16", found)),
        }
    }

    /// As [`TensorFile::read_f32`], and none of the elements is NaN or infinite.
    ///
    /// # Errors
    /// Also if one is; the message names the tensor and the first such element.
    pub fn read_f32_finite(&self, name: &str) -> Result<Vec<f32>, CheckpointError> {
        let values = self.read_f32(name)?;
        match values.iter().position(|v| !v.is_finite()) {
            None => Ok(values),
            Some(index) => Err(CheckpointError::NotFinite {
                file: self.name.clone(),
                name: name.to_owned(),
                index,
                value: values[index],
            }),
        }
    }

    /// The elements of a tensor of type F64, F32, F16 or BF16, row-major, whatever their values: for inputs from other
    /// programs, where numpy's default is F64. Weights are never F64; they are read with [`TensorFile::read_f32`].
    ///
    /// # Errors
    /// If there is no such tensor, or it has another type.
    pub fn read_f64(&self, name: &str) -> Result<Vec<f64>, CheckpointError> {
        let (dtype, bytes) = self.data(name)?;
        match dtype {
            Dtype::F64 => Ok(elements(bytes, f64::from_le_bytes)),
            Dtype::F32 => Ok(elements(bytes, |b| f64::from(f32::from_le_bytes(b)))),
            Dtype::F16 => Ok(elements(bytes, |b| f16::from_le_bytes(b).to_f64())),
            Dtype::BF16 => Ok(elements(bytes, |b| bf16::from_le_bytes(b).to_f64())),
            found => Err(self.wrong_dtype(name, "F64, F32, F16 or BF16", found)),
        }
    }

    /// The elements of a tensor of any integer type, row-major; what is too large for `i64` becomes its largest number.
    ///
    /// # Errors
    /// If there is no such tensor, or it has another type.
    pub fn read_i64(&self, name: &str) -> Result<Vec<i64>, CheckpointError> {
        let (dtype, bytes) = self.data(name)?;
        match dtype {
            Dtype::I64 => Ok(elements(bytes, i64::from_le_bytes)),
            Dtype::I32 => Ok(elements(bytes, |b| i64::from(i32::from_le_bytes(b)))),
            Dtype::I16 => Ok(elements(bytes, |b| i64::from(i16::from_le_bytes(b)))),
            Dtype::I8 => Ok(elements(bytes, |b| i64::from(i8::from_le_bytes(b)))),
            Dtype::U64 => Ok(elements(bytes, |b| i64::try_from(u64::from_le_bytes(b)).unwrap_or(i64::MAX))),
            Dtype::U32 => Ok(elements(bytes, |b| i64::from(u32::from_le_bytes(b)))),
            Dtype::U16 => Ok(elements(bytes, |b| i64::from(u16::from_le_bytes(b)))),
            Dtype::U8 => Ok(elements(bytes, |b| i64::from(u8::from_le_bytes(b)))),
            found => Err(self.wrong_dtype(name, "an integer", found)),
        }
    }

    /// Renames tensors: `rename` returns the new name of those that have another one.
    ///
    /// # Errors
    /// If two tensors would share a name.
    pub fn rename(&mut self, rename: impl Fn(&str) -> Option<String>) -> Result<(), CheckpointError> {
        let mut renamed = BTreeMap::new();
        for (old, entry) in std::mem::take(&mut self.tensors) {
            let new = rename(&old).unwrap_or(old);
            if renamed.contains_key(&new) {
                return Err(CheckpointError::Damaged {
                    file: self.name.clone(),
                    problem: format!("the tensor {new} is there twice, under an old and a new name"),
                    remedy: "remove one of them",
                });
            }
            renamed.insert(new, entry);
        }
        self.tensors = renamed;
        Ok(())
    }

    /// Gives tensors another shape of as many elements: `reshape` returns the new shape of those that have one.
    pub(crate) fn reshape(&mut self, reshape: impl Fn(&str, &[usize]) -> Option<Vec<usize>>) {
        for (name, (_, entry)) in &mut self.tensors {
            let elements = |shape: &[usize]| shape.iter().product::<usize>();
            let new = reshape(name, &entry.shape).filter(|new| elements(new) == elements(&entry.shape));
            entry.shape = new.unwrap_or_else(|| std::mem::take(&mut entry.shape));
        }
    }

    /// The type of a tensor's elements, and their bytes as they lie in the file: row-major, little-endian.
    ///
    /// # Errors
    /// If there is no such tensor.
    pub fn bytes(&self, name: &str) -> Result<(Dtype, &[u8]), CheckpointError> {
        self.data(name)
    }

    fn data(&self, name: &str) -> Result<(Dtype, &[u8]), CheckpointError> {
        match self.tensors.get(name) {
            // The range was checked against the length of the part when the header was parsed.
            Some((part, entry)) => Ok((entry.dtype, &self.parts[*part][entry.range.clone()])),
            None => {
                let mut remedy = String::from("the file holds ");
                let names: Vec<&str> = self.tensors.keys().take(5).map(String::as_str).collect();
                remedy += &if names.is_empty() { "no tensor at all".to_owned() } else { names.join(", ") };
                if self.tensors.len() > names.len() {
                    remedy += &format!(" and {} more", self.tensors.len() - names.len());
                }
                Err(CheckpointError::NoTensor { file: self.name.clone(), name: name.to_owned(), remedy })
            }
        }
    }

    fn wrong_dtype(&self, name: &str, expected: &'static str, found: Dtype) -> CheckpointError {
        CheckpointError::WrongDtype { file: self.name.clone(), name: name.to_owned(), expected, found }
    }
}

impl std::fmt::Debug for TensorFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TensorFile").field("name", &self.name).field("tensors", &self.len()).finish_non_exhaustive()
    }
}

/// Maps a file after a look at what it is.
fn map(path: &Path) -> Result<Bytes, CheckpointError> {
    let damaged = |problem: &str, remedy| CheckpointError::Damaged {
        file: path.display().to_string(),
        problem: problem.to_owned(),
        remedy,
    };
    let file = File::open(path).map_err(|e| CheckpointError::io("open", path, e))?;
    let meta = file.metadata().map_err(|e| CheckpointError::io("read", path, e))?;
    if meta.is_dir() {
        return Err(damaged("it is a directory", "name the .safetensors file in it"));
    }
    if !meta.is_file() {
        return Err(damaged("it is no regular file", "name a .safetensors file"));
    }
    if meta.len() == 0 {
        return Err(damaged("it is empty", "download or copy the file again"));
    }
    Bytes::map(&file).map_err(|e| CheckpointError::io("map", path, e))
}

/// Decodes fixed-size little-endian elements.
fn elements<const N: usize, T>(bytes: &[u8], decode: impl Fn([u8; N]) -> T) -> Vec<T> {
    let (chunks, _) = bytes.as_chunks::<N>();
    chunks.iter().map(|chunk| decode(*chunk)).collect()
}

fn describe(config: &Config, key: &str) -> String {
    config.get(key).map_or_else(|| "nothing".to_owned(), |v| v.to_string().chars().take(60).collect())
}
