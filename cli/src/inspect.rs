//! `tweedie inspect`: what a model consists of, and what a step of it costs here.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use ndarray::{Array2, Array4};
use serde_json::{Value, json};
use tweedie_checkpoint::Config;
use tweedie_denoiser::{Classifier, Condition, DenoiserError, Network, NetworkGrad};
use tweedie_kernels::weight::Stored;
use tweedie_samplers::{Process, SchedulerSpec};
use tweedie_schedule::TimestepMapping;
use tweedie_unet::cross::{self, Cross};
use tweedie_unet::{EncoderClassifier, Model, Summary, UnetError, WeightSource};

use crate::args::{InspectArgs, ProcessArgs};
use crate::classifier::{self, LoadedClassifier};
use crate::console;
use crate::model::{self, Loaded, LoadedNetwork, LoadedOracle};
use crate::sample::plan::{self, Overrides};
use crate::stable::{TOKENS, TextNetwork, text_network};

/// Timed passes after one that is not counted.
const PASSES: usize = 5;
/// No further pass is timed after this many seconds.
const SECONDS: f64 = 3.0;
/// Networks whose weights would take more memory than this are timed only if asked to.
const MOST_BYTES: u64 = 1 << 30;

/// Runs the command.
///
/// # Errors
/// If the model cannot be opened or run.
pub fn run(args: &InspectArgs) -> Result<()> {
    if let Some(path) = args.model.as_deref().filter(|path| classifier::is_classifier(path)) {
        return inspect_classifier(&classifier::open_variant(Some(path), args.variant.as_deref())?, args.json);
    }
    let of_texts = args.model.as_deref().map(|path| text_network(path, args.variant.as_deref())).transpose()?.flatten();
    if let Some(network) = of_texts {
        return inspect_text_network(&network, args.json);
    }
    let model = model::open_without_weights(args.model.as_deref(), args.variant.as_deref())?;
    let process = ProcessArgs::default();
    let options = Overrides::none(&process);
    // A model whose own sampler does not exist here can be looked into all the same.
    let scheduler = plan::scheduler(&model, &options);
    match model {
        Loaded::Oracle(oracle) => inspect_oracle(&oracle, args.json),
        Loaded::Network(network) => inspect_network(&network, scheduler, args.measure, args.json),
    }
}

fn inspect_oracle(oracle: &LoadedOracle, json: bool) -> Result<()> {
    let shape = oracle.oracle.shape();
    if json {
        return console::print_json(&json!({
            "model": oracle.name, "class": "oracle", "sample_shape": shape, "labels": oracle.labels,
        }));
    }
    let labels = if oracle.labels.is_empty() { "no labels".to_owned() } else { format!("labels {:?}", oracle.labels) };
    console::print(&format!("{}: the exact denoiser of a Gaussian mixture, samples {shape:?}, {labels}\n", oracle.name))
}

