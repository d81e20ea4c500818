//! Noise levels chosen directly, without a table of betas (FORMULAS 1.3).

use crate::ScheduleError;
use crate::level::parameter;

/// `n` EDM noise levels from `sigma_max` down to `sigma_min` (Karras 2022, eq. 5, without the final zero):
/// `sigma_i = (max^(1/rho) + i/(n-1) (min^(1/rho) - max^(1/rho)))^rho`.
///
/// One level is `sigma_max` alone. `rho` is 7 in the paper.
///
/// # Errors
/// If `n` is 0 or above [`crate::Schedule::MAX_STEPS`], or `0 < sigma_min < sigma_max < inf` and `rho > 0` do not hold.
///
/// Verified by `karras_is_even_in_the_root`.
pub fn karras_sigmas(sigma_min: f64, sigma_max: f64, rho: f64, n: usize) -> Result<Vec<f64>, ScheduleError> {
    const OPERATION: &str = "karras_sigmas";
    check(OPERATION, sigma_min, sigma_max, n)?;
    if !(rho > 0.0 && rho.is_finite()) {
        return Err(parameter(OPERATION, "rho", "finite and above 0", rho));
    }
    let (high, low) = (sigma_max.powf(rho.recip()), sigma_min.powf(rho.recip()));
    Ok(between(sigma_min, sigma_max, n, |u| (high + u * (low - high)).powf(rho)))
}

/// `n` EDM noise levels from `sigma_max` down to `sigma_min`, evenly spaced in their logarithm.
///
/// # Errors
/// If `n` is 0 or above [`crate::Schedule::MAX_STEPS`], or `0 < sigma_min < sigma_max < inf` does not hold.
///
/// Verified by `exponential_is_even_in_the_logarithm`.
pub fn exponential_sigmas(sigma_min: f64, sigma_max: f64, n: usize) -> Result<Vec<f64>, ScheduleError> {
    check("exponential_sigmas", sigma_min, sigma_max, n)?;
    let (high, low) = (sigma_max.ln(), sigma_min.ln());
    Ok(between(sigma_min, sigma_max, n, |u| (high + u * (low - high)).exp()))
}

/// `n` EDM noise levels from `sigma_max` down to `sigma_min`, at the quantiles of a Beta(0.6, 0.6) distribution, which are dense
/// at both ends (Lee 2024, "Beta Sampling is All You Need"): `sigma_i = min + Q(1 - i/(n-1)) (max - min)`.
///
/// # Errors
/// If `n` is 0 or above [`crate::Schedule::MAX_STEPS`], or `0 < sigma_min < sigma_max < inf` does not hold.
///
/// Verified by `beta_quantiles_agree_with_scipy`.
pub fn beta_sigmas(sigma_min: f64, sigma_max: f64, n: usize) -> Result<Vec<f64>, ScheduleError> {
    /// Both parameters of the distribution.
    const SHAPE: f64 = 0.6;
    check("beta_sigmas", sigma_min, sigma_max, n)?;
    let quantile = |u: f64| puruspe::invbetai(u, SHAPE, SHAPE);
    Ok(between(sigma_min, sigma_max, n, |u| sigma_min + quantile(1.0 - u) * (sigma_max - sigma_min)))
}

/// A rule for noise levels between two ends.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum SigmaRule {
    /// Those of the steps that a spacing visits.
    #[default]
    Steps,
    /// Evenly spaced in the logarithm over the whole table, one more than there are moves, while the network is told the steps
    /// of the spacing (`interpolation_type: log_linear` of diffusers' Euler).
    LogLinear,
    /// [`karras_sigmas`].
    Karras {
        /// The exponent, 7 in the paper.
        rho: f64,
    },
    /// [`exponential_sigmas`].
    Exponential,
    /// [`exponential_sigmas`] under another name, for which diffusers rounds the numbers that the network is told otherwise
    /// (`use_lu_lambdas`: evenly spaced in `lambda`, Lu 2022a, section 3.4).
    Lambda,
    /// [`beta_sigmas`].
    Beta,
}

impl SigmaRule {
    /// The names that [`SigmaRule::from_name`] knows.
    pub const NAMES: &'static str = "steps, karras, exponential, beta";

    /// Karras' rule with the paper's exponent.
    pub const fn karras() -> Self {
        Self::Karras { rho: 7.0 }
    }

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Steps => "steps",
            Self::LogLinear => "log-linear",
            Self::Karras { .. } => "karras",
            Self::Exponential => "exponential",
            Self::Lambda => "lambda",
            Self::Beta => "beta",
        }
    }

    /// The rule of a command-line name.
    ///
    /// # Errors
    /// If there is no such name; the error lists those that exist.
    pub fn from_name(name: &str) -> Result<Self, ScheduleError> {
        [Self::Steps, Self::karras(), Self::Exponential, Self::Beta].into_iter().find(|s| s.name() == name).ok_or_else(
            || ScheduleError::UnknownName { what: "rule for sigmas", found: name.to_owned(), known: Self::NAMES },
        )
    }

    /// `n` EDM noise levels from `sigma_max` down to `sigma_min`; `None` for [`SigmaRule::Steps`], whose levels are not made
    /// from their ends. One level is `sigma_max` alone.
    ///
    /// # Errors
    /// As the function of the rule.
    pub fn sigmas(self, sigma_min: f64, sigma_max: f64, n: usize) -> Result<Option<Vec<f64>>, ScheduleError> {
        if n == 1 && self != Self::Steps {
            return Ok(Some(vec![sigma_max]));
        }
        Ok(Some(match self {
            Self::Steps => return Ok(None),
            Self::Karras { rho } => karras_sigmas(sigma_min, sigma_max, rho, n)?,
            Self::LogLinear | Self::Exponential | Self::Lambda => exponential_sigmas(sigma_min, sigma_max, n)?,
            Self::Beta => beta_sigmas(sigma_min, sigma_max, n)?,
        }))
    }
}

/// The ends, exactly, and in between `at(i / (n - 1))`; functions would return the ends only to rounding.
fn between(sigma_min: f64, sigma_max: f64, n: usize, at: impl Fn(f64) -> f64) -> Vec<f64> {
    (0..n)
        .map(|i| match i {
            0 => sigma_max,
            i if i + 1 == n => sigma_min,
            i => at(i as f64 / (n - 1) as f64),
        })
        .collect()
}

fn check(operation: &'static str, sigma_min: f64, sigma_max: f64, n: usize) -> Result<(), ScheduleError> {
    let highest = crate::Schedule::MAX_STEPS;
    if !(1..=highest).contains(&n) {
        return Err(ScheduleError::Count { operation, what: "the number of levels", lowest: 1, highest, found: n });
    }
    if !(sigma_min > 0.0 && sigma_min < sigma_max) {
        return Err(parameter(operation, "sigma_min", "above 0 and below sigma_max", sigma_min));
    }
    if !sigma_max.is_finite() {
        return Err(parameter(operation, "sigma_max", "finite", sigma_max));
    }
    Ok(())
}
