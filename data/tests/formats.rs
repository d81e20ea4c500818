//! CIFAR files, folders of images and NumPy arrays: what they hold, in memory and on disk, and what is refused.

use std::io::{Cursor, Write};
use std::path::Path;

use image::{ImageFormat, Luma, LumaA, Rgb, RgbImage, Rgba};
use proptest::prelude::*;
use tweedie_data::cifar::{self, Cifar};
use tweedie_data::{Colour, DataError, Dataset, OpenOptions, Range, Split, npy_from_bytes, npz_from_bytes};

fn put(folder: &Path, name: &str, bytes: &[u8]) {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

fn open(path: &Path, split: Split, options: &OpenOptions) -> Result<Dataset, DataError> {
    Dataset::open_with(path.to_str().unwrap(), split, options)
}

fn train(path: &Path) -> Dataset {
    open(path, Split::Train, &OpenOptions::default()).unwrap()
}

fn refusal(path: &Path) -> String {
    open(path, Split::Train, &OpenOptions::default()).unwrap_err().to_string()
}

/// Nothing is held in memory.
fn on_disk() -> OpenOptions {
    OpenOptions { memory_limit: 0, ..OpenOptions::default() }
}

/// The same images, labels and fingerprint in memory and on disk.
fn check_both(path: &Path, split: Split) {
    let memory = open(path, split, &OpenOptions::default()).unwrap();
    let disk = open(path, split, &on_disk()).unwrap();
    assert!(!memory.is_on_disk() && disk.is_on_disk());
    assert_eq!((memory.len(), memory.shape(), memory.labels()), (disk.len(), disk.shape(), disk.labels()));
    assert_eq!(memory.fingerprint().unwrap(), disk.fingerprint().unwrap());
    let indices: Vec<usize> = (0..memory.len()).rev().chain([0, 0]).collect();
    let [a, b] = [&memory, &disk].map(|data| data.batch(&indices, Range::MinusOneOne).unwrap());
    assert_eq!(a, b);
    assert!(disk.batch(&[memory.len()], Range::ZeroOne).is_err());
}

/// A pixel that tells image, channel and place.
fn pixel(image: usize, place: usize) -> u8 {
    ((image * 7919 + place * 31) % 251) as u8
}

fn cifar_file(kind: Cifar, count: usize, first: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for i in first..first + count {
        if kind == Cifar::Hundred {
            bytes.push(19);
        }
        bytes.push((i % kind.classes()) as u8);
        bytes.extend((0..3072).map(|p| pixel(i, p)));
    }
    bytes
}

#[test]
fn cifar_folders_have_five_files_and_names() {
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("cifar-10-batches-bin");
    for i in 1..=5 {
        put(&inner, &format!("data_batch_{i}.bin"), &cifar_file(Cifar::Ten, i, i * (i - 1) / 2));
    }
    put(&inner, "test_batch.bin", &cifar_file(Cifar::Ten, 2, 40));
    let names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];
    put(&inner, "batches.meta.txt", format!("{}\n\n", names.join("\n")).as_bytes());
    for path in [folder.path(), &inner] {
        let data = train(path);
        assert_eq!((data.name(), data.len(), data.shape()), ("cifar-10-batches-bin", 15, [3, 32, 32]));
        assert_eq!((data.classes(), data.class_names()), (10, &names.map(str::to_owned)[..]));
        let labels: Vec<u32> = (0..15).map(|i| i % 10).collect();
        assert_eq!(data.labels(), Some(&labels[..]));
        for i in 0..15 {
            assert_eq!(*data.image(i).unwrap(), (0..3072).map(|p| pixel(i, p)).collect::<Vec<_>>());
        }
    }
    let test = open(&inner, Split::Test, &OpenOptions::default()).unwrap();
    assert_eq!((test.len(), test.classes()), (2, 10));
    check_both(&inner, Split::Train);
    check_both(&inner, Split::Test);
    // Four of the five files are no data set.
    std::fs::remove_file(inner.join("data_batch_3.bin")).unwrap();
    assert!(refusal(&inner).contains("data_batch_3.bin is not there"), "{}", refusal(&inner));
    let sized = OpenOptions { size: Some([8, 8]), ..OpenOptions::default() };
    let message = open(&inner, Split::Test, &sized).unwrap_err().to_string();
    assert!(message.contains("--size") && message.contains("CIFAR"), "{message}");
}

