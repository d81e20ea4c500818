//! Scaled dot-product attention of several heads.
//!
//! ```text
//! S = Q K^T / sqrt(head_dim),   P = softmax over kv of S,   O = P V,   lse = log sum exp S       Vaswani 2017, eq. 1
//! dV += P^T dO,   dP = dO V^T,   D = rowsum(dO O),   dS = P (dP - D),
//! dQ += dS K / sqrt(head_dim),   dK += dS^T Q / sqrt(head_dim)                                  Dao 2022, appendix B.2
//! ```
//!
//! Both passes go through blocks of query rows, whose scores live in scratch memory of the thread; the backward pass
//! computes P = exp(S - lse) again, so the whole score matrix is never stored. Many keys are met in blocks, too, with the
//! running maximum m and sum l of each row (Milakov and Gimelshein 2018, arXiv:1805.02867, algorithm 3):
//!
//! ```text
//! m' = max(m, max S),   P = exp(S - m'),   l' = l exp(m - m') + rowsum P,   O' = O exp(m - m') + P V
//! ```

mod softmax;

use std::cell::{Cell, RefCell};
use std::ops::Range;

use crate::gemm::{self, Matrix, Product, Target};
use crate::lanes::{MAX_LANES, get, put};
use crate::memory::{Floats, Kept, with_kept};
use crate::par::{Shared, check_len, tasks};
use crate::simd::{Isa, Simd, WithSimd, dispatch_to};
use softmax::{Sight, Softmax, SoftmaxBackward, padded};

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

/// Keys in a block of the forward pass, so that a block of scores stays in the second-level cache; a multiple of every panel.
const KEYS: usize = 768;

/// Floats of packed keys and values that are kept at a time, unless those of a single head are more.
const MOST_PACKED: usize = 1 << 22;

/// Tasks of a backward pass; with fewer heads than this the query rows are divided, too.
const BACKWARD_TASKS: usize = 8;

/// Memory that a thread keeps from one task to the next.
#[derive(Default)]
struct Scratch {
    queries: Floats,
    scores: Floats,
    gradients: Floats,
    rows: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
    /// Packed keys and values of some heads.
    static PACKED: Cell<Floats> = const { Cell::new(Floats::new()) };
    /// Gradients of keys and values from each part of the query rows.
    static PARTS: Cell<Floats> = const { Cell::new(Floats::new()) };
}

/// Packs a matrix of `k` rows and `n` columns into `memory`.
fn packed<'m>(isa: Isa, b: Matrix<'_>, k: usize, n: usize, memory: &'m mut Floats) -> &'m [f32] {
    let memory = memory.room(gemm::packed_len(isa, k, n));
    gemm::pack(isa, b, k, n, memory);
    memory
}

/// `x *= factor`
struct Scale<'a> {
    factor: f32,
    x: &'a mut [f32],
}

impl WithSimd for Scale<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let (x, factor) = (self.x, s.splat(self.factor));
        let full = x.len() / S::LANES * S::LANES;
        for i in (0..full).step_by(S::LANES) {
            let scaled = s.mul(get::<S, true>(s, x, i), factor);
            put::<S, true>(s, x, i, scaled);
        }
        if full < x.len() {
            let scaled = s.mul(get::<S, false>(s, x, full), factor);
            put::<S, false>(s, x, full, scaled);
        }
    }
}

/// `sums[i] = sum_k a[i, k] b[i, k]` for rows of `len` floats that begin every `row` floats.
struct RowDots<'a> {
    a: &'a [f32],
    b: &'a [f32],
    row: usize,
    len: usize,
    sums: &'a mut [f32],
}

impl WithSimd for RowDots<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let full = self.len / S::LANES * S::LANES;
        for (i, sum) in self.sums.iter_mut().enumerate() {
            let (a, b) = (&self.a[i * self.row..][..self.len], &self.b[i * self.row..][..self.len]);
            let mut acc = s.splat(0.0);
            for k in (0..full).step_by(S::LANES) {
                acc = s.fma(get::<S, true>(s, a, k), get::<S, true>(s, b, k), acc);
            }
            if full < self.len {
                acc = s.fma(get::<S, false>(s, a, full), get::<S, false>(s, b, full), acc);
            }
            let mut lanes = [0f32; MAX_LANES];
            put::<S, true>(s, &mut lanes, 0, acc);
            *sum = lanes.iter().sum();
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
    forward_with(Isa::best(), Sight::Full, d, q, k, v, o, lse);
}

