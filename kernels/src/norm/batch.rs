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

use crate::act::Act;
use crate::norm::{Coefficients, Moments, apply, apply_backward, backward_sums, channel_moments};
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

#[track_caller]
fn check(d: &BatchNormDims, x: &[f32], gamma: &[f32], beta: &[f32]) {
    check_len("batch norm", "x", x.len(), d.len());
    check_len("batch norm", "gamma", gamma.len(), d.c);
    check_len("batch norm", "beta", beta.len(), d.c);
}

/// Chunks of rows that one task works on, and the elements of each.
fn chunks(d: &BatchNormDims) -> (usize, usize) {
    let rows = chunk_rows(d.c);
    (if d.c == 0 { 0 } else { d.rows.div_ceil(rows) }, rows * d.c)
}

fn normalise(d: &BatchNormDims, x: &[f32], table: &[f32], act: Act, y: &mut [f32]) {
    let t = Coefficients::of(table);
    rows_mut(y, d.c, |first, y| apply(act, &x[first * d.c..][..y.len()], t, y));
}

/// Normalises by the statistics of the batch; `stats` (`[2, c]`: means, reciprocal deviations) is for the backward pass.
///
/// With a single row, which has no unbiased variance, the running variance takes the biased one.
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
    check_len("batch norm", "stats", stats.len(), 2 * d.c);
    if let Some(running) = &running {
        check_len("batch norm", "running mean", running.mean.len(), d.c);
        check_len("batch norm", "running variance", running.var.len(), d.c);
    }
    let c = d.c;
    let (count, chunk) = chunks(d);
    let mut partial = vec![0f64; count * 2 * c];
    let shared = Shared::new(&mut partial);
    tasks(count, |i| {
        let x = &x[i * chunk..x.len().min((i + 1) * chunk)];
        // SAFETY: each task takes its own 2c numbers.
        channel_moments(x, c, unsafe { shared.part(i * 2 * c, 2 * c) });
    });
    let mut moments = vec![Moments::default(); c];
    for (i, partial) in partial.chunks_exact(2 * c.max(1)).enumerate() {
        let rows = (chunk.min(x.len() - i * chunk) / c) as f64;
        for k in 0..c {
            moments[k] = moments[k].merge(Moments { count: rows, mean: partial[k], m2: partial[c + k] });
        }
    }
    for k in 0..c {
        (stats[k], stats[c + k]) = moments[k].stats(d.eps);
    }
    if let Some(Running { mean, var, momentum }) = running
        && d.rows > 0
    {
        for k in 0..c {
            let unbiased = moments[k].m2 / (d.rows.max(2) - 1) as f64;
            mean[k] = (1.0 - momentum) * mean[k] + momentum * moments[k].mean as f32;
            var[k] = (1.0 - momentum) * var[k] + momentum * unbiased as f32;
        }
    }
    let table = [&*stats, gamma, beta].concat();
    normalise(d, x, &table, act, y);
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
    let rstd: Vec<f32> = running_var.iter().map(|v| (1.0 / (f64::from(*v) + f64::from(d.eps)).sqrt()) as f32).collect();
    let table = [running_mean, &rstd, gamma, beta].concat();
    normalise(d, x, &table, act, y);
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
    check(d, x, gamma, beta);
    check_len("batch norm backward", "stats", stats.len(), 2 * d.c);
    check_len("batch norm backward", "dy", dy.len(), d.len());
    check_len("batch norm backward", "dx", dx.len(), d.len());
    check_len("batch norm backward", "dgamma", dgamma.len(), d.c);
    check_len("batch norm backward", "dbeta", dbeta.len(), d.c);
    if d.is_empty() {
        return;
    }
    let c = d.c;
    let table = [stats, gamma, beta].concat();
    let t = Coefficients::of(&table);
    let (count, chunk) = chunks(d);
    let mut partial = vec![0f64; count * 2 * c];
    let shared = Shared::new(&mut partial);
    tasks(count, |i| {
        let range = i * chunk..x.len().min((i + 1) * chunk);
        // SAFETY: each task takes its own 2c numbers.
        let out = unsafe { shared.part(i * 2 * c, 2 * c) };
        backward_sums(act, &x[range.clone()], &dy[range], t, out);
    });
    let (sums, others) = partial.split_at_mut(2 * c);
    for other in others.chunks_exact(2 * c) {
        for (sum, other) in sums.iter_mut().zip(other) {
            *sum += other;
        }
    }
    let mut pqr = vec![0f32; 3 * c];
    let rows = d.rows as f64;
    for k in 0..c {
        let factor = f64::from(gamma[k]) * f64::from(stats[c + k]);
        pqr[k] = factor as f32;
        pqr[c + k] = (factor * sums[k] / rows) as f32;
        pqr[2 * c + k] = (factor * sums[c + k] / rows) as f32;
        dgamma[k] += sums[c + k] as f32;
        dbeta[k] += sums[k] as f32;
    }
    rows_mut(dx, c, |first, dx| {
        let range = first * c..first * c + dx.len();
        apply_backward(act, &x[range.clone()], &dy[range], t, &pqr, dx);
    });
}

#[cfg(test)]
mod tests;
