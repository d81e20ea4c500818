//! The loop: draw a batch, add noise, one pass forward and back, one update (Ho, Jain & Abbeel 2020, Algorithm 1).

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ndarray::{Array4, ArrayView4};
use serde_json::Value;
use tweedie_data::{Ahead, Augment, Dataset, Drawn, Draws};
use tweedie_denoiser::{Network, NetworkGrad, Params, Role};

use crate::adamw::global_norm;
use crate::config::wrong;
use crate::log::LogRow;
use crate::objective::NoisyBatch;
use crate::state::data_text;
use crate::{Importance, Loss, LrSchedule, Objective, Optimizer, RunLength, StepSampling, TrainConfig, TrainError};

/// The share of the past in the smoothed loss.
const LOSS_MEMORY: f64 = 0.98;

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// The step, counted from 1.
    pub step: u64,
    /// The epoch that it belongs to, counted from 1.
    pub epoch: u64,
    /// Whether it is the last step of its epoch.
    pub ends_epoch: bool,
    /// The loss of its batch.
    pub loss: f64,
    /// The smoothed loss: the mean over the past with weights that fall by 2 % per step.
    pub loss_ema: f64,
    /// The norm of the gradient before clipping.
    pub grad_norm: f64,
    /// The learning rate.
    pub lr: f64,
    /// Images seen so far.
    pub images: u64,
    /// Seconds of training so far, earlier parts of a resumed run included.
    pub seconds: f64,
}

impl StepReport {
    /// The row of the log.
    pub fn row(&self) -> LogRow {
        LogRow {
            step: self.step,
            epoch: self.epoch,
            images: self.images,
            loss: self.loss as f32,
            loss_ema: self.loss_ema as f32,
            grad_norm: self.grad_norm as f32,
            lr: self.lr as f32,
            seconds: self.seconds as f32,
        }
    }
}

/// Why [`Trainer::run`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunEnd {
    /// The run has its full length.
    Complete,
    /// The stop flag was raised.
    Stopped,
}

/// What the caller of [`Trainer::run`] does on the way. Every method does nothing by default.
pub trait Hooks {
    /// After every step.
    ///
    /// # Errors
    /// Whatever should end the run.
    fn step(&mut self, report: &StepReport) -> Result<(), TrainError> {
        let _ = report;
        Ok(())
    }

    /// When the state should be saved: after every epoch, every [`TrainConfig::checkpoint_minutes`], and at the end.
    ///
    /// # Errors
    /// Whatever should end the run.
    fn checkpoint(&mut self, trainer: &mut Trainer<'_>) -> Result<(), TrainError> {
        let _ = trainer;
        Ok(())
    }

    /// After every epoch, once its checkpoint is written; [`Trainer::with_ema`] lends the network for samples.
    ///
    /// # Errors
    /// Whatever should end the run.
    fn epoch(&mut self, trainer: &mut Trainer<'_>, epoch: u64) -> Result<(), TrainError> {
        let _ = (trainer, epoch);
        Ok(())
    }
}

/// Hooks that do nothing.
impl Hooks for () {}

/// The position of a run that is no vector of parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Progress {
    /// Steps done.
    pub(crate) step: u64,
    /// Sum of the losses, each weighted by [`LOSS_MEMORY`] to the power of its age.
    pub(crate) loss_sum: f64,
    /// Sum of those weights.
    pub(crate) loss_weight: f64,
    /// Seconds of training.
    pub(crate) seconds: f64,
}

/// A network in training.
///
/// A step is a pure function of the configuration, the data, the step's number and the parameters with their moments (and,
/// under importance sampling, of the losses so far, which the state holds);
/// everything else, such as the order of the images and the noise, follows from the seed and the step's number.
pub struct Trainer<'a> {
    pub(crate) net: &'a mut dyn NetworkGrad,
    pub(crate) data: &'a Dataset,
    /// What tells the data from other data, for states.
    pub(crate) data_text: String,
    /// What the caller says about the network, beyond its table of parameters.
    pub(crate) architecture: Option<Value>,
    pub(crate) config: TrainConfig,
    pub(crate) optimizer: Optimizer,
    pub(crate) progress: Progress,
    /// The losses of the steps, where these are drawn by them.
    pub(crate) importance: Option<Importance>,
    objective: Objective,
    draws: Draws<'a>,
    lr: LrSchedule,
    conditional: bool,
    grads: Vec<f32>,
    /// Where the running statistics lie, which a forward pass changes before it is known to be finite.
    buffers: Vec<Range<usize>>,
    buffers_before: Vec<f32>,
}

