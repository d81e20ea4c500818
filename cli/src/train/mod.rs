//! `tweedie train` and `tweedie train-classifier`: options, the run's directory, the loop, and what is shown of it.

mod accuracy;
mod args;
mod classifier;
mod config;
mod directory;
mod plot;
mod progress;
mod samples;

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tweedie_checkpoint::{Config, TensorFile};
use tweedie_data::{Dataset, Split};
use tweedie_denoiser::{NetworkGrad, Params};
use tweedie_train::{Hooks, RunEnd, StepReport, StepSampling, TrainError, Trainer};
use tweedie_unet::{EncoderClassifier, Model};

use crate::args::Common;
use crate::classifier::is_classifier;
use crate::data::DataArgs;
use crate::{console, data, model};

use accuracy::{Accuracy, Extent};
use args::RunArgs;
pub use args::TrainArgs;
pub use classifier::ClassifierArgs;
use config::{PRESETS, RunConfig};
use directory::{Log, RunDirectory};
use progress::{Progress, STOP};

/// Runs `tweedie train`.
///
/// # Errors
/// If the options, the data or the network cannot be used, the directory is taken or cannot be written, the state is missing
/// or belongs to another run, or the loss or a parameter is not finite; the last checkpoint is kept.
pub fn run(args: &TrainArgs, common: &Common) -> Result<()> {
    let kind = Kind::Denoiser;
    run_planned(plan(kind, &args.run, args.preset.as_deref(), PRESETS[0], |run| args.apply(run))?, &args.run, common)
}

/// Runs `tweedie train-classifier`.
///
/// # Errors
/// As [`run`].
pub fn run_classifier(args: &ClassifierArgs, common: &Common) -> Result<()> {
    let usual = classifier::PRESETS[usize::from(args.clean)];
    let kind = Kind::Classifier;
    run_planned(plan(kind, &args.run, args.preset.as_deref(), usual, |run| args.apply(run))?, &args.run, common)
}

fn run_planned((directory, mut run): (RunDirectory, RunConfig), args: &RunArgs, common: &Common) -> Result<()> {
    directory.prepare()?;
    let lock = directory.lock()?;
    // Another process may have been faster, and ended already.
    let free = if args.resume { Ok(()) } else { check_free(&directory) };
    let result = free.and_then(|()| train(&directory, &mut run, args, common));
    directory.discard_if_empty(lock);
    result
}

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Denoiser,
    Classifier,
}

impl Kind {
    fn of(run: &RunConfig) -> Self {
        if run.is_classifier() { Self::Classifier } else { Self::Denoiser }
    }

    fn command(self) -> &'static str {
        match self {
            Self::Denoiser => "tweedie train",
            Self::Classifier => "tweedie train-classifier",
        }
    }
}

/// A network in training.
enum Subject {
    Denoiser(Model),
    Classifier(Box<EncoderClassifier>),
}

impl Subject {
    fn build(run: &mut RunConfig, data: &Dataset) -> Result<Self> {
        Ok(match Kind::of(run) {
            Kind::Denoiser => Self::Denoiser(run.build(data)?),
            Kind::Classifier => Self::Classifier(Box::new(run.build_classifier(data)?)),
        })
    }

    fn network(&mut self) -> &mut dyn NetworkGrad {
        match self {
            Self::Denoiser(model) => model,
            Self::Classifier(network) => &mut **network,
        }
    }

    /// The `config.json` of the run's model.
    fn model_config(&self, run: &RunConfig) -> Value {
        match self {
            Self::Denoiser(model) => run.model_config(model),
            Self::Classifier(_) => run.classifier_config(None),
        }
    }

    /// What the network computes, by the keys of its configuration.
    fn architecture(&self) -> Value {
        match self {
            Self::Denoiser(model) => architecture(model),
            Self::Classifier(network) => Value::Object(network.config().to_json()),
        }
    }
}

