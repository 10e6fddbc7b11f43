//! Norms: `LayerNorm` and RMS norm, with the hook points within them.

use densely_core::Result;
use tch::{Kind, Tensor};

use crate::hooks::Tape;

/// A norm over the last axis, then a scale and, in a `LayerNorm`, a shift.
#[derive(Debug)]
pub(crate) struct Norm {
    /// `[d]`.
    pub weight: Tensor,
    /// `[d]`; an RMS norm has none.
    pub bias: Option<Tensor>,
    pub eps: f64,
    /// Whether only the mean square is divided out.
    pub rms: bool,
}

/// The kind that sums of squares and exponents are computed in.
pub(crate) fn wide(kind: Kind) -> Kind {
    match kind {
        Kind::Double => Kind::Double,
        _ => Kind::Float,
    }
}

impl Norm {
    /// `[.., d]` to `[.., d]`.
    pub(crate) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        if self.rms {
            let kind = xs.kind();
            let wide = xs.f_to_kind(wide(kind))?;
            let rate = self.mean_square(&wide)?.f_rsqrt()?;
            let normed = wide.f_mul(&rate)?.f_to_kind(kind)?;
            return Ok(normed.f_mul(&self.weight)?);
        }
        let bias = self.bias.as_ref();
        Ok(xs.f_layer_norm(self.weight.size(), Some(&self.weight), bias, self.eps, true)?)
    }

    fn mean_square(&self, wide: &Tensor) -> Result<Tensor> {
        let mean = wide.f_square()?.f_mean_dim(-1i64, true, None::<Kind>)?;
        Ok(mean.f_add_scalar(self.eps)?)
    }

    /// What the norm divides by `[.., 1]`, in f32 or wider, and the quotient `[.., d]` before scale and shift, in the kind of `xs`.
    fn parts(&self, xs: &Tensor) -> Result<(Tensor, Tensor)> {
        let mut wide = xs.f_to_kind(wide(xs.kind()))?;
        if !self.rms {
            wide = wide.f_sub(&wide.f_mean_dim(-1i64, true, None::<Kind>)?)?;
        }
        let scale = self.mean_square(&wide)?.f_sqrt()?;
        Ok((scale, wide))
    }

    /// What the norm divides by: `[.., d]` to `[.., 1]`, in f32 or wider.
    pub(crate) fn scale(&self, xs: &Tensor) -> Result<Tensor> {
        Ok(self.parts(xs)?.0)
    }

    /// The norm, with its two hook points. What is only recorded is computed beside the pass, which keeps its bits; where a hook changes
    /// it, or gradients with respect to it are wanted, the pass goes through it.
    pub(crate) fn pass(
        &self,
        xs: &Tensor,
        tape: &mut Tape<'_, '_>,
        places: [usize; 2],
    ) -> Result<Tensor> {
        let [scale_place, normalized_place] = places;
        if !tape.wants(scale_place) && !tape.wants(normalized_place) {
            return self.forward(xs);
        }
        let kind = xs.kind();
        let (scale, centred) = self.parts(xs)?;
        let new_scale = tape.change(scale_place, &scale)?;
        let scale = new_scale.as_ref().unwrap_or(&scale);
        let normalized = centred.f_div(scale)?.f_to_kind(kind)?;
        let new = tape.change(normalized_place, &normalized)?;
        if new_scale.is_none() && new.is_none() && !tape.gradients {
            return self.forward(xs);
        }
        let ys = new.as_ref().unwrap_or(&normalized).f_mul(&self.weight)?;
        match &self.bias {
            Some(bias) => Ok(ys.f_add(bias)?),
            None => Ok(ys),
        }
    }
}
