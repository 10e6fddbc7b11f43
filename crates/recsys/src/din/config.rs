//! Sizes of a DIN, and which go together.

use std::collections::HashSet;

use densely_core::{Error, Result, check};
use serde::{Deserialize, Serialize};

use crate::attention::AttentionConfig;
use crate::embedding::Pretrained;
use crate::fields::{self, Field};
use crate::layers::{Activation, BnMode, MlpSpec, Names, Variant};

/// Sizes of a DIN. Defaults are those of `AmazonElectronics_x1` in the BARS benchmark.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DinConfig {
    /// Whose equations.
    pub variant: Variant,
    /// Inputs in order. Sequences that are no history enter as the mean of their vectors.
    pub fields: Vec<Field>,
    /// Fields of the item at hand, a list for each attention.
    pub din_target_field: Vec<Vec<String>>,
    /// Sequences in which the same things happened before, a list for each attention, in the order of the target's.
    pub din_sequence_field: Vec<Vec<String>>,
    /// Input `[batch]` with the number of valid steps of each history, which then stand first. With none, steps whose id in the first
    /// sequence is not 0 are valid: right for feature maps made here, wrong for the authors' data, where 0 is an item.
    pub length: Option<String>,
    /// Fields whose vectors are given.
    pub pretrained: Vec<Pretrained>,
    /// Width of a field's vector; E of an attention is this times the fields of its target.
    pub embedding_dim: i64,
    /// Hidden widths of the local activation unit.
    pub attention_hidden_units: Vec<i64>,
    /// Behind each of them.
    pub attention_hidden_activations: Activation,
    /// Probability behind each of them.
    pub attention_dropout: f64,
    /// Whether scores are normalised over the history.
    pub din_use_softmax: bool,
    /// Hidden widths of the tail.
    pub dnn_hidden_units: Vec<i64>,
    /// Behind each of them.
    pub dnn_activations: Activation,
    /// Probability behind each of them.
    pub net_dropout: f64,
    /// Whether the tail has batch norms.
    pub batch_norm: bool,
    /// Of the authors' variant.
    pub bn_mode: BnMode,
    /// Whether dropout runs in training. Its places in the reference's lists of modules, and with them the parameters' names, stay.
    pub dropout_on: bool,
}

impl Default for DinConfig {
    fn default() -> Self {
        let names = |names: [&str; 2]| vec![names.map(str::to_owned).to_vec()];
        Self {
            variant: Variant::Fuxictr,
            fields: vec![
                Field::categorical("item_id", 63_003),
                Field::categorical("cate_id", 803),
                Field::sequence("item_history", 63_003, 100, Some("item_id")),
                Field::sequence("cate_history", 803, 100, Some("cate_id")),
            ],
            din_target_field: names(["item_id", "cate_id"]),
            din_sequence_field: names(["item_history", "cate_history"]),
            length: None,
            pretrained: Vec::new(),
            embedding_dim: 64,
            attention_hidden_units: vec![512, 256],
            attention_hidden_activations: Activation::Dice,
            attention_dropout: 0.1,
            din_use_softmax: true,
            dnn_hidden_units: vec![1024, 512, 256],
            dnn_activations: Activation::Dice,
            net_dropout: 0.1,
            batch_norm: true,
            bn_mode: BnMode::Frozen,
            dropout_on: true,
        }
    }
}

impl DinConfig {
    /// The authors' DIN for Amazon's electronics: item 0 is an item, so histories come with their lengths.
    pub fn authors() -> Self {
        Self {
            variant: Variant::Authors,
            fields: vec![
                Field::categorical("item", 63_001),
                Field::categorical("cate", 801),
                Field::sequence("hist_item", 63_001, 431, Some("item")),
                Field::sequence("hist_cate", 801, 431, Some("cate")),
            ],
            din_target_field: vec![vec!["item".to_owned(), "cate".to_owned()]],
            din_sequence_field: vec![vec!["hist_item".to_owned(), "hist_cate".to_owned()]],
            length: Some("length".to_owned()),
            attention_hidden_units: vec![80, 40],
            attention_hidden_activations: Activation::Sigmoid,
            attention_dropout: 0.0,
            dnn_hidden_units: vec![80, 40],
            dnn_activations: Activation::Sigmoid,
            net_dropout: 0.0,
            batch_norm: false,
            ..Self::default()
        }
    }

