//! Recipes of the domain `forecast`: own tables of series, with the settings of `densely forecast fit`.

use std::path::{Path, PathBuf};

use densely_core::{Error, Result, tch};
use densely_data::Table;
use densely_timeseries::forecast::{Means, Prepared, Scores};
use densely_timeseries::m4::M4;
use densely_timeseries::metrics::M4Errors;
use densely_train::machine::device_name;
use densely_train::plot::{self, Axes, Dots};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Arguments, over_seeds};
use crate::Common;
use crate::commands::forecast::fit::{Fitted, Job};
use crate::compare::{MODELS, check_names, mean_sd, slug};
use crate::recipe::{Changes, Recipe};

/// `[compare]` of such a recipe.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Compare {
    /// What ranks the models; the mean absolute error when left out.
    metric: Option<String>,
    /// The recipe with changes, such as without covariates.
    models: Vec<Changes>,
}

/// Errors by name; of all of them less is better.
type Errors = Vec<(&'static str, f64)>;

/// Metrics of any recipe, and of one on the series of the M4 competition.
const OWN: [&str; 4] = ["mae", "rmse", "mse", "pinball"];
const OF_M4: [&str; 3] = ["smape", "mase", "owa"];

/// A model with its errors over the seeds.
struct Row {
    name: String,
    seeds: Vec<(u64, Errors)>,
    seconds: f64,
    peak_mb: Option<f64>,
    note: Option<String>,
}

/// What all models of a recipe share.
struct Work<'a> {
    arguments: &'a Arguments,
    recipe: &'a Recipe,
    device: tch::Device,
    m4: Option<M4>,
    common: &'a Common,
}

/// What came of the recipe itself or of a model beside it.
struct Found {
    row: Row,
    params: u64,
    plots: Vec<PathBuf>,
    naive: Row,
}

pub(super) fn run(arguments: &Arguments, recipe: &Recipe, common: &Common) -> Result<()> {
    if arguments.export.is_some() || recipe.tune.is_some() {
        let what = if recipe.tune.is_some() {
            "tune"
        } else {
            "--export"
        };
        return Err(Error::config(what, "is for recipes of the domain tabular"));
    }
    let compare: Compare = recipe.compare(&arguments.recipe)?.unwrap_or_default();
    check_names(
        MODELS,
        compare.models.iter().map(|changes| changes.name.as_str()),
    )?;
    let own = Changes::default();
    let (files, _) = recipe.forecast_settings(&own, &arguments.recipe)?;
    let work = Work {
        arguments,
        recipe,
        device: common.device.open()?,
        m4: files.m4(&arguments.data_dir)?,
        common,
    };
    let metric = compare.metric.as_deref().unwrap_or("mae");
    let known: Vec<&str> = OWN
        .into_iter()
        .chain(work.m4.iter().flat_map(|_| OF_M4))
        .collect();
    if !known.contains(&metric) {
        let reason = format!("must be one of {}, got `{metric}`", known.join(", "));
        return Err(Error::config("compare.metric", reason));
    }
    let out = arguments
        .out
        .clone()
        .unwrap_or_else(|| Path::new("runs").join(&recipe.name));
    let Found {
        row,
        params,
        mut plots,
        naive,
    } = work.model(&own, &out)?;
    let metrics = metrics(&row, recipe, common);
    let (seconds, peak_mb) = (row.seconds, row.peak_mb);
    let mut rows = vec![row];
    for changes in &compare.models {
        if !common.quiet {
            eprintln!("{}", changes.name);
        }
        let folder = out.join("comparison").join(slug(&changes.name));
        rows.push(work.model(changes, &folder)?.row);
    }
    rows.extend(work.benchmarks()?);
    rows.push(naive);
    if !metrics.contains_key(metric) {
        let reason = format!(
            "the forecasts have no `{metric}`: rmse is of one target, mse of several, pinball of quantiles"
        );
        return Err(Error::config("compare.metric", reason));
    }
    rows.retain(|row| row.values(metric).is_some());
    plots.push(draw(&rows, metric, recipe, &out)?);
    if common.json {
        let summary = json!({
            "name": recipe.name,
            "metrics": metrics,
            "seconds": seconds,
            "peak_mb": peak_mb,
            "params": params,
            "device": device_name(work.device),
            "threads": tch::get_num_threads(),
            "plots": plots,
            "comparison": comparison(&rows, metric),
        });
        println!("{summary}");
    } else {
        print(&rows, metric);
    }
    Ok(())
}

