//! One block: attention and MLP around the residual stream.

use densely_core::Result;
use tch::Tensor;

use crate::attention::Attention;
use crate::hooks::{Point, Tape};
use crate::kv::KvCache;
use crate::mlp::Mlp;
use crate::norm::Norm;
use crate::positions::Pass;

#[derive(Debug)]
pub(crate) struct Block {
    pub ln1: Norm,
    /// `None` where attention and MLP share the first: GPT-J.
    pub ln2: Option<Norm>,
    pub attention: Attention,
    pub mlp: Mlp,
    /// Whether attention and MLP read the same residual.
    pub parallel: bool,
}

impl Block {
    /// The norm before the MLP.
    pub(crate) fn second_norm(&self) -> &Norm {
        self.ln2.as_ref().unwrap_or(&self.ln1)
    }

    /// The residual `[batch, time, d]` to the one that leaves the block.
    pub(crate) fn pass(
        &self,
        residual: Tensor,
        layer: usize,
        pass: &Pass,
        kv: Option<&mut KvCache>,
        tape: &mut Tape<'_, '_>,
    ) -> Result<Tensor> {
        let at = |point: Point| point.at(layer);
        let residual = tape.pass(at(Point::ResidPre), residual)?;
        let first = [at(Point::Ln1Scale), at(Point::Ln1Normalized)];
        let second = [at(Point::Ln2Scale), at(Point::Ln2Normalized)];
        let normed = self.ln1.pass(&residual, tape, first)?;
        let source = (&self.ln1, &residual);
        let attended = self
            .attention
            .pass(&normed, source, layer, pass, kv, tape)?;
        let attended = tape.pass(at(Point::AttnOut), attended)?;

        let (between, normed) = if self.parallel {
            let asked = first.iter().chain(&second).any(|place| tape.wants(*place))
                || tape.wants(at(Point::MlpIn));
            // One norm feeds both: what nobody looks at is not computed twice.
            let shared = (self.ln2.is_none() && !asked).then_some(normed);
            (None, shared)
        } else {
            let between = residual.f_add(&attended)?;
            (Some(tape.pass(at(Point::ResidMid), between)?), None)
        };
        let normed = if let Some(normed) = normed {
            normed
        } else {
            let into = between.as_ref().unwrap_or(&residual);
            let place = at(Point::MlpIn);
            // A node of its own in the graph: the residual's gradient comes from elsewhere too.
            let own = if tape.gradients && tape.wants(place) {
                into.f_view_as(into)?
            } else {
                into.shallow_clone()
            };
            let into = &tape.pass(place, own)?;
            self.second_norm().pass(into, tape, second)?
        };
        let written = self.mlp.pass(&normed, layer, tape)?;
        let written = tape.pass(at(Point::MlpOut), written)?;
        let after = match between {
            Some(between) => between.f_add(&written)?,
            None => residual.f_add(&attended)?.f_add(&written)?,
        };
        tape.pass(at(Point::ResidPost), after)
    }
}
