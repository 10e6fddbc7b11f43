//! Rows that arrive one by one, as a server gets them: checked cell by cell, so that a bad row is refused and its
//! neighbours are not, then turned into features many at a time.

use std::borrow::Cow;
use std::collections::HashMap;

use densely_core::{Error, Result};

use crate::calendar::CalendarPart;
use crate::dataset::Dataset;
use crate::matrix::Matrix;
use crate::preprocess::Preprocessor;
use crate::table::{MISSING, Table, Values, is_missing, number, parse_time};

/// A value of a row.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell<'a> {
    /// No value.
    Missing,
    /// A number; NaN is missing.
    Number(f64),
    /// A time in microseconds since 1970.
    Time(i64),
    /// A text, read as the texts of a table are: without surrounding spaces, and missing where it says `NA`.
    Text(Cow<'a, str>),
}

/// Why a row was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadCell {
    /// The column to blame.
    pub column: String,
    /// What was expected and what came.
    pub reason: String,
}

/// What a column becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnKind {
    /// A number.
    Numeric,
    /// Numbers of the calendar; given as a date or time like 2013-09-01 05:30.
    Time,
    /// One of the categories that training saw.
    Categorical {
        /// How many these are; others share one code.
        categories: usize,
        /// Whether training saw missing values; if not, they count as unseen.
        missing: bool,
    },
}

/// Checked rows: numbers as f32, categories as codes. Made by [`RowEncoder`], used by [`Preprocessor::features`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rows {
    /// `[len, numerical columns]`, NaN where missing.
    numbers: Vec<f32>,
    /// `[len, categorical columns]`.
    codes: Vec<i32>,
    len: usize,
}

impl Rows {
    /// Number of rows.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no row.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds the rows of `other` behind these.
    pub fn append(&mut self, other: &Self) {
        self.numbers.extend_from_slice(&other.numbers);
        self.codes.extend_from_slice(&other.codes);
        self.len += other.len;
    }
}

/// What turns the cells of a row into numbers and codes, made once per model.
#[derive(Debug, Clone)]
pub struct RowEncoder {
    /// What is read of a row.
    columns: Vec<(String, ColumnKind)>,
    places: HashMap<String, usize>,
    /// What is made of it: numbers, then codes.
    features: Vec<Feature>,
}

#[derive(Debug, Clone)]
struct Feature {
    /// Place among the columns.
    column: usize,
    kind: FeatureKind,
}

#[derive(Debug, Clone)]
enum FeatureKind {
    Number,
    Part(CalendarPart),
    Code(Categories),
}

#[derive(Debug, Clone)]
struct Categories {
    codes: HashMap<String, i32>,
    missing: i32,
    unseen: i32,
}

impl RowEncoder {
    pub(crate) fn new<'a>(
        numeric: impl Iterator<Item = (&'a str, Option<CalendarPart>)>,
        categorical: impl Iterator<Item = (&'a str, &'a [String], bool)>,
    ) -> Self {
        let mut encoder = Self {
            columns: Vec::new(),
            places: HashMap::new(),
            features: Vec::new(),
        };
        for (name, part) in numeric {
            let (column, kind) = match part {
                None => (ColumnKind::Numeric, FeatureKind::Number),
                Some(part) => (ColumnKind::Time, FeatureKind::Part(part)),
            };
            encoder.add(name, column, kind);
        }
        for (name, categories, missing) in categorical {
            let count = categories.len();
            let unseen = count as i32 + i32::from(missing);
            let column = ColumnKind::Categorical {
                categories: count,
                missing,
            };
            let categories = Categories {
                codes: categories.iter().cloned().zip(0..).collect(),
                missing: if missing { count as i32 } else { unseen },
                unseen,
            };
            encoder.add(name, column, FeatureKind::Code(categories));
        }
        encoder
    }

