//! Results as tables: CSV, or Parquet with the feature `parquet`.

use std::path::Path;

use densely_core::{Error, Result, fs};

/// A column of a result.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Numbers.
    Numbers(Vec<f64>),
    /// Texts.
    Texts(Vec<String>),
}

/// Writes columns of equal length to `path`, atomically; its ending chooses CSV, TSV or Parquet.
///
/// # Errors
/// [`Error::Io`]; [`Error::Unsupported`] for other endings, and for Parquet without the feature `parquet`.
pub fn write_columns(path: &Path, columns: &[(String, Output)]) -> Result<()> {
    match path.extension().and_then(|e| e.to_str()) {
        Some("csv") => write_csv(path, b',', columns),
        Some("tsv") => write_csv(path, b'\t', columns),
        Some("parquet") => write_parquet(path, columns),
        _ => Err(Error::Unsupported {
            what: format!("writing `{}`", path.display()),
            hint: "name it .csv, .tsv or .parquet".to_owned(),
        }),
    }
}

fn write_csv(path: &Path, delimiter: u8, columns: &[(String, Output)]) -> Result<()> {
    fs::write_with(path, |file| {
        let mut writer = csv::WriterBuilder::new()
            .delimiter(delimiter)
            .from_writer(file);
        let wrong = |e: csv::Error| Error::Io {
            path: path.to_owned(),
            source: e.into(),
        };
        writer
            .write_record(columns.iter().map(|(name, _)| name))
            .map_err(wrong)?;
        let rows = columns.first().map_or(0, |(_, output)| match output {
            Output::Numbers(values) => values.len(),
            Output::Texts(values) => values.len(),
        });
        for row in 0..rows {
            let field = |(_, output): &(String, Output)| match output {
                Output::Numbers(values) => values[row].to_string(),
                Output::Texts(values) => values[row].clone(),
            };
            writer
                .write_record(columns.iter().map(field))
                .map_err(wrong)?;
        }
        writer.flush().map_err(Error::io(path))
    })
}

#[cfg(feature = "parquet")]
fn write_parquet(path: &Path, columns: &[(String, Output)]) -> Result<()> {
    use std::io::Write;

    use arrow_array::{ArrayRef, Float64Array, RecordBatch, StringArray};
    use parquet::arrow::ArrowWriter;
    use parquet::basic::Compression;
    use parquet::file::properties::WriterProperties;
    use std::sync::Arc;

    let array = |output: &Output| -> ArrayRef {
        match output {
            Output::Numbers(values) => Arc::new(Float64Array::from(values.clone())),
            Output::Texts(values) => Arc::new(StringArray::from_iter_values(values)),
        }
    };
    let wrong = |text: String| Error::corrupt(path, text);
    let batch = RecordBatch::try_from_iter(columns.iter().map(|(n, o)| (n.as_str(), array(o))))
        .map_err(|e| wrong(e.to_string()))?;
    // Into memory first, so that a full disk is an error of the atomic write and keeps its name.
    let mut bytes = Vec::new();
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .build();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties))
        .map_err(|e| wrong(e.to_string()))?;
    writer.write(&batch).map_err(|e| wrong(e.to_string()))?;
    writer.close().map_err(|e| wrong(e.to_string()))?;
    fs::write_with(path, |file| file.write_all(&bytes).map_err(Error::io(path)))
}

#[cfg(not(feature = "parquet"))]
fn write_parquet(path: &Path, _: &[(String, Output)]) -> Result<()> {
    Err(Error::Unsupported {
        what: format!("writing `{}`", path.display()),
        hint: "build with the feature `parquet`, or name it .csv".to_owned(),
    })
}
