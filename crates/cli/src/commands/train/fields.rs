//! Recipes of the domain `fields`: networks fitted to signals, each signal on its own.

use std::path::{Path, PathBuf};
use std::time::Instant;

use densely_core::{Error, Result};
use densely_fields::fit::{AutoOptions, FieldSettings};
use densely_train::machine::device_name;
use densely_train::plot::{self, Axes, Series};
use densely_train::run::read_log;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tch::get_num_threads;

use super::{Arguments, over_seeds};
use crate::Common;
use crate::commands::field::fit::{Fitted, Job, choose};
use crate::commands::field::line;
use crate::compare::{MODELS, check_names, mean_sd, slug};
use crate::recipe::{Changes, Recipe};

/// What runs beside.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Compare {
    /// Other models.
    models: Vec<Changes>,
    /// Values of a setting, each of which is trained, against the one that `FreSh` chooses.
    sweep: Option<Sweep>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sweep {
    /// A setting of the model's config.
    setting: String,
    /// Its values, ascending.
    values: Vec<f64>,
    /// How the frequency is chosen.
    #[serde(default)]
    auto: AutoOptions,
}

/// A model on all signals.
struct Entry {
    name: String,
    /// By signal.
    settings: Vec<FieldSettings>,
    folder: PathBuf,
}

