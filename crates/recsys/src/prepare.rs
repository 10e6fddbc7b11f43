//! From a table of any size to encoded rows, in two passes: tokens are counted, then rows are encoded. Both read the file in pieces.

use std::path::{Path, PathBuf};

use densely_core::{Error, Result};
use densely_data::table::parse_time;
use densely_data::{Batches, RowBatch};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::examples::{Examples, Writer};
use crate::feature_map::{Builder, FeatureMap, Layout, column_numbers, column_texts};
use crate::metrics::{Groups, read_clicks};
use crate::settings::{DataSettings, Split};

/// Rows that are read at once.
const PIECE: usize = 16_384;

/// A table made ready.
#[derive(Debug)]
pub struct Prepared {
    /// What was counted on the training rows.
    pub map: FeatureMap,
    /// Rows that train.
    pub train: Examples,
    /// Rows that choose the epoch.
    pub valid: Examples,
    /// Rows that tell how good it is.
    pub test: Examples,
    /// What a reader should know, one sentence each.
    pub notes: Vec<String>,
}

/// A part of the split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Train,
    Valid,
    Test,
}

/// Decides the part of each row, in the order of the table.
enum Parts {
    Random {
        valid: f64,
        test: f64,
        rng: Box<ChaCha8Rng>,
    },
    Time {
        column: String,
        valid_from: f64,
        test_from: f64,
    },
    Column(String),
    Whole(Part),
}

impl Prepared {
    /// Counts and encodes the table at `path` (CSV, TSV or Parquet). Rows beyond a quarter of the free memory are kept in a file in
    /// `folder` until this is dropped.
    ///
    /// # Errors
    /// [`Error::Data`] and [`Error::Config`] that name the column, the row or the setting to blame; those of reading.
    pub fn open(path: &Path, settings: &DataSettings, folder: &Path) -> Result<Self> {
        settings.split.validate()?;
        let builder = Builder::new(
            path.file_stem().unwrap_or_default().to_string_lossy(),
            &settings.label,
            settings.group.clone(),
            settings.columns.clone(),
        )?;
        let files = files(path, &settings.split);
        let counted = count(builder, &files, settings)?;
        Self::encode(counted, &files, settings, folder)
    }

    fn encode(
        map: FeatureMap,
        files: &[(PathBuf, Option<Part>)],
        settings: &DataSettings,
        folder: &Path,
    ) -> Result<Self> {
        let layout = Layout::new(&map.fields());
        let bytes = densely_data::table::available_memory() / 4;
        let writer = |name: &str| Writer::new(layout.clone(), folder.join(name), bytes);
        let mut writers = [writer("train"), writer("valid"), writer("test")];
        let mut groups = Groups::default();
        let (mut empty, mut padding, mut rows_seen) = (0, 0, 0);
        for (file, part) in files {
            let mut parts = Parts::new(file, *part, settings)?;
            let columns = columns(map.sources(), settings, &parts);
            for rows in Batches::open(file, &columns, PIECE)? {
                let rows = rows?;
                let of = parts.of(&rows)?;
                let clicks = read_clicks(&rows, &settings.label, settings.click_from)?;
                groups.codes.clear();
                if let Some(group) = &settings.group {
                    groups.read(&rows, group)?;
                }
                let encoded = map.encode(&rows)?;
                empty += encoded.empty_sequences;
                padding += encoded.rows_of_padding;
                rows_seen += encoded.rows;
                for (writer, part) in writers
                    .iter_mut()
                    .zip([Part::Train, Part::Valid, Part::Test])
                {
                    writer.add(&encoded, &clicks, &groups.codes, |row| of[row] == part)?;
                }
            }
        }
        let mut notes = Vec::new();
        if padding > 0 {
            notes.push(format!(
                "{padding} of {rows_seen} rows are all padding: no sequence of theirs has a token, and the model sees an empty history"
            ));
        } else if empty > 0 {
            notes.push(format!("{empty} sequences are empty, in {rows_seen} rows"));
        }
        let [train, valid, test] = writers;
        let prepared = Self {
            map,
            train: train.finish()?,
            valid: valid.finish()?,
            test: test.finish()?,
            notes,
        };
        prepared.check()?;
        Ok(prepared)
    }

    fn check(&self) -> Result<()> {
        let all = self.train.len() + self.valid.len() + self.test.len();
        for (name, part) in [
            ("train", &self.train),
            ("valid", &self.valid),
            ("test", &self.test),
        ] {
            if part.is_empty() {
                let reason = format!("the part `{name}` gets none of {all} rows");
                return Err(Error::config("data.split", reason));
            }
            let clicks = part.clicks().iter().filter(|click| **click).count();
            if clicks == 0 || clicks == part.len() {
                let what = if clicks == 0 { "none" } else { "each" };
                let reason = format!(
                    "{what} of the {} rows of the part `{name}` is a click: there is nothing to tell apart",
                    part.len()
                );
                return Err(Error::config("data.split", reason));
            }
        }
        Ok(())
    }
}

