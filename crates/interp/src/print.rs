//! Which model a file belongs to: its sizes, the kind of its numbers and its weights in a few letters.
//!
//! The mean of the absolute values stands for a parameter, summed in double precision and taken with seven digits: machines add up in other orders,
//! which shows far behind those. A parameter that is put back to the bit gives the same print again.

use std::fmt;

use densely_core::Result;
use densely_lm::Lm;
use tch::{Kind, Tensor};

use crate::edit::{sizes, wide};

/// 64 bits of bytes (FNV-1a).
#[derive(Debug)]
pub(crate) struct Fnv(u64);

impl Fnv {
    pub(crate) fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

impl fmt::Display for Fnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A model as far as it makes the keys of a layer's second MLP matrix: embeddings, and all of the layers up to that one but that matrix itself
/// and its bias, which edits change.
pub(crate) fn below(model: &Lm, layer: usize) -> Result<String> {
    let out = model.mlp_out_name(layer)?;
    let bias = format!("{}bias", out.strip_suffix("weight").unwrap_or(&out));
    let mut parts = vec![("w_e".to_owned(), model.w_e())];
    parts.extend(model.w_pos()?.map(|table| ("w_pos".to_owned(), table)));
    let inner = model.parameters().into_iter().filter(|(name, _)| {
        layer_of(name).is_some_and(|own| own <= layer) && *name != out && *name != bias
    });
    parts.extend(inner);
    let kind = model.kind();
    Ok(format!(
        "{}, {kind:?}, weights {}",
        sizes(model.config()),
        print(parts)?
    ))
}

/// All weights of a model.
pub(crate) fn whole(model: &Lm) -> Result<String> {
    print(model.parameters())
}

/// The layer in a published name, such as 8 in `transformer.h.8.mlp.c_proj.weight`.
fn layer_of(name: &str) -> Option<usize> {
    name.split('.').find_map(|part| part.parse().ok())
}

fn print(parts: impl IntoIterator<Item = (String, Tensor)>) -> Result<String> {
    let _guard = tch::no_grad_guard();
    let mut hash = Fnv::new();
    for (name, xs) in parts {
        hash.add(format!("{name} {:?} {:.6e}\n", xs.size(), mean(&xs)?).as_bytes());
    }
    Ok(hash.to_string())
}

/// Entries that are summed at once: bounds the memory.
const TOGETHER: i64 = 1 << 24;

/// The mean of absolute values.
fn mean(xs: &Tensor) -> Result<f64> {
    let mut total = 0.0;
    for part in xs.f_reshape([-1])?.f_split(TOGETHER, 0)? {
        let part = part.f_totype(wide(xs.kind()))?.f_abs()?;
        total += part.f_sum(Kind::Double)?.f_double_value(&[])?;
    }
    Ok(total / xs.numel().max(1) as f64)
}
