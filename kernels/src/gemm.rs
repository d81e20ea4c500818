//! Products of small strided matrices, on one thread.
//!
//! ```text
//! C = alpha A B        or        C += alpha A B
//! ```
//!
//! A and B have any row and column strides, so a transpose costs nothing to write. B is packed into panels as wide as
//! the register tile, once for all products that it takes part in; A is read where it lies, unless neither its rows nor
//! its columns are contiguous. A panel's share of some depth stays in the first-level cache while all rows of A meet it:
//! the inner part of the scheme of Goto and van de Geijn 2008.

use std::ops::Range;

use crate::lanes::turn;
use crate::panels::{Panelling, lanes};
use crate::par::Shared;
use crate::simd::{Isa, Simd, WithSimd, dispatch_to};

/// The matrix with elements `data[i * row + j * col]`.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) row: usize,
    pub(crate) col: usize,
}

impl<'a> Matrix<'a> {
    /// Rows that begin every `row` elements.
    pub(crate) fn rows(data: &'a [f32], row: usize) -> Self {
        Self { data, row, col: 1 }
    }
    /// The transpose.
    pub(crate) fn t(self) -> Self {
        Self { row: self.col, col: self.row, ..self }
    }
    #[inline(always)]
    fn at(&self, i: usize, j: usize) -> f32 {
        self.data[i * self.row + j * self.col]
    }
}

/// Where a product goes: rows that begin at `start` and every `row` elements after it.
#[derive(Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) data: Shared<'a, f32>,
    pub(crate) start: usize,
    pub(crate) row: usize,
}

/// Steps of the inner product between two visits of a tile.
const BLOCK_DEPTH: usize = 128;

/// The most rows that a register tile has.
const MAX_TILE_ROWS: usize = 8;

/// The panels for `n` columns: of the widths that fill up the fewest columns the widest.
fn panelling(isa: Isa, n: usize) -> Panelling {
    let vectors = n.div_ceil(lanes(isa)).max(1);
    let widest = match isa {
        Isa::Avx512 => 4,
        Isa::Avx2 | Isa::Neon => 2,
        Isa::Portable => 1,
    };
    // A single vector is too narrow to be worth what it saves.
    let candidates = if vectors == 1 { 1..=1 } else { widest.min(2)..=widest };
    let width = candidates.rev().min_by_key(|width| vectors.next_multiple_of(*width)).unwrap_or(1);
    Panelling::mixed(isa, n, width)
}

/// Floats that [`pack`] writes for `k` rows and `n` columns.
pub(crate) fn packed_len(isa: Isa, k: usize, n: usize) -> usize {
    panelling(isa, n).room() * k
}

/// Packs `k` rows and `n` columns of B into panels, `[panel][k][width]`, the last one filled up with zeros.
pub(crate) fn pack(isa: Isa, b: Matrix<'_>, k: usize, n: usize, packed: &mut [f32]) {
    dispatch_to(isa, Pack { panelling: panelling(isa, n), b, k, n, packed });
}

struct Pack<'a> {
    panelling: Panelling,
    b: Matrix<'a>,
    k: usize,
    n: usize,
    packed: &'a mut [f32],
}

impl WithSimd for Pack<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { panelling, b, k, n, packed } = self;
        for panel in 0..if k == 0 { 0 } else { panelling.count() } {
            let (start, width) = (panelling.start(panel), panelling.width(panel));
            let count = width.min(n - start);
            let packed = &mut packed[start * k..][..width * k];
            if b.row == 1 {
                turn(s, (&b.data[start * b.col..], b.col), (count, k), (packed, width));
            }
            for (p, packed) in packed.chunks_exact_mut(width).enumerate() {
                let (filled, rest) = packed.split_at_mut(count);
                rest.fill(0.0);
                if b.col == 1 {
                    filled.copy_from_slice(&b.data[p * b.row + start..][..count]);
                } else if b.row != 1 {
                    filled.iter_mut().enumerate().for_each(|(j, packed)| *packed = b.at(p, start + j));
                }
            }
        }
    }
}

/// `C = alpha A B`, or `C += alpha A B` if `accumulate`, where A is `m` by `k` and B, packed, is `k` by `n`.
pub(crate) struct Product<'a> {
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) alpha: f32,
    pub(crate) a: Matrix<'a>,
    pub(crate) packed_b: &'a [f32],
    pub(crate) accumulate: bool,
    /// Scratch memory.
    pub(crate) packed_a: &'a mut Vec<f32>,
}

