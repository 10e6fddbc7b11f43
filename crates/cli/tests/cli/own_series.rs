//! Series that nobody prepared, from `forecast fit` to `evaluate`, `predict` and `backtest`.

use std::fmt::Write;

use densely_data::Table;
use serde_json::Value;

use crate::{Bench, stderr, stdout};

/// Hours from 2024-03-25 00:00, a Monday, as `YYYY-MM-DD HH:00`; within the month.
fn stamp(hour: usize) -> String {
    let (day, month) = match 25 + hour / 24 {
        day @ 0..=31 => (day, 3),
        day @ 32..=61 => (day - 31, 4),
        day => (day - 61, 5),
    };
    format!("2024-{month:02}-{day:02} {:02}:00", hour % 24)
}

fn value(hour: usize) -> f64 {
    50.0 + 10.0 * (std::f64::consts::TAU * hour as f64 / 24.0).sin()
        + (hour * 7919 % 13) as f64 / 10.0
}

/// Two columns, hour after hour; `line` may change or drop one.
fn wide(hours: usize, line: impl Fn(usize, String) -> Option<String>) -> String {
    let rows = (0..hours).filter_map(|hour| {
        line(
            hour,
            format!(
                "{},{:.3},{:.3}",
                stamp(hour),
                value(hour),
                2.0 * value(hour + 6)
            ),
        )
    });
    let mut text = "time,load,wind\n".to_owned();
    for row in rows {
        writeln!(text, "{row}").unwrap();
    }
    text
}

const QUICK: [&str; 10] = [
    "--horizon",
    "12",
    "--epochs",
    "2",
    "--threads",
    "1",
    "--device",
    "cpu",
    "--lookback",
    "24",
];

impl Bench {
    fn forecast(&self, table: &str, words: &[&str]) -> assert_cmd::assert::Assert {
        let all: Vec<&str> = ["forecast", "fit", table]
            .iter()
            .chain(&QUICK)
            .chain(words)
            .copied()
            .collect();
        self.densely(&all)
    }
}

#[test]
fn a_wide_table_is_fitted_evaluated_forecast_and_backtested() {
    let bench = Bench::new();
    bench.write("load.csv", &wide(480, |_, line| Some(line)));
    let fitted = bench
        .forecast(
            "load.csv",
            &["--quantiles", "0.1,0.9", "--out", "run", "--json"],
        )
        .success();
    let said = stderr(&fitted);
    for part in [
        "quantile 0.5 joins",
        "targets: all 2 columns",
        "step: 1 h",
        "the last season of 24 steps again",
        "2 series of 480 steps, side by side",
    ] {
        assert!(said.contains(part), "{part}\n{said}");
    }
    for file in [
        "report.md",
        "config.toml",
        "plots/forecast.svg",
        "plots/pinball.svg",
        "best/preprocess.json",
    ] {
        assert!(bench.path("run").join(file).exists(), "{file}");
    }
    let plot = std::fs::read_to_string(bench.path("run/plots/forecast.svg")).unwrap();
    assert!(
        plot.contains("0.1 to 0.9") && plot.contains("naive"),
        "the interval is drawn"
    );

    // What is stated can be computed from the predictions.
    let summary: Value = serde_json::from_str(&stdout(&fitted)).unwrap();
    let predictions = Table::open(&bench.path("run/predictions.parquet")).unwrap();
    let windows = summary["test"]["windows"].as_u64().unwrap();
    assert_eq!(predictions.row_count() as u64, windows * 12);
    for name in ["load", "wind"] {
        let came = predictions.numbers(name).unwrap();
        let error = |column: &str| -> Vec<f64> {
            predictions
                .numbers(column)
                .unwrap()
                .iter()
                .zip(&came)
                .map(|(f, y)| y - f)
                .collect()
        };
        let mae = error(&format!("{name}_forecast"))
            .iter()
            .map(|e| e.abs())
            .sum::<f64>()
            / came.len() as f64;
        let stated = summary["test"]["targets"][name]["mae"].as_f64().unwrap();
        assert!(
            (stated - mae).abs() < 1e-6 * mae,
            "{name}: {stated} instead of {mae}"
        );
    }
    let below = |q: &str| -> usize {
        ["load", "wind"]
            .iter()
            .map(|name| {
                let came = predictions.numbers(name).unwrap();
                predictions
                    .numbers(&format!("{name}_{q}"))
                    .unwrap()
                    .iter()
                    .zip(came)
                    .filter(|(f, y)| y <= *f)
                    .count()
            })
            .sum()
    };
    let share = below("q0.1") as f64 / (2 * predictions.row_count()) as f64;
    let stated = summary["test"]["coverage"][0]["below"].as_f64().unwrap();
    assert!((share - stated).abs() < 1e-3, "{stated} instead of {share}");

    let again = bench.forecast("load.csv", &["--out", "run"]).code(1);
    assert!(stderr(&again).contains("already holds a run; continue it with `--resume`"));

    let evaluated = bench
        .densely(&["forecast", "evaluate", "run", "load.csv"])
        .success();
    assert!(stdout(&evaluated).contains(&format!("{} windows of load.csv", 480 - 36 + 1)));
    assert!(stderr(&evaluated).contains("such errors flatter"));

    let _ = bench
        .densely(&[
            "forecast", "predict", "run", "load.csv", "--out", "next.csv",
        ])
        .success();
    let next = std::fs::read_to_string(bench.path("next.csv")).unwrap();
    let mut lines = next.lines();
    assert_eq!(
        lines.next(),
        Some("time,load_forecast,load_q0.1,load_q0.9,wind_forecast,wind_q0.1,wind_q0.9")
    );
    assert!(
        lines
            .next()
            .is_some_and(|line| line.starts_with("2024-04-14 00:00:00,")),
        "{next}"
    );
    assert_eq!(lines.count(), 11);
    let piped = bench
        .densely(&["forecast", "predict", "run", "load.csv", "--quiet"])
        .success();
    assert_eq!(stdout(&piped), next);
    let own = bench
        .densely(&[
            "forecast", "predict", "run", "load.csv", "--out", "load.csv",
        ])
        .code(1);
    assert!(stderr(&own).contains("would overwrite load.csv, which is read"));

    let backtest = bench
        .densely(&[
            "forecast",
            "backtest",
            "run",
            "load.csv",
            "--origins",
            "4",
            "--stride",
            "24",
            "--json",
        ])
        .success();
    let found: Value = serde_json::from_str(&stdout(&backtest)).unwrap();
    assert_eq!(
        (
            found["origins"].as_array().unwrap().len(),
            found["steps"].as_array().unwrap().len()
        ),
        (4, 12)
    );
    assert_eq!(found["origins"][3]["origin"], "2024-04-13 12:00:00");
    for file in [
        "by_origin.csv",
        "by_step.csv",
        "by_origin.svg",
        "by_step.svg",
    ] {
        assert!(bench.path("run/backtest").join(file).exists(), "{file}");
    }
    let many = bench
        .densely(&[
            "forecast",
            "backtest",
            "run",
            "load.csv",
            "--origins",
            "99",
            "--stride",
            "24",
        ])
        .code(1);
    assert!(
        stderr(&many).contains("room for 19 origins"),
        "{}",
        stderr(&many)
    );
}

