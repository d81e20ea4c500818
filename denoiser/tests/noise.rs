//! Noise is a function of its key alone.

use ndarray::{Array, Array4, Array5, Axis};
use ndarray_rand::rand::RngCore;
use proptest::prelude::*;
use tweedie_denoiser::{
    DenoiserError, Noise, Purpose, RecordingNoise, ReplayNoise, SeededNoise, ShiftedNoise, rng_for,
};

fn filled(noise: &dyn Noise, purpose: Purpose, sample: usize, len: usize) -> Vec<f64> {
    let mut out = vec![f64::NAN; len];
    noise.fill(purpose, sample, &mut out).unwrap();
    out
}

proptest! {
    /// The same key gives the same numbers in any order of calls; another seed, sample, step or purpose gives others.
    #[test]
    fn keys_decide(seed in any::<u64>(), sample in 0..1000_usize, step in 0..1000_usize) {
        let noise = SeededNoise::new(seed);
        let first = filled(&noise, Purpose::Step(step), sample, 16);
        let others = [
            filled(&noise, Purpose::Step(step + 1), sample, 16),
            filled(&noise, Purpose::Step(step), sample + 1, 16),
            filled(&noise, Purpose::Initial, sample, 16),
            filled(&SeededNoise::new(seed.wrapping_add(1)), Purpose::Step(step), sample, 16),
        ];
        for (i, other) in others.iter().enumerate() {
            prop_assert!(first.iter().zip(other).all(|(a, b)| a != b), "case {i}");
        }
        prop_assert_eq!(&filled(&noise, Purpose::Step(step), sample, 16), &first);
        prop_assert_eq!(&filled(&noise, Purpose::Step(step), sample, 7)[..], &first[..7]);
        let shifted = ShiftedNoise::new(noise, sample);
        prop_assert_eq!(&filled(&shifted, Purpose::Step(step), 0, 16), &first);
        let third = filled(&ShiftedNoise::new(noise, sample + 1), Purpose::Step(step), 2, 16);
        prop_assert_eq!(&third, &filled(&noise, Purpose::Step(step), sample + 3, 16));
        let boxed: Box<dyn Noise> = Box::new(noise);
        prop_assert_eq!(&filled(&boxed, Purpose::Step(step), sample, 16), &first);
    }

    /// Every word of the key counts, and so does the domain.
    #[test]
    fn generators_are_distinct(seed in any::<u64>(), a in any::<u64>(), b in any::<u64>(), bit in 0..64_u32) {
        let first = |seed, domain: &str, a, b| rng_for(seed, domain, a, b).next_u64();
        let base = first(seed, "order", a, b);
        prop_assert_eq!(first(seed, "order", a, b), base);
        let flip = 1_u64 << bit;
        prop_assert_ne!(first(seed ^ flip, "order", a, b), base);
        prop_assert_ne!(first(seed, "order", a ^ flip, b), base);
        prop_assert_ne!(first(seed, "order", a, b ^ flip), base);
        prop_assert_ne!(first(seed, "Order", a, b), base);
        prop_assert_ne!(first(seed, "", a, b), base);
    }
}

/// The stream is part of the project's promise that a seed names an image; these are its first numbers.
#[test]
fn seed_0_stays_what_it_is() {
    let initial = filled(&SeededNoise::new(0), Purpose::Initial, 0, 4);
    let step = filled(&SeededNoise::new(0), Purpose::Step(0), 0, 4);
    assert_eq!(initial, SEED_0_INITIAL);
    assert_eq!(step, SEED_0_STEP);
}

const SEED_0_INITIAL: [f64; 4] = [0.8442178964614868, 0.7329561710357666, 0.40080395340919495, -1.659260869026184];
const SEED_0_STEP: [f64; 4] = [0.5388375520706177, 0.44536980986595154, -0.6101781129837036, 0.09584443271160126];

/// The key is (seed, FNV-1a of the domain, a, b), little-endian; the words come from a ChaCha8 written independently of the
/// crate that is used here.
#[test]
fn generators_are_chacha8() {
    let mut rng = rng_for(1, "order", 2, 3);
    assert_eq!([rng.next_u64(), rng.next_u64()], [0xe72b_cd08_d5f1_efc7, 0x6cd4_d0f6_045b_3036]);
}

