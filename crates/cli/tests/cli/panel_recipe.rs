//! Recipes with the settings of `densely forecast fit`.

use std::fmt::Write;

use densely_data::Table;
use serde_json::Value;

use crate::{Bench, stderr, stdout};

const RECIPE: &str = r#"
name = "shops"
title = "Shops"
domain = "forecast"
seeds = [0, 1]

[data]
file = "shops.csv"
series_id = ["shop"]
target = ["sold"]
known = ["promotion"]

[forecast]
horizon = 6
lookback = 14
season = 7

[train]
optimizer = { name = "adam", lr = 5e-3 }
epochs = 6

[quick]
train = { epochs = 4 }

[compare]
models = [{ name = "no promotions", data = { known = [] }, model = { preset = "nlinear" } }]
"#;

/// Days of shops whose sales double on days that only the column tells.
fn shops() -> String {
    let mut text = "day,shop,sold,promotion\n".to_owned();
    for shop in 0..3_usize {
        for day in 0..28 * 8 {
            let promotion = usize::from(
                ((day * 7 + shop * 3_usize).wrapping_mul(2_654_435_761) >> 7).is_multiple_of(4),
            );
            let sold = (10 + 5 * shop + day % 7) * (1 + promotion);
            writeln!(
                text,
                "2024-{:02}-{:02},{shop},{sold},{promotion}",
                1 + day / 28,
                1 + day % 28
            )
            .unwrap();
        }
    }
    // Months of 28 days: days that do not exist are gaps, and filled.
    text
}

fn train(bench: &Bench, words: &[&str]) -> assert_cmd::assert::Assert {
    let all: Vec<&str> = [
        "train",
        "recipe.toml",
        "--quick",
        "--threads",
        "1",
        "--device",
        "cpu",
    ]
    .iter()
    .chain(words)
    .copied()
    .collect();
    bench.densely(&all)
}

