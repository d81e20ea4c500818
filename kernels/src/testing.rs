//! What the tests of the operations share: numbers, comparison of whole tensors, finite differences, thread pools.

use crate::act::Act;

/// Numbers in [-2, 2), the same for the same seed.
pub(crate) fn numbers(len: usize, seed: u64) -> Vec<f32> {
    let hash = |i: u64| {
        // SplitMix64 (Steele, Lea and Flood 2014).
        let mut z = (i ^ seed.wrapping_mul(0xd134_2543_de82_ef95)).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    (0..len as u64).map(|i| ((hash(i) >> 40) as f64 / (1u64 << 22) as f64 - 2.0) as f32).collect()
}

/// The same numbers in f64.
pub(crate) fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

/// `|a - b| / |b|` in the Euclidean norm; for an empty or zero reference, `|a|`.
pub(crate) fn relative_error(found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let distance: f64 = found.iter().zip(expected).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum();
    let norm: f64 = expected.iter().map(|b| b * b).sum();
    if norm == 0.0 { distance.sqrt() } else { (distance / norm).sqrt() }
}

/// Asserts that each element is within `tolerance` times the largest magnitude of the exact tensor (at least 1).
#[track_caller]
pub(crate) fn assert_close(what: &str, found: &[f32], exact: &[f64], tolerance: f64) {
    assert_eq!(found.len(), exact.len(), "{what}");
    let scale = exact.iter().fold(1f64, |scale, x| scale.max(x.abs()));
    for (i, (found, exact)) in found.iter().zip(exact).enumerate() {
        let error = (f64::from(*found) - exact).abs();
        assert!(error <= tolerance * scale, "{what}: element {i} is {found}, exactly {exact}, at a scale of {scale}");
    }
}

/// All partial derivatives of `f` at `x`, by central differences.
pub(crate) fn gradient(x: &[f32], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let mut x = wide(x);
    let h = 1e-5;
    (0..x.len())
        .map(|i| {
            let at = x[i];
            x[i] = at + h;
            let above = f(&x);
            x[i] = at - h;
            let below = f(&x);
            x[i] = at;
            (above - below) / (2.0 * h)
        })
        .collect()
}

/// The sum of the products of two tensors.
pub(crate) fn dot(a: &[f64], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a * f64::from(*b)).sum()
}

/// What a gradient that held `before` should hold after `gradient` was added to it.
pub(crate) fn added(before: &[f32], gradient: &[f64]) -> Vec<f64> {
    before.iter().zip(gradient).map(|(b, g)| f64::from(*b) + g).collect()
}

/// Asserts that `f` gives the same bits in pools of 1, 2, 3 and 8 threads.
#[track_caller]
pub(crate) fn assert_same_bits_for_any_pool(f: impl Fn() -> Vec<Vec<f32>> + Sync) {
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        let tensors = pool.install(&f);
        tensors.into_iter().map(|t| t.into_iter().map(f32::to_bits).collect::<Vec<_>>()).collect::<Vec<_>>()
    };
    let one = run(1);
    for threads in [2, 3, 8] {
        assert!(run(threads) == one, "the bits differ between pools of 1 and of {threads} threads");
    }
}

/// Every activation.
pub(crate) const ACTS: [Act; 6] = [Act::None, Act::Silu, Act::Relu, Act::Gelu, Act::Mish, Act::QuickGelu];

/// An activation in f64.
pub(crate) fn act(act: Act, x: f64) -> f64 {
    match act {
        Act::None => x,
        Act::Silu => x / (1.0 + (-x).exp()),
        Act::Relu => x.max(0.0),
        Act::Gelu => x * normal_distribution(x),
        Act::Mish => x * x.exp().ln_1p().tanh(),
        Act::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
    }
}

/// The slope of an activation in f64.
pub(crate) fn slope(act: Act, x: f64) -> f64 {
    let sigmoid = 1.0 / (1.0 + (-x).exp());
    match act {
        Act::None => 1.0,
        Act::Silu => sigmoid * (1.0 + x * (1.0 - sigmoid)),
        Act::Relu => f64::from(u8::from(x > 0.0)),
        Act::Gelu => normal_distribution(x) + x * (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt(),
        Act::Mish => {
            let t = x.exp().ln_1p().tanh();
            t + x * (1.0 - t * t) * sigmoid
        }
        Act::QuickGelu => {
            let sigmoid = 1.0 / (1.0 + (-1.702 * x).exp());
            sigmoid * (1.0 + 1.702 * x * (1.0 - sigmoid))
        }
    }
}

/// Phi(x): Phi(-|x|) by its continued fraction far from zero, and 1/2 + phi(x) (x + x^3/3 + x^5/15 + …) near it.
fn normal_distribution(x: f64) -> f64 {
    let density = (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt();
    let size = x.abs();
    let tail = if size > 4.0 {
        density / (1..200).rev().fold(size, |f, k| size + f64::from(k) / f)
    } else {
        let terms = (1..80).scan(size, |term, k| {
            let present = *term;
            *term *= size * size / f64::from(2 * k + 1);
            Some(present)
        });
        0.5 - density * terms.sum::<f64>()
    };
    if x > 0.0 { 1.0 - tail } else { tail }
}
