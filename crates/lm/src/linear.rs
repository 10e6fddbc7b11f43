//! A matrix in either of the layouts of the reference's files.

use densely_core::Result;
use tch::Tensor;

/// `y = x W + b` over the last axis.
#[derive(Debug)]
pub(crate) struct Projection {
    /// `[out, in]`, or `[in, out]` where `turned`.
    pub weight: Tensor,
    /// `[out]`.
    pub bias: Option<Tensor>,
    /// Whether the weight is stored `[in, out]`, as GPT-2's are.
    pub turned: bool,
}

impl Projection {
    pub(crate) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let bias = self.bias.as_ref();
        if self.turned {
            return Ok(xs.f_linear(&self.weight.f_tr()?, bias)?);
        }
        Ok(xs.f_linear(&self.weight, bias)?)
    }

    /// The matrix as `[in, out]`, sharing the parameter's memory.
    pub(crate) fn matrix(&self) -> Result<Tensor> {
        if self.turned {
            return Ok(self.weight.shallow_clone());
        }
        Ok(self.weight.f_tr()?)
    }
}
