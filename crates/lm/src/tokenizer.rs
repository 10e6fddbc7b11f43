//! Text to tokens and back.
//!
//! GPT-2's vocabulary is inside this crate; others are read from `tokenizer.json`, from `vocab.json` and `merges.txt`, or from the
//! metadata of a GGUF file. A token is a run of *bytes*, which may end within a character: [`Tokenizer::decode`] joins the bytes first and
//! puts `�` only for what is no character in the end, [`Tokenizer::span`] counts in bytes, and [`TextStream`] keeps a cut character back
//! until the rest of it has come.
//!
//! The names of special tokens in a text, such as `<|endoftext|>`, are read as these tokens, as in the reference.

mod build;
mod bytes;
mod stream;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use densely_core::{Error, Result};
use serde_json::Value;
use tiktoken_rs::CoreBPE;

use crate::folder::read_tokens;
use crate::gguf::Gguf;
pub use stream::TextStream;

/// White space in a row at most: the regular expressions of tokenisers fail on much longer runs, the one of GPT-2's with a panic.
const MAX_SPACE: usize = 100_000;

/// `<|endoftext|>` of GPT-2.
const END_OF_TEXT: i64 = 50_256;

enum Inner {
    /// GPT-2's, which travels with the crate.
    Gpt2(&'static CoreBPE),
    /// Any other.
    Library(Box<tokenizers::Tokenizer>),
}

/// How the text of a token is written in the vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spelling {
    /// A character for each byte, by GPT-2's table.
    Bytes,
    /// As it is, with `▁` for a space and `<0x0A>` for a byte.
    Spaces,
    /// As it is.
    Plain,
}

/// A tokeniser of a language model.
pub struct Tokenizer {
    inner: Inner,
    spelling: Spelling,
    /// Tokens that are put before a text, beside those that the library adds.
    before: Vec<i64>,
    bos: Option<i64>,
    eos: Option<i64>,
    tokens: usize,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match self.inner {
            Inner::Gpt2(_) => "GPT-2",
            Inner::Library(_) => "read from a file",
        };
        f.debug_struct("Tokenizer")
            .field("kind", &kind)
            .field("tokens", &self.tokens)
            .field("spelling", &self.spelling)
            .field("bos", &self.bos)
            .field("eos", &self.eos)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// GPT-2's own: 50,257 tokens, of which the last, `<|endoftext|>`, starts and ends texts.
    ///
    /// ```
    /// # fn main() -> densely_core::Result<()> {
    /// let tokenizer = densely_lm::Tokenizer::gpt2()?;
    /// assert_eq!(tokenizer.encode("Hello world!")?, [15496, 995, 0]);
    /// assert_eq!(tokenizer.decode(&[15496, 995, 0])?, "Hello world!");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// None today; the type is that of the other constructors.
    pub fn gpt2() -> Result<Self> {
        Ok(Self {
            inner: Inner::Gpt2(tiktoken_rs::r50k_base_singleton()),
            spelling: Spelling::Bytes,
            before: Vec::new(),
            bos: Some(END_OF_TEXT),
            eos: Some(END_OF_TEXT),
            tokens: END_OF_TEXT as usize + 1,
        })
    }

    /// Reads a `tokenizer.json`. Where `tokenizer_config.json` or `special_tokens_map.json` lie beside it, they say which tokens start and
    /// end texts. Limits of length and padding that the file may hold are left out: a text is encoded whole.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read; [`Error::Corrupt`] when it is no tokeniser.
    pub fn from_file(path: &Path) -> Result<Self> {
        let mut tokenizer = Self::from_json(path, read_tokens(path)?)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let (bos, eos) = build::ends(folder)?;
        tokenizer.bos = tokenizer.number_of(bos.as_deref());
        tokenizer.eos = tokenizer.number_of(eos.as_deref());
        Ok(tokenizer)
    }

    /// Reads `vocab.json` and `merges.txt`, or files of the same content under other names such as `encoder.json` and `vocab.bpe`. What
    /// lies beside them says which tokens are special.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Corrupt`] naming the file; [`Error::Unsupported`] when `tokenizer_config.json` names a class that
    /// splits texts in a way that is not known here.
    pub fn from_vocabulary(vocabulary: &Path, merges: &Path) -> Result<Self> {
        build::from_vocabulary(vocabulary, merges)
    }

