//! The textbook conditional U-Net (`UNetCond`).
//!
//! ```text
//! pos(t)_i = sin(t / 10000^(i/E)) for even i, cos(t / 10000^(i/E)) for odd i
//! v        = pos(t) + label_emb[y]                                (nothing added without a label)
//! Block    = x + W2 relu(W0 v + b0) + b2 on every pixel, then twice relu(BN(conv3x3(.)))
//! down1 (in -> B), pool, down2 (B -> 2B), pool, bot1 (2B -> 4B), x2, up2 ([4B, 2B] -> 2B), x2, up1 ([2B, B] -> B), out
//! ```
//!
//! `B` is the number of base channels, `E` the width of the embedding; pooling takes the maximum of 2x2, `x2` is
//! bilinear. The U-Net is that of Ronneberger et al. 2015, the encoding follows Vaswani et al. 2017.

use std::sync::Arc;

use ndarray::{Array4, ArrayView4};
use serde_json::{Map, Value, json};
use tweedie_denoiser::{Condition, DenoiserError, Network, NetworkGrad, Params};
use tweedie_kernels::act::{self, Act};
use tweedie_kernels::pool::{self, MaxPoolDims};
use tweedie_kernels::resample::{self, Resample, ResampleDims};
use tweedie_kernels::{channels, sinusoid};

use crate::UnetError;
use crate::init::Init;
use crate::json::Reader;
use crate::layers::{BatchNorm, Conv, Embedding, Linear, Place, RunningUpdate, concat, concat_backward};
use crate::request::{self, Request};
use crate::summary::Summary;
use crate::tensor::{Pool, Tape, Tensor};
use crate::weights::{Builder, Pass, Weights};

/// The `_class_name` of this network.
pub(crate) const CLASS: &str = "UNetCond";

/// The sides of an image are halved twice.
const MULTIPLE: usize = 4;

/// The configuration of [`Book`]; `config.json` has the same keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BookConfig {
    /// Channels of the image.
    pub in_channels: usize,
    /// Height and width that the network was trained for; other multiples of four are allowed.
    pub image_size: usize,
    /// Width of the time and label embedding.
    pub embed_dim: usize,
    /// Number of labels.
    pub num_classes: usize,
    /// Channels of the first level; the others have two and four times as many.
    pub base_channels: usize,
}

impl Default for BookConfig {
    /// The digits' network: one channel of 28x28, 100 numbers of embedding, ten labels, 64 base channels.
    fn default() -> Self {
        Self { in_channels: 1, image_size: 28, embed_dim: 100, num_classes: 10, base_channels: 64 }
    }
}

impl BookConfig {
    /// Reads the contents of a `config.json`; missing keys take their defaults.
    ///
    /// # Errors
    /// For an unknown key that does not begin with `_`, or a value out of range.
    pub fn from_json(map: &Map<String, Value>) -> Result<Self, UnetError> {
        let mut r = Reader::new(CLASS, map);
        let default = Self::default();
        let config = Self {
            in_channels: r.integer("in_channels", default.in_channels, 1)?,
            image_size: r.integer("image_size", default.image_size, MULTIPLE)?,
            embed_dim: r.integer("embed_dim", default.embed_dim, 1)?,
            num_classes: r.integer("num_classes", default.num_classes, 1)?,
            base_channels: r.integer("base_channels", default.base_channels, 1)?,
        };
        r.finish()?;
        config.validate()?;
        Ok(config)
    }

    /// The contents of a `config.json`.
    pub fn to_json(&self) -> Map<String, Value> {
        let mut map = Map::new();
        map.insert("_class_name".into(), json!(CLASS));
        map.insert("in_channels".into(), json!(self.in_channels));
        map.insert("image_size".into(), json!(self.image_size));
        map.insert("embed_dim".into(), json!(self.embed_dim));
        map.insert("num_classes".into(), json!(self.num_classes));
        map.insert("base_channels".into(), json!(self.base_channels));
        map
    }

    /// Whether the values fit together.
    ///
    /// # Errors
    /// If a value is zero or unreasonably large, or the image cannot be halved twice.
    pub fn validate(&self) -> Result<(), UnetError> {
        let refuse = |key: &str, found: usize, expected: &str| {
            Err(UnetError::Value { class: CLASS, key: key.into(), expected: expected.into(), found: found.to_string() })
        };
        let wide = [
            ("in_channels", self.in_channels, 4096),
            ("embed_dim", self.embed_dim, 8192),
            ("num_classes", self.num_classes, 65536),
            ("base_channels", self.base_channels, 2048),
        ];
        for (key, value, most) in wide {
            if !(1..=most).contains(&value) {
                return refuse(key, value, &format!("a whole number from 1 to {most}"));
            }
        }
        if self.image_size == 0 || !self.image_size.is_multiple_of(MULTIPLE) {
            return refuse("image_size", self.image_size, "a multiple of 4, because the network halves it twice");
        }
        Ok(())
    }
}

