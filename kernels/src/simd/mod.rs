//! Vector instruction sets, chosen once at run time.
//!
//! An operation is a struct with an `#[inline(always)]` body generic in `Simd`; `dispatch` compiles that body
//! once per instruction set and calls the best one that the processor has. This is the scheme of the `pulp` crate,
//! reduced to what convolutional networks need in f32.

use std::sync::OnceLock;

use crate::lanes::SQUARE;

#[cfg(target_arch = "x86_64")]
mod avx2_loops;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(any(test, not(target_arch = "x86_64")))]
mod portable;
#[cfg(target_arch = "x86_64")]
mod sse2;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(not(target_arch = "x86_64"))]
use portable::Portable;
#[cfg(target_arch = "x86_64")]
use sse2::Portable;

/// An instruction set that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Isa {
    /// Whatever every processor of the target has: SSE2 on x86-64, plain Rust elsewhere.
    Portable,
    /// 256-bit vectors with fused multiply-add.
    Avx2,
    /// 512-bit vectors.
    Avx512,
    /// 128-bit vectors of 64-bit Arm.
    Neon,
}

impl Isa {
    /// The name that reports show.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "AVX2+FMA",
            Self::Avx512 => "AVX-512",
            Self::Neon => "NEON",
        }
    }

    /// The instruction sets that this processor has, the best one last.
    pub fn available() -> &'static [Self] {
        static AVAILABLE: OnceLock<Vec<Isa>> = OnceLock::new();
        AVAILABLE.get_or_init(|| {
            #[allow(unused_mut)]
            let mut found = vec![Self::Portable];
            #[cfg(target_arch = "x86_64")]
            {
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    found.push(Self::Avx2);
                    if is_x86_feature_detected!("avx512f") {
                        found.push(Self::Avx512);
                    }
                }
            }
            #[cfg(target_arch = "aarch64")]
            if std::arch::is_aarch64_feature_detected!("neon") {
                found.push(Self::Neon);
            }
            found
        })
    }

    /// The instruction set in use: the best of this processor, or the one that the environment variable `TWEEDIE_ISA` names
    /// (`portable`, `avx2`, `avx512`, `neon`), for measurements and for the bits of another machine.
    ///
    /// # Panics
    /// Where [`Isa::from_environment`] fails.
    pub fn best() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| Self::from_environment().unwrap_or_else(|message| panic!("{message}")))
    }

    /// As [`Isa::best`], read anew.
    ///
    /// # Errors
    /// If `TWEEDIE_ISA` is set to an instruction set that this processor does not have, or to anything else.
    pub fn from_environment() -> Result<Self, String> {
        let best = *Self::available().last().expect("the portable set is always available");
        let Some(name) = std::env::var_os("TWEEDIE_ISA") else { return Ok(best) };
        name.to_str().and_then(Self::named).ok_or_else(|| {
            let names: Vec<&str> = Self::available().iter().map(|isa| isa.key()).collect();
            format!("TWEEDIE_ISA is {name:?}; this processor has {}: name one of these, or unset it", names.join(", "))
        })
    }

    /// The available set that `TWEEDIE_ISA` calls `key`.
    fn named(key: &str) -> Option<Self> {
        Self::available().iter().copied().find(|isa| isa.key() == key)
    }

    /// Its name in `TWEEDIE_ISA`.
    fn key(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Neon => "neon",
        }
    }
}

