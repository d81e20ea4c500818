//! The metrics of images: samples of a model or from a file, or features of them, against real images.

pub mod args;
mod compute;
mod drawn;
mod extract;
mod files;
pub mod report;
mod source;

use std::path::Path;

use anyhow::{Context, Result};
use tweedie_data::{Dataset, Range, Split, permutation};

use super::args::EvalArgs;
pub use super::metric::Metric;
use super::metric::Wanted;
use crate::args::Common;
use crate::classifier;
use crate::console::usage;
use crate::data::DataArgs;
use crate::model::Loaded;
pub use compute::{Figure, Settings, figures};
use drawn::How;
pub use extract::{Extracted, Extractor};
use source::{Samples, Source};

/// Fewer images than this are told to give no more than a hint of a distance.
const FEW: usize = 1000;

/// Real images that samples are compared with.
pub struct Reference {
    /// The data set or the file.
    pub name: String,
    /// Its part.
    pub split: Option<Split>,
    /// How many images were taken.
    pub count: usize,
    /// How many there are; `None` for features.
    pub available: Option<usize>,
}

impl Reference {
    fn of(data: &Dataset, split: Split, count: usize) -> Self {
        Self { name: data.name().to_owned(), split: Some(split), count, available: Some(data.len()) }
    }

    /// As the head of a column.
    pub fn short(&self) -> String {
        let split = self.split.map_or_else(String::new, |split| format!("{split}, "));
        format!("real ({split}{})", self.count)
    }
}

/// The result.
pub struct Judged {
    /// Where the samples are from.
    pub samples: String,
    /// How many there are.
    pub count: usize,
    /// Whether any of them has a label.
    pub labelled: bool,
    /// The range that they were clamped to; `None` for features.
    pub range: Option<Range>,
    /// Whether they were rounded to bytes.
    pub quantise: bool,
    /// What they were compared with.
    pub reference: Option<Reference>,
    /// Where the features are from.
    pub network: String,
    /// How many features an image has.
    pub dims: usize,
    /// The share of its test images that the network names right.
    pub accuracy: Option<f64>,
    /// How the samples were drawn, if that was done now.
    pub drawn: Option<How>,
    /// The values.
    pub figures: Vec<Figure>,
    /// The same of real images.
    pub baseline: Option<(Reference, Vec<Figure>)>,
    /// What should be known of them.
    pub notes: Vec<String>,
    /// The seed of all that is random.
    pub seed: u64,
}

/// Computes the metrics of images among `wanted`, of samples of `model` where they are to be drawn.
///
/// # Errors
/// If a file, the model, the data, the classifier or an option cannot be used.
pub fn run(args: &EvalArgs, wanted: &Wanted, model: Option<&Loaded>, common: &Common) -> Result<Judged> {
    let settings = Settings::new(&args.images, args.seed);
    let given = (args.images.sample_features.as_deref(), args.images.reference_features.as_deref());
    if let (Some(samples), Some(reference)) = given {
        return of_features(samples, reference, args, wanted, &settings, common);
    }
    let source = Source::open(args, model)?;
    let [count, c, h, w] = source.shape();
    let metrics = applicable(wanted, &source)?;
    let loaded = classifier::open(args.images.judge.as_deref()).context("--judge")?;
    let extractor = Extractor { network: &loaded.network, range: loaded.range };
    let quantise = !args.images.no_quantise;
    let split = args.split.map_or(Split::Test, Split::from);
    let data = wanted.compares().then(|| open_data(args, [c, h, w], split, common)).transpose()?;
    if let Some(own) = loaded.network.image_shape().filter(|own| *own != [c, h, w]) {
        return Err(usage(format!(
            "--judge: {} is for images of shape {own:?}, and the samples are {:?}; give a classifier of the same shape",
            loaded.name,
            [c, h, w]
        )));
    }
    // Nothing is refused from here on, so what takes time begins.
    let Samples { name, images, range, labels, drawn } = source.samples(common)?;
    let samples = extractor.samples(&images, labels, range, quantise, common).with_context(|| name.clone())?;
    let mut real = None;
    if let Some(data) = &data {
        let indices = chosen(data.len(), args.limit.map_or(data.len(), Into::into), args.seed);
        let found = extractor.data(data, &indices, "features of the real images", common)?;
        real = Some((Reference::of(data, split, indices.len()), found));
    }
    let found = figures(&metrics, real.as_ref().map(|real| &real.1), &samples, &settings, common)?;
    let baseline = match args.images.baseline {
        true => Some(of_real(args, &metrics, real.as_ref().map(|real| &real.1), &extractor, [c, h, w], count, common)?),
        false => None,
    };
    Ok(Judged {
        samples: name,
        count,
        labelled: samples.labels.is_some(),
        range: Some(range),
        quantise,
        notes: notes(&found, &samples, real.as_ref().map(|real| &real.1)),
        reference: real.map(|real| real.0),
        network: loaded.name.clone(),
        dims: samples.features.ncols(),
        accuracy: loaded.accuracy,
        drawn,
        figures: found,
        baseline,
        seed: args.seed,
    })
}

