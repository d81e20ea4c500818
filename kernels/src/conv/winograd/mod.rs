//! 3x3 stride-1 convolution in tiles of at most 4x4 outputs: Winograd's minimal filtering F(4x4, 3x3) and its smaller kin.
//!
//! ```text
//! Y = A^T [ (G g G^T) . (B^T d B) ] A          (Lavin & Gray 2016, arXiv:1509.09308, eq. 8 and section 4.3)
//! ```
//!
//! with `d` a 6x6 tile of one channel's input, `g` a filter, `.` the product element by element. Summed over channels
//! the products are 36 matrix products of tiles by channels, a quarter of the multiplications of the direct sum. A
//! block of tiles goes through all three stages while it lies in the second-level cache; filters stream past it, panel by
//! panel, fetched ahead of their use.

mod few;
mod input;
mod panels;
mod passes;
mod phase;
#[cfg(test)]
mod tests;
mod tiles;
pub(super) mod weight;

use std::cell::Cell;
use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

pub(super) use few::{are_few, convolve_few};
pub(super) use panels::WinogradPanels;
use panels::{FILTER_GAP, Panel};
pub(super) use passes::{fit, in_passes};
pub(super) use phase::{PLAIN, Phase, TWICE, worth_keeping, worth_making};

use super::ConvDims;
use super::part::{Base, Bias, Part, Target};
use crate::cache;
use crate::lanes::LINE;
use crate::memory::{Floats, Kept, with_kept};
use crate::par::Shared;
use crate::simd::{Isa, Simd, WithSimd, dispatch_to, opaque};
use input::Source;
use tiles::{Block, Grid, MOST_TILES, PATCH, POINTS, TILE, Tile, output_transform, uses};

/// Floats of transformed input that a block should have at most, and the fewest tiles that make good use of the filters
/// that stream past it. With AVX-512 the input takes 0.44 of the second-level cache, so that its products fit beside it;
/// elsewhere there is not always such a cache, and a quarter of a megabyte did as well as more. Sums over channels have the
/// same order in blocks of any size.
fn block_limits(isa: Isa, cache: Option<usize>) -> (usize, usize) {
    const LARGE: usize = 2 << 20;
    match (isa, cache.unwrap_or(LARGE)) {
        (Isa::Avx512, LARGE..) => (6400 * POINTS, 24),
        (Isa::Avx512, bytes) => ((bytes / 9).max(1600 * POINTS), 12),
        _ => (1600 * POINTS, 12),
    }
}
/// Tasks that a convolution should be divided into, so that several threads find work.
const TASKS: usize = 8;
/// Floats of a panel that are multiplied at a time: they stay in the first-level cache.
const CHUNK_FLOATS: usize = 6144;
/// Floats between the planes of two points beyond their content, so that the planes do not share cache sets.
const PLANE_GAP: usize = 16;
/// Rows that a register tile of any instruction set may touch beyond the tiles of a block.
const SLACK: usize = 12;

thread_local! {
    static TRANSFORMED: Cell<Floats> = const { Cell::new(Floats::new()) };
}
/// Where a thread keeps transformed tiles, their products, and taps to be transformed.
static SCRATCH: &Kept<f32> = &TRANSFORMED;

/// How tiles and outputs are divided among tasks: by shape alone.
#[derive(Clone, Copy, Debug)]
struct Plan {
    tiles: usize,
    /// Tiles of a block.
    block: usize,
    /// Panels of outputs.
    panels: usize,
    /// Parts that the panels are divided into where blocks are few: each transforms the input of its block anew.
    splits: usize,
}

impl Plan {
    fn new((floats, fewest): (usize, usize), tiles: usize, channels: usize, panels: usize) -> Self {
        let wide = (floats / POINTS / channels / 12 * 12).clamp(fewest, MOST_TILES);
        let shared = tiles.div_ceil(TASKS.div_ceil(panels)).next_multiple_of(6);
        let block = wide.min(shared).max(1);
        let splits = TASKS.div_ceil(tiles.div_ceil(block).max(1)).min(panels);
        Self { tiles, block, panels, splits }
    }

