use super::joined::{backward_input_joined_by, backward_weight_joined_by, forward_joined_by};
use super::*;
use crate::act::Act;
use crate::map::Map;
use crate::simd::Isa;
use crate::testing::{numbers as random, relative_error};

/// [`forward`] by a given algorithm.
fn forward_by(algorithm: Algorithm, d: &ConvDims, x: &[f32], filter: &Filter, bias: Option<&[f32]>, y: &mut [f32]) {
    forward_joined_by(algorithm, d, &[Part::plain(x, d.c_in)], filter, bias, Target::overwrite(y, d.c_out));
}

/// [`backward_input`] by a given algorithm.
fn backward_input_by(algorithm: Algorithm, d: &ConvDims, filter: &Filter, dy: &[f32], dx: &mut [f32]) {
    backward_input_joined_by(algorithm, d, filter, dy, &mut [Target::accumulate(dx, d.c_in)]);
}

/// [`backward_weight`] by a given algorithm, on a given instruction set.
fn backward_weight_by(
    algorithm: Algorithm,
    isa: Isa,
    d: &ConvDims,
    x: &[f32],
    dy: &[f32],
    dw: &mut [f32],
    db: Option<&mut [f32]>,
) {
    backward_weight_joined_by(algorithm, isa, d, &[Part::plain(x, d.c_in)], dy, dw, db);
}

fn shapes() -> Vec<ConvDims> {
    let mut all = Vec::new();
    // Channels below, at and above one, two and four vectors of every instruction set, and primes.
    for (c_in, c_out) in [
        (1, 1),
        (1, 64),
        (3, 16),
        (5, 7),
        (8, 32),
        (17, 33),
        (32, 64),
        (64, 1),
        (70, 3),
        (128, 4),
        (66, 80),
        (13, 130),
        (200, 24),
    ] {
        for kernel in [1, 3] {
            all.push(ConvDims::same(2, 5, 7, c_in, c_out, kernel));
        }
    }
    for (h, w) in [(1, 1), (1, 9), (2, 2), (13, 11), (28, 28)] {
        all.push(ConvDims::same(1, h, w, 6, 10, 3));
        for (pad_before, pad_after) in [(1, 1), (0, 1)] {
            all.push(ConvDims { stride: 2, pad_before, pad_after, ..ConvDims::same(3, h, w, 6, 18, 3) });
        }
        all.push(ConvDims { stride: 2, ..ConvDims::same(2, h, w, 9, 4, 1) });
    }
    all.push(ConvDims::linear(37, 100, 64));
    all.push(ConvDims::linear(1, 3, 2));
    all.push(ConvDims::same(0, 4, 4, 3, 2, 3));
    all.push(ConvDims::same(1, 0, 4, 3, 2, 3));
    all.push(ConvDims::same(1, 4, 4, 0, 2, 3));
    all.push(ConvDims::same(1, 4, 4, 3, 0, 3));
    // Enough pixels for several groups of partial sums.
    all.push(ConvDims::same(3, 41, 43, 4, 8, 3));
    all
}

#[test]
fn every_pass_matches_its_reference_on_every_instruction_set() {
    for d in shapes() {
        let (x, w) = (random(d.in_len(), 1), random(d.weight_len(), 2));
        let (bias, dy) = (random(d.c_out, 3), random(d.out_len(), 4));
        let y_expected = reference::forward(&d, &x, &w, Some(&bias));
        let dx_expected = reference::backward_input(&d, &w, &dy);
        let (dw_expected, db_expected) = reference::backward_weight(&d, &x, &dy);
        for &isa in Isa::available() {
            let mut filter = Filter::for_isa(isa, d.kernel, d.c_in, d.c_out);
            filter.pack(&w, true);
            let mut y = vec![f32::NAN; d.out_len()];
            forward_by(Algorithm::Gather, &d, &x, &filter, Some(&bias), &mut y);
            assert!(relative_error(&y, &y_expected) < 1e-6, "forward {d:?} {isa:?}");

            // Gradients are added to what is there.
            let mut dx = vec![1.0; d.in_len()];
            backward_input_by(Algorithm::Gather, &d, &filter, &dy, &mut dx);
            let expected: Vec<f64> = dx_expected.iter().map(|v| v + 1.0).collect();
            assert!(relative_error(&dx, &expected) < 1e-6, "backward_input {d:?} {isa:?}");

            let (mut dw, mut db) = (vec![-1.0; d.weight_len()], vec![2.0; d.c_out]);
            backward_weight_by(Algorithm::Gather, isa, &d, &x, &dy, &mut dw, Some(&mut db));
            let expected: Vec<f64> = dw_expected.iter().map(|v| v - 1.0).collect();
            assert!(relative_error(&dw, &expected) < 2e-6, "backward_weight {d:?} {isa:?}");
            let expected: Vec<f64> = db_expected.iter().map(|v| v + 2.0).collect();
            assert!(relative_error(&db, &expected) < 2e-6, "backward_bias {d:?} {isa:?}");
        }
    }
}

