//! Autoguidance (FORMULAS 5.5; Karras 2024, "Guiding a Diffusion Model with a Bad Version of Itself").
//!
//! `D_1 + (w - 1) (D_1 - D_0)`: a model is guided away from a weaker version of itself, smaller or trained for less long, under
//! the *same* condition. Unlike guidance away from the unconditional model it does not narrow the distribution towards what is
//! typical of the condition.
//!
//! Beside other guidance its term is added: `c + (g - 1) (c - u) + (w - 1) (c - D_0)` with classifier-free guidance, in which
//! `c = D_1`.

use ndarray::{Array4, ArrayView4, Zip};
use tweedie_denoiser::{Denoiser, DenoiserError, Estimate};
use tweedie_schedule::NoiseLevel;

use crate::error::finite;
use crate::{GuidanceError, Guide, Guided};

/// `(scale - 1) (strong - weak)`: what autoguidance adds to an estimate of `x_0`, whose plain value is `strong`.
///
/// $$ D_1 + (w - 1) (D_1 - D_0) $$
///
/// FORMULAS 5.5. Verified by `autoguidance_moves_away_from_the_weak_model`.
pub fn autoguidance(strong: f64, weak: f64, scale: f64) -> f64 {
    (scale - 1.0) * (strong - weak)
}

/// A guided model that is also guided away from a weaker one.
#[derive(Clone, Debug)]
pub struct Autoguided<G, W> {
    strong: G,
    weak: W,
    scale: f64,
}

impl<G: Guide, W: Denoiser> Autoguided<G, W> {
    /// `strong` guided away from `weak`, which is asked under the same condition, with `scale`: 1 is no guidance.
    ///
    /// # Errors
    /// If the scale is not finite.
    ///
    /// FORMULAS 5.5. Verified by `autoguidance_by_itself_changes_nothing`.
    pub fn new(strong: G, weak: W, scale: f64) -> Result<Self, GuidanceError> {
        Ok(Self { strong, weak, scale: finite("autoguidance", scale, 1.0)? })
    }
}

impl<G: Guide, W: Denoiser> Denoiser for Autoguided<G, W> {
    fn denoise(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Array4<f64>, DenoiserError> {
        Ok(self.estimate(x, level)?.x0)
    }

    /// The weak model is not called if the scale is exactly 1. A learned variance is that of the strong one.
    fn estimate(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Estimate, DenoiserError> {
        if self.scale == 1.0 {
            return self.strong.estimate(x, level);
        }
        Ok(self.both(x, level)?.guided)
    }
}

impl<G: Guide, W: Denoiser> Guide for Autoguided<G, W> {
    fn plain(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Estimate, DenoiserError> {
        self.strong.plain(x, level)
    }

    fn both(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Guided, DenoiserError> {
        let mut both = self.strong.both(x, level)?;
        if self.scale == 1.0 {
            return Ok(both);
        }
        let weak = self.weak.denoise(x, level)?;
        if weak.dim() != both.plain.dim() {
            return Err(DenoiserError::Shape {
                operation: "autoguidance",
                what: "the estimate of the weaker model",
                expected: format!("{:?}", both.plain.shape()),
                found: format!("{:?}", weak.shape()),
                remedy: "guide by a model of images of the same shape",
            });
        }
        Zip::from(&mut both.guided.x0)
            .and(&both.plain)
            .and(&weak)
            .for_each(|x0, &strong, &weak| *x0 += autoguidance(strong, weak, self.scale));
        Ok(both)
    }
}
