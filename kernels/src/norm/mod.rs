//! Normalisations: what group and batch normalisation share.
//!
//! Both normalise with a mean and a reciprocal deviation that are constants of a channel (of one sample, or of the
//! batch), then scale, shift and activate:
//!
//! ```text
//! z = (x - mean) p + b,   y = act(z),   p = rstd a
//! dz = act'(z) dy,   S1 = sum of dz,   S2 = sum of dz (x - mean)   over the rows of a channel
//! dx = p dz - q - r (x - mean)
//! ```
//!
//! The passes here work on a chunk of rows. Sums run in f32 within a chunk and in f64 between chunks (Chan, Golub and
//! LeVeque 1983). Within a chunk of R rows the moments are taken about the mean g of its first f rows. Those rows
//! alone give the chunk's sum of squared deviations M2 >= f (g - mean)^2, so the sum about g, M2 + R (g - mean)^2, is at
//! most (1 + R/f) M2: a mean far from zero does not spoil the variance, whatever the data.

pub mod batch;
pub mod group;
pub mod layer;

use crate::act::{Act, Activation, per_act};
use crate::lanes::{MAX_LANES, get, put};
use crate::simd::{Simd, WithSimd, dispatch};

/// Per-channel constants of the forward pass, each of length c.
#[derive(Clone, Copy)]
pub(crate) struct Coefficients<'a> {
    mean: &'a [f32],
    p: &'a [f32],
    b: &'a [f32],
}

impl<'a> Coefficients<'a> {
    /// Splits `[3, c]`.
    fn of(table: &'a [f32]) -> Self {
        let c = table.len() / 3;
        let (mean, rest) = table.split_at(c);
        let (p, b) = rest.split_at(c);
        Self { mean, p, b }
    }

    /// The constants of some channels.
    fn channels(&self, first: usize, count: usize) -> Self {
        let some = |values: &'a [f32]| &values[first..][..count];
        Self { mean: some(self.mean), p: some(self.p), b: some(self.b) }
    }

    /// The constants of the channels at `i`.
    #[inline(always)]
    fn vectors<S: Simd, const FULL: bool>(&self, s: S, i: usize) -> Constants<S> {
        let (mean, p) = (get::<S, FULL>(s, self.mean, i), get::<S, FULL>(s, self.p, i));
        Constants { mean, p, b: get::<S, FULL>(s, self.b, i) }
    }
}

/// A vector of each of the [`Coefficients`].
#[derive(Clone, Copy)]
struct Constants<S: Simd> {
    mean: S::V,
    p: S::V,
    b: S::V,
}

impl<S: Simd> Constants<S> {
    /// x - mean and z.
    #[inline(always)]
    fn normalise(&self, s: S, x: S::V) -> (S::V, S::V) {
        let centred = s.sub(x, self.mean);
        (centred, s.fma(centred, self.p, self.b))
    }
}

/// Count, mean and sum of squared deviations of a set of numbers.
#[derive(Clone, Copy, Debug, Default)]
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

    /// The moments of the union of channels with `rows` elements each.
    fn of_channels(rows: usize, means: &[f64], m2: &[f64]) -> Self {
        let mean = means.iter().sum::<f64>() / means.len() as f64;
        let between: f64 = means.iter().map(|m| (m - mean) * (m - mean)).sum();
        Self { count: (rows * means.len()) as f64, mean, m2: m2.iter().sum::<f64>() + rows as f64 * between }
    }

    /// Mean and reciprocal deviation; of an empty set those of a single zero.
    fn stats(self, eps: f32) -> (f32, f32) {
        let variance = if self.count > 0.0 { self.m2 / self.count } else { 0.0 };
        (self.mean as f32, (1.0 / (variance + f64::from(eps)).sqrt()) as f32)
    }
}

/// Mean and sum of squared deviations of each channel of some rows, at least one.
pub(crate) fn channel_moments(x: &[f32], c: usize, means: &mut [f64], m2: &mut [f64]) {
    dispatch(ChannelMoments { x, c, means, m2 });
}

pub(crate) struct ChannelMoments<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) c: usize,
    pub(crate) means: &'a mut [f64],
    pub(crate) m2: &'a mut [f64],
}

