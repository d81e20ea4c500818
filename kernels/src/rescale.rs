//! Images of half or twice the size by short filters, the same along both axes.
//!
//! ```text
//! mean:      y[i]  = (x[2i] + x[2i+1])/2                                   a last odd row or column is left out
//! FIR down:  y[i]  = (x[2i-1] + 3 x[2i] + 3 x[2i+1] + x[2i+2])/8
//! FIR up:    y[2i] = (x[i-1] + 3 x[i])/4,  y[2i+1] = (3 x[i] + x[i+1])/4
//! ```
//!
//! The filter (1, 3, 3, 1) is that of Karras et al. 2019, which the score-based networks of Song et al. 2021 resample by.
//! Beyond the edge lie zeros, or the image reflected at its outermost pixels.

use crate::lanes::{get, put};
use crate::par::{check_len, rows_mut};
use crate::simd::{Simd, WithSimd, dispatch};

/// What lies beyond the edge of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    /// Zeros.
    Zero,
    /// The image mirrored at its outermost pixels, which are not repeated: `x[-1] = x[1]`.
    Reflect,
}

/// How pixels become fewer or more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rescale {
    /// Means of 2x2 pixels.
    Mean,
    /// Half the size by the filter (1, 3, 3, 1).
    FirDown(Edge),
    /// Twice the size by the filter (1, 3, 3, 1).
    FirUp(Edge),
}

/// Sizes of a rescaling: the input is `[n, h, w, c]`, the output `[n, out_h, out_w, c]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RescaleDims {
    /// Samples.
    pub n: usize,
    /// Input height.
    pub h: usize,
    /// Input width.
    pub w: usize,
    /// Channels.
    pub c: usize,
    /// The filter.
    pub rescale: Rescale,
}

impl Rescale {
    /// The length of an output axis.
    pub fn output(self, len: usize) -> usize {
        match self {
            Self::Mean | Self::FirDown(_) => len / 2,
            Self::FirUp(_) => 2 * len,
        }
    }

    /// The least length of an input axis: one pixel has no other that could stand beyond the edge.
    pub fn least(self) -> usize {
        match self {
            Self::FirDown(Edge::Reflect) | Self::FirUp(Edge::Reflect) => 2,
            _ => 1,
        }
    }

    /// The inputs of every output along an axis, with their weights.
    fn axis(self, len: usize) -> Axis {
        let outputs = self.output(len);
        let mut axis = Axis { starts: vec![0], taps: Vec::with_capacity(4 * outputs) };
        for i in 0..outputs {
            match self {
                Self::Mean => axis.taps.extend([(2 * i, 0.5), (2 * i + 1, 0.5)]),
                Self::FirDown(edge) => {
                    let weights = [0.125, 0.375, 0.375, 0.125];
                    axis.taps.extend((0..4).filter_map(|k| Some((inside(2 * i + k, len, edge)?, weights[k]))));
                }
                Self::FirUp(edge) => {
                    // The far neighbour of an even output lies before, that of an odd one behind; both are counted from 1.
                    let far = i / 2 + 2 * (i % 2);
                    axis.taps.extend(inside(far, len, edge).map(|far| (far, 0.25)));
                    axis.taps.push((i / 2, 0.75));
                }
            }
            axis.starts.push(axis.taps.len());
        }
        axis
    }
}

/// The pixel that stands at `position - 1` on an axis of `len` pixels; `None` for a zero.
fn inside(position: usize, len: usize, edge: Edge) -> Option<usize> {
    match (position.checked_sub(1), edge) {
        (Some(i), _) if i < len => Some(i),
        (_, Edge::Zero) => None,
        (None, Edge::Reflect) => Some(1),
        (Some(i), Edge::Reflect) => Some(2 * (len - 1) - i),
    }
}

impl RescaleDims {
    /// Output height.
    pub fn out_h(&self) -> usize {
        self.rescale.output(self.h)
    }
    /// Output width.
    pub fn out_w(&self) -> usize {
        self.rescale.output(self.w)
    }
    /// Elements of the input.
    pub fn in_len(&self) -> usize {
        self.n * self.h * self.w * self.c
    }
    /// Elements of the output.
    pub fn out_len(&self) -> usize {
        self.n * self.out_h() * self.out_w() * self.c
    }

    #[track_caller]
    fn check(&self, operation: &str, x: usize, y: usize) {
        check_len(operation, "the input", x, self.in_len());
        check_len(operation, "the output", y, self.out_len());
        let least = self.rescale.least();
        assert!(
            self.in_len() == 0 || (self.h >= least && self.w >= least),
            "{operation}: an image of {}x{} pixels, at least {least}x{least} are needed",
            self.h,
            self.w
        );
    }
}

