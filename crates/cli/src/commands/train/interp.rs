//! Recipes of the domain `interp`: `densely interp trace` or `localize` over a list of facts, or `densely interp transcoder` over texts, with the options that the recipe writes out.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::{Args, FromArgMatches};
use densely_core::{Error, Result};
use densely_train::machine;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use toml::{Table, Value as Setting};

use super::{Arguments, over_seeds};
use crate::Common;
use crate::commands::interp::localize::{self, Localize};
use crate::commands::interp::trace::{self, Trace};
use crate::commands::interp::transcoder::compare::{self, Compare};
use crate::commands::interp::transcoder::train::{self, Train};
use crate::recipe::{Recipe, StudySection};

/// `[data]`: paths in the folder that `--data-dir` names.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StudyData {
    /// Folder or GGUF file of the language model.
    model: String,
    /// List of facts.
    #[serde(default)]
    facts: Option<String>,
    /// Texts to train dictionaries on.
    #[serde(default)]
    texts: Vec<String>,
    /// Texts to judge them by.
    #[serde(default)]
    test_texts: Vec<String>,
    /// Text on which second moments of keys are measured.
    #[serde(default)]
    moments_text: Option<String>,
}

/// What one seed found.
#[derive(Debug)]
pub(crate) struct Found {
    /// Figures by name; of cross-entropies and their like less is better, of others more.
    pub(crate) figures: BTreeMap<String, f64>,
    /// Markdown: the tables, and what they say.
    pub(crate) report: String,
    /// Pictures.
    pub(crate) plots: Vec<PathBuf>,
    /// Of the model.
    pub(crate) parameters: u64,
}

pub(super) fn run(arguments: &Arguments, recipe: &Recipe, common: &Common) -> Result<()> {
    if arguments.export.is_some() {
        return Err(Error::config("--export", "is not for recipes of interp"));
    }
    let (section, options, data): (_, _, StudyData) = recipe.study(&arguments.recipe)?;
    let out = arguments
        .out
        .clone()
        .unwrap_or_else(|| Path::new("runs").join(&recipe.name));
    let resume = arguments.resume.from()?.is_some();
    // To the model's opener a path that is not there is a wrong setting; here it is a file of a data set.
    let model = arguments.data_dir.join(&data.model);
    std::fs::metadata(&model)
        .map_err(Error::io(&model))
        .map_err(|error| recipe.explain(error))?;
    let begun = Instant::now();
    let mut all = Vec::new();
    for seed in &recipe.seeds {
        let folder = out.join(format!("seed-{seed}"));
        let own = Common {
            seed: Some(*seed),
            ..common.clone()
        };
        // What is not there yet is begun.
        let resume = resume && folder.exists();
        let place = Place {
            data: &arguments.data_dir,
            folder: &folder,
            moments: &out.join("moments"),
        };
        let mut words = words(options, &data, &place, resume);
        // Activations are taken once, and are of no use behind the study.
        let store = folder.join("activations");
        if section.has_activations() {
            let mut word = OsString::from("--store=");
            word.push(&store);
            words.push(word);
        }
        let found = match section {
            StudySection::Trace => trace::study(&parse::<Trace>(section, words)?, &own),
            StudySection::Localize => localize::study(&parse::<Localize>(section, words)?, &own),
            StudySection::Transcoder => train::study(&parse::<Train>(section, words)?, &own),
            StudySection::TranscoderCompare => {
                compare::study(&parse::<Compare>(section, words)?, &own)
            }
        };
        all.push((*seed, found.map_err(|error| recipe.explain(error))?));
        if store.is_dir() {
            std::fs::remove_dir_all(&store).map_err(Error::io(&store))?;
        }
    }
    report(recipe, &all, begun.elapsed().as_secs_f64(), common)
}

/// Where a study reads and writes.
struct Place<'a> {
    data: &'a Path,
    /// Of the seed.
    folder: &'a Path,
    /// Second moments, which all seeds share.
    moments: &'a Path,
}

