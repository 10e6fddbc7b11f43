//! The page and the JSON of a reproduction: published, reference, ours; and the table over all of them.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// What `densely train … --json` prints.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) metrics: BTreeMap<String, Measured>,
    pub(crate) seconds: f64,
    pub(crate) peak_mb: Option<f64>,
    pub(crate) params: Option<u64>,
    pub(crate) device: String,
    pub(crate) threads: u32,
    #[serde(default)]
    pub(crate) plots: Vec<String>,
    #[serde(default)]
    pub(crate) comparison: Option<Comparison>,
    /// Markdown: tables and findings of a study.
    #[serde(default)]
    pub(crate) report: String,
}

/// Other models and splits beside the recipe's own.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Comparison {
    pub(crate) metric: String,
    pub(crate) direction: String,
    /// The part that the models are judged on: `test` when left out, `validation` where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) part: Option<String>,
    pub(crate) rows: Vec<Compared>,
}

/// One model on one split.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Compared {
    pub(crate) model: String,
    pub(crate) split: String,
    pub(crate) seeds: Vec<Seed>,
    pub(crate) mean: f64,
    pub(crate) sd: f64,
    /// Place among the models of the split, 1 the best.
    pub(crate) rank: u32,
    pub(crate) seconds: f64,
    pub(crate) peak_mb: Option<f64>,
    /// Such as the number of parameters.
    pub(crate) note: Option<String>,
}

/// One metric over the seeds.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Measured {
    pub(crate) direction: String,
    pub(crate) seeds: Vec<Seed>,
    pub(crate) mean: f64,
    pub(crate) sd: Option<f64>,
}

/// One seed's value on the test rows.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Seed {
    pub(crate) seed: u64,
    pub(crate) value: f64,
}

/// `python/reference/<name>.json`.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Yardstick {
    pub(crate) package: String,
    pub(crate) versions: BTreeMap<String, String>,
    pub(crate) metric: String,
    pub(crate) seeds: Vec<Seed>,
    pub(crate) mean: f64,
    pub(crate) sd: Option<f64>,
    /// "quick" or "full".
    pub(crate) size: String,
}

/// `docs/src/reproduction/<name>.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Reproduction {
    pub(crate) name: String,
    pub(crate) title: String,
    /// "quick" or "full": numbers of different sizes are never compared in silence.
    pub(crate) size: String,
    pub(crate) command: String,
    pub(crate) commit: String,
    pub(crate) machine: Machine,
    pub(crate) metrics: BTreeMap<String, Metric>,
    pub(crate) seconds: f64,
    pub(crate) peak_mb: Option<f64>,
    pub(crate) params: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) comparison: Option<Comparison>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) report: String,
    pub(crate) notes: Vec<String>,
    /// Name of its files without ending.
    #[serde(skip)]
    pub(crate) stem: String,
}

/// What it ran on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) threads: u32,
    pub(crate) device: String,
}

/// One metric, three columns.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Metric {
    pub(crate) direction: String,
    pub(crate) published: Option<PublishedValue>,
    pub(crate) reference: Option<Reference>,
    pub(crate) ours: Ours,
}

/// What the paper states.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct PublishedValue {
    pub(crate) value: f64,
    pub(crate) source: String,
    pub(crate) tolerance: Option<f64>,
}

/// The authors' package on the same rows.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Reference {
    pub(crate) package: String,
    pub(crate) version: String,
    pub(crate) seeds: Vec<Seed>,
    pub(crate) mean: f64,
    pub(crate) sd: Option<f64>,
}

/// Densely.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Ours {
    pub(crate) seeds: Vec<Seed>,
    pub(crate) mean: f64,
    pub(crate) sd: Option<f64>,
}

/// Difference of two means in units of its standard error (Welch); `None` with fewer than two seeds a side or no spread.
pub(crate) fn standard_errors(ours: &Ours, reference: &Reference) -> Option<f64> {
    let variance = |sd: Option<f64>, seeds: &[Seed]| {
        (seeds.len() > 1).then_some(sd?.powi(2) / seeds.len() as f64)
    };
    let error =
        (variance(ours.sd, &ours.seeds)? + variance(reference.sd, &reference.seeds)?).sqrt();
    (error > 0.0).then(|| (ours.mean - reference.mean) / error)
}

