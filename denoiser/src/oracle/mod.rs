//! The exact denoiser of data drawn from a mixture of Gaussians (FORMULAS 3.1, 3.2).
//!
//! If `x_0 ~ sum_k w_k N(m_k, Sigma_k)` then `x_t ~ sum_k w_k N(alpha m_k, S_k)` with `S_k = alpha^2 Sigma_k + sigma^2 I`, and
//! with the responsibilities `r_k(x) ~ w_k N(x; alpha m_k, S_k)` the posterior mean is
//! `E[x_0 | x_t = x] = sum_k r_k(x) [m_k + alpha Sigma_k S_k^-1 (x - alpha m_k)]`.
//! Under a label the sum runs over the components of that label. One component is the oracle of a Gaussian.
//!
//! States are variance preserving, `x_t = alpha x_0 + sigma eps`. A variance-exploding (EDM) state `y = x_0 + s eps` is the
//! state `x_t = alpha y` at the level of [`NoiseLevel::from_edm_sigma`]`(s)`: the estimate of `x_0` is the same, the score is
//! `grad_y ln p = alpha grad_x ln p_t`, and `ln p(y) = ln p_t(x_t) + C H W ln alpha`.
//! Verified by `edm_states_are_scaled_states`.

mod component;
mod eigen;
mod factor;
mod posterior;
mod sample;

use ndarray::{Array1, Array2, Array4, ArrayView1, ArrayView4, Axis};
use tweedie_schedule::NoiseLevel;

use crate::denoise::check_batch;
use crate::{Condition, ConditionalDenoiser, Denoiser, DenoiserError};
pub use component::{Component, Gaussian, Mean, Spread};
use component::{MAX_FULL, MAX_SIZE, invalid};
pub use sample::Draws;

/// The exact denoiser of a Gaussian mixture: with $S_k = \alpha^2 \Sigma_k + \sigma^2 I$ and the responsibilities
/// $r_k(x) \propto w_k N(x; \alpha m_k, S_k)$,
///
/// $$ \mathbb E [x_0 \mid x_t = x] = \sum_k r_k(x) \Big( m_k + \alpha \Sigma_k S_k^{-1} (x - \alpha m_k) \Big) $$
///
/// FORMULAS 3.2. Verified by `posterior_mean_is_bayes_rule`. Verified by `tweedie_for_mixtures`.
#[derive(Clone, Debug)]
pub struct MixtureOracle {
    shape: [usize; 3],
    components: Vec<Gaussian>,
}

impl MixtureOracle {
    /// The oracle of samples of shape `[C, H, W]`.
    ///
    /// # Errors
    /// If there is no component, a dimension is 0, a weight is not positive, a standard deviation is negative, a mean or a
    /// list of standard deviations has not `C * H * W` entries, a number is not finite, or a covariance matrix is not that
    /// many rows of as many numbers, symmetric and positive semidefinite (for at most 512 values; it is decomposed once).
    pub fn new(shape: [usize; 3], components: Vec<Component>) -> Result<Self, DenoiserError> {
        let size =
            shape.iter().try_fold(1_usize, |size, &n| size.checked_mul(n)).filter(|n| (1..=MAX_SIZE).contains(n));
        let Some(size) = size else {
            return Err(invalid("the shape".into(), "[C, H, W] of 1 to 2^24 values", format!("{shape:?}")));
        };
        if components.is_empty() {
            return Err(invalid("the list of components".into(), "one component or more", "none".into()));
        }
        let total: f64 = components.iter().map(|c| c.weight).sum();
        let components = components
            .into_iter()
            .enumerate()
            .map(|(k, c)| Gaussian::new(c, k, size, total))
            .collect::<Result<_, _>>()?;
        Ok(Self { shape, components })
    }

    /// The oracle of one Gaussian `N(m, Sigma)`.
    ///
    /// # Errors
    /// As [`MixtureOracle::new`].
    pub fn gaussian(
        shape: [usize; 3],
        mean: impl Into<Mean>,
        spread: impl Into<Spread>,
    ) -> Result<Self, DenoiserError> {
        Self::new(shape, vec![Component::new(1.0, mean, spread, None)])
    }

