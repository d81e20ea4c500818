//! The configuration of a training run, as it is written in `train.toml` and in a training state.

use serde::{Deserialize, Serialize};
use tweedie_data::{Affine, Augment, Range};
use tweedie_schedule::{BetaSchedule, Bins, Prediction, Schedule, TimestepMapping, Variance, Weighting};

use crate::{AdamW, Loss, LrDecay, LrSchedule, Objective, Terms, TrainError};

/// When a run ends. Totals: what was done before a resume counts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum RunLength {
    /// After so many passes over the data.
    Epochs(u64),
    /// After so many steps.
    Steps(u64),
    /// After so many minutes of training.
    Minutes(f64),
}

impl RunLength {
    /// The number of steps, where it is known beforehand.
    pub fn steps(self, steps_per_epoch: u64) -> Option<u64> {
        match self {
            Self::Epochs(epochs) => Some(epochs.saturating_mul(steps_per_epoch)),
            Self::Steps(steps) => Some(steps),
            Self::Minutes(_) => None,
        }
    }
}

/// The noise schedule that a network is trained on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NoiseConfig {
    /// `linear`, `scaled-linear`, `cosine`, `sqrt`, `sigmoid` or `exponential`; `linear` by default (Ho 2020).
    pub schedule: String,
    /// The number of steps T, at least 1; 1000 by default.
    pub train_steps: usize,
    /// `b_1`, in (0, 1); 1e-4 by default. `cosine` does not use it.
    pub beta_start: f64,
    /// `b_T`, in (0, 1); 0.02 by default. `cosine` does not use it.
    pub beta_end: f64,
}

impl Default for NoiseConfig {
    fn default() -> Self {
        Self { schedule: "linear".to_owned(), train_steps: 1000, beta_start: 1e-4, beta_end: 0.02 }
    }
}

impl NoiseConfig {
    /// The rule for the betas.
    ///
    /// # Errors
    /// If there is no schedule of that name.
    pub fn betas(&self) -> Result<BetaSchedule, TrainError> {
        Ok(BetaSchedule::from_name(&self.schedule, self.beta_start, self.beta_end)?)
    }

    /// The table of noise levels.
    ///
    /// # Errors
    /// If there is no schedule of that name, or a number is out of range.
    pub fn build(&self) -> Result<Schedule, TrainError> {
        Ok(Schedule::new(&self.betas()?, self.train_steps)?)
    }
}

/// [`Weighting`] as it is written in a configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum WeightingConfig {
    /// [`Weighting::Uniform`].
    #[default]
    Uniform,
    /// [`Weighting::MinSnr`].
    MinSnr {
        /// `gamma > 0`.
        gamma: f64,
    },
    /// [`Weighting::P2`].
    P2 {
        /// `gamma >= 0`.
        gamma: f64,
        /// `k > 0`.
        k: f64,
    },
    /// [`Weighting::Edm`].
    Edm {
        /// `sigma_data > 0`.
        sigma_data: f64,
    },
}

impl WeightingConfig {
    /// The names that [`WeightingConfig::from_name`] knows.
    pub const NAMES: [&str; 4] = ["uniform", "min-snr", "p2", "edm"];

    /// The weighting of a name, with the parameters of its paper.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "uniform" => Some(Self::Uniform),
            "min-snr" => Some(Self::MinSnr { gamma: 5.0 }),
            "p2" => Some(Self::P2 { gamma: 1.0, k: 1.0 }),
            "edm" => Some(Self::Edm { sigma_data: 0.5 }),
            _ => None,
        }
    }

    /// The weighting.
    pub fn weighting(self) -> Weighting {
        match self {
            Self::Uniform => Weighting::Uniform,
            Self::MinSnr { gamma } => Weighting::MinSnr { gamma },
            Self::P2 { gamma, k } => Weighting::P2 { gamma, k },
            Self::Edm { sigma_data } => Weighting::Edm { sigma_data },
        }
    }
}

/// How the steps of a batch are drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum StepSampling {
    /// Every step alike.
    #[default]
    Uniform,
    /// By the size of their losses, see [`Importance`](crate::Importance).
    Importance,
    /// None: a classifier sees the images as they are, at the number 0.
    Clean,
}

