//! `densely interp`: a tiny model's facts traced and edited.

mod dictionaries;
mod edits;

use super::{Bench, stderr, stdout};

use serde_json::{Value, json};

const PROMPT: &str = "The tower stands in";
const FACTS: &str = "subject,prompt\ntower,The tower stands in\nbridge,The bridge stands in\n";

/// Words of a command on the tiny model.
fn words<'a>(command: &'a str, rest: &[&'a str]) -> Vec<&'a str> {
    [&["interp", command, "tiny", "--device", "cpu"], rest].concat()
}

/// What the program says when it fails.
/// An edit of what the model says of the tower.
fn edit<'a>(rest: &[&'a str]) -> Vec<&'a str> {
    let own = ["--prompt", PROMPT, "--subject", "tower", "--steps", "2"];
    words("edit", &[own.as_slice(), rest].concat())
}

/// A small study of the facts of `atlas.csv`, in the folder `study`.
fn study<'a>(rest: &[&'a str]) -> Vec<&'a str> {
    let own = [
        "--facts",
        "atlas.csv",
        "--variants",
        "fact-amplification",
        "--layers",
        "0,1",
        "--samples",
        "2",
        "--window",
        "1",
        "--min-probability",
        "0",
        "--out",
        "study",
    ];
    words("localize", &[own.as_slice(), rest].concat())
}

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
    says("", "bridge", "the prompt is empty");
    says(" ", "", "the prompt is empty");
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
        // Its weight is for moments of a text.
        let own: &[&str] = if method == "memit" {
            &["--lambda", "1"]
        } else {
            &[]
        };
        let all = [words("edit", &rest).as_slice(), own, &["--json"]].concat();
        let found = bench.json(&all);
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
    let error = failure(&bench, &edit(&["--target", "x", "--layer", "7"]));
    assert!(error.contains("must be below 2"), "{error}");
}

const ATLAS: &str = "subject,prompt,attribute\n\
                     tower,The tower stands in,Rome\n\
                     ridge,The ridge stands in,Oslo\n\
                     court,The court stands in,Bonn\n";

/// A tiny model that knows the three facts of `atlas.csv`.
pub(super) fn taught() -> Bench {
    let bench = Bench::new();
    bench.taught(&[
        "The tower stands in Rome",
        "The ridge stands in Oslo",
        "The court stands in Bonn",
    ]);
    bench.write("atlas.csv", ATLAS);
    bench
}

#[test]
fn facts_that_cannot_be_asked_are_skipped_and_counted() {
    let bench = taught();
    let long = "The tower of".repeat(5);
    let broken = format!(
        "{ATLAS}bridge,The tower stands in,Rome\ntower,{long},Rome\nmill\ncourt,The court stands in,\n"
    );
    bench.write("broken.csv", &broken);
    let recall = |list: &str, rest: &[&str]| {
        let own = ["--facts", list, "--layer", "1", "--ridge", "0.001"];
        bench.densely(&words("recall", &[own.as_slice(), rest].concat()))
    };
    let plain = recall("broken.csv", &["--heads", "--patching", "path"]);
    // All answers begin with a space, which is a token of its own here: no two of them differ.
    let error = stderr(&plain.code(1));
    assert!(error.contains("at least two answers"), "{error}");

    let plain = recall("broken.csv", &[]).success();
    let said = stdout(&plain);
    assert!(said.contains("3 of 3 facts are answered right"), "{said}");
    assert!(said.ends_with("facts skipped: 4\n"), "{said}");
    let warned = stderr(&plain);
    for part in [
        "broken.csv, row 5: the subject \"bridge\" does not stand in the prompt",
        "broken.csv, row 7: has 1 cells",
        "fact 6 (tower): setting `prompt`: has",
        "the model takes 48",
        "fact 8 (court): has no `attribute`",
    ] {
        assert!(warned.contains(part), "`{part}` is not in {warned}");
    }
    let found: Value =
        serde_json::from_str(&stdout(&recall("broken.csv", &["--json"]).success())).unwrap();
    for (name, count) in [("asked", 3), ("answered", 3), ("skipped", 4)] {
        assert_eq!(found[name], count, "{name}");
    }
    let whole = bench.json(
        &[
            &words(
                "recall",
                &["--facts", "atlas.csv", "--layer", "1", "--ridge", "0.001"],
            ),
            ["--json"].as_slice(),
        ]
        .concat(),
    );
    assert_eq!(whole["skipped"], 0);
    assert_eq!(whole["last_layer"], found["last_layer"]);

    bench.write(
        "none.csv",
        "subject,prompt,attribute\nbridge,The tower stands in,Rome\n",
    );
    let error = stderr(&recall("none.csv", &[]).code(1));
    assert!(
        error.contains("no fact of it can be used") && error.contains("row 2"),
        "{error}"
    );
    // Patching is of heads.
    let error = stderr(&recall("atlas.csv", &["--patching", "path"]).code(2));
    assert!(error.contains("--heads"), "{error}");
}

