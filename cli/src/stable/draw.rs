//! Drawing: from options that have been decided to pictures.

use std::cell::Cell;
use std::fmt::Write;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use image::RgbImage;
use ndarray::{Array2, Array4, Axis, Slice};
use serde_json::{Map, Value, json};
use tweedie_denoiser::{
    Condition, Conditioned, Denoiser, Network, Noise, Preconditioned, SeededNoise, ShiftedNoise, Text,
};
use tweedie_guidance::{Cfg, Guide, Rescaled};
use tweedie_latent::{Codec, FromPicture, Inpainting, Kept, start};
use tweedie_samplers::{Plan, SamplerError, SchedulerSpec, SolverSpec, StepInfo};
use tweedie_schedule::TimestepMapping;
use tweedie_unet::autoencoder;
use tweedie_unet::cross;

use super::args::{DrawArgs, PictureArgs};
use super::parts::{self, Parts};
use super::pictures;
use crate::args::Common;
use crate::console::{self, usage};
use crate::inspect;
use crate::picture;
use crate::sample::noise::NoiseFile;
use crate::sample::{check_directory, plan};

/// Sampling steps, unless told otherwise.
const STEPS: usize = 50;
/// The longest side of a picture.
const LONGEST: usize = 1 << 13;
/// The most pictures of one run.
const MOST: usize = 1 << 10;
/// Bytes that decoding may take in one piece; larger pictures are decoded in tiles.
const IN_ONE_PIECE: u64 = 2 << 30;

/// A run.
pub struct Job<'a> {
    args: &'a DrawArgs,
    common: &'a Common,
    /// The pipeline.
    pub parts: Parts,
    /// The network.
    pub network: cross::Config,
    network_bytes: u64,
    autoencoder: autoencoder::Config,
    autoencoder_bytes: u64,
    /// Channels of the latents.
    pub latents: usize,
    /// Pixels that a latent stands for, along each side.
    pub factor: usize,
    /// Height and width of the pictures.
    pub size: [usize; 2],
    spec: SchedulerSpec,
    steps: usize,
    strength: f64,
    notes: Map<String, Value>,
}

/// What drawing begins with.
pub enum Begin {
    /// Nothing.
    Noise,
    /// Scaled latents `[1, C, h, w]` of a picture.
    Picture(Array4<f32>),
    /// A picture of which a part is drawn.
    Part {
        /// Scaled latents `[1, C, h, w]` of the picture.
        latents: Array4<f32>,
        /// 1 where it is drawn, `[h, w]`.
        mask: Array2<f32>,
        /// Those of what is kept, for a network that was trained to see them.
        kept: Option<Array4<f32>>,
    },
}

impl<'a> Job<'a> {
    /// What the options mean for the pipeline. No weights are read.
    ///
    /// # Errors
    /// If a part of the pipeline or an option cannot be used.
    pub fn plan(args: &'a DrawArgs, common: &'a Common) -> Result<Self> {
        check_directory(&args.out)?;
        ensure!(
            args.count.get() <= MOST,
            usage(format!("--count {}: at most {MOST} pictures are drawn in one run", args.count))
        );
        let parts = Parts::open(args)?;
        let (network, component) = parts.network_config()?;
        let (autoencoder, of_autoencoder) = parts.autoencoder_config()?;
        let spec = parts.scheduler(args)?;
        let steps = plan::steps_or(STEPS, args.steps.map(Into::into), &spec)?;
        Ok(Self {
            network_bytes: parts::bytes(&component.weights),
            autoencoder_bytes: parts::bytes(&of_autoencoder.weights),
            latents: autoencoder.latent_channels,
            factor: autoencoder.spatial_factor(),
            size: [0, 0],
            strength: 1.0,
            notes: Map::new(),
            args,
            common,
            parts,
            network,
            autoencoder,
            spec,
            steps,
        })
    }

    /// Adds something to the description of the run.
    pub fn note(&mut self, key: &str, value: Value) {
        self.notes.insert(key.to_owned(), value);
    }

