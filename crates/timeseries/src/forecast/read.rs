//! From the rows of a table to series: grouped, sorted, without doubles, placed on the grid.

use std::collections::HashMap;

use chrono_tz::Tz;
use densely_core::{Error, Result};
use densely_data::calendar::CalendarPart;
use densely_data::table::{MISSING, Table, Values};

use super::columns::{Duplicates, TableSettings, quoted};
use super::grid::{Phase, Step, span};
use super::panel::{Covariate, Covariates, Panel, Series, close_covariates, close_gaps};
use super::stamps::{self, Clock, DAY, HOUR, Stamps, Universal};

/// More rows between the first and the last time of the series than this many times the table's rows are a mistake in a time.
const SPARSE: usize = 100;

/// Rows of a table by series.
struct Rows {
    names: Vec<Vec<String>>,
    /// Rows of each series in the order of time, of one time in the order of the table.
    rows: Vec<Vec<u32>>,
}

/// Reads the known columns of steps to come: no targets, no gaps to fill.
pub(super) fn read_future(table: &Table, settings: &TableSettings, step: Step) -> Result<Panel> {
    let settings = TableSettings {
        target: Vec::new(),
        past: Vec::new(),
        statics: Vec::new(),
        ..settings.clone()
    };
    series(table, settings, Vec::new(), Some(step)).map(|(panel, _)| panel)
}

pub(super) fn read(table: &Table, settings: &TableSettings, step: Option<Step>) -> Result<Panel> {
    if table.row_count() > u32::MAX as usize {
        return Err(Error::data(
            table.path(),
            "the table has more than 4,294,967,295 rows; split it",
        ));
    }
    let (settings, notes) = settings.resolve(table)?;
    let (mut panel, places) = series(table, settings, notes, step)?;
    summer_time(&mut panel, &places);
    close_gaps(&mut panel, table)?;
    close_covariates(&mut panel, table)?;
    if panel.series.iter().all(|series| series.observed == 0) {
        let reason = format!("no row has a value in {}", quoted(&panel.settings.target));
        return Err(Error::data(table.path(), reason));
    }
    Ok(panel)
}

/// The series of a table whose columns are named, and where its rows went.
fn series(
    table: &Table,
    settings: TableSettings,
    mut notes: Vec<String>,
    step: Option<Step>,
) -> Result<(Panel, Places)> {
    let time = settings.time_column()?.to_owned();
    let zone = settings
        .time_zone
        .as_deref()
        .map(stamps::zone)
        .transpose()?;
    let zone_name = settings.time_zone.as_deref();
    let mut stamps = stamps::read(table, &time, &settings.time_parts, zone_name)?;
    notes.append(&mut stamps.notes);
    let mut rows = group(table, &settings.series_id)?;
    sort(&mut rows, &mut stamps, &mut notes);
    let times: Vec<Vec<i64>> = rows
        .rows
        .iter()
        .map(|rows| {
            rows.iter()
                .map(|row| stamps.micros[*row as usize])
                .collect()
        })
        .collect();
    let step = match (step, &settings.frequency) {
        (Some(step), _) => Some(step),
        (None, Some(text)) => Some(Step::parse(text)?.with_ends(stamps.micros.iter())),
        (None, None) => Step::infer(&times.iter().map(Vec::as_slice))
            .map_err(|reason| Error::column(table.path(), &time, reason))?,
    };
    drop(times);
    let Some(step) = step else {
        let reason = "no series has two different times; a forecast needs a history";
        return Err(Error::column(table.path(), &time, reason));
    };
    if let Some(zone) = zone {
        if step.is_daily() {
            notes.push(format!(
                "the step is {}: `--time-zone` is not needed, times are taken as dates",
                step.text()
            ));
            stamps.clock = Clock::Plain;
        } else {
            to_universal(table, &time, zone, &rows, &mut stamps)?;
            sort(&mut rows, &mut stamps, &mut Vec::new());
        }
    }
    merge_doubles(table, &settings, &stamps, &mut rows, &mut notes)?;
    notes.push(format!("step: {}", step.text()));
    let (series, places) = place(table, &time, step, &stamps, rows)?;
    let panel = store(table, settings, step, stamps, series, &places, notes)?;
    Ok((panel, places))
}

