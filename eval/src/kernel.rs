//! The kernel distance of two sets of features (KID, Bińkowski et al. 2018): the squared maximum mean discrepancy with a
//! cubic kernel, estimated without bias for any number of samples (Gretton et al. 2012, eq. 3):
//!
//! ```text
//! k(x, y) = (x . y / D + 1)^3
//! MMD^2 = 1/(n (n - 1)) sum_{i != j} k(x_i, x_j) + 1/(m (m - 1)) sum_{i != j} k(y_i, y_j) - 2/(n m) sum_{i, j} k(x_i, y_j)
//! ```
//!
//! Its expectation is zero for samples of one distribution, so that it may be negative. The convention is the mean over random
//! subsets ([`kid`]); the same from all pairs, with the error of another draw, is [`mmd2`].

use ndarray::{Array2, ArrayView2, Axis};
use rayon::prelude::*;

use crate::features::{check_pair, subset};
use crate::{Estimate, EvalError};

const OPERATION: &str = "kernel distance";
/// Rows of the kernel matrix that are computed at once.
const ROWS: usize = 128;

/// How a kernel distance is estimated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KidOptions {
    /// Number of subsets.
    pub subsets: usize,
    /// Rows of each set in a subset; fewer where there are fewer.
    pub size: usize,
    /// The seed of the subsets.
    pub seed: u64,
}

impl Default for KidOptions {
    /// 100 subsets of 1,000 rows, as by Bińkowski et al.
    fn default() -> Self {
        Self { subsets: 100, size: 1000, seed: 0 }
    }
}

/// A kernel distance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Kid {
    /// Mean and standard error over the subsets. They overlap, so that the error tells how far other subsets of the same
    /// images would fall; that of other images is that of [`mmd2`].
    pub subsets: Estimate,
    /// The standard deviation over the subsets.
    pub deviation: f64,
    /// Rows of a subset.
    pub size: usize,
}

/// The kernel distance by random subsets without replacement, of `reference` `[N, D]` and `samples` `[M, D]`.
///
/// # Errors
/// If the numbers of features differ, there are fewer than two rows, a value is not finite, or there is no subset or one of
/// fewer than two rows.
///
/// Verified by `the_estimate_is_unbiased`. Verified by `figures_of_python`.
pub fn kid(
    reference: ArrayView2<'_, f64>,
    samples: ArrayView2<'_, f64>,
    options: KidOptions,
) -> Result<Kid, EvalError> {
    check_pair(OPERATION, reference, samples, 2)?;
    let positive = |what, least: usize, found: usize, remedy| match found < least {
        true => Err(EvalError::Parameter {
            operation: OPERATION,
            what,
            expected: format!("{least} or more"),
            found: found.to_string(),
            remedy,
        }),
        false => Ok(()),
    };
    positive("the number of subsets", 1, options.subsets, "100 are usual")?;
    positive("the size of the subsets", 2, options.size, "1000 is usual")?;
    let size = options.size.min(reference.nrows()).min(samples.nrows());
    let values: Vec<f64> = (0..options.subsets)
        .into_par_iter()
        .map(|s| {
            let part = |x: ArrayView2<'_, f64>, side| {
                x.select(Axis(0), &subset(x.nrows(), size, options.seed, "eval/kid", s as u64, side))
            };
            let (x, y) = (part(reference, 0), part(samples, 1));
            Sums::of(x.view(), y.view()).value()
        })
        .collect();
    let subsets = Estimate::of(&values);
    let deviation = subsets.standard_error.map_or(0.0, |e| e * (values.len() as f64).sqrt());
    Ok(Kid { subsets, deviation, size })
}

/// The kernel distance from all pairs, with a standard error by the jackknife over the rows of both sets, which is on the
/// safe side (Efron & Stein 1981): its square is twice the variance where both sets come from one distribution, and close to
/// it where they do not.
///
/// # Errors
/// As [`kid`]; also for fewer than three rows.
///
/// Verified by `the_estimate_is_unbiased`. Verified by `figures_of_python`.
pub fn mmd2(reference: ArrayView2<'_, f64>, samples: ArrayView2<'_, f64>) -> Result<Estimate, EvalError> {
    check_pair(OPERATION, reference, samples, 3)?;
    let sums = Sums::of(reference, samples);
    Ok(Estimate {
        mean: sums.value(),
        standard_error: Some(sums.jackknife()),
        count: samples.nrows().min(reference.nrows()),
    })
}

