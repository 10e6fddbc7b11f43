//! Each mistake of a user: exit status, one sentence, nothing lost, no panic.

use crate::{Bench, stderr, table};

/// Asserts that the assertion failed with `status` and one sentence that holds all `parts`.
#[track_caller]
fn refused(assert: assert_cmd::assert::Assert, status: i32, parts: &[&str]) {
    let assert = assert.code(status);
    let text = stderr(&assert);
    assert!(!text.contains("panicked"), "{text}");
    let last = text
        .lines()
        .rfind(|line| line.starts_with("error: "))
        .unwrap_or_default();
    for part in parts {
        assert!(last.contains(part), "`{part}` is not in: {text}");
    }
}

#[track_caller]
fn refused_table(text: &str, words: &[&str], parts: &[&str]) {
    let bench = Bench::new();
    bench.write("t.csv", text);
    refused(bench.fit("t.csv", words), 1, parts);
    assert!(!bench.path("runs/t/last").exists());
}

/// The table with field `column` of file line `line` replaced.
fn with_field(line: usize, column: usize, value: &str) -> String {
    let mut lines: Vec<String> = table(200).lines().map(str::to_owned).collect();
    let mut fields: Vec<&str> = lines[line - 1].split(',').collect();
    fields[column] = value;
    lines[line - 1] = fields.join(",");
    lines.join("\n") + "\n"
}

const PRICE: [&str; 2] = ["--target", "price"];

#[test]
fn files_that_are_not_tables() {
    let bench = Bench::new();
    refused(bench.fit("no.csv", &PRICE), 1, &["no.csv", "No such file"]);
    refused(
        bench.fit("no.xlsx", &PRICE),
        1,
        &["no.xlsx", ".csv, .tsv or .parquet"],
    );
    refused_table("", &PRICE, &["t.csv", "empty"]);
    refused_table("a,price\n", &PRICE, &["t.csv", "header but no rows"]);
    refused_table("a,a,price\n1,2,3\n", &PRICE, &["column `a`", "two columns"]);
    let mut ragged = table(50);
    ragged.push_str("1,2,3\n");
    refused_table(&ragged, &PRICE, &["row 52", "expected 6 fields", "got 3"]);
    bench.write("t.parquet", "PAR1 this is not one");
    refused(
        bench.fit("t.parquet", &PRICE),
        1,
        &["t.parquet", "damaged or of another format"],
    );
}

#[test]
fn targets_that_cannot_be_learnt() {
    refused_table(
        &table(50),
        &["--target", "prise"],
        &["no column `prise`", "`price`"],
    );
    refused_table(
        &with_field(7, 4, ""),
        &PRICE,
        &["row 7", "column `price`", "--drop-missing-target"],
    );
    refused_table(
        &with_field(7, 4, "NaN"),
        &PRICE,
        &["row 7", "column `price`"],
    );
    refused_table(
        &with_field(9, 4, "inf"),
        &PRICE,
        &["row 9", "column `price`", "infinite"],
    );
    refused_table(
        &with_field(9, 4, "cheap"),
        &PRICE,
        &["row 9", "column `price`", "cheap"],
    );
    let constant: String = (0..50).map(|i| format!("{i}.5,1\n")).collect();
    refused_table(
        &format!("a,price\n{constant}"),
        &PRICE,
        &["column `price`", "one value only"],
    );
    refused_table(
        &table(200),
        &["--target", "sold", "--task", "regression"],
        &["column `sold`", "expected a number"],
    );
    let bench = Bench::new();
    bench.write("t.csv", &with_field(7, 4, ""));
    bench
        .fit("t.csv", &["--target", "price", "--drop-missing-target"])
        .success();
}

#[test]
fn columns_that_cannot_be_features() {
    refused_table(
        &with_field(33, 0, "big"),
        &PRICE,
        &[
            "row 33",
            "column `size`",
            "`big`",
            "--role size=categorical",
        ],
    );
    refused_table(
        &with_field(33, 0, "-inf"),
        &PRICE,
        &["row 33", "column `size`", "infinite"],
    );
    let useless: String = (0..60).map(|i| format!("7,,{i}\n")).collect();
    refused_table(
        &format!("a,b,price\n{useless}"),
        &PRICE,
        &["no column is left"],
    );
    // Beside good columns, constant and empty ones are left out with a warning.
    let bench = Bench::new();
    let rows: String = (0..60)
        .map(|i| format!("7,,{},{i}\n", i * 13 % 17))
        .collect();
    bench.write("t.csv", &format!("a,b,c,price\n{rows}"));
    let text = stderr(&bench.fit("t.csv", &PRICE).success());
    assert!(
        text.contains("column `a` has one value only: left out"),
        "{text}"
    );
    assert!(
        text.contains("column `b` has no values: left out"),
        "{text}"
    );
}

#[test]
fn settings_that_do_not_fit() {
    refused_table(
        &table(50),
        &["--target", "price", "--model", "tabn"],
        &["`tabn`", "tabm"],
    );
    refused_table(
        &table(50),
        &["--target", "price", "--set", "train.epoch=3"],
        &["epoch"],
    );
    refused_table(
        &table(50),
        &["--target", "price", "--set", "train.batch_size=0"],
        &["train.batch_size"],
    );
    refused_table(
        &table(50),
        &["--target", "price", "--set", "train.metric=accuracy"],
        &["train.metric", "rmse"],
    );
    refused_table(
        &table(50),
        &["--target", "price", "--role", "size=colour"],
        &["colour"],
    );
    refused_table(
        &table(50),
        &["--target", "price", "--role", "sise=numeric"],
        &["`sise`", "`size`"],
    );
    refused_table(
        &table(50),
        &["--target", "price", "--valid", "0.9"],
        &["split"],
    );
    refused_table(
        &table(30),
        &["--target", "price", "--embedding", "piecewise-linear"],
        &["n_bins", "training rows"],
    );
    refused_table(&table(2), &PRICE, &["split", "none of 2 rows"]);
    let bench = Bench::new();
    bench.write("t.csv", &table(50));
    let words = [
        "tabular", "fit", "t.csv", "--target", "price", "--device", "cuda:99",
    ];
    refused(bench.densely(&words), 1, &["cuda:99", "--device cpu"]);
    bench.densely(&["tabular", "fit"]).code(2);
    bench
        .densely(&[
            "tabular", "fit", "t.csv", "--target", "a", "--device", "gpu",
        ])
        .code(2);
    bench.densely(&["nonsense"]).code(2);
    refused(bench.densely(&["models", "tabn"]), 1, &["`tabn`", "tabm"]);
}

