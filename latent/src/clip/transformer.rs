//! The transformer of both encoders: layers that normalise their input (Radford et al. 2021, arXiv:2103.00020, section 2.4).
//!
//! ```text
//! h = x + Wo attention(Wq a, Wk a, Wv a),  a = LN1(x)          per head, with scores over sqrt(head width)
//! y = h + W2 act(W1 LN2(h))
//! ```

use std::sync::Arc;

use tweedie_kernels::act::{self, Act};
use tweedie_kernels::attention::{self, AttentionDims};
use tweedie_kernels::conv::{self, ConvDims, Filter};
use tweedie_kernels::norm::layer;
use tweedie_kernels::weight::Stored;
use tweedie_unet::{UnetError, WeightSource};

use super::config::TransformerConfig;

/// A linear layer whose weights stay as they are stored.
#[derive(Clone)]
pub(super) struct Linear {
    filter: Filter,
    bias: Option<Vec<f32>>,
    c_in: usize,
    c_out: usize,
}

impl Linear {
    /// The layer `name` with its bias.
    pub fn new(source: &dyn WeightSource, name: &str, c_in: usize, c_out: usize) -> Result<Self, UnetError> {
        let weight = source.weight(&format!("{name}.weight"), &[c_out, c_in])?;
        let bias = source.vector(&format!("{name}.bias"), &[c_out])?;
        Ok(Self { bias: Some(bias), ..Self::of(weight, c_in, c_out) })
    }

    /// A layer without a bias.
    pub fn of(weight: Arc<dyn Stored>, c_in: usize, c_out: usize) -> Self {
        Self { filter: Filter::streamed(1, 1, c_in, c_out, weight), bias: None, c_in, c_out }
    }

    /// The layer on every row of `x`.
    pub fn forward(&self, x: &[f32]) -> Vec<f32> {
        let mut y = Vec::new();
        self.forward_into(x, &mut y);
        y
    }

    /// [`Linear::forward`], in memory that was used before.
    fn forward_into(&self, x: &[f32], y: &mut Vec<f32>) {
        let rows = x.len() / self.c_in;
        y.resize(rows * self.c_out, 0.0);
        conv::forward(&ConvDims::linear(rows, self.c_in, self.c_out), x, &self.filter, self.bias.as_deref(), y);
    }
}

/// A layer normalisation.
#[derive(Clone, Debug)]
pub(super) struct Norm {
    gamma: Vec<f32>,
    beta: Vec<f32>,
    eps: f32,
}

impl Norm {
    pub fn new(source: &dyn WeightSource, name: &str, width: usize, eps: f32) -> Result<Self, UnetError> {
        let vector = |part: &str| source.vector(&format!("{name}.{part}"), &[width]);
        Ok(Self { gamma: vector("weight")?, beta: vector("bias")?, eps })
    }

    /// Every row of `x` normalised.
    pub fn forward(&self, x: &[f32]) -> Vec<f32> {
        let mut y = Vec::new();
        self.forward_into(x, &mut y);
        y
    }

    /// [`Norm::forward`], in memory that was used before.
    fn forward_into(&self, x: &[f32], y: &mut Vec<f32>) {
        let width = self.gamma.len();
        y.resize(x.len(), 0.0);
        layer::forward(x.len() / width, width, self.eps, x, &self.gamma, &self.beta, y);
    }
}

/// What a position sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sight {
    /// All positions.
    Full,
    /// Itself and those before it.
    Causal,
}

#[derive(Clone)]
struct Layer {
    norm1: Norm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    norm2: Norm,
    fc1: Linear,
    fc2: Linear,
}

/// The layers of an encoder.
#[derive(Clone)]
pub(super) struct Transformer {
    layers: Vec<Layer>,
    heads: usize,
    head_dim: usize,
    act: Act,
    sight: Sight,
}

impl Transformer {
    /// The layers `{prefix}encoder.layers.*`.
    pub fn new(
        source: &dyn WeightSource,
        prefix: &str,
        config: &TransformerConfig,
        sight: Sight,
    ) -> Result<Self, UnetError> {
        let &TransformerConfig { width, inner, layers, heads, act, eps } = config;
        let layer = |i: usize| {
            let key = |part: &str| format!("{prefix}encoder.layers.{i}.{part}");
            let linear = |part: &str, c_in, c_out| Linear::new(source, &key(part), c_in, c_out);
            Ok(Layer {
                norm1: Norm::new(source, &key("layer_norm1"), width, eps)?,
                q: linear("self_attn.q_proj", width, width)?,
                k: linear("self_attn.k_proj", width, width)?,
                v: linear("self_attn.v_proj", width, width)?,
                out: linear("self_attn.out_proj", width, width)?,
                norm2: Norm::new(source, &key("layer_norm2"), width, eps)?,
                fc1: linear("mlp.fc1", width, inner)?,
                fc2: linear("mlp.fc2", inner, width)?,
            })
        };
        let layers = (0..layers).map(layer).collect::<Result<_, UnetError>>()?;
        Ok(Self { layers, heads, head_dim: width / heads, act, sight })
    }

    /// Number of layers.
    pub fn len(&self) -> usize {
        self.layers.len()
    }

    /// The first `count` layers on `x` `[n, tokens, width]`.
    pub fn forward(&self, x: Vec<f32>, n: usize, tokens: usize, count: usize) -> Vec<f32> {
        tweedie_kernels::in_pool(|| self.run(x, n, tokens, count))
    }

    fn run(&self, mut x: Vec<f32>, n: usize, tokens: usize, count: usize) -> Vec<f32> {
        let d = AttentionDims { n, q_len: tokens, kv_len: tokens, heads: self.heads, head_dim: self.head_dim };
        let attend = match self.sight {
            Sight::Full => attention::forward,
            Sight::Causal => attention::forward_causal,
        };
        let mut lse = vec![0.0; d.lse_len()];
        let mut o = vec![0.0; d.q_elements()];
        let (mut a, mut q, mut k, mut v) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut inner, mut active) = (Vec::new(), Vec::new());
        for layer in &self.layers[..count] {
            layer.norm1.forward_into(&x, &mut a);
            for (linear, to) in [(&layer.q, &mut q), (&layer.k, &mut k), (&layer.v, &mut v)] {
                linear.forward_into(&a, to);
            }
            attend(&d, &q, &k, &v, &mut o, &mut lse);
            layer.out.forward_into(&o, &mut a);
            add(&mut x, &a);
            layer.norm2.forward_into(&x, &mut a);
            layer.fc1.forward_into(&a, &mut inner);
            active.resize(inner.len(), 0.0);
            act::forward(self.act, &inner, &mut active);
            layer.fc2.forward_into(&active, &mut a);
            add(&mut x, &a);
        }
        x
    }
}

/// `x += y`
pub(super) fn add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}
