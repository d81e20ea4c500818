//! The steps that a sampler visits (FORMULAS 1.3; DIFFUSERS.md, section 3: `timestep_spacing`).
//!
//! With K sampling steps out of T, and steps counted from 1 (a diffusers timestep `i` is step `i + 1`):
//! - leading: `j floor(T / K) + steps_offset + 1`;
//! - linspace: `round(j (T - 1) / (K - 1)) + 1`, and step 1 alone if K is 1, as numpy's linspace has it;
//! - trailing: `round(T - j T / K)`, for `j = 0..K`; always starts at T (Lin 2023, table 2).
//!
//! `round` takes ties to the even integer, as numpy does. Trailing has K steps for every K; the float stride of numpy's
//! `arange` yields a further timestep -1 for some (T = 1000 with K = 463, for one), which is no step and is left out.

use crate::ScheduleError;

/// How the steps of a grid are spread over 1..=T.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Spacing {
    /// Multiples of `T / K` from the low end; without an offset it reaches T only where it visits every step (K = T).
    #[default]
    Leading,
    /// Evenly from 1 to T, both included.
    Linspace,
    /// Multiples of `T / K` from the high end.
    Trailing,
}

impl Spacing {
    /// The names that [`Spacing::from_name`] knows.
    pub const NAMES: &'static str = "leading, linspace, trailing";

    /// The name, the same on the command line and in diffusers files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Leading => "leading",
            Self::Linspace => "linspace",
            Self::Trailing => "trailing",
        }
    }

    /// The spacing of a name.
    ///
    /// # Errors
    /// If there is no such name; the error lists those that exist.
    pub fn from_name(name: &str) -> Result<Self, ScheduleError> {
        [Self::Leading, Self::Linspace, Self::Trailing]
            .into_iter()
            .find(|s| s.name() == name)
            .ok_or_else(|| ScheduleError::UnknownName { what: "spacing", found: name.to_owned(), known: Self::NAMES })
    }
}

/// Whether the steps of a spacing are whole, and how many there are for a number of moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Placing {
    /// As many whole steps as moves.
    #[default]
    Whole,
    /// As many as moves, and those of [`Spacing::Linspace`] are fractional (diffusers' Euler and its kin).
    Fractional,
    /// Whole; for [`Spacing::Linspace`] and [`Spacing::Leading`] those of one move more, without the lowest (diffusers'
    /// DPM-Solver and UniPC).
    WholeOfOneMore,
}

/// Where a spacing puts its steps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Points {
    /// The highest step; T unless a sampler leaves out the noisiest ones.
    pub(crate) highest: usize,
    /// Number of moves.
    pub(crate) count: usize,
    pub(crate) spacing: Spacing,
    pub(crate) steps_offset: usize,
    pub(crate) placing: Placing,
}

impl Points {
    /// The 1-based steps out of `train_steps`, from the highest down; not checked to lie in 1..=T.
    pub(crate) fn of(self, train_steps: usize) -> Vec<f64> {
        let Self { highest, count, spacing, steps_offset, placing } = self;
        let total = highest as f64;
        let points = count + usize::from(placing == Placing::WholeOfOneMore);
        let mut steps: Vec<f64> = match spacing {
            Spacing::Leading => {
                let stride = highest / points;
                (0..points).rev().map(|j| (j * stride).saturating_add(steps_offset).saturating_add(1) as f64).collect()
            }
            Spacing::Linspace => {
                let stride = if points > 1 { (total - 1.0) / (points - 1) as f64 } else { 0.0 };
                let place = |j: usize| {
                    // numpy sets the last point exactly.
                    let at = if j > 0 && j + 1 == points { total - 1.0 } else { j as f64 * stride };
                    if placing == Placing::Fractional { at + 1.0 } else { at.round_ties_even() + 1.0 }
                };
                (0..points).rev().map(place).collect()
            }
            Spacing::Trailing => {
                // numpy's arange takes its stride from its first two entries, and its length from the quotient.
                let stride = (total - train_steps as f64 / count as f64) - total;
                let most = if highest == train_steps { count } else { (-total / stride).ceil() as usize };
                let step = |j: usize| (total + j as f64 * stride).round_ties_even();
                return (0..most).map(step).filter(|&t| t >= 1.0).collect();
            }
        };
        if placing == Placing::WholeOfOneMore {
            steps.pop();
        }
        steps
    }
}

