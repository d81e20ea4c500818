//! From the description of a scheduler to a grid of levels, a solver and a bridge for the network (DIFFUSERS.md, sections 3.1,
//! 3.2 and 9).

use std::sync::Arc;

use tweedie_schedule::{
    BetaSchedule, Bridge, GridEnd, GridRule, LevelGrid, NoiseLevel, NoiseNumber, OutputSign, Placing, Prediction,
    Schedule, SigmaRange, SigmaRule, Spacing, StepGrid, StepRounding, TimestepMapping, prediction,
};

use crate::churned_euler::{ChurnedEuler, Output};
use crate::spec::GridKind;
use crate::{Churn, Clip, ConsistencyForm, Pndm, PndmLevels, PndmStart, SamplerError, Solver, SolverSpec};

/// What diffusers' samplers in sigma put in the place of `abar_T = 0`.
const TERMINAL_ABAR: f64 = 1.0 / 16_777_216.0;
/// The factor of `ln(sigma)` in the number that Karras' networks are told (Karras 2022, table 1).
const QUARTER: f64 = 0.25;
/// The same of consistency models: 1000 times as much.
const CONSISTENCY_FACTOR: f64 = 250.0;

/// Whether diffusers' deviations from the published methods are followed; docs/samplers.md lists them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Compat {
    /// As published.
    #[default]
    Published,
    /// As diffusers 0.42.1 does it.
    Diffusers,
}

/// What the network is told of a noise level (`timestep_type` of diffusers' Euler).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TimeKind {
    /// The step.
    #[default]
    Discrete,
    /// `ln(sigma) / 4`, for models that predict v.
    Continuous,
}

/// The process that a model was trained on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum Process {
    /// A table of betas: the keys of [`SchedulerSpec`].
    #[default]
    Table,
    /// Karras' continuous one (diffusers' `EDMEulerScheduler`), which has no table.
    Edm(EdmProcess),
    /// That of consistency models (diffusers' `CMStochasticIterativeScheduler`), which has no table.
    Consistency(ConsistencyProcess),
}

/// The process of consistency models: some of T levels of Karras' rule, and a network that is preconditioned to be the identity
/// at the lowest (Song 2023, section 3 and appendix C).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ConsistencyProcess {
    /// The lowest level.
    pub sigma_min: f64,
    /// The first one.
    pub sigma_max: f64,
    /// Standard deviation of the data.
    pub sigma_data: f64,
}

impl Default for ConsistencyProcess {
    /// The paper's.
    fn default() -> Self {
        Self { sigma_min: 0.002, sigma_max: 80.0, sigma_data: 0.5 }
    }
}

impl Process {
    /// A name for reports.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Table => "table",
            Self::Edm(_) => "edm",
            Self::Consistency(_) => "consistency",
        }
    }
}

/// Karras' process: levels between two sigmas, and a network preconditioned for data of a known standard deviation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EdmProcess {
    /// The last level that is visited.
    pub sigma_min: f64,
    /// The first one.
    pub sigma_max: f64,
    /// Standard deviation of the data.
    pub sigma_data: f64,
    /// The sign of the network's output.
    pub sign: OutputSign,
}

impl Default for EdmProcess {
    /// The paper's.
    fn default() -> Self {
        Self { sigma_min: 0.002, sigma_max: 80.0, sigma_data: 0.5, sign: OutputSign::Plain }
    }
}

