//! Files of fields: weights and what they mean, in few bits.
//!
//! A safetensors file. Its metadata hold `preset`, `field` (the [`Pipeline`] as JSON) and, for `packed` tensors, a table of name to shape, bits and scale. A
//! packed tensor is a row of bytes: its levels ([`Quantiser::Symmetric`]), one or two bytes each with the low one first, deflated; a weight is
//! level / (2^(bits-1) - 1) · scale.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;

use densely_core::{Error, Result, Tensors, weights};
use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::field::{Pipeline, metadata};
use crate::cam::compress::Quantiser;

/// How weights are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// As they are, 32 bits.
    Full,
    /// 16-bit floating point.
    Half,
    /// Whole numbers of 2 to 16 bits with a scale for each tensor, deflated.
    Bits(u32),
}

/// A packed tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Packed {
    shape: Vec<i64>,
    bits: u32,
    scale: f32,
}

/// Tensors of fewer values are not worth a rounding error.
const LEAST: usize = 16;

/// Most values of a packed tensor.
const MOST: i64 = 1 << 32;

/// Writes a field; gives the bytes of the file.
pub(super) fn write(
    path: &Path,
    pipeline: &Pipeline,
    tensors: &Tensors,
    precision: Precision,
) -> Result<u64> {
    let mut table = BTreeMap::new();
    let mut out = Tensors::new();
    for (name, xs) in tensors {
        let xs = xs.detach().to_device(tch::Device::Cpu);
        let small = xs.kind() != Kind::Float || xs.numel() < LEAST;
        let written = match precision {
            Precision::Full => xs,
            _ if small => xs,
            Precision::Half => xs.to_kind(Kind::Half),
            Precision::Bits(bits) => {
                let (packed, bytes) = pack(path, &xs, bits)?;
                table.insert(name.clone(), packed);
                bytes
            }
        };
        out.insert(name.clone(), written);
    }
    let mut metadata = metadata(pipeline)?;
    if !table.is_empty() {
        let text = serde_json::to_string(&table);
        let text = text.map_err(|e| Error::config("packed", e.to_string()))?;
        metadata.insert("packed".to_owned(), text);
    }
    weights::save(path, &out, &metadata)?;
    Ok(std::fs::metadata(path).map_err(Error::io(path))?.len())
}

fn pack(path: &Path, xs: &Tensor, bits: u32) -> Result<(Packed, Tensor)> {
    let rule = Quantiser::Symmetric { bits };
    rule.validate()?;
    let levels: Vec<i64> = Vec::try_from(rule.levels(xs).flatten(0, -1))?;
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
    for level in &levels {
        let bytes = (*level as i16).to_le_bytes();
        let used = if bits <= 8 { &bytes[..1] } else { &bytes[..] };
        encoder.write_all(used).map_err(Error::io(path))?;
    }
    let bytes = encoder.finish().map_err(Error::io(path))?;
    let packed = Packed {
        shape: xs.size(),
        bits,
        scale: xs.abs().max().clamp_min(1e-6).double_value(&[]) as f32,
    };
    Ok((packed, Tensor::from_slice(&bytes)))
}

