//! MODEL on the command line: the bundled digits, a directory, or an oracle.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value;
use tweedie_checkpoint::{
    Config, ModelDir, ModelKind, Storage, Tensor, TensorFile, check_keys, read_config, write_component, write_pipeline,
};
use tweedie_data::Range;
use tweedie_denoiser::{Component, Mean, MixtureOracle, Network, NetworkGrad, Param, Params, Role, Spread};
use tweedie_schedule::TimestepMapping;
use tweedie_unet::{Model, classifier};

/// The name of the bundled model in messages and files.
pub const BUNDLED: &str = "digits (bundled)";

/// The key of a network's config that recommends a guidance scale. Diffusers takes keys that begin with `_` for metadata and
/// ignores them.
pub const GUIDANCE_KEY: &str = "_tweedie_guidance";

/// The key of a network's config that names its classes, in the order of their labels.
pub const CLASS_NAMES_KEY: &str = "_tweedie_class_names";

/// The class of the textbook network.
const BOOK: &str = "UNetCond";

const BUNDLED_CONFIG: &str = include_str!("../assets/digits/config.json");
const BUNDLED_SCHEDULER: &str = include_str!("../assets/digits/scheduler_config.json");
const BUNDLED_WEIGHTS: &[u8] = include_bytes!("../assets/digits/diffusion_pytorch_model.safetensors");

/// What can be drawn from.
pub enum Loaded {
    /// A network and what its directory says.
    Network(Box<LoadedNetwork>),
    /// An exact denoiser.
    Oracle(Box<LoadedOracle>),
}

/// A network with its weights.
pub struct LoadedNetwork {
    /// The directory, or [`BUNDLED`].
    pub name: String,
    /// How it lies on disk.
    pub kind: ModelKind,
    /// The class in its config.
    pub class_name: String,
    /// The network.
    pub network: Model,
    /// The scheduler's config and where it was read, if there is one.
    pub scheduler: Option<(Config, PathBuf)>,
    /// The guidance scale that its config recommends for drawing labels ([`GUIDANCE_KEY`]).
    pub guidance: Option<f64>,
    /// The names of the classes ([`CLASS_NAMES_KEY`]); empty if they have none.
    pub class_names: Vec<String>,
    /// Bytes of the weights as they are stored.
    pub stored_bytes: u64,
    /// The types that the weights are stored in, such as `F16`.
    pub stored_types: String,
}

/// An exact denoiser and the labels that it knows.
pub struct LoadedOracle {
    /// The file.
    pub name: String,
    /// The denoiser.
    pub oracle: MixtureOracle,
    /// Every label of a component, in ascending order.
    pub labels: Vec<usize>,
}

/// Opens what `--model` names; of several variants of its weights the one that `--variant` names.
///
/// # Errors
/// If it is no model, or one that is damaged or not supported; the message names the file and the key.
pub fn open(model: Option<&Path>, variant: Option<&str>) -> Result<Loaded> {
    open_with(model, variant, Weights::Read)
}

/// As [`open`], but the weights of a network stay in their file, whatever its size: those in memory are all zero.
///
/// # Errors
/// As [`open`], but for what is found in the weights.
pub fn open_without_weights(model: Option<&Path>, variant: Option<&str>) -> Result<Loaded> {
    open_with(model, variant, Weights::Left)
}

/// What becomes of the weights in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weights {
    Read,
    Left,
}

fn open_with(model: Option<&Path>, variant: Option<&str>, weights: Weights) -> Result<Loaded> {
    match model {
        Some(path) if is_oracle(path) => Ok(Loaded::Oracle(Box::new(open_oracle(path)?))),
        _ => Ok(Loaded::Network(Box::new(open_network_with(model, variant, weights)?))),
    }
}

/// Opens what `--model` names, which has to be a network.
///
/// # Errors
/// As [`open`]; also for an oracle.
pub fn open_network(model: Option<&Path>, variant: Option<&str>) -> Result<LoadedNetwork> {
    open_network_with(model, variant, Weights::Read)
}

