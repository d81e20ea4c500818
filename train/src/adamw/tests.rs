use proptest::prelude::*;

use super::*;

/// A matrix and a vector that are trained, a buffer and a counter that are not.
fn params(shapes: &[(&str, &[usize], Role)]) -> Params {
    let mut params = Params::new();
    for (name, shape, role) in shapes {
        params.add(*name, shape, *role);
    }
    for (i, value) in params.values_mut().iter_mut().enumerate() {
        *value = ((i * 37 + 11) % 101) as f32 / 50.0 - 1.0;
    }
    params
}

/// A gradient that is a fixed function of the step and the element.
fn gradient(n: usize, step: u64) -> Vec<f32> {
    (0..n as u64).map(|i| ((i * 7919 + step * 104_729) % 1009) as f32 / 300.0 - 1.7).collect()
}

fn update(optimizer: &mut Optimizer, params: &mut Params, grads: &[f32], step: u64, lr: f64, clip: f64) {
    optimizer.update(params.values_mut(), grads, step, lr, global_norm(grads), clip);
}

/// Values of `torch.optim.AdamW` (2.15, float32) after `clip_grad_norm_(1.0)`, with the moving average taken beside it.
#[test]
fn three_steps_meet_pytorch() {
    let mut params = params(&[("w", &[2, 2], Role::Weight), ("b", &[2], Role::Weight)]);
    params.values_mut().copy_from_slice(&[1.0, -0.5, 0.25, 2.0, 0.1, -0.2]);
    let mut optimizer = Optimizer::new(&params, AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1 }, 0.9);
    let steps = [
        (
            [0.3, -1.2, 0.0, 2.5, 0.7, -0.1],
            2.877_498_9,
            [0.945, -0.447_5, 0.248_75, 1.940_000_1, 0.05, -0.15],
            [0.955, -0.457_045_44, 0.248_977_27, 1.950_909_1, 0.059_090_91, -0.159_090_92],
        ),
        (
            [-0.4, 0.2, 0.01, -0.3, 0.05, 0.6],
            0.807_836_7,
            [0.967_779_87, -0.431_132_47, 0.210_383_31, 1.910_748_1, 0.009_605_315, -0.185_129_55],
            [0.964_584_9, -0.437_610_72, 0.220_031_8, 1.920_788_4, 0.021_976_713, -0.178_619_9],
        ),
        (
            [3.0, -4.0, 1.0, 0.5, -2.0, 1.5],
            5.700_877_2,
            [0.951_005_1, -0.396_368_98, 0.175_956_6, 1.883_067, 0.017_678_462, -0.222_847_7],
            [0.955_183_5, -0.409_058_75, 0.189_518_21, 1.894_673_6, 0.019_001_001, -0.209_239_16],
        ),
    ];
    for (step, (grads, norm, values, ema)) in (1..).zip(steps) {
        let grads = grads.map(|g: f64| g as f32);
        assert!((global_norm(&grads) - norm).abs() < 1e-6);
        update(&mut optimizer, &mut params, &grads, step, 0.05, 1.0);
        for i in 0..6 {
            assert!((f64::from(params.values()[i]) - values[i]).abs() < 4e-7, "step {step}, value {i}: {params:?}");
            assert!((f64::from(optimizer.ema()[i]) - ema[i]).abs() < 4e-7, "step {step}, average {i}: {optimizer:?}");
        }
    }
}

/// The same update in f64, one element at a time, from the formulas of the module.
#[derive(Clone, Default)]
struct Reference {
    theta: Vec<f64>,
    m: Vec<f64>,
    v: Vec<f64>,
    ema: Vec<f64>,
}

fn reference(
    state: &mut Reference,
    params: &Params,
    grads: &[f32],
    step: u64,
    lr: f64,
    clip: f64,
    decay: f64,
    h: AdamW,
) {
    let norm = grads.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
    let d = decay.min((1.0 + step as f64) / (10.0 + step as f64));
    for param in params.table() {
        for i in param.range.clone() {
            if param.role == Role::Weight {
                let g = f64::from(grads[i]) * if norm > clip { clip / (norm + 1e-6) } else { 1.0 };
                if param.shape.len() >= 2 {
                    state.theta[i] *= 1.0 - lr * h.weight_decay;
                }
                state.m[i] = h.beta1 * state.m[i] + (1.0 - h.beta1) * g;
                state.v[i] = h.beta2 * state.v[i] + (1.0 - h.beta2) * g * g;
                let m = state.m[i] / (1.0 - h.beta1.powi(step as i32));
                let v = state.v[i] / (1.0 - h.beta2.powi(step as i32));
                state.theta[i] -= lr * m / (v.sqrt() + h.eps);
                state.ema[i] = d * state.ema[i] + (1.0 - d) * state.theta[i];
            } else {
                state.ema[i] = state.theta[i];
            }
        }
    }
}

