//! `densely interp edit --facts`: edits of many records of CounterFact, with the papers' scores.

use std::path::Path;

use densely_core::{Error, Result};
use densely_interp::edit::score::{Questions, RecordScores, Scores, generation_entropy, weigh};
use densely_interp::edit::{EditHandle, Prefixes, Request};
use densely_interp::facts::{CounterFact, read_counterfact};
use densely_lm::Opened;
use serde_json::json;

use super::super::Skipped;
use super::{EditArguments, Plan, TEXT, Way, continued, print_scores, refuse_unless, say};
use crate::Common;

pub(super) fn run(
    arguments: &EditArguments,
    list: &Path,
    opened: &Opened,
    common: &Common,
) -> Result<()> {
    let all = read_counterfact(list)?;
    let count = arguments.limit.min(all.len());
    if count == 0 {
        return Err(Error::config("--limit", "must be at least 1, got 0"));
    }
    let mut plan = arguments.plan(opened, common)?;
    let prefixes = plan.prefixes(opened)?;
    // What does not fit shows here, before hours of measuring.
    let ready = Ready::new(
        opened,
        &plan,
        all.get(..count).unwrap_or_default(),
        &prefixes,
    )?;
    if let (true, Some(first)) = (ready.records.is_empty(), &ready.first) {
        let reason = format!("none of its {count} records can be edited; the first: {first}");
        return Err(Error::data(list, reason));
    }
    let count = ready.records.len();
    let layers = plan.moment_layers();
    let mut moments = arguments
        .moments
        .source(opened, arguments.source.path(), layers, common)?;
    plan.know(&moments);
    say(&plan, common);
    let together = plan.way == Way::Memit;
    let mut after: Vec<RecordScores> = Vec::new();
    let mut entropy = Vec::new();
    let step = if together { count } else { 1 };
    let chunks = ready.records.chunks(step).zip(ready.requests.chunks(step));
    for (place, (records, requests)) in chunks.enumerate() {
        stop_if_asked()?;
        let found = one(opened, &plan, records, requests, &mut moments)?;
        if !common.quiet && !together {
            let rewrite = &records[0].requested_rewrite;
            let took = found.0.first().is_some_and(|scores| {
                let weighed = scores.rewrite.first();
                weighed.is_some_and(|weighed| weighed.prefers_new())
            });
            eprintln!(
                "{}/{count} {:?} to {:?}: {}",
                place + 1,
                rewrite.filled(),
                rewrite.target_new.str,
                if took { "taken" } else { "not taken" }
            );
        }
        after.extend(found.0);
        entropy.extend(found.1);
    }
    let (before, after) = (Scores::new(&ready.before), Scores::new(&after));
    let texts = entropy.len();
    let entropy = (texts > 0).then(|| entropy.iter().sum::<f64>() / texts as f64);
    let skipped = ready.skipped.count;
    if common.json {
        let mut whole = json!({
            "model": opened.described,
            "method": plan.way.method(),
            "records": count,
            "skipped": skipped,
            "before": before,
            "after": after,
            "generation_entropy": entropy,
        });
        plan.add_to(&mut whole);
        println!("{whole}");
        return Ok(());
    }
    println!(
        "{}: {count} records of {}, {}",
        plan.way.method(),
        list.display(),
        if together {
            "written at once"
        } else {
            "each written alone and taken back"
        }
    );
    println!("{}", plan.described());
    print_scores(&before, &after);
    if let Some(entropy) = entropy {
        println!("GE            {:>7.1}", 100.0 * entropy);
    }
    println!("records skipped: {skipped}");
    Ok(())
}

fn stop_if_asked() -> Result<()> {
    if densely_train::signal::interrupted() {
        let reason = "was interrupted; nothing is kept of it";
        return Err(Error::config("editing", reason));
    }
    Ok(())
}

/// Records that can be edited and judged, with what is asked for and the scores before; in the same order.
struct Ready<'r> {
    records: Vec<&'r CounterFact>,
    requests: Vec<Request>,
    before: Vec<RecordScores>,
    /// Those that cannot.
    skipped: Skipped,
    /// Why the first of them cannot.
    first: Option<String>,
}

impl<'r> Ready<'r> {
    fn new(
        opened: &Opened,
        plan: &Plan,
        records: &'r [CounterFact],
        prefixes: &Prefixes,
    ) -> Result<Self> {
        let mut ready = Self {
            records: Vec::new(),
            requests: Vec::new(),
            before: Vec::new(),
            skipped: Skipped::default(),
            first: None,
        };
        for record in records {
            stop_if_asked()?;
            match prepare(opened, plan, record, prefixes) {
                Ok((request, scores)) => {
                    ready.records.push(record);
                    ready.requests.push(request);
                    ready.before.push(scores);
                }
                Err(error @ (Error::Config { .. } | Error::Data { .. })) => {
                    let reason = format!("record {}: {error}", record.case_id);
                    ready.skipped.add(&reason);
                    ready.first.get_or_insert(reason);
                }
                Err(error) => return Err(error),
            }
        }
        ready.skipped.end();
        Ok(ready)
    }
}

/// What a record asks for and its scores as the model is, or what of it does not fit.
fn prepare(
    opened: &Opened,
    plan: &Plan,
    record: &CounterFact,
    prefixes: &Prefixes,
) -> Result<(Request, RecordScores)> {
    let rewrite = &record.requested_rewrite;
    let pair = (rewrite.subject.as_str(), rewrite.target_new.str.trim());
    let request = plan.request(opened, &rewrite.prompt, pair, prefixes)?;
    if let Some(start) = record.generation_prompts.first() {
        let (length, most) = (
            opened.tokenizer.encode(start)?.len(),
            opened.model.config().n_ctx,
        );
        if length == 0 {
            return Err(Error::config("generation prompt", "is empty"));
        }
        if (length + TEXT) as i64 > most {
            let reason = format!(
                "has {length} tokens and is written on by {TEXT}: too long together, since the model takes {most}"
            );
            return Err(Error::config("generation prompt", reason));
        }
    }
    Ok((request, judge(opened, record)?))
}

fn judge(opened: &Opened, record: &CounterFact) -> Result<RecordScores> {
    weigh(&opened.model, &opened.tokenizer, &Questions::of(record)?)
}

/// Scores of records with their edit in the model, and the entropies of what it then writes.
fn one(
    opened: &Opened,
    plan: &Plan,
    records: &[&CounterFact],
    requests: &[Request],
    moments: &mut super::moments::Source,
) -> Result<(Vec<RecordScores>, Vec<f64>)> {
    let (edit, _) = plan.make(opened, requests, moments)?;
    let mut handle = EditHandle::apply(&opened.model, edit)?;
    let found = (|| -> Result<(Vec<RecordScores>, Vec<f64>)> {
        let mut scores = Vec::new();
        let mut entropies = Vec::new();
        for record in records {
            scores.push(judge(opened, record)?);
            let starts: Vec<String> = record.generation_prompts.iter().take(1).cloned().collect();
            entropies.extend(generation_entropy(&continued(opened, &starts)?));
        }
        Ok((scores, entropies))
    })();
    handle.undo(&opened.model)?;
    refuse_unless(handle.is_as_before(&opened.model)?)?;
    found
}
