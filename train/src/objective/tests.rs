use ndarray::{Axis, Slice};
use proptest::prelude::*;
use tweedie_schedule::BetaSchedule;

use super::*;

fn schedule() -> Schedule {
    Schedule::new(&BetaSchedule::Linear { start: 1e-4, end: 0.02 }, 1000).unwrap()
}

fn objective(prediction: Prediction, label_dropout: f64) -> Objective {
    Objective::new(&schedule(), prediction, TimestepMapping::ZeroBased, label_dropout, 5).unwrap()
}

fn images(n: usize) -> Array4<f32> {
    Array4::from_shape_fn((n, 2, 3, 5), |(i, c, y, x)| ((i * 31 + c * 17 + y * 7 + x * 3) % 19) as f32 / 9.0 - 1.0)
}

/// The first `n` images.
fn first(images: &Array4<f32>, n: usize) -> ArrayView4<'_, f32> {
    images.slice_axis(Axis(0), Slice::from(..n))
}

/// From `x_t` and the target, `x_0` and eps are recovered by the definitions of the predictions, whole tensors at once.
#[test]
fn the_targets_are_those_of_the_definitions() {
    let schedule = schedule();
    let x0 = images(64);
    let eps_batch = objective(Prediction::Eps, 0.0).draw(3, x0.view(), &[]);
    let x0_batch = objective(Prediction::X0, 0.0).draw(3, x0.view(), &[]);
    let v_batch = objective(Prediction::V, 0.0).draw(3, x0.view(), &[]);
    assert_eq!(x0_batch.target, x0);
    for batch in [&x0_batch, &v_batch] {
        assert_eq!((&batch.x_t, &batch.steps), (&eps_batch.x_t, &eps_batch.steps), "the noise is the same");
    }
    for (i, &t) in eps_batch.steps.iter().enumerate() {
        let (alpha, sigma) = (schedule.abar(t).sqrt(), (1.0 - schedule.abar(t)).sqrt());
        for (j, &x_t) in eps_batch.x_t.index_axis(Axis(0), i).indexed_iter() {
            let at = (i, j.0, j.1, j.2);
            let (x0, eps) = (f64::from(x0[at]), f64::from(eps_batch.target[at]));
            assert!((f64::from(x_t) - (alpha * x0 + sigma * eps)).abs() < 1e-6);
            assert!((f64::from(v_batch.target[at]) - (alpha * eps - sigma * x0)).abs() < 1e-6);
        }
    }
}

#[test]
fn a_classifier_sees_what_a_denoiser_sees() {
    let (schedule, x0) = (schedule(), images(32));
    let labels: Vec<usize> = (0..32).map(|i| i % 7).collect();
    let denoiser = objective(Prediction::V, 0.5).draw(3, x0.view(), &labels);
    let classifier = |schedule| Objective::classifier(schedule, TimestepMapping::ZeroBased, 0.0, 5);
    let noisy = classifier(Some(&schedule)).draw(3, x0.view(), &labels);
    assert_eq!((&noisy.x_t, &noisy.steps), (&denoiser.x_t, &denoiser.steps));
    assert_eq!((noisy.timesteps, &noisy.classes, noisy.target.len()), (denoiser.timesteps, &labels, 0));
    assert!(noisy.condition.is_null() && noisy.condition.len() == 32, "it is not told the answer");
    let clean = classifier(None).draw(3, x0.view(), &labels);
    assert_eq!((clean.x_t, clean.timesteps, clean.classes), (x0, vec![0.0; 32], labels));
}

#[test]
fn the_network_sees_the_number_of_its_mapping() {
    for (mapping, offset) in [(TimestepMapping::OneBased, 0.0), (TimestepMapping::ZeroBased, 1.0)] {
        let objective = Objective::new(&schedule(), Prediction::Eps, mapping, 0.0, 5).unwrap();
        let batch = objective.draw(1, images(32).view(), &[]);
        let expected: Vec<f64> = batch.steps.iter().map(|&t| t as f64 - offset).collect();
        assert_eq!(batch.timesteps, expected);
    }
}

