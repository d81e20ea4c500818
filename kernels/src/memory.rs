//! Memory that begins at a line of cache.
//!
//! A vector that lies in two lines costs two accesses, and memory of the system's allocator begins 16 bytes into a page: every
//! second vector of 32 bytes would lie in two lines, and every one of 64.

use std::cell::Cell;
use std::ops::{Deref, DerefMut};
use std::thread::LocalKey;

use crate::lanes::LINE;

/// Bytes of a line of cache.
const LINE_BYTES: usize = LINE * size_of::<f32>();

/// Elements that begin at a line of cache.
#[derive(Debug, Default)]
pub struct Aligned<T> {
    /// With room for a line before them.
    memory: Vec<T>,
    first: usize,
    len: usize,
}

/// Floats that begin at a line of cache.
pub type Floats = Aligned<f32>;

impl<T> Aligned<T> {
    /// None.
    pub const fn new() -> Self {
        Self { memory: Vec::new(), first: 0, len: 0 }
    }
}

impl<T: Copy + Default> Aligned<T> {
    /// `len` defaults, which of numbers are zeros.
    pub fn zeros(len: usize) -> Self {
        let memory = vec![T::default(); len + LINE];
        ask_for_large_pages(&memory);
        Self { first: memory.as_ptr().align_offset(LINE_BYTES).min(LINE), memory, len }
    }

    /// `len` of them, of unspecified value; if there are fewer, all are replaced.
    pub fn room(&mut self, len: usize) -> &mut [T] {
        if self.len < len {
            *self = Self::zeros(len);
        }
        &mut self[..len]
    }
}

impl<T> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.memory[self.first..self.first + self.len]
    }
}

impl<T> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.memory[self.first..self.first + self.len]
    }
}

impl<T: Copy + Default> Clone for Aligned<T> {
    fn clone(&self) -> Self {
        let mut clone = Self::zeros(self.len);
        clone.copy_from_slice(self);
        clone
    }
}

/// Asks the system to map memory that was not used yet in pages of two megabytes, if it has any to spare: an activation takes
/// thousands of small ones, more than a processor knows the places of. A refusal does no harm.
#[cfg(target_os = "linux")]
fn ask_for_large_pages<T>(memory: &[T]) {
    const SMALL: usize = 4096;
    const LARGE: usize = 2 << 20;
    let (start, bytes) = (memory.as_ptr() as usize, size_of_val(memory));
    let (first, end) = (start.next_multiple_of(SMALL), (start + bytes) / SMALL * SMALL);
    if bytes >= LARGE && end > first {
        // SAFETY: these pages lie within memory that we own, and the advice changes nothing of what they hold.
        unsafe { libc::madvise(first as *mut libc::c_void, end - first, libc::MADV_HUGEPAGE) };
    }
}

/// As on Linux; no other system is asked.
#[cfg(not(target_os = "linux"))]
fn ask_for_large_pages<T>(_: &[T]) {}

/// Memory that a thread keeps from one call to the next, so that it need not be mapped anew each time.
pub(crate) type Kept<T> = LocalKey<Cell<Aligned<T>>>;

/// Runs `f` with `len` elements of the calling thread's memory, which begin at a line of cache and hold whatever was left there.
///
/// The memory is taken out of its place meanwhile: a thread that waits for its tasks may be given another call of the
/// same operation, which then finds the place empty.
pub(crate) fn with_kept<T: Copy + Default, R>(place: &'static Kept<T>, len: usize, f: impl FnOnce(&mut [T]) -> R) -> R {
    let mut memory = place.take();
    let result = f(memory.room(len));
    place.set(memory);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begins_a_line(x: &[f32]) -> bool {
        (x.as_ptr() as usize).is_multiple_of(LINE_BYTES)
    }

    #[test]
    fn kept_memory_is_used_again_and_never_twice_at_a_time() {
        thread_local! {
            static PLACE: Cell<Floats> = const { Cell::new(Floats::new()) };
        }
        let first = with_kept(&PLACE as &Kept<f32>, 8, |outer| {
            assert!(begins_a_line(outer));
            outer.fill(1.0);
            with_kept(&PLACE as &Kept<f32>, 8, |inner| {
                assert!(inner.iter().all(|x| *x == 0.0), "the inner call should find an empty place");
                inner.fill(2.0);
            });
            assert!(outer.iter().all(|x| *x == 1.0));
            outer.as_ptr()
        });
        with_kept(&PLACE as &Kept<f32>, 5, |again| {
            assert_eq!((again.len(), again.as_ptr()), (5, first));
        });
    }

    #[test]
    fn floats_begin_a_line_however_they_came_about() {
        for len in [0, 1, 15, 16, 1000, 100_000] {
            let mut floats = Floats::zeros(len);
            assert!(begins_a_line(&floats) && floats.len() == len && floats.iter().all(|x| *x == 0.0), "{len}");
            floats.iter_mut().enumerate().for_each(|(i, x)| *x = i as f32);
            let clone = floats.clone();
            assert!(begins_a_line(&clone) && clone[..] == floats[..], "{len}");
            let before = floats.as_ptr();
            assert!(std::ptr::eq(floats.room(len / 2), &floats[..len / 2]) || len == 0);
            assert_eq!(floats.as_ptr(), before, "fewer should be found where they are");
            let more = floats.room(2 * len + 1);
            assert!(begins_a_line(more) && more.len() == 2 * len + 1, "{len}");
        }
        assert!(Floats::new().is_empty());
    }
}
