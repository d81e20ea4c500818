//! The bound, the ODE and the exact value for a model and its data.

use anyhow::{Context, Result};
use ndarray::{Array4, ArrayView4, Axis, Slice};
use tweedie_denoiser::{Condition, ConditionalDenoiser, DenoiserError, Preconditioned, SeededNoise};
use tweedie_eval::ode::{Ode, Trace, dequantise, dequantised_bits_per_dim};
use tweedie_eval::vlb::{self, Options, SampleBound, VlbReport};
use tweedie_eval::{Bound, Decoder, Estimate, ReverseVariance, Steps, bits_per_dim, byte_bins};
use tweedie_samplers::{Clip, SchedulerSpec, SolverSpec};
use tweedie_schedule::{Bins, NoiseLevel, Schedule, Variance};

use super::args::EvalArgs;
use super::data::Data;
use crate::args::Common;
use crate::console::{self, usage};
use crate::model::Loaded;
use crate::sample::plan::{self, Overrides};

/// Random steps of each image, unless told otherwise.
const STEPS_PER_IMAGE: usize = 20;
/// Steps of the integration for a network, whose estimates are in f32.
const ODE_STEPS: usize = 50;
/// Steps of the integration for an oracle.
const ODE_STEPS_EXACT: usize = 300;
/// The most numbers for which the exact divergence is the default.
const EXACT_DIMS: usize = 64;
/// The noise levels between which an oracle's ODE runs: below them is nothing to be seen of the data, above nothing of the
/// noise, unless the data is very small or very large.
const ORACLE_SIGMAS: (f64, f64) = (1e-4, 1e7);

/// Everything that was computed.
pub struct Likelihood {
    /// The bound.
    pub vlb: VlbReport,
    /// Which steps it took.
    pub steps: Steps,
    /// T.
    pub train_steps: usize,
    /// The variance of the reverse steps.
    pub variance: Variance,
    /// The bins of the decoder; `None` for a density.
    pub bins: Option<Bins>,
    /// How the estimate of `x_0` was clipped.
    pub clip: Clip,
    /// The exact value and how far the bound is above it.
    pub exact: Option<Exact>,
    /// The log-density under the ODE.
    pub ode: Option<OdeResult>,
}

/// `-ln p(x_0)` of an oracle's data, in nats.
pub struct Exact {
    /// Its mean.
    pub nll: Estimate,
    /// The mean of bound minus exact value, sample by sample.
    pub gap: Estimate,
}

/// `-ln p(x_0)` by the ODE.
pub struct OdeResult {
    /// In nats per sample; of dequantised pixels, in the units of the model's range.
    pub nll: Estimate,
    /// In bits per dimension; of pixels, those of the bins.
    pub bits: Estimate,
    /// What the standard error holds of the probes; `None` for an exact trace or a single probe.
    pub probe_error: Option<f64>,
    /// `L_T` at the highest noise level, in nats: an upper bound of the mean error of the normal prior.
    pub prior: Estimate,
    /// ODE minus exact value, sample by sample, for an oracle.
    pub error: Option<Estimate>,
    /// How it was computed.
    pub ode: Ode,
}

impl Likelihood {
    /// A part of the bound in nats per sample.
    pub fn nats(&self, part: fn(&SampleBound) -> f64) -> Estimate {
        self.vlb.estimate(part)
    }

    /// Nats per sample as bits per dimension.
    pub fn bits(&self, nats: Estimate) -> Estimate {
        nats.scaled(bits_per_dim(1.0, self.vlb.dims))
    }
}

