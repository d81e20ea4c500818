//! Activations.
//!
//! ```text
//! SiLU(x) = x s(x),  s(x) = 1 / (1 + exp(-x)),  SiLU'(x) = s(x) (1 + x (1 - s(x)))      Elfwing et al. 2017, eq. 1
//! ReLU(x) = max(x, 0),  ReLU'(x) = [x > 0]
//! ```

use crate::par::{check_len, rows_mut};

/// A function applied to each element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// The identity.
    None,
    /// `x / (1 + exp(-x))`
    Silu,
    /// `max(x, 0)`
    Relu,
}

impl Act {
    pub(crate) fn value(self, x: f32) -> f32 {
        match self {
            Self::None => x,
            Self::Silu => x / (1.0 + (-x).exp()),
            Self::Relu => {
                if 0.0 > x {
                    0.0
                } else {
                    x
                }
            }
        }
    }

    pub(crate) fn slope(self, x: f32) -> f32 {
        match self {
            Self::None => 1.0,
            Self::Silu => {
                let s = 1.0 / (1.0 + (-x).exp());
                s * (1.0 + x * (1.0 - s))
            }
            Self::Relu => f32::from(u8::from(x > 0.0)),
        }
    }
}

/// `y = act(x)`.
///
/// # Panics
/// If `x` and `y` differ in length.
pub fn forward(act: Act, x: &[f32], y: &mut [f32]) {
    check_len("activation", "y", y.len(), x.len());
    rows_mut(y, 1, |first, y| {
        for (y, x) in y.iter_mut().zip(&x[first..]) {
            *y = act.value(*x);
        }
    });
}

/// `dx += act'(x) dy`, with `x` the input of the forward pass.
///
/// # Panics
/// If the slices differ in length.
pub fn backward(act: Act, x: &[f32], dy: &[f32], dx: &mut [f32]) {
    check_len("activation backward", "dy", dy.len(), x.len());
    check_len("activation backward", "dx", dx.len(), x.len());
    rows_mut(dx, 1, |first, dx| {
        for ((dx, x), dy) in dx.iter_mut().zip(&x[first..]).zip(&dy[first..]) {
            *dx += act.slope(*x) * dy;
        }
    });
}