fn inspect_classifier(model: &LoadedClassifier, json: bool) -> Result<()> {
    let network = &model.network;
    let cost = network.image_shape().map(|shape| classifier_cost(network, shape)).transpose()?;
    if json {
        let mut document = json!({
            "model": model.name,
            "class": tweedie_unet::classifier::CLASS,
            "config": model.config(),
            "parameters": network.params().trainable(),
            "tensors": network.params().table().len(),
            "stored_types": model.stored_types,
            "stored_bytes": model.stored_bytes,
            "classes": network.classes(),
            "class_names": model.class_names,
            "noisy": model.noisy,
            "test_accuracy": model.accuracy,
            "features": network.config().features(),
            "in_channels": network.config().encoder.in_channels,
            "size_multiple": network.size_multiple(),
            "scheduler": model.scheduler.as_ref().map(|(_, path)| path.display().to_string()),
        });
        if let Some(cost) = &cost {
            cost.describe(&mut document);
        }
        return console::print_json(&document);
    }
    let mut text = format!("{} ({})\n\n", model.name, tweedie_unet::classifier::CLASS);
    if let Some(cost) = &cost {
        text += &table(&cost.summary);
        text.push('\n');
    }
    let mut line = |name: &str, value: String| text += &format!("{name:<12} {value}\n");
    let params = network.params();
    line("parameters", format!("{} in {} tensors", thousands(params.trainable() as u64), params.table().len()));
    line("weights", format!("{} stored ({})", console::bytes(model.stored_bytes), model.stored_types));
    line("classes", format!("{} from {} features", network.classes(), network.config().features()));
    line(
        "images",
        match (model.noisy, &model.scheduler) {
            (false, _) => "clean".to_owned(),
            (true, Some((_, path))) => format!("with the noise of {}", path.display()),
            (true, None) => "noisy; there is no scheduler config that tells how".to_owned(),
        },
    );
    let accuracy = model.accuracy.map_or("not recorded".to_owned(), |share| format!("{:.2} %", 100.0 * share));
    line("accuracy", format!("{accuracy} of the test images{}", if model.noisy { ", at the first step" } else { "" }));
    if let Some(cost) = &cost {
        line("operations", format!("{:.3} GFLOP per image", cost.summary.flops() as f64 / 1e9));
        line("speed", format!("{:.2} ms per image here, one at a time", 1e3 * cost.time.seconds()));
    }
    console::print(&text)
}

fn classifier_cost(network: &EncoderClassifier, [c, h, w]: [usize; 3]) -> Result<Cost> {
    let x = Array4::zeros((1, c, h, w));
    let time = Time::Measured(fastest(|| network.classify(x.view(), &[1.0]).map(|_| ()))?);
    Ok(Cost { summary: network.summary(h, w), size: [h, w], time })
}

fn inspect_text_network(model: &TextNetwork, json: bool) -> Result<()> {
    let config = &model.config;
    let [_, h, w] = config.image_shape().unwrap_or([config.in_channels, 64, 64]);
    let summary = config.summary(h, w);
    let (stored_bytes, stored_types) = model::stored(&model.weights);
    let seconds = summary.flops() as f64 / text_rate()?;
    let cost = Cost { size: [h, w], time: Time::Estimated(seconds), summary };
    let parameters: usize = model.weights.tensors().map(|tensor| tensor.shape.iter().product::<usize>()).sum();
    if json {
        let mut document = json!({
            "model": model.name,
            "class": tweedie_unet::cross::CLASS,
            "parameters": parameters,
            "tensors": model.weights.len(),
            "stored_types": stored_types,
            "stored_bytes": stored_bytes,
            "in_channels": config.in_channels,
            "out_channels": config.out_channels,
            "text_width": config.text_width,
            "size_multiple": config.size_multiple(),
        });
        cost.describe(&mut document);
        return console::print_json(&document);
    }
    let mut text = format!("{} ({})\n\n{}\n", model.name, tweedie_unet::cross::CLASS, table(&cost.summary));
    let mut line = |name: &str, value: String| text += &format!("{name:<12} {value}\n");
    line("parameters", format!("{} in {} tensors", thousands(parameters as u64), model.weights.len()));
    line("weights", format!("{} stored ({stored_types}), read where they are mapped", console::bytes(stored_bytes)));
    line("texts", format!("{} numbers for each token", config.text_width));
    line("images", format!("{} x {h} x {w}", config.in_channels));
    line("operations", format!("{:.1} GFLOP per image, with a text of 77 tokens", cost.summary.flops() as f64 / 1e9));
    line("speed", format!("about {seconds:.2} s per image and step here, at the speed of a small network"));
    console::print(&text)
}

/// What a forward pass of one image costs.
struct Cost {
    summary: Summary,
    size: [usize; 2],
    time: Time,
}

/// Seconds of a forward pass of one image.
#[derive(Clone, Copy)]
enum Time {
    /// The fastest of several passes.
    Measured(f64),
    /// From the operations of a small network, whose speed was measured.
    Estimated(f64),
}

