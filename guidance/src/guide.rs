//! What every guided model says: its plain estimate and the guided one.

use ndarray::{Array4, ArrayView4};
use tweedie_denoiser::{ConditionalDenoiser, Conditioned, Denoiser, DenoiserError, Estimate};
use tweedie_schedule::NoiseLevel;

/// An estimate with guidance and without.
#[derive(Clone, Debug, PartialEq)]
pub struct Guided {
    /// The estimate of `x_0` under the condition alone, `[N, C, H, W]`.
    pub plain: Array4<f64>,
    /// The guided estimate.
    pub guided: Estimate,
}

/// A denoiser that moves a plain estimate, that of the model under its condition, in some direction.
///
/// As a [`Denoiser`] it returns the guided estimate. Methods that need the plain one too ask for both, and each model is called
/// once all the same.
pub trait Guide: Denoiser {
    /// The estimate under the condition alone, of the shape of `x` (`[N, C, H, W]`), without the cost of guidance.
    ///
    /// # Errors
    /// As the model.
    fn plain(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Estimate, DenoiserError>;

    /// Both estimates.
    ///
    /// # Errors
    /// As the models and classifiers that it takes.
    fn both(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Guided, DenoiserError>;
}

impl<M: ConditionalDenoiser> Guide for Conditioned<M> {
    fn plain(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Estimate, DenoiserError> {
        self.estimate(x, level)
    }

    /// No guidance at all: both are the same.
    fn both(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Guided, DenoiserError> {
        let guided = self.estimate(x, level)?;
        Ok(Guided { plain: guided.x0.clone(), guided })
    }
}

macro_rules! forward_to_inner {
    ($($pointer:ty),*) => {$(
        impl<G: Guide + ?Sized> Guide for $pointer {
            fn plain(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Estimate, DenoiserError> {
                (**self).plain(x, level)
            }

            fn both(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Guided, DenoiserError> {
                (**self).both(x, level)
            }
        }
    )*};
}

forward_to_inner!(&G, Box<G>);
