//! `cargo xtask doc`: the documentation of the libraries, with the header that renders equations.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

/// The header, from the root. It loads KaTeX when a page is looked at; building needs no network.
const HEADER: &str = "docs/katex-header.html";

/// Builds the documentation; true if that succeeded.
///
/// # Errors
/// If cargo cannot be started.
pub fn run(root: &Path) -> Result<bool> {
    let header = root.join(HEADER).canonicalize().with_context(|| format!("cannot find {HEADER}"))?;
    let mut flags = std::env::var("RUSTDOCFLAGS").unwrap_or_default();
    flags += &format!(" --html-in-header {}", header.display());
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let status = Command::new(cargo)
        .args(["doc", "--workspace", "--no-deps", "--exclude", "xtask"])
        .current_dir(root)
        .env("RUSTDOCFLAGS", flags.trim())
        .status()
        .context("cannot start cargo")?;
    if status.success() {
        println!("doc: open target/doc/tweedie_schedule/index.html");
    }
    Ok(status.success())
}
