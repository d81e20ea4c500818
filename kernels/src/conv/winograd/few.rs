//! Convolutions of so few tiles that transformed filters, four times as many numbers as filters have, would be written to memory and
//! read again for next to no use: each is transformed into the second-level cache, some channels at a time, meets all tiles
//! and is forgotten. Sums over channels have the order that they have in blocks, so the bits are the same.

use std::cell::Cell;

use super::input::Source;
use super::passes::{Finish, Multiply, Transform};
use super::tiles::{Block, Grid, MOST_TILES, POINTS};
use super::{Bias, ConvDims, PLAIN, Part, Place, Target, Task, WinogradPanels, in_plane, out_plane};
use crate::memory::{Floats, Kept, with_kept};
use crate::par::{Shared, shares, tasks};
use crate::simd::{Isa, dispatch_to};
use crate::weight::Weight;

/// Tiles that are few.
const FEW_TILES: usize = 32;
/// Panels and channels whose filters meet the tiles together: filters and products fit into half a megabyte.
const PANELS_AT_ONCE: usize = 2;
const AT_ONCE: usize = 32;

thread_local! {
    static PATCHES: Cell<Floats> = const { Cell::new(Floats::new()) };
    static PRODUCTS: Cell<Floats> = const { Cell::new(Floats::new()) };
    static FILTERS: Cell<Floats> = const { Cell::new(Floats::new()) };
}

/// Whether pictures of this size have few tiles.
pub(in crate::conv) fn are_few(d: &ConvDims) -> bool {
    Grid::new(d).tiles() <= FEW_TILES
}

/// Convolves with filters as a file holds them, `[output][channel][tap]`; every part must have whole vectors of channels.
pub(in crate::conv) fn convolve_few(
    isa: Isa,
    d: &ConvDims,
    parts: &[Part<'_>],
    weight: Weight<'_>,
    bias: Option<Bias<'_>>,
    target: &mut Target<'_>,
) {
    let (grid, channels, columns) = (Grid::new(d), d.c_in, target.columns());
    assert_eq!(parts.iter().map(|part| part.channels).sum::<usize>(), channels, "convolution: input channels of {d:?}");
    assert_eq!(target.values.len(), d.n * d.h * d.w * target.channels, "convolution: floats of the output for {d:?}");
    let source = Source { parts, h: d.h, w: d.w };
    let blocks: Vec<Block> = shares(0..grid.tiles(), MOST_TILES).map(|tiles| grid.block(tiles)).collect();
    let tiles = blocks.iter().map(|block| block.tiles().len()).max().unwrap_or(0);
    let few = Few { isa, source, blocks: &blocks, tiles, channels, weight };
    with_kept(&PATCHES as &Kept<f32>, few.shares() * few.share_floats(), |patches| {
        let shared = Shared::new(patches);
        tasks(few.shares(), |share| {
            // SAFETY: each task takes the place of its own channels.
            few.transform(share, unsafe { shared.part(share * few.share_floats(), few.share_floats()) });
        });
        let panelling = WinogradPanels::panelling(isa, columns.len());
        let (all, base) = (target.channels, target.base());
        let (out, patches) = (Shared::new(target.values), &*patches);
        tasks(panelling.count().div_ceil(PANELS_AT_ONCE), |i| {
            let end = panelling.count().min((i + 1) * PANELS_AT_ONCE);
            let outputs = panelling.start(i * PANELS_AT_ONCE)..columns.len().min(panelling.start(end));
            let columns = columns.start + outputs.start..columns.start + outputs.end;
            let place = Place { columns, channels: all, base, values: out };
            few.convolve(patches, outputs.start, bias.map(|bias| bias.from(outputs.start)), place);
        });
    });
}

/// What all tasks share.
struct Few<'a> {
    isa: Isa,
    source: Source<'a>,
    blocks: &'a [Block],
    /// Tiles that a plane has room for.
    tiles: usize,
    channels: usize,
    weight: Weight<'a>,
}

impl Few<'_> {
    /// Times that some channels are met.
    fn shares(&self) -> usize {
        self.channels.div_ceil(AT_ONCE)
    }

    /// Floats of the transformed input of a share's channels, `[block][point][tile][channel]`.
    fn share_floats(&self) -> usize {
        self.blocks.len() * POINTS * in_plane(self.tiles, AT_ONCE)
    }

    /// The first channel of a share, and how many it has.
    fn share(&self, share: usize) -> (usize, usize) {
        let first = share * AT_ONCE;
        (first, AT_ONCE.min(self.channels - first))
    }

    fn transform(&self, share: usize, patches: &mut [f32]) {
        let Self { isa, source, .. } = *self;
        let (first, row) = self.share(share);
        let plane = in_plane(self.tiles, row);
        for (block, patches) in self.blocks.iter().zip(patches.chunks_exact_mut(POINTS * plane)) {
            let (channels, patches) = (first..first + row, Shared::new(patches));
            dispatch_to(isa, Transform { source, block, channels, row, plane, patches, place: 0 });
        }
    }

    /// The outputs from `first_output` on, as many as `place` takes.
    fn convolve(&self, patches: &[f32], first_output: usize, bias: Option<Bias<'_>>, place: Place<'_>) {
        let Self { isa, source, blocks, tiles, .. } = *self;
        let targets = &[place][..];
        let mut filter = WinogradPanels::within(FILTERS.take(), isa, PLAIN, AT_ONCE, targets[0].columns.len());
        let count = filter.count();
        let plane = out_plane(&filter, tiles);
        with_kept(&PRODUCTS as &Kept<f32>, blocks.len() * count * POINTS * plane, |products| {
            let products = Shared::new(products);
            for (share, patches) in patches.chunks_exact(self.share_floats()).take(self.shares()).enumerate() {
                let (first, len) = self.share(share);
                filter.set_channels(len);
                filter.fill_part(self.weight, first_output, first, self.channels);
                let in_plane = in_plane(tiles, len);
                for (b, block) in blocks.iter().enumerate() {
                    for point in 0..POINTS {
                        let (filter, panels, started) = (&filter, 0..count, share > 0);
                        let task = Task { source, filter, row: len, started, bias, targets, block, panels, tiles };
                        let patches = &patches[(b * POINTS + point) * in_plane..][..in_plane];
                        let place = (b * count * POINTS + point) * plane;
                        dispatch_to(isa, Multiply { task, point, then: point, patches, products, place });
                    }
                }
            }
            for (b, block) in blocks.iter().enumerate() {
                for panel in 0..count {
                    // SAFETY: nobody writes the products any more.
                    let products = unsafe { products.read((b * count + panel) * POINTS * plane, POINTS * plane) };
                    let (filter, panels, row) = (&filter, panel..panel + 1, AT_ONCE);
                    let task = Task { source, filter, row, started: true, bias, targets, block, panels, tiles };
                    dispatch_to(isa, Finish { task, panel, products });
                }
            }
        });
        FILTERS.set(filter.into_memory());
    }
}
