//! Batch normalisation with activation.
//!
//! ```text
//! mean, var over the rows of a channel (var biased),  rstd = 1/sqrt(var + eps),  y = act((x - mean) rstd gamma + beta)
//! running = (1 - momentum) running + momentum new,    new variance unbiased: var rows/(rows - 1)
//! ```
//!
//! Ioffe and Szegedy 2015, algorithms 1 and 2; running estimates as in PyTorch. With dz = act'(z) dy, S1 and S2 the sums
//! of dz and dz xhat over the rows of a channel:
//!
//! ```text
//! dgamma += S2,   dbeta += S1,   dx += gamma rstd (dz - S1/rows - xhat S2/rows)
//! ```
//!
//! A network that lets its convolutions normalise while they read asks for [`statistics`] and [`coefficients`] only, and
//! hands the latter on in a [`crate::map::Map`].

use std::cell::Cell;

use crate::act::Act;
use crate::memory::{Aligned, Floats, Kept, with_kept};
use crate::norm::{Coefficients, Gradient, apply, apply_backward, backward_sums, channel_moments};
use crate::par::{Shared, check_len, chunk_rows, rows_mut, tasks};

/// Sizes of a batch normalisation of `[rows, c]`, where `rows` is n * h * w.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchNormDims {
    /// Rows: samples times positions.
    pub rows: usize,
    /// Channels.
    pub c: usize,
    /// Added to the variance.
    pub eps: f32,
}

impl BatchNormDims {
    /// Elements of the input and of the output.
    pub fn len(&self) -> usize {
        self.rows * self.c
    }
    /// Whether the input has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Running estimates that training updates and evaluation uses.
#[derive(Debug)]
pub struct Running<'a> {
    /// Mean of each channel, `[c]`.
    pub mean: &'a mut [f32],
    /// Variance of each channel, `[c]`, unbiased.
    pub var: &'a mut [f32],
    /// Weight of the new value; 0.1 in PyTorch.
    pub momentum: f32,
}

thread_local! {
    /// Sums of the chunks.
    static SUMS: Cell<Aligned<f64>> = const { Cell::new(Aligned::new()) };
    /// Constants of the channels.
    static TABLE: Cell<Floats> = const { Cell::new(Floats::new()) };
}

#[track_caller]
fn check(d: &BatchNormDims, x: &[f32], gamma: &[f32], beta: &[f32]) {
    check_len("batch norm", "x", x.len(), d.len());
    check_len("batch norm", "gamma", gamma.len(), d.c);
    check_len("batch norm", "beta", beta.len(), d.c);
}

/// Rows whose sums are taken in f32; enough that what is done once for each of their sums does not count.
fn rows_of_chunk(d: &BatchNormDims) -> usize {
    chunk_rows(d.c).max(128)
}

/// Chunks of rows that one task works on, and the elements of each.
fn chunks(d: &BatchNormDims) -> (usize, usize) {
    let rows = rows_of_chunk(d);
    (if d.c == 0 { 0 } else { d.rows.div_ceil(rows) }, rows * d.c)
}

/// 1/sqrt(var + eps)
fn rstd(var: f64, eps: f32) -> f64 {
    1.0 / (var + f64::from(eps)).sqrt()
}

/// The mean of channel `k` and its sum of squared deviations, from those of the chunks (`[chunk][2, c]`).
fn merged(d: &BatchNormDims, chunks: &[f64], k: usize) -> (f64, f64) {
    let (c, most) = (d.c, rows_of_chunk(d));
    let each = || {
        let rows = |i: usize| most.min(d.rows - i * most) as f64;
        chunks.chunks_exact(2 * c).enumerate().map(move |(i, chunk)| (rows(i), chunk[k], chunk[c + k]))
    };
    let mean = each().map(|(rows, mean, _)| rows * mean).sum::<f64>() / d.rows.max(1) as f64;
    (mean, each().map(|(rows, chunk_mean, m2)| m2 + rows * (chunk_mean - mean) * (chunk_mean - mean)).sum())
}

