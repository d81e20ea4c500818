//! `cargo xtask bench`: verifies, then times whole passes and training steps of ours and, with `--peers`, of others.
//!
//! Contenders take turns: in each round everybody gets one turn of the same length, in an order that rotates, while the
//! others wait. So a machine that is slower for a minute is slower for all.

mod kernels;
mod machine;
mod ours;
mod peer;
mod report;
mod stats;
mod tensors;
#[cfg(test)]
mod tests;
mod works;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use clap::Args;
use clap::builder::PossibleValuesParser;

use machine::Machine;
use ours::Ours;
use peer::{Folders, Peer};
use report::{Entry, OURS, Report, WorkResult};
use stats::Turn;
use works::{Task, Work};

/// Largest relative L2 distance of an output from the expected one.
const TOLERANCE: f64 = 1e-4;

/// `cargo xtask bench`.
#[derive(Args, Clone, Debug)]
pub struct BenchArgs {
    /// Seconds of a turn
    #[arg(long, default_value_t = 5.0, value_parser = positive)]
    seconds: f64,
    /// Turns of each contender
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Threads of each contender
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: u16,
    /// Only these works [default: all]
    #[arg(long, value_name = "NAME", num_args = 1.., value_parser = PossibleValuesParser::new(works::names()))]
    only: Vec<String>,
    /// Compare with other programs, all of them or those named
    #[arg(long, value_name = "NAME", num_args = 0.., value_parser = PossibleValuesParser::new(peer::names()))]
    peers: Option<Vec<String>>,
    /// Time single kernels as well
    #[arg(long)]
    kernels: bool,
    /// Folder of the results
    #[arg(long, value_name = "DIR", default_value = "bench/results")]
    out: PathBuf,
}

fn positive(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|x| *x > 0.0 && *x <= 3600.0);
    number.ok_or_else(|| "expected a number above 0, 3600 at most".to_owned())
}

/// Runs the chore; true if everybody could be timed and all outputs agree.
///
/// # Errors
/// If ours cannot be built or is wrong, the peers are not installed, or the results cannot be written.
pub fn run(root: &Path, args: &BenchArgs) -> Result<bool> {
    let folders = Folders::new(root);
    let works = works::chosen(&args.only);
    if args.peers.is_some() {
        // Before anything that takes long.
        folders.python()?;
    }
    eprintln!("building tweedie and running the golden tests of its networks");
    let ours = Ours::build(root, &folders.work)?;
    ours.verify()?;
    if args.peers.is_some() {
        eprintln!("preparing weights, inputs and expected outputs");
        folders.prepare(&works)?;
    }
    let mut report = Report {
        date: today(),
        revision: revision(root),
        machine: Machine::describe(),
        threads: args.threads.into(),
        seconds: args.seconds,
        rounds: args.rounds.into(),
        works: Vec::new(),
        kernels: Vec::new(),
    };
    for (i, work) in works.iter().enumerate() {
        eprintln!("[{}/{}] {}", i + 1, works.len(), work.name);
        let model = match ours.model(work) {
            Ok(model) => model,
            Err(error) => {
                eprintln!("  left out: {error:#}");
                continue;
            }
        };
        report.works.push(Race::new(args, &ours, work, model)?.run(args, &folders)?);
    }
    if args.kernels {
        eprintln!("timing single kernels");
        report.kernels = kernels::run(&ours, report.threads)?;
    }
    print!("{}", report.table());
    ensure!(!report.works.is_empty(), "nothing could be timed; the reasons stand above");
    let path = report.write(&root.join(&args.out))?;
    let whole = path.canonicalize().unwrap_or(path);
    eprintln!("wrote {} and the table beside it", whole.display());
    Ok(report.works.iter().all(|work| work.entries.iter().all(|entry| entry.problem.is_none())))
}

/// Who takes turns.
enum Contender {
    Ours {
        threads: usize,
    },
    Peer(Box<Peer>),
    /// It has failed or was wrong.
    Out,
}

/// One work: the contenders, and what is known of each.
struct Race<'a> {
    work: &'a Work,
    ours: &'a Ours,
    model: Option<PathBuf>,
    contenders: Vec<(Contender, Entry)>,
    gflop_per_image: f64,
}

impl<'a> Race<'a> {
    /// Checks our output.
    fn new(args: &BenchArgs, ours: &'a Ours, work: &'a Work, model: Option<PathBuf>) -> Result<Self> {
        let threads = usize::from(args.threads);
        let error = ours.error(work, threads)?;
        if let Some(error) = error {
            ensure!(
                error < TOLERANCE,
                "{}: our output is {error:.1e} from the expected one, {TOLERANCE:e} is allowed; what is wrong is not timed",
                work.name
            );
        }
        let entry = |who: String, threads: usize| Entry {
            who,
            threads,
            error,
            idle_rss_mb: ours.idle_rss_mb(threads),
            ..Entry::default()
        };
        let mut contenders = vec![(Contender::Ours { threads }, entry(OURS.to_owned(), threads))];
        if work.scaling && threads > 1 {
            contenders.push((Contender::Ours { threads: 1 }, entry(format!("{OURS}, 1 thread"), 1)));
        }
        Ok(Self { work, ours, model, contenders, gflop_per_image: 0.0 })
    }

