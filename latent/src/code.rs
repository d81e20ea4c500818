//! Between pictures and the latents that a network is trained on (Rombach et al. 2022, section 3.1 and appendix G).
//!
//! ```text
//! moments of a picture: mean m and log-variance v;  z = (m + exp(v/2) eps - shift) s;  picture = D(z / s + shift)
//! ```

use ndarray::{Array4, ArrayView4, Axis, Zip};

use crate::LatentError;

/// Log-variances are kept within these bounds.
const LOG_VARIANCE: [f32; 2] = [-30.0, 20.0];

/// The factor, and the shift, by which latents are brought to about unit variance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LatentScale {
    /// s (`scaling_factor`), above 0.
    pub factor: f64,
    /// `shift_factor`, zero for Stable Diffusion.
    pub shift: f64,
}

impl Default for LatentScale {
    /// Stable Diffusion's, which files without `scaling_factor` mean.
    fn default() -> Self {
        Self { factor: 0.18215, shift: 0.0 }
    }
}

impl LatentScale {
    /// What the network is trained on, of an encoding: `(z - shift) s`.
    ///
    /// FORMULAS 7.4. Verified by `scaling_there_and_back`.
    pub fn to_network(&self, latents: Array4<f32>) -> Array4<f32> {
        latents.mapv_into(|z| ((f64::from(z) - self.shift) * self.factor) as f32)
    }

    /// What the decoder takes, of a sample: `z / s + shift`.
    ///
    /// FORMULAS 7.4. Verified by `scaling_there_and_back`.
    pub fn to_decoder(&self, latents: Array4<f32>) -> Array4<f32> {
        latents.mapv_into(|z| (f64::from(z) / self.factor + self.shift) as f32)
    }
}

/// The distribution of the latents of pictures.
#[derive(Clone, Debug, PartialEq)]
pub struct Posterior {
    /// The mean, `[N, C, h, w]`.
    pub mean: Array4<f32>,
    /// The logarithm of the variance, of the same shape, in [-30, 20].
    pub log_variance: Array4<f32>,
}

impl Posterior {
    /// The distribution of what an encoder gives, `[N, 2C, h, w]`: means first.
    ///
    /// # Errors
    /// If the number of channels is odd.
    pub fn of_moments(moments: ArrayView4<'_, f32>) -> Result<Self, LatentError> {
        let channels = moments.len_of(Axis(1));
        if !channels.is_multiple_of(2) {
            return Err(LatentError::Parameter {
                operation: "reading the moments of latents",
                what: "the number of channels".into(),
                expected: "even, means and log-variances".into(),
                found: channels.to_string(),
                remedy: "pass what the encoder gives",
            });
        }
        let (mean, log_variance) = moments.split_at(Axis(1), channels / 2);
        let [low, high] = LOG_VARIANCE;
        Ok(Self { mean: mean.to_owned(), log_variance: log_variance.mapv(|v| v.clamp(low, high)) })
    }

    /// `mean + exp(log_variance / 2) noise`, with standard normal noise of the shape of the mean.
    ///
    /// # Errors
    /// If the noise has another shape.
    ///
    /// FORMULAS 7.4. Verified by `a_sample_has_the_moments`.
    pub fn sample(&self, noise: ArrayView4<'_, f32>) -> Result<Array4<f32>, LatentError> {
        if noise.dim() != self.mean.dim() {
            return Err(LatentError::Parameter {
                operation: "drawing latents of a picture",
                what: "the shape of the noise".into(),
                expected: format!("{:?}", self.mean.shape()),
                found: format!("{:?}", noise.shape()),
                remedy: "draw one number for each latent",
            });
        }
        let zip = Zip::from(&self.mean).and(&self.log_variance).and(&noise);
        Ok(zip.map_collect(|m, v, e| m + (0.5 * v).exp() * e))
    }
}

/// What a decoder gives, in [-1, 1], as brightness in [0, 1]: `x / 2 + 1/2`, with what is beyond cut off.
pub fn to_brightness(pictures: Array4<f32>) -> Array4<f32> {
    pictures.mapv_into(|x| (0.5 * x + 0.5).clamp(0.0, 1.0))
}

/// Brightness in [0, 1] as an encoder takes it, in [-1, 1].
pub fn from_brightness(pictures: Array4<f32>) -> Array4<f32> {
    pictures.mapv_into(|x| 2.0 * x - 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scaling_there_and_back() {
        let z = Array4::from_shape_fn((1, 4, 2, 3), |(_, c, i, j)| (c * 6 + i * 3 + j) as f32 - 9.0);
        assert_eq!(LatentScale::default().to_network(z.clone())[(0, 0, 0, 0)], (-9.0 * 0.18215) as f32);
        let scale = LatentScale { factor: 0.3611, shift: 0.1159 };
        let scaled = scale.to_network(z.clone());
        assert!((scaled[(0, 2, 1, 0)] - (6.0 - 0.1159) * 0.3611).abs() < 1e-6);
        let back = scale.to_decoder(scaled);
        assert!(back.iter().zip(&z).all(|(a, b)| (a - b).abs() < 1e-5));
    }

    #[test]
    fn a_sample_has_the_moments() {
        let moments = Array4::from_shape_fn((2, 4, 1, 2), |(n, c, _, j)| match c {
            0 | 1 => (n + j) as f32 - 3.0 * c as f32,
            2 => 2.0 * 3f32.ln(),
            _ => [-100.0, 100.0][j],
        });
        let posterior = Posterior::of_moments(moments.view()).unwrap();
        assert_eq!(posterior.log_variance[(0, 1, 0, 0)], -30.0);
        assert_eq!(posterior.log_variance[(1, 1, 0, 1)], 20.0);
        let noise = Array4::from_elem((2, 2, 1, 2), -2.0);
        let sample = posterior.sample(noise.view()).unwrap();
        for (at, x) in sample.indexed_iter() {
            let deviation = if at.1 == 0 { 3.0 } else { [(-15f32).exp(), 10f32.exp()][at.3] };
            let expected = posterior.mean[at] - 2.0 * deviation;
            assert!((x - expected).abs() <= 1e-6 * expected.abs().max(1.0), "{at:?}: {x} for {expected}");
        }
        assert_eq!(posterior.sample(Array4::zeros(sample.dim()).view()).unwrap(), posterior.mean);
        assert!(posterior.sample(Array4::zeros((1, 2, 1, 2)).view()).is_err());
        assert!(Posterior::of_moments(Array4::zeros((1, 3, 1, 1)).view()).is_err());
    }

    #[test]
    fn brightness_is_cut_off_at_black_and_white() {
        let x = Array4::from_shape_vec((1, 1, 1, 5), vec![-1.5, -1.0, 0.0, 1.0, 7.0]).unwrap();
        let bright = to_brightness(x);
        assert_eq!(bright.as_slice().unwrap(), [0.0, 0.0, 0.5, 1.0, 1.0]);
        assert_eq!(from_brightness(bright).as_slice().unwrap(), [-1.0, -1.0, 0.0, 1.0, 1.0]);
    }
}
