//! The options of the commands that draw pictures from texts.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args;
use tweedie_schedule::{SigmaRule, Spacing};

use crate::args::{closed_unit, finite, names, safetensors_path, sampler_names};

/// What every command that draws takes.
#[derive(Args, Clone, Debug)]
pub struct DrawArgs {
    /// The directory of a Stable Diffusion pipeline, as diffusers writes it (model_index.json)
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Which weights, where a part of the pipeline has several: fp16, non_ema, ... [default: those without a variant]
    #[arg(long, value_name = "NAME")]
    pub variant: Option<String>,
    /// What the picture is to show
    #[arg(long, value_name = "TEXT")]
    pub prompt: String,
    /// What it is not to show
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub negative: String,
    /// Guidance scale: 1 and below are none; higher values follow the prompt more closely and look harsher
    #[arg(long, value_name = "G", default_value_t = 7.5, value_parser = finite)]
    pub guidance: f64,
    /// Give the guided output the standard deviation of the conditional one, by a share from 0 to 1
    #[arg(long, value_name = "PHI", value_parser = closed_unit)]
    pub guidance_rescale: Option<f64>,
    /// Pictures, one after the other; they differ in their noise
    #[arg(long, value_name = "N", default_value = "1")]
    pub count: NonZeroUsize,
    /// Seed of all randomness
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub seed: u64,
    /// Sampler [default: that of the pipeline's scheduler config]
    #[arg(long, value_name = "NAME", value_parser = sampler_names())]
    pub sampler: Option<String>,
    /// Sampling steps [default: 50, 4 for latent consistency models; dpm++2m and unipc need 20 to 25]
    #[arg(long, value_name = "K")]
    pub steps: Option<NonZeroUsize>,
    /// Which steps of the process are visited [default: that of the scheduler config]
    #[arg(long, value_name = "NAME", value_parser = names(Spacing::NAMES))]
    pub spacing: Option<String>,
    /// Noise levels between the first and the last, such as karras, for euler, dpm++2m and their like
    #[arg(long, value_name = "RULE", value_parser = names(SigmaRule::NAMES))]
    pub sigmas: Option<String>,
    /// Noise added by ddim in each step: 0 is deterministic [default: 0]
    #[arg(long, value_name = "E", value_parser = closed_unit)]
    pub eta: Option<f64>,
    /// Follow diffusers where it deviates from the published methods (docs/samplers.md lists where)
    #[arg(long)]
    pub compat: bool,
    /// Layers of the text encoder that are left out at its end: 1 for models that were trained so
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub clip_skip: usize,
    /// A LoRA file, and after a colon its weight; may be given several times
    #[arg(long, value_name = "FILE[:WEIGHT]")]
    pub lora: Vec<String>,
    /// Round the network's large weights to bytes as they are read: half the memory of f16, a little less exact
    #[arg(long)]
    pub int8: bool,
    /// Decode in tiles of the size that the autoencoder was made for, which takes less memory [default: where the picture is
    /// larger than that]
    #[arg(long)]
    pub tiling: bool,
    /// Noise to use, in latents: `initial [N,C,H/8,W/8]` and, for samplers that add noise, `steps [K,N,C,H/8,W/8]`
    #[arg(long, value_name = "FILE.safetensors", help_heading = "Files", value_parser = safetensors_path)]
    pub noise: Option<PathBuf>,
    /// Where the pictures go: a .png (several side by side), or f32 `[N,H,W,3]` from 0 to 1 as .npy
    #[arg(long, value_name = "FILE", help_heading = "Files", default_value = "picture.png", value_parser = picture_path)]
    pub out: PathBuf,
    /// Write the estimate of the picture to OUT.preview.png every K steps
    #[arg(long, value_name = "K", help_heading = "Files")]
    pub preview_every: Option<NonZeroUsize>,
    /// Say how much memory and about how much time it would take, and draw nothing
    #[arg(long)]
    pub dry_run: bool,
    /// No picture in the terminal
    #[arg(long)]
    pub no_preview: bool,
    /// Print one JSON document that describes the run
    #[arg(long)]
    pub json: bool,
}

