//! The transform of the input, `B^T d B`, of the tiles of a block.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::tiles::{PATCH, POINTS, TILE, Tile, input_transform, uses};
use crate::act::{Act, Activation, Identity, per_act};
use crate::conv::part::Part;
use crate::lanes::LINE;
use crate::simd::{Simd, opaque};

/// The most channels of a part.
pub(super) const MOST_CHANNELS: usize = 4096;

/// Zeros that stand for pixels outside a picture.
static ZEROS: [f32; MOST_CHANNELS] = [0.0; MOST_CHANNELS];

/// Pictures `[n, h, w, channels]`, their channels in one part or several.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) parts: &'a [Part<'a>],
    pub(super) h: usize,
    pub(super) w: usize,
}

impl Source<'_> {
    /// Transforms some channels of some tiles into `patches`, `[point][tile][channel]` with `plane` floats from point to
    /// point; every part must have whole vectors of channels.
    #[inline(always)]
    pub(super) fn transform<S: Simd>(
        &self,
        s: S,
        tiles: &[Tile],
        channels: Range<usize>,
        plane: usize,
        patches: &mut [f32],
    ) {
        let row = channels.len();
        assert!(tiles.len() * row <= plane && POINTS * plane <= patches.len());
        // SAFETY: `patches` has room for the channels of every point of every tile.
        unsafe { self.transform_among(s, tiles, channels, (row, plane), patches.as_mut_ptr()) };
    }

    /// [`Source::transform`] into `[point][tile][channel]` with `plane` floats from point to point and `row` from
    /// tile to tile, of which the first is `patches`; every part must have whole vectors of channels.
    ///
    /// # Safety
    /// There must be room for these channels of every point of every tile, and nobody else may use it meanwhile.
    #[inline(always)]
    pub(super) unsafe fn transform_among<S: Simd>(
        &self,
        s: S,
        tiles: &[Tile],
        channels: Range<usize>,
        (row, plane): (usize, usize),
        patches: *mut f32,
    ) {
        let (mut first, start) = (0, channels.start);
        for part in self.parts {
            let wanted = start.max(first)..channels.end.min(first + part.channels);
            if !wanted.is_empty() {
                let channels = wanted.start - first..wanted.end - first;
                let view = View { part, h: self.h, w: self.w, channels, row, plane };
                let target = patches.wrapping_add(wanted.start - start);
                if part.is_plain() {
                    view.tiles::<S, Identity, true>(s, tiles, target);
                } else {
                    let act = part.map.map_or(Act::None, |map| map.act);
                    per_act!(act, A => view.tiles::<S, A, false>(s, tiles, target));
                }
            }
            first += part.channels;
        }
    }
}

/// Some channels of a part.
struct View<'a> {
    part: &'a Part<'a>,
    h: usize,
    w: usize,
    channels: Range<usize>,
    /// Floats from tile to tile of the result.
    row: usize,
    /// Floats from point to point of the result.
    plane: usize,
}

/// How the pixels of a vector of channels are read.
#[derive(Clone, Copy)]
struct Reading<V> {
    scale: V,
    shift: V,
    add: V,
}

impl<V: Copy> Reading<V> {
    #[inline(always)]
    fn read<S: Simd<V = V>, A: Activation, const PLAIN: bool>(&self, s: S, x: V) -> V {
        if PLAIN { x } else { s.add(A::value(s, s.fma(x, self.scale, self.shift)), self.add) }
    }
}

