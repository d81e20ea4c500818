//! The IDX format of the MNIST database (Y. LeCun, C. Cortes, C. Burges), plain or gzip-compressed.
//!
//! A file is a magic number `00 00 TT DD` (element type, number of dimensions), `DD` dimensions as big-endian 32-bit
//! integers, then the elements. Two kinds are read: images, `00 00 08 03` and `[N, H, W]` bytes, and labels,
//! `00 00 08 01` and `[N]` bytes. Compression is recognised by the first two bytes, not by the name.
//!
//! A header is never trusted: dimensions are checked, their product is compared with the size of the file (or with
//! what a gzip stream of that size can hold at most), memory grows with what is really read, and at most one byte
//! beyond the announced end is decompressed.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;

use crate::records::{Element, Layout, Order, Records, Stretch};
use crate::{DataError, Dataset, OpenOptions};

/// Magic number of a file of 8-bit images.
pub const IMAGES_MAGIC: u32 = 0x0000_0803;
/// Magic number of a file of 8-bit labels.
pub const LABELS_MAGIC: u32 = 0x0000_0801;
/// The greatest height or width of an image.
pub const MAX_SIDE: u32 = 1 << 14;
/// The greatest size of the elements of one file: 16 GiB.
pub const MAX_BYTES: u64 = 1 << 34;

/// How a gzip stream begins.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// DEFLATE cannot expand a byte to more than this (a match of 258 bytes takes at least two bits).
const MAX_GZIP_RATIO: u64 = 1032;

/// Images of one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdxImages {
    /// Number of images, at least one.
    pub count: usize,
    /// Height of each, at least one.
    pub rows: usize,
    /// Width of each, at least one.
    pub cols: usize,
    /// `count * rows * cols` grey levels.
    pub pixels: Vec<u8>,
}

/// Which of the two kinds of file is wanted.
#[derive(Clone, Copy)]
enum Kind {
    Images,
    Labels,
}

impl Kind {
    fn magic(self) -> u32 {
        match self {
            Self::Images => IMAGES_MAGIC,
            Self::Labels => LABELS_MAGIC,
        }
    }

    fn describe(self) -> &'static str {
        match self {
            Self::Images => "8-bit images",
            Self::Labels => "8-bit labels",
        }
    }

    fn dims(self) -> usize {
        match self {
            Self::Images => 3,
            Self::Labels => 1,
        }
    }
}

/// Reads a file of images.
///
/// # Errors
/// One for each way in which a file can be wrong, see [`DataError`]; the message names the file.
pub fn read_images(path: &Path) -> Result<IdxImages, DataError> {
    let (file, size) = open_file(path)?;
    images_from_reader(file, size, &path.display().to_string())
}

/// Reads a file of labels.
///
/// # Errors
/// As [`read_images`].
pub fn read_labels(path: &Path) -> Result<Vec<u8>, DataError> {
    let (file, size) = open_file(path)?;
    labels_from_reader(file, size, &path.display().to_string())
}

/// [`read_images`] of a file that lies in memory; `name` stands for it in messages.
///
/// # Errors
/// As [`read_images`].
pub fn images_from_bytes(bytes: &[u8], name: &str) -> Result<IdxImages, DataError> {
    images_from_reader(Cursor::new(bytes), bytes.len() as u64, name)
}

/// [`read_labels`] of a file that lies in memory; `name` stands for it in messages.
///
/// # Errors
/// As [`read_images`].
pub fn labels_from_bytes(bytes: &[u8], name: &str) -> Result<Vec<u8>, DataError> {
    labels_from_reader(Cursor::new(bytes), bytes.len() as u64, name)
}

/// [`read_images`] of any stream of `size` bytes (as stored, that is, before decompression).
///
/// # Errors
/// As [`read_images`].
pub fn images_from_reader(reader: impl Read, size: u64, name: &str) -> Result<IdxImages, DataError> {
    let (dims, pixels) = read(reader, size, name, Kind::Images)?;
    Ok(IdxImages { count: dims[0] as usize, rows: dims[1] as usize, cols: dims[2] as usize, pixels })
}

/// [`read_labels`] of any stream of `size` bytes (as stored, that is, before decompression).
///
/// # Errors
/// As [`read_images`].
pub fn labels_from_reader(reader: impl Read, size: u64, name: &str) -> Result<Vec<u8>, DataError> {
    Ok(read(reader, size, name, Kind::Labels)?.1)
}

