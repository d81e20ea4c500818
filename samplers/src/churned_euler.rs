//! Euler's method with noise as diffusers carries it out ([`crate::Compat::Diffusers`]).
//!
//! Diffusers asks the network at the state and the level before the noise, and reads its answer as if it had been asked after
//! it: `y' = y^ + (s' - s^) (y^ - x_0^) / s^`, where `x_0^` is made of `y^` and the network's output at `(y, s)` by the
//! prediction's own rule. [`crate::Euler`] asks after it, as Karras' Algorithm 2 does.

use ndarray::{ArrayView4, Zip};
use tweedie_schedule::{NoiseLevel, Preconditioning, Prediction, prediction};

use crate::{Advance, Churn, Move, SamplerError, Solver};

/// What the network says, which decides how its answer is carried over to the noisier state.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Output {
    /// A prediction on a table.
    Prediction(Prediction),
    /// What Karras' preconditioning leaves to it.
    Edm {
        /// Standard deviation of the data.
        sigma_data: f64,
    },
}

impl Output {
    /// `x_0^ = of_raised y^ + of_y y + of_x0 x_0`, from the estimate `x_0` at `(y, s)`.
    fn carried(self, from: NoiseLevel, raised: NoiseLevel) -> Result<[f64; 3], SamplerError> {
        Ok(match self {
            Self::Edm { sigma_data } => {
                let now = Preconditioning::edm(from.edm_sigma(), sigma_data)?;
                let then = Preconditioning::edm(raised.edm_sigma(), sigma_data)?;
                let of_x0 = then.c_out / now.c_out;
                [then.c_skip, -of_x0 * now.c_skip, of_x0]
            }
            // Diffusers reads eps at the raised level and the others at the first one.
            Self::Prediction(of) => {
                let at = if of == Prediction::Eps { raised } else { from };
                let output = prediction::convert(Prediction::X0, of, from, None)?;
                let to_x0 = prediction::convert(of, Prediction::X0, at, None)?;
                let of_output = to_x0.of_prediction;
                [to_x0.of_x * at.alpha(), of_output * output.of_x * from.alpha(), of_output * output.of_prediction]
            }
        })
    }
}

/// The solver.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChurnedEuler {
    pub(crate) churn: Churn,
    pub(crate) output: Output,
}

impl Solver for ChurnedEuler {
    fn name(&self) -> &'static str {
        "euler"
    }

    fn step(&mut self, x: ArrayView4<'_, f64>, on: &mut Move<'_>) -> Result<Advance, SamplerError> {
        let (from, to, raised) = (on.from(), on.to(), self.churn.raised(on)?);
        if raised == from {
            return crate::Euler::default().step(x, on);
        }
        let x0 = on.denoise(x, from)?;
        let noisy = self.churn.raise(x, on, raised)?;
        let [of_raised, of_y, of_x0] = self.output.carried(from, raised)?;
        let x0 = Zip::from(x)
            .and(&noisy)
            .and(&x0)
            .map_collect(|&x, &noisy, &x0| of_raised * noisy / raised.alpha() + of_y * x / from.alpha() + of_x0 * x0);
        let of_eps = to.sigma() / raised.sigma();
        let next =
            Zip::from(&noisy).and(&x0).map_collect(|&x, &x0| to.alpha() * x0 + of_eps * (x - raised.alpha() * x0));
        Ok(Advance { x: next, x0 })
    }
}
