//! Changing what a model believes by writing into the second matrices of its MLPs.
//!
//! Three methods: [`rome`](mod@rome) writes one fact into one layer, [`memit`](mod@memit) many into several, [`finetune`](mod@finetune) trains the matrix itself
//! and is what the two are compared with. Each gives an [`Edit`], the change as numbers; [`EditHandle`] writes it into a model
//! and takes it back to the bit. [`score`] says whether an edit did what it should and left the rest alone.
//!
//! Papers: Meng et al. 2022, arXiv 2202.05262 (ROME); Meng et al. 2023, arXiv 2210.07229 (MEMIT). Follows: kmeng01/rome and
//! kmeng01/memit. A matrix is meant as `[m, d]`, from the MLP's hidden values to what it writes, whatever the layout in files.

mod adam;
pub mod finetune;
pub mod memit;
pub mod moments;
pub mod request;
pub mod rome;
mod rows;
pub mod score;
mod star;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use densely_core::weights::{self, Tensors};
use densely_core::{Error, Result, check};
use densely_lm::{Architecture, Lm, LmConfig};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

pub use finetune::{FinetuneOptions, Finetuned, TargetLoss, finetune};
pub use memit::{Memit, MemitOptions, memit};
pub use moments::Moments;
pub use request::{Prefixes, Request, Row};
pub use rome::{KeyMode, Rome, RomeOptions, rome};
pub use star::{Objective, StarOptions};

pub(crate) use rows::{Batch, Noised, sequence_log_probs};

/// A change of a parameter, of kind double on the CPU.
#[derive(Debug)]
pub enum Delta {
    /// `left · right`, `[m, r]` and `[r, d]`.
    LowRank {
        /// `[m, r]`.
        left: Tensor,
        /// `[r, d]`.
        right: Tensor,
    },
    /// The change itself, `[m, d]` of a matrix and `[d]` of a bias.
    Whole(Tensor),
}

impl Delta {
    /// The change itself, `[m, d]` or `[d]`.
    ///
    /// # Errors
    /// [`Error::Torch`] when the factors do not fit each other.
    pub fn tensor(&self) -> Result<Tensor> {
        match self {
            Self::LowRank { left, right } => Ok(left.f_matmul(right)?),
            Self::Whole(delta) => Ok(delta.shallow_clone()),
        }
    }
}

/// A change of one parameter.
#[derive(Debug)]
pub struct Change {
    /// The parameter's published name.
    pub name: String,
    /// Its layer.
    pub layer: usize,
    /// What is added to it.
    pub delta: Delta,
}

impl Change {
    /// The parameter in a model, a matrix as `[m, d]`, sharing its memory.
    fn place(&self, model: &Lm) -> Result<Tensor> {
        if self.name == model.mlp_out_name(self.layer)? {
            return model.mlp_out(self.layer);
        }
        model.parameter(&self.name)
    }
}

/// What a method would change in a model.
#[derive(Debug)]
pub struct Edit {
    /// One for each parameter.
    pub changes: Vec<Change>,
    /// `rome`, `memit` or `finetune`.
    pub method: String,
    /// What for, in words.
    pub about: String,
    /// The sizes of the model that it was made for.
    sizes: String,
}

impl Edit {
    pub(crate) fn new(model: &Lm, method: &str, changes: Vec<Change>) -> Self {
        Self {
            changes,
            method: method.to_owned(),
            about: String::new(),
            sizes: sizes(model.config()),
        }
    }

    /// Norm of the change of each parameter, by name, beside the norm of a model's parameter.
    ///
    /// # Errors
    /// As [`EditHandle::apply`].
    pub fn norms(&self, model: &Lm) -> Result<Vec<(String, f64, f64)>> {
        let _guard = tch::no_grad_guard();
        self.changes
            .iter()
            .map(|change| {
                let norm = |xs: &Tensor| -> Result<f64> {
                    Ok(xs.f_totype(Kind::Double)?.f_norm()?.f_double_value(&[])?)
                };
                let own = norm(&change.place(model)?)?;
                Ok((change.name.clone(), norm(&change.delta.tensor()?)?, own))
            })
            .collect()
    }

