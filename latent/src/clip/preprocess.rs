//! From a picture of bytes to what CLIP's image encoder reads.
//!
//! ```text
//! resized so that the shorter side fits, the middle cut out, (x / 255 - mean_c) / std_c
//! ```
//!
//! Resizing has the numbers of Pillow, which CLIP was trained with: separable filters that widen when an image shrinks, weights in
//! fixed point, rounding to bytes after each direction, along the rows first. (Pillow 13 begins with the columns where this is
//! less work, because height and width shrink by different factors; then some bytes differ by one.)

use ndarray::{Array3, ArrayView3};
use serde_json::{Map, Value};

use crate::LatentError;
use crate::json::{Reader, integer};

const CLASS: &str = "CLIPImageProcessor";

/// The filter by which an image is resized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resampling {
    /// A triangle.
    Bilinear,
    /// Keys's cubic (1981) with the parameter -1/2.
    Bicubic,
}

/// The size that an image is resized to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The shorter side; the other one follows.
    ShorterSide(usize),
    /// Height and width.
    Exactly([usize; 2]),
}

/// How pictures are prepared, from a `preprocessor_config.json`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Preprocessor {
    /// Resizing, if any.
    pub resize: Option<(Target, Resampling)>,
    /// Height and width that are cut out of the middle, if any. What is beyond the edge is black.
    pub crop: Option<[usize; 2]>,
    /// The factor of the bytes, 1/255.
    pub scale: f32,
    /// What is subtracted from each of the three channels.
    pub mean: [f32; 3],
    /// What each of the three channels is divided by.
    pub std: [f32; 3],
}

impl Default for Preprocessor {
    /// That of the published models: 224 pixels, bicubic.
    fn default() -> Self {
        Self {
            resize: Some((Target::ShorterSide(224), Resampling::Bicubic)),
            crop: Some([224, 224]),
            scale: 1.0 / 255.0,
            mean: [0.481_454_66, 0.457_827_5, 0.408_210_73],
            std: [0.268_629_54, 0.261_302_6, 0.275_777_1],
        }
    }
}

impl Preprocessor {
    /// Reads the contents of a `preprocessor_config.json`; missing keys take the defaults of transformers.
    ///
    /// # Errors
    /// For every value that is not supported, by the name of its key.
    pub fn from_json(map: &Map<String, Value>) -> Result<Self, LatentError> {
        let (r, default) = (Reader::new(CLASS, map), Self::default());
        let resampling = match r.get("resample") {
            None | Some(Value::Null) => Resampling::Bicubic,
            Some(value) => match value.as_u64() {
                Some(2) => Resampling::Bilinear,
                Some(3) => Resampling::Bicubic,
                _ => return Err(r.refuse("resample", "2 (bilinear) or 3 (bicubic)")),
            },
        };
        let target = size(&r, "size", Target::ShorterSide(224), Target::ShorterSide)?;
        let crop = match size(&r, "crop_size", Target::Exactly([224, 224]), |side| Target::Exactly([side, side]))? {
            Target::Exactly(sides) => sides,
            Target::ShorterSide(_) => return Err(r.refuse("crop_size", "a whole number, or `height` and `width`")),
        };
        let normalised = r.flag("do_normalize", true)?;
        let scale = r.number("rescale_factor", 1.0 / 255.0, |x| x > 0.0, "a number above 0")? as f32;
        Ok(Self {
            resize: r.flag("do_resize", true)?.then_some((target, resampling)),
            crop: r.flag("do_center_crop", true)?.then_some(crop),
            scale: if r.flag("do_rescale", true)? { scale } else { 1.0 },
            mean: if normalised { channels(&r, "image_mean", default.mean, |_| true)? } else { [0.0; 3] },
            std: if normalised { channels(&r, "image_std", default.std, |x| x > 0.0)? } else { [1.0; 3] },
        })
    }

