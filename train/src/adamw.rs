//! AdamW, gradient clipping and the moving average of the weights, in one pass over the flat vectors.
//!
//! With `g` the clipped gradient of step `s` (1-based), `η` the learning rate and `λ` the weight decay
//! (Loshchilov & Hutter 2019, Algorithm 2, in the parametrisation of PyTorch, where the decay is scaled by `η`):
//!
//! ```text
//! θ ← (1 - ηλ) θ                       only tensors of two or more dimensions
//! m ← β₁ m + (1 - β₁) g                v ← β₂ v + (1 - β₂) g²
//! θ ← θ - η / (1 - β₁ˢ) · m / (√v / √(1 - β₂ˢ) + ε)
//! e ← d e + (1 - d) θ                  d = min(decay, (1 + s) / (10 + s))
//! ```
//!
//! Gradients are clipped by their global norm (Pascanu 2013): `g ← g · min(1, c / (‖g‖ + 10⁻⁶))`.
//! Every element is updated by itself and the norm is summed in chunks of a fixed size, in a fixed order,
//! so the bits do not depend on the number of threads.

use std::ops::Range;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use tweedie_denoiser::{Param, Params, Role};

/// Elements per task: large enough to hide the cost of a task, small enough to balance two threads.
const CHUNK: usize = 1 << 14;

/// Guards the division by the norm when clipping; the value of `torch.nn.utils.clip_grad_norm_`.
const CLIP_GUARD: f64 = 1e-6;

/// Hyper-parameters of AdamW.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamW {
    /// Decay of the first moment, in `[0, 1)`; 0.9 by default.
    pub beta1: f64,
    /// Decay of the second moment, in `[0, 1)`; 0.99 by default: runs of a few thousand steps profit from a second
    /// moment that follows faster than the 0.999 of long runs.
    pub beta2: f64,
    /// Added to the root of the second moment, a normal number of f32; 1e-8 by default.
    pub eps: f64,
    /// Decoupled weight decay, scaled by the learning rate, at least 0; 0.01 by default.
    pub weight_decay: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.01 }
    }
}

/// How a stretch of the flat vector is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Trained, with weight decay.
    Decayed,
    /// Trained, without weight decay.
    Plain,
    /// Not trained; the moving average copies it.
    Copied,
}

/// A tensor's stretch of the flat vector.
#[derive(Clone, Debug)]
struct Segment {
    range: Range<usize>,
    kind: Kind,
}

impl Segment {
    fn new(param: &Param) -> Self {
        let kind = match param.role {
            Role::Weight if param.shape.len() >= 2 => Kind::Decayed,
            Role::Weight => Kind::Plain,
            _ => Kind::Copied,
        };
        Self { range: param.range.clone(), kind }
    }
}

/// The scalars of one update.
#[derive(Clone, Copy)]
struct Scalars {
    clip: f32,
    shrink: f32,
    beta1: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    step_size: f32,
    root_correction: f32,
    eps: f32,
    one_minus_ema: f32,
}

/// The optimiser's state: both moments and the moving average of the weights.
#[derive(Clone, Debug)]
pub struct Optimizer {
    hyper: AdamW,
    ema_decay: f64,
    segments: Vec<Segment>,
    first: Vec<f32>,
    second: Vec<f32>,
    ema: Vec<f32>,
}

impl Optimizer {
    /// Moments of zero; the moving average starts at the parameters' present values.
    pub fn new(params: &Params, hyper: AdamW, ema_decay: f64) -> Self {
        let n = params.len();
        Self {
            hyper,
            ema_decay,
            segments: params.table().iter().map(Segment::new).collect(),
            first: vec![0.0; n],
            second: vec![0.0; n],
            ema: params.values().to_vec(),
        }
    }

    /// The first moments `m`, in the order of [`Params::values`].
    pub fn first_moment(&self) -> &[f32] {
        &self.first
    }

    /// The second moments `v`, in the order of [`Params::values`].
    pub fn second_moment(&self) -> &[f32] {
        &self.second
    }

    /// The moving average of the weights, in the order of [`Params::values`].
    pub fn ema(&self) -> &[f32] {
        &self.ema
    }

    /// The moving average, to be exchanged with the parameters for a while.
    pub(crate) fn ema_mut(&mut self) -> &mut [f32] {
        &mut self.ema
    }

