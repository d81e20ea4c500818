//! The table of noise levels of a schedule, and its continuous inverse (FORMULAS 1.1, 1.3, 1.4).

use crate::level::parameter;
use crate::{BetaSchedule, NoiseLevel, Posterior, ScheduleError, Variance, VarianceRange};

/// Two levels whose log-SNR differ by less than this are the same level, computed along another path.
const SAME_LEVEL: f64 = 1e-9;

/// Noise levels `abar_0 = 1 > abar_1 > ... > abar_T`, from `abar_t = prod_{i <= t} (1 - b_i)` (Ho 2020, section 2).
///
/// Tables are summed as `ln abar`, so `1 - abar` keeps its relative accuracy at small t.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    betas: Vec<f64>,
    levels: Vec<NoiseLevel>,
}

impl Schedule {
    /// The largest number of steps; a bound, so that a mistyped count is an error and not an allocation of terabytes.
    pub const MAX_STEPS: usize = 1_000_000;

    /// The schedule of a rule with `T = steps`.
    ///
    /// # Errors
    /// If `steps` is 0 or above [`Schedule::MAX_STEPS`], a parameter is out of range, or a beta leaves (0, 1).
    ///
    /// FORMULAS 1.3. Verified by `families_follow_their_definitions`. Verified by `tables_are_in_range`.
    pub fn new(betas: &BetaSchedule, steps: usize) -> Result<Self, ScheduleError> {
        check_steps(steps)?;
        Self::from_betas(betas.table(steps)?)
    }

    /// The schedule of a table `b_1..b_T`. The last of several betas may be 1: zero terminal SNR.
    ///
    /// # Errors
    /// If there is no beta or there are too many, one lies outside (0, 1), or two levels coincide in f64.
    ///
    /// FORMULAS 1.1. Verified by `tables_are_in_range`. Verified by `steps_compose_to_the_marginal`.
    pub fn from_betas(betas: Vec<f64>) -> Result<Self, ScheduleError> {
        let steps = betas.len();
        check_steps(steps)?;
        let mut levels = Vec::with_capacity(steps + 1);
        levels.push(NoiseLevel::CLEAN);
        let mut log_abar = 0.0;
        for (i, &beta) in betas.iter().enumerate() {
            let t = i + 1;
            let zero_snr = beta == 1.0 && t == steps && steps > 1;
            if !(beta > 0.0 && beta < 1.0 || zero_snr) {
                return Err(ScheduleError::Beta { t, steps, found: beta });
            }
            log_abar += (-beta).ln_1p();
            let level = NoiseLevel::from_log_abar(log_abar)?;
            // An alpha that underflows is as useless as two equal levels: only a beta of 1 may remove all signal.
            if !level.noisier_than(levels[i]) || (level.alpha() == 0.0 && !zero_snr) {
                return Err(ScheduleError::NotDecreasing { t });
            }
            levels.push(level);
        }
        Ok(Self { betas, levels })
    }

    /// The schedule shifted and scaled in `sqrt(abar)` such that `abar_T = 0` and `abar_1` stays (Lin 2023, Algorithm 1).
    ///
    /// # Errors
    /// If T is 1: there is no second level to keep.
    ///
    /// FORMULAS 1.3. Verified by `rescale_reaches_zero_snr`.
    pub fn rescaled_zero_terminal_snr(&self) -> Result<Self, ScheduleError> {
        let steps = self.steps();
        if steps < 2 {
            return Err(ScheduleError::Count {
                operation: "zero-terminal-SNR rescale",
                what: "the number of training steps",
                lowest: 2,
                highest: Self::MAX_STEPS,
                found: steps,
            });
        }
        let last = self.levels[steps].alpha();
        let mut betas = Vec::with_capacity(steps);
        betas.push(self.betas[0]);
        for t in 2..=steps {
            let (before, now) = (self.levels[t - 1].alpha(), self.levels[t].alpha());
            // The common factor of the rescale cancels in 1 - (s'_t / s'_{t-1})^2.
            let (p, n) = (before - last, now - last);
            betas.push((before - now) * (p + n) / (p * p));
        }
        Self::from_betas(betas)
    }

