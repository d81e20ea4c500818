//! The terms of the variational bound for one step (FORMULAS 4.1, 4.2; Ho 2020, eqs. 5, 8 and 12; Kingma 2021).
//!
//! `L_{t-1} = KL(q(x_{t-1} | x_t, x_0) || N(mu_theta, s^2 I))`. Of it only `1/(2 s^2) |mu~ - mu_theta|^2` depends on the mean,
//! and since every prediction is an affine map of the mean at fixed `x_t`, it is a multiple of every prediction's error:
//!
//! $$ \frac{1}{2 s^2} |\tilde\mu - \mu_\theta|^2
//! = \frac{1}{2 s^2} \frac{\bar\alpha_{t-1} b_t^2}{(1 - \bar\alpha_t)^2} |x_0 - \hat x_0|^2
//! = \frac{1}{2 s^2} \frac{b_t^2}{(1 - \bar\alpha_t) a_t} |\varepsilon - \varepsilon_\theta|^2 $$

use crate::gaussian::kl_isotropic;
use crate::level::parameter;
use crate::{Posterior, Prediction, ScheduleError};

/// `KL(N(mean_q, var_q) || N(mean_p, var_p)) = 1/2 [ln(var_p / var_q) + (var_q + (mean_q - mean_p)^2) / var_p - 1]`, in nats,
/// for one value; the divergence of vectors with independent values is the sum.
///
/// # Errors
/// If a variance is not positive and finite.
///
/// FORMULAS 4.1. Verified by `normal_kl_is_the_integral`.
pub fn normal_kl(mean_q: f64, var_q: f64, mean_p: f64, var_p: f64) -> Result<f64, ScheduleError> {
    for (what, variance) in [("the variance of q", var_q), ("the variance of p", var_p)] {
        if !(variance > 0.0 && variance.is_finite()) {
            return Err(parameter("normal_kl", what, "finite and above 0", variance));
        }
    }
    let offset = mean_q - mean_p;
    Ok(kl_isotropic(offset * offset, var_q, var_p, 1))
}

impl Posterior {
    /// The factor `w` for which `w |target - prediction|^2` is the term `1/(2 s^2) |mu~ - mu_theta|^2` of `L_{t-1}`, where
    /// `variance` is `s^2`, the variance of the reverse step (FORMULAS 4.2; Ho 2020, eqs. 8 and 12).
    ///
    /// With `b = 1 - a` and the levels `s < t` of the posterior: `1/(2 s^2)` times
    /// 1 (mean), `abar_s b^2 / (1 - abar_t)^2` (x0; squared, unlike in many notes), `b^2 / ((1 - abar_t) a)` (eps),
    /// `abar_s b^2 / (1 - abar_t)` (v), `b^2 / a` (score).
    ///
    /// # Errors
    /// If the variance is not positive and finite, or `a` is 0 for eps or the score, which say nothing of the mean then.
    ///
    /// Verified by `kl_forms_are_equal`.
    pub fn kl_weight(&self, of: Prediction, variance: f64) -> Result<f64, ScheduleError> {
        const OPERATION: &str = "weight of the divergence";
        if !(variance > 0.0 && variance.is_finite()) {
            return Err(parameter(OPERATION, "the variance", "finite and above 0", variance));
        }
        let of_eps = |scale: f64| {
            let kept = 1.0 - self.beta();
            if kept <= 0.0 {
                return Err(parameter(OPERATION, "b", "below 1 for eps and score", self.beta()));
            }
            Ok(self.beta() * self.beta() / (scale * scale * kept))
        };
        let squared = match of {
            Prediction::Mean => 1.0,
            Prediction::X0 => self.coef_x0() * self.coef_x0(),
            // At fixed x_t an error of v is an error of x_0 divided by sigma_t.
            Prediction::V => (self.coef_x0() * self.sigma_t()).powi(2),
            Prediction::Eps => of_eps(self.sigma_t())?,
            Prediction::Score => of_eps(1.0)?,
        };
        Ok(squared / (2.0 * variance))
    }
}
