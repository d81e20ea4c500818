//! The forward process, schedules and grids (FORMULAS 1).

use std::f64::consts::FRAC_PI_2;

use anyhow::Result;
use tweedie_schedule::forward::{Transition, q_between, q_sample, q_step};
use tweedie_schedule::{BetaSchedule, NoiseLevel, Spacing, StepGrid, karras_sigmas};

use super::draw::Draw;
use super::{Identity, Worst, reference};

pub const IDENTITIES: &[Identity] = &[
    Identity {
        id: "1.1-semigroup",
        equation: "q(x_t|x_(t-1)) .. q(x_1|x_0) = q(x_t|x_0)",
        source: "Ho 2020, eqs. 2, 4",
        relative_to: "the mean's factor and the variance of q(x_t|x_0)",
        tolerance: 1e-12,
        because: "rounding of up to 1000 factors and of a sum of logarithms up to 60: 1000 eps = 2e-13",
        cost: 1,
        check: semigroup,
    },
    Identity {
        id: "1.1-between",
        equation: "q(x_t|x_s) = N(sqrt(abar_t/abar_s) x_s, 1 - abar_t/abar_s)",
        source: "Ho 2020, eq. 4",
        relative_to: "factor and variance of the steps s+1..t, composed one by one",
        tolerance: 1e-8,
        because: "the variance is a difference of levels; one step can be 1e-5 of the levels' 1000 eps",
        cost: 1,
        check: between,
    },
    Identity {
        id: "1.2-sample",
        equation: "x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps",
        source: "Ho 2020, eq. 4",
        relative_to: "the sum of the sizes of both terms",
        tolerance: 1e-12,
        because: "as 1.1-semigroup",
        cost: 1,
        check: noising,
    },
    Identity {
        id: "1.3-families",
        equation: "b_t of linear, scaled-linear, cosine, sqrt, sigmoid, exp.",
        source: "Nichol 2021, eq. 17",
        relative_to: "b_t; to 1 for the cosine, whose definition subtracts from 1",
        tolerance: 2e-12,
        because: "a few operations; the cosine's argument is as near as 1/1000 to pi/2, where its digits count",
        cost: 1,
        check: families,
    },
    Identity {
        id: "1.3-order",
        equation: "0 < b_t < 1; abar_t and log-SNR fall strictly; b~_t <= b_t",
        source: "Ho 2020, sec. 2",
        relative_to: "nothing: inequalities",
        tolerance: 0.0,
        because: "no step may break one",
        cost: 1,
        check: order,
    },
    Identity {
        id: "1.3-rescale",
        equation: "s'_t = (s_t - s_T) s_1/(s_1 - s_T),  s = sqrt(abar)",
        source: "Lin 2023, Alg. 1",
        relative_to: "s_1; abar'_T = 0 exactly",
        tolerance: 1e-10,
        because: "a thousand rounded factors, over an s_1 - s_T of a thousandth of s_1 and more",
        cost: 1,
        check: rescale,
    },
    Identity {
        id: "1.3-grids",
        equation: "K steps, strictly falling, in 1..T, for any T, K, spacing",
        source: "Lin 2023, table 2",
        relative_to: "nothing: inequalities, and the formula of each spacing",
        tolerance: 0.0,
        because: "whole numbers",
        cost: 1,
        check: grids,
    },
    Identity {
        id: "1.3-karras",
        equation: "sigma_i^(1/rho) evenly spaced from sigma_max to sigma_min",
        source: "Karras 2022, eq. 5",
        relative_to: "sigma_max^(1/rho)",
        tolerance: 1e-14,
        because: "powers of exponent up to 10 and their roots",
        cost: 1,
        check: karras,
    },
    Identity {
        id: "1.4-views",
        equation: "abar, SNR, log-SNR, EDM sigma and their inverses",
        source: "Kingma 2021; Karras 2022",
        relative_to: "each view; alpha and sigma of the level",
        tolerance: 1e-12,
        because: "as 1.1-semigroup; the exponential multiplies eps by a log-SNR of up to 60",
        cost: 1,
        check: views,
    },
    Identity {
        id: "1.4-time",
        equation: "t(level(t)) = t for real t in [0, T], and level is monotone",
        source: "Lu 2022",
        relative_to: "one step",
        tolerance: 1e-8,
        because: "eps times a log-SNR of up to 60, over its change in a step, 1e-5 and more",
        cost: 1,
        check: time,
    },
];

fn semigroup(draw: &mut Draw) -> Result<f64> {
    let schedule = draw.schedule(1, 1000)?;
    let t = draw.whole(1, schedule.steps());
    let composed = (1..=t).fold(Transition::IDENTITY, |q, t| q.then(q_step(&schedule, t)));
    let (scale, variance) = reference::steps(&schedule, 0, t);
    let mut worst = Worst::default();
    for q in [composed, q_sample(schedule.level(t))] {
        worst.relative(q.scale, scale);
        worst.relative(q.variance, variance);
    }
    Ok(worst.0)
}