    /// The size: what is asked for, or else that of a picture (width and height) as far as it is whole latents, or else that of the
    /// pictures that the network was trained on.
    ///
    /// # Errors
    /// If there is none, or it is not whole latents.
    pub fn set_size(&mut self, asked: [Option<usize>; 2], image: Option<(u32, u32)>) -> Result<()> {
        let multiple = self.factor * self.network.size_multiple();
        let usual = match (image, self.network.image_shape()) {
            (Some((w, h)), _) => [h, w].map(|side| Some(side as usize / multiple * multiple)),
            (None, Some([_, h, w])) => [Some(h * self.factor), Some(w * self.factor)],
            (None, None) => [None, None],
        };
        for (side, (asked, usual, name)) in
            self.size.iter_mut().zip([(asked[0], usual[0], "--height"), (asked[1], usual[1], "--width")])
        {
            let Some(pixels) = asked.or(usual) else {
                return Err(usage(format!(
                    "the pipeline does not say how large its pictures are (sample_size of unet/config.json); give {name}"
                )));
            };
            if pixels == 0 || pixels % multiple != 0 || pixels > LONGEST {
                let asked = if asked.is_some() { format!("{name} {pixels}: ") } else { String::new() };
                return Err(usage(format!(
                    "{asked}the sides of a picture should be multiples of {multiple} from {multiple} to {LONGEST} pixels; \
                     {pixels} are asked for: give {name} {}",
                    (pixels / multiple).clamp(1, LONGEST / multiple) * multiple
                )));
            }
            *side = pixels;
        }
        Ok(())
    }

    /// Reads the picture that is started from, and takes its size and the share of the steps that are made.
    ///
    /// # Errors
    /// If it cannot be read, the size is not whole latents, or no step is left.
    pub fn start_from(&mut self, picture: &PictureArgs, strength: f64) -> Result<RgbImage> {
        let image = pictures::read(&picture.image)?;
        self.set_size([picture.height, picture.width], Some(image.dimensions()))?;
        self.set_strength(strength)?;
        self.note("image", json!(picture.image.display().to_string()));
        Ok(image)
    }

    /// The share of the steps that are made.
    ///
    /// # Errors
    /// If no step is left.
    fn set_strength(&mut self, strength: f64) -> Result<()> {
        let moves = (self.steps as f64 * strength).floor();
        if moves < 1.0 {
            return Err(usage(format!(
                "--strength {strength} of {} steps leaves none; give at least {}, or more --steps",
                self.steps,
                1.0 / self.steps as f64
            )));
        }
        self.strength = strength;
        self.note("strength", json!(strength));
        Ok(())
    }

    /// Height and width of the latents.
    fn latent_size(&self) -> [usize; 2] {
        self.size.map(|side| side / self.factor)
    }

    /// Scaled latents `[1, C, h, w]` of a picture `[1, 3, H, W]` with brightness in [0, 1]: the mean of what the encoder says.
    ///
    /// # Errors
    /// If the autoencoder cannot be opened, or what it says is not finite.
    pub fn encode(&self, picture: Array4<f32>) -> Result<Array4<f32>> {
        let latents = self.codec()?.encode(picture, None)?;
        self.check_finite("the encoded picture", &latents, "vae", autoencoder::CLASS)?;
        Ok(latents)
    }

    /// The autoencoder, which works in tiles where they are wanted.
    fn codec(&self) -> Result<Codec> {
        let codec = self.parts.codec()?;
        Ok(if self.in_tiles() { codec.in_tiles(Some(self.tile()))? } else { codec })
    }

    fn in_tiles(&self) -> bool {
        self.args.tiling || self.decoding_bytes(self.size) > IN_ONE_PIECE
    }

    /// The side of a tile, in latents.
    fn tile(&self) -> usize {
        let side = self.autoencoder.sample_size.map_or(512, |[h, w]| h.max(w)) / self.factor;
        (side / 4 * 4).max(4)
    }

