//! `report.md`: what a run did and reached, for people.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use densely_core::{Error, Result};
use serde_json::Value;

use crate::machine::Env;
use crate::metrics::Metric;
use crate::run::read_log;

/// One measured value.
#[derive(Debug, Clone, PartialEq)]
pub struct Score {
    /// What it was measured on, such as `validation` or `test`.
    pub part: String,
    /// What was measured.
    pub metric: Metric,
    /// The value, in the metric's unit.
    pub value: f64,
}

/// What a domain knows about its run, beyond what the run folder holds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// Heading.
    pub title: String,
    /// Short facts, name and value: model, parameters, rows.
    pub facts: Vec<(String, String)>,
    /// Results of the best epoch.
    pub scores: Vec<Score>,
    /// Tables of the domain, behind the results.
    pub sections: Vec<Section>,
    /// Things that the reader should know, one sentence each.
    pub notes: Vec<String>,
}

/// A table with a heading.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Section {
    /// Heading.
    pub title: String,
    /// Names of the columns.
    pub header: Vec<String>,
    /// As many cells each as the header has.
    pub rows: Vec<Vec<String>>,
    /// A sentence below; may be empty.
    pub text: String,
}

/// Writes `report.md` into the run folder `dir`: facts, scores, the course of training, plots found in `plots/`,
/// settings and surroundings.
///
/// # Errors
/// [`Error::Io`]; [`Error::Corrupt`] when the log is not readable.
pub fn write(dir: &Path, report: &Report) -> Result<PathBuf> {
    let path = dir.join("report.md");
    densely_core::fs::write(&path, text(dir, report)?.as_bytes())?;
    Ok(path)
}

fn text(dir: &Path, report: &Report) -> Result<String> {
    let mut out = format!("# {}\n\n", report.title);
    let mut facts: Vec<(String, String)> = report.facts.clone();
    facts.extend(course(dir)?);
    if let Ok(env) = read(&dir.join("env.json")).and_then(|text| {
        serde_json::from_str::<Env>(&text)
            .map_err(|e| Error::corrupt(dir.join("env.json"), e.to_string()))
    }) {
        let Env {
            crate_version,
            libtorch_version,
            threads,
            device,
            cpu,
            os,
            commit,
        } = env;
        facts.push((
            "machine".to_owned(),
            format!("{cpu}, {os}, {threads} threads, device {device}"),
        ));
        let commit = commit.map_or_else(String::new, |commit| format!(", commit {commit}"));
        let versions = format!("densely {crate_version}, libtorch {libtorch_version}{commit}");
        facts.push(("versions".to_owned(), versions));
    }
    table(
        &mut out,
        &["", ""],
        facts.into_iter().map(|(name, value)| vec![name, value]),
    );

    if !report.scores.is_empty() {
        out.push_str("## Results\n\n");
        let rows = report.scores.iter().map(|score| {
            let better = match score.metric.direction() {
                crate::metrics::Direction::Lower => "lower",
                crate::metrics::Direction::Higher => "higher",
            };
            let value = format!("{:.6}", score.value);
            let metric = score.metric;
            vec![
                score.part.clone(),
                metric.name().to_owned(),
                value,
                metric.unit().to_owned(),
                better.to_owned(),
            ]
        });
        table(&mut out, &["on", "metric", "value", "unit", "better"], rows);
    }
    for section in &report.sections {
        put(&mut out, &format!("## {}\n\n", section.title));
        let header: Vec<&str> = section.header.iter().map(String::as_str).collect();
        table(&mut out, &header, section.rows.iter().cloned());
        if !section.text.is_empty() {
            put(&mut out, &format!("{}\n\n", section.text));
        }
    }
    if !report.notes.is_empty() {
        out.push_str("## Notes\n\n");
        for note in &report.notes {
            put(&mut out, &format!("- {note}\n"));
        }
        out.push('\n');
    }
    let plots = plots(dir);
    if !plots.is_empty() {
        out.push_str("## Plots\n\n");
        for name in plots {
            put(
                &mut out,
                &format!("![{}](plots/{name})\n\n", name.trim_end_matches(".svg")),
            );
        }
    }
    let config = read(&dir.join("config.toml"))?;
    put(
        &mut out,
        &format!("## Settings\n\n```toml\n{}\n```\n", config.trim_end()),
    );
    Ok(out)
}

/// How the training went, from the log.
fn course(dir: &Path) -> Result<Vec<(String, String)>> {
    let lines = read_log(dir)?;
    let epochs: Vec<&Value> = lines
        .iter()
        .filter(|line| line["kind"] == "epoch")
        .collect();
    let mut facts = Vec::new();
    let Some(end) = epochs.last() else {
        return Ok(facts);
    };
    let plain = format!("{} epochs, {} steps", epochs.len(), end["step"]);
    facts.push(("training".to_owned(), plain));
    if let Some(best) = epochs.iter().rev().find(|line| line["improved"] == true) {
        let text = format!(
            "epoch {} with validation score {}",
            best["epoch"].as_u64().unwrap_or(0) + 1,
            short(&best["score"])
        );
        facts.push(("best".to_owned(), text));
    }
    let (mut seconds, mut peak) = (0.0, 0.0_f64);
    // An epoch that was made twice, because of a kill, took its time twice.
    for line in read(&dir.join("timing.jsonl")).unwrap_or_default().lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_default();
        seconds += line["seconds"].as_f64().unwrap_or(0.0);
        peak = peak.max(line["peak_rss_mb"].as_f64().unwrap_or(0.0));
    }
    facts.push(("time in epochs".to_owned(), format!("{seconds:.1} s")));
    if peak > 0.0 {
        facts.push(("peak memory".to_owned(), format!("{peak:.0} MB resident")));
    }
    Ok(facts)
}

fn short(value: &Value) -> String {
    value
        .as_f64()
        .map_or_else(|| value.to_string(), |value| format!("{value:.6}"))
}

fn plots(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir.join("plots"))
        .into_iter()
        .flatten()
        .flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| Path::new(name).extension().is_some_and(|end| end == "svg"))
        .collect();
    names.sort();
    names
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(Error::io(path))
}

fn table(out: &mut String, head: &[&str], rows: impl Iterator<Item = Vec<String>>) {
    put(
        out,
        &format!(
            "| {} |\n|{}\n",
            head.join(" | "),
            " --- |".repeat(head.len())
        ),
    );
    for row in rows {
        // A bar inside a cell would end it.
        let cells: Vec<String> = row.iter().map(|cell| cell.replace('|', "\\|")).collect();
        put(out, &format!("| {} |\n", cells.join(" | ")));
    }
    out.push('\n');
}

fn put(out: &mut String, text: &str) {
    let _ = out.write_str(text); // writing to a String cannot fail
}
