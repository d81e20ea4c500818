//! Division of work among threads, by shape alone.
//!
//! Every partition here is a function of lengths, never of the number of threads, and every chunk is worked through
//! in order, so that results have the same bits whatever the pool.

use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

/// Floats that one task works on: 64 KiB, so that what a task reads twice stays in the second-level cache.
pub(crate) const CHUNK: usize = 16 * 1024;

/// Rows of `row_len` floats in one chunk: about [`CHUNK`] floats, at least one row.
pub(crate) fn chunk_rows(row_len: usize) -> usize {
    (CHUNK / row_len.max(1)).max(1)
}

/// Calls `f(first_row, rows)` for chunks of the rows of `y`, in parallel.
pub(crate) fn rows_mut<T: Send>(y: &mut [T], row_len: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    if y.is_empty() {
        return;
    }
    let rows = chunk_rows(row_len);
    if y.len() <= rows * row_len {
        return f(0, y);
    }
    y.par_chunks_mut(rows * row_len).enumerate().for_each(|(i, y)| f(i * rows, y));
}

/// `range` in parts of `most` at most, as equal as can be.
pub(crate) fn shares(range: Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> {
    let (start, len) = (range.start, range.len());
    let count = len.div_ceil(most);
    (0..count).map(move |i| start + i * len / count..start + (i + 1) * len / count)
}

/// Calls `f(i)` for `i` in `0..tasks`, in parallel.
pub(crate) fn tasks(tasks: usize, f: impl Fn(usize) + Sync + Send) {
    match tasks {
        0 => (),
        1 => f(0),
        _ => (0..tasks).into_par_iter().for_each(f),
    }
}

/// Runs `work` on one of the threads that share parallel work: each of its parallel parts then begins at once, where from any other
/// thread it begins with a message and ends with one.
pub fn in_pool<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| work())
}

/// A mutable slice that several tasks write to, each its own elements.
#[derive(Clone, Copy)]
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: the slice is borrowed for 'a, and those who take parts of it vouch that the parts are disjoint.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above; parts that are only read may be read by several threads.
unsafe impl<T: Send + Sync> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    /// Borrows `slice`.
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// The first element, for those who work out by pointers where their own elements lie.
    pub(crate) fn start(&self) -> *mut T {
        self.start
    }

    /// The element `start`, of `len` among which a task's own lie scattered.
    pub(crate) fn among(&self, start: usize, len: usize) -> *mut T {
        self.check(start, len);
        self.start.wrapping_add(start)
    }

    #[inline(always)]
    fn check(&self, start: usize, len: usize) {
        assert!(start <= self.len && len <= self.len - start, "part {start}+{len} of a slice of {}", self.len);
    }

    /// The elements `start..start + len`.
    ///
    /// # Safety
    /// No other part taken at the same time may overlap this one.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn part(&self, start: usize, len: usize) -> &'a mut [T] {
        self.check(start, len);
        // SAFETY: in bounds by the assertion; disjoint from other parts by the caller's word.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }

    /// The elements `start..start + len`, to be read.
    ///
    /// # Safety
    /// No part that is taken for writing at the same time may overlap this one.
    pub(crate) unsafe fn read(&self, start: usize, len: usize) -> &'a [T] {
        self.check(start, len);
        // SAFETY: in bounds by the assertion; the caller vouches that nothing writes there.
        unsafe { std::slice::from_raw_parts(self.start.add(start), len) }
    }
}

/// Asserts that a slice has the length that the dimensions ask for.
#[track_caller]
pub(crate) fn check_len(operation: &str, name: &str, found: usize, expected: usize) {
    assert!(found == expected, "{operation}: {name} has {found} elements, its dimensions ask for {expected}");
}