fn unpack(name: &str, path: &Path, packed: &Packed, bytes: &Tensor) -> Result<Tensor> {
    let wrong = |reason: String| Error::corrupt(path, format!("`{name}`: {reason}"));
    let rule = Quantiser::Symmetric { bits: packed.bits };
    rule.validate().map_err(|e| wrong(e.to_string()))?;
    let mut count = 1i64;
    for side in &packed.shape {
        let all = count.checked_mul(*side);
        count = all
            .filter(|all| *side >= 0 && (0..=MOST).contains(all))
            .ok_or_else(|| wrong(format!("no tensor is as large as {:?}", packed.shape)))?;
    }
    if !(packed.scale.is_finite() && packed.scale > 0.0) {
        return Err(wrong(format!("its scale is {}", packed.scale)));
    }
    if bytes.kind() != Kind::Uint8 || bytes.dim() != 1 {
        return Err(wrong("is no row of bytes".to_owned()));
    }
    let bytes: Vec<u8> = Vec::try_from(bytes)?;
    let width = if packed.bits <= 8 { 1 } else { 2 };
    let expected = count as u64 * width;
    let mut plain = Vec::new();
    // A few bytes can claim any number of others: one more than is right tells enough.
    DeflateDecoder::new(bytes.as_slice())
        .take(expected + 1)
        .read_to_end(&mut plain)
        .map_err(|e| wrong(e.to_string()))?;
    if plain.len() as u64 != expected {
        return Err(wrong(format!(
            "holds {} bytes or more, expected {expected}",
            plain.len()
        )));
    }
    let most = 2f32.powi(packed.bits as i32 - 1) - 1.0;
    let level = |level: i16| f32::from(level) / most * packed.scale;
    let values: Vec<f32> = if width == 1 {
        plain
            .iter()
            .map(|byte| level(i16::from(*byte as i8)))
            .collect()
    } else {
        let pairs = plain.chunks_exact(2);
        pairs
            .map(|pair| level(i16::from_le_bytes([pair[0], pair[1]])))
            .collect()
    };
    Ok(Tensor::from_slice(&values).f_view(packed.shape.as_slice())?)
}

/// Largest whole number in a config: no network has more of anything, and tables have their logarithm there.
const LARGEST: u64 = 1 << 20;

/// Refuses a config of a network that no memory holds.
fn check_sizes(path: &Path, config: &serde_json::Value) -> Result<()> {
    use serde_json::Value;
    match config {
        Value::Number(number) if number.as_u64().is_some_and(|size| size > LARGEST) => {
            let reason = format!("its config has a size of {number}");
            Err(Error::corrupt(path, reason))
        }
        Value::Array(values) => values.iter().try_for_each(|value| check_sizes(path, value)),
        Value::Object(fields) => fields
            .values()
            .try_for_each(|value| check_sizes(path, value)),
        _ => Ok(()),
    }
}

/// Reads a field: what it is, and its weights in 32 bits, of which none is larger than that of its name in what `build` makes of the former.
pub(super) fn read<T>(
    path: &Path,
    build: impl FnOnce(Pipeline) -> Result<(T, Tensors)>,
) -> Result<(T, Tensors)> {
    let file = weights::read(path)?;
    let text = file.metadata.get("field").ok_or_else(|| {
        let reason = "holds weights, but not what they mean; expected a file of `densely field compress` or a run folder";
        Error::corrupt(path, reason)
    })?;
    let pipeline: Pipeline = serde_json::from_str(text)
        .map_err(|e| Error::corrupt(path, format!("what it says of itself cannot be read: {e}")))?;
    check_sizes(path, &pipeline.config)?;
    let table: BTreeMap<String, Packed> = match file.metadata.get("packed") {
        Some(text) => serde_json::from_str(text)
            .map_err(|e| Error::corrupt(path, format!("its table of packed tensors: {e}")))?,
        None => BTreeMap::new(),
    };
    let (built, own) = build(pipeline)?;
    let mut tensors = Tensors::new();
    for (name, xs) in &file.tensors {
        let xs = match table.get(name) {
            // Not unpacked for a network that has no use for it: a few bytes can become many.
            Some(packed) if own.get(name).is_none_or(|own| own.size() != packed.shape) => {
                let own = own.get(name).map(Tensor::size);
                let reason = format!(
                    "`{name}` has the sizes {:?}, and the network {own:?}",
                    packed.shape
                );
                return Err(Error::corrupt(path, reason));
            }
            Some(packed) => unpack(name, path, packed, xs)?,
            None if xs.kind() == Kind::Half => xs.to_kind(Kind::Float),
            None => xs.shallow_clone(),
        };
        tensors.insert(name.clone(), xs);
    }
    Ok((built, tensors))
}
