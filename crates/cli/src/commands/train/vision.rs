//! Recipes of the domain `vision`: classifiers of pictures.

use std::path::{Path, PathBuf};

use densely_core::{Error, Result};
use densely_train::machine::device_name;
use densely_train::metrics::Metric;
use densely_train::plot::{self, Axes, Series};
use densely_train::run::read_log;
use densely_vision::classify::ClassifySettings;
use densely_vision::data::Prepared;
use serde::Deserialize;
use serde_json::{Value, json};
use tch::get_num_threads;

use super::{Arguments, SeedScores, summary};
use crate::Common;
use crate::commands::vision::fit::{Job, describe, judged_part, line, scores};
use crate::compare::{MODELS, check_names, mean_sd, slug};
use crate::recipe::{Changes, Recipe};

/// Other models that are trained beside, on the same pictures.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Compare {
    models: Vec<Changes>,
}

/// Metrics with their values.
type Named = Vec<(Metric, f64)>;

/// What a model reached over the seeds.
struct Row {
    name: String,
    /// Accuracy on the test pictures, or the validation pictures where there are no others.
    seeds: Vec<(u64, f64)>,
    seconds: f64,
    peak_mb: Option<f64>,
    parameters: u64,
    /// The run folder of the first seed.
    folder: PathBuf,
}

pub(super) fn run(arguments: &Arguments, recipe: &Recipe, common: &Common) -> Result<()> {
    if arguments.export.is_some() {
        return Err(Error::config("--export", "is not for recipes of pictures"));
    }
    let settings: ClassifySettings =
        recipe.plain_settings(&Changes::default(), &arguments.recipe)?;
    let compare: Option<Compare> = recipe.compare(&arguments.recipe)?;
    let models = compare.map_or(Vec::new(), |compare| compare.models);
    check_names(MODELS, models.iter().map(|changes| changes.name.as_str()))?;
    let others: Vec<(String, ClassifySettings)> = models
        .iter()
        .map(|changes| {
            Ok((
                changes.name.clone(),
                recipe.plain_settings(changes, &arguments.recipe)?,
            ))
        })
        .collect::<Result<_>>()?;
    if let Some((name, _)) = others.iter().find(|(_, other)| other.data != settings.data) {
        let reason = format!("of `{name}`: all models of a comparison see the same pictures");
        return Err(Error::config("compare.models.data", reason));
    }
    let device = common.device.open()?;
    let prepared = Prepared::open(&arguments.data_dir, &settings.data)
        .map_err(|error| recipe.explain(error))?;
    describe(&prepared, common);
    let part = judged_part(prepared.test.is_some());
    let out = arguments
        .out
        .clone()
        .unwrap_or_else(|| Path::new("runs").join(&recipe.name));
    let resume = arguments.resume.from()?;
    let own_name = settings.model.preset.clone();
    let mut all = vec![(own_name, settings, out.clone())];
    for (name, settings) in others {
        let folder = out.join("comparison").join(slug(&name));
        all.push((name, settings, folder));
    }
    let (mut rows, mut plots) = (Vec::new(), Vec::new());
    let mut own: Vec<(u64, [Named; 2])> = Vec::new();
    for (place, (name, settings, base)) in all.iter().enumerate() {
        let job = Job {
            title: &recipe.title,
            prepared: &prepared,
            settings,
            data: &arguments.data_dir,
        };
        let mut row = Row {
            name: name.clone(),
            seeds: Vec::new(),
            seconds: 0.0,
            peak_mb: None,
            parameters: 0,
            folder: base.join(format!("seed-{}", recipe.seeds[0])),
        };
        for seed in &recipe.seeds {
            let folder = base.join(format!("seed-{seed}"));
            let fitted = job.run(&folder, *seed, device, resume, common)?;
            let outcome = fitted.outcome;
            let found = outcome.test.as_ref().unwrap_or(&outcome.valid);
            if !common.json {
                println!(
                    "{name}, seed {seed}, {part}: {}; best epoch {} of {}; {:.1} s; report in {}",
                    line(found),
                    outcome.best_epoch + 1,
                    outcome.epochs,
                    outcome.seconds,
                    folder.join("report.md").display()
                );
            }
            row.seeds.push((*seed, found.top1));
            row.seconds += outcome.seconds;
            row.peak_mb = [row.peak_mb, outcome.peak_mb]
                .into_iter()
                .flatten()
                .reduce(f64::max);
            row.parameters = outcome.parameters;
            if place == 0 {
                own.push((*seed, [scores(found), scores(&outcome.valid)]));
                plots.extend(fitted.plots);
            }
        }
        rows.push(row);
    }
    let seeds: Vec<SeedScores> = own
        .iter()
        .map(|(seed, [test, valid])| (*seed, test.as_slice(), valid.as_slice()))
        .collect();
    let metrics = summary(recipe, &seeds, common);
    if rows.len() > 1 {
        plots.push(curves(&rows, recipe, &out)?);
    }
    if common.json {
        let summary = json!({
            "name": recipe.name,
            "metrics": metrics,
            "seconds": rows[0].seconds,
            "peak_mb": rows[0].peak_mb,
            "params": rows[0].parameters,
            "device": device_name(device),
            "threads": get_num_threads(),
            "plots": plots,
            "comparison": if rows.len() > 1 { comparison(&rows, part) } else { Value::Null },
        });
        println!("{summary}");
    } else {
        for row in &rows[1..] {
            let (mean, sd) = row.mean_sd();
            println!(
                "{}: accuracy {mean:.4} ± {sd:.4} ({} parameters)",
                row.name, row.parameters
            );
        }
    }
    Ok(())
}

impl Row {
    fn mean_sd(&self) -> (f64, f64) {
        let values: Vec<f64> = self.seeds.iter().map(|(_, value)| *value).collect();
        mean_sd(&values)
    }
}

fn comparison(rows: &[Row], part: &str) -> Value {
    let all: Vec<Value> = rows
        .iter()
        .map(|row| {
            let (mean, sd) = row.mean_sd();
            let better = rows.iter().filter(|other| other.mean_sd().0 > mean).count();
            let seeds = row
                .seeds
                .iter()
                .map(|(seed, value)| json!({ "seed": seed, "value": value }));
            json!({
                "model": row.name,
                "split": part,
                "seeds": seeds.collect::<Vec<_>>(),
                "mean": mean,
                "sd": sd,
                "rank": 1 + better,
                "seconds": row.seconds,
                "peak_mb": row.peak_mb,
                "note": format!("{} parameters", row.parameters),
            })
        })
        .collect();
    json!({ "metric": "accuracy", "direction": "higher", "part": part, "rows": all })
}

/// Validation accuracy by epoch, a line per model, of the first seed.
fn curves(rows: &[Row], recipe: &Recipe, out: &Path) -> Result<PathBuf> {
    let line = |row: &Row| -> Result<Series> {
        let log = read_log(&row.folder)?;
        let epochs = log.iter().filter(|line| line["kind"] == "epoch");
        let points = epochs.filter_map(|line| {
            Some((
                line["epoch"].as_f64()? + 1.0,
                100.0 * line["metrics"]["accuracy"].as_f64()?,
            ))
        });
        Ok(Series {
            name: row.name.clone(),
            points: points.collect(),
        })
    };
    let series = rows.iter().map(line).collect::<Result<Vec<_>>>()?;
    let path = out.join("comparison.svg");
    let title = format!("{}: accuracy on the validation pictures", recipe.name);
    plot::line(&path, &Axes::new(title, "epoch", "accuracy [%]"), &series)?;
    Ok(path)
}
