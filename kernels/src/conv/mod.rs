//! Convolution (cross-correlation) with a 3x3 or 1x1 filter, stride 1 or 2, and the linear layer as its special case.
//!
//! ```text
//! y[n, i, j, o]   = b[o] + sum_{u, v, c} w[o, c, u, v] x[n, s i + u - p, s j + v - p, c]
//! dx[n, k, l, c] += sum_{o, u, v : s i + u - p = k, s j + v - p = l} w[o, c, u, v] dy[n, i, j, o]
//! dw[o, c, u, v] += sum_{n, i, j} dy[n, i, j, o] x[n, s i + u - p, s j + v - p, c]
//! ```
//!
//! All three are matrix products whose left operand is never built: a tile of output rows holds one pointer per row
//! and filter tap to the channels of the input pixel it meets, or to zeros outside the picture (the "indirect
//! convolution" of Dukhan 2019, arXiv:1907.02129). Channels-last storage makes each of them a contiguous run.

mod direct;
mod gather;
mod gather_weight;
mod joined;
mod narrow;
mod pack;
mod part;
#[cfg(test)]
mod reference;
mod stream;
#[cfg(test)]
mod tests;
mod thin;
mod tile;
mod turned;
mod upsampled;
mod window;
mod winograd;

pub use joined::{backward_input_joined, backward_weight_joined, forward_joined};
pub use pack::{Direction, Filter};
pub use part::{Part, Target};
pub use upsampled::forward_upsampled;

use gather::Tap;

/// Tasks that keep many threads busy; the partition must not depend on how many there are.
const TASKS: usize = 16;

/// Sizes of a convolution. Activations are `[n, h, w, c_in]` and `[n, out_h, out_w, c_out]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvDims {
    /// Pictures in the batch.
    pub n: usize,
    /// Height of the input.
    pub h: usize,
    /// Width of the input.
    pub w: usize,
    /// Channels of the input.
    pub c_in: usize,
    /// Channels of the output.
    pub c_out: usize,
    /// Side of the filter: 1 or 3.
    pub kernel: usize,
    /// Step of the filter: 1 or 2.
    pub stride: usize,
    /// Rows of zeros above and columns of zeros to the left of the input.
    pub pad_before: usize,
    /// Rows of zeros below and columns of zeros to the right of the input.
    pub pad_after: usize,
}

impl ConvDims {
    /// A stride-1 convolution whose output has the size of its input.
    pub fn same(n: usize, h: usize, w: usize, c_in: usize, c_out: usize, kernel: usize) -> Self {
        let pad = kernel / 2;
        Self { n, h, w, c_in, c_out, kernel, stride: 1, pad_before: pad, pad_after: pad }
    }

    /// The linear layer on `rows` vectors.
    pub fn linear(rows: usize, c_in: usize, c_out: usize) -> Self {
        Self::same(rows, 1, 1, c_in, c_out, 1)
    }

    /// Height of the output.
    pub fn out_h(&self) -> usize {
        self.out_side(self.h)
    }

    /// Width of the output.
    pub fn out_w(&self) -> usize {
        self.out_side(self.w)
    }

    fn out_side(&self, side: usize) -> usize {
        let padded = side + self.pad_before + self.pad_after;
        if padded < self.kernel { 0 } else { (padded - self.kernel) / self.stride + 1 }
    }

    /// Pixels of the whole output batch.
    pub fn out_pixels(&self) -> usize {
        self.n * self.out_h() * self.out_w()
    }

    /// Floats of the input.
    pub fn in_len(&self) -> usize {
        self.n * self.h * self.w * self.c_in
    }

    /// Floats of the output.
    pub fn out_len(&self) -> usize {
        self.out_pixels() * self.c_out
    }

    /// Floats of the filter.
    pub fn weight_len(&self) -> usize {
        self.c_out * self.c_in * self.taps()
    }