/// A strictly decreasing list of steps in 1..=T and the step where the last move ends; indexed by position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepGrid {
    steps: Vec<usize>,
    final_step: usize,
    train_steps: usize,
    stride: Option<usize>,
}

impl StepGrid {
    /// `count` steps out of `train_steps`, ending at step 0. `steps_offset` shifts [`Spacing::Leading`] alone.
    ///
    /// # Errors
    /// If `count` is 0 or above `train_steps`, or the offset shifts the grid out of 1..=T.
    ///
    /// Verified by `grids_agree_with_numpy`. Verified by `every_small_grid_is_in_range`.
    pub fn new(train_steps: usize, count: usize, spacing: Spacing, steps_offset: usize) -> Result<Self, ScheduleError> {
        let highest = train_steps.min(crate::Schedule::MAX_STEPS);
        if !(1..=highest).contains(&count) {
            return Err(ScheduleError::Count {
                operation: "step grid",
                what: "the number of sampling steps",
                lowest: 1,
                highest,
                found: count,
            });
        }
        let points = Points { highest: train_steps, count, spacing, steps_offset, placing: Placing::Whole };
        let steps = points.of(train_steps).into_iter().map(|t| t as usize).collect();
        Self::from_steps(train_steps, steps)
    }

    /// A grid of given 1-based steps, ending at step 0.
    ///
    /// # Errors
    /// If there is no step, one lies outside 1..=T, or they do not decrease strictly (a repeated step would be a step of
    /// no length, so it is an error and not silently dropped).
    pub fn from_steps(train_steps: usize, steps: Vec<usize>) -> Result<Self, ScheduleError> {
        if steps.is_empty() {
            return Err(ScheduleError::Count {
                operation: "step grid",
                what: "the number of sampling steps",
                lowest: 1,
                highest: train_steps,
                found: 0,
            });
        }
        for (position, &found) in steps.iter().enumerate() {
            if !(1..=train_steps).contains(&found) {
                return Err(ScheduleError::GridRange { position, found, train_steps });
            }
            if position > 0 && steps[position - 1] <= found {
                return Err(ScheduleError::GridOrder { position, found, previous: steps[position - 1] });
            }
        }
        Ok(Self { steps, final_step: 0, train_steps, stride: None })
    }

    /// The same steps, ending at `final_step` instead of 0 (diffusers' `set_alpha_to_one: false` ends at step 1).
    ///
    /// # Errors
    /// If it lies above the last step of the grid. It may equal it: the last move then has no length.
    pub fn with_final_step(mut self, final_step: usize) -> Result<Self, ScheduleError> {
        let last = self.steps[self.steps.len() - 1];
        if final_step > last {
            return Err(ScheduleError::GridOrder { position: self.steps.len(), found: final_step, previous: last });
        }
        self.final_step = final_step;
        Ok(self)
    }

    /// The same steps, from each of which a move leads down by `stride` wherever the next one lies, or to the final step where
    /// that would leave 1..=T. So does diffusers' DDIM, with `floor(T / K)`; on a grid of another stride its states do not
    /// have the noise of the steps that the network is told.
    pub fn with_stride(mut self, stride: usize) -> Self {
        self.stride = Some(stride);
        self
    }

    /// The 1-based steps, decreasing.
    pub fn steps(&self) -> &[usize] {
        &self.steps
    }

    /// Number of moves.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Never true: a grid has at least one step.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Where the last move ends.
    pub fn final_step(&self) -> usize {
        self.final_step
    }

    /// T, the number of training steps that the grid was made for.
    pub fn train_steps(&self) -> usize {
        self.train_steps
    }

    /// The moves `(from, to)` in order; the last one ends at [`StepGrid::final_step`].
    pub fn moves(&self) -> impl ExactSizeIterator<Item = (usize, usize)> + '_ {
        (0..self.len()).map(|k| {
            let from = self.steps[k];
            let to = match self.stride {
                Some(stride) => from.checked_sub(stride).filter(|&to| to >= 1),
                None => self.steps.get(k + 1).copied(),
            };
            (from, to.unwrap_or(self.final_step))
        })
    }
}
