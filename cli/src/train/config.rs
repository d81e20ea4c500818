//! What a run is: data, network and training options, as `train.toml` records them, and the presets.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tweedie_data::{Dataset, Range};
use tweedie_denoiser::Network;
use tweedie_schedule::{Prediction, TimestepMapping, Variance};
use tweedie_train::{AdamW, LrDecay, NoiseConfig, RunLength, TrainConfig};
use tweedie_unet::residual::TimeEmbedding;
use tweedie_unet::{Init, Model};

use super::classifier;
use crate::data::{ColourName, Size};

/// The names of the presets.
pub const PRESETS: [&str; 4] = ["mnist", "tiny", "book", "cifar10"];

/// How JSON's null is written in TOML, which has none.
const NULL: &str = "none";

/// Everything that a run depends on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// The preset that it was started from, or `custom`.
    #[serde(default = "custom")]
    pub preset: String,
    /// The data set, as `--data` names it.
    #[serde(default = "mnist")]
    pub data: String,
    /// Height and width that the images of a folder are brought to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
    /// The colours that the images of a folder are read in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub colour: Option<ColourName>,
    /// The names of the classes, where the data have them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub class_names: Vec<String>,
    /// How the network starts.
    #[serde(default)]
    pub init: InitName,
    /// The grid of samples after each epoch.
    #[serde(default)]
    pub samples: SamplesConfig,
    /// Training options.
    #[serde(default)]
    pub train: TrainConfig,
    /// The network, with the keys of its `config.json`; those that follow from the data may be left out.
    pub network: Map<String, Value>,
}

/// How the first values of the parameters are drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InitName {
    /// PyTorch's defaults.
    Pytorch,
    /// PyTorch's defaults, with zeros at the end of residual branches and of the network.
    #[default]
    ZeroResidual,
}

/// The grid of samples after each epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SamplesConfig {
    /// Images for each label; 0: no samples.
    pub per_label: usize,
    /// Steps of DDIM.
    pub steps: usize,
    /// Guidance scale, where the network knows the null condition.
    pub guidance: f64,
}

impl SamplesConfig {
    /// Images for each label at most: they are drawn as one batch.
    const MOST: usize = 100;

    /// Checks the range of every field, for a process of `train_steps` steps.
    ///
    /// # Errors
    /// The first field that is out of range.
    fn validate(&self, train_steps: usize) -> Result<()> {
        if self.per_label > Self::MOST {
            bail!("samples.per_label should be from 0 to {}, found {}; change it", Self::MOST, self.per_label);
        }
        if !(1..=train_steps).contains(&self.steps) {
            bail!(
                "samples.steps should be from 1 to {train_steps}, the number of noise steps, found {}; change it",
                self.steps
            );
        }
        if !self.guidance.is_finite() {
            bail!("samples.guidance should be a finite number, found {}; change it", self.guidance);
        }
        Ok(())
    }
}

impl Default for SamplesConfig {
    fn default() -> Self {
        Self { per_label: 4, steps: 25, guidance: 1.5 }
    }
}

fn custom() -> String {
    CUSTOM.to_owned()
}

fn mnist() -> String {
    "mnist".to_owned()
}

/// What a file of an unknown preset is called, too.
const CUSTOM: &str = "custom";

