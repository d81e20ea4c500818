//! Tweedie's formula (FORMULAS 3.1; Robbins 1956, Efron 2011).

use ndarray::{Array1, ArrayView1, ArrayView2};

use crate::DenoiserError;

/// `E[mu | x] = x + S grad ln p(x)` for an observation `x ~ N(mu, S)` of an unknown `mu`, of which nothing is known but the
/// density `p` of `x`.
///
/// $$ \mathbb E [\mu \mid x] = x + S \nabla \log p(x) $$
///
/// `x` and `score` (`grad ln p(x)`) have `D` values, `covariance` (`S`) is `D x D` and positive semidefinite. The diffusion
/// case, where `x_t ~ N(alpha x_0, sigma^2 I)`, is the conversion of a score to `x_0` in
/// [`convert`](tweedie_schedule::prediction::convert) (FORMULAS 3.2).
///
/// # Errors
/// If the three do not agree in size.
///
/// FORMULAS 3.1. Verified by `tweedie_with_any_covariance`.
pub fn tweedie(
    x: ArrayView1<'_, f64>,
    covariance: ArrayView2<'_, f64>,
    score: ArrayView1<'_, f64>,
) -> Result<Array1<f64>, DenoiserError> {
    let size = x.len();
    if covariance.dim() != (size, size) || score.len() != size {
        return Err(DenoiserError::Shape {
            operation: "tweedie",
            what: "the covariance and the score",
            expected: format!("[{size}, {size}] and [{size}], as x"),
            found: format!("{:?} and {:?}", covariance.shape(), score.shape()),
            remedy: "give all three for the same D values",
        });
    }
    Ok(&x + &covariance.dot(&score))
}
