//! The posterior of the forward process and the variance of the reverse step (FORMULAS 2.1 to 2.3).
//!
//! For levels `s < t` let `a = abar_t / abar_s` and `b = 1 - a` (`a_t` and `b_t` if the steps are consecutive). Then
//! `q(x_s | x_t, x_0) = N(mu~, b~ I)` with (Ho 2020, eqs. 6-7)
//! `mu~ = [sqrt(a) (1 - abar_s) x_t + sqrt(abar_s) b x_0] / (1 - abar_t)` and `b~ = b (1 - abar_s) / (1 - abar_t)`.

use crate::level::parameter;
use crate::{Affine, NoiseLevel, ScheduleError};

/// The coefficients of `q(x_s | x_t, x_0)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Posterior {
    coef_x0: f64,
    coef_xt: f64,
    variance: f64,
    beta: f64,
    sigma_t: f64,
}

impl Posterior {
    /// The posterior of a step from level `t` down to level `s`, which need not be neighbours.
    ///
    /// # Errors
    /// If `s` is noisier than `t`, or `t` has no noise, or `s` has no signal.
    ///
    /// FORMULAS 2.1. Verified by `posterior_is_bayes_rule`. Verified by `posterior_keeps_the_marginal`.
    pub fn between(s: NoiseLevel, t: NoiseLevel) -> Result<Self, ScheduleError> {
        if s.noisier_than(t) || t.sigma() == 0.0 || s.alpha() == 0.0 {
            return Err(ScheduleError::LevelOrder { operation: "posterior", from: t.sigma(), to: s.sigma() });
        }
        Ok(Self::consecutive(s, t, t.beta_since(s)))
    }

    /// As [`Posterior::between`], where `b` is known to full accuracy and the levels are in order.
    pub(crate) fn consecutive(s: NoiseLevel, t: NoiseLevel, beta: f64) -> Self {
        let kept = s.sigma() / t.sigma();
        Self {
            coef_x0: s.alpha() * beta / (t.sigma() * t.sigma()),
            coef_xt: t.alpha() / s.alpha() * kept * kept,
            variance: beta * kept * kept,
            beta,
            sigma_t: t.sigma(),
        }
    }

    /// Factor of `x_0` in the mean, `sqrt(abar_s) b / (1 - abar_t)`.
    ///
    /// FORMULAS 2.1. Verified by `consecutive_posterior_is_in_the_tables`.
    pub fn coef_x0(&self) -> f64 {
        self.coef_x0
    }

    /// Factor of `x_t` in the mean, `sqrt(a) (1 - abar_s) / (1 - abar_t)`.
    ///
    /// FORMULAS 2.1. Verified by `consecutive_posterior_is_in_the_tables`.
    pub fn coef_xt(&self) -> f64 {
        self.coef_xt
    }

    /// `b~ = b (1 - abar_s) / (1 - abar_t)`, the variance of the posterior; 0 when the step ends at `abar = 1`.
    ///
    /// $$ \tilde b = b \frac{1 - \bar\alpha_s}{1 - \bar\alpha_t} $$
    ///
    /// FORMULAS 2.1. Verified by `posterior_is_bayes_rule`.
    pub fn variance(&self) -> f64 {
        self.variance
    }

    /// `b = 1 - abar_t / abar_s`.
    ///
    /// FORMULAS 2.1. Verified by `reverse_variances`. Verified by `steps_between_tiny_alphas_have_coefficients`.
    pub fn beta(&self) -> f64 {
        self.beta
    }

    /// `sqrt(1 - abar_t)`, the noise of the level that the step starts from.
    ///
    /// FORMULAS 2.1. Verified by `kl_forms_are_equal`.
    pub fn sigma_t(&self) -> f64 {
        self.sigma_t
    }

    /// `mu~` from `x_t` and `x_0` (Ho 2020, eq. 7).
    ///
    /// $$ \tilde\mu = \frac{\sqrt{a} (1 - \bar\alpha_s) x_t + \sqrt{\bar\alpha_s} b x_0}{1 - \bar\alpha_t} $$
    ///
    /// FORMULAS 2.1. Verified by `posterior_is_bayes_rule`.
    pub fn mean(&self, xt: f64, x0: f64) -> f64 {
        self.coef_xt * xt + self.coef_x0 * x0
    }

