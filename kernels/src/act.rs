//! Activations.
//!
//! ```text
//! SiLU(x) = x s(x),  s(x) = 1 / (1 + exp(-x)),  SiLU'(x) = s(x) (1 + x (1 - s(x)))     Elfwing et al. 2017
//! ReLU(x) = max(x, 0),  ReLU'(x) = [x > 0]
//! GELU(x) = x Phi(x),  GELU'(x) = Phi(x) + x phi(x),  with the normal distribution      Hendrycks and Gimpel 2016
//! Mish(x) = x tanh(ln(1 + exp(x)))                                                      Misra 2019
//! QuickGELU(x) = x s(1.702 x) = SiLU(1.702 x) / 1.702                        Hendrycks and Gimpel 2016, section 2
//! GEGLU(x, g) = x GELU(g)                                                               Shazeer 2020, eq. 6
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
    /// `x Phi(x)` with the distribution function of the standard normal distribution, not its approximation by tanh.
    Gelu,
    /// `x tanh(ln(1 + exp(x)))`
    Mish,
    /// `x / (1 + exp(-1.702 x))`, which CLIP was trained with.
    QuickGelu,
}

impl Act {
    /// Whether it takes an exponential, so that it is rather evaluated once than wherever it is read.
    pub(crate) fn is_costly(self) -> bool {
        !matches!(self, Self::None | Self::Relu)
    }
}

/// Evaluates an expression with the type `$a` standing for the [`Activation`] of a value of [`Act`].
macro_rules! per_act {
    ($act:expr, $a:ident => $body:expr) => {
        match $act {
            $crate::act::Act::None => {
                type $a = $crate::act::Identity;
                $body
            }
            $crate::act::Act::Silu => {
                type $a = $crate::act::Silu;
                $body
            }
            $crate::act::Act::Relu => {
                type $a = $crate::act::Relu;
                $body
            }
            $crate::act::Act::Gelu => {
                type $a = $crate::act::Gelu;
                $body
            }
            $crate::act::Act::Mish => {
                type $a = $crate::act::Mish;
                $body
            }
            $crate::act::Act::QuickGelu => {
                type $a = $crate::act::QuickGelu;
                $body
            }
        }
    };
}
pub(crate) use per_act;

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
/// x Phi(x)
pub(crate) struct Gelu;
/// x tanh(ln(1 + exp(x)))
pub(crate) struct Mish;
/// x s(1.702 x)
pub(crate) struct QuickGelu;

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

/// Phi(x) and exp(-x^2/2).
///
/// For x < 0, Phi(x) = exp(-x^2/2) t p(t) with t = 1/(1 + 0.35 |x|); the polynomial p is the best in relative error, 3e-8,
/// so that the tail does not cancel. For x > 0 it is 1 - Phi(-x).
#[inline(always)]
fn normal<S: Simd>(s: S, x: S::V) -> (S::V, S::V) {
    let one = s.splat(1.0);
    // In this order of arguments a NaN passes.
    let size = s.max(s.sub(s.splat(0.0), x), x);
    let bell = exp(s, s.mul(s.splat(-0.5), s.mul(x, x)));
    let t = s.div(one, s.fma(s.splat(0.35), size, one));
    let mut p = s.splat(-0.029_146_34);
    for coefficient in
        [0.143_973_7, -0.255_718_44, 0.159_179, -0.023_113_199, 0.105_509_445, 0.119_832_5, 0.139_861_93, 0.139_621_4]
    {
        p = s.fma(p, t, s.splat(coefficient));
    }
    let tail = s.mul(bell, s.mul(t, p));
    let above = s.where_positive(x, s.fma(s.splat(-2.0), tail, one));
    (s.add(tail, above), bell)
}

impl Activation for Gelu {
    #[inline(always)]
    fn value<S: Simd>(s: S, x: S::V) -> S::V {
        s.mul(x, normal(s, x).0)
    }
    #[inline(always)]
    fn pull_back<S: Simd>(s: S, x: S::V, dy: S::V) -> S::V {
        let (phi, bell) = normal(s, x);
        let density = s.mul(s.splat(FRAC_1_SQRT_2PI), bell);
        s.mul(s.fma(x, density, phi), dy)
    }
}