#[test]
fn cifar_100_has_the_fine_labels() {
    let folder = tempfile::tempdir().unwrap();
    put(folder.path(), "train.bin", &cifar_file(Cifar::Hundred, 3, 97));
    put(folder.path(), "test.bin", &cifar_file(Cifar::Hundred, 1, 5));
    let data = train(folder.path());
    assert_eq!((data.classes(), data.labels()), (100, Some(&[97, 98, 99][..])));
    check_both(folder.path(), Split::Train);
}

#[test]
fn damaged_cifar_files_are_refused() {
    let message = |bytes: &[u8]| cifar::from_bytes(bytes, Cifar::Ten, "batch").unwrap_err().to_string();
    let whole = cifar_file(Cifar::Ten, 2, 0);
    assert!(message(&whole[..whole.len() - 1]).contains("truncated"), "{}", message(&whole[..whole.len() - 1]));
    assert!(message(&[]).contains("need 3073 bytes, found 0"));
    let mut wrong = whole.clone();
    wrong[3073] = 10;
    assert!(message(&wrong).contains("the label of image 1 should be from 0 to 9, found 10"), "{}", message(&wrong));
    let folder = tempfile::tempdir().unwrap();
    put(folder.path(), "test_batch.bin", &whole);
    put(folder.path(), "batches.meta.txt", b"cat\ndog\n");
    let message = open(folder.path(), Split::Test, &OpenOptions::default()).unwrap_err().to_string();
    assert!(message.contains("batches.meta.txt") && message.contains("found 2"), "{message}");
}

fn png(image: impl Into<image::DynamicImage>) -> Vec<u8> {
    let mut bytes = Vec::new();
    image.into().write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png).unwrap();
    bytes
}

fn colour(side: u32, seed: u32) -> RgbImage {
    RgbImage::from_fn(side, side, |x, y| Rgb([x, y, seed].map(|v| pixel(v as usize, 3 * x as usize + y as usize))))
}

#[test]
fn folders_of_images_are_classes_in_the_order_of_their_names() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    put(root, "train/dog/b.png", &png(colour(6, 1)));
    put(root, "train/dog/deep/a.PNG", &png(colour(6, 2)));
    put(root, "train/cat/x.png", &png(colour(6, 3)));
    put(root, "train/cat/notes.txt", b"no image");
    put(root, "train/cat/.hidden.png", b"no image");
    put(root, "train/empty/readme.md", b"no image");
    put(root, "test/dog/z.png", &png(colour(6, 4)));
    put(root, "test/bird/z.png", &png(colour(6, 5)));
    let data = train(root);
    assert_eq!(data.class_names(), ["bird", "cat", "dog"]);
    assert_eq!((data.labels(), data.shape()), (Some(&[1, 2, 2][..]), [3, 6, 6]));
    assert_eq!(
        data.notes(),
        [format!("{}: left out 2 files that are neither PNG nor JPEG", root.join("train").display())]
    );
    for (index, seed) in [(0, 3), (1, 1), (2, 2)] {
        let image = colour(6, seed);
        let planes: Vec<u8> = (0..3).flat_map(|c| image.pixels().map(move |p| p.0[c])).collect();
        assert_eq!(*data.image(index).unwrap(), planes, "{index}");
    }
    let test = open(root, Split::Test, &OpenOptions::default()).unwrap();
    assert_eq!((test.class_names(), test.labels()), (data.class_names(), Some(&[0, 2][..])));
    check_both(root, Split::Train);
    check_both(root, Split::Test);
    assert!(Dataset::is_of_pictures(root).unwrap() && !Dataset::is_of_pictures(&root.join("train/empty")).unwrap());
    // Without parts every image is for training.
    let parts = root.join("train");
    assert_eq!(train(&parts).class_names(), ["cat", "dog"]);
    let message = open(&parts, Split::Test, &OpenOptions::default()).unwrap_err().to_string();
    assert!(message.contains("no part for test") && message.contains("--split train"), "{message}");
    // Images beside classes have no label.
    put(root, "train/loose.png", &png(colour(6, 6)));
    assert!(refusal(root).contains("loose.png") && refusal(root).contains("(cat)"), "{}", refusal(root));
}