/// What a model reached on a signal with a seed.
struct Cell {
    seed: u64,
    signal: usize,
    scores: Vec<(&'static str, f64)>,
}

/// What a model reached.
struct Row {
    name: String,
    cells: Vec<Cell>,
    seconds: f64,
    peak_mb: Option<f64>,
    parameters: u64,
    /// The run folder of the first seed on the first signal.
    folder: PathBuf,
}

impl Row {
    /// The mean of a score over the signals, by seed.
    fn by_seed(&self, score: &str, seeds: &[u64]) -> Vec<(u64, f64)> {
        let mean = |seed: u64| {
            let values: Vec<f64> = self
                .cells
                .iter()
                .filter(|cell| cell.seed == seed)
                .filter_map(|cell| value_of(&cell.scores, score))
                .collect();
            // A score that a signal lacks, such as the distance of a surface that is not there, has no mean.
            if values.len() < self.cells.iter().filter(|cell| cell.seed == seed).count() {
                return f64::NAN;
            }
            values.iter().sum::<f64>() / values.len() as f64
        };
        seeds.iter().map(|seed| (*seed, mean(*seed))).collect()
    }
}

fn value_of(scores: &[(&'static str, f64)], score: &str) -> Option<f64> {
    let found = scores.iter().find(|(name, _)| *name == score);
    found.map(|(_, value)| *value)
}

pub(super) fn run(arguments: &Arguments, recipe: &Recipe, common: &Common) -> Result<()> {
    if arguments.export.is_some() {
        return Err(Error::config("--export", "is not for recipes of fields"));
    }
    let compare: Compare = recipe.compare(&arguments.recipe)?.unwrap_or_default();
    check_names(
        MODELS,
        compare.models.iter().map(|changes| changes.name.as_str()),
    )?;
    if compare.sweep.is_some() && !compare.models.is_empty() {
        return Err(Error::config(
            "compare",
            "holds models and a sweep; take a recipe for each",
        ));
    }
    let files = recipe.signals(&arguments.recipe)?;
    let out = arguments
        .out
        .clone()
        .unwrap_or_else(|| Path::new("runs").join(&recipe.name));
    let settings = |changes: &Changes| -> Result<Vec<FieldSettings>> {
        files
            .iter()
            .map(|file| recipe.field_settings(changes, file, &arguments.recipe))
            .collect()
    };
    let own = settings(&Changes::default())?;
    let mut entries = vec![Entry {
        name: own[0].model.preset.clone(),
        settings: own,
        folder: out.clone(),
    }];
    for changes in &compare.models {
        entries.push(Entry {
            name: changes.name.clone(),
            settings: settings(changes)?,
            folder: out.join("comparison").join(slug(&changes.name)),
        });
    }
    let mut bench = Bench {
        arguments,
        recipe,
        common,
        files: &files,
        device: common.device.open()?,
        plots: Vec::new(),
    };
    let mut rows = Vec::new();
    for (place, entry) in entries.iter().enumerate() {
        rows.push(bench.row(entry, place == 0)?);
    }
    if rows.len() > 1 {
        bench.plots.push(curves(&rows, recipe, &out)?);
    }
    let mut metrics = bench.metrics(&rows[0]);
    let mut comparison = if rows.len() > 1 {
        bench.comparison(&rows)
    } else {
        Value::Null
    };
    if let Some(sweep) = &compare.sweep {
        let found = bench.sweep(sweep, &entries[0].settings, &out)?;
        metrics.extend(found.metrics);
        comparison = found.comparison;
    }
    if common.json {
        let seconds: f64 = rows.first().map_or(0.0, |row| row.seconds);
        let summary = json!({
            "name": recipe.name,
            "metrics": metrics,
            "seconds": seconds,
            "peak_mb": rows[0].peak_mb,
            "params": rows[0].parameters,
            "device": device_name(bench.device),
            "threads": get_num_threads(),
            "plots": bench.plots,
            "comparison": comparison,
        });
        println!("{summary}");
    }
    Ok(())
}

/// What all trainings of a recipe share.
struct Bench<'a> {
    arguments: &'a Arguments,
    recipe: &'a Recipe,
    common: &'a Common,
    files: &'a [String],
    device: tch::Device,
    plots: Vec<PathBuf>,
}

impl Bench<'_> {
    /// Trains one model on one signal.
    fn one(
        &self,
        title: &str,
        settings: &FieldSettings,
        signal: usize,
        seed: u64,
        folder: &Path,
    ) -> Result<Fitted> {
        let file = &self.files[signal];
        let job = Job {
            title,
            settings,
            folder: &self.arguments.data_dir,
            signal: &self.arguments.data_dir.join(file),
            choice: None,
            preview: None,
        };
        let resume = self.arguments.resume.from()?;
        let fitted = job
            .run(folder, seed, self.device, resume, self.common)
            .map_err(|error| self.recipe.explain(error))?;
        if !self.common.json {
            println!(
                "{title}, {file}, seed {seed}: {}; {:.1} s; report in {}",
                line(&fitted.outcome.scores),
                fitted.outcome.seconds,
                folder.join("report.md").display()
            );
        }
        Ok(fitted)
    }

    fn row(&mut self, entry: &Entry, own: bool) -> Result<Row> {
        let place = |seed: u64, signal: usize| {
            let folder = entry.folder.join(format!("seed-{seed}"));
            if self.files.len() > 1 {
                folder.join(slug(&self.files[signal]))
            } else {
                folder
            }
        };
        let mut row = Row {
            name: entry.name.clone(),
            cells: Vec::new(),
            seconds: 0.0,
            peak_mb: None,
            parameters: 0,
            folder: place(self.recipe.seeds[0], 0),
        };
        let mut plots = Vec::new();
        for seed in &self.recipe.seeds {
            for (signal, settings) in entry.settings.iter().enumerate() {
                let folder = place(*seed, signal);
                let fitted = self.one(&entry.name, settings, signal, *seed, &folder)?;
                let outcome = fitted.outcome;
                row.seconds += outcome.seconds;
                row.peak_mb = [row.peak_mb, outcome.peak_mb]
                    .into_iter()
                    .flatten()
                    .reduce(f64::max);
                row.parameters = outcome.parameters;
                if signal == 0 && *seed == self.recipe.seeds[0] {
                    let shown = fitted.plots.into_iter().filter(|path| {
                        let name = path.file_stem().unwrap_or_default();
                        // Of the others the picture alone: curves of all are in one plot.
                        own || name == "reconstruction" || name == "views"
                    });
                    plots.extend(shown);
                }
                row.cells.push(Cell {
                    seed: *seed,
                    signal,
                    scores: outcome.scores,
                });
            }
        }
        self.plots.extend(plots);
        Ok(row)
    }

    /// Each score of the recipe's own model over the seeds: printed, and as JSON.
    fn metrics(&self, row: &Row) -> Map<String, Value> {
        let mut metrics = Map::new();
        let Some(first) = row.cells.first() else {
            return metrics;
        };
        for (name, _) in &first.scores {
            let found = row.by_seed(name, &self.recipe.seeds);
            let values: Vec<f64> = found.iter().map(|(_, value)| *value).collect();
            let seeds: Vec<Value> = found
                .iter()
                .map(|(seed, value)| json!({ "seed": seed, "value": value }))
                .collect();
            let metric = over_seeds(
                self.recipe,
                (name, json!(direction(name))),
                &values,
                &seeds,
                self.common,
            );
            metrics.insert((*name).to_owned(), metric);
        }
        metrics
    }

    /// All models by their scores: of all signals, and of each.
    fn comparison(&self, rows: &[Row]) -> Value {
        let names: Vec<&str> = rows[0].cells[0]
            .scores
            .iter()
            .map(|(name, _)| *name)
            .collect();
        let metric = names[0];
        let mut table = Vec::new();
        for name in names
            .iter()
            .filter(|name| name.starts_with("psnr") || **name == metric)
        {
            let split = if *name == metric {
                format!("mean of {} signals", self.files.len())
            } else {
                format!("{name}, mean of {} signals", self.files.len())
            };
            let values: Vec<Vec<(u64, f64)>> = rows
                .iter()
                .map(|row| row.by_seed(name, &self.recipe.seeds))
                .collect();
            table.extend(lines(rows, &split, &values));
        }
        if self.files.len() > 1 {
            for (signal, file) in self.files.iter().enumerate() {
                let of = |row: &Row| -> Vec<(u64, f64)> {
                    let cells = row.cells.iter().filter(|cell| cell.signal == signal);
                    cells
                        .filter_map(|cell| Some((cell.seed, value_of(&cell.scores, metric)?)))
                        .collect()
                };
                let values: Vec<Vec<(u64, f64)>> = rows.iter().map(of).collect();
                table.extend(lines(rows, file, &values));
            }
        }
        json!({ "metric": metric, "direction": direction(metric), "rows": table })
    }
}

/// Rows of a table: each model's values over the seeds on one part.
fn lines(rows: &[Row], split: &str, values: &[Vec<(u64, f64)>]) -> Vec<Value> {
    let of = |values: &[(u64, f64)]| {
        let values: Vec<f64> = values.iter().map(|(_, value)| *value).collect();
        mean_sd(&values)
    };
    let means: Vec<f64> = values.iter().map(|values| of(values).0).collect();
    rows.iter()
        .zip(values)
        .map(|(row, seeds)| {
            let (mean, sd) = of(seeds);
            let seeds = seeds
                .iter()
                .map(|(seed, value)| json!({ "seed": seed, "value": value }));
            json!({
                "model": row.name,
                "split": split,
                "seeds": seeds.collect::<Vec<_>>(),
                "mean": mean,
                "sd": sd,
                "rank": 1 + means.iter().filter(|other| **other > mean).count(),
                "seconds": row.seconds,
                "peak_mb": row.peak_mb,
                "note": format!("{} parameters", row.parameters),
            })
        })
        .collect()
}

const fn direction(score: &str) -> &'static str {
    match score.as_bytes() {
        b"chamfer" | b"distance_error" => "lower",
        _ => "higher",
    }
}

