//! Strategies that the test files share.

use proptest::prelude::*;
use tweedie_schedule::{BetaSchedule, NoiseLevel, Schedule};

/// Any rule with parameters at which a schedule of up to 200 steps keeps its levels apart in f64.
pub fn any_rule() -> impl Strategy<Value = BetaSchedule> {
    let ends = (1e-5..1e-3_f64, 1e-3..0.05_f64);
    prop_oneof![
        ends.clone().prop_map(|(start, end)| BetaSchedule::Linear { start, end }),
        ends.clone().prop_map(|(start, end)| BetaSchedule::ScaledLinear { start, end }),
        ends.clone().prop_map(|(start, end)| BetaSchedule::Sqrt { start, end }),
        ends.clone().prop_map(|(start, end)| BetaSchedule::Sigmoid { start, end }),
        ends.prop_map(|(start, end)| BetaSchedule::Exponential { start, end }),
        (0.0..0.05_f64, 0.9..0.9999_f64).prop_map(|(s, max_beta)| BetaSchedule::Cosine { s, max_beta }),
    ]
}

/// Any schedule, of a rule or of a table in no order, with or without zero terminal SNR.
pub fn any_schedule() -> impl Strategy<Value = Schedule> {
    let tables = prop::collection::vec(1e-5..0.2_f64, 1..200).prop_map(|betas| {
        let steps = betas.len();
        Schedule::new(&BetaSchedule::Custom(betas), steps).unwrap()
    });
    let ruled = (any_rule(), 1..200_usize).prop_map(|(rule, steps)| Schedule::new(&rule, steps).unwrap());
    (prop_oneof![4 => ruled, 1 => tables], any::<bool>()).prop_map(|(schedule, rescale)| {
        if rescale && schedule.steps() > 1 { schedule.rescaled_zero_terminal_snr().unwrap() } else { schedule }
    })
}

/// Any level with both signal and noise.
pub fn any_level() -> impl Strategy<Value = NoiseLevel> {
    (-14.0..14.0_f64).prop_map(|log_snr| NoiseLevel::from_log_snr(log_snr).unwrap())
}

/// Two levels, the less noisy one first, at least `gap` apart in log-SNR.
pub fn two_levels(gap: f64) -> impl Strategy<Value = (NoiseLevel, NoiseLevel)> {
    (-10.0..10.0_f64, gap..8.0_f64).prop_map(|(log_snr, gap)| {
        (NoiseLevel::from_log_snr(log_snr).unwrap(), NoiseLevel::from_log_snr(log_snr - gap).unwrap())
    })
}

/// Asserts that two numbers agree to a relative tolerance, or to the same absolute one below 1.
pub fn close(found: f64, expected: f64, tolerance: f64, what: &str) -> Result<(), TestCaseError> {
    let error = (found - expected).abs();
    prop_assert!(
        error <= tolerance * expected.abs().max(1.0),
        "{what}: {found} instead of {expected}, off by {error:e}"
    );
    Ok(())
}
