//! The layers that follow from a configuration, with the channels, groups and heads of each; what does not fit is found here.
//!
//! The way down puts every output on a stack of skip connections, the way up takes them from it. As in diffusers, how many
//! a block takes and how many channels it expects follow from the configuration alone, so that only some sequences of
//! blocks fit.

use tweedie_kernels::rescale::Edge;

use super::config::{Block, Config, DownsamplePadding, MidAttention, MidBlock, Sampling, TimeScaleShift, inconsistent};
use crate::UnetError;
use crate::layers::{AttentionShape, Conditioning, Rescaling, ResnetShape, Shortcut};

/// A residual block and the attention after it, if any.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LayerPlan {
    pub resnet: ResnetShape,
    pub attention: Option<AttentionShape>,
}

/// A level on the way down.
#[derive(Clone, Debug)]
pub(crate) struct DownPlan {
    pub layers: Vec<LayerPlan>,
    pub sampler: Option<DownSampler>,
}

/// How a level halves the image.
#[derive(Clone, Copy, Debug)]
pub(crate) enum DownSampler {
    Conv {
        c: usize,
        pad_before: usize,
    },
    Resnet(ResnetShape),
    /// Beside a path of the image, which a 1x1 convolution adds.
    Skip(ResnetShape),
    /// By a filter; the result is no skip connection.
    Filter,
}

/// A level on the way up.
#[derive(Clone, Debug)]
pub(crate) struct UpPlan {
    /// Each layer with the channels of its hidden input, where a skip connection is joined to that.
    pub layers: Vec<(Option<usize>, LayerPlan)>,
    /// Skip connections that the level takes beside those that it joins.
    pub unread: usize,
    pub sampler: Option<UpSampler>,
    /// Whether the path of the image, begun by a level before, is doubled in size here.
    pub grows_image: bool,
}

/// How a level doubles the image.
#[derive(Clone, Copy, Debug)]
pub(crate) enum UpSampler {
    /// `size` is the typical one of the input, if there is one.
    Conv {
        c: usize,
        size: Option<[usize; 2]>,
    },
    Resnet(ResnetShape),
    /// Beside a path of the image, to which a normalisation of so many groups and a convolution add.
    Skip {
        resnet: ResnetShape,
        groups: usize,
    },
    Filter,
}

/// The middle.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MidPlan {
    pub first: LayerPlan,
    pub second: ResnetShape,
}

/// The way down and the middle.
#[derive(Clone, Debug)]
pub(crate) struct EncoderPlan {
    pub down: Vec<DownPlan>,
    pub mid: Option<MidPlan>,
    skips: Vec<Skip>,
}

/// A whole network.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub encoder: EncoderPlan,
    pub up: Vec<UpPlan>,
    /// Skip connections that are left at the end.
    pub unread: usize,
    /// Groups of the last normalisation.
    pub out_groups: usize,
    /// What the sides of an image are at least.
    pub least_side: usize,
}

/// Channels of the images that [`Block::Skip`] carries along.
pub(crate) const IMAGE_CHANNELS: usize = 3;

/// An output of the way down: its channels, and how many times it has been halved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Skip {
    c: usize,
    level: usize,
}

/// The number of groups that blocks of their own rule have: a quarter of the channels, at most 32.
fn quarter(c: usize) -> usize {
    (c / 4).min(32)
}

/// The number of groups of 32 channels.
fn of_32(c: usize) -> usize {
    c / 32
}

impl EncoderPlan {
    pub fn new(config: &Config) -> Result<Self, UnetError> {
        let mut skips = vec![Skip { c: config.channels[0], level: 0 }];
        let down = (0..config.levels()).map(|level| config.down(level, &mut skips)).collect::<Result<_, _>>()?;
        Ok(Self { down, mid: config.mid()?, skips })
    }

    /// How many skip connections the way down makes.
    pub fn skips(&self) -> usize {
        self.skips.len()
    }

    /// The same layers without a time embedding.
    pub fn timeless(mut self) -> Self {
        for level in &mut self.down {
            level.layers.iter_mut().for_each(|layer| layer.resnet.conditioning = Conditioning::Absent);
            if let Some(DownSampler::Resnet(resnet) | DownSampler::Skip(resnet)) = &mut level.sampler {
                resnet.conditioning = Conditioning::Absent;
            }
        }
        if let Some(mid) = &mut self.mid {
            mid.first.resnet.conditioning = Conditioning::Absent;
            mid.second.conditioning = Conditioning::Absent;
        }
        self
    }
}

