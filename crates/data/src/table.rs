//! Tables from CSV, TSV, Parquet or Arrow batches, held compactly: numbers as f64, texts as codes.
//!
//! A file is read in batches, never as a whole: CSV in two passes (kinds, then values), Parquet and Arrow in one.
//! A table takes 8 bytes for each number or time and 4 for each text, plus its distinct texts. One that would take
//! too much stays in its file, and one column at a time is in memory.

use std::borrow::Cow;
use std::io::Read;
use std::path::{Path, PathBuf};

use arrow_array::RecordBatch;
use densely_core::{Error, Result};

use crate::stream::TextFormat;

mod join;
mod read;

pub use read::parse_time;
pub(crate) use read::{CsvLines, is_missing, number};
use read::{FileColumns, Interner, check_names, collect, read_csv, read_csv_from, read_parquet};
#[cfg(feature = "parquet")]
pub(crate) use read::{guarded, parquet_reader};

/// A missing text's code.
pub const MISSING: u32 = u32::MAX;

/// A table whose columns are in memory, or are read from its file when they are asked for.
#[derive(Debug, Clone)]
pub struct Table {
    path: PathBuf,
    /// What to add to a zero-based row for the number a person sees: CSV counts its header.
    first_row: u64,
    rows: usize,
    names: Vec<String>,
    store: Store,
    warnings: Vec<String>,
    /// Columns whose times carry a zone in the file, with it.
    zones: Vec<(String, String)>,
}

/// Where the values are.
#[derive(Debug, Clone)]
enum Store {
    /// In the order of the names.
    Memory(Vec<Column>),
    /// In the file, read again for each column.
    File(FileColumns),
}

/// A column of a table.
#[derive(Debug, Clone)]
pub struct Column {
    /// Its name in the header.
    pub name: String,
    /// Its values.
    pub values: Values,
}

/// The values of a column.
#[derive(Debug, Clone)]
pub enum Values {
    /// Numbers; NaN is missing.
    Number {
        /// One per row.
        values: Vec<f64>,
        /// Whether the file holds whole numbers only.
        integral: bool,
    },
    /// Texts as codes into their names; [`MISSING`] is missing.
    Text {
        /// One per row.
        codes: Vec<u32>,
        /// Distinct texts in the order of their first appearance, without surrounding spaces.
        names: Vec<String>,
    },
    /// Microseconds since 1970; `i64::MIN` is missing.
    Time(Vec<i64>),
}

