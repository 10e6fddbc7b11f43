//! A recipe's comparison: several models on several splits of the same table, each with all seeds.

use std::path::{Path, PathBuf};

use densely_core::{Error, Result, tch};
use densely_data::Table;
use densely_data::split::SplitConfig;
use densely_tabular::fit::Prepared;
use densely_tabular::settings::FitSettings;
use densely_tabular::trees::{TreesSettings, fit_trees};
use densely_train::metrics::Metric;
use densely_train::plot::{self, Axes, Dots};
use densely_train::run::ResumeFrom;
use serde::Deserialize;
use serde_json::{Value, json};
use toml::Table as Toml;

use crate::Common;
use crate::fitting::{self, Fitted, Job};
use crate::recipe;

/// `[compare]` of a recipe.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Compare {
    /// The splits, in the order of the table; the first is what the others are compared with.
    splits: Vec<NamedSplit>,
    /// The models.
    models: Vec<Entry>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct NamedSplit {
    name: String,
    split: SplitConfig,
}

/// A model: the recipe's own with changes, or trees.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    /// Takes the place of the recipe's `[model]`.
    #[serde(default)]
    model: Option<Toml>,
    /// Changes of the recipe's `[train]`.
    #[serde(default)]
    train: Toml,
    /// Gradient-boosted trees instead of a network.
    #[serde(default)]
    trees: Option<TreesSettings>,
}

/// What a comparison runs on.
pub(crate) struct Input<'a> {
    pub(crate) recipe: &'a recipe::Recipe,
    pub(crate) recipe_path: &'a Path,
    pub(crate) table: &'a Table,
    pub(crate) table_path: &'a Path,
    pub(crate) settings: &'a FitSettings,
    pub(crate) device: tch::Device,
    pub(crate) resume: Option<ResumeFrom>,
    /// What the recipe itself reached: it is not trained twice.
    pub(crate) own: &'a [(u64, Fitted)],
}

/// One model on one split.
struct Cell {
    model: String,
    split: String,
    seeds: Vec<(u64, f64)>,
    seconds: f64,
    peak_mb: Option<f64>,
    note: Option<String>,
}

impl Cell {
    fn new(entry: &Entry, split: &str) -> Self {
        Self {
            model: entry.name.clone(),
            split: split.to_owned(),
            seeds: Vec::new(),
            seconds: 0.0,
            peak_mb: None,
            note: None,
        }
    }

    fn add(&mut self, seed: u64, fitted: &Fitted, metric: Metric) -> Result<()> {
        let outcome = &fitted.outcome;
        self.seeds.push((seed, value_of(&outcome.test, metric)?));
        self.seconds += outcome.seconds;
        let peaks = [self.peak_mb, outcome.peak_mb].into_iter().flatten();
        self.peak_mb = peaks.reduce(f64::max);
        self.note = Some(format!("{} parameters", outcome.parameters));
        Ok(())
    }

    fn values(&self) -> Vec<f64> {
        self.seeds.iter().map(|(_, value)| *value).collect()
    }
}

impl Compare {
    /// Checks the names of models and splits.
    ///
    /// # Errors
    /// Those of [`check_names`].
    pub(crate) fn check(&self) -> Result<()> {
        let splits = self.splits.iter().map(|split| split.name.as_str());
        check_names("compare.splits", splits)?;
        check_names(MODELS, self.models.iter().map(|entry| entry.name.as_str()))
    }

