//! The gradient of the filter, as a product of gathered pixels with gradients.

use rayon::prelude::*;

use super::gather::Tap;
use super::pack::{lanes, panel_vectors};
use super::{ConvDims, TASKS, source, split};
use crate::simd::{Isa, Simd, WithSimd, dispatch_to};

/// Output pixels whose gradients stay in the first-level cache while every tap and channel meets them.
const BLOCK_PIXELS: usize = 128;

/// Output pixels that justify a partial sum of their own.
const GROUP_PIXELS: usize = 2048;

/// The gradient of the filter, added to `dw`.
pub(super) fn backward_weight(isa: Isa, d: &ConvDims, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    let pixels = d.out_pixels();
    if pixels == 0 || dw.is_empty() {
        return;
    }
    // Many pixels: groups of them, each with a partial sum. Few pixels but many weights: the weights are divided too.
    let groups = (pixels / GROUP_PIXELS).clamp(1, TASKS);
    let splits = TASKS.div_ceil(groups).min(d.taps() * d.c_in.div_ceil(32));
    let vectors = panel_vectors(isa, d.c_out).min(2);
    let padded = d.c_out.next_multiple_of(vectors * lanes(isa));
    // A "line" is a (tap, channel) pair: one row of the transposed gradient.
    let lines = d.taps() * d.c_in;
    let lines_per_split = lines.div_ceil(splits).next_multiple_of(8);
    let splits = lines.div_ceil(lines_per_split);
    let blocks = pixels.div_ceil(BLOCK_PIXELS);
    let mut partial = vec![0.0f32; groups * lines * padded];
    let tasks: Vec<(usize, usize, &mut [f32])> = partial
        .chunks_mut(lines * padded)
        .enumerate()
        .flat_map(|(group, sums)| {
            sums.chunks_mut(lines_per_split * padded).enumerate().map(move |(split, sums)| (group, split, sums))
        })
        .collect();
    debug_assert_eq!(tasks.len(), groups * splits);
    tasks.into_par_iter().for_each(|(group, split, sums)| {
        let first = split * lines_per_split;
        let mut scratch = Scratch::new(d, vectors * lanes(isa));
        for block in group * blocks / groups..(group + 1) * blocks / groups {
            scratch.gather(d, block * BLOCK_PIXELS, first..first + sums.len() / padded);
            for column in (0..padded).step_by(scratch.width) {
                scratch.load_gradients(d, dy, block * BLOCK_PIXELS, column);
                dispatch_to(isa, Panel { d, x, scratch: &scratch, first, padded, column, vectors, sums: &mut *sums });
            }
        }
    });
    add_transposed(d, &partial, groups, padded, dw);
}

/// What a task keeps between blocks.
struct Scratch {
    width: usize,
    /// Gradients of a block of pixels and one panel of outputs, `[BLOCK_PIXELS][width]`.
    gradients: Vec<f32>,
    /// For each tap, which input pixel (as an offset into `x`) meets which row of `gradients`.
    pairs: Vec<Vec<(usize, usize)>>,
    taps: Vec<Tap>,
}

impl Scratch {
    fn new(d: &ConvDims, width: usize) -> Self {
        Self {
            width,
            gradients: vec![0.0; BLOCK_PIXELS * width],
            pairs: vec![Vec::new(); d.taps()],
            taps: d.each_tap(),
        }
    }

    fn gather(&mut self, d: &ConvDims, first: usize, lines: std::ops::Range<usize>) {
        let (out_h, out_w) = (d.out_h(), d.out_w());
        let last = (first + BLOCK_PIXELS).min(d.out_pixels());
        let wanted = lines.start / d.c_in..lines.end.div_ceil(d.c_in);
        self.pairs.iter_mut().for_each(Vec::clear);
        for pixel in first..last {
            let (n, i, j) = split(pixel, out_h, out_w);
            for (tap, &(u, v)) in self.taps.iter().enumerate().take(wanted.end).skip(wanted.start) {
                if let Some(at) = source(n, d.stride * i + u, d.stride * j + v, d.pad_before, d.h, d.w) {
                    self.pairs[tap].push((at * d.c_in, (pixel - first) * self.width));
                }
            }
        }
    }

    fn load_gradients(&mut self, d: &ConvDims, dy: &[f32], first: usize, column: usize) {
        let columns = self.width.min(d.c_out - column);
        let last = (first + BLOCK_PIXELS).min(d.out_pixels());
        for (row, pixel) in self.gradients.chunks_exact_mut(self.width).zip(first..last) {
            row[..columns].copy_from_slice(&dy[pixel * d.c_out + column..][..columns]);
            row[columns..].fill(0.0);
        }
    }
}

