//! Everything that decides a fit, as recipes and run folders hold it. Defaults are written out when saved.

use std::collections::BTreeMap;

use densely_core::{Error, Result, check};
use densely_data::preprocess::PreprocessConfig;
use densely_data::schema::{Role, Task};
use densely_data::split::SplitConfig;
use densely_train::metrics::Metric;
use densely_train::optim::{AdamWConfig, OptimConfig};
use densely_train::schedule::ScheduleConfig;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::bins::{TreeOptions, quantile_bins, tree_bins};
use crate::embeddings::{NumEmbeddings, PiecewiseVersion};
use crate::models::ModelConfig;

/// The settings of one fit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FitSettings {
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
    /// Column to predict.
    pub target: String,
    /// What kind of target it is; inferred when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<Task>,
    /// Column with time; where there is one, the default split is by time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    /// Without a time, a group and a split, split by the only column of times, if there is one.
    #[serde(default)]
    pub auto_time: bool,
    /// Column whose equal values must stay in one part of the split.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Column with a weight per row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<String>,
    /// Roles that override the inferred ones, by column.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub roles: BTreeMap<String, Role>,
    /// Leave out rows without a target instead of failing.
    #[serde(default)]
    pub drop_missing_target: bool,
    /// Predict whether the target, a number, is above this value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_above: Option<f64>,
    /// Share of rows for validation, when no split is named.
    #[serde(default = "default_valid")]
    pub valid: f64,
    /// Share of rows for testing, when no split is named.
    #[serde(default = "default_test")]
    pub test: f64,
    /// How rows are divided; when left out by time or group where there is such a column, else at random
    /// (stratified by class).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<SplitConfig>,
    /// How columns become numbers.
    #[serde(default)]
    pub preprocess: PreprocessConfig,
}

impl DataSettings {
    /// The defaults, to predict the column `target`.
    pub fn new(target: impl Into<String>) -> Self {
        Self {
            target: target.into(),
            task: None,
            time: None,
            auto_time: false,
            group: None,
            weight: None,
            roles: BTreeMap::new(),
            drop_missing_target: false,
            target_above: None,
            valid: default_valid(),
            test: default_test(),
            split: None,
            preprocess: PreprocessConfig::default(),
        }
    }
}

fn default_valid() -> f64 {
    0.16
}
fn default_test() -> f64 {
    0.2
}

/// The network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelSettings {
    /// Name of the preset.
    pub preset: String,
    /// Fields that replace those of its config. Numbers of features, cardinalities and outputs come from the
    /// data and must not stand here.
    pub config: Map<String, Value>,
    /// Embedding of the numerical features.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embedding: Option<EmbeddingSettings>,
}

impl Default for ModelSettings {
    fn default() -> Self {
        Self {
            preset: "tabm".to_owned(),
            config: Map::new(),
            embedding: None,
        }
    }
}

/// Where the edges of bins are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bins {
    /// At quantiles of the training rows: TabM's choice.
    #[default]
    Quantile,
    /// Where a decision tree on the feature alone cuts the training targets.
    Tree,
}

/// An embedding before the data is known; bins are computed from the training rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
#[expect(
    missing_docs,
    reason = "the fields are those of `NumEmbeddings` and `TreeOptions`"
)]
pub enum EmbeddingSettings {
    PiecewiseLinear {
        #[serde(default)]
        bins: Bins,
        #[serde(default = "default_bins")]
        n_bins: i64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        min_samples_leaf: Option<i64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        min_impurity_decrease: Option<f64>,
        #[serde(default = "default_piecewise")]
        d_embedding: i64,
        #[serde(default)]
        activation: bool,
        #[serde(default = "default_version")]
        version: PiecewiseVersion,
    },
    LinearRelu {
        d_embedding: i64,
    },
    Periodic {
        d_embedding: i64,
        n_frequencies: i64,
        frequency_init_scale: f64,
        lite: bool,
    },
}

fn default_bins() -> i64 {
    48
}
fn default_piecewise() -> i64 {
    16
}
fn default_version() -> PiecewiseVersion {
    PiecewiseVersion::B
}

/// How the batches of one step relate to the members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Batches {
    /// All members see the same rows: cheaper, the package's recommendation.
    #[default]
    Shared,
    /// Each member draws its own permutation of the rows: the paper's plain TabM.
    PerMember,
}

