//! Random cases: schedules, levels, mixtures and states.

use anyhow::{Result, bail};
use ndarray::Array4;
use ndarray_rand::rand::{Rng, RngCore};
use ndarray_rand::rand_distr::StandardNormal;
use tweedie_denoiser::{Component, Condition, ConditionalDenoiser, MixtureOracle, rng_for};
use tweedie_schedule::{BetaSchedule, NoiseLevel, Schedule};

use super::reference::Parts;

/// The least log-SNR of a random schedule's last step: below it the signal is lost in f64, whatever the equation.
const LOWEST_LOG_SNR: f64 = -60.0;

/// The random numbers of one case.
pub struct Draw {
    random: Box<dyn RngCore>,
}

impl Draw {
    /// Those of case `case` of an identity.
    pub fn new(seed: u64, id: &str, case: u64) -> Self {
        Self { random: Box::new(rng_for(seed, id, case, 0)) }
    }

    /// Uniform in `[low, high)`.
    pub fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.random.random::<f64>()
    }

    /// Uniform in the logarithm.
    pub fn log_uniform(&mut self, low: f64, high: f64) -> f64 {
        self.uniform(low.ln(), high.ln()).exp()
    }

    /// A whole number from `low` to `high`, both included.
    pub fn whole(&mut self, low: usize, high: usize) -> usize {
        self.random.random_range(low..=high)
    }

    /// True with a probability.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.random.random::<f64>() < probability
    }

    /// One of several.
    pub fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.whole(0, of.len() - 1)].clone()
    }

    /// Standard normal.
    pub fn normal(&mut self) -> f64 {
        self.random.sample(StandardNormal)
    }

    /// Standard normal numbers.
    pub fn normals(&mut self, count: usize) -> Vec<f64> {
        (0..count).map(|_| self.normal()).collect()
    }

    /// A seed for a source of noise.
    pub fn seed(&mut self) -> u64 {
        self.random.next_u64()
    }

    /// A rule of any family but `custom`, with random ends.
    pub fn family(&mut self) -> BetaSchedule {
        let start = self.log_uniform(1e-5, 1e-2);
        let end = self.log_uniform(start, 0.5);
        match self.whole(0, 5) {
            0 => BetaSchedule::Linear { start, end },
            1 => BetaSchedule::ScaledLinear { start, end },
            2 => BetaSchedule::Sqrt { start: start * start, end: end * end },
            3 => BetaSchedule::Sigmoid { start, end },
            4 => BetaSchedule::Exponential { start, end },
            _ => BetaSchedule::Cosine { s: self.uniform(0.0, 0.02), max_beta: self.uniform(0.9, 0.9999) },
        }
    }

    /// A number of steps from `low` to `high`, small ones as likely as large ones, each end one time in eight.
    pub fn steps(&mut self, low: usize, high: usize) -> usize {
        match self.whole(0, 7) {
            0 => low,
            1 => high,
            _ => (self.log_uniform(low as f64, high as f64 + 1.0) as usize).clamp(low, high),
        }
    }

    /// A schedule of `low` to `high` steps: of a family, or a table without any order.
    ///
    /// # Errors
    /// If a hundred attempts make none, which says that the library refuses what it should take.
    pub fn schedule(&mut self, low: usize, high: usize) -> Result<Schedule> {
        if self.chance(0.8) {
            return Ok(self.accepted(low, high, |draw, _| draw.family())?.1);
        }
        let table = |draw: &mut Self, steps| (0..steps).map(|_| draw.log_uniform(1e-5, 0.6)).collect();
        Ok(self.accepted(low, high, |draw, steps| BetaSchedule::Custom(table(draw, steps)))?.1)
    }

    /// A schedule of 1 to 1000 steps of a family, and its rule.
    ///
    /// # Errors
    /// As [`Draw::schedule`].
    pub fn named_schedule(&mut self) -> Result<(BetaSchedule, Schedule)> {
        self.accepted(1, 1000, |draw, _| draw.family())
    }

    /// The first rule whose schedule keeps some signal to its end.
    fn accepted(
        &mut self,
        low: usize,
        high: usize,
        rule: impl Fn(&mut Self, usize) -> BetaSchedule,
    ) -> Result<(BetaSchedule, Schedule)> {
        for _ in 0..100 {
            let steps = self.steps(low, high);
            let rule = rule(self, steps);
            match Schedule::new(&rule, steps) {
                Ok(schedule) if schedule.log_snr(steps) > LOWEST_LOG_SNR => return Ok((rule, schedule)),
                _ => {}
            }
        }
        bail!("no schedule of {low} to {high} steps was accepted in 100 attempts")
    }

    /// Two steps `s < t` of a schedule, `s` from `low` on.
    pub fn two_steps(&mut self, schedule: &Schedule, low: usize) -> (usize, usize) {
        let t = self.whole(low + 1, schedule.steps());
        (if self.chance(0.5) { t - 1 } else { self.whole(low, t - 1) }, t)
    }

    /// A level of a random schedule, from its first step on.
    ///
    /// # Errors
    /// As [`Draw::schedule`].
    pub fn level(&mut self) -> Result<NoiseLevel> {
        let schedule = self.schedule(1, 1000)?;
        Ok(schedule.level(self.whole(1, schedule.steps())))
    }

    /// A symmetric positive definite matrix with standard deviations of the order of `scale`.
    pub fn covariance(&mut self, dims: usize, scale: f64) -> Vec<Vec<f64>> {
        let root: Vec<Vec<f64>> = (0..dims).map(|_| self.normals(dims)).collect();
        let entry = |i: usize, j: usize| {
            let product: f64 = (0..dims).map(|k| root[i][k] * root[j][k]).sum();
            scale * scale * (product / dims as f64 + if i == j { 0.1 } else { 0.0 })
        };
        (0..dims).map(|i| (0..dims).map(|j| entry(i, j)).collect()).collect()
    }

    /// A mixture of one to four components in one to four dimensions, with labels 0 and 1 (both are there from two components
    /// on), whose spreads are a number, a list or a full matrix.
    ///
    /// # Errors
    /// If the oracle refuses it.
    pub fn mixture(&mut self, components: (usize, usize)) -> Result<Mixture> {
        self.mixture_of(components, (0.1, 1.5))
    }

    /// As [`Draw::mixture`], with spreads of the order of `scales`.
    ///
    /// # Errors
    /// As [`Draw::mixture`].
    pub fn mixture_of(&mut self, components: (usize, usize), scales: (f64, f64)) -> Result<Mixture> {
        let shape = self.pick(&[[1, 1, 1], [1, 1, 2], [3, 1, 1], [1, 2, 2]]);
        let dims = shape.iter().product();
        let mut given = Vec::new();
        let mut parts = Parts::new(dims);
        for k in 0..self.whole(components.0, components.1) {
            let (weight, scale) = (self.uniform(0.2, 2.0), self.log_uniform(scales.0, scales.1));
            let mean: Vec<f64> = self.normals(dims).into_iter().map(|v| 1.5 * v).collect();
            let diagonal = |stds: &[f64]| {
                let entry = |i: usize, j: usize| if i == j { stds[i] * stds[i] } else { 0.0 };
                (0..dims).map(|i| (0..dims).map(|j| entry(i, j)).collect()).collect()
            };
            let (component, covariance): (Component, Vec<Vec<f64>>) = match self.whole(0, 2) {
                0 => (Component::new(weight, mean.clone(), scale, Some(k % 2)), diagonal(&vec![scale; dims])),
                1 => {
                    let stds: Vec<f64> = (0..dims).map(|_| scale * self.uniform(0.5, 1.5)).collect();
                    (Component::new(weight, mean.clone(), stds.clone(), Some(k % 2)), diagonal(&stds))
                }
                _ => {
                    let matrix = self.covariance(dims, scale);
                    (Component::new(weight, mean.clone(), matrix.clone(), Some(k % 2)), matrix)
                }
            };
            given.push(component);
            parts.push(weight, mean, covariance, k % 2);
        }
        Ok(Mixture { oracle: MixtureOracle::new(shape, given)?, parts, shape })
    }
}

