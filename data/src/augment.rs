//! What is done to the images of a training set before a network sees them, as a function of the seed, the step and the
//! place in the batch.

use std::f64::consts::PI;

use ndarray::{Array2, Array4, ArrayView2, ArrayViewMut2, ArrayViewMut3, Axis};
use ndarray_rand::rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::{Batch, Range};

/// The domains that separate these generators from every other one that is keyed by the same seed.
const MIRROR: [u8; 8] = *b"mirror_1";
const SHIFT: [u8; 8] = *b"shift__1";
const AFFINE: [u8; 8] = *b"affine_1";

/// Which images of a batch of step `step` (from 0) are mirrored: each with probability one half, as a function of the seed,
/// the step and its place in the batch.
pub fn flips(seed: u64, step: u64, count: usize) -> Vec<bool> {
    let mut random = generator(seed, MIRROR, step, 0);
    (0..count).map(|_| random.next_u32() & 1 == 1).collect()
}

fn generator(seed: u64, domain: [u8; 8], step: u64, place: u64) -> ChaCha8Rng {
    let mut key = [0u8; 32];
    for (part, bytes) in
        key.chunks_exact_mut(8).zip([seed.to_le_bytes(), domain, step.to_le_bytes(), place.to_le_bytes()])
    {
        part.copy_from_slice(&bytes);
    }
    ChaCha8Rng::from_seed(key)
}

/// What is done to an image of the training set before a network sees it. Places that an image is moved away from become
/// black.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Augment {
    /// Nothing.
    #[default]
    None,
    /// It is mirrored left to right with probability one half, see [`flips`].
    Flip,
    /// It is shifted by whole pixels.
    Shift {
        /// The largest number of pixels, in both directions of both axes; every one is as likely.
        pixels: usize,
    },
    /// It is turned, scaled, sheared and shifted, and read between its pixels by bilinear interpolation.
    Affine(Affine),
}

/// The strengths of [`Augment::Affine`]: each number is drawn uniformly between the negative of the strength and itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Affine {
    /// The angle in degrees, from 0 to 180.
    pub rotation: f64,
    /// The natural logarithm of the factor of each axis, at least 0 and less than 1.
    pub scale: f64,
    /// How far a row one pixel below is shifted against the one above it, at least 0 and less than 1.
    pub shear: f64,
    /// The shift along each axis in pixels, at least 0.
    pub shift: f64,
}

impl Default for Affine {
    /// What leaves handwritten digits readable: 10 degrees, a tenth of scale and of shear, two pixels.
    fn default() -> Self {
        Self { rotation: 10.0, scale: 0.1, shear: 0.1, shift: 2.0 }
    }
}

/// Where a pixel of the new image is read in the old one, relative to the centres of both: `matrix (y - shift)`, with rows
/// before columns.
#[derive(Clone, Copy, Debug)]
struct Placement {
    matrix: [[f64; 2]; 2],
    shift: [f64; 2],
}

impl Affine {
    fn draw(&self, random: &mut ChaCha8Rng) -> Placement {
        let mut between = |strength: f64| strength * (2.0 * random.random::<f64>() - 1.0);
        let angle = between(self.rotation) * PI / 180.0;
        let [sy, sx] = [self.scale; 2].map(|scale| between(scale).exp());
        let shear = between(self.shear);
        let shift = [self.shift; 2].map(&mut between);
        let (sin, cos) = angle.sin_cos();
        // Scaled, then sheared, then turned; the way back from the new image to the old one is in the other direction.
        let unturned = [[cos, sin], [-sin, cos]];
        let unsheared =
            [unturned[0], [unturned[1][0] - shear * unturned[0][0], unturned[1][1] - shear * unturned[0][1]]];
        let matrix = [unsheared[0].map(|m| m / sy), unsheared[1].map(|m| m / sx)];
        Placement { matrix, shift }
    }
}

impl Augment {
    /// Changes the images of a batch of step `step` (from 0), whose values are in `range`.
    pub fn apply(&self, batch: &mut Batch, seed: u64, step: u64, range: Range) {
        let black = range.from_byte(0);
        match *self {
            Self::None => {}
            Self::Flip => batch.flip(&flips(seed, step, batch.images.len_of(Axis(0)))),
            Self::Shift { pixels } => each(&mut batch.images, |place, mut image| {
                let mut random = generator(seed, SHIFT, step, place);
                // u32, so that the draw is the same where usize has 32 bits.
                let most = pixels.min(1 << 20) as i64;
                let [down, right] = [(); 2].map(|()| i64::from(random.random_range(0..=2 * most as u32)) - most);
                for mut plane in image.outer_iter_mut() {
                    shifted(&mut plane, [down, right], black);
                }
            }),
            Self::Affine(affine) => each(&mut batch.images, |place, mut image| {
                let placement = affine.draw(&mut generator(seed, AFFINE, step, place));
                for mut plane in image.outer_iter_mut() {
                    let old = plane.to_owned();
                    placed(old.view(), &mut plane, &placement, black);
                }
            }),
        }
    }
}

