//! The command line: what can be typed, and nothing of what it means for a model.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use tweedie_samplers::{SolverSpec, solver_by_name};
use tweedie_schedule::{BetaSchedule, Prediction, SigmaRule, Spacing};

use crate::bench::BenchArgs;
use crate::console;
use crate::convert::ConvertArgs;
use crate::eval::EvalArgs;
use crate::labels::LabelList;
use crate::sample::GuidanceArgs;
use crate::stable::{ClipScoreArgs, Img2ImgArgs, InpaintArgs, Txt2ImgArgs};
use crate::study::StudyArgs;
use crate::train::{ClassifierArgs, TrainArgs};
use crate::verify::VerifyArgs;

/// Train diffusion models and draw with them, on an ordinary CPU.
#[derive(Parser, Debug)]
#[command(name = "tweedie", version, max_term_width = 110, arg_required_else_help = true)]
#[command(after_help = "\
Examples:
  tweedie sample                                  ten columns of digits from the bundled model
  tweedie sample --labels 3,7 --per-label 4       four threes and four sevens
  tweedie txt2img --model sd --prompt 'a fox'      a picture by Stable Diffusion, from its directory
  tweedie train --data mnist                      train the next one, and watch it
  tweedie inspect                                 the layers of the bundled model
  tweedie eval                                    how likely it finds MNIST's test images
  tweedie schedule --schedule cosine              the noise levels of a schedule
  tweedie verify                                  every formula, checked numerically

`tweedie COMMAND --help` explains each command.")]
pub struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub common: Common,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Args, Clone, Debug)]
pub struct Common {
    /// Threads to compute with; results do not depend on it [default: one for each core]
    #[arg(long, global = true, value_name = "N", help_heading = "General", value_parser = threads)]
    pub threads: Option<usize>,
    /// No progress and no report on stderr, only errors
    #[arg(long, global = true, help_heading = "General")]
    pub quiet: bool,
}

/// The commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Draw images from a model
    Sample(Box<SampleArgs>),
    /// Draw a picture of what a text says, with Stable Diffusion
    Txt2img(Box<Txt2ImgArgs>),
    /// Draw a picture over another, as a text says
    Img2img(Box<Img2ImgArgs>),
    /// Draw a part of a picture anew, as a text says
    Inpaint(Box<InpaintArgs>),
    /// Say how well pictures fit texts, by CLIP
    ClipScore(Box<ClipScoreArgs>),
    /// Train a model and watch it learn
    Train(Box<TrainArgs>),
    /// Train a classifier of noisy or clean images
    TrainClassifier(Box<ClassifierArgs>),
    /// Run a network once on given inputs
    Predict(PredictArgs),
    /// Show layers, parameters, memory and time of a model
    Inspect(InspectArgs),
    /// Print or plot the tables of a noise schedule
    Schedule(ScheduleArgs),
    /// Store a model in another number type or layout
    Convert(ConvertArgs),
    /// Say how likely a model finds data: bits per dimension
    Eval(Box<EvalArgs>),
    /// Measure what guidance gives and what it costs, and write a report
    Study(StudyArgs),
    /// Evaluate the identities that diffusion rests on, and print a table
    Verify(VerifyArgs),
    /// Time a model on this machine, forward or in training
    Bench(BenchArgs),
}

/// Which model.
#[derive(Args, Clone, Debug)]
pub struct ModelArg {
    /// A model directory (diffusers layout, `book`, or a training run) or an oracle's .json [default: the bundled digits]
    #[arg(long, value_name = "MODEL")]
    pub model: Option<PathBuf>,
    /// Which weights, where a directory holds several: fp16, non_ema, ... [default: those without a variant]
    #[arg(long, value_name = "NAME")]
    pub variant: Option<String>,
}

/// The process that a model without a scheduler of its own was trained on.
#[derive(Args, Clone, Debug, Default)]
pub struct ProcessArgs {
    /// Noise schedule [default: linear]
    #[arg(long, value_name = "NAME", value_parser = names(BetaSchedule::NAMES))]
    pub schedule: Option<String>,
    /// Number of training steps T [default: 1000]
    #[arg(long, value_name = "T", value_parser = train_steps)]
    pub train_steps: Option<usize>,
    /// First beta; not with cosine, which has constants of its own [default: 0.0001]
    #[arg(long, value_name = "B", value_parser = open_unit)]
    pub beta_start: Option<f64>,
    /// Last beta; not with cosine [default: 0.02]
    #[arg(long, value_name = "B", value_parser = open_unit)]
    pub beta_end: Option<f64>,
}

