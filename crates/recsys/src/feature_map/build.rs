//! The first pass over the training rows: what is counted, and what becomes of the counts.

use std::sync::Arc;

use densely_core::{Error, Result};
use densely_data::RowBatch;

use super::cells::{self, Cells};
use super::columns::{self, Column, Kind, Normalizer};
use super::vocabulary::{Counter, Refused, Tokens, Vocabulary};
use super::{FeatureMap, Scale};

/// Counts the tokens of training rows, batch by batch; memory is that of the distinct tokens.
#[derive(Debug)]
pub struct Builder {
    dataset_id: String,
    label: String,
    group: Option<String>,
    columns: Vec<Column>,
    seen: Vec<Seen>,
    rows: u64,
}

/// What was seen of a column.
#[derive(Debug, Default)]
struct Seen {
    counter: Counter,
    moments: Moments,
    sequences: Sequences,
}

#[derive(Debug)]
struct Moments {
    count: f64,
    mean: f64,
    squares: f64,
    min: f64,
    max: f64,
}

impl Default for Moments {
    fn default() -> Self {
        Self {
            count: 0.0,
            mean: 0.0,
            squares: 0.0,
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
        }
    }
}

#[derive(Debug, Default)]
struct Sequences {
    longest: i64,
    /// Rows with a token.
    filled: u64,
    /// Rows with two tokens or more.
    split: u64,
    /// Rows of a list column, where nothing is split.
    listed: u64,
    /// Rows with each of [`OTHERS`].
    others: [u64; OTHERS.len()],
}

/// What else people put between the tokens of a sequence.
const OTHERS: [char; 6] = ['|', ',', ';', '\t', ' ', '^'];

impl Builder {
    /// A builder for a map of these `columns`, with the table's columns of the label and, for gAUC, of the group.
    ///
    /// # Errors
    /// [`Error::Config`] for a column whose settings contradict each other, a name that stands twice, and a shared table that
    /// does not stand before.
    pub fn new(
        dataset_id: impl Into<String>,
        label: impl Into<String>,
        group: Option<String>,
        columns: Vec<Column>,
    ) -> Result<Self> {
        let label = label.into();
        for (place, column) in columns.iter().enumerate() {
            column.validate()?;
            let before = &columns[..place];
            let wrong =
                |reason: String| Err(Error::config(format!("columns.{}", column.name), reason));
            if before.iter().any(|other| other.name == column.name) {
                return wrong("stands twice".to_owned());
            }
            if column.source() == label && column.kind != Kind::Meta {
                return wrong("is the label: a model that sees it has nothing to learn".to_owned());
            }
            let Some(shared) = &column.share_embedding else {
                continue;
            };
            let Some(owner) = before.iter().find(|other| other.name == *shared) else {
                return wrong(format!(
                    "shares the vocabulary of `{shared}`, which is no column before it"
                ));
            };
            if owner.share_embedding.is_some()
                || owner.kind == Kind::Numeric
                || owner.kind == Kind::Meta
            {
                return wrong(format!(
                    "shares the vocabulary of `{shared}`, which has none of its own"
                ));
            }
            if (owner.hash_buckets, owner.vocab_size) != (column.hash_buckets, column.vocab_size) {
                return wrong(format!(
                    "shares the vocabulary of `{shared}` but differs in `hash_buckets` or `vocab_size`"
                ));
            }
        }
        Ok(Self {
            dataset_id: dataset_id.into(),
            label,
            group,
            seen: columns.iter().map(|_| Seen::default()).collect(),
            columns,
            rows: 0,
        })
    }

    /// The table's columns that are read, each once.
    pub fn sources(&self) -> Vec<String> {
        columns::sources(&self.columns)
    }

