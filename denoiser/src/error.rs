use thiserror::Error;

/// What can go wrong when a network or a denoiser is asked for an output.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DenoiserError {
    /// The input, the timesteps and the condition do not describe the same batch, or the network cannot take them.
    #[error("{operation}: {what} should be {expected}, found {found}; {remedy}")]
    Shape {
        /// The operation that was called.
        operation: &'static str,
        /// The tensor or argument.
        what: &'static str,
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// A class label outside the range that the network was built for, or a missing condition.
    #[error("{operation}: {message}")]
    Condition {
        /// The operation that was called.
        operation: &'static str,
        /// What is wrong, and what to do about it.
        message: String,
    },
    /// A source of noise that has no more, or has another shape.
    #[error("noise: {what} should have {expected}, found {found}; {remedy}")]
    Noise {
        /// The tensor.
        what: &'static str,
        /// What was asked for.
        expected: String,
        /// What there is.
        found: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// A description of an oracle that is no distribution.
    #[error("oracle: {what} should be {expected}, found {found}")]
    Oracle {
        /// The entry.
        what: String,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// The schedule cannot answer for this noise level.
    #[error(transparent)]
    Schedule(#[from] tweedie_schedule::ScheduleError),
}
