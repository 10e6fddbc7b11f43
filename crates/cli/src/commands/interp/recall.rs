//! `densely interp recall`.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use densely_core::{Error, Result};
use densely_interp::facts::{Fact, sift_facts};
use densely_interp::recall::{
    DecomposeOptions, HeadEffects, Metric, Mitigation, Patching, Question, decompose,
    frequency_direction, frequent_tokens, head_effects, head_outputs, last_layer, mitigate, ranks,
    top_tokens,
};
use densely_interp::trace::{Prompt, Score, predicts};
use densely_lm::Opened;
use serde_json::{Value, json};

use super::Skipped;
use crate::Common;
use crate::commands::lm::{Source, read_text};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: densely interp recall gpt2 --facts capitals.csv --layer 9 --heads\n\
                  The facts should be of one kind, such as capitals of countries; --relation chooses one of a mixed list.\n\
                  Facts that cannot be asked are skipped, counted, and named with the reason."
)]
pub(crate) struct Recall {
    #[command(flatten)]
    source: Source,
    /// List of facts: `known_1000.json`, `counterfact.json`, own JSON lines or CSV with subject, prompt and attribute.
    #[arg(long, value_name = "FILE")]
    facts: PathBuf,
    /// Only those of this relation, such as P36.
    #[arg(long)]
    relation: Option<String>,
    /// The first so many that the model answers.
    #[arg(long, default_value_t = 100)]
    limit: usize,
    /// Layers whose MLP is decomposed; the last four when left out.
    #[arg(long, value_delimiter = ',')]
    layer: Vec<usize>,
    /// Layers below each whose heads are terms too.
    #[arg(long, default_value_t = 0)]
    earlier: usize,
    /// Ridge of the least squares, in units of the mean diagonal.
    #[arg(long, default_value_t = 0.0)]
    ridge: f64,
    /// Also find the heads that carry the answer, by swapping subjects, and read what they write in the vocabulary.
    #[arg(long)]
    heads: bool,
    /// What else may change when a head is swapped: all (activation), MLPs (path) or nothing (direct).
    #[arg(long, default_value = "activation", requires = "heads")]
    patching: Patching,
    /// Factor of those last-layer heads that hold the answer back, to see what scaling them down gives.
    #[arg(long, default_value_t = 0.5)]
    scale: f64,
    /// Also take the direction that raises the most frequent tokens of this text (UTF-8) out of the last residual, to see what that gives.
    #[arg(long, value_name = "FILE")]
    without_frequency: Option<PathBuf>,
    /// How many of the text's tokens count as the most frequent.
    #[arg(
        long,
        value_name = "N",
        default_value = "100",
        requires = "without_frequency"
    )]
    frequent: NonZeroUsize,
    /// File to write all numbers to, as JSON.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Swaps of subjects that heads are averaged over at most.
const SWAPS: usize = 20;
/// Lines of a table.
const SHOWN: usize = 10;
/// Tokens that a direction speaks for.
const WORDS: i64 = 8;

/// Questions that the model answers by the likeliest token.
#[derive(Debug, Default)]
struct Answered {
    questions: Vec<Question>,
    /// The first token of the subject of each.
    subjects: Vec<i64>,
    /// Facts that were asked.
    asked: usize,
}

