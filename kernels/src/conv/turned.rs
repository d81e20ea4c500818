//! Linear layers on few rows, with weights that are kept as a file holds them.
//!
//! ```text
//! Y^T = W X^T + b
//! ```
//!
//! Weights that meet thousands of rows are worth being turned into panels, see [`super::stream`]. A few rows are cheaper to turn
//! than the weights: here the rows are the panels and the weights the operand that is read in its own order, after a block of
//! them was widened into the second-level cache. Every sum is that of [`super::gather`], bit for bit.

use std::cell::Cell;
use std::ops::Range;

use super::pack::is_narrow;
use super::stream::GROUP_FLOATS;
use super::{ConvDims, Target, thin};
use crate::lanes::{LINE, SQUARE, turn};
use crate::memory::{Floats, Kept, with_kept};
use crate::panels::Panelling;
use crate::par::{Shared, shares, tasks};
use crate::simd::{Isa, Simd, WithSimd, dispatch_to};
use crate::weight::Weight;

/// Outputs of a task at most: whole register tiles of 4, 6 and 8 rows.
const BLOCK_OUTPUTS: usize = 48;

/// Steps of the inner product between two visits of a tile: so much of a panel stays in the first-level cache.
const BLOCK_DEPTH: usize = 256;

/// Rows that are met at a time: the sums of a block of outputs stay in the second-level cache.
const FEWEST_ROWS: usize = 24;
const MOST_ROWS: usize = 512;

thread_local! {
    /// The rows in panels.
    static ROWS: Cell<Floats> = const { Cell::new(Floats::new()) };
    /// Weights of a block, widened, and its sums.
    static WEIGHTS: Cell<Floats> = const { Cell::new(Floats::new()) };
    static SUMS: Cell<Floats> = const { Cell::new(Floats::new()) };
}

/// Whether a layer is computed here: on few rows or, in parts, on any number where the weights are more than one group of panels.
pub(super) fn fits(d: &ConvDims) -> bool {
    let (rows, plain) = (d.out_pixels(), (d.kernel, d.stride, d.pad_before, d.pad_after) == (1, 1, 0, 0));
    let few = rows <= MOST_ROWS && rows < d.c_in || d.weight_len() > GROUP_FLOATS;
    plain && few && rows >= FEWEST_ROWS && !is_narrow(d.c_out) && !thin::fits(1, d.c_in, d.c_out)
}

/// The rows in panels as wide as the register tile.
fn panelling(isa: Isa, rows: usize) -> Panelling {
    match isa {
        Isa::Avx512 | Isa::Avx2 | Isa::Neon => Panelling::mixed(isa, rows, 2),
        Isa::Portable => Panelling::mixed(isa, rows, 1),
    }
}

/// The forward pass on the rows of `x`.
pub(super) fn forward(isa: Isa, d: &ConvDims, x: &[f32], weight: Weight<'_>, bias: Option<&[f32]>, target: Target<'_>) {
    let (rows, c_in, columns) = (d.out_pixels(), d.c_in, target.columns());
    assert_eq!(x.len(), rows * c_in, "conv::forward: floats of the input for {d:?}");
    assert_eq!(target.values.len(), rows * target.channels, "conv::forward: floats of the output for {d:?}");
    assert_eq!(columns.len(), d.c_out, "conv::forward: output channels for {d:?}");
    assert!(columns.end <= target.channels, "conv::forward: {columns:?} of {} channels", target.channels);
    assert_eq!(weight.len(), c_in * d.c_out, "conv::forward: numbers of the filter for {d:?}");
    assert!(bias.is_none() || !target.accumulate, "conv::forward: a bias for a result that is added to a tensor");
    for rows in shares(0..rows, MOST_ROWS) {
        let values = &mut target.values[rows.start * target.channels..rows.end * target.channels];
        few(isa, &x[rows.start * c_in..rows.end * c_in], c_in, weight, bias, Target { values, ..target });
    }
}

