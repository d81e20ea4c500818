//! `tweedie sample`: what it draws, and what it refuses.

mod common;

use common::{Bench, ddpm_config, network, object, residual_config, write_residual, write_single};
use serde_json::{Value, json};
use tweedie_checkpoint::{Dtype, Tensor, default_metadata, save_safetensors};
use tweedie_unet::{Init, Model};

/// A bench with a conditional residual network (three labels) in `model`.
fn bench() -> Bench {
    let bench = Bench::new();
    write_residual(&bench.path("model"), &network(&residual_config(), |_, _| {}), &ddpm_config());
    bench
}

fn write(bench: &Bench, file: &str, tensors: &[(&str, &[usize], &[f32])]) {
    let tensors: Vec<Tensor<'_>> = tensors.iter().map(|(name, shape, data)| Tensor::f32(name, shape, data)).collect();
    save_safetensors(bench.path(file), &tensors, Dtype::F32, &default_metadata()).unwrap();
}

#[test]
fn images_depend_on_nothing_but_seed_and_number() {
    let bench = bench();
    let draw = |options: &str| {
        bench
            .succeed(&format!("sample --model model --sampler ddim --eta 0.5 --steps 4 --out x.safetensors {options}"));
        bench.tensor("x.safetensors", "sample")
    };
    let (shape, reference) = draw("--labels 0,2,1,none --count 6 --seed 3");
    assert_eq!(shape, [6, 1, 8, 8]);
    assert_eq!(draw("--labels 0,2,1,none --count 6 --seed 3 --threads 1").1, reference);
    assert_eq!(draw("--labels 0,2,1,none --count 6 --seed 3 --threads 3 --batch 4").1, reference);
    assert_eq!(draw("--labels 0,2,1,none --count 6 --seed 3 --batch 1").1, reference);
    assert_eq!(draw("--labels 0,2,1,none --count 2 --seed 3").1, reference[..2 * 64]);
    assert_ne!(draw("--labels 0,2,1,none --count 6 --seed 4").1, reference);
    // The neighbours of an image may have other labels.
    assert_eq!(draw("--labels 0 --count 1 --seed 3").1, reference[..64]);
}

#[test]
fn labels_come_label_by_label_or_in_turn() {
    let bench = bench();
    let labels = |options: &str| {
        bench.succeed(&format!("sample --model model --sampler ddim --steps 1 --out x.safetensors {options}"));
        let file = tweedie_checkpoint::TensorFile::open(bench.path("x.safetensors")).unwrap();
        file.read_i64("labels").unwrap()
    };
    assert_eq!(labels("--labels 0-1,none --per-label 2"), [0, 0, 1, 1, -1, -1]);
    assert_eq!(labels("--labels 0-1,none --count 5"), [0, 1, -1, 0, 1]);
    // One image for each entry of the list, and eight of each label where none is listed.
    assert_eq!(labels("--labels 2,2,1"), [2, 2, 1]);
    assert_eq!(labels("--labels 0,2"), [0, 2]);
    assert_eq!(labels("--labels 1"), [1]);
    assert_eq!(labels("--labels none,1"), [-1, 1]);
    assert_eq!(labels("--labels none"), [-1; 16]);
    assert_eq!(labels("--batch 24"), [[0; 8], [1; 8], [2; 8]].concat());
}

