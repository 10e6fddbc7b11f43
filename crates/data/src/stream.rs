//! Tables that are read once, piece by piece, for prediction: memory is that of a piece, however long the table is.

use std::borrow::Cow;
use std::io::Read;
use std::path::Path;
#[cfg(feature = "parquet")]
use std::path::PathBuf;

use densely_core::{Error, Result};

use crate::rows::{Cell, RowEncoder, Rows};
use crate::table::CsvLines;

/// Checked rows of a table, and the texts of the columns that go along.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Piece {
    /// The rows.
    pub rows: Rows,
    /// One list per kept column, a text per row.
    pub kept: Vec<Vec<String>>,
}

/// How the text of a stream is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextFormat {
    /// Fields between commas.
    Csv,
    /// Fields between tabs.
    Tsv,
}

impl TextFormat {
    pub(crate) const fn delimiter(self) -> u8 {
        match self {
            Self::Csv => b',',
            Self::Tsv => b'\t',
        }
    }
}

/// A table as an iterator of [`Piece`]s. After an error it ends.
pub struct Pieces {
    source: Source,
    encoder: RowEncoder,
    keep: Vec<String>,
    size: usize,
    ended: bool,
}

enum Source {
    Text {
        lines: Box<CsvLines<Box<dyn Read + Send>>>,
        /// For each field of a line: the encoder's column.
        cells: Vec<Option<usize>>,
        /// Fields of the kept columns.
        kept: Vec<usize>,
    },
    #[cfg(feature = "parquet")]
    Parquet(Box<ParquetPieces>),
}

impl std::fmt::Debug for Pieces {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Pieces")
            .field("keep", &self.keep)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

impl Pieces {
    /// Reads a CSV, TSV or Parquet file in pieces of `size` rows for `encoder`; the columns `keep` go along as texts.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Data`] listing the columns that the table lacks; [`Error::Corrupt`];
    /// [`Error::Unsupported`] for other endings.
    pub fn open(path: &Path, encoder: RowEncoder, keep: &[String], size: usize) -> Result<Self> {
        let ending = path
            .extension()
            .and_then(|e| e.to_str())
            .unwrap_or_default();
        let format = match ending.to_lowercase().as_str() {
            "csv" => TextFormat::Csv,
            "tsv" | "tab" => TextFormat::Tsv,
            "parquet" | "brotli" => return Self::parquet(path, encoder, keep, size),
            _ => {
                return Err(Error::Unsupported {
                    what: format!("reading `{}`", path.display()),
                    hint: "name it .csv, .tsv or .parquet".to_owned(),
                });
            }
        };
        let file = std::fs::File::open(path).map_err(Error::io(path))?;
        Self::text(Box::new(file), path, format, encoder, keep, size)
    }

    /// As [`open`](Self::open), from a text that comes from anywhere; `name` stands in errors.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub fn text(
        from: Box<dyn Read + Send>,
        name: &Path,
        format: TextFormat,
        encoder: RowEncoder,
        keep: &[String],
        size: usize,
    ) -> Result<Self> {
        let lines = Box::new(CsvLines::new(from, name, format.delimiter())?);
        let header = lines.header();
        require(name, header, &encoder, keep)?;
        let cells = header.iter().map(|name| encoder.place(name)).collect();
        let place = |kept: &String| header.iter().position(|name| name == kept);
        let kept = keep.iter().filter_map(place).collect();
        Ok(Self {
            source: Source::Text { lines, cells, kept },
            encoder,
            keep: keep.to_vec(),
            size: size.max(1),
            ended: false,
        })
    }

    #[cfg(not(feature = "parquet"))]
    fn parquet(path: &Path, _: RowEncoder, _: &[String], _: usize) -> Result<Self> {
        Err(Error::Unsupported {
            what: format!("reading `{}`", path.display()),
            hint: "build with the feature `parquet`, or give CSV".to_owned(),
        })
    }

