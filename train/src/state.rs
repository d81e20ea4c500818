//! The whole state of a run in one file, so that a resumed run computes the bits of one that was never interrupted.
//!
//! The file (see [`tweedie_checkpoint::save_state`]) holds the vectors `params` (as trained), `ema`, `adam_m` and
//! `adam_v`, under importance sampling `losses`, and as text the progress and JSON documents: the configuration, the network's table of parameters, a
//! description of the data and, where [`Trainer::with_architecture`] gave it, one of the network. The order of the images and all noise follow from the seed and the step.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use tweedie_data::Dataset;
use tweedie_denoiser::{Param, Params, Role};

use crate::trainer::Progress;
use crate::{Importance, TrainConfig, TrainError, Trainer};

/// Fields of the configuration that decide how far a run goes and how often it is saved, but no number that it computes.
const HARMLESS: [&str; 2] = ["length", "checkpoint_minutes"];

/// Steps beyond this are not exact in f64, and no run gets there.
const MAX_STEP: u64 = 1 << 53;

/// Seconds beyond this are no time of training: 30 000 years.
const MAX_SECONDS: f64 = 1e12;

/// The entry with the losses of the steps, where these are drawn by them.
const LOSSES: &str = "losses";

/// The entry with the description of the network, which states of early versions lack.
pub const ARCHITECTURE: &str = "architecture";

impl Trainer<'_> {
    /// Writes the state, atomically.
    ///
    /// # Errors
    /// If the file cannot be written; then the old one is still there.
    pub fn save_state(&self, path: impl AsRef<Path>) -> Result<(), TrainError> {
        let Progress { step, loss_sum, loss_weight, seconds } = self.progress;
        // Rust prints the shortest decimal that reads back to the same bits.
        let mut meta = BTreeMap::from([
            ("step".to_owned(), step.to_string()),
            ("loss_sum".to_owned(), loss_sum.to_string()),
            ("loss_weight".to_owned(), loss_weight.to_string()),
            ("seconds".to_owned(), seconds.to_string()),
            ("config".to_owned(), config_text(&self.config)),
            ("network".to_owned(), network_text(self.net.params())),
            ("data".to_owned(), self.data_text.clone()),
        ]);
        if let Some(architecture) = &self.architecture {
            meta.insert(ARCHITECTURE.to_owned(), architecture.to_string());
        }
        let losses = self.importance.as_ref().map(Importance::to_numbers);
        let mut vectors = vec![
            ("params", self.net.params().values()),
            ("ema", self.optimizer.ema()),
            ("adam_m", self.optimizer.first_moment()),
            ("adam_v", self.optimizer.second_moment()),
        ];
        vectors.extend(losses.as_deref().map(|losses| (LOSSES, losses)));
        Ok(tweedie_checkpoint::save_state(path, &vectors, meta)?)
    }

    /// Continues where [`Trainer::save_state`] left off.
    ///
    /// Only the length of the run and the interval of its checkpoints may differ from the run that was saved.
    ///
    /// # Errors
    /// If the file cannot be read or is damaged, or belongs to another network, data set or configuration: the error
    /// names the first field that differs. The trainer is unchanged then.
    pub fn load_state(&mut self, path: impl AsRef<Path>) -> Result<(), TrainError> {
        let file = path.as_ref().display().to_string();
        let mut state = tweedie_checkpoint::load_state(path)?;
        for (what, now, remedy) in [
            (
                "network",
                network_text(self.net.params()),
                "resume with the network of the saved run, or start a new run",
            ),
            ("data", self.data_text.clone(), "resume with the data of the saved run, or start a new run"),
            (
                "config",
                config_text(&self.config),
                "resume with the saved value, or start a new run in another directory",
            ),
        ] {
            let saved = read_json(&file, what, state.text(what)?)?;
            // Read back as the saved one was, so that both went through the same rounding.
            let now = read_json(&file, what, &now)?;
            if let Some(difference) = first_difference(what, &saved, &now) {
                let Difference { field, saved, now } = difference;
                return Err(TrainError::Mismatch { file, field, saved, now, remedy });
            }
        }
        if let (Some(now), Ok(saved)) = (&self.architecture, state.text(ARCHITECTURE)) {
            check_architecture(&file, &read_json(&file, ARCHITECTURE, saved)?, now)?;
        }
        let progress = Progress {
            step: state.parse("step")?,
            loss_sum: state.parse("loss_sum")?,
            loss_weight: state.parse("loss_weight")?,
            seconds: state.parse("seconds")?,
        };
        let Progress { step, loss_sum, loss_weight, seconds } = progress;
        let finite = loss_sum.is_finite() && loss_weight.is_finite();
        if step > MAX_STEP || !finite || !(0.0..=MAX_SECONDS).contains(&seconds) {
            return Err(TrainError::State {
                file,
                what: "the progress".to_owned(),
                expected: format!("at most {MAX_STEP} steps, finite losses, and 0 to {MAX_SECONDS:e} seconds"),
                found: format!("{progress:?}"),
            });
        }
        let n = self.net.params().len();
        let params = state.take("params", n)?;
        let vectors = [state.take("adam_m", n)?, state.take("adam_v", n)?, state.take("ema", n)?];
        let importance = match &self.importance {
            Some(_) => {
                let steps = self.config.noise.train_steps;
                let numbers = state.take(LOSSES, Importance::numbers(steps))?;
                let wrong = || TrainError::State {
                    file: file.clone(),
                    what: format!("the entry {LOSSES}"),
                    expected: "finite losses and how many there are of each step".to_owned(),
                    found: "other numbers".to_owned(),
                };
                Some(Importance::from_numbers(steps, &numbers).ok_or_else(wrong)?)
            }
            None => None,
        };

        self.importance = importance;
        self.net.params_mut().values_mut().copy_from_slice(&params);
        for (to, from) in self.optimizer.vectors_mut().into_iter().zip(&vectors) {
            to.copy_from_slice(from);
        }
        self.progress = progress;
        Ok(())
    }
}