/// [`Augment`] as it is written in a configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum AugmentConfig {
    /// [`Augment::None`].
    #[default]
    None,
    /// [`Augment::Flip`].
    Flip,
    /// [`Augment::Shift`].
    Shift {
        /// At most 1024.
        pixels: usize,
    },
    /// [`Augment::Affine`].
    Affine {
        /// In degrees, from 0 to 180.
        rotation: f64,
        /// At least 0 and less than 1.
        scale: f64,
        /// At least 0 and less than 1.
        shear: f64,
        /// In pixels, from 0 to 1024.
        shift: f64,
    },
}

impl AugmentConfig {
    /// The names that [`AugmentConfig::from_name`] knows.
    pub const NAMES: [&str; 4] = ["none", "flip", "shift", "affine"];

    /// The largest shift in pixels.
    const MOST: usize = 1024;

    /// The augmentation of a name, with moderate strengths.
    pub fn from_name(name: &str) -> Option<Self> {
        let Affine { rotation, scale, shear, shift } = Affine::default();
        match name {
            "none" => Some(Self::None),
            "flip" => Some(Self::Flip),
            "shift" => Some(Self::Shift { pixels: 2 }),
            "affine" => Some(Self::Affine { rotation, scale, shear, shift }),
            _ => None,
        }
    }

    /// The augmentation.
    pub fn augment(self) -> Augment {
        match self {
            Self::None => Augment::None,
            Self::Flip => Augment::Flip,
            Self::Shift { pixels } => Augment::Shift { pixels },
            Self::Affine { rotation, scale, shear, shift } => Augment::Affine(Affine { rotation, scale, shear, shift }),
        }
    }

    fn validate(self) -> Result<(), TrainError> {
        let most = Self::MOST as f64;
        let check = |field, value: f64, ok: bool, expected: &str| {
            if ok { Ok(()) } else { Err(wrong(field, expected, value, "change it")) }
        };
        match self {
            Self::None | Self::Flip => Ok(()),
            Self::Shift { pixels } => {
                check("augment.shift.pixels", pixels as f64, pixels <= Self::MOST, "at most 1024")
            }
            Self::Affine { rotation, scale, shear, shift } => {
                check("augment.affine.rotation", rotation, (0.0..=180.0).contains(&rotation), "from 0 to 180")?;
                check("augment.affine.scale", scale, (0.0..1.0).contains(&scale), "in [0, 1)")?;
                check("augment.affine.shear", shear, (0.0..1.0).contains(&shear), "in [0, 1)")?;
                check("augment.affine.shift", shift, (0.0..=most).contains(&shift), "from 0 to 1024")
            }
        }
    }
}

