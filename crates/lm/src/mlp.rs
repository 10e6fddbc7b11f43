//! The MLP of a block, plain or gated.

use densely_core::Result;
use tch::Tensor;

use crate::config::Activation;
use crate::hooks::{Point, Tape};
use crate::linear::Projection;

impl Activation {
    /// Applied to each value.
    ///
    /// # Errors
    /// [`Error::Torch`](densely_core::Error::Torch) for a tensor of whole numbers.
    pub fn apply(self, xs: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::GeluNew => xs.f_gelu("tanh")?,
            Self::Gelu => xs.f_gelu("none")?,
            Self::Relu => xs.f_relu()?,
            Self::Silu => xs.f_silu()?,
        })
    }
}

/// `out(act(up(x)))`, or `out(act(gate(x)) · up(x))`.
#[derive(Debug)]
pub(crate) struct Mlp {
    pub up: Projection,
    pub gate: Option<Projection>,
    pub out: Projection,
    pub activation: Activation,
}

impl Mlp {
    /// `[batch, time, d]` to the same.
    pub(crate) fn pass(
        &self,
        xs: &Tensor,
        layer: usize,
        tape: &mut Tape<'_, '_>,
    ) -> Result<Tensor> {
        let at = |point: Point| point.at(layer);
        let up = self.up.forward(xs)?; // [batch, time, m]
        let post = match &self.gate {
            Some(gate) => {
                let pre = tape.pass(at(Point::MlpPre), gate.forward(xs)?)?;
                let up = tape.pass(at(Point::MlpPreLinear), up)?;
                self.activation.apply(&pre)?.f_mul(&up)?
            }
            None => self.activation.apply(&tape.pass(at(Point::MlpPre), up)?)?,
        };
        let post = tape.pass(at(Point::MlpPost), post)?;
        self.out.forward(&post)
    }
}
