//! A classifier of noisy images, or of clean ones: the encoder half of the residual U-Net, a pooling and a linear layer.
//!
//! ```text
//! h = mid(down(conv(x), e)),  e = the embedding of t, or nothing
//! f = pool(SiLU(GN(h)))                    the features
//! z = W f + b                              the logits, ln p(y | x_t) = z_y - ln sum_k exp z_k
//! ```
//!
//! Dhariwal & Nichol 2021, section 4. The keys of the shared layers are those of diffusers' `UNet2DModel`.

mod config;
mod pool;

pub use config::{Config, Pooling, Time};

use ndarray::{Array2, Array4, ArrayView4, Axis};
use serde_json::{Map, Value};
use tweedie_denoiser::{
    Classified, Classifier, Condition, DenoiserError, Network, NetworkGrad, Param, ParamTable, Params,
};
use tweedie_kernels::act::Act;
use tweedie_kernels::dropout;

use crate::UnetError;
use crate::init::{self, Init};
use crate::layers::{Gradient, GroupNorm, Linear, Place};
use crate::request::{self, Request};
use crate::residual::{Encoder, EncoderPlan, dropout_keys};
use crate::summary::Summary;
use crate::tensor::{Pool, Tape, Tensor};
use crate::weights::{Builder, Filters, Pass, Weights};
use pool::{AttentionPool, PoolLayer};

/// The `_class_name` of this network.
pub const CLASS: &str = "EncoderClassifier";

/// The last layer.
const HEAD: &str = "classifier";

/// A recorded pass keeps about so many activations of the finest level.
const RECORDED: usize = 8;

/// A classifier with its parameters.
///
/// As a [`Network`] it takes no condition and puts out its logits, `[N, K, 1, 1]`, which is how it is trained.
#[derive(Clone)]
pub struct EncoderClassifier {
    config: Config,
    layers: Layers,
    weights: Weights,
    pool: Pool,
}

impl std::fmt::Debug for EncoderClassifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EncoderClassifier").field("config", &self.config).finish_non_exhaustive()
    }
}

#[derive(Clone, Debug)]
struct Layers {
    encoder: Encoder,
    conv_norm_out: GroupNorm,
    pool: PoolLayer,
    head: Linear,
    head_dropout: f32,
}

impl Layers {
    fn new(b: &mut Builder, config: &Config, plan: &EncoderPlan) -> Result<Self, UnetError> {
        let (shared, c) = (&config.encoder, config.features());
        let encoder = Encoder::new(b, shared, plan, config.timed());
        let groups = shared.out_groups(c)?;
        let conv_norm_out = GroupNorm::new(b, "conv_norm_out", c, groups, shared.norm_eps as f32, Act::Silu);
        let pool = match (config.pool, shared.sample_size) {
            (Pooling::Attention, Some(size)) => {
                let coarsest = size.map(|side| side / config.size_multiple());
                PoolLayer::Attention(Box::new(AttentionPool::new(b, "pool", shared.heads(c, None, 1.0)?, coarsest)))
            }
            _ => PoolLayer::Average,
        };
        let head = Linear::new(b, HEAD, c, config.classes, Place::Inner);
        Ok(Self { encoder, conv_norm_out, pool, head, head_dropout: config.head_dropout as f32 })
    }

    /// Drops features, in training, or elements of their gradient.
    fn drop_features(&self, p: &Pass<'_>, f: &mut Tensor) {
        if self.head_dropout > 0.0 && !p.dropout.is_empty() {
            let keys: Vec<u64> = p.dropout.iter().map(|&key| dropout::derive(key, init::hash(HEAD))).collect();
            dropout::apply(&keys, f.c, self.head_dropout, &mut f.data);
        }
    }

    fn features(&self, p: &Pass<'_>, x: Tensor, times: &[f64], tape: &mut Tape) -> Tensor {
        let hidden = self.encoder.encode(p, x, times, tape);
        let (a, stats) = self.conv_norm_out.forward(p, &hidden, None);
        let f = self.pool.forward(p, &a, tape);
        tape.push(hidden);
        tape.push(stats);
        f
    }

