//! The competition's three files.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use densely_core::{Error, Result};
use tch::Tensor;

use super::{Keys, Units, Wrmsse};
use crate::lines::Lines;

/// Training days that the weights come from.
pub const WEIGHT_DAYS: usize = 28;

/// Sales, calendar and prices of the competition, or of a part of its items or stores.
#[derive(Debug)]
pub struct M5 {
    /// What each series belongs to, in the order of the file.
    pub keys: Vec<Keys>,
    /// Units sold.
    pub units: Units,
    /// Dates of the calendar, which may reach beyond the sales.
    pub dates: Vec<String>,
    /// The week of each date, by Walmart's numbers.
    weeks: Vec<u32>,
    /// Series, week and price in dollars, in this order.
    prices: Vec<(u32, u32, f64)>,
    folder: PathBuf,
}

/// What series took in the last 28 training days.
#[derive(Debug, Clone, PartialEq)]
pub struct Dollars {
    /// Of each series.
    pub of: Vec<f64>,
    /// Days on which a series was sold without a price; they count as 0 dollars, as in the competition's code.
    pub unpriced: u64,
}

impl M5 {
    /// Price in dollars of a series on a day counted from 0, where the item had one.
    pub fn price(&self, series: usize, day: usize) -> Option<f64> {
        let key = (u32::try_from(series).ok()?, *self.weeks.get(day)?);
        let at = self
            .prices
            .binary_search_by_key(&key, |(series, week, _)| (*series, *week))
            .ok()?;
        Some(self.prices[at].2)
    }

    /// Units times price over the last 28 of the first `train_days`.
    ///
    /// # Errors
    /// [`Error::Config`] when there are not so many days, or fewer than 28.
    pub fn dollars(&self, train_days: usize) -> Result<Dollars> {
        if !(WEIGHT_DAYS..=self.units.days()).contains(&train_days) {
            let reason = format!(
                "must lie in {WEIGHT_DAYS} to {}, got {train_days}",
                self.units.days()
            );
            return Err(Error::config("train_days", reason));
        }
        let mut unpriced = 0;
        let mut of = vec![0.0; self.units.series()];
        for (series, dollars) in of.iter_mut().enumerate() {
            let days = (train_days - WEIGHT_DAYS)..train_days;
            for (day, sold) in days.clone().zip(&self.units.of(series)[days]) {
                match self.price(series, day) {
                    Some(price) => *dollars += f64::from(*sold) * price,
                    None if *sold > 0.0 => unpriced += 1,
                    None => {}
                }
            }
        }
        Ok(Dollars { of, unpriced })
    }

    /// The competition's error with the first `train_days` as training days; 1,913 and 1,941 are those of its two phases.
    ///
    /// # Errors
    /// Those of [`dollars`](Self::dollars) and [`Wrmsse::new`].
    pub fn wrmsse(&self, train_days: usize) -> Result<Wrmsse> {
        let dollars = self.dollars(train_days)?;
        if dollars.unpriced > 0 {
            tracing::warn!(
                "{}: {} sales of the last {WEIGHT_DAYS} training days have no price and count as 0 dollars",
                self.folder.display(),
                dollars.unpriced
            );
        }
        Wrmsse::new(&self.keys, &self.units, train_days, &dollars.of)
    }

    /// Units of the `horizon` days after `train_days`, `[series, horizon]`.
    ///
    /// # Errors
    /// [`Error::Config`] when the sales do not reach so far.
    pub fn actual(&self, train_days: usize, horizon: usize) -> Result<Tensor> {
        self.units
            .tensor(train_days, train_days.saturating_add(horizon))
    }
}

/// Reads `sales_train_evaluation.csv`, `calendar.csv` and `sell_prices.csv` in `folder`, as the competition gives them out.
///
/// Prices of items that have no sales in the file are passed over, so that a part of the sales needs no part of the prices.
/// # Errors
/// [`Error::Io`] for a file that is not there; [`Error::Data`] naming file, row and column: columns that are missing, days out of order, units or
/// prices that are no numbers of at least 0, an item that stands twice, two prices of one week; [`Error::Corrupt`] for bytes that are no text.
pub fn read(folder: &Path) -> Result<M5> {
    let (dates, weeks) = calendar(&folder.join("calendar.csv"))?;
    let sales = folder.join("sales_train_evaluation.csv");
    let (keys, units) = read_sales(&sales, dates.len())?;
    let prices = read_prices(&folder.join("sell_prices.csv"), &keys)?;
    // Also finds an item that stands twice.
    super::hierarchy(&keys).map_err(|error| Error::data(&sales, error.to_string()))?;
    Ok(M5 {
        keys,
        units,
        dates,
        weeks,
        prices,
        folder: folder.to_owned(),
    })
}

