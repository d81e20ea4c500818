//! Pictures that are read, and those that are written.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use image::imageops::{self, FilterType};
use image::{ImageReader, RgbImage};
use ndarray::{Array2, Array3, Array4, ArrayView4};
use ndarray_npy::WriteNpyExt;
use serde_json::Value;
use tweedie_checkpoint::atomic_write;

use crate::picture::{self, Canvas};

/// Reads a PNG or JPEG.
///
/// # Errors
/// If it cannot be read or decoded.
pub fn read(path: &Path) -> Result<RgbImage> {
    let reader = ImageReader::open(path).with_context(|| format!("cannot open {}; check the path", path.display()))?;
    let reader = reader.with_guessed_format().with_context(|| format!("cannot read {}", path.display()))?;
    let image = reader
        .decode()
        .with_context(|| format!("cannot decode {}; give a picture that is a PNG or a JPEG", path.display()))?;
    Ok(image.to_rgb8())
}

/// The picture as `[1, 3, H, W]` with brightness in [0, 1], resized to `[height, width]`.
pub fn resized(image: &RgbImage, size: [usize; 2]) -> Array4<f32> {
    let image = at_size(image, size);
    let [h, w] = size;
    Array4::from_shape_fn((1, 3, h, w), |(_, c, i, j)| f32::from(image.get_pixel(j as u32, i as u32).0[c]) / 255.0)
}

/// The brightness of a picture as a mask `[H, W]` of zeros and ones, resized to `[height, width]`.
pub fn mask(image: &RgbImage, size: [usize; 2]) -> Array2<f32> {
    let image = at_size(image, size);
    let [h, w] = size;
    Array2::from_shape_fn((h, w), |(i, j)| {
        let [r, g, b] = image.get_pixel(j as u32, i as u32).0.map(f32::from);
        // ITU-R BT.601, as in Pillow.
        f32::from(0.299 * r + 0.587 * g + 0.114 * b >= 127.5)
    })
}

/// The bytes `[H, W, 3]`.
pub fn bytes(image: &RgbImage) -> Array3<u8> {
    let (w, h) = image.dimensions();
    Array3::from_shape_fn((h as usize, w as usize, 3), |(i, j, c)| image.get_pixel(j as u32, i as u32).0[c])
}

fn at_size(image: &RgbImage, [h, w]: [usize; 2]) -> RgbImage {
    let (width, height) = (w as u32, h as u32);
    if image.dimensions() == (width, height) {
        return image.clone();
    }
    imageops::resize(image, width, height, FilterType::Lanczos3)
}

/// Pictures `[N, 3, H, W]` in [0, 1] side by side, in rows of about as many as there are rows.
pub fn canvas(pictures: ArrayView4<'_, f32>) -> Canvas {
    let (n, _, h, w) = pictures.dim();
    let columns = (1..=n).find(|columns| columns * columns >= n).unwrap_or(1);
    let rows = n.div_ceil(columns);
    let (width, height) = (columns * w, rows * h);
    let mut rgb = vec![0; 3 * width * height];
    for ((k, c, i, j), x) in pictures.indexed_iter() {
        let (row, column) = (k / columns * h + i, k % columns * w + j);
        rgb[3 * (row * width + column) + c] = (x * 255.0).round_ties_even().clamp(0.0, 255.0) as u8;
    }
    Canvas { width, height, rgb }
}

/// Writes pictures `[N, 3, H, W]` in [0, 1], as a PNG with the parameters or as numbers `[N, H, W, 3]`; returns the picture if it
/// is one.
///
/// # Errors
/// If the file cannot be written.
pub fn write(path: &Path, pictures: ArrayView4<'_, f32>, parameters: &Value) -> Result<Option<Canvas>> {
    let suffix = path.extension().map(|s| s.to_string_lossy().to_ascii_lowercase());
    match suffix.as_deref() {
        Some("png") => {
            let canvas = canvas(pictures);
            let software = concat!("tweedie ", env!("CARGO_PKG_VERSION"));
            let text = parameters.to_string();
            let bytes = picture::encode(&canvas, &[("Software", software), ("parameters", &text)])?;
            atomic_write(path, &bytes)?;
            Ok(Some(canvas))
        }
        Some("npy") => {
            let numbers = pictures.permuted_axes([0, 2, 3, 1]).as_standard_layout().into_owned();
            let mut bytes = Vec::new();
            numbers.write_npy(&mut bytes).context("cannot encode the pictures as .npy")?;
            atomic_write(path, &bytes)?;
            Ok(None)
        }
        _ => bail!("{}: the name should end in .png or .npy", path.display()),
    }
}

/// Where previews of a picture go.
pub fn preview_path(out: &Path) -> PathBuf {
    out.with_extension("preview.png")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_lie_side_by_side() {
        let pictures = Array4::from_shape_fn((3, 3, 1, 2), |(n, c, _, j)| (n * 100 + c * 10 + j) as f32 / 255.0);
        let canvas = canvas(pictures.view());
        assert_eq!((canvas.width, canvas.height), (4, 2));
        let pixel = |i: usize, j: usize| canvas.rgb[3 * (4 * i + j)..][..3].to_vec();
        assert_eq!(
            (pixel(0, 1), pixel(0, 2), pixel(1, 1), pixel(1, 3)),
            (vec![1, 11, 21], vec![100, 110, 120], vec![201, 211, 221], vec![0, 0, 0])
        );
    }

    #[test]
    fn masks_are_black_or_white() {
        let image = RgbImage::from_fn(4, 2, |x, _| image::Rgb([[0, 100, 140, 255][x as usize]; 3]));
        assert_eq!(mask(&image, [2, 4]).row(0).to_vec(), [0.0, 0.0, 1.0, 1.0]);
        let x = resized(&image, [2, 4]);
        assert_eq!((x[(0, 0, 0, 0)], x[(0, 2, 1, 3)]), (0.0, 1.0));
        assert_eq!(bytes(&image).dim(), (2, 4, 3));
    }
}