    /// Fits every model on every split; the runs are in `folder`.
    ///
    /// Returns the table as JSON and the plot.
    /// # Errors
    /// [`Error::Corrupt`] for settings of a model that do not fit; those of the fits.
    pub(crate) fn run(
        &self,
        input: &Input,
        folder: &Path,
        common: &Common,
    ) -> Result<(Value, PathBuf)> {
        let mut cells = Vec::new();
        let mut chosen = None;
        for NamedSplit { name, split } in &self.splits {
            let mut data = input.settings.data.clone();
            data.split = Some(split.clone());
            let prepared = Prepared::new(input.table, &data)?;
            let metric = input.settings.train.metric(prepared.task)?;
            chosen = Some(metric);
            for entry in &self.models {
                if !common.quiet {
                    eprintln!("{} on the split `{name}`", entry.name);
                }
                let own = input.settings.data.split.as_ref() == Some(split)
                    && entry.model.is_none()
                    && entry.train.is_empty();
                let cell = match &entry.trees {
                    None if own => {
                        let mut cell = Cell::new(entry, name);
                        for (seed, fitted) in input.own {
                            cell.add(*seed, fitted, metric)?;
                        }
                        cell
                    }
                    Some(trees) => grow(entry, trees, name, input, &prepared, metric)?,
                    None => {
                        let folder = folder.join(slug(name)).join(slug(&entry.name));
                        train(entry, name, input, &prepared, metric, &folder, common)?
                    }
                };
                cells.push(cell);
            }
        }
        let metric = chosen.ok_or_else(|| Error::config("compare.splits", "must name a split"))?;
        if !common.json {
            self.print(&cells, metric);
        }
        let path = folder.join("comparison.svg");
        self.plot(&cells, metric, input, &path)?;
        Ok((self.json(&cells, metric), path))
    }

    fn of<'a>(&self, cells: &'a [Cell], split: &str) -> Vec<&'a Cell> {
        let cell = |entry: &Entry| {
            cells
                .iter()
                .find(|c| c.split == split && c.model == entry.name)
        };
        self.models.iter().filter_map(cell).collect()
    }

    fn print(&self, cells: &[Cell], metric: Metric) {
        let width = self.models.iter().map(|m| m.name.chars().count()).max();
        let width = width.unwrap_or(0).max(5);
        let splits: Vec<&str> = self.splits.iter().map(|s| s.name.as_str()).collect();
        print!("{:<width$}", metric.name());
        for split in &splits {
            print!("  {split:<22}");
        }
        println!();
        for entry in &self.models {
            print!("{:<width$}", entry.name);
            for split in &splits {
                let cell = self
                    .of(cells, split)
                    .into_iter()
                    .find(|c| c.model == entry.name);
                let text = cell.map_or_else(String::new, |cell| {
                    let (mean, sd) = mean_sd(&cell.values());
                    let rank = rank(&self.of(cells, split), &cell.model, metric);
                    format!("{mean:.4} ± {sd:.4} ({rank})")
                });
                print!("  {text:<22}");
            }
            println!();
        }
    }

    fn plot(&self, cells: &[Cell], metric: Metric, input: &Input, path: &Path) -> Result<()> {
        let labels: Vec<String> = self.models.iter().map(|entry| entry.name.clone()).collect();
        let series: Vec<Dots> = self
            .splits
            .iter()
            .map(|split| Dots {
                name: format!("split `{}`", split.name),
                values: self
                    .of(cells, &split.name)
                    .iter()
                    .map(|cell| mean_sd(&cell.values()))
                    .collect(),
            })
            .collect();
        let better = match metric.direction() {
            densely_train::metrics::Direction::Lower => "lower is better",
            densely_train::metrics::Direction::Higher => "higher is better",
        };
        let x = format!("test {} [{}], {better}", metric.name(), metric.unit());
        let title = format!("{}: mean and spread over the seeds", input.recipe.name);
        plot::dots(path, &Axes::new(title, x, ""), &labels, &series)
    }

    fn json(&self, cells: &[Cell], metric: Metric) -> Value {
        let row = |cell: &Cell| {
            let (mean, sd) = mean_sd(&cell.values());
            let seeds: Vec<Value> = cell
                .seeds
                .iter()
                .map(|(seed, value)| json!({ "seed": seed, "value": value }))
                .collect();
            json!({
                "model": cell.model,
                "split": cell.split,
                "seeds": seeds,
                "mean": mean,
                "sd": sd,
                "rank": rank(&self.of(cells, &cell.split), &cell.model, metric),
                "seconds": cell.seconds,
                "peak_mb": cell.peak_mb,
                "note": cell.note,
            })
        };
        json!({
            "metric": metric.name(),
            "direction": metric.direction(),
            "rows": cells.iter().map(row).collect::<Vec<_>>(),
        })
    }
}

