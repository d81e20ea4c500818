//! Random mixtures, and Gaussians computed without the oracle: by Cholesky's decomposition.
#![allow(dead_code)]

use ndarray::{Array1, Array2, Array4, ArrayView1, Axis};
use proptest::prelude::*;
use tweedie_denoiser::{Component, Condition, Mean, MixtureOracle, Spread, log_sum_exp};
use tweedie_schedule::NoiseLevel;

/// A random mixture, its description, and a state.
#[derive(Clone, Debug)]
pub struct Case {
    /// The oracle.
    pub oracle: MixtureOracle,
    /// What it was made of.
    pub components: Vec<Component>,
    /// `[1, C, H, W]`.
    pub state: Array4<f64>,
    /// Another one.
    pub other: Array4<f64>,
    /// A label that a component has, or none.
    pub label: Option<usize>,
}

impl Case {
    /// The condition of the one state.
    pub fn condition(&self) -> Condition {
        Condition::labels(vec![self.label])
    }

    /// The components under the label.
    pub fn chosen(&self) -> Vec<&Component> {
        self.components.iter().filter(|c| self.label.is_none() || c.label == self.label).collect()
    }
}

/// The mean of a component, spelled out.
pub fn mean_of(component: &Component, size: usize) -> Array1<f64> {
    match &component.mean {
        Mean::Constant(value) => Array1::from_elem(size, *value),
        Mean::Values(values) => Array1::from_vec(values.clone()),
    }
}

/// The covariance of a component, spelled out.
pub fn covariance_of(component: &Component, size: usize) -> Array2<f64> {
    match &component.spread {
        Spread::Std(std) => Array2::eye(size) * (std * std),
        Spread::Stds(stds) => Array2::from_diag(&stds.iter().map(|s| s * s).collect::<Array1<f64>>()),
        Spread::Covariance(rows) => Array2::from_shape_fn((size, size), |(i, j)| rows[i][j]),
    }
}

/// `B B^T + floor I` with a random `B` of `rank` columns.
fn any_covariance(size: usize, floor: f64) -> impl Strategy<Value = Spread> {
    (prop::collection::vec(-1.0..1.0_f64, size * size), 1..=size).prop_map(move |(entries, rank)| {
        let half = Array2::from_shape_fn((size, rank), |(i, j)| entries[size * i + j]);
        let matrix = half.dot(&half.t()) + Array2::<f64>::eye(size) * floor;
        Spread::Covariance(matrix.outer_iter().map(|row| row.to_vec()).collect())
    })
}

fn any_component(size: usize, floor: f64) -> impl Strategy<Value = Component> {
    let std = floor.sqrt();
    let spread = prop_oneof![
        1 => (std..std + 1.0).prop_map(Spread::Std),
        1 => prop::collection::vec(std..std + 1.0, size).prop_map(Spread::Stds),
        3 => any_covariance(size, floor),
    ];
    (0.1..3.0_f64, prop::collection::vec(-2.0..2.0_f64, size), spread, prop::option::weighted(0.75, 0..3_usize))
        .prop_map(|(weight, mean, spread, label)| Component { weight, mean: mean.into(), spread, label })
}

/// Mixtures of 1 to 4 components in 1 to 6 dimensions, whose covariances have no eigenvalue below `floor`; with a floor of 0
/// some are singular.
pub fn any_case(floor: f64) -> impl Strategy<Value = Case> {
    (1..=6_usize, 1..=4_usize).prop_flat_map(move |(size, count)| {
        let state = || prop::collection::vec(-3.0..3.0_f64, size);
        (
            prop::collection::vec(any_component(size, floor), count),
            state(),
            state(),
            0..3_usize,
            any::<prop::sample::Index>(),
        )
            .prop_map(move |(components, state, other, axis, index)| {
                let mut shape = [1; 3];
                shape[axis] = size;
                let batch = |values| Array4::from_shape_vec((1, shape[0], shape[1], shape[2]), values).unwrap();
                let label = components[index.index(components.len())].label;
                let oracle = MixtureOracle::new(shape, components.clone()).unwrap();
                Case { oracle, components, state: batch(state), other: batch(other), label }
            })
    })
}

/// A level of a log-SNR in the range.
pub fn any_level(range: std::ops::Range<f64>) -> impl Strategy<Value = NoiseLevel> {
    range.prop_map(|log_snr| NoiseLevel::from_log_snr(log_snr).unwrap())
}

/// One sample of a batch, flat.
pub fn flat(batch: &Array4<f64>, i: usize) -> Array1<f64> {
    batch.index_axis(Axis(0), i).iter().copied().collect()
}