#[test]
fn each_oddity_of_an_hourly_table_has_its_sentence() {
    let bench = Bench::new();
    let all = |_: usize, line: String| Some(line);
    let check = |name: &str, text: &str, words: &[&str], code: i32, part: &str| {
        let file = format!("{name}.csv");
        bench.write(&file, text);
        let words: Vec<&str> = words
            .iter()
            .chain(&["--model", "nlinear", "--out", name])
            .copied()
            .collect();
        let said = stderr(&bench.forecast(&file, &words).code(code));
        assert!(
            said.contains(part) && !said.contains("panicked"),
            "{name}: {said}"
        );
    };
    let short = wide(480, |hour, line| {
        (!(100..102).contains(&hour)).then_some(line)
    });
    check(
        "gap",
        &short,
        &[],
        0,
        "2 steps filled along a straight line",
    );
    let long = wide(480, |hour, line| {
        (!(100..130).contains(&hour)).then_some(line)
    });
    check(
        "long_gap",
        &long,
        &[],
        1,
        "1 gap in the targets, the longest 30 steps: column `load` from 2024-03-29 04:00:00 to 2024-03-30 09:00:00; only gaps of up to 3 steps are filled",
    );
    check(
        "split",
        &long,
        &["--gaps", "split"],
        0,
        "cut at 1 gap longer than 3 steps",
    );
    let twice = wide(480, |hour, line| {
        Some(if hour == 50 {
            line.replace("2024-03-27 02:00", "2024-03-27 01:00")
        } else {
            line
        })
    });
    check(
        "twice",
        &twice,
        &[],
        1,
        "row 52, column `time`: the time 2024-03-27 01:00:00 stands in row 51 already",
    );
    check(
        "merged",
        &twice,
        &["--duplicates", "mean"],
        0,
        "1 row has the series and time of another: their numbers are averaged",
    );
    let zones = wide(480, |hour, line| {
        let (shown, offset) = if hour < 200 {
            (hour, "+00:00")
        } else {
            (hour + 1, "+01:00")
        };
        Some(line.replacen(&stamp(hour), &format!("{}{offset}", stamp(shown)), 1))
    });
    check(
        "zones",
        &zones,
        &[],
        0,
        "has 2 offsets from universal time (+00:00, +01:00): all times are taken as universal time",
    );
    // 2024-03-31 02:00 is hour 146 of the table.
    let spring = wide(480, |hour, line| (hour != 146).then_some(line));
    check(
        "spring",
        &spring,
        &[],
        0,
        "an hour (1 h) is absent on a Sunday night when clocks are set forward (the night 2024-03-31 02:00:00)",
    );
    check(
        "zone",
        &spring,
        &["--time-zone", "Europe/Berlin"],
        0,
        "2 series of 479 steps",
    );
    let sorted = wide(480, all);
    let mut reversed: Vec<&str> = sorted.lines().skip(1).collect();
    reversed.reverse();
    check(
        "reversed",
        &format!("time,load,wind\n{}\n", reversed.join("\n")),
        &[],
        0,
        "the newest rows stand first: sorted by time",
    );
    let constant = wide(480, |_, line| {
        Some(format!("{},7", line.rsplit_once(',').unwrap().0))
    });
    check(
        "constant",
        &constant,
        &[],
        0,
        "1 series is constant while training: `wind`",
    );
    check(
        "short",
        &wide(40, all),
        &[],
        1,
        "no series holds a window of 24 + 12 steps (lookback and horizon) for `train`: the longest run before the validation has 16; take `--lookback` up to 4",
    );
    check(
        "empty",
        "time,load\n",
        &[],
        1,
        "the file has a header but no rows",
    );
    check(
        "words",
        "time,load\n2024-01-01,a\n2024-01-02,b\n",
        &[],
        1,
        "no column of numbers is left to forecast",
    );
    check(
        "quantiles",
        &wide(480, all),
        &["--quantiles", "0.5,2"],
        1,
        "must be ascending numbers between 0 and 1",
    );
    check(
        "setting",
        &wide(480, all),
        &["--set", "model.config.channels=3"],
        1,
        "is set by `data`",
    );
}

