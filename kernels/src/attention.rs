//! Scaled dot-product attention of several heads.
//!
//! ```text
//! S = Q K^T / sqrt(head_dim),   P = softmax over kv of S,   O = P V,   lse = log sum exp S       Vaswani 2017, eq. 1
//! dV += P^T dO,   dP = dO V^T,   D = rowsum(dO O),   dS = P (dP - D),
//! dQ += dS K / sqrt(head_dim),   dK += dS^T Q / sqrt(head_dim)                                  Dao 2022, appendix B.2
//! ```
//!
//! Both passes go through blocks of query rows, whose scores live in scratch memory of the thread; the backward pass
//! computes P = exp(S - lse) again, so the whole score matrix is never stored.

use std::cell::RefCell;

use crate::gemm::{self, Matrix, Product, Target};
use crate::lanes::{MAX_LANES, exp, get, put};
use crate::par::{Shared, check_len, tasks};
use crate::simd::{Isa, Simd, WithSimd, dispatch_to};

/// Sizes of an attention: q and o are `[n, q_len, heads * head_dim]`, k and v `[n, kv_len, heads * head_dim]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionDims {
    /// Samples.
    pub n: usize,
    /// Query positions.
    pub q_len: usize,
    /// Key and value positions.
    pub kv_len: usize,
    /// Heads.
    pub heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
}

impl AttentionDims {
    /// Elements of q and of o.
    pub fn q_elements(&self) -> usize {
        self.n * self.q_len * self.heads * self.head_dim
    }
    /// Elements of k and of v.
    pub fn kv_elements(&self) -> usize {
        self.n * self.kv_len * self.heads * self.head_dim
    }
    /// Elements of the log-sum-exp, `[n, heads, q_len]`.
    pub fn lse_len(&self) -> usize {
        self.n * self.heads * self.q_len
    }
    /// 1/sqrt(head_dim)
    fn scale(&self) -> f32 {
        1.0 / (self.head_dim.max(1) as f32).sqrt()
    }
    /// Where the channels of a head, counted through all samples, begin in q and o.
    fn q_start(&self, head: usize) -> usize {
        (head / self.heads * self.q_len * self.heads + head % self.heads) * self.head_dim
    }
    /// Where the channels of a head, counted through all samples, begin in k and v.
    fn kv_start(&self, head: usize) -> usize {
        (head / self.heads * self.kv_len * self.heads + head % self.heads) * self.head_dim
    }
}

#[track_caller]
fn check(d: &AttentionDims, q: &[f32], k: &[f32], v: &[f32], o: &[f32], lse: &[f32]) {
    check_len("attention", "q", q.len(), d.q_elements());
    check_len("attention", "k", k.len(), d.kv_elements());
    check_len("attention", "v", v.len(), d.kv_elements());
    check_len("attention", "o", o.len(), d.q_elements());
    check_len("attention", "lse", lse.len(), d.lse_len());
}

/// Query rows in a block, a multiple of the rows of every register tile.
const BLOCK: usize = 48;

/// Query rows of one forward task; each task packs keys and values for itself.
const TASK_ROWS: usize = 4 * BLOCK;

/// Columns that a row of scores has in scratch memory: the keys, filled up to whole vectors.
fn padded(kv_len: usize) -> usize {
    kv_len.next_multiple_of(MAX_LANES)
}

/// Memory that a thread keeps from one task to the next.
#[derive(Default)]
struct Scratch {
    keys: Vec<f32>,
    keys_t: Vec<f32>,
    values: Vec<f32>,
    queries: Vec<f32>,
    scores: Vec<f32>,
    gradients: Vec<f32>,
    rows: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Packs a matrix of `k` rows and `n` columns into `memory`.
fn packed<'m>(isa: Isa, b: Matrix<'_>, k: usize, n: usize, memory: &'m mut Vec<f32>) -> &'m [f32] {
    memory.resize(gemm::packed_len(isa, k, n), 0.0);
    gemm::pack(isa, b, k, n, memory);
    memory
}

/// Turns rows of scores (`[rows, padded]`) into exp(score - max), and writes max and sum of each row.
struct Softmax<'a> {
    scores: &'a mut [f32],
    kv_len: usize,
    max_sum: &'a mut [[f32; 2]],
}

