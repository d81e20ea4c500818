//! `tweedie eval`: how likely a model finds data, and how close what it draws is to data.

mod args;
mod data;
pub mod images;
mod likelihood;
mod metric;
mod plot;
mod report;

use std::time::Instant;

use anyhow::Result;
use tweedie_checkpoint::atomic_write;

use crate::args::Common;
use crate::{console, model};

pub use args::{EvalArgs, SplitName};
use metric::{Metric, Wanted};

/// Runs the command.
///
/// # Errors
/// If the model, the data, the samples or an option cannot be used, a result is not finite, or the plot cannot be written.
pub fn run(args: &EvalArgs, common: &Common) -> Result<()> {
    let wanted = Wanted::of(args)?;
    if let Some(path) = &args.plot {
        crate::sample::check_directory(path)?;
    }
    let start = Instant::now();
    // What may be refused is opened before anything takes time.
    let open = || model::open(args.model.model.as_deref(), args.model.variant.as_deref());
    let model = (wanted.has(Metric::Nll) || wanted.draws).then(open).transpose()?;
    let likely = match model.as_ref().filter(|_| wanted.has(Metric::Nll)) {
        Some(model) => Some((model, data::open(model, args, common)?)),
        None => None,
    };
    let judged = wanted.of_images().then(|| images::run(args, &wanted, model.as_ref(), common)).transpose()?;
    let result = match &likely {
        Some((model, data)) => Some((model, data, likelihood::run(model, data, args, common)?)),
        None => None,
    };
    let seconds = start.elapsed();
    if let (Some(path), Some((model, data, result))) = (&args.plot, &result) {
        atomic_write(path, plot::terms(result, &report::title(model, data, result))?.as_bytes())?;
        console::report(common, &format!("wrote {}", path.display()));
    }
    if args.json {
        let mut document = match &result {
            Some((model, data, result)) => report::json(model, data, result, args, seconds.as_secs_f64()),
            None => report::empty(args, seconds.as_secs_f64()),
        };
        if let Some(judged) = &judged {
            images::report::add(&mut document, judged);
        }
        return console::print_json(&document);
    }
    console::report(common, &format!("took {}", console::seconds(seconds)));
    let of_model = result.as_ref().map(|(model, data, result)| report::text(model, data, result, args));
    let tables: Vec<String> = of_model.into_iter().chain(judged.as_ref().map(images::report::text)).collect();
    console::print(&tables.join("\n"))
}