/// Whether a field has its default, in which case it is not written: states of earlier versions do not have it.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Everything that decides what a training run computes, but for the network and the data.
///
/// Two runs with equal configurations, networks and data compute the same bits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Keys every random number and the order of the images, below 2^63; 0 by default.
    pub seed: u64,
    /// When the run ends, such as `{ epochs = 20 }`, `{ steps = 10000 }` or `{ minutes = 30.0 }`; 10 epochs by default.
    pub length: RunLength,
    /// Images per step, at least 1; 64 by default.
    pub batch: usize,
    /// What the network is trained to predict: `eps`, `x0`, `v`, `score` or `mean`; `eps` by default (Ho 2020).
    #[serde(with = "names::prediction")]
    pub prediction: Prediction,
    /// What is minimised: `simple`, `vlb` or `hybrid`, or `cross-entropy` for a classifier; `simple` by default (Ho 2020).
    #[serde(skip_serializing_if = "is_default")]
    pub loss: Loss,
    /// The share of each label that a classifier is to spread over all classes alike, in `[0, 1)`; 0 by default.
    #[serde(skip_serializing_if = "is_default")]
    pub label_smoothing: f64,
    /// Weights of the squared error: `"uniform"`, `{ min-snr = { gamma = 5.0 } }`, `{ p2 = { gamma = 1.0, k = 1.0 } }` or
    /// `{ edm = { sigma_data = 0.5 } }`; `"uniform"` by default.
    #[serde(skip_serializing_if = "is_default")]
    pub weighting: WeightingConfig,
    /// The variance of the reverse step in the bound: `fixed-small`, `fixed-large`, `unit` or `learned-range`; `fixed-small` by
    /// default. A learned one needs a network with twice the output channels (Nichol & Dhariwal 2021).
    #[serde(skip_serializing_if = "is_default", with = "names::variance")]
    pub variance: Variance,
    /// How steps are drawn: `uniform` or `importance`, or `clean` for a classifier that sees no noise; `uniform` by default.
    #[serde(skip_serializing_if = "is_default")]
    pub step_sampling: StepSampling,
    /// The number that the network sees for step t: `zero-based` (t - 1, as diffusers counts) or `one-based` (t);
    /// `zero-based` by default.
    #[serde(with = "names::timestep")]
    pub timestep: TimestepMapping,
    /// The interval of the pixels: `minus-one-one` or `zero-one`; `minus-one-one` by default.
    #[serde(with = "names::range")]
    pub range: Range,
    /// The probability, in `[0, 1]`, that the label of an image is replaced by the null condition; 0.1 by default
    /// (Ho & Salimans 2022). Without effect on a network that has no classes.
    pub label_dropout: f64,
    /// Whether each image is mirrored left to right with probability one half; false by default.
    #[serde(skip_serializing_if = "is_default")]
    pub flip: bool,
    /// What else is done to each image: `"none"`, `"flip"`, `{ shift = { pixels = 2 } }` or
    /// `{ affine = { rotation = 10.0, scale = 0.1, shear = 0.1, shift = 2.0 } }`; `"none"` by default.
    #[serde(skip_serializing_if = "is_default")]
    pub augment: AugmentConfig,
    /// The highest learning rate, a normal number of f32; 5e-4 by default.
    pub lr: f64,
    /// Steps of the linear warm-up of the learning rate; 200 by default.
    pub lr_warmup: u64,
    /// What the learning rate does after the warm-up: `constant` or `cosine`; `constant` by default.
    pub lr_decay: LrDecay,
    /// The step at which the decay reaches its floor; by default the last step of the run, which must then be known
    /// beforehand. Written out when a run starts, so that a resumed run follows the same curve.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr_decay_steps: Option<u64>,
    /// The floor of the decay as a fraction of `lr`, in `[0, 1]`; 0.02 by default.
    pub lr_floor: f64,
    /// The largest norm of the gradient that is not clipped, at least 0; 1 by default, 0: no clipping.
    pub clip_norm: f64,
    /// Decay of the moving average of the weights after its warm-up, in `[0, 1)`; 0.999 by default.
    pub ema_decay: f64,
    /// Minutes between two checkpoints within an epoch, above 0; 5 by default. There is one after every epoch, too.
    pub checkpoint_minutes: f64,
    /// The noise schedule.
    pub noise: NoiseConfig,
    /// The optimiser.
    pub adamw: AdamW,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            seed: 0,
            length: RunLength::Epochs(10),
            batch: 64,
            prediction: Prediction::Eps,
            loss: Loss::default(),
            label_smoothing: 0.0,
            weighting: WeightingConfig::default(),
            variance: Variance::default(),
            step_sampling: StepSampling::default(),
            timestep: TimestepMapping::ZeroBased,
            range: Range::MinusOneOne,
            label_dropout: 0.1,
            flip: false,
            augment: AugmentConfig::default(),
            lr: 5e-4,
            lr_warmup: 200,
            lr_decay: LrDecay::Constant,
            lr_decay_steps: None,
            lr_floor: 0.02,
            clip_norm: 1.0,
            ema_decay: 0.999,
            checkpoint_minutes: 5.0,
            noise: NoiseConfig::default(),
            adamw: AdamW::default(),
        }
    }
}

