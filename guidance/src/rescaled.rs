//! Rescaled guidance (FORMULAS 5.5; Lin 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed", eq. 15-16).
//!
//! Guidance with a large scale makes the output larger than the network was trained to make it, and images too contrasted. With
//! the standard deviations of the conditional and of the guided output over all values of a sample,
//!
//! ```text
//! o_rescaled = o_guided std(o_plain) / std(o_guided)                 (15)
//! o          = phi o_rescaled + (1 - phi) o_guided                   (16)
//! ```
//!
//! A factor is not an affine combination whose weights sum to 1, so in which prediction it is applied matters: to eps or to v it
//! is not the same. It is applied to what the *network* predicts, as in the paper (whose model predicts v) and in diffusers
//! (`rescale_noise_cfg` is called with the output of the network). With `x_0 = p x_t + q o` at a level, the output is
//! `(x_0 - p x_t) / q`, of which `q` falls out: the factor is that of `x_0 - p x_t`.

use ndarray::{Array4, ArrayView3, ArrayView4, Axis, Zip};
use tweedie_denoiser::{Denoiser, DenoiserError, Estimate};
use tweedie_schedule::{Bridge, NoiseLevel};

use crate::{GuidanceError, Guide, Guided};

/// `phi plain / guided + 1 - phi`: the factor of a guided output, of the standard deviations of the plain output and of the
/// guided one; 1 where the guided output has none.
///
/// $$ \varphi \frac{\sigma_{pos}}{\sigma_{cfg}} + 1 - \varphi $$
///
/// FORMULAS 5.5. Verified by `rescaling_keeps_the_standard_deviation`.
pub fn rescale_factor(plain: f64, guided: f64, phi: f64) -> f64 {
    if guided == 0.0 { 1.0 } else { phi * plain / guided + 1.0 - phi }
}

/// A guided model whose output is given, by a share `phi`, the standard deviation of the conditional one.
#[derive(Clone, Debug)]
pub struct Rescaled<G> {
    inner: G,
    bridge: Bridge,
    phi: f64,
}

impl<G: Guide> Rescaled<G> {
    /// `inner` with its output rescaled; `bridge` is how the network is read, which says what it predicts. `phi` is 0 for no
    /// rescaling, 1 for the standard deviation of the conditional output; 0.7 in the paper.
    ///
    /// # Errors
    /// If `phi` lies outside [0, 1].
    ///
    /// FORMULAS 5.5. Verified by `rescaling_keeps_the_standard_deviation`. Verified by `rescaling_is_that_of_the_output`.
    pub fn new(inner: G, bridge: Bridge, phi: f64) -> Result<Self, GuidanceError> {
        if !(0.0..=1.0).contains(&phi) {
            let (operation, what) = ("guidance rescale", "phi");
            return Err(GuidanceError::Parameter { operation, what, expected: "in [0, 1]", found: phi });
        }
        Ok(Self { inner, bridge, phi })
    }
}

impl<G: Guide> Denoiser for Rescaled<G> {
    fn denoise(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Array4<f64>, DenoiserError> {
        Ok(self.estimate(x, level)?.x0)
    }

    fn estimate(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Estimate, DenoiserError> {
        if self.phi == 0.0 {
            return self.inner.estimate(x, level);
        }
        Ok(self.both(x, level)?.guided)
    }
}

impl<G: Guide> Guide for Rescaled<G> {
    fn plain(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Estimate, DenoiserError> {
        self.inner.plain(x, level)
    }

    fn both(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Guided, DenoiserError> {
        let mut both = self.inner.both(x, level)?;
        if self.phi == 0.0 {
            return Ok(both);
        }
        let of_x = self.bridge.at(level)?.to_x0.of_x;
        let samples = both.guided.x0.axis_iter_mut(Axis(0)).zip(both.plain.outer_iter()).zip(x.outer_iter());
        for ((mut guided, plain), x) in samples {
            let factor = rescale_factor(deviation(plain, x, of_x), deviation(guided.view(), x, of_x), self.phi);
            if factor != 1.0 {
                Zip::from(&mut guided).and(&x).for_each(|x0, &x| *x0 = of_x * x + factor * (*x0 - of_x * x));
            }
        }
        Ok(both)
    }
}

/// The standard deviation of `x0 - of_x x` over all values of a sample.
fn deviation(x0: ArrayView3<'_, f64>, x: ArrayView3<'_, f64>, of_x: f64) -> f64 {
    let count = x0.len().max(1) as f64;
    let output = || x0.iter().zip(&x).map(|(x0, x)| x0 - of_x * x);
    let mean = output().sum::<f64>() / count;
    (output().map(|o| (o - mean) * (o - mean)).sum::<f64>() / count).sqrt()
}