    fn tasks(&self) -> usize {
        self.tiles.div_ceil(self.block) * self.splits
    }

    /// Tiles and panels of a task.
    fn task(&self, task: usize) -> (Range<usize>, Range<usize>) {
        let (block, split) = (task / self.splits, task % self.splits);
        let tiles = block * self.block..self.tiles.min((block + 1) * self.block);
        (tiles, split * self.panels / self.splits..(split + 1) * self.panels / self.splits)
    }
}

/// A same-size convolution of the joined channels of `parts` with transformed filters, into the joined channels of
/// `targets`.
pub(super) fn convolve(
    d: &ConvDims,
    parts: &[Part<'_>],
    filter: &WinogradPanels,
    bias: Option<Bias<'_>>,
    targets: &mut [Target<'_>],
) {
    if fit(d, filter.channels, filter.step()) {
        return in_passes(filter.isa, d, parts, |patches| patches.convolve(filter, bias, targets));
    }
    convolve_in_blocks(block_limits(filter.isa, cache::second_level()), d, parts, filter, bias, targets);
}

/// As [`convolve`], in blocks within these limits, which do not change a bit of the result.
fn convolve_in_blocks(
    limits: (usize, usize),
    d: &ConvDims,
    parts: &[Part<'_>],
    filter: &WinogradPanels,
    bias: Option<Bias<'_>>,
    targets: &mut [Target<'_>],
) {
    let grid = Grid::new(d);
    let plan = Plan::new(limits, grid.tiles(), filter.channels, filter.count());
    assert_eq!(
        parts.iter().map(|part| part.channels).sum::<usize>(),
        filter.channels,
        "convolution: input channels of {d:?}"
    );
    let targets = places(d, filter, targets);
    let source = Source { parts, h: d.h, w: d.w };
    (0..plan.tasks()).into_par_iter().for_each(|task| {
        let (tiles, panels) = plan.task(task);
        let block = grid.block(tiles);
        let row = filter.channels;
        let task = Task {
            source,
            filter,
            row,
            started: false,
            bias,
            targets: &targets,
            block: &block,
            panels,
            tiles: plan.block,
        };
        with_kept(SCRATCH, POINTS * (task.in_plane() + task.out_plane()), |scratch| {
            dispatch_to(filter.isa, Staged(task, scratch));
        });
    });
}

/// Floats from point to point of the transformed input of a block with room for so many tiles.
fn in_plane(tiles: usize, channels: usize) -> usize {
    (tiles + SLACK) * channels + PLANE_GAP
}

/// Floats from point to point of the products of a block with room for so many tiles.
fn out_plane(filter: &WinogradPanels, tiles: usize) -> usize {
    // Register tiles of AVX2 have six rows at most.
    let slack = if filter.isa == Isa::Avx2 { 6 } else { SLACK };
    (tiles + slack) * filter.widest() + PLANE_GAP
}

/// Where the outputs of a filter go.
fn places<'a>(d: &ConvDims, filter: &WinogradPanels, targets: &'a mut [Target<'_>]) -> Vec<Place<'a>> {
    assert_eq!(
        targets.iter().map(|t| t.columns().len()).sum::<usize>(),
        filter.outputs,
        "convolution: output channels of {d:?}"
    );
    let place = |t: &'a mut Target<'_>| {
        let pixels = d.n * d.h * d.w * filter.step() * filter.step();
        assert_eq!(t.values.len(), pixels * t.channels, "convolution: floats of the output for {d:?}");
        Place { columns: t.columns(), channels: t.channels, base: t.base(), values: Shared::new(t.values) }
    };
    targets.iter_mut().map(place).collect()
}

/// Where some channels of the result go.
struct Place<'a> {
    /// The channels of the target that are written.
    columns: Range<usize>,
    /// All channels of the target.
    channels: usize,
    base: Base<'a>,
    values: Shared<'a, f32>,
}

/// A block of tiles.
struct Task<'a> {
    source: Source<'a>,
    filter: &'a WinogradPanels,
    /// Floats from tile to tile of the transformed input.
    row: usize,
    /// Whether the products hold sums already that those of these channels are added to.
    started: bool,
    bias: Option<Bias<'a>>,
    targets: &'a [Place<'a>],
    block: &'a Block,
    /// Panels of outputs.
    panels: Range<usize>,
    /// Tiles that a plane has room for.
    tiles: usize,
}

struct Staged<'a>(Task<'a>, &'a mut [f32]);

impl WithSimd for Staged<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Staged(task, scratch) = self;
        let (patches, products) = scratch.split_at_mut(POINTS * task.in_plane());
        task.source.transform(s, task.block.tiles(), 0..task.filter.channels, task.in_plane(), patches);
        for panel in task.panels.clone() {
            let panel = &task.filter.panel(panel);
            let (points, others) = panel.phase.points();
            for point in others {
                task.vanish(panel, &mut products[usize::from(*point) * task.out_plane()..]);
            }
            for (rank, point) in points.iter().enumerate() {
                // The next point's filters lie behind, and after the last point the next panel's.
                let filters = task.filter.filters(panel, rank);
                let next = usize::from(*points.get(rank + 1).unwrap_or(&points[0])) * task.in_plane();
                let then = Then {
                    filters: filters.as_ptr().wrapping_add(filters.len() + FILTER_GAP),
                    patches: &patches[next..][..task.in_plane()],
                };
                let point = usize::from(*point);
                let patches = &patches[point * task.in_plane()..][..task.in_plane()];
                let products = &mut products[point * task.out_plane()..][..task.out_plane()];
                task.multiply(s, (panel, point, filters), patches, products, then);
            }
            task.transform_output(s, panel, products);
        }
    }
}

