//! Guidance for diffusion models: every guided model is again a [`Denoiser`](tweedie_denoiser::Denoiser), and enters any
//! sampler unchanged.
//!
//! Each method is a type that wraps a guided model in another one. With `c` the estimate of `x_0` under the condition and `u` the
//! one without it or under a negative condition, `D_0` that of a weaker model under the condition and
//! `g = grad ln p(y | x_t)` of a classifier, they are, in the order in which they are to be put around each other:
//!
//! | order | type | estimate of `x_0` | source |
//! |---|---|---|---|
//! | 1 | [`Cfg`] | `e = u + s (c - u)` | Ho & Salimans 2022, eq. 6 |
//! | 2 | [`Autoguided`] | `e + (w - 1) (c - D_0)` | Karras 2024 |
//! | 3 | [`ClassifierGuided`], of the score | `e + gamma sigma^2 / alpha g` | Dhariwal & Nichol 2021, Algorithm 2 |
//! | 4 | [`Rescaled`] | `p x_t + k (e - p x_t)`, `k = phi std(o_c) / std(o_e) + 1 - phi` | Lin 2023, eq. 15-16 |
//! | 5 | [`Limited`] | `e` where `sigma` is in `(lo, hi]`, else `c` | Kynkaanniemi 2024 |
//! | 6 | [`Thresholded`] | `clip(e, -s, s) / s`, `s = max(1, quantile)` | Saharia 2022, section 2.3 |
//! | 7 | the sampler's own clip | | |
//! | 8 | [`ClassifierGuided`], of the mean | the reverse step's `mean + gamma sigma_q^2 g` | Dhariwal & Nichol 2021, Algorithm 1 |
//!
//! Every `e` is what the line before left. Each may be missing, and any [`Guide`] may stand inside any other: 1 to 3 add their
//! terms, so that their order is of no consequence but for rounding. Rescaling compares all that they did with `c`. Outside the
//! interval nothing is done at all, but thresholding, which limits `c` as well. The last one is done by the sampler, which has
//! the variance; it is put into the wrappers where 3 stands.
#![forbid(unsafe_code)]

mod autoguided;
mod cfg;
mod classifier;
mod error;
mod guide;
mod interval;
mod rescaled;
mod thresholded;

pub use autoguided::{Autoguided, autoguidance};
pub use cfg::{Cfg, guided, scale_from_weight};
pub use classifier::{ClassifierForm, ClassifierGuided, guided_eps, guided_mean, guided_score, implicit_gradient};
pub use error::GuidanceError;
pub use guide::{Guide, Guided};
pub use interval::Limited;
pub use rescaled::{Rescaled, rescale_factor};
pub use thresholded::Thresholded;
