//! A click model by the name of its preset.

use densely_core::registry::{self, parse_config};
use densely_core::{Error, Result};
use serde_json::Value;
use tch::nn::Path;

use crate::fields::Field;
use crate::models::{CtrConfig, CtrModel};

/// Names that [`build`] knows.
pub const NAMES: [&str; 2] = ["finalmlp", "din"];

/// Builds the model of `preset` from its config; what is left out has the defaults of its preset.
///
/// # Errors
/// [`Error::UnknownPreset`]; [`Error::Config`] naming the setting that is out of range.
pub fn build(preset: &str, config: &Value, vs: &Path) -> Result<CtrModel> {
    if !NAMES.contains(&preset) {
        return Err(Error::UnknownPreset {
            name: preset.to_owned(),
            nearest: registry::nearest(NAMES.into_iter(), preset),
        });
    }
    let mut config = config.clone();
    if let Value::Object(fields) = &mut config {
        fields.insert("model".to_owned(), preset.into());
    }
    parse_config::<CtrConfig>(&config)?.build(vs)
}

/// The fields of a config.
///
/// # Errors
/// [`Error::Config`] when it has none that can be read.
pub fn fields_of(config: &Value) -> Result<Vec<Field>> {
    parse_config(config.get("fields").unwrap_or(&Value::Null))
}
