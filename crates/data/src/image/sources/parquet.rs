//! Pictures in Parquet files, as data sets on Hugging Face have them.

use std::path::{Path, PathBuf};

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{Array, ArrayRef, LargeBinaryArray, RecordBatch};
use arrow_cast::cast;
use arrow_schema::DataType;
use densely_core::{Error, Result};
use parquet::arrow::ProjectionMask;
use parquet::file::metadata::ParquetMetaData;

use super::{AnyImage, Labels, Pictures, numbered, out_of_range};
use crate::image::{ReadOptions, decode_with};
use crate::table::{guarded, parquet_reader};

/// Rows that are unpacked at a time.
const ROWS: usize = 256;

/// Pictures of one or several Parquet files. Their encoded bytes stay in memory and are decoded when asked for.
#[derive(Debug, Clone)]
pub struct ParquetPictures {
    parts: Vec<Part>,
    labels: Labels,
    read: ReadOptions,
}

#[derive(Debug, Clone)]
struct Part {
    path: PathBuf,
    /// Number of the first picture among all, and among those of its file.
    first: usize,
    first_in_file: usize,
    bytes: LargeBinaryArray,
}

impl ParquetPictures {
    /// Reads `image_column`, which holds encoded files as `binary` or in the field `bytes` of a struct, and the whole
    /// numbers of `label_column`. Classes have the names that the file gives them in Hugging Face's metadata, or
    /// numbers.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be read; [`Error::Corrupt`] when it is no whole Parquet file; [`Error::Data`]
    /// for a column that is not there or of another type, a row without picture or label, and labels that have no class.
    pub fn open(path: &Path, image_column: &str, label_column: Option<&str>) -> Result<Self> {
        Self::open_all(&[path], image_column, label_column)
    }

    /// Reads several files of one data set, one behind the other; see [`open`](Self::open). Where files name the classes, all
    /// must name them alike.
    ///
    /// # Errors
    /// Those of [`open`](Self::open); [`Error::Data`] for a file with other names of classes than one before it;
    /// [`Error::Config`] when there is no file.
    pub fn open_all<P: AsRef<Path>>(
        paths: &[P],
        image_column: &str,
        label_column: Option<&str>,
    ) -> Result<Self> {
        let mut set = Self {
            parts: Vec::new(),
            labels: Labels::default(),
            read: ReadOptions::default(),
        };
        let mut classes: Option<Vec<String>> = None;
        for path in paths.iter().map(AsRef::as_ref) {
            let names = guarded(path, || set.add(path, image_column, label_column))?;
            if let (Some(first), Some(names)) = (&classes, &names)
                && first != names
            {
                return Err(other_classes(path, first, names));
            }
            classes = classes.or(names);
        }
        let Some(first) = paths.first() else {
            return Err(Error::config("paths", "expected at least one file"));
        };
        if set.is_empty() {
            return Err(Error::data(
                first.as_ref(),
                "holds no row; give a file with pictures",
            ));
        }
        if label_column.is_some() {
            let Labels { labels, .. } = set.labels;
            set.labels = Labels::numbered(labels);
        }
        match classes {
            Some(classes) => set.with_classes(classes),
            None => Ok(set),
        }
    }

    /// The same with other names for the classes, in the order of the labels.
    ///
    /// # Errors
    /// [`Error::Data`] when a label has no name.
    pub fn with_classes(self, classes: Vec<String>) -> Result<Self> {
        let path = self.parts.first().map(|part| part.path.clone());
        let labels = self.labels.named(&path.unwrap_or_default(), classes)?;
        Ok(Self { labels, ..self })
    }

    /// The same with other limits of each picture.
    #[must_use]
    pub fn with_read_options(self, read: ReadOptions) -> Self {
        Self { read, ..self }
    }

    /// Adds the rows of a file; returns the names of its classes where it has them.
    fn add(
        &mut self,
        path: &Path,
        image_column: &str,
        label_column: Option<&str>,
    ) -> Result<Option<Vec<String>>> {
        let builder = parquet_reader(path)?;
        let schema = builder.schema();
        let place = |name: &str| {
            schema.index_of(name).map_err(|_| {
                let names: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
                let reason = format!("no such column; there are `{}`", names.join("`, `"));
                Error::column(path, name, reason)
            })
        };
        let mut places = vec![place(image_column)?];
        places.extend(label_column.map(place).transpose()?);
        let classes = label_column.and_then(|name| class_names(builder.metadata(), name));
        let mask = ProjectionMask::roots(builder.parquet_schema(), places);
        let reader = builder.with_projection(mask).with_batch_size(ROWS).build();
        let reader = reader.map_err(|e| Error::corrupt(path, e.to_string()))?;
        let mut row = 0;
        for batch in reader {
            let batch = batch.map_err(|e| Error::corrupt(path, e.to_string()))?;
            let column = Column { path, row };
            let bytes = column.pictures(&batch, image_column)?;
            if let Some(name) = label_column {
                self.labels.labels.extend(column.labels(&batch, name)?);
            }
            let part = Part {
                path: path.to_owned(),
                first: self.len(),
                first_in_file: row,
                bytes,
            };
            row += batch.num_rows();
            self.parts.push(part);
        }
        Ok(classes)
    }
}