#[test]
fn many_steps_over_many_chunks_meet_the_f64_reference() {
    let shapes: &[(&str, &[usize], Role)] = &[
        ("scalar", &[], Role::Weight),
        ("conv", &[37, 11, 3, 3], Role::Weight),
        ("empty", &[0, 4], Role::Weight),
        ("bias", &[CHUNK + 1], Role::Weight),
        ("mean", &[997], Role::Buffer),
        ("linear", &[129, 257], Role::Weight),
        ("count", &[], Role::Counter),
    ];
    let mut params = params(shapes);
    let hyper = AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-6, weight_decay: 0.05 };
    let (lr, clip, decay) = (0.01, 30.0, 0.6);
    let mut optimizer = Optimizer::new(&params, hyper, decay);
    let widen = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
    let n = params.len();
    let mut state =
        Reference { theta: widen(params.values()), m: vec![0.0; n], v: vec![0.0; n], ema: widen(params.values()) };
    let untouched = params.clone();
    for step in 1..=12 {
        let mut grads = gradient(n, step);
        for param in untouched.table().iter().filter(|param| param.role != Role::Weight) {
            grads[param.range.clone()].fill(0.0);
        }
        if step % 3 == 0 {
            grads.iter_mut().for_each(|g| *g *= 0.01);
        }
        assert_eq!(global_norm(&grads) > clip, step % 3 != 0, "some steps are clipped and some are not");
        update(&mut optimizer, &mut params, &grads, step, lr, clip);
        reference(&mut state, &untouched, &grads, step, lr, clip, decay, hyper);
    }
    for (what, got, want) in [
        ("value", params.values(), &state.theta),
        ("first moment", optimizer.first_moment(), &state.m),
        ("second moment", optimizer.second_moment(), &state.v),
        ("average", optimizer.ema(), &state.ema),
    ] {
        for i in 0..n {
            assert!(
                (f64::from(got[i]) - want[i]).abs() <= 2e-6 * want[i].abs().max(0.1),
                "{what} {i}: {} {}",
                got[i],
                want[i]
            );
        }
    }
    for name in ["mean", "count"] {
        assert_eq!(params.get(name), untouched.get(name), "{name} is not the optimiser's to change");
    }
}

#[test]
fn buffers_are_copied_into_the_average_and_weights_are_not() {
    let mut params = params(&[("w", &[3], Role::Weight), ("mean", &[3], Role::Buffer), ("n", &[], Role::Counter)]);
    let mut optimizer = Optimizer::new(&params, AdamW::default(), 0.999);
    params.values_mut()[3..].copy_from_slice(&[5.0, 6.0, 7.0, 8.0]);
    update(&mut optimizer, &mut params, &[1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0], 1, 0.1, 1.0);
    assert_eq!(optimizer.ema()[3..], [5.0, 6.0, 7.0, 8.0]);
    assert!((0..3).all(|i| optimizer.ema()[i] != params.values()[i]));
}

#[test]
fn a_frozen_row_of_zeros_stays_zero() {
    let mut params = params(&[("embedding", &[2, 3], Role::Weight)]);
    params.values_mut()[3..].fill(0.0);
    let mut optimizer = Optimizer::new(&params, AdamW { weight_decay: 0.5, ..AdamW::default() }, 0.9);
    for step in 1..=20 {
        update(&mut optimizer, &mut params, &[1.0, -1.0, 2.0, 0.0, 0.0, 0.0], step, 0.1, 1.0);
    }
    assert_eq!(params.values()[3..], [0.0; 3]);
    assert_eq!(optimizer.ema()[3..], [0.0; 3]);
}

#[test]
fn the_norm_and_the_update_have_the_same_bits_for_any_number_of_threads() {
    let run = |threads| {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| {
            let mut params = params(&[("a", &[300, 301], Role::Weight), ("b", &[77], Role::Weight)]);
            let mut optimizer = Optimizer::new(&params, AdamW::default(), 0.99);
            let mut norms = Vec::new();
            for step in 1..=3 {
                let grads = gradient(params.len(), step);
                norms.push(global_norm(&grads).to_bits());
                update(&mut optimizer, &mut params, &grads, step, 1e-2, 1.0);
            }
            let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            (norms, bits(params.values()), bits(optimizer.ema()), bits(optimizer.second_moment()))
        })
    };
    let one = run(1);
    for threads in [2, 3, 7] {
        assert_eq!(one, run(threads), "{threads} threads");
    }
}

#[test]
fn the_norm_is_not_finite_exactly_when_an_element_is_not() {
    assert_eq!(global_norm(&[]), 0.0);
    assert_eq!(global_norm(&[3.0, 4.0]), 5.0);
    assert!(global_norm(&vec![f32::MAX; 50_000]).is_finite());
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut values = vec![1.0; 50_000];
        values[33_333] = bad;
        assert!(!global_norm(&values).is_finite(), "{bad}");
    }
}

proptest! {
    #[test]
    fn clipping_bounds_the_norm_and_keeps_the_direction(norm in 0f64..1e6, clip in 1e-3f64..1e3) {
        let factor = clip_factor(norm, clip);
        prop_assert!(factor > 0.0 && factor <= 1.0);
        prop_assert!(norm * factor <= clip);
        if norm + 1e-6 < clip {
            prop_assert_eq!(factor, 1.0);
        } else {
            prop_assert!((norm * factor - clip).abs() <= 1.1e-6);
        }
    }

    #[test]
    fn the_norm_is_that_of_a_plain_sum(values in prop::collection::vec(-1e3f32..1e3, 0..300)) {
        let plain = values.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt();
        prop_assert_eq!(global_norm(&values), plain);
    }
}

#[test]
fn an_infinite_clip_norm_clips_nothing() {
    assert_eq!(clip_factor(1e30, f64::INFINITY), 1.0);
}
