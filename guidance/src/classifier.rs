//! Guidance by a classifier (FORMULAS 5.2, 5.3, 5.6; Dhariwal & Nichol 2021, section 4).
//!
//! By Bayes' rule `grad ln p(x_t | y) = grad ln p(x_t) + grad ln p(y | x_t)`. With `g = grad ln p(y | x_t)` from a classifier of
//! noisy states, and a scale `gamma`, the score becomes `s + gamma g`; the same in other predictions is
//! `eps - sigma gamma g` (Algorithm 2) and, for the mean of a reverse step with variance `sigma_q^2`, `mean + gamma sigma_q^2 g`
//! (Algorithm 1). A conditional and an unconditional model are such a classifier: `g = -(eps_c - eps_u) / sigma`.
//!
//! Each function is for one element of its tensors; [`ClassifierGuided`] is the guided model. The gradient is taken at `x_t`, as
//! in the authors' code, and its cost is a forward and a backward pass of the classifier.

use ndarray::{Array4, ArrayView4};
use tweedie_denoiser::{Condition, Denoiser, DenoiserError, Estimate, LevelClassifier};
use tweedie_schedule::{NoiseLevel, Prediction, prediction};

use crate::error::finite;
use crate::{GuidanceError, Guide, Guided};

/// `s + scale g`: the score of `p(x_t) p(y | x_t)^scale` (Dhariwal & Nichol 2021, eq. 13).
///
/// $$ \nabla \log p(x_t) + \gamma \nabla \log p(y \mid x_t) $$
///
/// FORMULAS 5.2, 5.3. Verified by `classifier_guidance_is_classifier_free_guidance`.
pub fn guided_score(score: f64, gradient: f64, scale: f64) -> f64 {
    score + scale * gradient
}

/// `eps - sigma scale g` with `sigma = sqrt(1 - abar_t)` (Dhariwal & Nichol 2021, Algorithm 2, for DDIM).
///
/// FORMULAS 5.3. Verified by `guided_eps_is_the_guided_score`.
pub fn guided_eps(eps: f64, sigma: f64, gradient: f64, scale: f64) -> f64 {
    eps - sigma * scale * gradient
}

/// `mean + scale variance g` for a reverse step `N(mean, variance I)` (Dhariwal & Nichol 2021, eq. 10 and Algorithm 1):
/// the mean of `N(x; mean, variance) exp(scale g x)`, where `ln p(y | x)` is taken to be linear in `x`.
///
/// FORMULAS 5.3. Verified by `guided_mean_tilts_the_step`.
pub fn guided_mean(mean: f64, variance: f64, gradient: f64, scale: f64) -> f64 {
    mean + scale * variance * gradient
}

/// `grad ln p(y | x_t) = -(eps_c - eps_u) / sigma` with `sigma = sqrt(1 - abar_t) > 0`: the classifier that a conditional and
/// an unconditional estimate of the noise imply (FORMULAS 5.6; Ho & Salimans 2022, section 3.2).
///
/// $$ \nabla \log p(y \mid x_t) = - \frac{\varepsilon_c - \varepsilon_u}{\sqrt{1 - \bar\alpha_t}} $$
///
/// FORMULAS 5.6. Verified by `implicit_classifier_is_exact`.
pub fn implicit_gradient(eps_cond: f64, eps_uncond: f64, sigma: f64) -> f64 {
    -(eps_cond - eps_uncond) / sigma
}

/// What a classifier moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ClassifierForm {
    /// The score, for any sampler: `eps - sigma gamma g`, which is `x_0 + gamma sigma^2 / alpha g` (Dhariwal & Nichol 2021,
    /// Algorithm 2).
    #[default]
    Score,
    /// The mean of the reverse step, for ancestral sampling: `mean + gamma sigma_q^2 g` (Algorithm 1). The estimate of `x_0`
    /// stays as it is, and the sampler, which knows `sigma_q^2`, a learned one too, moves the mean ([`Estimate::tilt`]).
    /// Samplers without a reverse variance refuse it.
    Mean,
}

impl ClassifierForm {
    /// The names that [`ClassifierForm::from_name`] knows.
    pub const NAMES: &'static str = "score, mean";

    /// The name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Score => "score",
            Self::Mean => "mean",
        }
    }

    /// The form of a name; `None` if there is none.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Score, Self::Mean].into_iter().find(|form| form.name() == name)
    }
}

