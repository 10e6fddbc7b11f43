//! Recipes of series.

use std::path::Path;

use densely_data::Table;
use serde_json::Value;

use crate::{Bench, stderr, stdout};

/// A recipe of the tree on the file that travels with its crate, made small.
fn train(bench: &Bench, more: &[&str]) -> assert_cmd::assert::Assert {
    let series = Path::new(env!("CARGO_MANIFEST_DIR")).join("../timeseries");
    let (recipe, data) = (
        series.join("recipes/tsmixer-etth1-96.toml"),
        series.join("data"),
    );
    let words = [
        "train",
        recipe.to_str().unwrap(),
        "--data-dir",
        data.to_str().unwrap(),
        "--smoke",
        "--out",
        "runs/t",
    ];
    let small = [
        "data.horizon=6",
        "data.lookback=48",
        "data.blocks={ kind = \"steps\", train = 400, valid = 100, test = 150 }",
        "model.config={ n_block = 1, ff_dim = 8 }",
    ];
    let small = small.iter().flat_map(|change| ["--set", change]);
    let words: Vec<&str> = words
        .into_iter()
        .chain(small)
        .chain(more.iter().copied())
        .collect();
    bench.densely(&words)
}

#[test]
fn a_recipe_of_series_trains_and_its_predictions_give_its_errors() {
    let bench = Bench::new();
    let summary: Value =
        serde_json::from_str(&stdout(&train(&bench, &["--json"]).success())).unwrap();
    let run = bench.path("runs/t/seed-0");
    for file in [
        "report.md",
        "config.toml",
        "plots/forecast.svg",
        "plots/loss.svg",
        "best/preprocess.json",
    ] {
        assert!(run.join(file).exists(), "{file}");
    }
    let table = Table::open(&run.join("predictions.parquet")).unwrap();
    assert_eq!(table.row_count(), 145 * 6); // 150 steps hold 145 futures of 6
    let (mut squared, mut absolute) = (0.0, 0.0);
    for name in ["HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT"] {
        let forecast = table.numbers(&format!("{name}_forecast")).unwrap();
        for (y, forecast) in table.numbers(name).unwrap().iter().zip(forecast) {
            squared += (y - forecast).powi(2);
            absolute += (y - forecast).abs();
        }
    }
    let values = f64::from(145 * 6 * 7);
    for (name, sum) in [("mse", squared), ("mae", absolute)] {
        let stated = summary["metrics"][name]["mean"].as_f64().unwrap();
        assert!(
            (stated - sum / values).abs() < 1e-9 * stated,
            "{name}: {stated}"
        );
    }
}

#[test]
fn mistakes_in_a_recipe_of_series_are_sentences() {
    let bench = Bench::new();
    let refused = |words: &[&str], part: &str| {
        let text = stderr(&train(&bench, words).code(1));
        assert!(text.contains(part) && !text.contains("panicked"), "{text}");
    };
    refused(&["--set", "data.time=when"], "no column `when`");
    refused(&["--set", "data.time=OT"], "column `OT`: holds no times");
    refused(
        &["--set", "data.channels=[\"OT\", \"WIND\"]"],
        "no column `WIND`",
    );
    refused(&["--set", "data.lookback=5000"], "do not fit into");
    refused(&["--set", "model.preset=tabm"], "no model is called `tabm`");
    refused(&["--set", "model.config.channels=3"], "is set by `data`");
    refused(&["--set", "train.batch_size=0"], "train.batch_size");
    refused(&["--export", "x"], "--export");
    refused(
        &["--set", "domain=weather"],
        "must be one of tabular, timeseries",
    );
}

#[test]
fn a_file_that_is_not_there_says_where_it_is_to_be_had() {
    let bench = Bench::new();
    let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("../timeseries/recipes");
    for command in ["train", "tune"] {
        let recipe = recipes.join("tsmixer-traffic-96.toml");
        let range = "tune.space={ \"model.config.dropout\" = { choice = [0.1, 0.9] } }";
        let words = [command, recipe.to_str().unwrap(), "--set", range];
        let text = stderr(&bench.densely(&words).code(1));
        assert!(
            text.contains("traffic.csv: No such file")
                && text.contains("`cargo xtask data get traffic` fetches it or says where"),
            "{text}"
        );
    }
}
