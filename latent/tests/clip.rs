//! CLIP's encoders against transformers, on the files of `tools/reference/golden_clip.py`.

use ndarray::{Array2, Array4, Ix3, Ix4, s};
use tweedie_latent::clip::{self, ImageConfig, Pooled, Preprocessor, TextConfig, similarity};
use tweedie_latent::{ImageEncoder, LatentError, TextEncoder, Tiles};

mod common;
use common::{Memory, config, golden, json, relative_error};

/// Whole tensors.
const TOLERANCE: f64 = 1e-5;

fn text_encoder(name: &str) -> TextEncoder {
    let source = Memory(golden(name)).renamed(clip::text_key);
    TextEncoder::new(TextConfig::from_json(&config(name)).unwrap(), &source).unwrap()
}

#[test]
fn states_are_those_of_python() {
    for (name, pooled) in [("text_first", true), ("text_second", false)] {
        let encoder = text_encoder(name);
        assert_eq!(encoder.config().pooled == Pooled::Largest, pooled);
        let expected = golden(&format!("{name}_tensors"));
        let texts = expected["input_ids"].texts();
        let layers = encoder.config().transformer.layers;
        for skip in 0..=layers {
            let key = if skip == 0 { "states".into() } else { format!("states_skip{skip}") };
            let found = encoder.states(&texts, skip).unwrap();
            assert_eq!(found.shape(), expected[&key].shape);
            let error = relative_error(&found, &expected[&key].values);
            assert!(error < TOLERANCE, "{name} {key}: {error}");
        }
        let error = relative_error(&encoder.pooled(&texts).unwrap(), &expected["pooled"].values);
        assert!(error < TOLERANCE, "{name} pooled: {error}");
        assert!(encoder.project(&texts).unwrap_err().to_string().contains("one with a projection"));
    }
}

#[test]
fn later_tokens_do_not_change_earlier_states() {
    let encoder = text_encoder("text_first");
    let (one, mut other) = (vec![5; 9], vec![5; 9]);
    other[6..].fill(77);
    let states = encoder.states(&[one.clone(), other], 0).unwrap();
    assert_eq!(states.slice(s![0, ..6, ..]), states.slice(s![1, ..6, ..]));
    assert_ne!(states.slice(s![0, 6, ..]), states.slice(s![1, 6, ..]));
    // A text has the same bits alone and among others, and as a condition.
    assert_eq!(
        encoder.states(std::slice::from_ref(&one), 0).unwrap().slice(s![0, .., ..]),
        states.slice(s![0, .., ..])
    );
    assert_eq!(*encoder.texts(&[one], 0).unwrap()[0], states.slice(s![0, .., ..]));
}

#[test]
fn texts_that_cannot_be_encoded_are_refused() {
    let encoder = text_encoder("text_first");
    let message = |texts: &[Vec<u32>], skip| encoder.states(texts, skip).unwrap_err().to_string();
    assert!(message(&[], 0).contains("the texts should be one or more"));
    assert!(message(&[vec![1, 2], vec![1]], 0).contains("the length of text 1 should be 2, that of text 0, found 1"));
    assert!(message(&[vec![1; 78]], 0).contains("1 to 77 tokens, found 78"));
    assert!(message(&[vec![100_000]], 0).contains("found 100000"));
    assert!(message(&[vec![1]], 3).contains("0 to 2, the layers of this encoder, found 3"));
}

#[test]
fn images_are_encoded_as_in_python() {
    let (config, source, expected) = (config("clip"), Memory(golden("clip")), golden("clip_tensors"));
    let texts = TextEncoder::new(TextConfig::from_json(&config).unwrap(), &source).unwrap();
    let images = ImageEncoder::new(ImageConfig::from_json(&config).unwrap(), &source).unwrap();
    let ids = expected["input_ids"].texts();
    let pixels: Array4<f32> = expected["pixels"].array::<Ix4>();
    let check = |name: &str, found: &Array2<f32>| {
        assert_eq!(found.shape(), expected[name].shape, "{name}");
        let error = relative_error(found, &expected[name].values);
        assert!(error < TOLERANCE, "{name}: {error}");
    };
    let (text, image) = (texts.project(&ids).unwrap(), images.project(pixels.view()).unwrap());
    check("pooled", &texts.pooled(&ids).unwrap());
    check("text_embeds", &text);
    check("image_pooled", &images.pooled(pixels.view()).unwrap());
    check("image_embeds", &image);
    check("cosine", &similarity(image.view(), text.view()).unwrap());
    let alone = images.project(pixels.slice(s![1.., .., .., ..])).unwrap();
    assert_eq!(alone.row(0), image.row(1));
    let error = images.project(pixels.slice(s![.., .., ..27, ..])).unwrap_err().to_string();
    assert!(error.contains("[3, 28, 28], found 2 of the shape [3, 27, 28]"), "{error}");
}

