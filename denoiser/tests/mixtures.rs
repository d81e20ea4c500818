//! FORMULAS 3, 5.2 and 5.6 on random mixtures with isotropic, diagonal and full covariances, in up to six dimensions.

mod common;

use common::{
    Case, all_close, any_case, any_level, covariance_of, flat, gradient, log_mixture, log_normal, mean_of, solve,
    two_samples,
};
use ndarray::{Array1, Array2, Array4, Axis, array};
use proptest::prelude::*;
use tweedie_denoiser::{
    Component, Condition, ConditionalDenoiser, DenoiserError, MixtureOracle, Noise, Purpose, SeededNoise, Spread,
    log_sum_exp, tweedie as tweedie_formula,
};
use tweedie_schedule::forward::q_between;
use tweedie_schedule::{NoiseLevel, Prediction, prediction};

/// One flat sample as a batch of the shape of another.
fn batch(like: &Array4<f64>, values: Array1<f64>) -> Array4<f64> {
    Array4::from_shape_vec(like.dim(), values.to_vec()).unwrap()
}

fn isotropic(size: usize, variance: f64) -> Array2<f64> {
    Array2::eye(size) * variance
}

fn close(found: f64, expected: f64, tolerance: f64) -> Result<(), TestCaseError> {
    let error = (found - expected).abs();
    prop_assert!(error <= tolerance * (1.0 + expected.abs()), "{} instead of {}, off by {:e}", found, expected, error);
    Ok(())
}

