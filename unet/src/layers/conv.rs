//! Convolution and linear layers: `y = W * x + b`, `dx += W^T * dy`, `dW += dy * x`, `db += sum dy`.

use std::ops::Range;

use tweedie_denoiser::Role;
use tweedie_kernels::conv::{self, ConvDims, Direction, Filter, Part, Target};

use super::pair;
use crate::init::Fill;
use crate::summary::Summary;
use crate::tensor::Tensor;
use crate::weights::{Builder, Pass};

/// What a residual branch ends with may start at zero, see [`Init::ZeroResidual`](crate::Init::ZeroResidual).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Inner,
    EndsResidual,
}

/// A convolution, with a bias but for a few.
#[derive(Clone, Debug)]
pub(crate) struct Conv {
    name: String,
    filter: usize,
    kernel: usize,
    stride: usize,
    pad_before: usize,
    pad_after: usize,
    pub c_in: usize,
    pub c_out: usize,
    weight: Range<usize>,
    bias: Option<Range<usize>>,
}

impl Conv {
    /// A convolution of stride 1 that keeps the size of the image.
    pub fn same(b: &mut Builder, name: &str, c_in: usize, c_out: usize, kernel: usize, place: Place) -> Self {
        Self::new(b, name, [c_in, c_out], kernel, 1, kernel / 2, place)
    }

    /// A 3x3 convolution of stride 2, with `pad_before` zeros above and to the left, one below and to the right.
    pub fn down(b: &mut Builder, name: &str, c: usize, pad_before: usize) -> Self {
        Self::new(b, name, [c, c], 3, 2, pad_before, Place::Inner)
    }

    /// A 3x3 convolution for [`Conv::forward_upsampled`] of images of which this size is typical, if any is.
    pub fn upsampled(b: &mut Builder, name: &str, c: usize, size: Option<[usize; 2]>) -> Self {
        let conv = Self::same(b, name, c, c, 3, Place::Inner);
        if size.is_none_or(Filter::upsampled_pays) {
            b.upsamples(conv.filter);
        }
        conv
    }

    /// [`Conv::same`] without a bias.
    pub fn unbiased(b: &mut Builder, name: &str, c_in: usize, c_out: usize, kernel: usize) -> Self {
        Self::weight_alone(b, name, [c_in, c_out], kernel, 1, kernel / 2, Place::Inner)
    }

    fn new(
        b: &mut Builder,
        name: &str,
        [c_in, c_out]: [usize; 2],
        kernel: usize,
        stride: usize,
        pad_before: usize,
        place: Place,
    ) -> Self {
        let mut conv = Self::weight_alone(b, name, [c_in, c_out], kernel, stride, pad_before, place);
        let fill = Fill::fan_in(c_in * kernel * kernel, place == Place::EndsResidual);
        conv.bias = Some(b.add(format!("{name}.bias"), &[c_out], Role::Weight, fill));
        conv
    }

    fn weight_alone(
        b: &mut Builder,
        name: &str,
        [c_in, c_out]: [usize; 2],
        kernel: usize,
        stride: usize,
        pad_before: usize,
        place: Place,
    ) -> Self {
        let fill = Fill::fan_in(c_in * kernel * kernel, place == Place::EndsResidual);
        let (filter, weight) = b.filter(format!("{name}.weight"), &[c_out, c_in, kernel, kernel], stride, fill);
        let name = name.to_owned();
        Self { name, filter, kernel, stride, pad_before, pad_after: kernel / 2, c_in, c_out, weight, bias: None }
    }

    fn dims(&self, n: usize, h: usize, w: usize) -> ConvDims {
        let Self { kernel, stride, pad_before, pad_after, c_in, c_out, .. } = *self;
        ConvDims { n, h, w, c_in, c_out, kernel, stride, pad_before, pad_after }
    }

    pub fn forward(&self, p: &Pass<'_>, x: &Tensor) -> Tensor {
        self.forward_joined(p, [x.n, x.h, x.w], &[Part::plain(&x.data, x.c)])
    }