    /// The logits; the features are kept on the tape.
    fn logits(&self, p: &Pass<'_>, x: Tensor, times: &[f64], tape: &mut Tape) -> Tensor {
        let mut f = self.features(p, x, times, tape);
        self.drop_features(p, &mut f);
        let z = self.head.forward(p, &f);
        tape.push(f);
        z
    }

    /// The gradient of the image from that of the logits.
    fn backward(&self, p: &Pass<'_>, tape: &mut Tape, dz: &Tensor, times: &[f64], grads: &mut [f32]) -> Tensor {
        let f = tape.pop();
        let mut df = self.head.backward_new(p, &f, dz, grads);
        drop(f);
        self.drop_features(p, &mut df);
        let (stats, hidden) = (tape.pop(), tape.pop());
        let mut dh = self.pool.backward(p, tape, df, hidden.shape(), grads);
        self.conv_norm_out.backward(p, (&hidden, &stats), None, Gradient::InPlace(&mut dh), None, grads);
        drop((hidden, stats));
        self.encoder.encode_backward(p, tape, dh, times, grads)
    }
}

/// `p_k`, the softmax of one image's logits.
///
/// # Panics
/// If there are no logits.
fn probabilities(logits: &[f32]) -> Vec<f64> {
    let highest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let mut p: Vec<f64> = logits.iter().map(|&z| (f64::from(z) - highest).exp()).collect();
    let sum: f64 = p.iter().sum();
    p.iter_mut().for_each(|p| *p /= sum);
    p
}

impl EncoderClassifier {
    /// A network with every parameter zero (norms included), to be filled from a checkpoint or by
    /// [`EncoderClassifier::initialise`].
    ///
    /// # Errors
    /// If the configuration is not consistent, see [`Config::validate`].
    pub fn new(config: Config) -> Result<Self, UnetError> {
        let plan = config.plan()?;
        let mut b = Builder::default();
        let layers = Layers::new(&mut b, &config, &plan)?;
        Ok(Self { config, layers, weights: b.finish(), pool: Pool::default() })
    }

    /// Builds the network that a `config.json` describes, with every parameter zero.
    ///
    /// # Errors
    /// If `_class_name` is not `EncoderClassifier`, or for the first key that is not supported, by name.
    pub fn from_config(map: &Map<String, Value>) -> Result<Self, UnetError> {
        Self::new(Self::read(map)?)
    }

    /// The parameters of the network that a `config.json` describes, without their values: what a checkpoint of `available`
    /// numbers is compared with before memory is taken for a network.
    ///
    /// # Errors
    /// As [`EncoderClassifier::from_config`]; also if the network has so many more parameters than `available` that even
    /// their names would take more memory than the checkpoint.
    pub fn table(map: &Map<String, Value>, available: usize) -> Result<ParamTable, UnetError> {
        let config = Self::read(map)?;
        let plan = config.plan()?;
        let estimate = config.encoder.estimated_parameters();
        // The estimate counts a way up that is not there, and takes every layer for one of the widest.
        if estimate > 1e6 + 16.0 * available as f64 {
            return Err(UnetError::Size { estimate: estimate as u64, available });
        }
        let mut b = Builder::default();
        Layers::new(&mut b, &config, &plan)?;
        Ok(b.params)
    }

