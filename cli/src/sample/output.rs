//! Samples as a file: a picture, or raw numbers.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use ndarray::Array4;
use ndarray_npy::WriteNpyExt;
use serde_json::Value;
use tweedie_checkpoint::{Dtype, Tensor, atomic_write, save_safetensors};
use tweedie_data::Range;

use crate::labels::{self, Arrangement};
use crate::picture::{self, Canvas, Layout};

/// The keyword of the text that tells how samples were made.
const PARAMETERS: &str = "parameters";

/// What a file is to hold, decided by its suffix before anything is computed.
pub enum Output {
    /// A picture.
    Png(Layout),
    /// A numpy array.
    Npy,
    /// The tensors `sample` and `labels`.
    Safetensors,
}

impl Output {
    /// The kind of file that `path` names, for samples of `shape` `[N, C, H, W]`.
    ///
    /// # Errors
    /// If the suffix is unknown, the directory is missing, or samples of that shape cannot be drawn.
    pub fn plan(path: &Path, shape: [usize; 4], arrangement: &Arrangement, class_names: &[String]) -> Result<Self> {
        check_directory(path)?;
        let suffix = path.extension().map(|s| s.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
        match suffix.as_str() {
            "png" => {
                let headers = arrangement.headers.iter().map(|label| labels::header(*label, class_names)).collect();
                Ok(Self::Png(Layout::new(shape, &arrangement.columns, headers)?))
            }
            "npy" => Ok(Self::Npy),
            "safetensors" => Ok(Self::Safetensors),
            _ => bail!("{}: the name should end in .png, .npy or .safetensors", path.display()),
        }
    }

    /// Writes the file, atomically; returns the picture if it is one.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(
        &self,
        path: &Path,
        samples: &Array4<f32>,
        labels: &[Option<usize>],
        range: Range,
        parameters: &Value,
    ) -> Result<Option<Canvas>> {
        let parameters = parameters.to_string();
        match self {
            Self::Png(layout) => {
                let canvas = layout.draw(samples.view(), range);
                let software = concat!("tweedie ", env!("CARGO_PKG_VERSION"));
                let bytes = picture::encode(&canvas, &[("Software", software), (PARAMETERS, &parameters)])?;
                atomic_write(path, &bytes)?;
                return Ok(Some(canvas));
            }
            Self::Npy => {
                let mut bytes = Vec::new();
                samples.write_npy(&mut bytes).context("cannot encode the samples as .npy")?;
                atomic_write(path, &bytes)?;
            }
            Self::Safetensors => {
                let values: Vec<f32> = samples.iter().copied().collect();
                let labels: Vec<i64> = labels.iter().map(|label| label.map_or(-1, |y| y as i64)).collect();
                let tensors = [
                    Tensor::f32("sample", samples.shape(), &values),
                    Tensor::i64("labels", &samples.shape()[..1], &labels),
                ];
                let metadata = BTreeMap::from([(PARAMETERS.to_owned(), parameters)]);
                save_safetensors(path, &tensors, Dtype::F32, &metadata)?;
            }
        }
        Ok(None)
    }
}

/// Whether two paths name the same file, which need not exist.
pub fn same_file(a: &Path, b: &Path) -> bool {
    let resolved = |path: &Path| {
        let directory = path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
        let whole = path.canonicalize().ok();
        whole.or_else(|| Some(directory.canonicalize().ok()?.join(path.file_name()?)))
    };
    a == b || resolved(a).is_some_and(|a| Some(a) == resolved(b))
}

/// Whether a file could be written to a path, as far as that is known before the work.
///
/// # Errors
/// If the directory does not exist.
pub fn check_directory(path: &Path) -> Result<()> {
    let directory = path.parent().filter(|parent| *parent != Path::new(""));
    match directory {
        Some(directory) if !directory.is_dir() => {
            bail!("cannot write {}: there is no directory {}; create it first", path.display(), directory.display())
        }
        _ => Ok(()),
    }
}
