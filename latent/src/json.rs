//! Values of a `config.json`, each with an error that names its key.

use serde_json::{Map, Value};

use crate::LatentError;

/// No size in a configuration is larger: products of several of them stay far from overflow.
const LARGEST: u64 = 1 << 20;

/// A configuration while it is being read. Keys that nobody asks for say nothing of the network.
pub(crate) struct Reader<'a> {
    class: &'static str,
    map: &'a Map<String, Value>,
}

impl<'a> Reader<'a> {
    pub fn new(class: &'static str, map: &'a Map<String, Value>) -> Self {
        Self { class, map }
    }

    /// The value of `key`, if it is there.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key)
    }

    /// The error for `key`, of which the value is not `expected`.
    pub fn refuse(&self, key: &str, expected: impl Into<String>) -> LatentError {
        let found = self.map.get(key).map_or_else(|| "nothing".into(), |v| v.to_string().chars().take(80).collect());
        LatentError::Config { class: self.class, key: key.into(), expected: expected.into(), found }
    }

    /// A whole number from 1.
    pub fn integer(&self, key: &str, default: usize) -> Result<usize, LatentError> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => {
                integer(value).ok_or_else(|| self.refuse(key, format!("a whole number from 1 to {LARGEST}")))
            }
        }
    }

    /// A finite number that passes `test`.
    pub fn number(&self, key: &str, default: f64, test: fn(f64) -> bool, expected: &str) -> Result<f64, LatentError> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => {
                value.as_f64().filter(|&x| x.is_finite() && test(x)).ok_or_else(|| self.refuse(key, expected))
            }
        }
    }

    /// True or false; null stands for the default.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool, LatentError> {
        match self.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(self.refuse(key, "true or false")),
        }
    }
}

/// A whole number from 1 to [`LARGEST`].
pub(crate) fn integer(value: &Value) -> Option<usize> {
    value.as_u64().filter(|x| (1..=LARGEST).contains(x)).map(|x| x as usize)
}
