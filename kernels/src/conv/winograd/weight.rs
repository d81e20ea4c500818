//! The gradient of the filter by the transpose of F(4x4, 3x3).
//!
//! ```text
//! dg = G^T [ sum_tiles (B^T d B) . (A dY A^T) ] G
//! ```
//!
//! in the notation of [`super::winograd`]: the adjoint of `Y = A^T [(G g G^T) . (B^T d B)] A` with respect to `g`.

use std::ops::Range;

use rayon::prelude::*;

use super::input::Source;
use super::tiles::{Block, Grid, PATCH, POINTS, TILE, Tile, gradient_transform, uses};
use super::{PLANE_GAP, with_scratch};
use crate::conv::ConvDims;
use crate::conv::part::Part;
use crate::simd::{Isa, Simd, WithSimd, dispatch_to};

/// Tiles whose products are summed in registers.
const BLOCK_TILES: usize = 32;
/// Channels of the input that a task is responsible for: its sums stay in the second-level cache.
const TASK_CHANNELS: usize = 64;
/// Tiles that justify a partial sum of their own.
const GROUP_TILES: usize = 256;
/// The most partial sums.
const GROUPS: usize = 8;
/// Outputs that the last transform handles together; it divides the number of outputs.
const OUTPUTS_AT_ONCE: usize = 8;

/// The gradient of the filter, added to `dw` `[c_out, c_in, 3, 3]`; channels must come in whole vectors.
pub(in crate::conv) fn backward_weight(isa: Isa, d: &ConvDims, parts: &[Part<'_>], dy: &[f32], dw: &mut [f32]) {
    let (c_in, c_out) = (d.c_in, d.c_out);
    let grid = Grid::new(d);
    let tiles = grid.tiles();
    let groups = (tiles / GROUP_TILES).clamp(1, GROUPS);
    // `[group][range of channels][point][channel][output]`
    let mut partial = vec![0.0f32; groups * POINTS * c_in * c_out];
    let tasks: Vec<(usize, Range<usize>, &mut [f32])> = partial
        .chunks_mut(POINTS * c_in * c_out)
        .enumerate()
        .flat_map(|(group, sums)| {
            sums.chunks_mut(POINTS * TASK_CHANNELS * c_out).enumerate().map(move |(part, sums)| {
                let first = part * TASK_CHANNELS;
                (group, first..(first + TASK_CHANNELS).min(c_in), sums)
            })
        })
        .collect();
    tasks.into_par_iter().for_each(|(group, channels, sums)| {
        let tiles = group * tiles / groups..(group + 1) * tiles / groups;
        let source = Source { parts, h: d.h, w: d.w };
        let needed = POINTS * (BLOCK_TILES * (channels.len() + c_out) + 2 * PLANE_GAP);
        with_scratch(needed, |scratch| {
            dispatch_to(isa, Task { d, source, grid, dy, channels, tiles, scratch, sums });
        });
    });
    dw.par_chunks_mut(OUTPUTS_AT_ONCE * c_in * 9).enumerate().for_each(|(chunk, dw)| {
        let first = chunk * OUTPUTS_AT_ONCE;
        for c in 0..c_in {
            let mut sums = [[0.0f32; OUTPUTS_AT_ONCE]; POINTS];
            let part = c / TASK_CHANNELS;
            let in_part = TASK_CHANNELS.min(c_in - part * TASK_CHANNELS);
            for group in partial.chunks_exact(POINTS * c_in * c_out) {
                let part = &group[part * POINTS * TASK_CHANNELS * c_out..][..POINTS * in_part * c_out];
                for (point, sums) in sums.iter_mut().enumerate() {
                    let row = &part[(point * in_part + c % TASK_CHANNELS) * c_out + first..][..OUTPUTS_AT_ONCE];
                    for (sum, value) in sums.iter_mut().zip(row) {
                        *sum += value;
                    }
                }
            }
            let rows: [[[f32; OUTPUTS_AT_ONCE]; 3]; PATCH] =
                std::array::from_fn(|u| filter_gradient(std::array::from_fn(|v| sums[u * PATCH + v])));
            for v in 0..3 {
                let column = filter_gradient(std::array::from_fn(|u| rows[u][v]));
                for (u, values) in column.iter().enumerate() {
                    for (o, value) in values.iter().enumerate() {
                        dw[(o * c_in + c) * 9 + 3 * u + v] += value;
                    }
                }
            }
        }
    });
}

/// `G^T m` for several outputs at once.
#[inline(always)]
fn filter_gradient<const N: usize>(m: [[f32; N]; PATCH]) -> [[f32; N]; 3] {
    let mut out = [[0.0; N]; 3];
    for o in 0..N {
        let (near, near_difference) = ((m[1][o] + m[2][o]) / 6.0, (m[2][o] - m[1][o]) / 6.0);
        let (far, far_difference) = ((m[3][o] + m[4][o]) / 24.0, (m[3][o] - m[4][o]) / 24.0);
        out[0][o] = m[0][o] / 4.0 - near + far;
        out[1][o] = near_difference + 2.0 * far_difference;
        out[2][o] = 4.0 * far - near + m[5][o];
    }
    out
}

/// Some tiles and some channels.
struct Task<'a> {
    d: &'a ConvDims,
    source: Source<'a>,
    grid: Grid,
    dy: &'a [f32],
    channels: Range<usize>,
    tiles: Range<usize>,
    scratch: &'a mut [f32],
    /// `[point][channel][output]`
    sums: &'a mut [f32],
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Task { d, source, grid, dy, channels, tiles, scratch, sums } = self;
        let (inputs, outputs) = (channels.len(), d.c_out);
        let in_plane = BLOCK_TILES * inputs + PLANE_GAP;
        let out_plane = BLOCK_TILES * outputs + PLANE_GAP;
        let (patches, gradients) = scratch.split_at_mut(POINTS * in_plane);
        for first in tiles.clone().step_by(BLOCK_TILES) {
            let block = grid.block(first..(first + BLOCK_TILES).min(tiles.end));
            source.transform(s, block.tiles(), channels.clone(), in_plane, patches);
            transform_gradient(s, d, dy, &block, out_plane, gradients);
            for point in 0..POINTS {
                let using = block.using(point / PATCH, point % PATCH);
                let patches = &patches[point * in_plane..][using.start * inputs..using.end * inputs];
                let gradients = &gradients[point * out_plane..][using.start * outputs..using.end * outputs];
                let sums = &mut sums[point * inputs * outputs..][..inputs * outputs];
                let mut o = 0;
                while o < outputs {
                    o += if outputs - o >= 2 * S::LANES {
                        add_products::<S, 8, 2>(s, patches, inputs, gradients, outputs, o, sums)
                    } else {
                        add_products::<S, 8, 1>(s, patches, inputs, gradients, outputs, o, sums)
                    };
                }
            }
        }
    }
}