/// The weighted elements of one axis that make up each element of another.
struct Axis {
    /// Where the taps of an element begin; one more than there are elements.
    starts: Vec<usize>,
    taps: Vec<(usize, f32)>,
}

impl Axis {
    fn of(&self, i: usize) -> &[(usize, f32)] {
        &self.taps[self.starts[i]..self.starts[i + 1]]
    }

    /// The same weights seen from the other axis, of `len` elements.
    fn transposed(&self, len: usize) -> Self {
        let mut columns = vec![Vec::new(); len];
        for i in 0..self.starts.len() - 1 {
            self.of(i).iter().for_each(|&(j, weight)| columns[j].push((i, weight)));
        }
        let mut axis = Self { starts: vec![0], taps: Vec::with_capacity(self.taps.len()) };
        for column in columns {
            axis.taps.extend(column);
            axis.starts.push(axis.taps.len());
        }
        axis
    }
}

/// Rescales `x` into `y`.
///
/// # Panics
/// If a slice's length is not that of `d`, or if an image is smaller than [`Rescale::least`].
pub fn forward(d: &RescaleDims, x: &[f32], y: &mut [f32]) {
    d.check("rescale", x.len(), y.len());
    let (rows, columns) = (d.rescale.axis(d.h), d.rescale.axis(d.w));
    apply::<false>(Apply { rows: &rows, columns: &columns, h: d.h, w: d.w, c: d.c, x, first: 0, y });
}

/// The transpose of [`forward`], added to `dx`.
///
/// # Panics
/// As [`forward`].
pub fn backward(d: &RescaleDims, dy: &[f32], dx: &mut [f32]) {
    d.check("rescale backward", dx.len(), dy.len());
    let [rows, columns] = [d.h, d.w].map(|len| d.rescale.axis(len).transposed(len));
    let (h, w) = (d.out_h(), d.out_w());
    apply::<true>(Apply { rows: &rows, columns: &columns, h, w, c: d.c, x: dy, first: 0, y: dx });
}

/// The rows of `y` from `first` on, out of images `x` of `h` by `w` pixels.
struct Apply<'a, const ADD: bool> {
    rows: &'a Axis,
    columns: &'a Axis,
    h: usize,
    w: usize,
    c: usize,
    x: &'a [f32],
    first: usize,
    y: &'a mut [f32],
}

fn apply<const ADD: bool>(all: Apply<'_, ADD>) {
    let Apply { rows, columns, h, w, c, x, y, .. } = all;
    rows_mut(y, (columns.starts.len() - 1) * c, |first, y| {
        dispatch(Apply::<ADD> { rows, columns, h, w, c, x, first, y });
    });
}

impl<const ADD: bool> WithSimd for Apply<'_, ADD> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { rows, columns, h, w, c, x, first, y } = self;
        let (out_h, out_w) = (rows.starts.len() - 1, columns.starts.len() - 1);
        for (i, y) in y.chunks_exact_mut(out_w * c).enumerate() {
            let (n, row) = ((first + i) / out_h, (first + i) % out_h);
            let image = &x[n * h * w * c..][..h * w * c];
            for (column, y) in y.chunks_exact_mut(c).enumerate() {
                pixel::<S, ADD>(s, image, w, rows.of(row), columns.of(column), y);
            }
        }
    }
}

/// `y (+)= sum_i sum_j rows[i] columns[j] x[i][j]`
#[inline(always)]
fn pixel<S: Simd, const ADD: bool>(
    s: S,
    x: &[f32],
    w: usize,
    rows: &[(usize, f32)],
    columns: &[(usize, f32)],
    y: &mut [f32],
) {
    #[inline(always)]
    fn step<S: Simd, const ADD: bool, const FULL: bool>(
        s: S,
        x: &[f32],
        w: usize,
        rows: &[(usize, f32)],
        columns: &[(usize, f32)],
        y: &mut [f32],
        k: usize,
    ) {
        let c = y.len();
        let mut sum = if ADD { get::<S, FULL>(s, y, k) } else { s.splat(0.0) };
        for &(i, row_weight) in rows {
            let mut across = s.splat(0.0);
            for &(j, weight) in columns {
                across = s.fma(s.splat(weight), get::<S, FULL>(s, &x[(i * w + j) * c..][..c], k), across);
            }
            sum = s.fma(s.splat(row_weight), across, sum);
        }
        put::<S, FULL>(s, y, k, sum);
    }
    let whole = y.len() / S::LANES * S::LANES;
    for k in (0..whole).step_by(S::LANES) {
        step::<S, ADD, true>(s, x, w, rows, columns, y, k);
    }
    if whole < y.len() {
        step::<S, ADD, false>(s, x, w, rows, columns, y, whole);
    }
}

#[cfg(test)]
mod tests;
