//! Samples that are drawn from the model to be judged.

use anyhow::Result;
use serde_json::Value;
use tweedie_denoiser::SeededNoise;
use tweedie_samplers::SchedulerSpec;

use super::source::Samples;
use crate::args::Common;
use crate::console::{self, usage};
use crate::eval::args::{EvalArgs, LabelChoice};
use crate::labels::Arrangement;
use crate::model::Loaded;
use crate::sample::classifier;
use crate::sample::drawing::{Calls, Drawing};
use crate::sample::guidance::Guidance;
use crate::sample::plan::{self, Overrides};

/// Samples, unless told otherwise.
const COUNT: usize = 1000;

/// How samples were drawn.
pub struct How {
    /// In words.
    pub text: String,
    /// For files: everything that decides what was drawn, and what it cost.
    pub parameters: Value,
}

/// A run whose options have all been decided.
pub struct Planned<'a> {
    model: &'a Loaded,
    spec: SchedulerSpec,
    steps: usize,
    arrangement: Arrangement,
    guidance: Guidance,
    shape: [usize; 4],
    batch: Option<usize>,
    seed: u64,
}

impl<'a> Planned<'a> {
    /// What the options mean for `model`.
    ///
    /// # Errors
    /// If an option asks for what the model, the sampler or another option does not allow.
    pub fn of(model: &'a Loaded, args: &EvalArgs) -> Result<Self> {
        let options = Overrides {
            sampler: args.images.sampler.as_deref(),
            spacing: args.images.spacing.as_deref(),
            prediction: args.prediction.as_deref(),
            eta: args.images.eta,
            sigmas: args.images.sigmas.as_deref(),
            ..Overrides::none(&args.process)
        };
        let spec = plan::scheduler(model, &options)?;
        let steps = plan::steps(args.images.steps.map(Into::into), &spec)?;
        let by = args.guidance.classifier.as_deref().map(|path| classifier::open(path, model)).transpose()?;
        let known = match (model.labels(), &by) {
            (own, Some(by)) if own.is_empty() => by.labels.clone(),
            (own, _) => own,
        };
        let entries = entries(args.labels, &known, model)?;
        let arrangement = Arrangement::in_turn(&entries, args.images.count.map_or(COUNT, Into::into));
        let shape = plan::shape(model, arrangement.labels.len(), None)?;
        let guidance = Guidance::plan(&args.guidance, by, model, &spec, &arrangement, shape)?;
        // A plan that cannot be run is refused before anything takes time.
        plan::draws(model, &spec, steps)?;
        let batch = args.batch.map(Into::into);
        Ok(Self { model, spec, steps, arrangement, guidance, shape, batch, seed: args.seed })
    }

    /// The model's.
    pub fn name(&self) -> &str {
        self.model.name()
    }

    /// `[N, C, H, W]`.
    pub fn shape(&self) -> [usize; 4] {
        self.shape
    }

    /// Whether the samples are drawn for labels.
    pub fn labelled(&self) -> bool {
        self.arrangement.labels.iter().any(Option::is_some)
    }

    /// Draws them.
    ///
    /// # Errors
    /// If the model fails, or a result is not finite.
    pub fn draw(self, common: &Common) -> Result<Samples> {
        let labels = &self.arrangement.labels;
        let mut drawing = Drawing::new(self.model, &self.spec, self.steps, labels, &self.guidance, self.shape);
        drawing.batch = self.batch.unwrap_or(drawing.batch);
        let bar = console::progress(common, drawing.ticks() as u64, "steps");
        bar.set_message(format!("drawing {} images", self.shape[0]));
        let drawn = drawing.draw(&SeededNoise::new(self.seed), &|| bar.inc(1))?;
        bar.finish_and_clear();
        Ok(Samples {
            name: self.name().to_owned(),
            images: drawn.samples,
            range: self.model.range(),
            labels: self.labelled().then(|| labels.clone()),
            drawn: Some(self.how(&drawing, drawn.calls)),
        })
    }

    fn how(&self, drawing: &Drawing<'_>, calls: Calls) -> How {
        let text = format!(
            "{}, {} steps, {}, seed {}; {}",
            self.spec.solver.name(),
            self.steps,
            self.guidance.describe(),
            self.seed,
            calls.describe()
        );
        let mut parameters = plan::parameters(drawing, self.seed, None, calls);
        if let Some(all) = parameters.as_object_mut() {
            // The labels come in turn, and the document says of itself which version wrote it.
            let of_others = ["labels", "noise", "version"];
            all.retain(|key, _| !of_others.contains(&key.as_str()));
        }
        How { text, parameters }
    }
}

/// The labels that are taken in turn.
fn entries(choice: Option<LabelChoice>, known: &[usize], model: &Loaded) -> Result<Vec<Option<usize>>> {
    let name = model.name();
    match choice {
        Some(LabelChoice::None) if !model.has_null_condition() => {
            Err(usage(format!("--labels none: the model {name} was never trained without a label; leave --labels out")))
        }
        Some(LabelChoice::Own) if known.is_empty() => {
            Err(usage(format!("--labels own: the model {name} knows no labels; leave --labels out")))
        }
        Some(LabelChoice::None) => Ok(vec![None]),
        _ if known.is_empty() => Ok(vec![None]),
        _ => Ok(known.iter().copied().map(Some).collect()),
    }
}
