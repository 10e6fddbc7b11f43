//! GGUF files: metadata, tensors of plain and quantised kinds, and the models of two architectures in them.
//!
//! The reader takes versions 2 and 3, little endian. Nothing in a file is believed before it is checked against the file's size: no
//! length makes it allocate more than a small multiple of the bytes that are there, and every slip is an error that names the place.
//! Tensors stay in the file, which is mapped, until they are asked for.
//!
//! Format: ggml-org/ggml `docs/gguf.md`; the layouts of quantised blocks: `src/ggml-common.h`, `src/ggml-quants.c`.

mod cursor;
mod model;
mod quants;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use densely_core::{Error, Result};
use densely_torch_ext::Mmap;
use tch::{Kind, Tensor};

use cursor::{Cursor, Item};
pub(crate) use model::plan;
use quants::Layout;

/// Axes of a tensor at most, as the format says.
const MAX_AXES: u32 = 4;
/// Bytes of a key or a tensor's name at most: the format says 65,535 and 64.
const MAX_NAME: usize = 65_535;
/// Where the data start is a multiple of this, unless the file says otherwise.
const ALIGNMENT: u64 = 32;

/// A value of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A whole number of an unsigned type.
    Unsigned(u64),
    /// A whole number of a signed type.
    Signed(i64),
    /// A number; one of 32 bits is the nearest to its shortest decimal notation.
    Number(f64),
    /// Yes or no.
    Flag(bool),
    /// Text.
    Text(String),
    /// A list, which is read by [`Gguf::texts`], [`Gguf::integers`] or [`Gguf::numbers`].
    List(List),
}

/// Where a list of the metadata lies in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List {
    item: Item,
    count: usize,
    start: usize,
}

impl List {
    /// Number of items.
    pub const fn len(&self) -> usize {
        self.count
    }

    /// Whether it has no items.
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// A tensor of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Sizes in row-major order: the file's own, reversed.
    pub size: Vec<i64>,
    /// Number of the type in the file.
    type_id: u32,
    /// Bytes from the start of the file; empty for types that are not read.
    bytes: Range<usize>,
}

impl TensorInfo {
    /// Name of its type, such as `Q4_1`.
    pub fn type_name(&self) -> String {
        quants::type_name(self.type_id)
    }

    /// Number of values.
    pub fn numel(&self) -> u64 {
        self.size.iter().map(|n| *n as u64).product()
    }
}

/// An open GGUF file.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    map: Mmap,
    version: u32,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, TensorInfo>,
}

