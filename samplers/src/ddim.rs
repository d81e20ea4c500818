//! DDIM (FORMULAS 6.1; Song, Meng & Ermon 2021, eq. 12).
//!
//! `x_p = sqrt(abar_p) x_0 + sqrt(1 - abar_p - s^2) eps + s z`, `s = eta sqrt(b~)`.
//!
//! `eps` is that of the denoiser's own estimate: clipping `x_0` leaves it alone, as in diffusers, unless it is asked to be
//! derived anew (`use_clipped_model_output`).

use ndarray::{ArrayView4, Zip};
use tweedie_schedule::ddim::ddim_coefs;
use tweedie_schedule::{Prediction, prediction};

use crate::{Advance, Clip, Move, SamplerError, Solver};

/// The DDIM sampler.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Ddim {
    /// 0 is deterministic, 1 is ancestral.
    pub eta: f64,
    /// Post-processing of the estimate of `x_0`.
    pub clip: Clip,
    /// Whether `eps` is derived from the clipped `x_0`.
    pub use_clipped_model_output: bool,
}

impl Solver for Ddim {
    fn name(&self) -> &'static str {
        "ddim"
    }

    fn step(&mut self, x: ArrayView4<'_, f64>, on: &mut Move<'_>) -> Result<Advance, SamplerError> {
        let coefs = ddim_coefs(on.from(), on.to(), self.eta)?;
        let to_eps = prediction::convert(Prediction::X0, Prediction::Eps, on.from(), None)?;
        let raw = on.denoise(x, on.from())?;
        let mut x0 = raw.clone();
        self.clip.apply(&mut x0);
        let for_eps = if self.use_clipped_model_output { &x0 } else { &raw };
        let mean = Zip::from(x)
            .and(&x0)
            .and(for_eps)
            .map_collect(|&x, &x0, &e| coefs.of_x0 * x0 + coefs.of_eps * to_eps.apply(x, e));
        Ok(Advance { x: on.add_noise(mean, coefs.of_noise)?, x0 })
    }
}