    /// Finds the tokeniser of a model's folder: `tokenizer.json`, else `vocab.json` with `merges.txt`, else `encoder.json` with
    /// `vocab.bpe`; `None` when there is none.
    ///
    /// # Errors
    /// Those of [`from_file`](Self::from_file) and [`from_vocabulary`](Self::from_vocabulary); [`Error::Corrupt`] when one file of a pair is missing.
    pub fn from_folder(folder: &Path) -> Result<Option<Self>> {
        let whole = folder.join("tokenizer.json");
        if whole.is_file() {
            return Self::from_file(&whole).map(Some);
        }
        for (vocabulary, merges) in [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")] {
            let both = [folder.join(vocabulary), folder.join(merges)];
            match both.each_ref().map(|path| path.is_file()) {
                [true, true] => {
                    let [vocabulary, merges] = &both;
                    return Self::from_vocabulary(vocabulary, merges).map(Some);
                }
                [true, false] => {
                    let reason = format!("holds `{vocabulary}` without `{merges}`");
                    return Err(Error::corrupt(folder, reason));
                }
                [false, _] => {}
            }
        }
        Ok(None)
    }

    /// The tokeniser that a GGUF file carries.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming a kind that is not known here; [`Error::Corrupt`] when its lists do not fit each other.
    pub fn from_gguf(file: &Gguf) -> Result<Self> {
        build::from_gguf(file)
    }

    /// The tokeniser that a `tokenizer.json` describes. `path` is for messages.
    fn from_json(path: &Path, mut json: Value) -> Result<Self> {
        let spelling = bytes::spelling(&json["decoder"]);
        if let Some(fields) = json.as_object_mut() {
            fields.insert("truncation".to_owned(), Value::Null);
            fields.insert("padding".to_owned(), Value::Null);
        } else {
            return Err(Error::corrupt(path, "it is no JSON object"));
        }
        let library: tokenizers::Tokenizer = guarded(|| serde_json::from_value(json))
            .map_err(|reason| Error::corrupt(path, format!("it is no tokeniser: {reason}")))?;
        let tokens = library.get_vocab_size(true);
        Ok(Self {
            inner: Inner::Library(Box::new(library)),
            spelling,
            before: Vec::new(),
            bos: None,
            eos: None,
            tokens,
        })
    }

    /// The number of a token that is written so.
    fn number_of(&self, token: Option<&str>) -> Option<i64> {
        match &self.inner {
            Inner::Gpt2(_) => None,
            Inner::Library(library) => Some(i64::from(library.token_to_id(token?)?)),
        }
    }

    /// Sets the tokens that start and end texts where the tokeniser's files do not say.
    pub(crate) fn set_ends(&mut self, bos: Option<i64>, eos: Option<i64>) {
        self.bos = self.bos.or(bos);
        self.eos = self.eos.or(eos);
    }

    /// The tokens of `text`, with the special ones that the tokeniser itself adds, such as OPT's `</s>` at the start. A text is there to
    /// be written on: the end that some GGUF files ask for behind it (`add_eos_token`) is left out.
    ///
    /// # Errors
    /// [`Error::Data`] when the text has more than 100,000 spaces in a row, or the library refuses it.
    pub fn encode(&self, text: &str) -> Result<Vec<i64>> {
        let inner = self.tokens_of(text, true)?;
        Ok([self.before.as_slice(), &inner].concat())
    }

    /// The tokens of `text` alone.
    ///
    /// # Errors
    /// Those of [`encode`](Self::encode).
    pub fn encode_plain(&self, text: &str) -> Result<Vec<i64>> {
        self.tokens_of(text, false)
    }

    fn tokens_of(&self, text: &str, add: bool) -> Result<Vec<i64>> {
        if longest_space(text) > MAX_SPACE {
            let reason = format!("the text has more than {MAX_SPACE} spaces in a row");
            return Err(Error::data("", reason));
        }
        let tokens = guarded(|| match &self.inner {
            Inner::Gpt2(bpe) => Ok(bpe.encode_with_special_tokens(text)),
            Inner::Library(library) => library
                .encode_fast(text, add)
                .map(|encoding| encoding.get_ids().to_vec()),
        });
        let tokens =
            tokens.map_err(|e| Error::data("", format!("the tokeniser refused the text: {e}")))?;
        Ok(tokens.into_iter().map(i64::from).collect())
    }