    /// Counts the rows of a batch for which `is_training` holds.
    ///
    /// # Errors
    /// [`Error::Data`] naming the row and column of a value that cannot be read.
    pub fn add(&mut self, rows: &RowBatch, is_training: impl Fn(usize) -> bool) -> Result<()> {
        let chosen: Vec<usize> = (0..rows.batch.num_rows())
            .filter(|row| is_training(*row))
            .collect();
        self.rows += chosen.len() as u64;
        for (column, seen) in self.columns.iter().zip(&mut self.seen) {
            match column.kind {
                Kind::Meta => {}
                Kind::Numeric => {
                    let values = cells::numbers(rows, column)?;
                    for row in &chosen {
                        seen.moments.add(values[*row]);
                    }
                }
                Kind::Categorical | Kind::Sequence => {
                    let cells = Cells::new(rows, column)?;
                    for row in &chosen {
                        seen.tokens(&cells, *row, column, rows)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The map of what was counted.
    ///
    /// # Errors
    /// [`Error::Data`] when there was no training row, a sequence has no token in any row, or seems to be split wrongly.
    pub fn finish(mut self) -> Result<FeatureMap> {
        if self.rows == 0 {
            return Err(Error::data("", "there is no training row to count"));
        }
        let mut vocabularies: Vec<(String, Known)> = Vec::new();
        let mut scales = std::collections::BTreeMap::new();
        for (column, seen) in self.columns.iter_mut().zip(self.seen) {
            if column.kind == Kind::Sequence {
                seen.sequences.check(column)?;
                if column.max_len == 0 {
                    column.max_len = seen.sequences.longest.max(1);
                }
            }
            match column.kind {
                Kind::Meta => {}
                Kind::Numeric => {
                    scales.insert(column.name.clone(), seen.moments.scale(column.normalizer));
                }
                Kind::Categorical | Kind::Sequence => {
                    let known = match (column.hash_buckets, column.vocab_size) {
                        (Some(buckets), _) => Known::Other(Vocabulary::Hash { buckets }),
                        (_, Some(size)) => Known::Other(Vocabulary::Ids { size }),
                        _ => Known::Tokens(seen.counter.finish(column)),
                    };
                    let owner = column.share_embedding.as_ref();
                    let owner =
                        owner.and_then(|owner| vocabularies.iter_mut().find(|(n, _)| n == owner));
                    match (owner, known) {
                        (Some((_, Known::Tokens(all))), Known::Tokens(own)) => all.merge(&own),
                        (Some(_), _) => {}
                        (None, known) => vocabularies.push((column.name.clone(), known)),
                    }
                }
            }
        }
        let vocabularies: Vec<(String, Arc<Vocabulary>)> = vocabularies
            .into_iter()
            .map(|(name, known)| match known {
                Known::Tokens(tokens) => (name, Arc::new(Vocabulary::Tokens(tokens))),
                Known::Other(other) => (name, Arc::new(other)),
            })
            .collect();
        let vocabulary = |name: &str| {
            let mut all = vocabularies.iter();
            Some(Arc::clone(&all.find(|(other, _)| other == name)?.1))
        };
        let scale = |name: &str| scales.get(name).copied();
        FeatureMap::assemble(
            self.dataset_id,
            self.label,
            self.group,
            self.columns,
            vocabulary,
            scale,
        )
    }
}

/// A vocabulary that may still grow.
enum Known {
    Tokens(Tokens),
    Other(Vocabulary),
}

impl Seen {
    fn tokens(
        &mut self,
        cells: &Cells,
        row: usize,
        column: &Column,
        rows: &RowBatch,
    ) -> Result<()> {
        let counted = column.hash_buckets.is_none() && column.vocab_size.is_none();
        let full = |Refused(reason)| rows.column_error(column.source(), reason);
        if column.kind == Kind::Categorical {
            let token = cells.one(row).unwrap_or(column.filled());
            return if counted {
                self.counter.add(token).map_err(full)
            } else {
                Ok(())
            };
        }
        let left_out = column.left_out();
        let (mut length, mut present) = (0, 0);
        let counter = &mut self.counter;
        cells.each(row, column, |token| {
            length += 1;
            present += u64::from(Some(token) != left_out.as_deref());
            if counted {
                counter.add(token).map_err(full)?;
            }
            Ok(())
        })?;
        let sequences = &mut self.sequences;
        sequences.longest = sequences.longest.max(length);
        sequences.filled += u64::from(present > 0);
        sequences.split += u64::from(length > 1);
        sequences.listed += u64::from(cells.is_list());
        if length == 1
            && let Some(text) = cells.one(row).filter(|_| !cells.is_list())
        {
            for (count, other) in sequences.others.iter_mut().zip(OTHERS) {
                *count += u64::from(text.trim().contains(other));
            }
        }
        Ok(())
    }
}

impl Sequences {
    fn check(&self, column: &Column) -> Result<()> {
        let wrong = |reason: String| Err(Error::column("", column.source(), reason));
        if self.filled == 0 {
            return wrong(
                "every sequence of the training rows is empty: there is no history to learn from"
                    .to_owned(),
            );
        }
        if self.split > 0 || self.listed > 0 {
            return Ok(());
        }
        let likely = self
            .others
            .iter()
            .zip(OTHERS)
            .max_by_key(|(count, _)| **count);
        match likely {
            Some((count, other)) if *count * 2 >= self.filled && *count >= 2 => wrong(format!(
                "no sequence has `{}` between tokens, but {count} of {} have `{}`: is that the delimiter?",
                column.splitter,
                self.filled,
                other.escape_default()
            )),
            _ => Ok(()),
        }
    }
}

impl Moments {
    fn add(&mut self, value: f64) {
        self.count += 1.0;
        let delta = value - self.mean;
        self.mean += delta / self.count;
        self.squares += delta * (value - self.mean);
        self.min = self.min.min(value);
        self.max = self.max.max(value);
    }

    /// As scikit-learn's scalers: a column with one value is shifted only.
    fn scale(&self, normalizer: Option<Normalizer>) -> Scale {
        let (shift, scale) = match normalizer {
            None => (0.0, 1.0),
            Some(Normalizer::StandardScaler) => {
                (self.mean, (self.squares / self.count.max(1.0)).sqrt())
            }
            Some(Normalizer::MinMaxScaler) => (self.min, self.max - self.min),
        };
        let scale = if scale > 0.0 && scale.is_finite() {
            scale
        } else {
            1.0
        };
        Scale { shift, scale }
    }
}
