//! `tweedie train-classifier`: its options, its presets, and the network that follows from the data.

use anyhow::{Context, Result, bail};
use clap::Args;
use clap::builder::PossibleValuesParser;
use serde_json::{Value, json};
use tweedie_data::{Dataset, Range};
use tweedie_schedule::TimestepMapping;
use tweedie_train::{AugmentConfig, Loss, LrDecay, NoiseConfig, RunLength, StepSampling, TrainConfig};
use tweedie_unet::classifier::{CLASS, Time};
use tweedie_unet::{EncoderClassifier, Init};

use super::args::RunArgs;
use super::config::{InitName, RunConfig, SamplesConfig, network};
use crate::console;

/// The names of the presets.
pub const PRESETS: [&str; 2] = ["mnist-noisy", "mnist-clean"];

/// `tweedie train-classifier`.
#[derive(Args, Clone, Debug, Default)]
#[command(after_help = "\
Examples:
  tweedie train-classifier                             digits under every amount of noise, to runs/mnist-noisy
  tweedie train-classifier --clean                     clean digits, as evaluations use them, to runs/mnist-clean
  tweedie train-classifier --data photos --size 32 --augment flip --epochs 20
  tweedie train-classifier --schedule linear           for a diffusion model of that schedule
  tweedie train-classifier --out runs/mnist-noisy --resume --epochs 20

A classifier guides a model if both know the same noise levels: give the schedule of the model. accuracy.csv in the run's
directory holds the accuracy on test images. Ctrl-C saves and stops.")]
pub struct ClassifierArgs {
    /// What both kinds of runs take.
    #[command(flatten)]
    pub run: RunArgs,
    /// Network and options that go together [default: mnist-noisy, with --clean mnist-clean]
    #[arg(long, value_name = "P", value_parser = PossibleValuesParser::new(PRESETS), conflicts_with = "config")]
    pub preset: Option<String>,
    /// Train on clean images, and show the network no time
    #[arg(long, help_heading = "Process")]
    pub clean: bool,
    /// Share of each label that is spread over all classes alike, at least 0 and less than 1
    #[arg(long, value_name = "S", help_heading = "Options", value_parser = super::args::number)]
    pub label_smoothing: Option<f64>,
}

impl ClassifierArgs {
    /// Writes the options that were given over those of a preset, a file or a run.
    ///
    /// # Errors
    /// If one was given that the others leave without any effect.
    pub(super) fn apply(&self, run: &mut RunConfig) -> Result<()> {
        if self.clean {
            run.train.step_sampling = StepSampling::Clean;
            run.network.insert("time".to_owned(), json!("none"));
        }
        if let Some(smoothing) = self.label_smoothing {
            run.train.label_smoothing = smoothing;
        }
        if run.train.step_sampling == StepSampling::Clean && self.run.gives_process() {
            return Err(console::usage(
                "--schedule, --train-steps, --beta-start and --beta-end mean nothing to a classifier of clean images; leave \
                 them out, or choose --preset mnist-noisy",
            ));
        }
        self.run.apply(run)
    }
}

impl RunConfig {
    /// Whether it is a run of a classifier.
    pub fn is_classifier(&self) -> bool {
        self.network.get("_class_name").and_then(Value::as_str) == Some(CLASS)
    }