proptest! {
    /// ln p_t is the logarithm of the weighted sum of N(x; alpha m, alpha^2 Sigma + sigma^2 I), by Cholesky.
    #[test]
    fn density_is_the_sum_of_normals(case in any_case(0.0), level in any_level(-6.0..5.0)) {
        let x = flat(&case.state, 0);
        let noise = isotropic(x.len(), level.sigma().powi(2));
        let (expected, _) = log_mixture(&case.chosen(), x.view(), level.alpha(), &noise);
        let found = case.oracle.log_density(case.state.view(), level, &case.condition()).unwrap();
        prop_assert_eq!(found.len(), 1);
        close(found[0], expected, 1e-11)?;
    }

    /// 3.2 (Tweedie): alpha E[x_0 | x_t] = x_t + sigma^2 score and E[eps | x_t] = -sigma score, with the score in closed form.
    #[test]
    fn tweedie_for_mixtures(case in any_case(0.0), level in any_level(-8.0..8.0)) {
        let condition = case.condition();
        let x0 = case.oracle.denoise_with(case.state.view(), level, &condition).unwrap();
        let score = case.oracle.score(case.state.view(), level, &condition).unwrap();
        all_close(&(&x0 * level.alpha()), &(&case.state + &(&score * level.sigma().powi(2))), 1e-12, "x0")?;
        let to_eps = prediction::convert(Prediction::X0, Prediction::Eps, level, None).unwrap();
        let to_score = prediction::convert(Prediction::X0, Prediction::Score, level, None).unwrap();
        for ((&x, &x0), &score) in case.state.iter().zip(&x0).zip(&score) {
            prop_assert!((to_eps.apply(x, x0) + level.sigma() * score).abs() * level.sigma() < 1e-10);
            prop_assert!((to_score.apply(x, x0) - score).abs() * level.sigma().powi(2) < 1e-10);
        }
    }

    /// 3.1 with a noise of any covariance S: mu from a mixture, x ~ N(mu, S), E[mu | x] by Bayes' rule component by component.
    #[test]
    fn tweedie_with_any_covariance(case in any_case(0.0), noise in prop::collection::vec(-1.0..1.0_f64, 36)) {
        let x = flat(&case.state, 0);
        let size = x.len();
        let half = Array2::from_shape_fn((size, 6), |(i, j)| noise[6 * i + j]);
        let s = half.dot(&half.t()) + isotropic(size, 0.02);
        let all: Vec<&Component> = case.components.iter().collect();
        let (total, terms) = log_mixture(&all, x.view(), 1.0, &s);
        let mut expected = Array1::zeros(size);
        for (component, term) in all.iter().zip(terms) {
            let (m, sigma) = (mean_of(component, size), covariance_of(component, size));
            expected = expected + (&m + &sigma.dot(&solve(&(&sigma + &s), &(&x - &m)))) * (term - total).exp();
        }
        // The density of x is a mixture with the covariances Sigma_k + S.
        let observed: Vec<Component> = all
            .iter()
            .map(|c| {
                let covariance: Array2<f64> = covariance_of(c, size) + &s;
                let rows: Vec<Vec<f64>> = covariance.outer_iter().map(|row| row.to_vec()).collect();
                Component { spread: rows.into(), ..(*c).clone() }
            })
            .collect();
        let oracle = MixtureOracle::new(case.oracle.shape(), observed).unwrap();
        let score = oracle.score(case.state.view(), NoiseLevel::CLEAN, &Condition::none(1)).unwrap();
        let found = tweedie_formula(x.view(), s.view(), flat(&score, 0).view()).unwrap();
        all_close(&batch(&case.state, found), &batch(&case.state, expected), 1e-11, "E[mu | x]")?;
    }

    /// The score is the gradient of ln p_t, by central differences.
    #[test]
    fn score_is_the_gradient(case in any_case(0.0), level in any_level(-6.0..2.0)) {
        let condition = case.condition();
        let log = |x: &Array4<f64>| case.oracle.log_density(x.view(), level, &condition).unwrap()[0];
        let expected = gradient(&case.state, 1e-3 * level.sigma(), log);
        let score = case.oracle.score(case.state.view(), level, &condition).unwrap();
        all_close(&score, &expected, 1e-6, "score")?;
    }

    /// Bayes' rule: ln p(x_0 | x_t) = ln p(x_t | x_0) + ln p(x_0) - ln p_t(x_t) at any x_0; its mean is the estimate, and its
    /// covariance sigma^2 / alpha times the Jacobian of the estimate (Tweedie's formula of second order).
    #[test]
    fn posterior_over_data_is_bayes_rule(case in any_case(0.02), level in any_level(-5.0..3.0)) {
        let condition = case.condition();
        let posterior = case.oracle.posterior(case.state.view(), level, &condition).unwrap();
        prop_assert_eq!(posterior.len(), 1);
        let posterior = &posterior[0];
        let (xt, x0) = (flat(&case.state, 0), flat(&case.other, 0));
        let likelihood = log_normal(xt.view(), &(&x0 * level.alpha()), &isotropic(x0.len(), level.sigma().powi(2)));
        let prior = case.oracle.log_density(case.other.view(), NoiseLevel::CLEAN, &condition).unwrap()[0];
        let evidence = case.oracle.log_density(case.state.view(), level, &condition).unwrap()[0];
        let found = posterior.log_density(case.other.view(), NoiseLevel::CLEAN, &Condition::none(1)).unwrap()[0];
        let size = 1.0 + likelihood.abs() + prior.abs() + evidence.abs();
        let error = (found - (likelihood + prior - evidence)).abs();
        prop_assert!(error < 1e-11 * size, "off by {:e}", error);

        let estimate = case.oracle.denoise_with(case.state.view(), level, &condition).unwrap();
        all_close(&batch(&case.state, posterior.mean()), &estimate, 1e-12, "mean")?;
        let covariance = posterior.covariance().unwrap();
        for (i, row) in covariance.outer_iter().enumerate() {
            let coordinate = |x: &Array4<f64>| {
                flat(&case.oracle.denoise_with(x.view(), level, &condition).unwrap(), 0)[i]
            };
            let jacobian = gradient(&case.state, 1e-3 * level.sigma(), coordinate);
            let expected = &jacobian * (level.sigma().powi(2) / level.alpha());
            all_close(&batch(&case.state, row.to_owned()), &expected, 1e-5, "covariance")?;
        }
        let labels: Vec<_> = posterior.components().iter().map(|c| c.label()).collect();
        prop_assert_eq!(labels, case.chosen().iter().map(|c| c.label).collect::<Vec<_>>());
    }

    /// p(y | x_t) by Bayes' rule; over all labels, and what belongs to none, it sums to 1; the posterior over the data has it
    /// as the weight of the label's components.
    #[test]
    fn label_probabilities_sum_to_1(case in any_case(0.0), level in any_level(-6.0..5.0)) {
        let x = flat(&case.state, 0);
        let noise = isotropic(x.len(), level.sigma().powi(2));
        let all: Vec<&Component> = case.components.iter().collect();
        let (total, terms) = log_mixture(&all, x.view(), level.alpha(), &noise);
        let posterior = &case.oracle.posterior(case.state.view(), level, &Condition::none(1)).unwrap()[0];
        let mut sum = 0.0;
        for label in [None, Some(0), Some(1), Some(2)] {
            let of_label: Vec<f64> =
                all.iter().zip(&terms).filter(|(c, _)| c.label == label).map(|(_, term)| term - total).collect();
            let expected = log_sum_exp(of_label.into_iter());
            let condition = Condition::labels(vec![label]);
            let found = case.oracle.log_label_probability(case.state.view(), level, &condition);
            if label.is_none() {
                prop_assert_eq!(found.unwrap(), vec![0.0]);
                sum += expected.exp();
                continue;
            }
            if expected.is_infinite() {
                let refused = matches!(found, Err(DenoiserError::Condition { .. }));
                prop_assert!(refused);
                continue;
            }
            let found = found.unwrap()[0];
            close(found, expected, 1e-10)?;
            sum += found.exp();
            let weights = posterior.components().iter().filter(|c| c.label() == label).map(|c| c.log_weight());
            close(log_sum_exp(weights.collect::<Vec<_>>().into_iter()), found, 1e-10)?;
        }
        close(sum, 1.0, 1e-10)?;
    }

    /// 5.2: the gradient of ln p(y | x_t) is score(x_t | y) - score(x_t), and that of the probability by differences.
    #[test]
    fn label_gradient_is_the_gradient(case in any_case(0.0), level in any_level(-6.0..2.0)) {
        let condition = case.condition();
        let found = case.oracle.label_gradient(case.state.view(), level, &condition).unwrap();
        let log = |x: &Array4<f64>| case.oracle.log_label_probability(x.view(), level, &condition).unwrap()[0];
        all_close(&found, &gradient(&case.state, 1e-3 * level.sigma(), log), 1e-6, "gradient")?;
        let score = |condition: &Condition| case.oracle.score(case.state.view(), level, condition).unwrap();
        all_close(&found, &(score(&condition) - score(&Condition::none(1))), 1e-13, "difference of scores")?;
        if case.label.is_none() {
            prop_assert!(found.iter().all(|&g| g == 0.0));
        }
    }

    /// The noised mixture has the density p_t, the moments alpha m and alpha^2 C + sigma^2 I, and noising it further with
    /// q(x_t | x_s) is noising the data to t.
    #[test]
    fn noised_mixture_is_the_marginal(case in any_case(0.0), s in any_level(-3.0..6.0), gap in 0.1..4.0_f64) {
        let t = NoiseLevel::from_log_snr(s.log_snr() - gap).unwrap();
        let (at_s, at_t) = (case.oracle.noised(s), case.oracle.noised(t));
        let none = Condition::none(1);
        let direct = case.oracle.log_density(case.state.view(), t, &none).unwrap()[0];
        close(at_t.log_density(case.state.view(), NoiseLevel::CLEAN, &none).unwrap()[0], direct, 1e-12)?;
        let size = flat(&case.state, 0).len();
        let step = q_between(s, t).unwrap();
        for ((at_s, at_t), data) in at_s.components().iter().zip(at_t.components()).zip(case.oracle.components()) {
            prop_assert!((&at_s.mean() * step.scale - at_t.mean()).iter().all(|e| e.abs() < 1e-12));
            let moved = at_s.covariance() * step.scale.powi(2) + isotropic(size, step.variance);
            prop_assert!((moved - at_t.covariance()).iter().all(|e| e.abs() < 1e-12));
            prop_assert_eq!((at_t.weight(), at_t.label()), (data.weight(), data.label()));
        }
        prop_assert!((case.oracle.mean() * t.alpha() - at_t.mean()).iter().all(|e| e.abs() < 1e-12));
        let expected = case.oracle.covariance().unwrap() * t.abar() + isotropic(size, t.sigma().powi(2));
        prop_assert!((expected - at_t.covariance().unwrap()).iter().all(|e| e.abs() < 1e-12));
    }

    /// The moments of a mixture by their definitions, of the whole and of a label.
    #[test]
    fn moments_of_a_mixture(case in any_case(0.0)) {
        let size = flat(&case.state, 0).len();
        let oracle = case.label.map_or(case.oracle.clone(), |label| case.oracle.of_label(label).unwrap());
        let chosen = case.chosen();
        let total: f64 = chosen.iter().map(|c| c.weight).sum();
        let mut mean = Array1::<f64>::zeros(size);
        let mut second = Array2::<f64>::zeros((size, size));
        for c in &chosen {
            let m = mean_of(c, size);
            let column = m.clone().insert_axis(Axis(1));
            mean = mean + &m * (c.weight / total);
            second = second + (covariance_of(c, size) + column.dot(&column.t())) * (c.weight / total);
        }
        let column = mean.clone().insert_axis(Axis(1));
        prop_assert!((oracle.mean() - &mean).iter().all(|e| e.abs() < 1e-13));
        prop_assert!((oracle.covariance().unwrap() - (second - column.dot(&column.t()))).iter().all(|e| e.abs() < 1e-12));
        prop_assert_eq!(oracle.components().len(), chosen.len());
        close(oracle.components().iter().map(|c| c.weight()).sum(), 1.0, 1e-14)?;
    }

    /// A variance-exploding state y = x_0 + s eps is the state alpha y: the same estimate, and density and score by the chain
    /// rule.
    #[test]
    fn edm_states_are_scaled_states(case in any_case(0.0), sigma in 0.1..20.0_f64) {
        let y = flat(&case.state, 0);
        let level = NoiseLevel::from_edm_sigma(sigma).unwrap();
        let condition = case.condition();
        let state = &case.state * level.alpha();
        let (expected, _) = log_mixture(&case.chosen(), y.view(), 1.0, &isotropic(y.len(), sigma * sigma));
        let found = case.oracle.log_density(state.view(), level, &condition).unwrap()[0];
        close(found + y.len() as f64 * level.alpha().ln(), expected, 1e-11)?;
        let score = case.oracle.score(state.view(), level, &condition).unwrap() * level.alpha();
        let x0 = case.oracle.denoise_with(state.view(), level, &condition).unwrap();
        all_close(&x0, &(&case.state + &(score * (sigma * sigma))), 1e-11, "x0")?;
    }

    /// A standard deviation, a list of it and the covariance matrix are one Gaussian.
    #[test]
    fn spreads_agree(std in 0.1..2.0_f64, other in 0.1..2.0_f64, x in -3.0..3.0_f64, y in -3.0..3.0_f64, level in any_level(-5.0..5.0)) {
        let state = array![[[[x, y]]]];
        let none = Condition::none(1);
        let answers = |spread: Spread| {
            let oracle = MixtureOracle::gaussian([1, 1, 2], vec![0.3, -0.8], spread).unwrap();
            let density = oracle.log_density(state.view(), level, &none).unwrap()[0];
            let draw = oracle.sample(level, &none, 5).unwrap().x;
            let posterior = oracle.posterior(state.view(), level, &none).unwrap()[0].covariance().unwrap();
            (density, oracle.denoise_with(state.view(), level, &none).unwrap(), draw, posterior)
        };
        let matrix = |a: f64, b: f64| Spread::Covariance(vec![vec![a * a, 0.0], vec![0.0, b * b]]);
        for (one, same) in [
            (Spread::Std(std), Spread::Stds(vec![std, std])),
            (Spread::Std(std), matrix(std, std)),
            (Spread::Stds(vec![std, other]), matrix(std, other)),
        ] {
            let (one, same) = (answers(one), answers(same));
            close(one.0, same.0, 1e-13)?;
            all_close(&one.1, &same.1, 1e-13, "estimate")?;
            all_close(&one.2, &same.2, 1e-13, "draw")?;
            prop_assert!((one.3 - same.3).iter().all(|e| e.abs() < 1e-13));
        }
    }
}