impl ChannelMoments<'_> {
    /// The moments of `NV` vectors of channels, or of one partial vector, from channel `i` on.
    #[inline(always)]
    fn columns<S: Simd, const NV: usize, const FULL: bool>(&mut self, s: S, i: usize) {
        let (c, rows) = (self.c, self.x.len() / self.c);
        let first = (rows / 16).max(8).min(rows);
        let zero = s.splat(0.0);
        let mut guess = [zero; NV];
        for row in self.x.chunks_exact(c).take(first) {
            for v in 0..NV {
                guess[v] = s.add(guess[v], get::<S, FULL>(s, row, i + v * S::LANES));
            }
        }
        let share = s.splat(1.0 / first as f32);
        for guess in &mut guess {
            *guess = s.mul(*guess, share);
        }
        // Sums of 32 rows are summed in turn, so that rounding grows with the root of their number.
        let (mut sum, mut squares) = ([zero; NV], [zero; NV]);
        for block in self.x.chunks(32 * c) {
            let (mut block_sum, mut block_squares) = ([zero; NV], [zero; NV]);
            for row in block.chunks_exact(c) {
                for v in 0..NV {
                    let d = s.sub(get::<S, FULL>(s, row, i + v * S::LANES), guess[v]);
                    block_sum[v] = s.add(block_sum[v], d);
                    block_squares[v] = s.fma(d, d, block_squares[v]);
                }
            }
            for v in 0..NV {
                sum[v] = s.add(sum[v], block_sum[v]);
                squares[v] = s.add(squares[v], block_squares[v]);
            }
        }
        for v in 0..NV {
            let [guess, sum, squares] = [guess[v], sum[v], squares[v]].map(|vector| {
                let mut lanes = [0f32; MAX_LANES];
                put::<S, true>(s, &mut lanes, 0, vector);
                lanes
            });
            let at = i + v * S::LANES;
            for k in 0..S::LANES.min(c - at) {
                let rest = f64::from(sum[k]) / rows as f64;
                self.means[at + k] = f64::from(guess[k]) + rest;
                self.m2[at + k] = (f64::from(squares[k]) - f64::from(sum[k]) * rest).max(0.0);
            }
        }
    }
}

impl WithSimd for ChannelMoments<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, s: S) {
        let mut i = 0;
        while i + 4 * S::LANES <= self.c {
            self.columns::<S, 4, true>(s, i);
            i += 4 * S::LANES;
        }
        while i + S::LANES <= self.c {
            self.columns::<S, 1, true>(s, i);
            i += S::LANES;
        }
        if i < self.c {
            self.columns::<S, 1, false>(s, i);
        }
    }
}

/// `y = act(z)` for some rows; those of `y` have so many floats, of which the result takes those from an offset on.
pub(crate) fn apply(act: Act, x: &[f32], t: Coefficients<'_>, y: &mut [f32], (row, offset): (usize, usize)) {
    dispatch(Apply { act, x, t, y, row, offset });
}

pub(crate) struct Apply<'a> {
    pub(crate) act: Act,
    pub(crate) x: &'a [f32],
    pub(crate) t: Coefficients<'a>,
    pub(crate) y: &'a mut [f32],
    pub(crate) row: usize,
    pub(crate) offset: usize,
}

impl Apply<'_> {
    #[inline(always)]
    fn run<S: Simd, A: Activation>(self, s: S) {
        #[inline(always)]
        fn step<S: Simd, A: Activation, const FULL: bool>(
            s: S,
            x: &[f32],
            t: &Coefficients<'_>,
            y: &mut [f32],
            i: usize,
        ) {
            let (_, z) = t.vectors::<S, FULL>(s, i).normalise(s, get::<S, FULL>(s, x, i));
            put::<S, FULL>(s, y, i, A::value(s, z));
        }
        let c = self.t.mean.len();
        let full = c / S::LANES * S::LANES;
        for (x, y) in self.x.chunks_exact(c).zip(self.y.chunks_exact_mut(self.row)) {
            let y = &mut y[self.offset..][..c];
            for i in (0..full).step_by(S::LANES) {
                step::<S, A, true>(s, x, &self.t, y, i);
            }
            if full < c {
                step::<S, A, false>(s, x, &self.t, y, full);
            }
        }
    }
}

impl WithSimd for Apply<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        per_act!(self.act, A => self.run::<S, A>(s));
    }
}

/// S1 and S2 of each channel of some rows: `out[0..c]` and `out[c..2c]`.
pub(crate) fn backward_sums(act: Act, x: &[f32], dy: &[f32], t: Coefficients<'_>, out: &mut [f64]) {
    dispatch(BackwardSums { act, x, dy, t, out });
}

pub(crate) struct BackwardSums<'a> {
    pub(crate) act: Act,
    pub(crate) x: &'a [f32],
    pub(crate) dy: &'a [f32],
    pub(crate) t: Coefficients<'a>,
    pub(crate) out: &'a mut [f64],
}

impl BackwardSums<'_> {
    /// The sums of `NV` vectors of channels, or of one partial vector, from channel `i` on.
    #[inline(always)]
    fn columns<S: Simd, A: Activation, const NV: usize, const FULL: bool>(&mut self, s: S, i: usize) {
        let c = self.t.mean.len();
        let t: [Constants<S>; NV] = std::array::from_fn(|v| self.t.vectors::<S, FULL>(s, i + v * S::LANES));
        let (mut s1, mut s2) = ([s.splat(0.0); NV], [s.splat(0.0); NV]);
        for (x, dy) in self.x.chunks_exact(c).zip(self.dy.chunks_exact(c)) {
            for v in 0..NV {
                let at = i + v * S::LANES;
                let (centred, z) = t[v].normalise(s, get::<S, FULL>(s, x, at));
                let dz = A::pull_back(s, z, get::<S, FULL>(s, dy, at));
                s1[v] = s.add(s1[v], dz);
                s2[v] = s.fma(dz, centred, s2[v]);
            }
        }
        for v in 0..NV {
            let at = i + v * S::LANES;
            for (sums, out) in [(s1[v], at), (s2[v], c + at)] {
                let mut lanes = [0f32; MAX_LANES];
                put::<S, true>(s, &mut lanes, 0, sums);
                for (out, sum) in self.out[out..][..S::LANES.min(c - at)].iter_mut().zip(&lanes) {
                    *out = f64::from(*sum);
                }
            }
        }
    }

    #[inline(always)]
    fn run<S: Simd, A: Activation>(mut self, s: S) {
        let (c, mut i) = (self.t.mean.len(), 0);
        while i + 2 * S::LANES <= c {
            self.columns::<S, A, 2, true>(s, i);
            i += 2 * S::LANES;
        }
        if i + S::LANES <= c {
            self.columns::<S, A, 1, true>(s, i);
            i += S::LANES;
        }
        if i < c {
            self.columns::<S, A, 1, false>(s, i);
        }
    }
}

