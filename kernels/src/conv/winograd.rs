//! 3x3 stride-1 convolution in tiles of 4x4 outputs: Winograd's minimal filtering F(4x4, 3x3).
//!
//! ```text
//! Y = A^T [ (G g G^T) . (B^T d B) ] A          (Lavin & Gray 2016, arXiv:1509.09308, eq. 8 and section 4.3)
//! ```
//!
//! with `d` a 6x6 tile of one channel's input, `g` a filter, `.` the product element by element. Summed over channels
//! the products are 36 matrix products of tiles by channels, a quarter of the multiplications of the direct sum. A
//! block of tiles goes through all three stages while it lies in the second-level cache.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::ConvDims;
use super::gather::{SharedOut, Start, multiply};
use super::pack::{is_narrow, lanes, panel_vectors};
use crate::simd::{Isa, Simd, WithSimd, dispatch_to};

/// Side of a tile of outputs.
pub(super) const TILE: usize = 4;
/// Side of a tile of inputs.
pub(super) const PATCH: usize = TILE + 2;
/// Products per tile and pair of channels.
pub(super) const POINTS: usize = PATCH * PATCH;
/// Tiles that go through the three stages together: a multiple of the rows of every register tile.
const BLOCK_TILES: usize = 24;
/// Outputs whose filters are transformed together, at least; it divides the width of every panel.
const OUTPUTS_AT_ONCE: usize = 8;
/// Floats between the planes of two points beyond their content, so that the planes do not share cache sets.
pub(super) const PLANE_GAP: usize = 16;

/// Transformed filters, `[point][panel][channel][width]`.
#[derive(Clone, Debug)]
pub(super) struct WinogradPanels {
    isa: Isa,
    vectors: usize,
    width: usize,
    channels: usize,
    outputs: usize,
    /// Floats between the filters of two points.
    plane: usize,
    values: Vec<f32>,
}

impl WinogradPanels {
    /// Whether a filter of this size can be transformed for this instruction set: whole vectors of channels.
    pub(super) fn fits(isa: Isa, kernel: usize, channels: usize, outputs: usize) -> bool {
        let whole = |count: usize| count > 0 && count.is_multiple_of(lanes(isa).max(OUTPUTS_AT_ONCE));
        kernel == 3 && whole(channels) && whole(outputs) && !is_narrow(outputs)
    }

    pub(super) fn new(isa: Isa, channels: usize, outputs: usize) -> Self {
        let vectors = panel_vectors(isa, outputs);
        let width = vectors * lanes(isa);
        let plane = outputs.next_multiple_of(width) * channels + PLANE_GAP;
        Self { isa, vectors, width, channels, outputs, plane, values: vec![0.0; POINTS * plane] }
    }

    /// Transforms `weight(output, channel, tap)`: `G g G^T`.
    pub(super) fn fill(&mut self, weight: impl Fn(usize, usize, usize) -> f32 + Sync) {
        // Whole cache lines are written where the width allows it.
        if self.width.is_multiple_of(16) && self.outputs.is_multiple_of(16) {
            self.fill_groups::<16>(weight);
        } else {
            self.fill_groups::<OUTPUTS_AT_ONCE>(weight);
        }
    }

    fn fill_groups<const GROUP: usize>(&mut self, weight: impl Fn(usize, usize, usize) -> f32 + Sync) {
        let (width, channels, outputs, plane) = (self.width, self.channels, self.outputs, self.plane);
        let values = SharedOut::new(&mut self.values);
        // One task transforms a few outputs of every channel.
        (0..outputs / GROUP).into_par_iter().for_each(|group| {
            let first = group * GROUP;
            for channel in 0..channels {
                let taps: [[f32; GROUP]; 9] =
                    std::array::from_fn(|tap| std::array::from_fn(|o| weight(first + o, channel, tap)));
                let rows: [[[f32; GROUP]; PATCH]; 3] =
                    std::array::from_fn(|v| filter_transform([taps[v], taps[3 + v], taps[6 + v]]));
                for u in 0..PATCH {
                    let row = filter_transform([rows[0][u], rows[1][u], rows[2][u]]);
                    for (v, transformed) in row.iter().enumerate() {
                        let at = (u * PATCH + v) * plane + (first / width * channels + channel) * width + first % width;
                        // SAFETY: `at + GROUP` lies within the plane of point (u, v), and no other task has these
                        // outputs.
                        unsafe {
                            std::ptr::copy_nonoverlapping(transformed.as_ptr(), values.get().add(at), GROUP);
                        }
                    }
                }
            }
        });
    }