#[test]
fn saved_noise_replays() {
    let bench = bench();
    let scheduler = |variance: &str| {
        let mut config = ddpm_config();
        config["variance_type"] = variance.into();
        std::fs::write(bench.path("model").join("scheduler/scheduler_config.json"), config.to_string()).unwrap();
    };
    for (variance, sampler, draws) in [
        // A move to abar = 1 adds no noise, but for the large variance where it does not start at step 1.
        ("fixed_small", "ddpm", 4),
        ("fixed_small", "ddpm --spacing trailing", 4),
        ("fixed_large", "ddpm", 4),
        ("fixed_large", "ddpm --spacing trailing", 5),
        ("fixed_small", "ddim --eta 1", 4),
        ("fixed_small", "ddim --eta 0", 0),
        ("fixed_small", "euler-ancestral", 4),
        ("fixed_small", "dpm++2m-sde", 4),
        ("fixed_small", "heun", 0),
        ("fixed_small", "dpm++3m", 0),
    ] {
        scheduler(variance);
        let options = format!("--model model --labels 0,1 --per-label 2 --steps 5 --sampler {sampler}");
        bench.succeed(&format!("sample {options} --seed 9 --batch 3 --save-noise z.safetensors --out a.npy"));
        bench.succeed(&format!("sample {options} --seed 1 --noise z.safetensors --out b.npy"));
        assert_eq!(bench.bytes("a.npy"), bench.bytes("b.npy"), "{sampler}");
        let (initial, values) = bench.tensor("z.safetensors", "initial");
        assert_eq!(initial, [4, 1, 8, 8]);
        assert!(values.iter().any(|v| *v != values[0]));
        assert_eq!(bench.tensor("z.safetensors", "steps").0, [draws, 4, 1, 8, 8], "{variance}, {sampler}");
    }
    // Without a number of images, there are as many as the noise is for.
    bench.succeed(
        "sample --model model --labels 0,1 --steps 5 --sampler ddim --noise z.safetensors --out c.safetensors",
    );
    assert_eq!(bench.tensor("c.safetensors", "sample").0, [4, 1, 8, 8]);
}

/// The default type of numpy's numbers.
#[test]
fn noise_may_be_doubles() {
    let bench = bench();
    let options = "sample --model model --labels 0,1 --steps 3 --sampler ddpm";
    bench.succeed(&format!("{options} --seed 5 --save-noise z.safetensors --out a.npy"));
    let (mut header, mut data) = (json!({}), Vec::new());
    for name in ["initial", "steps"] {
        let (shape, values) = bench.tensor("z.safetensors", name);
        let start = data.len();
        data.extend(values.iter().flat_map(|v| f64::from(*v).to_le_bytes()));
        header[name] = json!({"dtype": "F64", "shape": shape, "data_offsets": [start, data.len()]});
    }
    let header = header.to_string().into_bytes();
    let file = [(header.len() as u64).to_le_bytes().to_vec(), header, data].concat();
    std::fs::write(bench.path("doubles.safetensors"), file).unwrap();
    bench.succeed(&format!("{options} --seed 6 --noise doubles.safetensors --out b.npy"));
    assert_eq!(bench.bytes("a.npy"), bench.bytes("b.npy"));
}

#[test]
fn raw_outputs_hold_the_same_numbers() {
    let bench = bench();
    for suffix in ["npy", "safetensors", "png"] {
        bench.succeed(&format!("sample --model model --per-label 2 --steps 3 --out x.{suffix}"));
    }
    let (shape, values) = bench.tensor("x.safetensors", "sample");
    assert_eq!(shape, [6, 1, 8, 8]);
    let npy = bench.bytes("x.npy");
    assert_eq!(&npy[..6], b"\x93NUMPY");
    let header_end = 10 + usize::from(u16::from_le_bytes([npy[8], npy[9]]));
    let header = String::from_utf8_lossy(&npy[10..header_end]);
    assert!(header.contains("'<f4'") && header.contains("False") && header.contains("(6, 1, 8, 8)"), "{header}");
    let raw: Vec<f32> =
        npy[header_end..].chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    assert_eq!(raw, values);
}

