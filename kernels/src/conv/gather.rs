//! The product of gathered input rows with packed filter panels.

use std::cell::Cell;
use std::ops::Range;

use super::TASKS;
use super::pack::Panels;
use super::tile::{Place, begin, store, sum_lanes};
use crate::par::{Kept, Shared, tasks, with_kept};
use crate::simd::{Simd, WithSimd, dispatch_to};

/// Output rows of a task; their inputs stay in the second-level cache over all taps and panels.
const BLOCK_ROWS: usize = 96;

/// Steps of the inner product between two visits of a tile: a panel's share of this depth stays in the first-level cache.
const BLOCK_DEPTH: usize = 128;

/// Floating-point operations below which a task is not worth what it costs to start one.
const TASK_FLOPS: usize = 1 << 19;

/// The place of a row of zeros among the sources.
const OUTSIDE: usize = usize::MAX;

thread_local! {
    /// For each tap and row of a block the start of what it meets.
    static SOURCES: Cell<Vec<usize>> = const { Cell::new(Vec::new()) };
    /// What lies outside of the picture.
    static ZEROS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
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
    pub(super) x: &'a [f32],
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
        let (y_len, pixels) = (y.len(), self.x.len() / channels.max(1));
        let out = Shared::new(y);
        let (blocks, panels) = (rows.div_ceil(BLOCK_ROWS), self.panels.panelling.count());
        // Few rows: the outputs are divided, too.
        let worth = 2 * rows * outputs * channels * taps.len() / TASK_FLOPS;
        let most = TASKS.min(worth).div_ceil(blocks).clamp(1, panels);
        let splits = (most..=panels).find(|splits| panels.is_multiple_of(*splits)).unwrap_or(panels);
        tasks(blocks * splits, |task| {
            let (block, split) = (task / splits, task % splits);
            let first = block * BLOCK_ROWS;
            let count = BLOCK_ROWS.min(rows - first);
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
                            sources[t * BLOCK_ROWS + r] = pixel * channels;
                        }
                    }
                }
                with_kept(&ZEROS as &Kept<f32>, channels, |zeros| {
                    zeros.fill(0.0);
                    let panels = split * panels / splits..(split + 1) * panels / splits;
                    let (gather, places, y) = (self, &places[..count], out.start());
                    dispatch_to(self.panels.isa, Block { gather, taps, sources, zeros, places, panels, y });
                });
            });
        });
    }
}

/// One task: a block of output rows, some panels.
struct Block<'a> {
    gather: &'a Gather<'a>,
    taps: &'a [Tap],
    /// `[tap][BLOCK_ROWS]`: where `channels` floats of `x` begin, or [`OUTSIDE`].
    sources: &'a [usize],
    zeros: &'a [f32],
    /// Where each output row begins in `y`.
    places: &'a [usize],
    panels: Range<usize>,
    y: *mut f32,
}

impl WithSimd for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let panelling = self.gather.panels.panelling;
        if panelling.vectors(0) == 0 {
            return self.dots(s);
        }
        // The tile's shape fills the registers: MR * NV sums, NV filter vectors and one broadcast. The last rows take
        // a tile of half the height, or a single row.
        for panel in self.panels.clone() {
            match (S::LANES, panelling.vectors(panel)) {
                (16, 4) => self.run::<S, 6, 3, 4>(s, panel),
                (16, 2) => self.run::<S, 12, 6, 2>(s, panel),
                (16, _) => self.run::<S, 12, 6, 1>(s, panel),
                (8, 3) => self.run::<S, 4, 2, 3>(s, panel),
                (8, 2) => self.run::<S, 6, 3, 2>(s, panel),
                (4, 2) => self.run::<S, 8, 4, 2>(s, panel),
                _ => self.run::<S, 6, 3, 1>(s, panel),
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

impl Block<'_> {
    /// The products of all rows with a panel.
    #[inline(always)]
    fn run<S: Simd, const MR: usize, const HALF: usize, const NV: usize>(&self, s: S, panel: usize) {
        let panels = self.gather.panels;
        let (width, channels) = (NV * S::LANES, self.gather.channels);
        assert!(width == panels.panelling.width(panel) && channels == panels.channels && self.zeros.len() == channels);
        let taps_at_once = (BLOCK_DEPTH / channels.max(1)).max(1);
        let (first_output, filter, mut start) = (panels.panelling.start(panel), panels.panel(panel), self.gather.start);
        if self.taps.is_empty() || channels == 0 {
            let slice = Slice { first_output, filter, taps: 0..0, depth: 0..0, start };
            self.tiles::<S, MR, HALF, NV>(s, &slice);
        }
        let mut t = 0;
        while t < self.taps.len() {
            let taps = t..(t + taps_at_once).min(self.taps.len());
            // Pieces as equal as can be.
            let pieces = channels.div_ceil(BLOCK_DEPTH);
            for piece in 0..pieces {
                let depth = piece * channels / pieces..(piece + 1) * channels / pieces;
                let slice = Slice { first_output, filter, taps: taps.clone(), depth, start };
                self.tiles::<S, MR, HALF, NV>(s, &slice);
                start = Start::Accumulate;
            }
            t = taps.end;
        }
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
        let (panels, channels, width) = (self.gather.panels, self.gather.channels, NV * S::LANES);
        let (depth, first_output) = (&slice.depth, slice.first_output);
        let count = MR.min(self.places.len() - row);
        // SAFETY: `places` was checked to leave room for all outputs of a row.
        let rows: [*mut f32; MR] =
            std::array::from_fn(|i| unsafe { self.y.add(self.places[row + i.min(count - 1)] + first_output) });
        let place = Place { rows: &rows[..count], columns: width.min(panels.outputs - first_output) };
        if let Start::Bias(_) = slice.start {
            // The rows are on their way while the product is computed.
            for row in rows {
                (0..NV).for_each(|v| s.prefetch(row.wrapping_add(v * S::LANES)));
            }
        }
        // SAFETY: as above; the rows and columns of this block are written by no other task.
        let mut acc = unsafe { begin::<S, MR, NV>(s, slice.start, first_output, &place) };
        for t in slice.taps.clone() {
            // A loop, because the closure of `from_fn` is not always inlined.
            let mut sources = [self.zeros.as_ptr(); MR];
            for (i, source) in sources.iter_mut().enumerate() {
                let at = self.sources[t * BLOCK_ROWS + row + i.min(count - 1)];
                let pixel = if at == OUTSIDE { self.zeros } else { &self.gather.x[at..at + channels] };
                *source = pixel[depth.clone()].as_ptr();
            }
            let filter = &slice.filter[(panels.tap(self.taps[t]) * channels + depth.start) * width..];
            let filter = &filter[..depth.len() * width];
            // SAFETY: each source is a slice of `depth.len()` floats, and the filter holds as many rows of `width`.
            unsafe {
                s.multiply::<MR, NV, false>(&sources, 1, filter.as_ptr(), depth.len(), filter.as_ptr(), &mut acc)
            };
        }
        // SAFETY: as before the product.
        unsafe { store(s, &acc, &place) };
        MR
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
                        let at = self.sources[t * BLOCK_ROWS + row + i.min(count - 1)];
                        if at == OUTSIDE { self.zeros } else { &self.gather.x[at..at + channels] }
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