impl<'a> Trainer<'a> {
    /// A run from the network's present parameters.
    ///
    /// # Errors
    /// If a field of the configuration is out of range, or network, data and configuration do not fit together.
    pub fn new(net: &'a mut dyn NetworkGrad, data: &'a Dataset, config: TrainConfig) -> Result<Self, TrainError> {
        config.validate()?;
        let conditional = check_labels(&*net, data, &config)?;
        let flip = if config.flip { Augment::Flip } else { Augment::None };
        let draws = Draws::new(data, config.batch, config.seed, config.range, flip).then(config.augment.augment());
        let config = config.resolved(draws.per_epoch())?;
        let objective = config.objective()?;
        let importance =
            (config.step_sampling == StepSampling::Importance).then(|| Importance::new(config.noise.train_steps));
        let params = net.params();
        let buffers: Vec<_> =
            params.table().iter().filter(|p| p.role != Role::Weight).map(|p| p.range.clone()).collect();
        Ok(Self {
            optimizer: Optimizer::new(params, config.adamw, config.ema_decay),
            progress: Progress::default(),
            importance,
            objective,
            draws,
            lr: config.lr_schedule(),
            conditional,
            grads: vec![0.0; params.len()],
            buffers_before: Vec::with_capacity(buffers.iter().map(Range::len).sum()),
            buffers,
            net,
            data,
            data_text: data_text(data)?,
            architecture: None,
            config,
        })
    }

    /// Describes the network by the keys of its configuration, which decide what it computes even where its table of
    /// parameters stays the same.
    ///
    /// [`Trainer::save_state`] then writes the description into the state, and [`Trainer::load_state`] refuses a state
    /// with another one.
    #[must_use]
    pub fn with_architecture(mut self, config: Value) -> Self {
        self.architecture = Some(config);
        self
    }

    /// The configuration, with everything written out that was derived from the length of the run.
    pub fn config(&self) -> &TrainConfig {
        &self.config
    }

    /// The parameters as they are trained (not averaged).
    pub fn params(&self) -> &Params {
        self.net.params()
    }

    /// The optimiser, with its moments and the moving average.
    pub fn optimizer(&self) -> &Optimizer {
        &self.optimizer
    }

    /// A copy of the parameters with the values of the moving average.
    pub fn ema_params(&self) -> Params {
        let mut params = self.net.params().clone();
        params.values_mut().copy_from_slice(self.optimizer.ema());
        params
    }

    /// Lends the network with the values of the moving average; afterwards it has its own values again.
    pub fn with_ema<T>(&mut self, f: impl FnOnce(&dyn Network) -> T) -> T {
        self.swap_ema();
        let result = f(&*self.net);
        self.swap_ema();
        result
    }

    fn swap_ema(&mut self) {
        self.net.params_mut().values_mut().swap_with_slice(self.optimizer.ema_mut());
    }

    /// Steps done.
    pub fn steps_done(&self) -> u64 {
        self.progress.step
    }

    /// Epochs completed.
    pub fn epochs_done(&self) -> u64 {
        self.progress.step / self.steps_per_epoch()
    }

    /// Steps in an epoch, see [`tweedie_data::batches_per_epoch`].
    pub fn steps_per_epoch(&self) -> u64 {
        self.draws.per_epoch()
    }

    /// Images in a step: the batch, or the whole data set if that is smaller.
    pub fn images_per_step(&self) -> usize {
        self.config.batch.min(self.data.len())
    }

    /// Seconds of training so far, earlier parts of a resumed run included.
    pub fn seconds(&self) -> f64 {
        self.progress.seconds
    }

    /// The number of steps of the whole run, where it is known beforehand.
    pub fn total_steps(&self) -> Option<u64> {
        self.config.length.steps(self.steps_per_epoch())
    }

    /// Whether the run has its full length.
    pub fn is_complete(&self) -> bool {
        match self.config.length {
            RunLength::Minutes(minutes) => self.progress.seconds >= 60.0 * minutes,
            _ => self.total_steps().is_some_and(|total| self.progress.step >= total),
        }
    }

    /// One step.
    ///
    /// # Errors
    /// If an image cannot be read, the network refuses the batch, or the loss or the norm of the gradient is not finite. After an
    /// error the parameters, the running statistics and the state of the optimiser are what they were before the step.
    pub fn step(&mut self) -> Result<StepReport, TrainError> {
        self.step_with(None)
    }

