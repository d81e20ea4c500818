use std::borrow::Cow;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::config::{kind as json_kind, parse_config};
use crate::{CheckpointError, Config, TensorFile, WEIGHTS_NAME, read_config};

/// The `_class_name`s of the networks that can be opened.
pub const SUPPORTED_CLASSES: [&str; 3] = ["UNet2DModel", "UNetCond", "EncoderClassifier"];

const INDEX: &str = "model_index.json";
const CONFIG: &str = "config.json";
const SCHEDULER: &str = "scheduler_config.json";

/// How a model lies on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ModelKind {
    /// `model_index.json` with a folder for each component; training runs are written like this.
    Pipeline,
    /// One network: `config.json` and its weights.
    Component,
    /// The same with the textbook conditional U-Net (`"_class_name": "UNetCond"`).
    Book,
}

/// An opened model: its configs, parsed, and its weights, checked as a file but not yet against the architecture.
#[derive(Debug)]
#[non_exhaustive]
pub struct ModelDir {
    /// How it lies on disk.
    pub kind: ModelKind,
    /// The network's `_class_name`, one of [`SUPPORTED_CLASSES`].
    pub class_name: String,
    /// The network's config.
    pub config: Config,
    /// Where that was read.
    pub config_path: PathBuf,
    /// The scheduler's config, if there is one.
    pub scheduler: Option<Config>,
    /// Where that was read, or would have been.
    pub scheduler_path: PathBuf,
    /// The weights.
    pub weights: TensorFile,
}

impl ModelDir {
    /// Opens a model directory.
    ///
    /// It is a pipeline (`model_index.json`, `unet/`, `scheduler/`) or one network (`config.json` beside its weights;
    /// `scheduler_config.json` beside it, in `scheduler/`, or in the pipeline that it is a part of). The weights are
    /// `diffusion_pytorch_model.safetensors`, the same in shards with an index, or the only variant of it
    /// (`diffusion_pytorch_model.fp16.safetensors`). Keys of attention layers that old versions of diffusers named
    /// `query`, `key`, `value` and `proj_attn` come under their present names.
    ///
    /// # Errors
    /// If the directory or one of its files is missing, damaged or of an unknown class; the message names the file and
    /// what to do.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        Self::open_variant(path, None)
    }

    /// [`ModelDir::open`] with the weights of one variant: `fp16` stands for `diffusion_pytorch_model.fp16.safetensors` or the
    /// shards of `diffusion_pytorch_model.safetensors.index.fp16.json`. `None` is the plain file or, where there is
    /// none, the only variant.
    ///
    /// # Errors
    /// As [`ModelDir::open`]; also if there is no such variant.
    pub fn open_variant(path: impl AsRef<Path>, variant: Option<&str>) -> Result<Self, CheckpointError> {
        let path = path.as_ref();
        let not_a_model = |problem, remedy| Err(CheckpointError::NotAModel { path: path.to_owned(), problem, remedy });
        match path.metadata() {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => return not_a_model("it is a file", "name the directory that holds config.json and the weights"),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return not_a_model("there is no such directory", "check the path");
            }
            Err(e) => return Err(CheckpointError::io("open", path, e)),
        }
        let index_path = path.join(INDEX);
        // Early repositories keep the only network of a pipeline at the root, beside model_index.json.
        if index_path.is_file() && (path.join("unet").is_dir() || !path.join(CONFIG).is_file()) {
            return open_pipeline(path, &index_path, variant);
        }
        if !path.join(CONFIG).is_file() {
            let weights =
                listing(path).into_iter().find(|name| name.ends_with(".safetensors") || name.ends_with(".bin"));
            let remedy = match weights {
                Some(name) => format!(
                    "{name} is there, but weights say nothing of their network: put its config.json beside them"
                ),
                None => "name a model directory: one with either of these files".to_owned(),
            };
            return Err(missing("config", path, [INDEX, CONFIG], remedy));
        }
        let scheduler_path = [path.join(SCHEDULER), path.join("scheduler").join(SCHEDULER)]
            .into_iter()
            .chain(path.parent().filter(|p| p.join(INDEX).is_file()).map(|p| p.join("scheduler").join(SCHEDULER)))
            .find(|p| p.is_file());
        let scheduler = scheduler_path.as_deref().map(read_config).transpose()?;
        open_network(
            path,
            ModelKind::Component,
            None,
            scheduler,
            scheduler_path.unwrap_or_else(|| path.join(SCHEDULER)),
            variant,
        )
    }

    /// A model that lies in memory, such as the bundled one; `name` stands for its directory in messages.
    ///
    /// # Errors
    /// As [`ModelDir::open`].
    pub fn from_memory(
        name: &str,
        config: &str,
        scheduler: Option<&str>,
        weights: impl Into<Cow<'static, [u8]>>,
    ) -> Result<Self, CheckpointError> {
        let directory = Path::new(name);
        let (config_path, scheduler_path) = (directory.join(CONFIG), directory.join(SCHEDULER));
        let config = parse_config(config.as_bytes(), &config_path)?;
        let scheduler = scheduler.map(|text| parse_config(text.as_bytes(), &scheduler_path)).transpose()?;
        let weights = TensorFile::from_bytes(weights, &directory.join(WEIGHTS_NAME).display().to_string())?;
        finish(ModelKind::Component, None, (config, config_path), (scheduler, scheduler_path), weights)
    }
}

