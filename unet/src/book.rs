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
use tweedie_denoiser::{Condition, DenoiserError, Network, NetworkGrad, ParamTable, Params};
use tweedie_kernels::act::{self, Act};
use tweedie_kernels::channels::{self, ChannelSlice};
use tweedie_kernels::conv::{Part, Target};
use tweedie_kernels::in_pool;
use tweedie_kernels::map::Map as Normalisation;
use tweedie_kernels::pool::{self, MaxPoolDims};
use tweedie_kernels::resample::{self, Resample, ResampleDims};
use tweedie_kernels::sinusoid;

use crate::UnetError;
use crate::init::Init;
use crate::json::Reader;
use crate::layers::{BatchNorm, Conv, Embedding, Linear, Place, RunningUpdate, copy_channels};
use crate::request::{self, Request};
use crate::summary::Summary;
use crate::tensor::{Pool, Tensor};
use crate::weights::{Builder, Filters, Pass, Weights};

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
        inputs: Vec<Lazy>,
        v: &Arc<Tensor>,
        mut updates: Option<&mut Vec<RunningUpdate>>,
    ) -> (Lazy, Saved) {
        let m = self.mlp0.forward(p, v);
        let mut r = p.pool.tensor(m.shape());
        act::forward(Act::Relu, &m.data, &mut r.data);
        let added = split(p, &self.mlp2.forward(p, &r), &inputs);
        let mut normalise = |norm: &BatchNorm, h: Tensor| {
            let (table, stats) = match updates.as_deref_mut() {
                None => (norm.table_eval(p), None),
                Some(updates) => {
                    let (table, stats, update) = norm.table_train(p, &h);
                    updates.push(update);
                    (table, Some(stats))
                }
            };
            (Lazy { h: Arc::new(h), table: Some(Arc::new(table)) }, stats)
        };
        let size = inputs[0].size();
        let h = self.conv0.forward_joined(p, size, &parts(&inputs, &added));
        let (inner, stats1) = normalise(&self.norm1, h);
        let h = self.conv3.forward_joined(p, size, &[inner.part()]);
        let (output, stats4) = normalise(&self.norm4, h);
        let saved = Saved { v: v.clone(), m, r, inputs, added, inner, stats1, output: output.h.clone(), stats4 };
        (output, saved)
    }

    /// `dy` is the gradient of the output as it is read. Writes the gradients of the inputs, as they are read, to `dx`,
    /// and adds to `dv`, the gradient of the condition.
    fn backward(&self, p: &Pass<'_>, saved: Saved, dy: Tensor, dv: &mut Tensor, grads: &mut [f32]) -> Vec<Tensor> {
        let Saved { v, m, r, inputs, added, inner, stats1, output, stats4 } = saved;
        let (stats1, stats4) = (stats1.expect("training saves statistics"), stats4.expect("training saves statistics"));
        let dh = self.norm4.backward(p, (&output, &stats4), dy, grads);
        drop(output);
        let mut dinner = p.pool.tensor(inner.h.shape());
        let size = inner.size();
        let channels = inner.h.c;
        self.conv3.backward_joined(
            p,
            size,
            &[inner.part()],
            &dh,
            &mut [Target::overwrite(&mut dinner.data, channels)],
            grads,
        );
        drop(dh);
        let dh = self.norm1.backward(p, (&inner.h, &stats1), dinner, grads);
        drop(inner);
        let mut dx: Vec<Tensor> = inputs.iter().map(|x| p.pool.tensor(x.h.shape())).collect();
        let mut targets: Vec<Target<'_>> = dx.iter_mut().map(|dx| Target::overwrite(&mut dx.data, dx.c)).collect();
        self.conv0.backward_joined(p, size, &parts(&inputs, &added), &dh, &mut targets, grads);
        let mut dadded = p.pool.tensor(r.shape());
        let mut first = 0;
        for dx in &dx {
            let mut sums = p.pool.tensor([dx.n, 1, 1, dx.c]);
            sums.data.fill(0.0);
            channels::add_bias_backward(dx.n, dx.hw(), dx.c, &dx.data, &mut sums.data);
            for (sums, row) in sums.data.chunks_exact(dx.c).zip(dadded.data.chunks_exact_mut(r.c)) {
                row[first..first + dx.c].copy_from_slice(sums);
            }
            first += dx.c;
        }
        let dr = self.mlp2.backward_new(p, &r, &dadded, grads);
        let mut dm = p.pool.zeros_like(&m);
        act::backward(Act::Relu, &m.data, &dr.data, &mut dm.data);
        self.mlp0.backward(p, &v, &dm, dv, grads);
        dx
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

/// An activation whose normalisation is carried out by whoever reads it.
#[derive(Clone, Debug)]
struct Lazy {
    h: Arc<Tensor>,
    /// Factors and offsets, see [`BatchNorm::map`]; none: `h` is read as it is.
    table: Option<Arc<Tensor>>,
}

impl Lazy {
    fn plain(h: Tensor) -> Self {
        Self { h: Arc::new(h), table: None }
    }

    /// Number of images, height and width.
    fn size(&self) -> [usize; 3] {
        [self.h.n, self.h.h, self.h.w]
    }

    fn map(&self) -> Option<Normalisation<'_>> {
        self.table.as_deref().map(BatchNorm::map)
    }

    fn part(&self) -> Part<'_> {
        Part { map: self.map(), ..Part::plain(&self.h.data, self.h.c) }
    }
}

