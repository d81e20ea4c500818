//! The options of `tweedie train`.

use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;

use clap::Args;
use clap::builder::PossibleValuesParser;

use super::config::{PRESETS, RunConfig};
use crate::console;
use crate::data::DataArgs;
use tweedie_schedule::Variance;
use tweedie_train::{AugmentConfig, Loss, LrDecay, RunLength, StepSampling, WeightingConfig};

/// `--loss`.
const LOSSES: [(&str, Loss); 3] = [("simple", Loss::Simple), ("vlb", Loss::Vlb), ("hybrid", Loss::Hybrid)];
/// `--variance`.
const VARIANCES: [(&str, Variance); 4] = [
    ("fixed-small", Variance::FixedSmall),
    ("fixed-large", Variance::FixedLarge),
    ("unit", Variance::Unit),
    ("learned-range", Variance::LearnedRange),
];
/// `--step-sampling`.
const STEP_SAMPLINGS: [(&str, StepSampling); 2] =
    [("uniform", StepSampling::Uniform), ("importance", StepSampling::Importance)];

/// `tweedie train`.
#[derive(Args, Clone, Debug, Default)]
#[command(after_help = "\
Examples:
  tweedie train --data mnist                          the bundled digits, to runs/mnist
  tweedie train --preset tiny --steps 100             a minute's try
  tweedie train --data mnist --minutes 30             as many steps as there is time for; the learning rate falls with it
  tweedie train --data cifar-10-batches-bin --preset cifar10 --flip
  tweedie train --data photos --size 32 --preset cifar10
  tweedie train --out runs/mnist --resume             go on where a run was stopped
  tweedie train --config my.toml --out runs/mine      options from a file; see train.toml of any run

The run's directory is a model: tweedie sample --model runs/mnist. Ctrl-C saves and stops.")]
pub struct TrainArgs {
    /// What both kinds of runs take.
    #[command(flatten)]
    pub run: RunArgs,
    /// Network and options that go together [default: mnist]
    #[arg(long, value_name = "P", value_parser = PossibleValuesParser::new(PRESETS), conflicts_with = "config")]
    pub preset: Option<String>,
    /// Probability that a label is dropped
    #[arg(long, value_name = "P", help_heading = "Options", value_parser = number)]
    pub label_dropout: Option<f64>,

    /// What the network predicts
    #[arg(long, value_name = "NAME", help_heading = "Process", value_parser = PossibleValuesParser::new(["eps", "x0", "v", "score", "mean"]))]
    pub prediction: Option<String>,
    /// What is minimised: the squared error; the variational bound; or both, the bound for a learned variance
    #[arg(long, value_name = "NAME", help_heading = "Objective", value_parser = PossibleValuesParser::new(names(&LOSSES)))]
    pub loss: Option<String>,
    /// Weights of the squared error over t [default: uniform]
    #[arg(long, value_name = "NAME", help_heading = "Objective", value_parser = PossibleValuesParser::new(WeightingConfig::NAMES))]
    pub weighting: Option<String>,
    /// Variance of the reverse step in the bound; a learned one doubles the network's output channels [default: fixed-small,
    /// with --loss hybrid learned-range]
    #[arg(long, value_name = "NAME", help_heading = "Objective",
          value_parser = PossibleValuesParser::new(names(&VARIANCES)))]
    pub variance: Option<String>,
    /// How steps are drawn: all alike, or by the size of their losses
    #[arg(long, value_name = "NAME", help_heading = "Objective", value_parser = PossibleValuesParser::new(names(&STEP_SAMPLINGS)))]
    pub step_sampling: Option<String>,
}

/// What runs of denoisers and of classifiers take.
#[derive(Args, Clone, Debug, Default)]
pub struct RunArgs {
    /// What to train on: mnist (bundled); a folder of IDX files, of CIFAR-10's binary files, or of images with a subfolder for
    /// each class; .npy or .npz [default: mnist]
    #[arg(long, value_name = "D")]
    pub data: Option<String>,
    /// Network and options from a TOML file, as a run's train.toml has them
    #[arg(long, value_name = "FILE.toml")]
    pub config: Option<PathBuf>,
    /// Directory of the run [default: runs/PRESET, with a number if that exists]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Go on with the run in --out; only its length may be changed
    #[arg(long)]
    pub resume: bool,

