//! From images to features and logits: samples become the pixels that a classifier was trained on.

use std::cell::OnceCell;

use anyhow::{Context, Result, ensure};
use ndarray::{Array2, Array4, ArrayView4, Axis, Slice};
use tweedie_data::{Dataset, Range};
use tweedie_denoiser::Classifier;
use tweedie_eval::{EvalError, Manifold};

use crate::args::Common;
use crate::console;

/// Images that are classified at once.
const BATCH: usize = 64;

/// What metrics are computed of.
pub struct Extracted {
    /// `[N, D]`.
    pub features: Array2<f64>,
    /// `[N, K]`; `None` where the features are from a file.
    pub logits: Option<Array2<f64>>,
    /// The label of each image; `None` if there are none at all.
    pub labels: Option<Vec<Option<usize>>>,
    /// The neighbours among the features, which a reference keeps for the next samples.
    manifold: OnceCell<Manifold>,
}

impl Extracted {
    /// Features, and what is known of their images beside them.
    pub fn new(features: Array2<f64>, logits: Option<Array2<f64>>, labels: Option<Vec<Option<usize>>>) -> Self {
        Self { features, logits, labels, manifold: OnceCell::new() }
    }

    /// `f` of the balls that reach to the neighbours `ks`: those of the first call are kept for the next ones with the same.
    ///
    /// # Errors
    /// If there are fewer images than neighbours, or a feature is not finite; also those of `f`.
    pub fn with_manifold<R>(
        &self,
        ks: &[usize],
        f: impl FnOnce(&Manifold) -> Result<R, EvalError>,
    ) -> Result<R, EvalError> {
        if let Some(kept) = self.manifold.get().filter(|kept| kept.ks() == ks) {
            return f(kept);
        }
        let found = Manifold::of(self.features.view(), ks)?;
        let result = f(&found);
        // Where another is kept already, this one is not.
        let _ = self.manifold.set(found);
        result
    }
}

/// A classifier as the metrics see it.
pub struct Extractor<'a> {
    /// The network.
    pub network: &'a dyn Classifier,
    /// The range of the pixels that it was trained on.
    pub range: Range,
}

impl Extractor<'_> {
    /// Of samples `[N, C, H, W]` that lie between the ends of `range`. What is beyond is clamped; unless told otherwise the
    /// rest is rounded to the nearest byte, as an image file has it.
    ///
    /// # Errors
    /// If the network does not take the shape.
    pub fn samples(
        &self,
        images: &Array4<f32>,
        labels: Option<Vec<Option<usize>>>,
        range: Range,
        quantise: bool,
        common: &Common,
    ) -> Result<Extracted> {
        let pixel = |value: f32| pixel(value, range, self.range, quantise);
        let count = images.len_of(Axis(0));
        let part = |first: usize, last: usize| Ok(images.slice_axis(Axis(0), Slice::from(first..last)).mapv(pixel));
        self.extract(count, labels, "features of the samples", part, common)
    }

    /// Of images of a data set.
    ///
    /// # Errors
    /// If an image cannot be read, or the network does not take the shape.
    pub fn data(&self, data: &Dataset, indices: &[usize], what: &str, common: &Common) -> Result<Extracted> {
        let labels = data.labels().map(|all| indices.iter().map(|i| Some(all[*i] as usize)).collect());
        let part = |first: usize, last: usize| Ok(data.batch(&indices[first..last], self.range)?.images);
        self.extract(indices.len(), labels, what, part, common)
    }

    fn extract(
        &self,
        count: usize,
        labels: Option<Vec<Option<usize>>>,
        what: &str,
        part: impl Fn(usize, usize) -> Result<Array4<f32>>,
        common: &Common,
    ) -> Result<Extracted> {
        let bar = console::progress(common, count as u64, "images");
        bar.set_message(what.to_owned());
        let (mut features, mut logits): (Vec<f64>, Vec<f64>) = (Vec::new(), Vec::new());
        for first in (0..count).step_by(BATCH) {
            let last = count.min(first + BATCH);
            let (of_features, of_logits) = self.classify(part(first, last)?.view())?;
            features.extend(of_features);
            logits.extend(of_logits);
            bar.inc((last - first) as u64);
        }
        bar.finish_and_clear();
        let matrix = |values: Vec<f64>| Array2::from_shape_vec((count, values.len() / count.max(1)), values);
        Ok(Extracted::new(matrix(features)?, Some(matrix(logits)?), labels))
    }

    fn classify(&self, images: ArrayView4<'_, f32>) -> Result<(Vec<f64>, Vec<f64>)> {
        let n = images.len_of(Axis(0));
        // The number of the cleanest step, for a classifier that sees one.
        let found = self.network.classify(images, &vec![0.0; n]).context("the classifier cannot take these images")?;
        ensure!(
            found.features.nrows() == n && found.logits.nrows() == n,
            "the classifier should answer for {n} images, and does for {}",
            found.features.nrows()
        );
        let wide = |matrix: &Array2<f32>| matrix.iter().map(|v| f64::from(*v)).collect();
        Ok((wide(&found.features), wide(&found.logits)))
    }
}

