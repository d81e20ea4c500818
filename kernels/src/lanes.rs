//! Loads and stores of whole and partial vectors, and the vector exponential.
//!
//! Element-wise loops write their body once, generic in `FULL`: whole vectors with bounds checked by slicing, and one
//! last partial vector padded with zeros, so that tails compute what bodies compute.

use crate::simd::Simd;

/// The most lanes that any instruction set has.
pub(crate) const MAX_LANES: usize = 16;

/// Floats of a line of cache.
pub(crate) const LINE: usize = 16;

/// The vector at `x[i..]`; unless `FULL`, the rest of `x`, shorter than a vector, padded with zeros.
#[inline(always)]
pub(crate) fn get<S: Simd, const FULL: bool>(s: S, x: &[f32], i: usize) -> S::V {
    if FULL {
        let x = &x[i..i + S::LANES];
        // SAFETY: the slice has LANES elements.
        unsafe { s.load(x.as_ptr()) }
    } else {
        let mut whole = [0f32; MAX_LANES];
        whole[..x.len() - i].copy_from_slice(&x[i..]);
        // SAFETY: the array has at least LANES elements.
        unsafe { s.load(whole.as_ptr()) }
    }
}

/// Stores a vector at `y[i..]`; unless `FULL`, only as much of it as the rest of `y` takes.
#[inline(always)]
pub(crate) fn put<S: Simd, const FULL: bool>(s: S, y: &mut [f32], i: usize, v: S::V) {
    if FULL {
        let y = &mut y[i..i + S::LANES];
        // SAFETY: the slice has LANES elements.
        unsafe { s.store(y.as_mut_ptr(), v) }
    } else {
        let mut whole = [0f32; MAX_LANES];
        // SAFETY: the array has at least LANES elements.
        unsafe { s.store(whole.as_mut_ptr(), v) };
        let rest = y.len() - i;
        y[i..].copy_from_slice(&whole[..rest]);
    }
}

/// e^x to within 2 units in the last place, over all of f32: infinity above 88.72, subnormal below -87.33, zero
/// below -103.97; a NaN stays.
///
/// x = n ln 2 + r with |r| <= ln(2)/2; the polynomial for e^r is that of the Cephes library (Moshier, `expf`).
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    let magic = s.splat(MAGIC);
    // In this order of arguments a NaN passes.
    let x = s.min(s.splat(89.0), s.max(s.splat(-105.0), x));
    let (p, n) = exp_parts(s, x);
    // Two factors, since 2^n itself may overflow or underflow where the result does not.
    let half = s.sub(s.fma(n, s.splat(0.5), magic), magic);
    s.mul(s.mul(p, s.pow2(half)), s.pow2(s.sub(n, half)))
}

/// e^x as [`exp`] gives it where x is at most zero, but nothing below e^-87, which is 1.6e-38.
#[inline(always)]
pub(crate) fn exp_of_negative<S: Simd>(s: S, x: S::V) -> S::V {
    let (p, n) = exp_parts(s, s.max(s.splat(-87.0), x));
    s.mul(p, s.pow2(n))
}

/// Adding and subtracting 1.5 * 2^23 rounds to an integer.
const MAGIC: f32 = 12_582_912.0;

/// `p` and `n` of e^x = p 2^n, for x between -105 and 89.
#[inline(always)]
fn exp_parts<S: Simd>(s: S, x: S::V) -> (S::V, S::V) {
    let magic = s.splat(MAGIC);
    let n = s.sub(s.fma(x, s.splat(std::f32::consts::LOG2_E), magic), magic);
    // ln 2 in two parts, the first so short that its product with n is exact.
    let r = s.fma(n, s.splat(-0.693_359_4), x);
    let r = s.fma(n, s.splat(2.121_944_4e-4), r);
    let mut p = s.splat(1.987_569_1e-4);
    for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = s.fma(p, r, s.splat(coefficient));
    }
    (s.add(s.fma(p, s.mul(r, r), r), s.splat(1.0)), n)
}

/// Side of the squares that [`Simd::turn`] transposes.
pub(crate) const SQUARE: usize = 8;

