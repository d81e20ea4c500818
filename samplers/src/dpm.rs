//! DPM-Solver and DPM-Solver++ as multistep methods, for the probability-flow ODE and for the reverse SDE (FORMULAS 6.2; Lu
//! 2022a; Lu 2022b, Algorithm 2, section 5 and appendix A.4; the third order as in its authors' code), and with them DEIS in
//! log-rho form (Zhang & Chen 2023, section 3.3).
//!
//! A move is one step of an exponential integrator (see `exponential.rs`): for DPM-Solver++ on the ODE
//!
//! ```text
//! x' = sigma' / sigma x + alpha' integral_0^h e^(tau - h) x_0(lambda + tau) dtau
//! ```
//!
//! Under the integral the estimate is replaced by a polynomial in `tau` through the estimates `m_0, m_1, m_2` of this move and
//! of those before it, whose lengths were `r_0 h` and `r_1 h`. With `H` the step's length (`h` here), `E = 1 - e^-H`,
//! `phi_2 = 1 - E / H`, `phi_3 = phi_2 / H - 1/2`:
//!
//! ```text
//! order 1:  x' = of_x x + scale E m_0                                                     (DDIM with eta = 0 on the ODE)
//! order 2:  x' = of_x x + scale [E m_0 + g u],        u = (m_0 - m_1) / r_0,   g = E / 2 (midpoint) or phi_2 (heun)
//! order 3:  x' = of_x x + scale [E m_0 + phi_2 D_1 - c phi_3 D_2],
//!           D_1 = u + r_0 / (r_0 + r_1) (u - v),   D_2 = (u - v) / (r_0 + r_1),   v = (m_1 - m_2) / r_1
//! ```
//!
//! `D_2` is half the second derivative times `h^2`, and the integral of `tau^2` is `-2 phi_3 h^2`: so `c = 2` makes the step
//! exact for quadratics, and of third order. The authors' code, k-diffusion and diffusers all have `c = 1`, which keeps half of
//! that term: the error is then one of second order with a small constant. Both are here ([`DpmForm`]). DEIS integrates the same
//! polynomials for `eps` exactly: it is [`Integrand::Noise`] with [`DpmSlope::Heun`] and [`DpmForm::ThirdExact`].

use ndarray::ArrayView4;

use crate::exponential::{Step, half_log_snr};
use crate::history::History;
use crate::{Advance, Clip, Integrand, Lowering, Move, Path, SamplerError, Solver};

/// Which of the multistep formulas is used once there are enough estimates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DpmForm {
    /// One estimate.
    First,
    /// Two estimates (2M).
    #[default]
    Second,
    /// Three estimates as published (3M, `c = 1`): converges at second order in the limit.
    Third,
    /// Three estimates with the exact integral (`c = 2`): converges at third order.
    ThirdExact,
    /// Three estimates as diffusers has them: [`DpmForm::Third`] but for the SDE with estimates of `x_0`, where diffusers has
    /// `phi_3 + 1` for `phi_3`, a slip of sign that leaves a method of first order.
    ThirdDiffusers,
}

impl DpmForm {
    /// The form of as many estimates with the exact integral.
    fn exact(self) -> Self {
        if self.estimates() == 3 { Self::ThirdExact } else { self }
    }

    /// The form that diffusers has for it.
    pub(crate) fn of_diffusers(self) -> Self {
        if self == Self::Third { Self::ThirdDiffusers } else { self }
    }

    /// How many estimates the formula uses.
    pub(crate) fn estimates(self) -> usize {
        match self {
            Self::First => 1,
            Self::Second => 2,
            Self::Third | Self::ThirdExact | Self::ThirdDiffusers => 3,
        }
    }
}

/// What stands for the integral of the slope in the formula of two estimates (`solver_type`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DpmSlope {
    /// `E / 2`, which differs from the integral by a term of third order.
    #[default]
    Midpoint,
    /// The integral, `phi_2`.
    Heun,
}

/// Which multistep DPM-Solver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct DpmOptions {
    /// Number of estimates and their formula (`solver_order`).
    pub form: DpmForm,
    /// What is extrapolated: `x_0` in the `++` variants of `algorithm_type`, otherwise `eps`.
    pub integrand: Integrand,
    /// The ODE, or the SDE in the `sde-` variants of `algorithm_type`.
    pub path: Path,
    /// The formula of two estimates (`solver_type`).
    pub slope: DpmSlope,
    /// Where the order is lowered (`lower_order_final`, `euler_at_final`).
    pub lowering: Lowering,
}

