//! The files of a run's directory.
//!
//! ```text
//! train.toml               every option of the run
//! unet/, scheduler/, model_index.json, or for `book` config.json and its weights: the model, with averaged weights
//! state.safetensors        what --resume needs
//! log.csv, loss.svg        one row per step, and its plot
//! samples/epoch-003.png    samples after each epoch
//! accuracy.csv             of a classifier, its accuracy on test images after each epoch
//! .train.lock              locked while a process trains here
//! ```

use std::fs::{self, File, TryLockError};
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tweedie_checkpoint::{Config, Dtype, atomic_write, read_config};
use tweedie_denoiser::Params;
use tweedie_train::log::{self, LogRow};

use crate::model::{self, Layout};

/// Where runs go unless told otherwise.
pub const RUNS: &str = "runs";
/// What tells a run's or a model's directory from another one.
const MARKS: [&str; 4] = [OPTIONS, STATE, "model_index.json", "config.json"];
/// The options of the run.
const OPTIONS: &str = "train.toml";
/// What is needed to resume.
const STATE: &str = "state.safetensors";
/// One row per step.
const LOG: &str = "log.csv";
/// The accuracy of a classifier.
const ACCURACY: &str = "accuracy.csv";
/// A file that is written to learn whether files can be written.
const PROBE: &str = ".tweedie-probe.tmp";
/// The file that a process holds a lock on while it trains.
const LOCK: &str = ".train.lock";

/// A run's directory.
#[derive(Clone, Debug)]
pub struct RunDirectory {
    root: PathBuf,
}

impl RunDirectory {
    /// The directory at a path, which need not exist.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The first of `RUNS/name`, `RUNS/name-2`, `RUNS/name-3`, … that does not exist.
    pub fn unused(name: &str) -> Self {
        let mut root = Path::new(RUNS).join(name);
        let mut number = 2;
        while root.exists() {
            root = Path::new(RUNS).join(format!("{name}-{number}"));
            number += 1;
        }
        Self { root }
    }

    /// The runs below [`RUNS`] that can be resumed.
    pub fn existing() -> Vec<PathBuf> {
        let entries = fs::read_dir(RUNS).into_iter().flatten().filter_map(Result::ok);
        let mut runs: Vec<_> = entries.map(|entry| entry.path()).filter(|path| path.join(OPTIONS).is_file()).collect();
        runs.sort();
        runs
    }

    /// The path.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `train.toml`.
    pub fn options(&self) -> PathBuf {
        self.root.join(OPTIONS)
    }

    /// `state.safetensors`.
    pub fn state(&self) -> PathBuf {
        self.root.join(STATE)
    }

    /// Whether there is a run or a model already.
    pub fn is_taken(&self) -> bool {
        MARKS.iter().any(|name| self.root.join(name).exists())
    }

    /// Creates the directory and makes sure that files can be written there.
    ///
    /// # Errors
    /// If they cannot; the message names the directory.
    pub fn prepare(&self) -> Result<()> {
        let refused = || {
            format!(
                "cannot write to the run's directory {}; check who may write there, or choose another with --out",
                self.root.display()
            )
        };
        fs::create_dir_all(self.root.join("samples")).with_context(refused)?;
        let probe = self.root.join(PROBE);
        File::create(&probe).with_context(refused)?;
        fs::remove_file(&probe).with_context(refused)
    }