/// `y[j to_row + i] = x[i row + j]` for `rows` rows and `columns` columns of `x`.
#[inline(always)]
pub(crate) fn turn<S: Simd>(
    s: S,
    (x, row): (&[f32], usize),
    (rows, columns): (usize, usize),
    (y, to_row): (&mut [f32], usize),
) {
    if rows == 0 || columns == 0 {
        return;
    }
    assert!(x.len() >= (rows - 1) * row + columns && y.len() >= (columns - 1) * to_row + rows, "turn: floats");
    let (whole_rows, whole_columns) = (rows - rows % SQUARE, columns - columns % SQUARE);
    for j in (0..whole_columns).step_by(SQUARE) {
        for i in (0..whole_rows).step_by(SQUARE) {
            // SAFETY: by the assertion all rows and columns of the square lie within the slices.
            unsafe {
                let mut from = [x.as_ptr().add(i * row + j); SQUARE];
                (0..SQUARE).for_each(|r| from[r] = from[r].add(r * row));
                s.turn(&from, y.as_mut_ptr().add(j * to_row + i), to_row);
            }
        }
    }
    for j in 0..columns {
        for i in if j < whole_columns { whole_rows } else { 0 }..rows {
            y[j * to_row + i] = x[i * row + j];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Isa, WithSimd, dispatch_to};

    struct Exp<'a>(&'a [f32], &'a mut [f32]);

    impl WithSimd for Exp<'_> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, s: S) {
            let full = self.0.len() / S::LANES * S::LANES;
            for i in (0..full).step_by(S::LANES) {
                let y = exp(s, get::<S, true>(s, self.0, i));
                put::<S, true>(s, self.1, i, y);
            }
            let y = exp(s, get::<S, false>(s, self.0, full));
            put::<S, false>(s, self.1, full, y);
        }
    }

    fn exps(isa: Isa, x: &[f32]) -> Vec<f32> {
        let mut y = vec![f32::NAN; x.len()];
        dispatch_to(isa, Exp(x, &mut y));
        y
    }

    /// The distance between neighbours of f32 at `y`.
    fn ulp(y: f64) -> f64 {
        let exponent = (y.abs().log2().floor() as i32).clamp(-126, 127);
        2f64.powi(exponent - 23)
    }

    struct Turn<'a>(&'a [f32], usize, usize, &'a mut [f32]);

    impl WithSimd for Turn<'_> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, s: S) {
            let Self(x, rows, columns, y) = self;
            turn(s, (x, columns + 3), (rows, columns), (y, rows + 2));
        }
    }

    #[test]
    fn turned_rows_are_columns() {
        for &isa in Isa::available() {
            for (rows, columns) in [(0, 4), (5, 0), (1, 1), (8, 8), (7, 9), (24, 17), (16, 40)] {
                let x: Vec<f32> = (0..rows * (columns + 3)).map(|i| i as f32).collect();
                let mut y = vec![-1.0; columns * (rows + 2)];
                dispatch_to(isa, Turn(&x, rows, columns, &mut y));
                for (at, y) in y.iter().enumerate() {
                    let (j, i) = (at / (rows + 2), at % (rows + 2));
                    let expected = if i < rows { (i * (columns + 3) + j) as f32 } else { -1.0 };
                    assert_eq!(*y, expected, "{isa:?}, {rows} x {columns}: row {i}, column {j}");
                }
            }
        }
    }

    #[test]
    fn exp_is_within_two_ulp_over_all_of_f32() {
        // Every 4099th bit pattern, a prime step, so that all exponents and many mantissas of both signs are met; and
        // every f32 near the ends of the range is met by the second sweep.
        let mut x: Vec<f32> = (0..=u32::MAX).step_by(4099).map(f32::from_bits).collect();
        for end in [88.72f32, -87.33, -103.97, -88.0, 0.0, 0.34657, -0.34657, 1.0] {
            x.extend((0..2000u32).map(|i| f32::from_bits(end.to_bits() + i).min(f32::MAX)));
        }
        x.extend((-10_500..8_900).map(|i| i as f32 * 0.01));
        for &isa in Isa::available() {
            for (&x, &y) in x.iter().zip(&exps(isa, &x)) {
                if x.is_nan() {
                    assert!(y.is_nan(), "{isa:?}: exp(NaN) = {y}");
                    continue;
                }
                let exact = f64::from(x).exp();
                if exact > f64::from(f32::MAX) * (1.0 + 3e-8) {
                    assert_eq!(y, f32::INFINITY, "{isa:?}: exp({x})");
                } else if y.is_infinite() {
                    assert!(exact > f64::from(f32::MAX) * (1.0 - 2e-7), "{isa:?}: exp({x})");
                } else {
                    let error = (f64::from(y) - exact).abs() / ulp(exact);
                    assert!(error <= 2.0, "{isa:?}: exp({x:e}) = {y:e}, exactly {exact:e}, {error} ulp");
                }
            }
        }
    }

    struct ExpOfNegative<'a>(&'a mut [f32]);

    impl WithSimd for ExpOfNegative<'_> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, s: S) {
            for i in (0..self.0.len()).step_by(S::LANES) {
                let y = exp_of_negative(s, get::<S, true>(s, self.0, i));
                put::<S, true>(s, self.0, i, y);
            }
        }
    }

    #[test]
    fn exp_of_negative_numbers_is_exp_down_to_the_normal_numbers() {
        for &isa in Isa::available() {
            let x: Vec<f32> = (0..MAX_LANES * 60).map(|i| i as f32 * -87.0 / 960.0).collect();
            let mut y = x.clone();
            dispatch_to(isa, ExpOfNegative(&mut y));
            assert_eq!(y, exps(isa, &x), "{isa:?}");
            let mut y = [-88.0, -1e4, f32::NEG_INFINITY, f32::NAN, -0.0, 0.0].repeat(MAX_LANES);
            dispatch_to(isa, ExpOfNegative(&mut y));
            assert!(y[..3].iter().all(|y| (1e-38..2e-38).contains(y)), "{isa:?}: {:?}", &y[..3]);
            assert!(y[3].is_nan() && y[4..6] == [1.0; 2], "{isa:?}: {:?}", &y[3..6]);
        }
    }

    #[test]
    fn exp_of_special_values() {
        for &isa in Isa::available() {
            let y = exps(isa, &[0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, 1e30, -1e30, 89.0, -104.0]);
            assert_eq!(y, [1.0, 1.0, f32::INFINITY, 0.0, f32::INFINITY, 0.0, f32::INFINITY, 0.0], "{isa:?}");
        }
    }

    #[test]
    fn tails_store_only_their_own_elements() {
        for &isa in Isa::available() {
            for len in 0..40 {
                let x: Vec<f32> = (0..len).map(|i| i as f32 * 0.1 - 2.0).collect();
                let mut y = vec![7f32; len + 20];
                dispatch_to(isa, Exp(&x, &mut y[..len]));
                assert!(y[len..].iter().all(|y| *y == 7.0), "{isa:?}, {len}");
                for (x, y) in x.iter().zip(&y) {
                    assert!((x.exp() - y).abs() < 1e-6 * y, "{isa:?}, {len}");
                }
            }
        }
    }
}
