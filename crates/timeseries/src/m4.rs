//! M4: single series of one frequency and the steps that follow, the competition's errors and its simplest benchmarks.
//!
//! The hourly set has 414 series of 700 or 960 steps, of which the next 48 are to be forecast, with a season of 24.

use std::collections::HashMap;
use std::path::Path;

use densely_core::{Error, Result, check};
use densely_data::table::{Column, Table, Values};
use tch::Tensor;

use crate::lines::Lines;
use crate::metrics::{M4Errors, mase, mase_scale, naive2, smape};

/// Steps in a day of hourly series.
pub const HOURLY_SEASON: usize = 24;

/// Microseconds of an hour.
const HOUR: i64 = 3_600_000_000;
/// Where the made-up times of [`M4::table`] begin: the year 2000, in microseconds since 1970.
const START: i64 = 10_957 * 24 * HOUR;

/// The series of one frequency.
#[derive(Debug, Clone, PartialEq)]
pub struct M4 {
    /// Names, as `H1`.
    pub ids: Vec<String>,
    /// What is known of each; lengths differ.
    pub histories: Vec<Vec<f64>>,
    /// What follows, of one length.
    pub futures: Vec<Vec<f64>>,
    /// Steps in a season.
    pub season: usize,
}

/// Reads `train` and `test` as the competition gives them out (`Hourly-train.csv`, `Hourly-test.csv`): a header, then a
/// name and its values in each line, filled up with empty fields.
///
/// # Errors
/// [`Error::Io`]; [`Error::Data`] naming file, row and column: values that are no numbers, values after an empty field, names that stand twice or
/// in one file only, futures of several lengths, and a history that is not longer than the season.
pub fn read(train: &Path, test: &Path, season: usize) -> Result<M4> {
    check::positive("season", season as i64)?;
    let (ids, histories) = read_series(train)?;
    let (test_ids, mut test_values) = read_series(test)?;
    let places: HashMap<&str, usize> = test_ids
        .iter()
        .enumerate()
        .map(|(at, id)| (id.as_str(), at))
        .collect();
    let mut futures = Vec::with_capacity(ids.len());
    for (id, history) in ids.iter().zip(&histories) {
        if history.len() <= season {
            let reason = format!(
                "series `{id}` has {} values, which is no more than a season of {season}",
                history.len()
            );
            return Err(Error::data(train, reason));
        }
        let at = places.get(id.as_str()).ok_or_else(|| {
            Error::data(test, format!("series `{id}` of the other file is missing"))
        })?;
        futures.push(std::mem::take(&mut test_values[*at]));
    }
    if let Some(id) = test_ids.iter().find(|id| !ids.contains(id)) {
        return Err(Error::data(
            train,
            format!("series `{id}` of the other file is missing"),
        ));
    }
    let horizon = futures[0].len();
    if let Some(at) = futures.iter().position(|future| future.len() != horizon) {
        let reason = format!(
            "series `{}` has {} values, `{}` has {horizon}",
            ids[at],
            futures[at].len(),
            ids[0]
        );
        return Err(Error::data(test, reason));
    }
    Ok(M4 {
        ids,
        histories,
        futures,
        season,
    })
}

fn read_series(path: &Path) -> Result<(Vec<String>, Vec<Vec<f64>>)> {
    let mut lines = Lines::open(path)?;
    let (mut ids, mut series) = (Vec::<String>::new(), Vec::new());
    let mut seen = std::collections::HashSet::new();
    while lines.advance()? {
        let id = lines.key(0)?.to_owned();
        if !seen.insert(id.clone()) {
            return Err(lines.error(0, format!("series `{id}` stands twice")));
        }
        let columns = lines.header.len();
        let filled = (1..columns).find(|at| lines.text(*at).is_empty());
        let end = filled.unwrap_or(columns);
        if let Some(late) = (end..columns).find(|at| !lines.text(*at).is_empty()) {
            return Err(lines.error(late, "stands after an empty field: the series has a gap"));
        }
        if end == 1 {
            return Err(lines.error(0, format!("series `{id}` has no values")));
        }
        ids.push(id);
        series.push(
            (1..end)
                .map(|at| lines.finite(at))
                .collect::<Result<Vec<_>>>()?,
        );
    }
    if ids.is_empty() {
        return Err(Error::data(path, "has no rows"));
    }
    Ok((ids, series))
}

