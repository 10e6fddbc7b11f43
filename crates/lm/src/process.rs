//! Rewritings of the weights that leave the predictions as they are: each explicit, each giving a new model.
//!
//! Dictionaries and circuits of the literature are often trained on such models; nothing here happens on loading. A processed model holds
//! parameters of its own, its head is no longer tied, and it may have biases that the family's files lack (of the head, of queries, keys and
//! values, of what attention writes).

use std::collections::btree_map::Entry;

use densely_core::weights::Tensors;
use densely_core::{Error, Result};
use tch::{Kind, Tensor};

use crate::config::{Architecture, LmConfig};
use crate::model::{Lm, Parts};
use crate::names::Names;
use crate::norm::wide;

/// Which rewritings, in the order in which they are done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(clippy::struct_excessive_bools, reason = "four independent switches")]
pub struct Processing {
    /// [`fold_ln`].
    pub fold_ln: bool,
    /// [`center_writing_weights`]; not for RMS models.
    pub center_writing_weights: bool,
    /// [`center_unembed`].
    pub center_unembed: bool,
    /// [`fold_value_biases`].
    pub fold_value_biases: bool,
}

impl Processing {
    /// What TransformerLens does by default with a model of this config.
    pub const fn transformer_lens(config: &LmConfig) -> Self {
        Self {
            fold_ln: true,
            center_writing_weights: !config.rms(),
            center_unembed: true,
            fold_value_biases: true,
        }
    }
}

/// The model with all rewritings of `what`.
///
/// # Errors
/// Those of each.
pub fn process(model: &Lm, what: &Processing) -> Result<Lm> {
    let mut work = Work::new(model)?;
    if what.fold_ln {
        work.fold_ln()?;
    }
    if what.center_writing_weights {
        work.center_writing_weights()?;
    }
    if what.center_unembed {
        work.center_unembed()?;
    }
    if what.fold_value_biases {
        work.fold_value_biases()?;
    }
    work.finish()
}

/// The model whose norms scale and shift nothing: their weights and biases are in the matrices that read after them. In models with
/// `LayerNorm` each reading matrix also loses its mean over the width, which the norm's output does not have.
///
/// Log-probabilities, residuals and what attention and MLP write stay as they are.
/// # Errors
/// [`Error::Torch`] when there is no memory for a second model.
pub fn fold_ln(model: &Lm) -> Result<Lm> {
    let what = Processing {
        fold_ln: true,
        ..Processing::default()
    };
    process(model, &what)
}

/// The model whose embeddings, and matrices and biases that write into the residual, have mean 0 over the width. Residuals lose their mean,
/// which every `LayerNorm` removes anyway.
///
/// # Errors
/// [`Error::Unsupported`] for RMS norms, which do not remove it.
pub fn center_writing_weights(model: &Lm) -> Result<Lm> {
    let what = Processing {
        center_writing_weights: true,
        ..Processing::default()
    };
    process(model, &what)
}

/// The model whose head has mean 0 over the vocabulary. Logits shift by a number of each position; log-probabilities stay.
///
/// # Errors
/// Those of [`fold_ln`].
pub fn center_unembed(model: &Lm) -> Result<Lm> {
    let what = Processing {
        center_unembed: true,
        ..Processing::default()
    };
    process(model, &what)
}

/// The model whose values have no biases: since each head's weights sum to 1, what they would write is a part of the bias that attention
/// writes.
///
/// # Errors
/// Those of [`fold_ln`].
pub fn fold_value_biases(model: &Lm) -> Result<Lm> {
    let what = Processing {
        fold_value_biases: true,
        ..Processing::default()
    };
    process(model, &what)
}

/// Copies of a model's parameters, in f32 or wider, on the way to another model.
struct Work {
    config: LmConfig,
    parts: Parts,
    family: &'static Names,
    tensors: Tensors,
    kind: Kind,
}

