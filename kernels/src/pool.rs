//! Max-pooling over 2x2 windows with stride 2; a last odd row or column is left out, as in PyTorch.
//!
//! ```text
//! y[n,i,j,c] = max over a,b in {0,1} of x[n, 2i+a, 2j+b, c],   dx at the first maximum += dy
//! ```

use crate::par::{check_len, rows_mut};

/// Sizes of a pooling: the input is `[n, h, w, c]`, the output `[n, h/2, w/2, c]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxPoolDims {
    /// Samples.
    pub n: usize,
    /// Input height.
    pub h: usize,
    /// Input width.
    pub w: usize,
    /// Channels.
    pub c: usize,
}

impl MaxPoolDims {
    /// Output height.
    pub fn out_h(&self) -> usize {
        self.h / 2
    }
    /// Output width.
    pub fn out_w(&self) -> usize {
        self.w / 2
    }
    /// Elements of the input.
    pub fn in_len(&self) -> usize {
        self.n * self.h * self.w * self.c
    }
    /// Elements of the output.
    pub fn out_len(&self) -> usize {
        self.n * self.out_h() * self.out_w() * self.c
    }
}

/// Pools `x`, and records for each output which of its four inputs (`2a + b`) it came from.
///
/// The first of equal maxima is taken, and a NaN is taken for the greatest, as in PyTorch.
///
/// # Panics
/// If a slice's length is not that of `d`.
pub fn forward(d: &MaxPoolDims, x: &[f32], y: &mut [f32], argmax: &mut [u8]) {
    check_len("max-pool", "x", x.len(), d.in_len());
    check_len("max-pool", "y", y.len(), d.out_len());
    check_len("max-pool", "argmax", argmax.len(), d.out_len());
    let (row, c, out_w, out_h) = (d.out_w() * d.c, d.c, d.out_w(), d.out_h());
    let argmax = crate::par::Shared::new(argmax);
    rows_mut(y, row, |first, y| {
        // SAFETY: the rows of y are disjoint between tasks, and argmax has the same rows.
        let argmax = unsafe { argmax.part(first * row, y.len()) };
        for (i, (y, argmax)) in y.chunks_exact_mut(row).zip(argmax.chunks_exact_mut(row)).enumerate() {
            let (n, oh) = ((first + i) / out_h, (first + i) % out_h);
            let top = &x[(n * d.h + 2 * oh) * d.w * c..][..d.w * c];
            let bottom = &x[(n * d.h + 2 * oh + 1) * d.w * c..][..d.w * c];
            for j in 0..out_w {
                let y = &mut y[j * c..][..c];
                let argmax = &mut argmax[j * c..][..c];
                y.copy_from_slice(&top[2 * j * c..][..c]);
                argmax.fill(0);
                let others = [&top[(2 * j + 1) * c..][..c], &bottom[2 * j * c..][..c], &bottom[(2 * j + 1) * c..][..c]];
                for (k, x) in others.into_iter().enumerate() {
                    for ((y, argmax), x) in y.iter_mut().zip(argmax.iter_mut()).zip(x) {
                        // False also where the present maximum is a NaN, which therefore stays.
                        let greater = *x > *y || (x.is_nan() && !y.is_nan());
                        *y = if greater { *x } else { *y };
                        *argmax = if greater { k as u8 + 1 } else { *argmax };
                    }
                }
            }
        }
    });
}

/// `dx[argmax] += dy`.
///
/// # Panics
/// If a slice's length is not that of `d`.
pub fn backward(d: &MaxPoolDims, argmax: &[u8], dy: &[f32], dx: &mut [f32]) {
    check_len("max-pool backward", "argmax", argmax.len(), d.out_len());
    check_len("max-pool backward", "dy", dy.len(), d.out_len());
    check_len("max-pool backward", "dx", dx.len(), d.in_len());
    if d.out_len() == 0 {
        return;
    }
    let (c, out_w, out_h) = (d.c, d.out_w(), d.out_h());
    rows_mut(dx, d.w * c, |first, dx| {
        for (i, dx) in dx.chunks_exact_mut(d.w * c).enumerate() {
            let (n, h) = ((first + i) / d.h, (first + i) % d.h);
            if h >= 2 * out_h {
                continue;
            }
            let out = (n * out_h + h / 2) * out_w * c;
            let (dy, argmax) = (&dy[out..][..out_w * c], &argmax[out..][..out_w * c]);
            for j in 0..2 * out_w {
                let position = (2 * (h % 2) + j % 2) as u8;
                let (dy, argmax) = (&dy[j / 2 * c..][..c], &argmax[j / 2 * c..][..c]);
                for ((dx, dy), argmax) in dx[j * c..][..c].iter_mut().zip(dy).zip(argmax) {
                    *dx += if *argmax == position { *dy } else { 0.0 };
                }
            }
        }
    });
}

#[cfg(test)]
mod tests;
