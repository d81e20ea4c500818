//! What the library is compared with, computed by other means: products of the betas, Gaussian elimination, quadrature and
//! finite differences.

use std::f64::consts::TAU;

use tweedie_schedule::{NoiseLevel, Schedule};

use super::draw::Draw;

/// Mean factor and variance of `q(x_t | x_s)`, from one step after the other (FORMULAS 1.1): only products and sums of positive
/// numbers, so every digit but the last few is right. The library sums logarithms instead.
pub fn steps(schedule: &Schedule, s: usize, t: usize) -> (f64, f64) {
    schedule.betas()[s..t]
        .iter()
        .fold((1.0, 0.0), |(scale, variance), &beta| ((1.0 - beta).sqrt() * scale, (1.0 - beta) * variance + beta))
}

/// `ln N(x; mean, variance)` of one number.
pub fn log_normal(x: f64, mean: f64, variance: f64) -> f64 {
    -0.5 * ((TAU * variance).ln() + (x - mean) * (x - mean) / variance)
}

/// The integral of `f` over the line, for an `f` that vanishes beyond `reach` from `middle`: the trapezoid rule, which
/// converges faster than any power of the step for such functions.
pub fn integral(middle: f64, reach: f64, f: impl Fn(f64) -> f64) -> f64 {
    const POINTS: i32 = 400;
    let step = reach / f64::from(POINTS);
    (-POINTS..=POINTS).map(|i| f(middle + f64::from(i) * step)).sum::<f64>() * step
}

/// The gradient of `f` at `x` by central differences of fourth order, `(8 (f1 - f_1) - (f2 - f_2)) / (12 h)`.
///
/// # Errors
/// Those of `f`.
pub fn gradient<E>(x: &[f64], h: f64, f: impl Fn(&[f64]) -> Result<f64, E>) -> Result<Vec<f64>, E> {
    (0..x.len())
        .map(|i| {
            let at = |by: f64| {
                let mut x = x.to_vec();
                x[i] += by;
                f(&x)
            };
            Ok((8.0 * (at(h)? - at(-h)?) - (at(2.0 * h)? - at(-2.0 * h)?)) / (12.0 * h))
        })
        .collect()
}

/// `L` with `L L^T = matrix`, row by row; NaN if there is none.
fn cholesky(matrix: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let size = matrix.len();
    let mut l = vec![vec![0.0; size]; size];
    for i in 0..size {
        for j in 0..=i {
            let rest = matrix[i][j] - (0..j).map(|k| l[i][k] * l[j][k]).sum::<f64>();
            l[i][j] = if i == j { rest.sqrt() } else { rest / l[j][j] };
        }
    }
    l
}

/// `x` with `L x = b`.
fn forward(l: &[Vec<f64>], b: &[f64]) -> Vec<f64> {
    let mut x = vec![0.0; b.len()];
    for i in 0..b.len() {
        x[i] = (b[i] - (0..i).map(|k| l[i][k] * x[k]).sum::<f64>()) / l[i][i];
    }
    x
}

/// `x` with `L^T x = b`.
fn backward(l: &[Vec<f64>], b: &[f64]) -> Vec<f64> {
    let mut x = vec![0.0; b.len()];
    for i in (0..b.len()).rev() {
        x[i] = (b[i] - (i + 1..b.len()).map(|k| l[k][i] * x[k]).sum::<f64>()) / l[i][i];
    }
    x
}

/// A mixture as plain numbers, for `sum_k w_k N(m_k, S_k)` after `x -> scale x + N(0, noise)`, by Cholesky's factors.
#[derive(Clone)]
pub struct Parts {
    dims: usize,
    weights: Vec<f64>,
    means: Vec<Vec<f64>>,
    covariances: Vec<Vec<Vec<f64>>>,
    labels: Vec<usize>,
}

/// A noise that is added to the data: `N(scale x_0, noise)`.
pub struct Noising {
    /// Factor of the data.
    pub scale: f64,
    /// The covariance of the noise.
    pub noise: Vec<Vec<f64>>,
}

impl Noising {
    /// That of a noise level in `dims` dimensions.
    pub fn level(level: NoiseLevel, dims: usize) -> Self {
        let variance = level.sigma() * level.sigma();
        let entry = |i: usize, j: usize| if i == j { variance } else { 0.0 };
        Self { scale: level.alpha(), noise: (0..dims).map(|i| (0..dims).map(|j| entry(i, j)).collect()).collect() }
    }
}

