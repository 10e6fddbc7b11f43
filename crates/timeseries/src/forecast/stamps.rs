//! Times as people write them: with an offset, in a zone, or neither.

use std::collections::BTreeSet;

use chrono::{DateTime, LocalResult, NaiveDate, NaiveDateTime, NaiveTime, Offset, TimeZone};
use chrono_tz::Tz;
use densely_core::{Error, Result};
use densely_data::table::{MISSING, Table, Values, parse_time};
use serde::{Deserialize, Serialize};

use super::columns::quoted;

pub(super) const HOUR: i64 = 3_600_000_000;
pub(super) const DAY: i64 = 24 * HOUR;

/// What the times of a table are counted in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Clock {
    /// As they stand in the table, without a zone.
    Plain,
    /// Universal time: the table has offsets.
    Utc,
    /// Universal time, read and written in this zone.
    Zone(String),
}

/// The time column of a table.
#[derive(Debug)]
pub(super) struct Stamps {
    /// Microseconds since 1970, one per row; none is missing.
    pub micros: Vec<i64>,
    pub clock: Clock,
    pub notes: Vec<String>,
}

/// A time with the offset behind it in microseconds, such as `2024-03-31T02:00:00+02:00`; `Z` is an offset of 0.
fn with_offset(text: &str) -> Option<(i64, Option<i64>)> {
    if let Some(plain) = text.strip_suffix(['Z', 'z']) {
        return Some((parse_time(plain)?, Some(0)));
    }
    if let Some(time) = parse_time(text) {
        return Some((time, None));
    }
    let colon = text.find(':')?;
    let at = colon + text[colon..].rfind(['+', '-'])?;
    let (time, offset) = (text[..at].trim_end(), &text[at..]);
    let digits: String = offset[1..].chars().filter(|c| *c != ':').collect();
    if !(digits.len() == 2 || digits.len() == 4) || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let hours: i64 = digits[..2].parse().ok()?;
    let minutes: i64 = digits.get(2..4).map_or(Some(0), |text| text.parse().ok())?;
    if hours > 14 || minutes > 59 {
        return None;
    }
    let size = hours * HOUR + minutes * (HOUR / 60);
    let offset = if offset.starts_with('-') { -size } else { size };
    Some((parse_time(time)? - offset, Some(offset)))
}

/// Whether the column holds times, with or without offsets.
pub(super) fn holds_times(values: &Values) -> bool {
    match values {
        Values::Time(_) => true,
        Values::Number { .. } => false,
        // A few are enough to tell; the others are checked when they are read.
        // One that cannot be read is named when they are.
        Values::Text { names, .. } => {
            let seen = names.iter().take(100);
            let times = seen
                .clone()
                .filter(|name| with_offset(name).is_some())
                .count();
            times > 0 && times * 10 >= seen.len() * 9
        }
    }
}

/// Microseconds since 1970 of the years that a time may have: 1 to 9999, between which no sum of this module overflows.
const YEARS: std::ops::Range<i64> = -719_162 * DAY..2_932_897 * DAY;

/// Reads the times of `column`.
///
/// # Errors
/// [`Error::Data`] naming the row of a time that is missing, cannot be read or has an impossible year, and rows with and without an
/// offset.
pub(super) fn read(
    table: &Table,
    name: &str,
    parts: &[String],
    zone: Option<&str>,
) -> Result<Stamps> {
    let stamps = if parts.is_empty() {
        read_any(table, name, zone)?
    } else {
        from_parts(table, parts, zone)?
    };
    match stamps.micros.iter().position(|time| !YEARS.contains(time)) {
        None => Ok(stamps),
        Some(row) => Err(table.error(name, row, "the year is none of 1 to 9999; mend the time")),
    }
}

/// What the columns of a time in parts hold, the largest first, and the range of each.
const PARTS: [(&str, std::ops::RangeInclusive<i64>); 6] = [
    ("year", 1..=9999),
    ("month", 1..=12),
    ("day", 1..=31),
    ("hour", 0..=23),
    ("minute", 0..=59),
    ("second", 0..=59),
];