    /// `DeepCTR-Torch`'s DIN with its own defaults for everything but the fields.
    pub fn deepctr() -> Self {
        Self {
            variant: Variant::Deepctr,
            embedding_dim: 4,
            attention_hidden_units: vec![64, 16],
            attention_dropout: 0.0,
            din_use_softmax: false,
            dnn_hidden_units: vec![256, 128],
            dnn_activations: Activation::Relu,
            net_dropout: 0.0,
            batch_norm: false,
            ..Self::default()
        }
    }

    /// Checks sizes and names.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        fields::validate(&self.fields)?;
        check::positive("embedding_dim", self.embedding_dim)?;
        check::dropout("attention_dropout", self.attention_dropout)?;
        check::dropout("net_dropout", self.net_dropout)?;
        for (field, hidden) in [
            ("attention_hidden_units", &self.attention_hidden_units),
            ("dnn_hidden_units", &self.dnn_hidden_units),
        ] {
            if hidden.is_empty() {
                return Err(Error::config(field, "must have at least one layer"));
            }
            hidden
                .iter()
                .try_for_each(|width| check::positive(field, *width))?;
        }
        self.validate_groups()?;
        self.validate_pretrained()?;
        if let Some(length) = &self.length
            && self.field(length).is_some()
        {
            return Err(Error::config(
                "length",
                format!("`{length}` is a field; give it a name of its own"),
            ));
        }
        let dropout = self.attention_dropout + self.net_dropout;
        match self.variant {
            Variant::Fuxictr if self.length.is_some() => Err(Error::config(
                "length",
                "`fuxictr` takes its mask from the ids; leave it out",
            )),
            Variant::Authors if dropout > 0.0 || self.batch_norm => Err(Error::config(
                "variant",
                "`authors` has no dropout, and batch norms of its own: set both off",
            )),
            Variant::Authors if !self.din_use_softmax => Err(Error::config(
                "din_use_softmax",
                "`authors` always normalises by a softmax",
            )),
            Variant::Authors if self.fields.len() != 2 * self.din_target_field[0].len() => {
                let reason = "`authors` sees the target's fields and its histories, and no others";
                Err(Error::config("fields", reason))
            }
            _ => Ok(()),
        }
    }

    fn validate_groups(&self) -> Result<()> {
        let (targets, histories) = (&self.din_target_field, &self.din_sequence_field);
        if targets.is_empty() || targets.len() != histories.len() {
            let reason = format!(
                "has {} lists, din_target_field {}; both need as many, and one at least",
                histories.len(),
                targets.len()
            );
            return Err(Error::config("din_sequence_field", reason));
        }
        if self.variant != Variant::Fuxictr && targets.len() > 1 {
            return Err(Error::config(
                "din_target_field",
                "only `fuxictr` takes more than one attention",
            ));
        }
        let mut seen = HashSet::new();
        for (target, history) in targets.iter().zip(histories) {
            if target.is_empty() || target.len() != history.len() {
                let reason =
                    format!("{history:?} must have as many fields as {target:?}, and one at least");
                return Err(Error::config("din_sequence_field", reason));
            }
            for name in target {
                if !matches!(self.field(name), Some(Field::Categorical { .. })) {
                    return Err(Error::config(
                        "din_target_field",
                        format!("`{name}` is no categorical field of the model"),
                    ));
                }
            }
            for name in history {
                if !matches!(self.field(name), Some(Field::Sequence { .. })) {
                    return Err(Error::config(
                        "din_sequence_field",
                        format!("`{name}` is no sequence of the model"),
                    ));
                }
                if !seen.insert(name) {
                    return Err(Error::config(
                        "din_sequence_field",
                        format!("`{name}` stands twice"),
                    ));
                }
            }
        }
        Ok(())
    }

    fn validate_pretrained(&self) -> Result<()> {
        let given = |name: &str| self.pretrained.iter().find(|given| given.field == name);
        for (place, Pretrained { field, dim }) in self.pretrained.iter().enumerate() {
            check::positive("pretrained.dim", *dim)?;
            let wrong = |reason: String| Err(Error::config("pretrained", reason));
            if self.variant != Variant::Fuxictr {
                return wrong("only `fuxictr` takes given vectors".to_owned());
            }
            if self.pretrained[..place]
                .iter()
                .any(|other| other.field == *field)
            {
                return wrong(format!("`{field}` stands twice"));
            }
            let Some(known) = self
                .field(field)
                .filter(|known| known.vocab_size().is_some())
            else {
                return wrong(format!("`{field}` is no field with ids"));
            };
            let Some(owner) = known.share_embedding() else {
                continue;
            };
            if given(owner).is_none_or(|owner| owner.dim != *dim) {
                return wrong(format!(
                    "`{field}` shares the table of `{owner}`, which must have vectors of {dim} too"
                ));
            }
        }
        for field in &self.fields {
            if let Some(owner) = field.share_embedding()
                && given(owner).is_some()
                && given(field.name()).is_none()
            {
                let reason = format!(
                    "`{}` shares the given vectors of `{owner}`: name it too",
                    field.name()
                );
                return Err(Error::config("pretrained", reason));
            }
        }
        Ok(())
    }

    pub(super) fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|field| field.name() == name)
    }

    pub(super) fn is_history(&self, name: &str) -> bool {
        self.din_sequence_field
            .iter()
            .flatten()
            .any(|other| other == name)
    }

    /// The attention over the history of this place.
    pub(super) fn attention(&self, target: &[String]) -> AttentionConfig {
        AttentionConfig {
            variant: self.variant,
            embedding_dim: self.embedding_dim * target.len() as i64,
            attention_units: self.attention_hidden_units.clone(),
            hidden_activations: self.attention_hidden_activations,
            dropout_rate: self.attention_dropout,
            use_softmax: self.din_use_softmax,
            bn_mode: self.bn_mode,
            dropout_on: self.dropout_on,
        }
    }

    pub(super) fn tail(&self) -> MlpSpec<'_> {
        let dim = self.embedding_dim;
        let numbers = self
            .fields
            .iter()
            .filter(|field| field.vocab_size().is_none())
            .count() as i64;
        let all = self.fields.len() as i64;
        let (inputs, output, names) = match self.variant {
            Variant::Authors => (
                3 * dim * self.din_target_field[0].len() as i64,
                Some(1),
                Names::Numbered(""),
            ),
            Variant::Fuxictr => (all * dim, Some(1), Names::Sequence),
            Variant::Deepctr => (
                (all - numbers) * dim + numbers,
                None,
                Names::Lists { history: false },
            ),
        };
        MlpSpec {
            inputs,
            hidden: &self.dnn_hidden_units,
            activation: self.dnn_activations,
            batch_norm: self.batch_norm,
            dropout: self.net_dropout,
            dropout_on: self.dropout_on,
            output,
            names,
            bn_mode: self.bn_mode,
        }
    }

    /// Multiply-accumulates of all matrix products for one row whose histories are as long as they may be.
    pub fn macs(&self) -> u64 {
        let attentions: i64 = self
            .din_target_field
            .iter()
            .zip(&self.din_sequence_field)
            .map(|(target, history)| {
                let steps = match self.field(&history[0]) {
                    Some(Field::Sequence { max_len, .. }) => *max_len,
                    _ => 0,
                };
                self.attention(target).macs_per_step() * steps
            })
            .sum();
        let last = self.dnn_hidden_units.last().copied().unwrap_or(0);
        let more = match self.variant {
            Variant::Authors => (self.embedding_dim * self.din_target_field[0].len() as i64).pow(2),
            Variant::Fuxictr => 0,
            Variant::Deepctr => last,
        };
        (attentions + self.tail().macs() + more) as u64
    }
}
