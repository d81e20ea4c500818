//! Products of small strided matrices, on one thread.
//!
//! ```text
//! C = alpha A B        or        C += alpha A B
//! ```
//!
//! A and B have any row and column strides, so a transpose costs nothing to write. B is packed into panels as wide as
//! the register tile, once for all products that it takes part in; the rows of A are packed tile by tile. This is the
//! inner part of the scheme of Goto and van de Geijn 2008, without the blocking for matrices that exceed the cache.

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

/// Rows of the register tile, and its columns in vectors.
const fn tile(lanes: usize) -> (usize, usize) {
    match lanes {
        16 => (12, 2),
        8 => (6, 2),
        _ => (8, 2),
    }
}

/// The most elements that a column of the register tile has.
const MAX_TILE_ROWS: usize = 12;

struct PanelWidth;

impl WithSimd for PanelWidth {
    type Output = usize;
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        tile(S::LANES).1 * S::LANES
    }
}

/// Floats that [`pack`] writes for `k` rows and `n` columns.
pub(crate) fn packed_len(isa: Isa, k: usize, n: usize) -> usize {
    let width = dispatch_to(isa, PanelWidth);
    n.div_ceil(width) * width * k
}

/// Packs `k` rows and `n` columns of B into panels, `[panel][k][width]`, the last one filled up with zeros.
pub(crate) fn pack(isa: Isa, b: Matrix<'_>, k: usize, n: usize, packed: &mut [f32]) {
    let width = dispatch_to(isa, PanelWidth);
    for (panel, packed) in packed.chunks_exact_mut((width * k).max(1)).enumerate() {
        let columns = panel * width..n.min((panel + 1) * width);
        if b.col == 1 {
            for (p, packed) in packed.chunks_exact_mut(width).enumerate() {
                let (filled, rest) = packed.split_at_mut(columns.len());
                filled.copy_from_slice(&b.data[p * b.row + columns.start..][..columns.len()]);
                rest.fill(0.0);
            }
        } else {
            packed.fill(0.0);
            for (j, column) in columns.enumerate() {
                for p in 0..k {
                    packed[p * width + j] = b.at(p, column);
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
        // SAFETY: the caller's word is passed on.
        dispatch_to(isa, unsafe { Run::new(self, c) });
    }
}

struct Run<'a, 'c> {
    product: Product<'a>,
    c: Target<'c>,
}

impl<'a, 'c> Run<'a, 'c> {
    /// # Safety
    /// As [`Product::into`].
    unsafe fn new(product: Product<'a>, c: Target<'c>) -> Self {
        Self { product, c }
    }

    #[inline(always)]
    fn run<S: Simd, const MR: usize, const NV: usize>(self, s: S) {
        let Product { m, n, k, alpha, a, packed_b, accumulate, packed_a } = self.product;
        let width = NV * S::LANES;
        assert!(packed_b.len() >= n.div_ceil(width) * width * k, "gemm: the packed matrix is too short");
        packed_a.resize(MAX_TILE_ROWS * k, 0.0);
        let packed_a = &mut packed_a[..MR * k];
        for i in (0..m).step_by(MR) {
            let rows = MR.min(m - i);
            pack_rows::<MR>(a, i, rows, k, packed_a);
            for (panel, j) in (0..n).step_by(width).enumerate() {
                let sums = tile_sums::<S, MR, NV>(s, packed_a, &packed_b[panel * width * k..][..width * k]);
                let columns = width.min(n - j);
                for (r, sums) in sums.iter().enumerate().take(rows) {
                    // SAFETY: by the word given to `new`, this row of the target is ours.
                    let c = unsafe { self.c.data.part(self.c.start + (i + r) * self.c.row + j, columns) };
                    store_row(s, sums, alpha, accumulate, c);
                }
            }
        }
    }
}

/// Packs `rows` rows of A from row `i` on, `[k][MR]`. Rows beyond the last are zero; their part of the tile is not stored.
#[inline(always)]
fn pack_rows<const MR: usize>(a: Matrix<'_>, i: usize, rows: usize, k: usize, packed: &mut [f32]) {
    let steps = packed.as_chunks_mut::<MR>().0;
    if a.row == 1 {
        for (p, step) in steps.iter_mut().enumerate() {
            step.fill(0.0);
            step[..rows].copy_from_slice(&a.data[p * a.col + i..][..rows]);
        }
        return;
    }
    for r in 0..MR {
        if r >= rows || k == 0 {
            steps.iter_mut().for_each(|step| step[r] = 0.0);
            continue;
        }
        if a.col == 1 {
            let row = &a.data[(i + r) * a.row..][..k];
            for (step, x) in steps.iter_mut().zip(row) {
                step[r] = *x;
            }
        } else {
            for (p, step) in steps.iter_mut().enumerate() {
                step[r] = a.at(i + r, p);
            }
        }
    }
}

/// The products of `MR` packed rows with one panel.
#[inline(always)]
fn tile_sums<S: Simd, const MR: usize, const NV: usize>(s: S, a: &[f32], b: &[f32]) -> [[S::V; NV]; MR] {
    let mut sums = [[s.splat(0.0); NV]; MR];
    for (a, b) in a.chunks_exact(MR).zip(b.chunks_exact(NV * S::LANES)) {
        let mut columns = [s.splat(0.0); NV];
        for v in 0..NV {
            // SAFETY: the chunk has NV * LANES elements.
            columns[v] = unsafe { s.load(b.as_ptr().add(v * S::LANES)) };
        }
        for r in 0..MR {
            let a = s.splat(a[r]);
            for v in 0..NV {
                sums[r][v] = s.fma(a, columns[v], sums[r][v]);
            }
        }
    }
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
    fn with_simd<S: Simd>(self, s: S) {
        match S::LANES {
            16 => self.run::<S, { tile(16).0 }, { tile(16).1 }>(s),
            8 => self.run::<S, { tile(8).0 }, { tile(8).1 }>(s),
            _ => self.run::<S, { tile(4).0 }, { tile(4).1 }>(s),
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
        let sizes = [(0, 3, 2), (1, 1, 1), (3, 0, 2), (2, 3, 0), (5, 7, 3), (13, 33, 17), (12, 32, 16), (48, 49, 31)];
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
            assert!((f64::from(*c) - exact).abs() < 2e-6, "{isa:?} {m}x{n}x{k} at {i},{j}: {c}, exactly {exact}");
        }
    }
}
