//! NEON, the vectors of 64-bit Arm.

use std::arch::aarch64::*;

use super::{Simd, WithSimd};

/// Runs `op` compiled for NEON.
///
/// # Safety
/// The processor must have `neon`.
#[target_feature(enable = "neon")]
pub(super) unsafe fn run<O: WithSimd>(op: O) -> O::Output {
    op.with_simd(Neon(()))
}

/// Proof that the processor has NEON.
#[derive(Clone, Copy)]
pub(super) struct Neon(());

impl Simd for Neon {
    const LANES: usize = 4;
    type V = float32x4_t;

    #[inline(always)]
    fn splat(self, x: f32) -> float32x4_t {
        // SAFETY: a value of this type is made only where the instruction set was detected.
        unsafe { vdupq_n_f32(x) }
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> float32x4_t {
        // SAFETY: the instruction set was detected; the caller vouches for the pointer.
        unsafe { vld1q_f32(p) }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: float32x4_t) {
        // SAFETY: the instruction set was detected; the caller vouches for the pointer.
        unsafe { vst1q_f32(p, v) }
    }

    #[inline(always)]
    fn prefetch(self, _: *const f32) {}

    #[inline(always)]
    fn expect(self, _: *const f32) {}

    #[inline(always)]
    fn add(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: a value of this type is made only where the instruction set was detected.
        unsafe { vaddq_f32(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: a value of this type is made only where the instruction set was detected.
        unsafe { vsubq_f32(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: a value of this type is made only where the instruction set was detected.
        unsafe { vmulq_f32(a, b) }
    }

    #[inline(always)]
    fn fma(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        // SAFETY: a value of this type is made only where the instruction set was detected.
        unsafe { vfmaq_f32(c, a, b) }
    }

    #[inline(always)]
    fn fma1(self, a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }

    #[inline(always)]
    fn div(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: a value of this type is made only where the instruction set was detected.
        unsafe { vdivq_f32(a, b) }
    }

    #[inline(always)]
    fn max(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: a value of this type is made only where the instruction set was detected.
        unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) }
    }

    #[inline(always)]
    fn min(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: a value of this type is made only where the instruction set was detected.
        unsafe { vbslq_f32(vcltq_f32(a, b), a, b) }
    }

    #[inline(always)]
    fn where_positive(self, x: float32x4_t, v: float32x4_t) -> float32x4_t {
        // SAFETY: a value of this type is made only where the instruction set was detected.
        unsafe { vbslq_f32(vcgtq_f32(x, vdupq_n_f32(0.0)), v, vdupq_n_f32(0.0)) }
    }

    #[inline(always)]
    fn pow2(self, n: float32x4_t) -> float32x4_t {
        // SAFETY: a value of this type is made only where the instruction set was detected.
        unsafe {
            let exponent = vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127));
            vreinterpretq_f32_s32(vshlq_n_s32::<23>(exponent))
        }
    }
}
