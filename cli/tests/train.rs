//! `tweedie train`: what a run leaves, how it is interrupted and resumed, and what is refused.

mod common;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::Bench;
use tweedie_checkpoint::{ModelDir, State, load_state, read_config};

/// 48 images of 8 x 8 with three labels as a folder of IDX files in `data`, and a small network in `tiny.toml`.
fn bench() -> Bench {
    let bench = Bench::new();
    let (count, side) = (48u32, 8u32);
    let mut images = [0x0803, count, side, side].map(u32::to_be_bytes).concat();
    let mut labels = [0x0801, count].map(u32::to_be_bytes).concat();
    for i in 0..count {
        labels.push((i % 3) as u8);
        images.extend((0..side * side).map(|p| (60 * (i % 3) + (i * 7919 + p * 31) % 100) as u8));
    }
    std::fs::create_dir(bench.path("data")).unwrap();
    std::fs::write(bench.path("data/train-images-idx3-ubyte"), images).unwrap();
    std::fs::write(bench.path("data/train-labels-idx1-ubyte"), labels).unwrap();
    let options = r#"
data = "data"
[samples]
per_label = 1
steps = 2
guidance = 1.75
[train]
batch = 16
lr_warmup = 4
length = { steps = 8 }
lr_decay = "cosine"
lr_decay_steps = 40
[train.noise]
train_steps = 50
beta_end = 0.2
[network]
_class_name = "UNet2DModel"
block_out_channels = [8, 8]
down_block_types = ["DownBlock2D", "AttnDownBlock2D"]
up_block_types = ["AttnUpBlock2D", "UpBlock2D"]
layers_per_block = 1
attention_head_dim = 4
norm_num_groups = 4
"#;
    std::fs::write(bench.path("tiny.toml"), options).unwrap();
    bench
}

fn state(bench: &Bench, run: &str) -> State {
    load_state(bench.path(run).join("state.safetensors")).expect("a state that loads")
}

fn steps_of(bench: &Bench, run: &str) -> u64 {
    state(bench, run).parse("step").unwrap()
}

/// The rows of a log without the column of seconds, which is the only one that two runs may differ in.
fn log(bench: &Bench, run: &str) -> Vec<String> {
    let text = String::from_utf8(bench.bytes(&format!("{run}/log.csv"))).unwrap();
    text.lines().map(|line| line.rsplit_once(',').unwrap().0.to_owned()).collect()
}

/// Everything that two equal runs have in common: vectors of the state, weights of the model, the log.
fn assert_same_run(bench: &Bench, a: &str, b: &str) {
    assert_eq!(state(bench, a).vectors(), state(bench, b).vectors(), "{a} {b}");
    for key in ["step", "loss_sum", "loss_weight", "config", "network", "data", "architecture"] {
        assert_eq!(state(bench, a).text(key).unwrap(), state(bench, b).text(key).unwrap(), "{a} {b}: {key}");
    }
    let weights = |run: &str| bench.bytes(&format!("{run}/unet/diffusion_pytorch_model.safetensors"));
    assert_eq!(weights(a), weights(b), "{a} {b}");
    assert_eq!(log(bench, a), log(bench, b));
}