impl ProcessArgs {
    /// The rule of the betas.
    ///
    /// # Errors
    /// If there is no schedule of that name, or it does not use a beta that was given; both are usage errors.
    pub fn betas(&self) -> anyhow::Result<BetaSchedule> {
        let name = self.name();
        let ends = [(self.beta_start, "--beta-start"), (self.beta_end, "--beta-end")];
        if let ("cosine", Some((_, option))) = (name, ends.iter().find(|(beta, _)| beta.is_some())) {
            return Err(console::usage(format!(
                "{option} cannot be given with --schedule cosine, whose betas follow from constants of its own"
            )));
        }
        self.betas_of(name)
    }

    /// The rule of another schedule with the same ends; the cosine has its own.
    ///
    /// # Errors
    /// If there is no schedule of that name.
    pub fn betas_of(&self, name: &str) -> anyhow::Result<BetaSchedule> {
        let (start, end) = self.ends();
        BetaSchedule::from_name(name, start, end).map_err(|e| console::usage(e.to_string()))
    }

    /// The name of the schedule.
    pub fn name(&self) -> &str {
        self.schedule.as_deref().unwrap_or("linear")
    }

    /// First and last beta.
    pub fn ends(&self) -> (f64, f64) {
        (self.beta_start.unwrap_or(1e-4), self.beta_end.unwrap_or(0.02))
    }

    /// T.
    pub fn steps(&self) -> usize {
        self.train_steps.unwrap_or(1000)
    }

    /// The first option that was given, as it is typed.
    pub fn given(&self) -> Option<&'static str> {
        [
            (self.schedule.is_some(), "--schedule"),
            (self.train_steps.is_some(), "--train-steps"),
            (self.beta_start.is_some(), "--beta-start"),
            (self.beta_end.is_some(), "--beta-end"),
        ]
        .into_iter()
        .find_map(|(given, name)| given.then_some(name))
    }
}

/// `tweedie sample`.
#[derive(Args, Clone, Debug)]
#[command(allow_negative_numbers = true)]
#[command(after_help = "\
Examples:
  tweedie sample                                       digits 0 to 9, eight of each, to sample.png
  tweedie sample --labels 3,3,7                        two threes and a seven
  tweedie sample --labels 0-3,7 --per-label 2          two each of 0, 1, 2, 3 and 7
  tweedie sample --labels none --count 25              25 without a label
  tweedie sample --model runs/mnist --steps 100        from a training run
  tweedie sample --sampler ddpm --out digits.npy       all steps of the process, raw numbers
  tweedie sample --guidance 4 --guidance-interval 0.3,5   strong guidance where it does good
  tweedie sample --save-noise z.safetensors            keep the noise; --noise z.safetensors replays it

