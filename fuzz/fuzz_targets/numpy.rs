//! Any bytes as `.npy`, as `.npz`, and as the header of an array: what opens is no larger than what there was can hold.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tweedie_data::{Dataset, Range, Split, npy_from_bytes, npz_from_bytes};

fn check(data: Dataset, most: usize) {
    let size = data.shape().iter().product::<usize>();
    assert!(data.len() > 0 && data.len() * size <= most);
    assert!(data.labels().is_none_or(|labels| labels.len() == data.len()));
    let batch = data.batch(&[0, data.len() - 1], Range::MinusOneOne).expect("they exist");
    assert!(batch.images.iter().all(|v| (-1.0..=1.0).contains(v)));
}

fuzz_target!(|bytes: &[u8]| {
    if let Ok(data) = npy_from_bytes(bytes, "fuzz") {
        check(data, bytes.len());
    }
    // The text of a header up to a line's end, and elements behind it.
    let (header, elements) = bytes.split_at(bytes.iter().position(|&b| b == b'\n').unwrap_or(bytes.len()));
    if let Ok(length) = u16::try_from(header.len()) {
        let framed = [b"\x93NUMPY\x01\x00".as_slice(), &length.to_le_bytes(), header, elements].concat();
        if let Ok(data) = npy_from_bytes(&framed, "fuzz") {
            check(data, bytes.len());
        }
    }
    for split in [Split::Train, Split::Test] {
        if let Ok(data) = npz_from_bytes(bytes, "fuzz", split) {
            check(data, 1032 * bytes.len());
        }
    }
});
