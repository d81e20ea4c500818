//! UniPC, a multistep predictor and corrector (FORMULAS 6.2; Zhao 2023, Algorithms 5 to 8 and eqs. 5, 9).
//!
//! A move is one step of an exponential integrator (see `exponential.rs`) over the estimates `m_0, m_1, ...` of this move and of
//! those before it, at shares `r_k = (lambda_k - lambda_0) / h` of the move (`r_0 = 0`, the earlier ones negative). With `H` the
//! step's length, `E = 1 - e^-H` and `D_k = (m_k - m_0) / r_k`:
//!
//! ```text
//! predictor of order p:  x'  = of_x x + scale [E m_0 + B sum_{k=1..p-1} a_k D_k]
//! corrector of order p:  x'c = of_x x + scale [E m_0 + B (sum_{k=1..p-1} c_k D_k + c_p (m' - m_0))]
//! ```
//!
//! where `m'` is the estimate at `x'`, which the next move needs anyway. The factors solve `sum_k r_k^(i-1) a_k = b_i` for
//! `i = 1..p-1`, and `c_k` for `i = 1..p` with `r_p = 1`, where `B b_i = integral_0^H e^(s - H) (s / H)^i ds`, so that the step is exact
//! for polynomials of that degree. `B` is `H` (bh1) or `E` (bh2), which matters only where a factor is not solved for: it is 1/2 in
//! the predictor of order 2 and in the corrector of order 1, which leaves an error of the next order.

use ndarray::{Array4, ArrayView4};

use crate::exponential::{Step, half_log_snr};
use crate::history::History;
use crate::{Advance, Clip, Integrand, Lowering, Move, Path, SamplerError, Solver};

/// The function `B` of the step's length (`solver_type`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum UniPcB {
    /// `B = H` (bh1).
    Length,
    /// `B = 1 - e^-H` (bh2).
    #[default]
    Exponential,
}

/// A set of moves by their positions, from 0 to 127.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct MoveSet(u128);

impl MoveSet {
    /// No move.
    pub const EMPTY: Self = Self(0);

    /// The moves at `positions`.
    ///
    /// # Errors
    /// If a position is above 127.
    pub fn new(positions: impl IntoIterator<Item = usize>) -> Result<Self, SamplerError> {
        positions.into_iter().try_fold(Self::EMPTY, |Self(bits), at| {
            let bit = u32::try_from(at).ok().and_then(|at| 1_u128.checked_shl(at));
            let out_of_range = SamplerError::Parameter {
                operation: "unipc",
                what: "the position of an uncorrected move (disable_corrector)",
                expected: "from 0 to 127",
                found: at as f64,
            };
            bit.map(|bit| Self(bits | bit)).ok_or(out_of_range)
        })
    }

    /// Whether the move at a position is one of them.
    pub fn contains(self, position: usize) -> bool {
        position < 128 && self.0 >> position & 1 == 1
    }
}

/// Which UniPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UniPcOptions {
    /// The highest order, 1 to [`UniPcOptions::HIGHEST`] (`solver_order`).
    pub order: usize,
    /// What is extrapolated (`predict_x0`).
    pub integrand: Integrand,
    /// The function `B` (`solver_type`).
    pub b: UniPcB,
    /// Where the order is lowered (`lower_order_final`).
    pub lowering: Lowering,
    /// The moves whose results are not corrected (`disable_corrector`).
    pub uncorrected: MoveSet,
}

impl Default for UniPcOptions {
    fn default() -> Self {
        Self::new(2)
    }
}

impl UniPcOptions {
    /// The highest order that is accepted: beyond it the systems of equations lose their digits.
    pub const HIGHEST: usize = 6;

    /// UniPC of an order, with diffusers' defaults otherwise.
    pub const fn new(order: usize) -> Self {
        Self {
            order,
            integrand: Integrand::Data,
            b: UniPcB::Exponential,
            lowering: Lowering::EveryRun,
            uncorrected: MoveSet::EMPTY,
        }
    }
}

/// UniPC: one call a step.
///
/// The result of a move is corrected when the next one has made its estimate there, so the last result is not.
///
/// Verified by `unipc_steps_are_exact_for_polynomials`. Verified by `orders_on_a_mixture`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UniPc {
    options: UniPcOptions,
    clip: Clip,
    history: History,
    /// The state that the last move started from, its step and its order.
    last: Option<(Array4<f64>, Step, usize)>,
}

