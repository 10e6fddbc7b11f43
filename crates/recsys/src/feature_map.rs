//! The feature map: which column is which field, and which token has which id; with the semantics of FuxiCTR 2.3.
//!
//! Tokens are counted on the training rows. Id 0 is padding, ids go by count, the last id stands for tokens that training did not
//! see. Fields stand in the order of the columns, which is the order of the model's embeddings and so of every weight behind them.
//!
//! The file is JSON with FuxiCTR's own keys (`features`, `labels`, `num_fields`, …), so that FuxiCTR reads it too, and beside them
//! what it keeps elsewhere: how columns are read and the vocabularies.

mod build;
mod cells;
mod columns;
mod encode;
mod fuxictr;
mod vocabulary;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use densely_core::{Error, Result, fs};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

pub use build::Builder;
pub use cells::texts_of;
pub(crate) use cells::{column_numbers, column_texts};
pub use columns::{Column, Dtype, Kind, Normalizer, Padding, Preprocess, TokenOrder};
pub use encode::{Encoded, Layout};
use vocabulary::Saved;
pub use vocabulary::{Tokens, Vocabulary};

use crate::fields::{self, Field};

const FORMAT_VERSION: u32 = 1;

/// How the columns of a table become the inputs of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct FeatureMap {
    dataset_id: String,
    label: String,
    group: Option<String>,
    columns: Vec<Column>,
    /// One per column.
    codes: Vec<Code>,
}

/// What a value becomes.
#[derive(Debug, Clone, PartialEq)]
enum Code {
    /// An id; fields that share a table share the vocabulary.
    Tokens(Arc<Vocabulary>),
    /// `(value - shift) / scale`.
    Number(Scale),
    /// Nothing.
    Meta,
}

/// `(value - shift) / scale`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Scale {
    shift: f64,
    scale: f64,
}

/// What FuxiCTR does not keep in its file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Own {
    format_version: u32,
    dataset_id: String,
    num_fields: usize,
    total_features: i64,
    input_length: i64,
    labels: Vec<String>,
    features: Value,
    group_id: Option<String>,
    columns: Vec<Column>,
    vocabularies: BTreeMap<String, Saved>,
    scales: BTreeMap<String, Scale>,
}

impl FeatureMap {
    /// The table's column with the label.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The table's column whose equal values are one group, for gAUC.
    pub fn group(&self) -> Option<&str> {
        self.group.as_deref()
    }

    /// All columns, with the lengths of sequences filled in.
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// The table's columns that encoding reads, each once; without label and group.
    pub fn sources(&self) -> Vec<String> {
        columns::sources(&self.columns)
    }

    /// The vocabulary of a field; `None` for numbers and unknown names.
    pub fn vocabulary(&self, field: &str) -> Option<&Vocabulary> {
        let at = self
            .columns
            .iter()
            .position(|column| column.name == field)?;
        match &self.codes[at] {
            Code::Tokens(vocabulary) => Some(vocabulary),
            _ => None,
        }
    }

    /// The fields of the model, in order.
    pub fn fields(&self) -> Vec<Field> {
        let field = |(column, code): (&Column, &Code)| {
            let name = column.name.clone();
            let share_embedding = column.share_embedding.clone();
            Some(match (column.kind, code) {
                (Kind::Sequence, Code::Tokens(vocabulary)) => Field::Sequence {
                    name,
                    vocab_size: vocabulary.size(),
                    max_len: column.max_len,
                    share_embedding,
                },
                (_, Code::Tokens(vocabulary)) => Field::Categorical {
                    name,
                    vocab_size: vocabulary.size(),
                    share_embedding,
                },
                (_, Code::Number(_)) => Field::Numeric { name },
                (_, Code::Meta) => return None,
            })
        };
        self.columns
            .iter()
            .zip(&self.codes)
            .filter_map(field)
            .collect()
    }

    /// Sum of the tables' rows, shared ones once, and one for each number.
    pub fn total_features(&self) -> i64 {
        let rows = self
            .fields()
            .into_iter()
            .map(|field| match field.vocab_size() {
                _ if field.share_embedding().is_some() => 0,
                Some(size) => size,
                None => 1,
            });
        rows.sum()
    }

    /// Fails unless a model with the fields `saved` takes what this map encodes: permuted or missing fields would give wrong
    /// predictions without a word.
    ///
    /// # Errors
    /// [`Error::Config`] for `fields`, naming the first field that differs.
    pub fn check_fields(&self, saved: &[Field]) -> Result<()> {
        let own = self.fields();
        let wrong = |reason: String| Err(Error::config("fields", reason));
        let find = |fields: &[Field], name: &str| fields.iter().position(|f| f.name() == name);
        for (place, field) in saved.iter().enumerate() {
            let name = field.name();
            match find(&own, name) {
                None => {
                    return wrong(format!(
                        "the weights have a field `{name}`, which the feature map lacks"
                    ));
                }
                Some(other) if other != place => {
                    return wrong(format!(
                        "`{name}` is field {} of the weights and field {} of the feature map; their order must be the same",
                        place + 1,
                        other + 1
                    ));
                }
                Some(_) if own[place] != *field => {
                    return wrong(format!(
                        "`{name}` differs: the weights have {field:?}, the feature map {:?}",
                        own[place]
                    ));
                }
                Some(_) => {}
            }
        }
        match own.get(saved.len()) {
            None => Ok(()),
            Some(field) => wrong(format!(
                "the feature map has a field `{}`, which the weights lack",
                field.name()
            )),
        }
    }

