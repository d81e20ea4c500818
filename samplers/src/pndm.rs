//! PNDM and PLMS (FORMULAS 6.2; Liu 2022, eqs. 11 to 13, Algorithm 2; PLMS as in latent diffusion's code).
//!
//! A move along a slope `e` is DDIM's, `x' = alpha' / alpha x + (sigma' - alpha' / alpha sigma) e` (eq. 11), and the slope is a mean
//! of estimates `e_0, e_1, ...` of `eps`, of this move and of those before it:
//!
//! ```text
//! order 1   e_0                                     order 3   (23 e_0 - 16 e_1 + 5 e_2) / 12
//! order 2   (3 e_0 - e_1) / 2                       order 4   (55 e_0 - 59 e_1 + 37 e_2 - 9 e_3) / 24
//! ```
//!
//! which are Adams and Bashforth's for moves of equal length. The first moves have no estimates behind them, so either the first
//! alone takes the mean of `e_0` and the estimate where that leads (PLMS), or the first three are of Runge and Kutta,
//! `(e_0 + 2 e_a + 2 e_b + e_c) / 6` with two estimates half way and one at the end, all by moves from the state at the start (PNDM).

use std::collections::VecDeque;

use ndarray::{Array4, ArrayView4, Zip};
use tweedie_schedule::{NoiseLevel, Prediction, prediction};

use crate::exponential::Step;
use crate::{Advance, Move, SamplerError, Solver};

/// How many estimates are kept.
const ESTIMATES: usize = 4;

/// How the first moves are made (`skip_prk_steps`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PndmStart {
    /// The first move with two estimates, the others with those there are (PLMS; `skip_prk_steps: true`).
    #[default]
    Multistep,
    /// The first three moves, or all but the last of fewer, by Runge and Kutta's method (`skip_prk_steps: false`).
    RungeKutta,
}

/// The levels beside those of its grid that the first moves of a run need.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PndmLevels {
    /// Half way in each move of Runge and Kutta's method: the level that the first slope leads to, and that at which the
    /// network is then asked. Diffusers rounds them apart where `T / K` is odd.
    pub middles: Vec<(NoiseLevel, NoiseLevel)>,
    /// In the first move of PLMS: the level that the first slope leads to, where the network is asked as if it were the move's
    /// end, and the level that the state is taken from along the mean. They are the ends of the move, but not in diffusers
    /// where its moves miss the steps of its list.
    pub first: Option<(NoiseLevel, NoiseLevel)>,
}

/// PNDM and PLMS: one call a move, but two in the first, or four in each of the first three.
///
/// Verified by `pndm_by_hand`. Verified by `orders_on_a_mixture`.
#[derive(Clone, Debug, PartialEq)]
pub struct Pndm {
    start: PndmStart,
    averaged: Prediction,
    levels: PndmLevels,
    estimates: VecDeque<Array4<f64>>,
}

impl Pndm {
    /// How many moves Runge and Kutta's method makes at the start.
    pub(crate) const RUNGE_KUTTA_MOVES: usize = 3;

    /// The solver, for which half way means half of the log-SNR.
    ///
    /// `averaged` is the form in which estimates of several moves are averaged, `eps` in the paper. Diffusers averages what the
    /// network predicts; an average of `v`, read at the start of the move, leaves a method of first order.
    pub fn new(start: PndmStart, averaged: Prediction) -> Self {
        Self { start, averaged, levels: PndmLevels::default(), estimates: VecDeque::new() }
    }

    /// The solver with levels of a table.
    pub fn with_levels(self, levels: PndmLevels) -> Self {
        Self { levels, ..self }
    }

    /// The levels half way in a move.
    fn middle(&self, on: &Move<'_>) -> Result<(NoiseLevel, NoiseLevel), SamplerError> {
        if let Some(&middle) = self.levels.middles.get(on.position()) {
            return Ok(middle);
        }
        let level = NoiseLevel::from_log_snr(0.5 * (on.from().log_snr() + on.to().log_snr()))?;
        Ok((level, level))
    }

    /// The estimate of `x_0` and the form that is averaged, of a state at a level.
    fn ask(
        &self,
        x: ArrayView4<'_, f64>,
        level: NoiseLevel,
        on: &Move<'_>,
    ) -> Result<(Array4<f64>, Array4<f64>), SamplerError> {
        let x0 = on.denoise(x, level)?;
        let to = prediction::convert(Prediction::X0, self.averaged, level, None)?;
        let averaged = Zip::from(x).and(&x0).map_collect(|&x, &x0| to.apply(x, x0));
        Ok((x0, averaged))
    }

    /// The state `x` at a level, taken to another along a slope.
    fn along(
        &self,
        x: ArrayView4<'_, f64>,
        slope: &Array4<f64>,
        from: NoiseLevel,
        to: NoiseLevel,
    ) -> Result<Array4<f64>, SamplerError> {
        let to_eps = prediction::convert(self.averaged, Prediction::Eps, from, None)?;
        let of_x = to.alpha() / from.alpha();
        let of_eps = to.sigma() - of_x * from.sigma();
        Ok(Zip::from(x).and(slope).map_collect(|&x, &o| of_x * x + of_eps * to_eps.apply(x, o)))
    }

    /// The mean of the estimates there are.
    fn mean(&self) -> Array4<f64> {
        let weights: &[f64] = match self.estimates.len() {
            0 | 1 => &[1.0],
            2 => &[1.5, -0.5],
            3 => &[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0],
            _ => &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
        };
        let mut terms = weights.iter().zip(&self.estimates).map(|(w, e)| e * *w);
        let first = terms.next().unwrap_or_default();
        terms.fold(first, |sum, term| sum + term)
    }
}

impl Solver for Pndm {
    fn name(&self) -> &'static str {
        match self.start {
            PndmStart::Multistep => "plms",
            PndmStart::RungeKutta => "pndm",
        }
    }

    fn begin(&mut self) {
        self.estimates.clear();
    }

    fn step(&mut self, x: ArrayView4<'_, f64>, on: &mut Move<'_>) -> Result<Advance, SamplerError> {
        let (x0, now) = self.ask(x, on.from(), on)?;
        self.estimates.push_front(now);
        self.estimates.truncate(ESTIMATES);
        let now = &self.estimates[0];
        let (from, to) = (on.from(), on.to());
        if from.alpha() == 0.0 {
            // The state is eps, and a slope says nothing about the data.
            return Ok(Advance { x: Step::without_signal(x, &x0, to), x0 });
        }
        let next = match self.start {
            PndmStart::RungeKutta if on.position() < Self::RUNGE_KUTTA_MOVES && !on.is_last() => {
                let (led, asked) = self.middle(on)?;
                let (_, a) = self.ask(self.along(x, now, from, led)?.view(), asked, on)?;
                let (_, b) = self.ask(self.along(x, &a, from, asked)?.view(), asked, on)?;
                let (_, c) = self.ask(self.along(x, &b, from, to)?.view(), to, on)?;
                self.along(x, &((now + &(a * 2.0) + &(b * 2.0) + &c) / 6.0), from, to)?
            }
            PndmStart::Multistep if on.position() == 0 && !on.is_last() => {
                let (led, start) = self.levels.first.unwrap_or((to, from));
                let (_, then) = self.ask(self.along(x, now, from, led)?.view(), to, on)?;
                self.along(x, &((now + &then) / 2.0), start, to)?
            }
            _ => self.along(x, &self.mean(), from, to)?,
        };
        Ok(Advance { x: next, x0 })
    }
}
