//! The product of gathered input rows with packed filter panels.

use std::cell::Cell;
use std::ops::Range;

use super::TASKS;
use super::pack::Panels;
use super::part::Part;
use super::tile::{Place, begin, store, sum_lanes};
use crate::lanes::{LINE, SQUARE};
use crate::memory::{Aligned, Floats, Kept, with_kept};
use crate::par::{Shared, tasks};
use crate::simd::{Isa, Simd, WithSimd, dispatch_to};

/// Output rows of a task at most; their inputs stay in the second-level cache over all taps and panels.
const BLOCK_ROWS: usize = 96;

/// Steps of the inner product between two visits of a tile: a panel's share of this depth stays in the first-level cache.
const BLOCK_DEPTH: usize = 128;

/// Rows whose inputs are packed side by side.
const GROUP: usize = SQUARE;
/// Inputs of a row that are packed at most, and the fewest rows and panels that this is worth for.
const MOST_PACKED: usize = 8192;
const FEWEST_ROWS: usize = 24;
const FEWEST_PANELS: usize = 6;
/// Floats of packed inputs that tasks share at most; beyond, each packs its own.
const MOST_SHARED: usize = 1 << 22;

/// Floating-point operations below which a task is not worth what it costs to start one.
const TASK_FLOPS: usize = 1 << 19;

/// The place of a row of zeros among the sources.
const OUTSIDE: usize = usize::MAX;

thread_local! {
    /// For each tap and row of a block the pixel that it meets.
    static SOURCES: Cell<Aligned<usize>> = const { Cell::new(Aligned::new()) };
    /// What lies outside of the picture.
    static ZEROS: Cell<Floats> = const { Cell::new(Floats::new()) };
    /// A block's inputs, packed; those of all blocks.
    static PACKED: Cell<Floats> = const { Cell::new(Floats::new()) };
    static SHARED: Cell<Floats> = const { Cell::new(Floats::new()) };
}

/// What an output tile holds before the first product is added.
#[derive(Clone, Copy)]
pub(super) enum Start<'a> {
    /// The bias, or zeros.
    Bias(Option<&'a [f32]>),
    /// What the output holds already.
    Accumulate,
}

/// `y[row] (+)= sum_tap x[source(row, tap)] W[tap]`.
#[derive(Clone, Copy)]
pub(super) struct Gather<'a> {
    /// What its channels are joined from: plain, and not empty.
    pub(super) parts: &'a [Part<'a>],
    pub(super) channels: usize,
    pub(super) panels: &'a Panels,
    pub(super) start: Start<'a>,
    /// Floats of an output pixel, and the first of them that the panels make.
    pub(super) row: usize,
    pub(super) first: usize,
}

/// A filter tap: its row and column.
pub(super) type Tap = (usize, usize);

