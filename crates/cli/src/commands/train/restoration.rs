//! Recipes of the domain `restoration`: spoilt pictures made clean.

use std::path::{Path, PathBuf};

use densely_core::{Error, Result};
use densely_train::machine::device_name;
use densely_train::plot::grid::{self, Cell};
use densely_train::plot::run_plots;
use densely_train::report::{self, Report, Section};
use densely_train::run::FitOptions;
use densely_vision::restoration::{
    Judged, Outcome, Prepared, RestoreOptions, RestoreSettings, Restorer, fit,
};
use densely_vision::tiles::Tiling;
use densely_vision::transforms::to_image;
use serde_json::{Map, Value, json};
use tch::get_num_threads;

use super::{Arguments, over_seeds};
use crate::Common;
use crate::commands::vision::fit::{thumbnail, warn};
use crate::fitting::watched;
use crate::recipe::{Changes, Recipe};

pub(super) fn run(arguments: &Arguments, recipe: &Recipe, common: &Common) -> Result<()> {
    if arguments.export.is_some() {
        return Err(Error::config("--export", "is not for recipes of pictures"));
    }
    let settings: RestoreSettings =
        recipe.plain_settings(&Changes::default(), &arguments.recipe)?;
    if recipe.compare::<toml::Table>(&arguments.recipe)?.is_some() {
        return Err(Error::config(
            "compare",
            "is not for recipes of the domain restoration",
        ));
    }
    let device = common.device.open()?;
    let prepared = Prepared::open(&arguments.data_dir, &settings.data)
        .map_err(|error| recipe.explain(error))?;
    warn(&prepared.bad);
    if !common.quiet {
        let sets = prepared
            .test
            .iter()
            .map(|pairs| format!(", {} {}", pairs.len(), pairs.name));
        eprintln!(
            "pictures: {} train, {} valid{}",
            prepared.train.len(),
            prepared.valid.len(),
            sets.collect::<String>()
        );
    }
    let out = arguments
        .out
        .clone()
        .unwrap_or_else(|| Path::new("runs").join(&recipe.name));
    let resume = arguments.resume.from()?;
    let (mut outcomes, mut plots) = (Vec::new(), Vec::new());
    for seed in &recipe.seeds {
        let folder = out.join(format!("seed-{seed}"));
        let options = FitOptions {
            folder: &folder,
            table: &arguments.data_dir,
            seed: *seed,
            device,
            resume,
        };
        let outcome = watched(&options, common, |observe| {
            fit(&prepared, &settings, &options, observe)
        })?;
        plots.extend(run_plots(&folder)?);
        plots.extend(before_after(&prepared, &settings, &folder, device)?);
        write_report(recipe, &settings, &prepared, &outcome, &folder, *seed)?;
        if !common.json {
            println!(
                "seed {seed}: best epoch {} of {}; {:.1} s; report in {}",
                outcome.best_epoch + 1,
                outcome.epochs,
                outcome.seconds,
                folder.join("report.md").display()
            );
        }
        outcomes.push((*seed, outcome));
    }
    let metrics = metrics(recipe, &outcomes, common);
    let Some((_, first)) = outcomes.first() else {
        return Ok(());
    };
    if !common.json {
        for judged in first.baseline.iter().flatten() {
            let [_, restored] = judged.means();
            println!(
                "{}: {} of the cosine transform: psnr {:.2}, ssim {:.4}",
                recipe.name, judged.name, restored.psnr, restored.ssim
            );
        }
        return Ok(());
    }
    let summary = json!({
        "name": recipe.name,
        "metrics": metrics,
        "seconds": outcomes.iter().map(|(_, outcome)| outcome.seconds).sum::<f64>(),
        "peak_mb": outcomes.iter().filter_map(|(_, outcome)| outcome.peak_mb).reduce(f64::max),
        "params": first.parameters,
        "device": device_name(device),
        "threads": get_num_threads(),
        "plots": plots,
        "comparison": comparison(recipe, &outcomes),
    });
    println!("{summary}");
    Ok(())
}

/// PSNR and SSIM of each test set over the seeds: printed, and as JSON by `psnr_<set>` and `ssim_<set>`.
fn metrics(recipe: &Recipe, outcomes: &[(u64, Outcome)], common: &Common) -> Map<String, Value> {
    let mut metrics = Map::new();
    let Some((_, first)) = outcomes.first() else {
        return metrics;
    };
    for (place, set) in first.test.iter().enumerate() {
        for psnr in [true, false] {
            let value = |outcome: &Outcome| {
                let [_, restored] = outcome.test[place].means();
                if psnr { restored.psnr } else { restored.ssim }
            };
            let values: Vec<f64> = outcomes.iter().map(|(_, outcome)| value(outcome)).collect();
            let seeds: Vec<Value> = outcomes
                .iter()
                .map(|(seed, outcome)| json!({ "seed": seed, "value": value(outcome) }))
                .collect();
            let name = format!("{}_{}", if psnr { "psnr" } else { "ssim" }, set.name);
            let found = over_seeds(recipe, (&name, json!("higher")), &values, &seeds, common);
            metrics.insert(name, found);
        }
    }
    metrics
}

