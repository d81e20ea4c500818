//! The Fréchet distance of two sets of features (FID, Heusel et al. 2017, eq. 6): that of the normal distributions with
//! their means `m` and covariances `S`, which is their Wasserstein distance (Dowson & Landau 1982), squared:
//!
//! ```text
//! d^2 = |m_1 - m_2|^2 + tr S_1 + tr S_2 - 2 tr (S_1 S_2)^(1/2)
//! ```
//!
//! With `S_i = L_i L_i^T` the eigenvalues of `S_1 S_2` are the squares of the singular values of `L_1^T L_2`, so that the last
//! trace is the sum of these, and no square root of a matrix that is not symmetric need be taken. A direction whose standard
//! deviation is less than `sqrt(D eps)`, about 1e-7, of the largest one counts as none: features in f32 have no more digits.
//!
//! The estimate is biased: it falls with the number of samples N, about linearly in `1 / N`. Compare only values of equal
//! N, or extrapolate ([`frechet_extrapolated`], Chong & Forsyth 2020).

use nalgebra::DMatrix;
use nalgebra::linalg::{SVD, SymmetricEigen};
use ndarray::linalg::general_mat_mul;
use ndarray::{Array1, Array2, ArrayView2, Axis, Slice};
use rayon::prelude::*;

use crate::features::{check, check_dims, check_pair, resample, subset};
use crate::{Estimate, EvalError};

const OPERATION: &str = "Fréchet distance";
/// Rows that are centred at once.
const ROWS: usize = 2048;
/// Rows of the covariance that are one unit of work.
const PANEL: usize = 32;
/// Sweeps for each dimension before a decomposition is given up; two or three are usual.
const SWEEPS: usize = 100;

/// Mean and scatter of a set of features, to which more can be added.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    count: usize,
    mean: Array1<f64>,
    /// `sum (x - mean)(x - mean)^T`.
    scatter: Array2<f64>,
}

impl Moments {
    /// Of no sample yet, with `dims` features each.
    pub fn new(dims: usize) -> Self {
        Self { count: 0, mean: Array1::zeros(dims), scatter: Array2::zeros((dims, dims)) }
    }

    /// Those of the rows of `x` `[N, D]`.
    ///
    /// # Errors
    /// If there is no column, or a value is not finite.
    pub fn of(x: ArrayView2<'_, f64>) -> Result<Self, EvalError> {
        let mut moments = Self::new(x.ncols());
        moments.add(x)?;
        Ok(moments)
    }

    /// Those of a known distribution, as if of `count` samples: `mean` `[D]` and `covariance` `[D, D]`.
    ///
    /// # Errors
    /// If the shapes do not match, a value is not finite, the covariance is not symmetric, or `count` is less than 2.
    ///
    /// Verified by `distances_of_known_gaussians`.
    pub fn from_parts(count: usize, mean: Array1<f64>, covariance: Array2<f64>) -> Result<Self, EvalError> {
        let fail = |what, expected: String, found: String, remedy| {
            Err(EvalError::Parameter { operation: OPERATION, what, expected, found, remedy })
        };
        if count < 2 {
            return fail("the number of samples", "2 or more".to_owned(), count.to_string(), "give their true number");
        }
        check(OPERATION, "the mean", mean.view().insert_axis(Axis(0)), 1)?;
        check(OPERATION, "the covariance", covariance.view(), 1)?;
        let dims = mean.len();
        if covariance.dim() != (dims, dims) {
            let (expected, found) = (format!("of shape [{dims}, {dims}]"), format!("{:?}", covariance.shape()));
            return fail("the covariance", expected, found, "give that of the same features as the mean");
        }
        let scale = covariance.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
        let skew = (&covariance - &covariance.t()).iter().fold(0.0, |m: f64, v| m.max(v.abs()));
        if skew > 1e-6 * scale {
            let found = format!("a difference of {skew:e} from its transpose");
            return fail("the covariance", "symmetric".to_owned(), found, "give a covariance");
        }
        let scatter = (&covariance + &covariance.t()) * (0.5 * (count - 1) as f64);
        Ok(Self { count, mean, scatter })
    }