impl UniPc {
    /// The solver with its options, which clips `x_0` as told.
    ///
    /// # Errors
    /// If the order is 0 or above [`UniPcOptions::HIGHEST`].
    pub fn new(options: UniPcOptions, clip: Clip) -> Result<Self, SamplerError> {
        if !(1..=UniPcOptions::HIGHEST).contains(&options.order) {
            return Err(SamplerError::Parameter {
                operation: "unipc",
                what: "the order (solver_order)",
                expected: "from 1 to 6",
                found: options.order as f64,
            });
        }
        Ok(Self { options, clip, history: History::default(), last: None })
    }
}

impl Solver for UniPc {
    fn name(&self) -> &'static str {
        "unipc"
    }

    fn begin(&mut self) {
        self.history.clear();
        self.last = None;
    }

    fn step(&mut self, x: ArrayView4<'_, f64>, on: &mut Move<'_>) -> Result<Advance, SamplerError> {
        let UniPcOptions { order: highest, integrand, b, lowering, uncorrected } = self.options;
        let mut x0 = on.denoise(x, on.from())?;
        self.clip.apply(&mut x0);
        let lambda = half_log_snr(on.from());
        self.history.push(lambda, integrand.of(x, &x0, on.from())?, highest + 1);
        if integrand == Integrand::Noise && on.from().alpha() == 0.0 {
            return Ok(Advance { x: Step::without_signal(x, &x0, on.to()), x0 });
        }
        let corrected = match &self.last {
            Some((from, step, order)) if !uncorrected.contains(on.position() - 1) => {
                let lambdas = &self.history.lambdas()[..=*order];
                self.history.combine(step.of_x, from.view(), &corrector(b, step, lambdas))
            }
            _ => x.to_owned(),
        };
        // An estimate without signal is infinitely far away, and says nothing about a slope.
        let near = self.history.lambdas().iter().filter(|lambda| lambda.is_finite()).count().max(1);
        let order = self.history.order(highest, lowering, on).min(near);
        let step = Step::new(integrand, Path::Ode, on.from(), on.to());
        let weights = predictor(b, &step, &self.history.lambdas()[..order]);
        let next = self.history.combine(step.of_x, corrected.view(), &weights);
        self.last = Some((corrected, step, order));
        Ok(Advance { x: next, x0 })
    }
}

/// `B` and the right sides `b_1, b_2, ...` of the equations for the factors.
fn right_sides(b: UniPcB, step: &Step, count: usize) -> (f64, Vec<f64>) {
    let scale = match b {
        UniPcB::Length => step.length,
        UniPcB::Exponential => step.e(),
    };
    // By parts, the integral of e^(s - H) (s / H)^i is 1 - i / H times that of the power below.
    let mut sides = Vec::with_capacity(count);
    let mut integral = step.e();
    for i in 1..=count {
        integral = 1.0 - i as f64 * integral / step.length;
        sides.push(integral / scale);
    }
    (scale, sides)
}

/// The factors of the estimates at `lambdas`, the newest first: one for each order.
fn predictor(b: UniPcB, step: &Step, lambdas: &[f64]) -> Vec<f64> {
    let shares: Vec<f64> = lambdas[1..].iter().map(|l| (l - lambdas[0]) / step.h).collect();
    if shares.is_empty() {
        return vec![step.of_constant];
    }
    let (scale, sides) = right_sides(b, step, shares.len());
    let factors = if shares.len() == 1 { vec![0.5] } else { solve(&shares, &sides) };
    spread(step, scale, &shares, &factors)
}

/// The factors of the estimates for the corrector of a step, the newest first: `lambdas` begins with that at the step's end.
fn corrector(b: UniPcB, step: &Step, lambdas: &[f64]) -> Vec<f64> {
    // Of order 1 there is the end alone, and its factor is 1/2.
    let mut shares: Vec<f64> = lambdas[2..].iter().map(|l| (l - lambdas[1]) / step.h).collect();
    shares.push(1.0);
    let (scale, sides) = right_sides(b, step, shares.len());
    let factors = if shares.len() == 1 { vec![0.5] } else { solve(&shares, &sides) };
    let mut weights = spread(step, scale, &shares, &factors);
    // The last share is that of the newest estimate.
    let newest = weights.pop().unwrap_or_default();
    weights.insert(0, newest);
    weights
}