#[test]
fn a_recipe_of_own_series_stands_beside_models_without_covariates_and_the_naive_forecast() {
    let bench = Bench::new();
    bench.write("shops.csv", &shops());
    bench.write("recipe.toml", RECIPE);
    let summary: Value = serde_json::from_str(&stdout(
        &train(&bench, &["--json", "--out", "runs/r"]).success(),
    ))
    .unwrap();
    let mae = &summary["metrics"]["mae"];
    assert_eq!(mae["seeds"].as_array().map(Vec::len), Some(2));
    for seed in 0..2 {
        let table =
            Table::open(&bench.path(&format!("runs/r/seed-{seed}/predictions.parquet"))).unwrap();
        let (came, forecast) = (
            table.numbers("sold").unwrap(),
            table.numbers("sold_forecast").unwrap(),
        );
        let sum: f64 = came.iter().zip(&forecast).map(|(y, f)| (y - f).abs()).sum();
        let stated = mae["seeds"][seed]["value"].as_f64().unwrap();
        assert!(
            (stated - sum / came.len() as f64).abs() < 1e-6 * stated,
            "{stated}"
        );
    }
    let rows = summary["comparison"]["rows"].as_array().unwrap();
    let names: Vec<&str> = rows
        .iter()
        .map(|row| row["model"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        ["tsmixer-ext", "no promotions", "the last 7 steps again"]
    );
    let means: Vec<f64> = rows
        .iter()
        .map(|row| row["mean"].as_f64().unwrap())
        .collect();
    assert!(
        means[0] < means[1] && means[0] < means[2],
        "promotions help: {means:?}"
    );
    let note = rows[0]["note"].as_str().unwrap();
    assert!(
        note.contains("parameters; ") && note.contains("% below `the last 7 steps again`"),
        "{note}"
    );
    assert_eq!(rows[0]["rank"], 1);
    assert!(bench.path("runs/r/comparison.svg").exists());
    assert!(
        bench
            .path("runs/r/comparison/no-promotions/seed-1/report.md")
            .exists()
    );

    let refused = |words: &[&str], part: &str| {
        let said = stderr(&train(&bench, words).code(1));
        assert!(said.contains(part) && !said.contains("panicked"), "{said}");
    };
    refused(&["--set", "forecast.horizont=6"], "horizont");
    refused(
        &["--set", "compare.models=[{ data = {} }]"],
        "each must have a `name`",
    );
    refused(
        &[
            "--set",
            "compare.models=[{ name = \"A b\" }, { name = \"a-b\" }]",
        ],
        "`A b` and `a-b` would share the folder `a-b`",
    );
    refused(&["--set", "compare.modells=[]"], "compare: ");
    refused(
        &["--set", "compare.metric=owa"],
        "must be one of mae, rmse, mse, pinball",
    );
    refused(&["--export", "x"], "recipes of the domain tabular");
    refused(
        &["--set", "domain=timeseries"],
        "is for recipes of the domain forecast",
    );
}

#[test]
fn a_recipe_on_series_of_the_m4_competition_has_its_errors() {
    let bench = Bench::new();
    let line = |series: usize, steps: std::ops::Range<usize>| {
        let value = |step: usize| {
            10.0 + series as f64 + (step % 4) as f64 + (step * 7919 % 11) as f64 / 10.0
        };
        let values: Vec<String> = steps.map(|step| value(step).to_string()).collect();
        format!("H{series},{}", values.join(","))
    };
    let header = |columns: usize| {
        (1..=columns)
            .map(|i| format!("V{i}"))
            .collect::<Vec<_>>()
            .join(",")
    };
    let train_file = format!(
        "{}\n{}\n{}{}\n",
        header(121),
        line(1, 0..120),
        line(2, 0..100),
        ",".repeat(20)
    );
    bench.write("train.csv", &train_file);
    bench.write(
        "test.csv",
        &format!(
            "{}\n{}\n{}\n",
            header(5),
            line(1, 120..124),
            line(2, 100..104)
        ),
    );
    let recipe = r#"
name = "m"
title = "M"
domain = "forecast"
seeds = [0]
[data]
file = "train.csv"
m4 = { future = "test.csv", season = 4 }
series_id = ["series"]
target = ["value"]
[forecast]
horizon = 4
lookback = 12
season = 4
valid = 0.01
test = 0.01
[model]
preset = "nlinear"
[train]
epochs = 2
[compare]
metric = "owa"
"#;
    bench.write("recipe.toml", recipe);
    let summary: Value = serde_json::from_str(&stdout(
        &train(&bench, &["--json", "--out", "runs/r"]).success(),
    ))
    .unwrap();
    let metric = |name: &str| summary["metrics"][name]["mean"].as_f64().unwrap();
    let rows = summary["comparison"]["rows"].as_array().unwrap();
    let names: Vec<&str> = rows
        .iter()
        .map(|row| row["model"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["nlinear", "Naive", "sNaive", "Naive2"]);
    assert!(
        (rows[3]["mean"].as_f64().unwrap() - 1.0).abs() < 1e-12,
        "Naive2 is its own yardstick"
    );
    // sMAPE from the predictions, by hand.
    let table = Table::open(&bench.path("runs/r/seed-0/predictions.parquet")).unwrap();
    let (came, forecast) = (
        table.numbers("value").unwrap(),
        table.numbers("value_forecast").unwrap(),
    );
    assert_eq!(came.len(), 8, "one window per series");
    let smape: f64 = came
        .iter()
        .zip(&forecast)
        .map(|(y, f)| 200.0 * (y - f).abs() / (y.abs() + f.abs()))
        .sum::<f64>()
        / 8.0;
    assert!((metric("smape") - smape).abs() < 1e-6 * smape);
    assert!(metric("mase") > 0.0 && metric("owa") > 0.0);

    let short = stderr(&train(&bench, &["--set", "forecast.test=0.2"]).code(1));
    assert!(
        short.contains("the test must be the last 4 steps of each of the 2 series"),
        "{short}"
    );
}
