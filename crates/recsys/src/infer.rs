//! What each column of somebody's table is, from its first rows; and settings that are a good start on such a table.

use std::collections::HashSet;
use std::path::Path;

use densely_core::{Error, Result, registry};
use densely_data::{Batches, RowBatch, batches};
use serde_json::{Map, Value, json};

use crate::feature_map::{Column, Kind, Normalizer, column_texts};
use crate::optim::OptimConfig;
use crate::settings::{CtrSettings, DataSettings, ModelSettings, Split, TrainSettings};

/// Rows that are looked at.
const SAMPLE: usize = 20_000;
/// What may stand between the tokens of a sequence.
const DELIMITERS: [&str; 2] = ["^", "|"];

/// What somebody says about a table.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Column with the label.
    pub label: String,
    /// From which value on a label that is a number is a click.
    pub click_from: Option<f64>,
    /// Column with groups for gAUC, mostly users.
    pub group: Option<String>,
    /// Column with the time: the newest rows then test.
    pub time: Option<String>,
    /// Columns that are categorical, whatever they look like.
    pub categorical: Vec<String>,
    /// Columns that are numbers.
    pub numeric: Vec<String>,
    /// Columns that are sequences, with what stands between tokens where it is not `^`.
    pub sequences: Vec<(String, Option<String>)>,
    /// Sequences of what a categorical column holds: they share its table, and DIN weighs them against it.
    pub histories: Vec<(String, String)>,
    /// Columns that are left out.
    pub ignore: Vec<String>,
    /// `finalmlp` or `din`; by default `din` where there are histories, else `finalmlp`.
    pub model: Option<String>,
    /// Occurrences from which on a token has an id of its own.
    pub min_count: u64,
    /// Ids of a sequence that are kept; 0 takes the longest of the training rows.
    pub max_len: i64,
    /// Shares for validation and testing.
    pub shares: (f64, f64),
}

/// A column and why it is what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explained {
    /// Its name.
    pub name: String,
    /// `categorical`, `numeric`, `sequence`, `label`, `group`, `time` or `left out`.
    pub role: &'static str,
    /// In words.
    pub why: String,
}

impl Options {
    /// The defaults, for a label.
    pub fn new(label: impl Into<String>) -> Self {
        Self {
            label: label.into(),
            min_count: 1,
            shares: (0.1, 0.1),
            ..Self::default()
        }
    }

    /// Settings for the table at `path`, and what was understood of its columns.
    ///
    /// # Errors
    /// [`Error::Data`] for a column that is not there, with the nearest names, and when no column is left; those of reading.
    pub fn settings(&self, path: &Path) -> Result<(CtrSettings, Vec<Explained>)> {
        let names = batches::column_names(path)?;
        self.check_names(path, &names)?;
        let rows = Batches::open(path, &names, SAMPLE)?.next();
        let rows = rows.ok_or_else(|| Error::data(path, "the table has no rows"))??;
        let (mut columns, mut explained) = (Vec::new(), Vec::new());
        for name in &names {
            let (kind, role, why, splitter) = self.role(&rows, name)?;
            explained.push(Explained {
                name: name.clone(),
                role,
                why,
            });
            let Some(kind) = kind else { continue };
            let mut column = Column::new(name, kind);
            column.min_count = self.min_count;
            // Vectors of ids start near 0: a number of hundreds beside them would be all that the network hears.
            column.normalizer = (kind == Kind::Numeric).then_some(Normalizer::StandardScaler);
            if kind == Kind::Sequence {
                column.max_len = self.max_len;
                column.splitter = splitter.unwrap_or(column.splitter);
            }
            let shared = self.histories.iter().find(|(sequence, _)| sequence == name);
            column.share_embedding = shared.map(|(_, owner)| owner.clone());
            columns.push(column);
        }
        // A shared table must stand before.
        columns.sort_by_key(|column| column.share_embedding.is_some());
        if columns.is_empty() {
            return Err(Error::data(
                path,
                "no column is left that can be a field of the model",
            ));
        }
        let preset = self.model.clone().unwrap_or_else(|| {
            if self.histories.is_empty() {
                "finalmlp"
            } else {
                "din"
            }
            .to_owned()
        });
        let (valid, test) = self.shares;
        let split = match &self.time {
            Some(column) => Split::Time {
                column: column.clone(),
                valid,
                test,
            },
            None => Split::Random {
                valid,
                test,
                seed: 0,
            },
        };
        let item = self.histories.first().map(|(_, item)| item.clone());
        let settings = CtrSettings {
            data: DataSettings {
                label: self.label.clone(),
                click_from: self.click_from,
                columns,
                group: self.group.clone(),
                item,
                split,
            },
            model: ModelSettings {
                config: self.config(&preset)?,
                preset,
            },
            train: TrainSettings {
                batch_size: 1024,
                optimizer: OptimConfig {
                    embedding_l2: 1e-5,
                    ..OptimConfig::default()
                },
                ..TrainSettings::default()
            },
        };
        Ok((settings, explained))
    }

    fn check_names(&self, path: &Path, names: &[String]) -> Result<()> {
        let histories = self.histories.iter().flat_map(|(a, b)| [a, b]);
        let named = std::iter::once(&self.label)
            .chain(&self.group)
            .chain(&self.time)
            .chain(&self.categorical)
            .chain(&self.numeric)
            .chain(self.sequences.iter().map(|(name, _)| name))
            .chain(histories)
            .chain(&self.ignore);
        for name in named {
            if !names.contains(name) {
                let nearest = registry::nearest(names.iter().map(String::as_str), name);
                let reason = format!("no column `{name}`; nearest: `{}`", nearest.join("`, `"));
                return Err(Error::data(path, reason));
            }
        }
        Ok(())
    }

