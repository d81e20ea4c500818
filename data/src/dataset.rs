use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use ndarray::{Array4, Axis};
use rayon::prelude::*;

use crate::records::Records;
use crate::{DataError, OpenOptions};

/// Which part of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Split {
    /// What a model is trained on.
    Train,
    /// What it is evaluated on.
    Test,
}

impl Split {
    /// The part that this one is not.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Train => Self::Test,
            Self::Test => Self::Train,
        }
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Train => "train",
            Self::Test => "test",
        })
    }
}

/// The interval that pixel bytes 0..=255 are mapped to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Range {
    /// `[-1, 1]`, what diffusers models are trained on: `(2 b - 255) / 255`.
    MinusOneOne,
    /// `[0, 1]`, what the `book` network is trained on: `b / 255`.
    ZeroOne,
}

impl Range {
    /// The value of a pixel byte, correctly rounded; 0 and 255 meet the ends of the interval exactly.
    pub fn from_byte(self, byte: u8) -> f32 {
        let b = f32::from(byte);
        match self {
            Self::MinusOneOne => (2.0 * b - 255.0) / 255.0,
            Self::ZeroOne => b / 255.0,
        }
    }

    /// The nearest pixel byte of a value; what lies outside the interval is clamped, NaN becomes 0.
    pub fn to_byte(self, value: f32) -> u8 {
        let unit = match self {
            Self::MinusOneOne => 0.5 * value + 0.5,
            Self::ZeroOne => value,
        };
        // A float-to-integer cast saturates and maps NaN to zero.
        (unit * 255.0).round() as u8
    }
}

/// Some images of a data set, ready for a network.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// `[N, C, H, W]` in the [`Range`] that was asked for.
    pub images: Array4<f32>,
    /// One class per image; empty if the data set has no labels.
    pub labels: Vec<usize>,
}

impl Batch {
    /// Mirrors images left to right: those whose entry of `flips` is true.
    pub fn flip(&mut self, flips: &[bool]) {
        for (mut image, _) in self.images.outer_iter_mut().zip(flips).filter(|(_, flip)| **flip) {
            for mut row in image.lanes_mut(Axis(2)) {
                let width = row.len();
                (0..width / 2).for_each(|i| row.swap(i, width - 1 - i));
            }
        }
    }
}

/// The hash FNV-1a (Fowler, Noll & Vo 1991): not against malice, but enough to notice other data.
pub(crate) struct Fnv(pub(crate) u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |h, &byte| (h ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    }
}

/// Images that are read when they are asked for.
pub(crate) trait Stored: Send + Sync {
    /// Fills `into` with the bytes `[C, H, W]` of an image that exists.
    fn read(&self, index: usize, into: &mut [u8]) -> Result<(), DataError>;
}

/// Where images are.
#[derive(Clone)]
pub(crate) enum Source {
    /// All of them, one after the other.
    Memory(Vec<u8>),
    /// On disk.
    Disk(Arc<dyn Stored>),
}

/// What a reader found out about a data set, but for labels.
pub(crate) struct Loaded {
    pub(crate) source: Source,
    pub(crate) len: usize,
    /// Where that of the bytes would take too long.
    pub(crate) fingerprint: Option<u64>,
    pub(crate) notes: Vec<String>,
}

/// Images of one shape, stored as bytes, with or without class labels: in memory, or on disk where they are large.
#[derive(Clone)]
pub struct Dataset {
    name: String,
    shape: [usize; 3],
    len: usize,
    source: Source,
    labels: Option<Vec<u32>>,
    classes: usize,
    class_names: Vec<String>,
    fingerprint: Option<u64>,
    notes: Vec<String>,
}