impl View<'_> {
    #[inline(always)]
    fn tiles<S: Simd, A: Activation, const PLAIN: bool>(&self, s: S, tiles: &[Tile], target: *mut f32) {
        assert!(self.channels.end <= self.part.channels && self.part.channels <= MOST_CHANNELS);
        assert!(self.channels.start.is_multiple_of(S::LANES) && self.channels.end.is_multiple_of(S::LANES));
        for (index, tile) in tiles.iter().enumerate() {
            let target = target.wrapping_add(index * self.row);
            let ahead = self.corner(tiles.get(index + 1).unwrap_or(tile));
            let inside =
                tile.top > 0 && tile.left > 0 && tile.top + PATCH - 1 <= self.h && tile.left + PATCH - 1 <= self.w;
            if tile.is_whole() && inside {
                self.inner::<S, A, PLAIN>(s, tile, target, ahead);
            } else {
                self.border::<S, A, PLAIN>(s, tile, target, ahead);
            }
        }
    }

    /// Where the patch of a tile begins, or would if the picture went on.
    #[inline(always)]
    fn corner(&self, tile: &Tile) -> *const f32 {
        let pixel = ((tile.n * self.h + tile.top) * self.w + tile.left).wrapping_sub(self.w + 1);
        self.part.values.as_ptr().wrapping_add(pixel.wrapping_mul(self.part.channels))
    }

    /// Sends for the pixels of the patch that begins at `ahead`, at a line of channels: those that it does not share with the patch
    /// to the left.
    #[inline(always)]
    fn fetch<S: Simd>(&self, s: S, ahead: *const f32, c: usize) {
        if c.is_multiple_of(LINE) {
            for u in 0..PATCH {
                for v in PATCH - TILE..PATCH {
                    s.prefetch(ahead.wrapping_add((u * self.w + v) * self.part.channels + c));
                }
            }
        }
    }

    /// What the pixels of sample `n` at the channels from `c` on are read with.
    #[inline(always)]
    fn reading<S: Simd>(&self, s: S, n: usize, c: usize) -> Reading<S::V> {
        let (channels, zero) = (self.part.channels, s.splat(0.0));
        // SAFETY: the tables were checked to have `channels` floats for each sample they distinguish, and a whole vector
        // of channels begins at `c`.
        let load = |row: &[f32]| unsafe { s.load(row.as_ptr().add(c)) };
        let (scale, shift) = match &self.part.map {
            Some(map) => {
                let (scale, shift) = map.row(n, channels);
                (load(scale), load(shift))
            }
            None => (s.splat(1.0), zero),
        };
        let add = self.part.add.map_or(zero, |add| load(&add[n * channels..][..channels]));
        Reading { scale, shift, add }
    }

    /// A whole tile whose patch lies within the picture.
    #[inline(always)]
    fn inner<S: Simd, A: Activation, const PLAIN: bool>(&self, s: S, tile: &Tile, target: *mut f32, ahead: *const f32) {
        let channels = self.part.channels;
        let source =
            self.part.values[((tile.n * self.h + tile.top - 1) * self.w + tile.left - 1) * channels..].as_ptr();
        for c in self.channels.clone().step_by(S::LANES) {
            self.fetch(s, ahead, c);
            let reading = self.reading(s, tile.n, c);
            let mut rows = [MaybeUninit::uninit(); PATCH];
            for (u, row) in rows.iter_mut().enumerate() {
                let pixels = source.wrapping_add(opaque(u * self.w * channels + c));
                let mut d = [s.splat(0.0); PATCH];
                for (v, d) in d.iter_mut().enumerate() {
                    // SAFETY: the patch lies within the picture, and a whole vector of channels begins at `c`.
                    let x = unsafe { s.load(pixels.add(v * channels)) };
                    *d = reading.read::<S, A, PLAIN>(s, x);
                }
                row.write(input_transform(s, 4, d));
            }
            let target = target.wrapping_add(c - self.channels.start);
            for v in 0..PATCH {
                // SAFETY: all rows were written.
                unsafe { self.transform_column::<S, 4>(s, &rows, v, target) };
            }
        }
    }

    /// Any tile: pixels outside the picture are zero, and points that a tile cut off does not use are left out.
    #[inline(always)]
    fn border<S: Simd, A: Activation, const PLAIN: bool>(
        &self,
        s: S,
        tile: &Tile,
        target: *mut f32,
        ahead: *const f32,
    ) {
        let (channels, values) = (self.part.channels, self.part.values);
        let mut pixels = [Pixel { values: ZEROS.as_ptr(), mask: 0.0 }; POINTS];
        for u in 0..tile.rows + 2 {
            for v in 0..tile.cols + 2 {
                // The patch begins one row above and one column to the left of its outputs.
                let (i, j) = (tile.top + u, tile.left + v);
                if i >= 1 && i <= self.h && j >= 1 && j <= self.w {
                    let pixel = (tile.n * self.h + i - 1) * self.w + j - 1;
                    pixels[u * PATCH + v] = Pixel { values: values[pixel * channels..].as_ptr(), mask: 1.0 };
                }
            }
        }
        for c in self.channels.clone().step_by(S::LANES) {
            self.fetch(s, ahead, c);
            let reading = self.reading(s, tile.n, c);
            let mut rows = [MaybeUninit::uninit(); PATCH];
            for (row, pixels) in rows.iter_mut().zip(pixels.chunks_exact(PATCH)).take(tile.rows + 2) {
                row.write(match tile.cols {
                    4 => reading.transform_row::<S, A, PLAIN, 4>(s, pixels, c),
                    3 => reading.transform_row::<S, A, PLAIN, 3>(s, pixels, c),
                    2 => reading.transform_row::<S, A, PLAIN, 2>(s, pixels, c),
                    _ => reading.transform_row::<S, A, PLAIN, 1>(s, pixels, c),
                });
            }
            let target = target.wrapping_add(c - self.channels.start);
            for v in (0..PATCH).filter(|&v| uses(tile.cols, v)) {
                // SAFETY: as many rows of the patch as the tile has, and two, were written.
                unsafe {
                    match tile.rows {
                        4 => self.transform_column::<S, 4>(s, &rows, v, target),
                        3 => self.transform_column::<S, 3>(s, &rows, v, target),
                        2 => self.transform_column::<S, 2>(s, &rows, v, target),
                        _ => self.transform_column::<S, 1>(s, &rows, v, target),
                    }
                }
            }
        }
    }

    /// `B^T d` of column `v` of a tile with `M` rows, stored at the points that it uses.
    ///
    /// # Safety
    /// The first `M + 2` rows must have been written.
    #[inline(always)]
    unsafe fn transform_column<S: Simd, const M: usize>(
        &self,
        s: S,
        rows: &[MaybeUninit<[S::V; PATCH]>; PATCH],
        v: usize,
        target: *mut f32,
    ) {
        let mut d = [s.splat(0.0); PATCH];
        for (d, row) in d.iter_mut().zip(rows).take(M + 2) {
            // SAFETY: by the caller's word.
            *d = unsafe { row.assume_init_ref()[v] };
        }
        let column = input_transform(s, M, d);
        let target = target.wrapping_add(opaque(v * self.plane));
        for (u, value) in column.into_iter().enumerate() {
            if uses(M, u) {
                // SAFETY: the caller vouches that there is room for all channels of every point of every tile.
                unsafe { s.store(target.add(u * PATCH * self.plane), value) };
            }
        }
    }
}

/// A pixel of a patch.
#[derive(Clone, Copy)]
struct Pixel {
    /// Its channels, or zeros.
    values: *const f32,
    /// One inside the picture and zero outside.
    mask: f32,
}

impl<V: Copy> Reading<V> {
    /// `d B` of one row of a tile with `M` columns, for the channels from `c` on.
    #[inline(always)]
    fn transform_row<S: Simd<V = V>, A: Activation, const PLAIN: bool, const M: usize>(
        &self,
        s: S,
        pixels: &[Pixel],
        c: usize,
    ) -> [V; PATCH] {
        let pixels: &[Pixel; PATCH] = pixels.try_into().expect("a row of a patch");
        let mut d = [s.splat(0.0); PATCH];
        for (d, pixel) in d.iter_mut().zip(pixels).take(M + 2) {
            // SAFETY: a pixel has all channels of its part, as have the zeros that stand for the outside, and a whole
            // vector of them begins at `c`.
            let x = self.read::<S, A, PLAIN>(s, unsafe { s.load(pixel.values.add(c)) });
            *d = if PLAIN { x } else { s.mul(x, s.splat(pixel.mask)) };
        }
        input_transform(s, M, d)
    }
}
