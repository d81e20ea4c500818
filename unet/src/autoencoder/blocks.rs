//! The layers of the autoencoder, forward alone.

use std::sync::Arc;

use tweedie_kernels::act::Act;

use super::config::Config;
use crate::layers::{
    Attention, AttentionShape, Conditioning, Conv, Downsample, Embedded, GroupNorm, Place, Resnet, ResnetCommon,
    ResnetShape, Shortcut, Upsample,
};
use crate::summary::Summary;
use crate::tensor::{Tape, Tensor};
use crate::weights::{Builder, Pass};

/// Added to the variance in every normalisation; no key of the configuration tells.
const EPS: f32 = 1e-6;

fn resnet(b: &mut Builder, config: &Config, name: &str, c_in: usize, c_out: usize) -> Resnet {
    let shape = ResnetShape {
        c_in,
        c_out,
        groups: [config.norm_num_groups; 2],
        conditioning: Conditioning::Absent,
        output_scale: 1.0,
        rescaling: None,
        shortcut: Shortcut::IfNeeded,
    };
    let common = ResnetCommon { embedding: 0, eps: EPS, act: config.activation.act(), dropout: 0.0 };
    Resnet::new(b, name, shape, common)
}

/// What stands for the embedding of a time that there is not.
fn timeless(p: &Pass<'_>, n: usize) -> Embedded {
    let nothing = Arc::new(p.pool.tensor([n, 1, 1, 0]));
    Embedded { raw: nothing.clone(), active: nothing }
}

/// The residual blocks of a level, with what changes the size after them.
#[derive(Clone, Debug)]
struct Level<S> {
    resnets: Vec<Resnet>,
    sampler: Option<S>,
}

impl<S> Level<S> {
    fn new(
        b: &mut Builder,
        config: &Config,
        name: &str,
        [c_in, c]: [usize; 2],
        layers: usize,
        sampler: impl FnOnce(&mut Builder) -> Option<S>,
    ) -> Self {
        let resnets = (0..layers).map(|j| {
            let c_in = if j == 0 { c_in } else { c };
            resnet(b, config, &format!("{name}.resnets.{j}"), c_in, c)
        });
        let resnets = resnets.collect();
        Self { resnets, sampler: sampler(b) }
    }

    fn forward(&self, p: &Pass<'_>, mut x: Arc<Tensor>, e: &Embedded) -> Arc<Tensor> {
        for resnet in &self.resnets {
            x = Arc::new(resnet.forward(p, x, e, &mut Tape::forgetting()));
        }
        x
    }

    fn describe(&self, s: &mut Summary, size: [usize; 2]) {
        for resnet in &self.resnets {
            resnet.describe(s, size);
        }
    }
}

/// `UNetMidBlock2D` with one head that is as wide as the image is deep.
#[derive(Clone, Debug)]
struct Mid {
    first: Resnet,
    attention: Option<Attention>,
    second: Resnet,
}

impl Mid {
    fn new(b: &mut Builder, config: &Config, name: &str) -> Self {
        let c = config.channels[config.levels() - 1];
        let first = resnet(b, config, &format!("{name}.resnets.0"), c, c);
        let groups = Some(config.norm_num_groups);
        let shape = AttentionShape { c, heads: 1, width: c, groups, output_scale: 1.0 };
        let attention = config.mid_attention.then(|| Attention::new(b, &format!("{name}.attentions.0"), shape, EPS));
        Self { first, attention, second: resnet(b, config, &format!("{name}.resnets.1"), c, c) }
    }

    fn forward(&self, p: &Pass<'_>, x: Arc<Tensor>, e: &Embedded) -> Arc<Tensor> {
        let tape = &mut Tape::forgetting();
        let mut h = Arc::new(self.first.forward(p, x, e, tape));
        if let Some(attention) = &self.attention {
            h = Arc::new(attention.forward(p, h, tape));
        }
        Arc::new(self.second.forward(p, h, e, tape))
    }

    fn describe(&self, s: &mut Summary, size: [usize; 2]) {
        self.first.describe(s, size);
        if let Some(attention) = &self.attention {
            attention.describe(s, size);
        }
        self.second.describe(s, size);
    }
}

/// What both halves end with.
#[derive(Clone, Debug)]
struct End {
    norm: GroupNorm,
    conv: Conv,
}

impl End {
    fn new(b: &mut Builder, config: &Config, half: &str, c: usize, c_out: usize) -> Self {
        let norm = GroupNorm::new(b, &format!("{half}.conv_norm_out"), c, config.norm_num_groups, EPS, Act::Silu);
        Self { norm, conv: Conv::same(b, &format!("{half}.conv_out"), c, c_out, 3, Place::Inner) }
    }

    fn forward(&self, p: &Pass<'_>, x: &Tensor) -> Tensor {
        let (a, _) = self.norm.forward(p, x, None);
        self.conv.forward(p, &a)
    }

    fn describe(&self, s: &mut Summary, size: [usize; 2]) {
        self.norm.describe(s, size);
        self.conv.describe(s, size);
    }
}