fn between(draw: &mut Draw) -> Result<f64> {
    let schedule = draw.schedule(2, 1000)?;
    let (s, t) = draw.two_steps(&schedule, 1);
    let r = draw.whole(0, s);
    let (early, late) =
        (q_between(schedule.level(r), schedule.level(s))?, q_between(schedule.level(s), schedule.level(t))?);
    let (scale, variance) = reference::steps(&schedule, s, t);
    let mut worst = Worst::default();
    worst.relative(late.scale, scale);
    worst.relative(late.variance, variance);
    let (scale, variance) = reference::steps(&schedule, r, t);
    let both = early.then(late);
    worst.relative(both.scale, scale);
    worst.relative(both.variance, variance);
    Ok(worst.0)
}

fn noising(draw: &mut Draw) -> Result<f64> {
    let schedule = draw.schedule(1, 1000)?;
    let t = draw.whole(1, schedule.steps());
    let (x0, eps) = (3.0 * draw.normal(), draw.normal());
    let (scale, variance) = reference::steps(&schedule, 0, t);
    let mut worst = Worst::default();
    let (signal, noise) = (scale * x0, variance.sqrt() * eps);
    worst.see(q_sample(schedule.level(t)).apply(x0, eps), signal + noise, signal.abs() + noise.abs());
    Ok(worst.0)
}

fn families(draw: &mut Draw) -> Result<f64> {
    let mut worst = Worst::default();
    let (rule, schedule) = draw.named_schedule()?;
    let steps = schedule.steps();
    for t in 1..=steps {
        let u = if steps > 1 { (t - 1) as f64 / (steps - 1) as f64 } else { 0.0 };
        let mix = |from: f64, to: f64| (1.0 - u) * from + u * to;
        let expected = match rule {
            BetaSchedule::Linear { start, end } => mix(start, end),
            BetaSchedule::ScaledLinear { start, end } => mix(start.sqrt(), end.sqrt()).powi(2),
            BetaSchedule::Sqrt { start, end } => mix(start, end).sqrt(),
            BetaSchedule::Sigmoid { start, end } => start + (end - start) * (0.5 + 0.5 * mix(-3.0, 3.0).tanh()),
            BetaSchedule::Exponential { start, end } => start.powf(1.0 - u) * end.powf(u),
            BetaSchedule::Cosine { s, max_beta } => {
                let f = |t: f64| ((t / steps as f64 + s) / (1.0 + s) * FRAC_PI_2).cos().powi(2);
                let beta = 1.0 - f(t as f64) / f((t - 1) as f64);
                worst.see(schedule.beta(t), beta.min(max_beta), 1.0);
                continue;
            }
            _ => anyhow::bail!("{rule:?} is of no family"),
        };
        worst.relative(schedule.beta(t), expected);
    }
    Ok(worst.0)
}

fn order(draw: &mut Draw) -> Result<f64> {
    let schedule = draw.schedule(1, 1000)?;
    let mut worst = Worst::default();
    worst.holds(schedule.abar(0) == 1.0 && schedule.betas().len() == schedule.steps());
    for t in 1..=schedule.steps() {
        let (beta, posterior) = (schedule.beta(t), schedule.posterior(t));
        worst.holds(beta > 0.0 && beta < 1.0);
        worst.holds(schedule.abar(t) < schedule.abar(t - 1) && schedule.abar(t) > 0.0);
        worst.holds(schedule.log_snr(t) < schedule.log_snr(t - 1));
        worst.holds(schedule.level(t).noisier_than(schedule.level(t - 1)));
        worst.holds(posterior.variance() <= beta && (posterior.variance() > 0.0) == (t > 1));
    }
    Ok(worst.0)
}

fn rescale(draw: &mut Draw) -> Result<f64> {
    let schedule = draw.schedule(2, 1000)?;
    let steps = schedule.steps();
    let signal = |t: usize| reference::steps(&schedule, 0, t).0;
    let (first, last) = (signal(1), signal(steps));
    let mut worst = Worst::default();
    if (first - last) / first < 1e-3 {
        return Ok(0.0);
    }
    let rescaled = schedule.rescaled_zero_terminal_snr()?;
    worst.holds(rescaled.abar(steps) == 0.0 && rescaled.beta(1) == schedule.beta(1));
    let mut now = 1.0;
    for t in 1..=steps {
        now *= (1.0 - schedule.beta(t)).sqrt();
        worst.see(rescaled.level(t).alpha(), (now - last) * first / (first - last), first);
    }
    Ok(worst.0)
}

