//! The panels that the right operand of a matrix product is packed into: each as wide as a register tile.
//!
//! A tile of `MR` rows and `NV` vectors reads `NV` vectors and `MR` numbers for `MR NV` multiplications, and its sums have to
//! fit into the registers. Of the tiles that fill the 16 registers of AVX2, 4 x 3 reads 7 operands for 12 multiplications and
//! 6 x 2 reads 8: on Zen 3 the first is a tenth faster. Columns that do not fill panels of three vectors get one or two
//! panels of two, so that none of their vectors is wasted.

use crate::simd::Isa;

/// Columns in panels: some of one width, then some of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Panelling {
    lanes: usize,
    /// Panels and the vectors of each.
    first: (usize, usize),
    rest: (usize, usize),
}

impl Panelling {
    /// For `columns` columns, in panels of three and two vectors where the instruction set has 16 registers, and of
    /// `vectors` elsewhere.
    pub(crate) fn mixed(isa: Isa, columns: usize, vectors: usize) -> Self {
        let lanes = lanes(isa);
        let all = columns.div_ceil(lanes);
        if isa != Isa::Avx2 || all < 3 {
            return Self::even(isa, columns, vectors);
        }
        let pairs = [0, 2, 1][all % 3];
        Self { lanes, first: ((all - 2 * pairs) / 3, 3), rest: (pairs, 2) }
    }

    /// For `columns` columns, all panels of `vectors` vectors.
    pub(crate) fn even(isa: Isa, columns: usize, vectors: usize) -> Self {
        let lanes = lanes(isa);
        Self { lanes, first: (columns.div_ceil(vectors * lanes), vectors), rest: (0, vectors) }
    }

    /// For `columns` columns, each a panel of its own: there are no vectors of columns.
    pub(crate) fn single(columns: usize) -> Self {
        Self { lanes: 1, first: (columns, 0), rest: (0, 0) }
    }

    /// Number of panels.
    #[inline(always)]
    pub(crate) fn count(&self) -> usize {
        self.first.0 + self.rest.0
    }

    /// Vectors in a row of a panel; zero where each column is a panel.
    #[inline(always)]
    pub(crate) fn vectors(&self, panel: usize) -> usize {
        if panel < self.first.0 { self.first.1 } else { self.rest.1 }
    }

    /// Floats in a row of a panel.
    #[inline(always)]
    pub(crate) fn width(&self, panel: usize) -> usize {
        (self.vectors(panel) * self.lanes).max(1)
    }

    /// The first column of a panel; of the one after the last, all columns that the panels have room for.
    #[inline(always)]
    pub(crate) fn start(&self, panel: usize) -> usize {
        let first = panel.min(self.first.0);
        first * self.width(0) + (panel - first) * (self.rest.1 * self.lanes).max(1)
    }

    /// All columns that the panels have room for.
    pub(crate) fn room(&self) -> usize {
        self.start(self.count())
    }
}

/// Floats in a vector.
pub(crate) fn lanes(isa: Isa) -> usize {
    match isa {
        Isa::Avx512 => 16,
        Isa::Avx2 => 8,
        Isa::Neon | Isa::Portable => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panels_lie_side_by_side_and_leave_no_vector_over() {
        for isa in [Isa::Avx2, Isa::Avx512, Isa::Neon, Isa::Portable] {
            for columns in (0..200).chain([320, 640, 1280, 10240]) {
                for (panels, wasted) in [
                    (Panelling::mixed(isa, columns, 1), 1),
                    (Panelling::mixed(isa, columns, 2), 2),
                    (Panelling::even(isa, columns, 4), 4),
                ] {
                    let mut at = 0;
                    for panel in 0..panels.count() {
                        assert_eq!(panels.start(panel), at, "{isa:?}, {columns} columns: {panels:?}");
                        at += panels.width(panel);
                    }
                    assert_eq!(panels.room(), at);
                    assert!(at >= columns && at < columns + wasted * lanes(isa), "{isa:?}, {columns}: {panels:?}");
                    if isa == Isa::Avx2 && columns > 16 && wasted < 4 {
                        assert_eq!(at, columns.next_multiple_of(8), "{columns} columns: {panels:?}");
                    }
                }
            }
        }
        let single = Panelling::single(3);
        assert_eq!([single.count(), single.width(2), single.start(2), single.vectors(0)], [3, 1, 2, 0]);
    }
}
