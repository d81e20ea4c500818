//! The residual U-Net: GroupNorm, SiLU, self-attention at chosen levels, time and class embedding.
//!
//! ```text
//! e    = W2 SiLU(W1 sinusoid(t) + b1) + b2 (+ class embedding)
//! down: per level `layers` residual blocks (+ attention), then a stride-2 convolution; every output is a skip
//! mid:  residual block, attention, residual block
//! up:   per level `layers + 1` residual blocks on [h, skip] (+ attention), then nearest x2 and a convolution
//! out:  conv(SiLU(GN(h)))
//! ```
//!
//! Ho et al. 2020, appendix B, and Dhariwal & Nichol 2021, section 3; keys and configuration are those of diffusers'
//! `UNet2DModel`.

mod blocks;
mod config;
mod embed;

pub(crate) use config::CLASS;
pub use config::{
    Block, Classes, Config, DownsamplePadding, InputRange, MidAttention, Null, SinusoidOrder, TimeScaleShift,
};

use std::sync::Arc;

use ndarray::{Array4, ArrayView4};
use tweedie_denoiser::{Condition, DenoiserError, Network, NetworkGrad, ParamTable, Params};
use tweedie_kernels::act::Act;

use crate::UnetError;
use crate::init::Init;
use crate::layers::{Conv, GroupNorm, Place};
use crate::request::{self, Request};
use crate::summary::Summary;
use crate::tensor::{Pool, Tape, Tensor};
use crate::weights::{Builder, Pass, Weights};
use blocks::{DownLevel, Mid, UpLevel};
use embed::Embed;

/// A residual U-Net with its parameters.
#[derive(Clone)]
pub struct Residual {
    config: Config,
    layers: Layers,
    weights: Weights,
    pool: Pool,
}

#[derive(Clone, Debug)]
struct Layers {
    embed: Embed,
    conv_in: Conv,
    down: Vec<DownLevel>,
    mid: Mid,
    up: Vec<UpLevel>,
    conv_norm_out: GroupNorm,
    conv_out: Conv,
}

impl std::fmt::Debug for Residual {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Residual").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Layers {
    fn new(b: &mut Builder, config: &Config) -> Self {
        let c = &config.channels;
        let conv_in = Conv::same(b, "conv_in", config.in_channels, c[0], 3, Place::Inner);
        let embed = Embed::new(b, config);
        let down = (0..config.levels()).map(|level| DownLevel::new(b, config, level)).collect();
        let mid = Mid::new(b, config);
        let mut skips = config.skips();
        let up = (0..config.levels()).map(|position| UpLevel::new(b, config, position, &mut skips)).collect();
        let (groups, eps) = (config.norm_num_groups, config.norm_eps as f32);
        let conv_norm_out = GroupNorm::new(b, "conv_norm_out", c[0], groups, eps, Act::Silu);
        let conv_out = Conv::same(b, "conv_out", c[0], config.out_channels, 3, Place::EndsResidual);
        Self { embed, conv_in, down, mid, up, conv_norm_out, conv_out }
    }

    fn forward(
        &self,
        p: &Pass<'_>,
        x: Tensor,
        times: &[f64],
        ids: Option<&[Option<usize>]>,
        tape: &mut Tape,
    ) -> Tensor {
        let e = Arc::new(self.embed.forward(p, times, ids, tape));
        let mut h = Arc::new(self.conv_in.forward(p, &x));
        tape.push(x);
        let mut skips = vec![h.clone()];
        for level in &self.down {
            h = level.forward(p, h, &e, &mut skips, tape);
        }
        h = self.mid.forward(p, h, &e, tape);
        for level in &self.up {
            h = level.forward(p, h, &e, &mut skips, tape);
        }
        drop(skips);
        let (a, stats) = self.conv_norm_out.forward(p, &h, None);
        let y = self.conv_out.forward(p, &a);
        tape.push(h);
        tape.push(stats);
        tape.push(a);
        tape.push(e);
        y
    }

    fn backward(
        &self,
        p: &Pass<'_>,
        tape: &mut Tape,
        dy: &Tensor,
        ids: Option<&[Option<usize>]>,
        grads: &mut [f32],
    ) -> Tensor {
        let (e, a, stats, h) = (tape.pop(), tape.pop(), tape.pop(), tape.pop());
        let mut de = p.pool.zeros_like(&e);
        drop(e);
        let da = self.conv_out.backward_new(p, &a, dy, grads);
        drop(a);
        let mut dh = p.pool.zeros_like(&h);
        self.conv_norm_out.backward(p, (&h, &stats), None, &da, &mut dh, None, grads);
        drop((h, stats, da));
        // The skips were consumed last in, first out, so the way back up meets them in the order of their making.
        let mut dskips = Vec::new();
        for level in self.up.iter().rev() {
            dh = level.backward(p, tape, dh, &mut de, &mut dskips, grads);
        }
        dh = self.mid.backward(p, tape, dh, &mut de, grads);
        for level in self.down.iter().rev() {
            dh = level.backward(p, tape, dh, &mut de, &mut dskips, grads);
        }
        dh.add(&dskips.pop().expect("the first skip is the output of conv_in"));
        let x = tape.pop();
        let dx = self.conv_in.backward_new(p, &x, &dh, grads);
        self.embed.backward(p, tape, &de, ids, grads);
        dx
    }
}

