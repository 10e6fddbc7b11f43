//! `densely train`: a recipe, every seed of it.

mod ctr;
mod fields;
pub(super) mod forecast;
pub(super) mod interp;
mod panel;
mod restoration;
mod vision;

use std::path::{Path, PathBuf};

use densely_core::{Error, Result, weights};
use densely_data::{Dataset, SplitConfig, Table};
use densely_tabular::ensemble::{self, GROUP};
use densely_tabular::fit::Prepared;
use densely_tabular::settings::FitSettings;
use densely_tabular::tabred::{self, TabRed};
use densely_tabular::task::Task;
use densely_train::metrics::Metric;
use serde_json::{Map, Value, json};

use super::tabular::ResumeArguments;
use crate::Common;
use crate::compare::{Compare, Input, mean_sd};
use crate::fitting::{self, Fitted, Job};
use crate::recipe::{Files, Recipe, Size};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: densely train crates/tabular/recipes/tabm-california.toml --data-dir data/california-housing --quick"
)]
pub(crate) struct Arguments {
    /// TOML file of the recipe.
    recipe: PathBuf,
    /// Folder with the recipe's data set, a table or a TabReD folder; `cargo xtask data get NAME` fetches it and says where it is.
    #[arg(long, default_value = ".")]
    data_dir: PathBuf,
    /// Folder for the runs; `runs/<name>` when left out.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Train at the recipe's quick size.
    #[arg(long, conflicts_with = "smoke")]
    quick: bool,
    /// Train one epoch of one seed at the quick size.
    #[arg(long)]
    smoke: bool,
    /// Change a setting, such as `train.batch_size=512`; may be given again.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    changes: Vec<String>,
    /// Write the arrays that training would see to this folder, and stop.
    #[arg(long, value_name = "DIR")]
    export: Option<PathBuf>,
    #[command(flatten)]
    resume: ResumeArguments,
}

pub(crate) fn run(arguments: &Arguments, common: &Common) -> Result<()> {
    let size = match (arguments.quick, arguments.smoke) {
        (_, true) => Size::Smoke,
        (true, _) => Size::Quick,
        _ => Size::Full,
    };
    let mut recipe = Recipe::read(&arguments.recipe, size, &arguments.changes)?;
    if let Some(seed) = common.seed {
        recipe.seeds = vec![seed];
    }
    match recipe.domain.as_str() {
        "timeseries" => forecast::run(arguments, &recipe, common),
        "recsys" => ctr::run(arguments, &recipe, common),
        "forecast" => panel::run(arguments, &recipe, common),
        "vision" => vision::run(arguments, &recipe, common),
        "restoration" => restoration::run(arguments, &recipe, common),
        "fields" => fields::run(arguments, &recipe, common),
        "interp" => interp::run(arguments, &recipe, common),
        _ => run_tabular(arguments, &recipe, common),
    }
}

fn run_tabular(arguments: &Arguments, recipe: &Recipe, common: &Common) -> Result<()> {
    let (files, mut settings): (_, FitSettings) = recipe.fit_settings(&arguments.recipe)?;
    let compare: Option<Compare> = recipe.compare(&arguments.recipe)?;
    if let Some(compare) = &compare {
        compare.check()?;
    }
    let path = arguments.data_dir.join(&files.file);
    let (table, prepared) = prepare(&files, &arguments.data_dir, &mut settings)
        .map_err(|error| recipe.explain(error))?;
    if let Some(folder) = &arguments.export {
        return export(&prepared, folder);
    }
    fitting::describe(&prepared, common);

    let device = common.device.open()?;
    let out = arguments
        .out
        .clone()
        .unwrap_or_else(|| Path::new("runs").join(&recipe.name));
    let resume = arguments.resume.from()?;
    let job = Job {
        title: &recipe.title,
        prepared: &prepared,
        settings: &settings,
        table: &path,
    };
    let mut results = Vec::new();
    for seed in &recipe.seeds {
        let folder = out.join(format!("seed-{seed}"));
        let fitted = fitting::run(&job, &folder, *seed, device, resume, common)?;
        if !common.json {
            fitting::print(&folder, &fitted, common);
        }
        results.push((*seed, fitted));
    }
    let compared = compare.as_ref().map(|compare| {
        let input = Input {
            recipe,
            recipe_path: &arguments.recipe,
            table: &table,
            table_path: &path,
            settings: &settings,
            device,
            resume,
            own: &results,
        };
        compare.run(&input, &out.join("comparison"), common)
    });
    report(
        recipe,
        prepared.task,
        &results,
        compared.transpose()?,
        device,
        common,
    )
}

/// The rows of a table, or of a TabReD folder; a folder also says what the settings leave open.
pub(super) fn prepare(
    files: &Files,
    folder: &Path,
    settings: &mut FitSettings,
) -> Result<(Table, Prepared)> {
    let path = folder.join(&files.file);
    let split = match &settings.data.split {
        Some(SplitConfig::Files { name }) if !path.is_file() => name,
        _ if path.is_dir() => tabred::DEFAULT_SPLIT,
        _ => {
            let table = files.open(folder)?;
            let prepared = Prepared::new(&table, &settings.data)?;
            return Ok((table, prepared));
        }
    };
    let folder = TabRed::open(&path, split)?;
    for warning in &folder.warnings {
        tracing::warn!("{warning}");
    }
    let prepared = folder.prepare(settings)?;
    Ok((folder.table, prepared))
}

