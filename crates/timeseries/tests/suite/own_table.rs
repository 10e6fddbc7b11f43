//! Tables as they come: each oddity is handled or refused in its own sentence.

use std::fmt::Write;

use densely_core::{Error, Result};
use densely_data::Table;
use densely_data::calendar::CalendarPart;
use densely_data::table::{Column, Values};
use densely_timeseries::forecast::{Covariates, Duplicates, Gaps, Panel, Step, TableSettings};

/// Microseconds of an hour.
const HOUR: i64 = 3_600_000_000;

pub(crate) fn table(text: &str) -> Result<Table> {
    let folder = tempfile::tempdir().map_err(Error::io("tempdir"))?;
    let path = folder.path().join("own.csv");
    std::fs::write(&path, text).map_err(Error::io(&path))?;
    Table::open(&path)
}

/// `YYYY-MM-DD HH:MM` of so many hours after 2024-01-01 00:00 (a Monday).
pub(crate) fn stamp(hour: i64) -> String {
    let time = 19_723 * 24 * HOUR + hour * HOUR;
    let part = |part: CalendarPart| part.at(time);
    format!(
        "{:04}-{:02}-{:02} {:02}:00",
        part(CalendarPart::Year),
        part(CalendarPart::Month),
        part(CalendarPart::Day),
        part(CalendarPart::Hour)
    )
}

/// A wide table of these hours, whose value is the hour.
fn hours(hours: impl IntoIterator<Item = i64>) -> String {
    let mut text = "time,load\n".to_owned();
    for hour in hours {
        writeln!(text, "{},{hour}", stamp(hour)).expect("a string");
    }
    text
}

fn read(text: &str, settings: &TableSettings) -> Result<Panel> {
    Panel::new(&table(text)?, settings)
}

fn refused(text: &str, settings: &TableSettings) -> String {
    read(text, settings).expect_err("a bad table").to_string()
}

#[track_caller]
fn says(panel: &Panel, part: &str) {
    let notes = &panel.notes;
    assert!(
        notes.iter().any(|note| note.contains(part)),
        "{part}: {notes:?}"
    );
}

#[test]
fn a_slip_in_a_column_of_numbers_is_named() -> Result<()> {
    let mut text = "time,load,sun\n".to_owned();
    for hour in 0..50 {
        let load = if hour == 7 {
            "n/a?".to_owned()
        } else {
            hour.to_string()
        };
        writeln!(text, "{},{load},{hour}", stamp(hour)).expect("a string");
    }
    let panel = read(&text, &TableSettings::default())?;
    says(
        &panel,
        "column `load` has texts among its numbers and is not used",
    );
    says(
        &panel,
        "row 9, column `load`: expected a number, got `n/a?`",
    );
    Ok(())
}

#[test]
fn short_gaps_are_filled_and_said_and_long_ones_are_refused_with_advice() -> Result<()> {
    let plain = TableSettings::default();
    let short = hours((0..48).filter(|hour| ![10, 11, 30].contains(hour)));
    let panel = read(&short, &plain)?;
    let expected: Vec<f64> = (0..48).map(f64::from).collect();
    assert_eq!(panel.values, expected);
    assert_eq!(panel.step, Step::Fixed { micros: HOUR });
    says(
        &panel,
        "2 gaps in the targets, the longest 2 steps: column `load` from 2024-01-01 10:00:00 to 2024-01-01 11:00:00; 3 steps filled along a straight line",
    );
    says(&panel, "time: column `time`, the only one with times");

    let last = read(
        &short,
        &TableSettings {
            gaps: Gaps::Last,
            ..plain.clone()
        },
    )?;
    assert_eq!(&last.values[9..13], [9.0, 9.0, 9.0, 12.0]);

    let long = hours((0..48).filter(|hour| !(10..20).contains(hour)));
    let message = refused(&long, &plain);
    for part in [
        "1 gap in the targets, the longest 10 steps",
        "from 2024-01-01 10:00:00",
        "`--gaps split`",
        "`--max-gap 10`",
    ] {
        assert!(message.contains(part), "{message}");
    }
    assert!(
        refused(
            &short,
            &TableSettings {
                gaps: Gaps::Refuse,
                ..plain.clone()
            }
        )
        .contains("`--gaps interpolate`")
    );
    says(
        &read(
            &long,
            &TableSettings {
                max_gap: 10,
                ..plain.clone()
            },
        )?,
        "10 steps filled",
    );
    let split = read(
        &long,
        &TableSettings {
            gaps: Gaps::Split,
            ..plain
        },
    )?;
    says(&split, "cut at 1 gap longer than 3 steps");
    assert!(split.values[15].is_nan());
    Ok(())
}

