//! Few channels of input: a product whose depth, taps times channels, fits into the first-level cache for a block of
//! pixels.
//!
//! ```text
//! A[k, p] = x[source(p, tap), c],  k = tap C + c         y[p, o] = sum_k A[k, p] w[k, o]
//!                                                        dw[k, o] = sum_p A[k, p] dy[p, o],  db[o] = sum_p dy[p, o]
//! ```
//!
//! A is built line by line: for one channel of a picture, a line is a copy of an input row. The gradient of the bias is a
//! line of ones.

use std::cell::Cell;

use super::gather::Start;
use super::pack::{Panels, is_narrow, panel_vectors};
use super::part::Part;
use super::tile::{Place, begin, store};
use super::window::{Reader, Window};
use super::{ConvDims, TASKS};
use crate::memory::{Floats, Kept, with_kept};
use crate::panels::lanes;
use crate::par::{Shared, tasks};
use crate::simd::{Isa, Simd, WithSimd, dispatch_to};

/// The greatest depth.
const MAX_DEPTH: usize = 48;

/// Pixels of a block, about.
const BLOCK_PIXELS: usize = 192;

/// A multiple of the rows of every register tile.
const ROUND: usize = 24;

thread_local! {
    /// The lines of a block, and the rows of the input as they are read.
    static MEMORY: Cell<Floats> = const { Cell::new(Floats::new()) };
    /// Gradients of the weights of each group of blocks.
    static SUMS: Cell<Floats> = const { Cell::new(Floats::new()) };
}

/// Whether a convolution of so many channels and outputs is computed here.
pub(super) fn fits(taps: usize, channels: usize, outputs: usize) -> bool {
    taps * channels <= MAX_DEPTH && !is_narrow(outputs)
}

/// The partition of the output into blocks: some whole rows, or a piece of a long one.
#[derive(Clone, Copy)]
struct Blocks {
    rows: usize,
    cols: usize,
    /// Blocks side by side.
    across: usize,
    count: usize,
    /// Floats of a line.
    line: usize,
}

impl Blocks {
    fn new(window: &Window) -> Self {
        let cols = window.out_w.min(BLOCK_PIXELS);
        let rows = (BLOCK_PIXELS / cols).clamp(1, window.rows());
        let across = window.out_w.div_ceil(cols);
        let line = (rows * cols).next_multiple_of(ROUND);
        Self { rows, cols, across, count: window.rows().div_ceil(rows) * across, line }
    }
}

/// The lines of a block.
struct Lines<'a> {
    window: &'a Window,
    blocks: Blocks,
    channels: usize,
    reader: Reader<'a>,
    values: &'a mut [f32],
}

impl<'a> Lines<'a> {
    fn memory(window: &Window, blocks: Blocks, part: &Part<'_>) -> usize {
        (window.kernel * window.kernel * part.channels + 1) * blocks.line + Reader::memory(window, part)
    }

    fn new(window: &'a Window, blocks: Blocks, part: &'a Part<'a>, memory: &'a mut [f32]) -> Self {
        let lines = window.kernel * window.kernel * part.channels + 1;
        let (values, rows) = memory.split_at_mut(lines * blocks.line);
        values[(lines - 1) * blocks.line..].fill(1.0);
        Self { window, blocks, channels: part.channels, reader: Reader::new(window, part, rows), values }
    }

    /// Builds the lines of block `index`, and returns its first pixel and their number.
    #[inline(always)]
    fn build<S: Simd>(&mut self, s: S, index: usize) -> (usize, usize) {
        let Self { window, blocks, channels: c, ref mut reader, ref mut values } = *self;
        let first_row = index / blocks.across * blocks.rows;
        let rows = blocks.rows.min(window.rows() - first_row);
        let first_col = index % blocks.across * blocks.cols;
        let cols = first_col..window.out_w.min(first_col + blocks.cols);
        let line = blocks.line;
        // Floats beyond the last pixel take part in products that nobody reads; they should be ordinary numbers.
        let depth = window.kernel * window.kernel * c;
        for values in values[..depth * line].chunks_exact_mut(line) {
            values[rows * cols.len()..].fill(0.0);
        }
        for r in 0..rows {
            for u in 0..window.kernel {
                let source = window.source_row(first_row + r, u);
                if let Some(row) = source {
                    reader.prepare(s, row);
                }
                for v in 0..window.kernel {
                    let meets = if source.is_some() { window.columns(v) } else { 0..0 };
                    let (from, to) = (meets.start.clamp(cols.start, cols.end), meets.end.clamp(cols.start, cols.end));
                    for k in 0..c {
                        let at = ((u * window.kernel + v) * c + k) * line + r * cols.len();
                        let values = &mut values[at..at + cols.len()];
                        let (before, rest) = values.split_at_mut(from - cols.start);
                        let (met, after) = rest.split_at_mut(to.max(from) - from);
                        before.fill(0.0);
                        after.fill(0.0);
                        let Some(row) = source.filter(|_| !met.is_empty()) else { continue };
                        let x = &reader.row(row)[window.source_column(from, v) * c + k..];
                        if window.stride * c == 1 {
                            met.copy_from_slice(&x[..met.len()]);
                        } else {
                            for (value, x) in met.iter_mut().zip(x.iter().step_by(window.stride * c)) {
                                *value = *x;
                            }
                        }
                    }
                }
            }
        }
        (first_row * window.out_w + cols.start, rows * cols.len())
    }
}