/// Computes it.
///
/// # Errors
/// If the model's process or an option cannot be used, or a result is not finite.
pub fn run(model: &Loaded, data: &Data, args: &EvalArgs, common: &Common) -> Result<Likelihood> {
    // The bound is that of ancestral sampling, whatever the model's own sampler is.
    let overrides = Overrides {
        sampler: Some(SolverSpec::ddpm().name()),
        prediction: args.prediction.as_deref(),
        ..Overrides::none(&args.process)
    };
    let spec = plan::scheduler(model, &overrides)?;
    let schedule = spec.schedule()?;
    let variance = variance(&spec, args);
    let bins = match model {
        Loaded::Network(_) => Some(byte_bins(model.range())),
        Loaded::Oracle(_) => None,
    };
    let decoder = bins.map_or(Decoder::Density, Decoder::Bins);
    let bound = Bound::new(schedule.clone(), &ReverseVariance::Rule(variance), decoder)?;
    let steps = steps(model, args, schedule.steps())?;
    let batch = args.batch.map_or_else(|| plan::batch(model, data.shape()), Into::into);

    let plain: Box<dyn ConditionalDenoiser + '_> = match model {
        Loaded::Network(network) => {
            Box::new(Preconditioned::new(&network.network, spec.prediction, schedule.clone(), network.mapping()))
        }
        Loaded::Oracle(oracle) => Box::new(&oracle.oracle),
    };
    let clipped = Clipped { model: &plain, clip: spec.clip.check()? };
    let count = data.x0.dim().0;
    let bar = console::progress(common, (count * steps.calls(schedule.steps())) as u64, "network calls");
    bar.set_message(format!("bound on {count} samples"));
    let options = Options { steps, seed: args.seed, batch };
    let noise = SeededNoise::new(args.seed);
    let tick = &mut |n: usize| bar.inc(n as u64);
    let vlb = vlb::evaluate(&bound, &clipped, data.x0.view(), &data.condition, &noise, options, tick)
        .with_context(|| format!("{}: no bound", data.name))?;
    bar.finish_and_clear();

    let logs = exact(model, data)?;
    let exact = logs.as_ref().map(|logs| {
        let gaps: Vec<f64> = vlb.samples.iter().zip(logs).map(|(bound, log)| bound.total() + log).collect();
        Exact { nll: negative(logs), gap: Estimate::of(&gaps) }
    });
    let ode = match args.ode {
        true => Some(by_ode(&plain, model, data, bins, &schedule, logs.as_deref(), args, batch, common)?),
        false => None,
    };
    Ok(Likelihood { vlb, steps, train_steps: schedule.steps(), variance, bins, clip: spec.clip, exact, ode })
}

/// The mean of the negative values.
fn negative(logs: &[f64]) -> Estimate {
    Estimate::of(&logs.iter().map(|log| -log).collect::<Vec<f64>>())
}

fn variance(spec: &SchedulerSpec, args: &EvalArgs) -> Variance {
    match (args.variance, spec.solver) {
        (Some(name), _) => name.into(),
        (None, SolverSpec::Ddpm { variance }) => variance.variance(),
        (None, _) => Variance::default(),
    }
}

fn steps(model: &Loaded, args: &EvalArgs, train_steps: usize) -> Result<Steps> {
    let most = train_steps - 1;
    match (args.steps_per_image, model) {
        (Some(k), _) if k.get() > most => Err(usage(format!(
            "--steps-per-image {k} is more than the {most} steps of this process that can be drawn; give --all-steps"
        ))),
        (Some(k), _) => Ok(Steps::Stratified { per_sample: k.get() }),
        (None, Loaded::Network(_)) if !args.all_steps && most > STEPS_PER_IMAGE => {
            Ok(Steps::Stratified { per_sample: STEPS_PER_IMAGE })
        }
        (None, _) => Ok(Steps::All),
    }
}

/// `ln p(x_0)` of every sample, for an oracle.
fn exact(model: &Loaded, data: &Data) -> Result<Option<Vec<f64>>> {
    let Loaded::Oracle(oracle) = model else { return Ok(None) };
    let logs = oracle.oracle.log_density(data.x0.view(), NoiseLevel::CLEAN, &data.condition);
    logs.map(Some).with_context(|| format!("{}: no exact likelihood", oracle.name))
}

