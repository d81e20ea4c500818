//! `tweedie eval --metrics`: samples and features from files against real images.

mod common;

use common::Bench;
use ndarray::{Array, Array1, Array2, Array4, Axis, Dimension, Slice};
use ndarray_npy::{WritableElement, WriteNpyExt};
use serde_json::{Value, json};
use tweedie_checkpoint::{Dtype, Tensor, default_metadata, save_safetensors};
use tweedie_data::{Dataset, Range, Split};

fn document(bench: &Bench, arguments: &str) -> Value {
    serde_json::from_str(&bench.succeed(arguments)).unwrap()
}

fn number(document: &Value, path: &str) -> f64 {
    document.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("no number at {path} in {document:#}"))
}

fn save<T: WritableElement, D: Dimension>(bench: &Bench, name: &str, array: &Array<T, D>) {
    let mut bytes = Vec::new();
    array.write_npy(&mut bytes).unwrap();
    std::fs::write(bench.path(name), bytes).unwrap();
}

fn save_tensors(bench: &Bench, name: &str, tensors: &[(&str, &Array<f32, ndarray::IxDyn>)], labels: Option<&[i64]>) {
    let values: Vec<Vec<f32>> = tensors.iter().map(|(_, array)| array.iter().copied().collect()).collect();
    let mut all: Vec<Tensor<'_>> =
        tensors.iter().zip(&values).map(|((name, array), values)| Tensor::f32(name, array.shape(), values)).collect();
    let shape = [labels.map_or(0, <[i64]>::len)];
    if let Some(labels) = labels {
        all.push(Tensor::i64("labels", &shape, labels));
    }
    save_safetensors(bench.path(name), &all, Dtype::F32, &default_metadata()).unwrap();
}

/// Features that fill the plane evenly without a pattern: the fractional parts of multiples of irrational numbers.
fn features(n: usize, shift: f32) -> Array2<f32> {
    let roots = [2.0_f32.sqrt(), 3.0_f32.sqrt(), 5.0_f32.sqrt()];
    Array2::from_shape_fn((n, 3), |(i, j)| ((i as f32 + 1.0) * roots[j]).fract() + shift)
}

