//! Traces of many facts, into a file that a later process can go on with.
//!
//! The file is JSON lines: the settings first, then a row per fact. A row is appended in one write and flushed to the disk, so that
//! a kill at any instant leaves whole rows and at most one torn one at the end, which is cut off when the sweep goes on. It goes
//! on only with the settings that it began with, and takes facts that are there as done.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::Path;

use densely_core::{Error, Result};
use densely_lm::{Lm, Tokenizer};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::Kind;

use crate::facts::Fact;
use crate::noise::Noise;
use crate::trace::{Prompt, Trace, TraceOptions, predicts, trace};

/// Layout of the file.
const FORMAT: u64 = 1;
/// Longest line that is read back, bytes: far above a row of a long prompt and a deep model.
const MAX_LINE: u64 = 256 << 20;

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
/// What the model says of its own matrices.
pub fn fingerprint(model: &Lm, noise: &Noise, options: &TraceOptions) -> Result<Value> {
    // Rows of a batch change the speed alone.
    let options = TraceOptions {
        batch_rows: 1,
        ..options.clone()
    };
    // The same sizes with other weights are another model. Few digits, since machines add up in other orders.
    let of_layer = |layer: usize| -> Result<String> {
        let matrix = model.mlp_out(layer)?;
        let mean = matrix.f_abs()?.f_mean(Kind::Double)?.f_double_value(&[])?;
        Ok(format!("{mean:.6e}"))
    };
    let weights = tch::no_grad(|| -> Result<Vec<String>> {
        (0..model.config().n_layers).map(of_layer).collect()
    })?;
    Ok(json!({
        "format": FORMAT,
        "model": model.config().to_hugging(),
        "kind": format!("{:?}", model.kind()),
        "weights": weights,
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
    let (mut file, known) = open(path, &settings, resume)?;
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
        append(&mut file, path, &row)?;
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
        let reason = format!("the model gives {got:?} instead of {expected:?}");
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

fn append(file: &mut File, path: &Path, value: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_vec(value)
        .map_err(|error| Error::data(path, format!("a row cannot be written: {error}")))?;
    line.push(b'\n');
    file.write_all(&line).map_err(Error::io(path))?;
    file.sync_data().map_err(Error::io(path))
}

/// Keeps other processes from writing into the file for as long as it is open.
///
/// # Errors
/// [`Error::Config`] when one does.
pub(crate) fn lock(file: &File, path: &Path) -> Result<()> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => {
            let reason = format!("{} is in use by another process", path.display());
            Err(Error::config("--out", reason))
        }
        // Some network file systems have no locks.
        Err(TryLockError::Error(error)) if error.kind() == std::io::ErrorKind::Unsupported => {
            Ok(())
        }
        Err(TryLockError::Error(error)) => Err(Error::io(path)(error)),
    }
}

/// Opens the file for appending, with the whole rows that it holds.
fn open(path: &Path, settings: &Value, resume: bool) -> Result<(File, Vec<Row>)> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(Error::io(path))?;
    lock(&file, path)?;
    let length = file.metadata().map_err(Error::io(path))?.len();
    if length > 0 && !resume {
        let reason = format!(
            "is needed to go on with {}, or another folder to begin anew",
            path.display()
        );
        return Err(Error::config("--resume", reason));
    }
    let (rows, whole) = read_lines(path, &mut file, settings)?;
    if whole < length {
        tracing::warn!(
            "{}: its last line is torn, by a kill or a full disk; it is cut off and made again",
            path.display()
        );
        file.set_len(whole).map_err(Error::io(path))?;
    }
    file.seek(SeekFrom::End(0)).map_err(Error::io(path))?;
    if whole == 0 {
        append(&mut file, path, settings)?;
        densely_core::fs::sync_folder(path)?;
    }
    Ok((file, rows))
}

/// Rows of the file, and the length of what is whole.
fn read_lines(path: &Path, file: &mut File, settings: &Value) -> Result<(Vec<Row>, u64)> {
    let mut reader = BufReader::new(file);
    let (mut rows, mut whole) = (Vec::new(), 0u64);
    let mut line = Vec::new();
    for number in 1u64.. {
        line.clear();
        let read = std::io::Read::take(&mut reader, MAX_LINE)
            .read_until(b'\n', &mut line)
            .map_err(Error::io(path))?;
        if line.last() != Some(&b'\n') {
            if read as u64 == MAX_LINE {
                let reason = format!("line {number} is longer than any row");
                return Err(Error::corrupt(path, reason));
            }
            break;
        }
        let broken = |error: serde_json::Error| {
            Error::corrupt(path, format!("line {number} is no row of a sweep: {error}"))
        };
        if number == 1 {
            let begun: Value = serde_json::from_slice(&line).map_err(broken)?;
            same_settings(path, &begun, settings)?;
        } else {
            rows.push(serde_json::from_slice(&line).map_err(broken)?);
        }
        whole += read as u64;
    }
    Ok((rows, whole))
}

/// Fails, naming the first setting that differs.
fn same_settings(path: &Path, begun: &Value, now: &Value) -> Result<()> {
    fn difference(place: &str, a: &Value, b: &Value) -> Option<String> {
        match (a, b) {
            (Value::Object(a), Value::Object(b)) => {
                let mut names: Vec<&String> = a.keys().chain(b.keys()).collect();
                names.sort_unstable();
                names.dedup();
                names.into_iter().find_map(|name| {
                    let inner = if place.is_empty() {
                        name.clone()
                    } else {
                        format!("{place}.{name}")
                    };
                    let of = |map: &serde_json::Map<String, Value>| {
                        map.get(name).cloned().unwrap_or(Value::Null)
                    };
                    difference(&inner, &of(a), &of(b))
                })
            }
            (a, b) if a == b => None,
            (a, b) => Some(format!("{place} was {a}, now it is {b}")),
        }
    }
    match difference("", begun, now) {
        None => Ok(()),
        Some(reason) => {
            let reason = format!(
                "cannot go on with {}: {reason}; take the old setting, or another folder",
                path.display()
            );
            Err(Error::config("--resume", reason))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str) -> Row {
        Row {
            id: id.to_owned(),
            prompt: "The capital of France is".to_owned(),
            subject: "France".to_owned(),
            attribute: Some("Paris".to_owned()),
            skipped: Some("not known".to_owned()),
            trace: None,
        }
    }

    #[test]
    fn a_torn_line_is_cut_off_and_the_rest_kept() -> Result<()> {
        let folder = tempfile::tempdir().map_err(Error::io("tempdir"))?;
        let path = folder.path().join("traces.jsonl");
        let settings = json!({ "format": 1, "trace": { "seed": 1 } });
        let (mut file, rows) = open(&path, &settings, false)?;
        assert!(rows.is_empty());
        append(&mut file, &path, &row("1"))?;
        append(&mut file, &path, &row("2"))?;
        let error = open(&path, &settings, true).expect_err("it is open");
        assert!(error.to_string().contains("in use"), "{error}");
        drop(file);
        let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
        let last = bytes.len() - 1;
        for cut in [last, last - 20] {
            std::fs::write(&path, &bytes[..cut]).map_err(Error::io(&path))?;
            let (mut file, rows) = open(&path, &settings, true)?;
            assert_eq!(rows, [row("1")]);
            append(&mut file, &path, &row("2"))?;
            drop(file);
            assert_eq!(std::fs::read(&path).map_err(Error::io(&path))?, bytes);
        }
        Ok(())
    }

    #[test]
    fn other_settings_and_other_files_are_refused() -> Result<()> {
        let folder = tempfile::tempdir().map_err(Error::io("tempdir"))?;
        let path = folder.path().join("traces.jsonl");
        let settings = |seed: u32| json!({ "format": 1, "trace": { "seed": seed } });
        drop(open(&path, &settings(1), false)?);
        let error = open(&path, &settings(1), false).expect_err("it is there");
        assert!(error.to_string().contains("--resume"), "{error}");
        let error = open(&path, &settings(2), true).expect_err("another seed");
        assert!(
            error.to_string().contains("trace.seed was 1, now it is 2"),
            "{error}"
        );
        std::fs::write(&path, "id,prompt\n1,x\n").map_err(Error::io(&path))?;
        let error = open(&path, &settings(1), true).expect_err("no sweep");
        assert!(error.to_string().contains("line 1"), "{error}");
        Ok(())
    }
}
