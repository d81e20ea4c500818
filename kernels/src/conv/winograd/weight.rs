//! The gradient of the filter by the transpose of F(4x4, 3x3), and the gradient of the bias.
//!
//! ```text
//! dg = G^T [ sum_tiles (B^T d B) . (A dY A^T) ] G
//! ```
//!
//! in the notation of [`super::winograd`]: the adjoint of `Y = A^T [(G g G^T) . (B^T d B)] A` with respect to `g`.
//!
//! A task is responsible for some channels, some outputs and some tiles. Its 36 matrices of sums stay in the second-level
//! cache while the tiles pass by in blocks, transformed, multiplied and forgotten; only the nine taps of its result leave
//! the cache. Tiles are transformed once for every task that needs them: reading them back from memory would take longer.
//! Point (1, 1) of a tile's transformed gradient is the sum of the tile, which gives the gradient of the bias.

#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::input::Source;
use super::tiles::{Block, Grid, MOST_TILES, PATCH, POINTS, TILE, Tile, gradient_transform, uses};
use super::{PLANE_GAP, SCRATCH};
use crate::conv::ConvDims;
use crate::conv::joined::with_joined;
use crate::conv::part::Part;
use crate::lanes::LINE;
use crate::memory::{Floats, Kept, with_kept};
use crate::par::Shared;
use crate::simd::{Isa, Simd, WithSimd, dispatch_to};

/// The most channels, and the most outputs, of a task: the sums of 64 by 64 take 0.6 MB.
const PART: usize = 64;
/// Channels and outputs are divided in multiples of this, which every register tile divides or is left over by.
const UNIT: usize = 16;
/// Floats of sums and transformed tiles that a task works on: 1.5 MB.
const TASK_FLOATS: usize = 384 * 1024;
/// Tasks that the work should be divided into, so that several threads find some.
const TASKS: usize = 16;
/// Tiles that justify a partial sum of their own.
const GROUP_TILES: usize = 128;
/// Taps of a filter.
const TAPS: usize = 9;
/// The point whose gradient is the sum of the tile: (1, 1).
const SUM_POINT: usize = PATCH + 1;
/// Floats of the longest vector.
const MOST_LANES: usize = 16;

thread_local! {
    static PARTIAL: Cell<Floats> = const { Cell::new(Floats::new()) };
}
/// Where a thread keeps partial sums between calls.
static KEPT: &Kept<f32> = &PARTIAL;

/// How the work is divided: by shape alone.
#[derive(Clone, Copy, Debug)]
struct Plan {
    tiles: usize,
    channels: usize,
    outputs: usize,
    /// Into how many parts each of them is divided.
    groups: usize,
    channel_parts: usize,
    output_parts: usize,
    /// The most tiles that a task transforms at a time.
    block: usize,
}

impl Plan {
    fn new(tiles: usize, channels: usize, outputs: usize) -> Self {
        let (channel_parts, output_parts) = (channels.div_ceil(PART), outputs.div_ceil(PART));
        let parts = channel_parts * output_parts;
        let groups = TASKS.div_ceil(parts).min(tiles / GROUP_TILES).max(1);
        let (widest_in, widest_out) = (widest(channels, channel_parts), widest(outputs, output_parts));
        let left = TASK_FLOATS.saturating_sub(POINTS * widest_in * widest_out);
        let block = (left / POINTS / (widest_in + widest_out)).clamp(24, MOST_TILES);
        Self { tiles, channels, outputs, groups, channel_parts, output_parts, block }
    }

    fn tasks(&self) -> usize {
        self.groups * self.channel_parts * self.output_parts
    }

    /// Group, tiles, channels and outputs of a task.
    fn task(&self, index: usize) -> (usize, Range<usize>, Range<usize>, Range<usize>) {
        let (rest, o) = (index / self.output_parts, index % self.output_parts);
        let (group, c) = (rest / self.channel_parts, rest % self.channel_parts);
        let tiles = group * self.tiles / self.groups..(group + 1) * self.tiles / self.groups;
        (group, tiles, part(self.channels, self.channel_parts, c), part(self.outputs, self.output_parts, o))
    }
}

/// Part `index` of `parts` even parts, in multiples of [`UNIT`] but for the last.
fn part(len: usize, parts: usize, index: usize) -> Range<usize> {
    let units = len.div_ceil(UNIT);
    index * units / parts * UNIT..len.min((index + 1) * units / parts * UNIT)
}