/// The rows of each series; one series without `columns`.
fn group(table: &Table, columns: &[String]) -> Result<Rows> {
    let count = table.row_count() as u32;
    if columns.is_empty() {
        return Ok(Rows {
            names: vec![Vec::new()],
            rows: vec![(0..count).collect()],
        });
    }
    let mut ids: Vec<(Vec<u32>, Vec<String>)> = Vec::new();
    for name in columns {
        let (codes, names) = table.texts(name)?;
        if let Some(row) = codes.iter().position(|code| *code == MISSING) {
            return Err(table.error(
                name,
                row,
                "the row belongs to no series: the value is missing",
            ));
        }
        ids.push((codes, names));
    }
    let mut known: HashMap<Vec<u32>, usize> = HashMap::new();
    let mut found = Rows {
        names: Vec::new(),
        rows: Vec::new(),
    };
    let mut key = Vec::new();
    for row in 0..count {
        key.clear();
        key.extend(ids.iter().map(|(codes, _)| codes[row as usize]));
        if let Some(at) = known.get(&key) {
            found.rows[*at].push(row);
            continue;
        }
        let name = ids
            .iter()
            .zip(&key)
            .map(|((_, names), code)| names[*code as usize].clone());
        found.names.push(name.collect());
        known.insert(key.clone(), found.rows.len());
        found.rows.push(vec![row]);
    }
    Ok(found)
}

fn sort(rows: &mut Rows, stamps: &mut Stamps, notes: &mut Vec<String>) {
    let micros = &stamps.micros;
    let (mut back, mut pairs) = (0usize, 0usize);
    for rows in &rows.rows {
        pairs += rows.len().saturating_sub(1);
        back += rows
            .windows(2)
            .filter(|pair| micros[pair[1] as usize] < micros[pair[0] as usize])
            .count();
    }
    let newest_first = back > pairs / 2;
    for rows in &mut rows.rows {
        // Of an hour that the clock shows twice the order of the table tells which is which.
        if newest_first {
            rows.reverse();
        }
        rows.sort_by_key(|row| micros[*row as usize]);
    }
    if newest_first {
        notes.push("the newest rows stand first: sorted by time".to_owned());
    } else if back > 0 {
        notes.push(format!(
            "the table is not in the order of time ({back} {} earlier than the one before): sorted",
            if back == 1 { "row is" } else { "rows are" }
        ));
    }
}

/// Turns the times of a zone into universal time.
fn to_universal(
    table: &Table,
    time: &str,
    zone: Tz,
    rows: &Rows,
    stamps: &mut Stamps,
) -> Result<()> {
    for rows in &rows.rows {
        let mut at = 0;
        while at < rows.len() {
            let local = stamps.micros[rows[at] as usize];
            let same = rows[at..]
                .iter()
                .take_while(|row| stamps.micros[**row as usize] == local)
                .count();
            for (i, row) in rows[at..at + same].iter().enumerate() {
                let row = *row as usize;
                stamps.micros[row] = match stamps::universal(zone, local) {
                    Universal::Once(time) => time,
                    Universal::Twice(first, second) => {
                        if 2 * i < same {
                            first
                        } else {
                            second
                        }
                    }
                    Universal::Never => {
                        let reason = format!(
                            "{} is no time in {zone}: the clock skips that hour as it is set forward; mend the time, or name another zone",
                            Clock::Plain.text(local, false)
                        );
                        return Err(table.error(time, row, reason));
                    }
                };
            }
            at += same;
        }
    }
    Ok(())
}

