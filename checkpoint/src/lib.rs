//! Models on disk: safetensors files, model directories in the layout of diffusers, training state, atomic writes.
//!
//! Nothing that comes from a file is trusted: headers, offsets, shapes and JSON are checked before they are used, and
//! every error names the file and what to do. Nothing that is written is ever half there: see [`atomic_write`].
//!
//! ```
//! use tweedie_checkpoint::{Dtype, Tensor, TensorFile, default_metadata, save_safetensors};
//!
//! let path = std::env::temp_dir().join("tweedie-checkpoint-example.safetensors");
//! let weight = [1.0f32, -2.5, 3.0, 0.125];
//! save_safetensors(&path, &[Tensor::f32("conv.weight", &[2, 2], &weight)], Dtype::F32, &default_metadata())?;
//! let file = TensorFile::open(&path)?;
//! assert_eq!(file.read_f32("conv.weight")?, weight);
//! # std::fs::remove_file(&path).ok();
//! # Ok::<(), tweedie_checkpoint::CheckpointError>(())
//! ```
//!
//! The safetensors format: a `u64` header length (little-endian), a JSON header that gives `dtype`, `shape` and
//! `data_offsets` of each tensor, then the raw little-endian elements (<https://github.com/huggingface/safetensors>).
#![deny(unsafe_code)]

mod atomic;
mod config;
mod error;
mod file;
mod header;
mod keys;
mod mapped;
mod model_dir;
mod pipeline;
mod save;
mod state;
mod write;

pub use atomic::{atomic_write, atomic_write_with};
pub use config::{Config, read_config, write_config};
pub use error::{CheckpointError, KeyMismatch};
pub use file::{TensorFile, TensorMeta};
pub use keys::check_keys;
pub use model_dir::{ModelDir, ModelKind, SUPPORTED_CLASSES};
pub use pipeline::{Component, Pipeline, open_component, read_text};
pub use safetensors::Dtype;
pub use save::{Tensor, TensorData, default_metadata, save_safetensors, write_safetensors};
pub use state::{State, load_state, save_state};
pub use write::{Storage, WEIGHTS_NAME, write_component, write_pipeline};