fn of_features(
    samples: &Path,
    reference: &Path,
    args: &EvalArgs,
    wanted: &Wanted,
    settings: &Settings,
    common: &Common,
) -> Result<Judged> {
    for (given, option) in
        [(args.data.is_some(), "--data"), (args.split.is_some(), "--split"), (args.limit.is_some(), "--limit")]
    {
        if given {
            return Err(usage(format!("{option} cannot be given with --reference-features, which is the reference")));
        }
    }
    let drawn = Extracted::new(files::features(samples, "--sample-features")?, None, None);
    let real = Extracted::new(files::features(reference, "--reference-features")?, None, None);
    let found = figures(&wanted.metrics, Some(&real), &drawn, settings, common)?;
    Ok(Judged {
        samples: samples.display().to_string(),
        count: drawn.features.nrows(),
        labelled: false,
        range: None,
        quantise: false,
        reference: Some(Reference {
            name: reference.display().to_string(),
            split: None,
            count: real.features.nrows(),
            available: None,
        }),
        network: "another network (from files)".to_owned(),
        dims: drawn.features.ncols(),
        accuracy: None,
        notes: notes(&found, &drawn, Some(&real)),
        drawn: None,
        figures: found,
        baseline: None,
        seed: args.seed,
    })
}

/// The metrics that can be computed: `all` leaves out the accuracy where there are no labels.
fn applicable(wanted: &Wanted, source: &Source<'_>) -> Result<Vec<Metric>> {
    if source.labelled() || !wanted.has(Metric::Accuracy) {
        return Ok(wanted.metrics.clone());
    }
    if !wanted.all {
        let name = source.name();
        return Err(usage(match source {
            Source::File(_) => format!(
                "--metrics accuracy: {name} has no labels; give --sample-labels or --labels-per, or draw to a .safetensors file"
            ),
            Source::Model(_) => {
                format!("--metrics accuracy: the samples of {name} are drawn without labels; leave accuracy out")
            }
        }));
    }
    Ok(wanted.metrics.iter().copied().filter(|metric| *metric != Metric::Accuracy).collect())
}

/// The data that the options of `eval` name, or the bundled ones where the samples are of their shape.
fn open_data(args: &EvalArgs, shape: [usize; 3], split: Split, common: &Common) -> Result<Dataset> {
    let [c, h, w] = shape;
    let spec = match &args.data {
        Some(spec) => spec,
        None if shape == [1, 28, 28] => "mnist",
        None => {
            return Err(usage(format!(
                "--data is needed: the samples are images of {c} x {h} x {w}, and the bundled mnist has 1 x 28 x 28"
            )));
        }
    };
    open_real(spec, &args.data_options, shape, split, common)
}

/// Real images of the shape of samples `[C, H, W]`.
///
/// # Errors
/// If the data cannot be opened, or are of another shape.
pub fn open_real(spec: &str, options: &DataArgs, shape: [usize; 3], split: Split, common: &Common) -> Result<Dataset> {
    let [c, h, w] = shape;
    let data = crate::data::open(spec, split, &options.options_for(spec, Some(shape))?, common)?;
    if data.shape() != shape {
        let [dc, dh, dw] = data.shape();
        return Err(usage(format!(
            "--data: {} has images of {dc} x {dh} x {dw}, and the samples are {c} x {h} x {w}; give data of that shape",
            data.name()
        )));
    }
    Ok(data)
}

/// `count` of `available` images, at random unless they are all.
pub fn chosen(available: usize, count: usize, seed: u64) -> Vec<usize> {
    if count >= available {
        return (0..available).collect();
    }
    permutation(available, seed, 0).into_iter().take(count).map(|i| i as usize).collect()
}

/// The metrics of as many real images of the other split.
fn of_real(
    args: &EvalArgs,
    metrics: &[Metric],
    real: Option<&Extracted>,
    extractor: &Extractor<'_>,
    shape: [usize; 3],
    count: usize,
    common: &Common,
) -> Result<(Reference, Vec<Figure>)> {
    let split = args.split.map_or(Split::Test, Split::from).other();
    let data = open_data(args, shape, split, common).context("--baseline: the other split")?;
    let indices = chosen(data.len(), count, args.seed);
    let found = extractor.data(&data, &indices, "features of the baseline", common)?;
    let metrics: Vec<Metric> =
        metrics.iter().copied().filter(|metric| *metric != Metric::Accuracy || found.labels.is_some()).collect();
    let figures = figures(&metrics, real, &found, &Settings::new(&args.images, args.seed), common)?;
    Ok((Reference::of(&data, split, indices.len()), figures))
}

/// What the numbers of images mean for the values.
fn notes(found: &[Figure], samples: &Extracted, real: Option<&Extracted>) -> Vec<String> {
    let mut notes = Vec::new();
    let (n, dims) = samples.features.dim();
    let least = real.map_or(n, |real| n.min(real.features.nrows()));
    let has = |metric| found.iter().any(|figure| figure.metric == metric);
    if has(Metric::Fid) && least <= dims {
        notes.push(format!("fid: with {least} images and {dims} features a covariance has not full rank; draw more."));
    } else if has(Metric::Fid) && n < FEW {
        notes.push(format!("fid: it falls with the number of samples; compare only with values of {n}."));
    }
    notes
}
