//! IDX files: what is read, and one clear error for each way in which a file can be wrong.

use std::io::{Read, Write};
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use tweedie_data::idx::{self, IMAGES_MAGIC, LABELS_MAGIC};
use tweedie_data::{DataError, Dataset, OpenOptions, Range, Split};

fn file(magic: u32, dims: &[u32], data: &[u8]) -> Vec<u8> {
    let mut bytes = magic.to_be_bytes().to_vec();
    bytes.extend(dims.iter().flat_map(|d| d.to_be_bytes()));
    bytes.extend(data);
    bytes
}

fn images(n: u32, h: u32, w: u32) -> Vec<u8> {
    let data: Vec<u8> = (0..n * h * w).map(|i| (i * 7 % 251) as u8).collect();
    file(IMAGES_MAGIC, &[n, h, w], &data)
}

fn labels(values: &[u8]) -> Vec<u8> {
    file(LABELS_MAGIC, &[values.len() as u32], values)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// The error of reading `bytes` as images, plain and compressed, whose messages must both hold `part`.
fn refused(bytes: &[u8], part: &str) -> [DataError; 2] {
    [bytes.to_vec(), gzip(bytes)].map(|bytes| {
        let error = idx::images_from_bytes(&bytes, "digits.idx").unwrap_err();
        let message = error.to_string();
        assert!(message.contains("digits.idx") && message.contains(part), "{message}");
        error
    })
}

#[test]
fn truncated_files() {
    let whole = images(3, 4, 5);
    for len in 0..whole.len() {
        let errors = refused(&whole[..len], "truncated");
        assert!(errors.iter().all(|e| matches!(e, DataError::Truncated { .. })), "{errors:?}");
    }
    refused(&whole[..50], "3 images of 4 x 5 need 76 bytes, found 50");
    refused(&whole[..9], "need 16 bytes, found 9");
}

#[test]
fn truncated_gzip_streams() {
    let whole = gzip(&images(3, 40, 50));
    for len in 2..whole.len() {
        let error = idx::images_from_bytes(&whole[..len], "digits.gz").unwrap_err();
        let message = error.to_string();
        assert!(message.contains("digits.gz"), "{message}");
        assert!(matches!(error, DataError::Gzip { .. } | DataError::Truncated { .. } | DataError::Dimensions { .. }));
    }
    // All of the data is there, but the checksum is not.
    let error = idx::images_from_bytes(&whole[..whole.len() - 8], "digits.gz").unwrap_err();
    assert!(matches!(error, DataError::Truncated { .. }), "{error}");
}

#[test]
fn a_damaged_gzip_stream_fails_its_checksum() {
    let mut whole = gzip(&images(3, 40, 50));
    let crc = whole.len() - 8;
    whole[crc] ^= 1;
    let error = idx::images_from_bytes(&whole, "digits.gz").unwrap_err();
    assert!(matches!(error, DataError::Gzip { .. }), "{error}");
    assert!(error.to_string().contains("digits.gz"));
}

#[test]
fn trailing_bytes() {
    let mut bytes = images(3, 4, 5);
    bytes.push(0);
    let errors = refused(&bytes, "3 images of 4 x 5 need 76 bytes, found");
    assert!(errors.iter().all(|e| matches!(e, DataError::Trailing { .. })));
}

#[test]
fn wrong_magic() {
    let errors = refused(&labels(&[1, 2, 3]), "expected the magic number 0x00000803, found 0x00000801 (8-bit labels)");
    assert!(errors.iter().all(|e| matches!(e, DataError::Magic { .. })));
    refused(b"\x89PNG\r\n\x1a\n", "not an IDX file at all");
    refused(&file(0x0000_0d03, &[1, 1, 1], &[0; 4]), "32-bit floats in 3 dimensions");
    let error = idx::labels_from_bytes(&images(1, 1, 1), "labels").unwrap_err().to_string();
    assert!(error.contains("0x00000801") && error.contains("8-bit images"), "{error}");
}

#[test]
fn absurd_and_zero_dimensions() {
    for dims in [[0, 28, 28], [3, 0, 28], [3, 28, 0]] {
        refused(&file(IMAGES_MAGIC, &dims, &[]), "at least 1");
    }
    refused(&file(IMAGES_MAGIC, &[1, 1 << 20, 1], &[0; 64]), "at most 16384 x 16384");
    refused(&file(IMAGES_MAGIC, &[u32::MAX, 16384, 16384], &[0; 64]), "at most 17179869184 bytes");
    refused(&file(IMAGES_MAGIC, &[u32::MAX, u32::MAX, u32::MAX], &[0; 64]), "4294967295 x 4294967295");
    assert!(
        idx::labels_from_bytes(&file(LABELS_MAGIC, &[0], &[]), "labels")
            .unwrap_err()
            .to_string()
            .contains("at least 1")
    );
}

/// A stream that fails the test when more than `allowed` bytes are asked of it.
struct Guarded {
    head: Vec<u8>,
    given: usize,
    allowed: usize,
}

impl Read for Guarded {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = buffer.len().min(self.allowed.saturating_sub(self.given));
        assert!(n > 0 || buffer.is_empty(), "more than {} bytes were read", self.allowed);
        for slot in &mut buffer[..n] {
            *slot = self.head.get(self.given).copied().unwrap_or(0);
            self.given += 1;
        }
        Ok(n)
    }
}

