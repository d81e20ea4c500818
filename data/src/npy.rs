//! NumPy's arrays: `.npy` (one array) and `.npz` (a ZIP archive of them).
//!
//! An `.npy` file is the magic `\x93NUMPY`, a version, the length of a header, the header as the literal of a Python dictionary
//! (`descr`, `fortran_order`, `shape`), then the elements (NumPy enhancement proposal 1). The header is parsed here, without
//! recursion: the crates that read such files hand out the elements only, and read the whole array to do so.

use std::io::{Cursor, Read};
use std::path::Path;

use zip::{CompressionMethod, ZipArchive};

use crate::records::{Element, Interval, Layout, Order, Records, Stretch};
use crate::{DataError, Dataset, OpenOptions, Split};

/// The longest header that is read; NumPy's own are a hundred bytes long.
const MAX_HEADER: usize = 1 << 16;
/// The greatest number of channels; with more of them, the order of the dimensions could not be told.
const MAX_CHANNELS: usize = 4;
/// The greatest height or width.
const MAX_SIDE: usize = 1 << 14;
/// The greatest label: a network has a row of weights for each class.
const MAX_LABEL: u64 = (1 << 16) - 1;

/// Names of the arrays of images, by preference, each with those of the labels that belong to it.
const TRAIN: [(&str, &[&str]); 5] = [
    ("x_train", &["y_train"]),
    ("train_images", &["train_labels"]),
    ("images", &["labels"]),
    ("x", &["y"]),
    ("arr_0", &["arr_1"]),
];
const TEST: [(&str, &[&str]); 2] = [("x_test", &["y_test"]), ("test_images", &["test_labels"])];

/// An array of a file.
struct Array {
    /// The type as NumPy writes it, such as `|u1` or `<f4`.
    descr: String,
    shape: Vec<usize>,
    /// The elements, as many bytes as there are; how many there should be depends on the type.
    data: Stretch,
}

impl Array {
    fn name(&self) -> &str {
        self.data.name()
    }

    fn wrong(&self, what: &'static str, expected: &str, found: String, remedy: &str) -> DataError {
        let (file, expected, remedy) = (self.name().to_owned(), expected.to_owned(), remedy.to_owned());
        DataError::Array { file, what, expected, found, remedy }
    }

    /// The number of elements, of `size` bytes each, compared with the bytes that there are.
    fn check_len(&self, size: usize) -> Result<usize, DataError> {
        let count = self.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let bytes = count.and_then(|n| n.checked_mul(size)).map(|n| n as u64);
        let announced = || format!("{} elements {:?} of {size} bytes", self.descr, self.shape);
        match (count, bytes) {
            (Some(count), Some(bytes)) if bytes == self.data.len() => Ok(count),
            (_, Some(expected)) if expected < self.data.len() => Err(DataError::Trailing {
                file: self.name().to_owned(),
                announced: announced(),
                expected,
                found: self.data.len().to_string(),
            }),
            (_, bytes) => Err(DataError::Truncated {
                file: self.name().to_owned(),
                announced: announced(),
                expected: bytes.unwrap_or(u64::MAX),
                found: self.data.len(),
            }),
        }
    }
}

/// Opens an `.npy` file of images, which has no labels and no parts.
pub(crate) fn open_npy(path: &Path, split: Split, options: &OpenOptions) -> Result<Dataset, DataError> {
    if split == Split::Test {
        return Err(no_test(&path.display().to_string()));
    }
    images(&crate::folder::name(path), parse(Stretch::open(path)?)?, None, options)
}

/// Opens an `.npz` file of images and, if it holds them, labels.
pub(crate) fn open_npz(path: &Path, split: Split, options: &OpenOptions) -> Result<Dataset, DataError> {
    let name = crate::folder::name(path);
    let file = std::fs::File::open(path).map_err(|source| DataError::Io {
        operation: "open",
        path: path.to_owned(),
        source,
    })?;
    let whole = Stretch::open(path)?;
    archive(&name, std::io::BufReader::new(file), whole, split, options)
}

