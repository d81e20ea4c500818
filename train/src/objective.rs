//! The simple objective (FORMULAS 4.3; Ho, Jain & Abbeel 2020, Algorithm 1 and eq. 14), for a prediction of eps, x_0 or v:
//!
//! ```text
//! t ~ U{1..T},  eps ~ N(0, I),  x_t = alpha_t x_0 + sigma_t eps
//! L = mean over images and pixels of (f(x_t, t, y) - target)²
//! target = eps,  x_0,  or  v = alpha_t eps - sigma_t x_0  (Salimans & Ho 2022, appendix D)
//! ```
//!
//! With the probability of label dropout `y` is the null condition (Ho & Salimans 2022, Algorithm 1). Every random number
//! of image `i` of step `s` comes from a generator keyed by `(seed, s, i)`: a step is a pure function of the
//! seed, the step and the parameters, whatever the number of threads and whatever ran before.

use ndarray::{Array4, ArrayView4};
use ndarray_rand::rand::Rng;
use ndarray_rand::rand_distr::StandardNormal;
use rayon::prelude::*;
use tweedie_denoiser::{Condition, rng_for};
use tweedie_schedule::{Prediction, Schedule, TimestepMapping, forward};

use crate::TrainError;

/// Separates this generator from every other one that is keyed by the same seed.
const DOMAIN: &str = "train/objective";

/// A batch with its noise: what the network sees, and what it should answer.
#[derive(Clone, Debug, PartialEq)]
pub struct NoisyBatch {
    /// `x_t`, `[N, C, H, W]`.
    pub x_t: Array4<f32>,
    /// The steps, each in 1..=T.
    pub steps: Vec<usize>,
    /// The number that the network sees for each step.
    pub timesteps: Vec<f64>,
    /// The labels, with the null condition where a label was dropped.
    pub condition: Condition,
    /// What the network should answer, `[N, C, H, W]`.
    pub target: Array4<f32>,
}

/// `x_t = signal x_0 + noise eps` and `target = of_x0 x_0 + of_eps eps` of one step.
#[derive(Clone, Copy, Debug)]
struct Coefs {
    signal: f32,
    noise: f32,
    of_x0: f32,
    of_eps: f32,
}

/// The simple objective on a schedule: `E |target - prediction|^2` with `t` uniform (FORMULAS 4.3; Ho 2020, eq. 14).
///
/// Verified by `the_targets_are_those_of_the_definitions`. Verified by `steps_are_uniform_and_noise_is_standard_normal`.
#[derive(Clone, Debug)]
pub struct Objective {
    seed: u64,
    mapping: TimestepMapping,
    label_dropout: f64,
    /// Entry `t - 1` is step `t`.
    coefs: Vec<Coefs>,
}

impl Objective {
    /// The objective for a prediction; `label_dropout` is a probability.
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
        let coefs = schedule.levels()[1..]
            .iter()
            .map(|&level| {
                let q = forward::q_sample(level);
                let target = prediction.target(level, None)?;
                Ok(Coefs {
                    signal: q.scale as f32,
                    noise: q.variance.sqrt() as f32,
                    of_x0: target.of_x0 as f32,
                    of_eps: target.of_eps as f32,
                })
            })
            .collect::<Result<_, TrainError>>()?;
        Ok(Self { seed, mapping, label_dropout, coefs })
    }

    /// The batch of step `step` from images `x0` `[N, C, H, W]` and their labels (empty: no condition).
    ///
    /// # Panics
    /// If there are labels, but not one per image.
    pub fn draw(&self, step: u64, x0: ArrayView4<'_, f32>, labels: &[usize]) -> NoisyBatch {
        let n = x0.dim().0;
        assert!(labels.is_empty() || labels.len() == n, "one label per image, or none at all");
        let mut x_t = Array4::zeros(x0.raw_dim());
        let mut target = Array4::zeros(x0.raw_dim());
        let images: Vec<_> = x0.outer_iter().zip(x_t.outer_iter_mut()).zip(target.outer_iter_mut()).collect();
        let drawn: Vec<(usize, bool)> = images
            .into_par_iter()
            .enumerate()
            .map(|(i, ((x0, mut x_t), mut target))| {
                let mut random = rng_for(self.seed, DOMAIN, step, i as u64);
                // A u32, so that the draw is the same where usize has 32 bits.
                let t = random.random_range(0..self.coefs.len() as u32) as usize + 1;
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
        let condition = if labels.is_empty() {
            Condition::none(n)
        } else {
            Condition::labels(drawn.iter().zip(labels).map(|(&(_, dropped), &y)| (!dropped).then_some(y)).collect())
        };
        let steps: Vec<usize> = drawn.iter().map(|&(t, _)| t).collect();
        let timesteps = steps.iter().map(|&t| self.mapping.of_step(t as f64)).collect();
        NoisyBatch { x_t, steps, timesteps, condition, target }
    }
}

/// The mean squared error over all elements, and its gradient `2 (output - target) / n` with respect to the output.
///
/// Summed in f64, image by image, in a fixed order. Of no elements: 0.
///
/// FORMULAS 4.3. Verified by `the_mean_squared_error_of_known_tensors`. Verified by `the_gradient_is_the_derivative`.
///
/// # Panics
/// If the shapes differ.
pub fn mean_squared_error(output: ArrayView4<'_, f32>, target: ArrayView4<'_, f32>) -> (f64, Array4<f32>) {
    assert_eq!(output.dim(), target.dim(), "mean squared error of tensors of one shape");
    let n = output.len().max(1) as f64;
    let scale = (2.0 / n) as f32;
    let mut gradient = Array4::zeros(output.raw_dim());
    let images: Vec<_> = output.outer_iter().zip(target.outer_iter()).zip(gradient.outer_iter_mut()).collect();
    let sums: Vec<f64> = images
        .into_par_iter()
        .map(|((output, target), mut gradient)| {
            let mut sum = 0.0;
            for ((&output, &target), gradient) in output.iter().zip(target).zip(&mut gradient) {
                let difference = output - target;
                sum += f64::from(difference) * f64::from(difference);
                *gradient = scale * difference;
            }
            sum
        })
        .collect();
    (sums.iter().sum::<f64>() / n, gradient)
}

#[cfg(test)]
mod tests;
