//! Sinusoidal encodings of a time step, computed in f64.
//!
//! ```text
//! diffusers:  f_k = exp(-ln(10000) k / (dim/2 - freq_shift)),  [sin(t f_0), …, cos(t f_0), …]
//! pos(t):     pos(t)_i = sin(t / 10000^{i/dim}) for even i, cos(t / 10000^{i/dim}) for odd i
//! ```
//!
//! Both are descendants of Vaswani et al. 2017, section 3.5. The second has `i` itself in the exponent, not `i/2`, so
//! its sine and cosine have different frequencies.

use crate::par::check_len;

/// The encoding of `get_timestep_embedding` in diffusers; `y` is `[t.len(), dim]`.
///
/// The sines come first, the cosines second; `flip_sin_to_cos` swaps them. An odd `dim` ends with a zero.
///
/// # Panics
/// If `y` has not `t.len() * dim` elements.
pub fn diffusers(t: &[f64], dim: usize, flip_sin_to_cos: bool, freq_shift: f64, y: &mut [f32]) {
    check_len("sinusoid", "y", y.len(), t.len() * dim);
    let half = dim / 2;
    if dim == 0 {
        return;
    }
    for (t, y) in t.iter().zip(y.chunks_exact_mut(dim)) {
        for k in 0..half {
            // A single frequency is 1 also where freq_shift makes the denominator zero.
            let f = if k == 0 { 1.0 } else { (-(10000f64.ln()) * k as f64 / (half as f64 - freq_shift)).exp() };
            let (sin, cos) = (t * f).sin_cos();
            let (first, second) = if flip_sin_to_cos { (cos, sin) } else { (sin, cos) };
            y[k] = first as f32;
            y[half + k] = second as f32;
        }
        y[2 * half..].fill(0.0);
    }
}

/// The encoding pos(t) of the textbook network; `y` is `[t.len(), dim]`.
///
/// # Panics
/// If `y` has not `t.len() * dim` elements.
pub fn pos(t: &[f64], dim: usize, y: &mut [f32]) {
    check_len("sinusoid", "y", y.len(), t.len() * dim);
    if dim == 0 {
        return;
    }
    for (t, y) in t.iter().zip(y.chunks_exact_mut(dim)) {
        for (i, y) in y.iter_mut().enumerate() {
            let angle = t / 10000f64.powf(i as f64 / dim as f64);
            *y = if i % 2 == 0 { angle.sin() } else { angle.cos() } as f32;
        }
    }
}

#[cfg(test)]
mod tests;
