//! `tweedie eval`: how likely a model finds data.

mod args;
mod data;
mod likelihood;
mod plot;
mod report;

use std::time::Instant;

use anyhow::Result;
use tweedie_checkpoint::atomic_write;

use crate::args::Common;
use crate::{console, model};

pub use args::EvalArgs;

/// Runs the command.
///
/// # Errors
/// If the model, the data or an option cannot be used, a result is not finite, or the plot cannot be written.
pub fn run(args: &EvalArgs, common: &Common) -> Result<()> {
    args::check_metrics(&args.metrics)?;
    if let Some(path) = &args.plot {
        crate::sample::check_directory(path)?;
    }
    let start = Instant::now();
    let model = model::open(args.model.model.as_deref(), args.model.variant.as_deref())?;
    let data = data::open(&model, args, common)?;
    let result = likelihood::run(&model, &data, args, common)?;
    let seconds = start.elapsed();
    if let Some(path) = &args.plot {
        atomic_write(path, plot::terms(&result, &report::title(&model, &data, &result))?.as_bytes())?;
        console::report(common, &format!("wrote {}", path.display()));
    }
    if args.json {
        return console::print_json(&report::json(&model, &data, &result, args, seconds.as_secs_f64()));
    }
    console::report(common, &format!("took {}", console::seconds(seconds)));
    console::print(&report::text(&model, &data, &result, args))
}
