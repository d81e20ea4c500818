use thiserror::Error;

/// What can go wrong between a prompt and a picture.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LatentError {
    /// A key of a configuration has a value (or a type) that is not supported, or is missing.
    #[error("reading the configuration of {class}: key `{key}` should be {expected}, found {found}")]
    Config {
        /// What is configured.
        class: &'static str,
        /// The key.
        key: String,
        /// What is supported.
        expected: String,
        /// What the file says.
        found: String,
    },
    /// The values are fine one by one, but not together.
    #[error("reading the configuration of {class}: {message}")]
    Inconsistent {
        /// What is configured.
        class: &'static str,
        /// What does not fit, and what to do about it.
        message: String,
    },
    /// The files of a tokenizer are incomplete or damaged.
    #[error("building the tokenizer from {file}: {problem}; {remedy}")]
    Tokenizer {
        /// The file.
        file: &'static str,
        /// What is wrong.
        problem: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// An argument outside its range.
    #[error("{operation}: {what} should be {expected}, found {found}; {remedy}")]
    Parameter {
        /// The operation that was called.
        operation: &'static str,
        /// The argument.
        what: String,
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// A weight is missing or has another shape, or a network cannot be built.
    #[error(transparent)]
    Network(#[from] tweedie_unet::UnetError),
    /// A network refused its input.
    #[error(transparent)]
    Denoiser(#[from] tweedie_denoiser::DenoiserError),
}
