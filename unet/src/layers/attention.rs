//! Self-attention over the pixels of an image.
//!
//! ```text
//! a = GN(x);  q, k, v = Wq a + bq, Wk a + bk, Wv a + bv
//! y = (Wo softmax(q k^T / sqrt(head width)) v + bo + x) / output_scale       Vaswani et al. 2017, eq. 1, per head
//! ```
//!
//! With a single head as wide as the image has channels, two of the four projections can be spared. A row of `q k^T` is
//! `(Wk^T Wq a + Wk^T bq)^T a` but for a number that the softmax takes away again, and since the rows of the softmax sum to one,
//! `Wo softmax(..) v + bo = Wo Wv softmax(..) a + (Wo bv + bo)`: `a` itself serves as keys and values, and `bk` makes no difference.

use std::sync::Arc;

use tweedie_kernels::act::Act;
use tweedie_kernels::attention::{self, AttentionDims};

use super::chain::{Chain, One};
use super::conv::{Linear, Place};
use super::norm::{Gradient, GroupNorm};
use crate::summary::Summary;
use crate::tensor::{Tape, Tensor};
use crate::weights::{Builder, Pass};

/// Pixels for each channel from which on a training step gains by working out what two projections amount to.
const PIXELS_PER_CHANNEL: usize = 4;

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
    /// Of a single head: what makes the queries, with `a` as keys, and the output, with `a` as values.
    chains: Option<[Chain; 2]>,
}

