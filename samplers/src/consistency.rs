//! Multistep consistency sampling (FORMULAS 6.3; Song 2023, Algorithm 1), and that of latent consistency models (Luo 2023,
//! Algorithm 3).
//!
//! A consistency function `f` takes a state to the data in one call. A move adds fresh noise to what it returns:
//!
//! ```text
//! x' = alpha' f(x) + sigma' z                                                  latent consistency models
//! y' = f(y) + sqrt(s'^2 - s_min^2) z,      y = x / alpha, s = sigma / alpha    consistency models
//! ```
//!
//! The latter's `f` is the network with its preconditioning, which the denoiser knows; the former's is made here of an estimate
//! `x_0`: `f = c_skip x + c_out x_0`, `c_skip = d^2 / (u^2 + d^2)`, `c_out = u / sqrt(u^2 + d^2)`, where `d = 1/2` and `u` is the number
//! of the step, counted from 0, times a scale (`timestep_scaling`).

use ndarray::{ArrayView4, Zip};
use tweedie_schedule::Preconditioning;

use crate::{Advance, Clip, Move, SamplerError, Solver};

/// `d`, the standard deviation of the data that latent consistency models are made for.
const SIGMA_DATA: f64 = 0.5;

/// Which consistency function, and how much noise is added after it.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum ConsistencyForm {
    /// The denoiser is the function (`CMStochasticIterativeScheduler`).
    Plain {
        /// The EDM sigma at which it is the identity.
        sigma_min: f64,
        /// A factor of the noise (`s_noise`).
        noise: f64,
    },
    /// The function is made of the denoiser's estimate (`LCMScheduler`).
    Latent {
        /// The factor of the step's number (`timestep_scaling`).
        scaling: f64,
        /// The number of steps that the model was distilled on, of which a run visits some (`original_inference_steps`).
        original_steps: usize,
    },
}

impl ConsistencyForm {
    /// A consistency model with diffusers' defaults.
    pub const fn plain() -> Self {
        Self::Plain { sigma_min: 0.002, noise: 1.0 }
    }

    /// A latent consistency model with diffusers' defaults.
    pub const fn latent() -> Self {
        Self::Latent { scaling: 10.0, original_steps: 50 }
    }

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain { .. } => "consistency",
            Self::Latent { .. } => "lcm",
        }
    }
}

/// Consistency sampling: one call a move, and a draw of noise in each but the last.
///
/// Verified by `consistency_moves_by_hand`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Consistency {
    /// Which function.
    pub form: ConsistencyForm,
    /// Post-processing of what the denoiser returns.
    pub clip: Clip,
}

impl Solver for Consistency {
    fn name(&self) -> &'static str {
        self.form.name()
    }

    fn step(&mut self, x: ArrayView4<'_, f64>, on: &mut Move<'_>) -> Result<Advance, SamplerError> {
        let mut x0 = on.denoise(x, on.from())?;
        self.clip.apply(&mut x0);
        let to = on.to();
        let (data, noise) = match self.form {
            ConsistencyForm::Plain { sigma_min, noise } => {
                let s = to.edm_sigma().max(sigma_min);
                (x0.clone(), to.alpha() * noise * ((s - sigma_min) * (s + sigma_min)).sqrt())
            }
            ConsistencyForm::Latent { scaling, .. } => {
                let of = Preconditioning::edm((on.step() - 1.0) * scaling, SIGMA_DATA)?;
                let data = Zip::from(x).and(&x0).map_collect(|&x, &x0| of.c_skip * x + of.c_out / SIGMA_DATA * x0);
                (data, to.sigma())
            }
        };
        Ok(Advance { x: on.add_noise(data * to.alpha(), noise)?, x0 })
    }
}