    /// The batch of the present step, drawn ahead if `ahead` has it.
    fn draw(&mut self, ahead: Option<&Ahead>) -> Result<Drawn, TrainError> {
        match ahead.and_then(Ahead::next).transpose()? {
            Some(drawn) if drawn.step == self.progress.step => Ok(drawn),
            _ => Ok(self.draws.at(self.progress.step)?),
        }
    }

    fn step_with(&mut self, ahead: Option<&Ahead>) -> Result<StepReport, TrainError> {
        let start = Instant::now();
        let step = self.progress.step + 1;
        let Drawn { epoch, batch, .. } = self.draw(ahead)?;
        let labels = if self.conditional { batch.labels.as_slice() } else { &[] };
        let chances = self.importance.as_ref().and_then(Importance::chances);
        let noisy = self.objective.draw_with(step, batch.images.view(), labels, chances.as_ref());

        self.remember_buffers();
        self.grads.fill(0.0);
        let (loss, losses, grad_norm) = match self.loss_and_gradient(step, &noisy, batch.images.view()) {
            Ok(finite) => finite,
            Err(error) => {
                self.restore_buffers();
                return Err(error);
            }
        };

        let lr = self.lr.at(step);
        let clip = self.config.clip_limit();
        self.optimizer.update(self.net.params_mut().values_mut(), &self.grads, step, lr, grad_norm, clip);

        if let Some(importance) = &mut self.importance {
            importance.record(&noisy.steps, &losses);
        }
        let per_epoch = self.steps_per_epoch();
        let progress = &mut self.progress;
        progress.step = step;
        progress.loss_sum = LOSS_MEMORY * progress.loss_sum + loss;
        progress.loss_weight = LOSS_MEMORY * progress.loss_weight + 1.0;
        progress.seconds += start.elapsed().as_secs_f64();
        Ok(StepReport {
            step,
            epoch: epoch + 1,
            ends_epoch: step.is_multiple_of(per_epoch),
            loss,
            loss_ema: progress.loss_sum / progress.loss_weight,
            grad_norm,
            lr,
            images: step * batch.images.dim().0 as u64,
            seconds: progress.seconds,
        })
    }

    /// Fills the gradient and returns the loss, that of every image, and the gradient's norm, all finite.
    fn loss_and_gradient(
        &mut self,
        step: u64,
        noisy: &NoisyBatch,
        x0: ArrayView4<'_, f32>,
    ) -> Result<(f64, Vec<f64>, f64), TrainError> {
        let (mut loss, mut losses) = (f64::NAN, Vec::new());
        let mut misshaped = None;
        let objective = &self.objective;
        self.net
            .forward_backward(
                noisy.x_t.view(),
                &noisy.timesteps,
                &noisy.condition,
                &mut |output| {
                    let (expected, remedy) = objective.expected(noisy, output.shape());
                    if output.shape() != expected {
                        misshaped = Some((expected, output.shape().to_vec(), remedy));
                        return Array4::zeros(output.raw_dim());
                    }
                    let batch = objective.loss(noisy, x0, output);
                    (loss, losses) = (batch.value, batch.images);
                    batch.gradient
                },
                &mut self.grads,
            )
            .map_err(|source| TrainError::Network { step, source })?;
        if let Some((expected, found, remedy)) = misshaped {
            return Err(TrainError::OutputShape { step, expected: expected.to_vec(), found, remedy });
        }
        let norm = global_norm(&self.grads);
        for (what, value) in [("loss", loss), ("norm of the gradient", norm)] {
            if !value.is_finite() {
                return Err(TrainError::NotFinite { step, what, value });
            }
        }
        Ok((loss, losses, norm))
    }

    /// Whether everything that a checkpoint holds is finite.
    ///
    /// # Errors
    /// [`TrainError::NotFiniteTensor`] for the first number that is not.
    pub fn check_finite(&self) -> Result<(), TrainError> {
        let parts = [
            ("value", self.net.params().values()),
            ("moving average", self.optimizer.ema()),
            ("first moment", self.optimizer.first_moment()),
            ("second moment", self.optimizer.second_moment()),
        ];
        for (part, values) in parts {
            for param in self.net.params().table() {
                let values = &values[param.range.clone()];
                if let Some(index) = values.iter().position(|value| !value.is_finite()) {
                    let (step, tensor, value) = (self.progress.step, param.name.clone(), values[index]);
                    return Err(TrainError::NotFiniteTensor { step, tensor, part, index, value });
                }
            }
        }
        Ok(())
    }