/// Chi-squared over 10 bins of steps, and the first four moments of the noise, over 20,000 images.
#[test]
fn steps_are_uniform_and_noise_is_standard_normal() {
    let objective = objective(Prediction::Eps, 0.0);
    let (mut bins, mut moments, mut seen) = ([0u32; 10], [0f64; 4], (usize::MAX, 0));
    let x0 = images(100);
    for step in 1..=200 {
        let batch = objective.draw(step, x0.view(), &[]);
        for &t in &batch.steps {
            bins[(t - 1) / 100] += 1;
            seen = (seen.0.min(t), seen.1.max(t));
        }
        for &eps in &batch.target {
            (1..).zip(&mut moments).for_each(|(p, moment)| *moment += f64::from(eps).powi(p));
        }
    }
    let chi: f64 = bins.iter().map(|&n| (f64::from(n) - 2000.0).powi(2) / 2000.0).sum();
    // The 99.99 % quantile of chi-squared with 9 degrees of freedom.
    assert!(chi < 33.7, "{bins:?}");
    assert!(seen.0 <= 2 && seen.1 >= 999 && seen.1 <= 1000, "{seen:?}");
    let n = 20_000.0 * 30.0f64;
    let [mean, square, cube, fourth] = moments.map(|sum| sum / n);
    // Five standard errors: the variances of z, z², z³, z⁴ are 1, 2, 15, 96.
    for (what, found, expected, variance) in [
        ("mean", mean, 0.0, 1.0),
        ("variance", square, 1.0, 2.0),
        ("skew", cube, 0.0, 15.0),
        ("kurtosis", fourth, 3.0, 96.0),
    ] {
        assert!((found - expected).abs() < 5.0 * (variance / n).sqrt(), "{what}: {found}");
    }
}

#[test]
fn one_label_in_ten_is_dropped_whatever_the_label() {
    let objective = objective(Prediction::Eps, 0.1);
    let labels: Vec<usize> = (0..100).map(|i| i % 10).collect();
    let x0 = images(100);
    let mut dropped = [0u32; 10];
    for step in 1..=200 {
        let batch = objective.draw(step, x0.view(), &labels);
        for (label, &kept) in labels.iter().zip(batch.condition.as_labels()) {
            assert!(kept.is_none_or(|kept| kept == *label));
            dropped[*label] += u32::from(kept.is_none());
        }
    }
    // 2,000 draws per label with probability 0.1: mean 200, standard deviation 13.4.
    assert!(dropped.iter().all(|&n| (140..=260).contains(&n)), "{dropped:?}");
    let total: u32 = dropped.iter().sum();
    assert!((1830..=2170).contains(&total), "{total}: mean 2000, standard deviation 42");
}

#[test]
fn dropout_of_nothing_and_of_everything() {
    let labels = [3usize; 50];
    let kept = objective(Prediction::Eps, 0.0).draw(1, images(50).view(), &labels);
    assert_eq!(kept.condition, Condition::labels(vec![Some(3); 50]));
    let dropped = objective(Prediction::Eps, 1.0).draw(1, images(50).view(), &labels);
    assert_eq!(dropped.condition, Condition::none(50));
    assert_eq!(kept.x_t, dropped.x_t, "the noise does not depend on the labels");
    let unlabelled = objective(Prediction::Eps, 0.0).draw(1, images(50).view(), &[]);
    assert_eq!((unlabelled.x_t, unlabelled.condition), (kept.x_t, Condition::none(50)));
}

/// The score is -eps / sigma; the mean is that of the posterior, whose targets at t = 1 is the image.
#[test]
fn score_and_mean_are_targets_too() {
    let (schedule, x0) = (schedule(), images(64));
    let draw = |of| objective(of, 0.0).draw(3, x0.view(), &[]);
    let (eps, score, mean) = (draw(Prediction::Eps), draw(Prediction::Score), draw(Prediction::Mean));
    for (i, &t) in eps.steps.iter().enumerate() {
        let (sigma, posterior) = ((1.0 - schedule.abar(t)).sqrt(), schedule.posterior(t));
        for (j, &e) in eps.target.index_axis(Axis(0), i).indexed_iter() {
            let at = (i, j.0, j.1, j.2);
            let expected = -f64::from(e) / sigma;
            assert!((f64::from(score.target[at]) - expected).abs() < 1e-5 * expected.abs().max(1.0));
            let expected = posterior.mean(eps.x_t[at].into(), x0[at].into());
            assert!((f64::from(mean.target[at]) - expected).abs() < 1e-5, "step {t}");
        }
    }
}