impl Attention {
    pub fn new(b: &mut Builder, name: &str, shape: AttentionShape, eps: f32) -> Self {
        let key = |part: &str| format!("{name}.{part}");
        let AttentionShape { c, heads, width, groups, .. } = shape;
        let inner = heads * width;
        let group_norm = groups.map(|groups| GroupNorm::new(b, &key("group_norm"), c, groups, eps, Act::None));
        let to_q = Linear::new(b, &key("to_q"), c, inner, Place::Inner);
        let to_k = Linear::new(b, &key("to_k"), c, inner, Place::Inner);
        let to_v = Linear::new(b, &key("to_v"), c, inner, Place::Inner);
        let to_out = Linear::new(b, &key("to_out.0"), inner, c, Place::EndsResidual);
        let chains = (heads == 1 && width == c)
            .then(|| [Chain::new(b, &to_q, &to_k, true), Chain::new(b, &to_v, &to_out, false)]);
        Self { name: name.to_owned(), shape, group_norm, to_q, to_k, to_v, to_out, chains }
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
        if let Some(chains) = self.chained(p, tape.is_recording(), x.n * x.hw()) {
            return self.forward_chained(p, chains, (x, a), tape);
        }
        let [q, k, v] = [&self.to_q, &self.to_k, &self.to_v].map(|linear| linear.forward(p, &a));
        let [o, lse] = self.attend(p, [&q, &k, &v]);
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

    /// The weighted values of every head, and the logarithms of the sums that their weights were divided by.
    fn attend(&self, p: &Pass<'_>, [q, k, v]: [&Tensor; 3]) -> [Tensor; 2] {
        let mut o = p.pool.tensor(q.shape());
        let mut lse = p.pool.tensor([q.n, 1, self.shape.heads, q.hw()]);
        attention::forward(&self.dims(q), &q.data, &k.data, &v.data, &mut o.data, &mut lse.data);
        [o, lse]
    }

    /// The gradients of queries, keys and values, in so many calls of the kernel.
    fn attend_back(&self, p: &Pass<'_>, [q, k, v, o, lse, d_o]: [&Tensor; 6], calls: usize) -> [Tensor; 3] {
        let [mut dq, mut dk, mut dv] = std::array::from_fn(|_| p.pool.zeros_like(q));
        let d = AttentionDims { n: q.n / calls, ..self.dims(q) };
        for i in 0..calls {
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
        [dq, dk, dv]
    }

    /// Both chains, if a pass over so many pixels gains by them. Where weights are kept but a backward pass follows, an image's
    /// gradient is wanted, whose bits should not depend on its batch.
    fn chained<'a>(&self, p: &Pass<'a>, recording: bool, pixels: usize) -> Option<[One<'a>; 2]> {
        let [queries, output] = self.chains.as_ref()?;
        match recording {
            false => Some([queries.packed(p)?, output.packed(p)?]),
            true => self.learns_chained(p, pixels).then(|| [queries.passing(p), output.passing(p)]),
        }
    }

    /// Whether a training step works out what the chains amount to: that takes as long as their passes over `c` pixels.
    fn learns_chained(&self, p: &Pass<'_>, pixels: usize) -> bool {
        self.chains.is_some() && p.is_training() && pixels >= PIXELS_PER_CHANNEL * self.shape.c
    }

    /// [`Attention::forward`] with `a` as keys and values.
    fn forward_chained(
        &self,
        p: &Pass<'_>,
        [queries, output]: [One<'_>; 2],
        (x, a): (Arc<Tensor>, Arc<Tensor>),
        tape: &mut Tape,
    ) -> Tensor {
        let q = queries.forward(p, &a);
        let [o, lse] = self.attend(p, [&q, &a, &a]);
        let mut y = output.forward(p, &o);
        y.add(&x);
        y.scale(1.0 / self.shape.output_scale);
        for one in [queries, output] {
            if let One::Passing(weight, _) = one {
                tape.push(weight);
            }
        }
        for saved in [q, o, lse] {
            tape.push(saved);
        }
        tape.push(a);
        tape.push(x);
        y
    }

    /// The gradient of `a` after [`Attention::forward_chained`] in training.
    fn backward_chained(
        &self,
        p: &Pass<'_>,
        [queries, output]: &[Chain; 2],
        (a, dy): (&Tensor, &Tensor),
        tape: &mut Tape,
        grads: &mut [f32],
    ) -> Tensor {
        let [lse, o, q] = std::array::from_fn(|_| tape.pop());
        let [output_weight, queries_weight] = std::array::from_fn(|_| tape.pop());
        let mut d_o = p.pool.zeros_like(&o);
        output.backward(p, &output_weight, (&o, dy), &mut d_o, grads);
        let [dq, mut da, dv] = self.attend_back(p, [&q, a, a, &o, &lse, &d_o], 1);
        queries.backward(p, &queries_weight, (a, &dq), &mut da, grads);
        da.add(&dv);
        da
    }

    pub fn backward(&self, p: &Pass<'_>, tape: &mut Tape, mut dy: Tensor, grads: &mut [f32]) -> Tensor {
        let (x, a) = (tape.pop(), tape.pop());
        dy.scale(1.0 / self.shape.output_scale);
        if let Some(chains) = self.chains.as_ref().filter(|_| self.learns_chained(p, x.n * x.hw())) {
            let da = self.backward_chained(p, chains, (&a, &dy), tape, grads);
            match &self.group_norm {
                None => dy.add(&da),
                Some(norm) => self.normalise_back(p, norm, (&x, &da), &mut dy, tape, grads),
            }
            return dy;
        }
        let [lse, o, v, k, q] = std::array::from_fn(|_| tape.pop());
        let d_o = self.to_out.backward_new(p, &o, &dy, grads);
        // The kernel divides the queries of a head by the number of heads in a call, and rounds accordingly: for the
        // gradient of an image alone, each has a call of its own.
        let calls = if grads.is_empty() { x.n } else { 1 };
        let [dq, dk, dv] = self.attend_back(p, [&q, &k, &v, &o, &lse, &d_o], calls);
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
                self.normalise_back(p, norm, (&x, &da), &mut dy, tape, grads);
            }
        }
        dy
    }

