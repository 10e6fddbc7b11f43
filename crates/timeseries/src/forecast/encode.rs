//! Covariates and targets as a network sees them: standardised numbers, one column per text, parts of the calendar as angles.

use densely_core::{Error, Result};
use densely_data::calendar::CalendarPart;
use densely_data::table::MISSING;
use serde::{Deserialize, Serialize};

use super::panel::{Covariate, Covariates, Panel};

/// A column of a covariate takes one column per distinct text; more than this are a mistake.
const MOST_TEXTS: usize = 50;

/// How a column of covariates becomes numbers; fitted on the training rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Encoder {
    /// The column.
    pub name: String,
    /// What its values become.
    pub code: Code,
}

/// What the values of a column become.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// Less the mean, divided by the standard deviation; 1 for a constant column.
    Number {
        /// Mean of the training rows.
        mean: f64,
        /// Their population standard deviation.
        std: f64,
    },
    /// 1 in the column of the text, 0 in the others; missing and unknown ones are 0 in all.
    Text {
        /// The texts, in the order of the columns.
        names: Vec<String>,
    },
}

impl Encoder {
    /// Fits `rows` of the column.
    ///
    /// # Errors
    /// [`Error::Config`] for a column with very many texts.
    pub(super) fn fit(
        setting: &str,
        column: &Covariate,
        rows: impl Iterator<Item = usize>,
    ) -> Result<Self> {
        let code = match &column.values {
            Covariates::Numbers(values) => {
                let (mean, std) = moments(rows.map(|row| values[row]));
                Code::Number { mean, std }
            }
            Covariates::Texts { codes, names } => {
                let mut seen = vec![false; names.len()];
                rows.map(|row| codes[row])
                    .filter(|code| *code != MISSING)
                    .for_each(|code| seen[code as usize] = true);
                let mut names: Vec<String> = names
                    .iter()
                    .zip(seen)
                    .filter(|(_, seen)| *seen)
                    .map(|(name, _)| name.clone())
                    .collect();
                names.sort();
                if names.len() > MOST_TEXTS {
                    let reason = format!(
                        "column `{}` has {} different texts, and each takes a column of the model; group them into at most {MOST_TEXTS}",
                        column.name,
                        names.len()
                    );
                    return Err(Error::config(setting, reason));
                }
                Code::Text { names }
            }
        };
        Ok(Self {
            name: column.name.clone(),
            code,
        })
    }

    /// Columns that it takes.
    pub fn width(&self) -> usize {
        match &self.code {
            Code::Number { .. } => 1,
            Code::Text { names } => names.len(),
        }
    }

