//! The steps to come, with what is known of them.

use std::collections::HashMap;

use densely_core::{Error, Result};
use densely_data::table::Table;

use super::panel::{Covariate, Covariates, Panel, Series};

/// The panel with `horizon` rows behind the last target of each series, and what is known of them.
pub(super) fn extended(
    panel: Panel,
    horizon: usize,
    future: Option<&Panel>,
    table: &Table,
) -> Result<Panel> {
    let width = panel.channels();
    let rows: usize = panel
        .series
        .iter()
        .map(|series| series.observed + horizon)
        .sum();
    let mut values = vec![f64::NAN; rows * width];
    let blank = |columns: &[Covariate]| -> Vec<Covariate> {
        columns
            .iter()
            .map(|column| Covariate {
                name: column.name.clone(),
                values: column.values.blank(rows),
            })
            .collect()
    };
    let (mut past, mut known) = (blank(&panel.past), blank(&panel.known));
    let later: HashMap<&[String], (usize, &Series)> = future
        .iter()
        .flat_map(|future| {
            future
                .series
                .iter()
                .enumerate()
                .map(|(at, series)| (series.name.as_slice(), (at, series)))
        })
        .collect();
    let (mut series, mut start) = (Vec::new(), 0);
    for (number, old) in panel.series.iter().enumerate() {
        let (from, to) = (old.start * width, (old.start + old.observed) * width);
        values[start * width..start * width + to - from].copy_from_slice(&panel.values[from..to]);
        for (column, source) in past.iter_mut().zip(&panel.past) {
            (0..old.observed).for_each(|row| {
                column
                    .values
                    .take(start + row, &source.values, old.start + row);
            });
        }
        let later = later.get(old.name.as_slice());
        for (at, (column, source)) in known.iter_mut().zip(&panel.known).enumerate() {
            for row in 0..old.observed + horizon {
                let to = start + row;
                if row < old.len {
                    column.values.take(to, &source.values, old.start + row);
                }
                let place =
                    later.map(|(_, series)| (series, old.first + row as i64 - series.first));
                let place = place.filter(|(series, row)| (0..series.len as i64).contains(row));
                if let (Some(future), Some((series, place))) = (future, place)
                    && row >= old.observed
                    && column.values.is_missing(to)
                {
                    column.values.take_by_text(
                        to,
                        &future.known[at].values,
                        series.start + place as usize,
                    );
                }
                let absent = row >= old.len && place.is_none();
                let blank =
                    matches!(column.values, Covariates::Numbers(_)) && column.values.is_missing(to);
                if row >= old.observed && (absent || blank) {
                    let reason = format!(
                        "{}no value is known at {}; give the {horizon} steps after the last target, in rows with an empty target or in the file of `--known-future`",
                        old.prefix(),
                        panel.time(number, row)
                    );
                    return Err(Error::column(table.path(), &column.name, reason));
                }
            }
        }
        series.push(Series {
            start,
            len: old.observed + horizon,
            ..old.clone()
        });
        start += old.observed + horizon;
    }
    Ok(Panel {
        series,
        values,
        past,
        known,
        ..panel
    })
}

impl Covariates {
    fn is_missing(&self, row: usize) -> bool {
        match self {
            Self::Numbers(values) => values[row].is_nan(),
            Self::Texts { codes, .. } => codes[row] == densely_data::table::MISSING,
        }
    }

    /// As [`take`](Self::take), from another table, whose texts have other codes.
    fn take_by_text(&mut self, to: usize, from: &Self, row: usize) {
        match (self, from) {
            (
                Self::Texts {
                    codes: to_codes,
                    names: to_names,
                },
                Self::Texts { codes, names },
            ) => {
                let Some(text) = names.get(codes[row] as usize) else {
                    return;
                };
                let code = to_names
                    .iter()
                    .position(|name| name == text)
                    .unwrap_or_else(|| {
                        to_names.push(text.clone());
                        to_names.len() - 1
                    });
                to_codes[to] = code as u32;
            }
            (to_values, from) => to_values.take(to, from, row),
        }
    }
}
