//! One Gaussian of a mixture: as it is described, and as it is computed with.

use std::sync::Arc;

use ndarray::{Array1, Array2, ArrayView1};
use tweedie_schedule::NoiseLevel;

use super::eigen;
use super::factor::Factor;
use crate::DenoiserError;

/// The largest sample, in values: a bound, so that a mistyped shape is an error and not an allocation of terabytes.
pub(super) const MAX_SIZE: usize = 1 << 24;
/// The largest sample with a full covariance matrix, in values: its decomposition takes seconds there.
pub(super) const MAX_FULL: usize = 512;

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

/// The covariance of a component, in the form in which it is given.
#[derive(Clone, Debug, PartialEq)]
pub enum Spread {
    /// One standard deviation `s >= 0` everywhere: the covariance `s^2 I`.
    Std(f64),
    /// `C * H * W` standard deviations, row-major, not negative: the covariance `diag(s_i^2)`.
    Stds(Vec<f64>),
    /// The covariance matrix, `C * H * W` rows of as many numbers: symmetric and positive semidefinite.
    Covariance(Vec<Vec<f64>>),
}

impl From<f64> for Spread {
    fn from(std: f64) -> Self {
        Self::Std(std)
    }
}

impl From<Vec<f64>> for Spread {
    fn from(stds: Vec<f64>) -> Self {
        Self::Stds(stds)
    }
}

impl From<Vec<Vec<f64>>> for Spread {
    fn from(covariance: Vec<Vec<f64>>) -> Self {
        Self::Covariance(covariance)
    }
}

/// One component `w N(m, Sigma)` of a mixture.
#[derive(Clone, Debug, PartialEq)]
pub struct Component {
    /// `w > 0`; weights need not sum to 1.
    pub weight: f64,
    /// `m`.
    pub mean: Mean,
    /// `Sigma`.
    pub spread: Spread,
    /// The class that the component belongs to.
    pub label: Option<usize>,
}

impl Component {
    /// The component of its parts: the mean is a number or a list, the spread a standard deviation, a list of them, or a
    /// covariance matrix.
    pub fn new(weight: f64, mean: impl Into<Mean>, spread: impl Into<Spread>, label: Option<usize>) -> Self {
        Self { weight, mean: mean.into(), spread: spread.into(), label }
    }
}

/// One weighted Gaussian `w N(m, Sigma)` of a [`MixtureOracle`](crate::MixtureOracle), in flat coordinates (`C * H * W`).
#[derive(Clone, Debug)]
pub struct Gaussian {
    pub(super) log_weight: f64,
    pub(super) mean: Array1<f64>,
    pub(super) factor: Factor,
    pub(super) label: Option<usize>,
}

impl Gaussian {
    /// Checks component `k` of a mixture of samples of `size` values, whose weights sum to `total`.
    pub(super) fn new(component: Component, k: usize, size: usize, total: f64) -> Result<Self, DenoiserError> {
        let entry = |name: &str| format!("{name} of component {k}");
        if !(component.weight > 0.0 && component.weight.is_finite() && total.is_finite()) {
            return Err(invalid(entry("the weight"), "finite and above 0", component.weight.to_string()));
        }
        let numbers = |name: &str, values: Vec<f64>| {
            if values.len() == size {
                return Ok(Array1::from_vec(values));
            }
            let expected = format!("a number or {size} numbers, one for each value of a sample");
            Err(invalid(entry(name), &expected, format!("{} numbers", values.len())))
        };
        let mean = match component.mean {
            Mean::Constant(value) => Array1::from_elem(size, value),
            Mean::Values(values) => numbers("the mean", values)?,
        };
        if let Some(value) = mean.iter().find(|m| !m.is_finite()) {
            return Err(invalid(entry("the mean"), "finite", value.to_string()));
        }
        let std = |std: f64| {
            if std >= 0.0 && std.is_finite() {
                return Ok(std);
            }
            Err(invalid(entry("the std"), "finite and not negative", std.to_string()))
        };
        let factor = match component.spread {
            Spread::Std(s) => Factor::Isotropic(std(s)?.powi(2)),
            Spread::Stds(values) => {
                values.iter().try_for_each(|&s| std(s).map(|_| ()))?;
                Factor::Diagonal(numbers("the std", values)?.mapv(|s| s * s))
            }
            Spread::Covariance(rows) => factored(&rows, size, &entry("the covariance"))?,
        };
        Ok(Self { log_weight: (component.weight / total).ln(), mean, factor, label: component.label })
    }

    /// `w`, normalised: the weights of a mixture sum to 1.
    pub fn weight(&self) -> f64 {
        self.log_weight.exp()
    }

    /// `ln w`, which is finite where `w` underflows.
    pub fn log_weight(&self) -> f64 {
        self.log_weight
    }

