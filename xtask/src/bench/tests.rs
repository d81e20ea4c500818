use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::kernels;
use super::machine::{Machine, kib, processor};
use super::ours::{Measured, executable};
use super::peer::{self, Peer};
use super::report::{Entry, OURS, Report, WorkResult, compact_numbers};
use super::stats::{Turn, civil, median, slug};
use super::tensors::{parse, relative_l2};
use super::works::{self, Task};

#[test]
fn medians_of_odd_and_even_numbers() {
    assert_eq!(median(&[]), None);
    assert_eq!(median(&[3.0]), Some(3.0));
    assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
    assert_eq!(median(&[4.0, 1.0, 2.0, 9.0]), Some(3.0));
}

#[test]
fn turns_need_times() {
    let turn = Turn::from_steps(1, vec![0.5, 0.25, 0.75]).unwrap();
    assert_eq!((turn.place, turn.steps, turn.median, turn.best), (1, 3, 0.5, 0.25));
    for steps in [vec![], vec![0.0], vec![1.0, f64::NAN], vec![-1.0]] {
        assert_eq!(Turn::from_steps(0, steps), None);
    }
}

#[test]
fn days_of_the_calendar() {
    for (days, date) in
        [(0, (1970, 1, 1)), (59, (1970, 3, 1)), (11_016, (2000, 2, 29)), (20_454, (2026, 1, 1)), (-1, (1969, 12, 31))]
    {
        assert_eq!(civil(days), date);
    }
}

#[test]
fn processors_make_file_names() {
    assert_eq!(slug("Intel(R) Xeon(R) Platinum 8488C @ 2.40GHz"), "intel-xeon-platinum-8488c-2-40ghz");
    assert_eq!(slug("../a//b"), "a-b");
}

#[test]
fn the_first_processor_is_described() {
    let text = "processor : 0\ncpu family\t: 6\nmodel\t\t: 143\nmodel name\t: Some CPU\nstepping\t: 8\n\
                flags\t\t: fpu avx2 fma avx512f\n\nprocessor : 1\nmodel name\t: Another\n";
    let (name, signature, flags) = processor(text);
    assert_eq!((name.as_str(), signature.as_str()), ("Some CPU", "6/143/8"));
    assert_eq!(flags, ["avx2", "fma", "avx512f"]);
    assert_eq!(processor(""), (String::new(), String::new(), Vec::new()));
    assert_eq!(kib("MemTotal:  1000 kB\n", "MemTotal:"), Some(1_024_000));
    assert_eq!(kib("MemTotal:  many kB\n", "MemTotal:"), None);
}

fn safetensors(header: &Value, data: &[u8]) -> Vec<u8> {
    let header = header.to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

#[test]
fn tensors_are_found_by_name() {
    let header = json!({
        "a": { "dtype": "I64", "shape": [1], "data_offsets": [0, 8] },
        "b": { "dtype": "F32", "shape": [2], "data_offsets": [8, 16] },
        "c": { "dtype": "F32", "shape": [2], "data_offsets": [12, 20] },
    });
    let data: Vec<u8> = [0u8; 8].into_iter().chain(1.5f32.to_le_bytes()).chain((-2.0f32).to_le_bytes()).collect();
    let bytes = safetensors(&header, &data);
    assert_eq!(parse(&bytes, "b").unwrap(), [1.5, -2.0]);
    for (name, message) in [("a", "F32"), ("c", "outside"), ("d", "no such tensor")] {
        assert!(parse(&bytes, name).unwrap_err().to_string().contains(message), "{name}");
    }
    assert!(parse(&bytes[..5], "b").unwrap_err().to_string().contains("shorter"));
    assert!(parse(&bytes[..20], "b").unwrap_err().to_string().contains("longer"));
}

#[test]
fn distances_are_relative_to_what_is_expected() {
    assert_eq!(relative_l2(&[3.0, 4.0], &[3.0, 4.0]).unwrap(), 0.0);
    assert_eq!(relative_l2(&[0.0, 0.0], &[3.0, 4.0]).unwrap(), 1.0);
    assert!(relative_l2(&[1.0], &[1.0, 2.0]).is_err());
    // What is not a number must not pass for agreement.
    assert!(relative_l2(&[f32::NAN], &[1.0]).unwrap().is_nan());
}

#[test]
fn works_are_chosen_by_name() {
    assert_eq!(works::chosen(&[]).len(), works::WORKS.len());
    let chosen = works::chosen(&["book-train-64".to_owned()]);
    assert_eq!(chosen.len(), 1);
    assert_eq!((chosen[0].model, chosen[0].task, chosen[0].batch), ("book", Task::Train, 64));
    for work in works::WORKS {
        let task = match work.model {
            "sd15-vae" => "decode",
            "sd15-text" => "text",
            _ => work.task.name(),
        };
        let network = work.model.split('-').next().unwrap_or_default();
        assert_eq!(work.name, format!("{network}-{task}-{}", work.batch));
    }
}

#[test]
fn peers_do_what_they_can() {
    let names = |work: &str| -> Vec<&str> {
        let work = works::chosen(&[work.to_owned()])[0];
        peer::able(&work, &[]).iter().map(|peer| peer.name).collect()
    };
    assert_eq!(names("book-forward-64"), peer::names());
    assert!(!names("book-train-64").contains(&"openvino"));
    assert!(names("cifar10-train-8").contains(&"pytorch-compile-cl"));
    let only = peer::able(&works::WORKS[0], &["burn".to_owned()]);
    assert_eq!(only.len(), 1);
}

/// A peer that is a script of the shell.
fn shell(name: &'static str, script: &str) -> (tempfile::TempDir, anyhow::Result<(Peer, peer::Ready)>) {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let mut command = Command::new("sh");
    command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
    command.stderr(std::fs::File::create(&log).unwrap());
    let started = Peer::spawn(name, command, log);
    (folder, started)
}

const READY: &str = r#"echo '{"ready": true, "error": 1e-6, "idle_rss_mb": 10.5, "setup_seconds": 2}'; "#;

#[cfg(unix)]
#[test]
fn a_peer_answers_line_by_line() {
    let script = format!(
        r#"{READY} read a; echo "$a" >&2; echo '{{"seconds": [0.5, 0.25]}}'; read a; echo '{{"peak_rss_mb": 42}}'"#
    );
    let (folder, started) = shell("one", &script);
    let (mut peer, ready) = started.unwrap();
    assert_eq!((ready.error, ready.idle_rss_mb, ready.losses.len()), (1e-6, 10.5, 0));
    assert_eq!(peer.run(0.5).unwrap(), [0.5, 0.25]);
    assert_eq!(peer.quit().unwrap(), 42.0);
    let asked = std::fs::read_to_string(folder.path().join("log")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&asked).unwrap(), json!({ "run": 0.5 }));
}

