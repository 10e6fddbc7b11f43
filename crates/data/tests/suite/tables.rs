//! Readers: kinds are found, missing values are found, and no bytes make them panic.

#[cfg(feature = "parquet")]
use densely_core::Error;
use densely_data::table::{MISSING, Values};
use densely_data::{Output, Role, Table, Task, write_columns};
use proptest::prelude::*;

use crate::{TableFile, schema, table};

#[test]
fn csv_kinds_and_missing_values() {
    let table = table(
        "\u{feff}a,b,c,d,\"e, f\"\n1,x,2013-01-31,007,1e3\n-2, ? ,,008,NA\n,y,2013-02-28T12:00:00Z,009,-0.5\n",
    );
    let columns: Vec<_> = table
        .names()
        .iter()
        .map(|n| table.column(n).unwrap())
        .collect();
    let names: Vec<&str> = columns.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "c", "d", "e, f"]);
    assert!(matches!(
        columns[0].values,
        Values::Number { integral: true, .. }
    ));
    assert!(matches!(&columns[1].values, Values::Text { codes, .. } if *codes == [0, MISSING, 1]));
    assert!(
        matches!(&columns[2].values, Values::Time(t) if *t == [1_359_590_400_000_000, i64::MIN, 1_362_052_800_000_000])
    );
    assert!(matches!(&columns[3].values, Values::Text { names, .. } if names[0] == "007"));
    assert_eq!(table.numbers("e, f").unwrap()[0], 1000.0);
    assert!(table.numbers("e, f").unwrap()[1].is_nan());
    assert_eq!(columns.iter().map(|c| c.missing()).sum::<usize>(), 4);
}

#[test]
fn roles_and_tasks_are_inferred() {
    let line = |i: usize| {
        format!(
            "{},{},{},{},id{i},5,{},{}\n",
            i as f64 / 3.0,
            i % 2,
            ["r", "g", "b"][i % 3],
            i % 7,
            ["no", "yes"][i % 2],
            i % 4
        )
    };
    let text: String = (0..50).map(line).collect();
    let table = table(&format!(
        "x,flag,colour,small,name,same,answer,grade\n{text}"
    ));
    let answer = schema(&table, "answer");
    assert_eq!(answer.task(), Task::Binary);
    assert_eq!(
        answer.with_role(Role::Numeric).collect::<Vec<_>>(),
        ["x", "small", "grade"]
    );
    assert_eq!(answer.with_role(Role::Binary).collect::<Vec<_>>(), ["flag"]);
    assert_eq!(
        answer.with_role(Role::Categorical).collect::<Vec<_>>(),
        ["colour"]
    );
    assert_eq!(
        answer.with_role(Role::Ignore).collect::<Vec<_>>(),
        ["name", "same"]
    );
    assert_eq!(answer.warnings().len(), 2);
    assert_eq!(schema(&table, "x").task(), Task::Regression);
    assert_eq!(schema(&table, "grade").task(), Task::Multiclass);
    assert_eq!(schema(&table, "flag").task(), Task::Binary);
    assert_eq!(schema(&table, "colour").task(), Task::Multiclass);
}

proptest! {
    #[test]
    fn no_bytes_make_the_csv_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Table::open(&TableFile::new("t.csv", &bytes).path);
    }

    #[test]
    fn tables_come_back_from_csv(rows in prop::collection::vec((any::<f64>().prop_filter("finite", |x| x.is_finite()), "[a-z ,\"\n]{1,8}"), 1..30)) {
        let file = TableFile::new("t.csv", b"");
        let (numbers, texts): (Vec<f64>, Vec<String>) = rows.into_iter().map(|(x, t)| (x, format!("t{t}"))).unzip();
        let columns = [("x".to_owned(), Output::Numbers(numbers.clone())), ("t".to_owned(), Output::Texts(texts.clone()))];
        write_columns(&file.path, &columns).unwrap();
        let table = Table::open(&file.path).unwrap();
        prop_assert_eq!(table.numbers("x").unwrap(), numbers);
        let (codes, names) = table.texts("t").unwrap();
        let read: Vec<&str> = codes.iter().map(|c| names[*c as usize].as_str()).collect();
        let written: Vec<&str> = texts.iter().map(|t| t.trim()).collect();
        prop_assert_eq!(read, written);
    }
}

#[cfg(feature = "parquet")]
mod parquet {
    use super::*;

    fn written() -> Vec<u8> {
        let file = TableFile::new("t.parquet", b"");
        let numbers: Vec<f64> = (0..100).map(f64::from).collect();
        let texts: Vec<String> = (0..100).map(|i| format!("t{}", i % 7)).collect();
        let columns = [
            ("x".to_owned(), Output::Numbers(numbers)),
            ("t".to_owned(), Output::Texts(texts)),
        ];
        write_columns(&file.path, &columns).unwrap();
        std::fs::read(&file.path).unwrap()
    }

