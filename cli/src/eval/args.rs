//! The command line of `tweedie eval`.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use tweedie_data::Split;
use tweedie_schedule::Variance;

use super::images::args::ImageArgs;
use super::metric::Metric;
use crate::args::{ModelArg, ProcessArgs, names, prediction_names, svg_path};
use crate::data::DataArgs;
use crate::sample::GuidanceArgs;

/// `tweedie eval`.
#[derive(Args, Clone, Debug)]
#[command(allow_negative_numbers = true)]
#[command(after_help = "\
Examples:
  tweedie eval                                        bits per dimension of the bundled model on MNIST's test images
  tweedie eval --limit 50 --all-steps --plot nll.svg  every step of 50 images, and a plot of the terms
  tweedie eval --labels none --json                   without labels, as one JSON document
  tweedie eval --limit 4 --ode --probes 4             the probability-flow ODE beside the bound
  tweedie eval --model oracle.json --ode              an exact denoiser: bound, ODE and the exact value
  tweedie eval --metrics fid,accuracy --steps 10      1000 fresh samples of the bundled model against real images
  tweedie eval --metrics fid --count 5000 --guidance 1 --sampler dpm++2m
                                                      more of them, without guidance, by another sampler
  tweedie eval --metrics all --samples x.safetensors  samples of a file: fid, kid, precision, recall, ...
  tweedie eval --metrics fid --samples x.safetensors --split train --baseline
                                                      against the training images, beside as many test images
  tweedie eval --metrics fid,kid --sample-features a.npy --reference-features b.npy
                                                      from the features of any network

The bound is that of ancestral sampling with every step of the model's process: L_T + sum of L_(t-1) + L_0, an upper bound of
the negative log-likelihood (Ho 2020). Pixels are decoded into 256 bins; an oracle's numbers have a density.
The metrics of images compare features of a classifier; docs/metrics.md says what each of them tells.")]
pub struct EvalArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArg,
    /// Data: what train --data takes, or numbers `[N,C,H,W]` in the model's range as .npy; images of a folder get the
    /// size of the model's
    /// [default: mnist for a network of its shape; an oracle draws its own]
    #[arg(long, value_name = "D")]
    pub data: Option<String>,
    /// Size, colours and memory of the data.
    #[command(flatten)]
    pub data_options: DataArgs,
    /// What is computed, separated by commas: nll is the negative log-likelihood, is the inception score, accuracy the share
    /// of samples that are read as their label; all is everything that the input has what it takes for
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "nll", value_parser = names(Metric::NAMES))]
    pub metrics: Vec<String>,
    /// Which part of the data [default: test]
    #[arg(long, value_name = "NAME", value_enum)]
    pub split: Option<SplitName>,
    /// Samples of the data at most: a random part, chosen with the seed
    /// [default: 500 images, 8 with --ode; 1000 draws of an oracle; all for the metrics of images]
    #[arg(long, value_name = "N")]
    pub limit: Option<NonZeroUsize>,
    /// The condition: each sample's own label, or none [default: own, where data and network have labels; samples are drawn
    /// under the labels of the model in turn, or under none]
    #[arg(long, value_name = "WHICH", value_enum)]
    pub labels: Option<LabelChoice>,
    /// Random steps for each sample, one out of each of K parts of the process, which are longer the later; unbiased
    /// [default: 20 for a network]
    #[arg(long, value_name = "K", conflicts_with = "all_steps")]
    pub steps_per_image: Option<NonZeroUsize>,
    /// Every step for every sample [default for an oracle]
    #[arg(long)]
    pub all_steps: bool,
    /// Variance of the reverse steps [default: that of the model's scheduler config; small where it says none]
    #[arg(long, value_name = "NAME", value_enum)]
    pub variance: Option<VarianceName>,
    /// What the network predicts; epsilon, sample and v_prediction are understood too
    /// [default: that of the model; eps where it does not say]
    #[arg(long, value_name = "NAME", value_parser = prediction_names())]
    pub prediction: Option<String>,
    /// Seed of all randomness
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub seed: u64,
    /// Samples computed at once; results do not depend on it [default: what fits in memory easily]
    #[arg(long, value_name = "N")]
    pub batch: Option<NonZeroUsize>,
    /// Print one JSON document, with the terms of every step
    #[arg(long)]
    pub json: bool,
    /// Draw the terms over t
    #[arg(long, value_name = "FILE.svg", value_parser = svg_path)]
    pub plot: Option<PathBuf>,
    /// Also the log-density under the probability-flow ODE; pixels are dequantised uniformly for it
    #[arg(long, help_heading = "Probability-flow ODE")]
    pub ode: bool,
    /// Random probes for each sample's divergence
    /// [default: 1 for a network; an oracle of up to 64 numbers takes the exact divergence]
    #[arg(long, value_name = "K", requires = "ode", help_heading = "Probability-flow ODE")]
    pub probes: Option<NonZeroUsize>,
    /// Steps of the integration, of four evaluations each [default: 50 for a network, 300 for an oracle]
    #[arg(long, value_name = "N", requires = "ode", help_heading = "Probability-flow ODE")]
    pub ode_steps: Option<NonZeroUsize>,
    /// The metrics of images.
    #[command(flatten)]
    pub images: ImageArgs,
    /// How the samples are guided.
    #[command(flatten, next_help_heading = "Guidance of drawn samples (docs/guidance.md)")]
    pub guidance: GuidanceArgs,
    /// The process of a model that does not describe its own.
    #[command(flatten, next_help_heading = "Process (for an oracle, or a model without a scheduler config)")]
    pub process: ProcessArgs,
}

