//! Byte-level tokenisers put together from a vocabulary and a list of merges, as GPT-2's and their kin.

use std::collections::BTreeMap;
use std::path::Path;

use densely_core::{Error, Result};
use serde_json::{Map, Value, json};

use super::Tokenizer;
use crate::folder::{read_merges, read_settings, read_tokens};
use crate::gguf::Gguf;

/// How a text is cut before its pieces are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Split {
    /// GPT-2: contractions, letters, digits, others, each with the space before it.
    Gpt2,
    /// As GPT-2, after every digit was set apart.
    SmolLm,
    /// Llama 3: up to three digits together, line ends with the punctuation before them.
    Llama3,
    /// As Llama 3, with single digits, after Unicode composition.
    Qwen2,
    /// What llama.cpp does where a file does not say.
    Default,
}

/// GPT-2's expression.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Llama 3's, with `{DIGITS}` for how many digits go together.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{DIGITS}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

impl Split {
    /// By the name in a GGUF file.
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "gpt-2" => Self::Gpt2,
            "smollm" => Self::SmolLm,
            "llama-bpe" | "llama3" | "llama-v3" => Self::Llama3,
            "qwen2" => Self::Qwen2,
            "default" => Self::Default,
            _ => return None,
        })
    }

    /// By the class in a `tokenizer_config.json`.
    fn of_class(class: &str) -> Option<Self> {
        Some(match class.strip_suffix("Fast").unwrap_or(class) {
            "GPT2Tokenizer" | "CodeGenTokenizer" | "GPTNeoXTokenizer" => Self::Gpt2,
            "Qwen2Tokenizer" => Self::Qwen2,
            _ => return None,
        })
    }

    fn normalizer(self) -> Value {
        match self {
            Self::Qwen2 => json!({ "type": "NFC" }),
            _ => Value::Null,
        }
    }

    fn pre_tokenizer(self, prefix_space: bool) -> Value {
        let bytes = |by_gpt2: bool| json!({ "type": "ByteLevel", "add_prefix_space": prefix_space, "trim_offsets": true, "use_regex": by_gpt2 });
        let split = |pattern: &str| json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false });
        let parts = match self {
            Self::Gpt2 => return bytes(true),
            Self::SmolLm => vec![
                json!({ "type": "Digits", "individual_digits": true }),
                bytes(true),
            ],
            Self::Llama3 => vec![split(&LLAMA3.replace("{DIGITS}", "{1,3}")), bytes(false)],
            Self::Qwen2 => vec![split(&LLAMA3.replace("{DIGITS}", "")), bytes(false)],
            Self::Default => vec![
                split(r"[\p{P}\$\+<=>\^~\|]+"),
                split(GPT2),
                split(r"\p{N}+"),
                split(r"[0-9][0-9][0-9]"),
                bytes(false),
            ],
        };
        json!({ "type": "Sequence", "pretokenizers": parts })
    }
}

/// What a byte-level tokeniser is made of.
struct Parts {
    vocabulary: Map<String, Value>,
    /// Pairs, most frequent first.
    merges: Vec<Value>,
    /// Tokens that are found in a text whole, and whether they are marks rather than text.
    added: BTreeMap<String, bool>,
    split: Split,
    prefix_space: bool,
    /// Whether a piece that is a token is never cut, whatever the merges say.
    whole_first: bool,
}

impl Parts {
    fn build(self, path: &Path) -> Result<Tokenizer> {
        let added: Vec<Value> = self
            .added
            .iter()
            .filter_map(|(content, special)| {
                let id = self.vocabulary.get(content)?;
                Some(json!({
                    "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": special,
                }))
            })
            .collect();
        let json = json!({
            "version": "1.0",
            "added_tokens": added,
            "normalizer": self.split.normalizer(),
            "pre_tokenizer": self.split.pre_tokenizer(self.prefix_space),
            "post_processor": null,
            "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                "ignore_merges": self.whole_first, "vocab": self.vocabulary, "merges": self.merges,
            },
        });
        Tokenizer::from_json(path, json)
    }
}

/// A merge, `a b`.
fn pair(line: &str) -> Option<Value> {
    let (a, b) = line.split_once(' ')?;
    (!a.is_empty() && !b.is_empty() && !b.contains(' ')).then(|| json!([a, b]))
}

