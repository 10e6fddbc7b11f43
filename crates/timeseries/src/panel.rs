//! Series on one regular grid: reading, dividing in time, scaling, and windows that are made batch by batch.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use densely_core::{Error, Result, check};
use densely_data::table::{Table, Values};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// A wide table: one row per step, one column per series.
#[derive(Debug)]
pub struct Panel {
    /// The series' names, in the order of the channels.
    pub names: Vec<String>,
    /// Microseconds since 1970 of each step; increases by `step`, but for [`in_order`](Self::in_order).
    pub times: Vec<i64>,
    /// Microseconds from one step to the next, the usual ones after [`in_order`](Self::in_order).
    pub step: i64,
    /// `[steps, channels]`, f64, as they stand in the table.
    pub values: Tensor,
}

impl Panel {
    /// Takes the column `time` and the columns `channels` (all others when empty) of `table`.
    ///
    /// # Errors
    /// [`Error::Data`] naming the row or column: times that are missing, unsorted, doubled or not equally far apart, and values that are
    /// missing or no numbers.
    pub fn new(table: &Table, time: &str, channels: &[String]) -> Result<Self> {
        Self::read(table, time, channels, regular_step)
    }

    /// As [`new`](Self::new), with the rows as steps in their order whatever their times; a warning says how many are not one step
    /// after the row before.
    ///
    /// # Errors
    /// [`Error::Data`] naming the row or column: times that are missing or never increase, and values that are missing or no numbers.
    pub fn in_order(table: &Table, time: &str, channels: &[String]) -> Result<Self> {
        Self::read(table, time, channels, usual_step)
    }

    fn read(
        table: &Table,
        time: &str,
        channels: &[String],
        step: fn(&Table, &str, &[i64]) -> Result<i64>,
    ) -> Result<Self> {
        let column = table.column(time)?;
        let Values::Time(times) = &column.values else {
            return Err(Error::column(
                table.path(),
                time,
                "holds no times like 2013-09-01 05:30",
            ));
        };
        let step = step(table, time, times)?;
        let names: Vec<String> = match channels {
            [] => table
                .names()
                .iter()
                .filter(|name| *name != time)
                .cloned()
                .collect(),
            _ => channels.to_vec(),
        };
        if names.is_empty() {
            return Err(Error::column(
                table.path(),
                time,
                "stands alone: there is no series",
            ));
        }
        let mut columns = Vec::with_capacity(names.len());
        for name in &names {
            let numbers = table.numbers(name)?;
            if let Some(row) = numbers.iter().position(|value| !value.is_finite()) {
                return Err(table.error(name, row, "the value is missing or not finite"));
            }
            columns.push(Tensor::from_slice(&numbers));
        }
        Ok(Self {
            names,
            times: times.clone(),
            step,
            values: Tensor::stack(&columns, 1),
        })
    }

    /// Steps.
    pub fn len(&self) -> i64 {
        self.times.len() as i64
    }

    /// Whether there is no step.
    pub fn is_empty(&self) -> bool {
        self.times.is_empty()
    }
}

fn check_times(table: &Table, time: &str, times: &[i64]) -> Result<()> {
    match times.iter().position(|time| *time == i64::MIN) {
        Some(row) => Err(table.error(time, row, "the time is missing")),
        None => Ok(()),
    }
}

/// The most frequent step.
fn usual_step(table: &Table, time: &str, times: &[i64]) -> Result<i64> {
    check_times(table, time, times)?;
    let mut counts = BTreeMap::new();
    for pair in times.windows(2) {
        *counts
            .entry(pair[1].saturating_sub(pair[0]))
            .or_insert(0_usize) += 1;
    }
    let usual = counts.iter().filter(|(gap, _)| **gap > 0);
    let Some((step, count)) = usual.max_by_key(|(_, count)| **count) else {
        return Err(Error::column(table.path(), time, "never increases"));
    };
    let others = times.len() - 1 - count;
    if others > 0 {
        tracing::warn!(
            "column `{time}`: {others} of {} times are not {} after the row before; the rows are taken as steps in their order",
            times.len(),
            span(*step)
        );
    }
    Ok(*step)
}

