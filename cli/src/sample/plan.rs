//! What the options of `tweedie sample` mean for a model.

use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use ndarray::{Array4, ArrayView4};
use serde_json::{Value, json};
use tweedie_checkpoint::ModelKind;
use tweedie_denoiser::{Denoiser, DenoiserError, Estimate, MixtureOracle, Noise, Purpose};
use tweedie_samplers::{Churn, Clip, Compat, Lms, Plan, SamplerError, SchedulerSpec, SolverSpec};
use tweedie_schedule::{BetaSchedule, GridEnd, NoiseLevel, Prediction, ScheduleError, SigmaRule, Spacing};

use super::classifier::GuidingClassifier;
use super::drawing::{Calls, Drawing};
use crate::args::{self, ProcessArgs, SampleArgs};
use crate::console::usage;
use crate::labels::Arrangement;
use crate::model::{Loaded, LoadedNetwork};
use crate::scheduler;

/// Images for each label of the model, where none is listed.
const PER_LABEL: usize = 8;
/// Images without a label, unless told otherwise.
const UNLABELLED: usize = 16;
/// Sampling steps of solvers that may leave out steps of the process.
const STEPS: usize = 25;
/// Those of consistency models, which were made for one to eight.
const FEW_STEPS: usize = 4;
/// Memory for the activations of one batch, unless told otherwise.
const BATCH_BYTES: usize = 256 << 20;
/// The largest batch, unless told otherwise: beyond it nothing becomes faster.
const BATCH: usize = 32;
/// The most images that one run draws.
const MOST_IMAGES: usize = 1 << 22;
/// The most numbers that one run draws (1 GiB as f32).
const MOST_VALUES: usize = 1 << 28;

/// The most numbers of noise that are kept to be saved (4 GiB as f32).
const MOST_NOISE: usize = 1 << 30;

/// The options of a process that come from the command line alone.
pub struct Overrides<'a> {
    /// `--sampler`.
    pub sampler: Option<&'a str>,
    /// `--spacing`.
    pub spacing: Option<&'a str>,
    /// `--prediction`.
    pub prediction: Option<&'a str>,
    /// `--eta`.
    pub eta: Option<f64>,
    /// `--sigmas`.
    pub sigmas: Option<&'a str>,
    /// `--churn` and its companions.
    pub churn: Option<Churn>,
    /// `--order`.
    pub order: Option<usize>,
    /// `--compat`.
    pub compat: Compat,
    /// `--schedule` and its companions.
    pub process: &'a ProcessArgs,
}

impl<'a> Overrides<'a> {
    /// Nothing but the process of a model that does not describe its own.
    pub fn none(process: &'a ProcessArgs) -> Self {
        Self {
            sampler: None,
            spacing: None,
            prediction: None,
            eta: None,
            sigmas: None,
            churn: None,
            order: None,
            compat: Compat::Published,
            process,
        }
    }
}

impl<'a> From<&'a SampleArgs> for Overrides<'a> {
    fn from(args: &'a SampleArgs) -> Self {
        Self {
            sampler: args.sampler.as_deref(),
            spacing: args.spacing.as_deref(),
            prediction: args.prediction.as_deref(),
            eta: args.eta,
            sigmas: args.sigmas.as_deref(),
            churn: args.churn.map(|amount| Churn {
                amount,
                s_min: args.s_tmin.unwrap_or(Churn::NONE.s_min),
                s_max: args.s_tmax.unwrap_or(Churn::NONE.s_max),
                noise: args.s_noise.unwrap_or(Churn::NONE.noise),
            }),
            order: args.order.map(Into::into),
            compat: if args.compat { Compat::Diffusers } else { Compat::Published },
            process: &args.process,
        }
    }
}

/// The scheduler of a model: that of its directory or the usual one of its kind, with what the options change.
///
/// # Errors
/// If the scheduler's config cannot be used, or an option contradicts it.
pub fn scheduler(model: &Loaded, options: &Overrides<'_>) -> Result<SchedulerSpec> {
    let wanted = options.sampler.map(args::solver).transpose()?;
    let mut spec = match model {
        Loaded::Network(network) => of_network(network, wanted, options.process)?,
        Loaded::Oracle(_) => usual(wanted, options.process, Clip::None)?,
    };
    adjust(&mut spec, options)?;
    Ok(spec)
}

