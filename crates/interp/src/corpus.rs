//! Texts as windows of tokens: what activations are taken from.
//!
//! Documents are put one behind the other and cut into windows of one length, each of which starts with the token that begins a text, where the model has
//! one. A part of the documents is kept for judging: the last ones, and no document that occurs among the others stays in it.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use densely_core::{Error, Result, check};
use densely_lm::Tokenizer;
use serde_json::Value;
use tch::Tensor;

use crate::print::Fnv;

/// Longest document, bytes.
const MAX_DOCUMENT: u64 = 1 << 30;
/// What stands between documents of a text file.
const SEPARATOR: &str = "<|endoftext|>";

/// How texts become windows.
#[derive(Debug, Clone, PartialEq)]
pub struct CorpusOptions {
    /// Tokens of a window.
    pub context: usize,
    /// Whether windows start with the token that begins a text; only where the tokeniser has one.
    pub bos: bool,
    /// Tokens at most, of all texts together.
    pub limit: Option<usize>,
    /// The field or column that holds the text, in JSON lines and Parquet.
    pub field: String,
}

impl Default for CorpusOptions {
    fn default() -> Self {
        Self {
            context: 128,
            bos: true,
            limit: None,
            field: "text".to_owned(),
        }
    }
}

/// Windows of tokens, all of one length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corpus {
    /// One window behind the other; four bytes a token.
    tokens: Vec<u32>,
    context: usize,
    /// Tokens at the start of each window that belong to no text: 0 or 1.
    skip: usize,
}

/// Documents by their tokens.
#[derive(Debug, Default)]
pub struct Documents {
    tokens: Vec<u32>,
    /// Where each ends.
    ends: Vec<usize>,
}

impl Documents {
    /// Reads documents of files: `.jsonl`, `.ndjson` and `.json` hold an object in each line, `.parquet` a row for each (with this crate's feature
    /// `parquet`); any other file is text, in which `<|endoftext|>` stands between documents. Reading ends when `options.limit` tokens are there.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Data`] naming the line that has no text; [`Error::Config`] when no token is found; [`Error::Unsupported`] for Parquet
    /// without the feature.
    pub fn read(files: &[PathBuf], tokenizer: &Tokenizer, options: &CorpusOptions) -> Result<Self> {
        let mut found = Self::default();
        let limit = options.limit.unwrap_or(usize::MAX);
        for file in files {
            if found.tokens.len() >= limit {
                tracing::warn!("{} is not read: the limit is reached", file.display());
                continue;
            }
            each_text(file, &options.field, &mut |text| {
                found.push(text, tokenizer)?;
                Ok(found.tokens.len() < limit)
            })?;
        }
        found.truncate(limit);
        if found.tokens.is_empty() {
            return Err(Error::config("text", "has no token"));
        }
        Ok(found)
    }

    /// Adds a document; one without tokens is none.
    fn push(&mut self, text: &str, tokenizer: &Tokenizer) -> Result<()> {
        let before = self.tokens.len();
        // In pieces of whole lines: a tokeniser's memory grows with the text.
        let mut rest = text;
        while !rest.is_empty() {
            let piece = piece(rest);
            for id in tokenizer.encode_plain(piece)? {
                let id = u32::try_from(id)
                    .map_err(|_| Error::config("tokenizer", format!("gives the token {id}")))?;
                self.tokens.push(id);
            }
            rest = rest.get(piece.len()..).unwrap_or_default();
        }
        if self.tokens.len() > before {
            self.ends.push(self.tokens.len());
        }
        Ok(())
    }

    fn truncate(&mut self, limit: usize) {
        if self.tokens.len() <= limit {
            return;
        }
        self.tokens.truncate(limit);
        self.ends.retain(|end| *end < limit);
        self.ends.push(limit);
    }

