//! The log-density under the probability-flow ODE (FORMULAS 4.1; Song et al. 2021, section 4.3 and eq. 39).
//!
//! With `u = ln(sigma / alpha)`, the flow of the variance-preserving process is
//!
//! $$ \frac{dx}{du} = \alpha (\alpha x - D(x, u)), \quad
//! \log p_\mathrm{min}(x_\mathrm{min}) = \log p_\mathrm{max}(x_\mathrm{max}) + \int \nabla \cdot \frac{dx}{du} du $$
//!
//! ```text
//! dx/du = alpha (alpha x - D(x, u)),       D the estimate of x_0
//! ln p_min(x_min) = ln p_max(x_max) + integral of div(dx/du) du,    div = alpha (alpha d - tr dD/dx)
//! ```
//!
//! from the lowest noise level up to the highest, where `p_max` is taken to be `N(0, I)`. The state stays bounded, and on
//! standard normal data the right-hand side is 0. The trace is exact, from d directions, or an estimate of Hutchinson's
//! (1990; Grathwohl 2019): `E[v^T J v] = tr J` for `v` of independent signs. Both take central differences
//! `J v = (D(x + h v) - D(x - h v)) / (2 h)`, so any denoiser will do. The integration is the classical Runge-Kutta method of
//! order four with equal steps in `u`.
//!
//! What is returned is the density at `sigma_min` of `y = x / alpha`, that is of the data with Gaussian noise of
//! `sigma_min` added, at the given data. That `p_max` is no standard normal costs at most `L_T` on average
//! ([`crate::vlb::prior_kl`]), which is reported beside it.

use std::f64::consts::LN_2;

use ndarray::{Array4, ArrayView4, Axis, Slice, Zip, concatenate};
use ndarray_rand::rand::Rng;
use tweedie_denoiser::{Condition, ConditionalDenoiser, Conditioned, rng_for};
use tweedie_schedule::NoiseLevel;

use crate::vlb::{denoised, prior_kl};
use crate::{Estimate, EvalError};
use tweedie_schedule::Bins;
use tweedie_schedule::gaussian::log_normal;

/// Separate the random numbers of this module from every other of the same seed.
const PROBES: &str = "eval/probes";
const DEQUANTISATION: &str = "eval/dequantisation";

/// How the divergence is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trace {
    /// From as many directions as a sample has numbers.
    Exact,
    /// From random signs, the same ones all along a path (Hutchinson).
    Hutchinson {
        /// Probes for each sample, 1 or more.
        probes: usize,
        /// Their seed; they are keyed by the number of the sample.
        seed: u64,
    },
}

/// How the equation is integrated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ode {
    /// `sigma / alpha` where the data is put in.
    pub sigma_min: f64,
    /// `sigma / alpha` where the distribution is taken to be normal.
    pub sigma_max: f64,
    /// Steps in `ln(sigma / alpha)`; each takes four evaluations.
    pub steps: usize,
    /// The divergence.
    pub trace: Trace,
    /// `h / sigma`: the differences' reach relative to the noise. The error falls with its square, and rounding grows with
    /// its inverse: 1e-4 suits denoisers in f64, 3e-3 those in f32.
    pub reach: f64,
}

/// The log-density of one sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OdeLikelihood {
    /// `ln p`, in nats.
    pub log_density: f64,
    /// The standard error of `ln p` from the probes; `None` for an exact trace or a single probe.
    pub standard_error: Option<f64>,
    /// `L_T` at `sigma_max`, in nats: on average the error of the normal prior is no larger.
    pub prior_kl: f64,
}

impl Ode {
    /// How many times the model sees each sample, which has `dims` numbers.
    pub fn calls(&self, dims: usize) -> usize {
        let directions = match self.trace {
            Trace::Exact => dims,
            Trace::Hutchinson { probes, .. } => probes,
        };
        4 * self.steps * (1 + 2 * directions)
    }

    fn check(&self) -> Result<(), EvalError> {
        let wrong = |what, expected: &str, found: String, remedy| {
            let operation = "probability-flow ODE";
            Err(EvalError::Parameter { operation, what, expected: expected.to_owned(), found, remedy })
        };
        if !(self.sigma_min > 0.0 && self.sigma_min < self.sigma_max && self.sigma_max.is_finite()) {
            let found = format!("{} to {}", self.sigma_min, self.sigma_max);
            return wrong(
                "the noise levels",
                "above 0, ascending and finite",
                found,
                "take those of a schedule, or 1e-4 and 1e7",
            );
        }
        if self.steps == 0 {
            return wrong("the number of steps", "1 or more", "0".to_owned(), "50 are enough for images");
        }
        if !(self.reach > 0.0 && self.reach.is_finite()) {
            let found = self.reach.to_string();
            return wrong("the reach of the differences", "above 0 and finite", found, "1e-4 suits models in f64");
        }
        match self.trace {
            Trace::Hutchinson { probes: 0, .. } => {
                wrong("the number of probes", "1 or more", "0".to_owned(), "or take the exact trace")
            }
            _ => Ok(()),
        }
    }