fn terms(loss: Loss, variance: Variance) -> Terms {
    Terms { loss, weighting: Weighting::MinSnr { gamma: 5.0 }, variance, bins: Bins::new(-1.0, 1.0, 10).unwrap() }
}

/// Few steps, so that t = 1 is among those of a small batch.
fn short() -> Schedule {
    Schedule::new(&BetaSchedule::Linear { start: 0.02, end: 0.4 }, 5).unwrap()
}

fn with_terms(of: Prediction, terms: Terms) -> Objective {
    Objective::with_terms(&short(), of, TimestepMapping::ZeroBased, 0.0, 5, terms).unwrap()
}

/// Images whose values are ten levels from -1 to 1.
fn levels(n: usize) -> Array4<f32> {
    images(n).mapv(|v| ((v + 1.0) * 4.5).round() / 4.5 - 1.0)
}

#[test]
fn the_simple_loss_of_known_tensors() {
    let objective = Objective::new(&schedule(), Prediction::Eps, TimestepMapping::ZeroBased, 0.0, 5).unwrap();
    let mut batch = objective.draw(1, Array4::zeros((2, 1, 1, 2)).view(), &[]);
    batch.target = Array4::from_shape_vec((2, 1, 1, 2), vec![0.0, 2.0, 5.0, -1.0]).unwrap();
    let output = Array4::from_shape_vec((2, 1, 1, 2), vec![1.0, 2.0, 3.0, -4.0]).unwrap();
    let loss = objective.loss(&batch, batch.x_t.view(), output.view());
    assert_eq!((loss.value, &loss.images[..]), (14.0 / 4.0, &[0.5, 6.5][..]));
    assert_eq!(loss.gradient.as_slice().unwrap(), [0.5, 0.0, -1.0, -1.5]);
    // An image that was drawn with half the chance counts twice.
    batch.importance = vec![2.0, 1.0];
    let loss = objective.loss(&batch, batch.x_t.view(), output.view());
    assert_eq!((loss.value, &loss.images[..]), (7.5 / 2.0, &[0.5, 6.5][..]));
    assert_eq!(loss.gradient.as_slice().unwrap(), [1.0, 0.0, -1.0, -1.5]);
    let empty = objective.draw(1, Array4::zeros((0, 1, 2, 2)).view(), &[]);
    assert_eq!(objective.loss(&empty, empty.x_t.view(), empty.x_t.view()).value, 0.0);
}

const PREDICTIONS: [Prediction; 5] =
    [Prediction::Eps, Prediction::X0, Prediction::V, Prediction::Score, Prediction::Mean];

/// The weight of min-SNR stands before the error of every prediction.
#[test]
fn errors_are_weighted() {
    let x0 = levels(40);
    for of in PREDICTIONS {
        let objective = with_terms(of, terms(Loss::Simple, Variance::FixedSmall));
        let batch = objective.draw(2, x0.view(), &[]);
        let loss = objective.loss(&batch, x0.view(), (&batch.target + 0.5).view());
        for (&t, &value) in batch.steps.iter().zip(&loss.images) {
            let (level, posterior) = (short().level(t), short().posterior(t));
            let weight = Weighting::MinSnr { gamma: 5.0 }.weight(of, level, Some(&posterior)).unwrap();
            assert!((value - 0.25 * weight).abs() < 1e-5 * weight, "{} at step {t}", of.name());
        }
    }
}

