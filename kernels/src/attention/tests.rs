use super::*;
use crate::testing::{added, assert_close, assert_same_bits_for_any_pool, dot, gradient, numbers, wide};

fn dims(n: usize, q_len: usize, kv_len: usize, heads: usize, head_dim: usize) -> AttentionDims {
    AttentionDims { n, q_len, kv_len, heads, head_dim }
}

/// o and lse, element by element.
fn reference(d: &AttentionDims, q: &[f64], k: &[f64], v: &[f64]) -> (Vec<f64>, Vec<f64>) {
    reference_of(Sight::Full, d, q, k, v)
}

fn reference_of(sight: Sight, d: &AttentionDims, q: &[f64], k: &[f64], v: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let (mut o, mut lse) = (vec![0f64; d.q_elements()], vec![0f64; d.lse_len()]);
    let at = |n: usize, len: usize, i: usize, head: usize, x: usize| ((n * len + i) * d.heads + head) * d.head_dim + x;
    for n in 0..d.n {
        for head in 0..d.heads {
            for i in 0..d.q_len {
                let score = |j: usize| {
                    let product = |x| q[at(n, d.q_len, i, head, x)] * k[at(n, d.kv_len, j, head, x)];
                    (0..d.head_dim).map(product).sum::<f64>() / (d.head_dim as f64).sqrt()
                };
                let seen = if sight == Sight::Full { d.kv_len } else { d.kv_len.min(i + 1) };
                let scores: Vec<f64> = (0..seen).map(score).collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
                lse[(n * d.heads + head) * d.q_len + i] = max + sum.ln();
                for (j, s) in scores.iter().enumerate() {
                    for x in 0..d.head_dim {
                        o[at(n, d.q_len, i, head, x)] += (s - max).exp() / sum * v[at(n, d.kv_len, j, head, x)];
                    }
                }
            }
        }
    }
    (o, lse)
}

fn tensors(d: &AttentionDims) -> [Vec<f32>; 3] {
    [numbers(d.q_elements(), 1), numbers(d.kv_elements(), 2), numbers(d.kv_elements(), 3)]
}

#[test]
fn forward_agrees_with_the_reference_for_every_instruction_set() {
    let shapes = [
        dims(0, 3, 3, 1, 4),
        dims(1, 0, 3, 1, 4),
        dims(1, 1, 1, 1, 1),
        dims(2, 5, 7, 3, 3),
        dims(2, 49, 49, 2, 16),
        dims(1, 67, 31, 1, 33),
        dims(1, 197, 256, 1, 64),
        dims(1, 48, 17, 2, 128),
        dims(1, 50, 1700, 2, 5),
    ];
    for &isa in Isa::available() {
        for d in shapes {
            let [q, k, v] = tensors(&d);
            let (mut o, mut lse) = (vec![f32::NAN; d.q_elements()], vec![f32::NAN; d.lse_len()]);
            forward_with(isa, Sight::Full, &d, &q, &k, &v, &mut o, &mut lse);
            let (exact_o, exact_lse) = reference(&d, &wide(&q), &wide(&k), &wide(&v));
            assert_close(&format!("{isa:?} {d:?} o"), &o, &exact_o, 2e-6);
            assert_close(&format!("{isa:?} {d:?} lse"), &lse, &exact_lse, 1e-6);
        }
    }
}

#[test]
fn a_causal_attention_agrees_with_the_reference_for_every_instruction_set() {
    let shapes = [
        dims(1, 1, 1, 1, 1),
        dims(2, 5, 5, 3, 3),
        dims(2, 77, 77, 2, 16),
        dims(1, 850, 850, 1, 4),
        dims(1, 60, 20, 1, 4),
    ];
    for &isa in Isa::available() {
        for d in shapes {
            let [q, k, v] = tensors(&d);
            let (mut o, mut lse) = (vec![f32::NAN; d.q_elements()], vec![f32::NAN; d.lse_len()]);
            forward_with(isa, Sight::Causal, &d, &q, &k, &v, &mut o, &mut lse);
            let (exact_o, exact_lse) = reference_of(Sight::Causal, &d, &wide(&q), &wide(&k), &wide(&v));
            assert_close(&format!("{isa:?} {d:?} o"), &o, &exact_o, 2e-6);
            assert_close(&format!("{isa:?} {d:?} lse"), &lse, &exact_lse, 1e-6);
        }
    }
}

/// A later block whose scores are far larger or smaller than those before must not disturb the sums.
#[test]
fn blocks_of_very_different_scores_are_joined() {
    let d = dims(1, 3, 2000, 1, 2);
    for sizes in [[1.0, 40.0, 0.01], [40.0, 1.0, 90.0], [90.0, 0.0, 1.0]] {
        let [q, mut k, v] = tensors(&d);
        for (i, k) in k.iter_mut().enumerate() {
            *k *= sizes[i / 2 / KEYS];
        }
        let (mut o, mut lse) = (vec![f32::NAN; d.q_elements()], vec![f32::NAN; d.lse_len()]);
        forward(&d, &q, &k, &v, &mut o, &mut lse);
        let (exact_o, exact_lse) = reference(&d, &wide(&q), &wide(&k), &wide(&v));
        // Scores of some hundreds are rounded to some 1e-5, and their exponentials accordingly.
        assert_close("o", &o, &exact_o, 1e-4);
        assert_close("lse", &lse, &exact_lse, 1e-6);
    }
}