/// Three components in three dimensions, one of them flat; labels 0, 0 and 1.
fn three() -> MixtureOracle {
    let flat = vec![vec![1.0, 0.5, 0.0], vec![0.5, 0.25, 0.0], vec![0.0, 0.0, 0.09]];
    let full = vec![vec![0.5, -0.2, 0.1], vec![-0.2, 0.4, 0.15], vec![0.1, 0.15, 0.3]];
    let components = vec![
        Component::new(1.0, vec![1.0, -1.0, 0.5], full, Some(0)),
        Component::new(2.0, vec![-1.5, 0.5, 0.0], vec![0.2, 0.8, 0.5], Some(0)),
        Component::new(1.5, vec![0.0, 2.0, -1.0], flat, Some(1)),
    ];
    MixtureOracle::new([3, 1, 1], components).unwrap()
}

/// The values of each coordinate and of two mixtures of them.
fn projections(x: &Array4<f64>) -> Vec<Vec<f64>> {
    let directions = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.6, -0.5, 0.4], [0.5, 0.5, -0.8]];
    let project = |d: [f64; 3]| x.outer_iter().map(|row| row.iter().zip(d).map(|(x, d)| x * d).sum()).collect();
    directions.into_iter().map(project).collect()
}

/// Draws have the weights, the mean and the covariance of the mixture, each within five standard errors (for one number a
/// false alarm of 6e-7; the seed is fixed), with and without noise and under a label.
#[test]
fn samples_have_the_moments_of_the_mixture() {
    let oracle = three();
    let n = 20_000;
    for (level, label) in [
        (NoiseLevel::CLEAN, None),
        (NoiseLevel::from_log_snr(0.5).unwrap(), None),
        (NoiseLevel::from_log_snr(1.0).unwrap(), Some(0)),
        (NoiseLevel::PURE_NOISE, Some(1)),
    ] {
        let draws = oracle.sample(level, &Condition::labels(vec![label; n]), 11).unwrap();
        let of = label.map_or(oracle.clone(), |label| oracle.of_label(label).unwrap()).noised(level);
        let (mean, covariance) = (of.mean(), of.covariance().unwrap());
        let column = |i: usize| draws.x.index_axis(Axis(1), i).iter().map(|x| x - mean[i]).collect::<Vec<f64>>();
        for i in 0..3 {
            let offset = column(i).iter().sum::<f64>() / n as f64;
            assert!(offset.abs() < 5.0 * (covariance[[i, i]] / n as f64).sqrt(), "mean {i} at {level:?}: {offset}");
            for j in 0..=i {
                let products: Vec<f64> = column(i).iter().zip(column(j)).map(|(a, b)| a * b).collect();
                let found = products.iter().sum::<f64>() / n as f64;
                let spread = products.iter().map(|p| (p - found).powi(2)).sum::<f64>() / n as f64;
                let error = (found - covariance[[i, j]]).abs();
                assert!(error < 5.0 * (spread / n as f64).sqrt(), "covariance {i} {j} at {level:?}: {found}");
            }
        }
        let total: f64 =
            oracle.components().iter().filter(|c| label.is_none() || c.label() == label).map(|c| c.weight()).sum();
        for (k, component) in oracle.components().iter().enumerate() {
            let chosen = label.is_none() || component.label() == label;
            let p = if chosen { component.weight() / total } else { 0.0 };
            let count = draws.components.iter().filter(|&&drawn| drawn == k).count();
            let error = (count as f64 / n as f64 - p).abs();
            assert!(error <= 5.0 * (p * (1.0 - p) / n as f64).sqrt(), "component {k}: {count} of {n}");
        }
        for (&k, &label) in draws.components.iter().zip(&draws.labels) {
            assert_eq!(label, oracle.components()[k].label());
        }
    }
}