/// No part of `parts` is longer than this.
fn widest(len: usize, parts: usize) -> usize {
    len.min(len.div_ceil(UNIT).div_ceil(parts) * UNIT)
}

/// The gradient of the filter, added to `dw` `[c_out, c_in, 3, 3]`, and of the bias, added to `db` `[c_out]`; channels, those
/// of every part as well, must come in whole vectors.
pub(in crate::conv) fn backward_weight(
    isa: Isa,
    d: &ConvDims,
    parts: &[Part<'_>],
    dy: &[f32],
    dw: &mut [f32],
    db: Option<&mut [f32]>,
) {
    let grid = Grid::new(d);
    let plan = Plan::new(grid.tiles(), d.c_in, d.c_out);
    if plan.tiles == 0 {
        return;
    }
    // Tiles overlap and are read once for every part of the outputs: exponentials are rather taken once for each pixel.
    if parts.iter().any(|part| part.map.is_some_and(|map| map.act.is_costly())) {
        return with_joined(d, parts, |x| backward_weight(isa, d, &[Part::plain(x, d.c_in)], dy, dw, db));
    }
    // One group needs no partial sums of the filter: every task adds to its own part of the gradient.
    let sums = if plan.groups > 1 { d.weight_len() } else { 0 };
    with_kept(KEPT, plan.groups * (sums + d.c_out), |partial| {
        let (partial, partial_bias) = partial.split_at_mut(plan.groups * sums);
        let shared = (Shared::new(dw), Shared::new(partial), Shared::new(partial_bias));
        (0..plan.tasks()).into_par_iter().for_each(|index| {
            let (group, tiles, channels, outputs) = plan.task(index);
            let task = Task {
                isa,
                d,
                source: Source { parts, h: d.h, w: d.w },
                grid,
                dy,
                partial_bias: (db.is_some() && channels.start == 0).then_some((shared.2, group * d.c_out)),
                channels,
                outputs,
                tiles,
                block: plan.block,
                dw: shared.0,
                partial: (plan.groups > 1).then_some((shared.1, group * sums)),
            };
            with_kept(SCRATCH, task.scratch(), |scratch| dispatch_to(isa, Staged(task, scratch)));
        });
        if plan.groups > 1 {
            let (row, partial) = (d.c_in * TAPS, &*partial);
            dw.par_chunks_mut(row).enumerate().for_each(|(output, dw)| {
                dispatch_to(isa, Merge { channels: d.c_in, partial: &partial[output * row..], group: sums, dw });
            });
        }
        if let Some(db) = db {
            for sums in partial_bias.chunks_exact(d.c_out) {
                for (total, sum) in db.iter_mut().zip(sums) {
                    *total += sum;
                }
            }
        }
    });
}

/// Some channels, outputs and tiles.
struct Task<'a> {
    isa: Isa,
    d: &'a ConvDims,
    source: Source<'a>,
    grid: Grid,
    dy: &'a [f32],
    channels: Range<usize>,
    outputs: Range<usize>,
    tiles: Range<usize>,
    block: usize,
    dw: Shared<'a, f32>,
    /// Partial sums `[group][output][tap][channel]` and where this task's group begins.
    partial: Option<(Shared<'a, f32>, usize)>,
    /// Partial sums of the bias `[group][output]`, where this task's group begins, if this task is to write them.
    partial_bias: Option<(Shared<'a, f32>, usize)>,
}

struct Staged<'a>(Task<'a>, &'a mut [f32]);

impl WithSimd for Staged<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Staged(task, scratch) = self;
        let (patches, scratch) = scratch.split_at_mut(POINTS * task.in_plane());
        let (gradients, sums) = scratch.split_at_mut(POINTS * task.out_plane());
        let mut bias = [0.0; PART];
        let blocks = task.tiles.len().div_ceil(task.block);
        let bound = |index: usize| task.tiles.start + index * task.tiles.len() / blocks;
        for index in 0..blocks {
            let block = task.grid.block(bound(index)..bound(index + 1));
            task.source.transform(s, block.tiles(), task.channels.clone(), task.in_plane(), patches);
            task.transform_gradient(s, &block, gradients);
            if task.partial_bias.is_some() {
                let rows = &gradients[SUM_POINT * task.out_plane()..][..block.tiles().len() * task.outputs.len()];
                add_rows(s, rows, &mut bias[..task.outputs.len()]);
            }
            // The first block writes the sums, so that they need not be zeroed.
            match S::LANES {
                8 => task.multiply::<S, 4, true>(s, &block, index > 0, patches, gradients, sums),
                4 if task.isa == Isa::Portable => {
                    task.multiply::<S, 4, false>(s, &block, index > 0, patches, gradients, sums);
                }
                _ => task.multiply::<S, 8, false>(s, &block, index > 0, patches, gradients, sums),
            }
        }
        if let Some((partial, start)) = task.partial_bias {
            // SAFETY: of the tasks of a group, only one with these outputs has the first channels, and only it writes here.
            unsafe { partial.part(start + task.outputs.start, task.outputs.len()) }
                .copy_from_slice(&bias[..task.outputs.len()]);
        }
        task.transform_sums(s, sums);
    }
}

