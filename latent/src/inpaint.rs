//! Drawing a part of a picture anew.
//!
//! A network that was trained for it sees the mask and what is kept beside the noisy latents ([`Inpainting`]; Rombach et al. 2022,
//! section 4.5). With any other network the estimate of `x_0` is replaced by the picture where it is kept ([`Kept`]): there a sampler
//! without noise of its own moves along `alpha z + sigma eps`, which is what diffusers puts in by hand after each step.

use ndarray::{Array2, Array3, Array4, ArrayView2, ArrayView3, ArrayView4, Axis, Zip, concatenate};
use tweedie_denoiser::{Condition, Denoiser, DenoiserError, Estimate, Network};
use tweedie_schedule::NoiseLevel;

use crate::LatentError;

/// What of a mask's brightness, in [0, 1], is to be drawn.
const DRAWN: f32 = 0.5;

/// The mask `[H, W]` of a picture, in [0, 1] (white is drawn), for its latents: 1 where they are drawn and 0 where they are kept,
/// `[H / factor, W / factor]`. Of each `factor` x `factor` pixels the first decides, as in diffusers.
///
/// Verified by `masks_shrink_and_cover`.
pub fn mask_of_latents(mask: ArrayView2<'_, f32>, factor: usize) -> Array2<f32> {
    let factor = factor.max(1);
    let (h, w) = (mask.nrows() / factor, mask.ncols() / factor);
    Array2::from_shape_fn((h, w), |(i, j)| f32::from(mask[(i * factor, j * factor)] >= DRAWN))
}

/// The picture `[C, H, W]` with grey, zero in [-1, 1], where the mask `[H, W]` says that it is drawn.
///
/// # Errors
/// If picture and mask differ in size.
///
/// Verified by `masks_shrink_and_cover`.
pub fn covered(picture: ArrayView3<'_, f32>, mask: ArrayView2<'_, f32>) -> Result<Array3<f32>, LatentError> {
    let (_, h, w) = picture.dim();
    check("covering a picture", [h, w], mask.dim())?;
    let mut covered = picture.to_owned();
    for mut channel in covered.outer_iter_mut() {
        channel.zip_mut_with(&mask, |x, mask| {
            if *mask >= DRAWN {
                *x = 0.0;
            }
        });
    }
    Ok(covered)
}

fn check(operation: &'static str, [h, w]: [usize; 2], mask: (usize, usize)) -> Result<(), LatentError> {
    if mask == (h, w) {
        return Ok(());
    }
    Err(LatentError::Parameter {
        operation,
        what: "the size of the mask".into(),
        expected: format!("{h} by {w}, that of the picture"),
        found: format!("{} by {}", mask.0, mask.1),
        remedy: "resize the mask",
    })
}

/// A network that was trained to fill in: it sees `[x, mask, latents of what is kept]`, 2C + 1 channels.
#[derive(Clone, Debug)]
pub struct Inpainting<N> {
    network: N,
    /// Mask and latents, the same for every sample.
    beside: Array3<f32>,
}

impl<N: Network> Inpainting<N> {
    /// `network` with the mask `[h, w]` of [`mask_of_latents`] and the scaled latents `[C, h, w]` of the [`covered`] picture, both
    /// for every sample.
    ///
    /// # Errors
    /// If mask and latents differ in size.
    pub fn new(network: N, mask: ArrayView2<'_, f32>, latents: ArrayView3<'_, f32>) -> Result<Self, LatentError> {
        let (_, h, w) = latents.dim();
        check("filling in", [h, w], mask.dim())?;
        let beside = concatenate![Axis(0), mask.insert_axis(Axis(0)), latents];
        Ok(Self { network, beside })
    }
}

impl<N: Network> Network for Inpainting<N> {
    /// What the network says of `[x, mask, latents]`.
    ///
    /// Verified by `the_network_sees_mask_and_picture`.
    fn predict(
        &self,
        x: ArrayView4<'_, f32>,
        timesteps: &[f64],
        condition: &Condition,
    ) -> Result<Array4<f32>, DenoiserError> {
        let (n, _, h, w) = x.dim();
        let (beside, bh, bw) = self.beside.dim();
        if (h, w) != (bh, bw) {
            return Err(DenoiserError::Shape {
                operation: "filling in",
                what: "the size of the latents",
                expected: format!("{bh} by {bw}, that of the mask"),
                found: format!("{h} by {w}"),
                remedy: "draw at the size of the picture",
            });
        }
        let all = self.beside.broadcast((n, beside, h, w)).expect("the same for every sample");
        let input = concatenate![Axis(1), x, all];
        self.network.predict(input.view(), timesteps, condition)
    }

    fn classes(&self) -> usize {
        self.network.classes()
    }

    fn has_null_condition(&self) -> bool {
        self.network.has_null_condition()
    }
}

/// A denoiser that knows a part of what it is to draw.
///
/// ```text
/// x_0 = mask D(x, level) + (1 - mask) z
/// ```
#[derive(Clone, Debug)]
pub struct Kept<D> {
    model: D,
    latents: Array4<f64>,
    mask: Array2<f64>,
}