    /// Adds to `dx` the gradient of `x` from that of its normalisation.
    fn normalise_back(
        &self,
        p: &Pass<'_>,
        norm: &GroupNorm,
        (x, da): (&Tensor, &Tensor),
        dx: &mut Tensor,
        tape: &mut Tape,
        grads: &mut [f32],
    ) {
        let stats = tape.pop();
        norm.backward(p, (x, &stats), None, Gradient::Added { dy: da, dx }, None, grads);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init::Init;
    use crate::tensor::Pool;
    use crate::weights::Filters;

    /// The distance of two vectors over the length of the second.
    fn distance(found: &[f32], expected: &[f32]) -> f64 {
        let square = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>();
        let differences = &mut found.iter().zip(expected).map(|(a, b)| f64::from(a - b));
        (square(differences) / square(&mut expected.iter().map(|&x| f64::from(x)))).sqrt()
    }

    /// With a single head, what a prediction and a training step compute agrees with the four projections, for the output and
    /// for every gradient, with and without a normalisation.
    #[test]
    fn two_projections_do_the_work_of_four() {
        for groups in [Some(2), None] {
            let mut b = Builder::default();
            let shape = AttentionShape { c: 16, heads: 1, width: 16, groups, output_scale: 1.25 };
            let attention = Attention::new(&mut b, "attention", shape, 1e-5);
            let mut weights = b.finish();
            weights.initialise(Init::PyTorch, 3);
            // Biases that matter, and scores for which the softmax does not cancel much.
            let values = weights.params_mut().values_mut();
            values.iter_mut().enumerate().for_each(|(i, value)| *value += 0.2 * (i as f32 * 0.7).sin());
            let values = weights.params().values().to_vec();
            let (pool, len) = (Pool::default(), values.len());
            let wave = |factor: f32| {
                let mut tensor = pool.tensor([2, 8, 8, 16]);
                tensor.data.iter_mut().enumerate().for_each(|(i, x)| *x = (i as f32 * factor).sin());
                tensor
            };
            let pass = |filters| Pass { values: &values, filters, pool: &pool, dropout: &[] };
            let step = |p: &Pass<'_>| {
                let (mut tape, mut grads) = (Tape::recording(), vec![0.0; len]);
                let y = attention.forward(p, Arc::new(wave(0.37)), &mut tape);
                let dx = attention.backward(p, &mut tape, wave(0.53), &mut grads);
                assert!(tape.is_empty());
                (y, dx, grads)
            };
            let packed = weights.for_gradient();
            let four = pass(Filters::Kept(&packed));
            let two = pass(weights.for_training());
            assert!(attention.chained(&four, true, 128).is_none() && attention.chained(&two, true, 128).is_some());
            assert!(attention.chained(&two, true, 32).is_none() && attention.chained(&four, false, 1).is_some());
            let (expected, found) = (step(&four), step(&two));
            let predicted = attention.forward(&four, Arc::new(wave(0.37)), &mut Tape::forgetting());
            assert!(
                distance(&predicted.data, &expected.0.data) < 1e-6,
                "{}",
                distance(&predicted.data, &expected.0.data)
            );
            assert!(distance(&found.0.data, &expected.0.data) < 1e-6, "{}", distance(&found.0.data, &expected.0.data));
            assert!(distance(&found.1.data, &expected.1.data) < 1e-5, "{}", distance(&found.1.data, &expected.1.data));
            for param in weights.params().table() {
                let (found, expected) = (&found.2[param.range.clone()], &expected.2[param.range.clone()]);
                if param.name == "attention.to_k.bias" {
                    // No difference to the output, but for roundings.
                    assert!(
                        found.iter().all(|&d| d == 0.0) && expected.iter().all(|&d| d.abs() < 1e-4),
                        "{expected:?}"
                    );
                    continue;
                }
                assert!(expected.iter().any(|d| d.abs() > 1e-2), "{}", param.name);
                let distance = distance(found, expected);
                assert!(distance < 1e-5, "{}: {distance}", param.name);
            }
        }
    }
}
