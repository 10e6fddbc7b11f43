//! A table that nobody prepared, from `fit` to `predict`, `importance` and `prune`.

use std::fmt::Write;
use std::process::{Command, Stdio};

use crate::{Bench, stderr, stdout};

/// Windows line ends, a byte-order mark, an identifier, free text, missing cells, a constant, dates, mixed types.
fn messy(rows: usize) -> String {
    let mut text = String::from(
        "\u{feff}Customer ID,signed up,city,\"income, EUR\",age,plan,newsletter,country,comment,churned\r\n",
    );
    for i in 0..rows {
        let age = if i % 11 == 0 {
            String::new()
        } else {
            (18 + i * 7 % 60).to_string()
        };
        let income = if i % 13 == 0 {
            "n/a".to_owned()
        } else {
            format!("{}.5", 1000 + i * 37 % 4000)
        };
        let city = ["Kyiv", "Lyon", "Osaka", "", "São Paulo"][i % 5];
        let plan = ["basic", "plus", "pro"][i * 3 % 7 % 3];
        let churned = if (i * 7 % 60 > 30) ^ (plan == "pro") {
            "yes"
        } else {
            "no"
        };
        let _ = write!(
            text,
            "{},2024-{:02}-{:02},{city},{income},{age},{plan},{},DE,\"the {} row, said by customer {i} at length\",{churned}\r\n",
            100_000 + i,
            i * 12 / rows + 1,
            i % 28 + 1,
            i % 2 == 0,
            i % 97,
        );
    }
    text
}

fn read(bench: &Bench, name: &str) -> String {
    std::fs::read_to_string(bench.path(name)).unwrap()
}

#[test]
fn a_table_that_nobody_prepared_is_understood_fitted_and_predicted() {
    let bench = Bench::new();
    let table = "churn.csv";
    bench.write(table, &messy(10_000));
    let small = [
        "--set",
        "model.config={ d_block = 16, n_blocks = 1, k = 4 }",
    ];
    let fit = [
        "tabular",
        "fit",
        table,
        "--target",
        "churned",
        "--out",
        "run",
        "--epochs",
        "3",
        "--batch-size",
        "512",
        "--calibrate",
        "--balanced",
        "--threads",
        "2",
    ];
    let words: Vec<&str> = fit.iter().chain(&small).copied().collect();
    let fitted = bench.densely(&words).success();
    let said = stderr(&fitted);
    for (column, role) in [
        ("Customer ID", "left out"),
        ("signed up", "time"),
        ("city", "categorical"),
        ("income, EUR", "numeric"),
        ("age", "numeric"),
        ("plan", "categorical"),
        ("newsletter", "binary"),
        ("country", "left out"),
        ("comment", "left out"),
        ("churned", "target"),
    ] {
        let line = said
            .lines()
            .find(|line| line.trim_start().starts_with(column));
        assert!(
            line.is_some_and(|line| line.contains(role)),
            "{column}: {line:?}\n{said}"
        );
    }
    let report = read(&bench, "run/report.md");
    for text in [
        "| comment | left out |",
        "expected calibration error",
        "free text",
    ] {
        assert!(report.contains(text), "{text}\n{report}");
    }

    // To a file, and through pipes: the same numbers, and the identifier goes along.
    let predict = [
        "tabular",
        "predict",
        "run",
        table,
        "--out",
        "p.csv",
        "--keep",
        "Customer ID",
    ];
    let _ = bench.densely(&predict).success();
    let predictions = read(&bench, "p.csv");
    let mut lines = predictions.lines();
    assert_eq!(
        lines.next(),
        Some("Customer ID,prediction,probability_no,probability_yes")
    );
    assert!(lines.next().is_some_and(|line| line.starts_with("100000,")));
    assert_eq!(lines.count(), 9_999);
    let piped = Command::new(assert_cmd::cargo::cargo_bin!("densely"))
        .args([
            "tabular",
            "predict",
            "run",
            "-",
            "--out",
            "-",
            "--keep",
            "Customer ID",
            "--quiet",
        ])
        .args(["--batch-rows", "16384"])
        .current_dir(bench.path("."))
        .stdin(std::fs::File::open(bench.path("churn.csv")).unwrap())
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(piped.status.success());
    assert_eq!(String::from_utf8(piped.stdout).unwrap(), predictions);

    // A row that does not fit is named, and nothing is written.
    bench.write("bad.csv", &messy(30).replacen("1037.5", "much", 1));
    let refused = bench
        .densely(&["tabular", "predict", "run", "bad.csv", "--out", "bad_p.csv"])
        .code(1);
    let said = stderr(&refused);
    assert!(
        said.contains("row 3, column `income, EUR`") && said.contains("`much`"),
        "{said}"
    );
    assert!(!bench.path("bad_p.csv").exists());
    let absent = [
        "tabular", "predict", "run", table, "--out", "q.csv", "--keep", "nothing",
    ];
    assert!(stderr(&bench.densely(&absent).code(1)).contains("`nothing`"));

    let importance = [
        "tabular",
        "importance",
        "run",
        table,
        "--json",
        "--rows",
        "2000",
        "--repeats",
        "2",
    ];
    let found: serde_json::Value =
        serde_json::from_str(&stdout(&bench.densely(&importance).success())).unwrap();
    let columns = found["columns"].as_array().unwrap();
    assert_eq!(columns.len(), 5);
    let first: Vec<&str> = columns[..2]
        .iter()
        .filter_map(|c| c["column"].as_str())
        .collect();
    assert!(
        first.contains(&"age") && first.contains(&"plan"),
        "{columns:?}"
    );
    assert!(read(&bench, "run/plots/importance.svg").contains("income, EUR"));

    let prune = [
        "tabular", "prune", "run", table, "--out", "small", "--rule", "best", "--json",
    ];
    let pruned: serde_json::Value =
        serde_json::from_str(&stdout(&bench.densely(&prune).success())).unwrap();
    assert_eq!(pruned["members"].as_array().map(Vec::len), Some(1));
    let size = |run: &str| {
        std::fs::metadata(bench.path(run).join("best/model.safetensors"))
            .unwrap()
            .len()
    };
    assert!(size("small") < size("run"));
    let again = bench.densely(&prune).code(1);
    assert!(stderr(&again).contains("exists"));
}

#[test]
fn a_time_budget_ends_training_with_a_model() {
    let bench = Bench::new();
    let table = "churn.csv";
    bench.write(table, &messy(2_000));
    let fit = [
        "tabular",
        "fit",
        table,
        "--target",
        "churned",
        "--out",
        "run",
        "--epochs",
        "100000",
        "--patience",
        "100000",
        "--time-budget",
        "2s",
        "--split",
        "random",
        "--json",
        "--set",
        "model.config={ d_block = 8, n_blocks = 1, k = 2 }",
    ];
    let start = std::time::Instant::now();
    let fitted: serde_json::Value =
        serde_json::from_str(&stdout(&bench.densely(&fit).success())).unwrap();
    assert_eq!(fitted["out_of_time"], true);
    assert!(start.elapsed().as_secs() < 60);
    let _ = bench
        .densely(&["tabular", "evaluate", "run", table])
        .success();
    for wrong in ["0s", "-1m", "soon"] {
        let fit = [
            "tabular",
            "fit",
            table,
            "--target",
            "churned",
            "--time-budget",
            wrong,
        ];
        let _ = bench.densely(&fit).code(2);
    }
}
