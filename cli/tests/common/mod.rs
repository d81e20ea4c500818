//! Tiny models on disk, and the binary that is to use them.

// Each test file uses a part of this.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tweedie_checkpoint::{Dtype, Tensor, TensorFile, write_component, write_pipeline};
use tweedie_denoiser::{NetworkGrad, Role};
use tweedie_unet::{Init, Model};

/// A directory for a test, with the binary to be run in it.
pub struct Bench {
    dir: TempDir,
}

/// What a run of the binary left.
pub struct Done {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Bench {
    pub fn new() -> Self {
        Self { dir: TempDir::new().expect("a temporary directory") }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs `tweedie` with arguments separated by blanks.
    pub fn run(&self, arguments: &str) -> Done {
        let output: Output = Command::new(env!("CARGO_BIN_EXE_tweedie"))
            .args(arguments.split_whitespace())
            .current_dir(self.dir.path())
            .output()
            .expect("the binary starts");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        Done {
            code: output.status.code().expect("an exit status and no signal"),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }

    /// Runs `tweedie`, which has to succeed; returns its stdout.
    pub fn succeed(&self, arguments: &str) -> String {
        let done = self.run(arguments);
        assert_eq!(done.code, 0, "tweedie {arguments}: {}", done.stderr);
        done.stdout
    }

    /// Runs `tweedie`, which has to fail with `code` and one error that holds each of `parts`, and to write nothing.
    pub fn fail(&self, arguments: &str, code: i32, parts: &[&str]) {
        let before = self.files();
        let done = self.run(arguments);
        assert_eq!(done.code, code, "tweedie {arguments}: {}", done.stderr);
        assert!(done.stderr.starts_with("error: "), "tweedie {arguments}: {}", done.stderr);
        assert!(!done.stderr.contains("panicked"), "tweedie {arguments}: {}", done.stderr);
        for part in parts {
            assert!(done.stderr.contains(part), "tweedie {arguments}: no {part:?} in: {}", done.stderr);
        }
        assert_eq!(done.stdout, "", "tweedie {arguments}");
        assert_eq!(self.files(), before, "tweedie {arguments}");
    }

    /// Every file in the directory, without those of subdirectories.
    fn files(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.dir.path()).expect("a directory");
        let mut files: Vec<PathBuf> = entries.map(|e| e.expect("an entry").path()).collect();
        files.sort();
        files
    }

    /// A tensor of a safetensors file.
    pub fn tensor(&self, file: &str, name: &str) -> (Vec<usize>, Vec<f32>) {
        let file = TensorFile::open(self.path(file)).expect("a safetensors file");
        let shape = file.get(name).expect("the tensor").shape.to_vec();
        (shape, file.read_f32(name).expect("numbers"))
    }

    pub fn bytes(&self, file: &str) -> Vec<u8> {
        std::fs::read(self.path(file)).expect("the file")
    }
}

/// The config of a small residual network for 8 x 8 images with three labels and the null condition.
pub fn residual_config() -> Map<String, Value> {
    object(json!({
        "_class_name": "UNet2DModel", "sample_size": 8, "in_channels": 1, "out_channels": 1,
        "block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        "num_class_embeds": 4, "_tweedie_null_class": 3,
    }))
}

pub fn object(value: Value) -> Map<String, Value> {
    let Value::Object(map) = value else { panic!("an object") };
    map
}

/// A network with the first values of a seed, changed by `change`.
pub fn network(config: &Map<String, Value>, change: impl Fn(&str, &mut [f32])) -> Model {
    let mut model = Model::from_config(config).expect("a config");
    model.initialise(Init::PyTorch, 5);
    let table = model.expected().to_vec();
    for param in table {
        change(&param.name, &mut model.params_mut().values_mut()[param.range]);
    }
    model
}

/// The tensors of a network, as a file holds them.
fn with_tensors<R>(model: &Model, write: impl FnOnce(&[Tensor<'_>]) -> R) -> R {
    let params = model.params();
    let counters: Vec<Vec<i64>> =
        params.table().iter().map(|p| params.values()[p.range.clone()].iter().map(|&v| v as i64).collect()).collect();
    let tensors: Vec<Tensor<'_>> = params
        .table()
        .iter()
        .zip(&counters)
        .map(|(p, counter)| match p.role {
            Role::Counter => Tensor::i64(&p.name, &p.shape, counter),
            _ => Tensor::f32(&p.name, &p.shape, &params.values()[p.range.clone()]),
        })
        .collect();
    write(&tensors)
}

/// Writes a pipeline directory.
pub fn write_residual(path: &Path, model: &Model, scheduler: &Value) {
    let config = Value::Object(model.config());
    with_tensors(model, |tensors| write_pipeline(path, &config, scheduler, tensors, Dtype::F32)).expect("a pipeline");
}

/// Writes a component directory: `config.json`, weights, and a scheduler's config if given.
pub fn write_single(path: &Path, model: &Model, scheduler: Option<&Value>) {
    let config = Value::Object(model.config());
    with_tensors(model, |tensors| write_component(path, &config, scheduler, tensors, Dtype::F32)).expect("a component");
}

/// A DDPM scheduler with few steps.
pub fn ddpm_config() -> Value {
    json!({
        "_class_name": "DDPMScheduler", "num_train_timesteps": 20, "beta_start": 0.001, "beta_end": 0.3,
        "beta_schedule": "linear", "clip_sample": true, "prediction_type": "epsilon",
    })
}
