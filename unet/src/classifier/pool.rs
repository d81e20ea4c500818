//! From the activations of all pixels to one vector of features.
//!
//! ```text
//! average    f = mean over pixels of a
//! attention  z_0 = mean over pixels of a + p_0,  z_i = a_i + p_i for every pixel i
//!            f = Wo softmax((Wq z_0)(Wk z)^T / sqrt(head width)) (Wv z) + bo, per head
//! ```
//!
//! The attention is that of CLIP (Radford et al. 2021, section 2.4) as a classifier of Dhariwal & Nichol 2021 has it,
//! of whose outputs only the first is read: only its query is computed.

use std::ops::Range;

use rayon::prelude::*;
use tweedie_denoiser::Role;
use tweedie_kernels::attention::{self, AttentionDims};
use tweedie_kernels::channels;

use crate::init::Fill;
use crate::layers::{AttentionShape, Linear, Place};
use crate::summary::Summary;
use crate::tensor::{Tape, Tensor};
use crate::weights::{Builder, Pass};

/// The layer.
#[derive(Clone, Debug)]
pub(super) enum PoolLayer {
    Average,
    Attention(Box<AttentionPool>),
}

/// Attention of the mean to all pixels.
#[derive(Clone, Debug)]
pub(super) struct AttentionPool {
    name: String,
    shape: AttentionShape,
    /// The mean's, then those of the pixels, row by row.
    positions: Range<usize>,
    tokens: usize,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
}

/// `[n, 1, 1, c]`, the means over the pixels.
fn mean(p: &Pass<'_>, x: &Tensor) -> Tensor {
    let mut y = p.pool.zeros_of([x.n, 1, 1, x.c]);
    channels::add_bias_backward(x.n, x.hw(), x.c, &x.data, &mut y.data);
    y.scale(1.0 / x.hw() as f32);
    y
}

/// Adds the gradient of [`mean`]'s input to `dx`.
fn mean_backward(mut dy: Tensor, dx: &mut Tensor) {
    dy.scale(1.0 / dx.hw() as f32);
    channels::add_bias(dx.n, dx.hw(), dx.c, &dy.data, &mut dx.data);
}

impl PoolLayer {
    pub fn forward(&self, p: &Pass<'_>, x: &Tensor, tape: &mut Tape) -> Tensor {
        match self {
            Self::Average => mean(p, x),
            Self::Attention(pool) => pool.forward(p, x, tape),
        }
    }

    /// The gradient of the input, which had `shape`.
    pub fn backward(&self, p: &Pass<'_>, tape: &mut Tape, dy: Tensor, shape: [usize; 4], grads: &mut [f32]) -> Tensor {
        match self {
            Self::Average => {
                let mut dx = p.pool.zeros_of(shape);
                mean_backward(dy, &mut dx);
                dx
            }
            Self::Attention(pool) => pool.backward(p, tape, &dy, shape, grads),
        }
    }

    pub fn describe(&self, s: &mut Summary, [h, w]: [usize; 2], c: usize) {
        match self {
            Self::Average => s.push("pool", "Mean", [c, 1, 1], 0, 0),
            Self::Attention(pool) => pool.describe(s, h * w + 1),
        }
    }
}

impl AttentionPool {
    /// For images of `size` pixels.
    pub fn new(b: &mut Builder, name: &str, shape: AttentionShape, [h, w]: [usize; 2]) -> Self {
        let key = |part: &str| format!("{name}.{part}");
        let AttentionShape { c, heads, width, .. } = shape;
        let (tokens, inner) = (h * w + 1, heads * width);
        let fill = Fill::Normal { deviation: 1.0 / (c as f32).sqrt(), width: c, frozen: None };
        Self {
            name: name.to_owned(),
            shape,
            positions: b.add(key("positional_embedding"), &[tokens, c], Role::Weight, fill),
            tokens,
            to_q: Linear::new(b, &key("to_q"), c, inner, Place::Inner),
            to_k: Linear::new(b, &key("to_k"), c, inner, Place::Inner),
            to_v: Linear::new(b, &key("to_v"), c, inner, Place::Inner),
            to_out: Linear::new(b, &key("to_out.0"), inner, c, Place::Inner),
        }
    }

    fn dims(&self, n: usize) -> AttentionDims {
        let AttentionShape { heads, width, .. } = self.shape;
        AttentionDims { n, q_len: 1, kv_len: self.tokens, heads, head_dim: width }
    }

