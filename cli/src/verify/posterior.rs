//! The posterior of the forward process, the reverse step and predictions (FORMULAS 2).

use anyhow::Result;
use tweedie_denoiser::{Noise, Purpose, SeededNoise};
use tweedie_schedule::prediction::convert;
use tweedie_schedule::{NoiseLevel, Posterior, Prediction, Schedule, Variance};

use super::draw::{Draw, flat};
use super::{Identity, Worst, reference};

pub const IDENTITIES: &[Identity] = &[
    Identity {
        id: "2.1-bayes",
        equation: "q(x_s|x_t,x_0) = q(x_t|x_s) q(x_s|x_0) / q(x_t|x_0)",
        source: "Ho 2020, eqs. 6-7",
        relative_to: "variance and terms of the mean of the product of the Gaussians",
        tolerance: 1e-8,
        because: "as 1.1-between; steps whose b_t is given do better, see 2.1-consecutive",
        cost: 1,
        check: bayes,
    },
    Identity {
        id: "2.1-consecutive",
        equation: "mu~_t, b~_t of every step t-1 <- t, from the products of a_t",
        source: "Ho 2020, eq. 7",
        relative_to: "each coefficient",
        tolerance: 1e-12,
        because: "as 1.1-semigroup, divided by the variance left",
        cost: 1,
        check: consecutive,
    },
    Identity {
        id: "2.1-marginal",
        equation: "integral of q(x_s|x_t,x_0) q(x_t|x_0) over x_t = q(x_s|x_0)",
        source: "Ho 2020, eqs. 4, 6",
        relative_to: "factor of the mean and variance of q(x_s|x_0)",
        tolerance: 1e-12,
        because: "rounding of products of 1000 factors",
        cost: 1,
        check: marginal,
    },
    Identity {
        id: "2.2-mean",
        equation: "mu~ = (x_t - b_t/sqrt(1-abar_t) eps)/sqrt(a_t)",
        source: "Ho 2020, eq. 11",
        relative_to: "the sum of the sizes of both terms",
        tolerance: 1e-14,
        because: "a few operations on b_t and sigma_t, whose own rounding counts relative to its term",
        cost: 1,
        check: mean_from_eps,
    },
    Identity {
        id: "2.3-variance",
        equation: "sigma_q^2 = b~, b, 1, or exp(v ln b + (1-v) ln b~)",
        source: "Nichol 2021, eq. 15",
        relative_to: "the variance",
        tolerance: 1e-13,
        because: "powers of numbers from 1e-10 on",
        cost: 1,
        check: reverse_variances,
    },
    Identity {
        id: "2.4-round-trip",
        equation: "mean, x_0, eps, score, v: any to any and back",
        source: "Ho 2020; Salimans 2022",
        relative_to: "the sum of the sizes of both terms of the conversion",
        tolerance: 1e-12,
        because: "rounding; the coefficients of the mean carry that of 2.1-consecutive",
        cost: 1,
        check: round_trips,
    },
    Identity {
        id: "2.4-singular",
        equation: "no x_0 from eps at abar = 0, no eps from x_0 at abar = 1",
        source: "Lin 2023, sec. 3",
        relative_to: "nothing: an error has to be raised, and v has none to raise",
        tolerance: 0.0,
        because: "errors",
        cost: 1,
        check: singular,
    },
    Identity {
        id: "2.5-ancestral",
        equation: "x_(t-1) = mu_theta + sigma_q z, z = 0 at t = 1",
        source: "Ho 2020, Alg. 2",
        relative_to: "the largest number of the sample and of the data's means",
        tolerance: 1e-10,
        because: "rounding over up to 40 steps, of which the first may lose some digits of x_0",
        cost: 4,
        check: ancestral,
    },
];