    /// Number of documents.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Tokens of each document.
    fn each(&self) -> impl Iterator<Item = &[u32]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts
            .zip(&self.ends)
            .map(|(start, end)| self.tokens.get(start..*end).unwrap_or_default())
    }

    /// Cuts off the last `share` of the tokens for judging: whole documents, or the end of the one that there is. Documents that are in the first part
    /// word for word are left out of the second; their number is given, too.
    ///
    /// # Errors
    /// [`Error::Config`] when the share is not between 0 and 1, or one part would be empty.
    pub fn split(self, share: f64) -> Result<(Self, Self, usize)> {
        if !(share > 0.0 && share < 1.0) {
            let reason = format!("must lie between 0 and 1, got {share}");
            return Err(Error::config("test share", reason));
        }
        let wanted = ((1.0 - share) * self.tokens.len() as f64) as usize;
        let (mut first, mut second) = (Self::default(), Self::default());
        if self.ends.len() == 1 {
            let (before, behind) = self.tokens.split_at(wanted);
            first.add(before);
            second.add(behind);
        } else {
            for document in self.each() {
                if first.tokens.len() + document.len() <= wanted && second.is_empty() {
                    first.add(document);
                } else {
                    second.add(document);
                }
            }
        }
        let repeated = second.leave_out(&first);
        if first.is_empty() || second.is_empty() {
            let reason = format!(
                "{share} leaves no document for one of the parts; name texts for judging of their own"
            );
            return Err(Error::config("test share", reason));
        }
        Ok((first, second, repeated))
    }

    /// Takes out the documents that `others` holds word for word; gives how many those were.
    pub fn leave_out(&mut self, others: &Self) -> usize {
        let known: HashSet<&[u32]> = others.each().collect();
        let mut kept = Self::default();
        let mut repeated = 0;
        for document in self.each() {
            if known.contains(document) {
                repeated += 1;
            } else {
                kept.add(document);
            }
        }
        *self = kept;
        repeated
    }

    fn add(&mut self, document: &[u32]) {
        if !document.is_empty() {
            self.tokens.extend_from_slice(document);
            self.ends.push(self.tokens.len());
        }
    }

    /// Documents one behind the other, with the token that begins a text between them, cut into windows. What is left at the end is dropped.
    ///
    /// # Errors
    /// [`Error::Config`] when the context is too short, or the documents for one window.
    pub fn windows(&self, tokenizer: &Tokenizer, options: &CorpusOptions) -> Result<Corpus> {
        let bos = tokenizer.bos().and_then(|id| u32::try_from(id).ok());
        let start = bos.filter(|_| options.bos);
        let skip = usize::from(start.is_some());
        check::positive("context", options.context as i64 - skip as i64)?;
        let mut flat = Vec::with_capacity(self.tokens.len() + self.ends.len());
        for (place, document) in self.each().enumerate() {
            if place > 0 {
                flat.extend(bos);
            }
            flat.extend_from_slice(document);
        }
        let body = options.context - skip;
        let mut tokens = Vec::with_capacity(flat.len() / body * options.context);
        for window in flat.chunks_exact(body) {
            tokens.extend(start);
            tokens.extend_from_slice(window);
        }
        if tokens.is_empty() {
            let reason = format!(
                "has {} tokens, fewer than the {body} of one window",
                flat.len()
            );
            return Err(Error::config("text", reason));
        }
        Ok(Corpus {
            tokens,
            context: options.context,
            skip,
        })
    }
}

impl Corpus {
    /// Number of windows.
    pub const fn windows(&self) -> usize {
        self.tokens.len() / self.context
    }

    /// Tokens of a window.
    pub const fn context(&self) -> usize {
        self.context
    }

    /// Tokens at the start of each window that belong to no text.
    pub const fn skip(&self) -> usize {
        self.skip
    }

    /// Tokens that belong to texts.
    pub const fn tokens(&self) -> usize {
        self.windows() * (self.context - self.skip)
    }

    /// The tokens of a window; none of one that is not there.
    pub fn window(&self, index: usize) -> &[u32] {
        let start = index.saturating_mul(self.context);
        self.tokens
            .get(start..start.saturating_add(self.context))
            .unwrap_or_default()
    }

    /// Token ids `[windows, context]`, i64 on the CPU.
    ///
    /// # Errors
    /// [`Error::Torch`].
    pub fn ids(&self, windows: &[usize]) -> Result<Tensor> {
        let ids: Vec<i64> = windows
            .iter()
            .flat_map(|window| self.window(*window))
            .map(|id| i64::from(*id))
            .collect();
        Ok(Tensor::f_from_slice(&ids)?.f_reshape([windows.len() as i64, self.context as i64])?)
    }

