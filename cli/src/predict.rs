//! `tweedie predict`: one call of a network on tensors from a file.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use ndarray::{Array3, Array4, ArrayD};
use tweedie_checkpoint::{Dtype, ModelKind, Tensor, TensorFile, default_metadata, save_safetensors};
use tweedie_denoiser::{Condition, Network};

use crate::args::{Common, PredictArgs};
use crate::console;
use crate::model::{self, LoadedNetwork};
use crate::stable::{Component, component, text_network};

/// Runs the command.
///
/// # Errors
/// If the model or the inputs cannot be used, the output is not finite, or cannot be written.
pub fn run(args: &PredictArgs, common: &Common) -> Result<()> {
    let (path, variant) = (args.model.model.as_deref(), args.model.variant.as_deref());
    let of_texts = path.map(|path| text_network(path, variant)).transpose()?.flatten();
    let other = path.map(|path| component(path, variant)).transpose()?.flatten();
    let (name, output) = match (of_texts, other) {
        (Some(model), _) => {
            let inputs = Inputs::read(&args.input, Reads::Text(&model.name))?;
            (model.name.clone(), inputs.predict(&model.network()?))
        }
        (None, Some(other)) => {
            let name = path.map(|path| path.display().to_string()).unwrap_or_default();
            (name, run_component(&other, &args.input))
        }
        (None, None) => {
            let model = model::open_network(path, variant)?;
            let inputs = Inputs::read(&args.input, Reads::Labels(&model))?;
            let output = inputs.predict(&model.network);
            (model.name, output)
        }
    };
    let output = output.with_context(|| format!("cannot run {name} on {}", args.input.display()))?;
    let shape = output.shape().to_vec();
    let values: Vec<f32> = output.iter().copied().collect();
    if let Some(at) = values.iter().position(|v| !v.is_finite()) {
        bail!(
            "the output of {name} for {} is {} at element {at}; nothing was written: check the inputs and the weights",
            args.input.display(),
            values[at]
        );
    }
    let tensor = Tensor::f32("sample", &shape, &values);
    save_safetensors(&args.out, &[tensor], Dtype::F32, &default_metadata())?;
    console::report(common, &format!("wrote {}: sample {shape:?}", args.out.display()));
    Ok(())
}

/// What a file asks of a network.
struct Inputs {
    sample: Array4<f32>,
    timesteps: Vec<f64>,
    condition: Condition,
}

