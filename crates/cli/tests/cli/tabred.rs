//! TabReD folders through `densely train`, and the benchmark's ranks.

use std::path::Path;

use densely_core::tch::{self, Tensor};
use densely_data::Table;
use densely_tabular::tabred::npy;
use densely_train::metrics::Metric;
use serde_json::Value;

use super::{Bench, stderr, stdout};

/// A folder of the new layout: 240 rows, two classes that follow the numbers, meta columns that give the class away.
fn folder(path: &Path) {
    let rows = 240;
    let wave = |i: usize, step: usize| ((i * step) % 101) as f32 / 50.0 - 1.0;
    let x_num: Vec<f32> = (0..rows)
        .flat_map(|i| [wave(i, 37), wave(i, 53), wave(i, 71)])
        .collect();
    let x_bin: Vec<f32> = (0..rows).map(|i| (i * 7 % 5 < 2) as u8 as f32).collect();
    let x_cat: Vec<i64> = (0..rows).map(|i| (i * i % 4) as i64).collect();
    let y: Vec<i64> = x_num
        .chunks(3)
        .map(|x| i64::from(x[0] + x[1] > 0.2))
        .collect();
    let x_meta: Vec<i64> = y
        .iter()
        .enumerate()
        .flat_map(|(i, y)| [i as i64, *y])
        .collect();
    std::fs::create_dir_all(path.join("splits/default")).unwrap();
    npy::write(&path.join("x_num.npy"), &[rows, 3], &x_num).unwrap();
    npy::write(&path.join("x_bin.npy"), &[rows, 1], &x_bin).unwrap();
    npy::write(&path.join("x_cat.npy"), &[rows, 1], &x_cat).unwrap();
    npy::write(&path.join("x_meta.npy"), &[rows, 2], &x_meta).unwrap();
    npy::write(&path.join("y.npy"), &[rows], &y).unwrap();
    for (part, from, to) in [("train", 0, 140), ("val", 140, 180), ("test", 180, 230)] {
        let rows: Vec<i64> = (from..to).collect();
        npy::write(
            &path.join(format!("splits/default/{part}.npy")),
            &[rows.len()],
            &rows,
        )
        .unwrap();
    }
    let info = r#"{"name": "made", "task_type": "binclass", "score": "roc-auc"}"#;
    std::fs::write(path.join("info.json"), info).unwrap();
}

const RECIPE: &str = r#"
name = "made"
title = "TabM on a made TabReD folder"
domain = "tabular"
seeds = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
[data]
file = "made"
target = "y"
split = { kind = "files", name = "default" }
[model]
config = { d_block = 8, k = 4, n_blocks = 1 }
[train]
epochs = 2
batch_size = 64
"#;

#[test]
fn a_folder_trains_on_its_split_with_its_score_and_its_roles() {
    let bench = Bench::new();
    folder(&bench.path("made"));
    bench.write("made.toml", RECIPE);
    let run = bench
        .densely(&["train", "made.toml", "--smoke", "--device", "cpu"])
        .success();
    let text = stderr(&run);
    assert!(text.contains("2 classes (0, 1)"), "{text}");
    assert!(text.contains("3 numerical, 2 categorical"), "{text}");
    assert!(text.contains("140 train, 40 valid, 50 test"), "{text}");
    let metrics = std::fs::read_to_string(bench.path("runs/made/seed-0/metrics.jsonl")).unwrap();
    assert!(metrics.contains("roc_auc"), "{metrics}");
    let config = std::fs::read_to_string(bench.path("runs/made/seed-0/config.toml")).unwrap();
    assert!(config.contains("metric = \"roc_auc\""), "{config}");
    assert!(config.contains("meta_1 = \"ignore\""), "{config}");
    assert!(!stdout(&run).contains("ensembles"));
}