    /// The picture `[height, width, 3]` as `[3, height, width]`.
    ///
    /// # Errors
    /// If the picture has no pixel, or other than three channels.
    ///
    /// Verified by `pictures_are_prepared_as_by_pillow`.
    pub fn prepare(&self, picture: ArrayView3<'_, u8>) -> Result<Array3<f32>, LatentError> {
        let (h, w, c) = picture.dim();
        if h == 0 || w == 0 || c != 3 {
            return Err(LatentError::Parameter {
                operation: "preparing a picture",
                what: "its shape".into(),
                expected: "[height, width, 3] with a pixel or more".into(),
                found: format!("[{h}, {w}, {c}]"),
                remedy: "convert it to red, green and blue",
            });
        }
        let resized = self.resize.map(|(target, resampling)| {
            let [height, width] = target.of(h, w);
            let across = resize_axis(picture, 1, width, resampling);
            resize_axis(across.view(), 0, height, resampling)
        });
        let picture = resized.as_ref().map_or(picture, |resized| resized.view());
        let (h, w, _) = picture.dim();
        let [height, width] = self.crop.unwrap_or([h, w]);
        // Rounded down, which is what upstream does with an odd rest, also where the picture is too small.
        let source = |i: usize, side: usize, crop: usize| {
            let first = (side as i64 - crop as i64).div_euclid(2);
            usize::try_from(i as i64 + first).ok().filter(|i| *i < side)
        };
        Ok(Array3::from_shape_fn((3, height, width), |(c, i, j)| {
            let byte = source(i, h, height).zip(source(j, w, width)).map_or(0, |(i, j)| picture[(i, j, c)]);
            (f32::from(byte) * self.scale - self.mean[c]) / self.std[c]
        }))
    }
}

impl Target {
    /// Height and width for a picture of `h` x `w`.
    fn of(self, h: usize, w: usize) -> [usize; 2] {
        match self {
            Self::Exactly(sides) => sides,
            Self::ShorterSide(side) => {
                // Rounded down from f64, as upstream.
                let longer = |long: usize, short: usize| (((side * long) as f64 / short as f64) as usize).max(1);
                if w <= h { [longer(h, w), side] } else { [side, longer(w, h)] }
            }
        }
    }
}

/// A size as transformers writes it: a number, whose meaning `plain` says, or an object.
fn size(r: &Reader<'_>, key: &str, default: Target, plain: impl Fn(usize) -> Target) -> Result<Target, LatentError> {
    let Some(value) = r.get(key).filter(|value| !value.is_null()) else { return Ok(default) };
    let side = |name: &str| value.get(name).and_then(integer);
    let found = match value {
        Value::Object(sides) if sides.len() == 2 => {
            side("height").zip(side("width")).map(|(h, w)| Target::Exactly([h, w]))
        }
        Value::Object(sides) if sides.len() == 1 => side("shortest_edge").map(Target::ShorterSide),
        value => integer(value).map(plain),
    };
    found.ok_or_else(|| r.refuse(key, "a whole number, `height` and `width`, or `shortest_edge`"))
}

/// Three numbers.
fn channels(r: &Reader<'_>, key: &str, default: [f32; 3], test: fn(f64) -> bool) -> Result<[f32; 3], LatentError> {
    let Some(value) = r.get(key).filter(|value| !value.is_null()) else { return Ok(default) };
    let number = |v: &Value| v.as_f64().filter(|x| x.is_finite() && test(*x)).map(|x| x as f32);
    let found: Option<Vec<f32>> = value.as_array().and_then(|values| values.iter().map(number).collect());
    found.and_then(|values| values.try_into().ok()).ok_or_else(|| r.refuse(key, "three numbers, one for each channel"))
}

impl Resampling {
    /// How far the filter reaches.
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let x = x.abs();
        match self {
            Self::Bilinear => (1.0 - x).max(0.0),
            Self::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            Self::Bicubic => 0.0,
        }
    }
}

/// Bits after the point of the fixed-point weights.
const BITS: u32 = 22;

/// The first input pixel and the weights of each output pixel of an axis.
fn weights(from: usize, to: usize, resampling: Resampling) -> Vec<(usize, Vec<i32>)> {
    let scale = from as f64 / to as f64;
    // A filter is never narrower than at the size of the input, and as wide as an output pixel when the image shrinks.
    let stretch = scale.max(1.0);
    let support = resampling.support() * stretch;
    let pixel = |i: usize| {
        let centre = (i as f64 + 0.5) * scale;
        // A cast cuts off what is below zero.
        let first = (centre - support + 0.5) as usize;
        let end = ((centre + support + 0.5) as usize).min(from);
        let exact: Vec<f64> =
            (first..end).map(|x| resampling.weight((x as f64 - centre + 0.5) * (1.0 / stretch))).collect();
        let sum: f64 = exact.iter().sum();
        let fixed = exact.iter().map(|w| {
            let w = if sum == 0.0 { *w } else { w / sum } * f64::from(1 << BITS);
            // Away from zero at one half, as the cast of C with an offset.
            (w + 0.5f64.copysign(w)) as i32
        });
        (first, fixed.collect())
    };
    (0..to).map(pixel).collect()
}