fn open_pipeline(path: &Path, index_path: &Path, variant: Option<&str>) -> Result<ModelDir, CheckpointError> {
    let index = read_config(index_path)?;
    let class = component(&index, index_path, "unet")?;
    let Some(class) = class else {
        return Err(config_error(
            index_path,
            "unet",
            "[library, class]",
            &index,
            "this pipeline has no network that can be opened",
        ));
    };
    let scheduler_path = path.join("scheduler").join(SCHEDULER);
    let scheduler = match component(&index, index_path, "scheduler")? {
        _ if scheduler_path.is_file() => Some(read_config(&scheduler_path)?),
        None => None,
        Some(_) => {
            let remedy = format!("{INDEX} lists a scheduler: fetch its config, or set the entry to [null, null]");
            return Err(missing("scheduler config", &path.join("scheduler"), [SCHEDULER], remedy));
        }
    };
    let unet = path.join("unet");
    if !unet.is_dir() {
        let remedy = format!("{INDEX} lists a network: fetch its folder as well");
        return Err(missing("network", path, ["unet/"], remedy));
    }
    if !unet.join(CONFIG).is_file() {
        let remedy = "fetch the config of the network; weights say nothing of it".to_owned();
        return Err(missing("config", &unet, [CONFIG], remedy));
    }
    open_network(&unet, ModelKind::Pipeline, Some(class), scheduler, scheduler_path, variant)
}

/// The class of a pipeline's component: `["diffusers", "UNet2DModel"]`; `None` if absent or `[null, null]`.
pub(crate) fn component(index: &Config, path: &Path, name: &str) -> Result<Option<String>, CheckpointError> {
    match index.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(pair)) => match pair.as_slice() {
            [Value::Null, Value::Null] => Ok(None),
            [_, Value::String(class)] => Ok(Some(class.clone())),
            _ => Err(config_error(path, name, "[library, class]", index, "fetch the file again")),
        },
        Some(_) => Err(config_error(path, name, "[library, class]", index, "fetch the file again")),
    }
}

fn open_network(
    directory: &Path,
    kind: ModelKind,
    class: Option<String>,
    scheduler: Option<Config>,
    scheduler_path: PathBuf,
    variant: Option<&str>,
) -> Result<ModelDir, CheckpointError> {
    let config_path = directory.join(CONFIG);
    let config = read_config(&config_path)?;
    // The class is judged first: of a model that cannot be used, the weights do not matter.
    class_name(&config, &config_path, class.clone())?;
    let weights = TensorFile::open(find_weights(directory, variant)?)?;
    finish(kind, class, (config, config_path), (scheduler, scheduler_path), weights)
}

fn finish(
    kind: ModelKind,
    class: Option<String>,
    (config, config_path): (Config, PathBuf),
    (scheduler, scheduler_path): (Option<Config>, PathBuf),
    mut weights: TensorFile,
) -> Result<ModelDir, CheckpointError> {
    let class_name = class_name(&config, &config_path, class)?;
    weights.rename(present_name)?;
    weights.reshape(without_kernel);
    let kind = if class_name == "UNetCond" { ModelKind::Book } else { kind };
    Ok(ModelDir { kind, class_name, config, config_path, scheduler, scheduler_path, weights })
}

/// Names as a choice: `A, B or C`.
pub(crate) fn one_of(names: &[&str]) -> String {
    match names {
        [rest @ .., last] if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => names.concat(),
    }
}

/// The class of a network: that of its config or, failing that, of the pipeline.
fn class_name(config: &Config, path: &Path, of_pipeline: Option<String>) -> Result<String, CheckpointError> {
    let class = match config.get("_class_name") {
        None => of_pipeline,
        Some(Value::String(class)) => Some(class.clone()),
        Some(_) => None,
    };
    match class {
        Some(class) if SUPPORTED_CLASSES.contains(&class.as_str()) => Ok(class),
        other => Err(CheckpointError::Config {
            file: path.display().to_string(),
            key: "_class_name".into(),
            expected: one_of(&SUPPORTED_CLASSES),
            remedy: match other.as_deref() {
                Some("UNet2DConditionModel" | "AutoencoderKL") => {
                    "a pipeline from text to picture is drawn from with `tweedie txt2img`"
                }
                _ => "other networks cannot be opened; check that this is the directory of the network",
            }
            .into(),
            found: other.unwrap_or_else(|| config.get("_class_name").map_or("nothing", json_kind).to_owned()),
        }),
    }
}

const STEM: &str = "diffusion_pytorch_model";
/// That of transformers.
const OTHER_STEM: &str = "model";

