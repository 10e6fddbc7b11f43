//! Features of some rows: all of them, or the active ones alone.

use densely_core::{Error, Result};
use densely_torch_ext::sparse::{self, Active};
use tch::{Kind, Tensor};

/// Features `[rows, features]`, held whole or by their active values.
#[derive(Debug)]
pub struct Features(Held);

#[derive(Debug)]
enum Held {
    All(Tensor),
    /// Of so many features a row.
    Few(Active, i64),
}

impl Features {
    pub(super) const fn all(features: Tensor) -> Self {
        Self(Held::All(features))
    }

    pub(super) const fn few(active: Active, features: i64) -> Self {
        Self(Held::Few(active, features))
    }

    /// The values as a function of themselves and of the features that they belong to (one to each value, or all).
    pub(super) fn map(self, f: impl FnOnce(&Tensor, Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(match self.0 {
            Held::All(xs) => {
                let columns = Tensor::f_arange(xs.size()[1], (Kind::Int64, xs.device()))?;
                Self(Held::All(f(&xs, columns)?))
            }
            Held::Few(active, features) => {
                let values = f(&active.values, active.columns.f_to_kind(Kind::Int64)?)?;
                Self(Held::Few(Active { values, ..active }, features))
            }
        })
    }

    /// Whether the active values alone are held.
    pub const fn is_sparse(&self) -> bool {
        matches!(self.0, Held::Few(..))
    }

    /// `[rows, features]`.
    ///
    /// # Errors
    /// [`Error::Torch`] when there is no memory for them.
    pub fn dense(&self) -> Result<Tensor> {
        match &self.0 {
            Held::All(xs) => Ok(xs.shallow_clone()),
            Held::Few(active, features) => {
                let rows = active.offsets.size()[0] - 1;
                let flat = row_of_each(active)?
                    .f_mul_scalar(*features)?
                    .f_add(&active.columns)?;
                let options = (active.values.kind(), active.values.device());
                Ok(Tensor::f_zeros([rows * features], options)?
                    .f_scatter(0, &flat, &active.values)?
                    .f_reshape([rows, *features])?)
            }
        }
    }

    /// Rows Σ f · weight, for a weight `[features, d]`.
    pub(crate) fn times(&self, weight: &Tensor) -> Result<Tensor> {
        match &self.0 {
            Held::All(xs) => Ok(xs.f_matmul(weight)?),
            Held::Few(active, _) => sparse::decode(active, weight).map_err(Error::torch),
        }
    }

    /// Σ of `f` over all features of all rows; `f` is 0 at 0 and sees values and their features.
    pub(super) fn sum(&self, f: impl FnOnce(&Tensor, Of) -> Result<Tensor>) -> Result<Tensor> {
        let xs = match &self.0 {
            Held::All(xs) => f(xs, Of::All)?,
            Held::Few(active, _) => f(
                &active.values,
                Of::Each(active.columns.f_to_kind(Kind::Int64)?),
            )?,
        };
        Ok(xs.f_sum(None::<Kind>)?)
    }

    /// Which features are above 0 in any row, `[features]` of kind bool.
    ///
    /// # Errors
    /// [`Error::Torch`].
    pub fn fired(&self) -> Result<Tensor> {
        Ok(self.counts()?.f_gt(0.0)?)
    }

    /// In how many rows each feature is above 0, `[features]` of kind i64.
    ///
    /// # Errors
    /// [`Error::Torch`].
    pub fn counts(&self) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        match &self.0 {
            Held::All(xs) => {
                Ok(xs
                    .f_gt(0.0)?
                    .f_sum_dim_intlist([0i64].as_slice(), false, Kind::Int64)?)
            }
            Held::Few(active, features) => {
                let on = active.values.f_gt(0.0)?.f_to_kind(Kind::Int64)?;
                let columns = active.columns.f_to_kind(Kind::Int64)?;
                let zeros = Tensor::f_zeros([*features], (Kind::Int64, on.device()))?;
                Ok(zeros.f_index_add(0, &columns, &on)?)
            }
        }
    }

    /// Number of features above 0, of all rows together.
    ///
    /// # Errors
    /// [`Error::Torch`].
    pub fn active(&self) -> Result<i64> {
        let values = match &self.0 {
            Held::All(xs) => xs,
            Held::Few(active, _) => &active.values,
        };
        Ok(values.f_gt(0.0)?.f_sum(Kind::Int64)?.f_int64_value(&[])?)
    }

    /// Row, feature and value of all features above 0, in the order of rows and then features; i64 `[active]` twice, and `[active]`.
    ///
    /// # Errors
    /// [`Error::Torch`].
    pub fn places(&self) -> Result<[Tensor; 3]> {
        let _no_grad = tch::no_grad_guard();
        let [rows, columns, values] = match &self.0 {
            Held::All(xs) => {
                let places = xs.f_gt(0.0)?.f_nonzero()?;
                let (rows, columns) = (places.f_select(1, 0)?, places.f_select(1, 1)?);
                let values = xs.f_index(&[Some(&rows), Some(&columns)])?;
                [rows, columns, values]
            }
            Held::Few(active, _) => [
                row_of_each(active)?,
                active.columns.f_to_kind(Kind::Int64)?,
                active.values.f_detach()?,
            ],
        };
        // A learning threshold keeps values of 0 beside it.
        let on = values.f_gt(0.0)?.f_nonzero()?.f_squeeze_dim(1)?;
        Ok([
            rows.f_index_select(0, &on)?,
            columns.f_index_select(0, &on)?,
            values.f_index_select(0, &on)?,
        ])
    }
}

/// Which features values belong to.
pub(super) enum Of {
    /// One column to each.
    All,
    /// The feature of each value.
    Each(Tensor),
}

impl Of {
    /// Of numbers `[features]`, those that stand beside the values.
    pub(super) fn beside(&self, numbers: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::All => numbers.shallow_clone(),
            Self::Each(columns) => numbers.f_index_select(0, columns)?,
        })
    }
}

/// The row of each active value, i64.
fn row_of_each(active: &Active) -> Result<Tensor> {
    let rows = active.offsets.size()[0] - 1;
    let counts = active
        .offsets
        .f_diff(1, 0, None::<Tensor>, None::<Tensor>)?;
    let all = Tensor::f_arange(rows, (Kind::Int64, active.offsets.device()))?;
    Ok(all.f_repeat_interleave_self_tensor(&counts, 0, active.columns.size()[0])?)
}
