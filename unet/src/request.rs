//! A batch that a network is asked to process: checks, division into chunks, and change of layout.

use ndarray::{Array4, ArrayView4, Axis, Slice};
use tweedie_denoiser::{Condition, DenoiserError, Text};
use tweedie_kernels::{channels, in_pool};

use crate::tensor::{Pool, Tensor};

/// Images of one chunk of a prediction at most.
const CHUNK: usize = 64;
/// Numbers in one activation at the finest level of a chunk at most (64 MiB), unless a single image has more.
const CHUNK_VALUES: usize = 1 << 24;

/// One batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request<'a> {
    pub operation: &'static str,
    pub x: ArrayView4<'a, f32>,
    pub times: &'a [f64],
    pub labels: &'a [Option<usize>],
    pub texts: &'a [Option<Text>],
}

impl<'a> Request<'a> {
    pub fn new(operation: &'static str, x: ArrayView4<'a, f32>, times: &'a [f64], condition: &'a Condition) -> Self {
        Self { operation, x, times, labels: condition.as_labels(), texts: condition.as_texts() }
    }

    fn shape(&self, what: &'static str, expected: String, found: String, remedy: &'static str) -> DenoiserError {
        DenoiserError::Shape { operation: self.operation, what, expected, found, remedy }
    }

    /// Whether the parts describe the same batch of images of `channels` channels, with sides that are multiples of
    /// `multiple`.
    pub fn check(&self, channels: usize, multiple: usize) -> Result<(), DenoiserError> {
        let (n, c, h, w) = self.x.dim();
        if c != channels {
            let remedy = "give images with the channels that the network was built for (`in_channels`)";
            return Err(self.shape("the channels of x", channels.to_string(), c.to_string(), remedy));
        }
        if h == 0 || w == 0 || h % multiple != 0 || w % multiple != 0 {
            let (expected, found) = (format!("multiples of {multiple}"), format!("{h}x{w}"));
            let remedy = "every level halves the image, and its way up doubles it again: pad or resize the images";
            return Err(self.shape("the height and width of x", expected, found, remedy));
        }
        for (what, len) in [("the timesteps", self.times.len()), ("the condition", self.labels.len())] {
            if len != n {
                let expected = format!("{n}, one per image");
                return Err(self.shape(what, expected, len.to_string(), "give one entry for every image of x"));
            }
        }
        match self.times.iter().find(|t| !t.is_finite()) {
            Some(t) => Err(self.shape("a timestep", "finite".into(), t.to_string(), "check the timestep mapping")),
            None => Ok(()),
        }
    }

    /// Whether the sides have at least so many pixels.
    pub fn check_least_side(&self, least: usize) -> Result<(), DenoiserError> {
        let (n, _, h, w) = self.x.dim();
        if n == 0 || (h >= least && w >= least) {
            return Ok(());
        }
        let remedy = "the coarsest level reflects its pixels at the edge, which takes two of them: give larger images";
        Err(self.shape("the height and width of x", format!("at least {least}"), format!("{h}x{w}"), remedy))
    }

    /// Whether all times, and with `labels` these too, are above zero, so that they have logarithms.
    pub fn check_positive(&self, what: &'static str, labels: bool) -> Result<(), DenoiserError> {
        let labels = self.labels.iter().flatten().map(|&label| label as f64).filter(|_| labels);
        match self.times.iter().copied().chain(labels).find(|&t| t <= 0.0) {
            None => Ok(()),
            Some(t) => {
                let remedy = "its Fourier embedding takes the logarithm: give numbers above zero";
                Err(self.shape(what, "above 0".into(), t.to_string(), remedy))
            }
        }
    }

    /// Whether every time is one of the steps of a learned embedding.
    pub fn check_steps(&self, steps: usize) -> Result<(), DenoiserError> {
        match self.times.iter().find(|&&t| t.fract() != 0.0 || !(0.0..steps as f64).contains(&t)) {
            None => Ok(()),
            Some(t) => {
                let expected = format!("a whole number from 0 to {}", steps - 1);
                let remedy =
                    "the network has learned a vector for each of its steps (`num_train_timesteps`) and no other";
                Err(self.shape("a timestep", expected, t.to_string(), remedy))
            }
        }
    }

