//! Traces of many facts, into a file that a later process can go on with.
//!
//! The file is JSON lines: the settings first, then a row per fact. A kill at any instant leaves whole rows and at most one torn one at the end,
//! which is cut off when the sweep goes on. It goes on only with the settings that it began with, and takes facts that are there as done.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use densely_core::{Error, Result};
use densely_lm::{Lm, Tokenizer};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::facts::Fact;
use crate::journal::Journal;
use crate::noise::Noise;
use crate::print;
use crate::trace::{Prompt, Score, Trace, TraceOptions, predicts, trace};

/// Layout of the file; since 2 its settings tell all weights of the model.
const FORMAT: u64 = 2;

/// What came of one fact.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// [`Fact::id`].
    pub id: String,
    /// Its prompt.
    pub prompt: String,
    /// Its subject.
    pub subject: String,
    /// The answer that it should have.
    pub attribute: Option<String>,
    /// Why it was not traced; `None` where it was.
    pub skipped: Option<String>,
    /// What was found.
    pub trace: Option<Trace>,
}

/// The settings that a file was begun with, and that it goes on with.
///
/// # Errors
/// [`Error::Torch`] when there is no memory to look at the weights.
pub fn fingerprint(model: &Lm, noise: &Noise, options: &TraceOptions) -> Result<Value> {
    // Rows of a batch change the speed alone.
    let options = TraceOptions {
        batch_rows: 1,
        ..options.clone()
    };
    Ok(json!({
        "format": FORMAT,
        "model": model.config().to_hugging(),
        "kind": format!("{:?}", model.kind()),
        // The same sizes with other weights are another model.
        "weights": print::whole(model)?,
        "noise": { "kind": noise.kind(), "scale": format!("{:.5e}", noise.scale()) },
        "trace": options,
    }))
}

/// Traces facts one after the other into `path`, and gives all rows in the order of the facts.
///
/// With `resume`, an existing file goes on; without, it is an error, and so is one of other settings. Facts whose answer the
/// model does not give, whose subject cannot be found in the tokens or whose prompt is too long are skipped, which a row says.
/// `watch` is told of each row that is made, with the number done and of all.
///
/// # Errors
/// [`Error::Config`] when the file is there without `resume` or has other settings; [`Error::Corrupt`] when it is not such a
/// file; [`Error::Interrupted`] when somebody asked to stop; [`Error::Io`]; what a trace says.
#[expect(clippy::too_many_arguments, reason = "a sweep is all of these")]
pub fn sweep(
    model: &Lm,
    tokenizer: &Tokenizer,
    facts: &[Fact],
    noise: &Noise,
    options: &TraceOptions,
    path: &Path,
    resume: bool,
    watch: &mut dyn FnMut(&Row, usize, usize),
) -> Result<Vec<Row>> {
    options.validate()?;
    let settings = fingerprint(model, noise, options)?;
    let (mut journal, known) = Journal::open_json::<Row>(path, &settings, resume)?;
    let mut known: BTreeMap<String, Row> =
        known.into_iter().map(|row| (row.id.clone(), row)).collect();
    let mut rows = Vec::with_capacity(facts.len());
    for fact in facts {
        if let Some(row) = known.remove(&fact.id) {
            if row.prompt != fact.prompt
                || row.subject != fact.subject
                || row.attribute != fact.attribute
            {
                let reason = format!(
                    "fact {:?} had another prompt, subject or answer when {} was begun; take another folder",
                    fact.id,
                    path.display()
                );
                return Err(Error::config("facts", reason));
            }
            rows.push(row);
            continue;
        }
        if densely_train::signal::interrupted() {
            let folder = path.parent().unwrap_or(Path::new(".")).to_owned();
            return Err(Error::Interrupted { folder });
        }
        let row = one(model, tokenizer, fact, noise, options)?;
        journal.append_json(&row)?;
        rows.push(row);
        if let Some(row) = rows.last() {
            watch(row, rows.len(), facts.len());
        }
    }
    Ok(rows)
}

/// Traces one fact, or says why not.
fn one(
    model: &Lm,
    tokenizer: &Tokenizer,
    fact: &Fact,
    noise: &Noise,
    options: &TraceOptions,
) -> Result<Row> {
    let row = |skipped: Option<String>, trace: Option<Trace>| Row {
        id: fact.id.clone(),
        prompt: fact.prompt.clone(),
        subject: fact.subject.clone(),
        attribute: fact.attribute.clone(),
        skipped,
        trace,
    };
    let prompt = Prompt::of_fact(tokenizer, fact, options.score)
        .and_then(|prompt| prompt.validate(model).map(|()| prompt));
    let prompt = match prompt {
        Ok(prompt) => prompt,
        Err(error @ (Error::Config { .. } | Error::Data { .. })) => {
            return Ok(row(Some(error.to_string()), None));
        }
        Err(error) => return Err(error),
    };
    if let Some(expected) = &fact.attribute
        && let Err(got) = predicts(model, tokenizer, &prompt, expected, options.score)?
    {
        let mut reason = format!("the model gives {got:?} instead of {expected:?}");
        if options.score == Score::First {
            let whole = Prompt::of_fact(tokenizer, fact, Score::Product);
            let count = whole.map_or(1, |prompt| prompt.answer.len());
            if count > 1 {
                let _ = write!(
                    reason,
                    ", which has {count} tokens where one is compared; the score `product` follows all of them"
                );
            }
        }
        return Ok(row(Some(reason), None));
    }
    let mut found = trace(model, &prompt, noise, options)?;
    let scores = found.scores.values().flatten().flatten();
    if scores
        .chain([&found.high, &found.low])
        .any(|p| !p.is_finite())
    {
        let reason = "the model gives no probabilities: some of its values are not finite";
        return Ok(row(Some(reason.to_owned()), None));
    }
    found.name(tokenizer);
    Ok(row(None, Some(found)))
}
