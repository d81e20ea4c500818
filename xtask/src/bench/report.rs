//! The results as a table, as Markdown and as JSON.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;

use super::kernels::Kernel;
use super::machine::Machine;
use super::stats::{self, Turn};
use super::works::Task;

/// The name of ours in tables.
pub(super) const OURS: &str = "tweedie";

/// A whole run.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    /// The day, in UTC.
    pub(super) date: String,
    /// The revision of the repository, with `+` behind it if files differ from it.
    pub(super) revision: String,
    /// What was measured on.
    pub(super) machine: Machine,
    /// Threads of every contender that does not say otherwise.
    pub(super) threads: usize,
    /// Seconds of a turn.
    pub(super) seconds: f64,
    /// Turns of each contender.
    pub(super) rounds: usize,
    /// The works, in the order of the table.
    pub(super) works: Vec<WorkResult>,
    /// Single kernels.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) kernels: Vec<Kernel>,
}

/// Everybody's times for one work.
#[derive(Clone, Debug, Serialize)]
pub(super) struct WorkResult {
    /// Its name.
    pub(super) work: String,
    /// The network.
    pub(super) model: String,
    /// What is done with it.
    pub(super) task: Task,
    /// Images at once.
    pub(super) batch: usize,
    /// Operations of one image counted as direct convolution, three forward passes for a training step.
    pub(super) gflop_per_image: f64,
    /// Ours first, then the peers.
    pub(super) entries: Vec<Entry>,
}

/// One contender.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Entry {
    /// Its name.
    pub(super) who: String,
    /// Its threads.
    pub(super) threads: usize,
    /// Relative L2 distance from the expected output; for a peer that trains, of its first losses.
    pub(super) error: Option<f64>,
    /// Why it was not timed, or not to the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) problem: Option<String>,
    /// Its turns.
    pub(super) turns: Vec<Turn>,
    /// Resident memory of an idle process in MB.
    pub(super) idle_rss_mb: Option<f64>,
    /// Highest resident memory in MB.
    pub(super) peak_rss_mb: Option<f64>,
    /// Seconds until it was ready, compilation included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) setup_seconds: Option<f64>,
    /// Losses of its first training steps.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) losses: Vec<f64>,
    /// Versions of its libraries, or what else it says about itself.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub(super) details: Value,
}

impl Entry {
    /// The median over its turns of the median step, in seconds.
    pub(super) fn median(&self) -> Option<f64> {
        stats::median_of_turns(&self.turns)
    }

    fn memory(&self) -> Option<f64> {
        Some(self.peak_rss_mb? - self.idle_rss_mb?)
    }
}

impl WorkResult {
    /// Ours with all threads.
    fn ours(&self) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.who == OURS)
    }

    /// How many times as fast as another entry ours is.
    pub(super) fn ratio(&self, other: &Entry) -> Option<f64> {
        Some(other.median()? / self.ours()?.median()?)
    }

    /// The fastest peer. Its medians are compared, as in all ratios.
    pub(super) fn fastest_peer(&self) -> Option<&Entry> {
        let peers = self.entries.iter().filter(|entry| !entry.who.starts_with(OURS));
        let timed = peers.filter_map(|entry| Some((entry, entry.median()?)));
        timed.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(entry, _)| entry)
    }

    /// The lines that say how ours compares.
    pub(super) fn verdicts(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(peer) = self.fastest_peer()
            && let Some(ratio) = self.ratio(peer)
        {
            lines.push(format!("{}: {ratio:.2} x the fastest peer ({})", self.work, peer.who));
        }
        for one in self.entries.iter().filter(|entry| entry.who.starts_with(OURS) && entry.who != OURS) {
            if let (Some(ratio), Some(ours)) = (self.ratio(one), self.ours()) {
                lines.push(format!(
                    "{}: {ratio:.2} x as fast with {} threads as with {}",
                    self.work, ours.threads, one.threads
                ));
            }
        }
        let eager = self.entries.iter().filter(|entry| entry.who.starts_with("pytorch-eager"));
        let least = eager.filter_map(Entry::memory).min_by(f64::total_cmp);
        if let (Some(ours), Some(eager)) = (self.ours().and_then(Entry::memory), least) {
            lines.push(format!("{}: {:.2} of the peak memory of PyTorch eager over idle", self.work, ours / eager));
        }
        lines
    }

    /// The cells of an entry's row.
    fn row(&self, entry: &Entry) -> [String; 9] {
        let text = |value: Option<f64>, digits: usize| value.map_or("-".to_owned(), |v| format!("{v:.digits$}"));
        let rate = |seconds: Option<f64>| seconds.map(|s| self.batch as f64 / s);
        let median = entry.median();
        [
            self.work.clone(),
            entry.who.clone(),
            rate(median).map_or("-".to_owned(), speed),
            rate(stats::best_of_turns(&entry.turns)).map_or("-".to_owned(), speed),
            text(median.map(|s| 1e3 * s), 2),
            text(rate(median).map(|r| r * self.gflop_per_image), 0),
            text(self.ratio(entry), 2),
            text(entry.memory(), 0),
            entry.error.map_or("-".to_owned(), |error| format!("{error:.1e}")),
        ]
    }
}