#[test]
fn doubled_rows_are_refused_with_both_rows_or_merged_as_asked() -> Result<()> {
    let text = hours(0..24).replace("2024-01-01 06:00", "2024-01-01 05:00");
    let plain = TableSettings::default();
    let message = refused(&text, &plain);
    assert!(
        message
            .contains("row 8, column `time`: the time 2024-01-01 05:00:00 stands in row 7 already")
            && message.contains("`--duplicates mean`"),
        "{message}"
    );
    // Times with offsets are texts, too, but no names of series.
    let message = refused(&text.replace(":00,", ":00+01:00,"), &plain);
    assert!(
        message.contains("already; keep one row, or say"),
        "{message}"
    );
    for (duplicates, value, said) in [
        (Duplicates::Mean, 5.5, "averaged"),
        (Duplicates::First, 5.0, "the first one stays"),
        (Duplicates::Last, 6.0, "the last one stays"),
    ] {
        let panel = read(
            &text,
            &TableSettings {
                duplicates,
                ..plain.clone()
            },
        )?;
        assert!((panel.values[5] - value).abs() < 1e-12);
        says(
            &panel,
            &format!("1 row has the series and time of another: {said}")
                .replace("averaged", "their numbers are averaged"),
        );
    }
    // Rows of several series look doubled until their column is named.
    let long = "time,shop,sold\n2024-01-01,a,1\n2024-01-01,b,2\n2024-01-02,a,3\n2024-01-02,b,4\n2024-01-03,a,3\n2024-01-03,b,4\n";
    let message = refused(long, &plain);
    assert!(
        message.contains("`--series-id` (one of `shop`)"),
        "{message}"
    );
    let settings = TableSettings {
        series_id: vec!["shop".to_owned()],
        ..plain
    };
    let panel = read(long, &settings)?;
    assert_eq!(panel.values, [1.0, 3.0, 3.0, 2.0, 4.0, 4.0]);
    assert_eq!(panel.series[1].title(), "b");
    assert_eq!(panel.time(1, 3), "2024-01-04");
    let twice = format!("{long}2024-01-02,b,9\n");
    let message = refused(&twice, &settings);
    assert!(
        message.contains("row 8")
            && message.contains("series `b`: the time 2024-01-02 00:00:00 stands in row 5"),
        "{message}"
    );
    Ok(())
}

#[test]
fn offsets_become_universal_time_and_half_of_them_are_refused() -> Result<()> {
    let mut text = "when,load\n".to_owned();
    for hour in 0..24 {
        let (shown, offset) = if hour < 12 {
            (hour + 1, "+01:00")
        } else {
            (hour + 2, "+02:00")
        };
        writeln!(text, "{}{offset},{hour}", stamp(shown)).expect("a string");
    }
    let panel = read(&text, &TableSettings::default())?;
    assert_eq!(panel.values, (0..24).map(f64::from).collect::<Vec<_>>());
    says(
        &panel,
        "column `when` has 2 offsets from universal time (+01:00, +02:00): all times are taken as universal time",
    );
    assert_eq!(panel.time(0, 0), "2024-01-01T00:00:00Z");

    let half = text.replace("2024-01-01 05:00+01:00", "2024-01-01 05:00");
    let message = refused(&half, &TableSettings::default());
    assert!(
        message.contains("row 6, column `when`: the time has no offset, but that of row 2 has one"),
        "{message}"
    );
    let zone = TableSettings {
        time_zone: Some("Europe/Berlin".to_owned()),
        ..TableSettings::default()
    };
    assert!(refused(&text, &zone).contains("carry offsets"));
    let stray = text.replace("2024-01-01 05:00+01:00", "yesterday");
    assert!(
        refused(&stray, &TableSettings::default())
            .contains("row 6, column `when`: `yesterday` is no time")
    );
    Ok(())
}

