use super::*;
use crate::simd::{Isa, dispatch_to};
use crate::testing::{assert_close, assert_same_bits_for_any_pool, numbers, wide};

#[test]
fn concatenation_and_its_backward_pass() {
    for (rows, c_a, c_b) in [(0, 2, 3), (1, 1, 1), (3, 0, 5), (4, 5, 0), (2, 0, 0), (7, 17, 3), (2000, 5, 16)] {
        let (a, b) = (numbers(rows * c_a, 1), numbers(rows * c_b, 2));
        let c = c_a + c_b;
        let mut y = vec![f32::NAN; rows * c];
        concat(rows, &a, c_a, &b, c_b, &mut y);
        for i in 0..rows * c {
            let (r, k) = (i / c, i % c);
            let exact = if k < c_a { a[r * c_a + k] } else { b[r * c_b + k - c_a] };
            assert_eq!(y[i], exact, "{rows} {c_a} {c_b} at {i}");
        }
        let dy = numbers(rows * c, 3);
        let (mut da, mut db) = (vec![1.0; rows * c_a], vec![2.0; rows * c_b]);
        concat_backward(rows, &dy, &mut da, c_a, &mut db, c_b);
        for i in 0..rows * c {
            let (r, k) = (i / c, i % c);
            let (found, before) = if k < c_a { (da[r * c_a + k], 1.0) } else { (db[r * c_b + k - c_a], 2.0) };
            assert_eq!(found, before + dy[i], "{rows} {c_a} {c_b} at {i}");
        }
    }
}

#[test]
fn bias_and_its_backward_pass() {
    for (n, hw, c) in [(0, 3, 2), (2, 0, 3), (2, 3, 0), (1, 1, 1), (3, 7, 5), (2, 3000, 17)] {
        let (bias, before, dy) = (numbers(n * c, 1), numbers(n * hw * c, 2), numbers(n * hw * c, 3));
        let mut y = before.clone();
        add_bias(n, hw, c, &bias, &mut y);
        let sample = hw * c;
        for i in 0..n * sample {
            assert_eq!(y[i], before[i] + bias[i / sample * c + i % c], "{n} {hw} {c} at {i}");
        }
        let mut dbias = numbers(n * c, 4);
        let mut exact = wide(&dbias);
        for i in 0..n * sample {
            exact[i / sample * c + i % c] += f64::from(dy[i]);
        }
        add_bias_backward(n, hw, c, &dy, &mut dbias);
        assert_close(&format!("{n} {hw} {c}"), &dbias, &exact, 2e-6);
    }
}

#[test]
fn residual_sums() {
    for len in [0, 1, 37, 40_000] {
        let (x, before) = (numbers(len, 1), numbers(len, 2));
        let mut y = before.clone();
        add(&x, &mut y);
        assert!((0..len).all(|i| y[i] == before[i] + x[i]), "{len}");
    }
}

#[test]
fn layouts() {
    for (n, c, hw) in [(0, 2, 2), (1, 0, 3), (1, 3, 0), (1, 1, 1), (2, 3, 5), (3, 17, 49), (2, 70, 300)] {
        let x = numbers(n * c * hw, 1);
        let (mut y, mut back) = (vec![f32::NAN; x.len()], vec![f32::NAN; x.len()]);
        nchw_to_nhwc(n, c, hw, &x, &mut y);
        for i in 0..y.len() {
            let (sample, position, channel) = (i / (hw * c), i / c % hw, i % c);
            assert_eq!(y[i], x[(sample * c + channel) * hw + position], "{n} {c} {hw} at {i}");
        }
        nhwc_to_nchw(n, c, hw, &y, &mut back);
        assert_eq!(back, x);
    }
}

#[test]
fn bits_do_not_depend_on_threads() {
    let (n, hw, c) = (3, 900, 33);
    let (x, dy) = (numbers(n * hw * c, 1), numbers(n * hw * c, 2));
    assert_same_bits_for_any_pool(|| {
        let (mut dbias, mut sum, mut turned) = (vec![0.0; n * c], dy.clone(), vec![0.0; n * hw * c]);
        add_bias_backward(n, hw, c, &dy, &mut dbias);
        add(&x, &mut sum);
        add_bias(n, hw, c, &dbias, &mut sum);
        nhwc_to_nchw(n, c, hw, &sum, &mut turned);
        let (mut da, mut db) = (vec![0.0; n * hw * 13], vec![0.0; n * hw * 20]);
        concat_backward(n * hw, &dy, &mut da, 13, &mut db, 20);
        let mut joined = vec![0.0; n * hw * c];
        concat(n * hw, &da, 13, &db, 20, &mut joined);
        vec![dbias, sum, turned, da, db, joined]
    });
}

#[test]
#[should_panic(expected = "concat: b has 1 elements, its dimensions ask for 2")]
fn lengths_are_checked() {
    concat(1, &[0.0], 1, &[0.0], 2, &mut [0.0; 3]);
}

#[test]
fn sums_and_additions_agree_with_f64_on_every_instruction_set() {
    for &isa in Isa::available() {
        for (rows, c) in [(1, 1), (7, 1), (500, 1), (131, 2), (97, 3), (65, 4), (3, 5), (33, 17), (6, 64), (11, 131)] {
            let (x, before) = (numbers(rows * c, 1), numbers(rows * c, 2));
            let (mut sums, mut y) = (vec![f32::NAN; c], before.clone());
            dispatch_to(isa, SumRows { c, x: &x, sums: &mut sums });
            let exact: Vec<f64> = (0..c).map(|k| x.iter().skip(k).step_by(c).map(|x| f64::from(*x)).sum()).collect();
            assert_close(&format!("{isa:?} {rows}x{c}"), &sums, &exact, 2e-6);
            // Rows in reverse, without the first channel.
            let slice = ChannelSlice { data: &x, row: c, offset: 1 };
            dispatch_to(isa, AddRows { c: c - 1, x: slice, y: &mut y[..rows * (c - 1)], row: |i| rows - 1 - i });
            for (i, y) in y[..rows * (c - 1)].iter().enumerate() {
                let from = (rows - 1 - i / (c - 1)) * c + 1 + i % (c - 1);
                assert_eq!(*y, before[i] + x[from], "{isa:?} {rows}x{c} at {i}");
            }
        }
    }
}

#[test]
fn a_sample_does_not_depend_on_its_neighbours() {
    for (hw, c) in [(5, 7), (900, 33), (16, 64)] {
        let n = 40;
        let dy = numbers(n * hw * c, 1);
        let (mut all, mut one) = (vec![0.0; n * c], vec![0.0; c]);
        add_bias_backward(n, hw, c, &dy, &mut all);
        add_bias_backward(1, hw, c, &dy[(n - 1) * hw * c..], &mut one);
        assert_eq!(all[(n - 1) * c..], one, "{hw} {c}");
    }
}