/// Adds the projected condition to its input, then convolves twice.
#[derive(Clone, Debug)]
struct Block {
    conv0: Conv,
    norm1: BatchNorm,
    conv3: Conv,
    norm4: BatchNorm,
    mlp0: Linear,
    mlp2: Linear,
}

impl Block {
    fn new(b: &mut Builder, name: &str, c_in: usize, c_out: usize, embed: usize) -> Self {
        let key = |part: &str| format!("{name}.{part}");
        Self {
            conv0: Conv::same(b, &key("convs.0"), c_in, c_out, 3, Place::Inner),
            norm1: BatchNorm::new(b, &key("convs.1"), c_out),
            conv3: Conv::same(b, &key("convs.3"), c_out, c_out, 3, Place::Inner),
            norm4: BatchNorm::new(b, &key("convs.4"), c_out),
            mlp0: Linear::new(b, &key("mlp.0"), embed, c_in, Place::Inner),
            mlp2: Linear::new(b, &key("mlp.2"), c_in, c_in, Place::Inner),
        }
    }

    /// With the statistics of the batch if there is a place for `updates`, with the running ones otherwise.
    fn forward(
        &self,
        p: &Pass<'_>,
        mut x: Tensor,
        v: &Arc<Tensor>,
        mut updates: Option<&mut Vec<RunningUpdate>>,
        tape: &mut Tape,
    ) -> Tensor {
        let m = self.mlp0.forward(p, v);
        let mut r = p.pool.tensor(m.shape());
        act::forward(Act::Relu, &m.data, &mut r.data);
        let added = self.mlp2.forward(p, &r);
        channels::add_bias(x.n, x.hw(), x.c, &added.data, &mut x.data);
        for saved in [m, r] {
            tape.push(saved);
        }
        tape.push(v.clone());
        for (conv, norm) in [(&self.conv0, &self.norm1), (&self.conv3, &self.norm4)] {
            let h = conv.forward(p, &x);
            tape.push(x);
            x = match updates.as_deref_mut() {
                None => norm.forward_eval(p, &h),
                Some(updates) => {
                    let (y, stats, update) = norm.forward_train(p, &h);
                    updates.push(update);
                    tape.push(stats);
                    y
                }
            };
            tape.push(h);
        }
        x
    }

    /// Adds to `dv`, the gradient of the condition.
    fn backward(&self, p: &Pass<'_>, tape: &mut Tape, mut dy: Tensor, dv: &mut Tensor, grads: &mut [f32]) -> Tensor {
        for (conv, norm) in [(&self.conv3, &self.norm4), (&self.conv0, &self.norm1)] {
            let (h, stats, x) = (tape.pop(), tape.pop(), tape.pop());
            let dh = norm.backward(p, (&h, &stats), &dy, grads);
            dy = conv.backward_new(p, &x, &dh, grads);
        }
        let (v, r, m) = (tape.pop(), tape.pop(), tape.pop());
        let mut dadded = p.pool.zeros_like(&r);
        channels::add_bias_backward(dy.n, dy.hw(), dy.c, &dy.data, &mut dadded.data);
        let dr = self.mlp2.backward_new(p, &r, &dadded, grads);
        let mut dm = p.pool.zeros_like(&m);
        act::backward(Act::Relu, &m.data, &dr.data, &mut dm.data);
        self.mlp0.backward(p, &v, &dm, dv, grads);
        dy
    }

    fn describe(&self, s: &mut Summary, size: [usize; 2]) {
        self.mlp0.describe(s, [1, 1]);
        self.mlp2.describe(s, [1, 1]);
        self.conv0.describe(s, size);
        self.norm1.describe(s, size);
        self.conv3.describe(s, size);
        self.norm4.describe(s, size);
    }
}

/// The maximum of 2x2 pixels.
fn pool_forward(p: &Pass<'_>, x: &Tensor, tape: &mut Tape) -> Tensor {
    let d = MaxPoolDims { n: x.n, h: x.h, w: x.w, c: x.c };
    let mut y = p.pool.tensor([x.n, x.h / 2, x.w / 2, x.c]);
    let mut argmax = vec![0; y.data.len()];
    pool::forward(&d, &x.data, &mut y.data, &mut argmax);
    tape.push_indices(argmax);
    y
}