/// Refuses or drops rows of one series and time. With the mean all rows stay, and are averaged where they are stored.
fn merge_doubles(
    table: &Table,
    settings: &TableSettings,
    stamps: &Stamps,
    rows: &mut Rows,
    notes: &mut Vec<String>,
) -> Result<()> {
    let micros = &stamps.micros;
    let same = |a: u32, b: u32| micros[a as usize] == micros[b as usize];
    let mut doubles = 0usize;
    for (name, rows) in rows.names.iter().zip(&mut rows.rows) {
        let here = rows
            .windows(2)
            .filter(|pair| same(pair[0], pair[1]))
            .count();
        if here > 0 && settings.duplicates == Duplicates::Refuse {
            return Err(double_error(table, settings, stamps, name, rows));
        }
        doubles += here;
        match settings.duplicates {
            Duplicates::First => rows.dedup_by(|later, first| same(*later, *first)),
            Duplicates::Last => rows.dedup_by(|later, first| {
                let double = same(*later, *first);
                if double {
                    *first = *later;
                }
                double
            }),
            _ => {}
        }
    }
    if doubles > 0 {
        let what = match settings.duplicates {
            Duplicates::Mean => "their numbers are averaged",
            Duplicates::Last => "the last one stays",
            _ => "the first one stays",
        };
        notes.push(format!(
            "{doubles} {} the series and time of another: {what}",
            if doubles == 1 { "row has" } else { "rows have" }
        ));
    }
    Ok(())
}

fn double_error(
    table: &Table,
    settings: &TableSettings,
    stamps: &Stamps,
    name: &[String],
    rows: &[u32],
) -> Error {
    let micros = &stamps.micros;
    let pairs: Vec<(u32, u32)> = rows
        .windows(2)
        .filter(|pair| micros[pair[0] as usize] == micros[pair[1] as usize])
        .map(|pair| (pair[0], pair[1]))
        .collect();
    let time = settings.time.as_deref().unwrap_or_default();
    let (first, second) = pairs[0];
    let series = if name.is_empty() {
        String::new()
    } else {
        format!("series `{}`: ", name.join(" / "))
    };
    let text = stamps.clock.text(micros[first as usize], false);
    let at = |row: u32| micros[row as usize];
    if stamps.clock == Clock::Plain
        && pairs
            .iter()
            .all(|(row, _)| is_clock_change(at(*row), [10, 11, 4]))
    {
        let reason = format!(
            "{series}the hour of {text} stands there twice, on a Sunday night when clocks are set back: the times are local; name their zone, such as `--time-zone Europe/Berlin`, or write them in universal time"
        );
        return table.error(time, second as usize, reason);
    }
    let more = if pairs.len() > 1 {
        format!(" ({} such rows)", pairs.len())
    } else {
        String::new()
    };
    let texts: Vec<String> = table
        .names()
        .iter()
        .filter(|name| *name != time)
        .filter(|name| {
            table
                .column(name)
                .is_ok_and(|column| matches!(column.values, Values::Text { .. }))
        })
        .cloned()
        .collect();
    let advice = if settings.series_id.is_empty() && !texts.is_empty() {
        format!(
            "if the table holds several series, name the column that tells them apart with `--series-id` (one of {}); else keep one row, or say `--duplicates mean`, `first` or `last`",
            quoted(&texts)
        )
    } else {
        "keep one row, or say `--duplicates mean`, `first` or `last`".to_owned()
    };
    let reason = format!(
        "{series}the time {text} stands in row {} already{more}; {advice}",
        table.row_number(first as usize)
    );
    table.error(time, second as usize, reason)
}

/// Whether clocks may change at this local time: a Sunday before 4 o'clock in one of `months`.
fn is_clock_change(local: i64, months: [i64; 3]) -> bool {
    CalendarPart::Weekday.at(local) == 6
        && CalendarPart::Hour.at(local) < 4
        && months.contains(&CalendarPart::Month.at(local))
}

/// For each series the rows of the table, with the steps after its first one that they are at.
type Places = Vec<Vec<(u32, usize)>>;

