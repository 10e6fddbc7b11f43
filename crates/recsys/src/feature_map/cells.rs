//! Values of an Arrow column as tokens or numbers.

use arrow_array::builder::StringBuilder;
use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int64Type};
use arrow_array::{Array, ArrayRef, StringArray};
use arrow_schema::DataType;
use densely_core::{Error, Result};
use densely_data::RowBatch;
use densely_data::table::parse_time;

use super::columns::{Column, Dtype, Kind, Preprocess, token_of_number};

/// Tokens of a column, row by row.
pub(super) struct Cells {
    texts: StringArray,
    /// Where each row's tokens begin and end, in a list column.
    lists: Option<Vec<std::ops::Range<usize>>>,
}

impl Cells {
    /// Reads the column of `rows` for `column`.
    pub(super) fn new(rows: &RowBatch, column: &Column) -> Result<Self> {
        let array = find(rows, column)?;
        if let Some((values, lists)) = list_of(array) {
            if column.kind != Kind::Sequence {
                let reason = "holds lists: declare it a sequence";
                return Err(rows.column_error(column.source(), reason));
            }
            let texts = to_texts(rows, &values, column)?;
            return Ok(Self {
                texts,
                lists: Some(lists),
            });
        }
        let texts = match (column.preprocess, column.dtype) {
            (None, Dtype::Str) => to_texts(rows, array, column)?,
            (None, Dtype::Int) => whole(rows, array, column)?,
            (None, Dtype::Float) => each_number(rows, array, column, |value| {
                token_of_number(value, Dtype::Float)
            })?,
            (Some(Preprocess::ConvertToBucket), _) => each_number(rows, array, column, |value| {
                token_of_number(bucket(value), Dtype::Int)
            })?,
            (Some(rule), _) => {
                let texts = to_texts(rows, array, column)?;
                let part = |(row, text): (usize, Option<&str>)| {
                    let text = text.unwrap_or(column.filled());
                    let value = hour_part(text, rule).ok_or_else(|| {
                        let reason = format!("expected a time as YYMMDDHH, got `{text}`");
                        rows.error(column.source(), row, reason)
                    })?;
                    Ok(Some(token_of_number(f64::from(value), Dtype::Int)))
                };
                texts
                    .iter()
                    .enumerate()
                    .map(part)
                    .collect::<Result<StringArray>>()?
            }
        };
        Ok(Self { texts, lists: None })
    }

    /// The token of a row; `None` where the value is missing.
    pub(super) fn one(&self, row: usize) -> Option<&str> {
        self.texts.is_valid(row).then(|| self.texts.value(row))
    }

    /// The tokens of a row's sequence, in order.
    pub(super) fn each<'a>(
        &'a self,
        row: usize,
        column: &'a Column,
        mut see: impl FnMut(&'a str) -> Result<()>,
    ) -> Result<()> {
        match &self.lists {
            Some(lists) => lists[row]
                .clone()
                .try_for_each(|at| see(self.one(at).unwrap_or(column.filled()))),
            None => self
                .one(row)
                .unwrap_or(column.filled())
                .split(&*column.splitter)
                .try_for_each(see),
        }
    }

    /// Whether the column holds lists, so that nothing has to be split.
    pub(super) fn is_list(&self) -> bool {
        self.lists.is_some()
    }
}

/// The numbers of the column for `column`; missing ones as its `fill_na`.
pub(super) fn numbers(rows: &RowBatch, column: &Column) -> Result<Vec<f64>> {
    let array = find(rows, column)?;
    let fill = fill_number(column)?;
    let values = to_numbers(rows, array, column.source())?;
    let mut filled = Vec::with_capacity(values.len());
    for (row, value) in values.into_iter().enumerate() {
        let value = value.unwrap_or(fill);
        if !value.is_finite() {
            let reason = "the value is infinite; mend it or leave it empty";
            return Err(rows.error(column.source(), row, reason));
        }
        filled.push(value);
    }
    Ok(filled)
}

/// `fill_na` as a number; 0 where there is none.
pub(super) fn fill_number(column: &Column) -> Result<f64> {
    let text = column.fill_na.as_deref().unwrap_or("0");
    text.parse().map_err(|_| {
        let field = format!("columns.{}.fill_na", column.name);
        Error::config(field, format!("must be a number, got `{text}`"))
    })
}

