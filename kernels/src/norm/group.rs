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

use std::cell::Cell;

use crate::act::Act;
use crate::memory::{Aligned, Floats, Kept, with_kept};
use crate::norm::{Coefficients, Gradient, Moments, apply, apply_backward, backward_sums, channel_moments};
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

/// Some of the channels of a tensor `[n, hw, c]`, as a tensor of their own.
#[derive(Clone, Copy, Debug)]
pub struct ChannelPart<'a> {
    values: &'a [f32],
    channels: usize,
}

impl<'a> ChannelPart<'a> {
    /// A tensor `[n, hw, channels]`.
    pub fn new(values: &'a [f32], channels: usize) -> Self {
        Self { values, channels }
    }

    /// `count` rows from `first` on.
    fn rows(&self, first: usize, count: usize) -> &'a [f32] {
        &self.values[first * self.channels..][..count * self.channels]
    }
}

#[track_caller]
fn check_groups(d: &GroupNormDims) {
    assert!(
        d.groups > 0 && d.c.is_multiple_of(d.groups),
        "group norm: {} channels cannot be split into {} equal groups",
        d.c,
        d.groups
    );
}

#[track_caller]
fn check_affine(d: &GroupNormDims, affine: &Affine<'_>, stats: &[f32]) {
    check_groups(d);
    check_len("group norm", "gamma", affine.gamma.len(), d.c);
    check_len("group norm", "beta", affine.beta.len(), d.c);
    if let Some((scale, shift)) = affine.scale_shift {
        check_len("group norm", "scale", scale.len(), d.n * d.c);
        check_len("group norm", "shift", shift.len(), d.n * d.c);
    }
    check_len("group norm", "stats", stats.len(), d.stats_len());
}

#[track_caller]
fn check(d: &GroupNormDims, x: &[f32], affine: &Affine<'_>, stats: &[f32]) {
    check_affine(d, affine, stats);
    check_len("group norm", "x", x.len(), d.len());
}

/// The statistics of groups without elements.
fn of_nothing(d: &GroupNormDims, stats: &mut [f32]) {
    for stats in stats.chunks_exact_mut(2) {
        (stats[0], stats[1]) = Moments::default().stats(d.eps);
    }
}

thread_local! {
    /// Moments of the groups in each chunk.
    static MOMENTS: Cell<Aligned<Moments>> = const { Cell::new(Aligned::new()) };
    /// Moments of the channels of a chunk.
    static CHANNELS: Cell<Aligned<f64>> = const { Cell::new(Aligned::new()) };
    /// Sums of the channels of each chunk.
    static SUMS: Cell<Aligned<f64>> = const { Cell::new(Aligned::new()) };
    /// Constants of the channels of each sample.
    static TABLE: Cell<Floats> = const { Cell::new(Floats::new()) };
}

/// Factor and offset that follow the normalisation of channel `k` of sample `n`: gamma (1 + scale) and
/// beta (1 + scale) + shift.
fn factor_and_offset(d: &GroupNormDims, affine: &Affine<'_>, n: usize, k: usize) -> (f64, f64) {
    let (gamma, beta) = (f64::from(affine.gamma[k]), f64::from(affine.beta[k]));
    match affine.scale_shift {
        Some((scale, shift)) => {
            let scale = 1.0 + f64::from(scale[n * d.c + k]);
            (gamma * scale, beta * scale + f64::from(shift[n * d.c + k]))
        }
        None => (gamma, beta),
    }
}

/// The per-channel constants of sample `n`, given its statistics, into its `[3, c]` of the table.
fn constants(d: &GroupNormDims, affine: &Affine<'_>, n: usize, stats: &[f32], table: &mut [f32]) {
    let (c, width) = (d.c, d.c / d.groups);
    let (mean, rest) = table.split_at_mut(c);
    let (p, b) = rest.split_at_mut(c);
    for k in 0..c {
        let (factor, offset) = factor_and_offset(d, affine, n, k);
        let rstd = f64::from(stats[2 * (k / width) + 1]);
        mean[k] = stats[2 * (k / width)];
        p[k] = (factor * rstd) as f32;
        b[k] = offset as f32;
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

/// The moments of the groups of each chunk, `[chunk, groups]`, and what is made of them.
struct Statistics<'a> {
    d: &'a GroupNormDims,
    chunks: &'a Chunks,
    parts: &'a [ChannelPart<'a>],
    partial: Shared<'a, Moments>,
    stats: Shared<'a, f32>,
}

