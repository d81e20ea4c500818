//! The configuration of the residual U-Net, in the format of diffusers' `UNet2DModel`.

use tweedie_kernels::act::Act;

use super::plan::{EncoderPlan, Plan};
use crate::UnetError;
use crate::json::LARGEST;

/// The `_class_name` of this network.
pub(crate) const CLASS: &str = "UNet2DModel";

/// More parameters than any published network of this family has: a larger configuration is a mistake.
const MOST_PARAMETERS: f64 = 4e9;

/// What the blocks of a level are made of, and how the level changes the size of the image.
///
/// Any sequence is allowed in which every level on the way up finds the skip connections that it takes, as diffusers' code
/// asks for: [`Config::validate`] tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block {
    /// Residual blocks, then a convolution: `DownBlock2D`, `UpBlock2D`.
    Plain,
    /// Residual blocks, each followed by self-attention, then what [`Sampling`] says: `AttnDownBlock2D`, `AttnUpBlock2D`.
    Attention,
    /// Residual blocks, of which the last resamples: `ResnetDownsampleBlock2D`, `ResnetUpsampleBlock2D`.
    Resnet,
    /// Residual blocks beside a path of the image itself, both resampled by a FIR filter (Song et al. 2021, appendix H):
    /// `SkipDownBlock2D`, `SkipUpBlock2D`. Images have three channels.
    Skip,
    /// [`Block::Skip`] with self-attention: `AttnSkipDownBlock2D`, `AttnSkipUpBlock2D`.
    AttentionSkip,
    /// Residual blocks with every normalisation scaled and shifted by the time embedding, without a skip connection at the
    /// resampling: `KDownBlock2D`, `KUpBlock2D`.
    KDiffusion,
}

impl Block {
    /// Every kind.
    pub(crate) const ALL: [Self; 6] =
        [Self::Plain, Self::Attention, Self::Resnet, Self::Skip, Self::AttentionSkip, Self::KDiffusion];

    /// Its name in `down_block_types`.
    pub fn down_name(self) -> &'static str {
        match self {
            Self::Plain => "DownBlock2D",
            Self::Attention => "AttnDownBlock2D",
            Self::Resnet => "ResnetDownsampleBlock2D",
            Self::Skip => "SkipDownBlock2D",
            Self::AttentionSkip => "AttnSkipDownBlock2D",
            Self::KDiffusion => "KDownBlock2D",
        }
    }

    /// Its name in `up_block_types`.
    pub fn up_name(self) -> &'static str {
        match self {
            Self::Plain => "UpBlock2D",
            Self::Attention => "AttnUpBlock2D",
            Self::Resnet => "ResnetUpsampleBlock2D",
            Self::Skip => "SkipUpBlock2D",
            Self::AttentionSkip => "AttnSkipUpBlock2D",
            Self::KDiffusion => "KUpBlock2D",
        }
    }

    /// Whether a path of the image itself runs beside it.
    pub(crate) fn carries_image(self) -> bool {
        matches!(self, Self::Skip | Self::AttentionSkip)
    }
}

/// How a level of [`Block::Attention`] halves or doubles the image: `downsample_type`, `upsample_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sampling {
    /// A convolution of stride 2, or every pixel four times and a convolution: `conv`.
    Conv,
    /// A residual block that takes means of 2x2 pixels, or every pixel four times, in both its branches (Dhariwal & Nichol
    /// 2021, section 3): `resnet`.
    Resnet,
}

/// The function of the time that the time embedding begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeEmbedding {
    /// Sines and cosines of fixed frequencies: `positional`.
    Positional,
    /// Sines and cosines of the logarithm at random frequencies, which are stored; the network's output is divided by the
    /// time (Song et al. 2021, appendix G): `fourier`.
    Fourier,
    /// A learned vector for each of the steps 0 to `steps - 1`: `learned`.
    Learned {
        /// Rows of the table: `num_train_timesteps`.
        steps: usize,
    },
}

