//! What the options of guidance mean for a model, and the guided model that they make.

use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tweedie_denoiser::{Condition, ConditionalDenoiser, Conditioned, Denoiser, LevelClassifier};
use tweedie_guidance::{Autoguided, Cfg, ClassifierForm, ClassifierGuided, Guide, Limited, Rescaled, Thresholded};
use tweedie_samplers::{Plan, Process, SchedulerSpec, SolverSpec};
use tweedie_schedule::Bridge;

use super::classifier::GuidingClassifier;
use super::guidance_args::GuidanceArgs;
use super::plan;
use crate::console::usage;
use crate::labels::{self, Arrangement};
use crate::model::{self, Loaded};
use crate::scheduler;

/// Two tables of a process are the same if no `alphas_cumprod` differ by more: those in files have the digits of f32.
const SAME_ABAR: f64 = 1e-6;

/// All of a run's guidance.
pub struct Guidance {
    /// The scale of classifier-free guidance; 1 is none.
    pub scale: f64,
    /// The label that each image is guided away from; `None` is the null condition, and so is an empty list for all images.
    pub negative: Vec<Option<usize>>,
    /// The EDM sigmas between which there is guidance, the upper one included.
    pub interval: Option<[f64; 2]>,
    /// The share of the standard deviation that is taken back.
    pub rescale: Option<f64>,
    /// Dynamic thresholding: the percentile, and the highest threshold.
    pub threshold: Option<(f64, f64)>,
    /// Autoguidance.
    pub guide: Option<WeakGuide>,
    /// Guidance by a classifier.
    pub classifier: Option<ByClassifier>,
}

impl Default for Guidance {
    /// None.
    fn default() -> Self {
        let (negative, interval, rescale, threshold) = (Vec::new(), None, None, None);
        Self { scale: 1.0, negative, interval, rescale, threshold, guide: None, classifier: None }
    }
}

/// A weaker model that is guided away from.
pub struct WeakGuide {
    /// The model.
    pub model: Loaded,
    /// Its own scheduler, where it has one: what it predicts.
    spec: Option<SchedulerSpec>,
    /// 1 is none.
    pub scale: f64,
}

impl WeakGuide {
    /// The plan of a run as it is for this model: the grid is that of the run, and the prediction its own.
    ///
    /// # Errors
    /// If there is none.
    pub fn plan(&self, spec: &SchedulerSpec, steps: usize) -> Result<Plan> {
        let Some(own) = &self.spec else { return Ok(spec.plan(steps)?) };
        let spec = SchedulerSpec { prediction: own.prediction, time: own.time, process: own.process, ..spec.clone() };
        spec.plan(steps).with_context(|| format!("--guide {}", self.model.name()))
    }
}

/// A classifier and how it guides.
pub struct ByClassifier {
    /// The classifier.
    pub classifier: GuidingClassifier,
    /// 0 is none.
    pub scale: f64,
    /// What it moves.
    pub form: ClassifierForm,
    /// The highest EDM sigma at which it is asked.
    pub highest: f64,
}

/// What a guided model is made of.
pub struct Parts<'a> {
    /// The model.
    pub model: &'a dyn ConditionalDenoiser,
    /// Whether it has labels itself.
    pub takes_labels: bool,
    /// The weaker model of autoguidance, if there is one.
    pub guide: Option<&'a dyn ConditionalDenoiser>,
    /// The classifier, if there is one.
    pub classifier: Option<&'a dyn LevelClassifier>,
    /// How the model's network is read.
    pub bridge: Bridge,
}

