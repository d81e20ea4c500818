//! The exact posterior over the data given a noisy state (FORMULAS 3.2; Bayes' rule for a Gaussian likelihood).
//!
//! `p(x_0 | x_t) = N(x_t; alpha x_0, sigma^2 I) p(x_0) / p_t(x_t)` is a mixture again, with the same labels:
//! `sum_k r_k(x_t) N(x_0; m_k + G_k (x_t - alpha m_k), sigma^2 Sigma_k S_k^-1)`, where `S_k = alpha^2 Sigma_k + sigma^2 I`,
//! `G_k = alpha Sigma_k S_k^-1` and `r_k ~ w_k N(x_t; alpha m_k, S_k)`.

use ndarray::ArrayView4;
use tweedie_schedule::NoiseLevel;

use super::{Gaussian, MixtureOracle, check_density, log_responsibilities};
use crate::{Condition, DenoiserError};

impl MixtureOracle {
    /// `p(x_0 | x_t)` for each sample of `x` (`[N, C, H, W]`), under its label where it has one: a mixture over samples of
    /// the same shape, whose weights are the responsibilities `r_k(x_t)`.
    ///
    /// Its [`mean`](MixtureOracle::mean) is the denoiser's estimate; without noise
    /// ([`NoiseLevel::CLEAN`]) its `log_density` is that of the posterior and its `sample` draws from it. The weights of a
    /// label sum to `p(y | x_t)`.
    ///
    /// # Errors
    /// As [`MixtureOracle::log_density`].
    ///
    /// Verified by `posterior_over_data_is_bayes_rule`.
    pub fn posterior(
        &self,
        x: ArrayView4<'_, f64>,
        level: NoiseLevel,
        condition: &Condition,
    ) -> Result<Vec<Self>, DenoiserError> {
        let noised = self.noised(level);
        self.each_sample(x, condition, |x, chosen| {
            check_density(&noised, chosen, level)?;
            let components = log_responsibilities(&noised, chosen, x)
                .into_iter()
                .zip(chosen)
                .map(|(log_weight, &k)| {
                    let prior = &self.components[k];
                    Gaussian {
                        log_weight,
                        mean: prior.posterior_mean(x, level),
                        factor: prior.posterior_factor(level),
                        label: prior.label,
                    }
                })
                .collect();
            Ok(Self { shape: self.shape, components })
        })
    }
}
