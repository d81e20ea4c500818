//! Where samples are from: a file, or a model.

use std::path::Path;

use anyhow::{Result, bail};
use ndarray::Array4;
use tweedie_data::Range;

use super::drawn::{How, Planned};
use super::files;
use crate::args::Common;
use crate::console::usage;
use crate::eval::args::EvalArgs;
use crate::model::{self, Loaded};

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
    /// How they were drawn, if that was done now.
    pub drawn: Option<How>,
}

/// What samples are there, or can be drawn.
pub enum Source<'a> {
    /// Those of a file.
    File(Box<Samples>),
    /// Those of a model.
    Model(Box<Planned<'a>>),
}

impl<'a> Source<'a> {
    /// The file that the options name; otherwise `model`, of which nothing is drawn yet.
    ///
    /// # Errors
    /// If there is neither, one cannot be used as the options say, or there are not as many labels as samples.
    pub fn open(args: &EvalArgs, model: Option<&'a Loaded>) -> Result<Self> {
        match (args.images.samples.as_deref(), model) {
            (Some(path), _) => Ok(Self::File(Box::new(Samples::open(path, args)?))),
            (None, Some(model)) => Ok(Self::Model(Box::new(Planned::of(model, args)?))),
            (None, None) => Err(usage("--samples or --model is needed for the metrics of images")),
        }
    }

    /// What the samples are called.
    pub fn name(&self) -> &str {
        match self {
            Self::File(samples) => &samples.name,
            Self::Model(planned) => planned.name(),
        }
    }

    /// `[N, C, H, W]`.
    pub fn shape(&self) -> [usize; 4] {
        match self {
            Self::File(samples) => samples.images.dim().into(),
            Self::Model(planned) => planned.shape(),
        }
    }

    /// Whether any of them has a label.
    pub fn labelled(&self) -> bool {
        match self {
            Self::File(samples) => samples.labels.is_some(),
            Self::Model(planned) => planned.labelled(),
        }
    }

    /// The samples, drawn now if they are those of a model.
    ///
    /// # Errors
    /// If drawing fails.
    pub fn samples(self, common: &Common) -> Result<Samples> {
        match self {
            Self::File(samples) => Ok(*samples),
            Self::Model(planned) => planned.draw(common),
        }
    }
}

impl Samples {
    /// Those of a file.
    fn open(path: &Path, args: &EvalArgs) -> Result<Self> {
        let stored = files::samples(path)?;
        let name = path.display().to_string();
        let labels = labels(args, &name, stored.labels, stored.images.dim().0)?;
        let range = match (stored.of_bytes, args.images.range()) {
            (Some(range), _) | (None, Some(range)) => range,
            (None, None) => {
                model::open_without_weights(args.model.model.as_deref(), args.model.variant.as_deref())?.range()
            }
        };
        Ok(Self { name, images: stored.images, range, labels, drawn: None })
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
