//! Files are there whole or not at all: failing writers, killed processes, leftovers, several writers at once.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tweedie_checkpoint::{CheckpointError, atomic_write, atomic_write_with, load_state, save_state};

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_write_replaces_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    for content in [b"first".as_slice(), b"", b"second"] {
        atomic_write(&path, content).unwrap();
        assert_eq!(fs::read(&path).unwrap(), content);
    }
    assert_eq!(names(directory.path()), ["file"]);
}

#[test]
fn a_failing_writer_leaves_the_old_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    atomic_write(&path, b"old").unwrap();
    let fail = |writer: &mut dyn Write| {
        // More than any buffer holds, so that some of it has reached the disk.
        writer.write_all(&vec![7; 3 << 20])?;
        Err(io::Error::other("the simulated failure"))
    };
    let error = atomic_write_with(&path, fail).unwrap_err();
    assert!(matches!(error, CheckpointError::Io { operation: "write", .. }));
    assert!(error.to_string().contains("the simulated failure") && error.to_string().contains("file"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(names(directory.path()), ["file"]);

    let fresh = directory.path().join("fresh");
    atomic_write_with(&fresh, fail).unwrap_err();
    assert_eq!(names(directory.path()), ["file"]);
}

#[test]
fn a_panicking_writer_leaves_the_old_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    atomic_write(&path, b"old").unwrap();
    let result = std::panic::catch_unwind(|| {
        atomic_write_with(&path, |writer| {
            writer.write_all(b"new")?;
            panic!("the simulated panic");
        })
    });
    assert!(result.is_err());
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(names(directory.path()), ["file"]);
}

#[test]
fn leftovers_of_killed_writers_are_removed_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    for name in [
        ".file.tweedie-a1B2c3.tmp",
        ".other.tweedie-a1B2c3.tmp",
        ".file.tweedie-.tmp",
        ".file.tweedie-a.b.tmp",
        "file.tmp",
    ] {
        fs::write(directory.path().join(name), b"half").unwrap();
    }
    atomic_write(&path, b"new").unwrap();
    let kept = [".file.tweedie-.tmp", ".file.tweedie-a.b.tmp", ".other.tweedie-a1B2c3.tmp", "file", "file.tmp"];
    assert_eq!(names(directory.path()), kept);
}

/// A second writer of the same file, in the middle of the first one's work, does not take its file for a leftover.
#[test]
fn a_writer_at_work_is_not_disturbed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    atomic_write_with(&path, |writer| {
        writer.write_all(b"outer")?;
        atomic_write(&path, b"inner").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"inner");
        Ok(())
    })
    .unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"outer");
    assert_eq!(names(directory.path()), ["file"]);
}

#[test]
fn many_writers_at_once_leave_one_whole_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    std::thread::scope(|scope| {
        for writer in 0..4u8 {
            let path = &path;
            scope.spawn(move || (0..10).for_each(|_| atomic_write(path, &[writer; 4096]).unwrap()));
        }
    });
    let content = fs::read(&path).unwrap();
    assert_eq!(content, [content[0]; 4096]);
    assert_eq!(names(directory.path()), ["file"]);
}

#[test]
fn impossible_targets_are_errors() {
    let directory = tempfile::tempdir().unwrap();
    let message = |path: &Path| atomic_write(path, b"x").unwrap_err().to_string();
    assert!(message(directory.path()).contains("it is a directory"));
    let nowhere = message(&directory.path().join("none/file"));
    assert!(nowhere.contains("check the path, and that its directory exists"), "{nowhere}");
    assert!(message(Path::new("/")).contains("it is a directory"));
    assert!(message(Path::new("")).contains("no file name"));
}

#[cfg(unix)]
#[test]
fn links_devices_and_permissions() {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
    let directory = tempfile::tempdir().unwrap();
    let (target, link) = (directory.path().join("target"), directory.path().join("link"));
    fs::write(&target, b"old").unwrap();
    symlink(&target, &link).unwrap();
    atomic_write(&link, b"new").unwrap();
    assert_eq!(fs::read(&target).unwrap(), b"new");
    assert!(link.symlink_metadata().unwrap().is_symlink());
    // A device stays a device.
    atomic_write("/dev/null", b"gone").unwrap();
    assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
    // A new file has the permissions that any new file of this process has, not those of a private temporary file.
    let plain = directory.path().join("plain");
    fs::write(&plain, b"").unwrap();
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode();
    let written = directory.path().join("written");
    atomic_write(&written, b"").unwrap();
    assert_eq!(mode(&written), mode(&plain));
}

const CHILD: &str = "TWEEDIE_CHECKPOINT_TEST_CHILD";
const LEN: usize = 200_000;

fn meta(step: u64) -> BTreeMap<String, String> {
    BTreeMap::from([("step".to_owned(), step.to_string())])
}

/// The victim of the next test: saves states for ever if that test started it, and does nothing otherwise.
#[test]
fn child_that_saves_until_killed() {
    let Some(path) = std::env::var_os(CHILD) else { return };
    for step in 1.. {
        let values = vec![step as f32; LEN];
        save_state(&path, &[("weights", &values), ("moments", &values)], meta(step)).unwrap();
    }
}

/// Killed at any moment, a process that saves leaves a state that loads and is whole.
#[test]
fn a_killed_process_leaves_a_loadable_state() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.safetensors");
    save_state(&path, &[("weights", &vec![0.0; LEN]), ("moments", &vec![0.0; LEN])], meta(0)).unwrap();
    let mut last = 0;
    for round in 0..8u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_saves_until_killed"])
            .env(CHILD, &path)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // The child is at work once the file changes; the kill then comes at another moment in every round.
        let before = fs::metadata(&path).unwrap().modified().unwrap();
        let start = Instant::now();
        while fs::metadata(&path).unwrap().modified().unwrap() == before && start.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(700 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        let mut state = load_state(&path).unwrap();
        let step: u64 = state.parse("step").unwrap();
        assert!(step > 0, "the child has saved nothing");
        for name in ["weights", "moments"] {
            assert_eq!(state.take(name, LEN).unwrap(), vec![step as f32; LEN]);
        }
        last = last.max(step);
    }
    assert!(last > 0);
    save_state(&path, &[], meta(1)).unwrap();
    assert_eq!(names(directory.path()), ["state.safetensors"]);
}
