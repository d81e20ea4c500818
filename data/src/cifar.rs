//! The binary files of CIFAR-10 and CIFAR-100 (A. Krizhevsky, "Learning multiple layers of features from tiny images", 2009).
//!
//! A file is a sequence of records: one byte of label (CIFAR-100: two, the superclass and the class), then 3072 bytes of a
//! 32 x 32 image, the red plane first, then green and blue, each row by row.

use std::fs;
use std::path::{Path, PathBuf};

use crate::records::{Element, Layout, Order, Records, Stretch};
use crate::{DataError, Dataset, OpenOptions, Split};

/// Which of the two data sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cifar {
    /// 10 classes; `data_batch_1.bin` to `data_batch_5.bin`, `test_batch.bin`, `batches.meta.txt`.
    Ten,
    /// 100 classes, of which the fine ones are read; `train.bin`, `test.bin`, `fine_label_names.txt`.
    Hundred,
}

impl Cifar {
    /// Number of classes.
    pub fn classes(self) -> usize {
        match self {
            Self::Ten => 10,
            Self::Hundred => 100,
        }
    }

    fn layout(self) -> Layout {
        let before = match self {
            Self::Ten => 1,
            Self::Hundred => 2,
        };
        Layout { shape: [3, 32, 32], before, element: Element::Byte, order: Order::Planar }
    }

    /// Bytes of a record.
    pub fn record(self) -> usize {
        self.layout().stride()
    }

    fn files(self, split: Split) -> Vec<String> {
        match (self, split) {
            (Self::Ten, Split::Train) => (1..=5).map(|i| format!("data_batch_{i}.bin")).collect(),
            (Self::Ten, Split::Test) => vec!["test_batch.bin".to_owned()],
            (Self::Hundred, split) => vec![format!("{split}.bin")],
        }
    }

    fn names_file(self) -> &'static str {
        match self {
            Self::Ten => "batches.meta.txt",
            Self::Hundred => "fine_label_names.txt",
        }
    }

    /// The data set whose files a folder holds, if it holds any of them.
    pub(crate) fn recognise(names: &[String]) -> Option<Self> {
        [Self::Ten, Self::Hundred].into_iter().find(|kind| {
            let files = [Split::Train, Split::Test].map(|split| kind.files(split));
            files.iter().flatten().any(|file| names.contains(file))
        })
    }
}

/// Opens a folder of CIFAR binary files.
pub(crate) fn folder(folder: &Path, kind: Cifar, split: Split, options: &OpenOptions) -> Result<Dataset, DataError> {
    let mut files = Vec::new();
    for name in kind.files(split) {
        let path = folder.join(&name);
        if !path.is_file() {
            return Err(DataError::Missing {
                what: format!("{split} images"),
                folder: folder.to_owned(),
                looked_for: kind.files(split),
                remedy: format!("{name} is not there: unpack the whole archive of the binary version"),
            });
        }
        files.push(Stretch::open(&path)?);
    }
    let names = class_names(folder.join(kind.names_file()), kind)?;
    dataset(&crate::folder::name(folder), files, kind, options)?.with_class_names(names)
}

/// The records of one file, in memory.
///
/// # Errors
/// If the bytes are no whole number of records, at least one, or a label is none of the data set.
pub fn from_bytes(bytes: &[u8], kind: Cifar, name: &str) -> Result<Dataset, DataError> {
    dataset(name, vec![Stretch::memory(bytes.to_vec(), name)], kind, &OpenOptions::default())
}

fn dataset(name: &str, files: Vec<Stretch>, kind: Cifar, options: &OpenOptions) -> Result<Dataset, DataError> {
    let record = kind.record();
    let mut labels = Vec::new();
    for file in &files {
        let broken = !file.len().is_multiple_of(record as u64);
        if file.len() == 0 || broken {
            let announced = format!("records of {record} bytes");
            let (file, found) = (file.name().to_owned(), file.len());
            let expected = found.next_multiple_of(record as u64).max(record as u64);
            return Err(DataError::Truncated { file, announced, expected, found });
        }
        let start = labels.len();
        // The class is the last byte before the pixels.
        let at = kind.layout().before - 1;
        file.for_each(record, |records| {
            labels.extend(records.chunks_exact(record).map(|record| u32::from(record[at])));
        })?;
        if let Some(i) = labels[start..].iter().position(|&label| label as usize >= kind.classes()) {
            return Err(DataError::Label {
                file: file.name().to_owned(),
                index: i,
                found: labels[start + i].to_string(),
                expected: format!("from 0 to {}", kind.classes() - 1),
            });
        }
    }
    Dataset::from_records(name, Records::new(files, kind.layout()), kind.layout().shape, Some(labels), options)
}

/// The names of the classes, one a line; none if there is no such file.
fn class_names(path: PathBuf, kind: Cifar) -> Result<Vec<String>, DataError> {
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let text = fs::read(&path).map_err(|source| DataError::Io { operation: "read", path: path.clone(), source })?;
    let text = String::from_utf8_lossy(&text);
    let names: Vec<String> = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    if names.len() != kind.classes() {
        return Err(DataError::Parts {
            name: path.display().to_string(),
            what: "the number of class names",
            expected: format!("{}, one a line", kind.classes()),
            found: names.len().to_string(),
        });
    }
    Ok(names)
}
