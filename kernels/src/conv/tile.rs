//! The register tile: some output rows by one panel of outputs.

use super::gather::Start;
use crate::lanes::{MAX_LANES, put};
use crate::simd::Simd;

/// Floats of the widest panel.
const MAX_WIDTH: usize = 64;

/// Where the rows of a tile lie.
pub(super) struct Place<'a> {
    /// The start of each row's first output.
    pub(super) rows: &'a [*mut f32],
    /// Outputs of the panel that exist.
    pub(super) columns: usize,
}

/// What the tile holds before the first product is added; `first_output` is the panel's first output.
///
/// # Safety
/// Each row of `place` must be valid for reading `columns` floats if `start` accumulates.
#[inline(always)]
pub(super) unsafe fn begin<S: Simd, const MR: usize, const NV: usize>(
    s: S,
    start: Start<'_>,
    first_output: usize,
    place: &Place<'_>,
) -> [[S::V; NV]; MR] {
    let (width, columns) = (NV * S::LANES, place.columns);
    let mut edge = [0.0f32; MAX_WIDTH];
    let mut acc = [[s.splat(0.0); NV]; MR];
    match start {
        Start::Bias(None) => {}
        Start::Bias(Some(bias)) => {
            let bias = &bias[first_output..first_output + columns];
            if columns < width {
                edge[..columns].copy_from_slice(bias);
            }
            let from = if columns < width { edge.as_ptr() } else { bias.as_ptr() };
            for v in 0..NV {
                // SAFETY: `edge` is as long as the widest panel, and so is the bias where it is read in place.
                let b = unsafe { s.load(from.add(v * S::LANES)) };
                for sums in &mut acc {
                    sums[v] = b;
                }
            }
        }
        Start::Accumulate => {
            // Rows are told apart by constants, so that the tile stays in registers.
            for i in 0..MR {
                let Some(&y) = place.rows.get(i) else { continue };
                if columns < width {
                    // SAFETY: the caller vouches for `columns` floats, and `edge` has room for them.
                    unsafe { std::ptr::copy_nonoverlapping(y, edge.as_mut_ptr(), columns) };
                }
                let from = if columns < width { edge.as_ptr() } else { y.cast_const() };
                for v in 0..NV {
                    // SAFETY: `edge` is as long as a panel's row, and so is the row itself where it is read in place.
                    acc[i][v] = unsafe { s.load(from.add(v * S::LANES)) };
                }
            }
        }
    }
    acc
}

/// Writes the rows of a tile that exist.
///
/// # Safety
/// Each row of `place` must be valid for writing `columns` floats.
#[inline(always)]
pub(super) unsafe fn store<S: Simd, const MR: usize, const NV: usize>(s: S, acc: &[[S::V; NV]; MR], place: &Place<'_>) {
    let (width, columns) = (NV * S::LANES, place.columns);
    for i in 0..MR {
        let Some(&y) = place.rows.get(i) else { continue };
        if columns == width {
            for v in 0..NV {
                // SAFETY: the caller vouches for `columns` floats, which are whole vectors here.
                unsafe { s.store(y.add(v * S::LANES), acc[i][v]) };
            }
        } else {
            let mut edge = [0.0f32; MAX_WIDTH];
            for v in 0..NV {
                // SAFETY: `edge` is as long as the widest panel.
                unsafe { s.store(edge.as_mut_ptr().add(v * S::LANES), acc[i][v]) };
            }
            // SAFETY: the caller vouches for `columns` floats.
            unsafe { std::ptr::copy_nonoverlapping(edge.as_ptr(), y, columns) };
        }
    }
}

/// The sum of the lanes of a vector, halves first.
#[inline(always)]
pub(super) fn sum_lanes<S: Simd>(s: S, v: S::V) -> f32 {
    #[inline(always)]
    fn fold<const N: usize, const HALF: usize>(x: [f32; N]) -> [f32; HALF] {
        std::array::from_fn(|i| x[i] + x[i + HALF])
    }
    let mut lanes = [0.0f32; MAX_LANES];
    put::<S, true>(s, &mut lanes, 0, v);
    let eight: [f32; 8] = if S::LANES == MAX_LANES { fold(lanes) } else { std::array::from_fn(|i| lanes[i]) };
    let two: [f32; 2] = fold::<4, 2>(fold(eight));
    two[0] + two[1]
}
