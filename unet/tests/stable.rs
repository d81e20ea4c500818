//! The networks of Stable Diffusion, which are only run: outputs against diffusers, and what no golden tensor shows.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::{config, flat, golden, relative_error, unit};
use ndarray::{Array2, Array4, Axis, concatenate, s};
use rayon::ThreadPoolBuilder;
use serde_json::{Map, Value, json};
use tweedie_denoiser::{Condition, Network, ParamTable, Text};
use tweedie_kernels::weight::{Stored, Weight};
use tweedie_unet::{AutoencoderKl, Cross, Model, UnetError, WeightSource, autoencoder, canonical_key, cross};

/// The largest relative L2 error of any tensor.
const TOLERANCE: f64 = 1e-4;

/// Tensors by name.
struct Memory {
    tensors: BTreeMap<String, (Vec<usize>, Arc<Vec<f32>>)>,
    /// Whether weights are rounded to bfloat16 and stored so.
    halved: bool,
}

/// The upper halves of numbers.
#[derive(Debug)]
struct Halves(Vec<u16>);

impl Stored for Halves {
    fn view(&self) -> Weight<'_> {
        Weight::Bf16(&self.0)
    }
}

impl Memory {
    fn find(&self, name: &str, shape: &[usize]) -> Result<&Arc<Vec<f32>>, UnetError> {
        match self.tensors.get(name) {
            Some((found, values)) if found == shape => Ok(values),
            Some((found, _)) => {
                Err(UnetError::Weight { name: name.into(), message: format!("should be {shape:?}, is {found:?}") })
            }
            None => Err(UnetError::Weight { name: name.into(), message: "is missing".into() }),
        }
    }
}

impl WeightSource for Memory {
    fn weight(&self, name: &str, shape: &[usize]) -> Result<Arc<dyn Stored>, UnetError> {
        let values = self.find(name, shape)?;
        if self.halved {
            return Ok(Arc::new(Halves(values.iter().map(|x| (x.to_bits() >> 16) as u16).collect())));
        }
        let stored: Arc<dyn Stored> = values.clone();
        Ok(stored)
    }

