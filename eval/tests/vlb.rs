//! FORMULAS 4.1 and 4.2: the bound, its forms and its estimators on data whose density is known.

mod common;

use common::{Signs, any_mixture, any_schedule, draw, gaussian, mixture};
use ndarray::{Array4, ArrayView4, array};
use proptest::prelude::*;
use tweedie_data::Range;
use tweedie_denoiser::{
    Condition, ConditionalDenoiser, Denoiser, DenoiserError, MixtureOracle, Noise, Purpose, SeededNoise,
};
use tweedie_eval::vlb::{self, Options, SampleBound, Unconditioned, VlbReport};
use tweedie_eval::{Bound, Decoder, Estimate, EvalError, ReverseVariance, Steps, byte_bins, exact_gaussian_variance};
use tweedie_schedule::{BetaSchedule, Bins, NoiseLevel, Prediction, Schedule, Variance, forward, gaussian as normal};

const ALL: Options = Options { steps: Steps::All, seed: 0, batch: 64 };

fn any_rule() -> impl Strategy<Value = Variance> {
    prop_oneof![
        Just(Variance::FixedSmall),
        Just(Variance::FixedLarge),
        Just(Variance::Unit),
        (0.0..1.0_f64).prop_map(|fraction| Variance::Interpolated { fraction }),
    ]
}

/// The exact reverse variances of `N(m, v I)`.
fn exact_variances(schedule: &Schedule, v: f64) -> ReverseVariance {
    let of = |t| exact_gaussian_variance(&schedule.posterior(t), schedule.level(t), v);
    ReverseVariance::Table((1..=schedule.steps()).map(of).collect())
}

fn density_bound(schedule: &Schedule, variance: &ReverseVariance) -> Bound {
    Bound::new(schedule.clone(), variance, Decoder::Density).unwrap()
}

fn run(bound: &Bound, model: &MixtureOracle, x0: &Array4<f64>, noise: &dyn Noise, options: Options) -> VlbReport {
    let condition = Condition::none(x0.dim().0);
    vlb::evaluate(bound, model, x0.view(), &condition, noise, options, &mut |_| ()).unwrap()
}

/// The exact mean of the bound over the noise, at one `x_0` in one dimension.
fn expected_bound(bound: &Bound, model: &MixtureOracle, x0: f64) -> f64 {
    run(bound, model, &array![[[[x0]]], [[[x0]]]], &Signs, ALL).estimate(SampleBound::total).mean
}

/// The exact mean of the bound over `x_0 ~ N(m, s^2)` and the noise: the two-point rule in both.
fn expected_over_data(bound: &Bound, model: &MixtureOracle, m: f64, s: f64) -> f64 {
    0.5 * (expected_bound(bound, model, m - s) + expected_bound(bound, model, m + s))
}

fn entropy(s: f64) -> f64 {
    0.5 * (2.0 * std::f64::consts::PI * std::f64::consts::E * s * s).ln()
}