    /// The bytes of a token; `None` when there is no such token.
    pub fn bytes(&self, id: i64) -> Option<Vec<u8>> {
        let id = u32::try_from(id).ok()?;
        match &self.inner {
            Inner::Gpt2(bpe) => bpe.decode_bytes(&[id]).ok(),
            Inner::Library(library) => {
                Some(bytes::of_token(&library.id_to_token(id)?, self.spelling))
            }
        }
    }

    fn known_bytes(&self, id: i64) -> Result<Vec<u8>> {
        self.bytes(id).ok_or_else(|| {
            let reason = format!("is none of the tokeniser's {} tokens", self.tokens);
            Error::config(format!("token {id}"), reason)
        })
    }

    /// The text of `ids`, special tokens included; `�` stands for bytes that are no character.
    ///
    /// # Errors
    /// [`Error::Config`] naming a token that does not exist.
    pub fn decode(&self, ids: &[i64]) -> Result<String> {
        let mut all = Vec::new();
        let mut numbers = Vec::new();
        for id in ids {
            all.append(&mut self.known_bytes(*id)?);
            numbers.push(*id as u32);
        }
        if let (Inner::Library(library), Spelling::Spaces | Spelling::Plain) =
            (&self.inner, self.spelling)
        {
            // These join tokens by rules of their own, such as dropping the first space.
            return guarded(|| library.decode(&numbers, false))
                .map_err(|e| Error::data("", format!("the tokeniser cannot decode: {e}")));
        }
        Ok(String::from_utf8_lossy(&all).into_owned())
    }

    /// One token as text, for figures.
    ///
    /// # Errors
    /// [`Error::Config`] when it does not exist.
    pub fn piece(&self, id: i64) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.known_bytes(id)?).into_owned())
    }

    /// The range of tokens that covers the first place where `text` stands in the decoded `ids`: from the token with its first byte to the
    /// one with its last.
    ///
    /// # Errors
    /// [`Error::Config`] when the text is empty or does not occur.
    pub fn span(&self, ids: &[i64], text: &str) -> Result<Range<usize>> {
        let mut all = Vec::new();
        let mut ends = Vec::with_capacity(ids.len());
        for id in ids {
            all.append(&mut self.known_bytes(*id)?);
            ends.push(all.len());
        }
        let sought = text.as_bytes();
        let first = if sought.is_empty() {
            None
        } else {
            all.windows(sought.len()).position(|part| part == sought)
        };
        let Some(first) = first else {
            let reason = format!(
                "must stand in the prompt `{}`, got `{text}`",
                String::from_utf8_lossy(&all)
            );
            return Err(Error::config("text", reason));
        };
        let last = first + sought.len() - 1;
        let token_of = |byte: usize| ends.partition_point(|end| *end <= byte);
        Ok(token_of(first)..token_of(last) + 1)
    }

    /// A reader of tokens that gives text as soon as its characters are whole.
    pub const fn stream(&self) -> TextStream<'_> {
        TextStream::new(self)
    }

    /// Number of tokens.
    pub const fn len(&self) -> usize {
        self.tokens
    }

    /// Whether there are no tokens.
    pub const fn is_empty(&self) -> bool {
        self.tokens == 0
    }

    /// The token that starts a text.
    pub const fn bos(&self) -> Option<i64> {
        self.bos
    }

    /// The token that ends one.
    pub const fn eos(&self) -> Option<i64> {
        self.eos
    }
}

/// Runs what a library does with a file or text that nobody has checked: where it panics, that is the error.
fn guarded<T, E: std::fmt::Display>(
    run: impl FnOnce() -> std::result::Result<T, E>,
) -> std::result::Result<T, String> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(_) => Err("the library stopped at a contradiction".to_owned()),
    }
}

/// The longest run of white space, in characters.
fn longest_space(text: &str) -> usize {
    let (mut longest, mut run) = (0, 0);
    for c in text.chars() {
        run = if c.is_whitespace() { run + 1 } else { 0 };
        longest = longest.max(run);
    }
    longest
}
