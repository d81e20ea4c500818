//! Image data sets for diffusion models: the bundled MNIST digits, IDX and CIFAR files, folders of images, NumPy arrays;
//! seeded order and batches.
//!
//! Images stay as bytes (`u8`, `[N, C, H, W]`) and become `f32` when a batch is drawn, in the [`Range`] that the model
//! wants. They are held in memory up to a limit ([`OpenOptions::memory_limit`]), and beyond it read from disk when a batch is
//! drawn, in training ahead of the network ([`Draws::ahead`]). The order in which a training run sees them is a pure function of `(length, batch size, seed, global step)`,
//! see [`batch_indices`]: resuming a run needs no other state than the number of steps it has done.
//!
//! ```
//! use tweedie_data::{Dataset, Range, Split, batch_indices};
//!
//! let digits = Dataset::open("mnist", Split::Test)?;
//! let (epoch, indices) = batch_indices(digits.len(), 64, 7, 200);
//! let batch = digits.batch(&indices, Range::MinusOneOne)?;
//! assert_eq!((epoch, batch.images.dim(), batch.labels.len()), (1, (64, 1, 28, 28), 64));
//! # Ok::<(), tweedie_data::DataError>(())
//! ```
#![forbid(unsafe_code)]

mod augment;
pub mod cifar;
mod dataset;
mod draws;
mod error;
mod folder;
pub mod idx;
mod mnist;
mod npy;
mod options;
mod order;
mod pictures;
mod records;

pub use augment::{Affine, Augment, flips};
pub use dataset::{Batch, Dataset, Range, Split};
pub use draws::{Ahead, Drawn, Draws};
pub use error::DataError;
pub use mnist::mnist;
pub use npy::{npy_from_bytes, npz_from_bytes};
pub use options::{Colour, OpenOptions};
pub use order::{Batches, batch_indices, batches_per_epoch, permutation};
