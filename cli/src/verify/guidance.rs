//! Conditioning and guidance (FORMULAS 5).

use anyhow::Result;
use tweedie_denoiser::{Condition, Conditioned, Denoiser, DenoiserError, Noise, Purpose};
use tweedie_guidance::{
    Autoguided, Cfg, ClassifierForm, ClassifierGuided, Guide, Limited, Rescaled, guided, guided_eps, guided_mean,
    guided_score, implicit_gradient, scale_from_weight,
};
use tweedie_samplers::{Clip, Ddpm};
use tweedie_schedule::prediction::convert;
use tweedie_schedule::{Bridge, GridMove, LevelGrid, NoiseLevel, Posterior, Prediction, TimestepMapping, Variance};

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
        id: "5.3-classifier",
        equation: "x_0 + g sigma^2/alpha grad log p(y|x_t) = u + g (c - u)",
        source: "Dhariwal 2021, Alg. 2",
        relative_to: "sigma^2/alpha times (1 + g) times the unit of 5.6-implicit, plus |x_0|",
        tolerance: 1e-9,
        because: "as 5.6-implicit; the classifier is exact",
        cost: 1,
        check: classifier_is_cfg,
    },
    Identity {
        id: "5.3-ancestral",
        equation: "ddpm moves its mean by g s_q^2 grad log p(y|x_t)",
        source: "Dhariwal 2021, Alg. 1",
        relative_to: "the sum of the sizes of all terms",
        tolerance: 1e-12,
        because: "a few operations in one step without noise",
        cost: 1,
        check: ancestral,
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
        id: "5.5-interval",
        equation: "guided for sigma in (lo, hi], c alone elsewhere",
        source: "Kynkaanniemi 2024, sec. 3",
        relative_to: "0 or 1: both bit for bit",
        tolerance: 0.0,
        because: "the same numbers are handed on",
        cost: 1,
        check: interval,
    },
    Identity {
        id: "5.5-rescale",
        equation: "with phi = 1, std(guided output) = std(cond. output)",
        source: "Lin 2023, eq. 15-16",
        relative_to: "the standard deviation plus that of the rounding of x_0, in units of the output",
        tolerance: 1e-10,
        because: "the output is had from x_0, by a division that magnifies rounding",
        cost: 1,
        check: rescale,
    },
    Identity {
        id: "5.5-autoguidance",
        equation: "D1 + (w-1)(D1 - D0) = w D1 - (w-1) D0; D1 if D0 is D1",
        source: "Karras 2024",
        relative_to: "the sum of the sizes of both terms; the second, bit for bit",
        tolerance: 1e-14,
        because: "a few operations",
        cost: 1,
        check: autoguidance,
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

fn classifier_is_cfg(draw: &mut Draw) -> Result<f64> {
    let (mixture, level, x, label) = labelled(draw)?;
    let (scale, batch, oracle) = (draw.uniform(0.0, 6.0), mixture.batch(&x), &mixture.oracle);
    let cfg = Cfg::new(oracle, condition(Some(label)), Condition::none(1), scale)?;
    let free = Conditioned::new(oracle, Condition::none(1));
    let by = ClassifierGuided::new(free, oracle, condition(Some(label)), scale, ClassifierForm::Score)?;
    let (expected, found) = (flat(&cfg.denoise(batch.view(), level)?), flat(&by.denoise(batch.view(), level)?));
    let (c, u) = (mixture.denoise(&x, level, Some(label))?, mixture.denoise(&x, level, None)?);
    let to_eps = convert(Prediction::X0, Prediction::Eps, level, None)?;
    let mut worst = Worst::default();
    for i in 0..x.len() {
        // As 5.6-implicit: the gradient has the rounding of both eps over sigma.
        let eps = to_eps.apply(x[i], c[i]).abs() + to_eps.apply(x[i], u[i]).abs() + (to_eps.of_x * x[i]).abs();
        let size = (1.0 + scale) * (level.sigma() / level.alpha() * eps + c[i].abs() + u[i].abs());
        worst.see(found[i], expected[i], size);
    }
    Ok(worst.0)
}

/// The given state at first, and no noise after it.
struct Still(Vec<f64>);

impl Noise for Still {
    fn fill(&self, purpose: Purpose, _: usize, out: &mut [f64]) -> Result<(), DenoiserError> {
        let initial = purpose == Purpose::Initial;
        out.iter_mut().zip(&self.0).for_each(|(out, x)| *out = if initial { *x } else { 0.0 });
        Ok(())
    }
}

fn ancestral(draw: &mut Draw) -> Result<f64> {
    let (mixture, schedule) = (draw.mixture((2, 4))?, draw.schedule(2, 1000)?);
    let (s, t) = draw.two_steps(&schedule, 0);
    let (from, to) = (schedule.level(t), schedule.level(s));
    let (x, label, scale) = (mixture.state(from, draw), draw.whole(0, 1), draw.uniform(0.0, 6.0));
    let variance = draw.pick(&[Variance::FixedSmall, Variance::FixedLarge]);
    let free = Conditioned::new(&mixture.oracle, Condition::none(1));
    let by = ClassifierGuided::new(free, &mixture.oracle, condition(Some(label)), scale, ClassifierForm::Mean)?;
    let grid = LevelGrid::new(vec![GridMove { from, to, step: t as f64 }])?;
    let [c, h, w] = mixture.shape;
    let mut ddpm = Ddpm { variance, clip: Clip::None };
    let proceed = &mut |_: tweedie_samplers::StepInfo<'_>| std::ops::ControlFlow::Continue(());
    let found = flat(&tweedie_samplers::sample(&by, &grid, &mut ddpm, &Still(x.clone()), [1, c, h, w], proceed)?);
    let posterior = Posterior::between(to, from)?;
    let x0 = mixture.denoise(&x, from, None)?;
    let gradient = flat(&mixture.oracle.label_gradient(mixture.batch(&x).view(), from, &condition(Some(label)))?);
    let mut worst = Worst::default();
    for i in 0..x.len() {
        let (tilt, s_q) = (scale * gradient[i], posterior.reverse_variance(variance)?);
        let size = (posterior.coef_x0() * x0[i]).abs() + (posterior.coef_xt() * x[i]).abs() + (s_q * tilt).abs();
        worst.see(found[i], posterior.mean(x[i], x0[i]) + s_q * tilt, size);
    }
    Ok(worst.0)
}

fn interval(draw: &mut Draw) -> Result<f64> {
    let (mixture, level, x, label) = labelled(draw)?;
    let cfg = || Cfg::new(&mixture.oracle, condition(Some(label)), Condition::none(1), 3.0);
    let (batch, sigma) = (mixture.batch(&x), level.edm_sigma());
    let guided = cfg()?.denoise(batch.view(), level)?;
    let of_label = Conditioned::new(&mixture.oracle, condition(Some(label))).denoise(batch.view(), level)?;
    let (below, above) = (sigma * draw.uniform(0.0, 0.99), sigma * draw.uniform(1.01, 9.0));
    let mut worst = Worst::default();
    for (low, high, inside) in
        [(below, above, true), (below, sigma, true), (sigma, above, false), (above, f64::INFINITY, false)]
    {
        let found = Limited::new(cfg()?, low, high)?.denoise(batch.view(), level)?;
        worst.holds(found == if inside { guided.view() } else { of_label.view() });
    }
    Ok(worst.0)
}

fn rescale(draw: &mut Draw) -> Result<f64> {
    let (mixture, schedule) = (draw.mixture((2, 4))?, draw.schedule(1, 1000)?);
    let level = schedule.level(draw.whole(1, schedule.steps()));
    let (x, scale) = (mixture.state(level, draw), draw.uniform(1.0, 6.0));
    let of = draw.pick(&[Prediction::Eps, Prediction::X0, Prediction::V]);
    let bridge = Bridge::new(of, schedule, TimestepMapping::ZeroBased);
    let cfg = Cfg::new(&mixture.oracle, condition(Some(draw.whole(0, 1))), Condition::none(1), scale)?;
    let both = cfg.both(mixture.batch(&x).view(), level)?;
    let found = flat(&Rescaled::new(cfg, bridge, 1.0)?.denoise(mixture.batch(&x).view(), level)?);
    let to_output = convert(Prediction::X0, of, level, None)?;
    let spread = |x0: &[f64]| {
        let output: Vec<f64> = x.iter().zip(x0).map(|(x, x0)| to_output.apply(*x, *x0)).collect();
        let mean = output.iter().sum::<f64>() / output.len() as f64;
        (output.iter().map(|o| (o - mean) * (o - mean)).sum::<f64>() / output.len() as f64).sqrt()
    };
    let (plain, guided) = (flat(&both.plain), flat(&both.guided.x0));
    let mut worst = Worst::default();
    // A single value has no standard deviation, and is left alone.
    if x.len() == 1 {
        worst.holds(found == guided);
        return Ok(worst.0);
    }
    let sizes = largest(&plain) + largest(&guided) + largest(&found);
    let rounding = to_output.of_prediction.abs() * sizes + to_output.of_x.abs() * largest(&x);
    // Where guidance left next to no output, its rounding is magnified on the way back.
    let magnified = rounding * (1.0 + spread(&plain) / spread(&guided));
    worst.see(spread(&found), spread(&plain), spread(&plain) + magnified);
    Ok(worst.0)
}

fn autoguidance(draw: &mut Draw) -> Result<f64> {
    let (mixture, level, x, label) = labelled(draw)?;
    let w = draw.uniform(0.0, 6.0);
    // The other label's components are as good a weaker model as any.
    let (strong, weak) = (mixture.denoise(&x, level, Some(label))?, mixture.denoise(&x, level, None)?);
    let of = |label| Conditioned::new(&mixture.oracle, condition(label));
    let batch = mixture.batch(&x);
    let found = flat(&Autoguided::new(of(Some(label)), of(None), w)?.denoise(batch.view(), level)?);
    let own = flat(&Autoguided::new(of(Some(label)), of(Some(label)), w)?.denoise(batch.view(), level)?);
    let mut worst = Worst::default();
    worst.holds(own == strong);
    for i in 0..x.len() {
        let (of_strong, of_weak) = (w * strong[i], (w - 1.0) * weak[i]);
        worst.see(found[i], of_strong - of_weak, (1.0 + w) * (strong[i].abs() + weak[i].abs()));
    }
    Ok(worst.0)
}
