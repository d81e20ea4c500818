//! The residual block of the residual U-Net.
//!
//! ```text
//! h = conv1(act(GN1(x)))
//! h = conv2(act(GN2(h + proj(e))))                                 time embedding added      Ho et al. 2020
//! h = conv2(act(GN2(h)(1 + scale) + shift)), [scale, shift] = proj(e)              AdaGN      Dhariwal & Nichol 2021, eq. 2
//! y = (shortcut(x) + h) / output_scale
//! ```
//!
//! `e = act(time embedding)`; `shortcut` is a 1x1 convolution where the number of channels changes, else the identity. A block
//! that resamples does so to `x` and to the input of `conv1`. In training, elements of the input of `conv2` may be dropped.

use std::sync::Arc;

use tweedie_kernels::act::Act;
use tweedie_kernels::{channels, dropout};

use super::conv::{Conv, Linear, Place};
use super::norm::{Gradient, ScaledNorm};
use super::sampler::Rescaling;
use crate::init;
use crate::summary::Summary;
use crate::tensor::{Tape, Tensor};
use crate::weights::{Builder, Pass};

/// What the residual blocks of a network have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ResnetCommon {
    pub embedding: usize,
    pub eps: f32,
    pub act: Act,
    pub dropout: f32,
}

/// How the time embedding enters a residual block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Conditioning {
    /// Not at all.
    Absent,
    /// Added before the second normalisation.
    Added,
    /// Scales and shifts the second normalisation.
    ScaleShift,
    /// Without its activation, scales and shifts both normalisations, which have no parameters of their own.
    Adaptive,
}

/// When the shortcut is a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shortcut {
    /// Where the number of channels changes.
    IfNeeded,
    /// Where the number of channels changes; it has no bias.
    IfNeededUnbiased,
    /// Always.
    Always,
}

/// One residual block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ResnetShape {
    pub c_in: usize,
    pub c_out: usize,
    /// Of the first and the second normalisation.
    pub groups: [usize; 2],
    pub conditioning: Conditioning,
    pub output_scale: f32,
    pub rescaling: Option<Rescaling>,
    pub shortcut: Shortcut,
}

/// The time embedding with and without its activation.
#[derive(Debug)]
pub(crate) struct Embedded {
    pub raw: Arc<Tensor>,
    pub active: Arc<Tensor>,
}

/// The gradients of both of [`Embedded`].
#[derive(Debug)]
pub(crate) struct EmbeddedGradient {
    pub raw: Tensor,
    pub active: Tensor,
}

/// A residual block.
#[derive(Clone, Debug)]
pub(crate) struct Resnet {
    shape: ResnetShape,
    dropout: f32,
    /// Which numbers the block draws of a sample's key.
    salt: u64,
    norm1: ScaledNorm,
    conv1: Conv,
    /// Of an embedding that is added.
    time_emb_proj: Option<Linear>,
    norm2: ScaledNorm,
    conv2: Conv,
    conv_shortcut: Option<Conv>,
}

