//! Lines of the competitions' CSV files, read one at a time, with errors that name file, row and column.

use std::fs::File;
use std::path::{Path, PathBuf};

use densely_core::{Error, Result};

/// A file's lines, each as long as its header; one line at a time is in memory.
pub(crate) struct Lines {
    path: PathBuf,
    /// Names of the columns.
    pub(crate) header: Vec<String>,
    reader: csv::Reader<File>,
    record: csv::StringRecord,
    row: u64,
}

impl Lines {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path))?;
        let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(file);
        let header = reader.headers().map_err(|error| damaged(path, error))?;
        let header = header
            .iter()
            .map(|name| name.trim_start_matches('\u{feff}').trim().to_owned())
            .collect();
        Ok(Self {
            path: path.to_owned(),
            header,
            reader,
            record: csv::StringRecord::new(),
            row: 1,
        })
    }

    /// Places of the columns of these names.
    pub(crate) fn find<const N: usize>(&self, names: [&str; N]) -> Result<[usize; N]> {
        let mut places = [0; N];
        for (place, name) in places.iter_mut().zip(names) {
            *place = self
                .header
                .iter()
                .position(|column| column == name)
                .ok_or_else(|| {
                    let reason =
                        format!("there is no column `{name}`: is it the competition's file?");
                    Error::data(&self.path, reason)
                })?;
        }
        Ok(places)
    }

    /// Whether there is another line; it is in `record` then.
    pub(crate) fn advance(&mut self) -> Result<bool> {
        let more = self
            .reader
            .read_record(&mut self.record)
            .map_err(|error| damaged(&self.path, error))?;
        self.row += 1;
        if more && self.record.len() != self.header.len() {
            return Err(Error::Data {
                path: self.path.clone(),
                row: Some(self.row),
                column: None,
                reason: format!(
                    "has {} fields, the header has {}",
                    self.record.len(),
                    self.header.len()
                ),
            });
        }
        Ok(more)
    }

    pub(crate) fn text(&self, column: usize) -> &str {
        self.record[column].trim()
    }

    pub(crate) fn error(&self, column: usize, reason: impl Into<String>) -> Error {
        Error::Data {
            path: self.path.clone(),
            row: Some(self.row),
            column: Some(self.header[column].clone()),
            reason: reason.into(),
        }
    }

    /// A key that must not be empty.
    pub(crate) fn key(&self, column: usize) -> Result<&str> {
        match self.text(column) {
            "" => Err(self.error(column, "is empty")),
            text => Ok(text),
        }
    }

    /// A finite number.
    pub(crate) fn finite(&self, column: usize) -> Result<f64> {
        let text = self.text(column);
        match text.parse::<f64>() {
            Ok(value) if value.is_finite() => Ok(value),
            _ => Err(self.error(column, format!("expected a number, got `{text}`"))),
        }
    }

    /// A finite number of at least 0.
    pub(crate) fn number(&self, column: usize) -> Result<f64> {
        let text = self.text(column);
        match text.parse::<f64>() {
            Ok(value) if value >= 0.0 && value.is_finite() => Ok(value),
            _ => Err(self.error(
                column,
                format!("expected a number of at least 0, got `{text}`"),
            )),
        }
    }
}

fn damaged(path: &Path, error: csv::Error) -> Error {
    let reason = error.to_string();
    match error.into_kind() {
        csv::ErrorKind::Io(source) => Error::io(path)(source),
        _ => Error::corrupt(path, reason),
    }
}