/// From images to the moments of their latents.
#[derive(Clone, Debug)]
pub(super) struct Encoder {
    conv_in: Conv,
    down: Vec<Level<Downsample>>,
    mid: Mid,
    end: End,
    quant_conv: Option<Conv>,
}

impl Encoder {
    pub fn new(b: &mut Builder, config: &Config) -> Self {
        let (channels, moments) = (&config.channels, 2 * config.latent_channels);
        let conv_in = Conv::same(b, "encoder.conv_in", config.in_channels, channels[0], 3, Place::Inner);
        let down = channels.iter().enumerate().map(|(level, &c)| {
            let name = format!("encoder.down_blocks.{level}");
            let widths = [channels[level.saturating_sub(1)], c];
            Level::new(b, config, &name, widths, config.layers_per_block, |b| {
                let last = level + 1 == channels.len();
                (!last).then(|| Downsample::new(b, &format!("{name}.downsamplers.0"), c, 0))
            })
        });
        let down = down.collect();
        let mid = Mid::new(b, config, "encoder.mid_block");
        let end = End::new(b, config, "encoder", channels[channels.len() - 1], moments);
        let quant_conv = config.quant_conv.then(|| Conv::same(b, "quant_conv", moments, moments, 1, Place::Inner));
        Self { conv_in, down, mid, end, quant_conv }
    }

    pub fn forward(&self, p: &Pass<'_>, x: Tensor) -> Tensor {
        let e = timeless(p, x.n);
        let mut h = Arc::new(self.conv_in.forward(p, &x));
        drop(x);
        for level in &self.down {
            h = level.forward(p, h, &e);
            if let Some(sampler) = &level.sampler {
                h = Arc::new(sampler.forward(p, &h, &mut Tape::forgetting()));
            }
        }
        let h = self.mid.forward(p, h, &e);
        let moments = self.end.forward(p, &h);
        match &self.quant_conv {
            Some(conv) => conv.forward(p, &moments),
            None => moments,
        }
    }

    /// Returns the size of the latents.
    pub fn describe(&self, s: &mut Summary, size: [usize; 2]) -> [usize; 2] {
        let mut size = self.conv_in.describe(s, size);
        for level in &self.down {
            level.describe(s, size);
            if let Some(sampler) = &level.sampler {
                size = sampler.describe(s, size);
            }
        }
        self.mid.describe(s, size);
        self.end.describe(s, size);
        if let Some(conv) = &self.quant_conv {
            conv.describe(s, size);
        }
        size
    }
}

/// From latents to images.
#[derive(Clone, Debug)]
pub(super) struct Decoder {
    post_quant_conv: Option<Conv>,
    conv_in: Conv,
    mid: Mid,
    up: Vec<Level<Upsample>>,
    end: End,
}

impl Decoder {
    pub fn new(b: &mut Builder, config: &Config) -> Self {
        let (channels, latent, coarsest) = (&config.channels, config.latent_channels, config.levels() - 1);
        let post_quant_conv =
            config.post_quant_conv.then(|| Conv::same(b, "post_quant_conv", latent, latent, 1, Place::Inner));
        let conv_in = Conv::same(b, "decoder.conv_in", latent, channels[coarsest], 3, Place::Inner);
        let mid = Mid::new(b, config, "decoder.mid_block");
        let up = (0..config.levels()).rev().enumerate().map(|(position, level)| {
            let name = format!("decoder.up_blocks.{position}");
            let c = channels[level];
            let widths = [channels[(level + 1).min(coarsest)], c];
            Level::new(b, config, &name, widths, config.layers_per_block + 1, |b| {
                (level > 0).then(|| Upsample::new(b, &format!("{name}.upsamplers.0"), c, None))
            })
        });
        let up = up.collect();
        let end = End::new(b, config, "decoder", channels[0], config.out_channels);
        Self { post_quant_conv, conv_in, mid, up, end }
    }

    pub fn forward(&self, p: &Pass<'_>, mut z: Tensor) -> Tensor {
        let e = timeless(p, z.n);
        if let Some(conv) = &self.post_quant_conv {
            z = conv.forward(p, &z);
        }
        let h = Arc::new(self.conv_in.forward(p, &z));
        drop(z);
        let mut h = self.mid.forward(p, h, &e);
        for level in &self.up {
            h = level.forward(p, h, &e);
            if let Some(sampler) = &level.sampler {
                h = Arc::new(sampler.forward(p, &h, &mut Tape::forgetting()));
            }
        }
        self.end.forward(p, &h)
    }

    pub fn describe(&self, s: &mut Summary, mut size: [usize; 2]) {
        if let Some(conv) = &self.post_quant_conv {
            conv.describe(s, size);
        }
        self.conv_in.describe(s, size);
        self.mid.describe(s, size);
        for level in &self.up {
            level.describe(s, size);
            if let Some(sampler) = &level.sampler {
                size = sampler.describe(s, size);
            }
        }
        self.end.describe(s, size);
    }
}
