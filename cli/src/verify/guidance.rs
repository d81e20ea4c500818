//! Conditioning and guidance (FORMULAS 5).

use anyhow::Result;
use tweedie_denoiser::{Condition, Denoiser};
use tweedie_guidance::{Cfg, guided, guided_eps, guided_mean, guided_score, implicit_gradient, scale_from_weight};
use tweedie_samplers::Clip;
use tweedie_schedule::prediction::convert;
use tweedie_schedule::{NoiseLevel, Prediction};

use super::draw::{Draw, Mixture, condition, flat};
use super::reference;
use super::score::narrowest;
use super::{Identity, Worst};

pub const IDENTITIES: &[Identity] = &[
    Identity {
        id: "5.2-bayes",
        equation: "grad log p(x_t|y) = grad log p(x_t) + grad log p(y|x_t)",
        source: "Dhariwal 2021, eq. 2",
        relative_to: "the largest |score_i| plus 1/sigma_min of the noised data",
        tolerance: 1e-8,
        because: "as 3.2-gradient: log p(y|x_t) is differentiated numerically",
        cost: 1,
        check: bayes,
    },
    Identity {
        id: "5.3-eps",
        equation: "eps - sigma g grad log p(y|x_t) = -sigma (guided score)",
        source: "Dhariwal 2021, Alg. 2",
        relative_to: "the sum of the sizes of both terms",
        tolerance: 1e-14,
        because: "four operations",
        cost: 1,
        check: eps_form,
    },
    Identity {
        id: "5.3-mean",
        equation: "mean of N(m, s^2) e^(g x grad) = m + g s^2 grad",
        source: "Dhariwal 2021, eq. 10",
        relative_to: "the sum of the sizes of both terms plus s",
        tolerance: 1e-13,
        because: "the trapezoid rule is exact to rounding for Gaussians",
        cost: 1,
        check: tilted_mean,
    },
    Identity {
        id: "5.4-conventions",
        equation: "u + g (c - u) = (1+w) c - w u,  g = 1 + w",
        source: "Ho & Salimans 2022, eq. 6",
        relative_to: "the sum of the sizes of both terms; 0 and 1 are u and c",
        tolerance: 1e-14,
        because: "four operations",
        cost: 1,
        check: conventions,
    },
    Identity {
        id: "5.4-commutes",
        equation: "guiding x_0, eps, v or the score is the same",
        source: "Ho & Salimans 2022",
        relative_to: "the sum of the sizes of all terms, in x_0",
        tolerance: 1e-14,
        because: "a few operations",
        cost: 1,
        check: commutes,
    },
    Identity {
        id: "5.4-power",
        equation: "guided score = grad [log p(x_t) + g log p(y|x_t)]",
        source: "Ho & Salimans 2022, eq. 5",
        relative_to: "(1 + |g|) times that of 5.2-bayes",
        tolerance: 1e-8,
        because: "as 3.2-gradient",
        cost: 1,
        check: power,
    },
    Identity {
        id: "5.5-negative",
        equation: "u is the estimate under the negative condition",
        source: "Ho & Salimans 2022",
        relative_to: "the sum of the sizes of both terms",
        tolerance: 1e-14,
        because: "a few operations; the batch is doubled inside",
        cost: 1,
        check: negative,
    },
    Identity {
        id: "5.5-threshold",
        equation: "x_0 clipped to [-s, s] and divided by s = max(1, quantile)",
        source: "Saharia 2022, sec. 2.3",
        relative_to: "1",
        tolerance: 1e-14,
        because: "a quantile of sorted numbers and a division",
        cost: 1,
        check: threshold,
    },
    Identity {
        id: "5.6-implicit",
        equation: "grad log p(y|x_t) = -(eps_c - eps_u)/sqrt(1-abar_t)",
        source: "Ho & Salimans 2022, 3.2",
        relative_to: "the sum of the sizes of both eps, over sigma",
        tolerance: 1e-10,
        because: "eps come from x_0, by a division by sigma: rounding is eps/sigma^2 of a score's unit",
        cost: 1,
        check: implicit,
    },
];

/// A mixture with two labels, a level, and a state of it.
fn labelled(draw: &mut Draw) -> Result<(Mixture, NoiseLevel, Vec<f64>, usize)> {
    let (mixture, level) = (draw.mixture((2, 4))?, draw.level()?);
    let x = mixture.state(level, draw);
    let label = draw.whole(0, 1);
    Ok((mixture, level, x, label))
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |largest, v| largest.max(v.abs()))
}