    fn panel(&self, point: usize, panel: usize) -> &[f32] {
        let len = self.width * self.channels;
        &self.values[point * self.plane + panel * len..][..len]
    }
}

/// `G g` for several outputs at once.
#[inline(always)]
fn filter_transform<const N: usize>(g: [[f32; N]; 3]) -> [[f32; N]; PATCH] {
    let mut out = [[0.0; N]; PATCH];
    for o in 0..N {
        let (a, b, c) = (g[0][o], g[1][o], g[2][o]);
        out[0][o] = a / 4.0;
        out[1][o] = -(a + b + c) / 6.0;
        out[2][o] = -(a - b + c) / 6.0;
        out[3][o] = (a + 2.0 * b + 4.0 * c) / 24.0;
        out[4][o] = (a - 2.0 * b + 4.0 * c) / 24.0;
        out[5][o] = c;
    }
    out
}

/// Whether pictures are large enough for tiles of this size to save work, cut-off tiles included.
pub(super) fn pays(h: usize, w: usize) -> bool {
    h >= TILE && w >= TILE
}

/// A same-size convolution of `x` `[n, h, w, channels]` with transformed filters, into `y` `[n, h, w, outputs]`.
pub(super) fn convolve(d: &ConvDims, x: &[f32], filter: &WinogradPanels, start: Start<'_>, y: &mut [f32]) {
    let per_picture = d.h.div_ceil(TILE) * d.w.div_ceil(TILE);
    let tiles = d.n * per_picture;
    assert_eq!(x.len(), d.n * d.h * d.w * filter.channels, "convolution: floats of the input for {d:?}");
    assert_eq!(y.len(), d.n * d.h * d.w * filter.outputs, "convolution: floats of the output for {d:?}");
    let zeros = vec![0.0; filter.channels];
    let out = SharedOut::new(y);
    (0..tiles.div_ceil(BLOCK_TILES)).into_par_iter().for_each(|block| {
        let first = block * BLOCK_TILES;
        let task = Task { d, x, zeros: &zeros, filter, start, y: out, first, count: BLOCK_TILES.min(tiles - first) };
        SCRATCH.with_borrow_mut(|scratch| {
            let needed = POINTS * (task.in_plane() + task.out_plane());
            if scratch.len() < needed {
                scratch.resize(needed, 0.0);
            }
            dispatch_to(filter.isa, Staged(task, &mut scratch[..needed]));
        });
    });
}

thread_local! {
    /// Transformed inputs and products of a thread's block.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// A block of tiles.
#[derive(Clone, Copy)]
struct Task<'a> {
    d: &'a ConvDims,
    x: &'a [f32],
    zeros: &'a [f32],
    filter: &'a WinogradPanels,
    start: Start<'a>,
    y: SharedOut,
    first: usize,
    count: usize,
}

struct Staged<'a>(Task<'a>, &'a mut [f32]);

impl WithSimd for Staged<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Staged(task, scratch) = self;
        let (patches, products) = scratch.split_at_mut(POINTS * task.in_plane());
        let source = Pictures { d: task.d, values: task.x, channels: task.filter.channels, zeros: task.zeros };
        source.transform_input(s, task.first..task.first + task.count, 0..source.channels, task.in_plane(), patches);
        match (S::LANES, task.filter.vectors) {
            (16, 4) => task.multiply::<S, 6, 4>(s, patches, products),
            (16, 2) => task.multiply::<S, 12, 2>(s, patches, products),
            (16, _) => task.multiply::<S, 12, 1>(s, patches, products),
            (8, 2) => task.multiply::<S, 6, 2>(s, patches, products),
            (4, 2) => task.multiply::<S, 8, 2>(s, patches, products),
            _ => task.multiply::<S, 6, 1>(s, patches, products),
        }
        task.transform_output(s, products);
    }
}