/// Means and reciprocal deviations of the batch into `stats` (`[2, c]`), and the update of the running estimates.
///
/// With a single row, which has no unbiased variance, the running variance takes the biased one.
///
/// # Panics
/// If a slice's length is not that of `d`.
pub fn statistics(d: &BatchNormDims, x: &[f32], stats: &mut [f32], mut running: Option<Running<'_>>) {
    check_len("batch norm", "x", x.len(), d.len());
    check_len("batch norm", "stats", stats.len(), 2 * d.c);
    if let Some(running) = &running {
        check_len("batch norm", "running mean", running.mean.len(), d.c);
        check_len("batch norm", "running variance", running.var.len(), d.c);
    }
    let c = d.c;
    let (count, chunk) = chunks(d);
    with_kept(&SUMS as &Kept<f64>, count * 2 * c, |partial| {
        let shared = Shared::new(partial);
        tasks(count, |i| {
            let x = &x[i * chunk..x.len().min((i + 1) * chunk)];
            // SAFETY: each task takes its own 2c numbers.
            let (means, m2) = unsafe { shared.part(i * 2 * c, 2 * c) }.split_at_mut(c);
            channel_moments(x, c, means, m2);
        });
        for k in 0..c {
            let (new_mean, m2) = merged(d, partial, k);
            (stats[k], stats[c + k]) = (new_mean as f32, rstd(m2 / d.rows.max(1) as f64, d.eps) as f32);
            if let Some(Running { mean, var, momentum }) = &mut running
                && d.rows > 0
            {
                let unbiased = m2 / (d.rows.max(2) - 1) as f64;
                mean[k] = (1.0 - *momentum) * mean[k] + *momentum * new_mean as f32;
                var[k] = (1.0 - *momentum) * var[k] + *momentum * unbiased as f32;
            }
        }
    });
}

#[track_caller]
fn check_coefficients(c: usize, tables: [(&str, &[f32]); 4]) {
    for (name, table) in tables {
        check_len("batch norm coefficients", name, table.len(), c);
    }
}

/// The normalisation by the statistics of a batch as one factor and one offset of each channel, all of length `c`:
/// `z = x scale + shift`.
///
/// # Panics
/// If a slice's length is not that of `c`.
pub fn coefficients(c: usize, stats: &[f32], gamma: &[f32], beta: &[f32], scale: &mut [f32], shift: &mut [f32]) {
    check_len("batch norm coefficients", "stats", stats.len(), 2 * c);
    check_coefficients(c, [("gamma", gamma), ("beta", beta), ("scale", scale), ("shift", shift)]);
    let (mean, rstd) = stats.split_at(c);
    for k in 0..c {
        let factor = f64::from(gamma[k]) * f64::from(rstd[k]);
        scale[k] = factor as f32;
        shift[k] = (f64::from(beta[k]) - f64::from(mean[k]) * factor) as f32;
    }
}

/// [`coefficients`] by running estimates of mean and variance.
///
/// # Panics
/// If a slice's length is not that of `c`.
pub fn coefficients_eval(
    c: usize,
    eps: f32,
    running_mean: &[f32],
    running_var: &[f32],
    gamma: &[f32],
    beta: &[f32],
    scale: &mut [f32],
    shift: &mut [f32],
) {
    check_len("batch norm coefficients", "running mean", running_mean.len(), c);
    check_len("batch norm coefficients", "running variance", running_var.len(), c);
    check_coefficients(c, [("gamma", gamma), ("beta", beta), ("scale", scale), ("shift", shift)]);
    for k in 0..c {
        let factor = f64::from(gamma[k]) * rstd(f64::from(running_var[k]), eps);
        scale[k] = factor as f32;
        shift[k] = (f64::from(beta[k]) - f64::from(running_mean[k]) * factor) as f32;
    }
}

/// `y = act((x - mean) rstd gamma + beta)`
fn normalise(
    d: &BatchNormDims,
    x: &[f32],
    mean: &[f32],
    rstd: impl Fn(usize) -> f64,
    gamma: &[f32],
    beta: &[f32],
    act: Act,
    y: &mut [f32],
) {
    let c = d.c;
    with_kept(&TABLE as &Kept<f32>, 3 * c, |table| {
        table[..c].copy_from_slice(mean);
        for k in 0..c {
            table[c + k] = (f64::from(gamma[k]) * rstd(k)) as f32;
        }
        table[2 * c..].copy_from_slice(beta);
        let t = Coefficients::of(table);
        rows_mut(y, c, |first, y| apply(act, &x[first * c..][..y.len()], t, y, (c, 0)));
    });
}

/// Normalises by the statistics of the batch; `stats` (`[2, c]`: means, reciprocal deviations) is for the backward pass.
///
/// # Panics
/// If a slice's length is not that of `d`.
pub fn forward_train(
    d: &BatchNormDims,
    x: &[f32],
    gamma: &[f32],
    beta: &[f32],
    act: Act,
    y: &mut [f32],
    stats: &mut [f32],
    running: Option<Running<'_>>,
) {
    check(d, x, gamma, beta);
    check_len("batch norm", "y", y.len(), d.len());
    statistics(d, x, stats, running);
    let (mean, rstd) = stats.split_at(d.c);
    normalise(d, x, mean, |k| f64::from(rstd[k]), gamma, beta, act, y);
}

