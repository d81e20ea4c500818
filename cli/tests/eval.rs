//! `tweedie eval`: likelihoods of oracles, whose exact value is known, and of networks.

mod common;

use common::{Bench, ddpm_config, network, residual_config, write_residual};
use ndarray::{Array, Array4, Dimension};
use ndarray_npy::{WritableElement, WriteNpyExt};
use serde_json::{Value, json};

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

fn oracle(bench: &Bench, name: &str, components: Value) {
    let oracle = json!({ "kind": "gaussian-mixture", "shape": [1, 1, 2], "components": components });
    std::fs::write(bench.path(name), oracle.to_string()).unwrap();
}

const PARTS: [&str; 4] = ["prior", "steps", "decoder", "total"];

#[test]
fn the_bound_of_an_oracle_stands_beside_its_exact_value() {
    let bench = Bench::new();
    oracle(&bench, "normal.json", json!([{ "weight": 1, "mean": 0, "std": 1 }]));
    // The large variance is exact for standard normal data, so all that the bound loses is noise.
    let found = document(&bench, "eval --model normal.json --variance large --limit 400 --ode --json");
    let nll = &found["metrics"]["nll"];
    let entropy = (2.0 * std::f64::consts::PI * std::f64::consts::E).ln();
    let (exact, error) = (number(nll, "/exact/nats/mean"), number(nll, "/exact/nats/standard_error"));
    assert!((exact - entropy).abs() < 5.0 * error && error < 0.1, "{exact} ± {error} instead of {entropy}");
    let gap = number(nll, "/exact/bound_minus_exact_nats/mean");
    let gap_error = number(nll, "/exact/bound_minus_exact_nats/standard_error");
    assert!(gap.abs() < 5.0 * gap_error && gap_error < 0.2, "{gap} ± {gap_error}");
    assert!((number(nll, "/bound/nats/total/mean") - exact - gap).abs() < 1e-9);
    assert!(number(nll, "/ode/ode_minus_exact_nats/mean").abs() < 1e-6);
    assert_eq!((&nll["ode"]["probes"], &nll["ode"]["dequantised"]), (&Value::Null, &json!(false)));

    // The parts are the sum of the terms, in both units.
    let terms = nll["terms"].as_array().unwrap();
    assert_eq!(terms.len(), 1000);
    let mean = |part: &str, unit: &str| number(nll, &format!("/bound/{unit}/{part}/mean"));
    let steps: f64 = terms[1..].iter().map(|term| number(term, "/nats")).sum();
    assert!((mean("steps", "nats") - steps).abs() < 1e-9 && terms[1]["t"] == 2);
    assert!((mean("decoder", "nats") - number(&terms[0], "/nats")).abs() < 1e-12);
    assert!((mean("total", "nats") - PARTS[..3].iter().map(|p| mean(p, "nats")).sum::<f64>()).abs() < 1e-9);
    for part in PARTS {
        assert!((mean(part, "bits_per_dim") - mean(part, "nats") / (2.0 * 2.0_f64.ln())).abs() < 1e-12);
    }
    assert_eq!((&found["data"]["samples"], &found["data"]["available"]), (&json!(400), &Value::Null));
    assert_eq!(found["process"]["decoder_bins"], Value::Null);

    let text = bench.succeed("eval --model normal.json --limit 20 --train-steps 10 --beta-end 0.9 --ode --probes 3");
    for part in ["normal.json", "20 samples", "T = 10", "every step", "bound", "exact", "ODE", "3 probes"] {
        assert!(text.contains(part), "no {part} in {text}");
    }
}