/// What a product meets next.
#[derive(Clone, Copy)]
struct Then<'a> {
    filters: *const f32,
    /// The transformed input, where a block of it does not stay in the second-level cache while filters stream past; else nothing.
    patches: &'a [f32],
}

impl Task<'_> {
    /// Floats from point to point of the transformed input.
    fn in_plane(&self) -> usize {
        in_plane(self.tiles, self.row)
    }

    /// Floats from point to point of the products.
    fn out_plane(&self) -> usize {
        out_plane(self.filter, self.tiles)
    }

    /// The products at a point where the filters of a panel's phase vanish.
    #[inline(always)]
    fn vanish(&self, panel: &Panel, products: &mut [f32]) {
        products[..self.tiles * panel.width].fill(0.0);
    }

    /// The matrix product of a point for one panel of outputs, `[tile][width]`, with the filters there, and what comes `then`.
    #[inline(always)]
    fn multiply<S: Simd>(
        &self,
        s: S,
        at: (&Panel, usize, &[f32]),
        patches: &[f32],
        products: &mut [f32],
        then: Then<'_>,
    ) {
        let vectors = at.0.vectors;
        match S::LANES {
            16 => match vectors {
                4 => self.multiply_by::<S, 6, 3, 4>(s, at, patches, products, then),
                2 => self.multiply_by::<S, 12, 4, 2>(s, at, patches, products, then),
                _ => self.multiply_by::<S, 12, 8, 1>(s, at, patches, products, then),
            },
            8 => match vectors {
                3 => self.multiply_by::<S, 4, 2, 3>(s, at, patches, products, then),
                2 => self.multiply_by::<S, 6, 4, 2>(s, at, patches, products, then),
                _ => self.multiply_by::<S, 6, 3, 1>(s, at, patches, products, then),
            },
            _ if vectors == 2 => self.multiply_by::<S, 8, 4, 2>(s, at, patches, products, then),
            _ => self.multiply_by::<S, 6, 3, 1>(s, at, patches, products, then),
        }
    }

    /// [`Task::multiply`] in register tiles of `MR` rows and, for what is left, `LESS` rows.
    #[inline(always)]
    fn multiply_by<S: Simd, const MR: usize, const LESS: usize, const NV: usize>(
        &self,
        s: S,
        (panel, point, b): (&Panel, usize, &[f32]),
        patches: &[f32],
        products: &mut [f32],
        then: Then<'_>,
    ) {
        let (filter, width) = (self.filter, NV * S::LANES);
        let channels = filter.channels;
        assert_eq!(width, panel.width);
        let depth = CHUNK_FLOATS / width;
        let tiles = self.block.using(point / PATCH, point % PATCH);
        // Planes have room for the rows of a register tile beyond the tiles of the block.
        assert!(patches.len() >= (self.tiles + MR) * self.row && products.len() >= (self.tiles + MR) * width);
        assert!(tiles.end <= self.tiles && b.len() == channels * width && channels <= self.row);
        let mut unsent = then.patches.get(tiles.start * self.row..tiles.end * self.row).unwrap_or_default();
        for c in (0..channels).step_by(depth) {
            let chunk = &b[c * width..channels.min(c + depth) * width];
            let mut product = Product {
                a: patches[c..].as_ptr(),
                row: self.row,
                b: chunk.as_ptr(),
                depth: chunk.len() / width,
                out: products.as_mut_ptr(),
                accumulate: self.started || c > 0,
                ahead: then.filters,
            };
            let ahead = if c + depth < channels { chunk.as_ptr().wrapping_add(chunk.len()) } else { then.filters };
            let mut row = tiles.start;
            while row < tiles.end {
                // Each register tile fetches a line for every channel until all lines of the next chunk are fetched, then of the next
                // point's input.
                let line = (row - tiles.start) / MR * LINE * product.depth;
                let fetches = line < chunk.len() || !unsent.is_empty();
                if line < chunk.len() {
                    product.ahead = ahead.wrapping_add(line);
                } else {
                    product.ahead = unsent.as_ptr();
                    unsent = unsent.get(LINE * product.depth..).unwrap_or_default();
                }
                // SAFETY: the planes have `MR` rows beyond the tiles of the block, by the assertion, and rows of `channels` and
                // `width` floats.
                unsafe {
                    row += match (tiles.end - row <= LESS, fetches) {
                        (true, true) => product.tile::<S, LESS, NV, true>(s, row),
                        (true, false) => product.tile::<S, LESS, NV, false>(s, row),
                        (false, true) => product.tile::<S, MR, NV, true>(s, row),
                        (false, false) => product.tile::<S, MR, NV, false>(s, row),
                    };
                }
            }
        }
    }

    /// `A^T m A` of every tile for one panel of outputs, written to or added to the targets.
    #[inline(always)]
    fn transform_output<S: Simd>(&self, s: S, panel: &Panel, products: &[f32]) {
        let Panel { start, width, phase, .. } = *panel;
        let outputs = start..self.filter.outputs.min(start + width);
        let mut first = 0;
        for place in self.targets {
            let wanted = outputs.start.max(first)..outputs.end.min(first + place.columns.len());
            let lattice = Lattice::new(self.source, phase, place.channels);
            // All outputs of a tile in turn: they are neighbours where they are read and where they are written.
            for (index, tile) in self.block.tiles().iter().enumerate() {
                let next = self.block.tiles().get(index + 1).unwrap_or(tile);
                let (here, there) = (lattice.corner(self.source, tile), lattice.corner(self.source, next));
                for o in wanted.clone().step_by(S::LANES) {
                    let channel = place.columns.start + o - first;
                    let column = Column {
                        place,
                        lattice,
                        start: here + channel,
                        bias: self.bias.map(|bias| bias.from(o)),
                        source: products[index * width + o - start..].as_ptr(),
                        point: self.out_plane(),
                    };
                    if o == wanted.start || channel.is_multiple_of(LINE) {
                        column.expect(s, there + channel);
                    }
                    match (tile.is_whole(), place.base) {
                        (true, Base::Nothing) => column.tile::<S, true, false>(s, tile),
                        (true, _) => column.tile::<S, true, true>(s, tile),
                        (false, Base::Nothing) => column.tile::<S, false, false>(s, tile),
                        (false, _) => column.tile::<S, false, true>(s, tile),
                    }
                }
            }
            first += place.columns.len();
        }
    }
}

