//! The gradient of the filter as a product over pixels.
//!
//! ```text
//! 1x1:  C[o, c]         = sum_p dy[p, o] x[source(p), c]
//! 3x3:  C[(tap, c), o]  = sum_p x[source(p, tap), c] dy[p, o]
//! ```
//!
//! The order is such that C is, or nearly is, the filter's own. The pixels are divided into groups with a sum of their own,
//! the lines of C among tasks. A task copies a block of pixels of the left operand in chunks of sixteen channels, so that
//! the register tiles read contiguous memory, and one panel of the right one, which stays in the first-level cache.

use std::cell::Cell;
use std::ops::Range;

use super::pack::panel_vectors;
use super::{ConvDims, TASKS, source, split};
use crate::memory::{Aligned, Floats, Kept, with_kept};
use crate::panels::lanes;
use crate::par::{Shared, tasks};
use crate::simd::{Isa, Simd, WithSimd, dispatch, dispatch_to};

/// Pixels of a block: a panel of the right operand stays in the first-level cache.
const BLOCK_PIXELS: usize = 192;

/// Output pixels that justify a partial sum of their own.
const GROUP_PIXELS: usize = 256;

/// Floats that all partial sums have together at most.
const MOST_SUMS: usize = 1 << 20;

/// Floating-point operations below which a task is not worth what it costs to start one.
const TASK_FLOPS: usize = 1 << 19;

/// Channels of a chunk.
const CHUNK: usize = 16;

/// The place of a pixel outside of the picture.
const OUTSIDE: usize = usize::MAX;

thread_local! {
    /// Partial sums.
    static SUMS: Cell<Floats> = const { Cell::new(Floats::new()) };
    /// The operands of a block.
    static MEMORY: Cell<Floats> = const { Cell::new(Floats::new()) };
    /// Where the pixels of a block are found.
    static PLACES: Cell<Aligned<usize>> = const { Cell::new(Aligned::new()) };
}

/// The gradient of the filter, added to `dw`.
pub(super) fn backward_weight(isa: Isa, d: &ConvDims, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    let pixels = d.out_pixels();
    if pixels == 0 || dw.is_empty() {
        return;
    }
    let (out_h, out_w) = (d.out_h(), d.out_w());
    let met = |pixel: usize, tap: usize| {
        let (n, i, j) = split(pixel, out_h, out_w);
        let (u, v) = (tap / d.kernel, tap % d.kernel);
        source(n, d.stride * i + u, d.stride * j + v, d.pad_before, d.h, d.w)
    };
    let input = Operand { values: x, channels: d.c_in, taps: d.taps() };
    let gradient = Operand { values: dy, channels: d.c_out, taps: 1 };
    let (left, right) = if d.kernel == 1 { (gradient, input) } else { (input, gradient) };
    let plan = Plan::new(isa, pixels, &left, &right);
    with_kept(&SUMS as &Kept<f32>, plan.groups * plan.sums(), |sums| {
        if d.kernel == 1 {
            plan.run(isa, &left, |pixel, _| Some(pixel), &right, met, sums);
            plan.add(d.c_out, d.c_in, sums, dw);
        } else {
            plan.run(isa, &left, met, &right, |pixel, _| Some(pixel), sums);
            plan.add_turned(d, sums, dw);
        }
    });
}

/// Pixels with their channels.
struct Operand<'a> {
    values: &'a [f32],
    channels: usize,
    taps: usize,
}

impl Operand<'_> {
    /// Chunks of channels, the last one of each tap filled up.
    fn chunks(&self) -> usize {
        self.taps * self.channels.div_ceil(CHUNK)
    }
}

/// The partition of the product.
struct Plan {
    pixels: usize,
    groups: usize,
    /// Parts into which the chunks of the left operand are divided.
    splits: usize,
    chunks: usize,
    /// Vectors of a panel of the right operand.
    vectors: usize,
    width: usize,
    /// Columns of the sums: those of the right operand, filled up to whole panels.
    padded: usize,
}

impl Plan {
    fn new(isa: Isa, pixels: usize, left: &Operand<'_>, right: &Operand<'_>) -> Self {
        let vectors = panel_vectors(isa, right.channels).clamp(1, 2);
        let width = vectors * lanes(isa);
        let (chunks, padded) = (left.chunks(), right.channels.next_multiple_of(width));
        let sums = chunks * CHUNK * padded;
        let worth = (2 * pixels * sums / TASK_FLOPS).clamp(1, TASKS);
        // Each part reads the right operand anew, each group writes and reads sums of its own: with few pixels the first
        // costs less, with many the second.
        let mut splits = 1;
        while 2 * splits <= worth.min(chunks) && splits * splits * pixels < worth * 2 * chunks * CHUNK {
            splits *= 2;
        }
        let groups = worth.div_ceil(splits).min(pixels / GROUP_PIXELS).min(MOST_SUMS / sums).max(1);
        let splits = worth.div_ceil(groups).min(chunks);
        Self { pixels, groups, splits, chunks, vectors, width, padded }
    }

