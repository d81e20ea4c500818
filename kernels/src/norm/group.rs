//! Group normalisation with activation, and its adaptive form.
//!
//! ```text
//! mean, var over the hw * c/groups elements of a group of channels of a sample (var biased), rstd = 1/sqrt(var + eps)
//! z = ((x - mean) rstd gamma + beta) (1 + scale) + shift,   y = act(z)
//! ```
//!
//! Wu and He 2018, eq. 1, 2, 6 and 7; scale and shift, per sample and channel, are the AdaGN of Dhariwal and Nichol 2021,
//! section 3, in the form that diffusers calls `scale_shift`. With A = gamma (1 + scale), B = beta (1 + scale) + shift,
//! dz = act'(z) dy, and S1, S2 the sums over a sample's positions of dz and dz xhat:
//!
//! ```text
//! dgamma += (1 + scale) S2     dscale += gamma S2 + beta S1     dxhat = A dz
//! dbeta  += (1 + scale) S1     dshift += S1                     dx += rstd (dxhat - <dxhat> - xhat <dxhat xhat>)
//! ```
//!
//! where <.> is the mean over a group. Forward and backward read memory twice each: once for the sums, once for the result.

use crate::act::Act;
use crate::norm::{Coefficients, Moments, apply, apply_backward, backward_sums, channel_moments};
use crate::par::{Shared, check_len, chunk_rows, tasks};

/// Sizes of a group normalisation of `[n, hw, c]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupNormDims {
    /// Samples.
    pub n: usize,
    /// Positions of a sample.
    pub hw: usize,
    /// Channels.
    pub c: usize,
    /// Groups of `c / groups` neighbouring channels; must divide `c`.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f32,
}

impl GroupNormDims {
    /// Elements of the input and of the output.
    pub fn len(&self) -> usize {
        self.n * self.hw * self.c
    }
    /// Whether the input has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Elements of the statistics, `[n, groups, 2]`: mean, reciprocal deviation.
    pub fn stats_len(&self) -> usize {
        self.n * self.groups * 2
    }
}

/// The affine map that follows a normalisation.
#[derive(Clone, Copy, Debug)]
pub struct Affine<'a> {
    /// Factor of each channel, `[c]`.
    pub gamma: &'a [f32],
    /// Offset of each channel, `[c]`.
    pub beta: &'a [f32],
    /// Scale and shift of AdaGN, each `[n, c]`: `h (1 + scale) + shift`.
    pub scale_shift: Option<(&'a [f32], &'a [f32])>,
}

#[track_caller]
fn check(d: &GroupNormDims, x: &[f32], affine: &Affine<'_>, stats: &[f32]) {
    assert!(
        d.groups > 0 && d.c.is_multiple_of(d.groups),
        "group norm: {} channels cannot be split into {} equal groups",
        d.c,
        d.groups
    );
    check_len("group norm", "x", x.len(), d.len());
    check_len("group norm", "gamma", affine.gamma.len(), d.c);
    check_len("group norm", "beta", affine.beta.len(), d.c);
    if let Some((scale, shift)) = affine.scale_shift {
        check_len("group norm", "scale", scale.len(), d.n * d.c);
        check_len("group norm", "shift", shift.len(), d.n * d.c);
    }
    check_len("group norm", "stats", stats.len(), d.stats_len());
}

/// The per-channel constants of sample `n` into its `[4, c]` of the table.
fn coefficients(d: &GroupNormDims, affine: &Affine<'_>, n: usize, stats: &[f32], table: &mut [f32]) {
    let (c, width) = (d.c, d.c / d.groups);
    let (mean, rest) = table.split_at_mut(c);
    let (rstd, rest) = rest.split_at_mut(c);
    let (a, b) = rest.split_at_mut(c);
    for k in 0..c {
        let (scale, shift) = match affine.scale_shift {
            Some((scale, shift)) => (1.0 + scale[n * c + k], shift[n * c + k]),
            None => (1.0, 0.0),
        };
        mean[k] = stats[2 * (k / width)];
        rstd[k] = stats[2 * (k / width) + 1];
        a[k] = affine.gamma[k] * scale;
        b[k] = affine.beta[k] * scale + shift;
    }
}

/// Floats of a sample that stay in the second-level cache between the two passes, with gradients beside them.
const CACHED_SAMPLE: usize = 96 * 1024;

/// The ranges of `[hw, c]` elements that are worked on at a time; they never cross a sample, so that a sample's result
/// does not depend on the others in the batch.
struct Chunks {
    samples: usize,
    per_sample: usize,
    len: usize,
    sample_len: usize,
}

impl Chunks {
    fn new(d: &GroupNormDims) -> Self {
        let rows = chunk_rows(d.c);
        Self { samples: d.n, per_sample: d.hw.div_ceil(rows), len: rows * d.c, sample_len: d.hw * d.c }
    }