/// What the options change of a scheduler, but for the sampler itself.
///
/// # Errors
/// If an option does not belong to the sampler.
pub fn adjust(spec: &mut SchedulerSpec, options: &Overrides<'_>) -> Result<()> {
    if let Some(name) = options.spacing {
        spec.spacing = Spacing::from_name(name)?;
    }
    if let Some(name) = options.prediction {
        spec.prediction = Prediction::from_name(name).or_else(|e| Prediction::from_config_name(name).map_err(|_| e))?;
    }
    if let Some(name) = options.sigmas {
        spec.sigmas = SigmaRule::from_name(name)?;
        // A single step tells whether the sampler can.
        if let Err(e @ SamplerError::SigmaRule { .. }) = spec.plan(1) {
            return Err(usage(format!("--sigmas {name}: {e}")));
        }
    }
    spec.compat = options.compat;
    if let Some(wanted) = options.churn {
        match &mut spec.solver {
            SolverSpec::Euler { churn } | SolverSpec::Heun { churn } => *churn = wanted,
            other => {
                return Err(usage(format!(
                    "--churn is an option of euler and heun, and the sampler is {}",
                    other.name()
                )));
            }
        }
    }
    if let Some(wanted) = options.order {
        match &mut spec.solver {
            SolverSpec::Lms { order } if wanted <= Lms::HIGHEST => *order = wanted,
            SolverSpec::Lms { .. } => {
                return Err(usage(format!("--order {wanted}: lms has the orders 1 to {}", Lms::HIGHEST)));
            }
            other => return Err(usage(format!("--order is an option of lms, and the sampler is {}", other.name()))),
        }
    }
    if let Some(eta) = options.eta {
        match &mut spec.solver {
            SolverSpec::Ddim { eta: own, .. } => *own = eta,
            other => return Err(usage(format!("--eta is an option of ddim, and the sampler is {}", other.name()))),
        }
    }
    Ok(())
}

fn of_network(network: &LoadedNetwork, wanted: Option<SolverSpec>, process: &ProcessArgs) -> Result<SchedulerSpec> {
    let Some((config, path)) = &network.scheduler else {
        // The textbook samples without clipping; diffusers clips unless told otherwise.
        let clip = if network.kind == ModelKind::Book { Clip::None } else { Clip::Range(1.0) };
        return usual(wanted, process, clip);
    };
    if let Some(option) = process.given() {
        return Err(usage(format!(
            "{option} cannot be given, because the process of this model is known from {}",
            path.display()
        )));
    }
    Ok(scheduler::from_config(config, path, wanted)?)
}

/// The scheduler of a model that does not name one.
fn usual(wanted: Option<SolverSpec>, process: &ProcessArgs, clip: Clip) -> Result<SchedulerSpec> {
    let spec = SchedulerSpec {
        solver: wanted.unwrap_or(SolverSpec::ddim()),
        train_steps: process.steps(),
        betas: process.betas()?,
        spacing: Spacing::Trailing,
        clip,
        ..SchedulerSpec::default()
    };
    spec.schedule().map_err(|e| usage(e.to_string()))?;
    Ok(spec)
}

/// The number of sampling steps: those asked for, or else every step of the process for ancestral sampling and what is usual for
/// the rest.
///
/// # Errors
/// If more are asked for than the process has.
pub fn steps(wanted: Option<usize>, spec: &SchedulerSpec) -> Result<usize> {
    let usual = if matches!(spec.solver, SolverSpec::Ddpm { .. }) { spec.train_steps } else { STEPS };
    steps_or(usual, wanted, spec)
}

/// The number of sampling steps: those asked for, or else as many as consistency models need, or the `usual` number.
///
/// # Errors
/// If more are asked for than the process has.
pub fn steps_or(usual: usize, wanted: Option<usize>, spec: &SchedulerSpec) -> Result<usize> {
    let total = spec.train_steps;
    match wanted {
        Some(steps) if steps > total => Err(usage(format!(
            "--steps {steps} is more than the {total} steps that the model was trained on; give 1 to {total}"
        ))),
        Some(steps) => Ok(steps),
        None => Ok(match spec.solver {
            SolverSpec::Consistency(_) => FEW_STEPS.min(total),
            _ => usual.min(total),
        }),
    }
}

