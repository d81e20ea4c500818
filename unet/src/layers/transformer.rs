//! Transformer blocks over the pixels of an image, which also attend to a text; the forward pass alone.
//!
//! ```text
//! a = Win GN(x) + bin
//! a = a + Attn1(LN(a), LN(a));   a = a + Attn2(LN(a), text);   a = a + W2 GEGLU(W1 LN(a) + b1) + b2       each block
//! y = x + Wout a + bout
//! Attn(u, s) = Wo softmax(Wq u (Wk s)^T / sqrt(head width)) Wv s + bo      Vaswani et al. 2017, eq. 1, per head
//! ```
//!
//! Rombach et al. 2022, section 3.3; keys and conventions are those of diffusers' `Transformer2DModel`.

use std::ops::Range;
use std::sync::Arc;

use tweedie_denoiser::Text;
use tweedie_kernels::act::{self, Act};
use tweedie_kernels::attention::{self, AttentionDims};

use super::conv::{Conv, Linear, Place};
use super::norm::{GroupNorm, LayerNorm};
use crate::summary::Summary;
use crate::tensor::{Pool, Tensor};
use crate::weights::{Builder, Pass};

/// Tokens of the text that a description counts operations for, as CLIP's text encoder gives.
const DESCRIBED_TOKENS: usize = 77;

/// The form of the first and the last layer, which differ in the shape of their weights alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TransformerEnds {
    Convolution,
    Linear,
}

/// One transformer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TransformerShape {
    pub c: usize,
    pub heads: usize,
    pub groups: usize,
    /// Blocks.
    pub layers: usize,
    /// Numbers of a token of the text.
    pub text: usize,
    pub ends: TransformerEnds,
}

/// The texts of a batch.
#[derive(Debug)]
pub(crate) struct Texts {
    /// The tokens of every different text, one text after another: `[1, 1, tokens, width]`.
    tokens: Tensor,
    /// Where the tokens of each image lie.
    of_image: Vec<Range<usize>>,
}

impl Texts {
    /// The texts of images that all have one, of tokens of `width` numbers.
    pub fn new(pool: &Pool, texts: &[Option<Text>], width: usize) -> Self {
        let mut different: Vec<(&Text, Range<usize>)> = Vec::new();
        let mut of_image = Vec::with_capacity(texts.len());
        for text in texts.iter().flatten() {
            let place = match different.iter().find(|(other, _)| Arc::ptr_eq(text, other)) {
                Some((_, place)) => place.clone(),
                None => {
                    let start = different.last().map_or(0, |(_, place)| place.end);
                    let place = start..start + text.nrows();
                    different.push((text, place.clone()));
                    place
                }
            };
            of_image.push(place);
        }
        let mut tokens = pool.tensor([1, 1, different.last().map_or(0, |(_, place)| place.end), width]);
        for (text, place) in different {
            let to = &mut tokens.data[place.start * width..place.end * width];
            to.iter_mut().zip(text.iter()).for_each(|(to, from)| *to = *from);
        }
        Self { tokens, of_image }
    }
}

/// Attention with its projections.
#[derive(Clone, Debug)]
struct Attend {
    name: String,
    heads: usize,
    /// Channels of a head.
    width: usize,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
}

impl Attend {
    /// Of `c` channels to vectors of `source` numbers.
    fn new(b: &mut Builder, name: &str, heads: usize, c: usize, source: usize) -> Self {
        let key = |part: &str| format!("{name}.{part}");
        Self {
            name: name.to_owned(),
            heads,
            width: c / heads,
            to_q: Linear::unbiased(b, &key("to_q"), c, c),
            to_k: Linear::unbiased(b, &key("to_k"), source, c),
            to_v: Linear::unbiased(b, &key("to_v"), source, c),
            to_out: Linear::new(b, &key("to_out.0"), c, c, Place::EndsResidual),
        }
    }

    fn dims(&self, n: usize, q_len: usize, kv_len: usize) -> AttentionDims {
        AttentionDims { n, q_len, kv_len, heads: self.heads, head_dim: self.width }
    }

    /// Of each pixel to all pixels of its image.
    fn to_pixels(&self, p: &Pass<'_>, a: &Tensor) -> Tensor {
        let [q, k, v] = [&self.to_q, &self.to_k, &self.to_v].map(|linear| linear.forward(p, a));
        let mut o = p.pool.tensor(q.shape());
        let mut lse = p.pool.tensor([a.n, 1, self.heads, a.hw()]);
        let d = self.dims(a.n, a.hw(), a.hw());
        attention::forward(&d, &q.data, &k.data, &v.data, &mut o.data, &mut lse.data);
        drop((q, k, v, lse));
        self.to_out.forward(p, &o)
    }

    /// Of each pixel to the text of its image.
    fn to_text(&self, p: &Pass<'_>, a: &Tensor, texts: &Texts) -> Tensor {
        let q = self.to_q.forward(p, a);
        let [k, v] = [&self.to_k, &self.to_v].map(|linear| linear.forward(p, &texts.tokens));
        let mut o = p.pool.tensor(q.shape());
        let mut lse = p.pool.tensor([1, 1, self.heads, a.hw()]);
        let len = a.hw() * q.c;
        // Texts may differ in length, so each image has a call of its own.
        for (i, place) in texts.of_image.iter().enumerate() {
            let (at, tokens) = (i * len..(i + 1) * len, place.start * q.c..place.end * q.c);
            let d = self.dims(1, a.hw(), place.len());
            let (q, k, v) = (&q.data[at.clone()], &k.data[tokens.clone()], &v.data[tokens]);
            attention::forward(&d, q, k, v, &mut o.data[at], &mut lse.data);
        }
        drop((q, k, v, lse));
        self.to_out.forward(p, &o)
    }

