//! The options of guidance of `tweedie sample`: what they draw, what it costs, and what is refused.

mod common;

use common::{Bench, ddpm_config, network, object, residual_config, write_residual};
use serde_json::{Map, Value, json};
use tweedie_checkpoint::TensorFile;

/// A bench with a mixture of two labels in `oracle.json`, a wider one in `weak.json` and the same without labels in `free.json`.
fn oracles() -> Bench {
    let bench = Bench::new();
    let write = |name: &str, width: f64, labelled: bool| {
        let component = |weight: f64, mean: Value, std: f64, label: usize| {
            let mut component = object(json!({"weight": weight, "mean": mean, "std": std * width}));
            if labelled {
                component.insert("label".into(), label.into());
            }
            component
        };
        let components = vec![
            component(1.0, json!([0.8, -0.3, 0.4]), 0.3, 0),
            component(2.0, json!([-0.6, 0.5, -0.7]), 0.4, 1),
            component(1.0, json!([0.1, 0.9, 0.2]), 0.2, 1),
        ];
        let oracle = json!({"kind": "gaussian-mixture", "shape": [1, 1, 3], "components": components});
        std::fs::write(bench.path(name), oracle.to_string()).unwrap();
    };
    write("oracle.json", 1.0, true);
    write("weak.json", 1.6, true);
    write("free.json", 1.0, false);
    bench
}