/// A scheduler as its file describes it. The defaults are those of diffusers' `DDPMScheduler` and `DDIMScheduler`.
#[derive(Clone, Debug, PartialEq)]
pub struct SchedulerSpec {
    /// The solver (`_class_name` and its own keys).
    pub solver: SolverSpec,
    /// The process. That of Karras has no use for the keys of the table that follow.
    pub process: Process,
    /// T (`num_train_timesteps`).
    pub train_steps: usize,
    /// `beta_schedule`, `beta_start`, `beta_end`; or `trained_betas` as [`BetaSchedule::Custom`].
    pub betas: BetaSchedule,
    /// `rescale_betas_zero_snr`.
    pub rescale_zero_snr: bool,
    /// `prediction_type`.
    pub prediction: Prediction,
    /// `timestep_type`.
    pub time: TimeKind,
    /// `timestep_spacing`.
    pub spacing: Spacing,
    /// `steps_offset`, which shifts the leading spacing alone.
    pub steps_offset: usize,
    /// `use_karras_sigmas` and its like, `interpolation_type`, `sigma_schedule`.
    pub sigmas: SigmaRule,
    /// Between which ends the rule works, for a sampler that does not take the whole table anyway.
    pub sigma_range: SigmaRange,
    /// `sigma_min`, for a rule of sigmas on a table.
    pub sigma_min: Option<f64>,
    /// `sigma_max`, for a rule of sigmas on a table.
    pub sigma_max: Option<f64>,
    /// `set_alpha_to_one`, `final_sigmas_type`.
    pub end: GridEnd,
    /// The least `lambda = ln(alpha / sigma)` that DPM-Solver visits (`lambda_min_clipped`).
    pub lambda_min: Option<f64>,
    /// `clip_sample` and `clip_sample_range`, or `thresholding` and its keys (which wins if both are set).
    pub clip: Clip,
    /// Whether diffusers' deviations are followed.
    pub compat: Compat,
}

impl Default for SchedulerSpec {
    fn default() -> Self {
        Self {
            solver: SolverSpec::ddpm(),
            process: Process::Table,
            train_steps: 1000,
            betas: BetaSchedule::Linear { start: 1e-4, end: 0.02 },
            rescale_zero_snr: false,
            prediction: Prediction::Eps,
            time: TimeKind::Discrete,
            spacing: Spacing::Leading,
            steps_offset: 0,
            sigmas: SigmaRule::Steps,
            sigma_range: SigmaRange::Visited,
            sigma_min: None,
            sigma_max: None,
            end: GridEnd::Clean,
            lambda_min: None,
            clip: Clip::Range(1.0),
            compat: Compat::Published,
        }
    }
}

/// Everything that [`crate::sample`] needs beside a denoiser and noise.
pub struct Plan {
    /// The moves.
    pub grid: LevelGrid,
    /// The solver.
    pub solver: Box<dyn Solver>,
    network: NetworkForm,
}

/// What is known of the network of a plan.
#[derive(Debug)]
enum NetworkForm {
    Table { prediction: Prediction, schedule: Arc<Schedule>, time: TimeKind },
    Edm(EdmProcess),
    Consistency(ConsistencyProcess),
}

impl std::fmt::Debug for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plan")
            .field("network", &self.network)
            .field("grid", &self.grid)
            .field("solver", &self.solver.name())
            .finish()
    }
}

impl Plan {
    /// The noise levels of training, where there is a table of them.
    pub fn schedule(&self) -> Option<&Schedule> {
        match &self.network {
            NetworkForm::Table { schedule, .. } => Some(schedule),
            NetworkForm::Edm(_) | NetworkForm::Consistency(_) => None,
        }
    }

    /// How the network is read: it is told the numbers of the plan's own grid, steps counted as `mapping` says.
    pub fn bridge(&self, mapping: TimestepMapping) -> Bridge {
        match &self.network {
            NetworkForm::Table { prediction, schedule, time } => {
                let number = match time {
                    TimeKind::Discrete => NoiseNumber::Step(mapping),
                    TimeKind::Continuous => NoiseNumber::LogSigma { factor: QUARTER },
                };
                Bridge::new(*prediction, schedule.clone(), number).for_grid(&self.grid)
            }
            NetworkForm::Edm(edm) => Bridge::preconditioned(0.0, edm.sigma_data, edm.sign, QUARTER),
            NetworkForm::Consistency(of) => {
                Bridge::preconditioned(of.sigma_min, of.sigma_data, OutputSign::Plain, CONSISTENCY_FACTOR)
            }
        }
    }
}

impl SchedulerSpec {
    /// The noise levels of training.
    ///
    /// # Errors
    /// If the betas are not a schedule of `train_steps` steps, or the process has no table.
    pub fn schedule(&self) -> Result<Schedule, SamplerError> {
        if self.process != Process::Table {
            return Err(SamplerError::NoTable);
        }
        let schedule = Schedule::new(&self.betas, self.train_steps)?;
        if !self.rescale_zero_snr {
            return Ok(schedule);
        }
        let schedule = schedule.rescaled_zero_terminal_snr()?;
        Ok(match self.solver.grid_kind() {
            GridKind::Steps => schedule,
            GridKind::Sigmas | GridKind::Multistep => schedule.with_terminal_abar(TERMINAL_ABAR)?,
        })
    }

