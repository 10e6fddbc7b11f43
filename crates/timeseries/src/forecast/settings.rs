//! The settings of a forecast, and what is chosen where they leave something open.

use densely_core::registry::{find, parse_config};
use densely_core::{Error, Result, check};
use densely_train::optim::{AdamConfig, OptimConfig};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::columns::TableSettings;
use super::encode::Encoders;
use crate::distributions::Distribution;
use crate::fit::{Loss, ModelSettings, TrainSettings};
use crate::models::PRESETS;
use crate::tsmixer_ext::TsMixerExtConfig;

/// The settings of one forecast.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForecastSettings {
    /// Steps to forecast.
    pub horizon: i64,
    /// Steps that the model sees; chosen when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lookback: Option<i64>,
    /// Steps of a season, for the naive forecast beside; a day, week or year by the step when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub season: Option<i64>,
    /// Share of the time, before that of the test, to choose the epoch by.
    #[serde(default = "valid")]
    pub valid: f64,
    /// Share of the time, the newest, to test on.
    #[serde(default = "test")]
    pub test: f64,
    /// Quantiles to forecast, ascending, 0.5 among them unless there is a distribution; none: the mean.
    #[serde(default)]
    pub quantiles: Vec<f64>,
    /// Distribution to forecast, by its likelihood; its mean is the point forecast.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distribution: Option<Distribution>,
    /// Seconds after which training ends with the best epoch so far; 0 is no limit.
    #[serde(default)]
    pub time_budget: f64,
    /// Windows of an epoch; where there are more, so many are drawn.
    #[serde(default = "epoch_windows")]
    pub epoch_windows: i64,
    /// How the table is read.
    #[serde(default)]
    pub data: TableSettings,
    /// The network; chosen when its preset is `auto`.
    #[serde(default = "auto")]
    pub model: ModelSettings,
    /// The training loop.
    #[serde(default = "training")]
    pub train: TrainSettings,
}

const fn valid() -> f64 {
    0.1
}

const fn test() -> f64 {
    0.2
}

const fn epoch_windows() -> i64 {
    50_000
}

/// The preset that stands for a choice by the data.
pub const AUTO: &str = "auto";

fn auto() -> ModelSettings {
    ModelSettings {
        preset: AUTO.to_owned(),
        config: Map::new(),
    }
}

fn training() -> TrainSettings {
    TrainSettings {
        optimizer: OptimConfig::Adam(AdamConfig {
            lr: 1e-3,
            ..AdamConfig::default()
        }),
        batch_size: 64,
        epochs: 200,
        patience: 8,
        clip_norm: 1.0,
        ..TrainSettings::default()
    }
}

impl ForecastSettings {
    /// The defaults of `densely forecast fit`.
    pub fn new(horizon: i64) -> Self {
        Self {
            horizon,
            lookback: None,
            season: None,
            valid: valid(),
            test: test(),
            quantiles: Vec::new(),
            distribution: None,
            time_budget: 0.0,
            epoch_windows: epoch_windows(),
            data: TableSettings::default(),
            model: auto(),
            train: training(),
        }
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        check::positive("horizon", self.horizon)?;
        check::positive("epoch_windows", self.epoch_windows)?;
        for (field, value) in [("lookback", self.lookback), ("season", self.season)] {
            value.map_or(Ok(()), |value| check::positive(field, value))?;
        }
        if !(self.valid > 0.0 && self.test > 0.0 && self.valid + self.test < 1.0) {
            let reason = format!(
                "`valid` and `test` must be shares above 0 that leave something to train on, got {} and {}",
                self.valid, self.test
            );
            return Err(Error::config("valid", reason));
        }
        if !(self.time_budget >= 0.0 && self.time_budget.is_finite()) {
            let reason = format!(
                "must be 0 (no limit) or a number of seconds, got {}",
                self.time_budget
            );
            return Err(Error::config("time_budget", reason));
        }
        let ascending = self.quantiles.windows(2).all(|pair| pair[0] < pair[1]);
        if !ascending || self.quantiles.iter().any(|q| !(*q > 0.0 && *q < 1.0)) {
            let reason = format!(
                "must be ascending numbers between 0 and 1, got {:?}",
                self.quantiles
            );
            return Err(Error::config("quantiles", reason));
        }
        if self.distribution.is_some() && self.train.loss != Loss::default() {
            let reason = "a distribution is trained by its likelihood; leave `train.loss` as it is";
            return Err(Error::config("train.loss", reason));
        }
        if !self.quantiles.is_empty()
            && self.distribution.is_none()
            && !self
                .quantiles
                .iter()
                .any(|q| (q - 0.5).abs() < f64::EPSILON)
        {
            let reason = format!(
                "must have 0.5, the point forecast, among them, got {:?}",
                self.quantiles
            );
            return Err(Error::config("quantiles", reason));
        }
        self.train.validate()
    }
}