impl TrainConfig {
    /// Checks the range of every field.
    ///
    /// # Errors
    /// The first field that is out of range.
    pub fn validate(&self) -> Result<(), TrainError> {
        let number = |field, value: f64, ok: bool, expected: &str| {
            if ok { Ok(()) } else { Err(wrong(field, expected, value, "change it")) }
        };
        let unit = |value: f64| (0.0..1.0).contains(&value);
        let closed = |value: f64| (0.0..=1.0).contains(&value);
        let positive = |value: f64| value > 0.0 && value.is_finite();
        let not_negative = |value: f64| value >= 0.0 && value.is_finite();
        // The update computes in f32, where a smaller number is 0 and a larger one infinite.
        let normal = |value: f64| (f64::from(f32::MIN_POSITIVE)..=f64::from(f32::MAX)).contains(&value);
        const NORMAL: &str = "from 1.2e-38 to 3.4e38, the normal range of f32";
        if i64::try_from(self.seed).is_err() {
            return Err(wrong(
                "seed",
                "below 2^63, the largest integer of a TOML file",
                self.seed,
                "choose a smaller one",
            ));
        }
        match self.length {
            RunLength::Epochs(0) | RunLength::Steps(0) => {
                return Err(wrong("length", "at least 1", 0, "train for longer"));
            }
            RunLength::Minutes(minutes) => {
                number("length.minutes", minutes, positive(minutes), "above 0 and finite")?;
            }
            _ => {}
        }
        if self.batch == 0 {
            return Err(wrong("batch", "at least 1", 0, "choose the number of images per step"));
        }
        let learned = self.variance == Variance::LearnedRange;
        match self.loss {
            Loss::Simple if learned => {
                let expected = "hybrid or vlb, since the variance is learned";
                return Err(wrong("loss", expected, "simple", "change it, or choose a fixed variance"));
            }
            Loss::Hybrid if !learned => {
                let expected = "learned-range, since the hybrid loss trains the variance by the bound";
                return Err(wrong("variance", expected, "a fixed one", "change it, or choose another loss"));
            }
            Loss::Vlb if self.weighting != WeightingConfig::Uniform => {
                let expected = "uniform, since the bound has weights of its own";
                return Err(wrong("weighting", expected, "another one", "leave it out, or choose another loss"));
            }
            _ => {}
        }
        self.validate_classifier()?;
        self.augment.validate()?;
        if self.flip && self.augment == AugmentConfig::Flip {
            return Err(wrong("flip", "false, since augment mirrors the images already", true, "leave it out"));
        }
        number("label_dropout", self.label_dropout, closed(self.label_dropout), "in [0, 1]")?;
        number("lr", self.lr, normal(self.lr), NORMAL)?;
        number("lr_floor", self.lr_floor, closed(self.lr_floor), "in [0, 1]")?;
        number("clip_norm", self.clip_norm, not_negative(self.clip_norm), "0 (no clipping), or above 0 and finite")?;
        number("ema_decay", self.ema_decay, unit(self.ema_decay), "in [0, 1)")?;
        number("checkpoint_minutes", self.checkpoint_minutes, positive(self.checkpoint_minutes), "above 0 and finite")?;
        let AdamW { beta1, beta2, eps, weight_decay } = self.adamw;
        number("adamw.beta1", beta1, unit(beta1), "in [0, 1)")?;
        number("adamw.beta2", beta2, unit(beta2), "in [0, 1)")?;
        number("adamw.eps", eps, normal(eps), NORMAL)?;
        number("adamw.weight_decay", weight_decay, not_negative(weight_decay), "at least 0 and finite")?;
        self.objective()?;
        Ok(())
    }

    /// Whether what concerns classifiers alone, or denoisers alone, is where it belongs.
    fn validate_classifier(&self) -> Result<(), TrainError> {
        if self.loss != Loss::CrossEntropy {
            return match self.step_sampling {
                StepSampling::Clean => {
                    let expected = "uniform or importance, since a denoiser learns from noisy images";
                    Err(wrong("step_sampling", expected, "clean", "change it, or train a classifier"))
                }
                _ if self.label_smoothing != 0.0 => {
                    let expected = "0, since only a classifier learns from labels";
                    Err(wrong("label_smoothing", expected, self.label_smoothing, "leave it out"))
                }
                _ => Ok(()),
            };
        }
        let refuse = |field, expected: &str, found: &str| Err(wrong(field, expected, found, "leave it out"));
        match self {
            Self { step_sampling: StepSampling::Importance, .. } => {
                refuse("step_sampling", "uniform or clean for a classifier", "importance")
            }
            Self { weighting, .. } if *weighting != WeightingConfig::Uniform => {
                refuse("weighting", "uniform for a classifier, which has no squared error", "another one")
            }
            Self { variance: Variance::LearnedRange, .. } => {
                refuse("variance", "a fixed one for a classifier", "learned-range")
            }
            Self { label_dropout, .. } if *label_dropout != 0.0 => Err(wrong(
                "label_dropout",
                "0 for a classifier, which has no null condition",
                label_dropout,
                "set it to 0",
            )),
            Self { label_smoothing, .. } if !(0.0..1.0).contains(label_smoothing) => {
                Err(wrong("label_smoothing", "in [0, 1)", label_smoothing, "change it"))
            }
            _ => Ok(()),
        }
    }

    /// The configuration with `lr_decay_steps` written out, for a run of `steps_per_epoch` steps per epoch.
    ///
    /// # Errors
    /// If the learning rate decays over a run whose number of steps is not known beforehand.
    pub fn resolved(mut self, steps_per_epoch: u64) -> Result<Self, TrainError> {
        if self.lr_decay != LrDecay::Constant && self.lr_decay_steps.is_none() {
            let Some(steps) = self.length.steps(steps_per_epoch) else {
                return Err(wrong(
                    "lr_decay_steps",
                    "given, because a run limited by minutes has no known number of steps to decay over",
                    "nothing",
                    "give it, limit the run by epochs or steps, or choose lr_decay = \"constant\"",
                ));
            };
            self.lr_decay_steps = Some(steps);
        }
        Ok(self)
    }

