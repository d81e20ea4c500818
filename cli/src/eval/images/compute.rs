//! The metrics of two sets of features.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tweedie_eval::{
    Confusion, Estimate, Factored, KidOptions, Moments, Prdc, Share, Z95, frechet_error, frechet_extrapolated,
    inception_score, kid, mmd2,
};

use super::args::ImageArgs;
use super::extract::Extracted;
use crate::args::Common;
use crate::console;
use crate::eval::metric::Metric;

/// Resamples of the Fréchet distance, unless told otherwise.
const RESAMPLES: usize = 50;
/// Sizes of subsets that the Fréchet distance is extrapolated from, as by Chong & Forsyth.
const POINTS: usize = 15;
/// Splits of the inception score, unless told otherwise.
const SPLITS: usize = 10;

/// How the metrics are computed.
pub struct Settings {
    /// k of precision and recall, as by Kynkäänniemi et al.
    pub k_recall: usize,
    /// k of density and coverage, as by Naeem et al.
    pub k_coverage: usize,
    /// Of the kernel distance.
    pub kid: KidOptions,
    /// Of the inception score.
    pub splits: usize,
    /// For the interval of the Fréchet distance; 0 for none.
    pub resamples: usize,
    /// Of all that is random.
    pub seed: u64,
}

impl Settings {
    /// The usual ones, but for the resamples of the Fréchet distance.
    pub fn usual(resamples: usize, seed: u64) -> Self {
        Self { resamples, ..Self::new(&ImageArgs::default(), seed) }
    }

    /// What the options say.
    pub fn new(args: &ImageArgs, seed: u64) -> Self {
        let or = |given: Option<std::num::NonZeroUsize>, default| given.map_or(default, Into::into);
        let usual = KidOptions::default();
        Self {
            k_recall: or(args.neighbours, 3),
            k_coverage: or(args.neighbours, 5),
            kid: KidOptions { subsets: or(args.kid_subsets, usual.subsets), size: or(args.kid_size, usual.size), seed },
            splits: or(args.splits, SPLITS),
            resamples: args.resamples.unwrap_or(RESAMPLES),
            seed,
        }
    }
}

/// A metric's value.
pub struct Figure {
    /// Which one.
    pub metric: Metric,
    /// The value.
    pub value: f64,
    /// The ends of its interval of 95 %, where there is one.
    pub interval: Option<(f64, f64)>,
    /// What else is told of it in the document.
    pub details: Value,
}

impl Figure {
    fn of_share(metric: Metric, share: Share, details: Value) -> Self {
        let mut details = details;
        details["hits"] = json!(share.hits);
        details["count"] = json!(share.count);
        Self { metric, value: share.value, interval: Some((share.low, share.high)), details }
    }

    /// `least` is the lowest value that the metric can take.
    fn of_estimate(metric: Metric, value: f64, error: Option<f64>, least: f64, details: Value) -> Self {
        let mut details = details;
        details["standard_error"] = json!(error);
        let interval = error.map(|e| ((value - Z95 * e).max(least), value + Z95 * e));
        Self { metric, value, interval, details }
    }
}

