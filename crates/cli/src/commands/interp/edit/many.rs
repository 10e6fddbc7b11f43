//! `densely interp edit --facts`: edits of many records of CounterFact, with the papers' scores.

use std::path::Path;

use densely_core::{Error, Result};
use densely_interp::edit::score::{Questions, RecordScores, Scores, generation_entropy, weigh};
use densely_interp::edit::{EditHandle, Prefixes, Request};
use densely_interp::facts::{CounterFact, read_counterfact};
use densely_lm::Opened;
use serde_json::json;

use super::{EditArguments, Plan, Way, continued, print_scores, refuse_unless, say};
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
    let records = all.get(..count).unwrap_or_default();
    let plan = arguments.plan(opened, common)?;
    let layers = plan.moment_layers();
    let mut moments = arguments
        .moments
        .source(opened, arguments.source.path(), layers, common)?;
    say(&plan, &moments.said, common);
    let prefixes = plan.prefixes(opened)?;
    let together = plan.way == Way::Memit;
    let mut before = Vec::new();
    for record in records {
        before.push(judge(opened, record)?);
    }
    let mut after: Vec<RecordScores> = Vec::new();
    let mut entropy = Vec::new();
    let step = if together { count } else { 1 };
    for (place, chunk) in records.chunks(step).enumerate() {
        if densely_train::signal::interrupted() {
            let reason = "was interrupted; nothing is kept of it";
            return Err(Error::config("editing", reason));
        }
        let found = one(opened, &plan, chunk, &prefixes, &mut moments)?;
        if !common.quiet && !together {
            let rewrite = &chunk[0].requested_rewrite;
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
    let (before, after) = (Scores::new(&before), Scores::new(&after));
    let texts = entropy.len();
    let entropy = (texts > 0).then(|| entropy.iter().sum::<f64>() / texts as f64);
    if common.json {
        let whole = json!({
            "model": opened.described,
            "records": count,
            "layers": plan.layers,
            "moments": moments.said,
            "before": before,
            "after": after,
            "generation_entropy": entropy,
        });
        println!("{whole}");
        return Ok(());
    }
    println!(
        "{count} records of {}, {}",
        list.display(),
        if together {
            "written at once"
        } else {
            "each written alone and taken back"
        }
    );
    print_scores(&before, &after);
    if let Some(entropy) = entropy {
        println!("GE            {:>7.1}", 100.0 * entropy);
    }
    Ok(())
}

fn judge(opened: &Opened, record: &CounterFact) -> Result<RecordScores> {
    let questions = Questions::of(record)?;
    weigh(&opened.model, &opened.tokenizer, &questions).map_err(|error| match error {
        error @ (Error::Config { .. } | Error::Data { .. }) => {
            Error::data("", format!("record {}: {error}", record.case_id))
        }
        error => error,
    })
}

/// Scores of records with their edit in the model, and the entropies of what it then writes.
fn one(
    opened: &Opened,
    plan: &Plan,
    records: &[CounterFact],
    prefixes: &Prefixes,
    moments: &mut super::moments::Source,
) -> Result<(Vec<RecordScores>, Vec<f64>)> {
    let requests = records
        .iter()
        .map(|record| {
            let rewrite = &record.requested_rewrite;
            let target = rewrite.target_new.str.trim();
            Request::new(
                &opened.tokenizer,
                &rewrite.prompt,
                &rewrite.subject,
                target,
                prefixes,
            )
        })
        .collect::<Result<Vec<_>>>()?;
    let (edit, _) = plan.make(opened, &requests, moments)?;
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