    /// Floats of the sums of a group, `[chunk][CHUNK][padded]`.
    fn sums(&self) -> usize {
        self.chunks * CHUNK * self.padded
    }

    fn run(
        &self,
        isa: Isa,
        left: &Operand<'_>,
        left_pixel: impl Fn(usize, usize) -> Option<usize> + Sync,
        right: &Operand<'_>,
        right_pixel: impl Fn(usize, usize) -> Option<usize> + Sync,
        sums: &mut [f32],
    ) {
        let shared = Shared::new(sums);
        let blocks = self.pixels.div_ceil(BLOCK_PIXELS);
        tasks(self.groups * self.splits, |task| {
            let (group, part) = (task / self.splits, task % self.splits);
            let chunks = part * self.chunks / self.splits..(part + 1) * self.chunks / self.splits;
            let len = chunks.len() * CHUNK * self.padded;
            // SAFETY: each task takes the sums of its own group and chunks.
            let sums = unsafe { shared.part(group * self.sums() + chunks.start * CHUNK * self.padded, len) };
            sums.fill(0.0);
            let memory_len = BLOCK_PIXELS * (chunks.len() * CHUNK + self.width);
            with_kept(&MEMORY as &Kept<f32>, memory_len, |memory| {
                with_kept(&PLACES as &Kept<usize>, (left.taps + 1) * BLOCK_PIXELS, |places| {
                    for block in group * blocks / self.groups..(group + 1) * blocks / self.groups {
                        let first = block * BLOCK_PIXELS;
                        let count = BLOCK_PIXELS.min(self.pixels - first);
                        let place = |pixel: Option<usize>, channels: usize| pixel.map_or(OUTSIDE, |at| at * channels);
                        let (left_places, right_places) = places.split_at_mut(left.taps * BLOCK_PIXELS);
                        for p in 0..count {
                            right_places[p] = place(right_pixel(first + p, 0), right.channels);
                            for tap in 0..left.taps {
                                left_places[tap * BLOCK_PIXELS + p] = place(left_pixel(first + p, tap), left.channels);
                            }
                        }
                        let (plan, chunks, sums) = (self, chunks.clone(), &mut *sums);
                        let places = (&*left_places, &right_places[..count]);
                        dispatch_to(isa, Block { plan, left, right, places, chunks, memory, sums });
                    }
                });
            });
        });
    }

    /// Adds the sums `[line, column]` of all groups to `dw` `[lines, columns]`.
    fn add(&self, lines: usize, columns: usize, sums: &[f32], dw: &mut [f32]) {
        assert_eq!(dw.len(), lines * columns);
        crate::par::rows_mut(dw, columns, |first, dw| {
            for (line, dw) in dw.chunks_exact_mut(columns).enumerate() {
                for group in sums.chunks_exact(self.sums()) {
                    dispatch(AddRow { x: &group[(first + line) * self.padded..][..columns], y: &mut *dw });
                }
            }
        });
    }

    /// Adds the sums `[tap, channel, output]` of all groups to `dw` `[output, channel, tap]`.
    fn add_turned(&self, d: &ConvDims, sums: &[f32], dw: &mut [f32]) {
        let blocks = d.c_in.div_ceil(CHUNK);
        let dw = Shared::new(dw);
        tasks(d.c_out.div_ceil(OUTPUTS) * blocks, |task| {
            let (outputs, chunk) = (task / blocks * OUTPUTS, task % blocks);
            dispatch(Turn { plan: self, d, sums, outputs, chunk, dw });
        });
    }
}

struct AddRow<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
}

impl WithSimd for AddRow<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        crate::channels::add_row(s, self.x, self.y);
    }
}

/// Outputs that are turned at once: their sums share a cache line.
const OUTPUTS: usize = 16;

/// One chunk of channels and a few outputs, all taps.
struct Turn<'a> {
    plan: &'a Plan,
    d: &'a ConvDims,
    sums: &'a [f32],
    outputs: usize,
    chunk: usize,
    dw: Shared<'a, f32>,
}

impl WithSimd for Turn<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        const MOST_TAPS: usize = 9;
        let (taps, c_in) = (self.d.taps(), self.d.c_in);
        let (channels, outputs) = (CHUNK.min(c_in - self.chunk * CHUNK), OUTPUTS.min(self.d.c_out - self.outputs));
        let per_tap = c_in.div_ceil(CHUNK);
        // In the order of the filter: `[channel, tap][output]`.
        let mut sums = [[0.0f32; OUTPUTS]; MOST_TAPS * CHUNK];
        for group in self.sums.chunks_exact(self.plan.sums()) {
            for tap in 0..taps {
                for c in 0..channels {
                    let line = (tap * per_tap + self.chunk) * CHUNK + c;
                    let row = &group[line * self.plan.padded + self.outputs..][..outputs];
                    for (sum, value) in sums[c * taps + tap].iter_mut().zip(row) {
                        *sum += value;
                    }
                }
            }
        }
        for o in 0..outputs {
            let start = ((self.outputs + o) * c_in + self.chunk * CHUNK) * taps;
            // SAFETY: each task takes its own outputs and channels.
            let dw = unsafe { self.dw.part(start, channels * taps) };
            for (dw, sums) in dw.iter_mut().zip(&sums) {
                *dw += sums[o];
            }
        }
    }
}

