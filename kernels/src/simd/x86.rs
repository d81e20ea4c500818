//! AVX2 with FMA, and AVX-512.

use std::arch::asm;
use std::arch::x86_64::*;

use super::{Simd, WithSimd};
use crate::lanes::SQUARE;

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
        // SAFETY: the instruction set was detected; the caller vouches for the operands; the casts are to the same sizes.
        unsafe {
            let (rows, tile) = (a.as_ptr(), sums.as_mut_ptr());
            match (MR, NV) {
                (4, 3) => multiply_4x3::<AHEAD>(&*rows.cast(), step, b, depth, ahead, &mut *tile.cast()),
                (6, 2) => multiply_6x2::<AHEAD>(&*rows.cast(), step, b, depth, ahead, &mut *tile.cast()),
                _ => super::multiply::<Self, MR, NV, AHEAD>(self, a, step, b, depth, ahead, sums),
            }
        }
    }

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
        // SAFETY: as in `multiply`.
        unsafe {
            let tile = sums.as_mut_ptr();
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

/// The products of a row's number with vectors.
macro_rules! row {
    ($place:literal + $on:literal, $($sum:literal += $vector:literal),*) => {
        concat!(
            "vbroadcastss {x}, [", $place, " + ", $on, "]\n",
            $("vfmadd231ps {", $sum, "}, {", $vector, "}, {x}\n",)*
        )
    };
}

/// One step for four rows and three vectors, so many bytes beyond these places.
macro_rules! step_4x3 {
    ($b:literal, $on:literal, $r0:literal $r1:literal $r2:literal $r3:literal) => {
        concat!(
            "vmovups {b0}, [{b} + ",
            $b,
            "]\n",
            "vmovups {b1}, [{b} + ",
            $b,
            " + 32]\n",
            "vmovups {b2}, [{b} + ",
            $b,
            " + 64]\n",
            row!($r0 + $on, "s00" += "b0", "s01" += "b1", "s02" += "b2"),
            row!($r1 + $on, "s10" += "b0", "s11" += "b1", "s12" += "b2"),
            row!($r2 + $on, "s20" += "b0", "s21" += "b1", "s22" += "b2"),
            row!($r3 + $on, "s30" += "b0", "s31" += "b1", "s32" += "b2"),
        )
    };
}

/// Of [`multiply_4x3`].
macro_rules! rows_4x3 {
    ($b:literal, $at:literal) => {
        step_4x3!($b, $at, "{r0} + {at}" "{r1} + {at}" "{r2} + {at}" "{r3} + {at}")
    };
}

/// Of [`multiply_6x2`].
macro_rules! rows_6x2 {
    ($b:literal, $at:literal) => {
        concat!(
            "vmovups {b0}, [{b} + ",
            $b,
            "]\n",
            "vmovups {b1}, [{b} + ",
            $b,
            " + 32]\n",
            row!("{r0} + {at}" + $at, "s00" += "b0", "s01" += "b1"),
            row!("{r1} + {at}" + $at, "s10" += "b0", "s11" += "b1"),
            row!("{r2} + {at}" + $at, "s20" += "b0", "s21" += "b1"),
            row!("{r3} + {at}" + $at, "s30" += "b0", "s31" += "b1"),
            row!("{r4} + {at}" + $at, "s40" += "b0", "s41" += "b1"),
            row!("{r5} + {at}" + $at, "s50" += "b0", "s51" += "b1"),
        )
    };
}

/// Of [`columns_4x3`].
macro_rules! column_4x3 {
    ($b:literal, $a:literal) => {
        step_4x3!($b, $a, "{a}" "{a} + 4" "{a} + 8" "{a} + 12")
    };
}

/// Of [`columns_4x2`].
macro_rules! column_4x2 {
    ($b:literal, $a:literal) => {
        concat!(
            "vmovups {b0}, [{b} + ",
            $b,
            "]\n",
            "vmovups {b1}, [{b} + ",
            $b,
            " + 32]\n",
            row!("{a}" + $a, "s00" += "b0", "s01" += "b1"),
            row!("{a} + 4" + $a, "s10" += "b0", "s11" += "b1"),
            row!("{a} + 8" + $a, "s20" += "b0", "s21" += "b1"),
            row!("{a} + 12" + $a, "s30" += "b0", "s31" += "b1"),
        )
    };
}

/// A loop of steps: four at a time, then one by one. What counts them would otherwise be a fifth of the instructions, for which a core
/// that shares its front end with a neighbour has no room.
///
/// `$fetch` is the prefetch, or begins a comment. The vectors of a step take `$width` bytes. Within four steps the rows' numbers lie
/// `$one`, `$two` and `$three` bytes on, or are reached by `$next` after each step; `$last` goes on to the next four.
macro_rules! rows_loop {
    (
        $step_of:ident, $fetch:literal, [$width:literal, $width2:literal, $width3:literal, $width4:literal],
        [$one:literal, $two:literal, $three:literal, $next:literal, $last:literal],
        ($a:ident, $step:ident, $b:ident, $depth:ident, $ahead:ident, $s:ident),
        rows $($r:ident $row:literal)*, vectors $($v:ident)*, sums $($sum:ident $i:literal $j:literal)*
    ) => {
        asm!(
            "sub {depth}, 4",
            "jb 3f",
            "2:",
            concat!($fetch, " [{ahead}]"),
            $step_of!("0", "0"),
            $next,
            concat!($fetch, " [{ahead} + 64]"),
            $step_of!($width, $one),
            $next,
            concat!($fetch, " [{ahead} + 128]"),
            $step_of!($width2, $two),
            $next,
            concat!($fetch, " [{ahead} + 192]"),
            $step_of!($width3, $three),
            $last,
            concat!("add {b}, ", $width4),
            "add {ahead}, 256",
            "sub {depth}, 4",
            "jae 2b",
            "3:",
            "add {depth}, 4",
            "jz 5f",
            "4:",
            concat!($fetch, " [{ahead}]"),
            $step_of!("0", "0"),
            concat!("add {b}, ", $width),
            "add {at}, {step}",
            "add {ahead}, 64",
            "dec {depth}",
            "jnz 4b",
            "5:",
            $($r = in(reg) $a[$row],)*
            at = inout(reg) 0usize => _,
            step = in(reg) 4 * $step,
            b = inout(reg) $b => _,
            depth = inout(reg) $depth => _,
            ahead = inout(reg) $ahead => _,
            x = out(ymm_reg) _,
            $($v = out(ymm_reg) _,)*
            $($sum = inout(ymm_reg) $s[$i][$j],)*
            options(nostack, readonly),
        )
    };
}

/// [`rows_loop`] with the distances of the rows' numbers in the instructions where they are usual ones: neighbours, or a row of a
/// square.
macro_rules! multiply_by_step {
    ($step_of:ident, $fetch:literal, $width:tt, ($a:ident, $step:ident, $($o:ident),*), $($operands:tt)*) => {
        match $step {
            1 => rows_loop!(
                $step_of, $fetch, $width, ["4", "8", "12", "", "lea {at}, [{at} + 4 * {step}]"],
                ($a, $step, $($o),*), $($operands)*
            ),
            SQUARE => rows_loop!(
                $step_of, $fetch, $width, ["32", "64", "96", "", "lea {at}, [{at} + 4 * {step}]"],
                ($a, $step, $($o),*), $($operands)*
            ),
            _ => rows_loop!(
                $step_of, $fetch, $width, ["0", "0", "0", "add {at}, {step}", "add {at}, {step}"],
                ($a, $step, $($o),*), $($operands)*
            ),
        }
    };
}

macro_rules! loop_4x3 {
    ($fetch:literal, $o:tt) => {
        multiply_by_step!(
            rows_4x3, $fetch, ["96", "192", "288", "384"], $o,
            rows r0 0 r1 1 r2 2 r3 3, vectors b0 b1 b2,
            sums s00 0 0 s01 0 1 s02 0 2 s10 1 0 s11 1 1 s12 1 2 s20 2 0 s21 2 1 s22 2 2 s30 3 0 s31 3 1 s32 3 2
        )
    };
}

macro_rules! loop_6x2 {
    ($fetch:literal, $o:tt) => {
        multiply_by_step!(
            rows_6x2, $fetch, ["64", "128", "192", "256"], $o,
            rows r0 0 r1 1 r2 2 r3 3 r4 4 r5 5, vectors b0 b1,
            sums s00 0 0 s01 0 1 s10 1 0 s11 1 1 s20 2 0 s21 2 1 s30 3 0 s31 3 1 s40 4 0 s41 4 1 s50 5 0 s51 5 1
        )
    };
}

/// A loop of steps through the columns of two matrices, as [`rows_loop`].
macro_rules! columns_loop {
    (
        $step_of:ident, ($a:ident, $a_row:ident, $b:ident, $b_row:ident, $depth:ident, $s:ident),
        vectors $($v:ident)*, sums $($sum:ident $i:literal $j:literal)*
    ) => {
        asm!(
            "sub {depth}, 4",
            "jb 3f",
            "2:",
            $step_of!("0", "0"),
            $step_of!("{b_row}", "{a_row}"),
            $step_of!("2 * {b_row}", "2 * {a_row}"),
            $step_of!("{b_row3}", "{a_row3}"),
            "lea {a}, [{a} + 4 * {a_row}]",
            "lea {b}, [{b} + 4 * {b_row}]",
            "sub {depth}, 4",
            "jae 2b",
            "3:",
            "add {depth}, 4",
            "jz 5f",
            "4:",
            $step_of!("0", "0"),
            "add {a}, {a_row}",
            "add {b}, {b_row}",
            "dec {depth}",
            "jnz 4b",
            "5:",
            a = inout(reg) $a => _,
            a_row = in(reg) 4 * $a_row,
            a_row3 = in(reg) 12 * $a_row,
            b = inout(reg) $b => _,
            b_row = in(reg) 4 * $b_row,
            b_row3 = in(reg) 12 * $b_row,
            depth = inout(reg) $depth => _,
            x = out(ymm_reg) _,
            $($v = out(ymm_reg) _,)*
            $($sum = inout(ymm_reg) $s[$i][$j],)*
            options(nostack, readonly),
        )
    };
}

/// [`Simd::multiply_columns`] for four rows of three vectors.
///
/// # Safety
/// The processor must have `avx2` and `fma`; else as [`Simd::multiply_columns`].
#[target_feature(enable = "avx2,fma")]
unsafe fn columns_4x3(
    a: *const f32,
    a_row: usize,
    b: *const f32,
    b_row: usize,
    depth: usize,
    sums: &mut [[__m256; 3]; 4],
) {
    let mut s = *sums;
    // SAFETY: the loop reads what the caller vouches for, `depth` times, and writes registers alone.
    unsafe {
        columns_loop!(
            column_4x3, (a, a_row, b, b_row, depth, s), vectors b0 b1 b2,
            sums s00 0 0 s01 0 1 s02 0 2 s10 1 0 s11 1 1 s12 1 2 s20 2 0 s21 2 1 s22 2 2 s30 3 0 s31 3 1 s32 3 2
        );
    }
    *sums = s;
}

/// [`Simd::multiply_columns`] for four rows of two vectors.
///
/// # Safety
/// The processor must have `avx2` and `fma`; else as [`Simd::multiply_columns`].
#[target_feature(enable = "avx2,fma")]
unsafe fn columns_4x2(
    a: *const f32,
    a_row: usize,
    b: *const f32,
    b_row: usize,
    depth: usize,
    sums: &mut [[__m256; 2]; 4],
) {
    let mut s = *sums;
    // SAFETY: as in `columns_4x3`.
    unsafe {
        columns_loop!(
            column_4x2, (a, a_row, b, b_row, depth, s), vectors b0 b1,
            sums s00 0 0 s01 0 1 s10 1 0 s11 1 1 s20 2 0 s21 2 1 s30 3 0 s31 3 1
        );
    }
    *sums = s;
}

/// [`Simd::multiply`] for four rows of three vectors, which take all 16 registers: a compiler orders the loads so that it needs
/// one more, and a sum that goes through memory in every step halves the speed.
///
/// # Safety
/// The processor must have `avx2` and `fma`; else as [`Simd::multiply`].
#[target_feature(enable = "avx2,fma")]
unsafe fn multiply_4x3<const AHEAD: bool>(
    a: &[*const f32; 4],
    step: usize,
    b: *const f32,
    depth: usize,
    ahead: *const f32,
    sums: &mut [[__m256; 3]; 4],
) {
    let mut s = *sums;
    // SAFETY: the loop reads what the caller vouches for, `depth` times, and writes registers alone; a prefetch of any address
    // is allowed.
    unsafe {
        if AHEAD {
            loop_4x3!("prefetcht1", (a, step, b, depth, ahead, s))
        } else {
            loop_4x3!("#", (a, step, b, depth, ahead, s))
        }
    }
    *sums = s;
}

/// [`Simd::multiply`] for six rows of two vectors.
///
/// # Safety
/// The processor must have `avx2` and `fma`; else as [`Simd::multiply`].
#[target_feature(enable = "avx2,fma")]
unsafe fn multiply_6x2<const AHEAD: bool>(
    a: &[*const f32; 6],
    step: usize,
    b: *const f32,
    depth: usize,
    ahead: *const f32,
    sums: &mut [[__m256; 2]; 6],
) {
    let mut s = *sums;
    // SAFETY: as in `multiply_4x3`.
    unsafe {
        if AHEAD {
            loop_6x2!("prefetcht1", (a, step, b, depth, ahead, s))
        } else {
            loop_6x2!("#", (a, step, b, depth, ahead, s))
        }
    }
    *sums = s;
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