impl Gguf {
    /// Maps the file at `path`, and reads and checks its header.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be opened; [`Error::Corrupt`] when it is truncated, altered or no GGUF; [`Error::Unsupported`] for
    /// version 1 and for big-endian files.
    pub fn open(path: &Path) -> Result<Self> {
        let length = std::fs::metadata(path).map_err(Error::io(path))?.len();
        if length < 24 {
            let reason = format!("{length} bytes are too few for GGUF");
            return Err(Error::corrupt(path, reason));
        }
        let map = densely_torch_ext::map_file(path).map_err(Error::io(path))?;
        let version = version(path, &map)?;
        let (metadata, tensors) = header(&map).map_err(|reason| Error::corrupt(path, reason))?;
        Ok(Self {
            path: path.to_owned(),
            map,
            version,
            metadata,
            tensors,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Version of the format.
    pub const fn version(&self) -> u32 {
        self.version
    }

    /// Metadata by key.
    pub const fn metadata(&self) -> &BTreeMap<String, Value> {
        &self.metadata
    }

    /// Tensors by name.
    pub const fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// Values of all tensors together.
    pub fn numel(&self) -> u64 {
        let counts = self.tensors.values().map(TensorInfo::numel);
        counts.fold(0, u64::saturating_add)
    }

    /// How many tensors there are of each type, as text.
    pub fn types(&self) -> String {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for info in self.tensors.values() {
            *counts.entry(info.type_name()).or_default() += 1;
        }
        let words: Vec<String> = counts
            .iter()
            .map(|(name, count)| format!("{count} {name}"))
            .collect();
        words.join(", ")
    }

    /// A tensor on the CPU: plain kinds as they are, quantised ones as f32.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when there is none of this name; [`Error::Unsupported`] naming a type that is not read.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let info = self
            .tensors
            .get(name)
            .ok_or_else(|| Error::corrupt(&self.path, format!("it holds no tensor `{name}`")))?;
        let layout = self.layout(name, info)?;
        let bytes = self.map.get(info.bytes.clone());
        let bytes = bytes
            .ok_or_else(|| Error::corrupt(&self.path, "it is shorter than its header says"))?;
        if let Some(kind) = layout.plain {
            return Ok(Tensor::f_from_data_size(bytes, &info.size, kind)?);
        }
        let values = layout.dequantize(bytes);
        Ok(Tensor::f_from_slice(&values)?.f_reshape(&info.size)?)
    }

    fn layout(&self, name: &str, info: &TensorInfo) -> Result<&'static Layout> {
        Layout::of(info.type_id).ok_or_else(|| Error::Unsupported {
            what: format!("type {} of the tensor `{name}`", info.type_name()),
            hint: format!(
                "convert {} to one of {}",
                self.path.display(),
                quants::readable()
            ),
        })
    }

    /// Fails where the tensor `name` is there and its type is not read.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming the type.
    pub(crate) fn check_type(&self, name: &str) -> Result<()> {
        match self.tensors.get(name) {
            Some(info) => self.layout(name, info).map(|_| ()),
            None => Ok(()),
        }
    }

    /// Fails for one of the files of a model that was split, since the others' tensors are not here.
    ///
    /// # Errors
    /// [`Error::Unsupported`] with the way to merge them; [`Error::Corrupt`] when their number is none.
    pub(crate) fn check_whole(&self) -> Result<()> {
        // A merged file may still have the name of a part, so the metadata come first.
        let parts = match self.integer("split.count")? {
            Some(parts) => Some(parts).filter(|parts| *parts > 1),
            None => parts_by_name(&self.path),
        };
        match parts {
            Some(parts) => Err(split(&self.path, parts)),
            None => Ok(()),
        }
    }

    /// Values that have bytes in the file: of tensors whose type is not read only the header speaks.
    pub(crate) fn held(&self) -> u64 {
        let read = self.tensors.values().filter(|info| !info.bytes.is_empty());
        read.map(TensorInfo::numel).fold(0, u64::saturating_add)
    }

    /// Type of a tensor, as libtorch's kind of what [`tensor`](Self::tensor) gives.
    pub fn kind(&self, name: &str) -> Option<Kind> {
        let layout = Layout::of(self.tensors.get(name)?.type_id)?;
        Some(layout.plain.unwrap_or(Kind::Float))
    }

    /// Whether two tensors are the same bytes of the same type and sizes.
    pub(crate) fn same_bytes(&self, one: &str, other: &str) -> bool {
        let both = self.tensors.get(one).zip(self.tensors.get(other));
        both.is_some_and(|(one, other)| {
            one.size == other.size
                && one.type_id == other.type_id
                && !one.bytes.is_empty()
                && self.map.get(one.bytes.clone()) == self.map.get(other.bytes.clone())
        })
    }

    fn wrong(&self, key: &str, expected: &str) -> Error {
        Error::corrupt(&self.path, format!("its `{key}` is no {expected}"))
    }

    /// The text under `key`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when it is something else, as with the other readers of values.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(key, "text")),
        }
    }

    /// The whole number under `key`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when it is something else, or above what 63 bits hold.
    pub fn integer(&self, key: &str) -> Result<Option<i64>> {
        let wrong = || self.wrong(key, "whole number");
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Unsigned(value)) => i64::try_from(*value).map(Some).map_err(|_| wrong()),
            Some(Value::Signed(value)) => Ok(Some(*value)),
            Some(_) => Err(wrong()),
        }
    }

    /// The number under `key`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when it is something else.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.metadata.get(key) {
            Some(Value::Number(value)) => Ok(Some(*value)),
            None => Ok(None),
            Some(_) => Ok(self.integer(key)?.map(|value| value as f64)),
        }
    }

    /// Yes or no, under `key`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when it is something else.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Flag(value)) => Ok(Some(*value)),
            Some(_) => Err(self.wrong(key, "yes or no")),
        }
    }

    /// Reads the list under `key` item by item.
    fn list<T>(
        &self,
        key: &str,
        what: &str,
        read: impl Fn(Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>> {
        let list = match self.metadata.get(key) {
            None => return Ok(None),
            Some(Value::List(list)) => list,
            Some(_) => return Err(self.wrong(key, &format!("list of {what}"))),
        };
        let mut cursor = Cursor::at(&self.map, list.start);
        // Every item takes a byte at least, and the header was read to its end: `count` is no more than the file's bytes.
        let mut items = Vec::with_capacity(list.count);
        for _ in 0..list.count {
            let value = cursor
                .value(list.item, key)
                .map_err(|reason| Error::corrupt(&self.path, reason))?;
            items.push(read(value).ok_or_else(|| self.wrong(key, &format!("list of {what}")))?);
        }
        Ok(Some(items))
    }

    /// The texts under `key`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when it is something else.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<String>>> {
        self.list(key, "texts", |value| match value {
            Value::Text(text) => Some(text),
            _ => None,
        })
    }

    /// The whole numbers under `key`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when it is something else.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i64>>> {
        self.list(key, "whole numbers", |value| match value {
            Value::Unsigned(value) => i64::try_from(value).ok(),
            Value::Signed(value) => Some(value),
            _ => None,
        })
    }

    /// The numbers under `key`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when it is something else.
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        self.list(key, "numbers", |value| match value {
            Value::Number(value) => Some(value),
            Value::Unsigned(value) => Some(value as f64),
            Value::Signed(value) => Some(value as f64),
            _ => None,
        })
    }
}

