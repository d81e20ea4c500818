//! Repository chores: `cargo xtask tidy` checks the invariants that ARCHITECTURE.md states, `cargo xtask bench` measures,
//! `cargo xtask math` writes docs/verified-math.md, `cargo xtask doc` the documentation with its equations rendered,
//! `cargo xtask figures` its pictures, `cargo xtask mutants` changes the code to see whether a test notices, and
//! `cargo xtask endurance` kills training runs.
#![forbid(unsafe_code)]

mod bench;
mod doc;
mod endurance;
mod figures;
mod math;
mod mutants;
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
    /// Writes docs/verified-math.md: which function carries which equation, and which tests verify it.
    Math,
    /// Builds the documentation of the libraries with the header that renders equations.
    Doc,
    /// Verifies, then times whole networks, alone or against other programs; see bench/README.md.
    Bench(Box<bench::BenchArgs>),
    /// Kills training runs, fills their disk and damages their files, and compares what comes of it bit for bit.
    Endurance(endurance::EnduranceArgs),
    /// Draws the pictures of the samplers into docs/images.
    Figures,
    /// Changes the mathematics, one place at a time, and lists the changes that no test notices (needs cargo-mutants).
    Mutants(mutants::MutantsArgs),
}

fn main() -> ExitCode {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let outcome = match Args::parse().chore {
        Chore::Tidy => tidy::run(&root),
        Chore::Math => math::run(&root),
        Chore::Doc => doc::run(&root),
        Chore::Bench(args) => bench::run(&root, &args),
        Chore::Endurance(args) => endurance::run(&root, &args),
        Chore::Figures => figures::run(&root),
        Chore::Mutants(args) => mutants::run(&root, &args),
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