/// `KL(q(x_T) || N(0, 1))` for data `N(m, s^2)`: what remains of the bound if every step is exact.
fn prior_gap(schedule: &Schedule, m: f64, s: f64) -> f64 {
    let (a, v) = (schedule.abar(schedule.steps()), s * s);
    let variance = a * v + 1.0 - a;
    0.5 * (variance - 1.0 - variance.ln() + a * m * m)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// E_q[ln q(x_{1:T} | x_0) - ln p(x_{0:T})] of one-dimensional Gaussian data, written down transition by transition.
    #[test]
    fn telescoped_sum_is_the_log_ratio_in_closed_form(
        schedule in any_schedule(12), rule in any_rule(), m in -1.0..1.0_f64, s in 0.2..2.0_f64, x0 in -2.0..2.0_f64,
    ) {
        let bound = density_bound(&schedule, &ReverseVariance::Rule(rule));
        let tau = 2.0 * std::f64::consts::PI;
        let mut direct = 0.0;
        for t in 1..=schedule.steps() {
            let (b, s2) = (schedule.beta(t), bound.variance(t).unwrap());
            let (now, before) = (schedule.level(t), schedule.level(t - 1));
            // E ln q(x_t | x_{t-1}).
            direct -= 0.5 * ((tau * b).ln() + 1.0);
            // The mean of p(x_{t-1} | x_t) is slope x_t + offset, with the exact estimate m + gain (x_t - alpha m).
            let gain = now.alpha() * s * s / (now.abar() * s * s + now.sigma().powi(2));
            let of_x0 = before.alpha() * b / now.sigma().powi(2);
            let slope = (1.0 - b).sqrt() * before.sigma().powi(2) / now.sigma().powi(2) + of_x0 * gain;
            let offset = of_x0 * (m - gain * now.alpha() * m);
            // x_t = sqrt(1 - b) x_{t-1} + sqrt(b) z and x_{t-1} ~ N(alpha_{t-1} x_0, sigma_{t-1}^2).
            let kept = 1.0 - slope * (1.0 - b).sqrt();
            let mean = kept * before.alpha() * x0 - offset;
            let variance = kept * kept * before.sigma().powi(2) + slope * slope * b;
            direct += 0.5 * ((tau * s2).ln() + (mean * mean + variance) / s2);
        }
        let last = schedule.level(schedule.steps());
        direct += 0.5 * (tau.ln() + last.abar() * x0 * x0 + last.sigma().powi(2));
        let found = expected_bound(&bound, &gaussian(m, s, 1), x0);
        prop_assert!((found - direct).abs() < 1e-10 * (1.0 + direct.abs()), "{found} instead of {direct}");
    }

    /// On every single path the direct and the telescoped log-ratio are the same number.
    #[test]
    fn log_ratios_of_a_path_are_equal(
        schedule in any_schedule(10), rule in any_rule(), parts in any_mixture(), seed in any::<u64>(), quantised in any::<bool>(),
    ) {
        let bins = Bins::new(-6.0, 6.0, 256).unwrap();
        let (decoder, mut x0) = (if quantised { Decoder::Bins(bins) } else { Decoder::Density }, draw(&parts, 3, seed).0);
        if quantised {
            x0.mapv_inplace(|v| bins.level(((v + 6.0) / bins.width()).round() as usize));
        }
        let bound = Bound::new(schedule, &ReverseVariance::Rule(rule), decoder).unwrap();
        for ratio in bound.log_ratio(&mixture(&parts), x0.view(), &SeededNoise::new(seed)).unwrap() {
            let scale = 1.0 + ratio.direct.abs();
            prop_assert!((ratio.direct - ratio.telescoped).abs() < 1e-9 * scale, "{ratio:?}");
        }
    }

    /// If the reverse process is the forward one reversed, then on every path the ratio is
    /// `-ln p(x_0) + ln q(x_T) / N(x_T; 0, 1)`, whatever the path.
    #[test]
    fn log_ratio_of_an_exact_reversal_is_the_density(
        schedule in any_schedule(12), m in -1.0..1.0_f64, s in 0.2..2.0_f64, x0 in -2.0..2.0_f64, seed in any::<u64>(),
    ) {
        let (model, noise) = (gaussian(m, s, 1), SeededNoise::new(seed));
        let bound = density_bound(&schedule, &exact_variances(&schedule, s * s));
        let data = array![[[[x0]]]];
        let found = bound.log_ratio(&model, data.view(), &noise).unwrap()[0].direct;
        let mut last = x0;
        for t in 1..=schedule.steps() {
            let mut z = [0.0];
            noise.fill(Purpose::Step(t), 0, &mut z).unwrap();
            last = forward::q_step(&schedule, t).apply(last, z[0]);
        }
        let log = |x: f64, level| model.log_density(array![[[[x]]]].view(), level, &Condition::none(1)).unwrap()[0];
        let standard = -0.5 * ((2.0 * std::f64::consts::PI).ln() + last * last);
        let expected = -log(x0, NoiseLevel::CLEAN) + log(last, schedule.level(schedule.steps())) - standard;
        prop_assert!((found - expected).abs() < 1e-9 * (1.0 + expected.abs()), "{found} instead of {expected}");
    }

    /// Gaussian data with the exact denoiser: no rule gets below the entropy, and the exact variance leaves the prior alone.
    #[test]
    fn exact_variance_closes_the_bound(
        schedule in any_schedule(30), rule in any_rule(), m in -1.0..1.0_f64, s in 0.2..2.0_f64, x0 in -2.0..2.0_f64,
    ) {
        let model = gaussian(m, s, 1);
        let by_rule = density_bound(&schedule, &ReverseVariance::Rule(rule));
        let gap = expected_over_data(&by_rule, &model, m, s) - entropy(s);
        let least = prior_gap(&schedule, m, s);
        prop_assert!(gap > least - 1e-10, "{gap} is below {least}");
        let exact = density_bound(&schedule, &exact_variances(&schedule, s * s));
        let gap = expected_over_data(&exact, &model, m, s) - entropy(s);
        prop_assert!((gap - least).abs() < 1e-9 * (1.0 + least), "{gap} instead of {least}");
        // At each x_0 by itself: the noised x_T is all that is left of it.
        let (last, v) = (schedule.level(schedule.steps()), s * s);
        let marginal = last.abar() * v + last.sigma().powi(2);
        let offset = last.alpha() * (x0 - m);
        let expected = 0.5 * ((2.0 * std::f64::consts::PI * v).ln() + (x0 - m) * (x0 - m) / v)
            + 0.5 * (-marginal.ln() + last.abar() * x0 * x0 + last.sigma().powi(2)
                - (offset * offset + last.sigma().powi(2)) / marginal);
        let found = expected_bound(&exact, &model, x0);
        prop_assert!((found - expected).abs() < 1e-9 * (1.0 + expected.abs()), "{found} instead of {expected}");
    }

    #[test]
    fn a_step_is_its_error_and_its_variances(
        schedule in any_schedule(40), at in 0.0..1.0_f64, x0 in -2.0..2.0_f64, eps in -3.0..3.0_f64, guess in -2.0..2.0_f64,
        s2 in 0.01..2.0_f64,
    ) {
        let t = 1 + (at * schedule.steps() as f64) as usize;
        let (level, posterior) = (schedule.level(t), schedule.posterior(t));
        let xt = forward::q_sample(level).apply(x0, eps);
        let means = posterior.mean(xt, x0) - posterior.mean(xt, guess);
        // The coefficient of FORMULAS 4.2 for x_0, from the betas; those of the other predictions are the schedule's to test.
        let (b, before, now) = (schedule.beta(t), schedule.abar(t - 1), schedule.abar(t));
        let expected = before * b * b / (1.0 - now).powi(2) * (x0 - guess).powi(2) / (2.0 * s2);
        let found = posterior.kl_weight(Prediction::Mean, s2).unwrap() * means * means;
        prop_assert!((found - expected).abs() < 1e-9 * (1.0 + expected), "{found} instead of {expected}");
        // A step's term is one of them and what the variances differ by.
        if t > 1 {
            let term = normal::kl_isotropic(means * means, posterior.variance(), s2, 1);
            let variances = normal::kl_isotropic(0.0, posterior.variance(), s2, 1);
            prop_assert!((term - variances - expected).abs() < 1e-9 * (1.0 + expected));
        }
    }

    #[test]
    fn prior_agrees_with_quadrature(log_snr in -6.0..3.0_f64, x0 in -2.0..2.0_f64) {
        let level = NoiseLevel::from_log_snr(log_snr).unwrap();
        let (m, s) = (level.alpha() * x0, level.sigma());
        let log = |x: f64, m: f64, s: f64| -0.5 * ((x - m) / s).powi(2) - s.ln();
        let h = s / 64.0;
        let sum: f64 = (-64 * 12..=64 * 12)
            .map(|i| m + f64::from(i) * h)
            .map(|x| log(x, m, s).exp() * (log(x, m, s) - log(x, 0.0, 1.0)))
            .sum();
        let expected = sum * h / (2.0 * std::f64::consts::PI).sqrt();
        let found = vlb::prior_kl(level, x0 * x0, 1);
        prop_assert!((found - expected).abs() < 1e-10, "{found} instead of {expected}");
        prop_assert!((vlb::prior_kl(level, 3.0 * x0 * x0, 3) - 3.0 * expected).abs() < 1e-9);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Over draws of the data the bound is not below -ln p(x_0) by more than chance allows: 5 standard errors of the paired
    /// difference, a false alarm in 3.5 million.
    #[test]
    fn bound_lies_above_the_exact_value(parts in any_mixture(), rule in any_rule(), steps in 4..20_usize, seed in any::<u64>()) {
        let schedule = Schedule::new(&BetaSchedule::Linear { start: 0.02, end: 0.7 }, steps).unwrap();
        let bound = density_bound(&schedule, &ReverseVariance::Rule(rule));
        let (model, (x0, _)) = (mixture(&parts), draw(&parts, 1500, seed));
        let report = run(&bound, &model, &x0, &SeededNoise::new(seed), ALL);
        let exact = model.log_density(x0.view(), NoiseLevel::CLEAN, &Condition::none(1500)).unwrap();
        let gaps: Vec<f64> = report.samples.iter().zip(exact).map(|(b, log)| b.total() + log).collect();
        let gap = Estimate::of(&gaps);
        prop_assert!(gap.mean > -5.0 * gap.standard_error.unwrap(), "{gap:?}");
    }
}

/// The mean of the log-ratio over paths is the mean of the bound, up to 5 standard errors.
#[test]
fn log_ratio_has_the_mean_of_the_bound() {
    let parts = vec![(1.0, [0.8, -0.4], 0.3), (2.0, [-0.9, 0.5], 0.5)];
    let schedule = Schedule::new(&BetaSchedule::Linear { start: 0.05, end: 0.5 }, 8).unwrap();
    let (model, n) = (mixture(&parts), 6000);
    for rule in [Variance::FixedSmall, Variance::FixedLarge] {
        let bound = density_bound(&schedule, &ReverseVariance::Rule(rule));
        let x0 = Array4::from_shape_fn((n, 1, 1, 2), |(_, _, _, j)| [0.4, -0.7][j]);
        let report = run(&bound, &model, &x0, &SeededNoise::new(1), ALL).estimate(SampleBound::total);
        let ratios = bound.log_ratio(&model, x0.view(), &SeededNoise::new(2)).unwrap();
        let direct = Estimate::of(&ratios.iter().map(|r| r.direct).collect::<Vec<f64>>());
        let error = report.standard_error.unwrap().hypot(direct.standard_error.unwrap());
        assert!(error < 0.1, "{error}");
        assert!((report.mean - direct.mean).abs() < 5.0 * error, "{report:?} and {direct:?}");
    }
}

/// Halving the steps' length halves what the large variance loses on Gaussian data: the bound closes at first order.
#[test]
fn bound_closes_at_first_order() {
    let (m, s) = (0.4, 0.5);
    let gap = |steps: usize| {
        // The same process, cut into `steps` parts: abar_T is e^-10.
        let betas = vec![-(-10.0 / steps as f64).exp_m1(); steps];
        let schedule = Schedule::from_betas(betas).unwrap();
        let bound = density_bound(&schedule, &ReverseVariance::Rule(Variance::FixedLarge));
        expected_over_data(&bound, &gaussian(m, s, 1), m, s) - entropy(s) - prior_gap(&schedule, m, s)
    };
    let gaps: Vec<f64> = [200, 400, 800].into_iter().map(gap).collect();
    assert!(gaps[0] < 0.1 && gaps[2] > 0.0, "{gaps:?}");
    for pair in gaps.windows(2) {
        let order = (pair[0] / pair[1]).log2();
        assert!((order - 1.0).abs() < 0.1, "order {order} from {gaps:?}");
    }
}

/// The same noise for every sample, different from step to step.
struct ByStep;

impl Noise for ByStep {
    fn fill(&self, purpose: Purpose, _: usize, out: &mut [f64]) -> Result<(), DenoiserError> {
        SeededNoise::new(3).fill(purpose, 0, out)
    }
}

#[test]
fn stratified_steps_are_unbiased() {
    let schedule = Schedule::new(&BetaSchedule::Linear { start: 0.01, end: 0.5 }, 24).unwrap();
    let bound = density_bound(&schedule, &ReverseVariance::default());
    let (model, n) = (gaussian(0.3, 0.6, 2), 4000);
    let x0 = Array4::from_shape_fn((n, 1, 1, 2), |(_, _, _, j)| [0.9, -0.2][j]);
    // Every sample is the same, so every step's term is one number, and the sum over all steps is exact.
    let all = run(&bound, &model, &x0, &ByStep, ALL);
    let values: Vec<f64> = all.terms.iter().map(|term| term.estimate.mean).collect();
    let exact: f64 = values[1..].iter().sum();
    assert!((all.estimate(|b| b.steps).mean - exact).abs() < 1e-9 * exact);
    assert_eq!((all.terms.len(), all.terms[0].t, all.dims), (24, 1, 2));
    assert!((values[0] - all.estimate(|b| b.decoder).mean).abs() < 1e-12);

    // 23 steps in 5 strata.
    const STRATA: [(usize, usize); 5] = [(2, 1), (3, 2), (5, 4), (9, 6), (15, 10)];
    let options = Options { steps: Steps::Stratified { per_sample: 5 }, seed: 11, batch: 64 };
    let report = run(&bound, &model, &x0, &ByStep, options);
    let mut variance = 0.0;
    for (first, size) in STRATA {
        let stratum = &values[first - 1..first - 1 + size];
        let mean = stratum.iter().sum::<f64>() / size as f64;
        let square = stratum.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / size as f64;
        variance += (size * size) as f64 * square;
    }
    let expected_error = (variance / n as f64).sqrt();
    let steps = report.estimate(|b| b.steps);
    assert!((steps.mean - exact).abs() < 5.0 * expected_error, "{steps:?} instead of {exact}");
    assert!((steps.standard_error.unwrap() / expected_error - 1.0).abs() < 0.1, "{steps:?}, expected {expected_error}");
    // Every step of a stratum is as likely as the others, and prior and decoder are exact.
    for term in &report.terms[1..] {
        assert!((term.estimate.mean - values[term.t - 1]).abs() < 1e-12);
        let stratum = STRATA.iter().find(|(first, size)| (*first..first + size).contains(&term.t)).unwrap();
        let share = n as f64 / stratum.1 as f64;
        assert!((term.estimate.count as f64 - share).abs() < 5.0 * share.sqrt(), "{term:?}");
    }
    assert_eq!(report.terms[0], all.terms[0]);
    assert_eq!(report.estimate(|b| b.prior), all.estimate(|b| b.prior));
    let parts = report.samples[0];
    assert_eq!(parts.total(), parts.prior + parts.steps + parts.decoder);
    // As many strata as steps: the exact sum.
    let every = Options { steps: Steps::Stratified { per_sample: 23 }, ..options };
    assert_eq!(run(&bound, &model, &x0, &ByStep, every), all);
}

#[test]
fn results_do_not_depend_on_the_batch_and_calls_are_counted() {
    let parts = vec![(1.0, [0.8, -0.4], 0.3), (2.0, [-0.9, 0.5], 0.5)];
    let schedule = Schedule::new(&BetaSchedule::Linear { start: 0.05, end: 0.5 }, 9).unwrap();
    let bound = density_bound(&schedule, &ReverseVariance::default());
    let (x0, _) = draw(&parts, 10, 1);
    let steps = Steps::Stratified { per_sample: 3 };
    let report = |batch, seed, calls: &mut usize| {
        let options = Options { steps, seed, batch };
        let condition = Condition::none(10);
        let tick = &mut |n| *calls += n;
        vlb::evaluate(&bound, &mixture(&parts), x0.view(), &condition, &SeededNoise::new(1), options, tick).unwrap()
    };
    let (mut one, mut many) = (0, 0);
    assert_eq!(report(1, 4, &mut one), report(64, 4, &mut many));
    assert_ne!(report(64, 4, &mut 0), report(64, 5, &mut 0));
    assert_eq!((one, many, steps.calls(9)), (40, 40, 4));
    assert_eq!((Steps::All.calls(9), Steps::All.calls(1), steps.calls(1)), (9, 1, 1));
    // The first samples are the same ones, however many follow.
    let options = Options { steps, seed: 4, batch: 64 };
    let few = run(
        &bound,
        &mixture(&parts),
        &x0.slice(ndarray::s![..3, .., .., ..]).to_owned(),
        &SeededNoise::new(1),
        options,
    );
    assert_eq!(few.samples, report(64, 4, &mut 0).samples[..3]);
}

/// Each sample is evaluated under its own label.
#[test]
fn labels_go_with_their_samples() {
    let parts = vec![(1.0, [0.8, -0.4], 0.3), (2.0, [-0.9, 0.5], 0.5)];
    let schedule = Schedule::new(&BetaSchedule::Linear { start: 0.05, end: 0.5 }, 9).unwrap();
    let bound = density_bound(&schedule, &ReverseVariance::default());
    let (x0, chosen) = draw(&parts, 12, 1);
    let evaluate = |model: &dyn ConditionalDenoiser, condition: &Condition| {
        let options = Options { steps: Steps::Stratified { per_sample: 4 }, seed: 4, batch: 5 };
        vlb::evaluate(&bound, model, x0.view(), condition, &SeededNoise::new(1), options, &mut |_| ()).unwrap()
    };
    let labels = Condition::labels(chosen.iter().map(|&k| Some(k)).collect());
    let found = evaluate(&mixture(&parts), &labels);
    for k in 0..2 {
        let alone = evaluate(&mixture(&vec![parts[k]]), &Condition::none(12));
        for (i, _) in chosen.iter().enumerate().filter(|(_, c)| **c == k) {
            assert!((found.samples[i].total() - alone.samples[i].total()).abs() < 1e-9);
        }
    }
    // A denoiser without conditions takes the null condition alone.
    let plain = Unconditioned(mixture(&parts));
    assert_eq!(evaluate(&plain, &Condition::none(12)), evaluate(&mixture(&parts), &Condition::none(12)));
    let refused = plain.denoise_with(x0.view(), NoiseLevel::PURE_NOISE, &labels).unwrap_err().to_string();
    assert!(refused.contains("no condition"), "{refused}");
}

#[test]
fn one_step_is_prior_and_decoder() {
    let schedule = Schedule::from_betas(vec![0.6]).unwrap();
    let bound = density_bound(&schedule, &ReverseVariance::default());
    for steps in [Steps::All, Steps::Stratified { per_sample: 7 }] {
        let report = run(&bound, &gaussian(0.0, 1.0, 3), &Array4::ones((2, 1, 1, 3)), &Signs, Options { steps, ..ALL });
        assert_eq!((report.terms.len(), report.samples[0].steps), (1, 0.0));
        // x_1 = sqrt(0.4) + sqrt(0.6), the mean is sqrt(0.4) x_1, the variance 0.6.
        let mean = 0.4_f64.sqrt() * (0.4_f64.sqrt() + 0.6_f64.sqrt());
        let decoder = 1.5 * ((2.0 * std::f64::consts::PI * 0.6).ln() + (1.0 - mean).powi(2) / 0.6);
        assert!((report.samples[0].decoder - decoder).abs() < 1e-12);
        let prior = 1.5 * (0.6 - 1.0 - 0.6_f64.ln() + 0.4);
        assert!((report.samples[0].prior - prior).abs() < 1e-12);
    }
}

/// The pixels' decoder sees the data, the mean and the variance of the first step.
#[test]
fn the_first_term_is_that_of_the_bins() {
    let schedule = Schedule::new(&BetaSchedule::Linear { start: 0.01, end: 0.5 }, 6).unwrap();
    for (range, x) in [(Range::MinusOneOne, 33), (Range::ZeroOne, 200)] {
        let bins = byte_bins(range);
        let bound = Bound::new(schedule.clone(), &ReverseVariance::default(), Decoder::Bins(bins)).unwrap();
        assert_eq!(bound.decoder(), &Decoder::Bins(bins));
        let x0 = Array4::from_elem((2, 1, 1, 2), f64::from(range.from_byte(x)));
        let model = gaussian(0.1, 0.5, 2);
        let eps = array![[[[0.3, -1.2]]], [[[2.0, 0.1]]]];
        let terms = bound.term(&model, x0.view(), eps.view(), 1).unwrap();
        let q = forward::q_sample(schedule.level(1));
        let x1 = ndarray::Zip::from(&x0).and(&eps).map_collect(|&x, &e| q.apply(x, e));
        let estimate = model.denoise(x1.view(), schedule.level(1)).unwrap();
        for i in 0..2 {
            let probability =
                |j: usize| bins.log_probability(x.into(), estimate[[i, 0, 0, j]], bound.variance(1).unwrap().sqrt());
            let expected = -probability(0) - probability(1);
            assert!((terms[i] - expected).abs() < 1e-9 * expected, "{} instead of {expected}", terms[i]);
        }
        assert!((bound.variance(1).unwrap() / schedule.posterior(2).variance() - 1.0).abs() < 1e-14);
    }
}

/// A model that returns what it is told to.
struct Broken(Array4<f64>);

impl Denoiser for Broken {
    fn denoise(&self, _: ArrayView4<'_, f64>, _: NoiseLevel) -> Result<Array4<f64>, DenoiserError> {
        Ok(self.0.clone())
    }
}

#[test]
fn mistakes_are_named() {
    let schedule = Schedule::new(&BetaSchedule::Linear { start: 0.01, end: 0.5 }, 6).unwrap();
    let bound = density_bound(&schedule, &ReverseVariance::default());
    let x0 = Array4::zeros((2, 1, 1, 2));
    let fail = |model: &dyn ConditionalDenoiser, condition: Condition, steps, parts: &[&str]| {
        let options = Options { steps, seed: 0, batch: 1 };
        let result = vlb::evaluate(&bound, model, x0.view(), &condition, &Signs, options, &mut |_| ());
        let message = result.unwrap_err().to_string();
        for part in parts {
            assert!(message.contains(part), "no {part:?} in: {message}");
        }
    };
    let (good, none) = (gaussian(0.0, 1.0, 2), Condition::none(2));
    fail(&good, Condition::none(3), Steps::All, &["condition", "2 samples", "3"]);
    for per_sample in [0, 6] {
        fail(
            &good,
            none.clone(),
            Steps::Stratified { per_sample },
            &["steps per sample", "1 to 5", &per_sample.to_string()],
        );
    }
    fail(&Unconditioned(Broken(Array4::zeros((1, 1, 2, 1)))), none.clone(), Steps::All, &["estimate", "[1, 1, 1, 2]"]);
    fail(
        &Unconditioned(Broken(Array4::from_elem((1, 1, 1, 2), f64::NAN))),
        none,
        Steps::All,
        &["sample 0", "step 1", "NaN"],
    );
    let error = bound.term(&good, x0.view(), Array4::zeros((1, 1, 1, 2)).view(), 2).unwrap_err();
    assert!(matches!(error, EvalError::Parameter { what: "the noise", .. }), "{error}");
    let bins = Bound::new(schedule, &ReverseVariance::default(), Decoder::Bins(byte_bins(Range::ZeroOne))).unwrap();
    let off = array![[[[0.0, 1.0]]], [[[0.0, 0.5]]]];
    let error =
        vlb::evaluate(&bins, &good, off.view(), &Condition::none(2), &Signs, Options { batch: 1, ..ALL }, &mut |_| ());
    let error = error.unwrap_err().to_string();
    assert!(error.contains("sample 1") && error.contains("0.5"), "{error}");
}

/// A model that states one fraction for every value has the bound of the fixed interpolation; other models are refused.
#[test]
fn a_learned_variance_enters_the_bound() {
    struct Stating(MixtureOracle, f64);
    impl tweedie_denoiser::Denoiser for Stating {
        fn denoise(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Array4<f64>, DenoiserError> {
            self.0.denoise(x, level)
        }

        fn estimate(
            &self,
            x: ArrayView4<'_, f64>,
            level: NoiseLevel,
        ) -> Result<tweedie_denoiser::Estimate, DenoiserError> {
            let fraction = Some(Array4::from_elem(x.dim(), self.1));
            Ok(tweedie_denoiser::Estimate { fraction, ..self.0.denoise(x, level)?.into() })
        }
    }
    let schedule = Schedule::new(&BetaSchedule::Linear { start: 0.01, end: 0.3 }, 12).unwrap();
    let (oracle, fraction) = (common::gaussian(0.2, 0.5, 3), 0.35);
    let x0 = Array4::from_shape_fn((4, 1, 1, 3), |(i, _, _, j)| (3 * i + j) as f64 / 6.0 - 1.0);
    let eps = x0.mapv(|x| (7.0 * x).sin());
    for decoder in [Decoder::Density, Decoder::Bins(Bins::new(-1.0, 1.0, 13).unwrap())] {
        let bound = |rule| Bound::new(schedule.clone(), &ReverseVariance::Rule(rule), decoder).unwrap();
        let (learned, fixed) = (bound(Variance::LearnedRange), bound(Variance::Interpolated { fraction }));
        assert_eq!(learned.variance(3), None);
        for t in 1..=12 {
            let found = learned.term(&Stating(oracle.clone(), fraction), x0.view(), eps.view(), t).unwrap();
            let expected = fixed.term(&oracle, x0.view(), eps.view(), t).unwrap();
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-9 * (1.0 + expected.abs()), "{found}, not {expected}, t = {t}");
            }
        }
        let error = learned.term(&oracle, x0.view(), eps.view(), 3).unwrap_err().to_string();
        assert!(error.contains("twice as many output channels"), "{error}");
    }
}
