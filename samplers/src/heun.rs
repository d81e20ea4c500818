//! Heun's method for the probability-flow ODE (FORMULAS 6.2; Karras 2022, Algorithm 1).
//!
//! With `y = x / alpha`, `s = sigma / alpha` and the slope `d(y, s) = (y - x_0(y, s)) / s`, a step from `s` to `s'` is
//!
//! ```text
//! y~ = y + (s' - s) d(y, s)                            Euler
//! y' = y + (s' - s) [d(y, s) + d(y~, s')] / 2          the trapezoidal rule
//! ```
//!
//! The slope is an estimate of `eps`, so in variance-preserving terms, with `eps` and `eps~` the two slopes,
//! `x' = alpha' / alpha x + (sigma' - alpha' s) (eps + eps~) / 2`.
//!
//! A step to `s' = 0`, where there is no second slope, is Euler's, as in the paper. So is one that would multiply the slopes by
//! more than 20, `alpha' s - sigma' > 20`: it would add ten times their difference, and with it the errors of the network. That
//! is a long step from a level with hardly any signal, as trailing grids of the cosine schedule have it (`s` = 20,000 at the
//! first step), or with none at all, where `s` is infinite and Euler's step alone has a limit. From `s` of 20 or less, and in
//! steps of moderate length from anywhere, it does not happen.

use ndarray::{ArrayView4, Zip};
use tweedie_schedule::{NoiseLevel, Prediction, prediction};

use crate::{Advance, Churn, Clip, Compat, Euler, Move, SamplerError, Solver};

/// The largest factor of the slopes, `alpha' s - sigma'`, in a step of two calls.
const LARGEST_FACTOR: f64 = 20.0;

/// Whether a step of two calls would multiply the slopes by more than it may.
pub(crate) fn magnifies(from: NoiseLevel, to: NoiseLevel, compat: Compat) -> bool {
    let of_slope = to.sigma() - to.alpha() / from.alpha() * from.sigma();
    match compat {
        Compat::Published => of_slope < -LARGEST_FACTOR,
        // Without any signal there is no other step.
        Compat::Diffusers => from.alpha() == 0.0,
    }
}

/// Heun's method: order 2, two calls a step but one in the last.
///
/// The estimate of `x_0` that an observer sees is that of the second call, at the level that the move leads to.
///
/// Verified by `heun_is_the_trapezoidal_rule`. Verified by `edm_heun_is_algorithm_1`.
/// Verified by `churned_samplers_draw_the_mixture`. Verified by `heun_does_not_magnify_errors`. Verified by `orders_on_a_mixture`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Heun {
    /// Post-processing of the estimates of `x_0`; the slopes are those of what it returns.
    pub clip: Clip,
    /// Noise before each move: Algorithm 2 of the paper.
    pub churn: Churn,
    /// Whether long steps from hardly any signal are of two calls, too, as in diffusers.
    pub compat: Compat,
}

impl Solver for Heun {
    fn name(&self) -> &'static str {
        "heun"
    }

    fn step(&mut self, x: ArrayView4<'_, f64>, on: &mut Move<'_>) -> Result<Advance, SamplerError> {
        let x = self.churn.start(x, on)?;
        let (from, to) = (on.from(), on.to());
        let euler = Euler { clip: self.clip, churn: Churn::NONE }.step(x.view(), on)?;
        if to.sigma() == 0.0 || magnifies(from, to, self.compat) {
            return Ok(euler);
        }
        let of_x = to.alpha() / from.alpha();
        let of_slope = to.sigma() - of_x * from.sigma();
        let mut x0 = on.denoise(euler.x.view(), to)?;
        self.clip.apply(&mut x0);
        let first = prediction::convert(Prediction::X0, Prediction::Eps, from, None)?;
        let second = prediction::convert(Prediction::X0, Prediction::Eps, to, None)?;
        let next =
            Zip::from(&x).and(&euler.x0).and(&euler.x).and(&x0).map_collect(|&x, &x0_first, &middle, &x0_second| {
                of_x * x + of_slope * 0.5 * (first.apply(x, x0_first) + second.apply(middle, x0_second))
            });
        Ok(Advance { x: next, x0 })
    }
}