/// Two ways to one distribution, by Kolmogorov and Smirnov's statistic on five projections with a false alarm of 1e-4 each
/// (5e-4 a pair; the seeds are fixed): noisy draws and noised draws, and the data and posterior draws given noisy draws. A
/// shift of a tenth of the width is found.
#[test]
fn samples_pass_a_two_sample_test() {
    let oracle = three();
    let n = 4000;
    let all = Condition::none(n);
    let level = NoiseLevel::from_log_snr(0.8).unwrap();
    let check = |a: &Array4<f64>, b: &Array4<f64>| -> Vec<bool> {
        let pairs = projections(a).into_iter().zip(projections(b));
        pairs.map(|(a, b)| two_samples(a, b, 1e-4)).map(|(found, bound)| found < bound).collect()
    };
    let clean = oracle.sample(NoiseLevel::CLEAN, &all, 1).unwrap().x;
    let noisy = oracle.sample(level, &all, 2).unwrap().x;
    let mut noised = &clean * level.alpha();
    for (i, mut row) in noised.outer_iter_mut().enumerate() {
        let mut eps = [0.0; 3];
        SeededNoise::new(3).fill(Purpose::Initial, i, &mut eps).unwrap();
        row.iter_mut().zip(eps).for_each(|(x, eps)| *x += level.sigma() * eps);
    }
    assert_eq!(check(&noisy, &noised), [true; 5]);

    // x_t ~ p_t and then x_0 ~ p(x_0 | x_t) is x_0 ~ p_0.
    let mut again = noisy.clone();
    let posteriors = oracle.posterior(noisy.view(), level, &all).unwrap();
    for (i, (mut row, posterior)) in again.outer_iter_mut().zip(posteriors).enumerate() {
        let draw = posterior.sample(NoiseLevel::CLEAN, &Condition::none(1), 100 + i as u64).unwrap().x;
        row.assign(&draw.index_axis(Axis(0), 0));
    }
    assert_eq!(check(&clean, &again), [true; 5]);
    assert_ne!(check(&clean, &(again + 0.1)), [true; 5]);
    assert_ne!(check(&noisy, &(noised * 1.1)), [true; 5]);
}

