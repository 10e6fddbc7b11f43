//! `densely interp localize`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use densely_core::{Error, Result};
use densely_interp::facts::{read_counterfact, read_facts};
use densely_interp::localize::{
    Case, Event, LocalizeOptions, Method, Outcome, Study, Summary, Variant, localize, noise_of,
    summarise, write_report,
};
use densely_interp::noise::{Noise, NoiseKind};
use densely_lm::{LmConfig, Opened};
use serde_json::{Value, json};

use super::edit::moments::MomentsArguments;
use super::{Key, measured_noise, memit_alone};
use crate::Common;
use crate::commands::lm::Source;
use crate::commands::train::interp::Found;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: densely interp localize gpt2-medium --facts counterfact.json --limit 50 --methods rome,ft-1 --out runs/localize --moments-text articles.txt\n\
                  Facts are counterfact.json, known_1000.json, or own JSON lines or CSV with subject, prompt, attribute and relation.\n\
                  Ctrl-C stops after an edit; the same command with --resume goes on. Variants, methods, layers and facts may be added then."
)]
pub(crate) struct Localize {
    #[command(flatten)]
    source: Source,
    /// List of facts.
    #[arg(long, value_name = "FILE")]
    facts: PathBuf,
    /// The first so many of them.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// What edits shall do: error-injection, tracing-reversal, fact-erasure, fact-amplification, fact-forcing; all when left out.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    variants: Vec<Variant>,
    /// How facts are edited: ft-1, ft-5, rome, memit; all when left out.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    methods: Vec<Method>,
    /// Layers to edit, as in 0,4,8; about eight of the model when left out.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    layers: Vec<usize>,
    /// Size of the noise: s3 (three standard deviations of the subjects' embeddings), a standard deviation, m, t5 or u1; when left out the paper's 0.094 for GPT-J and 0.1 for GPT-2 XL, else s3.
    #[arg(long)]
    noise: Option<NoiseKind>,
    /// Layers that are restored together in tracing.
    #[arg(long, default_value_t = 5)]
    window: usize,
    /// Draws of noise.
    #[arg(long, default_value_t = 10)]
    samples: i64,
    /// Texts before the prompt in ROME's search, beside the bare prompt: 20 when left out; fewer are quicker.
    #[arg(long, value_name = "N")]
    prefixes: Option<usize>,
    /// Which key ROME writes for; `averaged` when left out.
    #[arg(long, value_enum)]
    key: Option<Key>,
    /// Weight of the second moments in MEMIT; by the model when left out, which takes moments of a text.
    #[arg(long)]
    lambda: Option<f64>,
    /// Facts whose answer is less probable are left out.
    #[arg(long, default_value_t = 0.02)]
    min_probability: f64,
    #[command(flatten)]
    moments: MomentsArguments,
    /// Folder for traces, edits and the report; `runs/localize-<list>` when left out.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Go on with a study that was begun in the same folder.
    #[arg(long)]
    resume: bool,
}

impl Localize {
    /// Fails where MEMIT would change next to nothing.
    fn check_memit(&self) -> Result<()> {
        let asked = self.methods.is_empty() || self.methods.contains(&Method::Memit);
        if asked && self.lambda.is_none() && self.moments.are_identity() {
            return Err(memit_alone("--methods", "; or leave memit out"));
        }
        Ok(())
    }

    /// The noise, and where it is from.
    fn noise(&self, config: &LmConfig) -> (NoiseKind, &'static str) {
        match self.noise {
            Some(kind) => (kind, "as asked for"),
            None => match noise_of(config) {
                kind @ NoiseKind::Fixed(_) => (kind, "the paper's for this model"),
                kind => (kind, "the paper has none for this model"),
            },
        }
    }

    fn options(&self, opened: &Opened, common: &Common) -> Result<LocalizeOptions> {
        let mut options = LocalizeOptions::new(opened.model.config());
        if !self.variants.is_empty() {
            options.variants.clone_from(&self.variants);
        }
        if !self.methods.is_empty() {
            options.methods.clone_from(&self.methods);
        }
        if !self.layers.is_empty() {
            options.layers.clone_from(&self.layers);
        }
        options.trace.window = self.window;
        options.trace.samples = self.samples;
        if let Some(seed) = common.seed {
            // The reference's generator takes 32 bits.
            options.trace.seed = u32::try_from(seed).map_err(|_| {
                let reason = format!("must be below {} for this noise, got {seed}", 1u64 << 32);
                Error::config("--seed", reason)
            })?;
            options.seed = seed;
        }
        options.key = self.key.map(Key::mode).unwrap_or_default();
        options.memit_lambda = self.lambda.unwrap_or(options.memit_lambda);
        options.min_probability = self.min_probability;
        options.prefixes = self.prefixes.unwrap_or(options.prefixes);
        options.validate(&opened.model)?;
        Ok(options)
    }