/// Texts as a table may have them, numbers as texts, else the reason.
pub(crate) fn column_texts(rows: &RowBatch, name: &str) -> Result<StringArray> {
    let column = Column::new(name, Kind::Categorical);
    to_texts(rows, find(rows, &column)?, &column)
}

/// A column as texts, empty where missing.
///
/// # Errors
/// [`densely_core::Error::Data`] when it is not there or nested.
pub fn texts_of(rows: &RowBatch, name: &str) -> Result<Vec<String>> {
    let texts = column_texts(rows, name)?;
    Ok(texts
        .iter()
        .map(|text| text.unwrap_or_default().to_owned())
        .collect())
}

/// A column as numbers; `None` where it is missing. Texts are read, times are microseconds.
pub(crate) fn column_numbers(rows: &RowBatch, name: &str) -> Result<Vec<Option<f64>>> {
    let column = Column::new(name, Kind::Numeric);
    to_numbers(rows, find(rows, &column)?, name)
}

fn find<'a>(rows: &'a RowBatch, column: &Column) -> Result<&'a ArrayRef> {
    let name = column.source();
    rows.batch.column_by_name(name).ok_or_else(|| {
        let schema = rows.batch.schema();
        let names = schema.fields().iter().map(|field| field.name().as_str());
        let nearest = densely_core::registry::nearest(names, name).join("`, `");
        let reason = format!("there is no such column; nearest: `{nearest}`");
        rows.column_error(name, reason)
    })
}

/// The values of a list column, and where each row's lie.
fn list_of(array: &ArrayRef) -> Option<(ArrayRef, Vec<std::ops::Range<usize>>)> {
    let ranges = |offsets: &mut dyn Iterator<Item = (usize, usize)>| -> Vec<_> {
        offsets
            .enumerate()
            .map(|(row, (start, end))| {
                if array.is_null(row) {
                    start..start
                } else {
                    start..end
                }
            })
            .collect()
    };
    if let Some(list) = array.as_list_opt::<i32>() {
        let offsets = list.offsets().windows(2);
        let mut pairs = offsets.map(|pair| (pair[0] as usize, pair[1] as usize));
        return Some((list.values().clone(), ranges(&mut pairs)));
    }
    if let Some(list) = array.as_list_opt::<i64>() {
        let offsets = list.offsets().windows(2);
        let mut pairs = offsets.map(|pair| (pair[0] as usize, pair[1] as usize));
        return Some((list.values().clone(), ranges(&mut pairs)));
    }
    let list = array.as_fixed_size_list_opt()?;
    let length = list.value_length() as usize;
    let mut pairs = (0..list.len()).map(|row| (row * length, (row + 1) * length));
    Some((list.values().clone(), ranges(&mut pairs)))
}

fn cast(rows: &RowBatch, array: &ArrayRef, name: &str, to: &DataType) -> Result<ArrayRef> {
    arrow_cast::cast(array, to).map_err(|e| rows.column_error(name, e.to_string()))
}

fn to_texts(rows: &RowBatch, array: &ArrayRef, column: &Column) -> Result<StringArray> {
    if array.data_type().is_nested() && !matches!(array.data_type(), DataType::Dictionary(..)) {
        let reason = "holds nested values; a column must hold texts, numbers or lists of them";
        return Err(rows.column_error(column.source(), reason));
    }
    let texts = cast(rows, array, column.source(), &DataType::Utf8)?;
    Ok(texts.as_string::<i32>().clone())
}

fn to_numbers(rows: &RowBatch, array: &ArrayRef, name: &str) -> Result<Vec<Option<f64>>> {
    let kind = match array.data_type() {
        DataType::Dictionary(_, values) => values,
        kind => kind,
    };
    if !matches!(
        kind,
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View
    ) {
        let times = matches!(
            kind,
            DataType::Timestamp(..) | DataType::Date32 | DataType::Date64
        );
        let array = if times {
            let micros = DataType::Timestamp(arrow_schema::TimeUnit::Microsecond, None);
            let times = cast(rows, array, name, &micros)?;
            cast(rows, &times, name, &DataType::Int64)?
        } else {
            array.clone()
        };
        let numbers = cast(rows, &array, name, &DataType::Float64)?;
        let numbers = numbers.as_primitive::<Float64Type>();
        let present = |value: Option<f64>| value.filter(|value| !value.is_nan());
        return Ok(numbers.iter().map(present).collect());
    }
    let texts = cast(rows, array, name, &DataType::Utf8)?;
    let number = |(row, text): (usize, Option<&str>)| {
        let Some(text) = text.map(str::trim).filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        match text.parse::<f64>() {
            Ok(value) => Ok(Some(value).filter(|value| !value.is_nan())),
            Err(_) => Err(rows.error(name, row, format!("expected a number, got `{text}`"))),
        }
    };
    let texts = texts.as_string::<i32>();
    texts.iter().enumerate().map(number).collect()
}