    /// Writes the values of `column` into columns `at` and following of `out [rows, width]`.
    fn encode(&self, column: &Covariate, out: &mut [f32], at: usize, width: usize) -> Result<()> {
        match (&self.code, &column.values) {
            (Code::Number { mean, std }, Covariates::Numbers(values)) => {
                for (row, value) in values.iter().enumerate() {
                    out[row * width + at] = ((value - mean) / std) as f32;
                }
            }
            (Code::Number { .. }, Covariates::Texts { codes, names }) => {
                if let Some(name) = names.first() {
                    let reason = format!(
                        "column `{}` held numbers when the model was fitted, and now `{name}`",
                        self.name
                    );
                    return Err(Error::data("", reason));
                }
                (0..codes.len()).for_each(|row| out[row * width + at] = f32::NAN);
            }
            (Code::Text { names }, values) => {
                let place = |text: &str| names.iter().position(|name| name == text);
                match values {
                    Covariates::Texts { codes, names } => {
                        let places: Vec<Option<usize>> =
                            names.iter().map(|name| place(name)).collect();
                        for (row, code) in codes
                            .iter()
                            .enumerate()
                            .filter(|(_, code)| **code != MISSING)
                        {
                            if let Some(place) = places[*code as usize] {
                                out[row * width + at + place] = 1.0;
                            }
                        }
                    }
                    Covariates::Numbers(values) => {
                        for (row, value) in values.iter().enumerate() {
                            if let Some(place) = place(&value.to_string()) {
                                out[row * width + at + place] = 1.0;
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// Mean and population standard deviation of what is not missing; a deviation of 0 is 1, as scikit-learn's `StandardScaler` has it.
pub(super) fn moments(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (mut count, mut mean, mut squares) = (0.0, 0.0, 0.0);
    for value in values.filter(|value| !value.is_nan()) {
        count += 1.0;
        let from = value - mean;
        mean += from / count;
        squares += from * (value - mean);
    }
    let std = if count > 0.0 {
        (squares / count).sqrt()
    } else {
        0.0
    };
    // What is left of a constant after rounding is no spread.
    let constant = std <= 1e-12 * mean.abs();
    (mean, if constant { 1.0 } else { std })
}

/// How all covariates of a table become numbers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Encoders {
    /// Columns known up to the present.
    pub past: Vec<Encoder>,
    /// Columns whose future is known.
    pub known: Vec<Encoder>,
    /// Columns that do not change.
    #[serde(rename = "static")]
    pub statics: Vec<Encoder>,
    /// Parts of the time, two columns each.
    pub calendar: Vec<CalendarPart>,
}

/// Numbers in rows of equal width.
#[derive(Debug)]
pub(super) struct Plane {
    pub values: Vec<f32>,
    pub width: usize,
}

impl Encoders {
    /// Fits `rows` of the panel (its storage's numbers); statics are fitted on all series.
    pub(super) fn fit(panel: &Panel, rows: &[std::ops::Range<usize>]) -> Result<Self> {
        let rows = || rows.iter().cloned().flatten();
        let fit = |setting, columns: &[Covariate]| -> Result<Vec<Encoder>> {
            columns
                .iter()
                .map(|column| Encoder::fit(setting, column, rows()))
                .collect()
        };
        Ok(Self {
            past: fit("past", &panel.past)?,
            known: fit("known", &panel.known)?,
            statics: panel
                .statics
                .iter()
                .map(|column| Encoder::fit("static", column, 0..panel.series.len()))
                .collect::<Result<_>>()?,
            calendar: panel.settings.calendar.clone(),
        })
    }

    /// Whether there is nothing to encode.
    pub fn is_empty(&self) -> bool {
        self.past.is_empty()
            && self.known.is_empty()
            && self.statics.is_empty()
            && self.calendar.is_empty()
    }

    /// Columns of past, known (with the calendar) and static covariates.
    pub fn widths(&self) -> [i64; 3] {
        let sum = |encoders: &[Encoder]| encoders.iter().map(Encoder::width).sum::<usize>() as i64;
        [
            sum(&self.past),
            sum(&self.known) + 2 * self.calendar.len() as i64,
            sum(&self.statics),
        ]
    }

    pub(super) fn past(&self, panel: &Panel) -> Result<Plane> {
        encode(&self.past, &panel.past, panel.rows(), 0)
    }

    pub(super) fn statics(&self, panel: &Panel) -> Result<Plane> {
        let mut plane = encode(&self.statics, &panel.statics, panel.series.len(), 0)?;
        // What is missing is as the average series has it.
        plane
            .values
            .iter_mut()
            .filter(|value| value.is_nan())
            .for_each(|value| *value = 0.0);
        Ok(plane)
    }

    pub(super) fn known(&self, panel: &Panel) -> Result<Plane> {
        let mut plane = encode(
            &self.known,
            &panel.known,
            panel.rows(),
            2 * self.calendar.len(),
        )?;
        let width = plane.width;
        for (i, part) in self.calendar.iter().enumerate() {
            let at = width - 2 * (self.calendar.len() - i);
            for series in &panel.series {
                for row in 0..series.len {
                    let time = panel
                        .clock
                        .wall(panel.step.time(series.first + row as i64, series.phase));
                    let (sin, cos) = angle(*part, time).sin_cos();
                    let place = (series.start + row) * width + at;
                    (plane.values[place], plane.values[place + 1]) = (sin as f32, cos as f32);
                }
            }
        }
        Ok(plane)
    }
}

fn encode(encoders: &[Encoder], columns: &[Covariate], rows: usize, more: usize) -> Result<Plane> {
    let width = encoders.iter().map(Encoder::width).sum::<usize>() + more;
    let mut values = vec![0.0; rows * width];
    let mut at = 0;
    for (encoder, column) in encoders.iter().zip(columns) {
        encoder.encode(column, &mut values, at, width)?;
        at += encoder.width();
    }
    Ok(Plane { values, width })
}

/// How far round its circle a part of the time is; years, which do not come again, as a slow one.
fn angle(part: CalendarPart, time: i64) -> f64 {
    let (from, period) = match part {
        CalendarPart::Minute => (0, 60.0),
        CalendarPart::Hour => (0, 24.0),
        CalendarPart::Weekday => (0, 7.0),
        CalendarPart::Day => (1, 31.0),
        CalendarPart::DayOfYear => (1, 366.0),
        CalendarPart::Month => (1, 12.0),
        CalendarPart::Year => (2000, 400.0),
    };
    std::f64::consts::TAU * (part.at(time) - from) as f64 / period
}
