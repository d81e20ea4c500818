//! Guidance in a limited interval of noise levels (FORMULAS 5.5; Kynkaanniemi 2024, "Applying Guidance in a Limited Interval
//! Improves Sample and Distribution Quality in Diffusion Models", section 3).
//!
//! Guided for `sigma` in `(lo, hi]`, the conditional model alone elsewhere, with `sigma = sqrt((1 - abar) / abar)` that of EDM.
//! Above, guidance throws away variety before anything is decided; below, it changes nothing that can be seen.

use ndarray::{Array4, ArrayView4};
use tweedie_denoiser::{Denoiser, DenoiserError, Estimate};
use tweedie_schedule::NoiseLevel;

use crate::{GuidanceError, Guide, Guided};

/// A guided model whose guidance is limited to an interval of noise levels; at the others it costs what the plain model does.
#[derive(Clone, Debug)]
pub struct Limited<G> {
    inner: G,
    low: f64,
    high: f64,
}

impl<G: Guide> Limited<G> {
    /// `inner`, guided where the EDM sigma lies in `(low, high]`.
    ///
    /// # Errors
    /// Unless `0 <= low < high`; `high` may be infinite.
    ///
    /// FORMULAS 5.5. Verified by `outside_the_interval_is_the_conditional_model`.
    pub fn new(inner: G, low: f64, high: f64) -> Result<Self, GuidanceError> {
        if !(low >= 0.0 && low < high) {
            return Err(GuidanceError::Interval { low, high });
        }
        Ok(Self { inner, low, high })
    }

    /// Whether it is guided at a level.
    ///
    /// FORMULAS 5.5. Verified by `outside_the_interval_is_the_conditional_model`.
    pub fn guides(&self, level: NoiseLevel) -> bool {
        let sigma = level.edm_sigma();
        self.low < sigma && sigma <= self.high
    }
}

impl<G: Guide> Denoiser for Limited<G> {
    fn denoise(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Array4<f64>, DenoiserError> {
        Ok(self.estimate(x, level)?.x0)
    }

    fn estimate(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Estimate, DenoiserError> {
        if self.guides(level) { self.inner.estimate(x, level) } else { self.inner.plain(x, level) }
    }
}

impl<G: Guide> Guide for Limited<G> {
    fn plain(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Estimate, DenoiserError> {
        self.inner.plain(x, level)
    }

    fn both(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Guided, DenoiserError> {
        if self.guides(level) {
            return self.inner.both(x, level);
        }
        let guided = self.inner.plain(x, level)?;
        Ok(Guided { plain: guided.x0.clone(), guided })
    }
}
