//! Exact samples of a mixture at any noise level.

use ndarray::{Array1, Array4};
use ndarray_rand::rand::Rng;
use ndarray_rand::rand_distr::StandardNormal;
use tweedie_schedule::NoiseLevel;

use super::{Gaussian, MixtureOracle, stack};
use crate::noise::rng_for;
use crate::{Condition, DenoiserError};

/// Separates this generator from every other one that is keyed by the same seed.
const DOMAIN: &str = "oracle/sample";

/// Samples of a mixture.
#[derive(Clone, Debug, PartialEq)]
pub struct Draws {
    /// `[N, C, H, W]`.
    pub x: Array4<f64>,
    /// The index of the component that each sample comes from.
    pub components: Vec<usize>,
    /// The label of that component.
    pub labels: Vec<Option<usize>>,
}

impl MixtureOracle {
    /// One exact sample of `p_t(x | y)` for each entry of `condition`, of `p_t(x)` where it has no label:
    /// `alpha m_k + U_k sqrt(alpha^2 Lambda_k + sigma^2) z` with `k` drawn by its weight and `z ~ N(0, I)`.
    ///
    /// Sample `i` is a function of the seed and `i`, and of its own label.
    ///
    /// # Errors
    /// If no component has the label of a sample.
    ///
    /// Verified by `samples_have_the_moments_of_the_mixture`. Verified by `samples_pass_a_two_sample_test`.
    pub fn sample(&self, level: NoiseLevel, condition: &Condition, seed: u64) -> Result<Draws, DenoiserError> {
        let noised = self.noised(level);
        let [c, h, w] = self.shape;
        let (mut rows, mut components) = (Vec::new(), Vec::new());
        for (i, &label) in condition.as_labels().iter().enumerate() {
            let chosen = self.chosen(label)?;
            let mut rng = rng_for(seed, DOMAIN, i as u64, 0);
            let k = pick(&self.components, &chosen, rng.random());
            let z: Array1<f64> = (0..c * h * w).map(|_| rng.sample::<f64, _>(StandardNormal)).collect();
            let component = &noised.components[k];
            rows.push(&component.mean + &component.factor.colour(z));
            components.push(k);
        }
        let labels = components.iter().map(|&k| self.components[k].label).collect();
        Ok(Draws { x: stack((rows.len(), c, h, w), &rows), components, labels })
    }
}

/// The component at the point `u` in [0, 1) of the cumulative weights of those chosen.
fn pick(components: &[Gaussian], chosen: &[usize], u: f64) -> usize {
    let total: f64 = chosen.iter().map(|&k| components[k].weight()).sum();
    let mut rest = u * total;
    for &k in chosen {
        rest -= components[k].weight();
        if rest < 0.0 {
            return k;
        }
    }
    // Rounding may leave a rest; and where all weights underflow, the largest is the likeliest by far.
    let heaviest = |a: &&usize, b: &&usize| components[**a].log_weight.total_cmp(&components[**b].log_weight);
    chosen.iter().max_by(heaviest).copied().unwrap_or(0)
}
