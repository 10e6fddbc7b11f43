//! Whether an edit did what it should, says so in other words too, and left the rest alone.
//!
//! Follows: kmeng01/rome `experiments/py/eval_utils_counterfact.py`, `eval_utils_zsre.py`, `experiments/summarize.py`.
//!
//! On a record of CounterFact each prompt has two answers, the new target and the true one, with mean negative log-likelihoods per token.
//! ES and PS are the shares of rewrite and paraphrase prompts where the new one is likelier, NS that of neighbourhood prompts where the true one
//! is; EM, PM and NM the mean differences of exp(-NLL), in the same direction. Averages are within a record first and then over records, and S is the
//! harmonic mean of ES, PS and NS.

use std::collections::BTreeMap;

use densely_core::{Error, Result};
use densely_lm::{Lm, Tokenizer};
use serde::{Deserialize, Serialize};

use super::sequence_log_probs;
use crate::facts::CounterFact;
use crate::trace::Prompt;

/// How a prompt weighs the two answers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Weighed {
    /// Mean negative log-likelihood per token of the new target.
    pub new: f64,
    /// That of the true one.
    pub old: f64,
}

impl Weighed {
    /// Whether the new target is likelier.
    pub fn prefers_new(self) -> bool {
        self.new < self.old
    }

    /// exp(-NLL) of the new target minus that of the true one.
    pub fn difference(self) -> f64 {
        (-self.new).exp() - (-self.old).exp()
    }
}

/// The prompts of a record, weighed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RecordScores {
    /// The prompt that was edited.
    pub rewrite: Vec<Weighed>,
    /// The same question in other words.
    pub paraphrase: Vec<Weighed>,
    /// Questions about other subjects, whose answers should stay.
    pub neighbourhood: Vec<Weighed>,
}

/// The question that a record asks, as texts; for own edits as well as for CounterFact's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Questions {
    /// The prompt that is edited.
    pub rewrite: String,
    /// In other words.
    pub paraphrases: Vec<String>,
    /// About other subjects.
    pub neighbours: Vec<String>,
    /// The new target.
    pub new: String,
    /// The true one.
    pub old: String,
}

impl Questions {
    /// Those of a record of CounterFact.
    ///
    /// # Errors
    /// [`Error::Data`] when the record has no true target.
    pub fn of(record: &CounterFact) -> Result<Self> {
        let rewrite = &record.requested_rewrite;
        let Some(old) = &rewrite.target_true else {
            let reason = "has no `requested_rewrite.target_true` to compare with";
            return Err(Error::data("", reason));
        };
        Ok(Self {
            rewrite: rewrite.filled(),
            paraphrases: record.paraphrase_prompts.clone(),
            neighbours: record.neighborhood_prompts.clone(),
            new: rewrite.target_new.str.clone(),
            old: old.str.clone(),
        })
    }
}

/// Weighs the two answers of all prompts of a record.
///
/// # Errors
/// [`Error::Config`] when a prompt or answer is empty or the two are too long for the model, naming the answer (`new target`, `true target`); what the
/// tokenizer says.
pub fn weigh(model: &Lm, tokenizer: &Tokenizer, questions: &Questions) -> Result<RecordScores> {
    let prompts: Vec<&str> = std::iter::once(&questions.rewrite)
        .chain(&questions.paraphrases)
        .chain(&questions.neighbours)
        .map(String::as_str)
        .collect();
    let mut encoded = Vec::with_capacity(2 * prompts.len());
    let answers = [
        ("new target", questions.new.as_str()),
        ("true target", questions.old.as_str()),
    ];
    for prompt in &prompts {
        for (name, answer) in answers {
            encoded.push(fitting(model, tokenizer, prompt, (name, answer))?);
        }
    }
    let pairs: Vec<(&[i64], &[i64])> = encoded
        .iter()
        .map(|(prompt, target)| (prompt.as_slice(), target.as_slice()))
        .collect();
    let scores = sequence_log_probs(model, &pairs, None)?;
    let nll = |scores: &Vec<(f64, bool)>| {
        -scores.iter().map(|score| score.0).sum::<f64>() / scores.len().max(1) as f64
    };
    let mut weighed = scores.chunks(2).filter_map(|pair| match pair {
        [new, old] => Some(Weighed {
            new: nll(new),
            old: nll(old),
        }),
        _ => None,
    });
    let mut take = |count: usize| weighed.by_ref().take(count).collect::<Vec<_>>();
    Ok(RecordScores {
        rewrite: take(1),
        paraphrase: take(questions.paraphrases.len()),
        neighbourhood: take(questions.neighbours.len()),
    })
}