/// The gradient of `ln p(y | x_t)` by finite differences.
fn label_gradient(mixture: &Mixture, level: NoiseLevel, x: &[f64], label: usize) -> Result<Vec<f64>> {
    let log = |x: &[f64]| {
        let batch = mixture.batch(x);
        Ok(mixture.oracle.log_label_probability(batch.view(), level, &condition(Some(label)))?[0])
    };
    reference::gradient(x, 1e-3 * narrowest(mixture, level), log)
}

fn bayes(draw: &mut Draw) -> Result<f64> {
    let (mixture, level, x, label) = labelled(draw)?;
    let (of_label, of_all) = (mixture.score(&x, level, Some(label))?, mixture.score(&x, level, None)?);
    let numeric = label_gradient(&mixture, level, &x, label)?;
    let exact = flat(&mixture.oracle.label_gradient(mixture.batch(&x).view(), level, &condition(Some(label)))?);
    let size = largest(&of_label) + largest(&of_all) + 1.0 / narrowest(&mixture, level);
    let mut worst = Worst::default();
    for i in 0..x.len() {
        worst.see(of_label[i], of_all[i] + numeric[i], size);
        worst.see(of_label[i], of_all[i] + exact[i], size);
        worst.see(guided_score(of_all[i], exact[i], 1.0), of_label[i], size);
    }
    Ok(worst.0)
}

fn eps_form(draw: &mut Draw) -> Result<f64> {
    let (level, eps, gradient) = (draw.level()?, draw.normal(), 3.0 * draw.normal());
    let (scale, sigma) = (draw.uniform(0.0, 8.0), level.sigma());
    let score = -eps / sigma;
    let mut worst = Worst::default();
    worst.see(
        guided_eps(eps, sigma, gradient, scale),
        -sigma * (score + scale * gradient),
        eps.abs() + (sigma * scale * gradient).abs(),
    );
    let to_eps = convert(Prediction::Score, Prediction::Eps, level, None)?;
    worst.see(
        to_eps.apply(0.0, guided_score(score, gradient, scale)),
        guided_eps(eps, sigma, gradient, scale),
        eps.abs() + (sigma * scale * gradient).abs(),
    );
    Ok(worst.0)
}

fn tilted_mean(draw: &mut Draw) -> Result<f64> {
    let (mean, variance) = (draw.normal(), draw.log_uniform(1e-3, 1.0));
    let (gradient, scale) = (draw.normal(), draw.uniform(0.0, 4.0));
    let found = guided_mean(mean, variance, gradient, scale);
    // The tilted density is centred somewhere else: wide enough for both.
    let std = variance.sqrt();
    let reach = 12.0 * std + (scale * variance * gradient).abs();
    let density = |x: f64| (reference::log_normal(x, mean, variance) + scale * gradient * (x - mean)).exp();
    let mass = reference::integral(mean, reach, density);
    let expected = mean + reference::integral(mean, reach, |x| (x - mean) * density(x)) / mass;
    let mut worst = Worst::default();
    worst.see(found, expected, mean.abs() + (scale * variance * gradient).abs() + std);
    Ok(worst.0)
}

fn conventions(draw: &mut Draw) -> Result<f64> {
    let (u, c, w) = (draw.normal(), draw.normal(), draw.uniform(-1.0, 9.0));
    let mut worst = Worst::default();
    let (of_c, of_u) = ((1.0 + w) * c, w * u);
    worst.see(guided(u, c, scale_from_weight(w)), of_c - of_u, (1.0 + w.abs()) * (c.abs() + u.abs()));
    worst.see(guided(u, c, 0.0), u, c.abs() + u.abs());
    worst.see(guided(u, c, 1.0), c, c.abs() + u.abs());
    Ok(worst.0)
}

fn commutes(draw: &mut Draw) -> Result<f64> {
    let (mixture, level, x, label) = labelled(draw)?;
    let scale = draw.uniform(0.0, 6.0);
    let (c, u) = (mixture.denoise(&x, level, Some(label))?, mixture.denoise(&x, level, None)?);
    let cfg = Cfg::new(&mixture.oracle, condition(Some(label)), Condition::none(1), scale)?;
    let found = flat(&cfg.denoise(mixture.batch(&x).view(), level)?);
    let mut worst = Worst::default();
    for of in [Prediction::X0, Prediction::Eps, Prediction::V, Prediction::Score] {
        let there = convert(Prediction::X0, of, level, None)?;
        let back = convert(of, Prediction::X0, level, None)?;
        for i in 0..x.len() {
            let (c, u) = (there.apply(x[i], c[i]), there.apply(x[i], u[i]));
            let x0 = back.apply(x[i], guided(u, c, scale));
            let size = (back.of_x * x[i]).abs()
                + back.of_prediction.abs() * (1.0 + scale) * (c.abs() + u.abs() + 2.0 * (there.of_x * x[i]).abs());
            worst.see(x0, found[i], size);
        }
    }
    Ok(worst.0)
}

