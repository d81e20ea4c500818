use ndarray::{Array4, ArrayView4};
use serde_json::{Map, Value};
use tweedie_denoiser::{Condition, DenoiserError, Network, NetworkGrad, Param, ParamTable, Params};

use crate::residual::Config;
use crate::{Book, BookConfig, Init, Residual, Summary, UnetError, book, residual};

/// One of the networks of this crate, chosen by the `_class_name` of its configuration.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Model {
    /// `UNetCond`, the textbook network.
    Book(Box<Book>),
    /// `UNet2DModel`, the residual network.
    Residual(Box<Residual>),
}

/// Builds the network that a `config.json` describes, with every parameter zero.
///
/// # Errors
/// As [`Model::from_config`].
pub fn from_config(config: &Map<String, Value>) -> Result<Box<dyn NetworkGrad>, UnetError> {
    Ok(match Model::from_config(config)? {
        Model::Book(network) => network,
        Model::Residual(network) => network,
    })
}

fn unknown_class(config: &Map<String, Value>) -> UnetError {
    let found = config.get("_class_name").map_or_else(|| "no such key".into(), Value::to_string);
    UnetError::Class { found }
}

impl Model {
    /// Builds the network that a `config.json` describes, with every parameter zero: fill them from a checkpoint with
    /// the keys of [`Model::expected`], or by [`Model::initialise`].
    ///
    /// # Errors
    /// If `_class_name` is neither `UNetCond` nor `UNet2DModel`, or for the first key that is not supported, by name.
    pub fn from_config(config: &Map<String, Value>) -> Result<Self, UnetError> {
        match config.get("_class_name").and_then(Value::as_str) {
            Some(book::CLASS) => Self::book(BookConfig::from_json(config)?),
            Some(residual::CLASS) => Self::residual(Config::from_json(config)?),
            _ => Err(unknown_class(config)),
        }
    }

    /// The parameters of the network that a `config.json` describes, without their values: what a checkpoint of `available`
    /// numbers is compared with before memory is taken for a network.
    ///
    /// # Errors
    /// As [`Model::from_config`]; also if the network has so many more parameters than `available` that even their names
    /// would take more memory than the checkpoint.
    pub fn table(config: &Map<String, Value>, available: usize) -> Result<ParamTable, UnetError> {
        match config.get("_class_name").and_then(Value::as_str) {
            Some(book::CLASS) => Book::table(&BookConfig::from_json(config)?),
            Some(residual::CLASS) => {
                let config = Config::from_json(config)?;
                config.validate()?;
                // The estimate takes every layer for one of the widest: at most about three times too many.
                UnetError::check_size(config.estimated_parameters(), 8.0, available)?;
                Residual::table(&config)
            }
            _ => Err(unknown_class(config)),
        }
    }

    /// A textbook network with every parameter zero.
    ///
    /// # Errors
    /// See [`BookConfig::validate`].
    pub fn book(config: BookConfig) -> Result<Self, UnetError> {
        Ok(Self::Book(Box::new(Book::new(config)?)))
    }

    /// A residual network with every parameter zero.
    ///
    /// # Errors
    /// See [`Config::validate`].
    pub fn residual(config: Config) -> Result<Self, UnetError> {
        Ok(Self::Residual(Box::new(Residual::new(config)?)))
    }

    fn network(&self) -> &dyn NetworkGrad {
        match self {
            Self::Book(network) => &**network,
            Self::Residual(network) => &**network,
        }
    }

    fn network_mut(&mut self) -> &mut dyn NetworkGrad {
        match self {
            Self::Book(network) => &mut **network,
            Self::Residual(network) => &mut **network,
        }
    }

    /// The contents of the `config.json` that builds this network again.
    pub fn config(&self) -> Map<String, Value> {
        match self {
            Self::Book(network) => network.config().to_json(),
            Self::Residual(network) => network.config().to_json(),
        }
    }

    /// The tensors that a checkpoint of this network holds, with their shapes and roles.
    pub fn expected(&self) -> &[Param] {
        self.params().table()
    }

    /// Draws the first values of every parameter; each tensor depends on (`seed`, its name) alone.
    pub fn initialise(&mut self, init: Init, seed: u64) {
        match self {
            Self::Book(network) => network.initialise(init, seed),
            Self::Residual(network) => network.initialise(init, seed),
        }
    }

    /// Channels, height and width of the images that the network was made for; `None` if its configuration does not
    /// tell the size.
    pub fn image_shape(&self) -> Option<[usize; 3]> {
        match self {
            Self::Book(network) => {
                let BookConfig { in_channels, image_size, .. } = *network.config();
                Some([in_channels, image_size, image_size])
            }
            Self::Residual(network) => {
                let config = network.config();
                config.sample_size.map(|[h, w]| [config.in_channels, h, w])
            }
        }
    }

    /// Channels of the input.
    pub fn in_channels(&self) -> usize {
        match self {
            Self::Book(network) => network.config().in_channels,
            Self::Residual(network) => network.config().in_channels,
        }
    }

    /// Channels of the output.
    pub fn out_channels(&self) -> usize {
        match self {
            Self::Book(network) => network.config().in_channels,
            Self::Residual(network) => network.config().out_channels,
        }
    }

    /// Bytes of the weights in the form that forward passes read, which is made in the first of them: filters of 3x3 taps are
    /// transformed and take four times the memory.
    pub fn packed_bytes(&self) -> u64 {
        let floats = match self {
            Self::Book(network) => network.packed_floats(),
            Self::Residual(network) => network.packed_floats(),
        };
        4 * floats as u64
    }

    /// What the height and width of an image have to be multiples of.
    pub fn size_multiple(&self) -> usize {
        match self {
            Self::Book(network) => network.size_multiple(),
            Self::Residual(network) => network.size_multiple(),
        }
    }

    /// Layers, parameters and operations for one image of height `h` and width `w`.
    pub fn summary(&self, h: usize, w: usize) -> Summary {
        match self {
            Self::Book(network) => network.summary(h, w),
            Self::Residual(network) => network.summary(h, w),
        }
    }
}

impl Network for Model {
    fn predict(
        &self,
        x: ArrayView4<'_, f32>,
        timesteps: &[f64],
        condition: &Condition,
    ) -> Result<Array4<f32>, DenoiserError> {
        self.network().predict(x, timesteps, condition)
    }

    fn classes(&self) -> usize {
        self.network().classes()
    }

    fn has_null_condition(&self) -> bool {
        self.network().has_null_condition()
    }
}

impl NetworkGrad for Model {
    fn params(&self) -> &Params {
        self.network().params()
    }

    fn params_mut(&mut self) -> &mut Params {
        self.network_mut().params_mut()
    }

    fn forward_backward(
        &mut self,
        x: ArrayView4<'_, f32>,
        timesteps: &[f64],
        condition: &Condition,
        loss: &mut dyn FnMut(ArrayView4<'_, f32>) -> Array4<f32>,
        grads: &mut [f32],
    ) -> Result<Array4<f32>, DenoiserError> {
        self.network_mut().forward_backward(x, timesteps, condition, loss, grads)
    }
}