    /// Adds the rows of `x` `[N, D]` (Chan, Golub & LeVeque 1983): the result is that of all rows at once, up to rounding.
    ///
    /// # Errors
    /// If D is another, or a value is not finite; then nothing is added.
    ///
    /// Verified by `moments_are_those_of_all_batches`.
    pub fn add(&mut self, x: ArrayView2<'_, f64>) -> Result<(), EvalError> {
        check(OPERATION, "the features", x, 0)?;
        check_dims(OPERATION, self.mean.len(), x.ncols())?;
        if x.nrows() > 0 {
            self.merge(&Self::weighted(x, None));
        }
        Ok(())
    }

    /// Of rows that count `weights` times each, 1 by default.
    fn weighted(x: ArrayView2<'_, f64>, weights: Option<&[u32]>) -> Self {
        let dims = x.ncols();
        let weight = |i: usize| weights.map_or(1.0, |w| f64::from(w[i]));
        let count: usize = weights.map_or(x.nrows(), |w| w.iter().map(|w| *w as usize).sum());
        let mut mean = Array1::zeros(dims);
        x.outer_iter().enumerate().for_each(|(i, row)| mean.scaled_add(weight(i), &row));
        mean /= count.max(1) as f64;
        let used: Vec<usize> = (0..x.nrows()).filter(|i| weight(*i) > 0.0).collect();
        let mut scatter = Array2::zeros((dims, dims));
        for rows in used.chunks(ROWS) {
            let mut part = x.select(Axis(0), rows);
            for (mut row, i) in part.outer_iter_mut().zip(rows) {
                row -= &mean;
                row *= weight(*i).sqrt();
            }
            let panels: Vec<_> = scatter.axis_chunks_iter_mut(Axis(0), PANEL).collect();
            panels.into_par_iter().enumerate().for_each(|(p, mut panel)| {
                let first = p * PANEL;
                let left = part.slice_axis(Axis(1), Slice::from(first..first + panel.nrows()));
                general_mat_mul(1.0, &left.t(), &part, 1.0, &mut panel);
            });
        }
        let scatter = (&scatter + &scatter.t()) * 0.5;
        Self { count, mean, scatter }
    }

    fn merge(&mut self, other: &Self) {
        let (a, b) = (self.count as f64, other.count as f64);
        let total = a + b;
        let step = &other.mean - &self.mean;
        self.scatter += &other.scatter;
        for i in 0..step.len() {
            self.scatter.row_mut(i).scaled_add(step[i] * a * b / total, &step);
        }
        self.mean.scaled_add(b / total, &step);
        self.count += other.count;
    }

    /// How many samples they are of.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The mean, `[D]`.
    pub fn mean(&self) -> &Array1<f64> {
        &self.mean
    }

    /// The covariance `[D, D]` with the divisor N - 1, as numpy's `cov`; NaN of a single sample.
    pub fn covariance(&self) -> Array2<f64> {
        &self.scatter / (self.count as f64 - 1.0)
    }
}

/// A mean and a covariance in the form that distances are computed from: what is kept of a reference.
#[derive(Clone, Debug, PartialEq)]
pub struct Factored {
    mean: Array1<f64>,
    trace: f64,
    /// `L` with `L L^T = S`, `[D, rank]`.
    factor: Array2<f64>,
}

/// A distance and its two parts; their unit is that of the features, squared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Frechet {
    /// `d^2`, not negative.
    pub distance: f64,
    /// `|m_1 - m_2|^2`.
    pub of_means: f64,
    /// `tr S_1 + tr S_2 - 2 tr (S_1 S_2)^(1/2)`.
    pub of_covariances: f64,
}

impl Factored {
    /// Decomposes the covariance.
    ///
    /// # Errors
    /// If there are fewer than two samples, or the decomposition does not converge.
    pub fn of(moments: &Moments) -> Result<Self, EvalError> {
        let dims = moments.mean.len();
        if moments.count < 2 {
            return Err(EvalError::Parameter {
                operation: OPERATION,
                what: "the number of samples",
                expected: "2 or more".to_owned(),
                found: moments.count.to_string(),
                remedy: "give more images",
            });
        }
        let covariance = moments.covariance();
        let trace = covariance.diag().sum();
        let matrix = DMatrix::from_fn(dims, dims, |i, j| covariance[[i, j]]);
        let eigen = SymmetricEigen::try_new(matrix, f64::EPSILON, SWEEPS * dims.max(10))
            .ok_or(EvalError::Decomposition { operation: OPERATION, what: "the eigenvalues of a covariance" })?;
        let least = dims as f64 * f64::EPSILON * eigen.eigenvalues.iter().fold(0.0, |m: f64, v| m.max(*v));
        let kept: Vec<usize> = (0..dims).filter(|i| eigen.eigenvalues[*i] > least).collect();
        let factor = Array2::from_shape_fn((dims, kept.len()), |(i, r)| {
            eigen.eigenvectors[(i, kept[r])] * eigen.eigenvalues[kept[r]].sqrt()
        });
        Ok(Self { mean: moments.mean.clone(), trace, factor })
    }

