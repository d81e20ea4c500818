//! `tweedie train-classifier`: what a run leaves, how it is resumed, who else opens its directory, and what is refused.

mod common;

use common::Bench;
use serde_json::Value;
use tweedie_checkpoint::{load_state, read_config};

/// 48 images of 8 x 8 with three labels and 12 test images as a folder of IDX files in `data`, and small networks.
fn bench() -> Bench {
    let bench = Bench::new();
    std::fs::create_dir(bench.path("data")).unwrap();
    for (name, count) in [("train", 48u32), ("t10k", 12)] {
        let side = 8u32;
        let mut images = [0x0803, count, side, side].map(u32::to_be_bytes).concat();
        let mut labels = [0x0801, count].map(u32::to_be_bytes).concat();
        for i in 0..count {
            labels.push((i % 3) as u8);
            images.extend((0..side * side).map(|p| (60 * (i % 3) + (i * 7919 + p * 31) % 100) as u8));
        }
        std::fs::write(bench.path(&format!("data/{name}-images-idx3-ubyte")), images).unwrap();
        std::fs::write(bench.path(&format!("data/{name}-labels-idx1-ubyte")), labels).unwrap();
    }
    let options = |train: &str, network: &str| {
        format!(
            "data = \"data\"\n[train]\nloss = \"cross-entropy\"\nlabel_dropout = 0.0\nbatch = 16\nlr = 0.01\nlr_warmup = 2\n\
             {train}\n[network]\n_class_name = \"EncoderClassifier\"\nblock_out_channels = [8, 8]\n\
             down_block_types = [\"DownBlock2D\", \"DownBlock2D\"]\nlayers_per_block = 1\nattention_head_dim = 4\n\
             norm_num_groups = 4\n{network}\n"
        )
    };
    let noise = "[train.noise]\nschedule = \"cosine\"\ntrain_steps = 50";
    std::fs::write(bench.path("noisy.toml"), options(noise, "")).unwrap();
    let clean = "step_sampling = \"clean\"\nema_decay = 0.9";
    std::fs::write(bench.path("clean.toml"), options(clean, "time = \"none\"\npool = \"average\"\nhead_dropout = 0.1"))
        .unwrap();
    bench
}

