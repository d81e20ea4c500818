//! Reading `config.json`: every key is asked for, and what nobody has asked for is an error.

use serde_json::{Map, Value};

use crate::UnetError;

/// A configuration while it is being read.
pub(crate) struct Reader<'a> {
    class: &'static str,
    map: &'a Map<String, Value>,
    /// Keys whose values diffusers tells to treat as absent.
    absent: Vec<&'a str>,
    known: Vec<&'static str>,
}

impl<'a> Reader<'a> {
    pub fn new(class: &'static str, map: &'a Map<String, Value>) -> Self {
        let absent = map.get("_use_default_values").and_then(Value::as_array).into_iter().flatten();
        Self { class, map, absent: absent.filter_map(Value::as_str).collect(), known: Vec::new() }
    }

    /// The error for `key`, of which the value is not `expected`.
    pub fn refuse(&self, key: &str, expected: impl Into<String>) -> UnetError {
        let found = self.map.get(key).map_or_else(|| "nothing".into(), Value::to_string);
        UnetError::Value { class: self.class, key: key.into(), expected: expected.into(), found }
    }

    /// The value of `key`, if it is there.
    pub fn get(&mut self, key: &'static str) -> Option<&'a Value> {
        if !self.known.contains(&key) {
            self.known.push(key);
        }
        if self.absent.contains(&key) { None } else { self.map.get(key) }
    }

    /// A whole number of at least `least`.
    pub fn integer(&mut self, key: &'static str, default: usize, least: usize) -> Result<usize, UnetError> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => integer(value)
                .filter(|&x| x >= least)
                .ok_or_else(|| self.refuse(key, format!("a whole number from {least} to {LARGEST}"))),
        }
    }

    /// A whole number of at least `least`, or null.
    pub fn optional(
        &mut self,
        key: &'static str,
        default: Option<usize>,
        least: usize,
    ) -> Result<Option<usize>, UnetError> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Null) => Ok(None),
            Some(value) => match integer(value) {
                Some(x) if x >= least => Ok(Some(x)),
                _ => Err(self.refuse(key, format!("null or a whole number from {least} to {LARGEST}"))),
            },
        }
    }

    /// A finite number that passes `test`.
    pub fn number(
        &mut self,
        key: &'static str,
        default: f64,
        test: fn(f64) -> bool,
        expected: &str,
    ) -> Result<f64, UnetError> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => {
                value.as_f64().filter(|&x| x.is_finite() && test(x)).ok_or_else(|| self.refuse(key, expected))
            }
        }
    }

    /// One of the named choices.
    pub fn choice<T: Copy>(&mut self, key: &'static str, default: T, choices: &[(Value, T)]) -> Result<T, UnetError> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => choices
                .iter()
                .find(|(name, _)| name == value)
                .map(|&(_, choice)| choice)
                .ok_or_else(|| self.refuse(key, list(choices.iter().map(|(name, _)| name.to_string())))),
        }
    }

    /// A list of positive whole numbers.
    pub fn integers(&mut self, key: &'static str, default: &[usize]) -> Result<Vec<usize>, UnetError> {
        let Some(value) = self.get(key) else { return Ok(default.to_vec()) };
        value
            .as_array()
            .and_then(|entries| entries.iter().map(|e| integer(e).filter(|&x| x > 0)).collect())
            .ok_or_else(|| self.refuse(key, format!("a list of whole numbers from 1 to {LARGEST}")))
    }

    /// A positive whole number for each of `levels`: a list of them, or one for all.
    pub fn per_level(&mut self, key: &'static str, default: usize, levels: usize) -> Result<Vec<usize>, UnetError> {
        let values = match self.get(key) {
            Some(Value::Array(_)) => self.integers(key, &[])?,
            _ => vec![self.integer(key, default, 1)?; levels],
        };
        if values.len() == levels {
            return Ok(values);
        }
        Err(self.refuse(key, format!("one number, or a list of {levels}, one for each of `block_out_channels`")))
    }

    /// A key of which one value alone is supported.
    pub fn only(&mut self, key: &'static str, value: Value) -> Result<(), UnetError> {
        match self.get(key) {
            Some(found) if *found != value => {
                Err(self.refuse(key, format!("{value}, the only value that is supported")))
            }
            _ => Ok(()),
        }
    }

    /// Refuses what has not been asked for; keys that begin with `_` are metadata.
    pub fn finish(self) -> Result<(), UnetError> {
        match self.map.keys().find(|key| !key.starts_with('_') && !self.known.contains(&key.as_str())) {
            None => Ok(()),
            Some(key) => Err(UnetError::UnknownKey {
                class: self.class,
                key: key.clone(),
                known: self.known.iter().filter(|k| !k.starts_with('_')).copied().collect::<Vec<_>>().join(", "),
            }),
        }
    }
}

/// No size in a configuration is larger: products of several of them stay far from overflow.
pub(crate) const LARGEST: usize = 1 << 16;

fn integer(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|x| usize::try_from(x).ok()).filter(|&x| x <= LARGEST)
}

fn list(names: impl Iterator<Item = String>) -> String {
    names.collect::<Vec<_>>().join(" or ")
}
