//! Chosen columns of a table as Arrow batches, read once from its file: memory is that of a batch, however long the table is.
//!
//! Text files give every column as texts, where an empty field is null; Parquet files give their own types, nested ones too.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_array::builder::StringBuilder;
use arrow_schema::{DataType, Field, Schema};
use densely_core::{Error, Result, registry};

use crate::stream::TextFormat;
use crate::table::CsvLines;

/// Rows of a table, and which they are.
#[derive(Debug, Clone)]
pub struct RowBatch {
    /// The file.
    pub path: Arc<Path>,
    /// The chosen columns, in the order in which they were asked for.
    pub batch: RecordBatch,
    /// For each row the number that a person sees: the line of a text file, else the row counted from 1.
    pub numbers: Vec<u64>,
}

impl RowBatch {
    /// The error of a value in `column` at the zero-based `row` of the batch.
    pub fn error(&self, column: &str, row: usize, reason: impl Into<String>) -> Error {
        Error::Data {
            path: self.path.to_path_buf(),
            row: self.numbers.get(row).copied(),
            column: Some(column.to_owned()),
            reason: reason.into(),
        }
    }

    /// The error of a whole column.
    pub fn column_error(&self, column: &str, reason: impl Into<String>) -> Error {
        Error::column(&*self.path, column, reason)
    }
}

/// A table as an iterator of [`RowBatch`]es. After an error it ends.
pub struct Batches {
    path: Arc<Path>,
    size: usize,
    schema: Arc<Schema>,
    source: Source,
    ended: bool,
}

enum Source {
    Text {
        lines: Box<CsvLines<File>>,
        /// The field of each column.
        places: Vec<usize>,
    },
    #[cfg(feature = "parquet")]
    Parquet {
        reader: Box<parquet::arrow::arrow_reader::ParquetRecordBatchReader>,
        done: u64,
    },
}

impl std::fmt::Debug for Batches {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Batches")
            .field("path", &self.path)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

/// The format of a table, by its file's ending.
enum Format {
    Text(TextFormat),
    Parquet,
}

fn format_of(path: &Path) -> Result<Format> {
    let ending = path.extension().and_then(|ending| ending.to_str());
    match ending.unwrap_or_default().to_lowercase().as_str() {
        "csv" => Ok(Format::Text(TextFormat::Csv)),
        "tsv" | "tab" => Ok(Format::Text(TextFormat::Tsv)),
        "parquet" | "brotli" => Ok(Format::Parquet),
        _ => Err(Error::Unsupported {
            what: format!("reading `{}`", path.display()),
            hint: "name it .csv, .tsv or .parquet".to_owned(),
        }),
    }
}

fn lines_of(path: &Path, format: TextFormat) -> Result<CsvLines<File>> {
    let file = File::open(path).map_err(Error::io(path))?;
    CsvLines::new(file, path, format.delimiter())
}

/// Names of the columns of a table, in the file's order.
///
/// # Errors
/// [`Error::Io`]; [`Error::Corrupt`]; [`Error::Unsupported`] for other endings, and for Parquet without the feature `parquet`.
pub fn column_names(path: &Path) -> Result<Vec<String>> {
    match format_of(path)? {
        Format::Text(format) => Ok(lines_of(path, format)?.header().to_vec()),
        Format::Parquet => parquet_names(path),
    }
}

impl Batches {
    /// Reads the `columns` of a CSV, TSV or Parquet file in batches of `size` rows.
    ///
    /// # Errors
    /// Those of [`column_names`]; [`Error::Data`] for a column that is not there, with the nearest names.
    pub fn open(path: &Path, columns: &[String], size: usize) -> Result<Self> {
        let names = column_names(path)?;
        let places: Vec<usize> = columns
            .iter()
            .map(|column| place(path, &names, column))
            .collect::<Result<_>>()?;
        match format_of(path)? {
            Format::Text(format) => {
                let fields = columns
                    .iter()
                    .map(|name| Field::new(name, DataType::Utf8, true));
                Ok(Self {
                    path: path.into(),
                    size: size.max(1),
                    schema: Arc::new(Schema::new(fields.collect::<Vec<_>>())),
                    source: Source::Text {
                        lines: Box::new(lines_of(path, format)?),
                        places,
                    },
                    ended: false,
                })
            }
            Format::Parquet => Self::parquet(path, columns, &places, size.max(1)),
        }
    }