    /// `[C, H, W]`.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// The components, in the order in which they were given.
    pub fn components(&self) -> &[Gaussian] {
        &self.components
    }

    /// One more than the highest label, 0 if no component has one.
    pub fn classes(&self) -> usize {
        self.components.iter().filter_map(|c| c.label).max().map_or(0, |label| label + 1)
    }

    /// The mixture of the noisy states at a level: `p_t = sum_k w_k N(alpha m_k, alpha^2 Sigma_k + sigma^2 I)`.
    ///
    /// FORMULAS 3.2. Verified by `noised_mixture_is_the_marginal`.
    pub fn noised(&self, level: NoiseLevel) -> Self {
        Self { shape: self.shape, components: self.components.iter().map(|c| c.noised(level)).collect() }
    }

    /// The mixture `p(x | y)` of the components of one label.
    ///
    /// # Errors
    /// If no component has the label.
    ///
    /// FORMULAS 5.4. Verified by `moments_of_a_mixture`. Verified by `labels_restrict_the_mixture`.
    pub fn of_label(&self, label: usize) -> Result<Self, DenoiserError> {
        let chosen = self.chosen(Some(label))?;
        let total = log_sum_exp(chosen.iter().map(|&k| self.components[k].log_weight));
        let mut components: Vec<Gaussian> = chosen.iter().map(|&k| self.components[k].clone()).collect();
        components.iter_mut().for_each(|component| component.log_weight -= total);
        Ok(Self { shape: self.shape, components })
    }

    /// `E[x] = sum_k w_k m_k`, flat (`C * H * W`).
    ///
    /// FORMULAS 3.2. Verified by `moments_of_a_mixture`.
    pub fn mean(&self) -> Array1<f64> {
        let mut mean = Array1::zeros(self.components[0].mean.len());
        for component in &self.components {
            mean.scaled_add(component.weight(), &component.mean);
        }
        mean
    }

    /// `Cov[x] = sum_k w_k [Sigma_k + (m_k - m)(m_k - m)^T]` with `m = E[x]`, `D x D` for `D = C * H * W`.
    ///
    /// # Errors
    /// If a sample has more than 512 values: the matrix would be large.
    ///
    /// FORMULAS 3.2. Verified by `moments_of_a_mixture`.
    pub fn covariance(&self) -> Result<Array2<f64>, DenoiserError> {
        let mean = self.mean();
        let size = mean.len();
        if size > MAX_FULL {
            let expected = format!("of samples of at most {MAX_FULL} values");
            return Err(invalid("the covariance matrix".into(), &expected, format!("{size} values")));
        }
        let mut covariance = Array2::zeros((size, size));
        for component in &self.components {
            let offset = (&component.mean - &mean).insert_axis(Axis(1));
            covariance.scaled_add(component.weight(), &(component.covariance() + offset.dot(&offset.t())));
        }
        Ok(covariance)
    }

    /// `ln p_t(x)` of each sample, under its label where it has one: the normalised density of the noised mixture.
    ///
    /// # Errors
    /// As [`ConditionalDenoiser::denoise_with`]; and [`DenoiserError::Oracle`] where a component has no variance left in some
    /// direction at the level: a point has no density without noise.
    ///
    /// FORMULAS 3.2. Verified by `density_is_the_sum_of_normals`.
    pub fn log_density(
        &self,
        x: ArrayView4<'_, f64>,
        level: NoiseLevel,
        condition: &Condition,
    ) -> Result<Vec<f64>, DenoiserError> {
        let noised = self.noised(level);
        self.each_sample(x, condition, |x, chosen| {
            check_density(&noised, chosen, level)?;
            let prior = log_sum_exp(chosen.iter().map(|&k| self.components[k].log_weight));
            Ok(log_sum_exp(chosen.iter().map(|&k| noised.components[k].log_joint(x))) - prior)
        })
    }

