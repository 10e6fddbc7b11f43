//! What a column of the table is, before its values are known.

use std::borrow::Cow;

use densely_core::{Error, Result};
use serde::{Deserialize, Serialize};

/// A column of the table as a field of the model; the defaults are FuxiCTR's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Column {
    /// Name of the field, and of the table's column where `from` names no other.
    pub name: String,
    /// What it becomes.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// The table's column.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// How a value is read before it is taken for a token.
    #[serde(default)]
    pub dtype: Dtype,
    /// What stands for a missing value. As a token it is left out of the vocabulary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fill_na: Option<String>,
    /// Occurrences in the training rows from which on a token is in the vocabulary.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub min_count: u64,
    /// Which id a token has.
    #[serde(default)]
    pub order: TokenOrder,
    /// The field before this one whose vocabulary and table it shares.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share_embedding: Option<String>,
    /// What stands between the tokens of a sequence in a text column.
    #[serde(default = "caret", skip_serializing_if = "is_caret")]
    pub splitter: String,
    /// Ids of a sequence that are kept; 0 takes the longest of the training rows.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub max_len: i64,
    /// The side on which short sequences are filled and long ones cut.
    #[serde(default)]
    pub padding: Padding,
    /// A rule by which values become others first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preprocess: Option<Preprocess>,
    /// Tokens are hashed to so many ids instead of counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash_buckets: Option<u32>,
    /// The column holds ids already, below this number; 0 is padding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vocab_size: Option<i64>,
    /// How numbers are scaled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub normalizer: Option<Normalizer>,
}

fn one() -> u64 {
    1
}
fn caret() -> String {
    "^".to_owned()
}
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_one(value: &u64) -> bool {
    *value == 1
}
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(value: &i64) -> bool {
    *value == 0
}
fn is_caret(value: &str) -> bool {
    value == "^"
}

/// A token of a number, as it is written in files: `3` or `3.0`.
pub(super) fn token_of_number(value: f64, dtype: Dtype) -> String {
    match dtype {
        Dtype::Float => format!("{:?}", value + 0.0),
        Dtype::Int | Dtype::Str => format!("{}", value as i64),
    }
}

/// What a column becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// One id per row.
    Categorical,
    /// A number per row.
    Numeric,
    /// Ids in order of time, padded.
    Sequence,
    /// Carried along, never embedded.
    Meta,
}

/// How a value is read: `1` and `1.0` are two texts and one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// As a text.
    #[default]
    Str,
    /// As a whole number.
    Int,
    /// As a number.
    Float,
}

/// In which order the tokens of a vocabulary have their ids; it differs between versions of FuxiCTR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenOrder {
    /// FuxiCTR 2.3.10: texts by count, the highest first, and then by the text; numbers by their value.
    #[default]
    Sorted,
    /// Older versions: by count, the highest first, and then by first appearance.
    FirstSeen,
}

/// A side of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Padding {
    /// The end: the first ids are kept, zeros follow.
    #[default]
    Post,
    /// The beginning: the last ids are kept, zeros stand before.
    Pre,
}

/// Rules by which values become others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Preprocess {
    /// Criteo's numbers as categories: above 2 the floor of ln(v)², else the whole part.
    ConvertToBucket,
    /// Hour of the day of Avazu's `YYMMDDHH`.
    ConvertHour,
    /// Day of the week of Avazu's `YYMMDDHH`; Sunday is 0.
    ConvertWeekday,
    /// 1 on Saturdays and Sundays, else 0, of Avazu's `YYMMDDHH`.
    ConvertWeekend,
}

/// How numbers are scaled, fitted on the training rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Normalizer {
    /// Mean 0 and variance 1.
    StandardScaler,
    /// From 0 to 1.
    MinMaxScaler,
}

impl Column {
    /// A column of this kind with FuxiCTR's defaults; numbers are read as such.
    pub fn new(name: impl Into<String>, kind: Kind) -> Self {
        Self {
            name: name.into(),
            kind,
            from: None,
            dtype: if kind == Kind::Numeric {
                Dtype::Float
            } else {
                Dtype::Str
            },
            fill_na: None,
            min_count: one(),
            order: TokenOrder::Sorted,
            share_embedding: None,
            splitter: caret(),
            max_len: 0,
            padding: Padding::Post,
            preprocess: None,
            hash_buckets: None,
            vocab_size: None,
            normalizer: None,
        }
    }

