use super::*;
use crate::testing::{added, assert_close, assert_same_bits_for_any_pool, dot, gradient, numbers, wide};

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