/// The names and shapes of the configuration are those of the files, but for what is known to be superfluous.
#[test]
fn weights_are_listed() {
    let list = |name: &str| -> Vec<(String, Vec<usize>)> {
        let file = Memory(golden(name)).renamed(clip::text_key);
        file.0
            .into_iter()
            .map(|(name, tensor)| (name, tensor.shape))
            .filter(|(name, _)| !clip::is_superfluous(name))
            .collect()
    };
    for name in ["text_first", "text_second"] {
        let mut listed = TextConfig::from_json(&config(name)).unwrap().tensors();
        listed.sort();
        assert_eq!(listed, list(name), "{name}");
    }
    let config = config("clip");
    let mut listed = TextConfig::from_json(&config).unwrap().tensors();
    listed.extend(ImageConfig::from_json(&config).unwrap().tensors());
    listed.push(("logit_scale".into(), vec![]));
    listed.sort();
    assert_eq!(listed, list("clip"));
    assert_eq!(TextConfig::from_json(&config).unwrap().projection, Some(20));
}

/// DIFFUSERS.md, section 10: the text encoder of Stable Diffusion 1.
#[test]
fn the_published_encoder_has_its_known_size() {
    let text = r#"{"architectures": ["CLIPTextModel"], "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12,
        "num_hidden_layers": 12, "projection_dim": 768, "eos_token_id": 2, "hidden_act": "quick_gelu", "torch_dtype": "float32"}"#;
    let config = TextConfig::from_json(&serde_json::from_str(text).unwrap()).unwrap();
    let tensors = config.tensors();
    assert_eq!(tensors.len(), 196);
    assert_eq!(tensors.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum::<usize>(), 123_060_480);
}

#[test]
fn a_missing_or_misshapen_weight_is_named() {
    let (config, mut source) = (TextConfig::from_json(&config("text_first")).unwrap(), Memory(golden("text_first")));
    let key = "text_model.encoder.layers.1.mlp.fc1.weight";
    let tensor = source.0.remove(key).unwrap();
    let message = |source: &Memory| TextEncoder::new(config, source).unwrap_err().to_string();
    assert!(message(&source).contains(&format!("{key} is missing")));
    source.0.insert(key.into(), common::Tensor { shape: vec![24, 40], ..tensor });
    assert!(message(&source).contains("[40, 24], found [24, 40]"));
}

#[test]
fn configurations_that_are_not_supported_are_refused() {
    let text = |text: &str| TextConfig::from_json(&serde_json::from_str(text).unwrap()).map(|_| ());
    let image = |text: &str| ImageConfig::from_json(&serde_json::from_str(text).unwrap()).map(|_| ());
    for (result, key) in [
        (text(r#"{"hidden_act": "gelu_new"}"#), "hidden_act"),
        (text(r#"{"num_attention_heads": 7}"#), "num_attention_heads"),
        (text(r#"{"use_attention_mask": true}"#), "use_attention_mask"),
        (text(r#"{"eos_token_id": [1, 2]}"#), "eos_token_id"),
        (text(r#"{"vocab_size": 0}"#), "vocab_size"),
        (text(r#"{"layer_norm_eps": -1}"#), "layer_norm_eps"),
        (text(r#"{"text_config": 3}"#), "text_config"),
        (text(r#"{"text_config": {}, "projection_dim": "x"}"#), "projection_dim"),
        (image(r#"{"patch_size": 225}"#), "patch_size"),
        (image(r#"{"image_size": [224, 224]}"#), "image_size"),
    ] {
        let message = result.unwrap_err().to_string();
        assert!(message.contains(&format!("`{key}`")), "{message}");
    }
    assert!(text(r#"{"use_attention_mask": false, "pruned_heads": {}, "top_k": 50}"#).is_ok());
}

#[test]
fn pictures_are_prepared_as_by_pillow() {
    let (tensors, configs) = (golden("pictures"), json("pictures.json"));
    let configs = configs.as_object().unwrap();
    assert_eq!(configs.len(), 5);
    for (name, config) in configs {
        let picture = tensors[&format!("{name}/picture")].array::<Ix3>().mapv(|x| x as u8);
        let expected = &tensors[&format!("{name}/pixels")];
        let found = Preprocessor::from_json(config.as_object().unwrap()).unwrap().prepare(picture.view()).unwrap();
        assert_eq!(found.shape(), expected.shape, "{name}");
        // A byte more or less would be 0.015.
        let worst = found.iter().zip(&expected.values).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-5, "{name}: {worst}");
    }
}

#[test]
fn tiles_are_joined_as_by_diffusers() {
    let tensors = golden("tiles");
    // Three channels at twice the size, which depend on where a tile begins.
    let decode = |z: ndarray::ArrayView4<'_, f32>| -> Result<Array4<f32>, LatentError> {
        let (n, _, h, w) = z.dim();
        Ok(Array4::from_shape_fn((n, 3, 2 * h, 2 * w), |(n, c, i, j)| {
            let at = |c: usize| z[(n, c, i / 2, j / 2)];
            at(c) * at(c + 1) + 0.01 * i as f32 - 0.02 * j as f32
        }))
    };
    for name in ["wide", "large", "one", "edge"] {
        let latents = tensors[&format!("{name}/latents")].array::<Ix4>();
        let expected = &tensors[&format!("{name}/pictures")];
        let found = Tiles::new(8, 16).unwrap().run(latents.view(), decode).unwrap();
        assert_eq!(found.shape(), expected.shape, "{name}");
        let error = relative_error(&found, &expected.values);
        assert!(error < 1e-6, "{name}: {error}");
    }
}
