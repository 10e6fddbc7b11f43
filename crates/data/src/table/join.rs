//! Tables of several files: rows of one behind those of another, and columns of one beside those of another.

use std::collections::HashMap;

use densely_core::{Error, Result};

use super::read::Interner;
use super::{Column, MISSING, Store, Table, Values};

/// The value of a row's key columns, as text; `None` when one is missing.
type Key = Option<Vec<u64>>;

impl Table {
    /// The rows of all `tables`, in their order, in memory. A column that a table lacks is missing in its rows; one that
    /// is text in some table is text in all.
    ///
    /// # Errors
    /// [`Error::Data`] when there is no table, or a column holds times in one and something else in another; those of
    /// reading columns that are in files.
    pub fn concat(tables: &[Self]) -> Result<Self> {
        let Some(first) = tables.first() else {
            return Err(Error::data("", "there is no table to join"));
        };
        let mut names: Vec<String> = Vec::new();
        for name in tables.iter().flat_map(|table| &table.names) {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        let columns = names.iter().map(|name| stack(tables, name));
        let columns = columns.collect::<Result<Vec<_>>>()?;
        Ok(Self {
            path: first.path.clone(),
            first_row: 1,
            rows: tables.iter().map(|table| table.rows).sum(),
            names,
            store: Store::Memory(columns),
            warnings: tables.iter().flat_map(|t| t.warnings.clone()).collect(),
            zones: tables.iter().flat_map(|t| t.zones.clone()).collect(),
        })
    }

    /// This table with the columns of `other` beside its own, from the row of `other` whose key columns `on` are equal.
    ///
    /// Rows without a partner get missing values. The columns of `other` but its keys are named `prefix` + name; one
    /// that this table has already fills the values that are missing here.
    /// # Errors
    /// [`Error::Data`] when a key column is absent or of another type, or two rows of `other` have one key.
    pub fn join(&self, other: &Self, on: &[String], prefix: &str) -> Result<Self> {
        if on.is_empty() {
            return Err(Error::data(
                other.path(),
                "no column is named to join on; name the keys",
            ));
        }
        for name in on {
            let kind = |table: &Self| -> Result<_> {
                Ok(std::mem::discriminant(&table.column(name)?.values))
            };
            if kind(self)? != kind(other)? {
                let reason = "the two tables hold values of different types; nothing would match";
                return Err(Error::column(other.path(), name, reason));
            }
        }
        let mut keys = Keys::default();
        let right = keys.of(other, on)?;
        let left = keys.of(self, on)?;
        let mut rows: HashMap<&[u64], usize> = HashMap::new();
        for (row, key) in right.iter().enumerate() {
            if let Some(key) = key
                && rows.insert(key, row).is_some()
            {
                let reason = "a row before has the same key; keys must be unique to join";
                return Err(other.error(&on[0], row, reason));
            }
        }
        let partner: Vec<Option<usize>> = left
            .iter()
            .map(|key| {
                key.as_ref()
                    .and_then(|key| rows.get(key.as_slice()).copied())
            })
            .collect();
        let mut columns = Vec::new();
        for name in &self.names {
            columns.push(self.column(name)?.into_owned());
        }
        for name in other.names.iter().filter(|name| !on.contains(name)) {
            let mut column = pick(&*other.column(name)?, &partner);
            column.name = format!("{prefix}{name}");
            match columns.iter_mut().find(|own| own.name == column.name) {
                Some(own) => fill(own, &column).ok_or_else(|| {
                    let reason = "the two tables hold values of different types; give a prefix";
                    Error::column(other.path(), name, reason)
                })?,
                None => columns.push(column),
            }
        }
        let mut warnings = self.warnings.clone();
        warnings.extend(other.warnings.iter().cloned());
        Ok(Self {
            path: self.path.clone(),
            first_row: self.first_row,
            rows: self.rows,
            names: columns.iter().map(|column| column.name.clone()).collect(),
            store: Store::Memory(columns),
            warnings,
            zones: self.zones.clone(),
        })
    }
}

/// Numbers for texts that are equal in both tables.
#[derive(Debug, Default)]
struct Keys {
    texts: HashMap<String, u64>,
}

impl Keys {
    /// The key of each row.
    fn of(&mut self, table: &Table, on: &[String]) -> Result<Vec<Key>> {
        let mut keys: Vec<Key> = vec![Some(Vec::with_capacity(on.len())); table.rows];
        for name in on {
            let column = table.column(name)?;
            let mut put = |row: usize, part: Option<u64>| match (&mut keys[row], part) {
                (Some(key), Some(part)) => key.push(part),
                (key, _) => *key = None,
            };
            match &column.values {
                Values::Number { values, .. } => {
                    for (row, value) in values.iter().enumerate() {
                        let bits = (value + 0.0).to_bits();
                        put(row, (!value.is_nan()).then_some(bits));
                    }
                }
                Values::Time(values) => {
                    for (row, value) in values.iter().enumerate() {
                        put(row, (*value != i64::MIN).then_some(*value as u64));
                    }
                }
                Values::Text { codes, names } => {
                    let mut number = |text: &String| {
                        let next = self.texts.len() as u64;
                        *self.texts.entry(text.clone()).or_insert(next)
                    };
                    let numbers: Vec<u64> = names.iter().map(&mut number).collect();
                    for (row, code) in codes.iter().enumerate() {
                        put(row, numbers.get(*code as usize).copied());
                    }
                }
            }
        }
        Ok(keys)
    }
}

/// The column's values at the given rows; missing where there is none.
fn pick(column: &Column, rows: &[Option<usize>]) -> Column {
    let values = match &column.values {
        Values::Number { values, integral } => Values::Number {
            values: rows
                .iter()
                .map(|row| row.map_or(f64::NAN, |row| values[row]))
                .collect(),
            integral: *integral,
        },
        Values::Text { codes, names } => Values::Text {
            codes: rows
                .iter()
                .map(|row| row.map_or(MISSING, |row| codes[row]))
                .collect(),
            names: names.clone(),
        },
        Values::Time(values) => Values::Time(
            rows.iter()
                .map(|row| row.map_or(i64::MIN, |row| values[row]))
                .collect(),
        ),
    };
    Column {
        name: column.name.clone(),
        values,
    }
}

/// Puts the values of `from` where `into` has none; `None` when their types differ.
fn fill(into: &mut Column, from: &Column) -> Option<()> {
    match (&mut into.values, &from.values) {
        (
            Values::Number { values, integral },
            Values::Number {
                values: other,
                integral: whole,
            },
        ) => {
            *integral &= *whole;
            for (value, other) in values.iter_mut().zip(other) {
                if value.is_nan() {
                    *value = *other;
                }
            }
        }
        (Values::Time(values), Values::Time(other)) => {
            for (value, other) in values.iter_mut().zip(other) {
                if *value == i64::MIN {
                    *value = *other;
                }
            }
        }
        (
            Values::Text { codes, names },
            Values::Text {
                codes: other,
                names: texts,
            },
        ) => {
            let mut interner = Interner::from_names(std::mem::take(names));
            for (code, other) in codes.iter_mut().zip(other) {
                if *code == MISSING
                    && let Some(text) = texts.get(*other as usize)
                {
                    *code = interner.code(text);
                }
            }
            *names = interner.names;
        }
        _ => return None,
    }
    Some(())
}

/// One column of all tables.
fn stack(tables: &[Table], name: &str) -> Result<Column> {
    let columns = tables
        .iter()
        .map(|table| {
            let has = table.names.iter().any(|other| other == name);
            has.then(|| table.column(name)).transpose()
        })
        .collect::<Result<Vec<_>>>()?;
    let all = |is: fn(&Values) -> bool| columns.iter().flatten().all(|column| is(&column.values));
    let lengths = tables.iter().map(|table| table.rows);
    let parts = columns.iter().zip(lengths);
    let values = if all(|values| matches!(values, Values::Number { .. })) {
        let mut numbers = Vec::new();
        let mut whole = true;
        for (column, rows) in parts {
            match column.as_ref().map(|column| &column.values) {
                Some(Values::Number { values, integral }) => {
                    whole &= *integral;
                    numbers.extend_from_slice(values);
                }
                _ => numbers.resize(numbers.len() + rows, f64::NAN),
            }
        }
        Values::Number {
            values: numbers,
            integral: whole,
        }
    } else if all(|values| matches!(values, Values::Time(_))) {
        let mut times = Vec::new();
        for (column, rows) in parts {
            match column.as_ref().map(|column| &column.values) {
                Some(Values::Time(values)) => times.extend_from_slice(values),
                _ => times.resize(times.len() + rows, i64::MIN),
            }
        }
        Values::Time(times)
    } else {
        if columns
            .iter()
            .flatten()
            .any(|column| matches!(column.values, Values::Time(_)))
        {
            let reason = "it holds times in one table and something else in another";
            return Err(Error::column(tables[0].path(), name, reason));
        }
        let mut interner = Interner::default();
        let mut codes = Vec::new();
        for (at, (column, rows)) in parts.enumerate() {
            if column.is_none() {
                codes.resize(codes.len() + rows, MISSING);
                continue;
            }
            let (own, names) = tables[at].texts(name)?;
            let map: Vec<u32> = names.iter().map(|text| interner.code(text)).collect();
            codes.extend(
                own.iter()
                    .map(|code| map.get(*code as usize).copied().unwrap_or(MISSING)),
            );
        }
        Values::Text {
            codes,
            names: interner.names,
        }
    };
    Ok(Column {
        name: name.to_owned(),
        values,
    })
}
