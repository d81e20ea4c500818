//! The batches of a training run, drawn when they are needed or ahead of that.

use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{self, Scope};

use ndarray_rand::rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{Batch, Batches, DataError, Dataset, Range};

/// The domain that separates this generator from every other one that is keyed by the same seed.
const DOMAIN: [u8; 8] = *b"mirror_1";

/// Batches that wait for the network; one more is being read meanwhile.
const WAITING: usize = 2;

/// Which images of a batch of step `step` (from 0) are mirrored: each with probability one half, as a function of the seed,
/// the step and its place in the batch.
pub fn flips(seed: u64, step: u64, count: usize) -> Vec<bool> {
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&DOMAIN);
    key[16..24].copy_from_slice(&step.to_le_bytes());
    let mut random = ChaCha8Rng::from_seed(key);
    (0..count).map(|_| random.next_u32() & 1 == 1).collect()
}

/// What is done to an image of the training set before a network sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Augment {
    /// Nothing.
    #[default]
    None,
    /// It is mirrored left to right with probability one half, see [`flips`].
    Flip,
}

/// The batch of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawn {
    /// The step, counted from 0.
    pub step: u64,
    /// The epoch, counted from 0.
    pub epoch: u64,
    /// The images and labels.
    pub batch: Batch,
}

/// The batches of a training run: a pure function of the data, the batch size, the seed and the step.
#[derive(Clone, Debug)]
pub struct Draws<'a> {
    data: &'a Dataset,
    batches: Batches,
    seed: u64,
    range: Range,
    augment: Augment,
}

impl<'a> Draws<'a> {
    /// Batches of `batch` images.
    ///
    /// # Panics
    /// If `batch` is zero.
    pub fn new(data: &'a Dataset, batch: usize, seed: u64, range: Range, augment: Augment) -> Self {
        Self { data, batches: Batches::new(data.len(), batch, seed), seed, range, augment }
    }

    /// Number of batches in an epoch, see [`crate::batches_per_epoch`].
    pub fn per_epoch(&self) -> u64 {
        self.batches.per_epoch()
    }

    /// The batch of step `step`, counted from 0.
    ///
    /// # Errors
    /// If an image cannot be read from disk.
    pub fn at(&mut self, step: u64) -> Result<Drawn, DataError> {
        let (epoch, indices) = self.batches.at(step);
        let mut batch = self.data.batch(&indices, self.range)?;
        if self.augment == Augment::Flip {
            batch.flip(&flips(self.seed, step, indices.len()));
        }
        Ok(Drawn { step, epoch, batch })
    }

    /// Draws the batches from step `from` on in a thread of its own, which is a few of them ahead and ends when the
    /// result is dropped. `None` if there can be no more threads.
    pub fn ahead<'scope>(&self, scope: &'scope Scope<'scope, '_>, from: u64) -> Option<Ahead>
    where
        'a: 'scope,
    {
        let (sender, receiver) = sync_channel(WAITING);
        let mut draws = self.clone();
        let read = move || {
            for step in from.. {
                let drawn = draws.at(step);
                let failed = drawn.is_err();
                // Nobody waits for more, or there is no more.
                if sender.send(drawn).is_err() || failed {
                    return;
                }
            }
        };
        thread::Builder::new().name("batches".to_owned()).spawn_scoped(scope, read).ok()?;
        Some(Ahead { receiver })
    }
}

/// Batches that are drawn ahead, see [`Draws::ahead`].
#[derive(Debug)]
pub struct Ahead {
    receiver: Receiver<Result<Drawn, DataError>>,
}

impl Ahead {
    /// The next batch; `None` after an error.
    ///
    /// # Errors
    /// If an image cannot be read from disk.
    pub fn next(&self) -> Option<Result<Drawn, DataError>> {
        self.receiver.recv().ok()
    }
}
