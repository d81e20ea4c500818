use ndarray::{Array4, ArrayView4};

use crate::{Condition, DenoiserError, Params};

/// A function of `(x_t, timestep number, condition)`: all that an architecture implements to be sampled.
pub trait Network: Send + Sync {
    /// The network's output for `x` of shape `[N, C, H, W]`.
    ///
    /// `timesteps` holds one number per sample, exactly as the network is to see it (which number that is for a
    /// noise level is the business of the timestep mapping, not of the network).
    ///
    /// # Errors
    /// If the batch sizes differ, or the network cannot take the shape or the labels.
    fn predict(
        &self,
        x: ArrayView4<'_, f32>,
        timesteps: &[f64],
        condition: &Condition,
    ) -> Result<Array4<f32>, DenoiserError>;

    /// Number of class labels, `0` for an unconditional network.
    fn classes(&self) -> usize;

    /// Whether the network knows the null condition, which classifier-free guidance needs.
    fn has_null_condition(&self) -> bool;
}

/// The backward pass beside [`Network`]: all that an architecture implements to be trained.
pub trait NetworkGrad: Network {
    /// The parameters, under their checkpoint keys.
    fn params(&self) -> &Params;

    /// The parameters, to be changed; anything derived from them is recomputed at the next pass.
    fn params_mut(&mut self) -> &mut Params;

    /// One forward pass in training mode and its backward pass.
    ///
    /// `loss` receives the output and returns the gradient of the loss with respect to it. Gradients of the
    /// parameters are *added* to `grads`, which has the length and order of [`Params::values`]; entries that are not
    /// trained stay as they were. Returns the gradient with respect to `x`. Buffers (running statistics) are updated.
    ///
    /// # Errors
    /// As [`Network::predict`].
    fn forward_backward(
        &mut self,
        x: ArrayView4<'_, f32>,
        timesteps: &[f64],
        condition: &Condition,
        loss: &mut dyn FnMut(ArrayView4<'_, f32>) -> Array4<f32>,
        grads: &mut [f32],
    ) -> Result<Array4<f32>, DenoiserError>;
}

macro_rules! forward_to_inner {
    ($($pointer:ty),*) => {$(
        impl<T: Network + ?Sized> Network for $pointer {
            fn predict(
                &self,
                x: ArrayView4<'_, f32>,
                timesteps: &[f64],
                condition: &Condition,
            ) -> Result<Array4<f32>, DenoiserError> {
                (**self).predict(x, timesteps, condition)
            }

            fn classes(&self) -> usize {
                (**self).classes()
            }

            fn has_null_condition(&self) -> bool {
                (**self).has_null_condition()
            }
        }
    )*};
}

forward_to_inner!(&T, Box<T>, std::sync::Arc<T>);