    /// Says which options change nothing.
    fn warn(&self, methods: &[Method]) {
        let moments = self.moments.given();
        let moments = moments.filter(|_| !methods.iter().any(|method| method.needs_moments()));
        let prefixes = self.prefixes.map(|_| "--prefixes");
        let key = self.key.map(|_| "--key");
        let of_rome = prefixes.into_iter().chain(key);
        let of_rome = of_rome.filter(|_| !methods.contains(&Method::Rome));
        let lambda = self.lambda.map(|_| "--lambda");
        let lambda = lambda.filter(|_| !methods.contains(&Method::Memit));
        let names: Vec<&str> = methods.iter().map(|method| method.name()).collect();
        let beside = format!("--methods {}", names.join(","));
        super::without_effect(&beside, moments.into_iter().chain(of_rome).chain(lambda));
    }
}

/// Cases of a list of any layout. What they draw from is the whole list, whatever part of it is edited.
fn cases(path: &Path, seed: u64) -> Result<(Vec<Case>, &'static str)> {
    // CounterFact is a list of facts too; its records hold more.
    match read_counterfact(path) {
        Ok(records) => Ok((
            Case::of_counterfact(&records),
            "new answers, paraphrases and neighbours are the records' own",
        )),
        Err(_) => Ok((
            Case::of_facts(&read_facts(path)?, seed),
            "a new answer is the attribute of another fact of the same relation, drawn by the seed; a neighbour is another fact of the same relation and template; there are no paraphrases",
        )),
    }
}

/// A study that was made.
struct Made {
    folder: PathBuf,
    outcome: Outcome,
    summary: Summary,
    parameters: u64,
    /// Noise, ROME's key and second moments, for JSON.
    settings: Value,
}

pub(super) fn run(arguments: &Localize, common: &Common) -> Result<()> {
    let made = make(arguments, common)?;
    print(&made, common);
    Ok(())
}

/// The study of a recipe.
pub(crate) fn study(arguments: &Localize, common: &Common) -> Result<Found> {
    let made = make(arguments, common)?;
    let mut figures = BTreeMap::new();
    for pair in &made.summary.pairs {
        let mut put = |name: &str, value: Option<f64>| {
            if let Some(value) = value {
                figures.insert(format!("{}.{}.{name}", pair.variant, pair.method), value);
            }
        };
        put("r2_layer", pair.layer.r2);
        put("r2_trace", pair.trace.r2);
        put("r2_both", pair.both.r2);
        let best = pair.layers.iter().map(|found| found.rewrite.mean);
        put("best_rewrite", best.max_by(f64::total_cmp));
    }
    let variants: BTreeSet<Variant> = made.summary.pairs.iter().map(|pair| pair.variant).collect();
    let mut names: Vec<String> = variants.iter().map(Variant::to_string).collect();
    let averages = made.outcome.averages.as_ref();
    let kinds = averages
        .into_iter()
        .flat_map(|averages| averages.kinds.keys());
    names.extend(kinds.map(|kind| format!("tracing-{kind}")));
    let folder = made.folder.join("plots");
    let plots = names
        .iter()
        .map(|name| folder.join(format!("{name}.svg")))
        .collect();
    let traced = averages.map(|averages| format!("### Tracing\n\n{}", averages.markdown()));
    Ok(Found {
        figures,
        report: format!(
            "{} facts edited, {} left out. {}\n\n{}\n{}{}",
            made.outcome.edited,
            made.outcome.skipped.len(),
            made.summary.verdict(),
            made.summary.markdown(),
            made.summary.layers_markdown(),
            traced.unwrap_or_default()
        ),
        plots,
        parameters: made.parameters,
    })
}

