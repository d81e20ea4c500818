//! Upsampling by two.
//!
//! ```text
//! nearest:   y[i] = x[i/2]
//! bilinear:  along each axis y[2i] = (x[i-1] + 3 x[i])/4,  y[2i+1] = (3 x[i] + x[i+1])/4,  indices clamped to the edge
//! ```
//!
//! The second is PyTorch's `interpolate(mode="bilinear", align_corners=False)` at a scale of two.

use std::cell::Cell;

use crate::channels::ChannelSlice;
use crate::lanes::{get, put};
use crate::map::{Map, read_row};
use crate::memory::{Floats, Kept, with_kept};
use crate::par::{check_len, rows_mut};
use crate::simd::{Simd, WithSimd, dispatch};

thread_local! {
    /// Three rows of the input as they are read, and three pixels between two rows.
    static ROWS: Cell<Floats> = const { Cell::new(Floats::new()) };
}

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

/// Output indices that input `i` contributes to on an axis of `len` inputs, with weights 1/4, 3/4, 3/4 and 1/4.
///
/// The clamped indices make the edge outputs count once more with weight 1/4, which is what the edge rule asks for.
fn targets(i: usize, len: usize) -> [usize; 4] {
    [(2 * i).saturating_sub(1), 2 * i, 2 * i + 1, (2 * i + 2).min(2 * len - 1)]
}

/// Upsamples `x` into `y`.
///
/// # Panics
/// If a slice's length is not that of `d`.
pub fn forward(d: &ResampleDims, mode: Resample, x: &[f32], y: &mut [f32]) {
    forward_mapped(d, mode, x, None, y);
}

/// Upsamples what reading `x` through `map` gives.
///
/// # Panics
/// If a slice's length is not that of `d`.
pub fn forward_mapped(d: &ResampleDims, mode: Resample, x: &[f32], map: Option<&Map<'_>>, y: &mut [f32]) {
    check_len("upsample", "x", x.len(), d.in_len());
    check_len("upsample", "y", y.len(), d.out_len());
    if let Some(map) = map {
        map.check("upsample", d.n, d.c);
    }
    let (row, pair) = (d.w * d.c, 4 * d.w * d.c);
    rows_mut(y, pair, |first, y| {
        let kept = 3 * d.c + if map.is_some() { 3 * row } else { 0 };
        with_kept(&ROWS as &Kept<f32>, kept, |memory| {
            let (pixels, rows) = memory.split_at_mut(3 * d.c);
            dispatch(Forward { d, mode, x, map, first, y, rows, pixels });
        });
    });
}

/// The pairs of output rows that belong to the input rows from `first` on.
struct Forward<'a> {
    d: &'a ResampleDims,
    mode: Resample,
    x: &'a [f32],
    map: Option<&'a Map<'a>>,
    first: usize,
    y: &'a mut [f32],
    /// Input rows as they are read: row `i` lies at place `i mod 3`.
    rows: &'a mut [f32],
    pixels: &'a mut [f32],
}

impl WithSimd for Forward<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { d, mode, x, map, first, y, rows, pixels } = self;
        let (c, len) = (d.c, d.w * d.c);
        let mut held = [None; 3];
        for (i, y) in y.chunks_exact_mut(4 * len).enumerate() {
            let (near, h) = (first + i, (first + i) % d.h);
            let neighbours = [near - usize::from(h > 0), near, near + usize::from(h + 1 < d.h)];
            let wanted = if mode == Resample::Nearest { 1..2 } else { 0..3 };
            if let Some(map) = map {
                for &row in &neighbours[wanted] {
                    if held[row % 3] != Some(row) {
                        let place = &mut rows[row % 3 * len..][..len];
                        read_row(s, &x[row * len..][..len], map, near / d.h, c, place);
                        held[row % 3] = Some(row);
                    }
                }
            }
            let row = |i: usize| if map.is_some() { &rows[i % 3 * len..][..len] } else { &x[i * len..][..len] };
            let (upper, lower) = y.split_at_mut(2 * len);
            match mode {
                Resample::Nearest => {
                    for (pair, x) in upper.chunks_exact_mut(2 * c).zip(row(near).chunks_exact(c)) {
                        pair[..c].copy_from_slice(x);
                        pair[c..].copy_from_slice(x);
                    }
                    lower.copy_from_slice(upper);
                }
                Resample::Bilinear => {
                    interpolate(s, c, row(near), row(neighbours[0]), pixels, upper);
                    interpolate(s, c, row(near), row(neighbours[2]), pixels, lower);
                }
            }
        }
    }
}

/// The output row between `near` and `far`.
#[inline(always)]
fn interpolate<S: Simd>(s: S, c: usize, near: &[f32], far: &[f32], pixels: &mut [f32], y: &mut [f32]) {
    let last = near.len() / c - 1;
    blend(s, &near[..c], &far[..c], &mut pixels[..c]);
    for (j, y) in y.chunks_exact_mut(2 * c).enumerate() {
        // Pixel j between the rows lies at place j mod 3.
        let right = (j + 1).min(last);
        if right > j {
            blend(s, &near[right * c..][..c], &far[right * c..][..c], &mut pixels[right % 3 * c..][..c]);
        }
        let pixel = |j: usize| &pixels[j % 3 * c..][..c];
        let (even, odd) = y.split_at_mut(c);
        blend(s, pixel(j), pixel(j.saturating_sub(1)), even);
        blend(s, pixel(j), pixel(right), odd);
    }
}

