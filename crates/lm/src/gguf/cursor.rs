//! Reading the header of a GGUF file byte by byte.

use super::{List, Value};

/// Lists within lists at most.
const MAX_DEPTH: usize = 4;

/// Type of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Item {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Flag,
    Text,
    List,
    U64,
    I64,
    F64,
}

impl Item {
    const ALL: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Flag,
        Self::Text,
        Self::List,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    /// Bytes of one, at least.
    const fn least(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::Flag => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::Text | Self::U64 | Self::I64 | Self::F64 => 8,
            Self::List => 12,
        }
    }
}

/// A place in the bytes of a file; what lies there is read with checks.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    pub(super) const fn at(bytes: &'a [u8], position: usize) -> Self {
        Self { bytes, position }
    }

    pub(super) const fn position(&self) -> usize {
        self.position
    }

    fn rest(&self) -> u64 {
        self.bytes.len().saturating_sub(self.position) as u64
    }

    /// Fails unless `count` things of at least `least` bytes can follow.
    pub(super) fn claim(&self, count: u64, least: u64, what: &str) -> Result<(), String> {
        match count.checked_mul(least) {
            Some(bytes) if bytes <= self.rest() => Ok(()),
            _ => Err(format!(
                "it says that {count} {what} follow, and has {} more bytes",
                self.rest()
            )),
        }
    }

    fn take(&mut self, count: usize, what: &str) -> Result<&'a [u8], String> {
        let end = self.position.checked_add(count);
        let bytes = end.and_then(|end| self.bytes.get(self.position..end));
        let bytes = bytes
            .ok_or_else(|| format!("it ends within {what}, after {} bytes", self.bytes.len()))?;
        self.position += count;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], String> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, what)?);
        Ok(array)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// The bytes of a text.
    fn text_bytes(&mut self, most: usize, what: &str) -> Result<&'a [u8], String> {
        let length = self.u64(what)?;
        if length > most as u64 {
            return Err(format!("{what} of {length} bytes is longer than {most}"));
        }
        self.take(length as usize, what)
    }

    pub(super) fn text(&mut self, most: usize, what: &str) -> Result<String, String> {
        let bytes = self.text_bytes(most, what)?;
        let text = std::str::from_utf8(bytes).map_err(|_| format!("{what} is not UTF-8"))?;
        Ok(text.to_owned())
    }

    pub(super) fn item(&mut self, key: &str) -> Result<Item, String> {
        let number = self.u32(key)?;
        let item = Item::ALL.get(number as usize).copied();
        item.ok_or_else(|| format!("the type of its `{key}` is {number}, 0 to 12 are known"))
    }

    /// The value of type `item` that follows. Of a list only the place is read, and checked.
    pub(super) fn value(&mut self, item: Item, key: &str) -> Result<Value, String> {
        Ok(match item {
            Item::U8 => Value::Unsigned(u64::from(u8::from_le_bytes(self.array(key)?))),
            Item::I8 => Value::Signed(i64::from(i8::from_le_bytes(self.array(key)?))),
            Item::U16 => Value::Unsigned(u64::from(u16::from_le_bytes(self.array(key)?))),
            Item::I16 => Value::Signed(i64::from(i16::from_le_bytes(self.array(key)?))),
            Item::U32 => Value::Unsigned(u64::from(self.u32(key)?)),
            Item::I32 => Value::Signed(i64::from(i32::from_le_bytes(self.array(key)?))),
            Item::F32 => Value::Number(decimal(f32::from_le_bytes(self.array(key)?))),
            Item::U64 => Value::Unsigned(self.u64(key)?),
            Item::I64 => Value::Signed(i64::from_le_bytes(self.array(key)?)),
            Item::F64 => Value::Number(f64::from_le_bytes(self.array(key)?)),
            Item::Flag => match self.array::<1>(key)?[0] {
                0 => Value::Flag(false),
                1 => Value::Flag(true),
                other => return Err(format!("its `{key}` is neither 0 nor 1, but {other}")),
            },
            Item::Text => Value::Text(self.text(usize::MAX, key)?),
            Item::List => Value::List(self.list(key, 0)?),
        })
    }

    /// The place of the list that follows, which is passed over.
    fn list(&mut self, key: &str, depth: usize) -> Result<List, String> {
        if depth >= MAX_DEPTH {
            return Err(format!("its `{key}` has lists within lists within lists"));
        }
        let item = self.item(key)?;
        let count = self.u64(key)?;
        self.claim(count, item.least(), key)?;
        let start = self.position;
        // At most as many as the file has bytes, by the claim.
        let count = count as usize;
        match item {
            Item::Text => {
                for _ in 0..count {
                    self.text_bytes(usize::MAX, key)?;
                }
            }
            Item::List => {
                for _ in 0..count {
                    self.list(key, depth + 1)?;
                }
            }
            other => {
                self.take(count * other.least() as usize, key)?;
            }
        }
        Ok(List { item, count, start })
    }
}

/// The number that is meant by one of 32 bits: 0.00001, not 0.000009999999747.
fn decimal(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}