/// `0.4509 ± 0.0012`, or the mean alone.
fn spread(mean: f64, sd: Option<f64>, count: usize) -> String {
    match sd.filter(|_| count > 1) {
        Some(sd) => format!("{mean:.4} ± {sd:.4}"),
        None => format!("{mean:.4}"),
    }
}

/// The cells metric, published, reference, ours, difference of each metric that has something to compare with;
/// of all metrics when none has.
fn rows(result: &Reproduction) -> Vec<[String; 5]> {
    let compared = |metric: &Metric| metric.published.is_some() || metric.reference.is_some();
    let any = result.metrics.values().any(compared);
    let dash = || "–".to_owned();
    result
        .metrics
        .iter()
        .filter(|(_, metric)| !any || compared(metric))
        .map(|(name, metric)| {
            let published = metric.published.as_ref().map_or_else(dash, |published| {
                let mark = if result.size == "full" {
                    ""
                } else {
                    " (full size)"
                };
                format!("{:.4}{mark}", published.value)
            });
            let reference = metric
                .reference
                .as_ref()
                .map_or_else(dash, |r| spread(r.mean, r.sd, r.seeds.len()));
            let difference = metric
                .reference
                .as_ref()
                .and_then(|reference| standard_errors(&metric.ours, reference))
                .map_or_else(dash, |errors| format!("{errors:+.1}"));
            [
                format!("{name} ({} is better)", metric.direction),
                published,
                reference,
                spread(metric.ours.mean, metric.ours.sd, metric.ours.seeds.len()),
                difference,
            ]
        })
        .collect()
}

const HEAD: &str = "| recipe | size | metric | published | reference | ours | difference, standard errors | seconds | peak MB |\n| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n";

/// The table over several reproductions; `link` turns names into links to their pages.
pub(crate) fn table(results: &[Reproduction], link: bool) -> String {
    let mut text = HEAD.to_owned();
    for result in results {
        let peak = result
            .peak_mb
            .map_or_else(|| "–".to_owned(), |peak| format!("{peak:.0}"));
        let name = if link {
            format!("[{}]({})", result.name, format_args!("{}.md", result.stem))
        } else {
            result.name.clone()
        };
        for [metric, published, reference, ours, difference] in rows(result) {
            let _ = writeln!(
                text,
                "| {name} | {} | {metric} | {published} | {reference} | {ours} | {difference} | {:.0} | {peak} |",
                result.size, result.seconds
            );
        }
    }
    text
}

