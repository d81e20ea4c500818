//! Upsampling by two.
//!
//! ```text
//! nearest:   y[i] = x[i/2]
//! bilinear:  along each axis y[2i] = (x[i-1] + 3 x[i])/4,  y[2i+1] = (3 x[i] + x[i+1])/4,  indices clamped to the edge
//! ```
//!
//! The second is PyTorch's `interpolate(mode="bilinear", align_corners=False)` at a scale of two.

use crate::par::{check_len, rows_mut};

/// How new pixels are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resample {
    /// Each pixel is repeated.
    Nearest,
    /// Linear interpolation between pixel centres, edges repeated.
    Bilinear,
}

/// Sizes of an upsampling: the input is `[n, h, w, c]`, the output `[n, 2h, 2w, c]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResampleDims {
    /// Samples.
    pub n: usize,
    /// Input height.
    pub h: usize,
    /// Input width.
    pub w: usize,
    /// Channels.
    pub c: usize,
}

impl ResampleDims {
    /// Elements of the input.
    pub fn in_len(&self) -> usize {
        self.n * self.h * self.w * self.c
    }
    /// Elements of the output.
    pub fn out_len(&self) -> usize {
        4 * self.in_len()
    }
}

/// Input index of the far neighbour of output `o` on an axis of `len` inputs, clamped to the edge.
fn far(o: usize, len: usize) -> usize {
    if o.is_multiple_of(2) { (o / 2).saturating_sub(1) } else { (o / 2 + 1).min(len - 1) }
}

/// Output indices that input `i` contributes to on an axis of `len` inputs, with their weights.
///
/// The clamped indices make the edge outputs count once more with weight 1/4, which is what the edge rule asks for.
fn targets(i: usize, len: usize) -> [(usize, f32); 4] {
    [((2 * i).saturating_sub(1), 0.25), (2 * i, 0.75), (2 * i + 1, 0.75), ((2 * i + 2).min(2 * len - 1), 0.25)]
}

/// Upsamples `x` into `y`.
///
/// # Panics
/// If a slice's length is not that of `d`.
pub fn forward(d: &ResampleDims, mode: Resample, x: &[f32], y: &mut [f32]) {
    check_len("upsample", "x", x.len(), d.in_len());
    check_len("upsample", "y", y.len(), d.out_len());
    let (c, row_in, row_out) = (d.c, d.w * d.c, 2 * d.w * d.c);
    rows_mut(y, row_out, |first, y| {
        for (i, y) in y.chunks_exact_mut(row_out).enumerate() {
            let (n, oh) = ((first + i) / (2 * d.h), (first + i) % (2 * d.h));
            let near = &x[(n * d.h + oh / 2) * row_in..][..row_in];
            match mode {
                Resample::Nearest => {
                    for (j, y) in y.chunks_exact_mut(c).enumerate() {
                        y.copy_from_slice(&near[j / 2 * c..][..c]);
                    }
                }
                Resample::Bilinear => {
                    let far_row = &x[(n * d.h + far(oh, d.h)) * row_in..][..row_in];
                    for (j, y) in y.chunks_exact_mut(c).enumerate() {
                        let (a, b) = (j / 2 * c, far(j, d.w) * c);
                        let (nn, nf) = (&near[a..][..c], &near[b..][..c]);
                        let (fn_, ff) = (&far_row[a..][..c], &far_row[b..][..c]);
                        for k in 0..c {
                            let top = 0.75 * nn[k] + 0.25 * nf[k];
                            let bottom = 0.75 * fn_[k] + 0.25 * ff[k];
                            y[k] = 0.75 * top + 0.25 * bottom;
                        }
                    }
                }
            }
        }
    });
}

/// The transpose of [`forward`], added to `dx`.
///
/// # Panics
/// If a slice's length is not that of `d`.
pub fn backward(d: &ResampleDims, mode: Resample, dy: &[f32], dx: &mut [f32]) {
    check_len("upsample backward", "dy", dy.len(), d.out_len());
    check_len("upsample backward", "dx", dx.len(), d.in_len());
    let (c, row_in, row_out) = (d.c, d.w * d.c, 2 * d.w * d.c);
    rows_mut(dx, row_in, |first, dx| {
        for (i, dx) in dx.chunks_exact_mut(row_in).enumerate() {
            let (n, h) = ((first + i) / d.h, (first + i) % d.h);
            let row = |oh: usize| &dy[(n * 2 * d.h + oh) * row_out..][..row_out];
            for (w, dx) in dx.chunks_exact_mut(c).enumerate() {
                match mode {
                    Resample::Nearest => {
                        let (top, bottom) = (&row(2 * h)[2 * w * c..], &row(2 * h + 1)[2 * w * c..]);
                        for k in 0..c {
                            dx[k] += (top[k] + top[c + k]) + (bottom[k] + bottom[c + k]);
                        }
                    }
                    Resample::Bilinear => {
                        let columns = targets(w, d.w);
                        for (oh, weight) in targets(h, d.h) {
                            let row = row(oh);
                            let [a, b, e, f] = columns.map(|(ow, _)| &row[ow * c..][..c]);
                            for k in 0..c {
                                dx[k] += weight * (0.75 * (b[k] + e[k]) + 0.25 * (a[k] + f[k]));
                            }
                        }
                    }
                }
            }
        }
    });
}

#[cfg(test)]
mod tests;
