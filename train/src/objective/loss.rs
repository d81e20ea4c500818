//! The losses and their gradients with respect to the network's output (FORMULAS 4.1 to 4.3).

use std::f64::consts::LN_2;

use ndarray::{Array4, ArrayView4, Axis};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use tweedie_schedule::gaussian::kl_isotropic;
use tweedie_schedule::{
    Affine, Bins, Prediction, Schedule, ScheduleError, Variance, VarianceRange, Weighting, prediction,
};

use super::NoisyBatch;

/// The factor of `L_vlb` in `L_hybrid` (Nichol & Dhariwal 2021, section 3.1).
pub const HYBRID_FACTOR: f64 = 1e-3;

/// What is minimised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Loss {
    /// `L_simple`: the mean squared error of the prediction, weighted (Ho 2020, eq. 14).
    #[default]
    Simple,
    /// `L_vlb`: `T` times the term `L_{t-1}` of the variational bound, in bits/dim, whose mean over t is the bound without the
    /// prior (Ho 2020, eq. 5).
    Vlb,
    /// `L_simple + 0.001 L_vlb`, where `L_vlb` trains the variance and not the mean (Nichol & Dhariwal 2021, eq. 16).
    Hybrid,
    /// The cross-entropy of a classifier of `x_t` or `x_0`, see [`Objective::classifier`](super::Objective::classifier).
    CrossEntropy,
}

/// What a loss depends on, beside the schedule and the prediction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Terms {
    /// What is minimised.
    pub loss: Loss,
    /// Weights of the squared error.
    pub weighting: Weighting,
    /// The variance of the reverse step, for the bound; [`Variance::LearnedRange`] is trained.
    pub variance: Variance,
    /// The levels of the pixels, for the bound's decoder.
    pub bins: Bins,
}

/// The loss of a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchLoss {
    /// The mean over the images, each counted with its importance.
    pub value: f64,
    /// Its gradient with respect to the output, of the output's shape.
    pub gradient: Array4<f32>,
    /// The loss of each image, without its importance.
    pub images: Vec<f64>,
}

/// What a step contributes to the loss of one value of an image.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    /// Factor of the squared error.
    weight: f64,
    /// `ln sigma_q^2` of a fixed variance.
    fixed: Option<f64>,
    /// The ends of a learned one.
    range: VarianceRange,
    /// `b~`, or `None` at the last step of the reverse process, which is the decoder's.
    exact: Option<f64>,
    /// The mean of the reverse step from `x_t` and the prediction.
    mean: Affine,
}

/// A value in nats and its derivatives by the prediction and by the output that stands for the variance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Element {
    pub(super) value: f64,
    pub(super) by_prediction: f64,
    pub(super) by_variance: f64,
}

/// The numbers of one value of an image.
#[derive(Clone, Copy, Debug)]
pub(super) struct Values {
    pub(super) x0: f64,
    pub(super) xt: f64,
    pub(super) target: f64,
    pub(super) prediction: f64,
    /// The output that stands for a learned variance.
    pub(super) variance: f64,
}

impl Step {
    /// Step `t` of a schedule.
    ///
    /// # Errors
    /// If a weight or a variance does not exist at the step.
    pub(super) fn new(
        schedule: &Schedule,
        t: usize,
        of: Prediction,
        Terms { loss, weighting, variance, .. }: &Terms,
    ) -> Result<Self, ScheduleError> {
        let (level, posterior) = (schedule.level(t), schedule.posterior(t));
        let unused = Affine { of_x: 0.0, of_prediction: 0.0 };
        let fixed = match variance {
            Variance::LearnedRange => None,
            rule => Some(schedule.reverse_variance(t, *rule, true)?.ln()),
        };
        Ok(Self {
            weight: if *loss == Loss::Vlb { 0.0 } else { weighting.weight(of, level, Some(&posterior))? },
            fixed,
            range: schedule.variance_range(t),
            exact: (t > 1).then(|| posterior.variance()),
            mean: match loss {
                Loss::Simple => unused,
                _ => prediction::convert(of, Prediction::Mean, level, Some(&posterior))?,
            },
        })
    }

