//! Numbers as a file holds them: in single or half precision, or as bytes with a scale for each block.
//!
//! ```text
//! F16, BF16:   x                            exactly, both formats are part of f32
//! Int8:        x[i] = scales[i / block] values[i]
//! ```
//!
//! Networks that are only run keep their large weights like this, in a memory map of the file or in memory, and widen
//! them piece by piece where they are used (see [`Filter::streamed`](crate::conv::Filter::streamed)).

use std::fmt::Debug;

use crate::lanes::LINE;
use crate::simd::{self, Simd};

/// A tensor's numbers in the order of its file.
#[derive(Clone, Copy, Debug)]
pub enum Weight<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// Half precision (IEEE 754 binary16), as bits.
    F16(&'a [u16]),
    /// The upper half of single precision (bfloat16), as bits.
    Bf16(&'a [u16]),
    /// Signed bytes, each block of them with a factor.
    Int8 {
        /// The bytes.
        values: &'a [i8],
        /// A factor for each block, the last of which may be shorter.
        scales: &'a [f32],
        /// Numbers in a block, at least one.
        block: usize,
    },
}

/// Something that holds a tensor's numbers.
pub trait Stored: Debug + Send + Sync {
    /// The numbers.
    fn view(&self) -> Weight<'_>;
}

impl Stored for Vec<f32> {
    fn view(&self) -> Weight<'_> {
        Weight::F32(self)
    }
}

/// Bytes with a scale for each block, which are a quarter of the memory of f32.
#[derive(Clone, Debug)]
pub struct Int8 {
    values: Vec<i8>,
    scales: Vec<f32>,
    block: usize,
}

impl Int8 {
    /// The largest byte that is used, so that the range is symmetric.
    const GREATEST: f32 = 127.0;

    /// Rounds `weight` to bytes in blocks of `block` neighbours: the scale is that of the largest magnitude of a block, which no
    /// number is further from than half a scale.
    ///
    /// # Panics
    /// If `block` is zero.
    pub fn round(weight: Weight<'_>, block: usize) -> Self {
        assert!(block > 0, "Int8::round: a block should have at least one number");
        let len = weight.len();
        let mut rounded = Self { values: Vec::with_capacity(len), scales: Vec::new(), block };
        let mut numbers = vec![0.0; block];
        for start in (0..len).step_by(block) {
            let numbers = &mut numbers[..block.min(len - start)];
            weight.widen(start, numbers);
            let greatest = numbers.iter().fold(0f32, |greatest, x| greatest.max(x.abs()));
            let scale = greatest / Self::GREATEST;
            let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            rounded.scales.push(scale);
            // A cast saturates, and turns what is not a number into zero.
            rounded.values.extend(numbers.iter().map(|x| (x * inverse).round() as i8));
        }
        rounded
    }
}

impl Stored for Int8 {
    fn view(&self) -> Weight<'_> {
        Weight::Int8 { values: &self.values, scales: &self.scales, block: self.block }
    }
}