/// Of how many files together a model is, where the name says that there are several: `model-00001-of-00003.gguf`.
pub(crate) fn parts_by_name(path: &Path) -> Option<i64> {
    let (before, count) = path.file_stem()?.to_str()?.rsplit_once("-of-")?;
    let (_, number) = before.rsplit_once('-')?;
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(number) || !is_number(count) {
        return None;
    }
    count.parse::<i64>().ok().filter(|count| *count > 1)
}

/// What to say of a model that was split into several files, of which `path` is one.
pub(crate) fn split(path: &Path, parts: i64) -> Error {
    Error::Unsupported {
        what: format!(
            "a GGUF model split into {parts} files, of which {} is one,",
            path.display()
        ),
        hint: "merge them into one file: llama-gguf-split --merge FIRST_OF_THEM WHOLE".to_owned(),
    }
}

/// Checks the first eight bytes.
fn version(path: &Path, bytes: &[u8]) -> Result<u32> {
    if !bytes.starts_with(b"GGUF") {
        let reason = "it does not start with the letters GGUF";
        return Err(Error::corrupt(path, reason));
    }
    let version = Cursor::at(bytes, 4)
        .u32("the version")
        .map_err(|reason| Error::corrupt(path, reason))?;
    let other = |what: String| {
        Err(Error::Unsupported {
            what: format!("{what} ({})", path.display()),
            hint: "convert it to version 3, little endian".to_owned(),
        })
    };
    match version {
        2 | 3 => Ok(version),
        _ if matches!(version.swap_bytes(), 1..=3) => other("GGUF in big-endian order".to_owned()),
        _ => other(format!("version {version} of GGUF")),
    }
}

type Header = (BTreeMap<String, Value>, BTreeMap<String, TensorInfo>);

/// Reads what lies before the data, or says what is wrong with it.
fn header(bytes: &[u8]) -> std::result::Result<Header, String> {
    let mut cursor = Cursor::at(bytes, 8);
    let tensor_count = cursor.u64("the number of tensors")?;
    let value_count = cursor.u64("the number of metadata values")?;
    // The least bytes that an entry takes: an empty key, a type and one byte; an empty name, no axis, a type and an offset.
    cursor.claim(value_count, 13, "metadata values")?;
    let mut metadata = BTreeMap::new();
    for _ in 0..value_count {
        let key = cursor.text(MAX_NAME, "a metadata key")?;
        let item = cursor.item(&key)?;
        let value = cursor.value(item, &key)?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(format!("its metadata hold `{key}` twice"));
        }
    }
    let alignment = alignment(&metadata)?;
    cursor.claim(tensor_count, 24, "tensors")?;
    let mut entries = Vec::new();
    for _ in 0..tensor_count {
        entries.push(entry(&mut cursor)?);
    }
    let start = (cursor.position() as u64)
        .checked_next_multiple_of(alignment)
        .ok_or("its data start beyond all bytes")?;
    let mut tensors = BTreeMap::new();
    for (name, size, type_id, offset) in entries {
        let bytes = place(
            &name,
            &size,
            type_id,
            offset,
            (start, alignment),
            bytes.len(),
        )?;
        let info = TensorInfo {
            size,
            type_id,
            bytes,
        };
        if tensors.insert(name.clone(), info).is_some() {
            return Err(format!("it holds the tensor `{name}` twice"));
        }
    }
    check_apart(&tensors)?;
    Ok((metadata, tensors))
}

