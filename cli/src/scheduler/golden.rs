//! Configs, tables, timesteps and whole trajectories against Python's diffusers (`tests/golden/schedulers.json`).
//!
//! The numbers there were computed in f64, so they agree to rounding and not only to f32's.

use std::ops::ControlFlow;

use ndarray::{Array4, Array5, ArrayView4, Axis, Zip};
use tweedie_denoiser::{Denoiser, DenoiserError, Estimate, ReplayNoise};
use tweedie_samplers::{Plan, sample};
use tweedie_schedule::{NoiseLevel, Schedule, VarianceRange, prediction};

use super::*;

const TOLERANCE: f64 = 1e-9;

fn golden() -> Value {
    serde_json::from_str(include_str!("../../tests/golden/schedulers.json")).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

fn spec(config: &Value) -> Result<SchedulerSpec, SchedulerError> {
    from_config(config.as_object().unwrap(), Path::new("scheduler_config.json"), None)
}

fn assert_close(what: &str, found: impl IntoIterator<Item = f64>, expected: &[f64], scale: f64) {
    let found: Vec<f64> = found.into_iter().collect();
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() <= TOLERANCE * scale, "{what}: {f} instead of {e} at {i}");
    }
}

#[test]
fn schedules() {
    for row in golden()["schedules"].as_array().unwrap() {
        let schedule = spec(&row["config"]).unwrap().schedule().unwrap();
        let name = row["config"].to_string();
        assert_close(&name, schedule.betas().iter().copied(), &numbers(&row["betas"]), 1.0);
        let expected = numbers(&row["alphas_cumprod"]);
        assert_eq!(schedule.steps(), expected.len(), "{name}");
        // The last abar of a schedule is tiny, so only a relative comparison says anything about it; rescaled, it is 0.
        for (t, &e) in (1..).zip(&expected) {
            let found = schedule.abar(t);
            assert!((found - e).abs() <= TOLERANCE * e, "{name}: abar {found} instead of {e} at step {t}");
        }
    }
}

#[test]
fn timesteps() {
    for row in golden()["timesteps"].as_array().unwrap() {
        for class in row["classes"].as_array().unwrap() {
            let mut config = row["config"].clone();
            config["_class_name"] = class.clone();
            let steps = row["num_inference_steps"].as_u64().unwrap() as usize;
            let plan = spec(&config).unwrap().plan(steps).unwrap();
            let found: Vec<f64> = plan.grid.moves().iter().map(|on| on.step - 1.0).collect();
            assert_eq!(found, numbers(&row["timesteps"]), "{config}, {steps} steps");
        }
    }
}

/// The model that the trajectories were made with, at the timestep `t - 1` of a level.
struct Model<'a> {
    schedule: &'a Schedule,
    prediction: Prediction,
}

impl Denoiser for Model<'_> {
    fn denoise(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Array4<f64>, DenoiserError> {
        let t = (self.schedule.t_of_level(level)? - 1.0).round();
        let output = x.mapv(|x| 0.3 * x * (t / 100.0).cos() + 0.1);
        let to_x0 = prediction::convert(self.prediction, Prediction::X0, level, None)?;
        Ok(Zip::from(x).and(&output).map_collect(|&x, &o| to_x0.apply(x, o)))
    }

    fn estimate(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Estimate, DenoiserError> {
        let t = (self.schedule.t_of_level(level)? - 1.0).round();
        let fraction = x.mapv(|x| VarianceRange::fraction(0.5 * (x + t).cos()));
        Ok(Estimate { fraction: Some(fraction), ..Estimate::from(self.denoise(x, level)?) })
    }
}

#[test]
fn trajectories() {
    let golden = golden();
    let shape: Vec<usize> = numbers(&golden["shape"]).into_iter().map(|n| n as usize).collect();
    let &[n, c, h, w] = shape.as_slice() else { panic!("four dimensions") };
    let of = |values: Vec<f64>| Array4::from_shape_vec((n, c, h, w), values).unwrap().mapv(|v| v as f32);
    let initial = of(numbers(&golden["initial"]));
    let each: Vec<_> = golden["noise"].as_array().unwrap().iter().map(|z| of(numbers(z))).collect();
    let mut steps = Array5::zeros((each.len(), n, c, h, w));
    for (mut to, z) in steps.axis_iter_mut(Axis(0)).zip(&each) {
        to.assign(z);
    }
    let noise = ReplayNoise::new(initial, steps).unwrap();
    let rows = golden["trajectories"].as_array().unwrap();
    let learned = golden["learned"].as_array().unwrap();
    assert!(rows.len() > 50 && learned.len() == 2);
    for row in rows.iter().chain(learned) {
        let name = row["name"].as_str().unwrap();
        let mut spec = spec(&row["config"]).unwrap();
        if let SolverSpec::Ddim { eta, use_clipped_model_output } = &mut spec.solver {
            *eta = row["eta"].as_f64().unwrap();
            *use_clipped_model_output = row["use_clipped_model_output"].as_bool().unwrap();
        }
        let plan = spec.plan(row["num_inference_steps"].as_u64().unwrap() as usize).unwrap();
        let schedule = plan.schedule().unwrap().clone();
        let (Plan { grid, mut solver, .. }, prediction) = (plan, spec.prediction);
        let timesteps: Vec<f64> = grid.moves().iter().map(|on| on.step - 1.0).collect();
        assert_eq!(timesteps, numbers(&row["timesteps"]), "{name}");
        let states: Vec<Vec<f64>> = row["states"].as_array().unwrap().iter().map(numbers).collect();
        let model = Model { schedule: &schedule, prediction };
        let mut seen = 0;
        sample(&model, &grid, solver.as_mut(), &noise, [n, c, h, w], &mut |info| {
            let expected = &states[info.position + 1];
            let scale = expected.iter().fold(1.0_f64, |m, v| m.max(v.abs()));
            assert_close(&format!("{name}, step {}", info.position), info.x.iter().copied(), expected, scale);
            seen += 1;
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(seen + 1, states.len(), "{name}");
    }
}
