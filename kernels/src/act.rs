//! Activations.
//!
//! ```text
//! SiLU(x) = x s(x),  s(x) = 1 / (1 + exp(-x)),  SiLU'(x) = s(x) (1 + x (1 - s(x)))     Elfwing et al. 2017
//! ReLU(x) = max(x, 0),  ReLU'(x) = [x > 0]
//! ```

use crate::lanes::{exp, get, put};
use crate::par::{check_len, rows_mut};
use crate::simd::{Simd, WithSimd, dispatch};

/// A function applied to each element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// The identity.
    None,
    /// `x / (1 + exp(-x))`
    Silu,
    /// `max(x, 0)`; its slope at zero is zero.
    Relu,
}

/// An activation as a type, for loops that are compiled once for each.
pub(crate) trait Activation {
    /// The function.
    fn value<S: Simd>(s: S, x: S::V) -> S::V;
    /// Its slope at `x`, times `dy`.
    fn pull_back<S: Simd>(s: S, x: S::V, dy: S::V) -> S::V;
}

/// The identity.
pub(crate) struct Identity;
/// x s(x)
pub(crate) struct Silu;
/// max(x, 0)
pub(crate) struct Relu;

impl Activation for Identity {
    #[inline(always)]
    fn value<S: Simd>(_: S, x: S::V) -> S::V {
        x
    }
    #[inline(always)]
    fn pull_back<S: Simd>(_: S, _: S::V, dy: S::V) -> S::V {
        dy
    }
}

impl Activation for Silu {
    #[inline(always)]
    fn value<S: Simd>(s: S, x: S::V) -> S::V {
        s.div(x, s.add(s.splat(1.0), exp(s, s.sub(s.splat(0.0), x))))
    }
    #[inline(always)]
    fn pull_back<S: Simd>(s: S, x: S::V, dy: S::V) -> S::V {
        let one = s.splat(1.0);
        // Below -88 the slope is zero to all digits, and exp(-x) would overflow. A NaN passes.
        let x = s.max(s.splat(-88.0), x);
        let e = exp(s, s.sub(s.splat(0.0), x));
        let sigmoid = s.div(one, s.add(one, e));
        // 1 - s(x) as exp(-x) s(x), which does not cancel where s(x) is near one and x is large.
        let slope = s.mul(sigmoid, s.fma(x, s.mul(e, sigmoid), one));
        s.mul(slope, dy)
    }
}

impl Activation for Relu {
    #[inline(always)]
    fn value<S: Simd>(s: S, x: S::V) -> S::V {
        // In this order of arguments a NaN passes.
        s.max(s.splat(0.0), x)
    }
    #[inline(always)]
    fn pull_back<S: Simd>(s: S, x: S::V, dy: S::V) -> S::V {
        s.where_positive(x, dy)
    }
}

struct Forward<'a> {
    act: Act,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl WithSimd for Forward<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        #[inline(always)]
        fn run<S: Simd, A: Activation>(s: S, x: &[f32], y: &mut [f32]) {
            let full = y.len() / S::LANES * S::LANES;
            for i in (0..full).step_by(S::LANES) {
                put::<S, true>(s, y, i, A::value(s, get::<S, true>(s, x, i)));
            }
            if full < y.len() {
                put::<S, false>(s, y, full, A::value(s, get::<S, false>(s, x, full)));
            }
        }
        let (x, y) = (&self.x[..self.y.len()], self.y);
        match self.act {
            Act::None => y.copy_from_slice(x),
            Act::Silu => run::<S, Silu>(s, x, y),
            Act::Relu => run::<S, Relu>(s, x, y),
        }
    }
}

struct Backward<'a> {
    act: Act,
    x: &'a [f32],
    dy: &'a [f32],
    dx: &'a mut [f32],
}

impl WithSimd for Backward<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        #[inline(always)]
        fn step<S: Simd, A: Activation, const FULL: bool>(s: S, x: &[f32], dy: &[f32], dx: &mut [f32], i: usize) {
            let gradient = A::pull_back(s, get::<S, FULL>(s, x, i), get::<S, FULL>(s, dy, i));
            let sum = s.add(get::<S, FULL>(s, dx, i), gradient);
            put::<S, FULL>(s, dx, i, sum);
        }
        #[inline(always)]
        fn run<S: Simd, A: Activation>(s: S, x: &[f32], dy: &[f32], dx: &mut [f32]) {
            let full = dx.len() / S::LANES * S::LANES;
            for i in (0..full).step_by(S::LANES) {
                step::<S, A, true>(s, x, dy, dx, i);
            }
            if full < dx.len() {
                step::<S, A, false>(s, x, dy, dx, full);
            }
        }
        let len = self.dx.len();
        let (x, dy, dx) = (&self.x[..len], &self.dy[..len], self.dx);
        match self.act {
            Act::None => run::<S, Identity>(s, x, dy, dx),
            Act::Silu => run::<S, Silu>(s, x, dy, dx),
            Act::Relu => run::<S, Relu>(s, x, dy, dx),
        }
    }
}

/// `y = act(x)`.
///
/// # Panics
/// If `x` and `y` differ in length.
pub fn forward(act: Act, x: &[f32], y: &mut [f32]) {
    check_len("activation", "y", y.len(), x.len());
    rows_mut(y, 1, |first, y| dispatch(Forward { act, x: &x[first..], y }));
}

/// `dx += act'(x) dy`, with `x` the input of the forward pass.
///
/// # Panics
/// If the slices differ in length.
pub fn backward(act: Act, x: &[f32], dy: &[f32], dx: &mut [f32]) {
    check_len("activation backward", "dy", dy.len(), x.len());
    check_len("activation backward", "dx", dx.len(), x.len());
    rows_mut(dx, 1, |first, dx| dispatch(Backward { act, x: &x[first..], dy: &dy[first..], dx }));
}

#[cfg(test)]
mod tests;
