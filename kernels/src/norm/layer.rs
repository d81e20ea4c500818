//! Layer normalisation: each row by its own mean and variance (Ba, Kiros and Hinton 2016, arXiv:1607.06450, eq. 3 and 4).
//!
//! ```text
//! y[r, c] = (x[r, c] - mean_r) / sqrt(var_r + eps) gamma[c] + beta[c],   mean and variance over c
//! ```
//!
//! The forward pass alone: networks with it are run here, not trained.

use crate::lanes::{MAX_LANES, get, put};
use crate::par::{check_len, rows_mut};
use crate::simd::{Simd, WithSimd, dispatch};

/// Writes the normalised `rows` of `c` channels to `y`.
///
/// # Panics
/// If a slice does not have the size that `rows` and `c` say.
pub fn forward(rows: usize, c: usize, eps: f32, x: &[f32], gamma: &[f32], beta: &[f32], y: &mut [f32]) {
    check_len("layer norm", "x", x.len(), rows * c);
    check_len("layer norm", "y", y.len(), rows * c);
    check_len("layer norm", "gamma", gamma.len(), c);
    check_len("layer norm", "beta", beta.len(), c);
    rows_mut(y, c, |first, y| dispatch(Rows { c, eps, x: &x[first * c..][..y.len()], gamma, beta, y }));
}

struct Rows<'a> {
    c: usize,
    eps: f32,
    x: &'a [f32],
    gamma: &'a [f32],
    beta: &'a [f32],
    y: &'a mut [f32],
}

/// The sum of the lanes of a vector.
#[inline(always)]
fn sum<S: Simd>(s: S, v: S::V) -> f32 {
    let mut lanes = [0f32; MAX_LANES];
    put::<S, true>(s, &mut lanes, 0, v);
    lanes.iter().sum()
}

impl WithSimd for Rows<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { c, eps, x, gamma, beta, y } = self;
        let full = c / S::LANES * S::LANES;
        for (x, y) in x.chunks_exact(c).zip(y.chunks_exact_mut(c)) {
            let mut acc = s.splat(0.0);
            for i in (0..full).step_by(S::LANES) {
                acc = s.add(acc, get::<S, true>(s, x, i));
            }
            let mean = (sum(s, acc) + x[full..].iter().sum::<f32>()) / c as f32;
            // The second pass sums squares about the mean, which a large mean does not spoil.
            let (centre, mut acc) = (s.splat(mean), s.splat(0.0));
            for i in (0..full).step_by(S::LANES) {
                let centred = s.sub(get::<S, true>(s, x, i), centre);
                acc = s.fma(centred, centred, acc);
            }
            let rest: f32 = x[full..].iter().map(|x| (x - mean) * (x - mean)).sum();
            let variance = (sum(s, acc) + rest) / c as f32;
            let rstd = s.splat(1.0 / (variance + eps).sqrt());
            for i in (0..full).step_by(S::LANES) {
                let z = s.mul(s.sub(get::<S, true>(s, x, i), centre), rstd);
                put::<S, true>(s, y, i, s.fma(z, get::<S, true>(s, gamma, i), get::<S, true>(s, beta, i)));
            }
            if full < c {
                let z = s.mul(s.sub(get::<S, false>(s, x, full), centre), rstd);
                put::<S, false>(s, y, full, s.fma(z, get::<S, false>(s, gamma, full), get::<S, false>(s, beta, full)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, assert_same_bits_for_any_pool, numbers, wide};

    #[test]
    fn rows_agree_with_the_definition() {
        for (rows, c) in [(0, 4), (1, 1), (3, 7), (5, 16), (2, 37), (900, 64), (7, 768)] {
            for offset in [0.0, 300.0] {
                let x: Vec<f32> = numbers(rows * c, 1).iter().map(|x| x + offset).collect();
                let (gamma, beta) = (numbers(c, 2), numbers(c, 3));
                let mut y = vec![f32::NAN; x.len()];
                forward(rows, c, 1e-5, &x, &gamma, &beta, &mut y);
                let exact: Vec<f64> = wide(&x)
                    .chunks(c)
                    .flat_map(|x| {
                        let mean = x.iter().sum::<f64>() / c as f64;
                        let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / c as f64;
                        let rstd = 1.0 / (variance + f64::from(1e-5f32)).sqrt();
                        (0..c)
                            .map(|i| (x[i] - mean) * rstd * f64::from(gamma[i]) + f64::from(beta[i]))
                            .collect::<Vec<_>>()
                    })
                    .collect();
                // Of numbers near 300 the last places are lost in the difference from the mean.
                assert_close(&format!("{rows} {c} {offset}"), &y, &exact, if offset > 0.0 { 1e-4 } else { 2e-6 });
            }
        }
    }

    #[test]
    fn the_bits_do_not_depend_on_the_pool() {
        let (rows, c) = (900, 70);
        let (x, gamma, beta) = (numbers(rows * c, 1), numbers(c, 2), numbers(c, 3));
        assert_same_bits_for_any_pool(|| {
            let mut y = vec![f32::NAN; x.len()];
            forward(rows, c, 1e-5, &x, &gamma, &beta, &mut y);
            vec![y]
        });
    }
}
