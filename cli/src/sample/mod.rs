//! `tweedie sample`: plan, draw, write.

mod noise;
mod output;
pub mod plan;

use std::ops::ControlFlow;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use ndarray::{Array4, Axis, Slice};
use serde_json::json;
use tweedie_denoiser::{
    Condition, ConditionalDenoiser, Conditioned, Denoiser, Noise, Preconditioned, RecordingNoise, SeededNoise,
    ShiftedNoise,
};
use tweedie_guidance::Cfg;
use tweedie_samplers::{Plan, SchedulerSpec};

use crate::args::{Common, SampleArgs};
use crate::console;
use crate::labels::Arrangement;
use crate::model::{self, Loaded};
use crate::picture;

use noise::NoiseFile;
use output::Output;
pub use output::check_directory;

/// Runs the command.
///
/// # Errors
/// If the model, an option or the noise cannot be used, a result is not finite, or a file cannot be written; then there is
/// no output file.
pub fn run(args: &SampleArgs, common: &Common) -> Result<()> {
    let start = Instant::now();
    if let Some(path) = args.save_noise.as_deref().filter(|path| output::same_file(path, &args.out)) {
        return Err(console::usage(format!(
            "--out and --save-noise both name {}; give two files, or the noise would overwrite the images",
            path.display()
        )));
    }
    let model = model::open(args.model.model.as_deref(), args.model.variant.as_deref())?;
    let spec = plan::scheduler(&model, &args.into())?;
    let steps = plan::steps(args.steps.map(Into::into), &spec)?;
    let noise_file = args.noise.as_deref().map(NoiseFile::open).transpose()?;
    let arrangement = plan::arrangement(&model, args, noise_file.as_ref().map(NoiseFile::count))?;
    let labelled = arrangement.labels.iter().any(Option::is_some);
    let guidance = plan::guidance(args.guidance, &model, labelled)?;
    let shape = plan::shape(&model, arrangement.labels.len(), args.size)?;
    let output = Output::plan(&args.out, shape, &arrangement, model.class_names())?;
    let draws = plan::draws(&model, &spec, steps)?;
    if let Some(path) = &args.save_noise {
        output::check_directory(path)?;
        plan::check_record(shape, draws)?;
    }
    let noise: Box<dyn Noise> = match &noise_file {
        Some(file) => Box::new(file.read(shape, draws)?),
        None => Box::new(SeededNoise::new(args.seed)),
    };

    let job = Job { model: &model, spec: &spec, steps, arrangement: &arrangement, guidance, shape };
    let batch = args.batch.map_or_else(|| plan::batch(&model, shape), Into::into);
    let (samples, recorded) = if args.save_noise.is_some() {
        let recording = RecordingNoise::new(noise, shape);
        let samples = job.draw(&recording, batch, common)?;
        (samples, Some(recording.into_recorded()))
    } else {
        (job.draw(&noise, batch, common)?, None)
    };

    let parameters = plan::parameters(&model, args, &arrangement, &spec, steps, guidance);
    if let (Some(path), Some(recorded)) = (&args.save_noise, recorded) {
        noise::save(path, &recorded)?;
        console::report(common, &format!("wrote {}: the noise", path.display()));
    }
    let canvas = output.write(&args.out, &samples, &arrangement.labels, model.range(), &parameters)?;
    let [n, c, h, w] = shape;
    let sampler = spec.solver.name();
    let took = start.elapsed();
    console::report(
        common,
        &format!(
            "wrote {}: {n} images of {c} x {h} x {w} in {} ({sampler}, {steps} steps, guidance {guidance}, seed {})",
            args.out.display(),
            console::seconds(took),
            args.seed
        ),
    );
    if args.json {
        let mut document = parameters;
        document["out"] = json!(args.out.display().to_string());
        document["shape"] = json!(shape);
        document["seconds"] = json!(took.as_secs_f64());
        console::print_json(&document)?;
    } else if let (Some(canvas), false) = (canvas, args.no_preview || common.quiet) {
        picture::preview(&canvas);
    }
    Ok(())
}

/// A run whose options have all been decided.
struct Job<'a> {
    model: &'a Loaded,
    spec: &'a SchedulerSpec,
    steps: usize,
    arrangement: &'a Arrangement,
    guidance: f64,
    shape: [usize; 4],
}

impl Job<'_> {
    /// Draws every image, `batch` at once; images are keyed by their number, so batches do not show in the result.
    fn draw(&self, noise: &dyn Noise, batch: usize, common: &Common) -> Result<Array4<f32>> {
        let [count, c, h, w] = self.shape;
        let mut plan = self.spec.plan(self.steps)?;
        let denoiser: Box<dyn ConditionalDenoiser + '_> = match self.model {
            Loaded::Network(model) => {
                Box::new(Preconditioned::with_bridge(&model.network, plan.bridge(model.mapping())))
            }
            Loaded::Oracle(oracle) => Box::new(&oracle.oracle),
        };
        let mut samples = Array4::zeros((count, c, h, w));
        let batches = count.div_ceil(batch);
        let bar = console::progress(common, (batches * self.steps) as u64, "steps");
        bar.set_message(format!("drawing {count} images"));
        for first in (0..count).step_by(batch) {
            let last = count.min(first.saturating_add(batch));
            let condition = Condition::labels(self.arrangement.labels[first..last].to_vec());
            let part =
                self.draw_batch(&mut plan, &denoiser, condition, &ShiftedNoise::new(noise, first), &|| bar.inc(1));
            let part = part.with_context(|| format!("images {first} to {}", last - 1))?;
            samples.slice_axis_mut(Axis(0), Slice::from(first..last)).assign(&part);
        }
        bar.finish_and_clear();
        Ok(samples)
    }

    fn draw_batch(
        &self,
        plan: &mut Plan,
        model: &dyn ConditionalDenoiser,
        condition: Condition,
        noise: &dyn Noise,
        tick: &dyn Fn(),
    ) -> Result<Array4<f32>> {
        let [_, c, h, w] = self.shape;
        let n = condition.len();
        let guided: Box<dyn Denoiser + '_> = if self.guidance == 1.0 || condition.is_null() {
            Box::new(Conditioned::new(model, condition))
        } else {
            Box::new(Cfg::new(model, condition, Condition::none(n), self.guidance)?)
        };
        let mut observer = |_: tweedie_samplers::StepInfo<'_>| {
            tick();
            ControlFlow::Continue(())
        };
        let Plan { grid, solver, .. } = plan;
        let x = tweedie_samplers::sample(&guided, grid, solver.as_mut(), noise, [n, c, h, w], &mut observer)?;
        let x = x.mapv(|v| v as f32);
        ensure!(x.iter().all(|v| v.is_finite()), "the result is not finite in f32; the model may be damaged");
        Ok(x)
    }
}