/// A sample is a function of the seed, its index and its label.
#[test]
fn draws_are_keyed() {
    let oracle = three();
    let level = NoiseLevel::from_log_snr(0.0).unwrap();
    let draw = |labels: Vec<Option<usize>>, seed| oracle.sample(level, &Condition::labels(labels), seed).unwrap();
    let few = draw(vec![Some(1), None], 7);
    let many = draw(vec![Some(1), None, Some(0)], 7);
    assert_eq!(few.x, many.x.slice_axis(Axis(0), (0..2).into()));
    assert_eq!((few.labels[0], many.labels[2]), (Some(1), Some(0)));
    assert_ne!(draw(vec![Some(1), None], 8).x, few.x);
    assert_ne!(flat(&many.x, 0), flat(&many.x, 1));
    assert!(matches!(oracle.sample(level, &Condition::labels(vec![Some(9)]), 0), Err(DenoiserError::Condition { .. })));
}

/// Without noise and at a point the posterior is what it has to be: the state itself, and the prior's own points.
#[test]
fn posteriors_at_the_ends() {
    let case = |oracle: &MixtureOracle, x: &Array4<f64>, level| {
        oracle.posterior(x.view(), level, &Condition::none(1)).map(|mut all| all.remove(0))
    };
    let oracle = MixtureOracle::gaussian([1, 1, 2], vec![1.0, 2.0], vec![0.5, 0.7]).unwrap();
    let x = array![[[[0.3, -0.4]]]];
    let clean = case(&oracle, &x, NoiseLevel::CLEAN).unwrap();
    assert!((clean.mean() - array![0.3, -0.4]).iter().all(|e| e.abs() < 1e-15));
    assert_eq!(clean.covariance().unwrap(), Array2::<f64>::zeros((2, 2)));
    let prior = case(&oracle, &x, NoiseLevel::PURE_NOISE).unwrap();
    assert_eq!((prior.mean(), prior.covariance().unwrap()), (oracle.mean(), oracle.covariance().unwrap()));
    let points = vec![Component::new(1.0, 1.0, 0.0, None), Component::new(3.0, -1.0, 0.0, None)];
    let points = MixtureOracle::new([1, 1, 2], points).unwrap();
    assert!(matches!(case(&points, &x, NoiseLevel::CLEAN), Err(DenoiserError::Oracle { .. })));
    let level = NoiseLevel::from_log_snr(0.0).unwrap();
    let posterior = case(&points, &x, level).unwrap();
    let draws = posterior.sample(NoiseLevel::CLEAN, &Condition::none(50), 3).unwrap().x;
    assert!(draws.iter().all(|x| x.abs() == 1.0));
    // A label whose probability underflows still has its own posterior and its own draws.
    let far = vec![Component::new(1.0, 1e3, 0.1, Some(0)), Component::new(1.0, -1e3, 0.1, Some(1))];
    let far = MixtureOracle::new([1, 1, 2], far).unwrap();
    let near_0 = array![[[[1e3, 1e3]]]] * level.alpha();
    let posterior = case(&far, &near_0, level).unwrap();
    assert_eq!(posterior.components()[1].weight(), 0.0);
    let draw = posterior.sample(NoiseLevel::CLEAN, &Condition::labels(vec![Some(1)]), 3).unwrap();
    assert_eq!(draw.labels, [Some(1)]);
    let density = posterior.log_density(draw.x.view(), NoiseLevel::CLEAN, &Condition::labels(vec![Some(1)])).unwrap();
    assert!(density[0].is_finite(), "{density:?}");
}

