//! Recipes of the domain `timeseries`.

use std::path::{Path, PathBuf};

use densely_core::{Error, Result};
use densely_data::Output;
use densely_data::write::{Format, Writer};
use densely_timeseries::fit::{FitOptions, FitSettings, Outcome, Prepared, fit};
use densely_train::machine::device_name;
use densely_train::metrics::Metric;
use densely_train::plot::{self, Axes, Series};
use densely_train::report::{self, Report, Score, Section};
use serde_json::json;
use tch::{Kind, Tensor};

use super::{Arguments, SeedScores, summary};
use crate::Common;
use crate::fitting::watched;
use crate::recipe::Recipe;

/// What came of one seed.
struct Fitted {
    outcome: Outcome,
    test: Vec<(Metric, f64)>,
    valid: Vec<(Metric, f64)>,
    plots: Vec<PathBuf>,
}

pub(super) fn run(arguments: &Arguments, recipe: &Recipe, common: &Common) -> Result<()> {
    let compare: Option<toml::Table> = recipe.compare(&arguments.recipe)?;
    if compare.is_some() {
        return Err(Error::config(
            "compare",
            "is for recipes of the domain tabular",
        ));
    }
    if arguments.export.is_some() {
        return Err(Error::config(
            "--export",
            "is for recipes of the domain tabular",
        ));
    }
    let (files, settings): (_, FitSettings) = recipe.fit_settings(&arguments.recipe)?;
    let path = arguments.data_dir.join(&files.file);
    let device = common.device.open()?;
    let table = files.open(&arguments.data_dir);
    let table = table.map_err(|error| recipe.explain(error))?;
    let prepared = Prepared::new(&table, &settings.data, device)?;
    drop(table);
    describe(&prepared, &settings, common);
    let out = arguments
        .out
        .clone()
        .unwrap_or_else(|| Path::new("runs").join(&recipe.name));
    let resume = arguments.resume.from()?;
    let mut results = Vec::new();
    for seed in &recipe.seeds {
        let folder = out.join(format!("seed-{seed}"));
        let options = FitOptions {
            folder: &folder,
            table: &path,
            seed: *seed,
            device,
            resume,
        };
        let outcome = watched(&options, common, |observe| {
            fit(&prepared, &settings, &options, observe)
        })?;
        write_predictions(&prepared, &outcome, &folder)?;
        let plots = plots(&prepared, &outcome, &folder)?;
        let (test, valid) = (outcome.test.scores(), outcome.valid.scores());
        write_report(recipe, &settings, &prepared, &outcome, &folder, *seed)?;
        if !common.json {
            let best = outcome.best_epoch + 1;
            println!(
                "test: mse {:.4}, mae {:.4}; best epoch {best} of {}; {:.1} s; report in {}",
                outcome.test.mse,
                outcome.test.mae,
                outcome.epochs,
                outcome.seconds,
                folder.join("report.md").display()
            );
        }
        results.push((
            *seed,
            Fitted {
                outcome,
                test,
                valid,
                plots,
            },
        ));
    }
    let seeds: Vec<SeedScores> = results
        .iter()
        .map(|(seed, fitted)| (*seed, &*fitted.test, &*fitted.valid))
        .collect();
    let metrics = summary(recipe, &seeds, common);
    let Some((_, first)) = results.first() else {
        return Ok(());
    };
    if common.json {
        let plots: Vec<&PathBuf> = results
            .iter()
            .flat_map(|(_, fitted)| &fitted.plots)
            .collect();
        let summary = json!({
            "name": recipe.name,
            "metrics": metrics,
            "seconds": results.iter().map(|(_, fitted)| fitted.outcome.seconds).sum::<f64>(),
            "peak_mb": results.iter().filter_map(|(_, fitted)| fitted.outcome.peak_mb).reduce(f64::max),
            "params": first.outcome.parameters,
            "device": device_name(device),
            "threads": tch::get_num_threads(),
            "plots": plots,
            "comparison": null,
        });
        println!("{summary}");
    } else {
        for (name, errors) in &first.outcome.baselines {
            println!(
                "{}: {name} mse {:.4}, mae {:.4}",
                recipe.name, errors.mse, errors.mae
            );
        }
    }
    Ok(())
}

/// Says what was understood of the table.
pub(in crate::commands) fn describe(prepared: &Prepared, settings: &FitSettings, common: &Common) {
    if !common.quiet {
        eprintln!(
            "{} steps of {} series; windows of {} + {} steps: {} train, {} valid, {} test",
            prepared.panel.len(),
            prepared.panel.names.len(),
            settings.data.lookback,
            settings.data.horizon,
            prepared.train.len(),
            prepared.valid.len(),
            prepared.test.len(),
        );
    }
}

/// Numbers that are converted at once.
const PIECE: i64 = 1 << 22;

/// Targets and forecasts of every test window on the standardised scale, a row per window and step, from which anyone can compute
/// the errors again. Written piece by piece: of hundreds of series all windows would not fit into memory a second time.
fn write_predictions(prepared: &Prepared, outcome: &Outcome, folder: &Path) -> Result<()> {
    let size = outcome.predictions.size(); // [windows, horizon, channels]
    let path = folder.join("predictions.parquet");
    let windows = (PIECE / (size[1] * size[2]).max(1)).max(1);
    densely_core::fs::write_with(&path, |file| {
        let mut writer = Writer::new(file, &path, Format::Parquet)?;
        for first in (0..size[0]).step_by(windows as usize) {
            let count = windows.min(size[0] - first);
            writer.write(&rows(prepared, outcome, first, count)?)?;
        }
        writer.finish()
    })
}

