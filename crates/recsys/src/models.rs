//! The list of presets, and what trainers need of any of the click models.

use densely_core::registry::{Preset, TensorSpec, parse_config, take_inputs};
use densely_core::{Model, Result, Tensors, check};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tch::Tensor;
use tch::nn::Path;

use crate::attention::AttentionConfig;
use crate::din::{Din, DinConfig};
use crate::embedding::Embeddings;
use crate::fields::Field;
use crate::finalmlp::{FinalMlp, FinalMlpConfig};
use crate::layers::{BnMode, Dice, Variant};

/// Any click model's config; in TOML `model = "finalmlp"` and the fields beside it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "model", rename_all = "lowercase")]
pub enum CtrConfig {
    /// [`FinalMlp`].
    FinalMlp(FinalMlpConfig),
    /// [`Din`].
    Din(DinConfig),
}

impl CtrConfig {
    /// Inputs in order.
    pub fn fields(&self) -> &[Field] {
        match self {
            Self::FinalMlp(config) => &config.fields,
            Self::Din(config) => &config.fields,
        }
    }

    /// Creates the parameters under `vs`.
    ///
    /// # Errors
    /// [`densely_core::Error::Config`] naming the field that is out of range.
    pub fn build(&self, vs: &Path) -> Result<CtrModel> {
        Ok(match self {
            Self::FinalMlp(config) => CtrModel::FinalMlp(config.build(vs)?),
            Self::Din(config) => CtrModel::Din(config.build(vs)?),
        })
    }
}

/// A built click model.
#[derive(Debug)]
pub enum CtrModel {
    /// [`FinalMlp`].
    FinalMlp(FinalMlp),
    /// [`Din`].
    Din(Din),
}

impl CtrModel {
    /// Logits `[batch]` of a click.
    ///
    /// # Errors
    /// Those of the model.
    pub fn forward(&self, inputs: &Tensors, train: bool) -> Result<Tensor> {
        match self {
            Self::FinalMlp(model) => model.forward(inputs, train),
            Self::Din(model) => model.forward(inputs, train),
        }
    }

    /// Logits `[n]` of many candidates for one user, in evaluation: `candidates` holds the fields that depend on the candidate, `[n]` each,
    /// `user` all others, one row each.
    ///
    /// # Errors
    /// Those of the model.
    pub fn score_candidates(&self, user: &Tensors, candidates: &Tensors) -> Result<Tensor> {
        match self {
            Self::FinalMlp(model) => model.score_candidates(user, candidates),
            Self::Din(model) => model.score_candidates(user, candidates),
        }
    }

    /// See [`Embeddings::set_sparse`]; for all tables of the model.
    pub fn set_sparse(&self, sparse: bool) {
        match self {
            Self::FinalMlp(model) => model
                .embeddings()
                .for_each(|tables| tables.set_sparse(sparse)),
            Self::Din(model) => model.embeddings().set_sparse(sparse),
        }
    }

    /// All tables of the model.
    pub fn embeddings(&self) -> Vec<&Embeddings> {
        match self {
            Self::FinalMlp(model) => model.embeddings().collect(),
            Self::Din(model) => vec![model.embeddings()],
        }
    }
}

impl Model for CtrModel {
    fn forward_named(&self, inputs: &Tensors, train: bool) -> Result<Tensors> {
        Ok(outputs(&self.forward(inputs, train)?))
    }

    fn aliases(&self) -> Vec<(String, String)> {
        match self {
            Self::FinalMlp(model) => model.aliases(),
            Self::Din(model) => model.aliases(),
        }
    }
}

/// The outputs of a click model by name.
pub(crate) fn outputs(logits: &Tensor) -> Tensors {
    Tensors::from([
        ("logit".to_owned(), logits.shallow_clone()),
        ("probability".to_owned(), logits.sigmoid()),
    ])
}

/// A [`Dice`] as a model of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiceConfig {
    /// Channels.
    pub input_dim: i64,
    /// Whose eps, momentum and trained parts.
    pub variant: Variant,
    /// Of the authors' variant.
    pub bn_mode: BnMode,
}

impl Default for DiceConfig {
    fn default() -> Self {
        Self {
            input_dim: 64,
            variant: Variant::Fuxictr,
            bn_mode: BnMode::Frozen,
        }
    }
}

