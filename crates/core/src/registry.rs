//! The list of models: a row per preset, and one trait through which any of them runs on named tensors.
//!
//! Each domain crate exposes `PRESETS: &[Preset]`; a program joins the slices it depends on.

use serde::Serialize;
use serde_json::Value;
use tch::nn::Path;

use crate::weights::Tensors;
use crate::{Error, Result};

/// A model that runs on named tensors. Models have typed `forward` methods of their own; this is the door
/// for programs that hold many.
pub trait Model: std::fmt::Debug + Send {
    /// Runs the model. `train` turns dropout and batch statistics on.
    ///
    /// # Errors
    /// [`Error::Shape`] when an input is absent, superfluous or of another shape or kind.
    fn forward_named(&self, inputs: &Tensors, train: bool) -> Result<Tensors>;

    /// Further names that the reference gives to parameters of this model, such as those of shared tables, each with the name here.
    fn aliases(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    /// Names of what files of the reference hold beside the parameters and this model computes for itself, such as causal masks and
    /// frequencies. Loading passes over them.
    fn ignored(&self) -> Vec<String> {
        Vec::new()
    }
}

/// A named configuration of a model.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Preset {
    /// Published spelling, lower case.
    pub name: &'static str,
    /// Domain crate without its prefix, such as `tabular`.
    pub domain: &'static str,
    /// Authors, year, identifier.
    pub paper: &'static str,
    /// Trainable values at this config; asserted by a test.
    pub params: u64,
    /// Multiply-accumulates of all matrix products for one row; asserted by a test.
    pub macs: u64,
    /// The whole config as JSON.
    #[serde(serialize_with = "config_of")]
    pub config: fn() -> Value,
    /// Tensors the model takes.
    pub inputs: &'static [TensorSpec],
    /// Tensors the model gives.
    pub outputs: &'static [TensorSpec],
    /// Published weights that are known to load.
    pub weights: &'static [&'static str],
    /// Fields of the config that hold dropout probabilities, or a switch for them all.
    #[serde(skip)]
    pub dropout: &'static [&'static str],
    /// Makes the model from a whole config, creating its parameters under the path.
    #[serde(skip)]
    pub build: fn(&Value, &Path) -> Result<Box<dyn Model>>,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature serde calls"
)]
fn config_of<S: serde::Serializer>(
    config: &fn() -> Value,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    config().serialize(serializer)
}

/// A tensor at a model's door.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct TensorSpec {
    /// Name in the file of inputs or outputs.
    pub name: &'static str,
    /// Sizes: letters are free or set by the config.
    pub shape: &'static [&'static str],
    /// `f32` stands for the dtype the model runs in.
    pub dtype: &'static str,
}

/// The preset of this name.
///
/// # Errors
/// [`Error::UnknownPreset`] with the three nearest names.
pub fn find<'a>(presets: &'a [Preset], name: &str) -> Result<&'a Preset> {
    presets
        .iter()
        .find(|preset| preset.name == name)
        .ok_or_else(|| Error::UnknownPreset {
            name: name.to_owned(),
            nearest: nearest(presets.iter().map(|preset| preset.name), name),
        })
}

/// The three `names` most like `name`, the most alike first.
pub fn nearest<'a>(names: impl Iterator<Item = &'a str>, name: &str) -> Vec<String> {
    let mut names: Vec<&str> = names.collect();
    names.sort_by(|a, b| {
        let distance = |other: &str| 1.0 - strsim::jaro_winkler(other, name);
        distance(a).total_cmp(&distance(b)).then(a.cmp(b))
    });
    names.into_iter().take(3).map(str::to_owned).collect()
}

impl Preset {
    /// The preset's config with the fields of `overrides` (a JSON object) put in place of its own.
    ///
    /// Only top-level fields are replaced; a nested object is replaced whole. A preset whose config has a `model_type` speaks Hugging
    /// Face's `config.json`: an object that says which model it is (`model_type` or `architectures`) is taken whole in the place of the
    /// preset's, and one that does not may hold fields that the preset lacks, as those files do, which are named in a warning.
    /// # Errors
    /// [`Error::Config`] when `overrides` is not an object or names a field that a config of this project lacks.
    pub fn config_with(&self, overrides: &Value) -> Result<Value> {
        let mut config = (self.config)();
        let (Value::Object(fields), Value::Object(overrides)) = (&mut config, overrides) else {
            return Err(Error::config("config", "must be a JSON object"));
        };
        let foreign = fields.contains_key("model_type");
        if foreign
            && ["model_type", "architectures"]
                .iter()
                .any(|key| overrides.contains_key(*key))
        {
            return Ok(Value::Object(overrides.clone()));
        }
        for (key, value) in overrides {
            if foreign && !fields.contains_key(key) {
                tracing::warn!("`{key}` is no setting of the preset `{}`", self.name);
                fields.insert(key.clone(), value.clone());
                continue;
            }
            let Some(field) = fields.get_mut(key) else {
                let near = nearest(fields.keys().map(String::as_str), key).join("`, `");
                return Err(Error::config(
                    key,
                    format!("`{}` has no such setting; nearest: `{near}`", self.name),
                ));
            };
            *field = value.clone();
        }
        Ok(config)
    }
}

/// Reads a model's config from JSON.
///
/// # Errors
/// [`Error::Config`] with serde's words for the field that does not fit.
pub fn parse_config<T: serde::de::DeserializeOwned>(config: &Value) -> Result<T> {
    T::deserialize(config).map_err(|e| Error::config("config", e.to_string()))
}

/// Takes the named tensors that a model knows out of `inputs`, in the order of `names`.
///
/// # Errors
/// [`Error::Shape`] when `inputs` holds a tensor of another name.
pub fn take_inputs<'a, const N: usize>(
    inputs: &'a Tensors,
    names: [&str; N],
) -> Result<[Option<&'a tch::Tensor>; N]> {
    if let Some(name) = inputs.keys().find(|name| !names.contains(&name.as_str())) {
        return Err(Error::Shape {
            what: name.clone(),
            expected: format!("one of `{}`", names.join("`, `")),
            got: "an input that the model does not take".to_owned(),
        });
    }
    Ok(names.map(|name| inputs.get(name)))
}