/// Vectors of f32 of one instruction set.
///
/// Values of an implementing type exist only where the processor has the instruction set, so its methods are safe
/// but for those that read or write through pointers.
pub(crate) trait Simd: Copy + Send + Sync {
    /// Lanes of a vector.
    const LANES: usize;
    /// A vector.
    type V: Copy;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::V;
    /// Reads `LANES` floats.
    ///
    /// # Safety
    /// `p` must be valid for reading `LANES` floats; it need not be aligned.
    unsafe fn load(self, p: *const f32) -> Self::V;
    /// Writes `LANES` floats.
    ///
    /// # Safety
    /// `p` must be valid for writing `LANES` floats; it need not be aligned.
    unsafe fn store(self, p: *mut f32, v: Self::V);
    /// Asks for the cache line of `p`, which need not be a valid address, to be brought to the second-level cache.
    fn prefetch(self, p: *const f32);
    /// Asks for the cache line of `p`, which need not be a valid address, to be brought to the first-level cache, to be written: stores
    /// wait in turn for their lines.
    fn expect(self, p: *const f32);
    /// `a + b`
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b`
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, fused where the instruction set can.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Scalar `a * b + c`, rounded as [`Simd::fma`] rounds, so that tails agree with bodies.
    fn fma1(self, a: f32, b: f32, c: f32) -> f32;
    /// `a / b`
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a` where `a > b`, else `b`: a NaN in `b` stays, a NaN in `a` does not.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a` where `a < b`, else `b`: a NaN in `b` stays, a NaN in `a` does not.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// `v` where `x > 0`, else zero.
    fn where_positive(self, x: Self::V, v: Self::V) -> Self::V;
    /// 2^n for integral `n` in -126..=127; other values of `n` give meaningless numbers.
    fn pow2(self, n: Self::V) -> Self::V;
    /// The inner loop of a matrix product: `sums[i] += sum_c a[i][c step] b[c]`, for rows `b[c]` of `NV` vectors. With `AHEAD`, each
    /// step asks for a cache line from `ahead` on, as [`Simd::prefetch`] does.
    ///
    /// # Safety
    /// Each `a[i]` must be valid for reading `depth` floats, every `step` floats, and `b` for `depth * NV * LANES`.
    #[inline(always)]
    unsafe fn multiply<const MR: usize, const NV: usize, const AHEAD: bool>(
        self,
        a: &[*const f32; MR],
        step: usize,
        b: *const f32,
        depth: usize,
        ahead: *const f32,
        sums: &mut [[Self::V; NV]; MR],
    ) {
        // SAFETY: the caller vouches for both operands.
        unsafe { multiply::<Self, MR, NV, AHEAD>(self, a, step, b, depth, ahead, sums) };
    }
    /// The inner loop of a product of two matrices that are met column by column: `sums[i] += sum_p a[p a_row + i] b[p b_row]`, for
    /// rows of `b` of `NV` vectors.
    ///
    /// # Safety
    /// For each of `depth` steps, `a` must be valid for reading `MR` floats every `a_row` floats, and `b` for `NV * LANES` every `b_row`.
    #[inline(always)]
    unsafe fn multiply_columns<const MR: usize, const NV: usize>(
        self,
        a: *const f32,
        a_row: usize,
        b: *const f32,
        b_row: usize,
        depth: usize,
        sums: &mut [[Self::V; NV]; MR],
    ) {
        // SAFETY: the caller vouches for both operands.
        unsafe { multiply_columns::<Self, MR, NV>(self, a, a_row, b, b_row, depth, sums) };
    }
    /// Transposes a square of [`SQUARE`] by [`SQUARE`] floats with the rows `from` into one whose rows begin every `to_row` floats.
    ///
    /// # Safety
    /// All rows of both squares must be valid, for reading and for writing, and no float be part of both.
    #[inline(always)]
    unsafe fn turn(self, from: &[*const f32; SQUARE], to: *mut f32, to_row: usize) {
        for (i, from) in from.iter().enumerate() {
            for j in 0..SQUARE {
                // SAFETY: the caller vouches for both squares.
                unsafe { *to.add(j * to_row + i) = *from.add(j) };
            }
        }
    }
}

/// [`Simd::multiply`] as a compiler makes it.
///
/// # Safety
/// As [`Simd::multiply`].
#[inline(always)]
unsafe fn multiply<S: Simd, const MR: usize, const NV: usize, const AHEAD: bool>(
    s: S,
    a: &[*const f32; MR],
    step: usize,
    mut b: *const f32,
    depth: usize,
    ahead: *const f32,
    sums: &mut [[S::V; NV]; MR],
) {
    let mut acc = *sums;
    for c in 0..depth {
        if AHEAD {
            s.prefetch(ahead.wrapping_add(c * 16));
        }
        // SAFETY: the caller vouches for both operands.
        unsafe {
            let row: [S::V; NV] = std::array::from_fn(|v| s.load(b.add(v * S::LANES)));
            for i in 0..MR {
                let x = s.splat(*a[i].add(c * step));
                for v in 0..NV {
                    acc[i][v] = s.fma(x, row[v], acc[i][v]);
                }
            }
            b = b.add(NV * S::LANES);
        }
    }
    *sums = acc;
}

/// [`Simd::multiply_columns`] as a compiler makes it.
///
/// # Safety
/// As [`Simd::multiply_columns`].
#[inline(always)]
unsafe fn multiply_columns<S: Simd, const MR: usize, const NV: usize>(
    s: S,
    a: *const f32,
    a_row: usize,
    b: *const f32,
    b_row: usize,
    depth: usize,
    sums: &mut [[S::V; NV]; MR],
) {
    let (mut a, mut b, mut acc) = (a, b, *sums);
    for _ in 0..depth {
        // SAFETY: the caller vouches for both operands.
        unsafe {
            let row: [S::V; NV] = std::array::from_fn(|v| s.load(b.add(v * S::LANES)));
            for i in 0..MR {
                let x = s.splat(*a.add(i));
                for v in 0..NV {
                    acc[i][v] = s.fma(x, row[v], acc[i][v]);
                }
            }
        }
        (a, b) = (a.wrapping_add(a_row), b.wrapping_add(b_row));
    }
    *sums = acc;
}

/// `x`, of which a compiler knows nothing: distances that depend on it are added where they are used, instead of all being worked out
/// before a loop and kept in memory, for want of registers.
#[inline(always)]
pub(crate) fn opaque(x: usize) -> usize {
    #[allow(unused_mut)]
    let mut x = x;
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    // SAFETY: there are no instructions.
    unsafe {
        std::arch::asm!("/* {0} */", inout(reg) x, options(pure, nomem, nostack, preserves_flags));
    }
    x
}

/// An operation that is compiled once per instruction set.
pub(crate) trait WithSimd {
    /// What the operation returns.
    type Output;
    /// The body; implementations mark it `#[inline(always)]` and do not start threads in it.
    fn with_simd<S: Simd>(self, s: S) -> Self::Output;
}

