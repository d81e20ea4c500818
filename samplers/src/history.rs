//! What multistep solvers remember, and the order that they may use.

use std::collections::VecDeque;

use ndarray::Array4;

use crate::Move;

/// With fewer moves than this the last ones are of a lower order (`lower_order_final` of diffusers).
const FEW: usize = 15;

/// Estimates of `x_0` and the half log-SNR `lambda = ln(alpha / sigma)` that each was made at, the newest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct History {
    entries: VecDeque<(f64, Array4<f64>)>,
}

impl History {
    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
    }

    /// Adds the newest estimate and keeps `most` in all.
    pub(crate) fn push(&mut self, lambda: f64, x0: Array4<f64>, most: usize) {
        self.entries.push_front((lambda, x0));
        self.entries.truncate(most);
    }

    /// The `lambda` of each estimate, the newest first.
    pub(crate) fn lambdas(&self) -> Vec<f64> {
        self.entries.iter().map(|entry| entry.0).collect()
    }

    /// The estimates, the newest first.
    pub(crate) fn estimates(&self) -> impl Iterator<Item = &Array4<f64>> {
        self.entries.iter().map(|entry| &entry.1)
    }

    /// The order of a move: the `highest` one, but at most the number of estimates there are, 1 in a move to `sigma = 0`,
    /// and in runs of fewer than 15 moves at most 2 in the last move but one and 1 in the last.
    pub(crate) fn order(&self, highest: usize, on: &Move<'_>) -> usize {
        let left = on.total() - on.position();
        let limit = if on.to().sigma() == 0.0 || on.to() == on.from() {
            1
        } else if on.total() < FEW {
            left
        } else {
            highest
        };
        highest.min(limit).min(self.entries.len())
    }
}
