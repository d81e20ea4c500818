//! The order in which training sees the images: seeded, and a pure function of its arguments.
//!
//! Epoch `e` of seed `s` visits the images in the order of one uniformly random permutation, drawn by the
//! Fisher-Yates shuffle (Durstenfeld 1964, Algorithm 235) from a ChaCha8 generator keyed by `(s, e, N)`.
//!
//! **What happens to the remainder.** An epoch consists of the `floor(N / B)` full batches of its permutation; the
//! `N mod B` images left over are dropped from that epoch (another permutation drops others in the next), so every
//! batch has the same size and the step count of an epoch is an integer. If `N < B`, each epoch is one batch of all
//! `N` images.

use ndarray_rand::rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The domain that separates this generator from every other one that is keyed by the same seed.
const DOMAIN: [u8; 8] = *b"shuffle1";

/// The order of epoch `epoch` (from 0): a uniformly random permutation of `0..len`.
///
/// The result depends on nothing but the arguments, on every platform and in every version of this crate.
///
/// # Panics
/// If `len` exceeds `u32::MAX`, which [`crate::Dataset`] rules out.
pub fn permutation(len: usize, seed: u64, epoch: u64) -> Vec<u32> {
    let count = u32::try_from(len).expect("a data set has at most u32::MAX images");
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&DOMAIN);
    key[16..24].copy_from_slice(&epoch.to_le_bytes());
    key[24..].copy_from_slice(&u64::from(count).to_le_bytes());
    let mut random = ChaCha8Rng::from_seed(key);
    let mut order: Vec<u32> = (0..count).collect();
    for i in (1..len).rev() {
        order.swap(i, below(i as u64 + 1, || random.next_u64()) as usize);
    }
    order
}

/// A uniform integer in `0..bound` from 64-bit draws: Lemire's multiply-shift with rejection
/// ("Fast Random Integer Generation in an Interval", 2019, Algorithm 5), written out so that the mapping never changes.
fn below(bound: u64, mut draw: impl FnMut() -> u64) -> u64 {
    // Of 2^64 draws, the first `2^64 mod bound` low halves belong to intervals that are one draw too long.
    let excess = bound.wrapping_neg() % bound;
    loop {
        let product = u128::from(draw()) * u128::from(bound);
        if product as u64 >= excess {
            return (product >> 64) as u64;
        }
    }
}

/// Number of batches, and so of steps, in an epoch: `floor(len / batch)`, but one if `len < batch`.
///
/// # Panics
/// If `len` or `batch` is zero.
pub fn batches_per_epoch(len: usize, batch: usize) -> u64 {
    assert!(len > 0 && batch > 0, "batches of {batch} from {len} images");
    (len / batch).max(1) as u64
}

/// The epoch (from 0) and the image indices of global step `step` (from 0: how many steps came before it).
///
/// The whole permutation of the epoch is drawn for one batch; a loop that calls this for step after step keeps a
/// [`Batches`] instead, which draws it once.
///
/// # Panics
/// If `len` or `batch` is zero, or `len` exceeds `u32::MAX`.
pub fn batch_indices(len: usize, batch: usize, seed: u64, step: u64) -> (u64, Vec<usize>) {
    let (epoch, within) = place(len, batch, step);
    (epoch, slice(&permutation(len, seed, epoch), batch, within))
}

/// The epoch of a step, and which of its batches it is.
fn place(len: usize, batch: usize, step: u64) -> (u64, usize) {
    let per_epoch = batches_per_epoch(len, batch);
    // The remainder is below `len / batch`, so it fits a usize.
    (step / per_epoch, (step % per_epoch) as usize)
}

fn slice(order: &[u32], batch: usize, within: usize) -> Vec<usize> {
    order.chunks(batch).nth(within).unwrap_or_default().iter().map(|&i| i as usize).collect()
}

/// [`batch_indices`] with the permutation of the last epoch kept: the same answers, in any order of steps.
#[derive(Clone, Debug)]
pub struct Batches {
    len: usize,
    batch: usize,
    seed: u64,
    epoch: u64,
    order: Vec<u32>,
}

impl Batches {
    /// Batches of `batch` out of `len` images.
    ///
    /// # Panics
    /// If `len` or `batch` is zero, or `len` exceeds `u32::MAX`.
    pub fn new(len: usize, batch: usize, seed: u64) -> Self {
        assert!(len > 0 && batch > 0, "batches of {batch} from {len} images");
        Self { len, batch, seed, epoch: 0, order: permutation(len, seed, 0) }
    }

    /// Number of batches in an epoch, see [`batches_per_epoch`].
    pub fn per_epoch(&self) -> u64 {
        batches_per_epoch(self.len, self.batch)
    }

    /// The epoch (from 0) and the image indices of global step `step` (from 0).
    pub fn at(&mut self, step: u64) -> (u64, Vec<usize>) {
        let (epoch, within) = place(self.len, self.batch, step);
        if epoch != self.epoch {
            self.order = permutation(self.len, self.seed, epoch);
            self.epoch = epoch;
        }
        (epoch, slice(&self.order, self.batch, within))
    }
}

#[cfg(test)]
mod tests {
    use super::below;

    #[test]
    fn draws_in_the_excess_are_rejected() {
        // 2^64 mod 3 = 1: exactly the draw 0, whose product has the low half 0, is refused.
        let mut draws = [0u64, u64::MAX].into_iter();
        assert_eq!(below(3, || draws.next().unwrap()), 2);
        assert_eq!(draws.next(), None);
        // A power of two divides 2^64, and nothing is refused.
        assert_eq!(below(4, || 0), 0);
        assert_eq!(below(1, || 123), 0);
    }

    #[test]
    fn thirds_of_the_draws_map_to_thirds_of_the_interval() {
        let third = u64::MAX / 3;
        assert_eq!(below(3, || third), 0);
        assert_eq!(below(3, || third + 1), 1);
        assert_eq!(below(3, || 2 * third + 1), 2);
    }
}