/// Tiles that fit and tiles that are cut off, panels of one, two and four vectors.
#[test]
fn winograd_matches_the_reference_on_every_instruction_set() {
    let mut cases = Vec::new();
    for (h, w) in [(4, 4), (7, 7), (28, 28), (5, 13), (1, 1), (3, 9)] {
        cases.push(ConvDims::same(3, h, w, 16, 16, 3));
    }
    for (c_in, c_out) in [(32, 16), (16, 32), (48, 64), (64, 80), (16, 144)] {
        cases.push(ConvDims::same(2, 9, 8, c_in, c_out, 3));
    }
    // In passes, in either direction: many channels, and few tiles.
    cases.extend([(520, 24), (24, 520)].map(|(c_in, c_out)| ConvDims::same(1, 18, 13, c_in, c_out, 3)));
    cases.extend([(128, 32), (32, 128)].map(|(c_in, c_out)| ConvDims::same(1, 7, 7, c_in, c_out, 3)));
    for d in cases {
        let (x, w) = (random(d.in_len(), 1), random(d.weight_len(), 2));
        let (bias, dy) = (random(d.c_out, 3), random(d.out_len(), 4));
        let y_expected = reference::forward(&d, &x, &w, Some(&bias));
        let dx_expected: Vec<f64> = reference::backward_input(&d, &w, &dy).iter().map(|v| v + 1.0).collect();
        for &isa in Isa::available() {
            let mut filter = Filter::for_isa(isa, d.kernel, d.c_in, d.c_out);
            filter.pack(&w, true);
            assert!(filter.forward_winograd().is_some() && filter.backward_winograd().is_some());
            let (mut y, mut dx) = (vec![f32::NAN; d.out_len()], vec![1.0; d.in_len()]);
            forward_by(Algorithm::Winograd, &d, &x, &filter, Some(&bias), &mut y);
            backward_input_by(Algorithm::Winograd, &d, &filter, &dy, &mut dx);
            assert!(relative_error(&y, &y_expected) < 5e-6, "forward {d:?} {isa:?}");
            assert!(relative_error(&dx, &dx_expected) < 5e-6, "backward_input {d:?} {isa:?}");
            let dw_expected: Vec<f64> = reference::backward_weight(&d, &x, &dy).0.iter().map(|v| v - 1.0).collect();
            let mut dw = vec![-1.0; d.weight_len()];
            backward_weight_by(Algorithm::Winograd, isa, &d, &x, &dy, &mut dw, None);
            assert!(relative_error(&dw, &dw_expected) < 1e-5, "backward_weight {d:?} {isa:?}");
            // The two algorithms round differently: equal bits would mean that the choice had no effect.
            let mut gathered = vec![f32::NAN; d.out_len()];
            forward_by(Algorithm::Gather, &d, &x, &filter, Some(&bias), &mut gathered);
            assert_ne!(gathered, y);
        }
    }
}

#[test]
fn without_a_bias_zeros_are_added() {
    let d = ConvDims::same(1, 3, 4, 5, 6, 3);
    let (x, w) = (random(d.in_len(), 1), random(d.weight_len(), 2));
    let mut filter = Filter::new(3, 5, 6);
    filter.pack(&w, false);
    let mut y = vec![f32::NAN; d.out_len()];
    forward(&d, &x, &filter, None, &mut y);
    assert!(relative_error(&y, &reference::forward(&d, &x, &w, None)) < 1e-6);
}

