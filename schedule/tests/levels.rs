//! Grids of levels: sigmas by rules, fractional steps, and what a network is told of them.

use proptest::prelude::*;
use tweedie_schedule::{
    BetaSchedule, Bridge, GridEnd, GridMove, GridRule, LevelGrid, NoiseLevel, NoiseNumber, OutputSign, Placing,
    Prediction, Schedule, ScheduleError, SigmaRange, SigmaRule, Spacing, StepGrid, StepRounding, TimestepMapping,
    beta_sigmas, exponential_sigmas,
};

fn linear_betas() -> BetaSchedule {
    BetaSchedule::Linear { start: 1e-4, end: 0.02 }
}

fn linear() -> Schedule {
    Schedule::new(&linear_betas(), 1000).unwrap()
}

fn close(found: f64, expected: f64, tolerance: f64) -> bool {
    (found - expected).abs() <= tolerance * expected.abs().max(1.0)
}

/// Quantiles of Beta(0.6, 0.6) by scipy 1.17 (`scipy.stats.beta.ppf`) at 1, 7/8, ..., 0. The quantile function here is good to
/// about 2e-12.
#[test]
fn beta_quantiles_agree_with_scipy() {
    let expected = [
        1.0,
        0.942843636377586,
        0.824319621347305,
        0.6706185042786161,
        0.5000000000000001,
        0.3293814957213838,
        0.17568037865269498,
        0.05715636362241408,
        0.0,
    ];
    for (found, expected) in beta_sigmas(1.0, 2.0, 9).unwrap().into_iter().zip(expected) {
        assert!(close(found, 1.0 + expected, 1e-11), "{found} instead of 1 + {expected}");
    }
    let fine = beta_sigmas(1e-300, 1.0, 51).unwrap();
    for (at, expected) in [1, 2, 10, 40, 48, 49].into_iter().zip([
        0.9972670179754229,
        0.9913362306152167,
        0.8770782495416671,
        0.12292175045833284,
        0.008663769384783354,
        0.002732982024577031,
    ]) {
        assert!((fine[at] / expected - 1.0).abs() < 1e-11, "{} instead of {expected}", fine[at]);
    }
    assert!(fine.windows(2).all(|pair| pair[1] < pair[0]));
}

proptest! {
    #[test]
    fn exponential_is_even_in_the_logarithm(min in 0.001..1.0_f64, ratio in 1.1..1e4_f64, n in 2..50_usize) {
        let sigmas = exponential_sigmas(min, min * ratio, n).unwrap();
        prop_assert_eq!((sigmas.len(), sigmas[0], sigmas[n - 1]), (n, min * ratio, min));
        let gap = -ratio.ln() / (n - 1) as f64;
        for pair in sigmas.windows(2) {
            prop_assert!(((pair[1] / pair[0]).ln() - gap).abs() < 1e-12, "{:?}", pair);
        }
    }
}

#[test]
fn rules_have_names_and_ends() {
    for name in SigmaRule::NAMES.split(", ") {
        assert_eq!(SigmaRule::from_name(name).unwrap().name(), name);
    }
    assert!(SigmaRule::from_name("even").unwrap_err().to_string().contains(SigmaRule::NAMES));
    assert_eq!(SigmaRule::Steps.sigmas(0.1, 1.0, 4), Ok(None));
    for rule in [SigmaRule::karras(), SigmaRule::Exponential, SigmaRule::Beta] {
        assert_eq!(rule.sigmas(0.5, 0.5, 1), Ok(Some(vec![0.5])), "{}", rule.name());
        let sigmas = rule.sigmas(0.1, 10.0, 7).unwrap().unwrap();
        assert_eq!((sigmas.len(), sigmas[0], sigmas[6]), (7, 10.0, 0.1), "{}", rule.name());
        for (low, high) in [(0.0, 1.0), (1.0, 0.5), (f64::NAN, 1.0), (0.1, f64::INFINITY)] {
            assert!(rule.sigmas(low, high, 3).is_err(), "{}: {low}, {high}", rule.name());
        }
        assert!(rule.sigmas(0.1, 1.0, 0).is_err());
    }
}

