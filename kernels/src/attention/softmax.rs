//! What becomes of blocks of scores.

use crate::lanes::{MAX_LANES, exp, exp_of_negative, get, put};
use crate::simd::{Simd, WithSimd};

/// Columns that a row of scores has in scratch memory: the keys, filled up to whole vectors.
pub(super) fn padded(kv_len: usize) -> usize {
    kv_len.next_multiple_of(MAX_LANES)
}

/// Which keys a query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sight {
    /// All.
    Full,
    /// Those of its own position and of the positions before.
    Causal,
}

/// Turns rows of scores (`[rows, padded]`) of some keys into exp(score - max), updates max and sum of each row, and writes by what
/// earlier sums are to be multiplied.
pub(super) struct Softmax<'a> {
    pub(super) scores: &'a mut [f32],
    /// Keys of the block.
    pub(super) keys: usize,
    /// What rows see; the positions of the first row and of the first key.
    pub(super) sight: Sight,
    pub(super) row: usize,
    pub(super) key: usize,
    pub(super) max_sum: &'a mut [[f32; 2]],
    pub(super) factors: &'a mut [f32],
}

impl WithSimd for Softmax<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let rows = self.scores.chunks_exact_mut(padded(self.keys)).zip(self.max_sum).zip(self.factors);
        for (r, ((row, max_sum), factor)) in rows.enumerate() {
            let seen = match self.sight {
                Sight::Full => self.keys,
                Sight::Causal => (self.row + r + 1).saturating_sub(self.key).min(self.keys),
            };
            row[seen..].fill(f32::NEG_INFINITY);
            let mut lanes = [f32::NEG_INFINITY; MAX_LANES];
            let mut max = s.splat(f32::NEG_INFINITY);
            for i in (0..row.len()).step_by(S::LANES) {
                max = s.max(max, get::<S, true>(s, row, i));
            }
            put::<S, true>(s, &mut lanes, 0, max);
            let [before, sum_before] = *max_sum;
            let greatest = lanes.iter().copied().fold(before, f32::max);
            let max = s.splat(greatest);
            let mut sum = s.splat(0.0);
            for i in (0..row.len()).step_by(S::LANES) {
                let p = exp_of_negative(s, s.sub(get::<S, true>(s, row, i), max));
                put::<S, true>(s, row, i, p);
                sum = s.add(sum, p);
            }
            // These are of the order of 1e-38, too small to be seen in the sum.
            row[seen..].fill(0.0);
            lanes.fill(0.0);
            put::<S, true>(s, &mut lanes, 0, sum);
            // In the first block nothing is there yet, and the maximum before is minus infinity.
            *factor = if before == f32::NEG_INFINITY { 0.0 } else { (before - greatest).exp() };
            *max_sum = [greatest, sum_before.mul_add(*factor, lanes.iter().sum())];
        }
    }
}

/// Turns rows of scores into P = exp(S - lse), and rows of dP into dS = P (dP - D).
pub(super) struct SoftmaxBackward<'a> {
    pub(super) scores: &'a mut [f32],
    pub(super) gradients: &'a mut [f32],
    pub(super) kv_len: usize,
    pub(super) lse: &'a [f32],
    pub(super) row_sums: &'a [f32],
}

impl WithSimd for SoftmaxBackward<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let stride = padded(self.kv_len);
        let rows = self.scores.chunks_exact_mut(stride).zip(self.gradients.chunks_exact_mut(stride));
        for ((p, ds), (lse, row_sum)) in rows.zip(self.lse.iter().zip(self.row_sums)) {
            let (lse, row_sum) = (s.splat(*lse), s.splat(*row_sum));
            // What is beyond the last key is computed with the rest, and not read.
            for i in (0..stride).step_by(S::LANES) {
                let score = exp(s, s.sub(get::<S, true>(s, p, i), lse));
                put::<S, true>(s, p, i, score);
                let centred = s.sub(get::<S, true>(s, ds, i), row_sum);
                put::<S, true>(s, ds, i, s.mul(score, centred));
            }
        }
    }
}