    fn read(map: &Map<String, Value>) -> Result<Config, UnetError> {
        match map.get("_class_name").and_then(Value::as_str) {
            Some(CLASS) => Config::from_json(map),
            _ => Err(UnetError::Class { found: map.get("_class_name").map_or("no such key".into(), Value::to_string) }),
        }
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// How many classes it tells apart.
    pub fn classes(&self) -> usize {
        self.config.classes
    }

    /// The tensors that a checkpoint of this network holds, with their shapes and roles.
    pub fn expected(&self) -> &[Param] {
        self.weights.params().table()
    }

    /// Draws the first values of every parameter; each tensor depends on (`seed`, its name) alone.
    pub fn initialise(&mut self, init: Init, seed: u64) {
        self.weights.initialise(init, seed);
    }

    /// Channels, height and width of the images that the network was made for; `None` if its configuration does not
    /// tell the size.
    pub fn image_shape(&self) -> Option<[usize; 3]> {
        let shared = &self.config.encoder;
        shared.sample_size.map(|[h, w]| [shared.in_channels, h, w])
    }

    /// What the height and width of an image have to be multiples of.
    pub fn size_multiple(&self) -> usize {
        self.config.size_multiple()
    }

    /// Bytes of the weights in the form that forward passes read, see [`Model::packed_bytes`](crate::Model::packed_bytes).
    pub fn packed_bytes(&self) -> u64 {
        4 * self.weights.packed_floats() as u64
    }

    /// Layers, parameters and operations for one image of height `h` and width `w`.
    pub fn summary(&self, h: usize, w: usize) -> Summary {
        let (mut s, l) = (Summary::default(), &self.layers);
        let size = l.encoder.describe(&mut s, [h, w]);
        l.conv_norm_out.describe(&mut s, size);
        l.pool.describe(&mut s, size, self.config.features());
        l.head.describe(&mut s, [1, 1]);
        s
    }

    fn request<'a>(
        &self,
        operation: &'static str,
        x: ArrayView4<'a, f32>,
        times: &'a [f64],
        condition: &'a Condition,
    ) -> Result<Request<'a>, DenoiserError> {
        let shared = &self.config.encoder;
        let request = Request::new(operation, x, times, condition);
        request.check(shared.in_channels, self.size_multiple())?;
        let (_, _, h, w) = x.dim();
        match shared.sample_size {
            Some(size) if self.config.pool == Pooling::Attention && size != [h, w] => Err(DenoiserError::Shape {
                operation,
                what: "the height and width of x",
                expected: format!("{} x {} (`sample_size`)", size[0], size[1]),
                found: format!("{h} x {w}"),
                remedy: "the attention pooling has learned a vector for every place: give images of the size that the \
                         classifier was trained on",
            }),
            _ => Ok(request),
        }
    }

    fn pass<'a>(&'a self, filters: Filters<'a>, dropout: &'a [u64]) -> Pass<'a> {
        Pass { values: self.weights.params().values(), filters, pool: &self.pool, dropout }
    }

    fn input(&self, x: ArrayView4<'_, f32>) -> Tensor {
        self.config.encoder.input_range.input(&self.pool, x)
    }
}

impl Classifier for EncoderClassifier {
    fn classes(&self) -> usize {
        self.config.classes
    }

    fn classify(&self, x: ArrayView4<'_, f32>, timesteps: &[f64]) -> Result<Classified, DenoiserError> {
        let none = Condition::none(timesteps.len());
        let request = self.request("classifying with EncoderClassifier", x, timesteps, &none)?;
        let filters = self.weights.for_predict();
        let p = self.pass(Filters::Kept(&filters), &[]);
        let (d, k) = (self.config.features(), self.config.classes);
        let both = request.in_chunks_of([d + k, 1, 1], self.config.encoder.channels[0], |part| {
            let f = self.layers.features(&p, self.input(part.x), part.times, &mut Tape::forgetting());
            let z = self.layers.head.forward(&p, &f);
            crate::layers::concat(&self.pool, &f, &z)
        });
        let both = both.index_axis_move(Axis(3), 0).index_axis_move(Axis(2), 0);
        let (features, logits) = both.view().split_at(Axis(1), d);
        let owned = |view: ndarray::ArrayView2<'_, f32>| -> Array2<f32> { view.as_standard_layout().into_owned() };
        Ok(Classified { logits: owned(logits), features: owned(features) })
    }

