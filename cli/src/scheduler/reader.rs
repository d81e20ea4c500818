//! A scheduler config while it is being read by the rules of one class.

use std::path::Path;

use serde_json::Value;
use tweedie_checkpoint::Config;

use super::SchedulerError;
use super::class::{self, Class, Fallback};

/// A config and the class whose keys count. A key that the class does not have reads as if its default were off, nothing or
/// what the caller says.
pub struct Reader<'a> {
    config: &'a Config,
    path: &'a Path,
    class: &'static Class,
    /// Keys whose values diffusers tells to treat as absent.
    absent: Vec<&'a str>,
}

impl<'a> Reader<'a> {
    pub fn new(config: &'a Config, path: &'a Path, class: &'static Class) -> Self {
        let absent = config.get("_use_default_values").and_then(Value::as_array).into_iter().flatten();
        Self { config, path, class, absent: absent.filter_map(Value::as_str).collect() }
    }

    /// Whether the class has a key.
    pub fn has(&self, key: &str) -> bool {
        self.class.default(key).is_some()
    }

    /// Whether the file says something of a key that the class has.
    pub fn is_given(&self, key: &'static str) -> bool {
        self.get(key).is_some()
    }

    /// What the file says of a key that the class has, or that is not a class's own (a name of early versions, or ours). Null
    /// stands for the default, as a missing key does.
    fn get(&self, key: &'static str) -> Option<&'a Value> {
        let counts = self.has(key) || key.starts_with('_') || key == "predict_epsilon";
        if !counts || self.absent.contains(&key) {
            return None;
        }
        self.config.get(key).filter(|value| !value.is_null())
    }

    pub fn wrong(&self, key: &'static str, expected: &str) -> SchedulerError {
        let found = self.config.get(key).map_or_else(String::new, |v| v.to_string().chars().take(60).collect());
        SchedulerError::Value { file: self.file(), key, expected: expected.to_owned(), found }
    }

    pub fn refused(&self, key: &'static str, problem: &dyn std::fmt::Display) -> SchedulerError {
        SchedulerError::Refused { file: self.file(), key, problem: problem.to_string() }
    }

    /// A whole number that is not negative.
    pub fn integer(&self, key: &'static str) -> Result<usize, SchedulerError> {
        let Some(value) = self.get(key) else {
            return Ok(match self.class.default(key) {
                Some(Fallback::Number(n)) => n as usize,
                _ => 0,
            });
        };
        let whole =
            value.as_u64().or_else(|| value.as_f64().filter(|x| x.fract() == 0.0 && *x >= 0.0).map(|x| x as u64));
        whole.and_then(|n| usize::try_from(n).ok()).ok_or_else(|| self.wrong(key, "a whole number, 0 or more"))
    }

    /// A number; `other` for a class that does not have the key.
    pub fn number(&self, key: &'static str, other: f64) -> Result<f64, SchedulerError> {
        Ok(self.given_number(key)?.unwrap_or(match self.class.default(key) {
            Some(Fallback::Number(n)) => n,
            _ => other,
        }))
    }

    /// A number that the file gives.
    pub fn given_number(&self, key: &'static str) -> Result<Option<f64>, SchedulerError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.as_f64().or_else(|| match value.as_str() {
            // Python writes infinities without quotes, which the file's reader has set.
            Some("Infinity") => Some(f64::INFINITY),
            Some("-Infinity") => Some(f64::NEG_INFINITY),
            _ => None,
        });
        number.map(Some).ok_or_else(|| self.wrong(key, "a number"))
    }

    /// A switch; null is off, and so is a key that the class does not have.
    pub fn flag(&self, key: &'static str) -> Result<bool, SchedulerError> {
        if self.config.get(key).is_some_and(Value::is_null) && !self.absent.contains(&key) {
            return Ok(false);
        }
        let Some(value) = self.get(key) else { return Ok(self.class.default(key) == Some(Fallback::Flag(true))) };
        value.as_bool().ok_or_else(|| self.wrong(key, "true or false"))
    }

    /// A switch that the file gives.
    pub fn given_flag(&self, key: &'static str) -> Result<Option<bool>, SchedulerError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.wrong(key, "true or false"))
    }

    /// A name; `other` for a class that does not have the key, or no default for it.
    pub fn text(&self, key: &'static str, other: &'static str) -> Result<String, SchedulerError> {
        let Some(value) = self.get(key) else {
            return Ok(match self.class.default(key) {
                Some(Fallback::Text(name)) => name.to_owned(),
                _ => other.to_owned(),
            });
        };
        value.as_str().map(str::to_owned).ok_or_else(|| self.wrong(key, "a string"))
    }

    /// A name that the file gives.
    pub fn given_text(&self, key: &'static str) -> Result<Option<String>, SchedulerError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(|name| Some(name.to_owned())).ok_or_else(|| self.wrong(key, "a string"))
    }

    /// A list of numbers that the file gives.
    pub fn numbers(&self, key: &'static str) -> Result<Option<Vec<f64>>, SchedulerError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let numbers = value.as_array().and_then(|list| list.iter().map(Value::as_f64).collect());
        numbers.map(Some).ok_or_else(|| self.wrong(key, "a list of numbers"))
    }

    /// One of several names, each with what it means; the first one is the default of a class that does not have the key.
    pub fn choice<T: Copy>(&self, key: &'static str, choices: &[(&'static str, T)]) -> Result<T, SchedulerError> {
        let name = self.text(key, choices[0].0)?;
        choices.iter().find(|(known, _)| *known == name).map(|(_, meaning)| *meaning).ok_or_else(|| {
            let known: Vec<String> = choices.iter().map(|(name, _)| format!("\"{name}\"")).collect();
            self.wrong(key, &known.join(" or "))
        })
    }

    /// Whether every key is known.
    ///
    /// # Errors
    /// Names the first one that no class has.
    pub fn finish(self) -> Result<(), SchedulerError> {
        match self.config.keys().find(|key| !key.starts_with('_') && !class::is_known(key)) {
            None => Ok(()),
            Some(key) => Err(SchedulerError::UnknownKey { file: self.file(), key: key.clone() }),
        }
    }

    fn file(&self) -> String {
        self.path.display().to_string()
    }
}