/// The images of an `.npy` file in memory.
///
/// # Errors
/// As [`Dataset::open`].
pub fn npy_from_bytes(bytes: &[u8], name: &str) -> Result<Dataset, DataError> {
    images(name, parse(Stretch::memory(bytes.to_vec(), name))?, None, &OpenOptions::default())
}

/// The images and labels of an `.npz` file in memory.
///
/// # Errors
/// As [`Dataset::open`].
pub fn npz_from_bytes(bytes: &[u8], name: &str, split: Split) -> Result<Dataset, DataError> {
    let whole = Stretch::memory(bytes.to_vec(), name);
    archive(name, Cursor::new(bytes), whole, split, &OpenOptions::default())
}

fn no_test(file: &str) -> DataError {
    DataError::NoSplit { file: file.to_owned(), split: Split::Test, only: Split::Train }
}

fn archive(
    name: &str,
    reader: impl Read + std::io::Seek,
    whole: Stretch,
    split: Split,
    options: &OpenOptions,
) -> Result<Dataset, DataError> {
    let file = whole.name().to_owned();
    let mut zip = ZipArchive::new(reader).map_err(|e| broken(&file, &e))?;
    let names: Vec<String> =
        zip.file_names().flatten().filter_map(|n| n.strip_suffix(".npy").map(str::to_owned)).collect();
    let there = |(images, _): &&(&str, &[&str])| names.iter().any(|name| name == images);
    let known: &[(&str, &[&str])] = if split == Split::Train { &TRAIN } else { &TEST };
    let Some((image_name, label_names)) = known.iter().find(there) else {
        if split == Split::Test && TRAIN.iter().any(|pair| there(&pair)) {
            return Err(no_test(&file));
        }
        let expected: Vec<&str> = known.iter().map(|(images, _)| *images).collect();
        return Err(DataError::Array {
            file,
            what: "the archive",
            expected: format!("an array of images named {}", expected.join(", ")),
            found: shown(&names),
            remedy: "save it again under one of these names: np.savez(file, images=x, labels=y)".to_owned(),
        });
    };
    let labels = label_names.iter().find(|name| names.iter().any(|other| other == *name));
    let labels = labels.map(|name| entry(&mut zip, &whole, name, options)).transpose()?;
    let labels = labels.map(|array| self::labels(&array)).transpose()?;
    let array = entry(&mut zip, &whole, image_name, options)?;
    images(name, array, labels, options)
}

fn shown(names: &[String]) -> String {
    match names.len() {
        0 => "no array at all".to_owned(),
        n if n > 8 => format!("{} and {} more", names[..8].join(", "), n - 8),
        _ => names.join(", "),
    }
}

fn broken(file: &str, error: &dyn std::fmt::Display) -> DataError {
    DataError::Array {
        file: file.to_owned(),
        what: "the archive",
        expected: "a ZIP file as np.savez writes it".to_owned(),
        found: error.to_string(),
        remedy: "save it again, or copy it again".to_owned(),
    }
}

/// One array of an archive: where it lies, if it is stored as it is, or decompressed.
fn entry<R: Read + std::io::Seek>(
    zip: &mut ZipArchive<R>,
    whole: &Stretch,
    name: &str,
    options: &OpenOptions,
) -> Result<Array, DataError> {
    let label = format!("{}: {name}", whole.name());
    let entry = zip.by_name(&format!("{name}.npy")).map_err(|e| broken(&label, &e))?;
    let size = entry.size();
    if entry.compression() == CompressionMethod::Stored {
        let Some(start) = entry.data_start() else {
            return Err(broken(&label, &"an entry without a place"));
        };
        let part = whole.part(start, size);
        if part.len() != size {
            let announced = "the entry of the archive".to_owned();
            return Err(DataError::Truncated { file: label, announced, expected: size, found: part.len() });
        }
        return parse(part.renamed(label));
    }
    let limit = options.memory_limit.saturating_add(MAX_HEADER as u64);
    if size > limit {
        return Err(DataError::Memory {
            file: label,
            bytes: size,
            limit,
            remedy: "save it with np.savez, uncompressed",
        });
    }
    // Memory grows with what is there; the size that the archive announces is only a limit.
    let mut bytes = Vec::new();
    entry.take(size + 1).read_to_end(&mut bytes).map_err(|e| broken(&label, &e))?;
    if bytes.len() as u64 != size {
        return Err(broken(&label, &format!("{} bytes where {size} are announced", bytes.len())));
    }
    parse(Stretch::memory(bytes, &label))
}