/// What the backward pass of a block needs.
struct Saved {
    v: Arc<Tensor>,
    m: Tensor,
    r: Tensor,
    inputs: Vec<Lazy>,
    /// For every input, what is added to its channels.
    added: Vec<Tensor>,
    inner: Lazy,
    stats1: Option<Tensor>,
    output: Arc<Tensor>,
    stats4: Option<Tensor>,
}

/// The channels of `x` `[n, 1, 1, c]` that belong to each of the inputs.
fn split(p: &Pass<'_>, x: &Tensor, inputs: &[Lazy]) -> Vec<Tensor> {
    let mut first = 0;
    let take = |input: &Lazy| {
        let c = input.h.c;
        let mut y = p.pool.tensor([x.n, 1, 1, c]);
        copy_channels(&x.data, x.c, first, &mut y.data, c);
        first += c;
        y
    };
    inputs.iter().map(take).collect()
}

/// The inputs with what is added to them.
fn parts<'a>(inputs: &'a [Lazy], added: &'a [Tensor]) -> Vec<Part<'a>> {
    inputs.iter().zip(added).map(|(input, added)| Part { add: Some(&added.data), ..input.part() }).collect()
}

/// The maximum of 2x2 pixels, and where each is from if `indices` are asked for.
fn pool_forward(p: &Pass<'_>, x: &Lazy, indices: bool) -> (Lazy, Vec<u8>) {
    let [n, h, w] = x.size();
    let d = MaxPoolDims { n, h, w, c: x.h.c };
    let mut y = p.pool.tensor([n, h / 2, w / 2, d.c]);
    let mut argmax = vec![0; if indices { y.data.len() } else { 0 }];
    pool::forward_mapped(&d, &x.h.data, x.map().as_ref(), &mut y.data, indices.then_some(&mut *argmax));
    (Lazy::plain(y), argmax)
}

/// Adds the gradient that comes through the maxima to `dx`.
fn pool_backward(argmax: &[u8], dy: &Tensor, dx: &mut Tensor) {
    let d = MaxPoolDims { n: dx.n, h: dx.h, w: dx.w, c: dx.c };
    pool::backward(&d, argmax, &dy.data, &mut dx.data);
}

/// Twice the height and width of `x`.
fn up_forward(p: &Pass<'_>, x: &Lazy) -> Lazy {
    let [n, h, w] = x.size();
    let d = ResampleDims { n, h, w, c: x.h.c };
    let mut up = p.pool.tensor([n, 2 * h, 2 * w, d.c]);
    resample::forward_mapped(&d, Resample::Bilinear, &x.h.data, x.map().as_ref(), &mut up.data);
    Lazy::plain(up)
}

/// The gradient of [`up_forward`]'s input, as it is read.
fn up_backward(p: &Pass<'_>, dup: &Tensor) -> Tensor {
    let d = ResampleDims { n: dup.n, h: dup.h / 2, w: dup.w / 2, c: dup.c };
    let mut dx = p.pool.tensor([d.n, d.h, d.w, d.c]);
    resample::backward_into(&d, Resample::Bilinear, ChannelSlice::all(&dup.data, d.c), &mut dx.data);
    dx
}

/// What the backward pass of the network needs.
struct Trace {
    down1: Saved,
    argmax1: Vec<u8>,
    down2: Saved,
    argmax2: Vec<u8>,
    bot1: Saved,
    up2: Saved,
    up1: Saved,
    last: Lazy,
    v: Arc<Tensor>,
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

