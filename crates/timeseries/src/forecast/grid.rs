//! The grid that the times of series lie on: its step, found from the gaps between them.

use std::collections::BTreeMap;

use densely_core::{Error, Result};
use densely_data::calendar::CalendarPart;
use densely_data::table::parse_time;
use serde::{Deserialize, Serialize};

use super::stamps::{DAY, HOUR};

/// From one time to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Step {
    /// Microseconds.
    Fixed {
        /// How many.
        micros: i64,
    },
    /// Months of the calendar.
    Months {
        /// How many.
        months: i64,
        /// Whether the days are the last ones of their months.
        end: bool,
    },
    /// Monday to Friday, one after the other.
    Workdays,
}

/// Where in a step the times of a series lie. Series of one table may differ in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    month: i64,
    day: i64,
    micros: i64,
}

/// A month's last day.
const END: i64 = 31;

impl Step {
    /// The step of `15min`, `h`, `6h`, `d`, `w`, `month`, `quarter`, `year` or `workday`.
    ///
    /// # Errors
    /// [`Error::Config`] for any other text.
    pub fn parse(text: &str) -> Result<Self> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let unit = unit.trim().to_lowercase();
        let count = if number.is_empty() {
            Some(1)
        } else {
            number.parse::<i64>().ok()
        };
        let fixed = |micros: i64| count.and_then(|count| count.checked_mul(micros));
        let months = |each: i64| {
            count
                .filter(|count| *count <= 1200)
                .map(|count| count * each)
        };
        let step = match unit.as_str() {
            "s" | "sec" => fixed(1_000_000).map(|micros| Self::Fixed { micros }),
            "min" => fixed(HOUR / 60).map(|micros| Self::Fixed { micros }),
            "h" | "hour" => fixed(HOUR).map(|micros| Self::Fixed { micros }),
            "d" | "day" => fixed(DAY).map(|micros| Self::Fixed { micros }),
            "w" | "week" => fixed(7 * DAY).map(|micros| Self::Fixed { micros }),
            "mo" | "month" => months(1).map(|months| Self::Months { months, end: false }),
            "q" | "quarter" => months(3).map(|months| Self::Months { months, end: false }),
            "y" | "year" => months(12).map(|months| Self::Months { months, end: false }),
            "b" | "workday" if count == Some(1) => Some(Self::Workdays),
            _ => None,
        };
        step.filter(|step| {
            !matches!(
                step,
                Self::Fixed { micros: 0 } | Self::Months { months: 0, .. }
            )
        })
        .ok_or_else(|| {
            let reason = format!(
                "must be like 15min, h, 6h, d, w, month, quarter, year or workday, got `{text}`"
            );
            Error::config("frequency", reason)
        })
    }

    /// In words, such as `1 h`.
    pub fn text(self) -> String {
        match self {
            Self::Fixed { micros } => span(micros),
            Self::Months { months: 1, .. } => "1 month".to_owned(),
            Self::Months { months, .. } => format!("{months} months"),
            Self::Workdays => "1 workday".to_owned(),
        }
    }

    /// Steps of the season that such data usually has: a day, a week, a year.
    pub const fn season(self) -> i64 {
        match self {
            Self::Fixed { micros }
                if micros >= 5 * HOUR / 60 && micros < DAY && DAY % micros == 0 =>
            {
                DAY / micros
            }
            Self::Fixed { micros }
                if micros < HOUR && HOUR % micros == 0 && HOUR / micros <= 60 =>
            {
                HOUR / micros
            }
            Self::Fixed { micros: DAY } => 7,
            Self::Fixed { micros } if micros == 7 * DAY => 52,
            Self::Months { months, .. } if 12 % months == 0 => 12 / months,
            Self::Workdays => 5,
            _ => 1,
        }
    }

    /// Whether a step is a day or more: such times are dates.
    pub const fn is_daily(self) -> bool {
        !matches!(self, Self::Fixed { micros } if micros < DAY)
    }

    /// The number of the step that a time lies in, comparable between series, and where in it.
    pub(super) fn place(self, time: i64) -> (i64, Phase) {
        let of_day = time.rem_euclid(DAY);
        match self {
            Self::Fixed { micros } => {
                let phase = Phase {
                    month: 0,
                    day: 0,
                    micros: time.rem_euclid(micros),
                };
                (time.div_euclid(micros), phase)
            }
            Self::Months { months, end } => {
                let month = months_of(time);
                let day = if end && is_month_end(time) {
                    END
                } else {
                    CalendarPart::Day.at(time)
                };
                let phase = Phase {
                    month: month.rem_euclid(months),
                    day,
                    micros: of_day,
                };
                (month.div_euclid(months), phase)
            }
            Self::Workdays => {
                let days = time.div_euclid(DAY) + 3; // from a Monday
                let weekday = days.rem_euclid(7);
                let phase = Phase {
                    month: 0,
                    day: i64::from(weekday > 4),
                    micros: of_day,
                };
                (days.div_euclid(7) * 5 + weekday.min(4), phase)
            }
        }
    }

    /// The way back.
    pub(super) fn time(self, index: i64, phase: Phase) -> i64 {
        match self {
            Self::Fixed { micros } => index.saturating_mul(micros).saturating_add(phase.micros),
            Self::Months { months, .. } => {
                let month = index * months + phase.month;
                let start = month_start(month);
                let length = (month_start(month + 1) - start) / DAY;
                start + (phase.day.min(length) - 1) * DAY + phase.micros
            }
            Self::Workdays => {
                let days = index.div_euclid(5) * 7 + index.rem_euclid(5) - 3;
                days * DAY + phase.micros
            }
        }
    }

    /// The steps of series whose times are sorted; `None` where each has one time at most.
    ///
    /// # Errors
    /// The sentence of what is irregular.
    pub(super) fn infer<'a>(
        series: &(impl Iterator<Item = &'a [i64]> + Clone),
    ) -> std::result::Result<Option<Self>, String> {
        let mut gaps: BTreeMap<i64, u64> = BTreeMap::new();
        for times in series.clone() {
            for pair in times.windows(2).filter(|pair| pair[1] > pair[0]) {
                *gaps.entry(pair[1] - pair[0]).or_default() += 1;
            }
        }
        let total: u64 = gaps.values().sum();
        let Some((mode, count)) = gaps.iter().max_by_key(|(gap, count)| (**count, -**gap)) else {
            return Ok(None);
        };
        if (28 * DAY..=366 * DAY).contains(mode)
            && let Some(step) = in_months(series.clone())
        {
            return Ok(Some(step));
        }
        let weekend = |time: &i64| CalendarPart::Weekday.at(*time) > 4;
        if *mode == DAY
            && gaps.contains_key(&(3 * DAY))
            && !series.clone().any(|times| times.iter().any(weekend))
        {
            return Ok(Some(Self::Workdays));
        }
        let regular: u64 = gaps
            .iter()
            .filter(|(gap, _)| *gap % mode == 0)
            .map(|(_, count)| count)
            .sum();
        if (regular as f64) < 0.95 * total as f64 {
            return Err(format!(
                "the times have no common step: the most frequent gap, {}, is {:.0} % of all, and {:.0} % are no multiple of it; bring them on a grid (say, means of each hour), or name the step with `--frequency`",
                span(*mode),
                100.0 * *count as f64 / total as f64,
                100.0 * (total - regular) as f64 / total as f64,
            ));
        }
        Ok(Some(Self::Fixed { micros: *mode }))
    }

    /// With days that are the last of their months where they are so in all of `times`.
    pub(super) fn with_ends<'a>(self, mut times: impl Iterator<Item = &'a i64>) -> Self {
        match self {
            Self::Months { months, .. } => Self::Months {
                months,
                end: times.all(|time| is_month_end(*time)),
            },
            step => step,
        }
    }
}