#[test]
fn images_without_folders_have_no_labels_and_keep_their_grey() {
    let folder = tempfile::tempdir().unwrap();
    let grey = image::GrayImage::from_fn(5, 4, |x, y| Luma([(40 * x + y) as u8]));
    put(folder.path(), "a.png", &png(grey.clone()));
    let half = image::GrayAlphaImage::from_fn(5, 4, |x, _| LumaA([100, if x == 0 { 0 } else { 128 }]));
    put(folder.path(), "b.png", &png(half));
    let data = train(folder.path());
    assert_eq!((data.shape(), data.labels(), data.classes()), ([1, 4, 5], None, 0));
    assert_eq!(*data.image(0).unwrap(), *grey.as_raw());
    // What is transparent lies on white: (100 * 128 + 255 * 127) / 255 rounds to 177.
    assert_eq!(data.image(1).unwrap()[..5], [255, 177, 177, 177, 177]);
    let rgb = OpenOptions { colour: Colour::Rgb, ..OpenOptions::default() };
    let data = open(folder.path(), Split::Train, &rgb).unwrap();
    assert_eq!(data.shape(), [3, 4, 5]);
    assert_eq!(data.image(0).unwrap()[20..40], grey.as_raw()[..]);
    // One image in colour makes the data set one in colours, unless grey is asked for.
    let red = image::RgbaImage::from_pixel(5, 4, Rgba([255, 0, 0, 255]));
    put(folder.path(), "c.png", &png(red));
    assert_eq!(train(folder.path()).shape(), [3, 4, 5]);
    let data = open(folder.path(), Split::Train, &OpenOptions { colour: Colour::Grey, ..rgb }).unwrap();
    // The luminance of red: 0.2126 * 255.
    assert_eq!((data.shape(), data.image(2).unwrap()[0]), ([1, 4, 5], 54));
    check_both(folder.path(), Split::Train);
}

#[test]
fn images_are_cut_to_shape_and_resized() {
    let folder = tempfile::tempdir().unwrap();
    // Black, white, black: the square around the centre is white alone.
    let wide = RgbImage::from_fn(40, 20, |x, _| if (10..30).contains(&x) { Rgb([255; 3]) } else { Rgb([0; 3]) });
    let tall = RgbImage::from_fn(20, 60, |_, y| if (20..40).contains(&y) { Rgb([255; 3]) } else { Rgb([0; 3]) });
    put(folder.path(), "a.png", &png(wide));
    put(folder.path(), "b.png", &png(tall));
    let message = refusal(folder.path());
    assert!(message.contains("a.png is 20 x 40") && message.contains("b.png is 60 x 20"), "{message}");
    assert!(message.contains("--size"), "{message}");
    let sized = |size| open(folder.path(), Split::Train, &OpenOptions { size: Some(size), ..OpenOptions::default() });
    for size in [[20, 20], [7, 7], [32, 32]] {
        let data = sized(size).unwrap();
        assert_eq!(data.shape(), [3, size[0], size[1]]);
        for i in 0..2 {
            assert!(data.image(i).unwrap().iter().all(|&v| v == 255), "{size:?} {i}");
        }
    }
    // A wide cut shows the black sides of the wide image, in the middle row from the left: black, white, black.
    let data = sized([10, 20]).unwrap();
    let image = data.image(0).unwrap();
    assert_eq!([image[5 * 20], image[5 * 20 + 10], image[5 * 20 + 19]], [0, 255, 0]);
    assert!(sized([0, 4]).is_err());
}