fn regular_step(table: &Table, time: &str, times: &[i64]) -> Result<i64> {
    check_times(table, time, times)?;
    let mut gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
    let Some(step) = gaps.next() else {
        return Err(Error::column(table.path(), time, "needs at least two rows"));
    };
    if step <= 0 {
        return Err(table.error(
            time,
            1,
            "the time is not later than that of the row before: sort the table, one row per time",
        ));
    }
    match gaps.position(|gap| gap != step) {
        None => Ok(step),
        Some(at) => {
            let gap = times[at + 2] - times[at + 1];
            let reason = match gap {
                0 => "the time stands there twice".to_owned(),
                gap if gap < 0 => {
                    "the time is earlier than that of the row before: sort the table".to_owned()
                }
                gap => format!(
                    "the time is {} after the row before, not {}: fill the gap first",
                    span(gap),
                    span(step)
                ),
            };
            Err(table.error(time, at + 2, reason))
        }
    }
}

/// A span in the largest unit that it is a whole number of.
fn span(micros: i64) -> String {
    let units = [
        ("d", 86_400_000_000),
        ("h", 3_600_000_000),
        ("min", 60_000_000),
        ("s", 1_000_000),
        ("ms", 1_000),
    ];
    match units.iter().find(|(_, unit)| micros % unit == 0) {
        Some((name, unit)) => format!("{} {name}", micros / unit),
        None => format!("{micros} µs"),
    }
}

/// How steps are divided into training, validation and test, in this order of time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Blocks {
    /// Numbers of steps; later ones are not used. The literature's for hourly ETT: 8640, 2880, 2880.
    Steps {
        /// Steps to train on.
        train: i64,
        /// Steps to choose the epoch by.
        valid: i64,
        /// Steps to test on.
        test: i64,
    },
    /// Shares of all steps, each rounded down; validation gets what is left. The literature's for other sets: 0.7 and 0.2.
    Shares {
        /// Share to train on.
        train: f64,
        /// Share to test on, at the end.
        test: f64,
    },
}

impl Default for Blocks {
    fn default() -> Self {
        Self::Shares {
            train: 0.7,
            test: 0.2,
        }
    }
}

/// Which steps belong to training, validation and test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    /// Steps to train on.
    pub train: Range<i64>,
    /// Steps whose values are forecast to choose the epoch.
    pub valid: Range<i64>,
    /// Steps whose values are forecast to test.
    pub test: Range<i64>,
}

impl Blocks {
    /// The parts of `steps` steps.
    ///
    /// # Errors
    /// [`Error::Config`] when there are not so many steps, or a part is empty.
    pub fn parts(self, steps: i64) -> Result<Parts> {
        let (train, valid, test) = match self {
            Self::Steps { train, valid, test } => (train, valid, test),
            Self::Shares { train, test } => {
                if !(train > 0.0 && test > 0.0 && train + test < 1.0) {
                    let reason = format!(
                        "shares must be above 0 and leave something for validation, got {train} and {test}"
                    );
                    return Err(Error::config("data.blocks", reason));
                }
                let of = |share: f64| (steps as f64 * share) as i64;
                (of(train), steps - of(train) - of(test), of(test))
            }
        };
        if train < 1
            || valid < 1
            || test < 1
            || train.saturating_add(valid).saturating_add(test) > steps
        {
            let reason = format!(
                "train {train}, valid {valid} and test {test} steps do not fit into {steps}"
            );
            return Err(Error::config("data.blocks", reason));
        }
        Ok(Parts {
            train: 0..train,
            valid: train..train + valid,
            test: train + valid..train + valid + test,
        })
    }
}

/// Mean and standard deviation of each channel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scaler {
    /// Means.
    pub mean: Vec<f64>,
    /// Population standard deviations; 1 for a constant channel, as scikit-learn's `StandardScaler` has it.
    pub std: Vec<f64>,
}

