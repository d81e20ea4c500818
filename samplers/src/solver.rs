use ndarray::{Array4, ArrayView4, Axis, Zip};
use tweedie_denoiser::{Denoiser, Estimate, Noise, Purpose};
use tweedie_schedule::{GridMove, NoiseLevel};

use crate::SamplerError;

/// A rule that takes the state from one noise level to the next.
pub trait Solver: Send {
    /// The name on the command line.
    fn name(&self) -> &'static str;

    /// Forgets the history of an earlier run; called before the first move.
    fn begin(&mut self) {}

    /// The state at [`Move::to`] from the state `x` (`[N, C, H, W]`) at [`Move::from`].
    ///
    /// # Errors
    /// If the denoiser, the noise or the schedule has no answer.
    fn step(&mut self, x: ArrayView4<'_, f64>, on: &mut Move<'_>) -> Result<Advance, SamplerError>;
}

/// What a move leads to.
#[derive(Clone, Debug, PartialEq)]
pub struct Advance {
    /// The next state.
    pub x: Array4<f64>,
    /// The estimate of `x_0` that the move was made with, after clipping.
    pub x0: Array4<f64>,
}

/// One move of the loop: where it leads, and what a solver may use on the way.
pub struct Move<'a> {
    pub(crate) denoiser: &'a dyn Denoiser,
    pub(crate) noise: &'a dyn Noise,
    pub(crate) at: GridMove,
    pub(crate) position: usize,
    pub(crate) total: usize,
    pub(crate) draws: usize,
}

impl Move<'_> {
    /// The level that the move starts at.
    pub fn from(&self) -> NoiseLevel {
        self.at.from
    }

    /// The level that the move ends at.
    pub fn to(&self) -> NoiseLevel {
        self.at.to
    }

    /// The 1-based step `t` of the training process that the network is told at the start, fractional between two steps
    /// ([`GridMove::step`]).
    pub fn step(&self) -> f64 {
        self.at.step
    }

    /// Position of the move, from 0.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Number of moves.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Whether this is the last move, whose result is the sample.
    pub fn is_last(&self) -> bool {
        self.position + 1 == self.total
    }

    /// The denoiser's estimate of `x_0`.
    ///
    /// # Errors
    /// If the denoiser fails, changes the shape, or returns a NaN or an infinity; and if it wants the mean of a reverse step to
    /// be moved ([`Estimate::tilt`]), of which a solver that asks here has none.
    ///
    /// Verified by `a_tilt_needs_a_reverse_variance`.
    pub fn denoise(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Array4<f64>, SamplerError> {
        let estimate = self.estimate(x, level)?;
        if estimate.tilt.is_some() { Err(SamplerError::NoReverseVariance) } else { Ok(estimate.x0) }
    }

    /// The denoiser's estimate of `x_0`, with the learned variance where the model has one, and the tilt of the mean where it
    /// is guided so.
    ///
    /// # Errors
    /// If the denoiser fails, changes the shape, or returns a NaN or an infinity.
    pub fn estimate(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Estimate, SamplerError> {
        let estimate = self.denoiser.estimate(x, level)?;
        for values in std::iter::once(&estimate.x0).chain(&estimate.fraction).chain(&estimate.tilt) {
            if values.dim() != x.dim() {
                return Err(SamplerError::Shape { expected: x.shape().to_vec(), found: values.shape().to_vec() });
            }
        }
        self.check_finite("the estimate of x0", estimate.x0.view())?;
        if let Some(fraction) = &estimate.fraction {
            self.check_finite("the learned variance", fraction.view())?;
        }
        if let Some(tilt) = &estimate.tilt {
            self.check_finite("the gradient of the classifier", tilt.view())?;
        }
        Ok(estimate)
    }

    /// `x + scale z` with fresh standard normal noise `z`; draws nothing if the scale is 0.
    ///
    /// # Errors
    /// If the source of noise fails.
    pub fn add_noise(&mut self, mut x: Array4<f64>, scale: f64) -> Result<Array4<f64>, SamplerError> {
        if scale == 0.0 {
            return Ok(x);
        }
        let z = draw(self.noise, Purpose::Step(self.draws), x.dim())?;
        self.draws += 1;
        Zip::from(&mut x).and(&z).for_each(|x, &z| *x += scale * z);
        Ok(x)
    }

    /// `x + scale z`, as [`Move::add_noise`], with a scale for every value.
    ///
    /// # Errors
    /// If the source of noise fails.
    pub fn add_scaled_noise(
        &mut self,
        mut x: Array4<f64>,
        scale: ArrayView4<'_, f64>,
    ) -> Result<Array4<f64>, SamplerError> {
        let z = draw(self.noise, Purpose::Step(self.draws), x.dim())?;
        self.draws += 1;
        Zip::from(&mut x).and(scale).and(&z).for_each(|x, &scale, &z| *x += scale * z);
        Ok(x)
    }

    pub(crate) fn check_finite(&self, what: &'static str, x: ArrayView4<'_, f64>) -> Result<(), SamplerError> {
        if x.iter().all(|v| v.is_finite()) {
            return Ok(());
        }
        Err(SamplerError::NotFinite { what, position: self.position + 1, total: self.total, t: self.at.step })
    }
}

/// Standard normal noise for a batch of shape `dim`.
pub(crate) fn draw(
    noise: &dyn Noise,
    purpose: Purpose,
    dim: (usize, usize, usize, usize),
) -> Result<Array4<f64>, SamplerError> {
    let (_, channels, height, width) = dim;
    let mut z = Array4::zeros(dim);
    let mut buffer = vec![0.0; channels * height * width];
    for (index, mut sample) in z.axis_iter_mut(Axis(0)).enumerate() {
        noise.fill(purpose, index, &mut buffer)?;
        for (to, &from) in sample.iter_mut().zip(&buffer) {
            *to = from;
        }
    }
    Ok(z)
}