/// The files of a split, with the part where the whole file is one.
fn files(path: &Path, split: &Split) -> Vec<(PathBuf, Option<Part>)> {
    match split {
        Split::Files { valid, test } => vec![
            (path.to_owned(), Some(Part::Train)),
            (path.with_file_name(valid), Some(Part::Valid)),
            (path.with_file_name(test), Some(Part::Test)),
        ],
        _ => vec![(path.to_owned(), None)],
    }
}

/// The columns that are read, each once.
fn columns(mut columns: Vec<String>, settings: &DataSettings, parts: &Parts) -> Vec<String> {
    let more = [
        Some(&settings.label),
        settings.group.as_ref(),
        match parts {
            Parts::Time { column, .. } | Parts::Column(column) => Some(column),
            _ => None,
        },
    ];
    for name in more.into_iter().flatten() {
        if !columns.contains(name) {
            columns.push(name.clone());
        }
    }
    columns
}

fn count(
    mut builder: Builder,
    files: &[(PathBuf, Option<Part>)],
    settings: &DataSettings,
) -> Result<FeatureMap> {
    for (file, part) in files {
        if part.is_some_and(|part| part != Part::Train) {
            continue;
        }
        let mut parts = Parts::new(file, *part, settings)?;
        let columns = columns(builder.sources(), settings, &parts);
        for rows in Batches::open(file, &columns, PIECE)? {
            let rows = rows?;
            let of = parts.of(&rows)?;
            builder.add(&rows, |row| of[row] == Part::Train)?;
        }
    }
    builder.finish()
}

impl Parts {
    fn new(path: &Path, part: Option<Part>, settings: &DataSettings) -> Result<Self> {
        if let Some(part) = part {
            return Ok(Self::Whole(part));
        }
        Ok(match &settings.split {
            Split::Random { valid, test, seed } => Self::Random {
                valid: *valid,
                test: *test,
                rng: Box::new(ChaCha8Rng::seed_from_u64(*seed)),
            },
            Split::Column { name } => Self::Column(name.clone()),
            Split::Files { .. } => Self::Whole(Part::Train),
            Split::Time {
                column,
                valid,
                test,
            } => {
                let mut times = Vec::new();
                for rows in Batches::open(path, std::slice::from_ref(column), PIECE)? {
                    times.extend(self::times(&rows?, column)?);
                }
                if times.is_empty() {
                    return Err(Error::data(path, "the table has no rows"));
                }
                times.sort_unstable_by(f64::total_cmp);
                let share = |part: f64| (times.len() as f64 * part).round() as usize;
                let at = |rest: usize| times[times.len() - rest.clamp(1, times.len())];
                Self::Time {
                    column: column.clone(),
                    valid_from: at(share(*valid) + share(*test)),
                    test_from: at(share(*test)),
                }
            }
        })
    }

    fn of(&mut self, rows: &RowBatch) -> Result<Vec<Part>> {
        let n = rows.batch.num_rows();
        let part = |valid: bool, test: bool| match (valid, test) {
            (_, true) => Part::Test,
            (true, _) => Part::Valid,
            _ => Part::Train,
        };
        match self {
            Self::Whole(part) => Ok(vec![*part; n]),
            Self::Random { valid, test, rng } => {
                let mut draw = || {
                    let x: f64 = rng.random();
                    part(x < *test + *valid, x < *test)
                };
                Ok((0..n).map(|_| draw()).collect())
            }
            Self::Time {
                column,
                valid_from,
                test_from,
            } => {
                let times = times(rows, column)?;
                let of = |time: f64| part(time >= *valid_from, time >= *test_from);
                Ok(times.into_iter().map(of).collect())
            }
            Self::Column(column) => {
                let texts = column_texts(rows, column)?;
                let of = |(row, text): (usize, Option<&str>)| match text.unwrap_or("") {
                    "train" => Ok(Part::Train),
                    "valid" | "val" | "validation" => Ok(Part::Valid),
                    "test" => Ok(Part::Test),
                    other => {
                        let reason = format!("expected `train`, `valid` or `test`, got `{other}`");
                        Err(rows.error(column, row, reason))
                    }
                };
                texts.iter().enumerate().map(of).collect()
            }
        }
    }
}

/// Times or numbers by which rows are ordered.
fn times(rows: &RowBatch, column: &str) -> Result<Vec<f64>> {
    let missing = |row: usize| rows.error(column, row, "the time is missing");
    let is_text = rows
        .batch
        .column_by_name(column)
        .is_some_and(|array| matches!(array.data_type(), arrow_schema::DataType::Utf8));
    if !is_text {
        let numbers = column_numbers(rows, column)?.into_iter().enumerate();
        return numbers
            .map(|(row, value)| value.ok_or_else(|| missing(row)))
            .collect();
    }
    let texts = column_texts(rows, column)?;
    let time = |(row, text): (usize, Option<&str>)| {
        let text = text.map(str::trim).ok_or_else(|| missing(row))?;
        let number = text.parse::<f64>().ok().filter(|value| value.is_finite());
        number
            .or_else(|| parse_time(text).map(|time| time as f64))
            .ok_or_else(|| {
                let reason =
                    format!("expected a number or a date like 2013-09-01 05:30, got `{text}`");
                rows.error(column, row, reason)
            })
    };
    texts.iter().enumerate().map(time).collect()
}