impl Pictures for ParquetPictures {
    fn len(&self) -> usize {
        self.parts
            .last()
            .map_or(0, |part| part.first + part.bytes.len())
    }

    fn picture(&self, i: usize) -> Result<AnyImage> {
        let part = self.part(i).ok_or_else(|| out_of_range(i, self.len()))?;
        let bytes = part.bytes.value(i - part.first);
        let name = numbered(&part.path, i - part.first + part.first_in_file);
        decode_with(bytes, &name, &self.read)
    }

    fn label(&self, i: usize) -> Option<usize> {
        self.labels.get(i)
    }

    fn name(&self, i: usize) -> String {
        match self.part(i) {
            None => format!("picture {}", i + 1),
            Some(part) => {
                let name = numbered(&part.path, i - part.first + part.first_in_file);
                name.display().to_string()
            }
        }
    }

    fn classes(&self) -> &[String] {
        &self.labels.classes
    }
}

impl ParquetPictures {
    fn part(&self, i: usize) -> Option<&Part> {
        let after = self.parts.partition_point(|part| part.first <= i);
        let part = self.parts.get(after.checked_sub(1)?)?;
        (i - part.first < part.bytes.len()).then_some(part)
    }
}

/// Where a batch stands, for errors.
#[derive(Clone, Copy)]
struct Column<'a> {
    path: &'a Path,
    row: usize,
}

impl Column<'_> {
    fn wrong(self, name: &str, row: Option<usize>, reason: impl Into<String>) -> Error {
        Error::Data {
            path: self.path.to_owned(),
            row: row.map(|row| (self.row + row + 1) as u64),
            column: Some(name.to_owned()),
            reason: reason.into(),
        }
    }

    fn get(self, batch: &RecordBatch, name: &str) -> Result<ArrayRef> {
        let column = batch.column_by_name(name).cloned();
        column.ok_or_else(|| self.wrong(name, None, "no such column"))
    }

    fn pictures(self, batch: &RecordBatch, name: &str) -> Result<LargeBinaryArray> {
        let column = self.get(batch, name)?;
        let inner = column
            .as_struct_opt()
            .and_then(|fields| fields.column_by_name("bytes"));
        let bytes = inner.unwrap_or(&column);
        if !matches!(
            bytes.data_type(),
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView
        ) {
            let kind = column.data_type();
            let reason = format!(
                "expected the bytes of pictures, or a struct with the field `bytes`, got {kind}"
            );
            return Err(self.wrong(name, None, reason));
        }
        let missing = |row: &usize| column.is_null(*row) || bytes.is_null(*row);
        if let Some(row) = (0..batch.num_rows()).find(missing) {
            let reason = "no bytes; pictures must lie in the file, not at a path or address";
            return Err(self.wrong(name, Some(row), reason));
        }
        let bytes = cast(bytes, &DataType::LargeBinary);
        let bytes = bytes.map_err(|e| self.wrong(name, None, e.to_string()))?;
        Ok(bytes.as_binary::<i64>().clone())
    }

    fn labels(self, batch: &RecordBatch, name: &str) -> Result<Vec<u32>> {
        let column = self.get(batch, name)?;
        if !column.data_type().is_integer() {
            let reason = format!(
                "expected whole numbers as labels, got {}",
                column.data_type()
            );
            return Err(self.wrong(name, None, reason));
        }
        let labels = cast(&column, &DataType::Int64);
        let labels = labels.map_err(|e| self.wrong(name, None, e.to_string()))?;
        let labels = labels.as_primitive::<Int64Type>();
        let label = |(row, label): (usize, Option<i64>)| match label {
            Some(label @ 0..MAX_LABEL) => Ok(label as u32),
            Some(label) => {
                let reason = format!(
                    "expected a label from 0 to {}, got {label}; read it without labels if they are not known",
                    MAX_LABEL - 1
                );
                Err(self.wrong(name, Some(row), reason))
            }
            None => Err(self.wrong(name, Some(row), "no label")),
        };
        labels.iter().enumerate().map(label).collect()
    }
}

fn other_classes(path: &Path, first: &[String], names: &[String]) -> Error {
    let same = first.iter().zip(names).take_while(|(a, b)| a == b).count();
    let reason = match (names.get(same), first.get(same)) {
        (Some(own), Some(before)) => {
            format!("calls class {same} `{own}`, a file before it `{before}`")
        }
        _ => format!(
            "has {} classes, a file before it {}",
            names.len(),
            first.len()
        ),
    };
    let reason = format!("{reason}; give files of one data set");
    Error::data(path, reason)
}

/// Labels are numbers of classes, and each class has a name: a number beyond this is something else.
const MAX_LABEL: i64 = 1 << 20;

/// Names of the classes of a column, from the JSON that Hugging Face's `datasets` writes into the file.
fn class_names(metadata: &ParquetMetaData, column: &str) -> Option<Vec<String>> {
    let pairs = metadata.file_metadata().key_value_metadata()?;
    let text = pairs
        .iter()
        .find(|pair| pair.key == "huggingface")?
        .value
        .as_ref()?;
    let json: serde_json::Value = serde_json::from_str(text).ok()?;
    let names = json["info"]["features"][column]["names"].as_array()?;
    names
        .iter()
        .map(|name| name.as_str().map(str::to_owned))
        .collect()
}