/// A value between the ends of `from` as one between those of `to`, clamped, and rounded to a byte on the way if wanted.
fn pixel(value: f32, from: Range, to: Range, quantise: bool) -> f32 {
    if quantise {
        return to.from_byte(from.to_byte(value));
    }
    let (low, high) = ends(from);
    let value = value.clamp(low, high);
    match (from, to) {
        (Range::MinusOneOne, Range::ZeroOne) => 0.5 * value + 0.5,
        (Range::ZeroOne, Range::MinusOneOne) => 2.0 * value - 1.0,
        _ => value,
    }
}

fn ends(range: Range) -> (f32, f32) {
    (range.from_byte(0), range.from_byte(255))
}

#[cfg(test)]
mod tests {
    use ndarray::{Array3, stack};
    use tweedie_denoiser::{Classified, Condition, DenoiserError};

    use super::*;

    /// Features are the pixels, logits their sums by column.
    struct Pixels;

    impl Classifier for Pixels {
        fn classes(&self) -> usize {
            2
        }

        fn classify(&self, x: ArrayView4<'_, f32>, timesteps: &[f64]) -> Result<Classified, DenoiserError> {
            assert_eq!(timesteps, vec![0.0; x.dim().0]);
            let features = Array2::from_shape_vec((x.dim().0, x.len() / x.dim().0), x.iter().copied().collect());
            Ok(Classified { logits: x.sum_axis(Axis(1)).sum_axis(Axis(1)), features: features.unwrap() })
        }

        fn label_gradient(
            &self,
            x: ArrayView4<'_, f32>,
            _: &[f64],
            _: &Condition,
        ) -> Result<Array4<f32>, DenoiserError> {
            Ok(Array4::zeros(x.dim()))
        }
    }

    fn common() -> Common {
        Common { threads: None, quiet: true }
    }

    #[test]
    fn samples_become_the_pixels_of_the_classifier() {
        let of = |value, from, to, quantise| pixel(value, from, to, quantise);
        let (signed, unit) = (Range::MinusOneOne, Range::ZeroOne);
        for quantise in [false, true] {
            assert_eq!((of(-1.5, signed, unit, quantise), of(7.0, signed, unit, quantise)), (0.0, 1.0));
            assert_eq!((of(-0.5, unit, signed, quantise), of(1.0, unit, signed, quantise)), (-1.0, 1.0));
        }
        assert_eq!((of(0.0, signed, unit, false), of(0.0, signed, unit, true)), (0.5, 128.0 / 255.0));
        assert_eq!((of(0.3, unit, unit, false), of(0.3, unit, unit, true)), (0.3, 77.0 / 255.0));
        assert_eq!(of(0.25, unit, signed, false), -0.5);
    }

    #[test]
    fn samples_and_data_meet_in_the_same_numbers() {
        let bytes: Vec<u8> = (0..150 * 4).map(|i| (i * 7 % 256) as u8).collect();
        let labels: Vec<u32> = (0..150).map(|i| i % 2).collect();
        let data = Dataset::new("test", [1, 2, 2], bytes, Some(labels)).unwrap();
        let extractor = Extractor { network: &Pixels, range: Range::ZeroOne };
        let indices: Vec<usize> = (0..150).rev().collect();
        let real = extractor.data(&data, &indices, "test", &common()).unwrap();
        assert_eq!((real.features.dim(), real.logits.as_ref().unwrap().dim()), ((150, 4), (150, 2)));
        assert_eq!(real.labels.as_ref().unwrap()[..3], [Some(1), Some(0), Some(1)]);
        // The same images in another range, a little off every byte.
        let images: Vec<Array3<f32>> = indices
            .iter()
            .map(|i| data.batch(&[*i], Range::MinusOneOne).unwrap().images.index_axis_move(Axis(0), 0) + 0.003)
            .collect();
        let views: Vec<_> = images.iter().map(|image| image.view()).collect();
        let images = stack(Axis(0), &views).unwrap();
        let of = |quantise| extractor.samples(&images, None, Range::MinusOneOne, quantise, &common()).unwrap();
        assert_eq!(of(true).features, real.features);
        assert!(of(false).features != real.features && of(true).labels.is_none());
    }
}