/// A folder's data set: in memory, or on disk if it is larger than the limit and not compressed.
pub(crate) fn open(
    name: &str,
    images: &Path,
    labels: Option<&Path>,
    options: &OpenOptions,
) -> Result<Dataset, DataError> {
    let images_name = images.display().to_string();
    let labels_name = labels.map(|path| path.display().to_string()).unwrap_or_default();
    let labels = labels.map(read_labels).transpose()?;
    let (mut file, size) = open_file(images)?;
    let gzip = file.fill_buf().map_err(|source| failed(&images_name, false, source))?.starts_with(&GZIP);
    let announced = if gzip {
        let capacity = Size::AtMost(size.saturating_mul(MAX_GZIP_RATIO));
        head(&mut MultiGzDecoder::new(file), capacity, &images_name, Kind::Images)?
    } else {
        head(&mut file, Size::Exactly(size), &images_name, Kind::Images)?
    };
    if announced.count <= options.memory_limit {
        let labels = labels.map(|labels| (labels, labels_name.as_str()));
        return dataset(name, (read_images(images)?, &images_name), labels);
    }
    if gzip {
        let (bytes, limit) = (announced.count, options.memory_limit);
        return Err(DataError::Memory { file: images_name, bytes, limit, remedy: "decompress it (gunzip)" });
    }
    let shape = [1, announced.dims[1] as usize, announced.dims[2] as usize];
    let layout = Layout { shape, before: 0, element: Element::Byte, order: Order::Planar };
    let records = Records::new(vec![Stretch::open(images)?.part(announced.len, announced.count)], layout);
    let labels = labels.map(|labels| (labels, labels_name.as_str()));
    let labels = checked_labels(records.len(), &images_name, labels)?;
    Dataset::from_records(name, records, shape, labels, options)
}

/// Joins images and labels to a data set of shape `[1, H, W]`; each part comes with the name it has in messages.
///
/// # Errors
/// If there are not as many labels as images.
pub fn dataset(
    name: &str,
    (images, images_file): (IdxImages, &str),
    labels: Option<(Vec<u8>, &str)>,
) -> Result<Dataset, DataError> {
    let labels = checked_labels(images.count, images_file, labels)?;
    Dataset::new(name, [1, images.rows, images.cols], images.pixels, labels)
}

/// The labels of `images` images, as many as those.
fn checked_labels(
    images: usize,
    images_file: &str,
    labels: Option<(Vec<u8>, &str)>,
) -> Result<Option<Vec<u32>>, DataError> {
    let Some((labels, labels_file)) = labels else { return Ok(None) };
    if labels.len() != images {
        return Err(DataError::Counts {
            images,
            images_file: images_file.to_owned(),
            labels: labels.len(),
            labels_file: labels_file.to_owned(),
        });
    }
    Ok(Some(labels.into_iter().map(u32::from).collect()))
}

fn open_file(path: &Path) -> Result<(BufReader<File>, u64), DataError> {
    let wrong = |operation, source| DataError::Io { operation, path: path.to_owned(), source };
    let file = File::open(path).map_err(|e| wrong("open", e))?;
    let meta = file.metadata().map_err(|e| wrong("read", e))?;
    if !meta.is_file() {
        return Err(wrong("read", io::Error::other("it is no regular file")));
    }
    Ok((BufReader::new(file), meta.len()))
}

/// Dimensions and elements of a plain or compressed stream.
fn read(mut reader: impl Read, size: u64, name: &str, kind: Kind) -> Result<(Vec<u32>, Vec<u8>), DataError> {
    let mut start = Vec::with_capacity(2);
    reader.by_ref().take(2).read_to_end(&mut start).map_err(|source| failed(name, false, source))?;
    let gzip = start == GZIP;
    let whole = Cursor::new(start).chain(reader);
    if gzip {
        let capacity = size.saturating_mul(MAX_GZIP_RATIO);
        elements(MultiGzDecoder::new(BufReader::new(whole)), Size::AtMost(capacity), name, kind)
    } else {
        elements(whole, Size::Exactly(size), name, kind)
    }
}

/// What is known of the length of a stream before it is read.
#[derive(Clone, Copy)]
enum Size {
    Exactly(u64),
    AtMost(u64),
}

/// A checked header.
struct Head {
    /// The dimensions.
    dims: Vec<u32>,
    /// What they announce, for messages.
    announced: String,
    /// Bytes of the header.
    len: u64,
    /// Bytes of the elements.
    count: u64,
}

