//! Down- and upsampling between the levels of the residual U-Net, and the tensors that their backward passes need.

use std::sync::Arc;

use tweedie_kernels::channels::ChannelSlice;
use tweedie_kernels::resample::{self, Resample, ResampleDims};
use tweedie_kernels::rescale::{self, Edge, Rescale, RescaleDims};

use super::conv::Conv;
use crate::summary::Summary;
use crate::tensor::{Tape, Tensor};
use crate::weights::{Builder, Pass};

/// Half or twice the size without parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rescaling {
    /// Means of 2x2 pixels.
    Mean,
    /// Every pixel four times.
    Nearest,
    /// Half the size by the filter (1, 3, 3, 1).
    FirDown(Edge),
    /// Twice the size by the filter (1, 3, 3, 1).
    FirUp(Edge),
}

/// How a rescaling is carried out.
enum Kernel {
    Resample(ResampleDims),
    Rescale(RescaleDims),
}

impl Rescaling {
    fn kernel(self, [n, h, w, c]: [usize; 4]) -> Kernel {
        let by = |rescale| Kernel::Rescale(RescaleDims { n, h, w, c, rescale });
        match self {
            Self::Nearest => Kernel::Resample(ResampleDims { n, h, w, c }),
            Self::Mean => by(Rescale::Mean),
            Self::FirDown(edge) => by(Rescale::FirDown(edge)),
            Self::FirUp(edge) => by(Rescale::FirUp(edge)),
        }
    }

    /// The size of the output.
    pub fn size(self, [h, w]: [usize; 2]) -> [usize; 2] {
        match self.kernel([1, h, w, 1]) {
            Kernel::Resample(_) => [2 * h, 2 * w],
            Kernel::Rescale(d) => [d.out_h(), d.out_w()],
        }
    }

    pub fn forward(self, p: &Pass<'_>, x: &Tensor) -> Tensor {
        let [h, w] = self.size([x.h, x.w]);
        let mut y = p.pool.tensor([x.n, h, w, x.c]);
        match self.kernel(x.shape()) {
            Kernel::Resample(d) => resample::forward(&d, Resample::Nearest, &x.data, &mut y.data),
            Kernel::Rescale(d) => rescale::forward(&d, &x.data, &mut y.data),
        }
        y
    }

    /// The gradient of an input of the given shape.
    pub fn backward(self, p: &Pass<'_>, dy: &Tensor, shape: [usize; 4]) -> Tensor {
        match self.kernel(shape) {
            Kernel::Resample(d) => {
                let mut dx = p.pool.tensor(shape);
                resample::backward_into(&d, Resample::Nearest, ChannelSlice::all(&dy.data, d.c), &mut dx.data);
                dx
            }
            Kernel::Rescale(d) => {
                let mut dx = p.pool.zeros_of(shape);
                rescale::backward(&d, &dy.data, &mut dx.data);
                dx
            }
        }
    }
}

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
    /// `size` is the typical one of the input, if there is one.
    pub fn new(b: &mut Builder, name: &str, c: usize, size: Option<[usize; 2]>) -> Self {
        Self { conv: Conv::upsampled(b, &format!("{name}.conv"), c, size) }
    }

    pub fn forward(&self, p: &Pass<'_>, x: &Arc<Tensor>, tape: &mut Tape) -> Tensor {
        tape.push(x.clone());
        self.double(p, x)
    }

    fn double(&self, p: &Pass<'_>, x: &Tensor) -> Tensor {
        let repeated = || self.conv.forward(p, &Rescaling::Nearest.forward(p, x));
        self.conv.forward_upsampled(p, x).unwrap_or_else(repeated)
    }

    /// [`Upsample::forward`] to a size of at most twice that of `x`, for prediction alone: the pixels beyond it are left out
    /// before the convolution, which is what an interpolation to the nearest pixel gives for one less than twice the size.
    pub fn forward_to(&self, p: &Pass<'_>, x: &Tensor, size: [usize; 2]) -> Tensor {
        let [h, w] = size;
        if [2 * x.h, 2 * x.w] == size {
            return self.double(p, x);
        }
        let twice = Rescaling::Nearest.forward(p, x);
        let (n, from, to) = (twice.n, twice.w * twice.c, w * twice.c);
        let mut cut = p.pool.tensor([n, h, w, twice.c]);
        for (twice, cut) in twice.data.chunks_exact(twice.h * from).zip(cut.data.chunks_exact_mut(h * to)) {
            for (twice, cut) in twice.chunks_exact(from).zip(cut.chunks_exact_mut(to)) {
                cut.copy_from_slice(&twice[..to]);
            }
        }
        self.conv.forward(p, &cut)
    }

    pub fn backward(&self, p: &Pass<'_>, tape: &mut Tape, dy: &Tensor, grads: &mut [f32]) -> Tensor {
        let x = tape.pop();
        // To repeat the pixels again costs less than to keep four times the memory.
        let du = self.conv.backward_new(p, &Rescaling::Nearest.forward(p, &x), dy, grads);
        Rescaling::Nearest.backward(p, &du, x.shape())
    }

    pub fn describe(&self, s: &mut Summary, size: [usize; 2]) -> [usize; 2] {
        self.conv.describe(s, Rescaling::Nearest.size(size))
    }

    /// [`Upsample::describe`] by the size of the output.
    pub fn describe_to(&self, s: &mut Summary, size: [usize; 2]) {
        self.conv.describe(s, size);
    }
}
