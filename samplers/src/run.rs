//! The loop of every sampler.

use std::ops::ControlFlow;

use ndarray::{Array4, ArrayView4};
use tweedie_denoiser::{Denoiser, Noise, Purpose};
use tweedie_schedule::LevelGrid;

use crate::solver::{Move, draw};
use crate::{SamplerError, Solver};

/// What an observer sees after each move.
#[derive(Clone, Copy, Debug)]
pub struct StepInfo<'a> {
    /// Position of the move, from 0.
    pub position: usize,
    /// Number of moves.
    pub total: usize,
    /// The 1-based step that the move started at, as in [`Move::step`].
    pub step: f64,
    /// The state after the move, `[N, C, H, W]`.
    pub x: ArrayView4<'a, f64>,
    /// The estimate of `x_0` that the move was made with, `[N, C, H, W]`.
    pub x0: ArrayView4<'a, f64>,
}

/// Draws a batch of samples of `shape` `[N, C, H, W]`: from standard normal noise, times the grid's scale of the first state,
/// along the moves of the grid; the result is the last state times the grid's factor of it.
///
/// Sample i of the batch uses the noise of index i, so its result depends neither on N nor on the other samples (beyond what
/// the denoiser makes of a batch). The observer is called after each move and stops the run with `ControlFlow::Break`.
///
/// # Errors
/// If the denoiser, the noise or the schedule fails, a state is not finite, or the observer stopped the run.
pub fn sample(
    denoiser: &dyn Denoiser,
    grid: &LevelGrid,
    solver: &mut dyn Solver,
    noise: &dyn Noise,
    shape: [usize; 4],
    observer: &mut dyn FnMut(StepInfo<'_>) -> ControlFlow<()>,
) -> Result<Array4<f64>, SamplerError> {
    let [n, c, h, w] = shape;
    let mut x = draw(noise, Purpose::Initial, (n, c, h, w))? * grid.start();
    solver.begin();
    let total = grid.len();
    let mut draws = 0;
    for (position, &at) in grid.moves().iter().enumerate() {
        let mut on = Move { denoiser, noise, at, position, total, draws };
        let advance = solver.step(x.view(), &mut on)?;
        on.check_finite("the state", advance.x.view())?;
        draws = on.draws;
        x = advance.x;
        let info = StepInfo { position, total, step: at.step, x: x.view(), x0: advance.x0.view() };
        if observer(info).is_break() {
            return Err(SamplerError::Stopped { position: position + 1, total });
        }
    }
    Ok(x * grid.result())
}