/// The page of one reproduction. `plots` are links relative to the page.
pub(crate) fn page(result: &Reproduction, plots: &[String]) -> String {
    let mut text = format!(
        "<!-- Generated by `cargo xtask reproduce`. -->\n# {}\n\n",
        heading(result)
    );
    let _ = writeln!(text, "```sh\n{}\n```\n", result.command);
    text += &table(std::slice::from_ref(result), false);
    text.push('\n');
    for note in &result.notes {
        let _ = writeln!(text, "- {note}");
    }
    if !result.report.is_empty() {
        let _ = writeln!(text, "\n## What was found\n\n{}", result.report);
    }
    if let Some(comparison) = &result.comparison {
        let _ = writeln!(text, "\n## Models and splits\n");
        text += &compared(comparison);
        let part = comparison.part.as_deref().unwrap_or("test");
        let _ = writeln!(
            text,
            "\nMean ± standard deviation over the seeds on the {part} rows of each split; in brackets the place among the models of the\nsplit. Levels of two splits are those of different {part} rows."
        );
        let notes = comparison.rows.iter().filter_map(|row| {
            let note = row.note.as_deref()?;
            // What is trained beside another model has no time of its own.
            let seconds = if row.seconds > 0.0 {
                format!("{:.0}", row.seconds)
            } else {
                "–".to_owned()
            };
            Some(format!(
                "| {} | {} | {note} | {seconds} |",
                row.model, row.split
            ))
        });
        text += "\n| model | split | size | seconds, all seeds |\n| --- | --- | --- | ---: |\n";
        for note in notes {
            let _ = writeln!(text, "{note}");
        }
    }
    let _ = writeln!(
        text,
        "\n## Seeds\n\n| metric | seed | reference | ours |\n| --- | ---: | ---: | ---: |"
    );
    for (name, metric) in &result.metrics {
        for ours in &metric.ours.seeds {
            let other = metric
                .reference
                .iter()
                .flat_map(|reference| &reference.seeds)
                .find(|other| other.seed == ours.seed);
            let other = other.map_or_else(|| "–".to_owned(), |other| format!("{:.5}", other.value));
            let _ = writeln!(
                text,
                "| {name} | {} | {other} | {:.5} |",
                ours.seed, ours.value
            );
        }
    }
    text += "\nThe same seed means nothing across the two programs: their random generators are used in a different order.\n";
    let machine = &result.machine;
    let _ = writeln!(text, "\n## Run\n\n| | |\n| --- | --- |");
    let _ = writeln!(
        text,
        "| commit | `{}` |\n| machine | {}, {} threads, {} |",
        result.commit, machine.cpu, machine.threads, machine.device
    );
    let _ = writeln!(text, "| time | {:.0} s for all seeds |", result.seconds);
    if let Some(peak) = result.peak_mb {
        let _ = writeln!(text, "| peak memory | {peak:.0} MB |");
    }
    if let Some(params) = result.params {
        let _ = writeln!(text, "| parameters | {params} |");
    }
    if !plots.is_empty() {
        text += "\n## Plots\n\n";
        for plot in plots {
            let _ = writeln!(
                text,
                "![{}]({plot})",
                plot.rsplit('/').next().unwrap_or_default()
            );
        }
    }
    text
}

/// A row per model, a column per split.
pub(crate) fn compared(comparison: &Comparison) -> String {
    let mut splits: Vec<&str> = Vec::new();
    let mut models: Vec<&str> = Vec::new();
    for row in &comparison.rows {
        if !splits.contains(&row.split.as_str()) {
            splits.push(&row.split);
        }
        if !models.contains(&row.model.as_str()) {
            models.push(&row.model);
        }
    }
    let mut text = format!(
        "| {} ({} is better) | {} |\n| --- |{}\n",
        comparison.metric,
        comparison.direction,
        splits.join(" | "),
        " ---: |".repeat(splits.len())
    );
    for model in models {
        let cells = splits.iter().map(|split| {
            let row = comparison
                .rows
                .iter()
                .find(|row| row.model == model && row.split == *split);
            row.map_or_else(
                || "–".to_owned(),
                |row| format!("{:.4} ± {:.4} ({})", row.mean, row.sd, row.rank),
            )
        });
        let cells: Vec<String> = cells.collect();
        let _ = writeln!(text, "| {model} | {} |", cells.join(" | "));
    }
    text
}