/// `--split`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SplitName {
    /// What models are trained on.
    Train,
    /// What they are evaluated on.
    Test,
}

impl From<SplitName> for Split {
    fn from(name: SplitName) -> Self {
        match name {
            SplitName::Train => Self::Train,
            SplitName::Test => Self::Test,
        }
    }
}

/// `--labels`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LabelChoice {
    /// Each sample under its own label.
    Own,
    /// Every sample without a label.
    None,
}

/// `--variance`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum VarianceName {
    /// That of the posterior.
    Small,
    /// That of the forward step.
    Large,
    /// 1.
    Unit,
    /// As a model with twice the output channels says for every pixel.
    Learned,
}

impl From<VarianceName> for Variance {
    fn from(name: VarianceName) -> Self {
        match name {
            VarianceName::Small => Self::FixedSmall,
            VarianceName::Large => Self::FixedLarge,
            VarianceName::Unit => Self::Unit,
            VarianceName::Learned => Self::LearnedRange,
        }
    }
}

impl EvalArgs {
    /// The first option that only the negative log-likelihood uses and that was given, as it is typed.
    pub fn given_for_nll(&self) -> Option<&'static str> {
        [
            (self.steps_per_image.is_some(), "--steps-per-image"),
            (self.all_steps, "--all-steps"),
            (self.variance.is_some(), "--variance"),
            (self.plot.is_some(), "--plot"),
            (self.ode, "--ode"),
        ]
        .into_iter()
        .find_map(|(given, name)| given.then_some(name))
    }

    /// The first option of how a model is called that was given, as it is typed: for the negative log-likelihood, and for
    /// drawing samples.
    pub fn given_for_model(&self) -> Option<&'static str> {
        [
            (self.labels.is_some(), "--labels"),
            (self.prediction.is_some(), "--prediction"),
            (self.batch.is_some(), "--batch"),
        ]
        .into_iter()
        .find_map(|(given, name)| given.then_some(name))
        .or_else(|| self.process.given())
    }

    /// The first option of drawing samples that was given, as it is typed.
    pub fn given_for_drawing(&self) -> Option<&'static str> {
        self.images.given_for_drawing().or_else(|| self.guidance.given())
    }
}