impl Work {
    fn new(model: &Lm) -> Result<Self> {
        let config = LmConfig {
            tied: false,
            ..model.config().clone()
        };
        let family = Names::of(config.architecture);
        let kind = model.kind();
        let copy = |xs: &Tensor| -> Result<Tensor> {
            // Copied even where the kind stays, so that the models share nothing.
            Ok(xs.f_detach()?.f_to_kind(wide(kind))?.f_add_scalar(0.0)?)
        };
        let mut tensors = Tensors::new();
        for (name, xs) in model.parameters() {
            tensors.insert(name, copy(&xs)?);
        }
        let head = family.head_weight();
        if let Entry::Vacant(place) = tensors.entry(head) {
            place.insert(copy(model.head_parts().0)?);
        }
        let parts = Parts {
            tied: false,
            ..model.parts()
        };
        Ok(Self {
            config,
            parts,
            family,
            tensors,
            kind,
        })
    }

    fn finish(mut self) -> Result<Lm> {
        let kind = self.kind;
        let tensors = &mut self.tensors;
        Lm::assemble(self.config, self.parts, &mut |name, size, _| {
            let absent = || Error::config(name, "is not among the processed parameters");
            let xs = tensors.remove(name).ok_or_else(absent)?;
            densely_core::check::shape(name, &xs, &some(size))?;
            Ok(xs.f_to_kind(kind)?)
        })
    }

    const fn turned(&self) -> bool {
        matches!(self.config.architecture, Architecture::Gpt2)
    }

    fn get(&self, name: &str) -> Result<Tensor> {
        let absent = || Error::config(name, "is not among the model's parameters");
        Ok(self.tensors.get(name).ok_or_else(absent)?.shallow_clone())
    }

    /// The matrix `{name}.weight` as `[in, out]`.
    fn matrix(&self, name: &str, turned: bool) -> Result<Tensor> {
        let weight = self.get(&format!("{name}.weight"))?;
        Ok(if turned { weight } else { weight.f_tr()? })
    }

    fn set_matrix(&mut self, name: &str, turned: bool, matrix: &Tensor) -> Result<()> {
        let weight = if turned {
            matrix.shallow_clone()
        } else {
            matrix.f_tr()?.f_contiguous()?
        };
        self.tensors.insert(format!("{name}.weight"), weight);
        Ok(())
    }

    /// Adds to the bias `{name}.bias`, which is 0 where it is absent.
    fn add_bias(&mut self, name: &str, more: &Tensor) -> Result<()> {
        let name = format!("{name}.bias");
        let sum = match self.tensors.get(&name) {
            Some(bias) => bias.f_add(more)?,
            None => more.shallow_clone(),
        };
        self.tensors.insert(name, sum);
        Ok(())
    }

    /// Puts the scale and shift of a norm into a matrix that reads after it.
    fn fold_into(&mut self, name: &str, turned: bool, norm: &str) -> Result<()> {
        let matrix = self.matrix(name, turned)?;
        let scale = self.get(&format!("{norm}.weight"))?;
        let shift = self.tensors.get(&format!("{norm}.bias"));
        if let Some(shift) = shift.map(Tensor::shallow_clone) {
            self.add_bias(
                name,
                &shift.f_unsqueeze(0)?.f_matmul(&matrix)?.f_squeeze_dim(0)?,
            )?;
        }
        let mut folded = matrix.f_mul(&scale.f_unsqueeze(1)?)?;
        if !self.config.rms() {
            folded = folded.f_sub(&folded.f_mean_dim(0i64, true, None::<Kind>)?)?;
        }
        self.set_matrix(name, turned, &folded)
    }

    /// Makes a norm scale and shift nothing.
    fn reset_norm(&mut self, norm: &str) -> Result<()> {
        for (part, value) in [("weight", 1.0), ("bias", 0.0)] {
            let name = format!("{norm}.{part}");
            if let Some(xs) = self.tensors.get(&name) {
                let plain = xs.f_full_like(value)?;
                self.tensors.insert(name, plain);
            }
        }
        Ok(())
    }

    fn fold_ln(&mut self) -> Result<()> {
        let (family, turned) = (self.family, self.turned());
        for layer in 0..self.config.n_layers {
            let at = |part: &str| family.block(layer, part);
            let first = at(family.ln1);
            let second = if family.ln2.is_empty() {
                first.clone()
            } else {
                at(family.ln2)
            };
            for part in family.read {
                self.fold_into(&at(part), turned, &first)?;
            }
            self.fold_into(&at(family.up), turned, &second)?;
            if !family.gate.is_empty() {
                self.fold_into(&at(family.gate), turned, &second)?;
            }
            self.reset_norm(&first)?;
            self.reset_norm(&second)?;
        }
        let last = family.outer(family.norm);
        self.fold_into(family.head, false, &last)?;
        self.reset_norm(&last)?;
        if !self.config.rms() {
            self.parts.read_bias = true;
            self.parts.head_bias = true;
        }
        Ok(())
    }

