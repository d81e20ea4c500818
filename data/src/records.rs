//! Images of one shape as records of fixed length, in files or in memory, read one by one.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::DataError;
use crate::dataset::Stored;

/// The bytes of a file, where they lie.
enum Place {
    /// On disk; each read goes to its own position.
    File(Mutex<File>),
    /// In memory, because they were compressed.
    Memory(Vec<u8>),
}

/// A part of a file, or bytes in memory that stand for one.
#[derive(Clone)]
pub(crate) struct Stretch {
    place: Arc<Place>,
    name: String,
    start: u64,
    len: u64,
}

impl Stretch {
    /// A whole file.
    pub(crate) fn open(path: &Path) -> Result<Self, DataError> {
        let wrong = |operation, source| DataError::Io { operation, path: path.to_owned(), source };
        let file = File::open(path).map_err(|e| wrong("open", e))?;
        let meta = file.metadata().map_err(|e| wrong("read", e))?;
        if !meta.is_file() {
            return Err(wrong("read", std::io::Error::other("it is no regular file")));
        }
        let place = Arc::new(Place::File(Mutex::new(file)));
        Ok(Self { place, name: path.display().to_string(), start: 0, len: meta.len() })
    }

    /// Bytes in memory; `name` stands for them in messages.
    pub(crate) fn memory(bytes: Vec<u8>, name: &str) -> Self {
        let len = bytes.len() as u64;
        Self { place: Arc::new(Place::Memory(bytes)), name: name.to_owned(), start: 0, len }
    }

    /// The part from `start` on, `len` bytes of it, or fewer where this one ends before.
    pub(crate) fn part(&self, start: u64, len: u64) -> Self {
        let start = start.min(self.len);
        Self { start: self.start + start, len: len.min(self.len - start), ..self.clone() }
    }

    pub(crate) fn renamed(self, name: String) -> Self {
        Self { name, ..self }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Whether its bytes are in memory already.
    pub(crate) fn in_memory(&self) -> bool {
        matches!(*self.place, Place::Memory(_))
    }

    /// Fills `into` with the bytes from `offset` on.
    pub(crate) fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), DataError> {
        let end = offset.checked_add(into.len() as u64).filter(|&end| end <= self.len);
        let Some(end) = end else {
            let announced = format!("{} bytes from byte {offset} on", into.len());
            let expected = offset.saturating_add(into.len() as u64);
            return Err(DataError::Truncated { file: self.name.clone(), announced, expected, found: self.len });
        };
        let (from, to) = (self.start + offset, self.start + end);
        match &*self.place {
            // The part lies within the bytes, whose length is a usize.
            Place::Memory(bytes) => into.copy_from_slice(&bytes[from as usize..to as usize]),
            Place::File(file) => {
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                let read = file.seek(SeekFrom::Start(from)).and_then(|_| file.read_exact(into));
                let wrong = |source| DataError::Io { operation: "read", path: PathBuf::from(&self.name), source };
                read.map_err(wrong)?;
            }
        }
        Ok(())
    }

    /// Calls `take` with the bytes, in pieces of whole multiples of `unit` bytes, from the first to the last.
    pub(crate) fn for_each(&self, unit: usize, mut take: impl FnMut(&[u8])) -> Result<(), DataError> {
        let piece = (1 << 20) / unit.max(1) * unit.max(1);
        let mut buffer = vec![0; piece.max(unit).min(usize::try_from(self.len).unwrap_or(usize::MAX))];
        let mut offset = 0;
        while offset < self.len {
            let some = buffer.len().min(usize::try_from(self.len - offset).unwrap_or(usize::MAX));
            self.read(offset, &mut buffer[..some])?;
            take(&buffer[..some]);
            offset += some as u64;
        }
        Ok(())
    }
}

/// The interval of the numbers of an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interval {
    /// `[0, 1]`.
    ZeroOne,
    /// `[-1, 1]`.
    MinusOneOne,
}

/// What a pixel is stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    /// A byte.
    Byte,
    /// Little-endian single precision.
    F32(Interval),
    /// Little-endian double precision.
    F64(Interval),
}

