#![allow(dead_code, reason = "every test file uses a part of this")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use ndarray::{Array4, ArrayBase, Data, Ix4};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value};

/// A stored tensor.
pub struct Tensor {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

impl Tensor {
    pub fn images(&self) -> Array4<f32> {
        let shape: [usize; 4] = self.shape.as_slice().try_into().unwrap();
        Array4::from_shape_vec(shape, self.values.clone()).unwrap()
    }
}

pub fn folder() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "golden"].iter().collect()
}

/// The tensors of a golden file.
pub fn golden(name: &str) -> BTreeMap<String, Tensor> {
    let bytes = std::fs::read(folder().join(format!("{name}.safetensors"))).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let read = |view: safetensors::tensor::TensorView<'_>| match view.dtype() {
        Dtype::F32 => view.data().as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
        Dtype::I64 => view.data().as_chunks().0.iter().map(|&b| i64::from_le_bytes(b) as f32).collect(),
        other => panic!("unexpected type {other:?}"),
    };
    file.tensors()
        .into_iter()
        .map(|(name, view)| (name, Tensor { shape: view.shape().to_vec(), values: read(view) }))
        .collect()
}

/// The configuration beside a golden file.
pub fn config(name: &str) -> Map<String, Value> {
    let text = std::fs::read_to_string(folder().join(format!("{name}.json"))).unwrap();
    serde_json::from_str(&text).unwrap()
}

pub fn flat<S: Data<Elem = f32>>(x: &ArrayBase<S, Ix4>) -> &[f32] {
    x.as_slice().unwrap()
}

pub mod flat {
    pub fn norm(x: &[f32]) -> f64 {
        x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt()
    }
}

/// `|found - expected| / |expected|`; absolute where `expected` is zero.
pub fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let difference: Vec<f32> = found.iter().zip(expected).map(|(a, b)| a - b).collect();
    let size = flat::norm(expected);
    flat::norm(&difference) / if size == 0.0 { 1.0 } else { size }
}

/// The number u in [-1, 1) that the scripts behind the golden files document, for element `j` of the tensor at position `k`.
pub fn unit(k: usize, j: usize) -> f64 {
    let mut z = (((k as u64) << 32) + j as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^= z >> 31;
    (z >> 11) as f64 * (-52f64).exp2() - 1.0
}
