//! What a network predicts, and every conversion between predictions (FORMULAS 2.4).
//!
//! With `x_t = alpha x_0 + sigma eps`, each prediction is a mixture `p x_0 + q eps`:
//! eps `(0, 1)`, x0 `(1, 0)`, v `(-sigma, alpha)` (Salimans & Ho 2022), score `(0, -1/sigma)` (Song 2021), and the mean of
//! the reverse step `(coef_x0 + coef_xt alpha, coef_xt sigma)` (Ho 2020, eq. 7). Given `x_t` and one mixture `(p, q)`, both
//! unknowns follow, and so does every other mixture `(p', q')`:
//! `out = [(p' q - q' p) x_t + (q' alpha - p' sigma) prediction] / D`, `D = alpha q - sigma p`.

use crate::{NoiseLevel, Posterior, Schedule, ScheduleError};

/// What a network predicts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Prediction {
    /// The noise.
    #[default]
    Eps,
    /// The data.
    X0,
    /// `v = alpha eps - sigma x_0`.
    V,
    /// `grad log p_t(x_t) = -eps / sigma`.
    Score,
    /// The mean of the reverse step.
    Mean,
}

/// `out = of_x x_t + of_prediction prediction`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Affine {
    /// Factor of `x_t`.
    pub of_x: f64,
    /// Factor of the prediction.
    pub of_prediction: f64,
}

impl Affine {
    /// The value for one element of `x_t` and of the prediction.
    ///
    /// Verified by `predictions_convert`.
    pub fn apply(self, x: f64, prediction: f64) -> f64 {
        self.of_x * x + self.of_prediction * prediction
    }
}

/// `out = of_x0 x_0 + of_eps eps`: a prediction's target, when data and noise are known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mixture {
    /// Factor of the data.
    pub of_x0: f64,
    /// Factor of the noise.
    pub of_eps: f64,
}

impl Mixture {
    /// The value for one element of the data and of the noise.
    ///
    /// Verified by `predictions_convert`.
    pub fn apply(self, x0: f64, eps: f64) -> f64 {
        self.of_x0 * x0 + self.of_eps * eps
    }
}

impl Prediction {
    /// The names that [`Prediction::from_name`] knows.
    pub const NAMES: &'static str = "eps, x0, v, score, mean";
    /// The names that [`Prediction::from_config_name`] knows.
    pub const CONFIG_NAMES: &'static str = "epsilon, sample, v_prediction";

    /// The short name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Eps => "eps",
            Self::X0 => "x0",
            Self::V => "v",
            Self::Score => "score",
            Self::Mean => "mean",
        }
    }

    /// The prediction of a short name.
    ///
    /// # Errors
    /// If there is no such name; the error lists those that exist.
    pub fn from_name(name: &str) -> Result<Self, ScheduleError> {
        [Self::Eps, Self::X0, Self::V, Self::Score, Self::Mean].into_iter().find(|p| p.name() == name).ok_or_else(
            || ScheduleError::UnknownName { what: "prediction", found: name.to_owned(), known: Self::NAMES },
        )
    }

    /// The prediction of a `prediction_type` entry in a diffusers scheduler file.
    ///
    /// # Errors
    /// If there is no such name; the error lists those that exist.
    pub fn from_config_name(name: &str) -> Result<Self, ScheduleError> {
        match name {
            "epsilon" => Ok(Self::Eps),
            "sample" => Ok(Self::X0),
            "v_prediction" => Ok(Self::V),
            _ => Err(ScheduleError::UnknownName {
                what: "prediction_type",
                found: name.to_owned(),
                known: Self::CONFIG_NAMES,
            }),
        }
    }

    /// The `prediction_type` entry of a diffusers scheduler file, or `None` where diffusers has no such type.
    pub fn config_name(self) -> Option<&'static str> {
        match self {
            Self::Eps => Some("epsilon"),
            Self::X0 => Some("sample"),
            Self::V => Some("v_prediction"),
            Self::Score | Self::Mean => None,
        }
    }

    /// The posterior that a conversion of this prediction needs at a level of a schedule: the mean is that of the step
    /// `t -> t - 1` (FORMULAS 2.1), every other prediction needs none.
    ///
    /// # Errors
    /// For the mean at a level that is no step of the schedule.
    ///
    /// Verified by `the_bridge_returns_x0`.
    pub fn posterior(self, schedule: &Schedule, level: NoiseLevel) -> Result<Option<Posterior>, ScheduleError> {
        if self != Self::Mean {
            return Ok(None);
        }
        let t = schedule.t_of_level(level)?;
        if (t - t.round()).abs() > 1e-6 || t.round() < 1.0 {
            return Err(ScheduleError::Parameter {
                operation: "posterior of a network that predicts the mean",
                what: "the step",
                expected: "a whole number, at least 1",
                found: t,
            });
        }
        Ok(Some(schedule.posterior(t.round() as usize)))
    }

    /// The prediction as a mixture of `x_0` and `eps`: the target that a network is trained towards.
    ///
    /// `posterior` is that of the step whose mean is meant; only [`Prediction::Mean`] reads it.
    ///
    /// # Errors
    /// For the score where there is no noise, and for the mean without a posterior.
    ///
    /// Verified by `predictions_convert`. Verified by `score_is_a_gradient`.
    pub fn target(self, level: NoiseLevel, posterior: Option<&Posterior>) -> Result<Mixture, ScheduleError> {
        let (alpha, sigma) = (level.alpha(), level.sigma());
        let (of_x0, of_eps) = match self {
            Self::Eps => (0.0, 1.0),
            Self::X0 => (1.0, 0.0),
            Self::V => (-sigma, alpha),
            Self::Score if sigma == 0.0 => {
                return Err(singular(Self::Eps, self, level, "the score is infinite where there is no noise"));
            }
            Self::Score => (0.0, -sigma.recip()),
            Self::Mean => {
                let posterior = posterior.ok_or(ScheduleError::MeanWithoutPosterior)?;
                (posterior.coef_x0() + posterior.coef_xt() * alpha, posterior.coef_xt() * sigma)
            }
        };
        Ok(Mixture { of_x0, of_eps })
    }
}