/// A step of months, when the days of the month say so.
fn in_months<'a>(series: impl Iterator<Item = &'a [i64]> + Clone) -> Option<Step> {
    let (mut rows, mut same, mut ends) = (0u64, 0u64, 0u64);
    let mut gaps: BTreeMap<i64, u64> = BTreeMap::new();
    for times in series {
        let Some(first) = times.first() else { continue };
        let day = CalendarPart::Day.at(*first);
        for time in times {
            rows += 1;
            same += u64::from(CalendarPart::Day.at(*time) == day);
            ends += u64::from(is_month_end(*time));
        }
        for pair in times.windows(2).filter(|pair| pair[1] > pair[0]) {
            *gaps
                .entry(months_of(pair[1]) - months_of(pair[0]))
                .or_default() += 1;
        }
    }
    let months = gaps
        .iter()
        .max_by_key(|(gap, count)| (**count, -**gap))
        .map(|(gap, _)| *gap)?;
    let nearly = |count: u64| count as f64 >= 0.95 * rows as f64;
    (months > 0 && (nearly(same) || nearly(ends))).then_some(Step::Months {
        months,
        end: !nearly(same),
    })
}

fn months_of(time: i64) -> i64 {
    CalendarPart::Year.at(time) * 12 + CalendarPart::Month.at(time) - 1
}