fn place(
    table: &Table,
    time: &str,
    step: Step,
    stamps: &Stamps,
    rows: Rows,
) -> Result<(Vec<Series>, Places)> {
    let (mut all, mut places) = (Vec::new(), Vec::new());
    let mut start = 0usize;
    for (name, rows) in rows.names.into_iter().zip(rows.rows) {
        let placed: Vec<(i64, Phase)> = rows
            .iter()
            .map(|row| step.place(stamps.micros[*row as usize]))
            .collect();
        let phase = most_frequent(placed.iter().map(|(_, phase)| *phase));
        if let Some(at) = placed.iter().position(|(_, other)| *other != phase) {
            return Err(off_grid(
                table,
                time,
                step,
                stamps,
                &name,
                rows[at],
                (placed[at].0, phase),
            ));
        }
        let first = placed.first().map_or(0, |(index, _)| *index);
        let len = placed
            .last()
            .map_or(0, |(index, _)| (index - first) as usize + 1);
        if start.saturating_add(len) / SPARSE > table.row_count() {
            let from = stamps.clock.text(step.time(first, phase), false);
            let to = stamps
                .clock
                .text(step.time(first + len as i64 - 1, phase), false);
            let reason = format!(
                "from {from} to {to} there are {len} steps of {}, far more than rows; is a time wrong? Else name the step with `--frequency`",
                step.text()
            );
            return Err(Error::column(table.path(), time, reason));
        }
        places.push(
            rows.iter()
                .zip(&placed)
                .map(|(row, (index, _))| (*row, (index - first) as usize))
                .collect(),
        );
        all.push(Series {
            name,
            phase,
            first,
            start,
            len,
            observed: 0,
            pieces: Vec::new(),
        });
        start += len;
    }
    Ok((all, places))
}

fn most_frequent(phases: impl Iterator<Item = Phase>) -> Phase {
    let mut counts: Vec<(Phase, usize)> = Vec::new();
    for phase in phases {
        if let Some((_, count)) = counts.iter_mut().find(|(known, _)| *known == phase) {
            *count += 1;
        } else if counts.len() < 64 {
            // A grid has one phase; where there are many, the first ones tell as much.
            counts.push((phase, 1));
        }
    }
    counts
        .into_iter()
        .max_by_key(|(_, count)| *count)
        .map_or_else(|| Step::Workdays.place(0).1, |(phase, _)| phase)
}

fn off_grid(
    table: &Table,
    time: &str,
    step: Step,
    stamps: &Stamps,
    name: &[String],
    row: u32,
    (index, phase): (i64, Phase),
) -> Error {
    let series = if name.is_empty() {
        String::new()
    } else {
        format!("series `{}`: ", name.join(" / "))
    };
    let at = stamps.micros[row as usize];
    let near = [index - 1, index, index + 1].map(|index| step.time(index, phase));
    let near = near
        .into_iter()
        .min_by_key(|time| (time - at).abs())
        .unwrap_or(at);
    let mut reason = format!(
        "{series}{} is not on the grid of {}; the nearest step is {}",
        stamps.clock.text(at, false),
        step.text(),
        stamps.clock.text(near, false)
    );
    reason += if step.is_daily() && stamps.clock == Clock::Utc {
        ": days of a zone are no whole days in universal time; give dates without offsets"
    } else if (near - at).abs() == HOUR && matches!(step, Step::Fixed { micros } if micros > HOUR) {
        ": an hour beside, as when clocks change; name the zone with `--time-zone`, or write universal time"
    } else {
        ": mend the time, or name the step with `--frequency`"
    };
    table.error(time, row as usize, reason)
}

fn store(
    table: &Table,
    settings: TableSettings,
    step: Step,
    stamps: Stamps,
    series: Vec<Series>,
    places: &Places,
    notes: Vec<String>,
) -> Result<Panel> {
    let rows: usize = series.iter().map(|series| series.len).sum();
    let width = settings.target.len();
    let mean = settings.duplicates == Duplicates::Mean;
    let mut values = vec![f64::NAN; rows * width];
    for (channel, name) in settings.target.iter().enumerate() {
        let column = table.numbers(name)?;
        for (one, places) in series.iter().zip(places) {
            numbers(&column, places, mean, |at, value| {
                values[(one.start + at) * width + channel] = value;
            });
        }
    }
    let stored = |name: &String| -> Result<Covariate> {
        let column = Covariates::of(table, name)?;
        let mut values = column.blank(rows);
        for (one, places) in series.iter().zip(places) {
            if let (Covariates::Numbers(column), Covariates::Numbers(values)) =
                (&column, &mut values)
            {
                numbers(column, places, mean, |at, value| {
                    values[one.start + at] = value;
                });
            } else {
                // Of rows of one time the first stays.
                places
                    .iter()
                    .rev()
                    .for_each(|(row, at)| values.take(one.start + at, &column, *row as usize));
            }
        }
        Ok(Covariate {
            name: name.clone(),
            values,
        })
    };
    let past = settings.past.iter().map(stored).collect::<Result<_>>()?;
    let known = settings.known.iter().map(stored).collect::<Result<_>>()?;
    let statics = settings
        .statics
        .iter()
        .map(|name| constant(table, name, &series, places))
        .collect::<Result<_>>()?;
    Ok(Panel {
        settings,
        step,
        clock: stamps.clock,
        series,
        values,
        past,
        known,
        statics,
        notes,
    })
}

