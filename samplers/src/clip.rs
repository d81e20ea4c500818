//! What is done to an estimate of `x_0` before it is used (DIFFUSERS.md, section 3).

use ndarray::Array4;
use tweedie_denoiser::dynamic_threshold;

use crate::SamplerError;

/// Post-processing of the estimate of `x_0`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum Clip {
    /// As it is.
    #[default]
    None,
    /// Clamped to `[-r, r]` (`clip_sample`).
    Range(f64),
    /// Dynamic thresholding ([`dynamic_threshold`]).
    Dynamic {
        /// The quantile, in [0, 1]; 0.995 in the paper.
        ratio: f64,
        /// Upper bound of `s`, at least 1.
        max: f64,
    },
}

impl Clip {
    /// Checks the parameters.
    ///
    /// # Errors
    /// If a range is not positive, a ratio lies outside [0, 1], or a maximum is below 1.
    pub fn check(self) -> Result<Self, SamplerError> {
        let parameter =
            |what, expected, found| Err(SamplerError::Parameter { operation: "clip of x0", what, expected, found });
        match self {
            Self::Range(r) if r.is_nan() || r <= 0.0 => parameter("the range", "above 0", r),
            Self::Dynamic { ratio, .. } if !(0.0..=1.0).contains(&ratio) => parameter("the ratio", "in [0, 1]", ratio),
            Self::Dynamic { max, .. } if max.is_nan() || max < 1.0 => parameter("the maximum", "1 or more", max),
            _ => Ok(self),
        }
    }

    /// Applies it to each sample of `x0` (`[N, C, H, W]`), whose values are finite.
    pub fn apply(self, x0: &mut Array4<f64>) {
        match self {
            Self::None => {}
            Self::Range(r) => x0.mapv_inplace(|v| v.clamp(-r, r)),
            Self::Dynamic { ratio, max } => dynamic_threshold(x0, ratio, max),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_dynamic_thresholds_are_applied() {
        let x0 = Array4::from_shape_vec((1, 1, 1, 3), vec![-1.0, 3.0, 0.25]).unwrap();
        let applied = |clip: Clip| {
            let mut x0 = x0.clone();
            clip.apply(&mut x0);
            x0.into_raw_vec_and_offset().0
        };
        assert_eq!(applied(Clip::None), [-1.0, 3.0, 0.25]);
        assert_eq!(applied(Clip::Range(0.5)), [-0.5, 0.5, 0.25]);
        assert_eq!(applied(Clip::Dynamic { ratio: 1.0, max: 2.0 }), [-0.5, 1.0, 0.125]);
    }

    #[test]
    fn parameters_are_checked() {
        for bad in [
            Clip::Range(0.0),
            Clip::Range(f64::NAN),
            Clip::Dynamic { ratio: 1.5, max: 1.0 },
            Clip::Dynamic { ratio: 0.5, max: 0.9 },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
        assert!(Clip::Dynamic { ratio: 0.995, max: 1.0 }.check().is_ok());
    }
}