/// A token as configuration files write it: its text, or an object with its `content`.
fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value["content"].as_str())
}

/// The JSON object in a file beside the tokeniser, or null where there is none.
fn beside(folder: &Path, name: &str) -> Result<Value> {
    let path = folder.join(name);
    if path.is_file() {
        read_settings(&path)
    } else {
        Ok(Value::Null)
    }
}

/// The files that say which tokens are special.
fn configurations(folder: &Path) -> Result<[Value; 2]> {
    Ok([
        beside(folder, "tokenizer_config.json")?,
        beside(folder, "special_tokens_map.json")?,
    ])
}

/// The token that one of the files names as `role`.
fn role<'a>(files: &'a [Value], role: &str) -> Option<&'a str> {
    files.iter().find_map(|file| token_text(&file[role]))
}

/// The tokens that start and end a text, by the files in the folder.
pub(super) fn ends(folder: &Path) -> Result<(Option<String>, Option<String>)> {
    let files = configurations(folder)?;
    let named = |name: &str| role(&files, name).map(str::to_owned);
    Ok((named("bos_token"), named("eos_token")))
}

/// See [`Tokenizer::from_vocabulary`].
pub(super) fn from_vocabulary(vocabulary: &Path, merges: &Path) -> Result<Tokenizer> {
    let Value::Object(mut words) = read_tokens(vocabulary)? else {
        return Err(Error::corrupt(vocabulary, "it is no JSON object"));
    };
    let is_number = |value: &Value| value.as_u64().is_some_and(|id| id < 1 << 31);
    if let Some((word, _)) = words.iter().find(|(_, value)| !is_number(value)) {
        let reason = format!("the token `{word}` has no number");
        return Err(Error::corrupt(vocabulary, reason));
    }
    let mut pairs = Vec::new();
    for (index, line) in read_merges(merges)?.lines().enumerate() {
        if line.starts_with("#version") || line.trim().is_empty() {
            continue;
        }
        let reason = || format!("line {} is no pair of tokens", index + 1);
        pairs.push(pair(line.trim_end()).ok_or_else(|| Error::corrupt(merges, reason()))?);
    }

    let folder = vocabulary.parent().unwrap_or(Path::new("."));
    let files = configurations(folder)?;
    let split = match files[0]["tokenizer_class"].as_str() {
        None => Split::Gpt2,
        Some(class) => Split::of_class(class).ok_or_else(|| Error::Unsupported {
            what: format!("the tokeniser `{class}` of {}", folder.display()),
            hint: "save it as tokenizer.json".to_owned(),
        })?,
    };
    let mut added = BTreeMap::new();
    let extra = beside(folder, "added_tokens.json")?;
    for (word, id) in extra.as_object().into_iter().flatten() {
        if is_number(id) {
            words.entry(word.clone()).or_insert_with(|| id.clone());
            added.insert(word.clone(), false);
        }
    }
    for (id, token) in files[0]["added_tokens_decoder"]
        .as_object()
        .into_iter()
        .flatten()
    {
        if let (Some(word), Ok(id)) = (token_text(token), id.parse::<u32>()) {
            words.entry(word.to_owned()).or_insert_with(|| json!(id));
            added.insert(word.to_owned(), token["special"] == true);
        }
    }
    for file in &files {
        let one = ["bos_token", "eos_token", "unk_token", "pad_token"];
        let more = file["additional_special_tokens"].as_array();
        let tokens = one
            .iter()
            .map(|role| &file[*role])
            .chain(more.into_iter().flatten());
        for word in tokens.filter_map(token_text) {
            added.insert(word.to_owned(), true);
        }
    }
    // GPT-2's own files name no special token.
    let end = "<|endoftext|>";
    let nameless = role(&files, "bos_token")
        .or(role(&files, "eos_token"))
        .is_none();
    let fallback = (nameless && split == Split::Gpt2 && words.contains_key(end)).then_some(end);
    if let Some(word) = fallback {
        added.insert(word.to_owned(), true);
    }

    let parts = Parts {
        vocabulary: words,
        merges: pairs,
        added,
        split,
        prefix_space: files[0]["add_prefix_space"] == true,
        whole_first: false,
    };
    let mut tokenizer = parts.build(vocabulary)?;
    tokenizer.bos = tokenizer.number_of(role(&files, "bos_token").or(fallback));
    tokenizer.eos = tokenizer.number_of(role(&files, "eos_token").or(fallback));
    if files[0]["add_bos_token"] == true {
        tokenizer.before.extend(tokenizer.bos);
    }
    Ok(tokenizer)
}

