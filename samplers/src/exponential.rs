//! One step of an exponential integrator in `lambda = ln(alpha / sigma)`, whose integrand is the estimate of `x_0` or that of
//! `eps` (Lu 2022a, eq. 3.7; Lu 2022b, eq. 8 and section 5).
//!
//! With `h = lambda' - lambda`, a step is `x' = of_x x + scale integral_0^H e^(s - H) m(s) ds + noise z`, where `m` as a function of
//! the share `s / H` of the step is the estimate, and
//!
//! | estimate | path | `of_x` | `scale` | `H` | `noise` |
//! |---|---|---|---|---|---|
//! | `x_0` | ODE | `sigma' / sigma` | `alpha'` | `h` | 0 |
//! | `x_0` | SDE | `sigma' / sigma e^-h` | `alpha'` | `2 h` | `sigma' sqrt(1 - e^(-2 h))` |
//! | `eps` | ODE | `alpha' / alpha` | `sigma'` | `-h` | 0 |
//! | `eps` | SDE | `alpha' / alpha` | `2 sigma'` | `-h` | `sigma' sqrt(e^(2 h) - 1)` |
//!
//! A constant `m` has the integral `E m` with `E = 1 - e^-H`.

use ndarray::{Array4, ArrayView4, Zip};
use tweedie_schedule::{NoiseLevel, Prediction, prediction};

use crate::SamplerError;

/// What a multistep solver extrapolates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Integrand {
    /// The estimate of `x_0` (DPM-Solver++; `predict_x0` of UniPC).
    #[default]
    Data,
    /// The estimate of `eps` (DPM-Solver, DEIS).
    Noise,
}

impl Integrand {
    /// The integrand at `level` from the state and the estimate of `x_0` there.
    pub(crate) fn of(
        self,
        x: ArrayView4<'_, f64>,
        x0: &Array4<f64>,
        level: NoiseLevel,
    ) -> Result<Array4<f64>, SamplerError> {
        match self {
            Self::Data => Ok(x0.clone()),
            Self::Noise => {
                let to_eps = prediction::convert(Prediction::X0, Prediction::Eps, level, None)?;
                Ok(Zip::from(x).and(x0).map_collect(|&x, &x0| to_eps.apply(x, x0)))
            }
        }
    }
}

/// Which path a solver follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Path {
    /// The probability-flow ODE.
    #[default]
    Ode,
    /// The reverse SDE, with fresh noise in every move.
    Sde,
}

/// `lambda = ln(alpha / sigma)`.
pub(crate) fn half_log_snr(level: NoiseLevel) -> f64 {
    0.5 * level.log_snr()
}

/// The coefficients of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Step {
    /// Factor of the state.
    pub(crate) of_x: f64,
    /// Factor of a constant integrand: `scale E`.
    pub(crate) of_constant: f64,
    /// Factor of the integral.
    pub(crate) scale: f64,
    /// The length of the step, `H`.
    pub(crate) length: f64,
    /// `h = lambda' - lambda`.
    pub(crate) h: f64,
    /// Standard deviation of the noise.
    pub(crate) noise: f64,
}

impl Step {
    /// The step between two levels. With [`Integrand::Noise`] on the SDE the lower one has noise left.
    pub(crate) fn new(integrand: Integrand, path: Path, from: NoiseLevel, to: NoiseLevel) -> Self {
        let h = half_log_snr(to) - half_log_snr(from);
        match integrand {
            Integrand::Data => {
                let (length, decay, noise) = match path {
                    Path::Ode => (h, 1.0, 0.0),
                    Path::Sde => (2.0 * h, (-h).exp(), to.sigma() * (-(-2.0 * h).exp_m1()).sqrt()),
                };
                Self {
                    of_x: to.sigma() / from.sigma() * decay,
                    of_constant: -(-length).exp_m1() * to.alpha(),
                    scale: to.alpha(),
                    length,
                    h,
                    noise,
                }
            }
            Integrand::Noise => {
                let (factor, noise) = match path {
                    Path::Ode => (1.0, 0.0),
                    Path::Sde => (2.0, to.sigma() * (2.0 * h).exp_m1().sqrt()),
                };
                let of_x = to.alpha() / from.alpha();
                Self {
                    of_x,
                    // sigma' (1 - e^h), which has a limit where sigma' is 0.
                    of_constant: factor * (to.sigma() - of_x * from.sigma()),
                    scale: factor * to.sigma(),
                    length: -h,
                    h,
                    noise,
                }
            }
        }
    }

    /// The step of order 1 on the ODE from the estimate of `x_0`, which alone has a limit at a level without signal.
    pub(crate) fn without_signal(x: ArrayView4<'_, f64>, x0: &Array4<f64>, to: NoiseLevel) -> Array4<f64> {
        x0 * to.alpha() + &x * to.sigma()
    }

    /// `E = 1 - e^-H`.
    pub(crate) fn e(&self) -> f64 {
        -(-self.length).exp_m1()
    }
}