/// [`forward`] where position i sees positions 0 to i alone, as in a language model. There is no backward pass.
///
/// # Panics
/// If a slice's length is not that of `d`.
pub fn forward_causal(d: &AttentionDims, q: &[f32], k: &[f32], v: &[f32], o: &mut [f32], lse: &mut [f32]) {
    forward_with(Isa::best(), Sight::Causal, d, q, k, v, o, lse);
}

/// The packed keys and values of a head, block by block.
struct Packing {
    isa: Isa,
    head_dim: usize,
    kv_len: usize,
}

impl Packing {
    /// The blocks: first key and number of keys.
    fn blocks(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let kv_len = self.kv_len;
        (0..kv_len).step_by(KEYS).map(move |first| (first, KEYS.min(kv_len - first)))
    }

    /// Floats of the keys and of the values of a block.
    fn lens(&self, keys: usize) -> [usize; 2] {
        [gemm::packed_len(self.isa, self.head_dim, keys), gemm::packed_len(self.isa, keys, self.head_dim)]
    }

    /// Floats of a head.
    fn len(&self) -> usize {
        self.blocks().map(|(_, keys)| self.lens(keys).iter().sum::<usize>()).sum()
    }

    /// Packs rows of keys and values, which begin every `c` floats.
    fn pack(&self, k: &[f32], v: &[f32], c: usize, mut packed: &mut [f32]) {
        for (first, count) in self.blocks() {
            let [keys_len, values_len] = self.lens(count);
            let (keys, rest) = packed.split_at_mut(keys_len);
            let (values, rest) = rest.split_at_mut(values_len);
            gemm::pack(self.isa, Matrix::rows(&k[first * c..], c).t(), self.head_dim, count, keys);
            gemm::pack(self.isa, Matrix::rows(&v[first * c..], c), count, self.head_dim, values);
            packed = rest;
        }
    }
}

/// [`forward`] with a given instruction set.
fn forward_with(
    isa: Isa,
    sight: Sight,
    d: &AttentionDims,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    o: &mut [f32],
    lse: &mut [f32],
) {
    check(d, q, k, v, o, lse);
    if d.kv_len == 0 {
        o.fill(0.0);
        lse.fill(f32::NEG_INFINITY);
        return;
    }
    let c = d.heads * d.head_dim;
    let packing = Packing { isa, head_dim: d.head_dim, kv_len: d.kv_len };
    let packed_len = packing.len();
    let (o, lse) = (Shared::new(o), Shared::new(lse));
    let blocks = d.q_len.div_ceil(BLOCK);
    let heads_at_once = (MOST_PACKED / packed_len.max(1)).clamp(1, (d.n * d.heads).max(1));
    for first in (0..d.n * d.heads).step_by(heads_at_once) {
        let heads = heads_at_once.min(d.n * d.heads - first);
        with_kept(&PACKED as &Kept<f32>, heads * packed_len, |packed| {
            let shared = Shared::new(packed);
            tasks(heads, |i| {
                let at = d.kv_start(first + i);
                // SAFETY: each task takes the place of its own head.
                packing.pack(&k[at..], &v[at..], c, unsafe { shared.part(i * packed_len, packed_len) });
            });
            let packed = &*packed;
            tasks(heads * blocks, |i| {
                let (head, block) = (i / blocks, i % blocks);
                let packed = &packed[head * packed_len..][..packed_len];
                let rows = Rows { sight, d, q, head: first + head, first: block * BLOCK };
                SCRATCH.with_borrow_mut(|scratch| rows.forward(&packing, packed, (o, lse), scratch));
            });
        });
    }
}

/// Some query rows of one head.
struct Rows<'a> {
    sight: Sight,
    d: &'a AttentionDims,
    q: &'a [f32],
    head: usize,
    first: usize,
}