impl Resnet {
    pub fn new(b: &mut Builder, name: &str, shape: ResnetShape, common: ResnetCommon) -> Self {
        let ResnetShape { c_in, c_out, groups, conditioning, .. } = shape;
        let ResnetCommon { embedding, eps, act, dropout } = common;
        let key = |part: &str| format!("{name}.{part}");
        let linear = |b: &mut Builder, part: &str, c: usize| Linear::new(b, &key(part), embedding, c, Place::Inner);
        let norm1 = match conditioning {
            Conditioning::Adaptive => ScaledNorm::bare(linear(b, "norm1.linear", 2 * c_in), c_in, groups[0], eps, act),
            _ => ScaledNorm::learned(b, &key("norm1"), None, c_in, groups[0], eps, act),
        };
        let conv1 = Conv::same(b, &key("conv1"), c_in, c_out, 3, Place::Inner);
        let mut time_emb_proj = None;
        let norm2 = match conditioning {
            Conditioning::Absent => ScaledNorm::learned(b, &key("norm2"), None, c_out, groups[1], eps, act),
            Conditioning::Added => {
                time_emb_proj = Some(linear(b, "time_emb_proj", c_out));
                ScaledNorm::learned(b, &key("norm2"), None, c_out, groups[1], eps, act)
            }
            Conditioning::ScaleShift => {
                let projection = linear(b, "time_emb_proj", 2 * c_out);
                ScaledNorm::learned(b, &key("norm2"), Some(projection), c_out, groups[1], eps, act)
            }
            Conditioning::Adaptive => {
                ScaledNorm::bare(linear(b, "norm2.linear", 2 * c_out), c_out, groups[1], eps, act)
            }
        };
        let conv2 = Conv::same(b, &key("conv2"), c_out, c_out, 3, Place::EndsResidual);
        let conv_shortcut = match shape.shortcut {
            Shortcut::IfNeeded | Shortcut::IfNeededUnbiased if c_in == c_out => None,
            Shortcut::IfNeededUnbiased => Some(Conv::unbiased(b, &key("conv_shortcut"), c_in, c_out, 1)),
            _ => Some(Conv::same(b, &key("conv_shortcut"), c_in, c_out, 1, Place::Inner)),
        };
        let salt = init::hash(name);
        Self { shape, dropout, salt, norm1, conv1, time_emb_proj, norm2, conv2, conv_shortcut }
    }