    /// Passes over the data, those before a --resume included
    #[arg(long, value_name = "E", help_heading = "Length", group = "length")]
    pub epochs: Option<NonZeroU64>,
    /// Steps, those before a --resume included
    #[arg(long, value_name = "N", help_heading = "Length", group = "length")]
    pub steps: Option<NonZeroU64>,
    /// Minutes of training, those before a --resume included; a cosine then follows the time, not the steps
    #[arg(long, value_name = "M", help_heading = "Length", group = "length", value_parser = positive)]
    pub minutes: Option<f64>,
    /// Minutes between two checkpoints within an epoch
    #[arg(long, value_name = "M", help_heading = "Length", value_parser = positive)]
    pub checkpoint_minutes: Option<f64>,

    /// Size, colours and memory of the data.
    #[command(flatten)]
    pub data_options: DataArgs,
    /// Mirror each image left to right with probability one half
    #[arg(long, help_heading = "Data")]
    pub flip: bool,
    /// What is done to each image before the network sees it, at random: mirrored, shifted by up to two pixels, or turned, scaled,
    /// sheared and shifted a little [default: that of the preset]
    #[arg(long, value_name = "NAME", help_heading = "Data", value_parser = PossibleValuesParser::new(AugmentConfig::NAMES))]
    pub augment: Option<String>,

    /// Images per step
    #[arg(long, value_name = "B", help_heading = "Options")]
    pub batch: Option<NonZeroUsize>,
    /// Seed of everything random
    #[arg(long, value_name = "S", help_heading = "Options")]
    pub seed: Option<u64>,
    /// Highest learning rate
    #[arg(long, value_name = "R", help_heading = "Options", value_parser = positive)]
    pub lr: Option<f64>,
    /// What the learning rate does after its warm-up
    #[arg(long, value_name = "NAME", help_heading = "Options", value_parser = PossibleValuesParser::new(["constant", "cosine"]))]
    pub lr_decay: Option<String>,
    /// Step at which a cosine reaches its floor [default: the end of the run]
    #[arg(long, value_name = "N", help_heading = "Options")]
    pub lr_decay_steps: Option<NonZeroU64>,
    /// Steps of the warm-up of the learning rate
    #[arg(long, value_name = "N", help_heading = "Options")]
    pub lr_warmup: Option<u64>,
    /// Decay of the moving average of the weights
    #[arg(long, value_name = "D", help_heading = "Options", value_parser = number)]
    pub ema_decay: Option<f64>,
    /// Decoupled weight decay
    #[arg(long, value_name = "W", help_heading = "Options", value_parser = number)]
    pub weight_decay: Option<f64>,
    /// Largest norm of the gradient, 0 for no clipping
    #[arg(long, value_name = "C", help_heading = "Options", value_parser = number)]
    pub clip_norm: Option<f64>,
    /// Noise schedule
    #[arg(long, value_name = "NAME", help_heading = "Process",
          value_parser = PossibleValuesParser::new(tweedie_schedule::BetaSchedule::NAMES.split(", ")))]
    pub schedule: Option<String>,
    /// Number of noise steps T
    #[arg(long, value_name = "T", help_heading = "Process")]
    pub train_steps: Option<NonZeroUsize>,
    /// First beta
    #[arg(long, value_name = "B", help_heading = "Process", value_parser = number)]
    pub beta_start: Option<f64>,
    /// Last beta
    #[arg(long, value_name = "B", help_heading = "Process", value_parser = number)]
    pub beta_end: Option<f64>,
}

impl TrainArgs {
    /// Writes the options that were given over those of a preset, a file or a run.
    ///
    /// # Errors
    /// If one was given that the others leave without any effect.
    pub(super) fn apply(&self, run: &mut RunConfig) -> anyhow::Result<()> {
        let train = &mut run.train;
        set(&mut train.label_dropout, &self.label_dropout);
        if let Some(name) = &self.prediction {
            train.prediction = tweedie_schedule::Prediction::from_name(name)?;
        }
        set(&mut train.loss, &named(self.loss.as_deref(), &LOSSES));
        set(&mut train.weighting, &self.weighting.as_deref().and_then(WeightingConfig::from_name));
        set(&mut train.step_sampling, &named(self.step_sampling.as_deref(), &STEP_SAMPLINGS));
        // The bound of the hybrid loss trains nothing but a variance.
        let hybrid = (self.loss.is_some() && train.loss == Loss::Hybrid).then_some(Variance::LearnedRange);
        set(&mut train.variance, &named(self.variance.as_deref(), &VARIANCES).or(hybrid));
        self.run.apply(run)
    }
}