/// Which images are drawn, in which order. `noise` is the number of images that given noise is for. A model without labels may
/// be given those of a classifier that guides it.
///
/// # Errors
/// If the model does not know a label, or cannot do without one.
pub fn arrangement(
    model: &Loaded,
    args: &SampleArgs,
    noise: Option<usize>,
    classifier: Option<&GuidingClassifier>,
) -> Result<Arrangement> {
    let (mut known, mut of_classifier) = (model.labels(), false);
    let mut owner = format!("the model {}", model.name());
    if let Some(classifier) = classifier.filter(|_| known.is_empty()) {
        (known, of_classifier) = (classifier.labels.clone(), true);
        owner = format!("the classifier {}", classifier.name);
    }
    let entries = match (&args.labels, model) {
        (Some(list), _) => list.0.clone(),
        // Without labels an oracle is the whole mixture, in which its components have their weights.
        (None, Loaded::Oracle(_)) if !of_classifier => vec![None],
        (None, _) if known.is_empty() => vec![None],
        (None, _) => known.iter().copied().map(Some).collect(),
    };
    for entry in &entries {
        check_label(model, &owner, &known, *entry)?;
    }
    if let Some(per_label) = args.per_label {
        check_count(entries.len().saturating_mul(per_label.get()))?;
        return Ok(Arrangement::by_label(&entries, per_label.get()));
    }
    if let Some(count) = args.count {
        check_count(count.get())?;
        return Ok(Arrangement::in_turn(&entries, count.get()));
    }
    if let Some(count) = noise {
        check_count(count)?;
    }
    match noise {
        Some(count) if count > 0 && count.is_multiple_of(entries.len()) => {
            Ok(Arrangement::by_label(&entries, count / entries.len()))
        }
        Some(count) if count > 0 => Ok(Arrangement::in_turn(&entries, count)),
        _ => {
            let per_label = match entries.as_slice() {
                [None] => UNLABELLED,
                _ if args.labels.is_some() => 1,
                _ => PER_LABEL,
            };
            Ok(Arrangement::by_label(&entries, per_label))
        }
    }
}

fn check_count(count: usize) -> Result<()> {
    if count <= MOST_IMAGES {
        return Ok(());
    }
    Err(usage(format!(
        "{count} images are too many for one run; draw at most {MOST_IMAGES} (and others with another --seed)"
    )))
}

fn check_label(model: &Loaded, owner: &str, known: &[usize], label: Option<usize>) -> Result<()> {
    match label {
        None if !model.has_null_condition() => Err(usage(format!(
            "--labels none: {owner} was never trained without a label; give labels from {}",
            range(known)
        ))),
        None => Ok(()),
        Some(label) if known.is_empty() => {
            Err(usage(format!("--labels {label}: {owner} knows no labels; leave --labels out")))
        }
        Some(label) if !known.contains(&label) => {
            Err(usage(format!("--labels {label}: {owner} has no such label; its labels are {}", range(known))))
        }
        Some(_) => Ok(()),
    }
}

/// `0-9`, or the labels one by one where some are missing.
pub fn range(labels: &[usize]) -> String {
    match labels {
        [first, .., last] if last - first + 1 == labels.len() => format!("{first}-{last}"),
        _ => labels.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
    }
}

/// `[N, C, H, W]` of `count` samples.
///
/// # Errors
/// If the size of the images is not known, is not one that the network takes, or the samples are too many.
pub fn shape(model: &Loaded, count: usize, size: Option<[usize; 2]>) -> Result<[usize; 4]> {
    let [c, h, w] = match model {
        Loaded::Oracle(oracle) => {
            if size.is_some() {
                return Err(usage("--size cannot be given: the shape of an oracle's samples is in its file"));
            }
            oracle.oracle.shape()
        }
        Loaded::Network(model) => {
            let network = &model.network;
            let [h, w] = match (size, network.image_shape()) {
                (Some(size), _) => size,
                (None, Some([_, h, w])) => [h, w],
                (None, None) => bail!(
                    "{}: the network's config does not say how large its images are (sample_size is null); give --size",
                    model.name
                ),
            };
            let multiple = network.size_multiple();
            if h == 0 || w == 0 || h % multiple != 0 || w % multiple != 0 {
                let problem = format!(
                    "{}: images of {h} x {w} do not fit this network; both should be multiples of {multiple}",
                    model.name
                );
                match size {
                    Some(_) => return Err(usage(format!("--size {h}x{w}: {problem}"))),
                    None => bail!(problem),
                }
            }
            [network.in_channels(), h, w]
        }
    };
    let values = [count, c, h, w].into_iter().try_fold(1usize, usize::checked_mul);
    match values {
        Some(values) if values <= MOST_VALUES => Ok([count, c, h, w]),
        _ => Err(usage(format!(
            "{count} images of {c} x {h} x {w} are too many for one run; draw at most {} (and others with another --seed)",
            MOST_VALUES / (c * h * w).max(1)
        ))),
    }
}