/// Puts times together from columns of whole numbers.
fn from_parts(table: &Table, parts: &[String], zone: Option<&str>) -> Result<Stamps> {
    if !(2..=PARTS.len()).contains(&parts.len()) {
        let reason = format!(
            "must be two to six columns, with year, month, day, hour, minute and second in this order; got {}",
            parts.len()
        );
        return Err(Error::config("time_parts", reason));
    }
    // As texts, since many files write months as 01.
    let columns: Vec<(Vec<u32>, Vec<String>)> = parts
        .iter()
        .map(|name| table.texts(name))
        .collect::<Result<_>>()?;
    let time = |row: usize| -> Result<i64> {
        let mut whole = [1, 1, 1, 0, 0, 0];
        for (at, (name, (codes, texts))) in parts.iter().zip(&columns).enumerate() {
            let (what, range) = &PARTS[at];
            let text = texts.get(codes[row] as usize).ok_or_else(|| {
                table.error(name, row, format!("the {what} of the time is missing"))
            })?;
            let value = text.parse().ok().filter(|value| range.contains(value));
            whole[at] = value.ok_or_else(|| {
                let reason = format!(
                    "`{text}` is no {what}, a whole number from {} to {}; the columns of a time are year, month, day, hour, minute and second in this order",
                    range.start(),
                    range.end()
                );
                table.error(name, row, reason)
            })?;
        }
        let [year, month, day, hour, minute, second] = whole;
        let date = NaiveDate::from_ymd_opt(year as i32, month as u32, day as u32);
        let date = date.ok_or_else(|| {
            let reason = format!("there is no day {day} in month {month} of {year}");
            table.error(&parts[parts.len().min(3) - 1], row, reason)
        })?;
        let midnight = date.and_time(NaiveTime::MIN).and_utc().timestamp_micros();
        Ok(midnight + hour * HOUR + (minute * 60 + second) * (HOUR / 3600))
    };
    Ok(Stamps {
        micros: (0..table.row_count()).map(time).collect::<Result<_>>()?,
        clock: zone.map_or(Clock::Plain, |zone| Clock::Zone(zone.to_owned())),
        notes: vec![format!("times are put together from {}", quoted(parts))],
    })
}

fn read_any(table: &Table, name: &str, zone: Option<&str>) -> Result<Stamps> {
    let column = table.column(name)?;
    let missing = |row| Err(table.error(name, row, "the time is missing"));
    let mut notes = Vec::new();
    match &column.values {
        Values::Time(times) => {
            if let Some(row) = times.iter().position(|time| *time == i64::MIN) {
                return missing(row);
            }
            if let Some(kept) = table.zone(name) {
                if zone.is_some() {
                    let reason = format!(
                        "the file keeps the zone `{kept}` with its times, which are universal time; leave `--time-zone` away"
                    );
                    return Err(Error::column(table.path(), name, reason));
                }
                notes.push(format!(
                    "column `{name}` has the zone `{kept}` in the file: its times are read and written as universal time"
                ));
            }
            let clock = zone.map_or(Clock::Plain, |zone| Clock::Zone(zone.to_owned()));
            Ok(Stamps {
                micros: times.clone(),
                clock,
                notes,
            })
        }
        Values::Number { .. } => Err(Error::column(
            table.path(),
            name,
            "holds numbers, no times; write them like 2013-09-01 05:30 (a year as 2013-01-01)",
        )),
        Values::Text { codes, names } => {
            let parsed: Vec<Option<(i64, Option<i64>)>> =
                names.iter().map(|text| with_offset(text)).collect();
            if parsed.iter().all(Option::is_none) {
                return Err(Error::column(
                    table.path(),
                    name,
                    "holds no times like 2013-09-01 05:30",
                ));
            }
            let mut micros = Vec::with_capacity(codes.len());
            let (mut bare, mut offset) = (None, None);
            let mut offsets = BTreeSet::new();
            for (row, code) in codes.iter().enumerate() {
                if *code == MISSING {
                    return missing(row);
                }
                let Some((time, with)) = parsed[*code as usize] else {
                    let text = &names[*code as usize];
                    let reason = format!("`{text}` is no time like 2013-09-01 05:30");
                    return Err(table.error(name, row, reason));
                };
                match with {
                    Some(with) => {
                        offset.get_or_insert(row);
                        offsets.insert(with);
                    }
                    None => {
                        bare.get_or_insert(row);
                    }
                }
                micros.push(time);
            }
            if let (Some(bare), Some(offset)) = (bare, offset) {
                let reason = format!(
                    "the time has no offset, but that of row {} has one; give all or none an offset such as +01:00 or Z",
                    table.row_number(offset)
                );
                return Err(table.error(name, bare, reason));
            }
            if offset.is_some() && zone.is_some() {
                let reason = "the times carry offsets, which say more than `--time-zone`; leave that option away";
                return Err(Error::column(table.path(), name, reason));
            }
            if offsets.len() > 1 {
                let all: Vec<String> = offsets.iter().map(|offset| offset_text(*offset)).collect();
                notes.push(format!(
                    "column `{name}` has {} offsets from universal time ({}): all times are taken as universal time",
                    all.len(),
                    all.join(", ")
                ));
            }
            Ok(Stamps {
                micros,
                clock: match zone {
                    Some(zone) => Clock::Zone(zone.to_owned()),
                    None if offset.is_some() => Clock::Utc,
                    None => Clock::Plain,
                },
                notes,
            })
        }
    }
}

