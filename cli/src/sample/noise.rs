//! `--noise` and `--save-noise`: the random numbers of a run as a file.

use std::path::Path;

use anyhow::{Result, bail};
use ndarray::{Array4, Array5};
use tweedie_checkpoint::{Dtype, Tensor, TensorFile, default_metadata, save_safetensors};
use tweedie_denoiser::{RecordedNoise, ReplayNoise};

use crate::predict::floats;

/// A file of noise, opened but not read.
pub struct NoiseFile {
    file: TensorFile,
    initial: Vec<usize>,
}

impl NoiseFile {
    /// Opens a file that holds at least `initial`.
    ///
    /// # Errors
    /// If it cannot be read or has no tensor of that name with four dimensions.
    pub fn open(path: &Path) -> Result<Self> {
        let file = TensorFile::open(path)?;
        let Some(tensor) = file.get("initial") else {
            bail!(
                "{} should hold the tensor initial [N,C,H,W], and has none of that name; found {}",
                path.display(),
                names(&file)
            );
        };
        let initial = tensor.shape.to_vec();
        if initial.len() != 4 {
            bail!("{}: the tensor initial should have 4 dimensions [N,C,H,W], found shape {initial:?}", path.display());
        }
        Ok(Self { file, initial })
    }

    /// Number of images that the noise is for.
    pub fn count(&self) -> usize {
        self.initial[0]
    }

    /// The noise for images of `shape` `[N, C, H, W]` and a sampler that draws `draws` times.
    ///
    /// # Errors
    /// If a tensor has another shape or too few steps, or holds a number that is not finite.
    pub fn read(&self, shape: [usize; 4], draws: usize) -> Result<ReplayNoise> {
        let name = self.file.name();
        if self.initial != shape {
            bail!(
                "{name}: the tensor initial should have shape {shape:?} (images, channels, height, width), found {:?}; \
                 draw as many images as the file has noise for, from the model that it was made for",
                self.initial
            );
        }
        let initial = Array4::from_shape_vec(shape, self.values("initial")?)?;
        let [n, c, h, w] = shape;
        let steps = match self.file.get("steps").map(|t| t.shape.to_vec()) {
            None if draws == 0 => Array5::zeros((0, n, c, h, w)),
            None => bail!(
                "{name} should hold the tensor steps [K,N,C,H,W] with K >= {draws}, because this sampler adds noise in \
                 {draws} steps; found {}",
                names(&self.file)
            ),
            // A sampler that adds no noise does not look at the tensor.
            Some(_) if draws == 0 => Array5::zeros((0, n, c, h, w)),
            Some(found) => {
                if found.len() != 5 || found[1..] != shape {
                    bail!(
                        "{name}: the tensor steps should have shape [K, {n}, {c}, {h}, {w}] with K >= {draws}, found \
                         {found:?}"
                    );
                }
                if found[0] < draws {
                    bail!(
                        "{name}: the tensor steps should have shape [K, {n}, {c}, {h}, {w}] with K >= {draws}, found \
                         {found:?}: there is noise for {} of {draws} steps that add noise; give more or sample with \
                         fewer steps",
                        found[0]
                    );
                }
                Array5::from_shape_vec((found[0], n, c, h, w), self.values("steps")?)?
            }
        };
        Ok(ReplayNoise::new(initial, steps)?)
    }

    fn values(&self, tensor: &str) -> Result<Vec<f32>> {
        let values = floats(&self.file, tensor)?;
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            bail!("{}: the tensor {tensor} should be finite, found {} at element {at}", self.file.name(), values[at]);
        }
        Ok(values)
    }
}

/// Writes the noise of a run in the form that [`NoiseFile`] reads.
///
/// # Errors
/// If the file cannot be written.
pub fn save(path: &Path, noise: &RecordedNoise) -> Result<()> {
    let (initial, steps) = (noise.initial.as_standard_layout(), noise.steps.as_standard_layout());
    let (Some(initial_values), Some(steps_values)) = (initial.as_slice(), steps.as_slice()) else {
        bail!("the noise is not contiguous");
    };
    let tensors =
        [Tensor::f32("initial", initial.shape(), initial_values), Tensor::f32("steps", steps.shape(), steps_values)];
    Ok(save_safetensors(path, &tensors, Dtype::F32, &default_metadata())?)
}

/// The names and shapes of a file's first tensors, for messages.
fn names(file: &TensorFile) -> String {
    let list: Vec<String> = file.tensors().take(5).map(|t| format!("{} {:?}", t.name, t.shape)).collect();
    if list.is_empty() { "no tensor at all".to_owned() } else { list.join(", ") }
}
