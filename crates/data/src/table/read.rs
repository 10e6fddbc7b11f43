//! How files and Arrow batches become columns.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, TimestampMicrosecondType};
use arrow_array::{Array, RecordBatch};
use arrow_schema::{DataType, Field, Fields, TimeUnit};
use densely_core::{Error, Result};

use super::{Column, MISSING, Store, Table, Values};

/// Texts that stand for a missing value, in CSV and in text columns of any format.
const MISSING_TEXTS: [&str; 16] = [
    "", "NA", "N/A", "n/a", "NaN", "nan", "-NaN", "-nan", "null", "NULL", "None", "<NA>", "#N/A",
    "#NA", "#N/A N/A", "?",
];

/// Gives each distinct text a number.
#[derive(Debug, Default)]
pub(super) struct Interner {
    codes: HashMap<String, u32>,
    pub(super) names: Vec<String>,
}

impl Interner {
    /// Goes on from distinct texts that have numbers already.
    pub(super) fn from_names(names: Vec<String>) -> Self {
        let numbered = names.iter().enumerate();
        let codes = numbered
            .map(|(code, text)| (text.clone(), code as u32))
            .collect();
        Self { codes, names }
    }

    pub(super) fn code(&mut self, text: &str) -> u32 {
        if let Some(code) = self.codes.get(text) {
            return *code;
        }
        let code = self.names.len() as u32;
        self.codes.insert(text.to_owned(), code);
        self.names.push(text.to_owned());
        code
    }
}

/// A number as tables write it; `inf` in any spelling is a number here and refused later, with its row. Digits
/// behind a leading zero, as in postal codes, are a text.
pub(crate) fn number(text: &str) -> Option<f64> {
    let digits = text.trim_start_matches(['-', '+']).as_bytes();
    if let [b'0', second, ..] = digits
        && second.is_ascii_digit()
    {
        return None;
    }
    text.parse::<f64>().ok().filter(|value| !value.is_nan())
}

pub(crate) fn is_missing(text: &str) -> bool {
    MISSING_TEXTS.contains(&text)
}

/// `2013-01-31`, `2013-01-31 05:06:07`, `2013-01-31T05:06:07.5Z`, `2013/1/31 5:06` as microseconds since 1970.
pub fn parse_time(text: &str) -> Option<i64> {
    let text = text.strip_suffix('Z').unwrap_or(text);
    let (date, time) = match text.find(['T', ' ']) {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    };
    // With slashes months and days may have one digit, as spreadsheets write them; the year stands first all the same.
    let slashes = date.contains('/');
    let mut parts = date.splitn(3, if slashes { '/' } else { '-' });
    let mut part = |length: usize| {
        let part = parts.next()?;
        let short = slashes && length == 2 && part.len() == 1;
        ((part.len() == length || short) && part.bytes().all(|b| b.is_ascii_digit()))
            .then(|| part.parse().ok())?
    };
    let (year, month, day): (i64, i64, i64) = (part(4)?, part(2)?, part(2)?);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = [
        31,
        if leap { 29 } else { 28 },
        31,
        30,
        31,
        30,
        31,
        31,
        30,
        31,
        30,
        31,
    ];
    if !(1..=12).contains(&month) || day < 1 || day > days[month as usize - 1] {
        return None;
    }
    // Days since 1970 by the usual count from March, so that the leap day is the last of its year.
    let (y, m) = if month <= 2 {
        (year - 1, month + 9)
    } else {
        (year, month - 3)
    };
    let era = y.div_euclid(400);
    let day_of_era = (y.rem_euclid(400)) * 365 + y.rem_euclid(400) / 4 - y.rem_euclid(400) / 100
        + (153 * m + 2) / 5
        + day
        - 1;
    let mut micros = (era * 146_097 + day_of_era - 719_468) * 86_400_000_000;
    if let Some(time) = time {
        let mut parts = time.splitn(3, ':');
        let hour: i64 = parts.next()?.parse().ok().filter(|h| (0..24).contains(h))?;
        let minute: i64 = parts.next()?.parse().ok().filter(|m| (0..60).contains(m))?;
        let second = parts.next().map_or(Some(0.0), |s| s.parse::<f64>().ok())?;
        if !(0.0..61.0).contains(&second) {
            return None;
        }
        micros += (hour * 60 + minute) * 60_000_000 + (second * 1e6).round() as i64;
    }
    Some(micros)
}

