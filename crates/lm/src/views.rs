//! The weights by the names of the circuits literature: by head, in row-vector order (`y = x W + b`), as views of the parameters.

use densely_core::{Error, Result};
use tch::{Kind, Tensor};

use crate::attention::Part;
use crate::model::Lm;

/// A weight that every layer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// `W_Q`: `[heads, d, d_head]`.
    Q,
    /// `W_K`: `[kv heads, d, d_head]`.
    K,
    /// `W_V`: `[kv heads, d, d_head]`.
    V,
    /// `W_O`: `[heads, d_head, d]`.
    O,
    /// `b_Q`: `[heads, d_head]`.
    BQ,
    /// `b_K`: `[kv heads, d_head]`.
    BK,
    /// `b_V`: `[kv heads, d_head]`.
    BV,
    /// `b_O`: `[d]`.
    BO,
    /// `W_in`: `[d, d_mlp]`.
    In,
    /// `W_gate`: `[d, d_mlp]`, of gated models.
    Gate,
    /// `W_out`: `[d_mlp, d]`.
    Out,
    /// `b_in`: `[d_mlp]`.
    BIn,
    /// `b_out`: `[d]`.
    BOut,
}

/// A matrix of low rank held as the product `left · right`, which is never formed.
#[derive(Debug)]
pub struct Factored {
    /// `[d, d_head]`.
    pub left: Tensor,
    /// `[d_head, d]`.
    pub right: Tensor,
}

impl Factored {
    /// `x · left · right`.
    ///
    /// # Errors
    /// [`Error::Torch`] for rows of another width.
    pub fn apply(&self, xs: &Tensor) -> Result<Tensor> {
        Ok(xs.f_matmul(&self.left)?.f_matmul(&self.right)?)
    }

    /// The matrix itself, `[d, d]`.
    ///
    /// # Errors
    /// [`Error::Torch`] when there is no memory for it.
    pub fn product(&self) -> Result<Tensor> {
        Ok(self.left.f_matmul(&self.right)?)
    }

    /// Its singular values, the largest first, from the factors alone: `[d_head]`.
    ///
    /// # Errors
    /// [`Error::Torch`] when they are not finite.
    pub fn singular_values(&self) -> Result<Tensor> {
        // left = Q R and rightᵀ = P S with orthonormal Q, P: those of R Sᵀ are those of the product.
        let (_, left) = Tensor::f_linalg_qr(&self.left, "r")?;
        let (_, right) = Tensor::f_linalg_qr(&self.right.f_tr()?, "r")?;
        let (_, values, _) = left.f_matmul(&right.f_tr()?)?.f_svd(true, false)?;
        Ok(values)
    }
}

impl Lm {
    /// A weight of one layer as a view that shares the parameter's memory. Biases that the model lacks are 0.
    ///
    /// # Errors
    /// [`Error::Config`] for a layer beyond the last; [`Error::Unsupported`] for the gate of a model that has none.
    pub fn weight(&self, weight: Weight, layer: usize) -> Result<Tensor> {
        let block = self.block(layer)?;
        let (attention, mlp, config) = (&block.attention, &block.mlp, self.config());
        let heads = |n: i64| vec![n, config.d_head];
        let view = match weight {
            Weight::Q => return attention.read_matrix(Part::Query),
            Weight::K => return attention.read_matrix(Part::Key),
            Weight::V => return attention.read_matrix(Part::Value),
            Weight::O => return attention.write_matrix(),
            Weight::In => return mlp.up.matrix(),
            Weight::Out => return mlp.out.matrix(),
            Weight::Gate => {
                let absent = || Error::Unsupported {
                    what: "W_gate of a model whose MLP is not gated".to_owned(),
                    hint: "W_in and W_out are all it has".to_owned(),
                };
                return mlp.gate.as_ref().ok_or_else(absent)?.matrix();
            }
            Weight::BQ => (attention.read_bias(Part::Query)?, heads(config.n_heads)),
            Weight::BK => (attention.read_bias(Part::Key)?, heads(config.n_kv_heads)),
            Weight::BV => (attention.read_bias(Part::Value)?, heads(config.n_kv_heads)),
            Weight::BO => (clone(attention.out.bias.as_ref()), vec![config.d_model]),
            Weight::BIn => (clone(mlp.up.bias.as_ref()), vec![config.d_mlp]),
            Weight::BOut => (clone(mlp.out.bias.as_ref()), vec![config.d_model]),
        };
        match view {
            (Some(bias), _) => Ok(bias),
            (None, size) => Ok(Tensor::f_zeros(size, (self.kind(), self.device()))?),
        }
    }

    /// A weight of all layers, `[layers, ..]`: a copy.
    ///
    /// # Errors
    /// Those of [`weight`](Self::weight).
    pub fn weights(&self, weight: Weight) -> Result<Tensor> {
        let layers: Vec<Tensor> = (0..self.config().n_layers)
            .map(|layer| self.weight(weight, layer))
            .collect::<Result<_>>()?;
        Ok(Tensor::f_stack(&layers, 0)?)
    }

