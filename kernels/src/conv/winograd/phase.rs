//! Which pixels of a result some filters make.
//!
//! Where every pixel of the input stands for four, the 3x3 taps meet at most 2x2 different pixels: along an axis, rows 2i and
//! 2i + 1 of the result have
//!
//! ```text
//! y[2i]     = w[0] x[i-1] + (w[1] + w[2]) x[i]
//! y[2i + 1] =               (w[0] + w[1]) x[i] + w[2] x[i+1]
//! ```
//!
//! Each of the four phases is a convolution of the input as it is, by a filter whose last tap is zero, or its first. Evaluated at
//! the points of F(4, 3) these vanish at infinity, or at zero: five points are left along an axis, and 25 of the 36 for a phase, so that
//! 64 outputs take 100 multiplications where F(4x4, 3x3) on repeated pixels takes 144. The input is transformed once for all phases.

use super::tiles::{Grid, PATCH, POINTS};
use crate::conv::ConvDims;
use crate::simd::Simd;

/// The pixels of one phase.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::conv) struct Phase {
    /// Rows and columns from pixel to pixel.
    step: usize,
    /// The first row.
    pub(super) row: usize,
    /// The first column.
    pub(super) column: usize,
    /// The points at which its filters do not vanish, then the others.
    points: [u8; POINTS],
}

/// All pixels.
pub(in crate::conv) const PLAIN: &[Phase] = &[Phase::new(1, 0, 0)];

/// The phases of a result of twice the size.
pub(in crate::conv) const TWICE: &[Phase] =
    &[Phase::new(2, 0, 0), Phase::new(2, 0, 1), Phase::new(2, 1, 0), Phase::new(2, 1, 1)];

/// Tiles of a picture, before its pixels are repeated, that pay for the filters of four phases where these are kept, and where they are
/// made for a single pass.
const FEWEST_TILES: usize = 4;
const FEWEST_TILES_OF_A_PASS: usize = 64;

/// Tiles of a picture of this size: the choice does not look at how many pictures there are, so neither do their bits.
fn tiles([h, w]: [usize; 2]) -> usize {
    Grid::new(&ConvDims::same(1, h, w, 1, 1, 3)).tiles()
}

/// Whether convolutions of pictures of this size, before their pixels are repeated, should be of four phases.
pub(in crate::conv) fn worth_keeping(size: [usize; 2]) -> bool {
    tiles(size) >= FEWEST_TILES
}

/// [`worth_keeping`] where the filters are made for this convolution on repeated pixels alone.
pub(in crate::conv) fn worth_making(d: &ConvDims) -> bool {
    tiles([d.h / 2, d.w / 2]) >= FEWEST_TILES_OF_A_PASS
}

impl Phase {
    const fn new(step: usize, row: usize, column: usize) -> Self {
        let mut phase = Self { step, row, column, points: [0; POINTS] };
        let (mut present, mut absent, mut point) = (0, phase.side() * phase.side(), 0);
        while point < POINTS {
            let place = if phase.has(point) { &mut present } else { &mut absent };
            phase.points[*place] = point as u8;
            *place += 1;
            point += 1;
        }
        phase
    }

    /// How many times as high and as wide as the input the result is.
    pub(super) const fn step(&self) -> usize {
        self.step
    }

    /// Points along an axis at which its filters do not vanish.
    #[inline(always)]
    const fn side(&self) -> usize {
        PATCH + 1 - self.step
    }

    /// The points at which its filters do not vanish, and those at which they do.
    #[inline(always)]
    pub(super) fn points(&self) -> (&[u8], &[u8]) {
        self.points.split_at(self.side() * self.side())
    }

    #[inline(always)]
    pub(super) const fn has_row(&self, u: usize) -> bool {
        u.wrapping_sub(self.row) < self.side()
    }

    #[inline(always)]
    pub(super) const fn has_column(&self, v: usize) -> bool {
        v.wrapping_sub(self.column) < self.side()
    }

    #[inline(always)]
    const fn has(&self, point: usize) -> bool {
        self.has_row(point / PATCH) && self.has_column(point % PATCH)
    }

    /// The position of a point among those at which its filters do not vanish, if it is one.
    #[inline(always)]
    pub(super) fn rank(&self, point: usize) -> Option<usize> {
        let rank = || (point / PATCH - self.row) * self.side() + point % PATCH - self.column;
        self.has(point).then(rank)
    }

    /// The factors of the three taps of a row, given those that a point has.
    #[inline(always)]
    pub(super) fn rows(&self, [a, b, c]: [f32; 3]) -> [f32; 3] {
        match (self.step, self.row) {
            (1, _) => [a, b, c],
            (_, 0) => [a, b, b],
            _ => [b, b, c],
        }
    }

    /// The three taps of a column that the filter has in this phase.
    #[inline(always)]
    pub(super) fn columns<S: Simd>(&self, s: S, [a, b, c]: [S::V; 3]) -> [S::V; 3] {
        match (self.step, self.column) {
            (1, _) => [a, b, c],
            (_, 0) => [a, s.add(b, c), s.splat(0.0)],
            _ => [s.splat(0.0), s.add(a, b), c],
        }
    }
}