/// How many images of `shape` `[N, C, H, W]` are computed at once: as many as fit the memory for activations.
pub fn batch(model: &Loaded, [_, c, h, w]: [usize; 4]) -> usize {
    let values = match model {
        Loaded::Network(model) => {
            model.network.summary(h, w).layers.iter().map(|layer| layer.output.iter().product::<usize>()).sum()
        }
        Loaded::Oracle(_) => c * h * w,
    };
    (BATCH_BYTES / (4 * values).max(1)).clamp(1, BATCH)
}

/// Whether the noise of a run can be kept in memory, to be saved.
///
/// # Errors
/// If it is too much.
pub fn check_record(shape: [usize; 4], draws: usize) -> Result<()> {
    let values = shape.iter().product::<usize>().saturating_mul(draws + 1);
    if values <= MOST_NOISE {
        return Ok(());
    }
    Err(usage(format!(
        "--save-noise: {draws} steps add noise to {} images, which is too much to keep; draw fewer images or take fewer \
         steps",
        shape[0]
    )))
}

/// Whether a model says the variance of the reverse step: it has twice as many output channels as input channels.
fn learns_variance(model: &Loaded) -> bool {
    match model {
        Loaded::Network(model) => model.network.out_channels() == 2 * model.network.in_channels(),
        Loaded::Oracle(_) => false,
    }
}

/// A single number, and its variance where the model says one.
struct Trial {
    oracle: MixtureOracle,
    learned: bool,
}