#[cfg(unix)]
#[test]
fn a_peer_that_ends_is_reported_with_its_last_lines() {
    let (_folder, started) = shell("one", "echo noise >&2; echo 'the reason' >&2; exit 3");
    let message = started.err().unwrap().to_string();
    assert!(message.contains("exit status: 3") && message.ends_with("the reason"), "{message}");
    let (_folder, started) = shell("one", &format!("{READY} read a; echo late >&2; exit 4"));
    let (mut peer, _) = started.unwrap();
    let message = peer.run(0.1).unwrap_err().to_string();
    assert!(message.contains("exit status: 4") && message.ends_with("late"), "{message}");
    let (_folder, started) = shell("one", "echo hello");
    assert!(format!("{:#}", started.err().unwrap()).contains("hello"));
}

#[test]
fn cargo_says_where_the_binary_is() {
    let messages = "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"other\"},\"executable\":\"/x/other\"}\n\
                    {\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"tweedie\"},\"executable\":\"/x/tweedie\"}\n\
                    {\"reason\":\"build-finished\",\"success\":true}\n";
    assert_eq!(executable(messages), Some(PathBuf::from("/x/tweedie")));
    assert_eq!(executable("{}\n"), None);
}

#[test]
fn our_measurements_come_with_or_without_all_steps() {
    let mut json = json!({
        "passes": 3, "seconds_median": 0.2, "seconds_best": 0.1, "gflops_per_image": 0.7, "peak_memory_bytes": 2_000_000,
        "instruction_set": "avx2", "further": 1,
    });
    let summary: Measured = serde_json::from_value(json.clone()).unwrap();
    assert_eq!(summary.peak_rss_mb(), Some(2.0));
    let turn = summary.turn(2);
    assert_eq!((turn.place, turn.steps, turn.median, turn.best), (2, 3, 0.2, 0.1));
    json["seconds"] = json!([0.3, 0.1]);
    let whole: Measured = serde_json::from_value(json).unwrap();
    assert_eq!((whole.turn(0).steps, whole.turn(0).median), (2, 0.2));
}

#[test]
fn criterion_counts_in_nanoseconds() {
    let benchmark = json!({ "full_id": "64x28x28/forward", "throughput": { "Elements": 3_000_000 } });
    let estimates = json!({ "median": { "point_estimate": 10_000.0 } });
    let kernel = kernels::kernel(&benchmark, &estimates).unwrap();
    assert_eq!((kernel.seconds_median, kernel.gflops_per_second), (1e-5, Some(300.0)));
    let plain = kernels::kernel(&json!({ "full_id": "a", "throughput": null }), &estimates).unwrap();
    assert_eq!(plain.gflops_per_second, None);
    assert_eq!(kernels::kernel(&benchmark, &json!({})), None);
}

