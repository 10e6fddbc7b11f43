//! Dictionaries on the disk, in the formats of others.
//!
//! | format | files | written |
//! | --- | --- | --- |
//! | `sae_lens` | folder: `cfg.json`, `sae_weights.safetensors` | yes, but for transcoders of the k largest features, which the package has not |
//! | `eai-sparsify` | folder: `cfg.json`, `sae.safetensors` | yes, the k largest features alone |
//! | Gemma Scope | `params.npz`, or any `.npz` of its arrays | no |
//! | circuit-tracer, one layer | a `.safetensors` with `W_enc` `[features, d]` | no |
//! | circuit-tracer, across layers | folder: `config.yaml`, `W_enc_0.safetensors`, `W_dec_0.safetensors`, … | yes |
//!
//! The format of what is read is found by its files. Weights become f32. Nothing is folded on the way in.

mod archive;
mod arrays;
mod cross;
mod sae_lens;
mod sparsify;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use densely_core::weights::{self, LoadReport, Strictness, Tensors};
use densely_core::{Device, Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tch::nn::VarStore;
use tch::{Kind, Tensor};

use super::config::{Activation, Shapes};
use super::{Dictionary, DictionaryConfig, InputBias};

pub use cross::{open_cross, save_cross};

/// Where a dictionary belongs: the model and the points that it was trained on. Fields that are not known are empty.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Metadata {
    /// The model.
    pub model_name: Option<String>,
    /// The hook point that it reads.
    pub hook_name: Option<String>,
    /// The hook point that it gives, of a transcoder.
    pub hook_name_out: Option<String>,
    /// Tokens of a context in training.
    pub context_size: Option<u64>,
    /// Whether each context began with the token that begins a text.
    pub prepend_bos: Option<bool>,
    /// The texts.
    pub dataset_path: Option<String>,
    /// What else the file says.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// A format to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Of the package `sae_lens`.
    SaeLens,
    /// Of the package `eai-sparsify`.
    Sparsify,
}

impl std::str::FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "sae-lens" => Ok(Self::SaeLens),
            "sparsify" => Ok(Self::Sparsify),
            other => {
                let reason = format!("must be `sae-lens` or `sparsify`, got `{other}`");
                Err(Error::config("format", reason))
            }
        }
    }
}

/// A dictionary from the disk.
#[derive(Debug)]
pub struct Opened {
    /// The dictionary.
    pub dictionary: Dictionary,
    /// Where it belongs.
    pub metadata: Metadata,
    /// The store that shares the memory of its parameters.
    pub vs: VarStore,
    /// What was read, in a line.
    pub described: String,
}

/// A dictionary as a format describes it, before there is memory for it.
struct Plan {
    config: DictionaryConfig,
    metadata: Metadata,
    /// By the names of this crate's parameters.
    tensors: Tensors,
    /// The file of the weights, for messages.
    path: PathBuf,
    format: &'static str,
}

/// Opens a dictionary of any format but those across layers, on a device.
///
/// # Errors
/// [`Error::Io`] when something cannot be read; [`Error::Corrupt`] when a file is damaged, or holds a value that is not finite, by the tensor's name;
/// [`Error::Data`] for an array of an archive that is damaged; [`Error::Weights`] with all tensors that do not fit, before there is memory for them;
/// [`Error::Unsupported`] for what this crate does not compute; [`Error::Config`] for a path that holds no dictionary, and for sizes out of range.
pub fn open(path: &Path, device: Device) -> Result<Opened> {
    let device = device.open()?;
    let plan = plan(path)?;
    plan.config.validate()?;
    check_tensors(&plan.path, plan.config.shapes(), &plan.tensors)?;
    let vs = VarStore::new(device);
    let dictionary = plan.config.build(&vs.root())?;
    weights::load_tensors(&vs, &plan.path, &plan.tensors, Strictness::All)?;
    let described = format!(
        "{}, {}{} features of width {}{}",
        plan.format,
        activation_words(plan.config.activation),
        plan.config.d_sae,
        plan.config.d_in,
        plan.metadata
            .hook_name
            .as_deref()
            .map_or_else(String::new, |hook| format!(", on {hook}"))
    );
    Ok(Opened {
        dictionary,
        metadata: plan.metadata,
        vs,
        described,
    })
}

/// Refuses tensors that are not those of `shapes`, or not finite: before there is memory for a dictionary of these shapes.
fn check_tensors(path: &Path, shapes: Shapes, tensors: &Tensors) -> Result<()> {
    let mut report = LoadReport {
        unexpected: tensors
            .keys()
            .filter(|name| !shapes.contains_key(*name))
            .cloned()
            .collect(),
        ..LoadReport::default()
    };
    for (name, shape) in shapes {
        match tensors.get(&name).map(Tensor::size) {
            None => report.missing.push(name),
            Some(found) if found != shape => report.mismatched.push((name, shape, found)),
            Some(_) => report.loaded.push(name),
        }
    }
    if !report.fits() {
        return Err(Error::Weights {
            path: path.to_owned(),
            report: Box::new(report),
        });
    }
    for (name, xs) in tensors {
        if xs.is_floating_point() && xs.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
            let reason = format!("`{name}` holds a value that is not finite");
            return Err(Error::corrupt(path, reason));
        }
    }
    Ok(())
}

