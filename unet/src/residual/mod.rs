//! The residual U-Net: GroupNorm, SiLU, self-attention at chosen levels, time and class embedding.
//!
//! ```text
//! e    = W2 SiLU(W1 projection(t) + b1) + b2 (+ class embedding)
//! down: per level `layers` residual blocks (+ attention), then half the size; every output is a skip
//! mid:  residual block, attention, residual block
//! up:   per level `layers + 1` residual blocks on [h, skip] (+ attention), then twice the size
//! out:  conv(SiLU(GN(h))), with Fourier embeddings divided by t
//! ```
//!
//! Ho et al. 2020, appendix B, and Dhariwal & Nichol 2021, section 3; keys and configuration are those of diffusers'
//! `UNet2DModel`.

mod blocks;
mod config;
mod embed;
mod encoder;
mod json;
mod plan;

pub(crate) use config::CLASS;
pub use config::{
    Activation, Block, Classes, Config, DownsamplePadding, InputRange, MidAttention, MidBlock, Null, Sampling,
    SinusoidOrder, TimeEmbedding, TimeScaleShift,
};
pub(crate) use encoder::{Encoder, Timed};
pub(crate) use json::{activation, flag, sample_size};
pub(crate) use plan::EncoderPlan;

use ndarray::{Array4, ArrayView4};
use tweedie_denoiser::{Condition, DenoiserError, Network, NetworkGrad, ParamTable, Params};
use tweedie_kernels::act::Act;
use tweedie_kernels::dropout;
use tweedie_kernels::in_pool;

use crate::UnetError;
use crate::init::Init;
use crate::json::LARGEST;
use crate::layers::{Conv, Gradient, GroupNorm, Place};
use crate::request::{self, Request};
use crate::summary::Summary;
use crate::tensor::{Pool, Tape, Tensor};
use crate::weights::{Builder, Filters, Pass, Weights};
use blocks::{Backflow, Flow, UpLevel};
use plan::Plan;

/// A residual U-Net with its parameters.
#[derive(Clone)]
pub struct Residual {
    config: Config,
    layers: Layers,
    weights: Weights,
    pool: Pool,
    /// What the sides of an image are at least.
    least_side: usize,
}

#[derive(Clone, Debug)]
struct Layers {
    encoder: Encoder,
    up: Vec<UpLevel>,
    /// Skips that the way up leaves.
    unread: usize,
    conv_norm_out: GroupNorm,
    conv_out: Conv,
}

impl std::fmt::Debug for Residual {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Residual").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Layers {
    fn new(b: &mut Builder, config: &Config, plan: &Plan) -> Self {
        let c = config.channels[0];
        let encoder = Encoder::new(b, config, &plan.encoder, Timed::Yes);
        let up = plan.up.iter().enumerate().map(|(position, plan)| UpLevel::new(b, config, position, plan)).collect();
        let conv_norm_out = GroupNorm::new(b, "conv_norm_out", c, plan.out_groups, config.norm_eps as f32, Act::Silu);
        let conv_out = Conv::same(b, "conv_out", c, config.out_channels, 3, Place::EndsResidual);
        Self { encoder, up, unread: plan.unread, conv_norm_out, conv_out }
    }

    fn forward(&self, p: &Pass<'_>, x: Tensor, times: &[f64], ids: &[Option<usize>], tape: &mut Tape) -> Tensor {
        let (mut flow, e) = self.encoder.forward(p, x, times, ids, tape);
        for level in &self.up {
            level.forward(p, &mut flow, &e, tape);
        }
        let Flow { hidden, image, .. } = flow;
        let (a, stats) = self.conv_norm_out.forward(p, &hidden, None);
        let mut y = self.conv_out.forward(p, &a);
        if let Some(image) = image {
            y.add(&image);
        }
        tape.push(hidden);
        tape.push(stats);
        tape.push(a);
        y
    }

    fn backward(
        &self,
        p: &Pass<'_>,
        tape: &mut Tape,
        dy: Tensor,
        sample: (&[f64], &[Option<usize>]),
        grads: &mut [f32],
    ) -> Tensor {
        let (a, stats, h) = (tape.pop(), tape.pop(), tape.pop());
        let mut dh = self.conv_out.backward_new(p, &a, &dy, grads);
        drop(a);
        self.conv_norm_out.backward(p, (&h, &stats), None, Gradient::InPlace(&mut dh), None, grads);
        drop((h, stats));
        let embedded = self.encoder.no_gradient(p, dy.n);
        // The skips were consumed last in, first out, so the way back up meets them in the order of their making.
        let skips = (0..self.unread).map(|_| None).collect();
        let image = self.up.iter().any(UpLevel::makes_image).then_some(dy);
        let mut back = Backflow { hidden: dh, skips, image, embedded };
        for level in self.up.iter().rev() {
            level.backward(p, tape, &mut back, grads);
        }
        self.encoder.backward(p, tape, back, sample, grads)
    }
}

