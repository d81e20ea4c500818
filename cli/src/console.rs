//! What is said to the person at the terminal: results on stdout, progress and reports on stderr.

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::args::Common;

/// An error of the command line: an option whose value cannot be right.
#[derive(Debug)]
pub struct Usage(pub String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// An error that ends the program with status 2.
pub fn usage(message: impl Into<String>) -> anyhow::Error {
    Usage(message.into()).into()
}

/// Writes a result to stdout. That nobody reads it to its end (`| head`) is no error.
///
/// # Errors
/// If it cannot be written for another reason.
pub fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write to stdout; check where it goes, and the space there"),
    }
}

/// Prints one JSON document.
///
/// # Errors
/// As [`print()`].
pub fn print_json(value: &serde_json::Value) -> Result<()> {
    print(&format!("{value:#}\n"))
}

/// Says something on stderr, unless told to be quiet.
pub fn report(common: &Common, text: &str) {
    if !common.quiet {
        // A closed stderr takes no complaint either.
        let _ = writeln!(io::stderr(), "{text}");
    }
}

/// Says what went wrong, and returns the exit status for it: 2 if the command line was wrong, else 1.
pub fn report_error(error: &anyhow::Error) -> ExitCode {
    let _ = writeln!(io::stderr(), "error: {}", chain(error));
    ExitCode::from(if error.is::<Usage>() { 2 } else { 1 })
}

/// The messages of an error and its causes as one; a cause that the message before it quotes already is left out.
fn chain(error: &anyhow::Error) -> String {
    let mut message = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if !message.contains(&text) {
            message += if message.is_empty() { "" } else { ": " };
            message += &text;
        }
    }
    message
}

/// A progress bar on stderr for `length` units, hidden if stderr is no terminal or the user wants quiet.
pub fn progress(common: &Common, length: u64, unit: &str) -> ProgressBar {
    let hidden = common.quiet || !io::stderr().is_terminal();
    let target = if hidden { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr_with_hz(10) };
    let bar = ProgressBar::with_draw_target(Some(length), target);
    let template = format!("{{msg}} {{wide_bar}} {{pos}}/{{len}} {unit}, {{eta}} left");
    if let Ok(style) = ProgressStyle::with_template(&template) {
        bar.set_style(style);
    }
    bar
}

/// A duration for people: `0.42 s`, `12.3 s`, `3 min 5 s`.
pub fn seconds(duration: Duration) -> String {
    let s = duration.as_secs_f64();
    match s {
        _ if s < 1.0 => format!("{s:.2} s"),
        _ if s < 120.0 => format!("{s:.1} s"),
        _ => format!("{} min {} s", duration.as_secs() / 60, duration.as_secs() % 60),
    }
}

/// A number of bytes for people: `512 B`, `3.2 MiB`.
pub fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (count as f64, 0);
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_once() {
        let inner = io::Error::other("the disk is full");
        let error = anyhow::Error::from(inner).context("cannot write a.png: the disk is full").context("sample");
        assert_eq!(chain(&error), "sample: cannot write a.png: the disk is full");
    }

    #[test]
    fn numbers_for_people() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(3 << 20), "3.0 MiB");
        assert_eq!(seconds(Duration::from_millis(420)), "0.42 s");
        assert_eq!(seconds(Duration::from_secs(185)), "3 min 5 s");
    }
}
