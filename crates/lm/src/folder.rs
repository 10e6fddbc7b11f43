//! Models in the folders of Hugging Face: `config.json`, weights as safetensors in one file or in shards, a tokeniser.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use densely_core::weights::{self, Mapped};
use densely_core::{Error, Result, fs};
use serde_json::{Value, json};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use crate::config::{Architecture, LmConfig};
use crate::gguf;
use crate::model::Lm;
use crate::open::{self, Opened};
use crate::tokenizer::Tokenizer;

/// MiB of a file of settings at most: far above any, and the JSON of this takes memory that every machine has.
const MAX_SETTINGS: u64 = 16;
/// MiB of a file of tokens or merges at most. The largest have 30 million bytes.
const MAX_TOKENS: u64 = 256;

/// The text of a file of up to `most` MiB, which is more than `kind` has.
fn read(path: &Path, most: u64, kind: &str) -> Result<String> {
    let file = std::fs::File::open(path).map_err(Error::io(path))?;
    let length = file.metadata().map_err(Error::io(path))?.len();
    if length > most << 20 {
        let reason = format!("{length} bytes are more than the {most} MiB that {kind} may have");
        return Err(Error::corrupt(path, reason));
    }
    let mut bytes = Vec::new();
    // What is no plain file may give more than it says.
    let mut file = file.take(most << 20);
    file.read_to_end(&mut bytes).map_err(Error::io(path))?;
    String::from_utf8(bytes).map_err(|_| Error::corrupt(path, "it is not UTF-8"))
}

fn parse(path: &Path, text: &str) -> Result<Value> {
    serde_json::from_str(text).map_err(|e| Error::corrupt(path, format!("it is no JSON: {e}")))
}

/// The JSON in a file of settings, such as `config.json` or the index of shards.
pub(crate) fn read_settings(path: &Path) -> Result<Value> {
    parse(path, &read(path, MAX_SETTINGS, "a file of settings")?)
}

/// The text in a file of a tokeniser's merges.
pub(crate) fn read_merges(path: &Path) -> Result<String> {
    read(path, MAX_TOKENS, "a tokeniser")
}

/// The JSON in a file of a tokeniser's tokens: `tokenizer.json`, `vocab.json`.
pub(crate) fn read_tokens(path: &Path) -> Result<Value> {
    parse(path, &read(path, MAX_TOKENS, "a tokeniser")?)
}

/// The weight files of a folder, none of them read yet but for their headers.
struct Shards {
    files: Vec<Mapped>,
    /// Which file holds a key.
    place: BTreeMap<String, usize>,
}

impl Shards {
    /// Finds the weights of `folder`.
    fn open(folder: &Path) -> Result<Self> {
        let single = folder.join("model.safetensors");
        if single.is_file() {
            return Self::of(folder, vec![Mapped::open(&single)?]);
        }
        let index = folder.join("model.safetensors.index.json");
        if index.is_file() {
            return Self::indexed(folder, &index);
        }
        let pickles = ["pytorch_model.bin", "pytorch_model.bin.index.json"];
        if let Some(pickle) = pickles.iter().find(|name| folder.join(name).exists()) {
            return Err(Error::Unsupported {
                what: format!("reading the pickled weights `{pickle}` of {}", folder.display()),
                hint: "they can run any code when they are opened; save them as safetensors with Python's transformers: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(other)".to_owned(),
            });
        }
        let reason = "holds config.json but no weights: neither model.safetensors nor model.safetensors.index.json is there";
        Err(Error::corrupt(folder, reason))
    }

    fn of(folder: &Path, files: Vec<Mapped>) -> Result<Self> {
        let mut place = BTreeMap::new();
        for (number, file) in files.iter().enumerate() {
            for name in file.names() {
                if let Some(before) = place.insert(name.to_owned(), number) {
                    let before: &Mapped = &files[before];
                    let reason = format!(
                        "`{name}` is in two shards, {} and {}",
                        shown(before.path()),
                        shown(file.path())
                    );
                    return Err(Error::corrupt(folder, reason));
                }
            }
        }
        Ok(Self { files, place })
    }

    fn indexed(folder: &Path, index: &Path) -> Result<Self> {
        let json = read_settings(index)?;
        let map = json["weight_map"]
            .as_object()
            .ok_or_else(|| Error::corrupt(index, "it has no `weight_map`"))?;
        let mut names = BTreeSet::new();
        for (key, file) in map {
            let file = file.as_str().filter(|file| is_file_name(file));
            let file = file.ok_or_else(|| {
                let reason = format!("it gives no name of a file in this folder for `{key}`");
                Error::corrupt(index, reason)
            })?;
            names.insert(file);
        }
        let mut files = Vec::new();
        for name in &names {
            let path = folder.join(name);
            if !path.is_file() {
                let reason = format!("it names the shard `{name}`, which is missing");
                return Err(Error::corrupt(index, reason));
            }
            files.push(Mapped::open(&path)?);
        }
        let shards = Self::of(folder, files)?;
        for (key, file) in map {
            let there = shards.file_of(key).map(|file| shown(file.path()));
            if there.as_deref() != file.as_str() {
                let place = there.unwrap_or_else(|| "no shard".to_owned());
                let reason = format!("it says that `{key}` is in {file}, and it is in {place}");
                return Err(Error::corrupt(index, reason));
            }
        }
        Ok(shards)
    }

    fn file_of(&self, key: &str) -> Option<&Mapped> {
        self.files.get(*self.place.get(key)?)
    }

    fn sizes(&self) -> BTreeMap<String, Vec<i64>> {
        let size = |key: &String| {
            let size = self.file_of(key)?.size(key)?;
            Some((key.clone(), size.to_vec()))
        };
        self.place.keys().filter_map(size).collect()
    }