impl WithSimd for Softmax<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        for (row, max_sum) in self.scores.chunks_exact_mut(padded(self.kv_len)).zip(self.max_sum) {
            row[self.kv_len..].fill(f32::NEG_INFINITY);
            let mut lanes = [f32::NEG_INFINITY; MAX_LANES];
            let mut max = s.splat(f32::NEG_INFINITY);
            for i in (0..row.len()).step_by(S::LANES) {
                max = s.max(max, get::<S, true>(s, row, i));
            }
            put::<S, true>(s, &mut lanes, 0, max);
            let greatest = lanes.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let max = s.splat(greatest);
            let mut sum = s.splat(0.0);
            for i in (0..row.len()).step_by(S::LANES) {
                let p = exp(s, s.sub(get::<S, true>(s, row, i), max));
                put::<S, true>(s, row, i, p);
                sum = s.add(sum, p);
            }
            lanes.fill(0.0);
            put::<S, true>(s, &mut lanes, 0, sum);
            *max_sum = [greatest, lanes.iter().sum()];
        }
    }
}

/// Turns rows of scores into P = exp(S - lse), and rows of dP into dS = P (dP - D).
struct SoftmaxBackward<'a> {
    scores: &'a mut [f32],
    gradients: &'a mut [f32],
    kv_len: usize,
    lse: &'a [f32],
    row_sums: &'a [f32],
}

impl WithSimd for SoftmaxBackward<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let stride = padded(self.kv_len);
        let rows = self.scores.chunks_exact_mut(stride).zip(self.gradients.chunks_exact_mut(stride));
        for ((p, ds), (lse, row_sum)) in rows.zip(self.lse.iter().zip(self.row_sums)) {
            let (lse, row_sum) = (s.splat(*lse), s.splat(*row_sum));
            // What is beyond the last key is computed with the rest, and not read.
            for i in (0..stride).step_by(S::LANES) {
                let score = exp(s, s.sub(get::<S, true>(s, p, i), lse));
                put::<S, true>(s, p, i, score);
                let centred = s.sub(get::<S, true>(s, ds, i), row_sum);
                put::<S, true>(s, ds, i, s.mul(score, centred));
            }
        }
    }
}

/// Writes the attention to `o`, and the log-sum-exp of each row of scores to `lse` (`[n, heads, q_len]`).
///
/// With no keys (`kv_len` 0) the output is zero and the log-sum-exp minus infinity.
///
/// # Panics
/// If a slice's length is not that of `d`.
pub fn forward(d: &AttentionDims, q: &[f32], k: &[f32], v: &[f32], o: &mut [f32], lse: &mut [f32]) {
    forward_with(Isa::best(), d, q, k, v, o, lse);
}

/// [`forward`] with a given instruction set.
fn forward_with(isa: Isa, d: &AttentionDims, q: &[f32], k: &[f32], v: &[f32], o: &mut [f32], lse: &mut [f32]) {
    check(d, q, k, v, o, lse);
    if d.kv_len == 0 {
        o.fill(0.0);
        lse.fill(f32::NEG_INFINITY);
        return;
    }
    let (c, hd, kv, stride) = (d.heads * d.head_dim, d.head_dim, d.kv_len, padded(d.kv_len));
    let (o, lse) = (Shared::new(o), Shared::new(lse));
    let parts = d.q_len.div_ceil(TASK_ROWS);
    let task = |task: usize, scratch: &mut Scratch| {
        let (head, part) = (task / parts, task % parts);
        let (q_at, kv_at) = (d.q_start(head), d.kv_start(head));
        let keys = packed(isa, Matrix::rows(&k[kv_at..], c).t(), hd, kv, &mut scratch.keys);
        let values = packed(isa, Matrix::rows(&v[kv_at..], c), kv, hd, &mut scratch.values);
        for first in (part * TASK_ROWS..d.q_len.min((part + 1) * TASK_ROWS)).step_by(BLOCK) {
            let rows = BLOCK.min(d.q_len - first);
            scratch.scores.resize(rows * stride, 0.0);
            let a = Matrix::rows(&q[q_at + first * c..], c);
            let packed_a = &mut scratch.rows;
            let scores = Target { data: Shared::new(&mut scratch.scores), start: 0, row: stride };
            let product =
                Product { m: rows, n: kv, k: hd, alpha: d.scale(), a, packed_b: keys, accumulate: false, packed_a };
            // SAFETY: the scores are this thread's own.
            unsafe { product.into(isa, scores) };

            let mut max_sum = [[0f32; 2]; BLOCK];
            dispatch_to(isa, Softmax { scores: &mut scratch.scores, kv_len: kv, max_sum: &mut max_sum[..rows] });

            let a = Matrix::rows(&scratch.scores, stride);
            let packed_a = &mut scratch.rows;
            let target = Target { data: o, start: q_at + first * c, row: c };
            let product =
                Product { m: rows, n: hd, k: kv, alpha: 1.0, a, packed_b: values, accumulate: false, packed_a };
            // SAFETY: these rows of this head belong to this task.
            unsafe { product.into(isa, target) };
            // SAFETY: these rows of this head belong to this task.
            let lse = unsafe { lse.part(head * d.q_len + first, rows) };
            for (i, (lse, [max, sum])) in lse.iter_mut().zip(max_sum).enumerate() {
                *lse = max + sum.ln();
                // SAFETY: this row of this head belongs to this task.
                let o = unsafe { o.part(q_at + (first + i) * c, hd) };
                let share = 1.0 / sum;
                o.iter_mut().for_each(|o| *o *= share);
            }
        }
    };
    tasks(d.n * d.heads * parts, |i| SCRATCH.with_borrow_mut(|scratch| task(i, scratch)));
}

