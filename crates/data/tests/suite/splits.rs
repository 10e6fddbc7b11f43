//! No split leaks: parts are disjoint, cover all rows with a target, and keep groups and times together.

use std::collections::BTreeSet;

use densely_core::Result;
use densely_data::{Schema, SchemaOptions, Split, SplitConfig, Table};
use proptest::prelude::*;

use crate::table;

fn made(rows: usize, groups: usize, times: usize) -> (Table, Schema) {
    let line = |i: usize| {
        format!(
            "{},g{},{},{}\n",
            i * 31 % 17,
            i * 7 % groups,
            i * 13 % times,
            i % 3
        )
    };
    let text: String = (0..rows).map(line).collect();
    let table = table(&format!("x,group,time,y\n{text}"));
    let options = SchemaOptions {
        target: "y".into(),
        group: Some("group".into()),
        time: Some("time".into()),
        ..SchemaOptions::default()
    };
    let schema = Schema::infer(&table, &options).unwrap();
    (table, schema)
}

fn assert_partition(split: &Split, rows: usize) {
    let all: Vec<u32> = [&split.train, &split.valid, &split.test]
        .into_iter()
        .flatten()
        .copied()
        .collect();
    assert_eq!(all.len(), rows);
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), rows);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn parts_are_disjoint_and_cover_all(rows in 60usize..200, seed: u64, valid in 0.1f64..0.4, test in 0.1f64..0.4) {
        let (table, schema) = made(rows, 9, 23);
        let configs = [
            SplitConfig::Random { valid, test, seed },
            SplitConfig::Stratified { valid, test, seed },
            SplitConfig::Group { valid, test, seed },
            SplitConfig::Time { valid, test },
        ];
        for config in configs {
            let split = config.split(&table, &schema).unwrap();
            assert_partition(&split, rows);
            prop_assert_eq!(&config.split(&table, &schema).unwrap(), &split);
            let column = |name: &str, rows: &[u32]| -> BTreeSet<u64> {
                let (codes, names) = table.texts(name).unwrap();
                rows.iter().map(|r| names[codes[*r as usize] as usize].trim_start_matches('g').parse().unwrap()).collect()
            };
            match config {
                SplitConfig::Group { .. } => {
                    let parts = [&split.train, &split.valid, &split.test].map(|part| column("group", part));
                    prop_assert!(parts[0].is_disjoint(&parts[1]) && parts[1].is_disjoint(&parts[2]) && parts[0].is_disjoint(&parts[2]));
                }
                SplitConfig::Time { .. } => {
                    let parts = [&split.train, &split.valid, &split.test].map(|part| column("time", part));
                    prop_assert!(parts[0].last() < parts[1].first() && parts[1].last() < parts[2].first());
                }
                SplitConfig::Stratified { .. } => {
                    let share = |part: &[u32]| part.iter().filter(|r| *r % 3 == 0).count() as f64 / part.len() as f64;
                    prop_assert!((share(&split.train) - share(&split.test)).abs() < 0.15);
                }
                _ => {}
            }
        }
    }
}

#[test]
fn windows_slide_as_in_tabred() -> Result<()> {
    let (table, schema) = made(100, 5, 100);
    let window = |index| {
        SplitConfig::Windows {
            index,
            windows: 3,
            rows: 10,
        }
        .split(&table, &schema)
    };
    let (first, last) = (window(0)?, window(2)?);
    assert_eq!(
        (first.train.len(), first.valid.len(), first.test.len()),
        (60, 10, 10)
    );
    assert_eq!(first.train[20..], last.train[..40]);
    assert!(window(3).is_err());
    Ok(())
}

#[test]
fn a_split_by_given_times_or_by_a_column_does_what_it_says() -> Result<()> {
    let text: String = (0..9)
        .map(|i| {
            format!(
                "2013-0{}-01,{},{}\n",
                i + 1,
                ["train", "val", "test"][i / 3],
                i
            )
        })
        .collect();
    let table = table(&format!("day,part,y\n{text}"));
    let options = SchemaOptions {
        target: "y".into(),
        time: Some("day".into()),
        ..SchemaOptions::default()
    };
    let schema = Schema::infer(&table, &options)?;
    let by_time = SplitConfig::TimeAt {
        valid_from: "2013-04-01".into(),
        test_from: "2013-07-01T00:00:00".into(),
    };
    let by_column = SplitConfig::Column {
        name: "part".into(),
    };
    let expected = Split {
        train: vec![0, 1, 2],
        valid: vec![3, 4, 5],
        test: vec![6, 7, 8],
    };
    assert_eq!(by_time.split(&table, &schema)?, expected);
    assert_eq!(by_column.split(&table, &schema)?, expected);
    let bad = SplitConfig::TimeAt {
        valid_from: "spring".into(),
        test_from: "2013-07-01".into(),
    };
    assert!(
        bad.split(&table, &schema)
            .unwrap_err()
            .to_string()
            .contains("`spring`")
    );
    Ok(())
}

#[test]
fn shares_out_of_range_and_empty_parts_are_errors() {
    let (table, schema) = made(60, 2, 60);
    for (valid, test) in [(0.0, 0.2), (0.5, 0.5), (-0.1, 0.2), (f64::NAN, 0.2)] {
        assert!(
            SplitConfig::Random {
                valid,
                test,
                seed: 0
            }
            .split(&table, &schema)
            .is_err()
        );
    }
    // Two groups cannot fill three parts.
    assert!(
        SplitConfig::Group {
            valid: 0.2,
            test: 0.2,
            seed: 0
        }
        .split(&table, &schema)
        .is_err()
    );
}
