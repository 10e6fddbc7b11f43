//! Rows one by one: the features of a table of the same rows, bit for bit, and each bad cell by its name.

use std::borrow::Cow;

use densely_data::rows::{BadCell, Cell, ColumnKind, Rows};
use densely_data::{NumericTransform, PreprocessConfig, Preprocessor, RowEncoder, Split};
use densely_testkit::assert_bits;

use crate::{schema, table};

const CSV: &str = "size,kind,yes,price\n1,hut,0,10.5\n2,flat,1,20.5\n,,0,30.5\n4.25,hut,1,40.5\n-7e3,?,0,1\n1e300,castle,1,60\n";

fn fitted(numeric: NumericTransform) -> Preprocessor {
    let table = table(CSV);
    let split = Split {
        train: vec![0, 1, 2, 3],
        valid: vec![4],
        test: vec![5],
    };
    let config = PreprocessConfig {
        numeric,
        ..PreprocessConfig::default()
    };
    Preprocessor::fit(&table, &schema(&table, "price"), &split, &config).unwrap()
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "a row takes cells that may not be there"
)]
fn text(text: &str) -> Option<Cell<'_>> {
    Some(Cell::Text(Cow::Borrowed(text)))
}

fn refused(encoder: &RowEncoder, cells: &[Option<Cell>]) -> BadCell {
    let mut rows = Rows::default();
    let good = [Some(Cell::Number(1.0)), text("0"), text("hut")];
    encoder.push(&mut rows, &good).unwrap();
    let before = rows.clone();
    let bad = encoder.push(&mut rows, cells).unwrap_err();
    assert_eq!(rows, before, "a bad row leaves a trace");
    bad
}

#[test]
fn rows_give_the_features_of_their_table() {
    for numeric in [
        NumericTransform::default(),
        NumericTransform::Standard,
        NumericTransform::None,
    ] {
        let preprocessor = fitted(numeric);
        let encoder = preprocessor.row_encoder();
        let (rows, bad) = encoder.encode(&table(CSV)).unwrap();
        assert!(bad.is_empty());
        let expected = preprocessor.transform(&table(CSV), None, false).unwrap();
        let features = preprocessor.features(&rows).unwrap();
        assert_bits(&features.x_num.unwrap(), expected.x_num.as_ref().unwrap());
        assert_bits(&features.x_cat.unwrap(), expected.x_cat.as_ref().unwrap());

        // One at a time and joined: the same rows.
        let cells = [
            [Some(Cell::Number(1.0)), text("0"), text("hut")],
            [text(" 2.0 "), Some(Cell::Number(1.0)), text(" flat")],
            [Some(Cell::Missing), text("0"), text("")],
            [text("4.25"), Some(Cell::Number(1.0)), text("hut")],
            [Some(Cell::Number(-7e3)), text("0"), text("?")],
            [Some(Cell::Number(1e300)), text("1"), text("castle")],
        ];
        let mut joined = Rows::default();
        for cells in &cells {
            let mut one = Rows::default();
            encoder.push(&mut one, cells).unwrap();
            joined.append(&one);
        }
        assert_eq!(joined.len(), 6);
        let features = preprocessor.features(&joined).unwrap();
        assert_bits(&features.x_num.unwrap(), &expected.x_num.unwrap());
        assert_bits(&features.x_cat.unwrap(), &expected.x_cat.unwrap());
    }
}

#[test]
fn an_encoder_says_what_it_takes() {
    let encoder = fitted(NumericTransform::default()).row_encoder();
    let kind = |categories, missing| ColumnKind::Categorical {
        categories,
        missing,
    };
    let columns: Vec<(&str, ColumnKind)> = encoder.columns().collect();
    assert_eq!(
        columns,
        [
            ("size", ColumnKind::Numeric),
            ("yes", kind(2, false)),
            ("kind", kind(2, true))
        ]
    );
    assert_eq!(encoder.place("kind"), Some(2));
    assert_eq!(encoder.place("price"), None);
}

#[test]
fn bad_cells_are_named() {
    let encoder = fitted(NumericTransform::default()).row_encoder();
    let bad = refused(&encoder, &[text("big"), text("0"), text("hut")]);
    assert_eq!(bad.column, "size");
    assert!(bad.reason.contains("expected a number, got `big`"));
    let bad = refused(&encoder, &[Some(Cell::Number(1.0)), None, text("hut")]);
    assert_eq!(bad.column, "yes");
    assert!(bad.reason.contains("not there"));
    for infinite in [Some(Cell::Number(f64::NEG_INFINITY)), text("inf")] {
        let bad = refused(&encoder, &[infinite, text("0"), text("hut")]);
        assert!(bad.reason.contains("infinite"), "{bad:?}");
    }
    let bad = refused(&encoder, &[]);
    assert_eq!(bad.column, "size");
    let long = "ä".repeat(1000);
    let bad = refused(&encoder, &[text(&long), text("0"), text("hut")]);
    assert!(bad.reason.len() < 150, "{}", bad.reason);

    let (rows, bad) = encoder
        .encode(&table("kind,yes,size\nhut,0,1\nhut,0,inf\nhut,0,3\n"))
        .unwrap();
    assert_eq!(rows.len(), 2);
    assert_eq!((bad.len(), bad[0].0), (1, 1));
    let error = encoder.encode(&table("kind\nhut\n")).unwrap_err();
    assert!(error.to_string().contains("`size`, `yes`"), "{error}");
}

#[test]
fn rows_of_another_model_are_refused() {
    let preprocessor = fitted(NumericTransform::default());
    let mut other = table("a,b,y\n1,2,3\n4,5,6.5\n7,8,9\n10,11,12\n");
    let split = Split {
        train: vec![0, 1, 2],
        valid: vec![3],
        test: vec![],
    };
    let schema = schema(&other, "y");
    let config = PreprocessConfig::default();
    let stranger = Preprocessor::fit(&other, &schema, &split, &config).unwrap();
    other = table("a,b\n1,2\n");
    let (rows, _) = stranger.row_encoder().encode(&other).unwrap();
    assert!(preprocessor.features(&rows).is_err());
    assert_eq!(stranger.features(&rows).unwrap().len(), 1);
}