fn power(draw: &mut Draw) -> Result<f64> {
    let (mixture, level, x, label) = labelled(draw)?;
    let scale = draw.uniform(0.0, 6.0);
    let cfg = Cfg::new(&mixture.oracle, condition(Some(label)), Condition::none(1), scale)?;
    let x0 = flat(&cfg.denoise(mixture.batch(&x).view(), level)?);
    let to_score = convert(Prediction::X0, Prediction::Score, level, None)?;
    let (score, gradient) = (mixture.score(&x, level, None)?, label_gradient(&mixture, level, &x, label)?);
    // From x_0 to the score it is divided by sigma^2, and so is the rounding of x_t.
    let rounding = (largest(&x) + largest(&x0)) / (level.sigma() * level.sigma());
    let size = (1.0 + scale) * (largest(&score) + 1.0 / narrowest(&mixture, level)) + 1e-6 * rounding;
    let mut worst = Worst::default();
    for i in 0..x.len() {
        worst.see(to_score.apply(x[i], x0[i]), score[i] + scale * gradient[i], size);
    }
    Ok(worst.0)
}

fn negative(draw: &mut Draw) -> Result<f64> {
    let (mixture, level, x, label) = labelled(draw)?;
    let (scale, other) = (draw.uniform(0.0, 6.0), 1 - label);
    let cfg = Cfg::new(&mixture.oracle, condition(Some(label)), condition(Some(other)), scale)?;
    let found = flat(&cfg.denoise(mixture.batch(&x).view(), level)?);
    let (c, u) = (mixture.denoise(&x, level, Some(label))?, mixture.denoise(&x, level, Some(other))?);
    let mut worst = Worst::default();
    for i in 0..x.len() {
        let size = (1.0 + scale) * (c[i].abs() + u[i].abs());
        worst.see(found[i], scale * c[i] - (scale - 1.0) * u[i], size);
    }
    for (scale, expected) in [(0.0, &u), (1.0, &c)] {
        let cfg = Cfg::new(&mixture.oracle, condition(Some(label)), condition(Some(other)), scale)?;
        worst.holds(flat(&cfg.denoise(mixture.batch(&x).view(), level)?) == *expected);
    }
    Ok(worst.0)
}

fn threshold(draw: &mut Draw) -> Result<f64> {
    let mixture = draw.mixture((1, 1))?;
    let dims = mixture.parts.dims();
    let values: Vec<f64> = draw.normals(dims).into_iter().map(|v| 3.0 * v).collect();
    let (ratio, max) = (draw.uniform(0.0, 1.0), draw.uniform(1.0, 6.0));
    let mut found = mixture.batch(&values);
    Clip::Dynamic { ratio, max }.check()?.apply(&mut found);
    let mut sorted: Vec<f64> = values.iter().map(|v| v.abs()).collect();
    sorted.sort_by(f64::total_cmp);
    let place = ratio * (dims - 1) as f64;
    let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    let s = (low + (high - low) * place.fract()).clamp(1.0, max);
    let mut worst = Worst::default();
    for (found, value) in flat(&found).iter().zip(&values) {
        worst.see(*found, value.max(-s).min(s) / s, 1.0);
    }
    Ok(worst.0)
}

fn implicit(draw: &mut Draw) -> Result<f64> {
    let (mixture, level, x, label) = labelled(draw)?;
    let (c, u) = (mixture.denoise(&x, level, Some(label))?, mixture.denoise(&x, level, None)?);
    let exact = flat(&mixture.oracle.label_gradient(mixture.batch(&x).view(), level, &condition(Some(label)))?);
    let (to_eps, sigma) = (convert(Prediction::X0, Prediction::Eps, level, None)?, level.sigma());
    let mut worst = Worst::default();
    for i in 0..x.len() {
        let (c, u) = (to_eps.apply(x[i], c[i]), to_eps.apply(x[i], u[i]));
        let size = (c.abs() + u.abs() + (to_eps.of_x * x[i]).abs()) / sigma;
        worst.see(implicit_gradient(c, u, sigma), exact[i], size);
    }
    Ok(worst.0)
}