    fn run(mut self, args: &BenchArgs, folders: &Folders) -> Result<WorkResult> {
        for kind in args.peers.iter().flat_map(|names| peer::able(self.work, names)) {
            eprintln!("  starting {}", kind.name);
            let threads = usize::from(args.threads);
            let mut entry = Entry { who: kind.name.to_owned(), threads, ..Entry::default() };
            let contender = match Peer::start(&kind, self.work, threads, folders) {
                Ok((peer, ready)) => {
                    entry.error = Some(ready.error);
                    entry.idle_rss_mb = Some(ready.idle_rss_mb);
                    entry.setup_seconds = Some(ready.setup_seconds);
                    entry.losses = ready.losses;
                    entry.details = ready.versions;
                    if ready.error < TOLERANCE {
                        Contender::Peer(Box::new(peer))
                    } else {
                        let what = if self.work.task == Task::Train { "first losses are" } else { "output is" };
                        entry.problem =
                            Some(format!("its {what} {:.1e} from the expected ones: wrong, not timed", ready.error));
                        Contender::Out
                    }
                }
                Err(error) => {
                    entry.problem = Some(format!("{error:#}"));
                    Contender::Out
                }
            };
            if let Some(problem) = &entry.problem {
                eprintln!("  {problem}");
            }
            self.contenders.push((contender, entry));
        }
        for round in 0..usize::from(args.rounds) {
            let count = self.contenders.len();
            for place in 0..count {
                self.turn((round + place) % count, place, args.seconds)?;
                let (_, entry) = &self.contenders[(round + place) % count];
                if let Some(turn) = entry.turns.last().filter(|_| entry.turns.len() == round + 1) {
                    let rate = report::speed(self.work.batch as f64 / turn.median);
                    eprintln!("  round {}/{}: {} {rate} images/s", round + 1, args.rounds, entry.who);
                }
            }
        }
        Ok(self.finish())
    }

    /// One turn. A peer that fails is out; if ours fails, all ends.
    fn turn(&mut self, index: usize, place: usize, seconds: f64) -> Result<()> {
        let (contender, entry) = &mut self.contenders[index];
        match contender {
            Contender::Ours { threads } => {
                let (measured, details) = self.ours.measure(self.work, self.model.as_deref(), *threads, seconds)?;
                self.gflop_per_image = measured.gflops_per_image;
                entry.turns.push(measured.turn(place));
                // The highest of all turns.
                entry.peak_rss_mb = entry.peak_rss_mb.into_iter().chain(measured.peak_rss_mb()).reduce(f64::max);
                entry.details = serde_json::json!({
                    "tweedie": details["version"],
                    "instruction_set": measured.instruction_set,
                });
            }
            Contender::Peer(peer) => {
                let turn = peer.run(seconds).and_then(|steps| {
                    Turn::from_steps(place, steps).with_context(|| format!("{} gave no times", entry.who))
                });
                match turn {
                    Ok(turn) => entry.turns.push(turn),
                    Err(error) => {
                        eprintln!("  {error:#}");
                        entry.problem = Some(format!("{error:#}"));
                        *contender = Contender::Out;
                    }
                }
            }
            Contender::Out => {}
        }
        Ok(())
    }

    /// Asks the peers for their memory and ends them.
    fn finish(self) -> WorkResult {
        let end = |(contender, mut entry): (Contender, Entry)| {
            if let Contender::Peer(peer) = contender {
                match peer.quit() {
                    Ok(peak) => entry.peak_rss_mb = Some(peak),
                    Err(error) => entry.problem = Some(format!("{error:#}")),
                }
            }
            entry
        };
        WorkResult {
            work: self.work.name.to_owned(),
            model: self.work.model.to_owned(),
            task: self.work.task,
            batch: self.work.batch,
            gflop_per_image: self.gflop_per_image,
            entries: self.contenders.into_iter().map(end).collect(),
        }
    }
}

/// The present day in UTC, as `2026-01-31`.
fn today() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let (year, month, day) = stats::civil((seconds / 86_400) as i64);
    format!("{year:04}-{month:02}-{day:02}")
}

/// The revision, with `+` behind it if tracked files differ from it.
fn revision(root: &Path) -> String {
    let git = |args: &[&str]| machine::output(Command::new("git").current_dir(root).args(args));
    let changed = !git(&["status", "--porcelain", "--untracked-files=no"]).is_empty();
    git(&["rev-parse", "--short", "HEAD"]) + if changed { "+" } else { "" }
}
