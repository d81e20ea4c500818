//! Channels of channels-last activations: concatenation, per-sample bias, residual sum, and change of layout.
//!
//! ```text
//! concat:    y[r] = [a[r], b[r]]                       da[r] += dy[r][..c_a],  db[r] += dy[r][c_a..]
//! add_bias:  y[n,p,c] += bias[n,c]                     dbias[n,c] += sum over p of dy[n,p,c]
//! add:       y += x
//! ```

use rayon::prelude::*;

use crate::par::{check_len, chunk_rows, rows_mut};

/// Joins the channels of `a` (`[rows, c_a]`) and `b` (`[rows, c_b]`) into `y` (`[rows, c_a + c_b]`).
///
/// # Panics
/// If a slice's length does not fit.
pub fn concat(rows: usize, a: &[f32], c_a: usize, b: &[f32], c_b: usize, y: &mut [f32]) {
    let c = c_a + c_b;
    check_len("concat", "a", a.len(), rows * c_a);
    check_len("concat", "b", b.len(), rows * c_b);
    check_len("concat", "y", y.len(), rows * c);
    rows_mut(y, c, |first, y| {
        for (i, y) in y.chunks_exact_mut(c).enumerate() {
            y[..c_a].copy_from_slice(&a[(first + i) * c_a..][..c_a]);
            y[c_a..].copy_from_slice(&b[(first + i) * c_b..][..c_b]);
        }
    });
}

/// The backward pass of [`concat()`]: `da += dy[.., ..c_a]`, `db += dy[.., c_a..]`.
///
/// # Panics
/// If a slice's length does not fit.
pub fn concat_backward(rows: usize, dy: &[f32], da: &mut [f32], c_a: usize, db: &mut [f32], c_b: usize) {
    let c = c_a + c_b;
    check_len("concat backward", "da", da.len(), rows * c_a);
    check_len("concat backward", "db", db.len(), rows * c_b);
    check_len("concat backward", "dy", dy.len(), rows * c);
    for (dx, c_x, offset) in [(da, c_a, 0), (db, c_b, c_a)] {
        rows_mut(dx, c_x, |first, dx| {
            for (i, dx) in dx.chunks_exact_mut(c_x).enumerate() {
                for (dx, dy) in dx.iter_mut().zip(&dy[(first + i) * c + offset..][..c_x]) {
                    *dx += dy;
                }
            }
        });
    }
}

/// `y[n,p,c] += bias[n,c]` for `y` of `[n, hw, c]`.
///
/// # Panics
/// If a slice's length does not fit.
pub fn add_bias(n: usize, hw: usize, c: usize, bias: &[f32], y: &mut [f32]) {
    check_len("add_bias", "y", y.len(), n * hw * c);
    check_len("add_bias", "bias", bias.len(), n * c);
    rows_mut(y, c, |first, y| {
        for (i, y) in y.chunks_exact_mut(c).enumerate() {
            for (y, bias) in y.iter_mut().zip(&bias[(first + i) / hw * c..][..c]) {
                *y += bias;
            }
        }
    });
}

/// The backward pass of [`add_bias`]: `dbias[n,c] += sum over p of dy[n,p,c]`.
///
/// # Panics
/// If a slice's length does not fit.
pub fn add_bias_backward(n: usize, hw: usize, c: usize, dy: &[f32], dbias: &mut [f32]) {
    check_len("add_bias backward", "dy", dy.len(), n * hw * c);
    check_len("add_bias backward", "dbias", dbias.len(), n * c);
    if dy.is_empty() {
        return;
    }
    let rows = chunk_rows(c);
    dbias.par_chunks_exact_mut(c).zip(dy.par_chunks_exact(hw * c)).for_each(|(dbias, dy)| {
        let mut sum = vec![0f32; c];
        for dy in dy.chunks(rows * c) {
            sum.fill(0.0);
            for dy in dy.chunks_exact(c) {
                for (sum, dy) in sum.iter_mut().zip(dy) {
                    *sum += dy;
                }
            }
            for (dbias, sum) in dbias.iter_mut().zip(&sum) {
                *dbias += sum;
            }
        }
    });
}

/// `y += x`.
///
/// # Panics
/// If the slices differ in length.
pub fn add(x: &[f32], y: &mut [f32]) {
    check_len("add", "y", y.len(), x.len());
    rows_mut(y, 1, |first, y| {
        for (y, x) in y.iter_mut().zip(&x[first..]) {
            *y += x;
        }
    });
}

/// `[n, c, hw]` to `[n, hw, c]`; `y` is overwritten.
///
/// # Panics
/// If a slice's length does not fit.
pub fn nchw_to_nhwc(n: usize, c: usize, hw: usize, x: &[f32], y: &mut [f32]) {
    transpose("nchw_to_nhwc", n, c, hw, x, y);
}

/// `[n, hw, c]` to `[n, c, hw]`; `y` is overwritten.
///
/// # Panics
/// If a slice's length does not fit.
pub fn nhwc_to_nchw(n: usize, c: usize, hw: usize, x: &[f32], y: &mut [f32]) {
    transpose("nhwc_to_nchw", n, hw, c, x, y);
}

/// `[n, rows, cols]` to `[n, cols, rows]`.
fn transpose(operation: &str, n: usize, rows: usize, cols: usize, x: &[f32], y: &mut [f32]) {
    check_len(operation, "x", x.len(), n * rows * cols);
    check_len(operation, "y", y.len(), n * rows * cols);
    rows_mut(y, rows, |first, y| {
        for (i, y) in y.chunks_exact_mut(rows).enumerate() {
            let (sample, col) = ((first + i) / cols, (first + i) % cols);
            let x = &x[sample * rows * cols..][..rows * cols];
            for (r, y) in y.iter_mut().enumerate() {
                *y = x[r * cols + col];
            }
        }
    });
}

#[cfg(test)]
mod tests;
