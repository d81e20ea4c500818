use thiserror::Error;

/// What can go wrong when a guided model is put together.
#[derive(Clone, Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum GuidanceError {
    /// The two conditions are not for the same batch.
    #[error(
        "classifier-free guidance: the condition has {cond} entries and the unconditional one {uncond}; \
         give both one entry per sample"
    )]
    Batch {
        /// Entries of the condition.
        cond: usize,
        /// Entries of the other condition.
        uncond: usize,
    },
    /// A scale that is no number.
    #[error("{operation}: the scale should be finite, found {found}; {neutral} means no guidance")]
    Scale {
        /// The method of guidance.
        operation: &'static str,
        /// The scale.
        found: f64,
        /// The scale that changes nothing.
        neutral: f64,
    },
    /// Another parameter outside its range.
    #[error("{operation}: {what} should be {expected}, found {found}")]
    Parameter {
        /// The method of guidance.
        operation: &'static str,
        /// The parameter.
        what: &'static str,
        /// The range it should lie in.
        expected: &'static str,
        /// The value that was given.
        found: f64,
    },
    /// An interval of noise levels without any.
    #[error("guidance interval: the lower end should be from 0 to below the upper one, found ({low}, {high}]")]
    Interval {
        /// The lower end.
        low: f64,
        /// The upper end.
        high: f64,
    },
}

/// The scale, if it is finite.
pub(crate) fn finite(operation: &'static str, scale: f64, neutral: f64) -> Result<f64, GuidanceError> {
    if scale.is_finite() { Ok(scale) } else { Err(GuidanceError::Scale { operation, found: scale, neutral }) }
}