#[test]
fn recipes_with_mistakes() {
    let bench = Bench::new();
    refused(
        bench.densely(&["train", "no.toml"]),
        1,
        &["no.toml", "No such file"],
    );
    let good = "name = \"x\"\ntitle = \"x\"\ndomain = \"tabular\"\nseeds = [0]\n[data]\nfile = \"t.csv\"\ntarget = \"price\"\n";
    bench.write("t.csv", &table(80));
    let case = |change: &str, parts: &[&str]| {
        bench.write("r.toml", &format!("{good}{change}"));
        refused(
            bench.densely(&["train", "r.toml", "--device", "cpu"]),
            1,
            parts,
        );
    };
    case("colour = 1\n", &["r.toml", "colour"]);
    case("[train]\nepoch = 1\n", &["r.toml", "epoch"]);
    case("[train]\nepochs = \"many\"\n", &["r.toml", "many"]);
    case("[model]\npreset = \"tabn\"\n", &["tabn", "tabm"]);
    case(
        "[model]\npreset = \"tabm\"\nconfig = { d_blok = 4 }\n",
        &["d_blok", "d_block"],
    );
    case("[model\n", &["r.toml"]);
    case("[published]\nmetric = 3\n", &["r.toml"]);
}

#[test]
fn prediction_on_other_tables() {
    let bench = Bench::new();
    bench.write("t.csv", &table(200));
    bench
        .fit("t.csv", &["--target", "price", "--role", "sold=ignore"])
        .success();
    let predict = |text: &str| {
        bench.write("new.csv", text);
        bench.densely(&["tabular", "predict", "runs/t", "new.csv", "--out", "p.csv"])
    };
    predict("size,age,kind,garden\n1,2,castle,yes\n,,,\n").success(); // unseen and missing are no errors
    refused(
        predict("size,kind\n1,house\n"),
        1,
        &["missing", "`age`", "`garden`"],
    );
    refused(
        predict("size,age,kind,garden\n1,2,hut,no\nbig,2,hut,no\n"),
        1,
        &["row 3", "column `size`", "`big`"],
    );
    refused(
        bench.densely(&["tabular", "predict", "runs/no", "t.csv", "--out", "p.csv"]),
        1,
        &["runs/no: there is no such run folder"],
    );
    refused(
        bench.densely(&["tabular", "predict", "runs/t", "t.csv", "--out", "p.xlsx"]),
        1,
        &["p.xlsx"],
    );
    refused(
        bench.densely(&["tabular", "predict", "runs/t", "t.csv", "--out", "no/p.csv"]),
        1,
        &["no/p.csv"],
    );
    let before = std::fs::read(bench.path("t.csv")).unwrap();
    let words = ["tabular", "predict", "runs/t", "t.csv", "--out", "./t.csv"];
    refused(bench.densely(&words), 1, &["out", "would overwrite t.csv"]);
    assert_eq!(std::fs::read(bench.path("t.csv")).unwrap(), before);
    bench
        .fit("t.csv", &["--target", "sold", "--out", "runs/c"])
        .success();
    bench.write("new.csv", &with_field(4, 5, "stolen"));
    refused(
        bench.densely(&["tabular", "evaluate", "runs/c", "new.csv"]),
        1,
        &["row 4", "column `sold`", "`stolen`"],
    );
}

#[test]
fn damaged_run_folders() {
    let bench = Bench::new();
    bench.write("t.csv", &table(200));
    bench.fit("t.csv", &PRICE).success();
    let weights = bench.path("runs/t/best/model.safetensors");
    let good = std::fs::read(&weights).unwrap();
    let mut flipped = good.clone();
    let middle = flipped.len() - 100;
    flipped[middle] ^= 1;
    let mut hostile = good.clone();
    hostile[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    for bytes in [&good[..good.len() / 2], &flipped, &hostile, b""] {
        std::fs::remove_file(&weights).unwrap();
        std::fs::write(&weights, bytes).unwrap();
        refused(
            bench.densely(&["tabular", "evaluate", "runs/t", "t.csv"]),
            1,
            &["best/model.safetensors", "damaged or of another format"],
        );
    }
    // A run is never overwritten, nor continued with other settings.
    refused(
        bench.fit("t.csv", &PRICE),
        1,
        &["already holds a run", "--resume"],
    );
    let other = ["--target", "price", "--resume", "--lr", "0.5"];
    refused(bench.fit("t.csv", &other), 1, &["lr"]);
}

#[test]
fn folders_that_cannot_be_written() {
    let bench = Bench::new();
    bench.write("t.csv", &table(200));
    bench.write("file", "");
    let words = ["--target", "price", "--out", "file/run"];
    refused(bench.fit("t.csv", &words), 1, &["file/run"]);
    // Read-only for everybody, root too: the kernel's own tables.
    let words = ["--target", "price", "--out", "/proc/densely"];
    refused(bench.fit("t.csv", &words), 1, &["/proc/densely"]);
}