/// The backward pass: adds to `dq`, `dk` and `dv`; `o` and `lse` are what [`forward`] wrote, `d_o` is the gradient of `o`.
///
/// # Panics
/// If a slice's length is not that of `d`.
pub fn backward(
    d: &AttentionDims,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    o: &[f32],
    lse: &[f32],
    d_o: &[f32],
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
) {
    backward_with(Isa::best(), d, q, k, v, o, lse, d_o, dq, dk, dv);
}

/// [`backward`] with a given instruction set.
fn backward_with(
    isa: Isa,
    d: &AttentionDims,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    o: &[f32],
    lse: &[f32],
    d_o: &[f32],
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
) {
    check(d, q, k, v, o, lse);
    check_len("attention backward", "do", d_o.len(), d.q_elements());
    check_len("attention backward", "dq", dq.len(), d.q_elements());
    check_len("attention backward", "dk", dk.len(), d.kv_elements());
    check_len("attention backward", "dv", dv.len(), d.kv_elements());
    if d.kv_len == 0 || d.head_dim == 0 {
        return;
    }
    let (c, hd, kv, stride, scale) = (d.heads * d.head_dim, d.head_dim, d.kv_len, padded(d.kv_len), d.scale());
    let (dq, dk, dv) = (Shared::new(dq), Shared::new(dk), Shared::new(dv));
    let task = |head: usize, scratch: &mut Scratch| {
        let Scratch { keys, keys_t, values, queries, scores, gradients, rows: packed_a } = scratch;
        let (q_at, kv_at) = (d.q_start(head), d.kv_start(head));
        let keys_t = packed(isa, Matrix::rows(&k[kv_at..], c).t(), hd, kv, keys_t);
        let keys = packed(isa, Matrix::rows(&k[kv_at..], c), kv, hd, keys);
        let values_t = packed(isa, Matrix::rows(&v[kv_at..], c).t(), hd, kv, values);
        for first in (0..d.q_len).step_by(BLOCK) {
            let m = BLOCK.min(d.q_len - first);
            let at = q_at + first * c;
            let (q, o, d_o) = (&q[at..], &o[at..], &d_o[at..]);
            // Zeros, so that the columns beyond the last key are harmless numbers.
            scores.clear();
            scores.resize(m * stride, 0.0);
            gradients.clear();
            gradients.resize(m * stride, 0.0);
            for (alpha, a, packed_b, out) in [(scale, q, keys_t, &mut *scores), (1.0, d_o, values_t, &mut *gradients)] {
                let a = Matrix::rows(a, c);
                let product = Product { m, n: kv, k: hd, alpha, a, packed_b, accumulate: false, packed_a };
                // SAFETY: the target is this thread's own.
                unsafe { product.into(isa, Target { data: Shared::new(out), start: 0, row: stride }) };
            }
            let mut row_sums = [0f32; BLOCK];
            for (i, sum) in row_sums.iter_mut().enumerate().take(m) {
                *sum = o[i * c..][..hd].iter().zip(&d_o[i * c..][..hd]).map(|(o, d_o)| o * d_o).sum();
            }
            let lse = &lse[head * d.q_len + first..][..m];
            dispatch_to(isa, SoftmaxBackward { scores, gradients, kv_len: kv, lse, row_sums: &row_sums[..m] });

            let ds = Matrix::rows(gradients, stride);
            let product = Product { m, n: hd, k: kv, alpha: scale, a: ds, packed_b: keys, accumulate: true, packed_a };
            // SAFETY: these rows of this head belong to this task.
            unsafe { product.into(isa, Target { data: dq, start: at, row: c }) };
            for (alpha, a, b, out) in [(1.0, &*scores, d_o, dv), (scale, &*gradients, q, dk)] {
                let packed_b = packed(isa, Matrix::rows(b, c), m, hd, queries);
                let a = Matrix::rows(a, stride).t();
                let product = Product { m: kv, n: hd, k: m, alpha, a, packed_b, accumulate: true, packed_a };
                // SAFETY: keys and values of this head belong to this task.
                unsafe { product.into(isa, Target { data: out, start: kv_at, row: c }) };
            }
        }
    };
    tasks(d.n * d.heads, |head| SCRATCH.with_borrow_mut(|scratch| task(head, scratch)));
}

#[cfg(test)]
mod tests;
