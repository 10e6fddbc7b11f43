//! What edits and studies say of their settings, and what they refuse or leave out before anything is measured.

use super::{Bench, PROMPT, edit, failure, stderr, stdout, study, taught, words};

use serde_json::{Value, json};

#[test]
fn memit_without_moments_and_weight_is_refused() {
    let bench = Bench::new();
    bench.model();
    bench.write("facts.csv", super::FACTS);
    let memit = ["--target", "x", "--method", "memit"];
    let identity = ["--moments", "identity"];
    for rest in [memit.to_vec(), [memit.as_slice(), &identity].concat()] {
        let error = failure(&bench, &edit(&rest));
        assert!(
            error.contains("--moments-text FILE") && error.contains("--lambda"),
            "{error}"
        );
    }
    let study = ["--facts", "facts.csv", "--out", "study"];
    let some: &[&str] = &["--methods", "rome,memit"];
    for methods in [some, &[]] {
        let rest = [study.as_slice(), methods].concat();
        let error = failure(&bench, &words("localize", &rest));
        assert!(
            error.contains("--moments-text FILE") && error.contains("leave memit out"),
            "{error}"
        );
        assert!(!bench.path("study").exists());
    }
    let given = [memit.as_slice(), &["--lambda", "1", "--json"]].concat();
    let found = bench.json(&edit(&given));
    assert_eq!(found["lambda"], 1.0);
    assert!(found["changes"][0]["norm"].as_f64() > Some(0.0), "{found}");
}

#[test]
fn empty_texts_are_called_empty() {
    let bench = Bench::new();
    bench.model();
    let says = |rest: &[&str], part: &str| {
        let error = failure(&bench, &words("edit", rest));
        assert!(error.contains(part), "{error}");
    };
    let whole = ["--prompt", " ", "--subject", "tower", "--target", "x"];
    says(&whole, "the prompt is empty");
    says(
        &["--prompt", "", "--apply", "none.safetensors"],
        "the prompt is empty",
    );
    let prompt = ["--prompt", PROMPT, "--subject", "tower", "--target", "x"];
    for name in ["--paraphrase", "--neighbour", "--generate"] {
        let said = format!("`{name}`: is empty");
        says(&[prompt.as_slice(), &[name, ""]].concat(), &said);
    }
    bench.write("facts.csv", "subject,prompt\ntower,\n");
    let error = failure(&bench, &words("trace", &["--facts", "facts.csv"]));
    assert!(
        error.contains("row 2") && error.contains("the prompt is empty"),
        "{error}"
    );
}

