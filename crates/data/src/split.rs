//! Which rows train, which validate and which test: at random, by class, time, group, window or a column.
//!
//! Every split is a function of its settings and the table: no draw depends on anything but the seed.

use std::collections::BTreeMap;

use densely_core::{Error, Result};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::schema::{Role, Schema};
use crate::table::{Table, Values, parse_time};

/// How to split. Shares are of the rows (or groups) with a target; the rest trains.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum SplitConfig {
    /// Each row at random.
    Random {
        /// Share for validation.
        valid: f64,
        /// Share for testing.
        test: f64,
        /// Seed of the permutation.
        #[serde(default)]
        seed: u64,
    },
    /// At random within each class, so that the shares hold for each.
    Stratified {
        /// Share for validation.
        valid: f64,
        /// Share for testing.
        test: f64,
        /// Seed of the permutations.
        #[serde(default)]
        seed: u64,
    },
    /// Oldest rows train, newest test; rows of one time stay together.
    Time {
        /// Share for validation.
        valid: f64,
        /// Share for testing.
        test: f64,
    },
    /// As `time`, cut at given times (a number or a date, as in the column).
    TimeAt {
        /// First time of validation.
        valid_from: String,
        /// First time of testing.
        test_from: String,
    },
    /// Whole groups at random.
    Group {
        /// Share of the groups for validation.
        valid: f64,
        /// Share of the groups for testing.
        test: f64,
        /// Seed of the permutation.
        #[serde(default)]
        seed: u64,
    },
    /// Rows by time (or as they stand), in windows that slide: window i trains on rows `[i·v, i·v + train)`,
    /// then `v` rows validate and the next `v` test, where `train = rows - (windows + 1)·v`.
    Windows {
        /// Which window, from 0.
        index: usize,
        /// Number of windows.
        windows: usize,
        /// Rows of validation and of testing.
        rows: usize,
    },
    /// A column that says `train`, `valid` or `test` for each row.
    Column {
        /// Its name.
        name: String,
    },
    /// Row numbers from files that come with the data, as in a `TabReD` folder. Whoever opens the folder reads them; a
    /// table alone does not have them.
    Files {
        /// The split's name in the folder.
        name: String,
    },
}

/// Rows of each part, from 0, in the order in which they are stored for training.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// Rows that train.
    pub train: Vec<u32>,
    /// Rows that validate.
    pub valid: Vec<u32>,
    /// Rows that test.
    pub test: Vec<u32>,
}

impl SplitConfig {
    /// Splits the rows that have a target.
    ///
    /// # Errors
    /// [`Error::Config`] for shares out of range or a part without rows; [`Error::Data`] for a missing time, group
    /// or part.
    pub fn split(&self, table: &Table, schema: &Schema) -> Result<Split> {
        let rows = schema.rows();
        let split = match self {
            Self::Random { valid, test, seed } => {
                let mut rows = rows.to_vec();
                rows.shuffle(&mut ChaCha8Rng::seed_from_u64(*seed));
                cut(&rows, *valid, *test)?
            }
            Self::Stratified { valid, test, seed } => {
                let (codes, _) = match schema.target_above() {
                    None => table.texts(schema.target())?,
                    Some(above) => {
                        let values = table.numbers(schema.target())?;
                        let codes = values.iter().map(|value| u32::from(*value > above));
                        (codes.collect(), Vec::new())
                    }
                };
                let mut classes: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
                for row in rows {
                    classes.entry(codes[*row as usize]).or_default().push(*row);
                }
                let mut rng = ChaCha8Rng::seed_from_u64(*seed);
                let mut split = Split {
                    train: Vec::new(),
                    valid: Vec::new(),
                    test: Vec::new(),
                };
                for mut rows in classes.into_values() {
                    rows.shuffle(&mut rng);
                    let part = cut(&rows, *valid, *test)?;
                    split.train.extend(part.train);
                    split.valid.extend(part.valid);
                    split.test.extend(part.test);
                }
                split
            }
            Self::Time { valid, test } => {
                let (order, times) = by_time(table, schema)?;
                let part = cut(&order, *valid, *test)?;
                let first = |rows: &[u32]| rows.first().map(|row| times[*row as usize]);
                match (first(&part.valid), first(&part.test)) {
                    (Some(valid), Some(test)) => cut_at(&order, &times, valid, test),
                    _ => part,
                }
            }
            Self::TimeAt {
                valid_from,
                test_from,
            } => {
                let (order, times) = by_time(table, schema)?;
                let at = |field: &str, text: &str| {
                    let time = text
                        .parse::<f64>()
                        .ok()
                        .or_else(|| parse_time(text).map(|t| t as f64));
                    let reason =
                        format!("must be a number or a date like 2013-09-01, got `{text}`");
                    time.ok_or_else(|| Error::config(format!("split.{field}"), reason))
                };
                let (valid, test) = (at("valid_from", valid_from)?, at("test_from", test_from)?);
                cut_at(&order, &times, valid, test)
            }
            Self::Group { valid, test, seed } => by_group(table, schema, *valid, *test, *seed)?,
            Self::Windows {
                index,
                windows,
                rows: size,
            } => {
                let order = match schema.with_role(Role::Time).next() {
                    Some(_) => by_time(table, schema)?.0,
                    None => rows.to_vec(),
                };
                let train = order
                    .len()
                    .checked_sub((windows + 1) * size)
                    .filter(|train| *train > 0);
                let train = train.filter(|_| index < windows).ok_or_else(|| {
                    let reason = format!(
                        "window {index} of {windows} with {size} rows does not fit {} rows",
                        order.len()
                    );
                    Error::config("split", reason)
                })?;
                let start = index * size;
                let (valid, test) = (start + train, start + train + size);
                Split {
                    train: order[start..valid].to_vec(),
                    valid: order[valid..test].to_vec(),
                    test: order[test..test + size].to_vec(),
                }
            }
            Self::Column { name } => by_column(table, name, rows)?,
            Self::Files { name } => {
                let reason =
                    format!("`{name}` must come with the data, and a table has no files of splits");
                return Err(Error::config("split", reason));
            }
        };
        let parts = [
            ("train", &split.train),
            ("valid", &split.valid),
            ("test", &split.test),
        ];
        for (name, part) in parts {
            if part.is_empty() {
                let reason = format!("the part `{name}` gets none of {} rows", rows.len());
                return Err(Error::config("split", reason));
            }
        }
        Ok(split)
    }
}

