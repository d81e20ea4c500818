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
fn several_schedules_share_a_plot() {
    let bench = Bench::new();
    let options = "--compare cosine,linear,sigmoid --steps 7 --rescale-zero-snr";
    bench.succeed(&format!("schedule --train-steps 300 --plot all.svg {options}"));
    let svg = String::from_utf8(bench.bytes("all.svg")).unwrap();
    for part in ["3 schedules, T = 300, rescaled", "linear", "cosine", "sigmoid"] {
        assert!(svg.contains(part), "{part}");
    }
    // Three panels of three curves; the marks of seven steps in two of them, but for the log-SNR of a step without signal.
    assert!(svg.matches("<polyline").count() >= 9);
    assert_eq!(svg.matches("<circle").count(), 13);
    assert!(!svg.contains("NaN") && !svg.contains("inf"));
}

#[test]
fn a_grid_stands_beside_the_tables() {
    let bench = Bench::new();
    let found = document(&bench, "schedule --train-steps 100 --steps 4 --spacing leading --json");
    let grid = &found["grid"];
    assert_eq!((&grid["steps"], &grid["timesteps"]), (&json!([76, 51, 26, 1]), &json!([75, 50, 25, 0])));
    let (abar, all) = (numbers(&grid["alphas_cumprod"]), numbers(&found["alphas_cumprod"]));
    let (sigmas, log_snr) = (numbers(&grid["sigmas"]), numbers(&grid["log_snr"]));
    for (i, t) in [76, 51, 26, 1].into_iter().enumerate() {
        assert_eq!(abar[i], all[t - 1]);
        assert!((sigmas[i] - ((1.0 - abar[i]) / abar[i]).sqrt()).abs() < 1e-9 * sigmas[i].max(1.0));
        assert!((log_snr[i] + 2.0 * sigmas[i].ln()).abs() < 1e-12);
    }
    // Karras: from the noise of step T to that of step 1, evenly in the seventh root.
    let karras: Vec<f64> = numbers(&grid["karras_sigmas"]).iter().map(|s| s.powf(1.0 / 7.0)).collect();
    assert!((karras[3].powi(7) - sigmas[3]).abs() < 1e-12);
    assert!((karras[0] - karras[1] - (karras[2] - karras[3])).abs() < 1e-12 && karras[0] > karras[3]);
    let text = bench.succeed("schedule --steps 3");
    for part in ["3 sampling steps, trailing", "karras_sigma", "1000      999"] {
        assert!(text.contains(part), "no {part} in {text}");
    }
    assert!(document(&bench, "schedule --json").get("grid").is_none());
    assert!(document(&bench, "schedule --steps 1 --train-steps 1 --json")["grid"]["karras_sigmas"].is_null());
}

#[test]
fn rescaling_removes_the_last_signal() {
    let bench = Bench::new();
    let found = document(&bench, "schedule --train-steps 20 --beta-end 0.3 --rescale-zero-snr --steps 20 --json");
    let plain = document(&bench, "schedule --train-steps 20 --beta-end 0.3 --json");
    assert_eq!((&found["rescale_zero_snr"], &plain["rescale_zero_snr"]), (&json!(true), &json!(false)));
    let (betas, abar) = (numbers(&found["betas"]), numbers(&found["alphas_cumprod"]));
    assert_eq!((betas[19], abar[19], &found["log_snr"][19]), (1.0, 0.0, &Value::Null));
    assert_eq!(betas[0], numbers(&plain["betas"])[0]);
    // Lin 2023: sqrt(abar) is shifted by its last value and scaled to keep the first.
    let root: Vec<f64> = numbers(&plain["alphas_cumprod"]).iter().map(|a| a.sqrt()).collect();
    for t in 0..20 {
        let expected = (root[t] - root[19]) * root[0] / (root[0] - root[19]);
        assert!((abar[t].sqrt() - expected).abs() < 1e-12, "t = {}", t + 1);
    }
    assert!(found["grid"]["karras_sigmas"].is_null() && found["grid"]["sigmas"][0].is_null());
    bench.succeed("schedule --train-steps 2 --rescale-zero-snr --plot two.svg");
    bench.fail("schedule --train-steps 1 --rescale-zero-snr", 2, &["zero-terminal-SNR", "2..="]);
    bench.fail("schedule --train-steps 10 --steps 11", 2, &["--steps 11", "1..=10"]);
    bench.fail("schedule --spacing leading", 2, &["--steps"]);
    bench.fail("schedule --compare cosine", 2, &["--plot"]);
    bench.fail("schedule --plot x.svg --compare cosine,quadratic", 2, &["quadratic", "sigmoid"]);
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
    let sde = json!({"_class_name": "DPMSolverSDEScheduler"});
    write_single(&bench.path("sde"), &network(&residual_config(), |_, _| {}), Some(&sde));
    assert!(bench.succeed("inspect sde").contains("DPMSolverSDEScheduler"));
    // A process without a table has no betas to report.
    let edm = json!({"_class_name": "EDMEulerScheduler"});
    write_single(&bench.path("edm"), &network(&residual_config(), |_, _| {}), Some(&edm));
    assert!(bench.succeed("inspect edm").contains("euler, the edm process of continuous noise levels"));
    let found = document(&bench, "inspect edm --json");
    assert_eq!((&found["scheduler"]["process"], &found["scheduler"]["betas"]), (&json!("edm"), &Value::Null));
    bench.succeed("sample --model edm --sampler heun --churn 3 --steps 4 --count 1 --size 8 --out x.npy");
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

/// A file of three gigabytes, most of which was never written: reading it would show neither in time nor in memory.
#[cfg(unix)]
#[test]
fn a_large_model_is_inspected_without_its_weights() {
    let bench = Bench::new();
    let config = object(json!({
        "_class_name": "UNet2DModel", "sample_size": 64, "block_out_channels": [512, 1024, 2048, 2048],
    }));
    let model = tweedie_unet::Model::from_config(&config).unwrap();
    let mut header = serde_json::Map::new();
    for param in model.expected() {
        let offsets = [4 * param.range.start, 4 * param.range.end];
        header.insert(param.name.clone(), json!({ "dtype": "F32", "shape": param.shape, "data_offsets": offsets }));
    }
    let header = Value::Object(header).to_string();
    let bytes = 4 * model.expected().last().unwrap().range.end as u64;
    assert!(bytes > 3_000_000_000, "{bytes}");
    std::fs::create_dir(bench.path("large")).unwrap();
    std::fs::write(bench.path("large/config.json"), Value::Object(config).to_string()).unwrap();
    let path = bench.path("large/diffusion_pytorch_model.safetensors");
    std::fs::write(&path, [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat()).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_len(8 + header.len() as u64 + bytes).unwrap();

    let document = document(&bench, "inspect large --json");
    assert_eq!((&document["stored_bytes"], &document["weights_bytes"]), (&json!(bytes), &json!(bytes)));
    assert_eq!(document["seconds_are_measured"], json!(false));
    assert!(document["seconds_per_image"].as_f64().unwrap() > 0.0);
    assert!(document["packed_bytes"].as_u64().unwrap() > bytes);
    let text = bench.succeed("inspect large");
    assert!(text.contains("--measure") && text.contains("conv_in"), "{text}");
}