    /// `ln p(x_0)` of each sample of `x0` `[N, C, H, W]` under its entry of `condition` (Song 2021, eq. 39). `first` is the
    /// number of the first sample; `tick` is told how many samples every call had.
    ///
    /// # Errors
    /// If the options are out of range, the model refuses a level or the condition, or a result is not finite.
    ///
    /// Verified by `ode_agrees_with_the_mixture`.
    /// Verified by `ode_converges_at_fourth_order`.
    /// Verified by `hutchinson_is_unbiased`.
    pub fn log_density(
        &self,
        model: &dyn ConditionalDenoiser,
        x0: ArrayView4<'_, f64>,
        condition: &Condition,
        first: usize,
        tick: &mut dyn FnMut(usize),
    ) -> Result<Vec<OdeLikelihood>, EvalError> {
        self.check()?;
        let (n, dims) = (x0.dim().0, x0.len() / x0.dim().0.max(1));
        let flow = Flow {
            model: Conditioned::new(model, condition.clone()),
            pairs: Conditioned::new(model, condition.concat(condition)),
            directions: self.directions(x0, first),
            exact: self.trace == Trace::Exact,
            reach: self.reach,
            dims: dims as f64,
        };
        let (low, high) = (self.sigma_min.ln(), self.sigma_max.ln());
        let (start, end) = (level(low)?, level(high)?);
        let mut state = State { x: x0.mapv(|v| start.alpha() * v), logs: vec![vec![0.0; flow.columns()]; n] };
        let du = (high - low) / self.steps as f64;
        for k in 0..self.steps {
            let u = low + k as f64 * du;
            // The last step ends where the range does, to the last digit.
            let end = if k + 1 == self.steps { high } else { u + du };
            let k1 = flow.rate(&state, u, tick)?;
            let k2 = flow.rate(&state.moved(&k1, 0.5 * du), u + 0.5 * du, tick)?;
            let k3 = flow.rate(&state.moved(&k2, 0.5 * du), u + 0.5 * du, tick)?;
            let k4 = flow.rate(&state.moved(&k3, du), end, tick)?;
            for (rate, weight) in [(&k1, 1.0), (&k2, 2.0), (&k3, 2.0), (&k4, 1.0)] {
                state = state.moved(rate, weight * du / 6.0);
            }
        }
        let mut results = Vec::with_capacity(n);
        for (i, (logs, x)) in state.logs.iter().zip(state.x.axis_iter(Axis(0))).enumerate() {
            let integral = Estimate::of(logs);
            let prior = log_normal(x.iter().map(|v| v * v).sum(), 1.0, dims);
            let log_density = prior + integral.mean + dims as f64 * start.alpha().ln();
            if !log_density.is_finite() {
                let (operation, place) = ("probability-flow ODE", format!("sigma = {}", self.sigma_max));
                return Err(EvalError::NotFinite { operation, sample: first + i, place, value: log_density });
            }
            let squares = x0.index_axis(Axis(0), i).iter().map(|v| v * v).sum();
            let prior_kl = prior_kl(end, squares, dims);
            results.push(OdeLikelihood { log_density, standard_error: integral.standard_error, prior_kl });
        }
        Ok(results)
    }

    /// The directions in which derivatives are taken, each of the shape of `x0`.
    fn directions(&self, x0: ArrayView4<'_, f64>, first: usize) -> Vec<Array4<f64>> {
        let dims = x0.len() / x0.dim().0.max(1);
        match self.trace {
            Trace::Exact => (0..dims)
                .map(|d| {
                    let mut direction = Array4::zeros(x0.raw_dim());
                    for mut sample in direction.axis_iter_mut(Axis(0)) {
                        sample.iter_mut().nth(d).into_iter().for_each(|v| *v = 1.0);
                    }
                    direction
                })
                .collect(),
            Trace::Hutchinson { probes, seed } => (0..probes)
                .map(|p| {
                    let mut direction = Array4::zeros(x0.raw_dim());
                    for (i, mut sample) in direction.axis_iter_mut(Axis(0)).enumerate() {
                        let mut random = rng_for(seed, PROBES, (first + i) as u64, p as u64);
                        sample.mapv_inplace(|_| if random.random::<bool>() { 1.0 } else { -1.0 });
                    }
                    direction
                })
                .collect(),
        }
    }
}

