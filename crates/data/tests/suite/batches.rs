//! Tables as Arrow batches of chosen columns.

use densely_core::Result;
use densely_data::{Batches, batches};
#[cfg(feature = "parquet")]
use densely_data::{Output, write_columns};
use tempfile::TempDir;

#[test]
fn chosen_columns_come_in_pieces_with_the_rows_numbers() -> Result<()> {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("a.csv");
    std::fs::write(&path, "x,y,z\n1,a,\n\"2\n2\",b,q\n3,,r\n").expect("written");
    assert_eq!(batches::column_names(&path)?, ["x", "y", "z"]);
    let wanted = ["z".to_owned(), "x".to_owned()];
    let pieces: Vec<_> = Batches::open(&path, &wanted, 2)?.collect::<Result<_>>()?;
    let numbers: Vec<_> = pieces.iter().map(|piece| piece.numbers.clone()).collect();
    // A value with a line break makes the next row's line later.
    assert_eq!(numbers, [vec![2, 3], vec![5]]);
    assert_eq!(pieces[0].batch.schema().field(0).name(), "z");
    assert_eq!(pieces[0].batch.column(0).null_count(), 1);
    let error = pieces[0].error("x", 1, "is wrong").to_string();
    assert!(
        error.ends_with("a.csv, row 3, column `x`: is wrong"),
        "{error}"
    );
    let unknown = Batches::open(&path, &["xx".to_owned()], 2).expect_err("no such column");
    assert!(
        unknown.to_string().contains("no column `xx`; nearest: `x`"),
        "{unknown}"
    );
    let short = folder.path().join("b.csv");
    std::fs::write(&short, "x,y\n1,2\n3\n").expect("written");
    let mut pieces = Batches::open(&short, &["x".to_owned()], 10)?;
    let error = pieces
        .next()
        .expect("an error")
        .expect_err("a short row")
        .to_string();
    assert!(error.contains("row 3: expected 2 fields"), "{error}");
    assert!(pieces.next().is_none());
    assert!(batches::column_names(&folder.path().join("c.json")).is_err());
    Ok(())
}

#[cfg(feature = "parquet")]
#[test]
fn parquet_gives_the_columns_in_the_order_they_were_asked_for() -> Result<()> {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("a.parquet");
    let columns = [
        ("x".to_owned(), Output::Numbers(vec![1.0, 2.0, 3.0])),
        (
            "y".to_owned(),
            Output::Texts(["a", "b", "c"].map(str::to_owned).to_vec()),
        ),
    ];
    write_columns(&path, &columns)?;
    let wanted = ["y".to_owned(), "x".to_owned()];
    let pieces: Vec<_> = Batches::open(&path, &wanted, 2)?.collect::<Result<_>>()?;
    assert_eq!(pieces.len(), 2);
    assert_eq!(pieces[1].numbers, [3]);
    assert_eq!(pieces[1].batch.schema().field(0).name(), "y");
    std::fs::write(&path, b"PAR1 no more").expect("written");
    assert!(Batches::open(&path, &wanted, 2).is_err());
    Ok(())
}