    /// First moment, second moment and moving average, to be filled from a file.
    pub(crate) fn vectors_mut(&mut self) -> [&mut [f32]; 3] {
        [&mut self.first, &mut self.second, &mut self.ema]
    }

    /// One update: clips, steps, averages.
    ///
    /// `step` counts updates from 1, `norm` is the [`global_norm`] of `grads`, and `clip_norm` the largest norm that
    /// is let through (infinite: no clipping).
    ///
    /// # Panics
    /// If `params` or `grads` has another length than the parameters that this optimiser was made for.
    pub fn update(&mut self, params: &mut [f32], grads: &[f32], step: u64, lr: f64, norm: f64, clip_norm: f64) {
        assert_eq!(params.len(), self.first.len(), "AdamW: as many parameters as at the start");
        assert_eq!(grads.len(), self.first.len(), "AdamW: one gradient per parameter");
        let AdamW { beta1, beta2, eps, weight_decay } = self.hyper;
        let s = step as f64;
        let ema = self.ema_decay.min((1.0 + s) / (10.0 + s));
        let scalars = Scalars {
            clip: clip_factor(norm, clip_norm) as f32,
            shrink: (1.0 - lr * weight_decay) as f32,
            beta1: beta1 as f32,
            one_minus_beta1: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            one_minus_beta2: (1.0 - beta2) as f32,
            step_size: (lr / (1.0 - beta1.powf(s))) as f32,
            root_correction: (1.0 / (1.0 - beta2.powf(s)).sqrt()) as f32,
            eps: eps as f32,
            one_minus_ema: (1.0 - ema) as f32,
        };
        let segments = &self.segments;
        params
            .par_chunks_mut(CHUNK)
            .zip(grads.par_chunks(CHUNK))
            .zip(self.first.par_chunks_mut(CHUNK))
            .zip(self.second.par_chunks_mut(CHUNK))
            .zip(self.ema.par_chunks_mut(CHUNK))
            .enumerate()
            .for_each(|(chunk, ((((theta, g), m), v), e))| {
                let start = chunk * CHUNK;
                let end = start + theta.len();
                let skip = segments.partition_point(|segment| segment.range.end <= start);
                for segment in segments[skip..].iter().take_while(|segment| segment.range.start < end) {
                    let range = segment.range.start.max(start) - start..segment.range.end.min(end) - start;
                    let (theta, e) = (&mut theta[range.clone()], &mut e[range.clone()]);
                    let scalars = match segment.kind {
                        Kind::Decayed => scalars,
                        Kind::Plain => Scalars { shrink: 1.0, ..scalars },
                        Kind::Copied => {
                            e.copy_from_slice(theta);
                            continue;
                        }
                    };
                    update_slice(theta, &g[range.clone()], &mut m[range.clone()], &mut v[range], e, scalars);
                }
            });
    }
}

/// The update of a stretch of trained parameters.
fn update_slice(theta: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], e: &mut [f32], s: Scalars) {
    for ((((theta, &g), m), v), e) in theta.iter_mut().zip(g).zip(m).zip(v).zip(e) {
        let g = g * s.clip;
        *m = s.beta1 * *m + s.one_minus_beta1 * g;
        *v = s.beta2 * *v + s.one_minus_beta2 * g * g;
        let step = s.step_size * *m / (v.sqrt() * s.root_correction + s.eps);
        *theta = *theta * s.shrink - step;
        *e += s.one_minus_ema * (*theta - *e);
    }
}

/// The factor by which gradients of norm `norm` are multiplied: `min(1, clip_norm / (norm + 10⁻⁶))`.
pub fn clip_factor(norm: f64, clip_norm: f64) -> f64 {
    (clip_norm / (norm + CLIP_GUARD)).min(1.0)
}

/// The Euclidean norm of a flat vector, summed in f64 by chunks of a fixed size in a fixed order.
///
/// Not finite if and only if an element is not finite (squares of finite f32 numbers do not overflow in f64).
pub fn global_norm(values: &[f32]) -> f64 {
    let sums: Vec<f64> =
        values.par_chunks(CHUNK).map(|chunk| chunk.iter().map(|&g| f64::from(g) * f64::from(g)).sum()).collect();
    sums.iter().sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests;
