//! `cargo xtask endurance`: kills, full disks and wrong files, and whether a run survives them bit for bit.
//!
//! It trains a small network on images of its own, once without a break and once with many kills, and compares
//! everything that the two runs leave. Then it puts obstacles in the way of a run, looks at how they are reported, takes
//! them away, and compares again. docs/reliability.md says what is guaranteed.

mod compare;
mod failures;
mod kills;
mod process;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use clap::Args;

use process::{Program, Random};

/// `cargo xtask endurance`.
#[derive(Args, Clone, Debug)]
pub struct EnduranceArgs {
    /// Kills of each run
    #[arg(long, value_name = "K", default_value_t = 30)]
    kills: u64,
    /// Steps of the runs that are killed
    #[arg(long, value_name = "N", default_value_t = 200)]
    steps: u64,
    /// Keys the moments of the kills [default: the time, which is printed]
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// The program to be tested [default: tweedie, built in release mode]
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Folder for the runs, which is emptied first
    #[arg(long, value_name = "DIR", default_value = "target/endurance")]
    out: PathBuf,
    /// Leave out the failures, and only kill
    #[arg(long)]
    kills_only: bool,
}

/// What a check came to.
pub(crate) enum Verdict {
    Passed(String),
    Skipped(String),
    Failed(String),
}

/// A check and what it came to.
pub(crate) struct Case {
    name: String,
    verdict: Verdict,
}

impl Case {
    /// The check `name`, passed with what it says, or failed with its error.
    pub(crate) fn of(name: impl Into<String>, outcome: Result<Verdict>) -> Self {
        let verdict = outcome.unwrap_or_else(|error| Verdict::Failed(format!("{error:#}")));
        let case = Self { name: name.into(), verdict };
        eprintln!("endurance: {}", case.row());
        case
    }

    /// A row of the table.
    fn row(&self) -> String {
        let (verdict, remark) = match &self.verdict {
            Verdict::Passed(remark) => ("passed", remark),
            Verdict::Skipped(remark) => ("skipped", remark),
            Verdict::Failed(remark) => ("FAILED", remark),
        };
        format!("| {} | {verdict} | {} |", self.name, remark.replace('\n', " ").replace('|', "/"))
    }
}

/// A command that trains, and how it is called.
pub(crate) struct Subject {
    /// The command.
    command: &'static str,
    /// The options of a short run, apart from its length, seed and directory.
    options: &'static [&'static str],
    /// The command that opens what the run leaves.
    opens: &'static str,
}

/// Every command that trains and can be resumed.
const SUBJECTS: [Subject; 2] = [
    Subject { command: "train", options: &["--preset", "tiny"], opens: "inspect" },
    Subject { command: "train-classifier", options: &["--preset", "mnist-noisy"], opens: "inspect" },
];

/// Runs the chore; true if no check failed.
///
/// # Errors
/// If the program cannot be built or started, or the folder cannot be written.
pub fn run(root: &Path, args: &EnduranceArgs) -> Result<bool> {
    ensure!(args.steps > args.kills, "--steps {} should be more than --kills {}", args.steps, args.kills);
    let binary = match &args.binary {
        Some(binary) => binary.canonicalize().with_context(|| format!("there is no {}", binary.display()))?,
        None => build(root)?,
    };
    let folder = root.join(&args.out);
    if folder.exists() {
        failures::Disk::release(&folder.join(failures::DISK_NAME));
        fs::remove_dir_all(&folder).with_context(|| format!("cannot empty {}", folder.display()))?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let folder = folder.canonicalize()?;
    write_images(&folder.join("images"))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let seed = args.seed.unwrap_or(now);
    eprintln!("endurance: --seed {seed} repeats the delays of these kills");

    let program = Program { binary, folder };
    let mut cases = Vec::new();
    for subject in &SUBJECTS {
        let name = format!("{}: {} kills in {} steps", subject.command, args.kills, args.steps);
        if !program.knows(subject.command)? {
            let remark = "this build has no such command".to_owned();
            cases.push(Case::of(name, Ok(Verdict::Skipped(remark))));
            continue;
        }
        let mut random = Random::new(seed);
        cases.push(Case::of(name, kills::survive(&program, subject, args.kills, args.steps, &mut random)));
    }
    if !args.kills_only {
        failures::all(&program, &SUBJECTS[0], &mut cases)?;
    }
    println!("| case | verdict | what happened |\n|---|---|---|");
    for case in &cases {
        println!("{}", case.row());
    }
    Ok(!cases.iter().any(|case| matches!(case.verdict, Verdict::Failed(_))))
}

/// Builds the program in release mode.
fn build(root: &Path) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let args = ["build", "--release", "--package", "tweedie-cli"];
    let status = Command::new(cargo).current_dir(root).args(args).status().context("cannot start cargo")?;
    ensure!(status.success(), "tweedie could not be built");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let binary = target.join("release").join(format!("tweedie{}", std::env::consts::EXE_SUFFIX));
    binary.canonicalize().with_context(|| format!("there is no {}; name the program with --binary", binary.display()))
}

/// 160 images of 8 x 8 with ten labels as a folder of IDX files: ten steps of 16 images are an epoch, so that a run of
/// two hundred steps also draws samples, and starts without delay.
fn write_images(folder: &Path) -> Result<()> {
    let (count, side) = (160u32, 8u32);
    let mut images = [0x0803, count, side, side].map(u32::to_be_bytes).concat();
    let mut labels = [0x0801, count].map(u32::to_be_bytes).concat();
    for i in 0..count {
        labels.push((i % 10) as u8);
        images.extend((0..side * side).map(|p| (15 * (i % 10) + (i * 7919 + p * 31) % 100) as u8));
    }
    fs::create_dir_all(folder)?;
    for (name, bytes) in [("train-images-idx3-ubyte", images), ("train-labels-idx1-ubyte", labels)] {
        fs::write(folder.join(name), bytes).with_context(|| format!("cannot write to {}", folder.display()))?;
    }
    Ok(())
}
