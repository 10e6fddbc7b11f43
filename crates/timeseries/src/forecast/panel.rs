//! A user's table as series on one regular grid, stored one after the other.

use std::collections::HashSet;
use std::fmt::Write;
use std::ops::Range;

use densely_core::{Error, Result};
use densely_data::Output;
use densely_data::table::{MISSING, Table, Values};

use super::columns::{Gaps, TableSettings};
use super::grid::{Phase, Step};
use super::stamps::{Clock, DAY};

/// Series on one grid. Rows of a series lie together, in the order of time, one per step.
#[derive(Debug)]
pub struct Panel {
    /// How the table was read; all columns are named.
    pub settings: TableSettings,
    /// From one time to the next.
    pub step: Step,
    /// What times are counted in.
    pub clock: Clock,
    /// The series.
    pub series: Vec<Series>,
    /// `[rows, targets]` in this order; NaN where there is none.
    pub values: Vec<f64>,
    /// Columns known up to the present.
    pub past: Vec<Covariate>,
    /// Columns whose future is known.
    pub known: Vec<Covariate>,
    /// Columns that do not change, a value per series.
    pub statics: Vec<Covariate>,
    /// What was found and done, one sentence each.
    pub notes: Vec<String>,
}

/// One series.
#[derive(Debug, Clone)]
pub struct Series {
    /// Its values in the columns that tell series apart; empty for the one series of a wide table.
    pub name: Vec<String>,
    pub(super) phase: Phase,
    /// The grid's number of its first step.
    pub(super) first: i64,
    /// Its first row in the storage.
    pub(super) start: usize,
    /// Its rows, those of a known future included.
    pub(super) len: usize,
    /// Rows up to the last one with a target.
    pub(super) observed: usize,
    /// Rows between cuts, counted from its start.
    pub(super) pieces: Vec<Range<usize>>,
}

/// A column beside the targets, one value per row (or series).
#[derive(Debug, Clone)]
pub struct Covariate {
    /// Its name in the table.
    pub name: String,
    /// Its values.
    pub values: Covariates,
}

/// Values of a [`Covariate`].
#[derive(Debug, Clone)]
pub enum Covariates {
    /// Numbers; NaN is missing.
    Numbers(Vec<f64>),
    /// Codes into texts; [`MISSING`] is missing.
    Texts {
        /// A code per row.
        codes: Vec<u32>,
        /// The texts.
        names: Vec<String>,
    },
}

impl Covariates {
    pub(super) fn of(table: &Table, name: &str) -> Result<Self> {
        let column = table.column(name)?;
        Ok(match &column.values {
            Values::Text { codes, names } => Self::Texts {
                codes: codes.clone(),
                names: names.clone(),
            },
            _ => Self::Numbers(table.numbers(name)?),
        })
    }

    /// As many values of the same kind, all missing.
    pub(super) fn blank(&self, rows: usize) -> Self {
        match self {
            Self::Numbers(_) => Self::Numbers(vec![f64::NAN; rows]),
            Self::Texts { names, .. } => Self::Texts {
                codes: vec![MISSING; rows],
                names: names.clone(),
            },
        }
    }

    /// Takes over the value of `from` at `row`, in place `to`.
    pub(super) fn take(&mut self, to: usize, from: &Self, row: usize) {
        match (self, from) {
            (Self::Numbers(to_values), Self::Numbers(values)) => to_values[to] = values[row],
            (
                Self::Texts {
                    codes: to_codes, ..
                },
                Self::Texts { codes, .. },
            ) => to_codes[to] = codes[row],
            _ => {}
        }
    }
}

impl Panel {
    /// Reads `table`: finds columns and step, sorts, and treats doubled rows and gaps as the settings say.
    ///
    /// # Errors
    /// [`Error::Data`] and [`Error::Config`], each with its own sentence and advice: times that are missing, unreadable, irregular or
    /// off the grid, doubled rows, gaps that are not to be filled, hours that the clock skips or shows twice, missing or infinite values.
    pub fn new(table: &Table, settings: &TableSettings) -> Result<Self> {
        super::read::read(table, settings, None)
    }

    /// Reads `table` by the settings and on the grid of a fitted run.
    ///
    /// # Errors
    /// Those of [`new`](Self::new).
    pub fn like(table: &Table, settings: &TableSettings, step: Step) -> Result<Self> {
        super::read::read(table, settings, Some(step))
    }

    /// Targets.
    pub fn channels(&self) -> usize {
        self.settings.target.len()
    }

    /// Rows of all series.
    pub fn rows(&self) -> usize {
        self.series.iter().map(|series| series.len).sum()
    }

    /// Whether times are written as dates.
    pub(super) fn dates(&self) -> bool {
        self.step.is_daily()
            && self
                .series
                .iter()
                .all(|series| self.step.time(series.first, series.phase) % DAY == 0)
    }

    /// The time of a row of a series as it is written; the row may lie behind its end.
    pub fn time(&self, series: usize, row: usize) -> String {
        let one = &self.series[series];
        let time = self.step.time(one.first + row as i64, one.phase);
        self.clock.text(time, self.dates())
    }