/// What the first pass over a CSV column saw.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    whole: u64,
    numbers: u64,
    times: u64,
    texts: u64,
}

impl Seen {
    fn note(&mut self, text: &str) {
        if is_missing(text) {
            return;
        }
        if number(text).is_some() {
            self.numbers += 1;
            self.whole += u64::from(
                text.bytes()
                    .all(|b| b.is_ascii_digit() || b == b'-' || b == b'+'),
            );
        } else if parse_time(text).is_some() {
            self.times += 1;
        } else {
            self.texts += 1;
        }
    }

    fn column(&self, name: &str) -> Builder {
        let values = if self.texts + self.times == 0 && self.numbers > 0 {
            BuilderValues::Number(Vec::new())
        } else if self.texts + self.numbers == 0 && self.times > 0 {
            BuilderValues::Time(Vec::new())
        } else {
            BuilderValues::Text(Vec::new(), Interner::default())
        };
        Builder {
            name: name.to_owned(),
            integral: self.whole == self.numbers,
            values,
        }
    }
}

#[derive(Debug)]
struct Builder {
    name: String,
    integral: bool,
    values: BuilderValues,
}

#[derive(Debug)]
enum BuilderValues {
    Number(Vec<f64>),
    Text(Vec<u32>, Interner),
    Time(Vec<i64>),
}

impl Builder {
    fn push_text(&mut self, text: &str) {
        let missing = is_missing(text);
        match &mut self.values {
            BuilderValues::Number(values) => {
                values.push(if missing {
                    f64::NAN
                } else {
                    number(text).unwrap_or(f64::NAN)
                });
            }
            BuilderValues::Time(values) => {
                values.push(if missing {
                    i64::MIN
                } else {
                    parse_time(text).unwrap_or(i64::MIN)
                });
            }
            BuilderValues::Text(codes, interner) => {
                codes.push(if missing {
                    MISSING
                } else {
                    interner.code(text)
                });
            }
        }
    }

    fn finish(self) -> Column {
        let values = match self.values {
            BuilderValues::Number(values) => Values::Number {
                values,
                integral: self.integral,
            },
            BuilderValues::Text(codes, interner) => Values::Text {
                codes,
                names: interner.names,
            },
            BuilderValues::Time(values) => Values::Time(values),
        };
        Column {
            name: self.name,
            values,
        }
    }
}

pub(super) fn check_names(path: &Path, names: &[String]) -> Result<()> {
    let mut seen = std::collections::HashSet::new();
    match names.iter().find(|name| !seen.insert(name.as_str())) {
        Some(name) => Err(Error::column(
            path,
            name,
            "two columns have this name; rename one",
        )),
        None => Ok(()),
    }
}

/// The records of a CSV text, each as long as the header.
pub(crate) struct CsvLines<R> {
    path: PathBuf,
    reader: csv::Reader<R>,
    header: Vec<String>,
    record: csv::StringRecord,
    /// With Windows line ends the reader counts a line when it begins to read the next one.
    behind: u64,
}

impl<R: Read> CsvLines<R> {
    /// Reads the header of `from`; `path` stands in errors.
    pub(crate) fn new(from: R, path: &Path, delimiter: u8) -> Result<Self> {
        let mut reader = csv::ReaderBuilder::new()
            .delimiter(delimiter)
            .flexible(true)
            .buffer_capacity(1 << 16)
            .from_reader(from);
        let header: Vec<String> = reader
            .headers()
            .map_err(|e| csv_error(path, e))?
            .iter()
            .map(|name| name.trim_start_matches('\u{feff}').trim().to_owned())
            .collect();
        if header.is_empty() {
            return Err(Error::data(
                path,
                "the file is empty; expected a header and rows",
            ));
        }
        let behind = u64::from(reader.position().line() == 1);
        Ok(Self {
            path: path.to_owned(),
            reader,
            header,
            record: csv::StringRecord::new(),
            behind,
        })
    }

