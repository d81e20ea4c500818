//! FORMULAS 1: the forward process, its schedules and its noise levels.

mod common;

use common::{any_level, any_rule, any_schedule, close, two_levels};
use proptest::prelude::*;
use tweedie_schedule::forward::{q_between, q_sample, q_step};
use tweedie_schedule::{BetaSchedule, NoiseLevel, Schedule, ScheduleError, TimestepMapping, Transition, karras_sigmas};

/// What a family is linear in, as a function of beta.
type Coordinate<'a> = &'a dyn Fn(f64) -> f64;

proptest! {
    /// 1.1 composed t times is 1.2, for every schedule and every t.
    #[test]
    fn steps_compose_to_the_marginal(schedule in any_schedule()) {
        let mut walked = Transition::IDENTITY;
        for t in 1..=schedule.steps() {
            walked = walked.then(q_step(&schedule, t));
            let direct = q_sample(schedule.level(t));
            close(walked.scale, direct.scale, 1e-12, "scale")?;
            prop_assert!(
                (walked.variance / direct.variance - 1.0).abs() < 1e-11,
                "variance at {t}: {} instead of {}", walked.variance, direct.variance
            );
        }
    }

    /// q(x_t | x_s) after q(x_s | x_0) is q(x_t | x_0).
    #[test]
    fn transitions_between_levels_compose((s, t) in two_levels(1e-6)) {
        let composed = q_sample(s).then(q_between(s, t).unwrap());
        close(composed.scale, q_sample(t).scale, 1e-14, "scale")?;
        prop_assert!((composed.variance / q_sample(t).variance - 1.0).abs() < 1e-9);
        prop_assert!(q_between(t, s).is_err());
    }

    /// The noise that a step adds is b_t, whether it is read from the table or from the two levels.
    #[test]
    fn levels_carry_the_betas(schedule in any_schedule()) {
        for t in 1..=schedule.steps() {
            let between = q_between(schedule.level(t - 1), schedule.level(t)).unwrap();
            let beta = schedule.beta(t);
            prop_assert!((between.variance / beta - 1.0).abs() < 1e-8, "b_{t} = {beta}, found {}", between.variance);
            close(between.scale, schedule.alpha(t).sqrt(), 1e-12, "scale")?;
        }
    }

    /// Betas lie in (0, 1), or the last is 1 if and only if it leaves no signal; abar and the log-SNR decrease strictly from 1
    /// and infinity; alpha^2 + sigma^2 = 1. For every family, T, and the rescale to zero terminal SNR.
    #[test]
    fn tables_are_in_range(schedule in any_schedule()) {
        let steps = schedule.steps();
        prop_assert_eq!((schedule.betas().len(), schedule.levels().len()), (steps, steps + 1));
        prop_assert_eq!(schedule.abar(0), 1.0);
        prop_assert_eq!(schedule.log_snr(0), f64::INFINITY);
        for t in 1..=steps {
            let (beta, level) = (schedule.beta(t), schedule.level(t));
            prop_assert!(beta > 0.0 && (beta < 1.0 || (t == steps && beta == 1.0 && level == NoiseLevel::PURE_NOISE)));
            prop_assert_eq!(beta, schedule.betas()[t - 1]);
            prop_assert!(level.noisier_than(schedule.level(t - 1)));
            prop_assert!(schedule.abar(t) < schedule.abar(t - 1) && schedule.abar(t) >= 0.0);
            prop_assert!(schedule.log_snr(t) < schedule.log_snr(t - 1));
            close(level.alpha().powi(2) + level.sigma().powi(2), 1.0, 1e-15, "norm")?;
        }
    }

    /// 1.3: the ends are those that were given, and between them each family is a straight line in its own coordinate.
    #[test]
    fn families_follow_their_definitions(start in 1e-5..1e-3_f64, end in 1e-3..0.05_f64, steps in 2..300_usize) {
        let logit = |b: f64| { let u = (b - start) / (end - start); (u / (1.0 - u)).ln() };
        let sigmoid = |r: f64| start + (end - start) / (1.0 + (-r).exp());
        let families: [(&str, Coordinate, [f64; 2]); 5] = [
            ("linear", &|b| b, [start, end]),
            ("scaled-linear", &f64::sqrt, [start, end]),
            ("sqrt", &|b| b * b, [start.sqrt(), end.sqrt()]),
            ("sigmoid", &logit, [sigmoid(-6.0), sigmoid(6.0)]),
            ("exponential", &f64::ln, [start, end]),
        ];
        for (name, coordinate, ends) in families {
            let schedule = Schedule::new(&BetaSchedule::from_name(name, start, end).unwrap(), steps).unwrap();
            close(schedule.beta(1) / ends[0], 1.0, 1e-13, name)?;
            close(schedule.beta(steps) / ends[1], 1.0, 1e-13, name)?;
            let (low, high) = (coordinate(schedule.beta(1)), coordinate(schedule.beta(steps)));
            for t in 1..=steps {
                let line = low + (high - low) * (t - 1) as f64 / (steps - 1) as f64;
                close(coordinate(schedule.beta(t)), line, 1e-10, name)?;
            }
            // A single step takes the first end.
            let one = Schedule::new(&BetaSchedule::from_name(name, start, end).unwrap(), 1).unwrap();
            close(one.beta(1) / ends[0], 1.0, 1e-13, name)?;
        }
    }

    /// 1.3, cosine: abar_t = f(t) / f(0) as long as no beta is cut off, and max_beta from the first that is.
    #[test]
    fn cosine_follows_its_definition(s in 0.0..0.1_f64, max_beta in 0.5..0.9999_f64, steps in 1..300_usize) {
        let schedule = Schedule::new(&BetaSchedule::Cosine { s, max_beta }, steps).unwrap();
        let f = |t: usize| ((t as f64 / steps as f64 + s) / (1.0 + s) * std::f64::consts::FRAC_PI_2).cos().powi(2);
        let mut cut = false;
        for t in 1..=steps {
            cut |= 1.0 - f(t) / f(t - 1) > max_beta;
            if cut {
                prop_assert!(schedule.beta(t) == max_beta, "b_{} = {}", t, schedule.beta(t));
            } else {
                prop_assert!((schedule.abar(t) - f(t) / f(0)).abs() < 1e-12, "abar_{} = {}", t, schedule.abar(t));
            }
        }
        prop_assert!(cut, "f(T) is 0, so the last beta is always cut off");
    }

    /// log-SNR, SNR, EDM sigma, abar and ln abar are views of one level.
    #[test]
    fn views_invert(level in any_level()) {
        let same = |other: NoiseLevel, what: &str| -> Result<(), TestCaseError> {
            prop_assert!((other.alpha() / level.alpha() - 1.0).abs() < 1e-9, "alpha from {what}");
            prop_assert!((other.sigma() / level.sigma() - 1.0).abs() < 1e-9, "sigma from {what}");
            Ok(())
        };
        same(NoiseLevel::from_log_snr(level.log_snr()).unwrap(), "log-SNR")?;
        same(NoiseLevel::from_log_snr(level.snr().ln()).unwrap(), "SNR")?;
        same(NoiseLevel::from_edm_sigma(level.edm_sigma()).unwrap(), "EDM sigma")?;
        same(NoiseLevel::from_abar(level.abar()).unwrap(), "abar")?;
        same(NoiseLevel::from_log_abar(level.abar().ln()).unwrap(), "ln abar")?;
        close(level.edm_sigma(), ((1.0 - level.abar()) / level.abar()).sqrt(), 1e-9, "EDM sigma")?;
    }

    /// The continuous inverse is the integer at table levels, monotone, and undone by `level_at`.
    #[test]
    fn steps_invert(schedule in any_schedule(), u in 0.0..1.0_f64, v in 0.0..1.0_f64) {
        let last = schedule.steps() as f64;
        for t in 0..=schedule.steps() {
            prop_assert_eq!(schedule.t_of_level(schedule.level(t)).unwrap(), t as f64);
            prop_assert_eq!(schedule.level_at(t as f64).unwrap(), schedule.level(t));
        }
        let (low, high) = (u.min(v) * last, u.max(v) * last);
        let (a, b) = (schedule.level_at(low).unwrap(), schedule.level_at(high).unwrap());
        prop_assert!(low == high || b.noisier_than(a) || high - low < 1e-9);
        prop_assert!((schedule.t_of_level(a).unwrap() - low).abs() < 1e-7);
        prop_assert!((schedule.t_of_level(b).unwrap() - high).abs() < 1e-7);
        // A level that lost its last digits on the way is still the same step.
        let again = NoiseLevel::from_log_snr(schedule.log_snr(schedule.steps())).unwrap();
        prop_assert!((schedule.t_of_level(again).unwrap() - last).abs() < 1e-6);
    }

    /// Where sigma is 1 to the last digit for hundreds of steps, the signal still tells them apart.
    #[test]
    fn steps_invert_where_all_is_noise(halvings in 40..80_usize, beta in 1e-5..1e-3_f64, u in 0.0..1.0_f64) {
        let betas = [vec![0.5; halvings], vec![beta; 300]].concat();
        let schedule = Schedule::from_betas(betas).unwrap();
        let t = halvings as f64 + 300.0 * u;
        let level = schedule.level_at(t).unwrap();
        prop_assert!((schedule.t_of_level(level).unwrap() - t).abs() < 1e-6);
        let (before, after) = (schedule.level(t.floor() as usize), schedule.level(t.ceil() as usize));
        prop_assert!(!before.noisier_than(level) && !level.noisier_than(after));
    }

    /// Lin 2023: sqrt(abar) is shifted and scaled, the first level stays and the last loses all signal.
    #[test]
    fn rescale_reaches_zero_snr(rule in any_rule(), steps in 2..200_usize) {
        let before = Schedule::new(&rule, steps).unwrap();
        let after = before.rescaled_zero_terminal_snr().unwrap();
        let root = |t: usize| before.level(t).alpha();
        for t in 1..=steps {
            let expected = (root(t) - root(steps)) * root(1) / (root(1) - root(steps));
            prop_assert!(
                (after.level(t).alpha() - expected).abs() < 1e-11,
                "t = {t}: {} instead of {expected}", after.level(t).alpha()
            );
        }
        prop_assert_eq!(after.abar(steps), 0.0);
        prop_assert_eq!(after.log_snr(steps), f64::NEG_INFINITY);
        prop_assert_eq!(after.level(1), before.level(1));
    }

    /// Karras 2022, eq. 5: the ends are hit, the list decreases, and sigma^(1/rho) is evenly spaced.
    #[test]
    fn karras_is_even_in_the_root(min in 0.001..1.0_f64, ratio in 1.1..1e4_f64, rho in 1.0..10.0_f64, n in 2..50_usize) {
        let sigmas = karras_sigmas(min, min * ratio, rho, n).unwrap();
        prop_assert_eq!((sigmas.len(), sigmas[0], sigmas[n - 1]), (n, min * ratio, min));
        let gap = (min.powf(1.0 / rho) - (min * ratio).powf(1.0 / rho)) / (n - 1) as f64;
        for pair in sigmas.windows(2) {
            prop_assert!(pair[1] < pair[0]);
            close(pair[1].powf(1.0 / rho) - pair[0].powf(1.0 / rho), gap, 1e-12, "gap")?;
        }
    }
}