/// Reads the header of an array.
fn parse(file: Stretch) -> Result<Array, DataError> {
    let wrong = |what, expected: &str, found: String| DataError::Array {
        file: file.name().to_owned(),
        what,
        expected: expected.to_owned(),
        found,
        remedy: "save it again with np.save".to_owned(),
    };
    let mut start = [0; 12];
    let some = usize::try_from(file.len()).unwrap_or(usize::MAX).min(start.len());
    file.read(0, &mut start[..some])?;
    if !start.starts_with(b"\x93NUMPY") {
        return Err(wrong("the file", "an array as np.save writes it", "another beginning".to_owned()));
    }
    let [.., major, _, a, b, c, d] = start;
    let (length, offset) = match major {
        1 => (usize::from(u16::from_le_bytes([a, b])), 10),
        2 | 3 => (u32::from_le_bytes([a, b, c, d]) as usize, 12),
        other => return Err(wrong("the version of the format", "1, 2 or 3", other.to_string())),
    };
    if length > MAX_HEADER {
        return Err(wrong("the header", &format!("at most {MAX_HEADER} bytes long"), length.to_string()));
    }
    let mut text = vec![0; length];
    file.read(offset, &mut text)?;
    let text = String::from_utf8_lossy(&text).into_owned();
    let Some(header) = Header::parse(&text) else {
        let found = text.chars().take(80).collect();
        return Err(wrong("the header", "a dictionary of descr, fortran_order and shape for plain elements", found));
    };
    let data_start = offset + length as u64;
    let array = Array {
        descr: header.descr,
        shape: header.shape,
        data: file.part(data_start, file.len().saturating_sub(data_start)),
    };
    if header.fortran_order && array.shape.len() > 1 {
        let remedy = "save it with np.save(file, np.ascontiguousarray(x))";
        return Err(array.wrong(
            "the order of the elements",
            "row by row (C)",
            "column by column (Fortran)".into(),
            remedy,
        ));
    }
    Ok(array)
}

/// The header of an array.
#[derive(Debug, PartialEq)]
struct Header {
    descr: String,
    fortran_order: bool,
    shape: Vec<usize>,
}

impl Header {
    /// Reads a dictionary with exactly the three keys, in any order, each once; `None` for anything else.
    fn parse(text: &str) -> Option<Self> {
        let mut rest = text.trim().strip_prefix('{')?.strip_suffix('}')?.trim();
        let (mut descr, mut fortran_order, mut shape) = (None, None, None);
        while !rest.is_empty() {
            let (key, tail) = quoted(rest)?;
            let tail = tail.trim_start().strip_prefix(':')?.trim_start();
            rest = match key {
                "descr" if descr.is_none() => {
                    let (text, tail) = quoted(tail)?;
                    descr = Some(text.to_owned());
                    tail
                }
                "fortran_order" if fortran_order.is_none() => {
                    let word = ["True", "False"].into_iter().find(|word| tail.starts_with(word))?;
                    fortran_order = Some(word == "True");
                    &tail[word.len()..]
                }
                "shape" if shape.is_none() => {
                    let (inside, tail) = tail.strip_prefix('(')?.split_once(')')?;
                    let numbers = inside.split(',').map(str::trim).filter(|number| !number.is_empty());
                    // Python 2 wrote `3L`.
                    let parse = |number: &str| number.strip_suffix('L').unwrap_or(number).parse().ok();
                    shape = Some(numbers.map(parse).collect::<Option<Vec<usize>>>()?);
                    tail
                }
                _ => return None,
            };
            rest = rest.trim_start();
            rest = match rest.strip_prefix(',') {
                Some(tail) => tail.trim_start(),
                None if rest.is_empty() => rest,
                None => return None,
            };
        }
        Some(Self { descr: descr?, fortran_order: fortran_order?, shape: shape? })
    }
}

