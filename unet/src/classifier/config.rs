//! The configuration of the classifier, with the keys of diffusers' `UNet2DModel` where they mean the same.

use serde_json::{Map, Value, json};

use super::CLASS;
use crate::UnetError;
use crate::json::{LARGEST, Reader};
use crate::residual::{self, Block, EncoderPlan, TimeScaleShift, Timed};

/// Whether the classifier sees the time: `time`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Time {
    /// By sines and cosines, as the U-Net does, for a classifier of noisy images: `positional`.
    Positional,
    /// Not at all, for a classifier of clean images: `none` or null.
    Absent,
}

/// How the activations of all pixels become one vector: `pool`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean attends to them and to itself: `attention`.
    Attention,
    /// Their mean: `average`.
    Average,
}

/// A configuration of [`EncoderClassifier`](crate::EncoderClassifier).
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The layers before the pooling; what belongs to a U-Net's way up, to its classes and to other time embeddings than sines
    /// and cosines plays no part.
    pub encoder: residual::Config,
    /// Whether it sees the time.
    pub time: Time,
    /// How the activations of all pixels become one vector.
    pub pool: Pooling,
    /// How many classes it tells apart: `num_classes`.
    pub classes: usize,
    /// The share of the features that is zeroed at random in training before the last layer, from 0 to less than 1:
    /// `head_dropout`.
    pub head_dropout: f64,
}

impl Config {
    /// Reads the contents of a `config.json`.
    ///
    /// Missing keys take the defaults of diffusers' `UNet2DModel` and, of those that it does not have, `time` `"positional"`,
    /// `pool` `"attention"` and `head_dropout` 0; `num_classes` has to be there. Keys that begin with `_` are metadata.
    ///
    /// # Errors
    /// For every key, value or combination that this network does not support, by name.
    pub fn from_json(map: &Map<String, Value>) -> Result<Self, UnetError> {
        let mut r = Reader::new(CLASS, map);
        let config = Self {
            encoder: residual::Config::read_encoder(&mut r)?,
            time: r.choice(
                "time",
                Time::Positional,
                &[(json!("positional"), Time::Positional), (json!("none"), Time::Absent), (Value::Null, Time::Absent)],
            )?,
            pool: r.choice(
                "pool",
                Pooling::Attention,
                &[(json!("attention"), Pooling::Attention), (json!("average"), Pooling::Average)],
            )?,
            classes: r.integer("num_classes", 0, 1)?,
            head_dropout: r.number(
                "head_dropout",
                0.0,
                |x| (0.0..1.0).contains(&x),
                "a number from 0 to less than 1",
            )?,
        };
        if config.classes == 0 {
            return Err(r.refuse("num_classes", format!("a whole number from 1 to {LARGEST}")));
        }
        r.finish()?;
        config.validate()?;
        Ok(config)
    }

    /// The contents of a `config.json`, which [`Config::from_json`] reads back.
    pub fn to_json(&self) -> Map<String, Value> {
        let mut map = self.encoder.encoder_json();
        let mut set = |key: &str, value: Value| map.insert(key.to_owned(), value);
        set("_class_name", json!(CLASS));
        set("head_dropout", json!(self.head_dropout));
        set("num_classes", json!(self.classes));
        set(
            "pool",
            json!(match self.pool {
                Pooling::Attention => "attention",
                Pooling::Average => "average",
            }),
        );
        set(
            "time",
            json!(match self.time {
                Time::Positional => "positional",
                Time::Absent => "none",
            }),
        );
        map.sort_keys();
        map
    }

    /// Whether the values fit together.
    ///
    /// # Errors
    /// If a width cannot be divided into its groups or heads, the attention pooling is not told the size of the images, the
    /// blocks need a time that the classifier does not see, or a value is out of range.
    pub fn validate(&self) -> Result<(), UnetError> {
        self.plan().map(|_| ())
    }

    /// Numbers that describe an image, before the last layer.
    pub fn features(&self) -> usize {
        self.encoder.channels.last().copied().unwrap_or_default()
    }

    /// What the sides of an image have to be multiples of.
    pub(super) fn size_multiple(&self) -> usize {
        1 << (self.encoder.levels() - 1)
    }

    /// The layers that follow, once the configuration has been checked.
    pub(super) fn plan(&self) -> Result<EncoderPlan, UnetError> {
        let refuse = |message: String| Err(UnetError::Inconsistent { class: CLASS, message });
        let plan = self.encoder.encoder_plan().map_err(|error| error.of(CLASS))?;
        if !(1..=LARGEST).contains(&self.classes) {
            return refuse(format!("`num_classes` should be from 1 to {LARGEST}, found {}", self.classes));
        }
        if !(0.0..1.0).contains(&self.head_dropout) {
            let found = self.head_dropout;
            return refuse(format!("`head_dropout` should be at least 0 and less than 1, found {found}"));
        }
        self.encoder.out_groups(self.features()).map_err(|error| error.of(CLASS))?;
        if self.pool == Pooling::Attention {
            self.encoder.heads(self.features(), None, 1.0).map_err(|error| error.of(CLASS))?;
            let multiple = self.size_multiple();
            match self.encoder.sample_size {
                Some(size) if size.iter().all(|side| side.is_multiple_of(multiple)) => {}
                Some([h, w]) => {
                    return refuse(format!(
                        "`sample_size` should be a multiple of {multiple}, because the levels halve the image, found {h} x {w}"
                    ));
                }
                None => {
                    return refuse(
                        "`sample_size` should be given, because `pool` \"attention\" learns a vector for every place; give it, \
                         or choose \"average\""
                            .to_owned(),
                    );
                }
            }
        }
        if self.timed() == Timed::Yes {
            return Ok(plan);
        }
        if self.encoder.time_scale_shift == TimeScaleShift::ScaleShift {
            return refuse(
                "`resnet_time_scale_shift` \"scale_shift\" needs a time, and `time` is \"none\"; choose \"default\""
                    .to_owned(),
            );
        }
        if self.encoder.down_blocks.contains(&Block::KDiffusion) {
            return refuse(format!(
                "`down_block_types` contains {}, whose normalisations are made of the time, and `time` is \"none\"; choose \
                 another block",
                Block::KDiffusion.down_name()
            ));
        }
        Ok(plan.timeless())
    }

    pub(super) fn timed(&self) -> Timed {
        match self.time {
            Time::Positional => Timed::Yes,
            Time::Absent => Timed::No,
        }
    }
}