#[test]
fn a_png_shows_the_images_and_tells_how_they_were_made() {
    let bench = bench();
    bench.succeed("sample --model model --labels 2,0 --per-label 3 --steps 4 --seed 7 --guidance 1.5 --out x.png");
    bench.succeed(
        "sample --model model --labels 2,0 --per-label 3 --steps 4 --seed 7 --guidance 1.5 --out x.safetensors",
    );
    let (_, values) = bench.tensor("x.safetensors", "sample");
    let mut reader = png::Decoder::new(std::io::Cursor::new(bench.bytes("x.png"))).read_info().unwrap();
    let mut rgb = vec![0; reader.output_buffer_size().unwrap()];
    reader.next_frame(&mut rgb).unwrap();
    let info = reader.info();
    let text = info.uncompressed_latin1_text.iter().find(|t| t.keyword == "parameters").unwrap();
    let parameters: Value = serde_json::from_str(&text.text).unwrap();
    assert_eq!(parameters["model"], "model");
    assert_eq!(parameters["seed"], 7);
    assert_eq!(parameters["labels"], json!([2, 2, 2, 0, 0, 0]));
    assert_eq!(parameters["sampler"], "ddpm");
    assert_eq!(parameters["steps"], 4);
    assert_eq!(parameters["spacing"], "leading");
    assert_eq!(parameters["eta"], Value::Null);
    assert_eq!(parameters["guidance"], 1.5);
    let process = json!({
        "kind": "table", "schedule": "linear", "beta_start": 0.001, "beta_end": 0.3, "betas": null, "train_steps": 20,
        "rescale_betas_zero_snr": false, "clip": {"range": 1.0}, "steps_offset": 0, "variance_type": "fixed_small",
        "set_alpha_to_one": null, "use_clipped_model_output": null,
    });
    assert_eq!(parameters["process"], process);
    // 8 x 8 images twelve times enlarged: two columns of three, below a header.
    let (cell, gap, margin, header) = (96, 3, 8, 24);
    assert_eq!((info.width, info.height), (2 * cell + gap + 2 * margin, header + 3 * cell + 2 * gap + 2 * margin));
    for (i, image) in values.chunks_exact(64).enumerate() {
        for (j, value) in image.iter().enumerate() {
            let x = margin as usize + (i / 3) * (cell + gap) as usize + 12 * (j % 8) + 6;
            let y = (margin + header) as usize + (i % 3) * (cell + gap) as usize + 12 * (j / 8) + 6;
            let expected = ((value.clamp(-1.0, 1.0) + 1.0) * 127.5).round() as i32;
            let found = i32::from(rgb[3 * (y * info.width as usize + x)]);
            assert!((found - expected).abs() <= 1, "image {i}, pixel {j}: {found} instead of {expected}");
        }
    }
}

#[test]
fn options_change_the_scheduler_and_the_config_decides_the_rest() {
    let bench = bench();
    let document = |options: &str| -> Value {
        let text = bench.succeed(&format!("sample --model model --count 1 --out x.npy --json {options}"));
        serde_json::from_str(&text).unwrap()
    };
    let own = document("");
    assert_eq!((&own["sampler"], &own["steps"], &own["spacing"]), (&json!("ddpm"), &json!(20), &json!("leading")));
    assert_eq!((&own["guidance"], &own["shape"]), (&json!(1.0), &json!([1, 1, 8, 8])));
    let other =
        document("--sampler ddim --steps 5 --spacing trailing --eta 0.25 --prediction v --guidance 1 --labels 1");
    assert_eq!((&other["sampler"], &other["steps"], &other["eta"]), (&json!("ddim"), &json!(5), &json!(0.25)));
    assert_eq!((&other["spacing"], &other["prediction"]), (&json!("trailing"), &json!("v")));
    assert_eq!((&other["guidance"], &other["labels"]), (&json!(1.0), &json!([1])));
    assert_eq!(document("--sampler ddim")["steps"], 20);
    for (alias, name) in [("epsilon", "eps"), ("sample", "x0"), ("v_prediction", "v")] {
        assert_eq!(document(&format!("--steps 1 --prediction {alias}"))["prediction"], name);
    }
}