/// Large filters and small ones in turn, so that each finds what another has left in its memory.
#[test]
fn filters_for_one_pass_give_the_bits_of_kept_ones() {
    let strided = ConvDims { stride: 2, ..ConvDims::same(2, 7, 8, 12, 20, 3) };
    let shapes = [
        ConvDims::same(2, 9, 8, 48, 64, 3),
        ConvDims::same(2, 9, 7, 5, 9, 3),
        ConvDims::same(1, 6, 5, 520, 24, 3),
        strided,
        ConvDims::same(2, 5, 5, 24, 40, 1),
        ConvDims::same(2, 9, 8, 16, 3, 3),
        ConvDims::linear(37, 50, 70),
        ConvDims::linear(3, 7, 2),
    ];
    for d in shapes.into_iter().chain(shapes) {
        let (x, w, dy) = (random(d.in_len(), 1), random(d.weight_len(), 2), random(d.out_len(), 3));
        let mut kept = if d.stride == 1 { Filter::same } else { Filter::strided }(d.kernel, d.c_in, d.c_out);
        kept.pack(&w, true);
        let mut expected = (vec![f32::NAN; d.out_len()], vec![1.0; d.in_len()]);
        forward(&d, &x, &kept, None, &mut expected.0);
        backward_input(&d, &kept, &dy, &mut expected.1);
        let mut found = (vec![f32::NAN; d.out_len()], vec![1.0; d.in_len()]);
        let sizes = [d.c_in, d.c_out];
        Filter::with_passing(Direction::Forward, d.kernel, d.stride, sizes, &w, |filter| {
            forward(&d, &x, filter, None, &mut found.0);
        });
        Filter::with_passing(Direction::Backward, d.kernel, d.stride, sizes, &w, |filter| {
            backward_input(&d, filter, &dy, &mut found.1);
        });
        assert!(found == expected, "{d:?}");
    }
}

/// Numbers of each sample and another tensor are added by every algorithm, to filters that are packed and to those that are not.
#[test]
fn numbers_of_each_sample_and_another_tensor_are_added() {
    let shapes = [
        ConvDims::same(3, 9, 8, 16, 24, 3),
        ConvDims::same(2, 18, 17, 520, 40, 3),
        ConvDims::same(3, 9, 7, 5, 9, 3),
        ConvDims { stride: 2, ..ConvDims::same(2, 7, 8, 12, 20, 3) },
        ConvDims::same(2, 5, 5, 24, 40, 1),
        ConvDims::same(2, 9, 8, 16, 3, 3),
        ConvDims::linear(37, 50, 70),
    ];
    for d in shapes {
        let (x, w, base) = (random(d.in_len(), 1), random(d.weight_len(), 2), random(d.out_len(), 3));
        let bias = random(d.n * d.c_out, 4);
        let pixels = d.out_h() * d.out_w();
        let mut expected = reference::forward(&d, &x, &w, None);
        for (at, y) in expected.iter_mut().enumerate() {
            let (pixel, c) = (at / d.c_out, at % d.c_out);
            *y += f64::from(bias[pixel / pixels * d.c_out + c]) + f64::from(base[at]);
        }
        let run = |filter: &Filter| {
            let mut y = vec![f32::NAN; d.out_len()];
            let target = Target::sum(&mut y, &base, d.c_out).shifted(&bias);
            forward_joined(&d, &[Part::plain(&x, d.c_in)], filter, None, target);
            assert!(relative_error(&y, &expected) < 5e-6, "{d:?}: {}", relative_error(&y, &expected));
            let mut y = base.clone();
            let target = Target::accumulate(&mut y, d.c_out).shifted(&bias);
            forward_joined(&d, &[Part::plain(&x, d.c_in)], filter, None, target);
            assert!(relative_error(&y, &expected) < 5e-6, "{d:?}, accumulated: {}", relative_error(&y, &expected));
        };
        let mut kept = if d.stride == 1 { Filter::same } else { Filter::strided }(d.kernel, d.c_in, d.c_out);
        kept.pack(&w, false);
        run(&kept);
        run(&Filter::streamed(d.kernel, d.stride, d.c_in, d.c_out, std::sync::Arc::new(w.clone())));
    }
}

#[test]
#[should_panic(expected = "floats of the weight [3, 2, 9]")]
fn a_filter_for_one_pass_names_a_wrong_size() {
    Filter::with_passing(Direction::Forward, 3, 1, [2, 3], &[0.0; 53], |_| ());
}

