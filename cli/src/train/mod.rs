//! `tweedie train`: options, the run's directory, the loop, and what is shown of it.

mod args;
mod config;
mod directory;
mod plot;
mod progress;
mod samples;

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tweedie_data::{Dataset, Split};
use tweedie_train::{Hooks, RunEnd, StepReport, TrainError, Trainer};

use crate::args::Common;
use crate::console;

pub use args::TrainArgs;
use config::{PRESETS, RunConfig};
use directory::{Log, RunDirectory};
use progress::{Progress, STOP};

/// Runs the command.
///
/// # Errors
/// If the options, the data or the network cannot be used, the directory is taken or cannot be written, the state belongs to
/// another run, or the loss is not finite; the last checkpoint is kept.
pub fn run(args: &TrainArgs, common: &Common) -> Result<()> {
    let (directory, mut run) = plan(args)?;
    directory.prepare()?;
    let result = train(&directory, &mut run, args.resume, common);
    directory.discard_if_empty();
    result
}

/// The directory and the options, before anything is opened or written.
fn plan(args: &TrainArgs) -> Result<(RunDirectory, RunConfig)> {
    if args.resume {
        return plan_resume(args);
    }
    let mut run = match &args.config {
        Some(path) => RunConfig::read(path)?,
        None => RunConfig::preset(args.preset.as_deref().unwrap_or(PRESETS[0]))?,
    };
    let directory = match &args.out {
        Some(root) => RunDirectory::at(root),
        None => RunDirectory::unused(&run.preset),
    };
    args.apply(&mut run)?;
    check(&run)?;
    if directory.is_taken() {
        bail!(
            "{} holds a run or a model already; go on with it by --resume, or choose another directory with --out",
            directory.root().display()
        );
    }
    Ok((directory, run))
}

fn plan_resume(args: &TrainArgs) -> Result<(RunDirectory, RunConfig)> {
    let Some(root) = &args.out else {
        let runs: Vec<String> = RunDirectory::existing().iter().map(|run| run.display().to_string()).collect();
        let there = if runs.is_empty() { "there is none here".to_owned() } else { runs.join(", ") };
        return Err(console::usage(format!("--resume needs the run's directory: give --out DIR (runs: {there})")));
    };
    let directory = RunDirectory::at(root);
    if !directory.options().is_file() {
        bail!("{} holds no run to resume: there is no {}", root.display(), directory.options().display());
    }
    let recorded = RunConfig::read(&directory.options())?;
    let mut run = match (&args.config, &args.preset) {
        (Some(path), _) => {
            let mut run = RunConfig::read(path)?;
            run.train.lr_decay_steps = run.train.lr_decay_steps.or(recorded.train.lr_decay_steps);
            run
        }
        (None, Some(preset)) if *preset != recorded.preset => bail!(
            "{} was started with the preset {}, not {preset}; leave --preset out, or start a new run",
            root.display(),
            recorded.preset
        ),
        _ => recorded,
    };
    args.apply(&mut run)?;
    check(&run)?;
    Ok((directory, run))
}

/// An option out of range is an error of the command line.
fn check(run: &RunConfig) -> Result<()> {
    run.train.validate().map_err(|error| console::usage(error.to_string()))
}

fn train(directory: &RunDirectory, run: &mut RunConfig, resume: bool, common: &Common) -> Result<()> {
    let data = Dataset::open(&run.data, Split::Train)?;
    let mut model = run.build(&data)?;
    let network = Value::Object(model.config());
    let scheduler = run.scheduler()?;
    let parameters = model.expected().iter().map(|param| param.range.len()).sum::<usize>();
    let mut trainer = Trainer::new(&mut model, &data, run.train.clone())?;
    run.train = trainer.config().clone();
    // A run that was killed before its first checkpoint has no state, and starts again.
    let resumed = resume && directory.state().exists();
    if resumed {
        trainer.load_state(directory.state())?;
    }
    directory.write_options(&run.to_toml()?)?;
    let log = directory.open_log(trainer.steps_done())?;
    let root = directory.root().display();
    console::report(common, &opening(&trainer, run, &data, parameters, resumed, &root.to_string()));

    progress::catch_interrupts();
    let progress = Progress::new(common, &trainer);
    let mut hooks = Files { directory, run, network, scheduler, log, progress, shape: data.shape() };
    if !resumed {
        // From here on the directory is a model and can be resumed, whenever the process is killed.
        hooks.save(&mut trainer)?;
    }
    let end = trainer.run(&STOP, &mut hooks);
    // What the steps before an error have logged is worth keeping.
    let flushed = hooks.log.flush();
    let end = end?;
    flushed?;
    let partial = !trainer.steps_done().is_multiple_of(trainer.steps_per_epoch());
    if partial {
        hooks.plot()?;
        if end == RunEnd::Complete {
            let name = format!("step-{:06}.png", trainer.steps_done());
            hooks.samples(&mut trainer, &name)?;
        }
    }
    hooks.progress.finish();
    console::report(common, &closing(&trainer, end, &hooks.log, &root.to_string()));
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
        "{start}: {class} with {parameters} parameters on {} ({} images of {c} x {h} x {w}), {} steps per epoch",
        data.name(),
        data.len(),
        trainer.steps_per_epoch()
    )
}