/// The text in quotes at the beginning, and what follows it.
fn quoted(text: &str) -> Option<(&str, &str)> {
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    text[1..].split_once(quote)
}

/// The layout of images by the shape of their array: `[N, H, W]`, `[N, C, H, W]` or `[N, H, W, C]`.
fn layout(array: &Array, element: Element) -> Result<Layout, DataError> {
    let channels = |c: usize| (1..=MAX_CHANNELS).contains(&c);
    let (shape, order) = match *array.shape.as_slice() {
        [_, h, w] => ([1, h, w], Order::Planar),
        [_, c, h, w] if channels(c) && !channels(w) => ([c, h, w], Order::Planar),
        [_, h, w, c] if channels(c) && !channels(h) => ([c, h, w], Order::Interleaved),
        _ => {
            return Err(array.wrong(
                "the shape",
                "[N, H, W], [N, C, H, W] or [N, H, W, C] with 1 to 4 channels and larger images",
                format!("{:?}", array.shape),
                "reshape it: x.reshape(n, c, h, w), with images of more than 4 x 4 pixels",
            ));
        }
    };
    if array.shape[0] == 0 || !shape[1..].iter().all(|side| (1..=MAX_SIDE).contains(side)) {
        let expected = format!("at least one image of 1 to {MAX_SIDE} pixels a side");
        return Err(array.wrong("the shape", &expected, format!("{:?}", array.shape), "save the array again"));
    }
    Ok(Layout { shape, before: 0, element, order })
}

fn images(name: &str, array: Array, labels: Option<Vec<u32>>, options: &OpenOptions) -> Result<Dataset, DataError> {
    let element = match array.descr.as_str() {
        "|u1" | "<u1" | ">u1" | "u1" => Element::Byte,
        "<f4" => Element::F32(Interval::ZeroOne),
        "<f8" => Element::F64(Interval::ZeroOne),
        other => {
            let remedy = "save bytes: np.save(file, x.astype(np.uint8)) with values from 0 to 255";
            return Err(array.wrong("the type", "|u1 (bytes), <f4 or <f8", other.to_owned(), remedy));
        }
    };
    let mut layout = layout(&array, element)?;
    array.check_len(element.size())?;
    layout.element = match element {
        Element::Byte => Element::Byte,
        Element::F32(_) => Element::F32(interval(&array, |b| f32::from_le_bytes(b).into())?),
        Element::F64(_) => Element::F64(interval(&array, f64::from_le_bytes)?),
    };
    let shape = layout.shape;
    let in_memory = array.data.in_memory();
    let records = Records::new(vec![array.data], layout);
    if let Some(labels) = &labels
        && labels.len() != records.len()
    {
        let file = name.to_owned();
        return Err(DataError::Counts {
            images: records.len(),
            images_file: file.clone(),
            labels: labels.len(),
            labels_file: file,
        });
    }
    // What was decompressed is in memory anyway.
    let options = if in_memory { &OpenOptions { memory_limit: u64::MAX, ..options.clone() } } else { options };
    Dataset::from_records(name, records, shape, labels, options)
}

