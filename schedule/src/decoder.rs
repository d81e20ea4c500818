//! Quantised data under a Gaussian (FORMULAS 4.1, `L_0`; Ho, Jain & Abbeel 2020, eq. 13).
//!
//! Pixels take the values of 256 levels, so their probability is that of a bin around the level under `N(mu, s^2)`:
//! `P(x = x_i) = Phi((x_i + w/2 - mu) / s) - Phi((x_i - w/2 - mu) / s)`, with `w` the distance of two levels, where the
//! first bin begins at minus infinity and the last one ends at infinity.

use crate::ScheduleError;
use crate::gaussian::{log_interval, log_normal};
use crate::level::parameter;

/// What errors call this.
const OPERATION: &str = "bins of a decoder";

/// A value counts as a level if it is off by no more than this share of a bin: pixels are rounded to f32.
const OFF_GRID: f64 = 1e-3;

/// Levels of equal distance and the bins around them, which together cover the real line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bins {
    low: f64,
    high: f64,
    count: usize,
}

impl Bins {
    /// `count` levels from `low` to `high`, both included; the bins between are `(high - low) / (count - 1)` wide.
    ///
    /// # Errors
    /// If there are fewer than two levels, or `low < high` does not hold for finite numbers.
    pub fn new(low: f64, high: f64, count: usize) -> Result<Self, ScheduleError> {
        if count < 2 {
            return Err(ScheduleError::Count {
                operation: OPERATION,
                what: "the number of levels",
                lowest: 2,
                highest: usize::MAX,
                found: count,
            });
        }
        if !(low < high && (high - low).is_finite()) {
            return Err(parameter(OPERATION, "the highest level", "finite and above the lowest one", high));
        }
        Ok(Self { low, high, count })
    }

    /// `w`, the distance of two levels.
    pub fn width(&self) -> f64 {
        (self.high - self.low) / (self.count - 1) as f64
    }

    /// The lowest and the highest level.
    pub fn ends(&self) -> (f64, f64) {
        (self.low, self.high)
    }

    /// How many levels there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The value of level `index`.
    pub fn level(&self, index: usize) -> f64 {
        self.low + index as f64 * self.width()
    }

    /// The level that a value stands for; `None` if it is none of them.
    pub fn index(&self, value: f64) -> Option<usize> {
        let place = (value - self.low) / self.width();
        let inside = place.round() >= 0.0 && place.round() < self.count as f64;
        (inside && (place - place.round()).abs() <= OFF_GRID).then(|| place.round() as usize)
    }

    /// `ln P(x = level(index))` under `N(mean, std^2)` (Ho 2020, eq. 13), exact to rounding far out in the tails too.
    ///
    /// $$ P(x = x_i) = \Phi \Big( \frac{x_i + w/2 - \mu}{s} \Big) - \Phi \Big( \frac{x_i - w/2 - \mu}{s} \Big) $$
    ///
    /// Verified by `probabilities_sum_to_one`.
    pub fn log_probability(&self, index: usize, mean: f64, std: f64) -> f64 {
        let (below, above) = self.standardised(index, mean, std);
        log_interval(below, above)
    }

    /// [`Bins::log_probability`] and its derivatives by `mean` and by `ln(std^2)`: with `a` and `b` the ends of the bin in units
    /// of `std` from the mean, and `P` its mass, `[phi(a) - phi(b)] / (P std)` and `[a phi(a) - b phi(b)] / (2 P)`.
    ///
    /// Verified by `derivatives_of_a_bin`.
    pub fn log_probability_gradient(&self, index: usize, mean: f64, std: f64) -> (f64, f64, f64) {
        let (a, b) = self.standardised(index, mean, std);
        let log = log_interval(a, b);
        // phi / P through the logarithm, since both may underflow.
        let density = |z: f64| if z.is_infinite() { 0.0 } else { (log_normal(z * z, 1.0, 1) - log).exp() };
        let (at_a, at_b) = (density(a), density(b));
        let times = |z: f64, density: f64| if z.is_infinite() { 0.0 } else { z * density };
        (log, (at_a - at_b) / std, 0.5 * (times(a, at_a) - times(b, at_b)))
    }

