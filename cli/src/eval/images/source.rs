//! Where samples are from: a file.

use anyhow::{Result, bail};
use ndarray::Array4;
use tweedie_data::Range;

use super::files;
use crate::console::usage;
use crate::eval::args::EvalArgs;
use crate::model;

/// Samples, and what is known of them.
pub struct Samples {
    /// What they are called in the result.
    pub name: String,
    /// `[N, C, H, W]`.
    pub images: Array4<f32>,
    /// The range that they lie in, but for what a sampler leaves beyond its ends.
    pub range: Range,
    /// The label of each; `None` if no sample has one.
    pub labels: Option<Vec<Option<usize>>>,
}

impl Samples {
    /// Those that the options name.
    ///
    /// # Errors
    /// If none are named, a file cannot be used, or there are not as many labels as samples.
    pub fn open(args: &EvalArgs) -> Result<Self> {
        let Some(path) = args.images.samples.as_deref() else {
            return Err(usage(
                "--samples is needed for the metrics of images: draw some by `tweedie sample --out x.safetensors`",
            ));
        };
        let stored = files::samples(path)?;
        let name = path.display().to_string();
        let labels = labels(args, &name, stored.labels, stored.images.dim().0)?;
        let range = match (stored.of_bytes, args.images.range()) {
            (Some(range), _) | (None, Some(range)) => range,
            (None, None) => {
                model::open_without_weights(args.model.model.as_deref(), args.model.variant.as_deref())?.range()
            }
        };
        Ok(Self { name, images: stored.images, range, labels })
    }
}

/// The labels of the samples: those of an option, or of their own file; `None` if no sample has one.
fn labels(
    args: &EvalArgs,
    name: &str,
    own: Option<Vec<Option<usize>>>,
    count: usize,
) -> Result<Option<Vec<Option<usize>>>> {
    let labels = match (&args.images.sample_labels, args.images.labels_per) {
        (Some(path), _) => {
            let labels = files::labels(path)?;
            let (path, found) = (path.display(), labels.len());
            if found != count {
                return Err(usage(format!(
                    "--sample-labels: {path} has {found} labels, and {name} {count} samples; give one for each"
                )));
            }
            Some(labels)
        }
        (None, Some(per)) if !count.is_multiple_of(per.get()) => {
            return Err(usage(format!(
                "--labels-per {per}: {name} has {count} samples, which is no multiple of it; give --sample-labels"
            )));
        }
        (None, Some(per)) => Some((0..count).map(|i| Some(i / per)).collect()),
        (None, None) => {
            if let Some(found) = own.as_ref().map(Vec::len).filter(|found| *found != count) {
                bail!("{name}: the tensor labels should have {count} entries as there are samples, found {found}");
            }
            own
        }
    };
    Ok(labels.filter(|labels| labels.iter().any(Option::is_some)))
}