/// What is said at the end.
fn closing(trainer: &Trainer<'_>, end: RunEnd, log: &Log, root: &str) -> String {
    let time = console::seconds(Duration::from_secs_f64(trainer.seconds()));
    let loss = log.rows.last().map_or_else(String::new, |row| format!(", loss {:.4}", row.loss_ema));
    let steps = trainer.steps_done();
    let root = if root.contains(char::is_whitespace) { format!("\"{root}\"") } else { root.to_owned() };
    match end {
        RunEnd::Complete => format!(
            "done: {steps} steps in {time}{loss}\n  draw:      tweedie sample --model {root}\n  train on:  tweedie train \
             --out {root} --resume --epochs {}",
            trainer.epochs_done() + 10
        ),
        RunEnd::Stopped => format!(
            "stopped and saved at step {steps} after {time}{loss}\n  go on:  tweedie train --out {root} --resume"
        ),
    }
}

/// The hooks of the loop: files and progress.
struct Files<'a> {
    directory: &'a RunDirectory,
    run: &'a RunConfig,
    network: Value,
    scheduler: Value,
    log: Log,
    progress: Progress<'a>,
    shape: [usize; 3],
}

impl Files<'_> {
    /// The log, the model and the state, in this order: what the state says has happened is in the other files.
    fn save(&mut self, trainer: &mut Trainer<'_>) -> Result<()> {
        self.log.flush()?;
        self.directory.write_model(&self.network, &self.scheduler, &trainer.ema_params())?;
        trainer.save_state(self.directory.state()).context("the state of the run")?;
        Ok(())
    }

    fn plot(&self) -> Result<()> {
        let title = format!("training loss of {}", self.directory.root().display());
        self.directory.write_plot(&plot::loss(&self.log.rows, &title)?)
    }

    /// Draws and writes samples; says so in words where it did.
    fn samples(&self, trainer: &mut Trainer<'_>, name: &str) -> Result<String> {
        let png = trainer.with_ema(|network| samples::grid(network, self.run, self.shape));
        Ok(match png.context("samples")? {
            Some(png) => format!(", {}", self.directory.write_samples(name, &png)?.display()),
            None => String::new(),
        })
    }

    fn end_epoch(&mut self, trainer: &mut Trainer<'_>, epoch: u64) -> Result<()> {
        self.plot()?;
        let samples = self.samples(trainer, &format!("epoch-{epoch:03}.png"))?;
        let row = self.log.rows.last();
        let loss = row.map_or_else(String::new, |row| format!(": loss {:.4}", row.loss_ema));
        let time = console::seconds(Duration::from_secs_f64(trainer.seconds()));
        self.progress.say(&format!("epoch {epoch}{loss}, {time}{samples}"));
        self.progress.pause_over(row.map_or(0, |row| row.images));
        Ok(())
    }
}

impl Hooks for Files<'_> {
    fn step(&mut self, report: &StepReport) -> Result<(), TrainError> {
        self.progress.step(report);
        self.log.push(report.row()).map_err(TrainError::hook)
    }

    fn checkpoint(&mut self, trainer: &mut Trainer<'_>) -> Result<(), TrainError> {
        self.save(trainer).map_err(TrainError::hook)
    }

    fn epoch(&mut self, trainer: &mut Trainer<'_>, epoch: u64) -> Result<(), TrainError> {
        self.end_epoch(trainer, epoch).map_err(TrainError::hook)
    }
}
