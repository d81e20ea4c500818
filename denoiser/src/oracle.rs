//! The exact denoiser of data drawn from a mixture of isotropic Gaussians (FORMULAS 3.1, 3.2).
//!
//! If `x_0 ~ sum_k w_k N(m_k, s_k^2 I)` then `x_t ~ sum_k w_k N(alpha m_k, v_k I)` with `v_k = alpha^2 s_k^2 + sigma^2`, and
//! with the responsibilities `r_k(x) ~ w_k N(x; alpha m_k, v_k I)` the posterior mean is
//! `E[x_0 | x_t = x] = sum_k r_k(x) [m_k + alpha s_k^2 / v_k (x - alpha m_k)]`.
//! Under a label the sum runs over the components of that label.

use std::f64::consts::TAU;

use ndarray::{Array1, Array4, ArrayView1, ArrayView4, Axis};
use tweedie_schedule::NoiseLevel;

use crate::denoise::check_batch;
use crate::{Condition, ConditionalDenoiser, Denoiser, DenoiserError};

/// The mean of a component.
#[derive(Clone, Debug, PartialEq)]
pub enum Mean {
    /// The same number everywhere.
    Constant(f64),
    /// `C * H * W` numbers, row-major.
    Values(Vec<f64>),
}

impl From<f64> for Mean {
    fn from(value: f64) -> Self {
        Self::Constant(value)
    }
}

impl From<Vec<f64>> for Mean {
    fn from(values: Vec<f64>) -> Self {
        Self::Values(values)
    }
}

/// One component `w N(m, s^2 I)` of a mixture.
#[derive(Clone, Debug, PartialEq)]
pub struct Component {
    /// `w > 0`; weights need not sum to 1.
    pub weight: f64,
    /// `m`.
    pub mean: Mean,
    /// `s >= 0`.
    pub std: f64,
    /// The class that the component belongs to.
    pub label: Option<usize>,
}

/// A component with its mean spelled out.
#[derive(Clone, Debug)]
struct Gaussian {
    log_weight: f64,
    mean: Array1<f64>,
    variance: f64,
    label: Option<usize>,
}

/// The exact denoiser of a Gaussian mixture.
#[derive(Clone, Debug)]
pub struct MixtureOracle {
    shape: [usize; 3],
    components: Vec<Gaussian>,
}

impl MixtureOracle {
    /// The oracle of samples of shape `[C, H, W]`.
    ///
    /// # Errors
    /// If there is no component, a dimension is 0, a weight is not positive, a standard deviation is negative, a mean has
    /// not `C * H * W` entries, or a number is not finite.
    pub fn new(shape: [usize; 3], components: Vec<Component>) -> Result<Self, DenoiserError> {
        let invalid = |what: String, expected: &str, found: String| {
            Err(DenoiserError::Oracle { what, expected: expected.to_owned(), found })
        };
        let size =
            shape.iter().try_fold(1_usize, |size, &n| size.checked_mul(n)).filter(|n| (1..=MAX_SIZE).contains(n));
        let Some(size) = size else {
            return invalid("the shape".into(), "[C, H, W] of 1 to 2^24 values", format!("{shape:?}"));
        };
        if components.is_empty() {
            return invalid("the list of components".into(), "one component or more", "none".into());
        }
        let total: f64 = components.iter().map(|c| c.weight).sum();
        let mut gaussians = Vec::with_capacity(components.len());
        for (k, component) in components.into_iter().enumerate() {
            let entry = |name: &str| format!("{name} of component {k}");
            if !(component.weight > 0.0 && component.weight.is_finite() && total.is_finite()) {
                return invalid(entry("the weight"), "finite and above 0", component.weight.to_string());
            }
            if !(component.std >= 0.0 && component.std.is_finite()) {
                return invalid(entry("the std"), "finite and not negative", component.std.to_string());
            }
            let mean = match component.mean {
                Mean::Constant(value) => Array1::from_elem(size, value),
                Mean::Values(values) if values.len() == size => Array1::from_vec(values),
                Mean::Values(values) => {
                    let expected = format!("a number or {size} numbers for the shape {shape:?}");
                    return invalid(entry("the mean"), &expected, values.len().to_string());
                }
            };
            if let Some(value) = mean.iter().find(|m| !m.is_finite()) {
                return invalid(entry("the mean"), "finite", value.to_string());
            }
            gaussians.push(Gaussian {
                log_weight: (component.weight / total).ln(),
                mean,
                variance: component.std * component.std,
                label: component.label,
            });
        }
        Ok(Self { shape, components: gaussians })
    }

    /// `[C, H, W]`.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// One more than the highest label, 0 if no component has one.
    pub fn classes(&self) -> usize {
        self.components.iter().filter_map(|c| c.label).max().map_or(0, |label| label + 1)
    }

    /// `ln p_t(x)` of each sample, under its label where it has one: the normalised density of the noised mixture.
    ///
    /// # Errors
    /// As [`ConditionalDenoiser::denoise_with`]; and [`DenoiserError::Oracle`] where a component has no variance left at the
    /// level: a component with `s = 0` is a point, which has no density without noise.
    pub fn log_density(
        &self,
        x: ArrayView4<'_, f64>,
        level: NoiseLevel,
        condition: &Condition,
    ) -> Result<Vec<f64>, DenoiserError> {
        self.each_sample(x, condition, |x, chosen| {
            check_density(chosen, level)?;
            let prior = log_sum_exp(chosen.iter().map(|c| c.log_weight));
            Ok(log_sum_exp(chosen.iter().map(|c| log_joint(c, x, level))) - prior)
        })
    }

