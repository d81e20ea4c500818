//! `p(x_0 | x_1)`: the last step of the reverse process (FORMULAS 4.1, `L_0`; Ho, Jain & Abbeel 2020, eq. 13).

use tweedie_data::Range;
use tweedie_schedule::Bins;
use tweedie_schedule::gaussian::log_normal;

use crate::EvalError;

<<<<<<< HEAD
/// The 256 levels of bytes in a range: `w = 2/255` in `[-1, 1]`, `1/255` in `[0, 1]`.
pub fn byte_bins(range: Range) -> Bins {
    let (low, high) = (range.from_byte(0).into(), range.from_byte(u8::MAX).into());
    Bins::new(low, high, 256).expect("black is below white")
=======
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
>>>>>>> verify
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
    /// `-ln p(x_0 | x_1)` in nats for one sample: `values` are `x_0`, the mean `mu` and the variance for each number of it.
    ///
    /// `sample` is the number of the sample in messages.
    ///
    /// # Errors
    /// If a number is none of the levels of the bins.
    ///
    /// Verified by `decoders_agree_where_bins_are_narrow`.
    pub fn nll(&self, sample: usize, values: impl Iterator<Item = (f64, f64, f64)>) -> Result<f64, EvalError> {
        let mut sum = 0.0;
        for (value, mean, variance) in values {
            sum -= match self {
                Self::Density => log_normal((value - mean) * (value - mean), variance, 1),
                Self::Bins(bins) => {
                    let index = bins.index(value).ok_or_else(|| {
                        let ((low, high), count) = (bins.ends(), bins.count());
                        EvalError::OffGrid { sample, value, low, high, count }
                    })?;
                    bins.log_probability(index, mean, variance.sqrt())
                }
            };
        }
        Ok(sum)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn decoders_agree_where_bins_are_narrow(
            x in prop::collection::vec(1..255_usize, 1..5), mean in -1.0..1.0_f64, std in 0.3..1.0_f64,
        ) {
            let bins = byte_bins(Range::MinusOneOne);
            let values = || x.iter().map(|&i| (bins.level(i), mean, std * std));
            let mass = Decoder::Bins(bins).nll(0, values()).unwrap();
            let density = Decoder::Density.nll(0, values()).unwrap();
            // P = p w (1 + O((w / s)^2)), so -ln P = -ln p - D ln w.
            let expected = density - x.len() as f64 * bins.width().ln();
            let curvature = x.len() as f64 * (bins.width() / std).powi(2) * 4.0;
            prop_assert!((mass - expected).abs() < curvature, "{mass} instead of {expected}");
            let normal: f64 = values().map(|(x, m, _)| 0.5 * ((x - m) / std).powi(2) + (std * 2.5066282746310002).ln()).sum();
            prop_assert!((density - normal).abs() < 1e-12 * (1.0 + normal.abs()));
        }
    }

    #[test]
    fn bins_follow_the_range() {
        let (wide, unit) = (byte_bins(Range::MinusOneOne), byte_bins(Range::ZeroOne));
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
    fn what_is_no_level_is_refused() {
        let bins = byte_bins(Range::MinusOneOne);
        for value in [0.0, 1.001, -1.008, 1.0 + bins.width(), -1.0 - bins.width(), f64::NAN, f64::INFINITY] {
            assert_eq!(bins.index(value), None, "{value}");
        }
        assert_eq!(bins.index(-1.0 + 1e-6), Some(0));
        assert_eq!(bins.index(1.0 - 1e-6), Some(255));
        let error =
            Decoder::Bins(bins).nll(3, [(1.0, 0.0, 1.0), (0.25, 0.0, 1.0)].into_iter()).unwrap_err().to_string();
        assert!(error.contains("sample 3") && error.contains("0.25") && error.contains("256"), "{error}");
        for (low, high, count) in
            [(0.0, 1.0, 1), (1.0, 1.0, 4), (1.0, 0.0, 4), (f64::NAN, 1.0, 4), (0.0, f64::INFINITY, 4)]
        {
            assert!(Bins::new(low, high, count).is_err());
        }
    }
}