#[test]
fn numbers_from_a_file_have_their_own_density() {
    let bench = Bench::new();
    let component =
        |mean: f64, std: f64, label: usize| json!({ "weight": 1, "mean": mean, "std": std, "label": label });
    oracle(&bench, "o.json", json!([component(0.5, 0.25, 0), component(-0.5, 0.5, 1)]));
    let x = Array4::from_shape_vec((2, 1, 1, 2), vec![0.5, 0.75, -0.25, 0.0]).unwrap();
    save(&bench, "x.npy", &x);
    save(&bench, "f.npy", &x.mapv(|v| v as f32));
    let options = "--train-steps 20 --beta-end 0.8 --json";
    let found = document(&bench, &format!("eval --model o.json --data x.npy {options}"));
    let density = |x: &[f64]| {
        let normal = |m: f64, s: f64| {
            let squares: f64 = x.iter().map(|x| ((x - m) / s).powi(2)).sum();
            (-0.5 * squares).exp() / (2.0 * std::f64::consts::PI * s * s)
        };
        0.5 * (normal(0.5, 0.25) + normal(-0.5, 0.5))
    };
    let expected = -0.5 * (density(&[0.5, 0.75]).ln() + density(&[-0.25, 0.0]).ln());
    let exact = number(&found, "/metrics/nll/exact/nats/mean");
    assert!((exact - expected).abs() < 1e-12, "{exact} instead of {expected}");
    assert_eq!((&found["data"]["available"], &found["data"]["labels"]), (&json!(2), &json!("none")));
    // The same numbers in f32.
    let single = document(&bench, &format!("eval --model o.json --data f.npy {options}"));
    assert_eq!(single["metrics"], found["metrics"]);
    // Draws have labels, under which their density is higher.
    let draws = |labels: &str| {
        let command = format!("eval --model o.json --limit 200 --labels {labels} {options}");
        number(&document(&bench, &command), "/metrics/nll/exact/nats/mean")
    };
    assert!(draws("own") < draws("none") - 0.1);
}

/// Eight images of 8 x 8 pixels.
fn pixels() -> Array4<u8> {
    Array4::from_shape_fn((8, 1, 8, 8), |(n, _, i, j)| ((37 * n + 29 * i + 11 * j) % 256) as u8)
}

#[test]
fn a_network_is_evaluated_on_pixels() {
    let bench = Bench::new();
    write_residual(&bench.path("model"), &network(&residual_config(), |_, _| {}), &ddpm_config());
    save(&bench, "bytes.npy", &pixels());
    save(&bench, "floats.npy", &pixels().mapv(|b| (2.0 * f32::from(b) - 255.0) / 255.0));
    let run = |options: &str| document(&bench, &format!("eval --model model --seed 3 --json {options}"));
    let found = run("--data bytes.npy --steps-per-image 4");
    // Neither the batch, nor the threads, nor the type of the file changes a bit.
    for same in ["bytes.npy --batch 3", "bytes.npy --threads 1", "floats.npy --batch 1"] {
        assert_eq!(run(&format!("--steps-per-image 4 --data {same}"))["metrics"], found["metrics"], "{same}");
    }
    let nll = &found["metrics"]["nll"];
    let total = number(nll, "/bound/bits_per_dim/total/mean");
    assert!((total - number(nll, "/bound/nats/total/mean") / (64.0 * 2.0_f64.ln())).abs() < 1e-9 && total > 0.0);
    assert_eq!((&found["process"]["steps_per_sample"], &found["process"]["decoder_bins"]), (&json!(4), &json!(256)));
    assert_eq!((&found["process"]["clip"], &found["process"]["variance"]), (&json!({ "range": 1.0 }), &json!("small")));
    // A process of 20 steps is short enough for all of them; draws of steps are unbiased.
    let all = run("--data bytes.npy");
    assert_eq!(
        (&all["process"]["all_steps"], &run("--data bytes.npy --all-steps")["metrics"]),
        (&json!(true), &all["metrics"])
    );
    let (exact, drawn) = (number(&all, "/metrics/nll/bound/nats/steps/mean"), number(nll, "/bound/nats/steps/mean"));
    let error = number(nll, "/bound/nats/steps/standard_error");
    assert!((exact - drawn).abs() < 5.0 * error, "{drawn} ± {error} instead of {exact}");
    // Another variance is another model, with the same prior.
    let large = run("--data bytes.npy --variance large");
    assert_eq!(large["metrics"]["nll"]["bound"]["nats"]["prior"], all["metrics"]["nll"]["bound"]["nats"]["prior"]);
    assert_ne!(large["metrics"]["nll"]["bound"]["nats"]["steps"], all["metrics"]["nll"]["bound"]["nats"]["steps"]);
    // So is one whose sampler does not clip the estimate of x_0, as that of this untrained network needs.
    let mut config = ddpm_config();
    config["clip_sample"] = json!(false);
    write_residual(&bench.path("free"), &network(&residual_config(), |_, _| {}), &config);
    let free = document(&bench, "eval --model free --seed 3 --json --data bytes.npy");
    assert_eq!(free["process"]["clip"], Value::Null);
    let steps = |document: &Value| number(document, "/metrics/nll/bound/nats/steps/mean");
    assert!(steps(&free) > 1.01 * steps(&all), "{} against {}", steps(&free), steps(&all));
    // The ODE, on a random part of the data.
    let ode = run("--data bytes.npy --limit 2 --ode --probes 2 --ode-steps 6");
    assert_eq!((&ode["data"]["samples"], &ode["data"]["available"]), (&json!(2), &json!(8)));
    let nll = &ode["metrics"]["nll"]["ode"];
    assert!(number(nll, "/bits_per_dim/mean").is_finite() && number(nll, "/probe_error_nats") > 0.0);
    assert_eq!((&nll["dequantised"], &nll["probes"], &nll["steps"]), (&json!(true), &json!(2), &json!(6)));
    let width: f64 = 2.0 / 255.0;
    let bits = (number(nll, "/nats/mean") / 64.0 - width.ln()) / 2.0_f64.ln();
    assert!((number(nll, "/bits_per_dim/mean") - bits).abs() < 1e-9);
}