impl Plan {
    pub fn new(config: &Config) -> Result<Self, UnetError> {
        let encoder = EncoderPlan::new(config)?;
        let mut skips = encoder.skips.clone();
        let mut hidden = Skip { c: config.channels[config.levels() - 1], level: config.levels() - 1 };
        let mut image = None;
        let up = (0..config.levels())
            .map(|position| config.up(position, &mut hidden, &mut skips, &mut image))
            .collect::<Result<_, _>>()?;
        if let Some(level) = image
            && (level != 0 || config.out_channels != IMAGE_CHANNELS)
        {
            return Err(misfit(format!(
                "`up_block_types` ends with an image of {IMAGE_CHANNELS} channels, halved {level} times, to be added to the \
                 output; it takes `out_channels` 3, and only SkipUpBlock2D and AttnSkipUpBlock2D after the first of these"
            )));
        }
        let out_groups = config.out_groups(config.channels[0])?;
        // The filters of KUpBlock2D reflect the image at its edge, which takes two pixels.
        let reflected = config.up_blocks.iter().zip((1..config.levels()).rev());
        let reflected = reflected.filter(|(block, _)| **block == Block::KDiffusion).map(|(_, level)| 2 << level);
        let least_side = reflected.max().unwrap_or(1);
        Ok(Self { encoder, up, unread: skips.len(), out_groups, least_side })
    }
}

fn misfit(what: String) -> UnetError {
    inconsistent(format!("the blocks do not fit together: {what}; diffusers fails on them as well"))
}

impl Config {
    /// Whether `groups` are a divisor of `c` channels, which `what` has.
    fn divides(&self, c: usize, groups: usize, what: &str) -> Result<(), UnetError> {
        if groups != 0 && c.is_multiple_of(groups) {
            return Ok(());
        }
        Err(inconsistent(if self.norm_num_groups == Some(groups) {
            format!(
                "`norm_num_groups` {groups} does not divide {c} channels, which one of the layers has ({what}); \
                 choose a divisor of every entry of `block_out_channels`"
            )
        } else {
            format!(
                "{what} normalises {c} channels in {groups} groups, by a rule of diffusers that depends on \
                 `block_out_channels`, and cannot; choose other channels"
            )
        }))
    }

    /// Groups of the last normalisation, which has `c` channels.
    pub(crate) fn out_groups(&self, c: usize) -> Result<usize, UnetError> {
        let groups = self.norm_num_groups.unwrap_or_else(|| quarter(c));
        self.divides(c, groups, "the last normalisation")?;
        Ok(groups)
    }

    fn conditioning(&self) -> Conditioning {
        match self.time_scale_shift {
            TimeScaleShift::Default => Conditioning::Added,
            TimeScaleShift::ScaleShift => Conditioning::ScaleShift,
        }
    }

    /// A residual block of a level; `groups` counts those of its two normalisations where the block has a rule of its own.
    fn resnet(
        &self,
        block: Block,
        name: &str,
        [c_in, c_out]: [usize; 2],
        groups: [usize; 2],
    ) -> Result<ResnetShape, UnetError> {
        let groups = match (block, self.norm_num_groups) {
            (Block::Skip | Block::AttentionSkip | Block::KDiffusion, _) => groups,
            (_, Some(groups)) => [groups; 2],
            (_, None) => {
                return Err(inconsistent(format!(
                    "`norm_num_groups` should be a whole number from 1 for {name}, found null; only Skip and K blocks have \
                     a rule of their own"
                )));
            }
        };
        self.divides(c_in, groups[0], name)?;
        self.divides(c_out, groups[1], name)?;
        let (conditioning, shortcut) = match block {
            Block::KDiffusion => (Conditioning::Adaptive, Shortcut::IfNeededUnbiased),
            _ => (self.conditioning(), Shortcut::IfNeeded),
        };
        // Of two summands of equal variance, so that theirs is kept (Song et al. 2021, appendix H).
        let output_scale = if block.carries_image() { std::f32::consts::SQRT_2 } else { 1.0 };
        Ok(ResnetShape { c_in, c_out, groups, conditioning, output_scale, rescaling: None, shortcut })
    }

    /// A residual block that resamples `c` channels.
    fn resampling(&self, block: Block, name: &str, c: usize, rescaling: Rescaling) -> Result<ResnetShape, UnetError> {
        let shape = self.resnet(block, name, [c, c], [quarter(c); 2])?;
        let shortcut = if block.carries_image() { Shortcut::Always } else { shape.shortcut };
        Ok(ResnetShape { rescaling: Some(rescaling), shortcut, ..shape })
    }