/// Computes each of `metrics`, of which those that compare need a reference.
///
/// # Errors
/// If the sets do not match, are too small for an option, or hold a number that is none.
pub fn figures(
    metrics: &[Metric],
    reference: Option<&Extracted>,
    samples: &Extracted,
    settings: &Settings,
    common: &Common,
) -> Result<Vec<Figure>> {
    let bar = console::progress(common, metrics.len() as u64, "metrics");
    let mut found: Vec<Figure> = Vec::new();
    let mut neighbours = None;
    let mut factored = None;
    for &metric in metrics {
        bar.set_message(metric.name());
        let figure = match (metric, reference) {
            (Metric::Score, _) => score(samples, settings)?,
            (Metric::Accuracy, _) => accuracy(samples)?,
            (Metric::Nll, _) => continue,
            (_, None) => continue,
            (Metric::Fid | Metric::FidInfinity, Some(reference)) => {
                if factored.is_none() {
                    factored = Some(factored_of(reference, "the reference")?);
                }
                let factored = factored.as_ref().context("no moments of the reference")?;
                if metric == Metric::Fid {
                    fid(factored, reference, samples, settings)?
                } else {
                    let found = frechet_extrapolated(factored, samples.features.view(), POINTS, settings.seed)?;
                    let details = json!({ "slope": found.slope, "points": found.points });
                    Figure { metric, value: found.distance, interval: None, details }
                }
            }
            (Metric::Kid, Some(reference)) => kernel(reference, samples, settings)?,
            (Metric::Precision | Metric::Recall | Metric::Density | Metric::Coverage, Some(reference)) => {
                if neighbours.is_none() {
                    let ks = [settings.k_recall, settings.k_coverage];
                    neighbours =
                        Some(reference.with_manifold(&ks, |manifold| manifold.compare(samples.features.view()))?);
                }
                of_neighbours(metric, neighbours.as_deref().context("no neighbours")?, settings)
            }
        };
        found.push(figure);
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(found)
}

/// Mean and covariance of a set, ready for distances; `what` says which set it is, should a number of it be none.
fn factored_of(set: &Extracted, what: &'static str) -> Result<Factored> {
    let moments = Moments::of(set.features.view()).and_then(|moments| Factored::of(&moments));
    moments.context(what)
}

fn fid(factored: &Factored, reference: &Extracted, samples: &Extracted, settings: &Settings) -> Result<Figure> {
    let (x, y) = (reference.features.view(), samples.features.view());
    let found = factored.distance(&factored_of(samples, "the samples")?)?;
    let error = match settings.resamples {
        0 => None,
        resamples => Some(frechet_error(x, y, resamples, settings.seed)?),
    };
    let details = json!({
        "of_means": found.of_means,
        "of_covariances": found.of_covariances,
        "resamples": settings.resamples,
    });
    Ok(Figure::of_estimate(Metric::Fid, found.distance, error, 0.0, details))
}

fn kernel(reference: &Extracted, samples: &Extracted, settings: &Settings) -> Result<Figure> {
    let (x, y) = (reference.features.view(), samples.features.view());
    let found = kid(x, y, settings.kid)?;
    let whole = mmd2(x, y)?;
    let details = json!({
        "subsets": settings.kid.subsets,
        "subset_size": found.size,
        "subset_deviation": found.deviation,
        "subset_standard_error": found.subsets.standard_error,
        "all_pairs": whole.mean,
    });
    Ok(Figure::of_estimate(Metric::Kid, found.subsets.mean, whole.standard_error, f64::NEG_INFINITY, details))
}

fn of_neighbours(metric: Metric, found: &[Prdc], settings: &Settings) -> Figure {
    let k = match metric {
        Metric::Precision | Metric::Recall => settings.k_recall,
        _ => settings.k_coverage,
    };
    let details = json!({ "k": k });
    let [of_recall, of_coverage] = [&found[0], &found[1]];
    match metric {
        Metric::Precision => Figure::of_share(metric, of_recall.precision, details),
        Metric::Recall => Figure::of_share(metric, of_recall.recall, details),
        Metric::Coverage => Figure::of_share(metric, of_coverage.coverage, details),
        _ => {
            let Estimate { mean, standard_error, .. } = of_coverage.density;
            Figure::of_estimate(Metric::Density, mean, standard_error, 0.0, details)
        }
    }
}

fn score(samples: &Extracted, settings: &Settings) -> Result<Figure> {
    let logits = samples.logits.as_ref().context("the inception score needs a classifier's answers")?;
    let splits = settings.splits.min(logits.nrows());
    let found = inception_score(logits.view(), splits, settings.seed)?;
    let details = json!({ "splits": splits, "split_mean": found.splits.mean, "split_deviation": found.deviation });
    Ok(Figure::of_estimate(Metric::Score, found.whole.mean, found.whole.standard_error, 1.0, details))
}

fn accuracy(samples: &Extracted) -> Result<Figure> {
    let logits = samples.logits.as_ref().context("the accuracy needs a classifier's answers")?;
    let labels = samples.labels.as_ref().context("the accuracy needs the labels of the samples")?;
    let confusion = Confusion::of(logits.view(), labels)?;
    let of_classes: Vec<Value> = confusion
        .of_classes()
        .iter()
        .map(|share| json!(if share.count > 0 { Some(share.value) } else { None }))
        .collect();
    let details = json!({ "of_classes": of_classes, "confusion": confusion.counts });
    Ok(Figure::of_share(Metric::Accuracy, confusion.accuracy(), details))
}
