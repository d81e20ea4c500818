//! Dropout: elements are zeroed at random, and the rest is scaled so that the mean stays.
//!
//! ```text
//! y[n, i] = x[n, i] [u(key_n, i) >= rate]/(1 - rate),  u uniform in [0, 1)          Srivastava et al. 2014
//! ```
//!
//! The gradient is the same map with the same keys. An element is kept by its sample's key and its place alone, so neither
//! threads nor the other samples of a batch play a part.

use crate::par::{check_len, rows_mut};

/// The step of the sequence and the last function of SplitMix64 (Steele, Lea and Flood 2014).
fn random(key: u64, i: u64) -> u64 {
    let z = key.wrapping_add((i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A key for one use of `key`, such as one layer of a network.
pub fn derive(key: u64, salt: u64) -> u64 {
    random(key ^ random(salt, 0), 0)
}

/// Drops elements of `x`, of which every key has an equal share; in the backward pass those of its gradient.
///
/// # Panics
/// If `rate` is not in [0, 1), or `x` is not `keys.len() * len` elements.
pub fn apply(keys: &[u64], len: usize, rate: f32, x: &mut [f32]) {
    check_len("dropout", "x", x.len(), keys.len() * len);
    assert!((0.0..1.0).contains(&rate), "dropout: the rate is {rate}, it should be at least 0 and less than 1");
    if rate == 0.0 {
        return;
    }
    // The upper 24 bits are the digits of a uniform number.
    let (least, scale) = ((f64::from(rate) * f64::from(1 << 24)).ceil() as u64, 1.0 / (1.0 - rate));
    rows_mut(x, 1, |first, x| {
        for (i, x) in x.iter_mut().enumerate() {
            let (n, place) = ((first + i) / len, (first + i) % len);
            let kept = random(keys[n], place as u64) >> 40 >= least;
            *x = if kept { *x * scale } else { 0.0 };
        }
    });
}

#[cfg(test)]
mod tests;
