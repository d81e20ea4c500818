//! The cross-entropy of a classifier and its gradient with respect to the logits.

use ndarray::{Array4, ArrayView4, Axis};

use super::BatchLoss;

/// The mean over the images of
///
/// ```text
/// L = -sum_k q_k ln p_k,  p = softmax(z),  q_k = (1 - s) [k = y] + s / K,   dL/dz_k = p_k - q_k
/// ```
///
/// with the smoothing `s` (Szegedy et al. 2016, section 7). Without it, `-L` is `ln p(y | x_t)`, whose gradient in `x_t` guides
/// (Dhariwal & Nichol 2021, section 4).
///
/// FORMULAS 5.3. Verified by `cross_entropies_are_those_of_the_definition`.
/// Verified by `gradients_of_the_cross_entropy_are_its_differences`.
///
/// # Panics
/// If the output is not `[N, K, 1, 1]`, or a label is not below K.
pub(super) fn of_batch(labels: &[usize], smoothing: f64, output: ArrayView4<'_, f32>) -> BatchLoss {
    let (n, classes, h, w) = output.dim();
    assert_eq!((n, h, w), (labels.len(), 1, 1), "logits [N, K, 1, 1] for the batch");
    let mut gradient = Array4::zeros(output.raw_dim());
    let mut images = Vec::with_capacity(n);
    for ((z, mut gradient), &label) in output.outer_iter().zip(gradient.outer_iter_mut()).zip(labels) {
        assert!(label < classes, "a label should be below {classes}, found {label}");
        let z = z.index_axis(Axis(1), 0);
        let z = z.index_axis(Axis(1), 0);
        let highest = f64::from(z.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let log_sum = highest + z.iter().map(|&z| (f64::from(z) - highest).exp()).sum::<f64>().ln();
        let mut value = 0.0;
        for (k, (&z, gradient)) in z.iter().zip(&mut gradient).enumerate() {
            let q = (1.0 - smoothing) * f64::from(u8::from(k == label)) + smoothing / classes as f64;
            let log_p = f64::from(z) - log_sum;
            if q > 0.0 {
                value -= q * log_p;
            }
            *gradient = ((log_p.exp() - q) / n as f64) as f32;
        }
        images.push(value);
    }
    BatchLoss { value: images.iter().sum::<f64>() / n.max(1) as f64, gradient, images }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits() -> Array4<f32> {
        Array4::from_shape_fn((4, 5, 1, 1), |(i, k, _, _)| ((i * 7 + k * 5) % 9) as f32 * 0.7 - 2.0)
    }

    #[test]
    fn cross_entropies_are_those_of_the_definition() {
        let (z, labels) = (logits(), [0, 4, 2, 2]);
        for smoothing in [0.0, 0.1, 1.0] {
            let loss = of_batch(&labels, smoothing, z.view());
            for (i, &label) in labels.iter().enumerate() {
                let exp: Vec<f64> = (0..5).map(|k| f64::from(z[[i, k, 0, 0]]).exp()).collect();
                let p: Vec<f64> = exp.iter().map(|e| e / exp.iter().sum::<f64>()).collect();
                let mean = p.iter().map(|p| -p.ln()).sum::<f64>() / 5.0;
                let expected = -(1.0 - smoothing) * p[label].ln() + smoothing * mean;
                assert!((loss.images[i] - expected).abs() < 1e-12, "{} {expected}", loss.images[i]);
            }
            assert!((loss.value - loss.images.iter().sum::<f64>() / 4.0).abs() < 1e-12);
        }
        // Logits far apart are no overflow, and a certain answer costs nothing.
        let certain = Array4::from_shape_vec((1, 2, 1, 1), vec![1e4, -1e4]).unwrap();
        assert_eq!(of_batch(&[0], 0.0, certain.view()).value, 0.0);
        assert_eq!(of_batch(&[1], 0.0, certain.view()).value, 2e4);
    }

    #[test]
    fn gradients_of_the_cross_entropy_are_its_differences() {
        let (z, labels, h) = (logits(), [0, 4, 2, 2], 1.0 / 64.0);
        for smoothing in [0.0, 0.1] {
            let gradient = of_batch(&labels, smoothing, z.view()).gradient;
            for (at, &gradient) in gradient.indexed_iter() {
                let value = |h: f32| {
                    let mut z = z.clone();
                    z[at] += h;
                    of_batch(&labels, smoothing, z.view()).value
                };
                let numeric = (value(h) - value(-h)) / f64::from(2.0 * h);
                // The third derivative of the log-sum-exp is below 1/10, of the mean over four images below 1/40.
                assert!((numeric - f64::from(gradient)).abs() < f64::from(h * h) / 200.0, "{numeric} {gradient}");
            }
        }
    }
}