impl WithSimd for BackwardSums<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        per_act!(self.act, A => self.run::<S, A>(s));
    }
}

/// The gradient of the output, and what becomes of the gradient of the input.
#[derive(Clone, Copy)]
pub(crate) enum Gradient<'a> {
    /// `dx += …`
    Add(&'a [f32]),
    /// `dx = …`
    Overwrite(&'a [f32]),
    /// `dx` holds the gradient of the output and is overwritten.
    InPlace,
}

impl<'a> Gradient<'a> {
    /// Its elements `start..start + len`, if it lies apart from `dx`.
    fn part(self, start: usize, len: usize) -> Self {
        match self {
            Self::Add(dy) => Self::Add(&dy[start..][..len]),
            Self::Overwrite(dy) => Self::Overwrite(&dy[start..][..len]),
            Self::InPlace => Self::InPlace,
        }
    }

    /// The gradient of the output, where `dx` stands at the same elements.
    fn read(self, dx: &'a [f32]) -> &'a [f32] {
        match self {
            Self::Add(dy) | Self::Overwrite(dy) => dy,
            Self::InPlace => dx,
        }
    }

    fn check(self, operation: &str, len: usize) {
        if let Self::Add(dy) | Self::Overwrite(dy) = self {
            crate::par::check_len(operation, "dy", dy.len(), len);
        }
    }
}

/// `dx (+)= p dz - q - r (x - mean)` for some rows, with `qr` of `[2, c]`.
pub(crate) fn apply_backward(act: Act, x: &[f32], dy: Gradient<'_>, t: Coefficients<'_>, qr: &[f32], dx: &mut [f32]) {
    dispatch(ApplyBackward { act, x, dy, t, qr, dx });
}

pub(crate) struct ApplyBackward<'a> {
    pub(crate) act: Act,
    pub(crate) x: &'a [f32],
    pub(crate) dy: Gradient<'a>,
    pub(crate) t: Coefficients<'a>,
    pub(crate) qr: &'a [f32],
    pub(crate) dx: &'a mut [f32],
}

impl ApplyBackward<'_> {
    #[inline(always)]
    fn run<S: Simd, A: Activation>(self, s: S) {
        #[inline(always)]
        fn step<S: Simd, A: Activation, const FULL: bool>(
            s: S,
            x: &[f32],
            dy: Gradient<'_>,
            t: &Coefficients<'_>,
            (q, r): (&[f32], &[f32]),
            dx: &mut [f32],
            i: usize,
        ) {
            let t = t.vectors::<S, FULL>(s, i);
            let (centred, z) = t.normalise(s, get::<S, FULL>(s, x, i));
            let dy_at = match dy {
                Gradient::Add(dy) | Gradient::Overwrite(dy) => get::<S, FULL>(s, dy, i),
                Gradient::InPlace => get::<S, FULL>(s, dx, i),
            };
            let dz = A::pull_back(s, z, dy_at);
            let mean_part = s.fma(get::<S, FULL>(s, r, i), centred, get::<S, FULL>(s, q, i));
            let gradient = s.sub(s.mul(t.p, dz), mean_part);
            let sum = match dy {
                Gradient::Add(_) => s.add(get::<S, FULL>(s, dx, i), gradient),
                Gradient::Overwrite(_) | Gradient::InPlace => gradient,
            };
            put::<S, FULL>(s, dx, i, sum);
        }
        let c = self.t.mean.len();
        let full = c / S::LANES * S::LANES;
        let qr = self.qr.split_at(c);
        for (row, (x, dx)) in self.x.chunks_exact(c).zip(self.dx.chunks_exact_mut(c)).enumerate() {
            let dy = self.dy.part(row * c, c);
            for i in (0..full).step_by(S::LANES) {
                step::<S, A, true>(s, x, dy, &self.t, qr, dx, i);
            }
            if full < c {
                step::<S, A, false>(s, x, dy, &self.t, qr, dx, full);
            }
        }
    }
}

impl WithSimd for ApplyBackward<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        per_act!(self.act, A => self.run::<S, A>(s));
    }
}

#[cfg(test)]
mod tests;
