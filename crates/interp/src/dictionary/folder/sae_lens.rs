//! Folders of the package `sae_lens`, 6.x and the flat settings of versions before.

use std::path::Path;

use densely_core::weights;
use densely_core::{Error, Result, fs};
use serde_json::{Map, Value, json};

use super::super::config::{Activation, InputBias, Normalize, Role};
use super::super::{DictionaryConfig, Init};
use super::{Folded, Metadata, Plan, field, for_file, matrix, read_object, signed};

pub(super) const WEIGHTS: &str = "sae_weights.safetensors";
const SETTINGS: &str = "cfg.json";

/// Fields of settings that are no metadata.
const OWN: [&str; 13] = [
    "architecture",
    "d_in",
    "d_out",
    "d_sae",
    "dtype",
    "device",
    "apply_b_dec_to_input",
    "normalize_activations",
    "reshape_activations",
    "k",
    "rescale_acts_by_decoder_norm",
    "activation_fn",
    "metadata",
];

pub(super) fn plan(folder: &Path) -> Result<Plan> {
    let settings = folder.join(SETTINGS);
    let fields = modern(&settings, read_object(&settings)?)?;
    let path = folder.join(WEIGHTS);
    let mut tensors = weights::read(&path)?.tensors;
    let (d_in, d_sae) = matrix(&path, &tensors, "W_enc")?;
    let (_, d_out) = matrix(&path, &tensors, "W_dec")?;
    for (name, found) in [("d_in", d_in), ("d_sae", d_sae), ("d_out", d_out)] {
        if let Some(stated) = field::<i64>(&settings, &fields, name)?
            && stated != found
        {
            let reason = format!("`{name}` is {stated}, and the weights say {found}");
            return Err(Error::corrupt(&settings, reason));
        }
    }
    let architecture: String = field(&settings, &fields, "architecture")?
        .ok_or_else(|| Error::corrupt(&settings, "it does not say its `architecture`"))?;
    let role = if architecture.ends_with("transcoder") {
        Role::Transcoder
    } else {
        Role::Autoencoder
    };
    let base = match role {
        Role::Autoencoder => DictionaryConfig::sae(),
        Role::Transcoder => DictionaryConfig {
            input_bias: InputBias::None,
            init: Init::SaeLens,
            ..DictionaryConfig::transcoder()
        },
    };
    let activation = match architecture.as_str() {
        "standard" | "transcoder" | "skip_transcoder" => Activation::Relu {},
        "topk" => Activation::TopK {
            k: field(&settings, &fields, "k")?
                .ok_or_else(|| Error::corrupt(&settings, "it does not say its `k`"))?,
            rescale: field(&settings, &fields, "rescale_acts_by_decoder_norm")?.unwrap_or(false),
        },
        "jumprelu" | "jumprelu_transcoder" | "jumprelu_skip_transcoder" => Activation::JumpRelu {
            threshold: 0.0,
            bandwidth: 0.05,
            ste_to_input: false,
        },
        "gated" => Activation::Gated {},
        other => {
            return Err(Error::Unsupported {
                what: format!("the architecture `{other}` of {}", settings.display()),
                hint: "standard, topk, jumprelu, gated, transcoder, skip_transcoder, jumprelu_transcoder and jumprelu_skip_transcoder are computed".to_owned(),
            });
        }
    };
    let subtracts: bool =
        field(&settings, &fields, "apply_b_dec_to_input")?.unwrap_or(role == Role::Autoencoder);
    if subtracts && role == Role::Transcoder {
        let reason = "`apply_b_dec_to_input`: a transcoder's `b_dec` is of its output";
        return Err(Error::corrupt(&settings, reason));
    }
    if role == Role::Autoencoder && !subtracts {
        // The parameter is the decoder's alone then.
        tensors.entry("b_dec".to_owned()).and_modify(|_| ());
    }
    let config = DictionaryConfig {
        role,
        d_in,
        d_out,
        d_sae,
        activation,
        input_bias: if subtracts {
            InputBias::Shared
        } else {
            InputBias::None
        },
        skip: architecture.ends_with("skip_transcoder"),
        normalize: normalize(&settings, &fields)?,
        objective: super::super::Objective {
            dead: super::super::Dead::Nothing {},
            ..base.objective
        },
        ..base
    };
    let mut metadata: Metadata = field(&settings, &fields, "metadata")?.unwrap_or_default();
    for (name, value) in &fields {
        if !OWN.contains(&name.as_str()) {
            metadata.other.insert(name.clone(), value.clone());
        }
    }
    Ok(Plan {
        config,
        metadata,
        tensors,
        path,
        format: "sae_lens",
    })
}

fn normalize(path: &Path, fields: &Map<String, Value>) -> Result<Normalize> {
    let reshape: String =
        field(path, fields, "reshape_activations")?.unwrap_or_else(|| "none".to_owned());
    if !["none", "hook_z"].contains(&reshape.as_str()) {
        let reason = format!("`reshape_activations` is `{reshape}`, not `none` or `hook_z`");
        return Err(Error::corrupt(path, reason));
    }
    let text: String =
        field(path, fields, "normalize_activations")?.unwrap_or_else(|| "none".to_owned());
    match text.as_str() {
        "none" => Ok(Normalize::None),
        "constant_norm_rescale" => Ok(Normalize::ConstantNorm),
        "layer_norm" => Ok(Normalize::LayerNorm),
        "expected_average_only_in" | "covariance_whitening" => Err(Error::Unsupported {
            what: format!("`normalize_activations` = `{text}` of {}", path.display()),
            hint: "fold it into the weights with the package that wrote it; the numbers that it wants are not in the folder".to_owned(),
        }),
        other => Err(Error::corrupt(
            path,
            format!("`normalize_activations` is `{other}`, which no version writes"),
        )),
    }
}

