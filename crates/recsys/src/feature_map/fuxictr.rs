//! FuxiCTR's own files: `feature_map.json` and `feature_vocab.json`.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use densely_core::{Error, Result};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::columns::{Column, Dtype, Kind, token_of_number};
use super::vocabulary::Tokens;
use super::{FeatureMap, Scale, Vocabulary};

/// `feature_map.json`, of which FuxiCTR 2.0 to 2.3 write these keys.
#[derive(Debug, Deserialize)]
struct Theirs {
    dataset_id: String,
    #[serde(default)]
    labels: Vec<String>,
    features: Vec<Map<String, Value>>,
}

/// A feature; keys of encoders and pretrained tables do not concern the ids.
#[derive(Debug, Deserialize)]
struct Feature {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    vocab_size: Option<i64>,
    #[serde(default)]
    max_len: Option<i64>,
    #[serde(default)]
    share_embedding: Option<String>,
    #[serde(default)]
    category_processor: Option<String>,
}

impl FeatureMap {
    /// Reads FuxiCTR's `feature_map.json` and, where the table holds tokens, its `feature_vocab.json`; without it the table holds ids.
    ///
    /// FuxiCTR does not keep how columns were read: `columns` says so for those that are not plain texts (`dtype`, `fill_na`,
    /// `splitter`, `padding`, `preprocess`). Sizes come from the files, never from a count: older versions order ids differently.
    /// # Errors
    /// [`Error::Io`]; [`Error::Corrupt`] when a file is not FuxiCTR's; [`Error::Unsupported`] for features other than categorical,
    /// numeric, sequence and meta.
    pub fn from_fuxictr(
        feature_map: &Path,
        vocab: Option<&Path>,
        columns: &[Column],
        group: Option<String>,
    ) -> Result<Self> {
        let theirs: Theirs = read(feature_map)?;
        let vocab: Option<HashMap<String, HashMap<Box<str>, u32>>> = vocab.map(read).transpose()?;
        let wrong = |reason: String| Error::corrupt(feature_map, reason);
        let Some(label) = theirs.labels.first() else {
            return Err(wrong("names no label".to_owned()));
        };
        let mut own = Vec::new();
        let mut vocabularies: HashMap<String, Arc<Vocabulary>> = HashMap::new();
        for (name, value) in theirs.features.into_iter().flatten() {
            let feature: Feature =
                serde_json::from_value(value).map_err(|e| wrong(format!("{name}: {e}")))?;
            let kind = match feature.kind.as_str() {
                "categorical" => Kind::Categorical,
                "numeric" => Kind::Numeric,
                "sequence" => Kind::Sequence,
                "meta" => Kind::Meta,
                other => {
                    return Err(Error::Unsupported {
                        what: format!("the feature `{name}` of type `{other}`"),
                        hint: "only categorical, numeric, sequence and meta features are read"
                            .to_owned(),
                    });
                }
            };
            if let Some(processor) = feature.category_processor {
                return Err(Error::Unsupported {
                    what: format!("the category processor `{processor}` of `{name}`"),
                    hint: "FuxiCTR itself does not encode with it; bucket the column before"
                        .to_owned(),
                });
            }
            let told = columns.iter().find(|column| column.name == name);
            let mut column = told.cloned().unwrap_or_else(|| Column::new(&name, kind));
            if column.kind != kind {
                let reason = format!("is {:?} in FuxiCTR's map, not {:?}", kind, column.kind);
                return Err(Error::config(
                    format!("columns.{name}"),
                    reason.to_lowercase(),
                ));
            }
            if kind == Kind::Sequence {
                column.max_len = feature.max_len.unwrap_or(0);
            }
            column.share_embedding = feature.share_embedding;
            if matches!(kind, Kind::Categorical | Kind::Sequence) {
                let size = feature.vocab_size;
                let size = size.ok_or_else(|| wrong(format!("{name}: has no vocab_size")))?;
                let vocabulary = match &vocab {
                    None => {
                        column.vocab_size = Some(size);
                        Vocabulary::Ids { size }
                    }
                    Some(vocab) => {
                        let ids = vocab.get(&name);
                        let ids = ids.ok_or_else(|| wrong(format!("{name}: has no vocabulary")))?;
                        Vocabulary::Tokens(
                            tokens(ids, size, column.token_dtype())
                                .map_err(|reason| wrong(format!("{name}: {reason}")))?,
                        )
                    }
                };
                if column.share_embedding.is_none() {
                    vocabularies.insert(name.clone(), Arc::new(vocabulary));
                }
            }
            own.push(column);
        }
        let map = Self::assemble(
            theirs.dataset_id,
            label.clone(),
            group,
            own,
            |name| vocabularies.get(name).cloned(),
            |_| {
                Some(Scale {
                    shift: 0.0,
                    scale: 1.0,
                })
            },
        );
        map.map_err(|e| wrong(e.to_string()))
    }
}

fn tokens(
    ids: &HashMap<Box<str>, u32>,
    size: i64,
    dtype: Dtype,
) -> std::result::Result<Tokens, String> {
    let mut known: HashMap<Box<str>, u32> = ids.clone();
    known.remove("__PAD__");
    let oov = known.remove("__OOV__").ok_or("has no `__OOV__`")?;
    if dtype != Dtype::Str {
        // Python and Rust differ in how they write large numbers.
        let number = |(token, id): (Box<str>, u32)| {
            let value: f64 = token
                .parse()
                .map_err(|_| format!("`{token}` is no number"))?;
            Ok((token_of_number(value, dtype).into_boxed_str(), id))
        };
        known = known
            .into_iter()
            .map(number)
            .collect::<std::result::Result<_, String>>()?;
    }
    let size = u32::try_from(size).map_err(|_| format!("has vocab_size {size}"))?;
    Tokens::from_ids(known, oov, size).map_err(|e| e.to_string())
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    serde_json::from_str(&text).map_err(|e| Error::corrupt(path, e.to_string()))
}
