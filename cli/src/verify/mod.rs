//! `tweedie verify`: the identities of FORMULAS.md, evaluated with random schedules, mixtures and states.
//!
//! One file for each group of identities; `draw` makes the random cases and `reference` computes by other means what the
//! library is compared with. A case is a function of the seed, the identity and its number, so a run may be repeated in parts.

mod draw;
mod forward;
mod guidance;
mod objective;
mod posterior;
mod reference;
mod report;
mod samplers;
mod score;
#[cfg(test)]
mod tests;

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;
use indicatif::ProgressBar;

use crate::args::Common;
use crate::console;
use draw::Draw;

/// `tweedie verify`.
#[derive(Args, Clone, Debug)]
#[command(allow_negative_numbers = true)]
#[command(after_help = "\
Examples:
  tweedie verify                          every identity, as a table
  tweedie verify --only 2.1               those of FORMULAS 2.1: the posterior of the forward process
  tweedie verify --only score,5.4-power   a group and a single identity
  tweedie verify --cases 5000 --seed 7    more of them, and other ones
  tweedie verify --explain                also what a residual is relative to, and why the tolerance is what it is
  tweedie verify --json                   one JSON document

Each case draws its own schedule, mixture and state, calls the library and computes the same number by other means: a product
instead of a sum of logarithms, Gaussian elimination instead of eigenvectors, a quadrature, a finite difference. The worst
residual over all cases has to stay within the tolerance, or the exit status is 1. A residual is 0 or 1 where a statement is
no equation but an inequality or an error to be raised.")]
pub struct VerifyArgs {
    /// Seed of the random cases
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub seed: u64,
    /// Cases of each identity; those that take a whole trajectory have a part of it, as the table says
    #[arg(long, value_name = "N", default_value = "200", value_parser = case_count)]
    pub cases: NonZeroUsize,
    /// Groups, numbers of FORMULAS.md or single identities, separated by commas [default: all]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub only: Vec<String>,
    /// Say for each identity what its residual is relative to, and what its tolerance rests on
    #[arg(long)]
    pub explain: bool,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

/// The most cases; a bound, so that a mistyped number is an error and not a day of work.
const MOST_CASES: usize = 1_000_000;

fn case_count(text: &str) -> Result<NonZeroUsize, String> {
    let error = || format!("expected a whole number from 1 to {MOST_CASES}");
    text.parse::<NonZeroUsize>().ok().filter(|n| n.get() <= MOST_CASES).ok_or_else(error)
}

/// A statement of FORMULAS.md that can be evaluated.
#[derive(Clone, Copy, Debug)]
struct Identity {
    /// The number of FORMULAS.md and a short name, such as `2.1-bayes`.
    id: &'static str,
    /// The equation in plain text.
    equation: &'static str,
    /// Paper and number of the equation.
    source: &'static str,
    /// What the residual is relative to.
    relative_to: &'static str,
    /// The largest residual that is none.
    tolerance: f64,
    /// What the tolerance rests on.
    because: &'static str,
    /// A case of this identity is worth so many of the others.
    cost: usize,
    /// The residual of one case.
    check: fn(&mut Draw) -> Result<f64>,
}

impl Identity {
    /// The number in FORMULAS.md.
    fn number(&self) -> &'static str {
        self.id.split('-').next().unwrap_or(self.id)
    }

    /// How many cases it has if a cheap identity has `cases`.
    fn cases(&self, cases: usize) -> usize {
        cases.div_ceil(self.cost)
    }
}

/// Identities about one subject.
struct Group {
    name: &'static str,
    identities: &'static [Identity],
}

/// Every identity.
const GROUPS: &[Group] = &[
    Group { name: "forward", identities: forward::IDENTITIES },
    Group { name: "posterior", identities: posterior::IDENTITIES },
    Group { name: "score", identities: score::IDENTITIES },
    Group { name: "objective", identities: objective::IDENTITIES },
    Group { name: "guidance", identities: guidance::IDENTITIES },
    Group { name: "samplers", identities: samplers::IDENTITIES },
];

/// What came of an identity.
struct Outcome {
    group: &'static str,
    identity: Identity,
    cases: usize,
    /// The worst residual; NaN if one was NaN.
    worst: f64,
    /// The case that had it.
    worst_case: usize,
    /// The first error of the library.
    error: Option<String>,
}

impl Outcome {
    fn passed(&self) -> bool {
        // A comparison with NaN is false.
        self.error.is_none() && self.worst <= self.identity.tolerance
    }
}

