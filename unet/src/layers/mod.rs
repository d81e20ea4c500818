//! Layers: each with its forward pass, and beside it the backward pass that adds to the gradients.
//!
//! A layer knows where its parameters lie in the network's vector of values, so gradients go to the same places of a
//! vector of equal length. Forward passes return new activations; backward passes receive `dy` (the gradient of the
//! loss with respect to the output) and add to `dx`. Where the vector of gradients is empty, nobody wants those of the
//! parameters: they are not computed, and the gradient of an image then has the same bits in every batch.

mod attention;
mod chain;
mod conv;
mod embedding;
mod norm;
mod resnet;
mod sampler;
mod transformer;

pub(crate) use attention::{Attention, AttentionShape};
pub(crate) use conv::{Conv, Linear, Place};
pub(crate) use embedding::Embedding;
pub(crate) use norm::{BatchNorm, Gradient, GroupNorm, RunningUpdate};
pub(crate) use resnet::{Conditioning, Embedded, EmbeddedGradient, Resnet, ResnetCommon, ResnetShape, Shortcut};
pub(crate) use sampler::{Downsample, Rescaling, Upsample};
pub(crate) use transformer::{Texts, Transformer, TransformerEnds, TransformerShape};

use std::ops::Range;

use tweedie_kernels::channels;

use crate::tensor::{Pool, Tensor};

/// Two neighbouring parts of the gradient vector, to be written at once.
fn pair<'a>(grads: &'a mut [f32], first: &Range<usize>, second: &Range<usize>) -> (&'a mut [f32], &'a mut [f32]) {
    debug_assert_eq!(first.end, second.start);
    grads[first.start..second.end].split_at_mut(first.len())
}

/// `[a, b]` along the channels.
pub(crate) fn concat(pool: &Pool, a: &Tensor, b: &Tensor) -> Tensor {
    assert_eq!([a.n, a.h, a.w], [b.n, b.h, b.w], "joining the channels of images of different sizes");
    let mut y = pool.tensor([a.n, a.h, a.w, a.c + b.c]);
    channels::concat(a.n * a.hw(), &a.data, a.c, &b.data, b.c, &mut y.data);
    y
}

/// The gradients of the two inputs of [`concat`], of which the first has `c_a` channels.
pub(crate) fn concat_backward(pool: &Pool, dy: &Tensor, c_a: usize) -> (Tensor, Tensor) {
    let [n, h, w, c] = dy.shape();
    let mut da = pool.tensor([n, h, w, c_a]);
    let mut db = pool.tensor([n, h, w, c - c_a]);
    for (dx, offset) in [(&mut da, 0), (&mut db, c_a)] {
        copy_channels(&dy.data, c, offset, &mut dx.data, dx.c);
    }
    (da, db)
}

/// `to[r] = from[r][offset..offset + width]` for every row `r`.
pub(crate) fn copy_channels(from: &[f32], c: usize, offset: usize, to: &mut [f32], width: usize) {
    use rayon::prelude::*;
    // Rows are short; a task takes enough of them to be worth waking a thread for.
    let rows = (1usize << 14).div_ceil(width.max(1));
    to.par_chunks_mut(rows * width).zip(from.par_chunks(rows * c)).for_each(|(to, from)| {
        for (to, from) in to.chunks_exact_mut(width).zip(from.chunks_exact(c)) {
            to.copy_from_slice(&from[offset..offset + width]);
        }
    });
}