    pub(crate) fn header(&self) -> &[String] {
        &self.header
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Line of the record that was read last.
    pub(crate) fn line(&self) -> u64 {
        let line = self.record.position().map_or(0, csv::Position::line);
        line + self.behind
    }

    /// The next record; its fields may have spaces around them.
    pub(crate) fn next_record(&mut self) -> Result<Option<&csv::StringRecord>> {
        let more = self.reader.read_record(&mut self.record);
        if !more.map_err(|e| csv_error(&self.path, e))? {
            return Ok(None);
        }
        if self.record.len() != self.header.len() {
            return Err(Error::Data {
                path: self.path.clone(),
                row: Some(self.line()),
                column: None,
                reason: format!(
                    "expected {} fields as in the header, got {}",
                    self.header.len(),
                    self.record.len()
                ),
            });
        }
        Ok(Some(&self.record))
    }
}

fn csv_error(path: &Path, error: csv::Error) -> Error {
    match error.into_kind() {
        csv::ErrorKind::Io(source) => Error::Io {
            path: path.to_owned(),
            source,
        },
        csv::ErrorKind::Utf8 { pos, .. } => Error::Data {
            path: path.to_owned(),
            row: pos.map(|pos| pos.line()),
            column: None,
            reason: "the text is not UTF-8; save the file as UTF-8".to_owned(),
        },
        other => Error::corrupt(path, format!("{other:?}")),
    }
}

/// Calls `each` with the trimmed fields of every record; returns the header.
fn csv_pass(
    from: impl Read,
    path: &Path,
    delimiter: u8,
    mut each: impl FnMut(&mut dyn Iterator<Item = &str>),
) -> Result<Vec<String>> {
    let mut lines = CsvLines::new(from, path, delimiter)?;
    while let Some(record) = lines.next_record()? {
        each(&mut record.iter().map(str::trim));
    }
    Ok(lines.header)
}

/// What it takes to read single columns of a file again.
#[derive(Debug, Clone)]
pub(super) enum FileColumns {
    /// What the first pass saw of each column.
    Csv {
        delimiter: u8,
        names: Vec<String>,
        seen: Vec<Seen>,
    },
    /// Places of the columns among the file's root columns.
    #[cfg(feature = "parquet")]
    Parquet { places: Vec<usize> },
}

impl FileColumns {
    /// The column at place `at` of the table.
    pub(super) fn read(&self, path: &Path, at: usize) -> Result<Column> {
        match self {
            Self::Csv {
                delimiter,
                names,
                seen,
            } => {
                let mut builder = seen[at].column(&names[at]);
                let file = File::open(path).map_err(Error::io(path))?;
                csv_pass(file, path, *delimiter, |fields| {
                    if let Some(field) = fields.nth(at) {
                        builder.push_text(field);
                    }
                })?;
                Ok(builder.finish())
            }
            #[cfg(feature = "parquet")]
            Self::Parquet { places } => {
                let table = parquet_batches(path, Some(places[at]))?;
                match table.store {
                    Store::Memory(mut columns) if columns.len() == 1 => Ok(columns.remove(0)),
                    _ => Err(Error::corrupt(path, "it changed while it was read")),
                }
            }
        }
    }
}

/// Bytes that a number takes in memory; what a table takes is estimated as if it held nothing else.
const CELL: u64 = 8;

pub(super) fn read_csv(path: &Path, delimiter: u8, limit: u64) -> Result<Table> {
    read_csv_from(
        || File::open(path).map_err(Error::io(path)),
        path,
        delimiter,
        limit,
    )
}

/// Reads what `open` gives, twice; `path` stands in errors, and is read again when the table would take more than `limit` bytes.
pub(super) fn read_csv_from<R: Read>(
    open: impl Fn() -> Result<R>,
    path: &Path,
    delimiter: u8,
    limit: u64,
) -> Result<Table> {
    let mut rows = 0;
    let mut seen: Vec<Seen> = Vec::new();
    let names = csv_pass(open()?, path, delimiter, |fields| {
        rows += 1;
        for (at, field) in fields.enumerate() {
            if seen.len() <= at {
                seen.push(Seen::default());
            }
            seen[at].note(field);
        }
    })?;
    check_names(path, &names)?;
    if seen.is_empty() {
        return Err(Error::data(path, "the file has a header but no rows"));
    }
    if rows as u64 * names.len() as u64 * CELL > limit {
        let store = Store::File(FileColumns::Csv {
            delimiter,
            names: names.clone(),
            seen,
        });
        let warnings = vec![stays_in_file()];
        return Ok(Table {
            path: path.to_owned(),
            first_row: 2,
            rows,
            names,
            store,
            warnings,
            zones: Vec::new(),
        });
    }
    let mut builders: Vec<Builder> = names
        .iter()
        .zip(&seen)
        .map(|(name, seen)| seen.column(name))
        .collect();
    csv_pass(open()?, path, delimiter, |fields| {
        for (builder, field) in builders.iter_mut().zip(fields) {
            builder.push_text(field);
        }
    })?;
    let columns = builders.into_iter().map(Builder::finish).collect();
    Ok(Table {
        path: path.to_owned(),
        first_row: 2,
        rows,
        names,
        store: Store::Memory(columns),
        warnings: Vec::new(),
        zones: Vec::new(),
    })
}

fn stays_in_file() -> String {
    "the table is large beside the free memory: its columns are read from the file as they are needed".to_owned()
}

#[cfg(feature = "parquet")]
pub(super) fn read_parquet(path: &Path, limit: u64) -> Result<Table> {
    let (rows, columns, zones) = guarded(path, || {
        let metadata = parquet_reader(path)?;
        let rows = metadata.metadata().file_metadata().num_rows().max(0) as usize;
        let columns: Vec<(String, bool)> = metadata
            .schema()
            .fields()
            .iter()
            .map(|f| {
                (
                    f.name().clone(),
                    builder_of(f.name(), f.data_type()).is_some(),
                )
            })
            .collect();
        Ok((rows, columns, zones(metadata.schema().fields())))
    })?;
    if rows as u64 * columns.len() as u64 * CELL <= limit {
        return parquet_batches(path, None);
    }
    let all: Vec<String> = columns.iter().map(|(name, _)| name.clone()).collect();
    check_names(path, &all)?;
    let mut warnings = vec![stays_in_file()];
    warnings.extend(
        columns
            .iter()
            .filter(|(_, used)| !used)
            .map(|(name, _)| left_out(name)),
    );
    let used = columns.iter().enumerate().filter(|(_, (_, used))| *used);
    let (places, names) = used.map(|(place, (name, _))| (place, name.clone())).unzip();
    let store = Store::File(FileColumns::Parquet { places });
    Ok(Table {
        path: path.to_owned(),
        first_row: 1,
        rows,
        names,
        store,
        warnings,
        zones,
    })
}

/// All columns of a Parquet file, or the one at a place.
#[cfg(feature = "parquet")]
fn parquet_batches(path: &Path, place: Option<usize>) -> Result<Table> {
    guarded(path, || {
        let wrong = |e: parquet::errors::ParquetError| Error::corrupt(path, e.to_string());
        let mut builder = parquet_reader(path)?;
        if let Some(place) = place {
            let mask = parquet::arrow::ProjectionMask::roots(builder.parquet_schema(), [place]);
            builder = builder.with_projection(mask);
        }
        let reader = builder.with_batch_size(65_536).build().map_err(wrong)?;
        let batches = reader.map(|batch| batch.map_err(|e| Error::corrupt(path, e.to_string())));
        collect(path, batches)
    })
}

#[cfg(feature = "parquet")]
pub(crate) fn parquet_reader(
    path: &Path,
) -> Result<parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder<File>> {
    let file = File::open(path).map_err(Error::io(path))?;
    parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(file)
        .map_err(|e| Error::corrupt(path, e.to_string()))
}

/// Runs `read`; its panics are errors. The Parquet reader panics on some damaged files; for the user those are
/// damaged files, not bugs of theirs.
#[cfg(feature = "parquet")]
pub(crate) fn guarded<T>(path: &Path, read: impl FnOnce() -> Result<T>) -> Result<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(read)).unwrap_or_else(|_| {
        Err(Error::corrupt(
            path,
            "the Parquet reader could not make sense of it",
        ))
    })
}