/// The words of the command: `threshold = 0.1` of a recipe is `--threshold=0.1`, a list is joined by commas, and `true` is a switch.
fn words(options: &Table, data: &StudyData, place: &Place, resume: bool) -> Vec<OsString> {
    let mut words = vec![place.data.join(&data.model).into_os_string()];
    let mut option = |name: &str, value: OsString| {
        let mut word = OsString::from(format!("--{name}="));
        word.push(value);
        words.push(word);
    };
    if let Some(facts) = &data.facts {
        option("facts", place.data.join(facts).into_os_string());
    }
    for (name, texts) in [("text", &data.texts), ("test-text", &data.test_texts)] {
        for text in texts {
            option(name, place.data.join(text).into_os_string());
        }
    }
    option("out", place.folder.as_os_str().to_owned());
    if let Some(text) = &data.moments_text {
        option("moments-text", place.data.join(text).into_os_string());
        option("moments-dir", place.moments.as_os_str().to_owned());
    }
    let mut switches: Vec<&str> = if resume { vec!["resume"] } else { Vec::new() };
    for (name, value) in options {
        match value {
            Setting::Boolean(true) => switches.push(name),
            Setting::Boolean(false) => {}
            value => option(&name.replace('_', "-"), text(value).into()),
        }
    }
    let switches = switches
        .iter()
        .map(|name| format!("--{}", name.replace('_', "-")).into());
    words.extend(switches);
    words
}

/// A value as a command takes it.
fn text(value: &Setting) -> String {
    match value {
        Setting::String(text) => text.clone(),
        Setting::Array(values) => values.iter().map(text).collect::<Vec<_>>().join(","),
        value => value.to_string(),
    }
}

/// The options of a command by its words.
fn parse<T: Args + FromArgMatches>(section: StudySection, words: Vec<OsString>) -> Result<T> {
    let command = clap::Command::new(section.name()).no_binary_name(true);
    let parsed = T::augment_args(command)
        .try_get_matches_from(words)
        .and_then(|matches| T::from_arg_matches(&matches));
    parsed.map_err(|error| {
        let text = error.to_string();
        // What is missing stands on lines of its own, the usage behind an empty one.
        let lines = text.lines().map(str::trim);
        let lines: Vec<&str> = lines.take_while(|line| !line.is_empty()).collect();
        let whole = lines.join(" ");
        let reason = whole.strip_prefix("error: ").unwrap_or(&whole);
        Error::config(
            section.name(),
            format!("as options of the command: {reason}"),
        )
    })
}

fn report(recipe: &Recipe, all: &[(u64, Found)], seconds: f64, common: &Common) -> Result<()> {
    let Some((_, first)) = all.first() else {
        return Ok(());
    };
    let mut metrics = Map::new();
    let names: BTreeSet<&String> = all
        .iter()
        .flat_map(|(_, found)| found.figures.keys())
        .collect();
    for name in names {
        let found: Vec<(u64, f64)> = all
            .iter()
            .filter_map(|(seed, found)| Some((*seed, *found.figures.get(name)?)))
            .collect();
        let values: Vec<f64> = found.iter().map(|(_, value)| *value).collect();
        let seeds: Vec<Value> = found
            .iter()
            .map(|(seed, value)| json!({ "seed": seed, "value": value }))
            .collect();
        let own = name.rsplit('.').next().unwrap_or_default();
        let lower = ["ce", "ce_clean", "ce_replaced", "kl", "l0", "silent"].contains(&own);
        let direction = (name.as_str(), json!(if lower { "lower" } else { "higher" }));
        metrics.insert(
            name.clone(),
            over_seeds(recipe, direction, &values, &seeds, common),
        );
    }
    let several = all.len() > 1;
    let report: Vec<String> = all
        .iter()
        .map(|(seed, found)| {
            let head = several.then(|| format!("### Seed {seed}\n\n"));
            head.unwrap_or_default() + found.report.trim_end()
        })
        .collect();
    let report = report.join("\n\n");
    if !common.json {
        println!("{report}");
        return Ok(());
    }
    let device = common.device.open()?;
    let summary = json!({
        "name": recipe.name,
        "metrics": metrics,
        "seconds": seconds,
        "peak_mb": machine::peak_rss_mb(),
        "params": first.parameters,
        "device": machine::device_name(device),
        "threads": tch::get_num_threads(),
        "plots": first.plots,
        "report": report,
    });
    println!("{summary}");
    Ok(())
}