/// `x` and the integrals of the divergence: for each sample one per probe, or one.
struct State {
    x: Array4<f64>,
    logs: Vec<Vec<f64>>,
}

impl State {
    /// `self + by * rate`.
    fn moved(&self, rate: &Self, by: f64) -> Self {
        let add = |(a, b): (&Vec<f64>, &Vec<f64>)| a.iter().zip(b).map(|(a, b)| a + by * b).collect();
        Self {
            x: Zip::from(&self.x).and(&rate.x).map_collect(|&x, &r| x + by * r),
            logs: self.logs.iter().zip(&rate.logs).map(add).collect(),
        }
    }
}

/// The right-hand side.
struct Flow<M> {
    model: Conditioned<M>,
    /// The same model for a batch of two points for each sample.
    pairs: Conditioned<M>,
    directions: Vec<Array4<f64>>,
    exact: bool,
    reach: f64,
    dims: f64,
}

impl Flow<&dyn ConditionalDenoiser> {
    /// Integrals for each sample.
    fn columns(&self) -> usize {
        if self.exact { 1 } else { self.directions.len() }
    }

    fn rate(&self, state: &State, u: f64, tick: &mut dyn FnMut(usize)) -> Result<State, EvalError> {
        let (level, x) = (level(u)?, &state.x);
        let (alpha, n) = (level.alpha(), x.dim().0);
        let estimate = denoised(&self.model, x, level)?;
        tick(n);
        let rate = Zip::from(x).and(&estimate).map_collect(|&x, &d| alpha * (alpha * x - d));
        let h = self.reach * level.sigma();
        let mut traces = vec![vec![0.0; self.columns()]; n];
        for (p, v) in self.directions.iter().enumerate() {
            let points = concatenate![Axis(0), x + &(v * h), x - &(v * h)];
            let both = denoised(&self.pairs, &points, level)?;
            tick(2 * n);
            let (above, below) =
                (both.slice_axis(Axis(0), Slice::from(..n)), both.slice_axis(Axis(0), Slice::from(n..)));
            for (i, traces) in traces.iter_mut().enumerate() {
                let [v, above, below] = [v.view(), above.view(), below.view()].map(|a| a.index_axis_move(Axis(0), i));
                let product: f64 = v.iter().zip(above.iter().zip(&below)).map(|(v, (a, b))| v * (a - b)).sum();
                traces[if self.exact { 0 } else { p }] += product / (2.0 * h);
            }
        }
        let divergence = |traces: Vec<f64>| traces.into_iter().map(|j| alpha * (alpha * self.dims - j)).collect();
        Ok(State { x: rate, logs: traces.into_iter().map(divergence).collect() })
    }
}

/// The level with `ln(sigma / alpha) = u`.
fn level(u: f64) -> Result<NoiseLevel, EvalError> {
    Ok(NoiseLevel::from_edm_sigma(u.exp())?)
}

/// Uniform dequantisation: `x + w (r - 1/2)` with `r ~ U[0, 1)` for each number and `w` the width of a bin (Theis et al. 2016,
/// section 3.1). Sample `i` takes the random numbers of sample `first + i`.
///
/// The mean of `-ln p` of such data is an upper bound on that of the probability of the pixels, `-ln P`, plus `d ln w`.
///
/// Verified by `dequantised_pixels_fill_their_bins`.
pub fn dequantise(x0: ArrayView4<'_, f64>, bins: &Bins, seed: u64, first: usize) -> Array4<f64> {
    let mut noisy = x0.to_owned();
    for (i, mut sample) in noisy.axis_iter_mut(Axis(0)).enumerate() {
        let mut random = rng_for(seed, DEQUANTISATION, (first + i) as u64, 0);
        sample.mapv_inplace(|v| v + bins.width() * (random.random::<f64>() - 0.5));
    }
    noisy
}

/// Bits per dimension of dequantised pixels: `-(ln p + d ln w) / (d ln 2)`, since a bin of width `w` in each of `d`
/// dimensions has about the probability `p w^d` (Theis et al. 2016, section 3.1).
///
/// Verified by `dequantised_bits_of_a_uniform_density`.
pub fn dequantised_bits_per_dim(log_density: f64, dims: usize, width: f64) -> f64 {
    -(log_density / dims as f64 + width.ln()) / LN_2
}