/// Big-endian IDX files of images and labels.
fn write_idx(bench: &Bench, labels: &[u8]) {
    let words = |words: &[u32]| words.iter().flat_map(|w| w.to_be_bytes()).collect::<Vec<u8>>();
    std::fs::create_dir(bench.path("idx")).unwrap();
    let images = [words(&[0x803, 8, 8, 8]), pixels().into_iter().collect()].concat();
    std::fs::write(bench.path("idx/t10k-images-idx3-ubyte"), images).unwrap();
    let labels = [words(&[0x801, 8]), labels.to_vec()].concat();
    std::fs::write(bench.path("idx/t10k-labels-idx1-ubyte"), labels).unwrap();
}

#[test]
fn images_are_evaluated_under_their_own_labels() {
    let bench = Bench::new();
    write_residual(&bench.path("model"), &network(&residual_config(), |_, _| {}), &ddpm_config());
    write_idx(&bench, &[0, 1, 2, 0, 1, 2, 0, 1]);
    let run = |options: &str| document(&bench, &format!("eval --model model --data idx --json {options}"));
    let (own, none) = (run(""), run("--labels none"));
    assert_eq!((&own["data"]["labels"], &none["data"]["labels"]), (&json!("own"), &json!("none")));
    assert_eq!((&own["data"]["split"], &own["data"]["samples"]), (&json!("test"), &json!(8)));
    assert_ne!(own["metrics"], none["metrics"]);
    bench.fail("eval --model model --data idx --split train", 1, &["--data", "train"]);
    std::fs::remove_dir_all(bench.path("idx")).unwrap();
    write_idx(&bench, &[0, 1, 2, 3, 1, 2, 0, 1]);
    bench.fail("eval --model model --data idx", 2, &["--labels own", "label 3", "--labels none"]);
}