#[test]
fn a_run_leaves_a_model_its_options_a_log_a_plot_and_samples() {
    let bench = bench();
    let done = bench.run("train --config tiny.toml --out run --epochs 2 --seed 7 --lr 0.003");
    assert_eq!((done.code, done.stdout.as_str()), (0, ""), "{}", done.stderr);
    for part in ["epoch 1", "samples/epoch-002.png", "done: 6 steps", "sample --model run"] {
        assert!(done.stderr.contains(part), "{part}: {}", done.stderr);
    }
    assert!(!done.stderr.contains('\u{1b}') && !done.stderr.contains('\r'), "no bar without a terminal");
    let log = log(&bench, "run");
    assert_eq!(log[0], "step,epoch,images,loss,loss_ema,grad_norm,lr");
    assert_eq!(log.len(), 1 + 6);
    assert!(log[6].starts_with("6,2,96,"), "{log:?}");
    let options = String::from_utf8(bench.bytes("run/train.toml")).unwrap();
    for part in [
        "seed = 7",
        "lr = 0.003",
        "epochs = 2",
        "train_steps = 50",
        "block_out_channels = [8, 8]",
        "data = \"data\"",
        // Defaults, too.
        "norm_eps = 0.00001",
        "freq_shift = 0",
    ] {
        assert!(options.contains(part), "{part}: {options}");
    }
    assert!(String::from_utf8(bench.bytes("run/loss.svg")).unwrap().ends_with("</svg>\n"));
    for file in ["run/samples/epoch-001.png", "run/samples/epoch-002.png"] {
        assert!(bench.bytes(file).starts_with(b"\x89PNG"), "{file}");
    }
    let scheduler = read_config(bench.path("run/scheduler/scheduler_config.json")).unwrap();
    assert_eq!(
        (scheduler["_class_name"].as_str(), scheduler["num_train_timesteps"].as_u64()),
        (Some("DDIMScheduler"), Some(50))
    );
    assert_eq!(scheduler["timestep_spacing"], "trailing");
    let config = read_config(bench.path("run/unet/config.json")).unwrap();
    assert_eq!((config["num_class_embeds"].as_u64(), config["_tweedie_null_class"].as_u64()), (Some(4), Some(3)));
    assert_eq!(config["_tweedie_guidance"].as_f64(), Some(1.75), "what samples.guidance says");
    // The model holds the average; the state has the same numbers, in the order of the network.
    let mut state = state(&bench, "run");
    let length = state.vectors()["ema"].len();
    let ema = state.take("ema", length).unwrap();
    let dir = ModelDir::open(bench.path("run")).unwrap();
    let network = tweedie_unet::Model::from_config(&dir.config).unwrap();
    for param in network.expected() {
        assert_eq!(dir.weights.read_f32(&param.name).unwrap(), ema[param.range.clone()], "{}", param.name);
    }
    bench.succeed("sample --model run --labels 0-2 --per-label 1 --steps 2 --out s.safetensors --quiet");
    assert_eq!(bench.tensor("s.safetensors", "sample").0, [3, 1, 8, 8]);
    // What was recorded is what --config reads, and makes the same run.
    bench.succeed("train --config run/train.toml --out again --quiet");
    assert_same_run(&bench, "run", "again");
}

#[test]
fn a_run_in_pieces_is_the_run_in_one_piece() {
    let bench = bench();
    bench.succeed("train --config tiny.toml --out straight --steps 11 --threads 1 --quiet");
    bench.succeed("train --config tiny.toml --out pieces --steps 2 --threads 2 --quiet");
    bench.succeed("train --out pieces --resume --steps 7 --quiet");
    // The command that started the run, with --resume added, goes on too.
    bench.succeed("train --config tiny.toml --out pieces --steps 11 --threads 2 --resume --quiet");
    assert_same_run(&bench, "straight", "pieces");
    // A run that is complete stays as it is.
    bench.succeed("train --out pieces --resume --quiet");
    assert_same_run(&bench, "straight", "pieces");
}

#[test]
fn a_run_by_minutes_decays_its_learning_rate_over_its_time() {
    let bench = bench();
    variant(&bench, "timed.toml", "lr_decay_steps = 40\n", "lr = 0.001\n");
    bench.succeed("train --config timed.toml --out run --minutes 0.03 --quiet");
    let rates = |bench: &Bench| -> Vec<f64> {
        let rows = log(bench, "run").into_iter().skip(1);
        rows.map(|row| row.rsplit_once(',').unwrap().1.parse().unwrap()).collect()
    };
    let first = rates(&bench);
    assert_eq!(first[0], 0.00025, "the warm-up counts steps");
    let last = *first.last().unwrap();
    // The floor is 0.02 of the peak; the last step began with little time left.
    assert!((0.02e-3..0.07e-3).contains(&last), "{last} after {} steps", first.len());
    assert!(first[4..].windows(2).all(|pair| pair[1] <= pair[0]), "{first:?}");
    let options = String::from_utf8(bench.bytes("run/train.toml")).unwrap();
    assert!(options.contains("lr_decay_minutes = 0.03"), "{options}");
    // Whatever it is lengthened by, the run stays on its curve, which has ended.
    bench.succeed("train --out run --resume --minutes 0.035 --quiet");
    let steps = steps_of(&bench, "run") + 2;
    bench.succeed(&format!("train --out run --resume --steps {steps} --quiet"));
    let steps = steps + 1;
    bench.succeed(&format!("train --config timed.toml --out run --resume --steps {steps} --quiet"));
    let all = rates(&bench);
    assert!(all.len() > first.len() + 2 && all[first.len()..].iter().all(|&rate| rate == 0.02e-3), "{all:?}");
    // A last step that is given wins.
    bench.succeed("train --config tiny.toml --out steps --minutes 0.001 --quiet");
    let options = String::from_utf8(bench.bytes("steps/train.toml")).unwrap();
    assert!(options.contains("lr_decay_steps = 40") && !options.contains("lr_decay_minutes"), "{options}");
}

