//! Weights out of a file that stays as it is: mapped into memory, or rounded to bytes.

use std::fmt;
use std::sync::Arc;

use half::{bf16, f16};
use tweedie_checkpoint::{Dtype, TensorFile};
use tweedie_kernels::weight::{Int8, Stored, Weight};
use tweedie_unet::{UnetError, WeightSource};

/// Numbers of a weight below which rounding it to bytes is not worth its error.
const LEAST_ROUNDED: usize = 1 << 14;

/// The tensors of a file as the weights of a network.
///
/// Large weights are read where the file is mapped, in its own precision, so that the operating system brings in what is needed
/// and may drop it again.
#[derive(Clone, Debug)]
pub struct FileWeights {
    file: Arc<TensorFile>,
    block: Option<usize>,
}

impl FileWeights {
    /// The tensors of `file`, under the names that the network gives them.
    pub fn new(file: TensorFile) -> Self {
        Self { file: Arc::new(file), block: None }
    }

    /// The same with large weights rounded to bytes, each `block` neighbours with a factor of their own ([`Int8`]): in memory, and half
    /// as large as in half precision.
    #[must_use]
    pub fn rounded(self, block: usize) -> Self {
        Self { block: Some(block), ..self }
    }

    /// The file.
    pub fn file(&self) -> &TensorFile {
        &self.file
    }

    fn check(&self, name: &str, shape: &[usize]) -> Result<(), UnetError> {
        let wrong = |message| Err(UnetError::Weight { name: name.to_owned(), message });
        match self.file.get(name) {
            None => wrong(format!("is missing in {}", self.file.name())),
            Some(found) if found.shape != shape => {
                wrong(format!("should have the shape {shape:?}, and has {:?} in {}", found.shape, self.file.name()))
            }
            Some(_) => Ok(()),
        }
    }

    fn failed(name: &str, error: impl fmt::Display) -> UnetError {
        UnetError::Weight { name: name.to_owned(), message: format!("cannot be read: {error}") }
    }
}

impl WeightSource for FileWeights {
    fn weight(&self, name: &str, shape: &[usize]) -> Result<Arc<dyn Stored>, UnetError> {
        self.check(name, shape)?;
        let mapped = Mapped::new(&self.file, name).map_err(|e| Self::failed(name, e))?;
        match self.block {
            Some(block) if mapped.view().len() >= LEAST_ROUNDED => {
                let rounded = Int8::round(mapped.view(), block);
                self.file.release(name);
                Ok(Arc::new(rounded))
            }
            _ => Ok(Arc::new(mapped)),
        }
    }

    fn vector(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, UnetError> {
        self.check(name, shape)?;
        self.file.read_f32_finite(name).map_err(|e| Self::failed(name, e))
    }
}

/// A tensor of a mapped file, or a copy where the file does not lie as the processor reads it.
enum Mapped {
    File { file: Arc<TensorFile>, name: String },
    F32(Vec<f32>),
    Halves(Dtype, Vec<u16>),
}

impl Mapped {
    fn new(file: &Arc<TensorFile>, name: &str) -> Result<Self, tweedie_checkpoint::CheckpointError> {
        let (dtype, bytes) = file.bytes(name)?;
        let in_place = match dtype {
            Dtype::F32 => bytemuck::try_cast_slice::<u8, f32>(bytes).is_ok(),
            Dtype::F16 | Dtype::BF16 => bytemuck::try_cast_slice::<u8, u16>(bytes).is_ok(),
            // The other types are refused by name.
            _ => false,
        };
        Ok(match dtype {
            _ if in_place && cfg!(target_endian = "little") => Self::File { file: file.clone(), name: name.to_owned() },
            Dtype::F16 | Dtype::BF16 => {
                Self::Halves(dtype, bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect())
            }
            _ => Self::F32(file.read_f32(name)?),
        })
    }
}

fn halves(dtype: Dtype, bits: &[u16]) -> Weight<'_> {
    if dtype == Dtype::F16 { Weight::F16(bits) } else { Weight::Bf16(bits) }
}

impl Stored for Mapped {
    fn view(&self) -> Weight<'_> {
        match self {
            Self::F32(values) => Weight::F32(values),
            Self::Halves(dtype, bits) => halves(*dtype, bits),
            Self::File { file, name } => match file.bytes(name) {
                Ok((Dtype::F32, bytes)) => Weight::F32(bytemuck::cast_slice(bytes)),
                Ok((dtype, bytes)) => halves(dtype, bytemuck::cast_slice(bytes)),
                // The tensor was found when this was made, and files do not change.
                Err(_) => Weight::F32(&[]),
            },
        }
    }
}

