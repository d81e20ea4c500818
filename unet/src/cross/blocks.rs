//! The layers of the text-conditioned U-Net, forward alone.

use std::sync::Arc;

use super::config::{Block, Config, MidBlock, Projection};
use super::embed::Embed;
use crate::layers::{
    Conditioning, Conv, Downsample, Embedded, GroupNorm, Place, Resnet, ResnetCommon, ResnetShape, Shortcut, Texts,
    Transformer, TransformerEnds, TransformerShape, Upsample, concat,
};
use crate::residual::{DownsamplePadding, TimeScaleShift};
use crate::summary::Summary;
use crate::tensor::{Tape, Tensor};
use crate::weights::{Builder, Pass};

/// What every layer of a pass receives.
struct Given<'a> {
    p: &'a Pass<'a>,
    e: Embedded,
    texts: &'a Texts,
}

fn resnet(b: &mut Builder, config: &Config, name: &str, [c_in, c_out]: [usize; 2], output_scale: f64) -> Resnet {
    let shape = ResnetShape {
        c_in,
        c_out,
        groups: [config.norm_num_groups; 2],
        conditioning: match config.time_scale_shift {
            TimeScaleShift::Default => Conditioning::Added,
            TimeScaleShift::ScaleShift => Conditioning::ScaleShift,
        },
        output_scale: output_scale as f32,
        rescaling: None,
        shortcut: Shortcut::IfNeeded,
    };
    let common = ResnetCommon {
        embedding: config.embedding(),
        eps: config.norm_eps as f32,
        act: config.activation.act(),
        dropout: 0.0,
    };
    Resnet::new(b, name, shape, common)
}

fn transformer(b: &mut Builder, config: &Config, name: &str, level: usize) -> Transformer {
    let shape = TransformerShape {
        c: config.channels[level],
        heads: config.heads[level],
        groups: config.norm_num_groups,
        layers: config.transformer_layers[level],
        text: config.text_width,
        ends: match config.projection {
            Projection::Convolution => TransformerEnds::Convolution,
            Projection::Linear => TransformerEnds::Linear,
        },
    };
    Transformer::new(b, name, shape)
}

/// A residual block and the transformer after it, if any.
#[derive(Clone, Debug)]
struct Layer {
    resnet: Resnet,
    transformer: Option<Transformer>,
}

impl Layer {
    /// Layer `j` of a block at `level`.
    fn new(b: &mut Builder, config: &Config, name: &str, j: usize, level: usize, block: Block, c_in: usize) -> Self {
        let resnet = resnet(b, config, &format!("{name}.resnets.{j}"), [c_in, config.channels[level]], 1.0);
        let attends = block == Block::CrossAttention;
        let transformer = attends.then(|| transformer(b, config, &format!("{name}.attentions.{j}"), level));
        Self { resnet, transformer }
    }

    fn forward(&self, given: &Given<'_>, x: Arc<Tensor>) -> Arc<Tensor> {
        let h = self.resnet.forward(given.p, x, &given.e, &mut Tape::forgetting());
        Arc::new(match &self.transformer {
            Some(transformer) => transformer.forward(given.p, &h, given.texts),
            None => h,
        })
    }

    fn describe(&self, s: &mut Summary, size: [usize; 2]) {
        self.resnet.describe(s, size);
        if let Some(transformer) = &self.transformer {
            transformer.describe(s, size);
        }
    }
}

/// A level, on the way down or up, with what changes the size after its layers.
#[derive(Clone, Debug)]
struct Level<S> {
    layers: Vec<Layer>,
    sampler: Option<S>,
}

/// The middle.
#[derive(Clone, Debug)]
struct Mid {
    first: Resnet,
    attended: Option<(Transformer, Resnet)>,
}

/// All layers.
#[derive(Clone, Debug)]
pub(super) struct Layers {
    embed: Embed,
    conv_in: Conv,
    down: Vec<Level<Downsample>>,
    mid: Option<Mid>,
    up: Vec<Level<Upsample>>,
    conv_norm_out: GroupNorm,
    conv_out: Conv,
}