Image number i of a seed is the same image whatever --count, --batch and --threads are.")]
pub struct SampleArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArg,
    /// Labels to draw: a list of numbers, ranges and `none`, such as 0-9 or 0-3,7 or none
    /// [default: every label of the model]
    #[arg(long, value_name = "LABELS")]
    pub labels: Option<LabelList>,
    /// Images for each listed label, label by label: image i is of entry i / N of the list
    /// [default: 1 for each entry of --labels; 8 for each label of the model without it; 16 for `none` alone]
    #[arg(long, value_name = "N", conflicts_with = "count")]
    pub per_label: Option<NonZeroUsize>,
    /// Images in all; the labels are taken in turn
    #[arg(long, value_name = "N")]
    pub count: Option<NonZeroUsize>,
    /// Seed of all randomness
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub seed: u64,
    /// Sampler [default: that of the model's scheduler config; ddim where there is none]
    #[arg(long, value_name = "NAME", value_parser = sampler_names())]
    pub sampler: Option<String>,
    /// Sampling steps [default: 25, 4 for consistency models, and every step of the process for ddpm]
    #[arg(long, value_name = "K")]
    pub steps: Option<NonZeroUsize>,
    /// Which steps of the process are visited [default: that of the model; trailing where it has none]
    #[arg(long, value_name = "NAME", value_parser = names(Spacing::NAMES))]
    pub spacing: Option<String>,
    /// Noise levels between the first and the last, for euler, heun and their like [default: those of the model]
    #[arg(long, value_name = "RULE", value_parser = names(SigmaRule::NAMES))]
    pub sigmas: Option<String>,
    /// Noise that euler and heun add before their steps, S_churn of Karras 2022 [default: 0]
    #[arg(long, value_name = "S", value_parser = not_negative)]
    pub churn: Option<f64>,
    /// The lowest sigma at which --churn adds noise [default: 0]
    #[arg(long, value_name = "S", value_parser = not_negative, requires = "churn")]
    pub s_tmin: Option<f64>,
    /// The highest sigma at which --churn adds noise [default: any]
    #[arg(long, value_name = "S", value_parser = not_negative, requires = "churn")]
    pub s_tmax: Option<f64>,
    /// Standard deviation of the noise of --churn [default: 1]
    #[arg(long, value_name = "S", value_parser = not_negative, requires = "churn")]
    pub s_noise: Option<f64>,
    /// Order of lms, 1 to 4 [default: 4]
    #[arg(long, value_name = "N")]
    pub order: Option<NonZeroUsize>,
    /// Follow diffusers where it deviates from the published methods (docs/samplers.md lists where)
    #[arg(long)]
    pub compat: bool,
    /// Noise added by ddim in each step: 0 is deterministic, 1 as much as ddpm [default: 0]
    #[arg(long, value_name = "E", value_parser = closed_unit)]
    pub eta: Option<f64>,
    /// What the network predicts; epsilon, sample and v_prediction are understood too
    /// [default: that of the model; eps where it does not say]
    #[arg(long, value_name = "NAME", value_parser = prediction_names())]
    pub prediction: Option<String>,
    /// Noise to use: `initial [N,C,H,W]` and, for samplers that add noise, `steps [K,N,C,H,W]`
    #[arg(long, value_name = "FILE.safetensors", help_heading = "Files", value_parser = safetensors_path)]
    pub noise: Option<PathBuf>,
    /// Write the noise that was used, in the form that --noise reads
    #[arg(long, value_name = "FILE.safetensors", help_heading = "Files", value_parser = safetensors_path)]
    pub save_noise: Option<PathBuf>,
    /// Where the images go: a .png grid, or raw numbers `[N,C,H,W]` as .npy or .safetensors
    #[arg(long, value_name = "FILE", help_heading = "Files", default_value = "sample.png", value_parser = sample_path)]
    pub out: PathBuf,
    /// Size of the images, H or HxW, for a network whose config does not tell it (or another size than it tells)
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub size: Option<[usize; 2]>,
    /// Images computed at once; results do not depend on it [default: what fits in memory easily]
    #[arg(long, value_name = "N")]
    pub batch: Option<NonZeroUsize>,
    /// No picture in the terminal
    #[arg(long)]
    pub no_preview: bool,
    /// Print one JSON document that describes the run
    #[arg(long)]
    pub json: bool,
    /// How the model is guided.
    #[command(flatten, next_help_heading = "Guidance (docs/guidance.md)")]
    pub guidance: GuidanceArgs,
    /// The process of a model that does not describe its own.
    #[command(flatten, next_help_heading = "Process (for an oracle, or a model without a scheduler config)")]
    pub process: ProcessArgs,
}

/// `tweedie predict`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
The input holds `sample` [N,C,H,W], `timestep` [N] (the number that the network sees: from 0 for diffusers models, from 1 for
book models) and, for networks with labels, `class_labels` [N]. -1 is no condition, and so is the index of the null row of a
diffusers model, which is the number of its labels. `sample` may be of any float type, the others of any number type. The output
holds `sample` [N,C,H,W] in f32.

The decoder and the text encoder of a pipeline are run likewise: an autoencoder's directory takes latents `sample` [N,L,h,w],
already divided by the scaling factor, and gives images; a text encoder's takes `input_ids` [N,T], numbers of tokens, and gives its
last hidden state as `sample` [N,T,D].