fn activation_words(activation: Activation) -> String {
    match activation {
        Activation::Relu {} => String::new(),
        Activation::TopK { k, .. } => format!("the {k} largest of "),
        Activation::BatchTopK { k, .. } => format!("the {k} largest on average of "),
        Activation::JumpRelu { .. } => "above a threshold each, ".to_owned(),
        Activation::Gated {} => "gated, ".to_owned(),
    }
}

fn plan(path: &Path) -> Result<Plan> {
    if !path.exists() {
        let reason = format!(
            "{} is no folder and no file; dictionaries are not downloaded: name a local one",
            path.display()
        );
        return Err(Error::config("dictionary", reason));
    }
    if path.is_file() {
        return match path.extension().and_then(|ending| ending.to_str()) {
            Some("npz") => arrays::npz(path),
            Some("safetensors") => arrays::lines(path),
            Some("pt" | "pth" | "bin") => Err(Error::Unsupported {
                what: format!("a pickled dictionary, {}", path.display()),
                hint: "turn it into a folder of safetensors first: python/convert_transcoder.py does, for the paper's".to_owned(),
            }),
            _ => Err(no_dictionary(path)),
        };
    }
    if path.join(sae_lens::WEIGHTS).is_file() {
        return sae_lens::plan(path);
    }
    if path.join(sparsify::WEIGHTS).is_file() {
        return sparsify::plan(path);
    }
    if path.join("params.npz").is_file() {
        return arrays::npz(&path.join("params.npz"));
    }
    if path.join("config.yaml").is_file() {
        return Err(Error::Unsupported {
            what: format!("the cross-layer transcoder {} here", path.display()),
            hint: "it goes through the library alone: dictionary::folder::open_cross".to_owned(),
        });
    }
    Err(no_dictionary(path))
}

fn no_dictionary(path: &Path) -> Error {
    let reason = format!(
        "{} holds no dictionary: a folder with cfg.json and sae_weights.safetensors or sae.safetensors, or a file .npz or .safetensors is one",
        path.display()
    );
    Error::config("dictionary", reason)
}

/// Writes a dictionary as a folder, in the format asked for, or in the first of `sae_lens` and `eai-sparsify` that can hold it. What the format
/// knows no place for is folded: the paper's bias of the input into the encoder's, norms of rows into the encoder, the threshold of a whole batch into
/// one for each feature.
///
/// # Errors
/// [`Error::Unsupported`] when the format cannot hold it; [`Error::Config`] when the folder holds a dictionary in the other format; [`Error::Io`].
pub fn save(
    dictionary: &Dictionary,
    metadata: &Metadata,
    folder: &Path,
    format: Option<Format>,
) -> Result<Format> {
    let _no_grad = tch::no_grad_guard();
    let format = choose(&folded_config(dictionary.config(), 0.0), format)?;
    let folded = dictionary.folded()?;
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let other = folder.join(match format {
        Format::SaeLens => sparsify::WEIGHTS,
        Format::Sparsify => sae_lens::WEIGHTS,
    });
    if other.exists() {
        let reason = format!(
            "{} is of a dictionary in another format: name an empty folder",
            other.display()
        );
        return Err(Error::config("folder", reason));
    }
    match format {
        Format::SaeLens => sae_lens::save(&folded, metadata, folder)?,
        Format::Sparsify => sparsify::save(&folded, metadata, folder)?,
    }
    Ok(format)
}

/// Says before a training whether a dictionary of this config can be saved in some format: where it cannot, [`save`] fails as this does.
///
/// # Errors
/// [`Error::Unsupported`] with what each format lacks.
pub fn holds(config: &DictionaryConfig) -> Result<()> {
    choose(&folded_config(config, 0.0), None).map(|_| ())
}

/// The format that is asked for, or the first that can hold a folded dictionary.
fn choose(folded: &DictionaryConfig, format: Option<Format>) -> Result<Format> {
    let reason = match (format, sae_lens::lacks(folded), sparsify::lacks(folded)) {
        (None | Some(Format::SaeLens), None, _) => return Ok(Format::SaeLens),
        (None | Some(Format::Sparsify), _, None) => return Ok(Format::Sparsify),
        (None, Some(first), Some(second)) => format!("{first}, and {second}"),
        (Some(Format::SaeLens), Some(reason), _) | (Some(Format::Sparsify), _, Some(reason)) => {
            reason.to_owned()
        }
    };
    let hint = match format {
        None => {
            "relu, jump-relu and batch-top-k without a skip fit sae_lens, as transcoders with one too; top-k of one width fits eai-sparsify"
        }
        Some(_) => "leave the format out, so that the first that can hold it is taken",
    };
    Err(Error::Unsupported {
        what: format!("a folder of this dictionary ({reason})"),
        hint: hint.to_owned(),
    })
}

