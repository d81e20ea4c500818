//! The command line of `tweedie study`.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Subcommand};
use tweedie_samplers::solver_by_name;

use super::cells::Kind;
use crate::args::{ModelArg, finite, names};
use crate::data::DataArgs;
use crate::eval::SplitName;

/// `tweedie study`.
#[derive(Args, Clone, Debug)]
pub struct StudyArgs {
    /// Of what.
    #[command(subcommand)]
    pub of: Study,
}

/// The studies.
#[derive(Subcommand, Clone, Debug)]
pub enum Study {
    /// What guidance gives and what it costs: accuracy, FID, precision and recall over its scale and over network calls
    Guidance(Box<GuidanceStudyArgs>),
}

/// `tweedie study guidance`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  tweedie study guidance                                  the bundled model; report.md and its plots to studies/guidance
  tweedie study guidance --count 200 --out quick          fewer images: faster, with wider intervals
  tweedie study guidance --model runs/mnist --noisy-classifier runs/mnist-noisy
  tweedie study guidance --scales 0,1,2,4 --runs ddim:10,dpm++2m:10,unipc:10

A study that is stopped goes on where it was when the same command is given again; cells.csv holds what was measured.")]
pub struct GuidanceStudyArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArg,
    /// The classifier of noisy images that guides [default: the bundled one for the bundled model; none for others]
    #[arg(long, value_name = "DIR")]
    pub noisy_classifier: Option<PathBuf>,
    /// The classifier whose features are compared and whose answers are counted [default: the bundled one]
    #[arg(long, value_name = "DIR")]
    pub judge: Option<PathBuf>,
    /// Real images [default: mnist]
    #[arg(long, value_name = "D", default_value = "mnist")]
    pub data: String,
    /// Size, colours and memory of the data.
    #[command(flatten)]
    pub data_options: DataArgs,
    /// Which part of them
    #[arg(long, value_name = "NAME", value_enum, default_value = "test")]
    pub split: SplitName,
    /// Images for each cell, labels in turn
    #[arg(long, value_name = "N", default_value = "1000")]
    pub count: NonZeroUsize,
    /// The scales
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = finite, default_value = "0,0.5,1,1.5,2,3,4,6,8")]
    pub scales: Vec<f64>,
    /// The kinds of guidance
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = names("cfg, classifier"), default_value = "cfg,classifier")]
    pub kinds: Vec<String>,
    /// Sampler and steps with which the scale is changed
    #[arg(long, value_name = "SAMPLER:STEPS", default_value = "ddim:25")]
    pub run: RunName,
    /// Samplers and steps that are compared at one scale
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "ddim:5,ddim:10,ddim:25,ddim:50,dpm++2m:5,dpm++2m:10,dpm++2m:20,unipc:5,unipc:10,heun:10,ddpm:50"
    )]
    pub runs: Vec<RunName>,
    /// That scale [default: what the model's config recommends; else 2]
    #[arg(long, value_name = "G", value_parser = finite)]
    pub at_scale: Option<f64>,
    /// Scales of which a grid of samples is shown
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = finite, default_value = "0,1,2,4,8")]
    pub show: Vec<f64>,
    /// Resamples for the intervals of the FID; 0 for none
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub resamples: usize,
    /// Seed of all randomness
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub seed: u64,
    /// Directory of the report
    #[arg(long, value_name = "DIR", default_value = "studies/guidance")]
    pub out: PathBuf,
}

impl GuidanceStudyArgs {
    /// The kinds, each once.
    pub fn kinds(&self) -> Vec<Kind> {
        Kind::ALL.into_iter().filter(|kind| self.kinds.iter().any(|name| name == kind.name())).collect()
    }
}

/// A sampler and its number of steps, typed as `ddim:25`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunName {
    /// The sampler.
    pub sampler: String,
    /// Steps.
    pub steps: usize,
}

impl FromStr for RunName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("\"{text}\" should be a sampler and its steps, such as ddim:25");
        let (sampler, steps) = text.trim().split_once(':').ok_or_else(wrong)?;
        solver_by_name(sampler).map_err(|e| e.to_string())?;
        let steps = steps.parse().ok().filter(|steps| *steps > 0).ok_or_else(wrong)?;
        Ok(Self { sampler: sampler.to_owned(), steps })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_a_sampler_and_its_steps() {
        let run = |text: &str| text.parse::<RunName>();
        assert_eq!(run("dpm++2m:20"), Ok(RunName { sampler: "dpm++2m".to_owned(), steps: 20 }));
        for wrong in ["ddim", "ddim:", "ddim:0", "ddim:x", "nothing:5", ":5", ""] {
            assert!(run(wrong).is_err(), "{wrong}");
        }
    }
}