/// As [`answered`], of an answer with a name, where both must fit the model together.
fn fitting(
    model: &Lm,
    tokenizer: &Tokenizer,
    prompt: &str,
    (name, answer): (&str, &str),
) -> Result<(Vec<i64>, Vec<i64>)> {
    if answer.trim().is_empty() {
        return Err(Error::config(name, "is empty"));
    }
    let (ids, target) = answered(tokenizer, prompt, answer)?;
    check_length(model, name, ids.len(), target.len())?;
    Ok((ids, target))
}

/// Fails unless a prompt and a target of so many tokens fit a model together; the target's last token does not go through it.
pub(crate) fn check_length(model: &Lm, name: &str, prompt: usize, target: usize) -> Result<()> {
    let most = model.config().n_ctx;
    if (prompt + target) as i64 - 1 <= most {
        return Ok(());
    }
    let reason = format!(
        "has {target} tokens behind a prompt of {prompt}: too long together, since the model takes {most}"
    );
    Err(Error::config(name, reason))
}

/// A prompt's tokens, and those of an answer behind it.
///
/// # Errors
/// [`Error::Config`] when one is empty; what the tokenizer says.
pub fn answered(tokenizer: &Tokenizer, prompt: &str, answer: &str) -> Result<(Vec<i64>, Vec<i64>)> {
    let prompt = prompt.trim_end();
    if prompt.trim().is_empty() {
        return Err(Error::config("prompt", "is empty"));
    }
    // The whole text stands for the subject here, which nobody asks for.
    let found = Prompt::new(tokenizer, prompt, prompt.trim(), Some(answer))?;
    Ok((found.ids, found.answer))
}

/// Scores over records, as shares and differences between 0 and 1 (tables give them times 100). `None` is not measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Records.
    pub records: usize,
    /// ES: share of rewrites where the new target is likelier.
    pub efficacy: Option<f64>,
    /// EM: mean difference there.
    pub efficacy_magnitude: Option<f64>,
    /// PS: share of paraphrases where the new target is likelier.
    pub paraphrase: Option<f64>,
    /// PM: mean difference there.
    pub paraphrase_magnitude: Option<f64>,
    /// NS: share of neighbours where the true target is likelier.
    pub neighbourhood: Option<f64>,
    /// NM: mean difference there, true minus new.
    pub neighbourhood_magnitude: Option<f64>,
    /// S: harmonic mean of ES, PS and NS where all are measured.
    pub score: Option<f64>,
}

impl Scores {
    /// Averages within records, then over those that have such prompts.
    pub fn new(records: &[RecordScores]) -> Self {
        type Part = fn(&RecordScores) -> &Vec<Weighed>;
        let mean = |part: Part, of: fn(&Weighed) -> f64| {
            let means: Vec<f64> = records
                .iter()
                .map(part)
                .filter(|weighed| !weighed.is_empty())
                .map(|weighed| weighed.iter().map(of).sum::<f64>() / weighed.len() as f64)
                .collect();
            (!means.is_empty()).then(|| means.iter().sum::<f64>() / means.len() as f64)
        };
        let new = |weighed: &Weighed| f64::from(u8::from(weighed.prefers_new()));
        let old = |weighed: &Weighed| f64::from(u8::from(weighed.old < weighed.new));
        let efficacy = mean(|r| &r.rewrite, new);
        let paraphrase = mean(|r| &r.paraphrase, new);
        let neighbourhood = mean(|r| &r.neighbourhood, old);
        let score = match (efficacy, paraphrase, neighbourhood) {
            (Some(a), Some(b), Some(c)) => Some(harmonic(&[a, b, c])),
            _ => None,
        };
        Self {
            records: records.len(),
            efficacy,
            efficacy_magnitude: mean(|r| &r.rewrite, |w| w.difference()),
            paraphrase,
            paraphrase_magnitude: mean(|r| &r.paraphrase, |w| w.difference()),
            neighbourhood,
            neighbourhood_magnitude: mean(|r| &r.neighbourhood, |w| -w.difference()),
            score,
        }
    }

    /// Names as in the papers' tables, values times 100.
    pub fn table(&self) -> Vec<(&'static str, Option<f64>)> {
        [
            ("S", self.score),
            ("ES", self.efficacy),
            ("EM", self.efficacy_magnitude),
            ("PS", self.paraphrase),
            ("PM", self.paraphrase_magnitude),
            ("NS", self.neighbourhood),
            ("NM", self.neighbourhood_magnitude),
        ]
        .map(|(name, value)| (name, value.map(|value| 100.0 * value)))
        .to_vec()
    }
}

