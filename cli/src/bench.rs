//! `tweedie bench`: how fast a model runs on this machine, forward or in training.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use ndarray::{Array2, Array4};
use serde_json::json;
use tweedie_data::Dataset;
use tweedie_denoiser::{Condition, Network};
use tweedie_kernels::simd::Isa;
use tweedie_train::{TrainConfig, Trainer};
use tweedie_unet::Cross;

use crate::args::{Common, ModelArg};
use crate::console;
use crate::model::{self, LoadedNetwork};
use crate::stable::{Component, TOKENS, component, text_network};

/// Passes that are not counted: they pack weights and fill the buffers.
const WARM_UP: usize = 2;
/// The fewest passes that are counted.
const FEWEST: usize = 3;

/// `tweedie bench`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  tweedie bench                                   forward passes of the bundled model, 64 images at once
  tweedie bench --train --seconds 20              training steps: noise, both passes, AdamW, moving average
  tweedie bench --model runs/mnist --batch 1      the latency of one image
  tweedie bench --model sd/unet --batch 2         a guided step of Stable Diffusion
  tweedie bench --model sd/vae --batch 1          its decoder
  tweedie bench --model sd/text_encoder --batch 2 its text encoder

Work is counted as direct convolution, a multiplication and an addition as two operations, and a training step as three
forward passes. A faster algorithm shows as more work per second, and may pass the machine's peak.")]
pub struct BenchArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArg,
    /// Images or texts at once
    #[arg(long, value_name = "B", default_value = "64")]
    pub batch: std::num::NonZeroUsize,
    /// Time training steps instead of forward passes
    #[arg(long)]
    pub train: bool,
    /// How long to measure
    #[arg(long, value_name = "S", default_value_t = 5.0, value_parser = seconds)]
    pub seconds: f64,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

fn seconds(text: &str) -> Result<f64, String> {
    let limit = 86_400.0;
    text.parse::<f64>()
        .ok()
        .filter(|s| *s > 0.0 && *s <= limit)
        .ok_or_else(|| format!("expected a number in (0, {limit}]"))
}

/// Runs the command.
///
/// # Errors
/// If the model cannot be opened or run.
pub fn run(args: &BenchArgs, common: &Common) -> Result<()> {
    let mut model = Subject::open(args)?;
    let shape = model.shape()?;
    let batch = args.batch.get();
    if batch.saturating_mul(shape.iter().product()) > 1 << 28 {
        let [c, h, w] = shape;
        return Err(console::usage(format!("--batch {batch} is too many inputs of {c} x {h} x {w} at once")));
    }
    let idle = peak_memory();
    let forward = model.flops(shape);
    let (flops, times) = match &mut model {
        Subject::Labels(model) if args.train => (3 * forward, time_training(model, shape, batch, args.seconds)?),
        model => (forward, model.time_forward(shape, batch, args.seconds)?),
    };
    let (peak, name) = (peak_memory(), model.name());
    let (work, things) = if args.train { ("training step", "images") } else { model.work() };
    let rate = |seconds: f64| batch as f64 / seconds;
    let (best, median) = (times[0], times[times.len() / 2]);
    let threads = rayon::current_num_threads();
    if args.json {
        return console::print_json(&json!({
            "model": name,
            "work": work,
            "batch": batch,
            "passes": times.len(),
            "seconds_median": median,
            "seconds_best": best,
            "seconds": times,
            "images_per_second": rate(median),
            "images_per_second_best": rate(best),
            "gflops_per_image": flops as f64 / 1e9,
            "effective_gflops_per_second": flops as f64 * rate(median) / 1e9,
            "peak_memory_bytes": peak,
            "peak_memory_over_idle_bytes": peak.zip(idle).map(|(peak, idle)| peak - idle),
            "instruction_set": Isa::best().name(),
            "threads": threads,
            "version": env!("CARGO_PKG_VERSION"),
        }));
    }
    let memory = peak.zip(idle).map_or_else(
        || "not known on this system".to_owned(),
        |(peak, idle)| format!("{} peak, {} over the loaded model", console::bytes(peak), console::bytes(peak - idle)),
    );
    console::report(common, &format!("{} {work}s of {batch} {things}, after {WARM_UP} not counted", times.len()));
    console::print(&format!(
        "model        {name}\nwork         {work}, batch {batch}\nspeed        {} {things}/s (median; best {})\n\
         time         {:.2} ms each\noperations   {:.3} GFLOP each, {:.1} GFLOP/s\nmemory       {memory}\n\
         machine      {}, {threads} threads\n",
        speed(rate(median)),
        speed(rate(best)),
        1e3 * median / batch as f64,
        flops as f64 / 1e9,
        flops as f64 * rate(median) / 1e9,
        Isa::best().name(),
    ))
}

/// A number of things in a second, with three digits at least.
fn speed(rate: f64) -> String {
    let digits = if rate < 10.0 { 3 } else { 1 };
    format!("{rate:.digits$}")
}

/// What is timed.
enum Subject {
    /// A network that may take class labels.
    Labels(Box<LoadedNetwork>),
    /// A network that reads texts.
    Text { name: String, network: Box<Cross> },
    /// A decoder or a text encoder.
    Other { name: String, network: Component },
}

