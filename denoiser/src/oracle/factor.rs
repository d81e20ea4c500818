//! A covariance matrix in the form that makes every noise level cheap: `Sigma = U diag(lambda) U^T`.
//!
//! With it every function of `Sigma` and the identity is a function of the eigenvalues: `alpha^2 Sigma + sigma^2 I` has the
//! eigenvalues `alpha^2 lambda + sigma^2` and the same eigenvectors.

use std::f64::consts::TAU;
use std::sync::Arc;

use ndarray::{Array1, Array2, ArrayView1};

/// `Sigma = U diag(lambda) U^T`, `lambda >= 0`.
#[derive(Clone, Debug)]
pub(super) enum Factor {
    /// `lambda I`.
    Isotropic(f64),
    /// `diag(lambda)`.
    Diagonal(Array1<f64>),
    /// Eigenvectors in the columns of `vectors`.
    Full { values: Array1<f64>, vectors: Arc<Array2<f64>> },
}

impl Factor {
    /// The matrix with the same eigenvectors and the eigenvalues `f(lambda)`.
    pub(super) fn map(&self, f: impl Fn(f64) -> f64) -> Self {
        match self {
            Self::Isotropic(value) => Self::Isotropic(f(*value)),
            Self::Diagonal(values) => Self::Diagonal(values.mapv(f)),
            Self::Full { values, vectors } => Self::Full { values: values.mapv(f), vectors: vectors.clone() },
        }
    }

    /// The smallest eigenvalue.
    pub(super) fn smallest(&self) -> f64 {
        match self {
            Self::Isotropic(value) => *value,
            Self::Diagonal(values) | Self::Full { values, .. } => values.iter().copied().fold(f64::INFINITY, f64::min),
        }
    }

    /// `f(Sigma) x = U diag(f(lambda)) U^T x`.
    pub(super) fn apply(&self, f: impl Fn(f64) -> f64, x: Array1<f64>) -> Array1<f64> {
        match self {
            Self::Isotropic(value) => x * f(*value),
            Self::Diagonal(values) => x * values.mapv(f),
            Self::Full { values, vectors } => vectors.dot(&(vectors.t().dot(&x) * values.mapv(f))),
        }
    }

    /// `U diag(sqrt(lambda)) z`, which has the covariance `Sigma` for a standard normal `z`.
    pub(super) fn colour(&self, z: Array1<f64>) -> Array1<f64> {
        match self {
            Self::Isotropic(value) => z * value.sqrt(),
            Self::Diagonal(values) => z * values.mapv(f64::sqrt),
            Self::Full { values, vectors } => vectors.dot(&(z * values.mapv(f64::sqrt))),
        }
    }

    /// `ln N(x; 0, Sigma) = -1/2 [sum_i ln(2 pi lambda_i) + x^T Sigma^-1 x]`.
    pub(super) fn log_normal(&self, x: ArrayView1<'_, f64>) -> f64 {
        let terms = |values: &Array1<f64>, x: ArrayView1<'_, f64>| -> f64 {
            values.iter().zip(x).map(|(&v, &x)| (TAU * v).ln() + x * x / v).sum()
        };
        -0.5 * match self {
            Self::Isotropic(value) => {
                x.len() as f64 * (TAU * value).ln() + x.iter().map(|x| x * x).sum::<f64>() / value
            }
            Self::Diagonal(values) => terms(values, x),
            Self::Full { values, vectors } => terms(values, vectors.t().dot(&x).view()),
        }
    }

    /// `Sigma` itself, of `n` rows.
    pub(super) fn matrix(&self, n: usize) -> Array2<f64> {
        match self {
            Self::Isotropic(value) => Array2::eye(n) * *value,
            Self::Diagonal(values) => Array2::from_diag(values),
            Self::Full { values, vectors } => (vectors.as_ref() * values).dot(&vectors.t()),
        }
    }
}