    /// `mu~` in terms of `x_t` and `eps`: `(x_t - b / sqrt(1 - abar_t) eps) / sqrt(a)` (Ho 2020, eq. 11).
    ///
    /// $$ \tilde\mu = \frac{1}{\sqrt{a}} \Big(x_t - \frac{b}{\sqrt{1 - \bar\alpha_t}} \varepsilon\Big) $$
    ///
    /// # Errors
    /// If `a` is 0: all signal is lost in the step and `eps` says nothing about `x_0`.
    ///
    /// FORMULAS 2.2. Verified by `mean_from_eps_is_mean_from_x0`.
    pub fn mean_from_eps(&self) -> Result<Affine, ScheduleError> {
        if self.beta >= 1.0 {
            return Err(parameter("posterior mean from eps", "b", "below 1", self.beta));
        }
        let scale = (1.0 - self.beta).sqrt().recip();
        Ok(Affine { of_x: scale, of_prediction: -scale * self.beta / self.sigma_t })
    }

    /// `sigma_q^2` of the reverse step `p(x_s | x_t) = N(mu_theta, sigma_q^2 I)` (FORMULAS 2.3).
    ///
    /// # Errors
    /// If the fraction of [`Variance::Interpolated`] lies outside [0, 1].
    ///
    /// FORMULAS 2.3. Verified by `reverse_variances`.
    pub fn reverse_variance(&self, choice: Variance) -> Result<f64, ScheduleError> {
        match choice {
            Variance::FixedSmall => Ok(self.variance),
            Variance::FixedLarge => Ok(self.beta),
            Variance::Unit => Ok(1.0),
            Variance::Interpolated { fraction } if (0.0..=1.0).contains(&fraction) => {
                Ok(self.beta.powf(fraction) * self.variance.powf(1.0 - fraction))
            }
            Variance::Interpolated { fraction } => {
                Err(parameter("reverse variance", "the fraction", "in [0, 1]", fraction))
            }
            Variance::LearnedRange => Err(ScheduleError::LearnedVariance),
        }
    }

    /// `ln b~` and `ln b`, between which a network chooses; `ln b~` is minus infinity when the step ends at `abar = 1`.
    pub fn variance_range(&self) -> VarianceRange {
        VarianceRange { log_small: self.variance.ln(), log_large: self.beta.ln() }
    }
}

/// The ends of a learned variance, `ln b~` and `ln b`, in which it is interpolated (Nichol & Dhariwal 2021, eq. 15).
///
/// FORMULAS 2.3. Verified by `a_learned_variance_lies_between_its_ends`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VarianceRange {
    /// `ln b~`.
    pub log_small: f64,
    /// `ln b`.
    pub log_large: f64,
}

impl VarianceRange {
    /// The fraction `v = (output + 1) / 2` that a network's output in about `[-1, 1]` stands for; it is not limited.
    ///
    /// FORMULAS 2.3. Verified by `a_learned_variance_lies_between_its_ends`.
    pub fn fraction(output: f64) -> f64 {
        0.5 * (output + 1.0)
    }

    /// `ln sigma_q^2 = v ln b + (1 - v) ln b~`, for any fraction `v`.
    ///
    /// FORMULAS 2.3. Verified by `a_learned_variance_lies_between_its_ends`.
    pub fn log_variance(&self, fraction: f64) -> f64 {
        fraction * self.log_large + (1.0 - fraction) * self.log_small
    }
}

/// The choice of `sigma_q^2` in the reverse step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum Variance {
    /// `b~`: exact for data at a single point (Ho 2020, section 3.2).
    #[default]
    FixedSmall,
    /// `b`: exact for standard normal data (Ho 2020, section 3.2).
    FixedLarge,
    /// 1.
    Unit,
    /// `exp(v ln b + (1 - v) ln b~)` (Nichol & Dhariwal 2021, eq. 15).
    Interpolated {
        /// `v`, in [0, 1]: 0 is `b~`, 1 is `b`.
        fraction: f64,
    },
    /// As [`Variance::Interpolated`], with a fraction for every value that the network predicts beside the mean.
    LearnedRange,
}
