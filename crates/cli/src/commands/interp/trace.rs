//! `densely interp trace`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use densely_core::{Error, Result};
use densely_interp::average::{Averages, Interval};
use densely_interp::facts::{Fact, read_facts};
use densely_interp::heatmap::{Heatmap, average_lines};
use densely_interp::noise::{Noise, NoiseKind};
use densely_interp::sweep::{Row, sweep};
use densely_interp::trace::{self as causal, Prompt, Restore, Score, TraceOptions};
use densely_lm::Opened;
use serde_json::json;

use super::{measured_noise, model_name};
use crate::Common;
use crate::commands::lm::Source;
use crate::commands::train::interp::Found;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples: densely interp trace gpt2-medium --prompt \"The Space Needle is in the city of\" --subject \"The Space Needle\" --out space-needle\n\
                  densely interp trace gpt2-medium --facts known_1000.json --out runs/known --resume\n\
                  A list of facts is known_1000.json, counterfact.json, or own JSON lines or CSV with subject, prompt and attribute."
)]
pub(crate) struct Trace {
    #[command(flatten)]
    source: Source,
    /// Text of one prompt, without the answer.
    #[arg(
        long,
        value_name = "TEXT",
        requires = "subject",
        required_unless_present = "facts",
        conflicts_with = "facts"
    )]
    prompt: Option<String>,
    /// Its subject, as it stands there.
    #[arg(long, value_name = "TEXT", requires = "prompt")]
    subject: Option<String>,
    /// Answer whose probability is followed; the likeliest token when left out.
    #[arg(long, value_name = "TEXT", requires = "prompt")]
    answer: Option<String>,
    /// List of facts to average over.
    #[arg(long, value_name = "FILE")]
    facts: Option<PathBuf>,
    /// The first so many of them.
    #[arg(long, value_name = "N", requires = "facts")]
    limit: Option<usize>,
    /// Go on with a list that was begun in the same folder.
    #[arg(long, requires = "facts")]
    resume: bool,
    /// Intervals from so many draws of facts instead of the standard error.
    #[arg(long, value_name = "DRAWS", requires = "facts")]
    bootstrap: Option<usize>,
    /// What is restored: block, mlp, attn, severed-mlp, severed-attn.
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_values = ["block", "mlp", "attn"]
    )]
    kinds: Vec<Restore>,
    /// Layers that are restored together, of MLPs and attentions.
    #[arg(long, default_value_t = 10)]
    window: usize,
    /// Corrupted runs of a draw of noise.
    #[arg(long, default_value_t = 10)]
    samples: i64,
    /// Draws of noise, of seeds one after the other, to average over.
    #[arg(long, default_value_t = 1)]
    draws: u32,
    /// Size of the noise: s3 (three standard deviations of the subjects' embeddings), a standard deviation, m, t5 or u1.
    #[arg(long, default_value = "s3")]
    noise: NoiseKind,
    /// List of facts whose subjects the noise is measured on; that of --facts when left out.
    #[arg(long, value_name = "FILE")]
    noise_facts: Option<PathBuf>,
    /// Put noise in the embeddings' place instead of adding it.
    #[arg(long)]
    replace: bool,
    /// Probability of the answer's first token, or product over all its tokens.
    #[arg(long, default_value = "first", value_name = "first|product")]
    score: Score,
    /// Rows that go through a layer at once: more is faster and takes more memory.
    #[arg(long, default_value_t = 256)]
    batch_rows: usize,
    /// Folder for pictures and numbers; `runs/trace` or `runs/trace-<list>` when left out.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

impl Trace {
    fn options(&self, common: &Common) -> Result<TraceOptions> {
        // The reference's generator takes 32 bits, and its seed is 1.
        let seed = common.seed.unwrap_or(1);
        let seed = u32::try_from(seed).map_err(|_| {
            let reason = format!("must be below {} for this noise, got {seed}", 1u64 << 32);
            Error::config("--seed", reason)
        })?;
        let mut kinds = self.kinds.clone();
        kinds.sort_unstable();
        kinds.dedup();
        let options = TraceOptions {
            kinds,
            window: self.window,
            samples: self.samples,
            draws: self.draws,
            seed,
            replace: self.replace,
            score: self.score,
            batch_rows: self.batch_rows,
        };
        options.validate()?;
        Ok(options)
    }
}

pub(super) fn run(arguments: &Trace, common: &Common) -> Result<()> {
    let options = arguments.options(common)?;
    if let Some(list) = &arguments.facts {
        return many(arguments, list, &options, common);
    }
    let (Some(prompt), Some(subject)) = (&arguments.prompt, &arguments.subject) else {
        return Err(Error::config(
            "--prompt",
            "is needed with --subject, or --facts",
        ));
    };
    let answer = arguments.answer.clone();
    let fact = Fact::new("1", prompt.as_str(), subject.as_str(), answer)?;
    one(arguments, &fact, &options, common)
}

