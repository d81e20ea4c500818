use crate::{NoiseLevel, Schedule, ScheduleError};

/// A level counts as step 1 if its step is not farther below 1 than this.
const TOLERANCE: f64 = 1e-6;

/// Which number a network sees for a noise level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TimestepMapping {
    /// `t` in [1, T]: the textbook network (`book`).
    OneBased,
    /// `t - 1` in [0, T - 1]: diffusers.
    #[default]
    ZeroBased,
}

impl TimestepMapping {
    /// The number for a level; fractional between two steps.
    ///
    /// # Errors
    /// If the level lies outside steps 1..=T of the schedule: no network was trained there.
    ///
    /// Verified by `networks_see_the_right_number`.
    pub fn timestep(self, schedule: &Schedule, level: NoiseLevel) -> Result<f64, ScheduleError> {
        let t = schedule.t_of_level(level)?;
        if t < 1.0 - TOLERANCE {
            return Err(ScheduleError::Parameter {
                operation: "timestep of a noise level",
                what: "the step",
                expected: "1 or higher: networks are trained from step 1 on",
                found: t,
            });
        }
        Ok(self.of_step(t.max(1.0)))
    }

    /// The number for a step `t` in [1, T].
    ///
    /// Verified by `networks_see_the_right_number`.
    pub fn of_step(self, t: f64) -> f64 {
        match self {
            Self::OneBased => t,
            Self::ZeroBased => t - 1.0,
        }
    }
}