/// The lower triangle `L` of `A = L L^T`.
pub fn cholesky(a: &Array2<f64>) -> Array2<f64> {
    let n = a.nrows();
    let mut l = Array2::zeros((n, n));
    for i in 0..n {
        for j in 0..=i {
            let known: f64 = (0..j).map(|k| l[[i, k]] * l[[j, k]]).sum();
            l[[i, j]] = if i == j { (a[[i, i]] - known).sqrt() } else { (a[[i, j]] - known) / l[[j, j]] };
        }
    }
    assert!(l.iter().all(|v: &f64| v.is_finite()), "not positive definite: {a}");
    l
}

/// `A^-1 b` for a positive definite `A`.
pub fn solve(a: &Array2<f64>, b: &Array1<f64>) -> Array1<f64> {
    let l = cholesky(a);
    let n = b.len();
    let mut x = b.clone();
    for i in 0..n {
        let known: f64 = (0..i).map(|k| l[[i, k]] * x[k]).sum();
        x[i] = (x[i] - known) / l[[i, i]];
    }
    for i in (0..n).rev() {
        let known: f64 = (i + 1..n).map(|k| l[[k, i]] * x[k]).sum();
        x[i] = (x[i] - known) / l[[i, i]];
    }
    x
}

/// `ln N(x; mean, covariance)`.
pub fn log_normal(x: ArrayView1<'_, f64>, mean: &Array1<f64>, covariance: &Array2<f64>) -> f64 {
    let offset = &x - mean;
    let log_det: f64 = cholesky(covariance).diag().iter().map(|l| 2.0 * l.ln()).sum();
    let distance = offset.dot(&solve(covariance, &offset));
    -0.5 * (x.len() as f64 * std::f64::consts::TAU.ln() + log_det + distance)
}

/// `ln sum_k w_k N(x; scale m_k, scale^2 Sigma_k + noise) / sum_k w_k`, and the terms' logarithms.
pub fn log_mixture(
    components: &[&Component],
    x: ArrayView1<'_, f64>,
    scale: f64,
    noise: &Array2<f64>,
) -> (f64, Vec<f64>) {
    let size = x.len();
    let total: f64 = components.iter().map(|c| c.weight).sum();
    let terms: Vec<f64> = components
        .iter()
        .map(|c| {
            let covariance = covariance_of(c, size) * (scale * scale) + noise;
            (c.weight / total).ln() + log_normal(x, &(mean_of(c, size) * scale), &covariance)
        })
        .collect();
    (log_sum_exp(terms.iter().copied()), terms)
}

/// The gradient by central differences of fourth order.
pub fn gradient(x: &Array4<f64>, h: f64, f: impl Fn(&Array4<f64>) -> f64) -> Array4<f64> {
    let mut gradient = Array4::zeros(x.dim());
    for (index, slot) in gradient.indexed_iter_mut() {
        let at = |offset: f64| {
            let mut x = x.clone();
            x[index] += offset * h;
            f(&x)
        };
        *slot = (8.0 * (at(1.0) - at(-1.0)) - (at(2.0) - at(-2.0))) / (12.0 * h);
    }
    gradient
}

/// Asserts that two tensors agree to a tolerance relative to `1 + max |expected|`.
pub fn all_close(found: &Array4<f64>, expected: &Array4<f64>, tolerance: f64, what: &str) -> Result<(), TestCaseError> {
    prop_assert_eq!(found.dim(), expected.dim());
    let size = expected.iter().fold(1.0_f64, |m, v| m + v.abs());
    let error = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    prop_assert!(error <= tolerance * size, "{}: off by {:e}: {} instead of {}", what, error, found, expected);
    Ok(())
}

/// Kolmogorov and Smirnov's two-sample statistic, and the value that it exceeds with a probability of at most `alarm` where
/// both samples have one distribution: `sqrt(-ln(alarm / 2) / 2 (1/n + 1/m))` (Smirnov's asymptotic bound).
pub fn two_samples(mut a: Vec<f64>, mut b: Vec<f64>, alarm: f64) -> (f64, f64) {
    a.sort_by(f64::total_cmp);
    b.sort_by(f64::total_cmp);
    let (n, m) = (a.len() as f64, b.len() as f64);
    let (mut i, mut j, mut largest) = (0, 0, 0.0_f64);
    while i < a.len() && j < b.len() {
        let at = a[i].min(b[j]);
        while i < a.len() && a[i] <= at {
            i += 1;
        }
        while j < b.len() && b[j] <= at {
            j += 1;
        }
        largest = largest.max((i as f64 / n - j as f64 / m).abs());
    }
    (largest, (-(alarm / 2.0).ln() / 2.0 * (1.0 / n + 1.0 / m)).sqrt())
}
