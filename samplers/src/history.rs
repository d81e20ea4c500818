//! What multistep solvers remember, and the order that they may use.

use std::collections::VecDeque;

use ndarray::{Array4, ArrayView4};

use crate::Move;

/// With fewer moves than this the last ones are of a lower order (`lower_order_final` of diffusers).
const FEW: usize = 15;

/// Where a multistep solver lowers its order towards the end. A move to `sigma = 0` is of order 1 in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Lowering {
    /// Nowhere else.
    Never,
    /// The last move is of order 1 (`euler_at_final`).
    Last,
    /// In runs of fewer than 15 moves the last is of order 1, the one before of order 2 at most (`lower_order_final`).
    #[default]
    ShortRuns,
    /// Both of the above.
    LastAndShortRuns,
    /// The order is at most the number of moves left (`lower_order_final` of UniPC).
    EveryRun,
}

impl Lowering {
    /// The highest order that a move may have.
    fn limit(self, on: &Move<'_>) -> usize {
        let left = on.total() - on.position();
        match self {
            _ if on.to().sigma() == 0.0 || on.to() == on.from() => 1,
            Self::Last | Self::LastAndShortRuns if left == 1 => 1,
            Self::ShortRuns | Self::LastAndShortRuns if on.total() < FEW => left,
            Self::EveryRun => left,
            _ => usize::MAX,
        }
    }
}

/// Estimates of `x_0` or `eps` and the half log-SNR `lambda = ln(alpha / sigma)` that each was made at, the newest first.
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
    pub(crate) fn push(&mut self, lambda: f64, estimate: Array4<f64>, most: usize) {
        self.entries.push_front((lambda, estimate));
        self.entries.truncate(most);
    }

    /// The `lambda` of each estimate, the newest first.
    pub(crate) fn lambdas(&self) -> Vec<f64> {
        self.entries.iter().map(|entry| entry.0).collect()
    }

    /// `of_x x + sum_i weights[i] m_i`, for estimates `m_i` from the newest.
    pub(crate) fn combine(&self, of_x: f64, x: ArrayView4<'_, f64>, weights: &[f64]) -> Array4<f64> {
        let mut next = &x * of_x;
        for (weight, (_, estimate)) in weights.iter().zip(&self.entries) {
            next.scaled_add(*weight, estimate);
        }
        next
    }

    /// The order of a move: the `highest` one, but at most the number of estimates there are, and lowered as told.
    pub(crate) fn order(&self, highest: usize, lowering: Lowering, on: &Move<'_>) -> usize {
        highest.min(lowering.limit(on)).min(self.entries.len())
    }
}
