//! Dynamic thresholding of estimates of `x_0` (FORMULAS 5.5; Saharia 2022, Imagen, section 2.3).

use ndarray::{Array4, Axis};

/// With `s` the `ratio` quantile of `|x_0|` of each sample, clamped to `[1, max]`, the sample is clamped to `[-s, s]` and divided
/// by `s`. The values of `x0` (`[N, C, H, W]`) are finite, `ratio` lies in [0, 1] and `max` is 1 or more.
///
/// $$ \hat x_0 \leftarrow \frac{1}{s} \mathrm{clip}(\hat x_0, -s, s), \quad s = \max(1, Q_p(|\hat x_0|)) $$
///
/// FORMULAS 5.5. Verified by `dynamic_threshold_is_per_sample`. Verified by `quantile_agrees_with_numpy`.
pub fn dynamic_threshold(x0: &mut Array4<f64>, ratio: f64, max: f64) {
    for mut sample in x0.axis_iter_mut(Axis(0)) {
        let s = quantile(sample.iter().map(|v| v.abs()).collect(), ratio).clamp(1.0, max);
        sample.mapv_inplace(|v| v.clamp(-s, s) / s);
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
        dynamic_threshold(&mut x0, 0.5, 5.0);
        let expected = [-1.0 / 3.0, 1.0, 1.0, 0.1, 0.2, -1.0, 1.0, -1.0, 0.2];
        for (found, expected) in x0.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-15, "{x0}");
        }
    }
}