fn open_network_with(model: Option<&Path>, variant: Option<&str>, weights: Weights) -> Result<LoadedNetwork> {
    match model {
        None => {
            let dir = ModelDir::from_memory(BUNDLED, BUNDLED_CONFIG, Some(BUNDLED_SCHEDULER), BUNDLED_WEIGHTS)?;
            from_dir(dir, BUNDLED.to_owned(), weights)
        }
        Some(path) if is_oracle(path) => {
            bail!("{} is an oracle, which has no network; give a model directory", path.display())
        }
        Some(path) => from_dir(ModelDir::open_variant(path, variant)?, path.display().to_string(), weights),
    }
}

/// Whether a path names an oracle: a JSON file.
fn is_oracle(path: &Path) -> bool {
    path.extension().is_some_and(|suffix| suffix.eq_ignore_ascii_case("json")) && !path.is_dir()
}

fn from_dir(dir: ModelDir, name: String, weights: Weights) -> Result<LoadedNetwork> {
    if dir.class_name == classifier::CLASS {
        bail!(
            "{name} is a classifier ({}): it says what an image shows, and neither draws nor predicts noise; give the directory of \
             a diffusion model",
            dir.class_name
        );
    }
    let config = || dir.config_path.display().to_string();
    // The weights are compared with the table before memory is taken for a network that a config may make up.
    let available = dir.weights.tensors().map(|tensor| tensor.shape.iter().product::<usize>()).sum();
    let table = Model::table(&dir.config, available).with_context(config)?;
    check_keys(table.entries().iter().map(|p| (p.name.as_str(), p.shape.as_slice())), &dir.weights, |_| false)?;
    let mut network = Model::from_config(&dir.config).with_context(config)?;
    let (stored_bytes, stored_types) = stored(&dir.weights);
    let guidance = guidance(&dir.config).with_context(|| dir.config_path.display().to_string())?;
    let class_names = class_names(&dir.config).with_context(|| dir.config_path.display().to_string())?;
    if weights == Weights::Read {
        load_weights(&mut network, &dir.weights)?;
    }
    Ok(LoadedNetwork {
        guidance,
        class_names,
        name,
        kind: dir.kind,
        class_name: dir.class_name,
        network,
        scheduler: dir.scheduler.map(|config| (config, dir.scheduler_path)),
        stored_bytes,
        stored_types,
    })
}

/// Bytes of the weights as they are stored, and their types.
pub fn stored(weights: &TensorFile) -> (u64, String) {
    let sizes = weights.tensors().map(|t| (t.shape.iter().product::<usize>() * t.dtype.bitsize() / 8) as u64);
    let bytes = sizes.sum();
    let mut types: Vec<String> = weights.tensors().map(|t| t.dtype.to_string()).collect();
    types.sort();
    types.dedup();
    (bytes, types.join(", "))
}

/// The guidance scale that a network's config recommends.
fn guidance(config: &Config) -> Result<Option<f64>> {
    match config.get(GUIDANCE_KEY) {
        None => Ok(None),
        Some(value) => match value.as_f64().filter(|scale| scale.is_finite()) {
            Some(scale) => Ok(Some(scale)),
            None => bail!("the key {GUIDANCE_KEY} should be a number, found {value}; correct it or remove it"),
        },
    }
}

/// The names of the classes, as a network's config gives them.
///
/// # Errors
/// If they are no names.
pub fn class_names(config: &Config) -> Result<Vec<String>> {
    let Some(value) = config.get(CLASS_NAMES_KEY) else { return Ok(Vec::new()) };
    let names = value.as_array().map(|names| names.iter().map(|name| name.as_str().map(str::to_owned)).collect());
    match names.flatten() {
        Some(names) => Ok(names),
        None => {
            bail!("the key {CLASS_NAMES_KEY} should be a list of names, found another value; correct it or remove it")
        }
    }
}