/// Which parameters are decayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// Every parameter, as in the package's example.
    #[default]
    All,
    /// All but biases, linear embeddings and frequencies, as in the paper's code.
    Paper,
}

/// Which members are averaged to predict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Averaging {
    /// All of them.
    #[default]
    All,
    /// The one with the best validation score (TabM\[B\] of the paper).
    Best,
    /// From the best one, whichever improves the averaged validation score, until none does (TabM\[G\]).
    Greedy,
}

/// Precision of matrix products in training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// Single precision throughout.
    #[default]
    F32,
    /// bf16 products by autocast; parameters, loss and optimiser in f32.
    Bf16,
    /// f16 products by autocast, with a scaled loss, for GPUs without bf16.
    F16,
}

/// How much classes count in the loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClassWeights {
    /// Every row as much as any other.
    #[default]
    None,
    /// Every class as much as any other: a row counts `rows / (classes · rows of its class)`, as in scikit-learn.
    Balanced,
}

/// The training loop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainSettings {
    /// Optimiser and its learning rate.
    pub optimizer: OptimConfig,
    /// Learning rate by step.
    pub schedule: ScheduleConfig,
    /// Which parameters are decayed.
    pub decay: Decay,
    /// Rows per step.
    pub batch_size: usize,
    /// Rows per batch of evaluation; halved when memory runs out.
    pub eval_batch_size: usize,
    /// Most epochs.
    pub epochs: u64,
    /// Epochs without a better validation score before training stops.
    pub patience: u64,
    /// Largest global norm of the gradient; 0 turns clipping off.
    pub clip_norm: f64,
    /// How batches relate to members.
    pub batches: Batches,
    /// Precision of matrix products.
    pub precision: Precision,
    /// Score of validation; by the task when left out: rmse or accuracy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric: Option<Metric>,
    /// Which members are averaged.
    pub averaging: Averaging,
    /// Steps between checkpoints within an epoch, beside the one at its end; 0 for none.
    pub checkpoint_steps: u64,
    /// How much classes count in the loss; scores are not weighted.
    pub class_weights: ClassWeights,
    /// Seconds after which training ends, evaluated as far as it came; 0 for no limit. A run with a limit depends on the
    /// machine's speed.
    pub time_budget: f64,
    /// Whether probabilities are scaled by the temperature that fits the validation rows.
    pub calibrate: bool,
    /// Whether a GPU repeats whole steps from a recording, which pays for small models. Where it cannot, a warning says why.
    pub cuda_graph: bool,
}

impl Default for TrainSettings {
    fn default() -> Self {
        Self {
            optimizer: OptimConfig::AdamW(AdamWConfig {
                lr: 2e-3,
                weight_decay: 3e-4,
                ..AdamWConfig::default()
            }),
            schedule: ScheduleConfig::default(),
            decay: Decay::All,
            batch_size: 256,
            eval_batch_size: 8192,
            epochs: 1000,
            patience: 16,
            clip_norm: 1.0,
            batches: Batches::Shared,
            precision: Precision::F32,
            metric: None,
            averaging: Averaging::All,
            checkpoint_steps: 0,
            class_weights: ClassWeights::None,
            time_budget: 0.0,
            calibrate: false,
            cuda_graph: false,
        }
    }
}

impl TrainSettings {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        check::positive("train.batch_size", self.batch_size as i64)?;
        check::positive("train.eval_batch_size", self.eval_batch_size as i64)?;
        check::positive("train.epochs", self.epochs as i64)?;
        if !(self.clip_norm >= 0.0 && self.clip_norm.is_finite()) {
            let reason = format!(
                "must be 0 (off) or a positive number, got {}",
                self.clip_norm
            );
            return Err(Error::config("train.clip_norm", reason));
        }
        if !(self.time_budget >= 0.0 && self.time_budget.is_finite()) {
            let reason = format!(
                "must be 0 (no limit) or a number of seconds, got {}",
                self.time_budget
            );
            return Err(Error::config("train.time_budget", reason));
        }
        self.optimizer.validate()
    }

    /// The score of validation for `task`.
    ///
    /// # Errors
    /// [`Error::Config`] when the chosen metric does not fit the task.
    pub fn metric(&self, task: Task) -> Result<Metric> {
        let fitting = metrics_of(task);
        match self.metric {
            None => Ok(fitting[0]),
            Some(metric) if fitting.contains(&metric) => Ok(metric),
            Some(metric) => {
                let names: Vec<&str> = fitting.iter().map(|m| m.name()).collect();
                let reason = format!(
                    "`{}` does not fit; take one of: {}",
                    metric.name(),
                    names.join(", ")
                );
                Err(Error::config("train.metric", reason))
            }
        }
    }
}

