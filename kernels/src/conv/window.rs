//! Where the taps of a filter meet the picture, row by row: for convolutions whose arithmetic is so little that working
//! this out for every pixel would cost more.

use std::ops::Range;

use super::ConvDims;
use super::part::Part;
use crate::simd::Simd;

/// Output pixel (i, j) meets source pixel (stride i + u - pad, stride j + v - pad) under tap (u, v), the taps counted
/// from the end where the filter is turned by half a turn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub(super) n: usize,
    pub(super) h: usize,
    pub(super) w: usize,
    pub(super) out_h: usize,
    pub(super) out_w: usize,
    pub(super) kernel: usize,
    pub(super) stride: usize,
    pad: usize,
    turned: bool,
    /// For each column of taps the first output column that meets the picture, and the one after the last.
    meets: [(usize, usize); 3],
}

impl Window {
    /// The forward pass.
    pub(super) fn forward(d: &ConvDims) -> Self {
        let (out_h, out_w) = (d.out_h(), d.out_w());
        let ConvDims { n, h, w, kernel, stride, pad_before: pad, .. } = *d;
        Self { n, h, w, out_h, out_w, kernel, stride, pad, turned: false, meets: [(0, 0); 3] }.measured()
    }

    /// The gradient of the input, if that is a single convolution of the gradient of the output.
    pub(super) fn backward(d: &ConvDims) -> Option<Self> {
        let (h, w) = (d.out_h(), d.out_w());
        let ConvDims { n, h: out_h, w: out_w, kernel, stride, .. } = *d;
        let pad = (kernel - 1).checked_sub(d.pad_before)?;
        let window = Self { n, h, w, out_h, out_w, kernel, stride, pad, turned: true, meets: [(0, 0); 3] };
        (stride == 1).then_some(window.measured())
    }

    /// The same pixels in longer rows, where each output meets one source pixel and nothing depends on the sample.
    pub(super) fn with_long_rows(self, part: &Part<'_>) -> Self {
        const LONGEST: usize = 512;
        let pixels = self.n * self.h * self.w;
        if self.kernel > 1
            || self.stride > 1
            || self.pad > 0
            || !part.is_plain()
            || (self.h, self.w) != (self.out_h, self.out_w)
        {
            return self;
        }
        let w = (1..=LONGEST.min(pixels)).rev().find(|w| pixels.is_multiple_of(*w)).unwrap_or(1);
        Self { n: pixels / w, h: 1, w, out_h: 1, out_w: w, ..self }.measured()
    }

    /// Output rows of all samples.
    pub(super) fn rows(&self) -> usize {
        self.n * self.out_h
    }

    /// Where on its axis a tap reads, before the padding is taken off.
    fn offset(&self, tap: usize) -> usize {
        if self.turned { self.kernel - 1 - tap } else { tap }
    }

    /// The source row (counted through all samples) that an output row meets under the taps of row `u`.
    pub(super) fn source_row(&self, row: usize, u: usize) -> Option<usize> {
        let (n, i) = (row / self.out_h, row % self.out_h);
        let k = (self.stride * i + self.offset(u)).checked_sub(self.pad)?;
        (k < self.h).then_some(n * self.h + k)
    }

    /// The source column that output column `j` meets under the taps of column `v`; too large a number if it is none.
    #[inline(always)]
    pub(super) fn source_column(&self, j: usize, v: usize) -> usize {
        (self.stride * j + self.offset(v)).wrapping_sub(self.pad)
    }

    /// The output columns that meet a source column under the taps of column `v`.
    pub(super) fn columns(&self, v: usize) -> Range<usize> {
        self.meets[v].0..self.meets[v].1
    }

    fn measured(mut self) -> Self {
        for v in 0..self.kernel {
            let offset = self.offset(v);
            let start = self.pad.saturating_sub(offset).div_ceil(self.stride).min(self.out_w);
            let end = (self.w + self.pad).saturating_sub(offset).div_ceil(self.stride).min(self.out_w);
            self.meets[v] = (start, end.max(start));
        }
        self
    }
}

/// The rows of a part as they are read.
pub(super) struct Reader<'a> {
    part: &'a Part<'a>,
    h: usize,
    len: usize,
    /// Row `i` lies at place `i mod 3`, if it has to be computed at all.
    rows: &'a mut [f32],
    held: [Option<usize>; 3],
}

impl<'a> Reader<'a> {
    /// Floats of memory that a reader needs.
    pub(super) fn memory(window: &Window, part: &Part<'_>) -> usize {
        if part.is_plain() { 0 } else { 3 * window.w * part.channels }
    }

    pub(super) fn new(window: &Window, part: &'a Part<'a>, memory: &'a mut [f32]) -> Self {
        Self { part, h: window.h, len: window.w * part.channels, rows: memory, held: [None; 3] }
    }

    /// Computes a row, unless it is at hand; it takes the place of the one three rows away.
    #[inline(always)]
    pub(super) fn prepare<S: Simd>(&mut self, s: S, row: usize) {
        if self.part.is_plain() || self.held[row % 3] == Some(row) || self.len == 0 {
            return;
        }
        let x = &self.part.values[row * self.len..][..self.len];
        let place = &mut self.rows[row % 3 * self.len..][..self.len];
        self.part.read(s, row / self.h, x, place);
        self.held[row % 3] = Some(row);
    }

    /// A row that has been prepared.
    pub(super) fn row(&self, row: usize) -> &[f32] {
        if self.part.is_plain() {
            &self.part.values[row * self.len..][..self.len]
        } else {
            assert!(self.len == 0 || self.held[row % 3] == Some(row));
            &self.rows[row % 3 * self.len..][..self.len]
        }
    }
}