#[test]
fn an_edit_says_its_settings() {
    let bench = Bench::new();
    bench.model();
    let json = |rest: &[&str]| bench.json(&edit(&[rest, &["--json"]].concat()));
    let text = |rest: &[&str]| stdout(&bench.densely(&edit(rest)).success());
    let target = ["--target", "x", "--layer", "1"];
    let found = json(&target);
    assert_eq!(found["key"], "averaged");
    assert_eq!(
        (&found["lambda"], &found["loss"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!((&found["clamp"], &found["steps"]), (&json!(4.0), &json!(2)));
    let reference = [target.as_slice(), &["--key", "reference"]].concat();
    assert_eq!(json(&reference)["key"], "reference");
    let said = text(&reference);
    assert!(
        said.contains("ROME's key reference, clamp 4, at most 2 steps\n"),
        "{said}"
    );

    let free = ["--method", "ft", "--clamp", "none", "--loss"];
    let free = [target.as_slice(), &free].concat();
    for loss in ["sequence-mean", "sequence-sum", "single-position"] {
        let found = json(&[free.as_slice(), &[loss]].concat());
        assert_eq!(found["loss"], loss);
        assert_eq!(
            (&found["clamp"], &found["key"]),
            (&Value::Null, &Value::Null)
        );
        assert_eq!(found["moments"], Value::Null);
    }
    // " x" is two tokens for this tokeniser.
    let first = |loss: &str| {
        let found = json(&[free.as_slice(), &[loss]].concat());
        found["losses"][0].as_f64().unwrap()
    };
    assert!((first("sequence-sum") - 2.0 * first("sequence-mean")).abs() < 1e-4);
    // Two steps of 5e-4.
    let norm = |clamp: &str| {
        let found = json(&[target.as_slice(), &["--method", "ft", "--clamp", clamp]].concat());
        found["changes"][0]["norm"].as_f64().unwrap()
    };
    assert!(norm("none") > 2.0 * norm("0.0001"));
    let none = [target.as_slice(), &["--method", "ft", "--clamp", "0"]].concat();
    let error = failure(&bench, &edit(&none));
    assert!(error.contains("`--clamp`"), "{error}");
    let said = text(&[free.as_slice(), &["sequence-sum"]].concat());
    assert!(said.contains("loss sequence-sum, clamp none"), "{said}");

    let none = [target.as_slice(), &["--clamp", "none"]].concat();
    let error = failure(&bench, &edit(&none));
    assert!(error.contains("`none` is of finetuning"), "{error}");
    let wrong = [target.as_slice(), &["--clamp", "much"]].concat();
    let error = stderr(&bench.densely(&edit(&wrong)).code(2));
    assert!(error.contains("must be a number or `none`"), "{error}");
    let beside = [target.as_slice(), &["--loss", "sequence-sum"]].concat();
    let warned = stderr(&bench.densely(&edit(&beside)).success());
    assert!(
        warned.contains("without effect with --method rome: --loss\n"),
        "{warned}"
    );
}

/// A record of CounterFact about the tower.
fn record(id: u64, truth: Option<&str>) -> Value {
    let truth = truth.map(|truth| json!({ "str": truth }));
    json!({ "case_id": id, "requested_rewrite": {
        "prompt": "The {} stands in", "subject": "tower",
        "target_new": { "str": "Rome" }, "target_true": truth,
    } })
}

#[test]
fn records_that_do_not_fit_are_skipped_before_anything_is_measured() {
    let bench = Bench::new();
    bench.model();
    let long = "x".repeat(60);
    let mut broken = record(10, Some("Bonn"));
    broken["generation_prompts"] = json!(["The tower is"]);
    let records = json!([
        record(7, Some("Oslo")),
        record(8, Some(&long)),
        record(9, None),
        broken,
        record(11, Some("Bern")),
    ]);
    bench.write("records.json", &records.to_string());
    let rest = ["--facts", "records.json", "--method", "ft", "--steps", "2"];
    let plain = bench.densely(&words("edit", &rest)).success();
    let warned = stderr(&plain);
    for part in [
        "record 8: setting `true target`: has 61 tokens behind a prompt of 19",
        "record 9: has no `requested_rewrite.target_true`",
        "record 10: setting `generation prompt`: has 12 tokens",
    ] {
        assert!(warned.contains(part), "`{part}` is not in {warned}");
    }
    let said = stdout(&plain);
    assert!(
        said.contains("finetune: 2 records of records.json"),
        "{said}"
    );
    assert!(said.contains("loss sequence-mean, clamp 0.001"), "{said}");
    assert!(said.ends_with("records skipped: 3\n"), "{said}");
    let found = bench.json(&[words("edit", &rest).as_slice(), &["--json"]].concat());
    assert_eq!(
        (&found["records"], &found["skipped"]),
        (&json!(2), &json!(3))
    );
    assert_eq!(found["method"], "finetune");
    assert_eq!(
        (&found["clamp"], &found["steps"]),
        (&json!(1e-3), &json!(2))
    );
    assert_eq!(found["before"]["records"], 2);

    // None is left: nothing was measured.
    bench.write("records.json", &json!([record(9, None)]).to_string());
    bench.write("text.txt", "The tower stands in the city. ");
    let measured = ["--moments-text", "text.txt", "--moments-dir", "held"];
    let many = [["--facts", "records.json"].as_slice(), &measured].concat();
    let error = failure(&bench, &words("edit", &many));
    assert!(
        error.contains("none of its 1 records can be edited") && error.contains("record 9"),
        "{error}"
    );
    let one = [["--target", &long].as_slice(), &measured].concat();
    let error = failure(&bench, &edit(&one));
    assert!(error.contains("too long together"), "{error}");
    let neighbour = "bridge ".repeat(9);
    let other = ["--target", "x", "--neighbour", &neighbour];
    failure(&bench, &edit(&[other.as_slice(), &measured].concat()));
    assert!(!bench.path("held").exists());
}

#[test]
fn a_study_says_its_key_noise_and_second_moments() {
    let bench = taught();
    let rest = [
        "--methods",
        "rome",
        "--key",
        "reference",
        "--prefixes",
        "2",
        "--lambda",
        "3",
        "--json",
    ];
    let run = bench.densely(&study(&rest)).success();
    let found: Value = serde_json::from_str(&stdout(&run)).unwrap();
    assert_eq!(found["settings"]["key"], "reference");
    assert_eq!(found["settings"]["lambda"], Value::Null);
    let said = stderr(&run);
    for part in [
        "without effect with --methods rome: --lambda\n",
        "noise s3: the paper has none for this model",
        "ROME's key reference",
    ] {
        assert!(said.contains(part), "`{part}` is not in {said}");
    }
    let report = std::fs::read_to_string(bench.path("study/report.md")).unwrap();
    for part in [
        "| ROME's key | reference |",
        "| second moments | the identity in the place of second moments |",
        "the paper has none for this model; 2 draws",
    ] {
        assert!(report.contains(part), "`{part}` is not in {report}");
    }
}