/// The sets as they came, by the classical method and by the network, in dB.
fn comparison(recipe: &Recipe, outcomes: &[(u64, Outcome)]) -> Value {
    let Some((_, first)) = outcomes.first() else {
        return Value::Null;
    };
    let trained: f64 = outcomes.iter().map(|(_, outcome)| outcome.seconds).sum();
    let mut rows = Vec::new();
    for (place, set) in first.test.iter().enumerate() {
        let [came, _] = set.means();
        let mut values = vec![("as it came", vec![(0, came.psnr)])];
        if let Some(Some(baseline)) = first.baseline.get(place) {
            values.push(("cosine transform", vec![(0, baseline.means()[1].psnr)]));
        }
        let of = |(seed, outcome): &(u64, Outcome)| (*seed, outcome.test[place].means()[1].psnr);
        values.push((recipe.name.as_str(), outcomes.iter().map(of).collect()));
        let means: Vec<f64> = values
            .iter()
            .map(|(_, seeds)| {
                seeds.iter().map(|(_, value)| value).sum::<f64>() / seeds.len() as f64
            })
            .collect();
        for ((model, seeds), mean) in values.iter().zip(&means) {
            let all: Vec<f64> = seeds.iter().map(|(_, value)| *value).collect();
            let (_, sd) = crate::compare::mean_sd(&all);
            let seeds = seeds
                .iter()
                .map(|(seed, value)| json!({ "seed": seed, "value": value }));
            rows.push(json!({
                "model": model,
                "split": set.name,
                "seeds": seeds.collect::<Vec<_>>(),
                "mean": mean,
                "sd": sd,
                "rank": 1 + means.iter().filter(|other| *other > mean).count(),
                "seconds": if *model == recipe.name { trained } else { 0.0 },
                "peak_mb": null,
                "note": "",
            }));
        }
    }
    json!({ "metric": "psnr", "direction": "higher", "rows": rows })
}

/// Pictures that stand side by side: as it came, restored, clean.
const SHOWN: usize = 2;

fn before_after(
    prepared: &Prepared,
    settings: &RestoreSettings,
    folder: &Path,
    device: tch::Device,
) -> Result<Option<PathBuf>> {
    let Some(pairs) = prepared.test.first() else {
        return Ok(None);
    };
    let restorer = Restorer::open(folder, device)?;
    // As the test sets are judged.
    let whole = RestoreOptions {
        tiling: Tiling::WHOLE,
        ensemble: false,
    };
    let mut cells = Vec::new();
    for place in 0..pairs.len().min(SHOWN) {
        let [spoilt, clean] = pairs.whole(place)?;
        let restored = restorer.restore(&spoilt, whole, &mut |_, _| {})?;
        for (name, xs) in [
            ("as it came", &spoilt),
            ("restored", &restored),
            ("clean", &clean),
        ] {
            let mut caption = vec![name.to_owned()];
            if name != "clean" {
                let found = settings.data.judge.fidelity(xs, &clean)?;
                caption.push(format!("{:.2} dB", found.psnr));
            }
            cells.push(Cell {
                png: thumbnail(&to_image(xs)?, 512)?,
                caption,
                wrong: false,
            });
        }
    }
    let path = folder.join("plots").join("pictures.svg");
    grid::pictures(
        &path,
        &format!("{}: before and after", pairs.name),
        &cells,
        3,
        256,
    )?;
    Ok(Some(path))
}

fn write_report(
    recipe: &Recipe,
    settings: &RestoreSettings,
    prepared: &Prepared,
    outcome: &Outcome,
    folder: &Path,
    seed: u64,
) -> Result<()> {
    let fact = |name: &str, value: String| (name.to_owned(), value);
    let row = |judged: &Judged, by: &str, place: usize| {
        let found = judged.means()[place];
        vec![
            judged.name.clone(),
            by.to_owned(),
            format!("{:.2}", found.psnr),
            format!("{:.4}", found.ssim),
        ]
    };
    let mut means = vec![
        row(&outcome.valid, "as it came", 0),
        row(&outcome.valid, "restored", 1),
    ];
    for (place, judged) in outcome.test.iter().enumerate() {
        means.push(row(judged, "as it came", 0));
        if let Some(Some(baseline)) = outcome.baseline.get(place) {
            means.push(row(baseline, "cosine transform", 1));
        }
        means.push(row(judged, "restored", 1));
    }
    let mut sections = vec![Section {
        title: "Means over the pictures".to_owned(),
        header: ["set", "pictures", "psnr [dB]", "ssim"]
            .map(str::to_owned)
            .to_vec(),
        rows: means,
        text: String::new(),
    }];
    for judged in &outcome.test {
        let rows = judged.pictures.iter().map(|(name, came, restored)| {
            vec![
                name.clone(),
                format!("{:.2}", came.psnr),
                format!("{:.2}", restored.psnr),
                format!("{:.4}", restored.ssim),
            ]
        });
        sections.push(Section {
            title: judged.name.clone(),
            header: [
                "picture",
                "psnr as it came [dB]",
                "psnr restored [dB]",
                "ssim restored",
            ]
            .map(str::to_owned)
            .to_vec(),
            rows: rows.collect(),
            text: String::new(),
        });
    }
    let report = Report {
        title: recipe.title.clone(),
        facts: vec![
            fact("model", settings.model.preset.clone()),
            fact("parameters", outcome.parameters.to_string()),
            fact(
                "pictures",
                format!(
                    "{} train, {} valid",
                    prepared.train.len(),
                    prepared.valid.len()
                ),
            ),
            fact("seed", seed.to_string()),
            fact(
                "best epoch",
                format!("{} of {}", outcome.best_epoch + 1, outcome.epochs),
            ),
            fact("seconds", format!("{:.1}", outcome.seconds)),
        ],
        scores: Vec::new(),
        sections,
        notes: prepared
            .bad
            .iter()
            .map(|bad| format!("left out: {}: {}", bad.name, bad.reason))
            .collect(),
    };
    report::write(folder, &report).map(|_| ())
}
