use super::*;
use crate::testing::{added, assert_close, assert_same_bits_for_any_pool, dot, gradient, numbers, wide};

fn dims(n: usize, h: usize, w: usize, c: usize) -> MaxPoolDims {
    MaxPoolDims { n, h, w, c }
}

fn reference(d: &MaxPoolDims, x: &[f64]) -> Vec<f64> {
    let mut y = vec![];
    for n in 0..d.n {
        for i in 0..d.h / 2 {
            for j in 0..d.w / 2 {
                for k in 0..d.c {
                    let at = |a: usize, b: usize| x[((n * d.h + 2 * i + a) * d.w + 2 * j + b) * d.c + k];
                    y.push(at(0, 0).max(at(0, 1)).max(at(1, 0)).max(at(1, 1)));
                }
            }
        }
    }
    y
}

#[test]
fn both_passes_agree_with_the_reference() {
    let shapes = [
        dims(0, 4, 4, 3),
        dims(2, 1, 4, 3),
        dims(1, 4, 1, 3),
        dims(1, 2, 2, 0),
        dims(1, 2, 2, 1),
        dims(2, 5, 7, 3),
        dims(1, 4, 6, 17),
    ];
    for d in shapes {
        let (x, dy, before) = (numbers(d.in_len(), 1), numbers(d.out_len(), 2), numbers(d.in_len(), 3));
        let (mut y, mut argmax) = (vec![f32::NAN; d.out_len()], vec![9; d.out_len()]);
        forward(&d, &x, &mut y, &mut argmax);
        assert_close(&format!("{d:?}"), &y, &reference(&d, &wide(&x)), 0.0);
        let mut dx = before.clone();
        backward(&d, &argmax, &dy, &mut dx);
        let exact = gradient(&x, |x| dot(&reference(&d, x), &dy));
        assert_close(&format!("{d:?} dx"), &dx, &added(&before, &exact), 1e-6);
    }
}

#[test]
fn the_first_of_equal_maxima_and_a_nan_win() {
    let d = dims(1, 2, 2, 3);
    // Channel 0: all equal. Channel 1: two maxima, the later ones. Channel 2: a NaN before greater numbers.
    let x = [2.0, 1.0, 1.0, 2.0, 5.0, f32::NAN, 2.0, 3.0, 7.0, 2.0, 5.0, 8.0];
    let (mut y, mut argmax) = ([0.0; 3], [9; 3]);
    forward(&d, &x, &mut y, &mut argmax);
    assert_eq!((y[0], y[1], argmax), (2.0, 5.0, [0, 1, 1]));
    assert!(y[2].is_nan());
}

#[test]
fn bits_do_not_depend_on_threads() {
    let d = dims(5, 64, 64, 8);
    let (x, dy) = (numbers(d.in_len(), 1), numbers(d.out_len(), 2));
    assert_same_bits_for_any_pool(|| {
        let (mut y, mut argmax, mut dx) = (vec![0.0; d.out_len()], vec![0; d.out_len()], numbers(d.in_len(), 3));
        forward(&d, &x, &mut y, &mut argmax);
        backward(&d, &argmax, &dy, &mut dx);
        vec![y, argmax.iter().map(|a| f32::from(*a)).collect(), dx]
    });
}

#[test]
#[should_panic(expected = "max-pool: argmax has 0 elements, its dimensions ask for 1")]
fn lengths_are_checked() {
    forward(&dims(1, 2, 2, 1), &[0.0; 4], &mut [0.0], &mut []);
}
