//! The objectives (FORMULAS 4.1 to 4.3). The simple one (Ho, Jain & Abbeel 2020, Algorithm 1 and eq. 14):
//!
//! ```text
//! t ~ U{1..T},  eps ~ N(0, I),  x_t = alpha_t x_0 + sigma_t eps
//! L = mean over images and pixels of (f(x_t, t, y) - target)²
//! target = eps,  x_0,  v = alpha_t eps - sigma_t x_0  (Salimans & Ho 2022, appendix D),  the score or the mean
//! ```
//!
//! [`Loss`] has the others, [`Terms`] their options. A classifier of noisy images is trained on the same `x_t`
//! ([`Objective::classifier`]), one of clean images on `x_0`.
//!
//! With the probability of label dropout `y` is the null condition (Ho & Salimans 2022, Algorithm 1). Every random number
//! of image `i` of step `s` comes from a generator keyed by `(seed, s, i)`: a step is a pure function of the
//! seed, the step and the parameters, whatever the number of threads and whatever ran before.

use ndarray::{Array4, ArrayView4};
use ndarray_rand::rand::Rng;
use ndarray_rand::rand_distr::StandardNormal;
use rayon::prelude::*;
use tweedie_denoiser::{Condition, rng_for};
use tweedie_schedule::{Bins, Prediction, Schedule, TimestepMapping, Variance, Weighting, forward};

use crate::TrainError;
use crate::config::wrong;

mod classify;
mod importance;
mod loss;

pub use importance::{Chances, Importance};
pub use loss::{BatchLoss, HYBRID_FACTOR, Loss, Terms};

/// Separates this generator from every other one that is keyed by the same seed.
const DOMAIN: &str = "train/objective";

/// A batch with its noise: what the network sees, and what it should answer.
#[derive(Clone, Debug, PartialEq)]
pub struct NoisyBatch {
    /// `x_t`, `[N, C, H, W]`.
    pub x_t: Array4<f32>,
    /// The steps, each in 1..=T; 0 for clean images.
    pub steps: Vec<usize>,
    /// The number that the network sees for each step.
    pub timesteps: Vec<f64>,
    /// The labels, with the null condition where a label was dropped.
    pub condition: Condition,
    /// What the network should answer, `[N, C, H, W]`; without any number for a classifier.
    pub target: Array4<f32>,
    /// The class that a classifier should find in each image; empty for other networks.
    pub classes: Vec<usize>,
    /// What the loss of each image counts: 1, or `1 / (T p_t)` where steps are drawn with other chances than equal ones.
    pub importance: Vec<f64>,
}

/// `x_t = signal x_0 + noise eps` and `target = of_x0 x_0 + of_eps eps` of one step.
#[derive(Clone, Copy, Debug)]
struct Coefs {
    signal: f32,
    noise: f32,
    of_x0: f32,
    of_eps: f32,
}

/// An objective on a schedule.
///
/// FORMULAS 4.3. Verified by `the_targets_are_those_of_the_definitions`.
/// Verified by `steps_are_uniform_and_noise_is_standard_normal`.
#[derive(Clone, Debug)]
pub struct Objective {
    seed: u64,
    mapping: TimestepMapping,
    label_dropout: f64,
    /// Entry `t - 1` is step `t`; empty for clean images.
    coefs: Vec<Coefs>,
    task: Task,
}

/// What the network is to do with `x_t`.
#[derive(Clone, Debug)]
enum Task {
    Denoise {
        /// Entry `t - 1` is step `t`.
        steps: Vec<loss::Step>,
        terms: Terms,
    },
    Classify {
        smoothing: f64,
    },
}

impl Objective {
    /// The simple objective for a prediction; `label_dropout` is a probability.
    ///
    /// # Errors
    /// If the prediction has no target at a step of the schedule.
    pub fn new(
        schedule: &Schedule,
        prediction: Prediction,
        mapping: TimestepMapping,
        label_dropout: f64,
        seed: u64,
    ) -> Result<Self, TrainError> {
        let terms = Terms {
            loss: Loss::Simple,
            weighting: Weighting::Uniform,
            variance: Variance::FixedSmall,
            bins: Bins::new(-1.0, 1.0, 256)?,
        };
        Self::with_terms(schedule, prediction, mapping, label_dropout, seed, terms)
    }