#[test]
fn jpeg_files_and_their_orientation_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let half = RgbImage::from_fn(32, 16, |x, _| if x < 16 { Rgb([255; 3]) } else { Rgb([0; 3]) });
    let mut jpeg = Vec::new();
    image::DynamicImage::from(half).write_to(&mut Cursor::new(&mut jpeg), ImageFormat::Jpeg).unwrap();
    // An Exif block after the marker of the beginning: one entry, the orientation (0x0112), a short, 6: turn it clockwise.
    let exif = b"\xff\xe1\x00\x22Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
    let turned = [&jpeg[..2], exif, &jpeg[2..]].concat();
    put(folder.path(), "a.jpg", &turned);
    let data = train(folder.path());
    assert_eq!(data.shape(), [3, 32, 16]);
    let image = data.image(0).unwrap();
    assert!(image[..16].iter().all(|&v| v > 240) && image[31 * 16..32 * 16].iter().all(|&v| v < 15));
    // The ending does not matter to the decoder, and what it cannot decode is named.
    put(folder.path(), "b.png", &turned);
    assert_eq!(train(folder.path()).len(), 2);
    put(folder.path(), "c.jpeg", &jpeg[..jpeg.len() / 4]);
    assert!(refusal(folder.path()).contains("c.jpeg"), "{}", refusal(folder.path()));
    put(folder.path(), "c.jpeg", b"no image");
    assert!(refusal(folder.path()).contains("c.jpeg"), "{}", refusal(folder.path()));
}

#[test]
fn an_image_that_changes_on_disk_is_an_error_and_no_panic() {
    let folder = tempfile::tempdir().unwrap();
    put(folder.path(), "a.png", &png(colour(6, 1)));
    let data = open(folder.path(), Split::Train, &on_disk()).unwrap();
    put(folder.path(), "a.png", &png(colour(5, 1)));
    let message = data.batch(&[0], Range::ZeroOne).unwrap_err().to_string();
    assert!(message.contains("a.png") && message.contains("5 x 5 now, and was 6 x 6"), "{message}");
    std::fs::remove_file(folder.path().join("a.png")).unwrap();
    assert!(data.batch(&[0], Range::ZeroOne).unwrap_err().to_string().contains("cannot open"));
}

/// An `.npy` file of version 1.
fn npy(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    header.extend(std::iter::repeat_n(' ', 63 - (header.len() + 10) % 64));
    header.push('\n');
    let length = (header.len() as u16).to_le_bytes();
    [b"\x93NUMPY\x01\x00".as_slice(), &length, header.as_bytes(), data].concat()
}

