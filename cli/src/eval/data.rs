//! What is evaluated: images of a data set, numbers from a file, or draws of an oracle.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use anyhow::{Context, Result, bail};
use ndarray::{Array, Array4, ArrayD, Axis, Ix4};
use ndarray_npy::{ReadNpyExt, ReadableElement};
use tweedie_data::{Range, Split, permutation};
use tweedie_denoiser::Condition;
use tweedie_schedule::NoiseLevel;

use super::args::{EvalArgs, LabelChoice};
use crate::args::Common;
use crate::console::usage;
use crate::model::Loaded;

/// Images, unless told otherwise.
const IMAGES: usize = 500;
/// Images for the ODE, which calls the network hundreds of times for each.
const ODE_IMAGES: usize = 8;
/// Draws of an oracle, unless told otherwise.
const DRAWS: usize = 1000;

/// Samples and what is known of them.
pub struct Data {
    /// The data set, the file, or the oracle.
    pub name: String,
    /// The part of the data set, where it has parts.
    pub split: Option<Split>,
    /// `[N, C, H, W]` in the range of the model.
    pub x0: Array4<f64>,
    /// One entry for each sample.
    pub condition: Condition,
    /// How many samples there are; `None` if they are drawn.
    pub available: Option<usize>,
}

impl Data {
    /// How many numbers a sample has.
    pub fn dims(&self) -> usize {
        self.x0.len() / self.x0.dim().0
    }

    /// `[N, C, H, W]`.
    pub fn shape(&self) -> [usize; 4] {
        let (n, c, h, w) = self.x0.dim();
        [n, c, h, w]
    }
}

/// Opens the data.
///
/// # Errors
/// If there is none for this model, it is damaged or of another shape, or labels are asked for that are not there.
pub fn open(model: &Loaded, args: &EvalArgs, common: &Common) -> Result<Data> {
    let split = args.split.map(Split::from);
    match (&args.data, model) {
        (Some(path), _) if is_npy(path) => {
            refuse_split(args, path)?;
            from_npy(model, args, path)
        }
        (Some(name), _) => from_dataset(model, args, name, split.unwrap_or(Split::Test), common),
        (None, Loaded::Network(network)) => {
            let shape = network.network.image_shape();
            if shape != Some([1, 28, 28]) {
                return Err(usage(format!(
                    "--data is needed: {} takes {}, and the bundled mnist has images of 1 x 28 x 28",
                    network.name,
                    shape.map_or("images whose size its config does not tell".to_owned(), images)
                )));
            }
            from_dataset(model, args, "mnist", split.unwrap_or(Split::Test), common)
        }
        (None, Loaded::Oracle(oracle)) => {
            refuse_split(args, "what an oracle draws")?;
            let anything = Condition::none(limit(args, DRAWS));
            let draws = oracle.oracle.sample(NoiseLevel::CLEAN, &anything, args.seed)?;
            let condition = condition(model, args, Some(draws.labels), "the draws", draws.x.dim().0)?;
            Ok(Data { name: format!("{} (drawn)", oracle.name), split: None, x0: draws.x, condition, available: None })
        }
    }
}

fn is_npy(path: &str) -> bool {
    Path::new(path).extension().is_some_and(|suffix| suffix.eq_ignore_ascii_case("npy"))
}

fn refuse_split(args: &EvalArgs, what: &str) -> Result<()> {
    match args.split {
        Some(_) => Err(usage(format!("--split: {what} has no parts; leave --split out"))),
        None => Ok(()),
    }
}

fn limit(args: &EvalArgs, default: usize) -> usize {
    args.limit.map_or(default, Into::into)
}

/// The samples that are evaluated, out of `available` of them.
fn chosen(model: &Loaded, args: &EvalArgs, available: usize) -> Vec<usize> {
    let default = match model {
        Loaded::Network(_) if args.ode => ODE_IMAGES,
        Loaded::Network(_) => IMAGES,
        Loaded::Oracle(_) => DRAWS,
    };
    let count = limit(args, default).min(available);
    if count == available {
        return (0..available).collect();
    }
    // A random part: files may be sorted, and the first half of MNIST's test images is easier than the second.
    permutation(available, args.seed, 0).into_iter().take(count).map(|i| i as usize).collect()
}

