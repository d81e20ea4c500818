//! `tweedie schedule` and `tweedie inspect`: numbers that other programs read.

mod common;

use common::{Bench, ddpm_config, network, object, residual_config, write_residual, write_single};
use serde_json::{Value, json};

fn document(bench: &Bench, arguments: &str) -> Value {
    serde_json::from_str(&bench.succeed(arguments)).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

#[test]
fn the_tables_are_those_of_the_formulas() {
    let bench = Bench::new();
    let options = "schedule --schedule linear --train-steps 50 --beta-start 0.001 --beta-end 0.2 --json";
    let document = document(&bench, options);
    let [betas, abar, variance, of_x0, of_xt, log_snr] = [
        "betas",
        "alphas_cumprod",
        "posterior_variance",
        "posterior_mean_coef_x0",
        "posterior_mean_coef_xt",
        "log_snr",
    ]
    .map(|name| numbers(&document[name]));
    let (mut before, mut now) = (1.0, 1.0);
    for i in 0..50 {
        let beta = 0.001 + (0.2 - 0.001) * i as f64 / 49.0;
        now *= 1.0 - beta;
        // FORMULAS 2.1, with abar_0 = 1.
        let expected = [
            beta,
            now,
            beta * (1.0 - before) / (1.0 - now),
            f64::sqrt(before) * beta / (1.0 - now),
            (1.0 - beta).sqrt() * (1.0 - before) / (1.0 - now),
            (now / (1.0 - now)).ln(),
        ];
        let found = [betas[i], abar[i], variance[i], of_x0[i], of_xt[i], log_snr[i]];
        for (f, e) in found.iter().zip(expected) {
            assert!((f - e).abs() <= 1e-12 * e.abs().max(1.0), "t = {}: {found:?} instead of {expected:?}", i + 1);
        }
        before = now;
    }
    assert_eq!((variance[0], of_xt[0]), (0.0, 0.0));
    assert_eq!([betas, abar, variance, of_x0, of_xt, log_snr].map(|v| v.len()), [50; 6]);
    assert_eq!((&document["schedule"], &document["train_steps"]), (&json!("linear"), &json!(50)));
}

#[test]
fn every_schedule_has_a_name_a_table_and_a_plot() {
    let bench = Bench::new();
    for name in ["linear", "scaled-linear", "cosine", "sqrt", "sigmoid", "exponential"] {
        let text = bench.succeed(&format!("schedule --schedule {name} --train-steps 1500 --plot {name}.svg"));
        assert!(text.contains(name) && text.contains("T = 1500"), "{text}");
        let rows: Vec<&str> =
            text.lines().filter(|l| l.trim_start().starts_with(|c: char| c.is_ascii_digit())).collect();
        assert!(rows[0].trim_start().starts_with("1 ") && rows[rows.len() - 1].trim_start().starts_with("1500 "));
        let svg = String::from_utf8(bench.bytes(&format!("{name}.svg"))).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{name}");
        for part in ["beta", "alphas_cumprod", "log-SNR", "polyline"] {
            assert!(svg.contains(part), "{name}: {part}");
        }
    }
    assert_eq!(numbers(&document(&bench, "schedule --json")["betas"]).len(), 1000);
    assert_eq!(numbers(&document(&bench, "schedule --train-steps 1 --json")["betas"]), [1e-4]);
    bench.succeed("schedule --train-steps 1 --plot one.svg");
}

#[test]
fn schedules_that_do_not_exist_are_refused() {
    let bench = Bench::new();
    bench.fail("schedule --schedule quadratic", 2, &["scaled-linear"]);
    bench.fail("schedule --train-steps 0", 2, &["--train-steps"]);
    bench.fail("schedule --beta-end 1.5", 2, &["--beta-end"]);
    bench.fail("schedule --beta-start -0.1", 2, &["--beta-start"]);
    bench.fail("schedule --schedule cosine --beta-end 0.1", 2, &["--beta-end", "cosine"]);
    bench.fail("schedule --plot x.png", 2, &[".svg"]);
    bench.fail("schedule --plot nowhere/x.svg", 1, &["nowhere/x.svg"]);
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let bench = Bench::new();
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_tweedie"))
        .args(["schedule", "--json", "--train-steps", "100000"])
        .current_dir(bench.path(""))
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn inspect_counts_what_is_there() {
    let bench = Bench::new();
    let model = network(&residual_config(), |_, _| {});
    write_residual(&bench.path("model"), &model, &ddpm_config());
    let found = document(&bench, "inspect model --json");
    let tensors = model.expected();
    let parameters: usize = tensors.iter().map(|p| p.range.len()).sum();
    assert_eq!((&found["tensors"], &found["stored_bytes"]), (&json!(tensors.len()), &json!(4 * parameters)));
    assert_eq!((&found["classes"], &found["null_condition"]), (&json!(3), &json!(true)));
    assert_eq!((&found["stored_types"], &found["image_size"]), (&json!("F32"), &json!([8, 8])));
    let layers = found["layers"].as_array().unwrap();
    let of_layers: u64 = layers.iter().map(|layer| layer["parameters"].as_u64().unwrap()).sum();
    assert_eq!(found["parameters"].as_u64().unwrap(), of_layers);
    // The first convolution: 9 weights for each of 8 channels at each of 64 pixels, 2 operations each.
    let first = layers.iter().find(|layer| layer["name"] == "conv_in").unwrap();
    assert_eq!((&first["output"], &first["flops"]), (&json!([8, 8, 8]), &json!(2 * 9 * 8 * 64)));
    assert!(found["seconds_per_image"].as_f64().unwrap() > 0.0);
    assert_eq!(found["scheduler"]["sampler"], "ddpm");
    assert_eq!(found["scheduler"]["train_steps"], 20);

    let text = bench.succeed("inspect model");
    for part in ["UNet2DModel", "conv_in", "parameters", "0 to 2, or none", "ddpm", "GFLOP"] {
        assert!(text.contains(part), "no {part} in {text}");
    }
}

#[test]
fn inspect_takes_every_kind_of_model() {
    let bench = Bench::new();
    assert!(bench.succeed("inspect").contains("bundled"));
    write_single(&bench.path("book"), &network(&object(json!({"_class_name": "UNetCond"})), |_, _| {}), None);
    let book = document(&bench, "inspect book --json");
    assert_eq!((&book["class"], &book["first_timestep"]), (&json!("UNetCond"), &json!(1)));
    assert_eq!(book["scheduler"]["spacing"], "trailing");
    let oracle =
        json!({"kind": "gaussian-mixture", "shape": [1, 2, 2], "components": [{"weight": 1, "mean": 0, "std": 1}]});
    std::fs::write(bench.path("oracle.json"), oracle.to_string()).unwrap();
    assert!(bench.succeed("inspect oracle.json").contains("[1, 2, 2]"));
    // A sampler that does not exist here is reported, and does not keep the rest from being shown.
    let euler = json!({"_class_name": "EulerDiscreteScheduler"});
    write_single(&bench.path("euler"), &network(&residual_config(), |_, _| {}), Some(&euler));
    assert!(bench.succeed("inspect euler").contains("EulerDiscreteScheduler"));
    bench.fail("inspect nowhere", 1, &["nowhere"]);
}

#[test]
fn an_instruction_set_that_is_not_there_is_refused_by_name() {
    let run = |isa: &str| {
        let tweedie = std::process::Command::new(env!("CARGO_BIN_EXE_tweedie"))
            .args(["schedule", "--train-steps", "3"])
            .env("TWEEDIE_ISA", isa)
            .output()
            .unwrap();
        (tweedie.status.success(), String::from_utf8(tweedie.stderr).unwrap())
    };
    assert_eq!(run("portable"), (true, String::new()));
    let (success, message) = run("avx1024");
    assert!(!success);
    assert!(["TWEEDIE_ISA", "avx1024", "portable", "unset it"].iter().all(|part| message.contains(part)), "{message}");
}
