//! Normalisation followed by an activation.

use std::ops::Range;
use std::sync::Arc;

use tweedie_denoiser::Role;
use tweedie_kernels::act::Act;
use tweedie_kernels::map::{self, Map};
use tweedie_kernels::norm::batch::{self, BatchNormDims, Running};
use tweedie_kernels::norm::group::{self, Affine, ChannelPart, GroupNormDims};
use tweedie_kernels::norm::layer;

use super::conv::Linear;
use super::{concat, copy_channels, pair};
use crate::init::Fill;
use crate::summary::Summary;
use crate::tensor::{Tape, Tensor};
use crate::weights::{Builder, Pass};

/// `act(GN(x) gamma + beta)` (Wu & He 2018), or with a scale and a shift per sample and channel
/// `act((GN(x) gamma + beta)(1 + scale) + shift)`, which is AdaGN (Dhariwal & Nichol 2021, eq. 2).
#[derive(Clone, Debug)]
pub(crate) struct GroupNorm {
    name: String,
    c: usize,
    groups: usize,
    eps: f32,
    act: Act,
    gain: Gain,
}

/// Factor and offset of every channel after a normalisation.
#[derive(Clone, Debug)]
enum Gain {
    /// Parameters.
    Learned { gamma: Range<usize>, beta: Range<usize> },
    /// Ones and zeros.
    None { ones: Vec<f32>, zeros: Vec<f32> },
}

impl GroupNorm {
    pub fn new(b: &mut Builder, name: &str, c: usize, groups: usize, eps: f32, act: Act) -> Self {
        let gamma = b.add(format!("{name}.weight"), &[c], Role::Weight, Fill::One);
        let beta = b.add(format!("{name}.bias"), &[c], Role::Weight, Fill::Zero);
        Self { name: name.to_owned(), c, groups, eps, act, gain: Gain::Learned { gamma, beta } }
    }

    /// A normalisation without parameters.
    fn bare(name: &str, c: usize, groups: usize, eps: f32, act: Act) -> Self {
        let gain = Gain::None { ones: vec![1.0; c], zeros: vec![0.0; c] };
        Self { name: name.to_owned(), c, groups, eps, act, gain }
    }

    fn dims(&self, x: &Tensor) -> GroupNormDims {
        GroupNormDims { n: x.n, hw: x.hw(), c: self.c, groups: self.groups, eps: self.eps }
    }

    fn affine<'a>(&'a self, p: &Pass<'a>, scale_shift: Option<(&'a Tensor, &'a Tensor)>) -> Affine<'a> {
        let (gamma, beta) = match &self.gain {
            Gain::Learned { gamma, beta } => (&p.values[gamma.clone()], &p.values[beta.clone()]),
            Gain::None { ones, zeros } => (&ones[..], &zeros[..]),
        };
        Affine { gamma, beta, scale_shift: scale_shift.map(|(scale, shift)| (&*scale.data, &*shift.data)) }
    }

    /// The output, and the mean and inverse standard deviation of every group.
    pub fn forward(&self, p: &Pass<'_>, x: &Tensor, scale_shift: Option<(&Tensor, &Tensor)>) -> (Tensor, Tensor) {
        self.forward_joined(p, &[x], scale_shift)
    }

    /// [`GroupNorm::forward`] of the joined channels of several tensors.
    fn forward_joined(
        &self,
        p: &Pass<'_>,
        parts: &[&Tensor],
        scale_shift: Option<(&Tensor, &Tensor)>,
    ) -> (Tensor, Tensor) {
        let x = parts[0];
        let mut y = p.pool.tensor([x.n, x.h, x.w, self.c]);
        let mut stats = p.pool.tensor([x.n, 1, self.groups, 2]);
        let affine = self.affine(p, scale_shift);
        let parts: Vec<ChannelPart<'_>> = parts.iter().map(|x| ChannelPart::new(&x.data, x.c)).collect();
        group::forward_joined(&self.dims(x), &parts, &affine, self.act, &mut y.data, &mut stats.data);
        (y, stats)
    }