    /// Asks for a checkpoint, if there is anything worth one.
    fn checkpoint(&mut self, hooks: &mut dyn Hooks) -> Result<(), TrainError> {
        self.check_finite()?;
        hooks.checkpoint(self)
    }

    fn remember_buffers(&mut self) {
        let values = self.net.params().values();
        self.buffers_before.clear();
        for range in &self.buffers {
            self.buffers_before.extend_from_slice(&values[range.clone()]);
        }
    }

    fn restore_buffers(&mut self) {
        let values = self.net.params_mut().values_mut();
        let mut before = self.buffers_before.as_slice();
        for range in &self.buffers {
            let (these, rest) = before.split_at(range.len());
            values[range.clone()].copy_from_slice(these);
            before = rest;
        }
    }

    /// Steps until the run has its full length or `stop` is raised (looked at after every step), with a checkpoint
    /// after every epoch, every [`TrainConfig::checkpoint_minutes`], and at the end.
    ///
    /// # Errors
    /// As [`Trainer::step`] and [`Trainer::check_finite`], and whatever a hook returns. No checkpoint is asked for after
    /// an error, nor of numbers that are not finite: the last one is from before it.
    pub fn run(&mut self, stop: &AtomicBool, hooks: &mut dyn Hooks) -> Result<RunEnd, TrainError> {
        std::thread::scope(|scope| {
            // The network does not wait for the disk. What is in memory is drawn faster than it is handed over.
            let ahead = if self.data.is_on_disk() { self.draws.ahead(scope, self.progress.step) } else { None };
            self.run_with(ahead.as_ref(), stop, hooks)
        })
    }

    fn run_with(
        &mut self,
        ahead: Option<&Ahead>,
        stop: &AtomicBool,
        hooks: &mut dyn Hooks,
    ) -> Result<RunEnd, TrainError> {
        let interval = Duration::from_secs_f64((60.0 * self.config.checkpoint_minutes).min(MAX_INTERVAL));
        let mut saved = (self.progress.step, Instant::now());
        loop {
            let end = if self.is_complete() {
                Some(RunEnd::Complete)
            } else if stop.load(Ordering::Relaxed) {
                Some(RunEnd::Stopped)
            } else {
                None
            };
            if let Some(end) = end {
                if saved.0 != self.progress.step {
                    self.checkpoint(hooks)?;
                }
                return Ok(end);
            }
            let report = self.step_with(ahead)?;
            let start = Instant::now();
            hooks.step(&report)?;
            if report.ends_epoch || saved.1.elapsed() >= interval {
                self.checkpoint(hooks)?;
                saved = (report.step, Instant::now());
            }
            if report.ends_epoch {
                hooks.epoch(self, report.epoch)?;
            }
            self.progress.seconds += start.elapsed().as_secs_f64();
        }
    }
}

/// A year in seconds: longer intervals between checkpoints are never reached, but would overflow a [`Duration`].
const MAX_INTERVAL: f64 = 365.25 * 86400.0;

/// Whether the network is trained on labels.
fn check_labels(net: &dyn NetworkGrad, data: &Dataset, config: &TrainConfig) -> Result<bool, TrainError> {
    let classes = net.classes();
    if config.loss == Loss::CrossEntropy {
        return match data.labels() {
            _ if classes > 0 => Err(wrong(
                "loss",
                format!("one of a denoiser, because the network is conditioned on {classes} classes"),
                "cross-entropy",
                "train a classifier, which takes no label",
            )),
            None => Err(wrong(
                "data",
                "labelled, because a classifier learns from labels",
                format!("{} without labels", data.name()),
                "choose a labelled data set",
            )),
            Some(_) => Ok(true),
        };
    }
    if classes == 0 {
        return Ok(false);
    }
    let Some(_) = data.labels() else {
        return Err(wrong(
            "data",
            format!("labelled, because the network has {classes} classes"),
            format!("{} without labels", data.name()),
            "choose a network without classes or a labelled data set",
        ));
    };
    if data.classes() > classes {
        return Err(wrong(
            "data",
            format!("of at most {classes} classes, as many as the network has"),
            format!("{} with {}", data.name(), data.classes()),
            "give the network more classes",
        ));
    }
    if config.label_dropout > 0.0 && !net.has_null_condition() {
        return Err(wrong(
            "label_dropout",
            "0, because the network has no null condition",
            config.label_dropout,
            "set it to 0, or give the network a null class",
        ));
    }
    Ok(true)
}