    fn count(&self) -> usize {
        self.samples * self.per_sample
    }

    /// Sample, start and length of chunk `i`.
    fn at(&self, i: usize) -> (usize, usize, usize) {
        let (n, start) = (i / self.per_sample, i % self.per_sample * self.len);
        (n, n * self.sample_len + start, self.len.min(self.sample_len - start))
    }

    /// Runs `first` on all chunks of a sample, then `between` on the sample, then `last` on its chunks.
    ///
    /// Small samples of a large batch are each done by one task while they are in its cache. Either way the same calls
    /// are made, so the choice does not change a bit of the result.
    fn run(&self, first: impl Fn(usize) + Sync, between: impl Fn(usize) + Sync, last: impl Fn(usize) + Sync) {
        if self.samples >= 8 && self.sample_len <= CACHED_SAMPLE {
            tasks(self.samples, |n| {
                let chunks = n * self.per_sample..(n + 1) * self.per_sample;
                chunks.clone().for_each(&first);
                between(n);
                chunks.for_each(&last);
            });
        } else {
            tasks(self.count(), &first);
            (0..self.samples).for_each(&between);
            tasks(self.count(), &last);
        }
    }
}

/// Normalises, scales, shifts and activates `x` into `y`; `stats` (`[n, groups, 2]`) receives mean and reciprocal
/// deviation for the backward pass.
///
/// # Panics
/// If a slice's length is not that of `d`, or `groups` does not divide `c`.
pub fn forward(d: &GroupNormDims, x: &[f32], affine: &Affine<'_>, act: Act, y: &mut [f32], stats: &mut [f32]) {
    check(d, x, affine, stats);
    check_len("group norm", "y", y.len(), d.len());
    if d.is_empty() {
        for stats in stats.chunks_exact_mut(2) {
            (stats[0], stats[1]) = Moments::default().stats(d.eps);
        }
        return;
    }
    let (c, width, groups) = (d.c, d.c / d.groups, d.groups);
    let chunks = Chunks::new(d);
    let mut partial = vec![Moments::default(); chunks.count() * groups];
    let mut table = vec![0f32; d.n * 4 * c];
    let (partial, table) = (Shared::new(&mut partial), Shared::new(&mut table));
    let (y, stats) = (Shared::new(y), Shared::new(stats));
    chunks.run(
        |i| {
            let (_, start, len) = chunks.at(i);
            let mut channels = vec![0f64; 2 * c];
            channel_moments(&x[start..][..len], c, &mut channels);
            let (means, m2) = channels.split_at(c);
            // SAFETY: only this call takes the partial moments of this chunk.
            let partial = unsafe { partial.part(i * groups, groups) };
            for ((partial, means), m2) in partial.iter_mut().zip(means.chunks_exact(width)).zip(m2.chunks_exact(width))
            {
                *partial = Moments::of_channels(len / c, means, m2);
            }
        },
        |n| {
            // SAFETY: the sample's chunks are done, and only this call takes what belongs to the sample.
            let (partial, stats, table) = unsafe {
                let partial = partial.part(n * chunks.per_sample * groups, chunks.per_sample * groups);
                (partial, stats.part(n * 2 * groups, 2 * groups), table.part(n * 4 * c, 4 * c))
            };
            for group in 0..groups {
                let all = partial.iter().skip(group).step_by(groups);
                let moments = all.fold(Moments::default(), |sum, part| sum.merge(*part));
                (stats[2 * group], stats[2 * group + 1]) = moments.stats(d.eps);
            }
            coefficients(d, affine, n, stats, table);
        },
        |i| {
            let (n, start, len) = chunks.at(i);
            // SAFETY: chunks are disjoint, and the sample's table is no longer written to.
            let (y, table) = unsafe { (y.part(start, len), table.read(n * 4 * c, 4 * c)) };
            apply(act, &x[start..][..len], Coefficients::of(table), y);
        },
    );
}