/// Fills a network with the tensors of a file, whose keys and shapes were checked.
///
/// # Errors
/// If a tensor cannot be read, or holds a number that is not finite.
pub fn load_weights(network: &mut dyn NetworkGrad, file: &TensorFile) -> Result<()> {
    let table = network.params().table().to_vec();
    let values = network.params_mut().values_mut();
    for param in table {
        let read = match param.role {
            // Counters are integers in files of other programs; they count steps, so no digit is lost.
            Role::Counter => file.read_i64(&param.name).map(|c| c.into_iter().map(|n| n as f32).collect()),
            _ => file.read_f32_finite(&param.name),
        }?;
        values[param.range].copy_from_slice(&read);
    }
    Ok(())
}

/// How a model lies on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `model_index.json`, `unet/` and `scheduler/`, which diffusers opens as a pipeline.
    Pipeline,
    /// `config.json`, the weights and, if there is one, `scheduler_config.json`, all side by side: a `book` directory, or what
    /// diffusers opens as a single network.
    Component,
}

impl Layout {
    /// The usual one: a component for the textbook network and classifiers, which diffusers has no class for, or without a
    /// scheduler; else a pipeline.
    pub fn usual(class_name: &str, scheduler: bool) -> Self {
        if scheduler && ![BOOK, classifier::CLASS].contains(&class_name) { Self::Pipeline } else { Self::Component }
    }
}

/// Writes a model.
///
/// # Errors
/// If a file cannot be written, or a pipeline is asked for without a scheduler or of a class that diffusers does not have.
pub fn write(
    root: &Path,
    layout: Layout,
    network: &Value,
    scheduler: Option<&Value>,
    params: &Params,
    storage: impl Into<Storage>,
) -> Result<()> {
    let values = |param: &Param| &params.values()[param.range.clone()];
    // Counters are integers in files; they count steps, so no digit is lost.
    let counters: Vec<Vec<i64>> = params
        .table()
        .iter()
        .filter(|param| param.role == Role::Counter)
        .map(|param| values(param).iter().map(|&count| count as i64).collect())
        .collect();
    let numbers = params.table().iter().filter(|param| param.role != Role::Counter);
    let counts = params.table().iter().filter(|param| param.role == Role::Counter).zip(&counters);
    let tensors: Vec<Tensor<'_>> = numbers
        .map(|param| Tensor::f32(&param.name, &param.shape, values(param)))
        .chain(counts.map(|(param, count)| Tensor::i64(&param.name, &param.shape, count)))
        .collect();
    match (layout, scheduler) {
        (Layout::Pipeline, _) if [BOOK, classifier::CLASS].iter().any(|class| network["_class_name"] == *class) => {
            let class = network["_class_name"].as_str().unwrap_or_default();
            bail!(
                "a pipeline of the class {class} cannot be written, because diffusers has no such class; choose a component"
            )
        }
        (Layout::Pipeline, None) => {
            bail!("a pipeline needs a scheduler, and the model has no scheduler_config.json; choose a component")
        }
        (Layout::Pipeline, Some(scheduler)) => write_pipeline(root, network, scheduler, &tensors, storage)?,
        (Layout::Component, _) => write_component(root, network, scheduler, &tensors, storage)?,
    }
    Ok(())
}

impl LoadedNetwork {
    /// The network's config, with what it says beside the network itself.
    pub fn config(&self) -> Config {
        let mut config = self.network.config();
        if let Some(scale) = self.guidance {
            config.insert(GUIDANCE_KEY.into(), scale.into());
        }
        if !self.class_names.is_empty() {
            config.insert(CLASS_NAMES_KEY.into(), self.class_names.clone().into());
        }
        config
    }

    /// The number that the network sees for time: from 1 for the textbook network, from 0 for those of diffusers.
    pub fn mapping(&self) -> TimestepMapping {
        match self.kind {
            ModelKind::Book => TimestepMapping::OneBased,
            _ => TimestepMapping::ZeroBased,
        }
    }

    /// The interval of the pixels that the network was trained on.
    pub fn range(&self) -> Range {
        match self.kind {
            ModelKind::Book => Range::ZeroOne,
            _ => Range::MinusOneOne,
        }
    }
}

impl Loaded {
    /// The name in messages and files.
    pub fn name(&self) -> &str {
        match self {
            Self::Network(model) => &model.name,
            Self::Oracle(oracle) => &oracle.name,
        }
    }