#[test]
fn covariances_are_checked() {
    let refused = |spread: Spread, part: &str| {
        let error = MixtureOracle::gaussian([1, 1, 2], 0.0, spread).unwrap_err();
        assert!(matches!(error, DenoiserError::Oracle { .. }), "{error}");
        assert!(error.to_string().contains(part), "{error}");
    };
    let rows = |a, b, c, d| Spread::Covariance(vec![vec![a, b], vec![c, d]]);
    refused(rows(1.0, 0.5, 0.4, 1.0), "symmetric");
    refused(rows(1.0, 0.5, 0.5 + 1e-11, 1.0), "symmetric");
    refused(rows(1.0, 2.0, 2.0, 1.0), "the eigenvalue -1e0");
    refused(rows(-1.0, 0.0, 0.0, -1.0), "positive semidefinite");
    refused(rows(1.0, f64::NAN, f64::NAN, 1.0), "finite");
    refused(rows(1.5e308, 1e308, 1e308, 1.5e308), "eigenvalues can be computed");
    refused(Spread::Covariance(vec![vec![1.0, 0.0]]), "2 rows of 2 numbers, found 1 rows");
    refused(Spread::Covariance(vec![vec![1.0, 0.0], vec![0.0]]), "1 numbers in row 1");
    refused(Spread::Stds(vec![1.0]), "2 numbers");
    refused(Spread::Stds(vec![1.0, -1.0]), "not negative");
    refused(Spread::Stds(vec![1.0, f64::NAN]), "not negative");
    // Rounding is forgiven: the last digit of one of a pair, and a slightly negative eigenvalue, which counts as 0.
    for spread in [rows(1.0, 0.5, 0.5 + 1e-13, 1.0), rows(1.0, 1.0 + 1e-12, 1.0 + 1e-12, 1.0)] {
        assert!(MixtureOracle::gaussian([1, 1, 2], 0.0, spread).is_ok());
    }
    let singular = MixtureOracle::gaussian([1, 1, 2], 0.0, rows(1.0, 1.0, 1.0, 1.0)).unwrap();
    let x = array![[[[0.5, 0.5]]]];
    let none = Condition::none(1);
    assert!(matches!(singular.log_density(x.view(), NoiseLevel::CLEAN, &none), Err(DenoiserError::Oracle { .. })));
    // What is forgiven is relative to the entries, and so is what counts as 0.
    for scale in [1e-8, 1e8] {
        let scaled = |a: f64, b: f64, c: f64, d: f64| rows(scale * a, scale * b, scale * c, scale * d);
        refused(scaled(1.0, 0.5, 0.5 + 1e-11, 1.0), "symmetric");
        refused(scaled(1.0, 1.0 + 1e-9, 1.0 + 1e-9, 1.0), "positive semidefinite");
        for spread in [scaled(1.0, 0.5, 0.5 + 1e-13, 1.0), scaled(1.0, 1.0 + 1e-12, 1.0 + 1e-12, 1.0)] {
            assert!(MixtureOracle::gaussian([1, 1, 2], 0.0, spread).is_ok());
        }
        let line = array![0.3, 0.7, -0.2].insert_axis(Axis(1));
        let point = |extra: f64| {
            let matrix = (line.dot(&line.t()) + Array2::<f64>::eye(3) * extra) * scale;
            let rows: Vec<Vec<f64>> = matrix.outer_iter().map(|row| row.to_vec()).collect();
            let oracle = MixtureOracle::gaussian([3, 1, 1], 0.0, rows).unwrap();
            oracle.log_density(Array4::zeros((1, 3, 1, 1)).view(), NoiseLevel::CLEAN, &Condition::none(1))
        };
        assert!(matches!(point(0.0), Err(DenoiserError::Oracle { .. })));
        // ln N(0; 0, scale (l l^T + e I)) has the determinant scale^3 e^2 (|l|^2 + e).
        let (extra, squared): (f64, f64) = (1e-8, 0.62);
        let log_det = 3.0 * scale.ln() + 2.0 * extra.ln() + (squared + extra).ln();
        let expected = -0.5 * (3.0 * std::f64::consts::TAU.ln() + log_det);
        assert!((point(extra).unwrap()[0] - expected).abs() < 1e-6, "{:?} instead of {expected}", point(extra));
    }
    let full = Spread::Covariance((0..512).map(|i| (0..512).map(|j| f64::from(u8::from(i == j))).collect()).collect());
    assert!(MixtureOracle::gaussian([1, 1, 512], 0.0, full).is_ok());
    let large = MixtureOracle::gaussian([1, 1, 513], 0.0, 1.0).unwrap();
    assert!(large.covariance().unwrap_err().to_string().contains("512"));
    let matrix = Spread::Covariance(vec![vec![0.0; 513]; 513]);
    assert!(MixtureOracle::gaussian([1, 1, 513], 0.0, matrix).unwrap_err().to_string().contains("512"));
    assert!(MixtureOracle::gaussian([1, 1, 512], 0.0, 1.0).unwrap().covariance().is_ok());
    let x = array![0.0, 1.0];
    for (covariance, score) in
        [(Array2::eye(3), x.clone()), (Array2::eye(2), array![1.0]), (Array2::zeros((2, 1)), x.clone())]
    {
        let error = tweedie_formula(x.view(), covariance.view(), score.view());
        assert!(matches!(error, Err(DenoiserError::Shape { .. })));
    }
    assert!(matches!(singular.of_label(0), Err(DenoiserError::Condition { .. })));
}

