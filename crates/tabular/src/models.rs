//! The list of presets, and the one config type that recipes and checkpoints hold.

use densely_core::registry::{Preset, TensorSpec, parse_config};
use densely_core::{Model, Result};
use serde::Serialize;
use serde_json::{Value, json};
use tch::Tensor;
use tch::nn::Path;

use crate::mlp::MlpConfig;
use crate::tabm::TabMConfig;

/// A model for rows of a table, as training and prediction use it.
pub trait TabularModel: std::fmt::Debug + Send {
    /// `x_num [batch, n]`, `x_cat [batch, m]` (or with a member axis in the middle) → predictions of each
    /// member, `[batch, members, d_out]`; a model without members has one.
    ///
    /// # Errors
    /// [`densely_core::Error::Shape`] when an input does not fit the config.
    fn forward_members(
        &self,
        x_num: Option<&Tensor>,
        x_cat: Option<&Tensor>,
        train: bool,
    ) -> Result<Tensor>;
}

const X_NUM: TensorSpec = TensorSpec {
    name: "x_num",
    shape: &["B", "n_num_features"],
    dtype: "f32",
};
const X_CAT: TensorSpec = TensorSpec {
    name: "x_cat",
    shape: &["B", "len(cat_cardinalities)"],
    dtype: "i64",
};
const Y_MEMBERS: TensorSpec = TensorSpec {
    name: "y",
    shape: &["B", "k", "d_out"],
    dtype: "f32",
};
const Y: TensorSpec = TensorSpec {
    name: "y",
    shape: &["B", "d_out"],
    dtype: "f32",
};

/// The shape in which the three variants of TabM differ only by name and numbers.
const fn tabm(name: &'static str, params: u64, config: fn() -> Value) -> Preset {
    Preset {
        name,
        domain: "tabular",
        paper: "Gorishniy, Kotelnikov, Babenko 2025, arXiv 2410.24210",
        params,
        macs: 17_350_656,
        config,
        inputs: &[X_NUM, X_CAT],
        outputs: &[Y_MEMBERS],
        weights: &[],
        dropout: &["dropout"],
        build: |config, vs| {
            Ok(Box::new(parse_config::<TabMConfig>(config)?.build(vs)?) as Box<dyn Model>)
        },
    }
}

/// Every preset of this crate. Parameters and MACs are those of the default sizes: 24 numbers, categories of
/// 3 and 7 values, one output.
pub static PRESETS: &[Preset] = &[
    tabm("tabm", 690_272, || json!(TabMConfig::tabm())),
    tabm("tabm-mini", 560_736, || json!(TabMConfig::mini())),
    tabm("tabm-packed", 17_399_840, || json!(TabMConfig::packed())),
    Preset {
        name: "mlp",
        domain: "tabular",
        paper: "baseline of Gorishniy, Kotelnikov, Babenko 2025, arXiv 2410.24210",
        params: 543_745,
        macs: 542_208,
        config: || json!(MlpConfig::mlp()),
        inputs: &[X_NUM, X_CAT],
        outputs: &[Y],
        weights: &[],
        dropout: &["dropout"],
        build: |config, vs| {
            Ok(Box::new(parse_config::<MlpConfig>(config)?.build(vs)?) as Box<dyn Model>)
        },
    },
];

/// The config of any model of this crate, as the kind of preset decides.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum ModelConfig {
    /// `tabm`, `tabm-mini`, `tabm-packed`.
    TabM(TabMConfig),
    /// `mlp`.
    Mlp(MlpConfig),
}

impl ModelConfig {
    /// The config of `preset` with the fields of `overrides` in place of its own.
    ///
    /// # Errors
    /// [`densely_core::Error::UnknownPreset`], or [`densely_core::Error::Config`] for a field that the model
    /// lacks or a value of another type.
    pub fn of(preset: &str, overrides: &Value) -> Result<Self> {
        let config = densely_core::registry::find(PRESETS, preset)?.config_with(overrides)?;
        Ok(match preset {
            "mlp" => Self::Mlp(parse_config(&config)?),
            _ => Self::TabM(parse_config(&config)?),
        })
    }

    /// Checks the sizes.
    ///
    /// # Errors
    /// [`densely_core::Error::Config`] naming the field that is out of range.
    pub fn validate(&self) -> Result<()> {
        match self {
            Self::TabM(config) => config.validate(),
            Self::Mlp(config) => config.validate(),
        }
    }

    /// Members whose predictions are averaged.
    pub fn members(&self) -> i64 {
        match self {
            Self::TabM(config) => config.k,
            Self::Mlp(_) => 1,
        }
    }

    /// Creates the parameters under `vs`.
    ///
    /// # Errors
    /// [`densely_core::Error::Config`] naming the field that is out of range.
    pub fn build(&self, vs: &Path) -> Result<Box<dyn TabularModel>> {
        Ok(match self {
            Self::TabM(config) => Box::new(config.build(vs)?),
            Self::Mlp(config) => Box::new(config.build(vs)?),
        })
    }
}
