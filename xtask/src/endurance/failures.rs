//! Obstacles: what a run that meets one says, and that nothing is lost by it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::process::{Ended, Program, Watched, files, finish};
use super::{Case, Subject, Verdict, compare};

/// Steps of the run that meets the obstacles, and of the one that it is to become: whole epochs, since a run that ends
/// within one leaves a picture of its end.
const HALF: u64 = 10;
const WHOLE: u64 = 20;
/// Where the runs lie.
const BASE: &str = "base";
const REFERENCE: &str = "reference";
/// Where the small disk is mounted.
pub(super) const DISK_NAME: &str = "disk";
/// MiB of the small disk: room for some runs of a few hundred KiB.
const DISK: &str = "8";

/// Carries out every case, and adds them to `cases`.
///
/// # Errors
/// If the runs to start from cannot be made.
pub(super) fn all(program: &Program, subject: &Subject, cases: &mut Vec<Case>) -> Result<()> {
    program.succeed(&Program::arguments(subject, BASE, HALF, false))?;
    program.succeed(&Program::arguments(subject, REFERENCE, WHOLE, false))?;
    let field = Field { program, subject };
    cases.extend(field.refusals());
    cases.push(Case::of("two processes in one directory", field.two_processes()));
    cases.extend(field.damages());
    cases.push(Case::of("files larger than the system allows", field.size_limits()));
    cases.extend(field.small_disk());
    cases.push(Case::of("output to /dev/full", field.full_device()));
    Ok(())
}

/// A case's ground: the program and its run.
struct Field<'a> {
    program: &'a Program,
    subject: &'a Subject,
}

