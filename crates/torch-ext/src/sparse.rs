//! Layers of which few outputs are active: only those are kept, multiplied and given gradients. For f32 on the CPU.

use tch::Tensor;

use crate::bridge::ffi;
use crate::rows::all_owned;
use crate::{address, owned};

/// Which outputs of a layer are active; never more than those above 0 but for [`Above`](Self::Above), whose bounds may be below.
#[derive(Debug, Clone, Copy)]
pub enum Select<'a> {
    /// Those above a bound, `[n]`, or above 0.
    Above(Option<&'a Tensor>),
    /// The k largest of each row, after a factor for each, `[n]`, where there is one; of equal ones the first.
    PerRow {
        /// How many.
        k: i64,
        /// Factors by which they are compared.
        scale: Option<&'a Tensor>,
    },
    /// The k largest of all rows together, after a factor for each column, `[n]`, where there is one; of equal ones the first.
    OfAll {
        /// How many.
        k: i64,
        /// Factors by which they are compared, above 0.
        scale: Option<&'a Tensor>,
    },
}

/// The active values of some rows.
#[derive(Debug)]
pub struct Active {
    /// i64 `[rows + 1]`: row r has the values `offsets[r]..offsets[r + 1]`.
    pub offsets: Tensor,
    /// i32 `[active]`, ascending in each row.
    pub columns: Tensor,
    /// `[active]`.
    pub values: Tensor,
}

/// The active values of x W + b, with x `[rows, d]`, W `[d, n]` and b `[n]`; differentiable once. `None` when more than a share `most` of all values is
/// active, so that dense products are faster. A weight that lies in memory as `[n, d]` is the fastest.
///
/// # Errors
/// A sentence, when shapes or kinds do not fit.
pub fn encode(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    select: Select,
    most: f64,
) -> Result<Option<Active>, String> {
    let (number, k, bound, scale) = match select {
        Select::Above(bound) => (0, 0, bound.map_or(0, address), 0),
        Select::PerRow { k, scale } => (1, k, 0, scale.map_or(0, address)),
        Select::OfAll { k, scale } => (2, k, 0, scale.map_or(0, address)),
    };
    if number > 0 && k < 1 {
        return Err(format!("at least one value must be active, got {k}"));
    }
    let (x, weight, bias) = (address(x), address(weight), address(bias));
    // SAFETY: the addresses are those of tensors borrowed for the call, or 0.
    let made = unsafe { ffi::sparse_encode(x, weight, bias, number, k, bound, scale, most) };
    let mut made = all_owned(made)?.into_iter();
    match (made.next(), made.next(), made.next()) {
        (Some(offsets), Some(columns), Some(values)) => Ok(Some(Active {
            offsets,
            columns,
            values,
        })),
        _ => Ok(None),
    }
}

/// Rows Σ value · W[column] over the active values of each, with W `[n, d]`; differentiable once in values and W.
///
/// # Errors
/// A sentence, when shapes or kinds do not fit, or a column is beyond W.
pub fn decode(active: &Active, weight: &Tensor) -> Result<Tensor, String> {
    let (values, offsets) = (address(&active.values), address(&active.offsets));
    let (columns, weight) = (address(&active.columns), address(weight));
    // SAFETY: the addresses are those of tensors borrowed for the call.
    unsafe { owned(ffi::sparse_decode(values, offsets, columns, weight)) }
}