impl Task<'_> {
    fn in_plane(&self) -> usize {
        BLOCK_TILES * self.filter.channels + PLANE_GAP
    }

    fn out_plane(&self) -> usize {
        BLOCK_TILES * self.filter.outputs.next_multiple_of(self.filter.width) + PLANE_GAP
    }

    /// The matrix product of every point, `[point][tile][output]`.
    #[inline(always)]
    fn multiply<S: Simd, const MR: usize, const NV: usize>(&self, s: S, patches: &[f32], products: &mut [f32]) {
        let filter = self.filter;
        let (channels, width) = (filter.channels, NV * S::LANES);
        let (in_plane, out_plane) = (self.in_plane(), self.out_plane());
        let padded = filter.outputs.next_multiple_of(width);
        debug_assert_eq!((width, BLOCK_TILES % MR), (filter.width, 0));
        for point in 0..POINTS {
            let a = &patches[point * in_plane..][..BLOCK_TILES * channels];
            let m = &mut products[point * out_plane..][..BLOCK_TILES * padded];
            for panel in 0..padded / width {
                let b = filter.panel(point, panel);
                for row in (0..self.count).step_by(MR) {
                    let sources: [*const f32; MR] = std::array::from_fn(|i| a[(row + i) * channels..].as_ptr());
                    let mut acc = [[s.splat(0.0); NV]; MR];
                    // SAFETY: each source has `channels` floats, and the panel `channels` rows of `width`.
                    unsafe { multiply(s, &sources, b.as_ptr(), channels, &mut acc) };
                    let target = m[row * padded + panel * width..].as_mut_ptr();
                    for (i, sums) in acc.iter().enumerate() {
                        for (v, sum) in sums.iter().enumerate() {
                            // SAFETY: rows up to BLOCK_TILES, a multiple of MR, lie within `m`.
                            unsafe { s.store(target.add(i * padded + v * S::LANES), *sum) };
                        }
                    }
                }
            }
        }
    }

    /// `A^T m A` of every tile, written to or added to the output.
    #[inline(always)]
    fn transform_output<S: Simd>(&self, s: S, products: &[f32]) {
        let (h, w, outputs) = (self.d.h, self.d.w, self.filter.outputs);
        let plane = self.out_plane();
        let padded = outputs.next_multiple_of(self.filter.width);
        for tile in 0..self.count {
            let (n, top, left) = place(self.d, self.first + tile);
            let (rows, cols) = (TILE.min(h - top), TILE.min(w - left));
            let source = products[tile * padded..].as_ptr();
            for o in (0..outputs).step_by(S::LANES) {
                let mut half = [[s.splat(0.0); TILE]; PATCH];
                for (u, row) in half.iter_mut().enumerate() {
                    // SAFETY: plane `u, v` holds BLOCK_TILES * padded floats and `tile < BLOCK_TILES`.
                    *row = output_transform(
                        s,
                        std::array::from_fn(|v| unsafe { s.load(source.add((u * PATCH + v) * plane + o)) }),
                    );
                }
                let bias = match self.start {
                    // SAFETY: the bias has `outputs` floats, a whole number of vectors.
                    Start::Bias(Some(bias)) => unsafe { s.load(bias.as_ptr().add(o)) },
                    Start::Bias(None) | Start::Accumulate => s.splat(0.0),
                };
                for j in 0..cols {
                    let column = output_transform(s, std::array::from_fn(|u| half[u][j]));
                    for (i, value) in column.into_iter().enumerate().take(rows) {
                        // SAFETY: row `top + i < h` and column `left + j < w` of picture `n` have `outputs` floats;
                        // tiles do not overlap, so no other task writes them.
                        unsafe {
                            let y = self.y.get().add(((n * h + top + i) * w + left + j) * outputs + o);
                            let value = match self.start {
                                Start::Bias(_) => s.add(value, bias),
                                Start::Accumulate => s.add(value, s.load(y)),
                            };
                            s.store(y, value);
                        }
                    }
                }
            }
        }
    }
}