/// The bound against the divergence of normals and the mass of a bin, from the posterior's own functions.
#[test]
fn the_bound_is_that_of_its_definition() {
    let (schedule, x0) = (short(), levels(60));
    for of in PREDICTIONS {
        for variance in [Variance::FixedSmall, Variance::FixedLarge, Variance::Unit, Variance::LearnedRange] {
            let terms = terms(Loss::Vlb, variance);
            let objective = with_terms(of, Terms { weighting: Weighting::Uniform, ..terms });
            let batch = objective.draw(7, x0.view(), &[]);
            let channels = objective.output_channels(2);
            assert_eq!(channels, if variance == Variance::LearnedRange { 4 } else { 2 });
            let output = Array4::from_shape_fn((60, channels, 3, 5), |(i, c, y, x)| match c {
                0 | 1 => batch.target[(i, c, y, x)] + 0.1 * ((i + 3 * y + x) % 5) as f32 - 0.2,
                _ => 0.3 * ((i + y + 2 * x) % 7) as f32 - 0.9,
            });
            let loss = objective.loss(&batch, x0.view(), output.view());
            assert!(batch.steps.contains(&1) && batch.steps.contains(&5));
            for (i, &t) in batch.steps.iter().enumerate() {
                let posterior = schedule.posterior(t);
                let to_mean =
                    tweedie_schedule::prediction::convert(of, Prediction::Mean, schedule.level(t), Some(&posterior))
                        .unwrap();
                let mut nats = 0.0;
                for (j, &x0) in x0.index_axis(Axis(0), i).indexed_iter() {
                    let at = (i, j.0, j.1, j.2);
                    let (xt, x0) = (f64::from(batch.x_t[at]), f64::from(x0));
                    let mean = to_mean.apply(xt, output[at].into());
                    let s2 = match variance {
                        Variance::LearnedRange => {
                            let v = 0.5 * (f64::from(output[(i, 2 + j.0, j.1, j.2)]) + 1.0);
                            schedule.variance_range(t).log_variance(v).exp()
                        }
                        rule => schedule.reverse_variance(t, rule, true).unwrap(),
                    };
                    nats += if t == 1 {
                        -terms.bins.log_probability(terms.bins.index(x0).unwrap(), mean, s2.sqrt())
                    } else {
                        let exact = posterior.mean(xt, x0);
                        tweedie_schedule::kl::normal_kl(exact, posterior.variance(), mean, s2).unwrap()
                    };
                }
                // T times the mean over 30 values, in bits.
                let expected = 5.0 * nats / 30.0 / std::f64::consts::LN_2;
                let found = loss.images[i];
                assert!((found - expected).abs() < 2e-4 * expected.abs().max(0.1), "{found}, not {expected}, step {t}");
            }
            let mean = loss.images.iter().sum::<f64>() / 60.0;
            assert!((loss.value - mean).abs() < 1e-12 * mean.abs());
        }
    }
}

/// L_hybrid: the mean is trained as by L_simple alone, the variance as by a thousandth of L_vlb alone.
#[test]
fn the_bound_of_the_hybrid_loss_stops_at_the_mean() {
    let x0 = levels(12);
    let of = |loss| {
        with_terms(Prediction::Eps, Terms { weighting: Weighting::Uniform, ..terms(loss, Variance::LearnedRange) })
    };
    let simple = with_terms(
        Prediction::Eps,
        Terms { weighting: Weighting::Uniform, ..terms(Loss::Simple, Variance::FixedSmall) },
    );
    let batch = simple.draw(1, x0.view(), &[]);
    let output = Array4::from_shape_fn((12, 4, 3, 5), |(i, c, y, x)| ((i + 2 * c + 3 * y + x) % 9) as f32 / 4.0 - 1.0);
    let (mean, _) = output.view().split_at(Axis(1), 2);
    let simple = simple.loss(&batch, x0.view(), mean);
    let (bound, hybrid) =
        (of(Loss::Vlb).loss(&batch, x0.view(), output.view()), of(Loss::Hybrid).loss(&batch, x0.view(), output.view()));
    let halves = |loss: &BatchLoss| {
        let (a, b) = loss.gradient.view().split_at(Axis(1), 2);
        (a.to_owned(), b.to_owned())
    };
    let (of_mean, of_variance) = halves(&hybrid);
    assert_eq!(of_mean, simple.gradient);
    for (&found, &bound) in of_variance.iter().zip(&halves(&bound).1) {
        assert!((found - 1e-3 * bound).abs() <= 1e-6 * bound.abs() * 1e-3 + 1e-12, "{found} of {bound}");
    }
    assert!(of_variance.iter().all(|g| *g != 0.0));
    let expected = simple.value + 1e-3 * bound.value;
    assert!((hybrid.value - expected).abs() < 1e-9 * expected);
}

