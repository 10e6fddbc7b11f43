//! The program as a user meets it: good runs, and each kind of bad input with its sentence and exit status.
#![expect(clippy::unwrap_used, clippy::format_collect, reason = "tests")]

mod bad_input;
mod forecast;
mod forward;
mod interp_recipes;
mod own_clicks;
mod own_distribution;
mod own_fields;
mod own_interp;
mod own_lm;
mod own_pictures;
mod own_series;
mod own_table;
mod panel_recipe;
mod resume;
#[cfg(feature = "serve")]
mod serve;
mod tabred;
mod tune;

use std::fmt::Write;
use std::path::{Path, PathBuf};

use assert_cmd::Command;

/// A folder with a made table, and commands that run in it.
struct Bench {
    folder: tempfile::TempDir,
}

/// Settings of a network that trains in a blink.
const TINY: [&str; 8] = [
    "--set",
    "model.config={ d_block = 8, k = 4, n_blocks = 2 }",
    "--epochs",
    "3",
    "--batch-size",
    "32",
    "--device",
    "cpu",
];

impl Bench {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Runs `densely` in the folder with these words.
    fn densely(&self, words: &[&str]) -> assert_cmd::assert::Assert {
        let mut command = Command::cargo_bin("densely").unwrap();
        command
            .current_dir(self.folder.path())
            .args(words)
            .env_remove("DENSELY_LOG")
            .assert()
    }

    /// Runs `densely tabular fit` with a tiny network.
    fn fit(&self, table: &str, words: &[&str]) -> assert_cmd::assert::Assert {
        let all: Vec<&str> = ["tabular", "fit", table]
            .iter()
            .chain(words)
            .chain(&TINY)
            .copied()
            .collect();
        self.densely(&all)
    }
}

/// What the program wrote to standard error.
fn stderr(assert: &assert_cmd::assert::Assert) -> String {
    String::from_utf8(assert.get_output().stderr.clone()).unwrap()
}

/// What the program wrote to standard output.
fn stdout(assert: &assert_cmd::assert::Assert) -> String {
    String::from_utf8(assert.get_output().stdout.clone()).unwrap()
}

/// A table with numbers, a category, a yes/no column and two kinds of target.
fn table(rows: usize) -> String {
    let mut text = String::from("size,age,kind,garden,price,sold\n");
    for i in 0..rows {
        let (size, age) = ((i * 37 % 101) as f64 / 10.0, i * 53 % 89);
        let kind = ["house", "flat", "hut"][i % 3];
        let garden = if i * 7 % 5 < 2 { "yes" } else { "no" };
        let price = 3.0 * size - 0.1 * age as f64 + (i % 3) as f64;
        let sold = if price > 14.0 { "sold" } else { "open" };
        writeln!(text, "{size},{age},{kind},{garden},{price},{sold}").unwrap();
    }
    text
}

#[test]
fn a_regression_goes_from_table_to_predictions() {
    let bench = Bench::new();
    bench.write("houses.csv", &table(400));
    let fit = bench.fit(
        "houses.csv",
        &["--target", "price", "--role", "sold=ignore", "--json"],
    );
    let summary: serde_json::Value = serde_json::from_str(&stdout(&fit.success())).unwrap();
    assert!(summary["test"]["rmse"].as_f64().unwrap() > 0.0);
    let run = bench.path("runs/houses");
    for file in [
        "report.md",
        "predictions.parquet",
        "config.toml",
        "plots/predictions.svg",
    ] {
        assert!(run.join(file).exists(), "{file}");
    }
    // The test metrics of the run are those of its predictions file, read back by the program itself.
    let evaluate = bench.densely(&["tabular", "evaluate", "runs/houses", "houses.csv", "--json"]);
    let evaluate: serde_json::Value = serde_json::from_str(&stdout(&evaluate.success())).unwrap();
    assert_eq!(evaluate["rows"], 400);

    let without_target = table(5)
        .lines()
        .map(|line| {
            line.rsplit_once(',')
                .unwrap()
                .0
                .rsplit_once(',')
                .unwrap()
                .0
                .to_owned()
                + "\n"
        })
        .collect::<String>();
    bench.write("new.csv", &without_target);
    bench
        .densely(&[
            "tabular",
            "predict",
            "runs/houses",
            "new.csv",
            "--out",
            "p.csv",
        ])
        .success();
    let predictions = std::fs::read_to_string(bench.path("p.csv")).unwrap();
    assert_eq!(predictions.lines().count(), 6);
    assert!(predictions.starts_with("prediction\n"));
}

