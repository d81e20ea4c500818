//! Channels of channels-last activations: concatenation, per-sample bias, residual sum, and change of layout.
//!
//! ```text
//! concat:    y[r] = [a[r], b[r]]                       da[r] += dy[r][..c_a],  db[r] += dy[r][c_a..]
//! add_bias:  y[n,p,c] += bias[n,c]                     dbias[n,c] += sum over p of dy[n,p,c]
//! add:       y += x
//! ```

use std::cell::Cell;

use crate::lanes::{MAX_LANES, get, put};
use crate::memory::{Floats, Kept, with_kept};
use crate::par::{Shared, check_len, chunk_rows, rows_mut, tasks};
use crate::simd::{Simd, WithSimd, dispatch};

thread_local! {
    /// Sums of the channels of each chunk of rows.
    static SUMS: Cell<Floats> = const { Cell::new(Floats::new()) };
}

/// Some neighbouring channels of a tensor, so that one part of a concatenation can be read without a copy.
#[derive(Clone, Copy, Debug)]
pub struct ChannelSlice<'a> {
    /// The whole tensor, `[rows, row]`.
    pub data: &'a [f32],
    /// Channels of the whole tensor.
    pub row: usize,
    /// The first of the channels that are meant.
    pub offset: usize,
}

impl<'a> ChannelSlice<'a> {
    /// All `c` channels of a tensor.
    pub fn all(data: &'a [f32], c: usize) -> Self {
        Self { data, row: c, offset: 0 }
    }

    /// Asserts that there are `rows` rows with `c` channels from `offset` on.
    #[track_caller]
    pub(crate) fn check(&self, operation: &str, name: &str, rows: usize, c: usize) {
        check_len(operation, name, self.data.len(), rows * self.row);
        let Self { row, offset, .. } = *self;
        assert!(offset + c <= row, "{operation}: {name} has {row} channels, not {c} from channel {offset} on");
    }

    /// The `c` channels of row `i`.
    #[inline(always)]
    pub(crate) fn at(&self, i: usize, c: usize) -> &'a [f32] {
        &self.data[i * self.row + self.offset..][..c]
    }
}

/// Joins the channels of `a` (`[rows, c_a]`) and `b` (`[rows, c_b]`) into `y` (`[rows, c_a + c_b]`).
///
/// # Panics
/// If a slice's length does not fit.
pub fn concat(rows: usize, a: &[f32], c_a: usize, b: &[f32], c_b: usize, y: &mut [f32]) {
    let c = c_a + c_b;
    check_len("concat", "a", a.len(), rows * c_a);
    check_len("concat", "b", b.len(), rows * c_b);
    check_len("concat", "y", y.len(), rows * c);
    rows_mut(y, c, |first, y| {
        for (i, y) in y.chunks_exact_mut(c).enumerate() {
            y[..c_a].copy_from_slice(&a[(first + i) * c_a..][..c_a]);
            y[c_a..].copy_from_slice(&b[(first + i) * c_b..][..c_b]);
        }
    });
}

/// The backward pass of [`concat()`]: `da += dy[.., ..c_a]`, `db += dy[.., c_a..]`.
///
/// # Panics
/// If a slice's length does not fit.
pub fn concat_backward(rows: usize, dy: &[f32], da: &mut [f32], c_a: usize, db: &mut [f32], c_b: usize) {
    let c = c_a + c_b;
    check_len("concat backward", "da", da.len(), rows * c_a);
    check_len("concat backward", "db", db.len(), rows * c_b);
    check_len("concat backward", "dy", dy.len(), rows * c);
    for (dx, c_x, offset) in [(da, c_a, 0), (db, c_b, c_a)] {
        let x = ChannelSlice { data: dy, row: c, offset };
        rows_mut(dx, c_x, |first, y| dispatch(AddRows { c: c_x, x, y, row: |i| first + i }));
    }
}

/// `y[n,p,c] += bias[n,c]` for `y` of `[n, hw, c]`.
///
/// # Panics
/// If a slice's length does not fit.
pub fn add_bias(n: usize, hw: usize, c: usize, bias: &[f32], y: &mut [f32]) {
    check_len("add_bias", "y", y.len(), n * hw * c);
    check_len("add_bias", "bias", bias.len(), n * c);
    let x = ChannelSlice::all(bias, c);
    rows_mut(y, c, |first, y| dispatch(AddRows { c, x, y, row: |i| (first + i) / hw }));
}