/// The metrics of a task; the first is the default score.
pub fn metrics_of(task: Task) -> &'static [Metric] {
    match task {
        Task::Regression => &[Metric::Rmse, Metric::Mae, Metric::R2],
        Task::Binary => &[Metric::Accuracy, Metric::LogLoss, Metric::RocAuc],
        Task::Multiclass => &[Metric::Accuracy, Metric::LogLoss],
    }
}

/// Fields of a model's config that only the data can know.
const FROM_DATA: [&str; 4] = [
    "n_num_features",
    "cat_cardinalities",
    "d_out",
    "num_embeddings",
];

impl ModelSettings {
    /// The model's whole config for data with these features.
    ///
    /// `x_num`: `[rows, n]` f32, the preprocessed training rows, for bins. `y`: their targets as training sees them
    /// (standardised f32, or i64 classes), for bins by trees.
    /// # Errors
    /// [`Error::UnknownPreset`], [`Error::Config`] for a field that the model lacks or the data decides, and
    /// those of [`quantile_bins`] and [`tree_bins`].
    pub fn resolve(
        &self,
        x_num: Option<&tch::Tensor>,
        y: Option<&tch::Tensor>,
        cardinalities: &[i64],
        outputs: i64,
    ) -> Result<ModelConfig> {
        if let Some(field) = FROM_DATA
            .iter()
            .find(|field| self.config.contains_key(**field))
        {
            return Err(Error::config(
                format!("model.config.{field}"),
                "comes from the data; for an embedding use `model.embedding`",
            ));
        }
        let mut config = self.config.clone();
        config.insert(
            "n_num_features".to_owned(),
            x_num.map_or(0, |xs| xs.size()[1]).into(),
        );
        config.insert("cat_cardinalities".to_owned(), cardinalities.into());
        config.insert("d_out".to_owned(), outputs.into());
        if let (Some(embedding), Some(x_num)) = (&self.embedding, x_num) {
            let embedding = serde_json::to_value(embedding.resolve(x_num, y)?);
            let embedding =
                embedding.map_err(|e| Error::config("model.embedding", e.to_string()))?;
            config.insert("num_embeddings".to_owned(), embedding);
        }
        ModelConfig::of(&self.preset, &Value::Object(config))
    }
}

impl EmbeddingSettings {
    fn resolve(&self, x_num: &tch::Tensor, y: Option<&tch::Tensor>) -> Result<NumEmbeddings> {
        Ok(match self {
            Self::PiecewiseLinear {
                bins,
                n_bins,
                min_samples_leaf,
                min_impurity_decrease,
                d_embedding,
                activation,
                version,
            } => NumEmbeddings::PiecewiseLinear {
                bins: match bins {
                    Bins::Quantile => {
                        if min_samples_leaf.is_some() || min_impurity_decrease.is_some() {
                            let reason = "`min_samples_leaf` and `min_impurity_decrease` are for bins = \"tree\"";
                            return Err(Error::config("model.embedding.bins", reason));
                        }
                        quantile_bins(x_num, *n_bins)?
                    }
                    Bins::Tree => {
                        let y = y.ok_or_else(|| Error::data("", "tree bins need a target"))?;
                        let plain = TreeOptions::default();
                        let options = TreeOptions {
                            min_samples_leaf: min_samples_leaf.unwrap_or(plain.min_samples_leaf),
                            min_impurity_decrease: min_impurity_decrease
                                .unwrap_or(plain.min_impurity_decrease),
                        };
                        tree_bins(x_num, y, *n_bins, options)?
                    }
                },
                d_embedding: *d_embedding,
                activation: *activation,
                version: *version,
            },
            Self::LinearRelu { d_embedding } => NumEmbeddings::LinearRelu {
                d_embedding: *d_embedding,
            },
            Self::Periodic {
                d_embedding,
                n_frequencies,
                frequency_init_scale,
                lite,
            } => NumEmbeddings::Periodic {
                d_embedding: *d_embedding,
                n_frequencies: *n_frequencies,
                frequency_init_scale: *frequency_init_scale,
                activation: true,
                lite: *lite,
            },
        })
    }
}
