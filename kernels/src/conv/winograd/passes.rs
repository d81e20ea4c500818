//! Convolutions with so many channels that a block of transformed tiles leaves no room for anything else in the
//! second-level cache, or of so few tiles that several tasks would have to transform the same: one stage after the other, each
//! for many tiles.
//!
//! The input is transformed once. Then the matrices of each point meet the filters, a block of tiles and a chunk of channels at
//! a time as in any matrix product, and the products are transformed. What lies between the stages stays in the third-level
//! cache, if there is one. Sums over channels have the order that they have in blocks, so the bits are the same.

use std::cell::Cell;
use std::ops::Range;

use super::input::Source;
use super::tiles::{Block, Grid, POINTS};
use super::{Bias, ConvDims, Part, TASKS, Target, Task, Then, WinogradPanels, in_plane, out_plane, places};
use crate::lanes::LINE;
use crate::memory::{Floats, Kept, with_kept};
use crate::par::{Shared, shares, tasks};
use crate::simd::{Isa, Simd, WithSimd, dispatch_to};

/// Channels from which on this is the faster way, and how many tiles have it so with half as many channels: blocks of so few would
/// be transformed once for each of the tasks that share the filters.
const FEWEST_CHANNELS: usize = 512;
const FEW_TILES: usize = 64;
/// Floats of the transformed input of the tiles that are worked on at a time, and the fewest of these tiles.
const PATCH_FLOATS: usize = 1 << 19;
const FEWEST_TILES: usize = 128;
/// Floats of a block's transformed input at one point, which stay in the second-level cache, and tiles of a block at most.
const BLOCK_FLOATS: usize = 1 << 16;
const MOST_TILES: usize = 48;
/// The fewest lines of channels that a task transforms.
const FEWEST_LINES: usize = 2;
/// Floats of the products that are kept at a time, unless those of a single panel are more.
const PRODUCT_FLOATS: usize = 1 << 21;

thread_local! {
    static PATCHES: Cell<Floats> = const { Cell::new(Floats::new()) };
    static PRODUCTS: Cell<Floats> = const { Cell::new(Floats::new()) };
}

/// Whether a convolution of so many channels, those of `d` on either side, is computed here. The filters of a result of twice the size,
/// whose step is 2, are more than blocks should have stream past them with half as many channels.
pub(in crate::conv) fn fit(d: &ConvDims, channels: usize, step: usize) -> bool {
    let tiles = Grid::new(d).tiles();
    channels * step >= FEWEST_CHANNELS || tiles <= FEW_TILES && 2 * tiles <= channels
}

/// The transformed input of some tiles.
pub(in crate::conv) struct Patches<'a> {
    d: &'a ConvDims,
    channels: usize,
    blocks: &'a [Block],
    /// Tiles that a block has room for.
    room: usize,
    /// `[block][point][tile][channel]`, with room beyond.
    values: &'a [f32],
}

/// Calls `meet` with the transformed input of some tiles after the other, until all tiles had their turn; every part must
/// have whole vectors of channels.
pub(in crate::conv) fn in_passes(isa: Isa, d: &ConvDims, parts: &[Part<'_>], mut meet: impl FnMut(&Patches<'_>)) {
    let (grid, channels) = (Grid::new(d), parts.iter().map(|part| part.channels).sum::<usize>());
    let source = Source { parts, h: d.h, w: d.w };
    for range in shares(0..grid.tiles(), (PATCH_FLOATS / POINTS / channels).max(FEWEST_TILES)) {
        // A multiple of the rows of some register tile.
        let room = (BLOCK_FLOATS / channels / 4 * 4).clamp(12, MOST_TILES);
        let blocks: Vec<Block> = shares(range, room).map(|tiles| grid.block(tiles)).collect();
        let room = blocks.iter().map(|block| block.tiles().len()).max().unwrap_or(0);
        let plane = in_plane(room, channels);
        let lines = channels.div_ceil(LINE);
        let lines: Vec<Range<usize>> = shares(0..lines, (lines * blocks.len() / TASKS).max(FEWEST_LINES)).collect();
        with_kept(&PATCHES as &Kept<f32>, blocks.len() * POINTS * plane, |values| {
            let patches = Shared::new(values);
            // Each task writes some channels of one block.
            tasks(blocks.len() * lines.len(), |i| {
                let (block, lines) = (i / lines.len(), &lines[i % lines.len()]);
                let (row, channels) = (channels, lines.start * LINE..channels.min(lines.end * LINE));
                let place = block * POINTS * plane + channels.start;
                dispatch_to(isa, Transform { source, block: &blocks[block], channels, row, plane, patches, place });
            });
            meet(&Patches { d, channels, blocks: &blocks, room, values });
        });
    }
}

