//! Lists of facts, whole and broken.

use std::path::PathBuf;

use densely_core::{Error, Result};
use densely_interp::facts::{Fact, read_counterfact, read_facts, sift_facts};
use proptest::prelude::*;
use tempfile::TempDir;

fn file(name: &str, text: &[u8]) -> Result<(TempDir, PathBuf)> {
    let folder = tempfile::tempdir().map_err(Error::io("tempdir"))?;
    let path = folder.path().join(name);
    std::fs::write(&path, text).map_err(Error::io(&path))?;
    Ok((folder, path))
}

fn facts(name: &str, text: &str) -> Result<Vec<Fact>> {
    let (_folder, path) = file(name, text.as_bytes())?;
    read_facts(&path)
}

fn refused(name: &str, text: &str) -> String {
    let error = facts(name, text).expect_err(text).to_string();
    assert!(error.contains(name), "{error}");
    error
}

const KNOWN: &str = r#"[{"known_id": 0, "subject": "Vinson Massif", "attribute": "Antarctica", "template": "{} is located in the continent",
"prediction": " of Antarctica. It is", "prompt": "Vinson Massif is located in the continent of", "relation_id": "P30"}]"#;

const COUNTER: &str = r#"[{"case_id": 7, "pararel_idx": 1, "requested_rewrite": {"prompt": "The mother tongue of {} is", "relation_id": "P103",
"target_new": {"str": "English", "id": "Q1860"}, "target_true": {"str": "French", "id": "Q150"}, "subject": "Danielle Darrieux"},
"paraphrase_prompts": ["a"], "neighborhood_prompts": ["b", "c"], "attribute_prompts": [], "generation_prompts": ["d"]}]"#;

#[test]
fn all_layouts_are_read() -> Result<()> {
    let known = facts("known_1000.json", KNOWN)?;
    assert_eq!(known[0].id, "0");
    assert_eq!(known[0].attribute.as_deref(), Some("Antarctica"));
    assert_eq!(known[0].relation.as_deref(), Some("P30"));
    assert_eq!(known[0].template, "{} is located in the continent");

    let counter = facts("counterfact.json", COUNTER)?;
    assert_eq!(counter[0].id, "7");
    assert_eq!(
        counter[0].prompt,
        "The mother tongue of Danielle Darrieux is"
    );
    assert_eq!(counter[0].attribute.as_deref(), Some("French"));
    let (_folder, path) = file("counterfact.json", COUNTER.as_bytes())?;
    let records = read_counterfact(&path)?;
    assert_eq!(records[0].requested_rewrite.target_new.str, "English");
    assert_eq!(records[0].neighborhood_prompts, ["b", "c"]);

    let own = Fact::new(
        "2",
        "The capital of France is",
        "France",
        Some("Paris".to_owned()),
    )?;
    assert_eq!(own.template, "The capital of {} is");
    let lines = "\n{\"subject\": \"France\", \"prompt\": \"The capital of France is\", \"answer\": \" Paris\"}\n";
    assert_eq!(facts("own.jsonl", lines)?, std::slice::from_ref(&own));
    let csv = "subject,template,attribute\nFrance,The capital of {} is,Paris\n";
    assert_eq!(facts("own.csv", csv)?, [own]);
    let quoted = "id,subject,prompt\na,\"Rome, Italy\",\"Where is Rome, Italy\nnow? In\"\n";
    assert_eq!(facts("own.csv", quoted)?[0].subject, "Rome, Italy");
    Ok(())
}