impl DpmOptions {
    /// DPM-Solver++ of a form, with diffusers' defaults.
    pub const fn plus_plus(form: DpmForm) -> Self {
        Self {
            form,
            integrand: Integrand::Data,
            path: Path::Ode,
            slope: DpmSlope::Midpoint,
            lowering: Lowering::ShortRuns,
        }
    }

    /// SDE-DPM-Solver++ of a form, with diffusers' defaults.
    pub const fn sde(form: DpmForm) -> Self {
        Self { path: Path::Sde, ..Self::plus_plus(form) }
    }

    /// DPM-Solver of a form, with diffusers' defaults.
    pub const fn noise(form: DpmForm) -> Self {
        Self { integrand: Integrand::Noise, ..Self::plus_plus(form) }
    }

    /// The name on the command line; options that have no name of their own are left out of it.
    pub fn name(&self) -> &'static str {
        match (self.integrand, self.path, self.form) {
            (Integrand::Data, Path::Ode, DpmForm::First) => "dpm++1m",
            (Integrand::Data, Path::Ode, DpmForm::Second) => "dpm++2m",
            (Integrand::Data, Path::Ode, DpmForm::ThirdExact) => "dpm++3m-exact",
            (Integrand::Data, Path::Ode, _) => "dpm++3m",
            (Integrand::Data, Path::Sde, DpmForm::First) => "dpm++1m-sde",
            (Integrand::Data, Path::Sde, DpmForm::Second) => "dpm++2m-sde",
            (Integrand::Data, Path::Sde, DpmForm::ThirdExact) => "dpm++3m-sde-exact",
            (Integrand::Data, Path::Sde, _) => "dpm++3m-sde",
            (Integrand::Noise, Path::Ode, DpmForm::First) => "dpm1m",
            (Integrand::Noise, Path::Ode, DpmForm::Second) => "dpm2m",
            (Integrand::Noise, Path::Ode, DpmForm::ThirdExact) => "dpm3m-exact",
            (Integrand::Noise, Path::Ode, _) => "dpm3m",
            (Integrand::Noise, Path::Sde, DpmForm::First) => "dpm1m-sde",
            (Integrand::Noise, Path::Sde, DpmForm::Second) => "dpm2m-sde",
            (Integrand::Noise, Path::Sde, _) => "dpm3m-sde",
        }
    }
}

/// DPM-Solver and DPM-Solver++ multistep: one call a step, and one draw of noise on the SDE.
///
/// The first moves have fewer estimates and are of orders 1 and 2; the last ones are lowered as [`Lowering`] says. On the SDE a
/// move to `sigma = 0` adds no noise.
///
/// Verified by `dpm_steps_are_exact_for_polynomials`. Verified by `orders_on_a_mixture`.
/// Verified by `dpm_lowers_its_order_at_both_ends`. Verified by `first_sde_step_is_ancestral`.
/// Verified by `dpm_sde_step_by_hand`. Verified by `stochastic_samplers_draw_the_mixture`.
/// Verified by `weak_orders_on_a_gaussian`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DpmMultistep {
    options: DpmOptions,
    clip: Clip,
    history: History,
    is_deis: bool,
}

impl DpmMultistep {
    /// The solver with its options, which clips `x_0` as told.
    pub fn new(options: DpmOptions, clip: Clip) -> Self {
        Self { options, clip, history: History::default(), is_deis: false }
    }

    /// DEIS of as many estimates as a form has: estimates of `eps`, and exact integrals.
    pub fn deis(form: DpmForm, lowering: Lowering, clip: Clip) -> Self {
        let options = DpmOptions { slope: DpmSlope::Heun, lowering, ..DpmOptions::noise(form.exact()) };
        Self { is_deis: true, ..Self::new(options, clip) }
    }
}