    /// The attention of a level of `c` channels, if it has any.
    fn attention(&self, block: Block, name: &str, c: usize) -> Result<Option<AttentionShape>, UnetError> {
        let (groups, output_scale) = match block {
            Block::Attention => (self.norm_num_groups.unwrap_or(0), 1.0),
            Block::AttentionSkip => (32, std::f32::consts::SQRT_2),
            _ => return Ok(None),
        };
        self.divides(c, groups, &format!("the attention of {name}"))?;
        Ok(Some(self.heads(c, Some(groups), output_scale)?))
    }

    pub(crate) fn heads(
        &self,
        c: usize,
        groups: Option<usize>,
        output_scale: f32,
    ) -> Result<AttentionShape, UnetError> {
        let width = self.attention_head_dim.unwrap_or(c);
        match c.checked_div(width) {
            Some(heads) if heads > 0 => Ok(AttentionShape { c, heads, width, groups, output_scale }),
            _ => Err(inconsistent(format!(
                "`attention_head_dim` (channels per head) should be from 1 to the {c} channels of every level with \
                 attention, found {width}"
            ))),
        }
    }

    fn down(&self, level: usize, skips: &mut Vec<Skip>) -> Result<DownPlan, UnetError> {
        let (block, c) = (self.down_blocks[level], self.channels[level]);
        let (name, before) = (block.down_name(), self.channels[level.saturating_sub(1)]);
        let layers = (0..self.layers_per_block)
            .map(|j| {
                let c_in = if j == 0 { before } else { c };
                let groups = if block == Block::KDiffusion { [c_in, c].map(of_32) } else { [c_in, c].map(quarter) };
                skips.push(Skip { c, level });
                let resnet = self.resnet(block, name, [c_in, c], groups)?;
                Ok(LayerPlan { resnet, attention: self.attention(block, name, c)? })
            })
            .collect::<Result<_, UnetError>>()?;
        if level + 1 == self.levels() {
            return Ok(DownPlan { layers, sampler: None });
        }
        let convolution = DownSampler::Conv {
            c,
            pad_before: match self.downsample_padding {
                DownsamplePadding::Asymmetric => 0,
                DownsamplePadding::Symmetric => 1,
            },
        };
        let residual = |rescaling| self.resampling(block, name, c, rescaling);
        let sampler = match (block, self.downsampling) {
            (Block::Plain, _) | (Block::Attention, Sampling::Conv) => convolution,
            (Block::Resnet, _) | (Block::Attention, Sampling::Resnet) => {
                DownSampler::Resnet(residual(Rescaling::Mean)?)
            }
            (Block::Skip | Block::AttentionSkip, _) => {
                if self.in_channels != IMAGE_CHANNELS {
                    return Err(misfit(format!(
                        "{name} takes images of three channels, `in_channels` is {}",
                        self.in_channels
                    )));
                }
                if !self.down_blocks[..level].iter().all(|block| block.carries_image()) {
                    return Err(misfit(format!(
                        "{name} at position {level} of `down_block_types` finds an image that the levels before have not \
                         halved as often as the activations"
                    )));
                }
                DownSampler::Skip(residual(Rescaling::FirDown(Edge::Zero))?)
            }
            (Block::KDiffusion, _) => DownSampler::Filter,
        };
        if !matches!(sampler, DownSampler::Filter) {
            skips.push(Skip { c, level: level + 1 });
        }
        Ok(DownPlan { layers, sampler: Some(sampler) })
    }

    fn mid(&self) -> Result<Option<MidPlan>, UnetError> {
        if self.mid_block == MidBlock::Absent {
            return Ok(None);
        }
        let c = self.channels[self.levels() - 1];
        let output_scale = self.mid_block_scale_factor as f32;
        let groups = self.norm_num_groups.unwrap_or_else(|| quarter(c));
        self.divides(c, groups, "UNetMidBlock2D")?;
        let resnet = ResnetShape {
            c_in: c,
            c_out: c,
            groups: [groups; 2],
            conditioning: self.conditioning(),
            output_scale,
            rescaling: None,
            shortcut: Shortcut::IfNeeded,
        };
        let attention = match self.mid_attention {
            MidAttention::Without => None,
            MidAttention::With => {
                let groups = match (self.attn_norm_num_groups, self.time_scale_shift) {
                    (Some(groups), _) if groups == 0 || !c.is_multiple_of(groups) => {
                        return Err(inconsistent(format!(
                            "`attn_norm_num_groups` {groups} does not divide the last of `block_out_channels`, {c}"
                        )));
                    }
                    (Some(groups), _) => Some(groups),
                    (None, TimeScaleShift::Default) => Some(groups),
                    (None, TimeScaleShift::ScaleShift) => None,
                };
                Some(self.heads(c, groups, output_scale)?)
            }
        };
        Ok(Some(MidPlan { first: LayerPlan { resnet, attention }, second: resnet }))
    }

