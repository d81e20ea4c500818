//! The division of pictures into tiles, and the one-dimensional transforms of each kind of tile.
//!
//! F(m, 3) is a Toom-Cook product evaluated at m + 2 points. F(4, 3) uses 0, 1, -1, 2, -2 and infinity. A tile at the lower
//! or right edge with m < 4 outputs along an axis uses the first m + 1 of these and infinity, so that F(2, 3), say, needs
//! four products where a whole tile would spend six. All kinds share one set of transformed filters: a filter's transform
//! at a point differs between kinds by a constant factor only, which the transform of the input absorbs. A picture whose
//! sides are no multiples of four is so covered without waste: 14 = 4 + 4 + 4 + 2 takes 22 products along an axis, not 24.

use std::ops::Range;

use crate::conv::ConvDims;
use crate::simd::Simd;

/// Side of a whole tile of outputs.
pub(super) const TILE: usize = 4;
/// Side of a whole tile of inputs.
pub(super) const PATCH: usize = TILE + 2;
/// Products per whole tile and pair of channels.
pub(super) const POINTS: usize = PATCH * PATCH;
/// The most tiles in a block.
pub(super) const MOST_TILES: usize = 96;

/// Whether tiles with `m` outputs along an axis use point `u`; infinity is the last.
#[inline(always)]
pub(super) fn uses(m: usize, u: usize) -> bool {
    u <= m || u == PATCH - 1
}

/// A tile of outputs.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tile {
    /// The picture.
    pub(super) n: usize,
    /// First row.
    pub(super) top: usize,
    /// First column.
    pub(super) left: usize,
    /// Rows, 1 to [`TILE`].
    pub(super) rows: usize,
    /// Columns, 1 to [`TILE`].
    pub(super) cols: usize,
}

impl Tile {
    /// Whether it is a tile of [`TILE`] by [`TILE`] outputs.
    #[inline(always)]
    pub(super) fn is_whole(&self) -> bool {
        self.rows == TILE && self.cols == TILE
    }
}

/// The tiles of a batch of pictures, row by row, picture after picture.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    n: usize,
    h: usize,
    w: usize,
}

impl Grid {
    pub(super) fn new(d: &ConvDims) -> Self {
        Self { n: d.n, h: d.h, w: d.w }
    }

    /// All tiles.
    pub(super) fn tiles(&self) -> usize {
        self.n * self.h.div_ceil(TILE) * self.w.div_ceil(TILE)
    }

    fn tile(&self, index: usize) -> Tile {
        let (rows, cols) = (self.h.div_ceil(TILE), self.w.div_ceil(TILE));
        let (top, left) = (index / cols % rows * TILE, index % cols * TILE);
        Tile { n: index / (rows * cols), top, left, rows: TILE.min(self.h - top), cols: TILE.min(self.w - left) }
    }

    /// The tiles of `range`, at most [`MOST_TILES`], in the order in which the matrices of the points hold them.
    pub(super) fn block(&self, range: Range<usize>) -> Block {
        let mut block =
            Block { tiles: [Tile::default(); MOST_TILES], ends: [0; 4], rows: self.h % TILE, cols: self.w % TILE };
        let mut len = 0;
        // Cut off below, whole, cut off at the right, cut off at both: the tiles that use a point are then neighbours.
        for (kind, cut) in [(true, false), (false, false), (false, true), (true, true)].into_iter().enumerate() {
            for tile in range.clone().map(|index| self.tile(index)) {
                if (tile.rows < TILE, tile.cols < TILE) == cut {
                    block.tiles[len] = tile;
                    len += 1;
                }
            }
            block.ends[kind] = len;
        }
        block
    }
}

/// Some tiles, sorted by kind.
pub(super) struct Block {
    tiles: [Tile; MOST_TILES],
    /// Where each kind ends.
    ends: [usize; 4],
    /// Rows of the tiles that are cut off below.
    rows: usize,
    /// Columns of the tiles that are cut off at the right.
    cols: usize,
}

impl Block {
    #[inline(always)]
    pub(super) fn tiles(&self) -> &[Tile] {
        &self.tiles[..self.ends[3]]
    }

    /// The positions of the tiles that use the point (`u`, `v`).
    #[inline(always)]
    pub(super) fn using(&self, u: usize, v: usize) -> Range<usize> {
        let [cut_below, whole, cut_right, all] = self.ends;
        match (uses(self.rows, u), uses(self.cols, v)) {
            (true, true) => 0..all,
            (true, false) => 0..whole,
            (false, true) => cut_below..cut_right,
            (false, false) => cut_below..whole,
        }
    }
}

