//! The parts of a pipeline, opened one by one.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tweedie_checkpoint::{Component, Pipeline, TensorFile, check_keys};
use tweedie_denoiser::{Param, Text};
use tweedie_latent::clip::{self, TextConfig};
use tweedie_latent::{
    Adapted, AdaptedWeights, Codec, FileWeights, Lora, TextEncoder, Tokenizer, TokenizerFiles, Tokens,
};
use tweedie_samplers::{Clip, SchedulerSpec};
use tweedie_unet::WeightSource;
use tweedie_unet::autoencoder::{self, AutoencoderKl};
use tweedie_unet::cross::{self, Cross};

use super::args::DrawArgs;
use crate::args;
use crate::console::usage;
use crate::sample::plan::{self, Overrides};
use crate::scheduler;

/// Numbers that share a factor where weights are rounded to bytes.
const BLOCK: usize = 32;

/// The pipelines that are made of the parts that are known here.
const PIPELINES: [&str; 6] = [
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionInpaintPipelineLegacy",
    "StableDiffusionPipelineSafe",
    "LatentConsistencyModelPipeline",
];

/// A pipeline's directory and what of it is wanted.
pub struct Parts {
    pipeline: Pipeline,
    variant: Option<String>,
    int8: bool,
    adapters: Vec<(Lora, f32)>,
}

/// Prompts as the network reads them.
pub struct Prompts {
    /// One for each prompt.
    pub texts: Vec<Text>,
    /// What of each prompt did not fit, if anything.
    pub cut_off: Vec<Option<String>>,
}

impl Parts {
    /// Opens the directory; none of its weights yet.
    ///
    /// # Errors
    /// If it is no pipeline of this kind, or a LoRA file cannot be read.
    pub fn open(args: &DrawArgs) -> Result<Self> {
        let pipeline = Pipeline::open(&args.model)?;
        let class = pipeline.class_name();
        if !PIPELINES.contains(&class) {
            bail!(
                "{}: the pipeline is a {}, and text to image takes one of {}; a pipeline of another kind may be drawn from with \
                 `tweedie sample`",
                args.model.display(),
                if class.is_empty() { "pipeline without a class" } else { class },
                PIPELINES.join(", ")
            );
        }
        let adapters = args.lora.iter().map(|text| adapter(text)).collect::<Result<_>>()?;
        Ok(Self { pipeline, variant: args.variant.clone(), int8: args.int8, adapters })
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        self.pipeline.root()
    }

    /// The LoRA files and their weights, for files that are written.
    pub fn adapters(&self) -> Vec<Value> {
        self.adapters.iter().map(|(lora, weight)| serde_json::json!([lora.name(), weight])).collect()
    }

    fn part(&self, name: &'static str, classes: &[&str]) -> Result<Component> {
        Ok(self.pipeline.part(name, classes, self.variant.as_deref())?)
    }

    /// A tokenizer, by the files of its folder.
    fn tokenizer(&self) -> Result<Tokenizer> {
        let folder = self.pipeline.root().join("tokenizer");
        tokenizer(&folder)
    }

    /// Encodes prompts, each with so many layers left out at the end, and drops the encoder.
    ///
    /// # Errors
    /// If a part cannot be opened, or more layers are to be skipped than there are.
    pub fn encode(&self, prompts: &[(&str, usize)]) -> Result<Prompts> {
        let tokens: Vec<Tokens> = {
            let tokenizer = self.tokenizer()?;
            prompts.iter().map(|(prompt, _)| tokenizer.encode(prompt)).collect::<Result<_, _>>()?
        };
        let component = self.part("text_encoder", &["CLIPTextModel"])?;
        let (config, source) = text_weights(component)?;
        let source = AdaptedWeights::new(source, Adapted::TextEncoder, &self.adapters);
        let encoder = TextEncoder::new(config, &source)?;
        refuse_unused(&source, "text encoder")?;
        let layers = encoder.config().transformer.layers;
        if let Some((_, skip)) = prompts.iter().find(|(_, skip)| *skip >= layers) {
            return Err(usage(format!(
                "--clip-skip {skip}: the text encoder has {layers} layers; give 0 to {}",
                layers - 1
            )));
        }
        let ids: Vec<(Vec<u32>, usize)> =
            tokens.iter().zip(prompts).map(|(tokens, (_, skip))| (tokens.ids.clone(), *skip)).collect();
        let mut texts = Vec::new();
        // Neighbours that are alike go through the encoder together, which reads its weights once for all of them.
        for alike in ids.chunk_by(|a, b| a.1 == b.1) {
            let together: Vec<Vec<u32>> = alike.iter().map(|(ids, _)| ids.clone()).collect();
            texts.extend(encoder.texts(&together, alike[0].1)?);
        }
        for text in &texts {
            if text.iter().any(|x: &f32| !x.is_finite()) {
                bail!(
                    "{}: what it makes of the prompt is not finite; the weights are damaged",
                    self.at("text_encoder")
                );
            }
        }
        Ok(Prompts { texts, cut_off: tokens.into_iter().map(|tokens| tokens.cut_off).collect() })
    }