    /// The grid of `steps` moves and the solver.
    ///
    /// Where this differs from stock diffusers, with K steps out of T ([`Compat::Diffusers`] follows it in the first three):
    /// - DDIM moves to the next entry of the grid, and from the last one to its end. Diffusers moves down by a fixed
    ///   `floor(T / K)`, which misses the grid for linspace, and for trailing where K does not divide T; and for leading with
    ///   `steps_offset >= floor(T / K)` its last move stops short of the end.
    /// - Heun's and the midpoint method make Euler's step where their own would magnify errors ([`crate::Heun`]).
    /// - Noise that Euler's method adds is added before the network is asked ([`Churn`]), and in diffusers after it.
    /// - Steps that leave 1..=T are an error (diffusers reads beyond its table), and the entry -1 that numpy's float stride
    ///   yields for some trailing grids is left out.
    /// - A first step without signal is an error for a model that predicts the noise, where diffusers divides by 0.
    /// - `fixed_large_log` is the standard deviation of `fixed_large`; in diffusers it is NaN.
    ///
    /// # Errors
    /// If the schedule, the grid, the solver or the clip is out of range, or the first step has no answer for the prediction.
    pub fn plan(&self, steps: usize) -> Result<Plan, SamplerError> {
        let (grid, network) = match self.process {
            Process::Table => {
                let schedule = self.schedule()?;
                let grid = self.grid(&schedule, steps)?;
                self.check_signal(&grid)?;
                let time = if self.prediction == Prediction::V { self.time } else { TimeKind::Discrete };
                (grid, NetworkForm::Table { prediction: self.prediction, schedule: Arc::new(schedule), time })
            }
            Process::Edm(edm) => (self.edm_grid(&edm, steps)?, NetworkForm::Edm(edm)),
            Process::Consistency(of) => (self.consistency_grid(&of, steps)?, NetworkForm::Consistency(of)),
        };
        let solver: Box<dyn Solver> = match (self.solver, &network) {
            (SolverSpec::Pndm { start, averaged }, NetworkForm::Table { schedule, .. }) => {
                Box::new(Pndm::new(start, averaged).with_levels(self.pndm_levels(schedule, &grid, steps)?))
            }
            (SolverSpec::Euler { churn }, _) if churn != Churn::NONE && self.compat == Compat::Diffusers => {
                let output = match network {
                    NetworkForm::Edm(edm) => Output::Edm { sigma_data: edm.sigma_data },
                    _ => Output::Prediction(self.prediction),
                };
                Box::new(ChurnedEuler { churn: churn.check()?, output })
            }
            _ => self.solver.build(self.clip, self.compat)?,
        };
        Ok(Plan { grid, network, solver })
    }

    fn grid(&self, schedule: &Schedule, steps: usize) -> Result<LevelGrid, SamplerError> {
        let kind = self.solver.grid_kind();
        if kind == GridKind::Steps {
            return self.whole_steps(schedule, steps);
        }
        let ruled = !matches!(self.sigmas, SigmaRule::Steps | SigmaRule::LogLinear);
        let end = match (self.solver, self.end) {
            // Their classes end a rule's levels where these end.
            (SolverSpec::UniPc(_) | SolverSpec::Deis { .. }, GridEnd::FirstStep) if ruled => GridEnd::LastLevel,
            // Its class has no other end.
            (SolverSpec::Deis { .. }, _) if ruled => GridEnd::LastLevel,
            (SolverSpec::Deis { .. }, _) => GridEnd::FirstStep,
            (_, end) => end,
        };
        let rule = GridRule {
            count: steps,
            spacing: self.spacing,
            steps_offset: self.steps_offset,
            placing: if kind == GridKind::Sigmas { Placing::Fractional } else { Placing::WholeOfOneMore },
            highest: self
                .lambda_min
                .map(|least| (1..=schedule.steps()).filter(|&t| 0.5 * schedule.level(t).log_snr() >= least).count()),
            sigmas: self.sigmas,
            range: if kind == GridKind::Sigmas { self.sigma_range } else { SigmaRange::Table },
            sigma_min: self.sigma_min,
            sigma_max: self.sigma_max,
            rounding: self.rounding(kind),
            end,
        };
        let grid = rule.grid(schedule)?;
        if kind != GridKind::Sigmas {
            return Ok(grid);
        }
        // Diffusers works on x / alpha, and starts from max(sigma) z or sqrt(max(sigma)^2 + 1) z.
        let start = match self.spacing {
            Spacing::Linspace | Spacing::Trailing => grid.moves()[0].from.sigma(),
            _ => 1.0,
        };
        Ok(grid.with_start(start).with_unscaled_result())
    }

