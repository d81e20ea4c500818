use tweedie_schedule::{NoiseLevel, Posterior, Schedule, Variance};

use crate::{Decoder, EvalError};

/// The variances `sigma_q^2(t)` of the reverse steps `p(x_{t-1} | x_t) = N(mu, sigma_q^2(t) I)` (FORMULAS 2.3).
///
/// Verified by `rules_from_the_second_step_on_are_those_of_the_posterior`.
/// Verified by `the_first_step_follows_the_literature`.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum ReverseVariance {
    /// One rule for every step, see [`Schedule::reverse_variance`]; [`Variance::LearnedRange`] takes the variances that the
    /// model states.
    Rule(Variance),
    /// `sigma_q^2(t)` for `t = 1..=T`, each positive: what a rule cannot say, such as [`exact_gaussian_variance`].
    Table(Vec<f64>),
}

impl Default for ReverseVariance {
    /// The small variance.
    fn default() -> Self {
        Self::Rule(Variance::FixedSmall)
    }
}

impl ReverseVariance {
    /// The variances for `t = 1..=T`; entry `i` is step `i + 1`.
    ///
    /// # Errors
    /// If a table has not T positive entries, or a rule refuses its own parameters.
    pub(crate) fn table(&self, schedule: &Schedule, decoder: &Decoder) -> Result<Vec<f64>, EvalError> {
        let steps = schedule.steps();
        match self {
            Self::Rule(rule) => {
                let bins = matches!(decoder, Decoder::Bins(_));
                (1..=steps).map(|t| Ok(schedule.reverse_variance(t, *rule, bins)?)).collect()
            }
            Self::Table(table) => {
                let wrong = |what, expected: String, found: String| {
                    let remedy = "give one variance for each step of the schedule";
                    Err(EvalError::Parameter { operation: "reverse variance", what, expected, found, remedy })
                };
                if table.len() != steps {
                    return wrong("the number of entries of the table", steps.to_string(), table.len().to_string());
                }
                if let Some(value) = table.iter().find(|v| !(**v > 0.0 && v.is_finite())) {
                    return wrong("every entry of the table", "finite and above 0".to_owned(), value.to_string());
                }
                Ok(table.clone())
            }
        }
    }
}

/// The variance of `q(x_s | x_t)` for data of variance `v` around its mean in every direction, at levels `s < t`:
/// `b~ + c_0^2 Var(x_0 | x_t)`, with `c_0` the factor of `x_0` in the posterior's mean and
/// `Var(x_0 | x_t) = v sigma_t^2 / (alpha_t^2 v + sigma_t^2)`.
///
/// With it and the exact denoiser the reverse process is the forward process reversed (Ho 2020, section 3.2, has the cases
/// `v = 1`, which is `b`, and `v = 0`, which is `b~`). `level` is that of `x_t`.
///
/// FORMULAS 2.3. Verified by `exact_variance_between_its_limits`.
/// Verified by `exact_variance_closes_the_bound`.
pub fn exact_gaussian_variance(posterior: &Posterior, level: NoiseLevel, data_variance: f64) -> f64 {
    let (signal, noise) = (level.abar(), level.sigma() * level.sigma());
    let of_x0 = data_variance * noise / (signal * data_variance + noise);
    posterior.variance() + posterior.coef_x0() * posterior.coef_x0() * of_x0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tweedie_data::Range;
    use tweedie_schedule::BetaSchedule;

    use super::*;
    use crate::byte_bins;

    fn schedule(steps: usize) -> Schedule {
        Schedule::new(&BetaSchedule::Linear { start: 0.01, end: 0.3 }, steps).unwrap()
    }

    fn table(rule: Variance, steps: usize, decoder: Decoder) -> Vec<f64> {
        ReverseVariance::Rule(rule).table(&schedule(steps), &decoder).unwrap()
    }

    proptest! {
        #[test]
        fn exact_variance_between_its_limits(t in 1..=20_usize, v in 0.01..4.0_f64) {
            let schedule = schedule(20);
            let (posterior, level) = (schedule.posterior(t), schedule.level(t));
            let exact = |v| exact_gaussian_variance(&posterior, level, v);
            prop_assert!((exact(1.0) - posterior.beta()).abs() < 1e-14);
            prop_assert_eq!(exact(0.0), posterior.variance());
            // Bayes on q(x_s) and q(x_t | x_s): 1 / (1 / Var(x_s) + a / b).
            let s = schedule.level(t - 1);
            let prior = s.abar() * v + s.sigma() * s.sigma();
            let expected = 1.0 / (1.0 / prior + (1.0 - posterior.beta()) / posterior.beta());
            prop_assert!((exact(v) - expected).abs() < 1e-13, "{} instead of {expected}", exact(v));
        }
    }

    #[test]
    fn rules_from_the_second_step_on_are_those_of_the_posterior() {
        for rule in
            [Variance::FixedSmall, Variance::FixedLarge, Variance::Unit, Variance::Interpolated { fraction: 0.3 }]
        {
            let found = table(rule, 20, Decoder::Density);
            assert_eq!(found.len(), 20);
            for t in 2..=20 {
                assert_eq!(found[t - 1], schedule(20).posterior(t).reverse_variance(rule).unwrap());
            }
        }
    }

    #[test]
    fn the_first_step_follows_the_literature() {
        let schedule = schedule(20);
        let bins = Decoder::Bins(byte_bins(Range::MinusOneOne));
        // b~_2 = b_2 (1 - abar_1) / (1 - abar_2).
        let small = schedule.beta(2) * schedule.beta(1) / (1.0 - schedule.abar(2));
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-15, "{a} is not {b}");
        for decoder in [Decoder::Density, bins] {
            close(table(Variance::FixedSmall, 20, decoder)[0], small);
            close(table(Variance::Unit, 20, decoder)[0], 1.0);
            let fraction = 0.3;
            let between = (fraction * schedule.beta(1).ln() + (1.0 - fraction) * small.ln()).exp();
            close(table(Variance::Interpolated { fraction }, 20, decoder)[0], between);
        }
        close(table(Variance::FixedLarge, 20, bins)[0], small);
        close(table(Variance::FixedLarge, 20, Decoder::Density)[0], schedule.beta(1));
        // A single step has no b~_2.
        for rule in [Variance::FixedSmall, Variance::FixedLarge] {
            close(table(rule, 1, bins)[0], 0.01);
        }
        close(table(Variance::Unit, 1, bins)[0], 1.0);
    }

    #[test]
    fn tables_are_checked() {
        let check = |table: Vec<f64>| ReverseVariance::Table(table).table(&schedule(3), &Decoder::Density);
        assert_eq!(check(vec![0.1, 0.2, 0.3]).unwrap(), [0.1, 0.2, 0.3]);
        for wrong in [
            vec![0.1, 0.2],
            vec![0.1, 0.2, 0.3, 0.4],
            vec![0.1, 0.0, 0.3],
            vec![0.1, -1.0, 0.3],
            vec![f64::NAN, 1.0, 1.0],
            vec![f64::INFINITY, 1.0, 1.0],
        ] {
            assert!(check(wrong).is_err());
        }
        let rule = ReverseVariance::Rule(Variance::Interpolated { fraction: 1.5 });
        assert!(rule.table(&schedule(3), &Decoder::Density).is_err());
    }
}
