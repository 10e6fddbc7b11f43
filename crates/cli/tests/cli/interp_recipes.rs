//! Recipes of the domain `interp` on a tiny model.

use super::own_interp::taught;
use super::{Bench, stderr};

use serde_json::Value;

fn recipe(section: &str) -> String {
    format!(
        "name = \"study\"\ntitle = \"A study\"\ndomain = \"interp\"\nseeds = [1, 2]\n\
         [data]\nmodel = \"tiny\"\nfacts = \"atlas.csv\"\n{section}"
    )
}

const TRACE: &str =
    "[trace]\nsamples = 2\nwindow = 2\nscore = \"product\"\nkinds = [\"block\", \"mlp\"]\n";
const LOCALIZE: &str = "[localize]\nvariants = [\"fact-erasure\"]\nmethods = [\"ft-1\"]\nlayers = [0, 1]\n\
                        samples = 2\nwindow = 1\nmin_probability = 0.0\n";

fn run(bench: &Bench, text: &str, rest: &[&str]) -> Value {
    bench.write("study.toml", text);
    let words = [
        "train",
        "study.toml",
        "--json",
        "--device",
        "cpu",
        "--quiet",
    ];
    bench.json(&[words.as_slice(), rest].concat())
}

#[test]
fn a_trace_is_made_for_each_seed_and_goes_on() {
    let bench = taught();
    let found = run(&bench, &recipe(TRACE), &[]);
    let seeds = found["metrics"]["block.last_subject_token"]["seeds"].as_array();
    assert_eq!(seeds.map(Vec::len), Some(2), "{found}");
    assert!(found["params"].as_u64() > Some(100), "{found}");
    let report = found["report"].as_str().unwrap();
    assert!(
        report.contains("### Seed 2") && report.contains("3 facts traced"),
        "{report}"
    );
    let plot = found["plots"][0].as_str().unwrap();
    assert!(bench.path(plot).exists(), "{plot}");
    let again = run(&bench, &recipe(TRACE), &["--resume"]);
    assert_eq!(found["metrics"], again["metrics"]);
    // What is there is not made again without being asked.
    let words = ["train", "study.toml", "--device", "cpu"];
    let error = stderr(&bench.densely(&words).code(1));
    assert!(error.contains("--resume"), "{error}");
}

#[test]
fn a_localisation_study_says_what_it_found() {
    let bench = taught();
    let found = run(&bench, &recipe(LOCALIZE), &["--set", "seeds=[3]"]);
    let metrics = found["metrics"].as_object().unwrap();
    for name in ["best_rewrite", "r2_layer", "r2_both"] {
        let value = &metrics[&format!("fact-erasure.ft-1.{name}")]["mean"];
        assert!(value.is_number(), "{name}: {found}");
    }
    let report = found["report"].as_str().unwrap();
    for part in ["finding", "95 % interval", "| 1 |", "### Tracing"] {
        assert!(report.contains(part), "{part}: {report}");
    }
    assert!(
        bench
            .path("runs/study/seed-3/plots/tracing-mlp.svg")
            .exists()
    );
    assert!(bench.path("runs/study/seed-3/report.md").exists());
}

#[test]
fn recipes_that_do_not_fit_are_told_why() {
    let bench = taught();
    let says = |text: &str, parts: &[&str]| {
        bench.write("study.toml", text);
        let words = ["train", "study.toml", "--device", "cpu"];
        let error = stderr(&bench.densely(&words).code(1));
        for part in parts {
            assert!(error.contains(part), "`{part}` is not in {error}");
        }
    };
    says(&recipe(""), &["[trace]", "[localize]"]);
    says(
        &recipe(&format!("{TRACE}{LOCALIZE}")),
        &["must have one of"],
    );
    says(
        &recipe(&format!("{TRACE}[train]\nepochs = 3\n")),
        &["nothing is trained"],
    );
    says(
        &recipe(&format!("{TRACE}sample = 3\n")),
        &["trace", "--sample"],
    );
    says(&recipe(&TRACE.replace("\"mlp\"", "\"mlq\"")), &["mlq"]);
    let other = recipe(TRACE).replace("domain = \"interp\"", "domain = \"fields\"");
    says(&other, &["domain interp", "fields"]);
    says(
        &recipe(TRACE).replace("facts = ", "fact = "),
        &["study.toml", "fact"],
    );
    let missing = recipe(TRACE).replace(
        "model = \"tiny\"",
        "datasets = [\"smollm2\"]\nmodel = \"smollm2/no.gguf\"",
    );
    says(&missing, &["no.gguf", "cargo xtask data get smollm2"]);
}

const TRANSCODER: &str =
    "features = 40\nk = 4\ncontext = 16\nbatch = 256\nbuffer = 1024\nlayer = 1\ntest_windows = 6\n";

/// A recipe of dictionaries on the tiny model.
fn dictionaries(bench: &Bench, section: &str) -> String {
    bench.write(
        "words.txt",
        &"The bridge stands over the river, and the tower beside it.\n".repeat(60),
    );
    bench.write(
        "others.txt",
        &"A river runs below the tower and a bridge.\n".repeat(10),
    );
    format!(
        "name = \"study\"\ntitle = \"A study\"\ndomain = \"interp\"\nseeds = [1]\n\
         [data]\nmodel = \"tiny\"\ntexts = [\"words.txt\"]\ntest_texts = [\"others.txt\"]\n{section}"
    )
}

#[test]
fn a_transcoder_is_a_study() {
    let bench = taught();
    let text = dictionaries(&bench, &format!("[transcoder]\n{TRANSCODER}"));
    let found = run(&bench, &text, &[]);
    let value = |name: &str| {
        found["metrics"][name]["seeds"][0]["value"]
            .as_f64()
            .unwrap()
    };
    assert!(value("l0") > 0.0 && value("l0") <= 4.0, "{found}");
    assert!(value("ce_clean") > 0.0, "{found}");
    // The activations were for this study alone.
    assert!(!bench.path("runs/study/seed-1/activations").exists());
    let ks = TRANSCODER.replace("k = 4", "ks = [2, 6]");
    let text = dictionaries(&bench, &format!("[transcoder_compare]\n{ks}"));
    let found = run(&bench, &text, &["--out", "runs/compare"]);
    let metrics = found["metrics"].as_object().unwrap();
    for name in ["autoencoder.2.ce", "transcoder.6.l0"] {
        assert!(metrics.contains_key(name), "{name}: {found}");
    }
    assert!(
        found["report"]
            .as_str()
            .unwrap()
            .contains("| transcoder | 6 |")
    );
}