/// Draw a picture of what a text says, with Stable Diffusion.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  tweedie txt2img --model stable-diffusion-v1-5 --prompt 'a lighthouse in a storm, oil on canvas' --steps 25 --sampler dpm++2m
  tweedie txt2img --model sd --prompt 'a red fox' --negative 'blurry' --width 640 --height 384 --count 4
  tweedie txt2img --model sd --prompt 'a red fox' --dry-run          what it would take")]
pub struct Txt2ImgArgs {
    /// What every command takes.
    #[command(flatten)]
    pub draw: DrawArgs,
    /// Width in pixels [default: that of the training pictures]
    #[arg(long, value_name = "PIXELS")]
    pub width: Option<usize>,
    /// Height in pixels [default: that of the training pictures]
    #[arg(long, value_name = "PIXELS")]
    pub height: Option<usize>,
}

/// A picture that is read.
#[derive(Args, Clone, Debug)]
pub struct PictureArgs {
    /// The picture to start from, PNG or JPEG
    #[arg(long, value_name = "FILE", help_heading = "Files")]
    pub image: PathBuf,
    /// Width in pixels that it is resized to, with its mask [default: its own, down to a multiple of 8]
    #[arg(long, value_name = "PIXELS")]
    pub width: Option<usize>,
    /// Height in pixels that it is resized to, with its mask [default: its own, down to a multiple of 8]
    #[arg(long, value_name = "PIXELS")]
    pub height: Option<usize>,
}

/// Draw a picture over another, as a text says.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  tweedie img2img --model sd --image sketch.png --prompt 'a castle by a lake' --strength 0.7")]
pub struct Img2ImgArgs {
    /// What every command takes.
    #[command(flatten)]
    pub draw: DrawArgs,
    /// The picture to start from.
    #[command(flatten)]
    pub picture: PictureArgs,
    /// How much of it is drawn anew, above 0 to 1: the share of the steps that are made
    #[arg(long, value_name = "S", default_value_t = 0.8, value_parser = strength)]
    pub strength: f64,
}

/// Draw a part of a picture anew, as a text says.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  tweedie inpaint --model sd-inpainting --image room.png --mask sofa.png --prompt 'a leather armchair'

Networks with nine input channels were trained for this and see the mask; with any other what is kept is put back in every step.")]
pub struct InpaintArgs {
    /// What every command takes.
    #[command(flatten)]
    pub draw: DrawArgs,
    /// The picture.
    #[command(flatten)]
    pub picture: PictureArgs,
    /// Where it is drawn anew: white there, black elsewhere
    #[arg(long, value_name = "FILE", help_heading = "Files")]
    pub mask: PathBuf,
    /// How much of it is drawn anew, above 0 to 1: the share of the steps that are made
    #[arg(long, value_name = "S", default_value_t = 1.0, value_parser = strength)]
    pub strength: f64,
}

/// Say how well pictures fit texts, by CLIP.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  tweedie clip-score --model clip-vit-large-patch14 --image fox.png --prompt 'a red fox' --prompt 'a grey cat'

Prints the cosine of every picture with every text, times 100 as the CLIP score of Hessel et al. (2021) has it, without its cut at 0.")]
pub struct ClipScoreArgs {
    /// The directory of a CLIPModel: config.json, weights, vocab.json and merges.txt or tokenizer.json
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Which weights, where the directory has several [default: those without a variant]
    #[arg(long, value_name = "NAME")]
    pub variant: Option<String>,
    /// A picture, PNG or JPEG; may be given several times
    #[arg(long, value_name = "FILE", required = true)]
    pub image: Vec<PathBuf>,
    /// A text; may be given several times
    #[arg(long, value_name = "TEXT", required = true)]
    pub prompt: Vec<String>,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

fn strength(text: &str) -> Result<f64, String> {
    let inside = |s: &f64| *s > 0.0 && *s <= 1.0;
    text.parse().ok().filter(inside).ok_or_else(|| "expected a number above 0, at most 1".to_owned())
}

fn picture_path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    let suffix = path.extension().map(|s| s.to_string_lossy().to_ascii_lowercase());
    match suffix.as_deref() {
        Some("png" | "npy") => Ok(path),
        _ => Err("the name should end in .png or .npy".to_owned()),
    }
}