#[test]
fn the_config_of_a_network_recommends_the_guidance() {
    let bench = bench();
    let path = bench.path("model").join("unet/config.json");
    let own: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let recommend = |scale: Value| {
        let mut config = own.clone();
        config["_tweedie_guidance"] = scale;
        std::fs::write(&path, config.to_string()).unwrap();
    };
    let guidance = |options: &str| -> Value {
        let text = bench.succeed(&format!("sample --count 1 --steps 1 --out x.npy --json {options}"));
        serde_json::from_str::<Value>(&text).unwrap()["guidance"].clone()
    };
    recommend(json!(1.75));
    assert_eq!(guidance("--model model"), 1.75);
    assert_eq!(guidance("--model model --guidance 3"), 3.0);
    assert_eq!(guidance("--model model --labels none"), 1.0);
    bench.succeed("convert --model model --out converted");
    assert_eq!(guidance("--model converted"), 1.75);
    for wrong in [json!("2.5"), json!(null), json!([2.5])] {
        recommend(wrong);
        bench.fail("sample --model model --out y.npy", 1, &["config.json", "_tweedie_guidance"]);
    }
}

#[test]
fn scheduler_files_with_values_that_make_no_process_are_refused() {
    let bench = bench();
    let scheduler = bench.path("model").join("scheduler/scheduler_config.json");
    for (key, value) in [
        ("beta_start", json!(1.5)),
        ("trained_betas", json!([0.1, 0.2])),
        ("num_train_timesteps", json!(0)),
        // With every step of the process there is no room for an offset.
        ("steps_offset", json!(1)),
    ] {
        let mut config = ddpm_config();
        config[key] = value;
        std::fs::write(&scheduler, config.to_string()).unwrap();
        bench.fail("sample --model model --out x.npy", 1, &["scheduler_config.json", key]);
    }
}

#[test]
fn a_book_directory_is_drawn_from_without_a_scheduler() {
    let bench = Bench::new();
    let config = object(json!({"_class_name": "UNetCond"}));
    let mut model = Model::from_config(&config).unwrap();
    model.initialise(Init::PyTorch, 1);
    write_single(&bench.path("book"), &model, None);
    let text = bench.succeed("sample --model book --labels 3,7 --per-label 1 --steps 2 --out x.safetensors --json");
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&document["sampler"], &document["spacing"]), (&json!("ddim"), &json!("trailing")));
    assert_eq!((&document["prediction"], &document["guidance"]), (&json!("eps"), &json!(1.0)));
    assert_eq!(bench.tensor("x.safetensors", "sample").0, [2, 1, 28, 28]);
    bench.succeed(
        "sample --model book --labels none --count 1 --steps 1 --train-steps 10 --schedule cosine --out y.npy",
    );
}

#[test]
fn the_bundled_model_needs_no_option() {
    let bench = Bench::new();
    let done = bench.run("sample --labels 0,none --per-label 1 --steps 1");
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(done.stderr.contains("sample.png"), "{}", done.stderr);
    assert_eq!(done.stdout, "");
    assert_eq!(&bench.bytes("sample.png")[1..4], b"PNG");
    let quiet = bench.run("sample --labels 0 --per-label 1 --steps 1 --quiet --out y.png");
    assert_eq!((quiet.code, quiet.stderr.as_str()), (0, ""));
}