    /// The levels that PNDM's first moves need beside the grid.
    fn pndm_levels(&self, schedule: &Schedule, grid: &LevelGrid, steps: usize) -> Result<PndmLevels, SamplerError> {
        let visited: Vec<f64> = grid.moves().iter().map(|on| on.step).collect();
        let level = |step: f64| -> Result<NoiseLevel, SamplerError> {
            Ok(schedule.level_of_linear_sigma(step.clamp(1.0, schedule.steps() as f64))?)
        };
        let stride = self.train_steps / steps;
        let middle = |pair: &[f64]| {
            let (led, asked) = if self.compat == Compat::Diffusers || pair[0] - pair[1] == stride as f64 {
                // Diffusers' numbers are whole, and it counts half of its stride from either end of the move.
                (pair[0] - (stride / 2) as f64, pair[1] + (stride / 2) as f64)
            } else {
                (0.5 * (pair[0] + pair[1]), 0.5 * (pair[0] + pair[1]))
            };
            Ok((level(led)?, level(asked)?))
        };
        let middles = visited.windows(2).take(Pndm::RUNGE_KUTTA_MOVES).map(middle);
        let first = match *visited {
            [first, second, ..] if self.compat == Compat::Diffusers => {
                Some((level(first - stride as f64)?, level(second + stride as f64)?))
            }
            _ => None,
        };
        Ok(PndmLevels { middles: middles.collect::<Result<_, SamplerError>>()?, first })
    }

    /// Of the steps that a latent consistency model was distilled on, those of a run (Luo 2023; `LCMScheduler`).
    fn latent_steps(&self, original: usize, steps: usize) -> Result<StepGrid, SamplerError> {
        let operation = "lcm";
        if !(1..=self.train_steps).contains(&original) {
            return Err(SamplerError::Count {
                operation,
                what: "the number of steps of distillation (original_inference_steps)",
                lowest: 1,
                highest: self.train_steps,
                found: original,
            });
        }
        if !(1..=original).contains(&steps) {
            return Err(SamplerError::Count {
                operation,
                what: "the number of sampling steps",
                lowest: 1,
                highest: original,
                found: steps,
            });
        }
        let stride = self.train_steps / original;
        // floor(i * original / steps) of the steps original * stride, (original - 1) * stride, ...
        let visited = (0..steps).map(|i| (original - i * original / steps) * stride);
        Ok(StepGrid::from_steps(self.train_steps, visited.collect())?)
    }

    fn whole_steps(&self, schedule: &Schedule, steps: usize) -> Result<LevelGrid, SamplerError> {
        if self.sigmas != SigmaRule::Steps {
            return Err(SamplerError::SigmaRule { sampler: self.solver.name(), rule: self.sigmas.name() });
        }
        if let SolverSpec::Consistency(ConsistencyForm::Latent { original_steps, .. }) = self.solver {
            return Ok(LevelGrid::of_steps(&self.latent_steps(original_steps, steps)?, schedule)?);
        }
        let mut grid = StepGrid::new(self.train_steps, steps, self.spacing, self.steps_offset)?;
        if self.end == GridEnd::FirstStep {
            grid = grid.with_final_step(1)?;
        }
        if self.compat == Compat::Diffusers && matches!(self.solver, SolverSpec::Ddim { .. } | SolverSpec::Pndm { .. })
        {
            grid = grid.with_stride(self.train_steps / steps);
        }
        let levels = LevelGrid::of_steps(&grid, schedule)?;
        match self.solver {
            SolverSpec::Pndm { start, .. } if self.compat == Compat::Diffusers => pndm_grid(&levels, start),
            _ => Ok(levels),
        }
    }