/// The flat settings of versions before 6.0 in today's names.
fn modern(path: &Path, mut fields: Map<String, Value>) -> Result<Map<String, Value>> {
    if fields.contains_key("metadata") {
        return Ok(fields);
    }
    tracing::warn!(
        "{} has the flat settings of sae_lens before 6.0",
        path.display()
    );
    let activation = fields
        .remove("activation_fn_str")
        .or_else(|| fields.remove("activation_fn"));
    let topk = activation.as_ref().and_then(Value::as_str) == Some("topk");
    if let Some(Value::Object(arguments)) = fields.remove("activation_fn_kwargs")
        && let Some(k) = arguments.get("k")
    {
        fields.entry("k").or_insert_with(|| k.clone());
    }
    let architecture = if topk { "topk" } else { "standard" };
    let known = fields.get("architecture").and_then(Value::as_str);
    if known.is_none_or(|known| known == "standard") {
        fields.insert("architecture".to_owned(), json!(architecture));
    }
    if let Some(Value::Bool(scales)) = fields.get("normalize_activations") {
        let name = if *scales {
            "expected_average_only_in"
        } else {
            "none"
        };
        fields.insert("normalize_activations".to_owned(), json!(name));
    }
    if let Some(factor) = fields.remove("finetuning_scaling_factor")
        && factor != Value::Bool(false)
        && factor != Value::Null
    {
        return Err(Error::Unsupported {
            what: format!("`finetuning_scaling_factor` of {}", path.display()),
            hint: "multiply the encoder's output into the decoder first".to_owned(),
        });
    }
    let mut metadata = Map::new();
    for (old, new) in [
        ("model_name", "model_name"),
        ("hook_point", "hook_name"),
        ("hook_name", "hook_name"),
        ("context_size", "context_size"),
        ("prepend_bos", "prepend_bos"),
        ("dataset_path", "dataset_path"),
    ] {
        if let Some(value) = fields.remove(old) {
            metadata.insert(new.to_owned(), value);
        }
    }
    fields.insert("metadata".to_owned(), Value::Object(metadata));
    Ok(fields)
}

/// What the package calls a dictionary; none where it has no such.
pub(super) const fn architecture(config: &DictionaryConfig) -> Option<&'static str> {
    match (config.role, config.activation, config.skip) {
        (Role::Autoencoder, Activation::Relu {}, false) => Some("standard"),
        (Role::Autoencoder, Activation::TopK { .. }, false) => Some("topk"),
        (Role::Autoencoder, Activation::JumpRelu { .. }, false) => Some("jumprelu"),
        (Role::Autoencoder, Activation::Gated {}, false) => Some("gated"),
        (Role::Transcoder, Activation::Relu {}, false) => Some("transcoder"),
        (Role::Transcoder, Activation::Relu {}, true) => Some("skip_transcoder"),
        (Role::Transcoder, Activation::JumpRelu { .. }, false) => Some("jumprelu_transcoder"),
        (Role::Transcoder, Activation::JumpRelu { .. }, true) => Some("jumprelu_skip_transcoder"),
        _ => None,
    }
}

/// Why the package cannot hold a dictionary; none where it can.
pub(super) const fn lacks(config: &DictionaryConfig) -> Option<&'static str> {
    match architecture(config) {
        Some(_) => None,
        None => Some(
            "sae_lens has no transcoders of the k largest features and no autoencoders with a skip",
        ),
    }
}

pub(super) fn save(folded: &Folded, metadata: &Metadata, folder: &Path) -> Result<()> {
    let config = &folded.config;
    let architecture = architecture(config)
        .ok_or_else(|| Error::config("format", "`sae-lens` has no such dictionary"))?;
    let mut settings = json!({
        "architecture": architecture,
        "d_in": config.d_in,
        "d_sae": config.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": config.input_bias == InputBias::Shared,
        "normalize_activations": match config.normalize {
            Normalize::None => "none",
            Normalize::ConstantNorm => "constant_norm_rescale",
            Normalize::LayerNorm => "layer_norm",
        },
        "reshape_activations": "none",
        "metadata": metadata,
    });
    if let Some(fields) = settings.as_object_mut() {
        if config.role == Role::Transcoder {
            fields.insert("d_out".to_owned(), json!(config.d_out));
        }
        if let Activation::TopK { k, rescale } = config.activation {
            fields.insert("k".to_owned(), json!(k));
            fields.insert("rescale_acts_by_decoder_norm".to_owned(), json!(rescale));
        }
    }
    // The settings last: a folder without them is no dictionary.
    weights::save(
        &folder.join(WEIGHTS),
        &for_file(&folded.tensors)?,
        &signed(),
    )?;
    let text = format!("{settings:#}\n");
    fs::write(&folder.join(SETTINGS), text.as_bytes())
}
