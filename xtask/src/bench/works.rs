//! What is timed.

use clap::ValueEnum;
use serde::Serialize;

/// One pass through a network, or one step of its training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(super) enum Task {
    /// Evaluation mode, no gradients.
    Forward,
    /// Forward, mean squared error, backward, one step of Adam.
    Train,
}

impl Task {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Train => "train",
        }
    }
}

/// A network, a task and a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Work {
    pub(super) name: &'static str,
    pub(super) model: &'static str,
    pub(super) task: Task,
    pub(super) batch: usize,
    /// Whether ours is timed with one thread as well.
    pub(super) scaling: bool,
}

const fn work(name: &'static str, model: &'static str, task: Task, batch: usize) -> Work {
    Work { name, model, task, batch, scaling: false }
}

/// Every work, in the order of the table.
pub(super) const WORKS: [Work; 10] = [
    work("book-forward-64", "book", Task::Forward, 64),
    Work { scaling: true, ..work("book-train-64", "book", Task::Train, 64) },
    work("book-forward-1", "book", Task::Forward, 1),
    work("cifar10-forward-8", "cifar10", Task::Forward, 8),
    work("cifar10-train-8", "cifar10", Task::Train, 8),
    work("digits-forward-64", "digits", Task::Forward, 64),
    work("digits-train-64", "digits", Task::Train, 64),
    work("sd15-forward-2", "sd15", Task::Forward, 2),
    work("sd15-decode-1", "sd15-vae", Task::Forward, 1),
    work("sd15-text-2", "sd15-text", Task::Forward, 2),
];

/// The works called `names`; all of them if there is no name.
pub(super) fn chosen(names: &[String]) -> Vec<Work> {
    WORKS.into_iter().filter(|work| names.is_empty() || names.iter().any(|name| name == work.name)).collect()
}

/// The names of [`WORKS`], for the command line.
pub(super) fn names() -> Vec<&'static str> {
    WORKS.iter().map(|work| work.name).collect()
}
