//! How likely a diffusion model finds given data, in nats and in bits per dimension; and whether what it draws has the
//! distribution of given data.
//!
//! - [`vlb`]: the variational bound of Ho, Jain & Abbeel (2020), term by term, as an exact sum over the steps or from a
//!   few random steps of each sample.
//! - [`ode`]: the log-density under the probability-flow ODE of Song et al. (2021), with an exact trace or Hutchinson's.
//! - [`decoder`]: the probability of 8-bit pixels under a Gaussian, cut into 256 bins.
//! - [`two_sample()`]: Smirnov's test along random directions, with a rate of false alarms that can be stated.
//!
//! - [`frechet`](mod@frechet), [`kernel`], [`manifold`], [`classified`]: the metrics of images, from the features and logits of
//!   any network: Fréchet and kernel distance, precision and recall, density and coverage, inception score, accuracy.
//!
//! All of the likelihoods need a denoiser and nothing else: a network behind its bridge, a guided model or an exact oracle.
#![forbid(unsafe_code)]

pub mod classified;
pub mod decoder;
mod error;
mod estimate;
mod features;
pub mod frechet;
pub mod kernel;
pub mod manifold;
pub mod ode;
mod share;
pub mod two_sample;
mod variance;
pub mod vlb;

pub use classified::{Confusion, InceptionScore, inception_score};
pub use decoder::{Decoder, byte_bins};
pub use error::EvalError;
pub use estimate::{Estimate, bits_per_dim};
pub use features::Z95;
pub use frechet::{Extrapolated, Factored, Frechet, Moments, frechet, frechet_error, frechet_extrapolated};
pub use kernel::{Kid, KidOptions, kid, mmd2};
pub use manifold::{Manifold, Prdc, prdc};
pub use share::Share;
pub use two_sample::{TwoSample, two_sample};
pub use variance::{ReverseVariance, exact_gaussian_variance};
pub use vlb::{Bound, Steps};