fn grids(draw: &mut Draw) -> Result<f64> {
    let total = draw.steps(1, 1500);
    let count = draw.steps(1, total);
    let spacing = draw.pick(&[Spacing::Leading, Spacing::Linspace, Spacing::Trailing]);
    let grid = StepGrid::new(total, count, spacing, 0)?;
    let mut worst = Worst::default();
    worst.holds(grid.len() == count && grid.train_steps() == total && grid.final_step() == 0);
    worst.holds(grid.steps().windows(2).all(|pair| pair[0] > pair[1]));
    worst.holds(grid.steps().iter().all(|t| (1..=total).contains(t)));
    worst.holds(grid.moves().zip(grid.steps()).all(|((from, to), &step)| from == step && to < from));
    worst.holds(grid.moves().last().is_some_and(|(_, to)| to == 0));
    worst.holds(count < total || grid.steps().iter().copied().eq((1..=total).rev()));
    let (first, last) = (grid.steps()[0], grid.steps()[count - 1]);
    worst.holds(match spacing {
        Spacing::Leading => last == 1 && first == (count - 1) * (total / count) + 1,
        Spacing::Linspace => last == 1 && first == if count == 1 { 1 } else { total },
        _ => first == total && last.abs_diff(total / count) <= 1,
    });
    // Even spacing: no two gaps differ by more than rounding does.
    let gaps = || grid.steps().windows(2).map(|pair| pair[0] - pair[1]);
    worst.holds(gaps().max().unwrap_or(0) - gaps().min().unwrap_or(0) <= usize::from(spacing != Spacing::Leading));
    Ok(worst.0)
}

fn karras(draw: &mut Draw) -> Result<f64> {
    let (low, rho, n) = (draw.log_uniform(1e-3, 1.0), draw.uniform(1.0, 10.0), draw.steps(2, 100));
    let high = low * draw.log_uniform(1.5, 1e5);
    let sigmas = karras_sigmas(low, high, rho, n)?;
    let mut worst = Worst::default();
    worst.holds(sigmas.len() == n && sigmas[0] == high && sigmas[n - 1] == low);
    let root = |sigma: f64| sigma.powf(1.0 / rho);
    for (i, &sigma) in sigmas.iter().enumerate() {
        let share = i as f64 / (n - 1) as f64;
        worst.see(root(sigma), (1.0 - share) * root(high) + share * root(low), root(high));
    }
    Ok(worst.0)
}

fn views(draw: &mut Draw) -> Result<f64> {
    let (schedule, mut worst) = (draw.schedule(1, 1000)?, Worst::default());
    let t = draw.whole(1, schedule.steps());
    let level = schedule.level(t);
    let (scale, variance) = reference::steps(&schedule, 0, t);
    let abar = scale * scale;
    for (found, expected) in [
        (level.abar(), abar),
        (level.snr(), abar / variance),
        (level.edm_sigma(), (variance / abar).sqrt()),
        (level.log_snr().exp(), abar / variance),
    ] {
        worst.relative(found, expected);
    }
    for back in [
        NoiseLevel::from_log_abar(2.0 * level.alpha().ln())?,
        NoiseLevel::from_log_snr(level.log_snr())?,
        NoiseLevel::from_edm_sigma(level.edm_sigma())?,
    ] {
        worst.relative(back.alpha(), level.alpha());
        // ln abar is about -sigma^2 at little noise, and was taken of a rounded alpha: eps of 1, not of sigma^2.
        worst.see(back.sigma() * back.sigma(), level.sigma() * level.sigma(), 1.0);
        worst.see(back.alpha().hypot(back.sigma()), 1.0, 1.0);
    }
    for back in [NoiseLevel::from_log_snr(level.log_snr())?, NoiseLevel::from_edm_sigma(level.edm_sigma())?] {
        worst.relative(back.sigma(), level.sigma());
    }
    Ok(worst.0)
}

fn time(draw: &mut Draw) -> Result<f64> {
    let schedule = draw.schedule(1, 1000)?;
    let t = draw.uniform(0.0, schedule.steps() as f64);
    let mut worst = Worst::default();
    let level = schedule.level_at(t)?;
    worst.see(schedule.t_of_level(level)?, t, 1.0);
    let whole = draw.whole(0, schedule.steps());
    worst.holds(schedule.t_of_level(schedule.level(whole))? == whole as f64);
    worst.holds(schedule.level_at(whole as f64)? == schedule.level(whole));
    let (below, above) = (schedule.level(t.floor() as usize), schedule.level(t.ceil() as usize));
    worst.holds(!below.noisier_than(level) && !level.noisier_than(above));
    Ok(worst.0)
}
