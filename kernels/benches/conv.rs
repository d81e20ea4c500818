//! Convolutions of the textbook U-Net and of the bundled model: verified against a plain sum, then timed.
//!
//! `cargo bench -p tweedie-kernels` prints a time and the work per second, a multiplication and an addition of the
//! direct sum counted as two operations (so that a faster algorithm shows as more work per second).

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tweedie_kernels::Floats;
use tweedie_kernels::conv::{ConvDims, Filter, backward_input, backward_weight, forward};

fn shapes() -> [ConvDims; 7] {
    [
        ConvDims::same(64, 28, 28, 64, 64, 3),
        ConvDims::same(64, 14, 14, 128, 128, 3),
        ConvDims::same(64, 7, 7, 256, 256, 3),
        ConvDims::same(64, 28, 28, 32, 32, 3),
        ConvDims::same(64, 28, 28, 1, 64, 3),
        ConvDims::same(64, 14, 14, 128, 128, 1),
        ConvDims { stride: 2, ..ConvDims::same(64, 28, 28, 32, 32, 3) },
    ]
}

/// Numbers in [-1, 1) without a visible pattern.
fn numbers(len: usize, seed: u64) -> Vec<f32> {
    let mix = |i: u64| (i ^ seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ ((i + seed) << 7);
    (0..len as u64).map(|i| (mix(mix(i)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0).collect()
}

/// Numbers that lie in memory as a network's activations do.
fn activation(len: usize, seed: u64) -> Floats {
    let mut floats = Floats::zeros(len);
    floats.copy_from_slice(&numbers(len, seed));
    floats
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Compares some outputs with the sum that defines them.
fn verify(d: &ConvDims, x: &[f32], w: &[f32], y: &[f32]) {
    let (out_h, out_w) = (d.out_h(), d.out_w());
    let (mut distance, mut norm) = (0.0, 0.0);
    for sample in 0..512 {
        let at = sample * 7919 % y.len();
        let (o, j, i, n) =
            (at % d.c_out, at / d.c_out % out_w, at / d.c_out / out_w % out_h, at / d.c_out / out_w / out_h);
        let mut sum = 0.0;
        for (u, v) in (0..d.kernel).flat_map(|u| (0..d.kernel).map(move |v| (u, v))) {
            let (k, l) = ((d.stride * i + u).wrapping_sub(d.pad_before), (d.stride * j + v).wrapping_sub(d.pad_before));
            if k < d.h && l < d.w {
                for c in 0..d.c_in {
                    sum += f64::from(x[((n * d.h + k) * d.w + l) * d.c_in + c])
                        * f64::from(w[((o * d.c_in + c) * d.kernel + u) * d.kernel + v]);
                }
            }
        }
        distance += (sum - f64::from(y[at])).powi(2);
        norm += sum * sum;
    }
    let error = (distance / norm).sqrt();
    assert!(error < 1e-5, "{d:?}: relative error {error:e}; a wrong kernel is not timed");
}

fn convolutions(criterion: &mut Criterion) {
    for d in shapes() {
        let (x, w, dy) = (activation(d.in_len(), 1), numbers(d.weight_len(), 2), activation(d.out_len(), 3));
        let (mut y, mut dx, mut dw) =
            (Floats::zeros(d.out_len()), Floats::zeros(d.in_len()), vec![0.0; d.weight_len()]);
        let mut filter = Filter::new(d.kernel, d.c_in, d.c_out);
        filter.pack(&w, true);
        forward(&d, &x, &filter, None, &mut y);
        verify(&d, &x, &w, &y);
        // The gradients belong to the adjoint maps: <dy, conv x> = <dx, x> = <dw, w>.
        backward_input(&d, &filter, &dy, &mut dx);
        backward_weight(&d, &x, &dy, &mut dw, None);
        let (along_y, scale) = (dot(&dy, &y), dot(&y, &y).sqrt() * dot(&dy, &dy).sqrt());
        for (name, product) in [("input", dot(&dx, &x)), ("weight", dot(&dw, &w))] {
            let error = (product - along_y).abs() / scale;
            assert!(error < 1e-6, "{d:?}: the gradient of the {name} is off by {error:e}; a wrong kernel is not timed");
        }
        let name = format!("{}x{}x{}x{} to {} k{} s{}", d.n, d.h, d.w, d.c_in, d.c_out, d.kernel, d.stride);
        let mut group = criterion.benchmark_group(name);
        group.sample_size(10).throughput(Throughput::Elements(d.flops()));
        group.bench_function(BenchmarkId::from_parameter("forward"), |b| {
            b.iter(|| forward(&d, black_box(&x), &filter, None, &mut y));
        });
        group.bench_function(BenchmarkId::from_parameter("backward_input"), |b| {
            b.iter(|| backward_input(&d, &filter, black_box(&dy), &mut dx));
        });
        group.bench_function(BenchmarkId::from_parameter("backward_weight"), |b| {
            b.iter(|| backward_weight(&d, black_box(&x), &dy, &mut dw, None));
        });
        group.bench_function(BenchmarkId::from_parameter("pack"), |b| b.iter(|| filter.pack(black_box(&w), true)));
        group.finish();
    }
}

criterion_group!(benches, convolutions);
criterion_main!(benches);