    /// Whether every label is one of `classes`, none is missing where there is no null condition, and there is no text.
    pub fn check_labels(&self, classes: usize, null: bool) -> Result<(), DenoiserError> {
        let refuse = |message| Err(DenoiserError::Condition { operation: self.operation, message });
        if let Some(i) = self.texts.iter().position(Option::is_some) {
            return refuse(format!("sample {i} has a text, but the network reads none; remove the texts"));
        }
        for (i, label) in self.labels.iter().enumerate() {
            match *label {
                Some(label) if classes == 0 => {
                    return refuse(format!(
                        "sample {i} has label {label}, but the network is unconditional; remove the labels"
                    ));
                }
                Some(label) if label >= classes => {
                    return refuse(format!(
                        "sample {i} has label {label}, but the network knows labels 0 to {}; choose one of these, or \
                         no label",
                        classes - 1
                    ));
                }
                None if !null => {
                    return refuse(format!(
                        "sample {i} has no label, but the network has no null condition (its config has no key \
                         `_tweedie_null_class`); give a label from 0 to {}",
                        classes - 1
                    ));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether every sample has a text of tokens of `width` numbers, and no label.
    pub fn check_texts(&self, width: usize) -> Result<(), DenoiserError> {
        let refuse = |message| Err(DenoiserError::Condition { operation: self.operation, message });
        for (i, (text, label)) in self.texts.iter().zip(self.labels).enumerate() {
            if let Some(label) = label {
                return refuse(format!("sample {i} has label {label}, but the network reads texts; remove the labels"));
            }
            match text.as_ref().map(|text| text.dim()) {
                Some((1.., found)) if found == width => {}
                Some(found) => {
                    return refuse(format!(
                        "the text of sample {i} should have the shape [L, {width}] (`cross_attention_dim`) with at least one \
                         token, found {found:?}; use the text encoder that the network was trained with"
                    ));
                }
                None => {
                    return refuse(format!(
                        "sample {i} has no text; give the encoded text of every sample, for no text that of the empty one"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Whether a training pass has an image at all, and `grads` the length of the parameters.
    pub fn check_grads(&self, grads: &[f32], expected: usize) -> Result<(), DenoiserError> {
        if grads.len() != expected {
            let remedy = "make it as long as the values of the parameters";
            return Err(self.shape("the gradient vector", expected.to_string(), grads.len().to_string(), remedy));
        }
        if self.times.is_empty() {
            return Err(self.shape("the batch", "at least one image".into(), "none".into(), "give at least one image"));
        }
        Ok(())
    }

    /// Applies `forward` to chunks of the batch, of which no image depends on another.
    ///
    /// `width` is the number of channels at the finest level, which decides how much memory an image takes.
    pub fn in_chunks(
        &self,
        out_channels: usize,
        width: usize,
        forward: impl Fn(Request<'a>) -> Tensor + Sync,
    ) -> Array4<f32> {
        let (_, _, h, w) = self.x.dim();
        self.in_chunks_of([out_channels, h, w], width, forward)
    }

    /// [`Request::in_chunks`] where `forward` makes `[c, h, w]` of every image.
    pub fn in_chunks_of(
        &self,
        [out_channels, out_h, out_w]: [usize; 3],
        width: usize,
        forward: impl Fn(Request<'a>) -> Tensor + Sync,
    ) -> Array4<f32> {
        let (n, _, h, w) = self.x.dim();
        let chunk = (CHUNK_VALUES / (h * w * width)).clamp(1, CHUNK);
        let pixels = out_h * out_w;
        let mut out = vec![0.0; n * out_channels * pixels];
        for start in (0..n).step_by(chunk) {
            let range = start..(start + chunk).min(n);
            let part = Request {
                x: self.x.slice_axis_move(Axis(0), Slice::from(range.clone())),
                times: &self.times[range.clone()],
                labels: &self.labels[range.clone()],
                texts: &self.texts[range.clone()],
                ..*self
            };
            let y = in_pool(|| forward(part));
            let values = out_channels * pixels;
            let out = &mut out[range.start * values..range.end * values];
            channels::nhwc_to_nchw(range.len(), out_channels, pixels, &y.data, out);
        }
        Array4::from_shape_vec((n, out_channels, out_h, out_w), out).expect("the vector was made for this shape")
    }

    /// The gradient that `loss` returns for the output `y`.
    pub fn cotangent(
        &self,
        pool: &Pool,
        y: Tensor,
        loss: &mut dyn FnMut(ArrayView4<'_, f32>) -> Array4<f32>,
    ) -> Result<Tensor, DenoiserError> {
        let output = to_array(&y);
        let dy = loss(output.view());
        if dy.dim() != output.dim() {
            let (expected, found) = (format!("{:?}", output.dim()), format!("{:?}", dy.dim()));
            let remedy = "return one number for every number of the output";
            return Err(self.shape("the gradient of the loss", expected, found, remedy));
        }
        Ok(from_array(pool, dy.view()))
    }
}

/// NCHW to channels last.
pub(crate) fn from_array(pool: &Pool, x: ArrayView4<'_, f32>) -> Tensor {
    let (n, c, h, w) = x.dim();
    let mut y = pool.tensor([n, h, w, c]);
    let x = x.as_standard_layout();
    channels::nchw_to_nhwc(n, c, h * w, x.as_slice().expect("standard layout is contiguous"), &mut y.data);
    y
}

/// Channels last to NCHW.
pub(crate) fn to_array(x: &Tensor) -> Array4<f32> {
    let mut y = vec![0.0; x.data.len()];
    channels::nhwc_to_nchw(x.n, x.c, x.hw(), &x.data, &mut y);
    Array4::from_shape_vec((x.n, x.c, x.h, x.w), y).expect("the vector was made for this shape")
}
