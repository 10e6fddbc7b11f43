//! The fields of a model, in order.

use std::collections::HashSet;

use densely_core::{Error, Result, check};
use serde::{Deserialize, Serialize};

/// One input of a model. **Their order is the order of the concatenated embeddings**, and with it the layout of every weight behind them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum Field {
    /// One id per row: i64 `[B]`.
    Categorical {
        /// Name of the input tensor and of its table.
        name: String,
        /// Rows of the table: id 0 is padding, the last id stands for values that training did not see.
        vocab_size: i64,
        /// The field whose table this one uses; it must stand before this one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        share_embedding: Option<String>,
    },
    /// A number per row: f32 `[B]`.
    Numeric {
        /// Name of the input tensor and of its weights.
        name: String,
    },
    /// Ids in time order, padded with 0: i64 `[B, T]`.
    Sequence {
        /// Name of the input tensor and of its table.
        name: String,
        /// Rows of the table.
        vocab_size: i64,
        /// Ids that are kept, T.
        max_len: i64,
        /// The field whose table this one uses; it must stand before this one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        share_embedding: Option<String>,
    },
}

impl Field {
    /// A categorical field with a table of its own.
    pub fn categorical(name: &str, vocab_size: i64) -> Self {
        Self::Categorical {
            name: name.to_owned(),
            vocab_size,
            share_embedding: None,
        }
    }

    /// A number.
    pub fn numeric(name: &str) -> Self {
        Self::Numeric {
            name: name.to_owned(),
        }
    }

    /// A sequence, with the table of another field where `share_embedding` names one.
    pub fn sequence(
        name: &str,
        vocab_size: i64,
        max_len: i64,
        share_embedding: Option<&str>,
    ) -> Self {
        Self::Sequence {
            name: name.to_owned(),
            vocab_size,
            max_len,
            share_embedding: share_embedding.map(str::to_owned),
        }
    }

    /// Name of the field.
    pub fn name(&self) -> &str {
        match self {
            Self::Categorical { name, .. }
            | Self::Numeric { name }
            | Self::Sequence { name, .. } => name,
        }
    }

    /// Rows of the field's table; `None` for a number.
    pub fn vocab_size(&self) -> Option<i64> {
        match self {
            Self::Categorical { vocab_size, .. } | Self::Sequence { vocab_size, .. } => {
                Some(*vocab_size)
            }
            Self::Numeric { .. } => None,
        }
    }

    /// The field whose table this one uses.
    pub fn share_embedding(&self) -> Option<&str> {
        match self {
            Self::Categorical {
                share_embedding, ..
            }
            | Self::Sequence {
                share_embedding, ..
            } => share_embedding.as_deref(),
            Self::Numeric { .. } => None,
        }
    }
}

/// Checks a list of fields: names are given once, sizes are positive, shared tables stand before and are of the same size.
///
/// # Errors
/// [`Error::Config`] for `fields`, naming the field that is wrong.
pub fn validate(fields: &[Field]) -> Result<()> {
    let wrong = |reason: String| Err(Error::config("fields", reason));
    if fields.is_empty() {
        return wrong("must name at least one field".to_owned());
    }
    let mut names = HashSet::new();
    for (place, field) in fields.iter().enumerate() {
        let name = field.name();
        if name.is_empty() || name.contains("__") {
            return wrong(format!(
                "`{name}` cannot name a weight: a field's name is not empty and holds no `__`; rename the column"
            ));
        }
        if !names.insert(name) {
            return wrong(format!("`{name}` stands twice"));
        }
        if let Some(size) = field.vocab_size() {
            check::positive("fields.vocab_size", size)?;
        }
        if let Field::Sequence { max_len, .. } = field {
            check::positive("fields.max_len", *max_len)?;
        }
        let Some(shared) = field.share_embedding() else {
            continue;
        };
        let Some(owner) = fields[..place].iter().find(|other| other.name() == shared) else {
            return wrong(format!(
                "`{name}` shares the table of `{shared}`, which is no field before it"
            ));
        };
        if owner.vocab_size() != field.vocab_size() {
            return wrong(format!(
                "`{name}` and `{shared}` share a table but differ in vocab_size"
            ));
        }
    }
    Ok(())
}