/// 1/sqrt(2 pi)
const FRAC_1_SQRT_2PI: f32 = 0.398_942_3;

/// e = exp(x) and n = e (e + 2), of which tanh(ln(1 + e)) is n/(n + 2).
#[inline(always)]
fn exponentials<S: Simd>(s: S, x: S::V) -> (S::V, S::V) {
    let e = exp(s, x);
    (e, s.mul(e, s.add(e, s.splat(2.0))))
}

/// At most 20, where tanh(ln(1 + exp(x))) is one to all digits: beyond, squares of exp(x) would overflow.
#[inline(always)]
fn at_most_20<S: Simd>(s: S, x: S::V) -> S::V {
    // In this order of arguments a NaN passes.
    s.min(s.splat(20.0), x)
}

impl Activation for Mish {
    #[inline(always)]
    fn value<S: Simd>(s: S, x: S::V) -> S::V {
        let (_, n) = exponentials(s, at_most_20(s, x));
        s.mul(x, s.div(n, s.add(n, s.splat(2.0))))
    }
    #[inline(always)]
    fn pull_back<S: Simd>(s: S, x: S::V, dy: S::V) -> S::V {
        let x = at_most_20(s, x);
        let (e, n) = exponentials(s, x);
        let reciprocal = s.div(s.splat(1.0), s.add(n, s.splat(2.0)));
        // The slope of n/(n + 2) is 4 e (e + 1)/(n + 2)^2.
        let slope = s.mul(s.mul(s.splat(4.0), s.mul(e, reciprocal)), s.mul(s.add(e, s.splat(1.0)), reciprocal));
        s.mul(s.fma(x, slope, s.mul(n, reciprocal)), dy)
    }
}

/// Where QuickGELU takes its sigmoid.
const STEEPNESS: f32 = 1.702;

impl Activation for QuickGelu {
    #[inline(always)]
    fn value<S: Simd>(s: S, x: S::V) -> S::V {
        s.mul(s.splat(1.0 / STEEPNESS), Silu::value(s, s.mul(s.splat(STEEPNESS), x)))
    }
    #[inline(always)]
    fn pull_back<S: Simd>(s: S, x: S::V, dy: S::V) -> S::V {
        Silu::pull_back(s, s.mul(s.splat(STEEPNESS), x), dy)
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
            act => per_act!(act, A => run::<S, A>(s, x, y)),
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
        per_act!(self.act, A => run::<S, A>(s, x, dy, dx));
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

/// `y[r, i] = x[r, i] GELU(x[r, c + i])` for rows of `2 c` numbers, values first.
///
/// # Panics
/// If `x` is not twice as long as `y`, or `y` does not consist of rows of `c`.
pub fn geglu(c: usize, x: &[f32], y: &mut [f32]) {
    check_len("GEGLU", "x", x.len(), 2 * y.len());
    check_len("GEGLU", "y", y.len(), y.len() / c.max(1) * c);
    rows_mut(y, c, |first, y| dispatch(Geglu { c, x: &x[2 * first * c..][..2 * y.len()], y }));
}

struct Geglu<'a> {
    c: usize,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl WithSimd for Geglu<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let full = self.c / S::LANES * S::LANES;
        for (x, y) in self.x.chunks_exact(2 * self.c).zip(self.y.chunks_exact_mut(self.c)) {
            let (value, gate) = x.split_at(self.c);
            for i in (0..full).step_by(S::LANES) {
                let open = Gelu::value(s, get::<S, true>(s, gate, i));
                put::<S, true>(s, y, i, s.mul(get::<S, true>(s, value, i), open));
            }
            if full < self.c {
                let open = Gelu::value(s, get::<S, false>(s, gate, full));
                put::<S, false>(s, y, full, s.mul(get::<S, false>(s, value, full), open));
            }
        }
    }
}

#[cfg(test)]
mod tests;