impl Subject {
    fn open(args: &BenchArgs) -> Result<Self> {
        let (path, variant) = (args.model.model.as_deref(), args.model.variant.as_deref());
        let of_texts = path.map(|path| text_network(path, variant)).transpose()?.flatten();
        let other = path.map(|path| component(path, variant)).transpose()?.flatten();
        let name = path.map(|path| path.display().to_string()).unwrap_or_default();
        if args.train && (of_texts.is_some() || other.is_some()) {
            bail!("{name}: the networks of Stable Diffusion are only run here; leave --train out");
        }
        Ok(match (of_texts, other) {
            (Some(network), _) => Self::Text { name, network: Box::new(network.network()?) },
            (None, Some(network)) => Self::Other { name, network },
            (None, None) => Self::Labels(Box::new(model::open_network(path, variant)?)),
        })
    }

    fn name(&self) -> &str {
        match self {
            Self::Labels(model) => &model.name,
            Self::Text { name, .. } | Self::Other { name, .. } => name,
        }
    }

    /// What is done, and with what.
    fn work(&self) -> (&'static str, &'static str) {
        match self {
            Self::Labels(_) | Self::Text { .. } => ("forward", "images"),
            Self::Other { network: Component::Autoencoder(_), .. } => ("decoding", "images"),
            Self::Other { network: Component::TextEncoder(_), .. } => ("encoding", "texts"),
        }
    }

    /// Channels, height and width of an input; the length of a text.
    fn shape(&self) -> Result<[usize; 3]> {
        let shape = match self {
            Self::Labels(model) => model.network.image_shape(),
            Self::Text { network, .. } => network.config().image_shape(),
            Self::Other { network: Component::Autoencoder(network), .. } => {
                let (config, factor) = (network.config(), network.config().spatial_factor());
                config.sample_size.map(|[h, w]| [config.latent_channels, h / factor, w / factor])
            }
            Self::Other { network: Component::TextEncoder(encoder), .. } => {
                Some([1, 1, TOKENS.min(encoder.config().positions)])
            }
        };
        let Some(shape) = shape else {
            bail!("{}: the network's config does not say how large its images are (sample_size is null)", self.name());
        };
        Ok(shape)
    }

    fn flops(&self, [_, h, w]: [usize; 3]) -> u64 {
        match self {
            Self::Labels(model) => model.network.summary(h, w).flops(),
            Self::Text { network, .. } => network.config().summary(h, w).flops(),
            Self::Other { network: Component::Autoencoder(network), .. } => {
                network.config().decoder_summary(h, w).flops()
            }
            Self::Other { network: Component::TextEncoder(encoder), .. } => encoder.config().flops(w),
        }
    }

    fn time_forward(&self, shape: [usize; 3], batch: usize, seconds: f64) -> Result<Vec<f64>> {
        let [c, h, w] = shape;
        let x =
            Array4::from_shape_fn((batch, c, h, w), |(n, c, i, j)| ((n * 5 + c + i * 7 + j * 3) % 11) as f32 / 11.0);
        let steps: Vec<f64> = (0..batch).map(|i| (i * 37 % 1000) as f64).collect();
        let failed = || format!("cannot run {}", self.name());
        let predict = |network: &dyn Network, condition: &Condition| {
            time(seconds, || network.predict(x.view(), &steps, condition).map(drop).with_context(failed))
        };
        match self {
            Self::Labels(model) => {
                predict(&model.network, &Condition::labels((0..batch).map(|i| label(&model.network, i)).collect()))
            }
            Self::Text { network, .. } => {
                let width = network.config().text_width;
                let text = Array2::from_shape_fn((TOKENS, width), |(i, j)| ((i * 3 + j * 5) % 13) as f32 / 6.5 - 1.0);
                let text = Arc::new(text);
                predict(&**network, &Condition::texts(vec![text; batch]))
            }
            Self::Other { network: Component::Autoencoder(network), .. } => {
                time(seconds, || network.decode(x.view()).map(drop).with_context(failed))
            }
            Self::Other { network: Component::TextEncoder(encoder), .. } => {
                let vocabulary = encoder.config().vocabulary;
                let text = |n: usize| (0..w).map(|i| ((n * 101 + i * 7919) % vocabulary) as u32).collect();
                let texts: Vec<Vec<u32>> = (0..batch).map(text).collect();
                time(seconds, || encoder.states(&texts, 0).map(drop).with_context(failed))
            }
        }
    }
}

/// Seconds of each counted call, in ascending order.
fn time(seconds: f64, mut call: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    for _ in 0..WARM_UP {
        call()?;
    }
    let (start, mut times) = (Instant::now(), Vec::new());
    while times.len() < FEWEST || start.elapsed().as_secs_f64() < seconds {
        let begin = Instant::now();
        call()?;
        times.push(begin.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// A label for image `i`, if the network knows any.
fn label(network: &impl Network, i: usize) -> Option<usize> {
    (network.classes() > 0).then(|| i % network.classes())
}

fn time_training(model: &mut LoadedNetwork, shape: [usize; 3], batch: usize, seconds: f64) -> Result<Vec<f64>> {
    let classes = model.network.classes();
    let images = batch.max(classes);
    let pixels = (0..images * shape.iter().product::<usize>()).map(|i| (i * 37 % 251) as u8).collect();
    let labels = (classes > 0).then(|| (0..images).map(|i| (i % classes) as u32).collect());
    let data = Dataset::new("patterns", shape, pixels, labels)?;
    let config = TrainConfig {
        batch,
        timestep: model.mapping(),
        range: model.range(),
        label_dropout: if model.network.has_null_condition() { 0.1 } else { 0.0 },
        ..TrainConfig::default()
    };
    let mut trainer = Trainer::new(&mut model.network, &data, config)?;
    time(seconds, || {
        trainer.step()?;
        Ok(())
    })
}

/// The most memory that this process has held so far, in bytes, where the system tells.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}
