//! FORMULAS 2 and 6.1: the posterior, the predictions and the DDIM step.

mod common;

use common::{any_level, any_schedule, close, two_levels};
use proptest::prelude::*;
use tweedie_schedule::ddim::ddim_coefs;
use tweedie_schedule::forward::{q_between, q_sample};
use tweedie_schedule::kl::normal_kl;
use tweedie_schedule::{
    BetaSchedule, NoiseLevel, Posterior, Preconditioning, Prediction, Schedule, ScheduleError, Variance, prediction,
};

const ALL: [Prediction; 5] = [Prediction::Eps, Prediction::X0, Prediction::V, Prediction::Score, Prediction::Mean];

/// `ln N(x; mean, variance)`.
fn log_normal(x: f64, mean: f64, variance: f64) -> f64 {
    -0.5 * ((x - mean).powi(2) / variance + (std::f64::consts::TAU * variance).ln())
}

proptest! {
    /// 2.1 is Bayes' rule: mean and variance of q(x_t | x_s) q(x_s | x_0), integrated over x_s by quadrature.
    #[test]
    fn posterior_is_bayes_rule((s, t) in two_levels(0.01), x0 in -2.0..2.0_f64, eps in -3.0..3.0_f64) {
        let xt = q_sample(t).apply(x0, eps);
        let (prior, likelihood) = (q_sample(s), q_between(s, t).unwrap());
        let joint = |xs: f64| log_normal(xs, prior.scale * x0, prior.variance)
            + log_normal(xt, likelihood.scale * xs, likelihood.variance);
        let posterior = Posterior::between(s, t).unwrap();
        // The trapezoid rule on a Gaussian converges beyond any power of the spacing.
        let (centre, std) = (posterior.mean(xt, x0), posterior.variance().sqrt());
        let nodes: Vec<f64> = (-200..=200).map(|i| centre + std * f64::from(i) * 0.06).collect();
        let highest = nodes.iter().map(|&x| joint(x)).fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = nodes.iter().map(|&x| (joint(x) - highest).exp()).collect();
        let total: f64 = weights.iter().sum();
        let moment = |f: &dyn Fn(f64) -> f64| nodes.iter().zip(&weights).map(|(&x, w)| w * f(x)).sum::<f64>() / total;
        let offset = moment(&|x| (x - centre) / std);
        prop_assert!(offset.abs() < 1e-6, "the mean is off by {offset} standard deviations");
        let spread = moment(&|x| ((x - centre) / std).powi(2));
        prop_assert!((spread - 1.0).abs() < 1e-6, "the variance is off by a factor {spread}");
    }

    /// Integrating q(x_s | x_t, x_0) over q(x_t | x_0) returns q(x_s | x_0).
    #[test]
    fn posterior_keeps_the_marginal((s, t) in two_levels(1e-6)) {
        let posterior = Posterior::between(s, t).unwrap();
        let (at_s, at_t) = (q_sample(s), q_sample(t));
        close(posterior.coef_x0() + posterior.coef_xt() * at_t.scale, at_s.scale, 1e-9, "mean")?;
        let variance = posterior.coef_xt().powi(2) * at_t.variance + posterior.variance();
        prop_assert!((variance / at_s.variance - 1.0).abs() < 1e-9, "variance {variance} instead of {}", at_s.variance);
    }

    /// The posterior of neighbours is that of their two levels, and Ho's formulas in terms of the tables.
    #[test]
    fn consecutive_posterior_is_in_the_tables(schedule in any_schedule()) {
        for t in 1..=schedule.steps() {
            let posterior = schedule.posterior(t);
            let between = Posterior::between(schedule.level(t - 1), schedule.level(t)).unwrap();
            close(posterior.coef_x0(), between.coef_x0(), 1e-8, "coef_x0")?;
            close(posterior.coef_xt(), between.coef_xt(), 1e-8, "coef_xt")?;
            let rest = |t: usize| schedule.level(t).sigma().powi(2);
            let (abar, before, beta) = (rest(t), schedule.abar(t - 1), schedule.beta(t));
            close(posterior.coef_x0(), before.sqrt() * beta / abar, 1e-11, "coef_x0")?;
            close(posterior.coef_xt(), schedule.alpha(t).sqrt() * rest(t - 1) / abar, 1e-11, "coef_xt")?;
            prop_assert!((posterior.variance() - beta * rest(t - 1) / abar).abs() <= 1e-11 * posterior.variance());
            prop_assert!(posterior.variance() <= posterior.beta());
        }
        // The last reverse step returns x_0 itself.
        let last = schedule.posterior(1);
        prop_assert_eq!((last.coef_xt(), last.variance()), (0.0, 0.0));
        close(last.coef_x0(), 1.0, 1e-15, "coef_x0")?;
    }

    /// 2.2 is 2.1, for every x_0, eps and t.
    #[test]
    fn mean_from_eps_is_mean_from_x0((s, t) in two_levels(1e-4), x0 in -2.0..2.0_f64, eps in -3.0..3.0_f64) {
        let posterior = Posterior::between(s, t).unwrap();
        let xt = q_sample(t).apply(x0, eps);
        close(posterior.mean_from_eps().unwrap().apply(xt, eps), posterior.mean(xt, x0), 1e-9, "mean")?;
    }

    /// 2.3: the interpolated variance runs from b~ to b, linearly in its logarithm.
    #[test]
    fn reverse_variances((s, t) in two_levels(1e-3), v in 0.0..1.0_f64) {
        let p = Posterior::between(s, t).unwrap();
        let of = |choice| p.reverse_variance(choice).unwrap();
        prop_assert_eq!(of(Variance::FixedSmall), p.variance());
        prop_assert_eq!(of(Variance::FixedLarge), q_between(s, t).unwrap().variance);
        prop_assert_eq!(of(Variance::Unit), 1.0);
        prop_assert_eq!(of(Variance::Interpolated { fraction: 0.0 }), p.variance());
        prop_assert_eq!(of(Variance::Interpolated { fraction: 1.0 }), p.beta());
        let log = v * p.beta().ln() + (1.0 - v) * p.variance().ln();
        close(of(Variance::Interpolated { fraction: v }).ln(), log, 1e-12, "ln variance")?;
        let outside = p.reverse_variance(Variance::Interpolated { fraction: 1.0 + v.max(1e-3) });
        prop_assert!(outside.is_err());
    }

    /// 2.4: any prediction converts to any other, computed from the definitions with known x_0 and eps.
    #[test]
    fn predictions_convert((s, t) in two_levels(0.1), x0 in -2.0..2.0_f64, eps in -3.0..3.0_f64) {
        let (alpha, sigma) = (t.alpha(), t.sigma());
        let xt = q_sample(t).apply(x0, eps);
        let posterior = Posterior::between(s, t).unwrap();
        let value = |p| match p {
            Prediction::Eps => eps,
            Prediction::X0 => x0,
            Prediction::V => alpha * eps - sigma * x0,
            Prediction::Score => -eps / sigma,
            _ => posterior.mean(xt, x0),
        };
        for from in ALL {
            let target = from.target(t, Some(&posterior)).unwrap();
            close(target.apply(x0, eps), value(from), 1e-12, from.name())?;
            for to in ALL {
                let map = prediction::convert(from, to, t, Some(&posterior)).unwrap();
                let (given, expected) = (value(from), value(to));
                // Where the map amplifies, it amplifies the rounding of its input too.
                let scale = (map.of_x * xt).abs() + (map.of_prediction * given).abs() + expected.abs();
                let error = (map.apply(xt, given) - expected).abs();
                prop_assert!(error <= 1e-11 * scale.max(1.0), "{} to {}: off by {error:e}", from.name(), to.name());
            }
        }
    }

    /// There and back is the identity for every pair of predictions, at any level including the ends; where one of the two
    /// conversions has no answer it is a typed error, and exactly where `x_t` and the prediction do not say both unknowns.
    #[test]
    fn conversions_round_trip_or_are_singular(
        level in prop_oneof![
            4 => any_level(),
            1 => Just(NoiseLevel::PURE_NOISE),
            1 => Just(NoiseLevel::CLEAN),
        ],
        x in -3.0..3.0_f64,
        given in -3.0..3.0_f64,
        gap in 0.1..5.0_f64,
    ) {
        let less = NoiseLevel::from_log_snr(level.log_snr().clamp(-14.0, 14.0) + gap).unwrap();
        let posterior = (level != NoiseLevel::CLEAN).then(|| Posterior::between(less, level).unwrap());
        let (alpha, sigma) = (level.alpha(), level.sigma());
        for from in ALL {
            // Whether the prediction exists, and tells eps and x_0 apart together with x_t.
            let exists = |p| p != Prediction::Score || sigma > 0.0;
            let tells = match from {
                Prediction::Eps | Prediction::Score => alpha > 0.0,
                Prediction::X0 | Prediction::Mean => sigma > 0.0,
                _ => true,
            };
            for to in ALL {
                let map = prediction::convert(from, to, level, posterior.as_ref());
                if posterior.is_none() && (from == Prediction::Mean || to == Prediction::Mean) {
                    prop_assert!(map.is_err(), "{} to {}", from.name(), to.name());
                    continue;
                }
                let noise_alone = |p| p == Prediction::Eps || p == Prediction::Score;
                let same = from == to || (noise_alone(from) && noise_alone(to));
                // Without signal, v is eps and the mean has no term of its own in x_0 but the posterior's.
                let answered = exists(from) && exists(to) && (same || tells);
                prop_assert!(map.is_ok() == answered, "{} to {} at {:?}: {:?}", from.name(), to.name(), level, map);
                let Ok(map) = map else {
                    let singular = matches!(map, Err(ScheduleError::Singular { .. }));
                    prop_assert!(singular, "{} to {}: {:?}", from.name(), to.name(), map);
                    continue;
                };
                let Ok(back) = prediction::convert(to, from, level, posterior.as_ref()) else { continue };
                let there = map.apply(x, given);
                let size = 1.0 + (back.of_x * x).abs() + back.of_prediction.abs() * (
                    (map.of_x * x).abs() + (map.of_prediction * given).abs()
                );
                let error = (back.apply(x, there) - given).abs();
                prop_assert!(error < 1e-13 * size, "{} to {} and back: off by {:e}", from.name(), to.name(), error);
            }
        }
    }

    /// 4.2: the forms of L_{t-1} are equal, for errors of any size in x_0 and every prediction's own weight; the weights are
    /// the formulas of Ho 2020 (the coefficient of x_0 squared).
    #[test]
    fn kl_forms_are_equal(
        (s, t) in two_levels(0.1), x0 in -2.0..2.0_f64, eps in -3.0..3.0_f64, wrong in 0.1..2.0_f64, variance in 1e-3..2.0_f64,
    ) {
        let posterior = Posterior::between(s, t).unwrap();
        let xt = q_sample(t).apply(x0, eps);
        let difference = posterior.mean(xt, x0) - posterior.mean(xt, x0 + wrong);
        let expected = difference * difference / (2.0 * variance);
        for form in ALL {
            let map = prediction::convert(Prediction::X0, form, t, Some(&posterior)).unwrap();
            // The difference of the two predictions: the term in x_t cancels.
            let error = map.of_prediction * wrong;
            let found = posterior.kl_weight(form, variance).unwrap() * error * error;
            prop_assert!((found / expected - 1.0).abs() < 1e-9, "{}: {} instead of {}", form.name(), found, expected);
        }
        let (a, rest) = (t.abar() / s.abar(), t.sigma().powi(2));
        let b = posterior.beta();
        let of_x0 = s.abar() * b * b / (rest * rest) / (2.0 * variance);
        let of_eps = b * b / (rest * a) / (2.0 * variance);
        prop_assert!((posterior.kl_weight(Prediction::X0, variance).unwrap() / of_x0 - 1.0).abs() < 1e-9);
        prop_assert!((posterior.kl_weight(Prediction::Eps, variance).unwrap() / of_eps - 1.0).abs() < 1e-9);
    }

    /// The divergence of two normals is the integral of q ln(q / p), by the trapezoid rule; its part in the means is the term
    /// that 4.2 weighs.
    #[test]
    fn normal_kl_is_the_integral(
        mean_q in -2.0..2.0_f64, mean_p in -2.0..2.0_f64, ln_q in -3.0..2.0_f64, ln_p in -3.0..2.0_f64,
    ) {
        let (var_q, var_p) = (ln_q.exp(), ln_p.exp());
        let found = normal_kl(mean_q, var_q, mean_p, var_p).unwrap();
        let step = 0.05 * var_q.sqrt();
        let integral: f64 = (-240..=240)
            .map(|i| mean_q + step * f64::from(i))
            .map(|x| (log_normal(x, mean_q, var_q), log_normal(x, mean_p, var_p)))
            .map(|(q, p)| step * q.exp() * (q - p))
            .sum();
        close(found, integral, 1e-10, "KL")?;
        let centred = normal_kl(mean_q, var_q, mean_q, var_p).unwrap();
        close(found - centred, (mean_q - mean_p).powi(2) / (2.0 * var_p), 1e-12, "KL of the means")?;
        prop_assert_eq!(normal_kl(mean_q, var_q, mean_q, var_q).unwrap(), 0.0);
    }

    /// 6.3: f(x, sigma_min) = x whatever the network says, and Song's coefficients above.
    #[test]
    fn consistency_models_start_at_the_identity(
        min in 0.001..1.0_f64, above in 0.0..80.0_f64, data in 0.1..2.0_f64, x in -80.0..80.0_f64, output in -10.0..10.0_f64,
    ) {
        let at_min = Preconditioning::consistency(min, min, data).unwrap();
        prop_assert_eq!(at_min.apply(x, output), x);
        let sigma = min + above;
        let c = Preconditioning::consistency(sigma, min, data).unwrap();
        let (shifted, both) = ((sigma - min).powi(2), sigma * sigma + data * data);
        close(c.c_skip, data * data / (shifted + data * data), 1e-13, "c_skip")?;
        close(c.c_out, data * (sigma - min) / both.sqrt(), 1e-13, "c_out")?;
        close(c.c_in, 1.0 / both.sqrt(), 1e-13, "c_in")?;
        close(c.apply(x, output), c.c_skip * x + c.c_out * output, 1e-15, "f")?;
    }

    /// Karras 2022, appendix B.6: the network's input and its target have the variance 1, and c_skip makes c_out smallest.
    #[test]
    fn edm_preconditioning_has_unit_variance(ln_sigma in -6.0..5.0_f64, data in 0.1..2.0_f64, other in -0.5..0.5_f64) {
        let sigma = ln_sigma.exp();
        let c = Preconditioning::edm(sigma, data).unwrap();
        let variance = sigma * sigma + data * data;
        close(c.c_in.powi(2) * variance, 1.0, 1e-12, "the input's variance")?;
        // x_0 - c_skip (x_0 + sigma eps) is what c_out F has to be.
        let target = |skip: f64| ((1.0 - skip) * data).powi(2) + (skip * sigma).powi(2);
        close(c.c_out.powi(2) / target(c.c_skip), 1.0, 1e-9, "the target's variance")?;
        prop_assert!(target(c.c_skip + other) >= target(c.c_skip));
        // The same estimate as the posterior mean of N(0, sigma_data^2) data, where the best network returns 0.
        let level = NoiseLevel::from_edm_sigma(sigma).unwrap();
        let gain = level.alpha() * data * data / (level.abar() * data * data + level.sigma().powi(2));
        close(c.c_skip, gain * level.alpha(), 1e-12, "c_skip")?;
    }

    /// The score is the gradient of ln q(x_t | x_0), by finite differences: -eps / sigma, not -eps / sigma^2.
    #[test]
    fn score_is_a_gradient(level in any_level(), x0 in -2.0..2.0_f64, eps in -3.0..3.0_f64) {
        let marginal = q_sample(level);
        let xt = marginal.apply(x0, eps);
        let h = 1e-4 * level.sigma();
        let log = |x| log_normal(x, marginal.scale * x0, marginal.variance);
        let gradient = (log(xt + h) - log(xt - h)) / (2.0 * h);
        let score = Prediction::Score.target(level, None).unwrap().apply(x0, eps);
        prop_assert!((score - gradient).abs() * level.sigma() < 1e-6, "{score} instead of {gradient}");
    }

    /// 6.1 with eta = 1 is the ancestral step with b~, between any two levels.
    #[test]
    fn ddim_with_eta_1_is_ancestral((s, t) in two_levels(1e-4), x0 in -2.0..2.0_f64, eps in -3.0..3.0_f64) {
        let posterior = Posterior::between(s, t).unwrap();
        let coefs = ddim_coefs(t, s, 1.0).unwrap();
        let xt = q_sample(t).apply(x0, eps);
        close(coefs.of_x0 * x0 + coefs.of_eps * eps, posterior.mean(xt, x0), 1e-9, "mean")?;
        prop_assert!((coefs.of_noise.powi(2) / posterior.variance() - 1.0).abs() < 1e-9);
    }

    /// 6.1 keeps the marginals of 1.2 for every eta, and its noise is eta sqrt((1-abar_p)/(1-abar_t)) sqrt(1-abar_t/abar_p).
    #[test]
    fn ddim_keeps_the_marginal((s, t) in two_levels(1e-3), eta in 0.0..1.0_f64) {
        let coefs = ddim_coefs(t, s, eta).unwrap();
        prop_assert_eq!(coefs.of_x0, s.alpha());
        let variance = coefs.of_eps.powi(2) + coefs.of_noise.powi(2);
        prop_assert!((variance / s.sigma().powi(2) - 1.0).abs() < 1e-12);
        let formula = eta * s.sigma() / t.sigma() * (1.0 - t.abar() / s.abar()).max(0.0).sqrt();
        close(coefs.of_noise, formula, 1e-9, "s")?;
    }

    /// A DDIM step without noise is undone by the step back.
    #[test]
    fn ddim_without_noise_inverts((s, t) in two_levels(1e-3), x0 in -2.0..2.0_f64, eps in -3.0..3.0_f64) {
        let coefs = ddim_coefs(t, s, 0.0).unwrap();
        let xs = coefs.of_x0 * x0 + coefs.of_eps * eps;
        let to_eps = prediction::convert(Prediction::X0, Prediction::Eps, s, None).unwrap();
        let error = (to_eps.apply(xs, x0) - eps).abs() * s.sigma();
        prop_assert!(error < 1e-12, "eps is off by {error:e}");
    }
}