    #[test]
    fn tables_come_back_from_parquet() {
        let table = Table::open(&TableFile::new("t.parquet", &written()).path).unwrap();
        assert_eq!(table.row_count(), 100);
        assert_eq!(table.numbers("x").unwrap()[99], 99.0);
        assert_eq!(table.texts("t").unwrap().1.len(), 7);
    }

    #[test]
    fn times_come_back_with_their_zone_and_stand_as_texts_in_csv() {
        let piece = |hour: i64| Output::Times {
            micros: vec![hour * 3_600_000_000],
            texts: vec![format!("1970-01-01 {:02}:00", hour + 1)],
            zone: Some("Europe/Berlin".to_owned()),
        };
        let mut times = piece(0);
        times.append(piece(1)).unwrap();
        let mut other = Output::Texts(vec![]);
        assert!(other.append(piece(0)).is_err() && times.clone().append(other).is_err());
        let columns = [("at".to_owned(), times)];
        let file = TableFile::new("t.parquet", b"");
        write_columns(&file.path, &columns).unwrap();
        let table = Table::open(&file.path).unwrap();
        assert_eq!(table.zone("at"), Some("Europe/Berlin"));
        let Values::Time(micros) = &table.column("at").unwrap().values else {
            panic!("no times");
        };
        assert_eq!(*micros, [0, 3_600_000_000]);
        let file = TableFile::new("t.csv", b"");
        write_columns(&file.path, &columns).unwrap();
        let text = std::fs::read_to_string(&file.path).unwrap();
        assert_eq!(text, "at\n1970-01-01 01:00\n1970-01-01 02:00\n");
    }

    #[test]
    fn every_truncation_is_an_error() {
        let bytes = written();
        for length in (0..bytes.len()).step_by(7) {
            let error =
                Table::open(&TableFile::new("t.parquet", &bytes[..length]).path).unwrap_err();
            assert!(matches!(error, Error::Corrupt { .. }), "{error}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn no_altered_byte_makes_the_reader_panic(place in any::<prop::sample::Index>(), value: u8) {
            let mut bytes = written();
            let place = place.index(bytes.len());
            bytes[place] = value;
            let _ = Table::open(&TableFile::new("t.parquet", &bytes).path);
        }
    }
}

#[test]
fn a_table_that_stays_in_its_file_gives_the_same_columns() {
    let rows: String = (0..50)
        .map(|i| {
            format!(
                "{},{},2013-01-{:02}\n",
                i * 7 % 13,
                ["x", "y", "?"][i % 3],
                i % 28 + 1
            )
        })
        .collect();
    let csv = TableFile::new("t.csv", format!("a,b,c\n{rows}").as_bytes());
    let mut files = vec![csv];
    if cfg!(feature = "parquet") {
        let parquet = TableFile::new("t.parquet", b"");
        let table = Table::open(&files[0].path).unwrap();
        let (codes, names) = table.texts("b").unwrap();
        let texts = codes
            .iter()
            .map(|c| names.get(*c as usize).cloned().unwrap_or_default())
            .collect();
        let columns = [
            ("a".to_owned(), Output::Numbers(table.numbers("a").unwrap())),
            ("b".to_owned(), Output::Texts(texts)),
        ];
        write_columns(&parquet.path, &columns).unwrap();
        files.push(parquet);
    }
    for file in &files {
        let (whole, lazy) = (
            Table::open(&file.path).unwrap(),
            Table::open_within(&file.path, 0).unwrap(),
        );
        assert!(whole.in_memory() && !lazy.in_memory());
        assert_eq!(
            (whole.names(), whole.row_count()),
            (lazy.names(), lazy.row_count())
        );
        for name in whole.names() {
            assert_eq!(whole.texts(name).unwrap(), lazy.texts(name).unwrap());
        }
        assert!(lazy.warnings()[0].contains("read from the file"));
        std::fs::write(&file.path, b"a,b,c\n1,x,2013-01-01\n").unwrap();
        assert!(lazy.numbers("a").is_err(), "the file changed");
    }
}

#[test]
fn parquet_without_the_feature_says_so() {
    if cfg!(not(feature = "parquet")) {
        let error = Table::open(&TableFile::new("t.parquet", b"PAR1").path)
            .unwrap_err()
            .to_string();
        assert!(error.contains("feature `parquet`"), "{error}");
    }
}

#[test]
fn columns_that_name_rows_are_left_out() {
    let row = |i: usize| format!("{},{},{},{}\n", 900 - i, i % 30, i * 7 % 31, i * 3 % 17);
    let text: String = (0..60).map(row).collect();
    let table = table(&format!("user_id,__index_level_0__,size,price\n{text}"));
    let schema = schema(&table, "price");
    assert_eq!(
        schema.with_role(Role::Numeric).collect::<Vec<_>>(),
        ["size"]
    );
    assert_eq!(
        schema.with_role(Role::Ignore).collect::<Vec<_>>(),
        ["user_id", "__index_level_0__"]
    );
}
