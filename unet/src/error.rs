use thiserror::Error;

/// What can go wrong when a network is built from a configuration.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum UnetError {
    /// A key of the configuration has a value (or a type) that is not supported, or is missing.
    #[error("reading the configuration of {class}: key `{key}` should be {expected}, found {found}")]
    Value {
        /// The `_class_name` of the network.
        class: &'static str,
        /// The key of `config.json`.
        key: String,
        /// What is supported.
        expected: String,
        /// What the file says.
        found: String,
    },
    /// A key that the network does not know: to ignore it could change what the network computes.
    #[error("reading the configuration of {class}: unknown key `{key}`; remove it, or use one of: {known}")]
    UnknownKey {
        /// The `_class_name` of the network.
        class: &'static str,
        /// The key of `config.json`.
        key: String,
        /// The known keys.
        known: String,
    },
    /// The values are fine one by one, but not together.
    #[error("building {class}: {message}")]
    Inconsistent {
        /// The `_class_name` of the network.
        class: &'static str,
        /// What does not fit, and what to do about it.
        message: String,
    },
    /// A `_class_name` that is not one of the networks here.
    #[error(
        "building a network: `_class_name` should be \"UNet2DModel\", \"UNetCond\" or, of a classifier, \
         \"EncoderClassifier\", found {found}"
    )]
    Class {
        /// What the configuration says.
        found: String,
    },
    /// A tensor that a source of weights does not have, or not as the network needs it.
    #[error("the weight {name} {message}; check that config and weights belong together")]
    Weight {
        /// The key of the checkpoint.
        name: String,
        /// What is wrong with it, such as `is missing`.
        message: String,
    },
    /// A configuration that asks for far more parameters than its checkpoint holds.
    #[error(
        "the configuration asks for about {estimate} parameters, and the weights hold {available} numbers; check that config \
         and weights belong together"
    )]
    Size {
        /// Parameters, about.
        estimate: u64,
        /// Numbers of the checkpoint.
        available: usize,
    },
}

impl UnetError {
    /// Refuses a configuration whose estimate of parameters, at most `excess` times too many, is far beyond the `available` numbers of
    /// its checkpoint.
    pub(crate) fn check_size(estimate: f64, excess: f64, available: usize) -> Result<(), Self> {
        if estimate > 1e6 + excess * available as f64 {
            return Err(Self::Size { estimate: estimate as u64, available });
        }
        Ok(())
    }

    /// The same of another network, which is built by the code of the first.
    pub(crate) fn of(self, class: &'static str) -> Self {
        match self {
            Self::Inconsistent { message, .. } => Self::Inconsistent { class, message },
            other => other,
        }
    }
}