    /// The table's column.
    pub fn source(&self) -> &str {
        self.from.as_deref().unwrap_or(&self.name)
    }

    /// What a missing value is read as.
    pub(super) fn filled(&self) -> &str {
        self.fill_na.as_deref().unwrap_or(match self.dtype {
            Dtype::Str => "",
            Dtype::Int => "0",
            Dtype::Float => "0.0",
        })
    }

    /// As what tokens are written. The rules of [`Preprocess`] give whole numbers.
    pub(super) fn token_dtype(&self) -> Dtype {
        if self.preprocess.is_some() {
            Dtype::Int
        } else {
            self.dtype
        }
    }

    /// The token that is left out of the vocabulary. Numbers have one only where `fill_na` says so.
    pub(super) fn left_out(&self) -> Option<Cow<'_, str>> {
        match (&self.fill_na, self.token_dtype()) {
            (None, Dtype::Str) => Some(Cow::Borrowed("")),
            (None, _) => None,
            (Some(text), Dtype::Str) => Some(Cow::Borrowed(text)),
            (Some(text), dtype) => {
                let value: f64 = text.parse().ok()?;
                Some(Cow::Owned(token_of_number(value, dtype)))
            }
        }
    }

    /// Checks the settings of one column.
    ///
    /// # Errors
    /// [`Error::Config`] naming the column and the setting.
    pub(super) fn validate(&self) -> Result<()> {
        let wrong = |setting: &str, reason: String| {
            Err(Error::config(
                format!("columns.{}.{setting}", self.name),
                reason,
            ))
        };
        let tokens = matches!(self.kind, Kind::Categorical | Kind::Sequence);
        if self.kind == Kind::Sequence && self.splitter.is_empty() {
            return wrong("splitter", "must not be empty".to_owned());
        }
        if self.max_len < 0 || (self.max_len > 0 && self.kind != Kind::Sequence) {
            let reason = format!(
                "must be at least 0, and is for sequences only; got {}",
                self.max_len
            );
            return wrong("max_len", reason);
        }
        if self.min_count == 0 {
            return wrong("min_count", "must be at least 1".to_owned());
        }
        if self.hash_buckets == Some(0) {
            return wrong("hash_buckets", "must be at least 1".to_owned());
        }
        if let Some(size) = self.vocab_size
            && !(2..=i64::from(i32::MAX)).contains(&size)
        {
            let reason = format!("must lie between 2 and {}, got {size}", i32::MAX);
            return wrong("vocab_size", reason);
        }
        if self.hash_buckets.is_some() && self.vocab_size.is_some() {
            let reason = "is for columns of ids, which are not hashed".to_owned();
            return wrong("hash_buckets", reason);
        }
        let only_tokens = [
            ("share_embedding", self.share_embedding.is_some()),
            ("hash_buckets", self.hash_buckets.is_some()),
            ("vocab_size", self.vocab_size.is_some()),
        ];
        if let Some((setting, _)) = only_tokens.iter().find(|(_, set)| *set && !tokens) {
            return wrong(
                setting,
                "is for categorical columns and sequences".to_owned(),
            );
        }
        if self.normalizer.is_some() && self.kind != Kind::Numeric {
            return wrong("normalizer", "is for numeric columns".to_owned());
        }
        if self.dtype != Dtype::Str && self.kind == Kind::Sequence {
            return wrong("dtype", "tokens of a sequence are texts".to_owned());
        }
        let number = self.token_dtype() != Dtype::Str || self.kind == Kind::Numeric;
        if let Some(text) = self.fill_na.as_deref().filter(|_| number)
            && !text.parse::<f64>().is_ok_and(f64::is_finite)
        {
            return wrong("fill_na", format!("must be a number, got `{text}`"));
        }
        if self.preprocess.is_some() && self.kind != Kind::Categorical {
            return wrong("preprocess", "is for categorical columns".to_owned());
        }
        Ok(())
    }
}

/// The table's columns that `columns` are read from, each once; without those that are only kept.
pub(super) fn sources(columns: &[Column]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for column in columns.iter().filter(|c| c.kind != Kind::Meta) {
        if !names.iter().any(|name| name == column.source()) {
            names.push(column.source().to_owned());
        }
    }
    names
}
