//! Folders of cross-layer transcoders, as circuit-tracer reads them.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use densely_core::weights::{self, Strictness, Tensors};
use densely_core::{Device, Error, Result, fs};
use tch::nn::VarStore;

use super::super::config::Activation;
use super::super::cross::{CrossConfig, CrossLayer};
use super::{Metadata, check_tensors, for_file, matrix, read_small, signed};

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
    let (features, d) = matrix(folder, &tensors, "W_enc_0")?;
    let config = CrossConfig {
        layers,
        d,
        features,
        activation: if tensors.contains_key("threshold_0") {
            CrossConfig::clt().activation
        } else {
            Activation::Relu {}
        },
        ..CrossConfig::clt()
    };
    config.validate()?;
    check_tensors(folder, config.shapes(), &tensors)?;
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

/// Writes such a folder; `vs` holds the transcoder's parameters. While it is written, it lacks its `config.yaml`: a folder whose writing broke
/// off is not opened.
///
/// # Errors
/// [`Error::Config`] when the folder holds files of layers that this transcoder has not; [`Error::Io`].
pub fn save_cross(
    cross: &CrossLayer,
    vs: &VarStore,
    metadata: &Metadata,
    folder: &Path,
) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    refuse_other_layers(folder, cross.config().layers)?;
    let settings = folder.join(SETTINGS);
    if settings.exists() {
        std::fs::remove_file(&settings).map_err(Error::io(&settings))?;
        fs::sync_folder(&settings)?;
    }
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
    fs::write(&settings, text.as_bytes())
}

/// Refuses a folder with files of layers from `layers` on: they would be opened with those that are written.
fn refuse_other_layers(folder: &Path, layers: i64) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let name = entry.map_err(Error::io(folder))?.file_name();
        let name = name.to_string_lossy();
        if layer_of(&name).is_some_and(|layer| layer >= layers) {
            let reason = format!(
                "{} holds {name}, of a transcoder with more than {layers} layers: name an empty folder",
                folder.display()
            );
            return Err(Error::config("folder", reason));
        }
    }
    Ok(())
}

/// The layer whose weights a file of this name holds.
fn layer_of(name: &str) -> Option<i64> {
    let stem = name.strip_suffix(".safetensors")?;
    let layer = stem
        .strip_prefix("W_enc_")
        .or_else(|| stem.strip_prefix("W_dec_"))?;
    layer.parse().ok()
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
