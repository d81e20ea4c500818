//! The variational bound, its terms and the likelihood of the probability-flow ODE (FORMULAS 4).

use anyhow::Result;
use ndarray::Array4;
use tweedie_denoiser::{Condition, Conditioned, MixtureOracle, Noise, Purpose, SeededNoise};
use tweedie_eval::ode::{Ode, Trace};
use tweedie_eval::vlb::prior_kl;
use tweedie_eval::{Bound, Decoder, ReverseVariance, exact_gaussian_variance};
use tweedie_schedule::kl::normal_kl;
use tweedie_schedule::{Bins, Prediction, Schedule, ScheduleError, Variance};

use super::draw::{Draw, condition};
use super::reference::{self, Noising};
use super::{Identity, Worst};

pub const IDENTITIES: &[Identity] = &[
    Identity {
        id: "4.1-kl",
        equation: "KL(N_q||N_p) = integral of q ln(q/p)",
        source: "Ho 2020, eq. 5",
        relative_to: "the sum of the sizes of entropy and cross entropy",
        tolerance: 1e-12,
        because: "the trapezoid rule is exact to rounding for Gaussians; 801 terms",
        cost: 1,
        check: divergence,
    },
    Identity {
        id: "4.1-prior",
        equation: "L_T = KL(q(x_T|x_0) || N(0, I))",
        source: "Ho 2020, eq. 5",
        relative_to: "the variances, the squares and the logarithms that it is made of",
        tolerance: 1e-13,
        because: "a few operations on numbers near 1",
        cost: 1,
        check: prior,
    },
    Identity {
        id: "4.1-telescope",
        equation: "log q(x_1:T|x_0)/p(x_0:T) = terms of L_T, L_(t-1), L_0",
        source: "Sohl-Dickstein 2015, B.3",
        relative_to: "sum over the path of 1 + squares over variances",
        tolerance: 1e-14,
        because: "rounding of up to 60 steps; a model that is wrong on purpose",
        cost: 2,
        check: telescope,
    },
    Identity {
        id: "4.1-closes",
        equation: "exact reversal: log q(x_1:T|x_0)/p(x_0:T) = -log p(x_0)",
        source: "Ho 2020, sec. 3.2",
        relative_to: "as 4.1-telescope",
        tolerance: 1e-14,
        because: "as 4.1-telescope",
        cost: 2,
        check: closes,
    },
    Identity {
        id: "4.1-bound",
        equation: "L_T + sum L_(t-1) + L_0 >= -log p_theta(x_0)",
        source: "Ho 2020, eq. 3",
        relative_to: "bound and likelihood; the residual is how far the bound lies below",
        tolerance: 1e-12,
        because: "expectations are exact: two-point Gauss-Hermite on quadratics, a linear chain for p_theta",
        cost: 2,
        check: upper_bound,
    },
    Identity {
        id: "4.1-decoder",
        equation: "sum over 256 bins of P(x_0 = i|x_1) = 1",
        source: "Ho 2020, eq. 13",
        relative_to: "1",
        tolerance: 1e-10,
        because: "256 exponentials of logarithms up to 1e5, which matter where they are small",
        cost: 4,
        check: decoder,
    },
    Identity {
        id: "4.1-ode",
        equation: "log p(x_0) of the probability-flow ODE = the mixture's",
        source: "Song 2021, eq. 39",
        relative_to: "1 + |log p(x_0)|",
        tolerance: 1e-4,
        because: "Runge-Kutta, 300 steps of 0.07 in ln sigma: the error falls as their fourth power",
        cost: 40,
        check: ode,
    },
    Identity {
        id: "4.2-forms",
        equation: "|mu~-mu|^2/2s^2 = w |x_0-x_0^|^2 = w' |eps-eps^|^2 = ..",
        source: "Ho 2020, eqs. 8, 12",
        relative_to: "the term",
        tolerance: 1e-11,
        because: "rounding of products of up to 1000 factors, squared",
        cost: 1,
        check: forms,
    },
];

