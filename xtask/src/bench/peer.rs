//! A peer: a child process that speaks lines of JSON, see `bench/README.md`.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::{Value, json};

use super::works::{Task, Work};

/// How long a peer may take to compile, check itself and warm up.
const PATIENCE: Duration = Duration::from_secs(1200);
/// Lines of a peer's stderr in a message.
const LAST_LINES: usize = 6;

/// Who is compared with ours, and in what language it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PeerKind {
    /// Its name on the command line and in the table.
    pub(super) name: &'static str,
    host: Host,
    trains: bool,
    /// The networks that it knows.
    models: &'static [&'static str],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Host {
    Python,
    /// The package of this name under `bench/peers`.
    Cargo,
}

const ALL: &[&str] = &["book", "cifar10", "digits", "sd15", "sd15-vae", "sd15-text"];

const fn python(name: &'static str, trains: bool) -> PeerKind {
    PeerKind { name, host: Host::Python, trains, models: ALL }
}

/// Every peer.
pub(super) const PEERS: [PeerKind; 8] = [
    python("pytorch-eager", true),
    python("pytorch-eager-cl", true),
    python("pytorch-compile", true),
    python("pytorch-compile-cl", true),
    python("onnxruntime", false),
    python("openvino", false),
    PeerKind { name: "candle", host: Host::Cargo, trains: true, models: &["book"] },
    PeerKind { name: "burn", host: Host::Cargo, trains: true, models: &["book"] },
];

/// The names of [`PEERS`], for the command line.
pub(super) fn names() -> Vec<&'static str> {
    PEERS.iter().map(|peer| peer.name).collect()
}

/// The peers called `names` that can do `work`; all that can if there is no name.
pub(super) fn able(work: &Work, names: &[String]) -> Vec<PeerKind> {
    let wanted = |peer: &PeerKind| names.is_empty() || names.iter().any(|name| name == peer.name);
    let can = |peer: &PeerKind| peer.models.contains(&work.model) && (peer.trains || work.task == Task::Forward);
    PEERS.into_iter().filter(|peer| wanted(peer) && can(peer)).collect()
}

/// Where the peers and their files are.
#[derive(Clone, Debug)]
pub(super) struct Folders {
    /// `bench/peers`.
    pub(super) peers: PathBuf,
    /// What `prepare.py` writes.
    pub(super) work: PathBuf,
}

impl Folders {
    pub(super) fn new(root: &Path) -> Self {
        let peers = root.join("bench/peers");
        Self { work: peers.join(".work"), peers }
    }

    /// The Python that `setup.sh` installs.
    ///
    /// # Errors
    /// If it is not there.
    pub(super) fn python(&self) -> Result<PathBuf> {
        self.installed(self.peers.join(".venv/bin/python"))
    }

    fn installed(&self, path: PathBuf) -> Result<PathBuf> {
        if path.is_file() {
            return Ok(path);
        }
        let name = path.strip_prefix(&self.peers).unwrap_or(&path).display();
        bail!("bench/peers/{name} is missing; run bench/peers/setup.sh, which installs every peer")
    }

    fn command(&self, peer: &PeerKind) -> Result<Command> {
        Ok(match peer.host {
            Host::Python => {
                let mut command = Command::new(self.python()?);
                command.arg(self.peers.join("peer.py")).args(["--peer", peer.name]);
                command
            }
            Host::Cargo => {
                let package = self.peers.join(peer.name);
                let binary = format!("target/release/{}-peer{}", peer.name, std::env::consts::EXE_SUFFIX);
                Command::new(self.installed(package.join(binary))?)
            }
        })
    }

    /// Writes weights, inputs and expected outputs for the works, unless they are there already.
    ///
    /// # Errors
    /// If Python is missing or fails.
    pub(super) fn prepare(&self, works: &[Work]) -> Result<()> {
        let mut jobs: Vec<(&str, Vec<String>)> = Vec::new();
        // Every batch of a network, so that the files do not change with the choice of works.
        for work in super::works::WORKS.iter().filter(|any| works.iter().any(|work| work.model == any.model)) {
            let batch = work.batch.to_string();
            match jobs.iter_mut().find(|(model, _)| *model == work.model) {
                Some((_, batches)) if batches.contains(&batch) => {}
                Some((_, batches)) => batches.push(batch),
                None => jobs.push((work.model, vec![batch])),
            }
        }
        let mut command = Command::new(self.python()?);
        command.arg(self.peers.join("prepare.py")).arg("--folder").arg(&self.work);
        command.args(jobs.iter().map(|(model, batches)| format!("{model}={}", batches.join(","))));
        let status = command.stdout(Stdio::null()).status().context("cannot start Python")?;
        if !status.success() {
            bail!("prepare.py ended with {status}; its message stands above");
        }
        Ok(())
    }
}