impl Product<'_> {
    /// Computes the product into `c`.
    ///
    /// # Safety
    /// No part of the target's rows, `n` elements each, may be in use elsewhere.
    pub(crate) unsafe fn into(self, isa: Isa, c: Target<'_>) {
        let panelling = panelling(isa, self.n);
        // SAFETY: the caller's word is passed on.
        dispatch_to(isa, unsafe { Run::new(self, panelling, c) });
    }
}

struct Run<'a, 'c> {
    product: Product<'a>,
    panelling: Panelling,
    c: Target<'c>,
}

impl<'a, 'c> Run<'a, 'c> {
    /// # Safety
    /// As [`Product::into`].
    unsafe fn new(product: Product<'a>, panelling: Panelling, c: Target<'c>) -> Self {
        Self { product, panelling, c }
    }

    /// The products of all rows with a panel.
    #[inline(always)]
    fn run<S: Simd, const MR: usize, const NV: usize>(&mut self, s: S, panel: usize) {
        let Product { m, n, k, alpha, a, packed_b, accumulate, ref mut packed_a } = self.product;
        let (j, width) = (self.panelling.start(panel), NV * S::LANES);
        let (columns, packed_b) = (width.min(n - j), &packed_b[j * k..][..width * k]);
        packed_a.resize(MAX_TILE_ROWS * BLOCK_DEPTH, 0.0);
        let pieces = k.div_ceil(BLOCK_DEPTH).max(1);
        for piece in 0..pieces {
            let depth = piece * k / pieces..(piece + 1) * k / pieces;
            let b = &packed_b[depth.start * width..][..depth.len() * width];
            for i in (0..m).step_by(MR) {
                let rows = MR.min(m - i);
                let sums = if a.col == 1 && !depth.is_empty() {
                    let rows: [&[f32]; MR] =
                        std::array::from_fn(|r| &a.data[(i + r.min(rows - 1)) * a.row + depth.start..][..depth.len()]);
                    row_sums::<S, MR, NV>(s, &rows, b)
                } else if a.row == 1 && rows == MR {
                    column_sums::<S, MR, NV>(s, &a.data[depth.start * a.col + i..], a.col, b)
                } else {
                    pack_rows::<MR>(a, i, rows, depth.clone(), &mut packed_a[..MR * depth.len()]);
                    column_sums::<S, MR, NV>(s, packed_a, MR, b)
                };
                for r in 0..MR {
                    if r < rows {
                        // SAFETY: by the word given to `new`, this row of the target is ours.
                        let c = unsafe { self.c.data.part(self.c.start + (i + r) * self.c.row + j, columns) };
                        store_row(s, &sums[r], alpha, accumulate || piece > 0, c);
                    }
                }
            }
        }
    }
}

/// Packs some columns of `rows` rows of A from row `i` on, `[depth][MR]`. Rows beyond the last are zero; their part of the
/// tile is not stored.
#[inline(always)]
fn pack_rows<const MR: usize>(a: Matrix<'_>, i: usize, rows: usize, depth: Range<usize>, packed: &mut [f32]) {
    for (p, step) in depth.zip(packed.as_chunks_mut::<MR>().0) {
        for (r, x) in step.iter_mut().enumerate() {
            *x = if r < rows { a.at(i + r, p) } else { 0.0 };
        }
    }
}

/// The products of `MR` rows with one panel.
#[inline(always)]
fn row_sums<S: Simd, const MR: usize, const NV: usize>(s: S, a: &[&[f32]; MR], b: &[f32]) -> [[S::V; NV]; MR] {
    let (mut sums, depth) = ([[s.splat(0.0); NV]; MR], b.len() / (NV * S::LANES));
    assert!(a.iter().all(|row| row.len() >= depth));
    let a = a.map(<[f32]>::as_ptr);
    // SAFETY: the panel has NV * LANES floats for each step, and each row one.
    unsafe { s.multiply::<MR, NV, false>(&a, 1, b.as_ptr(), depth, b.as_ptr(), &mut sums) };
    sums
}

/// The products of `MR` rows, neighbours in each column of `a`, with one panel; columns begin every `step` floats.
#[inline(always)]
fn column_sums<S: Simd, const MR: usize, const NV: usize>(s: S, a: &[f32], step: usize, b: &[f32]) -> [[S::V; NV]; MR] {
    let (mut sums, depth) = ([[s.splat(0.0); NV]; MR], b.len() / (NV * S::LANES));
    assert!(depth == 0 || a.len() >= (depth - 1) * step + MR);
    let a: [*const f32; MR] = std::array::from_fn(|r| a.as_ptr().wrapping_add(r));
    // SAFETY: the panel has NV * LANES floats for each step, and each column MR.
    unsafe { s.multiply::<MR, NV, false>(&a, step, b.as_ptr(), depth, b.as_ptr(), &mut sums) };
    sums
}

