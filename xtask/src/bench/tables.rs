//! Whole work on tables beside other packages: fitting flights beside XGBoost, LightGBM and the package `tabm`, and predicting a
//! long table beside pandas and `tabm`. Writes docs/src/benchmarks-tables.md and .json.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};

use super::page::{Ratio, quantile, ratio_text, sorted};
use super::side::{Round, Side};
use crate::cache::{self, Scratch};
use crate::reproduce::cpu_name;
use crate::{dataset, goldens, models, shell};

/// Names in the recipe's comparison.
const OURS: [&str; 4] = ["TabM", "TabM-mini", "MLP", "MLP + PLE"];
const PEERS: [&str; 3] = ["xgboost", "lightgbm", "tabm"];
const FLIGHTS: &str = "crates/tabular/recipes/tabm-flights-time.toml";
const CALIFORNIA: &str = "crates/tabular/recipes/tabm-california.toml";

/// What is on the page.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Known {
    flights: Vec<Flights>,
    predict: Vec<Predict>,
}

/// One program's fit and prediction of flights.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Flights {
    program: String,
    threads: u32,
    fit_seconds: f64,
    roc_auc: f64,
    /// Test rows per second: median, smallest and largest round.
    rows_per_second: Ratio,
    peak_mb: Option<f64>,
    commit: String,
    cpu: String,
}

/// Prediction of a long table.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Predict {
    threads: u32,
    rows: u64,
    /// Peer's time / our time on a tenth of the rows, round by round.
    ratio: Ratio,
    /// Rows per second on all rows, ours and theirs.
    rows_per_second: [f64; 2],
    /// Peak memory, MB: on a tenth of the rows and on all, ours and theirs.
    peak_mb: [[f64; 2]; 2],
    commit: String,
    cpu: String,
}

/// What a side says when it has fitted.
#[derive(Debug, Deserialize)]
struct Fitted {
    fit_seconds: f64,
    roc_auc: Option<f64>,
    rows: u64,
    threads: u32,
}

/// What a prediction of a file says.
#[derive(Debug, Clone, Copy, Deserialize)]
struct Said {
    rows: u64,
    seconds: f64,
    peak_mb: f64,
}

/// Fits one after the other, then lets all predict the test rows in turn.
pub(super) fn flights(threads: &[u32], rounds: u32) -> Result<()> {
    let python = goldens::python()?;
    models::build_program()?;
    models::build("--example", "flights")?;
    let data = dataset::find("nyc-flights")?.get(false)?;
    let folder = Scratch::new(&shell::root().join("target"), "bench-flights")?;
    let recipe = shell::root().join(FLIGHTS);
    let mut export = models::program();
    export
        .arg("train")
        .arg(&recipe)
        .args(["--quick", "--data-dir"])
        .arg(&data);
    shell::run(export.arg("--export").arg(folder.path()))?;
    let (commit, cpu) = (shell::commit(), cpu_name());
    for &threads in threads {
        let mut sides = Vec::new();
        for model in OURS {
            let mut command = models::example("flights");
            command.arg(&recipe).arg(&data).arg(model);
            sides.push((format!("Densely {model}"), command));
        }
        for peer in PEERS {
            let mut command = shell::command(&python);
            command.arg(shell::root().join("benches/peers/flights.py"));
            command
                .arg(folder.path())
                .arg(peer)
                .arg(threads.to_string());
            sides.push((peer.to_owned(), command));
        }
        let found = measure_flights(sides, threads, rounds)?;
        let rows = found.into_iter().map(|row| Flights {
            commit: commit.clone(),
            cpu: cpu.clone(),
            ..row
        });
        publish(|known| {
            known.flights.retain(|row| row.threads != threads);
            known.flights.extend(rows);
        })?;
    }
    say!("docs/src/benchmarks-tables.md and .json are written");
    Ok(())
}

