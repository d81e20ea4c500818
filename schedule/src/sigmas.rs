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
    let highest = crate::Schedule::MAX_STEPS;
    if !(1..=highest).contains(&n) {
        return Err(ScheduleError::Count {
            operation: OPERATION,
            what: "the number of levels",
            lowest: 1,
            highest,
            found: n,
        });
    }
    if !(sigma_min > 0.0 && sigma_min < sigma_max) {
        return Err(parameter(OPERATION, "sigma_min", "above 0 and below sigma_max", sigma_min));
    }
    if !sigma_max.is_finite() {
        return Err(parameter(OPERATION, "sigma_max", "finite", sigma_max));
    }
    if !(rho > 0.0 && rho.is_finite()) {
        return Err(parameter(OPERATION, "rho", "finite and above 0", rho));
    }
    let (high, low) = (sigma_max.powf(rho.recip()), sigma_min.powf(rho.recip()));
    Ok((0..n)
        .map(|i| match i {
            // The ends are given numbers; powers would return them only to rounding.
            0 => sigma_max,
            i if i + 1 == n => sigma_min,
            i => (high + i as f64 / (n - 1) as f64 * (low - high)).powf(rho),
        })
        .collect())
}
