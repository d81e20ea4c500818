//! `tweedie`: draw with diffusion models, train them and look into them.
//!
//! Arguments are parsed in [`args`] and nowhere else; each command plans what they mean for its model, then runs.
#![forbid(unsafe_code)]

mod args;
mod axis;
mod bench;
mod classifier;
mod console;
mod convert;
mod data;
mod eval;
mod inspect;
mod labels;
mod model;
mod picture;
mod predict;
mod sample;
mod schedule;
mod scheduler;
mod stable;
mod study;
mod train;
mod verify;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

use args::{Cli, Command};

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => console::report_error(&error),
    }
}

fn run(cli: &Cli) -> Result<()> {
    let common = &cli.common;
    tweedie_kernels::simd::Isa::from_environment().map_err(anyhow::Error::msg)?;
    if let Some(threads) = common.threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build_global().with_context(|| format!("cannot start {threads} threads"))?;
    }
    match &cli.command {
        Command::Sample(args) => sample::run(args, common),
        Command::Txt2img(args) => stable::txt2img(args, common),
        Command::Img2img(args) => stable::img2img(args, common),
        Command::Inpaint(args) => stable::inpaint(args, common),
        Command::ClipScore(args) => stable::run_score(args, common),
        Command::Train(args) => train::run(args, common),
        Command::TrainClassifier(args) => train::run_classifier(args, common),
        Command::Predict(args) => predict::run(args, common),
        Command::Inspect(args) => inspect::run(args),
        Command::Schedule(args) => schedule::run(args, common),
        Command::Convert(args) => convert::run(args, common),
        Command::Eval(args) => eval::run(args, common),
        Command::Study(args) => study::run(args, common),
        Command::Verify(args) => verify::run(args, common),
        Command::Bench(args) => bench::run(args, common),
    }
}
