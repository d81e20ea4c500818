//! The gradient of the filter and of the bias.

use super::part::Part;
use super::winograd::WinogradPanels;
use super::{Algorithm, ConvDims, direct, winograd};
use crate::simd::Isa;

/// The gradient of the filter, added to `dw` `[c_out, c_in, kernel, kernel]`, and of the bias, added to `db` `[c_out]`.
///
/// # Panics
/// If a slice does not have the size that `d` says.
pub fn backward_weight(d: &ConvDims, x: &[f32], dy: &[f32], dw: &mut [f32], db: Option<&mut [f32]>) {
    let isa = Isa::best();
    let transformed = WinogradPanels::fits(isa, d.kernel, d.c_in, d.c_out);
    backward_weight_by(d.algorithm(transformed), isa, d, x, dy, dw, db);
}

/// [`backward_weight`] by a given algorithm, on a given instruction set.
pub(super) fn backward_weight_by(
    algorithm: Algorithm,
    isa: Isa,
    d: &ConvDims,
    x: &[f32],
    dy: &[f32],
    dw: &mut [f32],
    db: Option<&mut [f32]>,
) {
    d.check("conv::backward_weight", x.len(), dy.len());
    assert_eq!(dw.len(), d.weight_len(), "conv::backward_weight: floats of the filter's gradient for {d:?}");
    if let Some(db) = &db {
        assert_eq!(db.len(), d.c_out, "conv::backward_weight: floats of the bias' gradient for {d:?}");
    }
    match algorithm {
        Algorithm::Winograd => winograd::weight::backward_weight(isa, d, &[Part::plain(x, d.c_in)], dy, dw, db),
        Algorithm::Gather => direct::backward_weight(isa, d, &[Part::plain(x, d.c_in)], dy, dw, db),
    }
}
