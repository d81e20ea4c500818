//! Any bytes as a safetensors file: what opens can be read, and holds no more than there was.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tweedie_checkpoint::{Dtype, TensorFile};

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = TensorFile::from_bytes(bytes.to_vec(), "fuzz") else { return };
    let names: Vec<String> = file.tensors().map(|tensor| tensor.name.to_owned()).collect();
    let mut total = 0;
    for name in &names {
        let Some(tensor) = file.get(name) else { panic!("{name} was listed") };
        let count = tensor.shape.iter().product::<usize>();
        total += count * tensor.dtype.bitsize() / 8;
        for read in [
            file.read_f32(name).ok().map(|values| values.len()),
            file.read_f32_finite(name).ok().map(|values| values.len()),
            file.read_f64(name).ok().map(|values| values.len()),
            file.read_i64(name).ok().map(|values| values.len()),
        ] {
            assert!(read.is_none_or(|len| len == count));
        }
        if matches!(tensor.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            assert!(file.read_f32(name).is_ok());
        }
    }
    assert!(total <= bytes.len());
});
