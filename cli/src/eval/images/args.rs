//! The options of the metrics of images.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args;
use tweedie_data::Range;
use tweedie_schedule::{SigmaRule, Spacing};

use crate::args::{closed_unit, names, sampler_names};

const HEADING: &str = "Metrics of images";

/// The options.
#[derive(Args, Clone, Debug, Default)]
pub struct ImageArgs {
    /// Samples to judge: .npy or .safetensors as `sample --out` writes them, or bytes `[N,C,H,W]` as .npy
    /// [default: drawn from --model]
    #[arg(long, value_name = "FILE", help_heading = HEADING)]
    pub samples: Option<PathBuf>,
    /// Samples to draw from --model, labels in turn [default: 1000]
    #[arg(long, value_name = "N", help_heading = HEADING)]
    pub count: Option<NonZeroUsize>,
    /// Sampler that draws them [default: that of the model's scheduler config; ddim where there is none]
    #[arg(long, value_name = "NAME", help_heading = HEADING, value_parser = sampler_names())]
    pub sampler: Option<String>,
    /// Its steps [default: 25, 4 for consistency models, and every step of the process for ddpm]
    #[arg(long, value_name = "K", help_heading = HEADING)]
    pub steps: Option<NonZeroUsize>,
    /// Which steps of the process are visited [default: that of the model; trailing where it has none]
    #[arg(long, value_name = "NAME", help_heading = HEADING, value_parser = names(Spacing::NAMES))]
    pub spacing: Option<String>,
    /// Noise added by ddim in each step: 0 is deterministic, 1 as much as ddpm [default: 0]
    #[arg(long, value_name = "E", help_heading = HEADING, value_parser = closed_unit)]
    pub eta: Option<f64>,
    /// Noise levels between the first and the last, for euler, heun and their like [default: those of the model]
    #[arg(long, value_name = "RULE", help_heading = HEADING, value_parser = names(SigmaRule::NAMES))]
    pub sigmas: Option<String>,
    /// The labels that the samples of the file were drawn for: whole numbers `[N]` as .npy, or the tensor `labels` of a .safetensors; -1 is none
    /// [default: the tensor `labels` of the samples' own file]
    #[arg(long, value_name = "FILE", help_heading = HEADING, requires = "samples")]
    pub sample_labels: Option<PathBuf>,
    /// Sample i has the label i / N
    #[arg(long, value_name = "N", help_heading = HEADING, requires = "samples", conflicts_with = "sample_labels")]
    pub labels_per: Option<NonZeroUsize>,
    /// The range that samples have between black and white: -1,1 or 0,1 [default: that of --model]
    #[arg(long, value_name = "LOW,HIGH", help_heading = HEADING, requires = "samples", allow_hyphen_values = true, value_parser = names_of_ranges())]
    pub sample_range: Option<String>,
    /// Clamp samples to their range, but do not round them to bytes as an image file would
    #[arg(long, help_heading = HEADING)]
    pub no_quantise: bool,
    /// The classifier whose features are compared and whose answers are counted: a directory [default: the bundled one]
    #[arg(long, value_name = "DIR", help_heading = HEADING)]
    pub judge: Option<PathBuf>,
    /// Features `[N,D]` of the samples by another network, as .npy or as the one tensor of a .safetensors
    #[arg(
        long,
        value_name = "FILE",
        help_heading = HEADING,
        requires = "reference_features",
        conflicts_with_all = ["samples", "judge", "no_quantise"]
    )]
    pub sample_features: Option<PathBuf>,
    /// Features `[N,D]` of the real images by the same network
    #[arg(long, value_name = "FILE", help_heading = HEADING, requires = "sample_features")]
    pub reference_features: Option<PathBuf>,
    /// Also the same of as many real images of the other split: what a perfect model would reach
    #[arg(long, help_heading = HEADING, conflicts_with = "sample_features")]
    pub baseline: bool,
    /// Which neighbour the balls of precision, recall, density and coverage reach to
    /// [default: 3 for precision and recall, 5 for density and coverage]
    #[arg(long, value_name = "K", help_heading = HEADING)]
    pub neighbours: Option<NonZeroUsize>,
    /// Subsets of the kernel distance [default: 100]
    #[arg(long, value_name = "N", help_heading = HEADING)]
    pub kid_subsets: Option<NonZeroUsize>,
    /// Images of each kind in a subset of the kernel distance; fewer where there are fewer [default: 1000]
    #[arg(long, value_name = "N", help_heading = HEADING)]
    pub kid_size: Option<NonZeroUsize>,
    /// Splits of the inception score [default: 10]
    #[arg(long, value_name = "N", help_heading = HEADING)]
    pub splits: Option<NonZeroUsize>,
    /// Resamples for the interval of the Fréchet distance; 0 for none [default: 50]
    #[arg(long, value_name = "N", help_heading = HEADING)]
    pub resamples: Option<usize>,
}

fn names_of_ranges() -> impl clap::builder::TypedValueParser<Value = String> {
    clap::builder::PossibleValuesParser::new(["-1,1", "0,1"])
}

impl ImageArgs {
    /// The range that was given.
    pub fn range(&self) -> Option<Range> {
        self.sample_range.as_deref().map(|name| if name == "0,1" { Range::ZeroOne } else { Range::MinusOneOne })
    }

    /// The first option of drawing that was given, as it is typed.
    pub fn given_for_drawing(&self) -> Option<&'static str> {
        [
            (self.count.is_some(), "--count"),
            (self.sampler.is_some(), "--sampler"),
            (self.steps.is_some(), "--steps"),
            (self.spacing.is_some(), "--spacing"),
            (self.eta.is_some(), "--eta"),
            (self.sigmas.is_some(), "--sigmas"),
        ]
        .into_iter()
        .find_map(|(given, name)| given.then_some(name))
    }

    /// The first option of judging that was given, as it is typed.
    pub fn given(&self) -> Option<&'static str> {
        [
            (self.samples.is_some(), "--samples"),
            (self.sample_features.is_some(), "--sample-features"),
            (self.no_quantise, "--no-quantise"),
            (self.judge.is_some(), "--judge"),
            (self.baseline, "--baseline"),
            (self.neighbours.is_some(), "--neighbours"),
            (self.kid_subsets.is_some(), "--kid-subsets"),
            (self.kid_size.is_some(), "--kid-size"),
            (self.splits.is_some(), "--splits"),
            (self.resamples.is_some(), "--resamples"),
        ]
        .into_iter()
        .find_map(|(given, name)| given.then_some(name))
    }
}