/// Runs the command.
///
/// # Errors
/// If a name after `--only` is unknown, or an identity does not hold.
pub fn run(args: &VerifyArgs, common: &Common) -> Result<()> {
    let chosen = chosen(GROUPS, &args.only)?;
    let total: usize = chosen.iter().map(|(_, identity)| identity.cases(args.cases.get())).sum();
    let bar = console::progress(common, total as u64, "cases");
    let start = Instant::now();
    let outcomes: Vec<Outcome> =
        chosen.into_iter().map(|(group, identity)| evaluate(group, identity, args, &bar)).collect();
    bar.finish_and_clear();
    conclude(&outcomes, args, start.elapsed())
}

/// Prints the table, and says by the result whether all is well.
fn conclude(outcomes: &[Outcome], args: &VerifyArgs, took: Duration) -> Result<()> {
    if args.json {
        console::print_json(&report::json(outcomes, args, took))?;
    } else {
        console::print(&report::text(outcomes, args, took))?;
    }
    verdict(outcomes)
}

/// An error that names the identities that do not hold.
fn verdict(outcomes: &[Outcome]) -> Result<()> {
    let failed: Vec<&str> = outcomes.iter().filter(|o| !o.passed()).map(|o| o.identity.id).collect();
    if failed.is_empty() {
        return Ok(());
    }
    bail!(
        "{} of {} identities do not hold: {}; --only with one of these names repeats its cases alone",
        failed.len(),
        outcomes.len(),
        failed.join(", ")
    )
}

/// The identities that a list of groups, numbers and names means; all if it is empty.
fn chosen(groups: &[Group], only: &[String]) -> Result<Vec<(&'static str, Identity)>> {
    let means = |name: &str, group: &Group, identity: &Identity| {
        name == group.name || name == identity.number() || name == identity.id
    };
    let all = || groups.iter().flat_map(|group| group.identities.iter().map(move |identity| (group, identity)));
    for name in only {
        if !all().any(|(group, identity)| means(name, group, identity)) {
            let names: Vec<&str> = groups.iter().map(|group| group.name).collect();
            let ids: Vec<&str> = all().map(|(_, identity)| identity.id).collect();
            return Err(console::usage(format!(
                "--only {name}: there is no such group or identity; choose of the groups {}, or of {}",
                names.join(", "),
                ids.join(", ")
            )));
        }
    }
    let wanted =
        |group: &Group, identity: &Identity| only.is_empty() || only.iter().any(|name| means(name, group, identity));
    Ok(all()
        .filter(|(group, identity)| wanted(group, identity))
        .map(|(group, identity)| (group.name, *identity))
        .collect())
}

/// All cases of an identity.
fn evaluate(group: &'static str, identity: Identity, args: &VerifyArgs, bar: &ProgressBar) -> Outcome {
    let cases = identity.cases(args.cases.get());
    bar.set_message(identity.id);
    let mut outcome = Outcome { group, identity, cases, worst: 0.0, worst_case: 0, error: None };
    for case in 0..cases {
        match (identity.check)(&mut Draw::new(args.seed, identity.id, case as u64)) {
            // NaN is worse than every number.
            Ok(residual) if residual > outcome.worst || residual.is_nan() && !outcome.worst.is_nan() => {
                (outcome.worst, outcome.worst_case) = (residual, case);
            }
            Ok(_) => {}
            Err(error) => {
                outcome.error.get_or_insert_with(|| format!("case {case}: {error:#}"));
            }
        }
        bar.inc(1);
    }
    outcome
}

/// The worst of several relative residuals.
#[derive(Clone, Copy, Debug, Default)]
struct Worst(f64);

impl Worst {
    /// Compares a number with the expected one, relative to `size`, which is above 0 unless both are the same.
    fn see(&mut self, found: f64, expected: f64, size: f64) {
        let residual = if found == expected { 0.0 } else { (found - expected).abs() / size };
        self.0 = if residual.is_nan() || self.0.is_nan() { f64::NAN } else { self.0.max(residual) };
    }

    /// As [`Worst::see`], relative to the expected number itself.
    fn relative(&mut self, found: f64, expected: f64) {
        self.see(found, expected, expected.abs());
    }

    /// A statement that is true or false: a residual of 1 if it is false.
    fn holds(&mut self, statement: bool) {
        self.see(if statement { 0.0 } else { 1.0 }, 0.0, 1.0);
    }
}