impl Field<'_> {
    /// A copy of the run of [`HALF`] steps.
    fn copy(&self, name: &str) -> Result<PathBuf> {
        let to = self.program.path(name);
        copy(&self.program.path(BASE), &to)?;
        Ok(to)
    }

    fn resume(&self, run: &str) -> Vec<String> {
        Program::arguments(self.subject, run, WHOLE, true)
    }

    /// Whether a run that met an obstacle opens, and becomes the run that it would have been.
    fn recovers(&self, run: &str) -> Result<()> {
        self.program.opens(self.subject, run).context("after the failure")?;
        self.program.succeed(&self.resume(run)).context("the resumed run")?;
        compare::same_runs(&self.program.path(REFERENCE), &self.program.path(run))?;
        Ok(())
    }

    /// Options that do not belong to the run, or a directory that is none of a run.
    fn refusals(&self) -> Vec<Case> {
        let other_data = || -> Result<()> {
            copy(&self.program.path("images"), &self.program.path("other-images"))?;
            let path = self.program.path("other-images/train-images-idx3-ubyte");
            let mut bytes = fs::read(&path)?;
            if let Some(last) = bytes.last_mut() {
                *last ^= 1;
            }
            Ok(fs::write(&path, bytes)?)
        };
        let foreign = |name: &str, file: &str| -> Result<()> {
            fs::create_dir_all(self.program.path(name))?;
            Ok(fs::write(self.program.path(name).join(file), "something else\n")?)
        };
        let with = |run: &str, more: &[&str]| {
            let mut arguments = self.resume(run);
            for pair in more.chunks(2) {
                match arguments.iter().position(|argument| argument == pair[0]) {
                    Some(at) => arguments[at + 1] = pair[1].to_owned(),
                    None => arguments.extend(pair.iter().map(|&text| text.to_owned())),
                }
            }
            arguments
        };
        type Prepare<'a> = &'a dyn Fn() -> Result<()>;
        let nothing: Prepare<'_> = &|| Ok(());
        let foreign_log: Prepare<'_> = &|| foreign("foreign", "log.csv");
        let fresh = |out: &str| Program::arguments(self.subject, out, WHOLE, false);
        let list: [(&str, Prepare<'_>, Vec<String>, &[&str]); 9] = [
            ("--resume with another --batch", nothing, with("r0", &["--batch", "8"]), &["config.batch", "16", "8"]),
            ("--resume with another --lr", nothing, with("r1", &["--lr", "0.5"]), &["config.lr", "0.5"]),
            ("--resume with another --seed", nothing, with("r2", &["--seed", "9"]), &["config.seed", "9"]),
            ("--resume with another --preset", nothing, with("r3", &["--preset", "mnist"]), &["preset tiny", "r3"]),
            ("--resume with other data", &other_data, with("r4", &["--data", "other-images"]), &["data.content"]),
            ("--resume without data", nothing, with("r5", &["--data", "absent"]), &["absent"]),
            ("a new run in a run's directory", nothing, fresh("r6"), &["r6", "--resume", "--out"]),
            ("a new run over somebody's log.csv", foreign_log, fresh("foreign"), &["log.csv", "something else"]),
            ("--resume where there is no run", nothing, self.resume("nothing"), &["nothing", "train.toml"]),
        ];
        let mut cases = Vec::new();
        for (i, (name, prepare, arguments, parts)) in list.into_iter().enumerate() {
            let outcome = || {
                prepare()?;
                let run = format!("r{i}");
                self.copy(&run)?;
                let message = self.refused(&arguments, &run, parts)?;
                self.recovers(&run)?;
                Ok(Verdict::Passed(message))
            };
            cases.push(Case::of(name, outcome()));
        }
        cases
    }

    /// Runs what has to fail with one error that holds `parts`, and leave every file of `run` as it was.
    fn refused(&self, arguments: &[String], run: &str, parts: &[&str]) -> Result<String> {
        let directory = self.program.path(run);
        let before = contents(&directory)?;
        let mut arguments = arguments.to_vec();
        arguments.push("--quiet".to_owned());
        let ended = self.program.run(&arguments)?;
        let message = one_error(&ended, parts)?;
        ensure!(contents(&directory)? == before, "the run was changed, although the command failed with: {message}");
        Ok(message)
    }

    /// One process trains, held still by a signal, while another one wants to.
    fn two_processes(&self) -> Result<Verdict> {
        if cfg!(not(unix)) {
            return Ok(Verdict::Skipped("needs signals".to_owned()));
        }
        let run = "two";
        self.copy(run)?;
        let mut first = Watched::start(self.program.command(&self.resume(run)))?;
        ensure!(first.wait_for(&["resuming "], Duration::from_secs(120)), "the first did not start");
        signal("-STOP", first.id())?;
        let second = self.refused_now(run);
        signal("-CONT", first.id())?;
        let ended = first.finish()?;
        let message = second?;
        ensure!(ended.code == Some(0), "the first ended with {:?}: {}", ended.code, ended.stderr);
        self.recovers(run)?;
        Ok(Verdict::Passed(message))
    }

    fn refused_now(&self, run: &str) -> Result<String> {
        let mut arguments = self.resume(run);
        arguments.push("--quiet".to_owned());
        one_error(&self.program.run(&arguments)?, &["another process is training", run, "--out"])
    }

    /// Files of the run that are damaged or missing: the error names them, and with the file put back the run goes on.
    fn damages(&self) -> Vec<Case> {
        type Damage = fn(Vec<u8>) -> Option<Vec<u8>>;
        let list: [(&str, &str, Damage, &[&str]); 8] = [
            ("a missing state", "state.safetensors", |_| None, &["state.safetensors is missing", "put it back"]),
            ("an empty state", "state.safetensors", |_| Some(Vec::new()), &["state.safetensors"]),
            ("a state cut in half", "state.safetensors", |b| Some(b[..b.len() / 2].to_vec()), &["state.safetensors"]),
            (
                "a state without its last byte",
                "state.safetensors",
                |b| Some(b[..b.len() - 1].to_vec()),
                &["state.safetensors"],
            ),
            ("a state of zeros", "state.safetensors", |b| Some(vec![0; b.len()]), &["state.safetensors"]),
            (
                "a state that is another file",
                "state.safetensors",
                |_| Some(b"my notes, not a state".to_vec()),
                &["state.safetensors"],
            ),
            ("a train.toml cut short", "train.toml", |b| Some(b[..b.len() / 2].to_vec()), &["train.toml"]),
            (
                "a log.csv that is another file",
                "log.csv",
                |_| Some(b"my,notes\n1,2\n".to_vec()),
                &["log.csv", "my,notes"],
            ),
        ];
        let mut cases = Vec::new();
        for (i, (name, file, damage, parts)) in list.into_iter().enumerate() {
            let outcome = || {
                let run = format!("d{i}");
                let path = self.copy(&run)?.join(file);
                let whole = fs::read(&path)?;
                match damage(whole.clone()) {
                    Some(bytes) => fs::write(&path, bytes)?,
                    None => fs::remove_file(&path)?,
                }
                // Without the options, which may be what is damaged, the directory alone has to tell.
                let resume = [self.subject.command, "--out", &run, "--resume"].map(str::to_owned);
                let message = self.refused(&resume, &run, parts)?;
                self.program.opens(self.subject, &run)?;
                fs::write(&path, whole)?;
                self.recovers(&run)?;
                Ok(Verdict::Passed(message))
            };
            cases.push(Case::of(name, outcome()));
        }
        cases
    }

    /// Limits on the size of a file, from nothing to more than is needed, so that one file after another cannot be written.
    fn size_limits(&self) -> Result<Verdict> {
        if cfg!(not(unix)) {
            return Ok(Verdict::Skipped("needs ulimit".to_owned()));
        }
        let mut stopped = Vec::new();
        // In units of 512 bytes or 1 KiB, as the shell has it.
        for (i, limit) in [0, 1, 2, 16, 64, 128, 256, 400, 1024].into_iter().enumerate() {
            let run = format!("l{i}");
            self.copy(&run)?;
            let mut arguments = self.resume(&run);
            arguments.push("--quiet".to_owned());
            // Without the signal that comes with it, a write beyond the limit is an error like any other.
            let script = format!("trap '' XFSZ; ulimit -f {limit}; exec \"$0\" \"$@\"");
            let mut command = Command::new("sh");
            command.arg("-c").arg(script).arg(&self.program.binary).args(&arguments);
            command.current_dir(&self.program.folder).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
            let ended = finish(command.spawn().context("cannot start sh")?)?;
            if ended.code == Some(0) && self.recovers(&run).is_ok() {
                continue;
            }
            let message = one_error(&ended, &[&run]).with_context(|| format!("a limit of {limit}"))?;
            stopped.push(stopped_at(&message, &run));
            self.recovers(&run).with_context(|| format!("after a limit of {limit}"))?;
        }
        ensure!(!stopped.is_empty(), "no limit stopped a run");
        stopped.dedup();
        Ok(Verdict::Passed(format!("it stopped at {}", stopped.join(", "))))
    }

    /// A small disk of its own, full at one time and read-only at another.
    fn small_disk(&self) -> Vec<Case> {
        let names = ["a full disk", "a read-only disk"];
        let disk = match Disk::mount(&self.program.path(DISK_NAME)) {
            Ok(disk) => disk,
            Err(error) => {
                let why = format!("needs a small disk to be mounted: {error:#}");
                return names.map(|name| Case::of(name, Ok(Verdict::Skipped(why.clone())))).into();
            }
        };
        vec![Case::of(names[0], self.full_disk(&disk)), Case::of(names[1], self.read_only(&disk))]
    }

    /// Fills the disk up to some space, so that another file each time does not fit.
    fn full_disk(&self, disk: &Disk) -> Result<Verdict> {
        let run = "disk/full";
        let mut stopped = Vec::new();
        let mut free_of_failure = false;
        for space in [0usize, 4, 12, 40, 100, 200, 400, 600, 700, 900, 1200, 2000] {
            let directory = self.copy(run)?;
            let filler = disk.path.join("filler");
            fill(&filler, space * 1024)?;
            let mut arguments = self.resume(run);
            arguments.push("--quiet".to_owned());
            let ended = self.program.run(&arguments)?;
            fs::remove_file(&filler)?;
            let what = || format!("with {space} KiB left");
            if ended.code == Some(0) {
                free_of_failure = true;
            } else {
                let message = one_error(&ended, &[run, "space"]).with_context(what)?;
                stopped.push(stopped_at(&message, run));
            }
            self.recovers(run).with_context(what)?;
            fs::remove_dir_all(directory)?;
        }
        ensure!(!stopped.is_empty() && free_of_failure, "the disk was never full, or always");
        stopped.dedup();
        Ok(Verdict::Passed(format!("it stopped at {}", stopped.join(", "))))
    }

    fn read_only(&self, disk: &Disk) -> Result<Verdict> {
        let run = "disk/read-only";
        self.copy(run)?;
        disk.remount("ro")?;
        let refused = self.refused(&self.resume(run), run, &[run, "--out"]);
        let fresh = Program::arguments(self.subject, "disk/new", WHOLE, false);
        let new = self.refused(&fresh, run, &["disk/new", "--out"]);
        disk.remount("rw")?;
        let message = refused?;
        new?;
        self.recovers(run)?;
        Ok(Verdict::Passed(message))
    }

    /// A device that takes nothing.
    fn full_device(&self) -> Result<Verdict> {
        let device = Path::new("/dev/full");
        if !device.exists() {
            return Ok(Verdict::Skipped("there is no /dev/full".to_owned()));
        }
        let sample = ["sample", "--model", BASE, "--labels", "1", "--steps", "1", "--quiet", "--out"];
        for name in ["full.npy", "full.png", "full.safetensors"] {
            #[cfg(unix)]
            std::os::unix::fs::symlink(device, self.program.path(name))?;
            let arguments = [&sample[..], &[name]].concat();
            one_error(&self.program.run(&arguments)?, &[name, "space"]).with_context(|| name.to_owned())?;
        }
        let mut command = self.program.command(&["inspect", BASE]);
        command.stdout(fs::File::options().write(true).open(device)?);
        let message = one_error(&finish(command.spawn()?)?, &["stdout", "space"]).context("the standard output")?;
        Ok(Verdict::Passed(format!("pictures, arrays, standard output: {message}")))
    }
}