    fn next_piece(&mut self) -> Result<Option<Piece>> {
        match &mut self.source {
            Source::Text { lines, cells, kept } => {
                let mut piece = Piece {
                    rows: Rows::default(),
                    kept: vec![Vec::new(); kept.len()],
                };
                let columns = self.encoder.columns().len();
                while piece.rows.len() < self.size {
                    let Some(record) = lines.next_record()? else {
                        break;
                    };
                    let mut row: Vec<Option<Cell>> = vec![None; columns];
                    for (field, place) in record.iter().zip(cells.iter()) {
                        if let Some(place) = place {
                            row[*place] = Some(Cell::Text(Cow::Borrowed(field)));
                        }
                    }
                    for (texts, place) in piece.kept.iter_mut().zip(kept.iter()) {
                        texts.push(record.get(*place).unwrap_or_default().trim().to_owned());
                    }
                    let pushed = self.encoder.push(&mut piece.rows, &row);
                    pushed.map_err(|bad| Error::Data {
                        path: lines.path().to_owned(),
                        row: Some(lines.line()),
                        column: Some(bad.column),
                        reason: bad.reason,
                    })?;
                }
                Ok((!piece.rows.is_empty()).then_some(piece))
            }
            #[cfg(feature = "parquet")]
            Source::Parquet(pieces) => pieces.next_piece(&self.encoder, &self.keep),
        }
    }
}

impl Iterator for Pieces {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let piece = self.next_piece().transpose();
        self.ended = !matches!(piece, Some(Ok(_)));
        piece
    }
}

/// That all columns are there which are needed or kept.
fn require(path: &Path, names: &[String], encoder: &RowEncoder, keep: &[String]) -> Result<()> {
    let absent = |wanted: &mut dyn Iterator<Item = &str>| -> Vec<String> {
        let known = |name: &str| names.iter().any(|other| other == name);
        wanted
            .filter(|name| !known(name))
            .map(str::to_owned)
            .collect()
    };
    let used = absent(&mut encoder.columns().map(|(name, _)| name));
    if !used.is_empty() {
        let reason = format!(
            "columns that the model was trained on are missing: `{}`",
            used.join("`, `")
        );
        return Err(Error::data(path, reason));
    }
    let kept = absent(&mut keep.iter().map(String::as_str));
    if kept.is_empty() {
        return Ok(());
    }
    let reason = format!("columns to keep are not there: `{}`", kept.join("`, `"));
    Err(Error::data(path, reason))
}

/// A Parquet file, batch by batch.
#[cfg(feature = "parquet")]
struct ParquetPieces {
    path: PathBuf,
    reader: parquet::arrow::arrow_reader::ParquetRecordBatchReader,
    done: u64,
}

#[cfg(feature = "parquet")]
impl Pieces {
    fn parquet(path: &Path, encoder: RowEncoder, keep: &[String], size: usize) -> Result<Self> {
        use parquet::arrow::ProjectionMask;

        let size = size.max(1);
        let reader = crate::table::guarded(path, || {
            let builder = crate::table::parquet_reader(path)?;
            let names: Vec<String> = builder
                .schema()
                .fields()
                .iter()
                .map(|f| f.name().clone())
                .collect();
            require(path, &names, &encoder, keep)?;
            let used = |name: &String| encoder.place(name).is_some() || keep.contains(name);
            let places = (0..names.len()).filter(|at| used(&names[*at]));
            let mask = ProjectionMask::roots(builder.parquet_schema(), places);
            let reader = builder.with_projection(mask).with_batch_size(size).build();
            reader.map_err(|e| Error::corrupt(path, e.to_string()))
        })?;
        Ok(Self {
            source: Source::Parquet(Box::new(ParquetPieces {
                path: path.to_owned(),
                reader,
                done: 0,
            })),
            encoder,
            keep: keep.to_vec(),
            size,
            ended: false,
        })
    }
}

#[cfg(feature = "parquet")]
impl ParquetPieces {
    fn next_piece(&mut self, encoder: &RowEncoder, keep: &[String]) -> Result<Option<Piece>> {
        let path = self.path.clone();
        let batch = crate::table::guarded(&path, || {
            let batch = self.reader.next().transpose();
            batch.map_err(|e| Error::corrupt(&path, e.to_string()))
        })?;
        let Some(batch) = batch else { return Ok(None) };
        let table = crate::Table::from_batches([batch])?;
        let (rows, bad) = encoder.encode(&table)?;
        if let Some((row, bad)) = bad.into_iter().next() {
            return Err(Error::Data {
                path,
                row: Some(self.done + row as u64 + 1),
                column: Some(bad.column),
                reason: bad.reason,
            });
        }
        let kept = keep.iter().map(|name| {
            let (codes, names) = table.texts(name)?;
            let text = |code: &u32| names.get(*code as usize).cloned().unwrap_or_default();
            Ok(codes.iter().map(text).collect())
        });
        self.done += rows.len() as u64;
        Ok(Some(Piece {
            rows,
            kept: kept.collect::<Result<_>>()?,
        }))
    }
}