    /// What the diffusers class makes of the timesteps of a rule's sigmas.
    fn rounding(&self, kind: GridKind) -> StepRounding {
        let karras = matches!(self.sigmas, SigmaRule::Karras { .. } | SigmaRule::Lambda);
        let rounded = !matches!(self.solver, SolverSpec::Dpm(_)) || self.betas != BetaSchedule::cosine();
        match kind {
            GridKind::Multistep if karras && rounded => StepRounding::Nearest,
            GridKind::Multistep => StepRounding::Down,
            _ if karras && matches!(self.solver, SolverSpec::Kdpm2 | SolverSpec::Kdpm2Ancestral) => {
                StepRounding::Nearest
            }
            _ => StepRounding::None,
        }
    }

    /// Whether the prediction says anything of the data at the first level.
    fn check_signal(&self, grid: &LevelGrid) -> Result<(), SamplerError> {
        let first = grid.moves()[0];
        let says_x0 = self.prediction == Prediction::Mean
            || prediction::convert(self.prediction, Prediction::X0, first.from, None).is_ok();
        if says_x0 {
            return Ok(());
        }
        Err(SamplerError::ZeroSnr { t: first.step as usize, prediction: self.prediction.name() })
    }

    fn edm_grid(&self, edm: &EdmProcess, steps: usize) -> Result<LevelGrid, SamplerError> {
        let sigmas = self.sigmas.sigmas(edm.sigma_min, edm.sigma_max, steps)?;
        let sigmas =
            sigmas.ok_or(SamplerError::SigmaRule { sampler: "a process without a table", rule: self.sigmas.name() })?;
        let visited = sigmas.into_iter().map(|sigma| Ok((NoiseLevel::from_edm_sigma(sigma)?, QUARTER * sigma.ln())));
        let visited = visited.collect::<Result<Vec<_>, SamplerError>>()?;
        let end = match self.end {
            GridEnd::Clean => NoiseLevel::CLEAN,
            _ => visited[visited.len() - 1].0,
        };
        Ok(LevelGrid::through(&visited, end)?.with_unscaled_result())
    }

    fn consistency_grid(&self, of: &ConsistencyProcess, steps: usize) -> Result<LevelGrid, SamplerError> {
        if !(1..=self.train_steps).contains(&steps) {
            return Err(SamplerError::Count {
                operation: "consistency",
                what: "the number of sampling steps",
                lowest: 1,
                highest: self.train_steps,
                found: steps,
            });
        }
        let sigmas = self.sigmas.sigmas(of.sigma_min, of.sigma_max, self.train_steps)?;
        let sigmas =
            sigmas.ok_or(SamplerError::SigmaRule { sampler: "a process without a table", rule: self.sigmas.name() })?;
        let visited = sigmas.into_iter().step_by(self.train_steps / steps).take(steps);
        let visited = visited.map(|s| Ok((NoiseLevel::from_edm_sigma(s)?, CONSISTENCY_FACTOR * s.ln())));
        let grid = LevelGrid::through(&visited.collect::<Result<Vec<_>, SamplerError>>()?, NoiseLevel::CLEAN)?;
        let start = grid.moves()[0].from.sigma();
        Ok(grid.with_start(start))
    }
}

/// The grid of diffusers' PNDM: its first moves lead to the next step of its list, the others down by a fixed stride.
fn pndm_grid(by_stride: &LevelGrid, start: PndmStart) -> Result<LevelGrid, SamplerError> {
    let mut moves = by_stride.moves().to_vec();
    let listed = match start {
        PndmStart::Multistep => 1,
        PndmStart::RungeKutta => Pndm::RUNGE_KUTTA_MOVES,
    };
    for k in 1..moves.len().min(listed + 1) {
        moves[k - 1].to = moves[k].from;
    }
    Ok(LevelGrid::new(moves)?)
}