impl DiceConfig {
    /// Creates the parameters under `vs`.
    ///
    /// # Errors
    /// [`densely_core::Error::Config`] unless there is a channel.
    pub fn build(&self, vs: &Path) -> Result<Dice> {
        check::positive("input_dim", self.input_dim)?;
        Ok(Dice::new(
            vs,
            self.input_dim,
            self.variant,
            self.bn_mode,
            false,
        ))
    }
}

impl Model for Dice {
    fn forward_named(&self, inputs: &Tensors, train: bool) -> Result<Tensors> {
        let [xs] = take_inputs(inputs, ["x"])?;
        let xs = xs.ok_or_else(|| check::absent("x"))?;
        check::shape("x", xs, &[None, Some(self.channels())])?;
        check::kind("x", xs, self.kind())?;
        Ok(Tensors::from([("y".to_owned(), xs.apply_t(self, train))]))
    }
}

const FINALMLP: &str = "Mao, Zhu, Su, Cai, Li, Dong 2023, arXiv 2304.00902";
const DIN: &str = "Zhou, Zhu, Song, Fan, Zhu, Ma, Yan, Jin, Li, Gai 2018, arXiv 1706.06978";

const fn spec(
    name: &'static str,
    shape: &'static [&'static str],
    dtype: &'static str,
) -> TensorSpec {
    TensorSpec { name, shape, dtype }
}

const fn id(name: &'static str) -> TensorSpec {
    spec(name, &["B"], "i64")
}

const OUTPUTS: &[TensorSpec] = &[
    spec("logit", &["B"], "f32"),
    spec("probability", &["B"], "f32"),
];

/// Every preset of this crate. `finalmlp` has the sizes of `Frappe_x1` in the BARS benchmark, the others those of
/// `AmazonElectronics_x1`; inputs are one tensor per field of the config, by its name.
pub static PRESETS: &[Preset] = &[
    Preset {
        name: "finalmlp",
        domain: "recsys",
        paper: FINALMLP,
        params: 253_392,
        macs: 146_600,
        config: || json!(FinalMlpConfig::default()),
        inputs: &[
            id("user"),
            id("item"),
            id("daytime"),
            id("weekday"),
            id("isweekend"),
            id("homework"),
            id("cost"),
            id("weather"),
            id("country"),
            id("city"),
        ],
        outputs: OUTPUTS,
        weights: &[],
        dropout: &["dropout_on"],
        build: |config, vs| {
            Ok(Box::new(parse_config::<FinalMlpConfig>(config)?.build(vs)?) as Box<dyn Model>)
        },
    },
    Preset {
        name: "din",
        domain: "recsys",
        paper: DIN,
        params: 5_403_522,
        macs: 40_264_960,
        config: || json!(DinConfig::default()),
        inputs: &[
            id("item_id"),
            id("cate_id"),
            spec("item_history", &["B", "T"], "i64"),
            spec("cate_history", &["B", "T"], "i64"),
        ],
        outputs: OUTPUTS,
        weights: &[],
        dropout: &["dropout_on"],
        build: |config, vs| {
            Ok(Box::new(parse_config::<DinConfig>(config)?.build(vs)?) as Box<dyn Model>)
        },
    },
    Preset {
        name: "din-attention",
        domain: "recsys",
        paper: DIN,
        params: 395_009,
        macs: 39_347_200,
        config: || json!(AttentionConfig::default()),
        inputs: &[
            spec("query", &["B", "E"], "f32"),
            spec("keys", &["B", "T", "E"], "f32"),
            spec("mask", &["B", "T"], "f32"),
        ],
        outputs: &[spec("pooled", &["B", "E"], "f32")],
        weights: &[],
        dropout: &["dropout_on"],
        build: |config, vs| {
            Ok(Box::new(parse_config::<AttentionConfig>(config)?.build(vs)?) as Box<dyn Model>)
        },
    },
    Preset {
        name: "dice",
        domain: "recsys",
        paper: DIN,
        params: 64,
        macs: 0,
        config: || json!(DiceConfig::default()),
        inputs: &[spec("x", &["B", "C"], "f32")],
        outputs: &[spec("y", &["B", "C"], "f32")],
        weights: &[],
        dropout: &[],
        build: |config, vs| {
            Ok(Box::new(parse_config::<DiceConfig>(config)?.build(vs)?) as Box<dyn Model>)
        },
    },
];