impl Element {
    /// Bytes of one.
    pub(crate) fn size(self) -> usize {
        match self {
            Self::Byte => 1,
            Self::F32(_) => 4,
            Self::F64(_) => 8,
        }
    }

    /// The nearest pixel bytes of numbers as they are stored.
    fn decode(self, stored: &[u8], into: &mut [u8]) {
        fn pixel(value: f64, interval: Interval) -> u8 {
            let unit = match interval {
                Interval::ZeroOne => value,
                Interval::MinusOneOne => 0.5 * value + 0.5,
            };
            (unit * 255.0).round() as u8
        }
        match self {
            Self::Byte => into.copy_from_slice(stored),
            Self::F32(interval) => {
                for (to, from) in into.iter_mut().zip(stored.as_chunks::<4>().0) {
                    *to = pixel(f32::from_le_bytes(*from).into(), interval);
                }
            }
            Self::F64(interval) => {
                for (to, from) in into.iter_mut().zip(stored.as_chunks::<8>().0) {
                    *to = pixel(f64::from_le_bytes(*from), interval);
                }
            }
        }
    }
}

/// The order of the pixels of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Channel after channel: `[C, H, W]`.
    Planar,
    /// Pixel after pixel: `[H, W, C]`.
    Interleaved,
}

/// How a record is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// `[C, H, W]`, all positive, with a product that fits a usize.
    pub(crate) shape: [usize; 3],
    /// Bytes before the pixels.
    pub(crate) before: usize,
    pub(crate) element: Element,
    pub(crate) order: Order,
}

impl Layout {
    /// Pixels of all channels.
    pub(crate) fn pixels(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes of a record.
    pub(crate) fn stride(&self) -> usize {
        self.before + self.pixels() * self.element.size()
    }
}

/// Records of one layout in one or several files, each of a whole number of them.
pub(crate) struct Records {
    /// Each with the number of records before it.
    files: Vec<(usize, Stretch)>,
    layout: Layout,
    len: usize,
}

impl Records {
    /// Records in files whose sizes were checked.
    pub(crate) fn new(files: Vec<Stretch>, layout: Layout) -> Self {
        let mut len = 0;
        let numbered = files.into_iter().map(|file| {
            let first = len;
            len += usize::try_from(file.len() / layout.stride() as u64).unwrap_or(usize::MAX);
            (first, file)
        });
        let files = numbered.collect();
        Self { files, layout, len }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Bytes of all images once they are decoded.
    pub(crate) fn bytes(&self) -> u64 {
        self.len as u64 * self.layout.pixels() as u64
    }

    /// Every image.
    pub(crate) fn load(&self) -> Result<Vec<u8>, DataError> {
        let size = self.layout.pixels();
        let mut images = vec![0; self.len * size];
        for (index, image) in images.chunks_exact_mut(size).enumerate() {
            self.read(index, image)?;
        }
        Ok(images)
    }
}

impl Stored for Records {
    fn read(&self, index: usize, into: &mut [u8]) -> Result<(), DataError> {
        let Layout { shape: [channels, height, width], before, element, order } = self.layout;
        // The first file starts at record 0, so one does at or before any index.
        let file = self.files.partition_point(|(first, _)| *first <= index) - 1;
        let (first, file) = &self.files[file];
        let offset = (index - first) as u64 * self.layout.stride() as u64 + before as u64;
        if element == Element::Byte && (order == Order::Planar || channels == 1) {
            return file.read(offset, into);
        }
        let mut stored = vec![0; self.layout.pixels() * element.size()];
        file.read(offset, &mut stored)?;
        if order == Order::Planar || channels == 1 {
            element.decode(&stored, into);
            return Ok(());
        }
        let mut pixels = vec![0; self.layout.pixels()];
        element.decode(&stored, &mut pixels);
        let plane = height * width;
        for (i, pixel) in pixels.chunks_exact(channels).enumerate() {
            for (c, &value) in pixel.iter().enumerate() {
                into[c * plane + i] = value;
            }
        }
        Ok(())
    }
}