/// A new run needs a directory that holds none.
fn check_free(directory: &RunDirectory) -> Result<()> {
    // A log of steps would be written over, even if it is all that is left of a run.
    if directory.is_taken() || (directory.root().is_dir() && directory.has_logged()?) {
        bail!(
            "{} holds a run or a model already; go on with it by --resume, or choose another directory with --out",
            directory.root().display()
        );
    }
    Ok(())
}

/// The directory and the options, before anything is opened or written.
fn plan(
    kind: Kind,
    args: &RunArgs,
    preset: Option<&str>,
    usual: &str,
    apply: impl Fn(&mut RunConfig) -> Result<()>,
) -> Result<(RunDirectory, RunConfig)> {
    if args.resume {
        return plan_resume(kind, args, preset, apply);
    }
    let mut run = match &args.config {
        Some(path) => RunConfig::read(path)?,
        None => RunConfig::preset(preset.unwrap_or(usual))?,
    };
    if let Some(path) = &args.config {
        check_kind(kind, &run, &path.display().to_string())?;
    }
    let directory = match &args.out {
        Some(root) => RunDirectory::at(root),
        None => RunDirectory::unused(&run.preset),
    };
    apply(&mut run)?;
    check(&run)?;
    check_free(&directory)?;
    Ok((directory, run))
}

/// Whether a run is one of this command.
fn check_kind(kind: Kind, run: &RunConfig, name: &str) -> Result<()> {
    match (kind, Kind::of(run)) {
        (Kind::Denoiser, Kind::Classifier) => bail!("{name} is of a classifier: use {}", Kind::Classifier.command()),
        (Kind::Classifier, Kind::Denoiser) => bail!("{name} is of a diffusion model: use {}", Kind::Denoiser.command()),
        _ => Ok(()),
    }
}

fn plan_resume(
    kind: Kind,
    args: &RunArgs,
    preset: Option<&str>,
    apply: impl Fn(&mut RunConfig) -> Result<()>,
) -> Result<(RunDirectory, RunConfig)> {
    let Some(root) = &args.out else {
        let runs: Vec<String> = RunDirectory::existing().iter().map(|run| run.display().to_string()).collect();
        let there = if runs.is_empty() { "there is none here".to_owned() } else { runs.join(", ") };
        return Err(console::usage(format!("--resume needs the run's directory: give --out DIR (runs: {there})")));
    };
    let directory = RunDirectory::at(root);
    if !directory.options().is_file() {
        bail!(
            "{} holds no run to resume: there is no {}; check --out, or leave --resume out to start a run there",
            root.display(),
            directory.options().display()
        );
    }
    let recorded = RunConfig::read(&directory.options())?;
    check_kind(kind, &recorded, &root.display().to_string())?;
    let mut run = match (&args.config, preset) {
        (Some(path), _) => {
            let mut run = RunConfig::read(path)?;
            check_kind(kind, &run, &path.display().to_string())?;
            // The curve of the learning rate is that of the run, unless the file has one of its own.
            if run.train.lr_decay_steps.is_none() && run.train.lr_decay_minutes.is_none() {
                run.train.lr_decay_steps = recorded.train.lr_decay_steps;
                run.train.lr_decay_minutes = recorded.train.lr_decay_minutes;
            }
            run
        }
        (None, Some(preset)) if preset != recorded.preset => bail!(
            "{} was started with the preset {}, not {preset}; leave --preset out, or start a new run",
            root.display(),
            recorded.preset
        ),
        _ => recorded,
    };
    apply(&mut run)?;
    check(&run)?;
    Ok((directory, run))
}

/// An option out of range is an error of the command line.
fn check(run: &RunConfig) -> Result<()> {
    run.validate().map_err(|error| console::usage(error.to_string()))
}