impl Denoiser for Trial {
    fn denoise(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Array4<f64>, DenoiserError> {
        self.oracle.denoise(x, level)
    }

    fn estimate(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Estimate, DenoiserError> {
        let fraction = self.learned.then(|| Array4::zeros(x.dim()));
        Ok(Estimate { fraction, ..Estimate::from(self.denoise(x, level)?) })
    }
}

/// How many times a plan draws noise for each image.
///
/// The plan is run on a single number, since whether a step adds noise depends on the plan alone.
///
/// # Errors
/// If the plan cannot be run at all; the message names the file and the key that are to blame, where there is one.
pub fn draws(model: &Loaded, spec: &SchedulerSpec, steps: usize) -> Result<usize> {
    let mut plan = spec.plan(steps).map_err(|e| refused(model, steps, e))?;
    draws_of(&mut plan, learns_variance(model))
}

/// [`draws`] of a plan that was made; `learned` tells whether the model says the variance of the reverse step.
///
/// # Errors
/// If the plan cannot be run.
pub fn draws_of(plan: &mut Plan, learned: bool) -> Result<usize> {
    let trial = Trial { oracle: MixtureOracle::gaussian([1, 1, 1], 0.0, 1.0)?, learned };
    let counter = Counter::default();
    let Plan { grid, solver, .. } = plan;
    let shape = [1, 1, 1, 1];
    tweedie_samplers::sample(&trial, grid, solver.as_mut(), &counter, shape, &mut |_| ControlFlow::Continue(()))
        .context("the sampler cannot run with these options")?;
    Ok(counter.0.get())
}

/// The error of a plan, with the scheduler file that it comes from.
fn refused(model: &Loaded, steps: usize, error: SamplerError) -> anyhow::Error {
    let Loaded::Network(network) = model else { return error.into() };
    let Some((_, path)) = &network.scheduler else { return error.into() };
    let part = match &error {
        SamplerError::Schedule(ScheduleError::GridRange { .. }) => "the key steps_offset",
        SamplerError::ZeroSnr { .. } => "the key rescale_betas_zero_snr",
        _ => "the scheduler",
    };
    anyhow!("{}: {part} cannot be used with {steps} steps: {error}", path.display())
}

/// Noise of zeros that counts how often it was drawn after the first state.
#[derive(Default)]
struct Counter(std::cell::Cell<usize>);

impl Noise for Counter {
    fn fill(&self, purpose: Purpose, _sample: usize, out: &mut [f64]) -> Result<(), DenoiserError> {
        if let Purpose::Step(k) = purpose {
            self.0.set(self.0.get().max(k + 1));
        }
        out.fill(0.0);
        Ok(())
    }
}

/// Everything that decides what a run draws, for the files that it writes.
pub fn parameters(drawing: &Drawing<'_>, seed: u64, noise: Option<&Path>, calls: Calls) -> Value {
    let Drawing { model, spec, steps, labels, guidance, .. } = *drawing;
    let (mut eta, mut to_one, mut clipped, mut variance) = (None, None, None, None);
    let (mut churn, mut order) = (None, None);
    match spec.solver {
        SolverSpec::Ddim { eta: own, use_clipped_model_output } => {
            (eta, to_one) = (Some(own), Some(spec.end == GridEnd::Clean));
            clipped = Some(use_clipped_model_output);
        }
        SolverSpec::Ddpm { variance: own } => variance = Some(own.config_name()),
        SolverSpec::Euler { churn: own } | SolverSpec::Heun { churn: own } if own != Churn::NONE => {
            let highest = own.s_max.is_finite().then_some(own.s_max);
            churn = Some(json!({ "churn": own.amount, "s_tmin": own.s_min, "s_tmax": highest, "s_noise": own.noise }));
        }
        SolverSpec::Lms { order: own } => order = Some(own),
        _ => {}
    }
    let (betas, start, end, table) = match &spec.betas {
        BetaSchedule::Linear { start, end } => ("linear", Some(start), Some(end), None),
        BetaSchedule::ScaledLinear { start, end } => ("scaled-linear", Some(start), Some(end), None),
        BetaSchedule::Sqrt { start, end } => ("sqrt", Some(start), Some(end), None),
        BetaSchedule::Sigmoid { start, end } => ("sigmoid", Some(start), Some(end), None),
        BetaSchedule::Exponential { start, end } => ("exponential", Some(start), Some(end), None),
        BetaSchedule::Cosine { .. } => ("cosine", None, None, None),
        BetaSchedule::Laplace => ("laplace", None, None, None),
        BetaSchedule::FallingAbar => ("exp", None, None, None),
        BetaSchedule::Custom(table) => ("table", None, None, Some(table)),
        _ => ("unknown", None, None, None),
    };
    let clip = match spec.solver.clip(spec.clip) {
        Clip::None => json!(null),
        Clip::Range(range) => json!({ "range": range }),
        Clip::Dynamic { ratio, max } => json!({ "ratio": ratio, "max": max }),
        _ => json!("unknown"),
    };
    let mut document = json!({
        "process": {
            "kind": spec.process.name(),
            "schedule": betas,
            "beta_start": start,
            "beta_end": end,
            "betas": table,
            "train_steps": spec.train_steps,
            "rescale_betas_zero_snr": spec.rescale_zero_snr,
            "clip": clip,
            "steps_offset": spec.steps_offset,
            "variance_type": variance,
            "set_alpha_to_one": to_one,
            "use_clipped_model_output": clipped,
        },
        "model": model.name(),
        "seed": seed,
        "labels": labels,
        "sampler": spec.solver.name(),
        "steps": steps,
        "spacing": spec.spacing.name(),
        "sigmas": spec.sigmas.name(),
        "churn": churn,
        "order": order,
        "compat": spec.compat == Compat::Diffusers,
        "eta": eta,
        "prediction": spec.prediction.name(),
        "noise": noise.map(|path| path.display().to_string()),
        "calls_per_image": calls.parameters(),
        "version": env!("CARGO_PKG_VERSION"),
    });
    if let (Value::Object(all), Value::Object(own)) = (&mut document, guidance.parameters()) {
        all.extend(own);
    }
    document
}