impl fmt::Debug for Mapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { name, .. } => f.debug_tuple("Mapped").field(name).finish(),
            Self::F32(values) => f.debug_tuple("F32").field(&values.len()).finish(),
            Self::Halves(dtype, bits) => f.debug_tuple("Halves").field(dtype).field(&bits.len()).finish(),
        }
    }
}

/// Half precision in memory.
#[derive(Debug)]
struct Halves {
    brain: bool,
    bits: Vec<u16>,
}

impl Stored for Halves {
    fn view(&self) -> Weight<'_> {
        if self.brain { Weight::Bf16(&self.bits) } else { Weight::F16(&self.bits) }
    }
}

/// New numbers in the precision of what they take the place of, that of bytes in half precision.
pub(crate) fn stored_like(like: Weight<'_>, values: Vec<f32>) -> Arc<dyn Stored> {
    match like {
        Weight::F32(_) => Arc::new(values),
        Weight::Bf16(_) => {
            Arc::new(Halves { brain: true, bits: values.iter().map(|x| bf16::from_f32(*x).to_bits()).collect() })
        }
        _ => Arc::new(Halves { brain: false, bits: values.iter().map(|x| f16::from_f32(*x).to_bits()).collect() }),
    }
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::TensorView;

    use super::*;

    fn file(shift: usize) -> TensorFile {
        let x: Vec<f32> = (0..20_000).map(|i| (i % 37) as f32 * 0.25 - 4.0).collect();
        let bytes: Vec<u8> = x.iter().flat_map(|x| x.to_le_bytes()).collect();
        let narrow: Vec<u8> = x.iter().flat_map(|x| f16::from_f32(*x).to_bits().to_le_bytes()).collect();
        let brain: Vec<u8> = x.iter().flat_map(|x| bf16::from_f32(*x).to_bits().to_le_bytes()).collect();
        let odd = vec![0u8; shift];
        let tensors = [
            ("odd", TensorView::new(safetensors::Dtype::U8, vec![shift], &odd).unwrap()),
            ("f32", TensorView::new(safetensors::Dtype::F32, vec![200, 100], &bytes).unwrap()),
            ("f16", TensorView::new(safetensors::Dtype::F16, vec![200, 100], &narrow).unwrap()),
            ("bf16", TensorView::new(safetensors::Dtype::BF16, vec![200, 100], &brain).unwrap()),
            ("small", TensorView::new(safetensors::Dtype::F16, vec![10], &narrow[..20]).unwrap()),
        ];
        let bytes = safetensors::serialize(tensors, None).unwrap();
        TensorFile::from_bytes(bytes, "weights.safetensors").unwrap()
    }

    #[test]
    fn weights_are_those_of_the_file() {
        for shift in [1, 2, 3, 4] {
            let source = FileWeights::new(file(shift));
            for name in ["f32", "f16", "bf16"] {
                let weight = source.weight(name, &[200, 100]).unwrap();
                assert_eq!(weight.view().to_vec(), source.file().read_f32(name).unwrap(), "{name}");
            }
            assert_eq!(source.vector("small", &[10]).unwrap(), source.file().read_f32("small").unwrap());
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let source = FileWeights::new(file(1));
        let message = source.weight("f16", &[100, 200]).unwrap_err().to_string();
        assert!(message.contains("f16") && message.contains("[100, 200]"), "{message}");
        assert!(source.weight("none", &[1]).unwrap_err().to_string().contains("is missing in weights.safetensors"));
        assert!(source.weight("odd", &[1]).is_err());
        assert!(source.vector("odd", &[1]).is_err());
    }

    #[test]
    fn large_weights_are_rounded() {
        let source = FileWeights::new(file(1)).rounded(32);
        let found = source.weight("f16", &[200, 100]).unwrap();
        assert!(matches!(found.view(), Weight::Int8 { block: 32, .. }));
        let exact = source.file().read_f32("f16").unwrap();
        for (found, exact) in found.view().to_vec().iter().zip(&exact) {
            assert!((found - exact).abs() <= 5.0 / 127.0 / 2.0 + 1e-6);
        }
        assert!(matches!(source.weight("small", &[10]).unwrap().view(), Weight::F16(_)));
    }
}
