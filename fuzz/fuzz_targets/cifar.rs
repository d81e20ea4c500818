//! Any bytes as a batch of CIFAR-10 or CIFAR-100: whole records, with labels that exist.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tweedie_data::cifar::{self, Cifar};

fuzz_target!(|bytes: &[u8]| {
    // Records are long: a short input stands for the labels of as many of them.
    for kind in [Cifar::Ten, Cifar::Hundred] {
        let record = kind.record();
        let long: Vec<u8> = bytes.iter().take(64).flat_map(|&label| std::iter::repeat_n(label, record)).collect();
        let long = &long[..long.len() - usize::from(bytes.len() % 7 == 1).min(long.len())];
        for bytes in [bytes, long] {
            let Ok(data) = cifar::from_bytes(bytes, kind, "fuzz") else { continue };
            assert_eq!(data.len() * record, bytes.len());
            let labels = data.labels().expect("they are in the records");
            assert!(labels.iter().all(|&label| (label as usize) < kind.classes()));
            assert_eq!(*data.image(0).expect("there is one"), bytes[record - 3072..record]);
        }
    }
});
