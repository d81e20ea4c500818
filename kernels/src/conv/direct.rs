//! Convolutions without a transform: the choice between few channels, few outputs, and the general product.

use super::gather::{Gather, Start, Tap};
use super::joined::with_joined;
use super::pack::{Panels, is_narrow};
use super::part::{Part, Target};
use super::window::Window;
use super::{ConvDims, gather_weight, narrow, source, split, thin};
use crate::simd::Isa;

/// The forward pass.
pub(super) fn forward(d: &ConvDims, parts: &[Part<'_>], panels: &Panels, bias: Option<&[f32]>, target: Target<'_>) {
    let (columns, row, y) = (target.columns(), target.channels, target.values);
    assert_eq!(y.len(), d.out_len(), "conv::forward: floats of the output for {d:?}");
    assert_eq!(columns.len(), panels.outputs, "conv::forward: output channels for {d:?}");
    let whole = columns.len() == row;
    assert!(bias.is_none() || !target.accumulate, "conv::forward: a bias for a result that is added to a tensor");
    let start = if target.accumulate { Start::Accumulate } else { Start::Bias(bias) };
    let window = &Window::forward(d);
    let (few_outputs, few_channels) = (is_narrow(d.c_out), thin::fits(d.taps(), d.c_in, d.c_out));
    let gather = |parts: &[Part<'_>], y: &mut [f32]| {
        let (out_h, out_w) = (d.out_h(), d.out_w());
        Gather { parts, channels: d.c_in, panels, start, row, first: columns.start }.rows(
            y,
            d.out_pixels(),
            &d.each_tap(),
            |row| split(row, out_h, out_w),
            |(n, i, j)| (n * out_h + i) * out_w + j,
            |(n, i, j), (u, v)| source(n, d.stride * i + u, d.stride * j + v, d.pad_before, d.h, d.w),
        );
    };
    let readable = !parts.is_empty() && parts.iter().all(|part| part.is_plain() && part.channels > 0);
    if readable && !few_outputs && !few_channels {
        return gather(parts, y);
    }
    with_one_part(d, parts, |part| {
        if whole && few_outputs {
            return narrow::convolve(window, part, panels, start, y);
        }
        if whole && few_channels {
            return thin::convolve(window, part, panels, start, y);
        }
        gather(std::slice::from_ref(part), y);
    });
}

/// The gradient of the input.
pub(super) fn backward_input(d: &ConvDims, panels: &Panels, dy: &[f32], target: Target<'_>) {
    let dx = target.values;
    d.check("conv::backward_input", dx.len(), dy.len());
    // Pixels between the steps of a strided 1x1 filter receive nothing and are not visited.
    let visits_all = d.kernel >= d.stride;
    if !target.accumulate && !visits_all {
        dx.fill(0.0);
    }
    let start = if target.accumulate || !visits_all { Start::Accumulate } else { Start::Bias(None) };
    if let Some(window) = &Window::backward(d) {
        let part = &Part::plain(dy, d.c_out);
        if is_narrow(d.c_in) {
            return narrow::convolve(window, part, panels, start, dx);
        }
        if thin::fits(d.taps(), d.c_out, d.c_in) {
            return thin::convolve(window, part, panels, start, dx);
        }
    }
    let (out_h, out_w) = (d.out_h(), d.out_w());
    let parts = &[Part::plain(dy, d.c_out)];
    let gather = Gather { parts, channels: d.c_out, panels, start, row: d.c_in, first: 0 };
    // An input pixel meets only the taps of its own phase: with stride 2, each of the four classes is a convolution.
    for (row_phase, col_phase) in (0..d.stride).flat_map(|a| (0..d.stride).map(move |b| (a, b))) {
        let meets = |phase: usize, tap: usize| (phase + d.pad_before + 2 * d.stride - tap).is_multiple_of(d.stride);
        let taps: Vec<Tap> =
            d.each_tap().into_iter().filter(|&(u, v)| meets(row_phase, u) && meets(col_phase, v)).collect();
        let rows = d.h.saturating_sub(row_phase).div_ceil(d.stride);
        let cols = d.w.saturating_sub(col_phase).div_ceil(d.stride);
        if taps.is_empty() {
            continue;
        }
        gather.rows(
            dx,
            d.n * rows * cols,
            &taps,
            |row| {
                let (n, k, l) = split(row, rows, cols);
                (n, d.stride * k + row_phase, d.stride * l + col_phase)
            },
            |(n, k, l)| (n * d.h + k) * d.w + l,
            |(n, k, l), (u, v)| {
                let (i, j) = ((k + d.pad_before).checked_sub(u)?, (l + d.pad_before).checked_sub(v)?);
                source(n, i / d.stride, j / d.stride, 0, out_h, out_w)
            },
        );
    }
}

/// The gradient of the filter, added to `dw`, and of the bias, added to `db`.
pub(super) fn backward_weight(
    isa: Isa,
    d: &ConvDims,
    parts: &[Part<'_>],
    dy: &[f32],
    dw: &mut [f32],
    db: Option<&mut [f32]>,
) {
    with_one_part(d, parts, |part| {
        if thin::fits(d.taps(), d.c_in, d.c_out) {
            return thin::backward_weight(isa, d, part, dy, dw, db);
        }
        if let Some(db) = db {
            crate::channels::add_sums(1, d.out_pixels(), d.c_out, dy, db);
        }
        if is_narrow(d.c_out) {
            return narrow::backward_weight(isa, d, part, dy, dw);
        }
        gather_weight::backward_weight(isa, d, part.values, dy, dw);
    });
}

/// Runs `f` with the input as one part, and as a plain one unless few channels or outputs make it easy to map while
/// reading.
fn with_one_part(d: &ConvDims, parts: &[Part<'_>], f: impl FnOnce(&Part<'_>)) {
    if let [part] = parts
        && (part.is_plain() || is_narrow(d.c_out) || thin::fits(d.taps(), d.c_in, d.c_out))
    {
        return f(part);
    }
    with_joined(d, parts, |x| f(&Part::plain(x, d.c_in)));
}

#[cfg(test)]
mod tests;