fn lines(bench: &Bench, file: &str) -> Vec<String> {
    String::from_utf8(bench.bytes(file)).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn a_noisy_run_leaves_a_classifier_its_process_and_its_accuracy() {
    let bench = bench();
    let done =
        bench.run("train-classifier --config noisy.toml --out run --epochs 2 --augment shift --label-smoothing 0.1");
    assert_eq!((done.code, done.stdout.as_str()), (0, ""), "{}", done.stderr);
    for part in
        ["EncoderClassifier", "epoch 2", "test accuracy", "at t = 37", "done: 6 steps", "train-classifier --out run"]
    {
        assert!(done.stderr.contains(part), "{part}: {}", done.stderr);
    }
    let accuracy = lines(&bench, "run/accuracy.csv");
    assert_eq!(accuracy[0], "step,epoch,images,t1,t5,t12,t25,t37");
    assert!(accuracy[1].starts_with("3,1,12,") && accuracy[2].starts_with("6,2,12,") && accuracy.len() == 3);
    let config = read_config(bench.path("run/config.json")).unwrap();
    let first: f64 = accuracy[2].split(',').nth(3).unwrap().parse().unwrap();
    assert_eq!((config["num_classes"].as_u64(), config["_tweedie_accuracy"].as_f64()), (Some(3), Some(first)));
    let scheduler = read_config(bench.path("run/scheduler_config.json")).unwrap();
    assert_eq!(
        (scheduler["num_train_timesteps"].as_u64(), scheduler["beta_schedule"].as_str()),
        (Some(50), Some("squaredcos_cap_v2"))
    );
    let options = String::from_utf8(bench.bytes("run/train.toml")).unwrap();
    assert!(
        options.contains("label_smoothing = 0.1") && options.contains("[train.augment.shift]\npixels = 2"),
        "{options}"
    );
    assert!(bench.path("run/loss.svg").is_file() && !bench.path("run/samples").exists());

    let text = bench.succeed("inspect run");
    for part in ["EncoderClassifier", "pool.to_q", "3 from 8 features", "scheduler_config.json", "of the test images"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let json: Value = serde_json::from_str(&bench.succeed("inspect run --json")).unwrap();
    let sum: u64 = json["layers"].as_array().unwrap().iter().map(|layer| layer["parameters"].as_u64().unwrap()).sum();
    assert_eq!((json["parameters"].as_u64(), json["noisy"].as_bool()), (Some(sum), Some(true)));
    bench.fail("sample --model run", 1, &["run is a classifier", "diffusion model"]);
    bench.fail("eval --model run --data data", 1, &["run is a classifier"]);
    bench.fail("train --out run --resume", 1, &["of a classifier", "tweedie train-classifier"]);
    bench.fail("train --config noisy.toml --out other", 1, &["noisy.toml is of a classifier"]);
    bench.fail("train-classifier --config noisy.toml --out run", 1, &["holds a run or a model already"]);

    bench.succeed("convert --model run --out half --dtype f16");
    let config = read_config(bench.path("half/config.json")).unwrap();
    assert_eq!(config["_tweedie_accuracy"].as_f64(), Some(first));
    assert!(bench.succeed("inspect half").contains("F16"));
}

#[test]
fn a_resumed_run_has_the_bits_of_one_that_never_stopped() {
    let bench = bench();
    for (config, augment, header) in [
        ("noisy.toml", "flip", "step,epoch,images,t1,t5,t12,t25,t37"),
        ("clean.toml", "affine", "step,epoch,images,clean"),
    ] {
        let name = config.replace(".toml", "");
        let run = |out: &str, rest: &str| {
            let done = bench.run(&format!("train-classifier --out {name}-{out} {rest}"));
            assert_eq!(done.code, 0, "{}", done.stderr);
        };
        run("straight", &format!("--config {config} --augment {augment} --steps 7"));
        run("parts", &format!("--config {config} --augment {augment} --steps 4 --threads 1"));
        run("parts", "--resume --steps 7 --threads 2");
        let state = |out: &str| load_state(bench.path(&format!("{name}-{out}/state.safetensors"))).unwrap();
        assert_eq!(state("straight").vectors(), state("parts").vectors());
        let file = |out: &str, file: &str| bench.bytes(&format!("{name}-{out}/{file}"));
        for same in ["config.json", "diffusion_pytorch_model.safetensors"] {
            assert_eq!(file("straight", same), file("parts", same), "{same}");
        }
        assert_eq!(bench.path(&format!("{name}-parts/scheduler_config.json")).exists(), name == "noisy");
        let (straight, parts) = (
            lines(&bench, &format!("{name}-straight/accuracy.csv")),
            lines(&bench, &format!("{name}-parts/accuracy.csv")),
        );
        let steps =
            |rows: &[String]| rows[1..].iter().map(|r| r.split(',').next().unwrap().to_owned()).collect::<Vec<_>>();
        assert_eq!((straight[0].as_str(), steps(&straight)), (header, ["3", "6", "7"].map(String::from).to_vec()));
        assert_eq!(steps(&parts), ["3", "4", "6", "7"]);
        assert!(straight[1..].iter().all(|row| parts.contains(row)));
    }
    bench.fail("train-classifier --out noisy-parts --resume --steps 9 --clean", 1, &["cannot be resumed"]);
    bench.fail("train-classifier --out noisy-parts --resume --steps 9 --augment none", 1, &["config.augment"]);
}

#[test]
fn a_run_without_test_images_says_so_and_trains() {
    let bench = bench();
    std::fs::remove_file(bench.path("data/t10k-images-idx3-ubyte")).unwrap();
    let done = bench.run("train-classifier --config clean.toml --out run --steps 2");
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(done.stderr.contains("no test images") && done.stderr.contains("done: 2 steps"), "{}", done.stderr);
    assert!(!bench.path("run/accuracy.csv").exists());
    assert!(bench.succeed("inspect run").contains("not recorded"));
}

#[test]
fn what_cannot_be_trained_is_refused() {
    let bench = bench();
    let fail = |rest: &str, code, parts: &[&str]| bench.fail(&format!("train-classifier {rest}"), code, parts);
    fail("--preset tiny", 2, &["mnist-noisy", "mnist-clean"]);
    fail("--clean --schedule linear --out x", 2, &["--schedule", "clean"]);
    fail("--config clean.toml --train-steps 10 --out x", 2, &["--train-steps"]);
    fail("--label-smoothing 1 --out x", 2, &["label_smoothing", "[0, 1)"]);
    fail("--augment rotate --out x", 2, &["affine"]);
    fail("--resume --out x", 1, &["holds no run"]);
    let broken = |from: &str, to: &str| {
        let text = String::from_utf8(bench.bytes("noisy.toml")).unwrap();
        assert!(text.contains(from));
        std::fs::write(bench.path("broken.toml"), text.replace(from, to)).unwrap();
    };
    broken("norm_num_groups = 4", "norm_num_groups = 3");
    fail("--config broken.toml --out x", 1, &["`norm_num_groups` 3"]);
    broken("norm_num_groups = 4", "num_classes = 2\nnorm_num_groups = 4");
    fail("--config broken.toml --out x", 1, &["2 classes", "num_classes"]);
    broken("norm_num_groups = 4", "time = \"none\"\nnorm_num_groups = 4");
    fail("--config broken.toml --out x", 1, &["step_sampling = \"clean\""]);
    broken("loss = \"cross-entropy\"", "loss = \"simple\"");
    fail("--config broken.toml --out x", 1, &["cross-entropy"]);
    broken("EncoderClassifier", "UNet2DModel");
    fail("--config broken.toml --out x", 1, &["of a diffusion model", "tweedie train"]);
}