    /// The first so many windows.
    #[must_use]
    pub fn first(mut self, windows: usize) -> Self {
        self.tokens.truncate(windows.saturating_mul(self.context));
        self
    }

    /// The corpus in 64 bits of its tokens.
    pub(crate) fn print(&self) -> String {
        let mut hash = Fnv::new();
        hash.add(&(self.context as u64).to_le_bytes());
        hash.add(&(self.skip as u64).to_le_bytes());
        for id in &self.tokens {
            hash.add(&id.to_le_bytes());
        }
        format!("{} windows of {}, {hash}", self.windows(), self.context)
    }
}

/// Calls `f` with each document of a file until it says that it has enough.
fn each_text(path: &Path, field: &str, f: &mut dyn FnMut(&str) -> Result<bool>) -> Result<()> {
    let ending = path.extension().and_then(|ending| ending.to_str());
    match ending {
        Some("jsonl" | "ndjson" | "json") => each_line(path, field, f),
        Some("parquet") => each_row(path, field, f),
        _ => {
            let mut text = String::new();
            let file = File::open(path).map_err(Error::io(path))?;
            let read = file.take(MAX_DOCUMENT + 1).read_to_string(&mut text);
            if let Err(error) = read {
                return Err(if error.kind() == std::io::ErrorKind::InvalidData {
                    Error::data(path, "is not UTF-8; save it as text of this encoding")
                } else {
                    Error::io(path)(error)
                });
            }
            if text.len() as u64 > MAX_DOCUMENT {
                return Err(too_long(path));
            }
            for document in text.split(SEPARATOR) {
                if !f(document)? {
                    break;
                }
            }
            Ok(())
        }
    }
}

fn too_long(path: &Path) -> Error {
    let reason = format!("holds a document of more than {} MiB", MAX_DOCUMENT >> 20);
    Error::data(path, reason)
}

fn each_line(path: &Path, field: &str, f: &mut dyn FnMut(&str) -> Result<bool>) -> Result<()> {
    let mut reader = BufReader::new(File::open(path).map_err(Error::io(path))?);
    let mut line = Vec::new();
    for number in 1u64.. {
        line.clear();
        let mut limited = (&mut reader).take(MAX_DOCUMENT + 1);
        let read = limited
            .read_until(b'\n', &mut line)
            .map_err(Error::io(path))?;
        if read == 0 {
            break;
        }
        if line.len() as u64 > MAX_DOCUMENT {
            return Err(too_long(path));
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let wrong = |reason: String| Error::Data {
            path: path.to_owned(),
            row: Some(number),
            column: Some(field.to_owned()),
            reason,
        };
        let row: Value =
            serde_json::from_slice(&line).map_err(|error| wrong(format!("is no JSON: {error}")))?;
        let text = row
            .get(field)
            .and_then(Value::as_str)
            .ok_or_else(|| wrong("is no text".to_owned()))?;
        if !f(text)? {
            break;
        }
    }
    Ok(())
}

#[cfg(feature = "parquet")]
fn each_row(path: &Path, field: &str, f: &mut dyn FnMut(&str) -> Result<bool>) -> Result<()> {
    let table = densely_data::Table::open(path)?;
    let (codes, texts) = table.texts(field)?;
    for code in codes {
        // Rows without a text have a code beyond the list.
        let Some(text) = texts.get(code as usize) else {
            continue;
        };
        if !f(text)? {
            break;
        }
    }
    Ok(())
}

#[cfg(not(feature = "parquet"))]
fn each_row(path: &Path, _field: &str, _f: &mut dyn FnMut(&str) -> Result<bool>) -> Result<()> {
    Err(Error::Unsupported {
        what: format!("{}: Parquet", path.display()),
        hint: "build densely-interp with its feature `parquet`".to_owned(),
    })
}

/// The first part of a text: whole lines, of 64 KB or a line more.
pub(crate) fn piece(text: &str) -> &str {
    const BYTES: usize = 64 << 10;
    if text.len() <= BYTES {
        return text;
    }
    let bytes = text.as_bytes();
    let end = bytes.iter().skip(BYTES).position(|byte| *byte == b'\n');
    let end = end.map_or(text.len(), |more| BYTES + more + 1);
    text.get(..end).unwrap_or(text)
}