    /// [`Conv::forward`] of `n` images of `h` by `w` pixels whose channels are joined from `parts`.
    pub fn forward_joined(&self, p: &Pass<'_>, [n, h, w]: [usize; 3], parts: &[Part<'_>]) -> Tensor {
        self.forward_biased(p, [n, h, w], parts, self.bias(p))
    }

    fn bias<'a>(&self, p: &Pass<'a>) -> Option<&'a [f32]> {
        self.bias.as_ref().map(|bias| &p.values[bias.clone()])
    }

    /// [`Conv::forward`] of `x` with every pixel repeated four times, where the filter can do without the repetition.
    pub fn forward_upsampled(&self, p: &Pass<'_>, x: &Tensor) -> Option<Tensor> {
        let d = self.dims(x.n, 2 * x.h, 2 * x.w);
        let filter = p.kept(self.filter).filter(|filter| filter.upsamples(&d))?;
        let mut y = p.pool.tensor([d.n, d.h, d.w, d.c_out]);
        conv::forward_upsampled(&d, &x.data, filter, self.bias(p), &mut y.data);
        Some(y)
    }

    /// [`Conv::forward`] of each image with numbers `[n, 1, 1, c_out]` of its own added to every pixel.
    pub fn forward_shifted(&self, p: &Pass<'_>, x: &Tensor, shift: &Tensor) -> Tensor {
        assert_eq!(shift.shape(), [x.n, 1, 1, self.c_out], "what is added to the channels of each image");
        let mut biases = p.pool.tensor(shift.shape());
        biases.data.copy_from_slice(&shift.data);
        if let Some(bias) = self.bias(p) {
            for row in biases.data.chunks_exact_mut(self.c_out) {
                row.iter_mut().zip(bias).for_each(|(sum, b)| *sum += b);
            }
        }
        let d = self.dims(x.n, x.h, x.w);
        let mut y = p.pool.tensor([x.n, d.out_h(), d.out_w(), self.c_out]);
        let target = Target::overwrite(&mut y.data, self.c_out).shifted(&biases.data);
        let parts = [Part::plain(&x.data, x.c)];
        p.with_filter(self.filter, Direction::Forward, |filter| conv::forward_joined(&d, &parts, filter, None, target));
        y
    }

    /// `base + self * x`, added while it is stored.
    pub fn forward_onto(&self, p: &Pass<'_>, x: &Tensor, base: &Tensor) -> Tensor {
        let d = self.dims(x.n, x.h, x.w);
        let mut y = p.pool.tensor([x.n, d.out_h(), d.out_w(), self.c_out]);
        assert_eq!(y.shape(), base.shape(), "adding a convolution to a tensor of another shape");
        let (target, parts) = (Target::sum(&mut y.data, &base.data, self.c_out), [Part::plain(&x.data, x.c)]);
        p.with_filter(self.filter, Direction::Forward, |filter| {
            conv::forward_joined(&d, &parts, filter, self.bias(p), target)
        });
        y
    }

    fn forward_biased(&self, p: &Pass<'_>, [n, h, w]: [usize; 3], parts: &[Part<'_>], bias: Option<&[f32]>) -> Tensor {
        let d = self.dims(n, h, w);
        let mut y = p.pool.tensor([n, d.out_h(), d.out_w(), self.c_out]);
        let target = Target::overwrite(&mut y.data, self.c_out);
        p.with_filter(self.filter, Direction::Forward, |filter| conv::forward_joined(&d, parts, filter, bias, target));
        y
    }

    /// Whether [`Conv::forward_sum`] reads several tensors where they lie.
    pub fn reads_parts(&self, p: &Pass<'_>) -> bool {
        p.kept(self.filter).is_some_and(Filter::reads_parts)
    }

    /// `self * x + other * z`, where the second is added while it is stored; `x` has the joined channels of several tensors.
    pub fn forward_sum(&self, p: &Pass<'_>, x: &[&Tensor], other: &Self, z: &Tensor) -> Tensor {
        let biases: Vec<f32> = match (self.bias(p), other.bias(p)) {
            (Some(a), Some(b)) => a.iter().zip(b).map(|(a, b)| a + b).collect(),
            (one, another) => one.or(another).map_or_else(|| vec![0.0; self.c_out], <[f32]>::to_vec),
        };
        let parts: Vec<Part<'_>> = x.iter().map(|x| Part::plain(&x.data, x.c)).collect();
        let mut y = self.forward_biased(p, [x[0].n, x[0].h, x[0].w], &parts, Some(&biases));
        let d = other.dims(z.n, z.h, z.w);
        assert_eq!(y.shape(), [z.n, d.out_h(), d.out_w(), other.c_out], "adding convolutions of different shapes");
        let target = Target::accumulate(&mut y.data, other.c_out);
        let parts = [Part::plain(&z.data, z.c)];
        p.with_filter(other.filter, Direction::Forward, |filter| {
            conv::forward_joined(&d, &parts, filter, None, target)
        });
        y
    }

    /// The gradients of the parameters from those of [`Conv::forward_joined`]'s output, and that of its input into
    /// `targets`.
    pub fn backward_joined(
        &self,
        p: &Pass<'_>,
        [n, h, w]: [usize; 3],
        parts: &[Part<'_>],
        dy: &Tensor,
        targets: &mut [Target<'_>],
        grads: &mut [f32],
    ) {
        let d = self.dims(n, h, w);
        match &self.bias {
            _ if grads.is_empty() => {}
            Some(bias) => {
                let (dw, db) = pair(grads, &self.weight, bias);
                conv::backward_weight_joined(&d, parts, &dy.data, dw, Some(db));
            }
            None => conv::backward_weight_joined(&d, parts, &dy.data, &mut grads[self.weight.clone()], None),
        }
        p.with_filter(self.filter, Direction::Backward, |filter| {
            conv::backward_input_joined(&d, filter, &dy.data, targets)
        });
    }

    /// The gradient of the input `x`, new; those of the parameters are added to `grads`.
    pub fn backward_new(&self, p: &Pass<'_>, x: &Tensor, dy: &Tensor, grads: &mut [f32]) -> Tensor {
        let mut dx = p.pool.tensor(x.shape());
        let targets = &mut [Target::overwrite(&mut dx.data, x.c)];
        self.backward_joined(p, [x.n, x.h, x.w], &[Part::plain(&x.data, x.c)], dy, targets, grads);
        dx
    }

    /// Adds this layer to `s` and returns the size of its output.
    pub fn describe(&self, s: &mut Summary, [h, w]: [usize; 2]) -> [usize; 2] {
        let d = self.dims(1, h, w);
        let multiply_adds = self.weight.len() * d.out_h() * d.out_w();
        let kind = if self.stride == 1 { format!("Conv {0}x{0}", self.kernel) } else { "Conv 3x3 stride 2".into() };
        let params = self.weight.len() + self.bias.as_ref().map_or(0, Range::len);
        s.push(&self.name, kind, [self.c_out, d.out_h(), d.out_w()], params, 2 * multiply_adds as u64);
        [d.out_h(), d.out_w()]
    }
}

/// A linear layer over the channels of every pixel, with a bias but for a few.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    name: String,
    filter: usize,
    pub c_in: usize,
    pub c_out: usize,
    weight: Range<usize>,
    bias: Option<Range<usize>>,
}