fn divergence(draw: &mut Draw) -> Result<f64> {
    let (mean_q, mean_p) = (draw.normal(), draw.normal());
    let (var_q, var_p) = (draw.log_uniform(0.05, 5.0), draw.log_uniform(0.05, 5.0));
    let q = |x: f64| reference::log_normal(x, mean_q, var_q);
    let p = |x: f64| reference::log_normal(x, mean_p, var_p);
    let of = |f: &dyn Fn(f64) -> f64| reference::integral(mean_q, 12.0 * var_q.sqrt(), |x| q(x).exp() * f(x));
    let (entropy, cross) = (of(&q), of(&p));
    let mut worst = Worst::default();
    let found = normal_kl(mean_q, var_q, mean_p, var_p)?;
    worst.see(found, entropy - cross, entropy.abs() + cross.abs());
    worst.holds(found >= 0.0);
    Ok(worst.0)
}

fn prior(draw: &mut Draw) -> Result<f64> {
    let schedule = draw.schedule(1, 1000)?;
    let steps = schedule.steps();
    let dims = draw.whole(1, 6);
    let x0: Vec<f64> = draw.normals(dims).into_iter().map(|v| 2.0 * v).collect();
    let (scale, variance) = reference::steps(&schedule, 0, steps);
    let mut expected = 0.0;
    for x in &x0 {
        expected += 0.5 * (variance - 1.0 - variance.ln() + (scale * x).powi(2));
    }
    let squares: f64 = x0.iter().map(|x| x * x).sum();
    let size = dims as f64 * (1.0 + variance + variance.ln().abs()) + scale * scale * squares;
    let mut worst = Worst::default();
    worst.see(prior_kl(schedule.level(steps), squares, dims), expected, size);
    let bound = Bound::new(schedule, &ReverseVariance::default(), Decoder::Density)?;
    let batch = Array4::from_shape_vec((1, 1, 1, dims), x0)?;
    worst.see(bound.prior(batch.view())[0], expected, size);
    Ok(worst.0)
}

/// The states `x_1..x_T` of the path that the library walks with a source of noise, and the size of its log-ratio's terms.
fn path(schedule: &Schedule, x0: &[f64], noise: &dyn Noise) -> Result<(Vec<Vec<f64>>, f64)> {
    let mut x = x0.to_vec();
    let (mut states, mut size) = (Vec::new(), 0.0);
    for t in 1..=schedule.steps() {
        let (beta, mut z) = (schedule.beta(t), vec![0.0; x.len()]);
        noise.fill(Purpose::Step(t), 0, &mut z)?;
        let before = x.clone();
        x = x.iter().zip(&z).map(|(x, z)| (1.0 - beta).sqrt() * x + beta.sqrt() * z).collect();
        size += before.iter().chain(&x).map(|v| 1.0 + beta.ln().abs() + v * v / beta.min(1.0)).sum::<f64>();
        states.push(x.clone());
    }
    Ok((states, size))
}

fn telescope(draw: &mut Draw) -> Result<f64> {
    let (data, model) = (draw.mixture((1, 3))?, draw.schedule(1, 60)?);
    let schedule = model;
    let noise = SeededNoise::new(draw.seed());
    let x0 = data.data(draw);
    // Another mixture of the same shape: the identity holds for every model, the worst one included.
    let (mean, std) = (draw.normal(), draw.log_uniform(0.2, 2.0));
    let model = MixtureOracle::gaussian(data.shape, mean, std)?;
    let variance = match draw.whole(0, 3) {
        0 => ReverseVariance::Rule(Variance::FixedSmall),
        1 => ReverseVariance::Rule(Variance::FixedLarge),
        2 => ReverseVariance::Rule(Variance::Interpolated { fraction: draw.uniform(0.0, 1.0) }),
        _ => ReverseVariance::Table((0..schedule.steps()).map(|_| draw.log_uniform(1e-3, 1.0)).collect()),
    };
    let (_, size) = path(&schedule, &x0, &noise)?;
    let bound = Bound::new(schedule, &variance, Decoder::Density)?;
    let ratio = bound.log_ratio(&model, data.batch(&x0).view(), &noise)?[0];
    let mut worst = Worst::default();
    worst.see(ratio.direct, ratio.telescoped, size + ratio.direct.abs());
    Ok(worst.0)
}