/// Whether a network is the one that a run was trained with so far, by the keys of their configurations.
///
/// # Errors
/// [`TrainError::Mismatch`] with the first key that differs; `file` says where the saved configuration stands.
pub fn check_architecture(file: &str, saved: &Value, now: &Value) -> Result<(), TrainError> {
    let remedy = "resume with the saved value, or start a new run in another directory";
    match first_difference("network", saved, now) {
        None => Ok(()),
        Some(Difference { field, saved, now }) => {
            Err(TrainError::Mismatch { file: file.to_owned(), field, saved, now, remedy })
        }
    }
}

/// The configuration without the fields that a resumed run may change.
fn config_text(config: &TrainConfig) -> String {
    let mut value = json!(config);
    if let Some(fields) = value.as_object_mut() {
        fields.retain(|name, _| !HARMLESS.contains(&name.as_str()));
    }
    value.to_string()
}

/// The table of parameters, in the order of the flat vectors.
fn network_text(params: &Params) -> String {
    let role = |param: &Param| match param.role {
        Role::Weight => "weight",
        Role::Buffer => "buffer",
        Role::Counter => "counter",
        _ => "other",
    };
    let table: Vec<_> = params
        .table()
        .iter()
        .map(|param| json!({"name": param.name, "shape": param.shape, "role": role(param)}))
        .collect();
    Value::Array(table).to_string()
}

/// What tells a data set from another one: its dimensions and a hash of its content, but not where it lies.
///
/// # Errors
/// If images on disk cannot be read.
pub(crate) fn data_text(data: &Dataset) -> Result<String, TrainError> {
    Ok(json!({
        "images": data.len(),
        "shape": data.shape(),
        "classes": data.classes(),
        "content": format!("{:016x}", data.fingerprint()?),
    })
    .to_string())
}

