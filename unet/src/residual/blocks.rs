//! The levels of the residual U-Net.

use std::sync::Arc;

use super::config::{Block, Config, DownsamplePadding, MidAttention, TimeScaleShift};
use crate::layers::{Attention, Downsample, Resnet, ResnetShape, Upsample, concat, concat_backward};
use crate::summary::Summary;
use crate::tensor::{Tape, Tensor};
use crate::weights::{Builder, Pass};

fn shape(config: &Config, output_scale: f32) -> ResnetShape {
    ResnetShape {
        embedding: config.embedding(),
        groups: config.norm_num_groups,
        eps: config.norm_eps as f32,
        conditioning: config.time_scale_shift,
        output_scale,
    }
}

fn attention(b: &mut Builder, config: &Config, block: Block, name: &str, c: usize) -> Option<Attention> {
    (block == Block::Attention).then(|| {
        let groups = Some(config.norm_num_groups);
        Attention::new(b, name, c, config.heads(c), groups, config.norm_eps as f32, 1.0)
    })
}

/// A residual block and the attention after it, if any.
#[derive(Clone, Debug)]
struct Layer {
    resnet: Resnet,
    attention: Option<Attention>,
}

impl Layer {
    fn forward(&self, p: &Pass<'_>, x: Arc<Tensor>, e: &Arc<Tensor>, tape: &mut Tape) -> Arc<Tensor> {
        let h = Arc::new(self.resnet.forward(p, x, e, tape));
        match &self.attention {
            Some(attention) => Arc::new(attention.forward(p, h, tape)),
            None => h,
        }
    }

    fn backward(&self, p: &Pass<'_>, tape: &mut Tape, mut dh: Tensor, de: &mut Tensor, grads: &mut [f32]) -> Tensor {
        if let Some(attention) = &self.attention {
            dh = attention.backward(p, tape, dh, grads);
        }
        self.resnet.backward(p, tape, dh, de, grads)
    }

    fn describe(&self, s: &mut Summary, size: [usize; 2]) {
        self.resnet.describe(s, size);
        if let Some(attention) = &self.attention {
            attention.describe(s, size);
        }
    }
}

/// A level on the way down: `DownBlock2D` or `AttnDownBlock2D`.
#[derive(Clone, Debug)]
pub(super) struct DownLevel {
    layers: Vec<Layer>,
    downsample: Option<Downsample>,
}

impl DownLevel {
    pub fn new(b: &mut Builder, config: &Config, level: usize) -> Self {
        let name = format!("down_blocks.{level}");
        let c = config.channels[level];
        let before = config.channels[level.saturating_sub(1)];
        let layers = (0..config.layers_per_block).map(|j| Layer {
            resnet: {
                let c_in = if j == 0 { before } else { c };
                Resnet::new(b, &format!("{name}.resnets.{j}"), c_in, c, shape(config, 1.0))
            },
            attention: attention(b, config, config.down_blocks[level], &format!("{name}.attentions.{j}"), c),
        });
        let layers = layers.collect();
        let pad_before = match config.downsample_padding {
            DownsamplePadding::Asymmetric => 0,
            DownsamplePadding::Symmetric => 1,
        };
        let last = level + 1 == config.levels();
        let downsample = (!last).then(|| Downsample::new(b, &format!("{name}.downsamplers.0"), c, pad_before));
        Self { layers, downsample }
    }

    pub fn forward(
        &self,
        p: &Pass<'_>,
        mut h: Arc<Tensor>,
        e: &Arc<Tensor>,
        skips: &mut Vec<Arc<Tensor>>,
        tape: &mut Tape,
    ) -> Arc<Tensor> {
        for layer in &self.layers {
            h = layer.forward(p, h, e, tape);
            skips.push(h.clone());
        }
        if let Some(downsample) = &self.downsample {
            h = Arc::new(downsample.forward(p, &h, tape));
            skips.push(h.clone());
        }
        h
    }

    /// Takes the gradient of every skip of this level from the end of `dskips`.
    pub fn backward(
        &self,
        p: &Pass<'_>,
        tape: &mut Tape,
        mut dh: Tensor,
        de: &mut Tensor,
        dskips: &mut Vec<Tensor>,
        grads: &mut [f32],
    ) -> Tensor {
        let mut joined = |dh: &mut Tensor| dh.add(&dskips.pop().expect("every skip has been consumed"));
        if let Some(downsample) = &self.downsample {
            joined(&mut dh);
            dh = downsample.backward(p, tape, &dh, grads);
        }
        for layer in self.layers.iter().rev() {
            joined(&mut dh);
            dh = layer.backward(p, tape, dh, de, grads);
        }
        dh
    }

    pub fn describe(&self, s: &mut Summary, size: [usize; 2]) -> [usize; 2] {
        self.layers.iter().for_each(|layer| layer.describe(s, size));
        self.downsample.as_ref().map_or(size, |downsample| downsample.describe(s, size))
    }
}

