//! The inner loops, which some instruction sets have in assembly, against their definition.

use super::*;
use crate::testing::numbers;

/// Steps of an inner product: none, fewer than an unrolled loop takes at a time, and some beyond.
const DEPTHS: [usize; 8] = [0, 1, 2, 3, 4, 5, 11, 64];

/// `sums[i] += sum_p a(i, p) b(p)`, for vectors `b` every `b_row` floats.
struct Definition<'a> {
    depth: usize,
    a: &'a dyn Fn(usize, usize) -> f32,
    b: &'a [f32],
    b_row: usize,
}

impl Definition<'_> {
    /// Asserts that sums of numbered floats became those of the definition, each product rounded as a vector's.
    fn assert<S: Simd, const MR: usize, const NV: usize>(&self, s: S, sums: &[[S::V; NV]; MR], case: &str) {
        for (i, row) in sums.iter().enumerate() {
            for (v, sum) in row.iter().enumerate() {
                let mut found = vec![0.0; S::LANES];
                // SAFETY: the vector has so many floats.
                unsafe { s.store(found.as_mut_ptr(), *sum) };
                for (lane, found) in found.into_iter().enumerate() {
                    let column = |p: usize| self.b[p * self.b_row + v * S::LANES + lane];
                    let expected = (0..self.depth).fold(start(i, v), |sum, p| s.fma1((self.a)(i, p), column(p), sum));
                    let name = std::any::type_name::<S>();
                    assert_eq!(found.to_bits(), expected.to_bits(), "{name}, {MR}x{NV}, {case}: row {i}, vector {v}");
                }
            }
        }
    }
}

/// What the sums are before the first product.
fn start(i: usize, v: usize) -> f32 {
    i as f32 - 0.25 * v as f32
}

/// All loops of one tile.
struct Loops<const MR: usize, const NV: usize>;

impl<const MR: usize, const NV: usize> WithSimd for Loops<MR, NV> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let width = NV * S::LANES;
        let begin: [[S::V; NV]; MR] = std::array::from_fn(|i| std::array::from_fn(|v| s.splat(start(i, v))));
        for depth in DEPTHS {
            for step in [1, 3, SQUARE, 20] {
                let (x, b) = (numbers(MR * (depth * step + 7), 1), numbers(depth * width, 2));
                let rows: [usize; MR] = std::array::from_fn(|i| i * (depth * step + 7));
                let a = rows.map(|row| x[row..].as_ptr());
                let definition = Definition { depth, a: &|i, p| x[rows[i] + p * step], b: &b, b_row: width };
                let (mut fetching, mut plain) = (begin, begin);
                // SAFETY: each row has a number every `step` floats, `depth` of them, and `b` as many rows of `width`.
                unsafe {
                    s.multiply::<MR, NV, true>(&a, step, b.as_ptr(), depth, b.as_ptr(), &mut fetching);
                    s.multiply::<MR, NV, false>(&a, step, b.as_ptr(), depth, b.as_ptr(), &mut plain);
                }
                definition.assert(s, &fetching, &format!("{depth} steps of {step}, fetching"));
                definition.assert(s, &plain, &format!("{depth} steps of {step}"));
            }
            let (a_row, b_row) = (MR + 5, width + 8);
            let (a, b) = (numbers(depth * a_row, 3), numbers(depth * b_row, 4));
            let mut sums = begin;
            // SAFETY: both have `depth` rows, of `MR` and `width` floats at least.
            unsafe { s.multiply_columns::<MR, NV>(a.as_ptr(), a_row, b.as_ptr(), b_row, depth, &mut sums) };
            let definition = Definition { depth, a: &|i, p| a[p * a_row + i], b: &b, b_row };
            definition.assert(s, &sums, &format!("{depth} columns"));
        }
    }
}

#[test]
fn inner_loops_have_the_bits_of_their_definition() {
    for &isa in Isa::available() {
        dispatch_to(isa, Loops::<4, 3>);
        dispatch_to(isa, Loops::<6, 2>);
        dispatch_to(isa, Loops::<4, 2>);
        dispatch_to(isa, Loops::<3, 1>);
    }
}

/// The elementary operations of all lanes, on pairs of numbers.
struct Operations<'a>(&'a [[f32; 3]]);

impl WithSimd for Operations<'_> {
    type Output = Vec<[u32; 8]>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) -> Self::Output {
        let each = |[a, b, c]: [f32; 3]| {
            let [x, y, z] = [a, b, c].map(|number| s.splat(number));
            let results = [
                s.add(x, y),
                s.sub(x, y),
                s.mul(x, y),
                s.div(x, y),
                s.max(x, y),
                s.min(x, y),
                s.where_positive(x, z),
                s.fma(x, y, z),
            ];
            results.map(|v| {
                let mut lanes = vec![0.0; S::LANES];
                // SAFETY: the vector has so many floats.
                unsafe { s.store(lanes.as_mut_ptr(), v) };
                assert!(lanes.iter().all(|lane| lane.to_bits() == lanes[0].to_bits()));
                lanes[0].to_bits()
            })
        };
        self.0.iter().map(|numbers| each(*numbers)).collect()
    }
}

/// Of every instruction set, and of plain Rust where that is none of them; fused products alone may be rounded otherwise.
#[test]
fn operations_have_the_bits_of_plain_rust() {
    let numbers = [0.0, -0.0, 1.5, -2.25, f32::INFINITY, 3e-39, f32::MAX, 0.1];
    let cases: Vec<[f32; 3]> = numbers
        .iter()
        .flat_map(|a| numbers.iter().map(move |b| [*a, *b, 0.75]))
        .filter(|[a, b, _]| a.is_finite() || a != b)
        .collect();
    let expected = Operations(&cases).with_simd(portable::Portable);
    for &isa in Isa::available() {
        let found = dispatch_to(isa, Operations(&cases));
        for ((case, expected), found) in cases.iter().zip(&expected).zip(&found) {
            let (expected_fma, found_fma) = (f32::from_bits(expected[7]), f32::from_bits(found[7]));
            if expected.iter().zip(found).take(7).any(|(e, f)| e != f && !f32::from_bits(*e).is_nan()) {
                panic!("{isa:?}, {case:?}: {found:x?} instead of {expected:x?}");
            }
            let close = (expected_fma - found_fma).abs() <= 2e-7 * expected_fma.abs();
            assert!(close || expected_fma == found_fma || expected_fma.is_nan(), "{isa:?}, {case:?}: {found_fma}");
        }
        for n in [-126.0, -3.0, 0.0, 1.0, 127.0] {
            assert_eq!(dispatch_to(isa, Power(n)), f32::powf(2.0, n), "{isa:?}: 2^{n}");
        }
    }
    assert_eq!(Power(-126.0).with_simd(portable::Portable), f32::MIN_POSITIVE);
}

/// 2^n
struct Power(f32);

impl WithSimd for Power {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) -> f32 {
        let mut lanes = vec![0.0; S::LANES];
        // SAFETY: the vector has so many floats.
        unsafe { s.store(lanes.as_mut_ptr(), s.pow2(s.splat(self.0))) };
        lanes[0]
    }
}