/// The backward pass: adds to `dx`, `dgamma`, `dbeta`, and to the gradients of scale and shift (each `[n, c]`).
///
/// `x`, `affine`, `act` and `stats` are those of the forward pass; what the activation saw is computed again.
///
/// # Panics
/// If a slice's length is not that of `d`, or gradients of scale and shift are asked for without scale and shift.
pub fn backward(
    d: &GroupNormDims,
    x: &[f32],
    affine: &Affine<'_>,
    act: Act,
    stats: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    dgamma: &mut [f32],
    dbeta: &mut [f32],
    dscale_shift: Option<(&mut [f32], &mut [f32])>,
) {
    check(d, x, affine, stats);
    check_len("group norm backward", "dy", dy.len(), d.len());
    check_len("group norm backward", "dx", dx.len(), d.len());
    check_len("group norm backward", "dgamma", dgamma.len(), d.c);
    check_len("group norm backward", "dbeta", dbeta.len(), d.c);
    if let Some((dscale, dshift)) = &dscale_shift {
        assert!(affine.scale_shift.is_some(), "group norm backward: gradients of a scale and shift that are not there");
        check_len("group norm backward", "dscale", dscale.len(), d.n * d.c);
        check_len("group norm backward", "dshift", dshift.len(), d.n * d.c);
    }
    if d.is_empty() {
        return;
    }
    let (c, width, groups) = (d.c, d.c / d.groups, d.groups);
    let chunks = Chunks::new(d);
    let mut partial = vec![0f64; chunks.count() * 2 * c];
    let mut table = vec![0f32; d.n * 7 * c];
    let dx = Shared::new(dx);
    let (shared, table) = (Shared::new(&mut partial), Shared::new(&mut table));
    // For each sample the seven constants of a channel: four of the forward pass now, p, q and r between the passes.
    for n in 0..d.n {
        // SAFETY: no task has the table yet.
        coefficients(d, affine, n, &stats[n * 2 * groups..][..2 * groups], unsafe { table.part(n * 7 * c, 4 * c) });
    }
    chunks.run(
        |i| {
            let (n, start, len) = chunks.at(i);
            // SAFETY: only this call takes the sums of this chunk, and these constants are no longer written to.
            let (out, table) = unsafe { (shared.part(i * 2 * c, 2 * c), table.read(n * 7 * c, 4 * c)) };
            backward_sums(act, &x[start..][..len], &dy[start..][..len], Coefficients::of(table), out);
        },
        |n| {
            // SAFETY: the sample's chunks are done, and only this call takes the sums and p, q, r of the sample.
            let (sums, t, pqr) = unsafe {
                let sums = shared.part(n * chunks.per_sample * 2 * c, chunks.per_sample * 2 * c);
                (sums, table.read(n * 7 * c, 4 * c), table.part(n * 7 * c + 4 * c, 3 * c))
            };
            // The sums of a sample are gathered in its first chunk's place.
            let (sums, others) = sums.split_at_mut(2 * c);
            for other in others.chunks_exact(2 * c) {
                for (sum, other) in sums.iter_mut().zip(other) {
                    *sum += other;
                }
            }
            let (s1, s2) = sums.split_at(c);
            let t = Coefficients::of(t);
            let (p, rest) = pqr.split_at_mut(c);
            let (q, r) = rest.split_at_mut(c);
            let elements = (d.hw * width) as f64;
            for first in (0..c).step_by(width) {
                let group = first..first + width;
                let mean_of = |s: &[f64]| group.clone().map(|k| f64::from(t.a[k]) * s[k]).sum::<f64>() / elements;
                let (mean1, mean2) = (mean_of(s1), mean_of(s2));
                for k in group.clone() {
                    let rstd = f64::from(t.rstd[k]);
                    p[k] = (rstd * f64::from(t.a[k])) as f32;
                    q[k] = (rstd * mean1) as f32;
                    r[k] = (rstd * mean2) as f32;
                }
            }
        },
        |i| {
            let (n, start, len) = chunks.at(i);
            // SAFETY: chunks are disjoint, and the sample's table is no longer written to.
            let (dx, table) = unsafe { (dx.part(start, len), table.read(n * 7 * c, 7 * c)) };
            let (t, pqr) = table.split_at(4 * c);
            apply_backward(act, &x[start..][..len], &dy[start..][..len], Coefficients::of(t), pqr, dx);
        },
    );

    let sums = |n: usize| partial[n * chunks.per_sample * 2 * c..][..2 * c].split_at(c);
    for k in 0..c {
        let (mut sum_gamma, mut sum_beta) = (0f64, 0f64);
        for n in 0..d.n {
            let (s1, s2) = sums(n);
            let scale = affine.scale_shift.map_or(1.0, |(scale, _)| 1.0 + f64::from(scale[n * c + k]));
            sum_gamma += scale * s2[k];
            sum_beta += scale * s1[k];
        }
        dgamma[k] += sum_gamma as f32;
        dbeta[k] += sum_beta as f32;
    }
    if let Some((dscale, dshift)) = dscale_shift {
        for n in 0..d.n {
            let (s1, s2) = sums(n);
            for k in 0..c {
                dscale[n * c + k] += (f64::from(affine.gamma[k]) * s2[k] + f64::from(affine.beta[k]) * s1[k]) as f32;
                dshift[n * c + k] += s1[k] as f32;
            }
        }
    }
}

#[cfg(test)]
mod tests;
