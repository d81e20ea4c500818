//! Max-pooling over 2x2 windows with stride 2; a last odd row or column is left out, as in PyTorch.
//!
//! ```text
//! y[n,i,j,c] = max over a,b in {0,1} of x[n, 2i+a, 2j+b, c],   dx at the first maximum += dy
//! ```

use std::cell::Cell;

use crate::channels::ChannelSlice;

use crate::map::{Map, read_row};
use crate::memory::{Floats, Kept, with_kept};
use crate::par::{Shared, check_len, rows_mut};
use crate::simd::{Simd, WithSimd, dispatch};

thread_local! {
    /// Two rows of the input as they are read.
    static ROWS: Cell<Floats> = const { Cell::new(Floats::new()) };
}

/// Channels that are worked on at once; loops of this length are turned into vectors.
const BLOCK: usize = 16;

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
    forward_mapped(d, x, None, y, Some(argmax));
}

/// Pools what reading `x` through `map` gives; what the backward pass needs is recorded only if it is asked for.
///
/// # Panics
/// If a slice's length is not that of `d`.
pub fn forward_mapped(d: &MaxPoolDims, x: &[f32], map: Option<&Map<'_>>, y: &mut [f32], argmax: Option<&mut [u8]>) {
    check_len("max-pool", "x", x.len(), d.in_len());
    check_len("max-pool", "y", y.len(), d.out_len());
    if let Some(argmax) = &argmax {
        check_len("max-pool", "argmax", argmax.len(), d.out_len());
    }
    if let Some(map) = map {
        map.check("max-pool", d.n, d.c);
    }
    let row = d.out_w() * d.c;
    let argmax = argmax.map(Shared::new);
    rows_mut(y, row, |first, y| {
        // SAFETY: the rows of y are disjoint between tasks, and argmax has the same rows.
        let argmax = argmax.as_ref().map(|argmax| unsafe { argmax.part(first * row, y.len()) });
        with_kept(&ROWS as &Kept<f32>, if map.is_some() { 2 * d.w * d.c } else { 0 }, |rows| {
            dispatch(Forward { d, x, map, first, y, argmax, rows });
        });
    });
}

/// The output rows from `first` on.
struct Forward<'a> {
    d: &'a MaxPoolDims,
    x: &'a [f32],
    map: Option<&'a Map<'a>>,
    first: usize,
    y: &'a mut [f32],
    argmax: Option<&'a mut [u8]>,
    rows: &'a mut [f32],
}

impl WithSimd for Forward<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, s: S) {
        let (d, c, row) = (self.d, self.d.c, self.d.out_w() * self.d.c);
        for (i, y) in self.y.chunks_exact_mut(row).enumerate() {
            let (n, oh) = ((self.first + i) / d.out_h(), (self.first + i) % d.out_h());
            let mut pair = &self.x[(n * d.h + 2 * oh) * d.w * c..][..2 * d.w * c];
            if let Some(map) = self.map {
                read_row(s, pair, map, n, c, self.rows);
                pair = self.rows;
            }
            let (top, bottom) = pair.split_at(d.w * c);
            match &mut self.argmax {
                Some(argmax) => pool_row::<true>(c, top, bottom, y, &mut argmax[i * row..][..row]),
                None => pool_row::<false>(c, top, bottom, y, &mut []),
            }
        }
    }
}

/// One row of outputs.
#[inline(always)]
fn pool_row<const ARGMAX: bool>(c: usize, top: &[f32], bottom: &[f32], y: &mut [f32], argmax: &mut [u8]) {
    for (j, y) in y.chunks_exact_mut(c).enumerate() {
        let (top, bottom) = (&top[2 * j * c..][..2 * c], &bottom[2 * j * c..][..2 * c]);
        let argmax = if ARGMAX { &mut argmax[j * c..][..c] } else { &mut [][..] };
        let (mut k, mut sink) = (0, [0; BLOCK]);
        while k + BLOCK <= c {
            let inputs = [&top[k..], &top[c + k..], &bottom[k..], &bottom[c + k..]].map(|x| &x[..BLOCK]);
            let argmax = if ARGMAX { &mut argmax[k..k + BLOCK] } else { &mut sink[..] };
            greatest::<ARGMAX>(inputs, &mut y[k..k + BLOCK], argmax);
            k += BLOCK;
        }
        for k in k..c {
            let inputs = [&top[k..], &top[c + k..], &bottom[k..], &bottom[c + k..]].map(|x| &x[..1]);
            let argmax = if ARGMAX { &mut argmax[k..=k] } else { &mut sink[..1] };
            greatest::<ARGMAX>(inputs, &mut y[k..=k], argmax);
        }
    }
}