    /// `len` is that of the other side, where it is not the image itself.
    fn describe(&self, s: &mut Summary, [h, w]: [usize; 2], len: Option<usize>) {
        let source = len.map_or([h, w], |len| [1, len]);
        self.to_q.describe(s, [h, w]);
        self.to_k.describe(s, source);
        self.to_v.describe(s, source);
        let c = self.heads * self.width;
        let flops = 4 * (h * w * source[0] * source[1] * c) as u64;
        s.push(&self.name, format!("Attention({} heads)", self.heads), [c, h, w], 0, flops);
        self.to_out.describe(s, [h, w]);
    }
}

/// `BasicTransformerBlock`.
#[derive(Clone, Debug)]
struct Block {
    norm1: LayerNorm,
    attn1: Attend,
    norm2: LayerNorm,
    attn2: Attend,
    norm3: LayerNorm,
    widen: Linear,
    narrow: Linear,
}

impl Block {
    fn new(b: &mut Builder, name: &str, shape: &TransformerShape) -> Self {
        let key = |part: &str| format!("{name}.{part}");
        let TransformerShape { c, heads, text, .. } = *shape;
        Self {
            norm1: LayerNorm::new(b, &key("norm1"), c),
            attn1: Attend::new(b, &key("attn1"), heads, c, c),
            norm2: LayerNorm::new(b, &key("norm2"), c),
            attn2: Attend::new(b, &key("attn2"), heads, c, text),
            norm3: LayerNorm::new(b, &key("norm3"), c),
            // Four times the channels, each with a gate.
            widen: Linear::new(b, &key("ff.net.0.proj"), c, 8 * c, Place::Inner),
            narrow: Linear::new(b, &key("ff.net.2"), 4 * c, c, Place::EndsResidual),
        }
    }

    fn forward(&self, p: &Pass<'_>, x: &mut Tensor, texts: &Texts) {
        x.add(&self.attn1.to_pixels(p, &self.norm1.forward(p, x)));
        x.add(&self.attn2.to_text(p, &self.norm2.forward(p, x), texts));
        let wide = self.widen.forward(p, &self.norm3.forward(p, x));
        let mut gated = p.pool.tensor([x.n, x.h, x.w, 4 * x.c]);
        act::geglu(gated.c, &wide.data, &mut gated.data);
        drop(wide);
        x.add(&self.narrow.forward(p, &gated));
    }

    fn describe(&self, s: &mut Summary, size: [usize; 2]) {
        self.norm1.describe(s, size);
        self.attn1.describe(s, size, None);
        self.norm2.describe(s, size);
        self.attn2.describe(s, size, Some(DESCRIBED_TOKENS));
        self.norm3.describe(s, size);
        self.widen.describe(s, size);
        self.narrow.describe(s, size);
    }
}

/// The first or the last layer.
#[derive(Clone, Debug)]
enum End {
    Convolution(Conv),
    Linear(Linear),
}

impl End {
    fn new(b: &mut Builder, name: &str, c: usize, ends: TransformerEnds, place: Place) -> Self {
        match ends {
            TransformerEnds::Convolution => Self::Convolution(Conv::same(b, name, c, c, 1, place)),
            TransformerEnds::Linear => Self::Linear(Linear::new(b, name, c, c, place)),
        }
    }

    fn forward(&self, p: &Pass<'_>, x: &Tensor) -> Tensor {
        match self {
            Self::Convolution(conv) => conv.forward(p, x),
            Self::Linear(linear) => linear.forward(p, x),
        }
    }

    fn describe(&self, s: &mut Summary, size: [usize; 2]) {
        match self {
            Self::Convolution(conv) => {
                conv.describe(s, size);
            }
            Self::Linear(linear) => linear.describe(s, size),
        }
    }
}

/// `Transformer2DModel`, with its residual connection.
#[derive(Clone, Debug)]
pub(crate) struct Transformer {
    norm: GroupNorm,
    proj_in: End,
    blocks: Vec<Block>,
    proj_out: End,
}

impl Transformer {
    /// Of the group normalisation, whatever the network's own.
    const EPS: f32 = 1e-6;

    pub fn new(b: &mut Builder, name: &str, shape: TransformerShape) -> Self {
        let key = |part: &str| format!("{name}.{part}");
        let TransformerShape { c, groups, layers, ends, .. } = shape;
        Self {
            norm: GroupNorm::new(b, &key("norm"), c, groups, Self::EPS, Act::None),
            proj_in: End::new(b, &key("proj_in"), c, ends, Place::Inner),
            blocks: (0..layers).map(|k| Block::new(b, &key(&format!("transformer_blocks.{k}")), &shape)).collect(),
            proj_out: End::new(b, &key("proj_out"), c, ends, Place::EndsResidual),
        }
    }

    pub fn forward(&self, p: &Pass<'_>, x: &Tensor, texts: &Texts) -> Tensor {
        let (a, _) = self.norm.forward(p, x, None);
        let mut h = self.proj_in.forward(p, &a);
        drop(a);
        for block in &self.blocks {
            block.forward(p, &mut h, texts);
        }
        let mut y = self.proj_out.forward(p, &h);
        y.add(x);
        y
    }

    pub fn describe(&self, s: &mut Summary, size: [usize; 2]) {
        self.norm.describe(s, size);
        self.proj_in.describe(s, size);
        self.blocks.iter().for_each(|block| block.describe(s, size));
        self.proj_out.describe(s, size);
    }
}