/// `sums[c, o..] += sum_tiles patches[tile, c] gradients[tile, o..]` for every channel; returns how many outputs.
#[inline(always)]
fn add_products<S: Simd, const MR: usize, const NV: usize>(
    s: S,
    patches: &[f32],
    channels: usize,
    gradients: &[f32],
    outputs: usize,
    o: usize,
    sums: &mut [f32],
) -> usize {
    let tiles = patches.len() / channels;
    assert!(channels.is_multiple_of(MR) && o + NV * S::LANES <= outputs);
    assert!(gradients.len() == tiles * outputs && sums.len() == channels * outputs);
    for c in (0..channels).step_by(MR) {
        // SAFETY: `c + MR <= channels`, `o + NV * LANES <= outputs`, and the three matrices have the sizes that were
        // checked above.
        unsafe {
            let target = sums.as_mut_ptr().add(c * outputs + o);
            let mut acc: [[S::V; NV]; MR] =
                std::array::from_fn(|i| std::array::from_fn(|v| s.load(target.add(i * outputs + v * S::LANES))));
            let (mut a, mut b) = (patches.as_ptr().add(c), gradients.as_ptr().add(o));
            for _ in 0..tiles {
                let row: [S::V; NV] = std::array::from_fn(|v| s.load(b.add(v * S::LANES)));
                for (i, acc) in acc.iter_mut().enumerate() {
                    let x = s.splat(*a.add(i));
                    for v in 0..NV {
                        acc[v] = s.fma(x, row[v], acc[v]);
                    }
                }
                a = a.wrapping_add(channels);
                b = b.wrapping_add(outputs);
            }
            for (i, acc) in acc.iter().enumerate() {
                for (v, sum) in acc.iter().enumerate() {
                    s.store(target.add(i * outputs + v * S::LANES), *sum);
                }
            }
        }
    }
    NV * S::LANES
}

/// `A dY A^T` of some tiles, `[point][tile][output]`.
#[inline(always)]
fn transform_gradient<S: Simd>(s: S, d: &ConvDims, dy: &[f32], block: &Block, plane: usize, gradients: &mut [f32]) {
    let outputs = d.c_out;
    assert!(block.tiles().len() * outputs <= plane && POINTS * plane <= gradients.len());
    assert!(outputs.is_multiple_of(S::LANES));
    for (index, tile) in block.tiles().iter().enumerate() {
        let first = ((tile.n * d.h + tile.top) * d.w + tile.left) * outputs;
        let source = dy[first..][..((tile.rows - 1) * d.w + tile.cols) * outputs].as_ptr();
        let target = gradients[index * outputs..].as_mut_ptr();
        for o in (0..outputs).step_by(S::LANES) {
            let (source, target) = (source.wrapping_add(o), target.wrapping_add(o));
            if tile.is_whole() {
                transform_tile::<S, true>(s, tile, source, d.w * outputs, outputs, target, plane);
            } else {
                transform_tile::<S, false>(s, tile, source, d.w * outputs, outputs, target, plane);
            }
        }
    }
}

/// One vector of outputs of one tile.
#[inline(always)]
fn transform_tile<S: Simd, const WHOLE: bool>(
    s: S,
    tile: &Tile,
    source: *const f32,
    row: usize,
    outputs: usize,
    target: *mut f32,
    plane: usize,
) {
    let (rows, cols) = if WHOLE { (TILE, TILE) } else { (tile.rows, tile.cols) };
    let mut half = [[s.splat(0.0); PATCH]; TILE];
    for (i, half) in half.iter_mut().enumerate() {
        if i < rows {
            let values = std::array::from_fn(|j| {
                if j < cols {
                    // SAFETY: the caller took `rows` rows of the pictures, each with `cols` pixels of `outputs` floats.
                    unsafe { s.load(source.add(i * row + j * outputs)) }
                } else {
                    s.splat(0.0)
                }
            });
            *half = gradient_transform(s, cols, values);
        }
    }
    for v in 0..PATCH {
        if uses(cols, v) {
            let column = gradient_transform(s, rows, std::array::from_fn(|i| half[i][v]));
            for (u, value) in column.into_iter().enumerate() {
                if uses(rows, u) {
                    // SAFETY: a plane has room for all outputs of all tiles, and there are `POINTS` planes.
                    unsafe { s.store(target.add((u * PATCH + v) * plane), value) };
                }
            }
        }
    }
}