#[test]
fn samples_that_a_kill_left_out_are_drawn_on_resuming() {
    let bench = bench();
    bench.succeed("train --config tiny.toml --out run --epochs 2 --quiet");
    let samples = bench.bytes("run/samples/epoch-002.png");
    // What a kill leaves that comes between the checkpoint of an epoch and the end of its pictures.
    std::fs::remove_file(bench.path("run/samples/epoch-002.png")).unwrap();
    std::fs::write(bench.path("run/samples/.epoch-002.png.tweedie-Ab1.tmp"), "half").unwrap();
    bench.succeed("train --out run --resume --quiet");
    assert_eq!(bench.bytes("run/samples/epoch-002.png"), samples);
    assert_eq!(std::fs::read_dir(bench.path("run/samples")).unwrap().count(), 2);
}

/// `tiny.toml` with a change, as another file.
fn variant(bench: &Bench, name: &str, from: &str, to: &str) {
    let text = String::from_utf8(bench.bytes("tiny.toml")).unwrap();
    assert!(text.contains(from), "{from}");
    std::fs::write(bench.path(name), text.replace(from, to)).unwrap();
}

#[test]
fn a_run_that_has_lost_its_state_is_not_started_again() {
    let bench = bench();
    bench.succeed("train --config tiny.toml --out run --steps 4 --quiet");
    let (state, log) = (bench.path("run/state.safetensors"), bench.path("run/log.csv"));
    std::fs::rename(&state, bench.path("kept")).unwrap();
    let weights = bench.bytes("run/unet/diffusion_pytorch_model.safetensors");
    let parts = ["run/state.safetensors is missing", "put it back", "--out"];
    bench.fail("train --out run --resume", 1, &parts);
    assert_eq!(std::fs::read_to_string(&log).unwrap().lines().count(), 1 + 4);
    // The weights alone tell, too.
    std::fs::rename(&log, bench.path("log")).unwrap();
    bench.fail("train --out run --resume", 1, &parts);
    assert_eq!(bench.bytes("run/unet/diffusion_pytorch_model.safetensors"), weights);
    std::fs::rename(bench.path("log"), &log).unwrap();
    std::fs::rename(bench.path("kept"), &state).unwrap();
    bench.succeed("train --out run --resume --steps 6 --quiet");
    bench.succeed("train --config tiny.toml --out straight --steps 6 --quiet");
    assert_same_run(&bench, "straight", "run");
}

#[test]
fn a_new_run_writes_over_no_log() {
    let bench = bench();
    bench.succeed("train --config tiny.toml --out run --steps 2 --quiet");
    std::fs::create_dir(bench.path("left")).unwrap();
    let log = bench.bytes("run/log.csv");
    for (text, parts) in [(&log[..], ["left holds a run", "--out"]), (b"my,notes\n", ["log.csv", "my,notes"])] {
        std::fs::write(bench.path("left/log.csv"), text).unwrap();
        bench.fail("train --config tiny.toml --out left", 1, &parts);
        assert_eq!(bench.bytes("left/log.csv"), text);
        assert!(!bench.path("left/train.toml").exists());
    }
    // A log without rows is what a kill before the first step leaves.
    std::fs::write(bench.path("left/log.csv"), &log[..log.iter().position(|&byte| byte == b'\n').unwrap() + 1])
        .unwrap();
    bench.succeed("train --config tiny.toml --out left --steps 2 --quiet");
    assert_same_run(&bench, "run", "left");
}