impl Layers {
    /// Of a configuration that has been checked.
    pub fn new(b: &mut Builder, config: &Config) -> Self {
        let (channels, coarsest) = (&config.channels, config.levels() - 1);
        let conv_in = Conv::same(b, "conv_in", config.in_channels, channels[0], config.conv_in_kernel, Place::Inner);
        let embed = Embed::new(b, config);
        // The channels of every skip connection, and of the activation that runs beside them.
        let (mut skips, mut hidden) = (vec![channels[0]], channels[0]);
        let mut down = Vec::with_capacity(config.levels());
        for (level, &c) in channels.iter().enumerate() {
            let name = format!("down_blocks.{level}");
            let mut layers = Vec::with_capacity(config.layers[level]);
            for j in 0..config.layers[level] {
                layers.push(Layer::new(b, config, &name, j, level, config.down_blocks[level], hidden));
                hidden = c;
                skips.push(c);
            }
            let pad_before = usize::from(config.downsample_padding == DownsamplePadding::Symmetric);
            let sampler = (level < coarsest).then(|| {
                skips.push(c);
                Downsample::new(b, &format!("{name}.downsamplers.0"), c, pad_before)
            });
            down.push(Level { layers, sampler });
        }
        let mid = (config.mid_block != MidBlock::Absent).then(|| {
            let scale = config.mid_block_scale_factor;
            let first = resnet(b, config, "mid_block.resnets.0", [hidden; 2], scale);
            let attended = (config.mid_block == MidBlock::CrossAttention).then(|| {
                let transformer = transformer(b, config, "mid_block.attentions.0", coarsest);
                (transformer, resnet(b, config, "mid_block.resnets.1", [hidden; 2], scale))
            });
            Mid { first, attended }
        });
        let mut up = Vec::with_capacity(config.levels());
        for (position, level) in (0..config.levels()).rev().enumerate() {
            let name = format!("up_blocks.{position}");
            let mut layers = Vec::with_capacity(config.layers[level] + 1);
            for j in 0..=config.layers[level] {
                let skip = skips.pop().expect("the way down makes every skip that the way up takes");
                layers.push(Layer::new(b, config, &name, j, level, config.up_blocks[position], hidden + skip));
                hidden = channels[level];
            }
            let sampler = (level > 0).then(|| Upsample::new(b, &format!("{name}.upsamplers.0"), hidden, None));
            up.push(Level { layers, sampler });
        }
        let (eps, act) = (config.norm_eps as f32, config.activation.act());
        let conv_norm_out = GroupNorm::new(b, "conv_norm_out", hidden, config.norm_num_groups, eps, act);
        let conv_out =
            Conv::same(b, "conv_out", hidden, config.out_channels, config.conv_out_kernel, Place::EndsResidual);
        Self { embed, conv_in, down, mid, up, conv_norm_out, conv_out }
    }

    pub fn forward(&self, p: &Pass<'_>, x: Tensor, times: &[f64], guidance: Option<f64>, texts: &Texts) -> Tensor {
        let given = Given { p, e: self.embed.forward(p, times, guidance), texts };
        let mut hidden = Arc::new(self.conv_in.forward(p, &x));
        drop(x);
        let mut skips = vec![hidden.clone()];
        for level in &self.down {
            for layer in &level.layers {
                hidden = layer.forward(&given, hidden);
                skips.push(hidden.clone());
            }
            if let Some(sampler) = &level.sampler {
                hidden = Arc::new(sampler.forward(p, &hidden, &mut Tape::forgetting()));
                skips.push(hidden.clone());
            }
        }
        if let Some(mid) = &self.mid {
            hidden = Arc::new(mid.first.forward(p, hidden, &given.e, &mut Tape::forgetting()));
            if let Some((transformer, second)) = &mid.attended {
                hidden = Arc::new(transformer.forward(p, &hidden, texts));
                hidden = Arc::new(second.forward(p, hidden, &given.e, &mut Tape::forgetting()));
            }
        }
        for level in &self.up {
            for layer in &level.layers {
                let skip = skips.pop().expect("the way down makes every skip that the way up takes");
                hidden = Arc::new(concat(p.pool, &hidden, &skip));
                drop(skip);
                hidden = layer.forward(&given, hidden);
            }
            if let Some(sampler) = &level.sampler {
                // A side that could not be halved is restored to what it was.
                let next = skips.last().expect("a level that doubles the image has another after it");
                hidden = Arc::new(sampler.forward_to(p, &hidden, [next.h, next.w]));
            }
        }
        let (a, _) = self.conv_norm_out.forward(p, &hidden, None);
        self.conv_out.forward(p, &a)
    }

    pub fn describe(&self, s: &mut Summary, size: [usize; 2]) {
        self.embed.describe(s);
        let mut size = self.conv_in.describe(s, size);
        let mut sizes = Vec::new();
        for level in &self.down {
            level.layers.iter().for_each(|layer| layer.describe(s, size));
            if let Some(sampler) = &level.sampler {
                sizes.push(size);
                size = sampler.describe(s, size);
            }
        }
        if let Some(mid) = &self.mid {
            mid.first.describe(s, size);
            if let Some((transformer, second)) = &mid.attended {
                transformer.describe(s, size);
                second.describe(s, size);
            }
        }
        for level in &self.up {
            level.layers.iter().for_each(|layer| layer.describe(s, size));
            if let Some(sampler) = &level.sampler {
                size = sizes.pop().expect("the image is halved as often as it is doubled");
                sampler.describe_to(s, size);
            }
        }
        self.conv_norm_out.describe(s, size);
        self.conv_out.describe(s, size);
    }
}
