//! The linear multistep method of k-diffusion (Crowson): Adams and Bashforth's on uneven steps.
//!
//! With `y = x / alpha`, `s = sigma / alpha` and the slope `d = dy/ds`, which is the estimate of `eps`, the slope is replaced by the
//! polynomial through the last `order` of its values, at `s_0` (this move), `s_1`, ...
//!
//! ```text
//! y' = y + sum_k c_k d_k,   c_k = integral from s_0 to s' of prod_(j != k) (s - s_j) / (s_k - s_j) ds
//! ```
//!
//! Two points of Gauss and Legendre make the integral of a cubic exact. The `c_k` sum to `s' - s_0`, so in variance-preserving
//! terms `x' = alpha' x_0 + sigma' d_0 + alpha' sum_k c_k (d_k - d_0)`: the step of Euler's method, and what is known beyond it.

use std::collections::VecDeque;

use ndarray::{Array4, ArrayView4, Zip};
use tweedie_schedule::{Prediction, prediction};

use crate::{Advance, Move, SamplerError, Solver};

/// The linear multistep method: one call a step. The first moves are of lower orders.
///
/// $$ y' = y + \sum_k d_k \int_{s_0}^{s'} \prod_{j \ne k} \frac{s - s_j}{s_k - s_j} ds $$
///
/// Verified by `lms_is_exact_for_polynomial_slopes`. Verified by `orders_of_the_sigma_family`.
#[derive(Clone, Debug, PartialEq)]
pub struct Lms {
    order: usize,
    /// `s` and the slope, the newest first.
    slopes: VecDeque<(f64, Array4<f64>)>,
}

impl Lms {
    /// The highest order.
    pub const HIGHEST: usize = 4;

    /// The method of an order.
    ///
    /// # Errors
    /// If the order is not in 1..=4.
    pub fn new(order: usize) -> Result<Self, SamplerError> {
        if !(1..=Self::HIGHEST).contains(&order) {
            return Err(SamplerError::Parameter {
                operation: "lms",
                what: "the order",
                expected: "1, 2, 3 or 4",
                found: order as f64,
            });
        }
        Ok(Self { order, slopes: VecDeque::new() })
    }
}

impl Solver for Lms {
    fn name(&self) -> &'static str {
        "lms"
    }

    fn begin(&mut self) {
        self.slopes.clear();
    }

    fn step(&mut self, x: ArrayView4<'_, f64>, on: &mut Move<'_>) -> Result<Advance, SamplerError> {
        let (from, to) = (on.from(), on.to());
        let to_eps = prediction::convert(Prediction::X0, Prediction::Eps, from, None)?;
        let x0 = on.denoise(x, from)?;
        let slope = Zip::from(x).and(&x0).map_collect(|&x, &x0| to_eps.apply(x, x0));
        let mut next = Zip::from(&x0).and(&slope).map_collect(|&x0, &d| to.alpha() * x0 + to.sigma() * d);
        self.slopes.push_front((from.edm_sigma(), slope));
        self.slopes.truncate(self.order);
        let sigmas: Vec<f64> = self.slopes.iter().map(|entry| entry.0).collect();
        for (weight, (_, slope)) in weights(&sigmas, to.edm_sigma()).iter().zip(&self.slopes).skip(1) {
            let weight = to.alpha() * weight;
            Zip::from(&mut next).and(slope).and(&self.slopes[0].1).for_each(|x, &d, &now| *x += weight * (d - now));
        }
        Ok(Advance { x: next, x0 })
    }
}

/// The integrals `c_k` from the first of `sigmas` to `end`. A slope at an infinite sigma is left out: its weight is 0.
fn weights(sigmas: &[f64], end: f64) -> Vec<f64> {
    let finite: Vec<f64> = sigmas.iter().copied().filter(|s| s.is_finite()).collect();
    let start = sigmas[0];
    if !start.is_finite() {
        return vec![0.0; sigmas.len()];
    }
    let (middle, half) = (0.5 * (start + end), 0.5 * (end - start));
    let offset = half / 3.0_f64.sqrt();
    let basis = |k: usize, s: f64| -> f64 {
        finite.iter().enumerate().filter(|(j, _)| *j != k).map(|(_, s_j)| (s - s_j) / (finite[k] - s_j)).product()
    };
    let mut weights: Vec<f64> =
        (0..finite.len()).map(|k| half * (basis(k, middle - offset) + basis(k, middle + offset))).collect();
    // Levels fall, so an infinite one can only be the oldest.
    weights.resize(sigmas.len(), 0.0);
    weights
}

#[cfg(test)]
mod tests {
    use super::*;

    /// For slopes `s^p`, `p` below the order, the step is the integral.
    #[test]
    fn lms_is_exact_for_polynomial_slopes() {
        let sigmas = [3.0_f64, 4.5, 5.0, 9.0];
        for order in 1..=Lms::HIGHEST {
            for p in 0..order as i32 {
                let found: f64 = weights(&sigmas[..order], 1.2).iter().zip(sigmas).map(|(c, s)| c * s.powi(p)).sum();
                let expected = (1.2_f64.powi(p + 1) - 3.0_f64.powi(p + 1)) / f64::from(p + 1);
                assert!((found - expected).abs() < 1e-12 * expected.abs(), "order {order}, power {p}: {found}");
            }
        }
        assert!(Lms::new(0).is_err() && Lms::new(5).is_err());
        // A first level without signal says nothing of the slopes after it.
        assert_eq!(weights(&[3.0, f64::INFINITY], 1.0), [-2.0, 0.0]);
        assert_eq!(weights(&[f64::INFINITY], 1.0), [0.0]);
    }
}