    /// Floating-point operations of the forward pass, a multiplication and an addition counted as two.
    pub fn flops(&self) -> u64 {
        2 * self.out_pixels() as u64 * (self.c_in * self.c_out * self.taps()) as u64
    }

    fn taps(&self) -> usize {
        self.kernel * self.kernel
    }

    fn each_tap(&self) -> Vec<Tap> {
        (0..self.kernel).flat_map(|u| (0..self.kernel).map(move |v| (u, v))).collect()
    }

    fn check(&self, operation: &str, x: usize, y: usize) {
        assert!(matches!(self.kernel, 1 | 3), "{operation}: the filter's side should be 1 or 3, found {}", self.kernel);
        assert!(matches!(self.stride, 1 | 2), "{operation}: the stride should be 1 or 2, found {}", self.stride);
        let sizes = [self.n, self.h + self.pad_before + self.pad_after, self.w + self.pad_before + self.pad_after];
        let widest = self.c_in.max(self.c_out).max(1);
        let floats = sizes.iter().try_fold(widest, |product, size| product.checked_mul(*size));
        assert!(floats.is_some_and(|floats| floats <= isize::MAX as usize / 4), "{operation}: {self:?} is too large");
        assert_eq!(x, self.in_len(), "{operation}: floats of the input for {self:?}");
        assert_eq!(y, self.out_len(), "{operation}: floats of the output for {self:?}");
    }
}

/// How a convolution is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Algorithm {
    /// A matrix product whose left operand is gathered from the input.
    Gather,
    /// Tiles of up to 4x4 outputs with as little as a quarter of the multiplications.
    Winograd,
}

impl ConvDims {
    /// The algorithm for this shape, given whether its filter comes in transformed form, too.
    fn algorithm(&self, transformed: bool) -> Algorithm {
        let same_size = self.stride == 1 && (self.pad_before, self.pad_after) == (1, 1);
        match transformed {
            true if same_size => Algorithm::Winograd,
            _ => Algorithm::Gather,
        }
    }
}

/// The forward pass; `y` is overwritten. Without a bias, zeros are added.
///
/// # Panics
/// If a slice or the filter does not have the size that `d` says.
pub fn forward(d: &ConvDims, x: &[f32], filter: &Filter, bias: Option<&[f32]>, y: &mut [f32]) {
    d.check("conv::forward", x.len(), y.len());
    forward_joined(d, &[Part::plain(x, d.c_in)], filter, bias, Target::overwrite(y, d.c_out));
}

/// The gradient of the input, added to `dx`.
///
/// # Panics
/// If a slice or the filter does not have the size that `d` says, or the filter was packed without its backward half.
pub fn backward_input(d: &ConvDims, filter: &Filter, dy: &[f32], dx: &mut [f32]) {
    backward_input_joined(d, filter, dy, &mut [Target::accumulate(dx, d.c_in)]);
}

/// The gradient of the filter, added to `dw` `[c_out, c_in, kernel, kernel]`, and of the bias, added to `db` `[c_out]`.
///
/// # Panics
/// If a slice does not have the size that `d` says.
pub fn backward_weight(d: &ConvDims, x: &[f32], dy: &[f32], dw: &mut [f32], db: Option<&mut [f32]>) {
    d.check("conv::backward_weight", x.len(), dy.len());
    backward_weight_joined(d, &[Part::plain(x, d.c_in)], dy, dw, db);
}

/// Row `index` of `[n, h, w]` as picture, row and column.
#[inline(always)]
fn split(index: usize, h: usize, w: usize) -> (usize, usize, usize) {
    (index / w / h, index / w % h, index % w)
}

/// The pixel at row `i - pad`, column `j - pad` of picture `n`, unless it lies outside.
#[inline(always)]
fn source(n: usize, i: usize, j: usize, pad: usize, h: usize, w: usize) -> Option<usize> {
    let (i, j) = (i.checked_sub(pad)?, j.checked_sub(pad)?);
    (i < h && j < w).then(|| (n * h + i) * w + j)
}