#[test]
fn criterion_folders_are_searched() {
    let folder = tempfile::tempdir().unwrap();
    for (name, time) in [("b/forward", 20.0), ("a/forward", 10.0)] {
        let new = folder.path().join(name).join("new");
        std::fs::create_dir_all(&new).unwrap();
        std::fs::create_dir_all(folder.path().join(name).join("base")).unwrap();
        std::fs::write(new.join("benchmark.json"), json!({ "full_id": name }).to_string()).unwrap();
        let estimates = json!({ "median": { "point_estimate": time } });
        std::fs::write(new.join("estimates.json"), estimates.to_string()).unwrap();
    }
    let found = kernels::read(folder.path()).unwrap();
    assert_eq!(found.iter().map(|kernel| kernel.name.as_str()).collect::<Vec<_>>(), ["a/forward", "b/forward"]);
}

fn entry(who: &str, threads: usize, medians: &[f64], memory: f64) -> Entry {
    Entry {
        who: who.to_owned(),
        threads,
        error: Some(1e-6),
        turns: medians.iter().map(|m| Turn::from_steps(0, vec![*m]).unwrap()).collect(),
        idle_rss_mb: Some(10.0),
        peak_rss_mb: Some(10.0 + memory),
        ..Entry::default()
    }
}

fn report() -> Report {
    let wrong = Entry {
        who: "candle".to_owned(),
        error: Some(0.5),
        problem: Some("its output is wrong".to_owned()),
        ..Entry::default()
    };
    let entries = vec![
        entry(OURS, 2, &[0.1, 0.2, 0.1], 100.0),
        entry("tweedie, 1 thread", 1, &[0.19], 80.0),
        entry("pytorch-eager", 2, &[0.4, 0.5], 400.0),
        entry("openvino", 2, &[0.3], 200.0),
        wrong,
    ];
    Report {
        date: "2026-01-31".to_owned(),
        revision: "abc".to_owned(),
        machine: Machine { cpu: "Some CPU".to_owned(), cores: 2, ..Machine::default() },
        threads: 2,
        seconds: 5.0,
        rounds: 3,
        works: vec![WorkResult {
            work: "book-train-64".to_owned(),
            model: "book".to_owned(),
            task: Task::Train,
            batch: 64,
            gflop_per_image: 2.0,
            entries,
        }],
        kernels: Vec::new(),
    }
}

#[test]
fn ours_is_compared_with_the_fastest_peer() {
    let work = &report().works[0];
    let fastest = work.fastest_peer().unwrap();
    assert_eq!(fastest.who, "openvino");
    assert!((work.ratio(fastest).unwrap() - 3.0).abs() < 1e-12);
    let verdicts = work.verdicts();
    assert_eq!(
        verdicts,
        [
            "book-train-64: 3.00 x the fastest peer (openvino)",
            "book-train-64: 1.90 x as fast with 2 threads as with 1",
            "book-train-64: 0.25 of the peak memory of PyTorch eager over idle",
        ]
    );
}

#[test]
fn tables_have_a_row_for_everybody() {
    let text = report().table();
    let row = |who: &str| -> Vec<String> {
        let line = text.lines().find(|line| line.contains(who)).unwrap();
        line.split_whitespace().map(str::to_owned).collect()
    };
    assert_eq!(
        row("pytorch-eager "),
        ["book-train-64", "pytorch-eager", "142.2", "160.0", "450.00", "284", "4.50", "400", "1.0e-6"]
    );
    assert_eq!(row("candle "), ["book-train-64", "candle", "-", "-", "-", "-", "-", "-", "5.0e-1"]);
    assert!(text.ends_with("book-train-64, candle: its output is wrong\n"));
    let markdown = report().markdown();
    assert!(markdown.contains("| book-train-64 | tweedie | 640.0 |"), "{markdown}");
    assert!(markdown.contains("- book-train-64: 3.00 x the fastest peer"));
}

#[test]
fn results_replace_no_earlier_ones() {
    let folder = tempfile::tempdir().unwrap();
    let first = report().write(folder.path()).unwrap();
    let second = report().write(folder.path()).unwrap();
    assert!(first.ends_with("2026-01-31-some-cpu.json") && second.ends_with("2026-01-31-some-cpu-2.json"));
    let value: Value = serde_json::from_str(&std::fs::read_to_string(first).unwrap()).unwrap();
    assert_eq!(value["works"][0]["entries"][0]["turns"][1]["seconds"], json!([0.2]));
    assert!(second.with_extension("md").is_file());
}

#[test]
fn lists_of_numbers_take_one_line() {
    let value = json!({ "a": [1.5, 2e-7, -3], "b": ["x", "y"], "c": [], "d": [[1, 2], [3]] });
    let text = compact_numbers(&serde_json::to_string_pretty(&value).unwrap());
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
    assert!(text.contains("\"a\": [1.5, 2e-7, -3],\n"), "{text}");
}