    /// The same schedule with `abar_T` as given: diffusers' Euler and DPM-Solver put `2^-24` in the place of the 0 of
    /// [`Schedule::rescaled_zero_terminal_snr`].
    ///
    /// Steps before T that have less signal than that (the last three of 1000 rescaled linear betas) are put between, evenly in
    /// the logarithm. Diffusers leaves them where they are, so that its noise falls from there to step T; a grid that visits
    /// none of them is the same.
    ///
    /// # Errors
    /// If `abar` is not in (0, 1).
    ///
    /// FORMULAS 1.3. Verified by `a_terminal_level_is_set`.
    pub fn with_terminal_abar(&self, abar: f64) -> Result<Self, ScheduleError> {
        if !(abar > 0.0 && abar < 1.0) {
            return Err(parameter("Schedule::with_terminal_abar", "abar_T", "in (0, 1)", abar));
        }
        let (steps, end) = (self.steps(), NoiseLevel::from_log_abar(abar.ln())?);
        let kept = self.levels[..steps].partition_point(|level| end.noisier_than(*level)) - 1;
        let from = 2.0 * self.levels[kept].alpha().ln();
        let mut changed = self.clone();
        for t in kept + 1..=steps {
            let fraction = (t - kept) as f64 / (steps - kept) as f64;
            let level = if t == steps { end } else { NoiseLevel::from_log_abar(from + fraction * (abar.ln() - from))? };
            changed.betas[t - 1] = level.beta_since(changed.levels[t - 1]);
            changed.levels[t] = level;
        }
        Ok(changed)
    }

    /// The number of steps T.
    pub fn steps(&self) -> usize {
        self.betas.len()
    }

    /// `b_1..b_T`; entry `i` is step `i + 1`.
    pub fn betas(&self) -> &[f64] {
        &self.betas
    }

    /// The levels of steps `0..=T`.
    pub fn levels(&self) -> &[NoiseLevel] {
        &self.levels
    }

    /// `b_t` for `t` in 1..=T.
    ///
    /// # Panics
    /// If `t` is outside 1..=T.
    pub fn beta(&self, t: usize) -> f64 {
        assert!(t >= 1, "beta is defined from step 1 on");
        self.betas[t - 1]
    }

    /// `a_t = 1 - b_t` for `t` in 1..=T (not to be confused with [`NoiseLevel::alpha`], which is `sqrt(abar_t)`).
    ///
    /// FORMULAS 1.1. Verified by `levels_carry_the_betas`.
    ///
    /// # Panics
    /// If `t` is outside 1..=T.
    pub fn alpha(&self, t: usize) -> f64 {
        1.0 - self.beta(t)
    }

    /// `abar_t = prod_{i <= t} a_i` for `t` in 0..=T.
    ///
    /// FORMULAS 1.1. Verified by `tables_agree_with_numpy`. Verified by `steps_compose_to_the_marginal`.
    ///
    /// # Panics
    /// If `t` is above T.
    pub fn abar(&self, t: usize) -> f64 {
        self.levels[t].abar()
    }

    /// The noise level of step `t` in 0..=T.
    ///
    /// # Panics
    /// If `t` is above T.
    pub fn level(&self, t: usize) -> NoiseLevel {
        self.levels[t]
    }

    /// `ln(abar_t / (1 - abar_t))` for `t` in 0..=T; infinite at `t = 0`.
    ///
    /// FORMULAS 1.4. Verified by `tables_are_in_range`.
    ///
    /// # Panics
    /// If `t` is above T.
    pub fn log_snr(&self, t: usize) -> f64 {
        self.levels[t].log_snr()
    }

