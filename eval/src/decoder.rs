//! `p(x_0 | x_1)`: the last step of the reverse process (FORMULAS 4.1, `L_0`; Ho, Jain & Abbeel 2020, eq. 13).
//!
//! Pixels take the values of 256 levels, so their probability is that of a bin around the level under `N(mu, s^2)`:
//! `P(x = x_i) = Phi((x_i + w/2 - mu) / s) - Phi((x_i - w/2 - mu) / s)`, with `w` the distance of two levels, where the
//! first bin begins at minus infinity and the last one ends at infinity. Data that is not quantised has a density.

use tweedie_data::Range;

use crate::EvalError;
use crate::gaussian::{log_interval, log_normal};

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
    pub fn new(low: f64, high: f64, count: usize) -> Result<Self, EvalError> {
        let wrong = |what, expected: &str, found: String| {
            let expected = expected.to_owned();
            let remedy = "give the interval of the pixels and how many values they take";
            Err(EvalError::Parameter { operation: "bins of a decoder", what, expected, found, remedy })
        };
        if count < 2 {
            return wrong("the number of levels", "2 or more", count.to_string());
        }
        if !(low < high && (high - low).is_finite()) {
            return wrong("the interval of the levels", "finite and not empty", format!("{low} to {high}"));
        }
        Ok(Self { low, high, count })
    }

    /// The 256 levels of bytes in a range: `w = 2/255` in `[-1, 1]`, `1/255` in `[0, 1]`.
    pub fn of_bytes(range: Range) -> Self {
        Self { low: range.from_byte(0).into(), high: range.from_byte(u8::MAX).into(), count: 256 }
    }

    /// `w`, the distance of two levels.
    pub fn width(&self) -> f64 {
        (self.high - self.low) / (self.count - 1) as f64
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
        let (middle, half) = (self.level(index) - mean, 0.5 * self.width());
        let below = if index == 0 { f64::NEG_INFINITY } else { (middle - half) / std };
        let above = if index + 1 == self.count { f64::INFINITY } else { (middle + half) / std };
        log_interval(below, above)
    }
}

/// What the last step of the reverse process says about the data.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Decoder {
    /// The probability of quantised data: the Gaussian's mass in the bin of each number.
    Bins(Bins),
    /// The density of continuous data: `N(x_0; mu, s^2 I)`.
    Density,
}

impl Decoder {
    /// `-ln p(x_0 | x_1)` in nats for one sample: `values` are pairs of `x_0` and the mean `mu` for each number of it.
    ///
    /// `sample` is the number of the sample in messages.
    ///
    /// # Errors
    /// If a number is none of the levels of the bins.
    ///
    /// Verified by `decoders_agree_where_bins_are_narrow`.
    pub fn nll(
        &self,
        sample: usize,
        values: impl Iterator<Item = (f64, f64)>,
        variance: f64,
    ) -> Result<f64, EvalError> {
        match self {
            Self::Density => {
                let (mut squares, mut dims) = (0.0, 0);
                for (x0, mean) in values {
                    squares += (x0 - mean) * (x0 - mean);
                    dims += 1;
                }
                Ok(-log_normal(squares, variance, dims))
            }
            Self::Bins(bins) => {
                let (mut sum, std) = (0.0, variance.sqrt());
                for (value, mean) in values {
                    let Bins { low, high, count } = *bins;
                    let index = bins.index(value).ok_or(EvalError::OffGrid { sample, value, low, high, count })?;
                    sum -= bins.log_probability(index, mean, std);
                }
                Ok(sum)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn probabilities_sum_to_one(mean in -3.0..3.0_f64, log_std in -9.0..2.0_f64, unit in any::<bool>()) {
            let bins = Bins::of_bytes(if unit { Range::ZeroOne } else { Range::MinusOneOne });
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
        fn decoders_agree_where_bins_are_narrow(
            x in prop::collection::vec(1..255_usize, 1..5), mean in -1.0..1.0_f64, std in 0.3..1.0_f64,
        ) {
            let bins = Bins::of_bytes(Range::MinusOneOne);
            let pairs = || x.iter().map(|&i| (bins.level(i), mean));
            let mass = Decoder::Bins(bins).nll(0, pairs(), std * std).unwrap();
            let density = Decoder::Density.nll(0, pairs(), std * std).unwrap();
            // P = p w (1 + O((w / s)^2)), so -ln P = -ln p - D ln w.
            let expected = density - x.len() as f64 * bins.width().ln();
            let curvature = x.len() as f64 * (bins.width() / std).powi(2) * 4.0;
            prop_assert!((mass - expected).abs() < curvature, "{mass} instead of {expected}");
            let normal: f64 = pairs().map(|(x, m)| 0.5 * ((x - m) / std).powi(2) + (std * 2.5066282746310002).ln()).sum();
            prop_assert!((density - normal).abs() < 1e-12 * (1.0 + normal.abs()));
        }
    }

    #[test]
    fn bins_follow_the_range() {
        let (wide, unit) = (Bins::of_bytes(Range::MinusOneOne), Bins::of_bytes(Range::ZeroOne));
        assert_eq!((wide.width(), unit.width()), (2.0 / 255.0, 1.0 / 255.0));
        for byte in 0..=255_u8 {
            let value = |range: Range| f64::from(range.from_byte(byte));
            assert_eq!(wide.index(value(Range::MinusOneOne)), Some(byte.into()));
            assert_eq!(unit.index(value(Range::ZeroOne)), Some(byte.into()));
        }
        // The same picture, mean and noise in both ranges has the same probability.
        for i in [0, 100, 255] {
            let (a, b) = (wide.log_probability(i, 0.2, 0.1), unit.log_probability(i, 0.6, 0.05));
            assert!((a - b).abs() < 1e-12 * a.abs().max(1.0), "{a} is not {b}");
        }
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
    fn what_is_no_level_is_refused() {
        let bins = Bins::of_bytes(Range::MinusOneOne);
        for value in [0.0, 1.001, -1.008, 1.0 + bins.width(), -1.0 - bins.width(), f64::NAN, f64::INFINITY] {
            assert_eq!(bins.index(value), None, "{value}");
        }
        assert_eq!(bins.index(-1.0 + 1e-6), Some(0));
        assert_eq!(bins.index(1.0 - 1e-6), Some(255));
        let error = Decoder::Bins(bins).nll(3, [(1.0, 0.0), (0.25, 0.0)].into_iter(), 1.0).unwrap_err().to_string();
        assert!(error.contains("sample 3") && error.contains("0.25") && error.contains("256"), "{error}");
        for (low, high, count) in
            [(0.0, 1.0, 1), (1.0, 1.0, 4), (1.0, 0.0, 4), (f64::NAN, 1.0, 4), (0.0, f64::INFINITY, 4)]
        {
            assert!(Bins::new(low, high, count).is_err());
        }
    }
}
