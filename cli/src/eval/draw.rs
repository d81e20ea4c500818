//! Samples of an oracle.

use anyhow::Result;
use ndarray::{Array4, Axis};
use tweedie_denoiser::{Mean, Noise, Purpose, SeededNoise};
use tweedie_eval::gaussian::log_interval;

use crate::model::LoadedOracle;

/// `count` independent samples of an oracle's mixture `[N, C, H, W]` and the label of each one's component; sample `i` of a
/// seed is the same however many are drawn.
///
/// # Errors
/// If no noise can be drawn.
pub fn draw(oracle: &LoadedOracle, count: usize, seed: u64) -> Result<(Array4<f64>, Vec<Option<usize>>)> {
    let [c, h, w] = oracle.oracle.shape();
    let noise = SeededNoise::new(seed);
    let total: f64 = oracle.components.iter().map(|component| component.weight).sum();
    let (mut x, mut labels) = (Array4::zeros((count, c, h, w)), Vec::with_capacity(count));
    let mut z = vec![0.0; c * h * w];
    for (i, mut sample) in x.axis_iter_mut(Axis(0)).enumerate() {
        // The steps of the bound draw from 1 on. Phi(z) of a standard normal z is uniform.
        let mut choice = [0.0];
        noise.fill(Purpose::Step(0), i, &mut choice)?;
        let mut place = total * log_interval(f64::NEG_INFINITY, choice[0]).exp();
        let chosen = oracle.components.iter().find(|component| {
            place -= component.weight;
            place < 0.0
        });
        // Rounding may leave a little weight after the last component.
        let Some(component) = chosen.or(oracle.components.last()) else { continue };
        noise.fill(Purpose::Initial, i, &mut z)?;
        for (j, (value, z)) in sample.iter_mut().zip(&z).enumerate() {
            let mean = match &component.mean {
                Mean::Constant(mean) => *mean,
                Mean::Values(means) => means[j],
            };
            *value = mean + component.std * z;
        }
        labels.push(component.label);
    }
    Ok((x, labels))
}

#[cfg(test)]
mod tests {
    use tweedie_denoiser::{Component, MixtureOracle};

    use super::*;

    #[test]
    fn draws_have_the_moments_of_the_mixture() {
        let component = |weight, mean: Mean, std, label| Component { weight, mean, std, label: Some(label) };
        let components =
            vec![component(3.0, Mean::Constant(-1.0), 0.5, 4), component(1.0, Mean::Values(vec![2.0, 0.0]), 0.1, 7)];
        let oracle = MixtureOracle::new([1, 1, 2], components.clone()).unwrap();
        let oracle = LoadedOracle { name: "x.json".into(), oracle, components, labels: vec![4, 7] };
        let n = 20_000;
        let (x, labels) = draw(&oracle, n, 3).unwrap();
        // A quarter of the second kind, within 5 standard errors; so are the moments of each kind.
        let second: Vec<usize> = (0..n).filter(|&i| labels[i] == Some(7)).collect();
        let share = second.len() as f64 / n as f64;
        assert!((share - 0.25).abs() < 5.0 * (0.25_f64 * 0.75 / n as f64).sqrt(), "{share}");
        for (label, mean, std) in [(4, [-1.0, -1.0], 0.5), (7, [2.0, 0.0], 0.1)] {
            let of_kind = x.select(Axis(0), &(0..n).filter(|&i| labels[i] == Some(label)).collect::<Vec<_>>());
            let m = of_kind.dim().0 as f64;
            for j in 0..2 {
                let values = of_kind.index_axis(Axis(3), j);
                let found = values.mean().unwrap();
                assert!((found - mean[j]).abs() < 5.0 * std / m.sqrt(), "{found} instead of {}", mean[j]);
                let variance = values.iter().map(|v| (v - mean[j]).powi(2)).sum::<f64>() / m;
                assert!((variance / (std * std) - 1.0).abs() < 5.0 * (2.0 / m).sqrt(), "{variance}");
            }
        }
        let (few, _) = draw(&oracle, 3, 3).unwrap();
        assert_eq!(few, x.select(Axis(0), &[0, 1, 2]));
    }
}
