//! Filters that are kept as a file holds them: packed in groups of outputs for each pass, and forgotten.
//!
//! A group's packed weights stay in the third-level cache while the whole input meets them, so that memory is read once,
//! in the precision of the file. Weights are met by many pixels, and packing them costs a few operations each.

use std::cell::Cell;
use std::ops::Range;

use super::joined::{whole, with_joined};
use super::pack::{Panels, panel_width};
use super::part::Bias;
use super::winograd::{self, PLAIN, Phase, TWICE, WinogradPanels};
use super::{Algorithm, ConvDims, Part, Target, direct, turned};
use crate::memory::Floats;
use crate::par::shares;
use crate::simd::Isa;
use crate::weight::Weight;

/// Floats of the packed weights of a group at most (8 MiB), unless those of a single panel are more; twice as many where they are
/// transformed, of which there are four times as many.
pub(super) const GROUP_FLOATS: usize = 1 << 21;

/// A number of outputs that fills panels of any instruction set.
const WHOLE_PANELS: usize = 64;

thread_local! {
    /// Packed weights.
    static PACKED: Cell<Floats> = const { Cell::new(Floats::new()) };
}

/// The forward pass with `weight` `[c_out][c_in][tap]`.
pub(super) fn forward(
    algorithm: Algorithm,
    isa: Isa,
    d: &ConvDims,
    parts: &[Part<'_>],
    weight: Weight<'_>,
    bias: Option<Bias<'_>>,
    mut target: Target<'_>,
) {
    let shared_of = |outputs: &Range<usize>| bias.map(|bias| &bias.shared()[outputs.clone()]);
    match algorithm {
        Algorithm::Winograd => {
            let mut run = |parts: &[Part<'_>]| match winograd::are_few(d) {
                true => winograd::convolve_few(isa, d, parts, weight, bias, &mut target),
                false => transformed(isa, PLAIN, d, parts, weight, bias, &mut target),
            };
            if whole(isa, parts.iter().map(|p| p.channels)) {
                run(parts);
            } else {
                with_joined(d, parts, |x| run(&[Part::plain(x, d.c_in)]));
            }
        }
        Algorithm::Gather if turned::fits(d) => {
            with_joined(d, parts, |x| turned::forward(isa, d, x, weight, bias.map(|bias| bias.shared()), target));
        }
        Algorithm::Gather => {
            let most = GROUP_FLOATS / (d.taps() * d.c_in).max(1);
            let mut run = |parts: &[Part<'_>], groups: &[Range<usize>]| {
                for outputs in groups {
                    let mut panels = Panels::within(PACKED.take(), isa, d.taps(), d.c_in, outputs.len());
                    panels.fill_stored(weight, outputs.start);
                    direct::forward(d, parts, &panels, shared_of(outputs), target.only(outputs.clone()));
                    PACKED.set(panels.values);
                }
            };
            match &groups(d.c_out, most, panel_width(isa, d.c_out))[..] {
                [all] => run(parts, std::slice::from_ref(all)),
                several => with_joined(d, parts, |x| run(&[Part::plain(x, d.c_in)], several)),
            }
        }
    }
}

/// The forward pass on pixels `x` each of which stands for four; `d` says what there were without repetition.
pub(super) fn forward_upsampled(
    isa: Isa,
    d: &ConvDims,
    x: &[f32],
    weight: Weight<'_>,
    bias: Option<Bias<'_>>,
    mut target: Target<'_>,
) {
    transformed(isa, TWICE, d, &[Part::plain(x, d.c_in)], weight, bias, &mut target);
}

/// The forward pass in tiles, with the filters of some outputs after the other.
fn transformed(
    isa: Isa,
    phases: &'static [Phase],
    d: &ConvDims,
    parts: &[Part<'_>],
    weight: Weight<'_>,
    bias: Option<Bias<'_>>,
    target: &mut Target<'_>,
) {
    let bias_of = |outputs: &Range<usize>| bias.map(|bias| bias.from(outputs.start));
    let most = 2 * GROUP_FLOATS * WHOLE_PANELS / WinogradPanels::floats(isa, phases, d.c_in, WHOLE_PANELS).max(1);
    let groups = groups(d.c_out, most, panel_width(isa, d.c_out));
    let with_filters = |outputs: &Range<usize>, meet: &mut dyn FnMut(&WinogradPanels)| {
        let mut panels = WinogradPanels::within(PACKED.take(), isa, phases, d.c_in, outputs.len());
        panels.fill_stored(weight, outputs.start);
        meet(&panels);
        PACKED.set(panels.into_memory());
    };
    // Passes of their own over each group, where there are some, would make its filters as often as there are passes.
    if winograd::fit(d, d.c_in, 1) {
        winograd::in_passes(isa, d, parts, |patches| {
            for outputs in &groups {
                with_filters(outputs, &mut |panels| {
                    patches.convolve(panels, bias_of(outputs), &mut [target.only(outputs.clone())]);
                });
            }
        });
    } else {
        for outputs in &groups {
            with_filters(outputs, &mut |panels| {
                let target = target.only(outputs.clone());
                winograd::convolve(d, parts, panels, bias_of(outputs), &mut [target]);
            });
        }
    }
}

/// `outputs` in groups of whole panels, as equal as can be, of `most` at most.
fn groups(outputs: usize, most: usize, width: usize) -> Vec<Range<usize>> {
    let group = |panels: Range<usize>| panels.start * width..outputs.min(panels.end * width);
    shares(0..outputs.div_ceil(width), (most / width).max(1)).map(group).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::conv::{Filter, forward_joined};
    use crate::testing::{assert_same_bits_for_any_pool, numbers};
    use crate::weight::{Int8, Stored};

    #[test]
    fn groups_cover_all_outputs_once() {
        for (outputs, most, width) in [(0, 5, 16), (1, 1, 1), (320, 91, 16), (33, 16, 16), (40, 1, 16), (8, 100, 8)] {
            let groups = groups(outputs, most, width);
            assert_eq!(groups.iter().cloned().flatten().collect::<Vec<_>>(), (0..outputs).collect::<Vec<_>>());
            assert!(groups.iter().all(|g| g.start.is_multiple_of(width) && g.len() <= most.max(width)));
        }
    }

    #[derive(Debug)]
    struct Halves(Vec<u16>);

    impl Stored for Halves {
        fn view(&self) -> Weight<'_> {
            Weight::Bf16(&self.0)
        }
    }

    /// In every storage the result has the bits of a packed filter with the same numbers.
    #[test]
    fn streamed_weights_give_the_bits_of_packed_ones() {
        let shapes = [
            ConvDims::same(2, 9, 7, 16, 24, 3),
            ConvDims::same(1, 5, 5, 520, 264, 3),
            ConvDims::same(2, 18, 17, 520, 40, 3),
            ConvDims::same(1, 6, 5, 4, 40, 3),
            ConvDims::same(1, 6, 5, 24, 4, 3),
            ConvDims { n: 1, h: 8, w: 6, c_in: 12, c_out: 20, kernel: 3, stride: 2, pad_before: 1, pad_after: 1 },
            ConvDims { n: 1, h: 8, w: 6, c_in: 12, c_out: 20, kernel: 3, stride: 2, pad_before: 0, pad_after: 1 },
            ConvDims::linear(37, 50, 70),
            ConvDims::linear(100, 4100, 1040),
            ConvDims::linear(3, 7, 2),
            ConvDims::linear(77, 300, 104),
            ConvDims::linear(154, 768, 64),
            ConvDims::linear(24, 61, 7),
        ];
        for d in shapes {
            let weight = numbers(d.weight_len(), 1);
            let half = Halves(weight.iter().map(|x| (x.to_bits() >> 16) as u16).collect());
            let forms: [Arc<dyn Stored>; 3] =
                [Arc::new(weight.clone()), Arc::new(half), Arc::new(Int8::round(Weight::F32(&weight), 32))];
            let (x, bias) = (numbers(d.in_len(), 2), numbers(d.c_out, 3));
            for stored in forms {
                let mut packed = match d.stride {
                    1 => Filter::same(d.kernel, d.c_in, d.c_out),
                    _ => Filter::strided(d.kernel, d.c_in, d.c_out),
                };
                packed.pack(&stored.view().to_vec(), false);
                let streamed = Filter::streamed(d.kernel, d.stride, d.c_in, d.c_out, stored);
                let part = [Part::plain(&x, d.c_in)];
                let before = numbers(d.out_len(), 4);
                for accumulate in [false, true] {
                    let run = |filter: &Filter| {
                        let mut y = before.clone();
                        let (bias, target) = match accumulate {
                            true => (None, Target::accumulate(&mut y, d.c_out)),
                            false => (Some(&bias[..]), Target::overwrite(&mut y, d.c_out)),
                        };
                        forward_joined(&d, &part, filter, bias, target);
                        y
                    };
                    let (expected, found) = (run(&packed), run(&streamed));
                    let differ = expected.iter().zip(&found).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
                    assert_eq!(differ, 0, "{d:?}, accumulate {accumulate}");
                }
            }
        }
    }

    #[test]
    fn the_bits_do_not_depend_on_the_pool() {
        let d = ConvDims::same(2, 9, 7, 520, 264, 3);
        let weight: Arc<dyn Stored> = Arc::new(numbers(d.weight_len(), 1));
        let (filter, x) = (Filter::streamed(3, 1, d.c_in, d.c_out, weight), numbers(d.in_len(), 2));
        assert_same_bits_for_any_pool(|| {
            let mut y = vec![f32::NAN; d.out_len()];
            forward_joined(&d, &[Part::plain(&x, d.c_in)], &filter, None, Target::overwrite(&mut y, d.c_out));
            vec![y]
        });
    }
}
