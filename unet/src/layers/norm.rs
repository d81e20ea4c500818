//! Normalisation followed by an activation.

use std::ops::Range;

use tweedie_denoiser::Role;
use tweedie_kernels::act::Act;
use tweedie_kernels::map::{self, Map};
use tweedie_kernels::norm::batch::{self, BatchNormDims, Running};
use tweedie_kernels::norm::group::{self, Affine, GroupNormDims};

use super::pair;
use crate::init::Fill;
use crate::summary::Summary;
use crate::tensor::Tensor;
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
    gamma: Range<usize>,
    beta: Range<usize>,
}

impl GroupNorm {
    pub fn new(b: &mut Builder, name: &str, c: usize, groups: usize, eps: f32, act: Act) -> Self {
        let gamma = b.add(format!("{name}.weight"), &[c], Role::Weight, Fill::One);
        let beta = b.add(format!("{name}.bias"), &[c], Role::Weight, Fill::Zero);
        Self { name: name.to_owned(), c, groups, eps, act, gamma, beta }
    }

    fn dims(&self, x: &Tensor) -> GroupNormDims {
        GroupNormDims { n: x.n, hw: x.hw(), c: self.c, groups: self.groups, eps: self.eps }
    }

    fn affine<'a>(&self, p: &Pass<'a>, scale_shift: Option<(&'a Tensor, &'a Tensor)>) -> Affine<'a> {
        Affine {
            gamma: &p.values[self.gamma.clone()],
            beta: &p.values[self.beta.clone()],
            scale_shift: scale_shift.map(|(scale, shift)| (&*scale.data, &*shift.data)),
        }
    }

    /// The output, and the mean and inverse standard deviation of every group.
    pub fn forward(&self, p: &Pass<'_>, x: &Tensor, scale_shift: Option<(&Tensor, &Tensor)>) -> (Tensor, Tensor) {
        let mut y = p.pool.tensor(x.shape());
        let mut stats = p.pool.tensor([x.n, 1, self.groups, 2]);
        let affine = self.affine(p, scale_shift);
        group::forward(&self.dims(x), &x.data, &affine, self.act, &mut y.data, &mut stats.data);
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

    /// Adds to `dx`. `scale_shift` holds (scale, shift) of the forward pass, `d_scale_shift` their gradients.
    pub fn backward(
        &self,
        p: &Pass<'_>,
        (x, stats): (&Tensor, &Tensor),
        scale_shift: Option<(&Tensor, &Tensor)>,
        dy: &Tensor,
        dx: &mut Tensor,
        d_scale_shift: Option<(&mut Tensor, &mut Tensor)>,
        grads: &mut [f32],
    ) {
        let (dgamma, dbeta) = pair(grads, &self.gamma, &self.beta);
        group::backward(
            &self.dims(x),
            &x.data,
            &self.affine(p, scale_shift),
            self.act,
            &stats.data,
            &dy.data,
            &mut dx.data,
            dgamma,
            dbeta,
            d_scale_shift.map(|(scale, shift)| (&mut *scale.data, &mut *shift.data)),
        );
    }

    /// [`GroupNorm::backward`] where the gradient of the output becomes that of the input.
    pub fn backward_in_place(
        &self,
        p: &Pass<'_>,
        (x, stats): (&Tensor, &Tensor),
        scale_shift: Option<(&Tensor, &Tensor)>,
        mut dy: Tensor,
        d_scale_shift: Option<(&mut Tensor, &mut Tensor)>,
        grads: &mut [f32],
    ) -> Tensor {
        let (dgamma, dbeta) = pair(grads, &self.gamma, &self.beta);
        group::backward_in_place(
            &self.dims(x),
            &x.data,
            &self.affine(p, scale_shift),
            self.act,
            &stats.data,
            &mut dy.data,
            dgamma,
            dbeta,
            d_scale_shift.map(|(scale, shift)| (&mut *scale.data, &mut *shift.data)),
        );
        dy
    }

    pub fn describe(&self, s: &mut Summary, [h, w]: [usize; 2]) {
        let kind = format!("GroupNorm({}){}", self.groups, act_name(self.act));
        s.push(&self.name, kind, [self.c, h, w], self.gamma.len() + self.beta.len(), 0);
    }
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

fn act_name(act: Act) -> &'static str {
    match act {
        Act::None => "",
        Act::Silu => " + SiLU",
        Act::Relu => " + ReLU",
    }
}