fn bayes(draw: &mut Draw) -> Result<f64> {
    let schedule = draw.schedule(2, 1000)?;
    let (s, t) = draw.two_steps(&schedule, 1);
    let posterior = Posterior::between(schedule.level(s), schedule.level(t))?;
    // The precision of a product of Gaussians is the sum of theirs.
    let ((of_s, var_s), (of_t, var_t)) = (reference::steps(&schedule, 0, s), reference::steps(&schedule, s, t));
    let variance = (of_t * of_t / var_t + 1.0 / var_s).recip();
    let (x0, xt) = (2.0 * draw.normal(), 2.0 * draw.normal());
    let (from_t, from_0) = (variance * of_t / var_t * xt, variance * of_s / var_s * x0);
    let mut worst = Worst::default();
    worst.relative(posterior.variance(), variance);
    worst.see(posterior.mean(xt, x0), from_t + from_0, from_t.abs() + from_0.abs());
    // And as densities, at a point of the posterior.
    let xs = from_t + from_0 + variance.sqrt() * draw.normal();
    let (scale, var) = reference::steps(&schedule, 0, t);
    let terms = [
        reference::log_normal(xt, of_t * xs, var_t),
        reference::log_normal(xs, of_s * x0, var_s),
        -reference::log_normal(xt, scale * x0, var),
    ];
    let found = reference::log_normal(xs, posterior.mean(xt, x0), posterior.variance());
    let size = |terms: &[f64]| terms.iter().map(|v| v.abs()).sum::<f64>();
    // A square of offsets over a variance: the points are rounded relative to their own size.
    let offsets = xs * xs / var_s + (xt * xt + xs * xs) / var_t + (xt * xt + x0 * x0) / var;
    worst.see(found, terms.iter().sum(), size(&terms) + offsets);
    Ok(worst.0)
}

/// The coefficients of the step `t`, from products and sums alone.
fn coefficients(schedule: &Schedule, t: usize) -> (f64, f64, f64) {
    let ((scale, before), (_, now)) = (reference::steps(schedule, 0, t - 1), reference::steps(schedule, 0, t));
    let beta = schedule.beta(t);
    (scale * beta / now, (1.0 - beta).sqrt() * before / now, beta * before / now)
}

fn consecutive(draw: &mut Draw) -> Result<f64> {
    let schedule = draw.schedule(1, 1000)?;
    let t = draw.steps(1, schedule.steps());
    let posterior = schedule.posterior(t);
    let (of_x0, of_xt, variance) = coefficients(&schedule, t);
    let mut worst = Worst::default();
    worst.relative(posterior.coef_x0(), of_x0);
    worst.relative(posterior.coef_xt(), of_xt);
    worst.relative(posterior.variance(), variance);
    worst.relative(posterior.beta(), schedule.beta(t));
    Ok(worst.0)
}

fn marginal(draw: &mut Draw) -> Result<f64> {
    let schedule = draw.schedule(1, 1000)?;
    let (s, t) = draw.two_steps(&schedule, 0);
    let posterior = Posterior::between(schedule.level(s), schedule.level(t))?;
    let ((of_s, var_s), (of_t, var_t)) = (reference::steps(&schedule, 0, s), reference::steps(&schedule, 0, t));
    let mut worst = Worst::default();
    worst.relative(posterior.coef_x0() + posterior.coef_xt() * of_t, of_s);
    worst.relative(posterior.variance() + posterior.coef_xt() * posterior.coef_xt() * var_t, var_s);
    Ok(worst.0)
}

fn mean_from_eps(draw: &mut Draw) -> Result<f64> {
    let schedule = draw.schedule(1, 1000)?;
    let t = draw.steps(1, schedule.steps());
    let (of_x0, of_xt, _) = coefficients(&schedule, t);
    let (scale, variance) = reference::steps(&schedule, 0, t);
    let (x0, eps) = (2.0 * draw.normal(), draw.normal());
    let xt = scale * x0 + variance.sqrt() * eps;
    let found = schedule.posterior(t).mean_from_eps()?;
    let size = (found.of_x * xt).abs() + (found.of_prediction * eps).abs();
    let mut worst = Worst::default();
    worst.see(found.apply(xt, eps), of_xt * xt + of_x0 * x0, size);
    Ok(worst.0)
}

fn reverse_variances(draw: &mut Draw) -> Result<f64> {
    let schedule = draw.schedule(2, 1000)?;
    let t = draw.whole(2, schedule.steps());
    let (posterior, fraction) = (schedule.posterior(t), draw.uniform(0.0, 1.0));
    let (large, small) = (schedule.beta(t), coefficients(&schedule, t).2);
    let mut worst = Worst::default();
    for (choice, expected) in [
        (Variance::FixedSmall, small),
        (Variance::FixedLarge, large),
        (Variance::Unit, 1.0),
        (Variance::Interpolated { fraction }, (fraction * large.ln() + (1.0 - fraction) * small.ln()).exp()),
        (Variance::Interpolated { fraction: 0.0 }, small),
        (Variance::Interpolated { fraction: 1.0 }, large),
    ] {
        worst.relative(posterior.reverse_variance(choice)?, expected);
    }
    worst.holds(posterior.reverse_variance(Variance::Interpolated { fraction: 1.0 + fraction + 1e-9 }).is_err());
    Ok(worst.0)
}

