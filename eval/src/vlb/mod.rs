//! The variational bound on `-ln p(x_0)` (FORMULAS 4.1, 4.2; Ho, Jain & Abbeel 2020, eq. 5):
//!
//! $$ -\log p(x_0) \le \mathbb E_q \Big( L_T + \sum_{t=2}^T L_{t-1} + L_0 \Big) $$
//!
//! ```text
//! -ln p(x_0) <= E_q[L_T + sum_{t=2..T} L_{t-1} + L_0]
//! L_T     = KL(q(x_T | x_0) || N(0, I))                      the prior
//! L_{t-1} = KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t))     the steps
//! L_0     = -ln p(x_0 | x_1)                                 the decoder
//! ```
//!
//! with `p(x_{t-1} | x_t) = N(mu(x_t), sigma_q^2(t) I)` (a learned variance differs from value to value), where `mu` is the mean of the posterior `q(x_{t-1} | x_t, x_0)` with the
//! model's estimate in place of `x_0`. Everything is in nats per sample; [`crate::bits_per_dim`] converts.

mod evaluate;
mod path;

use std::sync::Arc;

use ndarray::{Array4, ArrayView4, Axis, Zip};
use tweedie_denoiser::{Condition, ConditionalDenoiser, Denoiser, DenoiserError, Estimate};
use tweedie_schedule::gaussian::kl_isotropic;
use tweedie_schedule::{NoiseLevel, Schedule, Variance, forward};

use crate::{Decoder, EvalError, ReverseVariance};

pub use evaluate::{Options, SampleBound, Steps, Term, VlbReport, evaluate};
pub use path::LogRatio;

/// `L_T = KL(q(x_T | x_0) || N(0, I))` with `q(x_T | x_0) = N(alpha x_0, sigma^2 I)` (Ho 2020, eq. 5), in nats.
///
/// `squares` is `|x_0|^2` of a sample of `dims` numbers, `level` that of step T.
///
/// FORMULAS 4.1. Verified by `prior_agrees_with_quadrature`.
pub fn prior_kl(level: NoiseLevel, squares: f64, dims: usize) -> f64 {
    let q = forward::q_sample(level);
    kl_isotropic(q.scale * q.scale * squares, q.variance, 1.0, dims)
}

/// A reverse process, up to its denoiser: the schedule, the variances of the steps and the decoder.
#[derive(Clone, Debug)]
pub struct Bound {
    schedule: Arc<Schedule>,
    /// `None` if the model states them.
    variances: Option<Vec<f64>>,
    decoder: Decoder,
}

impl Bound {
    /// The bound for a schedule, reverse variances and a decoder.
    ///
    /// # Errors
    /// If a table of variances has not T positive entries, or a rule refuses its own parameters.
    pub fn new(
        schedule: impl Into<Arc<Schedule>>,
        variance: &ReverseVariance,
        decoder: Decoder,
    ) -> Result<Self, EvalError> {
        let schedule = schedule.into();
        let learned = *variance == ReverseVariance::Rule(Variance::LearnedRange);
        let variances = if learned { None } else { Some(variance.table(&schedule, &decoder)?) };
        Ok(Self { schedule, variances, decoder })
    }

    /// The schedule.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// The decoder.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// `sigma_q^2(t)` for `t` in 1..=T; `None` if the model states it.
    ///
    /// # Panics
    /// If `t` is outside 1..=T.
    pub fn variance(&self, t: usize) -> Option<f64> {
        self.variances.as_ref().map(|variances| variances[t - 1])
    }

    /// `sigma_q^2(t)` of every value of a batch of estimates, which are of the same shape.
    fn variances(&self, t: usize, estimate: &Estimate) -> Result<Array4<f64>, EvalError> {
        if let Some(variance) = self.variance(t) {
            return Ok(Array4::from_elem(estimate.x0.raw_dim(), variance));
        }
        let Some(fraction) = &estimate.fraction else {
            return Err(EvalError::Parameter {
                operation: "likelihood",
                what: "the model of a learned variance",
                expected: "one that states its variance: twice as many output channels as input channels".to_owned(),
                found: "an estimate of x_0 alone".to_owned(),
                remedy: "choose the small or the large variance",
            });
        };
        check_shape("the model's variance", estimate.x0.shape(), fraction.shape())?;
        let range = self.schedule.variance_range(t);
        Ok(fraction.mapv(|v| range.log_variance(v).exp()))
    }

    /// `L_T` of each sample of `x0` `[N, C, H, W]`, in nats.
    pub fn prior(&self, x0: ArrayView4<'_, f64>) -> Vec<f64> {
        let level = self.schedule.level(self.schedule.steps());
        x0.axis_iter(Axis(0)).map(|x| prior_kl(level, x.iter().map(|v| v * v).sum(), x.len())).collect()
    }

