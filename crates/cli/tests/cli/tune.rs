//! A study that is shared, stopped and killed is the study that was not.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{Bench, stderr, stdout, table};

const RECIPE: &str = r#"
name = "houses"
title = "Houses"
domain = "tabular"
seeds = [0]
data = { file = "t.csv", target = "price", roles = { sold = "ignore" } }
model = { preset = "mlp", config = { n_blocks = 1, d_block = 16 } }
train = { epochs = 6, batch_size = 64, checkpoint_steps = 3 }
[tune]
trials = 8
startup = 3
[tune.space]
"model.config.d_block" = { int = [8, 32], step = 8 }
"model.config.dropout" = { zero_or = [0.0, 0.5] }
"train.optimizer.lr" = { log = [1e-3, 1e-1] }
"#;

fn bench(recipe: &str) -> Bench {
    let bench = Bench::new();
    bench.write("t.csv", &table(1500));
    bench.write("houses.toml", recipe);
    bench
}

fn tune(bench: &Bench, out: &str, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_densely"));
    command
        .current_dir(bench.path(""))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .env_remove("DENSELY_LOG")
        .args(["tune", "houses.toml", "--device", "cpu", "--threads", "1"])
        .args(["--out", out])
        .args(words);
    command
}

/// What each trial was and found, without what depends on the clock.
fn trials(study: &Path) -> Vec<Value> {
    let read = |number: usize| {
        let path = study.join(format!("trials/{number:04}/trial.json"));
        let trial: Value = serde_json::from_str(&std::fs::read_to_string(path).ok()?).unwrap();
        Some(json!([
            trial["number"],
            trial["state"],
            trial["choice"],
            trial["scores"],
            trial["epochs"]
        ]))
    };
    (0..).map_while(read).collect()
}

