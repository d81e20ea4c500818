//! From a noise level to what a network is shown of it, and from its output to the data.
//!
//! A network sees a scaled state and a number; its output is a prediction of [`Prediction`] on a table of steps, or what
//! remains beside a share of the state itself ([`Preconditioning`]).

use std::sync::Arc;

use crate::{
    Affine, LevelGrid, NoiseLevel, Preconditioning, Prediction, Schedule, ScheduleError, TimestepMapping, prediction,
};

/// The number that a network is told of a noise level.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum NoiseNumber {
    /// That of its step.
    Step(TimestepMapping),
    /// `factor ln(sigma)` with the EDM sigma: 1/4 in Karras 2022, 250 in consistency models.
    LogSigma {
        /// The factor.
        factor: f64,
    },
}

impl From<TimestepMapping> for NoiseNumber {
    fn from(mapping: TimestepMapping) -> Self {
        Self::Step(mapping)
    }
}

/// The sign of a preconditioned network's output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OutputSign {
    /// As Karras (2022, eq. 7) has it; `prediction_type: epsilon` of diffusers' EDM schedulers.
    #[default]
    Plain,
    /// The other one; `prediction_type: v_prediction`.
    Negated,
}

/// What a network's output means.
#[derive(Clone, Debug)]
enum Output {
    Prediction { prediction: Prediction, schedule: Arc<Schedule>, number: NoiseNumber },
    Preconditioned { sigma_min: f64, sigma_data: f64, sign: OutputSign, factor: f64 },
}

/// How a network is read at every noise level.
#[derive(Clone, Debug)]
pub struct Bridge {
    output: Output,
    known: Vec<(NoiseLevel, f64)>,
}

/// How a network is read at one noise level; states are `x = alpha x_0 + sigma eps`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Crossing {
    /// The factor of the state that makes the network's input.
    pub of_input: f64,
    /// The number that it is told.
    pub number: f64,
    /// From the state and the output to the estimate of `x_0`.
    pub to_x0: Affine,
}

impl Bridge {
    /// A network that predicts `prediction` on a schedule and is told `number`.
    pub fn new(prediction: Prediction, schedule: impl Into<Arc<Schedule>>, number: impl Into<NoiseNumber>) -> Self {
        let output = Output::Prediction { prediction, schedule: schedule.into(), number: number.into() };
        Self { output, known: Vec::new() }
    }

    /// A network preconditioned for data of standard deviation `sigma_data`, told `factor ln(sigma)`; for a consistency model
    /// `sigma_min` is where it is the identity, and 0 otherwise.
    pub fn preconditioned(sigma_min: f64, sigma_data: f64, sign: OutputSign, factor: f64) -> Self {
        Self { output: Output::Preconditioned { sigma_min, sigma_data, sign, factor }, known: Vec::new() }
    }

    /// The same bridge, which at the levels of a grid tells exactly the grid's steps, and at levels beyond the table those of
    /// its ends.
    ///
    /// Verified by `a_grid_tells_its_own_numbers`.
    pub fn for_grid(mut self, grid: &LevelGrid) -> Self {
        self.known = grid.moves().iter().map(|on| (on.from, on.step)).collect();
        self
    }

    /// How the network is read at a level.
    ///
    /// # Errors
    /// If the level lies outside steps 1..=T of the table and no grid was given, or the conversion to `x_0` is singular. A
    /// network that predicts the mean can be asked at whole steps only.
    ///
    /// Verified by `the_bridge_returns_x0`. Verified by `an_edm_network_is_read_by_karras`.
    pub fn at(&self, level: NoiseLevel) -> Result<Crossing, ScheduleError> {
        match &self.output {
            Output::Prediction { prediction, schedule, number } => {
                let number = match number {
                    NoiseNumber::Step(mapping) => self.number(*mapping, schedule, level)?,
                    NoiseNumber::LogSigma { factor } => factor * level.edm_sigma().ln(),
                };
                let posterior = prediction.posterior(schedule, level)?;
                let to_x0 = prediction::convert(*prediction, Prediction::X0, level, posterior.as_ref())?;
                Ok(Crossing { of_input: 1.0, number, to_x0 })
            }
            Output::Preconditioned { sigma_min, sigma_data, sign, factor } => {
                let (sigma, alpha) = (level.edm_sigma(), level.alpha());
                let of = Preconditioning::consistency(sigma, *sigma_min, *sigma_data)?;
                let of_prediction = if *sign == OutputSign::Plain { of.c_out } else { -of.c_out };
                let to_x0 = Affine { of_x: of.c_skip / alpha, of_prediction };
                Ok(Crossing { of_input: of.c_in / alpha, number: factor * sigma.ln(), to_x0 })
            }
        }
    }

    /// The number of a level's step: that of the grid, else that of the table.
    fn number(&self, mapping: TimestepMapping, schedule: &Schedule, level: NoiseLevel) -> Result<f64, ScheduleError> {
        if self.known.is_empty() {
            return mapping.timestep(schedule, level);
        }
        let known = self.known.iter().find(|(of, _)| *of == level).map(|(_, step)| *step);
        Ok(mapping.of_step(known.unwrap_or_else(|| schedule.step_near(level))))
    }
}