fn one(arguments: &Trace, fact: &Fact, options: &TraceOptions, common: &Common) -> Result<()> {
    let opened = arguments.source.open(common)?;
    let prompt = Prompt::new(
        &opened.tokenizer,
        &fact.prompt,
        &fact.subject,
        fact.attribute.as_deref(),
    )?;
    let noise = measured_noise(
        &opened,
        arguments.noise,
        arguments.noise_facts.as_deref(),
        std::slice::from_ref(fact),
    )?;
    let mut trace = causal::trace(&opened.model, &prompt, &noise, options)?;
    trace.name(&opened.tokenizer);
    let folder = arguments
        .out
        .clone()
        .unwrap_or_else(|| PathBuf::from("runs/trace"));
    std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
    let name = model_name(arguments.source.path());
    let mut made = Vec::new();
    for kind in &options.kinds {
        let path = folder.join(format!("{kind}.svg"));
        Heatmap::of_trace(&trace, *kind, &name)?.write(&path)?;
        made.push(path);
    }
    let path = folder.join("trace.json");
    let whole = json!({
        "model": opened.described,
        "prompt": fact.prompt,
        "noise": { "kind": noise.kind(), "scale": noise.scale() },
        "options": options,
        "trace": trace,
    });
    densely_core::fs::write(&path, format!("{whole:#}\n").as_bytes())?;
    made.push(path);
    if common.json {
        let mut whole = whole;
        whole["made"] = json!(made);
        println!("{whole}");
        return Ok(());
    }
    println!(
        "p({}) is {:.4} on the prompt and {:.4} with the subject corrupted (noise {}, {:.4})",
        trace.answer,
        trace.high,
        trace.low,
        noise.kind(),
        noise.scale()
    );
    for kind in &options.kinds {
        if let Some((token, layer, score)) = trace.best(*kind) {
            let star = if trace.subject.contains(&token) {
                ", of the subject"
            } else {
                ""
            };
            let word = trace.tokens.get(token).map_or("", |token| token.trim());
            println!(
                "{:14} best {score:.4} at layer {layer}, token {token} {word:?}{star}",
                kind.name()
            );
        }
    }
    println!("pictures and trace.json in {}", folder.display());
    Ok(())
}

/// Averages over a list that were made.
struct Made {
    folder: PathBuf,
    averages: Averages,
    skipped: usize,
    /// In the folder.
    plots: Vec<String>,
    parameters: u64,
    whole: serde_json::Value,
}

fn many(arguments: &Trace, list: &Path, options: &TraceOptions, common: &Common) -> Result<()> {
    let made = average(arguments, list, options, common)?;
    if common.json {
        println!("{}", made.whole);
        return Ok(());
    }
    println!("{}", made.averages.markdown());
    println!(
        "{} facts traced, {} skipped; report in {}",
        made.averages.facts,
        made.skipped,
        made.folder.join("report.md").display()
    );
    Ok(())
}

/// The averages of a recipe.
pub(crate) fn study(arguments: &Trace, common: &Common) -> Result<Found> {
    let options = arguments.options(common)?;
    let list = arguments.facts.as_deref();
    let list = list.ok_or_else(|| Error::config("facts", "is missing: a recipe is of a list"))?;
    let made = average(arguments, list, &options, common)?;
    let mut figures =
        BTreeMap::from([("total_effect".to_owned(), made.averages.total_effect.mean)]);
    for (kind, groups) in &made.averages.kinds {
        for group in groups {
            if let Some((_, effect)) = group.best() {
                let place = group.place.name().replace(' ', "_");
                figures.insert(format!("{kind}.{place}"), effect.mean);
            }
        }
    }
    Ok(Found {
        figures,
        report: format!(
            "{} facts traced, {} skipped.\n\n{}",
            made.averages.facts,
            made.skipped,
            made.averages.markdown()
        ),
        plots: made
            .plots
            .iter()
            .map(|plot| made.folder.join(plot))
            .collect(),
        parameters: made.parameters,
    })
}

