//! Euler's method and its ancestral form (FORMULAS 6.2; Karras 2022, section 3; Crowson's k-diffusion for the ancestral step).
//!
//! In the variance-exploding variable `y = x / alpha` with the noise `s = sigma / alpha` the probability-flow ODE is
//! `dy/ds = (y - x_0(y, s)) / s`, and a step from `s` to `s'` is
//!
//! ```text
//! Euler:      y' = y + (s' - s) (y - x_0) / s
//! ancestral:  y' = y + (down - s) (y - x_0) / s + up z,   up² = s'² (s² - s'²) / s²,   down² = s'² - up², down = s'² / s
//! ```
//!
//! Since `(y - x_0) / s` is `eps`, both are steps of DDIM in other variables: the first with `eta = 0`, the second with
//! `eta = 1`, which is also ancestral sampling with the small variance. So they are carried out by [`Ddim`], and need no
//! division by `alpha`; tests compare them with the equations above. As everywhere in the variable `y`, the slope is that of
//! the clipped estimate, where it is clipped at all.

use ndarray::ArrayView4;

use crate::{Advance, Churn, Clip, Ddim, Move, SamplerError, Solver};

/// Euler's method for the probability-flow ODE, `y' = y + (s' - s) (y - x_0) / s`: order 1, one call a step.
///
/// With noise it is Algorithm 2 of Karras 2022 without its second call.
///
/// Verified by `euler_is_the_edm_step_and_ddim`. Verified by `orders_on_a_mixture`.
/// Verified by `churned_samplers_draw_the_mixture`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Euler {
    /// Post-processing of the estimate of `x_0`.
    pub clip: Clip,
    /// Noise before each move.
    pub churn: Churn,
}

impl Solver for Euler {
    fn name(&self) -> &'static str {
        "euler"
    }

    fn step(&mut self, x: ArrayView4<'_, f64>, on: &mut Move<'_>) -> Result<Advance, SamplerError> {
        let x = self.churn.start(x, on)?;
        edm_step(self.clip, 0.0, x.view(), on)
    }
}

/// The ancestral form of Euler's method, `y' = y + (down - s) (y - x_0) / s + up z`: one call and one draw of noise a step.
///
/// Verified by `euler_ancestral_is_the_edm_step_and_ddpm`. Verified by `stochastic_samplers_draw_the_mixture`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EulerAncestral {
    /// Post-processing of the estimate of `x_0`.
    pub clip: Clip,
}

impl Solver for EulerAncestral {
    fn name(&self) -> &'static str {
        "euler-ancestral"
    }

    fn step(&mut self, x: ArrayView4<'_, f64>, on: &mut Move<'_>) -> Result<Advance, SamplerError> {
        edm_step(self.clip, 1.0, x, on)
    }
}

/// The step in the variable `y`, where `up` is `eta` times that of the ancestral one.
fn edm_step(clip: Clip, eta: f64, x: ArrayView4<'_, f64>, on: &mut Move<'_>) -> Result<Advance, SamplerError> {
    Ddim { eta, clip, use_clipped_model_output: true }.step(x, on)
}
