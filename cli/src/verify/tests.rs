use std::time::Duration;

use clap::Parser;

use super::*;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    verify: VerifyArgs,
}

fn args(line: &str) -> VerifyArgs {
    Line::parse_from(std::iter::once("verify").chain(line.split_whitespace())).verify
}

fn outcome(check: fn(&mut Draw) -> Result<f64>, tolerance: f64) -> Outcome {
    let identity = Identity {
        id: "0.0-made-up",
        equation: "1 = 1",
        source: "nobody",
        relative_to: "1",
        tolerance,
        because: "it is made up",
        cost: 3,
        check,
    };
    evaluate("made-up", identity, &args("--cases 10"), &ProgressBar::hidden())
}

#[test]
fn an_identity_that_is_broken_fails() {
    let right = outcome(|draw| Ok(draw.uniform(0.0, 1e-13)), 1e-12);
    assert!(right.passed() && right.cases == 4 && right.worst > 0.0);
    // 2.1 with the variance b_t in the place of b~_t, a slip that is often printed.
    let wrong = outcome(
        |draw| {
            let schedule = draw.schedule(2, 1000)?;
            let t = draw.whole(2, schedule.steps());
            let mut worst = Worst::default();
            worst.relative(schedule.beta(t), schedule.posterior(t).variance());
            Ok(worst.0)
        },
        1e-12,
    );
    let nan = outcome(|draw| Ok(if draw.chance(0.5) { f64::NAN } else { 0.0 }), 1.0);
    let refused = outcome(|_| bail!("the library refuses"), 1.0);
    for outcome in [&wrong, &nan, &refused] {
        assert!(!outcome.passed());
    }
    assert!(nan.worst.is_nan() && refused.error.as_deref() == Some("case 0: the library refuses"));
    assert!(verdict(&[right]).is_ok());
    let outcomes = [wrong, nan, refused];
    let error = conclude(&outcomes, &args(""), Duration::ZERO).unwrap_err();
    assert!(!error.is::<console::Usage>(), "a failure is no usage error");
    assert!(error.to_string().starts_with("3 of 3 identities do not hold: 0.0-made-up"), "{error}");
    let text = report::text(&outcomes, &args(""), Duration::ZERO);
    assert_eq!(text.matches("FAILS").count(), 3, "{text}");
    assert!(text.contains("case 0: the library refuses") && text.contains("0 of 3 identities hold"), "{text}");
    let json = report::json(&outcomes, &args(""), Duration::ZERO);
    assert_eq!((&json["passed"], &json["identities_failed"]), (&false.into(), &3.into()));
    assert!(json["identities"][1]["worst_residual"].is_null());
}

#[test]
fn the_worst_residual_is_kept_and_nan_is_worse() {
    let mut worst = Worst::default();
    worst.see(1.0, 1.0, 0.0);
    assert_eq!(worst.0, 0.0);
    worst.see(1.5, 1.0, 2.0);
    worst.relative(2.0, -4.0);
    worst.see(1.0, 1.0, 1.0);
    assert_eq!(worst.0, 1.5);
    worst.holds(true);
    assert_eq!(worst.0, 1.5);
    worst.see(f64::NAN, 1.0, 1.0);
    worst.see(3.0, 1.0, 1.0);
    assert!(worst.0.is_nan());
    let mut other = Worst::default();
    other.holds(false);
    assert_eq!(other.0, 1.0);
}

#[test]
fn every_identity_holds_for_other_seeds() {
    for seed in [1, 2, 3] {
        for (group, identity) in chosen(GROUPS, &[]).unwrap() {
            let outcome =
                evaluate(group, identity, &args(&format!("--cases 20 --seed {seed}")), &ProgressBar::hidden());
            assert!(outcome.passed(), "{}, seed {seed}: {:e}, {:?}", identity.id, outcome.worst, outcome.error);
        }
    }
}

#[test]
fn names_are_unique_and_mean_what_they_say() {
    let all = chosen(GROUPS, &[]).unwrap();
    let mut ids: Vec<&str> = all.iter().map(|(_, identity)| identity.id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), all.len());
    for (_, identity) in &all {
        assert!(identity.number().split('.').all(|part| part.parse::<u32>().is_ok()), "{}", identity.id);
        assert!(identity.tolerance >= 0.0 && identity.cost > 0);
        assert!(identity.equation.chars().count() <= 64 && identity.source.chars().count() <= 26, "{}", identity.id);
    }
    let of = |name: &str| chosen(GROUPS, &[name.to_owned()]).unwrap().len();
    assert_eq!(of("2.1-bayes"), 1);
    assert!(of("2.1") > 1 && of("posterior") > of("2.1"));
    let error = chosen(GROUPS, &["2.9".to_owned()]).unwrap_err();
    assert!(error.is::<console::Usage>() && error.to_string().contains("2.1-bayes"), "{error}");
}

/// The means of the comparison themselves, on numbers known by hand.
#[test]
fn references_agree_with_numbers_by_hand() {
    let square = reference::gradient(&[1.0, -2.0], 1e-2, |x| Ok::<_, ()>(x[0].powi(4) + 3.0 * x[1])).unwrap();
    assert!((square[0] - 4.0).abs() < 1e-7 && (square[1] - 3.0).abs() < 1e-12, "{square:?}");
    let mass = reference::integral(0.3, 9.0, |x| reference::log_normal(x, 0.3, 0.5).exp());
    assert!((mass - 1.0).abs() < 1e-14);
    // One Gaussian with a correlation: N((1, 0), [[2, 1], [1, 2]]) at (2, 1): squares 2/3, determinant 3.
    let mut parts = reference::Parts::new(2);
    parts.push(0.7, vec![1.0, 0.0], vec![vec![2.0, 1.0], vec![1.0, 2.0]], 0);
    let clean = reference::Noising { scale: 1.0, noise: vec![vec![0.0; 2]; 2] };
    let expected = -std::f64::consts::TAU.ln() - 0.5 * 3.0_f64.ln() - 1.0 / 3.0;
    assert!((parts.log_density(&[2.0, 1.0], &clean, None) - expected).abs() < 1e-14);
    // Without noise the estimate is the state.
    let mean = parts.mean(&[2.0, 1.0], &clean, None);
    assert!((mean[0] - 2.0).abs() < 1e-14 && (mean[1] - 1.0).abs() < 1e-14);
}