fn offset_text(offset: i64) -> String {
    let minutes = offset.abs() / (HOUR / 60);
    let sign = if offset < 0 { '-' } else { '+' };
    format!("{sign}{:02}:{:02}", minutes / 60, minutes % 60)
}

/// The zone of this name.
///
/// # Errors
/// [`Error::Config`] when there is none.
pub(super) fn zone(name: &str) -> Result<Tz> {
    name.parse().map_err(|_| {
        let reason = format!(
            "no time zone is called `{name}`; names are like Europe/Berlin or America/New_York"
        );
        Error::config("time-zone", reason)
    })
}

/// What a local time is in universal time.
pub(super) enum Universal {
    /// The clock shows it once.
    Once(i64),
    /// The clock shows it twice, as it is set back.
    Twice(i64, i64),
    /// The clock never shows it, as it is set forward.
    Never,
}

pub(super) fn universal(zone: Tz, local: i64) -> Universal {
    match zone.from_local_datetime(&plain(local)) {
        LocalResult::Single(time) => Universal::Once(time.timestamp_micros()),
        LocalResult::Ambiguous(first, second) => {
            Universal::Twice(first.timestamp_micros(), second.timestamp_micros())
        }
        LocalResult::None => Universal::Never,
    }
}

fn plain(micros: i64) -> NaiveDateTime {
    DateTime::from_timestamp_micros(micros).map_or(NaiveDateTime::MIN, |time| time.naive_utc())
}

impl Clock {
    /// What a clock on the wall shows at a time of this table: for hours of the day.
    pub(super) fn wall(&self, micros: i64) -> i64 {
        match self.tz() {
            Some(zone) => {
                let offset = zone.offset_from_utc_datetime(&plain(micros)).fix();
                micros + i64::from(offset.local_minus_utc()) * 1_000_000
            }
            None => micros,
        }
    }

    fn tz(&self) -> Option<Tz> {
        match self {
            Self::Zone(name) => name.parse().ok(),
            _ => None,
        }
    }

    /// A time as it is written: `2024-03-31 02:00:00` as it was read, with `Z` or the zone's offset where there are such; a date
    /// alone where `dates`.
    pub(super) fn text(&self, micros: i64, dates: bool) -> String {
        if dates && *self == Self::Plain {
            return plain(micros).format("%Y-%m-%d").to_string();
        }
        match self {
            Self::Plain => plain(micros).format("%Y-%m-%d %H:%M:%S%.f").to_string(),
            Self::Utc => plain(micros).format("%Y-%m-%dT%H:%M:%S%.fZ").to_string(),
            Self::Zone(_) => {
                let wall = self.wall(micros);
                let text = plain(wall).format("%Y-%m-%dT%H:%M:%S%.f");
                format!("{text}{}", offset_text(wall - micros))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_read_in_every_spelling() {
        let noon = parse_time("2024-03-31 12:00:00").expect("a time");
        for (text, offset) in [
            ("2024-03-31T14:00:00+02:00", Some(2)),
            ("2024-03-31 07:00-0500", Some(-5)),
            ("2024-03-31 13:00+01", Some(1)),
            ("2024-03-31T12:00:00Z", Some(0)),
            ("2024-03-31 12:00", None),
        ] {
            let expected = offset.map(|hours: i64| hours * HOUR);
            assert_eq!(with_offset(text), Some((noon, expected)), "{text}");
        }
        for text in [
            "noon",
            "2024-03-31",
            "12:00+xx",
            "2024-03-31 12:00+99:00",
            "+01:00",
            "2024-03-31 12:00+é",
        ] {
            assert!(
                with_offset(text).is_none_or(|(_, offset)| offset.is_none()),
                "{text}"
            );
        }
    }

    #[test]
    fn a_zone_knows_the_hour_that_is_never_and_the_one_that_is_twice() {
        let berlin = zone("Europe/Berlin").expect("a zone");
        let at = |text| parse_time(text).expect("a time");
        assert!(matches!(
            universal(berlin, at("2024-03-31 02:30")),
            Universal::Never
        ));
        let twice = universal(berlin, at("2024-10-27 02:30"));
        assert!(matches!(twice, Universal::Twice(first, second) if second - first == HOUR));
        let clock = Clock::Zone("Europe/Berlin".to_owned());
        assert_eq!(
            clock.text(at("2024-07-01 10:00"), false),
            "2024-07-01T12:00:00+02:00"
        );
        assert!(zone("Europe/Atlantis").is_err());
    }
}
