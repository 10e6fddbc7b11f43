//! Just enough of the safetensors format to compare goldens: files are small and may be damaged.

use std::collections::BTreeMap;

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;

/// A file's metadata and tensors.
#[derive(Debug)]
pub(crate) struct Parsed<'a> {
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) tensors: BTreeMap<String, Tensor<'a>>,
}

/// One tensor as it lies in the file.
#[derive(Debug, PartialEq)]
pub(crate) struct Tensor<'a> {
    pub(crate) dtype: String,
    pub(crate) shape: Vec<u64>,
    pub(crate) bytes: &'a [u8],
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (usize, usize),
}

/// Reads a file that lies in memory.
pub(crate) fn parse(file: &[u8]) -> Result<Parsed<'_>> {
    let (length, rest) = file
        .split_first_chunk::<8>()
        .ok_or_else(|| anyhow!("it is shorter than 8 bytes"))?;
    let length = usize::try_from(u64::from_le_bytes(*length)).context("its header is too long")?;
    if length > rest.len() {
        bail!("its header claims {length} bytes of {}", rest.len());
    }
    let (header, body) = rest.split_at(length);
    let header: BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(header).context("its header is not JSON")?;
    let mut parsed = Parsed {
        metadata: BTreeMap::new(),
        tensors: BTreeMap::new(),
    };
    for (name, value) in header {
        if name == "__metadata__" {
            parsed.metadata = serde_json::from_value(value).context("its metadata is not text")?;
            continue;
        }
        let entry: Entry = serde_json::from_value(value)
            .with_context(|| format!("its entry {name} is malformed"))?;
        let bytes = body
            .get(entry.data_offsets.0..entry.data_offsets.1)
            .ok_or_else(|| anyhow!("its tensor {name} lies outside the file"))?;
        parsed.tensors.insert(
            name,
            Tensor {
                dtype: entry.dtype,
                shape: entry.shape,
                bytes,
            },
        );
    }
    Ok(parsed)
}

impl Tensor<'_> {
    /// Values of a floating-point tensor; `None` for other types.
    fn floats(&self) -> Option<Vec<f64>> {
        match self.dtype.as_str() {
            "F32" => Some(
                self.bytes
                    .as_chunks::<4>()
                    .0
                    .iter()
                    .map(|bytes| f64::from(f32::from_le_bytes(*bytes)))
                    .collect(),
            ),
            "F64" => Some(
                self.bytes
                    .as_chunks::<8>()
                    .0
                    .iter()
                    .map(|bytes| f64::from_le_bytes(*bytes))
                    .collect(),
            ),
            _ => None,
        }
    }
}

/// The first difference between two files beyond `|a - b| <= atol + rtol * |b|`; `None` when there is none.
pub(crate) fn difference(
    new: &Parsed<'_>,
    old: &Parsed<'_>,
    rtol: f64,
    atol: f64,
) -> Option<String> {
    for name in old.tensors.keys().chain(new.tensors.keys()) {
        let (Some(a), Some(b)) = (new.tensors.get(name), old.tensors.get(name)) else {
            return Some(format!("{name} is in one of the files only"));
        };
        if (&a.dtype, &a.shape) != (&b.dtype, &b.shape) {
            return Some(format!(
                "{name} was {} {:?} and is {} {:?}",
                b.dtype, b.shape, a.dtype, a.shape
            ));
        }
        match (a.floats(), b.floats()) {
            (Some(xs), Some(ys)) => {
                let apart = |x: f64, y: f64| {
                    !(x.to_bits() == y.to_bits()
                        || (x.is_nan() && y.is_nan())
                        || (x - y).abs() <= atol + rtol * y.abs())
                };
                if let Some(index) = xs.iter().zip(&ys).position(|(x, y)| apart(*x, *y)) {
                    return Some(format!(
                        "{name}[{index}] was {:?} and is {:?}",
                        ys.get(index),
                        xs.get(index)
                    ));
                }
            }
            _ if a.bytes != b.bytes => return Some(format!("{name} has other values")),
            _ => {}
        }
    }
    (new.metadata.get("config") != old.metadata.get("config"))
        .then(|| "config in the metadata differs".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(values: &[f32]) -> Vec<u8> {
        let header = format!(
            r#"{{"__metadata__":{{"config":"{{}}"}},"x":{{"dtype":"F32","shape":[{}],"data_offsets":[0,{}]}}}}"#,
            values.len(),
            values.len() * 4
        );
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        bytes
    }

    #[test]
    fn small_differences_pass_and_big_ones_are_named() -> Result<()> {
        let (a, b, c, d) = (
            file(&[1.0, 2.0]),
            file(&[1.0, 2.000_001]),
            file(&[1.0, f32::NAN]),
            file(&[1.0]),
        );
        let (a, b, c, d) = (parse(&a)?, parse(&b)?, parse(&c)?, parse(&d)?);
        assert_eq!(difference(&a, &b, 1e-5, 1e-6), None);
        assert!(difference(&a, &b, 0.0, 1e-9).is_some_and(|text| text.starts_with("x[1] was")));
        assert!(difference(&a, &c, 1.0, 1.0).is_some() && difference(&c, &c, 0.0, 0.0).is_none());
        assert!(difference(&a, &d, 1.0, 1.0).is_some_and(|text| text.contains("[1]")));
        Ok(())
    }

    #[test]
    fn damaged_files_are_errors_and_not_panics() {
        let whole = file(&[1.0, 2.0]);
        for cut in 0..whole.len() {
            assert!(parse(&whole[..cut]).is_err(), "{cut}");
        }
        let mut huge = whole.clone();
        huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(parse(&huge).is_err());
        let reversed = br#"{"x":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#;
        let mut bytes = (reversed.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(reversed);
        assert!(parse(&bytes).is_err());
    }
}