    /// By a backward pass of `d ln p(y) / dz_k = [k = y] - p_k`, without the gradients of the parameters.
    ///
    /// FORMULAS 5.3. Verified by `label_gradients_are_derivatives`. Verified by `label_gradients_cancel_over_the_classes`.
    fn label_gradient(
        &self,
        x: ArrayView4<'_, f32>,
        timesteps: &[f64],
        condition: &Condition,
    ) -> Result<Array4<f32>, DenoiserError> {
        let request = self.request("differentiating EncoderClassifier", x, timesteps, condition)?;
        let classes = self.config.classes;
        request.check_labels(classes, true)?;
        if condition.is_null() {
            return Ok(Array4::zeros(x.raw_dim()));
        }
        let filters = self.weights.for_gradient();
        let p = self.pass(Filters::Kept(&filters), &[]);
        let (_, c, h, w) = x.dim();
        let mut gradient = request.in_chunks_of([c, h, w], RECORDED * self.config.encoder.channels[0], |part| {
            let mut tape = Tape::recording();
            let z = self.layers.logits(&p, self.input(part.x), part.times, &mut tape);
            let mut dz = self.pool.zeros_like(&z);
            let rows = z.data.chunks_exact(classes).zip(dz.data.chunks_exact_mut(classes));
            for ((z, dz), label) in rows.zip(part.labels) {
                let Some(label) = *label else { continue };
                for (k, (dz, p)) in dz.iter_mut().zip(probabilities(z)).enumerate() {
                    *dz = (f64::from(u8::from(k == label)) - p) as f32;
                }
            }
            let dx = self.layers.backward(&p, &mut tape, &dz, part.times, &mut []);
            self.config.encoder.input_range.input_gradient(dx)
        });
        // What the backward pass makes of zeros may be negative zeros, or NaN for an image that is none.
        for (mut gradient, _) in gradient.outer_iter_mut().zip(request.labels).filter(|(_, label)| label.is_none()) {
            gradient.fill(0.0);
        }
        Ok(gradient)
    }
}

impl Network for EncoderClassifier {
    fn predict(
        &self,
        x: ArrayView4<'_, f32>,
        timesteps: &[f64],
        condition: &Condition,
    ) -> Result<Array4<f32>, DenoiserError> {
        let request = self.request("classifying with EncoderClassifier", x, timesteps, condition)?;
        request.check_labels(0, true)?;
        let filters = self.weights.for_predict();
        let p = self.pass(Filters::Kept(&filters), &[]);
        Ok(request.in_chunks_of([self.config.classes, 1, 1], self.config.encoder.channels[0], |part| {
            self.layers.logits(&p, self.input(part.x), part.times, &mut Tape::forgetting())
        }))
    }

    fn classes(&self) -> usize {
        0
    }

    fn has_null_condition(&self) -> bool {
        true
    }
}

impl NetworkGrad for EncoderClassifier {
    fn params(&self) -> &Params {
        self.weights.params()
    }

    fn params_mut(&mut self) -> &mut Params {
        self.weights.params_mut()
    }

    fn forward_backward(
        &mut self,
        x: ArrayView4<'_, f32>,
        timesteps: &[f64],
        condition: &Condition,
        loss: &mut dyn FnMut(ArrayView4<'_, f32>) -> Array4<f32>,
        grads: &mut [f32],
    ) -> Result<Array4<f32>, DenoiserError> {
        let request = self.request("training EncoderClassifier", x, timesteps, condition)?;
        request.check_labels(0, true)?;
        request.check_grads(grads, self.weights.params().len())?;
        let filters = self.weights.for_training();
        let x = self.input(request.x);
        let drops = self.config.encoder.dropout > 0.0 || self.config.head_dropout > 0.0;
        let dropout = if drops { dropout_keys(&x, request.times, self.salt()) } else { Vec::new() };
        let p = self.pass(filters, &dropout);
        let mut tape = Tape::recording();
        let z = self.layers.logits(&p, x, request.times, &mut tape);
        let dz = request.cotangent(&self.pool, z, loss)?;
        let dx = self.layers.backward(&p, &mut tape, &dz, request.times, grads);
        debug_assert!(tape.is_empty(), "backward takes everything that forward has saved");
        Ok(request::to_array(&self.config.encoder.input_range.input_gradient(dx)))
    }
}

impl EncoderClassifier {
    /// A number that another step has another of: the bits of the last bias, which every step moves. A clean image looks the
    /// same in every epoch, and would otherwise lose the same features each time.
    fn salt(&self) -> u64 {
        let bias = self.weights.params().get("classifier.bias").unwrap_or_default();
        bias.iter().fold(0, |salt, b| dropout::derive(salt, u64::from(b.to_bits())))
    }
}