/// Sums of kernel matrices over their rows.
struct Sums {
    /// `sum_{j != i} k(x_i, x_j)`.
    xx: Vec<f64>,
    yy: Vec<f64>,
    /// `sum_j k(x_i, y_j)` for each i.
    xy: Vec<f64>,
    /// `sum_i k(x_i, y_j)` for each j.
    yx: Vec<f64>,
}

impl Sums {
    fn of(x: ArrayView2<'_, f64>, y: ArrayView2<'_, f64>) -> Self {
        let (xy, yx) = cross(x, y);
        Self { xx: within(x), yy: within(y), xy, yx }
    }

    fn value(&self) -> f64 {
        let (n, m) = (self.xx.len() as f64, self.yy.len() as f64);
        let sum = |v: &[f64]| v.iter().sum::<f64>();
        sum(&self.xx) / (n * (n - 1.0)) + sum(&self.yy) / (m * (m - 1.0)) - 2.0 * sum(&self.xy) / (n * m)
    }

    /// `sqrt` of the sum over both sets of `(n - 1) / n sum (v_i - mean)^2` of the values without row i.
    fn jackknife(&self) -> f64 {
        let sum = |v: &[f64]| v.iter().sum::<f64>();
        let (xx, yy, xy) = (sum(&self.xx), sum(&self.yy), sum(&self.xy));
        let without = |within: f64, rows: &[f64], other: f64, of_other: f64, across: &[f64]| {
            let (n, m) = (rows.len() as f64, of_other);
            let values: Vec<f64> = rows
                .iter()
                .zip(across)
                .map(|(own, across)| {
                    (within - 2.0 * own) / ((n - 1.0) * (n - 2.0)) + other / (m * (m - 1.0))
                        - 2.0 * (xy - across) / ((n - 1.0) * m)
                })
                .collect();
            let mean = sum(&values) / n;
            (n - 1.0) / n * values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>()
        };
        let of_x = without(xx, &self.xx, yy, self.yy.len() as f64, &self.xy);
        let of_y = without(yy, &self.yy, xx, self.xx.len() as f64, &self.yx);
        (of_x + of_y).sqrt()
    }
}

/// `k(x_i, y_j)` of some rows of x and all of y.
fn block(x: ArrayView2<'_, f64>, y: ArrayView2<'_, f64>) -> Array2<f64> {
    let scale = 1.0 / x.ncols() as f64;
    let mut kernel = x.dot(&y.t());
    kernel.mapv_inplace(|dot| {
        let base = dot * scale + 1.0;
        base * base * base
    });
    kernel
}

fn within(x: ArrayView2<'_, f64>) -> Vec<f64> {
    let blocks: Vec<_> = x.axis_chunks_iter(Axis(0), ROWS).collect();
    let sums: Vec<Vec<f64>> = blocks
        .into_par_iter()
        .enumerate()
        .map(|(b, rows)| {
            let kernel = block(rows, x);
            kernel.outer_iter().enumerate().map(|(i, row)| row.sum() - row[b * ROWS + i]).collect()
        })
        .collect();
    sums.concat()
}

