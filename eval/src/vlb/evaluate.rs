//! The bound over a data set: every step of every sample, or a few random steps of each.

use ndarray::{ArrayView4, Axis};
use ndarray_rand::rand::Rng;
use tweedie_denoiser::{Condition, ConditionalDenoiser, Conditioned, Noise, Purpose, rng_for};

use super::Bound;
use super::path::drawn;
use crate::{Estimate, EvalError};

/// Separates the choice of steps from every other random number of the same seed.
const DOMAIN: &str = "eval/steps";

/// Which of the terms `L_{t-1}`, `t = 2..=T`, are computed; prior and decoder always are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steps {
    /// Every one: T calls of the model for each sample.
    All,
    /// One uniformly drawn step out of each of `per_sample` strata of `2..=T`; a term counts as many times as its stratum has
    /// steps, so the sum is unbiased. `per_sample + 1` calls for each sample. The strata are as equal in `ln t` as whole
    /// numbers allow, because the terms fall about as `1 / t`: equal ones in `t` have a many times larger variance.
    Stratified {
        /// Number of strata, 1 to T - 1.
        per_sample: usize,
    },
}

impl Steps {
    /// How many times the model sees each sample on a schedule of T steps.
    pub fn calls(self, train_steps: usize) -> usize {
        match self {
            Self::Stratified { per_sample } if train_steps > 1 => 1 + per_sample,
            _ => train_steps,
        }
    }

    /// The strata of `2..=T`, each as its first step and its number of steps.
    fn strata(self, train_steps: usize) -> Result<Vec<(usize, usize)>, EvalError> {
        let steps = train_steps - 1;
        let count = match self {
            Self::Stratified { per_sample } if steps > 0 => per_sample,
            _ => steps,
        };
        if steps > 0 && !(1..=steps).contains(&count) {
            return Err(EvalError::Parameter {
                operation: "variational bound",
                what: "the number of steps per sample",
                expected: format!("1 to {steps}"),
                found: count.to_string(),
                remedy: "take fewer, or every step",
            });
        }
        let (mut first, end) = (2, train_steps + 1);
        let mut strata = Vec::with_capacity(count);
        for left in (1..=count).rev() {
            // The next of `left` equal ratios from here to the end, and one step at least.
            let ratio = (end as f64 / first as f64).powf((left as f64).recip());
            let next = (first + 1).max((first as f64 * ratio).round() as usize);
            strata.push((first, next - first));
            first = next;
        }
        Ok(strata)
    }
}

/// How a bound is estimated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The steps.
    pub steps: Steps,
    /// The seed of the choice of steps, which is keyed by the number of the sample.
    pub seed: u64,
    /// Samples in one call of the model; the result does not depend on it.
    pub batch: usize,
}

/// The parts of the bound on one sample, in nats.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SampleBound {
    /// `L_T`.
    pub prior: f64,
    /// `sum_{t=2..T} L_{t-1}`, or the estimate of it.
    pub steps: f64,
    /// `L_0`.
    pub decoder: f64,
}

impl SampleBound {
    /// `L_T + sum_{t=2..T} L_{t-1} + L_0`.
    pub fn total(&self) -> f64 {
        self.prior + self.steps + self.decoder
    }
}

/// The mean of one step's term over the samples for which it was computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Term {
    /// The step: the term is `L_{t-1}`, which for `t = 1` is the decoder's.
    pub t: usize,
    /// Its mean over samples and noise, in nats.
    pub estimate: Estimate,
}

/// The bound on a data set.
#[derive(Clone, Debug, PartialEq)]
pub struct VlbReport {
    /// How many numbers a sample has.
    pub dims: usize,
    /// The bound on each sample.
    pub samples: Vec<SampleBound>,
    /// The terms of every step that was computed for a sample at least, in ascending order.
    pub terms: Vec<Term>,
}

impl VlbReport {
    /// The mean of a part over the samples, in nats per sample. Samples, their noise and their steps are independent, so the
    /// standard error over samples holds the errors from all three.
    ///
    /// Verified by `stratified_steps_are_unbiased`.
    pub fn estimate(&self, part: impl Fn(&SampleBound) -> f64) -> Estimate {
        Estimate::of(&self.samples.iter().map(part).collect::<Vec<f64>>())
    }
}

