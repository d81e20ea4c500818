//! The keys of the multistep classes, of PNDM and of the consistency schedulers (DIFFUSERS.md, sections 3.1 and 3.2).

use tweedie_samplers::{
    ConsistencyForm, DpmForm, DpmOptions, DpmSlope, GroupSize, Integrand, LastMove, Lowering, MoveSet, Path, PndmStart,
    SinglestepOptions, SolverSpec, UniPcB, UniPcOptions, VarianceType,
};
use tweedie_schedule::Prediction;

use super::reader::Reader;
use super::{SchedulerError, prediction};

/// DPM-Solver: what its file says, or for a sampler that was asked for by name what the name leaves open.
pub fn dpm(reader: &Reader<'_>, named: Option<DpmOptions>) -> Result<SolverSpec, SchedulerError> {
    no_flow(reader)?;
    variance(reader)?;
    let slope = slope(reader)?;
    let lowering = match (reader.flag("lower_order_final")?, reader.flag("euler_at_final")?) {
        (true, true) => Lowering::LastAndShortRuns,
        (true, false) => Lowering::ShortRuns,
        (false, true) => Lowering::Last,
        (false, false) => Lowering::Never,
    };
    let form = form(reader)?;
    let (integrand, path) = reader.choice(
        "algorithm_type",
        &[
            ("dpmsolver++", (Integrand::Data, Path::Ode)),
            ("dpmsolver", (Integrand::Noise, Path::Ode)),
            ("sde-dpmsolver++", (Integrand::Data, Path::Sde)),
            ("sde-dpmsolver", (Integrand::Noise, Path::Sde)),
            ("deis", (Integrand::Data, Path::Ode)),
        ],
    )?;
    let of_file = DpmOptions { form, integrand, path, slope, lowering };
    let options = match named {
        Some(named) => DpmOptions { slope, lowering, ..named },
        None => of_file,
    };
    let ends_clean = reader.text("final_sigmas_type", "zero")? == "zero";
    if named.is_none() && ends_clean && (integrand, path) == (Integrand::Noise, Path::Sde) {
        let problem = "sde-dpmsolver has no step to sigma = 0; use \"sigma_min\", or the algorithm sde-dpmsolver++";
        return Err(reader.refused("final_sigmas_type", &problem));
    }
    Ok(SolverSpec::Dpm(options))
}

/// The singlestep DPM-Solver, as [`dpm`].
pub fn singlestep(reader: &Reader<'_>, named: Option<SinglestepOptions>) -> Result<SolverSpec, SchedulerError> {
    no_flow(reader)?;
    variance(reader)?;
    let slope = slope(reader)?;
    let last = if reader.flag("lower_order_final")? { LastMove::First } else { LastMove::AsPlaced };
    let group = match form(reader)? {
        DpmForm::First => GroupSize::One,
        DpmForm::Second => GroupSize::Two,
        _ => GroupSize::Three,
    };
    let (integrand, path) = reader.choice(
        "algorithm_type",
        &[
            ("dpmsolver++", (Integrand::Data, Path::Ode)),
            ("dpmsolver", (Integrand::Noise, Path::Ode)),
            ("sde-dpmsolver++", (Integrand::Data, Path::Sde)),
            ("deis", (Integrand::Data, Path::Ode)),
        ],
    )?;
    let of_file = SinglestepOptions { group, integrand, path, slope, last };
    Ok(SolverSpec::DpmSinglestep(named.map_or(of_file, |named| SinglestepOptions { slope, last, ..named })))
}

/// DEIS.
pub fn deis(reader: &Reader<'_>) -> Result<SolverSpec, SchedulerError> {
    no_flow(reader)?;
    let names = ["dpmsolver", "dpmsolver++", "deis"].map(|name| (name, ()));
    reader.choice("algorithm_type", &names)?;
    let names = ["logrho", "midpoint", "heun", "bh1", "bh2"].map(|name| (name, ()));
    reader.choice("solver_type", &names)?;
    let lowering = if reader.flag("lower_order_final")? { Lowering::ShortRuns } else { Lowering::Never };
    Ok(SolverSpec::Deis { form: form(reader)?, lowering })
}