#[test]
fn a_run_that_was_killed_before_its_first_state_starts_again() {
    let bench = bench();
    bench.succeed("train --config tiny.toml --out straight --steps 3 --quiet");
    let options = bench.bytes("straight/train.toml");
    for early in ["options", "model"] {
        std::fs::create_dir(bench.path(early)).unwrap();
        std::fs::write(bench.path(early).join("train.toml"), &options).unwrap();
    }
    // The first checkpoint writes the model before the state.
    let config = read_config(bench.path("straight/unet/config.json")).unwrap();
    let mut model = tweedie_unet::Model::from_config(&config).unwrap();
    model.initialise(tweedie_unet::Init::ZeroResidual, 0);
    common::write_residual(&bench.path("model"), &model, &common::ddpm_config());
    for early in ["options", "model"] {
        bench.succeed(&format!("train --out {early} --resume --quiet"));
        assert_same_run(&bench, "straight", early);
    }
}

#[test]
fn a_network_with_the_same_tensors_but_other_options_is_not_resumed() {
    let bench = bench();
    bench.succeed("train --config tiny.toml --out run --steps 2 --quiet");
    variant(&bench, "groups.toml", "norm_num_groups = 4", "norm_num_groups = 2");
    variant(&bench, "heads.toml", "attention_head_dim = 4", "attention_head_dim = 8");
    variant(&bench, "eps.toml", "norm_num_groups = 4", "norm_num_groups = 4\nnorm_eps = 0.5");
    let refused = |state: &str| {
        bench.fail(
            "train --config groups.toml --out run --resume",
            1,
            &["network.norm_num_groups was 4", "2 now", state],
        );
        bench.fail("train --config heads.toml --out run --resume", 1, &["network.attention_head_dim was 4", "8 now"]);
        bench.fail("train --config eps.toml --out run --resume", 1, &["network.norm_eps was 0.00001", "0.5 now"]);
    };
    refused("run/state.safetensors");
    // A state of an early version does not describe the network; the model beside it does.
    let state = state(&bench, "run");
    let vectors: Vec<_> = state.vectors().iter().map(|(name, values)| (name.as_str(), values.as_slice())).collect();
    let mut meta = state.meta().clone();
    meta.remove("architecture").expect("a description of the network");
    tweedie_checkpoint::save_state(bench.path("run/state.safetensors"), &vectors, meta).unwrap();
    refused("run/unet/config.json");
    bench.succeed("train --config tiny.toml --out run --resume --steps 5 --quiet");
    bench.succeed("train --config tiny.toml --out straight --steps 5 --quiet");
    assert_same_run(&bench, "straight", "run");
}

#[test]
fn pictures_that_cannot_be_written_do_not_end_a_run() {
    let bench = bench();
    for in_the_way in ["run/loss.svg", "run/samples/epoch-001.png"] {
        std::fs::create_dir_all(bench.path(in_the_way)).unwrap();
    }
    let done = bench.run("train --config tiny.toml --out run --steps 7");
    assert_eq!(done.code, 0, "{}", done.stderr);
    for part in ["warning: the plot", "warning: the samples", "loss.svg", "epoch-001.png", "epoch-002.png", "done: 7"] {
        assert!(done.stderr.contains(part), "{part}: {}", done.stderr);
    }
    assert_eq!(steps_of(&bench, "run"), 7);
}

#[test]
fn without_dropped_labels_there_is_no_null_condition() {
    let bench = bench();
    bench.succeed("train --config tiny.toml --out run --steps 3 --label-dropout 0 --quiet");
    let config = read_config(bench.path("run/unet/config.json")).unwrap();
    assert_eq!(config["num_class_embeds"].as_u64(), Some(3));
    assert!(!config.contains_key("_tweedie_null_class") && !config.contains_key("_tweedie_guidance"), "{config:?}");
    bench.succeed("train --out run --resume --steps 4 --quiet");
}

