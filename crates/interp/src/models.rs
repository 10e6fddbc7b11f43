//! The list of presets.
//!
//! `loss`, `loss_mse` and `loss_sparsity` are of all rows together, scalars.

use densely_core::registry::{Preset, TensorSpec, parse_config};
use densely_core::{Model, Result};
use serde_json::{Value, json};
use tch::nn::Path;

use crate::dictionary::cross::CrossConfig;
use crate::dictionary::{Dictionary, DictionaryConfig};

const fn spec(name: &'static str, shape: &'static [&'static str]) -> TensorSpec {
    TensorSpec {
        name,
        shape,
        dtype: "f32",
    }
}

const INPUTS: &[TensorSpec] = &[
    spec("x", &["N", "d_in"]),
    spec("target", &["N", "d_out"]),
    spec("dead", &["d_sae"]),
];

const OUTPUTS: &[TensorSpec] = &[
    spec("features", &["N", "d_sae"]),
    spec("reconstruction", &["N", "d_out"]),
    spec("loss", &[]),
    spec("loss_mse", &[]),
    spec("loss_sparsity", &[]),
];

fn dictionary(config: &Value, path: &Path) -> Result<Box<dyn Model>> {
    let built: Dictionary = parse_config::<DictionaryConfig>(config)?.build(path)?;
    Ok(Box::new(built))
}

fn cross(config: &Value, path: &Path) -> Result<Box<dyn Model>> {
    Ok(Box::new(parse_config::<CrossConfig>(config)?.build(path)?))
}

const TEMPLATE: Preset = Preset {
    name: "",
    domain: "interp",
    paper: "",
    params: 0,
    macs: 0,
    config: || json!({}),
    inputs: INPUTS,
    outputs: OUTPUTS,
    weights: &[],
    dropout: &[],
    build: dictionary,
};

/// The presets.
pub static PRESETS: &[Preset] = &[
    Preset {
        name: "transcoder",
        paper: "Dunefsky, Chlenski, Nanda 2024, arXiv 2406.11944",
        params: 37_774_848,
        macs: 37_748_736,
        config: || json!(DictionaryConfig::transcoder()),
        ..TEMPLATE
    },
    Preset {
        name: "sae",
        paper: "Bricken et al. 2023, Towards Monosemanticity",
        params: 37_774_080,
        macs: 37_748_736,
        config: || json!(DictionaryConfig::sae()),
        ..TEMPLATE
    },
    Preset {
        name: "skip-transcoder",
        paper: "Paulo, Shabalin, Belrose 2025, arXiv 2501.18823",
        params: 38_363_904,
        macs: 38_338_560,
        config: || json!(DictionaryConfig::skip_transcoder()),
        ..TEMPLATE
    },
    Preset {
        name: "clt",
        paper: "Ameisen, Lindsey, Pearce, Gurnee, Turner et al. 2025, Circuit Tracing",
        params: 35_410_944,
        macs: 35_389_440,
        config: || json!(CrossConfig::clt()),
        inputs: &[
            spec("x", &["N", "layers", "d"]),
            spec("target", &["N", "layers", "d"]),
        ],
        outputs: &[
            spec("features", &["N", "layers", "features"]),
            spec("reconstruction", &["N", "layers", "d"]),
            spec("loss", &[]),
            spec("loss_mse", &[]),
            spec("loss_sparsity", &[]),
        ],
        build: cross,
        ..TEMPLATE
    },
];