fn month_start(month: i64) -> i64 {
    let text = format!(
        "{:04}-{:02}-01",
        month.div_euclid(12),
        month.rem_euclid(12) + 1
    );
    parse_time(&text).unwrap_or(0)
}

fn is_month_end(time: i64) -> bool {
    CalendarPart::Day.at(time.saturating_add(DAY)) == 1
}

/// A span in the largest unit that it is a whole number of.
pub(super) fn span(micros: i64) -> String {
    let units = [
        ("d", DAY),
        ("h", HOUR),
        ("min", HOUR / 60),
        ("s", 1_000_000),
        ("ms", 1_000),
    ];
    match units.iter().find(|(_, unit)| micros % unit == 0) {
        Some((name, unit)) => format!("{} {name}", micros / unit),
        None => format!("{micros} µs"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(texts: &[&str]) -> Vec<i64> {
        texts
            .iter()
            .map(|text| parse_time(text).expect("a time"))
            .collect()
    }

    #[test]
    fn steps_are_found_and_every_time_is_placed_and_found_back() {
        let workdays = [
            "2024-01-04",
            "2024-01-05",
            "2024-01-08",
            "2024-01-09",
            "2024-01-10",
        ];
        let ends = ["2024-01-31", "2024-02-29", "2024-03-31", "2024-04-30"];
        for (texts, text, indices) in [
            (
                &[
                    "2024-01-01 00:15",
                    "2024-01-01 00:30",
                    "2024-01-01 01:00",
                    "2024-01-01 01:15",
                ][..],
                "15 min",
                vec![0, 1, 3, 4],
            ),
            (&workdays[..], "1 workday", vec![0, 1, 2, 3, 4]),
            (&ends[..], "1 month", vec![0, 1, 2, 3]),
            (
                &["2023-10-05", "2024-01-05", "2024-04-05"][..],
                "3 months",
                vec![0, 1, 2],
            ),
            (
                &["2020-01-01", "2021-01-01", "2022-01-01"][..],
                "12 months",
                vec![0, 1, 2],
            ),
            // Every four weeks is no month.
            (
                &["2024-01-01", "2024-01-29", "2024-02-26", "2024-03-25"][..],
                "28 d",
                vec![0, 1, 2, 3],
            ),
        ] {
            let times = times(texts);
            let step = Step::infer(&std::iter::once(&times[..]))
                .expect("regular")
                .expect("a step");
            assert_eq!(step.text(), text);
            let first = step.place(times[0]);
            for (time, index) in times.iter().zip(indices) {
                assert_eq!(step.place(*time), (first.0 + index, first.1), "{text}");
                assert_eq!(step.time(first.0 + index, first.1), *time, "{text}");
            }
        }
        let odd = times(&[
            "2024-01-01 00:00",
            "2024-01-01 00:07",
            "2024-01-01 00:09",
            "2024-01-01 01:00",
        ]);
        assert!(
            Step::infer(&std::iter::once(&odd[..]))
                .expect_err("irregular")
                .contains("no common step")
        );
        assert_eq!(Step::infer(&std::iter::once(&odd[..1])), Ok(None));
    }

    #[test]
    fn steps_are_read_by_name() {
        for (text, found) in [
            ("15min", "15 min"),
            ("h", "1 h"),
            ("6h", "6 h"),
            ("w", "7 d"),
            ("quarter", "3 months"),
        ] {
            assert_eq!(Step::parse(text).expect("a step").text(), found);
        }
        for text in ["", "0h", "fortnight", "99999999999999999999d", "2workday"] {
            assert!(Step::parse(text).is_err(), "{text}");
        }
        assert_eq!(Step::parse("h").expect("a step").season(), 24);
        assert_eq!(Step::parse("month").expect("a step").season(), 12);
    }
}