/// The table but for its last levels: that of step T as given, and those that had less signal between it and the rest.
#[test]
fn a_terminal_level_is_set() {
    let abar = 1.0 / 16_777_216.0;
    for (betas, kept) in [(BetaSchedule::ScaledLinear { start: 0.00085, end: 0.012 }, 999), (linear_betas(), 996)] {
        let rescaled = Schedule::new(&betas, 1000).unwrap().rescaled_zero_terminal_snr().unwrap();
        let set = rescaled.with_terminal_abar(abar).unwrap();
        assert_eq!(set.levels()[..=kept], rescaled.levels()[..=kept]);
        assert!(rescaled.abar(kept) > abar && (kept == 999 || rescaled.abar(kept + 1) < abar));
        assert!(close(set.abar(1000) / abar, 1.0, 1e-12));
        let ratio = set.abar(kept + 1) / set.abar(kept);
        for t in kept + 1..=1000 {
            assert!(close(set.abar(t) / set.abar(t - 1) / ratio, 1.0, 1e-9), "{t}");
            assert!(close(1.0 - set.beta(t), ratio, 1e-9), "{t}");
        }
        for wrong in [0.0, 1.0, -0.1, f64::NAN] {
            assert!(matches!(rescaled.with_terminal_abar(wrong), Err(ScheduleError::Parameter { .. })), "{wrong}");
        }
    }
}

/// `numpy.interp` of the table of sigmas, and the way back to the nearest step.
#[test]
fn sigmas_are_interpolated() {
    let schedule = linear();
    for t in 1..=1000 {
        assert_eq!(schedule.level_of_linear_sigma(t as f64), Ok(schedule.level(t)));
        assert_eq!(schedule.step_near(schedule.level(t)), t as f64);
    }
    let sigma = |t: usize| schedule.level(t).edm_sigma();
    for (t, u) in [(1, 0.25), (500, 0.5), (999, 0.875)] {
        let level = schedule.level_of_linear_sigma(t as f64 + u).unwrap();
        assert!(close(level.edm_sigma(), (1.0 - u) * sigma(t) + u * sigma(t + 1), 1e-13), "{t}");
        // The inverse is linear in ln(sigma), so it misses by what the two differ.
        let expected = t as f64 + (level.edm_sigma() / sigma(t)).ln() / (sigma(t + 1) / sigma(t)).ln();
        assert!(close(schedule.step_near(level), expected, 1e-11), "{t}");
    }
    for wrong in [0.5, 1000.5, f64::NAN] {
        assert!(schedule.level_of_linear_sigma(wrong).is_err(), "{wrong}");
    }
    assert_eq!(schedule.step_near(NoiseLevel::from_edm_sigma(1e-9).unwrap()), 1.0);
    assert_eq!(schedule.step_near(NoiseLevel::PURE_NOISE), 1000.0);
}

#[test]
fn level_grids_lead_down() {
    let level = |sigma| NoiseLevel::from_edm_sigma(sigma).unwrap();
    let on = |from, to| GridMove { from: level(from), to: level(to), step: from };
    assert!(LevelGrid::new(vec![on(3.0, 2.0), on(2.0, 0.0)]).is_ok());
    // A move may lead past the next one's start, or nowhere.
    assert!(LevelGrid::new(vec![on(3.0, 1.0), on(2.0, 2.0)]).is_ok());
    for (moves, position) in [
        (vec![on(3.0, 4.0)], 0),
        (vec![on(3.0, 2.0), on(3.0, 1.0)], 1),
        (vec![on(3.0, 2.0), on(2.0, 1.0), on(2.5, 1.0)], 2),
    ] {
        let found = LevelGrid::new(moves);
        assert!(matches!(found, Err(ScheduleError::LevelGridOrder { position: p, .. }) if p == position), "{found:?}");
    }
    assert!(matches!(LevelGrid::new(vec![]), Err(ScheduleError::Count { .. })));
    assert!(LevelGrid::new(vec![GridMove { step: f64::NAN, ..on(2.0, 1.0) }]).is_err());
    let schedule = linear();
    let steps = StepGrid::new(1000, 10, Spacing::Linspace, 0).unwrap();
    let grid = LevelGrid::of_steps(&steps, &schedule).unwrap();
    assert_eq!((grid.len(), grid.start(), grid.is_empty()), (10, 1.0, false));
    for (on, (from, to)) in grid.moves().iter().zip(steps.moves()) {
        assert_eq!(*on, GridMove { from: schedule.level(from), to: schedule.level(to), step: from as f64 });
    }
    // A stride of 100 misses the steps of a grid of 111, and ends where it would leave the table.
    let strided: Vec<_> = steps.with_stride(100).moves().collect();
    assert_eq!((strided[0], strided[8], strided[9]), ((1000, 900), (112, 12), (1, 0)));
    let other = Schedule::new(&BetaSchedule::cosine(), 50).unwrap();
    let steps = StepGrid::new(1000, 10, Spacing::Linspace, 0).unwrap();
    assert_eq!(LevelGrid::of_steps(&steps, &other), Err(ScheduleError::GridMismatch { grid: 1000, schedule: 50 }));
}