    /// `grad_x ln p_t(x) = sum_k r_k S_k^-1 (alpha m_k - x)`, under each sample's label where it has one.
    ///
    /// $$ \nabla \log p_t(x) = \sum_k r_k(x) S_k^{-1} (\alpha m_k - x), \quad S_k = \alpha^2 \Sigma_k + \sigma^2 I $$
    ///
    /// # Errors
    /// As [`MixtureOracle::log_density`].
    ///
    /// FORMULAS 3.2. Verified by `score_is_the_gradient`.
    pub fn score(
        &self,
        x: ArrayView4<'_, f64>,
        level: NoiseLevel,
        condition: &Condition,
    ) -> Result<Array4<f64>, DenoiserError> {
        let noised = self.noised(level);
        let rows = self.each_sample(x, condition, |x, chosen| {
            check_density(&noised, chosen, level)?;
            Ok(score(&noised, chosen, x))
        })?;
        Ok(stack(x.dim(), &rows))
    }

    /// `ln p_t(y | x) = ln p_t(x | y) + ln p(y) - ln p_t(x)` of each sample's label `y`; 0 for a sample without one.
    ///
    /// Components without a label belong to no class: with them the probabilities of all labels sum to less than 1.
    ///
    /// # Errors
    /// As [`MixtureOracle::log_density`].
    ///
    /// FORMULAS 5.2. Verified by `label_probabilities_sum_to_1`.
    pub fn log_label_probability(
        &self,
        x: ArrayView4<'_, f64>,
        level: NoiseLevel,
        condition: &Condition,
    ) -> Result<Vec<f64>, DenoiserError> {
        let noised = self.noised(level);
        let all = self.chosen(None)?;
        self.each_sample(x, condition, |x, chosen| {
            check_density(&noised, &all, level)?;
            let joint = |chosen: &[usize]| log_sum_exp(chosen.iter().map(|&k| noised.components[k].log_joint(x)));
            Ok(joint(chosen) - joint(&all))
        })
    }

    /// `grad_x ln p_t(y | x) = grad_x ln p_t(x | y) - grad_x ln p_t(x)` of each sample's label `y` (FORMULAS 5.2, where the
    /// term of `p(y)` vanishes): what classifier guidance needs, from an exact classifier. 0 for a sample without a label.
    ///
    /// # Errors
    /// As [`MixtureOracle::log_density`].
    ///
    /// Verified by `label_gradient_is_the_gradient`.
    pub fn label_gradient(
        &self,
        x: ArrayView4<'_, f64>,
        level: NoiseLevel,
        condition: &Condition,
    ) -> Result<Array4<f64>, DenoiserError> {
        let noised = self.noised(level);
        let all = self.chosen(None)?;
        let rows = self.each_sample(x, condition, |x, chosen| {
            check_density(&noised, &all, level)?;
            Ok(score(&noised, chosen, x) - score(&noised, &all, x))
        })?;
        Ok(stack(x.dim(), &rows))
    }

    /// The components of a label, or all.
    fn chosen(&self, label: Option<usize>) -> Result<Vec<usize>, DenoiserError> {
        let chosen: Vec<usize> =
            (0..self.components.len()).filter(|&k| label.is_none() || self.components[k].label == label).collect();
        if chosen.is_empty() {
            return Err(DenoiserError::Condition {
                operation: "oracle",
                message: format!("no component has the label {}; use one of the oracle's labels", label.unwrap_or(0)),
            });
        }
        Ok(chosen)
    }

