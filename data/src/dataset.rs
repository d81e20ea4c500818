use std::fmt;

use ndarray::Array4;

use crate::DataError;

/// Which part of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Split {
    /// What a model is trained on.
    Train,
    /// What it is evaluated on.
    Test,
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

/// Images of one shape, stored as bytes, with or without class labels.
#[derive(Clone, PartialEq, Eq)]
pub struct Dataset {
    name: String,
    shape: [usize; 3],
    len: usize,
    images: Vec<u8>,
    labels: Option<Vec<u32>>,
    classes: usize,
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
        let wrong =
            |what, expected: String, found: String| Err(DataError::Parts { name: name.clone(), what, expected, found });
        let Some(size) = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|&n| n > 0) else {
            return wrong("the shape", "[C, H, W], all positive".into(), format!("{shape:?}"));
        };
        if images.is_empty() || !images.len().is_multiple_of(size) {
            return wrong("the number of bytes", format!("a positive multiple of {size}"), images.len().to_string());
        }
        let len = images.len() / size;
        if u32::try_from(len).is_err() {
            return wrong("the number of images", format!("at most {}", u32::MAX), len.to_string());
        }
        if let Some(labels) = &labels
            && labels.len() != len
        {
            return wrong("the number of labels", len.to_string(), labels.len().to_string());
        }
        let classes = labels.iter().flatten().max().map_or(0, |&y| y as usize + 1);
        Ok(Self { name, shape, len, images, labels, classes })
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

    /// Number of classes: the greatest label plus one, `0` without labels.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// The class of every image, if the data set has labels.
    pub fn labels(&self) -> Option<&[u32]> {
        self.labels.as_deref()
    }

    /// The bytes of image `index`, `C * H * W` of them; `None` beyond the last image.
    pub fn image(&self, index: usize) -> Option<&[u8]> {
        let size = self.images.len() / self.len;
        let start = index.checked_mul(size)?;
        self.images.get(start..start.checked_add(size)?)
    }

    /// The images of `indices`, in that order, as `f32` in `range`, with their labels.
    ///
    /// # Panics
    /// If an index is not below [`Dataset::len`]; those of [`crate::batch_indices`] always are.
    pub fn batch(&self, indices: &[usize], range: Range) -> Batch {
        // A table of all 256 values keeps the division out of the loop over pixels.
        let table: [f32; 256] = std::array::from_fn(|b| range.from_byte(b as u8));
        let [c, h, w] = self.shape;
        let mut images = Array4::zeros((indices.len(), c, h, w));
        let mut labels = Vec::with_capacity(if self.labels.is_some() { indices.len() } else { 0 });
        for (mut row, &i) in images.outer_iter_mut().zip(indices) {
            let bytes = self.image(i).unwrap_or_else(|| panic!("image {i} of {} in {}", self.len, self.name));
            for (value, &byte) in row.iter_mut().zip(bytes) {
                *value = table[usize::from(byte)];
            }
            labels.extend(self.labels.as_ref().map(|y| y[i] as usize));
        }
        Batch { images, labels }
    }
}

impl fmt::Debug for Dataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dataset")
            .field("name", &self.name)
            .field("len", &self.len)
            .field("shape", &self.shape)
            .field("classes", &self.classes)
            .finish_non_exhaustive()
    }
}