pub(super) fn run(arguments: &Recall, common: &Common) -> Result<()> {
    if let Some(path) = &arguments.out {
        let mut read = vec![arguments.facts.as_path(), arguments.source.path()];
        read.extend(arguments.without_frequency.as_deref());
        densely_core::fs::refuse_overwriting("--out", path, &read)?;
    }
    let sifted = sift_facts(&arguments.facts)?;
    let mut skipped = Skipped::default();
    for error in &sifted.broken {
        skipped.add(&error.to_string());
    }
    let relation = arguments.relation.as_deref();
    let chosen: Vec<&Fact> = sifted
        .facts
        .iter()
        .filter(|fact| relation.is_none_or(|relation| fact.relation.as_deref() == Some(relation)))
        .collect();
    if let (Some(relation), true) = (relation, chosen.is_empty()) {
        let reason = format!("no fact has the relation {relation}");
        return Err(Error::data(&arguments.facts, reason));
    }
    let text = match &arguments.without_frequency {
        Some(path) => Some((path.as_path(), read_text(path)?)),
        None => None,
    };
    let opened = arguments.source.open(common)?;
    let most = arguments.frequent.get();
    let frequent = match &text {
        Some((path, text)) => Some((*path, frequent(&opened, path, text, most)?)),
        None => None,
    };
    let answered = answered(&opened, &chosen, arguments.limit, &mut skipped)?;
    skipped.end();
    let (questions, asked) = (answered.questions.as_slice(), answered.asked);
    if questions.len() < 2 {
        let reason = format!(
            "the model answers {} of {asked}; at least 2 are needed ({} were skipped)",
            questions.len(),
            skipped.count
        );
        return Err(Error::data(&arguments.facts, reason));
    }
    let n_layers = opened.model.config().n_layers;
    let layers = if arguments.layer.is_empty() {
        (n_layers.saturating_sub(4)..n_layers).collect()
    } else {
        arguments.layer.clone()
    };
    let options = DecomposeOptions {
        earlier: arguments.earlier,
        residual: true,
        ridge: arguments.ridge,
    };
    let mut found = json!({
        "model": opened.described,
        "facts": arguments.facts,
        "asked": asked,
        "answered": questions.len(),
        "skipped": skipped.count,
    });
    let loud = !common.json;
    if loud {
        println!("{} of {asked} facts are answered right", questions.len());
    }
    let mut mlps = Vec::new();
    for layer in layers {
        mlps.push(mlp(&opened, questions, layer, &options, loud)?);
    }
    found["mlps"] = json!(mlps);
    if arguments.heads {
        found["heads"] = heads(&opened, &answered, arguments.patching, loud)?;
    }
    found["last_layer"] = last(&opened, questions, arguments.scale, loud)?;
    if let Some((path, tokens)) = &frequent {
        let mut without = without_frequency(&opened, questions, tokens, loud)?;
        without["text"] = json!(path);
        found["last_layer"]["without_frequency"] = without;
    }
    if let Some(path) = &arguments.out {
        densely_core::fs::write(path, format!("{found:#}\n").as_bytes())?;
    }
    if common.json {
        println!("{found}");
    } else if skipped.count > 0 {
        println!("\nfacts skipped: {}", skipped.count);
    }
    Ok(())
}

/// The most frequent tokens of a text.
fn frequent(opened: &Opened, path: &Path, text: &str, most: usize) -> Result<Vec<i64>> {
    // By lines: a tokeniser takes many times a text's bytes.
    let mut ids = Vec::new();
    for line in text.split_inclusive('\n') {
        let own = opened.tokenizer.encode_plain(line);
        ids.extend(own.map_err(|error| Error::data(path, error.to_string()))?);
    }
    if ids.is_empty() {
        return Err(Error::data(path, "has no token to count"));
    }
    Ok(frequent_tokens(&ids, most))
}

