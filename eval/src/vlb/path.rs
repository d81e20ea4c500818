//! The bound on a single path, where it is an identity (FORMULAS 4.1; Sohl-Dickstein 2015, appendix B.3).

use ndarray::{Array4, ArrayView4, Axis, Zip};
use tweedie_denoiser::{Denoiser, Noise, Purpose};
use tweedie_schedule::gaussian::log_normal;
use tweedie_schedule::{ScheduleError, forward};

use super::{Bound, denoised};
use crate::EvalError;

/// The log-ratio of one path `x_0, x_1, ..., x_T` in its two forms, in nats; they are equal, and their mean over paths is the
/// variational bound.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LogRatio {
    /// `sum_t ln q(x_t | x_{t-1}) - ln p(x_T) - sum_t ln p(x_{t-1} | x_t)`.
    pub direct: f64,
    /// `ln q(x_T | x_0)/p(x_T) + sum_{t>=2} ln q(x_{t-1} | x_t, x_0)/p(x_{t-1} | x_t) - ln p(x_0 | x_1)`.
    pub telescoped: f64,
}

impl Bound {
    /// `ln q(x_{1:T} | x_0) - ln p(x_{0:T})` of one path of each sample of `x0` `[N, C, H, W]`, which is walked by
    /// `x_t = sqrt(a_t) x_{t-1} + sqrt(b_t) z_t` with `z_t` from `noise` for [`Purpose::Step`]`(t)`.
    ///
    /// It calls the model T times. Its mean is that of [`super::evaluate`], its variance is larger.
    ///
    /// # Errors
    /// As [`Bound::term`]; or if the source has no such noise, or the variance is a learned one.
    ///
    /// Verified by `log_ratios_of_a_path_are_equal`.
    /// Verified by `log_ratio_of_an_exact_reversal_is_the_density`.
    pub fn log_ratio(
        &self,
        model: &dyn Denoiser,
        x0: ArrayView4<'_, f64>,
        noise: &dyn Noise,
    ) -> Result<Vec<LogRatio>, EvalError> {
        let last = self.schedule.steps();
        let mut ratios = vec![LogRatio::default(); x0.dim().0];
        let mut before = x0.to_owned();
        for t in 1..=last {
            let (level, posterior, step) =
                (self.schedule.level(t), self.schedule.posterior(t), forward::q_step(&self.schedule, t));
            let marginal = forward::q_sample(level);
            let variance = self.variance(t).ok_or(ScheduleError::LearnedVariance)?;
            let z = drawn(noise, Purpose::Step(t), &|i| i, x0.raw_dim())?;
            let now = Zip::from(&before).and(&z).map_collect(|&x, &z| step.apply(x, z));
            let estimate = denoised(model, &now, level)?;
            for (i, ratio) in ratios.iter_mut().enumerate() {
                let sample = |x: &Array4<f64>| x.index_axis(Axis(0), i).iter().copied().collect::<Vec<f64>>();
                let (before, now, estimate) = (sample(&before), sample(&now), sample(&estimate));
                let x0: Vec<f64> = x0.index_axis(Axis(0), i).iter().copied().collect();
                let dims = x0.len();
                let squares = |a: &[f64], mean: &dyn Fn(usize) -> f64| {
                    a.iter().enumerate().map(|(j, a)| (a - mean(j)) * (a - mean(j))).sum::<f64>()
                };
                let mean = |j: usize| posterior.mean(now[j], estimate[j]);
                let reverse = if t == 1 {
                    -self.decoder.nll(i, (0..dims).map(|j| (before[j], mean(j), variance)))?
                } else {
                    log_normal(squares(&before, &mean), variance, dims)
                };
                ratio.direct += log_normal(squares(&now, &|j| step.scale * before[j]), step.variance, dims) - reverse;
                ratio.telescoped -= reverse;
                if t > 1 {
                    let exact = |j: usize| posterior.mean(now[j], x0[j]);
                    ratio.telescoped += log_normal(squares(&before, &exact), posterior.variance(), dims);
                }
                if t == last {
                    let prior = log_normal(squares(&now, &|_| 0.0), 1.0, dims);
                    ratio.direct -= prior;
                    ratio.telescoped +=
                        log_normal(squares(&now, &|j| marginal.scale * x0[j]), marginal.variance, dims) - prior;
                }
            }
            before = now;
        }
        Ok(ratios)
    }
}

/// Noise of the shape `dim`, whose sample `i` is drawn as sample `name(i)`.
pub(super) fn drawn(
    noise: &dyn Noise,
    purpose: Purpose,
    name: &dyn Fn(usize) -> usize,
    dim: ndarray::Dim<[usize; 4]>,
) -> Result<Array4<f64>, EvalError> {
    let mut values = Array4::zeros(dim);
    let mut buffer = vec![0.0; dim[1] * dim[2] * dim[3]];
    for (i, mut sample) in values.axis_iter_mut(Axis(0)).enumerate() {
        noise.fill(purpose, name(i), &mut buffer)?;
        sample.iter_mut().zip(&buffer).for_each(|(to, from)| *to = *from);
    }
    Ok(values)
}