    /// The map as JSON.
    ///
    /// # Errors
    /// [`Error::Config`] when it has no form in JSON.
    pub fn to_json(&self) -> Result<String> {
        let mut vocabularies = BTreeMap::new();
        let mut scales = BTreeMap::new();
        for (column, code) in self.columns.iter().zip(&self.codes) {
            match code {
                Code::Tokens(vocabulary) if column.share_embedding.is_none() => {
                    vocabularies.insert(column.name.clone(), Saved::from(&**vocabulary));
                }
                Code::Number(scale) => {
                    scales.insert(column.name.clone(), *scale);
                }
                _ => {}
            }
        }
        let fields = self.fields();
        let length = |column: &Column| column.max_len.max(1);
        let own = Own {
            format_version: FORMAT_VERSION,
            dataset_id: self.dataset_id.clone(),
            num_fields: fields.len(),
            total_features: self.total_features(),
            input_length: self.columns.iter().map(length).sum(),
            labels: vec![self.label.clone()],
            features: self.features(),
            group_id: self.group.clone(),
            columns: self.columns.clone(),
            vocabularies,
            scales,
        };
        serde_json::to_string_pretty(&own).map_err(|e| Error::config("feature map", e.to_string()))
    }

    /// FuxiCTR's list of features.
    fn features(&self) -> Value {
        let feature = |(column, code): (&Column, &Code)| {
            let mut spec = Map::new();
            if column.kind != Kind::Meta {
                spec.insert("source".to_owned(), "".into());
            }
            spec.insert("type".to_owned(), json!(column.kind));
            if let Some(shared) = &column.share_embedding {
                spec.insert("share_embedding".to_owned(), shared.clone().into());
            }
            if let Code::Tokens(vocabulary) = code {
                spec.insert("padding_idx".to_owned(), 0.into());
                if column.kind == Kind::Sequence {
                    spec.insert("max_len".to_owned(), column.max_len.into());
                }
                spec.insert("vocab_size".to_owned(), vocabulary.size().into());
            }
            json!({ (&column.name): spec })
        };
        self.columns.iter().zip(&self.codes).map(feature).collect()
    }

    /// Reads what [`to_json`](Self::to_json) wrote; `path` stands in errors.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when it is damaged or of another format.
    pub fn from_json(text: &str, path: &Path) -> Result<Self> {
        let wrong = |reason: String| Error::corrupt(path, reason);
        let own: Own = serde_json::from_str(text).map_err(|e| {
            let theirs = serde_json::from_str::<Value>(text)
                .is_ok_and(|value| value.get("features").is_some() && value.get("columns").is_none());
            if theirs {
                wrong("this is FuxiCTR's own feature map: read it together with its vocabularies, by `from_fuxictr`".to_owned())
            } else {
                wrong(e.to_string())
            }
        })?;
        if own.format_version > FORMAT_VERSION {
            return Err(wrong(format!(
                "has format {}, this program knows up to {FORMAT_VERSION}",
                own.format_version
            )));
        }
        let [label] = own.labels.as_slice() else {
            return Err(wrong(format!(
                "has {} labels instead of one",
                own.labels.len()
            )));
        };
        let mut vocabularies: BTreeMap<String, Arc<Vocabulary>> = BTreeMap::new();
        for (name, saved) in own.vocabularies {
            let vocabulary =
                Vocabulary::try_from(saved).map_err(|e| wrong(format!("{name}: {e}")))?;
            vocabularies.insert(name, Arc::new(vocabulary));
        }
        let map = Self::assemble(
            own.dataset_id,
            label.clone(),
            own.group_id,
            own.columns,
            |column| vocabularies.get(column).cloned(),
            |column| own.scales.get(column).copied(),
        );
        let map = map.map_err(|e| wrong(e.to_string()))?;
        if map.features() != own.features {
            return Err(wrong("`features` are not those of its columns".to_owned()));
        }
        Ok(map)
    }

    /// Puts a map together and checks it.
    fn assemble(
        dataset_id: String,
        label: String,
        group: Option<String>,
        columns: Vec<Column>,
        vocabulary: impl Fn(&str) -> Option<Arc<Vocabulary>>,
        scale: impl Fn(&str) -> Option<Scale>,
    ) -> Result<Self> {
        let absent = |name: &str, what: &str| {
            Error::config(format!("columns.{name}"), format!("has no {what}"))
        };
        let mut codes = Vec::with_capacity(columns.len());
        for column in &columns {
            column.validate()?;
            codes.push(match column.kind {
                Kind::Meta => Code::Meta,
                Kind::Numeric => {
                    Code::Number(scale(&column.name).ok_or_else(|| absent(&column.name, "scale"))?)
                }
                Kind::Categorical | Kind::Sequence => {
                    let owner = column.share_embedding.as_deref().unwrap_or(&column.name);
                    let found = vocabulary(owner);
                    Code::Tokens(found.ok_or_else(|| absent(&column.name, "vocabulary"))?)
                }
            });
        }
        let map = Self {
            dataset_id,
            label,
            group,
            columns,
            codes,
        };
        fields::validate(&map.fields())?;
        Ok(map)
    }

    /// Writes the map, atomically.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, path: &Path) -> Result<()> {
        fs::write(path, self.to_json()?.as_bytes())
    }

    /// Reads a file of [`save`](Self::save).
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Corrupt`] when it is damaged or of another format.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        Self::from_json(&text, path)
    }
}