/// A file system of a few MiB, gone when it is dropped.
pub(super) struct Disk {
    path: PathBuf,
}

impl Disk {
    /// Mounts one, which needs Linux and a privileged user.
    fn mount(path: &Path) -> Result<Self> {
        fs::create_dir_all(path)?;
        let options = format!("size={DISK}m");
        system("mount", &["-t", "tmpfs", "-o", &options, "tmpfs"], path)?;
        Ok(Self { path: path.to_owned() })
    }

    /// Takes away one that an interrupted run of this chore has left.
    pub(super) fn release(path: &Path) {
        if path.is_dir() {
            let _ = Command::new("umount").arg(path).stderr(Stdio::null()).status();
        }
    }

    fn remount(&self, mode: &str) -> Result<()> {
        system("mount", &["-o", &format!("remount,{mode},size={DISK}m")], &self.path)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = system("umount", &[], &self.path);
    }
}

/// Runs a command of the system on a path.
fn system(command: &str, arguments: &[&str], path: &Path) -> Result<()> {
    let output = Command::new(command).args(arguments).arg(path).output();
    let output = output.with_context(|| format!("cannot start {command}"))?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

fn signal(name: &str, id: u32) -> Result<()> {
    let status = Command::new("kill").args([name, &id.to_string()]).status().context("cannot start kill")?;
    ensure!(status.success(), "the signal {name} could not be sent");
    Ok(())
}

/// Fills a disk but for `space` bytes.
fn fill(path: &Path, space: usize) -> Result<()> {
    use std::io::{ErrorKind, Write};
    let mut file = fs::File::create(path)?;
    let mut written = 0;
    loop {
        match file.write(&[0; 4096]) {
            Ok(bytes) => written += bytes,
            Err(error) if error.kind() == ErrorKind::StorageFull => break,
            Err(error) => return Err(error).context("cannot fill the disk"),
        }
    }
    Ok(file.set_len(written.saturating_sub(space) as u64)?)
}

/// The one error of a command that has failed as it should: with exit status 1 or 2, a message on stderr that holds each of
/// `parts`, and nothing besides.
fn one_error(ended: &Ended, parts: &[&str]) -> Result<String> {
    let Ended { code, stderr } = ended;
    ensure!(matches!(code, Some(1 | 2)), "exit status {code:?} instead of 1 or 2; stderr: {stderr}");
    let errors = stderr.matches("error: ").count();
    ensure!(stderr.starts_with("error: ") && errors == 1, "not one error, but: {stderr}");
    for part in parts {
        ensure!(stderr.contains(part), "no \"{part}\" in: {stderr}");
    }
    Ok(stderr.trim_start_matches("error: ").trim().to_owned())
}

/// The file of a run that an error names.
fn stopped_at(message: &str, run: &str) -> String {
    let word = message.split([' ', ':', ';', ',']).find(|word| word.contains(run)).unwrap_or(run);
    match word.split_once(&format!("{run}/")) {
        Some((_, file)) => file.to_owned(),
        None => "the directory".to_owned(),
    }
}

/// Every file of a run and what it holds.
fn contents(directory: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut found = Vec::new();
    for name in files(directory)? {
        let bytes = fs::read(directory.join(&name)).with_context(|| name.display().to_string())?;
        found.push((name, bytes));
    }
    Ok(found)
}

/// Copies a directory.
fn copy(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        bail!("{} is there already", to.display());
    }
    for name in files(from)? {
        let target = to.join(&name);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::copy(from.join(&name), &target).with_context(|| format!("cannot copy to {}", target.display()))?;
    }
    Ok(())
}