#[test]
fn classes_get_probabilities_that_sum_to_one() {
    let bench = Bench::new();
    bench.write("houses.csv", &table(400));
    for model in ["tabm", "tabm-mini", "tabm-packed"] {
        let out = format!("runs/{model}");
        let words = [
            "--target",
            "sold",
            "--role",
            "price=ignore",
            "--model",
            model,
            "--out",
            &out,
        ];
        bench.fit("houses.csv", &words).success();
        bench
            .densely(&["tabular", "predict", &out, "houses.csv", "--out", "p.csv"])
            .success();
        let predictions = std::fs::read_to_string(bench.path("p.csv")).unwrap();
        assert!(predictions.starts_with("prediction,probability_open,probability_sold\n"));
        for line in predictions.lines().skip(1) {
            let fields: Vec<&str> = line.split(',').collect();
            let p: Vec<f64> = fields[1..].iter().map(|f| f.parse().unwrap()).collect();
            assert!((p[0] + p[1] - 1.0).abs() < 1e-6, "{line}");
            assert_eq!(fields[0], if p[0] >= p[1] { "open" } else { "sold" });
        }
    }
}

#[test]
fn every_embedding_batch_mode_and_averaging_rule_trains() {
    let bench = Bench::new();
    bench.write("houses.csv", &table(300));
    let base = ["--target", "price", "--role", "sold=ignore"];
    let variants: [&[&str]; 8] = [
        &["--embedding", "piecewise-linear"],
        &[
            "--embedding",
            "piecewise-linear",
            "--set",
            "model.embedding.bins=\"tree\"",
            "--set",
            "model.embedding.min_samples_leaf=8",
        ],
        &["--embedding", "linear-relu"],
        &["--embedding", "periodic"],
        &["--set", "train.batches=per_member"],
        &[
            "--set",
            "train.averaging=greedy",
            "--set",
            "train.decay=paper",
        ],
        &["--set", "train.averaging=best", "--bf16"],
        &[
            "--set",
            "data.preprocess.numeric={ kind = \"standard\" }",
            "--set",
            "train.schedule={ name = \"cosine\" }",
        ],
    ];
    for (i, variant) in variants.iter().enumerate() {
        let out = format!("runs/{i}");
        let words: Vec<&str> = base
            .iter()
            .chain(*variant)
            .chain(&["--out", &out])
            .copied()
            .collect();
        bench.fit("houses.csv", &words).success();
        bench
            .densely(&["tabular", "evaluate", &out, "houses.csv"])
            .success();
    }
}

#[test]
fn the_same_seed_gives_the_same_bits_and_another_seed_others() {
    let bench = Bench::new();
    bench.write("houses.csv", &table(300));
    let model = |out: &str, seed: &str| {
        bench
            .fit(
                "houses.csv",
                &["--target", "price", "--out", out, "--seed", seed],
            )
            .success();
        std::fs::read(bench.path(out).join("last/model.safetensors")).unwrap()
    };
    let first = model("a", "1");
    assert_eq!(first, model("b", "1"));
    assert_ne!(first, model("c", "2"));
}

#[test]
fn recipes_in_the_tree_parse_and_export() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let bench = Bench::new();
    let mut count = 0;
    let recipes = ["tabular", "timeseries"]
        .map(|domain| std::fs::read_dir(crates.join(domain).join("recipes")).unwrap());
    for entry in recipes.into_iter().flatten() {
        let path = entry.unwrap().path();
        // Without its data a recipe fails at the data file or folder, and only there.
        let assert = bench
            .densely(&["train", path.to_str().unwrap(), "--quick"])
            .code(1);
        assert!(
            stderr(&assert).contains(": No such file"),
            "{}",
            stderr(&assert)
        );
        count += 1;
    }
    assert!(count >= 10);
}

#[test]
fn help_has_an_example_for_every_command() {
    let bench = Bench::new();
    for words in [
        vec!["models"],
        vec!["forward"],
        vec!["train"],
        vec!["tune"],
        vec!["tabular", "fit"],
        vec!["tabular", "evaluate"],
        vec!["tabular", "predict"],
        vec!["tabular", "importance"],
        vec!["tabular", "prune"],
        #[cfg(feature = "serve")]
        vec!["serve"],
        vec!["tabular", "tabred-ranks"],
    ] {
        let words: Vec<&str> = words.into_iter().chain(["--help"]).collect();
        let help = stdout(&bench.densely(&words).success());
        assert!(help.contains("Example: densely "), "{words:?}");
    }
}
