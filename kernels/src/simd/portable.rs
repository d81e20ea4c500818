//! Plain Rust, four lanes wide: the compiler maps them onto whatever the target has.

use super::Simd;

#[derive(Clone, Copy)]
pub(super) struct Portable;

type V = [f32; 4];

#[inline(always)]
fn map(a: V, b: V, f: impl Fn(f32, f32) -> f32) -> V {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Simd for Portable {
    const LANES: usize = 4;
    type V = V;

    #[inline(always)]
    fn splat(self, x: f32) -> V {
        [x; 4]
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> V {
        // SAFETY: the caller vouches for four readable floats; an array of f32 has the alignment of f32.
        unsafe { p.cast::<V>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: V) {
        // SAFETY: the caller vouches for four writable floats.
        unsafe { p.cast::<V>().write_unaligned(v) }
    }

    #[inline(always)]
    fn prefetch(self, _: *const f32) {}

    #[inline(always)]
    fn expect(self, _: *const f32) {}

    #[inline(always)]
    fn add(self, a: V, b: V) -> V {
        map(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: V, b: V) -> V {
        map(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: V, b: V) -> V {
        map(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn fma(self, a: V, b: V, c: V) -> V {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    fn fma1(self, a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }

    #[inline(always)]
    fn div(self, a: V, b: V) -> V {
        map(a, b, |a, b| a / b)
    }

    #[inline(always)]
    fn max(self, a: V, b: V) -> V {
        map(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, a: V, b: V) -> V {
        map(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn where_positive(self, x: V, v: V) -> V {
        map(x, v, |x, v| if x > 0.0 { v } else { 0.0 })
    }

    #[inline(always)]
    fn pow2(self, n: V) -> V {
        // The wrapping sum agrees with the other instruction sets on values out of range.
        n.map(|n| f32::from_bits(((n as i32).wrapping_add(127) as u32) << 23))
    }
}
