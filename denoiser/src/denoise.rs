use ndarray::{Array4, ArrayView4};
use tweedie_schedule::NoiseLevel;

use crate::{Condition, DenoiserError};

/// What a model says of a noised sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Estimate {
    /// The estimate of `x_0`, `[N, C, H, W]`.
    pub x0: Array4<f64>,
    /// Where the model has learned the variance of the reverse step: the fraction `v` of
    /// [`VarianceRange::log_variance`](tweedie_schedule::VarianceRange::log_variance) for every value, of the shape of `x0`.
    pub fraction: Option<Array4<f64>>,
    /// Where a classifier guides by the mean of the reverse step `N(mean, sigma_q^2 I)`: its scaled gradient
    /// `gamma grad ln p(y | x_t)`, of the shape of `x0`. The mean becomes `mean + sigma_q^2 tilt` (FORMULAS 5.3; Dhariwal &
    /// Nichol 2021, Algorithm 1).
    pub tilt: Option<Array4<f64>>,
}

impl From<Array4<f64>> for Estimate {
    /// An estimate of `x_0` alone.
    fn from(x0: Array4<f64>) -> Self {
        Self { x0, fraction: None, tilt: None }
    }
}

/// A function of `(x_t, noise level)` that estimates `x_0`: all that a sampler knows of a model.
pub trait Denoiser {
    /// The estimate of `x_0`, of the shape of `x` (`[N, C, H, W]`); exact denoisers return `E[x_0 | x_t]`.
    ///
    /// # Errors
    /// If the model cannot take the shape or the level.
    fn denoise(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Array4<f64>, DenoiserError>;

    /// As [`Denoiser::denoise`], with the learned variance where the model has one.
    ///
    /// # Errors
    /// As [`Denoiser::denoise`].
    fn estimate(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Estimate, DenoiserError> {
        self.denoise(x, level).map(Estimate::from)
    }
}

/// A denoiser that also takes a condition, one entry per sample.
pub trait ConditionalDenoiser {
    /// The estimate of `x_0` under `condition`, of the shape of `x` (`[N, C, H, W]`).
    ///
    /// # Errors
    /// If the model cannot take the shape, the level or the condition, or the condition has not N entries.
    fn denoise_with(
        &self,
        x: ArrayView4<'_, f64>,
        level: NoiseLevel,
        condition: &Condition,
    ) -> Result<Array4<f64>, DenoiserError>;

    /// As [`ConditionalDenoiser::denoise_with`], with the learned variance where the model has one.
    ///
    /// # Errors
    /// As [`ConditionalDenoiser::denoise_with`].
    fn estimate_with(
        &self,
        x: ArrayView4<'_, f64>,
        level: NoiseLevel,
        condition: &Condition,
    ) -> Result<Estimate, DenoiserError> {
        self.denoise_with(x, level, condition).map(Estimate::from)
    }
}

macro_rules! forward_to_inner {
    ($($pointer:ty),*) => {$(
        impl<D: Denoiser + ?Sized> Denoiser for $pointer {
            fn denoise(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Array4<f64>, DenoiserError> {
                (**self).denoise(x, level)
            }

            fn estimate(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Estimate, DenoiserError> {
                (**self).estimate(x, level)
            }
        }

        impl<D: ConditionalDenoiser + ?Sized> ConditionalDenoiser for $pointer {
            fn denoise_with(
                &self,
                x: ArrayView4<'_, f64>,
                level: NoiseLevel,
                condition: &Condition,
            ) -> Result<Array4<f64>, DenoiserError> {
                (**self).denoise_with(x, level, condition)
            }

            fn estimate_with(
                &self,
                x: ArrayView4<'_, f64>,
                level: NoiseLevel,
                condition: &Condition,
            ) -> Result<Estimate, DenoiserError> {
                (**self).estimate_with(x, level, condition)
            }
        }
    )*};
}

forward_to_inner!(&D, Box<D>, std::sync::Arc<D>);

/// A conditional denoiser under one fixed condition.
#[derive(Clone, Debug)]
pub struct Conditioned<M> {
    model: M,
    condition: Condition,
}

impl<M> Conditioned<M> {
    /// `model` under `condition`, whose length is the batch size of every call.
    pub fn new(model: M, condition: Condition) -> Self {
        Self { model, condition }
    }
}

impl<M: ConditionalDenoiser> Denoiser for Conditioned<M> {
    fn denoise(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Array4<f64>, DenoiserError> {
        self.model.denoise_with(x, level, &self.condition)
    }

    fn estimate(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Estimate, DenoiserError> {
        self.model.estimate_with(x, level, &self.condition)
    }
}

/// Checks that a condition has one entry for each sample of a batch.
pub(crate) fn check_batch(batch: usize, condition: &Condition) -> Result<(), DenoiserError> {
    if condition.len() == batch {
        return Ok(());
    }
    Err(DenoiserError::Condition {
        operation: "denoise",
        message: format!(
            "the condition has {} entries for a batch of {batch}; pass one entry per sample, None for no condition",
            condition.len()
        ),
    })
}