/// Normalises by running estimates.
///
/// # Panics
/// If a slice's length is not that of `d`.
pub fn forward_eval(
    d: &BatchNormDims,
    x: &[f32],
    gamma: &[f32],
    beta: &[f32],
    act: Act,
    running_mean: &[f32],
    running_var: &[f32],
    y: &mut [f32],
) {
    check(d, x, gamma, beta);
    check_len("batch norm", "y", y.len(), d.len());
    check_len("batch norm", "running mean", running_mean.len(), d.c);
    check_len("batch norm", "running variance", running_var.len(), d.c);
    normalise(d, x, running_mean, |k| rstd(f64::from(running_var[k]), d.eps), gamma, beta, act, y);
}

/// The backward pass of [`forward_train`]: adds to `dx`, `dgamma` and `dbeta`.
///
/// # Panics
/// If a slice's length is not that of `d`.
pub fn backward(
    d: &BatchNormDims,
    x: &[f32],
    gamma: &[f32],
    beta: &[f32],
    act: Act,
    stats: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    dgamma: &mut [f32],
    dbeta: &mut [f32],
) {
    backward_of(d, x, gamma, beta, act, stats, Gradient::Add(dy), dx, dgamma, dbeta);
}

/// [`backward`], but overwrites the gradient of the output with that of the input.
///
/// # Panics
/// If a slice's length is not that of `d`.
pub fn backward_in_place(
    d: &BatchNormDims,
    x: &[f32],
    gamma: &[f32],
    beta: &[f32],
    act: Act,
    stats: &[f32],
    dy_becomes_dx: &mut [f32],
    dgamma: &mut [f32],
    dbeta: &mut [f32],
) {
    backward_of(d, x, gamma, beta, act, stats, Gradient::InPlace, dy_becomes_dx, dgamma, dbeta);
}

fn backward_of(
    d: &BatchNormDims,
    x: &[f32],
    gamma: &[f32],
    beta: &[f32],
    act: Act,
    stats: &[f32],
    dy: Gradient<'_>,
    dx: &mut [f32],
    dgamma: &mut [f32],
    dbeta: &mut [f32],
) {
    check(d, x, gamma, beta);
    check_len("batch norm backward", "stats", stats.len(), 2 * d.c);
    dy.check("batch norm backward", d.len());
    check_len("batch norm backward", "dx", dx.len(), d.len());
    check_len("batch norm backward", "dgamma", dgamma.len(), d.c);
    check_len("batch norm backward", "dbeta", dbeta.len(), d.c);
    if d.is_empty() {
        return;
    }
    let c = d.c;
    let (count, chunk) = chunks(d);
    let (mean, rstd) = stats.split_at(c);
    with_kept(&TABLE as &Kept<f32>, 5 * c, |table| {
        let (t, qr) = table.split_at_mut(3 * c);
        t[..c].copy_from_slice(mean);
        for k in 0..c {
            t[c + k] = (f64::from(gamma[k]) * f64::from(rstd[k])) as f32;
        }
        t[2 * c..].copy_from_slice(beta);
        let t = Coefficients::of(t);
        with_kept(&SUMS as &Kept<f64>, count * 2 * c, |partial| {
            let shared = Shared::new(partial);
            let whole: &[f32] = dx;
            tasks(count, |i| {
                let (start, len) = (i * chunk, chunk.min(x.len() - i * chunk));
                // SAFETY: each task takes its own 2c numbers.
                let out = unsafe { shared.part(i * 2 * c, 2 * c) };
                let dy = dy.part(start, len).read(&whole[start..][..len]);
                backward_sums(act, &x[start..][..len], dy, t, out);
            });
            let (sums, others) = partial.split_at_mut(2 * c);
            for other in others.chunks_exact(2 * c) {
                for (sum, other) in sums.iter_mut().zip(other) {
                    *sum += other;
                }
            }
            let rows = d.rows as f64;
            for k in 0..c {
                let (rstd, p) = (f64::from(rstd[k]), f64::from(t.p[k]));
                qr[k] = (p * sums[k] / rows) as f32;
                qr[c + k] = (p * rstd * rstd * sums[c + k] / rows) as f32;
                dgamma[k] += (rstd * sums[c + k]) as f32;
                dbeta[k] += sums[k] as f32;
            }
        });
        rows_mut(dx, c, |first, dx| {
            let (start, len) = (first * c, dx.len());
            apply_backward(act, &x[start..][..len], dy.part(start, len), t, qr, dx);
        });
    });
}

#[cfg(test)]
mod tests;
