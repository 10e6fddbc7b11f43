//! Recipes of the domain `recsys`: click models on one table, or on the files of a public set.

use std::path::{Path, PathBuf};

use densely_core::tch::{Device, Tensor, get_num_threads};
use densely_core::{Error, Result, weights};
use densely_recsys::examples::Examples;
use densely_recsys::metrics::{Metric, Scores};
use densely_recsys::{CtrSettings, Prepared, movielens, retail};
use densely_train::machine::device_name;
use densely_train::plot::{self, Axes, Dots};
use serde_json::{Map, Value, json};

use super::{Arguments, over_seeds};
use crate::Common;
use crate::commands::ctr::fit::Job;
use crate::commands::ctr::line;
use crate::compare::mean_sd;
use crate::recipe::{CtrFiles, Maker, Recipe};

/// A model with its scores over the seeds.
struct Row {
    name: String,
    seeds: Vec<(u64, Scores)>,
    /// Of all seeds, where it is known: baselines are trained beside the model.
    seconds: f64,
    note: String,
}

pub(super) fn run(arguments: &Arguments, recipe: &Recipe, common: &Common) -> Result<()> {
    if recipe.tune.is_some() {
        return Err(Error::config(
            "tune",
            "is for recipes of the domain tabular",
        ));
    }
    let (files, settings) = recipe.ctr_settings(&arguments.recipe)?;
    let device = common.device.open()?;
    let out = arguments
        .out
        .clone()
        .unwrap_or_else(|| Path::new("runs").join(&recipe.name));
    std::fs::create_dir_all(&out).map_err(Error::io(&out))?;
    let table = made(&files, &arguments.data_dir, &out).map_err(|e| recipe.explain(e))?;
    let prepared =
        Prepared::open(&table, &settings.data, &out).map_err(|error| recipe.explain(error))?;
    if let Some(folder) = &arguments.export {
        return export(&prepared, &settings, folder);
    }
    let job = Job {
        title: &recipe.title,
        prepared: &prepared,
        settings: &settings,
        explained: &[],
        table: &table,
    };
    job.describe(common);
    let mut own = Row {
        name: settings.model.preset.clone(),
        seeds: Vec::new(),
        seconds: 0.0,
        note: String::new(),
    };
    let mut baselines: Vec<Row> = Vec::new();
    let (mut seconds, mut peak, mut params, mut plots) = (0.0, None::<f64>, 0, Vec::new());
    for seed in &recipe.seeds {
        let folder = out.join(format!("seed-{seed}"));
        let fitted = job.run(&folder, *seed, device, arguments.resume.from()?, common)?;
        let outcome = fitted.outcome;
        if !common.json {
            println!(
                "seed {seed}: {}; best epoch {} of {}; report in {}",
                line(&outcome.test),
                outcome.best_epoch + 1,
                outcome.epochs,
                folder.join("report.md").display()
            );
        }
        own.seeds.push((*seed, outcome.test));
        for (name, scores) in outcome.baselines {
            match baselines.iter_mut().find(|row| row.name == name) {
                Some(row) => row.seeds.push((*seed, scores)),
                None => baselines.push(Row {
                    name: name.to_owned(),
                    seeds: vec![(*seed, scores)],
                    seconds: 0.0,
                    note: "baseline".to_owned(),
                }),
            }
        }
        seconds += outcome.seconds;
        peak = [peak, outcome.peak_mb]
            .into_iter()
            .flatten()
            .reduce(f64::max);
        params = outcome.parameters;
        plots.extend(fitted.plots);
    }
    own.seconds = seconds;
    own.note = format!("{params} parameters");
    let metrics = metrics(&own, recipe, common);
    let rows: Vec<Row> = std::iter::once(own).chain(baselines).collect();
    plots.push(draw(&rows, recipe, &out)?);
    if common.json {
        let summary = json!({
            "name": recipe.name,
            "metrics": metrics,
            "seconds": seconds,
            "peak_mb": peak,
            "params": params,
            "device": device_name(device),
            "threads": get_num_threads(),
            "plots": plots,
            "comparison": comparison(&rows),
        });
        println!("{summary}");
    } else {
        for row in &rows[1..] {
            let (mean, sd) = row.mean_sd(Metric::Auc);
            println!("{}: auc {mean:.4} ± {sd:.4} ({})", row.name, row.note);
        }
    }
    Ok(())
}