    fn vector(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, UnetError> {
        Ok(self.find(name, shape)?.to_vec())
    }
}

/// The parameters of a table by the formula of the script that makes the golden files.
fn by_formula(table: &ParamTable) -> Memory {
    let mut params: Vec<_> = table.entries().iter().collect();
    params.sort_by(|a, b| a.name.cmp(&b.name));
    let fill = |(k, param): (usize, &&tweedie_denoiser::Param)| {
        let scale = match &param.shape[..] {
            _ if !param.name.ends_with(".weight") => 0.1,
            [_] => 0.25,
            [_, rest @ ..] => (6.0 / rest.iter().product::<usize>() as f64).sqrt(),
            [] => unreachable!("every tensor has an axis"),
        };
        let offset = if param.name.ends_with(".weight") && param.shape.len() == 1 { 1.0 } else { 0.0 };
        let values = (0..param.range.len()).map(|j| (offset + scale * unit(k, j)) as f32).collect();
        (param.name.clone(), (param.shape.clone(), Arc::new(values)))
    };
    Memory { tensors: params.iter().enumerate().map(fill).collect(), halved: false }
}

fn network(map: &Map<String, Value>) -> Cross {
    let config = cross::Config::from_json(map).unwrap();
    let memory = by_formula(&config.table(usize::MAX).unwrap());
    let network = Cross::new(config, &memory).unwrap();
    assert_eq!(network.expected().len(), memory.tensors.len());
    network
}

/// `[N, L, D]` as a text for each sample.
fn texts(tensor: &common::Tensor) -> Vec<Text> {
    let [n, len, width] = tensor.shape[..] else { panic!("not of three axes") };
    let text = |values: &[f32]| Arc::new(Array2::from_shape_vec((len, width), values.to_vec()).unwrap());
    assert_eq!(n * len * width, tensor.values.len());
    tensor.values.chunks(len * width).map(text).collect()
}

fn check(what: &str, found: &Array4<f32>, expected: &common::Tensor) {
    assert_eq!(found.shape(), expected.shape, "{what}");
    let error = relative_error(flat(found), &expected.values);
    println!("{what}: {error:.2e}");
    assert!(error < TOLERANCE, "{what}: relative error {error:.2e}");
}

fn text_conditioned(file: &str) {
    let tensors = golden(file);
    let mut network = network(&config(file));
    if let Some(scale) = tensors.get("guidance") {
        assert!(network.takes_guidance());
        network.set_guidance(Some(f64::from(scale.values[0])));
    }
    let times: Vec<f64> = tensors["timesteps"].values.iter().map(|&t| f64::from(t)).collect();
    let condition = Condition::texts(texts(&tensors["encoder_hidden_states"]));
    let x = tensors["input"].images();
    let output = network.predict(x.view(), &times, &condition).unwrap();
    check(file, &output, &tensors["output"]);
    let [h, w] = [x.dim().2, x.dim().3];
    let params: usize = network.expected().iter().map(|p| p.range.len()).sum();
    assert_eq!(network.config().summary(h, w).params(), params, "{file}: the description counts every parameter");
}

#[test]
fn text_conditioned_networks_agree_with_diffusers() {
    text_conditioned("cross_convolution");
    text_conditioned("cross_linear");
    text_conditioned("cross_guided");
    text_conditioned("cross_other");
    text_conditioned("cross_one_level");
}

fn autoencoder(file: &str) {
    let tensors = golden(file);
    let config = autoencoder::Config::from_json(&config(file)).unwrap();
    let table = config.table(usize::MAX).unwrap();
    let stored: BTreeMap<_, _> = tensors
        .iter()
        .filter_map(|(name, t)| {
            let key = canonical_key(name.strip_prefix("param/")?).into_owned();
            Some((key, (t.shape.clone(), Arc::new(t.values.clone()))))
        })
        .collect();
    let memory = if stored.is_empty() { by_formula(&table) } else { Memory { tensors: stored, halved: false } };
    let keys: Vec<&String> = memory.tensors.keys().collect();
    let mut own: Vec<&String> = table.entries().iter().map(|p| &p.name).collect();
    own.sort();
    assert_eq!(own, keys, "{file}");
    let network = AutoencoderKl::new(config, &memory).unwrap();
    let images = tensors["input"].images();
    check(&format!("{file}, moments"), &network.encode(images.view()).unwrap(), &tensors["moments"]);
    let latents = tensors["latents"].images();
    check(&format!("{file}, images"), &network.decode(latents.view()).unwrap(), &tensors["output"]);
    let summary = network.config().summary(images.dim().2, images.dim().3);
    assert_eq!(summary.params(), table.len(), "{file}: the description counts every parameter");
}

#[test]
fn autoencoders_agree_with_diffusers() {
    autoencoder("vae_levels");
    autoencoder("vae_bare");
    autoencoder("vae_legacy");
}

fn small() -> Map<String, Value> {
    let value = json!({
        "_class_name": "UNet2DConditionModel",
        "sample_size": 8,
        "block_out_channels": [16, 32],
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "layers_per_block": 1,
        "attention_head_dim": 2,
        "cross_attention_dim": 12,
        "norm_num_groups": 8,
    });
    let Value::Object(map) = value else { panic!("not an object") };
    map
}

fn images(seed: usize, shape: [usize; 4]) -> Array4<f32> {
    let len = shape.iter().product();
    Array4::from_shape_vec(shape, (0..len).map(|j| unit(seed, j) as f32).collect()).unwrap()
}

fn text(seed: usize, len: usize) -> Text {
    let values = (0..12 * len).map(|j| unit(1000 + seed, j) as f32).collect();
    Arc::new(Array2::from_shape_vec((len, 12), values).unwrap())
}

/// An image has the same bits alone and among others, whose texts have other lengths; also if these share a text.
#[test]
fn an_image_does_not_depend_on_the_others() {
    let network = network(&small());
    let x = images(1, [4, 4, 9, 8]);
    let times = [3.0, 700.0, 3.0, 20.5];
    let shared = text(1, 7);
    let texts = vec![shared.clone(), text(2, 3), shared, text(3, 77)];
    let together = network.predict(x.view(), &times, &Condition::texts(texts.clone())).unwrap();
    for i in 0..4 {
        let alone = Condition::texts(vec![Arc::new((*texts[i]).clone())]);
        let alone = network.predict(x.slice(s![i..=i, .., .., ..]), &times[i..=i], &alone).unwrap();
        assert_eq!(alone.index_axis(Axis(0), 0), together.index_axis(Axis(0), i), "image {i}");
    }
    // The text, the time and the image all matter.
    let other = Condition::texts(vec![text(4, 7), texts[1].clone(), texts[2].clone(), texts[3].clone()]);
    let other = network.predict(x.view(), &times, &other).unwrap();
    assert_ne!(other.index_axis(Axis(0), 0), together.index_axis(Axis(0), 0));
    assert_eq!(other.slice(s![1.., .., .., ..]), together.slice(s![1.., .., .., ..]));
}

#[test]
fn the_bits_do_not_depend_on_the_threads() {
    let network = network(&small());
    let decoder = decoder();
    let (x, z) = (images(1, [3, 4, 16, 12]), images(2, [2, 4, 6, 5]));
    let condition = Condition::texts(vec![text(1, 9), text(2, 9), text(3, 4)]);
    let run = |threads| {
        let pool = ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            (network.predict(x.view(), &[1.0, 2.0, 900.0], &condition).unwrap(), decoder.decode(z.view()).unwrap())
        })
    };
    assert_eq!(run(1), run(3));
}