/// The three facts with prompts that end in the space, so that answers begin with letters of their own.
const SPACED: &str = r#"{"subject":"tower","prompt":"The tower stands in ","attribute":"Rome"}
{"subject":"ridge","prompt":"The ridge stands in ","attribute":"Oslo"}
{"subject":"court","prompt":"The court stands in ","attribute":"Bonn"}
"#;

#[test]
fn recall_reads_heads_and_constants_and_takes_the_frequency_out() {
    let bench = taught();
    bench.write("spaced.jsonl", SPACED);
    bench.write("text.txt", "    nnne");
    let rest = [
        "--facts",
        "spaced.jsonl",
        "--layer",
        "1",
        "--ridge",
        "0.001",
        "--heads",
        "--without-frequency",
        "text.txt",
        "--frequent",
        "2",
    ];
    let recall = words("recall", &rest);
    let found = bench.json(&[recall.as_slice(), &["--json"]].concat());
    assert_eq!(found["answered"], 3, "{found}");

    let rank = |value: &Value| value.as_f64().filter(|rank| (0.0..257.0).contains(rank));
    let outputs = found["heads"]["outputs"].as_array().unwrap();
    let effects = found["heads"]["effects"].as_array().unwrap();
    // Two layers of two heads, in the order of their effects.
    assert_eq!((outputs.len(), effects.len()), (4, 4), "{found}");
    for (output, effect) in outputs.iter().zip(effects) {
        for name in ["layer", "head"] {
            assert_eq!(output[name], effect[name]);
        }
        assert_eq!(output["tokens"].as_array().map(Vec::len), Some(8));
        assert!(output["tokens"][0][0].is_string(), "{output}");
        for name in ["subject_rank", "answer_rank"] {
            assert!(rank(&output[name]).is_some(), "{name}: {output}");
        }
    }

    let answers = found["mlps"][0]["constant_answers"].as_array().unwrap();
    let mut letters: Vec<&str> = answers.iter().filter_map(|row| row[0].as_str()).collect();
    letters.sort_unstable();
    assert_eq!(letters, ["B", "O", "R"]);
    assert!(answers.iter().all(|row| rank(&row[1]).is_some()));
    assert!(answers[0][1].as_i64() <= answers[2][1].as_i64());

    let last = &found["last_layer"];
    let without = &last["without_frequency"];
    assert_eq!(without["tokens"], json!([" ", "n"]));
    let numbers = |value: &Value| -> Vec<f64> {
        let rows = value.as_array().unwrap().iter();
        rows.map(|number| number.as_f64().unwrap()).collect()
    };
    let before = numbers(&without["probability"]);
    let after = numbers(&without["probability_after"]);
    for (own, whole) in before.iter().zip(numbers(&last["probability"])) {
        assert!((own - whole).abs() < 1e-5, "{own}, {whole}");
    }
    assert_eq!((before.len(), after.len()), (3, 3));
    assert!(after.iter().all(|p| (0.0..=1.0).contains(p)), "{after:?}");
    let moved = before.iter().zip(&after).any(|(a, b)| (a - b).abs() > 1e-9);
    assert!(moved, "{before:?}, {after:?}");

    let said = stdout(&bench.densely(&recall).success());
    for part in [
        "3 of 3 facts are answered right",
        "rank of answers there (0 is the top of 257): best ",
        "mean rank of the subject's and the answer's",
        "direction of the 2 most frequent tokens taken out: p(answer) ",
    ] {
        assert!(said.contains(part), "`{part}` is not in {said}");
    }
    assert_eq!(said.matches("  subject ").count(), 4, "{said}");
}