    /// Makes sure that no other process trains here, for as long as the result lives. A killed process holds no lock.
    ///
    /// # Errors
    /// If another one does, or the lock's file cannot be created.
    pub fn lock(&self) -> Result<Lock> {
        let path = self.root.join(LOCK);
        let file = File::options().create(true).append(true).open(&path);
        let file = file.with_context(|| format!("cannot open {} for writing", path.display()))?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => bail!(
                "another process is training in {}; wait until it has ended or stop it, or choose another directory \
                 with --out",
                self.root.display()
            ),
            // File systems without locks are trained on without that protection.
            Ok(()) | Err(TryLockError::Error(_)) => Ok(Lock { _file: file }),
        }
    }

    /// Removes the directory if it holds nothing but the lock: what a run leaves that could not start.
    pub fn discard_if_empty(&self, lock: Lock) {
        // Directories that are not empty are not removed by these calls, which is the point.
        let _ = fs::remove_dir(self.root.join("samples"));
        let mut entries = fs::read_dir(&self.root).into_iter().flatten();
        if entries.all(|entry| entry.is_ok_and(|entry| entry.file_name() == LOCK)) {
            let _ = fs::remove_file(self.root.join(LOCK));
            let _ = fs::remove_dir(&self.root);
            if self.root.parent() == Some(Path::new(RUNS)) {
                let _ = fs::remove_dir(RUNS);
            }
        }
        drop(lock);
    }

    /// Whether there is a state to go on from.
    ///
    /// # Errors
    /// If that cannot be found out, which is no reason to start again.
    pub fn has_state(&self) -> Result<bool> {
        let path = self.state();
        path.try_exists().with_context(|| format!("cannot look for {}", path.display()))
    }

    /// Whether the run has logged a step.
    ///
    /// # Errors
    /// If the log cannot be read, or is none.
    pub fn has_logged(&self) -> Result<bool> {
        let path = self.root.join(LOG);
        let rows = log::parse(&read_log(&path)?).with_context(|| path.display().to_string())?;
        Ok(!rows.is_empty())
    }

    /// The config of the network that was written here, and its path.
    ///
    /// # Errors
    /// If it is there and cannot be read.
    pub fn network(&self) -> Result<Option<(PathBuf, Config)>> {
        for name in ["unet/config.json", "config.json"] {
            let path = self.root.join(name);
            if path.exists() {
                let config = read_config(&path)?;
                return Ok(Some((path, config)));
            }
        }
        Ok(None)
    }

    /// The text of `accuracy.csv`; empty if there is none.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn accuracy(&self) -> Result<String> {
        read_log(&self.root.join(ACCURACY))
    }

    /// Writes `accuracy.csv`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_accuracy(&self, text: &str) -> Result<()> {
        Ok(atomic_write(self.root.join(ACCURACY), text.as_bytes())?)
    }

    /// Writes `train.toml`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_options(&self, text: &str) -> Result<()> {
        Ok(atomic_write(self.options(), text.as_bytes())?)
    }

    /// Writes `loss.svg`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_plot(&self, svg: &str) -> Result<()> {
        Ok(atomic_write(self.root.join("loss.svg"), svg.as_bytes())?)
    }

    /// Whether there is a grid of samples of that name.
    pub fn has_samples(&self, name: &str) -> bool {
        self.root.join("samples").join(name).exists()
    }

    /// Writes a grid of samples, and returns its path.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_samples(&self, name: &str, png: &[u8]) -> Result<PathBuf> {
        let path = self.root.join("samples").join(name);
        atomic_write(&path, png)?;
        Ok(path)
    }

    /// Writes the model in the layout of its class.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write_model(&self, network: &Value, scheduler: Option<&Value>, params: &Params) -> Result<()> {
        let layout = Layout::usual(network["_class_name"].as_str().unwrap_or_default(), scheduler.is_some());
        model::write(&self.root, layout, network, scheduler, params, Dtype::F32)
    }

    /// Opens `log.csv` for a run that has done `step` steps: later rows are dropped, and a missing log is started.
    ///
    /// # Errors
    /// If the file cannot be read or written, or is no log.
    pub fn open_log(&self, step: u64) -> Result<Log> {
        let path = self.root.join(LOG);
        let text = read_log(&path)?;
        let kept = log::truncate(&text, step).with_context(|| path.display().to_string())?;
        let rows = log::parse(&kept)?;
        if kept != text {
            atomic_write(&path, kept.as_bytes())?;
        }
        let file = File::options().append(true).open(&path);
        let file = file.with_context(|| format!("cannot open {} for writing", path.display()))?;
        Ok(Log { path, file: BufWriter::new(file), rows })
    }
}