impl Time {
    fn seconds(self) -> f64 {
        match self {
            Self::Measured(seconds) | Self::Estimated(seconds) => seconds,
        }
    }
}

fn inspect_network(model: &LoadedNetwork, scheduler: Result<SchedulerSpec>, measure: bool, json: bool) -> Result<()> {
    let cost = model.network.image_shape().map(|[_, h, w]| cost(model, h, w, measure)).transpose()?;
    if json {
        console::print_json(&document(model, &cost, &scheduler))
    } else {
        console::print(&text(model, &cost, &scheduler))
    }
}

fn cost(model: &LoadedNetwork, h: usize, w: usize, measure: bool) -> Result<Cost> {
    let network = &model.network;
    let summary = network.summary(h, w);
    let time = if measure || weights_bytes(network) + network.packed_bytes() <= MOST_BYTES {
        Time::Measured(seconds(network, h, w).with_context(|| format!("cannot run {}", model.name))?)
    } else {
        Time::Estimated(summary.flops() as f64 / rate()?)
    };
    Ok(Cost { summary, size: [h, w], time })
}

/// Operations per second of a small network here, as [`Summary::flops`] counts them.
///
/// # Errors
/// If it cannot be run.
pub fn rate() -> Result<f64> {
    let small = Model::from_config(&small_network())?;
    let [_, h, w] = small.image_shape().unwrap_or([1, 32, 32]);
    Ok(small.summary(h, w).flops() as f64 / seconds(&small, h, w)?)
}