#[test]
fn gradients_agree_with_finite_differences_for_every_instruction_set() {
    for &isa in Isa::available() {
        for d in
            [dims(0, 2, 2, 1, 2), dims(1, 1, 1, 1, 1), dims(2, 3, 5, 2, 3), dims(1, 17, 5, 1, 4), dims(1, 53, 3, 1, 2)]
        {
            let [q, k, v] = tensors(&d);
            let (mut o, mut lse) = (vec![0.0; d.q_elements()], vec![0.0; d.lse_len()]);
            forward_with(isa, Sight::Full, &d, &q, &k, &v, &mut o, &mut lse);
            let d_o = numbers(d.q_elements(), 4);
            let before = [numbers(q.len(), 5), numbers(k.len(), 6), numbers(v.len(), 7)];
            let [mut dq, mut dk, mut dv] = before.clone();
            backward_with(isa, &d, &q, &k, &v, &o, &lse, &d_o, &mut dq, &mut dk, &mut dv);
            let (wq, wk, wv) = (wide(&q), wide(&k), wide(&v));
            let loss = |q: &[f64], k: &[f64], v: &[f64]| dot(&reference(&d, q, k, v).0, &d_o);
            let what = |name: &str| format!("{isa:?} {d:?} {name}");
            assert_close(&what("dq"), &dq, &added(&before[0], &gradient(&q, |q| loss(q, &wk, &wv))), 3e-6);
            assert_close(&what("dk"), &dk, &added(&before[1], &gradient(&k, |k| loss(&wq, k, &wv))), 3e-6);
            assert_close(&what("dv"), &dv, &added(&before[2], &gradient(&v, |v| loss(&wq, &wk, v))), 3e-6);
        }
    }
}

#[test]
fn directional_derivatives_of_larger_attentions_agree() {
    for d in [dims(2, 100, 49, 2, 16), dims(1, 64, 65, 1, 64)] {
        let [q, k, v] = tensors(&d);
        let (mut o, mut lse) = (vec![0.0; d.q_elements()], vec![0.0; d.lse_len()]);
        forward(&d, &q, &k, &v, &mut o, &mut lse);
        let d_o = numbers(d.q_elements(), 4);
        let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
        backward(&d, &q, &k, &v, &o, &lse, &d_o, &mut dq, &mut dk, &mut dv);
        for (which, (x, dx)) in [(&q, &dq), (&k, &dk), (&v, &dv)].into_iter().enumerate() {
            let direction = numbers(x.len(), 8);
            let at = |h: f64| {
                let mut all = [wide(&q), wide(&k), wide(&v)];
                all[which].iter_mut().zip(&direction).for_each(|(x, u)| *x += h * f64::from(*u));
                dot(&reference(&d, &all[0], &all[1], &all[2]).0, &d_o)
            };
            let slope = (at(1e-5) - at(-1e-5)) / 2e-5;
            let found = dot(&wide(dx), &direction);
            let size = dot(&wide(dx), dx).sqrt() * dot(&wide(&direction), &direction).sqrt();
            assert!((slope - found).abs() < 1e-6 * size, "{d:?} input {which}: {found}, by differences {slope}");
        }
    }
}

#[test]
fn large_scores_do_not_overflow() {
    let d = dims(1, 3, 20, 1, 4);
    let [mut q, k, v] = tensors(&d);
    q.iter_mut().for_each(|q| *q *= 500.0);
    let (mut o, mut lse) = (vec![0.0; d.q_elements()], vec![0.0; d.lse_len()]);
    forward(&d, &q, &k, &v, &mut o, &mut lse);
    let (exact_o, exact_lse) = reference(&d, &wide(&q), &wide(&k), &wide(&v));
    assert!(exact_lse.iter().any(|lse| *lse > 200.0), "the scores of this test are too small: {exact_lse:?}");
    assert_close("o", &o, &exact_o, 2e-4);
    assert_close("lse", &lse, &exact_lse, 1e-6);
}

#[test]
fn without_keys_the_output_is_zero() {
    let d = dims(1, 2, 0, 1, 3);
    let (mut o, mut lse) = ([1.0; 6], [1.0; 2]);
    forward(&d, &[1.0; 6], &[], &[], &mut o, &mut lse);
    assert_eq!((o, lse), ([0.0; 6], [f32::NEG_INFINITY; 2]));
    let mut dq = [3.0; 6];
    backward(&d, &[1.0; 6], &[], &[], &o, &lse, &[1.0; 6], &mut dq, &mut [], &mut []);
    assert_eq!(dq, [3.0; 6]);
}

#[test]
fn a_nan_is_not_hidden() {
    let d = dims(1, 2, 20, 1, 2);
    let [mut q, k, v] = tensors(&d);
    q[0] = f32::NAN;
    let (mut o, mut lse) = (vec![0.0; d.q_elements()], vec![0.0; d.lse_len()]);
    forward(&d, &q, &k, &v, &mut o, &mut lse);
    assert!(o[..2].iter().all(|o| o.is_nan()) && o[2..].iter().all(|o| o.is_finite()), "{o:?}");
}

#[test]
fn bits_do_not_depend_on_threads() {
    let d = dims(2, 250, 77, 3, 20);
    let [q, k, v] = tensors(&d);
    let d_o = numbers(d.q_elements(), 4);
    assert_same_bits_for_any_pool(|| {
        let (mut o, mut lse) = (vec![0.0; d.q_elements()], vec![0.0; d.lse_len()]);
        forward(&d, &q, &k, &v, &mut o, &mut lse);
        let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
        backward(&d, &q, &k, &v, &o, &lse, &d_o, &mut dq, &mut dk, &mut dv);
        vec![o, lse, dq, dk, dv]
    });
}

#[test]
#[should_panic(expected = "attention: lse has 1 elements, its dimensions ask for 2")]
fn lengths_are_checked() {
    forward(&dims(1, 2, 1, 1, 1), &[0.0; 2], &[0.0], &[0.0], &mut [0.0; 2], &mut [0.0]);
}