Example:
  tweedie predict --model runs/mnist --input in.safetensors --out out.safetensors")]
pub struct PredictArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArg,
    /// Inputs
    #[arg(long, value_name = "IN.safetensors", value_parser = safetensors_path)]
    pub input: PathBuf,
    /// Outputs
    #[arg(long, value_name = "OUT.safetensors", value_parser = safetensors_path)]
    pub out: PathBuf,
}

/// `tweedie inspect`.
#[derive(Args, Clone, Debug)]
pub struct InspectArgs {
    /// A model directory [default: the bundled digits]
    #[arg(value_name = "MODEL")]
    pub model: Option<PathBuf>,
    /// Which weights, where a directory holds several: fp16, non_ema, ... [default: those without a variant]
    #[arg(long, value_name = "NAME")]
    pub variant: Option<String>,
    /// Time the network itself, however large it is [default: up to 1 GB of weights in memory; estimate beyond]
    #[arg(long)]
    pub measure: bool,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

/// `tweedie schedule`.
#[derive(Args, Clone, Debug)]
#[command(allow_negative_numbers = true)]
#[command(after_help = "\
Examples:
  tweedie schedule                                      some rows of the linear schedule
  tweedie schedule --schedule cosine --plot cosine.svg  its curves as a picture
  tweedie schedule --plot all.svg --compare cosine,sigmoid,scaled-linear
                                                        several schedules in one picture
  tweedie schedule --steps 10 --spacing leading         what a sampler of ten steps visits
  tweedie schedule --rescale-zero-snr                   no signal left at the last step
  tweedie schedule --json > linear.json                 every number, for t = 1..T

In JSON, what is infinite is null: the log-SNR of a step without signal.")]
pub struct ScheduleArgs {
    /// The schedule.
    #[command(flatten)]
    pub process: ProcessArgs,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
    /// Draw betas, alphas_cumprod and log-SNR over t
    #[arg(long, value_name = "FILE.svg", value_parser = svg_path)]
    pub plot: Option<PathBuf>,
    /// Other schedules to draw into the plot, separated by commas, with the same T and ends
    #[arg(long, value_name = "NAMES", requires = "plot", value_delimiter = ',', value_parser = names(BetaSchedule::NAMES))]
    pub compare: Vec<String>,
    /// Shift and scale the schedule such that its last step holds no signal (Lin 2023)
    #[arg(long)]
    pub rescale_zero_snr: bool,
    /// Also the steps that a sampler of K steps visits, with their noise levels; the plot marks them
    #[arg(long, value_name = "K")]
    pub steps: Option<NonZeroUsize>,
    /// How those steps are spread over the process [default: trailing]
    #[arg(long, value_name = "NAME", requires = "steps", value_parser = names(Spacing::NAMES))]
    pub spacing: Option<String>,
}

/// One of a comma-separated list of names.
pub fn names(list: &'static str) -> impl TypedValueParser<Value = String> {
    PossibleValuesParser::new(list.split(", "))
}

/// The names of samplers, and the others that some have.
pub fn sampler_names() -> impl TypedValueParser<Value = String> {
    let value = |name: &'static str| {
        let aliases = SolverSpec::ALIASES.into_iter().filter(move |(_, of)| *of == name).map(|(alias, _)| alias);
        PossibleValue::new(name).aliases(aliases)
    };
    PossibleValuesParser::new(SolverSpec::NAMES.split(", ").map(value))
}

/// The names of predictions, and those that diffusers has for them.
pub fn prediction_names() -> impl TypedValueParser<Value = String> {
    let value = |name: &'static str| {
        let own = Prediction::from_name(name).ok();
        match own.and_then(Prediction::config_name) {
            Some(alias) => PossibleValue::new(name).alias(alias),
            None => PossibleValue::new(name),
        }
    };
    PossibleValuesParser::new(Prediction::NAMES.split(", ").map(value))
}

/// The most threads; a bound, so that a mistyped number is an error and not the end of the system's threads.
const MOST_THREADS: usize = 1024;

fn threads(text: &str) -> Result<usize, String> {
    let error = || format!("expected a whole number from 1 to {MOST_THREADS}");
    text.parse().ok().filter(|n| (1..=MOST_THREADS).contains(n)).ok_or_else(error)
}