/// Chances after ten rounds are in proportion to the roots of the mean squares, and the weighted mean of any function of t
/// is the uniform one.
#[test]
fn chances_follow_the_losses() {
    let mut importance = Importance::new(3);
    let losses = |round: usize| [1.0 + (round % 2) as f64, 4.0, 0.0];
    for round in 0..10 {
        assert_eq!(importance.chances(), None, "round {round}");
        importance.record(&[1, 2, 3], &losses(round));
    }
    // sqrt of (1 + 4) / 2, 16 and 0.
    let roots = [2.5f64.sqrt(), 4.0, 0.0];
    let total: f64 = roots.iter().sum();
    let check = |importance: &Importance, roots: [f64; 3], total: f64| {
        let chances = importance.chances().unwrap();
        for (t, root) in (1..).zip(roots) {
            let expected = 0.999 * root / total + 0.001 / 3.0;
            assert!((1.0 / (3.0 * chances.importance(t)) - expected).abs() < 1e-6, "step {t}");
        }
        chances
    };
    let chances = check(&importance, roots, total);
    // The step at a number: the chances end to end.
    let first = 1.0 / (3.0 * chances.importance(1));
    let second = 1.0 / (3.0 * chances.importance(2));
    for (uniform, step) in [
        (0.0, 1),
        (first - 1e-9, 1),
        (first + 1e-9, 2),
        (first + second - 1e-9, 2),
        (first + second + 1e-9, 3),
        (1.0 - 1e-12, 3),
    ] {
        assert_eq!(chances.step(uniform), step, "{uniform}");
    }
    // The oldest losses go first, and the memory survives a file at every point of the round.
    for round in 0..25 {
        importance.record(&[2], &[if round < 15 { 9.0 } else { 1.0 }]);
        let numbers = importance.to_numbers();
        assert_eq!(numbers.len(), Importance::numbers(3));
        assert_eq!(Importance::from_numbers(3, &numbers), Some(importance.clone()));
        if round == 9 {
            check(&importance, [roots[0], 9.0, 0.0], roots[0] + 9.0);
        }
    }
    check(&importance, [roots[0], 1.0, 0.0], roots[0] + 1.0);
    // Without any loss every step is as likely.
    let mut none = Importance::new(2);
    (0..10).for_each(|_| none.record(&[1, 2], &[0.0, 0.0]));
    assert_eq!(none.chances().unwrap().importance(2), 1.0);
    for wrong in [vec![0.0; 32], vec![0.5; 33], vec![f32::NAN; 33], vec![20.0; 33], vec![-1.0; 33]] {
        assert_eq!(Importance::from_numbers(3, &wrong), None, "{wrong:?}");
    }
}

