//! Karras' stochastic sampler: a deterministic move from a level that noise has raised (Karras 2022, Algorithm 2).
//!
//! In `y = x / alpha`, with `s = sigma / alpha`, a move of N first goes up to `s^ = (1 + gamma) s` and then down from there:
//!
//! ```text
//! gamma = min(amount / N, sqrt 2 - 1) where s_min <= s <= s_max, else 0
//! y^    = y + sqrt(s^² - s²) noise z
//! ```

use ndarray::{Array4, ArrayView4};
use tweedie_schedule::{GridMove, NoiseLevel};

use crate::{Move, SamplerError};

/// How much noise is added before each move; the names in brackets are those of the paper and of diffusers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Churn {
    /// Noise of a whole run, 0 for none (`S_churn`).
    pub amount: f64,
    /// The lowest EDM sigma at which noise is added (`S_tmin`).
    pub s_min: f64,
    /// The highest (`S_tmax`).
    pub s_max: f64,
    /// The standard deviation of the added noise relative to what its level says (`S_noise`).
    pub noise: f64,
}

impl Default for Churn {
    fn default() -> Self {
        Self::NONE
    }
}

impl Churn {
    /// No noise: a deterministic solver.
    pub const NONE: Self = Self { amount: 0.0, s_min: 0.0, s_max: f64::INFINITY, noise: 1.0 };

    /// Checks the parameters.
    ///
    /// # Errors
    /// If one is negative or not a number, or all but `s_max` not finite.
    pub fn check(self) -> Result<Self, SamplerError> {
        let parameters = [
            ("the churn (s_churn)", self.amount, self.amount.is_finite()),
            ("the lowest sigma (s_tmin)", self.s_min, self.s_min.is_finite()),
            ("the highest sigma (s_tmax)", self.s_max, true),
            ("the scale of the noise (s_noise)", self.noise, self.noise.is_finite()),
        ];
        match parameters.into_iter().find(|(_, value, finite)| !(*value >= 0.0 && *finite)) {
            None => Ok(self),
            Some((what, found, _)) => {
                Err(SamplerError::Parameter { operation: "churn", what, expected: "finite and not negative", found })
            }
        }
    }

    /// The level that a move starts from after its noise; that of the move itself where nothing is added.
    pub(crate) fn raised(self, on: &Move<'_>) -> Result<NoiseLevel, SamplerError> {
        let sigma = on.from().edm_sigma();
        let gamma = (self.amount / on.total() as f64).min(std::f64::consts::SQRT_2 - 1.0);
        // At an infinite sigma there is nothing to raise.
        if gamma == 0.0 || !sigma.is_finite() || !(self.s_min..=self.s_max).contains(&sigma) {
            return Ok(on.from());
        }
        Ok(NoiseLevel::from_edm_sigma(sigma * (1.0 + gamma))?)
    }

    /// The state `x` at the start of a move, taken up to a level by fresh noise.
    ///
    /// $$ \hat y = y + \sqrt{\hat s^2 - s^2}\\, S_\mathrm{noise} z $$
    ///
    /// Verified by `churn_raises_the_level_by_fresh_noise`.
    pub(crate) fn raise(
        self,
        x: ArrayView4<'_, f64>,
        on: &mut Move<'_>,
        to: NoiseLevel,
    ) -> Result<Array4<f64>, SamplerError> {
        let (low, high) = (on.from().edm_sigma(), to.edm_sigma());
        let scale = ((high - low) * (high + low)).sqrt() * self.noise * to.alpha();
        on.add_noise(&x * (to.alpha() / on.from().alpha()), scale)
    }

    /// Raises the state of a move and lets the move start from there.
    pub(crate) fn start(self, x: ArrayView4<'_, f64>, on: &mut Move<'_>) -> Result<Array4<f64>, SamplerError> {
        let level = self.raised(on)?;
        if level == on.from() {
            return Ok(x.to_owned());
        }
        let x = self.raise(x, on, level)?;
        on.at = GridMove { from: level, ..on.at };
        Ok(x)
    }
}