fn measure_flights(
    sides: Vec<(String, Command)>,
    threads: u32,
    rounds: u32,
) -> Result<Vec<Flights>> {
    let mut running = Vec::new();
    for (program, mut command) in sides {
        limit(&mut command, threads);
        say!("fits with {threads} threads: {program}");
        let mut side = Side::start(&mut command)?;
        let fitted: Fitted = side.read()?;
        if fitted.threads != threads {
            bail!("{program} runs {} threads, not {threads}", fitted.threads);
        }
        if running
            .iter()
            .any(|(_, _, other, _): &(_, _, Fitted, _)| other.rows != fitted.rows)
        {
            bail!("{program} predicts other rows than the programs before it");
        }
        running.push((program, side, fitted, Vec::new()));
    }
    for _ in 0..rounds {
        for (_, side, fitted, speeds) in &mut running {
            let round: Round = side.measure()?;
            let ms =
                quantile(&sorted(&round.ms), 0.5).ok_or_else(|| anyhow!("a round is empty"))?;
            speeds.push(1e3 * fitted.rows as f64 / ms);
        }
    }
    running
        .into_iter()
        .map(|(program, side, fitted, speeds)| {
            Ok(Flights {
                threads,
                fit_seconds: fitted.fit_seconds,
                roc_auc: fitted
                    .roc_auc
                    .with_context(|| format!("{program} told no ROC AUC"))?,
                rows_per_second: Ratio::of(&speeds, &vec![1.0; speeds.len()])?,
                peak_mb: side.end()?,
                program,
                commit: String::new(),
                cpu: String::new(),
            })
        })
        .collect()
}

/// Predicts a tenth of `rows` in turn, then all of them once.
pub(super) fn predict(threads: &[u32], rounds: u32, rows: u64) -> Result<()> {
    let python = goldens::python()?;
    models::build_program()?;
    let data = dataset::find("california-housing")?.get(false)?;
    let folder = Scratch::new(&shell::root().join("target"), "bench-predict")?;
    let mut train = models::program();
    train
        .arg("train")
        .arg(shell::root().join(CALIFORNIA))
        .args(["--smoke", "--quiet", "--data-dir"]);
    shell::run(train.arg(&data).arg("--out").arg(folder.path()))?;
    let run = folder.path().join("seed-0");
    let peer = shell::root().join("benches/peers/predict.py");
    let table = |name: &str, rows: u64| {
        let path = folder.path().join(name);
        let mut command = shell::command(&python);
        command
            .arg(&peer)
            .arg("table")
            .arg(&run)
            .arg(rows.to_string())
            .arg(&path);
        shell::run(&mut command).map(|()| path)
    };
    let (short, long) = (
        table("short.csv", (rows / 10).max(1))?,
        table("long.csv", rows)?,
    );
    let (ours_out, peer_out) = (
        folder.path().join("ours.csv"),
        folder.path().join("peer.csv"),
    );
    let (commit, cpu) = (shell::commit(), cpu_name());
    for &threads in threads {
        let ours = |table: &Path| -> Result<Said> {
            let mut command = models::program();
            command.args([
                "tabular",
                "predict",
                "--json",
                "--device",
                "cpu",
                "--threads",
                &threads.to_string(),
            ]);
            said(command.arg("--out").arg(&ours_out).arg(&run).arg(table))
        };
        let theirs = |table: &Path| -> Result<Said> {
            let mut command = shell::command(&python);
            limit(&mut command, threads);
            command
                .arg(&peer)
                .arg("predict")
                .arg(&run)
                .arg(table)
                .arg(&peer_out);
            said(command.arg(threads.to_string()))
        };
        let (mut mine, mut others) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            mine.push(ours(&short)?);
            others.push(theirs(&short)?);
        }
        equal(&ours_out, &peer_out)?;
        let whole = [ours(&long)?, theirs(&long)?];
        let seconds = |said: &[Said]| said.iter().map(|said| said.seconds).collect::<Vec<_>>();
        let peak = |said: &[Said]| said.iter().map(|said| said.peak_mb).fold(0.0, f64::max);
        let row = Predict {
            threads,
            rows,
            ratio: Ratio::of(&seconds(&others), &seconds(&mine))?,
            rows_per_second: whole.map(|said| said.rows as f64 / said.seconds),
            peak_mb: [
                [peak(&mine), whole[0].peak_mb],
                [peak(&others), whole[1].peak_mb],
            ],
            commit: commit.clone(),
            cpu: cpu.clone(),
        };
        publish(|known| {
            known.predict.retain(|row| row.threads != threads);
            known.predict.push(row);
        })?;
    }
    say!("docs/src/benchmarks-tables.md and .json are written");
    Ok(())
}