/// Types of tokens in a GGUF file: marks, and what a user added.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// See [`Tokenizer::from_gguf`].
pub(super) fn from_gguf(file: &Gguf) -> Result<Tokenizer> {
    let path = file.path();
    let corrupt = |reason: String| Error::corrupt(path, reason);
    let absent = |key: &str| corrupt(format!("its metadata lack `tokenizer.ggml.{key}`"));
    let unsupported = |what: String| Error::Unsupported {
        what: format!("{what} of {}", path.display()),
        hint: "open the folder of the same model with its tokenizer.json".to_owned(),
    };
    match file.text("tokenizer.ggml.model")? {
        Some("gpt2") => {}
        Some(other) => return Err(unsupported(format!("the tokeniser `{other}`"))),
        None => return Err(absent("model")),
    }
    let split = if let Some(name) = file.text("tokenizer.ggml.pre")? {
        Split::named(name)
            .ok_or_else(|| unsupported(format!("the tokeniser's way to cut a text, `{name}`,")))?
    } else {
        tracing::warn!(
            "{}: it does not say how its tokeniser cuts a text; tokens may differ from those of the training",
            path.display()
        );
        Split::Default
    };
    let tokens = file
        .texts("tokenizer.ggml.tokens")?
        .ok_or_else(|| absent("tokens"))?;
    let merges = file
        .texts("tokenizer.ggml.merges")?
        .ok_or_else(|| absent("merges"))?;
    let types = file
        .integers("tokenizer.ggml.token_type")?
        .unwrap_or_default();
    if !types.is_empty() && types.len() != tokens.len() {
        let reason = format!(
            "it has {} tokens and {} types of them",
            tokens.len(),
            types.len()
        );
        return Err(corrupt(reason));
    }
    let mut vocabulary = Map::new();
    let mut added = BTreeMap::new();
    for (id, token) in tokens.iter().enumerate() {
        match types.get(id) {
            Some(&CONTROL) => added.insert(token.clone(), true),
            Some(&USER_DEFINED) => added.insert(token.clone(), false),
            _ => None,
        };
        if let Some(before) = vocabulary.insert(token.clone(), json!(id)) {
            return Err(corrupt(format!(
                "its tokens {before} and {id} are both `{token}`"
            )));
        }
    }
    let pairs: Option<Vec<Value>> = merges.iter().map(|line| pair(line)).collect();
    let parts = Parts {
        vocabulary,
        merges: pairs.ok_or_else(|| corrupt("a merge is no pair of tokens".to_owned()))?,
        added,
        split,
        prefix_space: file.flag("tokenizer.ggml.add_space_prefix")? == Some(true),
        whole_first: split == Split::Llama3,
    };
    let mut tokenizer = parts.build(path)?;
    let number = |name: &str| -> Result<Option<i64>> {
        let id = file.integer(&format!("tokenizer.ggml.{name}_token_id"))?;
        match id {
            Some(id) if !(0..tokens.len() as i64).contains(&id) => {
                let reason = format!("its {name} token is {id}, and it has {}", tokens.len());
                Err(corrupt(reason))
            }
            id => Ok(id),
        }
    };
    tokenizer.bos = number("bos")?;
    tokenizer.eos = number("eos")?;
    let starts = file.flag("tokenizer.ggml.add_bos_token")?;
    if starts.unwrap_or(split == Split::Llama3) {
        tokenizer.before.extend(tokenizer.bos);
    }
    // Where `add_eos_token` asks for an end behind each text, llama.cpp refuses to write on and to judge. Here both go without the end:
    // nothing follows it.
    if file.flag("tokenizer.ggml.add_eos_token")? == Some(true) {
        tracing::info!(
            "{}: it asks for the token that ends a text behind each, which is left out",
            path.display()
        );
    }
    Ok(tokenizer)
}
