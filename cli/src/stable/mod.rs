//! Stable Diffusion: `tweedie txt2img`, `img2img`, `inpaint` and `clip-score`.

mod args;
mod component;
mod draw;
mod parts;
mod pictures;
mod score;

use std::time::Instant;

use anyhow::{Result, bail};
use ndarray::Axis;
use serde_json::json;
use tweedie_latent::{code, inpaint};

pub use args::{ClipScoreArgs, Img2ImgArgs, InpaintArgs, Txt2ImgArgs};
pub use component::{Component, component};
use draw::{Begin, Job};
pub use parts::{TextNetwork, text_network};
pub use score::run as run_score;

use crate::args::Common;
use crate::console::usage;

/// Tokens of the texts that networks are timed with: those of Stable Diffusion.
pub const TOKENS: usize = 77;

/// Channels that a network which fills in sees beside the latents: the mask, and latents of what is kept.
fn beside(latents: usize) -> usize {
    2 * latents + 1
}

/// `tweedie txt2img`.
///
/// # Errors
/// If a part of the pipeline or an option cannot be used, a result is not finite, or a file cannot be written.
pub fn txt2img(args: &Txt2ImgArgs, common: &Common) -> Result<()> {
    let start = Instant::now();
    let mut job = Job::plan(&args.draw, common)?;
    if job.network.in_channels == beside(job.latents) {
        bail!(
            "{}: this network fills in parts of pictures (it has {} input channels); use `tweedie inpaint`",
            job.parts.root().display(),
            job.network.in_channels
        );
    }
    job.set_size([args.height, args.width], None)?;
    job.run(Begin::Noise, start)
}

/// `tweedie img2img`.
///
/// # Errors
/// As [`txt2img`], or if the picture cannot be read.
pub fn img2img(args: &Img2ImgArgs, common: &Common) -> Result<()> {
    let start = Instant::now();
    let mut job = Job::plan(&args.draw, common)?;
    if job.network.in_channels == beside(job.latents) {
        bail!("{}: this network fills in parts of pictures; use `tweedie inpaint`", job.parts.root().display());
    }
    let image = job.start_from(&args.picture, args.strength)?;
    if args.draw.dry_run {
        return job.run(Begin::Noise, start);
    }
    let latents = job.encode(pictures::resized(&image, job.size))?;
    job.run(Begin::Picture(latents), start)
}

/// `tweedie inpaint`.
///
/// # Errors
/// As [`img2img`], or if the mask cannot be read or covers nothing.
pub fn inpaint(args: &InpaintArgs, common: &Common) -> Result<()> {
    let start = Instant::now();
    let mut job = Job::plan(&args.draw, common)?;
    let image = job.start_from(&args.picture, args.strength)?;
    let mask = pictures::read(&args.mask)?;
    job.note("mask", json!(args.mask.display().to_string()));
    let mask = pictures::mask(&mask, job.size);
    if mask.iter().all(|m| *m == 0.0) {
        return Err(usage(format!(
            "--mask {}: it is black everywhere, so nothing would be drawn; make it white where the picture is to change",
            args.mask.display()
        )));
    }
    if args.draw.dry_run {
        return job.run(Begin::Noise, start);
    }
    let picture = pictures::resized(&image, job.size);
    let latents = job.encode(picture.clone())?;
    let small = inpaint::mask_of_latents(mask.view(), job.factor);
    let trained = job.network.in_channels == beside(job.latents);
    let kept = if trained {
        let picture = code::from_brightness(picture);
        let covered = inpaint::covered(picture.index_axis(Axis(0), 0), mask.view())?;
        Some(job.encode(code::to_brightness(covered.insert_axis(Axis(0))))?)
    } else {
        None
    };
    job.run(Begin::Part { latents, mask: small, kept }, start)
}