    /// A column of times, in microseconds of the panel's clock.
    pub(super) fn times(&self, micros: Vec<i64>) -> Output {
        let text = |micros: &i64| self.clock.text(*micros, self.dates());
        Output::Times {
            texts: micros.iter().map(text).collect(),
            zone: match &self.clock {
                Clock::Plain => None,
                Clock::Utc => Some("UTC".to_owned()),
                Clock::Zone(name) => Some(name.clone()),
            },
            micros,
        }
    }

    /// The time of a step of the grid, as the first series has it.
    pub(super) fn step_text(&self, index: i64) -> String {
        let phase = self
            .series
            .first()
            .map_or_else(|| self.step.place(0).1, |series| series.phase);
        self.clock.text(self.step.time(index, phase), self.dates())
    }

    /// Steps from the first target of any series to the last one.
    pub(super) fn span(&self) -> Range<i64> {
        let with = || self.series.iter().filter(|series| series.observed > 0);
        let from = with().map(|series| series.first).min().unwrap_or(0);
        let to = with()
            .map(|series| series.first + series.observed as i64)
            .max()
            .unwrap_or(0);
        from..to
    }
}

impl Series {
    /// The name for sentences.
    pub fn title(&self) -> String {
        self.name.join(" / ")
    }

    /// For sentences: `series X, ` or nothing for a wide table.
    pub(super) fn prefix(&self) -> String {
        if self.name.is_empty() {
            String::new()
        } else {
            format!("series `{}`, ", self.title())
        }
    }
}

/// A run of steps without a value.
#[derive(Debug, Clone)]
struct Gap {
    rows: Range<usize>,
    channel: usize,
}

/// Trims the ends of the targets and fills or cuts their gaps.
pub(super) fn close_gaps(panel: &mut Panel, table: &Table) -> Result<()> {
    let width = panel.channels();
    let policy = panel.settings.gaps;
    let longest = panel.settings.max_gap as usize;
    let (mut filled, mut gaps, mut cut) = (0usize, 0usize, 0usize);
    let mut worst: Option<(usize, usize, Gap)> = None;
    let (mut early, mut late) = (0usize, 0usize);
    for at in 0..panel.series.len() {
        let (start, len) = (panel.series[at].start, panel.series[at].len);
        let cell = |row: usize, channel: usize| (start + row) * width + channel;
        let whole =
            |row: &usize| (0..width).all(|channel| !panel.values[cell(*row, channel)].is_nan());
        let begin = (0..len).find(whole).unwrap_or(len);
        let end = (0..len).rev().find(whole).map_or(begin, |row| row + 1);
        let some =
            |row: usize| (0..width).any(|channel| !panel.values[cell(row, channel)].is_nan());
        early += begin;
        late += if width > 1 {
            (end..len).filter(|row| some(*row)).count()
        } else {
            0
        };
        panel.series[at].observed = end;
        let mut valid = vec![true; end];
        valid[..begin.min(end)].fill(false);
        let mut counted = HashSet::new();
        for channel in 0..width {
            let mut row = begin;
            while row < end {
                if !panel.values[cell(row, channel)].is_nan() {
                    row += 1;
                    continue;
                }
                let stop = (row..end)
                    .find(|row| !panel.values[cell(*row, channel)].is_nan())
                    .unwrap_or(end);
                let gap = Gap {
                    rows: row..stop,
                    channel,
                };
                let size = stop - row;
                // A row that is absent is a gap of every target, and counts once.
                let first = counted.insert((row, stop));
                gaps += usize::from(first);
                if worst.as_ref().is_none_or(|(most, ..)| size > *most) {
                    worst = Some((size, at, gap));
                }
                if size <= longest && policy != Gaps::Refuse {
                    let (before, after) = (
                        panel.values[cell(row - 1, channel)],
                        panel.values[cell(stop, channel)],
                    );
                    for (i, row) in (row..stop).enumerate() {
                        let share = (i + 1) as f64 / (size + 1) as f64;
                        panel.values[cell(row, channel)] = if policy == Gaps::Last {
                            before
                        } else {
                            before + (after - before) * share
                        };
                    }
                    filled += if first { size } else { 0 };
                } else if policy == Gaps::Split {
                    valid[row..stop].fill(false);
                    cut += usize::from(first);
                }
                row = stop;
            }
        }
        panel.series[at].pieces = runs(&valid);
    }
    if early > 0 {
        panel.notes.push(format!(
            "{early} rows before the first one with {}: left out",
            if width > 1 { "all targets" } else { "a target" }
        ));
    }
    if late > 0 {
        panel.notes.push(format!("{late} rows at the end lack some of the targets: taken as the future, their targets are not used"));
    }
    let Some((size, at, gap)) = worst else {
        return Ok(());
    };
    let name = &panel.settings.target[gap.channel];
    let place = format!(
        "{}column `{name}` from {} to {}",
        panel.series[at].prefix(),
        panel.time(at, gap.rows.start),
        panel.time(at, gap.rows.end - 1)
    );
    let what = format!(
        "{gaps} {} in the targets, the longest {size} {}: {place}",
        plural(gaps, "gap"),
        plural(size, "step")
    );
    if policy == Gaps::Refuse {
        let advice = "fill them, or say `--gaps interpolate`, `--gaps last` or `--gaps split`";
        return Err(Error::data(table.path(), format!("{what}; {advice}")));
    }
    if size > longest && policy != Gaps::Split {
        let advice = format!(
            "only gaps of up to {longest} steps are filled; cut the series there with `--gaps split`, or fill more with `--max-gap {size}`"
        );
        return Err(Error::data(table.path(), format!("{what}; {advice}")));
    }
    let how = if policy == Gaps::Last {
        "with the value before"
    } else {
        "along a straight line"
    };
    let mut note = what;
    if filled > 0 {
        let _ = write!(note, "; {filled} {} filled {how}", plural(filled, "step"));
    }
    if cut > 0 {
        let _ = write!(
            note,
            "; cut at {cut} {} longer than {longest} {}",
            plural(cut, "gap"),
            plural(longest, "step")
        );
    }
    panel.notes.push(note);
    Ok(())
}