impl Task<'_> {
    fn in_plane(&self) -> usize {
        self.block * self.channels.len() + PLANE_GAP
    }

    fn out_plane(&self) -> usize {
        self.block * self.outputs.len() + PLANE_GAP
    }

    fn sum_plane(&self) -> usize {
        self.channels.len() * self.outputs.len() + PLANE_GAP
    }

    fn scratch(&self) -> usize {
        POINTS * (self.in_plane() + self.out_plane() + self.sum_plane())
    }

    /// `A dY A^T` of some tiles, `[point][tile][output]`.
    #[inline(always)]
    fn transform_gradient<S: Simd>(&self, s: S, block: &Block, gradients: &mut [f32]) {
        let (d, plane, outputs) = (self.d, self.out_plane(), self.outputs.len());
        assert!(block.tiles().len() * outputs <= plane && POINTS * plane <= gradients.len());
        assert!(outputs.is_multiple_of(S::LANES) && self.outputs.end <= d.c_out);
        for (index, tile) in block.tiles().iter().enumerate() {
            let first = ((tile.n * d.h + tile.top) * d.w + tile.left) * d.c_out;
            let source = self.dy[first..][..((tile.rows - 1) * d.w + tile.cols) * d.c_out].as_ptr();
            let source = source.wrapping_add(self.outputs.start);
            let target = gradients[index * outputs..].as_mut_ptr();
            let next = block.tiles().get(index + 1).unwrap_or(tile);
            let next = ((next.n * d.h + next.top) * d.w + next.left) * d.c_out + self.outputs.start;
            let ahead = self.dy.as_ptr().wrapping_add(next);
            for o in (0..outputs).step_by(S::LANES) {
                let (source, target) = (source.wrapping_add(o), target.wrapping_add(o));
                if o.is_multiple_of(LINE) {
                    for (i, j) in (0..TILE).flat_map(|i| (0..TILE).map(move |j| (i, j))) {
                        s.prefetch(ahead.wrapping_add((i * d.w + j) * d.c_out + o));
                    }
                }
                if tile.is_whole() {
                    transform_tile::<S, true>(s, tile, source, d.w * d.c_out, d.c_out, target, plane);
                } else {
                    transform_tile::<S, false>(s, tile, source, d.w * d.c_out, d.c_out, target, plane);
                }
            }
        }
    }

    /// `sums[point][o][c] (+)= sum_tiles gradients[point][tile][o] patches[point][tile][c]`, in register tiles of `MR` outputs by two
    /// vectors of channels, or by three where the tile is `WIDE`.
    #[inline(always)]
    fn multiply<S: Simd, const MR: usize, const WIDE: bool>(
        &self,
        s: S,
        block: &Block,
        accumulate: bool,
        patches: &[f32],
        gradients: &[f32],
        sums: &mut [f32],
    ) {
        let (channels, outputs) = (self.channels.len(), self.outputs.len());
        assert!(outputs.is_multiple_of(MR) && channels.is_multiple_of(S::LANES));
        for point in 0..POINTS {
            let using = block.using(point / PATCH, point % PATCH);
            let product = Product {
                tiles: using.len(),
                patches: &patches[point * self.in_plane()..][using.start * channels..using.end * channels],
                gradients: &gradients[point * self.out_plane()..][using.start * outputs..using.end * outputs],
                channels,
                outputs,
            };
            let sums = &mut sums[point * self.sum_plane()..][..channels * outputs];
            let mut c = 0;
            while c < channels {
                // Nothing is left over that a narrow tile would have to take alone.
                let vectors = match (channels - c) / S::LANES {
                    1 => 1,
                    2 | 4 => 2,
                    _ if WIDE => 3,
                    _ => 2,
                };
                for o in (0..outputs).step_by(MR) {
                    // SAFETY: `MR` outputs and `vectors` vectors of channels are left, and the matrices have `tiles` rows
                    // and the sums a row for each output, as sliced above.
                    unsafe {
                        match vectors {
                            1 => product.tile::<S, MR, 1>(s, o, c, accumulate, sums),
                            2 => product.tile::<S, MR, 2>(s, o, c, accumulate, sums),
                            _ => product.tile::<S, MR, 3>(s, o, c, accumulate, sums),
                        }
                    }
                }
                c += vectors * S::LANES;
            }
        }
    }

    /// `G^T m G` of all sums, written to the partial sums or added to the gradient.
    #[inline(always)]
    fn transform_sums<S: Simd>(&self, s: S, sums: &[f32]) {
        let (channels, outputs, plane) = (self.channels.len(), self.outputs.len(), self.sum_plane());
        let c_in = self.d.c_in;
        assert!(sums.len() >= POINTS * plane);
        for o in 0..outputs {
            let row = (self.outputs.start + o) * c_in * TAPS;
            for c in (0..channels).step_by(S::LANES) {
                let source = sums[o * channels + c..].as_ptr();
                let mut rows = [MaybeUninit::<[S::V; 3]>::uninit(); PATCH];
                for (u, row) in rows.iter_mut().enumerate() {
                    let mut m = [s.splat(0.0); PATCH];
                    for (v, m) in m.iter_mut().enumerate() {
                        // SAFETY: each plane has a row of `channels` floats for every output, whole vectors.
                        *m = unsafe { s.load(source.add((u * PATCH + v) * plane)) };
                    }
                    row.write(filter_gradient(s, m));
                }
                let mut taps = [s.splat(0.0); TAPS];
                for v in 0..3 {
                    let mut m = [s.splat(0.0); PATCH];
                    for (m, row) in m.iter_mut().zip(&rows) {
                        // SAFETY: all rows were written.
                        *m = unsafe { row.assume_init_ref()[v] };
                    }
                    let column = filter_gradient(s, m);
                    (taps[v], taps[3 + v], taps[6 + v]) = (column[0], column[1], column[2]);
                }
                let c = self.channels.start + c;
                match self.partial {
                    Some((partial, start)) => {
                        for (tap, value) in taps.into_iter().enumerate() {
                            // SAFETY: no other task has this group, these outputs and these channels.
                            let target = unsafe { partial.part(start + row + tap * c_in + c, S::LANES) };
                            // SAFETY: the target is one vector.
                            unsafe { s.store(target.as_mut_ptr(), value) };
                        }
                    }
                    // SAFETY: no other task has these outputs and these channels.
                    None => add_taps(s, taps, unsafe { self.dw.part(row + c * TAPS, S::LANES * TAPS) }),
                }
            }
        }
    }
}