/// A header that announces 8 GiB in a file of a few bytes is refused before anything is read or reserved.
#[test]
fn a_header_alone_costs_nothing() {
    let head = file(IMAGES_MAGIC, &[1 << 13, 1 << 10, 1 << 10], &[]);
    let size = head.len() as u64 + 100;
    let stream = Guarded { head, given: 0, allowed: 16 };
    assert!(matches!(idx::images_from_reader(stream, size, "huge"), Err(DataError::Truncated { .. })));
}

/// A compressed stream that goes on for ever is read one byte beyond the announced end.
#[test]
fn a_gzip_bomb_is_not_inflated() {
    let mut bytes = images(2, 3, 4);
    bytes.resize(64 << 20, 0);
    let bomb = gzip(&bytes);
    assert!(bomb.len() < 100_000);
    let error = idx::images_from_bytes(&bomb, "bomb").unwrap_err();
    assert!(error.to_string().contains("need 40 bytes, found more than 40"), "{error}");
    // And a header that announces more than a stream of this size can hold is refused unread.
    let lie = gzip(&file(IMAGES_MAGIC, &[1 << 13, 1 << 10, 1 << 10], &[0; 1000]));
    let error = idx::images_from_bytes(&lie, "lie").unwrap_err();
    assert!(matches!(error, DataError::Dimensions { .. }), "{error}");
    assert!(error.to_string().contains("a gzip file of this size holds at most"), "{error}");
}

#[test]
fn gzip_members_are_joined() {
    let whole = images(3, 4, 5);
    let joined = [gzip(&whole[..30]), gzip(&whole[30..])].concat();
    assert_eq!(idx::images_from_bytes(&joined, "a").unwrap(), idx::images_from_bytes(&whole, "b").unwrap());
}

fn put(folder: &Path, name: &str, bytes: &[u8]) {
    std::fs::write(folder.join(name), bytes).unwrap();
}

fn open(folder: &Path, split: Split) -> Result<Dataset, DataError> {
    Dataset::open(folder.to_str().unwrap(), split)
}

