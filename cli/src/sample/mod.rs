//! `tweedie sample`: plan, draw, write.

pub mod classifier;
pub mod drawing;
pub mod guidance;
mod guidance_args;
pub mod noise;
mod output;
pub mod plan;

use std::time::Instant;

use anyhow::Result;
use serde_json::json;
use tweedie_denoiser::{Noise, RecordingNoise, SeededNoise};

use crate::args::{Common, SampleArgs};
use crate::console;
use crate::model;
use crate::picture;

pub use classifier::GuidingClassifier;
use drawing::{Drawing, Drawn};
use guidance::Guidance;
pub use guidance_args::GuidanceArgs;
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
    let classifier = args.guidance.classifier.as_deref().map(|path| classifier::open(path, &model)).transpose()?;
    let images = noise_file.as_ref().map(NoiseFile::count);
    let arrangement = plan::arrangement(&model, args, images, classifier.as_ref())?;
    let shape = plan::shape(&model, arrangement.labels.len(), args.size)?;
    let guidance = Guidance::plan(&args.guidance, classifier, &model, &spec, &arrangement, shape)?;
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

    let mut drawing = Drawing::new(&model, &spec, steps, &arrangement.labels, &guidance, shape);
    drawing.batch = args.batch.map_or(drawing.batch, Into::into);
    let bar = console::progress(common, drawing.ticks() as u64, "steps");
    bar.set_message(format!("drawing {} images", shape[0]));
    let tick = || bar.inc(1);
    let (Drawn { samples, calls }, recorded) = if args.save_noise.is_some() {
        let recording = RecordingNoise::new(noise, shape);
        let drawn = drawing.draw(&recording, &tick)?;
        (drawn, Some(recording.into_recorded()))
    } else {
        (drawing.draw(&noise, &tick)?, None)
    };
    bar.finish_and_clear();

    let parameters = plan::parameters(&drawing, args.seed, args.noise.as_deref(), calls);
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
            "wrote {}: {n} images of {c} x {h} x {w} in {} ({sampler}, {steps} steps, {}, seed {}; {})",
            args.out.display(),
            console::seconds(took),
            guidance.describe(),
            args.seed,
            calls.describe()
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