/// The rows of `count` windows from `first` on.
fn rows(
    prepared: &Prepared,
    outcome: &Outcome,
    first: i64,
    count: i64,
) -> Result<Vec<(String, Output)>> {
    let size = [count, outcome.predictions.size()[1]];
    let numbers = |xs: &Tensor| -> Result<Output> {
        Ok(Output::Numbers(Vec::try_from(
            xs.to_kind(Kind::Double).flatten(0, -1).contiguous(),
        )?))
    };
    let counted =
        |from: i64, n: i64| Tensor::arange_start(from, from + n, (Kind::Double, tch::Device::Cpu));
    let windows = counted(first, count).unsqueeze(1).expand(size, false);
    let steps = counted(0, size[1]).unsqueeze(0).expand(size, false);
    let mut columns = vec![
        ("window".to_owned(), numbers(&windows)?),
        ("step".to_owned(), numbers(&steps)?),
    ];
    for (channel, name) in prepared.panel.names.iter().enumerate() {
        let of = |xs: &Tensor| numbers(&xs.narrow(0, first, count).select(2, channel as i64));
        columns.push((name.clone(), of(&outcome.targets)?));
        columns.push((format!("{name}_forecast"), of(&outcome.predictions)?));
    }
    Ok(columns)
}

/// The course of training, and the forecast of one test window of the last series.
fn plots(prepared: &Prepared, outcome: &Outcome, folder: &Path) -> Result<Vec<PathBuf>> {
    let mut plots = plot::run_plots(folder)?;
    let channel = prepared.panel.names.len() as i64 - 1;
    let window = prepared.test.len() / 2;
    let (past, future) = prepared.test.batch(&[window])?;
    let line = |name: &str, xs: &Tensor, from: i64| -> Result<Series> {
        let xs = xs.to_device(tch::Device::Cpu).to_kind(Kind::Double);
        let values: Vec<f64> = Vec::try_from(xs.contiguous())?;
        let points = values
            .into_iter()
            .enumerate()
            .map(|(i, y)| ((from + i as i64) as f64, y));
        Ok(Series {
            name: name.to_owned(),
            points: points.collect(),
        })
    };
    let (lookback, horizon) = (past.size()[1], future.size()[1]);
    let shown = lookback.min(2 * horizon);
    let series = [
        line(
            "past",
            &past
                .select(0, 0)
                .select(1, channel)
                .narrow(0, lookback - shown, shown),
            -shown,
        )?,
        line("what came", &future.select(0, 0).select(1, channel), 0)?,
        line(
            "forecast",
            &outcome.predictions.select(0, window).select(1, channel),
            0,
        )?,
    ];
    let path = folder.join("plots").join("forecast.svg");
    let name = &prepared.panel.names[channel as usize];
    let axes = Axes::new(
        format!("Test window {window}: {name}"),
        "step from the end of what the model saw",
        format!("{name} [standard deviations]"),
    );
    plot::line(&path, &axes, &series)?;
    plots.push(path);
    Ok(plots)
}

fn write_report(
    recipe: &Recipe,
    settings: &FitSettings,
    prepared: &Prepared,
    outcome: &Outcome,
    folder: &Path,
    seed: u64,
) -> Result<()> {
    let fact = |name: &str, value: String| (name.to_owned(), value);
    let part = |part: &str, scores: Vec<(Metric, f64)>| {
        scores
            .into_iter()
            .map(|(metric, value)| Score {
                part: part.to_owned(),
                metric,
                value,
            })
            .collect::<Vec<_>>()
    };
    let mut scores = part("validation", outcome.valid.scores());
    scores.extend(part("test", outcome.test.scores()));
    let rows = outcome.baselines.iter().map(|(name, errors)| {
        vec![
            (*name).to_owned(),
            format!("{:.4}", errors.mse),
            format!("{:.4}", errors.mae),
        ]
    });
    let baselines = Section {
        title: "Without training, on the same test windows".to_owned(),
        header: ["forecast", "mse", "mae"].map(str::to_owned).to_vec(),
        rows: rows.collect(),
        text: "Ridge: one linear map of the window less its last value for all series, in closed form. Naive: the last season again.".to_owned(),
    };
    let report = Report {
        title: recipe.title.clone(),
        facts: vec![
            fact("model", settings.model.preset.clone()),
            fact("parameters", outcome.parameters.to_string()),
            fact("series", prepared.panel.names.join(", ")),
            fact("windows", format!("{} train, {} valid, {} test", prepared.train.len(), prepared.valid.len(), prepared.test.len())),
            fact("seed", seed.to_string()),
            fact("seconds of the last process", format!("{:.1}", outcome.seconds)),
        ],
        scores,
        sections: vec![baselines],
        notes: vec!["Errors are means over all windows, steps and series, on the scale on which the training steps have mean 0 and standard deviation 1.".to_owned()],
    };
    report::write(folder, &report).map(|_| ())
}