fn decoder() -> AutoencoderKl {
    let config = autoencoder::Config::from_json(&config("vae_levels")).unwrap();
    let memory = by_formula(&config.table(usize::MAX).unwrap());
    AutoencoderKl::new(config, &memory).unwrap()
}

/// Weights in half precision give the bits of the same numbers in single precision.
#[test]
fn weights_are_used_as_they_are_stored() {
    let config = cross::Config::from_json(&small()).unwrap();
    let mut memory = by_formula(&config.table(usize::MAX).unwrap());
    for (shape, values) in memory.tensors.values_mut() {
        if shape.len() > 1 {
            *values = Arc::new(values.iter().map(|x| f32::from_bits(x.to_bits() & 0xffff_0000)).collect());
        }
    }
    let (x, condition) = (images(1, [1, 4, 8, 8]), Condition::texts(vec![text(1, 9)]));
    let single = Cross::new(config.clone(), &memory).unwrap();
    let halved = Cross::new(config, &Memory { halved: true, ..memory }).unwrap();
    let run = |network: &Cross| network.predict(x.view(), &[5.0], &condition).unwrap();
    assert_eq!(run(&single), run(&halved));
}

/// Without a scale the embedding of guidance is left out, as in diffusers.
#[test]
fn guidance_is_embedded_where_it_was_learned() {
    let mut map = small();
    map.insert("time_cond_proj_dim".into(), json!(8));
    let (x, condition) = (images(1, [1, 4, 8, 8]), Condition::texts(vec![text(1, 9)]));
    let mut guided = network(&map);
    let run = |network: &Cross| network.predict(x.view(), &[5.0], &condition).unwrap();
    let none = run(&guided);
    guided.set_guidance(Some(2.0));
    let two = run(&guided);
    guided.set_guidance(Some(8.0));
    assert!(none != two && two != run(&guided));
    let mut plain = network(&small());
    assert!(!plain.takes_guidance());
    let before = run(&plain);
    plain.set_guidance(Some(8.0));
    assert_eq!(before, run(&plain));
}