/// Calls `f` with the place of each image in the batch and the image.
fn each(images: &mut Array4<f32>, f: impl Fn(u64, ArrayViewMut3<'_, f32>) + Sync) {
    let images: Vec<_> = images.outer_iter_mut().collect();
    images.into_par_iter().enumerate().for_each(|(place, image)| f(place as u64, image));
}

fn shifted(plane: &mut ArrayViewMut2<'_, f32>, [down, right]: [i64; 2], black: f32) {
    let old: Array2<f32> = plane.to_owned();
    let (h, w) = old.dim();
    let source = |i: usize, by: i64, len: usize| usize::try_from(i as i64 - by).ok().filter(|&i| i < len);
    for ((i, j), value) in plane.indexed_iter_mut() {
        *value = source(i, down, h).zip(source(j, right, w)).map_or(black, |at| old[at]);
    }
}

fn placed(old: ArrayView2<'_, f32>, new: &mut ArrayViewMut2<'_, f32>, placement: &Placement, black: f32) {
    let (h, w) = old.dim();
    let centre = [(h as f64 - 1.0) / 2.0, (w as f64 - 1.0) / 2.0];
    let Placement { matrix: [my, mx], shift } = placement;
    let at = |i: i64, j: i64| match (usize::try_from(i), usize::try_from(j)) {
        (Ok(i), Ok(j)) if i < h && j < w => f64::from(old[[i, j]]),
        _ => f64::from(black),
    };
    for ((i, j), value) in new.indexed_iter_mut() {
        let v = [i as f64 - centre[0] - shift[0], j as f64 - centre[1] - shift[1]];
        let [y, x] = [my[0] * v[0] + my[1] * v[1] + centre[0], mx[0] * v[0] + mx[1] * v[1] + centre[1]];
        let (top, left) = (y.floor(), x.floor());
        let (fy, fx, top, left) = (y - top, x - left, top as i64, left as i64);
        let row = |i: i64| (1.0 - fx) * at(i, left) + fx * at(i, left.saturating_add(1));
        *value = ((1.0 - fy) * row(top) + fy * row(top.saturating_add(1))) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plane(h: usize, w: usize) -> Array2<f32> {
        Array2::from_shape_fn((h, w), |(i, j)| ((i * 7 + j * 3) % 11) as f32 / 10.0)
    }

    fn place(matrix: [[f64; 2]; 2], shift: [f64; 2], old: &Array2<f32>) -> Array2<f32> {
        let mut new = Array2::from_elem(old.dim(), f32::NAN);
        placed(old.view(), &mut new.view_mut(), &Placement { matrix, shift }, -1.0);
        new
    }

    const IDENTITY: [[f64; 2]; 2] = [[1.0, 0.0], [0.0, 1.0]];

    #[test]
    fn whole_pixels_and_right_angles_move_pixels_exactly() {
        let old = plane(6, 5);
        assert_eq!(place(IDENTITY, [0.0, 0.0], &old), old);
        let mut moved = old.clone();
        shifted(&mut moved.view_mut(), [2, -1], -1.0);
        assert_eq!(place(IDENTITY, [2.0, -1.0], &old), moved);
        assert_eq!(
            (moved[[2, 0]], moved[[5, 3]], moved[[1, 1]], moved[[3, 4]]),
            (old[[0, 1]], old[[3, 4]], -1.0, -1.0)
        );
        let square = plane(5, 5);
        let turned = place([[0.0, 1.0], [-1.0, 0.0]], [0.0, 0.0], &square);
        assert_eq!(turned, Array2::from_shape_fn((5, 5), |(i, j)| square[[j, 4 - i]]));
    }

    #[test]
    fn half_a_pixel_is_the_mean_of_two() {
        let old = plane(3, 4);
        let moved = place(IDENTITY, [0.0, 0.5], &old);
        for (i, j) in [(0, 1), (1, 3), (2, 2)] {
            assert!((moved[[i, j]] - 0.5 * (old[[i, j - 1]] + old[[i, j]])).abs() < 1e-6);
        }
        assert!((moved[[1, 0]] - 0.5 * (old[[1, 0]] - 1.0)).abs() < 1e-6, "beyond the edge is black");
    }

    #[test]
    fn a_placement_undoes_what_it_is_drawn_for() {
        let affine = Affine { rotation: 30.0, scale: 0.3, shear: 0.4, shift: 3.0 };
        for place in 0..50 {
            // The same draws as `Affine::draw`, composed the other way round.
            let mut random = generator(5, AFFINE, 2, place);
            let mut between = |strength: f64| strength * (2.0 * random.random::<f64>() - 1.0);
            let (angle, sy, sx) = (between(30.0).to_radians(), between(0.3).exp(), between(0.3).exp());
            let (shear, dy, dx) = (between(0.4), between(3.0), between(3.0));
            let Placement { matrix: [my, mx], shift } = affine.draw(&mut generator(5, AFFINE, 2, place));
            let (y, x) = (1.5, -2.25);
            let (y1, x1) = (sy * y, sx * x);
            let x2 = x1 + shear * y1;
            let (y3, x3) = (angle.cos() * y1 - angle.sin() * x2, angle.sin() * y1 + angle.cos() * x2);
            let v = [y3 + dy - shift[0], x3 + dx - shift[1]];
            let back = [my[0] * v[0] + my[1] * v[1], mx[0] * v[0] + mx[1] * v[1]];
            assert!((back[0] - y).abs() < 1e-12 && (back[1] - x).abs() < 1e-12, "{back:?}");
        }
    }
}