/// The layer on a part of the rows.
fn few(isa: Isa, x: &[f32], c_in: usize, weight: Weight<'_>, bias: Option<&[f32]>, target: Target<'_>) {
    let (rows, c_out, columns) = (x.len() / c_in, weight.len() / c_in, target.columns());
    let panelling = panelling(isa, rows);
    let (row, accumulate, y) = (target.channels, target.accumulate, Shared::new(target.values));
    with_kept(&ROWS as &Kept<f32>, panelling.room() * c_in, |panels| {
        let shared = Shared::new(panels);
        tasks(panelling.count(), |panel| dispatch_to(isa, Pack { panelling, panel, x, c_in, packed: shared }));
        let panels = &*panels;
        tasks(c_out.div_ceil(BLOCK_OUTPUTS), |task| {
            let outputs = task * BLOCK_OUTPUTS..c_out.min((task + 1) * BLOCK_OUTPUTS);
            with_kept(&WEIGHTS as &Kept<f32>, BLOCK_OUTPUTS * BLOCK_DEPTH, |weights| {
                with_kept(&SUMS as &Kept<f32>, BLOCK_OUTPUTS * panelling.room(), |sums| {
                    let place = Place { y, row, first: columns.start + outputs.start };
                    let start = if accumulate { Start::Accumulate } else { Start::Bias(bias) };
                    let block = Block { panelling, panels, rows, c_in, weight, outputs, start, place };
                    dispatch_to(isa, Run { block, weights, sums });
                });
            });
        });
    });
}

/// The packing of a panel: `[piece][panel][input][row]`, zeros in place of rows beyond the last.
struct Pack<'a> {
    panelling: Panelling,
    panel: usize,
    x: &'a [f32],
    c_in: usize,
    packed: Shared<'a, f32>,
}

impl WithSimd for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { panelling, panel, x, c_in, packed } = self;
        let (start, width) = (panelling.start(panel), panelling.width(panel));
        let x = &x[start * c_in..];
        let count = width.min(x.len() / c_in);
        for depth in shares(0..c_in, BLOCK_DEPTH) {
            // SAFETY: each task takes its own panel.
            let to = unsafe { packed.part(depth.start * panelling.room() + start * depth.len(), width * depth.len()) };
            turn(s, (&x[depth.start..], c_in), (count, depth.len()), (to, width));
            if count < width {
                to.chunks_exact_mut(width).for_each(|row| row[count..].fill(0.0));
            }
        }
    }
}

/// What the outputs are before the first product is added.
#[derive(Clone, Copy)]
enum Start<'a> {
    Bias(Option<&'a [f32]>),
    /// What is at their place.
    Accumulate,
}

/// Where a block's outputs go: row `r` of them begins at `r row + first`.
#[derive(Clone, Copy)]
struct Place<'a> {
    y: Shared<'a, f32>,
    row: usize,
    first: usize,
}

/// One task: all rows, some outputs.
struct Block<'a> {
    panelling: Panelling,
    panels: &'a [f32],
    rows: usize,
    c_in: usize,
    weight: Weight<'a>,
    outputs: Range<usize>,
    start: Start<'a>,
    place: Place<'a>,
}

/// A task with its memory.
struct Run<'a> {
    block: Block<'a>,
    /// `[outputs][inputs of a piece]`
    weights: &'a mut [f32],
    /// `[BLOCK_OUTPUTS][room of the panels]`
    sums: &'a mut [f32],
}

impl WithSimd for Run<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { block, weights, sums } = self;
        block.begin(s, sums);
        for depth in shares(0..block.c_in, BLOCK_DEPTH) {
            for (output, to) in block.outputs.clone().zip(weights.chunks_exact_mut(depth.len())) {
                block.weight.widen(output * block.c_in + depth.start, to);
            }
            for panel in 0..block.panelling.count() {
                let vectors = block.panelling.vectors(panel);
                match S::LANES {
                    16 => match vectors {
                        2 => block.multiply::<S, 12, 2>(s, panel, &depth, weights, sums),
                        _ => block.multiply::<S, 12, 1>(s, panel, &depth, weights, sums),
                    },
                    8 => match vectors {
                        3 => block.multiply::<S, 4, 3>(s, panel, &depth, weights, sums),
                        2 => block.multiply::<S, 6, 2>(s, panel, &depth, weights, sums),
                        _ => block.multiply::<S, 6, 1>(s, panel, &depth, weights, sums),
                    },
                    _ if vectors == 2 => block.multiply::<S, 8, 2>(s, panel, &depth, weights, sums),
                    _ => block.multiply::<S, 6, 1>(s, panel, &depth, weights, sums),
                }
            }
        }
        block.end(s, sums);
    }
}