/// The score by step, a line per model, of the first seed on the first signal.
fn curves(rows: &[Row], recipe: &Recipe, out: &Path) -> Result<PathBuf> {
    let mut series = Vec::new();
    for row in rows {
        let log = read_log(&row.folder)?;
        let epochs = log.iter().filter(|line| line["kind"] == "epoch");
        let points =
            epochs.filter_map(|line| Some((line["step"].as_f64()?, line["score"].as_f64()?)));
        series.push(Series {
            name: row.name.clone(),
            points: points.collect(),
        });
    }
    let path = out.join("comparison.svg");
    let title = format!("{}: score while it trains", recipe.name);
    plot::line(
        &path,
        &Axes::new(title, "step", "PSNR [dB], or error of distances"),
        &series,
    )?;
    Ok(path)
}

/// What a sweep found.
struct Swept {
    metrics: Map<String, Value>,
    comparison: Value,
}

/// One signal of a sweep.
struct Searched {
    /// Score of each value.
    scores: Vec<f64>,
    chosen: usize,
    fresh_seconds: f64,
    sweep_seconds: f64,
}

impl Searched {
    fn best(&self) -> usize {
        let better = |a: &usize, b: &usize| self.scores[*a].total_cmp(&self.scores[*b]);
        (0..self.scores.len()).max_by(better).unwrap_or(0)
    }
}