#[test]
fn singular_conversions_are_typed_errors() {
    let (noise, clean) = (NoiseLevel::PURE_NOISE, NoiseLevel::CLEAN);
    let is_singular =
        |from, to, level| matches!(prediction::convert(from, to, level, None), Err(ScheduleError::Singular { .. }));
    for to in [Prediction::X0, Prediction::V] {
        assert!(is_singular(Prediction::Eps, to, noise));
        assert!(is_singular(Prediction::Score, to, noise));
    }
    for to in [Prediction::Eps, Prediction::V, Prediction::Score] {
        assert!(is_singular(Prediction::X0, to, clean));
    }
    // What remains has an answer at the ends as well.
    let at = |from, to, level| prediction::convert(from, to, level, None).unwrap().apply(3.0, 0.5);
    assert_eq!(at(Prediction::V, Prediction::X0, noise), -0.5);
    assert_eq!(at(Prediction::V, Prediction::Eps, noise), 3.0);
    assert_eq!(at(Prediction::X0, Prediction::Eps, noise), 3.0);
    assert_eq!(at(Prediction::Eps, Prediction::Score, noise), -0.5);
    assert_eq!(at(Prediction::V, Prediction::X0, clean), 3.0);
    assert_eq!(at(Prediction::V, Prediction::Eps, clean), 0.5);
    assert_eq!(at(Prediction::Eps, Prediction::X0, clean), 3.0);

    assert_eq!(
        prediction::convert(Prediction::Mean, Prediction::X0, clean, None),
        Err(ScheduleError::MeanWithoutPosterior)
    );
    let level = NoiseLevel::from_log_snr(0.0).unwrap();
    let standing = Posterior::between(level, level).unwrap();
    assert!(matches!(
        prediction::convert(Prediction::Mean, Prediction::X0, level, Some(&standing)),
        Err(ScheduleError::Singular { .. })
    ));
    assert_eq!((standing.coef_x0(), standing.coef_xt(), standing.variance()), (0.0, 1.0, 0.0));
    assert!(Posterior::between(noise, level).is_err() && Posterior::between(clean, clean).is_err());
    assert!(Posterior::between(level, noise).unwrap().mean_from_eps().is_err());
}

