//! The batches of a run: mirrored by seed and step, and the same whether they are drawn ahead or not.

use proptest::prelude::*;
use tweedie_data::{Affine, Augment, Batch, Dataset, Draws, Range, flips};

fn data() -> Dataset {
    let pixels = (0..10 * 2 * 3 * 5).map(|i| (i * 37 % 256) as u8).collect();
    Dataset::new("toy", [2, 3, 5], pixels, Some((0..10).map(|i| i % 3).collect())).unwrap()
}

fn mirrored(batch: &Batch, row: usize) -> Vec<f32> {
    let [c, h, w] = [2, 3, 5];
    let at = |c: usize, y: usize, x: usize| batch.images[[row, c, y, w - 1 - x]];
    (0..c * h * w).map(|i| at(i / (h * w), i / w % h, i % w)).collect()
}

#[test]
fn about_half_of_the_images_are_mirrored_and_each_step_mirrors_others() {
    let many = flips(7, 3, 10_000);
    let count = many.iter().filter(|flip| **flip).count();
    // Five standard deviations of a binomial with 10 000 trials are 250.
    assert!((4750..5250).contains(&count), "{count}");
    assert_eq!(many, flips(7, 3, 10_000));
    assert_eq!(many[..10], flips(7, 3, 10));
    assert!(many != flips(7, 4, 10_000) && many != flips(8, 3, 10_000));
}

#[test]
fn mirrored_images_are_those_of_the_plain_batch() {
    let data = data();
    let mut plain = Draws::new(&data, 4, 5, Range::ZeroOne, Augment::None);
    let mut flipped = Draws::new(&data, 4, 5, Range::ZeroOne, Augment::Flip);
    let mut seen = [0, 0];
    for step in 0..20 {
        let (plain, flipped) = (plain.at(step).unwrap(), flipped.at(step).unwrap());
        assert_eq!((plain.epoch, &plain.batch.labels), (flipped.epoch, &flipped.batch.labels));
        for (row, flip) in flips(5, step, 4).into_iter().enumerate() {
            let found: Vec<f32> = flipped.batch.images.slice(ndarray::s![row, .., .., ..]).iter().copied().collect();
            let as_it_is: Vec<f32> = plain.batch.images.slice(ndarray::s![row, .., .., ..]).iter().copied().collect();
            assert_eq!(found, if flip { mirrored(&plain.batch, row) } else { as_it_is });
            seen[usize::from(flip)] += 1;
        }
    }
    assert!(seen[0] > 20 && seen[1] > 20, "{seen:?}");
}

#[test]
fn shifts_move_whole_images_by_all_distances_alike() {
    let (side, pixels) = (9, 2i64);
    let white = (0..81).map(|i| if i == 40 { 255 } else { 0 }).collect();
    let data = Dataset::new("dot", [1, side, side], white, None).unwrap();
    let mut draws = Draws::new(&data, 1, 5, Range::MinusOneOne, Augment::Shift { pixels: 2 });
    let mut seen = [[0; 5]; 5];
    for step in 0..2500 {
        let images = draws.at(step).unwrap().batch.images;
        assert!(images.iter().filter(|v| **v == -1.0).count() == 80, "all but one pixel are black");
        let at = images.iter().position(|v| *v == 1.0).unwrap() as i64;
        seen[(at / 9 - 4 + pixels) as usize][(at % 9 - 4 + pixels) as usize] += 1;
    }
    // 100 are expected, with a standard deviation of 10.
    assert!(seen.iter().flatten().all(|count| (50..150).contains(count)), "{seen:?}");
}

#[test]
fn an_augmented_image_depends_on_its_place_and_step_alone() {
    let data = data();
    let affine = Augment::Affine(Affine { rotation: 40.0, ..Affine::default() });
    let none = Affine { rotation: 0.0, scale: 0.0, shear: 0.0, shift: 0.0 };
    for augment in [Augment::Shift { pixels: 1 }, affine] {
        let mut plain = Draws::new(&data, 4, 5, Range::ZeroOne, Augment::None);
        let mut draws = Draws::new(&data, 4, 5, Range::ZeroOne, augment);
        let first = draws.at(0).unwrap();
        let (mut same, mut alone) = (plain.at(0).unwrap().batch, plain.at(0).unwrap().batch);
        augment.apply(&mut same, 5, 0, Range::ZeroOne);
        assert_eq!(same, first.batch);
        alone.images = alone.images.slice(ndarray::s![..2, .., .., ..]).to_owned();
        augment.apply(&mut alone, 5, 0, Range::ZeroOne);
        assert_eq!(alone.images, first.batch.images.slice(ndarray::s![..2, .., .., ..]));
        assert_eq!(first.batch.labels, plain.at(0).unwrap().batch.labels);
        for (seed, step) in [(5, 1), (6, 0)] {
            let mut other = plain.at(0).unwrap().batch;
            augment.apply(&mut other, seed, step, Range::ZeroOne);
            assert_ne!(other, first.batch);
        }
        let inside = first.batch.images.iter().all(|v| (0.0..=1.0).contains(v));
        assert!(inside, "interpolation stays within the range");
    }
    let mut plain = Draws::new(&data, 4, 5, Range::ZeroOne, Augment::None);
    let mut still = Draws::new(&data, 4, 5, Range::ZeroOne, Augment::Affine(none));
    let mut both = Draws::new(&data, 4, 5, Range::ZeroOne, Augment::Flip).then(affine);
    for step in 0..5 {
        assert_eq!(still.at(step).unwrap(), plain.at(step).unwrap(), "without strength nothing changes");
        let mut expected = plain.at(step).unwrap().batch;
        expected.flip(&flips(5, step, 4));
        affine.apply(&mut expected, 5, step, Range::ZeroOne);
        assert_eq!(both.at(step).unwrap().batch, expected, "one after the other");
    }
}

#[test]
fn an_error_ends_the_batches_that_are_drawn_ahead() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train-images-idx3-ubyte");
    let bytes = [[0u8, 0, 8, 3], [0, 0, 0, 9], [0, 0, 0, 2], [0, 0, 0, 2]].concat();
    std::fs::write(&path, [bytes.as_slice(), &[5; 36]].concat()).unwrap();
    let options = tweedie_data::OpenOptions { memory_limit: 0, ..Default::default() };
    let data = Dataset::open_with(folder.path().to_str().unwrap(), tweedie_data::Split::Train, &options).unwrap();
    // The file is cut while it is open.
    std::fs::File::options().write(true).open(&path).unwrap().set_len(20).unwrap();
    let draws = Draws::new(&data, 9, 0, Range::ZeroOne, Augment::None);
    std::thread::scope(|scope| {
        let ahead = draws.ahead(scope, 0).unwrap();
        let message = ahead.next().unwrap().unwrap_err().to_string();
        assert!(message.contains("train-images-idx3-ubyte"), "{message}");
        assert!(ahead.next().is_none());
    });
}

proptest! {
    #[test]
    fn ahead_or_not_the_batches_are_the_same(batch in 1usize..12, seed: u64, from in 0u64..40, steps in 1u64..9) {
        let data = data();
        let mut draws = Draws::new(&data, batch, seed, Range::MinusOneOne, Augment::Flip);
        let ahead: Vec<_> = std::thread::scope(|scope| {
            let ahead = draws.ahead(scope, from).unwrap();
            (0..steps).map(|_| ahead.next().unwrap().unwrap()).collect()
        });
        for (step, drawn) in (from..).zip(ahead) {
            prop_assert_eq!(drawn.step, step);
            prop_assert_eq!(drawn, draws.at(step).unwrap());
        }
    }
}
