//! What a convolution reads and writes: tensors whose channels are joined without being copied together.

use std::ops::Range;

use crate::channels::add_row;
use crate::map::{Map, read_row};
use crate::simd::Simd;

/// A tensor `[n, h, w, channels]` that is read as some of the channels of a convolution's input.
///
/// What is read is `act(x scale + shift) + add`; outside the picture it is zero.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// The tensor.
    pub values: &'a [f32],
    /// Its channels.
    pub channels: usize,
    /// A normalisation that is carried out while reading.
    pub map: Option<Map<'a>>,
    /// `[n, channels]`, added to every pixel of a sample after the normalisation.
    pub add: Option<&'a [f32]>,
}

impl<'a> Part<'a> {
    /// A tensor that is read as it is.
    pub fn plain(values: &'a [f32], channels: usize) -> Self {
        Self { values, channels, map: None, add: None }
    }

    /// Whether it is read as it is.
    pub fn is_plain(&self) -> bool {
        self.map.is_none() && self.add.is_none()
    }

    /// Reads neighbouring pixels of sample `n` into `y`.
    #[inline(always)]
    pub(super) fn read<S: Simd>(&self, s: S, n: usize, x: &[f32], y: &mut [f32]) {
        let c = self.channels;
        match &self.map {
            Some(map) => read_row(s, x, map, n, c, y),
            None => y.copy_from_slice(x),
        }
        if let Some(add) = self.add {
            let add = &add[n * c..][..c];
            for pixel in y.chunks_exact_mut(c) {
                add_row(s, add, pixel);
            }
        }
    }

    #[track_caller]
    pub(super) fn check(&self, operation: &str, n: usize, pixels: usize) {
        assert_eq!(
            self.values.len(),
            pixels * self.channels,
            "{operation}: floats of a part of {} channels",
            self.channels
        );
        if let Some(map) = &self.map {
            map.check(operation, n, self.channels);
        }
        if let Some(add) = self.add {
            assert_eq!(
                add.len(),
                n * self.channels,
                "{operation}: floats to be added to a part of {} channels",
                self.channels
            );
        }
    }
}

/// A tensor `[n, h, w, channels]` that receives some of the channels of a result.
#[derive(Debug)]
pub struct Target<'a> {
    /// The tensor.
    pub values: &'a mut [f32],
    /// Its channels.
    pub channels: usize,
    /// Whether the result is added to what the tensor holds; otherwise it is overwritten.
    pub accumulate: bool,
    /// The channels that the result has, where these are not all.
    pub(super) only: Option<(usize, usize)>,
}

impl<'a> Target<'a> {
    /// A tensor to be overwritten.
    pub fn overwrite(values: &'a mut [f32], channels: usize) -> Self {
        Self { values, channels, accumulate: false, only: None }
    }

    /// The same target for a shorter time.
    pub(super) fn reborrow(&mut self) -> Target<'_> {
        Target { values: self.values, channels: self.channels, accumulate: self.accumulate, only: self.only }
    }

    /// Some channels of it, for a shorter time.
    pub(super) fn only(&mut self, channels: Range<usize>) -> Target<'_> {
        Target { only: Some((channels.start, channels.end)), ..self.reborrow() }
    }

    /// The channels that the result has.
    pub(super) fn columns(&self) -> Range<usize> {
        let (start, end) = self.only.unwrap_or((0, self.channels));
        start..end
    }

    /// A tensor that the result is added to.
    pub fn accumulate(values: &'a mut [f32], channels: usize) -> Self {
        Self { values, channels, accumulate: true, only: None }
    }
}
