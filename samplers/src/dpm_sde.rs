//! SDE-DPM-Solver++ as a multistep method of two estimates (FORMULAS 6.2; Lu 2022b, section 5 and appendix A.4).
//!
//! The reverse SDE `dx = [f x - g² score] dt + g dw` solved as DPM-Solver++ solves the ODE, with `lambda = ln(alpha / sigma)`,
//! `h = lambda' - lambda` and `E = 1 - e^(-2 h)`:
//!
//! ```text
//! order 1:  x' = sigma' / sigma e^-h x + alpha' E m_0 + sigma' sqrt(E) z              (ancestral, small variance)
//! order 2:  x' = sigma' / sigma e^-h x + alpha' E [m_0 + u / 2] + sigma' sqrt(E) z,   u = (m_0 - m_1) / r_0
//! ```

use ndarray::ArrayView4;

use crate::dpm::{Weights, half_log_snr, midpoint};
use crate::history::History;
use crate::{Advance, Clip, Move, SamplerError, Solver};

/// How many estimates the formula uses.
const ESTIMATES: usize = 2;

/// SDE-DPM-Solver++ 2M (the midpoint form): one call and one draw of noise a step.
///
/// The order is lowered at both ends as in [`crate::DpmPlusPlus`]; a move to `sigma = 0` adds no noise.
///
/// Verified by `first_sde_step_is_ancestral`. Verified by `dpm_sde_step_by_hand`.
/// Verified by `stochastic_samplers_draw_the_mixture`. Verified by `weak_orders_on_a_gaussian`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DpmPlusPlusSde {
    clip: Clip,
    history: History,
}

impl DpmPlusPlusSde {
    /// The solver, which clips `x_0` as told.
    pub fn new(clip: Clip) -> Self {
        Self { clip, history: History::default() }
    }
}

impl Solver for DpmPlusPlusSde {
    fn name(&self) -> &'static str {
        "dpm++2m-sde"
    }

    fn begin(&mut self) {
        self.history.clear();
    }

    fn step(&mut self, x: ArrayView4<'_, f64>, on: &mut Move<'_>) -> Result<Advance, SamplerError> {
        let mut x0 = on.denoise(x, on.from())?;
        self.clip.apply(&mut x0);
        self.history.push(half_log_snr(on.from()), x0.clone(), ESTIMATES);
        let order = self.history.order(ESTIMATES, on);
        let h = half_log_snr(on.to()) - half_log_snr(on.from());
        let e = -(-2.0 * h).exp_m1();
        let of_x0 = match self.history.lambdas()[..order] {
            [now, before] => midpoint(e, (now - before) / h),
            _ => vec![e],
        };
        let weights = Weights {
            of_x: on.to().sigma() / on.from().sigma() * (-h).exp(),
            of_x0: of_x0.into_iter().map(|w| on.to().alpha() * w).collect(),
        };
        let mean = weights.combine(x, &self.history);
        Ok(Advance { x: on.add_noise(mean, on.to().sigma() * e.sqrt())?, x0 })
    }
}