/// `y += x`.
///
/// # Panics
/// If the slices differ in length.
pub fn add(x: &[f32], y: &mut [f32]) {
    check_len("add", "y", y.len(), x.len());
    rows_mut(y, 1, |first, y| {
        let x = ChannelSlice::all(&x[first..][..y.len()], y.len());
        dispatch(AddRows { c: y.len(), x, y, row: |_| 0 });
    });
}

/// `y[i] += x[row(i)]`, rows of `c`.
struct AddRows<'a, R> {
    c: usize,
    x: ChannelSlice<'a>,
    y: &'a mut [f32],
    row: R,
}

impl<R: Fn(usize) -> usize> WithSimd for AddRows<'_, R> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { c, x, y, row } = self;
        if c == 0 {
            return;
        }
        for (i, y) in y.chunks_exact_mut(c).enumerate() {
            add_row(s, x.at(row(i), c), y);
        }
    }
}

/// `y += x`
#[inline(always)]
pub(crate) fn add_row<S: Simd>(s: S, x: &[f32], y: &mut [f32]) {
    #[inline(always)]
    fn step<S: Simd, const FULL: bool>(s: S, x: &[f32], y: &mut [f32], i: usize) {
        let sum = s.add(get::<S, FULL>(s, y, i), get::<S, FULL>(s, x, i));
        put::<S, FULL>(s, y, i, sum);
    }
    let full = y.len() / S::LANES * S::LANES;
    for i in (0..full).step_by(S::LANES) {
        step::<S, true>(s, x, y, i);
    }
    if full < y.len() {
        step::<S, false>(s, x, y, full);
    }
}

/// The backward pass of [`add_bias`]: `dbias[n,c] += sum over p of dy[n,p,c]`.
///
/// # Panics
/// If a slice's length does not fit.
pub fn add_bias_backward(n: usize, hw: usize, c: usize, dy: &[f32], dbias: &mut [f32]) {
    check_len("add_bias backward", "dy", dy.len(), n * hw * c);
    check_len("add_bias backward", "dbias", dbias.len(), n * c);
    add_sums(n, hw, c, dy, dbias);
}

/// `sums[n,c] += sum over p of x[n,p,c]`: chunks of rows are summed by themselves, then added in order.
pub(crate) fn add_sums(n: usize, hw: usize, c: usize, x: &[f32], sums: &mut [f32]) {
    if x.is_empty() {
        return;
    }
    let rows = chunk_rows(c);
    let chunks = hw.div_ceil(rows);
    with_kept(&SUMS as &Kept<f32>, n * chunks * c, |partial| {
        let shared = Shared::new(partial);
        // Samples smaller than a chunk share a task.
        let per_task = (rows / hw).max(1);
        tasks((n * chunks).div_ceil(per_task), |task| {
            for i in task * per_task..(n * chunks).min((task + 1) * per_task) {
                let (sample, first) = (i / chunks, i % chunks * rows);
                let x = &x[(sample * hw + first) * c..][..rows.min(hw - first) * c];
                // SAFETY: only this task takes the sums of this chunk.
                dispatch(SumRows { c, x, sums: unsafe { shared.part(i * c, c) } });
            }
        });
        for (sums, partial) in sums.chunks_exact_mut(c).zip(partial.chunks_exact(chunks * c)) {
            for partial in partial.chunks_exact(c) {
                for (sum, value) in sums.iter_mut().zip(partial) {
                    *sum += value;
                }
            }
        }
    });
}

/// `sums[c] = sum over rows of x[row, c]`
struct SumRows<'a> {
    c: usize,
    x: &'a [f32],
    sums: &'a mut [f32],
}

