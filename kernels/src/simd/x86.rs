//! AVX2 with FMA, and AVX-512.

use std::arch::x86_64::*;

use super::avx2_loops::{columns_4x2, columns_4x3, multiply_4x3, multiply_6x2};
use super::{Simd, WithSimd};
use crate::lanes::SQUARE;

/// [`Simd::expect`]: processors without the instruction do nothing in its place.
#[inline(always)]
fn expect(p: *const f32) {
    // SAFETY: a prefetch of any address is allowed.
    unsafe { std::arch::asm!("prefetchw [{}]", in(reg) p, options(nostack, preserves_flags)) };
}

/// Runs `op` compiled for AVX2 and FMA.
///
/// # Safety
/// The processor must have `avx2` and `fma`.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn run_avx2<O: WithSimd>(op: O) -> O::Output {
    op.with_simd(Avx2(()))
}

/// Runs `op` compiled for AVX-512.
///
/// # Safety
/// The processor must have `avx512f`, `avx2` and `fma`.
#[target_feature(enable = "avx512f,avx2,fma")]
pub(super) unsafe fn run_avx512<O: WithSimd>(op: O) -> O::Output {
    op.with_simd(Avx512(()))
}

/// Proof that the processor has AVX2 and FMA.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

/// Proof that the processor has AVX-512.
#[derive(Clone, Copy)]
pub(super) struct Avx512(());

impl Simd for Avx2 {
    const LANES: usize = 8;
    type V = __m256;

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        // SAFETY: a value of this type is made only where the instruction set was detected.
        unsafe { _mm256_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m256 {
        // SAFETY: the instruction set was detected; the caller vouches for the pointer.
        unsafe { _mm256_loadu_ps(p) }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: __m256) {
        // SAFETY: the instruction set was detected; the caller vouches for the pointer.
        unsafe { _mm256_storeu_ps(p, v) }
    }

    #[inline(always)]
    fn prefetch(self, p: *const f32) {
        // SAFETY: a prefetch of any address is allowed; every x86-64 processor has the instruction.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }

    #[inline(always)]
    fn expect(self, p: *const f32) {
        expect(p);
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: a value of this type is made only where the instruction set was detected.
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: a value of this type is made only where the instruction set was detected.
        unsafe { _mm256_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: a value of this type is made only where the instruction set was detected.
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: a value of this type is made only where the instruction set was detected.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn fma1(self, a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }

    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: a value of this type is made only where the instruction set was detected.
        unsafe { _mm256_div_ps(a, b) }
    }

    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: a value of this type is made only where the instruction set was detected.
        unsafe { _mm256_max_ps(a, b) }
    }

    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: a value of this type is made only where the instruction set was detected.
        unsafe { _mm256_min_ps(a, b) }
    }

    #[inline(always)]
    fn where_positive(self, x: __m256, v: __m256) -> __m256 {
        // SAFETY: a value of this type is made only where the instruction set was detected.
        unsafe { _mm256_and_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(x, _mm256_setzero_ps()), v) }
    }

    #[inline(always)]
    fn pow2(self, n: __m256) -> __m256 {
        // SAFETY: a value of this type is made only where the instruction set was detected.
        unsafe {
            let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))
        }
    }

    #[inline(always)]
    unsafe fn turn(self, from: &[*const f32; SQUARE], to: *mut f32, to_row: usize) {
        // SAFETY: the instruction set was detected; the caller vouches for the pointers.
        unsafe { turn_square(from, to, to_row) }
    }

    #[inline(always)]
    unsafe fn multiply<const MR: usize, const NV: usize, const AHEAD: bool>(
        self,
        a: &[*const f32; MR],
        step: usize,
        b: *const f32,
        depth: usize,
        ahead: *const f32,
        sums: &mut [[__m256; NV]; MR],
    ) {
        let (rows, tile) = (a.as_ptr(), sums.as_mut_ptr());
        // SAFETY: the instruction set was detected; the caller vouches for the operands; the casts are to the same sizes.
        unsafe {
            match (MR, NV) {
                (4, 3) => multiply_4x3::<AHEAD>(&*rows.cast(), step, b, depth, ahead, &mut *tile.cast()),
                (6, 2) => multiply_6x2::<AHEAD>(&*rows.cast(), step, b, depth, ahead, &mut *tile.cast()),
                _ => super::multiply::<Self, MR, NV, AHEAD>(self, a, step, b, depth, ahead, sums),
            }
        }
    }

    // SAFETY: the caller's part is as the trait says.
    #[inline(always)]
    unsafe fn multiply_columns<const MR: usize, const NV: usize>(
        self,
        a: *const f32,
        a_row: usize,
        b: *const f32,
        b_row: usize,
        depth: usize,
        sums: &mut [[__m256; NV]; MR],
    ) {
        let tile = sums.as_mut_ptr();
        // SAFETY: the instruction set was detected; the caller vouches for the operands; the casts are to the same sizes.
        unsafe {
            match (MR, NV) {
                (4, 3) => columns_4x3(a, a_row, b, b_row, depth, &mut *tile.cast()),
                (4, 2) => columns_4x2(a, a_row, b, b_row, depth, &mut *tile.cast()),
                _ => super::multiply_columns::<Self, MR, NV>(self, a, a_row, b, b_row, depth, sums),
            }
        }
    }
}