/// The activation of the residual blocks: `act_fn`. The time embedding and the last normalisation always take SiLU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + exp(-x))`: `silu`, `swish`.
    Silu,
    /// `x tanh(ln(1 + exp(x)))`: `mish`.
    Mish,
    /// `x Phi(x)`: `gelu`.
    Gelu,
    /// `max(x, 0)`: `relu`.
    Relu,
}

impl Activation {
    pub(crate) fn act(self) -> Act {
        match self {
            Self::Silu => Act::Silu,
            Self::Mish => Act::Mish,
            Self::Gelu => Act::Gelu,
            Self::Relu => Act::Relu,
        }
    }
}

/// How the time embedding enters a residual block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeScaleShift {
    /// Added before the second normalisation (Ho et al. 2020).
    Default,
    /// Scales and shifts the second normalisation: AdaGN (Dhariwal & Nichol 2021).
    ScaleShift,
}

/// The order of the two halves of the sinusoidal time embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SinusoidOrder {
    /// Sines first: `flip_sin_to_cos` false.
    SinCos,
    /// Cosines first: `flip_sin_to_cos` true.
    CosSin,
}

/// Where a downsampling convolution pads its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DownsamplePadding {
    /// Below and to the right: `downsample_padding` 0.
    Asymmetric,
    /// On all four sides: `downsample_padding` 1.
    Symmetric,
}

/// Whether there is a middle block: `mid_block_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MidBlock {
    /// `UNetMidBlock2D`.
    Present,
    /// null.
    Absent,
}

/// Whether the middle block contains self-attention: `add_attention`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MidAttention {
    /// Two residual blocks with attention between them.
    With,
    /// Two residual blocks.
    Without,
}

/// The range of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputRange {
    /// Taken as it is.
    AsIs,
    /// In [0, 1], mapped to [-1, 1] by the network: `center_input_sample` true.
    Centered,
}

/// The class embedding, which is added to the time embedding: `class_embed_type` and `num_class_embeds`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Classes {
    /// A learned vector for each label: type null.
    Table {
        /// Rows of the table: `num_class_embeds`.
        rows: usize,
        /// Whether the last row is the null condition, which is never trained: `_tweedie_null_class` is its index.
        null: Null,
    },
    /// The label is embedded as the time is, with layers of its own: type `timestep`. Every sample needs a label.
    Timestep {
        /// How many labels there are: `num_class_embeds`, which diffusers does not read here. `None` is every number that the
        /// time embedding takes.
        labels: Option<usize>,
    },
}

impl Classes {
    /// The row of the null condition.
    pub(crate) fn null_row(self) -> Option<usize> {
        match self {
            Self::Table { rows, null: Null::LastRow } => Some(rows - 1),
            _ => None,
        }
    }
}

/// Whether a class embedding has a row for the null condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Null {
    /// The last row, frozen at zero.
    LastRow,
    /// None: every sample needs a label.
    Absent,
}

