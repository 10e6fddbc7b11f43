//! `densely ctr` on a table of somebody's own: fit, evaluate, predict, rank, and a recipe.

use std::fmt::Write;

use crate::{Bench, stderr, stdout};

fn clicks(rows: u32) -> String {
    let mut text = "user,item,history,shown,clk\n".to_owned();
    for row in 0..rows {
        let (user, item) = (row * 7 % 30, row * 11 % 25);
        let click = u32::from((user + item) % 3 == 0) ^ u32::from(row % 11 == 0);
        let (one, two) = (row % 25, row * 3 % 25);
        let _ = writeln!(text, "u{user},i{item},i{one}^i{two},{row},{click}");
    }
    text
}

/// For a network that trains in a blink.
const SMALL: &str = "--set train.batch_size=128 --epochs 2 --device cpu --threads 1";

/// The arguments of a command line without quotes.
fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

#[test]
fn clicks_are_fitted_evaluated_predicted_and_ranked() {
    let bench = Bench::new();
    bench.write("ads.csv", &clicks(1500));
    let fit = format!(
        "ctr fit ads.csv --label clk --group user --time shown --history history=item --calibrate --out run {SMALL}"
    );
    let fitted = bench.densely(&words(&fit)).success();
    let said = stderr(&fitted);
    for part in [
        "history",
        "sequence",
        "as you said",
        "1200 train, 150 valid, 150 test",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let said = stdout(&fitted);
    for part in [
        "test:  auc",
        "popularity: auc",
        "logistic regression: auc",
        "rows/s in training",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let report = std::fs::read_to_string(bench.path("run/report.md")).unwrap();
    for part in [
        "## Calibration on the test rows",
        "expected calibration error",
        "Predictions of this run are scaled.",
        "gauc",
        "| history |",
    ] {
        assert!(report.contains(part), "{part}: {report}");
    }

    let evaluated = bench
        .densely(&words("ctr evaluate run ads.csv --json"))
        .success();
    let scores: serde_json::Value = serde_json::from_str(&stdout(&evaluated)).unwrap();
    assert_eq!(scores["rows"], 1500);
    let predict = "ctr predict run ads.csv --keep user,clk --out p.csv --batch-rows 77";
    bench.densely(&words(predict)).success();
    let file = "ctr evaluate --predictions p.csv --label clk --group user --json";
    let from_file = bench.densely(&words(file)).success();
    let same: serde_json::Value = serde_json::from_str(&stdout(&from_file)).unwrap();
    let auc = |scores: &serde_json::Value| scores["metrics"]["auc"].as_f64().unwrap();
    // Sums of other batches differ in the last bits, and with them the order of rows that are nearly alike.
    assert!((auc(&same) - auc(&scores)).abs() < 1e-3);

    bench.write("users.csv", "user,history\nu1,i3^i4\nu2,i9\n");
    let items: String = (0..25).map(|item| format!("i{item}\n")).collect();
    bench.write("items.csv", &format!("item\n{items}"));
    let rank = "ctr rank run --users users.csv --user user --candidates items.csv --item item --top 3 --out top.csv";
    bench.densely(&words(rank)).success();
    let top = std::fs::read_to_string(bench.path("top.csv")).unwrap();
    assert_eq!(top.lines().count(), 7, "{top}");
    assert!(top.starts_with("user,item,rank,probability\nu1,i"), "{top}");
}

#[test]
fn mistakes_with_clicks_are_sentences() {
    let bench = Bench::new();
    bench.write("ads.csv", &clicks(300));
    let fails = |line: &str, sentence: &str| {
        let failed = bench.densely(&words(line)).failure().code(1);
        let said = stderr(&failed);
        assert!(said.contains(sentence), "{sentence}: {said}");
        let errors = said.lines().filter(|line| line.starts_with("error: "));
        assert_eq!(errors.count(), 1, "{said}");
    };
    let fit = |more: &str| format!("ctr fit ads.csv --out run --quiet --label {more}");
    for (more, sentence) in [
        ("clicked", "no column `clicked`"),
        (
            "shown",
            "row 4, column `shown`: the label must be 0 or 1, got 2",
        ),
        ("shown", "`--click-from`"),
        (
            "clk --history history",
            "must be SEQUENCE=COLUMN, got `history`",
        ),
        ("clk --model din", "needs a history to attend to"),
        ("clk --model deepfm", "no model is called `deepfm`"),
        (
            "clk --sequence history=|",
            "no sequence has `|` between tokens, but",
        ),
    ] {
        fails(&fit(more), sentence);
    }
    fails(
        "ctr evaluate nowhere ads.csv",
        "there is no such run folder",
    );
    bench.write("p.csv", "clk,probability\n1,0.4\n2,0.5\n");
    fails(
        "ctr evaluate --predictions p.csv --label clk",
        "row 3, column `clk`: the label must be 0 or 1, got 2",
    );
    bench.densely(&["ctr", "evaluate"]).failure().code(2);
}

#[test]
fn a_recipe_of_clicks_trains_every_seed_beside_its_baselines() {
    let bench = Bench::new();
    for (name, rows) in [("train", 900), ("valid", 200), ("test", 200)] {
        bench.write(&format!("{name}.csv"), &clicks(rows));
    }
    let recipe = r#"
name = "clicks"
title = "Clicks"
domain = "recsys"
seeds = [0, 1]
[data]
file = "train.csv"
label = "clk"
group = "user"
item = "item"
split = { kind = "files", valid = "valid.csv", test = "test.csv" }
columns = [
  { name = ["user", "item"], type = "categorical" },
  { name = "history", type = "sequence", share_embedding = "item", max_len = 2 },
]
[model]
preset = "finalmlp"
[model.config]
embedding_dim = 4
mlp1_hidden_units = [8]
mlp2_hidden_units = [8]
fs_hidden_units = [8]
fs1_context = ["user"]
fs2_context = ["item"]
num_heads = 2
[train]
batch_size = 128
epochs = 2
monitor = { auc = 1.0, log_loss = -1.0 }
"#;
    bench.write("clicks.toml", recipe);
    let train = "train clicks.toml --out runs --json --quiet --device cpu";
    let trained = bench.densely(&words(train)).success();
    let summary: serde_json::Value = serde_json::from_str(&stdout(&trained)).unwrap();
    assert_eq!(
        summary["metrics"]["gauc"]["seeds"].as_array().map(Vec::len),
        Some(2)
    );
    let models: Vec<&str> = summary["comparison"]["rows"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|row| row["model"].as_str())
        .collect();
    assert_eq!(models, ["finalmlp", "popularity", "logistic regression"]);
    let export = "train clicks.toml --export rows --quiet";
    bench.densely(&words(export)).success();
    assert!(bench.path("rows/valid.safetensors").exists() && bench.path("rows/meta.json").exists());
    let wrong = recipe.replace("type = \"sequence\"", "type = \"sequenze\"");
    bench.write("wrong.toml", &wrong);
    let failed = bench.densely(&["train", "wrong.toml"]).failure().code(1);
    assert!(stderr(&failed).contains("sequenze"), "{}", stderr(&failed));
}

/// What the cells of a column of a published file look like.
#[derive(Clone)]
enum Cells {
    /// 0 or 1.
    Label,
    /// A number with a fraction, in [0, 1].
    Share,
    /// An id below this.
    Id(u64),
    /// As [`Cells::Id`], written as a float.
    FloatId(u64),
    /// Eight hexadecimal digits, as many different ones.
    Hash(u64),
    /// A count, often missing.
    Count,
    /// Year, month, day and hour of Avazu.
    Hour,
    /// Up to five ids.
    Ids(u64),
}

fn published(columns: &[(String, Cells)], rows: u64, seed: u64) -> String {
    let mut state = seed;
    let mut draw = move |n: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % n
    };
    let names: Vec<&str> = columns.iter().map(|(name, _)| &**name).collect();
    let mut text = names.join(",") + "\n";
    for _ in 0..rows {
        let cells = columns.iter().map(|(_, cells)| match cells {
            Cells::Label => draw(2).to_string(),
            Cells::Share => format!("0.{:06}", draw(1_000_000)),
            Cells::Id(n) => draw(*n).to_string(),
            Cells::FloatId(n) => format!("{}.0", draw(*n)),
            Cells::Hash(n) => format!("{:08x}", draw(*n) * 0x9e37),
            Cells::Count if draw(4) == 0 => String::new(),
            Cells::Count => draw(40).to_string(),
            Cells::Hour => format!("1410{}{:02}", 21 + draw(9), draw(24)),
            Cells::Ids(n) => {
                let ids: Vec<String> = (0..draw(6)).map(|_| draw(*n).to_string()).collect();
                ids.join("^")
            }
        });
        let _ = writeln!(text, "{}", cells.collect::<Vec<_>>().join(","));
    }
    text
}

/// The headers of the sets as they are published, columns that no recipe reads among them.
fn layouts() -> Vec<(&'static str, Vec<(String, Cells)>)> {
    let one = |name: &str, cells: Cells| vec![(name.to_owned(), cells)];
    let each = |names: &str, cells: fn() -> Cells| -> Vec<(String, Cells)> {
        let names = names.split(' ');
        names.map(|name| (name.to_owned(), cells())).collect()
    };
    let numbered = |prefix: &str, last: usize, cells: fn() -> Cells| -> Vec<(String, Cells)> {
        (1..=last)
            .map(|at| (format!("{prefix}{at}"), cells()))
            .collect()
    };
    vec![
        (
            "finalmlp-criteo-x1",
            [
                one("label", Cells::Label),
                numbered("I", 13, || Cells::Share),
                numbered("C", 26, || Cells::FloatId(30)),
            ]
            .concat(),
        ),
        (
            "finalmlp-criteo-x4",
            [
                one("Id", Cells::Id(1 << 30)),
                one("Label", Cells::Label),
                numbered("I", 13, || Cells::Count),
                numbered("C", 26, || Cells::Hash(5)),
            ]
            .concat(),
        ),
        (
            "finalmlp-avazu-x1",
            [
                one("label", Cells::Label),
                numbered("feat_", 22, || Cells::FloatId(30)),
            ]
            .concat(),
        ),
        (
            "finalmlp-avazu-x4",
            [
                one("id", Cells::Id(1 << 30)),
                one("click", Cells::Label),
                one("hour", Cells::Hour),
                each(
                    "C1 banner_pos device_type device_conn_type C14 C15 C16 C17 C18 C19 C20 C21",
                    || Cells::Id(20),
                ),
                each(
                    "site_id site_domain site_category app_id app_domain app_category device_id device_ip device_model",
                    || Cells::Hash(20),
                ),
            ]
            .concat(),
        ),
        (
            "finalmlp-frappe-x1",
            [
                one("label", Cells::Label),
                each(
                    "user item daytime weekday isweekend homework cost weather country city",
                    || Cells::FloatId(20),
                ),
            ]
            .concat(),
        ),
        (
            "finalmlp-movielens-latest-x1",
            [
                one("label", Cells::Label),
                each("user_id item_id tag_id", || Cells::FloatId(20)),
            ]
            .concat(),
        ),
        (
            "din-amazon-electronics-x1",
            [
                one("label", Cells::Label),
                one("user_id", Cells::Id(12)),
                each("item_id cate_id", || Cells::Id(20)),
                each("item_history cate_history", || Cells::Ids(20)),
            ]
            .concat(),
        ),
        (
            "din-taobao-ad-x1",
            [
                one("clk", Cells::Label),
                each(
                    "userid cms_segid cms_group_id final_gender_code age_level pvalue_level shopping_level occupation new_user_class_level adgroup_id cate_id campaign_id customer brand pid btag",
                    || Cells::Id(9),
                ),
                one("price", Cells::Share),
                each("cate_his brand_his btag_his", || Cells::Ids(9)),
            ]
            .concat(),
        ),
    ]
}

#[test]
fn every_published_setting_trains_on_files_of_its_layout() {
    let bench = Bench::new();
    let recipes = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../recsys/recipes");
    for (recipe, columns) in layouts() {
        std::fs::create_dir_all(bench.path(recipe)).unwrap();
        for (name, rows) in [("train", 400), ("valid", 120), ("test", 120)] {
            let text = published(&columns, rows, rows);
            bench.write(&format!("{recipe}/{name}.csv"), &text);
        }
        let file = recipes.join(format!("{recipe}.toml"));
        let line = format!(
            "train {} --data-dir {recipe} --out runs/{recipe} --seed 1 --set train.epochs=1 --set train.batch_size=200 --json --quiet --device cpu",
            file.display()
        );
        let trained = bench.densely(&words(&line)).success();
        let summary: serde_json::Value = serde_json::from_str(&stdout(&trained)).unwrap();
        assert!(
            summary["metrics"]["auc"]["mean"].as_f64().is_some(),
            "{recipe}: {summary}"
        );
    }
}
