//! The forward process (FORMULAS 1.1, 1.2; Ho 2020, eqs. 2 and 4).
//!
//! Every `q(x_t | x_s)` with `s <= t` is `N(scale x_s, variance I)`; composing two of them gives a third.

use crate::{NoiseLevel, Schedule, ScheduleError};

/// A Gaussian transition `x -> N(scale x, variance I)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Transition {
    /// Factor of the mean.
    pub scale: f64,
    /// Variance of the noise added.
    pub variance: f64,
}

impl Transition {
    /// The transition that changes nothing.
    pub const IDENTITY: Self = Self { scale: 1.0, variance: 0.0 };

    /// `self` followed by `next`: `N(m2 m1 x, m2^2 v1 + v2)`.
    ///
    /// FORMULAS 1.1. Verified by `steps_compose_to_the_marginal`.
    pub fn then(self, next: Self) -> Self {
        Self { scale: next.scale * self.scale, variance: next.scale * next.scale * self.variance + next.variance }
    }

    /// `scale x + sqrt(variance) z` for a standard normal `z`.
    ///
    /// FORMULAS 1.2. Verified by `predictions_convert`.
    pub fn apply(self, x: f64, z: f64) -> f64 {
        self.scale * x + self.variance.sqrt() * z
    }
}

/// `q(x_t | x_{t-1}) = N(sqrt(1 - b_t) x_{t-1}, b_t I)` (Ho 2020, eq. 2), for `t` in 1..=T.
///
/// $$ q(x_t \mid x_{t-1}) = \mathcal N(\sqrt{1 - b_t} x_{t-1}, b_t I) $$
///
/// # Panics
/// If `t` is outside 1..=T.
///
/// FORMULAS 1.1. Verified by `steps_compose_to_the_marginal`.
pub fn q_step(schedule: &Schedule, t: usize) -> Transition {
    Transition { scale: schedule.alpha(t).sqrt(), variance: schedule.beta(t) }
}

/// `q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I)` (Ho 2020, eq. 4): `x_t = alpha x_0 + sigma eps`.
///
/// $$ q(x_t \mid x_0) = \mathcal N(\sqrt{\bar\alpha_t} x_0, (1 - \bar\alpha_t) I) $$
///
/// FORMULAS 1.2. Verified by `steps_compose_to_the_marginal`.
pub fn q_sample(level: NoiseLevel) -> Transition {
    Transition { scale: level.alpha(), variance: level.sigma() * level.sigma() }
}

/// `q(x_t | x_s) = N(sqrt(abar_t / abar_s) x_s, (1 - abar_t / abar_s) I)` for a level `t` at least as noisy as `s`.
///
/// $$ q(x_t \mid x_s) = \mathcal N\Big(\sqrt{\frac{\bar\alpha_t}{\bar\alpha_s}} x_s,
/// \Big(1 - \frac{\bar\alpha_t}{\bar\alpha_s}\Big) I\Big) $$
///
/// # Errors
/// If `s` is the noisier one, or has no signal left.
///
/// FORMULAS 1.1. Verified by `transitions_between_levels_compose`.
pub fn q_between(s: NoiseLevel, t: NoiseLevel) -> Result<Transition, ScheduleError> {
    if s.noisier_than(t) || s.alpha() == 0.0 {
        return Err(ScheduleError::LevelOrder { operation: "q_between", from: t.sigma(), to: s.sigma() });
    }
    Ok(Transition { scale: t.alpha() / s.alpha(), variance: t.beta_since(s) })
}
