//! Dictionaries of one file: NumPy's archives as Gemma Scope has them, and circuit-tracer's transcoders of one layer.

use std::path::Path;

use densely_core::weights::{self, Tensors};
use densely_core::{Error, Result};

use super::super::config::{Activation, InputBias, Role};
use super::super::{Dead, DictionaryConfig, Init, Objective};
use super::{Metadata, Plan, archive, matrix};

/// Gemma Scope: `W_enc` `[d, features]`, `W_dec` `[features, d]`, `b_enc`, `b_dec` and `threshold`. The file does not say whether it is of an
/// autoencoder or a transcoder; its folder's name does.
pub(super) fn npz(path: &Path) -> Result<Plan> {
    let mut tensors = archive::read(path)?;
    for name in ["W_enc", "W_dec", "b_enc", "b_dec"] {
        if !tensors.contains_key(name) {
            return Err(Error::corrupt(path, format!("it lacks `{name}`")));
        }
    }
    let named = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let transcodes = named
        .ancestors()
        .take(4)
        .filter_map(Path::file_name)
        .any(|name| name.to_string_lossy().contains("transcoder"));
    plan(path, &mut tensors, transcodes, "arrays of Gemma Scope")
}

/// circuit-tracer: `W_enc` `[features, d]`, `W_dec` `[features, d]`, `b_enc`, `b_dec`, and `threshold` or `activation_function.threshold`, `W_skip`.
pub(super) fn lines(path: &Path) -> Result<Plan> {
    let mut tensors = weights::read(path)?.tensors;
    let by_line = matrix(path, &tensors, "W_enc")? == matrix(path, &tensors, "W_dec")?;
    if by_line && let Some(weight) = tensors.remove("W_enc") {
        tensors.insert("W_enc".to_owned(), weight.f_tr()?);
    }
    if let Some(threshold) = tensors.remove("activation_function.threshold") {
        tensors.insert("threshold".to_owned(), threshold);
    }
    plan(path, &mut tensors, true, "a transcoder of circuit-tracer")
}

fn plan(
    path: &Path,
    tensors: &mut Tensors,
    transcodes: bool,
    format: &'static str,
) -> Result<Plan> {
    let (d_in, d_sae) = matrix(path, tensors, "W_enc")?;
    let (_, d_out) = matrix(path, tensors, "W_dec")?;
    let activation = if tensors.contains_key("threshold") {
        Activation::JumpRelu {
            threshold: 0.0,
            bandwidth: 0.05,
            ste_to_input: false,
        }
    } else {
        Activation::Relu {}
    };
    let base = DictionaryConfig::transcoder();
    let config = DictionaryConfig {
        role: if transcodes {
            Role::Transcoder
        } else {
            Role::Autoencoder
        },
        d_in,
        d_out,
        d_sae,
        activation,
        // Gemma Scope's autoencoders do not take `b_dec` from their input.
        input_bias: InputBias::None,
        skip: tensors.contains_key("W_skip"),
        init: Init::SaeLens,
        objective: Objective {
            dead: Dead::Nothing {},
            ..base.objective
        },
        ..base
    };
    Ok(Plan {
        config,
        metadata: Metadata::default(),
        tensors: std::mem::take(tensors),
        path: path.to_owned(),
        format,
    })
}