/// A block of pixels: the chunks of a task against all columns.
struct Block<'a> {
    plan: &'a Plan,
    left: &'a Operand<'a>,
    right: &'a Operand<'a>,
    /// Of the left operand for each tap and pixel, of the right one for each pixel: where its channels begin.
    places: (&'a [usize], &'a [usize]),
    chunks: Range<usize>,
    memory: &'a mut [f32],
    sums: &'a mut [f32],
}

impl WithSimd for Block<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        match S::LANES {
            16 => match self.plan.vectors {
                2 => self.run::<S, 8, 2>(s),
                _ => self.run::<S, 16, 1>(s),
            },
            _ => match self.plan.vectors {
                2 => self.run::<S, 4, 2>(s),
                _ => self.run::<S, 8, 1>(s),
            },
        }
    }
}

impl Block<'_> {
    #[inline(always)]
    fn run<S: Simd, const MR: usize, const NV: usize>(self, s: S) {
        let Self { plan, left, right, places, chunks, memory, sums } = self;
        let (width, count) = (NV * S::LANES, places.1.len());
        assert!(width == plan.width && CHUNK.is_multiple_of(MR));
        let (packed, panel) = memory.split_at_mut(chunks.len() * BLOCK_PIXELS * CHUNK);
        let packed = packed.as_chunks_mut::<CHUNK>().0;
        let per_tap = left.channels.div_ceil(CHUNK);
        for (packed, chunk) in packed.chunks_exact_mut(BLOCK_PIXELS).zip(chunks.clone()) {
            let (tap, first) = (chunk / per_tap, chunk % per_tap * CHUNK);
            let channels = CHUNK.min(left.channels - first);
            for (packed, &at) in packed.iter_mut().zip(&places.0[tap * BLOCK_PIXELS..][..count]) {
                if at == OUTSIDE {
                    *packed = [0.0; CHUNK];
                } else if channels == CHUNK {
                    packed.copy_from_slice(&left.values[at + first..][..CHUNK]);
                } else {
                    packed[..channels].copy_from_slice(&left.values[at + first..][..channels]);
                    packed[channels..].fill(0.0);
                }
            }
        }
        for column in (0..right.channels).step_by(width) {
            let columns = width.min(right.channels - column);
            for (row, &at) in panel.chunks_exact_mut(width).zip(places.1) {
                if at == OUTSIDE {
                    row.fill(0.0);
                } else if columns == width {
                    row.copy_from_slice(&right.values[at + column..][..width]);
                } else {
                    row[..columns].copy_from_slice(&right.values[at + column..][..columns]);
                    row[columns..].fill(0.0);
                }
            }
            for (packed, lines) in packed.chunks_exact(BLOCK_PIXELS).zip(sums.chunks_exact_mut(CHUNK * plan.padded)) {
                for first in (0..CHUNK).step_by(MR) {
                    let lines = &mut lines[first * plan.padded..][..MR * plan.padded];
                    add_tile::<S, MR, NV>(s, &packed[..count], first, panel, column, plan.padded, lines);
                }
            }
        }
    }
}

/// `lines[i][column..] += sum_p left[p][first + i] panel[p]`
#[inline(always)]
fn add_tile<S: Simd, const MR: usize, const NV: usize>(
    s: S,
    left: &[[f32; CHUNK]],
    first: usize,
    panel: &[f32],
    column: usize,
    padded: usize,
    lines: &mut [f32],
) {
    let width = NV * S::LANES;
    assert!(first + MR <= CHUNK && panel.len() >= left.len() * width);
    assert!(column + width <= padded && lines.len() == MR * padded);
    let mut acc = [[s.splat(0.0); NV]; MR];
    let rows = left.as_flattened().as_ptr().wrapping_add(first);
    // SAFETY: the panel has a row of `width` floats for each pixel, and a chunk MR floats from `first` on.
    unsafe { s.multiply_columns::<MR, NV>(rows, CHUNK, panel.as_ptr(), width, left.len(), &mut acc) };
    for (i, acc) in acc.iter().enumerate() {
        for (v, sum) in acc.iter().enumerate() {
            // SAFETY: each line has `padded` floats, and the panel ends before that.
            unsafe {
                let at = lines.as_mut_ptr().add(i * padded + column + v * S::LANES);
                s.store(at, s.add(s.load(at), *sum));
            }
        }
    }
}
