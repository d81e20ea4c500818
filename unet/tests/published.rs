//! What diffusers says of configurations, without weights: the keys of published ones, and which blocks fit together.

mod common;

use std::fmt::Write;

use serde_json::{Map, Value};
use tweedie_denoiser::{NetworkGrad, Param, ParamTable};
use tweedie_unet::residual::{Config, MidBlock};
use tweedie_unet::{Model, Summary, autoencoder, cross};

fn document(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(common::folder().join(name)).unwrap()).unwrap()
}

/// The 64-bit FNV-1a hash of the lines "KEY SIZExSIZE…" of all tensors, sorted.
fn hash(params: &[Param]) -> String {
    let line = |param: &Param| {
        let sizes: Vec<String> = param.shape.iter().map(usize::to_string).collect();
        format!("{} {}\n", param.name, sizes.join("x"))
    };
    let mut lines: Vec<String> = params.iter().map(line).collect();
    lines.sort();
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    format!("{:016x}", lines.concat().bytes().fold(0xcbf2_9ce4_8422_2325, step))
}

/// Layouts of up to 1.2 GB, which are made as for every model that is about to be loaded.
#[test]
fn published_configurations_have_their_keys() {
    let Value::Object(document) = document("published.json") else { panic!("not an object") };
    assert_eq!(document.len(), 4);
    for (name, entry) in document {
        let model = Model::from_config(entry["config"].as_object().unwrap()).unwrap();
        assert_eq!(model.expected().len() as u64, entry["tensors"], "{name}");
        assert_eq!(model.params().len() as u64, entry["parameters"], "{name}");
        assert_eq!(hash(model.expected()), entry["keys"], "{name}");
        let Model::Residual(network) = &model else { panic!("another network") };
        let config = network.config();
        assert_eq!(Config::from_json(&config.to_json()).unwrap(), *config, "{name}");
        let [_, h, w] = model.image_shape().unwrap();
        assert_eq!(model.summary(h, w).params(), model.params().trainable(), "{name}");
    }
}

/// The networks of Stable Diffusion, of which no memory is taken for the weights.
#[test]
fn stable_diffusion_has_its_keys() {
    let Value::Object(document) = document("stable.json") else { panic!("not an object") };
    assert_eq!(document.len(), 5);
    for (name, entry) in document {
        let config = entry["config"].as_object().unwrap();
        let (table, summary): (ParamTable, Summary) = if config["_class_name"] == cross::CLASS {
            let config = cross::Config::from_json(config).unwrap();
            let [_, h, w] = config.image_shape().unwrap();
            (config.table(500_000_000).unwrap(), config.summary(h, w))
        } else {
            let config = autoencoder::Config::from_json(config).unwrap();
            (config.table(50_000_000).unwrap(), config.summary(512, 512))
        };
        assert_eq!(table.entries().len() as u64, entry["tensors"], "{name}");
        assert_eq!(table.len() as u64, entry["parameters"], "{name}");
        assert_eq!(hash(table.entries()), entry["keys"], "{name}");
        assert_eq!(summary.params(), table.len(), "{name}");
    }
}

/// Networks of two levels of every kind are accepted exactly where diffusers can run them.
#[test]
fn blocks_fit_where_diffusers_can_run_them() {
    let document = document("fits.json");
    let names = |key: &str| document[key].as_array().unwrap().clone();
    let pairs = |names: &[Value]| {
        let pair = |a: &Value| names.iter().map(|b| Value::from(vec![a.clone(), b.clone()])).collect::<Vec<_>>();
        names.iter().flat_map(pair).collect::<Vec<_>>()
    };
    for (channels, expected) in document["fits"].as_object().unwrap() {
        let channels: Vec<usize> = channels.split('x').map(|c| c.parse().unwrap()).collect();
        let mut bits = Vec::new();
        for down in pairs(&names("down")) {
            for up in pairs(&names("up")) {
                let blocks = [("down_block_types", down.clone()), ("up_block_types", up)];
                let mut map: Map<String, Value> =
                    blocks.map(|(key, value)| (key.to_owned(), value)).into_iter().collect();
                map.insert("block_out_channels".into(), channels.clone().into());
                map.insert("layers_per_block".into(), 1.into());
                map.insert("mid_block_type".into(), Value::Null);
                let config = Config::from_json(&map);
                if let Ok(config) = &config {
                    assert_eq!(config.mid_block, MidBlock::Absent);
                }
                bits.push(config.is_ok());
            }
        }
        let digit = |bits: &[bool]| bits.iter().fold(0, |digit, &bit| 2 * digit + u8::from(bit));
        let found = bits.chunks(4).fold(String::new(), |mut text, bits| {
            write!(text, "{:x}", digit(bits)).unwrap();
            text
        });
        assert_eq!(found, *expected, "{channels:?}");
    }
}
