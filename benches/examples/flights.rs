//! Our side of the comparison on flights: fits one model to a recipe's table, then predicts its test rows whenever a line arrives
//! on standard input.
//!
//! ```text
//! flights RECIPE DATA_DIR MODEL    RECIPE: a TOML file; MODEL: `own`, or a name in the recipe's `[compare]`
//! → {"ready": true, "fit_seconds": .., "roc_auc": .., "rows": .., "threads": ..}
//! ← (a line)
//! → {"ms": [..]}                   all test rows, from features to probabilities
//! ← (end of input)
//! → {"peak_mb": ..}
//! ```
#![expect(clippy::print_stdout, reason = "a command line program")]

use std::io::BufRead;
use std::path::Path;
use std::time::Instant;

use densely_core::{Device, Error, Result};
use densely_data::Table;
use densely_tabular::fit::{FitOptions, Fitted, Prepared, fit};
use densely_tabular::settings::FitSettings;
use densely_train::metrics::Metric;
use densely_train::peak_rss_mb;
use serde_json::{Value, json};

/// The recipe at its quick size, with the model of that name in its comparison.
fn recipe(path: &Path, model: &str) -> Result<Value> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    let wrong = |e: toml::de::Error| Error::corrupt(path, e.to_string());
    let mut recipe: Value = toml::from_str(&text).map_err(wrong)?;
    let quick = recipe["quick"].take();
    merge(&mut recipe, quick);
    let listed = recipe["compare"]["models"].as_array().cloned();
    let entry = listed
        .into_iter()
        .flatten()
        .find(|entry| entry["name"] == model)
        .ok_or_else(|| {
            Error::config("model", format!("the recipe compares none named `{model}`"))
        })?;
    if let Some(model) = entry.get("model") {
        recipe["model"] = model.clone();
    }
    if let Some(train) = entry.get("train") {
        merge(&mut recipe["train"], train.clone());
    }
    Ok(recipe)
}

fn merge(into: &mut Value, changes: Value) {
    match (into, changes) {
        (Value::Object(into), Value::Object(changes)) => {
            for (key, value) in changes {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (_, Value::Null) => (),
        (into, changes) => *into = changes,
    }
}

/// Takes what names the table out of `data`, and reads it.
fn table(data: &mut Value, folder: &Path) -> Result<Table> {
    let wrong = || Error::config("data", "needs `file`, and `join` as a list of files");
    let parts = data.as_object_mut().ok_or_else(wrong)?;
    parts.remove("dataset");
    let (file, join) = (parts.remove("file"), parts.remove("join"));
    let open = |file: &Value| Table::open(&folder.join(file.as_str().unwrap_or_default()));
    let mut table = open(&file.ok_or_else(wrong)?)?;
    for join in join
        .iter()
        .flat_map(|join| join.as_array().into_iter().flatten())
    {
        let on: Vec<String> = serde_json::from_value(join["on"].clone()).map_err(|_| wrong())?;
        table = table.join(
            &open(&join["file"])?,
            &on,
            join["prefix"].as_str().unwrap_or_default(),
        )?;
    }
    Ok(table)
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [path, folder, model] = words.as_slice() else {
        return Err(Error::config("arguments", "RECIPE DATA_DIR MODEL"));
    };
    let (path, folder) = (Path::new(path), Path::new(folder));
    let mut recipe = recipe(path, model)?;
    let table = table(&mut recipe["data"], folder)?;
    let settings: FitSettings = serde_json::from_value(json!({
        "data": recipe["data"], "model": recipe["model"], "train": recipe["train"],
    }))
    .map_err(|e| Error::corrupt(path, e.to_string()))?;
    let prepared = Prepared::new(&table, &settings.data)?;
    let run = std::env::temp_dir().join(format!("densely-bench-flights-{}", std::process::id()));
    let device = Device::Cpu.open()?;
    let options = FitOptions {
        folder: &run,
        table: &folder.join("flights.csv"),
        seed: 0,
        device,
        resume: None,
    };
    let outcome = fit(&prepared, &settings, &options, &mut |_| ())?;
    let fitted = Fitted::open(&run, device)?;
    std::fs::remove_dir_all(&run).map_err(Error::io(&run))?;
    let found = outcome
        .test
        .iter()
        .find(|(metric, _)| *metric == Metric::RocAuc);
    let roc_auc = found.map(|(_, value)| *value);
    let _ = fitted.predict_data(&prepared.test)?; // warm-up
    let peak = peak_rss_mb();
    println!(
        "{}",
        json!({"ready": true, "fit_seconds": outcome.seconds, "roc_auc": roc_auc, "rows": prepared.split.test.len(),
               "threads": tch::get_num_threads()})
    );
    for line in std::io::stdin().lock().lines() {
        line.map_err(Error::io("standard input"))?;
        let begin = Instant::now();
        let _ = fitted.predict_data(&prepared.test)?;
        println!("{}", json!({"ms": [begin.elapsed().as_secs_f64() * 1e3]}));
    }
    println!("{}", json!({"peak_mb": peak}));
    Ok(())
}