impl Solver for DpmMultistep {
    fn name(&self) -> &'static str {
        if self.is_deis { "deis" } else { self.options.name() }
    }

    fn begin(&mut self) {
        self.history.clear();
    }

    fn step(&mut self, x: ArrayView4<'_, f64>, on: &mut Move<'_>) -> Result<Advance, SamplerError> {
        let DpmOptions { form, integrand, path, lowering, .. } = self.options;
        let no_signal = integrand == Integrand::Noise && on.from().alpha() == 0.0;
        if integrand == Integrand::Noise && path == Path::Sde && (no_signal || on.to().sigma() == 0.0) {
            return Err(SamplerError::NoiseSdeEnds { solver: self.name() });
        }
        let mut x0 = on.denoise(x, on.from())?;
        self.clip.apply(&mut x0);
        self.history.push(half_log_snr(on.from()), integrand.of(x, &x0, on.from())?, form.estimates());
        if no_signal {
            return Ok(Advance { x: Step::without_signal(x, &x0, on.to()), x0 });
        }
        let order = self.history.order(form.estimates(), lowering, on);
        let step = Step::new(integrand, path, on.from(), on.to());
        let weights = weights(&self.options, &step, &self.history.lambdas()[..order]);
        let mean = self.history.combine(step.of_x, x, &weights);
        Ok(Advance { x: on.add_noise(mean, step.noise)?, x0 })
    }
}

/// The factors of the estimates at `lambdas`, the newest first: one for each order.
fn weights(options: &DpmOptions, step: &Step, lambdas: &[f64]) -> Vec<f64> {
    let (e, length) = (step.e(), step.length);
    let phi_2 = 1.0 - e / length;
    let weights = match *lambdas {
        [now, before, earlier] => {
            let (r0, r1) = ((now - before) / step.h, (before - earlier) / step.h);
            let phi_3 = phi_2 / length - 0.5;
            let square = match (options.form, options.integrand, options.path) {
                (DpmForm::ThirdExact, ..) => 2.0 * phi_3,
                (DpmForm::ThirdDiffusers, Integrand::Data, Path::Sde) => phi_3 + 1.0,
                _ => phi_3,
            };
            // x' = E m_0 + of_u u + of_v v.
            let of_d2 = -square / (r0 + r1);
            let of_v = -phi_2 * (r0 / (r0 + r1)) - of_d2;
            let of_u = phi_2 - of_v;
            vec![e + of_u / r0, of_v / r1 - of_u / r0, -of_v / r1]
        }
        [now, before] => {
            let of_u = match options.slope {
                DpmSlope::Midpoint => 0.5 * e,
                DpmSlope::Heun => phi_2,
            };
            let by_r = of_u / ((now - before) / step.h);
            vec![e + by_r, -by_r]
        }
        _ => return vec![step.of_constant],
    };
    weights.into_iter().map(|w| step.scale * w).collect()
}

#[cfg(test)]
mod tests {
    use tweedie_schedule::NoiseLevel;

    use super::*;

    fn level(lambda: f64) -> NoiseLevel {
        NoiseLevel::from_log_snr(2.0 * lambda).unwrap()
    }

    /// `integral_0^length e^(s - length) p(s / length) ds` by Simpson's rule.
    fn integral(length: f64, p: impl Fn(f64) -> f64) -> f64 {
        let (n, f) = (2000, |share: f64| (length * (share - 1.0)).exp() * p(share));
        let point = |i: usize| f(i as f64 / f64::from(n)) * if i % 2 == 1 { 4.0 } else { 2.0 };
        let inner: f64 = (1..n as usize).map(point).sum();
        length / f64::from(3 * n) * (f(0.0) + inner + f(1.0))
    }