    /// Bytes that decoding a picture takes in one piece, about: three activations of twice the channels of the finest level.
    fn decoding_bytes(&self, [h, w]: [usize; 2]) -> u64 {
        let widest = self.autoencoder.channels.get(1).or(self.autoencoder.channels.first()).copied().unwrap_or(1);
        4 * 3 * (h * w * widest) as u64
    }

    /// The error of numbers that are none: damaged weights if there are some, else that it happened.
    fn check_finite(&self, what: &str, x: &Array4<f32>, part: &'static str, class: &str) -> Result<()> {
        if x.iter().all(|v| v.is_finite()) {
            return Ok(());
        }
        if let Some(error) = self.parts.damage(part, &[class]) {
            return Err(error);
        }
        anyhow::bail!("{what} is not finite, and the weights of {part} are; try another seed, or a lower guidance")
    }

    /// Draws and writes, or only says what it would take.
    ///
    /// # Errors
    /// If a part of the pipeline cannot be used, a result is not finite, or the file cannot be written.
    pub fn run(&self, begin: Begin, start: Instant) -> Result<()> {
        if self.args.dry_run {
            return self.estimate();
        }
        let (args, common) = (self.args, self.common);
        // Diffusers leaves nothing out for the negative prompt.
        let of_negative = if args.compat { 0 } else { args.clip_skip };
        let prompts = self.parts.encode(&[(&args.prompt, args.clip_skip), (&args.negative, of_negative)])?;
        for (text, name) in prompts.cut_off.iter().zip(["--prompt", "--negative"]) {
            if let Some(rest) = text {
                console::report(common, &format!("{name}: its end is not read, because it is too long: {rest}"));
            }
        }
        let (samples, per_step) = self.sample(&begin, &prompts.texts)?;
        let pictures = self.decode(samples)?;
        let parameters = self.parameters();
        let canvas = pictures::write(&args.out, pictures.view(), &parameters)?;
        let [h, w] = self.size;
        console::report(
            common,
            &format!(
                "wrote {}: {} of {w} x {h} in {} ({} a step; {}, {} steps, guidance {}, seed {})",
                args.out.display(),
                if args.count.get() == 1 { "a picture".to_owned() } else { format!("{} pictures", args.count) },
                console::seconds(start.elapsed()),
                console::seconds(per_step),
                self.spec.solver.name(),
                self.steps,
                args.guidance,
                args.seed
            ),
        );
        if args.json {
            let mut document = parameters;
            document["out"] = json!(args.out.display().to_string());
            document["seconds"] = json!(start.elapsed().as_secs_f64());
            document["seconds_per_step"] = json!(per_step.as_secs_f64());
            console::print_json(&document)?;
        } else if let (Some(canvas), false) = (canvas, args.no_preview || common.quiet) {
            picture::preview(&canvas);
        }
        Ok(())
    }

