//! Which column of a table is what, and how its gaps and doubled rows are treated.

use densely_core::{Error, Result};
use densely_data::calendar::CalendarPart;
use densely_data::table::{Table, Values};
use serde::{Deserialize, Serialize};

use super::stamps::holds_times;

/// How a table is read. Defaults are those of `densely forecast fit`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TableSettings {
    /// Column with the time; found when there is exactly one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    /// Columns with year, month, day, hour, minute and second (two of them at least, in this order) where no column has the whole time; forecasts
    /// then have one called `time`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub time_parts: Vec<String>,
    /// Columns that tell the series apart: the table is long. None: the table is wide, one row per time.
    pub series_id: Vec<String>,
    /// Columns to forecast. None: of a wide table all numbers; of a long one the only column of numbers left.
    pub target: Vec<String>,
    /// Columns that are known up to the present.
    pub past: Vec<String>,
    /// Columns whose future is known, such as prices and holidays.
    pub known: Vec<String>,
    /// Columns that do not change in a series.
    #[serde(rename = "static")]
    pub statics: Vec<String>,
    /// Parts of the time that join the known columns.
    pub calendar: Vec<CalendarPart>,
    /// The step, such as `15min` or `month`; found from the times when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frequency: Option<String>,
    /// The zone of times without an offset, such as `Europe/Berlin`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<String>,
    /// What becomes of rows of one series and time.
    pub duplicates: Duplicates,
    /// What becomes of steps without a row or a value.
    pub gaps: Gaps,
    /// Longest gap that is filled, steps.
    pub max_gap: i64,
}

impl Default for TableSettings {
    fn default() -> Self {
        Self {
            time: None,
            time_parts: Vec::new(),
            series_id: Vec::new(),
            target: Vec::new(),
            past: Vec::new(),
            known: Vec::new(),
            statics: Vec::new(),
            calendar: Vec::new(),
            frequency: None,
            time_zone: None,
            duplicates: Duplicates::Refuse,
            gaps: Gaps::Interpolate,
            max_gap: 3,
        }
    }
}

/// The name of a time that is put together from parts.
pub(super) const PARTS_TIME: &str = "time";

/// What becomes of rows of one series and time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Duplicates {
    /// They are an error.
    Refuse,
    /// Numbers are averaged; of the rest the first stays.
    Mean,
    /// The first one stays.
    First,
    /// The last one stays.
    Last,
}

/// What becomes of steps without a row or a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gaps {
    /// They are an error.
    Refuse,
    /// Short ones are filled along a straight line; longer ones are an error.
    Interpolate,
    /// Short ones are filled with the value before; longer ones are an error.
    Last,
    /// Short ones are filled along a straight line; at longer ones the series is cut, and no window spans the cut.
    Split,
}

macro_rules! names {
    ($type:ty, $setting:literal, $($name:literal => $value:expr),+) => {
        impl std::str::FromStr for $type {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                match text {
                    $($name => Ok($value),)+
                    _ => Err(Error::config($setting, format!("must be one of {}, got `{text}`", [$($name),+].join(", ")))),
                }
            }
        }
    };
}
names!(Duplicates, "duplicates", "refuse" => Self::Refuse, "mean" => Self::Mean, "first" => Self::First, "last" => Self::Last);
names!(Gaps, "gaps", "refuse" => Self::Refuse, "interpolate" => Self::Interpolate, "last" => Self::Last, "split" => Self::Split);

