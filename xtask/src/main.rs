//! Repository chores: `cargo xtask tidy` checks the invariants that ARCHITECTURE.md states, `cargo xtask bench` measures,
//! `cargo xtask figures` draws the pictures of the documentation.
#![forbid(unsafe_code)]

mod bench;
mod figures;
mod tidy;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Chores of the tweedie repository.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Checks the invariants of ARCHITECTURE.md: crate directions, files and printing, unsafe code, file lengths.
    Tidy,
    /// Verifies, then times whole networks, alone or against other programs; see bench/README.md.
    Bench(Box<bench::BenchArgs>),
    /// Draws the pictures of the samplers into docs/images.
    Figures,
}

fn main() -> ExitCode {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let outcome = match Args::parse().chore {
        Chore::Tidy => tidy::run(&root),
        Chore::Bench(args) => bench::run(&root, &args),
        Chore::Figures => figures::run(&root),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