/// The gradients are those of `sum(y * dy)`: directional finite differences. The map is linear in `x` and in `w`, so
/// a step of one has no truncation error and only rounding remains.
#[test]
fn gradients_match_directional_differences() {
    for d in [ConvDims::same(2, 6, 5, 7, 9, 3), ConvDims { stride: 2, ..ConvDims::same(2, 7, 8, 5, 20, 3) }] {
        let (x, w, dy) = (random(d.in_len(), 1), random(d.weight_len(), 2), random(d.out_len(), 3));
        let (step_x, step_w) = (random(d.in_len(), 4), random(d.weight_len(), 5));
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        let loss = |x: &[f32], w: &[f32]| -> f64 {
            let y = reference::forward(&d, x, w, None);
            y.iter().zip(&dy).map(|(a, b)| a * f64::from(*b)).sum()
        };
        let moved = |a: &[f32], s: &[f32]| -> Vec<f32> { a.iter().zip(s).map(|(a, s)| a + s).collect() };
        let mut filter = Filter::new(d.kernel, d.c_in, d.c_out);
        filter.pack(&w, true);
        let (mut dx, mut dw) = (vec![0.0; d.in_len()], vec![0.0; d.weight_len()]);
        backward_input(&d, &filter, &dy, &mut dx);
        backward_weight(&d, &x, &dy, &mut dw, None);
        let along_x = loss(&moved(&x, &step_x), &w) - loss(&x, &w);
        let along_w = loss(&x, &moved(&w, &step_w)) - loss(&x, &w);
        assert!((dot(&dx, &step_x) - along_x).abs() < 1e-4 * along_x.abs().max(1.0));
        assert!((dot(&dw, &step_w) - along_w).abs() < 1e-4 * along_w.abs().max(1.0));
    }
}

/// A picture's output and input gradient are the same bits alone and in a batch, by either algorithm.
#[test]
fn a_picture_does_not_depend_on_its_batch() {
    for d in [ConvDims::same(5, 9, 10, 32, 48, 3), ConvDims::same(5, 9, 10, 7, 9, 3)] {
        let (x, w, dy) = (random(d.in_len(), 1), random(d.weight_len(), 2), random(d.out_len(), 3));
        let mut filter = Filter::new(3, d.c_in, d.c_out);
        filter.pack(&w, true);
        let (mut y, mut dx) = (vec![0.0; d.out_len()], vec![0.0; d.in_len()]);
        forward(&d, &x, &filter, None, &mut y);
        backward_input(&d, &filter, &dy, &mut dx);
        let one = ConvDims { n: 1, ..d };
        for n in 0..d.n {
            let (input, output) =
                (n * one.in_len()..(n + 1) * one.in_len(), n * one.out_len()..(n + 1) * one.out_len());
            let (mut alone, mut gradient) = (vec![0.0; one.out_len()], vec![0.0; one.in_len()]);
            forward(&one, &x[input.clone()], &filter, None, &mut alone);
            backward_input(&one, &filter, &dy[output.clone()], &mut gradient);
            assert!(alone == y[output] && gradient == dx[input], "picture {n} of {d:?}");
        }
    }
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    for d in [ConvDims::same(5, 28, 28, 24, 40, 3), ConvDims::same(5, 15, 28, 32, 48, 3)] {
        check_bits(d);
    }
}

fn check_bits(d: ConvDims) {
    let (x, w, dy) = (random(d.in_len(), 1), random(d.weight_len(), 2), random(d.out_len(), 3));
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut filter = Filter::new(d.kernel, d.c_in, d.c_out);
            filter.pack(&w, true);
            let (mut y, mut dx) = (vec![0.0; d.out_len()], vec![0.0; d.in_len()]);
            let (mut dw, mut db) = (vec![0.0; d.weight_len()], vec![0.0; d.c_out]);
            forward(&d, &x, &filter, None, &mut y);
            backward_input(&d, &filter, &dy, &mut dx);
            backward_weight(&d, &x, &dy, &mut dw, Some(&mut db));
            [y, dx, dw, db].concat().iter().map(|v| v.to_bits()).collect::<Vec<_>>()
        })
    };
    let one = run(1);
    for threads in [2, 3, 8] {
        assert!(run(threads) == one, "{threads} threads give other bits than one");
    }
}

