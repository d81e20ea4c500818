//! The noise levels that a sampler visits: where each of its moves starts and leads, and which step the network is told.
//!
//! A grid of whole steps is [`LevelGrid::of_steps`]; diffusers' other grids (fractional steps, noise levels by a rule of their
//! own) are a [`GridRule`] (DIFFUSERS.md, section 3).

use crate::grid::Points;
use crate::{NoiseLevel, Placing, Schedule, ScheduleError, SigmaRule, Spacing, StepGrid};

/// One move of a sampler.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GridMove {
    /// The level that it starts at.
    pub from: NoiseLevel,
    /// The level that it leads to.
    pub to: NoiseLevel,
    /// The 1-based step of the training process that the network is told at `from`, fractional between two steps; for a
    /// process without steps the number itself that it is told.
    pub step: f64,
}

/// The moves of a sampler, in order; indexed by position.
#[derive(Clone, Debug, PartialEq)]
pub struct LevelGrid {
    moves: Vec<GridMove>,
    start: f64,
    result: f64,
}

impl LevelGrid {
    /// A grid of given moves, whose first state is standard normal noise.
    ///
    /// # Errors
    /// If there is no move, they do not start at strictly falling noise, one leads to more noise than it starts with, or a
    /// step is not a number.
    ///
    /// Verified by `level_grids_lead_down`.
    pub fn new(moves: Vec<GridMove>) -> Result<Self, ScheduleError> {
        if moves.is_empty() {
            return Err(ScheduleError::Count {
                operation: "grid of levels",
                what: "the number of moves",
                lowest: 1,
                highest: Schedule::MAX_STEPS,
                found: 0,
            });
        }
        for (position, on) in moves.iter().enumerate() {
            let wrong = |from: NoiseLevel, to: NoiseLevel| {
                Err(ScheduleError::LevelGridOrder { position, from: from.edm_sigma(), to: to.edm_sigma() })
            };
            if on.to.noisier_than(on.from) {
                return wrong(on.from, on.to);
            }
            if position > 0 && !moves[position - 1].from.noisier_than(on.from) {
                return wrong(moves[position - 1].from, on.from);
            }
            if !on.step.is_finite() {
                return Err(crate::level::parameter("grid of levels", "the step", "finite", on.step));
            }
        }
        Ok(Self { moves, start: 1.0, result: 1.0 })
    }

    /// The levels of a grid of whole steps.
    ///
    /// # Errors
    /// If the grid was made for another number of training steps.
    pub fn of_steps(grid: &StepGrid, schedule: &Schedule) -> Result<Self, ScheduleError> {
        if grid.train_steps() != schedule.steps() {
            return Err(ScheduleError::GridMismatch { grid: grid.train_steps(), schedule: schedule.steps() });
        }
        let moves = grid.moves().map(|(step, next)| GridMove {
            from: schedule.level(step),
            to: schedule.level(next),
            step: step as f64,
        });
        Self::new(moves.collect())
    }

    /// The grid through given levels, the noisiest first, with the step that the network is told at each.
    ///
    /// # Errors
    /// As [`LevelGrid::new`]; `end` may equal the last level.
    pub fn through(visited: &[(NoiseLevel, f64)], end: NoiseLevel) -> Result<Self, ScheduleError> {
        let moves = visited.iter().enumerate().map(|(k, &(from, step))| {
            let to = visited.get(k + 1).map_or(end, |next| next.0);
            GridMove { from, to, step }
        });
        Self::new(moves.collect())
    }

    /// The same moves, whose first state is `start` times standard normal noise, as x in `x = alpha x_0 + sigma eps`.
    pub fn with_start(mut self, start: f64) -> Self {
        self.start = start;
        self
    }

    /// The factor of standard normal noise in the first state.
    pub fn start(&self) -> f64 {
        self.start
    }

    /// The same moves, whose result is the last state as `x / alpha`: samplers that work on `x_0 + s eps` hand that out where
    /// they end at a noise (`final_sigmas_type: sigma_min` of diffusers' Euler and its like).
    pub fn with_unscaled_result(mut self) -> Self {
        self.result = self.moves.last().map_or(1.0, |on| on.to.alpha().recip());
        self
    }

    /// The factor of the last state in the result; 1 unless [`LevelGrid::with_unscaled_result`] says otherwise.
    pub fn result(&self) -> f64 {
        self.result
    }

    /// The moves.
    pub fn moves(&self) -> &[GridMove] {
        &self.moves
    }

    /// Number of moves.
    pub fn len(&self) -> usize {
        self.moves.len()
    }

    /// Never true: a grid has at least one move.
    pub fn is_empty(&self) -> bool {
        self.moves.is_empty()
    }
}