fn cross(x: ArrayView2<'_, f64>, y: ArrayView2<'_, f64>) -> (Vec<f64>, Vec<f64>) {
    let blocks: Vec<_> = x.axis_chunks_iter(Axis(0), ROWS).collect();
    let sums: Vec<(Vec<f64>, Vec<f64>)> = blocks
        .into_par_iter()
        .map(|rows| {
            let kernel = block(rows, y);
            (kernel.sum_axis(Axis(1)).to_vec(), kernel.sum_axis(Axis(0)).to_vec())
        })
        .collect();
    let mut of_columns = vec![0.0; y.nrows()];
    for (_, part) in &sums {
        of_columns.iter_mut().zip(part).for_each(|(sum, v)| *sum += v);
    }
    (sums.into_iter().flat_map(|(rows, _)| rows).collect(), of_columns)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::testing::{normal, shuffled};

    /// Every term written out.
    fn by_hand(x: &Array2<f64>, y: &Array2<f64>) -> f64 {
        let k = |a: ndarray::ArrayView1<'_, f64>, b: ndarray::ArrayView1<'_, f64>| {
            (a.dot(&b) / a.len() as f64 + 1.0).powi(3)
        };
        let own = |x: &Array2<f64>| {
            let n = x.nrows();
            let pairs = (0..n).flat_map(|i| (0..n).filter(move |j| *j != i).map(move |j| (i, j)));
            pairs.map(|(i, j)| k(x.row(i), x.row(j))).sum::<f64>() / (n * (n - 1)) as f64
        };
        let across: f64 = x.outer_iter().map(|a| y.outer_iter().map(|b| k(a, b)).sum::<f64>()).sum();
        own(x) + own(y) - 2.0 * across / (x.nrows() * y.nrows()) as f64
    }

    #[test]
    fn values_known_by_hand() {
        // D = 1: k is 1 for 0 and 0, 8 for 1 and 1, 1 for 0 and 1.
        let (x, y) = (ndarray::array![[0.0], [0.0]], ndarray::array![[1.0], [1.0]]);
        let kid = kid(x.view(), y.view(), KidOptions { subsets: 3, size: 9, seed: 1 }).unwrap();
        assert_eq!((kid.subsets.mean, kid.deviation, kid.size), (1.0 + 8.0 - 2.0, 0.0, 2));
        // 130 and 300 rows are more than a block.
        let (x, y) = (normal(130, 7, 1), normal(300, 7, 2) * 1.3);
        let (found, expected) = (mmd2(x.view(), y.view()).unwrap(), by_hand(&x, &y));
        assert!((found.mean / expected - 1.0).abs() < 1e-11, "{} instead of {expected}", found.mean);
        let moved = mmd2(shuffled(x.view(), 3).view(), shuffled(y.view(), 4).view()).unwrap();
        assert!((moved.mean / expected - 1.0).abs() < 1e-11);
        // The jackknife, by leaving out one row after the other.
        let (x, y) = (normal(6, 2, 3), normal(8, 2, 4) + 0.5);
        let without = |x: &Array2<f64>, i: usize| {
            let kept: Vec<usize> = (0..x.nrows()).filter(|j| *j != i).collect();
            x.select(Axis(0), &kept)
        };
        let part = |values: Vec<f64>| {
            let n = values.len() as f64;
            Estimate::of(&values).standard_error.unwrap().powi(2) * (n - 1.0).powi(2)
        };
        let of_x = part((0..6).map(|i| by_hand(&without(&x, i), &y)).collect());
        let of_y = part((0..8).map(|i| by_hand(&x, &without(&y, i))).collect());
        let error = mmd2(x.view(), y.view()).unwrap().standard_error.unwrap();
        assert!((error / (of_x + of_y).sqrt() - 1.0).abs() < 1e-10, "{error}");
    }

    /// 600 pairs of small sets of one distribution: the mean of both estimates is zero, five standard errors wide; and the
    /// jackknife's error is at least the spread, but not twice as much.
    #[test]
    fn the_estimate_is_unbiased() {
        let (mut subsets, mut whole, mut variances) = (Vec::new(), Vec::new(), Vec::new());
        for seed in 0..600 {
            let (x, y) = (normal(30, 4, 2 * seed), normal(25, 4, 2 * seed + 1));
            let options = KidOptions { subsets: 4, size: 12, seed };
            subsets.push(kid(x.view(), y.view(), options).unwrap().subsets.mean);
            let found = mmd2(x.view(), y.view()).unwrap();
            whole.push(found.mean);
            variances.push(found.standard_error.unwrap().powi(2));
        }
        for values in [&subsets, &whole] {
            let found = Estimate::of(values);
            assert!(found.mean.abs() < 5.0 * found.standard_error.unwrap(), "{found:?}");
        }
        let spread = Estimate::of(&whole).standard_error.unwrap().powi(2) * 600.0;
        let ratio = Estimate::of(&variances).mean / spread;
        assert!((1.0..3.0).contains(&ratio), "{ratio}");
        // It is told apart from another one.
        let (x, y) = (normal(400, 4, 1), normal(400, 4, 2) * 1.5);
        let found = mmd2(x.view(), y.view()).unwrap();
        assert!(found.mean > 5.0 * found.standard_error.unwrap(), "{found:?}");
    }

    #[test]
    fn subsets_follow_the_seed_and_input_is_checked() {
        let (x, y) = (normal(40, 3, 1), normal(50, 3, 2));
        let of = |options| kid(x.view(), y.view(), options).unwrap();
        let options = KidOptions { subsets: 5, size: 10, seed: 7 };
        assert_eq!(of(options), of(options));
        assert_ne!(of(options), of(KidOptions { seed: 8, ..options }));
        assert_eq!(of(KidOptions::default()).size, 40);
        let single = of(KidOptions { subsets: 1, ..options });
        assert_eq!((single.subsets.standard_error, single.deviation), (None, 0.0));
        for wrong in [KidOptions { subsets: 0, ..options }, KidOptions { size: 1, ..options }] {
            assert!(kid(x.view(), y.view(), wrong).is_err());
        }
        assert!(mmd2(x.view(), normal(2, 3, 1).view()).is_err());
    }
}