fn limit(command: &mut Command, threads: u32) {
    let threads = threads.to_string();
    command
        .env("OMP_NUM_THREADS", &threads)
        .env("MKL_NUM_THREADS", &threads);
}

fn said(command: &mut Command) -> Result<Said> {
    let printed = shell::output(command)?;
    let last = printed.lines().rfind(|line| line.starts_with('{'));
    let last = last.with_context(|| format!("`{}` printed no figures", shell::line_of(command)))?;
    serde_json::from_str(last).with_context(|| shell::shorten(last, 120))
}

/// Fails unless two files of predictions hold the same numbers up to rounding.
fn equal(ours: &Path, theirs: &Path) -> Result<()> {
    let numbers = |path: &Path| -> Result<Vec<f64>> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let lines = text.lines().skip(1);
        lines
            .map(|line| {
                line.trim()
                    .parse()
                    .with_context(|| format!("{}: {line:?}", path.display()))
            })
            .collect()
    };
    let (ours, theirs) = (numbers(ours)?, numbers(theirs)?);
    if ours.is_empty() || ours.len() != theirs.len() {
        bail!(
            "{} predictions of ours, {} of theirs",
            ours.len(),
            theirs.len()
        );
    }
    let far = |(a, b): &(&f64, &f64)| {
        a.is_nan() || b.is_nan() || (*a - *b).abs() > 1e-4 * a.abs().max(1.0)
    };
    match ours
        .iter()
        .zip(&theirs)
        .enumerate()
        .find(|(_, pair)| far(pair))
    {
        Some((row, (a, b))) => bail!("row {}: we predict {a}, they {b}", row + 1),
        None => Ok(()),
    }
}

fn publish(change: impl FnOnce(&mut Known)) -> Result<()> {
    let docs = shell::root().join("docs").join("src");
    let path = docs.join("benchmarks-tables.json");
    let mut known: Known = match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| path.display().to_string())?,
        Err(_) => Known::default(),
    };
    change(&mut known);
    known.flights.sort_by_key(|row| row.threads);
    known.predict.sort_by_key(|row| row.threads);
    cache::write(
        &path,
        format!("{}\n", serde_json::to_string_pretty(&known)?).as_bytes(),
    )?;
    cache::write(&docs.join("benchmarks-tables.md"), page(&known).as_bytes())
}

fn page(known: &Known) -> String {
    let mut text = String::from(PREFACE);
    let mut by_threads: BTreeMap<u32, Vec<&Flights>> = BTreeMap::new();
    for row in &known.flights {
        by_threads.entry(row.threads).or_default().push(row);
    }
    for (threads, rows) in by_threads {
        let head = rows[0];
        let _ = write!(
            text,
            "\n{threads} threads, {}, commit `{}`:\n\n| program | fit, seconds | test ROC AUC | predicts, rows/s | peak MB |\n| --- | ---: | ---: | ---: | ---: |\n",
            head.cpu, head.commit
        );
        for row in rows {
            let Ratio { median, min, max } = row.rows_per_second;
            let peak = row
                .peak_mb
                .map_or_else(|| "–".to_owned(), |mb| format!("{mb:.0}"));
            let _ = writeln!(
                text,
                "| {} | {:.0} | {:.4} | {} ({}–{}) | {peak} |",
                row.program,
                row.fit_seconds,
                row.roc_auc,
                thousands(median),
                thousands(min),
                thousands(max)
            );
        }
    }
    text.push_str(PREDICT);
    for row in &known.predict {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} / {} | {:.0} and {:.0} / {:.0} and {:.0} | `{}` |",
            row.threads,
            thousands(row.rows as f64),
            ratio_text(row.ratio),
            thousands(row.rows_per_second[0]),
            thousands(row.rows_per_second[1]),
            row.peak_mb[0][0],
            row.peak_mb[0][1],
            row.peak_mb[1][0],
            row.peak_mb[1][1],
            row.commit
        );
    }
    text
}