impl<D: Denoiser> Kept<D> {
    /// `model` where the mask `[h, w]` of [`mask_of_latents`] is 1, and elsewhere the scaled latents `[1, C, h, w]` for every sample,
    /// or `[N, C, h, w]`. Values between mix both.
    ///
    /// # Errors
    /// If mask and latents differ in size.
    pub fn new(model: D, mask: ArrayView2<'_, f32>, latents: ArrayView4<'_, f32>) -> Result<Self, LatentError> {
        let (_, _, h, w) = latents.dim();
        check("filling in", [h, w], mask.dim())?;
        Ok(Self { model, latents: latents.mapv(f64::from), mask: mask.mapv(f64::from) })
    }

    fn keep(&self, x0: &mut Array4<f64>) -> Result<(), DenoiserError> {
        let wrong = |found: &[usize]| DenoiserError::Shape {
            operation: "filling in",
            what: "the estimate",
            expected: format!("of the shape of the picture's latents {:?}", self.latents.shape()),
            found: format!("{found:?}"),
            remedy: "draw at the size of the picture, and one sample for each picture",
        };
        let (dim, shape) = (x0.dim(), x0.shape().to_vec());
        let latents = self.latents.broadcast(dim).ok_or_else(|| wrong(&shape))?;
        let mask = self.mask.broadcast(dim).ok_or_else(|| wrong(&shape))?;
        Zip::from(x0).and(&latents).and(&mask).for_each(|x0, z, mask| *x0 = mask * *x0 + (1.0 - mask) * z);
        Ok(())
    }
}

impl<D: Denoiser> Denoiser for Kept<D> {
    fn denoise(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Array4<f64>, DenoiserError> {
        Ok(self.estimate(x, level)?.x0)
    }

    /// The estimate, with the picture where it is kept.
    ///
    /// Verified by `what_is_kept_is_kept`.
    fn estimate(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Estimate, DenoiserError> {
        let mut estimate = self.model.estimate(x, level)?;
        self.keep(&mut estimate.x0)?;
        Ok(estimate)
    }
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn masks_shrink_and_cover() {
        let mask = Array2::from_shape_fn((5, 6), |(i, j)| if j >= 2 { 0.5 + 0.1 * i as f32 } else { 0.4 });
        assert_eq!(mask_of_latents(mask.view(), 2), array![[0., 1., 1.], [0., 1., 1.]]);
        let picture = Array3::from_elem((2, 5, 6), 0.7);
        let hidden = covered(picture.view(), mask.view()).unwrap();
        for ((_, _, j), x) in hidden.indexed_iter() {
            assert_eq!(*x, if j >= 2 { 0.0 } else { 0.7 });
        }
        assert!(covered(picture.view(), Array2::zeros((6, 5)).view()).is_err());
    }

    /// Gives back what it is given.
    struct Mirror;

    impl Network for Mirror {
        fn predict(&self, x: ArrayView4<'_, f32>, _: &[f64], _: &Condition) -> Result<Array4<f32>, DenoiserError> {
            Ok(x.to_owned())
        }

        fn classes(&self) -> usize {
            7
        }

        fn has_null_condition(&self) -> bool {
            true
        }
    }

    #[test]
    fn the_network_sees_mask_and_picture() {
        let mask = array![[0., 1.], [1., 0.]];
        let latents = Array3::from_shape_fn((4, 2, 2), |(c, i, j)| (c * 4 + i * 2 + j) as f32);
        let network = Inpainting::new(Mirror, mask.view(), latents.view()).unwrap();
        let x = Array4::from_shape_fn((3, 4, 2, 2), |(n, c, i, j)| -((n * 16 + c * 4 + i * 2 + j) as f32));
        let seen = network.predict(x.view(), &[1.0; 3], &Condition::none(3)).unwrap();
        assert_eq!(seen.dim(), (3, 9, 2, 2));
        for ((n, c, i, j), found) in seen.indexed_iter() {
            let expected = match c {
                0..4 => x[(n, c, i, j)],
                4 => mask[(i, j)],
                _ => latents[(c - 5, i, j)],
            };
            assert_eq!(*found, expected);
        }
        assert_eq!((network.classes(), network.has_null_condition()), (7, true));
        assert!(network.predict(Array4::zeros((1, 4, 2, 3)).view(), &[1.0], &Condition::none(1)).is_err());
        assert!(Inpainting::new(Mirror, array![[0.]].view(), latents.view()).is_err());
    }

    /// Halves what it is given.
    struct Half;

    impl Denoiser for Half {
        fn denoise(&self, x: ArrayView4<'_, f64>, _: NoiseLevel) -> Result<Array4<f64>, DenoiserError> {
            Ok(x.mapv(|x| 0.5 * x))
        }
    }

    #[test]
    fn what_is_kept_is_kept() {
        let mask = array![[0.0, 1.0, 0.25]];
        let z = Array4::from_shape_fn((1, 2, 1, 3), |(_, c, _, j)| (10 * c + j) as f32);
        let model = Kept::new(Half, mask.view(), z.view()).unwrap();
        let x = Array4::from_shape_fn((2, 2, 1, 3), |(n, c, _, j)| (n + c * j) as f64);
        let found = model.denoise(x.view(), NoiseLevel::CLEAN).unwrap();
        for ((n, c, i, j), found) in found.indexed_iter() {
            let (drawn, kept) = (0.5 * x[(n, c, i, j)], (10 * c + j) as f64);
            assert_eq!(*found, [kept, drawn, 0.25 * drawn + 0.75 * kept][j]);
        }
        assert!(model.denoise(Array4::zeros((1, 2, 1, 4)).view(), NoiseLevel::CLEAN).is_err());
        assert!(Kept::new(Half, array![[0.0]].view(), z.view()).is_err());
    }
}
