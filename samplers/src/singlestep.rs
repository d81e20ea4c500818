//! DPM-Solver and DPM-Solver++ as singlestep methods (FORMULAS 6.2; Lu 2022a, Algorithms 1 and 2 and appendix D; Lu 2022b,
//! Algorithm 1; the orders and factors of its authors' code).
//!
//! Moves go in groups of 2 or 3, and every move of a group starts anew from the group's first state, by one step of an
//! exponential integrator (see `exponential.rs`) over the whole way so far: the first of order 1, the second of order 2, the third
//! of order 3. With estimates `m_0` at the group's start and `m_1, m_2` at the shares `r_1, r_2` of that way, `u_k = (m_k - m_0) / r_k`:
//!
//! ```text
//! order 1:  x' = of_x x + scale E m_0
//! order 2:  x' = of_x x + scale [E m_0 + g u_1],                   g = E / 2 (midpoint) or phi_2 (heun)
//! order 3:  x' = of_x x + scale [E m_0 + phi_2 u_2]                                       (midpoint)
//!           x' = of_x x + scale [E m_0 + phi_2 D_1 - phi_3 D_2],                          (heun)
//!           D_1 = (r_2 u_1 - r_1 u_2) / (r_2 - r_1),   D_2 = 2 (u_2 - u_1) / (r_2 - r_1)
//! ```
//!
//! `D_2` is the second derivative times the square of the way, so that heun's form of order 3 is exact for parabolas.

use ndarray::{Array4, ArrayView4};
use tweedie_schedule::NoiseLevel;

use crate::exponential::{Step, half_log_snr};
use crate::history::History;
use crate::{Advance, Clip, Compat, DpmSlope, Integrand, Move, Path, SamplerError, Solver};

/// The number of moves in a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GroupSize {
    /// Every move by itself.
    One,
    /// Two.
    #[default]
    Two,
    /// Three.
    Three,
}

impl GroupSize {
    fn count(self) -> usize {
        match self {
            Self::One => 1,
            Self::Two => 2,
            Self::Three => 3,
        }
    }
}

/// What the last move of a run is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LastMove {
    /// That of its place in its group.
    #[default]
    AsPlaced,
    /// Of order 1 where it would end a group (`lower_order_final`).
    First,
}

/// Which singlestep DPM-Solver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SinglestepOptions {
    /// The moves of a group, and with that the order (`solver_order`).
    pub group: GroupSize,
    /// What is extrapolated (`algorithm_type`).
    pub integrand: Integrand,
    /// The ODE or the SDE (`algorithm_type`); the SDE with estimates of `x_0` alone.
    pub path: Path,
    /// The formulas of orders 2 and 3 (`solver_type`).
    pub slope: DpmSlope,
    /// The last move (`lower_order_final`).
    pub last: LastMove,
}

impl SinglestepOptions {
    /// DPM-Solver++ in groups of a size, with diffusers' defaults.
    pub const fn plus_plus(group: GroupSize) -> Self {
        Self { group, integrand: Integrand::Data, path: Path::Ode, slope: DpmSlope::Midpoint, last: LastMove::AsPlaced }
    }

    /// The name on the command line; options that have no name of their own are left out of it.
    pub fn name(&self) -> &'static str {
        match (self.integrand, self.path, self.group) {
            (Integrand::Data, Path::Ode, GroupSize::One) => "dpm++1s",
            (Integrand::Data, Path::Ode, GroupSize::Two) => "dpm++2s",
            (Integrand::Data, Path::Ode, GroupSize::Three) => "dpm++3s",
            (Integrand::Data, Path::Sde, GroupSize::One) => "dpm++1s-sde",
            (Integrand::Data, Path::Sde, GroupSize::Two) => "dpm++2s-sde",
            (Integrand::Data, Path::Sde, GroupSize::Three) => "dpm++3s-sde",
            (Integrand::Noise, _, GroupSize::One) => "dpm1s",
            (Integrand::Noise, _, GroupSize::Two) => "dpm2s",
            (Integrand::Noise, _, GroupSize::Three) => "dpm3s",
        }
    }
}

/// DPM-Solver and DPM-Solver++ singlestep: one call a move, and one draw of noise on the SDE.
///
/// A move to `sigma = 0` is of order 1. Where the moves are no multiple of the group, the last group is shorter.
///
/// Verified by `singlestep_groups_are_exact_for_polynomials`. Verified by `singlestep_moves_by_hand`.
/// Verified by `orders_on_a_mixture`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DpmSinglestep {
    options: SinglestepOptions,
    clip: Clip,
    compat: Compat,
    /// The estimates of the present group.
    history: History,
    start: Option<(Array4<f64>, NoiseLevel)>,
}

impl DpmSinglestep {
    /// The solver with its options, which clips `x_0` as told. Diffusers' third order of the SDE has the slip of
    /// [`crate::DpmForm::ThirdDiffusers`].
    pub fn new(options: SinglestepOptions, clip: Clip, compat: Compat) -> Self {
        Self { options, clip, compat, history: History::default(), start: None }
    }

