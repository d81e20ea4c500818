//! Down- and upsampling between the levels of the residual U-Net, and the tensors that their backward passes need.

use std::sync::Arc;

use tweedie_kernels::resample::{self, Resample, ResampleDims};

use super::conv::{Conv, Place};
use crate::summary::Summary;
use crate::tensor::{Tape, Tensor};
use crate::weights::{Builder, Pass};

/// A 3x3 convolution of stride 2.
#[derive(Clone, Debug)]
pub(crate) struct Downsample {
    conv: Conv,
}

impl Downsample {
    pub fn new(b: &mut Builder, name: &str, c: usize, pad_before: usize) -> Self {
        Self { conv: Conv::down(b, &format!("{name}.conv"), c, pad_before) }
    }

    pub fn forward(&self, p: &Pass<'_>, x: &Arc<Tensor>, tape: &mut Tape) -> Tensor {
        tape.push(x.clone());
        self.conv.forward(p, x)
    }

    pub fn backward(&self, p: &Pass<'_>, tape: &mut Tape, dy: &Tensor, grads: &mut [f32]) -> Tensor {
        let x = tape.pop();
        self.conv.backward_new(p, &x, dy, grads)
    }

    pub fn describe(&self, s: &mut Summary, size: [usize; 2]) -> [usize; 2] {
        self.conv.describe(s, size)
    }
}

/// Every pixel four times, then a 3x3 convolution.
#[derive(Clone, Debug)]
pub(crate) struct Upsample {
    conv: Conv,
}

impl Upsample {
    pub fn new(b: &mut Builder, name: &str, c: usize) -> Self {
        Self { conv: Conv::same(b, &format!("{name}.conv"), c, c, 3, Place::Inner) }
    }

    fn nearest(p: &Pass<'_>, x: &Tensor) -> Tensor {
        let mut u = p.pool.tensor([x.n, 2 * x.h, 2 * x.w, x.c]);
        resample::forward(&dims(x), Resample::Nearest, &x.data, &mut u.data);
        u
    }

    pub fn forward(&self, p: &Pass<'_>, x: &Arc<Tensor>, tape: &mut Tape) -> Tensor {
        tape.push(x.clone());
        self.conv.forward(p, &Self::nearest(p, x))
    }

    pub fn backward(&self, p: &Pass<'_>, tape: &mut Tape, dy: &Tensor, grads: &mut [f32]) -> Tensor {
        let x = tape.pop();
        // To repeat the pixels again costs less than to keep four times the memory.
        let du = self.conv.backward_new(p, &Self::nearest(p, &x), dy, grads);
        let mut dx = p.pool.zeros_like(&x);
        resample::backward(&dims(&x), Resample::Nearest, &du.data, &mut dx.data);
        dx
    }

    pub fn describe(&self, s: &mut Summary, [h, w]: [usize; 2]) -> [usize; 2] {
        self.conv.describe(s, [2 * h, 2 * w])
    }
}

fn dims(x: &Tensor) -> ResampleDims {
    ResampleDims { n: x.n, h: x.h, w: x.w, c: x.c }
}