impl Work<'_> {
    /// Fits every seed of the recipe with `changes`.
    fn model(&self, changes: &Changes, out: &Path) -> Result<Found> {
        let (arguments, recipe, common) = (self.arguments, self.recipe, self.common);
        let (files, settings) = recipe.forecast_settings(changes, &arguments.recipe)?;
        let table = files.open(&arguments.data_dir)?;
        let prepared = Prepared::new(&table, &settings, self.device)?;
        drop(table);
        if let Some(set) = &self.m4 {
            last_steps_alone(set, &prepared)?;
        }
        let own = changes.name.is_empty();
        let title = if own {
            recipe.title.clone()
        } else {
            format!("{}: {}", recipe.title, changes.name)
        };
        let path = arguments.data_dir.join(&files.file);
        let job = Job {
            title: Some(&title),
            prepared: &prepared,
            table: &path,
        };
        job.describe(common);
        let name = if own {
            prepared.pipeline.preset.clone()
        } else {
            changes.name.clone()
        };
        let mut row = Row::new(name);
        let mut naive = Row::new(if prepared.pipeline.season == 1 {
            "the last value again".to_owned()
        } else {
            format!("the last {} steps again", prepared.pipeline.season)
        });
        let (mut params, mut plots) = (0, Vec::new());
        for seed in &recipe.seeds {
            let folder = out.join(format!("seed-{seed}"));
            let fitted = job.run(&folder, *seed, arguments.resume.from()?, common)?;
            let errors = self.errors(&fitted, &folder)?;
            if !common.json {
                let words: Vec<String> =
                    errors.iter().map(|(n, v)| format!("{n} {v:.4}")).collect();
                println!(
                    "seed {seed}: {}; report in {}",
                    words.join(", "),
                    folder.join("report.md").display()
                );
            }
            row.seeds.push((*seed, errors));
            row.seconds += fitted.outcome.seconds;
            let peaks = [row.peak_mb, fitted.outcome.peak_mb].into_iter().flatten();
            row.peak_mb = peaks.reduce(f64::max);
            naive
                .seeds
                .push((*seed, of(&fitted.test, |m| [m.naive_mae, m.naive_mse])));
            params = fitted.outcome.parameters;
            plots.extend(fitted.plots);
        }
        row.note = Some(format!("{params} parameters"));
        Ok(Found {
            row,
            params,
            plots,
            naive,
        })
    }

    fn errors(&self, fitted: &Fitted, folder: &Path) -> Result<Errors> {
        let mut errors = of(&fitted.test, |means| [means.mae, means.mse]);
        errors.extend(fitted.test.pinball().map(|loss| ("pinball", loss)));
        if let Some(set) = &self.m4 {
            let forecasts = read_forecasts(set, &folder.join("predictions.parquet"))?;
            errors.extend(of_m4(set.score(&forecasts)?, set)?);
        }
        Ok(errors)
    }

    /// The competition's own, where the recipe is on its series.
    fn benchmarks(&self) -> Result<Vec<Row>> {
        let Some(set) = &self.m4 else {
            return Ok(Vec::new());
        };
        let row = |(name, errors): (&str, M4Errors)| {
            let errors = of_m4(errors, set)?;
            let mut row = Row::new(name.to_owned());
            row.note = Some("benchmark of the competition".to_owned());
            row.seeds = self
                .recipe
                .seeds
                .iter()
                .map(|seed| (*seed, errors.clone()))
                .collect();
            Ok(row)
        };
        set.benchmarks()?.into_iter().map(row).collect()
    }
}

/// Errors of one target in its units, of several on the standardised scale.
fn of(scores: &Scores, values: fn(&Means) -> [f64; 2]) -> Errors {
    if let [(_, means)] = scores.by_target().as_slice() {
        let [mae, mse] = values(means);
        vec![("mae", mae), ("rmse", mse.sqrt())]
    } else {
        let [mae, mse] = values(&scores.standardised());
        vec![("mae", mae), ("mse", mse)]
    }
}

fn of_m4(errors: M4Errors, set: &M4) -> Result<Errors> {
    let [.., (_, naive2)] = set.benchmarks()?;
    Ok(vec![
        ("smape", errors.smape),
        ("mase", errors.mase),
        ("owa", errors.owa(naive2)),
    ])
}

/// The one test window of each series, in the order of `set`, from the predictions that a fit wrote.
fn read_forecasts(set: &M4, path: &Path) -> Result<Vec<Vec<f64>>> {
    let table = Table::open(path)?;
    let (codes, names) = table.texts("series")?;
    let values = table.numbers("value_forecast")?;
    let forecast = |id: &String| -> Vec<f64> {
        let code = names.iter().position(|name| name == id);
        let of_series = codes.iter().zip(&values);
        of_series
            .filter(|(other, _)| Some(**other as usize) == code)
            .map(|(_, value)| *value)
            .collect()
    };
    Ok(set.ids.iter().map(forecast).collect())
}

