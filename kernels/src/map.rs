//! A normalisation that has not been carried out yet: applied to a tensor by whoever reads it.
//!
//! ```text
//! read(x)[n, p, c] = act(x[n, p, c] scale[c] + shift[c])          one table for the batch (batch normalisation)
//! read(x)[n, p, c] = act(x[n, p, c] scale[n, c] + shift[n, c])    one table per sample (group normalisation, AdaGN)
//! ```
//!
//! With the statistics known, a normalisation and its activation are this map. Applied while loading they cost no pass over
//! memory, and the normalised tensor is never stored.

use crate::act::{Act, Activation, per_act};
use crate::lanes::{get, put};
use crate::par::{check_len, rows_mut};
use crate::simd::{Simd, WithSimd, dispatch};

/// `act(x scale + shift)`, channel by channel.
#[derive(Clone, Copy, Debug)]
pub struct Map<'a> {
    /// Factors, `[c]` or `[n, c]`.
    pub scale: &'a [f32],
    /// Offsets, as many.
    pub shift: &'a [f32],
    /// Whether every sample has its own row of factors and offsets.
    pub per_sample: bool,
    /// What follows.
    pub act: Act,
}

impl<'a> Map<'a> {
    /// Asserts that the tables fit `n` samples of `c` channels.
    #[track_caller]
    pub(crate) fn check(&self, operation: &str, n: usize, c: usize) {
        let len = if self.per_sample { n * c } else { c };
        check_len(operation, "the map's factors", self.scale.len(), len);
        check_len(operation, "the map's offsets", self.shift.len(), len);
    }

    /// Factors and offsets of sample `n`, `c` each.
    #[inline(always)]
    pub(crate) fn row(&self, n: usize, c: usize) -> (&'a [f32], &'a [f32]) {
        let start = if self.per_sample { n * c } else { 0 };
        (&self.scale[start..start + c], &self.shift[start..start + c])
    }
}

/// Carries the map out: `y = read(x)` for `x` and `y` of `[n, hw, c]`.
///
/// # Panics
/// If a slice does not have the size that `n`, `hw` and `c` say.
pub fn apply(n: usize, hw: usize, c: usize, x: &[f32], map: &Map<'_>, y: &mut [f32]) {
    map.check("map", n, c);
    check_len("map", "x", x.len(), n * hw * c);
    check_len("map", "y", y.len(), n * hw * c);
    rows_mut(y, c, |first, y| dispatch(Rows { hw, c, first, x: &x[first * c..][..y.len()], map, y }));
}

struct Rows<'a> {
    hw: usize,
    c: usize,
    first: usize,
    x: &'a [f32],
    map: &'a Map<'a>,
    y: &'a mut [f32],
}

impl WithSimd for Rows<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { hw, c, first, x, map, y } = self;
        for (i, (x, y)) in x.chunks_exact(c).zip(y.chunks_exact_mut(c)).enumerate() {
            read_row(s, x, map, (first + i) / hw, c, y);
        }
    }
}

/// `y = read(x)`, see the module's description, for the pixels of a row of sample `n`, `c` channels each.
#[inline(always)]
pub(crate) fn read_row<S: Simd>(s: S, x: &[f32], map: &Map<'_>, n: usize, c: usize, y: &mut [f32]) {
    #[inline(always)]
    fn run<S: Simd, A: Activation>(s: S, x: &[f32], (scale, shift): (&[f32], &[f32]), y: &mut [f32]) {
        #[inline(always)]
        fn step<S: Simd, A: Activation, const FULL: bool>(
            s: S,
            x: &[f32],
            (scale, shift): (&[f32], &[f32]),
            y: &mut [f32],
            i: usize,
        ) {
            let (scale, shift) = (get::<S, FULL>(s, scale, i), get::<S, FULL>(s, shift, i));
            put::<S, FULL>(s, y, i, A::value(s, s.fma(get::<S, FULL>(s, x, i), scale, shift)));
        }
        let c = scale.len();
        let full = c / S::LANES * S::LANES;
        for (x, y) in x.chunks_exact(c).zip(y.chunks_exact_mut(c)) {
            for i in (0..full).step_by(S::LANES) {
                step::<S, A, true>(s, x, (scale, shift), y, i);
            }
            if full < c {
                step::<S, A, false>(s, x, (scale, shift), y, full);
            }
        }
    }
    per_act!(map.act, A => run::<S, A>(s, x, map.row(n, c), y));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{ACTS, act as reference, numbers};

    #[test]
    fn rows_are_mapped_by_their_sample() {
        for (n, hw, c) in [(1, 1, 1), (2, 5, 3), (3, 7, 16), (2, 4, 37), (2, 900, 64), (0, 4, 4)] {
            for per_sample in [false, true] {
                for act in ACTS {
                    let table = if per_sample { n * c } else { c };
                    let (x, scale, shift) = (numbers(n * hw * c, 1), numbers(table, 2), numbers(table, 3));
                    let mut y = vec![f32::NAN; x.len()];
                    apply(n, hw, c, &x, &Map { scale: &scale, shift: &shift, per_sample, act }, &mut y);
                    for (i, (&x, &y)) in x.iter().zip(&y).enumerate() {
                        let k = i % c + if per_sample { i / c / hw * c } else { 0 };
                        let z = f64::from(x) * f64::from(scale[k]) + f64::from(shift[k]);
                        let expected = reference(act, z);
                        assert!(
                            (f64::from(y) - expected).abs() < 1e-6 * (1.0 + z.abs()),
                            "{i}: {y}, exactly {expected}"
                        );
                    }
                }
            }
        }
    }
}
