use thiserror::Error;

/// What can go wrong in a schedule, a step grid or a conversion of predictions.
#[derive(Clone, Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum ScheduleError {
    /// A name that is not in the list.
    #[error("there is no {what} named \"{found}\"; choose one of: {known}")]
    UnknownName {
        /// What was named: a schedule, a spacing, a prediction.
        what: &'static str,
        /// The name that was given.
        found: String,
        /// The names that exist, separated by commas.
        known: &'static str,
    },
    /// A number outside its range.
    #[error("{operation}: {what} should be {expected}, found {found}")]
    Parameter {
        /// The operation that was called.
        operation: &'static str,
        /// The argument.
        what: &'static str,
        /// The range it should lie in.
        expected: &'static str,
        /// The value that was given.
        found: f64,
    },
    /// A count outside its range.
    #[error("{operation}: {what} should be in {lowest}..={highest}, found {found}")]
    Count {
        /// The operation that was called.
        operation: &'static str,
        /// The argument.
        what: &'static str,
        /// The lowest legal value.
        lowest: usize,
        /// The highest legal value.
        highest: usize,
        /// The value that was given.
        found: usize,
    },
    /// A beta outside (0, 1); only the last of several betas may be 1 (zero terminal SNR).
    #[error(
        "schedule: beta at step {t} of {steps} should lie in (0, 1) (1 is allowed at the last of several steps), found {found}"
    )]
    Beta {
        /// The 1-based step.
        t: usize,
        /// Number of steps.
        steps: usize,
        /// The value that was given.
        found: f64,
    },
    /// Two consecutive noise levels that f64 cannot tell apart.
    #[error(
        "schedule: the noise level at step {t} does not differ from that at step {} in f64; use fewer steps or other betas",
        t - 1
    )]
    NotDecreasing {
        /// The 1-based step.
        t: usize,
    },
    /// A conversion that has no answer at this level.
    #[error(
        "prediction: {from} cannot be converted to {to} at alpha = {alpha}, sigma = {sigma}, because {reason}; \
         avoid this noise level (another spacing), or use a model that predicts v or x0"
    )]
    Singular {
        /// The given prediction.
        from: &'static str,
        /// The wanted prediction.
        to: &'static str,
        /// Signal scale of the level.
        alpha: f64,
        /// Noise scale of the level.
        sigma: f64,
        /// Why there is no answer.
        reason: &'static str,
    },
    /// A learned variance was asked for where no network says it.
    #[error("reverse variance: a learned variance comes from the network; pass its fraction, or choose a fixed one")]
    LearnedVariance,
    /// The mean of the reverse step was given or asked for without saying which step.
    #[error("prediction: the mean belongs to a step from one level to another; pass the posterior of that step")]
    MeanWithoutPosterior,
    /// Two levels in the wrong order.
    #[error(
        "{operation}: a reverse step should start at the noisier level, but it goes from sigma = {from} to sigma = {to}"
    )]
    LevelOrder {
        /// The operation that was called.
        operation: &'static str,
        /// Noise scale at the start.
        from: f64,
        /// Noise scale at the end.
        to: f64,
    },
    /// A level noisier than the last step of the schedule.
    #[error("schedule: no step has a noise as high as sigma = {sigma}; the last step has sigma = {highest}")]
    LevelOutOfRange {
        /// Noise scale of the level.
        sigma: f64,
        /// Noise scale of the last step.
        highest: f64,
    },
    /// A grid whose steps leave the schedule.
    #[error(
        "step grid: position {position} is step {found}, outside 1..={train_steps}; \
         a steps_offset needs fewer sampling steps than training steps"
    )]
    GridRange {
        /// Position in the grid.
        position: usize,
        /// The step found there.
        found: usize,
        /// Number of training steps.
        train_steps: usize,
    },
    /// A grid that does not decrease.
    #[error("step grid: steps should decrease strictly, but position {position} holds {found} after {previous}")]
    GridOrder {
        /// Position in the grid.
        position: usize,
        /// The step found there.
        found: usize,
        /// The step before it.
        previous: usize,
    },
    /// A grid of levels that does not lead down.
    #[error(
        "grid of levels: the noise should fall from move to move, but move {position} goes from sigma = {from} to \
         sigma = {to}; use fewer steps, another spacing or other ends of the noise levels"
    )]
    LevelGridOrder {
        /// Position of the move, from 0.
        position: usize,
        /// Noise over signal where it should start, or where the move before it starts.
        from: f64,
        /// Noise over signal where it leads.
        to: f64,
    },
    /// A grid that was made for another schedule.
    #[error("the step grid is for {grid} training steps, the schedule has {schedule}; make both from the same T")]
    GridMismatch {
        /// Training steps of the grid.
        grid: usize,
        /// Training steps of the schedule.
        schedule: usize,
    },
}
