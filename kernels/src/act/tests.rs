use super::*;
use crate::par::CHUNK;
use crate::simd::{Isa, dispatch_to};
use crate::testing::{self, ACTS, added, assert_close, assert_same_bits_for_any_pool, dot, gradient, numbers};

#[test]
fn values_and_slopes_agree_with_f64_for_every_instruction_set() {
    for &isa in Isa::available() {
        for act in ACTS {
            for len in [0, 1, 2, 7, 8, 15, 16, 17, 31, 67] {
                let (x, dy, before) = (numbers(len, 1), numbers(len, 2), numbers(len, 3));
                let mut y = vec![f32::NAN; len];
                dispatch_to(isa, Forward { act, x: &x, y: &mut y });
                let exact: Vec<f64> = x.iter().map(|x| testing::act(act, f64::from(*x))).collect();
                assert_close(&format!("{isa:?} {act:?}"), &y, &exact, 3e-7);

                let mut dx = before.clone();
                dispatch_to(isa, Backward { act, x: &x, dy: &dy, dx: &mut dx });
                let loss = |x: &[f64]| dot(&x.iter().map(|x| testing::act(act, *x)).collect::<Vec<_>>(), &dy);
                assert_close(&format!("{isa:?} {act:?} dx"), &dx, &added(&before, &gradient(&x, loss)), 1e-6);
            }
        }
    }
}

#[test]
fn smooth_activations_are_accurate_over_all_magnitudes() {
    let x: Vec<f32> = (-3000..3000).map(|i| i as f32 * 0.05).chain((-37..38).map(|e| 10f32.powi(e))).collect();
    for (act, relative) in [(Act::Silu, 5e-7), (Act::Gelu, 5e-6), (Act::Mish, 5e-7), (Act::QuickGelu, 2e-5)] {
        let mut y = vec![0.0; x.len()];
        let mut slope = vec![0.0; x.len()];
        forward(act, &x, &mut y);
        backward(act, &x, &vec![1.0; x.len()], &mut slope);
        for ((&x, &y), &slope) in x.iter().zip(&y).zip(&slope) {
            let wide = f64::from(x);
            let exact = testing::act(act, wide);
            // Relative, down to where f32 itself becomes coarse. The exponent -x^2/2 of GELU is large in its tail, and so is
            // its rounding.
            assert!(
                (f64::from(y) - exact).abs() <= relative * exact.abs() + 1e-36,
                "{act:?}({x}) = {y}, exactly {exact}"
            );
            let exact = testing::slope(act, wide);
            assert!((f64::from(slope) - exact).abs() <= 6e-7, "{act:?}'({x}) = {slope}, exactly {exact}");
        }
    }
}

#[test]
fn gates_are_opened_by_gelu() {
    for (rows, c) in [(0, 3), (1, 1), (3, 7), (2, 16), (5, 37), (300, 128)] {
        let x = numbers(2 * rows * c, 1);
        let mut y = vec![f32::NAN; rows * c];
        geglu(c, &x, &mut y);
        let exact: Vec<f64> = (0..rows * c)
            .map(|i| {
                let row = &x[i / c * 2 * c..][..2 * c];
                f64::from(row[i % c]) * testing::act(Act::Gelu, f64::from(row[c + i % c]))
            })
            .collect();
        assert_close(&format!("{rows} {c}"), &y, &exact, 6e-7);
    }
}

#[test]
fn a_nan_is_not_hidden() {
    for act in ACTS {
        let mut y = [0.0; 3];
        forward(act, &[1.0, f32::NAN, -1.0], &mut y);
        assert!(y[1].is_nan() && !y[0].is_nan() && !y[2].is_nan(), "{act:?}: {y:?}");
    }
}

#[test]
fn the_slope_of_relu_at_zero_is_zero() {
    let mut dx = [1.0, 1.0, 1.0];
    backward(Act::Relu, &[0.0, -0.0, f32::MIN_POSITIVE], &[5.0; 3], &mut dx);
    assert_eq!(dx, [1.0, 1.0, 6.0]);
}

#[test]
fn bits_do_not_depend_on_threads() {
    let len = 3 * CHUNK + 13;
    let (x, dy) = (numbers(len, 1), numbers(len, 2));
    for act in ACTS {
        assert_same_bits_for_any_pool(|| {
            let (mut y, mut dx) = (vec![0.0; len], numbers(len, 3));
            forward(act, &x, &mut y);
            backward(act, &x, &dy, &mut dx);
            vec![y, dx]
        });
    }
}

#[test]
#[should_panic(expected = "activation: y has 2 elements, its dimensions ask for 3")]
fn lengths_are_checked() {
    forward(Act::Relu, &[0.0; 3], &mut [0.0; 2]);
}