impl Table {
    /// Reads a CSV (`.csv`), TSV (`.tsv`, `.tab`) or Parquet (`.parquet`) file with named columns.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Data`] for a table without rows, a row of another length, two columns of one name;
    /// [`Error::Corrupt`] for bytes that are not of the format; [`Error::Unsupported`] for other endings, and for
    /// Parquet without the feature `parquet`.
    /// A table that would take more than a quarter of the free memory stays in its file: each column is read when it
    /// is asked for, and only it is in memory.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_within(path, available_memory() / 4)
    }

    /// As [`open`](Self::open), with the bytes up to which the table is held in memory.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub fn open_within(path: &Path, bytes: u64) -> Result<Self> {
        let ending = path
            .extension()
            .and_then(|e| e.to_str())
            .unwrap_or_default()
            .to_lowercase();
        match ending.as_str() {
            "csv" => read_csv(path, b',', bytes),
            "tsv" | "tab" => read_csv(path, b'\t', bytes),
            "parquet" | "brotli" => read_parquet(path, bytes),
            _ => Err(Error::Unsupported {
                what: format!("reading `{}`", path.display()),
                hint: "name it .csv, .tsv or .parquet".to_owned(),
            }),
        }
    }

    /// Reads text from a stream that can be read only once, such as standard input; `name` stands in errors. The text and the table are held in memory.
    ///
    /// # Errors
    /// Those of [`open`](Self::open); [`Error::Data`] for a text longer than a quarter of the free memory.
    pub fn read(input: impl Read, name: &Path, format: TextFormat) -> Result<Self> {
        let most = available_memory() / 4;
        let mut text = Vec::new();
        let mut input = input.take(most.saturating_add(1));
        input.read_to_end(&mut text).map_err(Error::io(name))?;
        if text.len() as u64 > most {
            let reason = format!(
                "the text is longer than {} MB, a quarter of the free memory; write it to a file and name that",
                most >> 20
            );
            return Err(Error::data(name, reason));
        }
        read_csv_from(|| Ok(&text[..]), name, format.delimiter(), u64::MAX)
    }

    /// Takes a table from Arrow batches of one schema. Columns of nested or binary types are left out, with a warning.
    ///
    /// # Errors
    /// [`Error::Data`] when there is no row, two columns share a name or the batches differ in schema.
    pub fn from_batches(batches: impl IntoIterator<Item = RecordBatch>) -> Result<Self> {
        collect(Path::new(""), batches.into_iter().map(Ok))
    }

    /// Takes a table from columns that are in memory already; `path` is what errors name.
    ///
    /// # Errors
    /// [`Error::Data`] when there is no row, two columns share a name or differ in length.
    pub fn from_columns(path: &Path, columns: Vec<Column>) -> Result<Self> {
        let names: Vec<String> = columns.iter().map(|column| column.name.clone()).collect();
        check_names(path, &names)?;
        let rows = columns.first().map_or(0, Column::len);
        if rows == 0 {
            return Err(Error::data(path, "the table has no rows"));
        }
        if let Some(column) = columns.iter().find(|column| column.len() != rows) {
            let reason = format!(
                "expected {rows} rows, as in `{}`, got {}",
                names[0],
                column.len()
            );
            return Err(Error::column(path, &column.name, reason));
        }
        Ok(Self {
            path: path.to_owned(),
            first_row: 1,
            rows,
            names,
            store: Store::Memory(columns),
            warnings: Vec::new(),
            zones: Vec::new(),
        })
    }

    /// The file, or an empty path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of rows, the header not counted.
    pub fn row_count(&self) -> usize {
        self.rows
    }

    /// Names of the columns, in the file's order.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Whether all columns are in memory.
    pub fn in_memory(&self) -> bool {
        matches!(self.store, Store::Memory(_))
    }

    /// What was left out while reading.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The zone that the times of a column carry in the file; they are read as universal time.
    pub fn zone(&self, column: &str) -> Option<&str> {
        let mut zones = self.zones.iter();
        Some(&zones.find(|(name, _)| name == column)?.1)
    }

    /// The column of this name.
    ///
    /// # Errors
    /// [`Error::Data`] with the nearest names; those of reading, when the column is in the file.
    pub fn column(&self, name: &str) -> Result<Cow<'_, Column>> {
        let at = self.require(name)?;
        match &self.store {
            Store::Memory(columns) => Ok(Cow::Borrowed(&columns[at])),
            Store::File(file) => {
                let column = file.read(&self.path, at)?;
                if column.len() != self.rows {
                    return Err(Error::corrupt(&self.path, "it changed while it was read"));
                }
                Ok(Cow::Owned(column))
            }
        }
    }

    /// The place of the column of this name.
    pub(crate) fn require(&self, name: &str) -> Result<usize> {
        self.names
            .iter()
            .position(|other| other == name)
            .ok_or_else(|| {
                let names = self.names.iter().map(String::as_str);
                let nearest = densely_core::registry::nearest(names, name).join("`, `");
                Error::data(
                    &self.path,
                    format!("no column `{name}`; nearest: `{nearest}`"),
                )
            })
    }

    /// The number that a person sees for the zero-based `row`: the line of a CSV file, else the row counted from 1.
    pub fn row_number(&self, row: usize) -> u64 {
        row as u64 + self.first_row
    }

    /// The error of a value in `column` at the zero-based `row`.
    pub fn error(&self, column: &str, row: usize, reason: impl Into<String>) -> Error {
        Error::Data {
            path: self.path.clone(),
            row: Some(self.row_number(row)),
            column: Some(column.to_owned()),
            reason: reason.into(),
        }
    }

    /// The column as numbers, NaN where missing; a text column is read as numbers.
    ///
    /// # Errors
    /// [`Error::Data`] naming the first row whose value is not a finite number.
    pub fn numbers(&self, name: &str) -> Result<Vec<f64>> {
        let column = self.column(name)?;
        let values = match &column.values {
            Values::Number { values, .. } => values.clone(),
            Values::Time(values) => values
                .iter()
                .map(|t| if *t == i64::MIN { f64::NAN } else { *t as f64 })
                .collect(),
            Values::Text { codes, names } => {
                let parsed: Vec<Option<f64>> = names.iter().map(|name| number(name)).collect();
                let value = |(row, code): (usize, &u32)| match parsed.get(*code as usize) {
                    None => Ok(f64::NAN),
                    Some(Some(value)) => Ok(*value),
                    Some(None) => {
                        let text = &names[*code as usize];
                        Err(self.error(name, row, format!(
                            "expected a number, got `{text}`; mend the value, or make the column categorical"
                        )))
                    }
                };
                codes.iter().enumerate().map(value).collect::<Result<_>>()?
            }
        };
        match values.iter().position(|value| value.is_infinite()) {
            None => Ok(values),
            Some(row) => Err(self.error(
                name,
                row,
                "the value is infinite; mend it or leave it empty",
            )),
        }
    }

    /// The column as texts: codes and names. Whole numbers are written without a fraction.
    ///
    /// # Errors
    /// [`Error::Data`] when there is no such column.
    pub fn texts(&self, name: &str) -> Result<(Vec<u32>, Vec<String>)> {
        let column = self.column(name)?;
        let mut interner = Interner::default();
        Ok(match &column.values {
            Values::Text { codes, names } => (codes.clone(), names.clone()),
            Values::Number { values, .. } => {
                let code = |value: &f64| {
                    if value.is_nan() {
                        MISSING
                    } else {
                        interner.code(&value.to_string())
                    }
                };
                (values.iter().map(code).collect(), interner.names)
            }
            Values::Time(values) => {
                let code = |value: &i64| {
                    if *value == i64::MIN {
                        MISSING
                    } else {
                        interner.code(&value.to_string())
                    }
                };
                (values.iter().map(code).collect(), interner.names)
            }
        })
    }
}

