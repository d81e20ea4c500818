//! Preconditioning of a network `F` in the variance-exploding form `x = x_0 + sigma eps` (FORMULAS 6.3).
//!
//! `f(x, sigma) = c_skip x + c_out F(c_in x, sigma)`. For data of standard deviation `sigma_data` (Karras 2022, table 1)
//!
//! ```text
//! c_skip = sigma_data² / (sigma² + sigma_data²)
//! c_out  = sigma sigma_data / sqrt(sigma² + sigma_data²)
//! c_in   = 1 / sqrt(sigma² + sigma_data²)
//! ```
//!
//! give the network inputs and targets of variance 1. A consistency model (Song 2023, eq. 25) has `sigma - sigma_min` in the
//! place of `sigma` in `c_skip` and in the numerator of `c_out`, so that `f(x, sigma_min) = x` whatever the network says.

use crate::ScheduleError;
use crate::level::parameter;

/// The coefficients of `f(x, sigma) = c_skip x + c_out F(c_in x, sigma)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Preconditioning {
    /// Factor of the state beside the network.
    pub c_skip: f64,
    /// Factor of the network's output.
    pub c_out: f64,
    /// Factor of the network's input.
    pub c_in: f64,
}

impl Preconditioning {
    /// The denoiser's coefficients: `f` is the estimate of `x_0` (Karras 2022, table 1).
    ///
    /// With $\sigma_d$ for `sigma_data`:
    ///
    /// $$ c_\mathrm{skip} = \frac{\sigma_d^2}{\sigma^2 + \sigma_d^2}, \quad
    /// c_\mathrm{out} = \frac{\sigma \sigma_d}{\sqrt{\sigma^2 + \sigma_d^2}}, \quad
    /// c_\mathrm{in} = \frac{1}{\sqrt{\sigma^2 + \sigma_d^2}} $$
    ///
    /// `sigma` is the EDM noise ([`crate::NoiseLevel::edm_sigma`]), in [0, inf); `sigma_data` is above 0.
    ///
    /// # Errors
    /// If one of them is out of range.
    ///
    /// Verified by `edm_preconditioning_has_unit_variance`.
    pub fn edm(sigma: f64, sigma_data: f64) -> Result<Self, ScheduleError> {
        Self::consistency(sigma, 0.0, sigma_data)
    }

    /// A consistency model's coefficients: `f` is the end of the trajectory at `sigma_min` (Song 2023, eq. 25).
    ///
    /// With $\sigma_d$ for `sigma_data`:
    ///
    /// $$ c_\mathrm{skip} = \frac{\sigma_d^2}{(\sigma - \sigma_\mathrm{min})^2 + \sigma_d^2}, \quad
    /// c_\mathrm{out} = \frac{\sigma_d (\sigma - \sigma_\mathrm{min})}{\sqrt{\sigma^2 + \sigma_d^2}} $$
    ///
    /// # Errors
    /// If `0 <= sigma_min <= sigma < inf` or `0 < sigma_data < inf` does not hold.
    ///
    /// Verified by `consistency_models_start_at_the_identity`.
    pub fn consistency(sigma: f64, sigma_min: f64, sigma_data: f64) -> Result<Self, ScheduleError> {
        const OPERATION: &str = "preconditioning";
        if !(sigma_min >= 0.0 && sigma_min.is_finite()) {
            return Err(parameter(OPERATION, "sigma_min", "finite and not negative", sigma_min));
        }
        if !(sigma >= sigma_min && sigma.is_finite()) {
            return Err(parameter(OPERATION, "sigma", "finite and at least sigma_min (0 for a denoiser)", sigma));
        }
        if !(sigma_data > 0.0 && sigma_data.is_finite()) {
            return Err(parameter(OPERATION, "sigma_data", "finite and above 0", sigma_data));
        }
        let (above, norm) = (sigma - sigma_min, sigma.hypot(sigma_data));
        let share = sigma_data / above.hypot(sigma_data);
        Ok(Self { c_skip: share * share, c_out: sigma_data * (above / norm), c_in: norm.recip() })
    }

    /// `c_skip x + c_out output` for one element of the state and of the network's output for `c_in x`.
    ///
    /// Verified by `consistency_models_start_at_the_identity`.
    pub fn apply(self, x: f64, output: f64) -> f64 {
        self.c_skip * x + self.c_out * output
    }
}