fn each_number(
    rows: &RowBatch,
    array: &ArrayRef,
    column: &Column,
    token: impl Fn(f64) -> String,
) -> Result<StringArray> {
    let fill = fill_number(column)?;
    let values = to_numbers(rows, array, column.source())?;
    let mut builder = StringBuilder::with_capacity(values.len(), values.len() * 4);
    for value in values {
        builder.append_value(token(value.unwrap_or(fill)));
    }
    Ok(builder.finish())
}

fn whole(rows: &RowBatch, array: &ArrayRef, column: &Column) -> Result<StringArray> {
    if array.data_type().is_integer() {
        let values = cast(rows, array, column.source(), &DataType::Int64)?;
        let values = values.as_primitive::<Int64Type>();
        let text = |value: Option<i64>| value.map_or(column.filled().to_owned(), |v| v.to_string());
        return Ok(values.iter().map(|value| Some(text(value))).collect());
    }
    let texts = to_texts(rows, array, column)?;
    let token = |(row, text): (usize, Option<&str>)| {
        let text = text.unwrap_or(column.filled()).trim();
        let value: i64 = text.parse().map_err(|_| {
            let reason = format!("expected a whole number, got `{text}`");
            rows.error(column.source(), row, reason)
        })?;
        Ok(Some(value.to_string()))
    };
    texts.iter().enumerate().map(token).collect()
}

fn bucket(value: f64) -> f64 {
    if value > 2.0 {
        value.ln().powi(2).floor()
    } else {
        value.trunc()
    }
}

/// A part of Avazu's `YYMMDDHH`.
fn hour_part(text: &str, rule: Preprocess) -> Option<u8> {
    let text = text.trim();
    if text.len() != 8 || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let date = format!("20{}-{}-{}", &text[..2], &text[2..4], &text[4..6]);
    let days = parse_time(&date)?.div_euclid(86_400_000_000);
    // 1 January 1970 was a Thursday.
    let weekday = (days + 4).rem_euclid(7) as u8;
    match rule {
        Preprocess::ConvertHour => text[6..].parse().ok().filter(|hour| *hour < 24),
        Preprocess::ConvertWeekday => Some(weekday),
        Preprocess::ConvertWeekend => Some(u8::from(weekday == 0 || weekday == 6)),
        Preprocess::ConvertToBucket => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_and_hours_are_those_of_the_reference() {
        // floor(ln(100)²) = floor(21.2); two and less keep their whole part, as does a negative number.
        for (value, expected) in [
            (100.0, 21.0),
            (3.0, 1.0),
            (2.0, 2.0),
            (1.9, 1.0),
            (-1.7, -1.0),
        ] {
            assert_eq!(bucket(value).to_bits(), f64::to_bits(expected), "{value}");
        }
        // 21 October 2014 was a Tuesday, the 26th a Sunday.
        for (rule, tuesday, sunday) in [
            (Preprocess::ConvertHour, 7, 23),
            (Preprocess::ConvertWeekday, 2, 0),
            (Preprocess::ConvertWeekend, 0, 1),
        ] {
            assert_eq!(hour_part("14102107", rule), Some(tuesday));
            assert_eq!(hour_part("14102623", rule), Some(sunday));
        }
        for wrong in ["1410210", "14132107", "14102124x", "14102124"] {
            assert_eq!(hour_part(wrong, Preprocess::ConvertHour), None, "{wrong}");
        }
        assert_eq!(token_of_number(-0.0, Dtype::Float), "0.0");
        assert_eq!(token_of_number(3.0, Dtype::Int), "3");
    }
}