#[test]
fn what_is_broken_is_named_by_its_line() {
    let missing = refused(
        "a.jsonl",
        "{\"subject\":\"x\",\"prompt\":\"x is\"}\n{\"subject\":\"x\",\"prompt\":\n",
    );
    assert!(
        missing.contains("row 2") && missing.contains("JSON"),
        "{missing}"
    );
    let absent = refused(
        "a.jsonl",
        "{\"subject\":\"Rome\",\"prompt\":\"The city of rome is\"}\n",
    );
    assert!(
        absent.contains("row 1") && absent.contains("does not stand in the prompt"),
        "{absent}"
    );
    let list = refused(
        "a.json",
        "[{\"subject\":\"x\",\"prompt\":\"x\"},\n{\"subject\":\"\"}]",
    );
    assert!(list.contains("record 2: has no `subject`"), "{list}");
    let torn = refused("a.json", "[{\"subject\":\"x\",\n\"prompt\":");
    assert!(torn.contains("row 2"), "{torn}");
    let csv = refused("a.csv", "subject,prompt\nx,x is\ny\n");
    assert!(csv.contains("row 3") && csv.contains("1 cells"), "{csv}");
    let header = refused("a.csv", "topic,prompt\nx,x is\n");
    assert!(
        header.contains("column `subject`") && header.contains("topic"),
        "{header}"
    );
    let twice = refused("a.csv", "id,subject,prompt\n1,x,x is\n1,y,y is\n");
    assert!(twice.contains("two facts have the id"), "{twice}");
    assert!(refused("a.json", "[]").contains("holds no fact"));
    assert!(refused("a.json", "hello").contains("must begin with"));
    assert!(refused("a.json", "[1]").contains("record 1"));
    let long = format!(
        "[{{\"subject\":\"x\",\"prompt\":\"x{}\"}}]",
        "y".repeat(30_000)
    );
    assert!(refused("a.json", &long).contains("more than 20000 bytes"));
    let number = refused("a.json", "[{\"subject\":[\"x\"],\"prompt\":\"x\"}]");
    assert!(number.contains("`subject` must be text"), "{number}");
    let gap = COUNTER.replace("of {} is", "of him is");
    assert!(refused("a.json", &gap).contains("requested_rewrite.prompt"));
    let empty = COUNTER.replace("\"French\"", "\" \"");
    assert!(
        refused("a.json", &empty)
            .contains("record 1: `requested_rewrite.target_true.str` is empty")
    );
    let long = COUNTER.replace("French", &"French".repeat(5_000));
    assert!(refused("a.json", &long).contains("more than 20000 bytes"));
    assert!(Fact::new("1", "x is", " ", None).is_err());
    let empty = COUNTER.replace("The mother tongue of {} is", " ");
    for (name, text, place) in [
        (
            "a.json",
            "[{\"subject\":\"x\",\"prompt\":\"\"}]",
            "record 1",
        ),
        (
            "a.jsonl",
            "{\"subject\":\"x\",\"prompt\":\"x is\"}\n{\"subject\":\"x\",\"prompt\":\" \"}\n",
            "row 2",
        ),
        ("a.csv", "subject,prompt\nx,\n", "row 2"),
        ("a.csv", "subject,template\nx,x is\nx,\n", "row 3"),
        ("a.json", empty.as_str(), "record 1"),
    ] {
        let said = refused(name, text);
        assert!(
            said.contains("the prompt is empty") && said.contains(place),
            "{said}"
        );
    }
    let error = Fact::new("1", "", "", None).expect_err("no prompt");
    assert!(error.to_string().contains("the prompt is empty"), "{error}");
}

#[test]
fn what_is_broken_can_be_left_out() -> Result<()> {
    for (name, text, places) in [
        (
            "a.csv",
            "id,subject,prompt\n1,x,x is\n1,y,x is\nz\n1,z,z is\n",
            [
                "row 3: the subject \"y\" does not stand",
                "row 4: has 1 cells",
            ],
        ),
        (
            "a.jsonl",
            "{\"subject\":\"x\",\"prompt\":\"x is\"}\n{\"subject\"\n\n{\"subject\":\"\"}\n{\"subject\":\"z\",\"prompt\":\"z is\"}\n",
            ["row 2: is not a JSON record", "row 4: has no `subject`"],
        ),
        (
            "a.json",
            "[{\"subject\":\"x\",\"prompt\":\"x is\"}, 1, {\"subject\":\"y\"}, {\"subject\":\"z\",\"prompt\":\"z is\"}]",
            ["record 2: must be an object", "record 3: has neither"],
        ),
    ] {
        let (_folder, path) = file(name, text.as_bytes())?;
        let found = sift_facts(&path)?;
        let subjects: Vec<&str> = found.facts.iter().map(|f| f.subject.as_str()).collect();
        assert_eq!(subjects, ["x", "z"], "{name}");
        assert_eq!(found.broken.len(), 2, "{:?}", found.broken);
        for (error, place) in found.broken.iter().zip(places) {
            let said = error.to_string();
            assert!(said.contains(name) && said.contains(place), "{said}");
        }
        // What is the first to be left out is where others stop.
        let strict = read_facts(&path).expect_err(name).to_string();
        assert!(strict.contains(places[0]), "{strict}");
    }
    let (_folder, path) = file("a.csv", b"subject,prompt\nx,y is\n")?;
    let error = sift_facts(&path).expect_err("none is left").to_string();
    assert!(
        error.contains("no fact of it can be used") && error.contains("row 2"),
        "{error}"
    );
    Ok(())
}

#[test]
fn bytes_that_are_no_text_are_refused() -> Result<()> {
    let (_folder, path) = file("a.csv", b"subject,prompt\nx,\xff\n")?;
    let error = read_facts(&path).expect_err("no text").to_string();
    assert!(
        error.contains("row 2") && error.contains("UTF-8"),
        "{error}"
    );
    let missing = path.with_file_name("none.json");
    assert!(matches!(read_facts(&missing), Err(Error::Io { .. })));
    Ok(())
}

proptest! {
    /// Whatever the bytes: facts or an error, no panic.
    #[test]
    fn any_bytes_end_in_facts_or_an_error(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        start in prop::sample::select(vec!["", "[", "{", "[{\"subject\":", "subject,prompt\n"]),
        name in prop::sample::select(vec!["a.json", "a.csv"]),
    ) {
        let mut all = start.as_bytes().to_vec();
        all.extend(bytes);
        let (_folder, path) = file(name, &all).expect("a file");
        if let Ok(facts) = read_facts(&path) {
            prop_assert!(facts.iter().all(|fact| fact.prompt.contains(&fact.subject)));
        }
        let _ = read_counterfact(&path);
    }
}
