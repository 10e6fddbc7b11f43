//! Folders of cross-layer transcoders, as circuit-tracer reads them.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use densely_core::weights::{self, Strictness, Tensors};
use densely_core::{Device, Error, Result, fs};
use tch::nn::VarStore;

use super::super::config::Activation;
use super::super::cross::{CrossConfig, CrossLayer};
use super::{Metadata, for_file, read_small, signed};

const SETTINGS: &str = "config.yaml";

/// Opens a folder of a cross-layer transcoder: `config.yaml`, and for each layer i `W_enc_i.safetensors` (`W_enc_i`, `b_enc_i`, `b_dec_i`, maybe
/// `threshold_i`) and `W_dec_i.safetensors` (`W_dec_i`).
///
/// # Errors
/// [`Error::Io`]; [`Error::Corrupt`] and [`Error::Weights`] naming the tensor.
pub fn open_cross(folder: &Path, device: Device) -> Result<(CrossLayer, VarStore, Metadata)> {
    let device = device.open()?;
    let settings = folder.join(SETTINGS);
    let text = String::from_utf8(read_small(&settings)?)
        .map_err(|_| Error::corrupt(&settings, "it is no text"))?;
    let fields = flat_yaml(&text);
    let mut tensors = Tensors::new();
    let mut layers = 0;
    loop {
        let path = folder.join(format!("W_enc_{layers}.safetensors"));
        if !path.is_file() {
            break;
        }
        tensors.append(&mut weights::read(&path)?.tensors);
        let path = folder.join(format!("W_dec_{layers}.safetensors"));
        tensors.append(&mut weights::read(&path)?.tensors);
        layers += 1;
    }
    let first = tensors.get("W_enc_0").map(tch::Tensor::size);
    let Some([features, d]) = first.as_deref() else {
        let reason = "it lacks `W_enc_0`, a matrix, in W_enc_0.safetensors";
        return Err(Error::corrupt(folder, reason));
    };
    for (name, xs) in &tensors {
        if xs.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
            let reason = format!("`{name}` holds a value that is not finite");
            return Err(Error::corrupt(folder, reason));
        }
    }
    let config = CrossConfig {
        layers,
        d: *d,
        features: *features,
        activation: if tensors.contains_key("threshold_0") {
            CrossConfig::clt().activation
        } else {
            Activation::Relu
        },
        ..CrossConfig::clt()
    };
    let vs = VarStore::new(device);
    let made = config.build(&vs.root())?;
    weights::load_tensors(&vs, folder, &tensors, Strictness::All)?;
    let metadata = Metadata {
        model_name: fields.get("model_name").cloned(),
        hook_name: fields.get("feature_input_hook").cloned(),
        hook_name_out: fields.get("feature_output_hook").cloned(),
        ..Metadata::default()
    };
    Ok((made, vs, metadata))
}

/// Writes such a folder; `vs` holds the transcoder's parameters.
///
/// # Errors
/// [`Error::Io`].
pub fn save_cross(
    cross: &CrossLayer,
    vs: &VarStore,
    metadata: &Metadata,
    folder: &Path,
) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let all = for_file(&weights::named(vs))?;
    for layer in 0..cross.config().layers {
        let ending = format!("_{layer}");
        let own = |decoder: bool| -> Tensors {
            let wanted = all.iter().filter(|(name, _)| {
                name.strip_suffix(&ending).is_some_and(|start| {
                    (start == "W_dec") == decoder && !start.ends_with(char::is_numeric)
                })
            });
            wanted
                .map(|(name, xs)| (name.clone(), xs.shallow_clone()))
                .collect()
        };
        for (what, decoder) in [("W_enc", false), ("W_dec", true)] {
            let path = folder.join(format!("{what}{ending}.safetensors"));
            weights::save(&path, &own(decoder), &signed())?;
        }
    }
    let mut text = String::new();
    for (name, value) in [
        (
            "model_name",
            metadata.model_name.as_deref().unwrap_or("unknown"),
        ),
        (
            "feature_input_hook",
            metadata.hook_name.as_deref().unwrap_or("hook_resid_mid"),
        ),
        (
            "feature_output_hook",
            metadata.hook_name_out.as_deref().unwrap_or("hook_mlp_out"),
        ),
        ("model_kind", "cross_layer_transcoder"),
    ] {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name}: {}", serde_json::json!(value));
    }
    fs::write(&folder.join(SETTINGS), text.as_bytes())
}

/// The settings that stand one to a line, `name: value`.
fn flat_yaml(text: &str) -> BTreeMap<String, String> {
    let pair = |line: &str| {
        let (name, value) = line.split_once(':')?;
        let value = value.trim().trim_matches(['"', '\'']);
        (!name.starts_with([' ', '#', '-']) && !value.is_empty())
            .then(|| (name.to_owned(), value.to_owned()))
    };
    text.lines().filter_map(pair).collect()
}