impl Bench<'_> {
    /// Trains every value of a setting on every signal with the first seed, and compares the best with the one that spectra choose.
    fn sweep(&mut self, sweep: &Sweep, own: &[FieldSettings], out: &Path) -> Result<Swept> {
        let seed = self.recipe.seeds[0];
        if !sweep.values.is_sorted() || sweep.values.is_empty() {
            return Err(Error::config("compare.sweep.values", "must ascend"));
        }
        let mut found = Vec::new();
        let mut lines_of = Vec::new();
        for (signal, settings) in own.iter().enumerate() {
            let file = self.files[signal].clone();
            let mut chosen = settings.clone();
            chosen.model.config.remove(&sweep.setting);
            let start = Instant::now();
            let auto = AutoOptions {
                values: sweep.values.clone(),
                ..sweep.auto.clone()
            };
            let folder = &self.arguments.data_dir;
            let choice = choose(&mut chosen, folder, &auto, self.device, self.common)?;
            if choice.chosen.setting != sweep.setting {
                let reason = format!(
                    "must be `{}`, which is what is chosen",
                    choice.chosen.setting
                );
                return Err(Error::config("compare.sweep.setting", reason));
            }
            let fresh_seconds = start.elapsed().as_secs_f64();
            let nearest = sweep
                .values
                .iter()
                .position(|value| value.total_cmp(&choice.chosen.value).is_eq());
            let Some(chosen) = nearest else {
                let reason = format!("must hold {}, which was chosen", choice.chosen.value);
                return Err(Error::config("compare.sweep.values", reason));
            };
            let (mut scores, mut sweep_seconds) = (Vec::new(), 0.0);
            for value in &sweep.values {
                let mut settings = settings.clone();
                let config = &mut settings.model.config;
                config.insert(sweep.setting.clone(), json!(value));
                let name = format!("{} {value}", sweep.setting);
                let folder = out.join("sweep").join(slug(&file)).join(slug(&name));
                let fitted = self.one(&name, &settings, signal, seed, &folder)?;
                // By what was held out, where something was.
                let of = &fitted.outcome.scores;
                let score = value_of(of, "psnr_test").unwrap_or(of[0].1);
                scores.push(score);
                sweep_seconds += fitted.outcome.seconds;
            }
            lines_of.push(Series {
                name: file,
                points: sweep
                    .values
                    .iter()
                    .copied()
                    .zip(scores.iter().copied())
                    .collect(),
            });
            found.push(Searched {
                scores,
                chosen,
                fresh_seconds,
                sweep_seconds,
            });
        }
        let path = out.join("sweep.svg");
        let title = format!("{}: score by {}", self.recipe.name, sweep.setting);
        plot::line(
            &path,
            &Axes::new(title, sweep.setting.clone(), "PSNR [dB]"),
            &lines_of,
        )?;
        self.plots.push(path);
        Ok(self.swept(sweep, &found, seed))
    }

    fn swept(&self, sweep: &Sweep, found: &[Searched], seed: u64) -> Swept {
        let within = found
            .iter()
            .filter(|one| one.chosen.abs_diff(one.best()) <= 1)
            .count();
        let sum = |of: fn(&Searched) -> f64| found.iter().map(of).sum::<f64>();
        let gap = sum(|one| one.scores[one.best()] - one.scores[one.chosen]) / found.len() as f64;
        let share = sum(|one| one.fresh_seconds) / sum(|one| one.sweep_seconds);
        let mut metrics = Map::new();
        for (name, better, value) in [
            ("within_one_step", "higher", within as f64),
            ("gap_to_best_db", "lower", gap),
            ("time_share", "lower", share),
        ] {
            let seeds = [json!({ "seed": seed, "value": value })];
            let metric = over_seeds(
                self.recipe,
                (name, json!(better)),
                &[value],
                &seeds,
                self.common,
            );
            metrics.insert(name.to_owned(), metric);
        }
        let mut rows = Vec::new();
        for (one, file) in found.iter().zip(self.files) {
            for (model, place, seconds) in [
                ("chosen by spectra", one.chosen, one.fresh_seconds),
                ("best of the sweep", one.best(), one.sweep_seconds),
            ] {
                let value = one.scores[place];
                let better = usize::from(value < one.scores[one.best()]);
                rows.push(json!({
                    "model": model,
                    "split": file,
                    "seeds": [{ "seed": seed, "value": value }],
                    "mean": value,
                    "sd": 0.0,
                    "rank": 1 + better,
                    "seconds": seconds,
                    "peak_mb": null,
                    "note": format!("{} {}", sweep.setting, sweep.values[place]),
                }));
            }
        }
        Swept {
            metrics,
            comparison: json!({ "metric": "psnr", "direction": "higher", "rows": rows }),
        }
    }
}
