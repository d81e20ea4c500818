//! The midpoint method in the logarithm of the noise, and its ancestral form (Karras 2022, appendix; Crowson's k-diffusion, where
//! they are `dpm_2` and `dpm_2_ancestral`). With Euler's steps in sigma, which are exact for a constant `eps`, the first is
//! DPM-Solver-2 (Lu 2022, Algorithm 1) with `r = 1/2`.
//!
//! With `y = x / alpha`, `s = sigma / alpha` and the slope `d`, which is the estimate of `eps`:
//!
//! ```text
//! y~ = y + (s~ - s) d(y, s)          s~ = sqrt(s s')
//! y' = y + (s' - s) d(y~, s~)
//! ```
//!
//! The ancestral form goes down to `down = s'² / s`, with half way `s~ = sqrt(s down) = s'`, and adds `up z`, `up² = s'² - down²`.
//! In variance-preserving terms a step from `s` to `s'` along the second slope is `alpha' x_0 + sigma' d~ + alpha' s (d - d~)`, with the
//! first slope and its `x_0`.

use ndarray::{Array4, ArrayView4, Zip};
use tweedie_schedule::{NoiseLevel, Prediction, prediction};

use crate::heun::magnifies;
use crate::{Advance, Clip, Compat, Euler, Move, SamplerError, Solver};

/// How far above the end of a move the ancestral form asks the network, relative to its sigma. It asks twice at what is one level:
/// half way of one move, and at the start of the next. Diffusers tells the network the two apart where it rounds the timesteps
/// of a grid, and not those half way; so they are two levels here, too.
const APART: f64 = 1e-12;

/// The midpoint method: order 2, two calls a step but one in the last.
///
/// $$ \tilde y = y + (\sqrt{s s'} - s) d(y, s), \quad y' = y + (s' - s) d(\tilde y, \sqrt{s s'}) $$
///
/// The estimate of `x_0` that an observer sees is that of the second call.
///
/// Verified by `kdpm2_is_the_midpoint_rule`. Verified by `orders_of_the_sigma_family`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Kdpm2 {
    /// Whether long steps from hardly any signal are of two calls, too, as in diffusers ([`crate::Heun`]).
    pub compat: Compat,
}

impl Solver for Kdpm2 {
    fn name(&self) -> &'static str {
        "kdpm2"
    }

    fn step(&mut self, x: ArrayView4<'_, f64>, on: &mut Move<'_>) -> Result<Advance, SamplerError> {
        let (from, to) = (on.from(), on.to());
        if to.sigma() == 0.0 || magnifies(from, to, self.compat) {
            return Euler::default().step(x, on);
        }
        let middle = NoiseLevel::from_edm_sigma((from.edm_sigma() * to.edm_sigma()).sqrt())?;
        let (x, x0) = midpoint(x, on, middle, to.sigma())?;
        Ok(Advance { x, x0 })
    }
}

/// The ancestral form of the midpoint method: two calls and one draw of noise a step, one call in the last.
///
/// $$ y' = y + (s'^2 / s - s) d(\tilde y, s') + s' \sqrt{1 - s'^2 / s^2}\\, z $$
///
/// Verified by `kdpm2_ancestral_step_by_hand`. Verified by `churned_samplers_draw_the_mixture`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Kdpm2Ancestral {
    /// As in [`Kdpm2`].
    pub compat: Compat,
}

impl Solver for Kdpm2Ancestral {
    fn name(&self) -> &'static str {
        "kdpm2-ancestral"
    }

    fn step(&mut self, x: ArrayView4<'_, f64>, on: &mut Move<'_>) -> Result<Advance, SamplerError> {
        let (from, to) = (on.from(), on.to());
        if to.sigma() == 0.0 || magnifies(from, to, self.compat) {
            return crate::EulerAncestral { clip: Clip::None }.step(x, on);
        }
        let middle = NoiseLevel::from_edm_sigma(to.edm_sigma() * (1.0 + APART))?;
        let ratio = to.edm_sigma() / from.edm_sigma();
        // alpha' down = sigma' s' / s.
        let (x, x0) = midpoint(x, on, middle, to.sigma() * ratio)?;
        Ok(Advance { x: on.add_noise(x, to.sigma() * ((1.0 - ratio) * (1.0 + ratio)).sqrt())?, x0 })
    }
}

/// The state along the slope at a level between, to the signal of the move's end and noise of the scale `sigma`; and the estimate
/// of `x_0` there.
fn midpoint(
    x: ArrayView4<'_, f64>,
    on: &Move<'_>,
    middle: NoiseLevel,
    sigma: f64,
) -> Result<(Array4<f64>, Array4<f64>), SamplerError> {
    let (from, alpha) = (on.from(), on.to().alpha());
    let x0 = on.denoise(x, from)?;
    let first = prediction::convert(Prediction::X0, Prediction::Eps, from, None)?;
    let half = Zip::from(x).and(&x0).map_collect(|&x, &x0| middle.alpha() * x0 + middle.sigma() * first.apply(x, x0));
    let second_x0 = on.denoise(half.view(), middle)?;
    let second = prediction::convert(Prediction::X0, Prediction::Eps, middle, None)?;
    let of_difference = alpha * from.edm_sigma();
    let next = Zip::from(x).and(&x0).and(&half).and(&second_x0).map_collect(|&x, &x0, &half, &second_x0| {
        let (d, then) = (first.apply(x, x0), second.apply(half, second_x0));
        alpha * x0 + sigma * then + of_difference * (d - then)
    });
    Ok((next, second_x0))
}