#[test]
fn divergences_and_preconditioning_are_checked() {
    for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(matches!(normal_kl(0.0, bad, 0.0, 1.0), Err(ScheduleError::Parameter { .. })), "{bad}");
        assert!(matches!(normal_kl(0.0, 1.0, 0.0, bad), Err(ScheduleError::Parameter { .. })), "{bad}");
        let posterior = Schedule::from_betas(vec![0.1, 0.2]).unwrap().posterior(2);
        assert!(matches!(posterior.kl_weight(Prediction::X0, bad), Err(ScheduleError::Parameter { .. })), "{bad}");
        assert!(Preconditioning::edm(1.0, bad).is_err(), "{bad}");
    }
    // Where all signal is lost, x_0, v and the mean still have weights, and eps and the score have none.
    let last = Schedule::from_betas(vec![0.1, 1.0]).unwrap().posterior(2);
    for (form, is_known) in
        [(Prediction::Eps, false), (Prediction::Score, false), (Prediction::X0, true), (Prediction::V, true)]
    {
        assert_eq!(last.kl_weight(form, 1.0).is_ok(), is_known, "{}", form.name());
    }
    // Nearly equal variances keep their digits: the divergence is (v - 1)^2 / 4.
    let tiny = normal_kl(0.0, 1.0 + 1e-6, 0.0, 1.0).unwrap();
    assert!((tiny / 2.5e-13 - 1.0).abs() < 1e-5, "{tiny:e}");
    for (sigma, min) in [(-0.1, 0.0), (0.1, 0.2), (f64::NAN, 0.0), (f64::INFINITY, 0.0), (1.0, -1.0), (1.0, f64::NAN)] {
        assert!(Preconditioning::consistency(sigma, min, 0.5).is_err(), "{sigma} {min}");
    }
    assert_eq!(Preconditioning::edm(0.0, 0.5).unwrap(), Preconditioning { c_skip: 1.0, c_out: 0.0, c_in: 2.0 });
}