impl M4 {
    /// Steps to forecast.
    pub fn horizon(&self) -> usize {
        self.futures[0].len()
    }

    /// Histories and futures as a long table with the columns `series`, `time` and `value`.
    ///
    /// The competition gives no times: steps are hours here, and all series end together, so that one cut in time parts every history from its
    /// future.
    ///
    /// # Errors
    /// Those of [`Table::from_columns`].
    pub fn table(&self) -> Result<Table> {
        let longest = self.histories.iter().map(Vec::len).max().unwrap_or(0);
        let (mut codes, mut times, mut values) = (Vec::new(), Vec::new(), Vec::new());
        for (code, (history, future)) in self.histories.iter().zip(&self.futures).enumerate() {
            let first = longest - history.len();
            for (step, value) in history.iter().chain(future).enumerate() {
                codes.push(code as u32);
                times.push(START + (first + step) as i64 * HOUR);
                values.push(*value);
            }
        }
        let names = self.ids.clone();
        let columns = [
            ("series", Values::Text { codes, names }),
            ("time", Values::Time(times)),
            (
                "value",
                Values::Number {
                    values,
                    integral: false,
                },
            ),
        ];
        let columns = columns.map(|(name, values)| Column {
            name: name.to_owned(),
            values,
        });
        Table::from_columns(Path::new("m4"), columns.into())
    }

    /// The competition's errors of `forecasts`, one per series, over all series and steps.
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of series or steps, or values that are not finite; [`Error::Config`] for a series that
    /// MASE cannot be scaled by.
    pub fn score(&self, forecasts: &[Vec<f64>]) -> Result<M4Errors> {
        let horizon = self.horizon();
        let fits = forecasts.len() == self.ids.len()
            && forecasts.iter().all(|forecast| forecast.len() == horizon);
        if !fits {
            return Err(Error::Shape {
                what: "forecasts".to_owned(),
                expected: format!("{} series of {horizon} steps", self.ids.len()),
                got: format!("{} series", forecasts.len()),
            });
        }
        let table = |rows: &[Vec<f64>]| {
            Tensor::from_slice(&rows.concat()).view([rows.len() as i64, horizon as i64])
        };
        let (forecast, actual) = (table(forecasts), table(&self.futures));
        let scales: Vec<f64> = self
            .histories
            .iter()
            .map(|history| mase_scale(history, self.season))
            .collect::<Result<_>>()?;
        Ok(M4Errors {
            smape: smape(&forecast, &actual)?,
            mase: mase(&forecast, &actual, &scales)?,
        })
    }

    /// Errors of the competition's benchmarks that need no fit: `Naive` (the last value), `sNaive` (the last season) and `Naive2`.
    ///
    /// # Errors
    /// Those of [`naive2`] and [`score`](Self::score).
    pub fn benchmarks(&self) -> Result<[(&'static str, M4Errors); 3]> {
        let (season, horizon) = (self.season, self.horizon());
        let of = |forecast: &dyn Fn(&[f64]) -> Result<Vec<f64>>| {
            let forecasts: Vec<Vec<f64>> = self
                .histories
                .iter()
                .map(|history| forecast(history))
                .collect::<Result<_>>()?;
            self.score(&forecasts)
        };
        let again = |history: &[f64], steps: usize| -> Vec<f64> {
            let from = history.len() - steps;
            (0..horizon).map(|h| history[from + h % steps]).collect()
        };
        Ok([
            ("Naive", of(&|history| Ok(again(history, 1)))?),
            ("sNaive", of(&|history| Ok(again(history, season)))?),
            ("Naive2", of(&|history| naive2(history, season, horizon))?),
        ])
    }
}