    /// With the statistics of the batch if there is a place for `updates`; only then can the trace be followed back.
    fn forward(
        &self,
        p: &Pass<'_>,
        x: Tensor,
        times: &[f64],
        labels: &[Option<usize>],
        mut updates: Option<&mut Vec<RunningUpdate>>,
    ) -> (Tensor, Option<Trace>) {
        let train = updates.is_some();
        let mut v = self.label_emb.forward(p, labels);
        let mut position = p.pool.tensor(v.shape());
        sinusoid::pos(times, v.c, &mut position.data);
        v.add(&position);
        let v = Arc::new(v);
        // While predicting, what a block saves is given back as soon as the block is done.
        let mut block = |block: &Block, inputs: Vec<Lazy>| {
            let (output, saved) = block.forward(p, inputs, &v, updates.as_deref_mut());
            (output, train.then_some(saved))
        };
        let (skip1, down1) = block(&self.down1, vec![Lazy::plain(x)]);
        let (h, argmax1) = pool_forward(p, &skip1, train);
        let (skip2, down2) = block(&self.down2, vec![h]);
        let (h, argmax2) = pool_forward(p, &skip2, train);
        let (h, bot1) = block(&self.bot1, vec![h]);
        let up = up_forward(p, &h);
        drop(h);
        let (h, up2) = block(&self.up2, vec![up, skip2]);
        let up = up_forward(p, &h);
        drop(h);
        let (last, up1) = block(&self.up1, vec![up, skip1]);
        let y = self.out.forward_joined(p, last.size(), &[last.part()]);
        let saved = (down1, down2, bot1, up2, up1);
        let (Some(down1), Some(down2), Some(bot1), Some(up2), Some(up1)) = saved else { return (y, None) };
        (y, Some(Trace { down1, argmax1, down2, argmax2, bot1, up2, up1, last, v }))
    }

    fn backward(&self, p: &Pass<'_>, trace: Trace, dy: &Tensor, labels: &[Option<usize>], grads: &mut [f32]) -> Tensor {
        let Trace { down1, argmax1, down2, argmax2, bot1, up2, up1, last, v } = trace;
        let mut dv = p.pool.zeros_like(&v);
        let mut dh = p.pool.tensor(last.h.shape());
        let targets = &mut [Target::overwrite(&mut dh.data, last.h.c)];
        self.out.backward_joined(p, last.size(), &[last.part()], dy, targets, grads);
        drop(last);
        let [dup, mut dskip1] = two(self.up1.backward(p, up1, dh, &mut dv, grads));
        let dh = up_backward(p, &dup);
        drop(dup);
        let [dup, mut dskip2] = two(self.up2.backward(p, up2, dh, &mut dv, grads));
        let dh = up_backward(p, &dup);
        drop(dup);
        let [dh] = one(self.bot1.backward(p, bot1, dh, &mut dv, grads));
        pool_backward(&argmax2, &dh, &mut dskip2);
        let [dh] = one(self.down2.backward(p, down2, dskip2, &mut dv, grads));
        pool_backward(&argmax1, &dh, &mut dskip1);
        let [dx] = one(self.down1.backward(p, down1, dskip1, &mut dv, grads));
        self.label_emb.backward(labels, &dv, grads);
        dx
    }
}

fn one(gradients: Vec<Tensor>) -> [Tensor; 1] {
    gradients.try_into().expect("the block has one input")
}

fn two(gradients: Vec<Tensor>) -> [Tensor; 2] {
    gradients.try_into().expect("the block has two inputs")
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

    /// The parameters of a network, without their values.
    ///
    /// # Errors
    /// As [`Book::new`].
    pub(crate) fn table(config: &BookConfig) -> Result<ParamTable, UnetError> {
        config.validate()?;
        let mut b = Builder::default();
        Layers::new(&mut b, config);
        Ok(b.params)
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

    pub(crate) fn packed_floats(&self) -> usize {
        self.weights.packed_floats()
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
        let request = Request::new(operation, x, times, condition);
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
        let p = Pass {
            values: self.weights.params().values(),
            filters: Filters::Kept(&filters),
            pool: &self.pool,
            dropout: &[],
        };
        Ok(request.in_chunks(self.config.in_channels, self.config.base_channels, |part| {
            let x = request::from_array(&self.pool, part.x);
            self.layers.forward(&p, x, part.times, part.labels, None).0
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
        let p = Pass { values: self.weights.params().values(), filters, pool: &self.pool, dropout: &[] };
        let mut updates = Vec::new();
        let x = request::from_array(&self.pool, request.x);
        let (y, trace) = in_pool(|| self.layers.forward(&p, x, request.times, request.labels, Some(&mut updates)));
        let trace = trace.expect("training leaves a trace");
        let dy = request.cotangent(&self.pool, y, loss)?;
        let dx = in_pool(|| self.layers.backward(&p, trace, &dy, request.labels, grads));
        let values = self.weights.buffers_mut().values_mut();
        updates.into_iter().for_each(|update| update.apply(values));
        Ok(request::to_array(&dx))
    }
}
