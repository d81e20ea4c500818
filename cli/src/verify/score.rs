//! The score, Tweedie's formula and the oracles that they are stated for (FORMULAS 3).

use anyhow::Result;
use ndarray::{Array1, Array2, ArrayView1};
use tweedie_denoiser::{Component, Condition, MixtureOracle, tweedie};
use tweedie_schedule::prediction::convert;
use tweedie_schedule::{NoiseLevel, Prediction};

use super::draw::{Draw, condition, flat};
use super::reference::{self, Noising};
use super::{Identity, Worst};

pub const IDENTITIES: &[Identity] = &[
    Identity {
        id: "3.1-tweedie",
        equation: "x ~ N(mu, S): E[mu|x] = x + S grad log p(x)",
        source: "Efron 2011, eq. 1.4",
        relative_to: "the largest |x_i| plus the largest |(S grad log p)_i|",
        tolerance: 1e-12,
        because: "eps times the condition of the covariances, up to 1e3",
        cost: 1,
        check: tweedie_formula,
    },
    Identity {
        id: "3.2-mean",
        equation: "E[x_0|x_t] = (x_t + (1-abar_t) grad log p_t)/sqrt(abar_t)",
        source: "Efron 2011; Song 2021",
        relative_to: "the largest |x_t| plus the largest |sigma^2 score|, over alpha",
        tolerance: 1e-10,
        because: "eps times the log-densities that weigh the components, up to 1e4",
        cost: 1,
        check: posterior_mean,
    },
    Identity {
        id: "3.2-eps",
        equation: "E[eps|x_t] = -sqrt(1-abar_t) grad log p_t(x_t)",
        source: "Song 2021",
        relative_to: "sum of the sizes of x_t/sigma and alpha E[x_0]/sigma",
        tolerance: 1e-12,
        because: "as 3.2-mean",
        cost: 1,
        check: expected_noise,
    },
    Identity {
        id: "3.2-gradient",
        equation: "score = d log p_t / dx by finite differences",
        source: "Song 2021",
        relative_to: "the largest |score_i| plus 1/sigma_min of the noised data",
        tolerance: 1e-8,
        because: "h = 1e-3 standard deviations: error h^4 = 1e-12, rounding eps |log p|/h = 1e-11",
        cost: 1,
        check: score_gradient,
    },
    Identity {
        id: "3.2-oracle",
        equation: "log p_t and E[x_0|x_t] of a mixture, by elimination",
        source: "Bishop 2006, eq. 2.81",
        relative_to: "1 + |log p_t|; the largest number of mean, estimate and data",
        tolerance: 1e-12,
        because: "eps times the condition of alpha^2 S + sigma^2 I, and a sum over components",
        cost: 1,
        check: elimination,
    },
    Identity {
        id: "3.2-bayes",
        equation: "p(x_0|x_t) = q(x_t|x_0) p(x_0) / p_t(x_t)",
        source: "Bayes",
        relative_to: "the sum of the sizes of the logarithms",
        tolerance: 1e-12,
        because: "as 3.2-oracle, with the squares of offsets over small variances",
        cost: 1,
        check: posterior_density,
    },
];

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |largest, v| largest.max(v.abs()))
}

fn tweedie_formula(draw: &mut Draw) -> Result<f64> {
    let mixture = draw.mixture((1, 4))?;
    let (dims, parts) = (mixture.parts.dims(), &mixture.parts);
    let scale = draw.log_uniform(0.1, 2.0);
    let noise = draw.covariance(dims, scale);
    // p(x) is the mixture of the m_k with covariances S_k + S.
    let component = |k: usize| {
        let (weight, mean, own) = parts.component(k);
        let sum = own.iter().zip(&noise).map(|(a, b)| a.iter().zip(b).map(|(a, b)| a + b).collect()).collect();
        let sum: Vec<Vec<f64>> = sum;
        Component::new(weight, mean.to_vec(), sum, None)
    };
    let blurred = MixtureOracle::new(mixture.shape, (0..parts.len()).map(component).collect())?;
    let x = flat(&blurred.sample(NoiseLevel::CLEAN, &condition(None), draw.seed())?.x);
    let score = flat(&blurred.score(mixture.batch(&x).view(), NoiseLevel::CLEAN, &Condition::none(1))?);
    let covariance = Array2::from_shape_fn((dims, dims), |(i, j)| noise[i][j]);
    let found = tweedie(ArrayView1::from(&x), covariance.view(), ArrayView1::from(&score))?;
    let step = covariance.dot(&Array1::from(score)).to_vec();
    let expected = parts.mean(&x, &Noising { scale: 1.0, noise }, None);
    let mut worst = Worst::default();
    for (found, expected) in found.iter().zip(&expected) {
        worst.see(*found, *expected, largest(&x) + largest(&step));
    }
    Ok(worst.0)
}

fn posterior_mean(draw: &mut Draw) -> Result<f64> {
    let (mixture, level) = (draw.mixture((1, 4))?, draw.level()?);
    let (label, x) = (mixture.some_label(draw), mixture.state(level, draw));
    let (x0, score) = (mixture.denoise(&x, level, label)?, mixture.score(&x, level, label)?);
    let (alpha, variance) = (level.alpha(), level.sigma() * level.sigma());
    let to_x0 = convert(Prediction::Score, Prediction::X0, level, None)?;
    let size = (largest(&x) + variance * largest(&score)) / alpha;
    let mut worst = Worst::default();
    for i in 0..x.len() {
        worst.see(x0[i], (x[i] + variance * score[i]) / alpha, size);
        worst.see(to_x0.apply(x[i], score[i]), x0[i], size);
    }
    Ok(worst.0)
}