impl Weight<'_> {
    /// How many numbers there are.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(x) => x.len(),
            Self::F16(x) | Self::Bf16(x) => x.len(),
            Self::Int8 { values, .. } => values.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes the numbers from `start` on to `out`.
    ///
    /// # Panics
    /// If there are fewer than `start + out.len()`.
    pub fn widen(&self, start: usize, out: &mut [f32]) {
        let range = start..start + out.len();
        match self {
            Self::F32(x) => out.copy_from_slice(&x[range]),
            Self::F16(x) => simd::widen_f16(&x[range], out),
            Self::Bf16(x) => {
                for (out, bits) in out.iter_mut().zip(&x[range]) {
                    *out = f32::from_bits(u32::from(*bits) << 16);
                }
            }
            Self::Int8 { values, scales, block } => {
                let (mut out, mut at) = (out, start);
                while !out.is_empty() {
                    let count = (block - at % block).min(out.len());
                    let (piece, rest) = out.split_at_mut(count);
                    let scale = scales[at / block];
                    for (out, byte) in piece.iter_mut().zip(&values[at..at + count]) {
                        *out = scale * f32::from(*byte);
                    }
                    (out, at) = (rest, at + count);
                }
            }
        }
    }

    /// Sends for the numbers from `start` on, if there are any, so that widening them need not wait.
    #[inline(always)]
    pub(crate) fn fetch<S: Simd>(&self, s: S, start: usize, len: usize) {
        let (first, size) = match self {
            Self::F32(x) => (x.as_ptr().cast::<u8>(), 4),
            Self::F16(x) | Self::Bf16(x) => (x.as_ptr().cast(), 2),
            Self::Int8 { values, .. } => (values.as_ptr().cast(), 1),
        };
        for byte in (0..len * size).step_by(LINE * size_of::<f32>()) {
            s.prefetch(first.wrapping_add(start * size + byte).cast());
        }
    }

    /// All numbers.
    pub fn to_vec(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.len()];
        self.widen(0, &mut out);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::numbers;

    /// By its definition (IEEE 754, section 3.4).
    fn half(bits: u16) -> f64 {
        let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
        let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023) / 1024.0);
        sign * match exponent {
            0 => fraction * 2f64.powi(-14),
            31 if fraction == 0.0 => f64::INFINITY,
            31 => f64::NAN,
            _ => (1.0 + fraction) * 2f64.powi(exponent - 15),
        }
    }

    #[test]
    fn every_half_is_widened_exactly() {
        let bits: Vec<u16> = (0..=u16::MAX).collect();
        for skip in [0, 1, 5] {
            let mut found = vec![7f32; bits.len() - skip];
            Weight::F16(&bits).widen(skip, &mut found);
            for (found, bits) in found.iter().zip(&bits[skip..]) {
                let exact = half(*bits);
                assert!(f64::from(*found) == exact || (found.is_nan() && exact.is_nan()), "{bits:#06x}: {found}");
                assert_eq!(found.is_sign_negative(), bits >> 15 == 1, "{bits:#06x}");
            }
        }
        assert_eq!(bits.iter().map(|bits| simd::half(*bits).to_bits()).collect::<Vec<_>>(), {
            Weight::F16(&bits).to_vec().iter().map(|x| x.to_bits()).collect::<Vec<_>>()
        });
    }

    #[test]
    fn the_upper_half_of_a_float_is_widened_exactly() {
        let x = numbers(77, 1);
        let bits: Vec<u16> = x.iter().map(|x| (x.to_bits() >> 16) as u16).collect();
        for (found, x) in Weight::Bf16(&bits).to_vec().iter().zip(&x) {
            assert_eq!(found.to_bits(), x.to_bits() & 0xffff_0000);
        }
    }

    #[test]
    fn bytes_are_within_half_a_scale() {
        for (len, block) in [(0, 4), (1, 1), (64, 32), (65, 32), (100, 7), (31, 32)] {
            let x = numbers(len, 3);
            let rounded = Int8::round(Weight::F32(&x), block);
            let found = rounded.view().to_vec();
            for (found, x) in found.chunks(block).zip(x.chunks(block)) {
                let scale = x.iter().fold(0f32, |a, x| a.max(x.abs())) / 127.0;
                for (found, x) in found.iter().zip(x) {
                    assert!((found - x).abs() <= 0.5 * scale * (1.0 + 1e-5), "{len} {block}: {found} for {x}");
                }
            }
            for start in 0..len.min(9) {
                let mut part = vec![0.0; (len - start) / 2];
                rounded.view().widen(start, &mut part);
                assert_eq!(part, found[start..start + part.len()], "{len} {block} from {start}");
            }
        }
        assert_eq!(Int8::round(Weight::F32(&[0.0; 5]), 2).view().to_vec(), [0.0; 5]);
    }
}
