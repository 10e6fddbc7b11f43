//! Parts of a time that carry a rhythm: hours of the day, days of the week, months of the year.

use densely_core::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::table::{Table, Values};

/// A part of a time, as a number. Times are taken as they stand in the table, without a time zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CalendarPart {
    /// 0 to 59.
    Minute,
    /// 0 to 23.
    Hour,
    /// 0 for Monday to 6 for Sunday.
    Weekday,
    /// Day of the month, 1 to 31.
    Day,
    /// Day of the year, 1 to 366.
    DayOfYear,
    /// 1 to 12.
    Month,
    /// As it is written.
    Year,
}

const DAY: i64 = 86_400_000_000;

impl CalendarPart {
    /// The name in settings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Weekday => "weekday",
            Self::Day => "day",
            Self::DayOfYear => "day_of_year",
            Self::Month => "month",
            Self::Year => "year",
        }
    }

    /// This part of a time given in microseconds since 1970.
    pub const fn at(self, micros: i64) -> i64 {
        let days = micros.div_euclid(DAY);
        let minutes = micros.rem_euclid(DAY) / 60_000_000;
        let (year, month, day) = date(days);
        match self {
            Self::Minute => minutes % 60,
            Self::Hour => minutes / 60,
            // 1970-01-01 was a Thursday.
            Self::Weekday => (days + 3).rem_euclid(7),
            Self::Day => day,
            Self::DayOfYear => days - days_before(year) + 1,
            Self::Month => month,
            Self::Year => year,
        }
    }

    /// This part of every time of a column, NaN where it is missing.
    ///
    /// # Errors
    /// [`Error::Data`] when the column is absent or holds no times.
    pub fn of(self, table: &Table, column: &str) -> Result<Vec<f64>> {
        match &table.column(column)?.values {
            Values::Time(values) => {
                let part = |time: &i64| match *time {
                    i64::MIN => f64::NAN,
                    time => self.at(time) as f64,
                };
                Ok(values.iter().map(part).collect())
            }
            _ => Err(Error::column(
                table.path(),
                column,
                "parts of the calendar need dates or times like 2013-09-01 05:30",
            )),
        }
    }
}

/// Days from 1970-01-01 to the first day of the year.
const fn days_before(year: i64) -> i64 {
    let y = year - 1;
    y * 365 + y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400) - 719_162
}

/// Year, month and day of the Gregorian calendar, from days since 1970-01-01.
const fn date(days: i64) -> (i64, i64, i64) {
    // Days since 0000-03-01, so that the leap day is the last of its year; 400 years are 146,097 days.
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    (year + era * 400 + (month <= 2) as i64, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::parse_time;

    #[test]
    fn parts_are_those_of_the_written_time() {
        // Weekday and day of the year as Python's `datetime` gives them.
        let cases = [
            ("1970-01-01 00:00:00", [0, 0, 3, 1, 1, 1, 1970]),
            ("2000-02-29 23:59:59", [59, 23, 1, 29, 60, 2, 2000]),
            ("2013-12-31 05:30:00", [30, 5, 1, 31, 365, 12, 2013]),
            ("2024-12-31 12:01:00", [1, 12, 1, 31, 366, 12, 2024]),
            ("1969-07-20 20:17:00", [17, 20, 6, 20, 201, 7, 1969]),
            ("1900-03-01 00:00:00", [0, 0, 3, 1, 60, 3, 1900]),
            ("2013/12/31 5:30", [30, 5, 1, 31, 365, 12, 2013]),
            ("1970/1/1 0:00", [0, 0, 3, 1, 1, 1, 1970]),
        ];
        let parts = [
            CalendarPart::Minute,
            CalendarPart::Hour,
            CalendarPart::Weekday,
            CalendarPart::Day,
            CalendarPart::DayOfYear,
            CalendarPart::Month,
            CalendarPart::Year,
        ];
        for (text, expected) in cases {
            let time = parse_time(text).expect("a time");
            assert_eq!(parts.map(|part| part.at(time)), expected, "{text}");
        }
        // One digit needs slashes, the two do not mix, and the year stands first.
        for text in [
            "1970-1-1",
            "1970/1-1",
            "70/1/1",
            "1/2/1970",
            "1970/13/1",
            "1970/2/30",
            "1970//1",
        ] {
            assert_eq!(parse_time(text), None, "{text}");
        }
    }
}
