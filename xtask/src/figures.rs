//! `cargo xtask figures`: the pictures that programs among the examples draw.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

/// Builds the example `figures` of the samplers and has it draw into `docs/images`; false if it fails, having said why.
///
/// # Errors
/// If cargo cannot be started.
pub fn run(root: &Path) -> Result<bool> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let args = ["run", "--quiet", "--release", "--package", "tweedie-samplers", "--example", "figures", "docs/images"];
    let status = Command::new(cargo).current_dir(root).args(args).status().context("cannot start cargo")?;
    Ok(status.success())
}