/// Runs an operation with the best instruction set of this processor.
#[inline]
pub(crate) fn dispatch<O: WithSimd>(op: O) -> O::Output {
    dispatch_to(Isa::best(), op)
}

/// Runs an operation with a given instruction set.
///
/// # Panics
/// If the processor does not have it.
#[inline]
pub(crate) fn dispatch_to<O: WithSimd>(isa: Isa, op: O) -> O::Output {
    assert!(Isa::available().contains(&isa), "this processor does not have {}", isa.name());
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the features were detected on this processor.
        Isa::Avx2 => unsafe { x86::run_avx2(op) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the features were detected on this processor.
        Isa::Avx512 => unsafe { x86::run_avx512(op) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: the feature was detected on this processor.
        Isa::Neon => unsafe { neon::run(op) },
        _ => op.with_simd(Portable),
    }
}

/// `y = x`, of half precision.
pub(crate) fn widen_f16(x: &[u16], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "widening half precision: numbers");
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("f16c") && is_x86_feature_detected!("avx") {
        // SAFETY: the features were detected on this processor.
        unsafe { x86::widen_f16(x, y) };
        return;
    }
    x.iter().zip(y).for_each(|(x, y)| *y = half(*x));
}

/// The number that these bits are in half precision.
pub(crate) fn half(bits: u16) -> f32 {
    let (sign, size) = (u32::from(bits & 0x8000) << 16, u32::from(bits & 0x7fff));
    // With the exponent's field moved to its place in f32 the number is too small by 2^112, subnormal numbers, too; what is not
    // finite becomes 2^16 and more, and gets the largest exponent.
    let scaled = f32::from_bits(size << 13) * f32::from_bits((127 + 112) << 23);
    let size = if size >= 0x7c00 { scaled.to_bits() | 0x7f80_0000 } else { scaled.to_bits() };
    // A signalling NaN becomes a quiet one, as in hardware.
    let quiet = if size > 0x7f80_0000 { size | 0x0040_0000 } else { size };
    f32::from_bits(sign | quiet)
}

#[cfg(test)]
mod tests;