fn npz(entries: &[(&str, Vec<u8>)], method: zip::CompressionMethod) -> Vec<u8> {
    let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        let options = zip::write::SimpleFileOptions::default().compression_method(method);
        archive.start_file(format!("{name}.npy"), options).unwrap();
        archive.write_all(bytes).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

#[test]
fn arrays_of_bytes_in_each_order_are_the_same_images() {
    let planes: Vec<u8> = (0..2 * 3 * 5 * 6).map(|i| pixel(0, i)).collect();
    let at = |n: usize, c: usize, p: usize| planes[(n * 3 + c) * 30 + p];
    let pixels: Vec<u8> = (0..2 * 30 * 3).map(|i| at(i / 90, i % 3, i / 3 % 30)).collect();
    let a = npy_from_bytes(&npy("|u1", "(2, 3, 5, 6)", &planes), "a").unwrap();
    let b = npy_from_bytes(&npy("|u1", "(2, 5, 6, 3)", &pixels), "b").unwrap();
    assert_eq!((a.shape(), b.shape(), a.len(), b.len()), ([3, 5, 6], [3, 5, 6], 2, 2));
    for i in 0..2 {
        assert_eq!(*a.image(i).unwrap(), planes[90 * i..90 * (i + 1)]);
        assert_eq!(a.image(i).unwrap(), b.image(i).unwrap());
    }
    let grey = npy_from_bytes(&npy("|u1", "(6, 5, 6)", &planes), "grey").unwrap();
    assert_eq!((grey.shape(), grey.labels()), ([1, 5, 6], None));
}

#[test]
fn numbers_become_bytes_if_their_range_tells_how() {
    let bytes: Vec<u8> = (0..=255).collect();
    for (descr, size) in [("<f4", 4), ("<f8", 8)] {
        let file = |numbers: &[f64]| {
            let data: Vec<u8> = match size {
                4 => numbers.iter().flat_map(|&v| (v as f32).to_le_bytes()).collect(),
                _ => numbers.iter().flat_map(|v| v.to_le_bytes()).collect(),
            };
            npy_from_bytes(&npy(descr, "(1, 16, 16)", &data), "numbers")
        };
        let unit: Vec<f64> = bytes.iter().map(|&b| f64::from(b) / 255.0).collect();
        let signed: Vec<f64> = unit.iter().map(|v| 2.0 * v - 1.0).collect();
        assert_eq!(*file(&unit).unwrap().image(0).unwrap(), bytes);
        assert_eq!(*file(&signed).unwrap().image(0).unwrap(), bytes);
        let pixels: Vec<f64> = bytes.iter().map(|&b| f64::from(b)).collect();
        let message = file(&pixels).unwrap_err().to_string();
        assert!(message.contains("numbers from 0 to 255") && message.contains("astype(np.uint8)"), "{message}");
        let mut broken = unit.clone();
        broken[7] = f64::NAN;
        assert!(file(&broken).unwrap_err().to_string().contains("NaN"));
    }
}

#[test]
fn archives_have_parts_labels_and_usual_names() {
    let images = |count: usize| npy("|u1", &format!("({count}, 5, 5, 3)"), &vec![9; 75 * count]);
    let labels = npy("<i8", "(2, 1)", &[3i64, 1].map(i64::to_le_bytes).concat());
    let folder = tempfile::tempdir().unwrap();
    for (method, streams) in [(zip::CompressionMethod::Stored, true), (zip::CompressionMethod::Deflated, false)] {
        let entries = [("x_train", images(2)), ("y_train", labels.clone()), ("x_test", images(1)), ("more", images(1))];
        put(folder.path(), "data.npz", &npz(&entries, method));
        let path = folder.path().join("data.npz");
        let data = train(&path);
        assert_eq!((data.shape(), data.labels(), data.classes()), ([3, 5, 5], Some(&[3, 1][..]), 4));
        let test = open(&path, Split::Test, &OpenOptions::default()).unwrap();
        assert_eq!((test.len(), test.labels()), (1, None));
        if streams {
            check_both(&path, Split::Train);
        }
    }
    for (pair, labelled) in [(["images", "labels"], true), (["arr_0", "arr_1"], true), (["x", "other"], false)] {
        let bytes = npz(&[(pair[0], images(2)), (pair[1], labels.clone())], zip::CompressionMethod::Stored);
        let data = npz_from_bytes(&bytes, "pair", Split::Train).unwrap();
        assert_eq!(data.labels().is_some(), labelled, "{pair:?}");
        let message = npz_from_bytes(&bytes, "pair", Split::Test).unwrap_err().to_string();
        assert!(message.contains("--split train"), "{message}");
    }
    let bytes = npz(&[("foo", images(1)), ("bar", images(1))], zip::CompressionMethod::Stored);
    let message = npz_from_bytes(&bytes, "odd", Split::Train).unwrap_err().to_string();
    assert!(message.contains("x_train") && message.contains("foo, bar"), "{message}");
    let bytes = npz(&[("images", images(3)), ("labels", labels)], zip::CompressionMethod::Stored);
    let message = npz_from_bytes(&bytes, "uneven", Split::Train).unwrap_err().to_string();
    assert!(message.contains("3 images") && message.contains("2 labels"), "{message}");
}

#[test]
fn compressed_arrays_beyond_the_limit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let zeros = npy("|u1", "(100, 50, 50)", &vec![0; 250_000]);
    put(folder.path(), "zeros.npz", &npz(&[("images", zeros)], zip::CompressionMethod::Deflated));
    let limited = OpenOptions { memory_limit: 100_000, ..OpenOptions::default() };
    let message = open(&folder.path().join("zeros.npz"), Split::Train, &limited).unwrap_err().to_string();
    assert!(message.contains("np.savez") && message.contains("250"), "{message}");
}