impl Parts {
    pub fn new(dims: usize) -> Self {
        Self { dims, weights: Vec::new(), means: Vec::new(), covariances: Vec::new(), labels: Vec::new() }
    }

    pub fn push(&mut self, weight: f64, mean: Vec<f64>, covariance: Vec<Vec<f64>>, label: usize) {
        self.weights.push(weight);
        self.means.push(mean);
        self.covariances.push(covariance);
        self.labels.push(label);
    }

    /// Numbers of a sample.
    pub fn dims(&self) -> usize {
        self.dims
    }

    /// How many components there are.
    pub fn len(&self) -> usize {
        self.weights.len()
    }

    /// Weight, mean and covariance of a component.
    pub fn component(&self, k: usize) -> (f64, &[f64], &[Vec<f64>]) {
        (self.weights[k], &self.means[k], &self.covariances[k])
    }

    fn chosen(&self, label: Option<usize>) -> impl Iterator<Item = usize> + '_ {
        (0..self.weights.len()).filter(move |&k| label.is_none_or(|label| self.labels[k] == label))
    }

    /// A sample of the data.
    pub fn sample(&self, draw: &mut Draw) -> Vec<f64> {
        let mut rest = draw.uniform(0.0, self.weights.iter().sum());
        let k = self.weights.iter().position(|weight| {
            rest -= weight;
            rest < 0.0
        });
        let k = k.unwrap_or(0);
        let (l, z) = (cholesky(&self.covariances[k]), draw.normals(self.dims));
        (0..self.dims).map(|i| self.means[k][i] + (0..=i).map(|j| l[i][j] * z[j]).sum::<f64>()).collect()
    }

    /// `ln w_k N(x; scale m_k, scale^2 S_k + noise)`, and `(scale^2 S_k + noise)^-1 (x - scale m_k)`.
    fn joint(&self, k: usize, x: &[f64], by: &Noising) -> (f64, Vec<f64>) {
        let matrix: Vec<Vec<f64>> = (0..self.dims)
            .map(|i| (0..self.dims).map(|j| by.scale * by.scale * self.covariances[k][i][j] + by.noise[i][j]).collect())
            .collect();
        let l = cholesky(&matrix);
        let offset: Vec<f64> = x.iter().zip(&self.means[k]).map(|(x, m)| x - by.scale * m).collect();
        let white = forward(&l, &offset);
        let squares: f64 = white.iter().map(|v| v * v).sum();
        let log_det: f64 = (0..self.dims).map(|i| 2.0 * l[i][i].ln()).sum();
        let log = self.weights[k].ln() - 0.5 * (self.dims as f64 * TAU.ln() + log_det + squares);
        (log, backward(&l, &white))
    }

    /// `ln p(x)` of the noised data, under a label if there is one.
    pub fn log_density(&self, x: &[f64], by: &Noising, label: Option<usize>) -> f64 {
        let logs: Vec<f64> = self.chosen(label).map(|k| self.joint(k, x, by).0).collect();
        let highest = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = self.chosen(label).map(|k| self.weights[k]).sum();
        highest + logs.iter().map(|log| (log - highest).exp()).sum::<f64>().ln() - total.ln()
    }

    /// `ln p(y | x)` of the noised data.
    pub fn log_label(&self, x: &[f64], by: &Noising, label: usize) -> f64 {
        let weight = |label| self.chosen(label).map(|k| self.weights[k]).sum::<f64>();
        self.log_density(x, by, Some(label)) + (weight(Some(label)) / weight(None)).ln() - self.log_density(x, by, None)
    }

    /// `E[x_0 | x]`: the responsibilities times `m_k + scale S_k (scale^2 S_k + noise)^-1 (x - scale m_k)`.
    pub fn mean(&self, x: &[f64], by: &Noising, label: Option<usize>) -> Vec<f64> {
        let joint: Vec<(usize, f64, Vec<f64>)> = self
            .chosen(label)
            .map(|k| {
                let (log, solved) = self.joint(k, x, by);
                (k, log, solved)
            })
            .collect();
        let highest = joint.iter().map(|j| j.1).fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = joint.iter().map(|j| (j.1 - highest).exp()).sum();
        let mut mean = vec![0.0; self.dims];
        for (k, log, solved) in &joint {
            let responsibility = (log - highest).exp() / total;
            for i in 0..self.dims {
                let gain: f64 = (0..self.dims).map(|j| self.covariances[*k][i][j] * solved[j]).sum();
                mean[i] += responsibility * (self.means[*k][i] + by.scale * gain);
            }
        }
        mean
    }
}