/// All lines of a task against one panel of gradients.
struct Panel<'a> {
    d: &'a ConvDims,
    x: &'a [f32],
    scratch: &'a Scratch,
    first: usize,
    padded: usize,
    column: usize,
    vectors: usize,
    sums: &'a mut [f32],
}

impl WithSimd for Panel<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        match (S::LANES, self.vectors) {
            (16, 2) => self.run::<S, 8, 2>(s),
            (16, _) => self.run::<S, 8, 1>(s),
            (_, 2) => self.run::<S, 4, 2>(s),
            _ => self.run::<S, 4, 1>(s),
        }
    }
}

impl Panel<'_> {
    #[inline(always)]
    fn run<S: Simd, const MR: usize, const NV: usize>(mut self, s: S) {
        let lines = self.sums.len() / self.padded;
        let mut line = 0;
        while line < lines {
            let (tap, channel) = ((self.first + line) / self.d.c_in, (self.first + line) % self.d.c_in);
            let left = (self.d.c_in - channel).min(lines - line);
            line += if left >= MR {
                self.tile::<S, MR, NV>(s, line, tap, channel)
            } else if left >= 4 {
                self.tile::<S, 4, NV>(s, line, tap, channel)
            } else if left >= 2 {
                self.tile::<S, 2, NV>(s, line, tap, channel)
            } else {
                self.tile::<S, 1, NV>(s, line, tap, channel)
            };
        }
    }

    /// `sums[line + i] += sum_pixels x[pixel, channel + i] dy[pixel]`, for `MR` channels of one tap.
    #[inline(always)]
    fn tile<S: Simd, const MR: usize, const NV: usize>(
        &mut self,
        s: S,
        line: usize,
        tap: usize,
        channel: usize,
    ) -> usize {
        let sums = &mut self.sums[line * self.padded..(line + MR) * self.padded];
        assert!(self.column + NV * S::LANES <= self.padded);
        let (x, gradients) = (self.x.as_ptr(), self.scratch.gradients.as_ptr());
        let mut acc = [[s.splat(0.0); NV]; MR];
        for &(from, row) in &self.scratch.pairs[tap] {
            // SAFETY: `from` is the start of an input pixel, which has `c_in` channels, and `channel + MR <= c_in`;
            // `row` is the start of a row of `NV * LANES` gradients.
            unsafe {
                let g: [S::V; NV] = std::array::from_fn(|v| s.load(gradients.add(row + v * S::LANES)));
                for (i, sums) in acc.iter_mut().enumerate() {
                    let x = s.splat(*x.add(from + channel + i));
                    for v in 0..NV {
                        sums[v] = s.fma(x, g[v], sums[v]);
                    }
                }
            }
        }
        for (i, row) in acc.iter().enumerate() {
            for (v, sum) in row.iter().enumerate() {
                // SAFETY: `sums` has MR lines of `padded` floats, and the panel ends before `padded`.
                unsafe {
                    let at = sums.as_mut_ptr().add(i * self.padded + self.column + v * S::LANES);
                    s.store(at, s.add(s.load(at), *sum));
                }
            }
        }
        MR
    }
}

/// `dw[o, c, tap] += sum_group partial[group, tap, c, o]`, groups in order.
fn add_transposed(d: &ConvDims, partial: &[f32], groups: usize, padded: usize, dw: &mut [f32]) {
    // Sixteen outputs at a time: their sums share a cache line.
    const OUTPUTS: usize = 16;
    let (taps, c_in) = (d.taps(), d.c_in);
    let lines = taps * c_in;
    dw.par_chunks_mut(OUTPUTS * lines).enumerate().for_each(|(chunk, dw)| {
        let first = chunk * OUTPUTS;
        for tap in 0..taps {
            for c in 0..c_in {
                let mut sums = [0.0f32; OUTPUTS];
                let count = OUTPUTS.min(d.c_out - first);
                for group in 0..groups {
                    let row = &partial[(group * lines + tap * c_in + c) * padded + first..][..count];
                    for (sum, value) in sums.iter_mut().zip(row) {
                        *sum += value;
                    }
                }
                for (o, sum) in sums[..count].iter().enumerate() {
                    dw[(o * c_in + c) * taps + tap] += sum;
                }
            }
        }
    });
}
