//! Classifiers of noisy images: the traits between an architecture, guidance and evaluation (FORMULAS 5.2, 5.3).

use std::sync::Arc;

use ndarray::{Array2, Array4, ArrayView4, Axis};
use tweedie_schedule::{Bridge, NoiseLevel};

use crate::denoise::check_batch;
use crate::{Condition, DenoiserError, MixtureOracle};

/// What a classifier says of a batch of N images.
#[derive(Clone, Debug, PartialEq)]
pub struct Classified {
    /// The logarithms of the classes' probabilities up to a constant for each image, `[N, K]`.
    pub logits: Array2<f32>,
    /// The activations before the last layer, `[N, D]`: what distances between distributions are measured in.
    pub features: Array2<f32>,
}

/// A function of `(x_t, timestep number)` that tells classes apart: all that an architecture implements to be a classifier.
pub trait Classifier: Send + Sync {
    /// Number of classes, at least 1.
    fn classes(&self) -> usize;

    /// Logits and features of `x` `[N, C, H, W]`, with one timestep number per image as the network is to see it; a
    /// classifier of clean images takes any number and ignores it.
    ///
    /// # Errors
    /// If the batch sizes differ, or the network cannot take the shape.
    fn classify(&self, x: ArrayView4<'_, f32>, timesteps: &[f64]) -> Result<Classified, DenoiserError>;

    /// `grad_x ln p(y | x)` for each image, of the shape of `x`; zero where the condition has no label.
    ///
    /// # Errors
    /// As [`Classifier::classify`]; also if there is no class of a label.
    fn label_gradient(
        &self,
        x: ArrayView4<'_, f32>,
        timesteps: &[f64],
        condition: &Condition,
    ) -> Result<Array4<f32>, DenoiserError>;
}

/// A classifier of `(x_t, noise level)`: all that guidance knows of one.
pub trait LevelClassifier {
    /// `grad_x ln p(y | x_t)` at a noise level, of the shape of `x` (`[N, C, H, W]`); zero where there is no label.
    ///
    /// # Errors
    /// If the classifier cannot take the shape, the level or a label, or the condition has not N entries.
    fn label_gradient(
        &self,
        x: ArrayView4<'_, f64>,
        level: NoiseLevel,
        condition: &Condition,
    ) -> Result<Array4<f64>, DenoiserError>;
}

macro_rules! forward_to_inner {
    ($($pointer:ty),*) => {$(
        impl<T: Classifier + ?Sized> Classifier for $pointer {
            fn classes(&self) -> usize {
                (**self).classes()
            }

            fn classify(&self, x: ArrayView4<'_, f32>, timesteps: &[f64]) -> Result<Classified, DenoiserError> {
                (**self).classify(x, timesteps)
            }

            fn label_gradient(
                &self,
                x: ArrayView4<'_, f32>,
                timesteps: &[f64],
                condition: &Condition,
            ) -> Result<Array4<f32>, DenoiserError> {
                (**self).label_gradient(x, timesteps, condition)
            }
        }

        impl<T: LevelClassifier + ?Sized> LevelClassifier for $pointer {
            fn label_gradient(
                &self,
                x: ArrayView4<'_, f64>,
                level: NoiseLevel,
                condition: &Condition,
            ) -> Result<Array4<f64>, DenoiserError> {
                (**self).label_gradient(x, level, condition)
            }
        }
    )*};
}

forward_to_inner!(&T, Box<T>, Arc<T>);

/// A classifier and the number that it sees for a noise level: a [`Classifier`] as a [`LevelClassifier`].
#[derive(Clone, Debug)]
pub struct LevelledClassifier<C> {
    classifier: C,
    bridge: Bridge,
}

impl<C: Classifier> LevelledClassifier<C> {
    /// `classifier`, whose states and numbers for time are those of `bridge`.
    pub fn new(classifier: C, bridge: Bridge) -> Self {
        Self { classifier, bridge }
    }

