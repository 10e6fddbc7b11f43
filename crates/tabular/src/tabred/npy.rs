//! NumPy's `.npy` files, read as columns of numbers. A header is believed only as far as the file's length bears it out.
//!
//! Format: numpy/numpy `numpy/lib/format.py`, versions 1 to 3. Objects, structures and texts are refused.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use densely_core::{Error, Result};

/// Longest header that is read, as in NumPy; a header of an array of numbers has about 100 bytes.
const MAX_HEADER: usize = 10_000;

/// Most columns: a matrix without rows takes no bytes, whatever its width.
const MAX_COLUMNS: usize = 1_000_000;

/// Bytes that are read at once.
const CHUNK: usize = 1 << 20;

/// What the bytes of one value are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Float,
    Signed,
    Unsigned,
}

/// An open file whose header fits its length.
#[derive(Debug)]
pub(super) struct Npy {
    path: PathBuf,
    descr: String,
    kind: Kind,
    /// Bytes of a value.
    size: usize,
    big_endian: bool,
    by_column: bool,
    shape: Vec<usize>,
    reader: BufReader<File>,
}

impl Npy {
    /// # Errors
    /// [`Error::Io`]; [`Error::Corrupt`] for bytes that are no npy file or another number of them than the header
    /// says; [`Error::Data`] for values that are not numbers.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path))?;
        let meta = file.metadata().map_err(Error::io(path))?;
        if !meta.is_file() {
            return Err(Error::corrupt(path, "it is not a regular file"));
        }
        let mut reader = BufReader::with_capacity(1 << 16, file);
        let (text, header_bytes) = header_text(path, &mut reader)?;
        let header = Header::parse(&text).ok_or_else(|| {
            let start: String = text.trim_end().chars().take(120).collect();
            Error::corrupt(
                path,
                format!("its header is not that of a npy file: `{start}`"),
            )
        })?;
        let (kind, size, big_endian) = number_type(&header.descr).ok_or_else(|| {
            let reason = format!("expected an array of numbers, got dtype {}", header.descr);
            Error::data(path, reason)
        })?;
        let bytes = header
            .shape
            .iter()
            .try_fold(size as u64, |product, n| product.checked_mul(*n as u64));
        let found = meta.len().saturating_sub(header_bytes);
        if bytes != Some(found) {
            let reason = format!(
                "its header says shape {:?} of {size} bytes each, behind it stand {found} bytes",
                header.shape
            );
            return Err(Error::corrupt(path, reason));
        }
        Ok(Self {
            path: path.to_owned(),
            descr: header.descr,
            kind,
            size,
            big_endian,
            by_column: header.fortran_order,
            shape: header.shape,
            reader,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Length of the first dimension.
    pub(super) fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(0)
    }

    /// Fails unless the array is a list of values (a single column counts as one).
    pub(super) fn require_list(&self) -> Result<()> {
        match self.shape[..] {
            [_] | [_, 1] => Ok(()),
            _ => Err(self.wrong_shape("one dimension")),
        }
    }

    /// Fails unless the array is a matrix; gives its columns' number.
    pub(super) fn require_matrix(&self) -> Result<usize> {
        match self.shape[..] {
            [_, columns] if columns <= MAX_COLUMNS => Ok(columns),
            _ => Err(self.wrong_shape("two dimensions, rows and columns")),
        }
    }

    fn wrong_shape(&self, expected: &str) -> Error {
        let reason = format!("expected {expected}, got shape {:?}", self.shape);
        Error::data(&self.path, reason)
    }

    pub(super) fn is_float(&self) -> bool {
        self.kind == Kind::Float
    }

    /// The columns of floating-point numbers.
    ///
    /// # Errors
    /// [`Error::Data`] for another dtype; those of reading.
    pub(super) fn floats(self) -> Result<Vec<Vec<f64>>> {
        let (size, big) = (self.size, self.big_endian);
        if !self.is_float() || !matches!(size, 4 | 8) {
            return Err(self.wrong_type("float32 or float64"));
        }
        if size == 4 {
            self.columns(|bytes| Some(f64::from(f32::from_bits(unsigned(bytes, big) as u32))))
        } else {
            self.columns(|bytes| Some(f64::from_bits(unsigned(bytes, big))))
        }
    }

    /// The columns of integers.
    ///
    /// # Errors
    /// [`Error::Data`] for another dtype, and for values above 9,223,372,036,854,775,807; those of reading.
    pub(super) fn integers(self) -> Result<Vec<Vec<i64>>> {
        let (size, big) = (self.size, self.big_endian);
        match self.kind {
            Kind::Float => Err(self.wrong_type("int32 or int64")),
            Kind::Signed => {
                let shift = 64 - 8 * size as u32;
                self.columns(|bytes| Some((unsigned(bytes, big) << shift) as i64 >> shift))
            }
            Kind::Unsigned => self.columns(|bytes| i64::try_from(unsigned(bytes, big)).ok()),
        }
    }

    fn wrong_type(&self, expected: &str) -> Error {
        let reason = format!("expected {expected} values, got dtype {}", self.descr);
        Error::data(&self.path, reason)
    }

    fn columns<T>(mut self, decode: impl Fn(&[u8]) -> Option<T>) -> Result<Vec<Vec<T>>> {
        let rows = self.rows();
        let width = self.shape.get(1).copied().unwrap_or(1);
        let mut columns = Vec::new();
        for _ in 0..width {
            let mut column = Vec::new();
            column.try_reserve_exact(rows).map_err(|_| {
                let reason = format!("{rows} rows of {width} columns do not fit into memory");
                Error::data(&self.path, reason)
            })?;
            columns.push(column);
        }
        // In both orders the file is a sequence of lines of equal length; a chunk holds whole ones.
        let (lines, values) = if self.by_column {
            (width, rows)
        } else {
            (rows, width)
        };
        let line_bytes = values * self.size;
        if line_bytes == 0 {
            return Ok(columns);
        }
        let at_once = (CHUNK / line_bytes).max(1);
        let mut buffer = vec![0; line_bytes * at_once.min(lines)];
        let mut line = 0;
        while line < lines {
            let count = at_once.min(lines - line);
            let chunk = &mut buffer[..count * line_bytes];
            self.reader.read_exact(chunk).map_err(|error| {
                Error::corrupt(&self.path, format!("it changed while it was read: {error}"))
            })?;
            for (i, bytes) in chunk.chunks_exact(self.size).enumerate() {
                let (this, place) = (line + i / values, i % values);
                let column = if self.by_column { this } else { place };
                let value = decode(bytes).ok_or_else(|| {
                    let row = columns[column].len() as u64 + 1;
                    Error::Data {
                        path: self.path.clone(),
                        row: Some(row),
                        column: None,
                        reason: "the number is too large".to_owned(),
                    }
                })?;
                columns[column].push(value);
            }
            line += count;
        }
        Ok(columns)
    }
}

/// Up to eight bytes as an unsigned number.
fn unsigned(bytes: &[u8], big_endian: bool) -> u64 {
    let join = |value: u64, byte: &u8| value << 8 | u64::from(*byte);
    if big_endian {
        bytes.iter().fold(0, join)
    } else {
        bytes.iter().rev().fold(0, join)
    }
}

/// The header's text, and how many bytes stand before the values.
fn header_text(path: &Path, reader: &mut impl Read) -> Result<(String, u64)> {
    let mut read = |bytes: &mut [u8]| {
        reader
            .read_exact(bytes)
            .map_err(|_| Error::corrupt(path, "it ends within its header"))
    };
    let mut magic = [0; 8];
    read(&mut magic)?;
    let [0x93, b'N', b'U', b'M', b'P', b'Y', version, _] = magic else {
        return Err(Error::corrupt(path, "it does not begin as a npy file does"));
    };
    let mut length = [0; 4];
    let length_bytes = match version {
        1 => 2,
        2 | 3 => 4,
        _ => {
            let reason = format!("its format is version {version}; 1 to 3 are known");
            return Err(Error::corrupt(path, reason));
        }
    };
    read(&mut length[..length_bytes])?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_HEADER {
        let reason = format!("its header has {length} bytes; at most {MAX_HEADER} are expected");
        return Err(Error::corrupt(path, reason));
    }
    let mut text = vec![0; length];
    read(&mut text)?;
    let text =
        String::from_utf8(text).map_err(|_| Error::corrupt(path, "its header is not a text"))?;
    Ok((text, (magic.len() + length_bytes + length) as u64))
}

/// Kind, bytes and byte order of a dtype such as `'<f4'`, when it is a number.
fn number_type(descr: &str) -> Option<(Kind, usize, bool)> {
    let text = descr.strip_prefix('\'')?.strip_suffix('\'')?;
    let mut chars = text.chars();
    let (order, kind) = (chars.next()?, chars.next()?);
    let size: usize = chars.as_str().parse().ok()?;
    let kind = match kind {
        'f' => Kind::Float,
        'i' => Kind::Signed,
        'u' | 'b' => Kind::Unsigned,
        _ => return None,
    };
    let known = matches!(size, 1 | 2 | 4 | 8) && matches!(order, '<' | '>' | '|' | '=');
    known.then_some((kind, size, order == '>'))
}

/// What a header says; `descr` as it is written, with quotes.
#[derive(Debug, PartialEq, Eq)]
struct Header {
    descr: String,
    fortran_order: bool,
    shape: Vec<usize>,
}

impl Header {
    /// Parses `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), }`, the keys in any order.
    fn parse(text: &str) -> Option<Self> {
        let mut rest = text.trim().strip_prefix('{')?.trim_start();
        let (mut descr, mut fortran_order, mut shape) = (None, None, None);
        while !rest.starts_with('}') {
            let key;
            (key, rest) = quoted(rest)?;
            rest = rest.trim_start().strip_prefix(':')?.trim_start();
            match key {
                "'descr'" | "\"descr\"" => {
                    // A structure is a list: kept as a text for the message, up to the next key.
                    let value;
                    (value, rest) = if rest.starts_with('[') {
                        rest.split_at(rest.find(']')? + 1)
                    } else {
                        quoted(rest)?
                    };
                    descr = Some(value.replace('"', "'"));
                }
                "'fortran_order'" | "\"fortran_order\"" => {
                    let word = rest.split([',', '}']).next()?;
                    fortran_order = Some(match word.trim() {
                        "True" => true,
                        "False" => false,
                        _ => return None,
                    });
                    rest = rest.strip_prefix(word)?;
                }
                "'shape'" | "\"shape\"" => {
                    let (inside, after) = rest.strip_prefix('(')?.split_once(')')?;
                    let numbers = inside.split(',').map(str::trim).filter(|n| !n.is_empty());
                    // Python 2 wrote a long as `3L`.
                    let number = |n: &str| n.strip_suffix('L').unwrap_or(n).parse().ok();
                    shape = Some(numbers.map(number).collect::<Option<Vec<usize>>>()?);
                    rest = after;
                }
                _ => return None,
            }
            rest = rest.trim_start();
            match rest.strip_prefix(',') {
                Some(more) => rest = more.trim_start(),
                None if rest.starts_with('}') => {}
                None => return None,
            }
        }
        (rest == "}").then_some(())?;
        Some(Self {
            descr: descr?,
            fortran_order: fortran_order?,
            shape: shape?,
        })
    }
}

/// A leading text in quotes, and what follows it.
fn quoted(text: &str) -> Option<(&str, &str)> {
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    let end = text[1..].find(quote)? + 2;
    Some(text.split_at(end))
}

/// A type of numbers that [`write()`] takes.
pub trait Element: Copy {
    /// NumPy's name of the type.
    const DESCR: &'static str;
    /// The bytes of a value, the lowest first.
    fn bytes(self) -> impl IntoIterator<Item = u8>;
}

macro_rules! element {
    ($type:ty, $descr:literal) => {
        impl Element for $type {
            const DESCR: &'static str = $descr;
            fn bytes(self) -> impl IntoIterator<Item = u8> {
                self.to_le_bytes()
            }
        }
    };
}
element!(f32, "<f4");
element!(f64, "<f8");
element!(i64, "<i8");

/// Writes `values` (row by row) as an array of `shape`, atomically; what `numpy.save` would write.
///
/// # Errors
/// [`Error::Config`] when the shape holds another number of values; [`Error::Io`].
pub fn write<T: Element>(path: &Path, shape: &[usize], values: &[T]) -> Result<()> {
    if shape.iter().product::<usize>() != values.len() {
        let reason = format!("{shape:?} does not hold {} values", values.len());
        return Err(Error::config("shape", reason));
    }
    let mut sizes: Vec<String> = shape.iter().map(ToString::to_string).collect();
    if sizes.len() == 1 {
        sizes.push(String::new()); // Python's tuple of one: `(3,)`
    }
    let header = format!(
        "{{'descr': '{}', 'fortran_order': False, 'shape': ({}), }}",
        T::DESCR,
        sizes.join(", ").trim_end()
    );
    // Values begin at a multiple of 64, behind a line's end.
    let length = (10 + header.len() + 1).next_multiple_of(64) - 10;
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((length as u16).to_le_bytes());
    bytes.extend(format!("{header:<width$}\n", width = length - 1).into_bytes());
    bytes.extend(values.iter().flat_map(|value| value.bytes()));
    densely_core::fs::write(path, &bytes)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_in_any_order_and_nonsense_is_none() {
        let header =
            Header::parse("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), }  \n")
                .unwrap();
        assert_eq!((header.shape, header.fortran_order), (vec![3, 2], false));
        let header =
            Header::parse("{\"shape\": (5L,), 'fortran_order': True, 'descr': '|b1'}").unwrap();
        assert_eq!((header.shape, header.fortran_order), (vec![5], true));
        assert_eq!(number_type("'|b1'"), Some((Kind::Unsigned, 1, false)));
        assert_eq!(number_type("'>f8'"), Some((Kind::Float, 8, true)));
        for wrong in ["'|O'", "'<U5'", "'<c8'", "'<f3'", "f4", "''", "'<M8[us]'"] {
            assert_eq!(number_type(wrong), None, "{wrong}");
        }
        for wrong in [
            "",
            "{",
            "{}",
            "{'descr': '<f4'}",
            "{'descr': '<f4', 'fortran_order': 1, 'shape': (3,)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (-3,)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999999,)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': ((((3,)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (3,)} x",
            "{'descr': '<f4' 'fortran_order': False, 'shape': (3,)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (3,), 'more': 1}",
            "{'",
            "{é",
        ] {
            assert_eq!(Header::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_is_written_is_read_and_half_of_it_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npy");
        write(&path, &[2, 3], &[1f32, 2.0, f32::NAN, -4.5, 0.0, 1e30]).unwrap();
        let columns = Npy::open(&path).unwrap().floats().unwrap();
        assert_eq!(columns[0], [1.0, -4.5]);
        assert_eq!(columns[1], [2.0, 0.0]);
        assert!(columns[2][0].is_nan());
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!((bytes.len() - 24) % 64, 0);
        for length in 0..bytes.len() {
            std::fs::write(&path, &bytes[..length]).unwrap();
            assert!(Npy::open(&path).is_err(), "{length} bytes");
        }
        write(&path, &[3], &[i64::MIN, -1, i64::MAX]).unwrap();
        let columns = Npy::open(&path).unwrap().integers().unwrap();
        assert_eq!(columns, [vec![i64::MIN, -1, i64::MAX]]);
        assert!(Npy::open(&path).unwrap().floats().is_err());
    }

    #[test]
    fn a_header_that_promises_more_than_the_file_has_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npy");
        for shape in [
            "(1000000000000, 4)",
            "(18446744073709551615, 18446744073709551615)",
            "(9223372036854775808, 2)",
            "(3,)",
            "()",
        ] {
            let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}");
            let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
            bytes.extend((header.len() as u16).to_le_bytes());
            bytes.extend(header.bytes());
            bytes.extend([0; 8]);
            std::fs::write(&path, &bytes).unwrap();
            let error = Npy::open(&path).unwrap_err().to_string();
            assert!(error.contains("its header says shape"), "{error}");
        }
        // A header that claims to be 4 GB long.
        std::fs::write(&path, b"\x93NUMPY\x02\x00\xff\xff\xff\xff{'descr'").unwrap();
        let error = Npy::open(&path).unwrap_err().to_string();
        assert!(error.contains("at most 10000 are expected"), "{error}");
    }
}