    /// `W_E`: `[vocab, d]`, sharing the parameter's memory.
    pub fn w_e(&self) -> Tensor {
        self.tables().0.shallow_clone()
    }

    /// `W_pos` of the positions from 0 on: `[n_ctx, d]`, sharing the parameter's memory; `None` in rotary models.
    ///
    /// # Errors
    /// [`Error::Torch`] never for a model that was made by this crate.
    pub fn w_pos(&self) -> Result<Option<Tensor>> {
        let config = self.config();
        let cut = |table: &Tensor| table.f_narrow(0, config.position_offset(), config.n_ctx);
        Ok(self.tables().1.map(cut).transpose()?)
    }

    /// `W_U`: `[d, vocab]`, a turned view of the parameter.
    ///
    /// # Errors
    /// [`Error::Torch`] never for a model that was made by this crate.
    pub fn w_u(&self) -> Result<Tensor> {
        Ok(self.head_parts().0.f_tr()?)
    }

    /// `b_U`: `[vocab]`; 0 where the model has none.
    ///
    /// # Errors
    /// [`Error::Torch`] when there is no memory for it.
    pub fn b_u(&self) -> Result<Tensor> {
        if let Some(bias) = self.head_parts().1 {
            return Ok(bias.shallow_clone());
        }
        let size = [self.config().vocab_size];
        Ok(Tensor::f_zeros(size, (self.kind(), self.device()))?)
    }

    /// Row and column of a head within a part.
    fn head_of(&self, part: Weight, layer: usize, head: i64) -> Result<Tensor> {
        let config = self.config();
        if !(0..config.n_heads).contains(&head) {
            let reason = format!("must lie in 0 to {}, got {head}", config.n_heads - 1);
            return Err(Error::config("head", reason));
        }
        let row = match part {
            Weight::K | Weight::V => head / (config.n_heads / config.n_kv_heads),
            _ => head,
        };
        Ok(self.weight(part, layer)?.f_select(0, row)?)
    }

    /// What a head moves: `W_V · W_O`, from the residual it reads to the one it writes.
    ///
    /// # Errors
    /// [`Error::Config`] for a layer or head that the model lacks.
    pub fn ov(&self, layer: usize, head: i64) -> Result<Factored> {
        Ok(Factored {
            left: self.head_of(Weight::V, layer, head)?,
            right: self.head_of(Weight::O, layer, head)?,
        })
    }

    /// Where a head looks: `W_Q · W_Kᵀ`, the form between the residuals of query and key (without rotary positions).
    ///
    /// # Errors
    /// [`Error::Config`] for a layer or head that the model lacks.
    pub fn qk(&self, layer: usize, head: i64) -> Result<Factored> {
        Ok(Factored {
            left: self.head_of(Weight::Q, layer, head)?,
            right: self.head_of(Weight::K, layer, head)?.f_tr()?,
        })
    }

    /// What each head writes into the residual, from its mixed values: `hook_z` `[batch, time, heads, d_head]` to
    /// `[batch, time, heads, d]`. Their sum over heads and `b_O` is `hook_attn_out`.
    ///
    /// # Errors
    /// [`Error::Shape`] for another shape; [`Error::Config`] for a layer beyond the last.
    pub fn head_results(&self, layer: usize, zs: &Tensor) -> Result<Tensor> {
        let config = self.config();
        let expected = [None, None, Some(config.n_heads), Some(config.d_head)];
        densely_core::check::shape("hook_z", zs, &expected)?;
        self.block(layer)?.attention.results(zs)
    }

    /// What the last norm divides by at a residual `[.., d]`: `[.., 1]`, in f32 or wider.
    ///
    /// # Errors
    /// [`Error::Torch`] for another width.
    pub fn final_scale(&self, residual: &Tensor) -> Result<Tensor> {
        self.norm.scale(residual)
    }

    /// A part of the residual as the last norm passes it on where its scale is held fixed: without its mean (in a `LayerNorm`), divided by
    /// `scale`, times the norm's weight. Over all parts these and the norm's bias sum to the norm's output.
    ///
    /// # Errors
    /// [`Error::Torch`] for shapes that do not broadcast.
    pub fn frozen_norm(&self, part: &Tensor, scale: &Tensor) -> Result<Tensor> {
        let mut wide = part.f_to_kind(crate::norm::wide(part.kind()))?;
        if !self.norm.rms {
            wide = wide.f_sub(&wide.f_mean_dim(-1i64, true, None::<Kind>)?)?;
        }
        let divided = wide.f_div(scale)?;
        Ok(divided.f_mul(&self.norm.weight.f_to_kind(divided.kind())?)?)
    }
}

fn clone(xs: Option<&Tensor>) -> Option<Tensor> {
    xs.map(Tensor::shallow_clone)
}
