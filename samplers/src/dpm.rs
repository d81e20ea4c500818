//! DPM-Solver++ as a multistep method (FORMULAS 6.2; Lu 2022b, Algorithm 2; the third order as in its authors' code).
//!
//! With `lambda = ln(alpha / sigma)` and `h = lambda' - lambda`, the probability-flow ODE has the exact solution (eq. 8)
//!
//! ```text
//! x' = sigma' / sigma x + alpha' integral_0^h e^(tau - h) x_0(lambda + tau) dtau
//! ```
//!
//! Under the integral `x_0` is replaced by a polynomial in `tau` through the estimates `m_0, m_1, m_2` of this move and of those
//! before it, whose lengths were `r_0 h` and `r_1 h`. With `E = 1 - e^-h`, `phi_2 = 1 - E / h`, `phi_3 = phi_2 / h - 1/2`:
//!
//! ```text
//! order 1:  x' = sigma' / sigma x + alpha' E m_0                                                     (DDIM with eta = 0)
//! order 2:  x' = sigma' / sigma x + alpha' E [m_0 + u / 2],              u = (m_0 - m_1) / r_0
//! order 3:  x' = sigma' / sigma x + alpha' [E m_0 + phi_2 D_1 - c phi_3 D_2],
//!           D_1 = u + r_0 / (r_0 + r_1) (u - v),   D_2 = (u - v) / (r_0 + r_1),   v = (m_1 - m_2) / r_1
//! ```
//!
//! `D_2` is half the second derivative times `h^2`, and the integral of `tau^2` is `-2 phi_3 h^2`: so `c = 2` makes the step
//! exact for quadratics, and of third order. The authors' code, k-diffusion and diffusers all have `c = 1`, which keeps half of
//! that term: the error is then one of second order with a small constant. Both are here ([`DpmForm`]).

use ndarray::{Array4, ArrayView4};
use tweedie_schedule::NoiseLevel;

use crate::history::History;
use crate::{Advance, Clip, Move, SamplerError, Solver};

/// Which of the multistep formulas is used once there are enough estimates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DpmForm {
    /// Two estimates (2M, the midpoint form).
    #[default]
    Second,
    /// Three estimates as published (3M, `c = 1`): agrees with diffusers, and converges at second order in the limit.
    Third,
    /// Three estimates with the exact integral (`c = 2`): converges at third order.
    ThirdExact,
}

impl DpmForm {
    /// How many estimates the formula uses.
    pub(crate) fn estimates(self) -> usize {
        match self {
            Self::Second => 2,
            Self::Third | Self::ThirdExact => 3,
        }
    }
}

/// DPM-Solver++ multistep: one call a step.
///
/// The first moves have fewer estimates and are of orders 1 and 2; a move to `sigma = 0` is of order 1, and so are, in runs of
/// fewer than 15 moves, the last and (order 2) the last but one, as in diffusers.
///
/// Verified by `dpm_steps_are_exact_for_polynomials`. Verified by `orders_on_a_mixture`.
/// Verified by `dpm_lowers_its_order_at_both_ends`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DpmPlusPlus {
    form: DpmForm,
    clip: Clip,
    history: History,
}

impl DpmPlusPlus {
    /// The solver of a form, which clips `x_0` as told.
    pub fn new(form: DpmForm, clip: Clip) -> Self {
        Self { form, clip, history: History::default() }
    }
}

impl Solver for DpmPlusPlus {
    fn name(&self) -> &'static str {
        match self.form {
            DpmForm::Second => "dpm++2m",
            DpmForm::Third => "dpm++3m",
            DpmForm::ThirdExact => "dpm++3m-exact",
        }
    }

    fn begin(&mut self) {
        self.history.clear();
    }

    fn step(&mut self, x: ArrayView4<'_, f64>, on: &mut Move<'_>) -> Result<Advance, SamplerError> {
        let mut x0 = on.denoise(x, on.from())?;
        self.clip.apply(&mut x0);
        self.history.push(half_log_snr(on.from()), x0.clone(), self.form.estimates());
        let order = self.history.order(self.form.estimates(), on);
        let weights = weights(self.form, on.from(), on.to(), &self.history.lambdas()[..order]);
        Ok(Advance { x: weights.combine(x, &self.history), x0 })
    }
}

/// `lambda = ln(alpha / sigma)`.
pub(crate) fn half_log_snr(level: NoiseLevel) -> f64 {
    0.5 * level.log_snr()
}

/// The factors of a step `x' = of_x x + sum_i of_x0[i] m_i`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Weights {
    pub(crate) of_x: f64,
    pub(crate) of_x0: Vec<f64>,
}

impl Weights {
    /// The next state.
    pub(crate) fn combine(&self, x: ArrayView4<'_, f64>, history: &History) -> Array4<f64> {
        let mut next = &x * self.of_x;
        for (factor, estimate) in self.of_x0.iter().zip(history.estimates()) {
            next.scaled_add(*factor, estimate);
        }
        next
    }
}