    fn next_batch(&mut self) -> Result<Option<RowBatch>> {
        let mut numbers = Vec::new();
        let batch = match &mut self.source {
            Source::Text { lines, places } => {
                let mut builders: Vec<StringBuilder> =
                    places.iter().map(|_| StringBuilder::new()).collect();
                while numbers.len() < self.size {
                    let Some(record) = lines.next_record()? else {
                        break;
                    };
                    for (builder, place) in builders.iter_mut().zip(places.iter()) {
                        match record.get(*place).unwrap_or_default() {
                            "" => builder.append_null(),
                            text => builder.append_value(text),
                        }
                    }
                    numbers.push(lines.line());
                }
                if numbers.is_empty() {
                    return Ok(None);
                }
                let arrays = builders
                    .iter_mut()
                    .map(|builder| Arc::new(builder.finish()) as arrow_array::ArrayRef);
                RecordBatch::try_new(Arc::clone(&self.schema), arrays.collect())
                    .map_err(|e| Error::corrupt(&*self.path, e.to_string()))?
            }
            #[cfg(feature = "parquet")]
            Source::Parquet { reader, done } => {
                let path = Arc::clone(&self.path);
                let wrong = |e: arrow_schema::ArrowError| Error::corrupt(&*path, e.to_string());
                let batch = crate::table::guarded(&path, || {
                    let batch = reader.next().transpose().map_err(wrong)?;
                    let Some(batch) = batch else { return Ok(None) };
                    // The reader gives columns in the file's order.
                    let places = self
                        .schema
                        .fields()
                        .iter()
                        .map(|field| batch.schema().index_of(field.name()));
                    let places: Vec<usize> = places
                        .collect::<std::result::Result<_, _>>()
                        .map_err(wrong)?;
                    batch.project(&places).map(Some).map_err(wrong)
                })?;
                let Some(batch) = batch else { return Ok(None) };
                let rows = batch.num_rows() as u64;
                numbers = (*done + 1..=*done + rows).collect();
                *done += rows;
                batch
            }
        };
        Ok(Some(RowBatch {
            path: Arc::clone(&self.path),
            batch,
            numbers,
        }))
    }
}

impl Iterator for Batches {
    type Item = Result<RowBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let batch = self.next_batch().transpose();
        self.ended = !matches!(batch, Some(Ok(_)));
        batch
    }
}

fn place(path: &Path, names: &[String], column: &str) -> Result<usize> {
    let mut places = (0..names.len()).filter(|at| names[*at] == column);
    match (places.next(), places.next()) {
        (Some(at), None) => Ok(at),
        (Some(_), Some(_)) => Err(Error::column(
            path,
            column,
            "two columns have this name; rename one",
        )),
        (None, _) => {
            let nearest = registry::nearest(names.iter().map(String::as_str), column).join("`, `");
            Err(Error::data(
                path,
                format!("no column `{column}`; nearest: `{nearest}`"),
            ))
        }
    }
}

#[cfg(feature = "parquet")]
fn parquet_names(path: &Path) -> Result<Vec<String>> {
    crate::table::guarded(path, || {
        let builder = crate::table::parquet_reader(path)?;
        let fields = builder.schema().fields().iter();
        Ok(fields.map(|field| field.name().clone()).collect())
    })
}

#[cfg(feature = "parquet")]
impl Batches {
    fn parquet(path: &Path, columns: &[String], places: &[usize], size: usize) -> Result<Self> {
        use parquet::arrow::ProjectionMask;

        let (reader, fields) = crate::table::guarded(path, || {
            let builder = crate::table::parquet_reader(path)?;
            let fields: Vec<Field> = places
                .iter()
                .map(|at| builder.schema().field(*at).clone())
                .collect();
            let mask = ProjectionMask::roots(builder.parquet_schema(), places.iter().copied());
            let reader = builder.with_projection(mask).with_batch_size(size).build();
            let reader = reader.map_err(|e| Error::corrupt(path, e.to_string()))?;
            Ok((Box::new(reader), fields))
        })?;
        debug_assert_eq!(columns.len(), fields.len());
        Ok(Self {
            path: path.into(),
            size,
            schema: Arc::new(Schema::new(fields)),
            source: Source::Parquet { reader, done: 0 },
            ended: false,
        })
    }
}

#[cfg(not(feature = "parquet"))]
fn parquet_names(path: &Path) -> Result<Vec<String>> {
    Err(unsupported(path))
}

#[cfg(not(feature = "parquet"))]
impl Batches {
    fn parquet(path: &Path, _: &[String], _: &[usize], _: usize) -> Result<Self> {
        Err(unsupported(path))
    }
}

#[cfg(not(feature = "parquet"))]
fn unsupported(path: &Path) -> Error {
    Error::Unsupported {
        what: format!("reading `{}`", path.display()),
        hint: "build with the feature `parquet`, or give CSV".to_owned(),
    }
}
