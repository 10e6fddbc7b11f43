//! Forecasts of distributions, and tables through pipes.

use std::fmt::Write;

use assert_cmd::Command;
use serde_json::Value;

use crate::{Bench, stderr, stdout};

/// Hours of sales in whole numbers, the time in four columns.
fn counts(days: usize) -> String {
    let mut text = "year,month,day,hour,sold\n".to_owned();
    for hour in 0..24 * days {
        let sold = 6 + (hour % 24) / 4 + (hour * 7919 % 13) / 4;
        writeln!(
            text,
            "2024,{:02},{},{},{sold}",
            1 + hour / 24 / 28,
            1 + hour / 24 % 28,
            hour % 24
        )
        .unwrap();
    }
    text
}

const FIT: [&str; 14] = [
    "--time",
    "year,month,day,hour",
    "--horizon",
    "6",
    "--lookback",
    "24",
    "--epochs",
    "2",
    "--threads",
    "1",
    "--device",
    "cpu",
    "--out",
    "run",
];

#[test]
fn a_distribution_of_counts_is_forecast_from_a_file_and_through_a_pipe() {
    let bench = Bench::new();
    let text = counts(28);
    bench.write("sold.csv", &text);
    let fit = |words: &[&str]| {
        let all: Vec<&str> = ["forecast", "fit", "sold.csv"]
            .iter()
            .chain(&FIT)
            .chain(words)
            .copied()
            .collect();
        bench.densely(&all)
    };
    for (words, part) in [
        (
            ["--distribution", "normal", "--model", "nlinear"],
            "has no distribution head",
        ),
        (
            ["--distribution", "normal", "--calendar", "hour"],
            "read by tsmixer-ext",
        ),
    ] {
        let said = stderr(&fit(&words).code(1));
        assert!(said.contains(part), "{said}");
    }
    let fitted = fit(&["--distribution", "negative_binomial", "--json"]).success();
    let said = stderr(&fitted);
    for part in [
        "times are put together from `year`, `month`, `day`, `hour`",
        "quantiles 0.1, 0.5 and 0.9 of the distribution",
    ] {
        assert!(said.contains(part), "{said}");
    }
    let summary: Value = serde_json::from_str(&stdout(&fitted)).unwrap();
    assert!(summary["test"]["nll"].as_f64().is_some_and(f64::is_finite));
    assert_eq!(
        summary["test"]["coverage"].as_array().map(Vec::len),
        Some(3)
    );
    let report = std::fs::read_to_string(bench.path("run/report.md")).unwrap();
    assert!(
        report.contains("negative_binomial: negative log-likelihood"),
        "{report}"
    );
    let plot = std::fs::read_to_string(bench.path("run/plots/forecast.svg")).unwrap();
    assert!(plot.contains("0.1 to 0.9"), "the interval is drawn");

    let from_file = stdout(
        &bench
            .densely(&["forecast", "predict", "run", "sold.csv", "--quiet"])
            .success(),
    );
    assert!(
        from_file
            .starts_with("time,sold_forecast,sold_q0.1,sold_q0.5,sold_q0.9\n2024-01-29 00:00:00,"),
        "{from_file}"
    );
    let pipe = |text: &str, words: &[&str]| {
        Command::cargo_bin("densely")
            .unwrap()
            .current_dir(bench.folder.path())
            .args(["forecast", "predict", "run", "-", "--quiet"])
            .args(words)
            .write_stdin(text)
            .assert()
    };
    assert_eq!(stdout(&pipe(&text, &[]).success()), from_file);
    assert_eq!(
        stdout(&pipe(&text.replace(',', "\t"), &["--input-format", "tsv"]).success()),
        from_file
    );
    let bad = stderr(&pipe(&text.replace(",28,", ",38,"), &[]).code(1));
    assert!(
        bad.contains("standard input") && bad.contains("`38` is no day"),
        "{bad}"
    );
    assert!(stderr(&pipe("", &[]).code(1)).contains("standard input"));
}
