use super::*;
use crate::act::Act;
use crate::simd::{Isa, dispatch_to};
use crate::testing::{self, added, assert_close, assert_same_bits_for_any_pool, dot, gradient, numbers, wide};

fn dims(n: usize, h: usize, w: usize, c: usize) -> ResampleDims {
    ResampleDims { n, h, w, c }
}

/// The source coordinate of PyTorch at a scale of two: lower and upper index, weight of the upper one.
fn source(o: usize, len: usize, mode: Resample) -> (usize, usize, f64) {
    match mode {
        Resample::Nearest => (o / 2, o / 2, 0.0),
        Resample::Bilinear => {
            let at = ((o as f64 + 0.5) * 0.5 - 0.5).max(0.0);
            let lower = at.floor() as usize;
            (lower, (lower + 1).min(len - 1), at - at.floor())
        }
    }
}

fn reference(d: &ResampleDims, mode: Resample, x: &[f64]) -> Vec<f64> {
    let mut y = vec![];
    for n in 0..d.n {
        for i in 0..2 * d.h {
            for j in 0..2 * d.w {
                let (i0, i1, u) = source(i, d.h, mode);
                let (j0, j1, v) = source(j, d.w, mode);
                for k in 0..d.c {
                    let at = |i: usize, j: usize| x[((n * d.h + i) * d.w + j) * d.c + k];
                    let (top, bottom) =
                        (at(i0, j0) * (1.0 - v) + at(i0, j1) * v, at(i1, j0) * (1.0 - v) + at(i1, j1) * v);
                    y.push(top * (1.0 - u) + bottom * u);
                }
            }
        }
    }
    y
}

#[test]
fn both_passes_agree_with_the_reference() {
    let shapes = [
        dims(0, 2, 2, 2),
        dims(1, 2, 2, 0),
        dims(1, 0, 3, 2),
        dims(1, 1, 1, 1),
        dims(2, 1, 3, 2),
        dims(2, 3, 1, 5),
        dims(1, 2, 2, 17),
        dims(2, 5, 4, 3),
    ];
    for mode in [Resample::Nearest, Resample::Bilinear] {
        for d in shapes {
            let (x, dy, before) = (numbers(d.in_len(), 1), numbers(d.out_len(), 2), numbers(d.in_len(), 3));
            let mut y = vec![f32::NAN; d.out_len()];
            forward(&d, mode, &x, &mut y);
            assert_close(&format!("{d:?} {mode:?}"), &y, &reference(&d, mode, &wide(&x)), 3e-7);
            let mut dx = before.clone();
            backward(&d, mode, &dy, &mut dx);
            let exact = gradient(&x, |x| dot(&reference(&d, mode, x), &dy));
            assert_close(&format!("{d:?} {mode:?} dx"), &dx, &added(&before, &exact), 1e-6);
        }
    }
}

#[test]
fn bits_do_not_depend_on_threads() {
    let d = dims(3, 32, 32, 8);
    let (x, dy) = (numbers(d.in_len(), 1), numbers(d.out_len(), 2));
    for mode in [Resample::Nearest, Resample::Bilinear] {
        assert_same_bits_for_any_pool(|| {
            let (mut y, mut dx) = (vec![0.0; d.out_len()], numbers(d.in_len(), 3));
            forward(&d, mode, &x, &mut y);
            backward(&d, mode, &dy, &mut dx);
            vec![y, dx]
        });
    }
}

#[test]
#[should_panic(expected = "upsample: y has 1 elements, its dimensions ask for 4")]
fn lengths_are_checked() {
    forward(&dims(1, 1, 1, 1), Resample::Nearest, &[0.0], &mut [0.0]);
}