/// `y` (`[pixels, outputs]`) from a part with as many channels as the panels.
pub(super) fn convolve(window: &Window, part: &Part<'_>, panels: &Panels, start: Start<'_>, y: &mut [f32]) {
    let outputs = panels.outputs;
    assert_eq!(y.len(), window.rows() * window.out_w * outputs, "convolution: floats of the output");
    if y.is_empty() {
        return;
    }
    let window = &window.with_long_rows(part);
    let blocks = Blocks::new(window);
    let y = Shared::new(y);
    tasks(blocks.count, |index| {
        with_kept(&MEMORY as &Kept<f32>, Lines::memory(window, blocks, part), |memory| {
            let lines = Lines::new(window, blocks, part, memory);
            dispatch_to(panels.isa, Block { index, lines, panels, start, y });
        });
    });
}

/// One block of output pixels, all outputs.
struct Block<'a> {
    index: usize,
    lines: Lines<'a>,
    panels: &'a Panels,
    start: Start<'a>,
    y: Shared<'a, f32>,
}

impl WithSimd for Block<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let vectors = self.panels.panelling.vectors(0);
        match S::LANES {
            16 => match vectors {
                4 => self.run::<S, 6, 4>(s),
                2 => self.run::<S, 12, 2>(s),
                _ => self.run::<S, 12, 1>(s),
            },
            8 if vectors == 2 => self.run::<S, 6, 2>(s),
            4 if vectors == 2 => self.run::<S, 8, 2>(s),
            _ => self.run::<S, 6, 1>(s),
        }
    }
}

impl Block<'_> {
    #[inline(always)]
    fn run<S: Simd, const MR: usize, const NV: usize>(mut self, s: S) {
        let (panels, width, outputs) = (self.panels, NV * S::LANES, self.panels.outputs);
        let (first, count) = self.lines.build(s, self.index);
        let (line, depth) = (self.lines.blocks.line, panels.taps * panels.channels);
        assert!(
            width == panels.panelling.width(0) && ROUND.is_multiple_of(MR) && self.lines.values.len() >= depth * line
        );
        for panel in 0..panels.panelling.count() {
            let first_output = panel * width;
            let columns = width.min(outputs - first_output);
            let filter = &panels.panel(panel)[..depth * width];
            for p in (0..count).step_by(MR) {
                // SAFETY: the block's pixels are rows of the output, which no other task writes.
                let rows: [*mut f32; MR] = std::array::from_fn(|i| unsafe {
                    self.y.start().add((first + (p + i).min(count - 1)) * outputs + first_output)
                });
                let place = Place { rows: &rows[..MR.min(count - p)], columns };
                let a: [*const f32; MR] = std::array::from_fn(|i| self.lines.values.as_ptr().wrapping_add(p + i));
                // SAFETY: `columns` more floats belong to each of the rows, and lines and filter are as long as asserted.
                unsafe {
                    let mut acc = begin::<S, MR, NV>(s, self.start, first_output, &place);
                    s.multiply::<MR, NV, false>(&a, line, filter.as_ptr(), depth, filter.as_ptr(), &mut acc);
                    store(s, &acc, &place);
                }
            }
        }
    }
}

/// Adds the gradients of the filter and of the bias.
pub(super) fn backward_weight(
    isa: Isa,
    d: &ConvDims,
    part: &Part<'_>,
    dy: &[f32],
    dw: &mut [f32],
    db: Option<&mut [f32]>,
) {
    let (window, outputs) = (&Window::forward(d).with_long_rows(part), d.c_out);
    assert_eq!(dy.len(), window.rows() * window.out_w * outputs, "convolution: floats of the gradient");
    if dy.is_empty() {
        return;
    }
    let blocks = Blocks::new(window);
    let vectors = panel_vectors(isa, outputs);
    let padded = outputs.next_multiple_of(vectors * lanes(isa));
    let lines = d.taps() * d.c_in + usize::from(db.is_some());
    let groups = blocks.count.min(TASKS);
    with_kept(&SUMS as &Kept<f32>, groups * lines * padded, |sums| {
        let shared = Shared::new(sums);
        tasks(groups, |group| {
            // SAFETY: only this task takes the sums of the group.
            let sums = unsafe { shared.part(group * lines * padded, lines * padded) };
            let edge = blocks.line * vectors * lanes(isa);
            with_kept(&MEMORY as &Kept<f32>, edge + Lines::memory(window, blocks, part), |memory| {
                let (edge, memory) = memory.split_at_mut(edge);
                let blocks_of_group = group * blocks.count / groups..(group + 1) * blocks.count / groups;
                let lines = Lines::new(window, blocks, part, memory);
                dispatch_to(isa, Gradient { blocks: blocks_of_group, lines, vectors, padded, outputs, dy, edge, sums });
            });
        });
        let each = || sums.chunks_exact(lines * padded);
        for (o, dw) in dw.chunks_exact_mut((d.c_in * d.taps()).max(1)).enumerate() {
            for (tap, c) in (0..d.taps()).flat_map(|tap| (0..d.c_in).map(move |c| (tap, c))) {
                dw[c * d.taps() + tap] += each().map(|sums| sums[(tap * d.c_in + c) * padded + o]).sum::<f32>();
            }
        }
        for (o, db) in db.into_iter().flatten().enumerate() {
            *db += each().map(|sums| sums[(lines - 1) * padded + o]).sum::<f32>();
        }
    });
}