/// Steps are drawn by their chances, and what they count makes up for it.
#[test]
fn important_steps_are_drawn_more_often_and_count_less() {
    let objective = with_terms(Prediction::Eps, terms(Loss::Simple, Variance::FixedSmall));
    let mut importance = Importance::new(5);
    (0..10).for_each(|_| importance.record(&[1, 2, 3, 4, 5], &[8.0, 4.0, 2.0, 1.0, 1.0]));
    let (chances, x0) = (importance.chances().unwrap(), images(100));
    let mut seen = [0.0_f64; 5];
    let mut sum = 0.0;
    for step in 1..=100 {
        let batch = objective.draw_with(step, x0.view(), &[], Some(&chances));
        for (&t, &count) in batch.steps.iter().zip(&batch.importance) {
            seen[t - 1] += 1.0;
            assert_eq!(count, chances.importance(t));
            sum += count * t as f64;
        }
    }
    let chi: f64 = (1..)
        .zip(seen)
        .map(|(t, n)| (n, 1e4 / (5.0 * chances.importance(t))))
        .map(|(n, expected)| (n - expected).powi(2) / expected)
        .sum();
    // The 99.99 % quantile of chi-squared with 4 degrees of freedom.
    assert!(chi < 23.6, "{seen:?}");
    // The mean of t over 1..=5 is 3; 1e4 draws with a standard deviation of importance times t below 6.
    assert!((sum / 1e4 - 3.0).abs() < 0.3, "{sum}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// The derivatives of the bound, in f64 and by differences, for every prediction, variance and step.
    #[test]
    fn gradients_of_the_bound_are_its_differences(
        t in 1..=5_usize, of in 0..5_usize, rule in 0..4_usize, level in 0..10_usize, xt in -1.5..1.5_f64,
        target in -1.0..1.0_f64, prediction in -1.0..1.0_f64, variance in -1.2..1.2_f64,
    ) {
        let rules = [Variance::FixedSmall, Variance::FixedLarge, Variance::Unit, Variance::LearnedRange];
        let terms = terms(Loss::Hybrid, rules[rule]);
        let step = loss::Step::new(&short(), t, PREDICTIONS[of], &terms).unwrap();
        let at = |prediction: f64, variance: f64| {
            let values = loss::Values { x0: terms.bins.level(level), xt, target, prediction, variance };
            step.bound(values, &terms.bins)
        };
        let (found, h) = (at(prediction, variance), 1e-5);
        let by_prediction = (at(prediction + h, variance).value - at(prediction - h, variance).value) / (2.0 * h);
        let by_variance = (at(prediction, variance + h).value - at(prediction, variance - h).value) / (2.0 * h);
        let near = |a: f64, b: f64| (a - b).abs() < 1e-5 * (1.0 + a.abs() + found.value.abs());
        prop_assert!(near(found.by_prediction, by_prediction), "{} instead of {by_prediction}", found.by_prediction);
        prop_assert!(near(found.by_variance, by_variance), "{} instead of {by_variance}", found.by_variance);
        prop_assert!(rule == 3 || found.by_variance == 0.0);
    }

    /// The gradient of a batch is the difference of its value, through every loss whose gradient is not stopped.
    #[test]
    fn gradients_are_differences_of_the_loss(
        kind in 0..3_usize, position in any::<prop::sample::Index>(), seed in any::<u64>(),
    ) {
        let terms = [
            terms(Loss::Simple, Variance::FixedSmall),
            Terms { weighting: Weighting::Uniform, ..terms(Loss::Vlb, Variance::LearnedRange) },
            Terms { weighting: Weighting::Uniform, ..terms(Loss::Vlb, Variance::FixedLarge) },
        ][kind];
        let objective = with_terms(Prediction::V, terms);
        let x0 = levels(3);
        let mut batch = objective.draw(seed, x0.view(), &[]);
        batch.importance = vec![0.5, 1.0, 2.0];
        let channels = objective.output_channels(2);
        let mut output = Array4::from_shape_fn((3, channels, 3, 5), |(i, c, y, x)| {
            ((i + 2 * c + 3 * y + x + seed as usize % 7) % 9) as f32 / 6.0 - 0.7
        });
        let gradient = objective.loss(&batch, x0.view(), output.view()).gradient;
        let index = position.index(output.len());
        let at = output.as_slice().unwrap()[index];
        let mut loss_at = |x: f32| {
            output.as_slice_mut().unwrap()[index] = x;
            objective.loss(&batch, x0.view(), output.view()).value
        };
        let (up, down) = (at + 1.0 / 512.0, at - 1.0 / 512.0);
        let slope = (loss_at(up) - loss_at(down)) / f64::from(up - down);
        let found = f64::from(gradient.as_slice().unwrap()[index]);
        prop_assert!((slope - found).abs() < 1e-3 * (0.05 + found.abs()), "{found} instead of {slope}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Image `i` of a step gets the same noise whatever the batch it is in: a prefix of the batch draws a prefix.
    #[test]
    fn an_image_does_not_depend_on_its_neighbours(n in 1usize..20, more in 0usize..20, step in any::<u64>()) {
        let objective = objective(Prediction::V, 0.5);
        let x0 = images(n + more);
        let labels: Vec<usize> = (0..n + more).collect();
        let all = objective.draw(step, x0.view(), &labels);
        let some = objective.draw(step, first(&x0, n), &labels[..n]);
        prop_assert_eq!(&some.steps[..], &all.steps[..n]);
        prop_assert_eq!(some.x_t, first(&all.x_t, n));
        prop_assert_eq!(some.target, first(&all.target, n));
        prop_assert_eq!(some.condition, all.condition.slice(0..n));
    }

    #[test]
    fn another_step_and_another_seed_draw_other_noise(step in 0u64..u64::MAX, seed in 0u64..u64::MAX) {
        let with_seed = |seed, step| {
            let objective = Objective::new(&schedule(), Prediction::Eps, TimestepMapping::ZeroBased, 0.0, seed).unwrap();
            objective.draw(step, images(2).view(), &[]).target
        };
        let first = with_seed(seed, step);
        prop_assert_ne!(&first, &with_seed(seed, step + 1));
        prop_assert_ne!(&first, &with_seed(seed + 1, step));
        prop_assert_eq!(&first, &with_seed(seed, step));
        prop_assert_ne!(first.index_axis(Axis(0), 0), first.index_axis(Axis(0), 1));
    }
}
