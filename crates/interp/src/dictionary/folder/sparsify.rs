//! Folders of the package `eai-sparsify`.

use std::path::Path;

use densely_core::weights::{self, Tensors};
use densely_core::{Error, Result, fs};
use serde_json::json;

use super::super::config::{Activation, InputBias, Normalize, Role};
use super::super::{Dead, DictionaryConfig, Objective};
use super::{Folded, Metadata, Plan, field, for_file, matrix, read_object, signed};

pub(super) const WEIGHTS: &str = "sae.safetensors";
const SETTINGS: &str = "cfg.json";

/// The package's names and this crate's.
const NAMES: [(&str, &str); 4] = [
    ("encoder.bias", "b_enc"),
    ("W_dec", "W_dec"),
    ("b_dec", "b_dec"),
    ("W_skip", "W_skip"),
];

pub(super) fn plan(folder: &Path) -> Result<Plan> {
    let settings = folder.join(SETTINGS);
    let fields = read_object(&settings)?;
    let path = folder.join(WEIGHTS);
    let mut found = weights::read(&path)?.tensors;
    let (d_sae, d_in) = matrix(&path, &found, "encoder.weight")?;
    if let Some(stated) = field::<i64>(&settings, &fields, "d_in")?
        && stated != d_in
    {
        let reason = format!("`d_in` is {stated}, and the weights say {d_in}");
        return Err(Error::corrupt(&settings, reason));
    }
    let activation: String =
        field(&settings, &fields, "activation")?.unwrap_or_else(|| "topk".to_owned());
    if activation != "topk" {
        return Err(Error::Unsupported {
            what: format!("the activation `{activation}` of {}", settings.display()),
            hint: "`topk` is computed".to_owned(),
        });
    }
    let transcode: bool = field(&settings, &fields, "transcode")?.unwrap_or(false);
    let skip: bool = field(&settings, &fields, "skip_connection")?.unwrap_or(false);
    let mut tensors = Tensors::new();
    if let Some(weight) = found.remove("encoder.weight") {
        tensors.insert("W_enc".to_owned(), weight.f_tr()?);
    }
    for (theirs, ours) in NAMES {
        if let Some(xs) = found.remove(theirs) {
            tensors.insert(ours.to_owned(), xs);
        }
    }
    // What is left is named as unknown when the rest is loaded.
    tensors.append(&mut found);
    let base = DictionaryConfig::skip_transcoder();
    Ok(Plan {
        config: DictionaryConfig {
            role: if transcode {
                Role::Transcoder
            } else {
                Role::Autoencoder
            },
            d_in,
            d_out: d_in,
            d_sae,
            activation: Activation::TopK {
                k: field(&settings, &fields, "k")?.unwrap_or(32),
                rescale: false,
            },
            input_bias: if transcode {
                InputBias::None
            } else {
                InputBias::Shared
            },
            skip,
            objective: Objective {
                dead: Dead::Nothing {},
                ..base.objective
            },
            ..base
        },
        metadata: field(&settings, &fields, "metadata")?.unwrap_or_default(),
        tensors,
        path,
        format: "eai-sparsify",
    })
}

/// Why the package cannot hold a dictionary; none where it can.
pub(super) fn lacks(config: &DictionaryConfig) -> Option<&'static str> {
    if !matches!(config.activation, Activation::TopK { .. }) {
        return Some("eai-sparsify has the k largest features alone");
    }
    let shared = config.role == Role::Transcoder || config.input_bias == InputBias::Shared;
    if config.d_in == config.d_out && config.normalize == Normalize::None && shared {
        return None;
    }
    Some(
        "eai-sparsify has no two widths, no scaled inputs and no autoencoders without a bias of their input",
    )
}

pub(super) fn save(folded: &Folded, metadata: &Metadata, folder: &Path) -> Result<()> {
    let config = &folded.config;
    let Activation::TopK { k, .. } = config.activation else {
        return Err(Error::config("activation", "must be `top-k`"));
    };
    let transcode = config.role == Role::Transcoder;
    let mut tensors = for_file(&folded.tensors)?;
    for (theirs, ours) in NAMES {
        if let Some(xs) = tensors.remove(ours) {
            tensors.insert(theirs.to_owned(), xs);
        }
    }
    if let Some(weight) = tensors.remove("W_enc") {
        tensors.insert("encoder.weight".to_owned(), weight.f_tr()?);
    }
    let settings = json!({
        "activation": "topk",
        "expansion_factor": config.d_sae / config.d_in,
        "normalize_decoder": !transcode,
        "num_latents": config.d_sae,
        "k": k,
        "multi_topk": false,
        "skip_connection": config.skip,
        "transcode": transcode,
        "d_in": config.d_in,
        "metadata": metadata,
    });
    weights::save(&folder.join(WEIGHTS), &tensors, &signed())?;
    let text = format!("{settings:#}\n");
    fs::write(&folder.join(SETTINGS), text.as_bytes())
}
