use std::sync::Arc;

use tweedie_kernels::weight::Stored;

use crate::UnetError;

/// Where a network that is only run gets its weights: a file of tensors, or something that is made of one.
///
/// Names are those of present-day checkpoints. A source over an old file finds a tensor by
/// [`canonical_key`](crate::canonical_key) of the file's names.
pub trait WeightSource {
    /// A large weight, `[out, in]` of a linear layer, `[out, in, side, side]` of a convolution, or the rows of an embedding. It
    /// stays as it is stored, and is widened wherever it is used.
    ///
    /// # Errors
    /// [`UnetError::Weight`] if there is no such tensor, it has another shape, or it cannot be read.
    fn weight(&self, name: &str, shape: &[usize]) -> Result<Arc<dyn Stored>, UnetError>;

    /// A small tensor, such as a bias or the factors of a normalisation, row by row.
    ///
    /// # Errors
    /// As [`WeightSource::weight`].
    fn vector(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, UnetError>;
}