#[inline(always)]
fn store_row<S: Simd, const NV: usize>(s: S, sums: &[S::V; NV], alpha: f32, accumulate: bool, c: &mut [f32]) {
    let alpha = s.splat(alpha);
    for v in 0..NV {
        let at = v * S::LANES;
        if at + S::LANES <= c.len() {
            // SAFETY: the slice has LANES elements from `at` on.
            unsafe {
                let p = c.as_mut_ptr().add(at);
                let old = if accumulate { s.load(p) } else { s.splat(0.0) };
                s.store(p, s.fma(alpha, sums[v], old));
            }
        } else if at < c.len() {
            let mut lanes = [0f32; crate::lanes::MAX_LANES];
            crate::lanes::put::<S, true>(s, &mut lanes, 0, sums[v]);
            let old = if accumulate { crate::lanes::get::<S, false>(s, c, at) } else { s.splat(0.0) };
            crate::lanes::put::<S, false>(s, c, at, s.fma(alpha, sums[v], old));
        }
    }
}

impl WithSimd for Run<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, s: S) {
        for panel in 0..self.panelling.count() {
            let vectors = self.panelling.vectors(panel);
            match S::LANES {
                16 => match vectors {
                    4 => self.run::<S, 6, 4>(s, panel),
                    3 => self.run::<S, 8, 3>(s, panel),
                    2 => self.run::<S, 8, 2>(s, panel),
                    _ => self.run::<S, 8, 1>(s, panel),
                },
                8 => match vectors {
                    3 => self.run::<S, 4, 3>(s, panel),
                    2 => self.run::<S, 6, 2>(s, panel),
                    _ => self.run::<S, 8, 1>(s, panel),
                },
                _ if vectors == 2 => self.run::<S, 8, 2>(s, panel),
                _ => self.run::<S, 8, 1>(s, panel),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(len: usize, seed: u32) -> Vec<f32> {
        (0..len as u32).map(|i| ((i * 7919 + seed * 104_729) % 1013) as f32 / 506.0 - 1.0).collect()
    }

    #[test]
    fn products_agree_with_the_definition() {
        let sizes = [
            (0, 3, 2),
            (1, 1, 1),
            (3, 0, 2),
            (2, 3, 0),
            (5, 7, 3),
            (13, 33, 17),
            (12, 32, 16),
            (48, 49, 31),
            (23, 40, 300),
            (7, 77, 130),
            (13, 64, 257),
        ];
        for &isa in Isa::available() {
            for (m, n, k) in sizes {
                for (a_t, b_t, accumulate) in [(false, false, false), (true, false, true), (false, true, true)] {
                    check(isa, m, n, k, a_t, b_t, accumulate);
                }
            }
        }
    }

    fn check(isa: Isa, m: usize, n: usize, k: usize, a_t: bool, b_t: bool, accumulate: bool) {
        // Rows lie two elements further apart than they are long.
        let (a, b) = (numbers((m + 2) * (k + 2), 1), numbers((k + 2) * (n + 2), 2));
        let a = if a_t { Matrix::rows(&a, m + 2).t() } else { Matrix::rows(&a, k + 2) };
        let b = if b_t { Matrix::rows(&b, k + 2).t() } else { Matrix::rows(&b, n + 2) };
        let mut packed = vec![f32::NAN; packed_len(isa, k, n)];
        pack(isa, b, k, n, &mut packed);
        let before = numbers(1 + m * (n + 3), 3);
        let mut c = before.clone();
        let product =
            Product { m, n, k, alpha: 0.5, a, packed_b: &packed, accumulate, packed_a: &mut vec![f32::NAN; 5] };
        let target = Target { data: Shared::new(&mut c), start: 1, row: n + 3 };
        // SAFETY: nothing else uses c.
        unsafe { product.into(isa, target) };
        for (at, (c, before)) in c.iter().zip(&before).enumerate() {
            let place = at.checked_sub(1).map(|at| (at / (n + 3), at % (n + 3))).filter(|(_, j)| *j < n);
            let Some((i, j)) = place else {
                assert_eq!(c, before, "{isa:?} {m}x{n}x{k}: element {at} is not part of the product");
                continue;
            };
            let sum: f64 = (0..k).map(|p| f64::from(a.at(i, p)) * f64::from(b.at(p, j))).sum();
            let exact = 0.5 * sum + if accumulate { f64::from(*before) } else { 0.0 };
            assert!(
                (f64::from(*c) - exact).abs() < 2e-6 * (k as f64 / 32.0).max(1.0),
                "{isa:?} {m}x{n}x{k} at {i},{j}: {c}, exactly {exact}"
            );
        }
    }
}