/// UniPC.
pub fn unipc(reader: &Reader<'_>) -> Result<SolverSpec, SchedulerError> {
    no_flow(reader)?;
    for key in ["solver_p", "shift_terminal"] {
        if reader.is_given(key) {
            return Err(reader.refused(key, &"it is not supported; null is"));
        }
    }
    let order = reader.integer("solver_order")?;
    if !(1..=UniPcOptions::HIGHEST).contains(&order) {
        return Err(reader.wrong("solver_order", "a whole number from 1 to 6"));
    }
    let listed = reader.numbers("disable_corrector")?.unwrap_or_default();
    if listed.iter().any(|n| n.fract() != 0.0 || *n < 0.0) {
        return Err(reader.wrong("disable_corrector", "a list of whole numbers, 0 or more"));
    }
    let uncorrected = MoveSet::new(listed.into_iter().map(|n| n as usize));
    Ok(SolverSpec::UniPc(UniPcOptions {
        order,
        integrand: if reader.flag("predict_x0")? { Integrand::Data } else { Integrand::Noise },
        b: reader.choice(
            "solver_type",
            &[
                ("bh2", UniPcB::Exponential),
                ("bh1", UniPcB::Length),
                ("midpoint", UniPcB::Exponential),
                ("heun", UniPcB::Exponential),
                ("logrho", UniPcB::Exponential),
            ],
        )?,
        lowering: if reader.flag("lower_order_final")? { Lowering::EveryRun } else { Lowering::Never },
        uncorrected: uncorrected.map_err(|e| reader.refused("disable_corrector", &e))?,
    }))
}

/// PNDM, with the start that its file or its name says.
pub fn pndm(reader: &Reader<'_>, named: Option<PndmStart>) -> Result<SolverSpec, SchedulerError> {
    let of_file = if reader.flag("skip_prk_steps")? { PndmStart::Multistep } else { PndmStart::RungeKutta };
    let predicted = prediction(reader)?;
    let averaged = if predicted == Prediction::V { predicted } else { Prediction::Eps };
    Ok(SolverSpec::Pndm { start: named.unwrap_or(of_file), averaged })
}

/// LCM and consistency models.
pub fn consistency(reader: &Reader<'_>, form: ConsistencyForm) -> Result<SolverSpec, SchedulerError> {
    Ok(SolverSpec::Consistency(match form {
        ConsistencyForm::Latent { .. } => {
            let scaling = reader.number("timestep_scaling", 10.0)?;
            if !(scaling > 0.0 && scaling.is_finite()) {
                return Err(reader.wrong("timestep_scaling", "a number above 0"));
            }
            ConsistencyForm::Latent { scaling, original_steps: reader.integer("original_inference_steps")? }
        }
        // A plain function on a table is one that is the identity at the data.
        _ if !reader.has("sigma_min") => ConsistencyForm::Plain { sigma_min: 0.0, noise: 1.0 },
        _ => {
            let noise = reader.number("s_noise", 1.0)?;
            if !(noise >= 0.0 && noise.is_finite()) {
                return Err(reader.wrong("s_noise", "a number, 0 or more"));
            }
            ConsistencyForm::Plain { sigma_min: reader.number("sigma_min", 0.002)?, noise }
        }
    }))
}

/// The formula of DPM-Solver.
fn slope(reader: &Reader<'_>) -> Result<DpmSlope, SchedulerError> {
    reader.choice(
        "solver_type",
        &[
            ("midpoint", DpmSlope::Midpoint),
            ("heun", DpmSlope::Heun),
            // The names of other classes, for which diffusers takes its default.
            ("logrho", DpmSlope::Midpoint),
            ("bh1", DpmSlope::Midpoint),
            ("bh2", DpmSlope::Midpoint),
        ],
    )
}

/// The order of DPM-Solver and DEIS.
fn form(reader: &Reader<'_>) -> Result<DpmForm, SchedulerError> {
    match reader.integer("solver_order")? {
        1 => Ok(DpmForm::First),
        2 => Ok(DpmForm::Second),
        3 => Ok(DpmForm::Third),
        _ => Err(reader.wrong("solver_order", "1, 2 or 3")),
    }
}

/// The keys of flow matching, which is another process.
fn no_flow(reader: &Reader<'_>) -> Result<(), SchedulerError> {
    for key in ["use_flow_sigmas", "use_dynamic_shifting"] {
        if reader.flag(key)? {
            return Err(reader.refused(key, &"flow matching is not supported; false is"));
        }
    }
    // Neither means anything without the above, but a wrong kind is still a mistake.
    reader.number("flow_shift", 1.0)?;
    reader.choice("time_shift_type", &[("exponential", ()), ("linear", ())])
}

/// A learned variance is split off and has no further use; the names are those of DDPM, whose file this may be.
fn variance(reader: &Reader<'_>) -> Result<(), SchedulerError> {
    match reader.given_text("variance_type")?.as_deref() {
        None | Some("learned") => Ok(()),
        Some(name) => match VarianceType::from_config_name(name) {
            Ok(_) => Ok(()),
            Err(e) => Err(reader.refused("variance_type", &e)),
        },
    }
}