/// `B^T d` for `m` outputs: the values at the points that [`uses`] names.
#[inline(always)]
pub(super) fn input_transform<S: Simd>(s: S, m: usize, d: [S::V; PATCH]) -> [S::V; PATCH] {
    let zero = s.splat(0.0);
    match m {
        4 => {
            let (two, four, minus_four, minus_five) = (s.splat(2.0), s.splat(4.0), s.splat(-4.0), s.splat(-5.0));
            let even = s.fma(minus_four, d[2], d[4]);
            let odd = s.fma(minus_four, d[1], d[3]);
            let near = s.sub(d[4], d[2]);
            let far = s.mul(two, s.sub(d[3], d[1]));
            [
                s.fma(four, d[0], s.fma(minus_five, d[2], d[4])),
                s.add(even, odd),
                s.sub(even, odd),
                s.add(near, far),
                s.sub(near, far),
                s.fma(four, d[1], s.fma(minus_five, d[3], d[5])),
            ]
        }
        3 => {
            let (two, three, four, six) = (s.splat(2.0), s.splat(3.0), s.splat(4.0), s.splat(6.0));
            // 2 (2 d0 - d1 - 2 d2 + d3), 3 (d3 - d2 - 2 d1), 2 d1 - 3 d2 + d3, 4 (d3 - d1), 2 d1 - d2 - 2 d3 + d4
            let difference = s.sub(d[3], d[1]);
            let third = s.mul(three, s.sub(d[3], d[2]));
            [
                s.fma(four, s.sub(d[0], d[2]), s.mul(two, difference)),
                s.sub(third, s.mul(six, d[1])),
                s.fma(two, d[1], s.sub(d[3], s.mul(three, d[2]))),
                s.mul(four, difference),
                zero,
                s.sub(s.sub(d[4], d[2]), s.mul(two, difference)),
            ]
        }
        2 => {
            let (minus_three, four) = (s.splat(-3.0), s.splat(4.0));
            [
                s.mul(four, s.sub(d[0], d[2])),
                s.mul(minus_three, s.add(d[1], d[2])),
                s.mul(minus_three, s.sub(d[2], d[1])),
                zero,
                zero,
                s.sub(d[3], d[1]),
            ]
        }
        _ => [s.mul(s.splat(4.0), s.sub(d[0], d[1])), s.mul(s.splat(-6.0), d[1]), zero, zero, zero, s.sub(d[2], d[1])],
    }
}

/// `A^T p` for `m` outputs, of the values at the points that [`uses`] names.
#[inline(always)]
pub(super) fn output_transform<S: Simd>(s: S, m: usize, p: [S::V; PATCH]) -> [S::V; TILE] {
    let (zero, two) = (s.splat(0.0), s.splat(2.0));
    match m {
        4 => {
            let (sum, difference) = (s.add(p[1], p[2]), s.sub(p[1], p[2]));
            let (sum2, difference2) = (s.add(p[3], p[4]), s.sub(p[3], p[4]));
            [
                s.add(p[0], s.add(sum, sum2)),
                s.fma(two, difference2, difference),
                s.fma(s.splat(4.0), sum2, sum),
                s.fma(s.splat(8.0), difference2, s.add(difference, p[5])),
            ]
        }
        3 => {
            let (sum, difference) = (s.add(p[1], p[2]), s.sub(p[1], p[2]));
            [
                s.add(p[0], s.add(sum, p[3])),
                s.fma(two, p[3], difference),
                s.fma(s.splat(4.0), p[3], s.add(sum, p[5])),
                zero,
            ]
        }
        2 => [s.add(p[0], s.add(p[1], p[2])), s.add(s.sub(p[1], p[2]), p[5]), zero, zero],
        _ => [s.add(p[0], s.add(p[1], p[5])), zero, zero, zero],
    }
}

/// `A y`, the transpose of [`output_transform`].
#[inline(always)]
pub(super) fn gradient_transform<S: Simd>(s: S, m: usize, y: [S::V; TILE]) -> [S::V; PATCH] {
    let (zero, two, four) = (s.splat(0.0), s.splat(2.0), s.splat(4.0));
    match m {
        4 => {
            let (even, odd) = (s.add(y[0], y[2]), s.add(y[1], y[3]));
            let even2 = s.fma(four, y[2], y[0]);
            let odd2 = s.fma(s.splat(8.0), y[3], s.mul(two, y[1]));
            [y[0], s.add(even, odd), s.sub(even, odd), s.add(even2, odd2), s.sub(even2, odd2), y[3]]
        }
        3 => {
            let even = s.add(y[0], y[2]);
            let even2 = s.fma(four, y[2], y[0]);
            [y[0], s.add(even, y[1]), s.sub(even, y[1]), s.fma(two, y[1], even2), zero, y[2]]
        }
        2 => [y[0], s.add(y[0], y[1]), s.sub(y[0], y[1]), zero, zero, y[1]],
        _ => [y[0], y[0], zero, zero, zero, y[0]],
    }
}
