//! Drawing itself: from options that have been decided to images, for every command that needs some.

use std::cell::Cell;
use std::ops::ControlFlow;

use anyhow::{Context, Result, ensure};
use ndarray::{Array4, ArrayView4, Axis, Slice};
use serde_json::{Value, json};
use tweedie_denoiser::{
    Condition, ConditionalDenoiser, DenoiserError, Estimate, LevelClassifier, Noise, Preconditioned, ShiftedNoise,
};
use tweedie_samplers::{Plan, SchedulerSpec};
use tweedie_schedule::{Bridge, NoiseLevel, TimestepMapping};

use super::guidance::{Guidance, Parts};
use super::plan;
use crate::model::Loaded;

/// A run whose options have all been decided. It prints nothing and writes no file.
///
/// Images are keyed by their number, so `batch` does not show in the result.
pub struct Drawing<'a> {
    /// What is drawn from.
    pub model: &'a Loaded,
    /// The process and the sampler.
    pub spec: &'a SchedulerSpec,
    /// The number of moves.
    pub steps: usize,
    /// The label of each image.
    pub labels: &'a [Option<usize>],
    /// How the model is guided.
    pub guidance: &'a Guidance,
    /// `[N, C, H, W]`, with one label for each of N.
    pub shape: [usize; 4],
    /// Images computed at once.
    pub batch: usize,
}

/// Images, and what they cost.
pub struct Drawn {
    /// `[N, C, H, W]`, in the model's own range, unclamped.
    pub samples: Array4<f32>,
    /// Calls of networks.
    pub calls: Calls,
}

/// How often images went through networks: a batch of N images under two conditions each counts 2 N.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// Images drawn.
    pub images: u64,
    /// Calls of the model, or of the oracle in its place.
    pub model: u64,
    /// Calls of the weaker model of autoguidance.
    pub guide: u64,
    /// Gradients of the classifier, each of which is a forward and a backward pass.
    pub classifier: u64,
}

impl Calls {
    /// A number of calls for each image.
    fn each(self, calls: u64) -> f64 {
        calls as f64 / self.images.max(1) as f64
    }

    /// Calls of the model for each image.
    pub fn per_image(self) -> f64 {
        self.each(self.model)
    }

    /// Gradients of the classifier for each image.
    pub fn gradients_per_image(self) -> f64 {
        self.each(self.classifier)
    }

    /// All of them for each image, for files.
    pub fn parameters(self) -> Value {
        json!({
            "model": self.per_image(),
            "guide": self.each(self.guide),
            "classifier_gradients": self.each(self.classifier),
        })
    }

    /// All of them for each image, in words.
    pub fn describe(self) -> String {
        let mut text = format!("{} calls of the model", self.per_image());
        for (calls, of) in [(self.guide, "of the guide"), (self.classifier, "gradients of the classifier")] {
            if calls > 0 {
                text += &format!(", {} {of}", self.each(calls));
            }
        }
        text + " for each image"
    }
}

impl<'a> Drawing<'a> {
    /// A run for one image of each label, with the usual batch.
    pub fn new(
        model: &'a Loaded,
        spec: &'a SchedulerSpec,
        steps: usize,
        labels: &'a [Option<usize>],
        guidance: &'a Guidance,
        shape: [usize; 4],
    ) -> Self {
        Self { model, spec, steps, labels, guidance, shape, batch: plan::batch(model, shape) }
    }

    /// How often a run calls back: once for each move of each batch.
    pub fn ticks(&self) -> usize {
        self.shape[0].div_ceil(self.batch) * self.steps
    }

    /// Draws every image.
    ///
    /// # Errors
    /// If the plan cannot be made, a model or the noise fails, or a result is not finite.
    pub fn draw(&self, noise: &dyn Noise, tick: &dyn Fn()) -> Result<Drawn> {
        let [count, c, h, w] = self.shape;
        let mut samples = Array4::zeros((count, c, h, w));
        let calls = self.draw_each(noise, tick, &mut |first, part| {
            let last = first + part.len_of(Axis(0));
            samples.slice_axis_mut(Axis(0), Slice::from(first..last)).assign(&part);
            Ok(())
        })?;
        Ok(Drawn { samples, calls })
    }