fn expected_noise(draw: &mut Draw) -> Result<f64> {
    let (mixture, level) = (draw.mixture((1, 4))?, draw.level()?);
    let (label, x) = (mixture.some_label(draw), mixture.state(level, draw));
    let score = mixture.score(&x, level, label)?;
    let posterior = mixture.oracle.posterior(mixture.batch(&x).view(), level, &condition(label))?;
    let mean = posterior[0].mean();
    let (alpha, sigma) = (level.alpha(), level.sigma());
    let (of_x0, of_score) = (
        convert(Prediction::X0, Prediction::Eps, level, None)?,
        convert(Prediction::Score, Prediction::Eps, level, None)?,
    );
    let size = (largest(&x) + alpha * largest(&mean.to_vec())) / sigma;
    let mut worst = Worst::default();
    for i in 0..x.len() {
        worst.see((x[i] - alpha * mean[i]) / sigma, -sigma * score[i], size);
        worst.see(of_x0.apply(x[i], mean[i]), -sigma * score[i], size);
        worst.see(of_score.apply(x[i], score[i]), -sigma * score[i], size);
    }
    Ok(worst.0)
}

/// A length over which the density at a level changes: a standard deviation of the narrowest component's narrowest direction is
/// not less than this.
pub fn narrowest(mixture: &super::draw::Mixture, level: NoiseLevel) -> f64 {
    let smallest = (0..mixture.parts.len())
        .map(|k| {
            let covariance = mixture.parts.component(k).2;
            // The least eigenvalue is at least the determinant over the product of the largest ones; the entries that were
            // added to the diagonal bound it from below more simply.
            let trace: f64 = (0..covariance.len()).map(|i| covariance[i][i]).sum();
            0.02 * trace / covariance.len() as f64
        })
        .fold(f64::INFINITY, f64::min);
    (level.abar() * smallest + level.sigma() * level.sigma()).sqrt()
}

fn score_gradient(draw: &mut Draw) -> Result<f64> {
    let (mixture, level) = (draw.mixture((1, 4))?, draw.level()?);
    let (label, x) = (mixture.some_label(draw), mixture.state(level, draw));
    let score = mixture.score(&x, level, label)?;
    let length = narrowest(&mixture, level);
    let found = reference::gradient(&x, 1e-3 * length, |x| mixture.log_density(x, level, label))?;
    let size = largest(&score) + 1.0 / length;
    let mut worst = Worst::default();
    for (found, expected) in score.iter().zip(&found) {
        worst.see(*found, *expected, size);
    }
    Ok(worst.0)
}

fn elimination(draw: &mut Draw) -> Result<f64> {
    let (mixture, level) = (draw.mixture((1, 4))?, draw.level()?);
    let (label, x) = (mixture.some_label(draw), mixture.state(level, draw));
    let by = Noising::level(level, mixture.parts.dims());
    let mut worst = Worst::default();
    let log = mixture.parts.log_density(&x, &by, label);
    worst.see(mixture.log_density(&x, level, label)?, log, 1.0 + log.abs());
    let (found, expected) = (mixture.denoise(&x, level, label)?, mixture.parts.mean(&x, &by, label));
    for i in 0..x.len() {
        worst.see(found[i], expected[i], 1.0 + largest(&expected));
    }
    let label = draw.whole(0, mixture.oracle.classes() - 1);
    let log = mixture.parts.log_label(&x, &by, label);
    let found = mixture.oracle.log_label_probability(mixture.batch(&x).view(), level, &condition(Some(label)))?[0];
    worst.see(found, log, 1.0 + mixture.parts.log_density(&x, &by, Some(label)).abs());
    Ok(worst.0)
}

fn posterior_density(draw: &mut Draw) -> Result<f64> {
    let (mixture, level) = (draw.mixture((1, 4))?, draw.level()?);
    let x0 = mixture.data(draw);
    let eps = draw.normals(x0.len());
    let (alpha, sigma) = (level.alpha(), level.sigma());
    let x: Vec<f64> = x0.iter().zip(&eps).map(|(x0, eps)| alpha * x0 + sigma * eps).collect();
    let posterior = &mixture.oracle.posterior(mixture.batch(&x).view(), level, &condition(None))?[0];
    let found = posterior.log_density(mixture.batch(&x0).view(), NoiseLevel::CLEAN, &condition(None))?[0];
    let likelihood: f64 = x.iter().zip(&x0).map(|(x, x0)| reference::log_normal(*x, alpha * x0, sigma * sigma)).sum();
    let dims = x.len();
    let clean = Noising::level(NoiseLevel::CLEAN, dims);
    let prior = mixture.parts.log_density(&x0, &clean, None);
    let evidence = mixture.parts.log_density(&x, &Noising::level(level, dims), None);
    // x_t is rounded relative to itself, and the likelihood sees that divided by sigma.
    let rounding = largest(&x) / sigma * largest(&eps);
    let mut worst = Worst::default();
    let size = likelihood.abs() + prior.abs() + evidence.abs() + rounding + 1.0;
    worst.see(found, likelihood + prior - evidence, size);
    Ok(worst.0)
}