    /// The output again, from the statistics of the forward pass: it costs less to compute than to keep.
    pub fn again(
        &self,
        p: &Pass<'_>,
        (x, stats): (&Tensor, &Tensor),
        scale_shift: Option<(&Tensor, &Tensor)>,
    ) -> Tensor {
        let mut y = p.pool.tensor(x.shape());
        let mut table = p.pool.tensor([2, 1, x.n, x.c]);
        let (scale, shift) = table.data.split_at_mut(x.n * x.c);
        group::coefficients(&self.dims(x), &self.affine(p, scale_shift), &stats.data, scale, shift);
        let map = Map { scale, shift, per_sample: true, act: self.act };
        map::apply(x.n, x.hw(), x.c, &x.data, &map, &mut y.data);
        y
    }

    /// `scale_shift` holds (scale, shift) of the forward pass, `d_scale_shift` their gradients, which are added to.
    pub fn backward(
        &self,
        p: &Pass<'_>,
        (x, stats): (&Tensor, &Tensor),
        scale_shift: Option<(&Tensor, &Tensor)>,
        gradient: Gradient<'_>,
        d_scale_shift: Option<(&mut Tensor, &mut Tensor)>,
        grads: &mut [f32],
    ) {
        // Gradients that nobody wants, such as those of constants.
        let mut unwanted;
        let (dgamma, dbeta) = match &self.gain {
            Gain::Learned { gamma, beta } if !grads.is_empty() => pair(grads, gamma, beta),
            _ => {
                unwanted = vec![0.0; 2 * self.c];
                unwanted.split_at_mut(self.c)
            }
        };
        let (d, affine) = (self.dims(x), self.affine(p, scale_shift));
        let d_scale_shift = d_scale_shift.map(|(scale, shift)| (&mut *scale.data, &mut *shift.data));
        let (x, stats, act) = (&x.data, &stats.data, self.act);
        match gradient {
            Gradient::InPlace(dy) => {
                let dy = &mut dy.data;
                group::backward_in_place(&d, x, &affine, act, stats, dy, dgamma, dbeta, d_scale_shift);
            }
            Gradient::Added { dy, dx } => {
                let (dy, dx) = (&dy.data, &mut dx.data);
                group::backward(&d, x, &affine, act, stats, dy, dx, dgamma, dbeta, d_scale_shift);
            }
        }
    }

    pub fn describe(&self, s: &mut Summary, [h, w]: [usize; 2]) {
        let kind = format!("GroupNorm({}){}", self.groups, act_name(self.act));
        let params = match &self.gain {
            Gain::Learned { gamma, beta } => gamma.len() + beta.len(),
            Gain::None { .. } => 0,
        };
        s.push(&self.name, kind, [self.c, h, w], params, 0);
    }
}

/// Where the gradient of a normalisation's input goes.
pub(crate) enum Gradient<'a> {
    /// It takes the place of the gradient of the output.
    InPlace(&'a mut Tensor),
    /// It is added to another.
    Added { dy: &'a Tensor, dx: &'a mut Tensor },
}

/// What the backward pass of a [`ScaledNorm`] needs of its forward pass.
#[derive(Debug)]
pub(crate) struct SavedNorm {
    stats: Arc<Tensor>,
    scale_shift: Option<(Arc<Tensor>, Arc<Tensor>)>,
}

impl SavedNorm {
    fn scale_shift(&self) -> Option<(&Tensor, &Tensor)> {
        self.scale_shift.as_ref().map(|(scale, shift)| (&**scale, &**shift))
    }
}

/// A [`GroupNorm`] which may be scaled and shifted by a projection of the time embedding.
#[derive(Clone, Debug)]
pub(crate) struct ScaledNorm {
    norm: GroupNorm,
    projection: Option<Linear>,
}

impl ScaledNorm {
    /// With parameters of its own.
    pub fn learned(
        b: &mut Builder,
        name: &str,
        projection: Option<Linear>,
        c: usize,
        groups: usize,
        eps: f32,
        act: Act,
    ) -> Self {
        Self { norm: GroupNorm::new(b, name, c, groups, eps, act), projection }
    }

    /// With the parameters of the projection alone.
    pub fn bare(projection: Linear, c: usize, groups: usize, eps: f32, act: Act) -> Self {
        Self { norm: GroupNorm::bare(projection.name(), c, groups, eps, act), projection: Some(projection) }
    }

