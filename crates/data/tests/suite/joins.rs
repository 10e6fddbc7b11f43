//! Tables of several files, times as numbers, and targets that are compared with a value.

use densely_core::Error;
use densely_data::calendar::CalendarPart;
use densely_data::table::{MISSING, Values};
use densely_data::{
    PreprocessConfig, Preprocessor, Schema, SchemaOptions, SplitConfig, Table, Task,
};

use crate::table;

fn numbers(table: &Table, name: &str) -> Vec<Option<f64>> {
    let values = table.numbers(name).unwrap();
    values
        .into_iter()
        .map(|v| (!v.is_nan()).then_some(v))
        .collect()
}

#[test]
fn rows_of_several_tables_stand_behind_each_other() {
    let first = table("a,b,c\n1,x,2013-01-01\n2,y,2013-01-02\n");
    let second = table("b,a,d\ny,3.5,7\nz,,8\n");
    let all = Table::concat(&[first, second]).unwrap();
    assert_eq!(all.names(), ["a", "b", "c", "d"]);
    assert_eq!(numbers(&all, "a"), [Some(1.0), Some(2.0), Some(3.5), None]);
    assert_eq!(numbers(&all, "d"), [None, None, Some(7.0), Some(8.0)]);
    let (codes, names) = all.texts("b").unwrap();
    let texts: Vec<&str> = codes
        .iter()
        .map(|code| names[*code as usize].as_str())
        .collect();
    assert_eq!(texts, ["x", "y", "y", "z"]);
    assert!(matches!(&all.column("c").unwrap().values, Values::Time(t) if t[2..] == [i64::MIN; 2]));
    // A column that is text in one table is text in all.
    let mixed = Table::concat(&[table("a\n1\n2\n"), table("a\nx\ny\n")]).unwrap();
    assert_eq!(mixed.texts("a").unwrap().1, ["1", "2", "x", "y"]);
    let times = Table::concat(&[table("a\n2013-01-01\n"), table("a\n5\n")]);
    assert!(matches!(times, Err(Error::Data { .. })));
    assert!(Table::concat(&[]).is_err());
}

#[test]
fn columns_come_from_the_row_with_the_same_keys() {
    let left = table("k,t,x\na,1,10\nb,1,20\na,2,30\n?,1,40\n");
    let right = table("t,k,y,x\n1,a,hot,7\n2,a,cold,8\n1,c,mild,9\n");
    let on = ["k".to_owned(), "t".to_owned()];
    let joined = left.join(&right, &on, "r_").unwrap();
    assert_eq!(joined.names(), ["k", "t", "x", "r_y", "r_x"]);
    assert_eq!(numbers(&joined, "r_x"), [Some(7.0), None, Some(8.0), None]);
    let (codes, names) = joined.texts("r_y").unwrap();
    assert_eq!(names[codes[2] as usize], "cold");
    assert_eq!((codes[1], codes[3]), (MISSING, MISSING));
    // Without a prefix a column that is there already is filled where it has no value.
    let left = table("k,y\na,1\nb,\nc,\n");
    let filled = left.join(&table("k,y\na,5\nb,6\n"), &on[..1], "").unwrap();
    assert_eq!(numbers(&filled, "y"), [Some(1.0), Some(6.0), None]);

    let twice = left.join(&table("k,z\na,5\na,6\n"), &on[..1], "");
    assert!(
        matches!(twice, Err(Error::Data { row: Some(3), .. })),
        "{twice:?}"
    );
    for (right, on) in [
        ("k,z\n1,5\n2,6\n", "k"),
        ("z\n5\n6\n", "k"),
        ("k,y\nb,x\n", "k"),
    ] {
        let wrong = left.join(&table(right), &[on.to_owned()], "");
        assert!(matches!(wrong, Err(Error::Data { .. })), "{right}");
    }
    assert!(left.join(&table("k,z\na,5\n"), &[], "").is_err());
}

#[test]
fn parts_of_the_time_are_features_and_the_target_is_above_a_value() {
    let rows: String = (1..=20)
        .map(|day| format!("2013-01-{day:02} {:02}:30,{day}\n", day % 24))
        .collect();
    let table = table(&format!("when,delay\n{rows}"));
    let options = SchemaOptions {
        target: "delay".to_owned(),
        time: Some("when".to_owned()),
        target_above: Some(15.0),
        features_from_time: true,
        ..SchemaOptions::default()
    };
    let schema = Schema::infer(&table, &options).unwrap();
    assert_eq!(schema.task(), Task::Binary);
    let split = SplitConfig::Stratified {
        valid: 0.2,
        test: 0.2,
        seed: 0,
    };
    let split = split.split(&table, &schema).unwrap();
    let config = PreprocessConfig {
        calendar: vec![CalendarPart::Weekday, CalendarPart::Hour],
        ..PreprocessConfig::default()
    };
    let preprocessor = Preprocessor::fit(&table, &schema, &split, &config).unwrap();
    assert_eq!(preprocessor.classes(), ["up to 15", "above 15"]);
    let rows: Vec<u32> = (0..20).collect();
    let data = preprocessor.transform(&table, Some(&rows), true).unwrap();
    assert_eq!(data.x_num.unwrap().size(), [20, 2]);
    let y: Vec<i64> = Vec::try_from(data.y.unwrap()).unwrap();
    assert_eq!(y, [[0; 15].as_slice(), &[1; 5]].concat());
    let raw = preprocessor.raw(&table, &[0, 5]).unwrap();
    // 2013-01-01 was a Tuesday.
    assert_eq!(
        (&raw[0].values[..], &raw[1].values[..]),
        (&[1.0, 6.0][..], &[1.0, 6.0][..])
    );
}