/// A matrix product of some rows with a chunk of a panel.
struct Product {
    a: *const f32,
    /// Floats from row to row of `a`.
    row: usize,
    b: *const f32,
    depth: usize,
    out: *mut f32,
    accumulate: bool,
    /// Where the next chunk is to be fetched from, a line for each step.
    ahead: *const f32,
}

impl Product {
    /// `out[first + i] (+)= sum_c a[first + i][c] b[c]` for `MR` rows, which it returns; with `AHEAD`, a line is fetched in each step.
    ///
    /// # Safety
    /// `a` and `out` must have the rows `first..first + MR`, those of `a` valid for `depth` floats, and `b` `depth` rows of
    /// `NV` vectors, as `out` has.
    #[inline(always)]
    unsafe fn tile<S: Simd, const MR: usize, const NV: usize, const AHEAD: bool>(&self, s: S, first: usize) -> usize {
        let width = NV * S::LANES;
        let out = self.out.wrapping_add(first * width);
        let rows: [*const f32; MR] = std::array::from_fn(|i| self.a.wrapping_add((first + i) * self.row));
        let mut sums = [[s.splat(0.0); NV]; MR];
        // SAFETY: the caller vouches for all three operands.
        unsafe {
            if self.accumulate {
                for (i, sums) in sums.iter_mut().enumerate() {
                    for (v, sum) in sums.iter_mut().enumerate() {
                        *sum = s.load(out.add(i * width + v * S::LANES));
                    }
                }
            }
            s.multiply::<MR, NV, AHEAD>(&rows, 1, self.b, self.depth, self.ahead, &mut sums);
            for (i, sums) in sums.iter().enumerate() {
                for (v, sum) in sums.iter().enumerate() {
                    s.store(out.add(i * width + v * S::LANES), *sum);
                }
            }
        }
        MR
    }
}

