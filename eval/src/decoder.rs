//! `p(x_0 | x_1)`: the last step of the reverse process (FORMULAS 4.1, `L_0`; Ho, Jain & Abbeel 2020, eq. 13).

use tweedie_data::Range;
use tweedie_schedule::Bins;
use tweedie_schedule::gaussian::log_normal;

use crate::EvalError;

/// The 256 levels of bytes in a range: `w = 2/255` in `[-1, 1]`, `1/255` in `[0, 1]`.
pub fn byte_bins(range: Range) -> Bins {
    let (low, high) = (range.from_byte(0).into(), range.from_byte(u8::MAX).into());
    Bins::new(low, high, 256).expect("black is below white")
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
