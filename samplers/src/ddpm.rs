//! Ancestral sampling (FORMULAS 2.5; Ho 2020, Algorithm 2).
//!
//! `x_s = mu~(x_t, x_0) + sigma_q z`, with `mu~` the mean of `q(x_s | x_t, x_0)` for the levels `s < t` of the grid, and
//! `z = 0` at `t = 1`. `sigma_q^2` is `b~`, `b`, 1, or between the first two where the model says so
//! (Nichol & Dhariwal 2021, eq. 15).
//!
//! A grid whose last step is not 1 (trailing, or shifted) ends with a longer move, which adds noise as any other does, here
//! and in diffusers. `b~` is 0 in a move to `abar = 1`, so the small variance leaves the result alone on every grid; a
//! learned one, which takes its logarithm, has 1e-20 in its place, as in diffusers.
//!
//! A classifier may guide by the mean, which becomes `mu~ + gamma sigma_q^2 grad ln p(y | x_t)` after any clipping, in the last
//! step too, as in the authors' code (FORMULAS 5.3; Dhariwal & Nichol 2021, Algorithm 1).

use ndarray::{ArrayView4, Zip};
use tweedie_denoiser::Estimate;
use tweedie_schedule::{Posterior, Variance};

use crate::{Advance, Clip, Move, SamplerError, Solver};

/// What stands for `b~ = 0` under a learned variance.
const LEAST: f64 = 1e-20;

/// The ancestral sampler of DDPM.
///
/// $$ x_{t-1} = \tilde\mu(x_t, \hat x_0) + \sigma_q z $$
///
/// FORMULAS 2.5, 5.3. Verified by `ddpm_draws_gaussian_data`. Verified by `a_learned_variance_is_interpolated_for_every_value`.
/// Verified by `ddim_with_eta_1_is_ddpm`. Verified by `a_tilt_moves_the_mean_by_the_variance`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Ddpm {
    /// `sigma_q^2` of the reverse step.
    pub variance: Variance,
    /// Post-processing of the estimate of `x_0`.
    pub clip: Clip,
}

impl Solver for Ddpm {
    fn name(&self) -> &'static str {
        "ddpm"
    }

    fn step(&mut self, x: ArrayView4<'_, f64>, on: &mut Move<'_>) -> Result<Advance, SamplerError> {
        let posterior = Posterior::between(on.to(), on.from())?;
        let Estimate { mut x0, fraction, tilt } = on.estimate(x, on.from())?;
        self.clip.apply(&mut x0);
        let mut mean = Zip::from(x).and(&x0).map_collect(|&x, &x0| posterior.mean(x, x0));
        if self.variance != Variance::LearnedRange {
            let variance = posterior.reverse_variance(self.variance)?;
            if let Some(tilt) = tilt {
                mean.scaled_add(variance, &tilt);
            }
            let scale = if on.step() == 1.0 { 0.0 } else { variance.sqrt() };
            return Ok(Advance { x: on.add_noise(mean, scale)?, x0 });
        }
        let fraction = fraction.ok_or(SamplerError::NoLearnedVariance)?;
        let mut range = posterior.variance_range();
        range.log_small = range.log_small.max(LEAST.ln());
        if let Some(tilt) = tilt {
            Zip::from(&mut mean).and(&fraction).and(&tilt).for_each(|m, &v, &g| *m += range.log_variance(v).exp() * g);
        }
        if on.step() == 1.0 {
            return Ok(Advance { x: mean, x0 });
        }
        let scales = fraction.mapv(|v| (0.5 * range.log_variance(v)).exp());
        Ok(Advance { x: on.add_scaled_noise(mean, scales.view())?, x0 })
    }
}
