//! What is done to an estimate of `x_0` before it is used (DIFFUSERS.md, section 3).

use ndarray::{Array4, Axis};

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
    /// Dynamic thresholding (Saharia 2022, Imagen, section 2.3): with `s` the `ratio` quantile of `|x_0|` of each sample,
    /// clamped to `[1, max]`, the sample is clamped to `[-s, s]` and divided by `s`.
    ///
    /// FORMULAS 5.5. Verified by `dynamic_threshold_is_per_sample`.
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
            Self::Dynamic { ratio, max } => {
                for mut sample in x0.axis_iter_mut(Axis(0)) {
                    let s = quantile(sample.iter().map(|v| v.abs()).collect(), ratio).clamp(1.0, max);
                    sample.mapv_inplace(|v| v.clamp(-s, s) / s);
                }
            }
        }
    }
}

/// The quantile with linear interpolation between order statistics, as torch and numpy have it; 0 of nothing.
fn quantile(mut values: Vec<f64>, ratio: f64) -> f64 {
    if values.is_empty() {
        return 0.0;
    }
    let at = ratio * (values.len() - 1) as f64;
    let (below, fraction) = (at.floor() as usize, at - at.floor());
    let (_, &mut low, above) = values.select_nth_unstable_by(below, f64::total_cmp);
    let next = above.iter().copied().fold(f64::INFINITY, f64::min);
    if fraction == 0.0 || next.is_infinite() { low } else { low + fraction * (next - low) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantile_agrees_with_numpy() {
        // numpy.quantile([3, 1, 2, 10, 7], q) for the given q.
        for (ratio, expected) in [(0.0, 1.0), (0.1, 1.4), (0.5, 3.0), (0.6, 4.6), (0.9, 8.8), (1.0, 10.0)] {
            let found = quantile(vec![3.0, 1.0, 2.0, 10.0, 7.0], ratio);
            assert!((found - expected).abs() < 1e-12, "q = {ratio}: {found} instead of {expected}");
        }
    }

    #[test]
    fn dynamic_threshold_is_per_sample() {
        // |x0| quantiles at 0.5: 3 (kept), 0.2 (raised to 1), 30 (lowered to 5).
        let mut x0 =
            Array4::from_shape_vec((3, 1, 1, 3), vec![-1.0, 3.0, 6.0, 0.1, 0.2, -4.0, 30.0, -30.0, 1.0]).unwrap();
        Clip::Dynamic { ratio: 0.5, max: 5.0 }.apply(&mut x0);
        let expected = [-1.0 / 3.0, 1.0, 1.0, 0.1, 0.2, -1.0, 1.0, -1.0, 0.2];
        for (found, expected) in x0.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-15, "{x0}");
        }
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