impl Block<'_> {
    /// Adds the products of some inputs with a panel's rows.
    #[inline(always)]
    fn multiply<S: Simd, const MR: usize, const NV: usize>(
        &self,
        s: S,
        panel: usize,
        depth: &Range<usize>,
        weights: &[f32],
        sums: &mut [f32],
    ) {
        let (start, width, room) = (self.panelling.start(panel), NV * S::LANES, self.panelling.room());
        assert!(width == self.panelling.width(panel) && BLOCK_OUTPUTS.is_multiple_of(MR));
        let x = &self.panels[depth.start * room + start * depth.len()..][..depth.len() * width];
        // The first tiles send for the next panel.
        let (mut ahead, mut left) = (x.as_ptr_range().end, x.len());
        for output in (0..self.outputs.len()).step_by(MR) {
            if panel == 0 {
                // While these are met, the weights that come next are on their way.
                self.fetch(s, output..output + MR, depth);
            }
            let weights = &weights[output * depth.len()..][..MR * depth.len()];
            let sums = &mut sums[output * room + start..][..(MR - 1) * room + width];
            let a: [*const f32; MR] = std::array::from_fn(|i| weights.as_ptr().wrapping_add(i * depth.len()));
            // SAFETY: `sums` has MR rows of NV vectors, `room` floats apart; the weights have `depth` floats in each of MR
            // rows, and so many vectors has the panel.
            unsafe {
                let at = |i: usize, v: usize| i * room + v * S::LANES;
                let mut tile = [[s.splat(0.0); NV]; MR];
                for i in 0..MR {
                    for v in 0..NV {
                        tile[i][v] = s.load(sums.as_ptr().add(at(i, v)));
                    }
                }
                if left > 0 {
                    s.multiply::<MR, NV, true>(&a, 1, x.as_ptr(), depth.len(), ahead, &mut tile);
                } else {
                    s.multiply::<MR, NV, false>(&a, 1, x.as_ptr(), depth.len(), ahead, &mut tile);
                }
                for i in 0..MR {
                    for v in 0..NV {
                        s.store(sums.as_mut_ptr().add(at(i, v)), tile[i][v]);
                    }
                }
            }
            ahead = ahead.wrapping_add(LINE * depth.len());
            left = left.saturating_sub(LINE * depth.len());
        }
    }

    /// Sends for the weights that follow those of `depth`, of some outputs of the block: further along their rows, or at the
    /// beginning of those of the next block.
    #[inline(always)]
    fn fetch<S: Simd>(&self, s: S, outputs: Range<usize>, depth: &Range<usize>) {
        let (skip, from) = if depth.end < self.c_in { (0, depth.end) } else { (BLOCK_OUTPUTS, 0) };
        for output in outputs {
            let start = (self.outputs.start + output + skip) * self.c_in + from;
            self.weight.fetch(s, start, depth.len().min(self.c_in - from));
        }
    }

    /// Sums before the first product.
    #[inline(always)]
    fn begin<S: Simd>(&self, s: S, sums: &mut [f32]) {
        let room = self.panelling.room();
        match self.start {
            Start::Bias(bias) => {
                for (output, sums) in self.outputs.clone().zip(sums.chunks_exact_mut(room)) {
                    sums.fill(bias.map_or(0.0, |bias| bias[output]));
                }
            }
            Start::Accumulate => {
                let sums = sums.as_mut_ptr();
                self.each_square(
                    // SAFETY: by the word of `each_square` the square lies within both.
                    |output, r, y| unsafe {
                        let from = std::array::from_fn(|i| y.add(i * self.place.row).cast_const());
                        s.turn(&from, sums.add(output * room + r), room);
                    },
                    // SAFETY: so does the output.
                    |output, r, y| unsafe { *sums.add(output * room + r) = *y },
                );
            }
        }
    }

    /// Writes the sums.
    #[inline(always)]
    fn end<S: Simd>(&self, s: S, sums: &[f32]) {
        let room = self.panelling.room();
        self.each_square(
            // SAFETY: by the word of `each_square` the square lies within both.
            |output, r, y| unsafe {
                let from = std::array::from_fn(|i| sums.as_ptr().add((output + i) * room + r));
                s.turn(&from, y, self.place.row);
            },
            // SAFETY: so does the output.
            |output, r, y| unsafe { *y = sums[output * room + r] },
        );
    }

    /// Calls `square(output, row, place)` for squares of outputs and rows, and `single` for each output of what they leave;
    /// `place` is where the first one lies, and all of them lie within the target and the sums.
    #[inline(always)]
    fn each_square(
        &self,
        mut square: impl FnMut(usize, usize, *mut f32),
        mut single: impl FnMut(usize, usize, *mut f32),
    ) {
        let (outputs, rows) = (self.outputs.len(), self.rows);
        let Place { y, row, first } = self.place;
        let place = |output: usize, r: usize| y.start().wrapping_add(r * row + first + output);
        let (whole_outputs, whole_rows) = (outputs - outputs % SQUARE, rows - rows % SQUARE);
        for r in (0..whole_rows).step_by(SQUARE) {
            for output in (0..whole_outputs).step_by(SQUARE) {
                square(output, r, place(output, r));
            }
        }
        for r in 0..rows {
            for output in if r < whole_rows { whole_outputs } else { 0 }..outputs {
                single(output, r, place(output, r));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_same_bits_for_any_pool, numbers};

    /// Some columns of a wider result, with a bias or added to what is there, by every instruction set.
    #[test]
    fn layers_agree_with_the_definition_and_leave_other_columns_alone() {
        for (rows, c_in, c_out) in [(24, 61, 7), (77, 300, 104), (100, 128, 48), (154, 513, 50)] {
            let d = ConvDims::linear(rows, c_in, c_out);
            assert!(fits(&d), "{d:?}");
            let (x, weight, bias) = (numbers(d.in_len(), 1), numbers(d.weight_len(), 2), numbers(c_out, 3));
            let (row, columns) = (c_out + 5, 2..c_out + 2);
            let before = numbers(rows * row, 4);
            for (&isa, accumulate) in Isa::available().iter().flat_map(|isa| [(isa, false), (isa, true)]) {
                let mut y = before.clone();
                let mut target = Target { accumulate, ..Target::overwrite(&mut y, row) };
                let bias = Some(&bias[..]).filter(|_| !accumulate);
                forward(isa, &d, &x, Weight::F32(&weight), bias, target.only(columns.clone()));
                for (at, (y, before)) in y.iter().zip(&before).enumerate() {
                    let (r, column) = (at / row, at % row);
                    if !columns.contains(&column) {
                        assert_eq!(y, before, "{isa:?}, {d:?}: row {r}, column {column}");
                        continue;
                    }
                    let output = column - columns.start;
                    let products = x[r * c_in..][..c_in].iter().zip(&weight[output * c_in..][..c_in]);
                    let products = products.map(|(x, w)| f64::from(*x) * f64::from(*w));
                    let exact = products.clone().sum::<f64>() + f64::from(bias.map_or(*before, |bias| bias[output]));
                    let error = (f64::from(*y) - exact).abs() / products.map(f64::abs).sum::<f64>();
                    // Roundings of as many sums, which are independent.
                    assert!(
                        error < f64::from(f32::EPSILON) * (c_in as f64).sqrt(),
                        "{isa:?}, {d:?}, accumulate {accumulate}, row {r}, output {output}: {error}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_bits_do_not_depend_on_the_pool() {
        let d = ConvDims::linear(60, 300, 200);
        let (x, weight) = (numbers(d.in_len(), 1), numbers(d.weight_len(), 2));
        assert_same_bits_for_any_pool(|| {
            let mut y = vec![f32::NAN; d.out_len()];
            forward(Isa::best(), &d, &x, Weight::F32(&weight), None, Target::overwrite(&mut y, d.c_out));
            vec![y]
        });
    }
}