/// `scale [E m_0 + B sum_k factors[k] (m_k - m_0) / shares[k]]` as factors of `m_0, m_1, ...`.
fn spread(step: &Step, b: f64, shares: &[f64], factors: &[f64]) -> Vec<f64> {
    let others: Vec<f64> = shares.iter().zip(factors).map(|(r, a)| step.scale * b * a / r).collect();
    let mut weights = vec![step.of_constant - others.iter().sum::<f64>()];
    weights.extend(others);
    weights
}

/// The `a` with `sum_k shares[k]^(i-1) a[k] = sides[i]` for all `i`: a Vandermonde system, by Lagrange's polynomials.
///
/// Row `i` says what the rule makes of `s^(i-1)`, so `a[k]` is what `sides` make of the polynomial that is 1 at share `k` and 0
/// at the others.
fn solve(shares: &[f64], sides: &[f64]) -> Vec<f64> {
    let basis = |k: usize| {
        let mut polynomial = vec![1.0];
        for (_, share) in shares.iter().enumerate().filter(|(j, _)| *j != k) {
            // Times (s - share) / (shares[k] - share).
            let norm = (shares[k] - share).recip();
            let mut next = vec![0.0; polynomial.len() + 1];
            for (i, c) in polynomial.iter().enumerate() {
                next[i + 1] += c * norm;
                next[i] -= c * share * norm;
            }
            polynomial = next;
        }
        polynomial.iter().zip(sides).map(|(c, side)| c * side).sum()
    };
    (0..shares.len()).map(basis).collect()
}

#[cfg(test)]
mod tests {
    use tweedie_schedule::NoiseLevel;

    use super::*;

    fn level(lambda: f64) -> NoiseLevel {
        NoiseLevel::from_log_snr(2.0 * lambda).unwrap()
    }

    /// `integral_0^length e^(s - length) (s / length)^n ds`, by its series in the length.
    fn moment(length: f64, n: u32) -> f64 {
        // With u = s / length: length e^-length sum_j length^j / j! / (n + j + 1).
        let mut term = length * (-length).exp();
        let mut sum = 0.0;
        for j in 0..60 {
            sum += term / f64::from(n + j + 1);
            term *= length / f64::from(j + 1);
        }
        sum
    }

    /// With p estimates the predictor integrates polynomials of degree p - 1, and the corrector, which has the estimate at the
    /// end too, of degree p; but the predictor of order 2 and the corrector of order 1 have B / 2 in the place of an integral.
    #[test]
    fn unipc_steps_are_exact_for_polynomials() {
        let lambdas = [0.3, -0.2, -1.1, -1.4, -2.0];
        for h in [0.4, 1.3] {
            let (from, to) = (level(lambdas[0]), level(lambdas[0] + h));
            for (integrand, scale, length) in [(Integrand::Data, to.alpha(), h), (Integrand::Noise, to.sigma(), -h)] {
                let step = Step::new(integrand, Path::Ode, from, to);
                for b in [UniPcB::Length, UniPcB::Exponential] {
                    for order in 1..=5 {
                        let predictor = predictor(b, &step, &lambdas[..order]);
                        let ends: Vec<f64> =
                            std::iter::once(lambdas[0] + h).chain(lambdas[..order].iter().copied()).collect();
                        let corrector = corrector(b, &step, &ends);
                        for degree in 0..=order as u32 {
                            let exact = moment(length, degree);
                            let sum = |weights: &[f64], at: &[f64]| -> f64 {
                                let p = |l: &f64| ((l - lambdas[0]) / h).powi(degree as i32);
                                weights.iter().zip(at).map(|(w, l)| w * p(l) / scale).sum()
                            };
                            let half = match b {
                                UniPcB::Length => 0.5 * length,
                                UniPcB::Exponential => -0.5 * (-length).exp_m1(),
                            };
                            if degree < order as u32 {
                                let expected = if order == 2 && degree == 1 { half } else { exact };
                                let found = sum(&predictor, &lambdas);
                                assert!((found - expected).abs() < 1e-11, "predictor {order}, {degree}: {found}");
                            }
                            let expected = if order == 1 && degree == 1 { half } else { exact };
                            let found = sum(&corrector, &ends);
                            assert!((found - expected).abs() < 1e-11, "corrector {order}, {degree}: {found}");
                        }
                    }
                }
            }
        }
    }
}