/// The interval that the numbers of an array fill, as far as they tell.
fn interval<const N: usize>(array: &Array, decode: impl Fn([u8; N]) -> f64) -> Result<Interval, DataError> {
    let (mut least, mut most, mut finite) = (f64::INFINITY, f64::NEG_INFINITY, true);
    array.data.for_each(N, |bytes| {
        for value in bytes.as_chunks::<N>().0.iter().map(|b| decode(*b)) {
            finite &= value.is_finite();
            least = least.min(value);
            most = most.max(value);
        }
    })?;
    const BYTES: &str = "save bytes: np.save(file, x.astype(np.uint8)) with values from 0 to 255";
    if !finite {
        return Err(array.wrong("every number", "finite", "NaN or an infinity".into(), "mend the data"));
    }
    match (least, most) {
        (0.0.., ..=1.0) => Ok(Interval::ZeroOne),
        (-1.0.., ..=1.0) => Ok(Interval::MinusOneOne),
        _ => {
            let found = format!("numbers from {least} to {most}");
            Err(array.wrong("the range of the numbers", "[0, 1] or [-1, 1]", found, BYTES))
        }
    }
}

/// The classes of an array of integers, `[N]` or `[N, 1]`.
fn labels(array: &Array) -> Result<Vec<u32>, DataError> {
    let ok = matches!(*array.shape.as_slice(), [_] | [_, 1]);
    if !ok {
        let found = format!("{:?}", array.shape);
        return Err(array.wrong("the shape of the labels", "[N]", found, "reshape them: y.reshape(-1)"));
    }
    let digits = array.descr.trim_start_matches(['<', '|']);
    let (signed, size) = match digits {
        "u1" => (false, 1),
        "u2" => (false, 2),
        "u4" => (false, 4),
        "u8" => (false, 8),
        "i1" => (true, 1),
        "i2" => (true, 2),
        "i4" => (true, 4),
        "i8" => (true, 8),
        _ => {
            let remedy = "save class numbers: y.astype(np.int64), from 0 on";
            return Err(array.wrong("the type of the labels", "integers", array.descr.clone(), remedy));
        }
    };
    let count = array.check_len(size)?;
    let mut labels = Vec::with_capacity(count);
    let mut bad = None;
    array.data.for_each(size, |bytes| {
        for number in bytes.chunks_exact(size) {
            let word = number.iter().rev().fold(0u64, |word, &byte| word << 8 | u64::from(byte));
            let negative = signed && number[size - 1] & 0x80 != 0;
            if (negative || word > MAX_LABEL) && bad.is_none() {
                let found = if negative { "a negative number".to_owned() } else { word.to_string() };
                bad = Some((labels.len(), found));
            }
            labels.push(word as u32);
        }
    })?;
    match bad {
        None => Ok(labels),
        Some((index, found)) => Err(DataError::Label {
            file: array.name().to_owned(),
            index,
            found,
            expected: format!("from 0 to {MAX_LABEL}"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_in_any_order_and_nothing_else_is() {
        let header = |text: &str| Header::parse(text).map(|h| (h.descr, h.fortran_order, h.shape));
        let expected = Some(("|u1".to_owned(), false, vec![2, 3]));
        assert_eq!(header("{'descr': '|u1', 'fortran_order': False, 'shape': (2, 3), }   \n"), expected);
        assert_eq!(header("{\"shape\":(2L,3L),'fortran_order':False,'descr':'|u1'}"), expected);
        assert_eq!(header("{'descr': '<f4', 'fortran_order': True, 'shape': ()}").unwrap().2, [0usize; 0]);
        for wrong in [
            "",
            "{}",
            "{'descr': '|u1', 'fortran_order': False}",
            "{'descr': '|u1', 'fortran_order': False, 'shape': (2, -3)}",
            "{'descr': '|u1', 'fortran_order': False, 'shape': (2, 3), 'shape': (2, 3)}",
            "{'descr': '|u1', 'fortran_order': 0, 'shape': (2, 3)}",
            "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,)}",
            "{'descr': '|u1' 'fortran_order': False, 'shape': (2, 3)}",
            "{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999999999999999,)}",
            "{'descr': '|u1', 'fortran_order': False, 'shape': (2, 3), 'more': 1}",
            "{'\u{e9}",
        ] {
            assert_eq!(header(wrong), None, "{wrong}");
        }
    }
}
