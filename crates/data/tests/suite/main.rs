//! Tests through the crate's public doors: the quantile transform against scikit-learn, splits and readers by property.
#![expect(
    clippy::unwrap_used,
    clippy::format_collect,
    clippy::float_cmp,
    reason = "tests"
)]

mod batches;
mod joins;
#[cfg(feature = "image")]
mod picture_files;
mod picture_sets;
mod preprocess;
mod resizing;
mod rows;
mod splits;
mod tables;

use std::path::PathBuf;

use densely_data::{Schema, SchemaOptions, Table};

/// A folder with one file in it.
struct TableFile {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl TableFile {
    fn new(name: &str, bytes: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        Self {
            _folder: folder,
            path,
        }
    }
}

fn table(csv: &str) -> Table {
    Table::open(&TableFile::new("t.csv", csv.as_bytes()).path).unwrap()
}

fn schema(table: &Table, target: &str) -> Schema {
    let options = SchemaOptions {
        target: target.to_owned(),
        ..SchemaOptions::default()
    };
    Schema::infer(table, &options).unwrap()
}
