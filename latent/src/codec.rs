use ndarray::{Array4, ArrayView4};
use tweedie_unet::AutoencoderKl;

use crate::code::{from_brightness, to_brightness};
use crate::{LatentError, LatentScale, Posterior, Tiles};

/// An autoencoder with the scale of its latents: pictures in [0, 1] on one side, what a diffusion network sees on the other.
///
/// ```text
/// encode: 2 p - 1, the encoder, the moments;   decode: z / s + shift, the decoder, x / 2 + 1/2 within [0, 1]
/// ```
#[derive(Debug)]
pub struct Codec {
    network: AutoencoderKl,
    scale: LatentScale,
    /// The tiles when encoding and when decoding.
    tiles: Option<[Tiles; 2]>,
}

impl Codec {
    /// The autoencoder with the scale of its configuration. Pictures are coded in one piece.
    pub fn new(network: AutoencoderKl) -> Self {
        let scale = LatentScale { factor: network.config().scaling_factor, shift: network.config().shift_factor };
        Self { network, scale, tiles: None }
    }

    /// The same, with pictures coded in tiles of `side` latents (see [`Tiles`]), which takes the memory of one tile. `None` is
    /// the size that the autoencoder was trained at, 64 latents for Stable Diffusion.
    ///
    /// # Errors
    /// If the side is no multiple of four, or not given and not known.
    pub fn in_tiles(self, side: Option<usize>) -> Result<Self, LatentError> {
        let factor = self.factor();
        let trained = self.network.config().sample_size.map(|[h, w]| h.min(w) / factor);
        let Some(side) = side.or(trained) else {
            return Err(LatentError::Parameter {
                operation: "coding in tiles",
                what: "the side of a tile".into(),
                expected: "a multiple of 4 latents".into(),
                found: "none, and the configuration has no `sample_size`".into(),
                remedy: "give the side",
            });
        };
        let tiles = [Tiles::new(side * factor, side)?, Tiles::new(side, side * factor)?];
        Ok(Self { tiles: Some(tiles), ..self })
    }

    /// The autoencoder.
    pub fn network(&self) -> &AutoencoderKl {
        &self.network
    }

    /// The scale of the latents.
    pub fn scale(&self) -> LatentScale {
        self.scale
    }

    /// Pixels along a side of a latent, 8 for Stable Diffusion.
    pub fn factor(&self) -> usize {
        self.network.config().spatial_factor()
    }

    /// Channels, height and width of the latents of a picture of `height` x `width` pixels.
    ///
    /// # Errors
    /// If a side is no multiple of [`Codec::factor`], or zero.
    pub fn latent_shape(&self, height: usize, width: usize) -> Result<[usize; 3], LatentError> {
        let factor = self.factor();
        let fits = |side: usize| side > 0 && side.is_multiple_of(factor);
        if fits(height) && fits(width) {
            return Ok([self.network.config().latent_channels, height / factor, width / factor]);
        }
        Err(LatentError::Parameter {
            operation: "choosing the size of a picture",
            what: "height and width".into(),
            expected: format!("multiples of {factor} pixels, which become one latent each"),
            found: format!("{height} and {width}"),
            remedy: "choose the next multiple",
        })
    }

    /// The distribution of the latents of pictures `[N, C, H, W]` with brightness in [0, 1]; not scaled yet.
    ///
    /// # Errors
    /// If the pictures do not have the channels of the autoencoder, or sides that are multiples of [`Codec::factor`].
    ///
    /// Verified by `pictures_and_latents_are_scaled`.
    pub fn posterior(&self, pictures: Array4<f32>) -> Result<Posterior, LatentError> {
        let (_, _, h, w) = pictures.dim();
        self.latent_shape(h, w)?;
        let pictures = from_brightness(pictures);
        let encode = |x: ArrayView4<'_, f32>| self.network.encode(x).map_err(LatentError::from);
        let moments = match &self.tiles {
            Some([tiles, _]) => tiles.run(pictures.view(), encode)?,
            None => encode(pictures.view())?,
        };
        Posterior::of_moments(moments.view())
    }

    /// Scaled latents `[N, L, h, w]` of pictures `[N, C, H, W]` with brightness in [0, 1]: drawn with standard normal `noise`, or
    /// the means of their distribution.
    ///
    /// # Errors
    /// As [`Codec::posterior`]; also if the noise has not the shape of the latents.
    ///
    /// FORMULAS 7.4. Verified by `pictures_and_latents_are_scaled`.
    pub fn encode(
        &self,
        pictures: Array4<f32>,
        noise: Option<ArrayView4<'_, f32>>,
    ) -> Result<Array4<f32>, LatentError> {
        let posterior = self.posterior(pictures)?;
        let latents = match noise {
            Some(noise) => posterior.sample(noise)?,
            None => posterior.mean,
        };
        Ok(self.scale.to_network(latents))
    }