/// Where the last move of a grid leads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GridEnd {
    /// To the data (`set_alpha_to_one: true`, `final_sigmas_type: zero`).
    #[default]
    Clean,
    /// To the level of step 1 (`set_alpha_to_one: false`, `final_sigmas_type: sigma_min`).
    FirstStep,
    /// Nowhere: it ends where it starts (`final_sigmas_type: sigma_min` where the levels do not come from a table).
    LastLevel,
}

impl GridEnd {
    /// The level, on a schedule and after a last level that is visited.
    pub fn level(self, schedule: &Schedule, last: NoiseLevel) -> NoiseLevel {
        match self {
            Self::Clean => NoiseLevel::CLEAN,
            Self::FirstStep => schedule.level(1),
            Self::LastLevel => last,
        }
    }
}

/// Which levels a [`SigmaRule`] takes for its ends where it is not given others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SigmaRange {
    /// The first and the last that the spacing visits.
    #[default]
    Visited,
    /// Those of steps T and 1.
    Table,
}

/// What becomes of a number between two timesteps that was found for a level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StepRounding {
    /// It stays.
    #[default]
    None,
    /// The nearest timestep, ties to the even one (counted from 0).
    Nearest,
    /// The timestep below.
    Down,
}

impl StepRounding {
    /// The 1-based step of a fractional one.
    fn of(self, step: f64) -> f64 {
        match self {
            Self::None => step,
            Self::Nearest => (step - 1.0).round_ties_even() + 1.0,
            Self::Down => step.floor(),
        }
    }
}

/// A grid of levels on the table of a schedule.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GridRule {
    /// Number of moves.
    pub count: usize,
    /// Which steps are visited.
    pub spacing: Spacing,
    /// Shift of [`Spacing::Leading`].
    pub steps_offset: usize,
    /// Whether the steps are whole.
    pub placing: Placing,
    /// The highest step that may be visited; `None` is T.
    pub highest: Option<usize>,
    /// The noise levels between the ends.
    pub sigmas: SigmaRule,
    /// The ends, where they are not given.
    pub range: SigmaRange,
    /// The lower end, as EDM sigma.
    pub sigma_min: Option<f64>,
    /// The upper end, as EDM sigma.
    pub sigma_max: Option<f64>,
    /// What becomes of the steps of levels that are no steps.
    pub rounding: StepRounding,
    /// Where the last move leads.
    pub end: GridEnd,
}

impl GridRule {
    /// The grid on a schedule.
    ///
    /// # Errors
    /// If the count, the offset or an end is out of range, or levels coincide.
    ///
    /// Verified by `sigmas_of_a_rule_and_their_steps`.
    pub fn grid(&self, schedule: &Schedule) -> Result<LevelGrid, ScheduleError> {
        let train_steps = schedule.steps();
        let highest = self.highest.unwrap_or(train_steps);
        if !(1..=highest).contains(&self.count) {
            return Err(ScheduleError::Count {
                operation: "grid of levels",
                what: "the number of sampling steps",
                lowest: 1,
                highest,
                found: self.count,
            });
        }
        let points = Points {
            highest,
            count: self.count,
            spacing: self.spacing,
            steps_offset: self.steps_offset,
            placing: self.placing,
        };
        let mut visited = Vec::with_capacity(self.count);
        for (position, step) in points.of(train_steps).into_iter().enumerate() {
            if step > train_steps as f64 {
                return Err(ScheduleError::GridRange { position, found: step as usize, train_steps });
            }
            visited.push((schedule.level_of_linear_sigma(step)?, step));
        }
        let (Some(first), Some(last)) = (visited.first().copied(), visited.last().copied()) else {
            return LevelGrid::new(Vec::new());
        };
        if self.sigmas == SigmaRule::LogLinear {
            let (low, high) = (schedule.level(1).edm_sigma(), schedule.level(train_steps).edm_sigma());
            let sigmas = self.sigmas.sigmas(low, high, self.count + 1)?.unwrap_or_default();
            for (level, sigma) in visited.iter_mut().zip(sigmas) {
                level.0 = NoiseLevel::from_edm_sigma(sigma)?;
            }
            return LevelGrid::through(&visited, schedule.level(1));
        }
        let (low, high) = match self.range {
            SigmaRange::Visited => (last.0, first.0),
            SigmaRange::Table => (schedule.level(1), schedule.level(train_steps)),
        };
        let low = self.sigma_min.unwrap_or(low.edm_sigma());
        let high = self.sigma_max.unwrap_or(high.edm_sigma());
        if let Some(sigmas) = self.sigmas.sigmas(low, high, visited.len())? {
            for (slot, sigma) in visited.iter_mut().zip(sigmas) {
                let level = NoiseLevel::from_edm_sigma(sigma)?;
                *slot = (level, self.rounding.of(schedule.step_near(level)));
            }
        }
        let last = visited[visited.len() - 1].0;
        LevelGrid::through(&visited, self.end.level(schedule, last))
    }
}
