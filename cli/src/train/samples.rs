//! The grid of samples after an epoch: DDIM from the averaged weights, the same noise every time.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use tweedie_denoiser::{Condition, Conditioned, Denoiser, Network, Preconditioned, SeededNoise};
use tweedie_guidance::Cfg;
use tweedie_samplers::{Clip, SamplerError, SchedulerSpec, SolverSpec, StepInfo};
use tweedie_schedule::Spacing;

use super::config::RunConfig;
use crate::labels::{self, Arrangement};
use crate::picture::{self, Layout};

/// Columns at most: of a data set with more classes the first are drawn.
const COLUMNS: usize = 16;
/// Images of a network without classes, for each image that a label would get.
const UNLABELLED: usize = 4;

/// A picture of samples of `shape` `[C, H, W]`, as the bytes of a PNG; `None` if the run wants none, or `stop` was raised.
///
/// # Errors
/// If sampling fails, or images of that shape cannot be drawn.
pub fn grid(network: &dyn Network, run: &RunConfig, shape: [usize; 3], stop: &AtomicBool) -> Result<Option<Vec<u8>>> {
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
    let headers = arrangement.headers.iter().map(|label| labels::header(*label, &run.class_names)).collect();
    // Whether there can be a picture is known before the work.
    let layout = Layout::new(shape, &arrangement.columns, headers)?;

    let noise = &run.train.noise;
    let spec = SchedulerSpec {
        solver: SolverSpec::ddim(),
        train_steps: noise.train_steps,
        betas: noise.betas()?,
        prediction: run.prediction(),
        spacing: Spacing::Trailing,
        clip: Clip::None,
        ..SchedulerSpec::default()
    };
    let mut plan = spec.plan(run.samples.steps.clamp(1, noise.train_steps))?;
    let denoiser = Preconditioned::with_bridge(network, plan.bridge(run.train.timestep));
    let condition = Condition::labels(arrangement.labels);
    let guidance = run.guidance(network).unwrap_or(1.0);
    let denoiser: Box<dyn Denoiser + '_> = if guidance == 1.0 || condition.is_null() {
        Box::new(Conditioned::new(denoiser, condition))
    } else {
        let none = Condition::none(condition.len());
        Box::new(Cfg::new(denoiser, condition, none, guidance)?)
    };
    let noise = SeededNoise::new(run.train.seed);
    let mut observer = |_: StepInfo<'_>| match stop.load(Ordering::Relaxed) {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    };
    let x = tweedie_samplers::sample(&denoiser, &plan.grid, plan.solver.as_mut(), &noise, shape, &mut observer);
    let x = match x {
        Err(SamplerError::Stopped { .. }) => return Ok(None),
        x => x?,
    };
    let canvas = layout.draw(x.mapv(|v| v as f32).view(), run.train.range);
    let text = format!("tweedie train: ddim, {} steps, guidance {guidance}, seed {}", plan.grid.len(), run.train.seed);
    Ok(Some(picture::encode(&canvas, &[("parameters", &text)])?))
}

#[cfg(test)]
mod tests {
    use tweedie_data::{Dataset, Split};

    use super::*;

    #[test]
    fn a_grid_is_drawn_unless_the_run_is_to_stop() {
        let data = Dataset::open("mnist", Split::Test).unwrap();
        let mut run = RunConfig::preset("tiny").unwrap();
        (run.samples.per_label, run.samples.steps) = (1, 2);
        let model = run.build(&data).unwrap();
        let drawn = |run: &RunConfig, stop| grid(&model, run, data.shape(), &AtomicBool::new(stop)).unwrap();
        assert!(drawn(&run, false).unwrap().starts_with(b"\x89PNG"));
        assert_eq!(drawn(&run, true), None);
        run.samples.per_label = 0;
        assert_eq!(drawn(&run, false), None);
    }

    #[test]
    fn a_null_condition_that_was_never_trained_guides_nothing() {
        let data = Dataset::open("mnist", Split::Test).unwrap();
        for (preset, untrained) in [("tiny", None), ("book", Some(1.0))] {
            let guidance = |dropout| {
                let mut run = RunConfig::preset(preset).unwrap();
                run.train.label_dropout = dropout;
                let model = run.build(&data).unwrap();
                assert_eq!(model.classes(), 10, "{preset}");
                let scale = run.guidance(&model);
                assert_eq!(run.model_config(&model).get("_tweedie_guidance").and_then(|v| v.as_f64()), scale);
                scale
            };
            assert_eq!((guidance(0.1), guidance(0.0)), (Some(1.5), untrained), "{preset}");
        }
    }
}