#[test]
fn an_oracle_draws_its_own_distribution() {
    let bench = Bench::new();
    let oracle = json!({
        "kind": "gaussian-mixture", "shape": [1, 2, 2], "components": [
            {"weight": 3.0, "mean": 1.0, "std": 0.0, "label": 4},
            {"weight": 1.0, "mean": [-1.0, -1.0, 0.5, 0.5], "std": 0.0, "label": 6},
        ]
    });
    std::fs::write(bench.path("oracle.json"), oracle.to_string()).unwrap();
    let draw = |options: &str| {
        bench.succeed(&format!("sample --model oracle.json --out x.safetensors {options}"));
        bench.tensor("x.safetensors", "sample").1
    };
    let near = |image: &[f32], mean: [f32; 4]| image.iter().zip(mean).all(|(v, m)| (v - m).abs() < 1e-3);
    for image in draw("--labels 6 --count 3 --steps 20").chunks_exact(4) {
        assert!(near(image, [-1.0, -1.0, 0.5, 0.5]), "{image:?}");
    }
    for name in ["euler", "euler-ancestral", "heun", "dpm++2m", "dpm++3m", "dpm++3m-exact", "dpm++2m-sde"] {
        for image in draw(&format!("--labels 4 --count 2 --sampler {name}")).chunks_exact(4) {
            assert!(near(image, [1.0; 4]), "{name}: {image:?}");
        }
    }
    bench.fail("sample --model oracle.json --sampler heun --eta 1 --out y.npy", 2, &["--eta", "heun"]);
    let values = draw("--count 400 --sampler ddpm --steps 30 --spacing trailing --train-steps 100 --beta-end 0.2");
    let first = values.chunks_exact(4).filter(|image| near(image, [1.0; 4])).count();
    let second = values.chunks_exact(4).filter(|image| near(image, [-1.0, -1.0, 0.5, 0.5])).count();
    assert_eq!(first + second, 400);
    // Three standard deviations of a binomial of 400 draws with p = 3/4 are 26.
    assert!((274..=326).contains(&first), "{first} of 400");
    let text = bench.succeed("sample --model oracle.json --count 1 --out x.npy --json");
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["steps"], 25);
    bench.fail("sample --model oracle.json --labels 5 --out y.npy", 2, &["--labels 5", "4,6"]);
    let cosine = "sample --model oracle.json --schedule cosine --out y.npy";
    bench.fail(&format!("{cosine} --beta-start 0.1"), 2, &["--beta-start", "cosine"]);
    bench.fail(&format!("{cosine} --beta-end 0.1"), 2, &["--beta-end", "cosine"]);
    std::fs::write(bench.path("bad.json"), "{\"kind\": \"gaussian-mixture\", \"shape\": [1, 1, 1]}").unwrap();
    bench.fail("sample --model bad.json --out y.npy", 1, &["bad.json", "components"]);
}

/// A covariance matrix without width in one direction: every sample lies on the line, which the exact denoiser finds; a list
/// of standard deviations may hold a 0 too.
#[test]
fn oracles_have_covariances() {
    let bench = Bench::new();
    let oracle = |component: Value| {
        let text = json!({"kind": "gaussian-mixture", "shape": [1, 1, 2], "components": [component]}).to_string();
        std::fs::write(bench.path("oracle.json"), text).unwrap();
    };
    let draw = || {
        bench.succeed("sample --model oracle.json --out x.safetensors --count 200 --steps 10");
        bench.tensor("x.safetensors", "sample").1
    };
    oracle(json!({"weight": 1, "mean": [0.5, -1.0], "covariance": [[1.0, 2.0], [2.0, 4.0]]}));
    let values = draw();
    for pair in values.chunks_exact(2) {
        assert!((pair[1] + 1.0 - 2.0 * (pair[0] - 0.5)).abs() < 1e-3, "{pair:?}");
    }
    assert!(values.chunks_exact(2).any(|pair| pair[0] > 1.2) && values.chunks_exact(2).any(|pair| pair[0] < -0.2));
    oracle(json!({"weight": 1, "mean": 0.25, "std": [0.0, 1.0]}));
    let values = draw();
    assert!(values.chunks_exact(2).all(|pair| (pair[0] - 0.25).abs() < 1e-3));
    assert!(values.chunks_exact(2).any(|pair| (pair[1] - 0.25).abs() > 0.5));
    for (component, parts) in [
        (json!({"weight": 1, "mean": 0, "std": 1, "covariance": [[1, 0], [0, 1]]}), ["component 0", "both"]),
        (json!({"weight": 1, "mean": 0}), ["component 0", "neither"]),
        (json!({"weight": 1, "mean": 0, "covariance": [[1, 2], [2, 1]]}), ["component 0", "positive semidefinite"]),
        (json!({"weight": 1, "mean": 0, "covariance": [[1, 2], [0, 5]]}), ["component 0", "symmetric"]),
        (json!({"weight": 1, "mean": 0, "std": [1, 1, 1]}), ["component 0", "2 numbers"]),
        (json!({"weight": 1, "mean": 0, "std": "wide"}), ["oracle.json", "the std should be a number"]),
    ] {
        oracle(component);
        bench.fail("sample --model oracle.json --out y.npy", 1, &parts);
    }
}