/// The config of what [`Dictionary::folded`] gives, where `threshold` stands for the choice among a whole batch.
const fn folded_config(config: &DictionaryConfig, threshold: f64) -> DictionaryConfig {
    let mut folded = *config;
    if matches!(config.input_bias, InputBias::Own) {
        folded.input_bias = InputBias::None;
    }
    match config.activation {
        Activation::TopK { k, .. } => folded.activation = Activation::TopK { k, rescale: false },
        Activation::BatchTopK { .. } => {
            folded.activation = Activation::JumpRelu {
                threshold,
                bandwidth: 0.05,
                ste_to_input: false,
            };
        }
        _ => (),
    }
    folded
}

/// A dictionary's weights without what formats have no place for.
struct Folded {
    config: DictionaryConfig,
    /// By the names of this crate's parameters.
    tensors: Tensors,
}

impl Dictionary {
    fn folded(&self) -> Result<Folded> {
        let mut tensors = Tensors::new();
        let mut put = |name: &str, xs: Option<&Tensor>| {
            if let Some(xs) = xs {
                tensors.insert(name.to_owned(), xs.detach());
            }
        };
        let norms = self.row_norms()?;
        let (mut w_enc, mut w_dec) = (self.w_enc.detach(), self.w_dec.detach());
        let mut b_enc = self.b_enc.as_ref().map(Tensor::detach);
        if self.b_dec_out.is_some() {
            b_enc = Some(self.encoder_bias()?.detach());
        }
        if let Some(norms) = &norms {
            w_enc = w_enc.f_mul(norms)?;
            b_enc = b_enc.map(|bias| bias.f_mul(norms)).transpose()?;
            // A row of zeros has no direction, and stays.
            let divisor = norms.f_masked_fill(&norms.f_eq(0.0)?, 1.0)?;
            w_dec = w_dec.f_div(&divisor.f_unsqueeze(1)?)?;
        }
        let mut threshold = self.threshold.as_ref().map(Tensor::detach);
        let mut one = 0.0;
        if matches!(self.config.activation, Activation::BatchTopK { .. }) {
            one = self.batch_threshold()?;
            let size = [self.config.d_sae];
            threshold = Some(w_dec.f_new_full(size, one, (w_dec.kind(), w_dec.device()))?);
        }
        let config = folded_config(&self.config, one);
        put("W_enc", Some(&w_enc));
        put("W_dec", Some(&w_dec));
        put("b_enc", b_enc.as_ref());
        put("b_dec", Some(self.output_bias()));
        put("W_skip", self.w_skip.as_ref());
        put("threshold", threshold.as_ref());
        if let Some(gate) = &self.gate {
            put("b_gate", Some(&gate.bias));
            put("b_mag", Some(&gate.b_mag));
            put("r_mag", Some(&gate.r_mag));
        }
        Ok(Folded { config, tensors })
    }
}

/// Tensors for a file, whole and in f32 where they were wider or narrower.
fn for_file(tensors: &Tensors) -> Result<Tensors> {
    let kept = |(name, xs): (&String, &Tensor)| Ok((name.clone(), xs.f_to_kind(Kind::Float)?));
    tensors.iter().map(kept).collect()
}

/// The two sizes of a matrix in a file.
fn matrix(path: &Path, tensors: &Tensors, name: &str) -> Result<(i64, i64)> {
    let found = tensors.get(name).map(Tensor::size);
    match found.as_deref() {
        Some([rows, columns]) => Ok((*rows, *columns)),
        Some(size) => {
            let reason = format!("`{name}` is of shape {size:?}, where a matrix was expected");
            Err(Error::corrupt(path, reason))
        }
        None => Err(Error::corrupt(path, format!("it lacks `{name}`"))),
    }
}

/// A JSON file whose value is an object.
fn read_object(path: &Path) -> Result<Map<String, Value>> {
    let bytes = read_small(path)?;
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(Error::corrupt(path, "it holds no JSON object")),
        Err(error) => Err(Error::corrupt(path, format!("it is no JSON: {error}"))),
    }
}

/// A file of settings: none is as large as a mebibyte.
fn read_small(path: &Path) -> Result<Vec<u8>> {
    const MOST: u64 = 1 << 20;
    let length = std::fs::metadata(path).map_err(Error::io(path))?.len();
    if length > MOST {
        let reason = format!("{length} bytes are too many for settings");
        return Err(Error::corrupt(path, reason));
    }
    std::fs::read(path).map_err(Error::io(path))
}

/// A field of a settings file as another type.
fn field<T: serde::de::DeserializeOwned>(
    path: &Path,
    fields: &Map<String, Value>,
    name: &str,
) -> Result<Option<T>> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => T::deserialize(value)
            .map(Some)
            .map_err(|error| Error::corrupt(path, format!("`{name}`: {error}"))),
    }
}

/// Metadata that says which program wrote a file.
fn signed() -> BTreeMap<String, String> {
    BTreeMap::from([("kind".to_owned(), "densely-dictionary".to_owned())])
}
