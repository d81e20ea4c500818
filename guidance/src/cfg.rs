//! Classifier-free guidance (FORMULAS 5.4, 5.5; Ho & Salimans 2022, eq. 6).
//!
//! `u + g (c - u)`, with `c` the estimate under the condition and `u` the one without it, or under a negative condition. The
//! weights `g` and `1 - g` sum to 1 and every prediction is affine in `x_0` with the same term in `x_t`, so guiding `x_0` is
//! guiding eps, v or the score. The paper writes `(1 + w) c - w u`, which is `g = 1 + w`.

use ndarray::{Array4, ArrayView4, Axis, Slice, Zip, concatenate};
use tweedie_denoiser::{Condition, ConditionalDenoiser, Denoiser, DenoiserError, Estimate};
use tweedie_schedule::NoiseLevel;

use crate::error::finite;
use crate::{GuidanceError, Guide, Guided};

const OPERATION: &str = "classifier-free guidance";

/// `u + scale (c - u)`.
///
/// $$ u + g (c - u) = (1 + w) c - w u, \quad g = 1 + w $$
///
/// FORMULAS 5.4. Verified by `guidance_commutes_with_conversions`. Verified by `guided_score_is_bayes_rule`.
pub fn guided(uncond: f64, cond: f64, scale: f64) -> f64 {
    uncond + scale * (cond - uncond)
}

/// The scale `g = 1 + w` of a weight `w` in the convention `(1 + w) c - w u` (Ho & Salimans 2022, eq. 6).
///
/// FORMULAS 5.4. Verified by `conventions_agree`.
pub fn scale_from_weight(w: f64) -> f64 {
    1.0 + w
}

/// A conditional model guided away from its unconditional self, or from a negative condition.
#[derive(Clone, Debug)]
pub struct Cfg<M> {
    model: M,
    cond: Condition,
    uncond: Condition,
    scale: f64,
}

impl<M: ConditionalDenoiser> Cfg<M> {
    /// `model` under `cond`, guided away from `uncond` with `scale`: 0 is `uncond` alone, 1 is `cond` alone, above 1 is
    /// guidance. Both conditions have one entry per sample.
    ///
    /// # Errors
    /// If the conditions differ in length, or the scale is not finite.
    ///
    /// FORMULAS 5.4, 5.5. Verified by `ends_are_exact`. Verified by `gamma_1_samples_the_conditional`.
    pub fn new(model: M, cond: Condition, uncond: Condition, scale: f64) -> Result<Self, GuidanceError> {
        if cond.len() != uncond.len() {
            return Err(GuidanceError::Batch { cond: cond.len(), uncond: uncond.len() });
        }
        Ok(Self { model, cond, uncond, scale: finite(OPERATION, scale, 1.0)? })
    }
}

impl<M: ConditionalDenoiser> Cfg<M> {
    /// The estimate under the condition, and that of `x_0` under the other one, by one call of the model: `[cond; uncond]` as
    /// one batch, without the samples whose two conditions are the same, for which both estimates are.
    fn pair(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<(Estimate, Array4<f64>), DenoiserError> {
        let batch = x.len_of(Axis(0));
        let differing: Vec<usize> = (0..batch).filter(|&i| !self.cond.agrees(&self.uncond, i)).collect();
        if differing.is_empty() {
            let estimate = self.model.estimate_with(x, level, &self.cond)?;
            let other = estimate.x0.clone();
            return Ok((estimate, other));
        }
        let rows = batch + differing.len();
        let shape_error = |found: String| DenoiserError::Shape {
            operation: OPERATION,
            what: "the estimate for the joined batch",
            expected: format!("{rows} samples of the shape of x {:?}", x.shape()),
            found,
            remedy: "use a model that keeps the shape of its input",
        };
        let again = x.select(Axis(0), &differing);
        let joined = concatenate(Axis(0), &[x, again.view()]).map_err(|e| shape_error(e.to_string()))?;
        let condition = self.cond.concat(&self.uncond.select(&differing));
        let Estimate { x0, fraction, tilt } = self.model.estimate_with(joined.view(), level, &condition)?;
        if x0.dim() != joined.dim() {
            return Err(shape_error(format!("{:?}", x0.shape())));
        }
        let first = |rows: Array4<f64>| rows.slice_axis(Axis(0), Slice::from(..batch)).to_owned();
        let (of_cond, of_uncond) = x0.view().split_at(Axis(0), batch);
        let of_cond = of_cond.to_owned();
        let mut other = of_cond.clone();
        for (&i, row) in differing.iter().zip(of_uncond.outer_iter()) {
            other.index_axis_mut(Axis(0), i).assign(&row);
        }
        Ok((Estimate { x0: of_cond, fraction: fraction.map(first), tilt: tilt.map(first) }, other))
    }

    fn check(&self, x: ArrayView4<'_, f64>) -> Result<(), DenoiserError> {
        let batch = x.len_of(Axis(0));
        if batch == self.cond.len() {
            return Ok(());
        }
        Err(DenoiserError::Condition {
            operation: OPERATION,
            message: format!(
                "the conditions have {} entries for a batch of {batch}; pass one entry per sample",
                self.cond.len()
            ),
        })
    }
}

impl<M: ConditionalDenoiser> Denoiser for Cfg<M> {
    fn denoise(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Array4<f64>, DenoiserError> {
        Ok(self.estimate(x, level)?.x0)
    }

    /// One call of the model: `[cond; uncond]` as one batch of up to 2N, or a batch of N if the scale is exactly 1 or 0. A
    /// sample whose two conditions are the same is in it once.
    ///
    /// A learned variance is that under the condition, as in the code of Nichol & Dhariwal (2021): guidance moves the mean.
    ///
    /// # Errors
    /// As the model; and if the batch is not that of the conditions.
    fn estimate(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Estimate, DenoiserError> {
        self.check(x)?;
        if self.scale == 1.0 {
            return self.model.estimate_with(x, level, &self.cond);
        }
        if self.scale == 0.0 {
            return self.model.estimate_with(x, level, &self.uncond);
        }
        Ok(self.both(x, level)?.guided)
    }
}

impl<M: ConditionalDenoiser> Guide for Cfg<M> {
    fn plain(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Estimate, DenoiserError> {
        self.check(x)?;
        self.model.estimate_with(x, level, &self.cond)
    }

    fn both(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Guided, DenoiserError> {
        self.check(x)?;
        if self.scale == 1.0 {
            let guided = self.model.estimate_with(x, level, &self.cond)?;
            return Ok(Guided { plain: guided.x0.clone(), guided });
        }
        let (cond, uncond) = self.pair(x, level)?;
        let x0 = Zip::from(&uncond).and(&cond.x0).map_collect(|&u, &c| guided(u, c, self.scale));
        Ok(Guided { plain: cond.x0, guided: Estimate { x0, fraction: cond.fraction, tilt: cond.tilt } })
    }
}