impl Gather<'_> {
    /// Output rows `0..rows`. A row's place in the pictures is worked out once; `pixel` turns it into the output pixel
    /// that the row is written to (no two rows may share one), and `source` into the input pixel it meets under a tap.
    pub(super) fn rows<P: Copy>(
        &self,
        y: &mut [f32],
        rows: usize,
        taps: &[Tap],
        place: impl Fn(usize) -> P + Sync,
        pixel: impl Fn(P) -> usize + Sync,
        source: impl Fn(P, Tap) -> Option<usize> + Sync,
    ) {
        let (outputs, channels) = (self.panels.outputs, self.channels);
        if rows == 0 || outputs == 0 {
            return;
        }
        let pixels = self.parts.first().map_or(0, |part| part.values.len() / part.channels.max(1));
        let y_len = y.len();
        let out = Shared::new(y);
        let (panels, worth) = (self.panels.panelling.count(), 2 * rows * outputs * channels * taps.len() / TASK_FLOPS);
        // Blocks of one size, so that none waits for another.
        let in_block = rows.div_ceil(rows.div_ceil(BLOCK_ROWS)).next_multiple_of(GROUP).min(BLOCK_ROWS);
        let blocks = rows.div_ceil(in_block);
        // Few rows: the outputs are divided, too, into equal parts if there are some.
        let splits = TASKS.min(worth).div_ceil(blocks).clamp(1, panels);
        let splits = (splits..=panels.min(2 * splits)).find(|splits| panels.is_multiple_of(*splits)).unwrap_or(splits);
        let with_block = |block: usize, panels: Range<usize>, run: &dyn Fn(Block<'_>)| {
            let first = block * in_block;
            let count = in_block.min(rows - first);
            with_kept(&SOURCES as &Kept<usize>, taps.len() * BLOCK_ROWS, |sources| {
                sources.fill(OUTSIDE);
                let mut places = [0usize; BLOCK_ROWS];
                for (r, at) in places[..count].iter_mut().enumerate() {
                    let place = place(first + r);
                    *at = pixel(place) * self.row + self.first;
                    assert!(*at + outputs <= y_len, "convolution: output row {at} of {y_len}");
                    for (t, &tap) in taps.iter().enumerate().filter(|_| channels > 0) {
                        if let Some(pixel) = source(place, tap) {
                            assert!(pixel < pixels, "convolution: input pixel {pixel} of {pixels}");
                            sources[t * BLOCK_ROWS + r] = pixel;
                        }
                    }
                }
                with_kept(&ZEROS as &Kept<f32>, channels, |zeros| {
                    zeros.fill(0.0);
                    run(Block { gather: self, taps, sources, zeros, places: &places[..count], panels, y: out.start() });
                });
            });
        };
        let isa = self.panels.isa;
        let panels_of = |split: usize| split * panels / splits..(split + 1) * panels / splits;
        let packed_block = in_block.next_multiple_of(GROUP) * self.packed_inputs(in_block, taps.len());
        if splits == 1 || packed_block == 0 || blocks * packed_block > MOST_SHARED {
            tasks(blocks * splits, |task| {
                with_block(task / splits, panels_of(task % splits), &|block| {
                    let worth = block.panels.len() >= FEWEST_PANELS;
                    with_kept(&PACKED as &Kept<f32>, if worth { packed_block } else { 0 }, |packed| {
                        if !packed.is_empty() {
                            dispatch_to(isa, Pack { block: &block, packed });
                        }
                        dispatch_to(isa, Run { block, packed });
                    });
                });
            });
            return;
        }
        // Several tasks meet the same rows.
        with_kept(&SHARED as &Kept<f32>, blocks * packed_block, |packed| {
            let shared = Shared::new(packed);
            tasks(blocks, |index| {
                with_block(index, 0..0, &|block| {
                    // SAFETY: each task packs its own block, once.
                    let packed = unsafe { shared.part(index * packed_block, packed_block) };
                    dispatch_to(isa, Pack { block: &block, packed });
                });
            });
            let packed = &*packed;
            tasks(blocks * splits, |task| {
                let index = task / splits;
                let packed = &packed[index * packed_block..][..packed_block];
                with_block(index, panels_of(task % splits), &|block| dispatch_to(isa, Run { block, packed }));
            });
        });
    }

    /// Inputs of a row, if blocks of so many rows are to be packed; else zero.
    ///
    /// Packed they are one stream for the processor to fetch ahead instead of one for each row of a tile.
    fn packed_inputs(&self, rows: usize, taps: usize) -> usize {
        let (panels, inputs) = (self.panels, taps * self.channels);
        let worth = rows >= FEWEST_ROWS && panels.panelling.count() >= FEWEST_PANELS && inputs <= MOST_PACKED;
        // Of other tiles it was not measured.
        let measured = panels.isa == Isa::Avx2 && panels.panelling.vectors(0) == 3;
        if worth && measured { inputs } else { 0 }
    }
}

/// One task: a block of output rows, some panels.
struct Block<'a> {
    gather: &'a Gather<'a>,
    taps: &'a [Tap],
    /// `[tap][BLOCK_ROWS]`: a pixel, or [`OUTSIDE`].
    sources: &'a [usize],
    zeros: &'a [f32],
    /// Where each output row begins in `y`.
    places: &'a [usize],
    panels: Range<usize>,
    y: *mut f32,
}