#[test]
fn wrong_command_lines_end_with_2() {
    let bench = bench();
    for (options, part) in [
        ("--labels 3-", "3-"),
        ("--labels a", "\"a\""),
        ("--labels 2-0", "backwards"),
        ("--sampler eular", "ddim"),
        ("--spacing even", "trailing"),
        ("--steps 0", "--steps"),
        ("--count 0", "--count"),
        ("--per-label 2 --count 2", "--count"),
        ("--out x.jpg", ".png"),
        ("--out x", ".npy"),
        ("--noise z.npy", ".safetensors"),
        ("--eta -1", "--eta"),
        ("--sampler ddim --eta 1.5", "--eta"),
        ("--out x.safetensors --save-noise ./x.safetensors", "--save-noise"),
        ("--guidance nan", "--guidance"),
        ("--prediction noise", "eps"),
        ("--seed -1", "--seed"),
        ("--threads 0", "--threads"),
        ("--threads 1000000", "--threads"),
        ("--count 4000000 --out x.npy --save-noise z.safetensors", "--save-noise"),
        ("--nonsense", "--nonsense"),
        // These are wrong for this model.
        ("--labels 3", "--labels 3: the model model has no such label; its labels are 0-2"),
        ("--steps 21", "20"),
        ("--eta 0.5", "ddpm"),
        ("--schedule cosine", "scheduler_config.json"),
        ("--count 99999999999", "too many"),
    ] {
        bench.fail(&format!("sample --model model {options}"), 2, &[part]);
    }
    bench.fail("sampel", 2, &["sample"]);
}

#[test]
fn models_that_cannot_be_used_end_with_1() {
    let bench = bench();
    bench.fail("sample --model nowhere", 1, &["nowhere", "there is no such directory"]);
    bench.fail("sample --model model --out nowhere/x.png", 1, &["nowhere/x.png", "no directory nowhere"]);
    bench.fail("sample --model model/unet/config.json", 1, &["UNet2DModel", "give the directory"]);
    let remove = |name: &str| std::fs::remove_file(bench.path("model").join(name)).unwrap();
    let weights = bench.path("model").join("unet/diffusion_pytorch_model.safetensors");
    let pickle = bench.path("model").join("unet/diffusion_pytorch_model.bin");
    let intact = std::fs::read(&weights).unwrap();

    std::fs::write(&pickle, [0x80, 2]).unwrap();
    remove("unet/diffusion_pytorch_model.safetensors");
    bench.fail("sample --model model", 1, &["diffusion_pytorch_model.bin", "pickle", "safe_serialization"]);
    std::fs::write(&weights, &intact[..intact.len() / 2]).unwrap();
    bench.fail("sample --model model", 1, &["diffusion_pytorch_model.safetensors"]);
    std::fs::write(&weights, &intact).unwrap();

    let scheduler = bench.path("model").join("scheduler/scheduler_config.json");
    for (config, parts) in [
        (json!({"_class_name": "DDPMScheduler", "beta_stat": 0.1}), ["scheduler_config.json", "beta_stat"]),
        (json!({"_class_name": "DPMSolverSDEScheduler"}), ["DPMSolverSDEScheduler", "--sampler"]),
        (json!({"_class_name": "FlowMatchEulerDiscreteScheduler"}), ["FlowMatchEuler", "DDIMScheduler"]),
    ] {
        std::fs::write(&scheduler, config.to_string()).unwrap();
        bench.fail("sample --model model", 1, &parts);
    }
    std::fs::write(&scheduler, json!({"_class_name": "DPMSolverSDEScheduler"}).to_string()).unwrap();
    bench.succeed("sample --model model --sampler ddim --steps 1 --out x.npy");
}