impl Column {
    fn len(&self) -> usize {
        match &self.values {
            Values::Number { values, .. } => values.len(),
            Values::Text { codes, .. } => codes.len(),
            Values::Time(values) => values.len(),
        }
    }

    /// Rows without a value.
    pub fn missing(&self) -> usize {
        match &self.values {
            Values::Number { values, .. } => values.iter().filter(|value| value.is_nan()).count(),
            Values::Text { codes, .. } => codes.iter().filter(|code| **code == MISSING).count(),
            Values::Time(values) => values.iter().filter(|value| **value == i64::MIN).count(),
        }
    }

    /// The distinct values, or `None` when there are more than `limit`.
    pub fn distinct(&self, limit: usize) -> Option<usize> {
        let mut seen = std::collections::HashSet::new();
        let mut add = |bits: u64| {
            seen.insert(bits);
            seen.len() <= limit
        };
        let within = match &self.values {
            Values::Number { values, .. } => values
                .iter()
                .filter(|v| !v.is_nan())
                .all(|v| add((v + 0.0).to_bits())),
            Values::Text { names, .. } => return (names.len() <= limit).then_some(names.len()),
            Values::Time(values) => values
                .iter()
                .filter(|v| **v != i64::MIN)
                .all(|v| add(*v as u64)),
        };
        within.then_some(seen.len())
    }
}

/// Bytes of memory that the system could give to a program now; 4 GiB where it does not tell.
pub fn available_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.map_or(4 << 30, |kib| kib * 1024)
}

/// A text column that is mostly numbers: the zero-based row of its first text, and that text.
pub(crate) fn stray_text(column: &Column) -> Option<(usize, String)> {
    let Values::Text { codes, names } = &column.values else {
        return None;
    };
    let numeric: Vec<bool> = names.iter().map(|name| number(name).is_some()).collect();
    let mut texts = 0usize;
    let mut numbers = 0usize;
    let mut first = None;
    for (row, code) in codes
        .iter()
        .enumerate()
        .filter(|(_, code)| **code != MISSING)
    {
        if numeric[*code as usize] {
            numbers += 1;
        } else {
            texts += 1;
            first.get_or_insert((row, names[*code as usize].clone()));
        }
    }
    // One stray text among a few numbers may be a code; one among many is a slip.
    if numbers >= 9 && numbers >= 9 * texts {
        first
    } else {
        None
    }
}
