//! Our side: builds `tweedie`, checks its outputs and takes its turns by `tweedie bench`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

use super::machine::kib;
use super::stats::Turn;
use super::tensors;
use super::works::{Task, Work};

/// The binary and where its models are.
pub(super) struct Ours {
    binary: PathBuf,
    /// Cargo's target directory.
    pub(super) target: PathBuf,
    root: PathBuf,
    work: PathBuf,
}

/// What `tweedie bench --json` prints, as far as it is used here.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct Measured {
    passes: usize,
    seconds_median: f64,
    seconds_best: f64,
    /// Every step, where the version prints them.
    #[serde(default)]
    seconds: Vec<f64>,
    /// Operations of one image counted as direct convolution, three forward passes for a training step.
    pub(super) gflops_per_image: f64,
    peak_memory_bytes: Option<u64>,
    /// The instruction set that the kernels chose.
    pub(super) instruction_set: String,
}

impl Measured {
    pub(super) fn turn(&self, place: usize) -> Turn {
        Turn::from_steps(place, self.seconds.clone()).unwrap_or(Turn {
            place,
            steps: self.passes,
            median: self.seconds_median,
            best: self.seconds_best,
            seconds: Vec::new(),
        })
    }

    /// The highest resident memory in MB.
    pub(super) fn peak_rss_mb(&self) -> Option<f64> {
        self.peak_memory_bytes.map(|bytes| bytes as f64 / 1e6)
    }
}

fn cargo(root: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root);
    command
}

impl Ours {
    /// Builds the binary in release mode.
    ///
    /// # Errors
    /// If it does not compile.
    pub(super) fn build(root: &Path, work: &Path) -> Result<Self> {
        let args = ["build", "--release", "--package", "tweedie-cli", "--message-format", "json-render-diagnostics"];
        let output = cargo(root).args(args).stderr(Stdio::inherit()).output().context("cannot start cargo")?;
        ensure!(output.status.success(), "tweedie does not compile; the compiler's message stands above");
        let binary = executable(&String::from_utf8_lossy(&output.stdout))
            .context("cargo built no binary called tweedie; see the package tweedie-cli")?;
        let target = binary.parent().and_then(Path::parent).map_or_else(|| root.join("target"), Path::to_owned);
        Ok(Self { binary, target, root: root.to_owned(), work: work.to_owned() })
    }

    /// Runs the golden tests of the networks in release mode: outputs and every gradient against PyTorch's in f64.
    ///
    /// # Errors
    /// If one of them fails.
    pub(super) fn verify(&self) -> Result<()> {
        let status = cargo(&self.root)
            .args(["test", "--quiet", "--release", "--package", "tweedie-unet", "--test", "golden"])
            .stdout(Stdio::null())
            .status()
            .context("cannot start cargo")?;
        if !status.success() {
            bail!(
                "the golden tests of tweedie-unet fail, and wrong networks are not timed; run \
                 cargo test --release -p tweedie-unet --test golden"
            );
        }
        Ok(())
    }

    /// The model directory of a work: that of the peers or, where Python has made none, one of random weights.
    /// `None` stands for the bundled model.
    ///
    /// # Errors
    /// If the network can only be made by Python.
    pub(super) fn model(&self, work: &Work) -> Result<Option<PathBuf>> {
        let shared = self.work.join(work.model);
        if shared.join("stamp").is_file() {
            return Ok(Some(shared.join("model")));
        }
        match work.model {
            "digits" => Ok(None),
            "book" => {
                let folder = self.target.join("bench-book");
                if !folder.join("config.json").is_file() {
                    let train = ["--quiet", "train", "--preset", "book", "--steps", "1", "--batch", "2", "--out"];
                    self.run(Command::new(&self.binary).args(train).arg(&folder))?;
                }
                Ok(Some(folder))
            }
            other => bail!(
                "the network {other} has random weights that Python makes; run bench/peers/setup.sh, then \
                 cargo xtask bench --peers"
            ),
        }
    }

    /// The relative L2 distance of our output from the expected one; `None` where there is no expected one.
    ///
    /// # Errors
    /// If the network cannot be run.
    pub(super) fn error(&self, work: &Work, threads: usize) -> Result<Option<f64>> {
        let folder = self.work.join(work.model);
        let expected = folder.join(format!("expected-{}.safetensors", work.batch));
        if !folder.join("stamp").is_file() || !expected.is_file() {
            return Ok(None);
        }
        let found = folder.join(format!("found-{}.safetensors", work.batch));
        let mut command = Command::new(&self.binary);
        command.args(["--quiet", "--threads", &threads.to_string(), "predict"]);
        command.arg("--model").arg(folder.join("model"));
        command.arg("--input").arg(folder.join(format!("input-{}.safetensors", work.batch)));
        command.arg("--out").arg(&found);
        self.run(&mut command)?;
        let error = tensors::relative_l2(&tensors::read(&found, "sample")?, &tensors::read(&expected, "output")?)?;
        // It is made anew each time; an old one would only mislead.
        fs::remove_file(&found).with_context(|| format!("cannot remove {}", found.display()))?;
        Ok(Some(error))
    }

    /// One turn, in a process of its own.
    ///
    /// # Errors
    /// If it fails.
    pub(super) fn measure(
        &self,
        work: &Work,
        model: Option<&Path>,
        threads: usize,
        seconds: f64,
    ) -> Result<(Measured, Value)> {
        let mut command = Command::new(&self.binary);
        command.args(["--quiet", "--threads", &threads.to_string(), "bench", "--json"]);
        command.args(["--batch", &work.batch.to_string(), "--seconds", &seconds.to_string()]);
        if let Some(model) = model {
            command.arg("--model").arg(model);
        }
        if work.task == Task::Train {
            command.arg("--train");
        }
        let text = self.run(&mut command)?;
        let value: Value = serde_json::from_str(&text).context("tweedie bench --json printed no JSON")?;
        let measured = serde_json::from_value(value.clone()).context("tweedie bench --json printed other keys")?;
        Ok((measured, value))
    }

    /// The resident memory in MB of a process that has started and done nothing; `None` where the system does not tell.
    pub(super) fn idle_rss_mb(&self, threads: usize) -> Option<f64> {
        // It waits for the text of a run's options, which never comes.
        let mut child = Command::new(&self.binary)
            .args(["--quiet", "--threads", &threads.to_string(), "train", "--config", "/dev/stdin"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        std::thread::sleep(Duration::from_millis(300));
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let resident = kib(&status, "VmRSS:");
        // Nothing is lost if it has ended by itself.
        let _ = child.kill();
        let _ = child.wait();
        resident.map(|bytes| bytes as f64 / 1e6)
    }

    /// What a command prints.
    fn run(&self, command: &mut Command) -> Result<String> {
        let output = command.current_dir(&self.root).output().context("cannot start tweedie")?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "tweedie failed: {}", stderr.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// `cargo` in the repository's root.
    pub(super) fn cargo(&self) -> Command {
        cargo(&self.root)
    }
}

/// The path of the binary in cargo's messages.
pub(super) fn executable(messages: &str) -> Option<PathBuf> {
    let artifacts = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut named = artifacts.filter(|message| message["target"]["name"] == "tweedie");
    named.find_map(|message| message["executable"].as_str().map(PathBuf::from))
}