#[test]
fn what_is_resampled_may_be_mapped_on_every_instruction_set() {
    let shapes = [dims(1, 1, 1, 1), dims(2, 3, 1, 5), dims(3, 4, 5, 17), dims(2, 9, 7, 32)];
    for mode in [Resample::Nearest, Resample::Bilinear] {
        for d in shapes {
            for (per_sample, act) in [(false, Act::Relu), (true, Act::Silu), (true, Act::None)] {
                let table = if per_sample { d.n * d.c } else { d.c };
                let (x, scale, shift) = (numbers(d.in_len(), 1), numbers(table, 2), numbers(table, 3));
                let map = Map { scale: &scale, shift: &shift, per_sample, act };
                let read = |(i, x): (usize, &f32)| {
                    let k = i % d.c + if per_sample { i / (d.h * d.w * d.c) * d.c } else { 0 };
                    testing::act(act, f64::from(*x) * f64::from(scale[k]) + f64::from(shift[k]))
                };
                let exact = reference(&d, mode, &x.iter().enumerate().map(read).collect::<Vec<f64>>());
                let what = format!("{d:?} {mode:?} {act:?}");
                for &isa in Isa::available() {
                    let mut y = vec![f32::NAN; d.out_len()];
                    let (mut rows, mut pixels) = (vec![f32::NAN; 3 * d.w * d.c], vec![f32::NAN; 3 * d.c]);
                    let (map, rows, pixels) = (Some(&map), &mut rows, &mut pixels);
                    let forward = Forward { d: &d, mode, x: &x, map, first: 0, y: &mut y, rows, pixels };
                    dispatch_to(isa, forward);
                    assert_close(&format!("{what} {isa:?}"), &y, &exact, 1e-6);
                }
                let mut y = vec![f32::NAN; d.out_len()];
                forward_mapped(&d, mode, &x, Some(&map), &mut y);
                assert_close(&what, &y, &exact, 1e-6);
            }
        }
    }
}

#[test]
fn gradients_may_be_overwritten_and_part_of_a_concatenation_on_every_instruction_set() {
    for mode in [Resample::Nearest, Resample::Bilinear] {
        for d in [dims(1, 1, 1, 1), dims(2, 3, 1, 5), dims(1, 2, 3, 17), dims(2, 3, 4, 8)] {
            let (x, row) = (numbers(d.in_len(), 1), d.c + 7);
            let data = numbers(4 * d.n * d.h * d.w * row, 2);
            let dy = ChannelSlice { data: &data, row, offset: 3 };
            let values: Vec<f32> = (0..d.out_len()).map(|i| data[i / d.c * row + 3 + i % d.c]).collect();
            let exact = gradient(&x, |x| dot(&reference(&d, mode, x), &values));
            for &isa in Isa::available() {
                let mut dx = vec![f32::NAN; d.in_len()];
                dispatch_to(isa, Backward::<false> { d: &d, mode, dy, first: 0, dx: &mut dx });
                assert_close(&format!("{d:?} {mode:?} {isa:?}"), &dx, &exact, 1e-6);
                dispatch_to(isa, Backward::<true> { d: &d, mode, dy, first: 0, dx: &mut dx });
                let twice: Vec<f64> = exact.iter().map(|dx| 2.0 * dx).collect();
                assert_close(&format!("{d:?} {mode:?} {isa:?}"), &dx, &twice, 1e-6);
            }
            let before = numbers(d.in_len(), 3);
            let mut dx = before.clone();
            backward_from(&d, mode, dy, &mut dx);
            assert_close(&format!("{d:?} {mode:?}"), &dx, &added(&before, &exact), 1e-6);
            backward_into(&d, mode, dy, &mut dx);
            assert_close(&format!("{d:?} {mode:?}"), &dx, &exact, 1e-6);
        }
    }
}

#[test]
#[should_panic(expected = "upsample backward: dy has 3 channels, not 2 from channel 2 on")]
fn channels_beyond_the_last_are_refused() {
    let dy = ChannelSlice { data: &[0.0; 12], row: 3, offset: 2 };
    backward_into(&dims(1, 1, 1, 2), Resample::Nearest, dy, &mut [0.0; 2]);
}
