//! The result as a table for people and as a JSON document.

use serde_json::{Value, json};
use tweedie_eval::ode::Trace;
use tweedie_eval::vlb::SampleBound;
use tweedie_eval::{Estimate, Steps};
use tweedie_samplers::Clip;
use tweedie_schedule::Variance;

use super::args::EvalArgs;
use super::data::Data;
use super::likelihood::{Likelihood, OdeResult};
use crate::model::Loaded;

/// A part of the bound: its name in the document, what the table calls it, and its value.
type Part = (&'static str, &'static str, fn(&SampleBound) -> f64);

/// Every part.
const PARTS: [Part; 4] = [
    ("prior", "prior    L_T", |b| b.prior),
    ("steps", "steps    L_1 .. L_(T-1)", |b| b.steps),
    ("decoder", "decoder  L_0", |b| b.decoder),
    ("total", "bound    their sum", SampleBound::total),
];

/// One line about the result.
pub fn title(model: &Loaded, data: &Data, result: &Likelihood) -> String {
    let bits = result.bits(result.nats(SampleBound::total));
    let split = data.split.map_or_else(String::new, |split| format!(" {split}"));
    format!("{} on {}{split}: {} bits/dim", model.name(), data.name, with_error(bits, 4))
}

fn with_error(estimate: Estimate, digits: usize) -> String {
    let error = estimate.standard_error.map_or_else(String::new, |error| format!(" ± {error:.digits$}"));
    format!("{:.digits$}{error}", estimate.mean)
}

/// The table.
pub fn text(model: &Loaded, data: &Data, result: &Likelihood, args: &EvalArgs) -> String {
    let mut text = format!("model     {}\ndata      {}\n", model.name(), samples(data, args));
    text += &format!(
        "process   T = {}, variance {}, {}, {}\n\n",
        result.train_steps,
        variance(result.variance),
        match result.steps {
            Steps::All => "every step".to_owned(),
            Steps::Stratified { per_sample } => format!("{per_sample} random steps for each sample"),
        },
        match result.clip {
            Clip::None => "no clipping".to_owned(),
            Clip::Range(range) => format!("x_0 clipped to ±{range}"),
            _ => "x_0 thresholded".to_owned(),
        },
    );
    text += &format!("{:<32} {:>12} {:>9} {:>11} {:>8}\n", "", "nats/sample", "±", "bits/dim", "±");
    for (_, name, part) in PARTS {
        let nats = result.nats(part);
        text += &row(name, nats, result.bits(nats));
    }
    if let Some(exact) = &result.exact {
        text += &row("exact    -ln p(x_0)", exact.nll, result.bits(exact.nll));
        text += &row("         bound - exact", exact.gap, result.bits(exact.gap));
    }
    if let Some(ode) = &result.ode {
        text += &row(if result.bins.is_some() { "ODE      dequantised" } else { "ODE" }, ode.nll, ode.bits);
        if let Some(error) = ode.error {
            text += &row("         ODE - exact", error, result.bits(error));
        }
        text += &format!("\n{}\n", of_ode(ode, result.bins.is_some()));
    }
    text
}

fn row(name: &str, nats: Estimate, bits: Estimate) -> String {
    let number = |value: f64, digits: usize| {
        let least = 10f64.powi(-(digits as i32));
        if value != 0.0 && value.abs() < least { format!("{value:.1e}") } else { format!("{value:.digits$}") }
    };
    let error = |e: Estimate, digits| e.standard_error.map_or_else(|| "-".to_owned(), |e| number(e, digits));
    format!(
        "{name:<32} {:>12} {:>9} {:>11} {:>8}\n",
        number(nats.mean, 3),
        error(nats, 3),
        number(bits.mean, 4),
        error(bits, 4)
    )
}

fn samples(data: &Data, args: &EvalArgs) -> String {
    let n = data.x0.dim().0;
    let split = data.split.map_or_else(String::new, |split| format!(", {split}"));
    let count = match data.available {
        Some(all) if all == n => format!("all {n} samples"),
        Some(all) => format!("{n} of {all} samples"),
        None => format!("{n} samples"),
    };
    let labels = if data.condition.is_null() { "without labels" } else { "each under its own label" };
    format!("{}{split}: {count}, {labels}, seed {}", data.name, args.seed)
}