    /// The classifier.
    pub fn classifier(&self) -> &C {
        &self.classifier
    }
}

impl<C: Classifier> LevelClassifier for LevelledClassifier<C> {
    /// With `a x_t` for the input of the network, the gradient with respect to `x_t` is `a` times that of the network.
    ///
    /// FORMULAS 5.3. Verified by `a_classifier_is_asked_at_the_number_of_its_level`.
    fn label_gradient(
        &self,
        x: ArrayView4<'_, f64>,
        level: NoiseLevel,
        condition: &Condition,
    ) -> Result<Array4<f64>, DenoiserError> {
        let batch = x.len_of(Axis(0));
        check_batch(batch, condition)?;
        let at = self.bridge.at(level)?;
        let input = x.mapv(|v| (at.of_input * v) as f32);
        let gradient = self.classifier.label_gradient(input.view(), &vec![at.number; batch], condition)?;
        if gradient.dim() != x.dim() {
            return Err(DenoiserError::Shape {
                operation: "classify",
                what: "the gradient of the classifier",
                expected: format!("{:?}", x.shape()),
                found: format!("{:?}", gradient.shape()),
                remedy: "use a classifier whose gradient has the shape of its input",
            });
        }
        Ok(gradient.mapv(|g| at.of_input * f64::from(g)))
    }
}

impl LevelClassifier for MixtureOracle {
    /// The exact gradient, see [`MixtureOracle::label_gradient`].
    fn label_gradient(
        &self,
        x: ArrayView4<'_, f64>,
        level: NoiseLevel,
        condition: &Condition,
    ) -> Result<Array4<f64>, DenoiserError> {
        check_batch(x.len_of(Axis(0)), condition)?;
        Self::label_gradient(self, x, level, condition)
    }
}

#[cfg(test)]
mod tests {
    use tweedie_schedule::{BetaSchedule, Prediction, Schedule, TimestepMapping};

    use super::*;

    /// `ln p(1 | x) = number * sum(x) + const`, with a gradient that tells the number.
    struct Ramp;

    impl Classifier for Ramp {
        fn classes(&self) -> usize {
            2
        }

        fn classify(&self, x: ArrayView4<'_, f32>, _: &[f64]) -> Result<Classified, DenoiserError> {
            let n = x.len_of(Axis(0));
            Ok(Classified { logits: Array2::zeros((n, 2)), features: Array2::zeros((n, 1)) })
        }

        fn label_gradient(
            &self,
            x: ArrayView4<'_, f32>,
            timesteps: &[f64],
            _: &Condition,
        ) -> Result<Array4<f32>, DenoiserError> {
            let mut gradient = Array4::zeros(x.raw_dim());
            for (mut g, t) in gradient.outer_iter_mut().zip(timesteps) {
                g.fill(*t as f32);
            }
            Ok(gradient)
        }
    }

    #[test]
    fn a_classifier_is_asked_at_the_number_of_its_level() {
        let schedule = Arc::new(Schedule::new(&BetaSchedule::Linear { start: 1e-4, end: 0.02 }, 1000).unwrap());
        let x = Array4::from_elem((2, 1, 1, 3), 0.5);
        let condition = Condition::labels(vec![Some(1), None]);
        for (mapping, first) in [(TimestepMapping::ZeroBased, 499.0), (TimestepMapping::OneBased, 500.0)] {
            let bridge = Bridge::new(Prediction::Eps, schedule.clone(), mapping);
            let classifier = LevelledClassifier::new(Ramp, bridge);
            let gradient = classifier.label_gradient(x.view(), schedule.level(500), &condition).unwrap();
            assert!(gradient.iter().all(|g| (g - first).abs() < 1e-6), "{gradient}");
        }
        // A state in the form of EDM's networks is divided by sqrt(sigma^2 + sigma_data^2), and the chain rule says so.
        let bridge = Bridge::preconditioned(0.0, 0.5, tweedie_schedule::OutputSign::Plain, 0.25);
        let level = schedule.level(500);
        let at = bridge.at(level).unwrap();
        let gradient = LevelledClassifier::new(Ramp, bridge).label_gradient(x.view(), level, &condition).unwrap();
        let expected = at.of_input * f64::from(at.number as f32);
        assert!(gradient.iter().all(|g| (g - expected).abs() < 1e-12 * expected.abs()), "{gradient}");
        let wrong = Condition::none(3);
        let bridge = Bridge::new(Prediction::Eps, schedule.clone(), TimestepMapping::ZeroBased);
        assert!(LevelledClassifier::new(Ramp, bridge).label_gradient(x.view(), level, &wrong).is_err());
    }
}