/// Reads the header and compares what it announces with the size of the file.
fn head(stream: &mut impl Read, size: Size, name: &str, kind: Kind) -> Result<Head, DataError> {
    let gzip = matches!(size, Size::AtMost(_));
    let file = || name.to_owned();
    let header_len = 4 + 4 * kind.dims() as u64;
    let mut header = Vec::with_capacity(16);
    stream.by_ref().take(header_len).read_to_end(&mut header).map_err(|e| failed(name, gzip, e))?;
    let words: Vec<u32> = header.chunks_exact(4).map(|w| w.iter().fold(0, |n, &b| n << 8 | u32::from(b))).collect();
    if let Some(&found) = words.first()
        && found != kind.magic()
    {
        return Err(DataError::Magic {
            file: file(),
            expected_kind: kind.describe(),
            expected: kind.magic(),
            found,
            found_kind: describe_magic(found),
        });
    }
    if (header.len() as u64) < header_len {
        let announced = format!("the header of a file of {}", kind.describe());
        return Err(DataError::Truncated { file: file(), announced, expected: header_len, found: header.len() as u64 });
    }
    let dims = words[1..].to_vec();
    let announced = match kind {
        Kind::Images => format!("{} images of {} x {}", dims[0], dims[1], dims[2]),
        Kind::Labels => format!("{} labels", dims[0]),
    };
    let absurd = |limit: String| DataError::Dimensions { file: file(), announced: announced.clone(), limit };
    if dims.contains(&0) {
        return Err(absurd("every dimension must be at least 1".into()));
    }
    if dims[1..].iter().any(|&d| d > MAX_SIDE) {
        return Err(absurd(format!("an image may be at most {MAX_SIDE} x {MAX_SIDE}")));
    }
    let count = dims.iter().try_fold(1u64, |n, &d| n.checked_mul(u64::from(d)));
    let Some(count) = count.filter(|&n| n <= MAX_BYTES && usize::try_from(n).is_ok()) else {
        return Err(absurd(format!("a file may hold at most {MAX_BYTES} bytes")));
    };
    let expected = header_len + count;
    let truncated = |found| DataError::Truncated { file: file(), announced: announced.clone(), expected, found };
    let trailing = |found| DataError::Trailing { file: file(), announced: announced.clone(), expected, found };
    match size {
        Size::Exactly(found) if found < expected => return Err(truncated(found)),
        Size::Exactly(found) if found > expected => return Err(trailing(found.to_string())),
        Size::AtMost(most) if most < expected => {
            return Err(absurd(format!("a gzip file of this size holds at most {most} bytes, so it may be cut short")));
        }
        _ => {}
    }
    Ok(Head { dims, announced, len: header_len, count })
}

fn elements(mut stream: impl Read, size: Size, name: &str, kind: Kind) -> Result<(Vec<u32>, Vec<u8>), DataError> {
    let gzip = matches!(size, Size::AtMost(_));
    let Head { dims, announced, len: header_len, count } = head(&mut stream, size, name, kind)?;
    let expected = header_len + count;
    let file = || name.to_owned();
    let truncated = |found| DataError::Truncated { file: file(), announced: announced.clone(), expected, found };
    let trailing = |found| DataError::Trailing { file: file(), announced: announced.clone(), expected, found };
    // `read_to_end` grows the vector as data arrives; the limit is one byte more, to see whether there is one.
    let mut data = Vec::new();
    stream.take(count + 1).read_to_end(&mut data).map_err(|e| match e.kind() {
        // The end of a compressed file that was cut short.
        io::ErrorKind::UnexpectedEof => truncated(header_len + data.len() as u64),
        _ => failed(name, gzip, e),
    })?;
    match data.len() as u64 {
        n if n < count => Err(truncated(header_len + n)),
        n if n > count => Err(trailing(format!("more than {expected}"))),
        _ => {
            data.shrink_to_fit();
            Ok((dims, data))
        }
    }
}

fn failed(name: &str, gzip: bool, source: io::Error) -> DataError {
    if gzip {
        DataError::Gzip { file: name.to_owned(), source }
    } else {
        DataError::Io { operation: "read", path: name.into(), source }
    }
}

/// What a magic number stands for, so that the message about a wrong one says what the file is.
fn describe_magic(magic: u32) -> String {
    let [zero0, zero1, element, dims] = magic.to_be_bytes();
    let element = match element {
        _ if (zero0, zero1) != (0, 0) => return "not an IDX file at all".into(),
        0x08 => "unsigned bytes",
        0x09 => "signed bytes",
        0x0b => "16-bit integers",
        0x0c => "32-bit integers",
        0x0d => "32-bit floats",
        0x0e => "64-bit floats",
        _ => return "not an IDX file at all".into(),
    };
    match magic {
        IMAGES_MAGIC => "8-bit images".into(),
        LABELS_MAGIC => "8-bit labels".into(),
        _ => format!("{element} in {dims} dimensions"),
    }
}