fn train(directory: &RunDirectory, run: &mut RunConfig, args: &RunArgs, common: &Common) -> Result<()> {
    let resume = args.resume;
    // A resumed run reads its images as it has done so far.
    let read = DataArgs { size: run.size, colour: run.colour, ..args.data_options.clone() };
    let data = data::open(&run.data, Split::Train, &read.options(), common)?;
    if run.train.batch > data.len() {
        bail!(
            "a batch of {} images is more than {} has, which are {}; choose --batch {} or less",
            run.train.batch,
            data.name(),
            data.len(),
            data.len()
        );
    }
    let mut subject = Subject::build(run, &data)?;
    let network = subject.model_config(run);
    let architecture = subject.architecture();
    // What was never noised has no process.
    let scheduler = (run.train.step_sampling != StepSampling::Clean).then(|| run.scheduler()).transpose()?;
    let model = subject.network();
    let parameters = model.params().len();
    let mut trainer = Trainer::new(model, &data, run.train.clone())?.with_architecture(architecture.clone());
    run.train = trainer.config().clone();
    let resumed = resume && directory.has_state()?;
    if resumed {
        check_recorded(directory, &architecture)?;
        trainer.load_state(directory.state())?;
    } else if resume {
        check_fresh(directory, &trainer)?;
    }
    let log = directory.open_log(trainer.steps_done())?;
    let accuracy = match Kind::of(run) {
        Kind::Denoiser => None,
        Kind::Classifier => Some(Accuracy::new(run, &read, directory, trainer.steps_done(), common)?),
    };
    directory.write_options(&run.to_toml()?)?;
    let root = directory.root().display();
    console::report(common, &opening(&trainer, run, &data, parameters, resumed, &root.to_string()));

    progress::catch_interrupts(common);
    let progress = Progress::new(common, &trainer);
    let mut hooks = Files { directory, run, network, scheduler, log, progress, shape: data.shape(), accuracy };
    if !resumed {
        // From here on the directory is a model and can be resumed, whenever the process is killed.
        hooks.save(&mut trainer)?;
    } else if hooks.lacks_epoch(&trainer) {
        let epoch = trainer.epochs_done();
        hooks.end_epoch(&mut trainer, epoch)?;
    }
    let end = trainer.run(&STOP, &mut hooks);
    // What the steps before an error have logged is worth keeping.
    let flushed = hooks.log.flush();
    let end = end?;
    flushed?;
    let partial = !trainer.steps_done().is_multiple_of(trainer.steps_per_epoch());
    if partial {
        hooks.plot();
        if end == RunEnd::Complete {
            let name = format!("step-{:06}.png", trainer.steps_done());
            hooks.samples(&mut trainer, &name);
        }
    }
    if end == RunEnd::Complete {
        hooks.measure(&mut trainer, Extent::Whole)?;
    }
    hooks.progress.finish();
    console::report(common, &closing(&trainer, end, &hooks, &root.to_string()));
    Ok(())
}

/// What a network computes, by the keys of its configuration.
fn architecture(model: &Model) -> Value {
    let mut config: Config = model.config();
    // The version of a file format is no property of the network.
    config.remove("_diffusers_version");
    Value::Object(config)
}

/// States of early versions do not describe their network; the model beside them does.
fn check_recorded(directory: &RunDirectory, architecture: &Value) -> Result<()> {
    let state = TensorFile::open(directory.state()).with_context(|| {
        format!(
            "the run cannot go on from a damaged state; put a copy back, or start a new run in another directory with \
             --out, the model in {} is whole",
            directory.root().display()
        )
    })?;
    if state.metadata().contains_key(tweedie_train::ARCHITECTURE) {
        return Ok(());
    }
    if let Some((path, config)) = directory.network()? {
        let file = path.display().to_string();
        let saved = Model::from_config(&config).with_context(|| file.clone())?;
        tweedie_train::check_architecture(&file, &self::architecture(&saved), architecture)?;
    }
    Ok(())
}