    /// `q(x_{t-1} | x_t, x_0)` for `t` in 1..=T (Ho 2020, eqs. 6-7).
    ///
    /// FORMULAS 2.1. Verified by `consecutive_posterior_is_in_the_tables`.
    ///
    /// # Panics
    /// If `t` is outside 1..=T.
    pub fn posterior(&self, t: usize) -> Posterior {
        Posterior::consecutive(self.levels[t - 1], self.levels[t], self.beta(t))
    }

    /// The variance of the reverse step `t` in 1..=T for a rule, where `t = 1` follows the literature.
    ///
    /// At `t = 1`, where `b~_1 = 0` leaves no distribution, `b~_2` takes its place, as in the code of Ho (2020) and in the
    /// clipped log variance of Nichol & Dhariwal (2021). Both codes do so for the large variance, too, "to get a better
    /// decoder log likelihood"; so does this one for the bins of quantised data (`bins`), whereas a density keeps `b_1`,
    /// with which the large variance is exact for standard normal data at every step. Where `T = 1` there is no `b~_2`: the
    /// single step has the variance of its noise, unless told otherwise.
    ///
    /// # Errors
    /// As [`Posterior::reverse_variance`].
    ///
    /// # Panics
    /// If `t` is outside 1..=T.
    ///
    /// FORMULAS 2.3. Verified by `the_first_reverse_step_has_a_variance`.
    pub fn reverse_variance(&self, t: usize, rule: Variance, bins: bool) -> Result<f64, ScheduleError> {
        let of_posterior = self.posterior(t).reverse_variance(rule)?;
        if t > 1 {
            return Ok(of_posterior);
        }
        let range = self.variance_range(1);
        Ok(match rule {
            Variance::FixedSmall => range.log_small.exp(),
            Variance::FixedLarge if bins => range.log_small.exp(),
            Variance::Interpolated { fraction } => range.log_variance(fraction).exp(),
            _ => of_posterior,
        })
    }

    /// `ln b~_t` and `ln b_t` for `t` in 1..=T, with `b~_2` (or `b_1` where `T = 1`) in place of `b~_1 = 0`
    /// (Nichol & Dhariwal 2021, eq. 15).
    ///
    /// # Panics
    /// If `t` is outside 1..=T.
    ///
    /// FORMULAS 2.3. Verified by `a_learned_variance_lies_between_its_ends`.
    pub fn variance_range(&self, t: usize) -> VarianceRange {
        let range = self.posterior(t).variance_range();
        match t {
            1 if self.steps() == 1 => VarianceRange { log_small: range.log_large, ..range },
            1 => VarianceRange { log_small: self.posterior(2).variance_range().log_small, ..range },
            _ => range,
        }
    }

    /// The level at a fractional step in [0, T]: the inverse of [`Schedule::t_of_level`], the table at integers.
    ///
    /// # Errors
    /// If `t` lies outside [0, T].
    ///
    /// FORMULAS 1.4. Verified by `steps_invert`.
    pub fn level_at(&self, t: f64) -> Result<NoiseLevel, ScheduleError> {
        if !(t >= 0.0 && t <= self.steps() as f64) {
            return Err(parameter("Schedule::level_at", "the step", "in [0, T]", t));
        }
        let i = t.floor() as usize;
        let fraction = t - t.floor();
        if fraction == 0.0 {
            return Ok(self.levels[i]);
        }
        let coordinate = self.coordinate(i);
        let (from, to) = (coordinate.of(self.levels[i]), coordinate.of(self.levels[i + 1]));
        coordinate.level(from + (to - from) * fraction)
    }