    /// `grad_x ln p_t(x) = sum_k r_k (alpha m_k - x) / v_k`, under each sample's label where it has one.
    ///
    /// # Errors
    /// As [`MixtureOracle::log_density`].
    pub fn score(
        &self,
        x: ArrayView4<'_, f64>,
        level: NoiseLevel,
        condition: &Condition,
    ) -> Result<Array4<f64>, DenoiserError> {
        let rows = self.each_sample(x, condition, |x, chosen| {
            check_density(chosen, level)?;
            let mut score = Array1::zeros(x.len());
            for (component, r) in chosen.iter().zip(responsibilities(chosen, x, level)) {
                let scale = r / noised_variance(component, level);
                ndarray::Zip::from(&mut score)
                    .and(x)
                    .and(&component.mean)
                    .for_each(|s, &x, &m| *s += scale * (level.alpha() * m - x));
            }
            Ok(score)
        })?;
        Ok(stack(x.dim(), &rows))
    }

    /// Applies `f` to each sample (flattened) and the components that its label leaves.
    fn each_sample<R>(
        &self,
        x: ArrayView4<'_, f64>,
        condition: &Condition,
        f: impl Fn(ArrayView1<'_, f64>, &[&Gaussian]) -> Result<R, DenoiserError>,
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
        x.axis_iter(Axis(0))
            .zip(condition.as_labels())
            .map(|(sample, &label)| {
                let chosen: Vec<&Gaussian> =
                    self.components.iter().filter(|c| label.is_none() || c.label == label).collect();
                if chosen.is_empty() {
                    return Err(DenoiserError::Condition {
                        operation: "oracle",
                        message: format!(
                            "no component has the label {}; use one of the oracle's labels",
                            label.unwrap_or(0)
                        ),
                    });
                }
                let flat = Array1::from_iter(sample.iter().copied());
                f(flat.view(), &chosen)
            })
            .collect()
    }
}

/// The largest sample, in values: a bound, so that a mistyped shape is an error and not an allocation of terabytes.
const MAX_SIZE: usize = 1 << 24;

impl ConditionalDenoiser for MixtureOracle {
    fn denoise_with(
        &self,
        x: ArrayView4<'_, f64>,
        level: NoiseLevel,
        condition: &Condition,
    ) -> Result<Array4<f64>, DenoiserError> {
        let alpha = level.alpha();
        let rows = self.each_sample(x, condition, |x, chosen| {
            // Without noise x is the data; the mixture adds nothing, and has no density where a component is a point.
            if level.sigma() == 0.0 {
                return Ok(x.to_owned());
            }
            let mut mean = Array1::zeros(x.len());
            for (component, r) in chosen.iter().zip(responsibilities(chosen, x, level)) {
                let gain = alpha * component.variance / noised_variance(component, level);
                ndarray::Zip::from(&mut mean)
                    .and(x)
                    .and(&component.mean)
                    .for_each(|o, &x, &m| *o += r * (m + gain * (x - alpha * m)));
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

/// `v_k = alpha^2 s_k^2 + sigma^2`.
fn noised_variance(component: &Gaussian, level: NoiseLevel) -> f64 {
    level.alpha() * level.alpha() * component.variance + level.sigma() * level.sigma()
}

/// Refuses a level at which a component has no density.
fn check_density(chosen: &[&Gaussian], level: NoiseLevel) -> Result<(), DenoiserError> {
    match chosen.iter().find(|component| noised_variance(component, level) == 0.0) {
        None => Ok(()),
        Some(_) => Err(DenoiserError::Oracle {
            what: "the variance of every component at the noise level".into(),
            expected: "above 0, since a point has no density (ask at a level with noise)".into(),
            found: format!("0 at sigma = {}", level.sigma()),
        }),
    }
}

/// `ln w_k + ln N(x; alpha m_k, v_k I)`.
fn log_joint(component: &Gaussian, x: ArrayView1<'_, f64>, level: NoiseLevel) -> f64 {
    let variance = noised_variance(component, level);
    let distance: f64 = x.iter().zip(&component.mean).map(|(&x, &m)| (x - level.alpha() * m).powi(2)).sum();
    component.log_weight - 0.5 * (x.len() as f64 * (TAU * variance).ln() + distance / variance)
}

/// `r_k(x)`, which sum to 1.
fn responsibilities(chosen: &[&Gaussian], x: ArrayView1<'_, f64>, level: NoiseLevel) -> Vec<f64> {
    let logs: Vec<f64> = chosen.iter().map(|c| log_joint(c, x, level)).collect();
    let total = log_sum_exp(logs.iter().copied());
    logs.iter().map(|l| (l - total).exp()).collect()
}

/// `ln sum exp`, without overflow.
fn log_sum_exp(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let highest = values.clone().fold(f64::NEG_INFINITY, f64::max);
    if highest.is_infinite() {
        return highest;
    }
    highest + values.map(|v| (v - highest).exp()).sum::<f64>().ln()
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
