//! The DDIM step (FORMULAS 6.1; Song, Meng & Ermon 2021, eqs. 12 and 16).
//!
//! `x_p = sqrt(abar_p) x_0 + sqrt(1 - abar_p - s^2) eps + s z`,
//! `s = eta sqrt((1 - abar_p) / (1 - abar_t)) sqrt(1 - abar_t / abar_p)`.
//!
//! `s^2 = eta^2 b~`, so `eta = 1` is ancestral sampling with the small variance; every `eta` keeps the marginals.

use crate::level::parameter;
use crate::{NoiseLevel, ScheduleError};

/// The coefficients of one DDIM step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DdimCoefs {
    /// Factor of the estimate of `x_0`.
    pub of_x0: f64,
    /// Factor of the estimate of `eps`.
    pub of_eps: f64,
    /// Factor `s` of fresh noise.
    pub of_noise: f64,
}

/// The coefficients of the step from level `from` down to level `to`, which may be equal.
///
/// $$ x_p = \sqrt{\bar\alpha_p} x_0 + \sqrt{1 - \bar\alpha_p - s^2} \varepsilon + s z $$
/// $$ s = \eta \sqrt{\frac{1 - \bar\alpha_p}{1 - \bar\alpha_t}} \sqrt{1 - \frac{\bar\alpha_t}{\bar\alpha_p}} $$
///
/// # Errors
/// If `from` has no noise or is the less noisy one, or `eta` is negative, not finite, or so large that `s^2 > 1 - abar_to`.
///
/// Verified by `ddim_with_eta_1_is_ancestral`. Verified by `ddim_keeps_the_marginal`.
pub fn ddim_coefs(from: NoiseLevel, to: NoiseLevel, eta: f64) -> Result<DdimCoefs, ScheduleError> {
    if to.noisier_than(from) || from.sigma() == 0.0 || to.alpha() == 0.0 {
        return Err(ScheduleError::LevelOrder { operation: "ddim", from: from.sigma(), to: to.sigma() });
    }
    if !(eta >= 0.0 && eta.is_finite()) {
        return Err(parameter("ddim", "eta", "finite and not negative", eta));
    }
    let fresh = eta * from.beta_since(to).sqrt() / from.sigma();
    // At eta = 1 and abar_t = 0 nothing but fresh noise remains, and rounding may overshoot.
    let kept = 1.0 - fresh * fresh;
    // A plain `kept < -1e-12` would let NaN through.
    if kept.is_nan() || kept < -1e-12 {
        return Err(parameter("ddim", "eta", "small enough that s^2 <= 1 - abar (1 always is)", eta));
    }
    Ok(DdimCoefs { of_x0: to.alpha(), of_eps: to.sigma() * kept.max(0.0).sqrt(), of_noise: to.sigma() * fresh })
}