fn average(
    arguments: &Trace,
    list: &Path,
    options: &TraceOptions,
    common: &Common,
) -> Result<Made> {
    let all = read_facts(list)?;
    let count = arguments.limit.unwrap_or(all.len()).min(all.len());
    if count == 0 {
        return Err(Error::config("--limit", "must be at least 1, got 0"));
    }
    let facts = &all[..count];
    let folder = arguments.out.clone().unwrap_or_else(|| {
        let stem = list.file_stem().unwrap_or_default().to_string_lossy();
        PathBuf::from(format!("runs/trace-{stem}"))
    });
    let opened = arguments.source.open(common)?;
    std::fs::create_dir_all(folder.join("plots")).map_err(Error::io(&folder))?;
    // Of the whole list, so that a part of it is corrupted as the whole is.
    let noise = measured_noise(
        &opened,
        arguments.noise,
        arguments.noise_facts.as_deref(),
        &all,
    )?;
    let rows = sweep(
        &opened.model,
        &opened.tokenizer,
        facts,
        &noise,
        options,
        &folder.join("traces.jsonl"),
        arguments.resume,
        &mut |row, done, of| say(row, done, of, common),
    )?;
    let traces: Vec<&causal::Trace> = rows.iter().filter_map(|row| row.trace.as_ref()).collect();
    if traces.is_empty() {
        let reason = format!(
            "none of {} could be traced; {} says why",
            rows.len(),
            folder.join("traces.jsonl").display()
        );
        return Err(Error::data(list, reason));
    }
    let interval = match arguments.bootstrap {
        None => Interval::Normal,
        Some(draws) => Interval::Bootstrap {
            draws,
            seed: common.seed.unwrap_or(1),
        },
    };
    let averages = Averages::new(&traces, interval)?;
    let name = model_name(arguments.source.path());
    let mut plots = Vec::new();
    for kind in &options.kinds {
        let map = format!("plots/{kind}.svg");
        Heatmap::of_averages(&averages, *kind)?.write(&folder.join(&map))?;
        let lines = format!("plots/{kind}-lines.svg");
        average_lines(&folder.join(&lines), &averages, *kind, &name)?;
        plots.extend([map, lines]);
    }
    let skipped = rows.len() - traces.len();
    let report = report(list, &opened, &noise, options, &rows, &averages, &plots);
    densely_core::fs::write(&folder.join("report.md"), report.as_bytes())?;
    let whole = json!({
        "model": opened.described,
        "facts": list,
        "noise": { "kind": noise.kind(), "scale": noise.scale() },
        "options": options,
        "interval": interval,
        "skipped": skipped,
        "averages": averages,
    });
    let path = folder.join("averages.json");
    densely_core::fs::write(&path, format!("{whole:#}\n").as_bytes())?;
    Ok(Made {
        parameters: opened.model.config().parameter_count(),
        folder,
        averages,
        skipped,
        plots,
        whole,
    })
}

fn say(row: &Row, done: usize, of: usize, common: &Common) {
    if common.quiet {
        return;
    }
    match (&row.trace, &row.skipped) {
        (Some(trace), _) => eprintln!(
            "{done}/{of} {}: p({}) {:.3}, corrupted {:.3}",
            row.subject, trace.answer, trace.high, trace.low
        ),
        (None, reason) => eprintln!(
            "{done}/{of} {}: skipped, {}",
            row.subject,
            reason.as_deref().unwrap_or("no reason given")
        ),
    }
}

fn report(
    list: &Path,
    opened: &Opened,
    noise: &Noise,
    options: &TraceOptions,
    rows: &[Row],
    averages: &Averages,
    plots: &[String],
) -> String {
    let mut out = format!("# Causal traces of {}\n\n", list.display());
    let _ = write!(
        out,
        "| | |\n| --- | --- |\n| model | {} |\n| facts | {} traced, {} skipped |\n| noise | {} ({:.6}), {} runs of {} draws from seed {} |\n| window | {} layers |\n\n",
        opened.described,
        averages.facts,
        rows.len() - averages.facts,
        noise.kind(),
        noise.scale(),
        options.samples,
        options.draws,
        options.seed,
        options.window
    );
    out += &averages.markdown();
    out += "\nIntervals count facts, not tokens. Facts that the model does not answer as the list says are skipped.\n";
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    for reason in rows.iter().filter_map(|row| row.skipped.as_deref()) {
        // Answers differ from fact to fact; that they are wrong is one reason.
        let kind = if reason.starts_with("the model gives") {
            "the model gives another answer"
        } else {
            reason
        };
        *reasons.entry(kind).or_default() += 1;
    }
    if !reasons.is_empty() {
        out += "\n| skipped because | facts |\n| --- | --- |\n";
        for (reason, count) in reasons.iter().take(20) {
            let _ = writeln!(out, "| {} | {count} |", reason.replace('|', "/"));
        }
    }
    out.push('\n');
    for plot in plots {
        let _ = writeln!(out, "![{plot}]({plot})\n");
    }
    out
}