#[test]
#[should_panic(expected = "without its backward half")]
fn a_forward_filter_has_no_backward_pass() {
    let d = ConvDims::same(1, 2, 2, 1, 1, 3);
    let filter = Filter::new(3, 1, 1);
    backward_input(&d, &filter, &[0.0; 4], &mut [0.0; 4]);
}

/// Two parts, the first normalised by a table for the batch and shifted per sample, the second by a table per sample: the
/// same as the convolution of the tensor that they stand for, and its gradient taken apart is that of the whole.
#[test]
fn joined_parts_are_the_tensor_that_they_stand_for() {
    for (first, second, c_out) in [(16, 32, 48), (32, 16, 16), (5, 3, 7), (16, 5, 16)] {
        let channels = first + second;
        for d in [
            ConvDims::same(3, 9, 14, channels, c_out, 3),
            // Few tiles, whose input is transformed in parts of the channels.
            ConvDims::same(1, 5, 6, channels, c_out, 3),
            ConvDims::same(2, 4, 7, channels, c_out, 1),
        ] {
            let pixels = d.n * d.h * d.w;
            let (a, b, add) = (random(pixels * first, 1), random(pixels * second, 2), random(d.n * first, 3));
            let (scale, shift) = (random(first, 4), random(first, 5));
            let (scales, shifts) = (random(d.n * second, 6), random(d.n * second, 7));
            let maps = [
                Map { scale: &scale, shift: &shift, per_sample: false, act: Act::Relu },
                Map { scale: &scales, shift: &shifts, per_sample: true, act: Act::Silu },
            ];
            let parts = [
                Part { values: &a, channels: first, map: Some(maps[0]), add: Some(&add) },
                Part { values: &b, channels: second, map: Some(maps[1]), add: None },
            ];
            let mut x = Vec::new();
            for pixel in 0..pixels {
                let n = pixel / (d.h * d.w);
                for c in 0..first {
                    let z = f64::from(a[pixel * first + c]) * f64::from(scale[c]) + f64::from(shift[c]);
                    x.push((z.max(0.0) + f64::from(add[n * first + c])) as f32);
                }
                for c in 0..second {
                    let at = n * second + c;
                    let z = f64::from(b[pixel * second + c]) * f64::from(scales[at]) + f64::from(shifts[at]);
                    x.push((z / (1.0 + (-z).exp())) as f32);
                }
            }
            let (w, bias, dy) = (random(d.weight_len(), 8), random(d.c_out, 9), random(d.out_len(), 10));
            let y_expected = reference::forward(&d, &x, &w, Some(&bias));
            let dx_expected = reference::backward_input(&d, &w, &dy);
            let (dw_expected, db_expected) = reference::backward_weight(&d, &x, &dy);
            for &isa in Isa::available() {
                let mut filter = Filter::for_isa(isa, d.kernel, d.c_in, d.c_out);
                filter.pack(&w, true);
                for algorithm in [Algorithm::Gather, Algorithm::Winograd] {
                    if algorithm == Algorithm::Winograd && filter.forward_winograd().is_none() {
                        continue;
                    }
                    let mut y = vec![f32::NAN; d.out_len()];
                    let target = Target::overwrite(&mut y, d.c_out);
                    forward_joined_by(algorithm, &d, &parts, &filter, Some(&bias), target);
                    assert!(relative_error(&y, &y_expected) < 5e-6, "forward {d:?} {isa:?} {algorithm:?}");

                    let (mut da, mut db_) = (vec![f32::NAN; a.len()], vec![1.0; b.len()]);
                    let mut targets = [Target::overwrite(&mut da, first), Target::accumulate(&mut db_, second)];
                    backward_input_joined_by(algorithm, &d, &filter, &dy, &mut targets);
                    for (pixel, expected) in dx_expected.chunks_exact(first + second).enumerate() {
                        let found = [&da[pixel * first..][..first], &db_[pixel * second..][..second]].concat();
                        let expected: Vec<f64> =
                            expected.iter().enumerate().map(|(c, v)| v + f64::from(u8::from(c >= first))).collect();
                        assert!(relative_error(&found, &expected) < 5e-5, "dx {d:?} {isa:?} {algorithm:?}");
                    }

                    let (mut dw, mut db) = (vec![0.0; d.weight_len()], vec![0.0; d.c_out]);
                    backward_weight_joined_by(algorithm, isa, &d, &parts, &dy, &mut dw, Some(&mut db));
                    assert!(relative_error(&dw, &dw_expected) < 1e-5, "dw {d:?} {isa:?} {algorithm:?}");
                    assert!(relative_error(&db, &db_expected) < 1e-5, "db {d:?} {isa:?} {algorithm:?}");
                }
            }
        }
    }
}