impl Guidance {
    /// What the options mean. `classifier` is what `--classifier` named, opened.
    ///
    /// # Errors
    /// If an option asks for what the model, the sampler or another option does not allow.
    pub fn plan(
        args: &GuidanceArgs,
        classifier: Option<GuidingClassifier>,
        model: &Loaded,
        spec: &SchedulerSpec,
        arrangement: &Arrangement,
        shape: [usize; 4],
    ) -> Result<Self> {
        let negative = negative(args, model, arrangement)?;
        let scale = scale(args, model, arrangement, &negative)?;
        if args.negative_labels.is_some() && scale == 1.0 {
            let given =
                args.scale().map_or("--guidance is 1".to_owned(), |(_, option)| format!("{option} is no guidance"));
            return Err(usage(format!("--negative-labels has no effect, because {given}; give --guidance above 1")));
        }
        let guide = args.guide.as_deref().zip(args.guide_scale);
        let guide = guide.map(|(path, scale)| weak_guide(path, scale, model, spec, arrangement, shape)).transpose()?;
        let classifier = classifier.map(|by| by_classifier(args, by, model, spec, arrangement, shape)).transpose()?;
        let guidance = Self {
            scale,
            negative,
            interval: args.guidance_interval,
            rescale: args.guidance_rescale,
            threshold: args.dynamic_threshold.map(|p| (p, args.threshold_max.unwrap_or(f64::INFINITY))),
            guide,
            classifier,
        };
        guidance.check_use()?;
        Ok(guidance)
    }

    /// Options that change guidance need some.
    fn check_use(&self) -> Result<()> {
        let moves_x0 = self.scale != 1.0 || self.guide.as_ref().is_some_and(|guide| guide.scale != 1.0);
        let by_classifier = self.classifier.as_ref().filter(|by| by.scale != 0.0);
        let needs = "give --guidance, --guide or --classifier";
        if let (Some([low, high]), false, None) = (self.interval, moves_x0, by_classifier) {
            return Err(usage(format!(
                "--guidance-interval {low},{high} has no effect, because there is no guidance to limit; {needs}"
            )));
        }
        let Some(phi) = self.rescale.filter(|_| !moves_x0) else { return Ok(()) };
        match by_classifier {
            Some(by) if by.form == ClassifierForm::Mean => Err(usage(format!(
                "--guidance-rescale {phi} has no effect with --classifier-form mean alone, which leaves the output of the model \
                 as it is; give --classifier-form score"
            ))),
            Some(_) => Ok(()),
            None => Err(usage(format!(
                "--guidance-rescale {phi} has no effect, because there is no guidance to rescale; {needs}"
            ))),
        }
    }

    /// The guided model for the images of a range, whose labels are given.
    ///
    /// # Errors
    /// If a parameter is out of range.
    pub fn wrap<'a>(
        &'a self,
        parts: &Parts<'a>,
        labels: &[Option<usize>],
        images: Range<usize>,
    ) -> Result<Box<dyn Denoiser + 'a>> {
        let wanted = Condition::labels(labels.to_vec());
        let none = Condition::none(labels.len());
        let condition = if parts.takes_labels { wanted.clone() } else { none.clone() };
        let negative = self.negative.get(images).map_or(none, |labels| Condition::labels(labels.to_vec()));
        let mut guided: Box<dyn Guide + 'a> = if self.scale == 1.0 {
            Box::new(Conditioned::new(parts.model, condition.clone()))
        } else if self.scale == 0.0 && self.classifier.is_some() {
            // The labels are left to the classifier, also where it does not guide.
            Box::new(Conditioned::new(parts.model, negative))
        } else {
            Box::new(Cfg::new(parts.model, condition.clone(), negative, self.scale)?)
        };
        if let (Some(weak), Some(guide)) = (parts.guide, &self.guide) {
            guided = Box::new(Autoguided::new(guided, Conditioned::new(weak, condition), guide.scale)?);
        }
        if let (Some(classifier), Some(by)) = (parts.classifier, &self.classifier) {
            let by = ClassifierGuided::new(guided, classifier, wanted, by.scale, by.form)?.up_to(by.highest)?;
            guided = Box::new(by);
        }
        if let Some(phi) = self.rescale {
            guided = Box::new(Rescaled::new(guided, parts.bridge.clone(), phi)?);
        }
        if let Some([low, high]) = self.interval {
            guided = Box::new(Limited::new(guided, low, high)?);
        }
        match self.threshold {
            Some((ratio, max)) => Ok(Box::new(Thresholded::new(guided, ratio, max)?)),
            None => Ok(Box::new(guided)),
        }
    }

    /// The keys of a run's description that stand for guidance.
    pub fn parameters(&self) -> Value {
        let finite = |x: f64| x.is_finite().then_some(x);
        json!({
            "guidance": self.scale,
            "negative_labels": (!self.negative.is_empty()).then_some(&self.negative),
            "guidance_interval": self.interval.map(|[low, high]| json!([low, finite(high)])),
            "guidance_rescale": self.rescale,
            "dynamic_threshold": self.threshold.map(|(p, max)| json!({ "percentile": p, "max": finite(max) })),
            "guide": self.guide.as_ref().map(|guide| json!({ "model": guide.model.name(), "scale": guide.scale })),
            "classifier": self.classifier.as_ref().map(|by| {
                json!({
                    "model": by.classifier.name,
                    "scale": by.scale,
                    "form": by.form.name(),
                    "sigma_max": finite(by.highest),
                })
            }),
        })
    }

    /// In words, for the report.
    pub fn describe(&self) -> String {
        let mut text = format!("guidance {}", self.scale);
        if let Some(guide) = &self.guide {
            text += &format!(", guide {}", guide.scale);
        }
        if let Some(by) = &self.classifier {
            text += &format!(", classifier {} ({})", by.scale, by.form.name());
        }
        text
    }
}