/// The first rows train, the next validate, the last test.
fn cut(rows: &[u32], valid: f64, test: f64) -> Result<Split> {
    if !(valid > 0.0 && test > 0.0 && valid + test < 1.0) {
        let reason =
            format!("`valid` and `test` must be positive and sum below 1, got {valid} and {test}");
        return Err(Error::config("split", reason));
    }
    let share = |part: f64| (rows.len() as f64 * part).round() as usize;
    let train = rows.len().saturating_sub(share(valid) + share(test));
    let (train, rest) = rows.split_at(train);
    let (valid, test) = rest.split_at(share(valid).min(rest.len()));
    Ok(Split {
        train: train.to_vec(),
        valid: valid.to_vec(),
        test: test.to_vec(),
    })
}

/// Rows before the time `valid`, from it on before `test`, and from `test` on.
fn cut_at(order: &[u32], times: &[f64], valid: f64, test: f64) -> Split {
    let before = |time: f64| order.partition_point(|row| times[*row as usize] < time);
    let (valid, test) = (before(valid), before(test));
    let valid = valid.min(test);
    Split {
        train: order[..valid].to_vec(),
        valid: order[valid..test].to_vec(),
        test: order[test..].to_vec(),
    }
}

/// Rows from the oldest to the newest, and the time of every row of the table.
fn by_time(table: &Table, schema: &Schema) -> Result<(Vec<u32>, Vec<f64>)> {
    let name = schema.with_role(Role::Time).next().ok_or_else(|| {
        Error::config(
            "split",
            "a split by time needs a time column: `--time COLUMN`",
        )
    })?;
    if let Values::Text { names, .. } = &table.column(name)?.values {
        let example = names.first().map(String::as_str).unwrap_or_default();
        let reason = format!("expected numbers or dates like 2013-09-01, got `{example}`");
        return Err(Error::column(table.path(), name, reason));
    }
    let times = table.numbers(name)?;
    let mut order = schema.rows().to_vec();
    if let Some(row) = order.iter().find(|row| times[**row as usize].is_nan()) {
        return Err(table.error(name, *row as usize, "the time is missing"));
    }
    order.sort_by(|a, b| times[*a as usize].total_cmp(&times[*b as usize]));
    Ok((order, times))
}

fn by_group(table: &Table, schema: &Schema, valid: f64, test: f64, seed: u64) -> Result<Split> {
    let name = schema.with_role(Role::Group).next().ok_or_else(|| {
        Error::config(
            "split",
            "a split by group needs a group column: `--group COLUMN`",
        )
    })?;
    let (codes, names) = table.texts(name)?;
    if let Some(row) = schema
        .rows()
        .iter()
        .find(|row| codes[**row as usize] == crate::table::MISSING)
    {
        return Err(table.error(name, *row as usize, "the group is missing"));
    }
    let mut groups: Vec<u32> = (0..names.len() as u32).collect();
    groups.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    let part = cut(&groups, valid, test)?;
    let mut place = vec![0u8; names.len()];
    part.valid
        .iter()
        .for_each(|group| place[*group as usize] = 1);
    part.test
        .iter()
        .for_each(|group| place[*group as usize] = 2);
    let of = |wanted: u8| {
        schema
            .rows()
            .iter()
            .copied()
            .filter(|row| place[codes[*row as usize] as usize] == wanted)
            .collect()
    };
    Ok(Split {
        train: of(0),
        valid: of(1),
        test: of(2),
    })
}

fn by_column(table: &Table, name: &str, rows: &[u32]) -> Result<Split> {
    let (codes, names) = table.texts(name)?;
    let mut split = Split {
        train: Vec::new(),
        valid: Vec::new(),
        test: Vec::new(),
    };
    for row in rows {
        let text = names.get(codes[*row as usize] as usize).map(String::as_str);
        match text {
            Some("train") => split.train.push(*row),
            Some("valid" | "val" | "validation") => split.valid.push(*row),
            Some("test") => split.test.push(*row),
            other => {
                let got = other.unwrap_or("nothing");
                let reason = format!("expected `train`, `valid` or `test`, got `{got}`");
                return Err(table.error(name, *row as usize, reason));
            }
        }
    }
    Ok(split)
}