    /// The fractional step of a level: exactly `t` for `level(t)`, and monotone in between (FORMULAS 1.4).
    ///
    /// Between two steps `t` is linear in the log-SNR, as in DPM-Solver (Lu 2022); next to `abar_0 = 1` it is linear in
    /// `sigma / alpha`, and next to an `abar_T = 0` in `alpha / sigma`, where the log-SNR is infinite.
    ///
    /// # Errors
    /// If the level is noisier than step T.
    ///
    /// Verified by `steps_invert`.
    pub fn t_of_level(&self, level: NoiseLevel) -> Result<f64, ScheduleError> {
        let not_noisier = self.levels.partition_point(|l| !l.noisier_than(level));
        let steps = self.steps();
        if not_noisier == 0 {
            return Ok(0.0);
        }
        let i = not_noisier - 1;
        if self.levels[i] == level {
            return Ok(i as f64);
        }
        if i == steps {
            if (level.log_snr() - self.log_snr(steps)).abs() < SAME_LEVEL {
                return Ok(steps as f64);
            }
            return Err(ScheduleError::LevelOutOfRange { sigma: level.sigma(), highest: self.levels[steps].sigma() });
        }
        let coordinate = self.coordinate(i);
        let (from, to) = (coordinate.of(self.levels[i]), coordinate.of(self.levels[i + 1]));
        Ok(i as f64 + ((coordinate.of(level) - from) / (to - from)).clamp(0.0, 1.0))
    }

    /// The level at a fractional step in [1, T] whose EDM sigma is linear between whole steps: the levels that diffusers'
    /// Euler and its kin visit (`np.interp` on the table of sigmas). At whole steps it is the table.
    ///
    /// # Errors
    /// If `t` lies outside [1, T].
    ///
    /// FORMULAS 1.4. Verified by `sigmas_are_interpolated`.
    pub fn level_of_linear_sigma(&self, t: f64) -> Result<NoiseLevel, ScheduleError> {
        if !(t >= 1.0 && t <= self.steps() as f64) {
            return Err(parameter("Schedule::level_of_linear_sigma", "the step", "in [1, T]", t));
        }
        let (i, fraction) = (t.floor() as usize, t - t.floor());
        if fraction == 0.0 {
            return Ok(self.levels[i]);
        }
        let (from, to) = (self.levels[i].edm_sigma(), self.levels[i + 1].edm_sigma());
        NoiseLevel::from_edm_sigma(from + (to - from) * fraction)
    }

    /// The step in [1, T] nearest to a level: that of [`Schedule::t_of_level`], and the ends of the table beyond them.
    ///
    /// FORMULAS 1.4. Verified by `sigmas_are_interpolated`.
    pub fn step_near(&self, level: NoiseLevel) -> f64 {
        self.t_of_level(level).map_or(self.steps() as f64, |t| t.max(1.0))
    }

    /// The coordinate in which the segment from step `i` to `i + 1` is linear.
    fn coordinate(&self, i: usize) -> Coordinate {
        if i == 0 {
            Coordinate::NoiseToSignal
        } else if self.levels[i + 1].alpha() == 0.0 {
            Coordinate::SignalToNoise
        } else {
            Coordinate::LogSnr
        }
    }
}

/// A monotone view of the noise level that is finite on a whole segment of the table.
#[derive(Clone, Copy)]
enum Coordinate {
    NoiseToSignal,
    SignalToNoise,
    LogSnr,
}

impl Coordinate {
    fn of(self, level: NoiseLevel) -> f64 {
        match self {
            Self::NoiseToSignal => level.edm_sigma(),
            Self::SignalToNoise => level.alpha() / level.sigma(),
            Self::LogSnr => level.log_snr(),
        }
    }

    fn level(self, value: f64) -> Result<NoiseLevel, ScheduleError> {
        match self {
            Self::NoiseToSignal => NoiseLevel::from_edm_sigma(value),
            Self::SignalToNoise => NoiseLevel::from_edm_sigma(value.recip()),
            Self::LogSnr => NoiseLevel::from_log_snr(value),
        }
    }
}

fn check_steps(steps: usize) -> Result<(), ScheduleError> {
    if (1..=Schedule::MAX_STEPS).contains(&steps) {
        return Ok(());
    }
    Err(ScheduleError::Count {
        operation: "schedule",
        what: "the number of training steps",
        lowest: 1,
        highest: Schedule::MAX_STEPS,
        found: steps,
    })
}
