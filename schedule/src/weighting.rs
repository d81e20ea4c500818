//! Weights of the squared error in training, step by step (FORMULAS 4.3).
//!
//! A weight is stated for one prediction and holds for all: at fixed `x_t` an error of `x_0` is `c` times an error of the
//! prediction, with `c` the factor of the prediction in its conversion to `x_0`, so that
//! `w_x0 |x_0 - x_0^|^2 = w |target - prediction|^2` with `w = w_x0 c^2`.

use crate::level::parameter;
use crate::{NoiseLevel, Posterior, Prediction, ScheduleError, prediction};

/// How much the squared error of a step counts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum Weighting {
    /// 1 for every prediction (Ho 2020, eq. 14), but `sigma^2` for the score (Song & Ermon 2019, section 4.2), whose errors
    /// grow without bound as the noise falls: with it the score's error is that of eps.
    #[default]
    Uniform,
    /// `min(SNR, gamma)` for `x_0` (Hang et al. 2023, section 3.4): `min(SNR, gamma) / SNR` for eps,
    /// `min(SNR, gamma) / (SNR + 1)` for v.
    MinSnr {
        /// `gamma > 0`; 5 in the paper.
        gamma: f64,
    },
    /// `1 / (k + SNR)^gamma` for eps (Choi et al. 2022, eq. 8).
    P2 {
        /// `gamma >= 0`; 1 in the paper, 0 is uniform in eps.
        gamma: f64,
        /// `k > 0`; 1 in the paper.
        k: f64,
    },
    /// `(sigma^2 + sigma_data^2) / (sigma sigma_data)^2` for `x_0`, with `sigma = sqrt((1 - abar) / abar)`
    /// (Karras et al. 2022, table 1).
    Edm {
        /// `sigma_data > 0`, the standard deviation of the data; 0.5 in the paper.
        sigma_data: f64,
    },
}

impl Weighting {
    /// The factor of `|target - prediction|^2` at a level. `posterior` is that of the step; only
    /// [`Prediction::Mean`] reads it.
    ///
    /// # Errors
    /// If a parameter is out of range; or if the weight is stated for `x_0` and the prediction says nothing of `x_0` at the
    /// level (eps without signal, the mean of a step that does not depend on it).
    ///
    /// Verified by `weightings_are_those_of_the_papers`. Verified by `a_weighting_is_one_for_every_prediction`.
    pub fn weight(
        self,
        of: Prediction,
        level: NoiseLevel,
        posterior: Option<&Posterior>,
    ) -> Result<f64, ScheduleError> {
        self.check()?;
        let (signal, noise) = (level.abar(), level.sigma() * level.sigma());
        // SNR = abar / (1 - abar), written so that neither end divides by zero before it must.
        let for_x0 = match self {
            Self::Uniform => return Ok(if of == Prediction::Score { noise } else { 1.0 }),
            // eps keeps a weight where there is no signal: min(SNR, gamma) / SNR = 1 there.
            Self::MinSnr { gamma } if signal <= gamma * noise && of == Prediction::Eps => return Ok(1.0),
            Self::P2 { gamma, k } if of == Prediction::Eps => return Ok(p2(gamma, k, signal, noise)),
            Self::MinSnr { gamma } => (signal / noise).min(gamma),
            Self::P2 { gamma, k } => p2(gamma, k, signal, noise) * signal / noise,
            // sigma^2 = noise / signal
            Self::Edm { sigma_data } => signal / noise + (sigma_data * sigma_data).recip(),
        };
        let scale = prediction::convert(of, Prediction::X0, level, posterior)?.of_prediction;
        Ok(for_x0 * scale * scale)
    }

    fn check(self) -> Result<(), ScheduleError> {
        const OPERATION: &str = "weighting";
        const POSITIVE: &str = "finite and above 0";
        let positive = |value: f64| value > 0.0 && value.is_finite();
        match self {
            Self::Uniform => Ok(()),
            Self::MinSnr { gamma } if !positive(gamma) => {
                Err(parameter(OPERATION, "gamma of min-SNR", POSITIVE, gamma))
            }
            Self::P2 { gamma, .. } if !(gamma >= 0.0 && gamma.is_finite()) => {
                Err(parameter(OPERATION, "gamma of P2", "finite and not negative", gamma))
            }
            Self::P2 { k, .. } if !positive(k) => Err(parameter(OPERATION, "k of P2", POSITIVE, k)),
            Self::Edm { sigma_data } if !positive(sigma_data) => {
                Err(parameter(OPERATION, "sigma_data of EDM", POSITIVE, sigma_data))
            }
            _ => Ok(()),
        }
    }
}

/// `1 / (k + SNR)^gamma`.
fn p2(gamma: f64, k: f64, signal: f64, noise: f64) -> f64 {
    (k + signal / noise).powf(-gamma)
}