    /// The input has the joined channels of several tensors.
    pub fn forward(&self, p: &Pass<'_>, x: &[&Tensor], e: &Tensor, tape: &mut Tape) -> Tensor {
        let scale_shift = self.projection.as_ref().map(|linear| halves(p, &linear.forward(p, e)));
        let (y, stats) = self.norm.forward_joined(p, x, scale_shift.as_ref().map(|(scale, shift)| (scale, shift)));
        if let Some((scale, shift)) = scale_shift {
            tape.push(scale);
            tape.push(shift);
        }
        tape.push(stats);
        y
    }

    /// What [`ScaledNorm::forward`] has left on the tape.
    pub fn pop(&self, tape: &mut Tape) -> SavedNorm {
        let stats = tape.pop();
        let scale_shift = self.projection.is_some().then(|| {
            let (shift, scale) = (tape.pop(), tape.pop());
            (scale, shift)
        });
        SavedNorm { stats, scale_shift }
    }

    /// [`GroupNorm::again`].
    pub fn again(&self, p: &Pass<'_>, x: &Tensor, saved: &SavedNorm) -> Tensor {
        self.norm.again(p, (x, &saved.stats), saved.scale_shift())
    }

    /// Adds to `de`, the gradient of the time embedding `e`.
    pub fn backward(
        &self,
        p: &Pass<'_>,
        (x, e, saved): (&Tensor, &Tensor, &SavedNorm),
        gradient: Gradient<'_>,
        de: &mut Tensor,
        grads: &mut [f32],
    ) {
        let stats = &saved.stats;
        match (&self.projection, saved.scale_shift()) {
            (Some(linear), Some((scale, shift))) => {
                let (mut dscale, mut dshift) = (p.pool.zeros_like(scale), p.pool.zeros_like(shift));
                let gradients = Some((&mut dscale, &mut dshift));
                self.norm.backward(p, (x, stats), saved.scale_shift(), gradient, gradients, grads);
                linear.backward(p, e, &concat(p.pool, &dscale, &dshift), de, grads);
            }
            _ => self.norm.backward(p, (x, stats), None, gradient, None, grads),
        }
    }

    pub fn describe(&self, s: &mut Summary, size: [usize; 2]) {
        if let Some(linear) = &self.projection {
            linear.describe(s, [1, 1]);
        }
        self.norm.describe(s, size);
    }
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

/// New running statistics of a [`BatchNorm`] after a forward pass in training.
#[derive(Debug)]
pub(crate) struct RunningUpdate {
    mean: (Range<usize>, Vec<f32>),
    var: (Range<usize>, Vec<f32>),
    counter: usize,
}

impl RunningUpdate {
    /// Writes the statistics and counts the pass.
    pub fn apply(self, values: &mut [f32]) {
        for (range, new) in [self.mean, self.var] {
            values[range].copy_from_slice(&new);
        }
        values[self.counter] += 1.0;
    }
}

/// `relu(BN(x) gamma + beta)` (Ioffe & Szegedy 2015, algorithm 1), with PyTorch's running statistics.
#[derive(Clone, Debug)]
pub(crate) struct BatchNorm {
    name: String,
    c: usize,
    gamma: Range<usize>,
    beta: Range<usize>,
    mean: Range<usize>,
    var: Range<usize>,
    counter: usize,
}

impl BatchNorm {
    const EPS: f32 = 1e-5;
    const MOMENTUM: f32 = 0.1;

    pub fn new(b: &mut Builder, name: &str, c: usize) -> Self {
        let gamma = b.add(format!("{name}.weight"), &[c], Role::Weight, Fill::One);
        let beta = b.add(format!("{name}.bias"), &[c], Role::Weight, Fill::Zero);
        let mean = b.add(format!("{name}.running_mean"), &[c], Role::Buffer, Fill::Zero);
        let var = b.add(format!("{name}.running_var"), &[c], Role::Buffer, Fill::One);
        let counter = b.add(format!("{name}.num_batches_tracked"), &[], Role::Counter, Fill::Zero).start;
        Self { name: name.to_owned(), c, gamma, beta, mean, var, counter }
    }

    fn dims(&self, x: &Tensor) -> BatchNormDims {
        BatchNormDims { rows: x.n * x.hw(), c: self.c, eps: Self::EPS }
    }