/// What a network is conditioned on.
#[derive(Clone, Copy)]
enum Reads<'a> {
    /// Class labels, perhaps.
    Labels(&'a LoadedNetwork),
    /// Texts; the network's name.
    Text(&'a str),
}

impl Inputs {
    fn predict(&self, network: &dyn Network) -> Result<ArrayD<f32>> {
        Ok(network.predict(self.sample.view(), &self.timesteps, &self.condition)?.into_dyn())
    }

    fn read(path: &Path, model: Reads<'_>) -> Result<Self> {
        let name = path.display();
        let file = open(path, &["sample", "timestep", "class_labels", "encoder_hidden_states"])?;
        match model {
            Reads::Labels(model) if file.get("encoder_hidden_states").is_some() => bail!(
                "{name}: the tensor encoder_hidden_states is for networks that read text, and {} is a {}; remove it",
                model.name,
                model.class_name
            ),
            Reads::Text(network) if file.get("class_labels").is_some() => {
                bail!(
                    "{name}: the tensor class_labels is for networks with labels, and {network} reads text; remove it"
                )
            }
            _ => {}
        }
        let sample = images(&file)?;
        let n = sample.dim().0;
        let timesteps = timesteps(&file, n)?;
        let condition = match model {
            Reads::Labels(model) => condition(&file, model, n)?,
            Reads::Text(_) => texts(&file, n)?,
        };
        Ok(Self { sample, timesteps, condition })
    }
}

/// Decodes latents, or encodes tokens.
fn run_component(component: &Component, input: &Path) -> Result<ArrayD<f32>> {
    match component {
        Component::Autoencoder(network) => {
            let latents = images(&open(input, &["sample"])?)?;
            Ok(network.decode(latents.view())?.into_dyn())
        }
        Component::TextEncoder(encoder) => {
            let file = open(input, &["input_ids"])?;
            let shape = shape(&file, "input_ids", "[N,L]")?;
            let [_, length] = <[usize; 2]>::try_from(shape.as_slice())
                .ok()
                .filter(|shape| !shape.contains(&0))
                .with_context(|| format!("the tensor input_ids should have shape [N,L], found {shape:?}"))?;
            let token = |id: f64| match id {
                _ if id >= 0.0 && id <= f64::from(u32::MAX) && id.fract() == 0.0 => Ok(id as u32),
                _ => bail!("the tensor input_ids should hold the numbers of tokens, found {id}"),
            };
            let ids: Vec<u32> = numbers(&file, "input_ids")?.into_iter().map(token).collect::<Result<_>>()?;
            let texts: Vec<Vec<u32>> = ids.chunks_exact(length).map(<[u32]>::to_vec).collect();
            Ok(encoder.states(&texts, 0)?.into_dyn())
        }
    }
}

/// A file that holds none but the tensors `known`.
fn open(path: &Path, known: &[&str]) -> Result<TensorFile> {
    let file = TensorFile::open(path)?;
    if let Some(tensor) = file.tensors().find(|tensor| !known.contains(&tensor.name)) {
        bail!("{}: the tensor {} is unknown; expected are {}", path.display(), tensor.name, known.join(", "));
    }
    Ok(file)
}

/// The tensor `sample`, `[N,C,H,W]`.
fn images(file: &TensorFile) -> Result<Array4<f32>> {
    let name = file.name();
    let shape = shape(file, "sample", "[N,C,H,W]")?;
    let Ok([n, c, h, w]) = <[usize; 4]>::try_from(shape.as_slice()) else {
        bail!("{name}: the tensor sample should have shape [N,C,H,W], found {shape:?}");
    };
    let sample = Array4::from_shape_vec((n, c, h, w), floats(file, "sample")?)?;
    if let Some(value) = sample.iter().find(|v| !v.is_finite()) {
        bail!("{name}: the tensor sample should be finite in f32, found {value}");
    }
    Ok(sample)
}

/// The shape of a tensor that has to be there.
fn shape(file: &TensorFile, tensor: &str, expected: &str) -> Result<Vec<usize>> {
    match file.get(tensor) {
        Some(meta) => Ok(meta.shape.to_vec()),
        None => {
            let found: Vec<&str> = file.tensors().take(5).map(|t| t.name).collect();
            bail!(
                "{} should hold the tensor {tensor} {expected}, and has none of that name; found {}",
                file.name(),
                if found.is_empty() { "no tensor at all".to_owned() } else { found.join(", ") }
            )
        }
    }
}

/// A tensor with one entry for each sample; a scalar stands for all of them.
fn one_per_sample<T: Copy>(file: &TensorFile, tensor: &str, n: usize, values: Vec<T>) -> Result<Vec<T>> {
    let shape = shape(file, tensor, "[N]")?;
    match (shape.as_slice(), values.as_slice()) {
        ([], [value]) => Ok(vec![*value; n]),
        ([len], _) if *len == n => Ok(values),
        _ => bail!(
            "{}: the tensor {tensor} should have shape [{n}], one entry for each sample, found {shape:?}",
            file.name()
        ),
    }
}

fn timesteps(file: &TensorFile, n: usize) -> Result<Vec<f64>> {
    shape(file, "timestep", "[N]")?;
    let values = one_per_sample(file, "timestep", n, numbers(file, "timestep")?)?;
    match values.iter().find(|t| !t.is_finite()) {
        Some(t) => bail!("{}: the tensor timestep should be finite, found {t}", file.name()),
        None => Ok(values),
    }
}

/// A tensor of any float type as f32, in which networks compute.
///
/// # Errors
/// If there is no such tensor, or it has another type.
pub fn floats(file: &TensorFile, tensor: &str) -> Result<Vec<f32>> {
    match file.get(tensor).map(|t| t.dtype) {
        // Without a detour for the types that fit.
        Some(Dtype::F32 | Dtype::F16 | Dtype::BF16) => Ok(file.read_f32(tensor)?),
        _ => Ok(file.read_f64(tensor)?.into_iter().map(|v| v as f32).collect()),
    }
}

/// A tensor of any integer or float type.
fn numbers(file: &TensorFile, tensor: &str) -> Result<Vec<f64>> {
    match file.get(tensor).map(|t| t.dtype) {
        Some(Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16) => Ok(file.read_f64(tensor)?),
        _ => Ok(file.read_i64(tensor)?.into_iter().map(|v| v as f64).collect()),
    }
}

/// What an encoder has made of texts, `[N,L,D]`.
fn texts(file: &TensorFile, n: usize) -> Result<Condition> {
    let tensor = "encoder_hidden_states";
    let shape = shape(file, tensor, "[N,L,D]")?;
    let Ok([texts, length, width]) = <[usize; 3]>::try_from(shape.as_slice()) else {
        bail!("{}: the tensor {tensor} should have shape [N,L,D], found {shape:?}", file.name());
    };
    if texts != n {
        bail!(
            "{}: the tensor {tensor} should have shape [{n}, L, D], one text for each sample, found {shape:?}",
            file.name()
        );
    }
    let values = Array3::from_shape_vec((texts, length, width), floats(file, tensor)?)?;
    if let Some(value) = values.iter().find(|v| !v.is_finite()) {
        bail!("{}: the tensor {tensor} should be finite in f32, found {value}", file.name());
    }
    Ok(Condition::texts(values.outer_iter().map(|text| Arc::new(text.to_owned())).collect()))
}

fn condition(file: &TensorFile, model: &LoadedNetwork, n: usize) -> Result<Condition> {
    if file.get("class_labels").is_none() {
        return Ok(Condition::none(n));
    }
    let network = &model.network;
    // In diffusers the null condition is a row of the class embedding, after those of the labels.
    let has_null_row = model.kind != ModelKind::Book && network.classes() > 0 && network.has_null_condition();
    let null_row = has_null_row.then_some(network.classes());
    let labels = one_per_sample(file, "class_labels", n, numbers(file, "class_labels")?)?;
    let label = |y: f64| match y {
        -1.0 => Ok(None),
        _ if y >= 0.0 && y.fract() == 0.0 => Ok(Some(y as usize).filter(|y| Some(*y) != null_row)),
        _ => bail!(
            "{}: the tensor class_labels should hold whole labels from 0, or -1 for no condition, found {y}",
            file.name()
        ),
    };
    Ok(Condition::labels(labels.into_iter().map(label).collect::<Result<_>>()?))
}