/// A model, guided or not, that is guided by a classifier of noisy states as well.
#[derive(Clone, Debug)]
pub struct ClassifierGuided<G, C> {
    inner: G,
    classifier: C,
    condition: Condition,
    scale: f64,
    form: ClassifierForm,
    highest: f64,
}

impl<G: Guide, C: LevelClassifier> ClassifierGuided<G, C> {
    /// `inner` guided towards the labels of `condition`, one entry per sample, with `scale`: 0 is no guidance, 1 is Bayes' rule
    /// for a model that is not conditional. A sample without a label is not guided.
    ///
    /// # Errors
    /// If the scale is not finite.
    ///
    /// FORMULAS 5.3. Verified by `classifier_guidance_of_an_oracle_is_cfg`. Verified by `the_mean_form_leaves_x0_alone`.
    pub fn new(
        inner: G,
        classifier: C,
        condition: Condition,
        scale: f64,
        form: ClassifierForm,
    ) -> Result<Self, GuidanceError> {
        let scale = finite("classifier guidance", scale, 0.0)?;
        Ok(Self { inner, classifier, condition, scale, form, highest: f64::INFINITY })
    }

    /// The classifier is asked where the EDM sigma is at most `highest`, and at higher levels it does not guide.
    ///
    /// The gradient of the exact classifier falls with the signal, `g = alpha / sigma^2 (E[x_0 | x_t, y] - E[x_0 | x_t])`, and so
    /// what it moves `x_0` by stays within the data. That of a trained one does not fall to nothing where nothing can be seen,
    /// and `sigma^2 / alpha`, which multiplies it, has no bound on a schedule that ends almost without signal (the cosine: more
    /// than 10^4).
    ///
    /// # Errors
    /// Unless `highest` is above 0; it may be infinite.
    ///
    /// FORMULAS 5.3. Verified by `a_classifier_is_not_asked_above_its_highest_level`.
    pub fn up_to(mut self, highest: f64) -> Result<Self, GuidanceError> {
        if highest.is_nan() || highest <= 0.0 {
            return Err(GuidanceError::Interval { low: 0.0, high: highest });
        }
        self.highest = highest;
        Ok(self)
    }

    /// Moves an estimate at the state `x`.
    fn guide(
        &self,
        x: ArrayView4<'_, f64>,
        level: NoiseLevel,
        mut estimate: Estimate,
    ) -> Result<Estimate, DenoiserError> {
        if self.scale == 0.0 || self.condition.is_null() || level.edm_sigma() > self.highest {
            return Ok(estimate);
        }
        let gradient = self.classifier.label_gradient(x, level, &self.condition)?;
        if gradient.dim() != estimate.x0.dim() {
            return Err(DenoiserError::Shape {
                operation: "classifier guidance",
                what: "the gradient of the classifier",
                expected: format!("{:?}", estimate.x0.shape()),
                found: format!("{:?}", gradient.shape()),
                remedy: "use a classifier of images of the shape of the model's",
            });
        }
        match (self.form, &mut estimate.tilt) {
            (ClassifierForm::Score, _) => {
                // Where there is no signal, a change of the score is an infinite one of x_0, and this is an error.
                let to_x0 = prediction::convert(Prediction::Score, Prediction::X0, level, None)?;
                estimate.x0.scaled_add(to_x0.of_prediction * self.scale, &gradient);
            }
            (ClassifierForm::Mean, Some(tilt)) => tilt.scaled_add(self.scale, &gradient),
            (ClassifierForm::Mean, tilt @ None) => *tilt = Some(gradient * self.scale),
        }
        Ok(estimate)
    }
}

impl<G: Guide, C: LevelClassifier> Denoiser for ClassifierGuided<G, C> {
    /// The estimate of `x_0`; in the form of the mean that is the inner one.
    fn denoise(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Array4<f64>, DenoiserError> {
        Ok(self.estimate(x, level)?.x0)
    }

    fn estimate(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Estimate, DenoiserError> {
        self.guide(x, level, self.inner.estimate(x, level)?)
    }
}

impl<G: Guide, C: LevelClassifier> Guide for ClassifierGuided<G, C> {
    fn plain(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Estimate, DenoiserError> {
        self.inner.plain(x, level)
    }

    fn both(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Guided, DenoiserError> {
        let Guided { plain, guided } = self.inner.both(x, level)?;
        Ok(Guided { plain, guided: self.guide(x, level, guided)? })
    }
}