/// Checks that each series has one test window, which is what the competition asks for.
fn last_steps_alone(set: &M4, prepared: &Prepared) -> Result<()> {
    let (series, horizon) = (set.ids.len() as i64, set.horizon() as i64);
    if prepared.pipeline.horizon == horizon && prepared.test.len() == series {
        return Ok(());
    }
    let reason = format!(
        "the test must be the last {horizon} steps of each of the {series} series: a `horizon` of {horizon}, a `test` so small that it is one horizon, `epoch_windows` of at least {series}, a lookback that the shortest series has; got {} windows of {} steps",
        prepared.test.len(),
        prepared.pipeline.horizon
    );
    Err(Error::config("forecast", reason))
}

impl Row {
    fn new(name: String) -> Self {
        Self {
            name,
            seeds: Vec::new(),
            seconds: 0.0,
            peak_mb: None,
            note: None,
        }
    }

    /// The metric of each seed, where the model has it.
    fn values(&self, metric: &str) -> Option<Vec<f64>> {
        let of = |errors: &Errors| Some(errors.iter().find(|(name, _)| *name == metric)?.1);
        self.seeds.iter().map(|(_, errors)| of(errors)).collect()
    }

    fn mean_sd(&self, metric: &str) -> (f64, f64) {
        mean_sd(&self.values(metric).unwrap_or_default())
    }
}

/// Every metric of the recipe's own model over the seeds: printed, and as JSON.
fn metrics(row: &Row, recipe: &Recipe, common: &Common) -> Map<String, Value> {
    let mut metrics = Map::new();
    for (name, _) in row.seeds.first().into_iter().flat_map(|(_, errors)| errors) {
        let values = row.values(name).unwrap_or_default();
        let found = over_seeds(
            recipe,
            (name, "lower".into()),
            &values,
            &seeds(row, name),
            common,
        );
        metrics.insert((*name).to_owned(), found);
    }
    metrics
}

fn seeds(row: &Row, metric: &str) -> Vec<Value> {
    let values = row.values(metric).unwrap_or_default();
    row.seeds
        .iter()
        .zip(values)
        .map(|((seed, _), value)| json!({ "seed": seed, "value": value }))
        .collect()
}

/// The size of a model, and by how much it stands above or below the last row, the naive forecast.
fn note(row: &Row, rows: &[Row], metric: &str) -> String {
    let mean = |row: &Row| row.mean_sd(metric).0;
    let beside = rows
        .last()
        .filter(|last| last.name != row.name)
        .map(|last| {
            let share = mean(row) / mean(last) - 1.0;
            let side = if share < 0.0 { "below" } else { "above" };
            format!("{:.1} % {side} `{}`", 100.0 * share.abs(), last.name)
        });
    let parts: Vec<String> = row.note.iter().cloned().chain(beside).collect();
    if parts.is_empty() {
        "not trained".to_owned()
    } else {
        parts.join("; ")
    }
}

fn rank(row: &Row, rows: &[Row], metric: &str) -> usize {
    let mean = |row: &Row| row.mean_sd(metric).0;
    1 + rows.iter().filter(|other| mean(other) < mean(row)).count()
}

fn comparison(rows: &[Row], metric: &str) -> Value {
    let all: Vec<Value> = rows
        .iter()
        .map(|row| {
            let (mean, sd) = row.mean_sd(metric);
            json!({
                "model": row.name,
                "split": "time",
                "seeds": seeds(row, metric),
                "mean": mean,
                "sd": sd,
                "rank": rank(row, rows, metric),
                "seconds": row.seconds,
                "peak_mb": row.peak_mb,
                "note": note(row, rows, metric),
            })
        })
        .collect();
    json!({ "metric": metric, "direction": "lower", "rows": all })
}

fn print(rows: &[Row], metric: &str) {
    let width = rows.iter().map(|row| row.name.chars().count()).max();
    let width = width.unwrap_or(0);
    println!("{:<width$}  {metric}", "");
    for row in rows {
        let (mean, sd) = row.mean_sd(metric);
        let rank = rank(row, rows, metric);
        println!(
            "{:<width$}  {mean:.4} ± {sd:.4} ({rank})  {}",
            row.name,
            note(row, rows, metric)
        );
    }
}

fn draw(rows: &[Row], metric: &str, recipe: &Recipe, out: &Path) -> Result<PathBuf> {
    let labels: Vec<String> = rows.iter().map(|row| row.name.clone()).collect();
    let dots = Dots {
        name: "newest steps".to_owned(),
        values: rows.iter().map(|row| row.mean_sd(metric)).collect(),
    };
    let path = out.join("comparison.svg");
    let title = format!("{}: mean and spread over the seeds", recipe.name);
    let x = format!("test {metric}, lower is better");
    plot::dots(&path, &Axes::new(title, x, ""), &labels, &[dots])?;
    Ok(path)
}