/// Local hours of Berlin from this universal hour of 2024 on.
fn berlin(from: i64, count: i64) -> String {
    let mut text = "time,load\n".to_owned();
    for hour in from..from + count {
        // Summer time from 2024-03-31 01:00 to 2024-10-27 01:00 in universal time.
        let summer = (2161..7201).contains(&hour);
        writeln!(text, "{},{hour}", stamp(hour + if summer { 2 } else { 1 })).expect("a string");
    }
    text
}

#[test]
fn clocks_that_change_have_sentences_and_a_zone_mends_them() -> Result<()> {
    let plain = TableSettings::default();
    let spring = berlin(2140, 48);
    let panel = read(&spring, &plain)?;
    says(
        &panel,
        "an hour (1 h) is absent on a Sunday night when clocks are set forward (the night 2024-03-31 02:00:00)",
    );
    assert_eq!(panel.rows(), 49);
    let autumn = berlin(7180, 48);
    let message = refused(&autumn, &plain);
    assert!(
        message.contains("the hour of 2024-10-27 02:00:00 stands there twice, on a Sunday night when clocks are set back")
            && message.contains("`--time-zone Europe/Berlin`"),
        "{message}"
    );
    let zone = |name: &str| TableSettings {
        time_zone: Some(name.to_owned()),
        ..plain.clone()
    };
    for (text, from) in [(&spring, 2140), (&autumn, 7180)] {
        let panel = read(text, &zone("Europe/Berlin"))?;
        let expected: Vec<f64> = (from..from + 48).map(f64::from).collect();
        assert_eq!(panel.values, expected);
    }
    // The newest first: of the doubled hour, too.
    let mut lines: Vec<&str> = autumn.lines().skip(1).collect();
    lines.reverse();
    let panel = read(
        &format!("time,load\n{}\n", lines.join("\n")),
        &zone("Europe/Berlin"),
    )?;
    assert_eq!(
        panel.values,
        (7180..7228).map(f64::from).collect::<Vec<_>>()
    );
    assert_eq!(panel.time(0, 20), "2024-10-27T02:00:00+02:00");
    assert_eq!(panel.time(0, 21), "2024-10-27T02:00:00+01:00");
    let message = refused(&hours(2140..2188), &zone("Europe/Berlin"));
    assert!(
        message.contains("2024-03-31 02:00:00 is no time in Europe/Berlin"),
        "{message}"
    );
    assert!(refused(&spring, &zone("Europe/Atlantis")).contains("no time zone is called"));
    Ok(())
}

#[test]
fn order_does_not_matter_and_is_said() -> Result<()> {
    let sorted = read(&hours(0..24), &TableSettings::default())?;
    let panel = read(
        &hours((0..24).map(|hour| hour * 7 % 24)),
        &TableSettings::default(),
    )?;
    assert_eq!(panel.values, sorted.values);
    says(
        &panel,
        "not in the order of time (6 rows are earlier than the one before): sorted",
    );
    says(
        &read(&hours((0..24).rev()), &TableSettings::default())?,
        "the newest rows stand first: sorted by time",
    );
    Ok(())
}

#[test]
fn times_off_the_grid_and_of_no_grid_are_refused() {
    let plain = TableSettings::default();
    let off = hours(0..48).replace("2024-01-01 05:00", "2024-01-01 05:20");
    let message = refused(&off, &plain);
    assert!(message.contains("row 7, column `time`: 2024-01-01 05:20:00 is not on the grid of 1 h; the nearest step is 2024-01-01 05:00:00"), "{message}");
    let far = hours(0..48).replace("2024-01-01 00:00", "1024-01-01 00:00");
    assert!(refused(&far, &plain).contains("far more than rows; is a time wrong?"));
    assert!(
        refused("time,x\n2024-01-01,1\n", &plain).contains("no series has two different times")
    );
    let odd =
        "time,x\n2024-01-01 00:00,1\n2024-01-01 00:07,2\n2024-01-01 00:09,1\n2024-01-01 01:00,5\n";
    assert!(refused(odd, &plain).contains("no common step"));
    assert!(refused("time,x\n2024-01-01,1\n2024-01-02,inf\n", &plain).contains("infinite"));
    assert!(refused("time,x\n2024-01-01,\n2024-01-02,\n", &plain).contains("no column of numbers"));
}