fn of_ode(ode: &OdeResult, pixels: bool) -> String {
    let trace = match ode.ode.trace {
        Trace::Exact => "exact divergence".to_owned(),
        Trace::Hutchinson { probes, .. } => {
            let error =
                ode.probe_error.map_or_else(String::new, |e| format!(", which leave ± {e:.3} nats of the mean"));
            let plural = if probes == 1 { "" } else { "s" };
            format!("{probes} probe{plural} for each sample{error}")
        }
    };
    let pixels = if pixels {
        "; the bits are those of uniformly dequantised pixels, an upper bound of the pixels' own"
    } else {
        ""
    };
    format!(
        "The ODE ran from sigma/alpha = {:.3e} to {:.3e} in {} steps with {trace}. Its normal prior is off by at most\n\
         {:.1e} nats on average{pixels}.",
        ode.ode.sigma_min, ode.ode.sigma_max, ode.ode.steps, ode.prior.mean
    )
}

fn variance(variance: Variance) -> &'static str {
    match variance {
        Variance::FixedSmall => "small",
        Variance::FixedLarge => "large",
        Variance::Unit => "unit",
        Variance::LearnedRange => "learned",
        _ => "interpolated",
    }
}

fn estimate(estimate: Estimate) -> Value {
    json!({ "mean": estimate.mean, "standard_error": estimate.standard_error })
}

/// The document.
pub fn json(model: &Loaded, data: &Data, result: &Likelihood, args: &EvalArgs, seconds: f64) -> Value {
    let part = |unit: &dyn Fn(Estimate) -> Estimate| {
        let parts = PARTS.map(|(name, _, part)| (name.to_owned(), estimate(unit(result.nats(part)))));
        Value::Object(parts.into_iter().collect())
    };
    let (per_sample, all) = match result.steps {
        Steps::All => (None, true),
        Steps::Stratified { per_sample } => (Some(per_sample), false),
    };
    let terms: Vec<Value> = result
        .vlb
        .terms
        .iter()
        .map(|term| {
            json!({
                "t": term.t,
                "nats": term.estimate.mean,
                "standard_error": term.estimate.standard_error,
                "count": term.estimate.count,
            })
        })
        .collect();
    let mut nll = json!({
        "bound": { "nats": part(&|e| e), "bits_per_dim": part(&|e| result.bits(e)) },
        "terms": terms,
    });
    if let Some(exact) = &result.exact {
        nll["exact"] = json!({
            "nats": estimate(exact.nll),
            "bits_per_dim": estimate(result.bits(exact.nll)),
            "bound_minus_exact_nats": estimate(exact.gap),
        });
    }
    if let Some(found) = &result.ode {
        let probes = match found.ode.trace {
            Trace::Exact => None,
            Trace::Hutchinson { probes, .. } => Some(probes),
        };
        nll["ode"] = json!({
            "nats": estimate(found.nll),
            "bits_per_dim": estimate(found.bits),
            "dequantised": result.bins.is_some(),
            "probes": probes,
            "probe_error_nats": found.probe_error,
            "prior_error_bound_nats": found.prior.mean,
            "ode_minus_exact_nats": found.error.map(estimate),
            "sigma_min": found.ode.sigma_min,
            "sigma_max": found.ode.sigma_max,
            "steps": found.ode.steps,
        });
    }
    let clip = match result.clip {
        Clip::None => json!(null),
        Clip::Range(range) => json!({ "range": range }),
        Clip::Dynamic { ratio, max } => json!({ "ratio": ratio, "max": max }),
        _ => json!("unknown"),
    };
    json!({
        "model": model.name(),
        "data": {
            "name": data.name,
            "split": data.split.map(|split| split.to_string()),
            "samples": data.x0.dim().0,
            "available": data.available,
            "shape": data.shape()[1..],
            "labels": if data.condition.is_null() { "none" } else { "own" },
        },
        "process": {
            "train_steps": result.train_steps,
            "variance": variance(result.variance),
            "clip": clip,
            "all_steps": all,
            "steps_per_sample": per_sample,
            "decoder_bins": result.bins.map(|bins| bins.count()),
        },
        "seed": args.seed,
        "metrics": { "nll": nll },
        "seconds": seconds,
        "version": env!("CARGO_PKG_VERSION"),
    })
}

/// The document where the likelihood is not wanted.
pub fn empty(args: &EvalArgs, seconds: f64) -> Value {
    json!({ "seed": args.seed, "metrics": {}, "seconds": seconds, "version": env!("CARGO_PKG_VERSION") })
}