/// A number of images in a second, with three digits at least.
pub(super) fn speed(rate: f64) -> String {
    let digits = if rate < 10.0 { 3 } else { 1 };
    format!("{rate:.digits$}")
}

const HEADS: [&str; 9] =
    ["work", "who", "images/s", "best", "ms/step", "GFLOP/s", "ours/this", "peak MB over idle", "error"];

impl Report {
    fn rows(&self) -> Vec<[String; 9]> {
        let rows = |work: &WorkResult| work.entries.iter().map(|entry| work.row(entry)).collect::<Vec<_>>();
        self.works.iter().flat_map(rows).collect()
    }

    fn problems(&self) -> Vec<String> {
        let mut found = Vec::new();
        for work in &self.works {
            for entry in &work.entries {
                if let Some(problem) = &entry.problem {
                    found.push(format!("{}, {}: {problem}", work.work, entry.who));
                }
            }
        }
        found
    }

    /// The table, the ratios and what went wrong, for a terminal.
    pub(super) fn table(&self) -> String {
        let rows = self.rows();
        let width = |column: usize| rows.iter().map(|row| row[column].len()).chain([HEADS[column].len()]).max();
        let widths: [usize; 9] = std::array::from_fn(|column| width(column).unwrap_or_default());
        let line = |cells: &[String; 9]| {
            let cells = cells.iter().zip(widths).enumerate();
            let cells = cells.map(|(i, (cell, w))| if i < 2 { format!("{cell:<w$}") } else { format!("{cell:>w$}") });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
        };
        let mut text = line(&HEADS.map(str::to_owned));
        text.extend(rows.iter().map(line));
        self.append_lines(&mut text, "");
        text
    }

    /// The same with the machine's description, as a document.
    pub(super) fn markdown(&self) -> String {
        let machine = &self.machine;
        let mut text = format!(
            "# Benchmark of {}\n\n{}, {} cores, {}, {:.0} GB of memory, {}, {}. Revision {}, {} threads, {} rounds \
             of {} s.\n\n",
            self.date,
            machine.cpu,
            machine.cores,
            machine.caches.join(", "),
            machine.memory_bytes as f64 / 1e9,
            machine.system,
            machine.rustc,
            self.revision,
            self.threads,
            self.rounds,
            self.seconds,
        );
        _ = writeln!(text, "| {} |\n|---|---|{}", HEADS.join(" | "), "--:|".repeat(HEADS.len() - 2));
        for row in self.rows() {
            _ = writeln!(text, "| {} |", row.join(" | "));
        }
        self.append_lines(&mut text, "- ");
        text
    }

    /// Ratios, kernels and problems, each line behind `bullet`.
    fn append_lines(&self, text: &mut String, bullet: &str) {
        let verdicts: Vec<String> = self.works.iter().flat_map(WorkResult::verdicts).collect();
        let kernels = self.kernels.iter().map(|kernel| match kernel.gflops_per_second {
            Some(rate) => format!("{}: {:.3} ms, {rate:.0} GFLOP/s", kernel.name, 1e3 * kernel.seconds_median),
            None => format!("{}: {:.3} ms", kernel.name, 1e3 * kernel.seconds_median),
        });
        for part in [verdicts, kernels.collect(), self.problems()] {
            if !part.is_empty() {
                text.push('\n');
            }
            for line in part {
                _ = writeln!(text, "{bullet}{line}");
            }
        }
    }

    /// Writes the JSON and the Markdown file into `folder`; the path of the first.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub(super) fn write(&self, folder: &Path) -> Result<PathBuf> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let stem = format!("{}-{}", self.date, stats::slug(&self.machine.cpu));
        let names = std::iter::once(stem.clone()).chain((2..).map(|n| format!("{stem}-{n}")));
        // Earlier results of the day stay.
        let free = names.map(|name| folder.join(format!("{name}.json"))).find(|path| !path.exists());
        let path = free.context("there is no free name")?;
        let json = serde_json::to_string_pretty(self)? + "\n";
        fs::write(&path, compact_numbers(&json)).with_context(|| format!("cannot write {}", path.display()))?;
        let beside = path.with_extension("md");
        fs::write(&beside, self.markdown()).with_context(|| format!("cannot write {}", beside.display()))?;
        Ok(path)
    }
}

/// Puts the lists of numbers of indented JSON on one line each: a run has thousands of step times.
pub(super) fn compact_numbers(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    let mut lines = json.lines().peekable();
    while let Some(line) = lines.next() {
        text.push_str(line);
        let number = |line: &str| line.trim().trim_end_matches(',').parse::<f64>().is_ok();
        if line.ends_with('[') && lines.peek().is_some_and(|next| number(next)) {
            while let Some(next) = lines.next_if(|next| number(next)) {
                text.push_str(next.trim());
                if next.ends_with(',') {
                    text.push(' ');
                }
            }
            text.push_str(lines.next().unwrap_or_default().trim());
        }
        text.push('\n');
    }
    text
}
