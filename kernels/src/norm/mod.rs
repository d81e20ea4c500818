//! Normalisations: what group and batch normalisation share.
//!
//! Both normalise with a mean and a reciprocal deviation that are constants of a channel (of one sample, or of the
//! batch), then scale, shift and activate:
//!
//! ```text
//! xhat = (x - mean) rstd,   z = xhat a + b,   y = act(z)
//! dz = act'(z) dy,   S1 = sum of dz,   S2 = sum of dz xhat   over the rows of a channel
//! dx += p dz - q - r xhat
//! ```
//!
//! The passes here work on a chunk of rows. Sums run in f32 within a chunk, about a fixed mean, and in f64 between
//! chunks (Chan, Golub and LeVeque 1983, eq. 2.1), so a mean far from zero does not spoil the variance.

pub mod batch;
pub mod group;

use crate::act::Act;

/// Per-channel constants of the forward pass, each of length c.
#[derive(Clone, Copy)]
pub(crate) struct Coefficients<'a> {
    mean: &'a [f32],
    rstd: &'a [f32],
    a: &'a [f32],
    b: &'a [f32],
}

impl<'a> Coefficients<'a> {
    /// Splits `[4, c]`.
    fn of(table: &'a [f32]) -> Self {
        let c = table.len() / 4;
        let (mean, rest) = table.split_at(c);
        let (rstd, rest) = rest.split_at(c);
        let (a, b) = rest.split_at(c);
        Self { mean, rstd, a, b }
    }
}

/// Count, mean and sum of squared deviations of a set of numbers.
#[derive(Clone, Copy, Default)]
pub(crate) struct Moments {
    count: f64,
    mean: f64,
    m2: f64,
}

impl Moments {
    /// The moments of the union of two sets.
    fn merge(self, other: Self) -> Self {
        let count = self.count + other.count;
        if other.count == 0.0 {
            return self;
        }
        let delta = other.mean - self.mean;
        Self {
            count,
            mean: self.mean + delta * (other.count / count),
            m2: self.m2 + other.m2 + delta * delta * (self.count * other.count / count),
        }
    }

    /// Mean and reciprocal deviation; of an empty set those of a single zero.
    fn stats(self, eps: f32) -> (f32, f32) {
        let variance = if self.count > 0.0 { self.m2 / self.count } else { 0.0 };
        (self.mean as f32, (1.0 / (variance + f64::from(eps)).sqrt()) as f32)
    }
}

/// Mean and sum of squared deviations of each channel of some rows: `out[0..c]` and `out[c..2c]`.
pub(crate) fn channel_moments(x: &[f32], c: usize, out: &mut [f64]) {
    let rows = (x.len() / c) as f64;
    let (mean, m2) = out.split_at_mut(c);
    let mut sum = vec![0f32; c];
    for x in x.chunks_exact(c) {
        for (sum, x) in sum.iter_mut().zip(x) {
            *sum += x;
        }
    }
    let guess: Vec<f32> = sum.iter().map(|s| s / rows as f32).collect();
    sum.fill(0.0);
    let mut squares = vec![0f32; c];
    for x in x.chunks_exact(c) {
        for k in 0..c {
            let d = x[k] - guess[k];
            sum[k] += d;
            squares[k] += d * d;
        }
    }
    for k in 0..c {
        let rest = f64::from(sum[k]) / rows;
        mean[k] = f64::from(guess[k]) + rest;
        m2[k] = (f64::from(squares[k]) - rows * rest * rest).max(0.0);
    }
}

/// `y = act(xhat a + b)` for some rows.
pub(crate) fn apply(act: Act, x: &[f32], t: Coefficients<'_>, y: &mut [f32]) {
    let c = t.mean.len();
    for (x, y) in x.chunks_exact(c).zip(y.chunks_exact_mut(c)) {
        for k in 0..c {
            y[k] = act.value((x[k] - t.mean[k]) * t.rstd[k] * t.a[k] + t.b[k]);
        }
    }
}

/// S1 and S2 of each channel of some rows: `out[0..c]` and `out[c..2c]`.
pub(crate) fn backward_sums(act: Act, x: &[f32], dy: &[f32], t: Coefficients<'_>, out: &mut [f64]) {
    let c = t.mean.len();
    let mut sums = vec![0f32; 2 * c];
    let (s1, s2) = sums.split_at_mut(c);
    for (x, dy) in x.chunks_exact(c).zip(dy.chunks_exact(c)) {
        for k in 0..c {
            let xhat = (x[k] - t.mean[k]) * t.rstd[k];
            let dz = act.slope(xhat * t.a[k] + t.b[k]) * dy[k];
            s1[k] += dz;
            s2[k] += dz * xhat;
        }
    }
    for (out, sum) in out.iter_mut().zip(&sums) {
        *out = f64::from(*sum);
    }
}

/// `dx += p dz - q - r xhat` for some rows, with `pqr` of `[3, c]`.
pub(crate) fn apply_backward(act: Act, x: &[f32], dy: &[f32], t: Coefficients<'_>, pqr: &[f32], dx: &mut [f32]) {
    let c = t.mean.len();
    let (p, q, r) = (&pqr[..c], &pqr[c..2 * c], &pqr[2 * c..3 * c]);
    for ((x, dy), dx) in x.chunks_exact(c).zip(dy.chunks_exact(c)).zip(dx.chunks_exact_mut(c)) {
        for k in 0..c {
            let xhat = (x[k] - t.mean[k]) * t.rstd[k];
            let dz = act.slope(xhat * t.a[k] + t.b[k]) * dy[k];
            dx[k] += p[k] * dz - q[k] - r[k] * xhat;
        }
    }
}