#[cfg(not(feature = "parquet"))]
pub(super) fn read_parquet(path: &Path, _: u64) -> Result<Table> {
    Err(Error::Unsupported {
        what: format!("reading `{}`", path.display()),
        hint: "build with the feature `parquet`, or give CSV".to_owned(),
    })
}

/// How a column of an Arrow batch is taken; `None` leaves it out.
fn builder_of(name: &str, kind: &DataType) -> Option<Builder> {
    let values = match kind {
        kind if kind.is_numeric() => BuilderValues::Number(Vec::new()),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Boolean => {
            BuilderValues::Text(Vec::new(), Interner::default())
        }
        DataType::Date32 | DataType::Date64 | DataType::Timestamp(..) => {
            BuilderValues::Time(Vec::new())
        }
        DataType::Dictionary(_, values) => return builder_of(name, values),
        _ => return None,
    };
    Some(Builder {
        name: name.to_owned(),
        integral: kind.is_integer(),
        values,
    })
}

fn left_out(name: &str) -> String {
    format!("column `{name}` is neither number, text nor time: left out")
}

pub(super) fn collect(
    path: &Path,
    batches: impl Iterator<Item = Result<RecordBatch>>,
) -> Result<Table> {
    let mut schema = None;
    let mut builders: Vec<Option<Builder>> = Vec::new();
    let mut rows = 0;
    for batch in batches {
        let batch = batch?;
        let known = schema.get_or_insert_with(|| {
            let fields = batch.schema();
            builders = fields
                .fields()
                .iter()
                .map(|f| builder_of(f.name(), f.data_type()))
                .collect();
            fields
        });
        if known.fields() != batch.schema().fields() {
            return Err(Error::data(path, "two batches have different columns"));
        }
        rows += batch.num_rows();
        for (builder, array) in builders.iter_mut().zip(batch.columns()) {
            if let Some(builder) = builder {
                append(path, builder, array)?;
            }
        }
    }
    let names: Vec<String> = schema
        .iter()
        .flat_map(|s| s.fields().iter().map(|f| f.name().clone()))
        .collect();
    check_names(path, &names)?;
    if rows == 0 {
        return Err(Error::data(path, "the table has no rows"));
    }
    let zones = schema
        .iter()
        .flat_map(|schema| zones(schema.fields()))
        .collect();
    let warnings = names
        .iter()
        .zip(&builders)
        .filter(|(_, builder)| builder.is_none())
        .map(|(name, _)| left_out(name))
        .collect();
    let columns: Vec<Column> = builders
        .into_iter()
        .flatten()
        .map(Builder::finish)
        .collect();
    Ok(Table {
        path: path.to_owned(),
        first_row: 1,
        rows,
        names: columns.iter().map(|column| column.name.clone()).collect(),
        store: Store::Memory(columns),
        warnings,
        zones,
    })
}