#[test]
fn log_sum_exp_does_not_overflow() {
    let of = |values: &[f64]| log_sum_exp(values.iter().copied());
    assert!((of(&[1000.0, 1000.0]) - 1000.0 - 2.0_f64.ln()).abs() < 1e-12);
    assert!((of(&[-1000.0, -1001.0]) + 1000.0 - (1.0 + (-1.0_f64).exp()).ln()).abs() < 1e-12);
    assert_eq!(of(&[f64::NEG_INFINITY, 2.0]), 2.0);
    assert_eq!(of(&[f64::NEG_INFINITY; 2]), f64::NEG_INFINITY);
    assert_eq!(of(&[]), f64::NEG_INFINITY);
    assert_eq!(of(&[f64::INFINITY, 0.0]), f64::INFINITY);
}

/// The smallest case that random mixtures shrink to: a Gaussian on a line.
#[test]
fn a_gaussian_in_one_dimension() {
    let oracle = MixtureOracle::gaussian([1, 1, 1], 2.0, vec![vec![0.25]]).unwrap();
    let level = NoiseLevel::from_abar(0.36).unwrap();
    let x = array![[[[1.0]]]];
    let variance = 0.36 * 0.25 + 0.64;
    let posterior = &oracle.posterior(x.view(), level, &Condition::none(1)).unwrap()[0];
    let mean = 2.0 + 0.6 * 0.25 / variance * (1.0 - 1.2);
    assert!((posterior.mean()[0] - mean).abs() < 1e-15);
    assert!((posterior.covariance().unwrap()[[0, 0]] - 0.64 * 0.25 / variance).abs() < 1e-15);
}

/// The strategy reaches what it promises.
#[test]
fn random_mixtures_are_varied() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let cases: Vec<Case> = (0..200).map(|_| any_case(0.0).new_tree(&mut runner).unwrap().current()).collect();
    let full = |c: &Component| matches!(&c.spread, Spread::Covariance(rows) if rows.len() > 2);
    assert!(cases.iter().filter(|case| case.components.iter().any(full)).count() > 50);
    assert!(cases.iter().filter(|case| case.components.len() == 4).count() > 20);
    assert!(cases.iter().filter(|case| case.label.is_some()).count() > 100);
    assert!(cases.iter().filter(|case| flat(&case.state, 0).len() == 6).count() > 15);
}
