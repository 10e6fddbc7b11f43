//! Rows that occur several times: which ones there are, and sums over those that are the same, in the order of the rows. For f32 on the CPU.

use tch::Tensor;

use crate::bridge::ffi;
use crate::{address, owned};

/// Rows of a table and what each is to be increased by; a row may come several times.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    /// i64 `[n]`.
    pub ids: &'a Tensor,
    /// `[n, dim]`.
    pub values: &'a Tensor,
    /// Rows that the table has.
    pub limit: i64,
}

/// Takes over what C++ made.
pub(crate) fn all_owned(made: Result<Vec<usize>, cxx::Exception>) -> Result<Vec<Tensor>, String> {
    let made = made.map_err(|e| e.what().to_owned())?;
    // SAFETY: each is the address of a new tensor.
    made.into_iter()
        .map(|pointer| unsafe { owned(Ok(pointer)) })
        .collect()
}

/// For each table the rows that occur, ascending, and the sums of what they have; tables are worked on side by side.
///
/// # Errors
/// A sentence, when shapes or kinds do not fit, or an id is beyond its table.
pub fn sums(tables: &[Rows]) -> Result<Vec<(Tensor, Tensor)>, String> {
    let of = |each: fn(&Rows) -> usize| tables.iter().map(each).collect::<Vec<_>>();
    let (ids, values) = (of(|t| address(t.ids)), of(|t| address(t.values)));
    let limits: Vec<i64> = tables.iter().map(|table| table.limit).collect();
    // SAFETY: the addresses are those of tensors borrowed for the call.
    let mut made = all_owned(unsafe { ffi::sum_rows(&ids, &values, &limits) })?.into_iter();
    let pairs = std::iter::from_fn(|| made.next().zip(made.next()));
    Ok(pairs.collect())
}

/// The ids that occur among `ids` (i64 `[n]`, below `limit`), ascending, and the place of each of them there, `[n]`.
///
/// # Errors
/// A sentence, when they are not i64 on the CPU, or beyond the limit.
pub fn distinct(ids: &Tensor, limit: i64) -> Result<(Tensor, Tensor), String> {
    // SAFETY: the address is that of a tensor borrowed for the call.
    let mut made = all_owned(unsafe { ffi::distinct(address(ids), limit) })?.into_iter();
    let both = made.next().zip(made.next());
    both.ok_or_else(|| "two tensors were due".to_owned())
}

/// Rows `place` (i64 `[n]`) of `rows` `[m, dim]`, as `index_select`; differentiable once, on all threads.
///
/// # Errors
/// A sentence, when shapes or kinds do not fit.
pub fn repeat(rows: &Tensor, place: &Tensor) -> Result<Tensor, String> {
    // SAFETY: the addresses are those of tensors borrowed for the call.
    unsafe { owned(ffi::repeat_rows(address(rows), address(place))) }
}