/// Tables computed with numpy in f64 from the definitions (`numpy.cumprod(1 - betas)`), T = 1000.
#[test]
fn tables_agree_with_numpy() {
    let (start, end) = (1e-4, 0.02);
    let cases: [(BetaSchedule, [f64; 3], [f64; 3]); 6] = [
        (
            BetaSchedule::Linear { start, end },
            [0.0001, 0.010040040040040039, 0.02],
            [0.9999, 0.07858724288177824, 4.035829765375676e-05],
        ),
        (
            BetaSchedule::ScaledLinear { start: 0.00085, end: 0.012 },
            [0.00085, 0.004803792980550717, 0.012],
            [0.99915, 0.27766965045646763, 0.004660098513077238],
        ),
        (
            BetaSchedule::Sqrt { start, end },
            [0.01, 0.10020000019980059, 0.1414213562373095],
            [0.99, 6.119132095327167e-16, 3.2232808793766274e-44],
        ),
        (
            BetaSchedule::Sigmoid { start, end },
            [0.00014920520081703202, 0.010020120209938985, 0.01995079479918297],
            [0.9998507947991829, 0.30193105660219516, 3.968181990533219e-05],
        ),
        (
            BetaSchedule::Exponential { start, end },
            [0.0001, 0.0014104683040603663, 0.02],
            [0.9999, 0.7804075183154451, 0.022792177278457566],
        ),
        (
            BetaSchedule::cosine(),
            [4.128422482196914e-05, 0.0031458862304780677, 0.999],
            [0.999958715775178, 0.4938435904406382, 2.4287669070348567e-09],
        ),
    ];
    for (rule, betas, abars) in cases {
        let schedule = Schedule::new(&rule, 1000).unwrap();
        for (i, t) in [1, 500, 1000].into_iter().enumerate() {
            assert!((schedule.beta(t) / betas[i] - 1.0).abs() < 1e-11, "{rule:?} b_{t} = {}", schedule.beta(t));
            assert!((schedule.abar(t) / abars[i] - 1.0).abs() < 1e-10, "{rule:?} abar_{t} = {}", schedule.abar(t));
        }
    }
}