/// A filter that keeps only the form that same-size convolutions use computes the same bits.
#[test]
fn a_filter_for_the_same_size_computes_the_same() {
    for (h, w, c_in, c_out) in [(9, 7, 32, 48), (1, 1, 16, 16), (1, 6, 16, 32), (6, 5, 7, 64), (4, 4, 64, 3)] {
        let d = ConvDims::same(2, h, w, c_in, c_out, 3);
        let (x, w, dy) = (random(d.in_len(), 1), random(d.weight_len(), 2), random(d.out_len(), 3));
        let run = |mut filter: Filter| {
            filter.pack(&w, true);
            let (mut y, mut dx) = (vec![f32::NAN; d.out_len()], vec![0.0; d.in_len()]);
            forward(&d, &x, &filter, None, &mut y);
            backward_input(&d, &filter, &dy, &mut dx);
            (y, dx)
        };
        assert!(run(Filter::same(3, c_in, c_out)) == run(Filter::new(3, c_in, c_out)), "{d:?}");
    }
}

#[test]
#[should_panic(expected = "use Filter::new")]
fn a_filter_for_the_same_size_is_not_for_others() {
    let d = ConvDims { pad_after: 0, ..ConvDims::same(1, 4, 4, 16, 16, 3) };
    let mut filter = Filter::same(3, 16, 16);
    filter.pack(&random(d.weight_len(), 1), false);
    forward(&d, &random(d.in_len(), 2), &filter, None, &mut vec![0.0; d.out_len()]);
}

/// Packed rows and others, one tap and several; few outputs, for which the parts are joined.
#[test]
fn parts_are_read_where_they_lie() {
    for (n, side, kernel, channels, c_out, where_they_lie) in [
        (2, 9, 1, [256, 128], 160, true),
        (1, 5, 1, [128, 128], 24, true),
        (3, 4, 1, [160, 96], 48, true),
        (1, 3, 1, [9, 55], 16, true),
        (2, 4, 1, [128, 128], 3, false),
        (1, 4, 1, [300, 212], 200, true),
        (2, 5, 3, [31, 18], 50, true),
        (2, 5, 3, [32, 16], 64, true),
    ] {
        let d = ConvDims::same(n, side, side, channels[0] + channels[1], c_out, kernel);
        let (x, bias) = (random(d.in_len(), 1), random(c_out, 3));
        let [a, b] = [0..channels[0], channels[0]..d.c_in].map(|columns| -> Vec<f32> {
            x.chunks_exact(d.c_in).flat_map(|row| &row[columns.clone()]).copied().collect()
        });
        let mut filter = Filter::same(kernel, d.c_in, c_out);
        filter.pack(&random(d.weight_len(), 2), false);
        assert_eq!(filter.reads_parts(), where_they_lie, "{d:?}");
        let (mut y, mut expected) = (vec![f32::NAN; d.out_len()], vec![f32::NAN; d.out_len()]);
        let parts = [Part::plain(&a, channels[0]), Part::plain(&b, channels[1])];
        forward_joined(&d, &parts, &filter, Some(&bias), Target::overwrite(&mut y, c_out));
        forward(&d, &x, &filter, Some(&bias), &mut expected);
        assert!(y == expected, "{d:?}");
    }
}

#[test]
fn the_size_of_a_filter_is_known_before_it_is_made() {
    for (kernel, c_in, c_out) in [(3, 64, 96), (3, 1, 64), (3, 5, 7), (1, 64, 3), (1, 30, 40), (3, 128, 2)] {
        for stride in [1, 2] {
            let filter = match stride {
                1 => Filter::same(kernel, c_in, c_out),
                _ => Filter::strided(kernel, c_in, c_out),
            };
            let floats = Filter::forward_floats(kernel, stride, c_in, c_out);
            assert_eq!(filter.floats(), floats, "{kernel}, {stride}, {c_in}, {c_out}");
        }
    }
}
