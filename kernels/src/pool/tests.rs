use super::*;
use crate::act::Act;
use crate::simd::{Isa, dispatch_to};
use crate::testing::{self, added, assert_close, assert_same_bits_for_any_pool, dot, gradient, numbers, wide};

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

/// What a map makes of `x`, in f64.
fn read(x: &[f32], c: usize, sample: usize, map: &Map<'_>) -> Vec<f64> {
    let value = |(i, x): (usize, &f32)| {
        let k = i % c + if map.per_sample { i / sample * c } else { 0 };
        testing::act(map.act, f64::from(*x) * f64::from(map.scale[k]) + f64::from(map.shift[k]))
    };
    x.iter().enumerate().map(value).collect()
}

#[test]
fn what_is_pooled_may_be_mapped_on_every_instruction_set() {
    for d in [dims(1, 2, 2, 1), dims(2, 5, 7, 3), dims(3, 4, 6, 17), dims(2, 8, 4, 64)] {
        for (per_sample, act) in [(false, Act::Relu), (true, Act::Silu), (true, Act::None)] {
            let table = if per_sample { d.n * d.c } else { d.c };
            let (x, scale, shift) = (numbers(d.in_len(), 1), numbers(table, 2), numbers(table, 3));
            let map = Map { scale: &scale, shift: &shift, per_sample, act };
            let exact = reference(&d, &read(&x, d.c, d.h * d.w * d.c, &map));
            for &isa in Isa::available() {
                let what = format!("{d:?} {isa:?} {act:?}");
                let (mut y, mut argmax) = (vec![f32::NAN; d.out_len()], vec![9; d.out_len()]);
                let mut rows = vec![f32::NAN; 2 * d.w * d.c];
                let mut run = |argmax: Option<&mut [u8]>| {
                    let (x, rows) = (&x, &mut rows);
                    dispatch_to(isa, Forward { d: &d, x, map: Some(&map), first: 0, y: &mut y, argmax, rows });
                    assert_close(&what, &y, &exact, 1e-6);
                    y.clone()
                };
                let (with, without) = (run(Some(&mut argmax)), run(None));
                assert!(with == without && argmax.iter().all(|number| *number < 4), "{what}");
            }
            let (mut y, mut again) = (vec![f32::NAN; d.out_len()], vec![f32::NAN; d.out_len()]);
            forward_mapped(&d, &x, Some(&map), &mut y, None);
            forward_mapped(&d, &x, Some(&map), &mut again, Some(&mut vec![9; d.out_len()]));
            assert_close(&format!("{d:?}"), &y, &exact, 1e-6);
            assert!(y == again);
        }
    }
}

#[test]
fn gradients_may_be_overwritten_or_added_to_another_on_every_instruction_set() {
    for d in [dims(2, 1, 4, 3), dims(2, 5, 7, 3), dims(1, 4, 6, 17), dims(2, 6, 8, 48)] {
        let (x, dy) = (numbers(d.in_len(), 1), numbers(d.out_len(), 2));
        let (mut y, mut argmax) = (vec![0.0; d.out_len()], vec![9; d.out_len()]);
        forward(&d, &x, &mut y, &mut argmax);
        let exact = gradient(&x, |x| dot(&reference(&d, x), &dy));
        // The other gradient lies between channels that do not belong to it.
        let row = d.c + 5;
        let wide_gradient = numbers(d.n * d.h * d.w * row, 4);
        let other = ChannelSlice { data: &wide_gradient, row, offset: 2 };
        let other_values: Vec<f32> = (0..d.in_len()).map(|i| wide_gradient[i / d.c * row + 2 + i % d.c]).collect();
        let joined = added(&other_values, &exact);
        for &isa in Isa::available() {
            let run = |base: Base<'_>| {
                let mut dx = vec![f32::NAN; d.in_len()];
                dispatch_to(isa, Backward { d: &d, argmax: &argmax, dy: &dy, base, first: 0, dx: &mut dx });
                dx
            };
            assert_close(&format!("{d:?} {isa:?}"), &run(Base::Zero), &exact, 1e-6);
            assert_close(&format!("{d:?} {isa:?}"), &run(Base::Other(other)), &joined, 1e-6);
        }
        let mut dx = vec![f32::NAN; d.in_len()];
        backward_into(&d, &argmax, &dy, &mut dx);
        assert_close(&format!("{d:?}"), &dx, &exact, 1e-6);
        backward_with(&d, &argmax, &dy, other, &mut dx);
        assert_close(&format!("{d:?}"), &dx, &joined, 1e-6);
    }
}