#[test]
fn samplers_have_options_of_their_own() {
    let bench = bench();
    let draw = |options: &str| {
        bench.succeed(&format!("sample --model model --count 2 --steps 6 --out x.safetensors {options}"));
        bench.tensor("x.safetensors", "sample").1
    };
    assert_eq!(draw("--sampler dpm-solver2"), draw("--sampler kdpm2"));
    let pairs = [
        ("--sampler lms", "--sampler lms --order 2"),
        ("--sampler euler", "--sampler euler --churn 3"),
        ("--sampler heun --churn 3", "--sampler heun --churn 3 --s-noise 1.1"),
        ("--sampler heun --churn 3", "--sampler heun --churn 3 --s-tmin 0.5 --s-tmax 2"),
        ("--sampler euler", "--sampler euler --sigmas karras"),
        ("--sampler euler --sigmas exponential", "--sampler euler --sigmas beta"),
        ("--sampler ddim --spacing linspace", "--sampler ddim --spacing linspace --compat"),
        ("--sampler euler --churn 3", "--sampler euler --churn 3 --compat"),
    ];
    for (one, other) in pairs {
        let (one_result, other_result) = (draw(one), draw(other));
        assert!(one_result.iter().chain(&other_result).all(|v| v.is_finite()), "{one}, {other}");
        assert_ne!(one_result, other_result, "{one}, {other}");
    }
    // The noise of a stochastic run is that of its file.
    let saved = draw("--sampler euler --churn 3 --save-noise z.safetensors");
    assert_eq!(draw("--sampler euler --churn 3 --noise z.safetensors --seed 9"), saved);
    assert_eq!(draw("--sampler euler --churn 0"), draw("--sampler euler --compat"));
    for (options, parts) in [
        ("--sampler ddim --churn 3", ["--churn", "euler and heun"]),
        ("--sampler euler --order 2", ["--order", "lms"]),
        ("--sampler lms --order 5", ["--order 5", "1 to 4"]),
        ("--sampler euler --s-tmin 1", ["--churn", "--s-tmin"]),
        ("--sampler euler --churn -1", ["--churn", "not negative"]),
        ("--sampler ddim --sigmas karras", ["--sigmas karras", "ddim"]),
        ("--sampler euler --sigmas even", ["--sigmas", "karras"]),
    ] {
        bench.fail(&format!("sample --model model --out x.npy {options}"), 2, &parts);
    }
}

#[test]
fn damaged_weights_leave_no_file() {
    let bench = Bench::new();
    let nan = network(&residual_config(), |name, values| {
        if name == "conv_in.weight" {
            values[3] = f32::NAN;
        }
    });
    write_residual(&bench.path("nan"), &nan, &ddpm_config());
    bench.fail("sample --model nan --out x.npy", 1, &["conv_in.weight", "element 3 is NaN"]);
    // Finite weights whose product is not.
    let huge = network(&residual_config(), |name, values| {
        if name == "conv_out.weight" || name == "conv_norm_out.weight" {
            values.fill(3e38);
        }
    });
    write_residual(&bench.path("huge"), &huge, &ddpm_config());
    bench.fail("sample --model huge --out x.npy --save-noise z.safetensors", 1, &["not finite"]);
}