/// The label that each image is guided away from; an empty list without the option.
fn negative(args: &GuidanceArgs, model: &Loaded, arrangement: &Arrangement) -> Result<Vec<Option<usize>>> {
    let Some(list) = &args.negative_labels else { return Ok(Vec::new()) };
    let known = model.labels();
    for label in list.0.iter().flatten() {
        if !known.contains(label) {
            return Err(usage(format!(
                "--negative-labels {list}: the model {} has no label {label}; {}",
                model.name(),
                if known.is_empty() {
                    "it has none".to_owned()
                } else {
                    format!("its labels are {}", plan::range(&known))
                }
            )));
        }
    }
    let entries = list.0.len();
    if entries != 1 && entries != arrangement.entries {
        return Err(usage(format!(
            "--negative-labels {list} has {entries} entries, and --labels {}; give one for each, or one for all",
            arrangement.entries
        )));
    }
    Ok(arrangement.entry_of.iter().map(|&entry| list.0[if entries == 1 { 0 } else { entry }]).collect())
}

/// The scale of classifier-free guidance; 1 is none.
fn scale(args: &GuidanceArgs, model: &Loaded, arrangement: &Arrangement, negative: &[Option<usize>]) -> Result<f64> {
    let (name, known) = (model.name(), !model.labels().is_empty());
    let needs_null = negative.is_empty() || negative.contains(&None);
    let Some((scale, option)) = args.scale() else {
        let alone = args.guide.is_none() && args.classifier.is_none();
        let labelled = arrangement.labels.iter().any(Option::is_some);
        // An oracle is exact under a label already: guidance would draw from another distribution.
        return Ok(match model {
            Loaded::Network(network) if alone && labelled && known && model.has_null_condition() => {
                network.guidance.unwrap_or(1.0)
            }
            _ => 1.0,
        });
    };
    if scale != 1.0 && !known {
        return Err(usage(format!("{option}: the model {name} has no labels to be guided towards; leave it out")));
    }
    if scale != 1.0 && needs_null && !model.has_null_condition() {
        return Err(usage(format!(
            "{option}: the model {name} has no null condition, because it was never trained without a label; leave it out, or \
             give --negative-labels without `none`"
        )));
    }
    Ok(scale)
}