fn closes(draw: &mut Draw) -> Result<f64> {
    let (schedule, dims) = (draw.schedule(1, 60)?, draw.whole(1, 4));
    let (mean, std) = (draw.normal(), draw.log_uniform(0.2, 2.0));
    let model = MixtureOracle::gaussian([1, 1, dims], mean, std)?;
    let steps = schedule.steps();
    let exact =
        (1..=steps).map(|t| exact_gaussian_variance(&schedule.posterior(t), schedule.level(t), std * std)).collect();
    let noise = SeededNoise::new(draw.seed());
    let x0: Vec<f64> = (0..dims).map(|_| mean + std * draw.normal()).collect();
    let (states, size) = path(&schedule, &x0, &noise)?;
    let batch = Array4::from_shape_vec((1, 1, 1, dims), x0.clone())?;
    let (scale, variance) = reference::steps(&schedule, 0, steps);
    let bound = Bound::new(schedule, &ReverseVariance::Table(exact), Decoder::Density)?;
    let ratio = bound.log_ratio(&model, batch.view(), &noise)?[0];
    // The reversal starts from q(x_T), not from N(0, I): the difference at the end of this path is put back.
    let correction: f64 = states[steps - 1]
        .iter()
        .map(|&x| {
            reference::log_normal(x, 0.0, 1.0)
                - reference::log_normal(x, scale * mean, scale * scale * std * std + variance)
        })
        .sum();
    let expected = -x0.iter().map(|&x| reference::log_normal(x, mean, std * std)).sum::<f64>();
    let mut worst = Worst::default();
    for found in [ratio.direct, ratio.telescoped] {
        worst.see(found + correction, expected, size + found.abs());
    }
    Ok(worst.0)
}

fn upper_bound(draw: &mut Draw) -> Result<f64> {
    let schedule = draw.schedule(1, 60)?;
    let steps = schedule.steps();
    let (mean, std) = (draw.normal(), draw.log_uniform(0.2, 2.0));
    let model = Conditioned::new(MixtureOracle::gaussian([1, 1, 1], mean, std)?, Condition::none(2));
    let exact =
        |t: usize| exact_gaussian_variance(&schedule.posterior(t), schedule.level(t), std * std) * draw_factor(t);
    let rule = match draw.whole(0, 2) {
        0 => ReverseVariance::Rule(Variance::FixedSmall),
        1 => ReverseVariance::Rule(Variance::FixedLarge),
        _ => ReverseVariance::Table((1..=steps).map(exact).collect()),
    };
    let bound = Bound::new(schedule.clone(), &rule, Decoder::Density)?;
    let x0 = mean + 1.5 * std * draw.normal();
    // The expectation of a quadratic in eps ~ N(0, 1) is its mean over -1 and 1.
    let batch = Array4::from_elem((2, 1, 1, 1), x0);
    let eps = Array4::from_shape_vec((2, 1, 1, 1), vec![1.0, -1.0])?;
    let mut total = bound.prior(batch.view())[0];
    for t in 1..=steps {
        total += bound.term(&model, batch.view(), eps.view(), t)?.iter().sum::<f64>() / 2.0;
    }
    // p_theta is a chain of linear Gaussians from N(0, 1) on: x_0^ = m + gain (x_t - alpha m), and mu~ of it.
    let (mut at, mut variance) = (0.0, 1.0);
    for t in (1..=steps).rev() {
        let (posterior, (alpha, noise)) = (schedule.posterior(t), reference::steps(&schedule, 0, t));
        let gain = alpha * std * std / (alpha * alpha * std * std + noise);
        let of_x = posterior.coef_xt() + posterior.coef_x0() * gain;
        at = of_x * at + posterior.coef_x0() * (mean - gain * alpha * mean);
        variance = of_x * of_x * variance + bound.variance(t).ok_or(ScheduleError::LearnedVariance)?;
    }
    let exact = -reference::log_normal(x0, at, variance);
    let mut worst = Worst::default();
    worst.see((exact - total).max(0.0), 0.0, 1.0 + exact.abs() + total.abs());
    worst.holds(total.is_finite());
    Ok(worst.0)
}

