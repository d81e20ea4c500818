//! Two linear layers with nothing between them, taken for one.
//!
//! ```text
//! y = B (A x + a) + b:      C = B A,     c = B a + b      dB += dC A^T + dc a^T     dA += B^T dC     da += B^T dc     db += dc
//! y = B^T (A x + a):        C = B^T A,   c = B^T a        dB += A dC^T + a dc^T     dA += B dC       da += B dc
//! ```
//!
//! `C` has as many rows as columns. Of many pixels and few channels, one product instead of two is half the work; `C` itself and the
//! way of its gradient to `A` and `B` are small.

use std::sync::Arc;

use tweedie_kernels::conv::{self, ConvDims, Direction, Filter, Part, Target};

use super::conv::Linear;
use crate::tensor::Tensor;
use crate::weights::{Builder, ChainSpec, Pass};

/// Two layers as one.
#[derive(Clone, Debug)]
pub(crate) struct Chain {
    first: Linear,
    spec: ChainSpec,
    /// Among the chains whose product is packed for many passes.
    packed: usize,
}

/// The one layer during a pass.
pub(crate) enum One<'a> {
    Packed(&'a Filter, &'a [f32]),
    /// Its weight `[c, c]`, to be packed for its turn.
    Passing(Arc<Tensor>, Vec<f32>),
}

impl Chain {
    /// `then (first x)`, or with the weight of `then` transposed and without its bias.
    pub fn new(b: &mut Builder, first: &Linear, then: &Linear, transposed: bool) -> Self {
        let spec = ChainSpec { first: first.ranges(), then: then.ranges(), transposed, c: first.c_in };
        let (inner, c) = if transposed { (then.c_out, then.c_in) } else { (then.c_in, then.c_out) };
        assert_eq!((first.c_out, first.c_in), (inner, c), "channels of two layers that are to be one");
        Self { first: first.clone(), packed: b.chain(spec.clone()), spec }
    }

    /// The one layer as it was packed, if it was.
    pub fn packed<'a>(&self, p: &Pass<'a>) -> Option<One<'a>> {
        p.chain(self.packed).map(|(filter, bias)| One::Packed(filter, bias))
    }

    /// The one layer, worked out for a pass with weights of its own.
    pub fn passing<'a>(&self, p: &Pass<'_>) -> One<'a> {
        let (c, inner) = (self.spec.c, self.first.c_out);
        let mut product = p.pool.zeros_of([1, 1, c, c]);
        let then = &p.values[self.spec.then.0.clone()];
        if self.spec.transposed {
            let first = &p.values[self.spec.first.0.clone()];
            conv::backward_weight(&ConvDims::linear(inner, c, c), first, then, &mut product.data, None);
        } else {
            self.first.with_filter(p, Direction::Backward, |first| {
                conv::backward_input(&ConvDims::linear(c, c, inner), first, then, &mut product.data);
            });
        }
        One::Passing(Arc::new(product), self.spec.bias(p.values))
    }

    /// The gradients of a pass with the weight `one`: those of the parameters are added to `grads`, that of the input to `dx`.
    pub fn backward(
        &self,
        p: &Pass<'_>,
        one: &Tensor,
        (x, dy): (&Tensor, &Tensor),
        dx: &mut Tensor,
        grads: &mut [f32],
    ) {
        let c = self.spec.c;
        let d = ConvDims::linear(x.n * x.hw(), c, c);
        if !grads.is_empty() {
            let mut weight = p.pool.zeros_of([1, 1, c, c]);
            let mut bias = vec![0.0; c];
            conv::backward_weight(&d, &x.data, &dy.data, &mut weight.data, Some(&mut bias));
            self.divide(p, &weight.data, &bias, grads);
        }
        with_passing(Direction::Backward, c, &one.data, |one| {
            conv::backward_input(&d, one, &dy.data, &mut dx.data);
        });
    }

    /// Adds what the gradients of the one layer mean for both.
    fn divide(&self, p: &Pass<'_>, weight: &[f32], bias: &[f32], grads: &mut [f32]) {
        let ChainSpec { first: (a, a_bias), then: (b, b_bias), transposed, c } = &self.spec;
        let (c, inner) = (*c, self.first.c_out);
        let (first, then) = (&p.values[a.clone()], &p.values[b.clone()]);
        if *transposed {
            let d = ConvDims::linear(inner, c, c);
            with_passing(Direction::Forward, c, weight, |weight| {
                let target = Target::accumulate(&mut grads[b.clone()], c);
                conv::forward_joined(&d, &[Part::plain(first, c)], weight, None, target);
            });
            with_passing(Direction::Backward, c, weight, |weight| {
                conv::backward_input(&d, weight, then, &mut grads[a.clone()]);
            });
        } else {
            let d = ConvDims::linear(c, c, inner);
            self.first.with_filter(p, Direction::Forward, |first| {
                let target = Target::accumulate(&mut grads[b.clone()], inner);
                conv::forward_joined(&d, &[Part::plain(weight, c)], first, None, target);
            });
            conv::backward_weight(&d, weight, then, &mut grads[a.clone()], None);
            if let Some(b_bias) = b_bias {
                grads[b_bias.clone()].iter_mut().zip(bias).for_each(|(sum, d)| *sum += d);
            }
        }
        let Some(a_bias) = a_bias else { return };
        // Where `B` has the number that output `o` takes of `h`.
        let at = |o: usize, h: usize| if *transposed { h * c + o } else { o * inner + h };
        for (h, a) in p.values[a_bias.clone()].iter().enumerate() {
            grads[b.start..b.end]
                .iter_mut()
                .skip(at(0, h))
                .step_by(at(1, 0))
                .zip(bias)
                .for_each(|(sum, d)| *sum += a * d);
            grads[a_bias.start + h] += (0..c).map(|o| then[at(o, h)] * bias[o]).sum::<f32>();
        }
    }
}

impl One<'_> {
    pub fn forward(&self, p: &Pass<'_>, x: &Tensor) -> Tensor {
        let mut y = p.pool.tensor(x.shape());
        let d = ConvDims::linear(x.n * x.hw(), x.c, x.c);
        match self {
            Self::Packed(filter, bias) => conv::forward(&d, &x.data, filter, Some(bias), &mut y.data),
            Self::Passing(weight, bias) => with_passing(Direction::Forward, x.c, &weight.data, |filter| {
                conv::forward(&d, &x.data, filter, Some(bias), &mut y.data);
            }),
        }
        y
    }
}

/// Calls `run` with a square weight packed for this direction.
fn with_passing<R>(direction: Direction, c: usize, weight: &[f32], run: impl FnOnce(&Filter) -> R) -> R {
    Filter::with_passing(direction, 1, 1, [c, c], weight, run)
}