    /// `m`, flat.
    pub fn mean(&self) -> ArrayView1<'_, f64> {
        self.mean.view()
    }

    /// `Sigma`, `D x D` for `D = C * H * W`.
    pub fn covariance(&self) -> Array2<f64> {
        self.factor.matrix(self.mean.len())
    }

    /// The class.
    pub fn label(&self) -> Option<usize> {
        self.label
    }

    /// The component at a noise level: `w N(alpha m, alpha^2 Sigma + sigma^2 I)`.
    pub(super) fn noised(&self, level: NoiseLevel) -> Self {
        Self {
            log_weight: self.log_weight,
            mean: &self.mean * level.alpha(),
            factor: self.factor.map(|v| noised_variance(v, level)),
            label: self.label,
        }
    }

    /// `ln w + ln N(x; m, Sigma)`.
    pub(super) fn log_joint(&self, x: ArrayView1<'_, f64>) -> f64 {
        self.log_weight + self.factor.log_normal((&x - &self.mean).view())
    }

    /// `grad_x ln N(x; m, Sigma) = Sigma^-1 (m - x)`.
    pub(super) fn score(&self, x: ArrayView1<'_, f64>) -> Array1<f64> {
        self.factor.apply(f64::recip, &self.mean - &x)
    }

    /// `E[x_0 | x_t = x] = m + alpha Sigma (alpha^2 Sigma + sigma^2 I)^-1 (x - alpha m)` under this component alone.
    pub(super) fn posterior_mean(&self, x: ArrayView1<'_, f64>, level: NoiseLevel) -> Array1<f64> {
        let alpha = level.alpha();
        let gain = |v: f64| alpha * v / noised_variance(v, level);
        &self.mean + &self.factor.apply(gain, &x - &(&self.mean * alpha))
    }

    /// `Cov[x_0 | x_t] = sigma^2 Sigma (alpha^2 Sigma + sigma^2 I)^-1` under this component alone.
    pub(super) fn posterior_factor(&self, level: NoiseLevel) -> Factor {
        let noise = level.sigma() * level.sigma();
        self.factor.map(|v| noise * v / noised_variance(v, level))
    }
}

/// `alpha^2 lambda + sigma^2`.
fn noised_variance(variance: f64, level: NoiseLevel) -> f64 {
    level.alpha() * level.alpha() * variance + level.sigma() * level.sigma()
}

/// The error of an entry that is no distribution.
pub(super) fn invalid(what: String, expected: &str, found: String) -> DenoiserError {
    DenoiserError::Oracle { what, expected: expected.to_owned(), found }
}

/// The decomposition of a given covariance matrix of `size` rows.
fn factored(rows: &[Vec<f64>], size: usize, what: &str) -> Result<Factor, DenoiserError> {
    let refuse = |expected: &str, found: String| Err(invalid(what.to_owned(), expected, found));
    if size > MAX_FULL {
        let expected = format!("given for samples of at most {MAX_FULL} values (use a list of standard deviations)");
        return refuse(&expected, format!("{size} values"));
    }
    if rows.len() != size {
        return refuse(&format!("{size} rows of {size} numbers"), format!("{} rows", rows.len()));
    }
    if let Some((i, row)) = rows.iter().enumerate().find(|(_, row)| row.len() != size) {
        return refuse(&format!("{size} rows of {size} numbers"), format!("{} numbers in row {i}", row.len()));
    }
    let matrix = Array2::from_shape_fn((size, size), |(i, j)| rows[i][j]);
    if let Some(value) = matrix.iter().find(|v| !v.is_finite()) {
        return refuse("finite", value.to_string());
    }
    let largest = matrix.iter().fold(0.0_f64, |largest, v| largest.max(v.abs()));
    for ((i, j), &value) in matrix.indexed_iter() {
        // Files hold rounded numbers, but both of a pair are rounded alike.
        if (value - matrix[[j, i]]).abs() > 1e-12 * largest {
            let found = format!("{value} at [{i}][{j}] and {} at [{j}][{i}]", matrix[[j, i]]);
            return refuse("symmetric", found);
        }
    }
    let Some((values, vectors)) = eigen::symmetric(&matrix) else {
        return refuse("a matrix whose eigenvalues can be computed in f64", format!("entries up to {largest:e}"));
    };
    let highest = values.iter().copied().fold(0.0, f64::max);
    let lowest = values.iter().copied().fold(f64::INFINITY, f64::min);
    // Entries rounded to ten digits may turn an eigenvalue of 0 into a slightly negative one.
    if lowest < -1e-10 * highest.max(largest) {
        return refuse("positive semidefinite", format!("the eigenvalue {lowest:e}"));
    }
    // What rounding leaves of an eigenvalue of 0 is no variance.
    let floor = size as f64 * f64::EPSILON * highest;
    Ok(Factor::Full { values: values.mapv(|v| if v <= floor { 0.0 } else { v }), vectors: Arc::new(vectors) })
}
