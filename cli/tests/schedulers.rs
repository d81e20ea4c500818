//! `tweedie sample` with every scheduler class against diffusers' own loop, on a small random network and with its noise
//! (`tests/golden/samplers/network`, made by `tools/reference/golden_samplers.py`).

mod common;

use std::fs;
use std::path::Path;

use common::Bench;
use serde_json::{Value, json};
use tweedie_checkpoint::TensorFile;

/// Both sides compute in f32.
const TOLERANCE: f64 = 1e-4;

/// A pipeline directory of the golden network with a scheduler's config as Python writes it, infinities without quotes.
fn pipeline(bench: &Bench, golden: &Path, name: &str, scheduler: &Value) {
    let dir = bench.path(name);
    for component in ["unet", "scheduler"] {
        fs::create_dir_all(dir.join(component)).unwrap();
    }
    for file in ["config.json", "diffusion_pytorch_model.safetensors"] {
        fs::copy(golden.join(file), dir.join("unet").join(file)).unwrap();
    }
    let index = json!({
        "_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", scheduler["_class_name"]],
    });
    fs::write(dir.join("model_index.json"), index.to_string()).unwrap();
    let config = scheduler.to_string().replace("\"-Infinity\"", "-Infinity");
    fs::write(dir.join("scheduler/scheduler_config.json"), config).unwrap();
}

#[test]
fn every_scheduler_ends_where_diffusers_does() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/samplers/network");
    let bench = Bench::new();
    fs::copy(golden.join("noise.safetensors"), bench.path("noise.safetensors")).unwrap();
    let finals = TensorFile::open(golden.join("finals.safetensors")).unwrap();
    let cases: Value = serde_json::from_slice(&fs::read(golden.join("cases.json")).unwrap()).unwrap();
    let mut wrong = Vec::new();
    for (number, case) in cases["cases"].as_array().unwrap().iter().enumerate() {
        let name = case["name"].as_str().unwrap();
        let dir = format!("model{number}");
        pipeline(&bench, &golden, &dir, &case["config"]);
        let steps = &case["steps"];
        let done = bench.run(&format!(
            "sample --model {dir} --noise noise.safetensors --count 2 --steps {steps} --out x.safetensors --quiet"
        ));
        if done.code != 0 {
            wrong.push(format!("{name}: {}", done.stderr));
            continue;
        }
        let (shape, found) = bench.tensor("x.safetensors", "sample");
        assert_eq!(shape, [2, 1, 8, 8], "{name}");
        let expected = finals.read_f32(name).unwrap();
        let scale = expected.iter().fold(0.0_f64, |most, v| most.max(f64::from(v.abs())));
        let difference = found.iter().zip(&expected).map(|(f, e)| f64::from((f - e).abs())).fold(0.0, f64::max);
        if difference > TOLERANCE * scale {
            wrong.push(format!("{name}: off by {} of {scale}", difference / scale));
        }
        println!("{name}: {:.1e}", difference / scale);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