impl<'a> Statistics<'a> {
    /// Runs `f` with places for the moments of all chunks.
    fn with(d: &GroupNormDims, parts: &[ChannelPart<'_>], stats: &mut [f32], f: impl FnOnce(&Statistics<'_>)) {
        let chunks = Chunks::new(d);
        with_kept(&MOMENTS as &Kept<Moments>, chunks.count() * d.groups, |partial| {
            f(&Statistics { d, chunks: &chunks, parts, partial: Shared::new(partial), stats: Shared::new(stats) });
        });
    }

    /// The moments of chunk `i`.
    fn chunk(&self, i: usize) {
        let (c, groups) = (self.d.c, self.d.groups);
        let (width, (_, start, len)) = (c / groups, self.chunks.at(i));
        with_kept(&CHANNELS as &Kept<f64>, 2 * c, |channels| {
            let (means, m2) = channels.split_at_mut(c);
            let mut first = 0;
            for part in self.parts {
                let rows = part.rows(start / c, len / c);
                channel_moments(rows, part.channels, &mut means[first..], &mut m2[first..]);
                first += part.channels;
            }
            // SAFETY: only this call takes the partial moments of this chunk.
            let partial = unsafe { self.partial.part(i * groups, groups) };
            for ((partial, means), m2) in partial.iter_mut().zip(means.chunks_exact(width)).zip(m2.chunks_exact(width))
            {
                *partial = Moments::of_channels(len / c, means, m2);
            }
        });
    }

    /// The statistics of sample `n`, once its chunks are done.
    fn sample(&self, n: usize) -> &'a [f32] {
        let (groups, per_sample) = (self.d.groups, self.chunks.per_sample);
        // SAFETY: the sample's chunks are done, and only this call takes what belongs to the sample.
        let (partial, stats) = unsafe {
            let partial = self.partial.read(n * per_sample * groups, per_sample * groups);
            (partial, self.stats.part(n * 2 * groups, 2 * groups))
        };
        for group in 0..groups {
            let all = partial.iter().skip(group).step_by(groups);
            let moments = all.fold(Moments::default(), |sum, part| sum.merge(*part));
            (stats[2 * group], stats[2 * group + 1]) = moments.stats(self.d.eps);
        }
        stats
    }
}

/// Mean and reciprocal deviation of each group into `stats` (`[n, groups, 2]`).
///
/// # Panics
/// If a slice's length is not that of `d`, or `groups` does not divide `c`.
pub fn statistics(d: &GroupNormDims, x: &[f32], stats: &mut [f32]) {
    check_groups(d);
    check_len("group norm", "x", x.len(), d.len());
    check_len("group norm", "stats", stats.len(), d.stats_len());
    if d.is_empty() {
        return of_nothing(d, stats);
    }
    Statistics::with(d, &[ChannelPart::new(x, d.c)], stats, |s| {
        tasks(s.chunks.count(), |i| s.chunk(i));
        for n in 0..d.n {
            s.sample(n);
        }
    });
}

/// The normalisation with given statistics as one factor and one offset of each channel of each sample, both
/// `[n, c]`: `z = x scale + shift`. This is what a [`crate::map::Map`] with a table per sample carries out.
///
/// # Panics
/// If a slice's length is not that of `d`, or `groups` does not divide `c`.
pub fn coefficients(d: &GroupNormDims, affine: &Affine<'_>, stats: &[f32], scale: &mut [f32], shift: &mut [f32]) {
    check_affine(d, affine, stats);
    check_len("group norm coefficients", "scale", scale.len(), d.n * d.c);
    check_len("group norm coefficients", "shift", shift.len(), d.n * d.c);
    let (c, width) = (d.c, d.c / d.groups);
    for n in 0..d.n {
        for k in 0..c {
            let stats = &stats[2 * (n * d.groups + k / width)..][..2];
            let (factor, offset) = factor_and_offset(d, affine, n, k);
            let factor = factor * f64::from(stats[1]);
            scale[n * c + k] = factor as f32;
            shift[n * c + k] = (offset - f64::from(stats[0]) * factor) as f32;
        }
    }
}

