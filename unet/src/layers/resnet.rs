//! The residual block of the residual U-Net.
//!
//! ```text
//! h = conv1(SiLU(GN1(x)))
//! h = conv2(SiLU(GN2(h + proj(e))))                                time embedding added      Ho et al. 2020
//! h = conv2(SiLU(GN2(h)(1 + scale) + shift)), [scale, shift] = proj(e)             AdaGN      Dhariwal & Nichol 2021, eq. 2
//! y = (shortcut(x) + h) / output_scale
//! ```
//!
//! `e = SiLU(time embedding)`; `shortcut` is a 1x1 convolution where the number of channels changes, else the identity.

use std::sync::Arc;

use tweedie_kernels::act::Act;
use tweedie_kernels::channels;

use super::conv::{Conv, Linear, Place};
use super::copy_channels;
use super::norm::GroupNorm;
use crate::residual::TimeScaleShift;
use crate::summary::Summary;
use crate::tensor::{Tape, Tensor};
use crate::weights::{Builder, Pass};

/// What the residual blocks of a network have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ResnetShape {
    pub embedding: usize,
    pub groups: usize,
    pub eps: f32,
    pub conditioning: TimeScaleShift,
    pub output_scale: f32,
}

/// A residual block.
#[derive(Clone, Debug)]
pub(crate) struct Resnet {
    conditioning: TimeScaleShift,
    output_scale: f32,
    norm1: GroupNorm,
    conv1: Conv,
    time_emb_proj: Linear,
    norm2: GroupNorm,
    conv2: Conv,
    conv_shortcut: Option<Conv>,
}

impl Resnet {
    pub fn new(b: &mut Builder, name: &str, c_in: usize, c_out: usize, shape: ResnetShape) -> Self {
        let ResnetShape { embedding, groups, eps, conditioning, output_scale } = shape;
        let key = |part: &str| format!("{name}.{part}");
        let projected = match conditioning {
            TimeScaleShift::Default => c_out,
            TimeScaleShift::ScaleShift => 2 * c_out,
        };
        Self {
            conditioning,
            output_scale,
            norm1: GroupNorm::new(b, &key("norm1"), c_in, groups, eps, Act::Silu),
            conv1: Conv::same(b, &key("conv1"), c_in, c_out, 3, Place::Inner),
            time_emb_proj: Linear::new(b, &key("time_emb_proj"), embedding, projected, Place::Inner),
            norm2: GroupNorm::new(b, &key("norm2"), c_out, groups, eps, Act::Silu),
            conv2: Conv::same(b, &key("conv2"), c_out, c_out, 3, Place::EndsResidual),
            conv_shortcut: (c_in != c_out).then(|| Conv::same(b, &key("conv_shortcut"), c_in, c_out, 1, Place::Inner)),
        }
    }

    /// `e` is the activated time embedding `[n, 1, 1, embedding]`.
    pub fn forward(&self, p: &Pass<'_>, x: Arc<Tensor>, e: &Arc<Tensor>, tape: &mut Tape) -> Tensor {
        let (a1, stats1) = self.norm1.forward(p, &x, None);
        let mut h = self.conv1.forward(p, &a1);
        drop(a1);
        tape.push(stats1);
        let projected = self.time_emb_proj.forward(p, e);
        let (a2, stats2) = match self.conditioning {
            TimeScaleShift::Default => {
                channels::add_bias(h.n, h.hw(), h.c, &projected.data, &mut h.data);
                self.norm2.forward(p, &h, None)
            }
            TimeScaleShift::ScaleShift => {
                let (scale, shift) = halves(p, &projected);
                let normed = self.norm2.forward(p, &h, Some((&scale, &shift)));
                tape.push(scale);
                tape.push(shift);
                normed
            }
        };
        tape.push(h);
        let mut y = self.conv2.forward(p, &a2);
        drop(a2);
        tape.push(stats2);
        match &self.conv_shortcut {
            Some(conv) => y.add(&conv.forward(p, &x)),
            None => y.add(&x),
        }
        y.scale(1.0 / self.output_scale);
        tape.push(x);
        tape.push(e.clone());
        y
    }

    /// Adds to `de`, the gradient of the activated time embedding.
    pub fn backward(
        &self,
        p: &Pass<'_>,
        tape: &mut Tape,
        mut dy: Tensor,
        de: &mut Tensor,
        grads: &mut [f32],
    ) -> Tensor {
        let (e, x) = (tape.pop(), tape.pop());
        let (stats2, h) = (tape.pop(), tape.pop());
        dy.scale(1.0 / self.output_scale);
        let scale_shift = match self.conditioning {
            TimeScaleShift::Default => None,
            TimeScaleShift::ScaleShift => {
                let (shift, scale) = (tape.pop(), tape.pop());
                Some((scale, shift))
            }
        };
        let scale_shift = scale_shift.as_ref().map(|(scale, shift)| (&**scale, &**shift));
        // The activations are computed again: half the memory of a training step for two more passes over it.
        let a2 = self.norm2.again(p, (&h, &stats2), scale_shift);
        let da2 = self.conv2.backward_new(p, &a2, &dy, grads);
        drop(a2);
        let (dh, dprojected) = match scale_shift {
            None => {
                let dh = self.norm2.backward_in_place(p, (&h, &stats2), None, da2, None, grads);
                let mut dprojected = zeros(p, [h.n, 1, 1, h.c]);
                channels::add_bias_backward(h.n, h.hw(), h.c, &dh.data, &mut dprojected.data);
                (dh, dprojected)
            }
            Some((scale, shift)) => {
                let (mut dscale, mut dshift) = (p.pool.zeros_like(scale), p.pool.zeros_like(shift));
                let gradients = Some((&mut dscale, &mut dshift));
                let dh = self.norm2.backward_in_place(p, (&h, &stats2), scale_shift, da2, gradients, grads);
                (dh, super::concat(p.pool, &dscale, &dshift))
            }
        };
        drop(h);
        self.time_emb_proj.backward(p, &e, &dprojected, de, grads);
        let stats1 = tape.pop();
        let a1 = self.norm1.again(p, (&x, &stats1), None);
        let da1 = self.conv1.backward_new(p, &a1, &dh, grads);
        drop((a1, dh));
        let mut dx = match &self.conv_shortcut {
            Some(conv) => conv.backward_new(p, &x, &dy, grads),
            None => dy,
        };
        self.norm1.backward(p, (&x, &stats1), None, &da1, &mut dx, None, grads);
        dx
    }

    pub fn describe(&self, s: &mut Summary, size: [usize; 2]) {
        self.norm1.describe(s, size);
        self.conv1.describe(s, size);
        self.time_emb_proj.describe(s, [1, 1]);
        self.norm2.describe(s, size);
        self.conv2.describe(s, size);
        if let Some(conv) = &self.conv_shortcut {
            conv.describe(s, size);
        }
    }
}

fn zeros(p: &Pass<'_>, [n, h, w, c]: [usize; 4]) -> Tensor {
    Tensor { n, h, w, c, data: p.pool.zeros(n * h * w * c) }
}

/// The two halves of the channels: scale first, shift second.
fn halves(p: &Pass<'_>, x: &Tensor) -> (Tensor, Tensor) {
    let c = x.c / 2;
    let half = |offset| {
        let mut y = p.pool.tensor([x.n, x.h, x.w, c]);
        copy_channels(&x.data, x.c, offset, &mut y.data, c);
        y
    };
    (half(0), half(c))
}
