//! The encoder half of the residual U-Net: the embedding, the way down and the middle.

use std::sync::Arc;

use ndarray::ArrayView4;

use super::blocks::{Backflow, DownLevel, Flow, Mid};
use super::config::{Config, InputRange};
use super::embed::Embed;
use super::plan::EncoderPlan;
use crate::layers::{Conv, Embedded, EmbeddedGradient, Place};
use crate::request;
use crate::summary::Summary;
use crate::tensor::{Pool, Tape, Tensor};
use crate::weights::{Builder, Pass};

/// Whether the layers receive an embedding of time and class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timed {
    Yes,
    No,
}

/// The layers.
#[derive(Clone, Debug)]
pub(crate) struct Encoder {
    embed: Option<Embed>,
    conv_in: Conv,
    down: Vec<DownLevel>,
    mid: Option<Mid>,
    skips: usize,
}

impl Encoder {
    pub fn new(b: &mut Builder, config: &Config, plan: &EncoderPlan, timed: Timed) -> Self {
        let conv_in = Conv::same(b, "conv_in", config.in_channels, config.channels[0], 3, Place::Inner);
        let embed = (timed == Timed::Yes).then(|| Embed::new(b, config));
        let down = plan.down.iter().enumerate().map(|(level, plan)| DownLevel::new(b, config, level, plan)).collect();
        let mid = plan.mid.as_ref().map(|plan| Mid::new(b, config, plan));
        Self { embed, conv_in, down, mid, skips: plan.skips() }
    }

    /// The output of the middle, every skip connection, and what later layers embed of time and class.
    pub(super) fn forward(
        &self,
        p: &Pass<'_>,
        x: Tensor,
        times: &[f64],
        ids: &[Option<usize>],
        tape: &mut Tape,
    ) -> (Flow, Embedded) {
        let e = match &self.embed {
            Some(embed) => embed.forward(p, times, ids, tape),
            None => {
                let nothing = Arc::new(p.pool.tensor([x.n, 1, 1, 0]));
                Embedded { raw: nothing.clone(), active: nothing }
            }
        };
        let x = Arc::new(x);
        let hidden = Arc::new(self.conv_in.forward(p, &x));
        tape.push(x.clone());
        let mut flow = Flow { skips: vec![hidden.clone()], hidden, image: Some(x) };
        for level in &self.down {
            level.forward(p, &mut flow, &e, tape);
        }
        if let Some(mid) = &self.mid {
            mid.forward(p, &mut flow, &e, tape);
        }
        // The way up carries an image of its own.
        flow.image = None;
        (flow, e)
    }

    /// The output of the middle alone.
    pub fn encode(&self, p: &Pass<'_>, x: Tensor, times: &[f64], tape: &mut Tape) -> Arc<Tensor> {
        self.forward(p, x, times, &vec![None; times.len()], tape).0.hidden
    }

    /// Zeros for the gradients of the embedding.
    pub(super) fn no_gradient(&self, p: &Pass<'_>, n: usize) -> EmbeddedGradient {
        let width = self.embed.as_ref().map_or(0, Embed::width);
        let [raw, active] = [(); 2].map(|()| p.pool.zeros_of([n, 1, 1, width]));
        EmbeddedGradient { raw, active }
    }

    /// The gradient of the input.
    pub(super) fn backward(
        &self,
        p: &Pass<'_>,
        tape: &mut Tape,
        mut back: Backflow,
        (times, ids): (&[f64], &[Option<usize>]),
        grads: &mut [f32],
    ) -> Tensor {
        if let Some(mid) = &self.mid {
            mid.backward(p, tape, &mut back, grads);
        }
        for level in self.down.iter().rev() {
            level.backward(p, tape, &mut back, grads);
        }
        back.add_skip();
        let x = tape.pop();
        let mut dx = self.conv_in.backward_new(p, &x, &back.hidden, grads);
        if let Some(image) = back.image {
            dx.add(&image);
        }
        if let Some(embed) = self.embed.as_ref().filter(|_| !grads.is_empty()) {
            embed.backward(p, tape, back.embedded, (times, ids), grads);
        }
        dx
    }

    /// The gradient of [`Encoder::encode`]'s input from that of its output.
    pub fn encode_backward(
        &self,
        p: &Pass<'_>,
        tape: &mut Tape,
        hidden: Tensor,
        times: &[f64],
        grads: &mut [f32],
    ) -> Tensor {
        let embedded = self.no_gradient(p, hidden.n);
        let back = Backflow { hidden, skips: (0..self.skips).map(|_| None).collect(), image: None, embedded };
        self.backward(p, tape, back, (times, &vec![None; times.len()]), grads)
    }

    /// Returns the size of the output.
    pub fn describe(&self, s: &mut Summary, size: [usize; 2]) -> [usize; 2] {
        if let Some(embed) = &self.embed {
            embed.describe(s);
        }
        let mut size = self.conv_in.describe(s, size);
        for level in &self.down {
            size = level.describe(s, size);
        }
        if let Some(mid) = &self.mid {
            mid.describe(s, size);
        }
        size
    }
}

impl InputRange {
    /// `x` channels last, in the range that the first convolution expects.
    pub(crate) fn input(self, pool: &Pool, x: ArrayView4<'_, f32>) -> Tensor {
        let mut x = request::from_array(pool, x);
        if self == Self::Centered {
            x.data.iter_mut().for_each(|x| *x = 2.0 * *x - 1.0);
        }
        x
    }

    /// The gradient of what [`InputRange::input`] was given from that of its result.
    pub(crate) fn input_gradient(self, mut dx: Tensor) -> Tensor {
        if self == Self::Centered {
            dx.scale(2.0);
        }
        dx
    }
}