    fn embedding<'a>(&self, e: &'a Embedded) -> &'a Arc<Tensor> {
        match self.shape.conditioning {
            Conditioning::Adaptive => &e.raw,
            Conditioning::Absent | Conditioning::Added | Conditioning::ScaleShift => &e.active,
        }
    }

    /// Drops elements of the input of the second convolution, in training, or of its gradient.
    fn drop_elements(&self, p: &Pass<'_>, a: &mut Tensor) {
        if self.dropout > 0.0 && !p.dropout.is_empty() {
            let keys: Vec<u64> = p.dropout.iter().map(|&key| dropout::derive(key, self.salt)).collect();
            dropout::apply(&keys, a.hw() * a.c, self.dropout, &mut a.data);
        }
    }

    pub fn forward(&self, p: &Pass<'_>, x: Arc<Tensor>, e: &Embedded, tape: &mut Tape) -> Tensor {
        let y = self.compute(p, &[&x], e, tape);
        tape.push(x);
        tape.push(self.embedding(e).clone());
        y
    }

    /// Whether [`Resnet::forward_joined`] can be had: nothing needs the joined tensor itself.
    pub fn reads_parts(&self, p: &Pass<'_>, tape: &Tape) -> bool {
        let shortcut = self.conv_shortcut.as_ref().filter(|_| self.shape.rescaling.is_none() && !tape.is_recording());
        shortcut.is_some_and(|conv| conv.reads_parts(p))
    }

    /// [`Resnet::forward`] of the joined channels of `x` and `skip`, which are not copied together.
    pub fn forward_joined(&self, p: &Pass<'_>, x: &Tensor, skip: &Tensor, e: &Embedded, tape: &mut Tape) -> Tensor {
        assert!(self.reads_parts(p, tape), "a residual block that needs the joined tensor");
        self.compute(p, &[x, skip], e, tape)
    }

    /// The output, but for what is left on the tape last; one tensor only where the block resamples, or has no convolution as its
    /// shortcut.
    fn compute(&self, p: &Pass<'_>, x: &[&Tensor], e: &Embedded, tape: &mut Tape) -> Tensor {
        let e = self.embedding(e);
        let mut a1 = self.norm1.forward(p, x, e, tape);
        if let Some(rescaling) = self.shape.rescaling {
            a1 = rescaling.forward(p, &a1);
        }
        let h = match &self.time_emb_proj {
            Some(linear) => self.conv1.forward_shifted(p, &a1, &linear.forward(p, e)),
            None => self.conv1.forward(p, &a1),
        };
        drop(a1);
        let mut a2 = self.norm2.forward(p, &[&h], e, tape);
        tape.push(h);
        self.drop_elements(p, &mut a2);
        let resized = self.shape.rescaling.map(|rescaling| rescaling.forward(p, x[0]));
        let resized = resized.as_ref().map(|resized| [resized]);
        let source = resized.as_ref().map_or(x, |resized| &resized[..]);
        let mut y = match &self.conv_shortcut {
            Some(conv) => conv.forward_sum(p, source, &self.conv2, &a2),
            None => self.conv2.forward_onto(p, &a2, source[0]),
        };
        drop(a2);
        y.scale(1.0 / self.shape.output_scale);
        y
    }

    /// Adds to `de`, the gradients of the time embedding.
    pub fn backward(
        &self,
        p: &Pass<'_>,
        tape: &mut Tape,
        mut dy: Tensor,
        de: &mut EmbeddedGradient,
        grads: &mut [f32],
    ) -> Tensor {
        let de = match self.shape.conditioning {
            Conditioning::Adaptive => &mut de.raw,
            Conditioning::Absent | Conditioning::Added | Conditioning::ScaleShift => &mut de.active,
        };
        let (e, x, h) = (tape.pop(), tape.pop(), tape.pop());
        dy.scale(1.0 / self.shape.output_scale);
        // The activations are computed again: half the memory of a training step for two more passes over it.
        let saved2 = self.norm2.pop(tape);
        let mut a2 = self.norm2.again(p, &h, &saved2);
        self.drop_elements(p, &mut a2);
        let mut dh = self.conv2.backward_new(p, &a2, &dy, grads);
        drop(a2);
        self.drop_elements(p, &mut dh);
        self.norm2.backward(p, (&h, &e, &saved2), Gradient::InPlace(&mut dh), de, grads);
        drop((h, saved2));
        if let Some(linear) = self.time_emb_proj.as_ref().filter(|_| !grads.is_empty()) {
            let mut projected = p.pool.zeros_of([dh.n, 1, 1, dh.c]);
            channels::add_bias_backward(dh.n, dh.hw(), dh.c, &dh.data, &mut projected.data);
            linear.backward(p, &e, &projected, de, grads);
        }
        let saved1 = self.norm1.pop(tape);
        let mut a1 = self.norm1.again(p, &x, &saved1);
        let full = a1.shape();
        if let Some(rescaling) = self.shape.rescaling {
            a1 = rescaling.forward(p, &a1);
        }
        let mut da1 = self.conv1.backward_new(p, &a1, &dh, grads);
        drop((a1, dh));
        let resized = self.shape.rescaling.map(|rescaling| rescaling.forward(p, &x));
        let mut dx = match &self.conv_shortcut {
            Some(conv) => conv.backward_new(p, resized.as_ref().unwrap_or(&x), &dy, grads),
            None => dy,
        };
        drop(resized);
        if let Some(rescaling) = self.shape.rescaling {
            da1 = rescaling.backward(p, &da1, full);
            dx = rescaling.backward(p, &dx, full);
        }
        self.norm1.backward(p, (&x, &e, &saved1), Gradient::Added { dy: &da1, dx: &mut dx }, de, grads);
        dx
    }

    /// Returns the size of the output.
    pub fn describe(&self, s: &mut Summary, size: [usize; 2]) -> [usize; 2] {
        self.norm1.describe(s, size);
        let size = self.shape.rescaling.map_or(size, |rescaling| rescaling.size(size));
        self.conv1.describe(s, size);
        if let Some(linear) = &self.time_emb_proj {
            linear.describe(s, [1, 1]);
        }
        self.norm2.describe(s, size);
        self.conv2.describe(s, size);
        if let Some(conv) = &self.conv_shortcut {
            conv.describe(s, size);
        }
        size
    }
}