    /// Writes the change as safetensors: `NAME.left` and `NAME.right`, or `NAME.delta`, in double precision.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut tensors = Tensors::new();
        let mut layers = BTreeMap::new();
        for change in &self.changes {
            layers.insert(change.name.clone(), change.layer);
            match &change.delta {
                Delta::LowRank { left, right } => {
                    tensors.insert(format!("{}.left", change.name), left.shallow_clone());
                    tensors.insert(format!("{}.right", change.name), right.shallow_clone());
                }
                Delta::Whole(delta) => {
                    tensors.insert(format!("{}.delta", change.name), delta.shallow_clone());
                }
            }
        }
        let layers = serde_json::to_string(&layers)
            .map_err(|error| Error::data(path, format!("cannot be written: {error}")))?;
        let metadata = BTreeMap::from([
            ("kind".to_owned(), KIND.to_owned()),
            ("method".to_owned(), self.method.clone()),
            ("about".to_owned(), self.about.clone()),
            ("sizes".to_owned(), self.sizes.clone()),
            ("layers".to_owned(), layers),
        ]);
        weights::save(path, &tensors, &metadata)
    }

    /// Reads what [`save`](Self::save) wrote. Whether it fits a model is checked when it is applied.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Corrupt`] when it is no such file.
    pub fn load(path: &Path) -> Result<Self> {
        let file = weights::read(path)?;
        let text = |key: &str| -> Result<String> {
            file.metadata.get(key).cloned().ok_or_else(|| {
                let reason = format!("it has no `{key}`, so that it is no edit of a model");
                Error::corrupt(path, reason)
            })
        };
        if text("kind")? != KIND {
            return Err(Error::corrupt(path, "it is no edit of a model"));
        }
        let layers: BTreeMap<String, usize> =
            serde_json::from_str(&text("layers")?).map_err(|error| {
                Error::corrupt(path, format!("`layers` is no list of layers: {error}"))
            })?;
        let mut tensors = file.tensors;
        let mut take = |name: &str, part: &str| tensors.remove(&format!("{name}.{part}"));
        let mut changes = Vec::new();
        for (name, layer) in layers {
            let delta = match (take(&name, "left"), take(&name, "right")) {
                (Some(left), Some(right)) => Delta::LowRank { left, right },
                _ => Delta::Whole(take(&name, "delta").ok_or_else(|| {
                    Error::corrupt(path, format!("it lacks the change of `{name}`"))
                })?),
            };
            let parts = match &delta {
                Delta::LowRank { left, right } => vec![left, right],
                Delta::Whole(delta) => vec![delta],
            };
            if parts.iter().any(|xs| xs.kind() != Kind::Double) {
                let reason = format!("the change of `{name}` is not in double precision");
                return Err(Error::corrupt(path, reason));
            }
            changes.push(Change { name, layer, delta });
        }
        if let Some(name) = tensors.keys().next() {
            return Err(Error::corrupt(
                path,
                format!("`{name}` belongs to no layer"),
            ));
        }
        Ok(Self {
            changes,
            method: text("method")?,
            about: text("about")?,
            sizes: text("sizes")?,
        })
    }
}

const KIND: &str = "densely-edit";

/// What an edit must agree in with a model.
pub(crate) fn sizes(config: &LmConfig) -> String {
    format!(
        "{:?}, {} layers, width {}, hidden width {}",
        config.architecture, config.n_layers, config.d_model, config.d_mlp
    )
}

/// An edit that was written into a model, with the parameters as they were.
///
/// Edits lie on top of each other: the last one written is the first one taken back.
#[derive(Debug)]
pub struct EditHandle {
    edit: Edit,
    originals: Vec<Tensor>,
    applied: bool,
}