    /// The order of a move, which is its place in its group.
    fn order(&self, on: &Move<'_>) -> usize {
        let size = self.options.group.count();
        let shortened = on.is_last() && self.options.last == LastMove::First && on.total().is_multiple_of(size);
        if shortened || on.to().sigma() == 0.0 || on.to() == on.from() { 1 } else { on.position() % size + 1 }
    }

    /// The factors of the estimates at `lambdas`, the newest first.
    fn weights(&self, step: &Step, lambdas: &[f64]) -> Vec<f64> {
        let (e, length) = (step.e(), step.length);
        let phi_2 = 1.0 - e / length;
        // Factors of u_1 and u_2, the older first.
        let (of_u, shares) = match *lambdas {
            [newest, middle, first] => {
                let (r1, r2) = ((middle - first) / step.h, (newest - first) / step.h);
                let slip = self.compat == Compat::Diffusers && self.options.path == Path::Sde;
                let phi_3 = phi_2 / length - 0.5 + if slip { 1.0 } else { 0.0 };
                let of_u = match self.options.slope {
                    DpmSlope::Midpoint => [0.0, phi_2],
                    DpmSlope::Heun => {
                        let gap = r2 - r1;
                        [(phi_2 * r2 + 2.0 * phi_3) / gap, -(phi_2 * r1 + 2.0 * phi_3) / gap]
                    }
                };
                (of_u.to_vec(), vec![r1, r2])
            }
            [newest, first] => {
                let of_u = match self.options.slope {
                    DpmSlope::Midpoint => 0.5 * e,
                    DpmSlope::Heun => phi_2,
                };
                (vec![of_u], vec![(newest - first) / step.h])
            }
            _ => return vec![step.of_constant],
        };
        let mut weights: Vec<f64> = of_u.iter().zip(&shares).map(|(w, r)| step.scale * w / r).collect();
        let first = step.of_constant - weights.iter().sum::<f64>();
        weights.reverse();
        weights.push(first);
        weights
    }
}

impl Solver for DpmSinglestep {
    fn name(&self) -> &'static str {
        self.options.name()
    }

    fn begin(&mut self) {
        self.history.clear();
        self.start = None;
    }

    fn step(&mut self, x: ArrayView4<'_, f64>, on: &mut Move<'_>) -> Result<Advance, SamplerError> {
        let SinglestepOptions { integrand, path, group, .. } = self.options;
        let mut x0 = on.denoise(x, on.from())?;
        self.clip.apply(&mut x0);
        let order = self.order(on);
        let (state, from) = match &self.start {
            // A group that begins without signal says nothing about a slope, so another begins.
            Some((state, from)) if order > 1 && from.alpha() > 0.0 => (state.clone(), *from),
            _ => {
                self.history.clear();
                self.start = Some((x.to_owned(), on.from()));
                (x.to_owned(), on.from())
            }
        };
        self.history.push(half_log_snr(on.from()), integrand.of(x, &x0, on.from())?, group.count());
        if integrand == Integrand::Noise && from.alpha() == 0.0 {
            return Ok(Advance { x: Step::without_signal(x, &x0, on.to()), x0 });
        }
        let step = Step::new(integrand, path, from, on.to());
        let weights = self.weights(&step, &self.history.lambdas());
        let mean = self.history.combine(step.of_x, state.view(), &weights);
        Ok(Advance { x: on.add_noise(mean, step.noise)?, x0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Heun's forms integrate the polynomials through the estimates of a group; the midpoint form of order 3 has the slope
    /// right alone.
    #[test]
    fn singlestep_groups_are_exact_for_polynomials() {
        let level = |lambda: f64| NoiseLevel::from_log_snr(2.0 * lambda).unwrap();
        let lambdas = [0.9, 0.5, 0.2];
        let (from, to) = (level(0.2), level(1.3));
        for (integrand, path, scale) in [
            (Integrand::Data, Path::Ode, to.alpha()),
            (Integrand::Data, Path::Sde, to.alpha()),
            (Integrand::Noise, Path::Ode, to.sigma()),
        ] {
            let step = Step::new(integrand, path, from, to);
            let solver = |slope| {
                let options = SinglestepOptions { integrand, path, slope, ..SinglestepOptions::default() };
                DpmSinglestep::new(options, Clip::None, Compat::Published)
            };
            // integral_0^H e^(s - H) (s / H)^n ds, by parts.
            let mut exact = vec![step.e()];
            for n in 1..=2 {
                exact.push(1.0 - f64::from(n) * exact[n as usize - 1] / step.length);
            }
            for (slope, count, degrees) in
                [(DpmSlope::Midpoint, 3, 1), (DpmSlope::Heun, 2, 1), (DpmSlope::Heun, 3, 2), (DpmSlope::Midpoint, 2, 0)]
            {
                let weights = solver(slope).weights(&step, &lambdas[3 - count..]);
                for (degree, exact) in exact.iter().enumerate().take(degrees + 1) {
                    let p = |l: &f64| ((l - 0.2) / step.h).powi(degree as i32);
                    let found: f64 = weights.iter().zip(&lambdas[3 - count..]).map(|(w, l)| w * p(l) / scale).sum();
                    assert!((found - exact).abs() < 1e-12, "{integrand:?}, {path:?}, {slope:?}, {count}: {found}");
                }
            }
        }
    }
}