/// The coefficients that turn a prediction `from` into a prediction `to` at a level.
///
/// `posterior` is that of the step whose mean is meant; only [`Prediction::Mean`] reads it.
///
/// # Errors
/// If the conversion is singular (eps says nothing of `x_0` where `alpha = 0`, `x_0` nothing of eps where `sigma = 0`), or a
/// mean comes without its posterior.
///
/// Verified by `predictions_convert`. Verified by `conversions_round_trip_or_are_singular`.
pub fn convert(
    from: Prediction,
    to: Prediction,
    level: NoiseLevel,
    posterior: Option<&Posterior>,
) -> Result<Affine, ScheduleError> {
    let (given, wanted) = (from.target(level, posterior)?, to.target(level, posterior)?);
    // The same prediction, or eps and score, differ by a factor at every level, even where x_0 cannot be recovered.
    if from == to {
        return Ok(Affine { of_x: 0.0, of_prediction: 1.0 });
    }
    if given.of_x0 == 0.0 && wanted.of_x0 == 0.0 && given.of_eps != 0.0 {
        return Ok(Affine { of_x: 0.0, of_prediction: wanted.of_eps / given.of_eps });
    }
    let (alpha, sigma) = (level.alpha(), level.sigma());
    let (determinant, reason) = match from {
        Prediction::Eps => (alpha, "x_t holds no signal"),
        Prediction::Score => (-alpha / sigma, "x_t holds no signal"),
        Prediction::X0 => (-sigma, "x_t holds no noise"),
        // alpha^2 + sigma^2, which is 1 by construction.
        Prediction::V => (1.0, ""),
        // alpha q - sigma p with the coefficients of the mean; the terms in coef_xt cancel.
        Prediction::Mean => {
            (-sigma * posterior.map_or(0.0, Posterior::coef_x0), "the mean of this step does not depend on x_0")
        }
    };
    if determinant == 0.0 {
        return Err(singular(from, to, level, reason));
    }
    Ok(Affine {
        of_x: (wanted.of_x0 * given.of_eps - wanted.of_eps * given.of_x0) / determinant,
        of_prediction: (wanted.of_eps * alpha - wanted.of_x0 * sigma) / determinant,
    })
}

fn singular(from: Prediction, to: Prediction, level: NoiseLevel, reason: &'static str) -> ScheduleError {
    ScheduleError::Singular { from: from.name(), to: to.name(), alpha: level.alpha(), sigma: level.sigma(), reason }
}