fn report(
    recipe: &Recipe,
    task: Task,
    results: &[(u64, Fitted)],
    compared: Option<(Value, PathBuf)>,
    device: tch::Device,
    common: &Common,
) -> Result<()> {
    let Some((_, first)) = results.first() else {
        return Ok(());
    };
    let seeds: Vec<SeedScores> = results
        .iter()
        .map(|(seed, s)| (*seed, &*s.outcome.test, &*s.outcome.valid))
        .collect();
    let metrics = summary(recipe, &seeds, common);
    let ensembles = ensembles(recipe, task, results, common)?;
    if common.json {
        let (comparison, plot) = compared.unzip();
        let plots: Vec<&PathBuf> = results
            .iter()
            .flat_map(|(_, s)| &s.plots)
            .chain(&plot)
            .collect();
        let peak = results
            .iter()
            .filter_map(|(_, s)| s.outcome.peak_mb)
            .reduce(f64::max);
        let mut summary = json!({
            "name": recipe.name,
            "metrics": metrics,
            "seconds": results.iter().map(|(_, s)| s.outcome.seconds).sum::<f64>(),
            "peak_mb": peak,
            "params": first.outcome.parameters,
            "device": densely_train::machine::device_name(device),
            "threads": tch::get_num_threads(),
            "plots": plots,
            "comparison": comparison,
        });
        if !ensembles.is_empty() {
            summary["ensembles"] = ensembles.into();
        }
        println!("{summary}");
    }
    Ok(())
}

/// A seed with its metrics on test and validation.
type SeedScores<'a> = (u64, &'a [(Metric, f64)], &'a [(Metric, f64)]);

/// Every metric over the seeds: printed, and as JSON.
fn summary(recipe: &Recipe, seeds: &[SeedScores], common: &Common) -> Map<String, Value> {
    let mut metrics = Map::new();
    let Some((_, first, _)) = seeds.first() else {
        return metrics;
    };
    for (metric, _) in *first {
        let of = |values: &[(Metric, f64)]| {
            values
                .iter()
                .find(|(other, _)| other == metric)
                .map(|(_, value)| *value)
        };
        let values: Vec<f64> = seeds.iter().filter_map(|(_, test, _)| of(test)).collect();
        let seeds: Vec<Value> = seeds
            .iter()
            .map(|(seed, test, valid)| json!({ "seed": seed, "value": of(test), "valid": of(valid) }))
            .collect();
        let direction = json!(metric.direction());
        let found = over_seeds(recipe, (metric.name(), direction), &values, &seeds, common);
        metrics.insert(metric.name().to_owned(), found);
    }
    metrics
}

/// A metric, its name and direction, over the seeds: printed, and as JSON.
fn over_seeds(
    recipe: &Recipe,
    (name, direction): (&str, Value),
    values: &[f64],
    seeds: &[Value],
    common: &Common,
) -> Value {
    let (mean, sd) = mean_sd(values);
    if !common.json {
        println!(
            "{}: {name} {mean:.4} ± {sd:.4} on {} seeds",
            recipe.name,
            values.len()
        );
    }
    json!({ "direction": direction, "seeds": seeds, "mean": mean, "sd": sd })
}

/// What averages of five seeds' predictions reach: printed, and as JSON by metric. Nothing with less than five seeds.
fn ensembles(
    recipe: &Recipe,
    task: Task,
    results: &[(u64, Fitted)],
    common: &Common,
) -> Result<Map<String, Value>> {
    let mut metrics = Map::new();
    let Some((_, first)) = results.first() else {
        return Ok(metrics);
    };
    let predictions: Vec<&tch::Tensor> = results
        .iter()
        .map(|(_, fitted)| &fitted.outcome.predictions)
        .collect();
    let groups = ensemble::scores(task, &predictions, &first.outcome.targets)?;
    for (metric, _) in groups.first().into_iter().flatten() {
        let values: Vec<f64> = groups
            .iter()
            .flatten()
            .filter(|(other, _)| other == metric)
            .map(|(_, value)| *value)
            .collect();
        let (mean, sd) = mean_sd(&values);
        if !common.json {
            println!(
                "{}: ensembles of {GROUP}: {} {mean:.4} ± {sd:.4} on {} groups",
                recipe.name,
                metric.name(),
                values.len()
            );
        }
        metrics.insert(
            metric.name().to_owned(),
            json!({ "size": GROUP, "values": values, "mean": mean, "sd": sd }),
        );
    }
    Ok(metrics)
}

/// The arrays of each part as safetensors, and what their numbers mean as `meta.json`: for training the
/// reference package on exactly what this program trains on.
fn export(prepared: &Prepared, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let part = |name: &str, data: &Dataset| {
        let tensors = [
            ("x_num", &data.x_num),
            ("x_cat", &data.x_cat),
            ("y", &data.y),
        ]
        .into_iter()
        .filter_map(|(name, xs)| {
            let xs = xs.as_ref()?;
            let integer = !xs.is_floating_point();
            let wide = if integer {
                xs.to_kind(tch::Kind::Int64)
            } else {
                xs.shallow_clone()
            };
            Some((name.to_owned(), wide))
        })
        .collect();
        let path = folder.join(format!("{name}.safetensors"));
        weights::save(&path, &tensors, &std::collections::BTreeMap::new())
    };
    part("train", &prepared.train)?;
    part("valid", &prepared.valid)?;
    part("test", &prepared.test)?;
    let (mean, std) = prepared.preprocessor.target_scale().unwrap_or((0.0, 1.0));
    let meta = json!({
        "task": prepared.task,
        "cat_cardinalities": prepared.preprocessor.cat_cardinalities(),
        "target_mean": mean,
        "target_std": std,
        "classes": prepared.preprocessor.classes(),
    });
    let path = folder.join("meta.json");
    densely_core::fs::write(&path, format!("{meta:#}\n").as_bytes())
}