/// A run that was killed before its first checkpoint has no state, and starts again; one that has lost it does not.
fn check_fresh(directory: &RunDirectory, trainer: &Trainer<'_>) -> Result<()> {
    let trained = || {
        let other = |params: &Params| params.values() != trainer.params().values();
        if is_classifier(directory.root()) {
            return crate::classifier::open(Some(directory.root())).is_ok_and(|c| other(c.network.params()));
        }
        let written = model::open_network(Some(directory.root()), None);
        written.is_ok_and(|written| other(written.network.params()))
    };
    if directory.has_logged()? || trained() {
        bail!(
            "{} is missing, and {} has been trained; put it back, or start a new run in another directory with --out",
            directory.state().display(),
            directory.root().display()
        );
    }
    Ok(())
}

/// What is said before the first step.
fn opening(
    trainer: &Trainer<'_>,
    run: &RunConfig,
    data: &Dataset,
    parameters: usize,
    resumed: bool,
    root: &str,
) -> String {
    let [c, h, w] = data.shape();
    let class = run.network.get("_class_name").and_then(Value::as_str).unwrap_or_default();
    let start = if resumed {
        format!("resuming {root} at step {}", trainer.steps_done())
    } else {
        format!("training to {root}")
    };
    format!(
        "{start}: {class} with {parameters} parameters on {} ({} images of {c} x {h} x {w}{}{}), {} steps per epoch",
        data.name(),
        data.len(),
        if data.classes() > 0 { format!(" in {} classes", data.classes()) } else { String::new() },
        if data.is_on_disk() { ", read from disk" } else { "" },
        trainer.steps_per_epoch()
    )
}

/// What is said at the end.
fn closing(trainer: &Trainer<'_>, end: RunEnd, files: &Files<'_>, root: &str) -> String {
    let time = time(trainer);
    let loss = files.log.rows.last().map_or_else(String::new, |row| format!(", loss {:.4}", row.loss_ema));
    let steps = trainer.steps_done();
    let root = if root.contains(char::is_whitespace) { format!("\"{root}\"") } else { root.to_owned() };
    let kind = Kind::of(files.run);
    let command = kind.command();
    match end {
        RunEnd::Complete => {
            let use_it = match kind {
                Kind::Denoiser => format!("draw:      tweedie sample --model {root}"),
                Kind::Classifier => format!("look:      tweedie inspect {root}"),
            };
            let accuracy = files
                .accuracy
                .as_ref()
                .and_then(|accuracy| accuracy.at(steps).map(|row| format!(", {}", accuracy.describe(row))));
            format!(
                "done: {steps} steps in {time}{loss}{}\n  {use_it}\n  train on:  {command} --out {root} --resume --epochs {}",
                accuracy.unwrap_or_default(),
                trainer.epochs_done() + 10
            )
        }
        RunEnd::Stopped => {
            format!("stopped and saved at step {steps} after {time}{loss}\n  go on:  {command} --out {root} --resume")
        }
    }
}

/// The time of training, for people.
fn time(trainer: &Trainer<'_>) -> String {
    console::seconds(Duration::try_from_secs_f64(trainer.seconds()).unwrap_or_default())
}

/// The name of the grid of samples after an epoch.
fn epoch_name(epoch: u64) -> String {
    format!("epoch-{epoch:03}.png")
}

/// The hooks of the loop: files and progress.
struct Files<'a> {
    directory: &'a RunDirectory,
    run: &'a RunConfig,
    network: Value,
    scheduler: Option<Value>,
    log: Log,
    progress: Progress<'a>,
    shape: [usize; 3],
    /// Of a classifier.
    accuracy: Option<Accuracy>,
}