#[test]
fn the_bundled_model_is_evaluated_on_mnist() {
    let bench = Bench::new();
    let text = bench.succeed("eval --limit 2 --steps-per-image 1 --plot terms.svg");
    for part in ["digits (bundled)", "mnist, test: 2 of 10000 samples", "own label", "T = 1000", "L_0", "bits/dim"] {
        assert!(text.contains(part), "no {part} in {text}");
    }
    let svg = String::from_utf8(bench.bytes("terms.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("bits/dim") && svg.contains("L_0"));
}

#[test]
fn what_cannot_be_evaluated_is_refused() {
    let bench = Bench::new();
    oracle(&bench, "o.json", json!([{ "weight": 1, "mean": 0, "std": 1 }]));
    oracle(&bench, "point.json", json!([{ "weight": 1, "mean": 0, "std": 0 }]));
    write_residual(&bench.path("model"), &network(&residual_config(), |_, _| {}), &ddpm_config());
    save(&bench, "pixels.npy", &pixels());
    save(&bench, "between.npy", &Array4::from_elem((1, 1, 8, 8), 0.25_f64));
    save(&bench, "flat.npy", &Array::from_elem(64, 0.5_f64));
    save(&bench, "long.npy", &Array4::<i64>::zeros((1, 1, 8, 8)));
    save(&bench, "nan.npy", &Array4::from_elem((1, 1, 8, 8), f32::NAN));
    save(&bench, "empty.npy", &Array4::<f32>::zeros((0, 1, 8, 8)));
    std::fs::write(bench.path("text.npy"), "no array").unwrap();
    bench.fail("eval --metrics bleu", 2, &["--metrics", "nll"]);
    bench.fail("eval --model model", 2, &["--data", "1 x 8 x 8", "1 x 28 x 28"]);
    bench.fail("eval --model model --data mnist", 2, &["--data", "mnist", "1 x 28 x 28", "1 x 8 x 8"]);
    bench.fail("eval --model o.json --data pixels.npy", 2, &["pixels.npy", "1 x 8 x 8", "1 x 1 x 2"]);
    bench.fail("eval --model model --data nowhere", 1, &["--data", "nowhere"]);
    bench.fail("eval --model model --data nowhere.npy", 1, &["--data", "nowhere.npy"]);
    bench.fail("eval --model model --data between.npy", 1, &["between.npy", "0.25", "256 levels"]);
    bench.fail("eval --model model --data flat.npy", 1, &["flat.npy", "[N,C,H,W]", "[64]"]);
    bench.fail("eval --model model --data long.npy", 1, &["long.npy", "f64, f32 or u8"]);
    bench.fail("eval --model model --data text.npy", 1, &["text.npy", "f64, f32 or u8"]);
    bench.fail("eval --model model --data nan.npy", 1, &["nan.npy", "finite"]);
    bench.fail("eval --model model --data empty.npy", 1, &["empty.npy", "[0, 1, 8, 8]"]);
    bench.fail("eval --model model --data pixels.npy --labels own", 2, &["--labels own", "pixels.npy"]);
    bench.fail("eval --model o.json --labels own", 2, &["--labels own", "o.json"]);
    bench.fail("eval --model o.json --split test", 2, &["--split"]);
    bench.fail("eval --model model --data pixels.npy --split test", 2, &["--split", "pixels.npy"]);
    bench.fail(
        "eval --model model --data pixels.npy --steps-per-image 20",
        2,
        &["--steps-per-image 20", "19", "--all-steps"],
    );
    bench.fail("eval --steps-per-image 5 --all-steps", 2, &["--all-steps"]);
    bench.fail("eval --probes 5", 2, &["--ode"]);
    bench.fail("eval --limit 0", 2, &["--limit"]);
    bench.fail("eval --schedule cosine", 2, &["--schedule"]);
    bench.fail("eval --plot x.png", 2, &[".svg"]);
    bench.fail("eval --limit 1 --plot nowhere/x.svg", 1, &["nowhere/x.svg"]);
    bench.fail("eval --model point.json --limit 3", 1, &["point.json", "point has no density"]);
    bench.fail("eval --model nowhere", 1, &["nowhere"]);
}