/// The packing of a block's inputs.
struct Pack<'a> {
    block: &'a Block<'a>,
    packed: &'a mut [f32],
}

impl WithSimd for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        self.block.pack(s, self.packed);
    }
}

/// A task and its packed inputs; none where they are read where they lie.
struct Run<'a> {
    block: Block<'a>,
    packed: &'a [f32],
}

impl WithSimd for Run<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { block, packed } = self;
        let panelling = block.gather.panels.panelling;
        if panelling.vectors(0) == 0 {
            return block.dots(s);
        }
        if !packed.is_empty() {
            for panel in block.panels.clone() {
                match panelling.vectors(panel) {
                    3 => block.run_packed::<S, 4, 3>(s, panel, packed),
                    _ => block.run_packed::<S, 4, 2>(s, panel, packed),
                }
            }
            return;
        }
        // The tile's shape fills the registers: MR * NV sums, NV filter vectors and one broadcast. The last rows take
        // a tile of half the height, or a single row.
        for panel in block.panels.clone() {
            let vectors = panelling.vectors(panel);
            match S::LANES {
                16 => match vectors {
                    4 => block.run::<S, 6, 3, 4>(s, panel),
                    2 => block.run::<S, 12, 6, 2>(s, panel),
                    _ => block.run::<S, 12, 6, 1>(s, panel),
                },
                8 => match vectors {
                    3 => block.run::<S, 4, 2, 3>(s, panel),
                    2 => block.run::<S, 6, 3, 2>(s, panel),
                    _ => block.run::<S, 6, 3, 1>(s, panel),
                },
                _ if vectors == 2 => block.run::<S, 8, 4, 2>(s, panel),
                _ => block.run::<S, 6, 3, 1>(s, panel),
            }
        }
    }
}

/// Some steps of the product for all rows of a block and one panel.
struct Slice<'a> {
    first_output: usize,
    filter: &'a [f32],
    taps: Range<usize>,
    depth: Range<usize>,
    start: Start<'a>,
}

/// The steps of the product of some taps and channels, in the order in which they are added: as many at a time as keep a
/// panel's share in the first-level cache, and as lie in one part.
struct Slices<'a> {
    taps: usize,
    parts: &'a [Part<'a>],
    tap: usize,
    part: usize,
    piece: usize,
    /// Channels of the parts before.
    before: usize,
}

impl<'a> Slices<'a> {
    #[inline(always)]
    fn new(taps: usize, parts: &'a [Part<'a>]) -> Self {
        Self { taps, parts, tap: 0, part: 0, piece: 0, before: 0 }
    }
}

impl Iterator for Slices<'_> {
    type Item = (Range<usize>, Range<usize>);

    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        let channels = self.parts[self.part].channels;
        if self.tap >= self.taps || channels == 0 {
            return None;
        }
        // Taps are met together only where they meet all channels.
        let at_once = if self.parts.len() == 1 { (BLOCK_DEPTH / channels).max(1) } else { 1 };
        let taps = self.tap..(self.tap + at_once).min(self.taps);
        // Pieces as equal as can be.
        let (piece, pieces) = (self.piece, channels.div_ceil(BLOCK_DEPTH));
        let depth = self.before + piece * channels / pieces..self.before + (piece + 1) * channels / pieces;
        self.piece += 1;
        if self.piece == pieces {
            (self.part, self.piece, self.before) = (self.part + 1, 0, self.before + channels);
        }
        if self.part == self.parts.len() {
            (self.tap, self.part, self.before) = (taps.end, 0, 0);
        }
        Some((taps, depth))
    }
}

