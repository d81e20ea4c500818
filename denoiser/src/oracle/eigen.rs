//! The eigen-decomposition of a symmetric matrix by cyclic Jacobi rotations (Golub & Van Loan, Matrix Computations, section
//! 8.5): each rotation makes one pair of off-diagonal entries 0, and sweeps over all pairs converge quadratically.

use ndarray::{Array1, Array2};

/// More sweeps than any matrix needs: convergence is quadratic, and 512 x 512 takes about ten.
const SWEEPS: usize = 64;

/// `A = U diag(values) U^T` with orthonormal columns in `U`; `None` if a number overflows or the sweeps do not converge, as
/// they do for finite matrices. Only the symmetric part of `a` is read.
pub(super) fn symmetric(a: &Array2<f64>) -> Option<(Array1<f64>, Array2<f64>)> {
    let n = a.nrows();
    let mut a = (a + &a.t()) * 0.5;
    // Row k of `rows` is the eigenvector k: rows are contiguous, columns are not.
    let mut rows = Array2::eye(n);
    for _ in 0..SWEEPS {
        let mut rotated = false;
        for p in 0..n {
            for q in p + 1..n {
                let (pp, qq, pq) = (a[[p, p]], a[[q, q]], a[[p, q]]);
                // Too small to change a digit of either eigenvalue.
                if pq == 0.0 || pq.abs() <= f64::EPSILON * 0.5 * pp.abs().sqrt() * qq.abs().sqrt() {
                    continue;
                }
                rotated = true;
                let theta = (qq - pp) / (2.0 * pq);
                let tan = theta.signum() / (theta.abs() + theta.hypot(1.0));
                let cos = tan.hypot(1.0).recip();
                let sin = tan * cos;
                rotate(&mut a, p, q, cos, sin);
                for k in 0..n {
                    a[[k, p]] = a[[p, k]];
                    a[[k, q]] = a[[q, k]];
                }
                a[[p, p]] = pp - tan * pq;
                a[[q, q]] = qq + tan * pq;
                a[[p, q]] = 0.0;
                a[[q, p]] = 0.0;
                rotate(&mut rows, p, q, cos, sin);
            }
        }
        if !rotated {
            let values = a.diag().to_owned();
            let finite = values.iter().all(|v| v.is_finite());
            return finite.then(|| (values, rows.reversed_axes().as_standard_layout().into_owned()));
        }
    }
    None
}

/// Rows p and q of a matrix become `cos p - sin q` and `sin p + cos q`.
fn rotate(matrix: &mut Array2<f64>, p: usize, q: usize, cos: f64, sin: f64) {
    for k in 0..matrix.ncols() {
        let (at_p, at_q) = (matrix[[p, k]], matrix[[q, k]]);
        matrix[[p, k]] = cos * at_p - sin * at_q;
        matrix[[q, k]] = sin * at_p + cos * at_q;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn residual(a: &Array2<f64>) -> Result<(), TestCaseError> {
        let (values, vectors) = symmetric(a).unwrap();
        let n = a.nrows();
        let scale = a.iter().fold(0.0_f64, |m, v| m.max(v.abs())).max(f64::MIN_POSITIVE);
        let back = vectors.dot(&Array2::from_diag(&values)).dot(&vectors.t());
        prop_assert!((&back - a).iter().all(|e| e.abs() < 1e-13 * n as f64 * scale), "{back} instead of {a}");
        let identity = vectors.t().dot(&vectors);
        prop_assert!((&identity - &Array2::<f64>::eye(n)).iter().all(|e| e.abs() < 1e-13 * n as f64));
        Ok(())
    }

    proptest! {
        /// U diag(values) U^T is the matrix and U^T U the identity, at any scale of the entries.
        #[test]
        fn eigen_rebuilds_the_matrix(n in 1..9_usize, entries in prop::collection::vec(-1.0..1.0_f64, 64), scale in -100..100_i32) {
            let half = Array2::from_shape_fn((n, n), |(i, j)| entries[8 * i + j] * 10.0_f64.powi(scale));
            residual(&(&half + &half.t()))?;
        }

        /// Gram matrices of fewer vectors than dimensions: repeated eigenvalues at 0.
        #[test]
        fn eigen_of_rank_deficient_matrices(n in 2..9_usize, rank in 1..4_usize, entries in prop::collection::vec(-1.0..1.0_f64, 64)) {
            let half = Array2::from_shape_fn((n, rank.min(n - 1)), |(i, j)| entries[8 * i + j]);
            let gram = half.dot(&half.t());
            residual(&gram)?;
            let (values, _) = symmetric(&gram).unwrap();
            let zeros = values.iter().filter(|v| v.abs() < 1e-13).count();
            prop_assert!(zeros >= n - rank.min(n - 1), "{values}");
        }
    }

    #[test]
    fn eigen_of_known_matrices() {
        let (values, _) = symmetric(&ndarray::array![[2.0, 1.0], [1.0, 2.0]]).unwrap();
        assert!((values[0] - 1.0).abs() < 1e-15 && (values[1] - 3.0).abs() < 1e-15, "{values}");
        // Diagonal matrices are returned as they are, whatever the ratio of their entries.
        let graded = ndarray::array![1.0, 1e-30, 1e20];
        let (values, vectors) = symmetric(&Array2::from_diag(&graded)).unwrap();
        assert_eq!((values, vectors), (graded, Array2::eye(3)));
        assert!(symmetric(&ndarray::array![[1.0, f64::NAN], [f64::NAN, 1.0]]).is_none());
    }
}