/// The place of the model among those of its split, by mean; 1 is the best.
fn rank(cells: &[&Cell], model: &str, metric: Metric) -> usize {
    let mean = |cell: &Cell| mean_sd(&cell.values()).0;
    let own = cells
        .iter()
        .find(|cell| cell.model == model)
        .map(|cell| mean(cell));
    let better = |cell: &&&Cell| own.is_some_and(|own| metric.is_better(mean(cell), own));
    cells.iter().filter(better).count() + 1
}

fn train(
    entry: &Entry,
    split: &str,
    input: &Input,
    prepared: &Prepared,
    metric: Metric,
    folder: &Path,
    common: &Common,
) -> Result<Cell> {
    let settings =
        input
            .recipe
            .with_model(entry.model.as_ref(), &entry.train, input.recipe_path)?;
    let title = format!(
        "{}: {} on the split `{split}`",
        input.recipe.title, entry.name
    );
    let job = Job {
        title: &title,
        prepared,
        settings: &settings,
        table: input.table_path,
    };
    let mut cell = Cell::new(entry, split);
    for seed in &input.recipe.seeds {
        let folder = folder.join(format!("seed-{seed}"));
        let fitted = fitting::run(&job, &folder, *seed, input.device, input.resume, common)?;
        cell.add(*seed, &fitted, metric)?;
    }
    Ok(cell)
}

fn grow(
    entry: &Entry,
    trees: &TreesSettings,
    split: &str,
    input: &Input,
    prepared: &Prepared,
    metric: Metric,
) -> Result<Cell> {
    let mut cell = Cell::new(entry, split);
    for seed in &input.recipe.seeds {
        let outcome = fit_trees(input.table, prepared, metric, *seed, trees)?;
        cell.seeds.push((*seed, value_of(&outcome.test, metric)?));
        cell.seconds += outcome.seconds;
        cell.note = Some(format!("depth {}, {} trees", outcome.depth, outcome.trees));
    }
    Ok(cell)
}

fn value_of(scores: &[(Metric, f64)], metric: Metric) -> Result<f64> {
    let found = scores.iter().find(|(other, _)| *other == metric);
    found.map(|(_, value)| *value).ok_or_else(|| {
        let reason = format!("{} is not defined on the test rows", metric.name());
        Error::config("train.metric", reason)
    })
}

/// The field that holds the models of a comparison.
pub(crate) const MODELS: &str = "compare.models";

/// Fails unless each model or split of a comparison has a name, and a folder that is no other's.
///
/// # Errors
/// [`Error::Config`] of `field` with the names.
pub(crate) fn check_names<'a>(field: &str, names: impl Iterator<Item = &'a str>) -> Result<()> {
    let mut seen: Vec<(String, &str)> = Vec::new();
    for name in names {
        if name.is_empty() {
            return Err(Error::config(field, "each must have a `name`"));
        }
        let folder = slug(name);
        if let Some((_, other)) = seen.iter().find(|(known, _)| *known == folder) {
            let reason = format!(
                "`{other}` and `{name}` would share the folder `{folder}`: rename one of them"
            );
            return Err(Error::config(field, reason));
        }
        seen.push((folder, name));
    }
    Ok(())
}

/// A name as a folder.
pub(crate) fn slug(name: &str) -> String {
    let letter = |c: char| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_lowercase()
        } else {
            '-'
        }
    };
    name.chars().map(letter).collect()
}

/// Mean and sample standard deviation; of one value the deviation is 0.
pub(crate) fn mean_sd(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    let sd = if values.len() > 1 {
        (squares / (n - 1.0)).sqrt()
    } else {
        0.0
    };
    (mean, sd)
}
