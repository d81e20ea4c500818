use std::f64::consts::LN_2;

/// A mean over independent values and how far it may be off.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// The standard error of the mean, `sqrt(sum (x_i - mean)^2 / (n (n - 1)))`; `None` for fewer than two values.
    pub standard_error: Option<f64>,
    /// How many values there were.
    pub count: usize,
}

impl Estimate {
    /// The mean of independent values, in their unit, with its standard error. Of no value: NaN.
    ///
    /// Verified by `estimate_of_values_known_by_hand`.
    pub fn of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|v| (v - mean) * (v - mean)).sum();
        let standard_error = (values.len() > 1).then(|| (squares / (n * (n - 1.0))).sqrt());
        Self { mean, standard_error, count: values.len() }
    }

    /// The estimate in another unit: both numbers times `factor`, which is not negative.
    pub fn scaled(self, factor: f64) -> Self {
        Self { mean: self.mean * factor, standard_error: self.standard_error.map(|e| e * factor), count: self.count }
    }
}

/// Nats per sample of `dims` numbers as bits per dimension: `nats / (dims ln 2)`.
///
/// Verified by `bits_per_dim_of_a_fair_byte`.
pub fn bits_per_dim(nats: f64, dims: usize) -> f64 {
    nats / (dims as f64 * LN_2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn estimate_of_values_known_by_hand() {
        // Deviations -3, -1, 0, 4: squares sum to 26, over 4 * 3.
        let estimate = Estimate::of(&[1.0, 3.0, 4.0, 8.0]);
        assert_eq!((estimate.mean, estimate.count), (4.0, 4));
        assert!((estimate.standard_error.unwrap() - (26.0_f64 / 12.0).sqrt()).abs() < 1e-15);
        assert_eq!(Estimate::of(&[2.5]), Estimate { mean: 2.5, standard_error: None, count: 1 });
        assert_eq!(Estimate::of(&[1.0, 3.0]).standard_error, Some(1.0));
        assert_eq!(Estimate::of(&[1.0, 3.0]).scaled(0.5), Estimate { mean: 1.0, standard_error: Some(0.5), count: 2 });
    }

    #[test]
    fn bits_per_dim_of_a_fair_byte() {
        // 784 pixels, each of 256 equally likely values.
        assert!((bits_per_dim(784.0 * 256.0_f64.ln(), 784) - 8.0).abs() < 1e-13);
    }
}