/// A factor of the exact variance that is above and below 1 by turns.
fn draw_factor(t: usize) -> f64 {
    if t.is_multiple_of(2) { 1.3 } else { 0.8 }
}

fn decoder(draw: &mut Draw) -> Result<f64> {
    let low = draw.uniform(-2.0, 0.0);
    let bins = Bins::new(low, low + draw.uniform(0.5, 3.0), 256)?;
    let (mean, std) = (draw.uniform(-3.0, 3.0), draw.log_uniform(1e-3, 3.0));
    let sum: f64 = (0..bins.count()).map(|i| bins.log_probability(i, mean, std).exp()).sum();
    let mut worst = Worst::default();
    worst.see(sum, 1.0, 1.0);
    // One bin by Simpson's rule with 200 intervals, where it is narrow enough for that.
    let (index, half) = (draw.whole(1, 254), 0.5 * bins.width());
    let (centre, std) = (bins.level(index), bins.width() * draw.log_uniform(1.0, 100.0));
    let mean = centre + std * draw.uniform(-3.0, 3.0);
    let density = |x: f64| reference::log_normal(x, mean, std * std).exp();
    let h = 2.0 * half / 200.0;
    let at = |i: i32| density(centre - half + f64::from(i) * h);
    let odd: f64 = (0..100).map(|i| at(2 * i + 1)).sum();
    let even: f64 = (1..100).map(|i| at(2 * i)).sum();
    let mass = h / 3.0 * (at(0) + 4.0 * odd + 2.0 * even + at(200));
    worst.see(bins.log_probability(index, mean, std).exp(), mass, 1.0);
    Ok(worst.0)
}

fn ode(draw: &mut Draw) -> Result<f64> {
    let mixture = draw.mixture_of((1, 3), (0.4, 1.5))?;
    let x0 = mixture.data(draw);
    let dims = mixture.parts.dims();
    let sigma = 1e-2;
    let ode = Ode { sigma_min: sigma, sigma_max: 1e7, steps: 300, trace: Trace::Exact, reach: 1e-4 };
    let label = mixture.some_label(draw);
    let found = ode.log_density(&mixture.oracle, mixture.batch(&x0).view(), &condition(label), 0, &mut |_| ())?[0];
    // The density of the data with a noise of sigma_min.
    let noise = (0..dims).map(|i| (0..dims).map(|j| if i == j { sigma * sigma } else { 0.0 }).collect()).collect();
    let expected = mixture.parts.log_density(&x0, &Noising { scale: 1.0, noise }, label);
    let mut worst = Worst::default();
    worst.see(found.log_density, expected, 1.0 + expected.abs());
    Ok(worst.0)
}

fn forms(draw: &mut Draw) -> Result<f64> {
    let schedule = draw.schedule(2, 1000)?;
    let t = draw.whole(2, schedule.steps());
    let (posterior, s2) = (schedule.posterior(t), draw.log_uniform(1e-4, 1.0));
    // An error of the estimate of x_0, and what it is as an error of every other prediction at the same x_t.
    let error = draw.normal();
    let ((of_s, before), (alpha, variance)) =
        (reference::steps(&schedule, 0, t - 1), reference::steps(&schedule, 0, t));
    let (beta, sigma) = (schedule.beta(t), variance.sqrt());
    let of_mean = of_s * beta / variance * error;
    let expected = of_mean * of_mean / (2.0 * s2);
    let mut worst = Worst::default();
    for (prediction, error) in [
        (Prediction::Mean, of_mean),
        (Prediction::X0, error),
        (Prediction::Eps, -alpha / sigma * error),
        (Prediction::Score, alpha / variance * error),
        (Prediction::V, -error / sigma),
    ] {
        worst.relative(posterior.kl_weight(prediction, s2)? * error * error, expected);
    }
    // The coefficients as FORMULAS 4.2 prints them.
    let squared = of_s * of_s * beta * beta / (variance * variance);
    worst.relative(squared / (2.0 * s2) * error * error, expected);
    worst.holds(before > 0.0);
    Ok(worst.0)
}