#[test]
fn what_does_not_fit_is_refused() {
    let network = network(&small());
    assert_eq!((network.classes(), network.has_null_condition()), (0, false));
    let x = images(1, [2, 4, 8, 8]);
    let refused = |x: &Array4<f32>, condition: &Condition, expected: &str| {
        let error = network.predict(x.view(), &[1.0; 2], condition).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    let fine = Condition::texts(vec![text(1, 3), text(2, 4)]);
    refused(&x, &Condition::none(2), "sample 0 has no text");
    refused(&x, &fine.slice(0..1).concat(&Condition::none(1)), "sample 1 has no text");
    refused(&x, &Condition::labels(vec![Some(1), None]), "sample 0 has label 1");
    let narrow: Text = Arc::new(Array2::zeros((3, 11)));
    refused(&x, &Condition::texts(vec![text(1, 3), narrow]), "[L, 12] (`cross_attention_dim`)");
    let empty: Text = Arc::new(Array2::zeros((0, 12)));
    refused(&x, &Condition::texts(vec![empty, text(1, 3)]), "at least one token");
    refused(&images(1, [2, 9, 8, 8]), &fine, "the channels of x should be 4");
    refused(&x, &fine.slice(0..1), "the condition should be 2");

    let error = decoder().encode(images(1, [1, 3, 8, 6]).view()).unwrap_err().to_string();
    assert!(error.contains("multiples of 4"), "{error}");
    let error = decoder().decode(images(1, [1, 3, 8, 8]).view()).unwrap_err().to_string();
    assert!(error.contains("the channels of x should be 4"), "{error}");
}

/// A network that reads no text does not ignore one.
#[test]
fn other_networks_refuse_texts() {
    let mut residual = Model::residual(tweedie_unet::residual::Config {
        channels: vec![8],
        down_blocks: vec![tweedie_unet::residual::Block::Plain],
        up_blocks: vec![tweedie_unet::residual::Block::Plain],
        norm_num_groups: Some(4),
        ..Default::default()
    })
    .unwrap();
    residual.initialise(tweedie_unet::Init::PyTorch, 1);
    let book = Model::book(tweedie_unet::BookConfig { base_channels: 4, ..Default::default() }).unwrap();
    for (network, x) in [(residual, images(1, [1, 3, 8, 8])), (book, images(1, [1, 1, 28, 28]))] {
        assert!(network.predict(x.view(), &[1.0], &Condition::none(1)).is_ok());
        let error = network.predict(x.view(), &[1.0], &Condition::texts(vec![text(1, 3)])).unwrap_err().to_string();
        assert!(error.contains("sample 0 has a text"), "{error}");
    }
}

#[test]
fn missing_and_misshapen_weights_are_named() {
    let config = cross::Config::from_json(&small()).unwrap();
    let whole = by_formula(&config.table(usize::MAX).unwrap());
    for name in ["down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight", "conv_norm_out.bias"] {
        for change in [true, false] {
            let mut tensors = whole.tensors.clone();
            if change {
                tensors.get_mut(name).unwrap().0.push(1);
            } else {
                tensors.remove(name);
            }
            let error = Cross::new(config.clone(), &Memory { tensors, halved: false }).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
    // A source that does not check is checked.
    let mut short = by_formula(&config.table(usize::MAX).unwrap());
    for (_, values) in short.tensors.values_mut() {
        *values = Arc::new(values[1..].to_vec());
    }
    let error = Cross::new(config, &short).unwrap_err().to_string();
    assert!(error.contains("should hold"), "{error}");
}

/// Every key with a value that is not supported, and what the message says beside the key's name.
#[test]
fn unsupported_keys_are_refused_by_name() {
    let refused = |key: &str, value: Value, expected: &str| {
        let mut map = small();
        map.insert(key.into(), value);
        let error = cross::Config::from_json(&map).unwrap_err().to_string();
        assert!(error.contains(&format!("`{key}`")) && error.contains(expected), "{error}");
    };
    for key in ["num_attention_heads", "encoder_hid_dim", "num_class_embeds", "addition_time_embed_dim"] {
        refused(key, json!(8), "null, the only value");
    }
    for key in ["encoder_hid_dim_type", "class_embed_type", "addition_embed_type", "cross_attention_norm"] {
        refused(key, json!("text_time"), "null, the only value");
    }
    for key in ["only_cross_attention", "dual_cross_attention", "class_embeddings_concat", "resnet_skip_time_act"] {
        refused(key, json!(true), "false, the only value");
    }
    refused("time_embedding_type", json!("fourier"), "positional");
    refused("attention_type", json!("gated"), "default");
    refused("attention_head_dim", json!([2, 2, 2]), "a list of 2");
    refused("attention_head_dim", json!(3), "number of heads");
    refused("cross_attention_dim", json!([12, 12]), "a whole number");
    refused("norm_num_groups", json!(null), "a whole number");
    refused("norm_num_groups", json!(5), "does not divide");
    refused(
        "down_block_types",
        json!(["SimpleCrossAttnDownBlock2D", "DownBlock2D"]),
        "SimpleCrossAttnDownBlock2D attends",
    );
    refused("up_block_types", json!(["UpBlock2D"]), "the length of `block_out_channels`, 2");
    refused("mid_block_type", json!("UNetMidBlock2DSimpleCrossAttn"), "UNetMidBlock2DCrossAttn");
    refused("conv_in_kernel", json!(5), "1 or 3");
    refused("freq_shift", json!(8), "less than half");
    refused("no_such_key", json!(1), "unknown key");
    refused("block_out_channels", json!([]), "1 to 8");
    let mut map = small();
    map.insert("_class_name".into(), json!("UNet2DModel"));
    let error = cross::Config::from_json(&map).unwrap_err().to_string();
    assert!(error.contains("\"UNet2DConditionModel\", found \"UNet2DModel\""), "{error}");
    // Without effect, or what they mean here anyway.
    for (key, value) in [
        ("upcast_attention", json!(null)),
        ("mid_block_only_cross_attention", json!(false)),
        ("resnet_out_scale_factor", json!(1)),
        ("addition_embed_type_num_heads", json!(32)),
        ("dropout", json!(0.1)),
        ("attention_head_dim", json!([2, 4])),
    ] {
        map = small();
        map.insert(key.into(), value);
        assert!(cross::Config::from_json(&map).is_ok(), "{key}");
    }

    let vae = |key: &str, value: Value, expected: &str| {
        let mut map = config("vae_levels");
        map.insert(key.into(), value);
        let error = autoencoder::Config::from_json(&map).unwrap_err().to_string();
        assert!(error.contains(&format!("`{key}`")) && error.contains(expected), "{error}");
    };
    vae("latents_mean", json!([0.0]), "null");
    vae("latents_std", json!([1.0]), "null");
    vae("down_block_types", json!(vec!["AttnDownEncoderBlock2D"; 3]), "DownEncoderBlock2D");
    vae("up_block_types", json!(["UpDecoderBlock2D"]), "a list of 3");
    vae("scaling_factor", json!(0), "above 0");
    vae("shift_factor", json!("a"), "null or a number");
    vae("norm_num_groups", json!(3), "does not divide");
    vae("no_such_key", json!(1), "unknown key");
}

/// A configuration that asks for far more than its file holds is refused before anything is made of it.
#[test]
fn a_table_is_not_made_for_nothing() {
    let mut map = small();
    map.insert("transformer_layers_per_block".into(), json!(60000));
    let error = cross::Config::from_json(&map).unwrap().table(1000).unwrap_err();
    assert!(matches!(error, UnetError::Size { available: 1000, .. }), "{error}");
    map = config("vae_levels");
    map.insert("layers_per_block".into(), json!(60000));
    let error = autoencoder::Config::from_json(&map).unwrap().table(1000).unwrap_err();
    assert!(matches!(error, UnetError::Size { available: 1000, .. }), "{error}");
}

/// The pipelines' shapes: two texts for one image, and a batch of none.
#[test]
fn batches_of_any_size_are_run() {
    let network = network(&small());
    let x = images(1, [1, 4, 8, 8]);
    let (positive, negative) = (Condition::texts(vec![text(1, 5)]), Condition::texts(vec![text(2, 5)]));
    let twice = concatenate(Axis(0), &[x.view(), x.view()]).unwrap();
    let both = network.predict(twice.view(), &[7.0; 2], &positive.concat(&negative)).unwrap();
    assert_eq!(both.dim(), (2, 4, 8, 8));
    assert_ne!(both.index_axis(Axis(0), 0), both.index_axis(Axis(0), 1));
    let none = network.predict(Array4::zeros((0, 4, 8, 8)).view(), &[], &Condition::none(0)).unwrap();
    assert_eq!(none.dim(), (0, 4, 8, 8));
}
