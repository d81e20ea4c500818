//! Activations, the pool that their memory comes from, and the tape that carries them from forward to backward.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;
use tweedie_kernels::Floats;

/// Below this many elements a plain loop is faster than to wake other threads.
const PARALLEL: usize = 1 << 16;

/// Buffers of earlier passes, kept so that a step after the first allocates nothing large.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pool {
    free: Arc<Mutex<Vec<Floats>>>,
}

impl Pool {
    /// `len` numbers of unspecified value.
    pub fn take(&self, len: usize) -> Buf {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        // The smallest buffer that fits, unless it would waste more than half of itself.
        let fitting = (0..free.len())
            .filter(|&i| free[i].len() >= len && free[i].len() / 2 <= len)
            .min_by_key(|&i| free[i].len());
        let data = fitting.map(|i| free.swap_remove(i));
        drop(free);
        Buf { data: data.unwrap_or_else(|| Floats::zeros(len)), len, pool: self.clone() }
    }

    /// `len` zeros, for a gradient to be accumulated.
    pub fn zeros(&self, len: usize) -> Buf {
        let mut buf = self.take(len);
        fill(&mut buf, 0.0);
        buf
    }

    /// How many buffers are idle, and how many numbers they hold.
    #[cfg(test)]
    pub fn idle(&self) -> (usize, usize) {
        let free = self.free.lock().unwrap();
        (free.len(), free.iter().map(|floats| floats.len()).sum())
    }

    /// A tensor of unspecified values.
    pub fn tensor(&self, [n, h, w, c]: [usize; 4]) -> Tensor {
        Tensor { n, h, w, c, data: self.take(n * h * w * c) }
    }

    /// A tensor of zeros.
    pub fn zeros_of(&self, [n, h, w, c]: [usize; 4]) -> Tensor {
        Tensor { n, h, w, c, data: self.zeros(n * h * w * c) }
    }

    /// Zeros in the shape of another tensor.
    pub fn zeros_like(&self, like: &Tensor) -> Tensor {
        self.zeros_of(like.shape())
    }
}

/// A slice of numbers that goes back to its pool when it is dropped.
#[derive(Debug)]
pub(crate) struct Buf {
    data: Floats,
    len: usize,
    pool: Pool,
}

impl Drop for Buf {
    fn drop(&mut self) {
        let data = std::mem::take(&mut self.data);
        self.pool.free.lock().unwrap_or_else(PoisonError::into_inner).push(data);
    }
}

impl Deref for Buf {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.data[..self.len]
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.data[..self.len]
    }
}

/// An activation `[n, h, w, c]`, channels last.
#[derive(Debug)]
pub(crate) struct Tensor {
    pub n: usize,
    pub h: usize,
    pub w: usize,
    pub c: usize,
    pub data: Buf,
}

impl Tensor {
    pub fn shape(&self) -> [usize; 4] {
        [self.n, self.h, self.w, self.c]
    }

    /// Number of pixels of an image.
    pub fn hw(&self) -> usize {
        self.h * self.w
    }

    /// `self += other`.
    pub fn add(&mut self, other: &Tensor) {
        assert_eq!(self.shape(), other.shape(), "adding tensors of different shapes");
        let (a, b): (&mut [f32], &[f32]) = (&mut self.data, &other.data);
        if a.len() < PARALLEL {
            a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        } else {
            let parts = a.par_chunks_mut(PARALLEL).zip(b.par_chunks(PARALLEL));
            parts.for_each(|(a, b)| a.iter_mut().zip(b).for_each(|(a, b)| *a += b));
        }
    }

    /// `self *= factor`.
    pub fn scale(&mut self, factor: f32) {
        if factor != 1.0 {
            self.data.par_chunks_mut(PARALLEL).for_each(|a| a.iter_mut().for_each(|a| *a *= factor));
        }
    }
}

/// `to = value` everywhere.
pub(crate) fn fill(to: &mut [f32], value: f32) {
    if to.len() < PARALLEL {
        to.fill(value);
    } else {
        to.par_chunks_mut(PARALLEL).for_each(|part| part.fill(value));
    }
}

/// What a forward pass leaves for its backward pass, last in, first out.
///
/// Activations are shared: the same one may be on the tape, on the stack of skips and in use by the next layer.
#[derive(Debug)]
pub(crate) struct Tape {
    recording: bool,
    saved: Vec<Arc<Tensor>>,
}

impl Tape {
    /// A tape for training.
    pub fn recording() -> Self {
        Self { recording: true, saved: Vec::new() }
    }

    /// A tape that forgets: prediction frees every activation as soon as it is used.
    pub fn forgetting() -> Self {
        Self { recording: false, saved: Vec::new() }
    }

    /// Whether activations are kept for a backward pass.
    pub fn is_recording(&self) -> bool {
        self.recording
    }

    /// Keeps an activation.
    pub fn push(&mut self, tensor: impl Into<Arc<Tensor>>) {
        if self.recording {
            self.saved.push(tensor.into());
        }
    }

    /// The activation kept last.
    pub fn pop(&mut self) -> Arc<Tensor> {
        self.saved.pop().expect("backward takes what forward has saved")
    }

    /// Whether everything has been taken.
    pub fn is_empty(&self) -> bool {
        self.saved.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_used_again() {
        let pool = Pool::default();
        let first = pool.take(100);
        let address = first.as_ptr();
        drop(first);
        let second = pool.take(60);
        assert_eq!(second.as_ptr(), address);
        assert_eq!(second.len(), 60);
        drop(second);
        // A small request does not tie up a large buffer.
        assert_ne!(pool.take(10).as_ptr(), address);
    }

    #[test]
    fn zeros_are_zero_even_in_used_memory() {
        let pool = Pool::default();
        pool.take(70_000).fill(3.0);
        assert!(pool.zeros(70_000).iter().all(|&x| x == 0.0));
        pool.take(90).fill(3.0);
        assert!(pool.zeros(90).iter().all(|&x| x == 0.0));
    }

    #[test]
    fn a_forgetting_tape_frees_what_it_is_given() {
        let pool = Pool::default();
        let mut tape = Tape::forgetting();
        tape.push(pool.tensor([1, 2, 2, 3]));
        assert!(tape.is_empty());
    }
}