/// The transform of some channels of a block's input. Nobody else may use what it writes.
pub(super) struct Transform<'a> {
    pub(super) source: Source<'a>,
    pub(super) block: &'a Block,
    pub(super) channels: Range<usize>,
    /// Floats from tile to tile of the result.
    pub(super) row: usize,
    /// Floats from point to point of the result.
    pub(super) plane: usize,
    pub(super) patches: Shared<'a, f32>,
    /// Where the first of these channels goes.
    pub(super) place: usize,
}

impl WithSimd for Transform<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { source, block, channels, row, plane, patches, place } = self;
        let tiles = block.tiles();
        assert!(channels.len() <= row && tiles.len() * row <= plane);
        let len = (POINTS - 1) * plane + tiles.len().saturating_sub(1) * row + channels.len();
        // SAFETY: there is room for every point of every tile, and each task takes the place of its own channels and block.
        unsafe { source.transform_among(s, tiles, channels, (row, plane), patches.among(place, len)) };
    }
}

impl Patches<'_> {
    /// Convolves these tiles with the filters, into the joined channels of `targets`.
    pub(in crate::conv) fn convolve(
        &self,
        filter: &WinogradPanels,
        bias: Option<Bias<'_>>,
        targets: &mut [Target<'_>],
    ) {
        let Self { d, channels, blocks, room, values } = *self;
        assert_eq!(filter.channels, channels, "convolution: input channels of {d:?}");
        let targets = places(d, filter, targets);
        let source = Source { parts: &[], h: d.h, w: d.w };
        let (in_plane, out_plane) = (in_plane(room, filter.channels), out_plane(filter, room));
        let most = (PRODUCT_FLOATS / (POINTS * out_plane * blocks.len()).max(1)).max(1);
        for panels in shares(0..filter.count(), most) {
            let task = |block: &'_ usize| Task {
                source,
                filter,
                row: filter.channels,
                started: false,
                bias,
                targets: &targets,
                block: &blocks[*block],
                panels: panels.clone(),
                tiles: room,
            };
            with_kept(&PRODUCTS as &Kept<f32>, blocks.len() * panels.len() * POINTS * out_plane, |products| {
                let shared = Shared::new(products);
                // All blocks meet the filters of a point before those of the next come from memory.
                tasks(blocks.len() * POINTS, |i| {
                    let (point, block) = (i / blocks.len(), i % blocks.len());
                    let patches = &values[(block * POINTS + point) * in_plane..][..in_plane];
                    let place = (block * panels.len() * POINTS + point) * out_plane;
                    let (task, then) = (task(&block), (i + 1) / blocks.len() % POINTS);
                    dispatch_to(filter.isa, Multiply { task, point, then, patches, products: shared, place });
                });
                tasks(blocks.len() * panels.len(), |i| {
                    let (block, panel) = (i / panels.len(), panels.start + i % panels.len());
                    // SAFETY: nobody writes the products any more.
                    let products = unsafe { shared.read(i * POINTS * out_plane, POINTS * out_plane) };
                    dispatch_to(filter.isa, Finish { task: task(&block), panel, products });
                });
            });
        }
    }
}

/// The products of a block at one point with some panels.
pub(super) struct Multiply<'a> {
    pub(super) task: Task<'a>,
    pub(super) point: usize,
    /// The point that this thread will most likely go on with.
    pub(super) then: usize,
    pub(super) patches: &'a [f32],
    pub(super) products: Shared<'a, f32>,
    /// Where those of the first panel go; those of the next follow after all points.
    pub(super) place: usize,
}

impl WithSimd for Multiply<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { task, point, then, patches, products, place } = self;
        let plane = task.out_plane();
        for (i, index) in task.panels.clone().enumerate() {
            let panel = &task.filter.panel(index);
            // SAFETY: each task takes the planes of its own block and point.
            let products = unsafe { products.part(place + i * POINTS * plane, plane) };
            let Some(rank) = panel.phase.rank(point) else {
                task.vanish(panel, products);
                continue;
            };
            let filters = task.filter.filters(panel, rank);
            let next = if index + 1 < task.panels.end { (index + 1, point) } else { (task.panels.start, then) };
            let next = (&task.filter.panel(next.0), next.1);
            let then = next.0.phase.rank(next.1).map_or(filters, |rank| task.filter.filters(next.0, rank));
            let then = Then { filters: then.as_ptr(), patches: &[] };
            task.multiply(s, (panel, point, filters), patches, products, then);
        }
    }
}

/// The transform of a block's products for one panel.
pub(super) struct Finish<'a> {
    pub(super) task: Task<'a>,
    pub(super) panel: usize,
    pub(super) products: &'a [f32],
}

impl WithSimd for Finish<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        self.task.transform_output(s, &self.task.filter.panel(self.panel), self.products);
    }
}
