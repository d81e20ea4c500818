//! The only `unsafe` of this crate: mapping a file into memory.
#![allow(unsafe_code)]

use std::borrow::Cow;
use std::fs::File;
use std::ops::{Deref, Range};

use memmap2::Mmap;
#[cfg(unix)]
use memmap2::UncheckedAdvice;

/// The content of a file: mapped, or in memory already.
pub(crate) enum Bytes {
    Mapped(Mmap),
    Memory(Cow<'static, [u8]>),
}

impl Bytes {
    /// Maps a file, read-only and private.
    pub(crate) fn map(file: &File) -> std::io::Result<Self> {
        // SAFETY: the map is read-only, and is only ever read as bytes, for which every bit pattern is valid. What
        // the type system cannot rule out is that another process truncates or rewrites the file in place while it is
        // mapped. This project itself never does: every file it writes is replaced by a rename (see the module
        // `atomic`), which leaves the mapped inode as it was, and so does the safetensors library of Python. Bytes that
        // change all the same can alter weights, but not the header, which was parsed into owned values whose
        // ranges were checked against the length of the map.
        unsafe { Mmap::map(file) }.map(Self::Mapped)
    }

    /// Gives the memory of a range back to the system, where it can be read from the file again.
    pub(crate) fn release(&self, range: &Range<usize>) {
        #[cfg(unix)]
        if let Self::Mapped(map) = self
            && range.end <= map.len()
        {
            let (start, len) = (range.start, range.len());
            // SAFETY: the map is private and never written to, so that pages which are brought in anew hold what they held.
            // If the system declines, they stay.
            let _ = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, len) };
        }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Memory(bytes) => bytes,
        }
    }
}
