//! Noise schedules.
#![forbid(unsafe_code)]

/// What can go wrong in a schedule.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScheduleError {
    /// Placeholder until the crate is written.
    #[error("not yet")]
    NotYet,
}