    /// What is wrong with the weights of a part, if a number of them is none.
    pub fn damage(&self, part: &'static str, classes: &[&str]) -> Option<anyhow::Error> {
        let weights = self.part(part, classes).ok()?.weights;
        let broken = |name: &str| weights.read_f32_finite(name).err();
        weights.tensors().find_map(|tensor| broken(tensor.name)).map(anyhow::Error::from)
    }

    fn at(&self, part: &str) -> String {
        self.pipeline.root().join(part).display().to_string()
    }

    /// The network's configuration and the size of its weights in bytes, without them.
    ///
    /// # Errors
    /// If it cannot be opened, or its weights do not belong to it.
    pub fn network_config(&self) -> Result<(cross::Config, Component)> {
        let component = self.part("unet", &[cross::CLASS])?;
        Ok((checked(&component)?, component))
    }

    /// The network.
    ///
    /// # Errors
    /// As [`Parts::network_config`].
    pub fn network(&self) -> Result<Cross> {
        let (config, component) = self.network_config()?;
        let mut source = FileWeights::new(component.weights);
        if self.int8 {
            source = source.rounded(BLOCK);
        }
        let source = AdaptedWeights::new(source, Adapted::Network, &self.adapters);
        let network = Cross::new(config, &source)?;
        refuse_unused(&source, "network")?;
        Ok(network)
    }

    /// The autoencoder's configuration and its weights.
    ///
    /// # Errors
    /// If it cannot be opened, or its weights do not belong to it.
    pub fn autoencoder_config(&self) -> Result<(autoencoder::Config, Component)> {
        let component = self.part("vae", &[autoencoder::CLASS])?;
        Ok((autoencoder_config(&component)?, component))
    }

    /// The autoencoder.
    ///
    /// # Errors
    /// As [`Parts::autoencoder_config`].
    pub fn codec(&self) -> Result<Codec> {
        let (config, component) = self.autoencoder_config()?;
        Ok(Codec::new(AutoencoderKl::new(config, &FileWeights::new(component.weights))?))
    }

    /// The scheduler, with what the options change. As in diffusers' pipelines `steps_offset` is 1 and nothing is clipped.
    ///
    /// # Errors
    /// If the config cannot be used, or an option contradicts it.
    pub fn scheduler(&self, args: &DrawArgs) -> Result<SchedulerSpec> {
        let (mut config, path) = self.pipeline.scheduler()?;
        if config.contains_key("steps_offset") {
            config.insert("steps_offset".into(), 1.into());
        }
        if config.contains_key("clip_sample") {
            config.insert("clip_sample".into(), false.into());
        }
        let wanted = args.sampler.as_deref().map(args::solver).transpose()?;
        let mut spec = scheduler::from_config(&config, &path, wanted)?;
        if spec.clip == Clip::Range(1.0) {
            // The default of a key that is not there: latents are not pixels.
            spec.clip = Clip::None;
        }
        let process = args::ProcessArgs::default();
        let options = Overrides {
            spacing: args.spacing.as_deref(),
            sigmas: args.sigmas.as_deref(),
            eta: args.eta,
            compat: if args.compat { tweedie_samplers::Compat::Diffusers } else { tweedie_samplers::Compat::Published },
            ..Overrides::none(&process)
        };
        plan::adjust(&mut spec, &options)?;
        Ok(spec)
    }
}

/// Tokenizer files of a folder.
///
/// # Errors
/// If they are incomplete or damaged.
pub fn tokenizer(folder: &Path) -> Result<Tokenizer> {
    let text = |file: &str| tweedie_checkpoint::read_text(folder.join(file));
    let (tokenizer, vocabulary, merges) = (text("tokenizer.json")?, text("vocab.json")?, text("merges.txt")?);
    let (special, config) = (text("special_tokens_map.json")?, text("tokenizer_config.json")?);
    let added = text("added_tokens.json")?;
    let files = TokenizerFiles {
        tokenizer: tokenizer.as_deref(),
        vocabulary: vocabulary.as_deref(),
        merges: merges.as_deref(),
        special_tokens: special.as_deref(),
        config: config.as_deref(),
        added_tokens: added.as_deref(),
    };
    Tokenizer::new(&files).with_context(|| folder.display().to_string())
}