/// The variant that a file of weights is: `fp16` of `diffusion_pytorch_model.fp16.safetensors` or of an index of shards.
fn variant_of(name: &str) -> Option<&str> {
    let rest = name.strip_prefix(STEM).or_else(|| name.strip_prefix(OTHER_STEM))?;
    // Shards (-00001-of-00002) are opened through their index.
    let file = rest.strip_prefix('.').and_then(|rest| rest.strip_suffix(".safetensors"));
    let index = rest.strip_prefix(".safetensors.index.").and_then(|rest| rest.strip_suffix(".json"));
    file.filter(|tag| !tag.contains("-of-")).or(index).filter(|tag| !tag.is_empty())
}

/// The weights in a directory: those of the variant that was asked for, or the plain name, an index of shards, or the only
/// variant.
pub(crate) fn find_weights(directory: &Path, wanted: Option<&str>) -> Result<PathBuf, CheckpointError> {
    let names = listing(directory);
    let exact = match wanted {
        None => vec![
            WEIGHTS_NAME.to_owned(),
            format!("{WEIGHTS_NAME}.index.json"),
            format!("{OTHER_STEM}.safetensors"),
            format!("{OTHER_STEM}.safetensors.index.json"),
        ],
        Some(tag) => vec![
            format!("{STEM}.{tag}.safetensors"),
            format!("{WEIGHTS_NAME}.index.{tag}.json"),
            format!("{OTHER_STEM}.{tag}.safetensors"),
            format!("{OTHER_STEM}.safetensors.index.{tag}.json"),
        ],
    };
    if let Some(name) = exact.iter().find(|name| names.contains(name)) {
        return Ok(directory.join(name));
    }
    let found: Vec<(&str, &String)> = names.iter().filter_map(|name| Some((variant_of(name)?, name))).collect();
    let mut variants: Vec<&str> = found.iter().map(|(variant, _)| *variant).collect();
    variants.dedup();
    let remedy = match (wanted, found.as_slice()) {
        (None, [(_, only)]) => return Ok(directory.join(only)),
        (_, []) => match names.iter().find(|name| is_pickle(name)) {
            _ if wanted.is_some() => "there are no variants: leave --variant out".to_owned(),
            Some(name) => format!(
                "only {name} is there, a Python pickle, which is not read: convert it in Python with \
                 `model.save_pretrained(directory, safe_serialization=True)`"
            ),
            None => "fetch the weights, or check that this is the directory of the network".to_owned(),
        },
        (None, _) => {
            format!("there are several variants: choose one with --variant ({})", variants.join(", "))
        }
        (Some(_), _) => format!("there are the variants {}: choose one of them with --variant", variants.join(", ")),
    };
    let others = wanted.is_none().then(|| format!("{STEM}.VARIANT.safetensors"));
    let looked_for = exact.into_iter().chain(others).collect();
    Err(CheckpointError::Missing { what: "weights", directory: directory.to_owned(), looked_for, remedy })
}

fn is_pickle(name: &str) -> bool {
    [".bin", ".pt", ".pth", ".ckpt"].iter().any(|suffix| name.ends_with(suffix))
}

/// The present name of an attention layer that old versions of diffusers named otherwise.
pub(crate) fn present_name(key: &str) -> Option<String> {
    let (module, parameter) = key.rsplit_once('.')?;
    let (attention, layer) = module.rsplit_once('.')?;
    if !attention.contains("attentions.") {
        return None;
    }
    let layer = match layer {
        "query" => "to_q",
        "key" => "to_k",
        "value" => "to_v",
        "proj_attn" => "to_out.0",
        _ => return None,
    };
    Some(format!("{attention}.{layer}.{parameter}"))
}

/// The shape of a weight of an attention layer that was once saved as that of a convolution of size 1: `[C, C, 1, 1]`.
pub(crate) fn without_kernel(key: &str, shape: &[usize]) -> Option<Vec<usize>> {
    let (module, parameter) = key.rsplit_once('.')?;
    let projection = ["to_q", "to_k", "to_v", "to_out.0"].iter().any(|layer| module.ends_with(layer));
    match *shape {
        [out, into, 1, 1] if projection && parameter == "weight" && module.contains("attentions.") => {
            Some(vec![out, into])
        }
        _ => None,
    }
}

/// The names in a directory, sorted; empty if it cannot be listed, since what follows says what was looked for.
fn listing(directory: &Path) -> Vec<String> {
    let Ok(entries) = directory.read_dir() else { return Vec::new() };
    let mut names: Vec<_> = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

pub(crate) fn missing<const N: usize>(
    what: &'static str,
    directory: &Path,
    names: [&str; N],
    remedy: String,
) -> CheckpointError {
    let looked_for = names.iter().map(|&name| name.to_owned()).collect();
    CheckpointError::Missing { what, directory: directory.to_owned(), looked_for, remedy }
}

pub(crate) fn config_error(path: &Path, key: &str, expected: &str, config: &Config, remedy: &str) -> CheckpointError {
    CheckpointError::Config {
        file: path.display().to_string(),
        key: key.to_owned(),
        expected: expected.to_owned(),
        found: config.get(key).map_or_else(|| "nothing".to_owned(), Value::to_string),
        remedy: remedy.to_owned(),
    }
}
