use std::path::PathBuf;

use thiserror::Error;

use crate::Split;

/// What can go wrong when a data set is opened.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DataError {
    /// The operating system refused to open or read a file.
    #[error("cannot {operation} {}: {source}; check that the path is right and that you may read it", path.display())]
    Io {
        /// What was attempted: `open`, `read`, `list`.
        operation: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A gzip stream that does not decompress.
    #[error(
        "cannot decompress {file}: {source}; the gzip stream is damaged or cut short, download or compress it again"
    )]
    Gzip {
        /// The file.
        file: String,
        /// What the decompressor said.
        source: std::io::Error,
    },
    /// The first four bytes are not those of the wanted kind of IDX file.
    #[error(
        "{file} is no IDX file of {expected_kind}: expected the magic number {expected:#010x}, found {found:#010x} \
         ({found_kind}); check that images and labels are not exchanged and that the file is the original one"
    )]
    Magic {
        /// The file.
        file: String,
        /// `8-bit images` or `8-bit labels`.
        expected_kind: &'static str,
        /// The magic number of that kind.
        expected: u32,
        /// The first four bytes, big-endian.
        found: u32,
        /// What those bytes stand for, where they stand for something.
        found_kind: String,
    },
    /// The file ends before what its header announces.
    #[error("{file} is truncated: {announced} need {expected} bytes, found {found}; download or copy it again")]
    Truncated {
        /// The file.
        file: String,
        /// What the header announces.
        announced: String,
        /// Bytes needed, header included, after decompression.
        expected: u64,
        /// Bytes there are.
        found: u64,
    },
    /// The file goes on after what its header announces.
    #[error(
        "{file} has trailing bytes: {announced} need {expected} bytes, found {found}; the header does not belong to \
         this file, or two files were joined: download or copy it again"
    )]
    Trailing {
        /// The file.
        file: String,
        /// What the header announces.
        announced: String,
        /// Bytes needed, header included, after decompression.
        expected: u64,
        /// Bytes there are: `more than N` for a gzip stream, which is read no further than it must be.
        found: String,
    },
    /// A dimension in a header that is zero, or beyond what this crate reads.
    #[error("{file}: the header announces {announced}; {limit}; the header is damaged, or this is no image data")]
    Dimensions {
        /// The file.
        file: String,
        /// What the header announces.
        announced: String,
        /// Which limit it breaks.
        limit: String,
    },
    /// Images and labels of one data set that differ in number.
    #[error(
        "{images} images in {images_file} but {labels} labels in {labels_file}; the two files must belong together"
    )]
    Counts {
        /// Number of images.
        images: usize,
        /// Where the images come from.
        images_file: String,
        /// Number of labels.
        labels: usize,
        /// Where the labels come from.
        labels_file: String,
    },
    /// A folder without the files of a data set.
    #[error("no {what} in {}: looked for {}; {remedy}", folder.display(), looked_for.join(", "))]
    Missing {
        /// What is missing, such as `training images`.
        what: String,
        /// The folder.
        folder: PathBuf,
        /// Every file name that would have been taken.
        looked_for: Vec<String>,
        /// What to do about it.
        remedy: String,
    },
    /// Something that is no data set this crate can read.
    #[error(
        "cannot read {spec} as a data set: {found}; supported are `mnist` (bundled), folders of IDX files (plain or .gz), of \
         CIFAR's binary files or of PNG and JPEG images, and .npy and .npz files"
    )]
    Unsupported {
        /// What was asked for.
        spec: String,
        /// What is there.
        found: String,
    },
    /// Parts handed to [`crate::Dataset::new`] that do not fit together.
    #[error("data set {name}: {what} should be {expected}, found {found}")]
    Parts {
        /// Name of the data set.
        name: String,
        /// The part.
        what: &'static str,
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
    },
    /// An image file that cannot be decoded.
    #[error("cannot read {} as an image: {problem}; copy it again, or move it away", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// What the decoder said.
        problem: String,
    },
    /// Images of a folder that differ in size.
    #[error(
        "{} is {a} and {} is {b}: the images of a data set have one size; have them resized (--size)",
        first.display(),
        other.display()
    )]
    Sizes {
        /// The first image.
        first: PathBuf,
        /// Its height and width.
        a: String,
        /// The first one of another size.
        other: PathBuf,
        /// Its height and width.
        b: String,
    },
    /// Images beside folders of images.
    #[error(
        "{} holds both images ({}) and folders of images ({class}); put every image into a folder of its class, or all of \
         them into one folder without classes",
        folder.display(),
        image.display()
    )]
    Mixed {
        /// The folder.
        folder: PathBuf,
        /// The first image that lies in no class.
        image: PathBuf,
        /// The first class.
        class: String,
    },
    /// A label that is none.
    #[error(
        "{file}: the label of image {index} should be {expected}, found {found}; the file is damaged, or another kind of data"
    )]
    Label {
        /// The file.
        file: String,
        /// The image, from 0.
        index: usize,
        /// The label.
        found: String,
        /// The labels that there are.
        expected: String,
    },
    /// An array of NumPy, or an archive of them, that cannot be used.
    #[error("{file}: {what} should be {expected}, found {found}; {remedy}")]
    Array {
        /// The file, with the name of the array in it.
        file: String,
        /// What is wrong.
        what: &'static str,
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
        /// What to do about it.
        remedy: String,
    },
    /// A data set without the part that was asked for.
    #[error("{file} has no part for {split}; use the one for {only} (--split {only})")]
    NoSplit {
        /// The data set.
        file: String,
        /// What was asked for.
        split: Split,
        /// What there is.
        only: Split,
    },
    /// Compressed data that are larger than the limit on memory.
    #[error(
        "{file} holds {bytes} bytes, more than the {limit} that may be held in memory, and is compressed; {remedy}, or raise the limit"
    )]
    Memory {
        /// The file.
        file: String,
        /// Bytes after decompression.
        bytes: u64,
        /// Bytes that are allowed.
        limit: u64,
        /// What to do about it.
        remedy: &'static str,
    },
    /// An option that means nothing to the data.
    #[error("{spec}: {option} is for folders of images, and these are {found}; leave it out")]
    Option {
        /// The data set.
        spec: String,
        /// The option.
        option: &'static str,
        /// What the data are.
        found: &'static str,
    },
    /// An image that the data set does not have.
    #[error("data set {name} has {len} images, and image {index} was asked for, counted from 0")]
    Index {
        /// Name of the data set.
        name: String,
        /// Number of images.
        len: usize,
        /// What was asked for.
        index: usize,
    },
}