/// The images and the description of a run.
fn draw(bench: &Bench, options: &str) -> (Vec<f32>, Value) {
    let text = bench.succeed(&format!("sample --out x.safetensors --json {options}"));
    (bench.tensor("x.safetensors", "sample").1, serde_json::from_str(&text).unwrap())
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn conventions_and_neutral_values_agree() {
    let bench = oracles();
    let of = |options: &str| {
        draw(&bench, &format!("--model oracle.json --labels 0,1,none --per-label 4 --steps 8 {options}")).0
    };
    let (plain, guided) = (of(""), of("--guidance 3"));
    assert!(largest_difference(&plain, &guided) > 0.01);
    assert_eq!(of("--guidance-weight 2"), guided);
    assert_eq!(of("--guidance 1"), plain);
    // An image without a label is not guided.
    assert_eq!(plain[24..], guided[24..]);
    for neutral in [
        "--guidance 3 --guidance-interval 0,inf",
        "--guidance 3 --guidance-rescale 0",
        "--guidance 3 --guide weak.json --guide-scale 1",
        "--guidance 3 --guide oracle.json --guide-scale 4",
        "--guidance 3 --classifier oracle --classifier-scale 0",
        "--guidance 3 --negative-labels none",
        "--guidance 3 --negative-labels none,none,none",
    ] {
        assert_eq!(of(neutral), guided, "{neutral}");
    }
    for nothing in [
        "--guidance 3 --guidance-interval 1e6,inf",
        "--guidance 3 --negative-labels 0,1,none",
        "--guide oracle.json --guide-scale 2",
    ] {
        assert_eq!(of(nothing), plain, "{nothing}");
    }
    for something in [
        "--guidance 3 --guidance-interval 0.5,5",
        "--guidance 3 --guidance-rescale 0.7",
        "--guidance 3 --negative-labels 1",
        "--guidance 3 --negative-labels 1,0,0",
        "--guidance 3 --guide weak.json --guide-scale 2",
        "--guidance 3 --dynamic-threshold 0.9",
        "--guidance 3 --dynamic-threshold 0.9 --threshold-max 1.01",
        "--guidance 3 --classifier oracle",
    ] {
        assert!(largest_difference(&of(something), &guided) > 1e-4, "{something}");
    }
}

/// The exact classifier on top of the unconditional model is classifier-free guidance, and so on a model without labels.
#[test]
fn the_exact_classifier_is_classifier_free_guidance() {
    let bench = oracles();
    for sampler in ["ddim", "ddpm", "dpm++2m", "heun", "euler-ancestral"] {
        let of = |options: &str| draw(&bench, &format!("--steps 10 --sampler {sampler} --seed 3 {options}")).0;
        let guided = of("--model oracle.json --labels 0,1 --per-label 3 --guidance 2.5");
        for options in [
            "--model oracle.json --labels 0,1 --per-label 3 --guidance 0 --classifier oracle --classifier-scale 2.5",
            "--model oracle.json --labels 0,1 --per-label 3 --classifier oracle.json --classifier-scale 1.5",
            "--model oracle.json --labels 0,1 --per-label 3 --guidance 2 --classifier oracle --classifier-scale 0.5",
            "--model free.json --labels 0,1 --per-label 3 --classifier oracle.json --classifier-scale 2.5",
        ] {
            let difference = largest_difference(&of(options), &guided);
            assert!(difference < 1e-4, "{sampler}, {options}: {difference}");
        }
    }
    // The form of the mean is another discretisation, which ddpm alone has; a model without labels takes the classifier's.
    let of = |options: &str| {
        draw(&bench, &format!("--model free.json --classifier oracle.json --sampler ddpm --steps 50 {options}")).0
    };
    let (score, mean) = (of("--classifier-form score"), of("--classifier-form mean"));
    assert_eq!(score.len(), 2 * 8 * 3);
    let apart = score.iter().zip(&mean).map(|(a, b)| (a - b).abs()).sum::<f32>() / 48.0;
    assert!(apart > 0.0 && apart < 0.3, "{apart}");
}

#[test]
fn calls_are_counted_and_batches_do_not_show() {
    let bench = oracles();
    let of = |options: &str| draw(&bench, &format!("--model oracle.json --steps 10 --train-steps 100 {options}"));
    for (options, model, guide, classifier) in [
        ("--labels 0,1", 10.0, 0.0, 0.0),
        ("--labels 0,1 --guidance 3", 20.0, 0.0, 0.0),
        // Those without a label need one call.
        ("--labels 0,none --guidance 3", 15.0, 0.0, 0.0),
        ("--labels 0,1 --guidance 3 --negative-labels 1", 15.0, 0.0, 0.0),
        ("--labels 0,1 --guidance 3 --sampler heun", 38.0, 0.0, 0.0),
        ("--labels 0,1 --guidance 3 --guidance-interval 1e6,inf", 10.0, 0.0, 0.0),
        ("--labels 0,1 --guidance 3 --guide weak.json --guide-scale 2", 20.0, 10.0, 0.0),
        ("--labels 0,1 --classifier oracle", 10.0, 0.0, 10.0),
        ("--labels 0,1 --guidance 3 --guidance-rescale 0.5", 20.0, 0.0, 0.0),
    ] {
        let (images, document) = of(&format!("{options} --per-label 3"));
        let calls = json!({"model": model, "guide": guide, "classifier_gradients": classifier});
        assert_eq!(document["calls_per_image"], calls, "{options}");
        for batch in [1, 4] {
            let (others, document) = of(&format!("{options} --per-label 3 --batch {batch} --threads 1"));
            assert_eq!((&others, &document["calls_per_image"]), (&images, &calls), "{options}, batch {batch}");
        }
    }
    // In an interval, those steps that lie in it are guided.
    let guided =
        of("--labels 0 --guidance 3 --guidance-interval 0.5,5").1["calls_per_image"]["model"].as_f64().unwrap();
    assert!(guided > 10.0 && guided < 20.0, "{guided}");
}

#[test]
fn files_tell_how_images_were_guided() {
    let bench = oracles();
    let options = "sample --model oracle.json --labels 0,1 --per-label 2 --steps 5 --guidance-weight 1.5 --negative-labels 1,none \
                   --guidance-interval 0.2,inf --guidance-rescale 0.5 --dynamic-threshold 0.9 --threshold-max 2 \
                   --guide weak.json --guide-scale 1.5 --classifier oracle --classifier-scale 0.5 --classifier-sigma-max 3";
    let done = bench.run(&format!("{options} --out x.safetensors"));
    assert_eq!(done.code, 0, "{}", done.stderr);
    for part in ["guidance 2.5", "guide 1.5", "classifier 0.5 (score)", "calls of the model", "gradients"] {
        assert!(done.stderr.contains(part), "{}", done.stderr);
    }
    let file = TensorFile::open(bench.path("x.safetensors")).unwrap();
    let parameters: Value = serde_json::from_str(&file.metadata()["parameters"]).unwrap();
    let expected = json!({
        "guidance": 2.5,
        "negative_labels": [1, 1, null, null],
        "guidance_interval": [0.2, null],
        "guidance_rescale": 0.5,
        "dynamic_threshold": {"percentile": 0.9, "max": 2.0},
        "guide": {"model": "weak.json", "scale": 1.5},
        "classifier": {"model": "oracle.json", "scale": 0.5, "form": "score", "sigma_max": 3.0},
    });
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&parameters[key], value, "{key}");
    }
    let (_, plain) = draw(&bench, "--model oracle.json --labels 0 --steps 2");
    for key in ["negative_labels", "guidance_interval", "guidance_rescale", "dynamic_threshold", "guide", "classifier"]
    {
        assert_eq!(plain[key], Value::Null, "{key}");
    }
}

