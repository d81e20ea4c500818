use thiserror::Error;
use tweedie_denoiser::DenoiserError;
use tweedie_schedule::ScheduleError;

/// What can go wrong while sampling, or while a sampler is planned.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SamplerError {
    /// A name that is not in the list.
    #[error("there is no {what} named \"{found}\"; choose one of: {known}")]
    UnknownName {
        /// What was named: a sampler, a variance type.
        what: &'static str,
        /// The name that was given.
        found: String,
        /// The names that exist, separated by commas.
        known: &'static str,
    },
    /// A parameter outside its range.
    #[error("{operation}: {what} should be {expected}, found {found}")]
    Parameter {
        /// The operation that was called.
        operation: &'static str,
        /// The argument.
        what: &'static str,
        /// The range it should lie in.
        expected: &'static str,
        /// The value that was given.
        found: f64,
    },
    /// A number of steps outside its range.
    #[error("{operation}: {what} should be from {lowest} to {highest}, found {found}")]
    Count {
        /// The operation that was called.
        operation: &'static str,
        /// What is counted.
        what: &'static str,
        /// The least number.
        lowest: usize,
        /// The greatest number.
        highest: usize,
        /// The number that was given.
        found: usize,
    },
    /// A variance that is the raw output of the model.
    #[error(
        "the scheduler's variance_type \"{found}\", the model's raw output as a variance, is not supported, since it may be \
         negative; use one of: {known}"
    )]
    LearnedVariance {
        /// The variance type.
        found: String,
        /// The types that work.
        known: &'static str,
    },
    /// A learned variance was asked for of a model that has none.
    #[error(
        "variance_type learned_range needs a model with twice as many output channels as input channels, and this one says \
         no variance; use fixed_small or fixed_large"
    )]
    NoLearnedVariance,
    /// A model that is guided by the mean of the reverse step, for a sampler that has no such step.
    #[error(
        "guidance in the form of the mean adds a multiple of the variance of the reverse step, which only ddpm has; guide in the \
         form of the score, or sample by ddpm"
    )]
    NoReverseVariance,
    /// The first step has no signal, and the model predicts only the noise.
    #[error(
        "step {t} has zero signal (rescale_betas_zero_snr), where a model that predicts {prediction} says nothing about the \
         image; use a model that predicts v or x0, or the leading spacing with fewer sampling than training steps and without \
         steps_offset, which does not visit this step"
    )]
    ZeroSnr {
        /// The 1-based step.
        t: usize,
        /// What the model predicts.
        prediction: &'static str,
    },
    /// A solver of the SDE in `eps` at a level without noise, where what it adds does not vanish, or without signal.
    #[error(
        "{solver}: estimates of the noise say nothing about the SDE at a level without noise or without signal; end at the \
         lowest sigma of the schedule (\"final_sigmas_type\": \"sigma_min\") and start below zero SNR, or use the ++ form, which \
         extrapolates x0"
    )]
    NoiseSdeEnds {
        /// The solver.
        solver: &'static str,
    },
    /// Sigmas by a rule, for a sampler that visits whole steps, or the steps of a table where there is none.
    #[error(
        "{sampler} cannot take its noise levels by the rule {rule}; use the rule karras, exponential or beta with euler, heun or \
         another sampler of that kind, and none with ddpm or ddim"
    )]
    SigmaRule {
        /// The sampler.
        sampler: &'static str,
        /// The rule.
        rule: &'static str,
    },
    /// A process without betas, where a table of steps is needed.
    #[error("this process has continuous noise levels and no table of steps; use a model with a table of betas")]
    NoTable,
    /// The denoiser changed the shape.
    #[error(
        "sample: the denoiser should return shape {expected:?}, found {found:?}; use a denoiser that keeps the shape"
    )]
    Shape {
        /// Shape of the state.
        expected: Vec<usize>,
        /// Shape of the estimate.
        found: Vec<usize>,
    },
    /// A NaN or an infinity.
    #[error(
        "sample: {what} is not finite after move {position} of {total} (step t = {t}); \
         the model may be damaged or may predict something else than the configuration says"
    )]
    NotFinite {
        /// The tensor: the estimate of `x_0`, or the state.
        what: &'static str,
        /// 1-based position of the move.
        position: usize,
        /// Number of moves.
        total: usize,
        /// The 1-based step that the move started at.
        t: f64,
    },
    /// The observer asked to stop.
    #[error("sampling was stopped after move {position} of {total}")]
    Stopped {
        /// 1-based position of the last move made.
        position: usize,
        /// Number of moves.
        total: usize,
    },
    /// The denoiser or the noise failed.
    #[error(transparent)]
    Denoiser(#[from] DenoiserError),
    /// The schedule has no answer.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
}