fn read_json(file: &str, what: &str, text: &str) -> Result<Value, TrainError> {
    serde_json::from_str(text).map_err(|error| TrainError::State {
        file: file.to_owned(),
        what: format!("the entry {what}"),
        expected: "a JSON document".to_owned(),
        found: error.to_string(),
    })
}

/// A field that differs.
struct Difference {
    field: String,
    saved: String,
    now: String,
}

/// The first field, by its path, in which two documents differ.
fn first_difference(path: &str, saved: &Value, now: &Value) -> Option<Difference> {
    let absent = Value::Null;
    match (saved, now) {
        _ if saved == now => None,
        (Value::Object(saved), Value::Object(now)) => {
            let keys = saved.keys().chain(now.keys().filter(|key| !saved.contains_key(*key)));
            keys.into_iter().find_map(|key| {
                let (a, b) = (saved.get(key).unwrap_or(&absent), now.get(key).unwrap_or(&absent));
                first_difference(&format!("{path}.{key}"), a, b)
            })
        }
        (Value::Array(saved), Value::Array(now)) => (0..saved.len().max(now.len())).find_map(|i| {
            let (a, b) = (saved.get(i).unwrap_or(&absent), now.get(i).unwrap_or(&absent));
            first_difference(&format!("{path}[{i}]"), a, b)
        }),
        _ => {
            let show = |value: &Value| if value.is_null() { "nothing".to_owned() } else { value.to_string() };
            Some(Difference { field: path.to_owned(), saved: show(saved), now: show(now) })
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn difference(saved: Value, now: Value) -> Option<(String, String, String)> {
        first_difference("config", &saved, &now).map(|d| (d.field, d.saved, d.now))
    }

    #[test]
    fn the_first_field_that_differs_is_named_by_its_path() {
        let found = difference(json!({"a": 1, "b": {"c": [1, 2], "d": 3}}), json!({"a": 1, "b": {"c": [1], "d": 4}}));
        assert_eq!(found, Some(("config.b.c[1]".into(), "2".into(), "nothing".into())));
        assert_eq!(difference(json!({"a": 1}), json!({"a": 1})), None);
    }

    #[test]
    fn a_field_that_is_missing_on_either_side_is_a_difference() {
        assert_eq!(difference(json!({"a": 1}), json!({})), Some(("config.a".into(), "1".into(), "nothing".into())));
        assert_eq!(
            difference(json!({}), json!({"a": "x"})),
            Some(("config.a".into(), "nothing".into(), "\"x\"".into()))
        );
    }

    #[test]
    fn tables_that_differ_in_order_differ() {
        let table = |names: [&str; 2]| {
            let mut params = Params::new();
            for name in names {
                params.add(name, &[2], Role::Weight);
            }
            read_json("file", "network", &network_text(&params)).unwrap()
        };
        let found = difference(table(["a", "b"]), table(["b", "a"]));
        assert_eq!(found, Some(("config[0].name".into(), "\"a\"".into(), "\"b\"".into())));
    }

    proptest! {
        #[test]
        fn a_configuration_never_differs_from_itself_read_back(lr in 1e-9f64..1.0, ema_decay in 0f64..1.0) {
            let config = TrainConfig { lr, ema_decay, ..TrainConfig::default() };
            let read = || read_json("file", "config", &config_text(&config)).unwrap();
            prop_assert!(difference(read(), read()).is_none());
        }
    }

    #[test]
    fn only_the_length_and_the_interval_of_checkpoints_are_left_out() {
        let full = json!(TrainConfig::default());
        let kept: Value = serde_json::from_str(&config_text(&TrainConfig::default())).unwrap();
        let missing: Vec<_> =
            full.as_object().unwrap().keys().filter(|key| kept.get(key.as_str()).is_none()).cloned().collect();
        assert_eq!(missing, ["length", "checkpoint_minutes"]);
    }
}