/// Normalises, scales, shifts and activates `x` into `y`; `stats` (`[n, groups, 2]`) receives mean and reciprocal
/// deviation for the backward pass.
///
/// # Panics
/// If a slice's length is not that of `d`, or `groups` does not divide `c`.
pub fn forward(d: &GroupNormDims, x: &[f32], affine: &Affine<'_>, act: Act, y: &mut [f32], stats: &mut [f32]) {
    forward_joined(d, &[ChannelPart::new(x, d.c)], affine, act, y, stats);
}

/// [`forward`] of the joined channels of `parts`, which need not be copied together.
///
/// # Panics
/// As [`forward`], or if the parts do not have `c` channels in all.
pub fn forward_joined(
    d: &GroupNormDims,
    parts: &[ChannelPart<'_>],
    affine: &Affine<'_>,
    act: Act,
    y: &mut [f32],
    stats: &mut [f32],
) {
    check_affine(d, affine, stats);
    check_len("group norm", "channels of x", parts.iter().map(|part| part.channels).sum(), d.c);
    for part in parts {
        check_len("group norm", "x", part.values.len(), d.n * d.hw * part.channels);
    }
    check_len("group norm", "y", y.len(), d.len());
    if d.is_empty() {
        return of_nothing(d, stats);
    }
    let (c, y) = (d.c, Shared::new(y));
    with_kept(&TABLE as &Kept<f32>, d.n * 3 * c, |table| {
        let table = Shared::new(table);
        Statistics::with(d, parts, stats, |s| {
            s.chunks.run(
                |i| s.chunk(i),
                // SAFETY: only this call takes the constants of the sample.
                |n| constants(d, affine, n, s.sample(n), unsafe { table.part(n * 3 * c, 3 * c) }),
                |i| {
                    let (n, start, len) = s.chunks.at(i);
                    // SAFETY: chunks are disjoint, and the sample's constants are no longer written to.
                    let (y, table) = unsafe { (y.part(start, len), table.read(n * 3 * c, 3 * c)) };
                    let mut first = 0;
                    for part in parts {
                        let coefficients = Coefficients::of(table).channels(first, part.channels);
                        apply(act, part.rows(start / c, len / c), coefficients, y, (c, first));
                        first += part.channels;
                    }
                },
            );
        });
    });
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
    backward_of(d, x, affine, act, stats, Gradient::Add(dy), dx, dgamma, dbeta, dscale_shift);
}

/// [`backward`], but `dx` is overwritten; the other gradients are added to.
///
/// # Panics
/// As [`backward`].
pub fn backward_into(
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
    backward_of(d, x, affine, act, stats, Gradient::Overwrite(dy), dx, dgamma, dbeta, dscale_shift);
}

/// [`backward`], but overwrites the gradient of the output with that of the input.
///
/// # Panics
/// As [`backward`].
pub fn backward_in_place(
    d: &GroupNormDims,
    x: &[f32],
    affine: &Affine<'_>,
    act: Act,
    stats: &[f32],
    dy_becomes_dx: &mut [f32],
    dgamma: &mut [f32],
    dbeta: &mut [f32],
    dscale_shift: Option<(&mut [f32], &mut [f32])>,
) {
    backward_of(d, x, affine, act, stats, Gradient::InPlace, dy_becomes_dx, dgamma, dbeta, dscale_shift);
}

fn backward_of(
    d: &GroupNormDims,
    x: &[f32],
    affine: &Affine<'_>,
    act: Act,
    stats: &[f32],
    dy: Gradient<'_>,
    dx: &mut [f32],
    dgamma: &mut [f32],
    dbeta: &mut [f32],
    dscale_shift: Option<(&mut [f32], &mut [f32])>,
) {
    check(d, x, affine, stats);
    dy.check("group norm backward", d.len());
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
    let chunks = Chunks::new(d);
    with_kept(&SUMS as &Kept<f64>, chunks.count() * 2 * d.c, |sums| {
        with_kept(&TABLE as &Kept<f32>, d.n * 5 * d.c, |table| {
            backward_passes(d, x, affine, act, stats, dy, dx, &chunks, sums, table);
        });
        let sample = |n: usize| sums[n * chunks.per_sample * 2 * d.c..][..2 * d.c].split_at(d.c);
        backward_affine(d, affine, sample, dgamma, dbeta, dscale_shift);
    });
}

/// Writes `dx`, and the sums S1 and S2 of each sample to the place of its first chunk.
fn backward_passes(
    d: &GroupNormDims,
    x: &[f32],
    affine: &Affine<'_>,
    act: Act,
    stats: &[f32],
    dy: Gradient<'_>,
    dx: &mut [f32],
    chunks: &Chunks,
    sums: &mut [f64],
    table: &mut [f32],
) {
    let (c, width, groups) = (d.c, d.c / d.groups, d.groups);
    // For each sample five constants of a channel: three of the forward pass now, q and r between the passes.
    for (n, table) in table.chunks_exact_mut(5 * c).enumerate() {
        constants(d, affine, n, &stats[n * 2 * groups..][..2 * groups], &mut table[..3 * c]);
    }
    let (dx, shared, table) = (Shared::new(dx), Shared::new(sums), Shared::new(table));
    chunks.run(
        |i| {
            let (n, start, len) = chunks.at(i);
            // SAFETY: only this call takes the sums of this chunk; these constants are no longer written to, and the
            // gradients of this sample not before all its sums are known.
            let (out, table, dx) =
                unsafe { (shared.part(i * 2 * c, 2 * c), table.read(n * 5 * c, 3 * c), dx.read(start, len)) };
            let dy = dy.part(start, len).read(dx);
            backward_sums(act, &x[start..][..len], dy, Coefficients::of(table), out);
        },
        |n| {
            // SAFETY: the sample's chunks are done, and only this call takes the sums and q and r of the sample.
            let (sums, t, qr) = unsafe {
                let sums = shared.part(n * chunks.per_sample * 2 * c, chunks.per_sample * 2 * c);
                (sums, table.read(n * 5 * c, 3 * c), table.part(n * 5 * c + 3 * c, 2 * c))
            };
            let (sums, others) = sums.split_at_mut(2 * c);
            for other in others.chunks_exact(2 * c) {
                for (sum, other) in sums.iter_mut().zip(other) {
                    *sum += other;
                }
            }
            let (s1, centred) = sums.split_at_mut(c);
            let t = Coefficients::of(t);
            let (q, r) = qr.split_at_mut(c);
            let elements = (d.hw * width) as f64;
            for group in 0..groups {
                let channels = group * width..(group + 1) * width;
                let rstd = f64::from(stats[2 * (n * groups + group) + 1]);
                let mean_of = |s: &[f64]| channels.clone().map(|k| f64::from(t.p[k]) * s[k]).sum::<f64>() / elements;
                q[channels.clone()].fill(mean_of(s1) as f32);
                r[channels.clone()].fill((mean_of(centred) * rstd * rstd) as f32);
                // From here on the sum of dz xhat.
                centred[channels].iter_mut().for_each(|sum| *sum *= rstd);
            }
        },
        |i| {
            let (n, start, len) = chunks.at(i);
            // SAFETY: chunks are disjoint, and the sample's constants are no longer written to.
            let (dx, table) = unsafe { (dx.part(start, len), table.read(n * 5 * c, 5 * c)) };
            let (t, qr) = table.split_at(3 * c);
            apply_backward(act, &x[start..][..len], dy.part(start, len), Coefficients::of(t), qr, dx);
        },
    );
}

/// Adds the gradients of the affine map, given S1 and S2 of each sample.
fn backward_affine<'s>(
    d: &GroupNormDims,
    affine: &Affine<'_>,
    sums: impl Fn(usize) -> (&'s [f64], &'s [f64]),
    dgamma: &mut [f32],
    dbeta: &mut [f32],
    dscale_shift: Option<(&mut [f32], &mut [f32])>,
) {
    let c = d.c;
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