/// Gives each place its number; with `mean` that of all its rows that have one.
fn numbers(column: &[f64], places: &[(u32, usize)], mean: bool, mut give: impl FnMut(usize, f64)) {
    let mut at = 0;
    while at < places.len() {
        let place = places[at].1;
        let same = places[at..]
            .iter()
            .take_while(|(_, other)| *other == place)
            .count();
        let there = || {
            places[at..at + same]
                .iter()
                .map(|(row, _)| column[*row as usize])
                .filter(|value| !value.is_nan())
        };
        let value = match there().count() {
            0 => f64::NAN,
            count if mean && count > 1 => there().sum::<f64>() / count as f64,
            _ => there().next().unwrap_or(f64::NAN),
        };
        give(place, value);
        at += same;
    }
}

/// A column with one value per series.
fn constant(table: &Table, name: &str, series: &[Series], places: &Places) -> Result<Covariate> {
    let column = Covariates::of(table, name)?;
    let mut values = column.blank(series.len());
    for (at, (one, places)) in series.iter().zip(places).enumerate() {
        let missing = |row: u32| match &column {
            Covariates::Numbers(values) => values[row as usize].is_nan(),
            Covariates::Texts { codes, .. } => codes[row as usize] == MISSING,
        };
        let same = |a: u32, b: u32| match &column {
            Covariates::Numbers(values) => {
                values[a as usize].to_bits() == values[b as usize].to_bits()
            }
            Covariates::Texts { codes, .. } => codes[a as usize] == codes[b as usize],
        };
        let mut there = places
            .iter()
            .map(|(row, _)| *row)
            .filter(|row| !missing(*row));
        let Some(first) = there.next() else { continue };
        if let Some(other) = there.find(|row| !same(first, *row)) {
            let reason = format!(
                "{}the value differs from that of row {}, but the column is named static; name it with `--known` or `--past`",
                one.prefix(),
                table.row_number(first as usize)
            );
            return Err(table.error(name, other as usize, reason));
        }
        values.take(at, &column, first as usize);
    }
    Ok(Covariate {
        name: name.to_owned(),
        values,
    })
}

/// Says when single hours are absent on the nights when clocks are set forward.
fn summer_time(panel: &mut Panel, places: &Places) {
    let Step::Fixed { micros } = panel.step else {
        return;
    };
    if panel.clock != Clock::Plain || micros > HOUR || HOUR % micros != 0 || DAY % micros != 0 {
        return;
    }
    let hour = (HOUR / micros) as usize;
    let mut jumps = Vec::new();
    for (one, places) in panel.series.iter().zip(places) {
        for pair in places
            .windows(2)
            .filter(|pair| pair[1].1 - pair[0].1 == hour + 1)
        {
            let time = panel.step.time(one.first + pair[0].1 as i64 + 1, one.phase);
            if is_clock_change(time, [3, 9, 10]) || is_clock_change(time, [4, 4, 4]) {
                jumps.push(time);
            }
        }
    }
    jumps.sort_unstable();
    jumps.dedup();
    if let Some(first) = jumps.first() {
        let text = panel.clock.text(*first, false);
        let shown = if jumps.len() > 1 {
            format!("{} such nights, the first", jumps.len())
        } else {
            "the night".to_owned()
        };
        panel.notes.push(format!(
            "an hour ({}) is absent on a Sunday night when clocks are set forward ({shown} {text}): the times look local, and the hour is treated as a gap; better name their zone, such as `--time-zone Europe/Berlin`",
            span(HOUR)
        ));
    }
}