impl TableSettings {
    /// The settings with the columns that were left to find, and sentences on what was found.
    ///
    /// # Errors
    /// [`Error::Data`] when a column is absent, claimed twice or cannot be told.
    pub fn resolve(&self, table: &Table) -> Result<(Self, Vec<String>)> {
        let mut found = self.clone();
        let mut notes = Vec::new();
        if self.max_gap < 0 {
            let reason = format!("must be at least 0, got {}", self.max_gap);
            return Err(Error::config("max_gap", reason));
        }
        if !self.time_parts.is_empty() {
            if self.time.as_deref().is_some_and(|name| name != PARTS_TIME) {
                let reason = "the time stands in `time` or in `time_parts`, not in both";
                return Err(Error::config("time_parts", reason));
            }
            found.time = Some(PARTS_TIME.to_owned());
        }
        let claims = [
            &self.time_parts,
            &self.series_id,
            &self.target,
            &self.past,
            &self.known,
            &self.statics,
        ];
        let whole = self.time.iter().filter(|_| self.time_parts.is_empty());
        let mut claimed: Vec<&String> = whole.chain(claims.into_iter().flatten()).collect();
        for name in &claimed {
            table.column(name)?;
        }
        claimed.sort();
        if let Some(pair) = claimed.windows(2).find(|pair| pair[0] == pair[1]) {
            let reason = "the column is named for two purposes; name it once";
            return Err(Error::column(table.path(), pair[0].as_str(), reason));
        }
        let mut times = Vec::new();
        let mut numbers = Vec::new();
        let mut others = Vec::new();
        for name in table.names().iter().filter(|name| !claimed.contains(name)) {
            let column = table.column(name)?;
            match &column.values {
                values if holds_times(values) => times.push(name.clone()),
                Values::Number { .. } if column.missing() < table.row_count() => {
                    numbers.push(name.clone());
                }
                Values::Text { names, .. } if mostly_numbers(names) => {
                    let why = table.numbers(name).err();
                    let why = why.map_or(String::new(), |error| format!(" ({error})"));
                    notes.push(format!(
                        "column `{name}` has texts among its numbers and is not used{why}"
                    ));
                }
                _ => others.push(name.clone()),
            }
        }
        if found.time.is_none() {
            match times.as_slice() {
                [only] => {
                    notes.push(format!("time: column `{only}`, the only one with times"));
                    found.time = Some(only.clone());
                    times.clear();
                }
                [] => {
                    let reason = "no column holds times like 2013-09-01 05:30; write them so, and name the column with `--time` (or the columns, as in `--time year,month,day,hour`)";
                    return Err(Error::data(table.path(), reason));
                }
                _ => {
                    let reason = format!(
                        "several columns hold times: {}; name one with `--time`",
                        quoted(&times)
                    );
                    return Err(Error::data(table.path(), reason));
                }
            }
        }
        if self.target.is_empty() {
            let wide = self.series_id.is_empty();
            match numbers.as_slice() {
                [] => {
                    let reason =
                        "no column of numbers is left to forecast; name it with `--target`";
                    return Err(Error::data(table.path(), reason));
                }
                [only] => notes.push(format!(
                    "target: column `{only}`, the only one with numbers"
                )),
                all if wide => {
                    notes.push(format!("targets: all {} columns with numbers", all.len()));
                }
                all => {
                    let reason = format!(
                        "several columns hold numbers: {}; name what to forecast with `--target`",
                        quoted(all)
                    );
                    return Err(Error::data(table.path(), reason));
                }
            }
            found.target = std::mem::take(&mut numbers);
        }
        if self.series_id.is_empty() && !self.statics.is_empty() {
            let reason =
                "static columns tell series apart; a table without `--series-id` has one series";
            return Err(Error::config("static", reason));
        }
        let unused: Vec<String> = [times, numbers, others].concat();
        if !unused.is_empty() {
            notes.push(format!("not used: {}", quoted(&unused)));
        }
        Ok((found, notes))
    }

    /// The time column; settings that are resolved have one.
    pub(super) fn time_column(&self) -> Result<&str> {
        self.time
            .as_deref()
            .ok_or_else(|| Error::config("time", "is not resolved"))
    }
}

/// Whether more than half of the distinct texts are numbers, so that a text among them is likely a slip.
fn mostly_numbers(names: &[String]) -> bool {
    let numbers = names.iter().filter(|name| name.parse::<f64>().is_ok());
    2 * numbers.count() > names.len()
}

/// At most ten names in backquotes.
pub(super) fn quoted(names: &[String]) -> String {
    let shown: Vec<String> = names
        .iter()
        .take(10)
        .map(|name| format!("`{name}`"))
        .collect();
    let more = if names.len() > 10 {
        format!(" and {} more", names.len() - 10)
    } else {
        String::new()
    };
    shown.join(", ") + &more
}
