//! ROME: one fact into one layer, by a matrix of rank one.
//!
//! Paper: Meng et al. 2022, arXiv 2202.05262. Follows: kmeng01/rome `rome/compute_u.py`, `rome/compute_v.py`.
//!
//! With k the input of the layer's second matrix W at the subject's last token and C = E[k kᵀ] over ordinary text, the change is
//! u ⊗ (v* - v) / (k·u) with u along C⁻¹k̄, where k̄ is the mean key over prefixes and v* makes the target follow. The
//! released code takes k and v from the bare prompt while u comes from k̄; where the two keys differ much, k·u gets small and the edit
//! blows up (arXiv 2403.07175). [`KeyMode::Averaged`], the default, takes k̄ for both, so that k̄ (W + ΔW) + b = v* whatever k·u.

use densely_core::{Error, Result};
use densely_lm::Lm;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::moments::Moments;
use super::request::Request;
use super::star::{Place, StarOptions, keys, optimise};
use super::{Change, Delta, Edit, double};

/// Which key the new value is written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyMode {
    /// The mean over prefixes, and what the matrix gives for it.
    #[default]
    Averaged,
    /// That of the prompt alone, and what the MLP gives for it, as in the released code.
    Reference,
}

impl KeyMode {
    /// As in options and files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Averaged => "averaged",
            Self::Reference => "reference",
        }
    }
}

/// Settings of ROME.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RomeOptions {
    /// The layer that is changed.
    pub layer: usize,
    /// Which key the new value is written for.
    pub key: KeyMode,
    /// The search for the new value.
    pub star: StarOptions,
}

impl RomeOptions {
    /// ROME at a layer, with everything else as it is by default.
    pub fn new(layer: usize) -> Self {
        Self {
            layer,
            key: KeyMode::default(),
            star: StarOptions::default(),
        }
    }
}

/// An edit of ROME and the numbers behind it; tensors are of kind double on the CPU.
#[derive(Debug)]
pub struct Rome {
    /// The change.
    pub edit: Edit,
    /// Mean key over prefixes, `[m]`.
    pub averaged_key: Tensor,
    /// The key that the value is written for, `[m]`.
    pub key: Tensor,
    /// What the layer gave for that key, `[d]`.
    pub value: Tensor,
    /// Direction of the change among keys, of length 1, `[m]`.
    pub u: Tensor,
    /// What the MLP wrote for the prompt alone, `[d]`.
    pub initial: Tensor,
    /// What the layer shall write, `[d]`.
    pub star: Tensor,
    /// The loss of each evaluation of the search.
    pub losses: Vec<f64>,
}

impl Rome {
    /// Norm of what the search added, and the norm of what it was added to.
    ///
    /// # Errors
    /// None that can be foreseen.
    pub fn norms(&self) -> Result<(f64, f64)> {
        let added = self.star.f_sub(&self.initial)?.f_norm()?;
        Ok((
            added.f_double_value(&[])?,
            self.initial.f_norm()?.f_double_value(&[])?,
        ))
    }
}

/// Computes ROME's change of a model for a request. The model is left as it is.
///
/// # Errors
/// [`Error::Config`] for a layer that the model lacks, settings out of range or a prompt that does not fit; [`Error::Shape`] when the
/// moments are of another width; [`Error::Data`] when the key and the direction are at right angles; [`Error::Diverged`].
pub fn rome(
    model: &Lm,
    request: &Request,
    moments: &Moments,
    options: &RomeOptions,
) -> Result<Rome> {
    let layer = options.layer;
    let name = model.mlp_out_name(layer)?;
    let (groups, own_value) = keys(model, request, layer)?;
    let found = optimise(model, request, layer, Place::Mlp, &options.star)?;
    let _guard = tch::no_grad_guard();
    let all = double(&Tensor::f_cat(&groups, 0)?)?; // [rows, m]
    let averaged = all.f_mean_dim([0i64].as_slice(), false, Kind::Double)?;
    let column = moments.solve(&averaged.f_unsqueeze(1)?)?.f_squeeze_dim(1)?;
    let u = column.f_div(&column.f_norm()?)?;
    let (key, value) = match options.key {
        KeyMode::Averaged => {
            let matrix = double(&model.mlp_out(layer)?)?; // [m, d]
            let mut value = averaged
                .f_unsqueeze(0)?
                .f_matmul(&matrix)?
                .f_squeeze_dim(0)?;
            if let Some(bias) = model.mlp_out_bias(layer)? {
                value = value.f_add(&double(&bias)?)?;
            }
            (averaged.shallow_clone(), value)
        }
        KeyMode::Reference => (all.f_select(0, 0)?, double(&own_value)?),
    };
    let along = key.f_dot(&u)?.f_double_value(&[])?;
    let length = key.f_norm()?.f_double_value(&[])?;
    if !along.is_finite() || along.abs() <= 1e-12 * length {
        let reason = format!(
            "the key of layer {layer} (norm {length:.3e}) has no part along the direction of the change ({along:.3e})"
        );
        return Err(Error::data("", reason));
    }
    let star = double(&found.value)?;
    let right = star.f_sub(&value)?.f_div_scalar(along)?.f_unsqueeze(0)?;
    let delta = Delta::LowRank {
        left: u.f_unsqueeze(1)?,
        right,
    };
    let changes = vec![Change { name, layer, delta }];
    Ok(Rome {
        edit: Edit::new(model, "rome", changes),
        averaged_key: averaged,
        key,
        value,
        u,
        initial: double(&found.initial)?,
        star,
        losses: found.losses,
    })
}