    /// What is minimised.
    ///
    /// # Errors
    /// If the noise schedule cannot be built, or a weight does not exist at one of its steps.
    pub(crate) fn objective(&self) -> Result<Objective, TrainError> {
        let terms = Terms {
            loss: self.loss,
            weighting: self.weighting.weighting(),
            variance: self.variance,
            bins: Bins::new(self.range.from_byte(0).into(), self.range.from_byte(u8::MAX).into(), 256)?,
        };
        let schedule = self.noise.build()?;
        if self.loss == Loss::CrossEntropy {
            let schedule = (self.step_sampling != StepSampling::Clean).then_some(&schedule);
            return Ok(Objective::classifier(schedule, self.timestep, self.label_smoothing, self.seed));
        }
        Objective::with_terms(&schedule, self.prediction, self.timestep, self.label_dropout, self.seed, terms)
    }

    /// The learning rate of every step, once [`TrainConfig::resolved`].
    pub(crate) fn lr_schedule(&self) -> LrSchedule {
        LrSchedule {
            peak: self.lr,
            warmup: self.lr_warmup,
            decay: self.lr_decay,
            total: self.lr_decay_steps.unwrap_or(u64::MAX),
            floor: self.lr_floor,
        }
    }

    /// The largest gradient norm that is let through; infinite where there is no clipping.
    pub(crate) fn clip_limit(&self) -> f64 {
        if self.clip_norm == 0.0 { f64::INFINITY } else { self.clip_norm }
    }
}

/// The error of a field.
pub(crate) fn wrong(
    field: &'static str,
    expected: impl Into<String>,
    found: impl ToString,
    remedy: &'static str,
) -> TrainError {
    TrainError::Config { field, expected: expected.into(), found: found.to_string(), remedy }
}

/// How values of other crates are written in files.
mod names {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer};

    /// Reads one of a few names.
    fn choose<'de, D: Deserializer<'de>, T: Copy>(from: D, choices: &[(&str, T)]) -> Result<T, D::Error> {
        let name = String::deserialize(from)?;
        choices.iter().find(|(known, _)| *known == name).map(|(_, value)| *value).ok_or_else(|| {
            let known: Vec<_> = choices.iter().map(|(known, _)| *known).collect();
            D::Error::custom(format!("\"{name}\" is none of: {}", known.join(", ")))
        })
    }

    /// The name of a value.
    fn name_of<T: PartialEq>(value: T, choices: &[(&'static str, T)]) -> &'static str {
        choices.iter().find(|(_, known)| *known == value).map_or("unknown", |(name, _)| name)
    }

    macro_rules! named {
        ($module:ident, $type:ty, $choices:expr) => {
            pub(super) mod $module {
                use serde::{Deserializer, Serializer};

                use super::{choose, name_of};

                const CHOICES: &[(&str, $type)] = &$choices;

                pub(in super::super) fn serialize<S: Serializer>(value: &$type, to: S) -> Result<S::Ok, S::Error> {
                    to.serialize_str(name_of(*value, CHOICES))
                }

                pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<$type, D::Error> {
                    choose(from, CHOICES)
                }
            }
        };
    }

    named!(prediction, tweedie_schedule::Prediction, {
        use tweedie_schedule::Prediction::{Eps, Mean, Score, V, X0};
        [("eps", Eps), ("x0", X0), ("v", V), ("score", Score), ("mean", Mean)]
    });
    named!(variance, tweedie_schedule::Variance, {
        use tweedie_schedule::Variance::{FixedLarge, FixedSmall, LearnedRange, Unit};
        [("fixed-small", FixedSmall), ("fixed-large", FixedLarge), ("unit", Unit), ("learned-range", LearnedRange)]
    });
    named!(timestep, tweedie_schedule::TimestepMapping, {
        use tweedie_schedule::TimestepMapping::{OneBased, ZeroBased};
        [("zero-based", ZeroBased), ("one-based", OneBased)]
    });
    named!(range, tweedie_data::Range, {
        use tweedie_data::Range::{MinusOneOne, ZeroOne};
        [("minus-one-one", MinusOneOne), ("zero-one", ZeroOne)]
    });
}