fn week_of(lines: &Lines, column: usize) -> Result<u32> {
    let text = lines.text(column);
    text.parse()
        .map_err(|_| lines.error(column, format!("expected a week like 11101, got `{text}`")))
}

fn calendar(path: &Path) -> Result<(Vec<String>, Vec<u32>)> {
    let mut lines = Lines::open(path)?;
    let [date, week, day] = lines.find(["date", "wm_yr_wk", "d"])?;
    let (mut dates, mut weeks) = (Vec::new(), Vec::new());
    while lines.advance()? {
        let expected = format!("d_{}", dates.len() + 1);
        if lines.text(day) != expected {
            let reason = format!(
                "expected `{expected}`, got `{}`: days must stand in order",
                lines.text(day)
            );
            return Err(lines.error(day, reason));
        }
        dates.push(lines.key(date)?.to_owned());
        weeks.push(week_of(&lines, week)?);
    }
    Ok((dates, weeks))
}

fn read_sales(path: &Path, calendar_days: usize) -> Result<(Vec<Keys>, Units)> {
    let mut lines = Lines::open(path)?;
    let [item, dept, cat, store, state] =
        lines.find(["item_id", "dept_id", "cat_id", "store_id", "state_id"])?;
    let [first] = lines.find(["d_1"])?;
    let days = lines.header.len() - first;
    for (at, name) in lines.header[first..].iter().enumerate() {
        if *name != format!("d_{}", at + 1) {
            let reason = format!("must be `d_{}`: days must stand in order, last", at + 1);
            return Err(Error::column(path, name, reason));
        }
    }
    if days > calendar_days {
        let reason = format!("has {days} days, but calendar.csv has {calendar_days}");
        return Err(Error::data(path, reason));
    }
    let (mut keys, mut units) = (Vec::new(), Vec::new());
    while lines.advance()? {
        let key = |column| lines.key(column).map(str::to_owned);
        keys.push(Keys {
            item: key(item)?,
            dept: key(dept)?,
            cat: key(cat)?,
            store: key(store)?,
            state: key(state)?,
        });
        for column in first..lines.header.len() {
            let value = lines.number(column)? as f32;
            if !value.is_finite() {
                return Err(lines.error(column, "is too large"));
            }
            units.push(value);
        }
    }
    if keys.is_empty() {
        return Err(Error::data(path, "has no rows"));
    }
    Ok((keys, Units::new(units, days)?))
}

fn read_prices(path: &Path, keys: &[Keys]) -> Result<Vec<(u32, u32, f64)>> {
    let mut series: HashMap<&str, HashMap<&str, u32>> = HashMap::new();
    for (at, keys) in keys.iter().enumerate() {
        let items = series.entry(&keys.store).or_default();
        items.insert(&keys.item, at as u32);
    }
    let mut lines = Lines::open(path)?;
    let [store, item, week, price] =
        lines.find(["store_id", "item_id", "wm_yr_wk", "sell_price"])?;
    let mut prices = Vec::new();
    while lines.advance()? {
        let at = series
            .get(lines.key(store)?)
            .and_then(|items| items.get(lines.text(item)));
        let (week, price) = (week_of(&lines, week)?, lines.number(price)?);
        if let Some(at) = at {
            prices.push((*at, week, price));
        }
    }
    prices.sort_unstable_by_key(|(series, week, _)| (*series, *week));
    let twice = prices
        .windows(2)
        .find(|pair| (pair[0].0, pair[0].1) == (pair[1].0, pair[1].1));
    if let Some(pair) = twice {
        let keys = &keys[pair[0].0 as usize];
        let reason = format!(
            "`{}` has two prices in store `{}` in week {}",
            keys.item, keys.store, pair[0].1
        );
        return Err(Error::column(path, "sell_price", reason));
    }
    Ok(prices)
}
