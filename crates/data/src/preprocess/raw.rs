//! Features without any transform.

use densely_core::Result;

use super::{Preprocessor, encode};
use crate::table::Table;

/// A feature before any transform.
#[derive(Debug, Clone, PartialEq)]
pub struct RawColumn {
    /// One per row, NaN where missing; codes of categories, NaN where unseen in training.
    pub values: Vec<f64>,
    /// Number of categories; `None` for numbers.
    pub categories: Option<i64>,
}

impl Preprocessor {
    /// The features as they are before any transform, for models that need none, such as trees: numbers first, then codes.
    ///
    /// # Errors
    /// As [`transform`](Self::transform).
    pub fn raw(&self, table: &Table, rows: &[u32]) -> Result<Vec<RawColumn>> {
        self.check_columns(table, false)?;
        let mut columns = Vec::new();
        for column in &self.numeric {
            let all = column.values(table)?;
            let values = rows.iter().map(|row| all[*row as usize]).collect();
            columns.push(RawColumn {
                values,
                categories: None,
            });
        }
        for column in &self.categorical {
            let unseen = column.cardinality();
            let code = |code: i32| match i64::from(code) {
                code if code == unseen => f64::NAN,
                code => code as f64,
            };
            columns.push(RawColumn {
                values: encode(table, column, rows)?.into_iter().map(code).collect(),
                categories: Some(unseen),
            });
        }
        Ok(columns)
    }
}
