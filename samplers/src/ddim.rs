//! DDIM (FORMULAS 6.1; Song, Meng & Ermon 2021, eq. 12).
//!
//! `x_p = sqrt(abar_p) x_0 + sqrt(1 - abar_p - s^2) eps + s z`, `s = eta sqrt(b~)`.
//!
//! `eps` is that of the denoiser's own estimate: clipping `x_0` leaves it alone, as in diffusers, unless it is asked to be
//! derived anew (`use_clipped_model_output`).
//!
//! With `eta = 0` the step is one of Euler's method for the probability-flow ODE (section 4.3 of the paper), which can be
//! followed upwards too: [`ddim_encode`].

use ndarray::{Array4, ArrayView4, Zip};
use tweedie_denoiser::{Denoiser, SeededNoise};
use tweedie_schedule::ddim::ddim_coefs;
use tweedie_schedule::{GridMove, LevelGrid, Prediction, prediction};

use crate::{Advance, Clip, Move, SamplerError, Solver};

/// The DDIM sampler.
///
/// $$ x_p = \sqrt{\bar\alpha_p} \hat x_0 + \sqrt{1 - \bar\alpha_p - s^2} \hat\varepsilon + s z $$
///
/// Verified by `ddim_with_eta_1_is_ddpm`. Verified by `ddim_converges_to_the_ode_at_first_order`.
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

/// The state at the first step of a grid that deterministic DDIM takes to `x`: the moves of the grid made upwards, from the
/// level of its final step (Song, Meng & Ermon 2021, section 5.4; called DDIM inversion).
///
/// `x_u = sqrt(abar_u) x_0 + sqrt(1 - abar_u) eps` for a move from level `l` up to level `u`, where `x_0` is the denoiser's
/// estimate at `l` and `eps` that of the same estimate. Decoding takes them at `u`, so that decoding what was encoded
/// returns `x` only up to an error of first order in the step.
///
/// `x` is `[N, C, H, W]`: data if the grid ends there, where no noise is to be estimated, and then the first `eps` is
/// taken at the upper level from the state `sqrt(abar_u) x`.
///
/// # Errors
/// If the denoiser fails, changes the shape, or returns a NaN or an infinity.
///
/// Verified by `ddim_encodes_and_decodes`. Verified by `ddim_encodes_gaussians`.
/// Verified by `encoding_starts_from_the_data`.
pub fn ddim_encode(
    denoiser: &dyn Denoiser,
    grid: &LevelGrid,
    x: ArrayView4<'_, f64>,
) -> Result<Array4<f64>, SamplerError> {
    // Nothing is drawn: the moves are deterministic.
    let noise = SeededNoise::new(0);
    let moves: Vec<GridMove> = grid.moves().iter().copied().filter(|on| on.from != on.to).collect();
    let total = moves.len();
    let mut x = x.to_owned();
    for (position, down) in moves.iter().rev().enumerate() {
        let (from, to) = (down.to, down.from);
        let at = GridMove { from, to, step: down.step };
        let on = Move { denoiser, noise: &noise, at, position, total, draws: 0 };
        if from.sigma() == 0.0 {
            let state = &x * to.alpha();
            let x0 = on.denoise(state.view(), to)?;
            let to_eps = prediction::convert(Prediction::X0, Prediction::Eps, to, None)?;
            Zip::from(&mut x).and(&state).and(&x0).for_each(|x, &state, &x0| {
                *x = to.alpha() * *x + to.sigma() * to_eps.apply(state, x0);
            });
        } else {
            let x0 = on.denoise(x.view(), from)?;
            let to_eps = prediction::convert(Prediction::X0, Prediction::Eps, from, None)?;
            Zip::from(&mut x).and(&x0).for_each(|x, &x0| *x = to.alpha() * x0 + to.sigma() * to_eps.apply(*x, x0));
        }
        on.check_finite("the state", x.view())?;
    }
    Ok(x)
}