    /// Factors and offsets `[1, 1, 2, c]` of the normalisation by the running statistics.
    pub fn table_eval(&self, p: &Pass<'_>) -> Tensor {
        let mut table = p.pool.tensor([1, 1, 2, self.c]);
        let (scale, shift) = table.data.split_at_mut(self.c);
        let values = |range: &Range<usize>| &p.values[range.clone()];
        let (mean, var) = (values(&self.mean), values(&self.var));
        batch::coefficients_eval(self.c, Self::EPS, mean, var, values(&self.gamma), values(&self.beta), scale, shift);
        table
    }

    /// Factors and offsets `[1, 1, 2, c]` of the normalisation by the statistics of the batch, these statistics, and the
    /// new running ones.
    pub fn table_train(&self, p: &Pass<'_>, x: &Tensor) -> (Tensor, Tensor, RunningUpdate) {
        let mut stats = p.pool.tensor([1, 1, 2, self.c]);
        let mut mean = p.values[self.mean.clone()].to_vec();
        let mut var = p.values[self.var.clone()].to_vec();
        let running = Running { mean: &mut mean, var: &mut var, momentum: Self::MOMENTUM };
        batch::statistics(&self.dims(x), &x.data, &mut stats.data, Some(running));
        let mut table = p.pool.tensor([1, 1, 2, self.c]);
        let (scale, shift) = table.data.split_at_mut(self.c);
        let (gamma, beta) = (&p.values[self.gamma.clone()], &p.values[self.beta.clone()]);
        batch::coefficients(self.c, &stats.data, gamma, beta, scale, shift);
        let update =
            RunningUpdate { mean: (self.mean.clone(), mean), var: (self.var.clone(), var), counter: self.counter };
        (table, stats, update)
    }

    /// The map that a table stands for.
    pub fn map(table: &Tensor) -> Map<'_> {
        let (scale, shift) = table.data.split_at(table.c);
        Map { scale, shift, per_sample: false, act: Act::Relu }
    }

    /// The backward pass of the normalisation by the statistics of the batch: the gradient of its output becomes that of
    /// its input `x`.
    pub fn backward(&self, p: &Pass<'_>, (x, stats): (&Tensor, &Tensor), mut dy: Tensor, grads: &mut [f32]) -> Tensor {
        let (dgamma, dbeta) = pair(grads, &self.gamma, &self.beta);
        let (gamma, beta) = (&p.values[self.gamma.clone()], &p.values[self.beta.clone()]);
        let d = self.dims(x);
        batch::backward_in_place(&d, &x.data, gamma, beta, Act::Relu, &stats.data, &mut dy.data, dgamma, dbeta);
        dy
    }

    pub fn describe(&self, s: &mut Summary, [h, w]: [usize; 2]) {
        s.push(&self.name, format!("BatchNorm{}", act_name(Act::Relu)), [self.c, h, w], 2 * self.c, 0);
    }
}

/// `LN(x) gamma + beta` over the channels of each pixel (Ba et al. 2016), as PyTorch has it by default; the forward pass alone.
#[derive(Clone, Debug)]
pub(crate) struct LayerNorm {
    name: String,
    c: usize,
    gamma: Range<usize>,
    beta: Range<usize>,
}

impl LayerNorm {
    const EPS: f32 = 1e-5;

    pub fn new(b: &mut Builder, name: &str, c: usize) -> Self {
        let gamma = b.add(format!("{name}.weight"), &[c], Role::Weight, Fill::One);
        let beta = b.add(format!("{name}.bias"), &[c], Role::Weight, Fill::Zero);
        Self { name: name.to_owned(), c, gamma, beta }
    }

    pub fn forward(&self, p: &Pass<'_>, x: &Tensor) -> Tensor {
        let mut y = p.pool.tensor(x.shape());
        let (gamma, beta) = (&p.values[self.gamma.clone()], &p.values[self.beta.clone()]);
        layer::forward(x.n * x.hw(), self.c, Self::EPS, &x.data, gamma, beta, &mut y.data);
        y
    }

    pub fn describe(&self, s: &mut Summary, [h, w]: [usize; 2]) {
        s.push(&self.name, "LayerNorm", [self.c, h, w], 2 * self.c, 0);
    }
}

fn act_name(act: Act) -> &'static str {
    match act {
        Act::None => "",
        Act::Silu => " + SiLU",
        Act::Relu => " + ReLU",
        Act::Gelu => " + GELU",
        Act::Mish => " + Mish",
        Act::QuickGelu => " + QuickGELU",
    }
}