/// The title of a page and of its line in the book's summary.
pub(crate) fn heading(result: &Reproduction) -> String {
    if result.size == "full" {
        result.title.clone()
    } else {
        format!("{}, {} size", result.title, result.size)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    #[test]
    fn a_comparison_has_a_row_per_model_and_a_column_per_split() {
        let row = |model: &str, split: &str, mean: f64, rank: u32| Compared {
            model: model.to_owned(),
            split: split.to_owned(),
            seeds: Vec::new(),
            mean,
            sd: 0.01,
            rank,
            seconds: 1.0,
            peak_mb: None,
            note: None,
        };
        let comparison = Comparison {
            metric: "rmse".to_owned(),
            direction: "lower".to_owned(),
            part: None,
            rows: vec![
                row("A", "time", 1.0, 1),
                row("B", "time", 2.0, 2),
                row("B", "random", 0.5, 1),
            ],
        };
        assert_eq!(
            compared(&comparison),
            "| rmse (lower is better) | time | random |\n| --- | ---: | ---: |\n\
             | A | 1.0000 ± 0.0100 (1) | – |\n| B | 2.0000 ± 0.0100 (2) | 0.5000 ± 0.0100 (1) |\n"
        );
    }

    pub(crate) fn example() -> Reproduction {
        let seeds = |values: &[f64]| {
            values
                .iter()
                .enumerate()
                .map(|(seed, value)| Seed {
                    seed: seed as u64,
                    value: *value,
                })
                .collect::<Vec<_>>()
        };
        let metric = Metric {
            direction: "lower".to_owned(),
            published: Some(PublishedValue {
                value: 0.4509,
                source: "a paper".to_owned(),
                tolerance: None,
            }),
            reference: Some(Reference {
                package: "tabm".to_owned(),
                version: "0.0.3".to_owned(),
                seeds: seeds(&[0.46, 0.47, 0.48]),
                mean: 0.47,
                sd: Some(0.01),
            }),
            ours: Ours {
                seeds: seeds(&[0.46, 0.48, 0.50]),
                mean: 0.48,
                sd: Some(0.02),
            },
        };
        Reproduction {
            name: "tabm-california".to_owned(),
            title: "TabM on California Housing".to_owned(),
            size: "quick".to_owned(),
            command: "cargo xtask reproduce tabm-california --quick".to_owned(),
            commit: "abc".to_owned(),
            machine: Machine {
                cpu: "a CPU".to_owned(),
                threads: 2,
                device: "cpu".to_owned(),
            },
            metrics: BTreeMap::from([("rmse".to_owned(), metric)]),
            seconds: 61.2,
            peak_mb: Some(512.0),
            params: Some(123),
            comparison: None,
            report: String::new(),
            notes: vec!["A note.".to_owned()],
            stem: "tabm-california".to_owned(),
        }
    }

    #[test]
    fn the_difference_is_told_in_standard_errors() {
        let result = example();
        let metric = &result.metrics["rmse"];
        let Some(reference) = &metric.reference else {
            panic!("the example has a reference")
        };
        // 0.01 / sqrt(0.02²/3 + 0.01²/3)
        let errors = standard_errors(&metric.ours, reference).unwrap_or(f64::NAN);
        assert!((errors - 0.774_596_669).abs() < 1e-6, "{errors}");
        let mut one = metric.ours.clone();
        one.seeds.truncate(1);
        assert_eq!(standard_errors(&one, reference), None);
    }

    #[test]
    fn a_quick_result_says_that_the_published_one_is_of_another_size() {
        let table = table(&[example()], true);
        assert!(table.contains("| [tabm-california](tabm-california.md) | quick | rmse (lower is better) | 0.4509 (full size) | 0.4700 ± 0.0100 | 0.4800 ± 0.0200 | +0.8 | 61 | 512 |"), "{table}");
    }

    #[test]
    fn the_page_holds_command_seeds_notes_and_plots() {
        let text = page(&example(), &["plots/a.svg".to_owned()]);
        for part in [
            "# TabM on California Housing, quick size",
            "cargo xtask reproduce",
            "- A note.",
            "| rmse | 1 | 0.47000 | 0.48000 |",
            "![a.svg](plots/a.svg)",
            "`abc`",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }

    #[test]
    fn a_comparison_without_a_test_part_says_so() -> anyhow::Result<()> {
        let mut result = example();
        for (part, words) in [
            ("", "the test rows"),
            (r#""part":"validation","#, "the validation rows"),
        ] {
            let json = format!(r#"{{"metric":"accuracy","direction":"higher",{part}"rows":[]}}"#);
            result.comparison = Some(serde_json::from_str(&json)?);
            let text = page(&result, &[]);
            assert!(text.contains(words), "{text}");
            assert_eq!(text.contains("test rows"), part.is_empty());
        }
        Ok(())
    }

    #[test]
    fn what_the_program_prints_is_read() -> anyhow::Result<()> {
        let outcome: Outcome = serde_json::from_str(
            r#"{"name":"x","metrics":{"rmse":{"direction":"lower","seeds":[{"seed":0,"value":0.45,"valid":null}],"mean":0.45,"sd":0.0}},"seconds":1.5,"peak_mb":null,"params":10,"device":"cpu","threads":2,"plots":["runs/x/plots/loss.svg"]}"#,
        )?;
        assert_eq!((outcome.plots.len(), outcome.peak_mb), (1, None));
        Ok(())
    }
}