#[test]
fn folders_with_every_usual_name() {
    for (separator, suffix) in [("-", ""), ("-", ".gz"), (".", ""), (".", ".gz")] {
        let pack = |bytes: Vec<u8>| if suffix.is_empty() { bytes } else { gzip(&bytes) };
        let folder = tempfile::tempdir().unwrap();
        for (stem, n) in [("train", 3), ("t10k", 2)] {
            put(folder.path(), &format!("{stem}-images{separator}idx3-ubyte{suffix}"), &pack(images(n, 4, 5)));
            let name = format!("{stem}-labels{separator}idx1-ubyte{suffix}");
            put(folder.path(), &name, &pack(labels(&vec![6; n as usize])));
        }
        let train = open(folder.path(), Split::Train).unwrap();
        assert_eq!((train.len(), train.shape(), train.classes()), (3, [1, 4, 5], 7));
        assert_eq!(*train.image(1).unwrap(), images(3, 4, 5)[16 + 20..16 + 40]);
        assert_eq!(open(folder.path(), Split::Test).unwrap().len(), 2);
    }
}

/// Compression is a matter of content: a plain file called `.gz` and a compressed one without the suffix are both read.
#[test]
fn names_do_not_decide_on_compression() {
    let folder = tempfile::tempdir().unwrap();
    put(folder.path(), "train-images-idx3-ubyte", &gzip(&images(3, 4, 5)));
    put(folder.path(), "train-labels-idx1-ubyte.gz", &labels(&[0, 255, 2]));
    let data = open(folder.path(), Split::Train).unwrap();
    assert_eq!((data.len(), data.classes()), (3, 256));
}

#[test]
fn counts_that_differ() {
    let folder = tempfile::tempdir().unwrap();
    put(folder.path(), "train-images-idx3-ubyte", &images(3, 4, 5));
    put(folder.path(), "train-labels-idx1-ubyte", &labels(&[1, 2]));
    let error = open(folder.path(), Split::Train).unwrap_err();
    assert!(matches!(error, DataError::Counts { images: 3, labels: 2, .. }));
    let message = error.to_string();
    assert!(message.contains("train-images-idx3-ubyte") && message.contains("train-labels-idx1-ubyte"), "{message}");
}

#[test]
fn missing_files_list_what_was_looked_for() {
    let folder = tempfile::tempdir().unwrap();
    let message = open(folder.path(), Split::Train).unwrap_err().to_string();
    for part in
        ["train-images-idx3-ubyte,", "train-images-idx3-ubyte.gz", "train-images.idx3-ubyte,", "is empty", "`mnist`"]
    {
        assert!(message.contains(part), "{part}: {message}");
    }
    put(folder.path(), "train-images-idx3-ubyte", &images(3, 4, 5));
    put(folder.path(), "train-lables-idx1-ubyte", &labels(&[1, 2, 3]));
    let message = open(folder.path(), Split::Train).unwrap_err().to_string();
    assert!(
        message.contains("train-labels-idx1-ubyte") && message.contains("found train-lables-idx1-ubyte"),
        "{message}"
    );
    let message = open(folder.path(), Split::Test).unwrap_err().to_string();
    assert!(
        message.contains("t10k-images-idx3-ubyte.gz") && message.contains("the folder holds train-images"),
        "{message}"
    );
    std::fs::remove_file(folder.path().join("train-lables-idx1-ubyte")).unwrap();
    assert_eq!(open(folder.path(), Split::Train).unwrap().labels(), None);
}

#[test]
fn what_is_not_supported_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let message = |path: &Path| open(path, Split::Train).unwrap_err().to_string();
    assert!(message(&folder.path().join("none")).contains("there is no such file or folder"));
    put(folder.path(), "cat.txt", b"");
    assert!(message(folder.path()).contains("the folder holds cat.txt"), "{}", message(folder.path()));
    assert!(message(&folder.path().join("cat.txt")).contains("it is a file of another kind"));
    put(folder.path(), "cat.npy", b"");
    assert!(message(folder.path()).contains("name one of the files"), "{}", message(folder.path()));
    put(folder.path(), "cat.PNG", b"");
    assert!(message(folder.path()).contains("cannot read") && message(folder.path()).contains("cat.PNG as an image"));
    put(folder.path(), "data_batch_1.bin", b"");
    assert!(message(folder.path()).contains("data_batch_2.bin is not there"));
    // A directory in the place of a file is not taken for it.
    std::fs::remove_file(folder.path().join("data_batch_1.bin")).unwrap();
    std::fs::remove_file(folder.path().join("cat.npy")).unwrap();
    std::fs::create_dir(folder.path().join("train-images-idx3-ubyte")).unwrap();
    assert!(message(folder.path()).contains("no train images"), "{}", message(folder.path()));
}