#[test]
fn features_of_any_network_can_be_compared() {
    let bench = Bench::new();
    let (real, drawn) = (features(200, 0.0), features(150, 0.25));
    save(&bench, "real.npy", &real);
    save(&bench, "drawn.npy", &drawn.mapv(f64::from));
    save_tensors(&bench, "drawn.safetensors", &[("anything", &drawn.clone().into_dyn())], None);
    let run = |options: &str| document(&bench, &format!("eval --json --reference-features real.npy {options}"));
    let found = run("--metrics all --sample-features drawn.npy");
    let names: Vec<&str> = found["metrics"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(names, ["fid", "fid-infinity", "kid", "precision", "recall", "density", "coverage"]);
    // The mean is off by a quarter in each of three directions, and hardly anything else.
    assert!((number(&found, "/metrics/fid/of_means") - 3.0 / 16.0).abs() < 0.01, "{found:#}");
    assert!(number(&found, "/metrics/fid/of_covariances") < 0.01);
    let interval = |name: &str| {
        let end = |i: usize| number(&found, &format!("/metrics/{name}/interval/{i}"));
        (end(0), number(&found, &format!("/metrics/{name}/value")), end(1))
    };
    for name in ["fid", "kid", "precision", "recall", "density", "coverage"] {
        let (low, value, high) = interval(name);
        assert!(low <= value && value <= high && low < high, "{name}: {value} in {low} to {high}");
    }
    assert!(interval("precision").1 < 0.95 && interval("recall").1 < 0.95);
    assert_eq!((&found["metrics"]["recall"]["k"], &found["metrics"]["coverage"]["k"]), (&json!(3), &json!(5)));
    assert_eq!((&found["samples"]["count"], &found["reference"]["count"]), (&json!(150), &json!(200)));
    assert_eq!((&found["features"]["count"], &found["features"]["accuracy"]), (&json!(3), &Value::Null));
    // Neither the threads nor the kind of file change a bit; the seed does, of what is random alone.
    for same in ["--sample-features drawn.npy --threads 1", "--sample-features drawn.safetensors --threads 3"] {
        assert_eq!(run(&format!("--metrics all {same}"))["metrics"], found["metrics"], "{same}");
    }
    let other = run("--metrics all --sample-features drawn.npy --seed 1");
    assert_ne!(other["metrics"]["fid"]["interval"], found["metrics"]["fid"]["interval"]);
    assert_eq!(other["metrics"]["fid"]["value"], found["metrics"]["fid"]["value"]);
    assert_eq!(other["metrics"]["recall"], found["metrics"]["recall"]);
    // A set against itself, and options.
    let same = run("--metrics coverage,fid,precision --sample-features real.npy --neighbours 2 --resamples 0");
    assert!(number(&same, "/metrics/fid/value") < 1e-12 && same["metrics"]["fid"]["interval"].is_null());
    assert_eq!((&same["metrics"]["precision"]["hits"], &same["metrics"]["coverage"]["k"]), (&json!(200), &json!(2)));
    let text = bench.succeed("eval --metrics fid,kid --sample-features drawn.npy --reference-features real.npy");
    for part in ["drawn.npy: 150", "real.npy: all 200", "3 of another network", "fid", "kid", "95 % interval"] {
        assert!(text.contains(part), "no {part} in {text}");
    }
}

/// Test images of MNIST in [-1, 1], their bytes and labels.
fn digits(count: usize) -> (Array4<f32>, Array4<u8>, Vec<i64>) {
    let data = Dataset::open("mnist", Split::Test).unwrap();
    let indices: Vec<usize> = (0..count).collect();
    let batch = data.batch(&indices, Range::MinusOneOne).unwrap();
    let bytes = batch.images.mapv(|v| Range::MinusOneOne.to_byte(v));
    (batch.images, bytes, batch.labels.into_iter().map(|y| y as i64).collect())
}

#[test]
fn samples_are_compared_with_real_images() {
    let bench = Bench::new();
    let (images, bytes, labels) = digits(150);
    save_tensors(&bench, "x.safetensors", &[("sample", &images.clone().into_dyn())], Some(&labels));
    // The same in other ways: a little off each byte, as bytes, between 0 and 1.
    save(&bench, "off.npy", &images.mapv(|v| v + 0.002));
    save(&bench, "bytes.npy", &bytes);
    save(&bench, "unit.npy", &images.mapv(|v| 0.5 * v + 0.5));
    save(&bench, "labels.npy", &Array1::from(labels.clone()));
    let run = |options: &str| document(&bench, &format!("eval --json --limit 200 --seed 3 {options}"));
    let found = run("--metrics all --baseline --samples x.safetensors --resamples 4");
    let names: Vec<&str> = found["metrics"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(names, ["fid", "fid-infinity", "kid", "precision", "recall", "density", "coverage", "is", "accuracy"]);
    assert!(number(&found, "/metrics/accuracy/value") > 0.95, "{found:#}");
    let score = number(&found, "/metrics/is/value");
    assert!((8.0..10.0).contains(&score), "{score}");
    assert!(number(&found, "/metrics/precision/value") > 0.6, "{found:#}");
    assert_eq!((&found["reference"]["split"], &found["reference"]["available"]), (&json!("test"), &json!(10000)));
    assert_eq!((&found["samples"]["range"], &found["samples"]["quantised"]), (&json!("[-1, 1]"), &json!(true)));
    assert_eq!(
        (&found["baseline"]["data"]["split"], &found["baseline"]["data"]["count"]),
        (&json!("train"), &json!(150))
    );
    assert!(number(&found, "/baseline/metrics/accuracy/value") > 0.95);
    assert!(number(&found, "/features/accuracy") > 0.98 && found["seed"] == 3);
    let confusion: Vec<Vec<u64>> = serde_json::from_value(found["metrics"]["accuracy"]["confusion"].clone()).unwrap();
    assert_eq!(confusion.concat().iter().sum::<u64>(), 150);

    let metrics = "--metrics fid,is,accuracy --resamples 4 --sample-labels labels.npy";
    for same in ["--samples off.npy", "--samples bytes.npy --threads 1", "--samples unit.npy --sample-range 0,1"] {
        let other = run(&format!("{metrics} {same}"));
        for name in ["fid", "is", "accuracy"] {
            assert_eq!(other["metrics"][name], found["metrics"][name], "{name} of {same}");
        }
    }
    let exact = run(&format!("{metrics} --samples off.npy --no-quantise"));
    assert_ne!(exact["metrics"]["fid"], found["metrics"]["fid"]);
    // Noise is none of the digits.
    let noise = Array4::from_shape_fn((60, 1, 28, 28), |(n, _, i, j)| ((n * 37 + i * 91 + j * 53) as f32).sin());
    save(&bench, "noise.npy", &noise);
    let noise = run("--metrics fid,precision --samples noise.npy --resamples 0");
    assert!(number(&noise, "/metrics/fid/value") > 3.0 * number(&found, "/metrics/fid/value"), "{noise:#}");
    assert!(number(&noise, "/metrics/precision/value") < 0.1, "{noise:#}");

    let text = bench.succeed("eval --metrics is,accuracy --samples x.safetensors");
    for part in ["x.safetensors: 150, with labels", "rounded to bytes", "is ", "accuracy", "MNIST classifier"] {
        assert!(text.contains(part), "no {part} in {text}");
    }
    assert!(!text.contains("against"), "{text}");
}

/// A mixture of flat images of two labels, which is exact and draws at once.
fn oracle(bench: &Bench, side: usize) {
    let component = |mean: f64, label: usize| json!({ "weight": 1 + label, "mean": mean, "std": 0.4, "label": label });
    let components = [component(-0.6, 0), component(0.3, 1)];
    let oracle = json!({ "kind": "gaussian-mixture", "shape": [1, side, side], "components": components });
    std::fs::write(bench.path("oracle.json"), oracle.to_string()).unwrap();
}

#[test]
fn samples_are_drawn_from_the_model() {
    let bench = Bench::new();
    oracle(&bench, 28);
    let judge = "eval --json --metrics fid,accuracy --limit 60 --resamples 3 --seed 4";
    let draw = "--model oracle.json --count 40 --steps 5 --guidance 2";
    let found = document(&bench, &format!("{judge} {draw}"));
    let how = &found["samples"]["drawn"];
    assert_eq!((&how["sampler"], &how["steps"], &how["guidance"]), (&json!("ddim"), &json!(5), &json!(2.0)));
    assert_eq!((&how["seed"], &how["calls_per_image"]["model"]), (&json!(4), &json!(10.0)));
    assert_eq!((&found["samples"]["count"], &found["samples"]["labels"]), (&json!(40), &json!(true)));
    // The threads and the batch change nothing, the seed and the sampler do.
    let same = document(&bench, &format!("{judge} {draw} --threads 1 --batch 7"));
    assert_eq!((&same["metrics"], &same["samples"]), (&found["metrics"], &found["samples"]));
    for other in ["--sampler dpm++2m", "--sampler ddim --eta 1", "--spacing leading"] {
        let other = document(&bench, &format!("{judge} {draw} {other}"));
        assert_ne!(other["metrics"]["fid"]["value"], found["metrics"]["fid"]["value"], "{other:#}");
    }
    let other = document(&bench, &format!("{} {draw}", judge.replace("--seed 4", "--seed 5")));
    assert_ne!(other["metrics"]["fid"]["value"], found["metrics"]["fid"]["value"]);
    let free = document(&bench, "eval --json --metrics is --model oracle.json --count 40 --steps 5 --labels none");
    assert_eq!((&free["samples"]["labels"], number(&free, "/samples/drawn/guidance")), (&json!(false), 1.0));
    // They are the samples of the command that draws.
    bench.succeed(&format!("sample {draw} --labels 0,1 --seed 4 --out x.safetensors"));
    let stored = document(&bench, &format!("{judge} --samples x.safetensors"));
    assert_eq!(stored["metrics"], found["metrics"]);
    assert_eq!(stored["samples"]["drawn"], Value::Null);
    let text = bench.succeed(&format!("{} {draw}", judge.replace(" --json", "")));
    assert!(text.contains("ddim, 5 steps, guidance 2, seed 4; 10 calls of the model for each image"), "{text}");

    // The bundled model is guided as its config says, and its likelihood is among everything.
    let options = "--count 20 --steps 2 --limit 20 --steps-per-image 1 --resamples 0 --kid-subsets 2";
    let found = document(&bench, &format!("eval --json --metrics all {options}"));
    for name in ["nll", "fid", "kid", "recall", "is", "accuracy"] {
        assert!(found["metrics"][name].is_object(), "no {name} in {found:#}");
    }
    assert!(number(&found, "/samples/drawn/guidance") > 1.0);
    assert_eq!(number(&found, "/samples/drawn/calls_per_image/model"), 4.0);
}

#[test]
fn what_cannot_be_drawn_is_refused() {
    let bench = Bench::new();
    oracle(&bench, 4);
    let (images, ..) = digits(12);
    save(&bench, "x.npy", &images);
    save(&bench, "a.npy", &features(20, 0.0));
    bench.fail("eval --count 5", 2, &["--count", "--metrics fid"]);
    bench.fail("eval --guidance 2", 2, &["--guidance", "--metrics fid"]);
    bench.fail("eval --metrics fid --samples x.npy --steps 5", 2, &["--steps", "--samples"]);
    bench.fail("eval --metrics fid --samples x.npy --guidance 2", 2, &["--guidance", "--samples"]);
    bench.fail("eval --metrics fid --samples x.npy --prediction eps", 2, &["--prediction", "--samples"]);
    let features = "--sample-features a.npy --reference-features a.npy";
    bench.fail(&format!("eval --metrics fid {features} --count 5"), 2, &["--count", "--sample-features"]);
    bench.fail("eval --metrics is --model oracle.json", 2, &["--judge", "[1, 28, 28]", "[1, 4, 4]"]);
    bench.fail("eval --metrics fid --model oracle.json", 2, &["--data", "1 x 4 x 4"]);
    bench.fail("eval --metrics fid --steps 5000", 2, &["--steps 5000"]);
    bench.fail("eval --metrics fid --sampler dpm++2m --eta 1", 2, &["--eta", "ddim"]);
    bench.fail("eval --metrics accuracy --labels none", 2, &["accuracy", "without labels"]);
    bench.fail("eval --metrics is --classifier nowhere", 1, &["nowhere"]);
}

#[test]
fn what_cannot_be_judged_is_refused() {
    let bench = Bench::new();
    let (images, _, labels) = digits(12);
    save_tensors(&bench, "x.safetensors", &[("sample", &images.clone().into_dyn())], Some(&labels[..5]));
    save_tensors(&bench, "none.safetensors", &[("other", &images.clone().into_dyn())], None);
    save(&bench, "x.npy", &images);
    save(&bench, "small.npy", &images.slice_axis(Axis(2), Slice::from(..20)).to_owned());
    save(&bench, "flat.npy", &Array1::<f32>::zeros(7));
    save(&bench, "nan.npy", &Array4::<f32>::from_elem((3, 1, 28, 28), f32::NAN));
    save(&bench, "labels.npy", &Array1::from(labels[..5].to_vec()));
    save(&bench, "wrong.npy", &Array1::from(vec![-2_i64; 12]));
    save(&bench, "high.npy", &Array1::from(vec![10_i64; 12]));
    save(&bench, "a.npy", &features(20, 0.0));
    save(&bench, "four.npy", &features(4, 0.0));
    save(&bench, "wide.npy", &Array2::<f32>::zeros((20, 4)));
    save(&bench, "inf.npy", &Array2::from_elem((20, 3), f32::INFINITY));
    std::fs::write(bench.path("text.npy"), "no array").unwrap();

    bench.fail("eval --metrics bleu", 2, &["--metrics", "fid-infinity"]);
    bench.fail("eval --samples x.npy", 2, &["--samples", "--metrics fid"]);
    bench.fail("eval --metrics fid --samples x.npy --ode", 2, &["--ode", "--metrics nll"]);
    bench.fail("eval --metrics accuracy --samples x.npy", 2, &["accuracy", "--sample-labels", "x.npy"]);
    bench.fail("eval --metrics accuracy --samples x.npy --sample-labels labels.npy", 2, &["labels.npy", "5", "12"]);
    bench.fail("eval --metrics accuracy --samples x.npy --sample-labels wrong.npy", 1, &["wrong.npy", "-2"]);
    bench.fail("eval --metrics accuracy --samples x.npy --sample-labels high.npy", 1, &["below 10", "10"]);
    bench.fail("eval --metrics accuracy --samples x.npy --labels-per 5", 2, &["--labels-per 5", "12"]);
    bench.fail("eval --metrics accuracy --samples x.safetensors", 1, &["x.safetensors", "labels", "12", "5"]);
    bench.fail("eval --metrics is --samples none.safetensors", 1, &["none.safetensors", "sample", "other"]);
    bench.fail("eval --metrics is --samples flat.npy", 1, &["flat.npy", "[N,C,H,W]", "[7]"]);
    bench.fail("eval --metrics is --samples nan.npy", 1, &["nan.npy", "finite"]);
    bench.fail("eval --metrics is --samples text.npy", 1, &["text.npy", "f32"]);
    bench.fail("eval --metrics is --samples nowhere.npy", 1, &["nowhere.npy"]);
    bench.fail("eval --metrics is --samples x.npy --judge nowhere", 1, &["--judge", "nowhere"]);
    bench.fail("eval --metrics fid --samples small.npy", 2, &["--data", "1 x 20 x 28"]);
    bench.fail("eval --metrics fid --samples small.npy --data mnist", 2, &["mnist", "1 x 20 x 28", "1 x 28 x 28"]);
    bench.fail("eval --metrics density --samples x.npy --limit 5", 1, &["real images", "k = 5", "5"]);
    bench.fail("eval --metrics fid --sample-features a.npy", 2, &["--reference-features"]);
    let features = "--sample-features a.npy --reference-features";
    bench.fail(&format!("eval --metrics is {features} a.npy"), 2, &["--metrics is", "--samples"]);
    bench.fail(&format!("eval --metrics fid {features} a.npy --split test"), 2, &["--split"]);
    bench.fail(&format!("eval --metrics fid {features} a.npy --samples x.npy"), 2, &["--samples"]);
    bench.fail(&format!("eval --metrics fid {features} wide.npy"), 1, &["number of features", "4 as of", "3"]);
    bench.fail(&format!("eval --metrics fid {features} inf.npy"), 1, &["inf in row 0", "reference"]);
    bench.fail(&format!("eval --metrics fid {features} flat.npy"), 1, &["flat.npy", "[N,D]", "[7]"]);
    bench.fail(&format!("eval --metrics recall {features} four.npy --neighbours 4"), 1, &["k = 4", "found 4"]);
    bench.fail(&format!("eval --metrics kid {features} a.npy --kid-size 1"), 1, &["subsets", "2 or more"]);
}