impl Linear {
    pub fn new(b: &mut Builder, name: &str, c_in: usize, c_out: usize, place: Place) -> Self {
        let fill = Fill::fan_in(c_in, place == Place::EndsResidual);
        let (filter, weight) = b.filter(format!("{name}.weight"), &[c_out, c_in], 1, fill);
        let bias = Some(b.add(format!("{name}.bias"), &[c_out], Role::Weight, fill));
        Self { name: name.to_owned(), filter, c_in, c_out, weight, bias }
    }

    /// [`Linear::new`] without a bias.
    pub fn unbiased(b: &mut Builder, name: &str, c_in: usize, c_out: usize) -> Self {
        let (filter, weight) = b.filter(format!("{name}.weight"), &[c_out, c_in], 1, Fill::fan_in(c_in, false));
        Self { name: name.to_owned(), filter, c_in, c_out, weight, bias: None }
    }

    /// Where its weight and its bias lie.
    pub fn ranges(&self) -> (Range<usize>, Option<Range<usize>>) {
        (self.weight.clone(), self.bias.clone())
    }

    /// Calls `run` with the weight packed for a pass in this direction.
    pub fn with_filter<R>(&self, p: &Pass<'_>, direction: Direction, run: impl FnOnce(&Filter) -> R) -> R {
        p.with_filter(self.filter, direction, run)
    }

    /// The prefix of its keys.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn dims(&self, x: &Tensor) -> ConvDims {
        ConvDims::linear(x.n * x.hw(), self.c_in, self.c_out)
    }

    pub fn forward(&self, p: &Pass<'_>, x: &Tensor) -> Tensor {
        let mut y = p.pool.tensor([x.n, x.h, x.w, self.c_out]);
        let bias = self.bias.as_ref().map(|bias| &p.values[bias.clone()]);
        p.with_filter(self.filter, Direction::Forward, |filter| {
            conv::forward(&self.dims(x), &x.data, filter, bias, &mut y.data)
        });
        y
    }

    /// `x` is the input of the forward pass.
    pub fn backward(&self, p: &Pass<'_>, x: &Tensor, dy: &Tensor, dx: &mut Tensor, grads: &mut [f32]) {
        self.backward_weights(x, dy, grads);
        let d = self.dims(x);
        p.with_filter(self.filter, Direction::Backward, |filter| {
            conv::backward_input(&d, filter, &dy.data, &mut dx.data)
        });
    }

    /// [`Linear::backward`] without a gradient of the input.
    pub fn backward_weights(&self, x: &Tensor, dy: &Tensor, grads: &mut [f32]) {
        let d = self.dims(x);
        match &self.bias {
            _ if grads.is_empty() => {}
            Some(bias) => {
                let (dw, db) = pair(grads, &self.weight, bias);
                conv::backward_weight(&d, &x.data, &dy.data, dw, Some(db));
            }
            None => conv::backward_weight(&d, &x.data, &dy.data, &mut grads[self.weight.clone()], None),
        }
    }

    /// [`Linear::backward`] into a new `dx`.
    pub fn backward_new(&self, p: &Pass<'_>, x: &Tensor, dy: &Tensor, grads: &mut [f32]) -> Tensor {
        self.backward_weights(x, dy, grads);
        let mut dx = p.pool.tensor(x.shape());
        let (d, target) = (self.dims(x), Target::overwrite(&mut dx.data, x.c));
        p.with_filter(self.filter, Direction::Backward, |filter| {
            conv::backward_input_joined(&d, filter, &dy.data, &mut [target]);
        });
        dx
    }

    /// Adds this layer, applied to an image of the given size, to `s`.
    pub fn describe(&self, s: &mut Summary, [h, w]: [usize; 2]) {
        let params = self.weight.len() + self.bias.as_ref().map_or(0, Range::len);
        s.push(&self.name, "Linear", [self.c_out, h, w], params, 2 * (self.weight.len() * h * w) as u64);
    }
}