    /// How many directions have a variance.
    pub fn rank(&self) -> usize {
        self.factor.ncols()
    }

    /// The Fréchet distance, squared; symmetric.
    ///
    /// # Errors
    /// If the numbers of features differ, or the decomposition does not converge.
    ///
    /// Verified by `distances_of_known_gaussians`. Verified by `figures_of_python`.
    pub fn distance(&self, other: &Self) -> Result<Frechet, EvalError> {
        check_dims(OPERATION, self.mean.len(), other.mean.len())?;
        let step = &self.mean - &other.mean;
        let of_means = step.dot(&step);
        let of_covariances =
            (self.trace + other.trace - 2.0 * sum_of_singular_values(&self.factor.t().dot(&other.factor))?).max(0.0);
        Ok(Frechet { distance: of_means + of_covariances, of_means, of_covariances })
    }
}

fn sum_of_singular_values(matrix: &Array2<f64>) -> Result<f64, EvalError> {
    let (rows, columns) = matrix.dim();
    if rows == 0 || columns == 0 {
        return Ok(0.0);
    }
    let dense = DMatrix::from_fn(rows, columns, |i, j| matrix[[i, j]]);
    let most = SWEEPS * rows.max(columns).max(10);
    SVD::try_new(dense, false, false, 5.0 * f64::EPSILON, most)
        .map(|svd| svd.singular_values.sum())
        .filter(|sum| sum.is_finite())
        .ok_or(EvalError::Decomposition { operation: OPERATION, what: "the singular values of a product" })
}

/// The Fréchet distance of two matrices of features, `[N, D]` and `[M, D]`; N and M may be less than D.
///
/// # Errors
/// If the numbers of features differ, there are fewer than two rows, a value is not finite, or a decomposition does not
/// converge.
///
/// Verified by `the_distance_of_a_set_to_itself_is_zero`. Verified by `rotations_and_order_do_not_matter`.
pub fn frechet(reference: ArrayView2<'_, f64>, samples: ArrayView2<'_, f64>) -> Result<Frechet, EvalError> {
    check_pair(OPERATION, reference, samples, 2)?;
    Factored::of(&Moments::of(reference)?)?.distance(&Factored::of(&Moments::of(samples)?)?)
}

/// The standard error of [`frechet`] by the bootstrap (Efron 1979): the standard deviation of the distance over `resamples`
/// pairs of sets that are drawn from the two with replacement, keyed by the seed.
///
/// It tells how far another draw of as many images would fall, and nothing of the bias. (Quantiles of the resampled
/// distances are no interval: resampling adds the bias once more.)
///
/// # Errors
/// As [`frechet`]; also for fewer than two resamples.
///
/// Verified by `the_bootstrap_agrees_with_fresh_draws`.
pub fn frechet_error(
    reference: ArrayView2<'_, f64>,
    samples: ArrayView2<'_, f64>,
    resamples: usize,
    seed: u64,
) -> Result<f64, EvalError> {
    check_pair(OPERATION, reference, samples, 2)?;
    if resamples < 2 {
        return Err(EvalError::Parameter {
            operation: OPERATION,
            what: "the number of resamples",
            expected: "2 or more".to_owned(),
            found: resamples.to_string(),
            remedy: "50 serve",
        });
    }
    let redrawn = |x: ArrayView2<'_, f64>, r: usize, side: u64| {
        let weights = resample(x.nrows(), seed, "eval/frechet-bootstrap", r as u64, side);
        Factored::of(&Moments::weighted(x, Some(&weights)))
    };
    let distances: Vec<f64> = (0..resamples)
        .into_par_iter()
        .map(|r| Ok(redrawn(reference, r, 0)?.distance(&redrawn(samples, r, 1)?)?.distance))
        .collect::<Result<_, EvalError>>()?;
    let error = Estimate::of(&distances).standard_error.unwrap_or(f64::NAN);
    Ok(error * (resamples as f64).sqrt())
}