/// Fails where two tensors share bytes: many that do would make a small file look like a large model.
fn check_apart(tensors: &BTreeMap<String, TensorInfo>) -> std::result::Result<(), String> {
    let mut spans: Vec<(&Range<usize>, &str)> = tensors
        .iter()
        .map(|(name, info)| (&info.bytes, name.as_str()))
        .filter(|(bytes, _)| !bytes.is_empty())
        .collect();
    spans.sort_unstable_by_key(|(bytes, name)| (bytes.start, *name));
    for ((before, one), (after, other)) in spans.iter().zip(spans.iter().skip(1)) {
        if after.start < before.end {
            return Err(format!("its tensors `{one}` and `{other}` share bytes"));
        }
    }
    Ok(())
}

fn alignment(metadata: &BTreeMap<String, Value>) -> std::result::Result<u64, String> {
    match metadata.get("general.alignment") {
        None => Ok(ALIGNMENT),
        Some(Value::Unsigned(n)) if n.is_power_of_two() && (8..=1 << 20).contains(n) => Ok(*n),
        Some(other) => Err(format!(
            "its `general.alignment` must be a power of two from 8 to 1048576, got {other:?}"
        )),
    }
}

/// Name, sizes in row-major order, type and offset of the next tensor.
fn entry(cursor: &mut Cursor) -> std::result::Result<(String, Vec<i64>, u32, u64), String> {
    let name = cursor.text(MAX_NAME, "a tensor's name")?;
    let axes = cursor.u32(&name)?;
    if !(1..=MAX_AXES).contains(&axes) {
        return Err(format!(
            "its tensor `{name}` has {axes} axes, 1 to {MAX_AXES} are possible"
        ));
    }
    let mut size = Vec::new();
    let mut numel: u64 = 1;
    for _ in 0..axes {
        let n = cursor.u64(&name)?;
        numel = numel
            .checked_mul(n)
            .filter(|n| *n > 0 && *n < 1 << 48)
            .ok_or_else(|| format!("its tensor `{name}` has impossible sizes"))?;
        size.push(n as i64);
    }
    size.reverse();
    let type_id = cursor.u32(&name)?;
    let offset = cursor.u64(&name)?;
    Ok((name, size, type_id, offset))
}

/// Where the bytes of a tensor lie in a file of `length` bytes whose data start at `start`.
fn place(
    name: &str,
    size: &[i64],
    type_id: u32,
    offset: u64,
    (start, alignment): (u64, u64),
    length: usize,
) -> std::result::Result<Range<usize>, String> {
    let Some(layout) = Layout::of(type_id) else {
        // Only who asks for this tensor needs to know that its type is not read.
        return Ok(0..0);
    };
    let row = size.last().copied().unwrap_or(1) as u64;
    if !row.is_multiple_of(layout.values as u64) {
        return Err(format!(
            "its tensor `{name}` has rows of {row} values, which blocks of {} do not fill",
            layout.values
        ));
    }
    if !offset.is_multiple_of(alignment) {
        return Err(format!(
            "its tensor `{name}` starts at {offset}, no multiple of {alignment}"
        ));
    }
    let numel: u64 = size.iter().map(|n| *n as u64).product();
    // Below 2^48 values: the product cannot overflow.
    let bytes = numel / layout.values as u64 * layout.bytes as u64;
    let first = start.checked_add(offset);
    let end = first.and_then(|first| first.checked_add(bytes));
    match (first, end) {
        (Some(first), Some(end)) if end <= length as u64 => Ok(first as usize..end as usize),
        _ => Err(format!(
            "it ends within the tensor `{name}`: {length} bytes, {bytes} from {offset} of its data are needed"
        )),
    }
}
