#![allow(dead_code, reason = "every test file uses a part of this")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use ndarray::{Array, ArrayD, Dimension};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value};
use tweedie_kernels::weight::Stored;
use tweedie_unet::{UnetError, WeightSource};

/// A stored tensor.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

impl Tensor {
    /// As an array of known dimensions.
    pub fn array<D: Dimension>(&self) -> Array<f32, D> {
        let array = ArrayD::from_shape_vec(self.shape.clone(), self.values.clone()).unwrap();
        array.into_dimensionality().unwrap()
    }

    /// The rows of a matrix of token numbers.
    pub fn texts(&self) -> Vec<Vec<u32>> {
        self.values.chunks_exact(self.shape[1]).map(|row| row.iter().map(|id| *id as u32).collect()).collect()
    }
}

pub fn folder() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "golden"].iter().collect()
}

pub fn text(path: &str) -> Option<String> {
    std::fs::read_to_string(folder().join(path)).ok()
}

pub fn json(path: &str) -> Value {
    serde_json::from_str(&text(path).unwrap()).unwrap()
}

pub fn config(name: &str) -> Map<String, Value> {
    json(&format!("{name}.json")).as_object().unwrap().clone()
}

/// The tensors of a golden file.
pub fn golden(name: &str) -> BTreeMap<String, Tensor> {
    let bytes = std::fs::read(folder().join(format!("{name}.safetensors"))).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let read = |view: safetensors::tensor::TensorView<'_>| match view.dtype() {
        Dtype::F32 => view.data().as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
        Dtype::I64 => view.data().as_chunks().0.iter().map(|&b| i64::from_le_bytes(b) as f32).collect(),
        Dtype::U8 => view.data().iter().map(|&b| f32::from(b)).collect(),
        other => panic!("unexpected type {other:?}"),
    };
    file.tensors()
        .into_iter()
        .map(|(name, view)| (name, Tensor { shape: view.shape().to_vec(), values: read(view) }))
        .collect()
}

/// Weights in memory.
#[derive(Debug, Default)]
pub struct Memory(pub BTreeMap<String, Tensor>);

impl Memory {
    pub fn renamed(self, rename: impl Fn(&str) -> Option<String>) -> Self {
        Self(self.0.into_iter().map(|(name, tensor)| (rename(&name).unwrap_or(name), tensor)).collect())
    }

    fn find(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, UnetError> {
        let wrong = |message: String| UnetError::Weight { name: name.into(), message };
        let tensor = self.0.get(name).ok_or_else(|| wrong("is missing".into()))?;
        if tensor.shape != shape {
            return Err(wrong(format!("should have the shape {shape:?}, found {:?}", tensor.shape)));
        }
        Ok(tensor.values.clone())
    }
}

impl WeightSource for Memory {
    fn weight(&self, name: &str, shape: &[usize]) -> Result<Arc<dyn Stored>, UnetError> {
        Ok(Arc::new(self.find(name, shape)?))
    }

    fn vector(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, UnetError> {
        self.find(name, shape)
    }
}

/// `|found - expected| / |expected|`; absolute where `expected` is zero.
pub fn relative_error<'a>(found: impl IntoIterator<Item = &'a f32>, expected: &[f32]) -> f64 {
    let found: Vec<f32> = found.into_iter().copied().collect();
    assert_eq!(found.len(), expected.len());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut found.iter().zip(expected).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    let size = norm(&mut expected.iter().map(|x| f64::from(*x)));
    difference / if size == 0.0 { 1.0 } else { size }
}