    fn center_writing_weights(&mut self) -> Result<()> {
        if self.config.rms() {
            return Err(Error::Unsupported {
                what: "centring what an RMS model writes".to_owned(),
                hint: "its norms do not remove the mean, so predictions would change".to_owned(),
            });
        }
        let (family, turned) = (self.family, self.turned());
        let mut tables = vec![format!("{}.weight", family.outer(family.embed))];
        if self.config.learned_positions() {
            tables.push(format!("{}.weight", family.outer(family.positions)));
        }
        for name in tables {
            let centred = centre(&self.get(&name)?, -1)?;
            self.tensors.insert(name, centred);
        }
        for layer in 0..self.config.n_layers {
            for part in [family.write, family.down] {
                let name = family.block(layer, part);
                let centred = centre(&self.matrix(&name, turned)?, 1)?;
                self.set_matrix(&name, turned, &centred)?;
                let bias = format!("{name}.bias");
                if let Some(xs) = self.tensors.get(&bias) {
                    let centred = centre(xs, 0)?;
                    self.tensors.insert(bias, centred);
                }
            }
        }
        Ok(())
    }

    fn center_unembed(&mut self) -> Result<()> {
        let head = self.family.head;
        let names = [format!("{head}.weight"), format!("{head}.bias")];
        for name in names {
            if let Some(xs) = self.tensors.get(&name) {
                let centred = centre(xs, 0)?;
                self.tensors.insert(name, centred);
            }
        }
        Ok(())
    }

    fn fold_value_biases(&mut self) -> Result<()> {
        if !self.parts.read_bias {
            return Ok(());
        }
        let (family, turned) = (self.family, self.turned());
        for layer in 0..self.config.n_layers {
            let write = family.block(layer, family.write);
            let values = self.take_value_bias(layer)?; // [kv heads, width]
            let group = self.config.n_heads / self.config.n_kv_heads;
            let size = [self.config.n_kv_heads, group, self.config.d_head];
            let by_head = values.f_unsqueeze(1)?.f_expand(size, false)?;
            let row = by_head.f_reshape([1, self.config.n_heads * self.config.d_head])?;
            let written = row.f_matmul(&self.matrix(&write, turned)?)?;
            self.add_bias(&write, &written.f_squeeze_dim(0)?)?;
        }
        self.parts.write_bias = true;
        Ok(())
    }

    /// The biases of a layer's values `[kv heads, width]`, leaving 0 in their place.
    fn take_value_bias(&mut self, layer: usize) -> Result<Tensor> {
        let family = self.family;
        let (heads, width) = (self.config.n_kv_heads, self.config.d_head);
        let name = |part: &str| format!("{}.bias", family.block(layer, part));
        match family.read {
            [all] => {
                let name = name(all);
                let bias = self.get(&name)?;
                let (cut, axis) = if self.turned() {
                    (bias.f_unflatten(0, [3, heads, width])?, 0)
                } else {
                    (bias.f_unflatten(0, [heads, 3, width])?, 1)
                };
                let values = cut.f_select(axis, 2)?;
                let without = cut.f_select_scatter(&values.f_zeros_like()?, axis, 2)?;
                self.tensors.insert(name, without.f_flatten(0, -1)?);
                Ok(values)
            }
            [.., value] => {
                let name = name(value);
                let bias = self.get(&name)?;
                self.tensors.insert(name, bias.f_zeros_like()?);
                Ok(bias.f_unflatten(0, [heads, width])?)
            }
            [] => Err(Error::config("architecture", "has no names for its values")),
        }
    }
}

/// `xs` without its mean over `axis`.
fn centre(xs: &Tensor, axis: i64) -> Result<Tensor> {
    Ok(xs.f_sub(&xs.f_mean_dim(axis, true, None::<Kind>)?)?)
}

fn some(size: &[i64]) -> Vec<Option<i64>> {
    size.iter().copied().map(Some).collect()
}