/// The factors of the step from estimates at `lambdas`, the newest first: one for each order.
fn weights(form: DpmForm, from: NoiseLevel, to: NoiseLevel, lambdas: &[f64]) -> Weights {
    let h = half_log_snr(to) - half_log_snr(from);
    let (of_x, scale) = (to.sigma() / from.sigma(), to.alpha());
    let e = -(-h).exp_m1();
    let of_x0 = match *lambdas {
        [now, before, earlier] => {
            let (r0, r1) = ((now - before) / h, (before - earlier) / h);
            let (phi_2, phi_3) = (1.0 - e / h, (1.0 - e / h) / h - 0.5);
            let c = if form == DpmForm::Third { 1.0 } else { 2.0 };
            // x' = E m_0 + of_u u + of_v v.
            let of_d2 = -c * phi_3 / (r0 + r1);
            let of_v = -phi_2 * (r0 / (r0 + r1)) - of_d2;
            let of_u = phi_2 - of_v;
            vec![e + of_u / r0, of_v / r1 - of_u / r0, -of_v / r1]
        }
        [now, before] => midpoint(e, (now - before) / h),
        _ => vec![e],
    };
    Weights { of_x, of_x0: of_x0.into_iter().map(|w| scale * w).collect() }
}

/// The factors of `m_0` and `m_1` in `E [m_0 + (m_0 - m_1) / (2 r)]`.
pub(crate) fn midpoint(e: f64, r: f64) -> Vec<f64> {
    let half = 0.5 * e / r;
    vec![e + half, -half]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(lambda: f64) -> NoiseLevel {
        NoiseLevel::from_log_snr(2.0 * lambda).unwrap()
    }

    /// `alpha' integral_0^h e^(tau - h) p(tau) dtau` by Simpson's rule.
    fn integral(h: f64, p: impl Fn(f64) -> f64) -> f64 {
        let (n, f) = (2000, |tau: f64| (tau - h).exp() * p(tau));
        let point = |i: usize| f(h * i as f64 / f64::from(n)) * if i % 2 == 1 { 4.0 } else { 2.0 };
        let inner: f64 = (1..n as usize).map(point).sum();
        h / f64::from(3 * n) * (f(0.0) + inner + f(h))
    }

    /// Each form integrates the polynomials through its estimates: 1 estimate a constant, 3 a parabola. The midpoint form has
    /// `E / 2` for the slope instead of `phi_2`, and the published one half of the square.
    #[test]
    fn dpm_steps_are_exact_for_polynomials() {
        for (lambda, h, h0, h1) in [(-3.0, 0.7, 0.5, 0.9), (0.2, 0.3, 0.4, 0.1), (2.0, 1.5, 1.0, 1.2)] {
            let (from, to) = (level(lambda), level(lambda + h));
            let lambdas = [lambda, lambda - h0, lambda - h0 - h1];
            let sum = |form, count: usize, p: &dyn Fn(f64) -> f64| {
                let weights = weights(form, from, to, &lambdas[..count]);
                assert!((weights.of_x - to.sigma() / from.sigma()).abs() < 1e-15);
                assert_eq!(weights.of_x0.len(), count);
                let terms = weights.of_x0.iter().zip(lambdas).map(|(w, l)| w * p(l - lambda));
                terms.sum::<f64>() / to.alpha()
            };
            let exact = |p: &dyn Fn(f64) -> f64| integral(h, p);
            let (one, line, square) = (|_: f64| 1.0, |tau: f64| tau, |tau: f64| tau * tau);
            for form in [DpmForm::Second, DpmForm::Third, DpmForm::ThirdExact] {
                assert!((sum(form, 1, &one) - exact(&one)).abs() < 1e-12);
                assert!((sum(form, 2, &one) - exact(&one)).abs() < 1e-12);
                let e = 1.0 - (-h).exp();
                assert!((sum(form, 2, &line) - 0.5 * h * e).abs() < 1e-12);
                assert!((0.5 * h * e - exact(&line)).abs() < 0.1 * h.powi(3), "a term of third order");
            }
            for form in [DpmForm::Third, DpmForm::ThirdExact] {
                assert!((sum(form, 3, &one) - exact(&one)).abs() < 1e-12);
                assert!((sum(form, 3, &line) - exact(&line)).abs() < 1e-12);
            }
            let (found, published) = (sum(DpmForm::ThirdExact, 3, &square), sum(DpmForm::Third, 3, &square));
            assert!((found - exact(&square)).abs() < 1e-12, "{found} instead of {}", exact(&square));
            assert!((published - 0.5 * found).abs() < 1e-12, "{published} is not half of {found}");
        }
    }

    /// A move of no length changes nothing, and one from a level without signal is of first order.
    #[test]
    fn weights_at_the_ends() {
        let (quiet, loud) = (level(1.0), NoiseLevel::PURE_NOISE);
        let one = weights(DpmForm::Second, quiet, NoiseLevel::CLEAN, &[1.0]);
        assert_eq!((one.of_x, one.of_x0), (0.0, vec![1.0]));
        let first = weights(DpmForm::Second, loud, quiet, &[f64::NEG_INFINITY]);
        assert_eq!((first.of_x, first.of_x0), (quiet.sigma(), vec![quiet.alpha()]));
        let (next, later) = (level(1.5), level(1.8));
        let second = weights(DpmForm::Second, quiet, next, &[1.0, f64::NEG_INFINITY]);
        assert_eq!(second.of_x0[1], 0.0);
        let third = weights(DpmForm::ThirdExact, next, later, &[1.5, 1.0, f64::NEG_INFINITY]);
        assert_eq!(third.of_x0[2], 0.0);
        assert!(third.of_x0.iter().all(|w| w.is_finite()));
    }
}
