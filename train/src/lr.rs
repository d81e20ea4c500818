//! The learning rate as a function of the step: a linear warm-up, then a constant or a cosine decay.
//!
//! With peak `η`, warm-up `w`, total `S`, floor `f` and step `s = 1..S`:
//!
//! ```text
//! s ≤ w    η s / w
//! s > w    η                                        constant
//!          η (f + (1 - f) (1 + cos(π u)) / 2)       cosine (Loshchilov & Hutter 2017, eq. 5)
//!          u = (s - w) / (S - w), or the share of its time that the run has used
//! ```

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

/// What the learning rate does after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum LrDecay {
    /// Stays at its peak.
    #[default]
    Constant,
    /// Falls along half a cosine to a fraction of the peak at the end of the run, and stays there.
    Cosine,
}

/// The learning rate of every step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LrSchedule {
    /// The highest learning rate.
    pub peak: f64,
    /// Steps of the linear warm-up; 0: none.
    pub warmup: u64,
    /// What follows the warm-up.
    pub decay: LrDecay,
    /// The step at which a decay reaches its floor; unused by [`LrDecay::Constant`] and [`LrSchedule::at_share`].
    pub total: u64,
    /// The floor as a fraction of the peak, in `[0, 1]`; unused by [`LrDecay::Constant`].
    pub floor: f64,
}

impl LrSchedule {
    /// The learning rate of step `step`, counted from 1.
    pub fn at(&self, step: u64) -> f64 {
        let span = self.total.saturating_sub(self.warmup).max(1) as f64;
        self.at_share(step, step.saturating_sub(self.warmup) as f64 / span)
    }

    /// The learning rate of step `step`, counted from 1, of a run that has used the share `share >= 0` of its time: the
    /// warm-up counts steps, the decay goes by the share and is at its floor from 1 on.
    pub fn at_share(&self, step: u64, share: f64) -> f64 {
        if step < self.warmup {
            return self.peak * step as f64 / self.warmup as f64;
        }
        match self.decay {
            LrDecay::Constant => self.peak,
            LrDecay::Cosine => {
                let u = share.min(1.0);
                self.peak * (self.floor + (1.0 - self.floor) * 0.5 * (1.0 + (PI * u).cos()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(decay: LrDecay, warmup: u64) -> LrSchedule {
        LrSchedule { peak: 2e-3, warmup, decay, total: 110, floor: 0.1 }
    }

    #[test]
    fn the_warm_up_is_linear_and_ends_at_the_peak() {
        for decay in [LrDecay::Constant, LrDecay::Cosine] {
            let lr = schedule(decay, 10);
            for s in 1..=10 {
                assert!((lr.at(s) - 2e-4 * s as f64).abs() < 1e-18, "step {s}");
            }
        }
    }

    #[test]
    fn without_a_warm_up_the_first_step_is_almost_the_peak() {
        assert_eq!(schedule(LrDecay::Constant, 0).at(1), 2e-3);
        assert!(schedule(LrDecay::Cosine, 0).at(1) > 1.999e-3);
    }

    #[test]
    fn a_constant_rate_stays() {
        let lr = schedule(LrDecay::Constant, 10);
        assert!((11..1000).all(|s| lr.at(s) == 2e-3));
    }

    #[test]
    fn the_cosine_passes_its_known_points_and_never_rises() {
        let lr = schedule(LrDecay::Cosine, 10);
        // Half of the way: the mean of peak and floor. A quarter: (1 + cos 45°) / 2 of the way from the floor.
        assert!((lr.at(60) - 2e-3 * 0.55).abs() < 1e-15);
        assert!((lr.at(35) - 2e-3 * (0.1 + 0.9 * 0.853_553_390_593_273_8)).abs() < 1e-15);
        assert!((lr.at(110) - 2e-4).abs() < 1e-15);
        assert_eq!(lr.at(111), lr.at(110));
        assert_eq!(lr.at(u64::MAX), lr.at(110));
        assert!((10..200).all(|s| lr.at(s + 1) <= lr.at(s)));
    }

    #[test]
    fn by_time_the_warm_up_counts_steps_and_the_cosine_follows_the_share() {
        let lr = schedule(LrDecay::Cosine, 10);
        for s in 1..10 {
            assert_eq!(lr.at_share(s, 0.7), lr.at(s), "step {s} of the warm-up");
        }
        for s in [10, 60, u64::MAX] {
            assert_eq!(lr.at_share(s, 0.0), 2e-3);
            assert!((lr.at_share(s, 0.5) - 2e-3 * 0.55).abs() < 1e-15);
            assert!((lr.at_share(s, 0.25) - 2e-3 * (0.1 + 0.9 * 0.853_553_390_593_273_8)).abs() < 1e-15);
            for over in [1.0, 1.5, f64::INFINITY] {
                assert!((lr.at_share(s, over) - 2e-4).abs() < 1e-18, "a share of {over}");
            }
        }
        let shares: Vec<_> = (0..=1000).map(|i| lr.at_share(11, f64::from(i) / 1000.0)).collect();
        assert!(shares.windows(2).all(|pair| pair[1] < pair[0]), "it falls all the way");
        assert_eq!(schedule(LrDecay::Constant, 10).at_share(11, 0.9), 2e-3);
        // The same curve as by steps, where time goes by in equal steps.
        for s in 11..=110 {
            assert_eq!(lr.at_share(s, (s - 10) as f64 / 100.0), lr.at(s));
        }
    }

    #[test]
    fn a_total_within_the_warm_up_does_not_divide_by_zero() {
        let lr = LrSchedule { peak: 1.0, warmup: 10, decay: LrDecay::Cosine, total: 5, floor: 0.0 };
        assert!((1..50).all(|s| lr.at(s).is_finite()));
    }
}