/// The gradients of the weights from some blocks of pixels.
struct Gradient<'a> {
    blocks: std::ops::Range<usize>,
    lines: Lines<'a>,
    vectors: usize,
    padded: usize,
    outputs: usize,
    dy: &'a [f32],
    /// The gradients of the last outputs, filled up to whole vectors.
    edge: &'a mut [f32],
    /// `[line][padded]`
    sums: &'a mut [f32],
}

impl WithSimd for Gradient<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        match self.vectors {
            4 => self.run::<S, 4>(s),
            2 => self.run::<S, 2>(s),
            _ => self.run::<S, 1>(s),
        }
    }
}

impl Gradient<'_> {
    #[inline(always)]
    fn run<S: Simd, const NV: usize>(mut self, s: S) {
        self.sums.fill(0.0);
        let (width, lines) = (NV * S::LANES, self.sums.len() / self.padded);
        for index in self.blocks.clone() {
            let (first, count) = self.lines.build(s, index);
            for column in (0..self.outputs).step_by(width) {
                let columns = width.min(self.outputs - column);
                let dy = &self.dy[first * self.outputs + column..];
                let (dy, row) = if columns == width {
                    (dy, self.outputs)
                } else {
                    for (row, edge) in self.edge.chunks_exact_mut(width).take(count).enumerate() {
                        edge[..columns].copy_from_slice(&dy[row * self.outputs..][..columns]);
                        edge[columns..].fill(0.0);
                    }
                    (&*self.edge, width)
                };
                // Tiles as equal as can be, so that none has too few sums to hide the latency of the additions.
                let tiles = lines.div_ceil(6);
                for tile in 0..tiles {
                    let (from, to) = (tile * lines / tiles, (tile + 1) * lines / tiles);
                    let at = (&mut *self.sums, from * self.padded + column, self.padded);
                    let a = (&self.lines.values[from * self.lines.blocks.line..], self.lines.blocks.line);
                    match to - from {
                        6 => add_tile::<S, 6, NV>(s, a, (dy, row), count, at),
                        5 => add_tile::<S, 5, NV>(s, a, (dy, row), count, at),
                        4 => add_tile::<S, 4, NV>(s, a, (dy, row), count, at),
                        3 => add_tile::<S, 3, NV>(s, a, (dy, row), count, at),
                        2 => add_tile::<S, 2, NV>(s, a, (dy, row), count, at),
                        _ => add_tile::<S, 1, NV>(s, a, (dy, row), count, at),
                    }
                }
            }
        }
    }
}

/// `sums[i] += sum_p a[i line + p] dy[p row..]` for `MR` lines and `NV` vectors of outputs.
#[inline(always)]
fn add_tile<S: Simd, const MR: usize, const NV: usize>(
    s: S,
    (a, line): (&[f32], usize),
    (dy, row): (&[f32], usize),
    count: usize,
    (sums, at, padded): (&mut [f32], usize, usize),
) {
    let mut acc = [[s.splat(0.0); NV]; MR];
    let width = NV * S::LANES;
    assert!(count > 0 && a.len() >= (MR - 1) * line + count && dy.len() >= (count - 1) * row + width);
    for p in 0..count {
        // SAFETY: the lines have `count` floats each, and `width` floats follow the start of each row of gradients.
        unsafe {
            let g: [S::V; NV] = std::array::from_fn(|v| s.load(dy.as_ptr().add(p * row + v * S::LANES)));
            for (i, sums) in acc.iter_mut().enumerate() {
                let x = s.splat(*a.as_ptr().add(i * line + p));
                for v in 0..NV {
                    sums[v] = s.fma(x, g[v], sums[v]);
                }
            }
        }
    }
    for (i, acc) in acc.iter().enumerate() {
        let sums = &mut sums[at + i * padded..][..width];
        for (v, sum) in acc.iter().enumerate() {
            // SAFETY: the slice has NV vectors.
            unsafe {
                let at = sums.as_mut_ptr().add(v * S::LANES);
                s.store(at, s.add(s.load(at), *sum));
            }
        }
    }
}
