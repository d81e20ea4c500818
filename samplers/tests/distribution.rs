//! What the samplers draw, against exact draws of the oracle: a two-sample test with at most one false alarm in a million for
//! each sampler (the seeds are fixed), and wrong samplers that it must reject.

mod common;

use common::{From, Silence, draws, plane, run, uniform_grid, uniform_schedule};
use ndarray::Array4;
use tweedie_denoiser::{DenoiserError, Noise, Purpose, SeededNoise};
use tweedie_eval::two_sample;
use tweedie_samplers::{Clip, Ddim, Ddpm, DpmForm, DpmMultistep, DpmOptions, EulerAncestral, Path, Solver};
use tweedie_schedule::Variance;

/// Points of each of the two samples.
const COUNT: usize = 4000;
/// The rate of false alarms of one comparison.
const ALARM: f64 = 1e-6;

/// The step noise of a seed, times a factor.
struct Scaled(u64, f64);

impl Noise for Scaled {
    fn fill(&self, purpose: Purpose, sample: usize, out: &mut [f64]) -> Result<(), DenoiserError> {
        SeededNoise::new(self.0).fill(purpose, sample, out)?;
        out.iter_mut().for_each(|z| *z *= self.1);
        Ok(())
    }
}

/// The p-value of what a solver draws in `moves` moves, from exact draws of the mixture at the highest noise down to a low one.
fn p_value(solver: &mut dyn Solver, moves: usize, steps: impl Noise) -> f64 {
    let (oracle, schedule) = (plane(), uniform_schedule(0.05, 80.0, 97));
    let noise = From { start: draws(&oracle, schedule.level(97), COUNT, 1), steps };
    let found = run(&oracle, &uniform_grid(&schedule, moves), &schedule, solver, &noise, [COUNT, 2, 1, 1]);
    let exact: Array4<f64> = draws(&oracle, schedule.level(1), COUNT, 2);
    two_sample(found.view(), exact.view(), 16, 5).unwrap().p_value
}

/// The SDE with estimates of `eps`.
fn noise_sde(form: DpmForm) -> DpmOptions {
    DpmOptions { path: Path::Sde, ..DpmOptions::noise(form) }
}

fn ddpm(variance: Variance) -> Ddpm {
    Ddpm { variance, clip: Clip::None }
}

/// Ancestral sampling with each variance that is right in the limit; the bias of 48 moves is far below what 4000 points show.
#[test]
fn ancestral_samplers_draw_the_mixture() {
    for (seed, variance) in
        [(10, Variance::FixedSmall), (11, Variance::FixedLarge), (12, Variance::Interpolated { fraction: 0.5 })]
    {
        let p = p_value(&mut ddpm(variance), 48, Scaled(seed, 1.0));
        assert!(p > ALARM, "ddpm, {variance:?}: p = {p:e}");
    }
}

/// DDIM with noise, Euler-ancestral, the SDE forms of DPM-Solver and DPM-Solver++; and a deterministic one, whose map carries one law into the
/// other.
#[test]
fn stochastic_samplers_draw_the_mixture() {
    let solvers: [(Box<dyn Solver>, usize); 7] = [
        (Box::new(Ddim { eta: 1.0, ..Ddim::default() }), 48),
        (Box::new(Ddim { eta: 0.5, ..Ddim::default() }), 48),
        (Box::new(EulerAncestral::default()), 48),
        (Box::new(DpmMultistep::new(DpmOptions::sde(DpmForm::Second), Clip::None)), 24),
        (Box::new(DpmMultistep::new(DpmOptions::sde(DpmForm::Third), Clip::None)), 24),
        (Box::new(DpmMultistep::new(noise_sde(DpmForm::First), Clip::None)), 48),
        (Box::new(DpmMultistep::new(noise_sde(DpmForm::Second), Clip::None)), 48),
    ];
    for (seed, (mut solver, moves)) in (20..).zip(solvers) {
        let p = p_value(&mut *solver, moves, Scaled(seed, 1.0));
        assert!(p > ALARM, "{}: p = {p:e}", solver.name());
    }
    let p = p_value(&mut DpmMultistep::default(), 24, Silence);
    assert!(p > ALARM, "dpm++2m: p = {p:e}");
}

/// The power of the test: twice the noise, none of it, half as much again, and the unit variance are rejected.
#[test]
fn wrong_samplers_are_rejected() {
    let small = || ddpm(Variance::FixedSmall);
    for (name, p) in [
        ("twice the noise", p_value(&mut small(), 24, Scaled(77, 2.0))),
        ("no noise", p_value(&mut small(), 24, Scaled(77, 0.0))),
        ("unit variance", p_value(&mut ddpm(Variance::Unit), 24, Scaled(77, 1.0))),
        (
            "twice the noise of the SDE",
            p_value(&mut DpmMultistep::new(DpmOptions::sde(DpmForm::Second), Clip::None), 24, Scaled(77, 2.0)),
        ),
    ] {
        assert!(p < ALARM, "{name}: p = {p:e}");
    }
}