impl Files<'_> {
    /// The log, the model and the state, in this order: what the state says has happened is in the other files.
    fn save(&mut self, trainer: &mut Trainer<'_>) -> Result<()> {
        self.log.sync()?;
        self.directory.write_model(&self.network, self.scheduler.as_ref(), &trainer.ema_params())?;
        trainer.save_state(self.directory.state()).context("the state of the run")?;
        Ok(())
    }

    /// Draws the plot of the loss; what goes wrong is said, and no reason to end a run.
    fn plot(&mut self) {
        let title = format!("training loss of {}", self.directory.root().display());
        let drawn = plot::loss(&self.log.rows, &title).and_then(|svg| self.directory.write_plot(&svg));
        if let Err(error) = drawn {
            self.warn("the plot of the loss", &error);
        }
    }

    /// Measures the accuracy of a classifier, unless it is known, and writes it beside the weights that have it.
    fn measure(&mut self, trainer: &mut Trainer<'_>, extent: Extent) -> Result<String> {
        let Some(accuracy) = &mut self.accuracy else { return Ok(String::new()) };
        let done = (trainer.steps_done(), trainer.steps_done().div_ceil(trainer.steps_per_epoch()));
        if accuracy.is_known(done.0) {
            return Ok(String::new());
        }
        let (run, directory) = (self.run, self.directory);
        let row = trainer.with_ema(|network| accuracy.measure(network, run, directory, done, extent, &STOP))?;
        let Some(row) = row else { return Ok(String::new()) };
        let text = format!(", {}", accuracy.describe(&row));
        self.network = self.run.classifier_config(row.shares.first().copied());
        self.save(trainer)?;
        Ok(text)
    }

    /// Draws and writes samples, and says in words where they are; what goes wrong is said, and no reason to end a run.
    fn samples(&mut self, trainer: &mut Trainer<'_>, name: &str) -> String {
        if self.accuracy.is_some() {
            return String::new();
        }
        let png = trainer.with_ema(|network| samples::grid(network, self.run, self.shape, &STOP));
        match png.and_then(|png| png.map(|png| self.directory.write_samples(name, &png)).transpose()) {
            Ok(Some(path)) => format!(", {}", path.display()),
            Ok(None) => String::new(),
            Err(error) => {
                self.warn("the samples", &error);
                String::new()
            }
        }
    }

    fn warn(&mut self, what: &str, error: &anyhow::Error) {
        self.progress.say(&format!("warning: {what} could not be drawn, and the run goes on: {error:#}"));
    }

    /// Whether the run stands at the end of an epoch without its pictures or its accuracy, as after a kill while these were made.
    fn lacks_epoch(&self, trainer: &Trainer<'_>) -> bool {
        let ended = trainer.steps_done() > 0 && trainer.steps_done().is_multiple_of(trainer.steps_per_epoch());
        let lacks = match &self.accuracy {
            Some(accuracy) => accuracy.lacks(trainer.steps_done()),
            None => self.run.samples.per_label > 0 && !self.directory.has_samples(&epoch_name(trainer.epochs_done())),
        };
        ended && lacks
    }

    fn end_epoch(&mut self, trainer: &mut Trainer<'_>, epoch: u64) -> Result<()> {
        self.plot();
        let accuracy = self.measure(trainer, Extent::Sample)?;
        let samples = self.samples(trainer, &epoch_name(epoch));
        let row = self.log.rows.last().copied();
        let loss = row.map_or_else(String::new, |row| format!(": loss {:.4}", row.loss_ema));
        self.progress.say(&format!("epoch {epoch}{loss}, {}{accuracy}{samples}", time(trainer)));
        self.progress.pause_over(row.map_or(0, |row| row.images));
        Ok(())
    }
}

impl Hooks for Files<'_> {
    fn step(&mut self, report: &StepReport) -> Result<(), TrainError> {
        self.progress.step(report);
        if self.network.get(crate::classifier::ACCURACY_KEY).is_some() {
            // That of the weights before this step.
            self.network = self.run.classifier_config(None);
        }
        self.log.push(report.row()).map_err(TrainError::hook)
    }

    fn checkpoint(&mut self, trainer: &mut Trainer<'_>) -> Result<(), TrainError> {
        self.save(trainer).map_err(TrainError::hook)
    }

    fn epoch(&mut self, trainer: &mut Trainer<'_>, epoch: u64) -> Result<(), TrainError> {
        self.end_epoch(trainer, epoch).map_err(TrainError::hook)
    }
}
