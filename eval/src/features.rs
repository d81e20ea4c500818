//! What the metrics of images share: the checks of feature matrices, blocks of rows, keyed subsets.
//!
//! A feature matrix is `[N, D]`: one row of activations of some network for each image. The metrics know no network.

use ndarray::ArrayView2;
use ndarray_rand::rand::Rng;
use tweedie_denoiser::rng_for;

use crate::EvalError;

/// The quantile of the standard normal distribution that 97.5 % lie below: an interval of 95 % is a mean plus and minus
/// this many standard errors.
pub const Z95: f64 = 1.959_963_984_540_054;

/// Refuses a matrix that has fewer than `least` rows, no column, or a number that is none.
pub(crate) fn check(
    operation: &'static str,
    what: &'static str,
    x: ArrayView2<'_, f64>,
    least: usize,
) -> Result<(), EvalError> {
    let (n, dims) = x.dim();
    let fail = |expected: String, found: String, remedy| {
        Err(EvalError::Parameter { operation, what, expected, found, remedy })
    };
    if n < least {
        return fail(format!("{least} rows or more"), n.to_string(), "give more images");
    }
    if dims == 0 {
        return fail("one column or more".to_owned(), "none".to_owned(), "use a network that has features");
    }
    match x.indexed_iter().find(|(_, v)| !v.is_finite()) {
        Some(((row, column), value)) => fail(
            "finite".to_owned(),
            format!("{value} in row {row}, column {column}"),
            "look at that image and at the network",
        ),
        None => Ok(()),
    }
}

/// Refuses two matrices that do not describe images by the same features, or that are too small.
pub(crate) fn check_pair(
    operation: &'static str,
    reference: ArrayView2<'_, f64>,
    samples: ArrayView2<'_, f64>,
    least: usize,
) -> Result<(), EvalError> {
    check(operation, "the features of the reference", reference, least)?;
    check(operation, "the features of the samples", samples, least)?;
    check_dims(operation, reference.ncols(), samples.ncols())
}

/// Refuses numbers of features that differ.
pub(crate) fn check_dims(operation: &'static str, reference: usize, samples: usize) -> Result<(), EvalError> {
    if reference == samples {
        return Ok(());
    }
    Err(EvalError::Parameter {
        operation,
        what: "the number of features of the samples",
        expected: format!("{reference} as of the reference"),
        found: samples.to_string(),
        remedy: "compute both with one network",
    })
}

/// `count` different numbers below `n`, each set of them equally likely: the start of a Fisher-Yates shuffle that is keyed
/// by (seed, domain, a, b).
pub(crate) fn subset(n: usize, count: usize, seed: u64, domain: &str, a: u64, b: u64) -> Vec<usize> {
    let mut rng = rng_for(seed, domain, a, b);
    let mut order: Vec<usize> = (0..n).collect();
    for i in 0..count.min(n) {
        order.swap(i, rng.random_range(i..n));
    }
    order.truncate(count);
    order
}

/// How often each of `n` rows is drawn in `n` draws with replacement, keyed as [`subset`].
pub(crate) fn resample(n: usize, seed: u64, domain: &str, a: u64, b: u64) -> Vec<u32> {
    let mut rng = rng_for(seed, domain, a, b);
    let mut counts = vec![0; n];
    for _ in 0..n {
        counts[rng.random_range(0..n)] += 1;
    }
    counts
}

#[cfg(test)]
pub(crate) mod testing {
    use ndarray::{Array2, ArrayView2};
    use ndarray_rand::rand::Rng;
    use ndarray_rand::rand_distr::StandardNormal;
    use tweedie_denoiser::rng_for;

    /// `n` standard normal rows.
    pub fn normal(n: usize, dims: usize, seed: u64) -> Array2<f64> {
        let mut rng = rng_for(seed, "test/normal", n as u64, dims as u64);
        Array2::from_shape_simple_fn((n, dims), || rng.sample(StandardNormal))
    }

    /// A rotation: the Gram-Schmidt basis of random vectors.
    pub fn rotation(dims: usize, seed: u64) -> Array2<f64> {
        let mut q = normal(dims, dims, seed);
        for i in 0..dims {
            for _ in 0..2 {
                for j in 0..i {
                    let (of, onto) = (q.row(i).to_owned(), q.row(j).to_owned());
                    let along = of.dot(&onto);
                    q.row_mut(i).scaled_add(-along, &onto);
                }
            }
            let length = q.row(i).dot(&q.row(i)).sqrt();
            q.row_mut(i).mapv_inplace(|v| v / length);
        }
        q
    }

    /// The rows in another order.
    pub fn shuffled(x: ArrayView2<'_, f64>, seed: u64) -> Array2<f64> {
        x.select(ndarray::Axis(0), &super::subset(x.nrows(), x.nrows(), seed, "test/shuffle", 0, 0))
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, array};

    use super::*;

    #[test]
    fn subsets_have_different_members_and_every_one_is_as_likely() {
        let mut counts = [0; 10];
        for seed in 0..6000 {
            let mut chosen = subset(5, 2, seed, "test", 1, 2);
            chosen.sort_unstable();
            let (a, b) = (chosen[0], chosen[1]);
            assert!(a < b && b < 5);
            counts[b * (b - 1) / 2 + a] += 1;
        }
        // 600 of each, with a standard deviation of 23.
        assert!(counts.iter().all(|count| (485..715).contains(count)), "{counts:?}");
        let all = subset(7, 7, 3, "test", 0, 0);
        assert_eq!(all.iter().sum::<usize>(), 21);
        assert_eq!(all, subset(7, 7, 3, "test", 0, 0));
        assert_ne!(subset(100, 9, 3, "test", 0, 0), subset(100, 9, 3, "test", 1, 0));
    }

    #[test]
    fn resamples_have_as_many_draws_as_rows() {
        let counts = resample(1000, 0, "test", 0, 0);
        assert_eq!(counts.iter().sum::<u32>(), 1000);
        // exp(-1) of the rows are not drawn, with a standard deviation of 0.01.
        let missing = counts.iter().filter(|count| **count == 0).count();
        assert!((320..420).contains(&missing), "{missing}");
    }

    #[test]
    fn wrong_matrices_are_refused() {
        let good = array![[1.0, 2.0], [3.0, 4.0]];
        assert!(check_pair("test", good.view(), good.view(), 2).is_ok());
        let message =
            |x: &Array2<f64>, least| check_pair("test", good.view(), x.view(), least).unwrap_err().to_string();
        assert!(message(&good, 3).contains("3 rows or more"));
        assert!(message(&array![[1.0, 2.0], [3.0, f64::NAN]], 2).contains("NaN in row 1, column 1"));
        assert!(message(&Array2::zeros((2, 3)), 2).contains("2 as of the reference"));
        assert!(message(&Array2::zeros((2, 0)), 2).contains("one column"));
    }
}
