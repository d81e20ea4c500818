//! The product of gathered input rows with packed filter panels.

use rayon::prelude::*;

use super::pack::Panels;
use crate::simd::{Simd, WithSimd, dispatch_to};

/// Output rows of a task; their inputs stay in the second-level cache over all taps and panels.
const BLOCK_ROWS: usize = 96;

/// Steps of the inner product between two visits of a tile: a panel's share of this depth stays in the first-level cache.
const BLOCK_DEPTH: usize = 192;

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
}

/// A pointer that tasks may share because they write disjoint rows.
#[derive(Clone, Copy)]
pub(super) struct SharedOut(*mut f32);
// SAFETY: every task writes only the rows of its own block, and blocks are disjoint.
unsafe impl Send for SharedOut {}
// SAFETY: as above.
unsafe impl Sync for SharedOut {}

impl SharedOut {
    pub(super) fn new(out: &mut [f32]) -> Self {
        Self(out.as_mut_ptr())
    }

    pub(super) fn get(self) -> *mut f32 {
        self.0
    }
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
        let outputs = self.panels.outputs;
        if rows == 0 || outputs == 0 {
            return;
        }
        let zeros = vec![0.0; self.channels];
        let out = SharedOut::new(y);
        let (y_len, pixels) = (y.len(), self.x.len() / self.channels.max(1));
        (0..rows.div_ceil(BLOCK_ROWS)).into_par_iter().for_each(|block| {
            let first = block * BLOCK_ROWS;
            let count = BLOCK_ROWS.min(rows - first);
            let mut sources = vec![zeros.as_ptr(); taps.len() * BLOCK_ROWS];
            let mut places = [0usize; BLOCK_ROWS];
            for (r, at) in places[..count].iter_mut().enumerate() {
                let place = place(first + r);
                *at = pixel(place) * outputs;
                assert!(*at + outputs <= y_len, "convolution: output row {at} of {y_len}");
                for (t, &tap) in taps.iter().enumerate().filter(|_| self.channels > 0) {
                    if let Some(pixel) = source(place, tap) {
                        assert!(pixel < pixels, "convolution: input pixel {pixel} of {pixels}");
                        sources[t * BLOCK_ROWS + r] = self.x[pixel * self.channels..].as_ptr();
                    }
                }
            }
            let block = Block { gather: self, taps, sources: &sources, places: &places, count, y: out.get() };
            dispatch_to(self.panels.isa, block);
        });
    }
}

/// One task: a block of output rows, all panels.
struct Block<'a> {
    gather: &'a Gather<'a>,
    taps: &'a [Tap],
    /// `[tap][BLOCK_ROWS]`, each valid for `channels` floats.
    sources: &'a [*const f32],
    /// Where each output row begins in `y`.
    places: &'a [usize; BLOCK_ROWS],
    count: usize,
    y: *mut f32,
}

impl WithSimd for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        // The tile's shape fills the registers: MR * NV sums, NV filter vectors and one broadcast.
        match (S::LANES, self.gather.panels.vectors) {
            (_, 0) => self.dots(s),
            (16, 4) => self.run::<S, 6, 4>(s),
            (16, 2) => self.run::<S, 12, 2>(s),
            (16, _) => self.run::<S, 12, 1>(s),
            (8, 2) => self.run::<S, 6, 2>(s),
            (4, 2) => self.run::<S, 8, 2>(s),
            _ => self.run::<S, 6, 1>(s),
        }
    }
}

