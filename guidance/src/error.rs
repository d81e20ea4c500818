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
    #[error("classifier-free guidance: the scale should be finite, found {found}; 1 means no guidance")]
    Scale {
        /// The scale.
        found: f64,
    },
}