impl Rows<'_> {
    /// Against the packed keys and values of the head.
    fn forward(
        &self,
        packing: &Packing,
        mut packed: &[f32],
        (o, lse): (Shared<'_, f32>, Shared<'_, f32>),
        scratch: &mut Scratch,
    ) {
        let Self { sight, d, q, head, first } = *self;
        let (isa, c, hd) = (packing.isa, d.heads * d.head_dim, d.head_dim);
        let (rows, at) = (BLOCK.min(d.q_len - first), d.q_start(head) + first * c);
        let Scratch { scores, rows: packed_a, .. } = scratch;
        let mut max_sum = [[f32::NEG_INFINITY, 0.0]; BLOCK];
        for (key, count) in packing.blocks() {
            if sight == Sight::Causal && key >= first + rows {
                break;
            }
            let (stride, [keys_len, values_len]) = (padded(count), packing.lens(count));
            let (keys, rest) = packed.split_at(keys_len);
            let (values, rest) = rest.split_at(values_len);
            packed = rest;
            let scores = scores.room(rows * stride);
            let a = Matrix::rows(&q[at..], c);
            let alpha = d.scale();
            let product = Product { m: rows, n: count, k: hd, alpha, a, packed_b: keys, accumulate: false, packed_a };
            // SAFETY: the scores are this thread's own.
            unsafe { product.into(isa, Target { data: Shared::new(scores), start: 0, row: stride }) };

            let mut factors = [0f32; BLOCK];
            let (max_sum, factors) = (&mut max_sum[..rows], &mut factors[..rows]);
            dispatch_to(isa, Softmax { scores, keys: count, sight, row: first, key, max_sum, factors });

            if key > 0 {
                for (i, factor) in factors.iter().enumerate().filter(|(_, factor)| **factor != 1.0) {
                    // SAFETY: this row of this head belongs to this task.
                    dispatch_to(isa, Scale { factor: *factor, x: unsafe { o.part(at + i * c, hd) } });
                }
            }
            let a = Matrix::rows(scores, stride);
            let accumulate = key > 0;
            let product = Product { m: rows, n: hd, k: count, alpha: 1.0, a, packed_b: values, accumulate, packed_a };
            // SAFETY: these rows of this head belong to this task.
            unsafe { product.into(isa, Target { data: o, start: at, row: c }) };
        }
        // SAFETY: these rows of this head belong to this task.
        let lse = unsafe { lse.part(head * d.q_len + first, rows) };
        for (i, (lse, [max, sum])) in lse.iter_mut().zip(max_sum).enumerate() {
            *lse = max + sum.ln();
            // SAFETY: this row of this head belongs to this task.
            dispatch_to(isa, Scale { factor: 1.0 / sum, x: unsafe { o.part(at + i * c, hd) } });
        }
    }
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
    let (c, hd, kv, heads) = (d.heads * d.head_dim, d.head_dim, d.kv_len, d.n * d.heads);
    let (blocks, kv_len) = (d.q_len.div_ceil(BLOCK), kv * hd);
    let parts = BACKWARD_TASKS.div_ceil(heads.max(1)).clamp(1, blocks.max(1));
    let (dq, dk, dv) = (Shared::new(dq), Shared::new(dk), Shared::new(dv));
    let x = Tensors { q, o, lse, d_o };
    let lens = [gemm::packed_len(isa, hd, kv), gemm::packed_len(isa, kv, hd), gemm::packed_len(isa, hd, kv)];
    let packed_len = lens.iter().sum::<usize>();
    let heads_at_once = (MOST_PACKED / packed_len).clamp(1, heads.max(1));
    for first in (0..heads).step_by(heads_at_once) {
        let heads = heads_at_once.min(heads - first);
        with_kept(&PACKED as &Kept<f32>, heads * packed_len, |packed| {
            let shared = Shared::new(packed);
            tasks(heads * 3, |i| {
                let (head, which) = (i / 3, i % 3);
                let (keys, values) = (&k[d.kv_start(first + head)..], &v[d.kv_start(first + head)..]);
                let start = head * packed_len + lens[..which].iter().sum::<usize>();
                // SAFETY: each task takes the place of its own matrix.
                let packed = unsafe { shared.part(start, lens[which]) };
                match which {
                    0 => gemm::pack(isa, Matrix::rows(keys, c).t(), hd, kv, packed),
                    1 => gemm::pack(isa, Matrix::rows(keys, c), kv, hd, packed),
                    _ => gemm::pack(isa, Matrix::rows(values, c).t(), hd, kv, packed),
                }
            });
            let packed = &*packed;
            let run = |head: usize, blocks: Range<usize>, dkv: Gradients<'_>| {
                let (keys_t, rest) = packed[head * packed_len..][..packed_len].split_at(lens[0]);
                let (keys, values_t) = rest.split_at(lens[1]);
                let packed = Packed { keys_t, keys, values_t };
                SCRATCH.with_borrow_mut(|scratch| {
                    backward_part(isa, d, &x, &packed, first + head, blocks, dq, dkv, scratch);
                });
            };
            if parts == 1 {
                // Keys and values of a head belong to one task.
                let whole = |head| Gradients { dk, dv, start: d.kv_start(first + head), row: c };
                return tasks(heads, |head| run(head, 0..blocks, whole(head)));
            }
            // Each part of the query rows has gradients of its own, `[head][part][2][kv, head_dim]`, added in order.
            with_kept(&PARTS as &Kept<f32>, heads * parts * 2 * kv_len, |partial| {
                let shared = Shared::new(partial);
                tasks(heads * parts, |i| {
                    let (head, part) = (i / parts, i % parts);
                    // SAFETY: each task takes its own gradients.
                    let own = unsafe { shared.part(i * 2 * kv_len, 2 * kv_len) };
                    own.fill(0.0);
                    let (dk, dv) = own.split_at_mut(kv_len);
                    let own = Gradients { dk: Shared::new(dk), dv: Shared::new(dv), start: 0, row: hd };
                    run(head, part * blocks / parts..(part + 1) * blocks / parts, own);
                });
                tasks(heads * kv, |i| {
                    let (head, row) = (i / kv, i % kv);
                    let at = d.kv_start(first + head) + row * c;
                    for (which, out) in [dk, dv].into_iter().enumerate() {
                        // SAFETY: this row of this head belongs to this task.
                        let out = unsafe { out.part(at, hd) };
                        for part in 0..parts {
                            let from = ((head * parts + part) * 2 + which) * kv_len + row * hd;
                            // SAFETY: nothing writes the parts any more.
                            dispatch_to(isa, Add { x: unsafe { shared.read(from, hd) }, y: &mut *out });
                        }
                    }
                });
            });
        });
    }
}

