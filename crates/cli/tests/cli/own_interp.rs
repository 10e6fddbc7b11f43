//! `densely interp`: a tiny model's facts traced and edited.

use super::{Bench, stderr, stdout};

use serde_json::json;

const PROMPT: &str = "The tower stands in";
const FACTS: &str = "subject,prompt\ntower,The tower stands in\nbridge,The bridge stands in\n";

/// Words of a command on the tiny model.
fn words<'a>(command: &'a str, rest: &[&'a str]) -> Vec<&'a str> {
    [&["interp", command, "tiny", "--device", "cpu"], rest].concat()
}

/// What the program says when it fails.
fn failure(bench: &Bench, words: &[&str]) -> String {
    stderr(&bench.densely(words).code(1))
}

#[test]
fn a_prompt_is_traced_into_pictures_and_numbers() {
    let bench = Bench::new();
    bench.model();
    let rest = [
        "--prompt",
        PROMPT,
        "--subject",
        "tower",
        "--samples",
        "2",
        "--window",
        "2",
        "--out",
        "traced",
    ];
    let found = bench.json(&[&words("trace", &rest), ["--json"].as_slice()].concat());
    let trace = &found["trace"];
    assert_eq!(trace["tokens"].as_array().unwrap().len(), PROMPT.len());
    assert_eq!(trace["subject"], json!({ "start": 4, "end": 9 }));
    for name in ["block.svg", "mlp.svg", "attn.svg", "trace.json"] {
        let text = std::fs::read_to_string(bench.path("traced").join(name)).unwrap();
        assert!(text.len() > 500, "{name}");
    }
    let shown = stdout(&bench.densely(&words("trace", &rest)).success());
    assert!(shown.contains("with the subject corrupted"), "{shown}");
}

#[test]
fn prompts_that_cannot_be_traced_are_told_why() {
    let bench = Bench::new();
    bench.model();
    let says = |prompt: &str, subject: &str, text: &str| {
        let error = failure(
            &bench,
            &words("trace", &["--prompt", prompt, "--subject", subject]),
        );
        assert!(error.contains(text), "{error}");
    };
    says(PROMPT, "bridge", "does not stand in the prompt");
    says("", "bridge", "does not stand in the prompt");
    says(PROMPT, "", "the subject is empty");
    says(
        &"tower ".repeat(9),
        "tower",
        "has 54 tokens with its answer, the model takes 48",
    );
    bench.write(
        "broken.csv",
        "subject,prompt,attribute\ntower,The tower is,?\nbridge,The tower is,?\n",
    );
    let error = failure(&bench, &words("trace", &["--facts", "broken.csv"]));
    assert!(error.contains("broken.csv, row 3"), "{error}");
}

#[test]
fn a_list_of_facts_is_averaged_and_goes_on() {
    let bench = Bench::new();
    bench.model();
    bench.write("facts.csv", FACTS);
    let rest = [
        "--facts",
        "facts.csv",
        "--samples",
        "2",
        "--kinds",
        "mlp",
        "--window",
        "2",
        "--noise",
        "0.5",
        "--out",
        "many",
    ];
    let first = bench.json(&[&words("trace", &rest), ["--json"].as_slice()].concat());
    assert_eq!(first["averages"]["facts"], 2);
    for name in [
        "report.md",
        "averages.json",
        "plots/mlp.svg",
        "plots/mlp-lines.svg",
    ] {
        assert!(bench.path("many").join(name).exists(), "{name}");
    }
    let error = failure(&bench, &words("trace", &rest));
    assert!(error.contains("--resume"), "{error}");

    // One more fact: what is there is not made again, and ends in the same numbers as all three at once.
    bench.write(
        "facts.csv",
        &format!("{FACTS}harbour,The harbour lies in\n"),
    );
    let traced =
        |folder: &str| std::fs::read_to_string(bench.path(folder).join("traces.jsonl")).unwrap();
    let before = traced("many");
    let more = bench.json(&[&words("trace", &rest), ["--resume", "--json"].as_slice()].concat());
    assert_eq!(more["averages"]["facts"], 3);
    assert!(traced("many").starts_with(&before));
    let mut anew = rest;
    anew[anew.len() - 1] = "anew";
    let whole = bench.json(&[&words("trace", &anew), ["--json"].as_slice()].concat());
    assert_eq!(whole["averages"], more["averages"]);
}

#[test]
fn an_edit_is_shown_and_taken_back() {
    let bench = Bench::new();
    bench.model();
    for method in ["rome", "memit", "ft"] {
        let before = std::fs::read(bench.path("tiny/model.safetensors")).unwrap();
        let rest = [
            "--prompt",
            PROMPT,
            "--subject",
            "tower",
            "--target",
            "x",
            "--true",
            "y",
            "--method",
            method,
            "--layer",
            "1",
            "--steps",
            "5",
            "--neighbour",
            "The bridge stands in",
            "--save",
            "edit.safetensors",
        ];
        let found = bench.json(&[&words("edit", &rest), ["--json"].as_slice()].concat());
        assert_eq!(found["undone"], true, "{method}");
        let changes = found["changes"].as_array().unwrap();
        assert_eq!(changes.len(), 1);
        assert_eq!(changes[0]["name"], "transformer.h.1.mlp.c_proj.weight");
        assert!(changes[0]["norm"].as_f64().unwrap() > 0.0);
        assert_eq!(
            std::fs::read(bench.path("tiny/model.safetensors")).unwrap(),
            before
        );
        // What was saved gives the same answers.
        let applied = bench.json(
            &[
                &words(
                    "edit",
                    &[
                        "--prompt",
                        PROMPT,
                        "--neighbour",
                        "The bridge stands in",
                        "--apply",
                        "edit.safetensors",
                    ],
                ),
                ["--json"].as_slice(),
            ]
            .concat(),
        );
        assert_eq!(
            applied["after"]["answers"], found["after"]["answers"],
            "{method}"
        );
    }
    let rest = ["--prompt", PROMPT, "--subject", "bridge", "--target", "x"];
    let error = failure(&bench, &words("edit", &rest));
    assert!(error.contains("does not stand in the prompt"), "{error}");
    let rest = [
        "--prompt",
        PROMPT,
        "--subject",
        "tower",
        "--target",
        "x",
        "--layer",
        "7",
    ];
    let error = failure(&bench, &words("edit", &rest));
    assert!(error.contains("must be below 2"), "{error}");
}