    /// The kind of a field, what to call it, why, and a sequence's delimiter.
    fn role(
        &self,
        rows: &RowBatch,
        name: &String,
    ) -> Result<(Option<Kind>, &'static str, String, Option<String>)> {
        let said = || "as you said".to_owned();
        let is_group = self.group.as_ref() == Some(name);
        if *name == self.label {
            return Ok((None, "label", said(), None));
        }
        if self.time.as_ref() == Some(name) {
            return Ok((None, "time", said(), None));
        }
        if self.ignore.contains(name) {
            return Ok((None, "left out", said(), None));
        }
        let sequence = self.sequences.iter().find(|(other, _)| other == name);
        let history = self.histories.iter().any(|(other, _)| other == name);
        if sequence.is_some() || history {
            let delimiter = sequence.and_then(|(_, delimiter)| delimiter.clone());
            let guessed = match delimiter {
                None if history => guess(rows, name)?.splitter,
                other => other,
            };
            return Ok((Some(Kind::Sequence), "sequence", said(), guessed));
        }
        if self.numeric.contains(name) {
            return Ok((Some(Kind::Numeric), "numeric", said(), None));
        }
        if self.categorical.contains(name) || self.histories.iter().any(|(_, owner)| owner == name)
        {
            return Ok((Some(Kind::Categorical), "categorical", said(), None));
        }
        let guess = guess(rows, name)?;
        if is_group && guess.kind.is_some() {
            let why = format!("the group as you said, and a field: {}", guess.why);
            return Ok((Some(Kind::Categorical), "categorical", why, None));
        }
        let role = match guess.kind {
            Some(Kind::Categorical) => "categorical",
            Some(Kind::Numeric) => "numeric",
            Some(Kind::Sequence) => "sequence",
            _ => "left out",
        };
        Ok((guess.kind, role, guess.why, guess.splitter))
    }

    /// Sizes for tables of some ten thousand to some million rows.
    fn config(&self, preset: &str) -> Result<Map<String, Value>> {
        let value = match preset {
            "finalmlp" => json!({
                "embedding_dim": 16, "mlp1_hidden_units": [256, 256], "mlp1_dropout": 0.2, "mlp1_batch_norm": true,
                "mlp2_hidden_units": [256], "mlp2_dropout": 0.2, "mlp2_batch_norm": true, "use_fs": true,
                "fs_hidden_units": [64], "fs1_context": [], "fs2_context": [], "num_heads": 8,
            }),
            "din" => {
                if self.histories.is_empty() {
                    let reason = "needs a history to attend to: `--history SEQUENCE=COLUMN`";
                    return Err(Error::config("model", format!("`din` {reason}")));
                }
                let (sequences, targets): (Vec<&String>, Vec<&String>) =
                    self.histories.iter().map(|(a, b)| (a, b)).unzip();
                json!({
                    "embedding_dim": 16, "din_target_field": [targets], "din_sequence_field": [sequences],
                    "attention_hidden_units": [64, 32], "attention_hidden_activations": "dice", "attention_dropout": 0.0,
                    "din_use_softmax": false, "dnn_hidden_units": [256, 128], "dnn_activations": "relu",
                    "net_dropout": 0.2, "batch_norm": true,
                })
            }
            _ => json!({}),
        };
        match value {
            Value::Object(config) => Ok(config),
            _ => Ok(Map::new()),
        }
    }
}

struct Guess {
    kind: Option<Kind>,
    why: String,
    splitter: Option<String>,
}

fn guess(rows: &RowBatch, name: &str) -> Result<Guess> {
    let guess = |kind, why: String| Guess {
        kind,
        why,
        splitter: None,
    };
    let array = rows.batch.column_by_name(name);
    if array.is_some_and(|array| array.data_type().is_nested()) {
        return Ok(guess(Some(Kind::Sequence), "lists".to_owned()));
    }
    let texts = column_texts(rows, name)?;
    let present: Vec<&str> = texts.iter().flatten().collect();
    if present.is_empty() {
        return Ok(guess(None, "no values in the first rows".to_owned()));
    }
    let distinct: HashSet<&str> = present.iter().copied().collect();
    let facts = format!("{} values in {} rows", distinct.len(), present.len());
    let numbers = present
        .iter()
        .filter(|text| text.trim().parse::<f64>().is_ok())
        .count();
    let fractions = present
        .iter()
        .filter_map(|text| text.trim().parse::<f64>().ok())
        .filter(|value| value.fract() != 0.0)
        .count();
    for delimiter in DELIMITERS {
        let split = present
            .iter()
            .filter(|text| text.contains(delimiter))
            .count();
        if numbers < present.len() && split * 5 >= present.len() {
            let why = format!(
                "`{delimiter}` between tokens in {split} of {} rows",
                present.len()
            );
            return Ok(Guess {
                kind: Some(Kind::Sequence),
                why,
                splitter: Some(delimiter.to_owned()),
            });
        }
    }
    if distinct.len() == 1 {
        return Ok(guess(None, "one value only in the first rows".to_owned()));
    }
    if numbers == present.len() && fractions > 0 && distinct.len() > 20 {
        return Ok(guess(
            Some(Kind::Numeric),
            format!("numbers with fractions, {facts}"),
        ));
    }
    if distinct.len() == present.len() && present.len() > 100 {
        let why =
            format!("another value in every row, like a name; keep it with `--categorical {name}`");
        return Ok(guess(None, why));
    }
    Ok(guess(Some(Kind::Categorical), facts))
}