    /// The objective of any [`Terms`].
    ///
    /// # Errors
    /// As [`Objective::new`]; or if a weight or a variance does not exist at a step, or the loss is that of a classifier.
    pub fn with_terms(
        schedule: &Schedule,
        prediction: Prediction,
        mapping: TimestepMapping,
        label_dropout: f64,
        seed: u64,
        terms: Terms,
    ) -> Result<Self, TrainError> {
        if terms.loss == Loss::CrossEntropy {
            let remedy = "make the objective of a classifier";
            return Err(wrong("loss", "one of a denoiser", "cross-entropy", remedy));
        }
        let coefs = (1..=schedule.steps())
            .map(|t| {
                let level = schedule.level(t);
                let q = forward::q_sample(level);
                let target = prediction.target(level, Some(&schedule.posterior(t)))?;
                Ok(Coefs {
                    signal: q.scale as f32,
                    noise: q.variance.sqrt() as f32,
                    of_x0: target.of_x0 as f32,
                    of_eps: target.of_eps as f32,
                })
            })
            .collect::<Result<_, TrainError>>()?;
        let steps = (1..=schedule.steps())
            .map(|t| Ok(loss::Step::new(schedule, t, prediction, &terms)?))
            .collect::<Result<_, TrainError>>()?;
        Ok(Self { seed, mapping, label_dropout, coefs, task: Task::Denoise { steps, terms } })
    }

    /// The cross-entropy of a classifier, with `smoothing` in [0, 1] of the labels: of noisy images at every step of a schedule
    /// alike, or without a schedule of the images as they are.
    ///
    /// FORMULAS 5.3. Verified by `a_classifier_sees_what_a_denoiser_sees`.
    pub fn classifier(schedule: Option<&Schedule>, mapping: TimestepMapping, smoothing: f64, seed: u64) -> Self {
        let of = |schedule: &Schedule| {
            let coefs = (1..=schedule.steps()).map(|t| {
                let q = forward::q_sample(schedule.level(t));
                Coefs { signal: q.scale as f32, noise: q.variance.sqrt() as f32, of_x0: 0.0, of_eps: 0.0 }
            });
            coefs.collect()
        };
        let coefs = schedule.map(of).unwrap_or_default();
        Self { seed, mapping, label_dropout: 0.0, coefs, task: Task::Classify { smoothing } }
    }

    /// How many channels a network puts out for images of `channels` channels: as many, or twice as many where it learns
    /// variances.
    pub fn output_channels(&self, channels: usize) -> usize {
        match &self.task {
            Task::Denoise { terms, .. } if terms.variance == Variance::LearnedRange => 2 * channels,
            Task::Denoise { .. } | Task::Classify { .. } => channels,
        }
    }

    /// The shape that an output should have, and what to do about one of another shape, `found`.
    pub(crate) fn expected(&self, batch: &NoisyBatch, found: &[usize]) -> ([usize; 4], &'static str) {
        let (n, c, h, w) = batch.x_t.dim();
        match &self.task {
            Task::Denoise { .. } => (
                [n, self.output_channels(c), h, w],
                "train a network with as many output channels as the images have, or twice as many for a learned variance",
            ),
            Task::Classify { .. } => {
                let most = batch.classes.iter().max().map_or(1, |most| most + 1);
                let classes = found.get(1).map_or(most, |&found| found.max(most));
                ([n, classes, 1, 1], "train a classifier of at least as many classes as the data have")
            }
        }
    }

