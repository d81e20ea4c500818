//! Dynamic thresholding of a guided estimate (FORMULAS 5.5; Saharia 2022, Imagen, section 2.3).

use ndarray::{Array4, ArrayView4};
use tweedie_denoiser::{Denoiser, DenoiserError, Estimate, dynamic_threshold};
use tweedie_schedule::NoiseLevel;

use crate::GuidanceError;

/// A denoiser whose estimates of `x_0` are thresholded, see [`dynamic_threshold`].
///
/// It changes the estimate itself, from which a sampler derives everything else; the clip of a sampler may leave its eps as it
/// was. It stands outside all guidance.
#[derive(Clone, Debug)]
pub struct Thresholded<D> {
    inner: D,
    ratio: f64,
    max: f64,
}

impl<D: Denoiser> Thresholded<D> {
    /// `inner`, thresholded at the `ratio` quantile of `|x_0|`, but not above `max`, which may be infinite.
    ///
    /// # Errors
    /// If the ratio lies outside [0, 1], or the maximum is below 1.
    ///
    /// FORMULAS 5.5. Verified by `thresholding_leaves_the_usual_range_alone`.
    pub fn new(inner: D, ratio: f64, max: f64) -> Result<Self, GuidanceError> {
        let parameter = |what, expected, found| {
            Err(GuidanceError::Parameter { operation: "dynamic thresholding", what, expected, found })
        };
        if !(0.0..=1.0).contains(&ratio) {
            return parameter("the percentile", "in [0, 1]", ratio);
        }
        if max.is_nan() || max < 1.0 {
            return parameter("the maximum", "1 or more", max);
        }
        Ok(Self { inner, ratio, max })
    }
}

impl<D: Denoiser> Denoiser for Thresholded<D> {
    fn denoise(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Array4<f64>, DenoiserError> {
        Ok(self.estimate(x, level)?.x0)
    }

    fn estimate(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Estimate, DenoiserError> {
        let mut estimate = self.inner.estimate(x, level)?;
        if let Some(value) = estimate.x0.iter().find(|v| !v.is_finite()) {
            return Err(DenoiserError::Shape {
                operation: "dynamic thresholding",
                what: "every value of the estimate of x0",
                expected: "finite".to_owned(),
                found: value.to_string(),
                remedy: "the model may be damaged, or the guidance too strong",
            });
        }
        dynamic_threshold(&mut estimate.x0, self.ratio, self.max);
        Ok(estimate)
    }
}