/// The text of a log; empty if there is none.
fn read_log(path: &Path) -> Result<String> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        Err(error) => bail!("cannot read {}: {error}; move it away to start a new log", path.display()),
    }
}

/// The right to train in a directory, until it is dropped or the process ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// The log of a run, in a file and in memory.
pub struct Log {
    path: PathBuf,
    file: BufWriter<File>,
    /// Every row so far.
    pub rows: Vec<LogRow>,
}

impl Log {
    /// Adds a row; it is in the file after the next [`Log::flush`].
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn push(&mut self, row: LogRow) -> Result<()> {
        self.rows.push(row);
        self.file.write_all(row.to_csv().as_bytes()).with_context(|| self.complaint())
    }

    /// Writes out what was added.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn flush(&mut self) -> Result<()> {
        self.file.flush().with_context(|| self.complaint())
    }

    /// Writes out what was added, and waits until it is on the disk.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn sync(&mut self) -> Result<()> {
        self.flush()?;
        self.file.get_ref().sync_data().with_context(|| self.complaint())
    }

    fn complaint(&self) -> String {
        format!("cannot write {}; check the space on the disk, then resume the run", self.path.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(step: u64) -> LogRow {
        LogRow { step, epoch: 1, images: step, loss: 0.5, loss_ema: 0.5, grad_norm: 1.0, lr: 0.1, seconds: 1.0 }
    }

    #[test]
    fn a_log_goes_on_at_the_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let directory = RunDirectory::at(folder.path());
        let path = folder.path().join("log.csv");
        let mut log = directory.open_log(0).unwrap();
        (1..=5).for_each(|step| log.push(row(step)).unwrap());
        log.flush().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), log::format(&log.rows));
        drop(log);
        // Three steps were saved; a kill left part of a sixth row behind.
        File::options().append(true).open(&path).unwrap().write_all(b"6,1,").unwrap();
        let mut log = directory.open_log(3).unwrap();
        assert_eq!(log.rows, [row(1), row(2), row(3)]);
        log.push(row(4)).unwrap();
        log.flush().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), log::format(&[row(1), row(2), row(3), row(4)]));
    }

    #[test]
    fn a_file_that_is_no_log_is_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("log.csv"), "my,notes\n").unwrap();
        let message = format!("{:#}", RunDirectory::at(folder.path()).open_log(0).err().unwrap());
        assert!(message.contains("log.csv") && message.contains("my,notes"), "{message}");
        assert_eq!(fs::read_to_string(folder.path().join("log.csv")).unwrap(), "my,notes\n");
    }

    #[test]
    fn a_path_below_a_file_cannot_be_prepared() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        let message = format!("{:#}", RunDirectory::at(folder.path().join("file/run")).prepare().unwrap_err());
        assert!(message.contains("file/run") && message.contains("--out"), "{message}");
    }

    #[test]
    fn a_directory_is_locked_for_as_long_as_the_lock_lives() {
        let folder = tempfile::tempdir().unwrap();
        let directory = RunDirectory::at(folder.path());
        let lock = directory.lock().unwrap();
        let message = directory.lock().unwrap_err().to_string();
        assert!(message.contains("another process is training") && message.contains("--out"), "{message}");
        drop(lock);
        directory.lock().unwrap();
    }

    #[test]
    fn only_an_empty_directory_is_discarded() {
        let folder = tempfile::tempdir().unwrap();
        let directory = RunDirectory::at(folder.path().join("run"));
        directory.prepare().unwrap();
        let lock = directory.lock().unwrap();
        assert!(!directory.is_taken());
        directory.discard_if_empty(lock);
        assert!(!directory.root().exists());
        directory.prepare().unwrap();
        let lock = directory.lock().unwrap();
        directory.write_options("").unwrap();
        assert!(directory.is_taken());
        directory.discard_if_empty(lock);
        assert!(directory.options().is_file());
    }
}