#[test]
fn contradictions_name_both_options() {
    let bench = oracles();
    let one = "sample --model oracle.json --labels 0,1,1 --steps 2 --out y.npy";
    for (options, parts) in [
        ("--guidance 2 --guidance-weight 1", ["--guidance <G>", "--guidance-weight"]),
        ("--guide weak.json", ["--guide-scale", "--guide"]),
        ("--guide-scale 2", ["--guide-scale", "--guide"]),
        ("--classifier-scale 2", ["--classifier-scale", "--classifier"]),
        ("--threshold-max 2", ["--threshold-max", "--dynamic-threshold"]),
        ("--guidance 2 --guidance-interval 5,1", ["--guidance-interval", "lower end"]),
        ("--guidance 2 --guidance-rescale 2", ["--guidance-rescale", "from 0 to 1"]),
        ("--dynamic-threshold 0", ["--dynamic-threshold", "above 0"]),
        ("--classifier oracle --classifier-form x0", ["--classifier-form", "mean"]),
        ("--negative-labels 1", ["--negative-labels", "--guidance"]),
        ("--guidance 1 --negative-labels 1", ["--negative-labels", "--guidance 1"]),
        ("--guidance 2 --negative-labels 7", ["--negative-labels 7", "0-1"]),
        ("--guidance 2 --negative-labels 0,1", ["--negative-labels 0,1 has 2 entries", "--labels 3"]),
        ("--guidance-interval 0.1,1", ["--guidance-interval 0.1,1", "no guidance"]),
        ("--guidance-rescale 0.5", ["--guidance-rescale 0.5", "no guidance"]),
        (
            "--sampler ddpm --classifier oracle --classifier-form mean --guidance-rescale 0.5",
            ["--guidance-rescale 0.5", "--classifier-form mean"],
        ),
        ("--classifier oracle --classifier-form mean", ["--classifier-form mean", "ddim"]),
    ] {
        bench.fail(&format!("{one} {options}"), 2, &parts);
    }
    let free = "sample --model free.json --steps 2 --out y.npy";
    bench.fail(&format!("{free} --guidance 2"), 2, &["--guidance 2", "no labels"]);
    bench.fail(&format!("{free} --classifier oracle"), 2, &["--classifier", "no label"]);
    bench.fail(&format!("{free} --classifier oracle.json --labels 4"), 2, &["--labels 4", "0-1"]);
    let whole = "sample --model oracle.json --steps 2 --out y.npy --classifier oracle";
    bench.fail(whole, 2, &["--classifier", "--labels from 0-1"]);
    bench.fail(&format!("{one} --guide free.json --guide-scale 2"), 2, &["--guide free.json", "label 0"]);
    bench.fail(&format!("{one} --guide nowhere --guide-scale 2"), 1, &["nowhere"]);
    let small = json!({"kind": "gaussian-mixture", "shape": [1, 1, 2], "components": [
        {"weight": 1, "mean": 0, "std": 1, "label": 0}, {"weight": 1, "mean": 1, "std": 1, "label": 1}]});
    std::fs::write(bench.path("small.json"), small.to_string()).unwrap();
    bench.fail(
        &format!("{one} --guide small.json --guide-scale 2"),
        2,
        &["--guide small.json", "[1, 1, 2]", "[1, 1, 3]"],
    );
    bench.fail(&format!("{one} --classifier small.json"), 2, &["--classifier small.json", "[1, 1, 2]", "[1, 1, 3]"]);
}

