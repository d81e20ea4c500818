//! Kernels of convolutional diffusion networks: forward and backward, on channels-last f32 slices.
//!
//! Every operation is one file with its mathematics, a dimensions struct, the forward pass and the backward pass
//! beside it. Outputs are overwritten, gradients are accumulated. Work is divided among threads by shape alone and
//! reductions have a fixed order, so results have the same bits for any number of threads.

pub mod act;
pub mod attention;
mod cache;
pub mod channels;
pub mod conv;
pub mod dropout;
pub mod embedding;
mod gemm;
mod lanes;
pub mod map;
mod memory;
pub mod norm;
mod panels;
mod par;
pub mod pool;
pub mod resample;
pub mod rescale;
pub mod simd;
pub mod sinusoid;
#[cfg(test)]
mod testing;
pub mod weight;

pub use memory::{Aligned, Floats};
pub use par::in_pool;