    /// `z`, `[n, 1, tokens, c]`.
    fn tokens(&self, p: &Pass<'_>, x: &Tensor) -> Tensor {
        assert_eq!(x.hw() + 1, self.tokens, "the size of the images was checked");
        let mean = mean(p, x);
        let mut z = p.pool.tensor([x.n, 1, self.tokens, x.c]);
        let positions = &p.values[self.positions.clone()];
        let samples = z.data.par_chunks_mut(self.tokens * x.c).zip(x.data.par_chunks(x.hw() * x.c));
        samples.zip(mean.data.par_chunks(x.c)).for_each(|((z, x), mean)| {
            let values = mean.iter().chain(x);
            z.iter_mut().zip(values).zip(positions).for_each(|((z, value), position)| *z = value + position);
        });
        z
    }

    /// The first token of every sample, `[n, 1, 1, c]`.
    fn first(&self, p: &Pass<'_>, z: &Tensor) -> Tensor {
        let mut first = p.pool.tensor([z.n, 1, 1, z.c]);
        let rows = first.data.chunks_exact_mut(z.c).zip(z.data.chunks_exact(self.tokens * z.c));
        rows.for_each(|(first, z)| first.copy_from_slice(&z[..first.len()]));
        first
    }

    fn forward(&self, p: &Pass<'_>, x: &Tensor, tape: &mut Tape) -> Tensor {
        let z = self.tokens(p, x);
        let first = self.first(p, &z);
        let (q, k, v) = (self.to_q.forward(p, &first), self.to_k.forward(p, &z), self.to_v.forward(p, &z));
        let mut o = p.pool.tensor(q.shape());
        let mut lse = p.pool.tensor([x.n, 1, self.shape.heads, 1]);
        attention::forward(&self.dims(x.n), &q.data, &k.data, &v.data, &mut o.data, &mut lse.data);
        let y = self.to_out.forward(p, &o);
        for saved in [z, first, q, k, v, o, lse] {
            tape.push(saved);
        }
        y
    }

    fn backward(&self, p: &Pass<'_>, tape: &mut Tape, dy: &Tensor, shape: [usize; 4], grads: &mut [f32]) -> Tensor {
        let [lse, o, v, k, q, first, z] = std::array::from_fn(|_| tape.pop());
        let d_o = self.to_out.backward_new(p, &o, dy, grads);
        let [mut dq, mut dk, mut dv] = [&q, &k, &v].map(|like| p.pool.zeros_like(like));
        // There is one row of queries, so the kernel has nothing to divide.
        attention::backward(
            &self.dims(dy.n),
            &q.data,
            &k.data,
            &v.data,
            &o.data,
            &lse.data,
            &d_o.data,
            &mut dq.data,
            &mut dk.data,
            &mut dv.data,
        );
        let mut dz = self.to_k.backward_new(p, &z, &dk, grads);
        self.to_v.backward(p, &z, &dv, &mut dz, grads);
        let dfirst = self.to_q.backward_new(p, &first, &dq, grads);
        let c = dz.c;
        let rows = dz.data.chunks_exact_mut(self.tokens * c).zip(dfirst.data.chunks_exact(c));
        rows.for_each(|(dz, dfirst)| dz.iter_mut().zip(dfirst).for_each(|(dz, d)| *dz += d));
        if !grads.is_empty() {
            let dpositions = &mut grads[self.positions.clone()];
            for dz in dz.data.chunks_exact(self.tokens * c) {
                dpositions.iter_mut().zip(dz).for_each(|(to, dz)| *to += dz);
            }
        }
        let mut dx = p.pool.tensor(shape);
        let samples = dx.data.chunks_exact_mut((self.tokens - 1) * c).zip(dz.data.chunks_exact(self.tokens * c));
        samples.for_each(|(dx, dz)| dx.copy_from_slice(&dz[c..]));
        mean_backward(self.first(p, &dz), &mut dx);
        dx
    }

    fn describe(&self, s: &mut Summary, tokens: usize) {
        let AttentionShape { c, heads, width, .. } = self.shape;
        let (kind, places) = (format!("Positions({tokens})"), self.positions.len());
        s.push(&format!("{}.positional_embedding", self.name), kind, [c, 1, tokens], places, 0);
        self.to_q.describe(s, [1, 1]);
        self.to_k.describe(s, [1, tokens]);
        self.to_v.describe(s, [1, tokens]);
        let flops = 4 * (tokens * heads * width) as u64;
        s.push(&self.name, format!("Attention({heads} heads)"), [heads * width, 1, 1], 0, flops);
        self.to_out.describe(s, [1, 1]);
    }
}