/// `y += x`
struct Add<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
}

impl WithSimd for Add<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        crate::channels::add_row(s, self.x, self.y);
    }
}

/// What the backward pass reads.
struct Tensors<'a> {
    q: &'a [f32],
    o: &'a [f32],
    lse: &'a [f32],
    d_o: &'a [f32],
}

/// Keys and values of one head.
struct Packed<'a> {
    keys_t: &'a [f32],
    keys: &'a [f32],
    values_t: &'a [f32],
}

/// Where the gradients of one head's keys and values go: rows from `start` on, every `row` floats.
struct Gradients<'a> {
    dk: Shared<'a, f32>,
    dv: Shared<'a, f32>,
    start: usize,
    row: usize,
}

/// Some blocks of query rows of one head; adds to their rows of `dq` and to `dkv`, which no other task may use.
fn backward_part(
    isa: Isa,
    d: &AttentionDims,
    x: &Tensors<'_>,
    packed_kv: &Packed<'_>,
    head: usize,
    blocks: Range<usize>,
    dq: Shared<'_, f32>,
    dkv: Gradients<'_>,
    scratch: &mut Scratch,
) {
    let (c, hd, kv, stride, scale) = (d.heads * d.head_dim, d.head_dim, d.kv_len, padded(d.kv_len), d.scale());
    let Scratch { queries, scores, gradients, rows: packed_a } = scratch;
    let Packed { keys_t, keys, values_t } = *packed_kv;
    for first in blocks.map(|block| block * BLOCK) {
        let m = BLOCK.min(d.q_len - first);
        let at = d.q_start(head) + first * c;
        let (q, o, d_o) = (&x.q[at..], &x.o[at..], &x.d_o[at..]);
        // Zeros, so that the columns beyond the last key are harmless numbers.
        let (scores, gradients) = (scores.room(m * stride), gradients.room(m * stride));
        scores.fill(0.0);
        gradients.fill(0.0);
        for (alpha, a, packed_b, out) in [(scale, q, keys_t, &mut *scores), (1.0, d_o, values_t, &mut *gradients)] {
            let a = Matrix::rows(a, c);
            let product = Product { m, n: kv, k: hd, alpha, a, packed_b, accumulate: false, packed_a };
            // SAFETY: the target is this thread's own.
            unsafe { product.into(isa, Target { data: Shared::new(out), start: 0, row: stride }) };
        }
        let mut row_sums = [0f32; BLOCK];
        dispatch_to(isa, RowDots { a: o, b: d_o, row: c, len: hd, sums: &mut row_sums[..m] });
        let lse = &x.lse[head * d.q_len + first..][..m];
        dispatch_to(isa, SoftmaxBackward { scores, gradients, kv_len: kv, lse, row_sums: &row_sums[..m] });

        let ds = Matrix::rows(gradients, stride);
        let product = Product { m, n: hd, k: kv, alpha: scale, a: ds, packed_b: keys, accumulate: true, packed_a };
        // SAFETY: these rows of this head belong to this task.
        unsafe { product.into(isa, Target { data: dq, start: at, row: c }) };
        for (alpha, a, b, out) in [(1.0, &*scores, d_o, dkv.dv), (scale, &*gradients, q, dkv.dk)] {
            let packed_b = packed(isa, Matrix::rows(b, c), m, hd, queries);
            let a = Matrix::rows(a, stride).t();
            let product = Product { m: kv, n: hd, k: m, alpha, a, packed_b, accumulate: true, packed_a };
            // SAFETY: the caller vouches that these keys and values belong to this task.
            unsafe { product.into(isa, Target { data: out, start: dkv.start, row: dkv.row }) };
        }
    }
}

#[cfg(test)]
mod tests;
