//! `tweedie convert`: number types and layouts.

mod common;

use common::{Bench, ddpm_config, network, residual_config, write_residual, write_single};
use serde_json::json;
use tweedie_unet::{BookConfig, Model};

const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";

#[test]
fn layouts_and_types_lead_back_to_the_same_bytes() {
    let bench = Bench::new();
    write_residual(&bench.path("model"), &network(&residual_config(), |_, _| {}), &ddpm_config());
    bench.succeed("convert --model model --out component --layout component");
    bench.succeed("convert --model component --out pipeline");
    let files = ["model_index.json", "scheduler/scheduler_config.json", "unet/config.json"];
    for file in files.into_iter().map(str::to_owned).chain([format!("unet/{WEIGHTS}")]) {
        assert_eq!(bench.bytes(&format!("pipeline/{file}")), bench.bytes(&format!("model/{file}")), "{file}");
    }
    assert_eq!(bench.bytes(&format!("component/{WEIGHTS}")), bench.bytes(&format!("model/unet/{WEIGHTS}")));
    assert!(bench.path("component/scheduler_config.json").is_file());
    let drawn = |model: &str| {
        bench.succeed(&format!("sample --model {model} --count 2 --steps 3 --out {model}.npy"));
        bench.bytes(&format!("{model}.npy"))
    };
    assert_eq!(drawn("model"), drawn("component"));

    for dtype in ["f16", "bf16"] {
        bench.succeed(&format!("convert --model model --out {dtype} --dtype {dtype}"));
        bench.succeed(&format!("convert --model {dtype} --out {dtype}-wide"));
        bench.succeed(&format!("convert --model {dtype}-wide --out {dtype}-again --dtype {dtype}"));
        let [first, again] = ["", "-again"].map(|end| bench.bytes(&format!("{dtype}{end}/unet/{WEIGHTS}")));
        assert_eq!(first, again, "{dtype}");
        assert!(first.len() < bench.bytes(&format!("model/unet/{WEIGHTS}")).len());
    }
}

#[test]
fn what_cannot_be_converted_leaves_nothing() {
    let bench = Bench::new();
    write_single(&bench.path("alone"), &network(&residual_config(), |_, _| {}), None);
    bench.fail("convert --model alone --out new --layout pipeline", 1, &["alone", "scheduler", "component"]);
    let book = BookConfig { base_channels: 8, ..BookConfig::default() };
    write_single(&bench.path("book"), &Model::book(book).unwrap(), Some(&ddpm_config()));
    bench.fail("convert --model book --out new --layout pipeline", 1, &["book", "UNetCond", "component"]);
    let large = network(&residual_config(), |name, values| {
        if name == "conv_in.weight" {
            values[3] = 1e5;
        }
    });
    write_single(&bench.path("large"), &large, Some(&json!({ "_class_name": "DDPMScheduler" })));
    bench.fail("convert --model large --out new --dtype f16", 1, &["conv_in.weight", "F32"]);
    bench.succeed("convert --model large --out new --dtype bf16");
    bench.fail("convert --model large --out new", 2, &["--out new", "exists already"]);
}
