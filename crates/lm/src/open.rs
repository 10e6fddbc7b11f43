//! A model and its tokeniser from a path.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use densely_core::weights::LoadReport;
use densely_core::{Error, Result};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use crate::config::LmConfig;
use crate::folder;
use crate::gguf::{self, Gguf};
use crate::model::Lm;
use crate::tokenizer::Tokenizer;

/// A model that is ready to be used.
#[derive(Debug)]
pub struct Opened {
    /// The model.
    pub model: Lm,
    /// Its tokeniser.
    pub tokenizer: Tokenizer,
    /// The store that shares the memory of the model's parameters.
    pub vs: VarStore,
    /// What was loaded and how, in a line.
    pub described: String,
}

/// Opens a model: a folder of Hugging Face with `config.json`, weights as safetensors and a tokeniser, or a GGUF file. Weights become `kind`
/// on `device`, tensor by tensor, so that beside the model only one of its tensors is in memory. Nothing is folded or centred.
///
/// # Errors
/// [`Error::Io`] when something cannot be read; [`Error::Corrupt`] when a file is damaged, missing or at odds with another;
/// [`Error::Weights`] with all keys that do not fit; [`Error::Unsupported`] for what this crate does not compute; [`Error::Config`] for
/// a kind that is no floating-point one, and for impossible sizes.
pub fn open(path: &Path, device: Device, kind: Kind) -> Result<Opened> {
    if !matches!(
        kind,
        Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16
    ) {
        let reason = format!("must be Float, Double, Half or BFloat16, got {kind:?}");
        return Err(Error::config("kind", reason));
    }
    if !path.exists() {
        let reason = format!(
            "{} is no folder and no file; models are not downloaded: name a local folder with config.json, or a GGUF file",
            path.display()
        );
        return Err(Error::config("model", reason));
    }
    let is_folder = std::fs::metadata(path).map_err(Error::io(path))?.is_dir();
    if is_folder {
        return folder::open(path, device, kind);
    }
    let ending = path.extension().and_then(|ending| ending.to_str());
    if matches!(ending, Some("safetensors" | "bin" | "json")) {
        return Err(Error::Unsupported {
            what: format!("a model of the one file {}", path.display()),
            hint: "name the folder with its config.json and tokeniser, or a GGUF file".to_owned(),
        });
    }
    open_gguf(path, device, kind)
}

/// Opens the GGUF file at `path`.
pub(crate) fn open_gguf(path: &Path, device: Device, kind: Kind) -> Result<Opened> {
    let file = Gguf::open(path)?;
    file.check_whole()?;
    let plan = gguf::plan(&file)?;
    let tokenizer = Tokenizer::from_gguf(&file)?;
    if tokenizer.len() as i64 > plan.config.vocab_size {
        let reason = format!(
            "its tokeniser has {} tokens, its embedding {}",
            tokenizer.len(),
            plan.config.vocab_size
        );
        return Err(Error::corrupt(path, reason));
    }
    // Both before memory for the weights is taken.
    plan.check_types(&file)?;
    check_plausible(path, &plan.config, file.held())?;
    let sizes = plan.sizes(&file);
    let vs = VarStore::new(device);
    let model = Lm::undrawn(plan.config.clone(), &vs.root(), kind)?;
    fill(&model, path, &sizes, &mut |name| plan.read(&file, name))?;
    let described = describe(&model, path, &format!("GGUF, {}", file.types()));
    Ok(Opened {
        model,
        tokenizer,
        vs,
        described,
    })
}

/// Fails where the sizes ask for far more parameters than the `held` values in the files: a few bytes must not make the machine give all
/// its memory. What is merely missing is named later.
///
/// # Errors
/// [`Error::Corrupt`] with both numbers.
pub(crate) fn check_plausible(path: &Path, config: &LmConfig, held: u64) -> Result<()> {
    let needed = config.parameter_count();
    if needed <= held.saturating_mul(2).saturating_add(1 << 20) {
        return Ok(());
    }
    let reason =
        format!("its sizes make a model of {needed} parameters, and its weights are {held} values");
    Err(Error::corrupt(path, reason))
}

/// Fills the model's parameters from a source that has values of these sizes by its keys, one at a time. Keys may be the parameters' names
/// or their aliases; two of one parameter must hold the same.
///
/// # Errors
/// [`Error::Weights`] with every key that is missing, unknown or of another shape, before anything is read.
pub(crate) fn fill(
    model: &Lm,
    path: &Path,
    sizes: &BTreeMap<String, Vec<i64>>,
    read: &mut dyn FnMut(&str) -> Result<Tensor>,
) -> Result<LoadReport> {
    let parameters = model.parameters();
    let aliases: BTreeMap<String, String> = model.name_aliases().into_iter().collect();
    let ignored: BTreeSet<String> = model.ignored_names().into_iter().collect();
    let mut report = LoadReport::default();
    let mut sources: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (key, size) in sizes {
        let name = if parameters.contains_key(key) {
            Some(key)
        } else if ignored.contains(key) {
            report.skipped.push(key.clone());
            continue;
        } else {
            aliases.get(key)
        };
        match name.and_then(|name| parameters.get_key_value(name)) {
            None => report.unexpected.push(key.clone()),
            Some((name, ours)) => {
                if ours.size() != *size {
                    let row = (key.clone(), ours.size(), size.clone());
                    report.mismatched.push(row);
                }
                sources.entry(name).or_default().push(key);
            }
        }
    }
    let missing = parameters
        .keys()
        .filter(|name| !sources.contains_key(name.as_str()));
    report.missing = missing.cloned().collect();
    if !report.fits() {
        return Err(Error::Weights {
            path: path.to_owned(),
            report: Box::new(report),
        });
    }
    let _no_grad = tch::no_grad_guard();
    for (name, keys) in sources {
        let Some((first, others)) = keys.split_first() else {
            continue;
        };
        let theirs = read(first)?;
        for other in others {
            let again = read(other)?;
            if again.kind() != theirs.kind() || again != theirs {
                let reason = format!("`{first}` and `{other}` name one parameter but differ");
                return Err(Error::corrupt(path, reason));
            }
        }
        let ours = &parameters[name];
        if theirs.kind() != ours.kind() {
            report
                .cast
                .push((name.to_owned(), theirs.kind(), ours.kind()));
        }
        ours.shallow_clone().f_copy_(&theirs)?;
        report.loaded.push(name.to_owned());
    }
    Ok(report)
}

/// The line of [`Opened::described`].
pub(crate) fn describe(model: &Lm, path: &Path, source: &str) -> String {
    let config = model.config();
    format!(
        "{}: {:?}, {} layers of width {}, {} parameters as {:?} on {:?} ({source})",
        path.display(),
        config.architecture,
        config.n_layers,
        config.d_model,
        config.parameter_count(),
        model.kind(),
        model.device(),
    )
}
