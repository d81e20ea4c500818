//! The bridge from a network to a denoiser (FORMULAS 2.4).
//!
//! A network sees `x_t` and a number for time, and predicts eps, x0, v, the score or the mean; a denoiser sees `x_t` and a
//! noise level, and returns `x_0`. The conversion is affine and is computed in f64 from the f64 state, because at low signal
//! it divides by `alpha`.

use std::sync::Arc;

use ndarray::{Array4, ArrayView4, Axis, Zip};
use tweedie_schedule::{Bridge, NoiseLevel, Prediction, Schedule, TimestepMapping, VarianceRange};

use crate::denoise::check_batch;
use crate::{Condition, ConditionalDenoiser, Denoiser, DenoiserError, Estimate, Network};

/// A network and how it is read.
#[derive(Clone, Debug)]
pub struct Preconditioned<N> {
    network: N,
    bridge: Bridge,
}

impl<N: Network> Preconditioned<N> {
    /// The denoiser of `network`, which predicts `prediction` and sees time as `mapping` on `schedule`.
    pub fn new(
        network: N,
        prediction: Prediction,
        schedule: impl Into<Arc<Schedule>>,
        mapping: TimestepMapping,
    ) -> Self {
        Self::with_bridge(network, Bridge::new(prediction, schedule, mapping))
    }

    /// The denoiser of `network`, read as `bridge` says.
    pub fn with_bridge(network: N, bridge: Bridge) -> Self {
        Self { network, bridge }
    }

    /// The network.
    pub fn network(&self) -> &N {
        &self.network
    }
}

impl<N: Network> ConditionalDenoiser for Preconditioned<N> {
    /// One call of the network for the whole batch.
    ///
    /// # Errors
    /// As [`Network::predict`]; if the level lies outside steps 1..=T, the conversion to `x_0` is singular there, or the
    /// output is not of the shape of `x`, or of twice its channels. A network that predicts the mean can be asked at integer
    /// steps only.
    ///
    /// Verified by `the_bridge_returns_x0`.
    fn denoise_with(
        &self,
        x: ArrayView4<'_, f64>,
        level: NoiseLevel,
        condition: &Condition,
    ) -> Result<Array4<f64>, DenoiserError> {
        Ok(self.estimate_with(x, level, condition)?.x0)
    }

    /// Of a network with twice the channels of its input the first half is the prediction and the second one the learned
    /// variance (Nichol & Dhariwal 2021, section 3.1).
    ///
    /// Verified by `the_second_half_of_the_channels_is_the_variance`.
    fn estimate_with(
        &self,
        x: ArrayView4<'_, f64>,
        level: NoiseLevel,
        condition: &Condition,
    ) -> Result<Estimate, DenoiserError> {
        let (batch, channels, height, width) = x.dim();
        check_batch(batch, condition)?;
        let at = self.bridge.at(level)?;
        let input = x.mapv(|v| (at.of_input * v) as f32);
        let output = self.network.predict(input.view(), &vec![at.number; batch], condition)?;
        let learned = output.dim() == (batch, 2 * channels, height, width);
        if output.dim() != x.dim() && !learned {
            return Err(DenoiserError::Shape {
                operation: "denoise",
                what: "the output of the network",
                expected: format!("{:?}, or twice the channels", x.shape()),
                found: format!("{:?}", output.shape()),
                remedy: "use a network that keeps the shape of its input",
            });
        }
        let (predicted, variance) = output.view().split_at(Axis(1), channels);
        let x0 = Zip::from(x).and(&predicted).map_collect(|&x, &o| at.to_x0.apply(x, f64::from(o)));
        let fraction = learned.then(|| variance.mapv(|o| VarianceRange::fraction(f64::from(o))));
        Ok(Estimate { fraction, ..Estimate::from(x0) })
    }
}

impl<N: Network> Denoiser for Preconditioned<N> {
    /// The estimate without a condition.
    fn denoise(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Array4<f64>, DenoiserError> {
        Ok(self.estimate(x, level)?.x0)
    }

    fn estimate(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Estimate, DenoiserError> {
        let batch = x.dim().0;
        self.estimate_with(x, level, &Condition::none(batch))
    }
}