/// What the data decides of a network.
#[derive(Debug, Clone)]
pub(super) struct Shape<'a> {
    pub lookback: i64,
    pub horizon: i64,
    pub channels: i64,
    pub outputs: i64,
    pub distribution: Option<Distribution>,
    pub series: usize,
    pub windows: i64,
    pub encoders: &'a Encoders,
}

/// The preset whose head may be a distribution.
const DISTRIBUTIONS: &str = "patchtsmixer-forecast";

/// Windows below which a network has too little to learn from.
const FEW: i64 = 500;

/// The preset for such data, and why.
///
/// # Errors
/// [`Error::Config`] when no preset has all that is asked for.
pub(super) fn choose(shape: &Shape) -> Result<(&'static str, String)> {
    Ok(if shape.distribution.is_some() {
        if !shape.encoders.is_empty() {
            let reason = "covariates, statics and the calendar are read by tsmixer-ext, which has no distribution head; leave them away, or take `--quantiles` instead of `--distribution`";
            return Err(Error::config("distribution", reason));
        }
        (DISTRIBUTIONS, "the one with a distribution head".to_owned())
    } else if !shape.encoders.is_empty() {
        ("tsmixer-ext", "the one that reads covariates".to_owned())
    } else if shape.windows < FEW || shape.lookback < 8 {
        (
            "nlinear",
            format!(
                "there are few windows ({}) or they are short, and it has the fewest parameters",
                shape.windows
            ),
        )
    } else if shape.series == 1 && shape.channels > 1 {
        (
            "tsmixer",
            format!("it mixes the {} series of a wide table", shape.channels),
        )
    } else {
        (
            "patchtsmixer-forecast",
            "one map for every series".to_owned(),
        )
    })
}

/// The whole config of a preset for data of this shape: what the user set, the sizes, and for the rest values for tables of middle size,
/// where those of the presets are for ETTh1.
///
/// # Errors
/// [`Error::UnknownPreset`]; [`Error::Config`] for a field that the model lacks or that the data decides.
pub(super) fn config(model: &ModelSettings, shape: &Shape) -> Result<Value> {
    let Shape {
        lookback,
        horizon,
        channels,
        outputs,
        encoders,
        ..
    } = *shape;
    let ours = match model.preset.as_str() {
        "tsmixer" => json!({ "dropout": 0.1, "norm": "layer" }),
        "patchtsmixer-forecast" => {
            let patch = (lookback / 8).clamp(1, 16);
            json!({ "patch_length": patch, "patch_stride": patch, "d_model": 32, "dropout": 0.2, "head_dropout": 0.2 })
        }
        "tsmixer-ext" => json!({ "dropout": 0.1 }),
        _ => json!({}),
    };
    let mut fields = model.config.clone();
    if let Some(distribution) = shape.distribution {
        if model.preset != DISTRIBUTIONS {
            let reason = format!(
                "the model `{}` has no distribution head; {DISTRIBUTIONS} has one, and every model forecasts `--quantiles`",
                model.preset
            );
            return Err(Error::config("distribution", reason));
        }
        let field = "distribution_output".to_owned();
        if fields.insert(field, distribution.name().into()).is_some() {
            let reason = "is set by `distribution` and must not stand here";
            return Err(Error::config("model.config.distribution_output", reason));
        }
        if distribution == Distribution::NegativeBinomial {
            // Counts are not shifted.
            fields.entry("scaling").or_insert_with(|| "mean".into());
        }
    }
    for (field, value) in ours.as_object().into_iter().flatten() {
        fields.entry(field.clone()).or_insert_with(|| value.clone());
    }
    if model.preset != "tsmixer-ext" {
        let model = ModelSettings {
            preset: model.preset.clone(),
            config: fields,
        };
        return model.resolve(lookback, horizon * outputs, channels);
    }
    let [past, known, statics] = encoders.widths();
    for (field, size) in [
        ("lookback", lookback),
        ("horizon", horizon),
        ("channels", channels),
        ("past", past),
        ("known", known),
        ("statics", statics),
        ("outputs", outputs),
    ] {
        if fields.insert(field.to_owned(), size.into()).is_some() {
            return Err(Error::config(
                format!("model.config.{field}"),
                "is set by the data and must not stand here",
            ));
        }
    }
    let config = find(PRESETS, &model.preset)?.config_with(&Value::Object(fields))?;
    parse_config::<TsMixerExtConfig>(&config)?.validate()?;
    Ok(config)
}
