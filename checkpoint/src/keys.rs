use std::collections::BTreeMap;

use crate::{CheckpointError, KeyMismatch, TensorFile};

/// Compares the tensors of a file with those that a network expects, as `(key, shape)`.
///
/// Keys for which `ignore` answers true may be in the file without being expected (buffers that old versions saved).
///
/// # Errors
/// One error that lists every missing key, every unexpected one, and every shape that differs.
pub fn check_keys<'a>(
    expected: impl IntoIterator<Item = (&'a str, &'a [usize])>,
    file: &TensorFile,
    ignore: impl Fn(&str) -> bool,
) -> Result<(), CheckpointError> {
    let mut found: BTreeMap<&str, &[usize]> = file.tensors().map(|t| (t.name, t.shape)).collect();
    let mut mismatch = KeyMismatch::default();
    for (name, shape) in expected {
        match found.remove(name) {
            None => mismatch.missing.push((name.to_owned(), shape.to_vec())),
            Some(other) if other != shape => {
                mismatch.misshaped.push((name.to_owned(), shape.to_vec(), other.to_vec()));
            }
            Some(_) => {}
        }
    }
    found.retain(|name, _| !ignore(name));
    mismatch.unexpected = found.into_iter().map(|(name, shape)| (name.to_owned(), shape.to_vec())).collect();
    if mismatch.is_empty() {
        Ok(())
    } else {
        Err(CheckpointError::Keys { file: file.name().to_owned(), mismatch: Box::new(mismatch) })
    }
}
