//! The inner loops of matrix products with AVX2, in assembly: a compiler takes a register more than there are for the widest tile, and
//! a sum that goes through memory in every step halves the speed.

use std::arch::asm;
use std::arch::x86_64::__m256;

use crate::lanes::SQUARE;

// The distances of a square's rows stand in the instructions.
const _: () = assert!(SQUARE == 8);

/// The vectors of a step, so many bytes on.
macro_rules! vectors {
    ($b:literal, $($vector:literal $at:literal),*) => {
        concat!($("vmovups {", $vector, "}, [{b} + ", $b, " + ", $at, "]\n",)*)
    };
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
            vectors!($b, "b0" "0", "b1" "32", "b2" "64"),
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
            vectors!($b, "b0" "0", "b1" "32"),
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
            vectors!($b, "b0" "0", "b1" "32"),
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
pub(super) unsafe fn columns_4x3(
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
pub(super) unsafe fn columns_4x2(
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

/// [`Simd::multiply`] for four rows of three vectors, which take all 16 registers.
///
/// # Safety
/// The processor must have `avx2` and `fma`; else as [`Simd::multiply`].
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn multiply_4x3<const AHEAD: bool>(
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
pub(super) unsafe fn multiply_6x2<const AHEAD: bool>(
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