    /// One step's term of each sample, in nats: `L_{t-1}` for `t` in 2..=T, and `L_0` for `t = 1`, at
    /// `x_t = alpha_t x_0 + sigma_t eps`. Both tensors are `[N, C, H, W]`.
    ///
    /// # Errors
    /// If the model refuses `x_t` or returns another shape, the shapes of `x0` and `eps` differ, a pixel is no level of the
    /// decoder, or a term is not finite.
    ///
    /// # Panics
    /// If `t` is outside 1..=T.
    ///
    /// FORMULAS 4.1. Verified by `telescoped_sum_is_the_log_ratio_in_closed_form`.
    pub fn term(
        &self,
        model: &dyn Denoiser,
        x0: ArrayView4<'_, f64>,
        eps: ArrayView4<'_, f64>,
        t: usize,
    ) -> Result<Vec<f64>, EvalError> {
        self.term_of(model, x0, eps, t, &|i| i)
    }

    /// As [`Bound::term`], where sample `i` is called `name(i)` in messages.
    fn term_of(
        &self,
        model: &dyn Denoiser,
        x0: ArrayView4<'_, f64>,
        eps: ArrayView4<'_, f64>,
        t: usize,
        name: &dyn Fn(usize) -> usize,
    ) -> Result<Vec<f64>, EvalError> {
        check_shape("the noise", x0.shape(), eps.shape())?;
        let level = self.schedule.level(t);
        let q = forward::q_sample(level);
        let xt = Zip::from(x0).and(eps).map_collect(|&x0, &eps| q.apply(x0, eps));
        let estimate = estimated(model, &xt, level)?;
        let (posterior, variances) = (self.schedule.posterior(t), self.variances(t, &estimate)?);
        let mut terms = Vec::with_capacity(x0.dim().0);
        for i in 0..x0.dim().0 {
            let [x0, xt, estimate, variances] =
                [x0, xt.view(), estimate.x0.view(), variances.view()].map(|values| values.index_axis_move(Axis(0), i));
            let mean = xt.iter().zip(&estimate).map(|(&xt, &estimate)| posterior.mean(xt, estimate));
            let term = if t == 1 {
                let values = x0.iter().zip(mean).zip(&variances).map(|((&x0, mean), &variance)| (x0, mean, variance));
                self.decoder.nll(name(i), values)?
            } else {
                let exact = xt.iter().zip(&x0).map(|(&xt, &x0)| posterior.mean(xt, x0));
                let of_value = |((exact, mean), &variance): ((f64, f64), &f64)| {
                    kl_isotropic((exact - mean) * (exact - mean), posterior.variance(), variance, 1)
                };
                exact.zip(mean).zip(&variances).map(of_value).sum()
            };
            if !term.is_finite() {
                let (operation, place) = ("variational bound", format!("step {t}"));
                return Err(EvalError::NotFinite { operation, sample: name(i), place, value: term });
            }
            terms.push(term);
        }
        Ok(terms)
    }
}

/// A denoiser that takes no condition, as one that takes the null condition alone.
#[derive(Clone, Copy, Debug)]
pub struct Unconditioned<D>(pub D);

impl<D: Denoiser> ConditionalDenoiser for Unconditioned<D> {
    fn denoise_with(
        &self,
        x: ArrayView4<'_, f64>,
        level: NoiseLevel,
        condition: &Condition,
    ) -> Result<Array4<f64>, DenoiserError> {
        Ok(self.estimate_with(x, level, condition)?.x0)
    }

    fn estimate_with(
        &self,
        x: ArrayView4<'_, f64>,
        level: NoiseLevel,
        condition: &Condition,
    ) -> Result<Estimate, DenoiserError> {
        if condition.is_null() {
            return self.0.estimate(x, level);
        }
        let message = "this denoiser takes no condition; evaluate it without labels".to_owned();
        Err(DenoiserError::Condition { operation: "likelihood", message })
    }
}

/// The model's estimate, of the shape of its input.
pub(crate) fn denoised(model: &dyn Denoiser, x: &Array4<f64>, level: NoiseLevel) -> Result<Array4<f64>, EvalError> {
    Ok(estimated(model, x, level)?.x0)
}

/// As [`denoised`], with the learned variance where the model has one.
fn estimated(model: &dyn Denoiser, x: &Array4<f64>, level: NoiseLevel) -> Result<Estimate, EvalError> {
    let estimate = model.estimate(x.view(), level)?;
    check_shape("the model's estimate", x.shape(), estimate.x0.shape())?;
    Ok(estimate)
}

fn check_shape(what: &'static str, expected: &[usize], found: &[usize]) -> Result<(), EvalError> {
    if expected == found {
        return Ok(());
    }
    Err(EvalError::Parameter {
        operation: "likelihood",
        what,
        expected: format!("of the shape {expected:?}"),
        found: format!("{found:?}"),
        remedy: "data, noise and estimates have one shape [N, C, H, W]",
    })
}