fn make(arguments: &Localize, common: &Common) -> Result<Made> {
    arguments.check_memit()?;
    let (mut all, drawn) = cases(&arguments.facts, common.seed.unwrap_or(0))?;
    let subjects: Vec<_> = all.iter().map(|case| case.fact.clone()).collect();
    let count = arguments.limit.unwrap_or(all.len()).min(all.len());
    if count == 0 {
        let reason = "none has an answer to begin with, or --limit is 0";
        return Err(Error::config("--facts", reason));
    }
    all.truncate(count);
    let opened = arguments.source.open(common)?;
    let mut options = arguments.options(&opened, common)?;
    arguments.warn(&options.methods);
    let folder = arguments.out.clone().unwrap_or_else(|| {
        let stem = arguments.facts.file_stem().unwrap_or_default();
        PathBuf::from(format!("runs/localize-{}", stem.to_string_lossy()))
    });
    // Of the whole list, so that a part of it is corrupted as the whole is.
    let (kind, from) = arguments.noise(opened.model.config());
    let noise = measured_noise(&opened, kind, None, &subjects)?;
    let layers = options.moment_layers(opened.model.config().n_layers);
    let path = arguments.source.path();
    let mut held = arguments.moments.source(&opened, path, &layers, common)?;
    options.moments.clone_from(&held.said);
    if !common.quiet {
        eprintln!("layers {:?}; noise {kind}: {from}", options.layers);
        if options.methods.contains(&Method::Rome) {
            eprintln!("ROME's key {}", options.key.name());
        }
        if options.methods.iter().any(|method| method.needs_moments()) {
            eprintln!("{}", held.said);
        }
    }
    let model = &opened.model;
    let mut moments = |layer: usize| held.get(model, layer);
    let outcome = localize(
        &mut Study {
            model,
            tokenizer: &opened.tokenizer,
            cases: &all,
            noise: &noise,
            moments: &mut moments,
            folder: &folder,
        },
        &options,
        arguments.resume,
        &mut |event| say(&event, common),
    )?;
    let summary = summarise(&outcome.points)?;
    let about = about(arguments, &opened, (&noise, from), &options, drawn);
    write_report(&folder, &about, &outcome, &summary)?;
    Ok(Made {
        parameters: model.config().parameter_count(),
        settings: settings(&noise, &options),
        folder,
        outcome,
        summary,
    })
}

/// Lines of the report on model and settings.
fn about(
    arguments: &Localize,
    opened: &Opened,
    (noise, from): (&Noise, &str),
    options: &LocalizeOptions,
    drawn: &str,
) -> Vec<(String, String)> {
    let mut rows = vec![
        ("model", opened.described.clone()),
        ("list", arguments.facts.display().to_string()),
        ("answers", drawn.to_owned()),
        (
            "noise",
            format!(
                "{} ({:.6}), {from}; {} draws from seed {}",
                noise.kind(),
                noise.scale(),
                options.trace.samples,
                options.trace.seed
            ),
        ),
        (
            "tracing",
            format!(
                "MLP outputs, {} layers at a time, product over the answer's tokens",
                options.trace.window
            ),
        ),
        ("layers", format!("{:?}", options.layers)),
    ];
    if options.methods.contains(&Method::Rome) {
        rows.push(("ROME's key", options.key.name().to_owned()));
    }
    if options.methods.contains(&Method::Memit) {
        rows.push(("MEMIT's lambda", options.memit_lambda.to_string()));
    }
    if options.methods.iter().any(|method| method.needs_moments()) {
        rows.push(("second moments", options.moments.clone()));
    }
    rows.into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

/// What the JSON says of settings; `null` is what none of the methods has.
fn settings(noise: &Noise, options: &LocalizeOptions) -> Value {
    let has = |method: Method| options.methods.contains(&method);
    let moments = options.methods.iter().any(|method| method.needs_moments());
    json!({
        "noise": { "kind": noise.kind(), "scale": noise.scale() },
        "layers": options.layers,
        "key": has(Method::Rome).then_some(options.key),
        "lambda": has(Method::Memit).then_some(options.memit_lambda),
        "moments": moments.then_some(&options.moments),
    })
}

fn say(event: &Event<'_>, common: &Common) {
    if common.quiet {
        return;
    }
    match event {
        Event::Traced(row, done, of) => match (&row.trace, &row.skipped) {
            (Some(trace), _) => eprintln!(
                "trace {done}/{of} {}: p({}) {:.3}, corrupted {:.3}",
                row.subject, trace.answer, trace.high, trace.low
            ),
            (None, reason) => eprintln!(
                "trace {done}/{of} {}: left out, {}",
                row.subject,
                reason.as_deref().unwrap_or("no reason given")
            ),
        },
        Event::Edited(point, done, of) => {
            let score = point.rewrite.map_or_else(
                || point.note.clone(),
                |score| format!("rewrite score {score:.3}"),
            );
            eprintln!(
                "edit {done}/{of} {}, {} at layer {} of fact {}: {score}",
                point.variant, point.method, point.layer, point.id
            );
        }
    }
}

fn print(made: &Made, common: &Common) {
    let (folder, outcome, summary) = (&made.folder, &made.outcome, &made.summary);
    if common.json {
        let whole = json!({
            "folder": folder,
            "facts": outcome.edited,
            "left_out": outcome.skipped.len(),
            "edits": outcome.points.len(),
            "settings": made.settings,
            "summary": summary,
            "verdict": summary.verdict(),
        });
        println!("{whole}");
        return;
    }
    println!("{}", summary.markdown());
    println!("{}", summary.verdict());
    println!(
        "{} facts edited, {} left out; report in {}",
        outcome.edited,
        outcome.skipped.len(),
        folder.join("report.md").display()
    );
}