    /// Several features may come from one column of times.
    fn add(&mut self, name: &str, column: ColumnKind, kind: FeatureKind) {
        let next = self.columns.len();
        let place = *self.places.entry(name.to_owned()).or_insert(next);
        if place == next {
            self.columns.push((name.to_owned(), column));
        }
        self.features.push(Feature {
            column: place,
            kind,
        });
    }

    /// The columns that a row must have, in the order in which [`push`](Self::push) takes their cells.
    pub fn columns(&self) -> impl ExactSizeIterator<Item = (&str, ColumnKind)> {
        self.columns
            .iter()
            .map(|(name, kind)| (name.as_str(), *kind))
    }

    /// The place of the column of this name; `None` for columns that the model does not use.
    pub fn place(&self, name: &str) -> Option<usize> {
        self.places.get(name).copied()
    }

    /// Adds a row to `rows`: one cell for each of [`columns`](Self::columns), `None` where the row does not have the
    /// column at all. A bad row leaves `rows` as it was.
    ///
    /// # Errors
    /// [`BadCell`] naming the first column that is not there, holds a text among numbers, or an infinite value.
    pub fn push(
        &self,
        rows: &mut Rows,
        cells: &[Option<Cell>],
    ) -> std::result::Result<(), BadCell> {
        let before = (rows.numbers.len(), rows.codes.len());
        for feature in &self.features {
            let cell = cells.get(feature.column).and_then(Option::as_ref);
            let reason = match (cell, &feature.kind) {
                (None, _) => {
                    Err("the column is not there; say null where there is no value".into())
                }
                (Some(cell), FeatureKind::Number) => {
                    numeric(cell).map(|value| rows.numbers.push(value))
                }
                (Some(cell), FeatureKind::Part(part)) => time(cell).map(|time| {
                    let part = time.map_or(f32::NAN, |time| part.at(time) as f32);
                    rows.numbers.push(part);
                }),
                (Some(cell), FeatureKind::Code(categories)) => {
                    categories.code(cell).map(|code| rows.codes.push(code))
                }
            };
            if let Err(reason) = reason {
                rows.numbers.truncate(before.0);
                rows.codes.truncate(before.1);
                return Err(BadCell {
                    column: self.columns[feature.column].0.clone(),
                    reason,
                });
            }
        }
        rows.len += 1;
        Ok(())
    }

    /// Takes the rows of a table: the good ones, and the zero-based rows of the others with what is wrong there.
    ///
    /// # Errors
    /// [`Error::Data`] listing the columns that the table lacks; those of reading a column.
    pub fn encode(&self, table: &Table) -> Result<(Rows, Vec<(usize, BadCell)>)> {
        let names = table.names();
        let absent: Vec<&str> = self
            .columns()
            .map(|(name, _)| name)
            .filter(|name| !names.iter().any(|other| other == name))
            .collect();
        if !absent.is_empty() {
            let reason = format!(
                "columns that the model was trained on are missing: `{}`",
                absent.join("`, `")
            );
            return Err(Error::data(table.path(), reason));
        }
        let columns = self
            .columns()
            .map(|(name, _)| table.column(name))
            .collect::<Result<Vec<_>>>()?;
        let (mut rows, mut bad) = (Rows::default(), Vec::new());
        let mut cells = Vec::with_capacity(columns.len());
        for row in 0..table.row_count() {
            cells.clear();
            for column in &columns {
                cells.push(Some(cell_of(&column.values, row)));
            }
            if let Err(cell) = self.push(&mut rows, &cells) {
                bad.push((row, cell));
            }
        }
        Ok((rows, bad))
    }
}

impl Categories {
    fn code(&self, cell: &Cell) -> std::result::Result<i32, String> {
        let code = |text: &str| self.codes.get(text).copied().unwrap_or(self.unseen);
        Ok(match cell {
            Cell::Missing => self.missing,
            Cell::Number(value) if value.is_nan() => self.missing,
            Cell::Number(value) if value.is_infinite() => return Err(INFINITE.to_owned()),
            Cell::Number(value) => code(&value.to_string()),
            Cell::Time(time) => code(&time.to_string()),
            Cell::Text(text) => match text.trim() {
                text if is_missing(text) => self.missing,
                text => self.codes.get(text).copied().unwrap_or_else(|| {
                    // Where training saw numbers only, `1.0` is the category 1.
                    number(text).map_or(self.unseen, |value| code(&value.to_string()))
                }),
            },
        })
    }
}

