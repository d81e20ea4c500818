//! A run with many kills, and the same run without one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::process::{Program, Random, Watched, temporary};
use super::{Subject, Verdict, compare};

/// What a run says when it is about to take its first step.
const OPENINGS: [&str; 2] = ["training to ", "resuming "];
/// The state in a run's directory.
const STATE: &str = "state.safetensors";
/// How long a start may take.
const START: Duration = Duration::from_secs(120);
/// The share of the kills that fall into the start of a process, before its first step.
const EARLY: f64 = 0.2;

/// Trains `steps` steps once in one piece and once with `kills` kills, each followed by a resume, and compares the two
/// runs' directories.
///
/// # Errors
/// If a run fails or does not open after a kill, fewer kills were possible, something is left over, or the runs differ.
pub(super) fn survive(
    program: &Program,
    subject: &Subject,
    kills: u64,
    steps: u64,
    random: &mut Random,
) -> Result<Verdict> {
    let (straight, killed) = (format!("{}-straight", subject.command), format!("{}-killed", subject.command));
    let mut run = Watched::start(program.command(&Program::arguments(subject, &straight, steps, false)))?;
    let begin = Instant::now();
    ensure!(run.wait_for(&OPENINGS, START), "the run did not start: {:?}", run.finish()?);
    let (mut start, begin) = (begin.elapsed(), Instant::now());
    let ended = run.finish()?;
    ensure!(ended.code == Some(0), "the run without kills ended with {:?}: {}", ended.code, ended.stderr);
    // The fastest step seen so far, so that no run ends before its kill.
    let mut pace = begin.elapsed().as_secs_f64() / steps as f64;

    let directory = program.path(&killed);
    let state = directory.join(STATE);
    let mut tally = Tally::default();
    for kill in 0..kills {
        let before = if directory.exists() { compare::step(&state)? } else { 0 };
        let resume = directory.join("train.toml").is_file();
        let command = program.command(&Program::arguments(subject, &killed, steps, resume));
        let mut run = Watched::start(command)?;
        let early = random.unit() < EARLY;
        let share = (steps - before) as f64 / (kills - kill + 1) as f64;
        let (limit, begin) = if early {
            (start.as_secs_f64() * random.unit(), Instant::now())
        } else {
            let begin = Instant::now();
            ensure!(run.wait_for(&OPENINGS, START), "kill {}: the run did not start: {:?}", kill + 1, run.finish()?);
            start = start.min(begin.elapsed());
            (1.6 * share * pace * random.unit(), Instant::now())
        };
        if let Some(code) = run.wait(Duration::from_secs_f64(limit))? {
            anyhow::bail!(
                "kill {}: the run ended before it, with {code:?}; give more --steps, or fewer --kills: {:?}",
                kill + 1,
                run.finish()?
            );
        }
        run.kill()?;
        let took = begin.elapsed().as_secs_f64();
        let step = if directory.exists() { compare::step(&state)? } else { 0 };
        ensure!(step >= before, "kill {}: the state fell back from step {before} to step {step}", kill + 1);
        if step > before && !early {
            pace = pace.min(took / (step - before) as f64);
        }
        let left = if directory.exists() { temporary(&directory)? } else { Vec::new() };
        tally.add(early, step, &left);
        // Before the first state there need be no model yet; afterwards there always is.
        if state.exists() {
            program.opens(subject, &killed).with_context(|| format!("kill {} at step {step}", kill + 1))?;
        }
    }
    let resume = directory.join("train.toml").is_file();
    program.succeed(&Program::arguments(subject, &killed, steps, resume))?;
    let left = temporary(&directory)?;
    ensure!(left.is_empty(), "left over at the end: {}", left.join(", "));
    let files = compare::same_runs(&program.path(&straight), &directory)?;
    Ok(Verdict::Passed(format!("{tally}; all {files} files as without kills")))
}

/// Where kills struck.
#[derive(Default)]
struct Tally {
    early: u64,
    steps: Vec<u64>,
    /// Every temporary file that was found; one that outlives several kills counts once.
    left: BTreeSet<String>,
}

impl Tally {
    fn add(&mut self, early: bool, step: u64, left: &[String]) {
        self.early += u64::from(early);
        self.steps.push(step);
        self.left.extend(left.iter().cloned());
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let steps: Vec<_> = self.steps.iter().map(u64::to_string).collect();
        write!(
            f,
            "{} kills, {} of them while starting, after steps {}",
            self.steps.len(),
            self.early,
            steps.join(" ")
        )?;
        let mut targets = BTreeMap::<&str, usize>::new();
        for name in &self.left {
            // `.NAME.tweedie-XXXXXX.tmp`
            let target = name.trim_start_matches('.').split(".tweedie-").next().unwrap_or(name);
            *targets.entry(target).or_default() += 1;
        }
        let targets: Vec<_> = targets.iter().map(|(name, count)| format!("{name} {count}")).collect();
        let targets = if targets.is_empty() { String::new() } else { format!(" ({})", targets.join(", ")) };
        write!(f, "; {} half-written temporary files found{targets}, none left", self.left.len())
    }
}