    /// Draws every image and hands them out batch by batch, with the number of the first one, so that they need not all be in
    /// memory.
    ///
    /// # Errors
    /// As [`Drawing::draw`], or as `take`.
    pub fn draw_each(
        &self,
        noise: &dyn Noise,
        tick: &dyn Fn(),
        take: &mut dyn FnMut(usize, Array4<f32>) -> Result<()>,
    ) -> Result<Calls> {
        let count = self.shape[0];
        ensure!(self.labels.len() == count, "{} labels were given for {count} images", self.labels.len());
        let mut plan = self.spec.plan(self.steps)?;
        let guidance = self.guidance;
        let model = Counted::new(denoiser(self.model, &plan));
        let guide = match &guidance.guide {
            Some(guide) => Some(Counted::new(denoiser(&guide.model, &guide.plan(self.spec, self.steps)?))),
            None => None,
        };
        let classifier = guidance.classifier.as_ref().map(|by| Counted::new(by.classifier.at_levels(&plan)));
        let parts = Parts {
            model: &model,
            takes_labels: !self.model.labels().is_empty(),
            guide: guide.as_ref().map(|guide| guide as &dyn ConditionalDenoiser),
            classifier: classifier.as_ref().map(|classifier| classifier as &dyn LevelClassifier),
            bridge: bridge(self.model, &plan),
        };
        for first in (0..count).step_by(self.batch) {
            let last = count.min(first.saturating_add(self.batch));
            let part = self.draw_batch(&mut plan, &parts, first..last, &ShiftedNoise::new(noise, first), tick);
            take(first, part.with_context(|| format!("images {first} to {}", last - 1))?)?;
        }
        let calls = |counted: Option<u64>| counted.unwrap_or(0);
        Ok(Calls {
            images: count as u64,
            model: model.rows.get(),
            guide: calls(guide.map(|guide| guide.rows.get())),
            classifier: calls(classifier.map(|classifier| classifier.rows.get())),
        })
    }

    fn draw_batch(
        &self,
        plan: &mut Plan,
        parts: &Parts<'_>,
        images: std::ops::Range<usize>,
        noise: &dyn Noise,
        tick: &dyn Fn(),
    ) -> Result<Array4<f32>> {
        let [_, c, h, w] = self.shape;
        let n = images.len();
        let guided = self.guidance.wrap(parts, &self.labels[images.clone()], images)?;
        let mut observer = |_: tweedie_samplers::StepInfo<'_>| {
            tick();
            ControlFlow::Continue(())
        };
        let Plan { grid, solver, .. } = plan;
        let x = tweedie_samplers::sample(&guided, grid, solver.as_mut(), noise, [n, c, h, w], &mut observer)?;
        let x = x.mapv(|v| v as f32);
        ensure!(x.iter().all(|v| v.is_finite()), "the result is not finite in f32; the model may be damaged");
        Ok(x)
    }
}

/// How a model is read in a plan; an oracle, as a network that predicts what the plan says.
fn bridge(model: &Loaded, plan: &Plan) -> Bridge {
    plan.bridge(match model {
        Loaded::Network(model) => model.mapping(),
        Loaded::Oracle(_) => TimestepMapping::default(),
    })
}

/// A model as a denoiser at the levels of a plan.
fn denoiser<'a>(model: &'a Loaded, plan: &Plan) -> Box<dyn ConditionalDenoiser + 'a> {
    match model {
        Loaded::Network(network) => Box::new(Preconditioned::with_bridge(&network.network, bridge(model, plan))),
        Loaded::Oracle(oracle) => Box::new(&oracle.oracle),
    }
}

/// A model or a classifier that counts the images it is shown.
struct Counted<M> {
    inner: M,
    rows: Cell<u64>,
}

impl<M> Counted<M> {
    fn new(inner: M) -> Self {
        Self { inner, rows: Cell::new(0) }
    }

    fn count(&self, x: ArrayView4<'_, f64>) {
        self.rows.set(self.rows.get() + x.len_of(Axis(0)) as u64);
    }
}

impl<M: ConditionalDenoiser> ConditionalDenoiser for Counted<M> {
    fn denoise_with(
        &self,
        x: ArrayView4<'_, f64>,
        level: NoiseLevel,
        condition: &Condition,
    ) -> Result<Array4<f64>, DenoiserError> {
        self.count(x);
        self.inner.denoise_with(x, level, condition)
    }

    fn estimate_with(
        &self,
        x: ArrayView4<'_, f64>,
        level: NoiseLevel,
        condition: &Condition,
    ) -> Result<Estimate, DenoiserError> {
        self.count(x);
        self.inner.estimate_with(x, level, condition)
    }
}

impl<C: LevelClassifier> LevelClassifier for Counted<C> {
    fn label_gradient(
        &self,
        x: ArrayView4<'_, f64>,
        level: NoiseLevel,
        condition: &Condition,
    ) -> Result<Array4<f64>, DenoiserError> {
        self.count(x);
        self.inner.label_gradient(x, level, condition)
    }
}
