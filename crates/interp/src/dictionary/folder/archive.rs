//! Arrays of NumPy's archives, `.npz`.
//!
//! The format is that of NumPy's `numpy/lib/format.py`, versions 1 to 3. Nothing that an archive says of itself is believed: memory grows with what
//! is there, and an array has exactly the bytes of its shape.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use densely_core::weights::Tensors;
use densely_core::{Error, Result};
use tch::{Kind, Tensor};
use zip::ZipArchive;
use zip::result::ZipError;

/// Most bytes of the description before an array.
const MOST_HEADER: usize = 1 << 16;
/// Most dimensions of an array, as in NumPy.
const MOST_DIMENSIONS: usize = 64;
/// So many times its size may an archive unpack to.
const MOST_RATIO: u64 = 100;

/// What is wrong with an array, in words.
type Words<T> = std::result::Result<T, String>;

/// All arrays of an archive by name, in their own kinds.
///
/// # Errors
/// [`Error::Io`] when it cannot be opened; [`Error::Data`] naming the array that is damaged, too large for the archive, or of another type than f16,
/// f32 and f64.
pub(super) fn read(path: &Path) -> Result<Tensors> {
    let file = File::open(path).map_err(Error::io(path))?;
    let held = file.metadata().map_err(Error::io(path))?.len();
    let no_archive =
        |error: ZipError| Error::data(path, format!("it is no archive of arrays: {error}"));
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(no_archive)?;
    let mut left = held.saturating_mul(MOST_RATIO);
    let mut tensors = Tensors::new();
    for index in 0..archive.len() {
        let name = {
            let entry = archive.by_index_raw(index).map_err(no_archive)?;
            let name = entry.name().map_err(no_archive)?;
            name.into_owned()
        };
        let wrong = |reason: String| Error::data(path, format!("`{name}`: {reason}"));
        let Some(key) = name.strip_suffix(".npy") else {
            return Err(wrong("it is no array of NumPy".to_owned()));
        };
        let entry = archive.by_index(index).map_err(|e| wrong(e.to_string()))?;
        let xs = array(entry, &mut left).map_err(wrong)?;
        if tensors.insert(key.to_owned(), xs).is_some() {
            return Err(wrong("it is there twice".to_owned()));
        }
    }
    Ok(tensors)
}

/// One array; `left` is how many bytes may be read yet.
fn array(mut source: impl Read, left: &mut u64) -> Words<Tensor> {
    let header = header(&mut source)?;
    let described = Described::parse(&header).ok_or_else(|| {
        let start: String = header.trim().chars().take(200).collect();
        format!("it must be f16, f32 or f64, little-endian and with values, got {start}")
    })?;
    let shape = &described.shape;
    let Some(count) = described.bytes().filter(|count| *count <= *left) else {
        return Err(format!(
            "its shape {shape:?} is too large for an archive of this size"
        ));
    };
    *left -= count;
    let mut bytes = Vec::new();
    source
        .take(count.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|e| e.to_string())?;
    if bytes.len() as u64 != count {
        return Err(format!(
            "it has not the {count} bytes of its shape {shape:?}"
        ));
    }
    described.tensor(&bytes).map_err(|e| e.to_string())
}

/// The description before an array.
fn header(source: &mut impl Read) -> Words<String> {
    let mut fill = |bytes: &mut [u8]| {
        source
            .read_exact(bytes)
            .map_err(|e| format!("its description: {e}"))
    };
    let mut start = [0u8; 8];
    fill(&mut start)?;
    let version = start[6];
    if !start.starts_with(b"\x93NUMPY") || !(1..=3).contains(&version) {
        return Err("it is no array of NumPy".to_owned());
    }
    let mut length = [0u8; 4];
    let used = if version == 1 { 2 } else { 4 };
    fill(&mut length[..used])?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MOST_HEADER {
        return Err(format!("{length} bytes are too many for a description"));
    }
    let mut header = vec![0u8; length];
    fill(&mut header)?;
    Ok(String::from_utf8_lossy(&header).into_owned())
}

/// What a description says.
struct Described {
    kind: Kind,
    /// Whether the first dimension is the one whose values lie side by side, as in Fortran.
    first_inner: bool,
    shape: Vec<i64>,
}

impl Described {
    /// From a text like `{'descr': '<f4', 'fortran_order': False, 'shape': (2, 4, 4), }`.
    fn parse(header: &str) -> Option<Self> {
        let value = |key: &str| {
            let (_, rest) = header.split_once(&format!("'{key}':"))?;
            Some(rest.trim_start())
        };
        let (kind, _) = value("descr")?.strip_prefix('\'')?.split_once('\'')?;
        let kind = match kind {
            "<f2" => Kind::Half,
            "<f4" => Kind::Float,
            "<f8" => Kind::Double,
            _ => return None,
        };
        let order = value("fortran_order")?;
        let first_inner = order.starts_with("True");
        if !first_inner && !order.starts_with("False") {
            return None;
        }
        let (shape, _) = value("shape")?.strip_prefix('(')?.split_once(')')?;
        let sizes = shape
            .split(',')
            .map(str::trim)
            .filter(|size| !size.is_empty());
        let shape: Option<Vec<i64>> = sizes
            .map(|size| size.parse::<i64>().ok().filter(|size| *size >= 1))
            .collect();
        let shape = shape.filter(|shape| shape.len() <= MOST_DIMENSIONS)?;
        Some(Self {
            kind,
            first_inner,
            shape,
        })
    }

    /// Bytes of the array; none where they are no number.
    fn bytes(&self) -> Option<u64> {
        let size = self.kind.elt_size_in_bytes() as u64;
        self.shape.iter().try_fold(size, |bytes, size| {
            bytes.checked_mul(u64::try_from(*size).ok()?)
        })
    }

    /// The array of exactly [`bytes`](Self::bytes) bytes.
    fn tensor(&self, bytes: &[u8]) -> Result<Tensor> {
        if !self.first_inner {
            return Ok(Tensor::f_from_data_size(bytes, &self.shape, self.kind)?);
        }
        let mut size = self.shape.clone();
        size.reverse();
        let turned: Vec<i64> = (0..size.len() as i64).rev().collect();
        let xs = Tensor::f_from_data_size(bytes, &size, self.kind)?;
        Ok(xs.f_permute(turned.as_slice())?)
    }
}