    /// The ends of a bin, in units of `std` from the mean.
    fn standardised(&self, index: usize, mean: f64, std: f64) -> (f64, f64) {
        let (middle, half) = (self.level(index) - mean, 0.5 * self.width());
        let below = if index == 0 { f64::NEG_INFINITY } else { (middle - half) / std };
        let above = if index + 1 == self.count { f64::INFINITY } else { (middle + half) / std };
        (below, above)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn probabilities_sum_to_one(mean in -3.0..3.0_f64, log_std in -9.0..2.0_f64, unit in any::<bool>()) {
            let bins = Bins::new(if unit { 0.0 } else { -1.0 }, 1.0, 256).unwrap();
            let logs: Vec<f64> = (0..bins.count()).map(|i| bins.log_probability(i, mean, log_std.exp())).collect();
            let sum: f64 = logs.iter().map(|l| l.exp()).sum();
            prop_assert!((sum - 1.0).abs() < 1e-11, "{sum}");
            prop_assert!(logs.iter().all(|l| l.is_finite() && *l <= 0.0));
            // No bin may be exchanged for another: the mean lies in the likeliest inner one where bins are wide.
            let likeliest = (0..256).max_by(|&i, &j| logs[i].total_cmp(&logs[j])).unwrap();
            if log_std < -6.0 && (bins.level(0)..bins.level(255)).contains(&mean) {
                prop_assert!((bins.level(likeliest) - mean).abs() <= 0.5 * bins.width() + 1e-12);
            }
        }

        #[test]
        fn derivatives_of_a_bin(index in 0..9_usize, mean in -2.0..2.0_f64, log_std in -2.5..1.0_f64) {
            let bins = Bins::new(-1.0, 1.0, 9).unwrap();
            let log = |mean: f64, log_variance: f64| bins.log_probability(index, mean, (0.5 * log_variance).exp());
            let (value, by_mean, by_log) = bins.log_probability_gradient(index, mean, log_std.exp());
            prop_assert_eq!(value, bins.log_probability(index, mean, log_std.exp()));
            let h = 1e-5;
            let means = (log(mean + h, 2.0 * log_std) - log(mean - h, 2.0 * log_std)) / (2.0 * h);
            let logs = (log(mean, 2.0 * log_std + h) - log(mean, 2.0 * log_std - h)) / (2.0 * h);
            prop_assert!((by_mean - means).abs() < 1e-6 * (1.0 + by_mean.abs()), "{by_mean} instead of {means}");
            prop_assert!((by_log - logs).abs() < 1e-6 * (1.0 + by_log.abs()), "{by_log} instead of {logs}");
        }
    }

    /// Far out, `ln P` falls as `-z^2 / 2`: the slope by the mean is `z / std`, finite where `P` underflows.
    #[test]
    fn derivatives_hold_in_the_tails() {
        let bins = Bins::new(-1.0, 1.0, 256).unwrap();
        let (log, by_mean, by_log) = bins.log_probability_gradient(200, -1.0, 1e-3);
        let z = (bins.level(200) - 0.5 * bins.width() + 1.0) / 1e-3;
        assert!(log < -1e6 && log.is_finite());
        assert!((by_mean * 1e-3 / z - 1.0).abs() < 1e-5 && (2.0 * by_log / (z * z) - 1.0).abs() < 1e-5);
    }

    #[test]
    fn one_bin_of_three_by_hand() {
        // Levels -1, 0, 1 and bins (-inf, -0.5], (-0.5, 0.5], (0.5, inf) under N(0, 1): 0.3085, 0.3829, 0.3085.
        let bins = Bins::new(-1.0, 1.0, 3).unwrap();
        for (i, expected) in
            [0.308_537_538_725_986_9, 0.382_924_922_548_026_2, 0.308_537_538_725_986_9].into_iter().enumerate()
        {
            assert!((bins.log_probability(i, 0.0, 1.0).exp() - expected).abs() < 1e-15);
        }
    }

    #[test]
    fn levels_are_known_and_nothing_else_is() {
        let bins = Bins::new(-1.0, 1.0, 256).unwrap();
        assert_eq!((bins.ends(), bins.count()), ((-1.0, 1.0), 256));
        assert_eq!(Bins::new(0.5, 3.0, 4).unwrap().ends(), (0.5, 3.0));
        for index in 0..256 {
            assert_eq!(bins.index(bins.level(index)), Some(index));
            assert_eq!(bins.index(bins.level(index) + 1e-6), Some(index));
        }
        for value in [0.0, 1.001, -1.008, 1.0 + bins.width(), -1.0 - bins.width(), f64::NAN, f64::INFINITY] {
            assert_eq!(bins.index(value), None, "{value}");
        }
        for (low, high, count) in
            [(0.0, 1.0, 1), (1.0, 1.0, 4), (1.0, 0.0, 4), (f64::NAN, 1.0, 4), (0.0, f64::INFINITY, 4)]
        {
            assert!(Bins::new(low, high, count).is_err());
        }
    }
}
