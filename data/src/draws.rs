//! The batches of a training run, drawn when they are needed or ahead of that.

use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{self, Scope};

use crate::{Augment, Batch, Batches, DataError, Dataset, Range};

/// Batches that wait for the network; one more is being read meanwhile.
const WAITING: usize = 2;

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
    augments: Vec<Augment>,
}

impl<'a> Draws<'a> {
    /// Batches of `batch` images.
    ///
    /// # Panics
    /// If `batch` is zero.
    pub fn new(data: &'a Dataset, batch: usize, seed: u64, range: Range, augment: Augment) -> Self {
        Self { data, batches: Batches::new(data.len(), batch, seed), seed, range, augments: vec![augment] }
    }

    /// The same batches with something more done to their images, after the rest.
    #[must_use]
    pub fn then(mut self, augment: Augment) -> Self {
        self.augments.push(augment);
        self
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
        self.augments.iter().for_each(|augment| augment.apply(&mut batch, self.seed, step, self.range));
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