impl RunArgs {
    /// Whether an option of the noise process was given.
    pub(super) fn gives_process(&self) -> bool {
        self.schedule.is_some() || self.train_steps.is_some() || self.beta_start.is_some() || self.beta_end.is_some()
    }

    /// As [`TrainArgs::apply`].
    ///
    /// # Errors
    /// As there.
    pub(super) fn apply(&self, run: &mut RunConfig) -> anyhow::Result<()> {
        set(&mut run.data, &self.data);
        set(&mut run.size, &self.data_options.size);
        set(&mut run.colour, &self.data_options.colour);
        let train = &mut run.train;
        train.flip |= self.flip;
        if let Some(augment) = self.augment.as_deref().and_then(AugmentConfig::from_name) {
            train.augment = augment;
            // Both together would mirror twice.
            train.flip &= augment != AugmentConfig::Flip;
        }
        set(&mut train.length, &self.epochs.map(|n| RunLength::Epochs(n.get())));
        set(&mut train.length, &self.steps.map(|n| RunLength::Steps(n.get())));
        set(&mut train.length, &self.minutes.map(RunLength::Minutes));
        set(&mut train.checkpoint_minutes, &self.checkpoint_minutes);
        set(&mut train.batch, &self.batch);
        set(&mut train.seed, &self.seed);
        set(&mut train.lr, &self.lr);
        if let Some(name) = &self.lr_decay {
            train.lr_decay = if name == "cosine" { LrDecay::Cosine } else { LrDecay::Constant };
        }
        if let Some(steps) = self.lr_decay_steps {
            train.lr_decay_steps = Some(steps.get());
        }
        set(&mut train.lr_warmup, &self.lr_warmup);
        set(&mut train.ema_decay, &self.ema_decay);
        set(&mut train.adamw.weight_decay, &self.weight_decay);
        set(&mut train.clip_norm, &self.clip_norm);
        set(&mut train.noise.schedule, &self.schedule);
        set(&mut train.noise.train_steps, &self.train_steps);
        set(&mut train.noise.beta_start, &self.beta_start);
        set(&mut train.noise.beta_end, &self.beta_end);
        if train.noise.schedule == "cosine" && (self.beta_start.is_some() || self.beta_end.is_some()) {
            return Err(console::usage(
                "--beta-start and --beta-end mean nothing to the schedule cosine, which has constants of its own; leave \
                 them out, or choose another --schedule",
            ));
        }
        if self.lr_decay_steps.is_some() && train.lr_decay == LrDecay::Constant {
            return Err(console::usage(
                "--lr-decay-steps means nothing to a constant learning rate; leave it out, or add --lr-decay cosine",
            ));
        }
        if self.train_steps.is_some() {
            run.samples.steps = run.samples.steps.min(train.noise.train_steps);
        }
        Ok(())
    }
}

/// Replaces a value by one that was given.
fn set<T, U: Clone + Into<T>>(value: &mut T, given: &Option<U>) {
    if let Some(given) = given {
        *value = given.clone().into();
    }
}

/// The names of some choices.
fn names<T>(choices: &'static [(&'static str, T)]) -> impl Iterator<Item = &'static str> {
    choices.iter().map(|(name, _)| *name)
}

/// The choice of a name that was given.
fn named<T: Copy>(name: Option<&str>, choices: &[(&str, T)]) -> Option<T> {
    choices.iter().find(|(known, _)| Some(*known) == name).map(|(_, value)| *value)
}

pub(super) fn number(text: &str) -> Result<f64, String> {
    text.parse::<f64>().ok().filter(|x| x.is_finite()).ok_or_else(|| "expected a finite number".to_owned())
}

fn positive(text: &str) -> Result<f64, String> {
    number(text).and_then(|x| if x > 0.0 { Ok(x) } else { Err("expected a number above 0".to_owned()) })
}