/// The weaker model of `--guide`.
fn weak_guide(
    path: &Path,
    scale: f64,
    model: &Loaded,
    spec: &SchedulerSpec,
    arrangement: &Arrangement,
    shape: [usize; 4],
) -> Result<WeakGuide> {
    let weak = model::open(Some(path), None)?;
    let name = weak.name().to_owned();
    let refused = |problem: String| Err(usage(format!("--guide {name}: {problem}")));
    let [n, c, h, w] = shape;
    let size = matches!(weak, Loaded::Network(_)).then_some([h, w]);
    let own = plan::shape(&weak, n, size).with_context(|| format!("--guide {name}"))?;
    if own != shape {
        return refused(format!(
            "it draws images of shape {:?}, and the model {} those of {:?}; give a model of the same images",
            &own[1..],
            model.name(),
            [c, h, w]
        ));
    }
    if matches!((&weak, model), (Loaded::Network(_), Loaded::Network(_))) && weak.range() != model.range() {
        return refused(format!(
            "its pixels are of another range than those of the model {}; give a model of the same kind",
            model.name()
        ));
    }
    let (known, conditional) = (weak.labels(), !model.labels().is_empty());
    for label in arrangement.labels.iter().filter(|_| conditional) {
        let knows = label.map_or(weak.has_null_condition(), |label| known.contains(&label));
        if !knows {
            return refused(format!(
                "it does not know the label {}, and a guide is asked under the same labels; its labels are {}",
                labels::name(*label),
                plan::range(&known)
            ));
        }
    }
    let own = match &weak {
        Loaded::Network(network) => network.scheduler.as_ref(),
        Loaded::Oracle(_) => None,
    };
    let own = own.map(|(config, path)| scheduler::from_config(config, path, None)).transpose()?;
    if let Some(difference) = own.as_ref().map(|own| other_process(own, spec)).transpose()?.flatten() {
        return refused(format!("its process is not that of the model {}: {difference}", model.name()));
    }
    Ok(WeakGuide { model: weak, spec: own, scale })
}

/// How a process differs from another one, if it does.
///
/// # Errors
/// If either has no schedule.
pub fn other_process(own: &SchedulerSpec, model: &SchedulerSpec) -> Result<Option<String>> {
    if own.process.name() != model.process.name() {
        return Ok(Some(format!("it is of the kind {}, and that one {}", own.process.name(), model.process.name())));
    }
    if own.process != Process::Table {
        return Ok(None);
    }
    if own.train_steps != model.train_steps {
        return Ok(Some(format!("it has {} steps, and that one {}", own.train_steps, model.train_steps)));
    }
    // What a sampler puts in the place of a step without signal is no part of the process.
    let (own, model) = (SchedulerSpec { solver: model.solver, ..own.clone() }.schedule()?, model.schedule()?);
    let abar = |t: usize| (own.level(t).abar(), model.level(t).abar());
    let differs = |t: &usize| (abar(*t).0 - abar(*t).1).abs() > SAME_ABAR;
    Ok((1..=own.steps()).find(differs).map(|t| {
        let (own, model) = abar(t);
        format!("its alphas_cumprod at step {t} is {own:.6}, and there {model:.6}")
    }))
}

/// The guidance of `--classifier`.
fn by_classifier(
    args: &GuidanceArgs,
    classifier: GuidingClassifier,
    model: &Loaded,
    spec: &SchedulerSpec,
    arrangement: &Arrangement,
    shape: [usize; 4],
) -> Result<ByClassifier> {
    let form = args.form();
    if form == ClassifierForm::Mean && !matches!(spec.solver, SolverSpec::Ddpm { .. }) {
        return Err(usage(format!(
            "--classifier-form mean moves the mean of a reverse step, which the sampler {} does not have; give --sampler ddpm \
             or --classifier-form score",
            spec.solver.name()
        )));
    }
    classifier.check(model, spec, shape)?;
    let name = &classifier.name;
    if let Some(label) = arrangement.labels.iter().flatten().find(|label| !classifier.labels.contains(label)) {
        return Err(usage(format!(
            "--classifier {name}: it does not know the label {label}; its labels are {}",
            plan::range(&classifier.labels)
        )));
    }
    if arrangement.labels.iter().all(Option::is_none) {
        return Err(usage(format!(
            "--classifier {name} has no effect, because no label is drawn; give --labels from {}",
            plan::range(&classifier.labels)
        )));
    }
    let highest = args.classifier_sigma_max.unwrap_or(classifier.highest());
    Ok(ByClassifier { classifier, scale: args.classifier_scale.unwrap_or(1.0), form, highest })
}
