//! The bundled digits, ranges and batches.

use ndarray::s;
use proptest::prelude::*;
use tweedie_data::{DataError, Dataset, Range, Split, mnist};

fn counts(data: &Dataset) -> Vec<usize> {
    let mut counts = vec![0; data.classes()];
    data.labels().unwrap().iter().for_each(|&y| counts[y as usize] += 1);
    counts
}

/// Sum of all pixels, as a number that any other reader of MNIST can confirm.
fn total(data: &Dataset) -> u64 {
    (0..data.len()).flat_map(|i| data.image(i).unwrap().into_owned()).map(u64::from).sum()
}

#[test]
fn the_bundled_digits_are_complete() {
    let train = mnist(Split::Train).unwrap();
    let test = Dataset::open("mnist", Split::Test).unwrap();
    assert_eq!((train.len(), test.len()), (60_000, 10_000));
    for data in [&train, &test] {
        assert_eq!((data.name(), data.shape(), data.classes()), ("mnist", [1, 28, 28], 10));
    }
    // The class frequencies and the mean grey levels (0.1307, 0.1325) that are published with the data set.
    assert_eq!(counts(&train), [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]);
    assert_eq!(counts(&test), [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]);
    let mean = |data: &Dataset| total(data) as f64 / (255.0 * 784.0 * data.len() as f64);
    assert!((mean(&train) - 0.1307).abs() < 5e-5, "{}", mean(&train));
    assert!((mean(&test) - 0.1325).abs() < 5e-5, "{}", mean(&test));
    assert_eq!(train.labels().unwrap()[..10], [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]);
}

#[test]
fn the_bundled_files_belong_to_the_package() {
    let assets = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/mnist");
    let readme = std::fs::read_to_string(assets.join("README.md")).unwrap();
    for word in ["LeCun", "Cortes", "Burges", "Licence"] {
        assert!(readme.contains(word), "{word}");
    }
}

fn small(labels: Option<Vec<u32>>) -> Dataset {
    Dataset::new("small", [2, 1, 3], (0..24).collect(), labels).unwrap()
}

#[test]
fn batches_hold_the_chosen_images_in_order() {
    let data = small(Some(vec![3, 0, 1, 1]));
    assert_eq!((data.len(), data.classes(), data.shape()), (4, 4, [2, 1, 3]));
    let batch = data.batch(&[2, 0, 2], Range::ZeroOne).unwrap();
    assert_eq!(batch.images.dim(), (3, 2, 1, 3));
    assert_eq!(batch.labels, [1, 3, 1]);
    for (row, first) in [(0, 12u8), (1, 0), (2, 12)] {
        let expected: Vec<f32> = (first..first + 6).map(|b| f32::from(b) / 255.0).collect();
        assert_eq!(batch.images.slice(s![row, .., .., ..]).iter().copied().collect::<Vec<_>>(), expected);
    }
    assert_eq!(data.batch(&[], Range::ZeroOne).unwrap().images.dim(), (0, 2, 1, 3));
    for index in [4, usize::MAX] {
        let message = data.batch(&[0, index], Range::ZeroOne).unwrap_err().to_string();
        assert_eq!(message, format!("data set small has 4 images, and image {index} was asked for, counted from 0"));
    }
}

#[test]
fn a_data_set_without_labels_has_no_classes() {
    let data = small(None);
    assert_eq!((data.classes(), data.labels()), (0, None));
    assert!(data.batch(&[1, 2], Range::MinusOneOne).unwrap().labels.is_empty());
}

#[test]
fn ranges_meet_their_ends_and_round_trip() {
    assert_eq!([0, 255].map(|b| Range::MinusOneOne.from_byte(b)), [-1.0, 1.0]);
    assert_eq!([0, 255].map(|b| Range::ZeroOne.from_byte(b)), [0.0, 1.0]);
    for range in [Range::MinusOneOne, Range::ZeroOne] {
        for byte in 0..=255 {
            assert_eq!(range.to_byte(range.from_byte(byte)), byte);
        }
        assert_eq!(range.to_byte(f32::NAN), 0);
        assert_eq!([-7.0, 7.0].map(|v| range.to_byte(v)), [0, 255]);
    }
    // The interval is symmetric: the two middle bytes lie on either side of zero.
    assert_eq!(Range::MinusOneOne.from_byte(127), -Range::MinusOneOne.from_byte(128));
}

#[test]
fn parts_that_do_not_fit_are_refused() {
    let message = |shape, bytes: usize, labels| {
        let error = Dataset::new("odd", shape, vec![0; bytes], labels).unwrap_err();
        assert!(matches!(error, DataError::Parts { .. }));
        error.to_string()
    };
    assert_eq!(
        message([1, 0, 3], 6, None),
        "data set odd: the shape should be [C, H, W], all positive, found [1, 0, 3]"
    );
    assert!(message([usize::MAX, 2, 1], 6, None).contains("the shape"));
    assert!(message([1, 2, 2], 6, None).contains("a positive multiple of 4, found 6"));
    assert!(message([1, 2, 2], 0, None).contains("a positive multiple of 4, found 0"));
    assert!(message([1, 2, 2], 8, Some(vec![0])).contains("the number of labels should be 2, found 1"));
}

proptest! {
    #[test]
    fn a_batch_is_the_images_one_by_one(indices in prop::collection::vec(0usize..4, 0..10)) {
        let data = small(Some(vec![3, 0, 1, 1]));
        let batch = data.batch(&indices, Range::MinusOneOne).unwrap();
        for (row, &i) in indices.iter().enumerate() {
            let single = data.batch(&[i], Range::MinusOneOne).unwrap();
            prop_assert_eq!(batch.images.slice(s![row..=row, .., .., ..]), single.images.view());
            prop_assert_eq!(batch.labels[row], single.labels[0]);
        }
    }
}
