//! Samples, labels and features from files.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use anyhow::{Context, Result, bail};
use ndarray::{Array, Array1, Array2, Array4, ArrayD, Ix1, Ix2, Ix4};
use ndarray_npy::{ReadNpyExt, ReadableElement};
use tweedie_checkpoint::{Dtype, TensorFile};
use tweedie_data::Range;

/// Samples as they stand in a file.
pub struct Stored {
    /// `[N, C, H, W]`.
    pub images: Array4<f32>,
    /// The range that bytes were mapped to; `None` where the file has numbers.
    pub of_bytes: Option<Range>,
    /// The labels, if the file has any.
    pub labels: Option<Vec<Option<usize>>>,
}

fn is_safetensors(path: &Path) -> bool {
    path.extension().is_some_and(|suffix| suffix.eq_ignore_ascii_case("safetensors"))
}

/// Reads `--samples`.
///
/// # Errors
/// If there is no such file, or it holds no finite `[N, C, H, W]`.
pub fn samples(path: &Path) -> Result<Stored> {
    let name = path.display();
    let (images, of_bytes, labels) = if is_safetensors(path) {
        let file = TensorFile::open(path)?;
        let labels = file.get("labels").is_some().then(|| tensor_labels(&file)).transpose()?;
        (tensor(&file, "sample")?.mapv(|v| v as f32), None, labels)
    } else if let Ok(bytes) = npy::<u8>(path, "--samples")? {
        let range = Range::MinusOneOne;
        (bytes.mapv(|byte| range.from_byte(byte)), Some(range), None)
    } else {
        (floats(path, "--samples")?.mapv(|v| v as f32), None, None)
    };
    let shape = images.shape().to_vec();
    let Ok(images) = images.into_dimensionality::<Ix4>() else {
        bail!("--samples: {name} should have the shape [N,C,H,W], found {shape:?}; reshape it");
    };
    if images.is_empty() {
        bail!("--samples: {name} should hold a sample at least, found the shape {shape:?}");
    }
    if let Some(((n, ..), value)) = images.indexed_iter().find(|(_, v)| !v.is_finite()) {
        bail!("--samples: {name}: the numbers should be finite, found {value} in sample {n}; draw it again");
    }
    Ok(Stored { images, of_bytes, labels })
}

/// Reads `--sample-labels`.
///
/// # Errors
/// If there is no such file, or it holds no labels.
pub fn labels(path: &Path) -> Result<Vec<Option<usize>>> {
    if is_safetensors(path) {
        return tensor_labels(&TensorFile::open(path)?);
    }
    let name = path.display();
    let option = "--sample-labels";
    let values: ArrayD<i64> = if let Ok(values) = npy::<i64>(path, option)? {
        values
    } else if let Ok(values) = npy::<i32>(path, option)? {
        values.mapv(i64::from)
    } else {
        match npy::<u8>(path, option)? {
            Ok(values) => values.mapv(i64::from),
            Err(e) => bail!("{option}: {name}: expected an array of i64, i32 or u8 as numpy's save writes it: {e}"),
        }
    };
    let shape = values.shape().to_vec();
    let Ok(values) = values.into_dimensionality::<Ix1>() else {
        bail!("{option}: {name} should have the shape [N], found {shape:?}");
    };
    values.iter().map(|y| label(*y, &name.to_string())).collect()
}

fn tensor_labels(file: &TensorFile) -> Result<Vec<Option<usize>>> {
    let Some(meta) = file.get("labels") else {
        bail!("{} has no tensor labels; give a file that has", file.name());
    };
    if meta.shape.len() != 1 {
        bail!("{}: the tensor labels should have the shape [N], found {:?}", file.name(), meta.shape);
    }
    file.read_i64("labels")?.into_iter().map(|y| label(y, file.name())).collect()
}

fn label(value: i64, file: &str) -> Result<Option<usize>> {
    match value {
        -1 => Ok(None),
        _ => match usize::try_from(value) {
            Ok(label) => Ok(Some(label)),
            Err(_) => bail!("{file}: labels should be whole numbers from 0, or -1 for none, found {value}"),
        },
    }
}

/// Reads `--sample-features` or `--reference-features`, `[N, D]`.
///
/// # Errors
/// If there is no such file, or it holds no such matrix.
pub fn features(path: &Path, option: &'static str) -> Result<Array2<f64>> {
    let name = path.display();
    let values = if is_safetensors(path) {
        let file = TensorFile::open(path)?;
        let tensors: Vec<String> = file.tensors().map(|t| t.name.to_owned()).collect();
        match tensors.as_slice() {
            [only] => tensor(&file, only)?,
            _ if tensors.iter().any(|t| t == "features") => tensor(&file, "features")?,
            _ => bail!(
                "{option}: {name} should hold one tensor, or one of the name features, found {}",
                if tensors.is_empty() { "none".to_owned() } else { tensors.join(", ") }
            ),
        }
    } else {
        floats(path, option)?
    };
    let shape = values.shape().to_vec();
    match values.into_dimensionality::<Ix2>() {
        Ok(values) => Ok(values),
        Err(_) => bail!("{option}: {name} should have the shape [N,D], found {shape:?}; reshape it"),
    }
}

/// A tensor of any float type.
fn tensor(file: &TensorFile, name: &str) -> Result<ArrayD<f64>> {
    let Some(meta) = file.get(name) else {
        let found: Vec<&str> = file.tensors().take(5).map(|t| t.name).collect();
        bail!("{} has no tensor {name}; found {}", file.name(), found.join(", "));
    };
    let shape = meta.shape.to_vec();
    let values = match meta.dtype {
        Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16 => Array1::from(file.read_f64(name)?),
        found => bail!("{}: the tensor {name} should hold floating-point numbers, found {found:?}", file.name()),
    };
    Ok(values.into_dyn().into_shape_with_order(shape)?)
}

/// The array of a .npy file of f32 or f64.
fn floats(path: &Path, option: &'static str) -> Result<ArrayD<f64>> {
    if let Ok(values) = npy::<f32>(path, option)? {
        return Ok(values.mapv(f64::from));
    }
    match npy::<f64>(path, option)? {
        Ok(values) => Ok(values),
        Err(e) => bail!(
            "{option}: {}: expected a .safetensors file, or an array of f32 or f64 as numpy's save writes it: {e}",
            path.display()
        ),
    }
}

type Attempt<T> = std::result::Result<T, ndarray_npy::ReadNpyError>;

/// The array of a file, if it has elements of this type.
fn npy<T: ReadableElement>(path: &Path, option: &'static str) -> Result<Attempt<ArrayD<T>>> {
    let file = File::open(path)
        .with_context(|| format!("{option}: cannot open {}; check that the path is right", path.display()))?;
    Ok(Array::read_npy(BufReader::new(file)))
}
