//! The program under test: started, watched, killed.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::Subject;

/// How long a run may take, before it counts as hanging.
const PATIENCE: Duration = Duration::from_secs(900);

/// The program, and the folder that it is run in.
pub(super) struct Program {
    pub(super) binary: PathBuf,
    pub(super) folder: PathBuf,
}

/// What a run of the program came to.
#[derive(Debug)]
pub(super) struct Ended {
    /// The exit status; none after a signal.
    pub(super) code: Option<i32>,
    /// What it said on stderr.
    pub(super) stderr: String,
}

impl Program {
    /// A command with arguments, to be run in the folder.
    pub(super) fn command<S: AsRef<str>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new(&self.binary);
        command.current_dir(&self.folder).args(arguments.iter().map(AsRef::as_ref));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }

    /// Runs it to its end.
    pub(super) fn run<S: AsRef<str>>(&self, arguments: &[S]) -> Result<Ended> {
        finish(self.command(arguments).spawn().context("cannot start the program")?)
    }

    /// Runs it to its end, which has to be success.
    pub(super) fn succeed<S: AsRef<str>>(&self, arguments: &[S]) -> Result<()> {
        let ended = self.run(arguments)?;
        let text: Vec<_> = arguments.iter().map(AsRef::as_ref).collect();
        ensure!(ended.code == Some(0), "`{}` ended with {:?}: {}", text.join(" "), ended.code, ended.stderr.trim());
        Ok(())
    }

    /// Whether it has a command.
    pub(super) fn knows(&self, command: &str) -> Result<bool> {
        Ok(self.run(&[command, "--help"])?.code == Some(0))
    }

    /// The arguments of a run of `steps` steps in the directory `out` that writes a checkpoint after every step.
    pub(super) fn arguments(subject: &Subject, out: &str, steps: u64, resume: bool) -> Vec<String> {
        let mut arguments = vec![subject.command.to_owned()];
        arguments.extend(subject.options.iter().map(|&option| option.to_owned()));
        let steps = steps.to_string();
        let options = ["--data", "images", "--batch", "16", "--checkpoint-minutes", "0.000001", "--steps", &steps];
        arguments.extend(options.iter().chain(&["--out", out]).map(|&option| option.to_owned()));
        if resume {
            arguments.push("--resume".to_owned());
        }
        arguments
    }

    /// A directory of the folder.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Makes sure that what a run has left opens as a model.
    pub(super) fn opens(&self, subject: &Subject, run: &str) -> Result<()> {
        self.succeed(&[subject.opens, run]).with_context(|| format!("{run} does not open"))
    }
}

/// Waits for the end of a process.
pub(super) fn finish(mut child: Child) -> Result<Ended> {
    let stderr = child.stderr.take().context("no stderr")?;
    let watched = Watched::new(child, stderr);
    watched.finish()
}

/// A process whose lines on stderr are read as they come.
pub(super) struct Watched {
    child: Child,
    lines: Receiver<String>,
    said: Vec<String>,
    started: Instant,
}

impl Watched {
    fn new(child: Child, stderr: impl Read + Send + 'static) -> Self {
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines, said: Vec::new(), started: Instant::now() }
    }

    /// Starts a command.
    pub(super) fn start(mut command: Command) -> Result<Self> {
        let mut child = command.spawn().context("cannot start the program")?;
        let stderr = child.stderr.take().context("no stderr")?;
        Ok(Self::new(child, stderr))
    }

    /// The process.
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until a line begins with one of `starts`, for `limit` at most; true if it came. False also if the process
    /// has ended.
    pub(super) fn wait_for(&mut self, starts: &[&str], limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    let found = starts.iter().any(|start| line.starts_with(start));
                    self.said.push(line);
                    if found {
                        return true;
                    }
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return false,
            }
        }
    }

    /// Waits for `limit` or until it has ended; its exit status in that case.
    pub(super) fn wait(&mut self, limit: Duration) -> Result<Option<Option<i32>>> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(Some(status.code()));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            std::thread::sleep(left.min(Duration::from_millis(1)));
        }
    }

    /// Kills it, without a chance to do anything more.
    pub(super) fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Waits for its end.
    pub(super) fn finish(mut self) -> Result<Ended> {
        let Some(code) = self.wait(PATIENCE.saturating_sub(self.started.elapsed()))? else {
            let pid = self.id();
            self.kill()?;
            bail!("process {pid} had not ended after {} seconds", PATIENCE.as_secs());
        };
        // The pipe is closed with the process, and then the reader ends.
        self.said.extend(self.lines.iter());
        Ok(Ended { code, stderr: self.said.join("\n") })
    }
}

/// Random numbers that a seed repeats: SplitMix64 (Steele, Lea & Flood 2014).
pub(super) struct Random(u64);

impl Random {
    /// The numbers of a seed.
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `[0, 1)`.
    pub(super) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Every file below a directory, by its path from there, sorted.
pub(super) fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![PathBuf::new()];
    while let Some(folder) = open.pop() {
        let path = directory.join(&folder);
        for entry in path.read_dir().with_context(|| format!("cannot list {}", path.display()))? {
            let entry = entry?;
            let name = folder.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                open.push(name);
            } else {
                found.push(name);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The temporary files below a directory, by their names.
pub(super) fn temporary(directory: &Path) -> Result<Vec<String>> {
    let names = files(directory)?.into_iter().filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
    Ok(names.filter(|name| name.ends_with(".tmp")).collect())
}