#[test]
fn large_files_stay_on_disk_and_compressed_ones_must_fit() {
    let folder = tempfile::tempdir().unwrap();
    let spec = folder.path().to_str().unwrap();
    put(folder.path(), "train-images-idx3-ubyte", &images(9, 4, 5));
    put(folder.path(), "train-labels-idx1-ubyte", &labels(&[0, 1, 2, 3, 4, 5, 6, 7, 8]));
    let open =
        |limit| Dataset::open_with(spec, Split::Train, &OpenOptions { memory_limit: limit, ..OpenOptions::default() });
    let (memory, disk) = (open(180).unwrap(), open(179).unwrap());
    assert!(!memory.is_on_disk() && disk.is_on_disk());
    assert_eq!((memory.labels(), memory.fingerprint().unwrap()), (disk.labels(), disk.fingerprint().unwrap()));
    let indices: Vec<usize> = (0..9).rev().collect();
    let batch = |data: &Dataset| data.batch(&indices, Range::ZeroOne).unwrap();
    assert_eq!(batch(&memory), batch(&disk));
    put(folder.path(), "train-labels-idx1-ubyte", &labels(&[1; 8]));
    assert!(open(0).unwrap_err().to_string().contains("9 images in"));
    std::fs::remove_file(folder.path().join("train-images-idx3-ubyte")).unwrap();
    put(folder.path(), "train-images-idx3-ubyte.gz", &gzip(&images(9, 4, 5)));
    assert!(open(179).unwrap_err().to_string().contains("gunzip"));
}

proptest! {
    /// No bytes at all make the reader panic, and what it returns is never larger than what it was given can hold.
    #[test]
    fn byte_soup(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let pixels = idx::images_from_bytes(&bytes, "soup").map(|i| i.pixels);
        for data in [pixels, idx::labels_from_bytes(&bytes, "soup")].into_iter().flatten() {
            prop_assert!(data.len() + 8 <= bytes.len());
        }
    }

    /// The same behind an intact magic number, plain and compressed.
    #[test]
    fn header_soup(dims in prop::array::uniform3(prop_oneof![0u32..5, any::<u32>()]), data in prop::collection::vec(any::<u8>(), 0..100)) {
        let bytes = file(IMAGES_MAGIC, &dims, &data);
        let product = dims.iter().map(|&d| u128::from(d)).product::<u128>();
        for bytes in [bytes.clone(), gzip(&bytes)] {
            match idx::images_from_bytes(&bytes, "soup") {
                Ok(read) => {
                    prop_assert_eq!(product, data.len() as u128);
                    prop_assert_eq!([read.count, read.rows, read.cols], dims.map(|d| d as usize));
                    prop_assert_eq!(&read.pixels, &data);
                }
                Err(e) => {
                    prop_assert!(product != data.len() as u128 || product == 0, "{}", e);
                }
            }
        }
    }

    /// A flipped byte anywhere in a compressed file is an error, or changes nothing that matters (the gzip header's
    /// time stamp and the like); it never yields other pixels.
    #[test]
    fn flipped_gzip(at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let whole = images(3, 9, 7);
        let mut packed = gzip(&whole);
        let at = at.index(packed.len());
        packed[at] ^= 1 << bit;
        if let Ok(read) = idx::images_from_bytes(&packed, "flipped") {
            prop_assert_eq!(&read.pixels, &whole[16..]);
        }
    }
}
