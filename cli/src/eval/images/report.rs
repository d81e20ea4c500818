//! The metrics of images as a table for people and as a part of the JSON document.

use serde_json::{Map, Value, json};
use tweedie_data::Range;

use super::compute::Figure;
use super::{Judged, Reference};

/// The table.
pub fn text(judged: &Judged) -> String {
    let mut text = format!("samples   {}\n", samples(judged));
    if let Some(drawn) = &judged.drawn {
        text += &format!("drawn     {}\n", drawn.text);
    }
    if let Some(reference) = &judged.reference {
        text += &format!("against   {}\n", of_reference(reference));
    }
    text += &format!("features  {}, seed {}\n\n", features(judged), judged.seed);
    let baseline = judged.baseline.as_ref();
    let title = baseline.map_or_else(String::new, |(reference, _)| format!("  {}", reference.short()));
    text += &format!("{:<14} {:>11}  {:<25}{title}\n", "", "value", "95 % interval");
    for figure in &judged.figures {
        let interval = figure
            .interval
            .map_or_else(|| "-".to_owned(), |(low, high)| format!("{} to {}", number(low), number(high)));
        let same = baseline.and_then(|(_, figures)| figures.iter().find(|other| other.metric == figure.metric));
        let other = same.map_or_else(String::new, |figure| format!("  {}", number(figure.value)));
        let line = format!("{:<14} {:>11}  {interval:<25}{other}", name(figure), number(figure.value));
        text += line.trim_end();
        text.push('\n');
    }
    for note in &judged.notes {
        text += &format!("\n{note}");
    }
    if !judged.notes.is_empty() {
        text.push('\n');
    }
    text
}

fn name(figure: &Figure) -> String {
    match figure.details.get("k") {
        Some(k) => format!("{} (k={k})", figure.metric.name()),
        None => figure.metric.name().to_owned(),
    }
}

fn number(value: f64) -> String {
    match value.abs() {
        size if size != 0.0 && size < 1e-3 => format!("{value:.3e}"),
        size if size < 10.0 => format!("{value:.4}"),
        size if size < 1e5 => format!("{value:.2}"),
        _ => format!("{value:.4e}"),
    }
}

fn samples(judged: &Judged) -> String {
    let labels = match judged.labelled {
        true => ", with labels",
        false => "",
    };
    let pixels = match (&judged.range, judged.quantise) {
        (None, _) => String::new(),
        (Some(range), true) => format!(", clamped to {} and rounded to bytes", interval(*range)),
        (Some(range), false) => format!(", clamped to {}", interval(*range)),
    };
    format!("{}: {}{labels}{pixels}", judged.samples, judged.count)
}

fn of_reference(reference: &Reference) -> String {
    let split = reference.split.map_or_else(String::new, |split| format!(", {split}"));
    let count = match reference.available {
        Some(all) if all != reference.count => format!("{} of {all}", reference.count),
        _ => format!("all {}", reference.count),
    };
    format!("{}{split}: {count}", reference.name)
}

fn features(judged: &Judged) -> String {
    let accuracy = judged
        .accuracy
        .map_or_else(String::new, |share| format!(", which names {:.2} % of its own test images right", 100.0 * share));
    format!("{} of {}{accuracy}", judged.dims, judged.network)
}

fn interval(range: Range) -> &'static str {
    match range {
        Range::MinusOneOne => "[-1, 1]",
        Range::ZeroOne => "[0, 1]",
    }
}

fn figures(figures: &[Figure]) -> Map<String, Value> {
    let entry = |figure: &Figure| {
        let mut entry = json!({
            "value": figure.value,
            "interval": figure.interval.map(|(low, high)| [low, high]),
        });
        if let (Some(entry), Some(details)) = (entry.as_object_mut(), figure.details.as_object()) {
            entry.extend(details.clone());
        }
        (figure.metric.name().to_owned(), entry)
    };
    figures.iter().map(entry).collect()
}

fn reference(reference: &Reference) -> Value {
    json!({
        "name": reference.name,
        "split": reference.split.map(|split| split.to_string()),
        "count": reference.count,
        "available": reference.available,
    })
}

/// Adds the metrics to the document of the command.
pub fn add(document: &mut Value, judged: &Judged) {
    if let Some(metrics) = document["metrics"].as_object_mut() {
        metrics.extend(figures(&judged.figures));
    }
    document["samples"] = json!({
        "name": judged.samples,
        "count": judged.count,
        "labels": judged.labelled,
        "range": judged.range.map(interval),
        "quantised": judged.range.map(|_| judged.quantise),
        "drawn": judged.drawn.as_ref().map(|drawn| &drawn.parameters),
    });
    document["reference"] = judged.reference.as_ref().map_or(Value::Null, reference);
    document["features"] = json!({
        "network": judged.network,
        "count": judged.dims,
        "accuracy": judged.accuracy,
    });
    document["baseline"] = judged
        .baseline
        .as_ref()
        .map_or(Value::Null, |(of, found)| json!({ "data": reference(of), "metrics": figures(found) }));
    document["notes"] = json!(judged.notes);
}
