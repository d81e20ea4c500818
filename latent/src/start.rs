//! Drawing that starts from a picture instead of noise: SDEdit (Meng et al. 2022, arXiv:2108.01073, algorithm 1), "image to image".
//!
//! ```text
//! of N moves the last floor(strength N);  x = alpha z + sigma eps  at the level of the first of them
//! ```

use ndarray::Array4;
use tweedie_denoiser::{DenoiserError, Noise, Purpose};
use tweedie_schedule::{LevelGrid, NoiseLevel};

use crate::LatentError;

const OPERATION: &str = "starting from a picture";

/// The last `floor(strength * N)` of the N moves of a grid, for a strength in (0, 1]: at 1 nothing but the coarsest outlines of
/// the picture stays, near 0 almost all of it.
///
/// # Errors
/// If the strength is out of range, or so small that no move is left.
///
/// Verified by `a_strength_keeps_the_last_moves`.
pub fn shortened(grid: &LevelGrid, strength: f64) -> Result<LevelGrid, LatentError> {
    let total = grid.len();
    let kept = (total as f64 * strength).floor();
    if !(strength <= 1.0 && kept >= 1.0) {
        return Err(LatentError::Parameter {
            operation: OPERATION,
            what: "the strength".into(),
            expected: format!("a number from {} to 1, so that one of {total} moves is left", 1.0 / total as f64),
            found: strength.to_string(),
            remedy: "choose a larger strength, or more steps",
        });
    }
    let moves = grid.moves()[total - (kept as usize).min(total)..].to_vec();
    // The moves were in order before.
    let short = LevelGrid::new(moves).map_err(DenoiserError::from)?;
    Ok(if grid.result() == 1.0 { short } else { short.with_unscaled_result() })
}

/// Noise whose first state is a noised picture.
///
/// `x = alpha z + sigma eps` stands in the place of standard normal noise, where eps is the first noise of the source that it wraps;
/// other draws are that source's.
#[derive(Clone, Debug)]
pub struct FromPicture<S> {
    noise: S,
    latents: Array4<f32>,
    level: NoiseLevel,
    start: f64,
}

impl<S: Noise> FromPicture<S> {
    /// Noise for a grid (see [`shortened`]), whose first level the picture gets. `latents` are scaled as the network sees them,
    /// `[1, C, h, w]` for all samples or `[N, C, h, w]` for samples 0 to N - 1.
    pub fn new(noise: S, latents: Array4<f32>, grid: &LevelGrid) -> Self {
        // A grid has at least one move.
        let level = grid.moves()[0].from;
        Self { noise, latents, level, start: grid.start() }
    }
}

impl<S: Noise> Noise for FromPicture<S> {
    /// The noised picture for the first state, noise of the source for all others.
    ///
    /// Verified by `the_first_state_is_the_noised_picture`.
    fn fill(&self, purpose: Purpose, sample: usize, out: &mut [f64]) -> Result<(), DenoiserError> {
        self.noise.fill(purpose, sample, out)?;
        if purpose != Purpose::Initial {
            return Ok(());
        }
        let count = self.latents.dim().0;
        let index = if count == 1 { 0 } else { sample };
        let per_sample = self.latents.len() / count.max(1);
        if index >= count || per_sample != out.len() {
            return Err(DenoiserError::Noise {
                what: "the picture that drawing starts from",
                expected: format!("{} latents for sample {sample}", out.len()),
                found: format!("{count} times {per_sample}"),
                remedy: "give one picture, or one for each sample, of the size that is drawn",
            });
        }
        let (alpha, sigma) = (self.level.alpha(), self.level.sigma());
        // A sampler multiplies its first noise by the grid's start.
        for (x, z) in out.iter_mut().zip(self.latents.index_axis(ndarray::Axis(0), index)) {
            *x = (alpha * f64::from(*z) + sigma * *x) / self.start;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tweedie_denoiser::SeededNoise;
    use tweedie_schedule::GridMove;

    use super::*;

    fn grid(count: usize) -> LevelGrid {
        let level = |k: usize| NoiseLevel::from_edm_sigma((count - k) as f64).unwrap();
        let moves = (0..count).map(|k| GridMove { from: level(k), to: level(k + 1), step: (count - k) as f64 });
        LevelGrid::new(moves.collect()).unwrap()
    }

    #[test]
    fn a_strength_keeps_the_last_moves() {
        let grid = grid(50).with_start(3.0);
        for (strength, kept) in [(1.0, 50), (0.8, 40), (0.02, 1), (0.999, 49), (0.58, 28)] {
            let short = shortened(&grid, strength).unwrap();
            assert_eq!(short.moves(), &grid.moves()[50 - kept..], "{strength}");
            assert_eq!((short.start(), short.result()), (1.0, 1.0));
        }
        for strength in [0.0, 0.01, -0.5, 1.01, f64::NAN] {
            let message = shortened(&grid, strength).unwrap_err().to_string();
            assert!(message.contains("from 0.02 to 1"), "{message}");
        }
    }

    #[test]
    fn the_first_state_is_the_noised_picture() {
        let grid = grid(4);
        let (alpha, sigma) = (grid.moves()[0].from.alpha(), grid.moves()[0].from.sigma());
        let z = Array4::from_shape_fn((2, 1, 2, 3), |(n, _, i, j)| (n * 6 + i * 3 + j) as f32);
        let noise = FromPicture::new(SeededNoise::new(7), z.clone(), &grid);
        for sample in 0..2 {
            let (mut eps, mut x) = ([0.0; 6], [0.0; 6]);
            SeededNoise::new(7).fill(Purpose::Initial, sample, &mut eps).unwrap();
            noise.fill(Purpose::Initial, sample, &mut x).unwrap();
            for (k, x) in x.iter().enumerate() {
                let expected = alpha * (sample * 6 + k) as f64 + sigma * eps[k];
                assert!((x - expected).abs() < 1e-12);
            }
            SeededNoise::new(7).fill(Purpose::Step(1), sample, &mut eps).unwrap();
            noise.fill(Purpose::Step(1), sample, &mut x).unwrap();
            assert_eq!(eps, x);
        }
        assert!(noise.fill(Purpose::Initial, 2, &mut [0.0; 6]).is_err());
        assert!(noise.fill(Purpose::Initial, 0, &mut [0.0; 5]).is_err());
        let one = FromPicture::new(SeededNoise::new(7), z.select(ndarray::Axis(0), &[0]), &grid);
        assert!(one.fill(Purpose::Initial, 5, &mut [0.0; 6]).is_ok());
    }
}