fn answered(
    opened: &Opened,
    facts: &[&Fact],
    limit: usize,
    skipped: &mut Skipped,
) -> Result<Answered> {
    let mut found = Answered::default();
    for fact in facts {
        if found.questions.len() >= limit {
            break;
        }
        match ask(opened, fact) {
            Ok(question) => {
                found.asked += 1;
                if let Some((question, subject)) = question {
                    found.questions.push(question);
                    found.subjects.push(subject);
                }
            }
            Err(error @ (Error::Config { .. } | Error::Data { .. })) => {
                skipped.add(&format!("fact {} ({}): {error}", fact.id, fact.subject));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// The question of a fact and its subject's first token; `None` where the model gives another answer.
fn ask(opened: &Opened, fact: &Fact) -> Result<Option<(Question, i64)>> {
    let (model, tokenizer) = (&opened.model, &opened.tokenizer);
    let Some(attribute) = &fact.attribute else {
        return Err(Error::data("", "has no `attribute` to be answered with"));
    };
    let prompt = Prompt::new(tokenizer, &fact.prompt, &fact.subject, Some(attribute))?;
    // The answer's first token, whose text may be a part of the attribute.
    let answer = prompt.answer.first().copied().unwrap_or_default();
    let text = tokenizer.decode(&[answer])?;
    let found = predicts(model, tokenizer, &prompt, &text, Score::First)?;
    let subject = prompt.ids[prompt.subject.start];
    let question = Question {
        ids: prompt.ids,
        answer,
    };
    Ok(found.is_ok().then_some((question, subject)))
}

fn mlp(
    opened: &Opened,
    questions: &[Question],
    layer: usize,
    options: &DecomposeOptions,
    loud: bool,
) -> Result<Value> {
    let prompts: Vec<Vec<i64>> = questions.iter().map(|q| q.ids.clone()).collect();
    let found = decompose(&opened.model, &prompts, layer, options)?;
    let cosine = mean(&found.cosines);
    let tokens = spelt(opened, top_tokens(&opened.model, &found.bias, WORDS)?);
    let answers: BTreeSet<i64> = questions.iter().map(|q| q.answer).collect();
    let answers: Vec<i64> = answers.into_iter().collect();
    let places = ranks(&opened.model, &found.bias, &answers)?;
    let mut answers = spelt(opened, answers.into_iter().zip(places));
    answers.sort_by_key(|(_, place)| *place);
    if loud {
        println!(
            "\nMLP of layer {layer}: R² {:.3}, cosine {cosine:.3}, condition {:.1e}",
            found.r2, found.condition
        );
        let mut terms: Vec<_> = found.terms.iter().collect();
        terms.sort_by(|a, b| b.weight.abs().total_cmp(&a.weight.abs()));
        for term in terms.iter().take(SHOWN) {
            println!(
                "  {:10} {:+.3} ± {:.3}",
                term.name, term.weight, term.clustered_error
            );
        }
        println!("  constant speaks for {}", quoted(&tokens));
        if let Some((first, best)) = answers.first() {
            let [low, high] = [(answers.len() - 1) / 2, answers.len() / 2].map(|at| answers[at].1);
            println!(
                "  rank of answers there (0 is the top of {}): best {best} ({first:?}), median {:.1}",
                opened.model.config().vocab_size,
                (low + high) as f64 / 2.0
            );
        }
    }
    Ok(json!({
        "layer": layer,
        "r2": found.r2,
        "mean_cosine": cosine,
        "cosines": found.cosines,
        "condition": found.condition,
        "terms": found.terms,
        "constant_tokens": tokens,
        "constant_answers": answers,
    }))
}

fn heads(opened: &Opened, answered: &Answered, patching: Patching, loud: bool) -> Result<Value> {
    let questions = &answered.questions;
    // Each question with the next one of another answer as its corrupted form.
    let pairs = questions
        .iter()
        .enumerate()
        .filter_map(|(place, question)| {
            let mut others = questions
                .iter()
                .cycle()
                .skip(place + 1)
                .take(questions.len());
            let other = others.find(|q| q.answer != question.answer)?;
            Some((question, other))
        });
    let mut sums: BTreeMap<(usize, usize), f64> = BTreeMap::new();
    let mut count = 0.0;
    for (clean, corrupted) in pairs.take(SWAPS) {
        let found: HeadEffects = head_effects(
            &opened.model,
            &clean.ids,
            &corrupted.ids,
            clean.answer,
            Metric::Logit,
            patching,
        )?;
        for (layer, head, effect) in found.ranked() {
            *sums.entry((layer, head)).or_default() += effect;
        }
        count += 1.0;
    }
    if count < 1.0 {
        return Err(Error::config(
            "--heads",
            "needs facts of at least two answers",
        ));
    }
    let mut means: Vec<((usize, usize), f64)> = sums
        .into_iter()
        .map(|(place, sum)| (place, sum / count))
        .collect();
    means.sort_by(|a, b| b.1.total_cmp(&a.1));
    let top: Vec<(usize, i64)> = means
        .iter()
        .take(SHOWN)
        .map(|((layer, head), _)| (*layer, *head as i64))
        .collect();
    let outputs = head_outputs(&opened.model, questions, &answered.subjects, &top, WORDS)?;
    if loud {
        println!(
            "\nheads that carry the answer: mean gain of its logit over {count} swaps; mean rank of the subject's and the answer's\n\
             first token in what the head writes (0 is the top of {}); and the tokens that this speaks for:",
            opened.model.config().vocab_size
        );
    }
    let mut said = Vec::with_capacity(outputs.len());
    for (output, (_, effect)) in outputs.into_iter().zip(&means) {
        let name = format!("L{}H{}", output.layer, output.head);
        let tokens = spelt(opened, output.tokens);
        if loud {
            println!(
                "  {name:10} {effect:+.3}  subject {:.1}, answer {:.1}  {}",
                output.subject_rank,
                output.answer_rank,
                quoted(&tokens)
            );
        }
        said.push(json!({
            "layer": output.layer,
            "head": output.head,
            "tokens": tokens,
            "subject_rank": output.subject_rank,
            "answer_rank": output.answer_rank,
        }));
    }
    let rows: Vec<Value> = means
        .iter()
        .map(|((layer, head), effect)| json!({ "layer": layer, "head": head, "effect": effect }))
        .collect();
    Ok(json!({ "swaps": count, "patching": patching, "effects": rows, "outputs": said }))
}

fn last(opened: &Opened, questions: &[Question], scale: f64, loud: bool) -> Result<Value> {
    let found = last_layer(&opened.model, questions)?;
    let layer = opened.model.config().n_layers - 1;
    // Heads whose direct part lowers the answers.
    let held: Vec<(usize, i64, f64)> = (0..opened.model.config().n_heads)
        .filter(|head| {
            let name = format!("L{layer}H{head}");
            let part = found.parts.iter().find(|part| part.name == name);
            part.is_some_and(|part| mean(&part.relative) < 0.0)
        })
        .map(|head| (layer, head, scale))
        .collect();
    let mitigation = Mitigation {
        heads: held.clone(),
        ..Mitigation::default()
    };
    let after = mitigate(&opened.model, questions, &mitigation)?;
    let after: Vec<f64> = after.into_iter().map(|(_, after)| after).collect();
    if loud {
        println!(
            "\nlast layer: p(answer) {:.4}; what parts give to the answer's logit, and p without them:",
            mean(&found.probability)
        );
        for part in &found.parts {
            println!(
                "  {:10} {:+.3}  {:.4}",
                part.name,
                mean(&part.relative),
                mean(&part.without)
            );
        }
        println!(
            "  {} heads that hold back, scaled by {scale}: p(answer) {:.4}",
            held.len(),
            mean(&after)
        );
    }
    Ok(json!({
        "probability": found.probability,
        "parts": found.parts,
        "scaled_heads": held.iter().map(|(_, head, _)| head).collect::<Vec<_>>(),
        "scale": scale,
        "probability_after": after,
    }))
}

/// The answers' probabilities without the direction that raises frequent tokens.
fn without_frequency(
    opened: &Opened,
    questions: &[Question],
    tokens: &[i64],
    loud: bool,
) -> Result<Value> {
    let direction = frequency_direction(&opened.model, tokens)?;
    let mitigation = Mitigation {
        directions: Some(direction.f_unsqueeze(0)?),
        ..Mitigation::default()
    };
    let found = mitigate(&opened.model, questions, &mitigation)?;
    let (before, after): (Vec<f64>, Vec<f64>) = found.into_iter().unzip();
    if loud {
        println!(
            "  direction of the {} most frequent tokens taken out: p(answer) {:.4}, {:.4} before",
            tokens.len(),
            mean(&after),
            mean(&before)
        );
    }
    let words: Vec<String> = tokens.iter().map(|id| piece(opened, *id)).collect();
    Ok(json!({
        "tokens": words,
        "probability": before,
        "probability_after": after,
    }))
}

fn mean(xs: &[f64]) -> f64 {
    xs.iter().sum::<f64>() / xs.len().max(1) as f64
}

/// Tokens as text, each with its value.
fn spelt<T>(opened: &Opened, tokens: impl IntoIterator<Item = (i64, T)>) -> Vec<(String, T)> {
    tokens
        .into_iter()
        .map(|(id, value)| (piece(opened, id), value))
        .collect()
}

/// Tokens in quotes, for a line.
fn quoted<T>(tokens: &[(String, T)]) -> String {
    let words: Vec<String> = tokens.iter().map(|(word, _)| format!("{word:?}")).collect();
    words.join(" ")
}

/// A token's text, or its number where the model knows more tokens than the tokenizer.
fn piece(opened: &Opened, id: i64) -> String {
    let text = opened.tokenizer.piece(id);
    text.unwrap_or_else(|_| id.to_string())
}