#[test]
fn ten_seeds_make_two_ensembles_of_five() {
    let bench = Bench::new();
    folder(&bench.path("made"));
    bench.write("made.toml", RECIPE);
    let run = bench.densely(&[
        "train",
        "made.toml",
        "--json",
        "--device",
        "cpu",
        "--threads",
        "1",
    ]);
    let summary: Value = serde_json::from_str(&stdout(&run.success())).unwrap();
    assert_eq!(
        summary["metrics"]["roc_auc"]["seeds"]
            .as_array()
            .unwrap()
            .len(),
        11
    );
    let ensembles = &summary["ensembles"]["roc_auc"];
    assert_eq!(ensembles["size"], 5);
    let values: Vec<f64> = serde_json::from_value(ensembles["values"].clone()).unwrap();
    assert_eq!(values.len(), 2);
    let mean = f64::midpoint(values[0], values[1]);
    assert!((ensembles["mean"].as_f64().unwrap() - mean).abs() < 1e-12);
    // The first is the score of the averaged probabilities that the first five runs wrote.
    let mut sum = Tensor::zeros([50], (tch::Kind::Double, tch::Device::Cpu));
    let mut classes = Tensor::new();
    for seed in 0..5 {
        let table = Table::open(&bench.path(&format!("runs/made/seed-{seed}/predictions.parquet")))
            .unwrap();
        sum += Tensor::from_slice(&table.numbers("probability_1").unwrap());
        classes = Tensor::from_slice(&table.numbers("y").unwrap()).to_kind(tch::Kind::Int64);
    }
    let first = Metric::RocAuc.compute(&(sum / 5.0), &classes).unwrap();
    assert!((first - values[0]).abs() < 1e-9, "{first} {}", values[0]);
    let again = bench.densely(&[
        "train",
        "made.toml",
        "--resume",
        "--device",
        "cpu",
        "--quiet",
    ]);
    let text = stdout(&again.success());
    let line = format!("made: ensembles of 5: roc_auc {mean:.4} ± ");
    assert!(
        text.contains(&line) && text.contains("on 2 groups"),
        "{text}"
    );
}

#[test]
fn what_a_folder_lacks_is_said_in_one_sentence() {
    let bench = Bench::new();
    folder(&bench.path("made"));
    bench.write("made.toml", RECIPE);
    let fail = |words: &[&str], complaint: &str| {
        let all: Vec<&str> = ["train", "made.toml", "--smoke", "--quiet"]
            .iter()
            .chain(words)
            .copied()
            .collect();
        let text = stderr(&bench.densely(&all).failure().code(1));
        assert!(
            text.contains(complaint) && text.lines().count() == 1,
            "{text}"
        );
    };
    fail(&["--set", "data.split.name=later"], "there is no folder");
    fail(
        &["--set", "data.split.name=random-0"],
        "known for the eight data sets only",
    );
    fail(&["--set", "data.target=meta_0"], "the column is claimed as");
    fail(&["--set", "train.metric=rmse"], "`rmse` does not fit");
    // A table has no files of splits.
    bench.write("table.csv", &super::table(50));
    fail(
        &["--set", "data.file=table.csv", "--set", "data.target=price"],
        "a table has no files of splits",
    );
    std::fs::write(bench.path("made/y.npy"), b"\x93NUMPY").unwrap();
    fail(
        &[],
        "y.npy: damaged or of another format: it ends within its header",
    );
}

#[test]
fn ranks_are_printed_with_further_models_among_them() {
    let bench = Bench::new();
    let text = stdout(&bench.densely(&["tabular", "tabred-ranks"]).success());
    assert_eq!(text.lines().count(), 18);
    assert!(text.lines().nth(2).unwrap().starts_with("| XGBoost "));
    bench.write(
        "mine.csv",
        "model,dataset,mean,sd,runs\nMine,weather,1.4,0.001,15\n",
    );
    let json = stdout(
        &bench
            .densely(&["tabular", "tabred-ranks", "mine.csv", "--json"])
            .success(),
    );
    let models: Vec<Value> = serde_json::from_str(&json).unwrap();
    assert_eq!(models.len(), 17);
    assert_eq!(models[0]["model"], "Mine");
    assert_eq!(models[0]["datasets"]["weather"]["rank"], 1);
    bench.write(
        "wrong.csv",
        "model,dataset,mean,sd,runs\nMine,wetter,1.4,0.001,15\n",
    );
    let text = stderr(
        &bench
            .densely(&["tabular", "tabred-ranks", "wrong.csv"])
            .failure()
            .code(1),
    );
    assert!(
        text.contains("wrong.csv, row 2: there is no data set `wetter`"),
        "{text}"
    );
}