#[test]
fn times_that_no_clock_shows_are_refused() {
    for time in [i64::MAX, i64::MIN + 1, 0x7fff_ffff_ffff_fff0] {
        let column = |name: &str, values| Column {
            name: name.to_owned(),
            values,
        };
        let table = Table::from_columns(
            std::path::Path::new("made"),
            vec![
                column("t", Values::Time(vec![0, HOUR, time])),
                column(
                    "x",
                    Values::Number {
                        values: vec![1.0, 2.0, 3.0],
                        integral: true,
                    },
                ),
            ],
        )
        .expect("a table");
        let message = Panel::new(&table, &TableSettings::default())
            .expect_err("no such year")
            .to_string();
        assert!(
            message.contains("row 3, column `t`: the year is none of 1 to 9999"),
            "{message}"
        );
    }
}

#[test]
fn columns_are_found_or_asked_for() {
    let plain = TableSettings::default();
    let id = |name: &str| TableSettings {
        series_id: vec![name.to_owned()],
        ..plain.clone()
    };
    let long = "day,shop,sold,price\n2024-01-01,a,1,2\n2024-01-02,a,3,2\n2024-01-01,b,1,2\n2024-01-02,b,3,2\n";
    let message = refused(long, &id("shop"));
    assert!(
        message.contains("`sold`, `price`") && message.contains("`--target`"),
        "{message}"
    );
    assert!(refused(long, &id("shoop")).contains("no column `shoop`; nearest: `shop`"));
    let twice = TableSettings {
        target: vec!["sold".to_owned()],
        past: vec!["sold".to_owned()],
        ..id("shop")
    };
    assert!(refused(long, &twice).contains("named for two purposes"));
    let moving = TableSettings {
        target: vec!["sold".to_owned()],
        statics: vec!["price".to_owned()],
        ..id("shop")
    };
    let changed = long.replace("2024-01-02,b,3,2", "2024-01-02,b,3,5");
    let message = refused(&changed, &moving);
    assert!(
        message.contains("row 5, column `price`: series `b`, the value differs from that of row 4"),
        "{message}"
    );
    assert!(
        refused(
            &long.replace(",b,1", ",,1"),
            &TableSettings {
                target: vec!["sold".to_owned()],
                ..id("shop")
            }
        )
        .contains("row 4, column `shop`: the row belongs to no series")
    );
    assert!(refused("a,b\n1,2\n3,4\n", &plain).contains("no column holds times"));
    assert!(
        refused(
            "a,b,x\n2024-01-01,2024-01-01,1\n2024-01-02,2024-01-02,1\n",
            &plain
        )
        .contains("several columns hold times: `a`, `b`")
    );
}

#[test]
fn the_future_of_known_columns_is_kept_and_their_gaps_are_filled() -> Result<()> {
    let mut text = "day,shop,sold,price,event\n".to_owned();
    for day in 1..=20 {
        let sold = if day > 15 {
            String::new()
        } else {
            day.to_string()
        };
        let price = if day == 4 {
            String::new()
        } else {
            (2 * day).to_string()
        };
        let event = if day == 7 { "fair" } else { "" };
        writeln!(text, "2024-01-{day:02},a,{sold},{price},{event}").expect("a string");
    }
    let columns = |names: &[&str]| {
        names
            .iter()
            .map(|name| (*name).to_owned())
            .collect::<Vec<_>>()
    };
    let settings = TableSettings {
        series_id: columns(&["shop"]),
        target: columns(&["sold"]),
        known: columns(&["price", "event"]),
        ..TableSettings::default()
    };
    let panel = read(&text, &settings)?;
    assert_eq!(panel.rows(), 20);
    let Covariates::Numbers(price) = &panel.known[0].values else {
        panic!("prices are numbers");
    };
    assert_eq!(
        *price,
        (1..=20).map(|day| f64::from(2 * day)).collect::<Vec<_>>()
    );
    let Covariates::Texts { codes, names } = &panel.known[1].values else {
        panic!("events are texts");
    };
    assert_eq!(
        (names.len(), codes.iter().filter(|code| **code == 0).count()),
        (1, 1)
    );
    says(&panel, "1 missing value of covariates filled");
    Ok(())
}