impl Dataset {
    /// A data set from its parts: `images` holds `N * C * H * W` bytes, `shape` is `[C, H, W]`.
    ///
    /// The number of classes is the greatest label plus one.
    ///
    /// # Errors
    /// If a dimension is zero, there is no image, the bytes are no whole number of images, there are more than
    /// `u32::MAX` of them, or the number of labels differs from theirs.
    pub fn new(
        name: impl Into<String>,
        shape: [usize; 3],
        images: Vec<u8>,
        labels: Option<Vec<u32>>,
    ) -> Result<Self, DataError> {
        let name = name.into();
        let wrong = |what, expected: String, found| Err(DataError::Parts { name: name.clone(), what, expected, found });
        let Some(size) = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|&n| n > 0) else {
            return wrong("the shape", "[C, H, W], all positive".into(), format!("{shape:?}"));
        };
        if images.is_empty() || !images.len().is_multiple_of(size) {
            return wrong("the number of bytes", format!("a positive multiple of {size}"), images.len().to_string());
        }
        let len = images.len() / size;
        let loaded = Loaded { source: Source::Memory(images), len, fingerprint: None, notes: Vec::new() };
        Self::assemble(name, shape, loaded, labels)
    }

    /// The checks that all data sets pass: `loaded` holds `len` images, at least one.
    pub(crate) fn assemble(
        name: impl Into<String>,
        shape: [usize; 3],
        loaded: Loaded,
        labels: Option<Vec<u32>>,
    ) -> Result<Self, DataError> {
        let Loaded { source, len, fingerprint, notes } = loaded;
        let name = name.into();
        let wrong = |what, expected: String, found| Err(DataError::Parts { name: name.clone(), what, expected, found });
        if u32::try_from(len).is_err() {
            return wrong("the number of images", format!("at most {}", u32::MAX), len.to_string());
        }
        if let Some(labels) = &labels
            && labels.len() != len
        {
            return wrong("the number of labels", len.to_string(), labels.len().to_string());
        }
        let classes = labels.iter().flatten().max().map_or(0, |&y| y as usize + 1);
        Ok(Self { name, shape, len, source, labels, classes, class_names: Vec::new(), fingerprint, notes })
    }

    /// Records, read into memory if they fit there.
    pub(crate) fn from_records(
        name: &str,
        records: Records,
        shape: [usize; 3],
        labels: Option<Vec<u32>>,
        options: &OpenOptions,
    ) -> Result<Self, DataError> {
        let len = records.len();
        let fits = records.bytes() <= options.memory_limit;
        let source = if fits { Source::Memory(records.load()?) } else { Source::Disk(Arc::new(records)) };
        Self::assemble(name, shape, Loaded { source, len, fingerprint: None, notes: Vec::new() }, labels)
    }

    /// Gives the classes names; there may be more of them than the labels use. No names change nothing.
    pub(crate) fn with_class_names(mut self, names: Vec<String>) -> Result<Self, DataError> {
        if !names.is_empty() && names.len() < self.classes {
            let (expected, found) = (format!("at least {}", self.classes), names.len().to_string());
            return Err(DataError::Parts { name: self.name, what: "the number of class names", expected, found });
        }
        self.classes = self.classes.max(names.len());
        self.class_names = names;
        Ok(self)
    }

    /// The name by which logs and run records call this data set.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Number of images, at least one.
    #[expect(clippy::len_without_is_empty, reason = "a data set is never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// `[C, H, W]` of every image.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// Number of classes: the number of their names or, where they have none, the greatest label plus one; `0` without
    /// labels.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// The names of the classes, in the order of their labels; empty if they have none.
    pub fn class_names(&self) -> &[String] {
        &self.class_names
    }

    /// The class of every image, if the data set has labels.
    pub fn labels(&self) -> Option<&[u32]> {
        self.labels.as_deref()
    }

    /// What the user should know of the reading, such as files that were left out; a sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Whether images stay on disk until they are asked for, see [`OpenOptions::memory_limit`].
    pub fn is_on_disk(&self) -> bool {
        matches!(self.source, Source::Disk(_))
    }

    /// A number that tells these images and labels from others: FNV-1a of all bytes; for folders of images, of the names
    /// and sizes of their files. It does not depend on whether they are in memory.
    ///
    /// # Errors
    /// If images on disk cannot be read.
    pub fn fingerprint(&self) -> Result<u64, DataError> {
        if let Some(fingerprint) = self.fingerprint {
            return Ok(fingerprint);
        }
        let mut hash = Fnv::default();
        for index in 0..self.len {
            hash.add(&self.image(index)?);
        }
        self.labels.iter().flatten().for_each(|label| hash.add(&label.to_le_bytes()));
        Ok(hash.0)
    }

    /// The bytes of image `index`, `C * H * W` of them.
    ///
    /// # Errors
    /// If there is no such image, or it cannot be read from disk.
    pub fn image(&self, index: usize) -> Result<Cow<'_, [u8]>, DataError> {
        if index >= self.len {
            return Err(DataError::Index { name: self.name.clone(), len: self.len, index });
        }
        let size = self.shape.iter().product::<usize>();
        match &self.source {
            Source::Memory(images) => Ok(Cow::Borrowed(&images[index * size..(index + 1) * size])),
            Source::Disk(stored) => {
                let mut image = vec![0; size];
                stored.read(index, &mut image)?;
                Ok(Cow::Owned(image))
            }
        }
    }

    /// The images of `indices`, in that order, as `f32` in `range`, with their labels.
    ///
    /// # Errors
    /// If an index is not below [`Dataset::len`] (those of [`crate::batch_indices`] always are), or an image cannot be read
    /// from disk.
    pub fn batch(&self, indices: &[usize], range: Range) -> Result<Batch, DataError> {
        // A table of all 256 values keeps the division out of the loop over pixels.
        let table: [f32; 256] = std::array::from_fn(|b| range.from_byte(b as u8));
        let [c, h, w] = self.shape;
        let size = c * h * w;
        let mut values = vec![0.0; indices.len() * size];
        let row = |(row, &index): (&mut [f32], &usize)| {
            let image = self.image(index)?;
            row.iter_mut().zip(&*image).for_each(|(value, &byte)| *value = table[usize::from(byte)]);
            Ok(())
        };
        if self.is_on_disk() {
            // To decode an image takes time. Of several errors the first in the batch is returned.
            let rows: Vec<_> = values.par_chunks_mut(size).zip(indices).map(row).collect();
            rows.into_iter().collect::<Result<(), DataError>>()?;
        } else {
            values.chunks_mut(size).zip(indices).try_for_each(row)?;
        }
        let labels = match &self.labels {
            Some(labels) => indices.iter().map(|&i| labels[i] as usize).collect(),
            None => Vec::new(),
        };
        // The number of values is the product of the dimensions.
        let images = Array4::from_shape_vec((indices.len(), c, h, w), values).unwrap_or_default();
        Ok(Batch { images, labels })
    }
}

impl fmt::Debug for Dataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dataset")
            .field("name", &self.name)
            .field("len", &self.len)
            .field("shape", &self.shape)
            .field("classes", &self.classes)
            .field("on_disk", &self.is_on_disk())
            .finish_non_exhaustive()
    }
}