fn from_dataset(model: &Loaded, args: &EvalArgs, name: &str, split: Split, common: &Common) -> Result<Data> {
    let shape = match model {
        Loaded::Network(network) => network.network.image_shape(),
        Loaded::Oracle(oracle) => Some(oracle.oracle.shape()),
    };
    let data = crate::data::open(name, split, &args.data_options.options_for(name, shape)?, common)?;
    check_shape(model, data.name(), data.shape())?;
    let indices = chosen(model, args, data.len());
    let batch = data.batch(&indices, model.range())?;
    let labels = data.labels().map(|_| batch.labels.into_iter().map(Some).collect());
    let condition = condition(model, args, labels, data.name(), indices.len())?;
    Ok(Data {
        name: data.name().to_owned(),
        split: Some(split),
        x0: batch.images.mapv(f64::from),
        condition,
        available: Some(data.len()),
    })
}

fn from_npy(model: &Loaded, args: &EvalArgs, path: &str) -> Result<Data> {
    let all = read_npy(Path::new(path), model.range())?;
    let (available, c, h, w) = all.dim();
    check_shape(model, path, [c, h, w])?;
    let indices = chosen(model, args, available);
    let condition = condition(model, args, None, path, indices.len())?;
    let x0 = all.select(Axis(0), &indices);
    Ok(Data { name: path.to_owned(), split: None, x0, condition, available: Some(available) })
}

/// Numbers of type f64 or f32 as they are, or bytes as pixels in `range`.
fn read_npy(path: &Path, range: Range) -> Result<Array4<f64>> {
    let name = path.display();
    let all = if let Ok(values) = array::<f64>(path)? {
        values
    } else if let Ok(values) = array::<f32>(path)? {
        values.mapv(f64::from)
    } else {
        match array::<u8>(path)? {
            Ok(values) => values.mapv(|byte| range.from_byte(byte).into()),
            Err(e) => bail!("{name}: expected an array of f64, f32 or u8 as numpy's save writes it: {e}"),
        }
    };
    let shape = all.shape().to_vec();
    let Ok(all) = all.into_dimensionality::<Ix4>() else {
        bail!("{name}: the array should have shape [N,C,H,W], found {shape:?}; reshape it");
    };
    if all.is_empty() {
        bail!("{name}: the array should hold a sample at least, found the shape {shape:?}");
    }
    match all.iter().find(|v| !v.is_finite()) {
        Some(value) => bail!("{name}: the numbers should be finite, found {value}"),
        None => Ok(all),
    }
}

type Attempt<T> = std::result::Result<T, ndarray_npy::ReadNpyError>;

/// The array of a file, if it has elements of this type.
fn array<T: ReadableElement>(path: &Path) -> Result<Attempt<ArrayD<T>>> {
    let file = File::open(path)
        .with_context(|| format!("--data: cannot open {}; check that the path is right", path.display()))?;
    Ok(Array::read_npy(BufReader::new(file)))
}

fn images([c, h, w]: [usize; 3]) -> String {
    format!("images of {c} x {h} x {w}")
}

fn check_shape(model: &Loaded, data: &str, found: [usize; 3]) -> Result<()> {
    let expected = match model {
        Loaded::Oracle(oracle) => Some(oracle.oracle.shape()),
        Loaded::Network(network) => network.network.image_shape(),
    };
    match expected {
        Some(expected) if expected != found => Err(usage(format!(
            "--data: {data} has {}, and the model {} takes {}; give data of that shape",
            images(found),
            model.name(),
            images(expected)
        ))),
        _ => Ok(()),
    }
}

/// The condition of `count` samples with these labels.
fn condition(
    model: &Loaded,
    args: &EvalArgs,
    labels: Option<Vec<Option<usize>>>,
    data: &str,
    count: usize,
) -> Result<Condition> {
    let (name, known) = (model.name(), model.labels());
    let labels = labels.filter(|labels| labels.iter().any(Option::is_some));
    let choice = args.labels.unwrap_or(match model {
        Loaded::Network(_) if labels.is_some() && !known.is_empty() => LabelChoice::Own,
        _ => LabelChoice::None,
    });
    if choice == LabelChoice::None {
        if !model.has_null_condition() {
            return Err(usage(match args.labels {
                Some(_) => {
                    format!("--labels none: the model {name} was never trained without a label; give --labels own")
                }
                None => format!(
                    "{data} has no labels, and the model {name} was never trained without one; give other --data"
                ),
            }));
        }
        return Ok(Condition::none(count));
    }
    if known.is_empty() {
        return Err(usage(format!("--labels own: the model {name} knows no labels; leave --labels out")));
    }
    let Some(labels) = labels else {
        return Err(usage(format!("--labels own: {data} has no labels; leave --labels out, or give --labels none")));
    };
    if let Some(label) = labels.iter().flatten().find(|label| !known.contains(label)) {
        return Err(usage(format!(
            "--labels own: {data} has the label {label}, which the model {name} does not know; give --labels none"
        )));
    }
    Ok(Condition::labels(labels))
}