/// A run that would take very long.
fn start(bench: &Bench, out: &str, more: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_tweedie"))
        .args([
            "train",
            "--config",
            "tiny.toml",
            "--out",
            out,
            "--steps",
            "100000000",
            "--checkpoint-minutes",
            "0.000001",
        ])
        .args(more)
        .current_dir(bench.path(""))
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts")
}

/// Waits until the run has done some steps.
fn wait_for_steps(bench: &Bench, run: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let log = bench.path(run).join("log.csv");
    let rows = |path: &Path| std::fs::read_to_string(path).map_or(0, |text| text.lines().count());
    while rows(&log) < 6 {
        assert!(Instant::now() < deadline, "no steps within a minute");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_kill_at_any_moment_leaves_a_model_and_a_state_that_go_on_as_if_nothing_had_happened() {
    let bench = bench();
    for attempt in 0..4 {
        let run = format!("killed-{attempt}");
        let mut child = start(&bench, &run, &[]);
        wait_for_steps(&bench, &run);
        // Steps and checkpoints follow each other without a pause, so these moments fall anywhere between them.
        std::thread::sleep(Duration::from_millis(7 * attempt));
        child.kill().unwrap();
        child.wait().unwrap();
        bench.succeed(&format!("sample --model {run} --labels 1 --steps 1 --out s.npy --quiet"));
        let steps = steps_of(&bench, &run) + 3;
        bench.succeed(&format!("train --out {run} --resume --steps {steps} --quiet"));
        bench.succeed(&format!("train --config tiny.toml --out straight-{attempt} --steps {steps} --quiet"));
        assert_same_run(&bench, &format!("straight-{attempt}"), &run);
    }
}

#[cfg(unix)]
#[test]
fn an_interrupt_saves_says_how_to_go_on_and_is_no_failure() {
    let bench = bench();
    let child = start(&bench, "run", &[]);
    wait_for_steps(&bench, "run");
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    let steps = steps_of(&bench, "run");
    assert!(stderr.contains(&format!("saved at step {steps}")), "{stderr}");
    assert!(stderr.contains("tweedie train --out run --resume"), "{stderr}");
    assert_eq!(log(&bench, "run").len() as u64, 1 + steps, "the log ends with the last step that was saved");
}

#[cfg(unix)]
#[test]
fn a_quiet_run_is_interrupted_without_a_word() {
    let bench = bench();
    let child = start(&bench, "run", &["--quiet"]);
    wait_for_steps(&bench, "run");
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8(output.stderr).unwrap().as_str()), (Some(0), ""));
    assert_eq!(log(&bench, "run").len() as u64, 1 + steps_of(&bench, "run"));
}

#[test]
fn two_processes_do_not_train_in_one_directory() {
    let bench = bench();
    let mut child = start(&bench, "run", &[]);
    wait_for_steps(&bench, "run");
    bench.fail("train --out run --resume", 1, &["another process is training in run", "--out"]);
    assert!(child.try_wait().unwrap().is_none(), "the first one goes on");
    child.kill().unwrap();
    child.wait().unwrap();
    // A killed process holds no lock.
    let steps = steps_of(&bench, "run") + 1;
    bench.succeed(&format!("train --out run --resume --steps {steps} --quiet"));
}

#[test]
fn without_out_runs_are_numbered() {
    let bench = bench();
    for run in ["runs/custom", "runs/custom-2", "runs/custom-3"] {
        bench.succeed("train --config tiny.toml --steps 1 --quiet");
        assert_eq!(steps_of(&bench, run), 1, "{run}");
    }
    bench.fail("train --resume", 2, &["--out", "runs/custom, runs/custom-2, runs/custom-3"]);
}