    /// Each form integrates the polynomials through its estimates: 1 estimate a constant, 3 a parabola. The midpoint form has
    /// `E / 2` for the slope instead of `phi_2`, and the published one half of the square.
    #[test]
    fn dpm_steps_are_exact_for_polynomials() {
        for (lambda, h, h0, h1) in [(-3.0, 0.7, 0.5, 0.9), (0.2, 0.3, 0.4, 0.1), (2.0, 1.5, 1.0, 1.2)] {
            let (from, to) = (level(lambda), level(lambda + h));
            let lambdas = [lambda, lambda - h0, lambda - h0 - h1];
            // The scale of the integral, its length, and the factor of the state, by the table of `exponential.rs`.
            let (ratio, growth) = (to.sigma() / from.sigma(), to.alpha() / from.alpha());
            for (integrand, path, of_x, scale, length) in [
                (Integrand::Data, Path::Ode, ratio, to.alpha(), h),
                (Integrand::Data, Path::Sde, ratio * (-h).exp(), to.alpha(), 2.0 * h),
                (Integrand::Noise, Path::Ode, growth, to.sigma(), -h),
                (Integrand::Noise, Path::Sde, growth, 2.0 * to.sigma(), -h),
            ] {
                let step = Step::new(integrand, path, from, to);
                assert!((step.of_x - of_x).abs() < 1e-14);
                let sum = |form, slope, count: usize, p: &dyn Fn(f64) -> f64| {
                    let options = DpmOptions { form, integrand, path, slope, ..DpmOptions::default() };
                    let weights = weights(&options, &step, &lambdas[..count]);
                    assert_eq!(weights.len(), count);
                    let terms = weights.iter().zip(lambdas).map(|(w, l)| w * p((l - lambda) / h));
                    terms.sum::<f64>() / scale
                };
                let exact = |p: &dyn Fn(f64) -> f64| integral(length, p);
                let (one, line, square) = (|_: f64| 1.0, |s: f64| s, |s: f64| s * s);
                let tiny = 1e-10 * h.exp();
                for form in [DpmForm::First, DpmForm::Second, DpmForm::Third, DpmForm::ThirdExact] {
                    for count in 1..=form.estimates() {
                        for slope in [DpmSlope::Midpoint, DpmSlope::Heun] {
                            assert!((sum(form, slope, count, &one) - exact(&one)).abs() < tiny);
                        }
                    }
                }
                let e = 1.0 - (-length).exp();
                for form in [DpmForm::Second, DpmForm::Third, DpmForm::ThirdExact] {
                    assert!((sum(form, DpmSlope::Midpoint, 2, &line) - 0.5 * e).abs() < tiny);
                    assert!((sum(form, DpmSlope::Heun, 2, &line) - exact(&line)).abs() < tiny);
                }
                for form in [DpmForm::Third, DpmForm::ThirdExact] {
                    assert!((sum(form, DpmSlope::Midpoint, 3, &line) - exact(&line)).abs() < tiny);
                }
                let found = |form| sum(form, DpmSlope::Midpoint, 3, &square);
                let (all, published) = (found(DpmForm::ThirdExact), found(DpmForm::Third));
                assert!((all - exact(&square)).abs() < tiny, "{all} instead of {}", exact(&square));
                assert!((published - 0.5 * all).abs() < tiny, "{published} is not half of {all}");
                // D_2 of the parabola is 1, and diffusers' slip adds it whole.
                let slip = if (integrand, path) == (Integrand::Data, Path::Sde) { -1.0 } else { 0.0 };
                assert!((found(DpmForm::ThirdDiffusers) - published - slip).abs() < tiny);
            }
        }
    }

    /// A move of no length changes nothing, and one from a level without signal is of first order.
    #[test]
    fn weights_at_the_ends() {
        let (quiet, loud) = (level(1.0), NoiseLevel::PURE_NOISE);
        let plus_plus = |form, from, to, lambdas: &[f64]| {
            let step = Step::new(Integrand::Data, Path::Ode, from, to);
            (step.of_x, weights(&DpmOptions::plus_plus(form), &step, lambdas))
        };
        assert_eq!(plus_plus(DpmForm::Second, quiet, NoiseLevel::CLEAN, &[1.0]), (0.0, vec![1.0]));
        let first = plus_plus(DpmForm::Second, loud, quiet, &[f64::NEG_INFINITY]);
        assert_eq!(first, (quiet.sigma(), vec![quiet.alpha()]));
        let (next, later) = (level(1.5), level(1.8));
        let (_, second) = plus_plus(DpmForm::Second, quiet, next, &[1.0, f64::NEG_INFINITY]);
        assert_eq!(second[1], 0.0);
        let (_, third) = plus_plus(DpmForm::ThirdExact, next, later, &[1.5, 1.0, f64::NEG_INFINITY]);
        assert_eq!(third[2], 0.0);
        assert!(third.iter().all(|w| w.is_finite()));
        // With estimates of eps the last step is x0 = (x - sigma eps) / alpha.
        let last = Step::new(Integrand::Noise, Path::Ode, quiet, NoiseLevel::CLEAN);
        assert_eq!((last.of_x, last.of_constant), (1.0 / quiet.alpha(), -(1.0 / quiet.alpha()) * quiet.sigma()));
    }
}
