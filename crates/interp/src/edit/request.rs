//! What an edit is asked for, as tokens; and the texts that are put before the prompt so that the edit does not depend on its place.

use std::ops::Range;

use densely_core::{Error, Result};
use densely_lm::{Lm, Sampling, Tokenizer, generate};
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::score::check_length;
use crate::trace::Prompt;

/// A prompt as tokens, and where its subject ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Token ids.
    pub ids: Vec<i64>,
    /// Place of the subject's last token.
    pub place: usize,
}

/// A fact to be written: the prompt alone and behind each prefix, and what should follow.
#[derive(Debug)]
pub struct Request {
    /// The prompt behind the prefixes of each group; the first row of the first group is the prompt alone. ROME averages over all
    /// rows alike, MEMIT within each group and then over the groups.
    pub groups: Vec<Vec<Row>>,
    /// Tokens of the target.
    pub target: Vec<i64>,
    /// A prompt about the subject whose next token should stay as likely as it was; `None` leaves that part of the loss out.
    pub kl: Option<Row>,
    /// The subject's tokens in the prompt alone, the end excluded.
    pub subject: Range<usize>,
    /// `[draws, subject tokens, d]`: noise on the subject's embeddings in place of prefixes. The prompt alone goes through the model
    /// once for each draw; keys and losses are means over them.
    pub noise: Option<Tensor>,
}

impl Request {
    /// A request of a template with `{}` for the subject.
    ///
    /// The subject's last token is the one with the last byte of the template's beginning and the subject, so that the subject may occur
    /// elsewhere too. The target's tokens are those that follow when the prompt goes on with a space and the target.
    ///
    /// # Errors
    /// [`Error::Config`] when the template has no `{}` or something is empty; what the tokenizer says.
    pub fn new(
        tokenizer: &Tokenizer,
        template: &str,
        subject: &str,
        target: &str,
        prefixes: &Prefixes,
    ) -> Result<Self> {
        let template = template.trim_end();
        let Some((before, _)) = template.split_once("{}") else {
            let reason = format!("must hold {{}} in the place of the subject, got {template:?}");
            return Err(Error::config("prompt", reason));
        };
        if subject.trim().is_empty() {
            return Err(Error::config("subject", "is empty"));
        }
        let head = format!("{before}{subject}");
        let prompt = template.replacen("{}", subject, 1);
        // The whole text stands for the subject here: only the target's tokens are taken.
        let target = Prompt::new(tokenizer, &prompt, &prompt, Some(target))?.answer;
        let row = |prefix: &str| -> Result<Row> {
            let (text, head) = if prefix.is_empty() {
                (prompt.clone(), head.clone())
            } else {
                (format!("{prefix}. {prompt}"), format!("{prefix}. {head}"))
            };
            let ids = tokenizer.encode(&text)?;
            let place = tokenizer.span(&ids, &head)?.end - 1;
            Ok(Row { ids, place })
        };
        let mut groups = Vec::new();
        for group in &prefixes.groups {
            groups.push(group.iter().map(|p| row(p)).collect::<Result<Vec<_>>>()?);
        }
        let bare = row("")?;
        // From the token with the first byte behind the template's beginning.
        let start = if before.trim().is_empty() {
            tokenizer.span(&bare.ids, subject)?.start
        } else {
            let before = tokenizer.span(&bare.ids, before.trim_end())?;
            before.end.min(bare.place)
        };
        let text = format!("{subject} is a");
        let ids = tokenizer.encode(&text)?;
        let kl = Row {
            place: tokenizer.span(&ids, subject)?.end - 1,
            ids,
        };
        let request = Self {
            subject: start..bare.place + 1,
            groups,
            target,
            kl: Some(kl),
            noise: None,
        };
        request.validate()?;
        Ok(request)
    }

    /// A request of token ids alone. `prefixes` are those of each group, of which the first of the first is empty; `kl` is a prompt that
    /// begins with the subject, and the place of the subject's last token in it.
    ///
    /// # Errors
    /// [`Error::Config`] when the subject does not lie within the prompt, or something is empty that must not be.
    pub fn from_ids(
        prompt: &[i64],
        subject: Range<usize>,
        target: &[i64],
        kl: Option<(&[i64], usize)>,
        prefixes: &[Vec<Vec<i64>>],
    ) -> Result<Self> {
        if subject.start >= subject.end || subject.end > prompt.len() {
            let reason = format!(
                "must lie within the prompt's {} tokens, got {}..{}",
                prompt.len(),
                subject.start,
                subject.end
            );
            return Err(Error::config("subject", reason));
        }
        let row = |prefix: &Vec<i64>| Row {
            ids: [prefix, prompt].concat(),
            place: prefix.len() + subject.end - 1,
        };
        let request = Self {
            groups: prefixes
                .iter()
                .map(|group| group.iter().map(row).collect())
                .collect(),
            target: target.to_vec(),
            kl: kl.map(|(ids, place)| Row {
                ids: ids.to_vec(),
                place,
            }),
            subject: subject.clone(),
            noise: None,
        };
        request.validate()?;
        if request.bare()?.ids != prompt {
            let reason = "must begin with the empty one, the prompt alone";
            return Err(Error::config("prefixes", reason));
        }
        Ok(request)
    }