#[test]
fn arrays_that_are_no_images_are_refused() {
    let message = |bytes: &[u8]| npy_from_bytes(bytes, "array").unwrap_err().to_string();
    let data = vec![0; 2 * 5 * 5];
    for (descr, shape, part) in [
        ("<i4", "(2, 5, 5)", "astype(np.uint8)"),
        (">f4", "(2, 5, 5)", "the type"),
        ("|O", "(2, 5, 5)", "the type"),
        ("|u1", "(2, 25)", "[N, C, H, W]"),
        ("|u1", "(50,)", "[N, C, H, W]"),
        ("|u1", "()", "[N, C, H, W]"),
        ("|u1", "(2, 3, 5, 3)", "1 to 4 channels"),
        ("|u1", "(2, 7, 5, 9)", "1 to 4 channels"),
        ("|u1", "(0, 5, 5)", "at least one image"),
        ("|u1", "(2, 0, 25)", "at least one image"),
        ("|u1", "(3, 5, 5)", "truncated"),
        ("|u1", "(1, 5, 5)", "trailing"),
        ("|u1", "(18446744073709551615, 16000, 16000)", "truncated"),
        ("|u1", "(2, 99999, 5)", "at least one image"),
    ] {
        let message = message(&npy(descr, shape, &data));
        assert!(message.starts_with("array") && message.contains(part), "{descr} {shape}: {message}");
    }
    let fortran = String::from_utf8_lossy(&npy("|u1", "(2, 5, 5)", &[])).replace("False", "True ");
    let fortran = [b"\x93".as_slice(), &fortran.as_bytes()[3..], &data].concat();
    assert!(message(&fortran).contains("ascontiguousarray"), "{}", message(&fortran));
    assert!(message(b"PK\x03\x04").contains("np.save"));
    assert!(message(b"").contains("np.save"));
    assert!(message(b"\x93NUMPY").contains("the version"), "{}", message(b"\x93NUMPY"));
    assert!(message(b"\x93NUMPY\x02\x00\xff\xff\xff\xff").contains("the header"));
    let labels = |descr: &str, data: &[u8]| {
        let images = npy("|u1", "(1, 5, 5)", &[0; 25]);
        let bytes = npz(&[("images", images), ("labels", npy(descr, "(1,)", data))], zip::CompressionMethod::Stored);
        npz_from_bytes(&bytes, "array", Split::Train)
            .map(|data| data.labels().unwrap().to_vec())
            .map_err(|e| e.to_string())
    };
    assert_eq!(labels("<i2", &[7, 1]), Ok(vec![263]));
    assert!(labels("|i1", &[255]).unwrap_err().contains("a negative number"));
    assert!(labels("<u4", &[0, 0, 1, 0]).unwrap_err().contains("found 65536"));
    assert!(labels("<f4", &[0; 4]).unwrap_err().contains("integers"));
}

proptest! {
    /// No bytes at all make the readers panic, and none allocate more than what they were given can hold.
    #[test]
    fn byte_soup(bytes in prop::collection::vec(any::<u8>(), 0..300), text in "[ -~]{0,80}") {
        let npy_soup = [b"\x93NUMPY\x01\x00".as_slice(), &(text.len() as u16).to_le_bytes(), text.as_bytes(), &bytes].concat();
        let read = [
            npy_from_bytes(&bytes, "soup"),
            npy_from_bytes(&npy_soup, "soup"),
            npz_from_bytes(&bytes, "soup", Split::Train),
            cifar::from_bytes(&bytes, Cifar::Ten, "soup"),
        ];
        for data in read.into_iter().flatten() {
            prop_assert!(data.len() * data.shape().iter().product::<usize>() <= npy_soup.len());
        }
    }

    /// A flipped bit in an archive is an error or other data, but no panic.
    #[test]
    fn flipped_archives(at in any::<prop::sample::Index>(), bit in 0u8..8, deflate: bool) {
        let method = if deflate { zip::CompressionMethod::Deflated } else { zip::CompressionMethod::Stored };
        let labels = npy("|u1", "(2,)", &[1, 0]);
        let mut bytes = npz(&[("images", npy("|u1", "(2, 5, 5)", &[3; 50])), ("labels", labels)], method);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        if let Ok(data) = npz_from_bytes(&bytes, "flipped", Split::Train) {
            prop_assert!(data.len() * data.shape().iter().product::<usize>() <= 50);
        }
    }
}