impl Block<'_> {
    #[inline(always)]
    fn run<S: Simd, const MR: usize, const NV: usize>(&self, s: S) {
        let panels = self.gather.panels;
        let (width, channels) = (NV * S::LANES, self.gather.channels);
        debug_assert_eq!((width, BLOCK_ROWS % MR), (panels.width, 0));
        let taps_at_once = (BLOCK_DEPTH / channels.max(1)).max(1);
        for panel in 0..panels.outputs.div_ceil(width) {
            let first_output = panel * width;
            let filter = panels.panel(panel);
            let mut start = self.gather.start;
            if self.taps.is_empty() || channels == 0 {
                self.tiles::<S, MR, NV>(s, first_output, filter, 0..0, 0..0, start);
            }
            let mut t = 0;
            while t < self.taps.len() {
                let taps = t..(t + taps_at_once).min(self.taps.len());
                let mut c = 0;
                while c < channels {
                    let depth = c..(c + BLOCK_DEPTH).min(channels);
                    self.tiles::<S, MR, NV>(s, first_output, filter, taps.clone(), depth.clone(), start);
                    start = Start::Accumulate;
                    c = depth.end;
                }
                t = taps.end;
            }
        }
    }

    /// Adds the products of some taps and channels to every tile of the block.
    #[inline(always)]
    fn tiles<S: Simd, const MR: usize, const NV: usize>(
        &self,
        s: S,
        first_output: usize,
        filter: &[f32],
        taps: std::ops::Range<usize>,
        depth: std::ops::Range<usize>,
        start: Start<'_>,
    ) {
        let width = NV * S::LANES;
        let (panels, channels) = (self.gather.panels, self.gather.channels);
        let columns = width.min(panels.outputs - first_output);
        let mut edge = [0.0f32; 64];
        for row in (0..self.count).step_by(MR) {
            let rows = MR.min(self.count - row);
            let mut acc = [[s.splat(0.0); NV]; MR];
            match start {
                Start::Bias(None) => {}
                Start::Bias(Some(bias)) => {
                    edge[..columns].copy_from_slice(&bias[first_output..first_output + columns]);
                    for v in 0..NV {
                        // SAFETY: `edge` is as long as the widest panel.
                        let b = unsafe { s.load(edge.as_ptr().add(v * S::LANES)) };
                        for sums in &mut acc {
                            sums[v] = b;
                        }
                    }
                }
                Start::Accumulate => {
                    for (i, sums) in acc.iter_mut().enumerate().take(rows) {
                        // SAFETY: `places` was checked to leave room for all outputs of a row.
                        let y = unsafe { self.y.add(self.places[row + i] + first_output) };
                        if columns == width {
                            for (v, sum) in sums.iter_mut().enumerate() {
                                // SAFETY: the row has `width` more floats.
                                *sum = unsafe { s.load(y.add(v * S::LANES)) };
                            }
                        } else {
                            for (v, sum) in sums.iter_mut().enumerate() {
                                // SAFETY: `columns` floats are left in the row, and `edge` has room for a panel's row.
                                *sum = unsafe {
                                    std::ptr::copy_nonoverlapping(y, edge.as_mut_ptr(), columns);
                                    s.load(edge.as_ptr().add(v * S::LANES))
                                };
                            }
                        }
                    }
                }
            }
            for t in taps.clone() {
                let sources: [*const f32; MR] =
                    std::array::from_fn(|i| self.sources[t * BLOCK_ROWS + row + i].wrapping_add(depth.start));
                let filter =
                    &filter[(panels.tap(self.taps[t]) * channels + depth.start) * width..][..depth.len() * width];
                // SAFETY: each source has `channels` floats from its start, and `depth` lies within them; the filter
                // slice holds `depth.len()` rows of `width` floats.
                unsafe { multiply(s, &sources, filter.as_ptr(), depth.len(), &mut acc) };
            }
            for (i, sums) in acc.iter().enumerate().take(rows) {
                // SAFETY: `places` was checked to leave room for all outputs of a row; rows are disjoint.
                let y = unsafe { self.y.add(self.places[row + i] + first_output) };
                if columns == width {
                    for (v, sum) in sums.iter().enumerate() {
                        // SAFETY: the row has `width` more floats.
                        unsafe { s.store(y.add(v * S::LANES), *sum) };
                    }
                } else {
                    for (v, sum) in sums.iter().enumerate() {
                        // SAFETY: `edge` is as long as the widest panel.
                        unsafe { s.store(edge.as_mut_ptr().add(v * S::LANES), *sum) };
                    }
                    // SAFETY: `columns` floats are left in the row.
                    unsafe { std::ptr::copy_nonoverlapping(edge.as_ptr(), y, columns) };
                }
            }
        }
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
        let mut lanes = [0.0f32; 64];
        for output in 0..panels.outputs {
            let filter = panels.panel(output);
            for row in (0..self.count).step_by(DOT_ROWS) {
                let mut acc = [s.splat(0.0); DOT_ROWS];
                let mut tails = [0.0f32; DOT_ROWS];
                for (t, &tap) in self.taps.iter().enumerate() {
                    let sources: [*const f32; DOT_ROWS] =
                        std::array::from_fn(|i| self.sources[t * BLOCK_ROWS + row + i]);
                    let filter = &filter[panels.tap(tap) * channels..][..channels];
                    for c in (0..whole).step_by(S::LANES) {
                        // SAFETY: the filter and each source have `channels` floats, and `c + LANES` is at most that.
                        unsafe {
                            let w = s.load(filter.as_ptr().add(c));
                            for i in 0..DOT_ROWS {
                                acc[i] = s.fma(s.load(sources[i].add(c)), w, acc[i]);
                            }
                        }
                    }
                    for c in whole..channels {
                        for i in 0..DOT_ROWS {
                            // SAFETY: each source has `channels` floats.
                            tails[i] = s.fma1(unsafe { *sources[i].add(c) }, filter[c], tails[i]);
                        }
                    }
                }
                for i in 0..DOT_ROWS.min(self.count - row) {
                    // SAFETY: `lanes` is longer than any vector.
                    unsafe { s.store(lanes.as_mut_ptr(), acc[i]) };
                    let sum = lanes[..S::LANES].iter().sum::<f32>() + tails[i];
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

/// `acc[i] += sum_c a[i][c] b[c]`, the register tile.
///
/// # Safety
/// Each `a[i]` must be valid for reading `depth` floats, and `b` for `depth * NV * LANES`.
#[inline(always)]
pub(super) unsafe fn multiply<S: Simd, const MR: usize, const NV: usize>(
    s: S,
    a: &[*const f32; MR],
    mut b: *const f32,
    depth: usize,
    acc: &mut [[S::V; NV]; MR],
) {
    let mut sums = *acc;
    for c in 0..depth {
        // SAFETY: the caller vouches for both operands.
        unsafe {
            let row: [S::V; NV] = std::array::from_fn(|v| s.load(b.add(v * S::LANES)));
            for i in 0..MR {
                let x = s.splat(*a[i].add(c));
                for v in 0..NV {
                    sums[i][v] = s.fma(x, row[v], sums[i][v]);
                }
            }
            b = b.add(NV * S::LANES);
        }
    }
    *acc = sums;
}