    /// Pictures `[N, C, H, W]` with brightness in [0, 1] of scaled latents `[N, L, h, w]`.
    ///
    /// # Errors
    /// If the latents do not have the channels of the autoencoder.
    ///
    /// FORMULAS 7.4. Verified by `pictures_and_latents_are_scaled`.
    pub fn decode(&self, latents: Array4<f32>) -> Result<Array4<f32>, LatentError> {
        let latents = self.scale.to_decoder(latents);
        let decode = |z: ArrayView4<'_, f32>| self.network.decode(z).map_err(LatentError::from);
        let pictures = match &self.tiles {
            Some([_, tiles]) => tiles.run(latents.view(), decode)?,
            None => decode(latents.view())?,
        };
        Ok(to_brightness(pictures))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ndarray::Axis;
    use serde_json::json;
    use tweedie_kernels::weight::Stored;
    use tweedie_unet::{UnetError, WeightSource};

    use super::*;

    /// Numbers that follow from the name.
    struct Formula;

    impl WeightSource for Formula {
        fn weight(&self, name: &str, shape: &[usize]) -> Result<Arc<dyn Stored>, UnetError> {
            Ok(Arc::new(self.vector(name, shape)?))
        }

        fn vector(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, UnetError> {
            let start = name.bytes().map(usize::from).sum::<usize>() as f32;
            let inputs = shape[1..].iter().product::<usize>() as f32;
            let value = |i: usize| (start + 1.7 * i as f32).sin() / inputs.sqrt();
            Ok((0..shape.iter().product()).map(value).collect())
        }
    }

    fn codec() -> Codec {
        let config = json!({
            "_class_name": "AutoencoderKL", "block_out_channels": [4, 8], "norm_num_groups": 2, "sample_size": 16,
            "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
            "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"], "scaling_factor": 0.4, "shift_factor": 0.1,
        });
        Codec::new(AutoencoderKl::from_config(config.as_object().unwrap(), &Formula).unwrap())
    }

    fn pictures(h: usize, w: usize) -> Array4<f32> {
        Array4::from_shape_fn((2, 3, h, w), |(n, c, i, j)| {
            (0.5 + 0.5 * ((n + 2 * c + 3 * i + 5 * j) as f32).sin()).abs()
        })
    }

    #[test]
    fn pictures_and_latents_are_scaled() {
        let codec = codec();
        assert_eq!(codec.latent_shape(16, 12).unwrap(), [4, 8, 6]);
        let pictures = pictures(16, 12);
        let moments = codec.network().encode(pictures.mapv(|p| 2.0 * p - 1.0).view()).unwrap();
        let noise = Array4::from_elem((2, 4, 8, 6), 0.5);
        let [mean, drawn] = [None, Some(noise.view())].map(|noise| codec.encode(pictures.clone(), noise).unwrap());
        for ((n, c, i, j), z) in mean.indexed_iter() {
            let m = moments[(n, c, i, j)];
            let deviation = (0.5 * moments[(n, c + 4, i, j)]).exp();
            assert!((z - 0.4 * (m - 0.1)).abs() < 1e-5);
            assert!((drawn[(n, c, i, j)] - 0.4 * (m + 0.5 * deviation - 0.1)).abs() < 1e-5);
        }
        let decoded = codec.network().decode(mean.mapv(|z| z / 0.4 + 0.1).view()).unwrap();
        let found = codec.decode(mean).unwrap();
        assert_eq!(found.dim(), (2, 3, 16, 12));
        assert!(found.iter().zip(&decoded).all(|(a, b)| (a - (0.5 * b + 0.5).clamp(0.0, 1.0)).abs() < 1e-5));
        let message = codec.encode(Array4::zeros((1, 3, 16, 11)), None).unwrap_err().to_string();
        assert!(message.contains("multiples of 2 pixels") && message.contains("16 and 11"), "{message}");
        assert!(codec.latent_shape(0, 8).is_err());
    }

    #[test]
    fn large_pictures_are_coded_in_tiles() {
        let (whole, tiled) = (codec(), codec().in_tiles(None).unwrap());
        // A picture of the size of a tile is coded in one piece.
        let small = pictures(16, 16);
        let latents = whole.encode(small.clone(), None).unwrap();
        assert_eq!(tiled.encode(small, None).unwrap(), latents);
        assert_eq!(tiled.decode(latents.clone()).unwrap(), whole.decode(latents).unwrap());
        let large = pictures(16, 40);
        let latents = tiled.encode(large.clone(), None).unwrap();
        assert_eq!(latents.dim(), (2, 4, 8, 20));
        assert_ne!(latents, whole.encode(large, None).unwrap());
        // What no other tile overlaps is that of the first tile alone.
        let first = whole.encode(pictures(16, 16), None).unwrap();
        let corner = |z: &Array4<f32>| z.slice_axis(Axis(2), (..6).into()).slice_axis(Axis(3), (..6).into()).to_owned();
        assert_eq!(corner(&latents), corner(&first));
        assert_eq!(tiled.decode(latents).unwrap().dim(), (2, 3, 16, 40));
        assert!(codec().in_tiles(Some(6)).is_err());
    }
}