#[test]
fn a_textbook_network_becomes_a_book_directory() {
    let bench = bench();
    let text = String::from_utf8(bench.bytes("tiny.toml")).unwrap();
    let (options, _) = text.split_once("[network]").unwrap();
    let options = options.replace("batch = 16", "batch = 16\ntimestep = \"one-based\"\nrange = \"zero-one\"");
    let network = "[network]\n_class_name = \"UNetCond\"\nembed_dim = 10\nbase_channels = 4\n";
    std::fs::write(bench.path("book.toml"), options + network).unwrap();
    bench.succeed("train --config book.toml --out straight --steps 5 --quiet");
    bench.succeed("train --config book.toml --out run --steps 2 --quiet");
    bench.succeed("train --out run --resume --steps 5 --quiet");
    let weights = |run: &str| bench.bytes(&format!("{run}/diffusion_pytorch_model.safetensors"));
    assert_eq!(weights("straight"), weights("run"), "running statistics and counters are resumed, too");
    let config = read_config(bench.path("run/config.json")).unwrap();
    assert_eq!((config["_class_name"].as_str(), config["num_classes"].as_u64()), (Some("UNetCond"), Some(3)));
    assert_eq!(config["_tweedie_guidance"].as_f64(), Some(1.75));
    let file = ModelDir::open(bench.path("run")).unwrap().weights;
    assert_eq!(file.read_i64("down1.convs.1.num_batches_tracked").unwrap(), [5]);
    bench.succeed("sample --model run --labels 0 --steps 2 --out s.npy --quiet");
}

#[test]
fn a_loss_that_is_not_finite_ends_with_its_step_and_keeps_the_last_checkpoint() {
    let bench = bench();
    let text = String::from_utf8(bench.bytes("tiny.toml")).unwrap();
    let text = text.replace("lr_warmup = 4", "lr_warmup = 0\nlr = 1e38\nclip_norm = 0").replace("cosine", "constant");
    std::fs::write(bench.path("hot.toml"), text).unwrap();
    let done = bench.run("train --config hot.toml --out run --steps 100");
    assert_eq!(done.code, 1, "{}", done.stderr);
    assert!(done.stderr.contains("error: step ") && done.stderr.contains("learning rate"), "{}", done.stderr);
    assert_eq!(steps_of(&bench, "run"), 0, "the state from before the fault is still there");
    // Even where the parameters overflow in a step whose loss is finite, right before a checkpoint.
    let done = bench.run("train --config hot.toml --out often --steps 100 --checkpoint-minutes 0.000001");
    assert_eq!(done.code, 1, "{}", done.stderr);
    for part in ["error: step 1: element ", " of the tensor ", "no checkpoint was overwritten"] {
        assert!(done.stderr.contains(part), "{part}: {}", done.stderr);
    }
    assert_eq!(steps_of(&bench, "often"), 0);
    bench.succeed("sample --model often --labels 1 --steps 1 --out s.npy --quiet");
}

