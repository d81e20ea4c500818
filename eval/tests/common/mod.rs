//! Data with known densities, and noise that makes expectations exact.

// Each test file uses a part of this.
#![allow(dead_code)]

use ndarray::Array4;
use proptest::prelude::*;
use tweedie_denoiser::{Component, DenoiserError, MixtureOracle, Noise, Purpose};
use tweedie_schedule::{BetaSchedule, Schedule};

/// `N(mean, std^2 I)` in `dims` dimensions.
pub fn gaussian(mean: f64, std: f64, dims: usize) -> MixtureOracle {
    MixtureOracle::gaussian([1, 1, dims], mean, std).unwrap()
}

/// Weight, mean and standard deviation of each component in two dimensions; the label is the number of the component.
pub type Parts = Vec<(f64, [f64; 2], f64)>;

/// The oracle of a mixture in two dimensions.
pub fn mixture(parts: &Parts) -> MixtureOracle {
    let component = |(k, (weight, mean, std)): (usize, &(f64, [f64; 2], f64))| {
        Component::new(*weight, mean.to_vec(), *std, Some(k))
    };
    MixtureOracle::new([1, 1, 2], parts.iter().enumerate().map(component).collect()).unwrap()
}

/// Two or three components in two dimensions.
pub fn any_mixture() -> impl Strategy<Value = Parts> {
    prop::collection::vec((0.2..1.0_f64, [-1.5..1.5_f64, -1.5..1.5_f64], 0.2..0.8_f64), 2..4)
}

/// A schedule of 1 to `most` steps that ends in little signal.
pub fn any_schedule(most: usize) -> impl Strategy<Value = Schedule> {
    (1..=most, 0.01..0.1_f64, 0.1..0.6_f64)
        .prop_map(|(steps, start, end)| Schedule::new(&BetaSchedule::Linear { start, end }, steps).unwrap())
}

/// `count` samples of a mixture, and the component of each: a golden-ratio sequence for the component, ChaCha for the rest.
pub fn draw(parts: &Parts, count: usize, seed: u64) -> (Array4<f64>, Vec<usize>) {
    let total: f64 = parts.iter().map(|p| p.0).sum();
    let mut chosen = Vec::with_capacity(count);
    let noise = tweedie_denoiser::SeededNoise::new(seed);
    let mut x = Array4::zeros((count, 1, 1, 2));
    for i in 0..count {
        let mut place = (0.618_033_988_749_894_9 * i as f64).fract() * total;
        let k = parts.iter().position(|p| {
            place -= p.0;
            place < 0.0
        });
        let k = k.unwrap_or(parts.len() - 1);
        let mut z = [0.0; 2];
        noise.fill(Purpose::Initial, i, &mut z).unwrap();
        for j in 0..2 {
            x[[i, 0, 0, j]] = parts[k].1[j] + parts[k].2 * z[j];
        }
        chosen.push(k);
    }
    (x, chosen)
}

/// Noise +1 for even samples and -1 for odd ones: the two-point Gauss-Hermite rule, whose mean over two samples is the exact
/// expectation of every polynomial of degree three, and so of every term of the bound on Gaussian data.
pub struct Signs;

impl Noise for Signs {
    fn fill(&self, _: Purpose, sample: usize, out: &mut [f64]) -> Result<(), DenoiserError> {
        out.fill(if sample.is_multiple_of(2) { 1.0 } else { -1.0 });
        Ok(())
    }
}