/// The picture with `to` pixels along an axis (0: rows, 1: columns).
fn resize_axis(picture: ArrayView3<'_, u8>, axis: usize, to: usize, resampling: Resampling) -> Array3<u8> {
    let (h, w, c) = picture.dim();
    let from = [h, w][axis];
    if from == to {
        return picture.to_owned();
    }
    let weights = weights(from, to, resampling);
    let shape = if axis == 0 { (to, w, c) } else { (h, to, c) };
    Array3::from_shape_fn(shape, |(i, j, channel)| {
        let (first, weights) = &weights[[i, j][axis]];
        let sum = weights.iter().enumerate().fold(1i64 << (BITS - 1), |sum, (k, weight)| {
            let pixel = if axis == 0 { picture[(first + k, j, channel)] } else { picture[(i, first + k, channel)] };
            sum + i64::from(*weight) * i64::from(pixel)
        });
        (sum >> BITS).clamp(0, 255) as u8
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Preprocessor, LatentError> {
        Preprocessor::from_json(&serde_json::from_str(text).unwrap())
    }

    #[test]
    fn files_old_and_new_say_the_same() {
        assert_eq!(read("{}").unwrap(), Preprocessor::default());
        // As CLIPFeatureExtractor wrote it, and as CLIPImageProcessor does.
        let old = read(r#"{"crop_size": 224, "size": 224, "do_center_crop": true, "do_resize": true, "resample": 3}"#);
        assert_eq!(old.unwrap(), Preprocessor::default());
        let new = r#"{"crop_size": {"height": 224, "width": 224}, "size": {"shortest_edge": 224}, "do_convert_rgb": true,
            "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
            "rescale_factor": 0.00392156862745098}"#;
        assert_eq!(read(new).unwrap(), Preprocessor::default());
        let other =
            read(r#"{"size": {"height": 5, "width": 7}, "do_center_crop": false, "do_normalize": false}"#).unwrap();
        assert_eq!(other.resize, Some((Target::Exactly([5, 7]), Resampling::Bicubic)));
        assert_eq!((other.crop, other.mean, other.std), (None, [0.0; 3], [1.0; 3]));
    }

    #[test]
    fn bad_values_are_named() {
        for (text, key) in [
            (r#"{"resample": 0}"#, "resample"),
            (r#"{"size": {"longest_edge": 3}}"#, "size"),
            (r#"{"size": 0}"#, "size"),
            (r#"{"crop_size": {"shortest_edge": 3}}"#, "crop_size"),
            (r#"{"image_std": [1, 0, 1]}"#, "image_std"),
            (r#"{"image_mean": [1, 0]}"#, "image_mean"),
            (r#"{"do_resize": 1}"#, "do_resize"),
        ] {
            assert!(read(text).unwrap_err().to_string().contains(&format!("`{key}`")), "{text}");
        }
    }

    #[test]
    fn constant_pictures_stay_constant() {
        let picture = Array3::from_elem((7, 5, 3), 201);
        for resampling in [Resampling::Bilinear, Resampling::Bicubic] {
            for to in [1, 3, 5, 12] {
                let resized = resize_axis(picture.view(), 1, to, resampling);
                assert_eq!(resized, Array3::from_elem((7, to, 3), 201), "{resampling:?} {to}");
            }
        }
    }

    #[test]
    fn small_pictures_get_a_black_edge() {
        let preprocessor =
            Preprocessor { resize: None, crop: Some([4, 2]), mean: [0.0; 3], std: [1.0; 3], ..Default::default() };
        let picture = Array3::from_elem((1, 3, 3), 255);
        let found = preprocessor.prepare(picture.view()).unwrap();
        // Of three missing rows two are above.
        assert_eq!(
            found.index_axis(ndarray::Axis(0), 1).to_owned(),
            ndarray::array![[0., 0.], [0., 0.], [1., 1.], [0., 0.]]
        );
        assert!(preprocessor.prepare(Array3::zeros((0, 3, 3)).view()).is_err());
        assert!(preprocessor.prepare(Array3::zeros((2, 3, 1)).view()).is_err());
    }
}