/// The greatest of four inputs and its number; all slices have the same length.
#[inline(always)]
fn greatest<const ARGMAX: bool>(inputs: [&[f32]; 4], y: &mut [f32], argmax: &mut [u8]) {
    for (k, (y, argmax)) in y.iter_mut().zip(argmax).enumerate() {
        let (mut value, mut number) = (inputs[0][k], 0);
        for (i, x) in inputs.iter().enumerate().skip(1) {
            // False also where the present maximum is a NaN, which therefore stays.
            let greater = (x[k] > value) | (x[k].is_nan() & !value.is_nan());
            value = if greater { x[k] } else { value };
            number = if greater { i as u32 } else { number };
        }
        *y = value;
        if ARGMAX {
            *argmax = number as u8;
        }
    }
}

/// `dx[argmax] += dy`.
///
/// # Panics
/// If a slice's length is not that of `d`.
pub fn backward(d: &MaxPoolDims, argmax: &[u8], dy: &[f32], dx: &mut [f32]) {
    backward_onto(d, argmax, dy, Base::Present, dx);
}

/// [`backward`], but `dx` is overwritten: zero where nothing was taken from.
///
/// # Panics
/// If a slice's length is not that of `d`.
pub fn backward_into(d: &MaxPoolDims, argmax: &[u8], dy: &[f32], dx: &mut [f32]) {
    backward_onto(d, argmax, dy, Base::Zero, dx);
}

/// [`backward`], but `dx` is overwritten by the sum of the gradient and `other`, a second gradient of the same tensor:
/// that of the skip connection, which may be part of a concatenation.
///
/// # Panics
/// If a slice's length is not that of `d`.
pub fn backward_with(d: &MaxPoolDims, argmax: &[u8], dy: &[f32], other: ChannelSlice<'_>, dx: &mut [f32]) {
    other.check("max-pool backward", "the other gradient", d.n * d.h * d.w, d.c);
    backward_onto(d, argmax, dy, Base::Other(other), dx);
}

/// What the gradient is added to.
#[derive(Clone, Copy)]
enum Base<'a> {
    Present,
    Zero,
    Other(ChannelSlice<'a>),
}

fn backward_onto(d: &MaxPoolDims, argmax: &[u8], dy: &[f32], base: Base<'_>, dx: &mut [f32]) {
    check_len("max-pool backward", "argmax", argmax.len(), d.out_len());
    check_len("max-pool backward", "dy", dy.len(), d.out_len());
    check_len("max-pool backward", "dx", dx.len(), d.in_len());
    rows_mut(dx, d.w * d.c, |first, dx| dispatch(Backward { d, argmax, dy, base, first, dx }));
}

/// The input rows from `first` on.
struct Backward<'a> {
    d: &'a MaxPoolDims,
    argmax: &'a [u8],
    dy: &'a [f32],
    base: Base<'a>,
    first: usize,
    dx: &'a mut [f32],
}

impl WithSimd for Backward<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { d, argmax, dy, base, first, dx } = self;
        let (c, out_w, out_h) = (d.c, d.out_w(), d.out_h());
        for (i, dx) in dx.chunks_exact_mut(d.w * c).enumerate() {
            let (n, h) = ((first + i) / d.h, (first + i) % d.h);
            // A row or column beyond the last window gets nothing.
            let pooled = if h < 2 * out_h { 2 * out_w } else { 0 };
            let out = if pooled > 0 { (n * out_h + h / 2) * out_w * c } else { 0 };
            for (j, dx) in dx.chunks_exact_mut(c).enumerate() {
                if j < pooled {
                    let position = (2 * (h % 2) + j % 2) as u8;
                    let (dy, argmax) = (&dy[out + j / 2 * c..][..c], &argmax[out + j / 2 * c..][..c]);
                    match base {
                        Base::Present => scatter(position, argmax, dy, dx, |k, dx: &[f32]| dx[k]),
                        Base::Zero => scatter(position, argmax, dy, dx, |_, _| 0.0),
                        Base::Other(other) => {
                            let other = other.at((first + i) * d.w + j, c);
                            scatter(position, argmax, dy, dx, |k, _| other[k]);
                        }
                    }
                } else {
                    match base {
                        Base::Present => (),
                        Base::Zero => dx.fill(0.0),
                        Base::Other(other) => dx.copy_from_slice(other.at((first + i) * d.w + j, c)),
                    }
                }
            }
        }
    }
}

/// The gradient of the pixel at `position` of its window, for all channels.
#[inline(always)]
fn scatter(position: u8, argmax: &[u8], dy: &[f32], dx: &mut [f32], base: impl Fn(usize, &[f32]) -> f32) {
    let c = dx.len();
    let (argmax, dy) = (&argmax[..c], &dy[..c]);
    for k in 0..c {
        dx[k] = base(k, dx) + if argmax[k] == position { dy[k] } else { 0.0 };
    }
}

#[cfg(test)]
mod tests;