/// The cosine's argument is real-valued: with integer division all but one beta would vanish.
#[test]
fn cosine_is_not_degenerate() {
    let schedule = Schedule::new(&BetaSchedule::cosine(), 1000).unwrap();
    let f = |t: f64| ((t / 1000.0 + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
    for t in 1..1000 {
        assert!((schedule.abar(t) - f(t as f64) / f(0.0)).abs() < 1e-12, "t = {t}");
    }
    assert_eq!(schedule.beta(1000), 0.999);
    assert_eq!(schedule.betas().iter().filter(|&&b| b < 0.999).count(), 999);
}

/// 1 - abar_1 keeps its digits where 1 - (1 - b) would not.
#[test]
fn both_ends_are_accurate() {
    let schedule = Schedule::from_betas(vec![1e-18, 1e-17]).unwrap();
    assert!((schedule.level(1).sigma() / 1e-9 - 1.0).abs() < 1e-15);
    assert!((schedule.level(2).sigma() / 1.1e-17_f64.sqrt() - 1.0).abs() < 1e-15);
    let noisy = NoiseLevel::from_log_snr(-80.0).unwrap();
    assert!((noisy.alpha() / (-40.0_f64).exp() - 1.0).abs() < 1e-14);
    assert!((noisy.log_snr() + 80.0).abs() < 1e-12);
    let clean = NoiseLevel::from_log_snr(80.0).unwrap();
    assert!((clean.sigma() / (-40.0_f64).exp() - 1.0).abs() < 1e-14);
    for end in [NoiseLevel::CLEAN, NoiseLevel::PURE_NOISE] {
        assert_eq!(NoiseLevel::from_abar(end.abar()).unwrap(), end);
        assert_eq!(NoiseLevel::from_log_abar(end.abar().ln()).unwrap(), end);
        assert_eq!(NoiseLevel::from_log_snr(end.log_snr()).unwrap(), end);
        assert_eq!(NoiseLevel::from_edm_sigma(end.edm_sigma()).unwrap(), end);
    }
}

#[test]
fn networks_see_the_right_number() {
    let schedule = Schedule::new(&BetaSchedule::from_name("linear", 1e-4, 0.02).unwrap(), 1000).unwrap();
    for t in [1, 2, 500, 999, 1000] {
        let level = schedule.level(t);
        assert_eq!(TimestepMapping::OneBased.timestep(&schedule, level).unwrap(), t as f64);
        assert_eq!(TimestepMapping::ZeroBased.timestep(&schedule, level).unwrap(), t as f64 - 1.0);
    }
    let between = schedule.level_at(41.25).unwrap();
    assert!((TimestepMapping::ZeroBased.timestep(&schedule, between).unwrap() - 40.25).abs() < 1e-9);
    for outside in [NoiseLevel::CLEAN, schedule.level_at(0.5).unwrap(), NoiseLevel::PURE_NOISE] {
        assert!(TimestepMapping::OneBased.timestep(&schedule, outside).is_err(), "{outside:?}");
    }
}

#[test]
fn bad_input_is_a_typed_error() {
    let linear = BetaSchedule::Linear { start: 1e-4, end: 0.02 };
    assert!(matches!(Schedule::new(&linear, 0), Err(ScheduleError::Count { found: 0, .. })));
    assert!(matches!(Schedule::new(&linear, usize::MAX), Err(ScheduleError::Count { .. })));
    for (start, end) in [(0.0, 0.1), (-0.1, 0.1), (0.1, 1.0), (f64::NAN, 0.1), (0.1, f64::INFINITY)] {
        for name in ["linear", "scaled-linear", "sqrt", "sigmoid", "exponential"] {
            let rule = BetaSchedule::from_name(name, start, end).unwrap();
            assert!(matches!(Schedule::new(&rule, 10), Err(ScheduleError::Parameter { .. })), "{name} {start} {end}");
        }
    }
    assert!(Schedule::new(&BetaSchedule::Cosine { s: -1.0, max_beta: 0.999 }, 10).is_err());
    assert!(Schedule::new(&BetaSchedule::Cosine { s: 0.008, max_beta: 1.0 }, 10).is_err());
    assert!(matches!(Schedule::new(&BetaSchedule::Custom(vec![0.1; 3]), 4), Err(ScheduleError::Count { .. })));
    assert!(matches!(Schedule::from_betas(vec![0.1, 1.0, 0.1]), Err(ScheduleError::Beta { t: 2, .. })));
    assert!(matches!(Schedule::from_betas(vec![1.0]), Err(ScheduleError::Beta { t: 1, .. })));
    assert!(matches!(Schedule::from_betas(vec![0.1, f64::NAN]), Err(ScheduleError::Beta { t: 2, .. })));
    assert!(matches!(Schedule::from_betas(vec![0.5, 1e-20]), Err(ScheduleError::NotDecreasing { t: 2 })));
    assert!(matches!(Schedule::from_betas(vec![0.9; 2000]), Err(ScheduleError::NotDecreasing { .. })));
    assert!(Schedule::new(&linear, 1).unwrap().rescaled_zero_terminal_snr().is_err());

    let unknown = BetaSchedule::from_name("quadratic", 1e-4, 0.02).unwrap_err().to_string();
    for name in BetaSchedule::NAMES.split(", ") {
        assert!(unknown.contains(name), "{unknown}");
        assert!(Schedule::new(&BetaSchedule::from_name(name, 1e-4, 0.02).unwrap(), 100).is_ok());
    }
    for name in BetaSchedule::CONFIG_NAMES.split(", ") {
        assert_eq!(BetaSchedule::from_config_name(name, 1e-4, 0.02).unwrap().config_name(), Some(name));
    }
    assert!(BetaSchedule::from_config_name("even", 1e-4, 0.02).unwrap_err().to_string().contains("squaredcos_cap_v2"));

    assert!(NoiseLevel::from_abar(1.1).is_err() && NoiseLevel::from_abar(f64::NAN).is_err());
    assert!(NoiseLevel::from_log_abar(0.1).is_err() && NoiseLevel::from_log_abar(f64::NAN).is_err());
    assert!(NoiseLevel::from_edm_sigma(-1.0).is_err() && NoiseLevel::from_edm_sigma(f64::NAN).is_err());
    assert!(NoiseLevel::from_log_snr(f64::NAN).is_err());
    let schedule = Schedule::new(&linear, 10).unwrap();
    assert!(matches!(schedule.t_of_level(NoiseLevel::PURE_NOISE), Err(ScheduleError::LevelOutOfRange { .. })));
    assert!(
        schedule.level_at(10.5).is_err() && schedule.level_at(-0.1).is_err() && schedule.level_at(f64::NAN).is_err()
    );
    for (min, max, rho, n) in [(0.0, 1.0, 7.0, 5), (2.0, 1.0, 7.0, 5), (0.1, 1.0, 0.0, 5), (0.1, 1.0, 7.0, 0)] {
        assert!(karras_sigmas(min, max, rho, n).is_err());
    }
    assert_eq!(karras_sigmas(0.1, 1.0, 7.0, 1).unwrap(), [1.0]);
}