/// `12345.6` as `12,346`.
fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

const PREFACE: &str = "<!-- Generated by `cargo xtask bench --flights` and `cargo xtask bench --predict`. -->
# Tables beside other packages

## Fit and predict flights

NYC flights 2013, will a flight be more than 15 minutes late: trained on January to August, validated on September and October, tested
on November and December: the recipe `tabm-flights-time` at its quick size, one seed. All programs get the same rows. XGBoost and LightGBM have their packages' defaults, a learning rate of 0.1 and as many
trees as the validation rows choose; `tabm` is the Python package with the recipe's settings. Fits run one after the other, alone on
the machine; predictions of all test rows take turns, median with smallest and largest round. Trees are many times faster to fit and
to predict: that is the price of a network.

```sh
cargo xtask bench --flights
```
";

const PREDICT: &str = "
## Predict a long table

`densely tabular predict RUN TABLE --out FILE` from CSV to CSV, beside a Python program that does the same with pandas in
chunks of 100,000 rows, scikit-learn's quantile transform and the package `tabm`. The model is that of the recipe `tabm-california` (2 blocks of
128, k = 32) on 8 numerical columns; rows are made, and both must predict the same. *Python / ours* is measured in turn on a tenth of the
rows; rows per second are of one pass over all. Peak memory on a tenth of the rows and on all: that ours does not grow is what
constant memory means.

```sh
cargo xtask bench --predict             # 10 million rows
cargo xtask bench --predict 1000000
```

| threads | rows | Python / ours | rows/s: ours / Python | peak MB: ours / Python | commit |
| ---: | ---: | ---: | ---: | ---: | --- |
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_numbers_are_grouped() {
        let texts = [0.0, 12.4, 999.6, 12_345.6, 1e7].map(thousands);
        assert_eq!(texts, ["0", "12", "1,000", "12,346", "10,000,000"]);
    }

    #[test]
    fn files_of_predictions_must_hold_the_same_numbers() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).map(|()| path)
        };
        let ours = file("ours", "prediction\n1.0\n-200.0\n")?;
        assert!(equal(&ours, &file("close", "prediction\n1.00001\n-200.001\n")?).is_ok());
        for (name, text) in [
            ("far", "prediction\n1.001\n-200.0\n"),
            ("short", "prediction\n1.0\n"),
            ("none", "prediction\n"),
            ("nan", "prediction\n1.0\nNaN\n"),
            ("words", "prediction\n1.0\nmany\n"),
        ] {
            assert!(equal(&ours, &file(name, text)?).is_err(), "{name}");
        }
        Ok(())
    }

    #[test]
    fn the_page_has_a_row_for_each_program_and_each_number_of_threads() {
        let ratio = Ratio {
            median: 2.0,
            min: 1.5,
            max: 2.5,
        };
        let known = Known {
            flights: vec![Flights {
                program: "xgboost".to_owned(),
                threads: 2,
                fit_seconds: 12.3,
                roc_auc: 0.71234,
                rows_per_second: Ratio {
                    median: 1e6,
                    min: 9e5,
                    max: 1.1e6,
                },
                peak_mb: Some(300.0),
                commit: "abc".to_owned(),
                cpu: "a CPU".to_owned(),
            }],
            predict: vec![Predict {
                threads: 1,
                rows: 10_000_000,
                ratio,
                rows_per_second: [60_000.0, 30_000.0],
                peak_mb: [[150.0, 151.0], [900.0, 950.0]],
                commit: "abc".to_owned(),
                cpu: "a CPU".to_owned(),
            }],
        };
        let text = page(&known);
        assert!(
            text.contains("| xgboost | 12 | 0.7123 | 1,000,000 (900,000–1,100,000) | 300 |"),
            "{text}"
        );
        assert!(
            text.contains("| 1 | 10,000,000 | 2.00 (1.50–2.50) | 60,000 / 30,000 | 150 and 151 / 900 and 950 | `abc` |"),
            "{text}"
        );
    }
}
