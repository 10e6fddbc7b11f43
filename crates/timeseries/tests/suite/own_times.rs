//! Times of own tables that no single column of a CSV file tells.

use std::fmt::Write;
use std::sync::Arc;

use arrow_array::{ArrayRef, Float64Array, RecordBatch, TimestampMicrosecondArray};
use densely_core::{Error, Result};
use densely_data::Table;
use densely_timeseries::forecast::{Gaps, Panel, TableSettings};
use densely_timeseries::m4::M4;

use crate::own_table::table;

/// Hours of February and March of a leap year with the time in four columns.
fn in_parts(change: impl Fn(usize, [String; 4]) -> [String; 4]) -> String {
    let mut text = "year,month,day,hour,load\n".to_owned();
    for hour in 0..24 * 40 {
        let (month, day) = if hour / 24 < 29 {
            (2, hour / 24 + 1)
        } else {
            (3, hour / 24 - 28)
        };
        let parts = [
            "2024".to_owned(),
            format!("0{month}"),
            day.to_string(),
            (hour % 24).to_string(),
        ];
        writeln!(text, "{},{hour}", change(hour, parts).join(",")).expect("a string");
    }
    text
}

#[test]
fn a_time_in_parts_is_put_together_and_impossible_ones_are_named() -> Result<()> {
    let parts = |names: &[&str]| TableSettings {
        time_parts: names.iter().map(|name| (*name).to_owned()).collect(),
        target: vec!["load".to_owned()],
        gaps: Gaps::Refuse,
        ..TableSettings::default()
    };
    let all = parts(&["year", "month", "day", "hour"]);
    let panel = Panel::new(&table(&in_parts(|_, parts| parts))?, &all)?;
    assert_eq!(panel.values.len(), 24 * 40);
    assert_eq!(panel.time(0, 28 * 24 + 5), "2024-02-29 05:00:00");
    assert_eq!(panel.time(0, 24 * 40), "2024-03-12 00:00:00");
    // What was resolved is read again, as a fitted run does.
    assert_eq!(
        Panel::like(
            &table(&in_parts(|_, parts| parts))?,
            &panel.settings,
            panel.step
        )?
        .values,
        panel.values
    );

    let refused = |text: &str, settings: &TableSettings| -> Result<String> {
        let panel = Panel::new(&table(text)?, settings);
        Ok(panel.expect_err("a bad time").to_string())
    };
    let with = |at: usize, value: &'static str| {
        in_parts(move |hour, mut parts| {
            if hour == 30 {
                parts[at] = value.to_owned();
            }
            parts
        })
    };
    for (text, part) in [
        (
            with(1, "13"),
            "`13` is no month, a whole number from 1 to 12",
        ),
        (with(3, "24"), "`24` is no hour"),
        (with(2, "31"), "there is no day 31 in month 2 of 2024"),
        (with(3, ""), "the hour of the time is missing"),
        (with(2, "1.5"), "`1.5` is no day"),
    ] {
        let message = refused(&text, &all)?;
        assert!(
            message.contains(part) && message.contains("32"),
            "{message}"
        );
    }
    let swapped = refused(&in_parts(|_, parts| parts), &parts(&["month", "year"]))?;
    assert!(swapped.contains("are year, month, day"), "{swapped}");
    let few = refused(&in_parts(|_, parts| parts), &parts(&["year"]))?;
    assert!(few.contains("two to six columns"), "{few}");
    let mut both = all;
    both.time = Some("hour".to_owned());
    let both = refused(&in_parts(|_, parts| parts), &both)?;
    assert!(both.contains("not in both"), "{both}");
    Ok(())
}

#[test]
fn series_of_the_m4_competition_end_together() -> Result<()> {
    let set = M4 {
        ids: vec!["H1".to_owned(), "H2".to_owned()],
        histories: vec![vec![1.0, 2.0, 3.0], vec![5.0]],
        futures: vec![vec![4.0], vec![6.0]],
        season: 1,
    };
    let settings = TableSettings {
        series_id: vec!["series".to_owned()],
        ..TableSettings::default()
    };
    let panel = Panel::new(&set.table()?, &settings)?;
    assert_eq!(panel.values, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    assert_eq!(
        (panel.time(0, 2), panel.time(1, 0)),
        (
            "2000-01-01 02:00:00".to_owned(),
            "2000-01-01 02:00:00".to_owned()
        )
    );
    Ok(())
}

#[test]
fn a_zone_that_a_file_keeps_with_its_times_is_said() -> Result<()> {
    let hours: Vec<i64> = (0..48).map(|hour| hour * 3_600_000_000).collect();
    let loads: Vec<f64> = (0..48).map(f64::from).collect();
    let times = TimestampMicrosecondArray::from(hours).with_timezone("Europe/Berlin");
    let columns: [(&str, ArrayRef); 2] = [
        ("time", Arc::new(times)),
        ("load", Arc::new(Float64Array::from(loads))),
    ];
    let batch = RecordBatch::try_from_iter(columns);
    let batch = batch.map_err(|e| Error::data("", e.to_string()))?;
    let table = Table::from_batches([batch])?;
    assert_eq!(table.zone("time"), Some("Europe/Berlin"));
    assert_eq!(table.zone("load"), None);
    let mut settings = TableSettings::default();
    let panel = Panel::new(&table, &settings)?;
    let said = "column `time` has the zone `Europe/Berlin` in the file: its times are read and written as universal time";
    assert!(
        panel.notes.iter().any(|note| note == said),
        "{:?}",
        panel.notes
    );
    settings.time_zone = Some("Europe/Berlin".to_owned());
    let refused = Panel::new(&table, &settings)
        .expect_err("two zones")
        .to_string();
    assert!(refused.contains("leave `--time-zone` away"), "{refused}");
    Ok(())
}
