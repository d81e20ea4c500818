//! `tweedie convert`: a model with its numbers stored in another type.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde_json::Value;
use tweedie_checkpoint::Dtype;
use tweedie_denoiser::NetworkGrad;

use crate::args::{Common, ModelArg};
use crate::console;
use crate::model;

/// `tweedie convert`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Example:
  tweedie convert --model runs/mnist --out digits-f16 --dtype f16     half the size, for sharing

The new directory has the layout of its class and opens in diffusers; what a training run keeps beside its model stays behind.")]
pub struct ConvertArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArg,
    /// The new directory
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Type of the stored numbers
    #[arg(long, value_name = "TYPE", default_value = "f32",
          value_parser = PossibleValuesParser::new(["f32", "f16"]).map(|name| if name == "f16" { Stored::F16 } else { Stored::F32 }))]
    pub dtype: Stored,
}

/// Type of the stored numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// Four bytes each, as they are computed with.
    F32,
    /// Two bytes each, rounded to nearest.
    F16,
}

/// Runs the command.
///
/// # Errors
/// If the model cannot be opened, a number does not fit the type, or the directory is taken or cannot be written.
pub fn run(args: &ConvertArgs, common: &Common) -> Result<()> {
    if args.out.exists() {
        return Err(console::usage(format!("--out {} exists already; give a new directory", args.out.display())));
    }
    let model = model::open_network(args.model.model.as_deref())?;
    let dtype = match args.dtype {
        Stored::F32 => Dtype::F32,
        Stored::F16 => Dtype::F16,
    };
    let scheduler = model.scheduler.as_ref().map(|(config, _)| Value::Object(config.clone()));
    let network = Value::Object(model.config());
    std::fs::create_dir_all(&args.out).with_context(|| format!("cannot create {}", args.out.display()))?;
    model::write(&args.out, &network, scheduler.as_ref(), model.network.params(), dtype)?;
    console::report(
        common,
        &format!("wrote {}: {} with {} parameters", args.out.display(), model.class_name, model.network.params().len()),
    );
    Ok(())
}
