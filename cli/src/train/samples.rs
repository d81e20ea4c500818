//! The grid of samples after an epoch: DDIM from the averaged weights, the same noise every time.

use std::ops::ControlFlow;

use anyhow::Result;
use tweedie_denoiser::{Condition, Conditioned, Denoiser, Network, Preconditioned, SeededNoise};
use tweedie_guidance::Cfg;
use tweedie_samplers::{Clip, SchedulerSpec, SolverSpec};
use tweedie_schedule::Spacing;

use super::config::RunConfig;
use crate::labels::{self, Arrangement};
use crate::picture::{self, Layout};

/// Columns at most: of a data set with more classes the first are drawn.
const COLUMNS: usize = 16;
/// Images of a network without classes, for each image that a label would get.
const UNLABELLED: usize = 4;

/// A picture of samples of `shape` `[C, H, W]`, as the bytes of a PNG; `None` if the run wants none.
///
/// # Errors
/// If sampling fails, or images of that shape cannot be drawn.
pub fn grid(network: &dyn Network, run: &RunConfig, shape: [usize; 3]) -> Result<Option<Vec<u8>>> {
    if run.samples.per_label == 0 {
        return Ok(None);
    }
    let arrangement = match network.classes() {
        0 => Arrangement::by_label(&[None], UNLABELLED * run.samples.per_label),
        classes => {
            let entries: Vec<_> = (0..classes.min(COLUMNS)).map(Some).collect();
            Arrangement::by_label(&entries, run.samples.per_label)
        }
    };
    let [c, h, w] = shape;
    let shape = [arrangement.labels.len(), c, h, w];
    let headers = arrangement.headers.iter().map(|label| labels::name(*label)).collect();
    // Whether there can be a picture is known before the work.
    let layout = Layout::new(shape, &arrangement.columns, headers)?;

    let noise = &run.train.noise;
    let spec = SchedulerSpec {
        solver: SolverSpec::ddim(),
        train_steps: noise.train_steps,
        betas: noise.betas()?,
        prediction: run.prediction(),
        spacing: Spacing::Trailing,
        clip: if run.clips() { Clip::Range(1.0) } else { Clip::None },
        ..SchedulerSpec::default()
    };
    let mut plan = spec.plan(run.samples.steps.clamp(1, noise.train_steps))?;
    let denoiser = Preconditioned::new(network, spec.prediction, plan.schedule.clone(), run.train.timestep);
    let condition = Condition::labels(arrangement.labels);
    let guidance = run.samples.guidance;
    let denoiser: Box<dyn Denoiser + '_> = if guidance == 1.0 || condition.is_null() || !network.has_null_condition() {
        Box::new(Conditioned::new(denoiser, condition))
    } else {
        let none = Condition::none(condition.len());
        Box::new(Cfg::new(denoiser, condition, none, guidance)?)
    };
    let noise = SeededNoise::new(run.train.seed);
    let x = tweedie_samplers::sample(
        &denoiser,
        &plan.grid,
        &plan.schedule,
        plan.solver.as_mut(),
        &noise,
        shape,
        &mut |_| ControlFlow::Continue(()),
    )?;
    let canvas = layout.draw(x.mapv(|v| v as f32).view(), run.train.range);
    let text = format!("tweedie train: ddim, {} steps, guidance {guidance}, seed {}", plan.grid.len(), run.train.seed);
    Ok(Some(picture::encode(&canvas, &[("parameters", &text)])?))
}
