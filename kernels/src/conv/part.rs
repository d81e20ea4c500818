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

/// What a result is added to while it is stored.
#[derive(Clone, Copy)]
pub(super) enum Base<'a> {
    Nothing,
    /// What is at its place.
    Itself,
    /// A tensor of the same size.
    Other(&'a [f32]),
}

/// What is added to every output of a channel, or to those of each sample.
#[derive(Clone, Copy)]
pub(super) struct Bias<'a> {
    values: &'a [f32],
    /// Floats from sample to sample; none if all have the same.
    row: usize,
}

impl<'a> Bias<'a> {
    /// `[outputs]`, the same for all samples.
    pub(super) fn of_all(values: &'a [f32]) -> Self {
        Self { values, row: 0 }
    }

    /// `[n, outputs]`.
    pub(super) fn of_each(values: &'a [f32], outputs: usize) -> Self {
        Self { values, row: outputs }
    }

    /// Those of the outputs from `first` on.
    pub(super) fn from(self, first: usize) -> Self {
        Self { values: &self.values[first..], ..self }
    }

    /// Those of sample `n` at the outputs from `first` on.
    #[inline(always)]
    pub(super) fn at(&self, n: usize, first: usize) -> &'a [f32] {
        &self.values[n * self.row + first..]
    }

    /// Those of all samples.
    pub(super) fn shared(&self) -> &'a [f32] {
        assert_eq!(self.row, 0, "a bias for each sample where all should have the same");
        self.values
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
    /// A tensor of the same size that the result is added to while it is stored, instead of what `values` hold.
    pub(super) base: Option<&'a [f32]>,
    /// `[n, channels]`, added to every pixel of a sample, in place of a bias.
    pub(super) shift: Option<&'a [f32]>,
    /// The channels that the result has, where these are not all.
    pub(super) only: Option<(usize, usize)>,
}

impl<'a> Target<'a> {
    /// A tensor to be overwritten.
    pub fn overwrite(values: &'a mut [f32], channels: usize) -> Self {
        Self { values, channels, accumulate: false, base: None, shift: None, only: None }
    }

    /// A tensor to be overwritten by the sum of `base` and the result.
    ///
    /// # Panics
    /// If the two do not have the same size.
    pub fn sum(values: &'a mut [f32], base: &'a [f32], channels: usize) -> Self {
        assert_eq!(values.len(), base.len(), "floats of a tensor that a convolution is added to");
        Self { base: Some(base), ..Self::overwrite(values, channels) }
    }

    /// The same target, where numbers `[n, channels]` are added to every pixel of a sample, in place of a bias.
    pub fn shifted(self, shift: &'a [f32]) -> Self {
        Self { shift: Some(shift), ..self }
    }

    /// The same target for a shorter time.
    pub(super) fn reborrow(&mut self) -> Target<'_> {
        Target { values: self.values, ..*self }
    }

    /// What the result is added to.
    pub(super) fn base(&self) -> Base<'a> {
        match self.base {
            Some(base) => Base::Other(base),
            None if self.accumulate => Base::Itself,
            None => Base::Nothing,
        }
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
        Self { values, channels, accumulate: true, base: None, shift: None, only: None }
    }
}