/// Moments of 200,000 draws within five standard errors, and every draw representable in f32.
#[test]
fn noise_is_standard_normal() {
    let n = 200_000;
    let z: Vec<f64> =
        (0..200).flat_map(|sample| filled(&SeededNoise::new(7), Purpose::Step(3), sample, n / 200)).collect();
    assert!(z.iter().all(|&z| f64::from(z as f32) == z));
    let moment = |power: i32| z.iter().map(|z| z.powi(power)).sum::<f64>() / n as f64;
    // The variance of z^p is E z^2p - (E z^p)^2: 1, 2, 15 and 96.
    for (power, expected, variance) in [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)] {
        let tolerance = 5.0 * (variance / n as f64).sqrt();
        let found = moment(power);
        assert!((found - expected).abs() < tolerance, "E z^{power} = {found}");
    }
}

/// What is recorded replays to the same bits, and asks for no more than it has.
#[test]
fn records_replay() {
    let shape = [3, 2, 3, 2];
    let recording = RecordingNoise::new(SeededNoise::new(11), shape);
    // Two batches, of samples 0 to 1 and sample 2, and draws out of order.
    let second = ShiftedNoise::new(&recording, 2);
    for purpose in [Purpose::Step(1), Purpose::Initial, Purpose::Step(0)] {
        for sample in 0..2 {
            filled(&recording, purpose, sample, 12);
        }
        filled(&second, purpose, 0, 12);
    }
    assert!(recording.fill(Purpose::Initial, 3, &mut [0.0; 12]).is_err());
    assert!(recording.fill(Purpose::Initial, 0, &mut [0.0; 8]).is_err());
    let recorded = recording.into_recorded();
    assert_eq!(recorded.initial.shape(), shape);
    assert_eq!(recorded.steps.shape(), [2, 3, 2, 3, 2]);
    let replay = ReplayNoise::new(recorded.initial, recorded.steps).unwrap();
    for purpose in [Purpose::Initial, Purpose::Step(0), Purpose::Step(1)] {
        for sample in 0..3 {
            assert_eq!(filled(&replay, purpose, sample, 12), filled(&SeededNoise::new(11), purpose, sample, 12));
        }
    }
}

#[test]
fn replay_is_checked() {
    let initial: Array4<f32> = Array::zeros((2, 1, 2, 2));
    let message = |result: Result<(), DenoiserError>| result.unwrap_err().to_string();
    let replay = ReplayNoise::new(initial.clone(), Array::zeros((3, 2, 1, 2, 2))).unwrap();
    assert!(message(replay.fill(Purpose::Step(3), 0, &mut [0.0; 4])).contains("4 or more stochastic steps, found 3"));
    assert!(message(replay.fill(Purpose::Initial, 2, &mut [0.0; 4])).contains("3 or more samples, found 2"));
    assert!(message(replay.fill(Purpose::Step(0), 5, &mut [0.0; 4])).contains("6 or more samples, found 2"));
    assert!(message(replay.fill(Purpose::Initial, 0, &mut [0.0; 9])).contains("9 values per sample"));
    assert!(ReplayNoise::new(initial.clone(), Array::zeros((3, 1, 1, 2, 2))).is_err());

    // Deterministic samplers need no steps; entries are used in order, sample by sample.
    let none = ReplayNoise::new(initial.clone(), Array5::zeros((0, 0, 0, 0, 0))).unwrap();
    assert_eq!(filled(&none, Purpose::Initial, 1, 4), [0.0; 4]);
    assert!(message(none.fill(Purpose::Step(0), 0, &mut [0.0; 4])).contains("1 or more stochastic steps, found 0"));
    let mut steps = Array5::zeros((3, 2, 1, 2, 2));
    for (k, mut step) in steps.axis_iter_mut(Axis(0)).enumerate() {
        for (i, value) in step.iter_mut().enumerate() {
            *value = (10 * k + i) as f32;
        }
    }
    let counted = ReplayNoise::new(initial, steps).unwrap();
    assert_eq!(filled(&counted, Purpose::Step(2), 1, 4), [24.0, 25.0, 26.0, 27.0]);
}