/// `y = (3 near + far)/4`
#[inline(always)]
fn blend<S: Simd>(s: S, near: &[f32], far: &[f32], y: &mut [f32]) {
    #[inline(always)]
    fn step<S: Simd, const FULL: bool>(s: S, near: &[f32], far: &[f32], y: &mut [f32], i: usize) {
        let far = s.mul(s.splat(0.25), get::<S, FULL>(s, far, i));
        put::<S, FULL>(s, y, i, s.fma(s.splat(0.75), get::<S, FULL>(s, near, i), far));
    }
    let full = y.len() / S::LANES * S::LANES;
    for i in (0..full).step_by(S::LANES) {
        step::<S, true>(s, near, far, y, i);
    }
    if full < y.len() {
        step::<S, false>(s, near, far, y, full);
    }
}

/// The transpose of [`forward`], added to `dx`.
///
/// # Panics
/// If a slice's length is not that of `d`.
pub fn backward(d: &ResampleDims, mode: Resample, dy: &[f32], dx: &mut [f32]) {
    backward_onto::<true>(d, mode, ChannelSlice::all(dy, d.c), dx);
}

/// [`backward`] of a gradient that is part of that of a concatenation.
///
/// # Panics
/// If a slice's length is not that of `d`.
pub fn backward_from(d: &ResampleDims, mode: Resample, dy: ChannelSlice<'_>, dx: &mut [f32]) {
    backward_onto::<true>(d, mode, dy, dx);
}

/// [`backward_from`], but `dx` is overwritten.
///
/// # Panics
/// If a slice's length is not that of `d`.
pub fn backward_into(d: &ResampleDims, mode: Resample, dy: ChannelSlice<'_>, dx: &mut [f32]) {
    backward_onto::<false>(d, mode, dy, dx);
}

fn backward_onto<const ADD: bool>(d: &ResampleDims, mode: Resample, dy: ChannelSlice<'_>, dx: &mut [f32]) {
    dy.check("upsample backward", "dy", 4 * d.n * d.h * d.w, d.c);
    check_len("upsample backward", "dx", dx.len(), d.in_len());
    rows_mut(dx, d.w * d.c, |first, dx| dispatch(Backward::<ADD> { d, mode, dy, first, dx }));
}

/// The input rows from `first` on.
struct Backward<'a, const ADD: bool> {
    d: &'a ResampleDims,
    mode: Resample,
    dy: ChannelSlice<'a>,
    first: usize,
    dx: &'a mut [f32],
}

impl<const ADD: bool> WithSimd for Backward<'_, ADD> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { d, mode, dy, first, dx } = self;
        let c = d.c;
        for (i, dx) in dx.chunks_exact_mut(d.w * c).enumerate() {
            let (n, h) = ((first + i) / d.h, (first + i) % d.h);
            let pixel = |oh: usize, ow: usize| dy.at((n * 2 * d.h + oh) * 2 * d.w + ow, c);
            for (w, dx) in dx.chunks_exact_mut(c).enumerate() {
                match mode {
                    Resample::Nearest => {
                        let rows = [2 * h, 2 * h + 1].map(|oh| [2 * w, 2 * w + 1].map(|ow| pixel(oh, ow)));
                        weighted::<S, 2, ADD>(s, rows, [1.0; 2], dx);
                    }
                    Resample::Bilinear => {
                        let columns = targets(w, d.w);
                        let rows = targets(h, d.h).map(|oh| columns.map(|ow| pixel(oh, ow)));
                        weighted::<S, 4, ADD>(s, rows, [0.25, 0.75, 0.75, 0.25], dx);
                    }
                }
            }
        }
    }
}

/// `dx (+)= sum_i sum_j weights[i] weights[j] dy[i][j]`
#[inline(always)]
fn weighted<S: Simd, const N: usize, const ADD: bool>(s: S, dy: [[&[f32]; N]; N], weights: [f32; N], dx: &mut [f32]) {
    #[inline(always)]
    fn step<S: Simd, const N: usize, const ADD: bool, const FULL: bool>(
        s: S,
        dy: &[[&[f32]; N]; N],
        weights: &[f32; N],
        dx: &mut [f32],
        k: usize,
    ) {
        let mut sum = if ADD { get::<S, FULL>(s, dx, k) } else { s.splat(0.0) };
        for (row, row_weight) in dy.iter().zip(weights) {
            let mut across = s.splat(0.0);
            for (dy, weight) in row.iter().zip(weights) {
                across = s.fma(s.splat(*weight), get::<S, FULL>(s, dy, k), across);
            }
            sum = s.fma(s.splat(*row_weight), across, sum);
        }
        put::<S, FULL>(s, dx, k, sum);
    }
    let full = dx.len() / S::LANES * S::LANES;
    for k in (0..full).step_by(S::LANES) {
        step::<S, N, ADD, true>(s, &dy, &weights, dx, k);
    }
    if full < dx.len() {
        step::<S, N, ADD, false>(s, &dy, &weights, dx, full);
    }
}

#[cfg(test)]
mod tests;