/// A configuration of [`Residual`](crate::Residual).
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Height and width that the network was trained for; other sizes are allowed.
    pub sample_size: Option<[usize; 2]>,
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Range of the input.
    pub input_range: InputRange,
    /// The function of the time that the time embedding begins with.
    pub time_embedding: TimeEmbedding,
    /// Width of the time embedding; `None` is four times the channels of the first level.
    pub time_embedding_dim: Option<usize>,
    /// Subtracted from the number of frequencies in the exponent of [`TimeEmbedding::Positional`].
    pub freq_shift: f64,
    /// Order of the halves of [`TimeEmbedding::Positional`].
    pub sinusoid: SinusoidOrder,
    /// The levels on the way down, the finest first.
    pub down_blocks: Vec<Block>,
    /// The levels on the way up, the coarsest first.
    pub up_blocks: Vec<Block>,
    /// Channels of each level, the finest first.
    pub channels: Vec<usize>,
    /// Residual blocks per level on the way down (one more on the way up).
    pub layers_per_block: usize,
    /// How [`Block::Attention`] halves the image.
    pub downsampling: Sampling,
    /// How [`Block::Attention`] doubles the image.
    pub upsampling: Sampling,
    /// Whether there is a middle block.
    pub mid_block: MidBlock,
    /// The outputs of the middle block's layers are divided by this.
    pub mid_block_scale_factor: f64,
    /// Padding of the downsampling convolutions.
    pub downsample_padding: DownsamplePadding,
    /// Activation of the residual blocks.
    pub activation: Activation,
    /// The share of elements that every residual block zeroes at random in training, from 0 to less than 1. Which ones
    /// follows from the sample's pixels and time, so that a training step stays a function of its batch.
    pub dropout: f64,
    /// Channels per attention head; `None` is one head. Where it does not divide the channels, the heads are narrower than
    /// these in all, and the projections are not square.
    pub attention_head_dim: Option<usize>,
    /// Groups of every GroupNorm; [`Block::Skip`], [`Block::AttentionSkip`] and [`Block::KDiffusion`] have rules of their own.
    /// `None`, which the other blocks do not allow, is a quarter of the channels, at most 32.
    pub norm_num_groups: Option<usize>,
    /// Groups of the GroupNorm in the middle attention; `None` is as many as in the middle block, but no GroupNorm at all
    /// there with [`TimeScaleShift::ScaleShift`], as in diffusers.
    pub attn_norm_num_groups: Option<usize>,
    /// Added to the variance in every GroupNorm.
    pub norm_eps: f64,
    /// How the time embedding enters.
    pub time_scale_shift: TimeScaleShift,
    /// Attention in the middle block.
    pub mid_attention: MidAttention,
    /// The class embedding, `None` for an unconditional network.
    pub classes: Option<Classes>,
}

impl Default for Config {
    /// The defaults of diffusers' constructor.
    fn default() -> Self {
        use Block::{Attention, Plain};
        Self {
            sample_size: None,
            in_channels: 3,
            out_channels: 3,
            input_range: InputRange::AsIs,
            time_embedding: TimeEmbedding::Positional,
            time_embedding_dim: None,
            freq_shift: 0.0,
            sinusoid: SinusoidOrder::CosSin,
            down_blocks: vec![Plain, Attention, Attention, Attention],
            up_blocks: vec![Attention, Attention, Attention, Plain],
            channels: vec![224, 448, 672, 896],
            layers_per_block: 2,
            downsampling: Sampling::Conv,
            upsampling: Sampling::Conv,
            mid_block: MidBlock::Present,
            mid_block_scale_factor: 1.0,
            downsample_padding: DownsamplePadding::Symmetric,
            activation: Activation::Silu,
            dropout: 0.0,
            attention_head_dim: Some(8),
            norm_num_groups: Some(32),
            attn_norm_num_groups: None,
            norm_eps: 1e-5,
            time_scale_shift: TimeScaleShift::Default,
            mid_attention: MidAttention::With,
            classes: None,
        }
    }
}

impl Config {
    /// Number of levels.
    pub fn levels(&self) -> usize {
        self.channels.len()
    }

    /// Width of the time embedding.
    pub fn embedding(&self) -> usize {
        self.time_embedding_dim.unwrap_or(4 * self.channels[0])
    }

    /// Whether the values fit together.
    ///
    /// # Errors
    /// If a width cannot be divided into its groups or heads, if the lists differ in length, if the blocks do not find the
    /// skip connections that they take, or if a value is out of range.
    pub fn validate(&self) -> Result<(), UnetError> {
        self.plan().map(|_| ())
    }

    /// The layers that follow, once the configuration has been checked.
    pub(crate) fn plan(&self) -> Result<Plan, UnetError> {
        let levels = self.levels();
        if !(1..=8).contains(&levels) || self.down_blocks.len() != levels || self.up_blocks.len() != levels {
            return Err(inconsistent(format!(
                "`block_out_channels`, `down_block_types` and `up_block_types` should have the same length, 1 to 8; \
                 found {levels}, {} and {}",
                self.down_blocks.len(),
                self.up_blocks.len()
            )));
        }
        self.check_values()?;
        Plan::new(self)
    }