impl Simd for Avx512 {
    const LANES: usize = 16;
    type V = __m512;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: a value of this type is made only where the instruction set was detected.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m512 {
        // SAFETY: the instruction set was detected; the caller vouches for the pointer.
        unsafe { _mm512_loadu_ps(p) }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: __m512) {
        // SAFETY: the instruction set was detected; the caller vouches for the pointer.
        unsafe { _mm512_storeu_ps(p, v) }
    }

    #[inline(always)]
    fn prefetch(self, p: *const f32) {
        // SAFETY: a prefetch of any address is allowed; every x86-64 processor has the instruction.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }

    #[inline(always)]
    fn expect(self, p: *const f32) {
        expect(p);
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: a value of this type is made only where the instruction set was detected.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: a value of this type is made only where the instruction set was detected.
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: a value of this type is made only where the instruction set was detected.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: a value of this type is made only where the instruction set was detected.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn fma1(self, a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: a value of this type is made only where the instruction set was detected.
        unsafe { _mm512_div_ps(a, b) }
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: a value of this type is made only where the instruction set was detected.
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: a value of this type is made only where the instruction set was detected.
        unsafe { _mm512_min_ps(a, b) }
    }

    #[inline(always)]
    fn where_positive(self, x: __m512, v: __m512) -> __m512 {
        // SAFETY: a value of this type is made only where the instruction set was detected.
        unsafe { _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(x, _mm512_setzero_ps()), v) }
    }

    #[inline(always)]
    fn pow2(self, n: __m512) -> __m512 {
        // SAFETY: a value of this type is made only where the instruction set was detected.
        unsafe {
            let exponent = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent))
        }
    }

    #[inline(always)]
    unsafe fn turn(self, from: &[*const f32; SQUARE], to: *mut f32, to_row: usize) {
        // SAFETY: the instruction set was detected; the caller vouches for the pointers.
        unsafe { turn_square(from, to, to_row) }
    }
}

/// `y = x`, of half precision.
///
/// # Safety
/// The processor must have `avx` and `f16c`.
#[target_feature(enable = "avx,f16c")]
pub(super) unsafe fn widen_f16(x: &[u16], y: &mut [f32]) {
    assert_eq!(x.len(), y.len());
    let whole = x.len() / 8 * 8;
    for i in (0..whole).step_by(8) {
        // SAFETY: both slices have eight numbers from `i` on.
        unsafe {
            let halves = _mm_loadu_si128(x.as_ptr().add(i).cast());
            _mm256_storeu_ps(y.as_mut_ptr().add(i), _mm256_cvtph_ps(halves));
        }
    }
    for i in whole..x.len() {
        y[i] = super::half(x[i]);
    }
}

/// [`Simd::turn`]
///
/// # Safety
/// The processor must have AVX; else as [`Simd::turn`].
#[inline(always)]
unsafe fn turn_square(from: &[*const f32; SQUARE], to: *mut f32, to_row: usize) {
    // SAFETY: the caller vouches for all of it.
    unsafe {
        let x: [__m256; 8] = from.map(|row| _mm256_loadu_ps(row));
        // Pairs, then fours of neighbouring rows within each half, then the halves.
        let pairs: [__m256; 8] = std::array::from_fn(|i| {
            let (a, b) = (x[i / 2 * 2], x[i / 2 * 2 + 1]);
            if i % 2 == 0 { _mm256_unpacklo_ps(a, b) } else { _mm256_unpackhi_ps(a, b) }
        });
        let fours: [__m256; 8] = std::array::from_fn(|i| {
            let (a, b) = (pairs[i / 4 * 4 + i % 4 / 2], pairs[i / 4 * 4 + i % 4 / 2 + 2]);
            if i % 2 == 0 { _mm256_shuffle_ps::<0x44>(a, b) } else { _mm256_shuffle_ps::<0xee>(a, b) }
        });
        for i in 0..4 {
            let (a, b) = (fours[i], fours[i + 4]);
            _mm256_storeu_ps(to.add(i * to_row), _mm256_permute2f128_ps::<0x20>(a, b));
            _mm256_storeu_ps(to.add((i + 4) * to_row), _mm256_permute2f128_ps::<0x31>(a, b));
        }
    }
}