/// The middle: `UNetMidBlock2D`.
#[derive(Clone, Debug)]
pub(super) struct Mid {
    first: Layer,
    second: Resnet,
}

impl Mid {
    pub fn new(b: &mut Builder, config: &Config) -> Self {
        let c = config.channels[config.levels() - 1];
        let scale = config.mid_block_scale_factor as f32;
        let groups = match (config.attn_norm_num_groups, config.time_scale_shift) {
            (Some(groups), _) => Some(groups),
            (None, TimeScaleShift::Default) => Some(config.norm_num_groups),
            (None, TimeScaleShift::ScaleShift) => None,
        };
        let resnet = Resnet::new(b, "mid_block.resnets.0", c, c, shape(config, scale));
        let attention = (config.mid_attention == MidAttention::With).then(|| {
            let (heads, eps) = (config.heads(c), config.norm_eps as f32);
            Attention::new(b, "mid_block.attentions.0", c, heads, groups, eps, scale)
        });
        let second = Resnet::new(b, "mid_block.resnets.1", c, c, shape(config, scale));
        Self { first: Layer { resnet, attention }, second }
    }

    pub fn forward(&self, p: &Pass<'_>, h: Arc<Tensor>, e: &Arc<Tensor>, tape: &mut Tape) -> Arc<Tensor> {
        let h = self.first.forward(p, h, e, tape);
        Arc::new(self.second.forward(p, h, e, tape))
    }

    pub fn backward(&self, p: &Pass<'_>, tape: &mut Tape, dh: Tensor, de: &mut Tensor, grads: &mut [f32]) -> Tensor {
        let dh = self.second.backward(p, tape, dh, de, grads);
        self.first.backward(p, tape, dh, de, grads)
    }

    pub fn describe(&self, s: &mut Summary, size: [usize; 2]) {
        self.first.describe(s, size);
        self.second.describe(s, size);
    }
}

/// A level on the way up: `UpBlock2D` or `AttnUpBlock2D`.
#[derive(Clone, Debug)]
pub(super) struct UpLevel {
    /// Each layer with the channels of its hidden input, without those of the skip.
    layers: Vec<(usize, Layer)>,
    upsample: Option<Upsample>,
}

impl UpLevel {
    /// `position` counts from the coarsest level; the skips that the level consumes are taken from `skips`.
    pub fn new(b: &mut Builder, config: &Config, position: usize, skips: &mut Vec<usize>) -> Self {
        let name = format!("up_blocks.{position}");
        let level = config.levels() - 1 - position;
        let c = config.channels[level];
        let before = config.channels[(level + 1).min(config.levels() - 1)];
        let layers = (0..=config.layers_per_block).map(|j| {
            let hidden = if j == 0 { before } else { c };
            let c_in = hidden + skips.pop().expect("the way down makes a skip for every layer of the way up");
            let resnet = Resnet::new(b, &format!("{name}.resnets.{j}"), c_in, c, shape(config, 1.0));
            let name = format!("{name}.attentions.{j}");
            (hidden, Layer { resnet, attention: attention(b, config, config.up_blocks[position], &name, c) })
        });
        let layers = layers.collect();
        let upsample = (level > 0).then(|| Upsample::new(b, &format!("{name}.upsamplers.0"), c));
        Self { layers, upsample }
    }

    pub fn forward(
        &self,
        p: &Pass<'_>,
        mut h: Arc<Tensor>,
        e: &Arc<Tensor>,
        skips: &mut Vec<Arc<Tensor>>,
        tape: &mut Tape,
    ) -> Arc<Tensor> {
        for (_, layer) in &self.layers {
            let skip = skips.pop().expect("the way down makes a skip for every layer of the way up");
            let joined = Arc::new(concat(p.pool, &h, &skip));
            drop(skip);
            h = layer.forward(p, joined, e, tape);
        }
        match &self.upsample {
            Some(upsample) => Arc::new(upsample.forward(p, &h, tape)),
            None => h,
        }
    }

    /// Appends the gradients of the skips to `dskips`.
    pub fn backward(
        &self,
        p: &Pass<'_>,
        tape: &mut Tape,
        mut dh: Tensor,
        de: &mut Tensor,
        dskips: &mut Vec<Tensor>,
        grads: &mut [f32],
    ) -> Tensor {
        if let Some(upsample) = &self.upsample {
            dh = upsample.backward(p, tape, &dh, grads);
        }
        for (hidden, layer) in self.layers.iter().rev() {
            let djoined = layer.backward(p, tape, dh, de, grads);
            let (dhidden, dskip) = concat_backward(p.pool, &djoined, *hidden);
            dskips.push(dskip);
            dh = dhidden;
        }
        dh
    }

    pub fn describe(&self, s: &mut Summary, size: [usize; 2]) -> [usize; 2] {
        self.layers.iter().for_each(|(_, layer)| layer.describe(s, size));
        self.upsample.as_ref().map_or(size, |upsample| upsample.describe(s, size))
    }
}