#[test]
fn noise_of_another_shape_is_refused() {
    let bench = bench();
    let options = "sample --model model --labels 0,1 --per-label 1 --steps 3 --out x.npy --noise z.safetensors";
    let zeros = vec![0.0; 4096];
    let image = 64;
    write(&bench, "z.safetensors", &[("initial", &[2, 1, 8, 4], &zeros[..64])]);
    bench.fail(options, 1, &["z.safetensors", "initial", "[2, 1, 8, 8]", "[2, 1, 8, 4]"]);
    write(&bench, "z.safetensors", &[("initial", &[3, 1, 8, 8], &zeros[..3 * image])]);
    bench.fail(options, 1, &["initial", "[2, 1, 8, 8]", "[3, 1, 8, 8]"]);
    write(&bench, "z.safetensors", &[("noise", &[2, 1, 8, 8], &zeros[..2 * image])]);
    bench.fail(options, 1, &["initial", "noise [2, 1, 8, 8]"]);
    write(&bench, "z.safetensors", &[("initial", &[2, 64], &zeros[..2 * image])]);
    bench.fail(options, 1, &["initial", "4 dimensions", "[2, 64]"]);
    write(&bench, "z.safetensors", &[("initial", &[2, 1, 8, 8], &zeros[..2 * image])]);
    bench.fail(options, 1, &["steps", "2 steps"]);
    let initial: (&str, &[usize], &[f32]) = ("initial", &[2, 1, 8, 8], &zeros[..2 * image]);
    write(&bench, "z.safetensors", &[initial, ("steps", &[1, 2, 1, 8, 8], &zeros[..2 * image])]);
    bench.fail(options, 1, &["steps", "[K, 2, 1, 8, 8] with K >= 2", "[1, 2, 1, 8, 8]"]);
    write(&bench, "z.safetensors", &[initial, ("steps", &[2, 2, 1, 8, 4], &zeros[..2 * image])]);
    bench.fail(options, 1, &["steps", "[2, 2, 1, 8, 4]"]);
    write(&bench, "z.safetensors", &[initial, ("steps", &[2, 2, 1, 8, 8], &zeros[..4 * image])]);
    bench.succeed(options);
    bench.succeed(&format!("{options} --sampler ddim"));
}

#[test]
fn guidance_needs_the_null_condition() {
    let bench = Bench::new();
    let mut config = residual_config();
    config.remove("_tweedie_null_class");
    write_residual(&bench.path("model"), &network(&config, |_, _| {}), &ddpm_config());
    bench.fail("sample --model model --guidance 2 --out x.npy", 2, &["--guidance 2", "null condition"]);
    bench.fail("sample --model model --labels none --out x.npy", 2, &["--labels none", "0-3"]);
    bench.succeed("sample --model model --guidance 1 --count 1 --steps 1 --out x.npy");
    config.remove("num_class_embeds");
    write_residual(&bench.path("plain"), &network(&config, |_, _| {}), &ddpm_config());
    bench.fail("sample --model plain --guidance 2 --out y.npy", 2, &["--guidance 2", "no labels"]);
    bench.fail("sample --model plain --labels 0 --out y.npy", 2, &["--labels 0", "no labels"]);
    bench.succeed("sample --model plain --steps 1 --out y.safetensors");
    assert_eq!(bench.tensor("y.safetensors", "sample").0, [16, 1, 8, 8]);
}

#[test]
fn images_of_unknown_size_need_the_option() {
    let bench = Bench::new();
    let mut config = residual_config();
    config.insert("sample_size".into(), Value::Null);
    write_single(&bench.path("model"), &network(&config, |_, _| {}), None);
    bench.fail("sample --model model --out x.npy", 1, &["sample_size", "--size"]);
    bench.fail("sample --model model --size 7 --out x.npy", 2, &["--size", "7 x 7", "multiples of 2"]);
    bench.succeed("sample --model model --size 4x6 --count 2 --steps 2 --out x.safetensors");
    assert_eq!(bench.tensor("x.safetensors", "sample").0, [2, 1, 4, 6]);
}
