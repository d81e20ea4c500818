//! The bridge from a network to a denoiser (FORMULAS 2.4).
//!
//! A network sees `x_t` and a number for time, and predicts eps, x0, v, the score or the mean; a denoiser sees `x_t` and a
//! noise level, and returns `x_0`. The conversion is affine and is computed in f64 from the f64 state, because at low signal
//! it divides by `alpha`.

use std::sync::Arc;

use ndarray::{Array4, ArrayView4, Zip};
use tweedie_schedule::{NoiseLevel, Prediction, Schedule, TimestepMapping, prediction};

use crate::denoise::check_batch;
use crate::{Condition, ConditionalDenoiser, Denoiser, DenoiserError, Network};

/// A network, what it predicts, and the schedule it was trained on.
#[derive(Clone, Debug)]
pub struct Preconditioned<N> {
    network: N,
    prediction: Prediction,
    schedule: Arc<Schedule>,
    mapping: TimestepMapping,
}

impl<N: Network> Preconditioned<N> {
    /// The denoiser of `network`, which predicts `prediction` and sees time as `mapping` on `schedule`.
    pub fn new(
        network: N,
        prediction: Prediction,
        schedule: impl Into<Arc<Schedule>>,
        mapping: TimestepMapping,
    ) -> Self {
        Self { network, prediction, schedule: schedule.into(), mapping }
    }

    /// The network.
    pub fn network(&self) -> &N {
        &self.network
    }

    /// The schedule.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }
}

impl<N: Network> ConditionalDenoiser for Preconditioned<N> {
    /// One call of the network for the whole batch.
    ///
    /// # Errors
    /// As [`Network::predict`]; if the level lies outside steps 1..=T, the conversion to `x_0` is singular there, or the
    /// output is not of the shape of `x`. A network that predicts the mean can be asked at integer steps only.
    ///
    /// Verified by `the_bridge_returns_x0`.
    fn denoise_with(
        &self,
        x: ArrayView4<'_, f64>,
        level: NoiseLevel,
        condition: &Condition,
    ) -> Result<Array4<f64>, DenoiserError> {
        let (batch, channels, height, width) = x.dim();
        check_batch(batch, condition)?;
        let timestep = self.mapping.timestep(&self.schedule, level)?;
        let posterior = self.prediction.posterior(&self.schedule, level)?;
        let to_x0 = prediction::convert(self.prediction, Prediction::X0, level, posterior.as_ref())?;
        let output = self.network.predict(x.mapv(|v| v as f32).view(), &vec![timestep; batch], condition)?;
        if output.dim() == (batch, 2 * channels, height, width) {
            return Err(DenoiserError::LearnedVariance { expected: channels, found: 2 * channels });
        }
        if output.dim() != x.dim() {
            return Err(DenoiserError::Shape {
                operation: "denoise",
                what: "the output of the network",
                expected: format!("{:?}", x.shape()),
                found: format!("{:?}", output.shape()),
                remedy: "use a network that keeps the shape of its input",
            });
        }
        Ok(Zip::from(x).and(&output).map_collect(|&x, &o| to_x0.apply(x, f64::from(o))))
    }
}

impl<N: Network> Denoiser for Preconditioned<N> {
    /// The estimate without a condition.
    fn denoise(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Array4<f64>, DenoiserError> {
        let batch = x.dim().0;
        self.denoise_with(x, level, &Condition::none(batch))
    }
}