impl Scaler {
    /// Fits `values [steps, channels]`.
    pub fn fit(values: &Tensor) -> Self {
        let (variance, mean) =
            values
                .to_kind(Kind::Double)
                .var_mean_correction([0].as_slice(), 0.0, false);
        let std = variance.sqrt();
        let std = std.where_self(&std.gt(0.0), &std.ones_like());
        let numbers = |xs: &Tensor| (0..xs.size()[0]).map(|i| xs.double_value(&[i])).collect();
        Self {
            mean: numbers(&mean),
            std: numbers(&std),
        }
    }

    /// `values [steps, channels]` on the standardised scale, f32.
    pub fn scale(&self, values: &Tensor) -> Tensor {
        let (mean, std) = self.tensors(values.device());
        ((values.to_kind(Kind::Double) - mean) / std).to_kind(Kind::Float)
    }

    /// The way back for `[…, channels]`, f64.
    pub fn unscale(&self, values: &Tensor) -> Tensor {
        let (mean, std) = self.tensors(values.device());
        values.to_kind(Kind::Double) * std + mean
    }

    fn tensors(&self, device: Device) -> (Tensor, Tensor) {
        let on = |xs: &[f64]| Tensor::from_slice(xs).to_device(device);
        (on(&self.mean), on(&self.std))
    }
}

/// Every window of some steps, one step apart. Only a batch of them is ever in memory.
#[derive(Debug)]
pub struct Windows {
    /// A view `[windows, channels, lookback + horizon]` of the steps.
    view: Tensor,
    lookback: i64,
}

impl Windows {
    /// The windows whose futures lie in `part`, with lookbacks that may reach before it; `values [steps, channels]`.
    ///
    /// # Errors
    /// [`Error::Config`] when there is none: the lookback would start before the first step, or the part is shorter than the horizon.
    pub fn new(values: &Tensor, part: &Range<i64>, lookback: i64, horizon: i64) -> Result<Self> {
        check::positive("lookback", lookback)?;
        check::positive("horizon", horizon)?;
        let from = (part.start - lookback).max(0);
        let steps = part.end - from;
        if steps < lookback + horizon {
            let reason = format!(
                "lookback {lookback} and horizon {horizon} do not fit into the {steps} steps from step {from} to {}",
                part.end
            );
            return Err(Error::config("data.lookback", reason));
        }
        let view = values
            .narrow(0, from, steps)
            .unfold(0, lookback + horizon, 1);
        Ok(Self { view, lookback })
    }

    /// Windows.
    pub fn len(&self) -> i64 {
        self.view.size()[0]
    }

    /// Whether there is none; never, as [`new`](Self::new) refuses that.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The windows `numbers`: past `[batch, lookback, channels]` and future `[batch, horizon, channels]`.
    ///
    /// # Errors
    /// [`Error::Torch`] for a number that does not exist.
    pub fn batch(&self, numbers: &[i64]) -> Result<(Tensor, Tensor)> {
        let numbers = Tensor::from_slice(numbers).to_device(self.view.device());
        Ok(self.divided(&self.view.f_index_select(0, &numbers)?))
    }

    /// All windows in order, `size` at a time, the last batch smaller.
    pub fn batches(&self, size: i64) -> impl Iterator<Item = Result<(Tensor, Tensor)>> + '_ {
        let size = size.max(1);
        let starts = (0..self.len()).step_by(size as usize);
        starts.map(move |start| {
            Ok(self.divided(
                &self
                    .view
                    .f_narrow(0, start, size.min(self.len() - start))?
                    .f_contiguous()?,
            ))
        })
    }

    fn divided(&self, windows: &Tensor) -> (Tensor, Tensor) {
        let windows = windows.transpose(1, 2); // [batch, lookback + horizon, channels]
        let horizon = windows.size()[1] - self.lookback;
        (
            windows.narrow(1, 0, self.lookback),
            windows.narrow(1, self.lookback, horizon),
        )
    }
}

/// Reads a wide table; see [`Panel::new`].
///
/// # Errors
/// Those of [`Table::open`] and [`Panel::new`].
pub fn read(path: &Path, time: &str, channels: &[String]) -> Result<Panel> {
    Panel::new(&Table::open(path)?, time, channels)
}
