use crate::ScheduleError;

/// A noise level: `x_t = alpha x_0 + sigma eps` with `alpha^2 + sigma^2 = 1` (Ho 2020, eq. 4; `alpha = sqrt(abar)`).
///
/// Both numbers are kept, because near either end one of them cannot be recovered from the other without losing digits.
///
/// FORMULAS 1.4. Verified by `views_invert`. Verified by `both_ends_are_accurate`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NoiseLevel {
    alpha: f64,
    sigma: f64,
}

impl NoiseLevel {
    /// No noise: `x = x_0`.
    pub const CLEAN: Self = Self { alpha: 1.0, sigma: 0.0 };
    /// Nothing but noise: `x = eps`.
    pub const PURE_NOISE: Self = Self { alpha: 0.0, sigma: 1.0 };

    /// The level with `abar = alpha^2` in [0, 1].
    ///
    /// An `abar` near 1 has already lost digits of `1 - abar`; prefer [`NoiseLevel::from_log_abar`] there.
    ///
    /// # Errors
    /// If `abar` lies outside [0, 1].
    ///
    /// FORMULAS 1.4. Verified by `views_invert`.
    pub fn from_abar(abar: f64) -> Result<Self, ScheduleError> {
        if !(0.0..=1.0).contains(&abar) {
            return Err(parameter("NoiseLevel::from_abar", "abar", "in [0, 1]", abar));
        }
        Ok(Self { alpha: abar.sqrt(), sigma: (1.0 - abar).sqrt() })
    }

    /// The level with `ln abar` in [-inf, 0]; exact to rounding at both ends.
    ///
    /// # Errors
    /// If `log_abar` is positive or not a number.
    ///
    /// FORMULAS 1.4. Verified by `views_invert`. Verified by `both_ends_are_accurate`.
    pub fn from_log_abar(log_abar: f64) -> Result<Self, ScheduleError> {
        // A plain `log_abar > 0.0` would let NaN through.
        if log_abar.is_nan() || log_abar > 0.0 {
            return Err(parameter("NoiseLevel::from_log_abar", "ln abar", "in [-inf, 0]", log_abar));
        }
        Ok(Self { alpha: (0.5 * log_abar).exp(), sigma: (-log_abar.exp_m1()).sqrt() })
    }

    /// The level with EDM noise `sigma / alpha` in [0, inf] (Karras 2022; `x / alpha = x_0 + sigma_edm eps`).
    ///
    /// # Errors
    /// If it is negative or not a number.
    ///
    /// FORMULAS 1.4. Verified by `views_invert`.
    pub fn from_edm_sigma(edm_sigma: f64) -> Result<Self, ScheduleError> {
        if edm_sigma.is_nan() || edm_sigma < 0.0 {
            return Err(parameter("NoiseLevel::from_edm_sigma", "sigma", "in [0, inf]", edm_sigma));
        }
        if edm_sigma.is_infinite() {
            return Ok(Self::PURE_NOISE);
        }
        let norm = edm_sigma.hypot(1.0);
        Ok(Self { alpha: 1.0 / norm, sigma: edm_sigma / norm })
    }

    /// The level with `ln(alpha^2 / sigma^2)` in [-inf, inf] (Kingma 2021).
    ///
    /// # Errors
    /// If it is not a number.
    ///
    /// FORMULAS 1.4. Verified by `views_invert`. Verified by `both_ends_are_accurate`.
    pub fn from_log_snr(log_snr: f64) -> Result<Self, ScheduleError> {
        if log_snr.is_nan() {
            return Err(parameter("NoiseLevel::from_log_snr", "log-SNR", "a number", log_snr));
        }
        Ok(Self { alpha: (1.0 + (-log_snr).exp()).sqrt().recip(), sigma: (1.0 + log_snr.exp()).sqrt().recip() })
    }

    /// Scale of the signal, `sqrt(abar)`, in [0, 1].
    pub fn alpha(self) -> f64 {
        self.alpha
    }

    /// Scale of the noise, `sqrt(1 - abar)`, in [0, 1].
    pub fn sigma(self) -> f64 {
        self.sigma
    }

    /// `alpha^2`, called `alphas_cumprod` in files.
    ///
    /// FORMULAS 1.4. Verified by `views_invert`. Verified by `tables_agree_with_numpy`.
    pub fn abar(self) -> f64 {
        self.alpha * self.alpha
    }

    /// Signal-to-noise ratio `alpha^2 / sigma^2`, in [0, inf].
    ///
    /// FORMULAS 1.4. Verified by `views_invert`.
    pub fn snr(self) -> f64 {
        let ratio = self.alpha / self.sigma;
        ratio * ratio
    }

    /// `ln(alpha^2 / sigma^2)`, in [-inf, inf].
    ///
    /// FORMULAS 1.4. Verified by `views_invert`.
    pub fn log_snr(self) -> f64 {
        2.0 * (self.alpha.ln() - self.sigma.ln())
    }

    /// `sigma / alpha = sqrt((1 - abar) / abar)`, in [0, inf].
    ///
    /// FORMULAS 1.4. Verified by `views_invert`.
    pub fn edm_sigma(self) -> f64 {
        self.sigma / self.alpha
    }

    /// Whether this level has strictly more noise than `other`.
    ///
    /// It is asked of the smaller scale, which carries more digits: where all is noise, levels of many steps have the same
    /// sigma, and rounding alone may order them.
    ///
    /// FORMULAS 1.4. Verified by `tables_are_in_range`. Verified by `steps_invert_where_all_is_noise`.
    pub fn noisier_than(self, other: Self) -> bool {
        if self.alpha < self.sigma && other.alpha < other.sigma {
            return self.alpha < other.alpha;
        }
        self.sigma > other.sigma || (self.sigma == other.sigma && self.alpha < other.alpha)
    }

    /// `1 - abar_t / abar_s` for `self = t` noisier than `s`: the variance that the forward process adds from s to t
    /// relative to the signal left at s.
    ///
    /// `abar_s - abar_t` is also `sigma_t^2 - sigma_s^2`; the difference is taken of whichever scale is the smaller,
    /// because that one carries more digits. Factors are divided one by one: the square of an alpha below 1e-162 is 0 in f64.
    pub(crate) fn beta_since(self, s: Self) -> f64 {
        let beta = if self.alpha < self.sigma {
            ((s.alpha - self.alpha) / s.alpha) * ((s.alpha + self.alpha) / s.alpha)
        } else {
            ((self.sigma - s.sigma) / s.alpha) * ((self.sigma + s.sigma) / s.alpha)
        };
        beta.clamp(0.0, 1.0)
    }
}

pub(crate) fn parameter(
    operation: &'static str,
    what: &'static str,
    expected: &'static str,
    found: f64,
) -> ScheduleError {
    ScheduleError::Parameter { operation, what, expected, found }
}