/// The network of a preset.
pub(super) fn network(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

impl RunConfig {
    /// A preset of [`PRESETS`] or of [`classifier::PRESETS`].
    ///
    /// # Errors
    /// If there is no such preset.
    pub fn preset(name: &str) -> Result<Self> {
        if let Some(run) = Self::classifier_preset(name) {
            return Ok(run);
        }
        let (init, samples, train, network) = match name {
            "mnist" => (
                InitName::ZeroResidual,
                SamplesConfig::default(),
                TrainConfig {
                    length: RunLength::Epochs(4),
                    batch: 32,
                    lr: 1e-3,
                    lr_decay: LrDecay::Cosine,
                    prediction: Prediction::V,
                    noise: NoiseConfig { schedule: "cosine".to_owned(), ..NoiseConfig::default() },
                    ..TrainConfig::default()
                },
                json!({
                    "_class_name": "UNet2DModel",
                    "block_out_channels": [16, 64, 128],
                    "down_block_types": ["DownBlock2D", "DownBlock2D", "AttnDownBlock2D"],
                    "up_block_types": ["AttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
                    "layers_per_block": 1,
                    "attention_head_dim": 32,
                    "norm_num_groups": 8,
                }),
            ),
            "tiny" => (
                InitName::ZeroResidual,
                SamplesConfig { per_label: 2, steps: 10, ..SamplesConfig::default() },
                TrainConfig {
                    length: RunLength::Epochs(1),
                    lr: 2e-3,
                    ema_decay: 0.99,
                    lr_warmup: 50,
                    ..TrainConfig::default()
                },
                json!({
                    "_class_name": "UNet2DModel",
                    "block_out_channels": [8, 16],
                    "down_block_types": ["DownBlock2D", "DownBlock2D"],
                    "up_block_types": ["UpBlock2D", "UpBlock2D"],
                    "layers_per_block": 1,
                    "add_attention": false,
                    "norm_num_groups": 4,
                }),
            ),
            "book" => (
                InitName::Pytorch,
                SamplesConfig::default(),
                TrainConfig {
                    length: RunLength::Epochs(10),
                    lr: 1e-3,
                    timestep: TimestepMapping::OneBased,
                    range: Range::ZeroOne,
                    adamw: AdamW { beta2: 0.999, weight_decay: 0.0, ..AdamW::default() },
                    ..TrainConfig::default()
                },
                json!({ "_class_name": "UNetCond" }),
            ),
            "cifar10" => (
                InitName::ZeroResidual,
                SamplesConfig::default(),
                TrainConfig {
                    length: RunLength::Epochs(50),
                    lr: 4e-4,
                    lr_warmup: 1000,
                    lr_decay: LrDecay::Cosine,
                    prediction: Prediction::V,
                    noise: NoiseConfig { schedule: "cosine".to_owned(), ..NoiseConfig::default() },
                    ..TrainConfig::default()
                },
                json!({
                    "_class_name": "UNet2DModel",
                    "block_out_channels": [64, 128, 128],
                    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
                    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
                    "layers_per_block": 2,
                    "attention_head_dim": 64,
                    "norm_num_groups": 16,
                }),
            ),
            other => bail!("there is no preset named \"{other}\"; choose one of: {}", PRESETS.join(", ")),
        };
        let network = self::network(network);
        // The images of CIFAR are not bundled.
        let data = if name == "cifar10" { String::new() } else { mnist() };
        let (size, colour, class_names) = (None, None, Vec::new());
        Ok(Self { preset: name.to_owned(), data, size, colour, class_names, init, samples, train, network })
    }

    /// Reads a file as a run writes it.
    ///
    /// # Errors
    /// If it cannot be read, is no TOML, or has unknown keys or wrong values.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}; check the path, and that it is a text file", path.display()))?;
        Self::from_toml(&text).with_context(|| {
            format!("{} describes no training run; the train.toml of any run shows the keys", path.display())
        })
    }

    fn from_toml(text: &str) -> Result<Self> {
        let mut run: Self = toml::from_str(text)?;
        for value in run.network.values_mut().filter(|value| value.as_str() == Some(NULL)) {
            *value = Value::Null;
        }
        // The name becomes that of a directory.
        let presets: &[&str] = if run.is_classifier() { &classifier::PRESETS } else { &PRESETS };
        if run.preset != CUSTOM && !presets.contains(&run.preset.as_str()) {
            bail!("preset should be one of {} or {CUSTOM}, found \"{}\"; leave it out", presets.join(", "), run.preset);
        }
        Ok(run)
    }

    /// Checks the range of every option that does not depend on the data.
    ///
    /// # Errors
    /// The first one that is out of range.
    pub fn validate(&self) -> Result<()> {
        if self.data.is_empty() {
            bail!("the preset {} needs data: give --data, such as --data cifar-10-batches-bin", self.preset);
        }
        self.train.validate()?;
        self.samples.validate(self.train.noise.train_steps)
    }

    /// The text of `train.toml`.
    ///
    /// # Errors
    /// If a number cannot be written in TOML.
    pub fn to_toml(&self) -> Result<String> {
        let mut run = self.clone();
        for value in run.network.values_mut().filter(|value| value.is_null()) {
            *value = json!(NULL);
        }
        let text = toml::to_string(&run).context("the options of the run cannot be written as TOML")?;
        Ok(format!("# Every option of this run. A copy of it is what `tweedie train --config` reads.\n\n{text}"))
    }

    /// Fills in what follows from the data, and builds the network with its first values. Afterwards `network` holds every
    /// key of it.
    ///
    /// # Errors
    /// If the network's keys are wrong, or it does not fit the data or the training options.
    pub fn build(&mut self, data: &Dataset) -> Result<Model> {
        let [channels, height, width] = data.shape();
        self.class_names = data.class_names().to_vec();
        let class = self.network.get("_class_name").and_then(Value::as_str).unwrap_or("UNet2DModel").to_owned();
        self.network.entry("_class_name").or_insert_with(|| json!(class));
        // A prediction, and beside it a variance where that is learned.
        let learned = self.train.variance == Variance::LearnedRange;
        let outputs = if learned { 2 * channels } else { channels };
        let mut default = |key: &str, value: Value| {
            self.network.entry(key).or_insert(value);
        };
        let (timestep, range) = if class == "UNetCond" {
            if height != width {
                bail!(
                    "a network of the class UNetCond is for square images, and those of {} are {height} x {width}; \
                     choose the class UNet2DModel",
                    data.name()
                );
            }
            default("in_channels", json!(channels));
            default("image_size", json!(height));
            default("num_classes", json!(data.classes().max(1)));
            (TimestepMapping::OneBased, Range::ZeroOne)
        } else {
            default("in_channels", json!(channels));
            default("out_channels", json!(outputs));
            default("sample_size", if height == width { json!(height) } else { json!([height, width]) });
            if data.labels().is_some() && !self.network.contains_key("num_class_embeds") {
                // One row more for the null condition, which only the dropping of labels trains; without a table, there is none.
                let classes = data.classes();
                let table = self.network.get("class_embed_type").is_none_or(Value::is_null);
                let null = table && self.train.label_dropout > 0.0;
                self.network.insert("num_class_embeds".to_owned(), json!(classes + usize::from(null)));
                if null {
                    self.network.insert("_tweedie_null_class".to_owned(), json!(classes));
                }
            }
            (TimestepMapping::ZeroBased, Range::MinusOneOne)
        };
        // A model directory does not say these; whoever opens it goes by the class.
        if (self.train.timestep, self.train.range) != (timestep, range) {
            let (timestep, range) = match class.as_str() {
                "UNetCond" => ("one-based", "zero-one"),
                _ => ("zero-based", "minus-one-one"),
            };
            bail!(
                "a network of the class {class} is trained with timestep = \"{timestep}\" and range = \"{range}\"; \
                 set these in [train]"
            );
        }
        let mut model = Model::from_config(&self.network).context("the network cannot be built")?;
        check_steps(&model, self.train.noise.train_steps)?;
        if learned && class == "UNetCond" {
            bail!(
                "a network of the class UNetCond has no output for a variance; choose a fixed one with --variance, or the class \
                 UNet2DModel"
            );
        }
        if (model.in_channels(), model.out_channels()) != (channels, outputs) {
            let kind = if learned { " and a learned variance" } else { "" };
            bail!(
                "the network has {} input and {} output channels, and images of {channels} channels as those of {}{kind} need \
                 {channels} and {outputs}; leave in_channels and out_channels out of [network], or set them to these",
                model.in_channels(),
                model.out_channels(),
                data.name()
            );
        }
        if let Some([_, h, w]) = model.image_shape()
            && [h, w] != [height, width]
        {
            let key = if class == "UNetCond" { "image_size" } else { "sample_size" };
            bail!(
                "the network is for images of {h} x {w} ({key}), and those of {} are {height} x {width}; leave {key} out \
                 of [network]",
                data.name()
            );
        }
        let multiple = model.size_multiple();
        if height % multiple != 0 || width % multiple != 0 {
            bail!(
                "the images of {} are {height} x {width}, and this network needs multiples of {multiple}; \
                 choose one with fewer levels",
                data.name()
            );
        }
        let init = match self.init {
            InitName::Pytorch => Init::PyTorch,
            InitName::ZeroResidual => Init::ZeroResidual,
        };
        model.initialise(init, self.train.seed);
        self.network = model.config();
        Ok(model)
    }

    /// The guidance scale of samples of this run; `None` if the network knows no null condition. One that was never
    /// trained, because no label was ever dropped, is left alone.
    pub fn guidance(&self, network: &dyn Network) -> Option<f64> {
        let scale = if self.train.label_dropout > 0.0 { self.samples.guidance } else { 1.0 };
        network.has_null_condition().then_some(scale)
    }

    /// The `config.json` of the run's model: the keys of the network, and the guidance that it was made for.
    pub fn model_config(&self, network: &dyn Network) -> Value {
        let mut config = self.network.clone();
        if let Some(scale) = self.guidance(network) {
            config.insert(crate::model::GUIDANCE_KEY.to_owned(), json!(scale));
        }
        if network.classes() > 0 && !self.class_names.is_empty() {
            config.insert(crate::model::CLASS_NAMES_KEY.to_owned(), json!(self.class_names));
        }
        Value::Object(config)
    }

    /// The `scheduler_config.json` of the run: DDIM, which draws in few steps, or DDPM for a learned variance or a mean,
    /// over the process of the training.
    ///
    /// # Errors
    /// If the schedule cannot be built.
    pub fn scheduler(&self) -> Result<Value> {
        let NoiseConfig { train_steps, beta_start, beta_end, .. } = self.train.noise;
        // The rules that diffusers' DDIMScheduler has a name for; of the others it reads the table.
        let name = self.train.noise.betas()?.config_name();
        let name = name.filter(|name| ["linear", "scaled_linear", "squaredcos_cap_v2"].contains(name));
        let table = match name {
            Some(_) => Value::Null,
            None => json!(self.train.noise.build()?.betas()),
        };
        let mut config = json!({
            "_class_name": "DDIMScheduler",
            "num_train_timesteps": train_steps,
            "beta_start": beta_start,
            "beta_end": beta_end,
            "beta_schedule": name.unwrap_or("linear"),
            "trained_betas": table,
            "prediction_type": self.train.prediction.config_name().unwrap_or("epsilon"),
            // DDIM keeps the noise estimate of the unclipped x_0; under guidance the two then disagree, and every step
            // shifts the background towards the grey that it was clipped to. Without clipping they agree.
            "clip_sample": false,
            "clip_sample_range": 1.0,
            "set_alpha_to_one": true,
            "steps_offset": 0,
            "timestep_spacing": "trailing",
            "thresholding": false,
            "rescale_betas_zero_snr": false,
        });
        if self.train.prediction.config_name().is_none() {
            config[crate::scheduler::PREDICTION_KEY] = json!(self.train.prediction.name());
        }
        // The ancestral sampler alone uses a learned variance, and needs nothing of a mean but the mean: the x_0 that DDIM would
        // derive from it is a thousand times less certain.
        let learned = self.train.variance == Variance::LearnedRange;
        if learned || self.train.prediction == Prediction::Mean {
            config["_class_name"] = json!("DDPMScheduler");
            config["variance_type"] = json!(if learned { "learned_range" } else { "fixed_small" });
            if let Some(keys) = config.as_object_mut() {
                keys.remove("set_alpha_to_one");
            }
        }
        Ok(config)
    }

    /// What the network predicts.
    pub fn prediction(&self) -> Prediction {
        self.train.prediction
    }
}

/// Whether the network's time embedding takes the steps 0 to `train_steps - 1`.
fn check_steps(model: &Model, train_steps: usize) -> Result<()> {
    let Model::Residual(network) = model else { return Ok(()) };
    match network.config().time_embedding {
        TimeEmbedding::Positional => Ok(()),
        TimeEmbedding::Learned { steps } if steps >= train_steps => Ok(()),
        TimeEmbedding::Learned { steps } => bail!(
            "the network learns a vector for each of {steps} steps, and noise.train_steps is {train_steps}; set \
             num_train_timesteps to it"
        ),
        TimeEmbedding::Fourier => bail!(
            "a Fourier embedding takes the logarithm of the time, and the steps of a training begin with 0; choose \
             time_embedding_type = \"positional\" or \"learned\""
        ),
    }
}

#[cfg(test)]
mod tests {
    use tweedie_checkpoint::Config;
    use tweedie_data::Split;
    use tweedie_denoiser::NetworkGrad;
    use tweedie_schedule::{BetaSchedule, Schedule};

    use super::*;

    #[test]
    fn every_preset_builds_and_survives_its_file() {
        let data = Dataset::open("mnist", Split::Test).unwrap();
        for name in PRESETS {
            let mut run = RunConfig::preset(name).unwrap();
            let model = run.build(&data).unwrap();
            assert_eq!((model.classes(), model.has_null_condition()), (10, true), "{name}");
            assert_eq!(model.image_shape(), Some([1, 28, 28]), "{name}");
            run.train = run.train.resolved(937);
            run.train.validate().unwrap();
            let text = run.to_toml().unwrap();
            assert_eq!(RunConfig::from_toml(&text).unwrap(), run, "{text}");
            // The file alone makes the same network again.
            let again = RunConfig::from_toml(&text).unwrap().build(&data).unwrap();
            assert_eq!(again.params(), model.params(), "{name}");
        }
    }

    #[test]
    fn null_is_written_as_none() {
        let mut run = RunConfig::preset("mnist").unwrap();
        run.network.insert("attention_head_dim".to_owned(), Value::Null);
        let text = run.to_toml().unwrap();
        assert!(text.contains("attention_head_dim = \"none\""), "{text}");
        assert_eq!(RunConfig::from_toml(&text).unwrap(), run);
    }

    #[test]
    fn every_schedule_reads_back_and_what_ddim_cannot_name_is_a_table() {
        let mut run = RunConfig::preset("mnist").unwrap();
        (run.train.noise.beta_start, run.train.noise.beta_end) = (3e-4, 0.017);
        let mut named = Vec::new();
        for name in BetaSchedule::NAMES.split(", ") {
            run.train.noise.schedule = name.to_owned();
            let scheduler = run.scheduler().unwrap();
            if scheduler["trained_betas"].is_null() {
                named.push((name, scheduler["beta_schedule"].as_str().unwrap().to_owned()));
            }
            // As it is after a way through a file.
            let text = scheduler.to_string();
            let file: Config = serde_json::from_str(&text).unwrap();
            let spec = crate::scheduler::from_config(&file, Path::new("scheduler_config.json"), None).unwrap();
            let read = Schedule::new(&spec.betas, spec.train_steps).unwrap();
            let written = run.train.noise.build().unwrap();
            assert_eq!(read.betas().len(), written.betas().len(), "{name}");
            for (a, b) in read.betas().iter().zip(written.betas()) {
                assert!((a - b).abs() <= 2.0 * f64::EPSILON * b, "{name}: {a} {b}");
            }
        }
        let expected = [("linear", "linear"), ("scaled-linear", "scaled_linear"), ("cosine", "squaredcos_cap_v2")];
        assert_eq!(named, expected.map(|(name, file)| (name, file.to_owned())), "the names that DDIMScheduler has");
    }

    #[test]
    fn samples_out_of_range_and_unknown_presets_are_errors() {
        let message = |samples| {
            let mut run = RunConfig::preset("mnist").unwrap();
            run.validate().unwrap();
            run.samples = samples;
            run.validate().map_err(|error| error.to_string())
        };
        let good = SamplesConfig { per_label: 100, steps: 1000, guidance: -1.5 };
        assert_eq!(message(good.clone()), Ok(()));
        for (samples, key) in [
            (SamplesConfig { per_label: 101, ..good.clone() }, "samples.per_label"),
            (SamplesConfig { steps: 0, ..good.clone() }, "samples.steps"),
            (SamplesConfig { steps: 1001, ..good.clone() }, "samples.steps should be from 1 to 1000"),
            (SamplesConfig { guidance: f64::NAN, ..good.clone() }, "samples.guidance"),
        ] {
            let message = message(samples).unwrap_err();
            assert!(message.contains(key) && message.contains("found"), "{message}");
        }
        let read = |name: &str| RunConfig::from_toml(&format!("preset = \"{name}\"\n[network]\n"));
        for name in PRESETS.into_iter().chain([CUSTOM]) {
            assert_eq!(read(name).unwrap().preset, name);
        }
        let message = read("../elsewhere").unwrap_err().to_string();
        assert!(
            message.contains("../elsewhere") && message.contains("mnist, tiny, book, cifar10 or custom"),
            "{message}"
        );
    }

    #[test]
    fn images_of_another_size_are_errors_and_every_key_is_recorded() {
        let images = |h: usize, w: usize| {
            Dataset::new("toy", [1, h, w], vec![0; 6 * h * w], Some(vec![0, 1, 2, 0, 1, 2])).unwrap()
        };
        let build = |preset: &str, data: &Dataset, key: &str, value: Value| {
            let mut run = RunConfig::preset(preset).unwrap();
            run.network.insert(key.to_owned(), value);
            run.build(data).map(|model| (run.network == model.config(), model)).map_err(|error| format!("{error:#}"))
        };
        let message = build("tiny", &images(8, 8), "sample_size", json!(16)).unwrap_err();
        assert!(message.contains("16 x 16 (sample_size)") && message.contains("8 x 8"), "{message}");
        let message = build("book", &images(8, 8), "image_size", json!(16)).unwrap_err();
        assert!(message.contains("16 x 16 (image_size)") && message.contains("8 x 8"), "{message}");
        let message = build("book", &images(8, 12), "embed_dim", json!(8)).unwrap_err();
        assert!(message.contains("square") && message.contains("8 x 12"), "{message}");
        let (recorded, model) = build("tiny", &images(8, 12), "norm_eps", json!(1e-6)).unwrap();
        assert!(recorded && model.image_shape() == Some([1, 8, 12]));
        let (recorded, model) = build("tiny", &images(8, 12), "sample_size", Value::Null).unwrap();
        assert!(recorded && model.image_shape().is_none());
    }

    #[test]
    fn a_misspelt_key_and_a_network_that_does_not_fit_are_errors() {
        let error = |text: &str| format!("{:#}", RunConfig::from_toml(text).unwrap_err());
        assert!(error("[train]\nlearning_rate = 1\n[network]\n").contains("learning_rate"));
        assert!(error("[train]\n").contains("network"));
        let data = Dataset::open("mnist", Split::Test).unwrap();
        let build = |change: fn(&mut RunConfig)| {
            let mut run = RunConfig::preset("tiny").unwrap();
            change(&mut run);
            format!("{:#}", run.build(&data).unwrap_err())
        };
        let message = build(|run| {
            run.network.insert("time_embedding_type".to_owned(), json!("fourier"));
        });
        assert!(message.contains("logarithm") && message.contains("time_embedding_type"), "{message}");
        let message = build(|run| {
            run.network.insert("time_embedding_type".to_owned(), json!("learned"));
            run.network.insert("num_train_timesteps".to_owned(), json!(999));
        });
        assert!(message.contains("999 steps") && message.contains("num_train_timesteps"), "{message}");
        let message = build(|run| run.train.range = Range::ZeroOne);
        assert!(message.contains("range = \"minus-one-one\""), "{message}");
        let message = build(|run| {
            run.network.insert("in_channels".to_owned(), json!(3));
        });
        assert!(message.contains("3 input and 1 output channels"), "{message}");
        let message = build(|run| {
            run.network.insert("block_out_channels".to_owned(), json!([8, 8, 8, 8]));
            run.network.insert("down_block_types".to_owned(), json!(vec!["DownBlock2D"; 4]));
            run.network.insert("up_block_types".to_owned(), json!(vec!["UpBlock2D"; 4]));
        });
        assert!(message.contains("28 x 28") && message.contains("multiples of 8"), "{message}");
    }
}