/// Picture, and row and column of the first output, of tile `tile`.
#[inline(always)]
pub(super) fn place(d: &ConvDims, tile: usize) -> (usize, usize, usize) {
    let (rows, cols) = (d.h.div_ceil(TILE), d.w.div_ceil(TILE));
    (tile / (rows * cols), tile / cols % rows * TILE, tile % cols * TILE)
}

/// Pictures `[n, h, w, channels]` whose tiles are transformed.
#[derive(Clone, Copy)]
pub(super) struct Pictures<'a> {
    pub(super) d: &'a ConvDims,
    pub(super) values: &'a [f32],
    pub(super) channels: usize,
    /// As many zeros as there are channels: what lies outside a picture.
    pub(super) zeros: &'a [f32],
}

impl Pictures<'_> {
    /// `B^T d B` of some tiles and channels, `[point][tile][channel]`, `plane` floats from point to point.
    #[inline(always)]
    pub(super) fn transform_input<S: Simd>(
        &self,
        s: S,
        tiles: Range<usize>,
        channels: Range<usize>,
        plane: usize,
        patches: &mut [f32],
    ) {
        let (h, w) = (self.d.h, self.d.w);
        assert!(tiles.len() * channels.len() <= plane && POINTS * plane <= patches.len());
        assert!(channels.end <= self.channels && channels.len().is_multiple_of(S::LANES));
        for (index, tile) in tiles.enumerate() {
            let (n, top, left) = place(self.d, tile);
            let mut sources = [self.zeros[channels.start..].as_ptr(); POINTS];
            for u in 0..PATCH {
                for v in 0..PATCH {
                    // The patch begins one row above and one column to the left of its outputs.
                    let (i, j) = (top + u, left + v);
                    if i >= 1 && i <= h && j >= 1 && j <= w {
                        let pixel = (n * h + i - 1) * w + j - 1;
                        sources[u * PATCH + v] = self.values[pixel * self.channels + channels.start..].as_ptr();
                    }
                }
            }
            let target = patches[index * channels.len()..].as_mut_ptr();
            for c in (0..channels.len()).step_by(S::LANES) {
                let mut rows = [[s.splat(0.0); PATCH]; PATCH];
                for (u, row) in rows.iter_mut().enumerate() {
                    // SAFETY: from its start each source has `channels.len()` floats, a whole number of vectors.
                    *row =
                        input_transform(s, std::array::from_fn(|v| unsafe { s.load(sources[u * PATCH + v].add(c)) }));
                }
                for v in 0..PATCH {
                    let column = input_transform(s, std::array::from_fn(|u| rows[u][v]));
                    for (u, value) in column.into_iter().enumerate() {
                        // SAFETY: a plane has room for all channels of all tiles, and `patches` for every plane.
                        unsafe { s.store(target.add((u * PATCH + v) * plane + c), value) };
                    }
                }
            }
        }
    }
}

/// `B^T d`.
#[inline(always)]
fn input_transform<S: Simd>(s: S, d: [S::V; PATCH]) -> [S::V; PATCH] {
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

/// `A^T m`.
#[inline(always)]
fn output_transform<S: Simd>(s: S, m: [S::V; PATCH]) -> [S::V; TILE] {
    let (sum, difference) = (s.add(m[1], m[2]), s.sub(m[1], m[2]));
    let (sum2, difference2) = (s.add(m[3], m[4]), s.sub(m[3], m[4]));
    [
        s.add(m[0], s.add(sum, sum2)),
        s.fma(s.splat(2.0), difference2, difference),
        s.fma(s.splat(4.0), sum2, sum),
        s.fma(s.splat(8.0), difference2, s.add(difference, m[5])),
    ]
}
