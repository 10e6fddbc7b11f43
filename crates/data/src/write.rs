//! Results as tables: CSV, or Parquet with the feature `parquet`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::{ArrayRef, Float64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use densely_core::{Error, Result, fs};

/// A column of a result.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Numbers.
    Numbers(Vec<f64>),
    /// Texts.
    Texts(Vec<String>),
    /// Times.
    Times {
        /// Microseconds since 1970, in universal time where there is a zone.
        micros: Vec<i64>,
        /// What a text file shows.
        texts: Vec<String>,
        /// `UTC`, or a name such as `Europe/Berlin`; `None` where times stand without a zone.
        zone: Option<String>,
    },
}

impl Output {
    fn len(&self) -> usize {
        match self {
            Self::Numbers(values) => values.len(),
            Self::Texts(texts) | Self::Times { texts, .. } => texts.len(),
        }
    }

    /// Adds the rows of `more`.
    ///
    /// # Errors
    /// [`Error::Data`] when it is a column of another kind.
    pub fn append(&mut self, more: Self) -> Result<()> {
        match (self, more) {
            (Self::Numbers(all), Self::Numbers(more)) => all.extend(more),
            (Self::Texts(all), Self::Texts(more)) => all.extend(more),
            (
                Self::Times {
                    micros,
                    texts,
                    zone,
                },
                Self::Times {
                    micros: later,
                    texts: more,
                    zone: same,
                },
            ) if *zone == same => {
                micros.extend(later);
                texts.extend(more);
            }
            _ => return Err(Error::data("", "pieces of a column differ in their kind")),
        }
        Ok(())
    }
}

/// Columns of equal length as an Arrow batch: float64, utf8, and timestamps of microseconds.
///
/// # Errors
/// [`Error::Data`] when the columns do not make a batch.
pub fn batch_of(columns: &[(String, Output)]) -> Result<RecordBatch> {
    let array = |output: &Output| -> ArrayRef {
        match output {
            Output::Numbers(values) => Arc::new(Float64Array::from(values.clone())),
            Output::Texts(values) => Arc::new(StringArray::from_iter_values(values)),
            Output::Times { micros, zone, .. } => {
                let times = TimestampMicrosecondArray::from(micros.clone());
                Arc::new(times.with_timezone_opt(zone.clone()))
            }
        }
    };
    RecordBatch::try_from_iter(columns.iter().map(|(n, o)| (n.as_str(), array(o))))
        .map_err(|e| Error::data("", e.to_string()))
}

/// How a result is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Fields between commas.
    Csv,
    /// Fields between tabs.
    Tsv,
    /// Parquet.
    Parquet,
}

impl Format {
    /// The format that a file's ending names.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for other endings, and for Parquet without the feature `parquet`.
    pub fn of(path: &Path) -> Result<Self> {
        let unsupported = |hint: &str| {
            Err(Error::Unsupported {
                what: format!("writing `{}`", path.display()),
                hint: hint.to_owned(),
            })
        };
        match path.extension().and_then(|e| e.to_str()) {
            Some("csv") => Ok(Self::Csv),
            Some("tsv") => Ok(Self::Tsv),
            Some("parquet") if cfg!(feature = "parquet") => Ok(Self::Parquet),
            Some("parquet") => unsupported("build with the feature `parquet`, or name it .csv"),
            _ => unsupported("name it .csv, .tsv or .parquet"),
        }
    }
}

/// Writes a result piece by piece; every piece has the same columns.
pub struct Writer<W: Write + Send> {
    path: PathBuf,
    kind: Kind<W>,
}

enum Kind<W: Write + Send> {
    Text {
        writer: Box<csv::Writer<W>>,
        begun: bool,
    },
    #[cfg(feature = "parquet")]
    Parquet(Option<W>),
    #[cfg(feature = "parquet")]
    Begun(Box<parquet::arrow::ArrowWriter<W>>),
}

