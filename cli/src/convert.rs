//! `tweedie convert`: a model with its numbers stored in another type, or its files laid out in another way.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use serde_json::Value;
use tweedie_checkpoint::{Config, Dtype, Storage};
use tweedie_denoiser::{NetworkGrad, Params};

use crate::args::{Common, ModelArg};
use crate::classifier;
use crate::console;
use crate::model::{self, Layout};

/// `tweedie convert`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  tweedie convert --model runs/mnist --out digits-f16 --dtype f16        half the size, for sharing
  tweedie convert --model runs/mnist --out unet --layout component       the network alone, for UNet2DModel.from_pretrained

The new directory opens in diffusers, unless the network is the textbook's, which diffusers does not have. What a training run
keeps beside its model stays behind.")]
pub struct ConvertArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArg,
    /// The new directory
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Type of the stored numbers
    #[arg(long, value_name = "TYPE", default_value = "f32",
          value_parser = PossibleValuesParser::new(["f32", "f16", "bf16"]).map(|name| dtype(&name)))]
    pub dtype: Dtype,
    /// How the directory is laid out [default: pipeline, but component for the textbook network or without a scheduler]
    #[arg(long, value_name = "LAYOUT")]
    pub layout: Option<LayoutName>,
    /// Size of a file at most, such as 5GB or 500MB: larger weights become several files and an index
    #[arg(long, value_name = "SIZE", value_parser = file_size)]
    pub max_shard_size: Option<u64>,
}

/// Bytes as diffusers writes them, in decimal units.
fn file_size(text: &str) -> Result<u64, String> {
    let units = [("KB", 1_000), ("MB", 1_000_000), ("GB", 1_000_000_000)];
    let (digits, unit) =
        units.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit))).unwrap_or((text, 1));
    let size = digits.parse::<u64>().ok().filter(|size| *size > 0).and_then(|size| size.checked_mul(unit));
    size.ok_or_else(|| "expected a size such as 5GB, 500MB, 64KB or a number of bytes".to_owned())
}

/// `--layout`.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayoutName {
    /// model_index.json, unet/ and scheduler/: a diffusers pipeline
    Pipeline,
    /// config.json beside the weights: a single network, or a `book` directory
    Component,
}

fn dtype(name: &str) -> Dtype {
    match name {
        "f16" => Dtype::F16,
        "bf16" => Dtype::BF16,
        _ => Dtype::F32,
    }
}

/// What is converted: a diffusion model or a classifier.
struct Source {
    name: String,
    class_name: String,
    network: Value,
    scheduler: Option<Value>,
    params: Params,
}

impl Source {
    fn open(arg: &ModelArg) -> Result<Self> {
        let object = |config: (Config, PathBuf)| Value::Object(config.0);
        if let Some(path) = arg.model.as_deref().filter(|path| classifier::is_classifier(path)) {
            let model = classifier::open_variant(Some(path), arg.variant.as_deref())?;
            return Ok(Self {
                class_name: tweedie_unet::classifier::CLASS.to_owned(),
                network: Value::Object(model.config()),
                params: model.network.params().clone(),
                scheduler: model.scheduler.map(object),
                name: model.name,
            });
        }
        let model = model::open_network(arg.model.as_deref(), arg.variant.as_deref())?;
        Ok(Self {
            network: Value::Object(model.config()),
            params: model.network.params().clone(),
            scheduler: model.scheduler.map(object),
            class_name: model.class_name,
            name: model.name,
        })
    }
}

/// Runs the command.
///
/// # Errors
/// If the model cannot be opened, a number does not fit the type, the layout does not fit the model, or the directory is taken
/// or cannot be written; then nothing is left of it.
pub fn run(args: &ConvertArgs, common: &Common) -> Result<()> {
    if args.out.exists() {
        return Err(console::usage(format!("--out {} exists already; give a new directory", args.out.display())));
    }
    let Source { name, class_name, network, scheduler, params } = Source::open(&args.model)?;
    let layout = match args.layout {
        Some(LayoutName::Pipeline) => Layout::Pipeline,
        Some(LayoutName::Component) => Layout::Component,
        None => Layout::usual(&class_name, scheduler.is_some()),
    };
    std::fs::create_dir_all(&args.out).with_context(|| format!("cannot create {}", args.out.display()))?;
    let storage = Storage { dtype: args.dtype, max_shard_size: args.max_shard_size };
    if let Err(e) = model::write(&args.out, layout, &network, scheduler.as_ref(), &params, storage) {
        // It did not exist before, and half a model is no model.
        std::fs::remove_dir_all(&args.out).ok();
        return Err(e.context(format!("cannot convert {name}")));
    }
    console::report(common, &format!("wrote {}: {class_name} with {} parameters", args.out.display(), params.len()));
    Ok(())
}