impl Residual {
    /// A network with every parameter zero (norms included), to be filled from a checkpoint or by
    /// [`Residual::initialise`].
    ///
    /// # Errors
    /// If the configuration is not consistent, see [`Config::validate`].
    pub fn new(config: Config) -> Result<Self, UnetError> {
        let plan = config.plan()?;
        let mut b = Builder::default();
        let layers = Layers::new(&mut b, &config, &plan);
        Ok(Self { config, layers, weights: b.finish(), pool: Pool::default(), least_side: plan.least_side })
    }

    /// The parameters of a network, without their values.
    ///
    /// # Errors
    /// As [`Residual::new`].
    pub(crate) fn table(config: &Config) -> Result<ParamTable, UnetError> {
        let plan = config.plan()?;
        let mut b = Builder::default();
        Layers::new(&mut b, config, &plan);
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
        let mut size = l.encoder.describe(&mut s, [h, w]);
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
        let request = Request::new(operation, x, times, condition);
        request.check(self.config.in_channels, self.size_multiple())?;
        request.check_least_side(self.least_side)?;
        request.check_labels(self.classes(), self.has_null_condition())?;
        match self.config.time_embedding {
            TimeEmbedding::Positional => {}
            TimeEmbedding::Fourier => {
                let by_time = matches!(self.config.classes, Some(Classes::Timestep { .. }));
                request.check_positive(if by_time { "time or label" } else { "time" }, by_time)?;
            }
            TimeEmbedding::Learned { steps } => request.check_steps(steps)?,
        }
        Ok(request)
    }

    /// The row of the class embedding of every sample.
    fn ids(&self, labels: &[Option<usize>]) -> Vec<Option<usize>> {
        let null = self.config.classes.and_then(Classes::null_row);
        labels.iter().map(|label| label.or(null)).collect()
    }

    /// Divides every sample by its time where the embedding is Fourier's; the gradient likewise.
    fn divide_by_time(&self, times: &[f64], y: &mut Tensor) {
        if self.config.time_embedding == TimeEmbedding::Fourier {
            let len = y.hw() * y.c;
            for (y, time) in y.data.chunks_exact_mut(len).zip(times) {
                y.iter_mut().for_each(|y| *y = (f64::from(*y) / time) as f32);
            }
        }
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
        let p = Pass {
            values: self.weights.params().values(),
            filters: Filters::Kept(&filters),
            pool: &self.pool,
            dropout: &[],
        };
        Ok(request.in_chunks(self.config.out_channels, self.config.channels[0], |part| {
            let ids = self.ids(part.labels);
            let mut y = self.layers.forward(
                &p,
                self.config.input_range.input(&self.pool, part.x),
                part.times,
                &ids,
                &mut Tape::forgetting(),
            );
            self.divide_by_time(part.times, &mut y);
            y
        }))
    }

    fn classes(&self) -> usize {
        match (self.config.classes, self.config.time_embedding) {
            (None, _) => 0,
            (Some(Classes::Table { rows, null }), _) => rows - usize::from(null == Null::LastRow),
            (Some(Classes::Timestep { labels }), TimeEmbedding::Learned { steps }) => {
                labels.map_or(steps, |n| n.min(steps))
            }
            (Some(Classes::Timestep { labels }), _) => labels.unwrap_or(LARGEST),
        }
    }

    fn has_null_condition(&self) -> bool {
        self.config.classes.is_none_or(|classes| classes.null_row().is_some())
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
        let x = self.config.input_range.input(&self.pool, request.x);
        let dropout = if self.config.dropout > 0.0 { dropout_keys(&x, request.times, 0) } else { Vec::new() };
        let values = self.weights.params().values();
        let p = Pass { values, filters, pool: &self.pool, dropout: &dropout };
        let mut tape = Tape::recording();
        let mut y = in_pool(|| self.layers.forward(&p, x, request.times, &ids, &mut tape));
        self.divide_by_time(request.times, &mut y);
        let mut dy = request.cotangent(&self.pool, y, loss)?;
        self.divide_by_time(request.times, &mut dy);
        let dx = in_pool(|| self.layers.backward(&p, &mut tape, dy, (request.times, &ids), grads));
        debug_assert!(tape.is_empty(), "backward takes everything that forward has saved");
        Ok(request::to_array(&self.config.input_range.input_gradient(dx)))
    }
}

/// A key for every sample, by which its elements are dropped: a hash of its pixels and its time, and of `salt`.
///
/// In training these hold fresh noise at every step, so no two steps drop alike; and a step remains a function of its batch
/// and the parameters alone, for any number of threads.
pub(crate) fn dropout_keys(x: &Tensor, times: &[f64], salt: u64) -> Vec<u64> {
    let len = x.hw() * x.c;
    let key = |(x, time): (&[f32], &f64)| {
        x.iter().fold(time.to_bits() ^ salt, |key, x| dropout::derive(key, u64::from(x.to_bits())))
    };
    x.data.chunks_exact(len).zip(times).map(key).collect()
}

#[cfg(test)]
mod tests;
