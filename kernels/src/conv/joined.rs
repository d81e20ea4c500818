//! Convolutions whose input or output is joined from several tensors, and whose input is normalised while being read.
//!
//! Winograd's algorithm reads and writes the parts where they lie. For any other algorithm, and for parts that do not come
//! in whole vectors, the input is first joined in memory that a thread keeps, and a result in several parts taken apart.

use std::cell::Cell;

use super::part::Bias;
use super::winograd::{self, WinogradPanels};
use super::{Algorithm, ConvDims, Filter, Part, Target, direct, stream};
use crate::channels;
use crate::memory::{Floats, Kept, with_kept};
use crate::panels::lanes;
use crate::par::rows_mut;
use crate::simd::{Isa, Simd, WithSimd, dispatch};

thread_local! {
    /// Joined inputs.
    static JOINED: Cell<Floats> = const { Cell::new(Floats::new()) };
    /// Results to be taken apart.
    static RESULT: Cell<Floats> = const { Cell::new(Floats::new()) };
}

/// The forward pass on the joined channels of `parts`, into one tensor. Without a bias, zeros are added.
///
/// # Panics
/// If a slice or the filter does not have the size that `d` says.
pub fn forward_joined(d: &ConvDims, parts: &[Part<'_>], filter: &Filter, bias: Option<&[f32]>, target: Target<'_>) {
    forward_joined_by(d.algorithm(filter.is_transformed()), d, parts, filter, bias, target);
}

pub(super) fn forward_joined_by(
    algorithm: Algorithm,
    d: &ConvDims,
    parts: &[Part<'_>],
    filter: &Filter,
    bias: Option<&[f32]>,
    target: Target<'_>,
) {
    check_parts("conv::forward", d, parts);
    filter.check("conv::forward", d);
    if let Some(bias) = bias {
        assert_eq!(bias.len(), d.c_out, "conv::forward: floats of the bias for {d:?}");
        assert!(target.shift.is_none(), "conv::forward: a bias beside numbers for each sample");
    }
    if let Some(shift) = target.shift {
        assert_eq!(shift.len(), d.n * d.c_out, "conv::forward: floats that are added to each sample for {d:?}");
    }
    if algorithm == Algorithm::Gather && (target.shift.is_some() || target.base.is_some()) {
        // Only tiles that belong to one sample add these while they are stored.
        assert!(target.only.is_none(), "conv::forward: a sum of some channels");
        let Target { values, channels, base, shift, accumulate, .. } = target;
        let plain = Target { accumulate: accumulate && base.is_none(), ..Target::overwrite(values, channels) };
        forward_joined_by(algorithm, d, parts, filter, bias, plain);
        if let Some(shift) = shift {
            channels::add_bias(d.n, d.out_h() * d.out_w(), d.c_out, shift, values);
        }
        if let Some(base) = base {
            channels::add(base, values);
        }
        return;
    }
    let bias = target.shift.map(|shift| Bias::of_each(shift, d.c_out)).or(bias.map(Bias::of_all));
    if let Some(stored) = filter.stored() {
        return stream::forward(algorithm, filter.isa(), d, parts, stored.view(), bias, target);
    }
    match filter.forward_winograd() {
        Some(panels) if algorithm == Algorithm::Winograd => {
            if whole(filter.isa(), parts.iter().map(|p| p.channels)) {
                winograd::convolve(d, parts, panels, bias, &mut [target]);
            } else {
                with_joined(d, parts, |x| {
                    winograd::convolve(d, &[Part::plain(x, d.c_in)], panels, bias, &mut [target])
                });
            }
        }
        _ => direct::forward(d, parts, filter.forward(), bias.map(|bias| bias.shared()), target),
    }
}

/// The gradient of the input, whose joined channels go to `targets`.
///
/// # Panics
/// If a slice or the filter does not have the size that `d` says, or the filter was packed without its backward half.
pub fn backward_input_joined(d: &ConvDims, filter: &Filter, dy: &[f32], targets: &mut [Target<'_>]) {
    backward_input_joined_by(d.algorithm(filter.backward_winograd().is_some()), d, filter, dy, targets);
}

pub(super) fn backward_input_joined_by(
    algorithm: Algorithm,
    d: &ConvDims,
    filter: &Filter,
    dy: &[f32],
    targets: &mut [Target<'_>],
) {
    let pixels = d.n * d.h * d.w;
    assert_eq!(targets.iter().map(|t| t.channels).sum::<usize>(), d.c_in, "conv::backward_input: channels for {d:?}");
    for t in &*targets {
        assert_eq!(t.values.len(), pixels * t.channels, "conv::backward_input: floats of a part for {d:?}");
    }
    assert_eq!(dy.len(), d.out_len(), "conv::backward_input: floats of the output's gradient for {d:?}");
    filter.check("conv::backward_input", d);
    let dy_part = [Part::plain(dy, d.c_out)];
    let panels = filter.backward_winograd().filter(|_| algorithm == Algorithm::Winograd);
    let one = |target: Target<'_>| match panels {
        Some(panels) => winograd::convolve(d, &dy_part, panels, None, &mut [target]),
        None => direct::backward_input(d, filter.backward(), dy, target),
    };
    match (panels, targets) {
        (Some(panels), targets) if whole(filter.isa(), targets.iter().map(|t| t.channels)) => {
            winograd::convolve(d, &dy_part, panels, None, targets);
        }
        (_, [target]) => one(target.reborrow()),
        (_, targets) => with_kept(&RESULT as &Kept<f32>, d.in_len(), |dx| {
            one(Target::overwrite(dx, d.c_in));
            let mut first = 0;
            for t in targets {
                take_apart(dx, d.c_in, first, t);
                first += t.channels;
            }
        }),
    }
}

/// The gradient of the filter, added to `dw` `[c_out, c_in, kernel, kernel]`, and of the bias, added to `db` `[c_out]`,
/// for the joined channels of `parts`.
///
/// # Panics
/// If a slice does not have the size that `d` says.
pub fn backward_weight_joined(d: &ConvDims, parts: &[Part<'_>], dy: &[f32], dw: &mut [f32], db: Option<&mut [f32]>) {
    let isa = Isa::best();
    let algorithm = d.algorithm(WinogradPanels::fits(isa, d.kernel, d.c_in, d.c_out));
    backward_weight_joined_by(algorithm, isa, d, parts, dy, dw, db);
}

pub(super) fn backward_weight_joined_by(
    algorithm: Algorithm,
    isa: Isa,
    d: &ConvDims,
    parts: &[Part<'_>],
    dy: &[f32],
    dw: &mut [f32],
    db: Option<&mut [f32]>,
) {
    check_parts("conv::backward_weight", d, parts);
    assert_eq!(dy.len(), d.out_len(), "conv::backward_weight: floats of the output's gradient for {d:?}");
    assert_eq!(dw.len(), d.weight_len(), "conv::backward_weight: floats of the filter's gradient for {d:?}");
    if let Some(db) = &db {
        assert_eq!(db.len(), d.c_out, "conv::backward_weight: floats of the bias' gradient for {d:?}");
    }
    match algorithm {
        Algorithm::Winograd if whole(isa, parts.iter().map(|p| p.channels)) => {
            winograd::weight::backward_weight(isa, d, parts, dy, dw, db);
        }
        Algorithm::Winograd => with_joined(d, parts, |x| {
            winograd::weight::backward_weight(isa, d, &[Part::plain(x, d.c_in)], dy, dw, db);
        }),
        Algorithm::Gather => direct::backward_weight(isa, d, parts, dy, dw, db),
    }
}

#[track_caller]
fn check_parts(operation: &str, d: &ConvDims, parts: &[Part<'_>]) {
    assert_eq!(parts.iter().map(|p| p.channels).sum::<usize>(), d.c_in, "{operation}: input channels for {d:?}");
    parts.iter().for_each(|part| part.check(operation, d.n, d.n * d.h * d.w));
}

/// Whether every part has whole vectors of channels.
pub(super) fn whole(isa: Isa, mut channels: impl Iterator<Item = usize>) -> bool {
    channels.all(|c| c.is_multiple_of(lanes(isa)))
}

/// Calls `f` with the tensor that `parts` stand for.
pub(super) fn with_joined<R>(d: &ConvDims, parts: &[Part<'_>], f: impl FnOnce(&[f32]) -> R) -> R {
    match parts {
        [part] if part.is_plain() => f(part.values),
        _ => with_kept(&JOINED as &Kept<f32>, d.in_len(), |x| {
            join(d.h * d.w, parts, d.c_in, x);
            f(x)
        }),
    }
}

/// Writes the tensor `[n, hw, c]` that `parts` stand for.
fn join(hw: usize, parts: &[Part<'_>], c: usize, x: &mut [f32]) {
    rows_mut(x, c, |first, x| {
        let mut offset = 0;
        for part in parts {
            dispatch(Join { hw, part, first, c, offset, x: &mut *x });
            offset += part.channels;
        }
    });
}

/// Some rows of one part.
struct Join<'a> {
    hw: usize,
    part: &'a Part<'a>,
    first: usize,
    c: usize,
    offset: usize,
    x: &'a mut [f32],
}

impl WithSimd for Join<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let channels = self.part.channels;
        for (i, y) in self.x.chunks_exact_mut(self.c).enumerate() {
            let row = self.first + i;
            let x = &self.part.values[row * channels..][..channels];
            self.part.read(s, row / self.hw, x, &mut y[self.offset..self.offset + channels]);
        }
    }
}

/// Writes or adds the channels of `x` `[rows, c]` from `first` on to their target.
fn take_apart(x: &[f32], c: usize, first: usize, target: &mut Target<'_>) {
    let (channels, accumulate) = (target.channels, target.accumulate);
    rows_mut(target.values, channels, |row, y| {
        for (i, y) in y.chunks_exact_mut(channels).enumerate() {
            let x = &x[(row + i) * c + first..][..channels];
            if accumulate {
                y.iter_mut().zip(x).for_each(|(y, x)| *y += x);
            } else {
                y.copy_from_slice(x);
            }
        }
    });
}
