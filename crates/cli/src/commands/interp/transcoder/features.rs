//! `densely interp transcoder features`.

use std::fmt::Write;
use std::path::PathBuf;

use densely_core::{Error, Result};
use densely_interp::dictionary::examples::{
    Example, LogitEffects, Survey, Surveyed, logit_effects,
};
use densely_train::svg::escaped;
use serde_json::json;

use super::super::model_name;
use super::train::density;
use super::{Texts, open_dictionary, windows_bar};
use crate::Common;
use crate::commands::lm::Source;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: densely interp transcoder features gpt2 --dictionary runs/mlp8 --text wiki.txt --out features\n\
                  Writes features.html for people, features.jsonl for machines, and density.svg."
)]
pub(crate) struct Features {
    #[command(flatten)]
    source: Source,
    /// The dictionary.
    #[arg(long, value_name = "DIR")]
    dictionary: PathBuf,
    #[command(flatten)]
    texts: Texts,
    /// Hook point that the dictionary reads, when it does not say it.
    #[arg(long, value_name = "POINT")]
    read: Option<String>,
    /// These features; the first hundred that fire at 20 tokens or more when left out.
    #[arg(long = "features", value_delimiter = ',', value_name = "LIST")]
    chosen: Vec<usize>,
    /// Texts of each.
    #[arg(long, default_value_t = 8, value_name = "N")]
    examples: usize,
    /// Windows of text to look at, at most.
    #[arg(long, default_value_t = 1024, value_name = "N")]
    windows: usize,
    /// Folder for what is found.
    #[arg(long, value_name = "DIR", default_value = "runs/features")]
    out: PathBuf,
}

/// How many features are shown, and at how many tokens they fire.
const SHOWN: usize = 100;
const LEAST: u64 = 20;

pub(super) fn run(arguments: &Features, common: &Common) -> Result<()> {
    let opened = arguments.source.open(common)?;
    let (dictionary, read, _) = open_dictionary(
        &arguments.dictionary,
        arguments.read.as_deref(),
        None,
        common,
    )?;
    let dictionary = dictionary.dictionary;
    let corpus = arguments.texts.corpus(&opened)?.first(arguments.windows);
    let mut bar = windows_bar(common.quiet);
    let surveyed = Surveyed {
        model: &opened.model,
        dictionary: &dictionary,
        read: &read,
        corpus: &corpus,
    };
    let survey = Survey::new(&surveyed, arguments.examples, &mut bar)?;
    let features = features(arguments, &survey)?;
    let mut examples = survey.examples(&surveyed, &opened.tokenizer, &features, 16)?;
    let logs = survey.log_frequencies();
    let mut lines = String::new();
    let mut page = head(&model_name(arguments.source.path()), &read, &survey);
    for feature in &features {
        let effects = logit_effects(&opened.model, &opened.tokenizer, &dictionary, *feature, 10)?;
        let examples = examples.remove(feature).unwrap_or_default();
        let log = logs.get(*feature).copied().flatten();
        let count = survey.counts.get(*feature).copied().unwrap_or(0);
        section(&mut page, *feature, count, &effects, &examples);
        let line = json!({
            "feature": feature, "tokens": count, "log10_frequency": log,
            "promotes": effects.0, "demotes": effects.1, "examples": examples,
        });
        let _ = writeln!(lines, "{line}");
    }
    page.push_str("</main></body></html>\n");
    let out = &arguments.out;
    std::fs::create_dir_all(out).map_err(Error::io(out))?;
    densely_core::fs::write(&out.join("features.jsonl"), lines.as_bytes())?;
    densely_core::fs::write(&out.join("features.html"), page.as_bytes())?;
    density(&out.join("density.svg"), "How often features fire", &logs)?;
    let silent = logs.iter().filter(|log| log.is_none()).count();
    if common.json {
        let whole = json!({
            "tokens": survey.tokens, "features": logs.len(), "silent": silent, "shown": features.len(), "folder": out,
        });
        println!("{whole}");
        return Ok(());
    }
    println!(
        "{} of {} features fire in {} tokens; {} are shown in {}",
        logs.len() - silent,
        logs.len(),
        survey.tokens,
        features.len(),
        out.join("features.html").display()
    );
    Ok(())
}

fn features(arguments: &Features, survey: &Survey) -> Result<Vec<usize>> {
    let all = survey.counts.len();
    if let Some(beyond) = arguments.chosen.iter().find(|feature| **feature >= all) {
        let reason = format!("must be below {all}, got {beyond}");
        return Err(Error::config("--features", reason));
    }
    if !arguments.chosen.is_empty() {
        return Ok(arguments.chosen.clone());
    }
    let often = survey
        .counts
        .iter()
        .enumerate()
        .filter(|(_, count)| **count >= LEAST);
    Ok(often.map(|(feature, _)| feature).take(SHOWN).collect())
}

fn head(model: &str, read: &str, survey: &Survey) -> String {
    let title = format!("Features of {} at {}", escaped(model), escaped(read));
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title><style>\n\
         :root {{ color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif }}\n\
         main {{ max-width: 60rem; margin: auto; padding: 1rem }}\n\
         h2 {{ margin: 2rem 0 .3rem; border-top: 1px solid #8886; padding-top: 1rem }}\n\
         p {{ margin: .2rem 0 }} .t {{ color: #888 }}\n\
         .e {{ font-family: ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; margin: .4rem 0 }}\n\
         .e span {{ border-radius: 2px }} .p {{ text-decoration: underline }}\n\
         </style></head><body><main><h1>{title}</h1><p>Over {} tokens. Shade: how much the feature fires at a token, of its largest value in the text; underlined: where most.</p>\n",
        survey.tokens
    )
}

fn section(
    page: &mut String,
    feature: usize,
    count: u64,
    effects: &LogitEffects,
    examples: &[Example],
) {
    let words = |side: &[(String, f64)]| {
        let each: Vec<String> = side
            .iter()
            .map(|(token, value)| format!("<b>{}</b> {value:+.2}", escaped(&format!("{token:?}"))))
            .collect();
        each.join(", ")
    };
    let _ = write!(
        page,
        "<h2 id=\"f{feature}\">Feature {feature}</h2><p class=\"t\">fires at {count} tokens</p><p>promotes {}</p><p>demotes {}</p>",
        words(&effects.0),
        words(&effects.1)
    );
    for example in examples {
        let most = example.activations.iter().copied().fold(1e-9, f32::max);
        page.push_str("<div class=\"e\">");
        for (place, (token, value)) in example.tokens.iter().zip(&example.activations).enumerate() {
            let shade = (value / most).clamp(0.0, 1.0);
            let class = if place == example.peak {
                " class=\"p\""
            } else {
                ""
            };
            let _ = write!(
                page,
                "<span{class} style=\"background:rgba(230,120,0,{shade:.2})\" title=\"{value:.3}\">{}</span>",
                escaped(&token.replace('\n', "↵\n"))
            );
        }
        page.push_str("</div>\n");
    }
}
