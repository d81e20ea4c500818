//! The outcome as a table for people and as a JSON document.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Outcome, VerifyArgs};
use crate::console;

/// The table.
pub fn text(outcomes: &[Outcome], args: &VerifyArgs, took: Duration) -> String {
    let widest = |of: fn(&Outcome) -> &str| outcomes.iter().map(|o| of(o).chars().count()).max().unwrap_or(0);
    let (id, equation, source) =
        (widest(|o| o.identity.id), widest(|o| o.identity.equation), widest(|o| o.identity.source));
    let mut text = format!(
        "{:id$}  {:equation$}  {:source$} {:>6} {:>8} {:>9}  verdict\n",
        "identity", "equation", "source", "cases", "worst", "tolerance"
    );
    let mut group = "";
    for outcome in outcomes {
        if outcome.group != group {
            group = outcome.group;
            text += &format!("\n{group}\n");
        }
        let identity = &outcome.identity;
        text += &format!(
            "{:id$}  {:equation$}  {:source$} {:>6} {:>8} {:>9}  {}\n",
            identity.id,
            identity.equation,
            identity.source,
            outcome.cases,
            number(outcome.worst),
            number(identity.tolerance),
            if outcome.passed() { "holds" } else { "FAILS" }
        );
        if let Some(error) = &outcome.error {
            text += &format!("{:id$}  {error}\n", "");
        } else if !outcome.passed() {
            text += &format!("{:id$}  the worst is case {} of seed {}\n", "", outcome.worst_case, args.seed);
        }
        if args.explain {
            text += &format!("{:id$}  relative to {}; {}\n", "", identity.relative_to, identity.because);
        }
    }
    let passed = outcomes.iter().filter(|o| o.passed()).count();
    let cases: usize = outcomes.iter().map(|o| o.cases).sum();
    text += &format!(
        "\n{passed} of {} identities hold, in {cases} random cases of seed {}; took {}\n",
        outcomes.len(),
        args.seed,
        console::seconds(took)
    );
    text
}

/// A residual: `0`, `2.1e-14`.
fn number(value: f64) -> String {
    if value == 0.0 { "0".to_owned() } else { format!("{value:.1e}") }
}

/// The document; a residual that is NaN is null.
pub fn json(outcomes: &[Outcome], args: &VerifyArgs, took: Duration) -> Value {
    let identities: Vec<Value> = outcomes
        .iter()
        .map(|outcome| {
            let identity = &outcome.identity;
            json!({
                "id": identity.id,
                "formula": identity.number(),
                "group": outcome.group,
                "equation": identity.equation,
                "source": identity.source,
                "cases": outcome.cases,
                "worst_residual": outcome.worst,
                "worst_case": outcome.worst_case,
                "relative_to": identity.relative_to,
                "tolerance": identity.tolerance,
                "tolerance_because": identity.because,
                "error": outcome.error,
                "passed": outcome.passed(),
            })
        })
        .collect();
    let passed = outcomes.iter().filter(|o| o.passed()).count();
    json!({
        "passed": passed == outcomes.len(),
        "identities_passed": passed,
        "identities_failed": outcomes.len() - passed,
        "seed": args.seed,
        "cases": args.cases.get(),
        "identities": identities,
        "seconds": took.as_secs_f64(),
        "version": env!("CARGO_PKG_VERSION"),
    })
}