/// What a peer says when it is ready.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct Ready {
    /// Relative L2 distance from the expected output, or of the first losses.
    pub(super) error: f64,
    /// Resident memory before it loaded the network.
    pub(super) idle_rss_mb: f64,
    /// Seconds from its start until it was ready.
    pub(super) setup_seconds: f64,
    /// Versions of its libraries.
    #[serde(default)]
    pub(super) versions: Value,
    /// Losses of its first training steps.
    #[serde(default)]
    pub(super) losses: Vec<f64>,
}

#[derive(Deserialize)]
struct Steps {
    seconds: Vec<f64>,
}

#[derive(Deserialize)]
struct Peak {
    peak_rss_mb: f64,
}

/// A running peer, idle until it is asked. It ends with this value.
pub(super) struct Peer {
    name: &'static str,
    child: Child,
    requests: ChildStdin,
    answers: Receiver<String>,
    log: PathBuf,
}

impl Peer {
    /// Starts a peer and waits until it is ready.
    ///
    /// # Errors
    /// If it is not installed or ends; the message has its last lines.
    pub(super) fn start(kind: &PeerKind, work: &Work, threads: usize, folders: &Folders) -> Result<(Self, Ready)> {
        let logs = folders.work.join("logs");
        fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
        let log = logs.join(format!("{}-{}.log", work.name, kind.name));
        let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let count = threads.to_string();
        let mut command = folders.command(kind)?;
        command
            .args(["--model", work.model, "--task", work.task.name(), "--batch", &work.batch.to_string()])
            .args(["--threads", &count, "--folder"])
            .arg(&folders.work)
            .envs(["OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"].map(|name| (name, &count)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(file);
        Self::spawn(kind.name, command, log)
    }

    /// Starts a command that speaks the protocol; its stderr goes to `log`.
    pub(super) fn spawn(name: &'static str, mut command: Command, log: PathBuf) -> Result<(Self, Ready)> {
        let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let (Some(requests), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("{name} was started without pipes");
        };
        let (sender, answers) = mpsc::channel();
        std::thread::spawn(move || {
            let mut lines = BufReader::new(output).lines();
            while let Some(Ok(line)) = lines.next() {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let mut peer = Self { name, child, requests, answers, log };
        let ready = peer.answer(PATIENCE)?;
        Ok((peer, ready))
    }

    /// Gives the peer its turn; the time of each step.
    ///
    /// # Errors
    /// If it ends or does not answer in time.
    pub(super) fn run(&mut self, seconds: f64) -> Result<Vec<f64>> {
        // A turn has two steps at least, however long they are.
        let limit = Duration::try_from_secs_f64(3.0 * seconds).unwrap_or(PATIENCE) + Duration::from_secs(300);
        Ok(self.ask::<Steps>(&json!({ "run": seconds }), limit)?.seconds)
    }

    /// Ends the peer; its highest resident memory in MB since it was ready.
    ///
    /// # Errors
    /// If it has ended before.
    pub(super) fn quit(mut self) -> Result<f64> {
        Ok(self.ask::<Peak>(&json!({ "quit": true }), Duration::from_secs(60))?.peak_rss_mb)
    }

    fn ask<T: for<'de> Deserialize<'de>>(&mut self, request: &Value, limit: Duration) -> Result<T> {
        let sent = writeln!(self.requests, "{request}").and_then(|()| self.requests.flush());
        if sent.is_err() {
            return Err(self.ended());
        }
        self.answer(limit)
    }

    fn answer<T: for<'de> Deserialize<'de>>(&mut self, limit: Duration) -> Result<T> {
        match self.answers.recv_timeout(limit) {
            Ok(line) => serde_json::from_str(&line)
                .with_context(|| format!("{} answered what the protocol does not know: {line}", self.name)),
            Err(RecvTimeoutError::Timeout) => bail!("{} did not answer within {} s", self.name, limit.as_secs()),
            Err(RecvTimeoutError::Disconnected) => Err(self.ended()),
        }
    }

    /// The message about a peer that has ended.
    fn ended(&mut self) -> anyhow::Error {
        // Its output ends a moment before the process does.
        let start = Instant::now();
        let mut status = self.child.try_wait();
        while matches!(status, Ok(None)) && start.elapsed() < Duration::from_secs(2) {
            std::thread::sleep(Duration::from_millis(20));
            status = self.child.try_wait();
        }
        let how = match status {
            Ok(Some(status)) => status.to_string(),
            _ => "closed its output".to_owned(),
        };
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        let last = lines[lines.len().saturating_sub(LAST_LINES)..].join("\n  ");
        anyhow::anyhow!("{} ended ({how}); its last lines:\n  {last}", self.name)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended by itself, which is no failure.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