impl EditHandle {
    /// Writes an edit into the parameters of a model. Sums are made in double precision and rounded once to the parameter's kind.
    ///
    /// # Errors
    /// [`Error::Config`] when the edit was made for a model of other sizes or has two changes of one parameter;
    /// [`Error::Shape`] when a change does not fit; [`Error::Data`] when a change is not finite. The model is then as it was.
    pub fn apply(model: &Lm, edit: Edit) -> Result<Self> {
        let _guard = tch::no_grad_guard();
        let own = sizes(model.config());
        if edit.sizes != own {
            let reason = format!("was made for a model of {}; this one is {own}", edit.sizes);
            return Err(Error::config("edit", reason));
        }
        let names: BTreeSet<&str> = edit.changes.iter().map(|c| c.name.as_str()).collect();
        if names.len() != edit.changes.len() {
            return Err(Error::config("edit", "has two changes of one parameter"));
        }
        let mut originals = Vec::with_capacity(edit.changes.len());
        for change in &edit.changes {
            let place = change.place(model)?;
            let delta = change.delta.tensor()?;
            check::same_shape(&format!("change of {}", change.name), &delta, &place)?;
            if delta.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
                let reason = format!("the change of `{}` is not finite", change.name);
                return Err(Error::data("", reason));
            }
            originals.push(place.copy());
        }
        let mut handle = Self {
            edit,
            originals,
            applied: false,
        };
        handle.redo(model)?;
        Ok(handle)
    }

    /// The edit.
    pub fn edit(&self) -> &Edit {
        &self.edit
    }

    /// Whether it stands in the model.
    pub fn is_applied(&self) -> bool {
        self.applied
    }

    /// Puts the parameters back, bit for bit.
    ///
    /// # Errors
    /// [`Error::Config`] when a parameter is not as this edit left it, so that going back would lose another change.
    pub fn undo(&mut self, model: &Lm) -> Result<()> {
        if !self.applied {
            return Ok(());
        }
        let _guard = tch::no_grad_guard();
        for (change, original) in self.edit.changes.iter().zip(&self.originals) {
            let now = change.place(model)?;
            if !same_bits(&now, &written(original, &change.delta)?)? {
                let reason = format!(
                    "`{}` was changed again since; take back the later change first",
                    change.name
                );
                return Err(Error::config("edit", reason));
            }
        }
        for (change, original) in self.edit.changes.iter().zip(&self.originals) {
            change.place(model)?.f_copy_(original)?;
        }
        self.applied = false;
        Ok(())
    }

    /// Writes the edit again after [`undo`](Self::undo).
    ///
    /// # Errors
    /// [`Error::Config`] when a parameter is not as it was before the edit.
    pub fn redo(&mut self, model: &Lm) -> Result<()> {
        if self.applied {
            return Ok(());
        }
        let _guard = tch::no_grad_guard();
        // All are made before the first is written.
        let mut new = Vec::with_capacity(self.originals.len());
        for (change, original) in self.edit.changes.iter().zip(&self.originals) {
            if !same_bits(&change.place(model)?, original)? {
                let reason = format!("`{}` is no longer as it was before the edit", change.name);
                return Err(Error::config("edit", reason));
            }
            new.push(written(original, &change.delta)?);
        }
        for (change, new) in self.edit.changes.iter().zip(&new) {
            change.place(model)?.f_copy_(new)?;
        }
        self.applied = true;
        Ok(())
    }

    /// Whether every parameter of the edit holds the very bits that it held before.
    ///
    /// # Errors
    /// [`Error::Config`] when the model lacks a parameter.
    pub fn is_as_before(&self, model: &Lm) -> Result<bool> {
        let _guard = tch::no_grad_guard();
        for (change, original) in self.edit.changes.iter().zip(&self.originals) {
            if !same_bits(&change.place(model)?, original)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// A parameter with a change added.
fn written(original: &Tensor, delta: &Delta) -> Result<Tensor> {
    let delta = delta.tensor()?.f_to(original.device())?;
    Ok(original
        .f_totype(Kind::Double)?
        .f_add(&delta)?
        .f_totype(original.kind())?)
}

/// Whether two tensors of floating-point numbers hold the same bits, shape and kind.
///
/// # Errors
/// [`Error::Torch`] when the kind is none of half, bfloat16, float and double.
pub fn same_bits(a: &Tensor, b: &Tensor) -> Result<bool> {
    if a.size() != b.size() || a.kind() != b.kind() {
        return Ok(false);
    }
    let whole = match a.kind().elt_size_in_bytes() {
        2 => Kind::Int16,
        4 => Kind::Int,
        _ => Kind::Int64,
    };
    let bits =
        |xs: &Tensor| -> Result<Tensor> { Ok(xs.f_detach()?.f_contiguous()?.f_view_dtype(whole)?) };
    Ok(bits(a)?.f_equal(&bits(b)?)?)
}

/// The kind in which a model's edits are computed: at least single precision.
pub(crate) fn wide(kind: Kind) -> Kind {
    match kind {
        Kind::Double => Kind::Double,
        _ => Kind::Float,
    }
}

/// Double precision on the CPU.
pub(crate) fn double(xs: &Tensor) -> Result<Tensor> {
    Ok(xs.f_detach()?.f_to(Device::Cpu)?.f_totype(Kind::Double)?)
}

/// Where and how strongly a model is edited when nothing else is said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Defaults {
    /// ROME's layer.
    pub rome_layer: usize,
    /// Most that ROME's change of the MLP's output may be, in norms of that output.
    pub rome_clamp: f64,
    /// MEMIT's layers.
    pub memit_layers: Vec<usize>,
    /// Weight of the second moment in MEMIT.
    pub memit_lambda: f64,
    /// Evaluations of MEMIT's loss.
    pub memit_steps: usize,
    /// Layer that is finetuned.
    pub finetune_layer: usize,
    /// Most that an entry may change in finetuning.
    pub finetune_clamp: f64,
    /// Whose they are, in words.
    pub said: String,
}

impl Defaults {
    /// The released settings for GPT-2 XL and GPT-J, and of ROME and finetuning for GPT-2 medium and large; MEMIT was not released for those two:
    /// it takes ROME's layer and the four before it there, with the λ and steps of GPT-2 XL. For other models ROME takes the layer nearest to a
    /// third of the depth, MEMIT that one and the four before it, finetuning the first with entries changing by at most 1e-3.
    pub fn of(config: &LmConfig) -> Self {
        let layers = config.n_layers;
        let key = (config.architecture, layers, config.d_model);
        let released = |name: &str, rome_layer, rome_clamp, memit_layers, finetune_clamp| Self {
            rome_layer,
            rome_clamp,
            memit_layers,
            memit_lambda: 20_000.0,
            memit_steps: 20,
            finetune_layer: 0,
            finetune_clamp,
            said: format!("the released settings of {name}"),
        };
        let without_memit = |own: Self| Self {
            said: format!(
                "{} for ROME and finetuning; none were released for MEMIT, whose layers are ours, by proportion to GPT-2 XL, and whose lambda and steps are GPT-2 XL's",
                own.said
            ),
            ..own
        };
        let five = |last: usize| (last.saturating_sub(4)..=last).collect::<Vec<usize>>();
        match key {
            (Architecture::Gpt2, 24, 1024) => {
                without_memit(released("GPT-2 medium", 8, 3.0, five(8), 2e-3))
            }
            (Architecture::Gpt2, 36, 1280) => {
                without_memit(released("GPT-2 large", 12, 4.0, five(12), 1e-3))
            }
            (Architecture::Gpt2, 48, 1600) => {
                released("GPT-2 XL", 17, 4.0, (13..=17).collect(), 5e-4)
            }
            (Architecture::GptJ, 28, 4096) => Self {
                memit_lambda: 15_000.0,
                memit_steps: 25,
                ..released("GPT-J", 5, 4.0, (3..=8).collect(), 5e-5)
            },
            _ => {
                let layer = ((layers as f64 / 3.0).round() as usize).min(layers.saturating_sub(1));
                Self {
                    memit_lambda: 15_000.0,
                    said: format!(
                        "no released settings for this model: layer {layer}, the nearest to a third of its {layers} layers"
                    ),
                    ..released("", layer, 4.0, five(layer), 1e-3)
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_more_than_values() -> Result<()> {
        let zero = Tensor::from_slice(&[0.0f32, f32::NAN]);
        let minus = Tensor::from_slice(&[-0.0f32, f32::NAN]);
        assert!(same_bits(&zero, &zero)?);
        assert!(!same_bits(&zero, &minus)?);
        assert!(!same_bits(&zero, &zero.to_kind(Kind::Double))?);
        let half = zero.to_kind(Kind::BFloat16);
        assert!(same_bits(&half, &half.copy())?);
        Ok(())
    }
}
