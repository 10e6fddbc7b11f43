//! Everything that decides a fit, as recipes and run folders hold it. Defaults are written out when saved.

use densely_core::{Error, Result, check};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::feature_map::{Column, FeatureMap};
use crate::metrics::Monitor;
use crate::optim::OptimConfig;

/// The settings of one fit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CtrSettings {
    /// The table and how it is read.
    pub data: DataSettings,
    /// The network.
    #[serde(default)]
    pub model: ModelSettings,
    /// The training loop.
    #[serde(default)]
    pub train: TrainSettings,
}

/// The table and how it is read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSettings {
    /// Column with the label: 1 for a click, else 0.
    pub label: String,
    /// The label is a number, and from this value on it is a click.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub click_from: Option<f64>,
    /// Columns that become fields, in the order of the model's embeddings. In a file `name` may be a list: each is such a column.
    #[serde(deserialize_with = "columns")]
    pub columns: Vec<Column>,
    /// Column whose equal values are one group of gAUC, mostly users.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Column with the item that is shown, for the popularity that stands beside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item: Option<String>,
    /// How rows are divided.
    #[serde(default)]
    pub split: Split,
}

/// Columns, of which one entry may name several.
fn columns<'de, D: serde::Deserializer<'de>>(
    from: D,
) -> std::result::Result<Vec<Column>, D::Error> {
    use serde::de::Error;
    let mut columns = Vec::new();
    for mut entry in Vec::<Map<String, Value>>::deserialize(from)? {
        let names = match entry.remove("name") {
            Some(Value::Array(names)) => names,
            Some(name) => vec![name],
            None => return Err(D::Error::custom("a column has no `name`")),
        };
        for name in names {
            entry.insert("name".to_owned(), name);
            let column = serde_json::from_value(Value::Object(entry.clone()));
            columns.push(column.map_err(D::Error::custom)?);
        }
    }
    Ok(columns)
}

/// How rows are divided. The table is never held in memory for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Split {
    /// Each row at random.
    Random {
        /// Share for validation.
        valid: f64,
        /// Share for testing.
        test: f64,
        /// Seed of the draw.
        #[serde(default)]
        seed: u64,
    },
    /// The oldest rows train, the newest test; rows of one time stay together.
    Time {
        /// Column with a time or number.
        column: String,
        /// Share for validation.
        valid: f64,
        /// Share for testing.
        test: f64,
    },
    /// A column that says `train`, `valid` or `test`.
    Column {
        /// Its name.
        name: String,
    },
    /// The table trains; validation and test are files of their own beside it, as the public sets are given out.
    Files {
        /// Name of the file for validation.
        valid: String,
        /// Name of the file for testing.
        test: String,
    },
}

impl Default for Split {
    fn default() -> Self {
        Self::Random {
            valid: 0.1,
            test: 0.1,
            seed: 0,
        }
    }
}

impl Split {
    /// Checks the shares.
    ///
    /// # Errors
    /// [`Error::Config`] for `data.split`.
    pub fn validate(&self) -> Result<()> {
        let (Self::Random { valid, test, .. } | Self::Time { valid, test, .. }) = self else {
            return Ok(());
        };
        if *valid > 0.0 && *test > 0.0 && valid + test < 1.0 {
            return Ok(());
        }
        let reason =
            format!("`valid` and `test` must be positive and sum below 1, got {valid} and {test}");
        Err(Error::config("data.split", reason))
    }
}

/// The network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelSettings {
    /// `finalmlp` or `din`.
    pub preset: String,
    /// Fields that replace those of its config. `fields` come from the data and must not stand here.
    pub config: Map<String, Value>,
}

impl Default for ModelSettings {
    fn default() -> Self {
        Self {
            preset: "finalmlp".to_owned(),
            config: Map::new(),
        }
    }
}

impl ModelSettings {
    /// The whole config with the fields of `map`.
    ///
    /// # Errors
    /// [`Error::Config`] for `fields` that stand here.
    pub fn resolve(&self, map: &FeatureMap) -> Result<Value> {
        let mut config = self.config.clone();
        for key in ["fields", "model"] {
            if config.contains_key(key) {
                let reason = "is set by the data and by `preset` and must not stand here";
                return Err(Error::config(format!("model.config.{key}"), reason));
            }
        }
        let fields = serde_json::to_value(map.fields());
        let fields = fields.map_err(|e| Error::config("fields", e.to_string()))?;
        config.insert("fields".to_owned(), fields);
        Ok(Value::Object(config))
    }
}

/// The training loop. Defaults are those of FuxiCTR's trainer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainSettings {
    /// Learning rate, regularisers and clipping; whole tables at every step (`dense`), or rows that occur (`lazy`).
    pub optimizer: OptimConfig,
    /// Rows per step.
    pub batch_size: usize,
    /// Rows that are evaluated at once; does not change results.
    pub eval_batch_size: usize,
    /// Epochs at most.
    pub epochs: u64,
    /// What is watched on the validation rows.
    pub monitor: Monitor,
    /// Epochs without a better score after which training stops.
    pub patience: u64,
    /// By how much a score must be better to count.
    pub min_improvement: f64,
    /// What remains of the learning rate after an epoch without a better score; 1 leaves it.
    pub lr_factor: f64,
    /// The learning rate never falls below.
    pub min_lr: f64,
    /// Whether probabilities are scaled by the temperature that fits the validation rows.
    pub calibrate: bool,
}

impl Default for TrainSettings {
    fn default() -> Self {
        Self {
            optimizer: OptimConfig::default(),
            batch_size: 4096,
            eval_batch_size: 10_000,
            epochs: 100,
            monitor: Monitor::default(),
            patience: 2,
            min_improvement: 1e-6,
            lr_factor: 0.1,
            min_lr: 1e-6,
            calibrate: false,
        }
    }
}

impl TrainSettings {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self, has_groups: bool) -> Result<()> {
        for (field, value) in [
            ("train.batch_size", self.batch_size as u64),
            ("train.eval_batch_size", self.eval_batch_size as u64),
            ("train.epochs", self.epochs),
            ("train.patience", self.patience),
        ] {
            check::positive(field, i64::try_from(value).unwrap_or(i64::MAX))?;
        }
        for (field, value) in [
            ("train.min_improvement", self.min_improvement),
            ("train.min_lr", self.min_lr),
        ] {
            if !(value >= 0.0 && value.is_finite()) {
                let reason = format!("must be at least 0 and finite, got {value}");
                return Err(Error::config(field, reason));
            }
        }
        if !(self.lr_factor > 0.0 && self.lr_factor <= 1.0) {
            let reason = format!("must lie in (0, 1], got {}", self.lr_factor);
            return Err(Error::config("train.lr_factor", reason));
        }
        self.monitor.validate(has_groups)?;
        self.optimizer.validate()
    }
}