impl Block<'_> {
    /// The products of all rows with a panel.
    #[inline(always)]
    fn run<S: Simd, const MR: usize, const HALF: usize, const NV: usize>(&self, s: S, panel: usize) {
        let (first_output, filter, mut start) = self.begin::<S, NV>(panel);
        if self.taps.is_empty() || self.gather.channels == 0 {
            let slice = Slice { first_output, filter, taps: 0..0, depth: 0..0, start };
            self.tiles::<S, MR, HALF, NV>(s, &slice);
        }
        for (taps, depth) in Slices::new(self.taps.len(), self.gather.parts) {
            let slice = Slice { first_output, filter, taps, depth, start };
            self.tiles::<S, MR, HALF, NV>(s, &slice);
            start = Start::Accumulate;
        }
    }

    /// The first output of a panel, its filters and what its tiles hold before the first product.
    #[inline(always)]
    fn begin<S: Simd, const NV: usize>(&self, panel: usize) -> (usize, &[f32], Start<'_>) {
        let (panels, channels) = (self.gather.panels, self.gather.channels);
        assert!(NV * S::LANES == panels.panelling.width(panel));
        assert!(channels == panels.channels && self.zeros.len() == channels);
        (panels.panelling.start(panel), panels.panel(panel), self.gather.start)
    }

    /// Where row `row` finds `depth` of the channels that it meets under tap `t`; rows beyond the last find those of the last.
    #[inline(always)]
    fn source(&self, t: usize, row: usize, depth: &Range<usize>) -> *const f32 {
        let pixel = self.sources[t * BLOCK_ROWS + row.min(self.places.len() - 1)];
        let (mut part, mut first) = (&self.gather.parts[0], 0);
        for next in &self.gather.parts[1..] {
            if depth.start >= first + part.channels {
                (first, part) = (first + part.channels, next);
            }
        }
        let depth = depth.start - first..depth.end - first;
        let values = match pixel {
            OUTSIDE => self.zeros,
            _ => &part.values[pixel * part.channels..][..part.channels],
        };
        values[depth].as_ptr()
    }

    /// Packs what the rows meet: for each slice `[group of rows][tap and channel][row]`.
    #[inline(always)]
    fn pack<S: Simd>(&self, s: S, mut packed: &mut [f32]) {
        for (taps, depth) in Slices::new(self.taps.len(), self.gather.parts) {
            for first in (0..self.places.len()).step_by(GROUP) {
                for t in taps.clone() {
                    let mut sources = [std::ptr::null(); GROUP];
                    for (i, source) in sources.iter_mut().enumerate() {
                        *source = self.source(t, first + i, &depth);
                    }
                    let (group, rest) = packed.split_at_mut(GROUP * depth.len());
                    packed = rest;
                    let whole = depth.len() - depth.len() % SQUARE;
                    let (squares, left) = group.split_at_mut(GROUP * whole);
                    for (c, square) in (0..whole).step_by(SQUARE).zip(squares.chunks_exact_mut(GROUP * SQUARE)) {
                        // SAFETY: each source has `depth.len()` floats, and the square has room for as many rows and columns.
                        unsafe { s.turn(&sources.map(|source| source.add(c)), square.as_mut_ptr(), GROUP) };
                    }
                    for (c, to) in (whole..depth.len()).zip(left.chunks_exact_mut(GROUP)) {
                        // SAFETY: as above.
                        (0..GROUP).for_each(|i| to[i] = unsafe { *sources[i].add(c) });
                    }
                }
            }
        }
    }

    /// [`Block::run`] of packed inputs.
    #[inline(always)]
    fn run_packed<S: Simd, const MR: usize, const NV: usize>(&self, s: S, panel: usize, packed: &[f32]) {
        let (first_output, filter, mut start) = self.begin::<S, NV>(panel);
        let (width, rows) = (NV * S::LANES, self.places.len().next_multiple_of(GROUP));
        let mut packed = packed;
        for (taps, depth) in Slices::new(self.taps.len(), self.gather.parts) {
            let steps = taps.len() * depth.len();
            let (inputs, rest) = packed.split_at(rows * steps);
            packed = rest;
            let slice = Slice { first_output, filter, taps, depth, start };
            // The first tiles fetch what comes after this share of the panel.
            let (mut ahead, mut left) =
                (self.share(&slice, slice.taps.end - 1, width).as_ptr_range().end, width * steps);
            for row in (0..self.places.len()).step_by(MR) {
                let inputs = &inputs[row / GROUP * GROUP * steps + row % GROUP..];
                self.tile_packed::<S, MR, NV>(s, &slice, row, inputs, ahead, left > 0);
                ahead = ahead.wrapping_add(LINE * steps);
                left = left.saturating_sub(LINE * steps);
            }
            start = Start::Accumulate;
        }
    }

    /// The filters of tap `t` of a slice.
    #[inline(always)]
    fn share<'s>(&self, slice: &Slice<'s>, t: usize, width: usize) -> &'s [f32] {
        let first = self.gather.panels.tap(self.taps[t]) * self.gather.channels;
        &slice.filter[(first + slice.depth.start) * width..][..slice.depth.len() * width]
    }

    /// [`Block::tile`] of packed inputs; `fetch` says whether to fetch the lines from `ahead` on, one for each step.
    #[inline(always)]
    fn tile_packed<S: Simd, const MR: usize, const NV: usize>(
        &self,
        s: S,
        slice: &Slice<'_>,
        row: usize,
        inputs: &[f32],
        mut ahead: *const f32,
        fetch: bool,
    ) {
        let (rows, count) = self.rows_of::<MR>(slice, row);
        let place = self.place::<S, MR, NV>(s, slice, &rows, count);
        let depth = slice.depth.len();
        assert!(inputs.len() >= slice.taps.len() * depth * GROUP - row % GROUP && row % GROUP + MR <= GROUP);
        // SAFETY: `places` was checked; the rows and columns of this block are written by no other task.
        let mut acc = unsafe { begin::<S, MR, NV>(s, slice.start, slice.first_output, &place) };
        let mut inputs = inputs.as_ptr();
        for t in slice.taps.clone() {
            let filter = self.share(slice, t, NV * S::LANES);
            let mut sources = [inputs; MR];
            (0..MR).for_each(|i| sources[i] = sources[i].wrapping_add(i));
            // SAFETY: by the assertion there are MR inputs for each of the filter's `depth` rows.
            unsafe {
                if fetch {
                    s.multiply::<MR, NV, true>(&sources, GROUP, filter.as_ptr(), depth, ahead, &mut acc);
                } else {
                    s.multiply::<MR, NV, false>(&sources, GROUP, filter.as_ptr(), depth, ahead, &mut acc);
                }
            }
            (inputs, ahead) = (inputs.wrapping_add(depth * GROUP), ahead.wrapping_add(depth * LINE));
        }
        // SAFETY: as before the product.
        unsafe { store(s, &acc, &place) };
    }

    #[inline(always)]
    fn tiles<S: Simd, const MR: usize, const HALF: usize, const NV: usize>(&self, s: S, slice: &Slice<'_>) {
        let mut row = 0;
        while row < self.places.len() {
            let left = self.places.len() - row;
            row += if left == 1 {
                self.tile::<S, 1, NV>(s, slice, row)
            } else if left <= HALF {
                self.tile::<S, HALF, NV>(s, slice, row)
            } else {
                self.tile::<S, MR, NV>(s, slice, row)
            };
        }
    }

    /// Adds the products of some taps and channels to the tile from row `row` on.
    #[inline(always)]
    fn tile<S: Simd, const MR: usize, const NV: usize>(&self, s: S, slice: &Slice<'_>, row: usize) -> usize {
        let (rows, count) = self.rows_of::<MR>(slice, row);
        let place = self.place::<S, MR, NV>(s, slice, &rows, count);
        // SAFETY: `places` was checked; the rows and columns of this block are written by no other task.
        let mut acc = unsafe { begin::<S, MR, NV>(s, slice.start, slice.first_output, &place) };
        for t in slice.taps.clone() {
            // A loop, because the closure of `from_fn` is not always inlined.
            let mut sources = [self.zeros.as_ptr(); MR];
            for (i, source) in sources.iter_mut().enumerate() {
                *source = self.source(t, row + i, &slice.depth);
            }
            let filter = self.share(slice, t, NV * S::LANES);
            // SAFETY: each source is a slice of `depth.len()` floats, and the filter holds as many rows of `width`.
            unsafe {
                s.multiply::<MR, NV, false>(&sources, 1, filter.as_ptr(), slice.depth.len(), filter.as_ptr(), &mut acc)
            };
        }
        // SAFETY: as before the product.
        unsafe { store(s, &acc, &place) };
        MR
    }

    /// Where the rows of a tile begin, and how many of them there are; those beyond are the last one.
    #[inline(always)]
    fn rows_of<const MR: usize>(&self, slice: &Slice<'_>, row: usize) -> ([*mut f32; MR], usize) {
        let count = MR.min(self.places.len() - row);
        // SAFETY: `places` was checked to leave room for all outputs of a row.
        let at = |i: usize| unsafe { self.y.add(self.places[row + i.min(count - 1)] + slice.first_output) };
        (std::array::from_fn(at), count)
    }

    /// The place of a tile; what is written anew is sent for.
    #[inline(always)]
    fn place<'r, S: Simd, const MR: usize, const NV: usize>(
        &self,
        s: S,
        slice: &Slice<'_>,
        rows: &'r [*mut f32; MR],
        count: usize,
    ) -> Place<'r> {
        if let Start::Bias(_) = slice.start {
            // The rows are on their way while the product is computed.
            for row in rows {
                (0..NV).for_each(|v| s.prefetch(row.wrapping_add(v * S::LANES)));
            }
        }
        let columns = (NV * S::LANES).min(self.gather.panels.outputs - slice.first_output);
        Place { rows: &rows[..count], columns }
    }
}