/// A network whose speed stands for that of larger ones.
fn small_network() -> Config {
    let config = json!({
        "_class_name": "UNet2DModel", "sample_size": 32, "block_out_channels": [128, 256], "layers_per_block": 1,
        "down_block_types": ["DownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "UpBlock2D"],
    });
    config.as_object().cloned().unwrap_or_default()
}

/// [`rate`] of a network that reads texts, whose attention and linear layers have another speed than convolutions.
///
/// # Errors
/// If it cannot be run.
pub fn text_rate() -> Result<f64> {
    let config = json!({
        "_class_name": cross::CLASS, "sample_size": 32, "block_out_channels": [320, 640], "layers_per_block": 1,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "cross_attention_dim": 768, "attention_head_dim": 8,
    });
    let config = cross::Config::from_json(&config.as_object().cloned().unwrap_or_default())?;
    let [c, h, w] = config.image_shape().unwrap_or([4, 32, 32]);
    let (flops, width) = (config.summary(h, w).flops(), config.text_width);
    let network = Cross::new(config, &Zeros)?;
    let x = Array4::from_elem((1, c, h, w), 0.5);
    let condition = Condition::texts(vec![Arc::new(Array2::zeros((TOKENS, width)))]);
    Ok(flops as f64 / fastest(|| network.predict(x.view(), &[1.0], &condition).map(|_| ()))?)
}

/// Weights that are all zero: computing with them takes the time of any others.
struct Zeros;

impl WeightSource for Zeros {
    fn weight(&self, name: &str, shape: &[usize]) -> Result<Arc<dyn Stored>, UnetError> {
        Ok(Arc::new(self.vector(name, shape)?))
    }

    fn vector(&self, _: &str, shape: &[usize]) -> Result<Vec<f32>, UnetError> {
        Ok(vec![0.0; shape.iter().product()])
    }
}

/// Bytes of the weights as they are held, in f32.
fn weights_bytes(network: &Model) -> u64 {
    4 * network.params().len() as u64
}

/// Seconds of the fastest of a few passes. All weights may be zero: that takes the same time.
fn seconds(network: &Model, h: usize, w: usize) -> Result<f64> {
    let x = Array4::from_shape_fn((1, network.in_channels(), h, w), |(_, c, i, j)| {
        ((c + i * 7 + j * 3) % 11) as f32 / 11.0 - 0.5
    });
    let labels = network.classes() > 0 && !network.has_null_condition();
    // Not the first label or time: some embeddings take their logarithm.
    let condition = Condition::labels(vec![labels.then(|| network.classes() - 1)]);
    Ok(fastest(|| network.predict(x.view(), &[1.0], &condition).map(|_| ()))?)
}

/// Seconds of the fastest of a few passes.
fn fastest(pass: impl Fn() -> Result<(), DenoiserError>) -> Result<f64, DenoiserError> {
    // The first pass packs the weights.
    pass()?;
    let (start, mut best) = (Instant::now(), f64::INFINITY);
    for _ in 0..PASSES {
        let begin = Instant::now();
        pass()?;
        best = best.min(begin.elapsed().as_secs_f64());
        if start.elapsed().as_secs_f64() > SECONDS {
            break;
        }
    }
    Ok(best)
}

impl Cost {
    /// Bytes of the largest layer output of one image, and of all of them.
    fn activations(&self) -> [u64; 2] {
        let sizes = self.summary.layers.iter().map(|layer| 4 * layer.output.iter().product::<usize>() as u64);
        [sizes.clone().max().unwrap_or(0), sizes.sum()]
    }

    /// Adds it to a JSON document.
    fn describe(&self, document: &mut Value) {
        let layers = self.summary.layers.iter().map(|layer| {
            json!({
                "name": layer.name, "kind": layer.kind, "output": layer.output, "parameters": layer.params,
                "flops": layer.flops,
            })
        });
        let [largest, all] = self.activations();
        document["image_size"] = json!(self.size);
        document["layers"] = layers.collect();
        document["flops_per_image"] = json!(self.summary.flops());
        document["largest_activation_bytes"] = json!(largest);
        document["all_activations_bytes"] = json!(all);
        document["seconds_per_image"] = json!(self.time.seconds());
        document["seconds_are_measured"] = json!(matches!(self.time, Time::Measured(_)));
        document["flops_per_second"] = json!(self.summary.flops() as f64 / self.time.seconds());
    }
}

fn document(model: &LoadedNetwork, cost: &Option<Cost>, scheduler: &Result<SchedulerSpec>) -> Value {
    let network = &model.network;
    let params = network.params();
    let mut document = json!({
        "model": model.name,
        "class": model.class_name,
        "config": model.config(),
        "parameters": params.trainable(),
        "tensors": params.table().len(),
        "stored_types": model.stored_types,
        "stored_bytes": model.stored_bytes,
        "weights_bytes": weights_bytes(network),
        "packed_bytes": network.packed_bytes(),
        "classes": network.classes(),
        "null_condition": network.has_null_condition(),
        "in_channels": network.in_channels(),
        "out_channels": network.out_channels(),
        "size_multiple": network.size_multiple(),
        "first_timestep": first_timestep(model),
    });
    if let Some(cost) = cost {
        cost.describe(&mut document);
    }
    document["scheduler"] = match scheduler {
        Ok(spec) => scheduler_document(model, spec),
        Err(e) => json!({ "error": format!("{e:#}") }),
    };
    document
}

fn scheduler_document(model: &LoadedNetwork, spec: &SchedulerSpec) -> Value {
    json!({
        "file": model.scheduler.as_ref().map(|(_, path)| path.display().to_string()),
        "sampler": spec.solver.name(),
        "process": spec.process.name(),
        "train_steps": spec.train_steps,
        "betas": (spec.process == Process::Table).then(|| spec.betas.config_name()),
        "prediction": spec.prediction.name(),
        "spacing": spec.spacing.name(),
        "steps_offset": spec.steps_offset,
        "rescale_betas_zero_snr": spec.rescale_zero_snr,
        "clip": format!("{:?}", spec.clip),
    })
}

/// The number that the network sees at the first step of the process.
fn first_timestep(model: &LoadedNetwork) -> usize {
    usize::from(model.mapping() == TimestepMapping::OneBased)
}

fn text(model: &LoadedNetwork, cost: &Option<Cost>, scheduler: &Result<SchedulerSpec>) -> String {
    let network = &model.network;
    let params = network.params();
    let mut text = format!("{} ({})\n\n", model.name, model.class_name);
    if let Some(cost) = cost {
        text += &table(&cost.summary);
        text.push('\n');
    }
    let mut line = |name: &str, value: String| text += &format!("{name:<12} {value}\n");
    line("parameters", format!("{} in {} tensors", thousands(params.trainable() as u64), params.table().len()));
    line(
        "weights",
        format!(
            "{} in memory (f32), {} more prepared for the kernels, {} stored ({})",
            console::bytes(weights_bytes(network)),
            console::bytes(network.packed_bytes()),
            console::bytes(model.stored_bytes),
            model.stored_types
        ),
    );
    let labels = match (network.classes(), network.has_null_condition()) {
        (0, _) => "none".to_owned(),
        (n, true) => format!("0 to {}, or none", n - 1),
        (n, false) => format!("0 to {}", n - 1),
    };
    line("labels", labels);
    line("time", format!("the network sees t from {}", first_timestep(model)));
    match cost {
        Some(cost) => {
            let [h, w] = cost.size;
            let [largest, all] = cost.activations();
            line("images", format!("{} x {h} x {w}", network.in_channels()));
            line(
                "activations",
                format!("{} the largest, {} all, per image", console::bytes(largest), console::bytes(all)),
            );
            line("operations", format!("{:.3} GFLOP per image", cost.summary.flops() as f64 / 1e9));
            let seconds = cost.time.seconds();
            let rate = cost.summary.flops() as f64 / seconds / 1e9;
            line(
                "speed",
                match cost.time {
                    Time::Measured(_) => format!(
                        "{:.2} ms per image and step here (one image at a time; batches are faster), {rate:.1} GFLOP/s",
                        1e3 * seconds
                    ),
                    Time::Estimated(_) => format!(
                        "about {seconds:.2} s per image and step here, at the {rate:.0} GFLOP/s of a small network; \
                         --measure times this one"
                    ),
                },
            );
        }
        None => line("images", "of any size: the config does not tell sample_size".to_owned()),
    }
    match scheduler {
        Ok(spec) => {
            let process = match spec.process {
                Process::Table => {
                    let betas = spec.betas.config_name().unwrap_or("a table of its own");
                    let (predicts, spacing) = (spec.prediction.name(), spec.spacing.name());
                    format!("{betas} betas, T = {}, predicts {predicts}, {spacing} spacing", spec.train_steps)
                }
                other => format!("the {} process of continuous noise levels", other.name()),
            };
            line(
                "scheduler",
                format!(
                    "{}, {process}{}",
                    spec.solver.name(),
                    if model.scheduler.is_none() { " (usual for this kind; there is no scheduler config)" } else { "" }
                ),
            );
        }
        Err(e) => line("scheduler", format!("{e:#}")),
    }
    text
}

fn table(summary: &Summary) -> String {
    let width = |of: fn(&tweedie_unet::LayerSummary) -> &str, title: &str| {
        summary.layers.iter().map(|l| of(l).chars().count()).max().unwrap_or(0).max(title.len())
    };
    let (name, kind) = (width(|l| &l.name, "layer"), width(|l| &l.kind, "kind"));
    let mut text =
        format!("{:<name$}  {:<kind$}  {:>14}  {:>12}  {:>9}\n", "layer", "kind", "output", "parameters", "MFLOP");
    for layer in &summary.layers {
        let [c, h, w] = layer.output;
        let output = format!("{c} x {h} x {w}");
        let (params, mflop) = (thousands(layer.params as u64), layer.flops as f64 / 1e6);
        text += &format!("{:<name$}  {:<kind$}  {output:>14}  {params:>12}  {mflop:>9.3}\n", layer.name, layer.kind);
    }
    text
}

/// `1,234,567`.
fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_separated() {
        assert_eq!(
            ["0", "999", "1,000", "1,234,567"],
            [0, 999, 1000, 1_234_567].map(thousands).each_ref().map(String::as_str)
        );
    }
}