/// The table that is trained on: the data set's own, or one made of its files, in `out`.
fn made(files: &CtrFiles, folder: &Path, out: &Path) -> Result<PathBuf> {
    let table = folder.join(&files.file);
    let Some(maker) = files.make else {
        return Ok(table);
    };
    let into = out.join("table.parquet");
    match maker {
        Maker::Movielens100k => movielens::prepare(folder, &into)?,
        Maker::OnlineRetailIi => retail::prepare(&table, &into, 0)?,
    }
    Ok(into)
}

/// The encoded rows of each part as safetensors, and the whole settings as `meta.json`: for training the reference on exactly what
/// this program trains on.
fn export(prepared: &Prepared, settings: &CtrSettings, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let part = |name: &str, rows: &Examples| {
        let mut batches = rows.chunks(rows.len(), Device::Cpu);
        let batch = batches.next().transpose()?;
        let batch = batch.ok_or_else(|| Error::config("export", "there are no rows"))?;
        let mut tensors = batch.inputs;
        tensors.insert("label".to_owned(), batch.labels);
        if let Some(groups) = rows.groups() {
            let groups: Vec<i64> = groups.iter().map(|group| i64::from(*group)).collect();
            tensors.insert("group".to_owned(), Tensor::from_slice(&groups));
        }
        let path = folder.join(format!("{name}.safetensors"));
        weights::save(&path, &tensors, &std::collections::BTreeMap::new())
    };
    part("train", &prepared.train)?;
    part("valid", &prepared.valid)?;
    part("test", &prepared.test)?;
    let meta = json!({
        "preset": settings.model.preset,
        "config": settings.model.resolve(&prepared.map)?,
        "train": settings.train,
    });
    densely_core::fs::write(&folder.join("meta.json"), format!("{meta:#}\n").as_bytes())
}

impl Row {
    fn values(&self, metric: Metric) -> Vec<f64> {
        self.seeds
            .iter()
            .filter_map(|(_, scores)| scores.get(metric))
            .collect()
    }

    fn mean_sd(&self, metric: Metric) -> (f64, f64) {
        mean_sd(&self.values(metric))
    }

    fn seeds(&self, metric: Metric) -> Vec<Value> {
        let seed = |(seed, scores): &(u64, Scores)| {
            Some(json!({ "seed": seed, "value": scores.get(metric)? }))
        };
        self.seeds.iter().filter_map(seed).collect()
    }
}

/// Every metric of the recipe's own model over the seeds: printed, and as JSON.
fn metrics(row: &Row, recipe: &Recipe, common: &Common) -> Map<String, Value> {
    let mut metrics = Map::new();
    for metric in Metric::ALL {
        let values = row.values(metric);
        if values.len() != row.seeds.len() {
            continue;
        }
        let about = (metric.name(), json!(metric.direction()));
        let found = over_seeds(recipe, about, &values, &row.seeds(metric), common);
        metrics.insert(metric.name().to_owned(), found);
    }
    metrics
}

fn comparison(rows: &[Row]) -> Value {
    let mean = |row: &Row| row.mean_sd(Metric::Auc).0;
    let all: Vec<Value> = rows
        .iter()
        .map(|row| {
            let (mean_auc, sd) = row.mean_sd(Metric::Auc);
            json!({
                "model": row.name,
                "split": "test",
                "seeds": row.seeds(Metric::Auc),
                "mean": mean_auc,
                "sd": sd,
                "rank": 1 + rows.iter().filter(|other| mean(other) > mean(row)).count(),
                "seconds": row.seconds,
                "peak_mb": null,
                "note": row.note,
            })
        })
        .collect();
    json!({ "metric": "auc", "direction": "higher", "rows": all })
}

fn draw(rows: &[Row], recipe: &Recipe, out: &Path) -> Result<PathBuf> {
    let labels: Vec<String> = rows.iter().map(|row| row.name.clone()).collect();
    let dots = Dots {
        name: "test rows".to_owned(),
        values: rows.iter().map(|row| row.mean_sd(Metric::Auc)).collect(),
    };
    let path = out.join("comparison.svg");
    let title = format!("{}: mean and spread over the seeds", recipe.name);
    plot::dots(
        &path,
        &Axes::new(title, "test auc, higher is better", ""),
        &labels,
        &[dots],
    )?;
    Ok(path)
}