/// Adds `[tap][channel]` to `[channel][tap]`.
#[inline(always)]
fn add_taps<S: Simd>(s: S, taps: [S::V; TAPS], target: &mut [f32]) {
    let mut values = [0.0f32; TAPS * MOST_LANES];
    for (values, taps) in values.chunks_exact_mut(MOST_LANES).zip(taps) {
        // SAFETY: a row is at least as long as a vector.
        unsafe { s.store(values.as_mut_ptr(), taps) };
    }
    for (c, target) in target.chunks_exact_mut(TAPS).enumerate().take(S::LANES) {
        for (tap, sum) in target.iter_mut().enumerate() {
            *sum += values[tap * MOST_LANES + c];
        }
    }
}

/// `G^T m`
#[inline(always)]
fn filter_gradient<S: Simd>(s: S, m: [S::V; PATCH]) -> [S::V; 3] {
    let (quarter, sixth) = (s.splat(0.25), s.splat(1.0 / 6.0));
    let near = s.mul(s.splat(-1.0 / 6.0), s.add(m[1], m[2]));
    let far = s.add(m[3], m[4]);
    let difference = s.mul(s.splat(1.0 / 12.0), s.sub(m[3], m[4]));
    [
        s.fma(quarter, m[0], s.fma(s.splat(1.0 / 24.0), far, near)),
        s.fma(sixth, s.sub(m[2], m[1]), difference),
        s.fma(sixth, far, s.add(near, m[5])),
    ]
}