/// Fills short gaps of covariates that are numbers, over the observed rows and, of known ones, over what is there of the future.
pub(super) fn close_covariates(panel: &mut Panel, table: &Table) -> Result<()> {
    let mut filled = 0;
    let (policy, longest) = (panel.settings.gaps, panel.settings.max_gap as usize);
    let mut cuts: Vec<(usize, Range<usize>)> = Vec::new();
    let Panel {
        past,
        known,
        series,
        ..
    } = panel;
    for (covariate, is_known) in past
        .iter_mut()
        .map(|c| (c, false))
        .chain(known.iter_mut().map(|c| (c, true)))
    {
        let Covariates::Numbers(values) = &mut covariate.values else {
            continue;
        };
        for (at, one) in series.iter().enumerate() {
            // Where a known future ends early is found when it is asked for.
            let has = |row: &usize| !values[one.start + row].is_nan();
            let end = if is_known {
                (0..one.len)
                    .rev()
                    .find(has)
                    .map_or(0, |row| row + 1)
                    .max(one.observed)
            } else {
                one.observed
            };
            let from = one.pieces.first().map_or(end, |piece| piece.start);
            let mut row = from;
            while row < end {
                if !values[one.start + row].is_nan() {
                    row += 1;
                    continue;
                }
                let stop = (row..end)
                    .find(|row| !values[one.start + row].is_nan())
                    .unwrap_or(end);
                let before = (row > from).then(|| values[one.start + row - 1]);
                let after = (stop < end).then(|| values[one.start + stop]);
                let size = stop - row;
                if size <= longest
                    && policy != Gaps::Refuse
                    && (before.is_some() || after.is_some())
                {
                    for (i, row) in (row..stop).enumerate() {
                        let share = (i + 1) as f64 / (size + 1) as f64;
                        values[one.start + row] = match (before, after) {
                            (Some(before), Some(after)) if policy != Gaps::Last => {
                                before + (after - before) * share
                            }
                            (Some(value), _) | (None, Some(value)) => value,
                            (None, None) => f64::NAN,
                        };
                    }
                    filled += size;
                } else if policy == Gaps::Split {
                    cuts.push((at, row..stop));
                } else {
                    let reason = format!(
                        "{}{size} {} in a row have no value; {}",
                        one.prefix(),
                        plural(size, "step"),
                        if policy == Gaps::Refuse {
                            "fill them, or say `--gaps interpolate`".to_owned()
                        } else {
                            format!(
                                "only up to {longest} are filled: fill them, cut there with `--gaps split`, or raise `--max-gap`"
                            )
                        }
                    );
                    return Err(Error::column(table.path(), &covariate.name, reason));
                }
                row = stop;
            }
        }
    }
    for (at, rows) in cuts {
        let one = &mut series[at];
        let mut valid = vec![false; one.observed];
        one.pieces
            .iter()
            .for_each(|piece| valid[piece.clone()].fill(true));
        let end = rows.end.min(one.observed);
        valid[rows.start.min(end)..end].fill(false);
        one.pieces = runs(&valid);
    }
    if filled > 0 {
        panel.notes.push(format!(
            "{filled} missing {} of covariates filled",
            plural(filled, "value")
        ));
    }
    Ok(())
}

/// Runs of `true`.
fn runs(valid: &[bool]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for (row, _) in valid.iter().enumerate().filter(|(_, valid)| **valid) {
        match runs.last_mut() {
            Some(run) if run.end == row => run.end += 1,
            _ => runs.push(row..row + 1),
        }
    }
    runs
}

pub(super) fn plural(count: usize, word: &str) -> String {
    if count == 1 {
        word.to_owned()
    } else {
        format!("{word}s")
    }
}