/// The harmonic mean; 0 where a value is.
fn harmonic(values: &[f64]) -> f64 {
    if values.iter().any(|value| *value <= 0.0) {
        return 0.0;
    }
    values.len() as f64 / values.iter().map(|value| 1.0 / value).sum::<f64>()
}

/// Share of the target's tokens that are the likeliest one, each after those before it: zsRE's accuracy.
///
/// # Errors
/// [`Error::Config`] when a prompt or answer is empty or too long for the model; what the tokenizer says.
pub fn accuracy(model: &Lm, tokenizer: &Tokenizer, prompt: &str, answer: &str) -> Result<f64> {
    let (prompt, target) = answered(tokenizer, prompt, answer)?;
    let scores = sequence_log_probs(model, &[(&prompt, &target)], None)?;
    let hits = scores.iter().flatten().filter(|score| score.1).count();
    Ok(hits as f64 / target.len().max(1) as f64)
}

/// GE: how varied texts are, by the entropies in bits of their word pairs and triples with weights 2/3 and 4/3, halved; the mean over texts.
/// Tables give it times 100. Loops of a broken model have little. `None` where no text has three words.
pub fn generation_entropy(texts: &[String]) -> Option<f64> {
    let values: Vec<f64> = texts
        .iter()
        .filter_map(|text| {
            let words = words(text);
            let (pairs, triples) = (entropy(&words, 2)?, entropy(&words, 3)?);
            Some((pairs * 2.0 / 3.0).midpoint(triples * 4.0 / 3.0))
        })
        .collect();
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Runs of letters and digits, and every other sign alone.
fn words(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut start = None;
    for (at, sign) in text.char_indices() {
        if sign.is_alphanumeric() {
            start.get_or_insert(at);
            continue;
        }
        if let Some(start) = start.take() {
            found.extend(text.get(start..at));
        }
        if !sign.is_whitespace() {
            found.extend(text.get(at..at + sign.len_utf8()));
        }
    }
    if let Some(start) = start {
        found.extend(text.get(start..));
    }
    found
}

fn entropy(words: &[&str], n: usize) -> Option<f64> {
    let mut counts: BTreeMap<&[&str], f64> = BTreeMap::new();
    for window in words.windows(n) {
        *counts.entry(window).or_default() += 1.0;
    }
    let total: f64 = counts.values().sum();
    let part = |count: &f64| -count / total * (count / total).log2();
    (total > 0.0).then(|| counts.values().map(part).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_average_within_records_first() {
        let w = |new: f64, old: f64| Weighed { new, old };
        let records = [
            RecordScores {
                rewrite: vec![w(1.0, 2.0)],
                paraphrase: vec![w(1.0, 2.0), w(2.0, 1.0)],
                neighbourhood: vec![w(3.0, 1.0); 4],
            },
            RecordScores {
                rewrite: vec![w(2.0, 1.0)],
                paraphrase: Vec::new(),
                neighbourhood: vec![w(1.0, 3.0)],
            },
        ];
        let scores = Scores::new(&records);
        assert_eq!(scores.efficacy, Some(0.5));
        assert_eq!(scores.paraphrase, Some(0.5));
        assert_eq!(scores.neighbourhood, Some(0.5));
        assert!((scores.score.unwrap_or(0.0) - 0.5).abs() < 1e-12);
        let expected =
            0.5 * ((-1.0f64).exp() - (-3.0f64).exp() + (-3.0f64).exp() - (-1.0f64).exp());
        let found = scores.neighbourhood_magnitude.unwrap_or(f64::NAN);
        assert!((found - expected).abs() < 1e-12);
        let none = Scores::new(&[]);
        assert_eq!((none.efficacy, none.score), (None, None));
    }

    #[test]
    fn a_loop_has_little_entropy() {
        assert_eq!(
            words("It's 3 o'clock."),
            ["It", "'", "s", "3", "o", "'", "clock", "."]
        );
        let of = |text: &str| generation_entropy(&[text.to_owned()]).unwrap_or(f64::NAN);
        // Two pairs and one triple, all different: 1 bit and 0 bits.
        assert!((of("a b c") - 1.0 / 3.0).abs() < 1e-12);
        assert!(of("a a a a a a").abs() < 1e-12);
        assert_eq!(generation_entropy(&["a".to_owned()]), None);
    }
}