    /// `position` counts from the coarsest level; `image` tells how often the path of the image has been halved.
    fn up(
        &self,
        position: usize,
        hidden: &mut Skip,
        skips: &mut Vec<Skip>,
        image: &mut Option<usize>,
    ) -> Result<UpPlan, UnetError> {
        let level = self.levels() - 1 - position;
        let (block, c) = (self.up_blocks[position], self.channels[level]);
        let (name, after) = (block.up_name(), self.channels[level.saturating_sub(1)]);
        let mut layers = Vec::with_capacity(self.layers_per_block + 1);
        let mut unread = 0;
        let mut join = |hidden: Skip, expected: [usize; 2]| {
            let found = skips.pop();
            match found {
                Some(skip) if skip.level == hidden.level && [hidden.c, skip.c] == expected => Ok(()),
                _ => Err(misfit(format!(
                    "{name} at position {position} of `up_block_types` expects {} channels and a skip connection of {}, at \
                     the same size, and finds {hidden:?} and {found:?} (c channels, halved level times)",
                    expected[0], expected[1]
                ))),
            }
        };
        if block == Block::KDiffusion {
            // Only the last of the skip connections that the block takes is read.
            join(*hidden, [c, c])?;
            unread = self.layers_per_block - 1;
            for j in 0..self.layers_per_block {
                let (c_in, hidden) = if j == 0 { (2 * c, Some(c)) } else { (c, None) };
                let c_out = if j + 1 == self.layers_per_block { after } else { c };
                let resnet = self.resnet(block, name, [c_in, c_out], [of_32(c_in), of_32(c)])?;
                layers.push((hidden, LayerPlan { resnet, attention: None }));
            }
            if unread > skips.len() {
                return Err(misfit(format!(
                    "{name} at position {position} takes more skip connections than there are"
                )));
            }
            skips.truncate(skips.len() - unread);
            hidden.c = after;
        } else {
            for j in 0..=self.layers_per_block {
                let before = if j > 0 || position == 0 { c } else { self.channels[level + 1] };
                let skip = if j == self.layers_per_block { after } else { c };
                join(*hidden, [before, skip])?;
                hidden.c = c;
                let groups = match block {
                    // Thus in diffusers: only the skip's channels are divided.
                    Block::AttentionSkip => (before + skip / 4).min(32),
                    _ => quarter(before + skip),
                };
                let resnet = self.resnet(block, name, [before + skip, c], [groups, quarter(c)])?;
                let last = j == self.layers_per_block;
                let attends = block != Block::AttentionSkip || last;
                let attention = if attends { self.attention(block, name, c)? } else { None };
                layers.push((Some(before), LayerPlan { resnet, attention }));
            }
        }
        let residual = |rescaling| self.resampling(block, name, c, rescaling);
        let sampler = if level == 0 {
            None
        } else {
            Some(match (block, self.upsampling) {
                (Block::Plain, _) | (Block::Attention, Sampling::Conv) => {
                    let size = self.sample_size.map(|size| size.map(|side| side >> level));
                    UpSampler::Conv { c, size }
                }
                (Block::Resnet, _) | (Block::Attention, Sampling::Resnet) => {
                    UpSampler::Resnet(residual(Rescaling::Nearest)?)
                }
                (Block::Skip | Block::AttentionSkip, _) => {
                    UpSampler::Skip { resnet: residual(Rescaling::FirUp(Edge::Zero))?, groups: quarter(c) }
                }
                (Block::KDiffusion, _) => UpSampler::Filter,
            })
        };
        let grows_image = block.carries_image() && image.is_some();
        if block.carries_image() {
            let grown = image.map(|halved| halved - 1);
            if sampler.is_some() && grown.is_some_and(|halved| halved != level) {
                return Err(misfit(format!(
                    "{name} at position {position} of `up_block_types` finds an image of another size than its activations"
                )));
            }
            *image = if sampler.is_some() { Some(level) } else { grown };
        }
        hidden.level = level.saturating_sub(1);
        Ok(UpPlan { layers, unread, sampler, grows_image })
    }
}