/// Adds up the partial sums of one output, groups in order.
struct Merge<'a> {
    channels: usize,
    /// `[tap][channel]` of this output of the first group.
    partial: &'a [f32],
    /// Floats from group to group.
    group: usize,
    /// `[channel][tap]`
    dw: &'a mut [f32],
}

impl WithSimd for Merge<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Merge { channels, partial, group, dw } = self;
        for (index, dw) in dw.chunks_exact_mut(S::LANES * TAPS).enumerate() {
            let mut taps = [s.splat(0.0); TAPS];
            for partial in partial.chunks(group) {
                for (tap, sum) in taps.iter_mut().enumerate() {
                    let row = &partial[tap * channels..][index * S::LANES..][..S::LANES];
                    // SAFETY: the row is one vector.
                    *sum = s.add(*sum, unsafe { s.load(row.as_ptr()) });
                }
            }
            add_taps(s, taps, dw);
        }
    }
}

/// Two matrices whose rows are tiles.
struct Product<'a> {
    tiles: usize,
    /// `[tile][channel]`
    patches: &'a [f32],
    /// `[tile][output]`
    gradients: &'a [f32],
    channels: usize,
    outputs: usize,
}

impl Product<'_> {
    /// `sums[o + i][c..] (+)= sum_tiles gradients[tile][o + i] patches[tile][c..]` for `MR` outputs and `NV` vectors.
    ///
    /// # Safety
    /// `o + MR <= outputs`, `c + NV * LANES <= channels`, and the three matrices must have the sizes that the fields say.
    #[inline(always)]
    unsafe fn tile<S: Simd, const MR: usize, const NV: usize>(
        &self,
        s: S,
        o: usize,
        c: usize,
        accumulate: bool,
        sums: &mut [f32],
    ) {
        let target = sums.as_mut_ptr().wrapping_add(o * self.channels + c);
        let (a, b) = (self.gradients.as_ptr().wrapping_add(o), self.patches.as_ptr().wrapping_add(c));
        let mut acc = [[s.splat(0.0); NV]; MR];
        // SAFETY: the caller vouches for the matrices.
        unsafe {
            if accumulate {
                for (i, acc) in acc.iter_mut().enumerate() {
                    for (v, sum) in acc.iter_mut().enumerate() {
                        *sum = s.load(target.add(i * self.channels + v * S::LANES));
                    }
                }
            }
            s.multiply_columns::<MR, NV>(a, self.outputs, b, self.channels, self.tiles, &mut acc);
            for (i, acc) in acc.iter().enumerate() {
                for (v, sum) in acc.iter().enumerate() {
                    s.store(target.add(i * self.channels + v * S::LANES), *sum);
                }
            }
        }
    }
}

/// `sums[o] += sum_rows rows[row][o]`
#[inline(always)]
fn add_rows<S: Simd>(s: S, rows: &[f32], sums: &mut [f32]) {
    for row in rows.chunks_exact(sums.len()) {
        for (sums, row) in sums.chunks_exact_mut(S::LANES).zip(row.chunks_exact(S::LANES)) {
            // SAFETY: both chunks are one vector.
            unsafe { s.store(sums.as_mut_ptr(), s.add(s.load(sums.as_ptr()), s.load(row.as_ptr()))) };
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
    let mut half = [MaybeUninit::<[S::V; PATCH]>::uninit(); TILE];
    for (i, half) in half.iter_mut().enumerate() {
        if i < rows {
            let mut values = [s.splat(0.0); TILE];
            for (j, value) in values.iter_mut().enumerate() {
                if j < cols {
                    // SAFETY: the caller took `rows` rows of the pictures, each with `cols` pixels of `outputs` floats.
                    *value = unsafe { s.load(source.add(i * row + j * outputs)) };
                }
            }
            half.write(gradient_transform(s, cols, values));
        }
    }
    for v in 0..PATCH {
        if uses(cols, v) {
            let mut y = [s.splat(0.0); TILE];
            for (y, half) in y.iter_mut().zip(&half).take(rows) {
                // SAFETY: so many rows were written.
                *y = unsafe { half.assume_init_ref()[v] };
            }
            let column = gradient_transform(s, rows, y);
            for (u, value) in column.into_iter().enumerate() {
                if uses(rows, u) {
                    // SAFETY: a plane has room for all outputs of all tiles, and there are `POINTS` planes.
                    unsafe { s.store(target.add((u * PATCH + v) * plane), value) };
                }
            }
        }
    }
}