    /// The loss of the network's `output` for a batch that was drawn from the images `x0` `[N, C, H, W]`, and its gradient.
    /// Summed in f64, image by image, in a fixed order.
    ///
    /// # Panics
    /// If the output has not [`Objective::output_channels`] or the shapes differ otherwise; for the bound, if a pixel is none
    /// of the levels; for a classifier, if there is no logit of a label.
    ///
    /// FORMULAS 4.3. Verified by `gradients_are_differences_of_the_loss`.
    /// Verified by `the_bound_of_the_hybrid_loss_stops_at_the_mean`. Verified by `errors_are_weighted`.
    pub fn loss(&self, batch: &NoisyBatch, x0: ArrayView4<'_, f32>, output: ArrayView4<'_, f32>) -> BatchLoss {
        let (n, c, h, w) = batch.x_t.dim();
        assert_eq!(x0.dim(), batch.x_t.dim(), "the images of the batch");
        match &self.task {
            Task::Denoise { steps, terms } => {
                assert_eq!(output.dim(), (n, self.output_channels(c), h, w), "the output for the batch");
                loss::of_batch(steps, terms, batch, x0, output)
            }
            Task::Classify { smoothing } => classify::of_batch(&batch.classes, *smoothing, output),
        }
    }

    /// The batch of step `step` from images `x0` `[N, C, H, W]` and their labels (empty: no condition).
    ///
    /// # Panics
    /// If there are labels, but not one per image; or, for a classifier, if there are none.
    pub fn draw(&self, step: u64, x0: ArrayView4<'_, f32>, labels: &[usize]) -> NoisyBatch {
        self.draw_with(step, x0, labels, None)
    }

    /// As [`Objective::draw`], with other chances of the steps than equal ones.
    ///
    /// # Panics
    /// As [`Objective::draw`].
    pub fn draw_with(
        &self,
        step: u64,
        x0: ArrayView4<'_, f32>,
        labels: &[usize],
        chances: Option<&Chances>,
    ) -> NoisyBatch {
        let n = x0.dim().0;
        let classifies = matches!(self.task, Task::Classify { .. });
        assert!(labels.len() == n || (labels.is_empty() && !classifies), "one label per image, or none at all");
        let classes = if classifies { labels.to_vec() } else { Vec::new() };
        if self.coefs.is_empty() {
            let (condition, target) = (Condition::none(n), Array4::zeros((n, 0, 0, 0)));
            let (steps, timesteps, importance) = (vec![0; n], vec![0.0; n], vec![1.0; n]);
            return NoisyBatch { x_t: x0.to_owned(), steps, timesteps, condition, target, classes, importance };
        }
        let mut x_t = Array4::zeros(x0.raw_dim());
        let mut target = Array4::zeros(x0.raw_dim());
        let images: Vec<_> = x0.outer_iter().zip(x_t.outer_iter_mut()).zip(target.outer_iter_mut()).collect();
        let drawn: Vec<(usize, bool)> = images
            .into_par_iter()
            .enumerate()
            .map(|(i, ((x0, mut x_t), mut target))| {
                let mut random = rng_for(self.seed, DOMAIN, step, i as u64);
                // A u32, so that the draw is the same where usize has 32 bits.
                let t = match chances {
                    None => random.random_range(0..self.coefs.len() as u32) as usize + 1,
                    Some(chances) => chances.step(random.random()),
                };
                // Drawn for every image, so that the noise does not depend on whether there are labels.
                let dropped = random.random::<f64>() < self.label_dropout;
                let Coefs { signal, noise, of_x0, of_eps } = self.coefs[t - 1];
                for ((&x0, x_t), target) in x0.iter().zip(&mut x_t).zip(&mut target) {
                    let eps: f32 = random.sample(StandardNormal);
                    *x_t = signal * x0 + noise * eps;
                    *target = of_x0 * x0 + of_eps * eps;
                }
                (t, dropped)
            })
            .collect();
        if classifies {
            target = Array4::zeros((n, 0, 0, 0));
        }
        let condition = if labels.is_empty() || classifies {
            Condition::none(n)
        } else {
            Condition::labels(drawn.iter().zip(labels).map(|(&(_, dropped), &y)| (!dropped).then_some(y)).collect())
        };
        let steps: Vec<usize> = drawn.iter().map(|&(t, _)| t).collect();
        let timesteps = steps.iter().map(|&t| self.mapping.of_step(t as f64)).collect();
        let importance = steps.iter().map(|&t| chances.map_or(1.0, |chances| chances.importance(t))).collect();
        NoisyBatch { x_t, steps, timesteps, condition, target, classes, importance }
    }
}

#[cfg(test)]
mod tests;