fn number(text: &str) -> Result<f64, String> {
    text.parse::<f64>().map_err(|_| "expected a number".to_owned())
}

/// A number that is neither infinite nor NaN.
pub fn finite(text: &str) -> Result<f64, String> {
    number(text).and_then(|x| if x.is_finite() { Ok(x) } else { Err("expected a finite number".to_owned()) })
}

fn not_negative(text: &str) -> Result<f64, String> {
    finite(text).and_then(|x| if x >= 0.0 { Ok(x) } else { Err("expected a number that is not negative".to_owned()) })
}

/// A number from 0 to 1.
pub fn closed_unit(text: &str) -> Result<f64, String> {
    let inside = |x: f64| (0.0..=1.0).contains(&x);
    number(text).and_then(|x| if inside(x) { Ok(x) } else { Err("expected a number from 0 to 1".to_owned()) })
}

fn open_unit(text: &str) -> Result<f64, String> {
    let inside = |x: f64| x > 0.0 && x < 1.0;
    number(text).and_then(|x| if inside(x) { Ok(x) } else { Err("expected a number between 0 and 1".to_owned()) })
}

fn train_steps(text: &str) -> Result<usize, String> {
    let highest = tweedie_schedule::Schedule::MAX_STEPS;
    let error = || format!("expected a whole number from 1 to {highest}");
    text.parse().ok().filter(|t| (1..=highest).contains(t)).ok_or_else(error)
}

/// `H` or `HxW`.
fn size(text: &str) -> Result<[usize; 2], String> {
    let side = |text: &str| text.parse().ok().filter(|s| (1..=1 << 16).contains(s));
    let (h, w) = text.split_once('x').unwrap_or((text, text));
    Ok([side(h), side(w)]).and_then(|sides: [Option<usize>; 2]| match sides {
        [Some(h), Some(w)] => Ok([h, w]),
        _ => Err("expected a size such as 32 or 32x48".to_owned()),
    })
}

/// A path whose suffix is one of `suffixes`.
fn path_with_suffix(text: &str, suffixes: &[&str]) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    let suffix = path.extension().and_then(|s| s.to_str()).unwrap_or_default().to_ascii_lowercase();
    if suffixes.contains(&suffix.as_str()) {
        return Ok(path);
    }
    let list = suffixes.iter().map(|s| format!(".{s}")).collect::<Vec<_>>().join(", ");
    Err(format!("the name should end in {}{list}", if suffixes.len() > 1 { "one of " } else { "" }))
}

fn sample_path(text: &str) -> Result<PathBuf, String> {
    path_with_suffix(text, &["png", "npy", "safetensors"])
}

pub fn safetensors_path(text: &str) -> Result<PathBuf, String> {
    path_with_suffix(text, &["safetensors"])
}

pub fn svg_path(text: &str) -> Result<PathBuf, String> {
    path_with_suffix(text, &["svg"])
}

/// The solver of a name that the command line has accepted, with its defaults.
///
/// # Errors
/// If there is no such solver.
pub fn solver(name: &str) -> anyhow::Result<SolverSpec> {
    Ok(solver_by_name(name)?)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn suffixes_are_judged_without_regard_to_case() {
        assert!(sample_path("a/b.PNG").is_ok());
        assert!(sample_path("a/b.npy").is_ok());
        for wrong in ["a/b", "a.jpg", "png", ".png"] {
            assert!(sample_path(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn numbers_outside_their_range_are_refused() {
        for wrong in ["0", "1", "-0.1", "nan", "x", ""] {
            assert!(open_unit(wrong).is_err(), "{wrong}");
        }
        for wrong in ["0", "1000001", "-1", "1.5"] {
            assert!(train_steps(wrong).is_err(), "{wrong}");
        }
        for wrong in ["-0.5", "1.001", "nan", "inf"] {
            assert!(closed_unit(wrong).is_err(), "{wrong}");
        }
        assert_eq!((closed_unit("0"), closed_unit("1")), (Ok(0.0), Ok(1.0)));
        assert!(finite("inf").is_err());
        assert_eq!(finite("-2.5"), Ok(-2.5));
    }
}
