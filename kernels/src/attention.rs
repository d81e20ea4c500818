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

use crate::par::{Shared, check_len, tasks};

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
        1.0 / (self.head_dim as f32).sqrt()
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

/// Writes the attention to `o`, and the log-sum-exp of each row of scores to `lse` (`[n, heads, q_len]`).
///
/// With no keys (`kv_len` 0) the output is zero.
///
/// # Panics
/// If a slice's length is not that of `d`.
pub fn forward(d: &AttentionDims, q: &[f32], k: &[f32], v: &[f32], o: &mut [f32], lse: &mut [f32]) {
    check(d, q, k, v, o, lse);
    let (c, hd, scale) = (d.heads * d.head_dim, d.head_dim, d.scale());
    let (o, lse) = (Shared::new(o), Shared::new(lse));
    tasks(d.n * d.heads, |task| {
        let (n, head) = (task / d.heads, task % d.heads);
        // SAFETY: the log-sum-exps of one head of one sample belong to this task.
        let lse = unsafe { lse.part(task * d.q_len, d.q_len) };
        let mut p = vec![0f32; d.kv_len];
        for i in 0..d.q_len {
            let q = &q[(n * d.q_len + i) * c + head * hd..][..hd];
            for (j, p) in p.iter_mut().enumerate() {
                let k = &k[(n * d.kv_len + j) * c + head * hd..][..hd];
                *p = scale * q.iter().zip(k).map(|(q, k)| q * k).sum::<f32>();
            }
            let max = p.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f32 = p.iter().map(|p| (p - max).exp()).sum();
            lse[i] = max + sum.ln();
            // SAFETY: this row of this head belongs to this task.
            let o = unsafe { o.part((n * d.q_len + i) * c + head * hd, hd) };
            o.fill(0.0);
            for (j, p) in p.iter().enumerate() {
                let p = (p - max).exp() / sum;
                for (o, v) in o.iter_mut().zip(&v[(n * d.kv_len + j) * c + head * hd..][..hd]) {
                    *o += p * v;
                }
            }
        }
    });
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
    check(d, q, k, v, o, lse);
    check_len("attention backward", "do", d_o.len(), d.q_elements());
    check_len("attention backward", "dq", dq.len(), d.q_elements());
    check_len("attention backward", "dk", dk.len(), d.kv_elements());
    check_len("attention backward", "dv", dv.len(), d.kv_elements());
    let (c, hd, scale) = (d.heads * d.head_dim, d.head_dim, d.scale());
    let (dq, dk, dv) = (Shared::new(dq), Shared::new(dk), Shared::new(dv));
    tasks(d.n * d.heads, |task| {
        let (n, head) = (task / d.heads, task % d.heads);
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        for i in 0..d.q_len {
            let at = (n * d.q_len + i) * c + head * hd;
            let (q, d_o) = (&q[at..][..hd], &d_o[at..][..hd]);
            let row = dot(&o[at..][..hd], d_o);
            // SAFETY: this row of this head belongs to this task.
            let dq = unsafe { dq.part(at, hd) };
            for j in 0..d.kv_len {
                let kv = (n * d.kv_len + j) * c + head * hd;
                let (k, v) = (&k[kv..][..hd], &v[kv..][..hd]);
                // SAFETY: this row of this head belongs to this task.
                let (dk, dv) = unsafe { (dk.part(kv, hd), dv.part(kv, hd)) };
                let p = (scale * dot(q, k) - lse[task * d.q_len + i]).exp();
                let ds = scale * p * (dot(d_o, v) - row);
                for x in 0..hd {
                    dv[x] += p * d_o[x];
                    dq[x] += ds * k[x];
                    dk[x] += ds * q[x];
                }
            }
        }
    });
}