#[test]
fn prediction_names() {
    for p in ALL {
        assert_eq!(Prediction::from_name(p.name()).unwrap(), p);
    }
    for name in Prediction::CONFIG_NAMES.split(", ") {
        assert_eq!(Prediction::from_config_name(name).unwrap().config_name(), Some(name));
    }
    assert!(Prediction::from_name("noise").unwrap_err().to_string().contains(Prediction::NAMES));
    assert!(Prediction::from_config_name("eps").unwrap_err().to_string().contains(Prediction::CONFIG_NAMES));
}

/// The square of the last alphas of a long schedule is 0 in f64; the steps between them are as good as any others.
#[test]
fn steps_between_tiny_alphas_have_coefficients() {
    let steps = 100_000;
    let schedule = Schedule::new(&BetaSchedule::Linear { start: 1e-4, end: 0.02 }, steps).unwrap();
    assert_eq!(schedule.abar(steps), 0.0);
    for (from, to) in [(steps, steps - 1), (steps, 99_000), (99_500, 98_000), (98_000, 60_000), (40_000, 1)] {
        let log_ratio: f64 = schedule.betas()[to..from].iter().map(|b| (-b).ln_1p()).sum();
        let beta = -log_ratio.exp_m1();
        let (s, t) = (schedule.level(to), schedule.level(from));
        let posterior = Posterior::between(s, t).unwrap();
        assert!((posterior.beta() / beta - 1.0).abs() < 1e-9, "{from} to {to}: {} is not {beta}", posterior.beta());
        let coefs = ddim_coefs(t, s, 1.0).unwrap();
        let fresh = s.sigma() / t.sigma() * beta.sqrt();
        assert!((coefs.of_noise / fresh - 1.0).abs() < 1e-9, "{from} to {to}: {coefs:?}");
        // At eta = 1 what is left of eps has the variance (1 - abar_s) - b~.
        assert!((coefs.of_eps.powi(2) + coefs.of_noise.powi(2) - s.sigma().powi(2)).abs() < 1e-12, "{coefs:?}");
    }
}

#[test]
fn ddim_parameters_are_checked() {
    let (s, t) = (NoiseLevel::from_log_snr(1.0).unwrap(), NoiseLevel::from_log_snr(0.0).unwrap());
    for eta in [-0.1, f64::NAN, f64::INFINITY, 10.0] {
        assert!(matches!(ddim_coefs(t, s, eta), Err(ScheduleError::Parameter { .. })), "eta = {eta}");
    }
    assert!(matches!(ddim_coefs(s, t, 0.0), Err(ScheduleError::LevelOrder { .. })));
    // From pure noise, eta = 1 forgets the state; a step of no length changes nothing.
    let from_noise = ddim_coefs(NoiseLevel::PURE_NOISE, t, 1.0).unwrap();
    assert_eq!((from_noise.of_eps, from_noise.of_noise), (0.0, t.sigma()));
    let standing = ddim_coefs(t, t, 1.0).unwrap();
    assert_eq!((standing.of_x0, standing.of_eps, standing.of_noise), (t.alpha(), t.sigma(), 0.0));
}