    /// The layers of the way down and the middle, whatever there is for the way up.
    pub(crate) fn encoder_plan(&self) -> Result<EncoderPlan, UnetError> {
        let levels = self.levels();
        if !(1..=8).contains(&levels) || self.down_blocks.len() != levels {
            return Err(inconsistent(format!(
                "`block_out_channels` and `down_block_types` should have the same length, 1 to 8; found {levels} and {}",
                self.down_blocks.len()
            )));
        }
        self.check_values()?;
        EncoderPlan::new(self)
    }

    /// The range of every value by itself.
    fn check_values(&self) -> Result<(), UnetError> {
        let sizes = [self.in_channels, self.out_channels, self.layers_per_block, self.embedding()];
        if let Some(bad) = sizes.iter().chain(&self.channels).find(|&&size| !(1..=4 * LARGEST).contains(&size)) {
            return Err(inconsistent(format!("every size should be at least 1 and reasonable, found {bad}")));
        }
        for (key, value) in [("mid_block_scale_factor", self.mid_block_scale_factor), ("norm_eps", self.norm_eps)] {
            if !(value > 0.0 && value.is_finite()) {
                return Err(inconsistent(format!("`{key}` should be a number above 0, found {value}")));
            }
        }
        if !(0.0..1.0).contains(&self.dropout) {
            let found = self.dropout;
            return Err(inconsistent(format!("`dropout` should be at least 0 and less than 1, found {found}")));
        }
        self.check_time()?;
        let rows = match self.classes {
            Some(Classes::Table { rows, null }) => rows > usize::from(null == Null::LastRow),
            Some(Classes::Timestep { labels }) => labels != Some(0),
            None => true,
        };
        if !rows {
            return Err(inconsistent("`num_class_embeds` leaves no row for a class".to_owned()));
        }
        let parameters = self.estimated_parameters();
        if parameters > MOST_PARAMETERS {
            return Err(inconsistent(format!(
                "the widths ask for about {parameters:.0e} parameters, at most {MOST_PARAMETERS:.0e} are supported; \
                 reduce `block_out_channels` or `layers_per_block`"
            )));
        }
        Ok(())
    }

    fn check_time(&self) -> Result<(), UnetError> {
        let half = (self.channels[0] / 2) as f64;
        match self.time_embedding {
            TimeEmbedding::Positional if self.freq_shift.is_nan() || self.freq_shift >= half => {
                Err(inconsistent(format!(
                    "`freq_shift` {} should be less than half of the first of `block_out_channels`, {half}",
                    self.freq_shift
                )))
            }
            TimeEmbedding::Learned { steps: 0 } => Err(inconsistent(
                "`num_train_timesteps` should be at least 1 where `time_embedding_type` is \"learned\"".to_owned(),
            )),
            _ => Ok(()),
        }
    }

    /// The convolutions of the residual blocks, as if every input had the channels of a concatenation.
    pub(crate) fn estimated_parameters(&self) -> f64 {
        let layers = (2 * self.layers_per_block + 3) as f64;
        let embedding = self.embedding() as f64;
        let blocks = self.channels.iter().map(|&c| layers * (27.0 * (c as f64).powi(2) + 2.0 * c as f64 * embedding));
        let ends = (self.in_channels + self.out_channels) as f64 * 9.0 * self.channels[0] as f64;
        let classes = match self.classes {
            Some(Classes::Table { rows, .. }) => rows as f64 * embedding,
            _ => 0.0,
        };
        let steps = match self.time_embedding {
            TimeEmbedding::Learned { steps } => steps as f64 * self.channels[0] as f64,
            _ => 0.0,
        };
        blocks.sum::<f64>() + ends + classes + steps + embedding * embedding
    }
}

pub(super) fn inconsistent(message: String) -> UnetError {
    UnetError::Inconsistent { class: CLASS, message }
}
