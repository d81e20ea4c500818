//! Large pictures in parts: an autoencoder takes memory in proportion to the area, so tiles that overlap are coded one by one and
//! faded into each other, as diffusers' `AutoencoderKL` does it.
//!
//! ```text
//! tiles of T pixels begin every 3T/4;  in the quarter that two of them share, at y of Y:  (1 - y/Y) before + y/Y after
//! ```

use ndarray::{Array4, ArrayView4, Axis, Slice, concatenate};

use crate::LatentError;

/// The sides of the tiles of what goes in and of what comes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiles {
    input: usize,
    output: usize,
}

impl Tiles {
    /// Tiles of `input` pixels, each of which becomes one of `output`: latents of 64 pictures of 512 when decoding, the other
    /// way round when encoding.
    ///
    /// # Errors
    /// Unless both are multiples of four, so that a quarter is whole, and one divides the other.
    pub fn new(input: usize, output: usize) -> Result<Self, LatentError> {
        let whole = |side: usize| side > 0 && side.is_multiple_of(4);
        let divides = input.max(output).checked_rem(input.min(output)) == Some(0);
        if whole(input) && whole(output) && divides {
            return Ok(Self { input, output });
        }
        Err(LatentError::Parameter {
            operation: "coding in tiles",
            what: "the sides of a tile, of latents and of pixels".into(),
            expected: "multiples of 4, of which one divides the other".into(),
            found: format!("{input} and {output}"),
            remedy: "choose another size of the tiles",
        })
    }

    /// Whether `x` `[N, C, H, W]` is larger than a tile.
    pub fn divide(&self, x: ArrayView4<'_, f32>) -> bool {
        let (_, _, h, w) = x.dim();
        h > self.input || w > self.input
    }

    /// The parts of `x` `[N, C, H, W]` by `code`, joined; of an `x` that is no larger than a tile, `code` of it all.
    ///
    /// # Errors
    /// As `code`; also if what comes out is not in the proportion of the tiles.
    ///
    /// Verified by `tiles_are_joined_as_by_diffusers`.
    pub fn run<E: From<LatentError>>(
        &self,
        x: ArrayView4<'_, f32>,
        mut code: impl FnMut(ArrayView4<'_, f32>) -> Result<Array4<f32>, E>,
    ) -> Result<Array4<f32>, E> {
        if !self.divide(x) {
            return code(x);
        }
        let (_, _, h, w) = x.dim();
        let (step, fade) = (self.input / 4 * 3, self.output / 4);
        let kept = self.output - fade;
        let cut = |first: usize, len: usize| Slice::from(first..(first + self.input).min(len));
        let mut above: Vec<Array4<f32>> = Vec::new();
        let mut bands: Vec<Array4<f32>> = Vec::new();
        for i in (0..h).step_by(step) {
            let mut row: Vec<Array4<f32>> = Vec::new();
            for (column, j) in (0..w).step_by(step).enumerate() {
                let part = x.slice_axis(Axis(2), cut(i, h));
                let part = part.slice_axis(Axis(3), cut(j, w));
                let mut tile = code(part)?;
                self.check(part.dim(), tile.dim())?;
                // Tiles fade into neighbours that are faded already, first from above and then from the left.
                if let Some(before) = above.get(column) {
                    fade_in(before.view(), &mut tile, Axis(2), fade);
                }
                if let Some(before) = row.last() {
                    fade_in(before.view(), &mut tile, Axis(3), fade);
                }
                row.push(tile);
            }
            let inner = |tile: &Array4<f32>| {
                let first = |axis: usize| Slice::from(..kept.min(tile.len_of(Axis(axis))));
                tile.slice_axis(Axis(2), first(2)).slice_axis(Axis(3), first(3)).to_owned()
            };
            let parts: Vec<Array4<f32>> = row.iter().map(inner).collect();
            bands.push(joined(Axis(3), &parts)?);
            above = row;
        }
        Ok(joined(Axis(2), &bands)?)
    }

    /// Refuses a tile that did not keep the number of images and the proportions.
    fn check(
        &self,
        (n, _, h, w): (usize, usize, usize, usize),
        found: (usize, usize, usize, usize),
    ) -> Result<(), LatentError> {
        let side = |side: usize| side * self.output / self.input;
        if (found.0, found.2, found.3) == (n, side(h), side(w)) {
            return Ok(());
        }
        Err(LatentError::Parameter {
            operation: "coding in tiles",
            what: "what became of a tile".into(),
            expected: format!("{n} of {} by {}", side(h), side(w)),
            found: format!("{} of {} by {}", found.0, found.2, found.3),
            remedy: "give the proportions of the autoencoder, and an image whose sides are multiples of it",
        })
    }
}

/// The first `len` rows (or columns) of `tile` mixed with the last of `before`.
fn fade_in(before: ArrayView4<'_, f32>, tile: &mut Array4<f32>, axis: Axis, len: usize) {
    let (there, here) = (before.len_of(axis), tile.len_of(axis));
    let len = len.min(there).min(here);
    for k in 0..len {
        let share = k as f32 / len as f32;
        let old = before.index_axis(axis, there - len + k);
        tile.index_axis_mut(axis, k).zip_mut_with(&old, |new, old| *new = old * (1.0 - share) + *new * share);
    }
}

fn joined(axis: Axis, parts: &[Array4<f32>]) -> Result<Array4<f32>, LatentError> {
    let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
    concatenate(axis, &views).map_err(|e| LatentError::Parameter {
        operation: "coding in tiles",
        what: "the tiles".into(),
        expected: "of as many channels".into(),
        found: e.to_string(),
        remedy: "code all of them in the same way",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every pixel doubled: whatever the tiles, the picture is that of the whole.
    #[test]
    fn a_code_without_neighbours_needs_no_fading() {
        let double = |x: ArrayView4<'_, f32>| -> Result<Array4<f32>, LatentError> {
            let (n, c, h, w) = x.dim();
            Ok(Array4::from_shape_fn((n, c, 2 * h, 2 * w), |(n, c, i, j)| x[(n, c, i / 2, j / 2)]))
        };
        for (h, w) in [(8, 8), (9, 5), (7, 30), (21, 18), (14, 15)] {
            let x = Array4::from_shape_fn((2, 3, h, w), |(n, c, i, j)| (n * 1000 + c * 300 + i * 17 + j) as f32);
            let found = Tiles::new(8, 16).unwrap().run(x.view(), double).unwrap();
            let expected = double(x.view()).unwrap();
            assert_eq!(found.dim(), expected.dim());
            assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= 1e-3), "{h} {w}");
        }
    }

    #[test]
    fn tiles_that_cannot_be_are_refused() {
        for (input, output) in [(0, 0), (8, 12), (6, 12), (8, 2)] {
            assert!(Tiles::new(input, output).is_err(), "{input} {output}");
        }
        assert!(Tiles::new(512, 64).is_ok());
        let same = |x: ArrayView4<'_, f32>| -> Result<Array4<f32>, LatentError> { Ok(x.to_owned()) };
        let error = Tiles::new(8, 16).unwrap().run(Array4::zeros((1, 1, 9, 9)).view(), same).unwrap_err();
        assert!(error.to_string().contains("1 of 16 by 16"), "{error}");
    }
}
