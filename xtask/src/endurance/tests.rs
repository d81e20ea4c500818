use std::fs;

use super::compare::{same_runs, step, tensors};
use super::process::{Random, temporary};

/// A state with one tensor of two numbers.
fn state(steps: u64, seconds: f64, values: [f32; 2]) -> Vec<u8> {
    let header = format!(
        "{{\"__metadata__\":{{\"step\":\"{steps}\",\"seconds\":\"{seconds}\"}},\
         \"params\":{{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}}}"
    );
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.into_bytes());
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    bytes
}

#[test]
fn runs_differ_in_anything_but_their_seconds() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, state: Vec<u8>, log: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.join("samples")).unwrap();
        fs::write(path.join("state.safetensors"), state).unwrap();
        fs::write(path.join("log.csv"), format!("step,loss,seconds\n{log}")).unwrap();
        fs::write(path.join("samples/a.png"), "png").unwrap();
        path
    };
    let first = run("first", state(3, 1.5, [1.0, -0.0]), "1,0.5,0.25\n");
    let log = "1,0.5,0.5\n";
    assert_eq!(same_runs(&first, &run("seconds", state(3, 2.5, [1.0, -0.0]), log)).unwrap(), 3);
    assert!(same_runs(&first, &run("step", state(4, 1.5, [1.0, -0.0]), log)).is_err());
    assert!(same_runs(&first, &run("sign", state(3, 1.5, [1.0, 0.0]), log)).is_err());
    assert!(same_runs(&first, &run("log", state(3, 1.5, [1.0, -0.0]), "1,0.25,0.5\n")).is_err());
    let more = run("more", state(3, 1.5, [1.0, -0.0]), log);
    fs::write(more.join("samples/b.png"), "png").unwrap();
    assert!(same_runs(&first, &more).unwrap_err().to_string().contains("b.png"));
    assert_eq!(step(&first.join("state.safetensors")).unwrap(), 3);
    assert_eq!(step(&first.join("absent.safetensors")).unwrap(), 0);
}

#[test]
fn a_cut_file_is_an_error_and_temporary_files_are_found() {
    let whole = state(3, 1.5, [1.0, 2.0]);
    assert_eq!(tensors(&whole).unwrap().len(), 2, "the tensor and the step");
    for length in 0..whole.len() {
        assert!(tensors(&whole[..length]).is_err(), "{length} bytes");
    }
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("unet")).unwrap();
    for name in ["log.csv", "unet/.config.json.tweedie-Ab3.tmp"] {
        fs::write(folder.path().join(name), "").unwrap();
    }
    assert_eq!(temporary(folder.path()).unwrap(), [".config.json.tweedie-Ab3.tmp"]);
}

#[test]
fn the_delays_follow_from_the_seed_and_fill_the_interval() {
    let draw = |seed| {
        let mut random = Random::new(seed);
        std::array::from_fn::<f64, 1000, _>(|_| random.unit())
    };
    let numbers = draw(7);
    assert_eq!(numbers, draw(7));
    assert_ne!(numbers, draw(8));
    assert!(numbers.iter().all(|number| (0.0..1.0).contains(number)));
    for tenth in 0..10 {
        let count = numbers.iter().filter(|&&number| (10.0 * number) as usize == tenth).count();
        assert!((60..150).contains(&count), "{count} of a thousand in tenth {tenth}");
    }
}