/// Networks guide each other if they are of one process, whatever each predicts.
#[test]
fn networks_guide_networks() {
    let bench = Bench::new();
    let write = |name: &str, config: &Map<String, Value>, seed: f32, change: &dyn Fn(&mut Value)| {
        let mut scheduler = ddpm_config();
        scheduler["clip_sample"] = false.into();
        change(&mut scheduler);
        let model = network(config, |_, values| values.iter_mut().for_each(|v| *v *= seed));
        write_residual(&bench.path(name), &model, &scheduler);
    };
    write("model", &residual_config(), 1.0, &|_| {});
    write("weak", &residual_config(), 0.9, &|s| s["prediction_type"] = "v_prediction".into());
    write("same", &residual_config(), 0.9, &|_| {});
    write("longer", &residual_config(), 0.9, &|s| s["num_train_timesteps"] = 21.into());
    write("other", &residual_config(), 0.9, &|s| s["beta_end"] = 0.31.into());
    let mut config = residual_config();
    config.remove("_tweedie_null_class");
    write("labels", &config, 1.0, &|_| {});
    let one = "--model model --labels 0,2 --per-label 2 --sampler ddim --steps 4";
    let guided = |options: &str| draw(&bench, &format!("{one} {options}"));
    let (plain, _) = guided("");
    let (by_weak, document) = guided("--guide weak --guide-scale 1.5");
    assert_eq!(document["calls_per_image"], json!({"model": 4.0, "guide": 4.0, "classifier_gradients": 0.0}));
    assert_ne!(by_weak, plain);
    // A guide is read by its own prediction and not that of the model.
    assert_ne!(guided("--guide same --guide-scale 1.5").0, by_weak);
    assert_eq!(guided("--guide model --guide-scale 1.5").0, plain);
    assert_eq!(guided("--guide weak --guide-scale 1.5 --batch 3 --threads 1").0, by_weak);
    let fails = |options: &str, parts: &[&str]| bench.fail(&format!("sample {one} --out y.npy {options}"), 2, parts);
    fails("--guide longer --guide-scale 2", &["--guide longer", "21 steps", "20"]);
    fails("--guide other --guide-scale 2", &["--guide other", "alphas_cumprod", "step"]);
    fails("--classifier oracle", &["--classifier oracle", "network"]);
    bench.fail(&format!("sample {one} --out y.npy --classifier weak"), 1, &["weak", "UNet2DModel", "no classifier"]);
    bench.fail(
        "sample --model model --labels none --guide labels --guide-scale 2 --out y.npy",
        2,
        &["--guide labels", "label none"],
    );
    // Without a null condition a negative label will do.
    let labels = "sample --model labels --labels 0 --sampler ddim --steps 2 --out y.safetensors --guidance 2";
    bench.fail(labels, 2, &["--guidance 2", "--negative-labels"]);
    bench.succeed(&format!("{labels} --negative-labels 1"));
}
