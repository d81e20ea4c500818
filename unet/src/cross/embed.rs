//! The embedding of the time, and of a guidance scale in networks that have learned guidance.

use std::sync::Arc;

use tweedie_kernels::act::{self, Act};
use tweedie_kernels::sinusoid;

use super::config::Config;
use crate::layers::{Embedded, Linear, Place};
use crate::residual::SinusoidOrder;
use crate::summary::Summary;
use crate::tensor::Tensor;
use crate::weights::{Builder, Pass};

/// `e = W2 act(W1 (projection(t) + Wc projection(1000 (w - 1))) + b1) + b2`, and its activation; the term of the guidance scale w
/// (Luo et al. 2023, section 4.2) in networks that have it, where a scale is given.
#[derive(Clone, Debug)]
pub(super) struct Embed {
    act: Act,
    order: SinusoidOrder,
    freq_shift: f64,
    width: usize,
    cond_proj: Option<Linear>,
    linear_1: Linear,
    linear_2: Linear,
}

impl Embed {
    pub fn new(b: &mut Builder, config: &Config) -> Self {
        let (width, embedding) = (config.channels[0], config.embedding());
        let key = |part: &str| format!("time_embedding.{part}");
        Self {
            act: config.activation.act(),
            order: config.sinusoid,
            freq_shift: config.freq_shift,
            width,
            linear_1: Linear::new(b, &key("linear_1"), width, embedding, Place::Inner),
            cond_proj: config.guidance_dim.map(|dim| Linear::unbiased(b, &key("cond_proj"), dim, width)),
            linear_2: Linear::new(b, &key("linear_2"), embedding, embedding, Place::Inner),
        }
    }

    fn activate(&self, p: &Pass<'_>, x: &Tensor) -> Tensor {
        let mut y = p.pool.tensor(x.shape());
        act::forward(self.act, &x.data, &mut y.data);
        y
    }

    pub fn forward(&self, p: &Pass<'_>, times: &[f64], guidance: Option<f64>) -> Embedded {
        let mut s = p.pool.tensor([times.len(), 1, 1, self.width]);
        let cosines_first = self.order == SinusoidOrder::CosSin;
        sinusoid::diffusers(times, self.width, cosines_first, self.freq_shift, &mut s.data);
        if let Some((linear, scale)) = self.cond_proj.as_ref().zip(guidance) {
            let mut g = p.pool.tensor([times.len(), 1, 1, linear.c_in]);
            // The convention of latent consistency models, whatever that of the time.
            sinusoid::diffusers(&vec![1000.0 * (scale - 1.0); times.len()], linear.c_in, false, 1.0, &mut g.data);
            s.add(&linear.forward(p, &g));
        }
        let h = self.activate(p, &self.linear_1.forward(p, &s));
        let e = self.linear_2.forward(p, &h);
        Embedded { active: Arc::new(self.activate(p, &e)), raw: Arc::new(e) }
    }

    pub fn describe(&self, s: &mut Summary) {
        if let Some(linear) = &self.cond_proj {
            linear.describe(s, [1, 1]);
        }
        self.linear_1.describe(s, [1, 1]);
        self.linear_2.describe(s, [1, 1]);
    }
}