/// Where the pixels of a phase lie in a target.
#[derive(Clone, Copy)]
struct Lattice {
    /// Its first float.
    first: usize,
    /// Floats from row to row.
    row: usize,
    /// Floats from column to column.
    column: usize,
}

impl Lattice {
    #[inline(always)]
    fn new(pictures: Source<'_>, phase: &Phase, channels: usize) -> Self {
        let (step, w) = (phase.step(), phase.step() * pictures.w);
        let first = (phase.row * w + phase.column) * channels;
        Self { first, row: step * w * channels, column: step * channels }
    }

    /// The first float of a tile.
    #[inline(always)]
    fn corner(&self, pictures: Source<'_>, tile: &Tile) -> usize {
        self.first + (tile.n * pictures.h + tile.top) * self.row + tile.left * self.column
    }
}

/// A vector of outputs of a tile.
struct Column<'a> {
    place: &'a Place<'a>,
    lattice: Lattice,
    /// Where the first of them goes.
    start: usize,
    /// From this vector's outputs on.
    bias: Option<Bias<'a>>,
    /// The products at the first point.
    source: *const f32,
    /// Floats from point to point.
    point: usize,
}

impl Column<'_> {
    /// Sends for the lines of the tile that begins at `start`.
    #[inline(always)]
    fn expect<S: Simd>(&self, s: S, start: usize) {
        let y = self.place.values.start().wrapping_add(start);
        for i in 0..TILE {
            let row = y.wrapping_add(opaque(i * self.lattice.row));
            for j in 0..TILE {
                s.expect(row.wrapping_add(j * self.lattice.column));
            }
        }
    }

    #[inline(always)]
    fn tile<S: Simd, const WHOLE: bool, const ACCUMULATE: bool>(&self, s: S, tile: &Tile) {
        let (rows, cols) = if WHOLE { (TILE, TILE) } else { (tile.rows, tile.cols) };
        let (start, Lattice { row, column, .. }) = (self.start, self.lattice);
        let len = (rows - 1) * row + (cols - 1) * column + S::LANES;
        // Tiles do not overlap and neither do phases or vectors of channels, so no other task takes these floats among the others'.
        let y = self.place.values.among(start, len);
        let base = if let Base::Other(base) = self.place.base { base[start..][..len].as_ptr() } else { y };
        let target = Corner { y, base, row, column };
        // SAFETY: the bias has a number for every output, which come in whole vectors.
        let bias = self.bias.map_or(s.splat(0.0), |bias| unsafe { s.load(bias.at(tile.n, 0).as_ptr()) });
        let mut half = [MaybeUninit::uninit(); PATCH];
        if WHOLE {
            for (u, half) in half.iter_mut().enumerate() {
                half.write(self.transform_row::<S, TILE>(s, u, bias));
            }
            for j in 0..TILE {
                // SAFETY: all rows were written.
                unsafe { self.transform_column::<S, TILE, ACCUMULATE>(s, &half, j, target) };
            }
            return;
        }
        for (u, half) in half.iter_mut().enumerate().filter(|&(u, _)| uses(rows, u)) {
            half.write(match cols {
                4 => self.transform_row::<S, 4>(s, u, bias),
                3 => self.transform_row::<S, 3>(s, u, bias),
                2 => self.transform_row::<S, 2>(s, u, bias),
                _ => self.transform_row::<S, 1>(s, u, bias),
            });
        }
        for j in 0..cols {
            // SAFETY: the rows that so many outputs use were written.
            unsafe {
                match rows {
                    4 => self.transform_column::<S, 4, ACCUMULATE>(s, &half, j, target),
                    3 => self.transform_column::<S, 3, ACCUMULATE>(s, &half, j, target),
                    2 => self.transform_column::<S, 2, ACCUMULATE>(s, &half, j, target),
                    _ => self.transform_column::<S, 1, ACCUMULATE>(s, &half, j, target),
                }
            }
        }
    }

    /// `m A` of row `u` of a tile with `M` columns; the bias is among the products.
    #[inline(always)]
    fn transform_row<S: Simd, const M: usize>(&self, s: S, u: usize, bias: S::V) -> [S::V; TILE] {
        let row = self.source.wrapping_add(opaque(u * PATCH * self.point));
        let mut products = std::array::from_fn(|v| {
            if uses(M, v) {
                // SAFETY: every point has the products of every tile of the block.
                unsafe { s.load(row.add(v * self.point)) }
            } else {
                s.splat(0.0)
            }
        });
        // The point 1 along both axes is part of every output, with the factor one.
        if u == 1 {
            products[1] = s.add(products[1], bias);
        }
        output_transform(s, M, products)
    }

    /// `A^T m` of column `j` of a tile with `M` rows, stored or added.
    ///
    /// # Safety
    /// The rows that `M` outputs use must have been written.
    #[inline(always)]
    unsafe fn transform_column<S: Simd, const M: usize, const ACCUMULATE: bool>(
        &self,
        s: S,
        half: &[MaybeUninit<[S::V; TILE]>; PATCH],
        j: usize,
        target: Corner,
    ) {
        let mut products = [s.splat(0.0); PATCH];
        for (u, (product, half)) in products.iter_mut().zip(half).enumerate() {
            if uses(M, u) {
                // SAFETY: by the caller's word.
                *product = unsafe { half.assume_init_ref()[j] };
            }
        }
        let column = output_transform(s, M, products);
        for (i, value) in column.into_iter().enumerate().take(M) {
            // SAFETY: row `i` and column `j` of the tile lie within the parts of the target and of its base that were taken.
            unsafe {
                let at = i * target.row + j * target.column;
                let value = if ACCUMULATE { s.add(value, s.load(target.base.add(at))) } else { value };
                s.store(target.y.add(at), value);
            }
        }
    }
}

/// Where the first pixel of a tile is written.
#[derive(Clone, Copy)]
struct Corner {
    y: *mut f32,
    /// What it is added to, if anything.
    base: *const f32,
    /// Floats from row to row of the outputs.
    row: usize,
    /// Floats from column to column.
    column: usize,
}
