//! Mutation testing of the mathematics: `cargo mutants` over the crates whose every line a test should hold.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Args;

/// Packages that are mutated.
const PACKAGES: [&str; 5] =
    ["tweedie-schedule", "tweedie-denoiser", "tweedie-guidance", "tweedie-samplers", "tweedie-eval"];
/// Seconds that the tests of one mutant may take.
const TIMEOUT: &str = "120";

/// `cargo xtask mutants`.
#[derive(Args, Clone, Debug)]
pub struct MutantsArgs {
    /// Only these packages [default: schedule, denoiser, guidance, samplers and eval]
    #[arg(long = "package", value_name = "NAME")]
    packages: Vec<String>,
    /// Only every n-th mutant, from the k-th on: a sample that says as much in a fraction of the time
    #[arg(long, value_name = "K/N")]
    shard: Option<String>,
    /// Mutants at once
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// Folder of the results
    #[arg(long, value_name = "DIR", default_value = "target/mutants")]
    out: std::path::PathBuf,
}

/// Runs the chore.
///
/// # Errors
/// If cargo-mutants is not installed or cannot be started.
pub fn run(root: &Path, args: &MutantsArgs) -> Result<bool> {
    let found = Command::new("cargo").args(["mutants", "--version"]).output();
    ensure!(
        found.is_ok_and(|output| output.status.success()),
        "cargo-mutants is not installed; run `cargo install cargo-mutants --locked` first"
    );
    let out = root.join(&args.out);
    std::fs::create_dir_all(&out).with_context(|| out.display().to_string())?;
    let mut command = Command::new("cargo");
    command.current_dir(root).arg("mutants").args(["--no-shuffle", "--timeout", TIMEOUT]);
    command.args(["--jobs", &args.jobs.to_string()]).arg("--output").arg(&out);
    let packages: Vec<String> = match args.packages.as_slice() {
        [] => PACKAGES.map(str::to_owned).to_vec(),
        some => some.iter().map(|name| format!("tweedie-{}", name.trim_start_matches("tweedie-"))).collect(),
    };
    for package in &packages {
        command.args(["--package", package]);
    }
    if let Some(shard) = &args.shard {
        command.args(["--shard", shard, "--sharding", "round-robin"]);
    }
    let status = command.status().context("cargo mutants")?;
    println!("the results are in {}", out.join("mutants.out").display());
    Ok(status.success())
}
