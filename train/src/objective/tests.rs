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

#[test]
fn a_step_without_noise_schedule_or_with_an_impossible_target_is_an_error() {
    let error = Objective::new(&schedule(), Prediction::Mean, TimestepMapping::ZeroBased, 0.0, 0).unwrap_err();
    assert!(error.to_string().contains("posterior"), "{error}");
}

#[test]
fn the_mean_squared_error_of_known_tensors() {
    let output = Array4::from_shape_vec((2, 1, 1, 2), vec![1.0, 2.0, 3.0, -4.0]).unwrap();
    let target = Array4::from_shape_vec((2, 1, 1, 2), vec![0.0, 2.0, 5.0, -1.0]).unwrap();
    let (loss, gradient) = mean_squared_error(output.view(), target.view());
    assert_eq!(loss, 14.0 / 4.0);
    assert_eq!(gradient.as_slice().unwrap(), [0.5, 0.0, -1.0, -1.5]);
    let empty = Array4::zeros((0, 1, 2, 2));
    assert_eq!(mean_squared_error(empty.view(), empty.view()).0, 0.0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn the_gradient_is_the_derivative(
        values in prop::collection::vec((-3f32..3.0, -3f32..3.0), 1..40), position in any::<prop::sample::Index>(),
    ) {
        let n = values.len();
        let tensor = |f: fn(&(f32, f32)) -> f32| Array4::from_shape_vec((n, 1, 1, 1), values.iter().map(f).collect()).unwrap();
        let (mut output, target) = (tensor(|v| v.0), tensor(|v| v.1));
        let (_, gradient) = mean_squared_error(output.view(), target.view());
        let i = position.index(n);
        let at = output[(i, 0, 0, 0)];
        // The loss is quadratic, so the central difference is exact but for rounding; h is a power of two.
        let mut loss_at = |x: f32| { output[(i, 0, 0, 0)] = x; mean_squared_error(output.view(), target.view()).0 };
        let (up, down) = (at + 0.25, at - 0.25);
        let slope = (loss_at(up) - loss_at(down)) / f64::from(up - down);
        prop_assert!((slope - f64::from(gradient[(i, 0, 0, 0)])).abs() < 1e-5);
    }

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
