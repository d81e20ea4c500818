use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde_json::{Value, json};

use crate::atomic::{Staged, parent, stage, sync_directory};
use crate::config::{config_bytes, kind};
use crate::save::stage_safetensors;
use crate::{CheckpointError, Config, Tensor, default_metadata};

/// The name of the weights of a diffusers model.
pub const WEIGHTS_NAME: &str = "diffusion_pytorch_model.safetensors";

/// The version of diffusers whose file formats these are, for configs that do not name one.
const DIFFUSERS_VERSION: &str = "0.42.1";

/// How numbers are stored. A [`Dtype`] alone is one file of that type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Storage {
    /// F32, F16 or BF16, as in [`save_safetensors`](crate::save_safetensors).
    pub dtype: Dtype,
    /// Bytes of a file at most: larger weights become several files, `diffusion_pytorch_model-00001-of-00002.safetensors` and
    /// so on, and the index `diffusion_pytorch_model.safetensors.index.json`, as diffusers writes them. A tensor is never
    /// divided. `None`: one file, whatever its size.
    pub max_shard_size: Option<u64>,
}

impl From<Dtype> for Storage {
    fn from(dtype: Dtype) -> Self {
        Self { dtype, max_shard_size: None }
    }
}

/// Writes a pipeline directory that Python diffusers opens unchanged: `model_index.json`, `unet/` and `scheduler/`.
///
/// Where the configs lack `_class_name`, they become a `UNet2DModel` and a `DDPMScheduler`. The pipeline class is that
/// of the scheduler (`DDPMPipeline`, `DDIMPipeline`, `PNDMPipeline`).
///
/// Each file is written atomically, and one whose content stays the same is not touched. While the configs stay
/// the same, as they do in a training run, the only change is therefore one rename of the weights, and a process
/// killed at any moment leaves a directory that opens. If a config does change, everything is first written beside
/// its place; then `model_index.json` is removed, and comes last when the new files are renamed into theirs, so that
/// weights are never taken for those of another config.
///
/// # Errors
/// If a config is no JSON object, a tensor cannot be saved, or a file cannot be written.
pub fn write_pipeline(
    directory: impl AsRef<Path>,
    unet_config: &Value,
    scheduler_config: &Value,
    tensors: &[Tensor<'_>],
    storage: impl Into<Storage>,
) -> Result<(), CheckpointError> {
    let directory = directory.as_ref();
    let (unet_path, scheduler_path) =
        (directory.join("unet/config.json"), directory.join("scheduler/scheduler_config.json"));
    let unet = with_class(unet_config, "UNet2DModel", &unet_path)?;
    let scheduler = with_class(scheduler_config, "DDPMScheduler", &scheduler_path)?;
    let pipeline = match scheduler["_class_name"].as_str() {
        Some("DDIMScheduler") => "DDIMPipeline",
        Some("PNDMScheduler") => "PNDMPipeline",
        _ => "DDPMPipeline",
    };
    let index = json!({
        "_class_name": pipeline,
        "_diffusers_version": unet["_diffusers_version"],
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "unet": ["diffusers", unet["_class_name"]],
    });
    let index = with_class(&index, pipeline, directory)?;
    write_model(
        (directory.join("model_index.json"), config_bytes(&index)),
        &[(scheduler_path, config_bytes(&scheduler)), (unet_path, config_bytes(&unet))],
        &directory.join("unet"),
        tensors,
        storage.into(),
    )
}

/// Writes a single component: `config.json`, its weights and, if given, `scheduler_config.json`.
///
/// This is the layout of a `book` directory. Each file is written atomically, in an order like that of
/// [`write_pipeline`], with `config.json` in the place of `model_index.json`.
///
/// # Errors
/// As [`write_pipeline`]; also if the config has no `_class_name`.
pub fn write_component(
    directory: impl AsRef<Path>,
    config: &Value,
    scheduler_config: Option<&Value>,
    tensors: &[Tensor<'_>],
    storage: impl Into<Storage>,
) -> Result<(), CheckpointError> {
    let directory = directory.as_ref();
    let config_path = directory.join("config.json");
    let scheduler_path = directory.join("scheduler_config.json");
    if config.get("_class_name").and_then(Value::as_str).is_none() {
        return Err(CheckpointError::Config {
            file: config_path.display().to_string(),
            key: "_class_name".into(),
            expected: "the name of an architecture".into(),
            found: config.get("_class_name").map_or("nothing", kind).into(),
            remedy: "set it before the model is written".into(),
        });
    }
    let config = with_class(config, "", &config_path)?;
    let scheduler = scheduler_config.map(|c| with_class(c, "DDPMScheduler", &scheduler_path)).transpose()?;
    let others: Vec<_> = scheduler.iter().map(|c| (scheduler_path.clone(), config_bytes(c))).collect();
    write_model((config_path, config_bytes(&config)), &others, directory, tensors, storage.into())
}

/// Writes weights and JSON files so that `entry`, without which the directory is no model, vouches for the others.
fn write_model(
    entry: (PathBuf, Vec<u8>),
    others: &[(PathBuf, Vec<u8>)],
    directory: &Path,
    tensors: &[Tensor<'_>],
    storage: Storage,
) -> Result<(), CheckpointError> {
    let parents = others.iter().chain([&entry]).filter_map(|(path, _)| path.parent());
    for parent in parents.chain([directory]) {
        fs::create_dir_all(parent).map_err(|e| CheckpointError::io("create", parent, e))?;
    }
    // What cannot be saved, and a full disk, are errors before the model that may be there is touched.
    let (new_weights, stale) = stage_weights(directory, tensors, storage)?;
    // An unreadable file counts as another content and is replaced; the entry is renewed with whatever it vouches for.
    let differs = |(path, bytes): &(PathBuf, Vec<u8>)| fs::read(path).map_or(true, |old| old != *bytes);
    let mut changed: Vec<_> = others.iter().filter(|file| differs(file)).collect();
    if !changed.is_empty() || !stale.is_empty() || new_weights.len() > 1 || differs(&entry) {
        changed.push(&entry);
    }
    let mut staged = Vec::new();
    for (path, bytes) in changed {
        let file = stage(path, |writer| writer.write_all(bytes)).map_err(|e| CheckpointError::io("write", path, e))?;
        staged.push((path, file));
    }
    if !staged.is_empty() && entry.0.exists() {
        // From here to the last rename there is no model: a few renames, whatever the size of the weights.
        fs::remove_file(&entry.0)
            .and_then(|()| sync_directory(parent(&entry.0)))
            .map_err(|e| CheckpointError::io("replace", &entry.0, e))?;
    }
    for (path, file) in new_weights {
        file.commit().map_err(|e| CheckpointError::io("write", &path, e))?;
    }
    // Only now, so that there are whole weights at any moment.
    for path in stale {
        fs::remove_file(&path).map_err(|e| CheckpointError::io("replace", &path, e))?;
    }
    for (path, file) in staged {
        file.commit().map_err(|e| CheckpointError::io("write", path, e))?;
    }
    Ok(())
}

/// Files that are written but not yet in their place.
type StagedFiles = Vec<(PathBuf, Staged)>;

/// The weights in one file, or in shards with their index, and what the other of the two forms has left in the directory:
/// diffusers prefers the index wherever there is one.
fn stage_weights(
    directory: &Path,
    tensors: &[Tensor<'_>],
    storage: Storage,
) -> Result<(StagedFiles, Vec<PathBuf>), CheckpointError> {
    let single = directory.join(WEIGHTS_NAME);
    let index = directory.join(format!("{WEIGHTS_NAME}.index.json"));
    let shards = storage.max_shard_size.map(|most| shards(tensors, storage.dtype, most)).unwrap_or_default();
    let stage_one = |path: &Path, tensors: &[Tensor<'_>]| {
        Ok::<_, CheckpointError>((
            path.to_owned(),
            stage_safetensors(path, tensors, storage.dtype, &default_metadata())?,
        ))
    };
    if shards.len() < 2 {
        let stale = index.exists().then_some(index).into_iter().collect();
        return Ok((vec![stage_one(&single, tensors)?], stale));
    }
    let mut files = Vec::new();
    let mut weight_map = BTreeMap::new();
    for (i, shard) in shards.iter().enumerate() {
        let name = format!("diffusion_pytorch_model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        files.push(stage_one(&directory.join(&name), shard)?);
        for tensor in shard {
            if weight_map.insert(tensor.name, name.clone()).is_some() {
                // Two tensors of one name: the check of a single file words the error.
                stage_one(&single, tensors)?;
            }
        }
    }
    let total_size: u64 = tensors.iter().map(|tensor| tensor.bytes(storage.dtype)).sum();
    let json = format!("{:#}\n", json!({ "metadata": { "total_size": total_size }, "weight_map": weight_map }));
    let staged = stage(&index, |writer| writer.write_all(json.as_bytes()));
    files.push((index.clone(), staged.map_err(|e| CheckpointError::io("write", &index, e))?));
    Ok((files, single.exists().then_some(single).into_iter().collect()))
}

/// Divides tensors, in their order, into files of at most `most` bytes each; one that is larger gets a file of its own.
fn shards<'a>(tensors: &[Tensor<'a>], dtype: Dtype, most: u64) -> Vec<Vec<Tensor<'a>>> {
    let mut shards: Vec<Vec<Tensor<'a>>> = Vec::new();
    let mut room = 0;
    for tensor in tensors {
        let bytes = tensor.bytes(dtype);
        match shards.last_mut() {
            Some(shard) if bytes <= room => {
                shard.push(*tensor);
                room -= bytes;
            }
            _ => {
                shards.push(vec![*tensor]);
                room = most.saturating_sub(bytes);
            }
        }
    }
    shards
}

/// The config with its class and version in front, as diffusers writes them.
fn with_class(config: &Value, default_class: &str, path: &Path) -> Result<Config, CheckpointError> {
    let Some(keys) = config.as_object() else {
        return Err(CheckpointError::Config {
            file: path.display().to_string(),
            key: "the config".into(),
            expected: "a JSON object".into(),
            found: kind(config).into(),
            remedy: "hand over an object".into(),
        });
    };
    let mut with_class = Config::new();
    for (key, default) in [("_class_name", default_class), ("_diffusers_version", DIFFUSERS_VERSION)] {
        with_class.insert(key.to_owned(), keys.get(key).cloned().unwrap_or_else(|| default.into()));
    }
    with_class.extend(keys.iter().map(|(key, value)| (key.clone(), value.clone())));
    Ok(with_class)
}
