//! The door for parity with other frameworks.

use std::collections::BTreeMap;

use densely_core::tch::{Kind, Tensor, kind::FLOAT_CPU};
use densely_core::{Tensors, weights};

use crate::{Bench, stderr, stdout};

const CONFIG: &str =
    r#"{"n_num_features": 3, "cat_cardinalities": [2, 4], "k": 4, "d_block": 8, "n_blocks": 2}"#;

fn inputs(bench: &Bench) -> Tensors {
    let inputs = Tensors::from([
        (
            "x_num".to_owned(),
            Tensor::arange(15, FLOAT_CPU).view([5, 3]) / 10.0,
        ),
        (
            "x_cat".to_owned(),
            Tensor::zeros([5, 2], (Kind::Int64, FLOAT_CPU.1)),
        ),
        (
            "cotangent.y".to_owned(),
            Tensor::ones([5, 4, 1], FLOAT_CPU) * 2.0,
        ),
    ]);
    weights::save(&bench.path("in.safetensors"), &inputs, &BTreeMap::new()).unwrap();
    bench.write("config.json", CONFIG);
    inputs
}

const FORWARD: [&str; 9] = [
    "forward",
    "--model",
    "tabm",
    "--config",
    "config.json",
    "--input",
    "in.safetensors",
    "--output",
    "out.safetensors",
];

#[test]
fn outputs_and_gradients_go_through_files() {
    let bench = Bench::new();
    inputs(&bench);
    let run = |more: &[&str]| {
        let words: Vec<&str> = FORWARD.iter().chain(more).copied().collect();
        bench.densely(&words).success();
        weights::read(&bench.path("out.safetensors")).unwrap()
    };
    let file = run(&["--grads", "--save-weights", "w.safetensors", "--seed", "3"]);
    assert_eq!(file.metadata["preset"], "tabm");
    assert_eq!(file.tensors["y"].size(), [5, 4, 1]);
    // The head's bias adds to each row once: its gradient is the sum of the cotangents.
    let bias = &file.tensors["grad.output.bias"];
    assert_eq!(bias, &(Tensor::ones([4, 1], FLOAT_CPU) * 10.0));
    assert_eq!(file.tensors["grad.input.x_num"].size(), [5, 3]);
    let again = run(&["--weights", "w.safetensors"]);
    // Close, not equal: without gradients the fused inference sums in another order.
    assert!(again.tensors["y"].allclose(&file.tensors["y"], 1e-5, 1e-6, false));
    assert_eq!(
        again.tensors["y"],
        run(&["--weights", "w.safetensors"]).tensors["y"]
    );
    assert_eq!(again.tensors.len(), 1);
    assert_eq!(run(&["--dtype", "f64"]).tensors["y"].kind(), Kind::Double);
    assert_eq!(
        run(&["--dtype", "bf16"]).tensors["y"].kind(),
        Kind::BFloat16
    );
    let list: serde_json::Value =
        serde_json::from_str(&stdout(&bench.densely(&["models", "--json"]).success())).unwrap();
    assert_eq!(list.as_array().unwrap().len(), 79);
    assert_eq!(list[0]["inputs"][0]["name"], "x_num");
}

#[test]
fn mistakes_are_sentences() {
    let bench = Bench::new();
    let inputs = inputs(&bench);
    let fails = |words: &[&str], part: &str| {
        let text = stderr(&bench.densely(words).code(1));
        assert!(text.contains(part) && !text.contains("panicked"), "{text}");
    };
    let with =
        |more: &[&'static str]| -> Vec<&str> { FORWARD.iter().chain(more).copied().collect() };
    let mut unknown = FORWARD;
    unknown[2] = "tabn";
    fails(&unknown, "nearest names: tabm");
    fails(
        &with(&["--weights", "in.safetensors"]),
        "weights do not fit the model",
    );
    fails(
        &with(&["--weights", "no.safetensors"]),
        "no.safetensors: No such file",
    );
    // What is read is never written over.
    let mut same = FORWARD;
    same[8] = "./in.safetensors";
    fails(&same, "setting `output`: would overwrite in.safetensors");
    for (path, part) in [
        (
            "config.json",
            "setting `save-weights`: would overwrite config.json",
        ),
        (
            "out.safetensors",
            "setting `save-weights`: names the file of --output",
        ),
        (
            "./out.safetensors",
            "setting `save-weights`: names the file of --output",
        ),
    ] {
        fails(&with(&["--save-weights", path]), part);
    }
    assert!(!bench.path("out.safetensors").exists());
    assert_eq!(
        std::fs::read(bench.path("config.json")).unwrap(),
        CONFIG.as_bytes()
    );
    bench.write("config.json", "{");
    fails(&FORWARD, "config.json: damaged or of another format");
    bench.write("config.json", r#"{"k": 0}"#);
    fails(&FORWARD, "setting `k`");
    bench.write("config.json", CONFIG);
    let mut missing = Tensors::new();
    missing.insert("x_num".to_owned(), inputs["x_num"].shallow_clone());
    weights::save(&bench.path("in.safetensors"), &missing, &BTreeMap::new()).unwrap();
    fails(&FORWARD, "`x_cat`");
    bench.densely(&with(&["--dtype", "f16"])).code(2);
}

/// As `densely … | head`: neither an error nor a panic, for what `println!` writes and for a file on standard output.
#[test]
fn a_reader_that_has_enough_ends_the_program_quietly() {
    let bench = Bench::new();
    let rows: String = (0..300).map(|row| format!("{row},{}\n", row % 3)).collect();
    bench.write("t.csv", &format!("a,price\n{rows}"));
    bench.fit("t.csv", &["--target", "price"]).success();
    for words in ["models --json", "tabular predict runs/t t.csv"] {
        let mut program = std::process::Command::new(assert_cmd::cargo::cargo_bin("densely"));
        let mut child = program
            .args(words.split(' '))
            .current_dir(bench.path(""))
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(141), "{words}: {text}");
        assert!(
            !text.contains("error:") && !text.contains("panicked"),
            "{words}: {text}"
        );
    }
}