impl<W: Write + Send> std::fmt::Debug for Writer<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Writer")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl<W: Write + Send> Writer<W> {
    /// Writes to `into`; `path` stands in errors.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for Parquet without the feature `parquet`.
    pub fn new(into: W, path: &Path, format: Format) -> Result<Self> {
        let text = |into, delimiter| Kind::Text {
            writer: Box::new(
                csv::WriterBuilder::new()
                    .delimiter(delimiter)
                    .from_writer(into),
            ),
            begun: false,
        };
        let kind = match format {
            Format::Csv => text(into, b','),
            Format::Tsv => text(into, b'\t'),
            #[cfg(feature = "parquet")]
            Format::Parquet => Kind::Parquet(Some(into)),
            #[cfg(not(feature = "parquet"))]
            Format::Parquet => {
                return Err(Error::Unsupported {
                    what: format!("writing `{}`", path.display()),
                    hint: "build with the feature `parquet`, or name it .csv".to_owned(),
                });
            }
        };
        Ok(Self {
            path: path.to_owned(),
            kind,
        })
    }

    /// Adds rows: columns of equal length.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Data`] and [`Error::Corrupt`] when the columns are not of equal length or not those of the piece before.
    pub fn write(&mut self, columns: &[(String, Output)]) -> Result<()> {
        match &mut self.kind {
            Kind::Text { writer, begun } => {
                write_text(&self.path, writer, columns, !std::mem::replace(begun, true))
            }
            #[cfg(feature = "parquet")]
            Kind::Parquet(into) => {
                let batch = batch_of(columns)?;
                let Some(into) = into.take() else {
                    return Err(Error::corrupt(&self.path, "an earlier write failed"));
                };
                let mut writer = parquet_writer(&self.path, into, &batch)?;
                writer
                    .write(&batch)
                    .map_err(|e| parquet_error(&self.path, e))?;
                self.kind = Kind::Begun(Box::new(writer));
                Ok(())
            }
            #[cfg(feature = "parquet")]
            Kind::Begun(writer) => {
                let batch = batch_of(columns)?;
                writer
                    .write(&batch)
                    .map_err(|e| parquet_error(&self.path, e))
            }
        }
    }

    /// Writes what is still held back. Without it a file is not whole.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn finish(self) -> Result<()> {
        match self.kind {
            Kind::Text { mut writer, .. } => writer.flush().map_err(Error::io(&self.path)),
            #[cfg(feature = "parquet")]
            Kind::Parquet(_) => Err(Error::data(&self.path, "there is no row to write")),
            #[cfg(feature = "parquet")]
            Kind::Begun(writer) => writer
                .close()
                .map(|_| ())
                .map_err(|e| parquet_error(&self.path, e)),
        }
    }
}

/// Writes columns of equal length to `path`, atomically; its ending chooses CSV, TSV or Parquet.
///
/// # Errors
/// [`Error::Io`]; those of [`Format::of`].
pub fn write_columns(path: &Path, columns: &[(String, Output)]) -> Result<()> {
    let format = Format::of(path)?;
    fs::write_with(path, |file| {
        let mut writer = Writer::new(file, path, format)?;
        writer.write(columns)?;
        writer.finish()
    })
}

fn write_text<W: Write>(
    path: &Path,
    writer: &mut csv::Writer<W>,
    columns: &[(String, Output)],
    header: bool,
) -> Result<()> {
    // The system's own error, so that a closed pipe is known as one.
    let wrong = |e: csv::Error| match e.into_kind() {
        csv::ErrorKind::Io(source) => Error::io(path)(source),
        other => Error::corrupt(path, format!("{other:?}")),
    };
    if header {
        let names = columns.iter().map(|(name, _)| name);
        writer.write_record(names).map_err(wrong)?;
    }
    let rows = columns.first().map_or(0, |(_, output)| output.len());
    let mut number = String::new();
    for row in 0..rows {
        for (_, output) in columns {
            let field = match output {
                Output::Numbers(values) => {
                    number.clear();
                    // A text in memory takes every number.
                    let _ =
                        std::fmt::Write::write_fmt(&mut number, format_args!("{}", values[row]));
                    &number
                }
                Output::Texts(texts) | Output::Times { texts, .. } => &texts[row],
            };
            writer.write_field(field).map_err(wrong)?;
        }
        writer.write_record(None::<&[u8]>).map_err(wrong)?;
    }
    Ok(())
}

#[cfg(feature = "parquet")]
fn parquet_writer<W: Write + Send>(
    path: &Path,
    into: W,
    batch: &RecordBatch,
) -> Result<parquet::arrow::ArrowWriter<W>> {
    // What a group holds stays in memory until the group is whole: a wide table gets shorter ones.
    let rows = (1_usize << 24) / batch.num_columns().max(1);
    let properties = parquet::file::properties::WriterProperties::builder()
        .set_compression(parquet::basic::Compression::SNAPPY)
        .set_max_row_group_row_count(Some(rows.clamp(1 << 10, 1 << 17)))
        .build();
    parquet::arrow::ArrowWriter::try_new(into, batch.schema(), Some(properties))
        .map_err(|e| parquet_error(path, e))
}

/// A full disk keeps its own name.
#[cfg(feature = "parquet")]
fn parquet_error(path: &Path, error: parquet::errors::ParquetError) -> Error {
    match error {
        parquet::errors::ParquetError::External(source) => match source.downcast() {
            Ok(source) => Error::io(path)(*source),
            Err(other) => Error::corrupt(path, other.to_string()),
        },
        other => Error::corrupt(path, other.to_string()),
    }
}
