//! `tweedie clip-score`.

use anyhow::{Context, Result};
use ndarray::{Array4, Axis};
use serde_json::json;
use tweedie_checkpoint::{check_keys, open_component, read_config};
use tweedie_latent::clip::{self, ImageConfig, Preprocessor, TextConfig};
use tweedie_latent::{FileWeights, ImageEncoder, TextEncoder};

use super::args::ClipScoreArgs;
use super::{parts, pictures};
use crate::args::Common;
use crate::console;

/// The factor of the cosine.
const PERCENT: f32 = 100.0;

/// Runs the command.
///
/// # Errors
/// If the model or a picture cannot be used.
pub fn run(args: &ClipScoreArgs, common: &Common) -> Result<()> {
    let component = open_component(&args.model, &["CLIPModel"], args.variant.as_deref())?;
    let at = || component.config_path.display().to_string();
    let text_config = TextConfig::from_json(&component.config).with_context(at)?;
    let image_config = ImageConfig::from_json(&component.config).with_context(at)?;
    let tensors = [text_config.tensors(), image_config.tensors()].concat();
    check_keys(tensors.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())), &component.weights, |key| {
        key == "logit_scale" || clip::is_superfluous(key)
    })?;
    let preprocessor = args.model.join("preprocessor_config.json");
    let preprocessor = match preprocessor.is_file() {
        true => {
            Preprocessor::from_json(&read_config(&preprocessor)?).with_context(|| preprocessor.display().to_string())?
        }
        false => Preprocessor::default(),
    };
    let tokenizer = parts::tokenizer(&args.model)?;
    let source = FileWeights::new(component.weights);
    let mut ids = Vec::new();
    for prompt in &args.prompt {
        let tokens = tokenizer.encode(prompt)?;
        if let Some(rest) = tokens.cut_off {
            console::report(common, &format!("the end of a text is not read, because it is too long: {rest}"));
        }
        ids.push(tokens.ids);
    }
    let texts = TextEncoder::new(text_config, &source)?.project(&ids)?;
    let encoder = ImageEncoder::new(image_config, &source)?;
    let mut scores = Vec::new();
    let bar = console::progress(common, args.image.len() as u64, "pictures");
    for path in &args.image {
        let picture = preprocessor.prepare(pictures::bytes(&pictures::read(path)?).view())?;
        let batch: Array4<f32> = picture.insert_axis(Axis(0));
        let image = encoder.project(batch.view()).with_context(|| path.display().to_string())?;
        let row = clip::similarity(image.view(), texts.view())?;
        scores.push(row.row(0).iter().map(|cosine| PERCENT * cosine).collect::<Vec<f32>>());
        bar.inc(1);
    }
    bar.finish_and_clear();
    if args.json {
        return console::print_json(&json!({
            "model": args.model.display().to_string(),
            "images": args.image.iter().map(|path| path.display().to_string()).collect::<Vec<_>>(),
            "prompts": args.prompt,
            "scores": scores,
        }));
    }
    let mut text = String::new();
    for (path, scores) in args.image.iter().zip(&scores) {
        for (prompt, score) in args.prompt.iter().zip(scores) {
            text += &format!("{score:7.2}  {}  {prompt}\n", path.display());
        }
    }
    console::print(&text)
}