#[test]
fn a_long_table_with_covariates_asks_for_their_future() {
    let bench = Bench::new();
    let rows = |future: bool| {
        let mut text = "shop,kind,time,sold,price\n".to_owned();
        for (at, shop) in ["a", "b", "c"].into_iter().enumerate() {
            for hour in 0..if future { 312 } else { 300 } {
                let price = 1 + (hour * 7 + at) % 3;
                let sold = if hour < 300 {
                    format!(
                        "{:.2}",
                        value(hour) * (at + 1) as f64 / f64::from(price as u32)
                    )
                } else {
                    String::new()
                };
                writeln!(text, "{shop},{},{},{sold},{price}", at % 2, stamp(hour)).unwrap();
            }
        }
        text
    };
    bench.write("sales.csv", &rows(false));
    bench.write("planned.csv", &rows(true));
    let columns = [
        "--series-id",
        "shop",
        "--target",
        "sold",
        "--known",
        "price",
        "--static",
        "kind",
        "--calendar",
        "hour",
        "--out",
        "run",
    ];
    let said = stderr(&bench.forecast("sales.csv", &columns).success());
    assert!(
        said.contains("model: tsmixer-ext")
            && said.contains("3 series of 900 steps in all, 1 of each forecast"),
        "{said}"
    );
    let refused = bench
        .densely(&["forecast", "predict", "run", "sales.csv"])
        .code(1);
    assert!(stderr(&refused).contains("column `price`: series `a`, no value is known at 2024-04-06 12:00:00; give the 12 steps"), "{}", stderr(&refused));
    let in_rows = stdout(
        &bench
            .densely(&["forecast", "predict", "run", "planned.csv"])
            .success(),
    );
    let in_file = stdout(
        &bench
            .densely(&[
                "forecast",
                "predict",
                "run",
                "sales.csv",
                "--known-future",
                "planned.csv",
            ])
            .success(),
    );
    assert_eq!(in_rows, in_file);
    assert_eq!(in_rows.lines().count(), 1 + 3 * 12);
    assert!(
        in_rows.starts_with("shop,time,sold_forecast\na,2024-04-06 12:00:00,"),
        "{in_rows}"
    );
    let absent = bench
        .densely(&["forecast", "predict", "nothing", "sales.csv"])
        .code(1);
    assert!(stderr(&absent).contains("nothing: there is no such run folder"));
    bench.write("other.csv", &rows(true).replace("price", "cost"));
    let other = bench
        .densely(&["forecast", "predict", "run", "other.csv"])
        .code(1);
    assert!(stderr(&other).contains("no column `price`"));
}
