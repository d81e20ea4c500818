//! Self-attention over the pixels of an image.
//!
//! ```text
//! a = GN(x);  q, k, v = Wq a + bq, Wk a + bk, Wv a + bv
//! y = (Wo softmax(q k^T / sqrt(head width)) v + bo + x) / output_scale       Vaswani et al. 2017, eq. 1, per head
//! ```

use std::sync::Arc;

use tweedie_kernels::act::Act;
use tweedie_kernels::attention::{self, AttentionDims};

use super::conv::{Linear, Place};
use super::norm::{Gradient, GroupNorm};
use crate::summary::Summary;
use crate::tensor::{Tape, Tensor};
use crate::weights::{Builder, Pass};

/// One attention block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttentionShape {
    pub c: usize,
    pub heads: usize,
    /// Channels of a head.
    pub width: usize,
    /// `None` where the block has no normalisation of its own.
    pub groups: Option<usize>,
    pub output_scale: f32,
}

/// An attention block with its residual connection.
#[derive(Clone, Debug)]
pub(crate) struct Attention {
    name: String,
    shape: AttentionShape,
    group_norm: Option<GroupNorm>,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
}

impl Attention {
    pub fn new(b: &mut Builder, name: &str, shape: AttentionShape, eps: f32) -> Self {
        let key = |part: &str| format!("{name}.{part}");
        let AttentionShape { c, heads, width, groups, .. } = shape;
        let inner = heads * width;
        Self {
            name: name.to_owned(),
            shape,
            group_norm: groups.map(|groups| GroupNorm::new(b, &key("group_norm"), c, groups, eps, Act::None)),
            to_q: Linear::new(b, &key("to_q"), c, inner, Place::Inner),
            to_k: Linear::new(b, &key("to_k"), c, inner, Place::Inner),
            to_v: Linear::new(b, &key("to_v"), c, inner, Place::Inner),
            to_out: Linear::new(b, &key("to_out.0"), inner, c, Place::EndsResidual),
        }
    }

    fn dims(&self, x: &Tensor) -> AttentionDims {
        let (len, AttentionShape { heads, width, .. }) = (x.hw(), self.shape);
        AttentionDims { n: x.n, q_len: len, kv_len: len, heads, head_dim: width }
    }

    pub fn forward(&self, p: &Pass<'_>, x: Arc<Tensor>, tape: &mut Tape) -> Tensor {
        let a = match &self.group_norm {
            Some(norm) => {
                let (a, stats) = norm.forward(p, &x, None);
                tape.push(stats);
                Arc::new(a)
            }
            None => x.clone(),
        };
        let [q, k, v] = [&self.to_q, &self.to_k, &self.to_v].map(|linear| linear.forward(p, &a));
        let mut o = p.pool.tensor(q.shape());
        let mut lse = p.pool.tensor([x.n, 1, self.shape.heads, x.hw()]);
        attention::forward(&self.dims(&x), &q.data, &k.data, &v.data, &mut o.data, &mut lse.data);
        let mut y = self.to_out.forward(p, &o);
        y.add(&x);
        y.scale(1.0 / self.shape.output_scale);
        for saved in [q, k, v, o, lse] {
            tape.push(saved);
        }
        tape.push(a);
        tape.push(x);
        y
    }

    pub fn backward(&self, p: &Pass<'_>, tape: &mut Tape, mut dy: Tensor, grads: &mut [f32]) -> Tensor {
        let (x, a) = (tape.pop(), tape.pop());
        let [lse, o, v, k, q] = std::array::from_fn(|_| tape.pop());
        dy.scale(1.0 / self.shape.output_scale);
        let d_o = self.to_out.backward_new(p, &o, &dy, grads);
        let [mut dq, mut dk, mut dv] = std::array::from_fn(|_| p.pool.zeros_like(&q));
        // The kernel divides the queries of a head by the number of heads in a call, and rounds accordingly: for the
        // gradient of an image alone, each has a call of its own.
        let images = if grads.is_empty() { x.n } else { 1 };
        let d = AttentionDims { n: x.n / images, ..self.dims(&x) };
        for i in 0..images {
            let (at, lse_at) = (i * d.q_elements()..(i + 1) * d.q_elements(), i * d.lse_len()..(i + 1) * d.lse_len());
            attention::backward(
                &d,
                &q.data[at.clone()],
                &k.data[at.clone()],
                &v.data[at.clone()],
                &o.data[at.clone()],
                &lse.data[lse_at],
                &d_o.data[at.clone()],
                &mut dq.data[at.clone()],
                &mut dk.data[at.clone()],
                &mut dv.data[at],
            );
        }
        drop((lse, o, v, k, q, d_o));
        let others = [(&self.to_k, &dk), (&self.to_v, &dv)];
        // Without a normalisation the projections read `x` itself, whose gradient `dy` already carries the residual.
        match &self.group_norm {
            None => {
                for (linear, d) in [(&self.to_q, &dq)].into_iter().chain(others) {
                    linear.backward(p, &a, d, &mut dy, grads);
                }
            }
            Some(norm) => {
                let mut da = self.to_q.backward_new(p, &a, &dq, grads);
                for (linear, d) in others {
                    linear.backward(p, &a, d, &mut da, grads);
                }
                let stats = tape.pop();
                norm.backward(p, (&x, &stats), None, Gradient::Added { dy: &da, dx: &mut dy }, None, grads);
            }
        }
        dy
    }

    pub fn describe(&self, s: &mut Summary, size @ [h, w]: [usize; 2]) {
        if let Some(norm) = &self.group_norm {
            norm.describe(s, size);
        }
        for linear in [&self.to_q, &self.to_k, &self.to_v] {
            linear.describe(s, size);
        }
        // Scores and weighted values: two products of [hw, c] with [c, hw] and [hw, hw] with [hw, c] over all heads.
        let AttentionShape { heads, width, .. } = self.shape;
        let flops = 4 * (h * w * h * w * heads * width) as u64;
        s.push(&self.name, format!("Attention({heads} heads)"), [heads * width, h, w], 0, flops);
        self.to_out.describe(s, size);
    }
}