    /// The samples `[N, C, h, w]`, and the time of a step.
    fn sample(&self, begin: &Begin, texts: &[Text]) -> Result<(Array4<f32>, Duration)> {
        let (args, count) = (self.args, self.args.count.get());
        let mut plan = self.spec.plan(self.steps)?;
        if self.strength < 1.0 {
            plan.grid = start::shortened(&plan.grid, self.strength)?;
            if let SolverSpec::Pndm { .. } = self.spec.solver {
                // Its own levels are those of the whole grid's first moves.
                plan.solver = self.spec.solver.build(self.spec.clip, self.spec.compat)?;
            }
        }
        let [h, w] = self.latent_size();
        let shape = [count, self.latents, h, w];
        let noise: Box<dyn Noise> = match &args.noise {
            Some(path) => {
                let draws = plan::draws_of(&mut plan, self.network.out_channels == 2 * self.latents)?;
                Box::new(NoiseFile::open(path)?.read(shape, draws)?)
            }
            None => Box::new(SeededNoise::new(args.seed)),
        };
        let mut network = self.parts.network()?;
        let mut guidance = args.guidance;
        if network.takes_guidance() {
            // It has learned what guidance does.
            network.set_guidance(Some(guidance));
            guidance = 1.0;
        }
        let noise: Box<dyn Noise + '_> = match begin {
            Begin::Picture(latents) => Box::new(FromPicture::new(noise, latents.clone(), &plan.grid)),
            Begin::Part { latents, .. } if self.strength < 1.0 => {
                Box::new(FromPicture::new(noise, latents.clone(), &plan.grid))
            }
            _ => noise,
        };
        let seen: Box<dyn Network + '_> = match begin {
            Begin::Part { mask, kept: Some(kept), .. } => {
                Box::new(Inpainting::new(&network, mask.view(), kept.index_axis(Axis(0), 0))?)
            }
            _ => Box::new(&network),
        };
        let model = Preconditioned::with_bridge(seen, plan.bridge(TimestepMapping::ZeroBased));
        let (prompt, negative) = (texts[0].clone(), texts[1].clone());
        let [prompt, negative] = [prompt, negative].map(|text| Condition::texts(vec![text]));

        let total = plan.grid.len() * count;
        let bar = console::progress(self.common, total as u64, "steps");
        bar.set_message("drawing");
        let (begun, done) = (Instant::now(), Cell::new(0usize));
        let mut samples = Array4::zeros((count, self.latents, h, w));
        for index in 0..count {
            let mut guided: Box<dyn Guide + '_> = if guidance > 1.0 {
                Box::new(Cfg::new(&model, prompt.clone(), negative.clone(), guidance)?)
            } else {
                Box::new(Conditioned::new(&model, prompt.clone()))
            };
            if let (Some(phi), true) = (args.guidance_rescale, guidance > 1.0) {
                guided = Box::new(Rescaled::new(guided, plan.bridge(TimestepMapping::ZeroBased), phi)?);
            }
            let denoiser: Box<dyn Denoiser + '_> = match begin {
                Begin::Part { latents, mask, kept: None } => Box::new(Kept::new(guided, mask.view(), latents.view())?),
                _ => Box::new(guided),
            };
            let noise = ShiftedNoise::new(&noise, index);
            let mut failed = None;
            let mut observer = |info: StepInfo<'_>| {
                done.set(done.get() + 1);
                let each = begun.elapsed() / done.get() as u32;
                bar.set_message(format!("drawing, {} a step", console::seconds(each)));
                bar.inc(1);
                match self.preview(&info) {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(error) => {
                        failed = Some(error);
                        ControlFlow::Break(())
                    }
                }
            };
            let Plan { grid, solver, .. } = &mut plan;
            let shape = [1, self.latents, h, w];
            let drawn =
                tweedie_samplers::sample(denoiser.as_ref(), grid, solver.as_mut(), &noise, shape, &mut observer);
            if let Some(error) = failed {
                return Err(error.context("--preview-every"));
            }
            if let Err(SamplerError::NotFinite { .. }) = &drawn
                && let Some(error) = self.parts.damage("unet", &[cross::CLASS])
            {
                return Err(error);
            }
            let x = drawn.context("drawing")?.mapv(|v| v as f32);
            self.check_finite("the result", &x, "unet", cross::CLASS)?;
            samples.slice_axis_mut(Axis(0), Slice::from(index..index + 1)).assign(&x);
        }
        bar.finish_and_clear();
        Ok((samples, begun.elapsed() / total.max(1) as u32))
    }

    /// Writes the estimate of the picture, if it is time for one.
    fn preview(&self, info: &StepInfo<'_>) -> Result<()> {
        let Some(every) = self.args.preview_every else { return Ok(()) };
        if !(info.position + 1).is_multiple_of(every.get()) || info.position + 1 == info.total {
            return Ok(());
        }
        let picture = self.decode(info.x0.mapv(|v| v as f32))?;
        let mut parameters = self.parameters();
        parameters["preview_of_step"] = json!(info.position + 1);
        pictures::write(&pictures::preview_path(&self.args.out), picture.view(), &parameters)?;
        Ok(())
    }

    /// Pictures `[N, 3, H, W]` in [0, 1] of samples.
    fn decode(&self, samples: Array4<f32>) -> Result<Array4<f32>> {
        let codec = self.codec()?;
        let [h, w] = self.size;
        let mut pictures = Array4::zeros((samples.dim().0, self.autoencoder.out_channels, h, w));
        for (index, mut picture) in pictures.axis_chunks_iter_mut(Axis(0), 1).enumerate() {
            let part = samples.slice_axis(Axis(0), Slice::from(index..index + 1));
            picture.assign(&codec.decode(part.to_owned())?);
        }
        self.check_finite("the decoded picture", &pictures, "vae", autoencoder::CLASS)?;
        Ok(pictures)
    }

    /// Everything that decides what is drawn.
    fn parameters(&self) -> Value {
        let args = self.args;
        let [h, w] = self.size;
        let mut document = json!({
            "model": self.parts.root().display().to_string(),
            "prompt": args.prompt,
            "negative": args.negative,
            "sampler": self.spec.solver.name(),
            "steps": self.steps,
            "spacing": self.spec.spacing.name(),
            "sigmas": self.spec.sigmas.name(),
            "guidance": args.guidance,
            "guidance_rescale": args.guidance_rescale,
            "seed": args.seed,
            "count": args.count,
            "width": w,
            "height": h,
            "clip_skip": args.clip_skip,
            "lora": self.parts.adapters(),
            "int8": args.int8,
            "noise": args.noise.as_ref().map(|path| path.display().to_string()),
            "version": env!("CARGO_PKG_VERSION"),
        });
        if let Value::Object(all) = &mut document {
            all.extend(self.notes.clone());
        }
        document
    }

    /// Says what the run would take.
    fn estimate(&self) -> Result<()> {
        let [h, w] = self.latent_size();
        let images = if self.args.guidance > 1.0 && self.network.guidance_dim.is_none() { 2 } else { 1 };
        let summary = self.network.summary(h, w);
        let flops = images * summary.flops();
        let moves = (self.steps as f64 * self.strength).floor();
        let per_step = flops as f64 / inspect::text_rate()?;
        let decoding = self.autoencoder.decoder_summary(h, w).flops() as f64 / inspect::rate()?;
        let count = self.args.count.get() as f64;
        let seconds = count * (moves * per_step + decoding);
        let weights = if self.args.int8 { self.network_bytes * 9 / 16 } else { self.network_bytes };
        let largest = summary.layers.iter().map(|layer| layer.output.iter().product::<usize>()).max().unwrap_or(0);
        // The outputs that wait for the way up, and what a layer reads and writes.
        let drawing = weights + images * 4 * 10 * largest as u64;
        let one_piece = self.decoding_bytes(self.size);
        let tile = [self.tile() * self.factor; 2];
        let piece = if self.in_tiles() { self.decoding_bytes(tile).min(one_piece) } else { one_piece };
        let peak = drawing.max(self.autoencoder_bytes + piece);
        if self.args.json {
            return console::print_json(&json!({
                "peak_memory_bytes": peak,
                "seconds": seconds,
                "seconds_per_step": per_step,
                "steps": moves,
                "gflop_per_step": flops as f64 / 1e9,
                "width": self.size[1],
                "height": self.size[0],
            }));
        }
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            let _ = writeln!(text, "{name:<10} {value}");
        };
        line("picture", format!("{} of {} x {} pixels", self.args.count, self.size[1], self.size[0]));
        line("memory", format!("about {} at most, of which {} weights", console::bytes(peak), console::bytes(weights)));
        line("work", format!("{:.0} GFLOP a step, {moves} steps of {}", flops as f64 / 1e9, self.spec.solver.name()));
        line(
            "time",
            format!(
                "about {} here: {} a step",
                console::seconds(Duration::from_secs_f64(seconds)),
                console::seconds(Duration::from_secs_f64(per_step))
            ),
        );
        console::print(&text)
    }
}