/// Adds to `dx`.
fn pool_backward(tape: &mut Tape, dy: &Tensor, dx: &mut Tensor) {
    let d = MaxPoolDims { n: dx.n, h: dx.h, w: dx.w, c: dx.c };
    pool::backward(&d, &tape.pop_indices(), &dy.data, &mut dx.data);
}

/// Twice the height and width of `x`, with the skip's channels behind.
fn up_forward(p: &Pass<'_>, x: &Tensor, skip: &Tensor) -> Tensor {
    let d = ResampleDims { n: x.n, h: x.h, w: x.w, c: x.c };
    let mut up = p.pool.tensor([x.n, 2 * x.h, 2 * x.w, x.c]);
    resample::forward(&d, Resample::Bilinear, &x.data, &mut up.data);
    concat(p.pool, &up, skip)
}

/// The gradients of `x` (with `c` channels) and of the skip.
fn up_backward(p: &Pass<'_>, dy: &Tensor, c: usize) -> (Tensor, Tensor) {
    let (dup, dskip) = concat_backward(p.pool, dy, c);
    let d = ResampleDims { n: dy.n, h: dy.h / 2, w: dy.w / 2, c };
    let mut dx = p.pool.tensor([d.n, d.h, d.w, d.c]);
    dx.data.fill(0.0);
    resample::backward(&d, Resample::Bilinear, &dup.data, &mut dx.data);
    (dx, dskip)
}

#[derive(Clone, Debug)]
struct Layers {
    down1: Block,
    down2: Block,
    bot1: Block,
    up2: Block,
    up1: Block,
    out: Conv,
    label_emb: Embedding,
}

impl Layers {
    fn new(b: &mut Builder, config: &BookConfig) -> Self {
        let BookConfig { in_channels, embed_dim, num_classes, base_channels: base, .. } = *config;
        Self {
            down1: Block::new(b, "down1", in_channels, base, embed_dim),
            down2: Block::new(b, "down2", base, 2 * base, embed_dim),
            bot1: Block::new(b, "bot1", 2 * base, 4 * base, embed_dim),
            up2: Block::new(b, "up2", 4 * base + 2 * base, 2 * base, embed_dim),
            up1: Block::new(b, "up1", 2 * base + base, base, embed_dim),
            out: Conv::same(b, "out", base, in_channels, 1, Place::EndsResidual),
            label_emb: Embedding::new(b, "label_emb", num_classes, embed_dim, None),
        }
    }

    fn forward(
        &self,
        p: &Pass<'_>,
        x: Tensor,
        times: &[f64],
        labels: &[Option<usize>],
        mut updates: Option<&mut Vec<RunningUpdate>>,
        tape: &mut Tape,
    ) -> Tensor {
        let mut v = self.label_emb.forward(p, labels);
        let mut position = p.pool.tensor(v.shape());
        sinusoid::pos(times, v.c, &mut position.data);
        v.add(&position);
        let v = Arc::new(v);
        let mut block = |block: &Block, x, tape: &mut Tape| block.forward(p, x, &v, updates.as_deref_mut(), tape);
        let skip1 = block(&self.down1, x, tape);
        let h = pool_forward(p, &skip1, tape);
        let skip2 = block(&self.down2, h, tape);
        let h = pool_forward(p, &skip2, tape);
        let h = block(&self.bot1, h, tape);
        let h = block(&self.up2, up_forward(p, &h, &skip2), tape);
        drop(skip2);
        let h = block(&self.up1, up_forward(p, &h, &skip1), tape);
        drop(skip1);
        let y = self.out.forward(p, &h);
        tape.push(h);
        tape.push(v);
        y
    }