impl SumRows<'_> {
    /// `NV` vectors of channels, or one partial vector, from channel `i` on.
    #[inline(always)]
    fn columns<S: Simd, const NV: usize, const FULL: bool>(&mut self, s: S, i: usize) {
        // Two sums in turn, so that an addition need not wait for the one before it.
        let mut sums = [[s.splat(0.0); NV]; 2];
        let (pairs, last) = self.x.split_at(self.x.len() / (2 * self.c) * (2 * self.c));
        for pair in pairs.chunks_exact(2 * self.c) {
            let (even, odd) = pair.split_at(self.c);
            for v in 0..NV {
                sums[0][v] = s.add(sums[0][v], get::<S, FULL>(s, even, i + v * S::LANES));
                sums[1][v] = s.add(sums[1][v], get::<S, FULL>(s, odd, i + v * S::LANES));
            }
        }
        for row in last.chunks_exact(self.c) {
            for v in 0..NV {
                sums[0][v] = s.add(sums[0][v], get::<S, FULL>(s, row, i + v * S::LANES));
            }
        }
        for v in 0..NV {
            put::<S, FULL>(s, self.sums, i + v * S::LANES, s.add(sums[0][v], sums[1][v]));
        }
    }

    /// A channel or a few: vectors run across the rows, and lane `l` of each belongs to channel `l mod c`.
    #[inline(always)]
    fn few<S: Simd>(self, s: S) {
        let Self { c, x, sums } = self;
        // As many floats hold whole rows and whole vectors.
        let step = c * MAX_LANES;
        let mut lanes = [0f32; 4 * MAX_LANES];
        let whole = x.len() / step * step;
        for at in (0..step).step_by(S::LANES) {
            let mut sum = s.splat(0.0);
            for x in x[..whole].chunks_exact(step) {
                sum = s.add(sum, get::<S, true>(s, x, at));
            }
            put::<S, true>(s, &mut lanes, at, sum);
        }
        sums.fill(0.0);
        for row in lanes[..step].chunks_exact(c).chain(x[whole..].chunks_exact(c)) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += value;
            }
        }
    }
}

impl WithSimd for SumRows<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, s: S) {
        let (c, mut i) = (self.c, 0);
        if c <= 4 {
            return self.few(s);
        }
        while i + 4 * S::LANES <= c {
            self.columns::<S, 4, true>(s, i);
            i += 4 * S::LANES;
        }
        while i + S::LANES <= c {
            self.columns::<S, 1, true>(s, i);
            i += S::LANES;
        }
        if i < c {
            self.columns::<S, 1, false>(s, i);
        }
    }
}

/// `[n, c, hw]` to `[n, hw, c]`; `y` is overwritten.
///
/// # Panics
/// If a slice's length does not fit.
pub fn nchw_to_nhwc(n: usize, c: usize, hw: usize, x: &[f32], y: &mut [f32]) {
    transpose("nchw_to_nhwc", n, c, hw, x, y);
}

/// `[n, hw, c]` to `[n, c, hw]`; `y` is overwritten.
///
/// # Panics
/// If a slice's length does not fit.
pub fn nhwc_to_nchw(n: usize, c: usize, hw: usize, x: &[f32], y: &mut [f32]) {
    transpose("nhwc_to_nchw", n, hw, c, x, y);
}

/// `[n, rows, cols]` to `[n, cols, rows]`.
fn transpose(operation: &str, n: usize, rows: usize, cols: usize, x: &[f32], y: &mut [f32]) {
    check_len(operation, "x", x.len(), n * rows * cols);
    check_len(operation, "y", y.len(), n * rows * cols);
    rows_mut(y, rows, |first, y| dispatch(Transpose { rows, cols, first, x, y }));
}

/// Columns `first..` of all samples into the rows of `y`.
struct Transpose<'a> {
    rows: usize,
    cols: usize,
    first: usize,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl WithSimd for Transpose<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        // Squares of this side: each cache line of either tensor is met once.
        const SIDE: usize = 16;
        let Self { rows, cols, first, x, y } = self;
        if cols == 1 {
            return y.copy_from_slice(&x[first * rows..][..y.len()]);
        }
        let (mut i, count) = (0, y.len() / rows);
        while i < count {
            let (sample, col) = ((first + i) / cols, (first + i) % cols);
            let width = SIDE.min(cols - col).min(count - i);
            let x = &x[sample * rows * cols..][..rows * cols];
            let y = &mut y[i * rows..][..width * rows];
            for row in (0..rows).step_by(SIDE) {
                let height = SIDE.min(rows - row);
                for k in 0..width {
                    for (r, y) in y[k * rows + row..][..height].iter_mut().enumerate() {
                        *y = x[(row + r) * cols + col + k];
                    }
                }
            }
            i += width;
        }
    }
}

#[cfg(test)]
mod tests;