/// A distance for infinitely many samples.
#[derive(Clone, Debug, PartialEq)]
pub struct Extrapolated {
    /// The distance at `1 / N = 0`; may be slightly negative, as an estimate of zero.
    pub distance: f64,
    /// The slope over `1 / N`.
    pub slope: f64,
    /// Number of samples and distance of every subset.
    pub points: Vec<(usize, f64)>,
}

/// The distance of infinitely many samples from the reference (FID-infinity, Chong & Forsyth 2020, section 3): the
/// distances of random subsets of `points` sizes, evenly spaced up to all, by least squares on a line in `1 / N`.
///
/// The smallest size is a tenth of all, but twice the number of features if half of all are as many: below that the
/// distance is no line. The reference's own bias remains.
///
/// # Errors
/// As [`frechet`]; also for fewer than two points, or fewer than 20 samples.
///
/// Verified by `extrapolation_removes_the_bias`.
pub fn frechet_extrapolated(
    reference: &Factored,
    samples: ArrayView2<'_, f64>,
    points: usize,
    seed: u64,
) -> Result<Extrapolated, EvalError> {
    check(OPERATION, "the features of the samples", samples, 20)?;
    if points < 2 {
        return Err(EvalError::Parameter {
            operation: OPERATION,
            what: "the number of points of the extrapolation",
            expected: "2 or more".to_owned(),
            found: points.to_string(),
            remedy: "15 serve",
        });
    }
    let (n, dims) = samples.dim();
    let least = (n / 10).max((2 * dims).min(n / 2)).max(2);
    let distances: Vec<(usize, f64)> = (0..points)
        .into_par_iter()
        .map(|p| {
            let size = least + (n - least) * p / (points - 1);
            let mut rows = subset(n, size, seed, "eval/frechet-extrapolated", p as u64, 0);
            // The sums of all rows are those of the samples as they are, to the last bit.
            rows.sort_unstable();
            let moments = Moments::of(samples.select(Axis(0), &rows).view())?;
            Ok((size, reference.distance(&Factored::of(&moments)?)?.distance))
        })
        .collect::<Result<_, EvalError>>()?;
    let mean = |f: &dyn Fn(&(usize, f64)) -> f64| distances.iter().map(f).sum::<f64>() / points as f64;
    let (x, y) = (mean(&|p| 1.0 / p.0 as f64), mean(&|p| p.1));
    let along = mean(&|p| (1.0 / p.0 as f64 - x) * (p.1 - y));
    let slope = along / mean(&|p| (1.0 / p.0 as f64 - x).powi(2));
    Ok(Extrapolated { distance: y - slope * x, slope, points: distances })
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;
    use crate::features::testing::{normal, rotation, shuffled};

    fn known(mean: &[f64], covariance: Array2<f64>) -> Factored {
        Factored::of(&Moments::from_parts(10, mean.to_vec().into(), covariance).unwrap()).unwrap()
    }

    fn close(found: f64, expected: f64, tolerance: f64) {
        assert!((found - expected).abs() <= tolerance * expected.abs(), "{found} instead of {expected}");
    }

    /// Covariances that commute: `sum (sqrt a_i - sqrt b_i)^2`; and the plane, where `tr sqrt M = sqrt(tr M + 2 sqrt det M)`.
    #[test]
    fn distances_of_known_gaussians() {
        let dims = 24;
        let variance = |scale: f64| (0..dims).map(|i| scale * 0.5_f64.powi(i)).collect::<Vec<f64>>();
        let (a, b): (Vec<f64>, Vec<f64>) = (variance(3.0), variance(2.0).into_iter().rev().collect());
        let q = rotation(dims as usize, 1);
        let turned = |v: &[f64]| q.t().dot(&Array2::from_diag(&Array1::from(v.to_vec()))).dot(&q);
        let shift: Vec<f64> = (0..dims).map(|i| 0.01 * f64::from(i)).collect();
        let (x, y) = (known(&vec![0.0; dims as usize], turned(&a)), known(&shift, turned(&b)));
        let found = x.distance(&y).unwrap();
        close(found.of_means, shift.iter().map(|v| v * v).sum(), 1e-14);
        close(found.of_covariances, a.iter().zip(&b).map(|(a, b)| (a.sqrt() - b.sqrt()).powi(2)).sum(), 1e-10);
        close(found.distance, found.of_means + found.of_covariances, 1e-15);
        close(y.distance(&x).unwrap().distance, found.distance, 1e-12);

        let (a, b) = (array![[2.0, 0.6], [0.6, 0.5]], array![[1.0, -0.3], [-0.3, 0.7]]);
        let product = a.dot(&b);
        let determinant: f64 = product[[0, 0]] * product[[1, 1]] - product[[0, 1]] * product[[1, 0]];
        let root = (product.diag().sum() + 2.0 * determinant.sqrt()).sqrt();
        let found = known(&[1.0, 2.0], a.clone()).distance(&known(&[1.0, 2.0], b.clone())).unwrap();
        close(found.distance, a.diag().sum() + b.diag().sum() - 2.0 * root, 1e-13);
    }

    /// `(u . v)^2 = tr^2` of two covariances of rank 1, and directions without any variance.
    #[test]
    fn covariances_without_full_rank() {
        let outer = |v: &Array1<f64>| Array2::from_shape_fn((v.len(), v.len()), |(i, j)| v[i] * v[j]);
        let (u, v) = (array![1.0, 2.0, 2.0, 0.0], array![0.0, 3.0, 4.0, 0.0]);
        let (a, b) = (known(&[0.0; 4], outer(&u)), known(&[0.0; 4], outer(&v)));
        assert_eq!((a.rank(), b.rank()), (1, 1));
        close(a.distance(&b).unwrap().distance, 9.0 + 25.0 - 2.0 * 14.0, 1e-13);
        let none = known(&[0.0; 4], Array2::zeros((4, 4)));
        assert_eq!(none.rank(), 0);
        close(a.distance(&none).unwrap().distance, 9.0, 1e-14);
        assert_eq!(none.distance(&none).unwrap().distance, 0.0);
        // Fewer rows than columns: the distance is that of the space that they span.
        let (x, y) = (normal(12, 8, 1), normal(12, 8, 2));
        let wide = |x: &Array2<f64>| x.dot(&rotation(40, 3).slice_axis(Axis(0), Slice::from(..8)));
        let small = frechet(x.view(), y.view()).unwrap();
        let found = frechet(wide(&x).view(), wide(&y).view()).unwrap();
        close(found.distance, small.distance, 1e-9);
        assert!(Factored::of(&Moments::of(wide(&x).view()).unwrap()).unwrap().rank() == 8);
    }

    #[test]
    fn the_distance_of_a_set_to_itself_is_zero() {
        for (n, dims) in [(100, 12), (7, 30), (2, 3)] {
            let x = normal(n, dims, 5) + 3.0;
            let found = frechet(x.view(), x.view()).unwrap();
            assert!(found.distance < 1e-12 * (n * dims) as f64, "{found:?}");
            let moved = frechet(x.view(), shuffled(x.view(), 1).view()).unwrap();
            assert!(moved.distance < 1e-12 * (n * dims) as f64, "{moved:?}");
        }
    }

    #[test]
    fn rotations_and_order_do_not_matter() {
        let (x, y) = (normal(90, 10, 1), normal(70, 10, 2) * 1.2 + 0.1);
        let expected = frechet(x.view(), y.view()).unwrap().distance;
        let q = rotation(10, 3);
        let turned = |x: &Array2<f64>, seed| shuffled((x.dot(&q) + 5.0).view(), seed);
        close(frechet(turned(&x, 4).view(), turned(&y, 5).view()).unwrap().distance, expected, 1e-10);
        // In other units it is that of the square.
        close(frechet((&x * 1e4).view(), (&y * 1e4).view()).unwrap().distance, 1e8 * expected, 1e-10);
    }

    #[test]
    fn moments_are_those_of_all_batches() {
        let x = normal(5000, 40, 1) + 100.0;
        let whole = Moments::of(x.view()).unwrap();
        let mut parts = Moments::new(40);
        for rows in x.axis_chunks_iter(Axis(0), 333) {
            parts.add(rows).unwrap();
        }
        assert_eq!((whole.count(), parts.count()), (5000, 5000));
        let mean = x.mean_axis(Axis(0)).unwrap();
        let centred = &x - &mean;
        let covariance = centred.t().dot(&centred) / 4999.0;
        for moments in [&whole, &parts] {
            assert!((moments.mean() - &mean).iter().all(|d| d.abs() < 1e-11));
            assert!((moments.covariance() - &covariance).iter().all(|d| d.abs() < 1e-12));
        }
        // Weights are repetitions.
        let weights = resample(50, 1, "test", 0, 0);
        let rows: Vec<usize> = (0..50).flat_map(|i| vec![i; weights[i] as usize]).collect();
        let x = x.slice_axis(Axis(0), Slice::from(..50));
        let (drawn, weighted) =
            (Moments::of(x.select(Axis(0), &rows).view()).unwrap(), Moments::weighted(x, Some(&weights)));
        assert_eq!(weighted.count(), 50);
        assert!((drawn.covariance() - weighted.covariance()).iter().all(|d| d.abs() < 1e-12));
    }

    /// The mean error of the bootstrap against the spread of 200 pairs of sets.
    #[test]
    fn the_bootstrap_agrees_with_fresh_draws() {
        let pair = |seed| (normal(300, 3, 2 * seed), normal(200, 3, 2 * seed + 1) * 1.3 + 0.5);
        let distances: Vec<f64> = (0..200)
            .map(|seed| {
                let (x, y) = pair(seed);
                frechet(x.view(), y.view()).unwrap().distance
            })
            .collect();
        let spread = Estimate::of(&distances).standard_error.unwrap() * 200.0_f64.sqrt();
        let errors: Vec<f64> = (0..12)
            .map(|seed| {
                let (x, y) = pair(seed);
                frechet_error(x.view(), y.view(), 50, seed).unwrap()
            })
            .collect();
        let ratio = Estimate::of(&errors).mean / spread;
        assert!((ratio - 1.0).abs() < 0.25, "{ratio}");
        let (x, y) = pair(0);
        assert_eq!(frechet_error(x.view(), y.view(), 50, 0).unwrap(), errors[0]);
        assert!(frechet_error(x.view(), y.view(), 1, 0).is_err());
    }

    /// Few samples of the reference's own distribution: the distance is far from zero, the extrapolation is not.
    #[test]
    fn extrapolation_removes_the_bias() {
        let dims = 8;
        let reference = known(&[0.0; 8], Array2::eye(dims));
        let (mut plain, mut without) = (Vec::new(), Vec::new());
        for seed in 0..30 {
            let x = normal(400, dims, seed);
            plain.push(reference.distance(&Factored::of(&Moments::of(x.view()).unwrap()).unwrap()).unwrap().distance);
            let found = frechet_extrapolated(&reference, x.view(), 15, seed).unwrap();
            assert_eq!((found.points[0].0, found.points[14]), (40, (400, *plain.last().unwrap())));
            without.push(found.distance);
        }
        let (plain, without) = (Estimate::of(&plain), Estimate::of(&without));
        assert!(plain.mean > 20.0 * plain.standard_error.unwrap(), "{plain:?}");
        assert!(without.mean.abs() < 0.15 * plain.mean, "{without:?} of {plain:?}");
    }

    #[test]
    fn wrong_input_is_refused() {
        let x = normal(9, 3, 1);
        let message = |result: Result<Frechet, EvalError>| result.unwrap_err().to_string();
        assert!(message(frechet(x.view(), normal(9, 4, 1).view())).contains("3 as of the reference"));
        assert!(message(frechet(x.view(), normal(1, 3, 1).view())).contains("2 rows or more"));
        let skew = Moments::from_parts(5, array![0.0, 0.0], array![[1.0, 0.5], [0.0, 1.0]]);
        assert!(skew.unwrap_err().to_string().contains("symmetric"));
        assert!(Moments::from_parts(5, array![0.0], Array2::eye(2)).is_err());
        assert!(Moments::from_parts(1, array![0.0], Array2::eye(1)).is_err());
        let mut moments = Moments::of(x.view()).unwrap();
        assert!(moments.add(array![[1.0, f64::INFINITY, 0.0]].view()).is_err() && moments.count() == 9);
        assert!(Factored::of(&Moments::new(3)).is_err());
        let reference = Factored::of(&moments).unwrap();
        assert!(frechet_extrapolated(&reference, x.view(), 15, 0).is_err());
        assert!(frechet_extrapolated(&reference, normal(30, 3, 1).view(), 1, 0).is_err());
    }
}