    /// The term `L_{t-1}` of the bound for one value (FORMULAS 4.1; Ho 2020, eqs. 5 and 13), in nats, with its derivatives:
    ///
    /// ```text
    /// t > 1   1/2 [ln s² - ln b~ + (b~ + (mu~ - mu)²) / s² - 1]
    /// t = 1   -ln of the mass of N(mu, s²) in the bin of x_0
    /// ```
    ///
    /// # Panics
    /// If `x_0` is none of the bins' levels at t = 1.
    ///
    /// Verified by `gradients_of_the_bound_are_its_differences`. Verified by `the_bound_is_that_of_its_definition`.
    pub(super) fn bound(&self, values: Values, bins: &Bins) -> Element {
        let slope = match self.fixed {
            Some(_) => 0.0,
            None => 0.5 * (self.range.log_large - self.range.log_small),
        };
        let log_variance =
            self.fixed.unwrap_or_else(|| self.range.log_variance(VarianceRange::fraction(values.variance)));
        match self.exact {
            Some(exact) => {
                let (offset, variance) =
                    (self.mean.of_prediction * (values.prediction - values.target), log_variance.exp());
                let ratio = (exact + offset * offset) / variance;
                Element {
                    value: kl_isotropic(offset * offset, exact, variance, 1),
                    by_prediction: offset * self.mean.of_prediction / variance,
                    by_variance: 0.5 * (1.0 - ratio) * slope,
                }
            }
            None => {
                let level = bins.index(values.x0).expect("the pixels of the data are the levels of its range");
                let (mean, std) = (self.mean.apply(values.xt, values.prediction), (0.5 * log_variance).exp());
                let (log, by_mean, by_log) = bins.log_probability_gradient(level, mean, std);
                Element { value: -log, by_prediction: -by_mean * self.mean.of_prediction, by_variance: -by_log * slope }
            }
        }
    }
}

/// The loss of a batch and its gradient.
pub(super) fn of_batch(
    steps: &[Step],
    terms: &Terms,
    batch: &NoisyBatch,
    x0: ArrayView4<'_, f32>,
    output: ArrayView4<'_, f32>,
) -> BatchLoss {
    let (images, channels, ..) = batch.target.dim();
    let mut gradient = Array4::zeros(output.raw_dim());
    let dims = batch.target.len() / images.max(1);
    // The expectation over t of T L_{t-1} is the sum of the terms.
    let bound_scale = steps.len() as f64 / LN_2 / dims.max(1) as f64;
    let work: Vec<_> = output.outer_iter().zip(gradient.outer_iter_mut()).collect();
    let values: Vec<f64> = work
        .into_par_iter()
        .enumerate()
        .map(|(i, (output, mut gradient))| {
            let step = &steps[batch.steps[i] - 1];
            let importance = batch.importance[i] / images as f64;
            let (x0, xt, target) =
                (x0.index_axis(Axis(0), i), batch.x_t.index_axis(Axis(0), i), batch.target.index_axis(Axis(0), i));
            let (predicted, variance) = output.split_at(Axis(0), channels);
            let (mut by_prediction, mut by_variance) = gradient.view_mut().split_at(Axis(0), channels);
            let mut value = 0.0;
            if terms.loss != Loss::Vlb {
                let scale = (2.0 * step.weight * importance / dims as f64) as f32;
                let mut squares = 0.0;
                for ((&output, &target), gradient) in predicted.iter().zip(target).zip(&mut by_prediction) {
                    let difference = output - target;
                    squares += f64::from(difference) * f64::from(difference);
                    *gradient = scale * difference;
                }
                value += step.weight * squares / dims as f64;
            }
            if terms.loss != Loss::Simple {
                let factor = if terms.loss == Loss::Hybrid { HYBRID_FACTOR } else { 1.0 } * bound_scale;
                let mut variances = variance.iter();
                let mut of_variances = by_variance.iter_mut();
                let mut sum = 0.0;
                for ((((&x0, &xt), &target), &prediction), of_prediction) in
                    x0.iter().zip(xt).zip(target).zip(predicted).zip(&mut by_prediction)
                {
                    let values = Values {
                        x0: x0.into(),
                        xt: xt.into(),
                        target: target.into(),
                        prediction: prediction.into(),
                        variance: variances.next().map_or(0.0, |&v| v.into()),
                    };
                    let element = step.bound(values, &terms.bins);
                    sum += element.value;
                    // The gradient of the hybrid's bound stops at the mean.
                    if terms.loss == Loss::Vlb {
                        *of_prediction = (importance * factor * element.by_prediction) as f32;
                    }
                    if let Some(gradient) = of_variances.next() {
                        *gradient = (importance * factor * element.by_variance) as f32;
                    }
                }
                value += factor * sum;
            }
            value
        })
        .collect();
    let weighted = values.iter().zip(&batch.importance).map(|(value, importance)| value * importance);
    BatchLoss { value: weighted.sum::<f64>() / images.max(1) as f64, gradient, images: values }
}