    /// A preset of [`PRESETS`]; `None` if there is none of that name.
    pub(super) fn classifier_preset(name: &str) -> Option<Self> {
        let train = TrainConfig {
            loss: Loss::CrossEntropy,
            label_dropout: 0.0,
            batch: 128,
            lr: 3e-3,
            lr_decay: LrDecay::Cosine,
            ema_decay: 0.998,
            noise: NoiseConfig { schedule: "cosine".to_owned(), ..NoiseConfig::default() },
            ..TrainConfig::default()
        };
        let (train, network) = match name {
            "mnist-noisy" => (
                TrainConfig { length: RunLength::Epochs(6), augment: AugmentConfig::Shift { pixels: 2 }, ..train },
                network(json!({
                    "_class_name": CLASS,
                    "block_out_channels": [16, 48, 96],
                    "down_block_types": ["DownBlock2D", "DownBlock2D", "DownBlock2D"],
                    "layers_per_block": 1,
                    "mid_block_type": null,
                    "attention_head_dim": 32,
                    "norm_num_groups": 8,
                    "pool": "attention",
                    "time": "positional",
                })),
            ),
            "mnist-clean" => (
                TrainConfig {
                    length: RunLength::Epochs(6),
                    step_sampling: StepSampling::Clean,
                    augment: AugmentConfig::from_name("affine").unwrap_or_default(),
                    ..train
                },
                network(json!({
                    "_class_name": CLASS,
                    "block_out_channels": [16, 48, 128],
                    "down_block_types": ["DownBlock2D", "DownBlock2D", "DownBlock2D"],
                    "layers_per_block": 1,
                    "mid_block_type": null,
                    "norm_num_groups": 8,
                    "pool": "average",
                    "time": "none",
                    "head_dropout": 0.2,
                })),
            ),
            _ => return None,
        };
        let samples = SamplesConfig { per_label: 0, ..SamplesConfig::default() };
        let (size, colour, class_names, init) = (None, None, Vec::new(), InitName::ZeroResidual);
        let (preset, data) = (name.to_owned(), "mnist".to_owned());
        Some(Self { preset, data, size, colour, class_names, init, samples, train, network })
    }

    /// Fills in what follows from the data, and builds the classifier with its first values. Afterwards `network` holds every
    /// key of it.
    ///
    /// # Errors
    /// If the network's keys are wrong, or it does not fit the data or the training options.
    pub(super) fn build_classifier(&mut self, data: &Dataset) -> Result<EncoderClassifier> {
        let [channels, height, width] = data.shape();
        self.class_names = data.class_names().to_vec();
        if data.labels().is_none() {
            bail!("a classifier learns from labels, and {} has none; choose labelled data", data.name());
        }
        let mut default = |key: &str, value: Value| {
            self.network.entry(key).or_insert(value);
        };
        default("in_channels", json!(channels));
        default("sample_size", if height == width { json!(height) } else { json!([height, width]) });
        default("num_classes", json!(data.classes()));
        if self.train.loss != Loss::CrossEntropy {
            bail!("a network of the class {CLASS} is trained with loss = \"cross-entropy\"; set it in [train]");
        }
        // A model directory does not say these; whoever opens it goes by the class.
        if (self.train.timestep, self.train.range) != (TimestepMapping::ZeroBased, Range::MinusOneOne) {
            bail!(
                "a network of the class {CLASS} is trained with timestep = \"zero-based\" and range = \"minus-one-one\"; set \
                 these in [train]"
            );
        }
        let mut model = EncoderClassifier::from_config(&self.network).context("the network cannot be built")?;
        let clean = self.train.step_sampling == StepSampling::Clean;
        if (model.config().time == Time::Absent) != clean {
            bail!(
                "a classifier of clean images has step_sampling = \"clean\" and time = \"none\", one of noisy images neither; \
                 change one of them"
            );
        }
        if model.image_shape().is_some_and(|shape| shape != data.shape())
            || model.config().encoder.in_channels != channels
        {
            bail!(
                "the network is for images of another shape than those of {}, which are {channels} x {height} x {width}; leave \
                 in_channels and sample_size out of [network]",
                data.name()
            );
        }
        let multiple = model.size_multiple();
        if height % multiple != 0 || width % multiple != 0 {
            bail!(
                "the images of {} are {height} x {width}, and this network needs multiples of {multiple}; choose one with \
                 fewer levels",
                data.name()
            );
        }
        if model.classes() < data.classes() {
            bail!(
                "the network tells {} classes apart, and {} has {}; leave num_classes out of [network]",
                model.classes(),
                data.name(),
                data.classes()
            );
        }
        let init = match self.init {
            InitName::Pytorch => Init::PyTorch,
            InitName::ZeroResidual => Init::ZeroResidual,
        };
        model.initialise(init, self.train.seed);
        self.network = model.config().to_json();
        Ok(model)
    }

    /// The `config.json` of a classifier: the keys of the network, the names of its classes, and its accuracy if it is known.
    pub(super) fn classifier_config(&self, accuracy: Option<f64>) -> Value {
        let mut config = self.network.clone();
        if let Some(share) = accuracy {
            config.insert(crate::classifier::ACCURACY_KEY.to_owned(), json!(share));
        }
        if !self.class_names.is_empty() {
            config.insert(crate::model::CLASS_NAMES_KEY.to_owned(), json!(self.class_names));
        }
        Value::Object(config)
    }
}