#[test]
fn a_study_that_is_killed_again_and_again_is_the_one_that_never_stopped() {
    let bench = bench(RECIPE);
    assert!(tune(&bench, "whole", &[]).status().unwrap().success());
    let expected = trials(&bench.path("whole"));
    assert_eq!(expected.len(), 8);

    // Somewhere within each of these trials, whose record may or may not be written yet.
    for (number, wait) in [(0, 0), (0, 25), (2, 5), (4, 40), (5, 1), (7, 15)] {
        let mut child = tune(&bench, "broken", &[]).spawn().unwrap();
        let trial = bench.path("broken").join(format!("trials/{number:04}"));
        while !trial.exists() {
            assert!(
                child.try_wait().unwrap().is_none(),
                "it ended before trial {number}"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(wait));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(
        tune(&bench, "broken", &["--resume"])
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(trials(&bench.path("broken")), expected);
    let best = |study: &str| std::fs::read_to_string(bench.path(study).join("best.toml")).unwrap();
    assert_eq!(best("broken"), best("whole"));

    // The best recipe trains, and gives the validation score that the search saw.
    let words = [
        "train",
        "whole/best.toml",
        "--device",
        "cpu",
        "--threads",
        "1",
        "--json",
    ];
    let run: Value = serde_json::from_str(&stdout(&bench.densely(&words).success())).unwrap();
    let line = best("whole").lines().next().unwrap().to_owned();
    let valid = run["metrics"]["rmse"]["seeds"][0]["valid"]
        .as_f64()
        .unwrap();
    assert!(
        line.contains(&format!("rmse {valid:.6} on validation rows")),
        "{line} {valid}"
    );
}

#[test]
fn two_workers_run_each_trial_once_and_the_same_command_adds_more() {
    let bench = bench(RECIPE);
    let words = [
        "tune",
        "houses.toml",
        "--device",
        "cpu",
        "--out",
        "s",
        "--workers",
        "2",
    ];
    let assert = bench.densely(&[&words[..], &["--json"]].concat()).success();
    let summary: Value = serde_json::from_str(&stdout(&assert)).unwrap();
    assert_eq!(
        (&summary["trials"], &summary["done"]),
        (&json!(8), &json!(8))
    );
    let lines = stderr(&assert);
    for number in 0..8 {
        let count = lines.matches(&format!("trial {number}: ")).count();
        assert_eq!(count, 1, "trial {number} in\n{lines}");
    }
    let assert = bench
        .densely(&[&words[..], &["--trials", "9"]].concat())
        .success();
    assert_eq!(stderr(&assert).matches("trial 8: ").count(), 1);
    assert!(stdout(&assert).starts_with("best of 9 trials: rmse "));
    assert!(bench.path("s/trials.parquet").exists());
}

#[cfg(unix)]
#[test]
fn ctrl_c_stops_all_workers_with_everything_saved() {
    let bench = bench(RECIPE);
    let words = ["--workers", "2", "--trials", "500"];
    let child = tune(&bench, "s", &words).spawn().unwrap();
    let start = Instant::now();
    while trials(&bench.path("s")).len() < 4 {
        assert!(
            start.elapsed() < Duration::from_mins(1),
            "no trial was begun"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    let interrupt = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(interrupt.unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        text.contains("error: interrupted; everything is saved in s: the same command"),
        "{text}"
    );
    let states: Vec<Value> = trials(&bench.path("s"))
        .into_iter()
        .map(|t| t[1].clone())
        .collect();
    assert!(
        states
            .iter()
            .all(|state| state == "done" || state == "waiting"),
        "{states:?}"
    );
}

#[test]
fn a_trial_that_diverges_has_failed_and_the_study_goes_on() {
    let lr = "{ choice = [0.01, 1e30] }";
    let bench = bench(&RECIPE.replace("{ log = [1e-3, 1e-1] }", lr));
    let assert = bench
        .densely(&["tune", "houses.toml", "--device", "cpu"])
        .success();
    assert!(
        stderr(&assert).contains(": failed (training diverged at step "),
        "{}",
        stderr(&assert)
    );
    assert!(stdout(&assert).contains("  train.optimizer.lr = 0.01\n"));
    assert!(bench.path("runs/houses-tune/best.toml").exists());
}

#[test]
fn bad_spaces_and_other_studies_are_one_sentence() {
    let bench = bench(RECIPE);
    let refused = |recipe: &str, words: &[&str], sentence: &str| {
        bench.write("houses.toml", recipe);
        let words = [&["tune", "houses.toml", "--device", "cpu"], words].concat();
        let text = stderr(&bench.densely(&words).code(1));
        let last = text.lines().last().unwrap();
        assert!(
            last.starts_with("error: ") && last.contains(sentence),
            "{text}"
        );
    };
    let with = |range: &str| RECIPE.replace("{ log = [1e-3, 1e-1] }", range);
    refused(
        &with("{ log = [0.0, 1e-1] }"),
        &[],
        "must be above 0, got 0",
    );
    refused(&with("{ logg = [1.0, 2.0] }"), &[], "unknown field `logg`");
    refused(
        &RECIPE.replace("optimizer.lr", "optimizer.rate"),
        &[],
        "unknown field `rate`",
    );
    refused(
        RECIPE,
        &["--set", "tune.metric=accuracy"],
        "`accuracy` does not fit; take one of: rmse",
    );
    refused(RECIPE, &["--trials", "0"], "at least 1, got 0");
    bench
        .densely(&["tune", "houses.toml", "--device", "cpu", "--trials", "1"])
        .success();
    refused(RECIPE, &["--seed", "1"], "`seed` was 0 and is now 1");
}

#[test]
fn a_grid_over_a_recipe_of_series_is_searched_by_two_workers_and_its_best_trains() {
    let bench = Bench::new();
    let series = Path::new(env!("CARGO_MANIFEST_DIR")).join("../timeseries");
    let (recipe, data) = (
        series.join("recipes/tsmixer-etth1-96.toml"),
        series.join("data"),
    );
    let (recipe, data) = (recipe.to_str().unwrap(), data.to_str().unwrap());
    let small = [
        "data.horizon=6",
        "data.lookback=48",
        "data.blocks={ kind = \"steps\", train = 400, valid = 100, test = 150 }",
    ];
    let words = ["tune", recipe, "--data-dir", data, "--smoke", "--out", "s"];
    let words: Vec<&str> = words
        .into_iter()
        .chain(["--threads", "1"])
        .chain(small.iter().flat_map(|change| ["--set", change]))
        .collect();
    let workers = [&words[..], &["--workers", "2", "--json"]].concat();
    let assert = bench.densely(&workers).success();
    assert!(
        stderr(&assert).contains("study in s: 2 points of the grid over 4 settings, by mse"),
        "{}",
        stderr(&assert)
    );
    let summary: Value = serde_json::from_str(&stdout(&assert)).unwrap();
    assert_eq!(
        (&summary["done"], &summary["failed"], &summary["metric"]),
        (&json!(2), &json!(0), &json!("mse"))
    );
    // The same command goes on with one more point.
    let more = [&words[..], &["--trials", "3"]].concat();
    let assert = bench.densely(&more).success();
    assert_eq!(stderr(&assert).matches("trial 2: mse ").count(), 1);
    assert!(stdout(&assert).starts_with("best of 3 trials: mse "));
    let table = densely_data::Table::open(&bench.path("s/trials.parquet")).unwrap();
    assert_eq!(table.row_count(), 3);
    for name in ["model.config.ff_dim", "train.optimizer.lr", "mse"] {
        assert!(
            table.numbers(name).unwrap().iter().all(|x| *x > 0.0),
            "{name}"
        );
    }

    let best = std::fs::read_to_string(bench.path("s/best.toml")).unwrap();
    let words = [
        "train",
        "s/best.toml",
        "--data-dir",
        data,
        "--threads",
        "1",
        "--json",
    ];
    let run: Value = serde_json::from_str(&stdout(&bench.densely(&words).success())).unwrap();
    let valid = run["metrics"]["mse"]["seeds"][0]["valid"].as_f64().unwrap();
    let line = best.lines().next().unwrap();
    assert!(
        line.contains(&format!("mse {valid:.6} on validation rows")),
        "{line} {valid}"
    );
}