#[test]
fn what_cannot_be_run_is_refused_before_any_work() {
    let bench = bench();
    bench.succeed("train --config tiny.toml --out run --steps 1 --quiet");
    std::fs::write(bench.path("file"), "").unwrap();
    let text = String::from_utf8(bench.bytes("tiny.toml")).unwrap();
    std::fs::write(bench.path("misspelt.toml"), text.replace("batch =", "batches =")).unwrap();
    bench.fail("train --config tiny.toml --out run", 1, &["run holds a run", "--resume"]);
    bench.fail("train --config tiny.toml --out file/run", 1, &["file/run", "--out"]);
    bench.fail("train --out nothing --resume", 1, &["nothing", "train.toml"]);
    bench.fail("train --out run --resume --lr 0.5", 1, &["config.lr was 0.0005", "0.5 now"]);
    bench.fail("train --out run --resume --batch 8", 1, &["config.batch was 16", "8 now"]);
    bench.fail("train --out run --resume --preset tiny", 1, &["preset custom, not tiny"]);
    bench.fail("train --config misspelt.toml --out new", 1, &["misspelt.toml", "batches"]);
    bench.fail("train --config absent.toml --out new", 1, &["absent.toml"]);
    bench.fail("train --data absent --preset tiny --out new", 1, &["absent"]);
    bench.fail("train --preset tiny --out new --label-dropout 2", 2, &["label_dropout", "[0, 1]"]);
    bench.fail("train --preset large --out new", 2, &["large", "mnist, tiny, book"]);
    bench.fail("train --epochs 1 --steps 2 --out new", 2, &["--steps"]);
    bench.fail("train --preset tiny --config tiny.toml --out new", 2, &["--config"]);
    bench.fail("train --steps 0 --out new", 2, &["--steps"]);
    bench.fail("train --out new --beta-start 0.001", 2, &["--beta-start", "cosine", "--schedule"]);
    bench.fail("train --preset tiny --schedule cosine --beta-end 0.1 --out new", 2, &["--beta-end", "cosine"]);
    bench.fail("train --preset tiny --out new --lr-decay-steps 9", 2, &["--lr-decay-steps", "--lr-decay cosine"]);
    bench.fail("train --config tiny.toml --out new --batch 49", 1, &["49", "48", "--batch 48"]);
    for (from, to, code, parts) in [
        ("per_label = 1", "per_label = 101", 2, ["samples.per_label", "101"]),
        ("steps = 2\n", "steps = 51\n", 2, ["samples.steps", "from 1 to 50"]),
        ("data = \"data\"", "data = \"data\"\npreset = \"../up\"", 1, ["preset", "../up"]),
        ("norm_num_groups = 4", "norm_num_groups = 4\nsample_size = 16", 1, ["16 x 16 (sample_size)", "8 x 8"]),
        ("lr_warmup = 4", "lr_warmup = 4\nlr = 1e39", 2, ["lr should be", "f32"]),
    ] {
        variant(&bench, "wrong.toml", from, to);
        bench.fail("train --config wrong.toml --out new", code, &parts);
    }
    // Fewer noise steps than the samples of a preset take are no contradiction of the user's.
    bench.succeed("train --preset tiny --data data --train-steps 5 --batch 48 --steps 1 --out few --quiet");
}

/// Every objective trains, and what it leaves can be sampled and evaluated.
#[test]
fn every_objective_leaves_a_model_that_draws() {
    let bench = bench();
    for (run, options, sampler) in [
        ("hybrid", "--loss hybrid --step-sampling importance", "DDPMScheduler"),
        ("bound", "--loss vlb --variance fixed-large", "DDIMScheduler"),
        ("learned", "--loss vlb --variance learned-range", "DDPMScheduler"),
        ("score", "--prediction score --weighting p2", "DDIMScheduler"),
        ("mean", "--prediction mean", "DDPMScheduler"),
        ("v", "--prediction v --weighting min-snr", "DDIMScheduler"),
        ("x0", "--prediction x0 --weighting edm", "DDIMScheduler"),
    ] {
        bench.succeed(&format!("train --config tiny.toml --out {run} --steps 2 {options}"));
        let scheduler = read_config(bench.path(run).join("scheduler/scheduler_config.json")).unwrap();
        assert_eq!(scheduler["_class_name"], sampler, "{run}");
        bench.succeed(&format!("sample --model {run} --labels 1 --guidance 1.5 --steps 5 --out {run}.npy"));
        let text = bench
            .succeed(&format!("eval --model {run} --data data --split train --limit 2 --steps-per-image 2 --json"));
        let document: serde_json::Value = serde_json::from_str(&text).unwrap();
        let variance =
            if scheduler.get("variance_type").is_some_and(|v| v == "learned_range") { "learned" } else { "small" };
        assert!(text.contains(&format!("\"variance\": \"{variance}\"")), "{run}: {document}");
        // What the run's directory says is enough to go on.
        bench.succeed(&format!("train --out {run} --resume --steps 3"));
        assert_eq!(steps_of(&bench, run), 3);
    }
    bench.fail("train --config tiny.toml --out no --loss hybrid --variance unit", 2, &["learned-range", "a fixed one"]);
    bench.fail("train --config tiny.toml --out no --variance learned-range", 2, &["hybrid or vlb"]);
    bench.fail("train --config tiny.toml --out no --loss vlb --weighting p2", 2, &["weighting", "weights of its own"]);
    bench.fail("train --preset book --out no --loss hybrid", 1, &["UNetCond", "--variance"]);
}