fn by_ode(
    denoiser: &dyn ConditionalDenoiser,
    model: &Loaded,
    data: &Data,
    bins: Option<Bins>,
    schedule: &Schedule,
    logs: Option<&[f64]>,
    args: &EvalArgs,
    batch: usize,
    common: &Common,
) -> Result<OdeResult> {
    let (dims, count, is_network) = (data.dims(), data.x0.dim().0, matches!(model, Loaded::Network(_)));
    let trace = match args.probes {
        None if !is_network && dims <= EXACT_DIMS => Trace::Exact,
        probes => Trace::Hutchinson { probes: probes.map_or(1, Into::into), seed: args.seed },
    };
    let (sigma_min, sigma_max) = if is_network { trained(schedule) } else { ORACLE_SIGMAS };
    let steps = args.ode_steps.map_or(if is_network { ODE_STEPS } else { ODE_STEPS_EXACT }, Into::into);
    let ode = Ode { sigma_min, sigma_max, steps, trace, reach: if is_network { 3e-3 } else { 1e-4 } };
    let bar = console::progress(common, (count * ode.calls(dims)) as u64, "network calls");
    bar.set_message(format!("ODE on {count} samples"));
    let mut found = Vec::with_capacity(count);
    for first in (0..count).step_by(batch) {
        let range = first..count.min(first + batch);
        let part = data.x0.slice_axis(Axis(0), Slice::from(range.clone()));
        let x0 = bins.map_or_else(|| part.to_owned(), |bins| dequantise(part, &bins, args.seed, first));
        let condition = data.condition.slice(range);
        let tick = &mut |n: usize| bar.inc(n as u64);
        found.extend(ode.log_density(denoiser, x0.view(), &condition, first, tick).context("--ode")?);
    }
    bar.finish_and_clear();
    let densities: Vec<f64> = found.iter().map(|f| f.log_density).collect();
    let nll = negative(&densities);
    let bits = match bins {
        Some(bins) => {
            let bits = |log: &f64| dequantised_bits_per_dim(*log, dims, bins.width());
            Estimate::of(&densities.iter().map(bits).collect::<Vec<f64>>())
        }
        None => nll.scaled(bits_per_dim(1.0, dims)),
    };
    let squares: Option<f64> = found.iter().map(|f| f.standard_error.map(|e| e * e)).sum();
    let error = |logs: &[f64]| Estimate::of(&logs.iter().zip(&densities).map(|(l, d)| l - d).collect::<Vec<f64>>());
    Ok(OdeResult {
        nll,
        bits,
        probe_error: squares.map(|squares| squares.sqrt() / count as f64),
        prior: Estimate::of(&found.iter().map(|f| f.prior_kl).collect::<Vec<f64>>()),
        error: logs.map(error),
        ode,
    })
}

/// The lowest and the highest noise level with signal that a network was trained on, as `sigma / alpha`.
fn trained(schedule: &Schedule) -> (f64, f64) {
    let levels = schedule.levels();
    let last = levels.iter().rev().find(|level| level.alpha() > 0.0).copied().unwrap_or(NoiseLevel::CLEAN);
    (levels[1].edm_sigma(), last.edm_sigma())
}

/// A denoiser whose estimate is clipped, as the sampler clips it: the mean of the reverse step follows from the clipped one.
struct Clipped<M> {
    model: M,
    clip: Clip,
}

impl<M: ConditionalDenoiser> ConditionalDenoiser for Clipped<M> {
    fn denoise_with(
        &self,
        x: ArrayView4<'_, f64>,
        level: NoiseLevel,
        condition: &Condition,
    ) -> Result<Array4<f64>, DenoiserError> {
        Ok(self.estimate_with(x, level, condition)?.x0)
    }

    fn estimate_with(
        &self,
        x: ArrayView4<'_, f64>,
        level: NoiseLevel,
        condition: &Condition,
    ) -> Result<tweedie_denoiser::Estimate, DenoiserError> {
        let mut estimate = self.model.estimate_with(x, level, condition)?;
        self.clip.apply(&mut estimate.x0);
        Ok(estimate)
    }
}
