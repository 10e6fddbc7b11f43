//! A prompt as tokens, with its subject found and its answer.

use std::ops::Range;

use densely_core::{Error, Result};
use densely_lm::{Lm, Tokenizer};

use super::Score;
use crate::facts::Fact;

/// What is traced: tokens, where the subject stands, and what should follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// Token ids, with those that the tokenizer puts before a text.
    pub ids: Vec<i64>,
    /// Text of each token, for figures.
    pub tokens: Vec<String>,
    /// Tokens of the subject, the end excluded.
    pub subject: Range<usize>,
    /// Tokens of the answer; empty to take the likeliest token.
    pub answer: Vec<i64>,
}

impl Prompt {
    /// Finds the first place of `subject` in `text`, by accumulating decoded tokens.
    ///
    /// The answer's tokens are those that follow the prompt's own when the text goes on with a space and the answer.
    ///
    /// # Errors
    /// [`Error::Data`] when the text is empty or the subject is not in it; [`Error::Config`] when the answer is empty; what the tokenizer says.
    pub fn new(
        tokenizer: &Tokenizer,
        text: &str,
        subject: &str,
        answer: Option<&str>,
    ) -> Result<Self> {
        let ids = tokenizer.encode(text)?;
        if ids.is_empty() || text.trim().is_empty() {
            return Err(Error::data("", "the prompt is empty"));
        }
        if subject.is_empty() || !text.contains(subject) {
            let reason = format!(
                "the subject {subject:?} does not stand in the prompt {text:?}; letters and spaces must be the same"
            );
            return Err(Error::data("", reason));
        }
        let subject = tokenizer.span(&ids, subject)?;
        let tokens = ids
            .iter()
            .map(|id| tokenizer.piece(*id))
            .collect::<Result<Vec<_>>>()?;
        let answer = match answer {
            None => Vec::new(),
            Some(words) => answer_ids(tokenizer, text, &ids, words.trim())?,
        };
        Ok(Self {
            ids,
            tokens,
            subject,
            answer,
        })
    }

    /// The prompt of a fact; its answer is the attribute by [`Score::Product`], and the likeliest token by [`Score::First`].
    ///
    /// # Errors
    /// As [`Prompt::new`].
    pub fn of_fact(tokenizer: &Tokenizer, fact: &Fact, score: Score) -> Result<Self> {
        let answer = match score {
            Score::First => None,
            Score::Product => fact.attribute.as_deref(),
        };
        Self::new(tokenizer, &fact.prompt, &fact.subject, answer)
    }

    /// A prompt of token ids alone, as tests and other programs make it; tokens are shown as their numbers.
    ///
    /// # Errors
    /// [`Error::Config`] when the subject is empty or not within the ids.
    pub fn from_ids(ids: Vec<i64>, subject: Range<usize>, answer: Vec<i64>) -> Result<Self> {
        let prompt = Self {
            tokens: ids.iter().map(i64::to_string).collect(),
            ids,
            subject,
            answer,
        };
        prompt.check_subject()?;
        Ok(prompt)
    }

    fn check_subject(&self) -> Result<()> {
        let Range { start, end } = self.subject;
        if start < end && end <= self.ids.len() {
            return Ok(());
        }
        let reason = format!(
            "must lie within the prompt's {} tokens, got {start}..{end}",
            self.ids.len()
        );
        Err(Error::config("subject", reason))
    }

    pub(crate) fn validate(&self, model: &Lm) -> Result<()> {
        self.check_subject()?;
        let config = model.config();
        let length = (self.ids.len() + self.answer.len().saturating_sub(1)) as i64;
        if length > config.n_ctx {
            let reason = format!(
                "has {length} tokens with its answer, the model takes {}",
                config.n_ctx
            );
            return Err(Error::config("prompt", reason));
        }
        let known = 0..config.vocab_size;
        match self
            .ids
            .iter()
            .chain(&self.answer)
            .find(|id| !known.contains(id))
        {
            None => Ok(()),
            Some(id) => {
                let reason = format!(
                    "holds token {id}; the model's ids are below {}",
                    config.vocab_size
                );
                Err(Error::config("prompt", reason))
            }
        }
    }
}

/// Tokens of an answer behind a prompt.
fn answer_ids(tokenizer: &Tokenizer, text: &str, ids: &[i64], words: &str) -> Result<Vec<i64>> {
    if words.is_empty() {
        return Err(Error::config("answer", "is empty"));
    }
    // As it is read in its place; where the seam falls within a token, as it is read alone.
    let whole = tokenizer.encode(&format!("{} {words}", text.trim_end()))?;
    let found = match whole.strip_prefix(ids) {
        Some(rest) if !rest.is_empty() => rest.to_vec(),
        _ => tokenizer.encode_plain(&format!(" {words}"))?,
    };
    if found.is_empty() {
        let reason = format!("{words:?} has no tokens");
        return Err(Error::config("answer", reason));
    }
    Ok(found)
}
