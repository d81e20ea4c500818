//! The embedding of time and class that every residual block receives.

use std::sync::Arc;

use tweedie_kernels::act::{self, Act};
use tweedie_kernels::sinusoid;

use super::config::{Config, Null, SinusoidOrder};
use crate::layers::{Embedding, Linear, Place};
use crate::summary::Summary;
use crate::tensor::{Tape, Tensor};
use crate::weights::{Builder, Pass};

/// `e = SiLU(W2 SiLU(W1 sinusoid(t) + b1) + b2 + class embedding)`.
#[derive(Clone, Debug)]
pub(super) struct Embed {
    order: SinusoidOrder,
    freq_shift: f64,
    linear_1: Linear,
    linear_2: Linear,
    class_embedding: Option<Embedding>,
}

fn silu(p: &Pass<'_>, x: &Tensor) -> Tensor {
    let mut y = p.pool.tensor(x.shape());
    act::forward(Act::Silu, &x.data, &mut y.data);
    y
}

fn silu_backward(p: &Pass<'_>, x: &Tensor, dy: &Tensor) -> Tensor {
    let mut dx = p.pool.zeros_like(x);
    act::backward(Act::Silu, &x.data, &dy.data, &mut dx.data);
    dx
}

impl Embed {
    pub fn new(b: &mut Builder, config: &Config) -> Self {
        let (width, embedding) = (config.channels[0], config.embedding());
        Self {
            order: config.sinusoid,
            freq_shift: config.freq_shift,
            linear_1: Linear::new(b, "time_embedding.linear_1", width, embedding, Place::Inner),
            linear_2: Linear::new(b, "time_embedding.linear_2", embedding, embedding, Place::Inner),
            class_embedding: config.classes.map(|classes| {
                let frozen = (classes.null == Null::LastRow).then(|| classes.rows - 1);
                Embedding::new(b, "class_embedding", classes.rows, embedding, frozen)
            }),
        }
    }

    pub fn forward(&self, p: &Pass<'_>, times: &[f64], ids: Option<&[Option<usize>]>, tape: &mut Tape) -> Tensor {
        let width = self.linear_1.c_in;
        let mut s = p.pool.tensor([times.len(), 1, 1, width]);
        sinusoid::diffusers(times, width, self.order == SinusoidOrder::CosSin, self.freq_shift, &mut s.data);
        let h = self.linear_1.forward(p, &s);
        let a = silu(p, &h);
        let mut e = self.linear_2.forward(p, &a);
        if let (Some(table), Some(ids)) = (&self.class_embedding, ids) {
            e.add(&table.forward(p, ids));
        }
        let y = silu(p, &e);
        for saved in [s, h, a, e] {
            tape.push(Arc::new(saved));
        }
        y
    }

    pub fn backward(
        &self,
        p: &Pass<'_>,
        tape: &mut Tape,
        dy: &Tensor,
        ids: Option<&[Option<usize>]>,
        grads: &mut [f32],
    ) {
        let [e, a, h, s] = std::array::from_fn(|_| tape.pop());
        let de = silu_backward(p, &e, dy);
        if let (Some(table), Some(ids)) = (&self.class_embedding, ids) {
            table.backward(ids, &de, grads);
        }
        let da = self.linear_2.backward_new(p, &a, &de, grads);
        let dh = silu_backward(p, &h, &da);
        // The sinusoid is a function of the time step, which has no gradient here.
        self.linear_1.backward_weights(&s, &dh, grads);
    }

    pub fn describe(&self, s: &mut Summary) {
        self.linear_1.describe(s, [1, 1]);
        self.linear_2.describe(s, [1, 1]);
        if let Some(table) = &self.class_embedding {
            table.describe(s);
        }
    }
}