    fn backward(
        &self,
        p: &Pass<'_>,
        tape: &mut Tape,
        dy: &Tensor,
        labels: &[Option<usize>],
        grads: &mut [f32],
    ) -> Tensor {
        let (v, h) = (tape.pop(), tape.pop());
        let mut dv = p.pool.zeros_like(&v);
        let dh = self.out.backward_new(p, &h, dy, grads);
        drop(h);
        let dh = self.up1.backward(p, tape, dh, &mut dv, grads);
        let (dh, mut dskip1) = up_backward(p, &dh, self.out.c_in * 2);
        let dh = self.up2.backward(p, tape, dh, &mut dv, grads);
        let (dh, mut dskip2) = up_backward(p, &dh, self.out.c_in * 4);
        let dh = self.bot1.backward(p, tape, dh, &mut dv, grads);
        pool_backward(tape, &dh, &mut dskip2);
        let dh = self.down2.backward(p, tape, dskip2, &mut dv, grads);
        pool_backward(tape, &dh, &mut dskip1);
        let dx = self.down1.backward(p, tape, dskip1, &mut dv, grads);
        self.label_emb.backward(labels, &dv, grads);
        dx
    }
}

/// The textbook network with its parameters.
#[derive(Clone)]
pub struct Book {
    config: BookConfig,
    layers: Layers,
    weights: Weights,
    pool: Pool,
}

impl std::fmt::Debug for Book {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Book").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Book {
    /// A network with every parameter zero, to be filled from a checkpoint or by [`Book::initialise`].
    ///
    /// # Errors
    /// See [`BookConfig::validate`].
    pub fn new(config: BookConfig) -> Result<Self, UnetError> {
        config.validate()?;
        let mut b = Builder::default();
        let layers = Layers::new(&mut b, &config);
        Ok(Self { config, layers, weights: b.finish(), pool: Pool::default() })
    }

    /// The configuration.
    pub fn config(&self) -> &BookConfig {
        &self.config
    }

    /// Draws the first values of every parameter; each tensor depends on (`seed`, its name) alone.
    pub fn initialise(&mut self, init: Init, seed: u64) {
        self.weights.initialise(init, seed);
    }

    /// What the sides of an image have to be multiples of.
    pub fn size_multiple(&self) -> usize {
        MULTIPLE
    }

    /// Layers, parameters and operations for an image of height `h` and width `w`.
    pub fn summary(&self, h: usize, w: usize) -> Summary {
        let mut s = Summary::default();
        let l = &self.layers;
        l.label_emb.describe(&mut s);
        let blocks = [(&l.down1, 1), (&l.down2, 2), (&l.bot1, 4), (&l.up2, 2), (&l.up1, 1)];
        for (block, factor) in blocks {
            block.describe(&mut s, [h / factor, w / factor]);
        }
        l.out.describe(&mut s, [h, w]);
        s
    }

    fn request<'a>(
        &self,
        operation: &'static str,
        x: ArrayView4<'a, f32>,
        times: &'a [f64],
        condition: &'a Condition,
    ) -> Result<Request<'a>, DenoiserError> {
        let request = Request { operation, x, times, labels: condition.as_labels() };
        request.check(self.config.in_channels, MULTIPLE)?;
        request.check_labels(self.config.num_classes, true)?;
        Ok(request)
    }
}

impl Network for Book {
    fn predict(
        &self,
        x: ArrayView4<'_, f32>,
        timesteps: &[f64],
        condition: &Condition,
    ) -> Result<Array4<f32>, DenoiserError> {
        let request = self.request("predicting with UNetCond", x, timesteps, condition)?;
        let filters = self.weights.for_predict();
        let p = Pass { values: self.weights.params().values(), filters: &filters, pool: &self.pool };
        Ok(request.in_chunks(self.config.in_channels, self.config.base_channels, |part| {
            let x = request::from_array(&self.pool, part.x);
            self.layers.forward(&p, x, part.times, part.labels, None, &mut Tape::forgetting())
        }))
    }

    fn classes(&self) -> usize {
        self.config.num_classes
    }

    fn has_null_condition(&self) -> bool {
        true
    }
}

impl NetworkGrad for Book {
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
        let request = self.request("training UNetCond", x, timesteps, condition)?;
        request.check_grads(grads, self.weights.params().len())?;
        let filters = self.weights.for_training();
        let p = Pass { values: self.weights.params().values(), filters: &filters, pool: &self.pool };
        let (mut tape, mut updates) = (Tape::recording(), Vec::new());
        let x = request::from_array(&self.pool, request.x);
        let y = self.layers.forward(&p, x, request.times, request.labels, Some(&mut updates), &mut tape);
        let dy = request.cotangent(&self.pool, y, loss)?;
        let dx = self.layers.backward(&p, &mut tape, &dy, request.labels, grads);
        debug_assert!(tape.is_empty(), "backward takes everything that forward has saved");
        let values = self.weights.buffers_mut().values_mut();
        updates.into_iter().for_each(|update| update.apply(values));
        Ok(request::to_array(&dx))
    }
}
