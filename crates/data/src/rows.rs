//! Rows that arrive one by one, as a server gets them: checked cell by cell, so that a bad row is refused and its
//! neighbours are not, then turned into features many at a time.

use std::borrow::Cow;
use std::collections::HashMap;

use densely_core::{Error, Result};

use crate::dataset::Dataset;
use crate::matrix::Matrix;
use crate::preprocess::Preprocessor;
use crate::table::{MISSING, Table, Values, is_missing, number};

/// A value of a row.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell<'a> {
    /// No value.
    Missing,
    /// A number; NaN is missing.
    Number(f64),
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
    /// Numerical columns, then categorical ones.
    columns: Vec<Column>,
    places: HashMap<String, usize>,
}

#[derive(Debug, Clone)]
struct Column {
    name: String,
    kind: ColumnKind,
    codes: HashMap<String, i32>,
    missing: i32,
    unseen: i32,
}

impl RowEncoder {
    pub(crate) fn new<'a>(
        numeric: impl Iterator<Item = &'a str>,
        categorical: impl Iterator<Item = (&'a str, &'a [String], bool)>,
    ) -> Self {
        let numeric = numeric.map(|name| Column {
            name: name.to_owned(),
            kind: ColumnKind::Numeric,
            codes: HashMap::new(),
            missing: 0,
            unseen: 0,
        });
        let categorical = categorical.map(|(name, categories, missing)| {
            let count = categories.len();
            let unseen = count as i32 + i32::from(missing);
            Column {
                name: name.to_owned(),
                kind: ColumnKind::Categorical {
                    categories: count,
                    missing,
                },
                codes: categories.iter().cloned().zip(0..).collect(),
                missing: if missing { count as i32 } else { unseen },
                unseen,
            }
        });
        let columns: Vec<Column> = numeric.chain(categorical).collect();
        let places = columns.iter().map(|column| column.name.clone());
        Self {
            places: places.zip(0..).collect(),
            columns,
        }
    }

    /// The columns that a row must have, in the order in which [`push`](Self::push) takes their cells.
    pub fn columns(&self) -> impl ExactSizeIterator<Item = (&str, ColumnKind)> {
        self.columns
            .iter()
            .map(|column| (column.name.as_str(), column.kind))
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
        for (at, column) in self.columns.iter().enumerate() {
            let cell = cells.get(at).and_then(Option::as_ref);
            let reason = match cell {
                None => Err("the column is not there; say null where there is no value".to_owned()),
                Some(cell) if column.kind == ColumnKind::Numeric => {
                    numeric(cell).map(|value| rows.numbers.push(value))
                }
                Some(cell) => column.code(cell).map(|code| rows.codes.push(code)),
            };
            if let Err(reason) = reason {
                rows.numbers.truncate(before.0);
                rows.codes.truncate(before.1);
                return Err(BadCell {
                    column: column.name.clone(),
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
            .columns
            .iter()
            .map(|column| table.column(&column.name))
            .collect::<Result<Vec<_>>>()?;
        let (mut rows, mut bad) = (Rows::default(), Vec::new());
        let mut cells = Vec::with_capacity(columns.len());
        for row in 0..table.row_count() {
            cells.clear();
            for (column, encoder) in columns.iter().zip(&self.columns) {
                let numeric = encoder.kind == ColumnKind::Numeric;
                cells.push(Some(cell_of(&column.values, row, numeric)));
            }
            if let Err(cell) = self.push(&mut rows, &cells) {
                bad.push((row, cell));
            }
        }
        Ok((rows, bad))
    }
}

impl Column {
    fn code(&self, cell: &Cell) -> std::result::Result<i32, String> {
        let code = |text: &str| self.codes.get(text).copied().unwrap_or(self.unseen);
        Ok(match cell {
            Cell::Missing => self.missing,
            Cell::Number(value) if value.is_nan() => self.missing,
            Cell::Number(value) if value.is_infinite() => return Err(INFINITE.to_owned()),
            Cell::Number(value) => code(&value.to_string()),
            Cell::Text(text) => match text.trim() {
                text if is_missing(text) => self.missing,
                text => code(text),
            },
        })
    }
}

const INFINITE: &str = "the value is infinite; mend it or leave it empty";

fn numeric(cell: &Cell) -> std::result::Result<f32, String> {
    let value = match cell {
        Cell::Missing => f64::NAN,
        Cell::Number(value) => *value,
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

/// The head of a text that may be as long as somebody likes.
fn shortened(text: &str) -> String {
    const MOST: usize = 40;
    match text.char_indices().nth(MOST) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

/// A value of a table's column; times are microseconds since 1970, for categories as a text.
fn cell_of(values: &Values, row: usize, numeric: bool) -> Cell<'_> {
    match values {
        Values::Number { values, .. } => Cell::Number(values[row]),
        Values::Text { codes, names } => match codes[row] {
            MISSING => Cell::Missing,
            code => Cell::Text(Cow::Borrowed(&names[code as usize])),
        },
        Values::Time(values) => match values[row] {
            i64::MIN => Cell::Missing,
            time if numeric => Cell::Number(time as f64),
            time => Cell::Text(Cow::Owned(time.to_string())),
        },
    }
}

impl Preprocessor {
    /// What turns single rows into [`Rows`].
    pub fn row_encoder(&self) -> RowEncoder {
        RowEncoder::new(self.num_columns(), self.categories())
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