/// The columns whose times carry a zone, with it.
fn zones(fields: &Fields) -> Vec<(String, String)> {
    let zone = |field: &std::sync::Arc<Field>| match field.data_type() {
        DataType::Timestamp(_, Some(zone)) => Some((field.name().clone(), zone.to_string())),
        _ => None,
    };
    fields.iter().filter_map(zone).collect()
}

fn append(path: &Path, builder: &mut Builder, array: &dyn Array) -> Result<()> {
    let to = match &builder.values {
        BuilderValues::Number(_) => DataType::Float64,
        BuilderValues::Text(..) => DataType::Utf8,
        BuilderValues::Time(_) => DataType::Timestamp(TimeUnit::Microsecond, None),
    };
    let array = arrow_cast::cast(array, &to)
        .map_err(|e| Error::column(path, &builder.name, e.to_string()))?;
    match &mut builder.values {
        BuilderValues::Number(values) => {
            values.extend(
                array
                    .as_primitive::<Float64Type>()
                    .iter()
                    .map(|v| v.unwrap_or(f64::NAN)),
            );
        }
        BuilderValues::Time(values) => {
            let array = array.as_primitive::<TimestampMicrosecondType>();
            values.extend(array.iter().map(|value| value.unwrap_or(i64::MIN)));
        }
        BuilderValues::Text(codes, interner) => {
            codes.extend(array.as_string::<i32>().iter().map(|text| {
                let text = text.unwrap_or_default().trim();
                if is_missing(text) {
                    MISSING
                } else {
                    interner.code(text)
                }
            }));
        }
    }
    Ok(())
}