/// Rows whose dot products run side by side, to hide the latency of the additions.
const DOT_ROWS: usize = 4;

impl Block<'_> {
    /// A few outputs: each is a dot product along the channels, summed over the taps.
    #[inline(always)]
    fn dots<S: Simd>(&self, s: S) {
        let (panels, channels) = (self.gather.panels, self.gather.channels);
        let whole = channels - channels % S::LANES;
        for output in self.panels.clone() {
            let filter = panels.panel(output);
            for row in (0..self.places.len()).step_by(DOT_ROWS) {
                let count = DOT_ROWS.min(self.places.len() - row);
                let mut acc = [s.splat(0.0); DOT_ROWS];
                let mut tails = [0.0f32; DOT_ROWS];
                for (t, &tap) in self.taps.iter().enumerate() {
                    let sources: [&[f32]; DOT_ROWS] = std::array::from_fn(|i| {
                        let pixel = self.sources[t * BLOCK_ROWS + row + i.min(count - 1)];
                        let x = self.gather.parts[0].values;
                        if pixel == OUTSIDE { self.zeros } else { &x[pixel * channels..][..channels] }
                    });
                    let filter = &filter[panels.tap(tap) * channels..][..channels];
                    for c in (0..whole).step_by(S::LANES) {
                        // SAFETY: the filter and each source have `channels` floats, and `c + LANES` is at most that.
                        unsafe {
                            let w = s.load(filter.as_ptr().add(c));
                            for i in 0..DOT_ROWS {
                                acc[i] = s.fma(s.load(sources[i].as_ptr().add(c)), w, acc[i]);
                            }
                        }
                    }
                    for c in whole..channels {
                        for i in 0..DOT_ROWS {
                            tails[i] = s.fma1(sources[i][c], filter[c], tails[i]);
                        }
                    }
                }
                for i in 0..count {
                    let sum = sum_lanes(s, acc[i]) + tails[i];
                    // SAFETY: `places` was checked to leave room for all outputs of a row; rows are disjoint.
                    unsafe {
                        let y = self.y.add(self.places[row + i] + output);
                        *y = sum
                            + match self.gather.start {
                                Start::Bias(bias) => bias.map_or(0.0, |bias| bias[output]),
                                Start::Accumulate => *y,
                            };
                    }
                }
            }
        }
    }
}