    fn tensor(&self, folder: &Path, key: &str) -> Result<Tensor> {
        let file = self.file_of(key);
        file.ok_or_else(|| Error::corrupt(folder, format!("it holds no `{key}`")))?
            .tensor(key)
    }
}

/// The last part of a path.
fn shown(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// Whether `name` is that of a file in the same folder, and leads nowhere else.
fn is_file_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!(parts.next(), Some(Component::Normal(_))) && parts.next().is_none()
}

/// The only GGUF file of a folder.
fn only_gguf(folder: &Path) -> Result<Option<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        if path.extension().is_some_and(|ending| ending == "gguf") {
            found.push(path);
        }
    }
    if found.len() > 1 {
        found.sort();
        let parts = found.iter().map(|path| gguf::parts_by_name(path));
        let parts: Option<Vec<i64>> = parts.collect();
        if let (Some(first), Some(&[parts, ..])) = (found.first(), parts.as_deref()) {
            return Err(gguf::split(first, parts));
        }
        let reason = format!("holds {} GGUF files; name one of them", found.len());
        return Err(Error::corrupt(folder, reason));
    }
    Ok(found.pop())
}

/// Opens the model in `folder`.
pub(crate) fn open(folder: &Path, device: Device, kind: Kind) -> Result<Opened> {
    let path = folder.join("config.json");
    if !path.is_file() {
        if let Some(file) = only_gguf(folder)? {
            return open::open_gguf(&file, device, kind);
        }
        let reason = match Tokenizer::from_folder(folder) {
            Ok(None) => "holds no model: neither config.json nor a GGUF file is there",
            _ => "holds a tokeniser but no model: config.json is missing",
        };
        return Err(Error::corrupt(folder, reason));
    }
    let mut config = LmConfig::from_hugging(&read_settings(&path)?)?;
    let generation = folder.join("generation_config.json");
    if generation.is_file() {
        add_ends(&mut config, &read_settings(&generation)?);
    }
    let shards = Shards::open(folder)?;
    let mut tokenizer = tokenizer(folder, &config)?;
    tokenizer.set_ends(config.bos, config.eos.first().copied());
    let sizes = shards.sizes();
    // The headers were checked: each of these values has bytes of its own.
    let numel = |size: &Vec<i64>| size.iter().map(|n| *n as u64).product::<u64>();
    let held = sizes.values().map(numel).fold(0, u64::saturating_add);
    open::check_plausible(folder, &config, held)?;
    let vs = VarStore::new(device);
    let model = Lm::undrawn(config, &vs.root(), kind)?;
    let mut read = |key: &str| shards.tensor(folder, key);
    let report = open::fill(&model, folder, &sizes, &mut read)?;
    let source = match shards.files.len() {
        1 => "1 file".to_owned(),
        several => format!("{several} shards"),
    };
    let casts: BTreeSet<String> = report
        .cast
        .iter()
        .map(|row| format!("{:?}", row.1))
        .collect();
    let casts: Vec<String> = casts.into_iter().collect();
    let cast = if casts.is_empty() {
        String::new()
    } else {
        format!(", cast from {}", casts.join(" and "))
    };
    let described = open::describe(&model, folder, &format!("{source}{cast}"));
    Ok(Opened {
        model,
        tokenizer,
        vs,
        described,
    })
}

/// Chat models say in a file of its own that further tokens end an answer.
fn add_ends(config: &mut LmConfig, generation: &Value) {
    let ids = &generation["eos_token_id"];
    let one = std::slice::from_ref(ids);
    for id in ids.as_array().map_or(one, Vec::as_slice) {
        if let Some(id) = id.as_i64()
            && !config.eos.contains(&id)
        {
            config.eos.push(id);
        }
    }
}

fn tokenizer(folder: &Path, config: &LmConfig) -> Result<Tokenizer> {
    let tokenizer = match Tokenizer::from_folder(folder)? {
        Some(tokenizer) => tokenizer,
        // All models of this family and size have the same.
        None if config.architecture == Architecture::Gpt2 && config.vocab_size == 50_257 => {
            tracing::info!("{}: no tokeniser; GPT-2's own is taken", folder.display());
            Tokenizer::gpt2()?
        }
        None => {
            let reason = "holds a model but no tokeniser: put its tokenizer.json there, or vocab.json and merges.txt";
            return Err(Error::corrupt(folder, reason));
        }
    };
    if tokenizer.len() as i64 > config.vocab_size {
        tracing::warn!(
            "{}: the tokeniser has {} tokens, the model {}; the last ones cannot be used",
            folder.display(),
            tokenizer.len(),
            config.vocab_size
        );
    }
    Ok(tokenizer)
}

/// Writes `config.json` and `model.safetensors` of a model into `folder`, which is made where it is missing; Python's `transformers` loads
/// both. The tokeniser is left to the caller.
///
/// # Errors
/// [`Error::Unsupported`] for a processed model with biases that its family's classes lack; [`Error::Io`] naming the file.
pub fn save(model: &Lm, folder: &Path) -> Result<()> {
    if !model.is_published() {
        return Err(Error::Unsupported {
            what: "saving a processed model as a folder".to_owned(),
            hint: "its biases have no place in those classes: save the model as it was, and process it after opening".to_owned(),
        });
    }
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let path = folder.join("model.safetensors");
    weights::save(&path, &model.parameters(), &metadata)?;
    let mut config = model.config().to_hugging();
    config["torch_dtype"] = json!(match model.kind() {
        Kind::Half => "float16",
        Kind::BFloat16 => "bfloat16",
        Kind::Double => "float64",
        _ => "float32",
    });
    let text = format!("{config:#}\n");
    fs::write(&folder.join("config.json"), text.as_bytes())
}