/// A mixture as an oracle of the library, and as the numbers that it was made of.
pub struct Mixture {
    /// The library's.
    pub oracle: MixtureOracle,
    /// The numbers.
    pub parts: Parts,
    /// `[C, H, W]`.
    pub shape: [usize; 3],
}

impl Mixture {
    /// One sample as a batch.
    pub fn batch(&self, x: &[f64]) -> Array4<f64> {
        let [c, h, w] = self.shape;
        let mut batch = Array4::zeros((1, c, h, w));
        batch.iter_mut().zip(x).for_each(|(to, from)| *to = *from);
        batch
    }

    /// The library's estimate of `x_0`, under a label if there is one.
    ///
    /// # Errors
    /// If the oracle refuses the level or the label.
    pub fn denoise(&self, x: &[f64], level: NoiseLevel, label: Option<usize>) -> Result<Vec<f64>> {
        Ok(flat(&self.oracle.denoise_with(self.batch(x).view(), level, &condition(label))?))
    }

    /// The library's score.
    ///
    /// # Errors
    /// As [`Mixture::denoise`].
    pub fn score(&self, x: &[f64], level: NoiseLevel, label: Option<usize>) -> Result<Vec<f64>> {
        Ok(flat(&self.oracle.score(self.batch(x).view(), level, &condition(label))?))
    }

    /// The library's `ln p_t(x)`.
    ///
    /// # Errors
    /// As [`Mixture::denoise`].
    pub fn log_density(&self, x: &[f64], level: NoiseLevel, label: Option<usize>) -> Result<f64> {
        Ok(self.oracle.log_density(self.batch(x).view(), level, &condition(label))?[0])
    }

    /// A label, or none.
    pub fn some_label(&self, draw: &mut Draw) -> Option<usize> {
        let classes = self.oracle.classes();
        draw.chance(0.5).then(|| draw.whole(0, classes - 1))
    }

    /// A state of the mixture at a level: a sample of the data with noise.
    pub fn state(&self, level: NoiseLevel, draw: &mut Draw) -> Vec<f64> {
        let x0 = self.data(draw);
        x0.into_iter().map(|x0| level.alpha() * x0 + level.sigma() * draw.normal()).collect()
    }

    /// A sample of the data.
    pub fn data(&self, draw: &mut Draw) -> Vec<f64> {
        self.parts.sample(draw)
    }
}

/// The condition of a single sample.
pub fn condition(label: Option<usize>) -> Condition {
    Condition::labels(vec![label])
}

/// The numbers of a batch.
pub fn flat(batch: &Array4<f64>) -> Vec<f64> {
    batch.iter().copied().collect()
}