    /// Applies `f` to each sample (flattened) and the components that its label leaves.
    fn each_sample<R>(
        &self,
        x: ArrayView4<'_, f64>,
        condition: &Condition,
        f: impl Fn(ArrayView1<'_, f64>, &[usize]) -> Result<R, DenoiserError>,
    ) -> Result<Vec<R>, DenoiserError> {
        if x.shape()[1..] != self.shape {
            return Err(DenoiserError::Shape {
                operation: "oracle",
                what: "the sample shape [C, H, W]",
                expected: format!("{:?}", self.shape),
                found: format!("{:?}", &x.shape()[1..]),
                remedy: "sample with the shape that the oracle was made for",
            });
        }
        check_batch(x.dim().0, condition)?;
        if let Some(i) = condition.as_texts().iter().position(Option::is_some) {
            let message = format!("sample {i} has a text, but an oracle knows labels alone; remove the texts");
            return Err(DenoiserError::Condition { operation: "oracle", message });
        }
        x.axis_iter(Axis(0))
            .zip(condition.as_labels())
            .map(|(sample, &label)| {
                let flat = Array1::from_iter(sample.iter().copied());
                f(flat.view(), &self.chosen(label)?)
            })
            .collect()
    }
}

impl ConditionalDenoiser for MixtureOracle {
    /// `E[x_0 | x_t = x] = sum_k r_k(x) [m_k + alpha Sigma_k S_k^-1 (x - alpha m_k)]`, under each sample's label where it
    /// has one; `x` itself where there is no noise.
    ///
    /// FORMULAS 3.2. Verified by `tweedie_for_mixtures`. Verified by `posterior_mean_is_bayes_rule`.
    fn denoise_with(
        &self,
        x: ArrayView4<'_, f64>,
        level: NoiseLevel,
        condition: &Condition,
    ) -> Result<Array4<f64>, DenoiserError> {
        let noised = self.noised(level);
        let rows = self.each_sample(x, condition, |x, chosen| {
            // Without noise x is the data; the mixture adds nothing, and has no density where a component is a point.
            if level.sigma() * level.sigma() == 0.0 {
                return Ok(x.to_owned());
            }
            let mut mean = Array1::zeros(x.len());
            for (&k, log_r) in chosen.iter().zip(log_responsibilities(&noised, chosen, x)) {
                mean.scaled_add(log_r.exp(), &self.components[k].posterior_mean(x, level));
            }
            Ok(mean)
        })?;
        Ok(stack(x.dim(), &rows))
    }
}

impl Denoiser for MixtureOracle {
    /// The estimate over all components.
    fn denoise(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Array4<f64>, DenoiserError> {
        let batch = x.dim().0;
        self.denoise_with(x, level, &Condition::none(batch))
    }
}

/// `ln sum exp`, without overflow; negative infinity of nothing.
///
/// FORMULAS 3.2. Verified by `log_sum_exp_does_not_overflow`.
pub fn log_sum_exp(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let highest = values.clone().fold(f64::NEG_INFINITY, f64::max);
    if highest.is_infinite() {
        return highest;
    }
    highest + values.map(|v| (v - highest).exp()).sum::<f64>().ln()
}

/// Refuses a level at which a component has no density.
fn check_density(noised: &MixtureOracle, chosen: &[usize], level: NoiseLevel) -> Result<(), DenoiserError> {
    if chosen.iter().all(|&k| noised.components[k].factor.smallest() > 0.0) {
        return Ok(());
    }
    Err(invalid(
        "the variance of every component at the noise level".into(),
        "above 0, since a point has no density (ask at a level with noise)",
        format!("0 at sigma = {}", level.sigma()),
    ))
}

/// `ln r_k(x)` of the chosen components, which sum to 1 in all.
fn log_responsibilities(noised: &MixtureOracle, chosen: &[usize], x: ArrayView1<'_, f64>) -> Vec<f64> {
    let logs: Vec<f64> = chosen.iter().map(|&k| noised.components[k].log_joint(x)).collect();
    let total = log_sum_exp(logs.iter().copied());
    logs.into_iter().map(|l| l - total).collect()
}

/// The score of the chosen components of a noised mixture.
fn score(noised: &MixtureOracle, chosen: &[usize], x: ArrayView1<'_, f64>) -> Array1<f64> {
    let mut score = Array1::zeros(x.len());
    for (&k, log_r) in chosen.iter().zip(log_responsibilities(noised, chosen, x)) {
        score.scaled_add(log_r.exp(), &noised.components[k].score(x));
    }
    score
}

/// One flat row per sample as a batch of shape `dim`.
fn stack(dim: (usize, usize, usize, usize), rows: &[Array1<f64>]) -> Array4<f64> {
    let mut batch = Array4::zeros(dim);
    for (mut sample, row) in batch.axis_iter_mut(Axis(0)).zip(rows) {
        for (to, &from) in sample.iter_mut().zip(row) {
            *to = from;
        }
    }
    batch
}