const INFINITE: &str = "the value is infinite; mend it or leave it empty";

fn numeric(cell: &Cell) -> std::result::Result<f32, String> {
    let value = match cell {
        Cell::Missing => f64::NAN,
        Cell::Number(value) => *value,
        Cell::Time(time) => *time as f64,
        Cell::Text(text) => match text.trim() {
            text if is_missing(text) => f64::NAN,
            text => number(text)
                .ok_or_else(|| format!("expected a number, got `{}`", shortened(text)))?,
        },
    };
    if value.is_infinite() {
        return Err(INFINITE.to_owned());
    }
    Ok(value as f32)
}

fn time(cell: &Cell) -> std::result::Result<Option<i64>, String> {
    let wrong = |got: &str| {
        let got = shortened(got);
        Err(format!(
            "expected a date or time like 2013-09-01 05:30, got `{got}`"
        ))
    };
    match cell {
        Cell::Missing => Ok(None),
        Cell::Time(time) => Ok(Some(*time)),
        Cell::Number(value) if value.is_nan() => Ok(None),
        Cell::Number(value) => wrong(&value.to_string()),
        Cell::Text(text) => match text.trim() {
            text if is_missing(text) => Ok(None),
            text => parse_time(text).map_or_else(|| wrong(text), |time| Ok(Some(time))),
        },
    }
}

/// The head of a text that may be as long as somebody likes.
fn shortened(text: &str) -> String {
    const MOST: usize = 40;
    match text.char_indices().nth(MOST) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

/// A value of a table's column.
fn cell_of(values: &Values, row: usize) -> Cell<'_> {
    match values {
        Values::Number { values, .. } => Cell::Number(values[row]),
        Values::Text { codes, names } => match codes[row] {
            MISSING => Cell::Missing,
            code => Cell::Text(Cow::Borrowed(&names[code as usize])),
        },
        Values::Time(values) => match values[row] {
            i64::MIN => Cell::Missing,
            time => Cell::Time(time),
        },
    }
}

impl Preprocessor {
    /// What turns single rows into [`Rows`].
    pub fn row_encoder(&self) -> RowEncoder {
        RowEncoder::new(self.numbers(), self.categories())
    }

    /// Features of rows from [`row_encoder`](Self::row_encoder): the same bits as [`transform`](Self::transform)
    /// gives for a table of these rows.
    ///
    /// # Errors
    /// [`Error::Shape`] for rows that another model's encoder made.
    pub fn features(&self, rows: &Rows) -> Result<Dataset> {
        let (n, m) = (self.n_num(), self.cat_columns().count());
        if rows.numbers.len() != rows.len * n || rows.codes.len() != rows.len * m {
            let expected = format!("{n} numbers and {m} codes in each of {} rows", rows.len);
            let got = format!("{} and {} in all", rows.numbers.len(), rows.codes.len());
            return Err(Error::Shape {
                what: "rows".to_owned(),
                expected,
                got,
            });
        }
        let mut x_num = Matrix::new(rows.len, false)?;
        for at in 0..n {
            let column: Vec<f32> = rows.numbers.iter().skip(at).step_by(n).copied().collect();
            x_num.push(&self.numeric_feature(at, &column))?;
        }
        let mut x_cat = Matrix::new(rows.len, false)?;
        for at in 0..m {
            let column: Vec<i32> = rows.codes.iter().skip(at).step_by(m).copied().collect();
            x_cat.push(&column)?;
        }
        Ok(Dataset {
            x_num: x_num.finish()?,
            x_cat: x_cat.finish()?,
            y: None,
            weight: None,
        })
    }
}
