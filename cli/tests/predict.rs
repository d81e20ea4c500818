//! `tweedie predict` against the network that wrote the directory.

mod common;

use common::{Bench, ddpm_config, network, object, residual_config, write_residual, write_single};
use ndarray::Array4;
use serde_json::json;
use tweedie_checkpoint::{Dtype, Tensor, default_metadata, save_safetensors};
use tweedie_denoiser::{Condition, Network};
use tweedie_unet::Model;

/// Two images of `side` x `side`.
fn images(side: usize) -> Array4<f32> {
    Array4::from_shape_fn((2, 1, side, side), |(n, _, i, j)| ((7 * n + 3 * i + 5 * j) % 13) as f32 / 6.0 - 1.0)
}

fn save(bench: &Bench, tensors: &[Tensor<'_>]) {
    save_safetensors(bench.path("in.safetensors"), tensors, Dtype::F32, &default_metadata()).unwrap();
}

const COMMAND: &str = "predict --model model --input in.safetensors --out out.safetensors";

fn expected(model: &Model, x: &Array4<f32>, timesteps: &[f64], labels: [Option<usize>; 2]) -> Vec<f32> {
    let output = model.predict(x.view(), timesteps, &Condition::labels(labels.to_vec())).unwrap();
    output.iter().copied().collect()
}

#[test]
fn outputs_are_those_of_the_network() {
    let bench = Bench::new();
    let model = network(&residual_config(), |_, _| {});
    write_residual(&bench.path("model"), &model, &ddpm_config());
    let x = images(8);
    let sample = Tensor::f32("sample", &[2, 1, 8, 8], x.as_slice().unwrap());

    save(&bench, &[sample, Tensor::i64("timestep", &[2], &[7, 0]), Tensor::i64("class_labels", &[2], &[2, -1])]);
    bench.succeed(COMMAND);
    let (shape, values) = bench.tensor("out.safetensors", "sample");
    assert_eq!(shape, [2, 1, 8, 8]);
    assert_eq!(values, expected(&model, &x, &[7.0, 0.0], [Some(2), None]));

    // Fractional timesteps, and no labels at all.
    save(&bench, &[sample, Tensor::f32("timestep", &[2], &[7.25, 3.0])]);
    bench.succeed(COMMAND);
    assert_eq!(bench.tensor("out.safetensors", "sample").1, expected(&model, &x, &[7.25, 3.0], [None, None]));

    // The null row, as diffusers asks for no condition; labels as floats.
    save(&bench, &[sample, Tensor::i64("timestep", &[2], &[7, 0]), Tensor::f32("class_labels", &[2], &[3.0, 1.0])]);
    bench.succeed(COMMAND);
    assert_eq!(bench.tensor("out.safetensors", "sample").1, expected(&model, &x, &[7.0, 0.0], [None, Some(1)]));

    // One timestep for all.
    save(&bench, &[sample, Tensor::i64("timestep", &[], &[11])]);
    bench.succeed(COMMAND);
    assert_eq!(bench.tensor("out.safetensors", "sample").1, expected(&model, &x, &[11.0, 11.0], [None, None]));
}

#[test]
fn inputs_may_be_of_the_types_of_numpy() {
    let bench = Bench::new();
    let model = network(&residual_config(), |_, _| {});
    write_residual(&bench.path("model"), &model, &ddpm_config());
    let x = images(8);
    let times = [0.125_f64, 17.5];
    let bytes = |values: Vec<Vec<u8>>| values.concat();
    let sample = bytes(x.iter().map(|v| f64::from(*v).to_le_bytes().to_vec()).collect());
    let timestep = bytes(times.iter().map(|v| v.to_le_bytes().to_vec()).collect());
    let header = json!({
        "sample": {"dtype": "F64", "shape": [2, 1, 8, 8], "data_offsets": [0, sample.len()]},
        "timestep": {"dtype": "F64", "shape": [2], "data_offsets": [sample.len(), sample.len() + timestep.len()]},
    });
    let header = header.to_string().into_bytes();
    let file = [(header.len() as u64).to_le_bytes().to_vec(), header, sample, timestep].concat();
    std::fs::write(bench.path("in.safetensors"), file).unwrap();
    bench.succeed(COMMAND);
    assert_eq!(bench.tensor("out.safetensors", "sample").1, expected(&model, &x, &times, [None, None]));
}

#[test]
fn a_book_directory_predicts() {
    let bench = Bench::new();
    let model = network(&object(json!({"_class_name": "UNetCond"})), |_, _| {});
    write_single(&bench.path("model"), &model, None);
    let x = images(28);
    let sample = Tensor::f32("sample", &[2, 1, 28, 28], x.as_slice().unwrap());
    save(&bench, &[sample, Tensor::i64("timestep", &[2], &[1000, 1]), Tensor::i64("class_labels", &[2], &[9, -1])]);
    bench.succeed(COMMAND);
    assert_eq!(bench.tensor("out.safetensors", "sample").1, expected(&model, &x, &[1000.0, 1.0], [Some(9), None]));
}

#[test]
fn inputs_that_cannot_be_used_are_refused() {
    let bench = Bench::new();
    write_residual(&bench.path("model"), &network(&residual_config(), |_, _| {}), &ddpm_config());
    let x = images(8);
    let sample = Tensor::f32("sample", &[2, 1, 8, 8], x.as_slice().unwrap());
    let timestep = Tensor::i64("timestep", &[2], &[3, 4]);
    let nan = [f32::NAN; 128];
    let fail = |tensors: &[Tensor<'_>], parts: &[&str]| {
        save(&bench, tensors);
        bench.fail(COMMAND, 1, parts);
    };
    fail(&[sample], &["in.safetensors", "timestep [N]", "found sample"]);
    fail(&[timestep], &["in.safetensors", "sample [N,C,H,W]"]);
    fail(&[sample, Tensor::i64("timestep", &[3], &[3, 4, 5])], &["timestep", "[2]", "[3]"]);
    fail(&[sample, Tensor::f32("timestep", &[2], &nan[..2])], &["timestep", "finite", "NaN"]);
    fail(&[Tensor::f32("sample", &[2, 1, 8, 8], &nan), timestep], &["sample", "finite"]);
    fail(&[Tensor::f32("sample", &[2, 64], x.as_slice().unwrap()), timestep], &["sample", "[N,C,H,W]", "[2, 64]"]);
    fail(&[Tensor::f32("sample", &[2, 4, 4, 4], x.as_slice().unwrap()), timestep], &["channels", "1", "4"]);
    fail(&[sample, timestep, Tensor::i64("class_labels", &[2], &[4, 0])], &["label 4", "0 to 2"]);
    fail(&[sample, timestep, Tensor::f32("class_labels", &[2], &[0.5, 0.0])], &["class_labels", "0.5"]);
    fail(&[Tensor::i64("sample", &[2, 1, 8, 8], &[0; 128]), timestep], &["sample", "F64, F32"]);
    fail(&[sample, timestep, Tensor::i64("class_labels", &[2], &[-2, 0])], &["class_labels", "-2"]);
    fail(&[sample, timestep, Tensor::i64("class_labels", &[1], &[0])], &["class_labels", "[2]", "[1]"]);
    fail(&[sample, timestep, Tensor::f32("encoder_hidden_states", &[2, 1, 4], &[0.0; 8])], &["encoder_hidden_states"]);
    fail(&[sample, timestep, Tensor::i64("class_label", &[2], &[0, 1])], &["class_label", "class_labels"]);
    std::fs::remove_file(bench.path("in.safetensors")).unwrap();
    bench.fail(COMMAND, 1, &["in.safetensors"]);
    std::fs::write(bench.path("in.safetensors"), b"no tensors").unwrap();
    bench.fail(COMMAND, 1, &["in.safetensors"]);
    bench.fail("predict --model model --input in.bin --out out.safetensors", 2, &[".safetensors"]);
    bench.fail("predict --model model --input in.safetensors", 2, &["--out"]);
}