/// Steps as numpy makes them (`linspace(0, 999, N)`, `linspace(0, 999, N + 1).round()`), levels by a rule, their steps by the
/// logarithm, rounded as told, and each end.
#[test]
fn sigmas_of_a_rule_and_their_steps() {
    let schedule = linear();
    let rule = GridRule { count: 5, spacing: Spacing::Linspace, ..GridRule::default() };
    let steps = |rule: GridRule| rule.grid(&schedule).unwrap().moves().iter().map(|on| on.step).collect::<Vec<_>>();
    let fractional = GridRule { placing: Placing::Fractional, ..rule };
    assert_eq!(steps(fractional), [1000.0, 750.25, 500.5, 250.75, 1.0]);
    assert_eq!(steps(rule), [1000.0, 750.0, 501.0, 251.0, 1.0]);
    let more = GridRule { placing: Placing::WholeOfOneMore, ..rule };
    assert_eq!(steps(more), [1000.0, 800.0, 600.0, 401.0, 201.0]);
    assert_eq!(
        steps(GridRule { spacing: Spacing::Leading, steps_offset: 1, ..more }),
        [832.0, 666.0, 500.0, 334.0, 168.0]
    );
    assert_eq!(steps(GridRule { spacing: Spacing::Trailing, ..more }), [1000.0, 800.0, 600.0, 400.0, 200.0]);
    assert_eq!(steps(GridRule { highest: Some(600), ..more }), [600.0, 480.0, 360.0, 241.0, 121.0]);
    // A stride of T / K, from a lower start.
    assert_eq!(steps(GridRule { highest: Some(600), spacing: Spacing::Trailing, ..more }), [600.0, 400.0, 200.0]);

    let leading = GridRule { count: 4, spacing: Spacing::Leading, placing: Placing::Fractional, ..GridRule::default() };
    for (range, ends) in [(SigmaRange::Visited, (751, 1)), (SigmaRange::Table, (1000, 1))] {
        let rule = GridRule { sigmas: SigmaRule::Exponential, range, ..leading };
        let grid = rule.grid(&schedule).unwrap();
        let (high, low) = (schedule.level(ends.0).edm_sigma(), schedule.level(ends.1).edm_sigma());
        for (k, on) in grid.moves().iter().enumerate() {
            assert!(close(on.from.edm_sigma(), high * (low / high).powf(k as f64 / 3.0), 1e-12), "{range:?}, {k}");
            assert_eq!(on.step, schedule.step_near(on.from));
        }
        let whole = |rounding| steps(GridRule { rounding, ..rule });
        let exact = whole(StepRounding::None);
        assert_eq!(whole(StepRounding::Down), exact.iter().map(|t| t.floor()).collect::<Vec<_>>());
        assert_eq!(whole(StepRounding::Nearest), exact.iter().map(|t| t.round()).collect::<Vec<_>>());
        assert!(exact.iter().any(|t| t.fract() > 0.5) && exact[1].fract() != 0.0, "{exact:?}");
    }
    let given = GridRule { sigmas: SigmaRule::karras(), sigma_min: Some(0.1), sigma_max: Some(500.0), ..leading };
    let grid = given.grid(&schedule).unwrap();
    assert!(
        close(grid.moves()[0].from.edm_sigma(), 500.0, 1e-13) && close(grid.moves()[3].from.edm_sigma(), 0.1, 1e-13)
    );
    assert_eq!(grid.moves()[0].step, 1000.0);

    let last = |end| GridRule { end, ..given }.grid(&schedule).unwrap().moves()[3];
    assert_eq!(last(GridEnd::Clean).to, NoiseLevel::CLEAN);
    assert_eq!(last(GridEnd::FirstStep).to, schedule.level(1));
    assert_eq!(last(GridEnd::LastLevel).to, last(GridEnd::Clean).from);

    // One level more than there are moves, told as if they were those of the spacing.
    let grid = GridRule { sigmas: SigmaRule::LogLinear, ..leading }.grid(&schedule).unwrap();
    assert_eq!(grid.moves().iter().map(|on| on.step).collect::<Vec<_>>(), [751.0, 501.0, 251.0, 1.0]);
    let (high, low) = (schedule.level(1000).edm_sigma(), schedule.level(1).edm_sigma());
    for (k, on) in grid.moves().iter().enumerate() {
        assert!(close(on.to.edm_sigma(), high * (low / high).powf((k + 1) as f64 / 4.0), 1e-12), "{k}");
    }
    for count in [0, 1001] {
        assert!(matches!(GridRule { count, ..rule }.grid(&schedule), Err(ScheduleError::Count { .. })));
    }
    let shifted = GridRule { count: 1000, spacing: Spacing::Leading, steps_offset: 1, ..rule };
    assert!(matches!(shifted.grid(&schedule), Err(ScheduleError::GridRange { position: 0, found: 1001, .. })));
    let upwards = GridRule { end: GridEnd::FirstStep, sigma_min: Some(1e-4), ..given };
    assert!(matches!(upwards.grid(&schedule), Err(ScheduleError::LevelGridOrder { position: 3, .. })));
}

