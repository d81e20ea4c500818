//! A 3x3 convolution of pixels each of which is repeated four times, without repeating them.

use super::part::Bias;
use super::{ConvDims, Filter, Part, Target, stream, winograd};

/// The forward pass of the convolution `d`, which keeps the size of the picture, on nearest-neighbour upsampling of `x`
/// `[n, h / 2, w / 2, c_in]`; `y` `[n, h, w, c_out]` is overwritten. It takes 25 multiplications for 16 outputs, where
/// [`super::forward`] takes 36 on an input that was upsampled before.
///
/// # Panics
/// If a slice or the filter does not have the size that `d` says, if `d` does not keep an even size, or if the filter is of
/// another kind, see [`Filter::upsamples`].
pub fn forward_upsampled(d: &ConvDims, x: &[f32], filter: &Filter, bias: Option<&[f32]>, y: &mut [f32]) {
    let operation = "conv::forward_upsampled";
    let same = *d == ConvDims::same(d.n, d.h, d.w, d.c_in, d.c_out, 3);
    assert!(same && d.h.is_multiple_of(2) && d.w.is_multiple_of(2), "{operation}: {d:?} is not of twice a size");
    assert_eq!(x.len(), d.in_len() / 4, "{operation}: floats of the input for {d:?}");
    assert_eq!(y.len(), d.out_len(), "{operation}: floats of the output for {d:?}");
    filter.check(operation, d);
    if let Some(bias) = bias {
        assert_eq!(bias.len(), d.c_out, "{operation}: floats of the bias for {d:?}");
    }
    let half = ConvDims { h: d.h / 2, w: d.w / 2, ..*d };
    let (bias, target) = (bias.map(Bias::of_all), Target::overwrite(y, d.c_out));
    match (filter.phases(), filter.stored()) {
        (Some(panels), _) => {
            winograd::convolve(&half, &[Part::plain(x, d.c_in)], panels, bias, &mut [target]);
        }
        (_, Some(stored)) if filter.upsamples(d) => {
            stream::forward_upsampled(filter.isa(), &half, x, stored.view(), bias, target);
        }
        _ => panic!("{operation}: a filter of another kind for {d:?}: see Filter::upsamples"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::conv::reference;
    use crate::resample::{self, Resample, ResampleDims};
    use crate::simd::Isa;
    use crate::testing::{assert_same_bits_for_any_pool, numbers, relative_error};

    /// The input of `d`, whose pixels `x` has once.
    fn repeated(d: &ConvDims, x: &[f32]) -> Vec<f32> {
        let mut twice = vec![0.0; d.in_len()];
        let half = ResampleDims { n: d.n, h: d.h / 2, w: d.w / 2, c: d.c_in };
        resample::forward(&half, Resample::Nearest, x, &mut twice);
        twice
    }

    /// Tiles of every size, one panel and several, in blocks and in passes.
    #[test]
    fn it_is_the_convolution_of_repeated_pixels_on_every_instruction_set() {
        for (n, h, w, c_in, c_out) in [
            (2, 2, 2, 16, 16),
            (3, 14, 14, 32, 48),
            (2, 18, 10, 48, 64),
            (1, 8, 12, 16, 144),
            (1, 6, 26, 64, 80),
            (1, 32, 32, 32, 32),
            (5, 8, 8, 256, 64),
            (1, 10, 8, 528, 32),
        ] {
            let d = ConvDims::same(n, h, w, c_in, c_out, 3);
            let (x, weight, bias) = (numbers(d.in_len() / 4, 1), numbers(d.weight_len(), 2), numbers(c_out, 3));
            let expected = reference::forward(&d, &repeated(&d, &x), &weight, Some(&bias));
            for &isa in Isa::available() {
                let mut filter = Filter::upsampled_for(isa, c_in, c_out);
                filter.pack(&weight, false);
                assert!(filter.upsamples(&d));
                let mut y = vec![f32::NAN; d.out_len()];
                forward_upsampled(&d, &x, &filter, Some(&bias), &mut y);
                let error = relative_error(&y, &expected);
                assert!(error < 5e-6, "{d:?} {isa:?}: {error}");
            }
        }
    }

    #[test]
    fn streamed_weights_give_the_bits_of_packed_ones() {
        for (c_in, c_out) in [(16, 32), (528, 48)] {
            let d = ConvDims::same(1, 64, 64, c_in, c_out, 3);
            let (x, weight, bias) = (numbers(d.in_len() / 4, 1), numbers(d.weight_len(), 2), numbers(c_out, 3));
            let mut packed = Filter::upsampled(c_in, c_out);
            packed.pack(&weight, false);
            let streamed = Filter::streamed(3, 1, c_in, c_out, Arc::new(weight));
            let run = |filter: &Filter| {
                let mut y = vec![f32::NAN; d.out_len()];
                forward_upsampled(&d, &x, filter, Some(&bias), &mut y);
                y
            };
            assert!(run(&packed) == run(&streamed), "{d:?}");
            assert!(streamed.upsamples(&d) && !streamed.upsamples(&ConvDims { h: 32, ..d }));
            assert!(Filter::upsampled_pays([7, 7]) && !Filter::upsampled_pays([4, 8]));
        }
    }

    /// Each picture has the bits that it has alone, on any number of threads.
    #[test]
    fn bits_depend_on_neither_the_batch_nor_the_pool() {
        let d = ConvDims::same(3, 12, 10, 64, 48, 3);
        let (x, weight) = (numbers(d.in_len() / 4, 1), numbers(d.weight_len(), 2));
        let mut filter = Filter::upsampled(d.c_in, d.c_out);
        filter.pack(&weight, false);
        let run = |d: &ConvDims, x: &[f32]| {
            let mut y = vec![f32::NAN; d.out_len()];
            forward_upsampled(d, x, &filter, None, &mut y);
            y
        };
        let one = ConvDims { n: 1, ..d };
        let alone: Vec<f32> = x.chunks_exact(one.in_len() / 4).flat_map(|x| run(&one, x)).collect();
        assert!(run(&d, &x) == alone);
        assert_same_bits_for_any_pool(|| vec![run(&d, &x)]);
    }

    /// Its gradient is that of the convolution of repeated pixels.
    #[test]
    fn the_backward_half_is_that_of_a_filter_that_keeps_the_size() {
        let d = ConvDims::same(2, 6, 8, 16, 32, 3);
        let (dy, weight) = (numbers(d.out_len(), 1), numbers(d.weight_len(), 2));
        let gradient = |mut filter: Filter| {
            filter.pack(&weight, true);
            let mut dx = vec![0.0; d.in_len()];
            crate::conv::backward_input(&d, &filter, &dy, &mut dx);
            dx
        };
        assert!(gradient(Filter::upsampled(16, 32)) == gradient(Filter::same(3, 16, 32)));
    }

    #[test]
    fn filters_that_do_not_fit_stay_as_they_are() {
        let mut filter = Filter::upsampled(5, 7);
        filter.pack(&numbers(9 * 35, 1), false);
        let d = ConvDims::same(1, 4, 4, 5, 7, 3);
        assert!(!filter.upsamples(&d));
        let (x, mut y) = (numbers(d.in_len(), 2), vec![0.0; d.out_len()]);
        crate::conv::forward(&d, &x, &filter, None, &mut y);
        assert!(y.iter().all(|y| *y != 0.0));
        for (c_in, c_out) in [(5, 7), (16, 32)] {
            assert_eq!(Filter::upsampled(c_in, c_out).floats(), Filter::upsampled_floats(c_in, c_out));
        }
    }

    #[test]
    #[should_panic(expected = "see Filter::upsamples")]
    fn a_filter_of_another_kind_is_refused() {
        let d = ConvDims::same(1, 4, 4, 16, 16, 3);
        forward_upsampled(&d, &vec![0.0; d.in_len() / 4], &Filter::same(3, 16, 16), None, &mut vec![0.0; d.out_len()]);
    }

    #[test]
    #[should_panic(expected = "is not of twice a size")]
    fn an_odd_size_is_refused() {
        let d = ConvDims::same(1, 5, 4, 16, 16, 3);
        forward_upsampled(&d, &[], &Filter::upsampled(16, 16), None, &mut vec![0.0; d.out_len()]);
    }
}
