//! FORMULAS 5.2, 5.3, 5.4 and 5.6 on random mixtures with full covariances, whose classifier is exact.

#[path = "../../denoiser/tests/common/mod.rs"]
mod common;

use common::{Case, all_close, any_case, any_level};
use ndarray::{Array4, Zip};
use proptest::prelude::*;
use tweedie_denoiser::{Condition, ConditionalDenoiser, Denoiser};
use tweedie_guidance::{Cfg, guided_eps, guided_mean, guided_score, implicit_gradient, scale_from_weight};
use tweedie_schedule::{NoiseLevel, Posterior, Prediction, prediction};

/// The estimates of a prediction under the label and without.
fn both(case: &Case, to: Prediction, level: NoiseLevel) -> (Array4<f64>, Array4<f64>) {
    let map = prediction::convert(Prediction::X0, to, level, None).unwrap();
    let under = |condition: &Condition| {
        let x0 = case.oracle.denoise_with(case.state.view(), level, condition).unwrap();
        Zip::from(&case.state).and(&x0).map_collect(|&x, &x0| map.apply(x, x0))
    };
    (under(&case.condition()), under(&Condition::none(1)))
}

proptest! {
    /// 5.6: -(eps_c - eps_u) / sigma is the gradient of ln p(y | x_t), exactly.
    #[test]
    fn implicit_classifier_is_exact(case in any_case(0.0), level in any_level(-6.0..5.0)) {
        let (cond, uncond) = both(&case, Prediction::Eps, level);
        let found = Zip::from(&cond).and(&uncond).map_collect(|&c, &u| implicit_gradient(c, u, level.sigma()));
        let exact = case.oracle.label_gradient(case.state.view(), level, &case.condition()).unwrap();
        // Both are compared in units of eps, in which the estimates carry rounding.
        all_close(&(found * level.sigma()), &(exact * level.sigma()), 1e-11, "gradient")?;
    }

    /// 5.2, 5.3, 5.4: guiding with the exact classifier is guiding without one, at any scale: 0 is the unconditional score,
    /// 1 the conditional one. The other convention has the scale 1 + w.
    #[test]
    fn classifier_guidance_is_classifier_free_guidance(
        case in any_case(0.0), level in any_level(-6.0..5.0), w in -1.0..6.0_f64,
    ) {
        let scale = scale_from_weight(w);
        let (state, condition) = (case.state.view(), case.condition());
        let g = case.oracle.label_gradient(state, level, &condition).unwrap();
        let free = case.oracle.score(state, level, &Condition::none(1)).unwrap();
        let of_label = case.oracle.score(state, level, &condition).unwrap();
        let guided = |scale: f64| Zip::from(&free).and(&g).map_collect(|&s, &g| guided_score(s, g, scale));
        all_close(&guided(0.0), &free, 1e-15, "scale 0")?;
        all_close(&guided(1.0), &of_label, 1e-12, "scale 1")?;
        all_close(&guided(scale), &(&of_label * (1.0 + w) - &free * w), 1e-12, "the other convention")?;

        let x0 = Cfg::new(&case.oracle, condition, Condition::none(1), scale).unwrap().denoise(state, level).unwrap();
        let to_score = prediction::convert(Prediction::X0, Prediction::Score, level, None).unwrap();
        let found = Zip::from(&case.state).and(&x0).map_collect(|&x, &x0| to_score.apply(x, x0));
        let noise = level.sigma();
        all_close(&(found * noise), &(guided(scale) * noise), 1e-10, "guided score")?;
    }

    /// 5.3, DDIM: eps - sigma gamma g is the guided score, as eps.
    #[test]
    fn guided_eps_is_the_guided_score(
        level in any_level(-8.0..8.0), score in -5.0..5.0_f64, g in -5.0..5.0_f64, scale in 0.0..8.0_f64,
    ) {
        let to_eps = prediction::convert(Prediction::Score, Prediction::Eps, level, None).unwrap();
        let expected = to_eps.apply(0.0, guided_score(score, g, scale));
        let found = guided_eps(to_eps.apply(0.0, score), level.sigma(), g, scale);
        prop_assert!((found - expected).abs() < 1e-12, "{} instead of {}", found, expected);
    }

    /// 5.3, ancestral: N(x; m, v) exp(gamma g x) is a normal with the mean m + gamma v g and the variance v, by quadrature.
    #[test]
    fn guided_mean_tilts_the_step(
        mean in -2.0..2.0_f64, ln_v in -4.0..1.0_f64, g in -3.0..3.0_f64, scale in 0.0..4.0_f64,
    ) {
        let variance = ln_v.exp();
        let found = guided_mean(mean, variance, g, scale);
        let (mut mass, mut first, mut second) = (0.0, 0.0, 0.0);
        for i in -300..=300 {
            let x = found + 0.04 * f64::from(i) * variance.sqrt();
            let tilted = (-0.5 * (x - mean).powi(2) / variance + scale * g * (x - found)).exp();
            mass += tilted;
            first += tilted * (x - found);
            second += tilted * (x - found).powi(2);
        }
        prop_assert!((first / mass).abs() < 1e-10 * variance.sqrt(), "the mean is off by {}", first / mass);
        prop_assert!((second / mass / variance - 1.0).abs() < 1e-10);
    }

    /// The mean of a step whose x_0 is guided is Algorithm 1's with the variance b / sqrt(a), which is b (the large variance)
    /// up to a factor that tends to 1 with short steps.
    #[test]
    fn guided_mean_is_the_guided_estimate(
        s in any_level(-5.0..6.0), gap in 0.01..3.0_f64, x in -3.0..3.0_f64, x0 in -2.0..2.0_f64, g in -3.0..3.0_f64,
        scale in 0.0..4.0_f64,
    ) {
        let t = NoiseLevel::from_log_snr(s.log_snr() - gap).unwrap();
        let posterior = Posterior::between(s, t).unwrap();
        let convert = |from, to| prediction::convert(from, to, t, None).unwrap();
        let score = convert(Prediction::X0, Prediction::Score).apply(x, x0);
        let guided = convert(Prediction::Score, Prediction::X0).apply(x, guided_score(score, g, scale));
        let variance = posterior.beta() / (1.0 - posterior.beta()).sqrt();
        let expected = guided_mean(posterior.mean(x, x0), variance, g, scale);
        let found = posterior.mean(x, guided);
        prop_assert!((found - expected).abs() < 1e-9 * (1.0 + expected.abs()), "{} instead of {}", found, expected);
    }
}
