use thiserror::Error;

/// What can go wrong when something is evaluated.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EvalError {
    /// An argument outside its range.
    #[error("{operation}: {what} should be {expected}, found {found}; {remedy}")]
    Parameter {
        /// The operation that was called.
        operation: &'static str,
        /// The argument.
        what: &'static str,
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// A pixel that is the centre of no bin.
    #[error(
        "decoder: a pixel of sample {sample} is {value}, which is none of the {count} levels from {low} to {high}; \
         use 8-bit data in the range of the model, or a density for data that is not quantised"
    )]
    OffGrid {
        /// The sample.
        sample: usize,
        /// The value of the pixel.
        value: f64,
        /// The lowest level.
        low: f64,
        /// The highest level.
        high: f64,
        /// Number of levels.
        count: usize,
    },
    /// A likelihood that is no number, because an estimate of the model is none.
    #[error(
        "{operation}: the result for sample {sample} at {place} is {value}; \
         the model may be damaged, or the data far outside its range"
    )]
    NotFinite {
        /// The operation that was called.
        operation: &'static str,
        /// The sample.
        sample: usize,
        /// The step or the noise level.
        place: String,
        /// What came out.
        value: f64,
    },
    /// A decomposition of a matrix that does not converge.
    #[error(
        "{operation}: {what} did not converge; the features may be far too large or too small, look at their range"
    )]
    Decomposition {
        /// The operation that was called.
        operation: &'static str,
        /// What was to be found.
        what: &'static str,
    },
    /// The model refused its input.
    #[error(transparent)]
    Denoiser(#[from] tweedie_denoiser::DenoiserError),
    /// The schedule has no answer.
    #[error(transparent)]
    Schedule(#[from] tweedie_schedule::ScheduleError),
}