/// At the grid's own levels its own numbers, whatever the table says; between them the table's, and beyond it those of its ends.
#[test]
fn a_grid_tells_its_own_numbers() {
    let schedule = linear();
    let level = |sigma| NoiseLevel::from_edm_sigma(sigma).unwrap();
    let visited = [(level(20.0), 700.0), (level(2.0), 100.0)];
    let grid = LevelGrid::through(&visited, NoiseLevel::CLEAN).unwrap();
    for (mapping, shift) in [(TimestepMapping::ZeroBased, 1.0), (TimestepMapping::OneBased, 0.0)] {
        let free = Bridge::new(Prediction::Eps, schedule.clone(), mapping);
        let bound = free.clone().for_grid(&grid);
        let number = |bridge: &Bridge, sigma| bridge.at(level(sigma)).map(|at| at.number);
        assert_eq!((number(&bound, 20.0), number(&bound, 2.0)), (Ok(700.0 - shift), Ok(100.0 - shift)));
        assert_eq!(number(&bound, 5.0), Ok(schedule.step_near(level(5.0)) - shift));
        assert_eq!((number(&bound, 1e4), number(&bound, 1e-4)), (Ok(1000.0 - shift), Ok(1.0 - shift)));
        assert_eq!(number(&free, 5.0), number(&bound, 5.0));
        assert!(number(&free, 1e4).is_err() && number(&free, 1e-4).is_err());
    }
    let told = Bridge::new(Prediction::V, schedule, NoiseNumber::LogSigma { factor: 0.25 }).for_grid(&grid);
    assert!(close(told.at(level(20.0)).unwrap().number, 0.25 * 20.0_f64.ln(), 1e-13));
}

/// Karras' table 1, written out for `y = x / alpha`.
#[test]
fn an_edm_network_is_read_by_karras() {
    for (sigma_data, sigma) in [(0.5_f64, 0.002_f64), (0.5, 3.0), (1.2, 80.0)] {
        for (sign, factor) in [(OutputSign::Plain, 1.0), (OutputSign::Negated, -1.0)] {
            let level = NoiseLevel::from_edm_sigma(sigma).unwrap();
            let at = Bridge::preconditioned(0.0, sigma_data, sign, 0.25).at(level).unwrap();
            let (y, output) = (1.3, -0.4);
            let x = level.alpha() * y;
            let norm = sigma * sigma + sigma_data * sigma_data;
            let expected = sigma_data.powi(2) / norm * y + factor * sigma * sigma_data / norm.sqrt() * output;
            assert!(close(at.to_x0.apply(x, output), expected, 1e-12));
            assert!(close(at.of_input * x, y / norm.sqrt(), 1e-12));
            assert!(close(at.number, 0.25 * sigma.ln(), 1e-12));
        }
    }
}

/// Upstream's two further rules, by their definitions in f64.
#[test]
fn rare_betas_follow_their_definitions() {
    let falling = Schedule::new(&BetaSchedule::FallingAbar, 100).unwrap();
    for t in [1, 50, 100] {
        assert!(close(falling.abar(t).ln(), -12.0 * t as f64 / 100.0, 1e-12), "{t}");
    }
    let laplace = Schedule::new(&BetaSchedule::Laplace, 100).unwrap();
    let level = |u: f64| {
        let snr = (-0.5 * 1.0_f64.copysign(0.5 - u) * (1.0 - 2.0 * (0.5 - u).abs() + 1e-6).ln()).exp();
        (snr / (1.0 + snr)).sqrt()
    };
    for t in [1, 30, 50, 51, 99, 100] {
        assert!(close(laplace.abar(t), level(t as f64 / 100.0) / level(0.0), 1e-12), "{t}");
    }
    for name in ["laplace", "exp"] {
        assert_eq!(BetaSchedule::from_config_name(name, 0.1, 0.2).unwrap().config_name(), Some(name));
    }
    let short = Schedule::new(&BetaSchedule::FallingAbar, 1).unwrap();
    assert_eq!(short.beta(1), 0.999);
}
