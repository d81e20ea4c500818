use std::error::Error;

use thiserror::Error;

/// What can go wrong in a training run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A field of the configuration outside its range, or at odds with the network or the data.
    #[error("training configuration: {field} should be {expected}, found {found}; {remedy}")]
    Config {
        /// The field, as it is written in a configuration file.
        field: &'static str,
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// The loss or the norm of the gradient is NaN or infinite. Neither the parameters nor the state were changed.
    #[error(
        "step {step}: the {what} is {value}; the parameters are those of step {}, and no checkpoint was overwritten: \
         start a new run with a lower learning rate (lr), a longer warm-up (lr_warmup) or a lower clip_norm",
        step - 1
    )]
    NotFinite {
        /// The step that failed, counted from 1.
        step: u64,
        /// `loss` or `norm of the gradient`.
        what: &'static str,
        /// NaN or an infinity.
        value: f64,
    },
    /// A parameter, a moment or the moving average is NaN or infinite where the run should have been saved. Nothing was
    /// saved: the last checkpoint is one of finite numbers.
    #[error(
        "step {step}: element {index} of the {part} of the tensor {tensor} is {value}; no checkpoint was overwritten: \
         start a new run with a lower learning rate (lr), a longer warm-up (lr_warmup) or a lower clip_norm"
    )]
    NotFiniteTensor {
        /// The last step that was done, counted from 1.
        step: u64,
        /// The name of the tensor.
        tensor: String,
        /// `value`, `moving average`, `first moment` or `second moment`.
        part: &'static str,
        /// The first such element of the tensor, from 0.
        index: usize,
        /// NaN or an infinity.
        value: f32,
    },
    /// The network's output has another shape than the target.
    #[error("step {step}: the network's output should have the shape {expected:?}, found {found:?}; {remedy}")]
    OutputShape {
        /// The step, counted from 1.
        step: u64,
        /// Shape of the target.
        expected: Vec<usize>,
        /// Shape of the output.
        found: Vec<usize>,
        /// What to do about it.
        remedy: &'static str,
    },
    /// The network refused a batch.
    #[error("step {step}: {source}")]
    Network {
        /// The step, counted from 1.
        step: u64,
        /// What the network said.
        source: tweedie_denoiser::DenoiserError,
    },
    /// The noise schedule of the configuration cannot be built.
    #[error("training configuration: {0}")]
    Schedule(#[from] tweedie_schedule::ScheduleError),
    /// An image could not be read from disk.
    #[error(transparent)]
    Data(#[from] tweedie_data::DataError),
    /// A training state could not be written or read.
    #[error(transparent)]
    Checkpoint(#[from] tweedie_checkpoint::CheckpointError),
    /// A file that is no training state, or a damaged one.
    #[error("{file}: {what} should be {expected}, found {found}; resume from a state that this program has written")]
    State {
        /// The file.
        file: String,
        /// The entry of the file.
        what: String,
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
    },
    /// A training state of another network, another data set or another configuration.
    #[error("{file} cannot be resumed: {field} was {saved} when it was saved and is {now} now; {remedy}")]
    Mismatch {
        /// The file.
        file: String,
        /// The first field that differs.
        field: String,
        /// Its value in the file.
        saved: String,
        /// Its value in this run.
        now: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// A log that this crate has not written.
    #[error(
        "log line {line}: found \"{found}\", expected the columns {expected}; move the file away to start a new log"
    )]
    Log {
        /// The line, counted from 1.
        line: usize,
        /// The beginning of the line.
        found: String,
        /// The header.
        expected: &'static str,
    },
    /// A hook of the loop failed.
    #[error("{0}")]
    Hook(#[source] Box<dyn Error + Send + Sync>),
}

impl TrainError {
    /// The error of a hook: anything that the caller of the loop ran into.
    pub fn hook(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Hook(error.into())
    }
}