/// The configuration of an autoencoder, whose weights belong to it.
///
/// # Errors
/// If they do not.
pub fn autoencoder_config(component: &Component) -> Result<autoencoder::Config> {
    let file = || component.config_path.display().to_string();
    let config = autoencoder::Config::from_json(&component.config).with_context(file)?;
    let table = config.table(numbers(&component.weights)).with_context(file)?;
    check(table.entries(), &component.weights)?;
    Ok(config)
}

/// The configuration and the weights of a text encoder.
///
/// # Errors
/// If they do not belong together.
pub fn text_weights(component: Component) -> Result<(TextConfig, FileWeights)> {
    let Component { config, config_path, mut weights, .. } = component;
    let config = TextConfig::from_json(&config).with_context(|| config_path.display().to_string())?;
    weights.rename(clip::text_key)?;
    let tensors = config.tensors();
    check_keys(tensors.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())), &weights, clip::is_superfluous)?;
    Ok((config, FileWeights::new(weights)))
}

/// How many numbers a file holds.
fn numbers(weights: &TensorFile) -> usize {
    weights.tensors().map(|tensor| tensor.shape.iter().product::<usize>()).sum()
}

/// Bytes of a file's tensors.
pub fn bytes(weights: &TensorFile) -> u64 {
    crate::model::stored(weights).0
}

fn check(entries: &[Param], weights: &TensorFile) -> Result<()> {
    Ok(check_keys(entries.iter().map(|p| (p.name.as_str(), p.shape.as_slice())), weights, |_| false)?)
}

/// The configuration of a network that reads texts, whose weights belong to it.
fn checked(component: &Component) -> Result<cross::Config> {
    let file = || component.config_path.display().to_string();
    let config = cross::Config::from_json(&component.config).with_context(file)?;
    let table = config.table(numbers(&component.weights)).with_context(file)?;
    check(table.entries(), &component.weights)?;
    Ok(config)
}

/// `FILE` or `FILE:WEIGHT`.
fn adapter(text: &str) -> Result<(Lora, f32)> {
    let (path, weight) = match text.rsplit_once(':').and_then(|(path, weight)| Some((path, weight.parse().ok()?))) {
        Some((path, weight)) if !path.is_empty() => (PathBuf::from(path), weight),
        _ => (PathBuf::from(text), 1.0f32),
    };
    if !weight.is_finite() {
        return Err(usage(format!("--lora {text}: the weight should be a finite number, such as 0.8")));
    }
    Ok((Lora::read(&TensorFile::open(&path)?)?, weight))
}

fn refuse_unused<S: WeightSource>(source: &AdaptedWeights<'_, S>, part: &str) -> Result<()> {
    let unused = source.unused();
    let Some((file, layer)) = unused.first() else { return Ok(()) };
    bail!(
        "--lora {file}: it changes {} layers that the {part} of this pipeline does not have, such as {layer}; it was made for \
         another model",
        unused.len()
    )
}

/// The class that a `config.json` of diffusers or of transformers names; `None` without one, or without such a file.
pub fn class_of(config: &Path) -> Option<String> {
    let config = tweedie_checkpoint::read_config(config).ok()?;
    let architecture = config.get("architectures").and_then(|list| list.get(0));
    config.get("_class_name").or(architecture).and_then(Value::as_str).map(str::to_owned)
}

/// A network that reads texts, and its name.
pub struct TextNetwork {
    /// The directory.
    pub name: String,
    /// The configuration.
    pub config: cross::Config,
    /// The weights, compared with it.
    pub weights: TensorFile,
}

/// The network that reads texts in `path`: the only one there, or that of a pipeline. `None` of anything else, which others
/// open.
///
/// # Errors
/// If it is one, but cannot be used.
pub fn text_network(path: &Path, variant: Option<&str>) -> Result<Option<TextNetwork>> {
    let component = match path.join("model_index.json").is_file() {
        true if class_of(&path.join("unet/config.json")).as_deref() == Some(cross::CLASS) => {
            Pipeline::open(path)?.part("unet", &[cross::CLASS], variant)?
        }
        false if class_of(&path.join("config.json")).as_deref() == Some(cross::CLASS) => {
            tweedie_checkpoint::open_component(path, &[cross::CLASS], variant)?
        }
        _ => return Ok(None),
    };
    let config = checked(&component)?;
    Ok(Some(TextNetwork { name: path.display().to_string(), config, weights: component.weights }))
}

impl TextNetwork {
    /// The network with its weights.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn network(self) -> Result<Cross> {
        Ok(Cross::new(self.config, &FileWeights::new(self.weights))?)
    }
}