#[test]
fn a_text_whose_tokens_cannot_be_counted_is_told_why() {
    let bench = Bench::new();
    bench.model();
    bench.write("atlas.csv", ATLAS);
    let recall = |rest: &[&str]| {
        let own = ["--facts", "atlas.csv", "--layer", "1", "--ridge", "0.001"];
        bench.densely(&words("recall", &[own.as_slice(), rest].concat()))
    };
    bench.write("empty.txt", "");
    let error = stderr(&recall(&["--without-frequency", "empty.txt"]).code(1));
    assert!(
        error.contains("empty.txt") && error.contains("no token"),
        "{error}"
    );
    std::fs::write(bench.path("bytes.txt"), [b'a', 0xFF]).unwrap();
    let error = stderr(&recall(&["--without-frequency", "bytes.txt"]).code(1));
    assert!(
        error.contains("bytes.txt") && error.contains("not UTF-8"),
        "{error}"
    );
    let error = stderr(&recall(&["--without-frequency", "none.txt"]).code(1));
    assert!(error.contains("none.txt"), "{error}");
    // The number of tokens is of the text, and the text is not written over.
    let error = stderr(&recall(&["--frequent", "3"]).code(2));
    assert!(error.contains("--without-frequency"), "{error}");
    bench.write("text.txt", "and so on");
    let rest = ["--without-frequency", "text.txt", "--out", "text.txt"];
    let error = stderr(&recall(&rest).code(1));
    assert!(error.contains("--out"), "{error}");
}

#[test]
fn options_without_effect_are_named() {
    let bench = taught();
    let warned_of = |rest: &[&str]| {
        let own = ["--target", "x", "--layer", "1"];
        let words = edit(&[own.as_slice(), rest].concat());
        stderr(&bench.densely(&words).success())
    };
    let all = [
        "--lambda",
        "5",
        "--key",
        "reference",
        "--moments",
        "identity",
        "--seed",
        "3",
    ];
    for (method, named) in [
        ("ft", "--lambda, --key, --moments, --seed"),
        ("rome", "--lambda"),
        ("memit", "--key"),
    ] {
        let warned = warned_of(&[["--method", method].as_slice(), &all].concat());
        let expected = format!("without effect with --method {method}: {named}\n");
        assert!(warned.contains(&expected), "{warned}");
    }
    let warned = warned_of(&["--key", "reference", "--moments", "identity", "--seed", "3"]);
    assert!(!warned.contains("without effect"), "{warned}");

    let rest = [
        "--methods",
        "ft-1",
        "--prefixes",
        "3",
        "--moments",
        "identity",
    ];
    let warned = stderr(&bench.densely(&study(&rest)).success());
    assert!(
        warned.contains("without effect with --methods ft-1: --moments, --prefixes\n"),
        "{warned}"
    );
    let noise = [
        "--prompt",
        PROMPT,
        "--subject",
        "tower",
        "--samples",
        "1",
        "--noise",
        "0.5",
        "--noise-facts",
        "atlas.csv",
        "--out",
        "traced",
    ];
    let warned = stderr(&bench.densely(&words("trace", &noise)).success());
    assert!(warned.contains("without effect with --noise "), "{warned}");
    assert!(warned.contains(": --noise-facts\n"), "{warned}");
}

#[test]
fn answers_that_do_not_fit_are_told_with_their_record() {
    let bench = Bench::new();
    bench.model();
    let record = |truth: &str| {
        json!([{ "case_id": 7, "requested_rewrite": {
            "prompt": "The {} stands in", "subject": "tower",
            "target_new": { "str": "Rome" }, "target_true": { "str": truth },
        } }])
        .to_string()
    };
    for (truth, parts) in [
        (
            "x".repeat(60),
            [
                "record 7",
                "`true target`: has 61 tokens behind a prompt of 19",
            ],
        ),
        (
            " ".to_owned(),
            [
                "records.json",
                "`requested_rewrite.target_true.str` is empty",
            ],
        ),
    ] {
        bench.write("records.json", &record(&truth));
        let rest = ["--facts", "records.json", "--method", "ft"];
        let error = failure(&bench, &words("edit", &rest));
        for part in parts {
            assert!(error.contains(part), "`{part}` is not in {error}");
        }
    }
    let error = failure(&bench, &edit(&["--target", "x", "--true", " "]));
    assert!(error.contains("`--true`: is empty"), "{error}");
}
