//! Any bytes as IDX files, plain or compressed: what opens is no larger than what there was can hold.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tweedie_data::idx;

fuzz_target!(|bytes: &[u8]| {
    // DEFLATE expands a byte to at most 1032.
    let most = 1032 * bytes.len();
    if let Ok(images) = idx::images_from_bytes(bytes, "fuzz") {
        assert_eq!(images.pixels.len(), images.count * images.rows * images.cols);
        assert!(!images.pixels.is_empty() && images.pixels.len() <= most);
    }
    if let Ok(labels) = idx::labels_from_bytes(bytes, "fuzz") {
        assert!(!labels.is_empty() && labels.len() <= most);
    }
});