    /// Every label that can be asked for.
    pub fn labels(&self) -> Vec<usize> {
        match self {
            Self::Network(model) => (0..model.network.classes()).collect(),
            Self::Oracle(oracle) => oracle.labels.clone(),
        }
    }

    /// The names of the labels from 0 on; empty if they have none.
    pub fn class_names(&self) -> &[String] {
        match self {
            Self::Network(model) => &model.class_names,
            Self::Oracle(_) => &[],
        }
    }

    /// Whether it can be asked without a label.
    pub fn has_null_condition(&self) -> bool {
        match self {
            Self::Network(model) => model.network.classes() == 0 || model.network.has_null_condition(),
            Self::Oracle(_) => true,
        }
    }

    /// The interval of the pixels.
    pub fn range(&self) -> Range {
        match self {
            Self::Network(model) => model.range(),
            Self::Oracle(_) => Range::MinusOneOne,
        }
    }
}

/// The file of an oracle.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OracleFile {
    kind: String,
    shape: [usize; 3],
    components: Vec<ComponentFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ComponentFile {
    weight: f64,
    mean: MeanFile,
    #[serde(default)]
    std: Option<StdFile>,
    #[serde(default)]
    covariance: Option<Vec<Vec<f64>>>,
    #[serde(default)]
    label: Option<usize>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "the mean should be a number or an array of C*H*W numbers")]
enum MeanFile {
    Constant(f64),
    Values(Vec<f64>),
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "the std should be a number or an array of C*H*W numbers")]
enum StdFile {
    Constant(f64),
    Values(Vec<f64>),
}

impl ComponentFile {
    /// Component `k` of the file.
    fn component(self, k: usize) -> Result<Component> {
        let spread = match (self.std, self.covariance) {
            (Some(StdFile::Constant(std)), None) => Spread::Std(std),
            (Some(StdFile::Values(stds)), None) => Spread::Stds(stds),
            (None, Some(rows)) => Spread::Covariance(rows),
            (Some(_), Some(_)) => bail!("component {k} has both \"std\" and \"covariance\"; remove one of them"),
            (None, None) => bail!("component {k} has neither \"std\" nor \"covariance\"; give one of them"),
        };
        let mean = match self.mean {
            MeanFile::Constant(value) => Mean::Constant(value),
            MeanFile::Values(values) => Mean::Values(values),
        };
        Ok(Component { weight: self.weight, mean, spread, label: self.label })
    }
}

/// The largest label of an oracle; a bound, so that a mistyped label is an error and not a list of gigabytes.
const LARGEST_LABEL: usize = 1 << 16;

fn open_oracle(path: &Path) -> Result<LoadedOracle> {
    let name = path.display().to_string();
    let config = read_config(path)?;
    if config.contains_key("_class_name") {
        bail!("{name} is the config of a {}; give the directory that holds it", config["_class_name"]);
    }
    let file: OracleFile = serde_json::from_value(Value::Object(config)).with_context(|| {
        format!(
            "{name} is no oracle: expected {{\"kind\": \"gaussian-mixture\", \"shape\": [C,H,W], \"components\": \
             [{{\"weight\": w, \"mean\": m, \"std\": s, \"label\": y}}]}} (or \"covariance\": rows instead of \"std\")"
        )
    })?;
    if file.kind != "gaussian-mixture" {
        bail!("{name}: kind should be \"gaussian-mixture\", found \"{}\"", file.kind);
    }
    let mut labels: Vec<usize> = file.components.iter().filter_map(|c| c.label).collect();
    labels.sort_unstable();
    labels.dedup();
    if let Some(label) = labels.last().filter(|label| **label > LARGEST_LABEL) {
        bail!("{name}: a label should be at most {LARGEST_LABEL}, found {label}");
    }
    let components: Result<Vec<Component>> =
        file.components.into_iter().enumerate().map(|(k, component)| component.component(k)).collect();
    let components = components.with_context(|| name.clone())?;
    let oracle = MixtureOracle::new(file.shape, components).with_context(|| name.clone())?;
    Ok(LoadedOracle { name, oracle, labels })
}