impl Residual {
    /// A network with every parameter zero (norms included), to be filled from a checkpoint or by
    /// [`Residual::initialise`].
    ///
    /// # Errors
    /// If the configuration is not consistent, see [`Config::validate`].
    pub fn new(config: Config) -> Result<Self, UnetError> {
        config.validate()?;
        let mut b = Builder::default();
        let layers = Layers::new(&mut b, &config);
        Ok(Self { config, layers, weights: b.finish(), pool: Pool::default() })
    }

    /// The parameters of a network, without their values.
    ///
    /// # Errors
    /// As [`Residual::new`].
    pub(crate) fn table(config: &Config) -> Result<ParamTable, UnetError> {
        config.validate()?;
        let mut b = Builder::default();
        Layers::new(&mut b, config);
        Ok(b.params)
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Draws the first values of every parameter; each tensor depends on (`seed`, its name) alone.
    pub fn initialise(&mut self, init: Init, seed: u64) {
        self.weights.initialise(init, seed);
    }

    /// Layers, parameters and operations for an image of height `h` and width `w`.
    pub fn summary(&self, h: usize, w: usize) -> Summary {
        let mut s = Summary::default();
        let l = &self.layers;
        l.embed.describe(&mut s);
        let mut size = l.conv_in.describe(&mut s, [h, w]);
        for level in &l.down {
            size = level.describe(&mut s, size);
        }
        l.mid.describe(&mut s, size);
        for level in &l.up {
            size = level.describe(&mut s, size);
        }
        l.conv_norm_out.describe(&mut s, size);
        l.conv_out.describe(&mut s, size);
        s
    }

    pub(crate) fn packed_floats(&self) -> usize {
        self.weights.packed_floats()
    }

    /// What the sides of an image have to be multiples of.
    pub fn size_multiple(&self) -> usize {
        1 << (self.config.levels() - 1)
    }

    fn request<'a>(
        &self,
        operation: &'static str,
        x: ArrayView4<'a, f32>,
        times: &'a [f64],
        condition: &'a Condition,
    ) -> Result<Request<'a>, DenoiserError> {
        let request = Request { operation, x, times, labels: condition.as_labels() };
        request.check(self.config.in_channels, self.size_multiple())?;
        request.check_labels(self.classes(), self.has_null_condition())?;
        Ok(request)
    }

    /// The row of the class embedding of every sample, for a network that has one.
    fn ids(&self, labels: &[Option<usize>]) -> Option<Vec<Option<usize>>> {
        let Classes { rows, null } = self.config.classes?;
        let null = (null == Null::LastRow).then_some(rows - 1);
        Some(labels.iter().map(|label| label.or(null)).collect())
    }

    /// `x` channels last, in the range that the first convolution expects.
    fn input(&self, x: ArrayView4<'_, f32>) -> Tensor {
        let mut x = request::from_array(&self.pool, x);
        if self.config.input_range == InputRange::Centered {
            x.data.iter_mut().for_each(|x| *x = 2.0 * *x - 1.0);
        }
        x
    }
}

impl Network for Residual {
    fn predict(
        &self,
        x: ArrayView4<'_, f32>,
        timesteps: &[f64],
        condition: &Condition,
    ) -> Result<Array4<f32>, DenoiserError> {
        let request = self.request("predicting with UNet2DModel", x, timesteps, condition)?;
        let filters = self.weights.for_predict();
        let p = Pass { values: self.weights.params().values(), filters: &filters, pool: &self.pool };
        Ok(request.in_chunks(self.config.out_channels, self.config.channels[0], |part| {
            let ids = self.ids(part.labels);
            self.layers.forward(&p, self.input(part.x), part.times, ids.as_deref(), &mut Tape::forgetting())
        }))
    }

    fn classes(&self) -> usize {
        self.config.classes.map_or(0, |c| c.rows - usize::from(c.null == Null::LastRow))
    }

    fn has_null_condition(&self) -> bool {
        self.config.classes.is_none_or(|c| c.null == Null::LastRow)
    }
}

impl NetworkGrad for Residual {
    fn params(&self) -> &Params {
        self.weights.params()
    }

    fn params_mut(&mut self) -> &mut Params {
        self.weights.params_mut()
    }

    fn forward_backward(
        &mut self,
        x: ArrayView4<'_, f32>,
        timesteps: &[f64],
        condition: &Condition,
        loss: &mut dyn FnMut(ArrayView4<'_, f32>) -> Array4<f32>,
        grads: &mut [f32],
    ) -> Result<Array4<f32>, DenoiserError> {
        let request = self.request("training UNet2DModel", x, timesteps, condition)?;
        request.check_grads(grads, self.weights.params().len())?;
        let ids = self.ids(request.labels);
        let filters = self.weights.for_training();
        let p = Pass { values: self.weights.params().values(), filters: &filters, pool: &self.pool };
        let mut tape = Tape::recording();
        let y = self.layers.forward(&p, self.input(request.x), request.times, ids.as_deref(), &mut tape);
        let dy = request.cotangent(&self.pool, y, loss)?;
        let mut dx = self.layers.backward(&p, &mut tape, &dy, ids.as_deref(), grads);
        debug_assert!(tape.is_empty(), "backward takes everything that forward has saved");
        if self.config.input_range == InputRange::Centered {
            dx.scale(2.0);
        }
        Ok(request::to_array(&dx))
    }
}

#[cfg(test)]
mod tests;