/// The bound on each sample of `x0` `[N, C, H, W]` under its entry of `condition`, with one draw of noise for each step and
/// sample: sample `i` takes noise `i` of `noise` for [`Purpose::Step`]`(t)`. `tick` is told how many samples every call had.
///
/// # Errors
/// As [`Bound::term`]; or if the number of steps per sample is out of range, or the condition has not N entries.
///
/// FORMULAS 4.1. Verified by `stratified_steps_are_unbiased`.
/// Verified by `bound_lies_above_the_exact_value`.
pub fn evaluate(
    bound: &Bound,
    model: &dyn ConditionalDenoiser,
    x0: ArrayView4<'_, f64>,
    condition: &Condition,
    noise: &dyn Noise,
    options: Options,
    tick: &mut dyn FnMut(usize),
) -> Result<VlbReport, EvalError> {
    let (samples, c, h, w) = x0.dim();
    if condition.len() != samples {
        return Err(EvalError::Parameter {
            operation: "variational bound",
            what: "the condition",
            expected: format!("one entry for each of {samples} samples"),
            found: condition.len().to_string(),
            remedy: "pass None for a sample without a label",
        });
    }
    let (train_steps, batch) = (bound.schedule().steps(), options.batch.max(1));
    let strata = options.steps.strata(train_steps)?;
    // Samples that take step t, and how many steps it stands for.
    let mut takers = vec![Vec::new(); train_steps + 1];
    let mut weights = vec![0.0; train_steps + 1];
    takers[1] = (0..samples).collect();
    for &(first, size) in &strata {
        weights[first..first + size].fill(size as f64);
    }
    for i in 0..samples {
        let mut random = rng_for(options.seed, DOMAIN, i as u64, 0);
        for &(first, size) in &strata {
            takers[first + random.random_range(0..size as u32) as usize].push(i);
        }
    }

    let mut bounds: Vec<SampleBound> =
        bound.prior(x0).into_iter().map(|prior| SampleBound { prior, ..SampleBound::default() }).collect();
    let mut terms = Vec::new();
    for (t, takers) in takers.iter().enumerate().filter(|(_, takers)| !takers.is_empty()) {
        let mut of_step = Vec::with_capacity(takers.len());
        for chosen in takers.chunks(batch) {
            let eps = drawn(noise, Purpose::Step(t), &|i| chosen[i], ndarray::Dim([chosen.len(), c, h, w]))?;
            let labels = chosen.iter().map(|&i| condition.as_labels()[i]).collect();
            let model = Conditioned::new(model, Condition::labels(labels));
            let part = x0.select(Axis(0), chosen);
            let values = bound.term_of(&model, part.view(), eps.view(), t, &|i| chosen[i])?;
            for (&i, &value) in chosen.iter().zip(&values) {
                if t == 1 {
                    bounds[i].decoder = value;
                } else {
                    bounds[i].steps += weights[t] * value;
                }
            }
            of_step.extend(values);
            tick(chosen.len());
        }
        terms.push(Term { t, estimate: Estimate::of(&of_step) });
    }
    Ok(VlbReport { dims: c * h * w, samples: bounds, terms })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strata(train_steps: usize, per_sample: usize) -> Vec<(usize, usize)> {
        Steps::Stratified { per_sample }.strata(train_steps).unwrap()
    }

    #[test]
    fn strata_tile_the_steps() {
        for train_steps in (1..40).chain([100, 999, 1000]) {
            for per_sample in 1..train_steps.min(60) {
                let strata = strata(train_steps, per_sample);
                assert_eq!(strata.len(), per_sample);
                let mut next = 2;
                for (first, size) in strata {
                    assert!(first == next && size > 0, "T = {train_steps}, {per_sample} strata");
                    next = first + size;
                }
                assert_eq!(next, train_steps + 1, "T = {train_steps}, {per_sample} strata");
            }
            let singles: Vec<(usize, usize)> = (2..=train_steps).map(|t| (t, 1)).collect();
            assert_eq!(Steps::All.strata(train_steps).unwrap(), singles);
            if train_steps > 1 {
                assert_eq!(strata(train_steps, train_steps - 1), singles);
            }
        }
    }

    #[test]
    fn strata_are_equal_in_the_logarithm() {
        // 2, 20, 200, 2000: thirds of three decades.
        assert_eq!(strata(1999, 3), [(2, 18), (20, 180), (200, 1800)]);
        // Where the equal ratio is less than a step, a step it is, and the rest is divided anew.
        assert_eq!(strata(24, 5), [(2, 1), (3, 2), (5, 4), (9, 6), (15, 10)]);
    }
}