    fn validate(&self) -> Result<()> {
        if self.target.is_empty() {
            return Err(Error::config("target", "has no token"));
        }
        if self.groups.is_empty() || self.groups.iter().any(Vec::is_empty) {
            let reason = "must have at least one in each group";
            return Err(Error::config("prefixes", reason));
        }
        let rows = self.groups.iter().flatten().chain(&self.kl);
        for row in rows {
            if row.place >= row.ids.len() {
                let reason = format!(
                    "ends at token {}, of a prompt of {}",
                    row.place,
                    row.ids.len()
                );
                return Err(Error::config("subject", reason));
            }
        }
        Ok(())
    }

    /// Fails unless the target fits a model behind the longest prompt that goes through it, prefixes included, and so does the prompt about the
    /// subject.
    ///
    /// # Errors
    /// [`Error::Config`] with the lengths.
    pub fn check_length(&self, model: &Lm) -> Result<()> {
        let contexts = self.contexts()?;
        let lengths = contexts.iter().flatten().map(|row| row.ids.len());
        let longest = lengths.max().unwrap_or(0);
        check_length(model, "target", longest, self.target.len())?;
        let most = model.config().n_ctx;
        match &self.kl {
            Some(kl) if kl.ids.len() as i64 > most => {
                let reason = format!(
                    "has {} tokens with ` is a` behind it: too long, since the model takes {most}",
                    kl.ids.len()
                );
                Err(Error::config("subject", reason))
            }
            _ => Ok(()),
        }
    }

    /// The prompt alone.
    ///
    /// # Errors
    /// [`Error::Config`] when there is none.
    pub fn bare(&self) -> Result<&Row> {
        let first = self.groups.first().and_then(|group| group.first());
        first.ok_or_else(|| Error::config("prefixes", "must have at least one in each group"))
    }

    /// Rows that are averaged over, by group: behind prefixes, or once for each draw of noise.
    pub(crate) fn contexts(&self) -> Result<Vec<Vec<&Row>>> {
        let Some(noise) = &self.noise else {
            return Ok(self.groups.iter().map(|g| g.iter().collect()).collect());
        };
        let draws = noise.size().first().copied().unwrap_or(0);
        let bare = self.bare()?;
        Ok(vec![(0..draws).map(|_| bare).collect()])
    }
}

/// Texts that come before the prompt, in groups; the empty text is the prompt alone. Others get a full stop behind them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prefixes {
    /// The first of the first group is empty.
    pub groups: Vec<Vec<String>>,
}

impl Prefixes {
    /// The prompt alone.
    pub fn none() -> Self {
        Self {
            groups: vec![vec![String::new()]],
        }
    }

    /// ROME's: the prompt alone and 20 texts that the model writes from nothing, ten of 5 tokens and ten of 10, each token drawn
    /// from the five likeliest.
    ///
    /// # Errors
    /// What the model says.
    pub fn rome(model: &Lm, tokenizer: &Tokenizer, seed: u64) -> Result<Self> {
        let ends = tokenizer.bos().or(tokenizer.eos());
        let start = match ends {
            Some(id) => vec![id],
            None => tokenizer.encode_plain("The")?,
        };
        let mut group = vec![String::new()];
        for (length, seed) in [(5, seed), (10, seed.wrapping_add(1))] {
            let starts = vec![start.clone(); 10];
            group.extend(written(model, tokenizer, &starts, &[], length, seed)?);
        }
        Ok(Self {
            groups: vec![group],
        })
    }

    /// MEMIT's: the prompt alone, and a group of five texts that begin with The, Therefore, Because, I and You, of 10 tokens at most.
    ///
    /// # Errors
    /// What the model says.
    pub fn memit(model: &Lm, tokenizer: &Tokenizer, seed: u64) -> Result<Self> {
        let mut group = Vec::new();
        for (place, word) in ["The", "Therefore", "Because", "I", "You"]
            .iter()
            .enumerate()
        {
            let start = tokenizer.encode(word)?;
            let length = 10usize.saturating_sub(start.len()).max(1);
            let seed = seed.wrapping_add(place as u64);
            let head = tokenizer.encode_plain(word)?;
            group.extend(written(model, tokenizer, &[start], &head, length, seed)?);
        }
        Ok(Self {
            groups: vec![vec![String::new()], group],
        })
    }
}

/// `head` and what the model writes on after each start, on one line; what is empty is left out.
fn written(
    model: &Lm,
    tokenizer: &Tokenizer,
    starts: &[Vec<i64>],
    head: &[i64],
    length: usize,
    seed: u64,
) -> Result<Vec<String>> {
    let sampling = Sampling {
        temperature: 1.0,
        top_k: Some(5),
        top_p: None,
        seed,
    };
    let stop: Vec<i64> = tokenizer.eos().into_iter().collect();
    let texts = generate(model, starts, length, &sampling, &stop)?;
    let mut all = Vec::new();
    for ids in texts {
        let text = tokenizer.decode(&[head, &ids].concat())?;
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        // A character cut in two cannot be read back as the same tokens.
        let text = text.trim_matches('\u{fffd}').trim().to_owned();
        if !text.is_empty() && !text.contains('\u{fffd}') {
            all.push(text);
        }
    }
    Ok(all)
}