fn round_trips(draw: &mut Draw) -> Result<f64> {
    let schedule = draw.schedule(2, 1000)?;
    let t = draw.whole(2, schedule.steps());
    let posterior = schedule.posterior(t);
    let (x0, eps) = (2.0 * draw.normal(), draw.normal());
    let (alpha, variance) = reference::steps(&schedule, 0, t);
    let (sigma, (of_x0, of_xt, _)) = (variance.sqrt(), coefficients(&schedule, t));
    let xt = alpha * x0 + sigma * eps;
    // What each prediction is, by its definition.
    let targets = [
        (Prediction::Eps, eps),
        (Prediction::X0, x0),
        (Prediction::V, alpha * eps - sigma * x0),
        (Prediction::Score, -eps / sigma),
        (Prediction::Mean, of_xt * xt + of_x0 * x0),
    ];
    let mut worst = Worst::default();
    for (from, given) in targets {
        for (to, wanted) in targets {
            let there = convert(from, to, schedule.level(t), Some(&posterior))?;
            let (of_x, of_prediction) = ((there.of_x * xt).abs(), (there.of_prediction * given).abs());
            // x_t is rounded relative to its terms, which may cancel in it.
            let rounded = there.of_x.abs() * (alpha * x0.abs() + sigma * eps.abs());
            worst.see(there.apply(xt, given), wanted, of_x + of_prediction + rounded + wanted.abs());
            let back = convert(to, from, schedule.level(t), Some(&posterior))?;
            let size = (back.of_x * xt).abs() + back.of_prediction.abs() * (of_x + of_prediction) + given.abs();
            worst.see(back.apply(xt, there.apply(xt, given)), given, size);
        }
    }
    Ok(worst.0)
}

fn singular(draw: &mut Draw) -> Result<f64> {
    let mut worst = Worst::default();
    let (noise, clean) = (NoiseLevel::PURE_NOISE, NoiseLevel::CLEAN);
    for from in [Prediction::Eps, Prediction::Score] {
        worst.holds(convert(from, Prediction::X0, noise, None).is_err());
        worst.holds(convert(from, Prediction::V, noise, None).is_err());
    }
    worst.holds(convert(Prediction::X0, Prediction::Eps, clean, None).is_err());
    worst.holds(convert(Prediction::Mean, Prediction::X0, draw.level()?, None).is_err());
    let (x0, eps) = (draw.normal(), draw.normal());
    // v says both at both ends: -x_0 where x_t = eps, and eps where x_t = x_0.
    worst.see(convert(Prediction::V, Prediction::X0, noise, None)?.apply(eps, -x0), x0, 1.0);
    worst.see(convert(Prediction::V, Prediction::Eps, clean, None)?.apply(x0, eps), eps, 1.0);
    Ok(worst.0)
}

fn ancestral(draw: &mut Draw) -> Result<f64> {
    let schedule = draw.schedule(2, 40)?;
    let (steps, mixture) = (schedule.steps(), draw.mixture((1, 3))?);
    let variance = draw.pick(&[Variance::FixedSmall, Variance::FixedLarge]);
    let noise = SeededNoise::new(draw.seed());
    let dims = mixture.parts.dims();
    let found = super::samplers::every_step(&mixture, &schedule, variance, &noise)?;

    // The same by hand, from the noise that the source has: draw k is that of the k-th step that adds any.
    let fill = |purpose| {
        let mut z = vec![0.0; dims];
        noise.fill(purpose, 0, &mut z).map(|()| z)
    };
    let mut x = fill(Purpose::Initial)?;
    for t in (1..=steps).rev() {
        let (level, (of_x0, of_xt, small)) = (schedule.level(t), coefficients(&schedule, t));
        let x0 = mixture.denoise(&x, level, None)?;
        let std = if variance == Variance::FixedLarge { schedule.beta(t).sqrt() } else { small.sqrt() };
        let z = if t > 1 { fill(Purpose::Step(steps - t))? } else { vec![0.0; dims] };
        x = (0..dims).map(|i| of_xt * x[i] + of_x0 * x0[i] + std * z[i]).collect();
    }
    let size = x.iter().fold(1.0_f64, |size, v| size.max(v.abs()));
    let mut worst = Worst::default();
    for (found, expected) in flat(&found).iter().zip(&x) {
        worst.see(*found, *expected, size);
    }
    Ok(worst.0)
}
